"""Reads the sources of a mixture as converted rows: the first rows, a table of all, or one by one.

The mixer, which needs whole tables, and the streams, which read one by one, are built on this module.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from ..errors import MixtureError
from .config import EvalSet, Mixture, Source
from .converted_parts import Piece, in_tables, open_pieces, piece_name, pieces_of_files, write_pieces
from .duplicates import NGrams
from .filters import CustomFilter, value_at
from .rows import RowConverter
from .sources import DataFile, open_source, public_name
from .tables import cached_rows
from .text_batches import TextBatches
from .transcripts import may_hold_transcripts
from .turns import Row
from .workers import default_processes

_BATCH = 500  # rows that are converted together, because tokenizers are faster on batches
_TEXTS = 2000  # the same of texts that are not tokenized
_EXAMPLES = 3
_HEAD = 100  # rows of a file that a check converts
_MOSTLY = 0.5  # more unusable rows than this share are an error: the schema or the file is probably wrong
# Files of this folder that decide about no row of a mixture.
_NOT_OF_ROWS = ("__init__", "hub", "marked_rows", "object_storage", "prepared", "report", "tables", "texts", "workers")
_TOKENIZATION = ("control_tokens", "masks", "renderings", "templates")


@dataclass
class MixtureReader:
    """What the sources of a mixture are read with.

    Attributes:
        tokenizer: escapes control tokens, counts tokens and renders conversations; None does none of it.
        longest: tokens of a row beyond which `on_long` applies; None without a limit.
        on_long: `cut`, `chunk`, `drop` or `keep`.
        processes: how many convert rows at once, at most; None for all cores that this process may use.
        shards: folder with the converted rows that `SourceReader.write_shard` wrote; None to convert them here.
        stream_tokens: whether the rows of a stream keep their tokens; others always do.
    """

    mixture: Mixture
    path: Path
    tokenizer: PreTrainedTokenizerBase | None
    longest: int | None
    on_long: str
    processes: int | None = None
    shards: Path | None = None
    stream_tokens: bool = False

    @property
    def cut_at(self) -> int | None:
        """Tokens after which rows are cut off; None where they are not."""
        return self.longest if self.on_long == "cut" else None

    def files(self, source: Source, validation: bool = False) -> list[DataFile]:
        """The files or Hub splits of a source: those to train on, or those that it holds out itself."""
        try:
            return open_source(source, self.path.parent, validation)
        except MixtureError as error:
            raise MixtureError(f"{self.path}: datasets.{error}") from error

    def open(self, source: Source, remote: bool = False) -> "SourceReader":
        """Open a source and choose its converter by its first rows.

        Args:
            remote: read the first rows of Hub data without downloading the rest.

        Raises:
            MixtureError: the source has no rows, or none that fit the phase.
        """
        files, held_out = self.files(source), self.files(source, validation=True)
        return SourceReader(self, source, files, held_out, self._converter(source, files + held_out, remote))

    def made_from(self) -> dict[str, str]:
        """The current provenance, mostly hashes: equal if a build would give the same rows."""
        content = self.mixture.model_dump_json(exclude={"metadata": {"description", "version"}}, by_alias=True)
        filters = [rule for source in self.mixture.datasets for rule in source.filters]
        found = {
            "mixture file": Hasher.hash(content),
            "code": Hasher.hash([converter_code(), *_filter_code(filters), *self._tool_schemas()]),
        }
        for source in self.mixture.datasets:
            files = self.files(source) + self.files(source, validation=True)
            found[f"data of {source.name}"] = Hasher.hash([file.digest for file in files])
        if self.mixture.decontaminate:
            sets = map(self._evaluation_files, self.mixture.decontaminate.against)
            found["evaluation sets"] = Hasher.hash([file.digest for files in sets for file in files])
        found["tokenizer"] = tokenizer_digest(self.tokenizer) or "none"
        found["max_length"] = f"{self.longest} ({self.on_long})"  # a recipe's may differ from the file's
        return found | {name: version(name) for name in ("minimind-trl", "datasets", "transformers")}

    def _tool_schemas(self) -> list[str]:
        return [source.tool_schemas for source in self.mixture.datasets if source.tool_schemas]

    @cached_property
    def forbidden(self) -> NGrams | None:
        """The evaluation texts of `decontaminate`, with which no row may share a run of words."""
        rules = self.mixture.decontaminate
        return NGrams(self._evaluation_texts(), rules.ngram) if rules else None

    def _converter(self, source: Source, files: list[DataFile], remote: bool) -> RowConverter:
        firsts = [(file, *row) for file in files for row in file.head(1, remote)]
        if not firsts:
            raise MixtureError(f"{', '.join(file.name for file in files)}: no rows (datasets.{source.name})")
        file, number, row = firsts[0]
        forbidden = self.forbidden
        # Only where more rows can decide anything: rows of the Hub have to be fetched.
        sample = [row for _, row in file.head(_HEAD, remote)] if may_hold_transcripts(row) else []
        try:
            converter = RowConverter(
                source,
                self.mixture.metadata.phase,
                list(row),
                file.at(number),
                self.tokenizer,
                forbidden,
                filled=[name for name, value in row.items() if value is not None],
                sample=sample,
                longest=self.longest if self.on_long == "drop" else None,
                keep_tokens=self.stream_tokens or not self.mixture.streaming,
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


@dataclass
class SourceReader:
    """One source of a mixture.

    Attributes:
        files: those to train on.
        held_out: those that the source holds out itself; often none.
    """

    reader: MixtureReader
    source: Source
    files: list[DataFile]
    held_out: list[DataFile]
    converter: RowConverter

    def read(self) -> Iterator[tuple[int, int, Row]]:
        """Every raw row with its file's index (`files`, then `held_out`) and its number in the file."""
        return numbered_rows(self.files + self.held_out, self.converter, held_out=len(self.held_out))

    @cached_property
    def rows(self) -> Dataset:
        """Every row, converted, with its `FACTS`; from the cache of `datasets` where an earlier build left it.

        Raises:
            MixtureError: a row cannot be read, or most rows cannot be used.
        """
        if self.reader.shards:
            rows = self._joined_shards(self.reader.shards)
        else:
            what, processes = f"converting {self.source.name}", self.reader.processes or default_processes()
            rows = cached_rows(self._pieces, self.converter.features, self._fingerprint, what, processes)
        unusable = int(pc.sum(rows.data.column("_unusable")).as_py() or 0)
        if unusable > _MOSTLY * len(rows):
            numbers = np.flatnonzero(rows.data.column("_unusable").to_numpy())[:_EXAMPLES]
            examples = [(self.place(row), row["_reason"]) for row in map(rows.__getitem__, numbers.tolist())]
            self._refuse(unusable, len(rows), examples)
        return rows

    def write_shard(self, folder: Path, number: int, count: int) -> int:
        """Convert one of `count` shares of the rows into a folder, and return how many pieces that are.

        Args:
            number: from 0; the other shares can be converted at the same time, on other machines.
        """
        pieces, what = self._pieces(), f"converting {self.source.name}, shard {number + 1} of {count}"
        own, processes = range(number, len(pieces), count), self.reader.processes or default_processes()
        write_pieces(what, pieces, folder / self._fingerprint, self.converter.features, processes, own)
        return len(own)

    def _joined_shards(self, folder: Path) -> Dataset:
        folder, pieces = folder / self._fingerprint, len(self._pieces())
        missing = [name for name in map(piece_name, range(pieces)) if not (folder / name).exists()]
        if missing:
            raise MixtureError(
                f"{folder}: {len(missing)} of the {pieces} pieces of datasets.{self.source.name} are missing, such as "
                f"{missing[0]}: build every --shard, from the same files and with the same tokenizer"
            )
        return open_pieces(folder, self._fingerprint)

    @cached_property
    def _fingerprint(self) -> str:
        """Equal if the converted rows are."""
        files, forbidden, converter = self.files + self.held_out, self.converter.forbidden, self.converter
        key = [
            converter_code(),
            converter.phase,
            self.source.model_dump_json(exclude={"mix_ratio", "max_samples", "max_repetition"}),
            [file.digest for file in files],
            (converter.schema, converter.extras, converter.transcripts),
            tokenizer_digest(converter.tokenizer),
            forbidden and (sorted(forbidden.runs), forbidden.size),
            [*_filter_code(self.source.filters), self.source.tool_schemas],
            converter.longest,
        ]
        return Hasher.hash(key)

    def _pieces(self) -> list[Piece]:
        files = self.files + self.held_out
        if self.converter.schema == "kto":  # whose pairs may be anywhere in the source
            return [Piece(partial(_converted_source, self.converter, files, len(self.held_out)), None)]
        return pieces_of_files(files, partial(_converted_parts, self.converter))

    def check_head(self) -> int:
        """Convert the first rows of each file, without downloading more.

        Returns:
            how many rows that were.

        Raises:
            MixtureError: most of them cannot be used, or they are the whole source and none is left.
        """
        heads = [(file, number, row) for file in self.files for number, row in file.head(_HEAD, stream=True)]
        pairs = self.converter.pairs([[row for *_, row in heads]])
        traced = self.converter.trace(
            (pairs.joined(place, row) if pairs else row for place, (*_, row) in enumerate(heads)),
            lambda index: heads[index][0].at(heads[index][1]),
        )
        failed = []
        for (file, number, _), row in zip(heads, traced, strict=True):
            self.converter.refuse_other_schema(row, file.at(number))
            failed += [(file.at(number), row.reason)] if row.unusable else []
        if len(failed) > _MOSTLY * len(heads):
            self._refuse(len(failed), len(heads), failed[:_EXAMPLES])
        if len(heads) < _HEAD and all(row.reason for row in traced):
            reasons = listed(Counter(row.reason for row in traced))
            raise MixtureError(f"{self.reader.path}: datasets.{self.source.name}: no row is left ({reasons})")
        return len(heads)

    def pins(self) -> list[dict[str, str]]:
        """Name and digest of each file; relative to the mixture file, because the lock travels with checkpoints."""
        base = f"{self.reader.path.parent}/"
        files = self.files + self.held_out
        return [{"name": public_name(file.name.removeprefix(base)), "digest": file.digest} for file in files]

    def place(self, row: Row) -> str:
        """Where a converted row comes from: its file and line."""
        return (self.files + self.held_out)[row["_file"]].at(row["_number"])

    def _refuse(self, failed: int, total: int, examples: list[tuple[str, str]]) -> None:
        shown = "".join(f"\n  {where}: {reason}" for where, reason in examples)
        name = f"{self.reader.path}: datasets.{self.source.name}"
        raise MixtureError(f"{name}: {failed} of {total} rows cannot be used, such as{shown}")


def converted_rows(
    files: list[DataFile], converter: RowConverter, held_out: int = 0, remote: bool = False
) -> Iterator[Row]:
    """Every row of the files, converted, with its facts.

    Args:
        held_out: how many of the files, at their end, the source holds out itself.
        remote: read Hub files while iterating instead of downloading them first.
    """
    numbered = numbered_rows(files, converter, held_out, remote)
    while batch := list(islice(numbered, _BATCH)):
        places = [files[index].at for index, *_ in batch]
        traced = converter.trace((raw for *_, raw in batch), lambda i, batch=batch, at=places: at[i](batch[i][1]))
        for (index, number, _), at, row in zip(batch, places, traced, strict=True):
            converter.refuse_other_schema(row, at(number))
            yield converter.with_facts(row) | {"_file": index, "_number": number}


def _converted_parts(converter: RowConverter, files: list[tuple[int, DataFile]]) -> Iterator[pa.Table]:
    texts = TextBatches(converter) if TextBatches.fits(converter) else None
    for index, file in files:
        if texts:
            yield from texts.tables(file, index, _BATCH if converter.tokenizer else _TEXTS)
        else:
            rows = (row | {"_file": index} for row in converted_rows([file], converter))
            yield from in_tables(rows, converter.features)


def _converted_source(converter: RowConverter, files: list[DataFile], held_out: int) -> Iterator[pa.Table]:
    yield from in_tables(converted_rows(files, converter, held_out), converter.features)


def numbered_rows(
    files: list[DataFile], converter: RowConverter, held_out: int = 0, remote: bool = False
) -> Iterator[tuple[int, int, Row]]:
    """Every raw row with its file's index and its number; a KTO row with the pair that it is in. Arguments as above."""
    training = len(files) - held_out
    parts = ((row for file in part for _, row in file.read()) for part in (files[:training], files[training:]))
    pairs, place = converter.pairs(parts), 0
    for index, file in enumerate(files):
        for number, row in file.read_remote() if remote and file.read_remote else file.read():
            yield index, number, pairs.joined(place, row) if pairs else row
            place += 1


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    """Hash of what decides in a tokenizer how rows come out: vocabulary, added tokens, chat template."""
    if tokenizer is None:
        return None
    if not tokenizer.is_fast:
        return Hasher.hash([sorted(tokenizer.get_vocab().items()), tokenizer.chat_template])
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    # Truncation and padding are left from the last call.
    return Hasher.hash([state | {"truncation": None, "padding": None}, tokenizer.chat_template])


def converter_code() -> str:
    """Hash of the code that decides what becomes of a row, for the keys of caches and prepared mixtures."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in converter_files())).hexdigest()


def converter_files() -> list[Path]:
    """The source files that decide what becomes of a row; a new file of this folder is one of them."""
    folder = Path(__file__).parent
    own = [file for file in sorted(folder.glob("*.py")) if file.stem not in _NOT_OF_ROWS]
    return [*own, *(folder.parent / "tokenization" / f"{name}.py" for name in _TOKENIZATION)]


def listed(reasons: dict[str, int]) -> str:
    """Counts by reason, as messages list them."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


def _filter_code(filters: Iterable) -> list[str]:
    return [rule.code for rule in filters if isinstance(rule, CustomFilter)]
