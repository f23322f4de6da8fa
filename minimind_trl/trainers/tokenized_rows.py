"""A mixture's rows as `input_ids` and `labels`, for the trainers of language models."""

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ..evaluation.held_out import tokenize_rows
from ..tokenization import pieces


def with_labels(
    rows: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    assistant_only: bool,
    max_length: int | None = None,
    num_proc: int | None = None,
) -> Dataset | IterableDataset:
    """Rows of a mixture with `input_ids` and `labels`, cut to `max_length`; -100 marks what is not learned."""

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        names = [name for name in ("text", "untrained", "messages", "tools") if name in batch]
        whole = [dict(zip(names, values, strict=True)) for values in zip(*(batch[name] for name in names), strict=True)]
        cut = tokenize_rows(whole, tokenizer, max_length, assistant_only)
        labels = [[token if wanted else -100 for token, wanted in zip(*row, strict=True)] for row in cut]
        return {"input_ids": [ids for ids, _ in cut], "labels": labels}

    return rows.map(tokenize, batched=True, **({"num_proc": num_proc} if isinstance(rows, Dataset) else {}))


def pieces_of(rows: Dataset | IterableDataset, length: int) -> Dataset | IterableDataset:
    """Rows of `input_ids` and `labels`; a row of more than `length` tokens becomes several consecutive rows.

    Pieces in which nothing is predicted are left out; a row with turns that are not trained can have such pieces.
    """

    def split(batch: dict[str, list]) -> dict[str, list]:
        rows = zip(batch["input_ids"], batch["labels"], strict=True)
        parts = [(ids[part], labels[part]) for ids, labels in rows for part in pieces(len(ids), length)]
        parts = [(ids, labels) for ids, labels in parts if any(label != -100 for label in labels[1:])]
        return {"input_ids": [ids for ids, _ in parts], "labels": [labels for _, labels in parts]}

    return rows.select_columns(["input_ids", "labels"]).map(split, batched=True)
