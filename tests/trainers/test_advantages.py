"""Advantages, whitening and the value loss, against hand-computed and brute-force values."""

import math

import pytest
import torch

from minimind_trl.trainers.advantages import (
    clipped_value_losses,
    explained_variance,
    generalized_advantages,
    token_rewards,
    value_moments,
    whiten,
)


def test_advantages_by_hand():
    """Two tokens, gamma 0.5, lambda 0.5: delta_1 = 3 - 2, delta_0 = 1 + 0.5 * 2 - 4, A_0 = delta_0 + 0.25 delta_1."""
    rewards, values, mask = torch.tensor([[1.0, 3.0]]), torch.tensor([[4.0, 2.0]]), torch.ones(1, 2)
    advantages, returns = generalized_advantages(rewards, values, mask, gamma=0.5, lam=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[-1.75, 1.0]]))
    torch.testing.assert_close(returns, torch.tensor([[2.25, 3.0]]))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.0), (0.97, 0.8)])
def test_advantages_are_the_sum_of_discounted_errors(gamma, lam):
    """Equation 16 of the paper, summed term by term over the tokens that the policy chose."""
    torch.manual_seed(0)
    rewards, values = torch.randn(4, 9), torch.randn(4, 9)
    mask = torch.ones(4, 9)
    mask[1, 5:] = 0  # a short completion
    mask[2, 3:5] = 0  # a tool's answer within
    mask[3] = 0
    advantages, returns = generalized_advantages(rewards, values, mask, gamma, lam)
    for row in range(4):
        chosen = mask[row].nonzero().flatten().tolist()
        for i, step in enumerate(chosen):
            total = 0.0
            for k, later in enumerate(chosen[i:]):
                following = values[row, chosen[i + k + 1]] if i + k + 1 < len(chosen) else 0.0
                total += (gamma * lam) ** k * (rewards[row, later] + gamma * following - values[row, later])
            assert advantages[row, step] == pytest.approx(float(total), abs=1e-5)
            assert returns[row, step] == pytest.approx(float(total + values[row, step]), abs=1e-5)
    assert (advantages[mask == 0] == 0).all() and (returns[mask == 0] == 0).all()


def test_with_lambda_one_the_return_is_what_came():
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.randn(1, 3)
    _, returns = generalized_advantages(rewards, values, torch.ones(1, 3), 1.0, 1.0)
    torch.testing.assert_close(returns, torch.ones(1, 3))


def test_whitening_is_over_the_mask_alone():
    torch.manual_seed(0)
    values, mask = torch.randn(3, 7) * 4 + 2, (torch.rand(3, 7) > 0.4).float()
    white = whiten(values, mask, lambda tensor: tensor)
    inside = white[mask == 1]
    assert inside.mean() == pytest.approx(0, abs=1e-6) and inside.std(correction=0) == pytest.approx(1, abs=1e-5)
    assert (white[mask == 0] == 0).all()
    kept = whiten(values, mask, lambda tensor: tensor, shift_mean=False)[mask == 1]
    assert kept.mean() == pytest.approx(values[mask == 1].mean().item(), abs=1e-5)


def test_whitening_of_two_processes_is_that_of_all_rows():
    values, mask = torch.randn(4, 5), torch.ones(4, 5)
    halves = [(values[:2], mask[:2]), (values[2:], mask[2:])]
    sums = [
        torch.stack([mask.sum().double(), values.sum().double()]),
        (values - values.double().mean()).square().sum().double(),
    ]
    parts = []
    for half in halves:
        answers = iter(sums)
        parts.append(whiten(*half, lambda _, answers=answers: next(answers)))
    torch.testing.assert_close(torch.cat(parts), whiten(values, mask, lambda tensor: tensor))


def test_the_value_loss_is_clipped_by_hand():
    values, old, returns = torch.tensor([[2.0, 0.1, -1.0]]), torch.zeros(1, 3), torch.tensor([[2.0, 1.0, 0.0]])
    # moved to the target, but more than 0.2: as if it stood at 0.2; moved less; moved away: the larger counts
    expected = torch.tensor([[0.5 * 1.8**2, 0.5 * 0.9**2, 0.5 * 1.0]])
    torch.testing.assert_close(clipped_value_losses(values, old, returns, cliprange=0.2), expected)


def test_token_rewards_are_the_kl_everywhere_and_the_score_at_the_last_token():
    mask = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])  # a tool's token between, all tokens, none
    rewards = token_rewards(torch.tensor([5.0, 7.0, 9.0]), torch.full((3, 4), 0.5), kl_coef=0.2, mask=mask)
    expected = torch.tensor([[-0.1, 0, 4.9, 0], [-0.1, -0.1, -0.1, 6.9], [0, 0, 0, 0]])
    torch.testing.assert_close(rewards, expected)


def moments(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    return {name: part.double().sum().item() for name, part in value_moments(values, returns, mask).items()}


def test_explained_variance_by_hand_and_nan_where_there_is_nothing_to_explain():
    torch.manual_seed(0)
    mask, noise = torch.ones(64, 8), 0.01 * torch.randn(64, 8)
    solved = torch.ones(64, 8)
    assert math.isnan(explained_variance(**moments(0.99 + noise, solved, mask)))
    assert math.isnan(explained_variance(**moments(noise, solved * 0, mask)))
    assert math.isnan(explained_variance(**moments(noise * 0, solved * 0, mask * 0))), "every answer is masked"
    returns = torch.randn(64, 8)
    expected = 1 - (returns - noise).var(correction=0) / returns.var(correction=0)
    assert explained_variance(**moments(noise, returns, mask)) == pytest.approx(expected.item(), abs=1e-5)
