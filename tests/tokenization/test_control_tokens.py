import copy
import json

import pytest
from tokenizers import AddedToken

from minimind_trl.tokenization import MessageError, escape_control_tokens, find_control_tokens

END = "<|im_end|>"


def special_ids(tokenizer):
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def test_special_tokens_are_found_and_ordinary_added_tokens_are_not(trained):
    text = "<think>stop</think> at <|im_end|>, not at <|im_end| > or <tool_call>, but <|endoftext|><|im_end|>"
    assert find_control_tokens(text, trained) == ["<|im_end|>", "<|endoftext|>", "<|im_end|>"]
    assert find_control_tokens("plain text", trained) == []


def test_a_space_makes_a_control_token_plain_text(trained):
    row, count = escape_control_tokens({"text": "a<|im_end|>b <|endoftext|>", "id": 7}, trained)
    assert row == {"text": "a< |im_end|>b < |endoftext|>", "id": 7}
    assert count == 2
    ids = trained.encode(row["text"])
    assert not special_ids(trained) & set(ids)
    assert trained.decode(ids) == row["text"]


def test_every_special_token_is_disarmed(trained):
    text = "".join(trained.added_tokens_decoder[i].content for i in sorted(special_ids(trained)))
    row, count = escape_control_tokens({"text": text}, trained)
    assert count == len(special_ids(trained)) == 21
    assert not special_ids(trained) & set(trained.encode(row["text"]))
    assert escape_control_tokens(row, trained) == (row, 0)


def test_all_that_a_template_pastes_is_escaped(trained):
    function = {"name": f"f{END}", "arguments": {f"k{END}": [f"v{END}", 1, None]}}
    messages = [
        {"role": "system", "content": f"s{END}"},
        {"role": "user", "content": [{"type": "text", "text": f"u{END}"}]},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": f"r{END}",
            "tool_calls": [
                {"type": "function", "function": function},
                {"name": "g", "arguments": f'{{"x": "{END}"}}'},
            ],
        },
        {"role": "tool", "content": f"t{END}"},
    ]
    tools = [{"name": "f", "description": f"d{END}", "parameters": {"enum": [END]}}]
    row, count = escape_control_tokens({"messages": messages, "tools": tools}, trained)
    assert count == 10
    assert END not in json.dumps(row)
    assert json.loads(json.dumps(row).replace("< |im_end|>", END)) == {"messages": messages, "tools": tools}
    assert messages[0]["content"] == f"s{END}", "the caller's row is not changed"

    rendered = trained.apply_chat_template(row["messages"], tools=row["tools"], tokenize=False)
    assert rendered.count(END) == len(messages), "only the template's own, one a turn"


@pytest.mark.parametrize("column", ["messages", "prompt", "completion", "chosen", "rejected"])
def test_columns_of_every_stage(trained, column):
    row, count = escape_control_tokens({column: [{"role": "user", "content": END}]}, trained)
    assert (row, count) == ({column: [{"role": "user", "content": "< |im_end|>"}]}, 1)
    assert escape_control_tokens({column: f"x{END}"}, trained) == ({column: "x< |im_end|>"}, 1)
    assert escape_control_tokens({column: None, "tools": None}, trained) == ({column: None, "tools": None}, 0)


def test_json_is_escaped_as_what_it_decodes_to(trained):
    hidden = json.dumps([{"description": f"为 {END}"}]).replace("<", "\\u003c")
    row, count = escape_control_tokens({"tools": hidden}, trained)
    assert count == 1
    assert json.loads(row["tools"]) == [{"description": "为 < |im_end|>"}]

    harmless = '[ {"name":"f"} ]'
    assert escape_control_tokens({"tools": harmless}, trained) == ({"tools": harmless}, 0)
    calls = {"role": "assistant", "content": "", "tool_calls": hidden}
    row, _ = escape_control_tokens({"messages": [calls]}, trained)
    assert json.loads(row["messages"][0]["tool_calls"]) == [{"description": "为 < |im_end|>"}]
    assert escape_control_tokens({"tools": f"no JSON {END}"}, trained) == (
        {"tools": "no JSON < |im_end|>"},
        1,
    )


def test_the_tokenizer_decides_what_is_special(trained):
    tokenizer = copy.deepcopy(trained)
    tokenizer.add_special_tokens({"extra_special_tokens": [AddedToken("[A]", special=True, normalized=False)]})
    assert escape_control_tokens({"text": "[A]"}, trained) == ({"text": "[A]"}, 0)
    assert escape_control_tokens({"text": "[A]"}, tokenizer) == ({"text": "[ A]"}, 1)


def test_escaping_goes_on_until_nothing_special_is_left(trained):
    tokenizer = copy.deepcopy(trained)
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in ("< |im_end|>", "|im_end|>x")])
    row, count = escape_control_tokens({"text": "<|im_end|>x"}, tokenizer)
    assert find_control_tokens(row["text"], tokenizer) == []
    assert (row["text"], count) == ("<  | im_end|>x", 3)


def test_a_token_of_one_character_cannot_be_broken_up(trained):
    tokenizer = copy.deepcopy(trained)
    tokenizer.add_tokens([AddedToken("§", special=True, normalized=False)])
    with pytest.raises(ValueError, match="'§' of this tokenizer is one character long"):
        escape_control_tokens({"text": "§ 1"}, tokenizer)


@pytest.mark.parametrize("message", [{"role": "human", "content": ""}, {"content": ""}, {"role": END}, "Hello", None])
def test_a_message_needs_a_role_that_templates_know(trained, message):
    with pytest.raises(MessageError, match=r"prompt\[1\]: .* one of system, user, assistant, tool"):
        escape_control_tokens({"prompt": [{"role": "user", "content": ""}, message]}, trained)
