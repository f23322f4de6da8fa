"""One source's rows into the columns of a phase, beside what the mixer needs to know of each.

No row is left out here: one that cannot be used keeps its place, without its content and with the reason, so that
whatever is counted later adds up to the rows that came in.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from datasets import Features, Json, Value
from transformers import PreTrainedTokenizerBase

from ..errors import InputError, MixtureError, nearest
from ..tokenization.control_tokens import escape_control_tokens
from ..tokenization.masks import untrained_spans
from ..tokenization.renderings import PrintedFields, first_unprinted, reasoning_in_content
from ..tokenization.templates import ChatTemplateError, decode_tools, with_training_template
from . import schemas
from .config import HH, Source
from .duplicates import NGrams
from .filters import Candidate, value_at
from .kto import Labelled, Pairs
from .schemas import COLUMNS, PHASES, REWARD_COLUMNS, SCHEMAS
from .transcripts import holds_transcripts, read_transcripts
from .turns import LeftOut, Row, RowError

# What the mixer needs to know of every row, kept in columns beside the phase's own until the mixture is cut.
FACTS = {
    "_reason": Value("string"),  # why it is dropped; null where it is not
    "_unusable": Value("bool"),  # dropped because it could not be converted, not by a filter
    "_file": Value("uint16"),
    "_number": Value("uint32"),  # its line or row in that file, from 1
    "_key": Value("int64"),  # hash of its content: equal for duplicates
    "_group": Value("int64"),  # hash of what must not be on both sides of the split
    "_tokens": Value("uint32"),
    "_escaped": Value("uint32"),  # control tokens that were spelled inside it
    "_moved": Value("uint32"),  # its turns whose reasoning went into the content
    "_contaminated": Value("bool"),
    "_untrained": Value("uint16"),  # turns that say that they are not trained
    "_unread": Value("string"),  # its keys that nobody reads, one a line
}
_HH_SCHEMAS = ("preference", "prompt_completion", "prompt")
# What is wrong with one row, and so must not end the build.
_ROW_FAULTS = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError)


@dataclass
class Traced:
    """A row on its way: what it became, and why it went no further."""

    raw: Row
    row: Row | None = None
    """In the phase's columns."""
    content: bytes = b""
    """The same, as it is hashed."""
    trained: Row | None = None
    """With its control tokens escaped, and conversations of a text phase rendered."""
    reason: str | None = None
    unusable: bool = False
    other_schema: str | None = None
    """Set where it could not be converted because it is of another schema than the source's first row."""
    escaped: int = 0
    moved: int = 0
    """Turns whose reasoning went into the content, because the chat template prints it nowhere else."""
    tokens: int | None = None
    texts: tuple[str, ...] = ()
    """What is tokenized, of a preference pair both sides."""
    untrained: int = 0
    """Turns that say that they are not trained."""
    unread: tuple[str, ...] = ()
    """Its keys that say something and that nobody reads."""


class RowConverter:
    """Converts, validates, filters and measures the rows of one source.

    Args:
        source: of the mixture.
        phase: of the mixture.
        columns: names of the source's columns, from its first row.
        where: the first row's place, for messages.
        filled: those of them that are not null in the first row (default: all), which tell its schema.
        sample: the first rows, which tell whether the source's texts are HH-RLHF's transcripts.
        longest: tokens, with a tokenizer, beyond which a row is dropped.
        tokenizer: escapes control tokens, counts tokens, renders conversations into texts; None does none of it.
        forbidden: texts that a row must not share a run of words with.

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
    ):
        self.longest = longest
        self.source, self.phase, self.tokenizer, self.forbidden = source, phase, tokenizer, forbidden
        self.fields = source.fields | ({"text": source.text_field} if source.text_field else {})
        renamed = self._known(columns)
        filled = self._known(columns if filled is None else filled)
        self.schema = self._schema(renamed, filled, columns, where)
        self.fits = schemas.fitting_schemas(filled, phase) or schemas.fitting_schemas(renamed, phase)
        self.fields = schemas.spellings(renamed, self.schema) | self.fields
        known = {*renamed, *self.fields}
        self.extras = self._extras(known, where)
        self._check_tokenizer(where)
        self._read = self._read_keys()
        named = (row | {name: value_at(row, path) for name, path in self.fields.items()} for row in sample)
        self.transcripts = source.schema_ == HH or holds_transcripts(named)

    @property
    def features(self) -> Features:
        """Of the rows that it gives: the phase's columns, those passed through, and `FACTS`."""
        own = COLUMNS[PHASES[self.phase][0]] | {"source": Value("string")}
        return Features(own | {name: Json() for name in self.extras} | FACTS)

    def pairs(self, parts: Iterable[Iterable[Row]]) -> Pairs | None:
        """Which of all rows of the source become pairs, if it has KTO's rows; `parts` as of `Pairs`."""
        return Pairs(parts, self._labelled) if self.schema == "kto" else None

    def is_contaminated(self, traced: Traced) -> bool:
        """Whether a row shares a run of words with an evaluation set."""
        return self.forbidden is not None and self.forbidden.overlap(schemas.plain_text(traced.row))

    def refuse_other_schema(self, traced: Traced, where: str) -> None:
        """Stop at a row of another schema, which dropping would lose; unless the mixture file sets `schema`.

        Raises:
            MixtureError: it is one.
        """
        if traced.other_schema and self.source.schema_ is None:
            raise MixtureError(
                f"{where}: a row of schema {traced.other_schema!r} in datasets.{self.source.name}, whose first row is "
                f"of schema {self.schema!r}: split the file, or set schema, which drops the others"
            )

    def trace(self, raws: Iterable[Row], place: Callable[[int], str] | None = None) -> list[Traced]:
        """Take rows through convert, validate, escape, count and filter; a batch at a time, as tokenizers like it.

        Args:
            place: where a row stands, by its index, for messages.

        Raises:
            MixtureError: a filter failed; the row is named.
        """
        traced = [self._converted(raw) for raw in raws]
        if self.tokenizer is not None:
            self._count_tokens(traced)
        for index, row in enumerate(traced):
            if row.reason is None:
                try:
                    row.reason = self._too_long(row) or self._filtered(row)
                except MixtureError as error:
                    where = f"{place(index)} (datasets.{self.source.name}): " if place else ""
                    raise MixtureError(f"{where}{error}") from error
        return traced

    def _known(self, columns: list[str]) -> list[str]:
        """The columns with those that `fields` finds in them."""
        return sorted({*columns, *self._mapped(columns)})

    def _mapped(self, columns: list[str]) -> list[str]:
        return [name for name, path in self.fields.items() if path in columns or path.split(".")[0] in columns]

    def _schema(self, renamed: list[str], filled: list[str], columns: list[str], where: str) -> str:
        wanted, usable = PHASES[self.phase]
        # A table has the same columns in every row, some of them always null.
        found = schemas.detect_schema(filled, self.phase) or schemas.detect_schema(renamed, self.phase)
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
        if taken := {*COLUMNS[PHASES[self.phase][0]], "source", *FACTS} & set(wanted):
            raise MixtureError(
                f"{where}: datasets.{self.source.name}.keep_columns: {', '.join(sorted(taken))} is the mixture's own"
            )
        return wanted

    def _check_tokenizer(self, where: str) -> None:
        told = f"{where}: datasets.{self.source.name}:"
        if self.tokenizer is None and self.flattens:
            raise MixtureError(
                f"{told} {self.schema} rows in phase {self.phase} are written by the chat template: give a tokenizer"
            )
        if self.tokenizer is None and any(rule.needs_tokenizer for rule in self.source.filters):
            raise MixtureError(f"{told} a length filter in tokens needs a tokenizer: give one")
        if self.tokenizer is not None and self._renders and not self.tokenizer.chat_template:
            raise MixtureError(f"{told} conversations, but the tokenizer has no chat template to write them")

    @cached_property
    def _renders(self) -> bool:
        return SCHEMAS[self.schema].kind != "text"

    @cached_property
    def flattens(self) -> bool:
        return self._renders and PHASES[self.phase][0] == "text"

    def _read_keys(self) -> set[str]:
        """The keys of a row that somebody reads: the schema, a filter, or who asked to keep them."""
        filtered = (getattr(rule, "field", None) for rule in self.source.filters)
        paths = [*self.fields.values(), *(field for field in filtered if isinstance(field, str))]
        return {*schemas.read_keys(self.schema), *self.extras, *paths, *(path.split(".")[0] for path in paths)}

    def _labelled(self, raw: Row) -> Labelled | None:
        try:
            return schemas.labelled(self._renamed(raw))
        except _ROW_FAULTS:
            return None  # which is told when it is converted

    def _converted(self, raw: Row) -> Traced:
        traced = Traced(raw)
        try:
            row = self._renamed(raw)
            traced.unread = tuple(schemas.unread_keys(row, self._read))
            schemas.refuse_left_out(row, self.schema, self.phase)
            schema = SCHEMAS[self.schema]
            traced.row = schemas.to_phase(schema.convert(row), schema.kind, self.phase)
            traced.untrained = sum(turn.get("train") is False for turn in traced.row.get("messages", ()))
            extras = {name: _storable(row.get(name)) for name in self.extras}
            traced.content = _checked_content(traced.row, extras)
            traced.trained, traced.escaped = traced.row, 0
            if self.tokenizer is not None:
                traced.trained, traced.escaped = escape_control_tokens(traced.row, self.tokenizer)
                traced.trained, traced.moved = self._printable(traced.trained)
                traced.texts = self._texts(traced.trained)
            if self.flattens:
                traced.trained = {"text": traced.texts[0], "untrained": self._untrained(traced)}
            traced.trained = traced.trained | extras
        except LeftOut as error:
            traced.row, traced.reason = None, str(error)
        except RowError as error:
            traced.row, traced.reason, traced.unusable = None, str(error), True
            traced.other_schema = self._other_schema(raw)
        except MixtureError:
            raise
        except _ROW_FAULTS as error:
            told = "nested too deeply" if isinstance(error, RecursionError) else _fault(error)
            traced.row, traced.reason, traced.unusable = None, told, True
        return traced

    def _untrained(self, traced: Traced) -> list[list[int]] | None:
        """Where in the text the turns are that are not trained; None where there are none."""
        if not traced.untrained:
            return None
        messages, tools = traced.trained["messages"], decode_tools(traced.trained.get("tools"))
        try:
            return untrained_spans(self.tokenizer, messages, tools)
        except InputError as error:
            raise RowError(str(error)) from error

    def _renamed(self, raw: Row) -> Row:
        """The row under its schema's names.

        Raises:
            RowError: it has none of the schema's columns.
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
        """The schema of a row that lacks its source's, unless the first row fitted it as well."""
        filled = self._known([name for name, value in raw.items() if value is not None])
        if not schemas.missing_columns(filled, self.schema):
            return None
        return next((name for name in schemas.fitting_schemas(filled, self.phase) if name not in self.fits), None)

    def _printable(self, row: Row) -> tuple[Row, int]:
        """A row of which the chat template prints everything, and how often reasoning went into the content for that.

        Raises:
            RowError: it leaves out something else.
        """
        if "text" in row:
            return row, 0
        tools = decode_tools(row.get("tools"))
        before, printed = row.get("prompt") or [], dict(row)
        if sides := [name for name in ("messages", "chosen", "rejected") if name in row]:
            for side in sides:
                turns = self._printable_turns(before + row[side], tools)
                printed |= {side: turns[len(before) :]} | ({"prompt": turns[: len(before)]} if before else {})
        else:
            printed["prompt"] = self._printable_turns(before, tools)
        columns = [name for name in ("prompt", *sides) if name in row]
        moved = [new is not old for name in columns for new, old in zip(printed[name], row[name], strict=True)]
        return printed, sum(moved)

    def _printable_turns(self, turns: list[Row], tools: list | None) -> list[Row]:
        if not (missing := self._missing(turns, tools)):
            return turns
        thinkers = {turn for turn, field in missing if field == "reasoning_content"}
        reasoning = {turn for turn in thinkers if turns[turn]["role"] == "assistant"}
        turns = [reasoning_in_content(turn) if at in reasoning else turn for at, turn in enumerate(turns)]
        if missing := self._missing(turns, tools):
            at, field = missing[0]
            what = field if field == "tools" else f"the {turns[at]['role']}'s {field}"
            raise RowError(f"the chat template leaves out {what}")
        return turns

    def _missing(self, turns: list[Row], tools: list | None) -> list[tuple[int, str]]:
        """What is printed neither now nor, where the trainer takes another template, in training."""
        missing = self._printed.missing(turns, tools)
        return missing and self._printed_in_training.missing(turns, tools)

    @cached_property
    def _printed(self) -> PrintedFields:
        return PrintedFields(self.tokenizer)

    @cached_property
    def _printed_in_training(self) -> PrintedFields:
        if self.phase not in ("sft", "distill"):
            return self._printed
        try:
            return PrintedFields(with_training_template(self.tokenizer))
        except ChatTemplateError:  # which the recipe will tell
            return self._printed

    def _texts(self, row: Row) -> tuple[str, ...]:
        if "text" in row:
            return (row["text"],)
        tools = decode_tools(row.get("tools"))
        if "messages" in row:
            return (self._render(row["messages"], tools),)
        if "chosen" in row:
            return tuple(self._render(row["prompt"] + row[side], tools) for side in ("chosen", "rejected"))
        return (self._render(row["prompt"], tools, add_generation_prompt=True),)

    def _render(self, messages: list[Row], tools: list | None, **options: Any) -> str:
        try:
            text = self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)
        except Exception as error:  # a template may refuse a row in any way
            raise RowError(f"the chat template refuses it: {type(error).__name__}") from error
        turn = first_unprinted(text, messages)
        if turn is not None and self._printed_in_training is not self._printed:
            trainers = self._printed_in_training.tokenizer
            turn = first_unprinted(trainers.apply_chat_template(messages, tools=tools, tokenize=False), messages)
        if turn is not None:
            raise RowError(f"the chat template leaves out a part of the {messages[turn]['role']}'s content")
        return text

    def _count_tokens(self, traced: list[Traced]) -> None:
        texts = [(row, text) for row in traced for text in row.texts]
        if not texts:
            return
        plain = SCHEMAS[self.schema].kind == "text"
        ids = self.tokenizer([text for _, text in texts], add_special_tokens=plain, verbose=False)["input_ids"]
        for (row, _), tokens in zip(texts, ids, strict=True):
            # The trainer ends a plain text with the end-of-text token. Of a pair the longer side meets the limits.
            row.tokens = max(row.tokens or 0, len(tokens) + plain)

    def _too_long(self, traced: Traced) -> str | None:
        over = self.longest is not None and traced.tokens is not None and traced.tokens > self.longest
        return too_long(self.longest) if over else None

    def _filtered(self, traced: Traced) -> str | None:
        if not self.source.filters:
            return None
        candidate = Candidate(traced.row, traced.raw, schemas.plain_text(traced.row), traced.tokens)
        reasons = (rule.reason(candidate) for rule in self.source.filters)
        return next((reason for reason in reasons if reason), None)

    def has(self, name: str, raw: Row) -> bool:
        """Whether a row has a column, under its own name or one that `fields` gives it."""
        return name in raw or (name in self.fields and value_at(raw, self.fields[name]) is not None)

    def with_facts(self, traced: Traced) -> Row:
        """A row's columns and `FACTS`; of a row that is dropped only why, and its tokens."""
        if traced.reason is not None:
            unread = _listed(traced.unread)
            facts = {"_reason": traced.reason, "_unusable": traced.unusable, "_unread": unread}
            return facts | {"_tokens": traced.tokens}
        extras = {name: traced.trained[name] for name in self.extras}
        key = _hash(_serialised(traced.row | extras) if self.phase == "rlaif" else traced.content)
        # What a prompt's other answers teach must not be asked in the validation split.
        group = _hash(_serialised(traced.row["prompt"])) if "prompt" in traced.row else key
        return traced.trained | {
            # Encoded here, because `Json` takes a text that looks like JSON, such as "3", for what it looks like.
            **{name: json.dumps(value, ensure_ascii=False) for name, value in extras.items()},
            "source": self.source.name,
            "_unusable": False,
            "_key": key,
            "_group": group,
            "_tokens": traced.tokens,
            "_escaped": traced.escaped,
            "_moved": traced.moved,
            "_contaminated": self.is_contaminated(traced),
            "_untrained": traced.untrained,
            "_unread": _listed(traced.unread),
        }


def too_long(longest: int) -> str:
    """The reason that rows of more tokens are dropped for."""
    return f"longer than {longest} tokens"


def _listed(keys: tuple[str, ...]) -> str | None:
    return "\n".join(keys).encode(errors="backslashreplace").decode() or None


def _fault(error: Exception) -> str:
    """Why a row could not be converted, without anything of the row."""
    return f"cannot be converted ({type(error).__name__})"


def _checked_content(row: Row, extras: Row) -> bytes:
    """The row serialised.

    Raises:
        RowError: it could be converted and still not be stored or trained on.
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
        except (TypeError, ValueError):  # such as a date in Parquet; or half of a surrogate pair
            raise RowError(f"column {name!r} is nothing that JSON can hold") from None
    return content


def _storable(value: Any) -> Any:
    """A value with the integers that `datasets` cannot read back, those of more than 64 bits, as text."""
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
