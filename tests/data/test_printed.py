"""Nothing of a row vanishes in the chat template: it is written otherwise, or the row is dropped under a reason."""

import copy
import json

import pytest

from minimind_trl.data import DatasetMixer
from minimind_trl.tokenization import inference_template, tiny_tokenizer
from tests.commands.test_data import run

MOVED = "reasoning_content written as <think> into the content, because the chat template leaves it out"


@pytest.fixture
def second():
    """A tokenizer with MiniMind2's template, which prints no `reasoning_content`."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = inference_template("minimind2")
    return tokenizer


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def thinking(content: str, reasoning: str) -> dict:
    return {"role": "assistant", "content": content, "reasoning_content": reasoning}


def chats(count: int = 20) -> list[dict]:
    return [{"messages": [user(f"q {n}"), thinking(f"a {n}", f"secret {n}")]} for n in range(count)]


def build(path, tokenizer):
    mixer = DatasetMixer.from_yaml(path)
    data = mixer.build(tokenizer)
    return [*data["train"], *data["validation"]], mixer


def test_reasoning_that_minimind_2_does_not_print_is_trained_on_in_a_think_block(write, second):
    rows, mixer = build(write({"a": chats()}, phase="sft"), second)
    answers = sorted(row["messages"][1]["content"] for row in rows)
    assert answers == sorted(f"<think>\nsecret {n}\n</think>\n\na {n}" for n in range(20))
    assert all(row["messages"][1]["reasoning_content"] is None for row in rows)
    assert f"20 {MOVED}" in mixer.describe()
    assert mixer.lock()["sources"][0]["moved"] == 20
    assert mixer.report.moved() == [f"a: 20 {MOVED}"]


def test_minimind_3_prints_it_where_it_stands(write):
    rows, mixer = build(write({"a": chats()}, phase="sft"), tiny_tokenizer())
    assert {row["messages"][1]["reasoning_content"] for row in rows} == {f"secret {n}" for n in range(20)}
    assert "written as <think>" not in mixer.describe() and mixer.report.moved() == []


@pytest.mark.parametrize("phase", ["pretrain", "dpo", "rlaif"])
def test_in_every_phase(write, second, phase):
    begun = [user("q"), thinking("a", "secret")]
    answers = [thinking(f"b {n}", f"better {n}") for n in range(20)]
    rows = {
        "pretrain": [{"messages": [*begun, user("r"), answer]} for answer in answers],
        "dpo": [
            {"prompt": [*begun, user(f"q {n}")], "chosen": [answer], "rejected": [thinking("c", "worse")]}
            for n, answer in enumerate(answers)
        ],
        "rlaif": [{"prompt": [*begun, user(f"q {n}")]} for n in range(20)],
    }[phase]
    found, mixer = build(write({"a": rows}, phase=phase, validation={"ratio": 0.3, "seed": 0}), second)
    told = [json.dumps(row) for row in found]
    assert len(told) == 20 and all("<think>\\nsecret\\n</think>\\n\\na" in row for row in told)
    assert all("<think>\\nworse\\n</think>\\n\\nc" in row for row in told) == (phase == "dpo")
    per_row = {"pretrain": 2, "dpo": 3, "rlaif": 1}[phase]
    assert mixer.report.sources[0].moved == 20 * per_row


def test_of_a_stream_it_is_counted_as_it_is_read(write, second):
    mixer = DatasetMixer.from_yaml(write({"a": chats()}, phase="sft", streaming=True))
    rows = list(mixer.build(second)["train"])
    assert rows and all(row["messages"][1]["content"].startswith("<think>") for row in rows)
    assert f"20 {MOVED}" in mixer.describe()


def test_what_can_be_printed_nowhere_is_a_reason(write):
    bare = tiny_tokenizer()
    bare.chat_template = "{% for m in messages %}{{ m.role + m.content + '<|im_end|>' }}{% endfor %}"
    rows = [{"messages": [user(f"q {n}"), {"role": "assistant", "content": "a"}]} for n in range(90)]
    tools = json.dumps([{"type": "function", "function": {"name": "f"}}])
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{}"}]}
    odd = [
        {"messages": [user("x"), {"role": "assistant", "content": "a"}], "tools": tools},
        {"messages": [user("x"), {**call, "content": "a"}]},
        *chats(3),
    ]
    found, mixer = build(write({"a": [*rows, *odd]}, phase="sft"), bare)
    assert mixer.report.sources[0].dropped == {
        "the chat template leaves out tools": 1,
        "the chat template leaves out the assistant's tool_calls": 1,
    }
    assert len(found) == 93 and mixer.report.sources[0].moved == 3


def test_what_stands_between_think_blocks_is_a_reason(write):
    rows = [{"messages": [user(f"q {n}"), {"role": "assistant", "content": "<think>x</think>a"}]} for n in range(90)]
    odd = [{"messages": [user("x"), {"role": "assistant", "content": "before<think>x</think>a"}]}]
    _, mixer = build(write({"a": [*rows, *odd]}, phase="sft"), tiny_tokenizer())
    assert mixer.report.sources[0].dropped == {"the chat template leaves out a part of the assistant's content": 1}


def test_a_template_with_a_twin_that_prints_it_is_taken_at_the_twins_word(write):
    """Qwen3's drops the thoughts of earlier turns, the one that it is trained with keeps them."""
    from trl.chat_template_utils import qwen3_chat_template

    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = qwen3_chat_template
    early = {"messages": [user("q"), thinking("a", "secret"), user("r"), thinking("b", "hidden")]}
    in_content = {"role": "assistant", "content": "<think>\nx\n</think>\n\na"}
    written = {"messages": [user("q"), in_content, user("r"), thinking("b", "y")]}
    rows = [early, written, *chats(30)]
    found, mixer = build(write({"a": rows}, phase="sft"), tokenizer)
    assert len(found) == 32 and mixer.report.sources[0].moved == 0


def test_show_and_explain_tell_it(write, second, capsys, tmp_path):
    second.save_pretrained(tmp_path / "tokenizer")
    path = write({"a": chats()}, phase="sft")
    code, out, _ = run(capsys, "show", path, "--tokenizer", tmp_path / "tokenizer")
    assert code == 0 and f"a: 20 {MOVED}" in " ".join(out.split()) and "⟦<think>\nsecret" in out
    code, out, _ = run(capsys, "explain", path, "--row", 1, "--tokenizer", tmp_path / "tokenizer")
    assert code == 0 and f"template: 1 {MOVED}" in out and "⟦<think>\nsecret 0\n</think>\n\na 0<|im_end|>⟧" in out
