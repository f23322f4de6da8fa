"""Rows into files: an Arrow file in the cache of `datasets`, and JSON lines."""

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, Features, Split
from datasets.arrow_writer import ArrowWriter
from datasets.table import MemoryMappedTable
from filelock import FileLock

from ..errors import MixtureError
from ..files import atomic_path
from .turns import Row

SPLITS = ("train", "validation")
_BATCH = 1000
_TURNS = ("messages", "prompt", "chosen", "rejected")


def cached_rows(rows: Callable[[], Iterator[Row]], features: Features, fingerprint: str) -> Dataset:
    """Rows as an Arrow file in the cache of `datasets`, written unless it is there; one of several processes writes it.

    `Dataset.from_generator` does the same and encodes value by value, which takes twice the time.

    Args:
        rows: values of `Json` come encoded.
        fingerprint: names the file, and whatever is later derived from the data set.

    Raises:
        MixtureError: the cache cannot be written; or what `rows` raises.
    """
    cache = Path(datasets.config.HF_DATASETS_CACHE).expanduser()
    path = cache / "minimind-trl" / f"rows-{fingerprint}.arrow"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if not path.exists():
                    _write_arrow(path, rows(), features)
    except OSError as error:
        raise MixtureError(
            f"{cache}: the cache of the data sets cannot be written: {error.strerror or error}; make room there, or "
            "set HF_DATASETS_CACHE to a folder on another disk"
        ) from None
    return Dataset(MemoryMappedTable.from_file(str(path)), split=Split.TRAIN, fingerprint=fingerprint)


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


def as_rows(columns: dict[str, list]) -> list[Row]:
    """The rows of a table of columns."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _write_arrow(path: Path, rows: Iterator[Row], features: Features) -> None:
    with atomic_path(path) as temporary, ArrowWriter(path=str(temporary), features=features) as writer:
        while batch := list(islice(rows, _BATCH)):
            writer.write_table(pa.Table.from_pylist(batch, schema=features.arrow_schema))
        writer.finalize()


def _without_nulls(row: Row) -> Row:
    return {
        name: [{key: part for key, part in turn.items() if part is not None} for turn in value]
        if name in _TURNS
        else value
        for name, value in row.items()
    }
