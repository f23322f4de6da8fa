"""The rows of a batch as text, for messages about what failed."""

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import TrainingError, describe

_ROWS_SHOWN, _CHARACTERS_SHOWN = 8, 80


class RowNamingCollator:
    """A collator whose errors name the rows that it got."""

    def __init__(self, collator: Callable, processing_class: Any):
        self.collator, self.processing_class = collator, processing_class

    def __call__(self, rows: list) -> Any:
        try:
            return self.collator(rows)
        except (Exception, SystemExit) as error:
            name = getattr(self.collator, "__qualname__", type(self.collator).__qualname__)
            texts = describe_rows(rows, self.processing_class)
            shown = ", ".join(repr(text[: _CHARACTERS_SHOWN // 2]) for text in texts)
            raise TrainingError(f"the collator {name} failed: {describe(error)}; the rows begin {shown}") from error


def describe_rows(inputs: Any, processing_class: Any) -> list[str]:
    """The texts of a batch's rows without padding, packed sequences one by one; empty for an unknown kind of batch."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if isinstance(inputs, list):  # online trainers and collators get the rows themselves
        return [_row_text(row, tokenizer) for row in inputs]
    if not isinstance(inputs, Mapping) or "input_ids" not in inputs or tokenizer is None:
        return []
    ids, mask, positions = (inputs.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    texts = []
    for row in range(ids.shape[0]):
        kept = ids[row] if mask is None else ids[row][mask[row].bool()]
        starts = [0]
        if positions is not None:
            here = positions[min(row, positions.shape[0] - 1)]
            here = here if mask is None else here[mask[row].bool()]
            starts = (here == 0).nonzero().flatten().tolist() or [0]
        ends = [*starts[1:], len(kept)]
        texts += [tokenizer.decode(kept[start:end]) for start, end in zip(starts, ends, strict=True)]
    return texts


def numbered_list(texts: list[str]) -> str:
    """The beginnings of the first rows, one a line."""
    lines = [f"  {number}. {text[:_CHARACTERS_SHOWN]!r}" for number, text in enumerate(texts[:_ROWS_SHOWN], start=1)]
    if len(texts) > _ROWS_SHOWN:
        lines.append(f"  and {len(texts) - _ROWS_SHOWN} more")
    return "\n".join(lines)


def _row_text(row: Any, tokenizer: Any) -> str:
    if isinstance(row, Mapping) and "input_ids" in row and tokenizer is not None:
        return tokenizer.decode(row["input_ids"])
    return str(row.get("prompt", row)) if isinstance(row, Mapping) else str(row)
