"""What became of every row: the figures behind `mixture.lock.json`, the table and the model card."""

from typing import Any

import numpy as np
from pydantic import BaseModel
from rich.table import Table

_PERCENTILES = (5, 50, 95)
_KEYS_SHOWN = 20


class SplitReport(BaseModel):
    """One source's part in one split."""

    rows: int
    repeated: int
    """Of the rows, those that are there a second time or more often."""
    share: float
    tokens: int | None
    """None where no tokenizer counted them."""
    length_percentiles: dict[str, int] | None
    """Tokens per row."""


class SourceReport(BaseModel):
    name: str
    source: str
    row_schema: str
    files: list[dict[str, str]]
    """Name and sha256, or commit of a Hub data set."""
    rows_in: int
    dropped: dict[str, int]
    """Rows by reason; `rows_in` is these and what is in the splits without repetitions."""
    escaped: int
    """Control tokens that were spelled inside the text, and are written with a space now."""
    untrained: int = 0
    """Turns of the rows that are left which say that they are not trained (`loss`, `weight`, `train`)."""
    unread: dict[str, int] = {}
    """Rows by each key that says something and that nobody reads; those of turns are `messages[].key`."""
    target_share: float
    train: SplitReport
    validation: SplitReport


class MixtureReport(BaseModel):
    """A mixture that was built."""

    config: str
    phase: str
    description: str
    version: str
    seed: int
    validation: dict[str, Any]
    notes: list[str]
    sources: list[SourceReport]
    train: SplitReport
    held_out: SplitReport

    def lines(self) -> list[str]:
        """Plain lines, one for each source and one for each split."""
        found = [f"{source.train.share:.2%} {source.name}: {_told(source)}" for source in self.sources]
        return [*found, f"train {_size(self.train)}, validation {_size(self.held_out)}", *self.notes]

    def table(self) -> Table:
        """For a terminal: share, rows, tokens and lengths of each source; the drops are in `drops`."""
        table = Table(title=f"{self.config}: {self.phase} mixture")
        for column in ("source", "share", "train", "held out", "tokens", "length 5/50/95%"):
            table.add_column(column, justify="left" if column == "source" else "right")
        for source in self.sources:
            table.add_row(source.name, *_cells(source.train, source.target_share, source.validation.rows))
        table.add_section()
        table.add_row("all", *_cells(self.train, 1.0, self.held_out.rows))
        return table

    def drops(self) -> list[str]:
        """Per source: rows in, rows dropped by reason, turns that are not trained, and keys that are not read."""
        return [
            f"{source.name}: {source.rows_in:,} rows in{_dropped(source)}{_kept(source)}" for source in self.sources
        ]

    def markdown(self) -> str:
        """For a model card."""
        lines = [
            f"Mixture `{self.config}` (phase {self.phase}, seed {self.seed}): {self.description}".rstrip(": "),
            "",
            "| source | revision or sha256 | share | train rows | validation rows | dropped |",
            "|---|---|---|---|---|---|",
        ]
        for source in self.sources:
            pins = ", ".join(sorted({f"`{file['digest'][:12]}`" for file in source.files}))
            dropped = "; ".join(f"{count:,} {reason}" for reason, count in source.dropped.items()) or "none"
            lines.append(
                f"| {source.source} | {pins} | {source.train.share:.2%} | {source.train.rows:,} | "
                f"{source.validation.rows:,} | {dropped} |"
            )
        return "\n".join(lines) + "\n"


def describe_split(taken: np.ndarray, of_source: np.ndarray, tokens: np.ndarray | None) -> SplitReport:
    """Figures of a split, or of one source's part in it.

    Args:
        taken: row numbers of the whole split, repetitions included.
        of_source: which of them belong to the part.
        tokens: of every row of the pool; None where they were not counted.
    """
    rows = taken[of_source]
    lengths = None if tokens is None else tokens[rows]
    percentiles = None
    if lengths is not None and len(lengths):
        values = np.percentile(lengths, _PERCENTILES).astype(int)
        percentiles = {f"{percent}%": int(value) for percent, value in zip(_PERCENTILES, values, strict=True)}
    return SplitReport(
        rows=len(rows),
        repeated=len(rows) - int(np.count_nonzero(np.bincount(rows))),
        share=len(rows) / max(len(taken), 1),
        tokens=None if lengths is None else int(lengths.sum(dtype=np.int64)),
        length_percentiles=percentiles,
    )


def _cells(split: SplitReport, target: float, held_out: int) -> list[str]:
    wanted = "" if abs(split.share - target) < 5e-4 else f" (of {target:.1%})"
    repeated = f" ({split.repeated:,} again)" if split.repeated else ""
    lengths = "/".join(map(str, (split.length_percentiles or {}).values()))
    tokens = "" if split.tokens is None else f"{split.tokens:,}"
    return [f"{split.share:.1%}{wanted}", f"{split.rows:,}{repeated}", f"{held_out:,}", tokens, lengths]


def _dropped(source: SourceReport) -> str:
    return "".join(f"; {count:,} dropped: {reason}" for reason, count in source.dropped.items())


def _kept(source: SourceReport) -> str:
    """What of the rows that are left is not learned from."""
    told = f"; {source.untrained:,} turns are not trained, as they say" if source.untrained else ""
    by_count: dict[int, list[str]] = {}
    for key, count in sorted(source.unread.items(), key=lambda item: -item[1])[:_KEYS_SHOWN]:
        by_count.setdefault(count, []).append(key)
    keys = ", ".join(f"{', '.join(keys)} (in {count:,} rows)" for count, keys in by_count.items())
    more = f" and {len(source.unread) - _KEYS_SHOWN:,} more keys" if len(source.unread) > _KEYS_SHOWN else ""
    return told + (f"; not read: {keys}{more}" if keys else "")


def _size(split: SplitReport) -> str:
    tokens = "" if split.tokens is None else f" ({split.tokens:,} tokens)"
    return f"{split.rows:,} rows{tokens}"


def _told(source: SourceReport) -> str:
    parts = [f"{_size(source.train)} of {source.rows_in:,}"]
    if source.train.repeated:
        parts.append(f"{source.train.repeated:,} of them repetitions")
    parts.append(f"{source.validation.rows:,} held out")
    if source.escaped:
        parts.append(f"{source.escaped:,} control tokens inside the text escaped")
    return "; ".join(parts) + _dropped(source) + _kept(source)
