"""Tool calls in an answer: those that can be read, and what is wrong with the others."""

import json
import re
from collections.abc import Iterator
from typing import Any

INVALID_CALL = "invalid_call"
"""As the name of a call: the model wrote one that cannot be read. Its arguments are `problem`, and the `text`."""

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_CLOSED = "</tool_call>"
_FORM = '{"name": ..., "arguments": {...}}'


def with_calls(message: dict[str, Any], text: str, is_thinking: bool, is_finished: bool) -> dict[str, Any]:
    """The message of an answer with every tool call in it; those that cannot be read have the name `INVALID_CALL`.

    `tokenizer.parse_response` raises an error if one call of several is no JSON, and TRL takes such an answer for text.

    Args:
        message: as `parse_response` read it, or with the whole answer as its content.
        text: the answer with its control tokens.
        is_thinking: whether the prompt ends in an open think block.
        is_finished: whether the model ended its turn; a call that is cut off is left as text.

    Returns:
        The message, whose calls have a `name` and `arguments` that are a mapping.
    """
    if calls := message.get("tool_calls"):
        return message | {"tool_calls": [_checked(call.get("function", call), json.dumps(call)) for call in calls]}
    said = _after_reasoning(text, is_thinking)
    calls = list(_read(said, is_finished))
    if not calls:
        return message
    content = _CALL.sub("", _after_reasoning(message.get("content") or "", is_thinking))
    return message | {"content": content.strip(), "tool_calls": calls}


def _after_reasoning(text: str, is_thinking: bool) -> str:
    _, end, rest = text.rpartition("</think>")
    is_open = not end and (is_thinking or "<think>" in text.partition("<tool_call>")[0])
    return "" if is_open else rest


def _read(text: str, is_finished: bool) -> Iterator[dict[str, Any]]:
    for found in _CALL.finditer(text):
        if not found[0].endswith(_CLOSED):
            if is_finished:
                yield _invalid(found[1], f"{_CLOSED} is missing")
            continue
        try:
            call = json.loads(found[1])
        except (ValueError, RecursionError) as error:
            where = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
            what = error.msg if isinstance(error, json.JSONDecodeError) else "too deep or too large"
            yield _invalid(found[1], f"the call is not JSON: {what}{where}")
            continue
        yield _checked(call, found[1])


def _checked(call: Any, text: str) -> dict[str, Any]:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return _invalid(text, f"a call is {_FORM}")
    arguments = call.get("arguments")
    if isinstance(arguments, str):  # as OpenAI's API has them
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return _invalid(text, "the arguments are not JSON")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return _invalid(text, "the arguments must be a JSON object")
    return {"type": "function", "function": {"name": call["name"], "arguments": arguments}}


def _invalid(text: str, problem: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": INVALID_CALL, "arguments": {"problem": problem, "text": text}}}
