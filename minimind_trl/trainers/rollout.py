"""A batch of prompts, the policy's answers to them, and the answers' rewards."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Rollout:
    """What one process generated for one batch of prompts: B completions of at most T tokens.

    Attributes:
        rows: of the dataset, one for each completion.
        prompts, completions: as reward functions get them.
        completion_ids: token ids of each completion.
        tensors: TRL's batch: `prompt_ids`, `prompt_mask` (B, P), `completion_ids`, `completion_mask` (B, T),
            `advantages`, ...
        mask: (B, T), 1 for the tokens that the policy chose and trains on.
        logps: (B, T) log-probabilities under the policy that generated; None where the trainer does not need them.
        ref_logps: (B, T) under the reference model; None without one.
        rewards: (B,) weighted sums over the reward functions; NaN where no function gave a reward.
        all_rewards: (N, functions) rewards of all processes, in the order of their ranks; NaN where a function gave
            none.
        lengths: (B,) tokens that the policy chose, including those of masked truncated completions.
        ended: (B,) whether the completion ends with an end-of-sequence token.
        tool_use: counts of each answer, (B,) each; see `RolloutTools.tool_use`. None without tools.
    """

    rows: list[dict]
    prompts: list
    completions: list
    completion_ids: list[list[int]]
    tensors: dict[str, Any]
    mask: Tensor
    logps: Tensor | None
    ref_logps: Tensor | None
    rewards: Tensor
    all_rewards: Tensor
    lengths: Tensor
    ended: Tensor
    tool_use: dict[str, Tensor] | None = None

    @property
    def rewarded(self) -> Tensor:
        """(B,): whether the completion has a reward."""
        return ~self.rewards.isnan()


def joined(tensors: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of prompts with their completions, (B, P + T) each."""
    ids = torch.cat([tensors["prompt_ids"], tensors["completion_ids"]], 1)
    return ids, torch.cat([tensors["prompt_mask"], tensors["completion_mask"]], 1)


def loss_mask(tensors: dict[str, Any]) -> Tensor:
    """(B, T): 1 for the tokens of the completion that the policy chose, 0 for those of tools and padding."""
    return tensors["completion_mask"] * tensors.get("tool_mask", 1)


def weighted_sums(rewards: Tensor, weights: Tensor) -> Tensor:
    """(N,) weighted sums of rewards (N, functions), without the functions that gave none; NaN where all gave none."""
    sums = (rewards * weights.to(rewards.device)).nansum(1)
    return sums.masked_fill(rewards.isnan().all(1), math.nan)
