"""The text of files and data sets row by row, for training a tokenizer."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

import datasets

from ..errors import MixtureError, nearest, one_line
from ..tokenization.control_tokens import ROLES
from .config import format_of
from .file_formats import read_rows
from .hub import hub_errors, load_hub_split
from .turns import Row

# The text of a row: the first group whose first column is there.
_COLUMNS = (("text",), ("messages",), ("conversations",), ("prompt", "completion"), ("instruction", "input", "output"))
_BLOCK_CHARACTERS = 1 << 16


def iter_texts(sources: Iterable[str | Path], text_field: str | None = None) -> Iterator[str]:
    """Read text, row by row, from files, folders and data sets on the Hub.

    Args:
        sources: `.txt`, `.json`, `.jsonl`, `.csv`, `.parquet` or `.arrow` files, folders of such files or as
            written by `save_to_disk` (there the `train` split), or ids of data sets on the Hub.
        text_field: the column with the text, a string or a list of messages. By default the first that is there of
            `text`; `messages` or `conversations`; `prompt` and `completion`; `instruction`, `input` and `output`.

    Yields:
        One text a row, its parts joined by newlines; of a `.txt` file, blocks of whole lines of about 64 KiB.

    Raises:
        MixtureError: a source does not exist, cannot be read, or has no such column.
    """
    for source in sources:
        path = Path(source)
        if path.exists() and not path.is_file() and (not path.is_dir() or path.suffix == ".txt"):
            # Sources are read twice, to train and to measure; and a device may never end.
            kind = "a folder" if path.is_dir() else "a pipe or a device"
            raise MixtureError(f"{path}: is {kind}: give a file, into which its content was written")
        if path.suffix == ".txt":
            yield from _blocks(path)
            continue
        for row in _rows(str(source), path):
            columns = _text_columns(row, text_field, source)
            yield "\n".join(chain.from_iterable(_strings(row.get(name), name, source) for name in columns))


def _blocks(path: Path) -> Iterator[str]:
    try:
        # Line ends are kept as they are: they are text for a tokenizer.
        with path.open(encoding="utf-8", newline="") as file:
            while lines := file.readlines(_BLOCK_CHARACTERS):
                yield "".join(lines)
    except UnicodeDecodeError as error:
        raise MixtureError(f"{path}: is not UTF-8 text ({error}): convert it first") from error
    except OSError as error:
        raise MixtureError(f"{path}: cannot be read: {error.strerror}") from error


def _rows(source: str, path: Path) -> Iterator[Row]:
    kind = format_of(path.name)
    if path.is_file() and kind is None:
        raise MixtureError(
            f"{source}: unknown kind of file: convert it to .txt, .json, .jsonl, .csv, .parquet or .arrow"
        )
    if path.is_file() and path.stat().st_size == 0:
        raise MixtureError(f"{source}: is empty: leave it out")
    if kind and not path.is_dir():
        if not path.exists():
            raise MixtureError(
                f"{source}: no such file{nearest(path.name, [file.name for file in path.parent.glob('*')])}"
            )
        yield from (row for _, row in read_rows(kind, path))
    elif (path / "state.json").is_file():
        yield from (row for _, row in read_rows("arrow", path))
    elif (path / "dataset_dict.json").is_file():
        yield from (row for _, row in read_rows("arrow", path / "train"))
    elif path.is_dir():
        try:
            yield from datasets.load_dataset(source, split="train", streaming=True)
        except (OSError, ValueError) as error:
            raise MixtureError(f"{source}: cannot be read: {one_line(error)}") from error
    else:
        with hub_errors(source):
            yield from load_hub_split(source, split="train", streaming=True)


def _text_columns(row: Row, text_field: str | None, source: str | Path) -> tuple[str, ...]:
    if text_field in row:
        return (text_field,)
    if text_field is None and (found := next((columns for columns in _COLUMNS if columns[0] in row), None)):
        return found
    wanted = f"no column {text_field!r}" if text_field else "no column that is known to hold text"
    strings = sorted((name for name in row if isinstance(row[name], str)), key=lambda name: -len(row[name]))
    likely = [*get_close_matches(text_field or "text", row, n=1), *strings]
    advice = f"; say which one holds the text, perhaps --text_field {likely[0]}" if likely else ""
    raise MixtureError(f"{source}: {wanted}, only: {', '.join(row) or 'none'}{advice}")


def _strings(value: Any, column: str, source: str | Path) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, column, source)
    elif isinstance(value, dict):
        # The words of a turn's header as MiniMind-3's template writes them, with the blank line that ends an
        # assistant's think block, so that they become tokens of their own.
        if value.get("role") in ROLES:
            yield "assistant\n" if value["role"] == "assistant" else value["role"]
        yield from (value[key] for key in ("reasoning_content", "content", "value") if isinstance(value.get(key), str))
    elif value is not None:
        raise MixtureError(
            f"{source}: column {column!r} holds {type(value).__name__}, not text: name another one with --text_field"
        )
