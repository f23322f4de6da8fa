"""Function calling and preferences as the data sets of xLAM, Glaive and ms-swift write them; and the shared cases."""

import json

import pytest

from minimind_trl.cli import main
from minimind_trl.data import DatasetMixer
from minimind_trl.tokenization import tiny_tokenizer
from tests.conftest import REPOSITORY
from tests.data.test_schemas import CALL, CALLED, STORED_CALL, TOOLS, assistant, convert, system, user

CASES = REPOSITORY.parent / "shared" / "cases"
WANTED = [user("q"), assistant("", tool_calls=[STORED_CALL])]


@pytest.mark.parametrize("write", [json.dumps, list, str])
@pytest.mark.parametrize("asked", ["query", "question", "instruction"])
def test_xlam(write, asked):
    row = {"id": 7, asked: "q", "answers": write([CALL]), "tools": write(TOOLS)}
    assert convert(row, "sft") == {"messages": WANTED, "tools": json.dumps(TOOLS)}
    assert convert(row, "rlaif") == {"prompt": WANTED[:1], "tools": json.dumps(TOOLS)}


def test_xlam_with_several_calls():
    row = {"query": "q", "answers": json.dumps([CALL, CALL]), "tools": json.dumps(TOOLS)}
    assert convert(row, "sft")["messages"] == [user("q"), assistant("", tool_calls=[STORED_CALL, STORED_CALL])]


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ("[]", "answers holds no tool call"),
        (None, "answers holds no tool call"),
        ("[", "answers is not JSON"),
        (["Rome"], "a tool call without a name"),
        ([{"name": "f", "arguments": "x"}], "arguments of a tool call are not a JSON object"),
    ],
)
def test_xlam_without_calls(answers, reason):
    assert convert({"query": "q", "answers": answers, "tools": TOOLS}, "sft") == reason


FUNCTION = {"name": "weather", "description": "d", "parameters": {"type": "object"}}
ACCESS = "You are a helpful assistant with access to the following functions. Use them if required -\n"
CHAT = """USER: q


ASSISTANT: <functioncall> {"name": "weather", "arguments": '{"city": "Rome"}'} <|endoftext|>


FUNCTION RESPONSE: sunny


ASSISTANT: a <|endoftext|>

"""


def test_glaive():
    row = {"system": f"SYSTEM: {ACCESS}{json.dumps(FUNCTION, indent=4)}\n", "chat": CHAT}
    assert convert(row, "sft") == {"messages": CALLED, "tools": json.dumps([FUNCTION])}
    assert convert({"sample": row["system"] + "\n\n" + CHAT}, "sft") == convert(row, "sft")
    two = row | {"system": f"SYSTEM: {ACCESS}{json.dumps(FUNCTION)}\n\n{json.dumps(FUNCTION)}"}
    assert json.loads(convert(two, "sft")["tools"]) == [FUNCTION, FUNCTION]


def test_glaive_without_functions_and_with_words_before_a_call():
    no_access = "You are a helpful assistant, with no access to external functions."
    row = {"system": f"SYSTEM: {no_access}", "chat": "USER: q\n\n\nASSISTANT: a <|endoftext|>\n\n\n"}
    assert convert(row, "sft") == {"messages": [system(no_access), user("q"), assistant("a")]}
    said = CHAT.replace("<functioncall>", "Let me look. <functioncall>")
    [_, call, *_] = convert({"system": "", "chat": said}, "sft")["messages"]
    assert call == assistant("Let me look.", tool_calls=[STORED_CALL])
    its = CHAT.replace('"Rome"', '"Xi\'an"')
    [_, call, *_] = convert({"system": "", "chat": its}, "sft")["messages"]
    assert json.loads(call["tool_calls"][0]["arguments"]) == {"city": "Xi'an"}


def test_glaive_that_is_broken_is_a_reason():
    broken = CHAT.replace('"Rome"}', '"Rome"')
    assert convert({"system": "", "chat": broken}, "sft") == "arguments of a tool call are not a JSON object"
    assert convert({"system": 'SYSTEM: Use {"name": ', "chat": CHAT}, "sft") == "system has a function that is not JSON"
    assert convert({"system": "", "chat": "hello"}, "sft") == "chat: not a list of objects"


@pytest.mark.parametrize("phase", ["dpo", "reward"])
def test_swift_pairs(phase):
    whole = [system("s"), user("q"), assistant("good")]
    pair = {"prompt": whole[:2], "chosen": [assistant("good")], "rejected": [assistant("bad")]}
    for worse in ("bad", [assistant("bad")], [*whole[:2], assistant("bad")], json.dumps([assistant("bad")])):
        assert convert({"messages": whole, "rejected_response": worse}, phase) == pair
        assert convert({"messages": whole, "rejected_messages": worse}, phase) == pair
        assert convert({"conversations": whole, "rejected": worse}, phase) == pair
    assert convert({"messages": whole[1:], "system": "s", "rejected_response": "bad"}, phase) == pair
    asked = {"system": "s", "query": "q", "response": "good", "rejected_response": "bad"}
    assert convert(asked, phase) == pair
    assert convert({"messages": whole, "rejected_response": ""}, phase) == "empty rejected_response"
    assert convert({"messages": whole, "rejected_response": "good"}, phase) == "chosen equals rejected"
    assert convert({"messages": whole[:2], "rejected_response": "bad"}, phase) == "last message is not the assistant's"


def test_swift_pairs_after_a_tool_and_with_a_history():
    row = {"messages": CALLED, "rejected_response": "bad", "tools": TOOLS}
    converted = convert(row, "dpo")
    assert converted["prompt"] == CALLED[:3] and converted["rejected"] == [assistant("bad")]
    row = {"history": [["q", "a"]], "query": "q2", "response": "good", "rejected_response": "bad"}
    assert convert(row, "dpo")["prompt"] == [user("q"), assistant("a"), user("q2")]


# What `data show` must and must not print of each folder of the shared cases, with its exit code.
SHOWN = {
    "dialogue-in-completion/completion_dialogue": (
        0,
        ["Write a short play", "Human: hello", "\n\nAssistant: good"],
        [],
    ),
    "formats/roles_prompter": (0, ["<|im_start|>user\nq"], ["dropped"]),
    "formats/speaker_text": (0, ["<|im_start|>user\nq", "⟦<think>\n\n</think>\n\na"], ["dropped"]),
    "formats/swift_rejected_response": (0, ["chosen:", "good", "rejected:", "bad"], ["dropped"]),
    "formats/swift_tool_call_role": (0, ['{"name": "w", "arguments": {"c": ', "<tool_response>\nok"], ["dropped"]),
    "formats/tools_space": (0, ["<|im_start|>user\nq"], ["dropped", "# Tools"]),
    "formats/xlam": (0, ['{"name": "find", "arguments": {"n": ', "# Tools", "not read: id (in 30 rows)"], ["dropped"]),
    "function-call/function_call_two": (0, ['{"name": "now", "arguments": {}}', "<tool_response>\n1"], ["dropped"]),
    "image-placeholder": (2, ["no row is left (30 has images, which a text model cannot see)"], []),
    "kto-label": (0, ["good answer", "6 dropped: label is false"], ["HARMFUL"]),
    "legacy-function-call/legacy_function_call": (
        0,
        ["# Tools", "Let me look.\n<tool_call>", '{"name": "weather", "arguments": {"city": "c'],
        ["dropped", "not read"],
    ),
    "message-loss-flags/loss_false": (
        0,
        ["12 turns are not trained", "⟦<think>\n\n</think>\n\nGOODTURN"],
        ["⟦<think>\n\n</think>\n\nBAD"],
    ),
    "messages-as-text/json_string_pair": (0, ["user\nq", "good", "bad"], ["role", "dropped"]),
    "tool-arguments/broken_arguments": (
        2,
        ["30 of 30 rows cannot be used", "arguments of a tool call are not a JSON object"],
        [],
    ),
}


@pytest.mark.skipif(not CASES.is_dir(), reason="shared/cases is not at hand")
@pytest.mark.parametrize("case", SHOWN)
def test_data_show_of_the_shared_cases(case, capsys):
    expected, shown, hidden = SHOWN[case]
    code = main(["data", "show", str(CASES / case / "mix.yaml"), "--tokenizer", "tiny"])
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert code == expected, text
    for part in shown:
        assert part in text
    for part in hidden:
        assert part not in text


def test_keys_that_nobody_reads_are_named_once_with_their_rows(write, capsys):
    rows = [
        {
            "messages": [user(f"q{number}") | {"name": "Ann"}, assistant("a", loss=True)],
            "id": number,
            "score": number % 3,
        }
        for number in range(60)
    ]
    path = write({"a": rows}, phase="sft", options={"filters": [{"type": "field", "field": "score", "min": 0}]})
    assert main(["data", "show", str(path)]) == 0
    assert "a: 60 rows in; not read: id, messages[].name (in 60 rows)" in capsys.readouterr().out.replace("\n", " ")
    mixer = DatasetMixer.from_yaml(path)
    mixer.build()
    assert mixer.report.sources[0].unread == {"id": 60, "messages[].name": 60}
    assert main(["data", "explain", str(path), "--row", "3"]) == 0
    assert "not read: id, messages[].name" in capsys.readouterr().out


def test_explain_tells_of_a_turn_that_is_not_trained(write, capsys):
    turns = [user("q"), assistant("BAD", loss=False), user("again"), assistant("GOOD")]
    rows = [{"messages": [user(f"q{number}"), *turns[1:]]} for number in range(40)]
    for phase, learned in (("midtrain", "⟦<|im_start|>user\nagain"), ("sft", "⟦<think>\n\n</think>\n\nGOOD")):
        path = str(write({"a": rows}, phase=phase, validation={"ratio": 0.3, "seed": 1}))
        assert main(["data", "explain", path, "--row", "3", "--tokenizer", "tiny"]) == 0
        out = capsys.readouterr().out
        assert "not trained: 1 of its turns (loss, weight, train)" in out and learned in out
        assert "BAD<|im_end|>" in out.replace("\n", "") and "⟦<think>\n\n</think>\n\nBAD" not in out


def test_many_keys_are_not_all_shown(write):
    rows = [{"text": f"t{number}", f"key {number:02}": 1, "\ud800": 1} for number in range(60)]
    mixer = DatasetMixer.from_yaml(write({"a": rows}))
    mixer.build()
    assert len(mixer.report.sources[0].unread) == 61
    [line] = mixer.report.drops()
    assert line.startswith("a: 60 rows in; not read: \\ud800 (in 60 rows), key 00, key 01,")
    assert line.endswith("key 18 (in 1 rows) and 41 more keys")


def test_a_user_turn_that_asks_to_be_trained_is_told(write):
    rows = [{"messages": [user(f"q{number}") | {"weight": 1}, assistant("a", weight=1)]} for number in range(60)]
    mixer = DatasetMixer.from_yaml(write({"a": rows}, phase="sft"))
    mixer.build()
    assert mixer.report.sources[0].unread == {"messages[].weight": 60}


@pytest.mark.parametrize("streaming", [False, True])
def test_answers_of_any_size_survive(write, streaming):
    answers = [2**64 + number for number in range(30)] + [-(2**63) - number for number in range(1, 31)]
    rows = [{"prompt": f"q{number}", "answer": answer, "gt": [answer, 7]} for number, answer in enumerate(answers)]
    path = write({"a": rows}, phase="rlaif", streaming=streaming, validation={"ratio": 0.3, "seed": 1})
    data = DatasetMixer.from_yaml(path).build(tiny_tokenizer())
    found = {row["prompt"][0]["content"]: row for rows in data.values() for row in rows.take(60)}
    for number, answer in enumerate(answers):
        row = found[f"q{number}"]
        assert str(row["answer"]) == str(answer) and row["gt"] == [str(answer), 7]
