"""Row filters of a mixture file: `filters: [{type: length, min_length: 20}, {type: "my_module:my_function"}]`.

Each filter is one class: its fields are the keys that a mixture file may set, its `reason` is the decision.
"""

import copy
import hashlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from .. import patterns
from ..errors import MixtureError, describe, nearest
from ..imports import import_folder, import_function, refuse_foreign
from .quality import code_of, code_quality_score, code_ratio, parses, quality_score

Share = Annotated[float, Field(ge=0, le=1)]
_SHOWN = 80  # characters of a row, in messages


@dataclass
class Candidate:
    """One row, as filters get it."""

    row: dict[str, Any]  # converted, as the trainer would get it
    raw: dict[str, Any]  # as the source has it
    text: str  # all text of the row
    tokens: int | None = None  # length as trained; None without a tokenizer


class Filter(BaseModel):
    """Keeps a row, or returns the short reason under which it is dropped and counted."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: str

    @property
    def needs_tokenizer(self) -> bool:
        """Whether `Candidate.tokens` must be set."""
        return False

    def reason(self, candidate: Candidate) -> str | None:
        """None keeps the row.

        Raises:
            MixtureError: the filter cannot be applied to it.
        """
        raise NotImplementedError

    def reasons_of_texts(self, texts: list[str]) -> list[str | None] | None:
        """`reason` of many rows of plain text, in less time; None where it needs more than the texts."""
        return None


class LengthFilter(Filter):
    """Keeps texts of `min_length` to `max_length` characters or tokens, both included."""

    type: Literal["length"] = "length"
    min_length: Annotated[int, Field(ge=0)] | None = None
    max_length: Annotated[int, Field(ge=1)] | None = None
    unit: Literal["characters", "tokens"] = "characters"

    @model_validator(mode="after")
    def _check_bounds(self):
        if self.min_length is None and self.max_length is None:
            raise ValueError("set min_length, max_length or both")
        if None not in (self.min_length, self.max_length) and self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} is over max_length {self.max_length}")
        return self

    @property
    def needs_tokenizer(self) -> bool:
        return self.unit == "tokens"

    def reason(self, candidate: Candidate) -> str | None:
        length = candidate.tokens if self.needs_tokenizer else len(candidate.text)
        if length is None:
            raise MixtureError("a length filter in tokens needs a tokenizer")
        return self._reason(length)

    def reasons_of_texts(self, texts: list[str]) -> list[str | None] | None:
        return None if self.needs_tokenizer else [self._reason(len(text)) for text in texts]

    def _reason(self, length: int) -> str | None:
        if self.min_length is not None and length < self.min_length:
            return f"length: under {self.min_length} {self.unit}"
        if self.max_length is not None and length > self.max_length:
            return f"length: over {self.max_length} {self.unit}"
        return None


class QualityFilter(Filter):
    """Keeps texts whose `quality_score` is at least `min_score`."""

    type: Literal["quality"] = "quality"
    min_score: Share = 0.5

    def reason(self, candidate: Candidate) -> str | None:
        if quality_score(candidate.text) < self.min_score:
            return f"quality: score under {self.min_score}"
        return None


class CodeQualityFilter(Filter):
    """Keeps source code whose `code_quality_score` is at least `min_score` and, with `language`, that parses.

    In a text with fenced blocks (a chat) only the blocks count; for `language: python` those marked as Python.
    `min_code_ratio` keeps texts with at least that share of code, whatever their score unless `min_score` is set too.
    """

    type: Literal["code_quality"] = "code_quality"
    min_score: Share | None = None  # default: 0.5; with `min_code_ratio` none
    min_code_ratio: Share | None = None
    language: Literal["python"] | None = None

    def reason(self, candidate: Candidate) -> str | None:
        if self.min_code_ratio is not None and code_ratio(candidate.text) < self.min_code_ratio:
            return f"code_quality: under {self.min_code_ratio:.0%} of it is code"
        least = 0.5 if self.min_score is None and self.min_code_ratio is None else self.min_score or 0.0
        if code_quality_score(candidate.text) < least:
            return f"code_quality: score under {least}"
        if self.language and not all(map(parses, code_of(candidate.text, ("python", "python3", "py")))):
            return f"code_quality: not {self.language}"
        return None


class LanguageFilter(Filter):
    """Keeps texts in one of the languages `keep` (ISO 639-1 codes; also spelt `languages`), as py3langid detects them.

    Texts without a recognisable language (a number, a formula, "Hello": no language has a probability of 0.2) are kept,
    unless `min_confidence` is higher. Source code is sometimes taken for Latin: filter only texts.
    """

    type: Literal["language"] = "language"
    keep: Annotated[list[str], Field(min_length=1)]
    min_confidence: Share = 0.0

    @model_validator(mode="before")
    @classmethod
    def _rename_languages(cls, spec: Any) -> Any:
        if not isinstance(spec, dict) or "languages" not in spec or "keep" in spec:
            return spec  # with both, `languages` is an unknown key
        return {"keep" if key == "languages" else key: value for key, value in spec.items()}

    @field_validator("keep")
    @classmethod
    def _check_codes(cls, keep: list[str]) -> list[str]:
        known = _identifier().labels
        for code in keep:
            if code not in known:
                meant = {"chinese": "zh", "cn": "zh"}.get(code.lower(), code.lower()[:2])  # else "english", "zh-CN"
                hint = nearest(meant, known) or f" (known: {', '.join(known)})"
                raise ValueError(f"unknown language {code!r}{hint}")
        return keep

    def reason(self, candidate: Candidate) -> str | None:
        language, confidence = _identifier().classify(candidate.text[:3000])  # enough to detect it, and fast
        if language not in self.keep and confidence >= 0.2:
            return f"language: {language}"
        if confidence < self.min_confidence:
            return f"language: under {self.min_confidence} sure"
        return None


class RegexFilter(Filter):
    """Keeps or drops rows in which `pattern` is found, in the text or in `field` of the source's row."""

    type: Literal["regex"] = "regex"
    pattern: str
    action: Literal["keep", "drop"] = "drop"
    field: str | None = None

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, pattern: str) -> str:
        patterns.compile_pattern(pattern)
        return pattern

    def reason(self, candidate: Candidate) -> str | None:
        text = candidate.text if self.field is None else value_at(candidate.raw, self.field)
        if not isinstance(text, str):
            return f"regex: no text in {self.field!r}"
        try:
            found = patterns.compile_pattern(self.pattern).search(text, timeout=patterns.SECONDS) is not None
        except TimeoutError:
            raise MixtureError(
                f"filter regex: {self.pattern!r} is not done with this text of {len(text):,} characters after "
                f"{patterns.SECONDS:g} s: it backtracks; repeat no group that fits in several ways, such as (a|aa)+"
            ) from None
        return None if found == (self.action == "keep") else self._dropped

    def reasons_of_texts(self, texts: list[str]) -> list[str | None] | None:
        if self.field is not None or not patterns.is_literal(self.pattern):
            return None
        search, keep, dropped = re.compile(self.pattern).search, self.action == "keep", self._dropped
        return [None if (search(text) is not None) == keep else dropped for text in texts]

    @property
    def _dropped(self) -> str:
        return f"regex: {self.pattern!r} {'not found' if self.action == 'keep' else 'found'}"


class FieldFilter(Filter):
    """Keeps rows whose `field` in the source's row ("a.b" reaches inside objects) is listed, or within a range."""

    type: Literal["field"] = "field"
    field: str
    keep: Annotated[list[Any], Field(min_length=1)] | None = None
    drop: Annotated[list[Any], Field(min_length=1)] | None = None
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _check_choice(self):
        ranged = self.min is not None or self.max is not None
        if [self.keep is not None, self.drop is not None, ranged].count(True) != 1:
            raise ValueError("set exactly one of keep, drop and a range (min, max or both)")
        if None not in (self.min, self.max) and self.min > self.max:
            raise ValueError(f"min {self.min:.12g} is over max {self.max:.12g}")
        return self

    def reason(self, candidate: Candidate) -> str | None:
        value = value_at(candidate.raw, self.field)
        if value is None:  # absent, or Parquet's null for it
            return f"field: no {self.field!r}"
        if listing := self.keep or self.drop:
            # Not `in`: to Python, True is 1.
            listed = any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in listing)
            return None if listed == bool(self.keep) else f"field: {self.field!r} {'' if listed else 'not '}listed"
        if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
            return f"field: {self.field!r} is not a number"
        if self.min is not None and value < self.min:
            return f"field: {self.field!r} under {self.min:.12g}"
        if self.max is not None and value > self.max:
            return f"field: {self.field!r} over {self.max:.12g}"
        return None


class CustomFilter(Filter):
    """`type: "module:function"`, called as `function(row, **other_keys)` with the converted row.

    True keeps the row; False drops it, and so does a text, which is the reason. The module is searched in `sys.path`
    and in the mixture's folder. Loading a mixture imports the modules that it names: read a foreign one first.
    """

    model_config = ConfigDict(extra="allow")

    _folder: Path | None = PrivateAttr(None)  # of the mixture file, where the module may be

    @field_validator("type")
    @classmethod
    def _check_function(cls, name: str, info: ValidationInfo) -> str:
        wanted = "a filter is a function of yours, called as function(row, **other_keys)"
        refuse_foreign(name, "filter", wanted, (info.context or {}).get("folder"))
        return name

    @property
    def _function(self) -> Callable:
        return import_function(self.type, self._folder)  # by name, so that worker processes find it

    @property
    def code(self) -> str:
        """Hash of the function's file, to detect edits; edits of modules that it imports go undetected."""
        file = inspect.getsourcefile(inspect.unwrap(self._function))
        return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else self.type

    @model_validator(mode="after")
    def _check_parameters(self, info: ValidationInfo):
        self._folder = (info.context or {}).get("folder")
        signature = inspect.signature(self._function)
        takes_a_row = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        if not any(parameter.kind in takes_a_row for parameter in signature.parameters.values()):
            raise ValueError(f"{self.type}{signature} takes no row: a filter's first parameter is the row")
        try:
            signature.bind({}, **self.model_extra)
        except TypeError as error:
            known = ", ".join(list(signature.parameters)[1:]) or "none"
            raise ValueError(f"{self.type}: {error} (parameters after the row: {known})") from None
        return self

    def reason(self, candidate: Candidate) -> str | None:
        try:
            with import_folder(self._folder):  # for what the function imports itself
                answer = self._function(copy.deepcopy(candidate.row), **self.model_extra)
        except (Exception, SystemExit) as error:
            raise MixtureError(
                f"filter {self.type} failed: {describe(error)}; for the row {_begin(candidate)}"
            ) from error
        if isinstance(answer, bool):
            return None if answer else f"{self.type}: dropped"
        if isinstance(answer, str) and answer:
            return f"{self.type}: {answer}"
        raise MixtureError(
            f"filter {self.type} returned {answer!r}, not True, False or a reason to drop the row; for the row "
            f"{_begin(candidate)}"
        )


def _begin(candidate: Candidate) -> str:
    """The beginning of a row, for messages."""
    text = candidate.text
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...")


BUILTIN_FILTERS: dict[str, type[Filter]] = {
    "length": LengthFilter,
    "quality": QualityFilter,
    "code_quality": CodeQualityFilter,
    "language": LanguageFilter,
    "regex": RegexFilter,
    "field": FieldFilter,
}


def _check_type(spec: Any) -> Any:
    if isinstance(spec, Filter):
        return spec
    if not isinstance(spec, dict):
        raise ValueError("a filter is a mapping such as {type: length, min_length: 20}")
    name = spec.get("type")
    if isinstance(name, str) and (":" in name or name in BUILTIN_FILTERS):
        return spec
    known = f" (known: {', '.join(BUILTIN_FILTERS)}, module:function)"
    named = (
        f"unknown filter {name!r}{nearest(str(name), BUILTIN_FILTERS)}" if "type" in spec else "a filter needs a type"
    )
    # Raised by hand: a tagged union would report it at the filter instead of its type.
    problem = InitErrorDetails(type=PydanticCustomError("unknown_filter", named + known), loc=("type",), input=name)
    raise ValidationError.from_exception_data("Filter", [problem])


def _tag(spec: Any) -> str:
    name = spec["type"] if isinstance(spec, dict) else spec.type
    return "custom" if ":" in name else name


_TAGGED = [Annotated[rule, Tag(name)] for name, rule in (BUILTIN_FILTERS | {"custom": CustomFilter}).items()]
FilterSpec = Annotated[Union[*_TAGGED], Discriminator(_tag), BeforeValidator(_check_type)]
"""A filter of a mixture file. Its errors are at `(i, type or "custom", key)`, those of the type at `(i, "type")`."""


@cache
def _identifier():
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise ValueError("the language filter needs py3langid: pip install minimind-trl[data]") from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    # Without the three-letter dialects: the full model takes short Chinese texts for Cantonese.
    identifier.set_languages([code for code in identifier.labels if len(code) == 2])
    return identifier


def value_at(row: Any, path: str) -> Any:
    """The value of a column, or at a dotted path; None where there is none."""
    if path in row:
        return row[path]
    for key in path.split("."):
        row = row.get(key) if isinstance(row, dict) else None
    return row
