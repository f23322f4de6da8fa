"""Reads the turns of a conversation, in the spellings of many data sets, under MiniMind's names.

Everything in a turn is used, or the row is refused with a reason, or the key is listed by `unread_turn_keys`.
"""

import ast
import json
import re
import warnings
from typing import Any

Row = dict[str, Any]
Message = dict[str, Any]

# Names of the parts of a turn, by precedence.
_PLAIN = {"role", "content"}
_SENDERS = ("role", "from", "speaker", "author", "sender")
_CONTENTS = ("content", "value", "text", "message", "utterance")
REASONINGS = (
    *("reasoning_content", "thinking", "reasoning", "thinking_content", "reasoning_text"),
    *("thought", "thoughts", "think", "chain_of_thought"),
)
TOOLS = ("tools", "functions", "available_tools", "tool_list", "function_list", "available_functions")
_CALLS = ("tool_calls", "function_call", "tool_call", "function_calls")
# Flags of turns to train: ms-swift's `loss`, OpenAI's and Mistral's `weight`, axolotl's `train` and `training`, ...
_FLAGS = (
    *("loss", "weight", "train", "training", "trainable", "train_on_turn"),
    *("loss_weight", "loss_scale", "loss_mask", "compute_loss"),
)
_CONTRARY_FLAGS = ("masked", "no_loss", "ignore_loss", "skip_loss")
_OFFSETS = ("train_detail", "training_detail")  # axolotl's, for parts of a turn
_BOOKKEEPING = ("tool_call_id",)

_ROLES = {
    **dict.fromkeys(("human", "prompter", "question", "customer", "instruction", "usr"), "user"),
    **dict.fromkeys(
        ("gpt", "chatgpt", "bot", "model", "ai", "chatbot", "agent", "bard", "bing", "claude"), "assistant"
    ),
    **dict.fromkeys(("observation", "observations", "function", "function_response", "function_result"), "tool"),
    **dict.fromkeys(("tool_response", "tool_result", "tool_output", "tool_results", "ipython", "api"), "tool"),
    **dict.fromkeys(("developer", "system_prompt", "sys"), "system"),
}
_CALLERS = ("function_call", "function_calls", "tool_call", "tool_calls", "tool_use", "assistant_tool_call")

_ARGUMENTS = ("arguments", "parameters", "input", "args", "kwargs")
_CALL_KEYS = ("name", "id", "call_id", "type", "index", *_ARGUMENTS)

_NOTHING = ("", "null", "none", "nan", "undefined", "[]", "{}")
_SWITCHES = ("on", "off", "yes", "no", "true", "false", "enabled", "disabled", "low", "medium", "high")
_THOUGHT = re.compile(r"\s*(?:<think>(.*?)|([^{\[]*))</think>\s*", re.DOTALL)
_TAGGED_CALL = re.compile(r"<(tool_call|function_call|functioncall)>(.*?)(?:</\1>|(?=<\1>)|\Z)", re.DOTALL)
_BETWEEN_CALLS = re.compile(r"[\s,;]*")
# The beginning of a list of messages, or a message, stored as text.
_STORED = re.compile(r"""\s*(?:array\(\s*)?\[\s*\{\s*["'](?:role|from|speaker|author|sender|content|value)["']\s*:""")
_OBJECTS = re.compile(r"\s*\[?\s*\{.*\}\s*\]?\s*", re.DOTALL)


class RowError(ValueError):
    """A row cannot be used; the message is the reason under which it is counted."""


class LeftOut(RowError):
    """A valid row that is not used; it is counted, but does not suggest a wrong schema."""


def is_nothing(value: Any) -> bool:
    """Whether a field is empty, in the spellings of tables and other languages too: `" "`, `"null"`, `"None"`, NaN."""
    if isinstance(value, str):
        return value.strip().lower() in _NOTHING
    return value is None or value in ([], {}) or value != value


def loaded(text: str) -> Any:
    """The value that a text holds as JSON or as a Python literal, which some tables have in place of lists.

    Raises:
        ValueError: it is neither.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unknown escapes in strings
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("neither JSON nor Python") from None


def loaded_list(value: str | list, what: str) -> list:
    """A list, or the list in a text: upstream's data stores tools and tool calls as JSON."""
    try:
        value = loaded(value) if isinstance(value, str) else value
    except ValueError:
        raise RowError(f"{what} is not JSON") from None
    if not isinstance(value, list):
        raise RowError(f"{what} is not a list")
    return value


def read_turns(value: Any, column: str) -> list[Message]:
    """The turns of a column, which may be stored as JSON or Python text; consecutive calls become one turn.

    Raises:
        RowError: there are no turns, or one of them cannot be read.
    """
    if is_nothing(value):
        raise RowError(f"no {column}")
    if isinstance(value, str):
        try:
            value = loaded(value)
        except ValueError:
            value = None
    if isinstance(value, dict):
        value = one_by_one(value)
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise RowError(f"{column}: not a list of objects")
    if not value:
        raise RowError(f"no {column}")
    return _calls_joined([read_turn(turn) for turn in value])


def stored_turns(text: str, column: str) -> list[Message] | None:
    """The messages that a text holds as JSON or Python; None of plain text, even if it is about JSON.

    Raises:
        RowError: it looks like messages and cannot be read.
    """
    certain = _STORED.match(text) is not None
    if not certain and not _OBJECTS.fullmatch(text):
        return None
    try:
        value = loaded(text)
    except ValueError:
        if certain:
            raise RowError(f"{column} looks like messages, and is neither JSON nor Python text") from None
        return None
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not all(isinstance(turn, dict) and _is_turn(turn) for turn in turns):
        return None
    return read_turns(turns, column) if turns else None


def read_turn(turn: Message) -> Message:
    """One turn under MiniMind's names: `role`, and any of `content`, `reasoning_content`, `tool_calls`, `tools`, and
    `train`, which is False if the turn is not trained.

    Raises:
        RowError: it has no role, or a part of it cannot be used.
    """
    if turn.keys() == _PLAIN and turn["role"] in ("user", "assistant") and isinstance(turn["content"], str):
        return dict(turn)  # like most turns
    sender = next((turn[name] for name in _SENDERS if turn.get(name) is not None), None)
    if not isinstance(sender, str):
        raise RowError("a message without a role")
    role, is_call = _role(sender)
    read: Message = {"role": role, "reasoning_content": reasoning_of(turn), "tool_calls": _calls(turn)}
    if is_call:
        read |= _called(_content(turn), read["reasoning_content"]) | {"is_call": True}
    else:
        content, thought = _parts(_content(turn), role)
        read |= {"content": content, "reasoning_content": _only(read["reasoning_content"], thought)}
    read |= {
        "tools": next((turn[name] for name in TOOLS if not is_nothing(turn.get(name))), None),
        "train": _flag(turn),
    }
    return {name: value for name, value in read.items() if value is not None}


def unread_turn_keys(turn: Message) -> list[str]:
    """The keys of a turn that have a value and that `read_turn` does not use."""
    if turn.keys() == _PLAIN:
        return []
    filled = [name for name, value in turn.items() if not is_nothing(value)]
    sender = next((name for name in _SENDERS if name in filled), "role")
    content = next((name for name in _CONTENTS if name in filled), "content")
    known = {sender, content, *TOOLS, *_CALLS, *_FLAGS, *_CONTRARY_FLAGS, *_OFFSETS, *_BOOKKEEPING}
    known |= {name for name in REASONINGS if is_reasoning(turn.get(name))}
    role, _ = _role(str(turn.get(sender)))
    if role == "tool":
        known.add("name")  # the tool that answered
    unread = [name for name in filled if name not in known]
    if role != "assistant":  # only the assistant's turns can be trained on alone
        unread += [name for name in _FLAGS if _truth(turn.get(name)) is True]
    return unread


def is_reasoning(value: Any) -> bool:
    """Whether a field is a reasoning text, unlike the switches `reasoning: "on"` and `thinking: true`."""
    is_switch = value.strip().lower() in _SWITCHES if isinstance(value, str) else isinstance(value, bool)
    return not is_switch and not is_nothing(value)


def reasoning_of(row: Row) -> str | None:
    """The reasoning of a turn or a row, under any name.

    Raises:
        RowError: it is no string, or two names have different values.
    """
    found = [row[name] for name in REASONINGS if is_reasoning(row.get(name))]
    if not all(isinstance(one, str) for one in found):
        raise RowError("reasoning_content is no string")
    if len(set(found)) > 1:
        raise RowError("two different reasonings")
    if found:
        return found[0]
    given = row.get("reasoning_content")
    return given if isinstance(given, str) and not given.strip() else None


def tool_call(call: Any) -> Row:
    """`{"name", "arguments"}`, the arguments as the JSON of an object, which every template prints unchanged.

    Raises:
        RowError: it is no call, or its arguments are no JSON object.
    """
    if isinstance(call, str):
        try:
            call = loaded(call)
        except ValueError:
            call = None
    call = call.get("function") or call if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"].strip():
        raise RowError("a tool call without a name")
    if json.dumps(call["name"], ensure_ascii=False) != f'"{call["name"]}"':  # templates paste it between quotes
        raise RowError("the name of a tool call has quotes or line breaks")
    given = [call[name] for name in _ARGUMENTS if call.get(name) is not None]
    unread = [name for name, value in call.items() if name not in _CALL_KEYS and not is_nothing(value)]
    if not given and unread:
        raise RowError(f"a tool call with {unread[0]!r:.20} and no arguments")
    arguments = given[0] if given else {}
    text = arguments if isinstance(arguments, str) else as_json(arguments)
    try:
        parsed = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise RowError("arguments of a tool call are not a JSON object")
    return {"name": call["name"], "arguments": text}


def tools_json(tools: Any) -> str | None:
    """A list of tools, or its text, as JSON; in Arrow all tools would get the union of their keys.

    Raises:
        RowError: it is not a list of objects.
    """
    if is_nothing(tools):
        return None
    parsed = [_loaded_tool(tool) for tool in loaded_list(tools, "tools")]
    return as_json(parsed) if parsed else None


def as_json(value: Any) -> str:
    """JSON as the templates' `tojson` writes it.

    Raises:
        RowError: JSON has no such value, for example a date in Parquet.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        raise RowError("a value that JSON does not have, in tools or a tool call") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _loaded_tool(tool: Any) -> Row:
    if isinstance(tool, str):
        try:
            tool = loaded(tool)
        except ValueError:
            tool = None
    if not isinstance(tool, dict):
        raise RowError("tools has an entry that is no object")
    return tool


def one_by_one(value: Row) -> list[Row]:
    """One message; or several, if it is a table of columns, as `datasets` stores a `Sequence` of objects."""
    columns = list(value.values())
    if columns and all(isinstance(column, list) for column in columns) and len({*map(len, columns)}) == 1:
        return [dict(zip(value, items, strict=True)) for items in zip(*columns, strict=True)]
    return [value]


def _is_turn(turn: Row) -> bool:
    says = any(name in turn for name in (*_CONTENTS, *_CALLS))
    return says and any(isinstance(turn.get(name), str) for name in _SENDERS)


def _role(sender: str) -> tuple[str, bool]:
    """MiniMind's role, and whether the turn is a tool call."""
    name = re.sub(r"[\s-]+", "_", sender.strip().lower())
    return ("assistant", True) if name in _CALLERS else (_ROLES.get(name, name), False)


def _only(reasoning: str | None, thought: str | None) -> str | None:
    """The reasoning beside the content or inside it."""
    if reasoning and thought and reasoning.strip() != thought.strip():
        raise RowError("two different reasonings")
    return thought if thought and not reasoning else reasoning


def _content(turn: Message) -> Any:
    filled = [turn[name] for name in _CONTENTS if not (turn.get(name) is None or turn[name] == "")]
    return filled[0] if filled else next((turn[name] for name in _CONTENTS if turn.get(name) is not None), None)


def _parts(content: Any, role: str) -> tuple[Any, str | None]:
    """The text and the reasoning of a content, which may be a list of parts; the result of a tool may be any JSON."""
    if role == "tool" and (isinstance(content, dict | int | float) or _is_data(content)):
        return as_json(content), None
    if not isinstance(content, list):
        return content, None
    texts, thoughts = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        thinking = kind in ("thinking", "reasoning")
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        if thinking:
            text = next((part[name] for name in ("thinking", "reasoning", "text", "content") if name in part), None)
        if not isinstance(text, str):
            raise RowError("content has parts that are not text")
        (thoughts if thinking else texts).append(text)
    return "".join(texts), "\n".join(thoughts) or None


def _is_data(content: Any) -> bool:
    return isinstance(content, list) and not any(isinstance(part, dict) and "type" in part for part in content)


def _calls(turn: Message) -> list | None:
    given = {name: turn[name] for name in _CALLS if not is_nothing(turn.get(name))}
    if not given:
        return None
    if len(given) > 1:
        raise RowError(f"a turn with {' and '.join(given)}")
    [(name, calls)] = given.items()
    if name == "tool_calls":
        return loaded_list(calls, name)
    calls = loaded_calls(calls, name)
    return calls if calls else None


def loaded_calls(value: Any, what: str) -> list:
    """The calls in a value: a call, a list, or the text of a call, a list, or several calls in a row.

    Raises:
        RowError: the text is something else.
    """
    if not isinstance(value, str):
        return value if isinstance(value, list) else [value]
    calls, place, decoder = [], 0, json.JSONDecoder()
    text = value.strip()
    try:
        while place < len(text):
            found, place = decoder.raw_decode(text, place)
            calls += found if isinstance(found, list) else [found]
            place = _BETWEEN_CALLS.match(text, place).end()
    except (ValueError, RecursionError):
        try:
            found = loaded(text)
        except ValueError:
            raise RowError(f"{what} is not JSON") from None
        calls = list(found) if isinstance(found, list | tuple) else [found]
    return calls


def _called(content: Any, reasoning: str | None) -> Message:
    """A turn of calls only, perhaps after a think block."""
    if isinstance(content, str) and (thought := _THOUGHT.match(content)):
        reasoning = _only(reasoning, (thought[1] or thought[2] or "").strip("\n"))
        content = content[thought.end() :]
    if is_nothing(content):
        raise RowError("function_call is empty")
    if isinstance(content, str) and (tagged := _TAGGED_CALL.findall(content)):
        if _TAGGED_CALL.sub("", content).strip():
            raise RowError("function_call is not JSON")
        calls = [call for _, text in tagged for call in loaded_calls(text, "function_call")]
    else:
        calls = loaded_calls(content, "function_call")
    if not calls:
        raise RowError("function_call is empty")
    return {"content": None, "reasoning_content": reasoning, "tool_calls": calls}


def _calls_joined(turns: list[Message]) -> list[Message]:
    """Join consecutive calls, and calls that follow a text of the assistant, into one turn."""
    joined: list[Message] = []
    for turn in turns:
        is_call = turn.pop("is_call", False)
        before = joined[-1] if joined else None
        if not is_call or before is None or before["role"] != "assistant" or turn.get("reasoning_content"):
            joined.append(turn)
            continue
        if before.get("train") != turn.get("train"):
            raise RowError("one turn of the assistant with two loss flags")
        before["tool_calls"] = [*before.get("tool_calls", ()), *turn["tool_calls"]]
    return joined


def _flag(turn: Message) -> bool | None:
    """False if a turn must not be trained, else None.

    Raises:
        RowError: the flags contradict each other, or are not 0 or 1.
    """
    if any(not is_nothing(turn.get(name)) for name in _OFFSETS):
        raise RowError("train_detail: a turn is trained whole or not at all")
    flags = set()
    for name in (*_FLAGS, *_CONTRARY_FLAGS):
        if is_nothing(turn.get(name)):
            continue
        if (truth := _truth(turn[name])) is None:
            raise RowError(f"{name} of a turn is neither 0 nor 1")
        flags.add(truth != (name in _CONTRARY_FLAGS))
    if len(flags) == 2:
        raise RowError("a turn with contrary loss flags")
    return False if flags == {False} else None


def _truth(value: Any) -> bool | None:
    if isinstance(value, str):
        value = value.strip().lower()
        return True if value in ("true", "yes", "1", "1.0") else False if value in ("false", "no", "0", "0.0") else None
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None
