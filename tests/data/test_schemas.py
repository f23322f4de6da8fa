"""What users' rows look like, and what becomes of them."""

import json

import pytest

from minimind_trl.data.config import Source
from minimind_trl.data.rows import RowConverter
from minimind_trl.errors import MixtureError
from minimind_trl.tokenization import tiny_tokenizer
from tests.conftest import REPOSITORY

REAL = REPOSITORY.parent / "shared" / "data" / "real" / "hh_rlhf.jsonl"
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]


def convert(row, phase, tokenizer=None, **source):
    """The row in the columns of a phase, without what is null; or why it is dropped."""
    source = Source(name="rows", source="rows.jsonl", **source)
    converter = RowConverter(source, phase, list(row), "rows.jsonl, line 1", tokenizer)
    [traced] = converter.trace([row])
    if traced.reason:
        return traced.reason
    short = ("messages", "prompt", "chosen", "rejected")
    return {
        name: [{key: part for key, part in turn.items() if part is not None} for turn in value]
        if name in short
        else value
        for name, value in traced.trained.items()
        if value is not None
    }


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def tool(text):
    return {"role": "tool", "content": text}


def said(sender, text):
    return {"from": sender, "value": text}


SHORT = [user("q"), assistant("a")]
CALL = {"name": "weather", "arguments": {"city": "Rome"}}
STORED_CALL = {"name": "weather", "arguments": '{"city": "Rome"}'}
CALLED = [user("q"), assistant("", tool_calls=[STORED_CALL]), tool("sunny"), assistant("a")]

CHATS = {
    "messages": ({"messages": SHORT}, SHORT),
    "messages with a system turn": ({"messages": [system("s"), *SHORT]}, [system("s"), *SHORT]),
    "messages beside a system column": ({"system": "s", "messages": SHORT}, [system("s"), *SHORT]),
    "an empty system turn": ({"messages": [system(" "), *SHORT]}, SHORT),
    "nulls as Parquet has them": (
        {"messages": [user("q") | {"tool_calls": None, "reasoning_content": None}, assistant("a")], "tools": None},
        SHORT,
    ),
    "content in parts": (
        {"messages": [user([{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]), assistant("a")]},
        [user("one two"), assistant("a")],
    ),
    "a system turn in parts": ({"messages": [system([{"type": "text", "text": ""}]), *SHORT]}, SHORT),
    "names of roles": (
        {"messages": [{"role": "developer", "content": "s"}, {"role": "Human", "content": "q"}, assistant("a")]},
        [system("s"), *SHORT],
    ),
    "tool calls of OpenAI": (
        {"messages": [user("q"), assistant(None, tool_calls=[{"type": "function", "function": CALL}]), *CALLED[2:]]},
        CALLED,
    ),
    "arguments as JSON": (
        {"messages": [user("q"), assistant("", tool_calls=[{"function": STORED_CALL}]), *CALLED[2:]]},
        CALLED,
    ),
    "a call without arguments": (
        {"messages": [user("q"), assistant("", tool_calls=[{"name": "now", "arguments": None}])]},
        [user("q"), assistant("", tool_calls=[{"name": "now", "arguments": "{}"}])],
    ),
    "MiniMind": ({"conversations": SHORT}, SHORT),
    "MiniMind, with reasoning": (
        {"conversations": [user("q"), assistant("a", reasoning_content="r")]},
        [user("q"), assistant("a", reasoning_content="r")],
    ),
    "MiniMind, with tools": (
        {
            "conversations": [
                system("") | {"tools": json.dumps(TOOLS)},
                user("q"),
                assistant("", tool_calls=json.dumps([CALL])),
                *CALLED[2:],
            ]
        },
        CALLED,
    ),
    "ShareGPT": ({"conversations": [said("human", "q"), said("gpt", "a")]}, SHORT),
    "ShareGPT with a system turn": (
        {"conversations": [said("system", "s"), said("human", "q"), said("gpt", "a")], "id": 1},
        [system("s"), *SHORT],
    ),
    "ShareGPT beside a system column": (
        {"system": "s", "conversations": [said("user", "q"), said("assistant", "a")]},
        [system("s"), *SHORT],
    ),
    "ShareGPT with a call": (
        {
            "conversations": [
                said("human", "q"),
                said("function_call", json.dumps(CALL)),
                said("observation", "sunny"),
                said("gpt", "a"),
            ]
        },
        CALLED,
    ),
    "ShareGPT with a list of calls": (
        {"conversations": [said("human", "q"), said("function_call", json.dumps([CALL, CALL]))]},
        [user("q"), assistant("", tool_calls=[STORED_CALL, STORED_CALL])],
    ),
    "both spellings in one table": (
        {"conversations": [said("human", "q") | {"role": None}, said("gpt", "a") | {"role": None, "content": None}]},
        SHORT,
    ),
    "LMSYS": ({"conversation": SHORT, "model": "m"}, SHORT),
    "Alpaca": ({"instruction": "q", "input": "", "output": "a"}, SHORT),
    "Alpaca without the column": ({"instruction": "q", "output": "a"}, SHORT),
    "Alpaca with an input": (
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        [user("Add.\n\n1 2"), assistant("3")],
    ),
    "Alpaca with a system prompt": (
        {"system": "s", "instruction": "q", "input": None, "output": "a"},
        [system("s"), *SHORT],
    ),
    "Alpaca with a history": (
        {"instruction": "q2", "input": "", "output": "a2", "history": [["q", "a"]]},
        [*SHORT, user("q2"), assistant("a2")],
    ),
    "Dolly": (
        {"instruction": "q", "context": "c", "response": "a", "category": "open_qa"},
        [user("q\n\nc"), assistant("a")],
    ),
    "GSM8K": (
        {"question": "q", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"},
        [user("q"), assistant("1 + 1 = <<1+1=2>>2\n#### 2")],
    ),
    "OpenOrca": ({"id": "1", "system_prompt": "s", "question": "q", "response": "a"}, [system("s"), *SHORT]),
    "MetaMath": ({"query": "q", "response": "a", "type": "GSM"}, SHORT),
    "Magicoder": ({"problem": "q", "solution": "a", "lang": "python"}, SHORT),
    "prompt and completion": ({"prompt": "q", "completion": "a"}, SHORT),
    "prompt and completion as messages": ({"prompt": [user("q")], "completion": [assistant("a")]}, SHORT),
    "prompt and response": ({"prompt": "q", "response": "a"}, SHORT),
    "input and output": ({"input": "q", "output": "a"}, SHORT),
}


@pytest.mark.parametrize("phase", ["sft", "distill"])
@pytest.mark.parametrize("name", CHATS)
def test_chats(name, phase):
    row, messages = CHATS[name]
    converted = convert(row, phase)
    assert isinstance(converted, dict), converted
    assert converted["messages"] == messages
    assert json.loads(converted.get("tools", "null")) == (TOOLS if name == "MiniMind, with tools" else None)


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_tools_stand_beside_the_messages_or_on_a_turn(column, tools):
    hung = [system("") | {"tools": tools}, *SHORT]
    for row in ({column: SHORT, "tools": tools}, {column: hung}):
        converted = convert(row, "sft")
        assert json.loads(converted["tools"]) == TOOLS and converted["messages"] == SHORT


@pytest.mark.parametrize("tools", [None, "", [], "[]"])
def test_no_tools(tools):
    assert convert({"messages": SHORT, "tools": tools}, "sft") == {"messages": SHORT}


ANSWERS = {"chosen": [assistant("good")], "rejected": [assistant("bad")]}
ASKED = {"prompt": [user("q")], **ANSWERS}
LONG = [user("q1"), assistant("a1"), user("q2")]


def transcript(*turns):
    names = ("Human", "Assistant")
    return "".join(f"\n\n{names[place % 2]}: {turn}" for place, turn in enumerate(turns))


PAIRS = {
    "HH-RLHF": ({"chosen": transcript("q", "good"), "rejected": transcript("q", "bad")}, ASKED),
    "HH-RLHF of several turns": (
        {"chosen": transcript("q1", "a1", "q2", "good"), "rejected": transcript("q1", "a1", "q2", "bad")},
        {"prompt": LONG, **ANSWERS},
    ),
    "HH-RLHF that part early": (
        {"chosen": transcript("q", "good"), "rejected": transcript("q", "bad", "What?", "worse")},
        ASKED | {"rejected": [assistant("bad"), user("What?"), assistant("worse")]},
    ),
    "HH-RLHF with names inside a line": (
        {
            "chosen": transcript("Say Human: or\nHuman: please", "good"),
            "rejected": transcript("Say Human: or\nHuman: please", "bad"),
        },
        ASKED | {"prompt": [user("Say Human: or\nHuman: please")]},
    ),
    "HH-RLHF with white space": (
        {"chosen": transcript("q ", "good \n"), "rejected": transcript("q", "bad\n\n")},
        ASKED,
    ),
    "HH-RLHF with the prompt apart": (
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " good", "rejected": " bad"},
        {"prompt": [user("q")], "chosen": [assistant(" good")], "rejected": [assistant(" bad")]},
    ),
    "texts": ({"prompt": "q", "chosen": "good", "rejected": "bad"}, ASKED),
    "messages": (ASKED, ASKED),
    "a prompt of several turns": ({"prompt": LONG, **ANSWERS}, {"prompt": LONG, **ANSWERS}),
    "a prompt and texts": ({"prompt": LONG, "chosen": "good", "rejected": "bad"}, {"prompt": LONG, **ANSWERS}),
    "MiniMind": ({"chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]}, ASKED),
    "UltraFeedback": (
        {
            "prompt": "q",
            "chosen": [user("q"), assistant("good")],
            "rejected": [user("q"), assistant("bad")],
            "messages": [user("q"), assistant("good")],
            "score_chosen": 8.0,
        },
        ASKED,
    ),
    "UltraFeedback with other white space": (
        {"prompt": "q\n", "chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]},
        ASKED,
    ),
    "a prompt that is one turn of several": (
        {"prompt": "q1", "chosen": [*LONG, assistant("good")], "rejected": [*LONG, assistant("bad")]},
        {"prompt": LONG, **ANSWERS},
    ),
    "a prompt that is the last of several turns": (
        {"prompt": "q2", "chosen": [*LONG, assistant("good")], "rejected": [*LONG, assistant("bad")]},
        {"prompt": LONG, **ANSWERS},
    ),
    "a prompt with the system turn that its sides lack": (
        {
            "prompt": [system("s"), user("q")],
            "chosen": [user("q"), assistant("good")],
            "rejected": [user("q"), assistant("bad")],
        },
        ASKED | {"prompt": [system("s"), user("q")]},
    ),
    "a prompt that its sides continue": (
        {
            "prompt": "q1",
            "chosen": [assistant("a1"), user("q2"), assistant("good")],
            "rejected": [assistant("a1"), user("q2"), assistant("bad")],
        },
        {"prompt": LONG, **ANSWERS},
    ),
    "Orca": (
        {"system": "s", "question": "q", "chosen": "good", "rejected": "bad"},
        ASKED | {"prompt": [system("s"), user("q")]},
    ),
    "Orca without a system prompt": ({"system": "", "question": "q", "chosen": "good", "rejected": "bad"}, ASKED),
    "Alpaca": (
        {"instruction": "q", "input": "i", "chosen": "good", "rejected": "bad"},
        ASKED | {"prompt": [user("q\n\ni")]},
    ),
    "LLaMA-Factory": (
        {"conversations": [said("human", "q")], "chosen": said("gpt", "good"), "rejected": said("gpt", "bad")},
        ASKED,
    ),
    "StackExchange": ({"question": "q", "response_j": "good", "response_k": "bad"}, ASKED),
    **{
        f"{better} and {worse}": ({"prompt": "q", better: "good", worse: "bad"}, ASKED)
        for better, worse in [
            ("chosen_response", "rejected_response"),
            ("response_chosen", "response_rejected"),
            ("preferred", "dispreferred"),
            ("accepted", "rejected"),
            ("winner", "loser"),
        ]
    },
}


@pytest.mark.parametrize("phase", ["dpo", "reward"])
@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name, phase):
    row, converted = PAIRS[name]
    assert convert(row, phase) == converted


PROMPTS = {
    "text": ({"prompt": "q"}, [user("q")]),
    "messages": ({"prompt": LONG}, LONG),
    "with a system prompt": ({"system": "s", "prompt": "q"}, [system("s"), user("q")]),
    "a dummy answer": ({"conversations": [user("q"), assistant("空")]}, [user("q")]),
    "an empty dummy answer": ({"conversations": [user("q"), assistant("")]}, [user("q")]),
    "the last of several answers": ({"conversations": [*LONG, assistant("")]}, LONG),
    "no answer": ({"messages": LONG}, LONG),
    "question and answer": ({"question": "q", "solution": "2"}, [user("q")]),
    "Alpaca": ({"instruction": "q", "input": "i", "output": "a"}, [user("q\n\ni")]),
    "Alpaca without an answer": ({"instruction": "q", "input": "i"}, [user("q\n\ni")]),
    "a pair": ({"chosen": transcript("q", "good"), "rejected": transcript("q", "bad")}, [user("q")]),
    "after a tool": ({"messages": [user("q"), *CALLED[1:3]]}, [user("q"), *CALLED[1:3]]),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts(name):
    row, prompt = PROMPTS[name]
    assert convert(row, "rlaif")["prompt"] == prompt


def test_what_checks_an_answer_stays_beside_the_prompt():
    row = {"conversations": [system("") | {"tools": json.dumps(TOOLS)}, user("q"), assistant("")], "gt": ["2", "4"]}
    converted = convert(row, "rlaif")
    assert converted == {"prompt": [user("q")], "tools": json.dumps(TOOLS), "gt": ["2", "4"]}
    assert convert({"question": "q", "answer": "#### 2"}, "rlaif") == {"prompt": [user("q")], "answer": "#### 2"}


@pytest.mark.parametrize("phase", ["pretrain", "midtrain"])
def test_texts(phase):
    assert convert({"text": "Once upon a time", "id": 7}, phase) == {"text": "Once upon a time"}
    assert convert({"content": "x = 1"}, phase, text_field="content") == {"text": "x = 1"}


@pytest.mark.parametrize("row", [CHATS[name][0] for name in ("messages", "ShareGPT", "Alpaca", "GSM8K")])
def test_chats_become_texts_by_the_chat_template(row):
    converted = convert(row, "pretrain", tiny_tokenizer())
    assert converted["text"].startswith("<|im_start|>user\n") and converted["text"].endswith("<|im_end|>\n")


def test_fields_reach_inside():
    row = {"data": {"ask": "q", "meta": {"reply": "a"}}, "data.flat": "f"}
    fields = {"question": "data.ask", "answer": "data.meta.reply"}
    assert convert(row, "sft", fields=fields) == {"messages": SHORT}
    assert convert(row, "sft", fields=fields | {"answer": "data.flat"}) == {"messages": [user("q"), assistant("f")]}
    assert convert(row, "sft", fields=fields | {"answer": "data.meta.nothing"}) == (
        "nothing in column 'data.meta.nothing'"
    )


def test_fields_go_before_other_spellings():
    row = {"prompt": "p", "question": "q", "chosen": "good", "rejected": "bad"}
    assert convert(row, "dpo", fields={"prompt": "question"}) == ASKED


REASONS = [
    ("pretrain", {"text": " \n"}, "empty text"),
    ("pretrain", {"text": 5}, "text is no string"),
    ("pretrain", {"text": "half of \ud83d"}, "text is not valid Unicode (half of a surrogate pair)"),
    ("pretrain", {"text": "x" * 8_000_001}, "over 8 MB of text"),
    ("sft", {"messages": []}, "no messages"),
    ("sft", {"conversations": None}, "no conversations"),
    ("sft", {"messages": ["q", "a"]}, "messages: not a list of objects"),
    ("sft", {"messages": "q"}, "messages: not a list of objects"),
    ("sft", {"messages": [{"content": "q"}, assistant("a")]}, "a message without a role"),
    ("sft", {"messages": [system("")]}, "no messages"),
    ("sft", {"messages": [{"role": "bear", "content": "q"}, assistant("a")]}, "unknown role 'bear'"),
    ("sft", {"messages": [user(""), assistant("a")]}, "empty user message"),
    ("sft", {"messages": [user("q"), assistant(" ")]}, "empty assistant message"),
    ("sft", {"messages": [user("q"), assistant(None)]}, "empty assistant message"),
    ("sft", {"messages": [user(5), assistant("a")]}, "content is no string"),
    ("sft", {"messages": [user([{"type": "image"}]), assistant("a")]}, "content has parts that are not text"),
    ("sft", {"messages": [user("q"), assistant("a", reasoning_content=1)]}, "reasoning_content is no string"),
    ("sft", {"messages": [user("q")]}, "last message is not the assistant's"),
    ("sft", {"messages": [assistant("a")]}, "roles in wrong order: assistant after start"),
    ("sft", {"messages": [user("q"), user("q")]}, "roles in wrong order: user after user"),
    ("sft", {"messages": [user("q"), system("s"), assistant("a")]}, "roles in wrong order: system after user"),
    ("sft", {"messages": [user("q"), assistant("", tool_calls="[")]}, "tool_calls is not JSON"),
    ("sft", {"messages": [user("q"), assistant("", tool_calls="[" * 100_000)]}, "tool_calls is not JSON"),
    ("sft", {"messages": [user("q"), assistant("", tool_calls='{"name": "f"}')]}, "tool_calls is not a list"),
    ("sft", {"messages": [user("q"), assistant("", tool_calls=[{}])]}, "a tool call without a name"),
    ("sft", {"messages": [user("q"), assistant("", tool_calls=[{"function": "f"}])]}, "a tool call without a name"),
    ("sft", {"messages": SHORT, "tools": "{"}, "tools is not JSON"),
    ("sft", {"messages": SHORT, "tools": {"name": "f"}}, "tools is not a list"),
    ("sft", {"conversations": [said("human", "q"), said("function_call", "?")]}, "function_call is not JSON"),
    ("sft", {"instruction": "", "output": "a"}, "empty instruction"),
    ("sft", {"instruction": 5, "output": "a"}, "instruction is no string"),
    ("sft", {"instruction": "q", "input": 5, "output": "a"}, "input is no string"),
    ("sft", {"instruction": "q", "output": "a", "history": ["q"]}, "history is not a list of pairs"),
    ("sft", {"question": "q", "answer": None}, "empty assistant message"),
    ("dpo", {"prompt": "q", "chosen": "a", "rejected": "a"}, "chosen equals rejected"),
    ("dpo", {"prompt": "q", "chosen": "", "rejected": "a"}, "empty chosen"),
    ("dpo", {"prompt": "q", "chosen": "a", "rejected": None}, "empty rejected"),
    ("dpo", {"chosen": "a", "rejected": "b"}, "no prompt"),
    (
        "dpo",
        {"chosen": transcript("q", "a"), "rejected": transcript("other", "a")},
        "chosen and rejected part before the assistant's turn",
    ),
    (
        "dpo",
        {"chosen": transcript("q", "a"), "rejected": transcript("q", "a", "q2", "a2")},
        "one of chosen and rejected is the beginning of the other",
    ),
    ("rlaif", {"prompt": [user("q"), assistant("a")]}, "last message is the assistant's"),
    ("rlaif", {"conversations": [assistant("")]}, "no messages"),
]


@pytest.mark.parametrize(("phase", "row", "reason"), REASONS)
def test_why_rows_are_dropped(phase, row, reason):
    assert convert(row, phase) == reason


def test_a_row_of_another_schema_stops_the_source_unless_the_schema_is_set():
    table = {"messages": None, "instruction": None, "output": None}
    first, other = table | {"instruction": "q", "output": "a"}, table | {"messages": SHORT}
    filled = ["instruction", "output"]
    for schema in (None, "alpaca"):
        source = Source(name="rows", source="rows.parquet", schema=schema)
        converter = RowConverter(source, "sft", list(table), "rows.parquet, row 1", filled=filled)
        used, dropped = converter.trace([first, other])
        assert converter.schema == "alpaca" and used.reason is None and dropped.unusable
        if schema is None:
            with pytest.raises(MixtureError, match=r"row 2: a row of schema 'messages' .* is of schema 'alpaca'"):
                converter.refuse_other_schema(dropped, "rows.parquet, row 2")
        converter.refuse_other_schema(used, "rows.parquet, row 1")


def test_a_missing_value_of_a_row_with_two_schemas_is_not_another_schema():
    first = {"problem": "q", "solution": "a", "messages": SHORT}
    converter = RowConverter(Source(name="rows", source="rows.jsonl"), "sft", list(first), "rows.jsonl, line 1")
    [traced] = converter.trace([first | {"messages": None}])
    assert traced.reason == "no messages" and traced.other_schema is None


@pytest.mark.skipif(not REAL.is_file(), reason="shared/data/real/hh_rlhf.jsonl is not at hand")
def test_real_preferences_are_split_at_the_last_common_turn():
    rows = [json.loads(line) for line in REAL.read_text(encoding="utf-8").splitlines()]
    converted = [convert(row, "dpo") for row in rows]
    kept = [(row, pair) for row, pair in zip(rows, converted, strict=True) if isinstance(pair, dict)]
    assert len(kept) > 0.95 * len(rows)
    for row, pair in kept:
        assert pair["chosen"] != pair["rejected"] and pair["prompt"][-1]["role"] == "user"
        assert len(pair["prompt"] + pair["chosen"]) == row["chosen"].count("\n\nHuman:") + row["chosen"].count(
            "\n\nAssistant:"
        )
    several = [row for row in rows if row["chosen"].count("\n\nHuman:") > 1]
    assert not several or any(len(pair["prompt"]) > 1 for _, pair in kept)


def test_a_sources_tools_are_offered_to_rows_that_bring_none():
    named = {"tools": ["calculator", "unit_convert"]}
    row = {"prompt": [user("2*3?")]}
    assert [tool["function"]["name"] for tool in json.loads(convert(row, "rlaif", **named)["tools"])] == named["tools"]
    own = json.dumps(TOOLS)
    assert json.loads(convert(row | {"tools": own}, "rlaif", **named)["tools"]) == TOOLS
    chat = convert({"messages": SHORT}, "sft", tiny_tokenizer(), tools="calculator")
    assert '"name": "calculator"' in chat["tools"]


def test_tools_that_are_not_there_and_rows_without_a_place_for_them_are_refused():
    with pytest.raises(ValueError, match=r"tools calculater: no such tool; did you mean 'calculator'\?"):
        convert({"messages": SHORT}, "sft", tools=["calculater"])
    with pytest.raises(MixtureError, match=r"datasets.rows.tools: its rows are plain text, which has no tools"):
        convert({"text": "x"}, "pretrain", tools=["calculator"])
