"""Streaming mixtures: the same rows on the same sides, shares in expectation, nothing known of the whole."""

import json
import subprocess
import sys
from itertools import zip_longest

import pyarrow.parquet
import pytest
import yaml
from datasets import Dataset

from minimind_trl.data import DatasetMixer, MixtureError, file_formats, load_mixture, prepare, streaming
from minimind_trl.data.config import Source
from minimind_trl.data.sources import open_source
from minimind_trl.data.streaming import share_of
from minimind_trl.tokenization import tiny_tokenizer
from tests.conftest import REPOSITORY
from tests.data.test_mixer import build, chat, texts
from tests.loopback_hub import LoopbackHub


def rows(split):
    return [row["text"] for row in split]


def test_a_stream_splits_as_the_same_mixture_does_at_rest(write):
    sources, rule = {"a": texts("a", 300)}, {"ratio": 0.2, "seed": 3}
    at_rest, _ = build(write(sources, validation=rule))
    stream, _ = build(write(sources, validation=rule, streaming=True))
    assert sorted(rows(stream["validation"])) == sorted(rows(at_rest["validation"]))
    assert sorted(rows(stream["train"])) == sorted(rows(at_rest["train"]))
    assert list(next(iter(stream["train"]))) == ["text", "source"]


@pytest.mark.parametrize("phase", ["sft", "midtrain"])
def test_its_rows_have_the_tokens_of_the_same_mixture_at_rest(write, phase):
    """Each is rendered and tokenized once, as it is read."""
    rows = [chat(f"天气 {i}", skill="3") for i in range(80)]
    rows[7]["messages"] += [{"role": "user", "content": "q"}, {"role": "assistant", "content": "no", "train": False}]
    options = {"phase": phase, "validation": {"ratio": 0.2, "seed": 3}, "options": {"keep_columns": ["skill"]}}
    found = []
    for is_stream in (False, True):
        path = write({"a": rows}, **options, streaming=is_stream)
        data = DatasetMixer.from_yaml(path).build(tiny_tokenizer(), keep_tokens=True)
        names = ("skill", "input_ids", "assistant_masks")
        part = [row for split in data.values() for row in split]
        found.append(
            {row.get("text") or row["messages"][0]["content"]: [row.get(name) for name in names] for row in part}
        )
    assert found[0] == found[1] and len(found[0]) > 60 and all(ids for _, ids, _ in found[0].values())


def test_its_shares_hold_in_expectation_and_its_size_exactly(write):
    sources, ratios = {"a": texts("a", 3000), "b": texts("b", 3000)}, {"a": 0.7, "b": 0.3}
    data, _ = build(write(sources, ratios=ratios, streaming=True, size={"rows": 2000}))
    taken = [row["source"] for row in data["train"]]
    assert len(taken) == 2000
    assert taken.count("a") / 2000 == pytest.approx(0.7, abs=0.04)


def test_it_is_shuffled_by_its_seed(write):
    orders = []
    for seed in (1, 1, 2):
        data, _ = build(write({"a": texts("a", 200)}, streaming=True, seed=seed))
        orders.append(rows(data["train"]))
    assert orders[0] == orders[1] != orders[2]


def test_it_counts_what_it_reads_and_drops(write):
    data, mixer = build(write({"a": [*texts("a", 90), {"text": ""}]}, streaming=True))
    assert mixer.describe() == "a: streamed, not read yet"
    list(data["train"])
    assert mixer.describe() == "a: streamed, 91 rows read, 1 empty text"
    assert mixer.lock()["sources"][0]["read_so_far"] == {"rows read": 91, "empty text": 1}


@pytest.fixture
def in_small_parts(monkeypatch):
    """Files of a test, in parts and blocks as large ones are."""
    monkeypatch.setattr(file_formats, "_PART_BYTES", (200, 200))
    monkeypatch.setattr(file_formats, "_BATCH", 20)
    monkeypatch.setattr(streaming, "_BLOCK", 32)


def test_it_goes_on_at_any_row_without_reading_what_was_before(write, in_small_parts, monkeypatch):
    path = write({"a": texts("a", 200), "b": texts("b", 200)}, streaming=True, options={"max_repetition": 2})
    stream = build(path)[0]["train"]
    expected, states = [], []
    for row in stream:
        expected.append(row["text"])
        states.append(json.loads(json.dumps(stream.state_dict())))
    parsed = []
    parse = file_formats.parsed_line
    monkeypatch.setattr(file_formats, "parsed_line", lambda *told: parsed.append(told) or parse(*told))
    for done in (1, 2, 31, 32, 33, 64, 100, 177, len(states) - 1):
        stream = build(path)[0]["train"]
        stream.load_state_dict(states[done - 1])
        parsed.clear()
        rest = iter(stream)
        assert next(rest)["text"] == expected[done]
        assert len(parsed) < 2 * (32 + 20 + 10), "a block, a batch of the reader and a part of each source"
        assert [row["text"] for row in rest] == expected[done + 1 :]


_FROM_THE_HUB = """
import json, sys
from minimind_trl.data import DatasetMixer, streaming

streaming._BLOCK = 8
stream, expected, states = DatasetMixer.from_yaml(sys.argv[1]).build()["train"], [], []
for row in stream:
    expected.append(row["text"])
    states.append(json.dumps(stream.state_dict()))
for done in (13, 50):
    stream = DatasetMixer.from_yaml(sys.argv[1]).build()["train"]
    stream.load_state_dict(json.loads(states[done - 1]))
    assert [row["text"] for row in stream] == expected[done:], done
print(len(expected))
"""


@pytest.mark.slow  # `datasets` takes seconds to end its threads
def test_one_from_the_hub_goes_on_at_any_row_too(tmp_path):
    """Parquet, as `datasets` streams it, and JSON lines, which we do."""
    sources = [{"name": name, "source": f"some/{name}", "format": "huggingface", "mix_ratio": 0.5} for name in "ab"]
    sources[1]["data_files"] = {"train": ["*.jsonl"]}
    path = tmp_path / "pretrain.yaml"
    path.write_text(yaml.safe_dump({"metadata": {"phase": "pretrain"}, "streaming": True, "datasets": sources}))
    with LoopbackHub() as hub:
        hub.add("some/a", configs={"default": {"train": texts("a", 60)}})
        hub.add("some/b", {"1.jsonl": texts("b", 30), "2.jsonl": texts("c", 30)})
        command = [sys.executable, "-c", _FROM_THE_HUB, str(path)]
        result = subprocess.run(
            command, env=hub.environment(tmp_path), cwd=REPOSITORY, capture_output=True, text=True, timeout=120
        )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 60


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_the_parts_of_a_file_are_the_file(kind, tmp_path, in_small_parts):
    rows = Dataset.from_list(texts("a", 100))
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" + "\n" * (i % 3 == 0) for i, row in enumerate(rows)))
    elif kind == "parquet":
        pyarrow.parquet.write_table(rows.data.table, path, row_group_size=7)
    else:
        rows.save_to_disk(path)
    source = Source(name="a", source=str(path), mix_ratio=1)
    [file] = open_source(source, tmp_path)
    parts = [list(part.read()) for part in file.parts()]
    assert len(parts) > 3
    assert [row for part in parts for row in part] == list(file.read())
    assert open_source(source, tmp_path)[0].head(1, stream=True) == parts[0][:1]


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl.gz"])
def test_a_file_that_can_only_be_read_from_its_beginning_has_no_parts(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    kind = {"format": "jsonl"} if name.endswith("gz") else {}
    [file] = open_source(Source(name="a", source=str(tmp_path / name), mix_ratio=1, **kind), tmp_path)
    assert file.parts is None


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("small", [False, True])
def test_processes_share_it(write, in_small_parts, processes, small):
    """Each reads its parts; of a source of few parts every process reads all, and keeps every n-th row."""
    path = write({"a": texts("a", 9 if small else 300)}, streaming=True)
    whole = rows(build(path)[0]["train"])
    mixers = [build(path) for _ in range(processes)]
    shares = [rows(share_of(data["train"], rank, processes)) for rank, (data, _) in enumerate(mixers)]
    assert sorted(text for share in shares for text in share) == sorted(whole)
    read = [mixer.seen["a"]["rows read"] for _, mixer in mixers]
    assert read == [9] * processes if small else sum(read) == 300
    if small:
        assert [row for together in zip_longest(*shares) for row in together if row] == whole


@pytest.mark.parametrize(
    ("extra", "options", "message"),
    [
        ({"metadata": {"total_tokens": 9}}, {}, "metadata.total_tokens: a stream's tokens are not known ahead"),
        ({"size": {"tokens": 9}}, {}, "size.tokens: a stream's tokens are not known ahead"),
        ({"dedup": "near"}, {}, "dedup: a stream does not remember its rows"),
        ({}, {"max_samples": 9}, "datasets.0.max_samples: a random sample needs the whole source"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(write, extra, options, message):
    with pytest.raises(MixtureError, match=message):
        load_mixture(write({"a": texts("a", 9)}, streaming=True, options=options, **extra))


def test_a_stream_cannot_be_prepared(write, tmp_path):
    mixer = DatasetMixer.from_yaml(write({"a": texts("a", 90)}, streaming=True))
    with pytest.raises(MixtureError, match="a streaming mixture is read while it is trained on"):
        prepare(mixer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_it_keeps_evaluation_sets_out(write, tmp_path):
    asked = [
        f"question {i}: how many apples has the farmer left when he has sold seven of his twelve" for i in range(9)
    ]
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in asked))
    against = [{"name": "exam", "source": "exam.jsonl", "field": "text"}]
    rows_in = [*texts("a", 200), *({"text": text} for text in asked)]
    data, mixer = build(write({"a": rows_in}, streaming=True, decontaminate={"against": against}))
    assert not set(asked) & {*rows(data["train"]), *rows(data["validation"])}
    assert "9 shares a run of words with an evaluation set" in mixer.describe()


def test_no_source_trains_on_what_another_holds_out(write, tmp_path):
    path = write({"a": texts("a", 90), "b": texts("b", 90)}, streaming=True)
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts("b", 20)))
    mixture = yaml.safe_load(path.read_text())
    mixture["datasets"][0] |= {"source": ".", "data_files": {"train": "a.jsonl", "validation": "held.jsonl"}}
    path.write_text(yaml.safe_dump(mixture))
    data, _ = build(path)
    assert not {f"b {i}" for i in range(20)} & set(rows(data["train"]))


@pytest.mark.parametrize(
    ("bad", "options", "message"),
    [
        ([{"text": ""}] * 30, {}, "datasets.b: 30 of 30 rows cannot be used"),
        (texts("b", 30), {"filters": [{"type": "length", "min_length": 99}]}, "no row is left"),
        ([*texts("b", 300), *([{"text": ""}] * 3000)], {}, None),
    ],
)
def test_a_source_that_gives_nothing_is_an_error(write, bad, options, message):
    path = write({"a": texts("a", 300), "b": bad}, streaming=True)
    mixture = yaml.safe_load(path.read_text())
    mixture["datasets"][1] |= options
    path.write_text(yaml.safe_dump(mixture))
    if message:
        with pytest.raises(MixtureError, match=message):
            build(path)
    else:  # seen only while it is read
        with pytest.raises(MixtureError, match="of the first 1000 rows hardly any is of use"):
            rows(build(path)[0]["train"])
