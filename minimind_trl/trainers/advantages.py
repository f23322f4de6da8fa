"""Advantage estimates of token sequences."""

from collections.abc import Callable

import torch
from torch import Tensor


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., arXiv 1506.02438, equation 16), and returns.

    `delta_t = r_t + gamma V_{t+1} - V_t`, `A_t = delta_t + gamma lam A_{t+1}`, `R_t = A_t + V_t`; after the last token
    of the mask both are 0.

    Args:
        rewards: (B, T) per token.
        values: (B, T) of the states in which the tokens were chosen.
        mask: (B, T) 1 for the tokens that the policy chose. Tokens between them (of tools) take no time.

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
    """Values at unit variance, and at mean 0 with `shift_mean`, over the mask of all processes; 0 outside of it.

    Args:
        total: the sum of a tensor over all processes.
    """
    count, summed = total(torch.stack([mask.sum().double(), (values * mask).sum().double()]))
    mean = summed / count.clamp(min=1)
    variance = total((((values - mean) * mask) ** 2).sum().double()) / count.clamp(min=1)
    whitened = (values - mean) / (variance + 1e-8).sqrt()
    return ((whitened if shift_mean else whitened + mean) * mask).to(values.dtype)
