"""Batches of packed rows, and of answers that a student learns from."""

from dataclasses import dataclass
from typing import Any

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import pad


@dataclass
class PackedRowsCollator(DataCollatorForLanguageModeling):
    """Packed rows as a batch (rows, length), with positions that start at 0 for each sequence, for sdpa and eager.

    TRL's collator makes one long row of a batch, as flash attention needs it; other attention then costs the square of
    the whole batch. Models separate the sequences of a row by their positions; stock ones do so only without a mask,
    which they don't miss: padding, the last of a row, has no labels.
    """

    return_position_ids: bool = True
    return_attention_mask: bool = True

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().torch_call(examples)
        if not self.return_attention_mask:
            batch.pop("attention_mask", None)
        batch["labels"][batch["position_ids"] == 0] = -100  # the sequence before does not predict it
        return batch


@dataclass
class AnswersCollator:
    """Batches of `input_ids` and `labels` for GKDTrainer: the rows padded on the right, their `prompts` on the left.

    A prompt is all that precedes the row's last learned turn, for the student to answer itself.
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
    """Index where the last run of learned tokens begins, in labels (length,)."""
    wanted = labels != -100
    starts = wanted & ~torch.cat([wanted.new_zeros(1), wanted[:-1]])
    return int(starts.nonzero()[-1])
