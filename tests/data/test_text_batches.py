"""Texts that are converted and written in batches are those that are converted and written one by one."""

import json
import random

import datasets
import pytest
from datasets import Dataset

from minimind_trl import patterns
from minimind_trl.data import DatasetMixer, MixtureError, tables
from minimind_trl.data.text_batches import TextBatches
from minimind_trl.patterns import is_literal
from minimind_trl.tokenization import tiny_tokenizer

TEXTS = (
    *(
        "plain text of some length",
        "天气 🙂 e\u0301 naïve",
        'a "quoted" \\ back\\\\slash\\',
        "line\nline\r\n\ttab",
        "\x00\x1f\x7f\u2028",
    ),
    *(
        "",
        "  \n",
        "[1, 2]",
        '{"a": 1}',
        "{}",
        '[{"role": "user", "content": "q"}]',
        "array([{'role': 'user', 'content': 'q'}])",
    ),
    *(
        "see https://example.org/ there",
        "see http//example",
        "short",
        "<|im_end|> and <think>",
        "\\u0041 \\/ /",
        '"text"',
        "text",
    ),
    *("ab " * 300, '{"text": "nested"}', "a/b", "ends with a backslash\\", "\ud800 half"),
)
OTHERS = (
    {},
    {"id": 3},
    {"meta": {"a": None}},
    {"text ": "x"},
    {"label": True},
    {"chosen": "\n\nHuman: q\n\nAssistant: a"},
    {"score": ""},
)


def lines(draw, count):
    """Rows in all ways in which JSON writes them."""
    for number in range(count):
        text = draw.choice(TEXTS) if draw.random() < 0.7 else f"row {number} {draw.choice(TEXTS)}"
        row = {"text": text, **(draw.choice(OTHERS) if draw.random() < 0.3 else {})}
        if draw.random() < 0.1:
            row = draw.choice([{"text": None}, {"text": 3}, {"text": [text]}, {"id": 1}, {"id": 1, **row}])
        line = json.dumps(
            row,
            ensure_ascii=draw.random() < 0.3 or "\ud800" in text,
            separators=draw.choice([None, (",", ":"), (", ", ":  ")]),
        )
        line = line.replace("/", "\\/") if draw.random() < 0.1 else line
        line = (
            line.replace('{"text', f'{{"text": {json.dumps(draw.choice(TEXTS[:3]))}, "text')
            if draw.random() < 0.05
            else line
        )
        yield (
            draw.choice(["", " ", "\ufeff"] if draw.random() < 0.1 else [""])
            + line
            + draw.choice(["\n", "\r\n", " \n", "\n\n"])
        )


FILTERS = (
    [],
    [{"type": "length", "min_length": 6, "max_length": 500}, {"type": "regex", "pattern": "https?://"}],
    [{"type": "regex", "pattern": "(row|see)", "action": "keep"}, {"type": "quality", "min_score": 0.1}],
    [{"type": "field", "field": "id", "drop": [3]}, {"type": "regex", "pattern": "row", "field": "text"}],
)


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("tokenizer", [None, tiny_tokenizer()])
def test_columns_and_facts_are_those_of_rows_one_by_one(write, tmp_path, monkeypatch, filters, tokenizer):
    draw = random.Random(len(filters) + 1)
    if tokenizer and filters:
        filters = [*filters, {"type": "length", "unit": "tokens", "min_length": 3}]
    path = write({"a": list(lines(draw, 400))}, options={"filters": filters}, validation="none", dedup="none")
    found = []
    for fits in (TextBatches.fits, lambda _: False):
        monkeypatch.setattr(TextBatches, "fits", fits)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / f"cache{len(found)}"))
        mixer = DatasetMixer.from_yaml(path)
        source = mixer.reader(tokenizer).open(mixer.mixture.datasets[0])
        found.append(source.rows.data.table)
    assert found[0].schema == found[1].schema
    assert found[0].to_pylist() == found[1].to_pylist()
    reasons = set(found[0]["_reason"].to_pylist())
    assert len(found[0]) == 400 and {None, "empty text", "text is no string"} <= reasons


def test_a_filter_that_fails_names_the_row(write, monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.05)
    texts = [{"text": "a" * (40 if number == 7 else 3) + "c"} for number in range(20)]
    path = write({"a": texts}, options={"filters": [{"type": "regex", "pattern": "(a|a|aa)+b"}]})
    with pytest.raises(MixtureError, match=r"a.jsonl, line 8 \(datasets.a\): filter regex: .* it backtracks"):
        DatasetMixer.from_yaml(path).build()


def test_lines_of_strings_are_those_of_json(tmp_path):
    draw = random.Random(3)
    texts = [text for text in TEXTS if "\ud800" not in text]
    for some in (texts, [text for text in texts if "\x00" not in text], [*texts, None]):
        rows = [{"text": draw.choice(some), 'a "name"': draw.choice(some), "source": "s"} for _ in range(2500)]
        rows = Dataset.from_list(rows, features=datasets.Features(dict.fromkeys(rows[0], datasets.Value("string"))))
        tables.write_split(rows, tmp_path / "rows.jsonl")
        expected = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        assert (tmp_path / "rows.jsonl").read_bytes().decode() == expected


@pytest.mark.parametrize("pattern", ["https?://", "a", r"a\.b?c", "天气", r"\?\?"])
def test_literal_patterns_need_no_timeout(pattern):
    assert is_literal(pattern)


@pytest.mark.parametrize(
    "pattern", ["a*", "(a|aa)", "[ab]", r"\d", "^a", "a$", "a??", "a{2}", "(?i)a", ".", "a?" * 9, ""]
)
def test_others_do(pattern):
    assert not is_literal(pattern)
