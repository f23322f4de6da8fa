"""Answers of a rollout with what their tokens were trained by: advantage, value, log-probability, KL and ratio."""

import math
from typing import Any

import torch
from torch import Tensor

from ..reports.samples import MOST_TOKENS, Sample, first_of_groups, rounded, shown_prompt
from .rollout import Rollout
from .sample_recording import cut_tokens, cut_values, prompt_key, right_answer


class RolloutSamples:
    """A few answers of one rollout of this process.

    Complete once the rollout is trained on: the ratios are those of the last minibatch that had the answer.

    Args:
        tensors: the batch for the loss.
        reward_names: of the reward functions.
        all_rewards: (B, functions), of this process.
    """

    def __init__(
        self,
        rollout: Rollout,
        tensors: dict[str, Any],
        reward_names: list[str],
        all_rewards: Tensor,
        tokenizer: Any,
    ):
        keys = [prompt_key(row) for row in rollout.rows]
        self.places = first_of_groups(keys, rollout.rewards.nan_to_num(math.inf).tolist())
        self.groups = {key: number for number, key in enumerate(dict.fromkeys(keys[at] for at in self.places))}
        self._of_prompt = [self.groups[keys[at]] for at in self.places]
        self._rollout, self._names, self._decoder = rollout, reward_names, tokenizer
        self._rewards = all_rewards[self.places].tolist()
        kept = ("prompt_ids", "completion_ids", "advantages", "old_values", "ref_per_token_logps")
        self._kept = {name: tensors[name][self.places].clone() for name in kept if tensors.get(name) is not None}
        old = tensors.get("old_per_token_logps")
        self._old: list[Tensor | None] = [None if old is None else old[at].clone() for at in self.places]
        self._ratios: list[Tensor | None] = [None] * len(self.places)

    @torch.no_grad()
    def see(self, inputs: dict[str, Any], logps: Tensor) -> None:
        """A minibatch and the log-probabilities (b, T) that its loss was computed from."""
        for number in range(len(self.places)):
            same = [
                (inputs[name] == self._kept[name][number]).all(1)
                for name in ("prompt_ids", "completion_ids")
                if inputs[name].shape[1] == self._kept[name].shape[1]
            ]
            if len(same) < 2 or not (found := (same[0] & same[1]).nonzero()).numel():
                continue
            now = logps[found[0, 0]].detach().float()
            if self._old[number] is None:  # the first step on a rollout is taken by the policy that wrote it
                self._old[number] = now.clone()
            else:
                self._ratios[number] = (now - self._old[number]).exp()

    def finished(self) -> list[Sample]:
        return [self._sample(number) for number in range(len(self.places))]

    def _sample(self, number: int) -> Sample:
        rollout, place = self._rollout, self.places[number]
        ids = self._kept["completion_ids"][number]
        length = int(rollout.tensors["completion_mask"][place].sum()) or int(rollout.lengths[place])
        row, chosen = rollout.rows[place], rollout.mask[place][:length].bool()
        sample = {
            "prompt": shown_prompt(row["prompt"]),
            "group": self._of_prompt[number],
            "right": right_answer(row),
            **cut_tokens(self._decoder, ids[:length].tolist()),
            "reward": rounded([float(rollout.rewards[place])])[0],
            "rewards": dict(zip(self._names, rounded(self._rewards[number]), strict=True)),
            "ended": bool(rollout.ended[place]),
        }

        if not chosen.all():
            sample["of_tools"] = (~chosen[:MOST_TOKENS]).tolist()  # tokens that the policy did not choose

        def add(name: str, values: Tensor | None) -> None:
            if values is not None:
                sample[name] = cut_values(values[:length].double().masked_fill(~chosen, math.nan))

        advantages = self._kept["advantages"][number]
        add("advantages", advantages if advantages.dim() else advantages.expand(len(ids)))
        add("values", self._kept["old_values"][number] if "old_values" in self._kept else None)
        old, reference = self._old[number], self._kept.get("ref_per_token_logps")
        add("log_probs", old)
        add("kl", old - reference[number] if old is not None and reference is not None else None)
        add("ratios", self._ratios[number])
        return sample
