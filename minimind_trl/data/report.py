"""What became of every row: the figures behind `mixture.lock.json`, the table and the model card."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel
from rich.table import Table

_PERCENTILES = (5, 50, 95)
MOVED = "reasoning_content written as <think> into the content, because the chat template leaves it out"
_KEPT = 0.95  # of the tokens, by the length that a warning proposes
FEW = 0.03  # of a source's tokens may be lost without a warning
TOKENS, CUT = "tokens", "tokens beyond the limit, cut off"  # how a stream's counters name them
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


class LongRows(BaseModel):
    """What a limit on a row's tokens does to the training rows."""

    max_length: int
    on_long: Literal["cut", "chunk", "drop"]
    rows: int
    """Those with more tokens, repetitions included; of `drop` the rows that are not there for it."""
    tokens: int
    """Of all training rows, with what is lost."""
    lost: int
    """Tokens that nothing learns from: what is cut off, or all of the dropped rows; none with `chunk`."""
    enough: int
    """The `max_length` that would keep 95% of the tokens."""

    @property
    def share(self) -> float:
        return self.lost / max(self.tokens, 1)

    def told(self) -> str:
        """As the end of a line about the source; nothing where no row is longer."""
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
    files: list[dict[str, str]]
    """Name and sha256, or commit of a Hub data set."""
    rows_in: int
    dropped: dict[str, int]
    """Rows by reason; `rows_in` is these and what is in the splits without repetitions."""
    escaped: int
    """Control tokens that were spelled inside the text, and are written with a space now."""
    moved: int = 0
    """Turns whose reasoning stands in a think block of the content, as the chat template prints it nowhere else."""
    untrained: int = 0
    """Turns of the rows that are left which say that they are not trained (`loss`, `weight`, `train`)."""
    unread: dict[str, int] = {}
    """Rows by each key that says something and that nobody reads; those of turns are `messages[].key`."""
    target_share: float
    train: SplitReport
    validation: SplitReport
    long_rows: LongRows | None = None
    """None where no tokenizer counted, or rows have no limit."""


class MixtureReport(BaseModel):
    """A mixture that was built."""

    config: str
    phase: str
    description: str
    version: str
    seed: int
    validation: dict[str, Any] | None
    """None where nothing is held out."""
    notes: list[str]
    sources: list[SourceReport]
    train: SplitReport
    held_out: SplitReport
    long_rows: LongRows | None = None

    def lock(self) -> dict[str, Any]:
        """For `mixture.lock.json`."""
        return self.model_dump()

    def lines(self) -> list[str]:
        """Plain lines, one for each source and one for each split."""
        found = [f"{source.train.share:.2%} {source.name}: {_told(source)}" for source in self.sources]
        held_out = f"validation {_size(self.held_out)}" if self.validation else "nothing held out (validation: none)"
        return [*found, f"train {_size(self.train)}, {held_out}", *self.notes]

    def warnings(self) -> list[str]:
        """Of each source that loses more than 3% of its tokens to the limit: how many, and which limit would do."""
        return [
            f"{source.name}: {source.long_rows.told()}; a max_seq_length (--max_length) of "
            f"{source.long_rows.enough:,} would keep {_KEPT:.0%} of the tokens"
            for source in self.sources
            if source.long_rows and source.long_rows.share > FEW
        ]

    def table(self) -> Table:
        """For a terminal: share, rows, tokens and lengths of each source; the drops are in `drops`."""
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
        """Per source: rows in, rows dropped by reason, turns that are not trained, and keys that are not read."""
        return [
            f"{source.name}: {source.rows_in:,} rows in{_dropped(source)}{_kept(source)}" for source in self.sources
        ]

    def moved(self) -> list[str]:
        """Per source: reasoning that the chat template would have left out."""
        return [f"{source.name}: {source.moved:,} {MOVED}" for source in self.sources if source.moved]

    def markdown(self) -> str:
        """For a model card."""
        lines = [
            f"Mixture `{self.config}` (phase {self.phase}, seed {self.seed}): {self.description}".rstrip(": "),
            "",
            "| source | revision or sha256 | share | train rows | validation rows | dropped | longer than the limit |",
            "|---|---|---|---|---|---|---|",
        ]
        for source in self.sources:
            pins = ", ".join(sorted({f"`{file['digest'][:12]}`" for file in source.files}))
            long = (source.long_rows.told() or "none") if source.long_rows else "-"
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
    """What was read of a streaming mixture so far."""

    config: str
    phase: str
    description: str
    seed: int
    validation: dict[str, Any] | None
    max_length: int | None
    sources: list[dict[str, Any]]
    """Name, source, target share and files of each."""
    seen: dict[str, Counter[str]]
    """By source, as its rows are read: the rows, those dropped by reason, tokens."""

    def lock(self) -> dict[str, Any]:
        """For `mixture.lock.json`."""
        names = ("config", "phase", "description", "seed", "validation")
        sources = [source | {"read_so_far": dict(self.seen[source["name"]])} for source in self.sources]
        return {name: getattr(self, name) for name in names} | {"streaming": True, "sources": sources}

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
        """For a model card."""
        return f"Streaming mixture `{self.config}` (phase {self.phase}):\n\n" + "".join(
            f"- {source['source']}: share {source['target_share']:.2%}{_cut_so_far(self.seen[source['name']])}\n"
            for source in self.sources
        )


def _cut_so_far(seen: Counter[str]) -> str:
    if not seen[CUT]:
        return ""
    return f"; of {seen[TOKENS]:,} tokens read {seen[CUT]:,} ({seen[CUT] / seen[TOKENS]:.1%}) were cut off"


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


def describe_long_rows(lengths: np.ndarray, limit: int, on_long: str, dropped: np.ndarray) -> LongRows:
    """Figures of rows that are longer than a limit.

    Args:
        lengths: tokens of each training row, repetitions included.
        dropped: tokens of those that are not there because they were longer.
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
    """The least limit under which 95% of the tokens are kept, of cut rows or of whole ones."""
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
    if source.long_rows and (long := source.long_rows.told()):
        parts.append(long)
    if source.escaped:
        parts.append(f"{source.escaped:,} control tokens inside the text escaped")
    if source.moved:
        parts.append(f"{source.moved:,} {MOVED}")
    return "; ".join(parts) + _dropped(source) + _kept(source)
