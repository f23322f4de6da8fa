"""Earlier policies to play against."""

from typing import Any

import torch
from torch import Tensor, nn

from .lm_head import unpatched_copy


class OpponentPool:
    """Up to `size` snapshots of a policy: the first, which stays, and the latest.

    One model holds whichever snapshot plays; the others are its trainable weights, on the CPU.

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
        """Keep the policy of this step; the oldest one but the first goes where there is no room."""
        if self.size == 1 and self.snapshots:
            return  # the first stays
        parameters = dict(policy.named_parameters())
        weights = {name: parameters[name].detach().to("cpu", copy=True) for name in self._names}
        self.snapshots.append((step, weights))
        if len(self.snapshots) > self.size:
            del self.snapshots[1]

    def playing(self, index: int) -> nn.Module:
        """The model with the weights of a snapshot."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, weight in self.snapshots[index][1].items():
                parameters[name].copy_(weight)
        return self.model

    def state(self) -> list[dict[str, Any]]:
        return [{"step": step, "weights": weights} for step, weights in self.snapshots]

    def load(self, state: list[dict[str, Any]]) -> None:
        self.snapshots = [(one["step"], {k: v.cpu() for k, v in one["weights"].items()}) for one in state]
