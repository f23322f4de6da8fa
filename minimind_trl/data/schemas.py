"""Row schemas that MiniMind users have, each turned into what the trainer of a phase takes.

Two steps. A *converter* reads one schema and gives one of four kinds of row: `text`, `chat` (messages), `pair`
(prompt, chosen, rejected) or `prompt`. A *phase* takes some kinds, and checks what it takes. Either raises `RowError`
with a reason that holds nothing of the row itself, because rows are dropped and counted under it.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import List, Value

from ..tokenization.control_tokens import ROLES

Row = dict[str, Any]
Message = dict[str, Any]

MESSAGES = List(
    {
        "role": Value("string"),
        "content": Value("string"),
        "reasoning_content": Value("string"),
        "tool_calls": List({"name": Value("string"), "arguments": Value("string")}),
    }
)
COLUMNS = {
    "text": {"text": Value("string")},
    "messages": {"messages": MESSAGES, "tools": Value("string")},
    "pair": {"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES, "tools": Value("string")},
    "prompt": {"prompt": MESSAGES, "tools": Value("string")},
}
_TEXT = ("text", ("text", "messages", "conversations", "prompt_completion", "alpaca", "qa"))
_CHAT = ("messages", ("messages", "conversations", "prompt_completion", "alpaca", "qa"))
_PAIR = ("pair", ("preference",))
_PROMPT = ("prompt", ("conversations", "messages", "prompt", "qa", "alpaca", "preference"))
# Of every phase: its columns, and the schemas that it can use, in the order in which they are recognised.
PHASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "pretrain": _TEXT,
    "midtrain": _TEXT,
    "sft": _CHAT,
    "distill": _CHAT,
    "dpo": _PAIR,
    "reward": _PAIR,
    "rlaif": _PROMPT,
}
REWARD_COLUMNS = ("answer", "gt", "skill")  # what phase rlaif passes through unless told otherwise
MAX_CHARACTERS = 8_000_000

# Other data sets' spellings of a schema's columns, used where a row has no column of the schema's own name.
_SPELLINGS = {
    "chosen": ("chosen_response", "response_chosen", "preferred", "accepted", "response_j", "winner"),
    "rejected": ("rejected_response", "response_rejected", "dispreferred", "response_k", "loser"),
    "question": ("query", "problem"),
    "answer": ("response", "solution"),
    "completion": ("response", "output"),
    "conversations": ("conversation",),
    "input": ("context",),
    "output": ("response",),
    "prompt": ("question", "instruction", "query", "input", "conversations"),
    "system": ("system_prompt",),
}
# Columns that a schema reads where a row has them.
_OPTIONAL = {
    "alpaca": ("input", "system", "history", "tools"),
    "preference": ("prompt", "system", "tools"),
    **dict.fromkeys(("messages", "conversations", "qa", "prompt_completion", "prompt"), ("system", "tools")),
}
# Other names of the roles, as ShareGPT, Llama and OpenAI have them.
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
    "developer": "system",
}


class RowError(ValueError):
    """Why a row cannot be used, in a few words that serve as the reason it is counted under."""


@dataclass(frozen=True)
class Schema:
    """One row format: the columns that it needs, and the converter."""

    kind: str
    columns: tuple[str, ...]
    convert: Callable[[Row], Row]


def text_row(row: Row) -> Row:
    """Plain text: `{"text"}`."""
    return {"text": row.get("text")}


def messages_row(row: Row) -> Row:
    """Chat messages: `{"messages", "tools"?, "system"?}`; the tools a list, or JSON of one."""
    return _chat(row, _turns(row.get("messages"), "messages"))


def conversations_row(row: Row) -> Row:
    """MiniMind's rows (`role`, `content`, on the system turn tools as JSON) and ShareGPT's (`from`, `value`)."""
    return _chat(row, _turns(row.get("conversations"), "conversations"))


def alpaca_row(row: Row) -> Row:
    """Alpaca: `{"instruction", "input"?, "output", "system"?, "history"?}`; a blank line goes before the input.

    The history is a list of earlier `[instruction, output]` pairs.
    """
    return _answered(row, _asked(row, "instruction"), row.get("output"))


def qa_row(row: Row) -> Row:
    """Question and answer, such as GSM8K: `{"question", "answer", "system"?}`."""
    return _answered(row, _text(row, "question"), row.get("answer"))


def prompt_completion_row(row: Row) -> Row:
    """TRL's prompt-completion rows, each side text or messages."""
    return _chat(row, _prompt(row) + _messages(row, "completion", "assistant"))


def preference_row(row: Row) -> Row:
    """A better and a worse answer: `{"prompt"?, "chosen", "rejected"}`, each text, messages or an HH-RLHF transcript.

    Where both sides repeat the conversation, the prompt ends with the last turn that they share.
    """
    prompt = _prompt(row) if row.get("prompt") else []
    sides = [_messages(row, side, "assistant") for side in ("chosen", "rejected")]
    shared = 0
    for one, other in zip(*sides, strict=False):
        if one != other:
            break
        shared += 1
    if sides[0] == sides[1]:
        raise RowError("chosen equals rejected")
    repeated = sides[0][:shared]
    rest = [side[shared:] for side in sides]
    prompt = _with_system(row, _joined_turns(prompt, repeated))
    return {"prompt": prompt, "chosen": rest[0], "rejected": rest[1], "tools": _tools_of(row, prompt)}


def prompt_row(row: Row) -> Row:
    """A prompt to answer: `{"prompt", "system"?}`, text or messages."""
    turns = _with_system(row, _prompt(row))
    return {"prompt": turns, "tools": _tools_of(row, turns)}


SCHEMAS = {
    "text": Schema("text", ("text",), text_row),
    "messages": Schema("chat", ("messages",), messages_row),
    "conversations": Schema("chat", ("conversations",), conversations_row),
    "alpaca": Schema("chat", ("instruction", "output"), alpaca_row),
    "qa": Schema("chat", ("question", "answer"), qa_row),
    "prompt_completion": Schema("chat", ("prompt", "completion"), prompt_completion_row),
    "preference": Schema("pair", ("chosen", "rejected"), preference_row),
    "prompt": Schema("prompt", ("prompt",), prompt_row),
}


def detect_schema(columns: list[str], phase: str) -> str | None:
    """The schema of a phase that columns fit best: under their own names, else most of them so."""
    return next(iter(fitting_schemas(columns, phase)), None)


def fitting_schemas(columns: list[str], phase: str) -> list[str]:
    """The schemas of a phase whose columns, under any of their spellings, are there; the best first."""
    names = [name for name in PHASES[phase][1] if not missing_columns(columns, name)]
    other = {name: len(set(SCHEMAS[name].columns) - set(columns)) for name in names}
    own = {name: len(SCHEMAS[name].columns) - other[name] for name in names}
    return sorted(names, key=lambda name: (other[name] > 0, -own[name] if other[name] else 0))


def known_columns(schema: str) -> tuple[str, ...]:
    """The columns that a schema reads, needed or not."""
    return (*SCHEMAS[schema].columns, *_OPTIONAL.get(schema, ()))


def missing_columns(columns: list[str], schema: str) -> list[str]:
    """The columns of a schema that rows with `columns` have under none of their spellings."""
    return [name for name in SCHEMAS[schema].columns if not {name, *_SPELLINGS.get(name, ())} & set(columns)]


def spellings(columns: list[str], schema: str) -> dict[str, str]:
    """`{schema's name: the row's name}` of the columns that are spelt differently."""
    missing = [name for name in known_columns(schema) if name not in columns]
    found = ((name, next((other for other in _SPELLINGS.get(name, ()) if other in columns), None)) for name in missing)
    return {name: other for name, other in found if other}


def to_phase(row: Row, kind: str, phase: str) -> Row:
    """A converted row as the columns of a phase, checked: contents, roles and their order.

    A conversation in a text phase stays `{"messages", "tools"}`: the chat template makes it a text.

    Raises:
        RowError: the row cannot be trained on.
    """
    columns, _ = PHASES[phase]
    if kind == "text":
        if not isinstance(row["text"], str) or not row["text"].strip():
            raise RowError("empty text" if not row["text"] or isinstance(row["text"], str) else "text is no string")
        return row
    tools = {"tools": _tools(row.get("tools"))}
    if kind == "pair" and columns == "pair":
        return _pair(row) | tools
    if columns == "prompt":
        return {"prompt": _conversation(_without_answer(row), last=("user", "tool"))} | tools
    return {"messages": _conversation(row["messages"], last=("assistant",))} | tools


def plain_text(row: Row) -> str:
    """All that a person reads in a row of any phase: text, or reasoning, contents and tool calls, line by line."""
    if "text" in row:
        return row["text"]
    turns = [turn for column in ("messages", "prompt", "chosen", "rejected") for turn in row.get(column) or []]
    return "\n".join(part for turn in turns for part in _parts(turn) if part)


def _parts(turn: Message) -> list[str | None]:
    calls = turn.get("tool_calls") or []
    return [turn.get("reasoning_content"), turn["content"], *(f"{call['name']} {call['arguments']}" for call in calls)]


def _pair(row: Row) -> Row:
    if not (row["chosen"] and row["rejected"]):
        raise RowError("one of chosen and rejected is the beginning of the other")
    if any(row[side][0]["role"] != "assistant" for side in ("chosen", "rejected")):
        raise RowError("chosen and rejected part before the assistant's turn")
    if not row["prompt"]:
        raise RowError("no prompt")
    prompt = _conversation(row["prompt"], last=("user", "tool"))
    sides = {
        side: _conversation(prompt + row[side], last=("assistant",))[len(prompt) :] for side in ("chosen", "rejected")
    }
    if sides["chosen"] == sides["rejected"]:
        raise RowError("chosen equals rejected")
    return {"prompt": prompt, **sides}


def _without_answer(row: Row) -> list[Message]:
    """The turns before the answer, which in upstream's RL rows is a dummy."""
    turns = row["messages"] if "messages" in row else row["prompt"]
    while "messages" in row and turns and turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    return turns


def _conversation(turns: list[Message], last: tuple[str, ...]) -> list[Message]:
    messages = [_message(turn) for turn in turns if not _is_empty_system(turn)]
    if not messages:
        raise RowError("no messages")
    previous = "start"
    for message in messages:
        if message["role"] not in _FOLLOWERS[previous]:
            raise RowError(f"roles in wrong order: {message['role']} after {previous}")
        previous = message["role"]
    if previous not in last:
        raise RowError(f"last message is the {previous}'s" if last != ("assistant",) else _NOT_ANSWERED)
    return messages


_NOT_ANSWERED = "last message is not the assistant's"
_FOLLOWERS = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


def _is_empty_system(turn: Message) -> bool:
    """An empty system turn says nothing; upstream hangs the tools on one."""
    content = _joined(turn.get("content")) or ""
    return turn["role"] == "system" and isinstance(content, str) and not content.strip()


def _message(turn: Message) -> Message:
    role, content = turn["role"], _joined(turn.get("content"))
    if role not in ROLES:
        raise RowError(f"unknown role {role!r:.20}")
    reasoning, calls = turn.get("reasoning_content"), turn.get("tool_calls")
    if reasoning is not None and not isinstance(reasoning, str):
        raise RowError("reasoning_content is no string")
    calls = [_tool_call(call) for call in _parsed(calls, "tool_calls")] if calls else None
    if content is None and calls:
        content = ""
    if not isinstance(content, str) or not (content.strip() or calls):
        raise RowError(f"empty {role} message" if not content or isinstance(content, str) else "content is no string")
    return {"role": role, "content": content, "reasoning_content": reasoning, "tool_calls": calls}


def _joined(content: Any) -> Any:
    """The text of a content that is a list of parts, as multimodal chat formats write it."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        raise RowError("content has parts that are not text")
    return "".join(part["text"] for part in content)


def _tool_call(call: Row) -> Row:
    """`{"name", "arguments"}` with the arguments as JSON, which every template prints as it stands."""
    call = call.get("function") or call if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise RowError("a tool call without a name")
    arguments = {} if call.get("arguments") is None else call["arguments"]
    return {"name": call["name"], "arguments": arguments if isinstance(arguments, str) else _as_json(arguments)}


def _tools(tools: str | list | None) -> str | None:
    # As JSON, because Arrow would give all tools of a data set the union of their keys.
    parsed = _parsed(tools, "tools") if tools else None
    return _as_json(parsed) if parsed else None


def _parsed(value: str | list, what: str) -> list:
    """A list, or the list that a JSON string holds: upstream's data stores tools and tool calls as strings."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise RowError(f"{what} is not JSON") from None
    if not isinstance(value, list):
        raise RowError(f"{what} is not a list")
    return value


def _as_json(value) -> str:
    return json.dumps(value, ensure_ascii=False)  # as the templates' own `tojson` writes it


def _chat(row: Row, turns: list[Message]) -> Row:
    return {"messages": _with_system(row, turns), "tools": _tools_of(row, turns)}


def _tools_of(row: Row, turns: list[Message]) -> str | list | None:
    """The row's tools, or those that hang on a turn: upstream's, today and as of MiniMind2."""
    hung = (turn.get("tools") or turn.get("functions") for turn in turns)
    return row.get("tools") or next((tools for tools in hung if tools), None)


def _answered(row: Row, prompt: str, answer: Any) -> Row:
    turns = [*_history(row), {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return _chat(row, turns)


def _history(row: Row) -> list[Message]:
    pairs = row.get("history") or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise RowError("history is not a list of pairs")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]


def _joined_turns(prompt: list[Message], repeated: list[Message]) -> list[Message]:
    """A prompt, and what both sides share: a whole conversation, its last turn, or what comes after the prompt."""
    ends = (prompt[start:] for start in range(len(prompt)))
    if again := next((end for end in ends if repeated[: len(end)] == end), None):
        return prompt[: len(prompt) - len(again)] + repeated
    if len(prompt) == 1 and repeated and repeated[0]["role"] != "assistant":
        asked, *known = (str(turn.get("content")).strip() for turn in prompt + repeated)
        return repeated if asked in known else prompt + repeated  # orpo-dpo-mix gives one turn as the prompt
    return prompt + repeated


def _with_system(row: Row, turns: list[Message]) -> list[Message]:
    system = row.get("system")
    if not isinstance(system, str) or not system.strip() or (turns and turns[0]["role"] == "system"):
        return turns
    return [{"role": "system", "content": system}, *turns]


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"empty {column}" if not value or isinstance(value, str) else f"{column} is no string")
    return value


def _asked(row: Row, column: str) -> str:
    """An instruction and its input."""
    parts = [_text(row, column), row.get("input") or ""]
    if not isinstance(parts[1], str):
        raise RowError("input is no string")
    return "\n\n".join(part for part in parts if part.strip())


def _prompt(row: Row) -> list[Message]:
    if row.get("instruction") and row["instruction"] == row.get("prompt"):
        return [{"role": "user", "content": _asked(row, "prompt")}]
    turns = _messages(row, "prompt", "user")
    # A transcript may end with the "Assistant:" that asks for the answer.
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def _messages(row: Row, column: str, role: str) -> list[Message]:
    """A column that is text (the turn of `role`, or an HH-RLHF transcript) or messages."""
    value = row.get(column)
    if isinstance(value, dict | list):
        return _turns([value] if isinstance(value, dict) else value, column)
    text = _text(row, column)
    if not _TRANSCRIPT.match(text):
        return [{"role": role, "content": text}]
    return _transcript(text)


def _turns(turns: Any, column: str) -> list[Message]:
    if not turns:
        raise RowError(f"no {column}")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowError(f"{column}: not a list of objects")
    return [_turn(turn) for turn in turns]


_TRANSCRIPT = re.compile(r"\s*(Human|Assistant): ?")
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \n]?")


def _transcript(text: str) -> list[Message]:
    """Anthropic's HH-RLHF strings: turns that start with a blank line and `Human:` or `Assistant:`."""
    _, *parts = _SPEAKER.split(text.strip())
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": roles[speaker], "content": content.strip()} for speaker, content in turns]


def _turn(turn: Message) -> Message:
    """A turn under MiniMind's names, without what is null; ShareGPT has `from` and `value`."""
    sender, content = turn.get("role"), turn.get("content")
    if sender is None and "from" in turn:
        sender, content = turn["from"], turn.get("value")
    if not isinstance(sender, str):
        raise RowError("a message without a role")
    read = {name: turn.get(name) for name in ("reasoning_content", "tool_calls", "tools", "functions")}
    read |= {"role": _ROLES.get(sender.lower(), sender.lower()), "content": content}
    if sender == "function_call":
        read |= {"content": None, "tool_calls": _as_calls(content)}
    return {name: value for name, value in read.items() if value is not None}


def _as_calls(value: Any) -> list:
    """The calls of a ShareGPT turn: JSON of one, or of a list."""
    [calls] = _parsed(f"[{value}]" if isinstance(value, str) else [value], "function_call")
    return calls if isinstance(calls, list) else [calls]
