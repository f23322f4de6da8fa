"""The text of files, folders and rows, for training a tokenizer."""

import json
import os

import pytest
from datasets import Dataset, DatasetDict

from minimind_trl.data.texts import iter_texts
from minimind_trl.errors import MixtureError

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
    with pytest.raises(MixtureError, match=r"x\.jsonl: no column that .* id, story; .* --text_field story$"):
        list(iter_texts([tmp_path / "x.jsonl"]))
    with pytest.raises(MixtureError, match=r"no column 'stories', only: id, story; .* --text_field story$"):
        list(iter_texts([tmp_path / "x.jsonl"], "stories"))


def test_sources_that_cannot_be_read(tmp_path):
    def error(name, content=None):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(MixtureError) as caught:
            list(iter_texts([tmp_path / name]))
        return str(caught.value)

    assert "missing.jsonl" in error("missing.jsonl")
    assert "missing.txt" in error("missing.txt")
    assert "broken.jsonl, line 1: not JSON" in error("broken.jsonl", b'{"text": \n')
    assert "empty.csv: is empty" in error("empty.csv", b"")
    assert "notes.md: unknown kind of file: convert it to .txt, .json" in error("notes.md", b"x")
    assert "latin.txt: is not UTF-8 text" in error("latin.txt", b"\xe9")
    assert "column 'text' holds int, not text" in error("numbers.jsonl", b'{"text": 1}\n')


def test_pipes_devices_and_folders_of_a_file_s_name_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.txt").mkdir()
    for source, kind in (("/dev/zero", "a pipe or a device"), ("pipe.jsonl", "a pipe or"), ("folder.txt", "a folder")):
        with pytest.raises(MixtureError, match=f"{source}: is {kind}"):
            list(iter_texts([tmp_path / source]))
