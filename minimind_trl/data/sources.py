"""The files and Hub splits of a mixture's sources."""

import os
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path

from datasets import IterableDataset

from ..errors import MixtureError, nearest
from ..files import file_digest
from .config import Origin, Source, format_of
from .file_formats import Part, Rows, can_be_cut, filled_rows, jsonl_lines, parts_of, read_rows
from .hub import download_file, hub_errors, list_files, load_hub_split, remember_revision, resolve_revision
from .object_storage import is_url, local_copy, storage_errors, version_of
from .object_storage import list_files as list_stored_files
from .turns import Row

_BATCH = 1000
_PATIENCE = 5.0  # seconds without a writer after which a message says that a pipe is waited for


@dataclass
class DataFile:
    """A file, or a split of a Hub data set.

    Attributes:
        name: for messages.
        digest: sha256 of a file, commit of a Hub data set, version of a file in a storage.
        unit: "line" or "row", which are numbered from 1.
        read: the rows; Hub data, and files of a storage, are downloaded first.
        stream: Hub data as `datasets` streams it.
        read_remote: the rows of a JSON file on the Hub or of a file in a storage, without downloading it first.
        parts: the rows in several pieces; None if the file can only be read from its beginning.
        remote_parts: pieces to read by `read_remote`, of a file in a storage.
        count: number of rows of a part, or lines; None if unknown.
        lines: the lines of a JSONL file on a disk, with their numbers.
    """

    name: str
    digest: str
    unit: str
    read: Callable[[], Rows]
    stream: Callable[[], IterableDataset] | None = None
    read_remote: Callable[[], Rows] | None = None
    repo: str | None = None
    parts: Callable[[], list["DataFile"]] | None = None
    remote_parts: Callable[[], list["DataFile"]] | None = None
    count: int | None = None
    lines: Callable[[], Iterator[tuple[int, bytes]]] | None = None

    def at(self, number: int) -> str:
        """The place of a row, for messages."""
        return f"{self.name}, {self.unit} {number}"

    def head(self, count: int, stream: bool) -> list[tuple[int, Row]]:
        """The first rows; with `stream`, nothing is downloaded for them."""
        if not stream or (self.repo is None and self.read_remote is None):
            return list(islice(self.read(), count))
        with hub_errors(self.repo) if self.repo else nullcontext():
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
    if is_url(source.source):
        return [_stored_file(source, url) for url in _urls(source, validation)]
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
    read_remote = partial(read_rows, format_of(name), f"hf://datasets/{repo}@{revision}/{name}", f"{repo}/{name}")
    return DataFile(f"{repo}/{name}", revision, unit, read, read_remote=read_remote, repo=repo)


def _read_hub_json(repo: str, name: str, branch: str | None, revision: str) -> Rows:
    path = download_file(repo, name, revision)
    remember_revision(repo, branch, revision)
    yield from read_rows(format_of(name), path, f"{repo}/{name}")


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
    _refuse_hub_keys(source, "local")
    root = base / source.source
    folder = root / source.data_dir if source.data_dir else root
    patterns = _patterns(source, validation)
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


def _refuse_hub_keys(source: Origin, where: str) -> None:
    if isinstance(source, Source) and (source.validation_splits or source.splits != ["train"]):
        raise MixtureError(f"{source.name}: splits are a Hub data set's; name the files: data_files: {{train: ...}}")
    for key in ("config_name", "revision"):
        if getattr(source, key):
            raise MixtureError(f"{source.name}: {key} is for a data set on the Hub; {source.source} is {where}")


def _patterns(source: Origin, validation: bool) -> list[str]:
    files = source.data_files
    return (files.validation or []) if files and validation else files.train if files else []


def _urls(source: Origin, validation: bool) -> list[str]:
    """The files of a source in a storage."""
    _refuse_hub_keys(source, "in a storage")
    folder = "/".join(part.rstrip("/") for part in (source.source, source.data_dir) if part)
    patterns = [f"{folder}/{pattern}" for pattern in _patterns(source, validation)]
    if not validation and not patterns:
        patterns = [folder if format_of(folder) else f"{folder}/*"]
    try:
        urls = [url for pattern in patterns for url in list_stored_files(pattern)]
    except MixtureError as error:
        raise MixtureError(f"{source.name}: {error}") from error
    kind = source.format_or_default
    if kind == "huggingface":
        raise MixtureError(f"{source.name}: {source.source}: set format (jsonl, json, csv, parquet or arrow)")
    if patterns != [f"{folder}/*"]:
        return urls
    if not (found := [url for url in urls if format_of(url) == kind]):
        raise MixtureError(f"{source.name}: no {kind} file in {folder}")
    return found


def _stored_file(source: Origin, url: str) -> DataFile:
    kind = source.format_or_default
    unit = "line" if kind in ("jsonl", "csv") else "row"
    version = version_of(url)
    file = DataFile(
        url, version, unit, partial(_read_copy, kind, url, version), read_remote=partial(read_rows, kind, url)
    )
    file.parts, file.remote_parts = partial(_copied_parts, file, kind), partial(_remote_parts, file, kind)
    return file


def _read_copy(kind: str, url: str, version: str) -> Rows:
    yield from read_rows(kind, local_copy(url, version), url)


def _copied_parts(file: DataFile, kind: str) -> list[DataFile]:
    """Parts of the local copy, which is made now: worker processes must not begin with a connection of this one."""
    copy = local_file(kind, local_copy(file.name, file.digest), file.name, file.digest)
    return copy.parts() if copy.parts else [copy]


def _remote_parts(file: DataFile, kind: str) -> list[DataFile]:
    alone = replace(file, parts=None, remote_parts=None)
    if not can_be_cut(kind, file.name):
        return [alone]
    with storage_errors(file.name):
        parts = parts_of(kind, file.name)
    # Lines of JSONL are numbered from the beginning of the part, because what is before it is not read.
    names = [f"{file.name} from byte {part.start}" if kind == "jsonl" else file.name for part in parts]
    return [
        replace(alone, name=name, read_remote=partial(read_rows, kind, file.name, name, part=part), count=part.count)
        for name, part in zip(names, parts, strict=True)
    ]


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
    if can_be_cut(kind, path):
        file.parts = lambda: [_part_of(file, kind, path, part) for part in parts_of(kind, path)]
    return file


def _part_of(file: DataFile, kind: str, path: Path, part: Part) -> DataFile:
    lines = partial(jsonl_lines, path, part) if kind == "jsonl" else None
    return replace(file, read=partial(file.read, part=part), parts=None, count=part.count, lines=lines)


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


def public_name(path: str) -> str:
    """A path as a lock may show it: only the name of an absolute one."""
    return Path(path).name if Path(path).is_absolute() else path
