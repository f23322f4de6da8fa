"""Converts one source's rows to the columns of a phase, and collects the facts that the mixer needs.

Every row stays: one that cannot be used is kept without its content and with the reason, so that all counts add up to
the rows read.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from datasets import Features, Json, Value
from transformers import PreTrainedTokenizerBase

from ..errors import MixtureError, nearest
from ..tokenization.control_tokens import escape_matches, special_tokens
from ..tokenization.masks import Rendered
from . import schemas
from .config import HH, Source
from .duplicates import NGrams
from .filters import Candidate, value_at
from .kto import Labelled, Pairs
from .row_renderer import TOKEN_COLUMNS, RowRenderer, Tokens
from .schemas import COLUMNS, PHASES, REWARD_COLUMNS, SCHEMAS
from .transcripts import holds_transcripts, read_transcripts
from .turns import LeftOut, Row, RowError

# What the mixer needs of every row, in columns beside the phase's own until the splits are made.
FACTS = {
    "_reason": Value("string"),  # why it is dropped; null for a row that is kept
    "_unusable": Value("bool"),  # dropped because it could not be converted
    "_file": Value("uint16"),
    "_number": Value("uint32"),  # its line or row in that file, from 1
    "_key": Value("int64"),  # hash of its content: equal for duplicates
    "_group": Value("int64"),  # rows of one group must be on one side of the split
    "_tokens": Value("uint32"),
    "_escaped": Value("uint32"),  # control tokens spelled inside it
    "_moved": Value("uint32"),  # turns whose reasoning was moved into the content
    "_contaminated": Value("bool"),
    "_untrained": Value("uint16"),  # turns marked as not trained
    "_unread": Value("string"),  # unused keys, one a line
}
_HH_SCHEMAS = ("preference", "prompt_completion", "prompt")
# Faults of a single row, which must not end the build.
_ROW_FAULTS = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError)


@dataclass
class Traced:
    """A row on its way: what it became, and why it was dropped.

    Attributes:
        row: in the phase's columns.
        content: the same, serialised for hashing.
        trained: `row` with control tokens escaped, and conversations of a text phase rendered.
        other_schema: set if the row could not be converted because its schema differs from the first row's.
        moved: turns whose reasoning was moved into the content, because the chat template prints it nowhere else.
        rendered: what is tokenized; both sides of a preference pair.
        tokens: of what is rendered.
        untrained: turns marked as not trained.
        unread: keys with a value that nothing uses.
    """

    raw: Row
    row: Row | None = None
    content: bytes = b""
    trained: Row | None = None
    reason: str | None = None
    unusable: bool = False
    other_schema: str | None = None
    escaped: int = 0
    moved: int = 0
    rendered: tuple[Rendered, ...] = ()
    tokens: Tokens | None = None
    untrained: int = 0
    unread: tuple[str, ...] = ()

    @property
    def count(self) -> int | None:
        """Number of tokens; None without a tokenizer."""
        return self.tokens and self.tokens.count


class RowConverter:
    """Converts, validates, filters and measures the rows of one source.

    Args:
        columns: the source's columns, from its first row.
        where: the first row's place, for messages.
        tokenizer: escapes control tokens, counts tokens, renders conversations into texts; None does none of it.
        forbidden: texts that a row must not share a run of words with.
        filled: columns that are not null in the first row (default: all); the schema is detected by them.
        sample: the first rows, by which HH-RLHF's transcripts are detected.
        longest: tokens beyond which a row is dropped.
        keep_tokens: keep `TOKENS` of the rows.

    Raises:
        MixtureError: no converter fits the columns, or a filter or the phase needs a tokenizer.
    """

    def __init__(
        self,
        source: Source,
        phase: str,
        columns: list[str],
        where: str,
        tokenizer: PreTrainedTokenizerBase | None = None,
        forbidden: NGrams | None = None,
        filled: list[str] | None = None,
        sample: Iterable[Row] = (),
        longest: int | None = None,
        keep_tokens: bool = True,
    ):
        self.longest = longest
        self.source, self.phase, self.tokenizer, self.forbidden = source, phase, tokenizer, forbidden
        self.fields = source.fields | ({"text": source.text_field} if source.text_field else {})
        renamed = self._known(columns)
        filled = self._known(columns if filled is None else filled)
        # In a table every row has all columns, some of them always null.
        self.fits = schemas.fitting_schemas(filled, phase) or schemas.fitting_schemas(renamed, phase)
        self.schema = self._schema(renamed, columns, where)
        self.fields = schemas.spellings(renamed, self.schema) | self.fields
        known = {*renamed, *self.fields}
        self.extras = self._extras(known, where)
        self.is_text = SCHEMAS[self.schema].kind == "text"
        if source.tools and self.is_text:
            raise MixtureError(f"{where}: datasets.{source.name}.tools: its rows are plain text, which has no tools")
        self._check_tokenizer(where)
        self.special_tokens = tokenizer and special_tokens(tokenizer)
        self.renderer = None if tokenizer is None else RowRenderer(tokenizer, phase, self.is_text, keep_tokens)
        self._read = self._read_keys()
        named = (row | {name: value_at(row, path) for name, path in self.fields.items()} for row in sample)
        self.transcripts = source.schema_ == HH or holds_transcripts(named)

    @property
    def features(self) -> Features:
        """Features of converted rows: the phase's columns, `source`, the kept columns, `TOKENS` and `FACTS`."""
        own = COLUMNS[PHASES[self.phase][0]] | {"source": Value("string")}
        own |= self.renderer.features if self.renderer else {}
        return Features(own | {name: Json() for name in self.extras} | FACTS)

    @property
    def flattens(self) -> bool:
        """Whether conversations become texts."""
        return self.renderer is not None and self.renderer.flattens

    def pairs(self, parts: Iterable[Iterable[Row]]) -> Pairs | None:
        """The pairs of a source of KTO rows; None of other sources. `parts` as for `Pairs`."""
        return Pairs(parts, self._labelled) if self.schema == "kto" else None

    def refuse_other_schema(self, traced: Traced, where: str) -> None:
        """Raise a MixtureError for a row of another schema, instead of dropping it; not if the source sets `schema`."""
        if traced.other_schema and self.source.schema_ is None:
            raise MixtureError(
                f"{where}: a row of schema {traced.other_schema!r} in datasets.{self.source.name}, whose first row is "
                f"of schema {self.schema!r}: split the file, or set schema, which drops the others"
            )

    def trace(self, raws: Iterable[Row], place: Callable[[int], str] | None = None) -> list[Traced]:
        """Convert, validate, escape, count and filter a batch of rows.

        Args:
            place: the place of a row by its index, for messages.

        Raises:
            MixtureError: a filter failed; the row is named.
        """
        traced = [self._converted(raw) for raw in raws]
        if self.renderer is not None:
            rendered = [row for row in traced if row.rendered]
            for row, tokens in zip(rendered, self.renderer.tokenize([row.rendered for row in rendered]), strict=True):
                row.tokens = tokens
        for index, row in enumerate(traced):
            if row.reason is None:
                try:
                    over = self.longest is not None and (row.count or 0) > self.longest
                    row.reason = too_long(self.longest) if over else self._filtered(row)
                except MixtureError as error:
                    where = f"{place(index)} (datasets.{self.source.name}): " if place else ""
                    raise MixtureError(f"{where}{error}") from error
        return traced

    def unread(self, raw: Row) -> tuple[str, ...]:
        """The keys of a row, which has its schema's columns, that have a value and are not used."""
        return tuple(schemas.unread_keys(self._renamed(raw), self._read))

    def _known(self, columns: list[str]) -> list[str]:
        """The columns, and the names that `fields` maps to them."""
        return sorted({*columns, *self._mapped(columns)})

    def _mapped(self, columns: list[str]) -> list[str]:
        return [name for name, path in self.fields.items() if path in columns or path.split(".")[0] in columns]

    def _schema(self, renamed: list[str], columns: list[str], where: str) -> str:
        wanted, usable = PHASES[self.phase]
        found = next(iter(self.fits), None)
        name = found if self.source.schema_ == HH else self.source.schema_ or found
        if name is None:
            needs = "; ".join(f"{known} ({', '.join(SCHEMAS[known].columns)})" for known in usable)
            raise MixtureError(
                f"{where}: columns {', '.join(columns)} cannot be turned into {wanted!r} for phase {self.phase}; "
                f"it takes {needs}: map them with fields"
            )
        if self.source.schema_ == HH and name not in (*_HH_SCHEMAS, "kto"):
            raise MixtureError(
                f"{where}: schema {HH!r} is for transcripts in the columns of {', '.join(_HH_SCHEMAS)}, but these rows "
                f"are of schema {name!r}: leave schema out"
            )
        if name not in usable:
            raise MixtureError(
                f"datasets.{self.source.name}: schema {name!r} does not fit phase {self.phase}, "
                f"which takes {', '.join(usable)}"
            )
        mapped = [one for one in SCHEMAS[name].columns if one in self.fields and one not in self._mapped(columns)]
        if missing := mapped or schemas.missing_columns(renamed, name):
            column = self.fields.get(missing[0], missing[0])
            raise MixtureError(
                f"{where}: no column {column!r} for schema {name!r}"
                + (nearest(column, columns) or f" (columns: {', '.join(columns)}); map it with fields")
            )
        return name

    def _extras(self, known: set[str], where: str) -> list[str]:
        wanted = self.source.keep_columns
        if wanted is None:
            return [name for name in REWARD_COLUMNS if name in known] if self.phase == "rlaif" else []
        if taken := {*COLUMNS[PHASES[self.phase][0]], "source", *TOKEN_COLUMNS, *FACTS} & set(wanted):
            raise MixtureError(
                f"{where}: datasets.{self.source.name}.keep_columns: {', '.join(sorted(taken))} is the mixture's own"
            )
        return wanted

    def _check_tokenizer(self, where: str) -> None:
        name = f"{where}: datasets.{self.source.name}:"
        if self.tokenizer is None and not self.is_text and PHASES[self.phase][0] == "text":
            raise MixtureError(
                f"{name} {self.schema} rows in phase {self.phase} are written by the chat template: give a tokenizer"
            )
        if self.tokenizer is None and any(rule.needs_tokenizer for rule in self.source.filters):
            raise MixtureError(f"{name} a length filter in tokens needs a tokenizer: give one")
        if self.tokenizer is not None and not self.is_text and not self.tokenizer.chat_template:
            raise MixtureError(f"{name} conversations, but the tokenizer has no chat template to write them")

    def _read_keys(self) -> set[str]:
        """The keys of a row that the schema, a filter or `keep_columns` uses."""
        filtered = (getattr(rule, "field", None) for rule in self.source.filters)
        paths = [*self.fields.values(), *(field for field in filtered if isinstance(field, str))]
        return {*schemas.read_keys(self.schema), *self.extras, *paths, *(path.split(".")[0] for path in paths)}

    def _labelled(self, raw: Row) -> Labelled | None:
        try:
            return schemas.labelled(self._renamed(raw))
        except _ROW_FAULTS:
            return None  # reported when it is converted

    def _converted(self, raw: Row) -> Traced:
        traced = Traced(raw)
        try:
            row = self._renamed(raw)
            traced.unread = tuple(schemas.unread_keys(row, self._read))
            schemas.refuse_left_out(row, self.schema, self.phase)
            schema = SCHEMAS[self.schema]
            traced.row = self._with_tools(schemas.to_phase(schema.convert(row), schema.kind, self.phase))
            traced.untrained = sum(turn.get("train") is False for turn in traced.row.get("messages", ()))
            extras = {name: _storable(row.get(name)) for name in self.extras}
            traced.content = _checked_content(traced.row, extras)
            traced.trained, traced.escaped = traced.row, 0
            if self.tokenizer is not None:
                traced.trained, traced.escaped = escape_matches(traced.row, self.special_tokens)
                traced.trained, traced.moved, traced.rendered = self.renderer.render(traced.trained)
            traced.trained = traced.trained | extras
        except LeftOut as error:
            traced.row, traced.reason = None, str(error)
        except RowError as error:
            traced.row, traced.reason, traced.unusable = None, str(error), True
            traced.other_schema = self._other_schema(raw)
        except MixtureError:
            raise
        except _ROW_FAULTS as error:
            # Nothing of the row itself, because rows are counted by reason.
            reason = f"cannot be converted ({type(error).__name__})"
            reason = "nested too deeply" if isinstance(error, RecursionError) else reason
            traced.row, traced.reason, traced.unusable = None, reason, True
        return traced

    def _with_tools(self, row: Row) -> Row:
        """The row with the tools of its source, unless it has its own."""
        return row if row.get("tools") or not self.source.tools else row | {"tools": self.source.tool_schemas}

    def _renamed(self, raw: Row) -> Row:
        """The row under its schema's names.

        Raises:
            RowError: it lacks a column of the schema.
        """
        row = raw | {name: value_at(raw, path) for name, path in self.fields.items()} if self.fields else raw
        row = read_transcripts(row, self.transcripts)
        own = SCHEMAS[self.schema].columns
        if empty := [self.fields[name] for name in own if name in self.fields and row[name] is None]:
            raise RowError(f"nothing in column {empty[0]!r}")
        if missing := [name for name in own if name not in row]:
            other = self._other_schema(raw)
            among = f": a row of schema {other!r} among rows of {self.schema!r}" if other else ""
            raise RowError(f"no column {missing[0]!r}{among}")
        return row

    def _other_schema(self, raw: Row) -> str | None:
        """The schema of a row that does not have its source's, unless the first row fits that schema too."""
        filled = self._known([name for name, value in raw.items() if value is not None])
        if not schemas.missing_columns(filled, self.schema):
            return None
        return next((name for name in schemas.fitting_schemas(filled, self.phase) if name not in self.fits), None)

    def _filtered(self, traced: Traced) -> str | None:
        if not self.source.filters:
            return None
        candidate = Candidate(traced.row, traced.raw, schemas.plain_text(traced.row), traced.count)
        reasons = (rule.reason(candidate) for rule in self.source.filters)
        return next((reason for reason in reasons if reason), None)

    def has(self, name: str, raw: Row) -> bool:
        """Whether a row has a column, under its own name or by `fields`."""
        return name in raw or (name in self.fields and value_at(raw, self.fields[name]) is not None)

    def with_facts(self, traced: Traced) -> Row:
        """A row's columns and `FACTS`; for a dropped row only the reason and its tokens."""
        if traced.reason is not None:
            unread = listed_keys(traced.unread)
            facts = {"_reason": traced.reason, "_unusable": traced.unusable, "_unread": unread}
            return facts | {"_tokens": traced.count}
        extras = {name: traced.trained[name] for name in self.extras}
        key = _hash(_serialised(traced.row | extras) if self.phase == "rlaif" else traced.content)
        # Answers to one prompt must not be on both sides of the split.
        group = _hash(_serialised(traced.row["prompt"])) if "prompt" in traced.row else key
        tokens = traced.tokens.columns if traced.tokens else {}
        return (
            traced.trained
            | tokens
            | {
                # Encoded here, because `Json` would decode a text that looks like JSON, such as "3".
                **{name: json.dumps(value, ensure_ascii=False) for name, value in extras.items()},
                "source": self.source.name,
                "_unusable": False,
                "_key": key,
                "_group": group,
                "_tokens": traced.count,
                "_escaped": traced.escaped,
                "_moved": traced.moved,
                "_contaminated": self.forbidden is not None and self.forbidden.overlap(schemas.plain_text(traced.row)),
                "_untrained": traced.untrained,
                "_unread": listed_keys(traced.unread),
            }
        )


def too_long(longest: int) -> str:
    """The reason under which longer rows are dropped."""
    return f"longer than {longest} tokens"


def listed_keys(keys: tuple[str, ...]) -> str | None:
    """Unused keys of a row as `FACTS` have them."""
    return "\n".join(keys).encode(errors="backslashreplace").decode() or None


def _checked_content(row: Row, extras: Row) -> bytes:
    """The row serialised.

    Raises:
        RowError: it cannot be stored or trained on.
    """
    try:
        content = _serialised(row)
    except UnicodeEncodeError:
        raise RowError("text is not valid Unicode (half of a surrogate pair)") from None
    if len(content) > schemas.MAX_CHARACTERS:
        raise RowError(f"over {schemas.MAX_CHARACTERS // 1_000_000} MB of text")
    for name, value in extras.items():
        try:
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError):  # such as a date in Parquet, or half of a surrogate pair
            raise RowError(f"column {name!r} is nothing that JSON can hold") from None
    return content


def _storable(value: Any) -> Any:
    """The value with integers of more than 64 bits, which `datasets` cannot read back, as text."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return str(value)
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, dict):
        return {name: _storable(item) for name, item in value.items()}
    return value


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)


def _serialised(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, ensure_ascii=False, default=str).encode()
