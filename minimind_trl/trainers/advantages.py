"""Advantages of token sequences, and how well a critic's values explain the returns."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def token_rewards(scores: Tensor, kl: Tensor, kl_coef: float, mask: Tensor) -> Tensor:
    """(B, T): `-kl_coef * kl` for every token, and at the last token of the mask also the completion's score.

    Ziegler et al., "Fine-Tuning Language Models from Human Preferences" (arXiv 1909.08593), section 2.2.

    Args:
        scores: (B,) rewards of whole completions.
        kl: (B, T) per token, from the reference model.
        mask: (B, T). A completion without any token in it gets 0 everywhere.
    """
    rewards = -kl_coef * kl * mask
    last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1, keepdim=True)
    return rewards.scatter_add(1, last, (scores * mask.any(1))[:, None].to(rewards.dtype))


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al., arXiv 1506.02438, equation 16), and returns.

    `delta_t = r_t + gamma V_{t+1} - V_t`, `A_t = delta_t + gamma lam A_{t+1}`, `R_t = A_t + V_t`; after the last token
    of the mask both are 0.

    Args:
        rewards: (B, T) per token.
        values: (B, T) of the states in which the tokens were chosen.
        mask: (B, T), 1 for the tokens that the policy chose. Tokens of tools between them take no time.

    Returns:
        Advantages and returns, (B, T) each, 0 outside of the mask.
    """
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for step in reversed(range(values.shape[1])):
        here = mask[:, step].bool()
        delta = rewards[:, step] + gamma * next_value - values[:, step]
        advantage = delta + gamma * lam * next_advantage
        advantages[:, step] = torch.where(here, advantage, 0)
        next_value = torch.where(here, values[:, step], next_value)
        next_advantage = torch.where(here, advantage, next_advantage)
    return advantages, (advantages + values) * mask


def k3(log_ratio: Tensor) -> Tensor:
    """`exp(x) - 1 - x` of `x = log(q / p)`: at samples of p an unbiased estimate of KL(p || q), never negative.

    Schulman, "Approximating KL Divergence" (2020).
    """
    return log_ratio.exp() - 1 - log_ratio


def whiten(values: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor], shift_mean: bool = True) -> Tensor:
    """Scale values to variance 1, and with `shift_mean` to mean 0, over the mask of all processes; 0 outside of it.

    Args:
        total: the sum of a tensor over all processes.
    """
    count, summed = total(torch.stack([mask.sum().double(), (values * mask).sum().double()]))
    mean = summed / count.clamp(min=1)
    variance = total((((values - mean) * mask) ** 2).sum().double()) / count.clamp(min=1)
    whitened = (values - mean) / (variance + 1e-8).sqrt()
    return ((whitened if shift_mean else whitened + mean) * mask).to(values.dtype)


def clipped_value_losses(values: Tensor, old_values: Tensor, returns: Tensor, cliprange: float) -> Tensor:
    """(B, T): half the squared error of the value, or of the value clipped to the old one's range if that is larger."""
    clipped = old_values + (values - old_values).clamp(-cliprange, cliprange)
    return 0.5 * torch.max((values - returns) ** 2, (clipped - returns) ** 2)


def value_moments(values: Tensor, returns: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The arguments of `explained_variance`, summed over each completion's tokens, (B,) each."""
    errors = (returns - values) * mask
    return {
        "count": mask.sum(1).float(),
        "returns": returns.sum(1),
        "squared_returns": returns.square().sum(1),
        "errors": errors.sum(1),
        "squared_errors": errors.square().sum(1),
    }


def explained_variance(
    count: float, returns: float, squared_returns: float, errors: float, squared_errors: float
) -> float:
    """`1 - Var(returns - values) / Var(returns)`, from sums over tokens.

    NaN if there is nothing to explain: fewer than two tokens, or returns that differ by less than a thousandth of their
    size, as on a solved task.
    """
    if count < 2:
        return math.nan
    variance = squared_returns / count - (returns / count) ** 2
    if variance <= 1e-6 * squared_returns / count:
        return math.nan
    return 1 - (squared_errors / count - (errors / count) ** 2) / variance
