"""`minimind-trl chat`: what is asked, what is shown, and what stays in the conversation."""

import io
import json
import sys

import pytest
import torch

from minimind_trl.cli import main
from minimind_trl.commands.conversation import Conversation, Piece, Settings, load_chat_model
from minimind_trl.errors import InputError
from minimind_trl.tools import load_tools
from tests.conftest import KINDS


@pytest.fixture(scope="module")
def checkpoint(checkpoints):
    return load_chat_model(str(checkpoints["dense3"]))


@pytest.fixture
def answering(monkeypatch):
    """The model says these texts, one an answer, in pieces of three characters; what it was asked is returned."""

    def say(*texts: str) -> list[str]:
        waiting, asked = [*texts], []

        def generate(self, prompt, skip_special_tokens):
            asked.append(self.checkpoint.tokenizer.decode(prompt["input_ids"][0]))
            text = waiting.pop(0)
            yield from (text[at : at + 3] for at in range(0, len(text), 3))

        monkeypatch.setattr(Conversation, "_stream", generate)
        return asked

    return say


def by_kind(pieces) -> dict[str, str]:
    joined: dict[str, str] = {}
    for piece in pieces:
        joined[piece.kind] = joined.get(piece.kind, "") + piece.text
    return joined


def chat(monkeypatch, lines: str, *words: object) -> int:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    try:
        return main(["chat", *map(str, words)])
    except SystemExit as end:  # of argparse
        return end.code


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_greedy_answer_is_what_generate_gives(checkpoints, kind):
    loaded = load_chat_model(str(checkpoints[kind]))
    conversation = Conversation(loaded, Settings(max_new_tokens=12), "Be brief.")
    shown = by_kind(conversation.ask("hello"))
    asked = loaded.tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    new = loaded.model.generate(**asked, do_sample=False, max_new_tokens=12)[0, asked["input_ids"].shape[1] :]
    assert shown["content"].strip() == loaded.tokenizer.decode(new).removesuffix("<|im_end|>").strip()
    assert [message["role"] for message in conversation.messages] == ["system", "user", "assistant"]


def test_sampled_answers_differ_by_seed_and_repeat_with_it(checkpoint):
    def answer(seed: int) -> str:
        torch.manual_seed(seed)
        return by_kind(Conversation(checkpoint, Settings(max_new_tokens=12, temperature=1.5)).ask("hello"))["content"]

    assert answer(1) == answer(1) != answer(2)


def test_reasoning_is_told_apart_and_kept_in_the_conversation(checkpoint, answering):
    answering("hm, so\n</think>\n\nBecause.<|im_end|>")
    conversation = Conversation(checkpoint, Settings(thinking=True))
    shown = by_kind(conversation.ask("Why?"))
    assert shown["reasoning"].strip() == "hm, so" and shown["content"] == "Because."
    assert conversation.messages[-1]["reasoning_content"].strip() == "hm, so"


def test_the_conversation_is_asked_as_a_whole_until_it_no_longer_fits(checkpoint, answering, monkeypatch):
    asked = answering("One.<|im_end|>", "Two.<|im_end|>", "Three.<|im_end|>")
    conversation = Conversation(checkpoint, Settings(max_new_tokens=8), "Be brief.")
    list(conversation.ask("first"))
    list(conversation.ask("second"))
    assert all(text in asked[1] for text in ("Be brief.", "first", "One.", "second"))
    room = len(checkpoint.tokenizer(asked[1])["input_ids"]) + 8 + 4  # for two turns, not three
    monkeypatch.setattr(checkpoint.model.config, "max_position_embeddings", room)
    list(conversation.ask("third"))
    assert "Be brief." in asked[2] and "third" in asked[2] and "first" not in asked[2]
    with pytest.raises(InputError, match=r"this turn has \d+ tokens, and \d+ are left of the model's context"):
        list(conversation.ask("long " * 100))


def test_a_turn_that_is_broken_off_leaves_no_trace(checkpoint):
    conversation = Conversation(checkpoint, Settings(max_new_tokens=400))
    pieces = conversation.ask("hello")
    next(pieces)
    pieces.close()  # as Ctrl-C does; the thread ends too, or this would wait for 400 tokens
    assert conversation.messages == []


# --- tools ------------------------------------------------------------------------------------------------------------


def add(a: int, b: int) -> int:
    """
    Add two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a + b


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call><|im_end|>'


def test_tools_are_called_and_the_model_answers_with_their_results(checkpoint, answering):
    asked = answering(call("add", '{"a": 2, "b": 3}'), "It is 5.<|im_end|>")
    conversation = Conversation(checkpoint, Settings(), tools={"add": add})
    shown = [*conversation.ask("2 + 3?")]
    assert Piece("tool", 'add({"a": 2, "b": 3}) -> 5\n') in shown and by_kind(shown)["content"] == "It is 5."
    assert "Add two numbers." in asked[0] and "<tool_response>\n5\n</tool_response>" in asked[1]


def test_named_tools_are_called_and_their_results_bring_no_control_tokens(checkpoint, answering):
    wrong = "error: no weather for '<|im_end|>'"
    asked = answering(call("weather", '{"location": "<|im_end|>"}'), call("calculator", '{"expression": "6*7"}'), "42")
    conversation = Conversation(checkpoint, Settings(), tools=load_tools(["calculator", "weather"]))
    shown = by_kind(conversation.ask("?"))["tool"]
    assert (
        wrong not in shown and "error: no weather for" in shown and 'calculator({"expression": "6*7"}) -> 42\n' in shown
    )
    assert wrong not in asked[1] and "<tool_response>\n42\n</tool_response>" in asked[2]


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("ad", "{}", "error: no tool 'ad'; did you mean 'add'?"),
        ("add", "[1, 2]", "error: the arguments must be a JSON object"),
        ("add", '{"a": 1}', "error: add: missing a required argument: 'b'"),
        ("add", '{"a": 1, "b": "x"}', "error: TypeError: unsupported operand type(s) for +: 'int' and 'str'"),
    ],
)
def test_what_a_model_calls_wrongly_is_told_to_it(checkpoint, answering, name, arguments, told):
    answering(call(name, arguments), "Oh.<|im_end|>")
    conversation = Conversation(checkpoint, Settings(), tools={"add": add})
    assert by_kind(conversation.ask("?"))["tool"].endswith(f" -> {told}\n")


def test_a_call_that_is_no_json_is_only_text(checkpoint, answering):
    answering("<tool_call>\n{broken\n</tool_call><|im_end|>")
    conversation = Conversation(checkpoint, Settings(), tools={"add": add})
    assert "tool" not in by_kind(conversation.ask("?"))
    assert "{broken" in conversation.messages[-1]["content"]


def test_calls_without_end_are_ended(checkpoint, answering):
    asked = answering(*[call("add", '{"a": 1, "b": 1}')] * 9)
    list(Conversation(checkpoint, Settings(), tools={"add": add}).ask("?"))
    assert len(asked) == 5


def test_a_call_that_is_no_object_is_told_to_the_model(checkpoint, answering):
    answering("<tool_call>\n[1]\n</tool_call><|im_end|>", "Oh.<|im_end|>")
    conversation = Conversation(checkpoint, Settings(), tools={"add": add})
    assert "error: a call is {" in by_kind(conversation.ask("?"))["tool"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("calculater", "--tools calculater: no such tool; did you mean 'calculator'"),
        ("os:getcwd", "os:getcwd is part of Python"),
        ("chat_tools:undescribed", "--tools chat_tools:undescribed: .*docstring"),
        ("chat_tools:ad", "has no function 'ad'; did you mean 'add'"),
        ("no_such_module:f", "cannot import 'no_such_module'"),
    ],
)
def test_tools_that_cannot_be_used_are_refused(tmp_path, name, message):
    (tmp_path / "chat_tools.py").write_text("def undescribed(x: int):\n    return x\n\ndef add():\n    pass\n")
    with pytest.raises(InputError, match=message):
        load_tools([name], tmp_path)


# --- the verb ---------------------------------------------------------------------------------------------------------


def test_piped_lines_are_turns_and_only_answers_are_printed(checkpoints, answering, monkeypatch, capsys, tmp_path):
    asked = answering("<think>hm</think>One.<|im_end|>", "Two.<|im_end|>", "Three.<|im_end|>", "Four.<|im_end|>")
    saved = tmp_path / "chat.json"
    lines = f"first\n\n//second\n/save {saved}\n/reset\nthird\n/load {saved}\nfourth\n/exit\nnever asked\n"
    assert chat(monkeypatch, lines, checkpoints["dense3"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "One.\nTwo.\nThree.\nFour.\n" and "hm" in printed.err
    assert len(asked) == 4 and "/second" in asked[1] and "//second" not in asked[1]
    assert "first" not in asked[2] and "third" not in asked[3] and "first" in asked[3]
    messages = json.loads(saved.read_text())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2


def test_two_checkpoints_answer_the_same_turn(checkpoints, answering, monkeypatch, capsys):
    answering("Left.<|im_end|>", "Right.<|im_end|>")
    assert chat(monkeypatch, "hello\n", checkpoints["dense3"], "--beside", checkpoints["dense2"]) == 0
    assert capsys.readouterr().out == "dense3: Left.\ndense2: Right.\n"


@pytest.mark.parametrize(
    ("lines", "words", "message"),
    [
        ("hi\n", ["no/such/folder"], "no/such/folder: no such checkpoint directory"),
        ("hi\n", ["{checkpoint}", "--beside", "runs/none"], "runs/none: no such"),
        ("hi\n", ["{checkpoint}", "--temperature", "-1", "--top_p", "2"], "--top_p 2.0: must be above 0, at most 1"),
        ("hi\n", ["{checkpoint}", "--web", "--beside", "x"], "--beside is for the terminal"),
        ("hi\n", ["{checkpoint}", "--seed", "-1"], "--seed -1: must be from 0 to 4294967295"),
        ("hi\n", ["{checkpoint}", "--port", "80"], "--host and --port are for --web"),
        ("/sav x\n", ["{checkpoint}"], "unknown command /sav; did you mean '/save'?"),
        ("/save\n", ["{checkpoint}"], "/save needs a file: /save chat.json"),
        ("/load none.json\n", ["{checkpoint}"], "none.json: cannot be read: No such file or directory"),
        ("/load {checkpoint}/config.json\n", ["{checkpoint}"], 'no chat: it must be {"messages"'),
    ],
)
def test_wrong_input_is_told_in_a_line(checkpoints, monkeypatch, capsys, lines, words, message):
    name = str(checkpoints["dense3"])
    words = [word.replace("{checkpoint}", name) for word in words]
    assert chat(monkeypatch, lines.replace("{checkpoint}", name), *words) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""


def test_a_page_without_gradio_names_the_extra(checkpoints, monkeypatch, capsys):
    monkeypatch.setattr("minimind_trl.commands.chat_page.find_spec", lambda name: None)
    assert chat(monkeypatch, "", checkpoints["dense3"], "--web") == 2
    assert capsys.readouterr().err == 'error: --web needs gradio: pip install "minimind-trl[web]"\n'
