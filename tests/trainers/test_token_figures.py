"""Figures of tokens in parts are those of the plain formulas, and so is the gradient."""

import pytest
import torch

from minimind_trl.trainers import token_figures as module
from minimind_trl.trainers.token_figures import FOR_PREFERENCES, token_figures


@pytest.mark.parametrize("tokens", [0, 1, 37])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_figures_and_gradient_are_those_of_the_formulas(tokens, temperature, monkeypatch):
    monkeypatch.setattr(module, "_IN_CACHE", 5 * 50)  # parts of five tokens
    torch.manual_seed(0)
    logits, targets = 3 * torch.randn(tokens, 50), torch.randint(50, (tokens,))
    logits[: tokens // 2].scatter_(-1, targets[: tokens // 2, None], 20.0)  # sure of half of them
    plain, parted = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    figures = token_figures(parted, targets, temperature, for_preferences=True)
    log_softmax = (plain / temperature).log_softmax(-1)
    expected = {
        "log_probs": log_softmax[torch.arange(tokens), targets],
        "entropy": -(log_softmax.exp() * log_softmax).sum(-1),
        "is_top1": plain.argmax(-1) == targets,
        "mean_logits": (plain / temperature).mean(-1),
        "log_sum_sq_probs": (2 * log_softmax).logsumexp(-1),
    }
    for name, values in expected.items():
        torch.testing.assert_close(figures[name], values, msg=name)
    assert [name for name in expected if figures[name].requires_grad] == ["log_probs"]
    weights = torch.rand(tokens)
    for one, other in ((figures["log_probs"], parted), (expected["log_probs"], plain)):
        (one * weights).sum().backward()
        assert other.grad is not None
    torch.testing.assert_close(parted.grad, plain.grad)


def test_a_sure_token_keeps_its_gradient_in_bfloat16():
    logits = torch.zeros(1, 8, dtype=torch.bfloat16)
    logits[0, 3] = 9.0
    logits.requires_grad_()
    token_figures(logits, torch.tensor([3]), 1.0)["log_probs"].sum().backward()
    exact = torch.autograd.functional.jacobian(lambda x: x.log_softmax(-1)[0, 3], logits.detach().float())
    torch.testing.assert_close(logits.grad.float(), exact, rtol=1e-2, atol=0)


def test_without_being_asked_for_the_figures_of_preferences_are_left_out():
    assert not set(FOR_PREFERENCES) & set(token_figures(torch.zeros(2, 8), torch.tensor([1, 2]), 1.0))
