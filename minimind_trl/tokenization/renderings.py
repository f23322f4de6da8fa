"""What of a conversation its chat template prints, and what it leaves out.

Templates leave out what they do not know, without a word: MiniMind2's prints no `reasoning_content`, MiniMind-3's
nothing between two think blocks, others no tools. A model cannot learn what is not there.
"""

import json
import re

from transformers import PreTrainedTokenizerBase

_KEPT = 4096  # shapes of conversations whose outcome is remembered


class PrintedFields:
    """Tells which fields of a conversation a tokenizer's chat template leaves out, whatever their values."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self._known: dict[tuple, list[tuple[int, str]]] = {}

    def missing(self, messages: list[dict], tools: list | None = None) -> list[tuple[int, str]]:
        """(turn, field) of every field that is not empty and not printed; `tools` with turn 0.

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
        except Exception:  # what it refuses here it refuses with the row's own values too, where that is told
            return []
        return list(dict.fromkeys(place for mark, place in marks.places.items() if mark not in rendered))


def first_unprinted(rendered: str, messages: list[dict]) -> int | None:
    """The first turn whose content is not in the rendering as a whole, white space apart; None where all are."""
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
    """A message with its reasoning in a think block of its content, as upstream's data for MiniMind2 has it."""
    reasoning, content = message["reasoning_content"].strip("\n"), (message.get("content") or "").lstrip("\n")
    return message | {"content": f"<think>\n{reasoning}\n</think>\n\n{content}", "reasoning_content": None}


class _Marks:
    """Words that no template writes, strips or escapes, each with the place that it marks."""

    def __init__(self):
        self.places: dict[str, tuple[int, str]] = {}

    def new(self, turn: int, field: str) -> str:
        mark = f"zq{len(self.places)}qz"
        self.places[mark] = (turn, field)
        return mark


def _shape(message: dict) -> tuple[str, bool, bool, bool, int]:
    """Of a message what decides which of its fields are printed: role, which fields it has, a think block."""
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
