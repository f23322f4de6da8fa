"""Rows into files: Arrow files in the cache of `datasets`, and JSON lines."""

import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features
from filelock import FileLock

from ..errors import MixtureError
from ..progress import progress
from .converted_parts import Piece, open_pieces, write_pieces
from .sources import as_rows
from .turns import Row
from .workers import default_processes, in_order

SPLITS = ("train", "validation")
_BATCH = 1000
_MANY = 20_000  # rows that are worth worker processes
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

    def lines(start: int) -> bytes:
        of_rows = as_rows(rows[start : start + _BATCH])
        return "".join(json.dumps(_without_nulls(row), ensure_ascii=False) + "\n" for row in of_rows).encode()

    starts = range(0, len(rows), _BATCH)
    processes = 1 if len(rows) < _MANY else processes or default_processes()
    with path.open("wb") as file, progress(f"writing {path.name}", len(rows)) as bar:
        for start, part in zip(starts, in_order(lines, starts, processes), strict=True):
            digest.update(part)
            file.write(part)
            bar.update(min(_BATCH, len(rows) - start))
    return {"name": path.name, "rows": len(rows), "sha256": digest.hexdigest()}


def _without_nulls(row: Row) -> Row:
    return {
        name: [{key: part for key, part in turn.items() if part is not None} for turn in value]
        if name in _TURNS
        else value
        for name, value in row.items()
    }
