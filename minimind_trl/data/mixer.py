"""Mixture file in, `DatasetDict` with train and validation out, every dropped row counted under its reason."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from datasets import Dataset, DatasetDict, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from ..tokenization import escape_control_tokens
from .config import Mixture, MixtureError, Source, load_mixture
from .schemas import Row, RowError, converter_for

# The column that a phase's trainer reads, and the checkable extras that are kept beside it.
_COLUMN = {"pretrain": "text", "midtrain": "text", "sft": "messages", "distill": "messages"}
_KEPT_COLUMNS = ("skill", "answer")


class DatasetMixer:
    """Builds the data sets of one mixture file; local JSONL for the stages that TRL's SFTTrainer trains."""

    def __init__(self, mixture: Mixture, path: Path):
        self.mixture = mixture
        self.path = path
        self.drops: Counter[str] = Counter()
        self.escaped = 0
        if mixture.metadata.phase not in _COLUMN:
            raise MixtureError(
                f"{path}: phase {mixture.metadata.phase!r} cannot be built yet, use one of {list(_COLUMN)}"
            )

    @classmethod
    def from_yaml(cls, path: str | Path) -> "DatasetMixer":
        """Read a mixture file.

        Raises:
            MixtureError: the file or one of its fields is not valid.
        """
        return cls(load_mixture(path), Path(path))

    def build(self, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
        """Read, convert, split and mix.

        Args:
            tokenizer: whose control tokens are escaped where they are spelled inside the text (and counted).

        Returns:
            `DatasetDict` with "train" and "validation", columns `text` or `messages` (+ `tools`), `source`, and the
            checkable extras `skill` and `answer` where the rows have them.

        Raises:
            MixtureError: a file is missing or not JSONL, has no usable columns, or a split comes out empty.
        """
        train, validation = {}, {}
        for source in self.mixture.datasets:
            train[source.name], validation[source.name] = self._splits(source, tokenizer)
        # Shuffled, because an evaluation on the first so many rows must see every source.
        held_out = concatenate_datasets(list(validation.values())).shuffle(seed=self.mixture.validation.seed)
        mixed = DatasetDict(train=self._share(train), validation=held_out)
        for split, rows in mixed.items():
            if len(rows) == 0:
                raise MixtureError(
                    f"{self.path}: the {split} split is empty{self._reasons()}; add rows, or change validation.ratio"
                )
        if "tools" in mixed["train"].column_names and not any(any(rows["tools"]) for rows in mixed.values()):
            mixed = mixed.remove_columns("tools")
        return mixed

    def describe(self) -> str:
        """What was dropped or changed, one line; empty where nothing was."""
        notes = [f"{count} rows dropped: {reason}" for reason, count in self.drops.most_common()]
        if self.escaped:
            notes.append(f"{self.escaped} control tokens inside the text escaped")
        return "; ".join(notes)

    def _splits(self, source: Source, tokenizer) -> tuple[Dataset, Dataset]:
        base = self.path.parent / source.source
        files = source.data_files
        rows = self._rows(source, base / files.train if files else base, tokenizer)
        train = self._dataset(source, rows)
        if files and files.validation:
            return train, self._dataset(source, self._rows(source, base / files.validation, tokenizer))
        # Decided on the rows themselves: in the data set each holds the empty columns that other rows brought.
        held_out = [self._is_held_out(row) for row in rows]
        return (
            train.select([i for i, out in enumerate(held_out) if not out]),
            train.select([i for i, out in enumerate(held_out) if out]),
        )

    def _dataset(self, source: Source, rows: list[Row]) -> Dataset:
        extras = [name for name in _KEPT_COLUMNS if any(name in row for row in rows)]
        # `from_list` takes its columns from the first row, so every row gets all of them.
        return Dataset.from_list([dict.fromkeys(extras) | row | {"source": source.name} for row in rows])

    def _is_held_out(self, row: Row) -> bool:
        # By content, so that a row stays on its side whatever is added, removed or reordered around it.
        rule = self.mixture.validation
        content = json.dumps([rule.seed, row], sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(content.encode()).digest()
        return int.from_bytes(digest[:8], "big") < rule.ratio * 2**64

    def _rows(self, source: Source, file: Path, tokenizer) -> list[Row]:
        if not file.is_file():
            raise MixtureError(f"{self.path}: datasets.{source.name}: no such file {file}")
        rows = _read_jsonl(file)
        wanted = _COLUMN[self.mixture.metadata.phase]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        converter = converter_for(columns, wanted)
        if converter is None:
            raise MixtureError(
                f"{file}: columns {', '.join(columns) or 'none'} cannot be turned into {wanted!r} for phase "
                f"{self.mixture.metadata.phase}"
            )
        converted = [row for row in (self._convert(row, converter, tokenizer) for row in rows) if row is not None]
        if not converted:
            raise MixtureError(f"{file}: no row is usable{self._reasons()}")
        return converted

    def _convert(self, row: Row, converter: Callable[[Row], Row], tokenizer) -> Row | None:
        try:
            converted = converter(row)
        except RowError as error:
            self.drops[str(error)] += 1
            return None
        converted, escaped = escape_control_tokens(converted, tokenizer)
        self.escaped += escaped
        return converted | {name: row[name] for name in _KEPT_COLUMNS if name in row}

    def _share(self, rows: dict[str, Dataset]) -> Dataset:
        """The largest mixture in which every source has exactly its share, without repeating a row."""
        ratios = {source.name: source.mix_ratio for source in self.mixture.datasets}
        size = min(len(rows[name]) / ratio for name, ratio in ratios.items())
        seed = self.mixture.validation.seed
        parts = []
        for name, ratio in ratios.items():
            count = round(size * ratio)
            parts.append(rows[name].shuffle(seed=seed).select(range(count)))
            if left_out := len(rows[name]) - count:
                self.drops[f"{name} beyond its share"] += left_out
        return concatenate_datasets(parts).shuffle(seed=seed)

    def _reasons(self) -> str:
        return f" ({self.describe()})" if self.drops else ""


def _read_jsonl(file: Path) -> list[Row]:
    # Not by `load_dataset`: Arrow would give all objects of a column the union of their keys, tool arguments included.
    rows = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise MixtureError(f"{file}, line {number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise MixtureError(f"{file}, line {number}: a row must be an object, found {type(row).__name__}")
            rows.append(row)
    return rows
