"""Raw rows with their line numbers, from local files and from the Hub.

Local JSON is not read by `load_dataset`: Arrow would give all objects of a column the union of their keys, tool
arguments included, and its errors do not name the line.
"""

import codecs
import csv
import io
import json
import lzma
import os
import shutil
import stat
import sys
import tempfile
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow.parquet
from datasets import Dataset, IterableDataset, load_from_disk
from fsspec.utils import infer_compression

from ..errors import MixtureError, first_line, nearest
from ..files import file_digest
from .config import Origin, Source, format_of
from .hub import download_file, hub_errors, list_files, load_hub_split, remember_revision, resolve_revision
from .turns import Row

Rows = Iterator[tuple[int, Row]]
_BATCH = 1000
_PARTS = 64  # of a file that is streamed, if it is large enough
_PART_BYTES = (2**16, 2**22)  # smallest and largest part
_PATIENCE = 5.0  # seconds without a writer after which a message says that a pipe is waited for


class Part(NamedTuple):
    """A piece of a file that can be read alone: bytes of JSONL, row groups of Parquet, rows of Arrow."""

    start: int
    stop: int
    first: int = 1  # number of its first row
    count: int | None = None  # of its rows, or lines


@dataclass
class DataFile:
    """A file, or a split of a Hub data set.

    Attributes:
        name: for messages.
        digest: sha256 of a file, commit of a Hub data set.
        unit: "line" or "row", which are numbered from 1.
        read: the rows; Hub data is downloaded first.
        stream: Hub data as `datasets` streams it.
        read_remote: the rows of a JSON file on the Hub, without downloading it first.
        parts: the rows in several pieces; None if the file can only be read from its beginning.
        count: number of rows of a part, or lines; None if unknown.
    """

    name: str
    digest: str
    unit: str
    read: Callable[[], Rows]
    stream: Callable[[], IterableDataset] | None = None
    read_remote: Callable[[], Rows] | None = None
    repo: str | None = None
    parts: Callable[[], list["DataFile"]] | None = None
    count: int | None = None

    def at(self, number: int) -> str:
        """The place of a row, for messages."""
        return f"{self.name}, {self.unit} {number}"

    def head(self, count: int, stream: bool) -> list[tuple[int, Row]]:
        """The first rows; with `stream`, Hub data is not downloaded for them."""
        if not stream or self.repo is None:
            return list(islice(self.read(), count))
        with hub_errors(self.repo):
            if self.read_remote:
                return list(islice(self.read_remote(), count))
            return list(enumerate(self.stream().take(count), start=1))


def open_source(source: Origin, base: Path, validation: bool = False) -> list[DataFile]:
    """The files or Hub splits of a source.

    Args:
        base: folder of the mixture file; paths are relative to it.
        validation: the rows that the source holds out itself instead of those to train on; often none.

    Raises:
        MixtureError: a file, data set, revision, configuration or split is not there, or cannot be read.
    """
    if source.format_or_default == "huggingface":
        return _open_hub(source, base, validation)
    return [_open_file(source, path) for path in _paths(source, base, validation)]


def _open_hub(source: Origin, base: Path, validation: bool) -> list[DataFile]:
    if (base / source.source).exists() or Path(source.source).is_absolute():
        raise MixtureError(
            f"{source.name}: {source.source} is a local path: set format (jsonl, json, csv, parquet or arrow)"
        )
    files = source.data_files
    splits = getattr(source, "validation_splits", None) if validation else source.splits
    if validation and files and files.validation:
        splits = ["validation"]
    if not splits:
        return []
    revision = resolve_revision(source.source, source.revision)
    patterns = files and (files.validation if validation else files.train)
    if patterns and all(format_of(pattern) in ("json", "jsonl") for pattern in patterns):
        names = list_files(source.source, revision, patterns, source.data_dir)
        return [_hub_json(source, name, revision) for name in names]
    arguments = {
        "config_name": source.config_name,
        "data_dir": source.data_dir,
        "data_files": files and {name: paths for name, paths in files.model_dump().items() if paths},
        "revision": revision,
    }
    return [_hub_split(source, split, revision, arguments) for split in splits]


# Functions of the module instead of closures, which `datasets` would hash with everything that they call.
def _hub_json(source: Origin, name: str, revision: str) -> DataFile:
    """A JSON file that the mixture names; `datasets` would fail on columns that appear only in later rows."""
    repo, unit = source.source, "line" if format_of(name) == "jsonl" else "row"
    read = partial(_read_hub_json, repo, name, source.revision, revision)
    read_remote = partial(_JSON[format_of(name)], f"hf://datasets/{repo}@{revision}/{name}", f"{repo}/{name}")
    return DataFile(f"{repo}/{name}", revision, unit, read, read_remote=read_remote, repo=repo)


def _read_hub_json(repo: str, name: str, branch: str | None, revision: str) -> Rows:
    path = download_file(repo, name, revision)
    remember_revision(repo, branch, revision)
    yield from _JSON[format_of(name)](path, f"{repo}/{name}")


def _hub_split(source: Origin, split: str, revision: str, arguments: dict) -> DataFile:
    repo = source.source
    read = partial(_read_hub_split, repo, split, source.revision, arguments)
    stream = partial(load_hub_split, repo, split=split, streaming=True, **arguments)
    shown = "/".join(part for part in (repo, arguments["config_name"], arguments["data_dir"]) if part)
    return DataFile(f"{shown} ({split})", revision, "row", read, stream, repo=repo)


def _read_hub_split(repo: str, split: str, branch: str | None, arguments: dict) -> Rows:
    dataset = load_hub_split(repo, split=split, **arguments)
    remember_revision(repo, branch, arguments["revision"])
    for start in range(0, len(dataset), _BATCH):
        yield from enumerate(filled_rows(dataset[start : start + _BATCH]), start=start + 1)


def _paths(source: Origin, base: Path, validation: bool) -> list[Path]:
    root = base / source.source
    files = source.data_files
    if isinstance(source, Source) and (source.validation_splits or source.splits != ["train"]):
        raise MixtureError(f"{source.name}: splits are a Hub data set's; name the files: data_files: {{train: ...}}")
    for key in ("config_name", "revision"):
        if getattr(source, key):
            raise MixtureError(f"{source.name}: {key} is for a data set on the Hub; {source.source} is local")
    folder = root / source.data_dir if source.data_dir else root
    patterns = (files.validation or []) if files and validation else files.train if files else []
    if validation or patterns:
        return [path for pattern in patterns for path in _matching(source, base, folder, pattern)]
    if not folder.exists():
        raise _missing(source, base, folder)
    if not folder.is_dir() or source.format_or_default == "arrow":
        return [folder]
    found = sorted(path for path in folder.iterdir() if format_of(path.name) == source.format_or_default)
    if not found:
        raise MixtureError(f"{source.name}: no {source.format_or_default} file in {folder}")
    return found


def _matching(source: Origin, base: Path, folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.glob(pattern)) if any(sign in pattern for sign in "*?[") else [folder / pattern]
    missing = [path for path in found if not path.exists()]
    if missing or not found:
        raise _missing(source, base, missing[0] if missing else folder / pattern)
    return found


def _missing(source: Origin, base: Path, path: Path) -> MixtureError:
    looks_like_hub = source.source.count("/") == 1 and not source.source.startswith(".") and source.format is None
    hint = "; of a data set on the Hub, set format: huggingface" if looks_like_hub else ""
    if (script := base / "make_data.py").is_file():
        hint = f"; write it with: python {script}"
    return MixtureError(f"{source.name}: no such file {path}{_neighbour(path)}{hint}")


def _neighbour(path: Path) -> str:
    return nearest(path.name, [other.name for other in path.parent.glob("*")])


def _open_file(source: Origin, path: Path) -> DataFile:
    kind = source.format_or_default
    try:
        content = _regular_file(source, path)
        digest = file_digest(content)
    except OSError as error:
        raise MixtureError(f"{source.name}: cannot read {path}: {error.strerror}") from error
    return local_file(kind, content, str(path), digest)


def local_file(kind: str, path: Path, name: str | None = None, digest: str = "") -> DataFile:
    """A file on a disk. Arguments as of `read_rows`."""
    read = partial(read_rows, kind, path, name or str(path))
    file = DataFile(name or str(path), digest, "line" if kind in ("jsonl", "csv") else "row", read)
    if kind in _CUT and not infer_compression(path):
        file.parts = lambda: [
            replace(file, read=partial(read, part=part), parts=None, count=part.count) for part in _CUT[kind](path)
        ]
    return file


def _regular_file(source: Origin, path: Path) -> Path:
    """A file that can be read repeatedly: the path itself, or a copy of a pipe's content.

    Raises:
        MixtureError: it is a device, a socket, or a folder that is no Arrow data set.
    """
    mode = path.stat().st_mode
    if stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and source.format_or_default == "arrow"):
        return path
    if stat.S_ISDIR(mode):
        raise MixtureError(f"{source.name}: {path} is a folder; name the files in it, such as {path / '*'}")
    if not stat.S_ISFIFO(mode):
        raise MixtureError(f"{source.name}: {path} is a device or a socket; give a file, or a pipe that ends")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise MixtureError(
            f"{source.name}: {path} is a pipe, which only one process can read; write it to a file first"
        )
    return _copied(path, path.stat().st_ino)


@cache
def _copied(pipe: Path, inode: int) -> Path:
    """A copy of a pipe's content, which can be read only once; it is removed when the program ends."""
    waiting = threading.Timer(
        _PATIENCE, print, (f"data: waiting for what is written into {pipe}",), {"file": sys.stderr}
    )
    waiting.daemon = True
    waiting.start()
    try:
        with pipe.open("rb") as content:
            waiting.cancel()
            copy = Path(_copies().name) / f"{inode}-{pipe.name}"
            with copy.open("wb") as file:
                shutil.copyfileobj(content, file)
    finally:
        waiting.cancel()
    return copy


@cache
def _copies() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="minimind-trl-pipes-")


def read_rows(kind: str, path: Path, name: str | None = None, **part: Part) -> Rows:
    """The rows of a local file, each with its line or row number.

    Args:
        kind: jsonl, json, csv, parquet or arrow.
        name: how messages name it; by default its path.

    Raises:
        MixtureError: it cannot be read; the line is named where there is one.
    """
    name = name or str(path)
    try:
        yield from _READERS[kind](path, **part)
    except MixtureError as error:
        if str(path) == name:
            raise
        raise MixtureError(str(error).replace(str(path), name)) from error.__cause__
    except (pyarrow.ArrowException, OSError, EOFError, ValueError, ImportError, zlib.error, lzma.LZMAError) as error:
        problem = getattr(error, "strerror", None) or first_line(error)
        raise MixtureError(f"{name}: not a readable {kind} file ({problem})") from error


def _read_jsonl(path: Path | str, name: str | None = None, part: Part | None = None) -> Rows:
    name = name or path
    with fsspec.open(str(path), "rb", compression="infer") as lines:
        if part:
            lines.seek(part.start)
        for number, line in enumerate(lines, start=part.first if part else 1):
            if line.strip():
                yield number, _object(_parse(line.rstrip(), f"{name}, line {number}"), f"{name}, line {number}")
            if part and lines.tell() >= part.stop:
                return


def _cut_jsonl(path: Path) -> list[Part]:
    smallest, largest = _PART_BYTES
    size = min(max(path.stat().st_size // _PARTS, smallest), largest)
    parts, start, first, at, number = [], 0, 1, 0, 1
    with path.open("rb") as lines:
        for line in lines:
            at, number = at + len(line), number + 1
            if at - start >= size:
                parts.append(Part(start, at, first, number - first))
                start, first = at, number
    return [*parts, Part(start, at, first, number - first)] if at > start else parts


def _read_json(path: Path | str, name: str | None = None) -> Rows:
    """An array of objects, or JSON lines, which many files named `.json` hold."""
    name = name or path
    with fsspec.open(str(path), "rb", compression="infer") as file:
        if file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1] != b"[":
            yield from _read_jsonl(path, name)
            return
        file.seek(0)
        for number, row in enumerate(_parse(file.read(), str(name)), start=1):
            yield number, _object(row, f"{name}, row {number}")


def _parse(content: bytes, where: str) -> Any:
    try:
        return json.loads(content.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise MixtureError(f"{where}: not UTF-8 text (byte 0x{byte:02x} at position {error.start})") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise MixtureError(f"{where}: not JSON ({error.msg.removesuffix(' at')} at {place})") from error
    except RecursionError as error:
        raise MixtureError(f"{where}: JSON nested too deeply to read") from error
    except ValueError as error:  # a number of more than 4,300 digits
        raise MixtureError(f"{where}: not readable JSON ({error})") from error


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise MixtureError(f"{where}: a row must be an object, found {type(row).__name__}")
    return row


def _read_csv(path: Path) -> Rows:
    csv.field_size_limit(sys.maxsize)
    with fsspec.open(path, "rb", compression="infer") as file:
        reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
        try:
            if doubled := [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]:
                raise MixtureError(f"{path}, line 1: the column {doubled[0]!r} is there twice")
            for row in reader:
                if None in row or None in row.values():
                    raise MixtureError(f"{path}, line {reader.line_num}: not as many fields as the header has")
                yield reader.line_num, row
        except UnicodeDecodeError as error:
            raise MixtureError(
                f"{path}, after line {reader.reader.line_num}: not UTF-8 text ({error.reason})"
            ) from error
        except csv.Error as error:
            raise MixtureError(f"{path}, line {reader.reader.line_num}: not CSV ({error})") from error


def _read_parquet(path: Path, part: Part | None = None) -> Rows:
    with pyarrow.parquet.ParquetFile(path) as file:
        groups = range(part.start, part.stop) if part else None
        batches = (batch.to_pylist() for batch in file.iter_batches(_BATCH, row_groups=groups))
        yield from enumerate((_filled_row(row) for batch in batches for row in batch), start=part.first if part else 1)


def _cut_parquet(path: Path) -> list[Part]:
    metadata = pyarrow.parquet.read_metadata(path)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    firsts = accumulate(sizes, initial=1)
    return [Part(group, group + 1, first, size) for group, (first, size) in enumerate(zip(firsts, sizes, strict=False))]


def _read_arrow(path: Path, part: Part | None = None) -> Rows:
    """An Arrow file of `datasets`, or a folder of its `save_to_disk`."""
    dataset = _open_arrow(path)
    part = part or Part(0, len(dataset))
    for start in range(part.start, part.stop, _BATCH):
        yield from enumerate(filled_rows(dataset[start : min(start + _BATCH, part.stop)]), start=start + 1)


def _open_arrow(path: Path) -> Dataset:
    dataset = load_from_disk(str(path)) if path.is_dir() else Dataset.from_file(str(path))
    if not isinstance(dataset, Dataset):
        raise MixtureError(f"{path} holds the splits {', '.join(dataset)}: name one, as {path / next(iter(dataset))}")
    return dataset


def _cut_arrow(path: Path) -> list[Part]:
    rows = len(_open_arrow(path))
    bounds = [(start, min(start + _BATCH, rows)) for start in range(0, rows, _BATCH)]
    return [Part(start, stop, start + 1, stop - start) for start, stop in bounds]


def public_name(path: str) -> str:
    """A path as a lock may show it: only the name of an absolute one."""
    return Path(path).name if Path(path).is_absolute() else path


def as_rows(columns: dict[str, list]) -> list[Row]:
    """The rows of a table of columns."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def filled_rows(columns: dict[str, list]) -> list[Row]:
    """Rows of a table, without the nulls that Arrow adds to an object for the keys of the others."""
    return [_filled_row(row) for row in as_rows(columns)]


def _filled_row(row: Row) -> Row:
    return {name: _filled(value) for name, value in row.items()}


def _filled(value: Any) -> Any:
    if isinstance(value, list):
        return [_filled(item) for item in value]
    if isinstance(value, dict):
        return {name: _filled(item) for name, item in value.items() if item is not None}
    return value


_JSON = {"jsonl": _read_jsonl, "json": _read_json}
_READERS: dict[str, Callable[[Path], Rows]] = {
    **_JSON,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
}
_CUT: dict[str, Callable[[Path], list[Part]]] = {"jsonl": _cut_jsonl, "parquet": _cut_parquet, "arrow": _cut_arrow}
