"""Mixtures of files in a storage: the same rows as from a disk.

`memory://` stands in for storages. Where s3fs and moto with its server are installed, `s3://` is tested too:
`pip install 'minimind-trl[s3]' 'moto[s3,server]'`.
"""

import gzip
import io
import json

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

from minimind_trl.cli import main
from minimind_trl.data import LOCK, DatasetMixer, MixtureError, file_formats, load_or_prepare, object_storage
from minimind_trl.data.streaming import share_of
from tests.data.test_mixer import texts

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(params=["memory", "s3"])
def bucket(request, monkeypatch):
    """The URL of an empty bucket."""
    if request.param == "memory":
        yield "memory:///bucket"
        fsspec.filesystem("memory").store.clear()
        return
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
        monkeypatch.setenv(name, value)
    storage = fsspec.get_filesystem_class("s3")
    storage.clear_instance_cache()  # it may know another server
    buckets = storage()
    buckets.mkdir("bucket")
    yield "s3://bucket"
    buckets.rm("bucket", recursive=True)
    server.stop()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(url, content):
    with fsspec.open(url, "wb") as file:
        file.write(content)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_parquet(rows):
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), file := io.BytesIO(), row_group_size=20)
    return file.getvalue()


def as_arrow(rows):
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(file := io.BytesIO(), table.schema) as writer:
        writer.write_table(table, max_chunksize=30)
    return file.getvalue()


FORMATS = {
    "a-1.jsonl": lines,
    "a.jsonl.gz": lambda rows: gzip.compress(lines(rows)),
    "a.parquet": as_parquet,
    "a.arrow": as_arrow,
    "a.json": lambda rows: json.dumps(rows).encode(),
}


def mixture(folder, source, **extra):
    path = folder / "mixture.yaml"
    declared = {"name": "a", "mix_ratio": 1.0, **(source if isinstance(source, dict) else {"source": source})}
    content = {"metadata": {"phase": "pretrain"}, "datasets": [declared], "validation": {"ratio": 0.2, "seed": 1}}
    path.write_text(yaml.safe_dump(content | extra))
    return DatasetMixer.from_yaml(path)


def rows_of(data):
    return {name: [row["text"] for row in rows] for name, rows in data.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_those_of_the_same_file_on_a_disk(bucket, cache, tmp_path, name, monkeypatch):
    monkeypatch.setattr(file_formats, "_PART_BYTES", (200, 200))
    content = FORMATS[name](texts("a", 90))
    (tmp_path / name).write_bytes(content)
    put(f"{bucket}/rows/{name}", content)
    expected = rows_of(mixture(tmp_path, name).build())
    mixer = mixture(tmp_path, f"{bucket}/rows/{name}")
    assert mixer.validate_mixture() == ["a: 1 file(s), schema text, first 90 rows looked at"]
    assert not list(cache.glob("minimind-trl/copies/*/*"))  # nothing is copied to look at the first rows
    assert rows_of(mixer.build()) == expected
    [file] = mixer.lock()["sources"][0]["files"]
    assert file["name"] == f"{bucket}/rows/{name}" and f"{len(content)} bytes" in file["digest"]

    monkeypatch.setattr(object_storage, "_download", lambda *_: pytest.fail("copied again"))
    assert rows_of(mixture(tmp_path, f"{bucket}/rows/{name}").build()) == expected
    streamed = mixture(tmp_path, f"{bucket}/rows/{name}", streaming=True).build()
    assert {split: sorted(rows) for split, rows in rows_of(streamed).items()} == {
        split: sorted(rows) for split, rows in expected.items()
    }


def test_files_are_named_by_patterns_or_by_their_folder_and_every_rank_streams_its_part(bucket, cache, tmp_path):
    for number in range(8):
        put(f"{bucket}/rows/part-{number}.jsonl", lines(texts(f"a{number}", 20)))
    put(f"{bucket}/rows/README.md", b"no rows")
    all_rows = {row["text"] for number in range(8) for row in texts(f"a{number}", 20)}
    for source in (
        f"{bucket}/rows/part-*.jsonl",
        {"source": f"{bucket}/rows", "format": "jsonl"},
        {"source": bucket, "data_dir": "rows", "data_files": {"train": ["part-*.jsonl"]}},
    ):
        stream = mixture(tmp_path, source, streaming=True, validation="none").build()["train"]
        shares = [{row["text"] for row in share_of(stream, rank, 2)} for rank in range(2)]
        assert shares[0] | shares[1] == all_rows and not shares[0] & shares[1]
    assert not list(cache.glob("minimind-trl/copies/*"))


def test_a_changed_file_is_read_again(bucket, cache, tmp_path):
    for count in (40, 60):
        put(f"{bucket}/a.jsonl", lines(texts(f"a{count}", count)))
        if bucket.startswith("s3"):
            fsspec.filesystem("s3").invalidate_cache()
        assert sum(map(len, rows_of(mixture(tmp_path, f"{bucket}/a.jsonl").build()).values())) == count


def test_a_prepared_mixture_lives_in_a_storage(bucket, cache, tmp_path, monkeypatch, capsys):
    put(f"{bucket}/a.jsonl", lines(texts("a", 60)))
    mixer, url = mixture(tmp_path, f"{bucket}/a.jsonl"), f"{bucket}/prepared/a"
    assert main(["data", "build", str(mixer.path), "--output_dir", url]) == 0
    assert f"{url}: " in capsys.readouterr().out
    assert main(["data", "build", str(mixer.path), "--output_dir", url, "--shard", "1/2"]) == 2
    expected = rows_of(mixer.build())

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "another machine"))
    monkeypatch.setattr(DatasetMixer, "build", lambda *_: pytest.fail("built again"))
    monkeypatch.setattr("minimind_trl.data.prepared.upload_folder", lambda *_, **__: pytest.fail("uploaded again"))
    for _ in range(2):
        assert rows_of(load_or_prepare(mixture(tmp_path, f"{bucket}/a.jsonl"), url)) == expected
    monkeypatch.undo()

    lock = object_storage.read_text(f"{url}/{LOCK}")
    put(f"{url}/{LOCK}", lock.replace("pretrain_mixture_train", "../train").encode())
    with pytest.raises(MixtureError, match="names a file outside its folder"):
        load_or_prepare(mixer, url)


def test_what_is_wrong_is_told_in_one_line(bucket, cache, tmp_path, monkeypatch, capsys):
    put(f"{bucket}/rows/a.jsonl", lines(texts("a", 30)))
    put(f"{bucket}/rows/b.jsonl", lines(texts("a", 3)) + b"{no json}\n")

    def told(source, **extra):
        assert (
            main(["data", "build", str(mixture(tmp_path, source, **extra).path), "--output_dir", str(tmp_path / "out")])
            == 2
        )
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and "a-secret" not in error
        return error

    assert "rows/c.jsonl: no such file; did you mean" in told(f"{bucket}/rows/c.jsonl")
    assert f"{bucket}/rows/b.jsonl, line 4: not JSON" in told(f"{bucket}/rows/b.jsonl")
    assert "no parquet file in" in told({"source": f"{bucket}/rows", "format": "parquet"})
    assert "set format (jsonl" in told(f"{bucket}/rows")
    assert "splits are a Hub data set's" in told({"source": f"{bucket}/rows/a.jsonl", "splits": ["x"]})
    assert "unknown protocol" in told("s4://bucket/a.jsonl")
    error = told("s3://key:a-secret@bucket/a.jsonl")
    assert "the URL brings credentials" in error and "key:" not in error
    if bucket.startswith("memory"):
        return
    assert "no such file or bucket" in told("s3://nowhere/rows/a.jsonl")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "no credentials: set those of the storage" in told(f"{bucket}/rows/a.jsonl")


@pytest.mark.parametrize(("url", "package"), [("s3://b/a.jsonl", "'minimind-trl[s3]'"), ("gs://b/a.jsonl", "gcsfs")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys, url, package):
    monkeypatch.setattr(fsspec, "url_to_fs", lambda url: (_ for _ in ()).throw(ImportError("Install it")))
    assert main(["data", "check", str(mixture(tmp_path, url).path)]) == 2
    assert f"{url[:2]}:// needs: pip install {package}" in capsys.readouterr().err
