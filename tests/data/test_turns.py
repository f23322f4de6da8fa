"""Turns in the spellings that people's files have: what they say is used, or the row is dropped for a reason."""

import json

import pytest

from minimind_trl.data import DatasetMixer
from minimind_trl.tokenization import tiny_tokenizer
from tests.data.test_schemas import (
    CALL,
    CALLED,
    SHORT,
    STORED_CALL,
    TOOLS,
    assistant,
    convert,
    said,
    system,
    tool,
    user,
)

THOUGHT = [user("q"), assistant("a", reasoning_content="r")]
UNTRAINED = [user("q"), assistant("bad", train=False), user("q2"), assistant("good")]


def turn(sender, content, role="role", text="content", **more):
    return {role: sender, text: content, **more}


def called(*turns, sender="gpt"):
    """A ShareGPT conversation: a question, these turns, what the tool says, the answer."""
    return {"conversations": [said("human", "q"), *turns, said("observation", "sunny"), said(sender, "a")]}


SPELT = {
    "prompter": ([turn("prompter", "q"), assistant("a")], SHORT),
    "speaker and text": ([turn("user", "q", "speaker", "text"), turn("assistant", "a", "speaker", "text")], SHORT),
    "author and message": ([turn("User", "q", "author", "message"), turn("AI", "a", "author", "message")], SHORT),
    "sender and text": ([turn("Human", "q", "sender", "text"), turn("Bot", "a", "sender", "text")], SHORT),
    "from and content": ([turn("human", "q", "from"), turn("gpt", "a", "from")], SHORT),
    "role and value": ([turn("user", "q", text="value"), turn("model", "a", text="value")], SHORT),
    "each turn its own": ([turn("human", "q", "from", "value"), turn("assistant", "a", "speaker")], SHORT),
    "a table of both": ([turn("user", "q", value=None), turn(None, None, value="a") | {"from": "gpt"}], SHORT),
    "a table of columns": ({"from": ["human", "gpt"], "value": ["q", "a"]}, SHORT),
    "system_prompt": ([turn("system prompt", "s"), *SHORT], [system("s"), *SHORT]),
    "thinking": ([user("q"), assistant("a", thinking="r")], THOUGHT),
    "reasoning": ([user("q"), assistant("a", reasoning="r")], THOUGHT),
    "thought": ([user("q"), assistant("a", thought="r", reasoning_content=None)], THOUGHT),
    "the same twice": ([user("q"), assistant("a", thinking="r", reasoning_content="r")], THOUGHT),
    "a part that thinks": (
        [user("q"), assistant([{"type": "thinking", "thinking": "r"}, {"type": "text", "text": "a"}])],
        THOUGHT,
    ),
    "a switch is no reasoning": ([user("q"), assistant("a", thinking="off", reasoning=True)], SHORT),
    "what a tool gives as JSON": (
        [*CALLED[:2], tool({"sky": "sunny"}), CALLED[3]],
        [*CALLED[:2], tool('{"sky": "sunny"}'), CALLED[3]],
    ),
    "function_call": ([user("q"), assistant(None, function_call=CALL), tool("sunny"), assistant("a")], CALLED),
    "function_call with JSON in it": ([user("q"), assistant("", function_call=STORED_CALL), *CALLED[2:]], CALLED),
    "function_call as JSON": ([user("q"), assistant("", function_call=json.dumps(CALL)), *CALLED[2:]], CALLED),
    "function_call beside no calls": (
        [user("q"), assistant("", function_call=STORED_CALL, tool_calls=[]), turn("function", "sunny"), CALLED[3]],
        CALLED,
    ),
    "no function_call": ([user("q"), assistant("a", function_call=None, tool_calls="null")], SHORT),
    "function_call and text": (
        [user("q"), assistant("Let me look.", function_call=STORED_CALL), turn("function", "sunny"), assistant("a")],
        [user("q"), assistant("Let me look.", tool_calls=[STORED_CALL]), *CALLED[2:]],
    ),
    "parameters": (
        [user("q"), assistant("", tool_calls=[{"name": "weather", "parameters": CALL["arguments"]}]), *CALLED[2:]],
        CALLED,
    ),
    "calls as JSON each": ([user("q"), assistant("", tool_calls=[json.dumps(CALL)]), *CALLED[2:]], CALLED),
    "calls as Python": ([user("q"), assistant("", tool_calls=str([CALL])), *CALLED[2:]], CALLED),
    "tool_call and tool_response": (
        [user("q"), turn("tool_call", json.dumps(CALL)), turn("tool_response", "sunny"), assistant("a")],
        CALLED,
    ),
    "a tool-call that is an object": (
        [user("q"), turn("tool-call", CALL), turn("tool_result", "sunny"), assistant("a")],
        CALLED,
    ),
    "two tool_calls": (
        [user("q"), *[turn("tool_call", json.dumps(CALL))] * 2, *[turn("tool_response", "sunny")] * 2, assistant("a")],
        [user("q"), assistant("", tool_calls=[STORED_CALL] * 2), tool("sunny"), tool("sunny"), assistant("a")],
    ),
    "text and tool_call": (
        [user("q"), assistant("Let me look."), turn("tool_call", json.dumps(CALL)), *CALLED[2:]],
        [user("q"), assistant("Let me look.", tool_calls=[STORED_CALL]), *CALLED[2:]],
    ),
    **{
        f"{name} {value!r}": ([user("q"), assistant("bad", **{name: value}), user("q2"), assistant("good")], UNTRAINED)
        for name, values in {
            "loss": (False, 0, "false"),
            "weight": (0, 0.0, "0"),
            "train": (False,),
            "training": (False,),
            "loss_weight": (0.0,),
            "train_on_turn": (False,),
            "masked": (True,),
        }.items()
        for value in values
    },
    "a weight on all turns": (
        [user("q") | {"weight": 0}, assistant("a", weight=1)],
        [user("q") | {"train": False}, assistant("a")],
    ),
    "trained turns": ([user("q"), assistant("a", loss=True, weight=1, train=None)], SHORT),
}


@pytest.mark.parametrize("column", ["messages", "conversations"])
@pytest.mark.parametrize("name", SPELT)
def test_spellings(name, column):
    turns, messages = SPELT[name]
    assert convert({column: turns}, "sft") == {"messages": messages}


OBJECT = json.dumps(CALL)
CALLS = {
    "one": OBJECT,
    "Python": str(CALL),
    "a list": f"[{OBJECT}]",
    "in tags": f"<tool_call>\n{OBJECT}\n</tool_call>",
    "an object": CALL,
    "a list of objects": [CALL],
}


@pytest.mark.parametrize("name", CALLS)
def test_a_turn_that_is_calls(name):
    assert convert(called(said("function_call", CALLS[name])), "sft") == {"messages": CALLED}


@pytest.mark.parametrize(
    "text", [f"{OBJECT}, {OBJECT}", f"{OBJECT}\n{OBJECT}", f"[{OBJECT}, {OBJECT}]", f"{CALL}, {CALL}"]
)
def test_several_calls_in_one_turn(text):
    [_, calls, *_] = convert(called(said("function_call", text)), "sft")["messages"]
    assert calls == assistant("", tool_calls=[STORED_CALL, STORED_CALL])


@pytest.mark.parametrize(
    "text", [f"<think>r</think>{OBJECT}", f"<think>\nr\n</think>\n\n[{OBJECT}]", f"r</think>{OBJECT}"]
)
def test_a_call_behind_its_reasoning(text):
    [_, call, *_] = convert(called(said("function_call", text)), "sft")["messages"]
    assert call == assistant("", reasoning_content="r", tool_calls=[STORED_CALL])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "function_call is empty"),
        (" ", "function_call is empty"),
        (None, "function_call is empty"),
        ("[]", "function_call is empty"),
        ("<think>r</think>", "function_call is empty"),
        ("?", "function_call is not JSON"),
        (OBJECT[:-1], "function_call is not JSON"),
        ("7", "a tool call without a name"),
        ('{"name": ""}', "a tool call without a name"),
        ('{"name": "f", "arguments": {}} and then', "function_call is not JSON"),
    ],
)
def test_a_turn_that_is_no_call(content, reason):
    assert convert(called(said("function_call", content)), "sft") == reason


NO_OBJECT = "arguments of a tool call are not a JSON object"


@pytest.mark.parametrize("spelt", ["arguments", "parameters"])
@pytest.mark.parametrize(
    "arguments", ["", " ", "{'city': 'Rome'}", "{'city': 'Rome'", "[1]", "null", "7", [1], 7, True]
)
def test_arguments_that_are_no_json_object(arguments, spelt):
    call = {"name": "f", spelt: arguments}
    for turns in ({"tool_calls": [call]}, {"tool_calls": [{"function": call}]}, {"function_call": call}):
        assert convert({"messages": [user("q"), assistant("", **turns)]}, "sft") == NO_OBJECT


REFUSED = [
    ({"tool_calls": [{"name": 'f"', "arguments": {}}]}, "the name of a tool call has quotes or line breaks"),
    ({"tool_calls": [{"name": "f", "argument": {"a": 1}}]}, "a tool call with 'argument' and no arguments"),
    ({"tool_calls": [CALL], "function_call": CALL}, "a turn with tool_calls and function_call"),
    ({"thinking": "r", "reasoning_content": "s"}, "two different reasonings"),
    ({"thinking": ["r"]}, "reasoning_content is no string"),
    ({"weight": 0.5}, "weight of a turn is neither 0 nor 1"),
    ({"loss": "maybe"}, "loss of a turn is neither 0 nor 1"),
    ({"loss": False, "weight": 1}, "a turn with contrary loss flags"),
    ({"train_detail": [{"begin_offset": 0}]}, "train_detail: a turn is trained whole or not at all"),
    ({"loss": False}, "no turn of the assistant is to be trained (loss, weight, train)"),
]


@pytest.mark.parametrize(("more", "reason"), REFUSED)
def test_what_cannot_be_used_is_a_reason(more, reason):
    assert convert({"messages": [user("q"), assistant("a", **more)]}, "sft") == reason


@pytest.mark.parametrize("spelt", ["tools", "functions", "available_tools"])
@pytest.mark.parametrize("given", [TOOLS, json.dumps(TOOLS), str(TOOLS), [json.dumps(TOOLS[0])]])
def test_tools(given, spelt):
    for row in ({"messages": SHORT, spelt: given}, {"messages": [system("") | {spelt: given}, *SHORT]}):
        converted = convert(row, "sft")
        assert json.loads(converted["tools"]) == TOOLS and converted["messages"] == SHORT


@pytest.mark.parametrize("tools", ["", " ", "\n", "null", "None", "none", "[]", "{}", {}, float("nan")])
def test_no_tools(tools):
    assert convert({"messages": SHORT, "tools": tools}, "sft") == {"messages": SHORT}
    assert convert({"conversations": SHORT, "tools": tools, "system": ""}, "sft") == {"messages": SHORT}


def test_tools_that_are_no_objects_and_two_lists_of_them_are_reasons():
    assert convert({"messages": SHORT, "tools": ["weather"]}, "sft") == "tools has an entry that is no object"
    hung = [system("") | {"tools": [{"name": "other"}]}, *SHORT]
    assert convert({"messages": hung, "tools": TOOLS}, "sft") == "two different lists of tools"
    assert json.loads(convert({"messages": hung, "tools": " "}, "sft")["tools"]) == [{"name": "other"}]


@pytest.mark.parametrize(
    ("column", "own", "expected"),
    [("s", "s", "s"), ("s", " ", "s"), ("s", "t", "s\n\nt"), (" ", "t", "t"), (None, "t", "t"), ("None", "t", "t")],
)
def test_a_system_text_beside_a_system_turn(column, own, expected):
    for spelt in ("system", "system_prompt"):
        converted = convert({spelt: column, "messages": [system(own) | {"tools": TOOLS}, *SHORT]}, "sft")
        assert converted["messages"] == [system(expected), *SHORT] and json.loads(converted["tools"]) == TOOLS


PAIR = {"prompt": [user("q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]}


@pytest.mark.parametrize("write", [json.dumps, str, lambda turns: json.dumps(turns, indent=1)])
def test_messages_that_were_stored_as_text(write):
    for column in ("messages", "conversations"):
        assert convert({column: write(SHORT)}, "sft") == {"messages": SHORT}
    shared = [said("human", "q"), said("gpt", "a")]
    assert convert({"conversations": write(shared)}, "sft") == {"messages": SHORT}
    assert convert({"prompt": write(SHORT[:1]), "completion": write(SHORT[1:])}, "sft") == {"messages": SHORT}
    assert convert({"prompt": "q", "completion": write(SHORT[1])}, "sft") == {"messages": SHORT}
    assert convert({name: write(turns) for name, turns in PAIR.items()}, "dpo") == PAIR
    sides = {name: write(PAIR["prompt"] + PAIR[name]) for name in ("chosen", "rejected")}
    assert convert(sides, "reward") == PAIR
    assert convert({"prompt": write(PAIR["prompt"])}, "rlaif") == {"prompt": PAIR["prompt"]}
    for asked, answer in (("instruction", "output"), ("question", "answer"), ("query", "response")):
        assert convert({asked: write(SHORT[:1]), answer: "a"}, "sft") == {"messages": SHORT}
        assert convert({asked: "q", answer: write(SHORT[1:])}, "sft") == {"messages": SHORT}
    assert convert({"text": write(SHORT)}, "pretrain").startswith("text holds messages as JSON: set schema: messages")
    read = convert({"text": write(SHORT)}, "pretrain", tiny_tokenizer(), schema="messages", fields={"messages": "text"})
    assert read["text"].startswith("<|im_start|>user\nq<|im_end|>")
    history = {"instruction": "q2", "output": "a2", "history": write([["q", "a"]])}
    assert convert(history, "sft") == {"messages": [*SHORT, user("q2"), assistant("a2")]}


@pytest.mark.parametrize(
    "text", ['[{"role": "assistant", "content": "goo', "[{'content': 'q', 'role': 'user'}\n {'role': 'x'}]"]
)
def test_text_that_was_messages_and_cannot_be_read_is_a_reason(text):
    told = "looks like messages, and is neither JSON nor Python text"
    assert convert({"prompt": "q", "completion": text}, "sft") == f"completion {told}"
    assert convert({"prompt": "q", "chosen": text, "rejected": "b"}, "dpo") == f"chosen {told}"
    assert convert({"messages": text}, "sft") == "messages: not a list of objects"


LOOKALIKES = [
    *('{"name": "Rome"}', '[{"name": "Rome"}]', "[1, 2]", '{"role": "admin"}', "[x"),
    *("{'from': 'here', 'to': 'there'}", '{"role": "user", "content": "hi"} is a message'),
    *("Human: hello\n\nAssistant: good day", "Assistant: good day"),
]


@pytest.mark.parametrize("answer", LOOKALIKES)
def test_an_answer_that_looks_like_something_else_stays_one_answer(answer):
    assert convert({"prompt": "q", "completion": answer}, "sft") == {"messages": [user("q"), assistant(answer)]}
    pair = {"prompt": "q", "chosen": answer, "rejected": "bad"}
    assert convert(pair, "dpo") == PAIR | {"chosen": [assistant(answer)]}


TRANSCRIPT = "\n\nHuman: q\n\nAssistant: a"


def test_transcripts_are_read_where_the_source_says_so_or_its_prompts_are_some():
    whole = {"prompt": "Human: q", "completion": "Assistant: a"}
    assert convert(whole, "sft", schema="hh") == {"messages": SHORT}
    assert convert(whole, "sft") == {"messages": [user("Human: q"), assistant("Assistant: a")]}
    asked = {"prompt": "\n\nHuman: q\n\nAssistant:", "completion": "a"}
    for schema in (None, "hh"):
        assert convert(asked, "sft", schema=schema) == {"messages": SHORT}
        sides = {"chosen": TRANSCRIPT, "rejected": TRANSCRIPT + "!"}
        converted = convert(sides, "dpo", schema=schema)
        assert converted == {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("a!")]}


@pytest.mark.parametrize(("some", "content"), [(60, "q0"), (31, "q0"), (29, "Human: q0"), (1, "Human: q0")])
def test_transcripts_are_told_by_most_rows_of_a_source(write, some, content):
    rows = [{"prompt": f"Human: q{number}", "completion": "Assistant: a"} for number in range(some)]
    rows += [{"prompt": f"q{number}", "completion": "a"} for number in range(some, 60)]
    data = DatasetMixer.from_yaml(write({"a": rows}, phase="sft", validation={"ratio": 0.3, "seed": 1})).build()
    found = [row["messages"][0]["content"] for split in data.values() for row in split]
    assert len(found) == 60 and content in found


IMAGES = [
    {"messages": SHORT, "images": ["1.jpg"]},
    {"messages": SHORT, "image": "1.jpg"},
    {"conversations": SHORT, "videos": ["1.mp4"]},
    {"instruction": "q", "output": "a", "audio": {"path": "1.wav"}},
    {"messages": [user("<image>What is it?"), assistant("a")]},
    {"messages": [user("What is it? <image>"), assistant("a")], "images": []},
    {"conversations": [said("human", "<image>\nWhat?"), said("gpt", "a")]},
    {"instruction": "<IMAGE> q", "output": "a"},
    {"prompt": "What is <image_1>?", "completion": "a"},
    {"messages": [user("<|image_1|>\nWhat?"), assistant("a")]},
    {"messages": [user("<video>What?"), assistant("a")]},
]


@pytest.mark.parametrize("row", IMAGES)
def test_rows_with_images_are_dropped(row):
    assert convert(row, "sft").endswith("which a text model cannot see")


@pytest.mark.parametrize(
    "text", ["What does `<image>` mean?", "<image><url>x</url></image>", "the <video> element", "<img src=x>"]
)
def test_text_about_images_stays(text):
    row = {"messages": [user(text), assistant("<image>")], "images": [None], "image": {"bytes": None, "path": None}}
    assert convert(row | {"video": False, "audio": ""}, "sft") == {"messages": [user(text), assistant("<image>")]}


@pytest.mark.parametrize("history", [[["q", "a"]], '[["q", "a"]]', "[('q', 'a')]", SHORT])
def test_a_history_goes_before_the_question(history):
    long = [*SHORT, user("q2")]
    for asked, answer in (("query", "response"), ("prompt", "completion"), ("instruction", "output")):
        converted = convert({asked: "q2", answer: "a2", "history": history}, "sft")
        assert converted == {"messages": [*long, assistant("a2")]}
    assert convert({"prompt": "q2", "history": history}, "rlaif") == {"prompt": long}
    assert convert({"prompt": "q2", "chosen": "good", "rejected": "bad", "history": history}, "dpo")["prompt"] == long


def test_reasoning_beside_the_answer_of_a_row():
    for spelt in ("reasoning_content", "thinking", "reasoning"):
        assert convert({"question": "q", "answer": "a", spelt: "r"}, "sft") == {"messages": THOUGHT}
        assert convert({"prompt": "q", "completion": "a", spelt: "r"}, "sft") == {"messages": THOUGHT}
    assert convert({"instruction": "q", "output": "a", "reasoning": "off"}, "sft") == {"messages": SHORT}


FLAGGED = [user("q"), assistant("bad", loss=False), user("q2"), assistant("good")]


@pytest.mark.parametrize("phase", ["pretrain", "midtrain"])
def test_a_turn_that_is_not_trained_keeps_its_place_in_a_text(phase):
    converted = convert({"messages": FLAGGED}, phase, tiny_tokenizer())
    [(start, end)] = converted["untrained"]
    assert converted["text"][start:end].startswith("<|im_start|>assistant\n")
    assert converted["text"][start:end].endswith("bad<|im_end|>\n")
    assert converted["text"][end:].startswith("<|im_start|>user\nq2")


def test_flags_mean_nothing_in_a_prompt_and_are_refused_in_an_answer_of_a_pair():
    plain = [user("q"), assistant("bad"), user("q2")]
    assert convert({"messages": FLAGGED}, "rlaif") == {"prompt": plain}
    pair = {"chosen": FLAGGED, "rejected": [*FLAGGED[:3], assistant("worse")]}
    assert convert(pair, "dpo")["prompt"] == plain
    pair["chosen"] = [*FLAGGED[:3], assistant("good", weight=0)]
    assert convert(pair, "dpo").startswith("a turn of chosen or rejected says that it is not trained")


@pytest.mark.parametrize("fault", ["\ud800", 10**400, float("inf"), {"a": {1, 2}}, b"bytes"])
def test_no_row_ends_a_build(fault):
    """What JSON and Python cannot hold, in every place of a row, is a reason."""
    for row in (
        {"messages": [user(fault), assistant("a")]},
        {"messages": [user("q"), assistant("a") | {"role": fault}]},
        {"messages": [user("q"), assistant("", tool_calls=[{"name": "f", "arguments": {"x": fault}}])]},
        {"messages": [user("q"), assistant("", tool_calls=fault)]},
        {"messages": [user("q"), assistant("", function_call=fault)]},
        {"messages": SHORT, "tools": [{"name": fault}]},
        {"messages": SHORT, "system": fault},
        {"messages": fault},
        {"conversations": [said("human", "q"), said("function_call", fault)]},
    ):
        convert(row, "sft", tiny_tokenizer())
