"""What the Hub reads from a card: data sets, and figures in the model-index form."""

import math
import re
from typing import Any

from huggingface_hub import EvalResult

from ..evaluation.measures import by_importance


def hub_datasets(lock: dict[str, Any]) -> list[str]:
    """Hub ids of a mixture's sources, from its lock; local files have none."""
    return sorted({source["source"] for source in lock["sources"] if _is_on_hub(source)})


def _is_on_hub(source: dict[str, Any]) -> bool:
    """Whether the files are recorded by the revision of a repository, instead of the digest of their content."""
    return any(re.fullmatch(r"[0-9a-f]{40}", file["digest"]) for file in source["files"])


def eval_results(metrics: dict[str, Any], lock: dict[str, Any], task: str) -> list[EvalResult]:
    """The held-out figures after training, one entry each; empty if they were not measured.

    Args:
        metrics: the content of `metrics.json`.
        lock: of the mixture whose rows were held out.
        task: the card's pipeline tag.
    """
    found = hub_datasets(lock)
    name = f"held-out rows of {lock['phase']}/{lock['config']}"
    return [
        EvalResult(
            task_type=task,
            dataset_type=found[0] if len(found) == 1 else "mixture",
            dataset_name=name,
            dataset_split="validation",
            metric_type=figure,
            metric_name=figure,
            metric_value=value,
        )
        for figure, value in by_importance(metrics.get("after", {})).items()
        if math.isfinite(value)
    ]
