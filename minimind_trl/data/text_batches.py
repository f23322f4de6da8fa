"""Converts rows of plain text in batches, as `RowConverter` converts them one by one: the same columns, in less time.

Most rows of pretraining text are a string and nothing to decide. What is unusual about a row (empty, no string, perhaps
messages as JSON, a control token spelled inside) leaves it to `RowConverter`.
"""

import re
from collections.abc import Callable, Iterator
from hashlib import blake2b
from itertools import islice
from json.encoder import encode_basestring

import numpy as np
import pyarrow as pa

from ..errors import MixtureError
from ..tokenization.masks import Rendered
from . import schemas
from .file_formats import parsed_line
from .filters import Candidate
from .rows import RowConverter, listed_keys, too_long
from .sources import DataFile
from .turns import Row

_UNUSUAL = re.compile(r"\s*(?:array\(|[\[{]|\Z)")  # nothing but white space, or perhaps JSON


class TextBatches:
    """Converts batches of one source's raw rows.

    Args:
        converter: one that `fits`.
    """

    def __init__(self, converter: RowConverter):
        self.converter, self.schema = converter, converter.features.arrow_schema
        self.column = converter.fields.get("text", "text")

    @staticmethod
    def fits(converter: RowConverter) -> bool:
        """Whether the source's rows are texts of one column, of which nothing else is kept."""
        return converter.is_text and not converter.extras and set(converter.fields) <= {"text"}

    def tables(self, file: DataFile, index: int, size: int) -> Iterator[pa.Table]:
        """The rows of a file as `RowConverter.with_facts` gives them, so many at once.

        Args:
            index: of the file among the source's.

        Raises:
            MixtureError: as of `RowConverter`; or a row cannot be read.
        """
        found = file.lines() if file.lines else file.read()
        while batch := list(islice(found, size)):
            numbers, raws = map(list, zip(*batch, strict=True))
            lines = None
            if file.lines:
                lines = raws
                raws = [parsed_line(line, file.name, number) for number, line in batch]
            yield self._converted(numbers, raws, lines, file.at, index)

    def _converted(
        self, numbers: list[int], raws: list[Row], lines: list[bytes] | None, at: Callable[[int], str], file: int
    ) -> pa.Table:
        usual = [at for at, raw in enumerate(raws) if self._is_usual(raw.get(self.column))]
        table = self._usual(usual, raws, lines) if usual else None
        if table is None:  # a filter failed
            usual = []
        others = sorted(set(range(len(raws))) - set(usual))
        if others:
            rows = self._one_by_one(others, numbers, raws, at)
            unusual = pa.Table.from_pylist(rows, schema=self.schema)
            order = np.argsort([*usual, *others], kind="stable")
            table = pa.concat_tables([table, unusual]).take(pa.array(order)) if usual else unusual
        for name, values in {"_file": [file] * len(raws), "_number": numbers}.items():
            place = self.schema.get_field_index(name)
            table = table.set_column(place, self.schema.field(place), pa.array(values, self.schema.field(place).type))
        return table

    def _one_by_one(
        self, places: list[int], numbers: list[int], raws: list[Row], at: Callable[[int], str]
    ) -> list[Row]:
        wheres = [at(numbers[place]) for place in places]
        rows = []
        for traced, where in zip(
            self.converter.trace((raws[place] for place in places), wheres.__getitem__), wheres, strict=True
        ):
            self.converter.refuse_other_schema(traced, where)
            rows.append(self.converter.with_facts(traced))
        return rows

    def _is_usual(self, text: object) -> bool:
        if type(text) is not str or _UNUSUAL.match(text) or len(text) * 2 > schemas.MAX_CHARACTERS:
            return False
        special = self.converter.special_tokens
        return special is None or special.search(text) is None

    def _usual(self, places: list[int], raws: list[Row], lines: list[bytes] | None) -> pa.Table | None:
        """The table of usual rows, without file and number; None if a filter fails, or a text is no valid Unicode."""
        converter = self.converter
        texts = [raws[place][self.column] for place in places]
        try:
            contents = [self._content(raws[place], lines and lines[place]) for place in places]
        except UnicodeEncodeError:
            return None
        tokens = converter.renderer and converter.renderer.tokenize([(Rendered(text),) for text in texts])
        counts = [row.count for row in tokens] if tokens else [None] * len(texts)
        try:
            reasons = self._reasons(texts, counts, [raws[place] for place in places])
        except MixtureError:
            return None
        kept = [reason is None for reason in reasons]
        dropped = ~np.array(kept)
        digests = b"".join([blake2b(content, digest_size=8).digest() for content in contents])  # as RowConverter's keys
        keys = np.frombuffer(digests, ">i8").astype(np.int64)

        def only_kept(values: list | np.ndarray, name: str) -> pa.Array:
            return pa.array(values, self.schema.field(name).type, mask=dropped)

        zeros = np.zeros(len(texts), np.int64)
        columns = {
            "text": only_kept(texts, "text"),
            "source": only_kept([converter.source.name] * len(texts), "source"),
            "_reason": pa.array(reasons, pa.string()),
            "_unusable": pa.array(np.zeros(len(texts), bool)),
            "_key": only_kept(keys, "_key"),
            "_group": only_kept(keys, "_group"),
            "_tokens": pa.array(counts, self.schema.field("_tokens").type),
            "_contaminated": only_kept(self._contaminated(texts, kept), "_contaminated"),
            "_unread": pa.array([self._unread(raws[place]) for place in places], pa.string()),
        }
        columns |= {name: only_kept(zeros, name) for name in ("_escaped", "_moved", "_untrained")}
        for name in converter.renderer.features if tokens else ():
            values = [row.columns[name] if keep else None for row, keep in zip(tokens, kept, strict=True)]
            columns[name] = pa.array(values, self.schema.field(name).type)
        arrays = [columns.get(field.name, pa.nulls(len(texts), field.type)) for field in self.schema]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def _content(self, raw: Row, line: bytes | None) -> bytes:
        """The row as `json.dumps` would make it of its text, for hashing."""
        if line is not None and len(raw) == 1 and _is_as_dumped(line):
            return line
        return f'{{"text": {encode_basestring(raw[self.column])}}}'.encode()

    def _reasons(self, texts: list[str], counts: list[int | None], raws: list[Row]) -> list[str | None]:
        """Why each row is dropped; None for those that are kept."""
        longest = self.converter.longest
        reasons = [too_long(longest) if longest is not None and (count or 0) > longest else None for count in counts]
        for rule in self.converter.source.filters:
            left = [place for place, reason in enumerate(reasons) if reason is None]
            found = rule.reasons_of_texts([texts[place] for place in left])
            if found is None:
                rows = ((texts[place], raws[place], counts[place]) for place in left)
                found = [rule.reason(Candidate({"text": text}, raw, text, count)) for text, raw, count in rows]
            for place, reason in zip(left, found, strict=True):
                reasons[place] = reason
        return reasons

    def _contaminated(self, texts: list[str], kept: list[bool]) -> list[bool]:
        forbidden = self.converter.forbidden
        if forbidden is None:
            return [False] * len(texts)
        return [keep and forbidden.overlap(text) for text, keep in zip(texts, kept, strict=True)]

    def _unread(self, raw: Row) -> str | None:
        if len(raw) == 1:  # the text
            return None
        return listed_keys(self.converter.unread(raw))


def _is_as_dumped(line: bytes) -> bool:
    """Whether a line of JSONL that holds one text is what `json.dumps` makes of it."""
    if not (line.startswith(b'{"text": "') and line.endswith(b'"}') and line.find(b'"text"', 2) < 0):
        return False  # other spaces, or the key twice
    if b"\\" not in line:  # a search of one byte is quick
        return True
    return b"\\u" not in line and b"\\/" not in line  # of all escapes only these are written in another way
