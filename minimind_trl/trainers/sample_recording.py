"""What trainers write to `samples.jsonl`, from passes that draw no random number and change no weight."""

import json
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from transformers import TrainerCallback

from ..evaluation.answers import render_prompt, short_answers
from ..reports.samples import AT_A_MOMENT, MOST_TOKENS, Sample, SampleFile, rounded, shown_prompt, token_texts

LOOKED_AT = 200  # held-out rows to choose samples from
PROMPTS = 6  # to answer at a moment


class SampleRecording:
    """A mixin that writes samples at a few moments of the training, in the main process.

    Attributes:
        samples: the file, set by a run in the main process; None records nothing.
    """

    samples: SampleFile | None = None

    def record_samples_to(self, file: SampleFile) -> None:
        self.samples = file
        self.add_callback(_BeginSamples(self))

    def wants_samples(self, kind: str, last_step: int | None = None) -> bool:
        """Whether this process is to write samples of a kind now.

        Args:
            last_step: the last step at which there can be any; by default that of the training.
        """
        if self.samples is None:
            return False
        return self.samples.is_due(kind, self.state.global_step, last_step or self.state.max_steps)

    def add_samples(self, kind: str, samples: Iterable[Sample]) -> None:
        self.wait_for_push()
        self.samples.add(kind, self.state.global_step, samples)

    def finish_samples(self) -> None:
        """Training ends."""

    def whole_model(self) -> torch.nn.Module | None:
        """The model, for passes of this process alone; None if others hold a part of it."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return None
        return self.accelerator.unwrap_model(self.model)

    def record_answers(self, rows: Iterable[dict]) -> None:
        """Answer a few held-out prompts greedily."""
        if not self.wants_samples("answer") or (model := self.whole_model()) is None:
            return
        tokenizer = self.processing_class
        asked = []
        for row in varied(islice(rows, LOOKED_AT)):
            prompt, right = prompt_and_answer(row)
            text = render_prompt(tokenizer, prompt, row.get("tools")) if prompt else ""
            if text and len(tokenizer(text, add_special_tokens=False).input_ids) <= MOST_TOKENS:
                tools = {"tools": row["tools"]} if row.get("tools") else {}
                asked.append((text, {"prompt": shown_prompt(prompt), **tools, "right": right}))
            if len(asked) == PROMPTS:
                break
        if not asked:
            return
        texts, right = [text for text, _ in asked], [sample["right"] for _, sample in asked]
        answers = short_answers(model, tokenizer, texts, right)
        pairs = zip(asked, answers, strict=True)
        self.add_samples("answer", [sample | {"answer": answer} for (_, sample), answer in pairs])


class _BeginSamples(TrainerCallback):
    def __init__(self, trainer: SampleRecording):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.samples.begin(state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.finish_samples()


class LossSamples:
    """Collects the losses of the first held-out rows; give it to `held_out_figures` as `on_row`."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.samples: list[Sample] = []

    def __call__(self, row: dict, ids: list[int], losses: torch.Tensor) -> None:
        if len(self.samples) < AT_A_MOMENT and not losses[:MOST_TOKENS].isnan().all():
            self.samples.append(
                {"source": row.get("source"), **cut_tokens(self.tokenizer, ids), "losses": cut_values(losses)}
            )


def cut_tokens(tokenizer, ids: list[int]) -> dict[str, Any]:
    """The texts of the first tokens, and how many more there are."""
    return {"tokens": token_texts(tokenizer, ids[:MOST_TOKENS]), "left_out": max(len(ids) - MOST_TOKENS, 0)}


def cut_values(values: torch.Tensor) -> list[float | None]:
    return rounded(values[:MOST_TOKENS].tolist())


def varied(rows: Iterable[dict]) -> list[dict]:
    """The rows, so that the first ones are of as many sources and skills as possible."""
    counts: Counter = Counter()
    ranked = []
    for row in rows:
        kind = row.get("source"), row.get("skill")
        ranked.append((counts[kind], row))
        counts[kind] += 1
    return [row for _, row in sorted(ranked, key=lambda entry: entry[0])]


def prompt_key(row: dict) -> str:
    """The same for rows with equal prompts."""
    return json.dumps(row["prompt"], sort_keys=True, default=str)


def right_answer(row: dict) -> str | None:
    """The right answer of a prompt for RL, if the row has one as text."""
    return row["answer"] if isinstance(row.get("answer"), str) else None


def prompt_and_answer(row: dict) -> tuple[list[dict] | None, str | None]:
    """A row's prompt, and the right answer if the row has one as text; None for a row without a prompt."""
    if "messages" in row:
        *prompt, last = row["messages"]
        if not prompt or last["role"] != "assistant":
            return None, None
        return prompt, last.get("content")
    if "chosen" in row:
        return row["prompt"], row["chosen"][-1].get("content")
    return None, None
