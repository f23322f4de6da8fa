"""Converts a source's files to Arrow files, in pieces that several processes or machines can make at once.

The pieces depend on the files alone. So the rows and their order are the same for any number of processes, and what an
interrupted build has made is found by the next.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, Features, Split
from datasets.arrow_writer import ArrowWriter
from datasets.table import MemoryMappedTable, concat_tables

from ..files import atomic_path
from ..progress import progress
from .sources import DataFile
from .turns import Row
from .workers import in_order

_ROWS = (2_000, 100_000)  # fewest and most rows of a piece, if the source has more
_PIECES = 64
_BATCH = 1000

Make = Callable[[], Iterator[pa.Table]]


@dataclass
class Piece:
    """Some of a source's rows, converted by `make`; `rows` is how many raw ones that are, None if unknown."""

    make: Make
    rows: int | None


def pieces_of_files(
    files: list[DataFile], convert: Callable[[list[tuple[int, DataFile]]], Iterator[pa.Table]]
) -> list[Piece]:
    """The pieces of a source: parts of files, joined until each has enough rows.

    Args:
        convert: converts rows of files, each given with its index among the source's.
    """
    parts = [(index, part) for index, file in enumerate(files) for part in (file.parts() if file.parts else [file])]
    fewest, most = _ROWS
    total = sum(part.count or 0 for _, part in parts)
    size = min(max(total // _PIECES, fewest), most)
    groups: list[list[tuple[int, DataFile]]] = [[]]
    for index, part in parts:
        if groups[-1] and sum(one.count or size for _, one in groups[-1]) >= size:
            groups.append([])
        groups[-1].append((index, part))
    counts = [[part.count for _, part in group] for group in groups]
    return [
        Piece(partial(convert, group), None if None in count else sum(count))
        for group, count in zip(groups, counts, strict=True)
    ]


def write_pieces(
    what: str,
    pieces: list[Piece],
    folder: Path,
    features: Features,
    processes: int = 1,
    numbers: Iterable[int] | None = None,
) -> None:
    """Write each piece that is not in the folder yet.

    Args:
        what: names the pieces where progress is shown.
        numbers: of the pieces to write; by default all.

    Raises:
        whatever `make` raises, of the first piece that raises it.
    """
    numbers = range(len(pieces)) if numbers is None else numbers
    todo = [number for number in numbers if not (folder / piece_name(number)).exists()]
    counts = [pieces[number].rows for number in todo]
    total = None if None in counts else sum(counts)
    folder.mkdir(parents=True, exist_ok=True)
    processes = min(processes, len(todo))
    with progress(what, total) as bar:
        report = bar.update if processes < 2 else None  # of another process, only when a piece is done

        def write(number: int) -> int:
            return _write_arrow(folder / piece_name(number), pieces[number].make(), features, report)

        for rows in in_order(write, todo, processes):
            bar.update(0 if report else rows)


def open_pieces(folder: Path, fingerprint: str) -> Dataset:
    """The rows of all pieces in a folder, in order, memory-mapped."""
    # Beside them `datasets` caches what is derived from the rows.
    tables = [MemoryMappedTable.from_file(str(path)) for path in sorted(folder.glob("[0-9]*.arrow"))]
    table = concat_tables(tables) if len(tables) > 1 else tables[0]
    return Dataset(table, split=Split.TRAIN, fingerprint=fingerprint)


def piece_name(number: int) -> str:
    return f"{number:06}.arrow"


def in_tables(rows: Iterator[Row], features: Features) -> Iterator[pa.Table]:
    """Rows as tables of some of them; values of `Json` come encoded."""
    while batch := list(islice(rows, _BATCH)):
        yield pa.Table.from_pylist(batch, schema=features.arrow_schema)


def _write_arrow(
    path: Path, tables: Iterator[pa.Table], features: Features, report: Callable[[int], None] | None = None
) -> int:
    count = 0
    with atomic_path(path) as temporary, ArrowWriter(path=str(temporary), features=features) as writer:
        for table in tables:
            writer.write_table(table)
            count += len(table)
            if report:
                report(len(table))
        writer.finalize()
    return count
