"""Baselines of single-stream policy optimization: estimates of the expected reward, without a critic."""

from typing import Any

import torch
from torch import Tensor


def forgetting(divergence: Tensor, half_life: float, low: float, high: float) -> Tensor:
    """`rho = 2^(-D / half_life)` within [low, high]: the share of the past to keep after the policy moved by D nats."""
    return torch.exp2(-divergence / half_life).clamp(low, high)


class PromptTracker:
    """A Beta distribution over each prompt's reward (Single-stream Policy Optimization, arXiv 2509.13232, section 3).

    Rewards are in [0, 1]. The baseline is `v = a / (a + b)` *before* the update, which sets `a = rho a + r` and
    `b = rho b + 1 - r`, with rho from `forgetting`.

    Args:
        prompts: their number.
        half_life: D_half, in nats.
        rho_min, rho_max: bounds of rho.
        prior: a and b at first, unless `initialize` sets them; 1/2 in the authors' code (verl, recipe/spo).
    """

    def __init__(
        self,
        prompts: int,
        half_life: float = 0.06,
        rho_min: float = 0.875,
        rho_max: float = 0.96,
        prior: float = 0.5,
    ):
        self.half_life, self.rho_min, self.rho_max = half_life, rho_min, rho_max
        self.start = 1 / (1 - rho_min)
        self.a = torch.full((prompts,), prior, dtype=torch.float64)
        self.b = self.a.clone()

    def initialize(self, rewards: Tensor) -> None:
        """Start from n answers to every prompt, `rewards` (prompts, n): `a0 = N_init (sum r + 1/2) / (n + 1)`.

        They weigh as much as `N_init = 1 / (1 - rho_min)` answers. NaN, for no reward, does not count among the n.
        """
        share = (rewards.double().nansum(1) + 0.5) / ((~rewards.isnan()).sum(1) + 1)
        self.a, self.b = self.start * share, self.start * (1 - share)

    def baselines(self, prompts: Tensor) -> Tensor:
        """(N,) baselines of the prompts with these numbers."""
        return (self.a / (self.a + self.b))[prompts]

    def update(self, prompts: Tensor, rewards: Tensor, divergences: Tensor) -> Tensor:
        """Update with rewards (N,), one after the other for a prompt that comes twice. Returns rho, (N,)."""
        rho = forgetting(divergences.double(), self.half_life, self.rho_min, self.rho_max)
        for prompt, reward, keep in zip(prompts.tolist(), rewards.double(), rho, strict=True):
            self.a[prompt] = keep * self.a[prompt] + reward
            self.b[prompt] = keep * self.b[prompt] + 1 - reward
        return rho

    def weights(self, floor: float) -> Tensor:
        """(prompts,) sampling weights, `sqrt(v (1 - v)) + floor`."""
        value = self.a / (self.a + self.b)
        return (value * (1 - value)).clamp(min=0).sqrt() + floor

    def state(self) -> dict[str, Any]:
        return {"a": self.a.clone(), "b": self.b.clone()}

    def load(self, state: dict[str, Any]) -> None:
        self.a, self.b = state["a"].cpu(), state["b"].cpu()


class GlobalTracker:
    """One Beta distribution over all rewards, as in MiniMind's train_spo.py (`AutoAdaptiveValueTracker`).

    `rho = 2^(-|change of the mean log-probability| / half_life)` within [0.5, 0.96], 0.9 at first. A batch counts as
    one answer with its mean reward.
    """

    def __init__(self, half_life: float = 0.06, rho_min: float = 0.5, rho_max: float = 0.96, first_rho: float = 0.9):
        self.half_life, self.rho_min, self.rho_max, self.first_rho = half_life, rho_min, rho_max, first_rho
        self.a = self.b = 0.5 / (1 - rho_min)
        self.mean_logp: float | None = None

    def baseline(self) -> float:
        return self.a / (self.a + self.b)

    def update(self, reward: float, mean_logp: float) -> float:
        """Update with a batch's mean reward, in [0, 1], and mean log-probability per token. Returns rho."""
        rho = self.first_rho
        if self.mean_logp is not None:
            change = torch.tensor(abs(self.mean_logp - mean_logp), dtype=torch.float64)
            rho = forgetting(change, self.half_life, self.rho_min, self.rho_max).item()
        self.mean_logp = mean_logp
        self.a, self.b = rho * self.a + reward, rho * self.b + 1 - reward
        return rho

    def state(self) -> dict[str, Any]:
        return {"a": self.a, "b": self.b, "mean_logp": self.mean_logp}

    def load(self, state: dict[str, Any]) -> None:
        self.a, self.b, self.mean_logp = state["a"], state["b"], state["mean_logp"]
