"""Files of rows: read with line or row numbers, from a disk or an fsspec URL, in whole or in parts.

JSON is not read by `load_dataset`: Arrow would give all objects of a column the union of their keys, tool arguments
included, and its errors do not name the line.
"""

import codecs
import csv
import io
import json
import lzma
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from datasets import Dataset, load_from_disk
from fsspec.utils import infer_compression

from ..errors import MixtureError, first_line
from .object_storage import Place, is_url, open_bytes, storage_problem
from .turns import Row

Rows = Iterator[tuple[int, Row]]
_BATCH = 1000
_PARTS = 64  # of a file that is streamed, if it is large enough
_PART_BYTES = (2**16, 2**22)  # smallest and largest part
_READ = 2**20  # bytes of lines to look at together
_DECODER = json.JSONDecoder()


class Part(NamedTuple):
    """A piece of a file that can be read alone: bytes of JSONL, row groups of Parquet, rows of Arrow."""

    start: int
    stop: int
    first: int = 1  # number of its first row
    count: int | None = None  # of its rows, or lines


def read_rows(kind: str, path: Place, name: str | None = None, **part: Part) -> Rows:
    """The rows of a file, each with its line or row number.

    Args:
        kind: jsonl, json, csv, parquet or arrow.
        path: a local file, or a URL.
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
    except Exception as error:
        if is_url(path):
            raise storage_problem(str(path), error) from error
        raise


def can_be_cut(kind: str, path: Place) -> bool:
    """Whether a file can be read in parts, not only from its beginning."""
    return kind in (_CUT_IN_PLACE if is_url(path) else _CUT) and not infer_compression(str(path))


def parts_of(kind: str, path: Place) -> list[Part]:
    """The parts in which a file can be read, in order."""
    return (_CUT_IN_PLACE if is_url(path) else _CUT)[kind](path)


def _read_jsonl(path: Place, name: str | None = None, part: Part | None = None) -> Rows:
    for number, line in jsonl_lines(path, part):
        yield number, parsed_line(line, name or path, number)


def jsonl_lines(path: Place, part: Part | None = None) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, without what ends them, and their numbers."""
    with open_bytes(path) as lines:
        left = None
        if part:
            lines.seek(part.start)
            left = part.stop - part.start
        for number, line in enumerate(lines, start=part.first if part else 1):
            if content := line.rstrip():
                yield number, content
            if left is not None and (left := left - len(line)) <= 0:
                return


def parsed_line(line: bytes, name: Place, number: int) -> Row:
    """The object on a line.

    Raises:
        MixtureError: it is not JSON, or no object.
    """
    try:
        text = line.decode()
        row, end = _DECODER.raw_decode(text)  # `json.loads` without what only messages need
        if end == len(text) and type(row) is dict:
            return row
    except (ValueError, RecursionError):
        pass
    where = f"{name}, line {number}"
    return _object(_parse(line, where), where)


def _cut_jsonl(path: Path) -> list[Part]:
    smallest, largest = _PART_BYTES
    size = min(max(path.stat().st_size // _PARTS, smallest), largest)
    parts, start, first, at, number = [], 0, 1, 0, 1
    with path.open("rb") as lines:
        while block := lines.readlines(_READ):
            ends = at + np.cumsum(list(map(len, block)))
            while (cut := int(np.searchsorted(ends, start + size))) < len(ends):
                parts.append(Part(start, int(ends[cut]), first, number + cut + 1 - first))
                start, first = int(ends[cut]), number + cut + 1
            at, number = int(ends[-1]), number + len(block)
    return [*parts, Part(start, at, first, number - first)] if at > start else parts


def _read_json(path: Place, name: str | None = None) -> Rows:
    """An array of objects, or JSON lines, which many files named `.json` hold."""
    name = name or path
    with open_bytes(path) as file:
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


def _read_csv(path: Place) -> Rows:
    csv.field_size_limit(sys.maxsize)
    with open_bytes(path) as file:
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


def _read_parquet(path: Place, part: Part | None = None) -> Rows:
    with open_bytes(path) as content, pyarrow.parquet.ParquetFile(content) as file:
        groups = range(part.start, part.stop) if part else None
        batches = (batch.to_pylist() for batch in file.iter_batches(_BATCH, row_groups=groups))
        yield from enumerate((_filled_row(row) for batch in batches for row in batch), start=part.first if part else 1)


def _cut_parquet(path: Place) -> list[Part]:
    with open_bytes(path) as content:
        metadata = pyarrow.parquet.read_metadata(content)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    firsts = accumulate(sizes, initial=1)
    return [Part(group, group + 1, first, size) for group, (first, size) in enumerate(zip(firsts, sizes, strict=False))]


def _cut_jsonl_in_place(url: str) -> list[Part]:
    """Parts that begin at lines near equal distances, found without reading the rest; their lines are not counted."""
    smallest, largest = _PART_BYTES
    with open_bytes(url) as content:
        size = content.seek(0, io.SEEK_END)
        bounds = [0]
        for place in range(step := min(max(size // _PARTS, smallest), largest), size, step):
            content.seek(max(place, bounds[-1]))
            content.readline()
            bounds.append(content.tell())
    bounds = sorted({*bounds, size})
    return [Part(start, stop) for start, stop in pairwise(bounds)]


def _read_arrow(path: Place, part: Part | None = None) -> Rows:
    """An Arrow file of `datasets`, or a local folder of its `save_to_disk`."""
    if is_url(path):
        yield from _read_arrow_in_place(path)
        return
    dataset = _open_arrow(path)
    part = part or Part(0, len(dataset))
    for start in range(part.start, part.stop, _BATCH):
        yield from enumerate(filled_rows(dataset[start : min(start + _BATCH, part.stop)]), start=start + 1)


def _read_arrow_in_place(url: str) -> Rows:
    number = 1
    with open_bytes(url) as content, pa.ipc.open_stream(content) as batches:
        for batch in batches:
            rows = filled_rows(Dataset(pa.Table.from_batches([batch]))[:])
            yield from enumerate(rows, start=number)
            number += len(rows)


def _open_arrow(path: Path) -> Dataset:
    dataset = load_from_disk(str(path)) if path.is_dir() else Dataset.from_file(str(path))
    if not isinstance(dataset, Dataset):
        raise MixtureError(f"{path} holds the splits {', '.join(dataset)}: name one, as {path / next(iter(dataset))}")
    return dataset


def _cut_arrow(path: Path) -> list[Part]:
    rows = len(_open_arrow(path))
    bounds = [(start, min(start + _BATCH, rows)) for start in range(0, rows, _BATCH)]
    return [Part(start, stop, start + 1, stop - start) for start, stop in bounds]


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


_READERS: dict[str, Callable[[Place], Rows]] = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
}
_CUT_IN_PLACE: dict[str, Callable[[str], list[Part]]] = {"jsonl": _cut_jsonl_in_place, "parquet": _cut_parquet}
_CUT: dict[str, Callable[[Path], list[Part]]] = {"jsonl": _cut_jsonl, "parquet": _cut_parquet, "arrow": _cut_arrow}
