"""Mixture file in, `DatasetDict` with train and validation out, every dropped row counted under its reason.

Each source is read, converted and filtered once, row by row, into an Arrow file in the cache of `datasets`, where a
second build finds it. Everything that depends on all rows (duplicates, split, shares, order) is decided on row numbers:

    read -> pool -> select (leaks, duplicates, contamination, samples, split) -> share -> report

A `Mix` holds what these steps work on; it is gone when `DatasetMixer.build` returns.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, IterableDatasetDict, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from ..errors import MixtureError
from ..files import atomic_path
from . import selection
from .config import Mixture, Source, load_mixture, mixture_file
from .duplicates import CONTAMINATED, near_duplicates
from .reader import MixtureReader, SourceReader, listed
from .report import LongRows, MixtureReport, SourceReport, StreamReport, describe_long_rows, describe_split
from .row_renderer import TOKEN_COLUMNS
from .rows import FACTS, too_long
from .schemas import plain_text
from .selection import Pool
from .sources import public_name
from .streaming import build_stream, open_streamed
from .tables import SPLITS, empty_columns, write_split


class DatasetMixer:
    """Builds the data sets of one mixture file; afterwards it holds the provenance and the report, but no rows."""

    def __init__(self, mixture: Mixture, path: Path):
        self.mixture = mixture
        self.path = path
        self.max_length: int | None = None
        """Tokens of a row as a recipe sets them; None: the mixture's max_seq_length, if it has one."""
        self.on_long = mixture.metadata.on_long_or_default
        """What becomes of longer rows: `cut`, `chunk`, `drop`, or `keep`."""
        self.processes: int | None = None
        """How many processes convert rows at once, at most; None for all cores that this process may use."""
        self.shards: Path | None = None
        """Folder with the converted rows of all shards, that `write_shard` wrote; None to convert the rows."""
        self.seen: dict[str, Counter[str]] = {}
        """Rows of a stream that were read and dropped so far, by source."""
        self._made_from: dict[str, str] = {}
        self._result: MixtureReport | StreamReport | None = None

    @classmethod
    def from_yaml(cls, path: str | Path) -> "DatasetMixer":
        """Read a mixture file.

        Raises:
            MixtureError: the file or one of its fields is not valid; all problems are listed.
        """
        return cls(load_mixture(path), mixture_file(path))

    @property
    def name(self) -> str:
        """`{phase}_{config}`, from which prepared files have their names."""
        return f"{self.mixture.metadata.phase}_{self.path.stem}"

    @property
    def longest(self) -> int | None:
        """Tokens of a row beyond which `on_long` applies; None without a limit."""
        return self.max_length or self.mixture.metadata.max_seq_length

    @property
    def report(self) -> MixtureReport | None:
        """What became of every row; None before `build`, and of a stream."""
        return self._result if isinstance(self._result, MixtureReport) else None

    def reader(self, tokenizer: PreTrainedTokenizerBase | None = None, stream_tokens: bool = False) -> MixtureReader:
        """What reads the mixture's sources."""
        settings = (self.longest, self.on_long, self.processes, self.shards, stream_tokens)
        return MixtureReader(self.mixture, self.path, tokenizer, *settings)

    def validate_mixture(self, tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
        """Check, without building, that every source is there and its first rows can be converted.

        Returns:
            one line for each source: its files, rows looked at, schema.

        Raises:
            MixtureError: with the problems of all sources.
        """
        reader, lines, problems = self.reader(tokenizer), [], []
        try:
            reader.forbidden  # noqa: B018 - opens the evaluation sets, which must be there too
        except MixtureError as error:
            problems.append(str(error))
            reader.forbidden = None  # reported once; the sources are checked without it
        for source in self.mixture.datasets:
            try:
                opened = reader.open(source, remote=True)
                looked_at = opened.check_head()
            except MixtureError as error:
                problems.append(str(error))
                continue
            found = f"{len(opened.files)} file(s), schema {opened.converter.schema}"
            lines.append(f"{source.name}: {found}, first {looked_at} rows looked at")
        if problems:
            raise MixtureError("\n".join(problems))
        return lines

    def made_from(self, tokenizer: PreTrainedTokenizerBase | None = None) -> dict[str, str]:
        """The current provenance: equal if a build would give the same rows."""
        return self.reader(tokenizer).made_from()

    def build(
        self, tokenizer: PreTrainedTokenizerBase | None = None, keep_tokens: bool = False
    ) -> DatasetDict | IterableDatasetDict:
        """Read, convert, filter, split and mix.

        Args:
            tokenizer: escapes control tokens inside text, counts tokens, and renders the conversations of a text
                phase; None does none of it.
            keep_tokens: keep the tokens of rows in further columns (`row_renderer.TOKENS`), from which trainers of
                this tokenizer learn without tokenizing again. Conversations whose chat template prints other text in
                training have none.

        Returns:
            "train" and, unless `validation: none`, "validation". Their columns are `text`, or `messages`, or `prompt`,
            `chosen` and `rejected`, or `prompt` and what rewards need; `tools` if a row has any; and `source`.
            A streaming mixture gives an `IterableDatasetDict`.

        Raises:
            MixtureError: a source cannot be read or used, a share cannot be met, or a split is empty.
        """
        reader = self.reader(tokenizer, stream_tokens=keep_tokens)
        self._made_from = reader.made_from()  # before reading, so that an edit meanwhile shows as a change
        if self.mixture.streaming:
            return self._stream(reader)
        mix = make_mix(reader)
        self._result = _report(mix, reader)
        return mix.splits(keep_tokens)

    def write_shard(
        self, folder: Path, number: int, count: int, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> dict[str, int]:
        """Convert one of `count` shares of the rows into a folder, for a later `build` with `shards` set to it.

        Args:
            number: from 0; the other shares can be converted at the same time, on other machines.

        Returns:
            the pieces that were written, by source.

        Raises:
            MixtureError: as for `build`, or the mixture is a stream.
        """
        if self.mixture.streaming:
            raise MixtureError(f"{self.path}: a streaming mixture is read while it is trained on; it has no shards")
        reader = self.reader(tokenizer)
        opened = map(reader.open, self.mixture.datasets)
        return {one.source.name: one.write_shard(folder, number, count) for one in opened}

    def adopt(self, made_from: dict[str, str], report: MixtureReport) -> None:
        """Adopt the provenance and report of an earlier build; only description and version may differ."""
        metadata = self.mixture.metadata
        self._made_from = made_from
        self._result = report.model_copy(update={"description": metadata.description, "version": str(metadata.version)})

    def lock(self) -> dict[str, Any]:
        """The content of `mixture.lock.json`: what the last build was made from, and what became of the rows."""
        return {"made_from": self._made_from} | self._built().lock()

    def warnings(self) -> list[str]:
        """One line for each source that loses more than 3% of its tokens to the limit on rows."""
        return self._built().warnings()

    def describe(self) -> str:
        """What became of the rows, one line for each source and the totals; for a stream, of those read so far."""
        return "\n".join(self._built().lines())

    def markdown(self) -> str:
        """The mixture, for a model card."""
        return self._built().markdown()

    def prepare_dataset(
        self, output_file: str | Path, split: str = "train", tokenizer: PreTrainedTokenizerBase | None = None
    ) -> Path:
        """Write one split, "train" or "validation", as JSON lines, and return the file's path.

        Args:
            output_file: the file; or a folder, for a file named `{phase}_{config}_{split}.jsonl`.

        Raises:
            MixtureError: as for `build`; or there is no such split, or the file cannot be written.
        """
        if split not in SPLITS:
            raise MixtureError(f"no split {split!r}; choose {' or '.join(SPLITS)}")
        if self.mixture.streaming:
            raise MixtureError(f"{self.path}: a streaming mixture is read while it is trained on, not prepared")
        path = Path(output_file)
        path = path if path.suffix == ".jsonl" else path / f"{self.name}_{split}.jsonl"
        data = self.build(tokenizer)
        if split not in data:
            raise MixtureError(f"{self.path}: no split {split!r}; there is {' and '.join(data)}")
        try:
            with atomic_path(path) as temporary:
                write_split(data[split], temporary)
        except OSError as error:
            raise MixtureError(f"{path}: cannot be written: {error.strerror or error}") from error
        return path

    def _stream(self, reader: MixtureReader) -> IterableDatasetDict:
        opened = [open_streamed(reader, source) for source in self.mixture.datasets]
        for source in self.mixture.datasets:
            self.seen.setdefault(source.name, Counter())
        files = {one.source.name: one.pins() for one in opened}
        self._result = StreamReport(self.path.stem, self.mixture, self.longest, files, self.seen)
        return build_stream(opened, self.seen)

    def _built(self) -> MixtureReport | StreamReport:
        if self._result is None:
            raise RuntimeError("nothing was built yet: call build first")
        return self._result


@dataclass
class Mix:
    """A mixture at work: the converted rows of every source, and what is decided about them.

    Attributes:
        train: row numbers in the pool, repetitions included, in the order of training.
        validation: likewise, of the rows that are held out.
    """

    mixture: Mixture
    sources: list[SourceReader]
    pool: Pool
    train: np.ndarray
    validation: np.ndarray

    def splits(self, keep_tokens: bool = False) -> DatasetDict:
        """The rows that are taken, with their tokens if these are to be kept."""
        rows = _joined(self.sources)
        needless = [name for name in (*FACTS, *(() if keep_tokens else TOKEN_COLUMNS)) if name in rows.column_names]
        taken = {"train": self.train} | ({"validation": self.validation} if self.mixture.validation else {})
        return DatasetDict({name: rows.select(numbers).remove_columns(needless) for name, numbers in taken.items()})

    def outcome(self, source: Source, file: int, number: int) -> str:
        """What became of a row: "train", "validation", or the reason it was dropped for.

        Args:
            file: index among the source's files, those that it holds out itself at the end.
            number: line or row in the file, from 1.
        """
        index = self.mixture.datasets.index(source)
        files, numbers = (_fact([self.sources[index]], name) for name in ("_file", "_number"))
        [place] = np.flatnonzero((files == file) & (numbers == number))
        outcome = self.pool.outcomes[self.pool.outcome[self.pool.source == index][place]]
        return outcome if outcome in SPLITS else f"dropped: {outcome}"


def make_mix(reader: MixtureReader) -> Mix:
    """Read all sources and decide what becomes of every row.

    Raises:
        MixtureError: as of `DatasetMixer.build`.
    """
    mixture = reader.mixture
    sources = []
    for source in mixture.datasets:
        sources.append(reader.open(source))
        sources[-1].rows  # noqa: B018 - converts them, before the next source is opened
    pool = _pool(sources, reader.cut_at)
    for index, source in enumerate(mixture.datasets):
        if not np.any(pool.live & (pool.source == index) & ~pool.held_out):
            reasons = listed(pool.reasons_of(index))
            raise MixtureError(f"{reader.path}: datasets.{source.name}: no row is left ({reasons})")
    _select(sources, pool, mixture)
    try:
        train = selection.share_train(pool, mixture, count_tokens=reader.tokenizer is not None)
        validation = selection.share_validation(pool, mixture)
    except MixtureError as error:
        reasons = {source.name: pool.reasons_of(index) for index, source in enumerate(mixture.datasets)}
        dropped = [f"datasets.{name}: {listed(counts)}" for name, counts in reasons.items() if counts]
        told = f" (dropped of {'; of '.join(dropped)})" if dropped else ""
        raise MixtureError(f"{reader.path}: {error}{told}") from error
    return Mix(mixture, sources, pool, train, validation)


def _pool(sources: list[SourceReader], cut_at: int | None) -> Pool:
    """The facts of all rows; of tokens as many as are trained on, at most `cut_at` a row."""
    longest = cut_at or np.iinfo(np.uint32).max
    sizes = [len(source.rows) for source in sources]
    held_out = [source.rows.data.column("_file").to_numpy() >= len(source.files) for source in sources]
    pool = Pool(
        source=np.repeat(np.arange(len(sources), dtype=np.int16), sizes),
        held_out=np.concatenate(held_out),
        key=_fact(sources, "_key").view(np.uint64),
        group=_fact(sources, "_group").view(np.uint64),
        tokens=np.minimum(_fact(sources, "_tokens"), longest),
        outcome=np.zeros(sum(sizes), dtype=np.int32),
    )
    start = 0
    for source in sources:
        reasons = source.rows.data.column("_reason").combine_chunks().dictionary_encode()
        codes = reasons.indices.fill_null(-1).to_numpy()
        for code, reason in enumerate(reasons.dictionary.to_pylist()):
            pool.drop(start + np.flatnonzero(codes == code), reason)
        start += len(source.rows)
    return pool


def _select(sources: list[SourceReader], pool: Pool, mixture: Mixture) -> None:
    """Drop what must not be trained on, and put the rest on its side of the split."""
    selection.drop_leaks(pool)
    if mixture.dedup.method != "none":
        selection.drop_duplicates(pool, mixture)
    if mixture.dedup.method == "near":
        _drop_near_duplicates(sources, pool, mixture.dedup.threshold)
    pool.drop(pool.live & _fact(sources, "_contaminated").astype(bool), CONTAMINATED)
    selection.sample_sources(pool, mixture)
    selection.split(pool, mixture)


def _drop_near_duplicates(sources: list[SourceReader], pool: Pool, threshold: float) -> None:
    # Rows that a source holds out come first, and the others in an order that does not depend on the files'.
    live = np.flatnonzero(pool.live)
    order = live[np.lexsort((pool.key[live], ~pool.held_out[live]))]
    rows = _joined(sources).select(order)
    pool.drop(order[near_duplicates(map(plain_text, rows), threshold)], "near-duplicate")


def _report(mix: Mix, reader: MixtureReader) -> MixtureReport:
    """What became of every row."""
    mixture, sources, pool, train, validation = mix.mixture, mix.sources, mix.pool, mix.train, mix.validation
    tokens = pool.tokens if reader.tokenizer else None
    total = sum(source.mix_ratio for source in mixture.datasets)
    counted = {name: _fact(sources, f"_{name}") for name in ("escaped", "moved", "untrained")}
    lengths = _fact(sources, "_tokens")
    drops = reader.on_long == "drop" and reader.longest
    dropped_for_length = _dropped_for(sources, too_long(reader.longest)) if drops else None

    def long_rows(of_source: np.ndarray) -> LongRows | None:
        if reader.tokenizer is None or reader.longest is None or reader.on_long == "keep":
            return None
        dropped = lengths[dropped_for_length & of_source] if drops else lengths[:0]
        return describe_long_rows(lengths[train[of_source[train]]], reader.longest, reader.on_long, dropped)

    def described(index: int, opened: SourceReader) -> SourceReport:
        mine = pool.source == index
        return SourceReport(
            name=opened.source.name,
            source=public_name(opened.source.source),
            row_schema=opened.converter.schema,
            files=opened.pins(),
            rows_in=len(opened.rows),
            dropped=pool.reasons_of(index),
            **{name: int(counts[mine & pool.live].sum()) for name, counts in counted.items()},
            unread=_unread(opened.rows),
            target_share=opened.source.mix_ratio / total,
            train=describe_split(train, pool.source[train] == index, tokens),
            validation=describe_split(validation, pool.source[validation] == index, tokens),
            long_rows=long_rows(mine),
        )

    metadata = mixture.metadata
    return MixtureReport(
        config=reader.path.stem,
        phase=metadata.phase,
        description=metadata.description,
        version=str(metadata.version),
        seed=mixture.seed,
        validation=mixture.validation and mixture.validation.model_dump(),
        notes=list(_notes(mix, reader)),
        sources=[described(index, opened) for index, opened in enumerate(sources)],
        train=describe_split(train, np.ones(len(train), dtype=bool), tokens),
        held_out=describe_split(validation, np.ones(len(validation), dtype=bool), tokens),
        long_rows=long_rows(np.ones(len(pool.source), dtype=bool)),
    )


def _notes(mix: Mix, reader: MixtureReader) -> Iterable[str]:
    """What the mixture file asks for and does not get."""
    for opened in mix.sources:
        if opened.source.text_field and opened.converter.schema != "text":
            yield f"{opened.source.name}: text_field is not used by schema {opened.converter.schema}"
    budget = mix.mixture.metadata.total_tokens
    if budget and reader.tokenizer is None:
        yield f"total_tokens {budget:,} is not applied: no tokenizer was given to count them"
    if reader.on_long == "drop" and reader.longest and reader.tokenizer is None:
        yield f"rows longer than {reader.longest:,} tokens are not dropped: no tokenizer was given to count them"


def _unread(rows: Dataset) -> dict[str, int]:
    """Rows by unused key."""
    found = Counter()
    for keys, count in map(dict.values, pc.value_counts(rows.data.column("_unread")).to_pylist()):
        found.update(dict.fromkeys((keys or "").splitlines(), count))
    return dict(sorted(found.items()))


def _fact(sources: list[SourceReader], name: str) -> np.ndarray:
    nothing = False if name == "_contaminated" else 0
    return np.concatenate([pc.fill_null(source.rows.data.column(name), nothing).to_numpy() for source in sources])


def _dropped_for(sources: list[SourceReader], reason: str) -> np.ndarray:
    """Which rows their converter dropped for a reason."""
    columns = [pc.fill_null(pc.equal(source.rows.data.column("_reason"), reason), False) for source in sources]
    return np.concatenate([column.to_numpy() for column in columns])


def _joined(sources: list[SourceReader]) -> Dataset:
    """The rows of all sources, without columns that all of them leave empty."""
    rows = concatenate_datasets([source.rows for source in sources])
    return rows.remove_columns(empty_columns([rows], ("tools", "untrained", "assistant_masks")))
