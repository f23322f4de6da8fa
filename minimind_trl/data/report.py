"""What became of every row, as figures: for `mixture.lock.json`, the terminal and the model card."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel
from rich.table import Table

from .config import Mixture
from .sources import public_name

_PERCENTILES = (5, 50, 95)
MOVED = "reasoning_content written as <think> into the content, because the chat template leaves it out"
_KEPT = 0.95  # share of the tokens that is kept with the length that a warning proposes
FEW = 0.03  # share of a source's tokens that may be lost without a warning
TOKENS, CUT = "tokens", "tokens beyond the limit, cut off"  # how a stream's counters name them
_KEYS_SHOWN = 20


class SplitReport(BaseModel):
    """One source's part in one split."""

    rows: int
    repeated: int  # rows beyond the first occurrence of each
    share: float
    tokens: int | None  # none without a tokenizer
    length_percentiles: dict[str, int] | None  # tokens per row


class LongRows(BaseModel):
    """The effect of a limit on tokens per row on the training rows."""

    max_length: int
    on_long: Literal["cut", "chunk", "drop"]
    rows: int  # longer rows, repetitions included; with `drop`, the dropped ones
    tokens: int  # in all training rows, including what is lost
    lost: int  # tokens that are cut off, or are in dropped rows; none with `chunk`
    enough: int  # the `max_length` that would keep 95% of the tokens

    @property
    def share(self) -> float:
        return self.lost / max(self.tokens, 1)

    def summary(self) -> str:
        """The end of a line about the source; empty if no row is longer."""
        if not self.rows:
            return ""
        if self.on_long == "chunk":
            return f"{self.rows:,} longer than {self.max_length:,} tokens go on in further pieces, nothing is cut"
        what = "cut off at" if self.on_long == "cut" else "dropped with rows longer than"
        return f"{self.lost:,} tokens ({self.share:.1%}) {what} {self.max_length:,}"


class SourceReport(BaseModel):
    name: str
    source: str
    row_schema: str
    files: list[dict[str, str]]  # name and sha256, or commit of a Hub data set
    rows_in: int
    dropped: dict[str, int]  # rows by reason; `rows_in` is their sum plus the rows in the splits without repetitions
    escaped: int  # control tokens spelled inside the text, which are written with a space now
    moved: int = 0  # turns whose reasoning was moved into the content, because the chat template prints it nowhere else
    untrained: int = 0  # turns of the remaining rows that are marked as not trained (`loss`, `weight`, `train`)
    unread: dict[str, int] = {}  # rows by key that has a value and is not used; keys of turns are `messages[].key`
    target_share: float
    train: SplitReport
    validation: SplitReport
    long_rows: LongRows | None = None  # none without a tokenizer or a limit


class MixtureReport(BaseModel):
    """The report on a mixture that was built."""

    config: str
    phase: str
    description: str
    version: str
    seed: int
    validation: dict[str, Any] | None  # none if nothing is held out
    notes: list[str]
    sources: list[SourceReport]
    train: SplitReport
    held_out: SplitReport
    long_rows: LongRows | None = None

    def lock(self) -> dict[str, Any]:
        """The content of `mixture.lock.json`."""
        return self.model_dump()

    def lines(self) -> list[str]:
        """Plain lines, one for each source and one for each split."""
        found = [f"{source.train.share:.2%} {source.name}: {_described(source)}" for source in self.sources]
        held_out = f"validation {_size(self.held_out)}" if self.validation else "nothing held out (validation: none)"
        return [*found, f"train {_size(self.train)}, {held_out}", *self.notes]

    def warnings(self) -> list[str]:
        """For each source that loses more than 3% of its tokens to the limit: how many, and a better limit."""
        return [
            f"{source.name}: {source.long_rows.summary()}; a max_seq_length (--max_length) of "
            f"{source.long_rows.enough:,} would keep {_KEPT:.0%} of the tokens"
            for source in self.sources
            if source.long_rows and source.long_rows.share > FEW
        ]

    def table(self) -> Table:
        """A table for the terminal: share, rows, tokens and lengths of each source."""
        table = Table(title=f"{self.config}: {self.phase} mixture")
        limited = self.long_rows is not None and self.long_rows.rows > 0
        lost = ["in pieces" if self.long_rows.on_long == "chunk" else "lost"] if limited else []
        for column in ("source", "share", "train", "held out", "tokens", "length 5/50/95%", *lost):
            table.add_column(column, justify="left" if column == "source" else "right")
        for source in self.sources:
            cells = _cells(source.train, source.target_share, source.validation.rows)
            table.add_row(source.name, *cells, *([_lost(source.long_rows)] if limited else []))
        table.add_section()
        cells = _cells(self.train, 1.0, self.held_out.rows)
        table.add_row("all", *cells, *([_lost(self.long_rows)] if limited else []))
        return table

    def drops(self) -> list[str]:
        """One line for each source: rows in, rows dropped by reason, untrained turns, unused keys."""
        return [
            f"{source.name}: {source.rows_in:,} rows in{_dropped(source)}{_kept(source)}" for source in self.sources
        ]

    def moved(self) -> list[str]:
        """One line for each source with reasoning that the chat template would have left out."""
        return [f"{source.name}: {source.moved:,} {MOVED}" for source in self.sources if source.moved]

    def markdown(self) -> str:
        """Markdown for a model card."""
        lines = [
            f"Mixture `{self.config}` (phase {self.phase}, seed {self.seed}): {self.description}".rstrip(": "),
            "",
            "| source | revision or sha256 | share | train rows | validation rows | dropped | longer than the limit |",
            "|---|---|---|---|---|---|---|",
        ]
        for source in self.sources:
            pins = ", ".join(sorted({f"`{file['digest'][:12]}`" for file in source.files}))
            long = (source.long_rows.summary() or "none") if source.long_rows else "-"
            dropped = "; ".join(f"{count:,} {reason}" for reason, count in source.dropped.items()) or "none"
            lines.append(
                f"| {source.source} | {pins} | {source.train.share:.2%} | {source.train.rows:,} | "
                f"{source.validation.rows:,} | {dropped} | {long} |"
            )
        if self.validation is None:
            lines += ["", "No rows are held out (`validation: none`)."]
        lines += [line for warning in self.warnings() for line in ("", f"Warning: {warning}.")]
        return "\n".join(lines) + "\n"


@dataclass
class StreamReport:
    """What was read of a streaming mixture so far.

    Attributes:
        files: name and digest of each source's files.
        seen: counts by source, as its rows are read: rows, those dropped by reason, tokens.
    """

    config: str
    mixture: Mixture
    max_length: int | None
    files: dict[str, list[dict[str, str]]]
    seen: dict[str, Counter[str]]

    def lock(self) -> dict[str, Any]:
        """The content of `mixture.lock.json`."""
        mixture = self.mixture
        sources = [
            {
                **{"name": source.name, "source": public_name(source.source), "target_share": source.mix_ratio},
                **{"files": self.files[source.name], "read_so_far": dict(self.seen[source.name])},
            }
            for source in mixture.datasets
        ]
        return {
            **{"config": self.config, "phase": mixture.metadata.phase, "description": mixture.metadata.description},
            **{"seed": mixture.seed, "validation": mixture.validation and mixture.validation.model_dump()},
            **{"streaming": True, "sources": sources},
        }

    def lines(self) -> list[str]:
        """Plain lines, one for each source."""
        return [
            f"{name}: streamed, {', '.join(f'{count:,} {what}' for what, count in counts.items()) or 'not read yet'}"
            for name, counts in self.seen.items()
        ]

    def warnings(self) -> list[str]:
        """As of `MixtureReport`."""
        lost = {name: counts[CUT] / max(counts[TOKENS], 1) for name, counts in self.seen.items()}
        return [
            f"{name}: {share:.1%} of the tokens read so far are beyond max_seq_length {self.max_length:,}, and cut off"
            for name, share in lost.items()
            if share > FEW
        ]

    def markdown(self) -> str:
        """Markdown for a model card."""
        return f"Streaming mixture `{self.config}` (phase {self.mixture.metadata.phase}):\n\n" + "".join(
            f"- {public_name(source.source)}: share {source.mix_ratio:.2%}{_cut_so_far(self.seen[source.name])}\n"
            for source in self.mixture.datasets
        )


def _cut_so_far(seen: Counter[str]) -> str:
    if not seen[CUT]:
        return ""
    return f"; of {seen[TOKENS]:,} tokens read {seen[CUT]:,} ({seen[CUT] / seen[TOKENS]:.1%}) were cut off"


def describe_split(taken: np.ndarray, of_source: np.ndarray, tokens: np.ndarray | None) -> SplitReport:
    """Figures of a split, or of one source's part in it.

    Args:
        taken: row numbers of the whole split, repetitions included.
        of_source: mask of those that belong to the part.
        tokens: of every row in the pool; None without a tokenizer.
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


def describe_long_rows(lengths: np.ndarray, limit: int, on_long: str, dropped: np.ndarray) -> LongRows:
    """Figures of rows that are longer than a limit.

    Args:
        lengths: tokens of each training row, repetitions included.
        dropped: tokens of each row that was dropped for its length.
    """
    over = dropped if on_long == "drop" else lengths[lengths > limit]
    lost = {"cut": int((over.astype(np.int64) - limit).sum()), "chunk": 0, "drop": int(over.sum(dtype=np.int64))}
    whole = np.concatenate([lengths, dropped]).astype(np.int64)
    return LongRows(
        max_length=limit,
        on_long=on_long,
        rows=len(over),
        tokens=int(whole.sum()),
        lost=lost[on_long],
        enough=_enough(whole, whole_rows=on_long == "drop"),
    )


def _enough(lengths: np.ndarray, whole_rows: bool) -> int:
    """The lowest limit that keeps 95% of the tokens, if longer rows are cut, or dropped (`whole_rows`)."""
    if not len(lengths):
        return 0
    wanted = _KEPT * lengths.sum()

    def kept(limit: int) -> int:
        return int(lengths[lengths <= limit].sum() if whole_rows else np.minimum(lengths, limit).sum())

    return bisect_left(range(int(lengths.max())), wanted, key=kept)


def _lost(long_rows: LongRows | None) -> str:
    if long_rows is None:
        return ""
    return f"{long_rows.rows:,} rows" if long_rows.on_long == "chunk" else f"{long_rows.share:.1%}"


def _cells(split: SplitReport, target: float, held_out: int) -> list[str]:
    wanted = "" if abs(split.share - target) < 5e-4 else f" (of {target:.1%})"
    repeated = f" ({split.repeated:,} again)" if split.repeated else ""
    lengths = "/".join(map(str, (split.length_percentiles or {}).values()))
    tokens = "" if split.tokens is None else f"{split.tokens:,}"
    return [f"{split.share:.1%}{wanted}", f"{split.rows:,}{repeated}", f"{held_out:,}", tokens, lengths]


def _dropped(source: SourceReport) -> str:
    return "".join(f"; {count:,} dropped: {reason}" for reason, count in source.dropped.items())


def _kept(source: SourceReport) -> str:
    """Untrained turns and unused keys in the remaining rows."""
    flagged = f"; {source.untrained:,} turns are not trained, as they say" if source.untrained else ""
    by_count: dict[int, list[str]] = {}
    for key, count in sorted(source.unread.items(), key=lambda item: -item[1])[:_KEYS_SHOWN]:
        by_count.setdefault(count, []).append(key)
    keys = ", ".join(f"{', '.join(keys)} (in {count:,} rows)" for count, keys in by_count.items())
    more = f" and {len(source.unread) - _KEYS_SHOWN:,} more keys" if len(source.unread) > _KEYS_SHOWN else ""
    return flagged + (f"; not read: {keys}{more}" if keys else "")


def _size(split: SplitReport) -> str:
    tokens = "" if split.tokens is None else f" ({split.tokens:,} tokens)"
    return f"{split.rows:,} rows{tokens}"


def _described(source: SourceReport) -> str:
    parts = [f"{_size(source.train)} of {source.rows_in:,}"]
    if source.train.repeated:
        parts.append(f"{source.train.repeated:,} of them repetitions")
    parts.append(f"{source.validation.rows:,} held out")
    if source.long_rows and (long := source.long_rows.summary()):
        parts.append(long)
    if source.escaped:
        parts.append(f"{source.escaped:,} control tokens inside the text escaped")
    if source.moved:
        parts.append(f"{source.moved:,} {MOVED}")
    return "; ".join(parts) + _dropped(source) + _kept(source)
