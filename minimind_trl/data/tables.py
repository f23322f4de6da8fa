"""Rows into files: Arrow files in the cache of `datasets`, and JSON lines."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features
from filelock import FileLock

from ..errors import MixtureError
from .converted_parts import Piece, open_pieces, write_pieces
from .sources import as_rows
from .turns import Row

SPLITS = ("train", "validation")
_BATCH = 1000
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


def write_split(rows: Dataset, path: Path) -> dict[str, Any]:
    """Write rows as JSON lines; keys without a value are left out of messages.

    Returns:
        name, number of rows and sha256 of the file.
    """
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for columns in rows.iter(_BATCH):
            for row in as_rows(columns):
                line = (json.dumps(_without_nulls(row), ensure_ascii=False) + "\n").encode()
                digest.update(line)
                file.write(line)
    return {"name": path.name, "rows": len(rows), "sha256": digest.hexdigest()}


def _without_nulls(row: Row) -> Row:
    return {
        name: [{key: part for key, part in turn.items() if part is not None} for turn in value]
        if name in _TURNS
        else value
        for name, value in row.items()
    }
