"""Rows into an Arrow file in the cache of `datasets`, a batch at a time."""

from collections.abc import Callable, Iterator
from itertools import islice

import datasets
import pyarrow as pa
from datasets import ArrowBasedBuilder, Dataset, DatasetInfo, Features, SplitGenerator
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.generator.generator import GeneratorConfig

from ..errors import InputError, MixtureError
from .schemas import Row

_BATCH = 1000


def cached_rows(rows: Callable[[], Iterator[Row]], features: Features, fingerprint: str) -> Dataset:
    """As `Dataset.from_generator`, which encodes value by value, in twice the time. Values of `Json` come encoded.

    Raises:
        MixtureError: the cache cannot be written; or what `rows` raises of the kind `InputError`.
    """
    try:
        builder = _Tables(features=features, generator=rows, config_id=f"rows-{fingerprint}")
        builder.download_and_prepare()
        dataset = builder.as_dataset(split="train")
    except (DatasetGenerationError, OSError) as error:
        told = _told(error)
        if told is error:
            raise
        raise told from None
    dataset._fingerprint = fingerprint
    return dataset


def _told(error: BaseException) -> BaseException:
    """The error of the rows, or of the cache's disk, in what `datasets` raises; sources have told of their files."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in causes:
        if isinstance(cause, InputError):
            return cause
        if isinstance(cause, OSError):
            return MixtureError(
                f"{datasets.config.HF_DATASETS_CACHE}: the cache of the data sets cannot be written: "
                f"{cause.strerror or cause}; make room there, or set HF_DATASETS_CACHE to a folder on another disk"
            )
    return error


class _Tables(ArrowBasedBuilder):
    BUILDER_CONFIG_CLASS = GeneratorConfig

    def _info(self) -> DatasetInfo:
        return DatasetInfo(features=self.config.features)

    def _split_generators(self, _) -> list[SplitGenerator]:
        return [SplitGenerator("train")]

    def _generate_tables(self) -> Iterator[tuple[int, pa.Table]]:
        schema = self.config.features.arrow_schema
        rows, number = self.config.generator(), 0
        while batch := list(islice(rows, _BATCH)):
            yield number, pa.Table.from_pylist(batch, schema=schema)
            number += 1
