"""Mixture file in, `DatasetDict` with train and validation out, every dropped row counted under its reason."""

import json
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, IterableDatasetDict, concatenate_datasets
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from ..errors import MixtureError
from ..files import atomic_path
from . import selection
from .config import EvalSet, Mixture, Source, load_mixture
from .duplicates import CONTAMINATED, NGrams, near_duplicates
from .filters import CustomFilter, value_at
from .prepared import SPLITS, write_split
from .report import FEW, LongRows, MixtureReport, SourceReport, describe_long_rows, describe_split
from .rows import FACTS, RowConverter, converter_code, too_long
from .schemas import plain_text
from .selection import Pool
from .sources import DataFile, open_source
from .streaming import CUT, TOKENS, build_stream
from .tables import cached_rows
from .transcripts import may_hold_transcripts

_EXAMPLES = 3
_HEAD = 100  # rows of a file that a check looks at
_MOSTLY = 0.5  # a source of which more rows than this cannot be converted is taken for a mistake


class DatasetMixer:
    """Builds the data sets of one mixture file.

    Each source is read, converted and filtered once, row by row, into an Arrow file in the cache of `datasets`, where a
    second build finds it. What is decided over all rows (duplicates, split, shares, order) is decided on row numbers.
    """

    def __init__(self, mixture: Mixture, path: Path):
        self.mixture = mixture
        self.path = path
        self.report: MixtureReport | None = None
        """What became of every row; set by `build`, for a stream None."""
        self._made_from: dict[str, str] = {}
        self._opened: dict[str, list[dict[str, str]]] = {}
        self.max_length: int | None = None
        """Tokens of a row as a recipe sets them; None: the mixture's max_seq_length, if it has one."""
        self.on_long = mixture.metadata.on_long_or_default
        """What becomes of longer rows: `cut`, `chunk`, `drop`, or `keep`."""
        self.seen: dict[str, Counter[str]] = {}
        """Of a stream: rows read so far and dropped, by source."""

    @classmethod
    def from_yaml(cls, path: str | Path) -> "DatasetMixer":
        """Read a mixture file.

        Raises:
            MixtureError: the file or one of its fields is not valid; all problems are listed.
        """
        return cls(load_mixture(path), Path(path))

    @property
    def name(self) -> str:
        """`{phase}_{config}`, from which prepared files have their names."""
        return f"{self.mixture.metadata.phase}_{self.path.stem}"

    @property
    def longest(self) -> int | None:
        """Tokens of a row beyond which `on_long` holds; None without a limit."""
        return self.max_length or self.mixture.metadata.max_seq_length

    @property
    def cut_at(self) -> int | None:
        """Tokens after which rows are cut off; None where they are not."""
        return self.longest if self.on_long == "cut" else None

    def validate_mixture(self, tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
        """Check, without building, that every source is there and its first rows can be converted.

        Returns:
            one line for each source: its files, rows looked at, schema.

        Raises:
            MixtureError: with the problems of all sources.
        """
        problems = []
        try:
            self._forbidden  # noqa: B018 - opens the evaluation sets, which must be there too
        except MixtureError as error:
            problems.append(str(error))
            self.__dict__["_forbidden"] = None  # told once; the sources are looked at without it
        found = [self._attempt(source, tokenizer) for source in self.mixture.datasets]
        problems += [error for _, error in found if error]
        if problems:
            raise MixtureError("\n".join(problems))
        return [line for line, _ in found]

    def made_from(self, tokenizer: PreTrainedTokenizerBase | None = None) -> dict[str, str]:
        """What decides how the mixture comes out, as it is now; equal where a build would give the same rows."""
        content = self.mixture.model_dump_json(exclude={"metadata": {"description", "version"}}, by_alias=True)
        filters = [rule for source in self.mixture.datasets for rule in source.filters]
        found = {
            "mixture file": Hasher.hash(content),
            "code": Hasher.hash([converter_code(), *(rule.code for rule in filters if isinstance(rule, CustomFilter))]),
        }
        for source in self.mixture.datasets:
            files = self.files(source) + self.files(source, validation=True)
            found[f"data of {source.name}"] = Hasher.hash([file.digest for file in files])
            self._opened[source.name] = self._pins(files)
        if self.mixture.decontaminate:
            sets = map(self._evaluation_files, self.mixture.decontaminate.against)
            found["evaluation sets"] = Hasher.hash([file.digest for files in sets for file in files])
        found["tokenizer"] = tokenizer_digest(tokenizer) or "none"
        found["max_length"] = f"{self.longest} ({self.on_long})"  # a recipe's may be another than the file's
        return found | _libraries()

    def use(self, made_from: dict[str, str], report: MixtureReport) -> None:
        """Take over what an earlier build, which is reused, was made from and came to; only its words may be new."""
        self._made_from, self.report = made_from, report
        self.report.description = self.mixture.metadata.description
        self.report.version = str(self.mixture.metadata.version)

    def lock(self) -> dict[str, Any]:
        """The content of `mixture.lock.json`: what the mixture was made from, and what became of the rows.

        Of the last `build`; later changes of the sources are not in it.
        """
        if self.report:
            return {"made_from": self._made_from} | self.report.model_dump()
        metadata, sources = self.mixture.metadata, self.mixture.datasets
        return {
            "made_from": self._made_from,
            **{"config": self.path.stem, "phase": metadata.phase, "description": metadata.description},
            **{"seed": self.mixture.seed, "validation": self._validation(), "streaming": True},
            "sources": [
                {
                    **{"name": source.name, "source": _shown(source.source), "target_share": source.mix_ratio},
                    "files": self._opened.get(source.name, []),
                    "read_so_far": dict(self.seen.get(source.name, {})),
                }
                for source in sources
            ],
        }

    def build(self, tokenizer: PreTrainedTokenizerBase | None = None) -> DatasetDict | IterableDatasetDict:
        """Read, convert, filter, split and mix.

        Args:
            tokenizer: escapes control tokens that are spelled inside the text, counts tokens, and renders the
                conversations of a text phase. None does none of it.

        Returns:
            "train" and, but for `validation: none`, "validation": columns `text`, or `messages` and `tools`, or
            `prompt`, `chosen`, `rejected`, or `prompt` and what rewards need; and `source`. `tools` only where a row
            has any. A streaming mixture gives an `IterableDatasetDict`.

        Raises:
            MixtureError: a source cannot be read or used, a share not be met, or a split comes out empty.
        """
        self._made_from = self.made_from(tokenizer)  # before reading, so that an edit meanwhile shows as a change
        if self.mixture.streaming:
            return build_stream(self, tokenizer)
        parts = [self._read(index, tokenizer) for index in range(len(self.mixture.datasets))]
        pool = _pool(parts, self.cut_at)
        for part in parts:
            self._check_usable(part, pool)
        self._select(parts, pool)
        try:
            train = selection.share_train(pool, self.mixture, count_tokens=tokenizer is not None)
            validation = selection.share_validation(pool, self.mixture)
        except MixtureError as error:
            raise MixtureError(f"{self.path}: {error}{self._dropped(pool)}") from error
        self._parts, self._pool = parts, pool
        self.report = self._report(parts, pool, train, validation, tokenizer)
        rows = _joined(parts)
        held_out = {"validation": _cut(rows, validation)} if self.mixture.validation else {}
        return DatasetDict(train=_cut(rows, train), **held_out)

    def _validation(self) -> dict[str, Any] | None:
        return self.mixture.validation and self.mixture.validation.model_dump()

    def warnings(self) -> list[str]:
        """One line for each source that loses more than a few percent of its tokens to the limit on a row's."""
        if self.report:
            return self.report.warnings()
        lost = {name: counts[CUT] / max(counts[TOKENS], 1) for name, counts in self.seen.items()}
        return [
            f"{name}: {share:.1%} of the tokens read so far are beyond max_seq_length {self.longest:,}, and cut off"
            for name, share in lost.items()
            if share > FEW
        ]

    def describe(self) -> str:
        """What became of the rows, one line for each source and the totals; of a stream, as far as it was read."""
        if self.report:
            return "\n".join(self.report.lines())
        return "\n".join(
            f"{name}: streamed, {', '.join(f'{count:,} {what}' for what, count in counts.items()) or 'not read yet'}"
            for name, counts in self.seen.items()
        )

    def markdown(self) -> str:
        """The mixture, for a model card."""
        if self.report:
            return self.report.markdown()
        return f"Streaming mixture `{self.path.stem}` (phase {self.mixture.metadata.phase}):\n\n" + "".join(
            f"- {_shown(source.source)}: share {source.mix_ratio:.2%}{_lost(self.seen.get(source.name))}\n"
            for source in self.mixture.datasets
        )

    def prepare_dataset(
        self, output_file: str | Path, split: str = "train", tokenizer: PreTrainedTokenizerBase | None = None
    ) -> Path:
        """Write one split as JSON lines.

        Args:
            output_file: the file; or a folder, for a file named `{phase}_{config}_{split}.jsonl`.
            split: "train" or "validation".

        Returns:
            the file's path.

        Raises:
            MixtureError: as of `build`; or there is no such split, or the file cannot be written.
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
        rows = data[split]
        try:
            with atomic_path(path) as temporary:
                write_split(rows, temporary)
        except OSError as error:
            raise MixtureError(f"{path}: cannot be written: {error.strerror or error}") from error
        return path

    def converter(
        self, source: Source, files: list[DataFile], tokenizer: PreTrainedTokenizerBase | None, stream: bool = False
    ) -> RowConverter:
        """The converter of a source, chosen by the first row of its files; with `stream`, without downloading more.

        Raises:
            MixtureError: the source has no rows, or none that fit the phase.
        """
        firsts = [(file, *row) for file in files for row in file.head(1, stream)]
        if not firsts:
            raise MixtureError(f"{', '.join(file.name for file in files)}: no rows (datasets.{source.name})")
        file, number, row = firsts[0]
        filled = [name for name, value in row.items() if value is not None]
        # More rows only where they may tell something: of a data set on the Hub they have to be fetched.
        sample = [row for _, row in file.head(_HEAD, stream)] if may_hold_transcripts(row) else []
        forbidden = self._forbidden
        try:
            longest = self.longest if self.on_long == "drop" else None
            converter = RowConverter(
                source,
                self.mixture.metadata.phase,
                list(row),
                file.at(number),
                tokenizer,
                forbidden,
                filled,
                sample,
                longest,
            )
        except MixtureError as error:
            raise MixtureError(f"{self.path}: {error}") from error
        missing = [name for name in converter.extras if not any(converter.has(name, first) for *_, first in firsts)]
        if missing:
            raise MixtureError(
                f"{file.at(number)}: no column {missing[0]!r}, which datasets.{source.name}.keep_columns asks for "
                f"(columns: {', '.join(row)})"
            )
        return converter

    def fate(self, source: Source, file: int, number: int) -> str:
        """What became of a row of the last build: "train", "validation", or the reason it was dropped for.

        Args:
            file: index among the source's files, those that it holds out itself at the end.
            number: line or row in the file, from 1.
        """
        index = self.mixture.datasets.index(source)
        files, numbers = (_fact([self._parts[index]], name) for name in ("_file", "_number"))
        [place] = np.flatnonzero((files == file) & (numbers == number))
        fate = self._pool.fates[self._pool.fate[self._pool.source == index][place]]
        return fate if fate in SPLITS else f"dropped: {fate}"

    def files(self, source: Source, validation: bool = False) -> list[DataFile]:
        """The files or Hub splits of a source, those that it holds out itself or the others."""
        try:
            return open_source(source, self.path.parent, validation)
        except MixtureError as error:
            raise MixtureError(f"{self.path}: datasets.{error}") from error

    @cached_property
    def _forbidden(self) -> NGrams | None:
        """What no row may share a run of words with."""
        rules = self.mixture.decontaminate
        return NGrams(self._evaluation_texts(), rules.ngram) if rules else None

    def _evaluation_files(self, evaluation: EvalSet) -> list[DataFile]:
        try:
            return open_source(evaluation, self.path.parent)
        except MixtureError as error:
            raise MixtureError(f"{self.path}: decontaminate.against.{error}") from error

    def _evaluation_texts(self) -> Iterator[str]:
        for evaluation in self.mixture.decontaminate.against:
            for file in self._evaluation_files(evaluation):
                for number, row in file.read():
                    value = value_at(row, evaluation.field)
                    if not isinstance(value, str):
                        raise MixtureError(
                            f"{self.path}: decontaminate.against.{evaluation.name}: {file.at(number)} has no text in "
                            f"{evaluation.field!r} (columns: {', '.join(row)})"
                        )
                    yield value

    def _attempt(self, source: Source, tokenizer) -> tuple[str, str]:
        try:
            files = self.files(source)
            converter = self.converter(source, files + self.files(source, validation=True), tokenizer, stream=True)
            looked_at = self.look_at(source, files, converter)
        except MixtureError as error:
            return "", str(error)
        return f"{source.name}: {len(files)} file(s), schema {converter.schema}, first {looked_at} rows looked at", ""

    def look_at(self, source: Source, files: list[DataFile], converter: RowConverter) -> int:
        """Convert the first rows of a source's files, without downloading more.

        Returns:
            how many they are.

        Raises:
            MixtureError: most of them cannot be used, or they are all that there is and none is left.
        """
        heads = [(file, number, row) for file in files for number, row in file.head(_HEAD, stream=True)]
        pairs = converter.pairs([[row for *_, row in heads]])
        traced = converter.trace(
            (pairs.joined(place, row) if pairs else row for place, (*_, row) in enumerate(heads)),
            lambda index: heads[index][0].at(heads[index][1]),
        )
        for (file, number, _), row in zip(heads, traced, strict=True):
            converter.refuse_other_schema(row, file.at(number))
        failed = [(file.at(n), row.reason) for (file, n, _), row in zip(heads, traced, strict=True) if row.unusable]
        if len(failed) > _MOSTLY * len(heads):
            told = _mostly_unusable(source.name, len(failed), len(heads), failed[:_EXAMPLES])
            raise MixtureError(f"{self.path}: {told}")
        if len(heads) < _HEAD and all(row.reason for row in traced):
            reasons = Counter(row.reason for row in traced)
            raise MixtureError(f"{self.path}: datasets.{source.name}: no row is left ({_enumerated(reasons)})")
        return len(heads)

    def _read(self, index: int, tokenizer) -> "_Part":
        source = self.mixture.datasets[index]
        files = self.files(source)
        own = self.files(source, validation=True)
        converter = self.converter(source, files + own, tokenizer)
        forbidden = self._forbidden
        key = [
            converter_code(),
            self.mixture.metadata.phase,
            source.model_dump_json(exclude={"mix_ratio", "max_samples", "max_repetition"}),
            [file.digest for file in files + own],
            (converter.schema, converter.extras, converter.transcripts),
            tokenizer_digest(tokenizer),
            forbidden and (sorted(forbidden.runs), forbidden.size),
            [rule.code for rule in source.filters if isinstance(rule, CustomFilter)],
            converter.longest,
        ]
        rows = cached_rows(lambda: converter.rows(files + own, held_out=len(own)), converter.features, Hasher.hash(key))
        return _Part(index, source, files, own, converter, rows)

    def _check_usable(self, part: "_Part", pool: Pool) -> None:
        rows = part.rows.data
        unusable = int(pc.sum(rows.column("_unusable")).as_py() or 0)
        where = f"{self.path}: datasets.{part.source.name}"
        if unusable > _MOSTLY * len(part.rows):
            numbers = np.flatnonzero(rows.column("_unusable").to_numpy())[:_EXAMPLES]
            examples = [(part.at(int(number)), part.rows[int(number)]["_reason"]) for number in numbers]
            raise MixtureError(
                f"{self.path}: " + _mostly_unusable(part.source.name, unusable, len(part.rows), examples)
            )
        mine = (pool.source == part.index) & ~pool.held_out
        if not np.any(pool.live & mine):
            raise MixtureError(f"{where}: no row is left ({_enumerated(pool.reasons_of(part.index))})")

    def _select(self, parts: list["_Part"], pool: Pool) -> None:
        selection.drop_leaks(pool)
        if self.mixture.dedup.method != "none":
            selection.drop_duplicates(pool, self.mixture)
        if self.mixture.dedup.method == "near":
            self._drop_near_duplicates(parts, pool)
        pool.drop(pool.live & _fact(parts, "_contaminated").astype(bool), CONTAMINATED)
        selection.sample_sources(pool, self.mixture)
        selection.split(pool, self.mixture)

    def _drop_near_duplicates(self, parts: list["_Part"], pool: Pool) -> None:
        # Rows that a source holds out come first, and the others in an order that does not depend on the files'.
        live = np.flatnonzero(pool.live)
        order = live[np.lexsort((pool.key[live], ~pool.held_out[live]))]
        rows = _joined(parts).select(order)
        pool.drop(order[near_duplicates(map(plain_text, rows), self.mixture.dedup.threshold)], "near-duplicate")

    def _dropped(self, pool: Pool) -> str:
        told = [
            f"datasets.{source.name}: {_enumerated(reasons)}"
            for index, source in enumerate(self.mixture.datasets)
            if (reasons := pool.reasons_of(index))
        ]
        return f" (dropped of {'; of '.join(told)})" if told else ""

    def _report(self, parts, pool: Pool, train: np.ndarray, validation: np.ndarray, tokenizer) -> MixtureReport:
        tokens = None if tokenizer is None else pool.tokens
        total = sum(source.mix_ratio for source in self.mixture.datasets)
        escaped, moved, untrained = (_fact(parts, name) for name in ("_escaped", "_moved", "_untrained"))
        lengths = _fact(parts, "_tokens")
        too_many = _reasoned(parts, too_long(self.longest)) if self.on_long == "drop" and self.longest else None

        def long_rows(of_source: np.ndarray) -> LongRows | None:
            if tokenizer is None or self.longest is None or self.on_long == "keep":
                return None
            dropped = lengths[too_many & of_source] if too_many is not None else lengths[:0]
            return describe_long_rows(lengths[train[of_source[train]]], self.longest, self.on_long, dropped)

        sources = [
            SourceReport(
                name=part.source.name,
                source=_shown(part.source.source),
                row_schema=part.converter.schema,
                files=self._pins(part.files + part.own),
                rows_in=len(part.rows),
                dropped=pool.reasons_of(part.index),
                escaped=int(escaped[(pool.source == part.index) & pool.live].sum()),
                moved=int(moved[(pool.source == part.index) & pool.live].sum()),
                untrained=int(untrained[(pool.source == part.index) & pool.live].sum()),
                unread=part.unread(),
                target_share=part.source.mix_ratio / total,
                train=describe_split(train, pool.source[train] == part.index, tokens),
                validation=describe_split(validation, pool.source[validation] == part.index, tokens),
                long_rows=long_rows(pool.source == part.index),
            )
            for part in parts
        ]
        metadata = self.mixture.metadata
        return MixtureReport(
            config=self.path.stem,
            phase=metadata.phase,
            description=metadata.description,
            version=str(metadata.version),
            seed=self.mixture.seed,
            validation=self._validation(),
            notes=self._notes(parts, tokenizer),
            sources=sources,
            train=describe_split(train, np.ones(len(train), dtype=bool), tokens),
            held_out=describe_split(validation, np.ones(len(validation), dtype=bool), tokens),
            long_rows=long_rows(np.ones(len(pool.source), dtype=bool)),
        )

    def _pins(self, files: list[DataFile]) -> list[dict[str, str]]:
        # Relative to the mixture file, because the lock travels with checkpoints.
        base = f"{self.path.parent}/"
        return [{"name": _shown(file.name.removeprefix(base)), "digest": file.digest} for file in files]

    def _notes(self, parts: list["_Part"], tokenizer) -> list[str]:
        """What the file says and the mixture does not follow."""
        notes = [
            f"{part.source.name}: text_field is not used by schema {part.converter.schema}"
            for part in parts
            if part.source.text_field and part.converter.schema != "text"
        ]
        budget = self.mixture.metadata.total_tokens
        if budget and tokenizer is None:
            notes.append(f"total_tokens {budget:,} is not applied: no tokenizer was given to count them")
        if self.on_long == "drop" and self.longest and tokenizer is None:
            notes.append(
                f"rows longer than {self.longest:,} tokens are not dropped: no tokenizer was given to count them"
            )
        return notes


class _Part:
    """One source, converted."""

    def __init__(self, index: int, source: Source, files, own, converter: RowConverter, rows: Dataset):
        self.index, self.source, self.files, self.own = index, source, files, own
        self.converter, self.rows = converter, rows

    def at(self, number: int) -> str:
        """The place of a converted row in its file."""
        row = self.rows[number]
        return (self.files + self.own)[row["_file"]].at(row["_number"])

    def unread(self) -> dict[str, int]:
        """Rows by each key that nobody reads."""
        found = Counter()
        for keys, count in map(dict.values, pc.value_counts(self.rows.data.column("_unread")).to_pylist()):
            found.update(dict.fromkeys((keys or "").splitlines(), count))
        return dict(sorted(found.items()))


def _shown(path: str) -> str:
    """A path as a lock may tell it: of an absolute one only the name."""
    return Path(path).name if Path(path).is_absolute() else path


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    """What of a tokenizer decides how rows come out: vocabulary, added tokens, chat template."""
    if tokenizer is None:
        return None
    if not tokenizer.is_fast:
        return Hasher.hash([sorted(tokenizer.get_vocab().items()), tokenizer.chat_template])
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # What the last call asked for is no part of the tokenizer.
    return Hasher.hash([state | {"truncation": None, "padding": None}, tokenizer.chat_template])


def _reasoned(parts: list[_Part], reason: str) -> np.ndarray:
    """Which rows their converter dropped for a reason."""
    columns = [pc.fill_null(pc.equal(part.rows.data.column("_reason"), reason), False) for part in parts]
    return np.concatenate([column.to_numpy() for column in columns])


def _pool(parts: list[_Part], longest: int | None) -> Pool:
    """The facts of all rows; of tokens as many as are trained on, at most `longest` a row."""
    longest = longest or np.iinfo(np.uint32).max
    sizes = [len(part.rows) for part in parts]
    held_out = [part.rows.data.column("_file").to_numpy() >= len(part.files) for part in parts]
    pool = Pool(
        source=np.repeat(np.arange(len(parts), dtype=np.int16), sizes),
        held_out=np.concatenate(held_out),
        key=_fact(parts, "_key").view(np.uint64),
        group=_fact(parts, "_group").view(np.uint64),
        tokens=np.minimum(_fact(parts, "_tokens"), longest),
        fate=np.zeros(sum(sizes), dtype=np.int32),
    )
    start = 0
    for part in parts:
        reasons = part.rows.data.column("_reason").combine_chunks().dictionary_encode()
        codes = reasons.indices.fill_null(-1).to_numpy()
        for code, reason in enumerate(reasons.dictionary.to_pylist()):
            pool.drop(start + np.flatnonzero(codes == code), reason)
        start += len(part.rows)
    return pool


def _fact(parts: list[_Part], name: str) -> np.ndarray:
    columns = [part.rows.data.column(name) for part in parts]
    return np.concatenate(
        [pc.fill_null(column, False if name == "_contaminated" else 0).to_numpy() for column in columns]
    )


def _joined(parts: list[_Part]) -> Dataset:
    rows = concatenate_datasets([part.rows for part in parts])
    names = [name for name in ("tools", "untrained") if name in rows.column_names]
    return rows.remove_columns([name for name in names if rows.data.column(name).null_count == len(rows)])


def _cut(rows: Dataset, taken: np.ndarray) -> Dataset:
    return rows.select(taken).remove_columns(list(FACTS))


def _lost(seen: Counter[str] | None) -> str:
    """What was cut off of a stream, as far as it was read."""
    if not seen or not seen[CUT]:
        return ""
    return f"; of {seen[TOKENS]:,} tokens read {seen[CUT]:,} ({seen[CUT] / seen[TOKENS]:.1%}) were cut off"


def _libraries() -> dict[str, str]:
    return {name: version(name) for name in ("minimind-trl", "datasets", "transformers")}


def _mostly_unusable(name: str, failed: int, total: int, examples: list[tuple[str, str]]) -> str:
    shown = "".join(f"\n  {where}: {reason}" for where, reason in examples)
    return f"datasets.{name}: {failed} of {total} rows cannot be used, such as{shown}"


def _enumerated(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())
