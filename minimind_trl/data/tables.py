"""Rows into files: Arrow files in the cache of `datasets`, and JSON lines."""

import hashlib
import json
from collections.abc import Callable, Collection
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Value
from filelock import FileLock

from ..errors import MixtureError
from ..progress import progress
from .converted_parts import Piece, open_pieces, write_pieces
from .file_formats import as_rows
from .turns import Row
from .workers import default_processes, in_order

SPLITS = ("train", "validation")
_BATCH = 1000
_MANY = 20_000  # rows that are worth worker processes
_MARKS = [bytes([byte]) for byte in range(0xF5, 0x100)]  # bytes that no UTF-8 has
_TURNS = ("messages", "prompt", "chosen", "rejected")


def cached_rows(
    pieces: Callable[[], list[Piece]], features: Features, fingerprint: str, what: str, processes: int = 1
) -> Dataset:
    """Rows as Arrow files in the cache of `datasets`, written unless they are there; one of several runs writes them.

    `Dataset.from_generator` does the same and encodes value by value, which takes twice the time.

    Args:
        pieces: make the rows; values of `Json` come encoded.
        fingerprint: names the files, and whatever is later derived from the data set.
        what: names the rows where progress is shown.
        processes: how many write them, at most.

    Raises:
        MixtureError: the cache cannot be written; or what a piece raises.
    """
    cache = Path(datasets.config.HF_DATASETS_CACHE).expanduser()
    folder = cache / "minimind-trl" / f"rows-{fingerprint}"
    try:
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not folder.exists():
                    unfinished = folder.with_name(f"{folder.name}.unfinished")
                    write_pieces(what, pieces(), unfinished, features, processes)
                    unfinished.rename(folder)
    except OSError as error:
        raise MixtureError(
            f"{cache}: the cache of the data sets cannot be written: {error.strerror or error}; make room there, or "
            "set HF_DATASETS_CACHE to a folder on another disk"
        ) from None
    return open_pieces(folder, fingerprint)


def empty_columns(splits: Collection[Dataset], names: tuple[str, ...]) -> list[str]:
    """Those of the columns in which every value of every split is null."""
    first, *_ = splits
    there = (name for name in names if name in first.column_names)
    return [name for name in there if all(rows.data.column(name).null_count == len(rows.data) for rows in splits)]


def write_split(rows: Dataset, path: Path, processes: int | None = None) -> dict[str, Any]:
    """Write rows as JSON lines; keys without a value are left out of messages.

    Args:
        processes: how many encode rows at once, at most; None for all cores that this process may use.

    Returns:
        name, number of rows and sha256 of the file.
    """
    digest = hashlib.sha256()

    as_arrow = (
        rows.with_format("arrow") if _are_strings(rows) else None
    )  # here, because it copies what is known of them

    def lines(start: int) -> bytes:
        quick = as_arrow and _lines_of_strings(as_arrow[start : start + _BATCH])
        return quick or _lines(rows[start : start + _BATCH])

    starts = range(0, len(rows), _BATCH)
    processes = 1 if len(rows) < _MANY else processes or default_processes()
    with path.open("wb") as file, progress(f"writing {path.name}", len(rows)) as bar:
        for start, part in zip(starts, in_order(lines, starts, processes), strict=True):
            digest.update(part)
            file.write(part)
            bar.update(min(_BATCH, len(rows) - start))
    return {"name": path.name, "rows": len(rows), "sha256": digest.hexdigest()}


def _lines(columns: dict[str, list]) -> bytes:
    return "".join(json.dumps(_without_nulls(row), ensure_ascii=False) + "\n" for row in as_rows(columns)).encode()


def _are_strings(rows: Dataset) -> bool:
    return all(feature == Value("string") for feature in rows.features.values()) and len(rows.features) < len(_MARKS)


def _lines_of_strings(table: pa.Table) -> bytes | None:
    """The lines of a few columns of strings, such as texts and their sources; as bytes of all rows at once.

    None if a value is null or has a rare control character.
    """
    columns = [column.combine_chunks().cast(pa.binary()) for column in table.columns]
    if any(column.null_count for column in columns):
        return None
    marked = [part for column, mark in zip(columns, _MARKS, strict=False) for part in (column, mark)]
    content = pc.binary_join_element_wise(*marked, b"").buffers()[2].to_pybytes()
    content = content.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    controls = np.count_nonzero(np.frombuffer(content, np.uint8) < 0x20)
    for control, escape in ((b"\n", b"\\n"), (b"\t", b"\\t"), (b"\r", b"\\r")):
        size = len(content)
        content = content.replace(control, escape)
        controls -= len(content) - size
    if controls:
        return None
    first, *others = (f"{encode_basestring(name)}: ".encode() for name in table.column_names)
    for mark, name in zip(_MARKS, others, strict=False):
        content = content.replace(mark, b'", ' + name + b'"')
    begin, end = b"{" + first + b'"', b'"}\n'
    content = content.replace(_MARKS[len(others)], end + begin)
    return begin + content.removesuffix(begin)


def _without_nulls(row: Row) -> Row:
    return {
        name: [{key: part for key, part in turn.items() if part is not None} for turn in value]
        if name in _TURNS
        else value
        for name, value in row.items()
    }
