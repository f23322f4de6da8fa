"""Batches of packed rows, and of answers that a student imitates."""

from dataclasses import dataclass
from typing import Any

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import pad


@dataclass
class PackedRowsCollator(DataCollatorForLanguageModeling):
    """Packed rows as a batch (rows, length) with positions that start anew at each sequence, for sdpa and eager.

    TRL's collator lays all rows of a batch out as a single one, as flash attention wants it; elsewhere attention then
    costs the square of the whole batch. MiniMind's models keep the sequences of a row apart by their positions.
    """

    return_position_ids: bool = True

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        batch["labels"][batch["position_ids"] == 0] = -100  # a sequence's first token does not follow from the last one
        return batch


@dataclass
class AnswersCollator:
    """Rows of `input_ids` and `labels` as GKDTrainer wants them.

    Whole rows padded on the right, and `prompts` padded on the left: all that stands before the last turn that is
    imitated, for the student to answer itself.
    """

    pad_token_id: int

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [torch.tensor(example["input_ids"]) for example in examples]
        labels = [torch.tensor(example["labels"]) for example in examples]
        prompts = [ids[: last_turn_start(wanted)] for ids, wanted in zip(rows, labels, strict=True)]
        return {
            "input_ids": pad(rows, padding_value=self.pad_token_id),
            "attention_mask": pad([torch.ones_like(ids) for ids in rows], padding_value=0),
            "labels": pad(labels, padding_value=-100),
            "prompts": pad(prompts, padding_value=self.pad_token_id, padding_side="left"),
            "prompt_attention_mask": pad(
                [torch.ones_like(ids) for ids in prompts], padding_value=0, padding_side="left"
            ),
        }


def last_turn_start(labels: torch.Tensor) -> int:
    """Index of the first token of the last run of tokens that are learned (length,)."""
    wanted = labels != -100
    starts = wanted & ~torch.cat([wanted.new_zeros(1), wanted[:-1]])
    return int(starts.nonzero()[-1])
