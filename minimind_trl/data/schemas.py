"""Row schemas that MiniMind users have, each turned into the columns that TRL's trainers take.

A converter takes a row and returns a row, or raises `RowError` with the reason why it cannot; rows are dropped under
that reason, and counted.
"""

import json
from collections.abc import Callable
from typing import Any

from ..tokenization.control_tokens import ROLES

Row = dict[str, Any]


class RowError(ValueError):
    """Why a row cannot be used, in a few words that serve as the reason it is counted under."""


def text_row(row: Row) -> Row:
    """Plain text: `{"text"}`."""
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise RowError("empty text")
    return {"text": text}


def messages_row(row: Row) -> Row:
    """Chat messages: `{"messages", "tools"?}`; the tools a list, or JSON of one."""
    return _chat(row.get("messages"), row.get("tools"))


def minimind_row(row: Row) -> Row:
    """Upstream's SFT rows: `{"conversations"}`; tools (on the system turn) and tool calls are JSON strings there."""
    turns = row.get("conversations")
    with_tools = (turn for turn in turns or [] if isinstance(turn, dict) and turn.get("tools"))
    return _chat(turns, next(with_tools, {}).get("tools"))


def alpaca_row(row: Row) -> Row:
    """Alpaca: `{"instruction", "input"?, "output"}`; the input follows the instruction after a blank line."""
    parts = [row.get("instruction"), row.get("input") or ""]
    if not all(isinstance(part, str) for part in parts):
        raise RowError("instruction or input is not text")
    prompt = "\n\n".join(part for part in parts if part)
    return _chat([{"role": "user", "content": prompt}, {"role": "assistant", "content": row.get("output")}], None)


def _chat(turns: list[Row] | None, tools: str | list | None) -> Row:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowError("messages are not a list of objects" if turns else "no messages")
    if not turns:
        raise RowError("no messages")
    messages = [_message(turn) for turn in turns]
    if messages[-1]["role"] != "assistant":
        raise RowError("last message is not the assistant's")
    # Every row has the column, and as JSON: Arrow would give all tools of a data set the union of their keys.
    return {"messages": messages, "tools": _as_json(_parsed(tools, "tools")) if tools else None}


def _message(turn: Row) -> Row:
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise RowError(f"unknown role {role!r}")
    message: Row = {"role": role, "content": content}
    if isinstance(turn.get("reasoning_content"), str):
        message["reasoning_content"] = turn["reasoning_content"]
    if turn.get("tool_calls"):
        message["tool_calls"] = [_tool_call(call) for call in _parsed(turn["tool_calls"], "tool_calls")]
    elif not isinstance(content, str) or not content.strip():
        raise RowError(f"empty {role} message")
    return message


def _tool_call(call: Row) -> Row:
    """`{"name", "arguments"}` with the arguments as JSON, which every template prints as it stands."""
    call = call.get("function") or call if isinstance(call, dict) else {}
    if not isinstance(call.get("name"), str):
        raise RowError("a tool call without a name")
    arguments = call.get("arguments", {})
    return {"name": call["name"], "arguments": arguments if isinstance(arguments, str) else _as_json(arguments)}


def _parsed(value: str | list, what: str) -> list:
    """A list, or the list that a JSON string holds: upstream's data stores tools and tool calls as strings."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        raise RowError(f"{what} is not JSON") from None
    if not isinstance(value, list):
        raise RowError(f"{what} is not a list")
    return value


def _as_json(value) -> str:
    return json.dumps(value, ensure_ascii=False)  # as the templates' own `tojson` writes it


# Checked in this order: a row with both `text` and `messages` is a conversation.
CONVERTERS: dict[str, tuple[str, Callable[[Row], Row]]] = {
    "messages": ("messages", messages_row),
    "conversations": ("messages", minimind_row),
    "instruction": ("messages", alpaca_row),
    "text": ("text", text_row),
}


def converter_for(columns: list[str], wanted: str) -> Callable[[Row], Row] | None:
    """The converter from rows with `columns` to rows with the column `wanted` ("text" or "messages"), if any."""
    for column, (gives, converter) in CONVERTERS.items():
        if column in columns and gives == wanted:
            return converter
    return None
