"""Standard benchmarks with EleutherAI's lm-eval, an optional extra."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError, first_line, nearest
from .held_out import device_of
from .measures import Z95, Measure, wilson

# Benchmarks that are reported together, by lm-eval's names.
SUITES = {"minimind": ("ceval-valid", "cmmlu", "arc_easy", "piqa", "openbookqa", "hellaswag", "social_iqa")}
_ACCURACIES = ("acc", "acc_norm")


def harness_measures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    include_path: str | None = None,
    batch_size: int = 16,
    apply_chat_template: bool = False,
    num_fewshot: int | None = None,
    limit: float | None = None,
) -> tuple[dict[str, Measure], dict[str, Measure]]:
    """Run lm-eval's tasks on a loaded model.

    Args:
        tasks: names of tasks or groups.
        include_path: folder with custom task files (YAML).
        apply_chat_template: render questions with the tokenizer's chat template; solved examples become earlier turns.
        num_fewshot: solved examples before each question; None uses the task's default.
        limit: questions per task, or a share of them if below 1; None uses all.

    Returns:
        two dictionaries `{"TASK/METRIC": measure}`. The first is of the model; accuracies have Wilson's interval, other
        metrics that of their standard error. The second is of guessing, for accuracies of multiple-choice tasks.

    Raises:
        InputError: lm-eval is not installed, there is no such task or folder, or a task's data cannot be read.
    """
    check_installed()
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    if include_path and not Path(include_path).is_dir():
        raise InputError(f"--lm_eval_include_path {include_path}: no such folder")
    manager = TaskManager(include_path=include_path)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise InputError(f"--lm_eval: no task {unknown[0]!r}{nearest(unknown[0], manager.all_tasks)}")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about models that are already loaded
    loaded = HFLM(
        pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=batch_size, device=str(device_of(model))
    )
    try:
        found = lm_eval.simple_evaluate(
            model=loaded,
            tasks=list(tasks),
            task_manager=manager,
            bootstrap_iters=1000,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=apply_chat_template,
            num_fewshot=num_fewshot,
            limit=limit,
        )
    except OSError as error:
        raise InputError(f"--lm_eval {','.join(tasks)}: cannot be read: {first_line(error)}") from error
    counts = {task: samples["effective"] for task, samples in found["n-samples"].items()}
    groups = {group: [part for part in parts if part in counts] for group, parts in found["group_subtasks"].items()}
    groups = {group: parts for group, parts in groups.items() if parts}
    counts |= {group: sum(counts[part] for part in parts) for group, parts in groups.items()}
    shown = [task for task in found["results"] if task in tasks or not any(task in parts for parts in groups.values())]
    shown.sort(key=lambda task: tasks.index(task) if task in tasks else len(tasks))
    measures = {
        f"{task}/{metric.removesuffix(',none')}": _measure(value, found["results"][task], metric, counts.get(task))
        for task in shown
        for metric, value in found["results"][task].items()
        if isinstance(value, int | float) and "," in metric and "_stderr" not in metric
    }
    guesses = {
        f"{task}/{metric}": guess
        for task, samples in _with_groups(found["samples"], groups).items()
        if (guess := _guessing(samples))
        for metric in _ACCURACIES
    }
    return measures, {name: guesses[name] for name in measures if name in guesses}


def check_installed() -> None:
    """Check that lm-eval is installed before anything is measured.

    Raises:
        InputError: lm-eval is not installed.
    """
    try:
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"--lm_eval needs lm-eval ({error}): install it with `pip install 'minimind-trl[eval]'`"
        ) from error


def _with_groups(samples: dict[str, list[dict]], groups: dict[str, list[str]]) -> dict[str, list[dict]]:
    """The questions of each task, and of each group those of its parts."""
    return samples | {
        group: [one for part in parts for one in samples.get(part, [])] for group, parts in groups.items()
    }


def _measure(value: float, results: dict, metric: str, count: int | None) -> Measure:
    name, _, filtered = metric.partition(",")
    error = results.get(f"{name}_stderr,{filtered}")
    if name in _ACCURACIES and count:
        return wilson(value, count)
    if not isinstance(error, int | float) or not math.isfinite(error):
        return Measure(float(value), count=count)
    return Measure(float(value), value - Z95 * error, value + Z95 * error, count)


def _guessing(samples: list[dict]) -> Measure | None:
    """Expected accuracy of a random choice; None if a task is not multiple-choice."""
    choices = [len(sample["arguments"]) for sample in samples if "acc" in sample]
    if not choices or min(choices) < 2:
        return None
    return Measure(sum(1 / count for count in choices) / len(choices), count=len(choices))
