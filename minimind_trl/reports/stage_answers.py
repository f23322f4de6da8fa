"""Held-out prompts with the answers of one run after the other."""

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..evaluation.answers import render_prompt, short_answers, without_reasoning
from .run_folder import RunFolder

_PROMPTS = 8


def stage_answers(runs: Sequence[RunFolder], ask: bool) -> list[dict[str, Any]]:
    """A few of the runs' held-out prompts: `prompt`, `right` (or None) and `answers`, in the order of the runs.

    An answer has `run` (its place), `step`, `answer`, `reward` (or None) and `exact`: whether it equals the right one
    except for white space and a think block, None without a right one.

    Args:
        ask: let the runs' models answer the prompts that others recorded.
    """
    chosen = _prompts(runs)
    for place, run in enumerate(runs):
        for sample in run.samples:
            if sample["kind"] == "answer" and (prompt := chosen.get(_key(sample))):
                prompt["answers"].append(_answer(place, sample["step"], sample["answer"], prompt, sample.get("reward")))
        missing = [prompt for prompt in chosen.values() if not any(a["run"] == place for a in prompt["answers"])]
        if ask and missing and run.method != "reward":
            for prompt, answer in zip(missing, _ask(run.folder, missing), strict=False):
                prompt["answers"].append(_answer(place, run.last_step, answer, prompt))
    return list(chosen.values())


def _prompts(runs: Sequence[RunFolder]) -> dict[str, dict[str, Any]]:
    """Prompts by their key, taken from the runs in turn, the last run first."""
    of_runs = []
    for run in reversed(runs):
        own = {_key(sample): sample for sample in run.samples if sample["kind"] == "answer"}
        of_runs.append(list(own.items()))
    chosen: dict[str, dict[str, Any]] = {}
    for key, sample in (entry for turn in zip_longest(*of_runs) for entry in turn if entry is not None):
        if len(chosen) < _PROMPTS or key in chosen:
            kept = {"prompt": sample["prompt"], "right": sample.get("right"), "tools": sample.get("tools")}
            chosen.setdefault(key, {**kept, "answers": []})
    return chosen


def _key(sample: dict[str, Any]) -> str:
    return json.dumps([sample["prompt"], sample.get("tools")], sort_keys=True)


def _answer(place: int, step: int, answer: str, prompt: dict[str, Any], reward: float | None = None) -> dict[str, Any]:
    right = prompt["right"]
    exact = None if right is None else _words(answer) == _words(right)
    return {"run": place, "step": step, "answer": answer, "reward": reward, "exact": exact}


def _words(text: str) -> list[str]:
    return without_reasoning(text).split()


def _ask(folder: Path, prompts: list[dict[str, Any]]) -> list[str]:
    """Greedy answers of a run's model; [] if its folder holds none, as that of an unfinished run."""
    from ..models.checkpoints import load_model, load_tokenizer_of

    if not any((folder / name).is_file() for name in ("model.safetensors", "adapter_model.safetensors")):
        return []
    model, tokenizer = load_model(folder).eval(), load_tokenizer_of(str(folder))
    texts = [
        asked if isinstance(asked := prompt["prompt"], str) else render_prompt(tokenizer, asked, prompt["tools"])
        for prompt in prompts
    ]
    return short_answers(model, tokenizer, texts, [prompt["right"] for prompt in prompts])
