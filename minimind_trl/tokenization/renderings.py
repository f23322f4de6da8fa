"""Detects what a chat template leaves out of a conversation.

Templates silently leave out what they do not know: MiniMind2's prints no `reasoning_content`, MiniMind-3's nothing
between two think blocks, others no tools. A model cannot learn what is not printed.
"""

import json
import re

from transformers import PreTrainedTokenizerBase

_KEPT = 4096  # shapes of conversations that are cached


class PrintedFields:
    """Detects which fields of a conversation a tokenizer's chat template leaves out, whatever their values."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self._known: dict[tuple, list[tuple[int, str]]] = {}

    def missing(self, messages: list[dict], tools: list | None = None) -> list[tuple[int, str]]:
        """(turn, field) of every field with a value that is not printed; `tools` with turn 0.

        Args:
            messages: with `role`, `content`, and perhaps `reasoning_content` and `tool_calls` (name, arguments).
            tools: as `apply_chat_template` takes them.
        """
        shape = (tuple(map(_shape, messages)), bool(tools))
        if shape not in self._known:
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[shape] = self._try(*shape)
        return self._known[shape]

    def _try(self, turns: tuple, has_tools: bool) -> list[tuple[int, str]]:
        """Render a conversation of this shape with a mark in each of its fields."""
        marks = _Marks()
        messages = [_marked(marks, number, *turn) for number, turn in enumerate(turns)]
        tools = [_tool(marks.new(0, "tools"))] if has_tools else None
        try:
            rendered = self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        except Exception:  # it refuses the row's own values too, which is reported there
            return []
        return list(dict.fromkeys(place for mark, place in marks.places.items() if mark not in rendered))


def first_unprinted(rendered: str, messages: list[dict]) -> int | None:
    """The first turn whose content is not completely in the rendering (white space aside), or None."""
    at, bare = 0, None
    for turn, message in enumerate(messages):
        content = (message.get("content") or "").strip()
        found = rendered.find(content, at)
        if found >= 0:
            at = found + len(content)
            continue
        bare = _bare(rendered) if bare is None else bare
        if _bare(content) not in bare:
            return turn
    return None


def reasoning_in_content(message: dict) -> dict:
    """Move the reasoning of a message to a think block in its content, as in upstream's data for MiniMind2."""
    reasoning, content = message["reasoning_content"].strip("\n"), (message.get("content") or "").lstrip("\n")
    return message | {"content": f"<think>\n{reasoning}\n</think>\n\n{content}", "reasoning_content": None}


class _Marks:
    """Words that no template writes, strips or escapes, each for one place."""

    def __init__(self):
        self.places: dict[str, tuple[int, str]] = {}

    def new(self, turn: int, field: str) -> str:
        mark = f"zq{len(self.places)}qz"
        self.places[mark] = (turn, field)
        return mark


def _shape(message: dict) -> tuple[str, bool, bool, bool, int]:
    """What decides which fields of a message are printed: its role, which fields it has, a think block."""
    content = message.get("content") or ""
    thinks, reasoning = "</think>" in content, bool(message.get("reasoning_content"))
    return message["role"], bool(content), thinks, reasoning, len(message.get("tool_calls") or ())


def _marked(marks: _Marks, turn: int, role: str, content: bool, thinks: bool, reasoning: bool, calls: int) -> dict:
    message: dict = {"role": role, "content": marks.new(turn, "content") if content else ""}
    if thinks:
        message["content"] = f"<think>\n{marks.new(turn, 'content')}\n</think>\n\n{message['content']}"
    if reasoning:
        message["reasoning_content"] = marks.new(turn, "reasoning_content")
    if calls:
        message["tool_calls"] = [
            {
                "name": marks.new(turn, "tool_calls"),
                "arguments": json.dumps({"key": marks.new(turn, "tool_calls")}),
            }
            for _ in range(calls)
        ]
    return message


def _tool(name: str) -> dict:
    return {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}}


def _bare(text: str) -> str:
    return re.sub(r"\s+", "", text)
