"""Rows that the mixture has tokenized give what rendering and tokenizing them one by one gives."""

import json
import random

import datasets
import pytest
from datasets import Dataset

from minimind_trl import DatasetMixer
from minimind_trl.data.row_renderer import TOKEN_COLUMNS
from minimind_trl.evaluation.held_out import tokenize_rows
from minimind_trl.tokenization import inference_template, pieces, tiny_tokenizer, with_training_template
from minimind_trl.trainers.tokenized_rows import labelled_rows, pieces_of

LIMIT = 24
TOOL = {"type": "function", "function": {"name": "now", "description": "天气 <now>", "parameters": {}}}
CONTENTS = ("hi", "天气 🙂 e\u0301 naïve", "<|im_end|> x", " \n a \n\n", "🇩🇪" * 3, "<think>a</think>b", "word " * 40)


@pytest.fixture
def mixture(tmp_path, monkeypatch):
    """A mixture of one source with these rows."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def mixer(rows, phase):
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        source = "{name: a, source: a.jsonl, mix_ratio: 1.0}"
        path = tmp_path / "mixture.yaml"
        path.write_text(f"metadata: {{phase: {phase}}}\ndatasets: [{source}]\nvalidation: none\n")
        return DatasetMixer.from_yaml(path)

    return mixer


def chats(count=120):
    draw = random.Random(0)
    rows = []
    for number in range(count):
        turns = []
        for _ in range(draw.randint(1, 3)):
            answer = {"role": "assistant", "content": draw.choice(CONTENTS)}
            answer |= {"reasoning_content": draw.choice(CONTENTS)} if draw.random() < 0.2 else {}
            answer |= {"train": False} if draw.random() < 0.2 else {}
            turns += [{"role": "user", "content": f"{draw.choice(CONTENTS)} {number}"}, answer]
        tools = {"tools": json.dumps([TOOL])} if draw.random() < 0.2 else {}
        rows.append({"messages": turns, **tools})
    return rows


def one_by_one(row, tokenizer):
    """Ids and labels as transformers and TRL make them."""
    if "text" in row:
        ids = tokenizer(row["text"] + ("" if row["text"].endswith(tokenizer.eos_token) else tokenizer.eos_token))
        return ids["input_ids"], ids["input_ids"]
    options = {"tools": json.loads(row.get("tools") or "null"), "return_assistant_tokens_mask": True}
    found = tokenizer.apply_chat_template(row["messages"], **options)
    spans, offsets = (
        [],
        tokenizer(tokenizer.apply_chat_template(row["messages"], tools=options["tools"], tokenize=False)),
    )
    for at, turn in enumerate(row["messages"]):
        if turn["train"] is False:
            ends = (row["messages"][:count] for count in (at, at + 1))
            bounds = [tokenizer.apply_chat_template(part, tools=options["tools"], tokenize=False) for part in ends]
            spans.append([len(text) for text in bounds])
    labels = []
    for token, learned, (first, last) in zip(
        found["input_ids"], found["assistant_masks"], offsets.encodings[0].offsets, strict=True
    ):
        left_out = any(first < stop and start < last for start, stop in spans)
        labels.append(token if learned and not left_out else -100)
    return found["input_ids"], labels


@pytest.mark.parametrize("generation", ["minimind2", "minimind3"])
@pytest.mark.parametrize("phase", ["sft", "pretrain"])
def test_labels_are_those_of_tokenizing_one_by_one(mixture, phase, generation):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = inference_template(generation)
    rows = chats() if phase == "sft" else [{"text": f"{text} {n}"} for n in range(9) for text in CONTENTS]
    mixer = mixture(rows, phase)
    kept, plain = (mixer.build(tokenizer, keep_tokens=keep)["train"] for keep in (True, False))
    assert "input_ids" in kept.column_names
    assert (
        kept.remove_columns([name for name in TOKEN_COLUMNS if name in kept.column_names]).to_list() == plain.to_list()
    )

    twin = with_training_template(tokenizer)
    expected = [one_by_one(row, twin) for row in plain]
    for rows in (kept, plain):
        found = labelled_rows(rows, twin, assistant_only=phase == "sft")
        assert [(row["input_ids"], row["labels"]) for row in found] == expected
    everything = labelled_rows(kept, tokenizer, assistant_only=False)  # masks of answers do not fit here
    assert everything.to_list() == labelled_rows(plain, tokenizer, assistant_only=False).to_list()
    trained = [row for row in kept if all(turn["train"] is None for turn in row.get("messages", ()))]
    assert tokenize_rows(trained, None, LIMIT) == [
        ([*row["input_ids"][:LIMIT]], [True] * len(row["input_ids"][:LIMIT])) for row in trained
    ]
    found = labelled_rows(Dataset.from_list(trained, features=kept.features), None, assistant_only=False)
    assert all(row["labels"] == row["input_ids"] for row in found) and len(found) > 40

    for keep_end in (False, True):
        part = slice(-LIMIT, None) if keep_end else slice(LIMIT)
        cut = [(ids[part], labels[part]) for ids, labels in expected]
        cut = [row for row in cut if any(label != -100 for label in row[1])]
        found = labelled_rows(kept, twin, phase == "sft", LIMIT, keep_end)
        assert [(row["input_ids"], row["labels"]) for row in found] == cut
        stream = labelled_rows(plain.to_iterable_dataset(), twin, phase == "sft", LIMIT, keep_end)
        assert [(row["input_ids"], row["labels"]) for row in stream] == cut


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_pieces_are_those_of_lists(length):
    draw = random.Random(length)
    rows = []
    for _ in range(200):
        ids = draw.choices(range(9), k=draw.randint(1, 30))
        rows.append({"input_ids": ids, "labels": [token if draw.random() < 0.4 else -100 for token in ids]})
    expected = [
        {name: values[part] for name, values in row.items()}
        for row in rows
        for part in pieces(len(row["input_ids"]), length)
    ]
    expected = [row for row in expected if any(label != -100 for label in row["labels"][1:])]
    assert pieces_of(Dataset.from_list(rows), length).to_list() == expected
    assert list(pieces_of(Dataset.from_list(rows).to_iterable_dataset(), length)) == expected


def test_a_template_that_prints_other_text_in_training_keeps_no_tokens(mixture):
    """Then the trainer tokenizes, with its own template."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}"
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    data = mixture([{"messages": messages}], "sft").build(tokenizer, keep_tokens=True)
    assert data["train"].column_names == ["messages", "source"]
