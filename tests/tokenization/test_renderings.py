"""What a chat template leaves out of a conversation."""

import copy

import pytest

from minimind_trl.tokenization import inference_template
from minimind_trl.tokenization.renderings import PrintedFields, first_unprinted, reasoning_in_content

USER = {"role": "user", "content": "Why?"}
TOOL = {"type": "function", "function": {"name": "weather"}}
CALL = {"name": "weather", "arguments": '{"city": "Köln"}'}
NO_TOOLS = "{% for m in messages %}{% if m.role != 'system' %}{{ m.role + m.content }}{% endif %}{% endfor %}"
NO_ARGUMENTS = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c.name }}{% endfor %}{% endfor %}"


def assistant(content: str = "a", **fields) -> dict:
    return {"role": "assistant", "content": content, "reasoning_content": None, "tool_calls": None, **fields}


@pytest.fixture
def with_template(trained):
    def copied(template: str):
        tokenizer = copy.deepcopy(trained)
        tokenizer.chat_template = template
        return tokenizer

    return copied


@pytest.mark.parametrize(
    ("template", "messages", "tools", "missing"),
    [
        ("minimind2", [USER, assistant()], None, []),
        ("minimind2", [USER, assistant(reasoning_content="a")], None, [(1, "reasoning_content")]),
        ("minimind2", [USER, assistant(tool_calls=[CALL])], [TOOL], []),
        ("minimind2", [USER, assistant("<think>\nx\n</think>\n\na")], None, []),
        ("minimind3", [USER, assistant(reasoning_content="a")], None, []),
        ("minimind3", [{"role": "system", "content": "S"}, USER, assistant("", tool_calls=[CALL, CALL])], [TOOL], []),
        ("minimind3", [USER, assistant(), {"role": "tool", "content": "7"}, assistant("x</think>y")], None, []),
        (NO_TOOLS, [{"role": "system", "content": "S"}, USER, assistant()], None, [(0, "content")]),
        (NO_TOOLS, [USER, assistant(tool_calls=[CALL])], [TOOL], [(1, "tool_calls"), (0, "tools")]),
        (NO_ARGUMENTS, [USER, assistant(tool_calls=[CALL])], None, [(1, "tool_calls")]),
        ("{{ raise_exception('no') }}", [USER, assistant(reasoning_content="a")], None, []),
    ],
)
def test_fields_that_are_left_out(with_template, template, messages, tools, missing):
    tokenizer = with_template(inference_template(template) if template.startswith("minimind") else template)
    printed = PrintedFields(tokenizer)
    for _ in range(2):  # the second time it is remembered
        assert printed.missing(messages, tools) == missing


def test_reasoning_goes_into_the_content_as_upstreams_data_has_it(with_template):
    message = reasoning_in_content(assistant("\nBecause.", reasoning_content="\nhm\n"))
    assert message == assistant("<think>\nhm\n</think>\n\nBecause.")
    second, third = (with_template(inference_template(name)) for name in ("minimind2", "minimind3"))
    assert PrintedFields(second).missing([USER, message]) == []
    as_field = third.apply_chat_template([USER, assistant("Because.", reasoning_content="hm")], tokenize=False)
    in_content = second.apply_chat_template([USER, message], tokenize=False)
    assert as_field.split("assistant\n")[-1] == in_content.split("assistant\n")[-1]


@pytest.mark.parametrize(
    ("content", "turn"),
    [
        ("Because.", None),
        ("\n<think>\n\nhm </think>\n\n\nYes. ", None),
        ("hm\n</think>", None),
        ("x<think>a</think>b", 1),
        ("<think>a</think>b<think>c</think>d", 1),
    ],
)
def test_contents_of_which_a_part_is_left_out(with_template, content, turn):
    tokenizer, messages = with_template(inference_template("minimind3")), [USER, assistant(content)]
    assert first_unprinted(tokenizer.apply_chat_template(messages, tokenize=False), messages) == turn
