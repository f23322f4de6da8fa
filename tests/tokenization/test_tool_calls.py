"""Tool calls in answers of both generations: those that TRL reads, and what is wrong with the others."""

import re

import pytest
from trl.chat_template_utils import is_chat_template_prefix_preserving, parse_response, supports_tool_calling

from minimind_trl.tokenization import GENERATIONS, INVALID_CALL, inference_template, prepared_for_trl, tiny_tokenizer
from minimind_trl.tokenization.tool_calls import with_calls

CALLS = [
    {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [2]}}},
    {"type": "function", "function": {"name": "now", "arguments": {}}},
]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_trl_reads_what_the_template_of_a_generation_writes(generation):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = inference_template(generation)
    tokenizer = prepared_for_trl(tokenizer)
    assert supports_tool_calling(tokenizer) and is_chat_template_prefix_preserving(tokenizer)
    asked = [{"role": "user", "content": "?"}]
    answer = {"role": "assistant", "content": "Let me see.", "tool_calls": CALLS}
    prefix = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template([*asked, answer], return_dict=False)
    assert whole[: len(prefix)] == prefix
    ids = whole[len(prefix) :]
    ids = ids[: ids.index(tokenizer.eos_token_id) + 1]
    assert parse_response(tokenizer, ids, prefix=prefix) == answer


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('<tool_call>{"name": "add",}</tool_call>', "the call is not JSON: .* at character "),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "the call is not JSON"),
        ("<tool_call>[]</tool_call>", 'a call is {"name"'),
        ('<tool_call>{"arguments": {}}</tool_call>', 'a call is {"name"'),
        ('<tool_call>{"name": 5}</tool_call>', 'a call is {"name"'),
        ('<tool_call>{"name": "add", "arguments": "{"}</tool_call>', "the arguments are not JSON"),
        ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "the arguments must be a JSON object"),
        ('<tool_call>{"name": "add", "arguments": {}}', "</tool_call> is missing"),
    ],
)
def test_a_broken_call_says_what_is_wrong_with_it(text, problem):
    said = f"Well. {text}"
    message = with_calls({"role": "assistant", "content": said}, f"{said}<|im_end|>", False, True)
    [call] = message["tool_calls"]
    assert call["function"]["name"] == INVALID_CALL and message["content"] == "Well."
    assert re.match(problem, call["function"]["arguments"]["problem"])


def test_good_calls_beside_a_broken_one_are_kept():
    text = '<tool_call>{"name": "now"}</tool_call><tool_call>{</tool_call>'
    names = [call["function"]["name"] for call in with_calls({"content": text}, text, False, True)["tool_calls"]]
    assert names == ["now", INVALID_CALL]


def test_arguments_may_be_json_in_a_text():
    calls = [{"function": {"name": "add", "arguments": '{"a": 1}'}}]
    message = with_calls({"content": "", "tool_calls": calls}, "", False, True)
    assert message["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}


@pytest.mark.parametrize(
    ("text", "is_thinking", "is_finished"),
    [
        ("I could write <tool_call>{</tool_call>", True, True),
        ("<think>\n<tool_call>{</tool_call>", False, True),
        ("<tool_call>{</tool_call>\n</think>\n\nNo call.", True, True),
        ('<tool_call>{"name": "ad', False, False),
        ("no call", False, True),
    ],
)
def test_calls_in_thoughts_and_unfinished_ones_are_text(text, is_thinking, is_finished):
    message = {"role": "assistant", "content": text}
    assert with_calls(message, text, is_thinking, is_finished) == message
