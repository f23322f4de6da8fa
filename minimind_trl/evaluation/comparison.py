"""Compare a checkpoint, a baseline and guessing on the held-out rows of one phase."""

import math
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.schemas import PHASES
from ..errors import InputError
from .answers import answer_measures, guessing_measures
from .held_out import held_out_figures
from .measures import Measure
from .pairs import pair_log_probs, preference_measures, reward_measures

Measures = dict[str, Measure]


@dataclass
class LoadedCheckpoint:
    """A loaded checkpoint that is to be measured."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@dataclass
class EvaluationOptions:
    """Options of the measures; the defaults are those of `minimind-trl eval` for a checkpoint that records none."""

    max_length: int = 1024
    batch_size: int = 16
    eval_batches: int = 100
    bf16: bool = False
    assistant_only_loss: bool = True
    beta: float = 0.1
    chunk: bool = False
    max_new_tokens: int = 64

    @property
    def passes(self) -> dict[str, int | bool]:
        """Options of the forward passes."""
        return {"max_length": self.max_length, "batch_size": self.batch_size, "bf16": self.bf16}


def compare(
    checkpoints: dict[str, LoadedCheckpoint],
    phase: str,
    rows: list[dict],
    prompts: list[dict],
    options: EvaluationOptions,
) -> dict[str, Measures]:
    """Measure every checkpoint on the same rows.

    Args:
        checkpoints: "model" and optionally "baseline", which is the reference in phase dpo.
        phase: phase of the rows' mixture.
        rows: converted rows of the phase, at least one.
        prompts: rows to answer greedily; if empty, nothing is generated.

    Returns:
        measures of each checkpoint, and of "chance" for measures whose value under guessing is known.

    Raises:
        InputError: no row fits into `max_length`, or the two tokenizers drop different pairs.
    """
    if phase == "dpo":
        figures = _preferences(checkpoints, rows, options)
    elif phase == "reward":
        figures = {
            name: reward_measures(c.model, c.tokenizer, rows, **options.passes) for name, c in checkpoints.items()
        }
        figures["chance"] = _coin(figures["model"])
    elif phase == "rlaif":
        figures = {name: {} for name in (*checkpoints, "chance")}
    else:
        figures = _losses(checkpoints, phase, rows, options)
    if prompts:
        for name, checkpoint in checkpoints.items():
            figures[name] |= answer_measures(checkpoint.model, checkpoint.tokenizer, prompts, options.max_new_tokens)
        figures["chance"] |= guessing_measures(prompts)
    return figures


def _losses(
    checkpoints: dict[str, LoadedCheckpoint], phase: str, rows: list[dict], options: EvaluationOptions
) -> dict[str, Measures]:
    figures = {}
    for name, checkpoint in checkpoints.items():
        found = held_out_figures(
            checkpoint.model,
            checkpoint.tokenizer,
            rows,
            assistant_only=PHASES[phase][0] == "messages" and options.assistant_only_loss,
            max_batches=options.eval_batches,
            chunk=options.chunk,
            **options.passes,
        )
        figures[name] = {figure: Measure(value) for figure, value in found.items()}
    size = checkpoints["model"].model.config.vocab_size
    chance = {name: math.log(size) for name in figures["model"] if name.startswith("eval_loss")}
    chance |= {"eval_perplexity": size, "eval_token_accuracy": 1 / size}
    return figures | {"chance": {name: Measure(value) for name, value in chance.items()}}


def _preferences(
    checkpoints: dict[str, LoadedCheckpoint], rows: list[dict], options: EvaluationOptions
) -> dict[str, Measures]:
    log_probs = {name: pair_log_probs(c.model, c.tokenizer, rows, **options.passes) for name, c in checkpoints.items()}
    reference = log_probs.get("baseline")
    if reference is not None and len(reference) != len(log_probs["model"]):
        raise InputError("the two tokenizers drop different pairs: increase --max_length")
    figures = {"model": preference_measures(log_probs["model"], reference, options.beta)}
    if reference is not None:
        figures["baseline"] = preference_measures(reference)
    return figures | {"chance": _coin(figures["model"])}


def _coin(measures: Measures) -> Measures:
    """Measures of a coin flip, which has a margin of 0."""
    known = {"accurac": 0.5, "margin": 0.0, "loss": math.log(2)}
    return {name: Measure(value) for name in measures for kind, value in known.items() if kind in name}
