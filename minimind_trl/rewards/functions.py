"""The named reward functions. Keyword-only arguments are parameters of a reward; the others are columns of the data."""

import json
import re
from collections.abc import Iterator
from typing import Any

from trl.rewards import think_format_reward

from .. import patterns
from ..errors import InputError
from ..evaluation.answers import position_score, share_contained, without_reasoning
from ..tokenization import INVALID_CALL, decode_tools
from .reward import answer_of, text_of, turns_of

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_WORDS = re.compile(r"\w+|[^\w\s]")


def exact_match(completions: list, answer: list[str], **_) -> list[float]:
    """1 if the answer equals the right one except for white space, else 0."""
    return [
        float(answer_of(given).split() == str(right).split()) for given, right in zip(completions, answer, strict=True)
    ]


def position_match(completions: list, answer: list[str], **_) -> list[float]:
    """The share of words that match the right answer at their position: a graded `exact_match`."""
    return [position_score(answer_of(given), str(right)) for given, right in zip(completions, answer, strict=True)]


def math_accuracy(
    completions: list, answer: list, prompts: list | None = None, rendered_prompts: list | None = None, **_
) -> list[float | None]:
    """1 if `math_verify` finds the answer equal to the right one, else 0; None if the right one is not mathematics.

    In both texts, a `\\boxed{}` counts first, then what follows GSM8K's `####`, then what follows "The answer is" or
    its Chinese equivalent, then the last formula, with or without dollars. Units are ignored. Lists are unordered,
    pairs such as (0, 5) are ordered. A completion whose reasoning does not end scores 0.
    """
    mathematics = _mathematics()

    def score(turn: str, right: Any) -> float | None:
        gold = mathematics.read_gold(str(right))
        if not gold:
            return None
        is_finished = turn.rfind("<think>") <= turn.rfind("</think>")
        return float(is_finished and mathematics.agree(gold, mathematics.read_answer(without_reasoning(turn))))

    turns = turns_of(completions, rendered_prompts or prompts)
    return [score(turn, right) for turn, right in zip(turns, answer, strict=True)]


def _answer_is_mathematics(row: dict) -> bool:
    return bool(_mathematics().read_gold(str(row["answer"])))


math_accuracy.can_score = _answer_is_mathematics


def _mathematics():
    try:
        from . import mathematics
    except ImportError as error:
        raise InputError("reward math_accuracy needs math-verify: pip install 'minimind-trl[rl]'") from error
    return mathematics


def regex(
    completions: list, prompts: list | None = None, rendered_prompts: list | None = None, *, pattern: str, **_
) -> list[float]:
    """1 if `pattern` (of Python's `re`; `.` matches line ends) matches the whole completion, else 0.

    If the chat template opens a think block in the prompt, the pattern may match with or without it.
    """
    try:
        form = patterns.compile_pattern(pattern, re.DOTALL)
    except ValueError as error:
        raise InputError(f"reward regex: {pattern!r} is {error}") from error

    def matches(text: str) -> bool:
        try:
            return form.fullmatch(text, timeout=patterns.SECONDS) is not None
        except TimeoutError:
            raise InputError(
                f"reward regex: {pattern!r} takes longer than {patterns.SECONDS:g} s on a completion of {len(text):,} "
                "characters: it backtracks; do not repeat a group that matches in several ways, such as (a|aa)+"
            ) from None

    either = zip(completions, turns_of(completions, rendered_prompts or prompts), strict=True)
    return [float(any(matches(text.strip()) for text in (text_of(given), turn))) for given, turn in either]


def think_format(
    completions: list, prompts: list | None = None, rendered_prompts: list | None = None, **_
) -> list[float]:
    """1 if the turn is `<think>`, reasoning, `</think>`, an answer; else 0. TRL's `think_format_reward`.

    `<think>` may be in the prompt, if the chat template opens the block there.
    """
    turns = turns_of(completions, rendered_prompts or prompts)
    return think_format_reward([[{"role": "assistant", "content": turn}] for turn in turns])


def tag_count(
    completions: list,
    prompts: list | None = None,
    rendered_prompts: list | None = None,
    *,
    tags: str = "<think> </think> <answer> </answer>",
    **_,
) -> list[float]:
    """The share of `tags` (separated by spaces) that occur exactly once. MiniMind2's `mark_num` (train_grpo.py).

    `<think>` may be in the prompt, if the chat template opens the block there.
    """
    wanted = tags.split()
    turns = turns_of(completions, rendered_prompts or prompts)
    return [sum(turn.count(tag) == 1 for tag in wanted) / len(wanted) for turn in turns]


def length(
    completions: list,
    completion_ids: list[list[int]],
    *,
    low: int = 1,
    high: int = 1_000_000,
    unit: str = "tokens",
    inside: float = 1.0,
    outside: float = 0.0,
    **_,
) -> list[float]:
    """`inside` if the completion has `low` to `high` tokens (or characters, with `unit=characters`), else `outside`."""
    if unit not in ("tokens", "characters"):
        raise InputError(f"reward length: unit {unit!r} is neither tokens nor characters")
    if unit == "tokens":
        lengths = [len(ids) for ids in completion_ids]
    else:
        lengths = [len(text_of(given).strip()) for given in completions]
    return [inside if low <= count <= high else outside for count in lengths]


def repetition_penalty(completions: list, *, ngram: int = 3, cap: float = 0.5, **_) -> list[float]:
    """-min(cap, 2 cap s), where s is the share of repeated word n-grams in the answer.

    MiniMind-3's `rep_penalty` (train_grpo.py). TRL's `get_repetition_penalty_reward` splits words at spaces instead.
    """

    def penalty(text: str) -> float:
        words = _WORDS.findall(text.lower())
        grams = [tuple(words[at : at + ngram]) for at in range(len(words) - ngram + 1)]
        return -min(cap, 2 * cap * (1 - len(set(grams)) / len(grams))) if grams else 0.0

    return [penalty(answer_of(given).strip()) for given in completions]


def thinking(completions: list, *, low: int = 20, high: int = 300, **_) -> list[float]:
    """MiniMind-3's reward for reasoning (train_grpo.py); `<think>` may be in the prompt.

    0 without `</think>`. Otherwise 1 if the reasoning has `low` to `high` characters, else -0.5; plus 0.25 if there is
    exactly one `</think>`, minus 0.25 if there are several.
    """

    def score(text: str) -> float:
        reasoning, end, _ = text.partition("</think>")
        if not end:
            return 0.0
        reasoning = reasoning.replace("<think>", "", 1).strip()
        return (1.0 if low <= len(reasoning) <= high else -0.5) + (0.25 if text.count(end) == 1 else -0.25)

    return [score(text_of(given)) for given in completions]


def tool_calls(completions: list, gt: list, **columns) -> list[float]:
    """The share of the strings `gt` that the last message contains outside of its tool calls.

    Numbers are compared as numbers. 0 if a call (`<tool_call>{"name", "arguments"}</tool_call>`, or a message's
    `tool_calls`) is not JSON, has no name, or is for a tool that is not in the row's `tools`.
    """
    tools = columns.get("tools") or [None] * len(completions)
    return [
        share_contained(_CALL.sub("", answer_of(given)), right) if _calls_are_valid(given, known) else 0.0
        for given, right, known in zip(completions, gt, tools, strict=True)
    ]


def reasoning_gym(completions: list, answer: list, metadata: list, **_) -> list[float]:
    """The score, from 0 to 1, of `reasoning_gym`'s scorer for the task; `metadata` is that of the row, or its JSON."""
    try:
        from reasoning_gym import get_score_answer_fn
    except ImportError as error:
        raise InputError("reward reasoning_gym needs its package: pip install reasoning-gym") from error

    def score(given: str, right: str, about: dict | str) -> float:
        about = json.loads(about) if isinstance(about, str) else about
        if not isinstance(about, dict) or "source_dataset" not in about:
            raise InputError(f"reward reasoning_gym: the column metadata has no source_dataset: {about!r}")
        entry = {"answer": right, "metadata": about}
        return float(get_score_answer_fn(about["source_dataset"])(answer=given.strip(), entry=entry))

    return [score(answer_of(given), *rest) for given, *rest in zip(completions, answer, metadata, strict=True)]


def _calls_are_valid(completion: str | list[dict], tools: str | list | None) -> bool:
    known = {tool.get("function", tool).get("name") for tool in decode_tools(tools) or []}
    return all(name and (not known or name in known) for name in _called_names(completion))


def _called_names(completion: str | list[dict]) -> Iterator[str | None]:
    """Names of the called functions; None for a call that is unreadable."""
    messages = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    for message in messages:
        for call in message.get("tool_calls") or []:
            name = call.get("function", call).get("name")
            yield None if name == INVALID_CALL else name
        for text in _CALL.findall(message.get("content") or ""):
            try:
                call = json.loads(text)
                yield call["name"] if isinstance(call["arguments"], (dict, str)) else None
            except (ValueError, KeyError, TypeError):
                yield None
