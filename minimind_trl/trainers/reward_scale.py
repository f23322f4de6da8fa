"""Rewards on a scale from 0 to 1, from the range that their functions declare."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..rewards import declared_range
from .rollout import weighted_sums


class RewardScale:
    """Maps weighted sums of rewards to [0, 1].

    Args:
        functions: the reward functions, with `low` and `high` if they declare their range.
        names: of the functions, for messages.
        weights: (functions,) of their rewards.
        given: lowest and highest sum, which must include all that is declared; None takes the declared range.

    Attributes:
        range: lowest and highest sum.

    Raises:
        InputError: `given` is too narrow, a function declares no range and none is given, or the range is a single
            value.
    """

    def __init__(self, functions: Sequence[Any], names: list[str], weights: Tensor, given: list[float] | None = None):
        self.names, self.weights = names, weights
        low, high = declared_range(functions, weights.tolist())
        if given is not None:
            problems = [f"as low as {low:g}"] * (-math.inf < low < given[0] - 1e-6)
            problems += [f"as high as {high:g}"] * (math.inf > high > given[1] + 1e-6)
            if problems:
                raise InputError(
                    f"--reward_range {given[0]:g} {given[1]:g}: the rewards may be {' and '.join(problems)}, by what "
                    "they declare: widen it, or leave it out"
                )
            self.range, self._ranges = tuple(given), None
            return
        self._ranges = [
            declared_range([one], [weight]) for one, weight in zip(functions, weights.tolist(), strict=True)
        ]
        for name, ends in zip(names, self._ranges, strict=True):
            if not all(map(math.isfinite, ends)):
                raise InputError(f"the range of reward {name} is not known: give --reward_range LOWEST HIGHEST")
        if low == high:
            raise InputError(f"all rewards are {low:g}: nothing to learn from")
        self.range = low, high

    def normalize(self, rewards: Tensor) -> Tensor:
        """(N,) weighted sums of rewards (N, functions) in [0, 1]; NaN where there is no reward.

        Raises:
            InputError: a sum is outside the range.
        """
        sums, (lows, highs) = weighted_sums(rewards, self.weights), self._bounds(rewards)
        outside = (sums < lows - 1e-6) | (sums > highs + 1e-6)
        if outside.any():
            row = int(outside.nonzero()[0])
            parts = ", ".join(f"{n} {v:g}" for n, v in zip(self.names, rewards[row].tolist(), strict=True))
            raise InputError(
                f"the reward {sums[row].item():g} ({parts}) is outside --reward_range {lows[row].item():g} "
                f"{highs[row].item():g}: widen it, or clip the reward"
            )
        return ((sums - lows) / (highs - lows)).clamp(0, 1)

    def _bounds(self, rewards: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) lowest and highest sum of the functions that gave the rewards; a given range holds for all rows."""
        if self._ranges is None:
            return tuple(torch.full_like(rewards[:, 0], end) for end in self.range)
        ends = torch.tensor(self._ranges, dtype=rewards.dtype, device=rewards.device)
        return tuple(((~rewards.isnan()) * ends[:, side]).sum(1) for side in (0, 1))
