"""Which tokens of a row are learned."""

import copy

import pytest

from minimind_trl.tokenization import (
    ChatTemplateError,
    inference_template,
    tiny_tokenizer,
    tokenize_conversation,
    tokenize_text,
    untrained_spans,
    with_training_template,
)
from minimind_trl.tokenization.masks import token_ids

CHAT = [
    {"role": "user", "content": "sum 0"},
    {"role": "assistant", "content": "BADTURN 天气", "train": False},
    {"role": "user", "content": "again"},
    {"role": "assistant", "content": "GOODTURN"},
]


def tokenizer(generation="minimind3"):
    made = tiny_tokenizer()
    made.chat_template = inference_template(generation)
    return made


def learned(ids, mask, of):
    return of.decode([token for token, wanted in zip(ids, mask, strict=True) if wanted])


@pytest.mark.parametrize("generation", ["minimind2", "minimind3"])
def test_a_turn_that_is_not_trained_has_no_learned_token(generation):
    twin = with_training_template(tokenizer(generation))
    ids, mask = tokenize_conversation(twin, CHAT, assistant_only=True)
    think = "<think>\n\n</think>\n\n" if generation == "minimind3" else ""
    assert learned(ids, mask, twin) == f"{think}GOODTURN<|im_end|>"
    plain = [{name: value for name, value in turn.items() if name != "train"} for turn in CHAT]
    same, more = tokenize_conversation(twin, plain, assistant_only=True)
    assert same == ids and "BADTURN 天气<|im_end|>" in learned(same, more, twin)
    ids, mask = tokenize_conversation(twin, CHAT)
    assert "BADTURN" not in learned(ids, mask, twin) and "sum 0" in learned(ids, mask, twin)


def test_calls_between_tools():
    call = {"name": "now", "arguments": "{}"}
    chat = [
        CHAT[0],
        {"role": "assistant", "content": "", "tool_calls": [call], "train": False},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "three"},
    ]
    twin = with_training_template(tokenizer())
    ids, mask = tokenize_conversation(twin, chat, [{"name": "now"}], assistant_only=True)
    assert learned(ids, mask, twin) == "<think>\n\n</think>\n\nthree<|im_end|>"


def test_characters_of_a_text_that_are_not_learned():
    plain = tokenizer()
    text = plain.apply_chat_template(CHAT, tokenize=False)
    spans = untrained_spans(plain, CHAT)
    ids, mask = tokenize_text(plain, text, spans)
    start, end = spans[0]
    assert learned(ids, mask, plain) == text[:start] + text[end:] + plain.eos_token
    assert tokenize_text(plain, text) == (ids, [True] * len(ids))


def test_a_template_that_writes_no_turns_is_refused():
    odd = tokenizer()
    odd.chat_template = "{% for m in messages | reverse %}{{ m.content }}{% endfor %}"
    with pytest.raises(ChatTemplateError, match="does not show where the turn ends that is not to be trained"):
        untrained_spans(odd, CHAT)


@pytest.mark.parametrize("add_special_tokens", [False, True])
def test_the_fast_way_to_token_ids_gives_those_of_the_tokenizer(shipped, add_special_tokens):
    texts = ["", "a b", "天气 <|im_end|>\n<think>", "BADTURN" * 50]
    shipped(texts, padding=True, truncation=True, max_length=8)  # leaves its settings in the tokenizer
    expected = copy.deepcopy(shipped)(texts, add_special_tokens=add_special_tokens)["input_ids"]
    assert token_ids(shipped, texts, add_special_tokens) == expected
    assert shipped.eos_token_id in expected[2]
    shipped.split_special_tokens = True
    split = shipped(texts, add_special_tokens=add_special_tokens)["input_ids"]
    assert token_ids(shipped, texts, add_special_tokens) == split != expected
