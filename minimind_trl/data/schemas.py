"""Row schemas, and their conversion to the columns of a phase.

There are two steps. The converter of a schema makes one of four kinds of row: `text`, `chat` (messages), `pair`
(prompt, chosen, rejected) or `prompt`. `to_phase` checks it and gives it the columns of the phase. Both raise
`RowError` with a reason that quotes nothing of the row, because rows are counted by reason.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import List, Value

from ..tokenization.control_tokens import ROLES
from .kto import ALONE, WORSE, Labelled
from .transcripts import read_glaive
from .turns import (
    REASONINGS,
    TOOLS,
    LeftOut,
    Message,
    Row,
    RowError,
    is_nothing,
    is_reasoning,
    loaded,
    loaded_list,
    one_by_one,
    read_turns,
    reasoning_of,
    stored_turns,
    tool_call,
    tools_json,
    unread_turn_keys,
)

MESSAGES = List(
    {
        "role": Value("string"),
        "content": Value("string"),
        "reasoning_content": Value("string"),
        "tool_calls": List({"name": Value("string"), "arguments": Value("string")}),
        "train": Value("bool"),  # False if the turn is not trained, else null
    }
)
COLUMNS = {
    # `untrained`: character spans, in a rendered conversation, of turns that are not trained.
    "text": {"text": Value("string"), "untrained": List(List(Value("uint32")))},
    "messages": {"messages": MESSAGES, "tools": Value("string")},
    "pair": {"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES, "tools": Value("string")},
    "prompt": {"prompt": MESSAGES, "tools": Value("string")},
}
_CHATS = ("messages", "conversations", "prompt_completion", "alpaca", "qa", "xlam", "glaive")
_TEXT = ("text", ("text", *_CHATS))
_CHAT = ("messages", _CHATS)
_PAIR = ("pair", ("preference", "rejected_response", "kto"))
_PROMPT = ("prompt", ("conversations", "messages", "prompt", "qa", "alpaca", "preference", "xlam", "glaive"))
# For each phase its columns and the schemas that it takes, in the order in which they are detected.
PHASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "pretrain": _TEXT,
    "midtrain": _TEXT,
    "sft": _CHAT,
    "distill": _CHAT,
    "dpo": _PAIR,
    "reward": _PAIR,
    "rlaif": _PROMPT,
}
REWARD_COLUMNS = ("answer", "gt", "skill")  # kept by default in phase rlaif
MAX_CHARACTERS = 8_000_000

# Other spellings of a schema's columns, used where a row lacks the schema's own name.
_SPELLINGS = {
    "answers": ("tool_calls", "function_calls", "calls"),
    "chat": ("sample",),
    "chosen": (
        *("chosen_response", "response_chosen", "preferred", "accepted", "response_j", "winner"),
        *("response", "completion", "output", "answer"),
    ),
    "rejected": ("rejected_response", "response_rejected", "rejected_messages", "dispreferred", "response_k", "loser"),
    "question": ("query", "problem"),
    "answer": ("response", "solution"),
    "completion": ("response", "output"),
    "label": ("kto_tag",),
    "messages": ("conversations", "conversation", "dialogue", "dialog"),
    "conversations": ("conversation",),
    "input": ("context",),
    "output": ("response",),
    "prompt": ("question", "instruction", "query", "input", "conversations", "messages"),
    "query": ("question", "instruction", "prompt"),
    "rejected_response": ("rejected_messages", "rejected"),
    "system": ("system_prompt",),
    "tools": TOOLS[1:],
}
# Columns that a schema reads if a row has them.
_OPTIONAL = {
    "alpaca": ("input", "system", "history", "tools", "label"),
    "preference": ("prompt", "system", "history", "tools"),
    "prompt": ("system", "history", "tools"),
    "rejected_response": ("system", "tools"),
    **dict.fromkeys(("messages", "conversations", "glaive"), ("system", "tools", "label")),
    **dict.fromkeys(("qa", "prompt_completion", "xlam"), ("system", "history", "tools", "label")),
    "kto": ("prompt", "completion", "messages", "conversations", "system", "tools"),
}
# Schemas with one answer, whose reasoning may be in a column of its own.
_ONE_ANSWER = ("alpaca", "qa", "prompt_completion", "xlam")
_LABELS = ("label", "kto_tag")
_MEDIA = ("images", "image", "videos", "video", "audios", "audio", "speech", "image_url", "image_path", "image_paths")
_TURN_COLUMNS = ("messages", "conversations", "prompt", "completion", "chosen", "rejected", "rejected_response", "chat")


def _in_column(column: str) -> Callable[[Row], Row]:
    return lambda row: _chat(row, read_turns(row.get(column), column))


def _prompt_completion(row: Row) -> Row:
    return _chat(row, _prompt(row) + _messages(row, "completion", "assistant"))


def _xlam(row: Row) -> Row:
    calls = loaded_list(row.get("answers"), "answers") if not is_nothing(row.get("answers")) else []
    if not calls:
        raise RowError("answers holds no tool call")
    return _answered(row, _text(row, "query"), None, calls)


def _glaive(row: Row) -> Row:
    found = read_glaive(row.get("chat"), row.get("system"))
    if found is None:
        return _chat(row, read_turns(row.get("chat"), "chat"))
    turns, system, tools = found
    return _chat(row | {"system": system, "tools": row.get("tools") or tools}, read_turns(turns, "chat"))


def _rejected_response(row: Row) -> Row:
    turns = read_turns(row.get("messages"), "messages")
    if turns[-1]["role"] != "assistant":
        raise RowError(_NOT_ANSWERED)
    worse = _messages(row, "rejected_response", "assistant")
    if worse[0]["role"] == "assistant":  # else it repeats the conversation
        worse = turns[:-1] + worse
    return _preference(row | {"prompt": None, "chosen": turns, "rejected": worse})


def _preference(row: Row) -> Row:
    """Where both sides repeat the conversation, the prompt ends with the last turn that they share."""
    prompt = [] if is_nothing(row.get("prompt")) else _prompt(row)
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


def _prompt_only(row: Row) -> Row:
    turns = _with_system(row, _prompt(row))
    return {"prompt": turns, "tools": _tools_of(row, turns)}


def _kto(row: Row) -> Row:
    """A row that `kto.Pairs` has joined with the worse answer to its prompt."""
    prompt, answer, tools = _prompt_and_answer(row)
    if label_of(row, of_kto=True) is None:
        raise RowError("label is neither true nor false")
    if ALONE in row:
        raise LeftOut(row[ALONE])
    return _preference({"prompt": prompt, "chosen": answer, "rejected": row.get(WORSE), "tools": tools})


def labelled(row: Row) -> Labelled:
    """What `kto.Pairs` needs of a row, given under its schema's names.

    Raises:
        RowError: it cannot be used.
    """
    prompt, answer, tools = _prompt_and_answer(row)
    refuse_left_out(row, "kto", "dpo")
    if (is_good := label_of(row, of_kto=True)) is None:
        raise RowError("label is neither true nor false")
    return Labelled(json.dumps([prompt, tools], sort_keys=True, default=str), answer, is_good)


def _prompt_and_answer(row: Row) -> tuple[list[Message], list[Message], str | None]:
    columns = [name for name, value in row.items() if value is not None]
    schema = detect_schema(columns, "sft")
    if schema is None:
        raise RowError("no prompt and answer beside the label")
    chat = SCHEMAS[schema].convert(row | {name: row[other] for name, other in spellings(columns, schema).items()})
    messages = _conversation(chat["messages"], last=("assistant",))
    return messages[:-1], messages[-1:], chat["tools"]


@dataclass(frozen=True)
class Schema:
    """One row format: the kind of row that it becomes, the columns that it needs, and the converter."""

    kind: str
    columns: tuple[str, ...]
    convert: Callable[[Row], Row]


SCHEMAS = {
    "text": Schema("text", ("text",), lambda row: {"text": row.get("text")}),
    # `role` and `content`, or ShareGPT's `from` and `value`; tools as a list or JSON, in the row or on a turn.
    "messages": Schema("chat", ("messages",), _in_column("messages")),
    "conversations": Schema("chat", ("conversations",), _in_column("conversations")),
    # A blank line before the input; the history is a list of [instruction, output] pairs.
    "alpaca": Schema(
        "chat", ("instruction", "output"), lambda row: _answered(row, _asked(row, "instruction"), row.get("output"))
    ),
    # Such as GSM8K.
    "qa": Schema("chat", ("question", "answer"), lambda row: _answered(row, _text(row, "question"), row.get("answer"))),
    # TRL's; each side is text or messages.
    "prompt_completion": Schema("chat", ("prompt", "completion"), _prompt_completion),
    # xLAM's function calling; the answers are calls as JSON.
    "xlam": Schema("chat", ("query", "answers", "tools"), _xlam),
    # Glaive's function calling: a text of `USER:`, `ASSISTANT:` and `FUNCTION RESPONSE:`, functions in the system text.
    "glaive": Schema("chat", ("chat",), _glaive),
    # Each side is text or messages.
    "preference": Schema("pair", ("chosen", "rejected"), _preference),
    # ms-swift's pairs; the better answer is the last of the messages.
    "rejected_response": Schema("pair", ("messages", "rejected_response"), _rejected_response),
    # Any chat row with a label.
    "kto": Schema("pair", ("label",), _kto),
    "prompt": Schema("prompt", ("prompt",), _prompt_only),
}


def detect_schema(columns: list[str], phase: str) -> str | None:
    """The schema of a phase that fits columns best."""
    return next(iter(fitting_schemas(columns, phase)), None)


def fitting_schemas(columns: list[str], phase: str) -> list[str]:
    """The schemas of a phase whose columns are there, in any spelling; the best match comes first."""
    names = [name for name in PHASES[phase][1] if not missing_columns(columns, name)]
    other = {name: len(set(SCHEMAS[name].columns) - set(columns)) for name in names}
    own = {name: len(SCHEMAS[name].columns) - other[name] for name in names}
    return sorted(names, key=lambda name: (other[name] > 0, -own[name] if other[name] else 0))


def known_columns(schema: str) -> tuple[str, ...]:
    """The columns that a schema reads, needed or not."""
    return (*SCHEMAS[schema].columns, *_OPTIONAL.get(schema, ()))


def missing_columns(columns: list[str], schema: str) -> list[str]:
    """The columns of a schema that rows with `columns` have in no spelling."""
    missing = [name for name in SCHEMAS[schema].columns if not {name, *_SPELLINGS.get(name, ())} & set(columns)]
    if schema == "kto" and not missing:
        is_pair = any(not missing_columns(columns, name) for name in ("preference", "rejected_response"))
        return ["completion"] if is_pair or not detect_schema(columns, "sft") else []
    return missing


def spellings(columns: list[str], schema: str) -> dict[str, str]:
    """{schema's name: the row's name} of columns in another spelling."""
    missing = [name for name in known_columns(schema) if name not in columns]
    found = ((name, next((other for other in _SPELLINGS.get(name, ()) if other in columns), None)) for name in missing)
    return {name: other for name, other in found if other}


def label_of(row: Row, of_kto: bool = False) -> bool | None:
    """Whether a row's answer is labelled as a good one; None without a label.

    A number is a label in a source `of_kto` and beside messages or a completion; elsewhere it is more often a class.
    """
    for name in _LABELS:
        value = row.get(name)
        if isinstance(value, str):
            value = _LABEL_WORDS.get(value.strip().lower(), value)
        if isinstance(value, bool):
            return value
        numbers = name == "kto_tag" or any(column in row for column in ("completion", "messages", "conversations"))
        if (of_kto or numbers) and isinstance(value, int | float) and value in (0, 1):
            return bool(value)
    return None


def refuse_left_out(row: Row, schema: str, phase: str) -> None:
    """Raise `LeftOut` for a row, under its schema's names, with a bad answer, or with images or sound."""
    if SCHEMAS[schema].kind == "text":
        return
    if found := next((name for name in _MEDIA if name in row and _is_medium(row[name])), None):
        raise LeftOut(f"has {found}, which a text model cannot see")
    if PHASES[phase][0] in ("text", "messages") and label_of(row) is False:
        raise LeftOut("label is false: a bad answer, to learn from in phase dpo")


def _is_medium(value: Any) -> bool:
    """Whether a field holds an image or the like: not a flag, a number or something empty."""
    if isinstance(value, list | dict):
        return any(map(_is_medium, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, bool | int | float) and not is_nothing(value)


def read_keys(schema: str) -> set[str]:
    """The keys of a row that a schema reads, in any spelling."""
    kind = SCHEMAS[schema].kind
    names = {*known_columns(schema)}
    if schema == "kto":  # any chat row
        chats = (name for chat in _CHATS for name in known_columns(chat))
        names |= {spelt for name in chats for spelt in (name, *_SPELLINGS.get(name, ()))} | {*REASONINGS}
    if kind != "text":
        names |= {*TOOLS, *_MEDIA, *_LABELS, "system_prompt", ALONE, WORSE}
    return names | ({*REASONINGS} if schema in _ONE_ANSWER else set())


def unread_keys(row: Row, read: set[str]) -> list[str]:
    """The keys of a row that have a value and are not used; those of its turns as `messages[].key`.

    Args:
        row: under its schema's names.
        read: the keys that are used; a label counts as used only if it says good or bad.
    """
    unread = row.keys() - read
    unread |= {name for name in REASONINGS if name in row and not is_reasoning(row[name])}
    unread |= {name for name in _LABELS if name in row and label_of(row) is None}
    unread = {name for name in unread if not is_nothing(row[name])}
    for column in row.keys() & read:
        if column in _TURN_COLUMNS and isinstance(row[column], list | dict | str):
            unread |= {f"{column}[].{key}" for turn in _turns_in(row[column]) for key in unread_turn_keys(turn)}
    return sorted(unread)


def to_phase(row: Row, kind: str, phase: str) -> Row:
    """A converted row in the columns of a phase; contents, roles and their order are checked.

    A conversation in a text phase stays `{"messages", "tools"}`, for the chat template to render. A message that is not
    trained has `train: False`.

    Raises:
        RowError: the row cannot be trained on.
    """
    columns, _ = PHASES[phase]
    if kind == "text":
        if not isinstance(row["text"], str) or not row["text"].strip():
            raise RowError("empty text" if not row["text"] or isinstance(row["text"], str) else "text is no string")
        if stored_turns(row["text"], "text"):
            raise RowError("text holds messages as JSON: set schema: messages and fields: {messages: text}")
        return row
    tools = {"tools": row.get("tools")}
    if kind == "pair" and columns == "pair":
        return _pair(row) | tools
    if columns == "prompt":
        return {"prompt": _without_flags(_conversation(_without_answer(row), last=("user", "tool")))} | tools
    messages = _conversation(row["messages"], last=("assistant",))
    if all(turn.get("train") is False for turn in messages if turn["role"] == "assistant"):
        raise LeftOut("no turn of the assistant is to be trained (loss, weight, train)")
    return {"messages": messages} | tools


def plain_text(row: Row) -> str:
    """All text in a row of any phase: its text, or reasoning, contents and tool calls, line by line."""
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
    if any(turn.get("train") is False for side in sides.values() for turn in side):
        raise RowError("a turn of chosen or rejected says that it is not trained (loss, weight, train)")
    if sides["chosen"] == sides["rejected"]:
        raise RowError("chosen equals rejected")
    return {"prompt": _without_flags(prompt), **sides}


def _without_flags(prompt: list[Message]) -> list[Message]:
    """A prompt without `train` flags: no prompt is trained."""
    return [{name: value for name, value in turn.items() if name != "train"} for turn in prompt]


def _without_answer(row: Row) -> list[Message]:
    """The turns before the answer; in upstream's RL rows it is a dummy."""
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
    """Upstream puts the tools on an empty system turn."""
    content = turn.get("content") or ""
    return turn["role"] == "system" and isinstance(content, str) and not content.strip()


def _message(turn: Message) -> Message:
    role, content = turn["role"], turn.get("content")
    if role not in ROLES:
        raise RowError(f"unknown role {role!r:.20}")
    reasoning, calls = turn.get("reasoning_content"), turn.get("tool_calls")
    calls = [tool_call(call) for call in calls] if calls else None
    if content is None and calls:
        content = ""
    if not isinstance(content, str) or not (content.strip() or calls):
        raise RowError(f"empty {role} message" if not content or isinstance(content, str) else "content is no string")
    if role in ("system", "user") and _is_placeholder(content):
        raise LeftOut("has an image, video or sound in its text, which a text model cannot see")
    message = {"role": role, "content": content, "reasoning_content": reasoning, "tool_calls": calls}
    return message | ({"train": False} if turn.get("train") is False else {})


def _is_placeholder(content: str) -> bool:
    """Whether a text has a placeholder such as `<image>`, but neither as XML (with an end tag) nor in backticks."""
    found = _PLACEHOLDER.search(content)
    return bool(found) and "</image>" not in content.lower() and "`" not in content


def _chat(row: Row, turns: list[Message]) -> Row:
    return {"messages": _with_system(row, turns), "tools": _tools_of(row, turns)}


def _tools_of(row: Row, turns: list[Message]) -> str | None:
    """The row's tools, or those of a turn, where upstream puts them."""
    given = [*(row[name] for name in TOOLS if name in row), *(turn["tools"] for turn in turns if "tools" in turn)]
    found = {tools_json(tools): None for tools in given if not is_nothing(tools)}
    if len(found) > 1:
        raise RowError("two different lists of tools")
    return next(iter(found), None)


def _answered(row: Row, prompt: str, answer: Any, calls: list | None = None) -> Row:
    """A conversation of a question and an answer; each may be messages stored as text."""
    asked = stored_turns(prompt, "the question") or [{"role": "user", "content": prompt}]
    answered = stored_turns(answer, "the answer") if isinstance(answer, str) else None
    if not answered:
        reasoning = reasoning_of(row)
        answered = [{"role": "assistant", "content": answer, "tool_calls": calls, "reasoning_content": reasoning}]
    return _chat(row, _history(row) + read_turns(asked + answered, "answer"))


def _history(row: Row) -> list[Message]:
    pairs = [] if is_nothing(row.get("history")) else row["history"]
    if isinstance(pairs, str):
        pairs = loaded_list(pairs, "history")
    if pairs and isinstance(pairs, list) and all(isinstance(turn, dict) for turn in pairs):
        return read_turns(pairs, "history")
    if not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise RowError("history is not a list of pairs")
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]


def _joined_turns(prompt: list[Message], repeated: list[Message]) -> list[Message]:
    """The prompt with the turns that both sides share: the whole conversation, its end, or what follows the prompt."""
    ends = (prompt[start:] for start in range(len(prompt)))
    if again := next((end for end in ends if repeated[: len(end)] == end), None):
        return prompt[: len(prompt) - len(again)] + repeated
    if len(prompt) == 1 and repeated and repeated[0]["role"] != "assistant":
        asked, *known = (str(turn.get("content")).strip() for turn in prompt + repeated)
        return repeated if asked in known else prompt + repeated  # orpo-dpo-mix has one turn as the prompt
    return prompt + repeated


def _with_system(row: Row, turns: list[Message]) -> list[Message]:
    """The row's system text before the turns; their own system turn is appended to it after a blank line."""
    system = next((row[name] for name in ("system", "system_prompt") if not is_nothing(row.get(name))), None)
    if system is None:
        return turns
    if not isinstance(system, str):
        raise RowError("system is no string")
    if not turns or turns[0]["role"] != "system":
        return [{"role": "system", "content": system}, *turns]
    own = turns[0].get("content") or ""
    if not isinstance(own, str):
        raise RowError("content is no string")
    if own.strip() == system.strip():
        return turns
    return [turns[0] | {"content": f"{system}\n\n{own}" if own.strip() else system}, *turns[1:]]


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
    """The history and the prompt."""
    if row.get("instruction") and row["instruction"] == row.get("prompt"):
        return [*_history(row), {"role": "user", "content": _asked(row, "prompt")}]
    turns = _messages(row, "prompt", "user")
    # A transcript may end with an empty "Assistant:"; whole messages may include the answer.
    is_whole = row["prompt"] is row.get("messages") and turns[-1]["role"] == "assistant" and "chosen" in row
    is_asking = turns[-1] == {"role": "assistant", "content": ""}
    return _history(row) + (turns[:-1] if is_whole or is_asking else turns)


def _messages(row: Row, column: str, role: str) -> list[Message]:
    """The turns of a column: messages, their JSON or Python text, or the text of one turn of `role`."""
    value = row.get(column)
    if isinstance(value, dict | list):
        turns = read_turns(value, column)
    else:
        text = _text(row, column)
        turns = stored_turns(text, column) or [{"role": role, "content": text}]
    reasoning = reasoning_of(row) if column == "completion" else None
    if reasoning and turns[-1]["role"] == "assistant" and not turns[-1].get("reasoning_content"):
        turns[-1] = turns[-1] | {"reasoning_content": reasoning}
    return turns


def _turns_in(value: list | dict | str) -> list[Message]:
    """The turns of a column, unchecked, stored as text or not."""
    if isinstance(value, str):
        if not value.lstrip().startswith(("[", "{")):
            return []
        try:
            value = loaded(value)
        except ValueError:
            return []
    if isinstance(value, dict):
        value = one_by_one(value)
    return [turn for turn in value if isinstance(turn, dict)] if isinstance(value, list) else []


_PLACEHOLDER = re.compile(
    r"<\|?image(?:[ _]?\d+)?(?:_pad)?\|?>|^\s*<\|?(?:video|audio|speech)(?:_\d+)?\|?>", re.IGNORECASE
)
_LABEL_WORDS = {
    **dict.fromkeys(("true", "yes", "good", "desirable", "chosen", "positive"), True),
    **dict.fromkeys(("false", "no", "bad", "undesirable", "rejected", "negative"), False),
}
