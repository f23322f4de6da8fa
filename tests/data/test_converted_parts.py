"""Sources are converted in pieces, by several processes: the same rows in the same order for any number of them."""

import datasets
import pytest

from minimind_trl import DatasetMixer
from minimind_trl.cli import main
from minimind_trl.data import converted_parts, file_formats
from minimind_trl.errors import MixtureError
from minimind_trl.progress import progress
from minimind_trl.tokenization import tiny_tokenizer


@pytest.fixture
def in_small_pieces(monkeypatch):
    monkeypatch.setattr(file_formats, "_PART_BYTES", (200, 200))
    monkeypatch.setattr(converted_parts, "_ROWS", (7, 9))


def texts(count):
    return [{"text": f"a text, number {i}" if i % 5 else ""} for i in range(count)]


def build(path, cache, processes, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    mixer = DatasetMixer.from_yaml(path)
    mixer.processes = processes
    return mixer.build(tiny_tokenizer(), keep_tokens=True), mixer


def test_rows_and_counts_are_the_same_for_any_number_of_processes(write, tmp_path, monkeypatch, in_small_pieces):
    path = write({"a": texts(90)}, validation={"ratio": 0.1, "seed": 0})
    found = [build(path, tmp_path / f"cache{n}", n, monkeypatch) for n in (1, 2, 3)]
    assert len(list((tmp_path / "cache3" / "minimind-trl").glob("rows-*/*.arrow"))) > 6
    [first, *others] = [({name: rows.to_list() for name, rows in data.items()}, mixer.lock()) for data, mixer in found]
    assert first[1]["sources"][0]["dropped"] == {"empty text": 18}
    assert others == [first, first]


def test_the_first_bad_row_is_named_and_what_is_done_is_not_done_again(write, tmp_path, monkeypatch, in_small_pieces):
    rows = texts(90)
    path = write({"a": [*rows[:40], "{no json}\n", *rows[41:60], "{neither}\n", *rows[61:]]}, validation="none")
    with pytest.raises(MixtureError, match="line 41: not JSON"):
        build(path, tmp_path / "cache", 2, monkeypatch)
    monkeypatch.setattr(
        converted_parts, "_write_arrow", lambda path, *_: pytest.fail("converted again") if path.name < "000002" else 0
    )
    pieces = [converted_parts.Piece(lambda: iter(()), 1)] * 3
    [unfinished] = (tmp_path / "cache" / "minimind-trl").glob("*.unfinished")
    converted_parts.write_pieces("", pieces, unfinished, None)


def test_without_a_terminal_progress_is_a_line_for_every_tenth(capsys, monkeypatch):
    monkeypatch.setattr("minimind_trl.progress._PATIENCE", 0.0)
    with progress("converting a", total=1000) as bar:
        for _ in range(1000):
            bar.mininterval = 0
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 and lines[4].startswith("converting a: 50%, 500 of 1,000 rows, ")
    monkeypatch.undo()
    assert list(progress("quick", items=range(5), total=5)) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""  # nothing of what takes less than seconds


def test_shards_made_apart_are_joined_to_one_build(write, tmp_path, monkeypatch, capsys, in_small_pieces):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = write({"a": texts(90), "b": [{"text": f"b {i}"} for i in range(30)]}, validation={"ratio": 0.1, "seed": 0})
    command = ["data", "build", str(path), "--tokenizer", "tiny", "--output_dir"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    assert main([*command, str(tmp_path / "out"), "--shard", "2/2"]) == 0
    assert main([*command, str(tmp_path / "out"), "--merge"]) == 2
    assert "pieces of datasets.a are missing, such as 000000.arrow: build every --shard" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "out"), "--shard", "3/2"]) == 2
    assert main([*command, str(tmp_path / "out"), "--shard", "1/2"]) == 0
    monkeypatch.setattr(converted_parts, "_write_arrow", lambda *_: pytest.fail("converted again"))
    assert main([*command, str(tmp_path / "out"), "--merge"]) == 0
    whole, merged = (sorted((tmp_path / name).iterdir()) for name in ("whole", "out"))
    assert [file.read_bytes() for file in merged] == [file.read_bytes() for file in whole] and len(whole) == 3
