"""The flight check of online methods: do the rewards of the policy's present answers differ?"""

import json
import math
import time
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from datasets import DatasetDict, IterableDataset
from rich.console import Console

from ..data import DatasetMixer
from ..errors import InputError, raise_all
from ..tokenization import compare_prompts
from .flight_check import (
    SAMPLE,
    checked,
    checkpointing_problems,
    overlap_problems,
    plan_console,
    print_model,
    resume_problems,
    tokenizer_problems,
)
from .run_context import RunContext

if TYPE_CHECKING:
    from ..trainers import RolloutTrainer

_TRIALS = 4  # batches to answer before training
_EXAMPLES = 2
STREAM_HEAD = 1000  # rows of a stream to examine before training
_SHOWN = 80  # characters of a value in a message


def rl_flight_check(trainer: "RolloutTrainer", run: RunContext) -> dict[str, Any]:
    """Refuse a run that could not learn; print mixture, two prompts with answers and rewards, plan, memory and time.

    Equal rewards in the trial that may still differ later are a warning.

    Returns:
        as `flight_check`.

    Raises:
        InputError: one line for each reason.
    """
    boundary = compare_prompts(islice(run.data["train"], SAMPLE), trainer.processing_class)
    unscored, unscored_warnings = unscored_prompts(trainer, run.data)
    raise_all(
        [
            *tokenizer_problems(trainer, run),
            *checkpointing_problems(trainer),
            *boundary.problems(),
            *overlap_problems(run.data),
            *resume_problems(trainer, run),
            *unscored,
        ]
    )
    started = time.perf_counter()
    answers = _trial(trainer, run.data)
    seconds = (time.perf_counter() - started) / len(answers)
    values = _rewards(answers)
    trainer.expect_rewards(torch.tensor(values or [math.nan] * len(answers)))
    problem, warning = reward_problem(trainer.declared_range(), answers)
    if problem and not trainer.args.allow_equal_rewards:
        raise InputError(f"{problem}. --allow_equal_rewards true goes on anyway")
    if not trainer.is_world_process_zero():
        return {}
    console = plan_console()
    _print_plan(console, trainer, run.mixer, answers, seconds)
    return checked(console, [*unscored_warnings, *filter(None, (problem, warning)), *boundary.warnings()])


def unscored_prompts(trainer: "RolloutTrainer", data: DatasetDict) -> tuple[list[str], list[str]]:
    """Find prompts whose answers a reward cannot score, for example because the reference answer is not mathematics.

    Returns:
        Reasons not to start, if a reward can score none of the training prompts; and warnings.
    """
    problems, warnings = [], []
    for reward in trainer.reward_funcs:
        if getattr(reward, "can_score", None) is None:
            continue
        for split, rows in data.items():
            is_stream = isinstance(rows, IterableDataset)
            looked_at = list(islice(rows, STREAM_HEAD)) if is_stream else rows.select_columns(reward.columns())
            unscored = reward.unscored(looked_at)
            if not unscored:
                continue
            about = ", ".join(f"{column} {_short(unscored[0][column])}" for column in reward.columns())
            all_of_them = f"the {'first ' * is_stream}{len(looked_at):,} {split} prompts, such as one with {about}"
            if len(unscored) == len(looked_at) and split == "train":
                problems.append(f"reward {reward.__name__} can score none of {all_of_them}")
            else:
                warnings.append(
                    f"reward {reward.__name__} cannot score {len(unscored):,} of {all_of_them}: their answers "
                    "get no reward from it"
                )
    return problems, warnings


def reward_problem(reward_range: tuple[float, float], answers: list[dict]) -> tuple[str | None, str | None]:
    """What equal rewards of all trial answers mean: a reason not to start or None, and a warning or None.

    A reward is a constant if its declared range says so, or if it has no range and equals a value above 0. Otherwise
    good answers may be rare: without a success in n answers, the success rate is below `1 - 0.05^(1/n)` with 95%
    confidence.

    Args:
        reward_range: the declared lowest and highest reward; infinite if undeclared.
        answers: with `completion` and `reward`, which may be None.
    """
    low, high = reward_range
    if low == high:
        return f"the reward can only be {low:g}: nothing to learn from; take another reward, or another weight", None
    values = _rewards(answers)
    if not values or max(values) - min(values) >= 1e-9:
        return None, None
    value, count = values[0], len(values)
    at_lowest = value <= low + 1e-6
    if not (at_lowest or math.isfinite(high - low)) and value > 0:
        return (
            f"the reward is {value:g} for all of {count} answers to training prompts: nothing to learn from. The first "
            f"answer is {answers[0]['completion']!r}. Give a reward that differs, and declare its range by the "
            "function's attributes low and high"
        ), None
    if value >= high - 1e-6:
        return None, f"all of {count} trial answers got the highest reward, {value:g}: these prompts teach nothing more"
    seen = 1 - 0.05 ** (1 / count)
    return None, (
        f"all of {count} trial answers got the {'lowest' if at_lowest else 'same'} reward, {value:g}. So many answers "
        f"show a success rate of about {seen:.0%} or more; below that learning begins with the first success. Sooner: "
        "a checkpoint that is sometimes right, easier prompts, a graded reward"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _trial(trainer: "RolloutTrainer", data: DatasetDict) -> list[dict[str, Any]]:
    """Answers of the policy to the first prompts, at training's temperature, until two rewards differ."""
    size = trainer.args.per_device_eval_batch_size * trainer.accelerator.num_processes
    answers: list[dict[str, Any]] = []
    prompts = iter(data["train"])
    for _ in range(_TRIALS):
        rows = list(islice(prompts, size))
        if not rows:
            break
        answers += trainer.answer(rows)
        if len(set(_rewards(answers))) > 1:
            break
    return answers


def _rewards(answers: list[dict[str, Any]]) -> list[float]:
    """The rewards of the answers that have one."""
    return [answer["reward"] for answer in answers if answer["reward"] is not None]


def _print_plan(
    console: Console, trainer: "RolloutTrainer", mixer: DatasetMixer, answers: list[dict], seconds: float
) -> None:
    config = trainer.args
    if mixer.report:
        console.print(mixer.report.table())
    for number, answer in enumerate(answers[:_EXAMPLES], start=1):
        console.rule(f"train prompt {number}, and an answer of the policy as it is")
        said = [_last(answer["prompt"]), answer["completion"]]
        console.print(*(json.dumps(text, ensure_ascii=False) for text in said), sep="\n", markup=False)
        console.print("no reward" if answer["reward"] is None else f"reward {answer['reward']:.3f}")
    print_model(console, trainer)
    if config.thinking_ratio:
        console.print(f"prompts: about {config.thinking_ratio:.0%} of them end in an open think block")
    if trainer.tools:
        console.print(f"tools: {', '.join(dict.fromkeys(tool.__name__ for tool in trainer.tools))}")
    values = _rewards(answers)
    prompts = config.generation_batch_size // config.num_generations
    updates = config.steps_per_generation * config.num_iterations // config.gradient_accumulation_steps
    console.print(
        f"plan: a rollout answers {prompts} prompts with {config.num_generations} completion(s) each of at most "
        f"{config.max_completion_length} tokens, in {config.world_size} process(es); then {updates or 1} step(s)"
    )
    if values:
        console.print(
            f"rewards: mean {sum(values) / len(values):.3f} of {len(values)} trial answers, from {min(values):.3f} to "
            f"{max(values):.3f}"
        )
    console.print(f"time: about {seconds * config.generation_batch_size:.1f} s a rollout here; the steps come on top")


def _last(prompt: str | list[dict]) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]
