"""A streaming mixture: rows are converted as they are read, and the whole is never known.

So there is no deduplication and no total; shares hold in expectation, and the mixture ends with the first source that
does. The split is by content hash, as always.

Files are read in parts, in random order, and rows are shuffled in blocks. The state of a stream names a part, a block
and a place in them, which is enough to resume at that row without reading what came before. With a shuffle buffer, as
in `IterableDataset.shuffle`, a resumed run would lose the rows in the buffer.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from datasets import (
    Features,
    IterableDataset,
    IterableDatasetDict,
    List,
    Value,
    concatenate_datasets,
    interleave_datasets,
)
from datasets.distributed import split_dataset_by_node

from ..errors import MixtureError
from . import selection
from .config import Source, Validation
from .duplicates import CONTAMINATED
from .file_formats import filled_rows
from .reader import MixtureReader, SourceReader, converted_rows
from .report import CUT, MOVED, TOKENS
from .row_renderer import TOKEN_COLUMNS
from .rows import FACTS, RowConverter
from .selection import LEAKED
from .sources import DataFile
from .turns import Row

_LOOKED_AT = 1000  # rows after which a source with hardly any usable row is an error
_BLOCK = 10_000  # rows that are shuffled together
_PARTS_EACH = 4  # parts per process below which their sizes would decide how often a row is seen


def open_streamed(reader: MixtureReader, source: Source) -> SourceReader:
    """Open a source to stream it, and check its first rows.

    Raises:
        MixtureError: it cannot be opened, its rows cannot be used, or they are of KTO.
    """
    opened = reader.open(source, remote=True)
    if opened.converter.schema == "kto":
        raise MixtureError(
            f"{reader.path}: datasets.{source.name}: answers with a label (KTO) become pairs over the whole "
            "source, which a stream never sees: set streaming: false"
        )
    opened.check_head()
    return opened


def build_stream(opened: list[SourceReader], seen: dict[str, Counter[str]]) -> IterableDatasetDict:
    """The streams of a mixture: "train" and, where rows are held out, "validation".

    Args:
        opened: by `open_streamed`.
        seen: by source; counts the rows that are read.
    """
    mixture = opened[0].reader.mixture
    total = sum(source.mix_ratio for source in mixture.datasets)
    ratios = [source.mix_ratio / total for source in mixture.datasets]
    held_out = {group for source in opened for group in _held_out_groups(source)}
    converters = [source.converter for source in opened]
    lists = _list_types(converters[0].features)

    def mixed(streams: list[IterableDataset], seed: int) -> IterableDataset:
        rows = interleave_datasets(streams, probabilities=ratios, seed=seed, stopping_strategy="first_exhausted")
        needless = [] if any(converter.flattens for converter in converters) else ["untrained"]
        rows = rows.remove_columns([*FACTS, *(name for name in needless if name in converters[0].features)])
        return _decoded(rows, sorted({name for converter in converters for name in converter.extras}), lists)

    train = mixed([_train(source, seen[source.source.name], held_out) for source in opened], mixture.seed)
    if mixture.size:
        train = train.take(mixture.size.rows)
    if mixture.validation is None:
        return IterableDatasetDict(train=train)
    validation = mixed([_validation(source) for source in opened], mixture.validation.seed)
    return IterableDatasetDict(train=train, validation=validation)


def share_of(rows: IterableDataset, process: int, processes: int) -> IterableDataset:
    """The part of a stream that one of several processes, on one machine or many, trains on.

    With enough files, or parts of files, each process reads its own; otherwise all read everything, and each keeps
    every n-th row.
    """
    strategy = "shards" if rows.num_shards >= _PARTS_EACH * processes else "examples"
    return split_dataset_by_node(rows, process, processes, strategy) if processes > 1 else rows


def _train(opened: SourceReader, seen: Counter[str], held_out: set[int]) -> IterableDataset:
    source, mixture = opened.source, opened.reader.mixture
    parts = [part for file in opened.files for part in _parts(file)]
    np.random.default_rng(mixture.seed).shuffle(parts)
    rows = _converted(opened, parts)
    rows = rows.filter(_counting_filter(source.name, seen, held_out, opened.reader.cut_at))
    if not opened.held_out and mixture.validation is not None:
        rows = rows.filter(lambda row: not _is_held_out(row, mixture.validation))
    rows = rows.map(partial(_shuffled, seed=mixture.seed), batched=True, batch_size=_BLOCK, features=rows.features)
    return rows.repeat(source.max_repetition) if source.max_repetition > 1 else rows


def _parts(file: DataFile) -> list[DataFile]:
    cut = file.remote_parts or file.parts
    return cut() if cut else [file]


def _validation(opened: SourceReader) -> IterableDataset:
    rows = _converted(opened, opened.held_out or opened.files)
    rows = rows.filter(lambda row: row["_reason"] is None and not row["_contaminated"])
    rule = opened.reader.mixture.validation
    return rows if opened.held_out else rows.filter(lambda row: _is_held_out(row, rule))


def _held_out_groups(opened: SourceReader) -> Iterator[int]:
    """Hashes of what the source holds out itself, which no source may train on."""
    rows = converted_rows(opened.held_out, opened.converter, remote=True)
    return (row["_group"] for row in rows if row.get("_group") is not None)


def _shuffled(block: dict[str, list], seed: int) -> dict[str, list]:
    order = selection.in_random_order(np.array(block["_key"]).view(np.uint64), seed)
    return {name: [values[i] for i in order] for name, values in block.items()}


def _is_held_out(row: Row, rule: Validation) -> bool:
    return bool(selection.is_held_out(np.array([row["_group"]]).view(np.uint64), rule)[0])


def _converted(opened: SourceReader, files: list[DataFile]) -> IterableDataset:
    converter = opened.converter
    # As text until the end: every step of a stream would decode a `Json` text such as "3" once more.
    features = converter.features | dict.fromkeys(converter.extras, Value("string"))
    # As bytes until the end: every step would look at each token, and the rows that are shuffled are held in memory.
    features = Features(features | dict.fromkeys(_list_types(features), Value("binary")))
    if files[0].stream is None:
        return IterableDataset.from_generator(
            _convert, features, gen_kwargs={"files": list(enumerate(files)), "by": converter}
        )
    streams = [_mapped(file.stream(), file, index, converter, features) for index, file in enumerate(files)]
    return concatenate_datasets(streams)


def _convert(files: list[tuple[int, DataFile]], by: RowConverter) -> Iterator[Row]:
    lists = _list_types(by.features)
    for index, file in files:  # a part of them: `datasets` shards the lists in its arguments
        for row in converted_rows([file], by, remote=True):
            yield _with_bytes(row, lists) | {"_file": index}


def _mapped(
    rows: IterableDataset, file: DataFile, index: int, converter: RowConverter, features: Features
) -> IterableDataset:
    lists = _list_types(converter.features)

    def convert(columns: dict[str, list], numbers: list[int]) -> dict[str, list]:
        raws = filled_rows(columns)
        converted = []
        places = [file.at(number + 1) for number in numbers]
        for traced, number in zip(converter.trace(raws, places.__getitem__), numbers, strict=True):
            converter.refuse_other_schema(traced, file.at(number + 1))
            converted.append(_with_bytes(converter.with_facts(traced), lists) | {"_file": index, "_number": number + 1})
        return {name: [row.get(name) for row in converted] for name in features}

    columns = rows.column_names or list(next(iter(rows)))
    return rows.map(convert, with_indices=True, batched=True, batch_size=100, remove_columns=columns, features=features)


def _list_types(features: dict[str, Any]) -> dict[str, str]:
    """The numpy types of the columns that are lists of tokens."""
    return {name: features[name].feature.dtype for name in TOKEN_COLUMNS if isinstance(features.get(name), List)}


def _with_bytes(row: Row, lists: dict[str, str]) -> Row:
    """The row with its lists of tokens as bytes."""
    filled = {name: dtype for name, dtype in lists.items() if row.get(name) is not None}
    return row | {name: np.asarray(row[name], dtype).tobytes() for name, dtype in filled.items()}


def _decoded(rows: IterableDataset, columns: list[str], lists: dict[str, str]) -> IterableDataset:
    if not columns and not lists:
        return rows

    def decode(row: Row) -> Row:
        decoded = {name: json.loads(row[name]) if row.get(name) else None for name in columns}
        filled = {name: dtype for name, dtype in lists.items() if row.get(name) is not None}
        return row | decoded | {name: np.frombuffer(row[name], dtype).tolist() for name, dtype in filled.items()}

    return rows.map(decode)


def _counting_filter(name: str, seen: Counter, held_out: set[int], cut_at: int | None) -> Callable[[Row], bool]:
    """A filter that counts rows, reasons for drops, tokens, and tokens that are cut off.

    The filter raises a MixtureError if most of the first rows cannot be used, or none is left.
    """
    unusable = kept = 0
    reached: dict[int, int] = {}  # by file, so that a source that is read again counts once

    def keep(row: Row) -> bool:
        nonlocal unusable, kept
        reason = row["_reason"] or (CONTAMINATED if row["_contaminated"] else None)
        reason = reason or (LEAKED if row["_group"] in held_out else None)
        if row["_number"] > reached.get(row["_file"], 0):
            reached[row["_file"]] = row["_number"]
            seen["rows read"] += 1
            seen.update([reason] if reason else [])
            seen.update({MOVED: moved} if (moved := row.get("_moved")) else {})
            seen.update(f"with {key!r}, which is not read" for key in (row["_unread"] or "").splitlines())
            if reason is None and (tokens := row["_tokens"]):
                seen[TOKENS] += tokens
                seen.update({CUT: tokens - cut_at} if cut_at and tokens > cut_at else {})
            unusable, kept = unusable + bool(row["_unusable"]), kept + (reason is None)
            if seen["rows read"] == _LOOKED_AT and (unusable > _LOOKED_AT / 2 or not kept):
                counts = ", ".join(f"{count} {what}" for what, count in seen.items())
                raise MixtureError(f"datasets.{name}: of the first {_LOOKED_AT} rows hardly any is of use ({counts})")
        return reason is None

    return keep
