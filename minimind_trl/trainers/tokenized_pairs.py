"""Preference pairs that the mixture has tokenized, for TRL's DPOTrainer and RewardTrainer.

As in `tokenized_rows`, the steps work on whole Arrow columns.
"""

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset

from ..data.row_renderer import TOKENS

DPO_TOKENS = TOKENS["pair"]
REWARD_TOKENS = _IDS = ("chosen_ids", "rejected_ids")
_MARGIN = "margin"  # of RewardTrainer's loss; a mixture may keep it as a column


def has_tokens(pairs: Dataset | IterableDataset, names: Collection[str]) -> bool:
    """Whether a mixture has tokenized these pairs, with the columns `names` in every row."""
    if isinstance(pairs, IterableDataset):
        first = next(iter(pairs))
        return all(first.get(name) is not None for name in names)
    return {*names} <= {*pairs.column_names} and not any(pairs.data.column(name).null_count for name in names)


def pairs_for_dpo(pairs: Dataset | IterableDataset, max_length: int | None) -> Dataset | IterableDataset:
    """`prompt_ids`, `chosen_ids` and `rejected_ids`, the latter two without the prompt.

    Args:
        max_length: pairs whose prompt has as many tokens or more are left out; None keeps all.
    """
    pairs = pairs.select_columns([*DPO_TOKENS])
    if isinstance(pairs, Dataset):
        return _mapped(pairs, _for_dpo, max_length)
    fitting = pairs if max_length is None else pairs.filter(lambda row: row["prompt_tokens"] < max_length)
    return fitting.map(_row_for_dpo, remove_columns="prompt_tokens")


def pairs_for_reward(pairs: Dataset | IterableDataset, max_length: int | None) -> Dataset | IterableDataset:
    """`chosen_ids` and `rejected_ids` with the prompt, and the column `margin` if there is one.

    Args:
        max_length: pairs with a side of more tokens are left out; None keeps all.
    """
    columns = pairs.column_names or next(iter(pairs))
    pairs = pairs.select_columns([name for name in (*_IDS, _MARGIN) if name in columns])
    if max_length is None:
        return pairs
    if isinstance(pairs, Dataset):
        return _mapped(pairs, _fitting, max_length)
    return pairs.filter(lambda row: all(len(row[name]) <= max_length for name in _IDS))


def _mapped(pairs: Dataset, function, max_length: int | None) -> Dataset:
    mapped = pairs.with_format("arrow").map(
        function,
        batched=True,
        fn_kwargs={"max_length": max_length},
        remove_columns=pairs.column_names,
        desc="Preparing pairs",
    )
    return mapped.with_format(None)


def _fitting(pairs: pa.Table, max_length: int) -> pa.Table:
    lengths = [pc.list_value_length(pairs[name]) for name in _IDS]
    return pairs.filter(pc.less_equal(pc.max_element_wise(*lengths), max_length))


def _for_dpo(pairs: pa.Table, max_length: int | None) -> pa.Table:
    if max_length is not None:
        pairs = pairs.filter(pc.less(pairs["prompt_tokens"], max_length))
    starts = pairs["prompt_tokens"].to_numpy().astype(np.int64)
    chosen, rejected = (pairs[name].combine_chunks() for name in _IDS)
    return pa.table(
        {
            "prompt_ids": _parts(chosen, starts, of_prompt=True),
            "chosen_ids": _parts(chosen, starts, of_prompt=False),
            "rejected_ids": _parts(rejected, starts, of_prompt=False),
        }
    )


def _row_for_dpo(row: dict) -> dict[str, list[int]]:
    start = row["prompt_tokens"]
    return {"prompt_ids": row["chosen_ids"][:start]} | {name: row[name][start:] for name in _IDS}


def _parts(lists: pa.ListArray, starts: np.ndarray, of_prompt: bool) -> pa.ListArray:
    """The first so many values of each list, or the others."""
    lengths = lists.value_lengths().to_numpy().astype(np.int64)
    places = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    is_prompt = places < np.repeat(starts, lengths)
    values = lists.flatten().to_numpy()[is_prompt == of_prompt]
    ends = np.cumsum(starts if of_prompt else lengths - starts)
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), pa.int32()), pa.array(values))
