"""Conversations written as text: HH-RLHF's transcripts, and the chats of Glaive's function calling."""

import json
import re
from collections.abc import Iterable
from typing import Any

from .turns import Message, Row, RowError, is_nothing, loaded_calls

_COLUMNS = ("prompt", "completion", "chosen", "rejected")  # that may hold transcripts
_TRANSCRIPT = re.compile(r"\s*(Human|Assistant): ?")
_ASKING = re.compile(r"\n\s*Assistant:\s*\Z")
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \n]?")
_GLAIVE_TURN = re.compile(
    r"(?:\A|\n)\s*(SYSTEM|USER|ASSISTANT|FUNCTION RESPONSE):(.*?)(?=\n\s*(?:USER|ASSISTANT|FUNCTION RESPONSE):|\Z)",
    re.DOTALL,
)
_GLAIVE_ROLES = {"SYSTEM": "system", "USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_GLAIVE_CALL = re.compile(r"<functioncall>(.*)\Z", re.DOTALL)
_GLAIVE_QUOTED = re.compile(r"""(["']arguments["']\s*:\s*)'(.*)'(\s*\}\s*)\Z""", re.DOTALL)
_GLAIVE_INTRODUCTION = re.compile(
    r"(?:You are a helpful assistant,? with access to the following functions\.? *)?(?:Use them if required *)?[-\s.]*"
)


def read_transcripts(row: Row, certain: bool) -> Row:
    """Convert HH-RLHF transcripts (turns that begin with `Human:` or `Assistant:`) in a row to messages.

    Args:
        row: under its schema's names.
        certain: convert every text that looks like a transcript; otherwise only a prompt that ends with `Assistant:`,
            and the two sides of a pair without a prompt.
    """
    found = [name for name in _COLUMNS if isinstance(row.get(name), str) and _TRANSCRIPT.match(row[name])]
    if not certain and found:
        whole = is_nothing(row.get("prompt")) and {"chosen", "rejected"} <= set(found)
        found = [name for name in found if whole or (name == "prompt" and _ASKING.search(row[name]))]
    return row | {name: _transcript(row[name]) for name in found} if found else row


def may_hold_transcripts(row: Row) -> bool:
    """Whether a row has a text that begins like a transcript of HH-RLHF."""
    return any(isinstance(value, str) and _TRANSCRIPT.match(value) for value in row.values())


def holds_transcripts(rows: Iterable[Row]) -> bool:
    """Whether most rows, under their schema's names, are HH-RLHF's: the prompt is a transcript, or both sides are.

    A completion that looks like a dialogue does not count.
    """
    rows = list(rows)
    found = 0
    for row in rows:
        columns = ("chosen", "rejected") if is_nothing(row.get("prompt")) else ("prompt",)
        found += all(isinstance(row.get(name), str) and _TRANSCRIPT.match(row[name]) for name in columns)
    return found > len(rows) / 2


def _transcript(text: str) -> list[Message]:
    """Anthropic's HH-RLHF strings: turns that start with a blank line and `Human:` or `Assistant:`."""
    _, *parts = _SPEAKER.split(text.strip())
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": roles[speaker], "content": content.strip()} for speaker, content in turns]


def read_glaive(chat: Any, system: Any) -> tuple[list[Message], Any, list] | None:
    """The turns of a chat, its system text and the functions in that; None if it is no such chat.

    The system text is in its own column or the first turn. It is empty if it only introduces the functions.

    Raises:
        RowError: a call or a function in it is not JSON.
    """
    parts = _GLAIVE_TURN.findall(chat) if isinstance(chat, str) else []
    turns = [turn for part in parts for turn in _glaive_turn(*part)]
    if not turns:
        return None
    if turns[0]["role"] == "system":
        own = turns.pop(0)["content"]
        system = own if is_nothing(system) else system
    said, tools = _glaive_system(system) if isinstance(system, str) else (system, [])
    return turns, said, tools


def _glaive_turn(speaker: str, text: str) -> list[Message]:
    text = text.replace("<|endoftext|>", "").strip()
    found = _GLAIVE_CALL.search(text) if speaker == "ASSISTANT" else None
    if not found:
        return [{"role": _GLAIVE_ROLES[speaker], "content": text}]
    said = [{"role": "assistant", "content": text[: found.start()].strip()}] if text[: found.start()].strip() else []
    # The arguments are JSON between single quotes, which neither JSON nor Python can read.
    quoted = _GLAIVE_QUOTED.search(found[1])
    call = found[1]
    if quoted:
        arguments = quoted[2].replace("\\'", "'")
        call = call[: quoted.start()] + quoted[1] + json.dumps(arguments, ensure_ascii=False) + quoted[3]
    return [*said, {"role": "function_call", "content": loaded_calls(call, "functioncall")}]


def _glaive_system(text: str) -> tuple[str, list]:
    """The system text without functions, and the functions."""
    said, place, tools, decoder = [], 0, [], json.JSONDecoder()
    text = text.strip().removeprefix("SYSTEM:")
    while (start := text.find("{", place)) >= 0:
        try:
            tool, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            raise RowError("system has a function that is not JSON") from None
        said.append(text[place:start])
        tools.append(tool)
        place = end
    said = "".join([*said, text[place:]]).strip()
    return ("" if tools and _GLAIVE_INTRODUCTION.fullmatch(said) else said), tools
