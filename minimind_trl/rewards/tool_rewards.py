"""Graded rewards for answers that call tools: a nearly right call or copy is worth more than none."""

import json
from itertools import zip_longest
from typing import Any

from .reward import answer_of


def call_match(completions: list, expected_calls: list[str | list[dict]], **_) -> list[float]:
    """How far the calls of an answer are the right ones, in their order.

    A call with the right tool and names of arguments scores 0.5, and up to 0.5 more for its values: the share of their
    characters that are right at their place. The mean over the right calls, or over those made if they are more. Of a
    row without calls, 1 if none is made.

    Args:
        expected_calls: of each row `[{"name": ..., "arguments": {...}}, ...]`, or its JSON.
    """
    return [
        _mean_of_calls(_calls_of(given), json.loads(right) if isinstance(right, str) else right or [])
        for given, right in zip(completions, expected_calls, strict=True)
    ]


def result_match(completions: list, **_) -> list[float]:
    """The share of characters in which an answer equals the last result of a tool; 0 if no tool was called."""
    return [_copied(given) for given in completions]


def _calls_of(completion: str | list[dict]) -> list[dict]:
    messages = completion if isinstance(completion, list) else []
    return [call.get("function", call) for message in messages for call in message.get("tool_calls") or []]


def _mean_of_calls(made: list[dict], right: list[dict]) -> float:
    if not made and not right:
        return 1.0
    pairs = zip_longest(made, right)
    return sum(_call_score(*pair) for pair in pairs) / max(len(made), len(right))


def _call_score(made: dict | None, right: dict | None) -> float:
    if made is None or right is None or made.get("name") != right["name"]:
        return 0.0
    given, wanted = made.get("arguments"), right["arguments"]
    if not isinstance(given, dict) or given.keys() != wanted.keys():
        return 0.0
    return 0.5 + 0.5 * sum(_similarity(given[name], wanted[name]) for name in wanted) / max(len(wanted), 1)


def _copied(completion: str | list[dict]) -> float:
    if isinstance(completion, str):
        return 0.0
    results = [message["content"] for message in completion if message["role"] == "tool"]
    is_answered = results and completion[-1]["role"] == "assistant" and not completion[-1].get("tool_calls")
    return _similarity(answer_of(completion).strip(), results[-1].strip()) if is_answered else 0.0


def _similarity(given: Any, wanted: Any) -> float:
    """The share of characters that are right at their place, relative to the longer text."""
    given, wanted = str(given), str(wanted)
    longest = max(len(given), len(wanted))
    return sum(a == b for a, b in zip(given, wanted, strict=False)) / longest if longest else 1.0
