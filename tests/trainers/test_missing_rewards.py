"""Completions for which every reward function returns None, in GRPO, PPO and SPO."""

import itertools
from collections.abc import Callable

import pytest
import torch

from minimind_trl.errors import InputError, TrainingError
from minimind_trl.rewards import Reward
from tests.trainers.online import METHODS, first_rollout, low_ids, online, prompts, weights

ALL = list(METHODS)


def missing(asked: Callable[[int], bool], low: float = 0.0, high: float = 1.0) -> Reward:
    """`low_ids` from `low` to `high`; None for the prompts "say N" whose number is `asked`."""

    def some(prompts, completions, completion_ids, **_):
        scores = low_ids(prompts, completions, completion_ids)
        numbers = [int(prompt[-1]["content"].split()[1]) for prompt in prompts]
        return [
            None if asked(number) else low + (high - low) * score for number, score in zip(numbers, scores, strict=True)
        ]

    return Reward(some, "some", low, high)


@pytest.mark.parametrize("method", ALL)
def test_what_has_no_reward_is_left_out(tmp_path, method):
    """With rewards from -3 to -1 a raw 0 would be the best of all."""
    own = {"ppo": {"kl_coef": 0.1, "whiten_rewards": True}}.get(method, {})
    trainer = online(method, tmp_path, reward=missing(lambda n: n % 3 == 0, -3, -1), rows=prompts(16), **own)
    rollout, inputs = first_rollout(trainer)
    advantages = inputs["advantages"]
    rewarded = ~rollout.rewards.isnan()
    assert 0 < rewarded.sum() < 16 and torch.equal(rewarded, rollout.rewarded)
    assert rollout.rewards[rewarded].max() <= -1
    assert trainer.metrics_to_log["train"]["frac_reward_none"] == [1 - rewarded.float().mean().item()]
    assert trainer.metrics_to_log["train"]["reward"][0] == pytest.approx(rollout.rewards[rewarded].mean().item())
    mask = inputs["completion_mask"]
    used = advantages[:, None] * mask if advantages.dim() == 1 else advantages
    assert (used.abs().sum(1) == 0).sum() >= (~rewarded).sum()
    assert used.sum().item() == pytest.approx(0, abs=1e-3) or method == "grpo", "the mean is of those with a reward"
    if method == "ppo":
        unrewarded = ~inputs["rewarded"]
        assert unrewarded.sum() == (~rewarded).sum() and not advantages[unrewarded].any()
        trainer.compute_loss(trainer.model, inputs)
        loss = trainer.metrics_to_log["train"]["critic_loss"][-1]
        inputs["returns"][unrewarded] += 9
        trainer.compute_loss(trainer.model, inputs)
        assert trainer.metrics_to_log["train"]["critic_loss"][-1] == loss, "their returns are unknown"


def test_a_group_counts_its_rewarded_answers_only(tmp_path):
    """Of four answers two have a reward: the mean and deviation are of those two."""
    turn = itertools.count()

    def every_other(prompts, **_):
        return [[None, 5.0, None, 7.0][next(turn) % 4] for _ in prompts]

    trainer = online("grpo", tmp_path, reward=every_other)
    _, inputs = first_rollout(trainer)
    expected = torch.tensor([0.0, -1, 0, 1]) / (2**0.5 + 1e-4)
    torch.testing.assert_close(inputs["advantages"].sort().values, expected.repeat(4).sort().values)


def test_spo_keeps_what_it_knows_of_a_prompt_without_a_reward(tmp_path):
    trainer = online("spo", tmp_path, reward=missing(lambda n: n < 8, -3, -1), rows=prompts(16), max_steps=3)
    trainer.train()
    fresh = online("spo", tmp_path, reward=missing(bool, -3, -1), rows=prompts(16)).tracker
    everyone = torch.arange(16)
    known = trainer.tracker.baselines(everyone) != fresh.baselines(everyone)
    assert not known[:8].any() and known[8:].all()


def test_a_reward_of_some_functions_is_within_their_range(tmp_path):
    """From -3 to -1 and from 0 to 1: without the first, a half is half of the best and not out of range."""
    functions = [missing(lambda n: n % 2, -3, -1), missing(lambda n: n % 4 == 1)]
    trainer = online("spo", tmp_path, reward=functions, reward_weights=[1.0, 2.0], rows=prompts(16), max_steps=2)
    assert trainer.reward_scale.range == (-3, 1)
    trainer.train()


@pytest.mark.parametrize("method", [*ALL, "self-play", "global"])
def test_neither_some_answers_nor_a_rollout_without_rewards_end_a_run(tmp_path, method):
    """Single prompts, whole rollouts, held-out answers: all but 3 of 16 have none, and 4 answers are a rollout."""
    more = {"self-play": {"opponent": "snapshot"}, "global": {"tracker": "global"}}.get(method, {})
    options = {"per_device_train_batch_size": 4, "max_steps": 8, "learning_rate": 1e-3, "eval_temperature": 1.0}
    method = "spo" if more else method
    reward = missing(lambda n: n not in (1, 4, 5), 0.5, 1)
    trainer = online(method, tmp_path, reward=reward, rows=prompts(16), **(options | more))
    trainer.unrewarded_rollouts = 0  # as after a trial with an answer that has one
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 8 and all(map(torch.isfinite, map(torch.as_tensor, [log["loss"] for log in logs])))
    shares = [log["frac_reward_none"] for log in logs if "frac_reward_none" in log]
    assert all(0 <= share <= 1 for share in shares) and max(shares) > 0.5
    for figures in (before, after):
        assert figures["eval_frac_reward_none"] == 0.5 and 0.5 <= figures["eval_reward"] <= 1
    assert all(tensor.isfinite().all() for tensor in weights(trainer).values())


@pytest.mark.parametrize("method", ALL)
def test_a_run_without_any_reward_is_an_error(tmp_path, method):
    none = missing(lambda n: True)
    with pytest.raises(InputError, match="16 of 16 completions have no reward: some returned None"):
        online(method, tmp_path, reward=none).train()
    with pytest.raises(InputError, match="4 of 4 completions have no reward: some returned None"):
        online(method, tmp_path, reward=none, held_out=prompts(4)).evaluate()


def test_ten_rollouts_in_a_row_without_any_reward_are_an_error(tmp_path):
    calls = itertools.count()

    def broken(prompts, **_):
        return [float(n % 2) if next(calls) < 32 else None for n in range(len(prompts))]

    trainer = online("grpo", tmp_path, reward=broken, max_steps=20)
    message = "step 12: 16 of 16 completions have no reward: broken returned None for them; saved .*checkpoint-11"
    with pytest.raises(TrainingError, match=message):
        trainer.train()
    assert trainer.state.global_step == 2 + 9
