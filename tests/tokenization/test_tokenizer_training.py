import copy
import json
import os
import random
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from transformers import AutoTokenizer

from minimind_trl.models import PRESETS
from minimind_trl.tokenization import (
    GENERATIONS,
    MIN_VOCAB_SIZE,
    TINY_TOKENIZER_DIR,
    TokenizerTrainingError,
    bytes_per_token,
    inference_template,
    iter_texts,
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


# ----- iter_texts

CHAT = "user\na\nassistant\n\nb"  # roles as the template writes them


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"id": 1, "text": "a\nb"}, "a\nb"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, CHAT),
        (
            {"conversations": [{"role": "assistant", "content": "b", "reasoning_content": "a"}], "gt": ["1"]},
            "assistant\n\na\nb",
        ),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "a\nb"),
        ({"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}, "a\nassistant\n\nb"),
        ({"instruction": "a", "input": "", "output": "b"}, "a\n\nb"),
    ],
)
def test_the_text_of_a_row_is_found(tmp_path, row, text):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert list(iter_texts([tmp_path / "rows.jsonl"])) == [text]


def test_every_kind_of_file(tmp_path):
    rows = Dataset.from_dict({"text": ["a", "b"]})
    rows.to_csv(tmp_path / "x.csv")
    rows.to_parquet(tmp_path / "x.parquet")
    rows.to_json(tmp_path / "x.jsonl")
    (tmp_path / "x.json").write_text('[{"text": "a"}, {"text": "b"}]')
    rows.save_to_disk(tmp_path / "saved")
    DatasetDict(train=rows).save_to_disk(tmp_path / "splits")
    (tmp_path / "folder").mkdir()
    rows.to_parquet(tmp_path / "folder" / "x.parquet")
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    names = ["x.csv", "x.parquet", "x.jsonl", "x.json", "saved", "splits", "folder", arrow]
    for name in names:
        assert list(iter_texts([tmp_path / name])) == ["a", "b"], name
    assert list(iter_texts([tmp_path / name for name in names[:2]])) == ["a", "b", "a", "b"]


def test_a_text_file_is_read_in_blocks_of_whole_lines(tmp_path):
    text = "one\r\n\n  two\n" * 20_000 + "end"
    (tmp_path / "x.txt").write_bytes(text.encode())
    blocks = list(iter_texts([tmp_path / "x.txt"]))
    assert "".join(blocks) == text
    assert len(blocks) > 3
    assert all(block.endswith("\n") for block in blocks[:-1])


def test_another_text_field(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"id": "7", "story": "Once upon a time"}\n')
    assert list(iter_texts([tmp_path / "x.jsonl"], "story")) == ["Once upon a time"]
    with pytest.raises(TokenizerTrainingError, match=r"x\.jsonl: no column that .* id, story; .* --text_field story$"):
        list(iter_texts([tmp_path / "x.jsonl"]))
    with pytest.raises(TokenizerTrainingError, match=r"no column 'stories', only: id, story; .* --text_field story$"):
        list(iter_texts([tmp_path / "x.jsonl"], "stories"))


def test_sources_that_cannot_be_read(tmp_path):
    def error(name, content=None):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(TokenizerTrainingError) as caught:
            list(iter_texts([tmp_path / name]))
        return str(caught.value)

    assert "missing.jsonl" in error("missing.jsonl")
    assert "missing.txt" in error("missing.txt")
    assert "broken.jsonl: cannot be read: JSON parse error" in error("broken.jsonl", b'{"text": \n')
    assert "empty.csv: is empty" in error("empty.csv", b"")
    assert "notes.md: unknown kind of file: convert it to one of .txt" in error("notes.md", b"x")
    assert "latin.txt: is not UTF-8 text" in error("latin.txt", b"\xe9")
    assert "column 'text' holds int, not text" in error("numbers.jsonl", b'{"text": 1}\n')


def test_pipes_devices_and_folders_of_a_file_s_name_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.txt").mkdir()
    for source, kind in (("/dev/zero", "a pipe or a device"), ("pipe.jsonl", "a pipe or"), ("folder.txt", "a folder")):
        with pytest.raises(TokenizerTrainingError, match=f"{source}: is {kind}"):
            list(iter_texts([tmp_path / source]))


def test_the_shipped_tokenizer_is_trained_on_the_embedded_tasks(tmp_path):
    """The command in docs/models.md makes `minimind_trl/tokenization/tiny`, byte for byte."""
    data = Path(__file__).resolve().parents[2] / "data_configs" / "tiny" / "data"
    texts = iter_texts([data / f"{stage}_train.jsonl" for stage in ("pretrain", "midtrain", "sft")])
    save_tokenizer(train_tokenizer(texts, len(tiny_tokenizer()), model_max_length=2048), tmp_path / "tiny")
    for file in TINY_TOKENIZER_DIR.iterdir():
        assert (tmp_path / "tiny" / file.name).read_bytes() == file.read_bytes(), file.name


def test_the_tiny_preset_has_the_shipped_tokenizers_vocabulary():
    assert PRESETS["tiny"]["vocab_size"] == len(tiny_tokenizer())
