import copy
import json
import random

import pytest
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from transformers import AutoTokenizer

from minimind_trl.models import PRESETS
from minimind_trl.tokenization import (
    GENERATIONS,
    MIN_VOCAB_SIZE,
    TokenizerTrainingError,
    bytes_per_token,
    inference_template,
    save_tokenizer,
    tiny_tokenizer,
    train_tokenizer,
    training_template,
)

from .conftest import TEXTS, UPSTREAM

# ----- train_tokenizer


def test_the_tokenizer_is_of_minimind_3s_kind(trained):
    assert len(trained) == trained.vocab_size == 400
    assert (trained.pad_token_id, trained.unk_token_id, trained.bos_token_id, trained.eos_token_id) == (
        0,
        0,
        1,
        2,
    )
    assert trained.convert_ids_to_tokens([0, 1, 2, 20, 21, 25, 26, 35]) == [
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tts_text_bos_single>"),
        *("<tool_call>", "<think>", "</think>", "<|buffer9|>"),
    ]
    assert trained.chat_template == training_template("minimind3")


def test_the_added_tokens_are_those_of_upstream(trained):
    if not UPSTREAM.is_dir():
        pytest.skip("needs the upstream tokenizers in ../shared, which are not part of the project")
    original = AutoTokenizer.from_pretrained(UPSTREAM / "minimind3")
    assert {i: vars_of(t) for i, t in trained.added_tokens_decoder.items()} == {
        i: vars_of(t) for i, t in original.added_tokens_decoder.items()
    }
    assert set(trained.all_special_ids) == set(original.all_special_ids)


def vars_of(token):
    return token.content, token.special, token.normalized, token.lstrip, token.rstrip, token.single_word


def test_thoughts_survive_decoding_and_control_tokens_do_not(trained):
    ids = trained.encode("<think>why</think><|im_end|>")
    assert trained.decode(ids, skip_special_tokens=True) == "<think>why</think>"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "\n\n\t \r\n",
            "  two  spaces ",
            "don 't ; , .",
            "naïve Ünïcödé",
            "从前有一个",
            "🌞👩‍👩‍👧‍👦",
        ),
        *("مرحبا", "\x00\x01\x7f", "\u200b\ufeff\ufffd", "a<|im_end|>b <think> </think>"),
        "".join(map(chr, range(1, 0x3000))),
    ],
)
def test_any_text_survives_the_round_trip(trained, text):
    assert trained.decode(trained.encode(text)) == text


def test_the_same_texts_give_the_same_file(trained, tmp_path):
    save_tokenizer(trained, tmp_path / "first")
    for name in ("second", "third"):  # the hash maps of the Rust trainer are seeded anew each time
        save_tokenizer(train_tokenizer(TEXTS, vocab_size=400), tmp_path / name)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "first" / file).read_bytes()


def test_saved_and_loaded(trained, tmp_path):
    save_tokenizer(trained, tmp_path / "new" / "tokenizer")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "new" / "tokenizer")
    assert loaded.get_vocab() == trained.get_vocab()
    assert loaded.chat_template == trained.chat_template
    assert loaded.model_max_length == trained.model_max_length == 131_072
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["tokenizer"], "nothing temporary is left"
    assert [vars_of(t) for t in loaded.added_tokens_decoder.values()] == [
        vars_of(t) for t in trained.added_tokens_decoder.values()
    ]


def test_training_makes_the_text_shorter(trained):
    bytes_only = train_tokenizer(TEXTS, MIN_VOCAB_SIZE)
    assert bytes_per_token(bytes_only, TEXTS) == 1
    assert bytes_per_token(trained, TEXTS) > 1.3


# Beginnings that a tokenizer may take together with the line ends before them.
BEGINNINGS = ["Yes", " Yes", "  x", "    return 1", "\nYes", "\n\n  x", "\t\tx", "\r\nx", "是", "7", "'s", "```py", "{"]


@pytest.fixture(scope="module")
def of_chats():
    """Trained where line ends stand side by side, and before indented lines, more often than anything else."""
    return train_tokenizer(["Yes\n\nNo\n\n  x\n    return 1\n\n\tx\r\n\r\n" * 20] * 20, vocab_size=MIN_VOCAB_SIZE + 12)


@pytest.mark.parametrize("twin", [training_template, inference_template])
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("text", BEGINNINGS)
def test_a_generation_prompt_has_the_tokens_that_its_row_begins_with(of_chats, text, generation, twin):
    def assistant(content: str, *calls: dict) -> dict:
        return {"role": "assistant", "content": content, "tool_calls": calls}

    call = {"name": "f", "arguments": {"x": text}}
    asked = [{"role": "system", "content": f"{text} "}, {"role": "user", "content": text}]
    tool = {"role": "tool", "content": text}
    options = {"tools": [{"name": text}], "chat_template": twin(generation), "return_dict": False}
    for tokenizer in (of_chats, tiny_tokenizer()):
        for before in (asked[1:], asked, [*asked, assistant(text), asked[1]], [*asked, assistant("", call), tool]):
            prompt = tokenizer.apply_chat_template(before, add_generation_prompt=True, **options)
            for turn in (assistant(text), assistant("", call), assistant(text, call)):
                whole = tokenizer.apply_chat_template([*before, turn], **options)
                assert whole[: len(prompt)] == prompt, turn


def test_a_thought_begins_after_the_tokens_of_the_open_prompt(of_chats):
    for text in BEGINNINGS:
        chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a", "reasoning_content": text}]
        whole = of_chats.apply_chat_template(chat, return_dict=False)
        options = {"add_generation_prompt": True, "open_thinking": True, "return_dict": False}
        prompt = of_chats.apply_chat_template(chat[:1], **options)
        assert whole[: len(prompt)] == prompt, text


def test_gpt_2s_words_alone_give_the_tokens_of_training(of_chats):
    """So that every engine splits as the tokenizer does, although no engine knows of the rule for line ends."""
    assert json.loads(of_chats.backend_tokenizer.to_str())["pre_tokenizer"]["type"] == "ByteLevel"
    apart = copy.deepcopy(of_chats)
    apart.backend_tokenizer.pre_tokenizer = Sequence([Split("\n", "isolated"), ByteLevel(add_prefix_space=False)])
    rng = random.Random(0)
    pieces = ["\n", "\n", " ", "  ", "\t", "\r", "x", "Yes", "1", "'s", "!", "为", "<think>"]
    for _ in range(2000):
        text = "".join(rng.choices(pieces, k=8))
        ids = of_chats.encode(text)
        assert ids == apart.encode(text), text
        assert all(of_chats.decode([token]) == "\n" for token in ids if "\n" in of_chats.decode([token])), text


def test_options_that_cannot_work():
    with pytest.raises(TokenizerTrainingError, match="vocab_size 291 is too small: choose at least 292"):
        train_tokenizer(TEXTS, 291)
    with pytest.raises(TokenizerTrainingError, match="the data holds no text"):
        train_tokenizer(["", ""], 300)
    with pytest.raises(TokenizerTrainingError, match=r"too small for vocab_size 6400: it supports only \d{3} tokens"):
        train_tokenizer(TEXTS, 6400)


def test_the_tiny_preset_has_the_shipped_tokenizers_vocabulary():
    assert PRESETS["tiny"]["vocab_size"] == len(tiny_tokenizer())
