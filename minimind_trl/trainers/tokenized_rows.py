"""A mixture's rows as `input_ids` and `labels`, for the trainers of language models.

The steps work on whole Arrow columns, because a step in Python for every token takes longer than tokenizing.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ..evaluation.held_out import tokenize_rows

_IGNORED = -100


def is_from_mixture(rows: Dataset | IterableDataset) -> bool:
    """Whether rows are a mixture's texts or conversations, not tokenized by someone else."""
    columns = set(rows.column_names or next(iter(rows)))
    return bool(columns & {"text", "messages"}) and "labels" not in columns


def labelled_rows(
    rows: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    assistant_only: bool,
    max_length: int | None = None,
    keep_end: bool = False,
    num_proc: int | None = None,
    keep_columns: tuple[str, ...] = (),
) -> Dataset | IterableDataset:
    """Rows of a mixture as `input_ids` and `labels`; -100 marks what is not learned.

    Rows that the mixture has tokenized are not tokenized again.

    Args:
        max_length: tokens to which rows are cut; rows in which then nothing is learned are left out. None: neither.
        keep_end: cut off the beginning, not the end.
        keep_columns: further columns that stay.
    """
    if isinstance(rows, IterableDataset):
        return _labelled_stream(rows, tokenizer, assistant_only, max_length, keep_end, keep_columns)
    if _has_tokens(rows, assistant_only):
        if not assistant_only and "messages" in rows.column_names:  # then all turns are learned
            rows = rows.remove_columns([name for name in ("assistant_masks",) if name in rows.column_names])
    else:
        names = [name for name in rows.column_names if name in ("text", "untrained", "messages", "tools")]
        options = {"tokenizer": tokenizer, "assistant_only": assistant_only}
        rows = rows.select_columns([*names, *(name for name in keep_columns if name not in names)])
        rows = rows.map(_tokenized, batched=True, fn_kwargs=options, num_proc=num_proc, desc="Tokenizing")
    wanted = ("input_ids", "assistant_masks", *keep_columns)
    rows = rows.select_columns([name for name in wanted if name in rows.column_names])
    options = {"max_length": max_length, "keep_end": keep_end}
    return (
        rows.with_format("arrow")
        .map(_labelled, batched=True, fn_kwargs=options, remove_columns=rows.column_names, desc="Building labels")
        .with_format(None)
    )


def pieces_of(rows: Dataset | IterableDataset, length: int) -> Dataset | IterableDataset:
    """Rows of `input_ids` and `labels`; a row of more than `length` tokens becomes several consecutive rows.

    Pieces in which nothing is predicted are left out; a row with turns that are not trained can have such pieces.
    """
    rows = rows.select_columns(["input_ids", "labels"])
    if isinstance(rows, IterableDataset):
        return rows.map(lambda batch: _in_pieces(_table(batch), length).to_pydict(), batched=True)
    options = {"length": length}
    return (
        rows.with_format("arrow").map(_in_pieces, batched=True, fn_kwargs=options, desc="Splitting").with_format(None)
    )


def _has_tokens(rows: Dataset, assistant_only: bool) -> bool:
    """Whether rows have a mixture's tokens whose masks fit the training; see `evaluation.held_out`."""
    if "input_ids" not in rows.column_names:
        return False
    if assistant_only or "messages" not in rows.column_names:
        return True
    turns = pc.list_flatten(rows.data.column("messages"))
    return not pc.any(pc.equal(pc.struct_field(turns, "train"), False)).as_py()


def _labelled_stream(
    rows: IterableDataset, tokenizer, assistant_only: bool, max_length: int | None, keep_end: bool, keep_columns
) -> IterableDataset:
    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        tokens = _tokenized(batch, tokenizer, assistant_only) | {name: batch[name] for name in keep_columns}
        return _labelled(pa.table(tokens), max_length, keep_end).to_pydict()

    needless = [name for name in rows.column_names or next(iter(rows)) if name not in keep_columns]
    return rows.map(tokenize, batched=True, remove_columns=needless)


def _tokenized(batch: dict[str, list], tokenizer, assistant_only: bool) -> dict[str, list]:
    wanted = ("text", "untrained", "messages", "tools", "input_ids", "assistant_masks")
    names = [name for name in wanted if name in batch]
    rows = [dict(zip(names, values, strict=True)) for values in zip(*(batch[name] for name in names), strict=True)]
    tokens = tokenize_rows(rows, tokenizer, None, assistant_only)
    return {"input_ids": [ids for ids, _ in tokens], "assistant_masks": [mask for _, mask in tokens]}


def _table(batch: dict[str, list]) -> pa.Table:
    return pa.table({name: pa.array(batch[name], pa.list_(pa.int32())) for name in ("input_ids", "labels")})


def _labelled(tokens: pa.Table, max_length: int | None, keep_end: bool) -> pa.Table:
    """Column `labels` for columns `input_ids` and, unless all is learned, `assistant_masks`; other columns stay."""
    ids, lengths = _values(tokens["input_ids"])
    learned = np.ones(len(ids), dtype=bool)
    if "assistant_masks" in tokens.column_names:
        masks = tokens["assistant_masks"].combine_chunks()
        if masks.null_count < len(masks):  # else the column may have no type
            is_marked = np.repeat(masks.is_valid().to_numpy(zero_copy_only=False), lengths)
            learned[is_marked] = masks.flatten().to_numpy(zero_copy_only=False)
    labels = np.where(learned, ids, _IGNORED)
    others = tokens.select([name for name in tokens.column_names if name not in ("input_ids", "assistant_masks")])
    if max_length is None:
        return _rows(ids, labels, lengths, others)
    places = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    if keep_end:
        places = np.repeat(lengths, lengths) - 1 - places
    kept = places < max_length
    cut = _rows(ids[kept], labels[kept], np.minimum(lengths, max_length), others)
    return cut.filter(pa.array(_targets(cut["labels"]) > 0))


def _in_pieces(rows: pa.Table, length: int) -> pa.Table:
    """Rows cut as `tokenization.pieces` says: only their bounds change."""
    ids, lengths = _values(rows["input_ids"])
    labels, _ = _values(rows["labels"])
    counts = np.maximum(-(-lengths // length), 1)
    ends = np.cumsum(lengths)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # of a piece within its row
    starts = np.repeat(ends - lengths, counts) + number * length
    is_last = number == np.repeat(counts, counts) - 1
    if length > 2:  # a last piece of one token takes one more from the piece before it
        starts -= is_last & (number > 0) & (np.repeat(ends, counts) - starts == 1)
    stops = np.where(is_last, np.repeat(ends, counts), np.append(starts[1:], 0))
    split = _rows(ids, labels, stops - starts)
    first = np.zeros(len(starts), dtype=np.int64)
    filled = stops > starts
    first[filled] = labels[starts[filled]] != _IGNORED  # the first token of a piece is not predicted
    return split.filter(pa.array(_targets(split["labels"]) - first > 0))


def _targets(labels: pa.ChunkedArray) -> np.ndarray:
    """(rows,) labels of each row that are learned."""
    values, lengths = _values(labels)
    sums = np.concatenate([[0], np.cumsum(values != _IGNORED)])
    ends = np.cumsum(lengths)
    return sums[ends] - sums[ends - lengths]


def _values(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The values of lists, one after the other, and the lengths of the lists."""
    lists = column.combine_chunks()
    return lists.flatten().to_numpy().astype(np.int32, copy=False), lists.value_lengths().to_numpy().astype(np.int64)


def _rows(ids: np.ndarray, labels: np.ndarray, lengths: np.ndarray, others: pa.Table | None = None) -> pa.Table:
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    columns = dict(zip(others.column_names, others.columns, strict=True)) if others is not None else {}
    for name, values in {"input_ids": ids, "labels": labels}.items():
        columns[name] = pa.ListArray.from_arrays(offsets, pa.array(values, pa.int32()))
    return pa.table(columns)
