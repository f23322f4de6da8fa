"""Earlier policies to play against."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from .lm_head import unpatched_copy


class OpponentPool:
    """Up to `size` snapshots of a policy: the first, which stays, and the latest ones.

    A single model takes the weights of the snapshot that plays; the snapshots are trainable weights on the CPU.

    Args:
        policy: the policy as it is now, which becomes the first snapshot.
    """

    def __init__(self, policy: nn.Module, size: int):
        self.size = size
        self.model = unpatched_copy(policy).eval().requires_grad_(False)
        self._names = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
        self.snapshots: list[tuple[int, dict[str, Tensor]]] = []
        self.add(policy, step=0)

    def add(self, policy: nn.Module, step: int) -> None:
        """Keep the policy of this step; a full pool drops its oldest snapshot except the first."""
        if self.size == 1 and self.snapshots:
            return
        parameters = dict(policy.named_parameters())
        weights = {name: parameters[name].detach().to("cpu", copy=True) for name in self._names}
        self.snapshots.append((step, weights))
        if len(self.snapshots) > self.size:
            del self.snapshots[1]

    def load_snapshot(self, index: int) -> nn.Module:
        """The model, with the weights of a snapshot."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, weight in self.snapshots[index][1].items():
                parameters[name].copy_(weight)
        return self.model

    def state(self) -> list[dict[str, Any]]:
        return [{"step": step, "weights": weights} for step, weights in self.snapshots]

    def load(self, state: list[dict[str, Any]]) -> None:
        self.snapshots = [(one["step"], {k: v.cpu() for k, v in one["weights"].items()}) for one in state]


class KeepSnapshots(TrainerCallback):
    """Adds the policy to the pool every `opponent_interval` steps."""

    def __init__(self, pool: OpponentPool, policy: Callable[[], nn.Module]):
        self.pool, self.policy = pool, policy

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % args.opponent_interval == 0:
            self.pool.add(self.policy(), state.global_step)


def wins_over(theirs: Tensor, ours: Tensor) -> Tensor:
    """1 where our reward is higher, 1/2 where they are equal, 0 where theirs is higher; NaN where one is missing."""
    wins = (ours > theirs + 1e-6).float() + 0.5 * ((ours - theirs).abs() <= 1e-6).float()
    return wins.masked_fill(ours.isnan() | theirs.isnan(), math.nan)
