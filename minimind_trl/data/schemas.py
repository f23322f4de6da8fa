"""Row schemas that MiniMind users have, each turned into the columns that TRL's trainers take.

A converter takes a row and returns a row, or raises `RowError` with the reason why it cannot; rows are dropped under
that reason, and counted.
"""

import json
from collections.abc import Callable
from typing import Any

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
    """Chat messages: `{"messages", "tools"?}`."""
    return _chat(row.get("messages"), row.get("tools"))


def minimind_row(row: Row) -> Row:
    """Upstream's SFT rows: `{"conversations"}`; tools (on the system turn) and tool calls are JSON strings there."""
    turns = row.get("conversations")
    tools = next((turn.get("tools") for turn in turns or [] if turn.get("tools")), None)
    return _chat(turns, tools)


def alpaca_row(row: Row) -> Row:
    """Alpaca: `{"instruction", "input"?, "output"}`; the input follows the instruction after a blank line."""
    prompt = "\n\n".join(part for part in (row.get("instruction"), row.get("input")) if part)
    return _chat([{"role": "user", "content": prompt}, {"role": "assistant", "content": row.get("output")}], None)


def _chat(turns: list[Row] | None, tools: str | list | None) -> Row:
    if not turns:
        raise RowError("no messages")
    messages = [_message(turn) for turn in turns]
    if messages[-1]["role"] != "assistant":
        raise RowError("last message is not the assistant's")
    converted: Row = {"messages": messages}
    if tools:
        converted["tools"] = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
    return converted


def _message(turn: Row) -> Row:
    role, content = turn.get("role"), turn.get("content")
    if role not in ("system", "user", "assistant", "tool"):
        raise RowError(f"unknown role {role!r}")
    message: Row = {"role": role, "content": content}
    if turn.get("reasoning_content"):
        message["reasoning_content"] = turn["reasoning_content"]
    if turn.get("tool_calls"):
        calls = turn["tool_calls"]
        try:
            message["tool_calls"] = json.loads(calls) if isinstance(calls, str) else calls
        except json.JSONDecodeError:
            raise RowError("tool_calls is not JSON") from None
    elif not isinstance(content, str) or not content.strip():
        raise RowError(f"empty {role} message")
    return message


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
