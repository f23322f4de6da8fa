"""Sources and filters that would hang, fill a disk or run what they should not."""

import errno
import json
import os
import socket
import threading

import pytest
from datasets.arrow_writer import ArrowWriter

from minimind_trl.cli import main
from minimind_trl.data import DatasetMixer, MixtureError, load_mixture, sources
from tests.data.test_mixer import build, texts


def mixture_over(path, tmp_path, **options):
    declared = {"name": "a", "source": str(path), "format": "jsonl", **options}
    (tmp_path / "m.yaml").write_text(json.dumps({"metadata": {"phase": "pretrain"}, "datasets": [declared]}))
    return tmp_path / "m.yaml"


@pytest.fixture
def pipe(tmp_path):
    """A named pipe into which some rows are written, once."""
    path = tmp_path / "rows.jsonl"
    os.mkfifo(path)
    content = "".join(json.dumps(row) + "\n" for row in texts("p", 90))
    writer = threading.Thread(target=lambda: path.write_text(content), daemon=True)
    writer.start()
    yield path
    writer.join(timeout=5)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_pipe_is_read_once(pipe, tmp_path, streaming):
    path = mixture_over(pipe, tmp_path)
    if streaming:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"streaming": True}))
    mixer = DatasetMixer.from_yaml(path)
    mixer.validate_mixture()
    data = mixer.build()
    assert len({row["text"] for split in data.values() for row in split}) == 90
    assert mixer.lock()["sources"][0]["files"][0]["name"] == "rows.jsonl"


def test_errors_in_what_a_pipe_gave_name_the_pipe(tmp_path):
    path = tmp_path / "rows.csv"
    os.mkfifo(path)
    threading.Thread(target=lambda: path.write_text("text\na,b\n"), daemon=True).start()
    with pytest.raises(MixtureError, match=f"{path}, line 2: not as many fields as the header has"):
        build(mixture_over(path, tmp_path, format="csv"))


def test_a_pipe_that_nobody_writes_into_is_told(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sources, "_PATIENCE", 0.1)
    path = tmp_path / "rows.jsonl"
    os.mkfifo(path)
    threading.Timer(0.4, lambda: path.write_text(json.dumps({"text": "late"}) + "\n")).start()
    [file] = sources.open_source(load_mixture(mixture_over(path, tmp_path)).datasets[0], tmp_path)
    assert [row for _, row in file.read()] == [{"text": "late"}]
    assert f"data: waiting for what is written into {path}" in capfd.readouterr().err


def test_a_pipe_is_for_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(MixtureError, match="is a pipe, which only one process can read; write it to a file first"):
        build(mixture_over(tmp_path / "rows.jsonl", tmp_path))


def test_devices_sockets_and_folders_are_refused(tmp_path, capsys):
    (tmp_path / "folder.jsonl").mkdir()
    with socket.socket(socket.AF_UNIX) as open_socket:
        open_socket.bind(str(tmp_path / "s"))
        for path, options, message in (
            ("/dev/zero", {}, "/dev/zero is a device or a socket; give a file, or a pipe that ends"),
            ("/dev/urandom", {"format": "parquet"}, "/dev/urandom is a device or a socket"),
            (tmp_path / "s", {}, "is a device or a socket"),
            (tmp_path, {"data_files": "folder.jsonl"}, "folder.jsonl is a folder; name the files in it, such as"),
            (tmp_path, {}, "folder.jsonl is a folder; name the files in it, such as"),
        ):
            assert (
                main(["data", "build", str(mixture_over(path, tmp_path, **options)), "--output_dir", "/nowhere/x"]) == 2
            )
            assert message in capsys.readouterr().err


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_a_device_is_no_mixture_file(path):
    with pytest.raises(MixtureError, match=f"{path} is a device or a pipe; give a mixture file"):
        load_mixture(path)


def test_a_folder_is_no_mixture_file(tmp_path):
    with pytest.raises(MixtureError, match="is a folder; give a mixture file"):
        load_mixture(tmp_path)


@pytest.mark.parametrize("field", [None, "text"])
def test_a_regular_expression_that_backtracks_for_ever_is_stopped_and_the_row_named(write, monkeypatch, field):
    monkeypatch.setattr("minimind_trl.patterns.SECONDS", 0.1)
    rows = [*texts("t", 30), {"text": "a" * 60}, *texts("u", 30)]
    rule = {"type": "regex", "pattern": "^(a|aa)+$", "field": field}
    rows[30]["text"] += "!"
    with pytest.raises(MixtureError) as caught:
        build(write({"a": rows}, options={"filters": [rule]}))
    assert (
        str(caught.value)
        .split("a.jsonl, ")[1]
        .startswith(
            "line 31 (datasets.a): filter regex: '^(a|aa)+$' is not done with this text of 61 characters after 0.1 s"
        )
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_any_filter_that_fails_names_its_row(write, tmp_path, monkeypatch, streaming):
    (tmp_path / "failing_filter_for_test.py").write_text("def keep(row):\n    return 1 / (row['text'] != 'a 33') > 0\n")
    path = write(
        {"a": texts("a", 60)}, options={"filters": [{"type": "failing_filter_for_test:keep"}]}, streaming=streaming
    )
    with pytest.raises(
        MixtureError, match=r"a.jsonl, line 34 \(datasets.a\): filter failing_filter_for_test:keep fail"
    ):
        list(build(path)[0]["train"])


@pytest.mark.parametrize("pattern", ["(" * 5000, "a{99999999999999999999}", "[a"])
def test_what_is_no_regular_expression_is_refused(write, pattern):
    with pytest.raises(MixtureError, match=r"pattern: not a regular expression: "):
        load_mixture(write({"a": texts("a", 9)}, options={"filters": [{"type": "regex", "pattern": pattern}]}))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os:system", "os:system is part of Python (posix), not a filter"),
        ("subprocess:run", "subprocess:run is part of Python (subprocess), not a filter"),
        ("minimind_trl.data.report:describe_split", "missing a required argument"),
        ("no_row_filter_for_test:keep", "takes no row: a filter's first parameter is the row"),
    ],
)
def test_a_function_that_is_no_filter_is_refused(write, tmp_path, name, message):
    (tmp_path / "no_row_filter_for_test.py").write_text("def keep(*rows, **others):\n    return True\n")
    with pytest.raises(MixtureError) as caught:
        load_mixture(write({"a": texts("a", 9)}, options={"filters": [{"type": name}]}))
    assert message in str(caught.value) and "line " in str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_cache_that_cannot_be_written_is_one_line(write, tmp_path, monkeypatch, capsys, number):
    def full(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(ArrowWriter, "write_table", full)
    path = write({"a": texts(f"cache {number}", 90)})
    assert main(["data", "build", str(path), "--output_dir", str(tmp_path / "out")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "the cache of the data sets cannot be written" in line and os.strerror(number) in line
    assert "set HF_DATASETS_CACHE" in line and not (tmp_path / "out").exists()
