"""The mixture file (`data_configs/**/*.yaml`), checked as a whole before any data is read."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from ..errors import InputError, MixtureError, nearest, one_line
from ..shipped_files import DATA_CONFIGS, find_config, nearest_config
from ..tools import load_tools, tool_schemas
from ..yaml_files import load_yaml
from .filters import BUILTIN_FILTERS, FilterSpec, value_at
from .schemas import PHASES, REWARD_COLUMNS, SCHEMAS, known_columns

Phase = Literal["pretrain", "midtrain", "sft", "distill", "dpo", "reward", "rlaif"]
Format = Literal["huggingface", "jsonl", "json", "csv", "parquet", "arrow"]
HH = "hh"
"""As `schema`: detect the schema by the columns, and read texts in the form of HH-RLHF's transcripts as messages."""
SchemaName = Literal[
    "text", "messages", "conversations", "alpaca", "qa", "prompt_completion", "xlam", "glaive",
    "preference", "rejected_response", "kto", "prompt", "hh",
]  # fmt: skip
_SUFFIXES = {".jsonl": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")

# What may become of rows with more tokens than max_seq_length, by phase; the first is the default.
ON_LONG: dict[str, tuple[str, ...]] = {
    "pretrain": ("chunk", "cut", "drop"),
    "midtrain": ("chunk", "cut", "drop"),
    "sft": ("cut", "drop"),
    "distill": ("cut", "drop"),
    "dpo": ("cut", "drop"),
    "reward": ("drop",),  # as TRL's RewardTrainer does: it scores the last token
    "rlaif": ("keep", "drop"),
}

Where = tuple[str | int, ...]


def _mapping_of(key: str, *kinds: type) -> BeforeValidator:
    """Accepts a bare value in place of a mapping with one key."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, kinds) else value)


def _as_phase(value: Any) -> Any:
    """`pretrain_phase1` is the phase pretrain: a fork of MiniMind numbers the parts of a stage."""
    return re.sub(r"_phase\d+$", "", value) if isinstance(value, str) else value


def _as_validation(value: Any) -> Any:
    if isinstance(value, str) and value.lower() == "none":
        return None
    if value is None or not isinstance(value, dict | BaseModel):
        raise ValueError("give {ratio: 0.05}, or none to train on every row, without a held-out part")
    if isinstance(value, dict) and value.get("ratio") == 0 and value["ratio"] is not False:
        raise ValueError("a ratio of 0 holds nothing out; if that is meant, set validation: none")
    return value


Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Names = Annotated[
    list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value), Field(min_length=1)
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Metadata(_Strict):
    phase: Annotated[Phase, BeforeValidator(_as_phase)]  # a suffix `_phase1`, `_phase2`, ... is ignored
    description: str = ""
    version: Annotated[str, BeforeValidator(str)] = ""
    total_tokens: Annotated[int, Field(gt=0)] | None = None
    """Upper limit on training tokens, applied when a tokenizer is given; `size: {tokens: N}` requires as many."""
    max_seq_length: Annotated[int, Field(gt=0)] | None = None
    """Tokens per row; the default of the recipe's `max_length`."""
    on_long: Literal["cut", "chunk", "drop"] | None = None
    """Longer rows are cut off, split into further rows (texts only), or dropped and counted.
    Default: `chunk` in pretrain and midtrain, `cut` in sft, distill and dpo, `drop` in reward."""

    @model_validator(mode="after")
    def _on_long_fits(self):
        fitting = ON_LONG[self.phase]
        if self.on_long is not None and self.on_long not in fitting:
            why = "only plain text can be chunked" if self.on_long == "chunk" else "such rows are never cut"
            raise ValueError(f"on_long {self.on_long} does not fit phase {self.phase} ({why}): {' or '.join(fitting)}")
        return self

    @property
    def on_long_or_default(self) -> str:
        """`cut`, `chunk` or `drop`; `keep` in rlaif, whose prompts stay whole."""
        return self.on_long or ON_LONG[self.phase][0]


class DataFiles(_Strict):
    train: Names
    validation: Names | None = None  # rows to hold out; by default `validation.ratio` of all


class Origin(_Strict):
    """Where rows come from."""

    name: str
    source: str  # a Hub id, or a file or folder relative to the mixture file
    format: Format | None = None  # default: by the file's suffix; without one, the Hub
    config_name: str | None = None
    data_dir: str | None = None
    data_files: Annotated[DataFiles, _mapping_of("train", str, list)] | None = None
    revision: str | None = None
    splits: Names = ["train"]

    @property
    def format_or_default(self) -> str:
        """The declared format, or the one of the file names."""
        names = [self.source, *(self.data_files.train if self.data_files else [])]
        return self.format or next(filter(None, map(format_of, names)), "huggingface")


class EvalSet(Origin):
    field: str  # the column, or dotted path, whose text must not be trained on
    splits: Names = ["test"]


class Source(Origin):
    mix_ratio: Annotated[float, Field(gt=0, le=1, strict=True)] = 1.0  # share of the mixture's rows
    schema_: Annotated[SchemaName | None, Field(alias="schema")] = None
    fields: dict[str, str] = {}
    """{the schema's name of a column: this source's name of it}; a dotted path reaches inside objects."""
    text_field: str | None = None  # short for `fields: {text: ...}`, for the schema `text`
    keep_columns: list[str] | None = None
    """Columns to keep beside the phase's own. Default: `answer`, `gt` and `skill` in phase rlaif."""
    validation_splits: Names | None = None
    max_samples: Annotated[int, Field(gt=0, strict=True)] | None = None
    max_repetition: Annotated[int, Field(ge=1, strict=True)] = 1
    filters: list[FilterSpec] = []
    tools: Names | None = None
    """Named tools, or module:function, that are offered to the rows that bring none of their own."""
    _tool_schemas: str | None = PrivateAttr(None)

    @property
    def tool_schemas(self) -> str | None:
        """JSON of the schemas of `tools`, as a row's column `tools` holds it."""
        return self._tool_schemas

    @model_validator(mode="after")
    def _load_tools(self, info: ValidationInfo):
        if self.tools:
            try:
                tools = load_tools(self.tools, (info.context or {}).get("folder"), option="tools")
            except InputError as error:
                raise ValueError("; ".join(str(error).splitlines())) from error
            self._tool_schemas = json.dumps(tool_schemas(tools.values()), ensure_ascii=False)
        return self


class Size(_Strict):
    rows: Annotated[int, Field(gt=0)] | None = None
    tokens: Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _one(self):
        if (self.rows is None) == (self.tokens is None):
            raise ValueError("give exactly one of rows and tokens")
        return self


class Dedup(_Strict):
    method: Literal["exact", "near", "none"] = "exact"
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Jaccard similarity of the word 5-grams from which two rows count as near-duplicates."""


class Decontaminate(_Strict):
    against: Annotated[list[EvalSet], Field(min_length=1)]
    ngram: Annotated[int, Field(ge=2)] = 13
    """Consecutive words (characters in scripts without spaces) that no training row may share; 13 as for GPT-3."""


class Validation(_Strict):
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.05
    seed: Seed = 42
    stratified: Annotated[bool, Field(strict=True)] = True
    """Whether the sources keep their shares in the validation split; otherwise it has every held-out row."""


class Mixture(_Strict):
    metadata: Metadata
    datasets: Annotated[list[Source], Field(min_length=1)]
    validation: Annotated[Validation | None, BeforeValidator(_as_validation)] = Validation()
    """None (in YAML: none) trains on every row and holds none out."""
    seed: Seed = 42  # for sampling and shuffling; the split uses `validation.seed`
    size: Size | None = None
    streaming: Annotated[bool, Field(strict=True)] = False
    dedup: Annotated[Dedup, _mapping_of("method", str)] = Dedup()
    decontaminate: Decontaminate | None = None


def format_of(name: str) -> str | None:
    """The format of a file by its suffix, behind that of a compression; None of other files."""
    path = Path(name)
    path = path.with_suffix("") if path.suffix in _COMPRESSIONS else path
    return _SUFFIXES.get(path.suffix)


def load_mixture(path: str | Path) -> Mixture:
    """Read and check a mixture file.

    Args:
        path: the file, or the name of a shipped one, such as `tiny/sft`.

    Raises:
        MixtureError: no such file, not YAML, or invalid; every problem is listed with its line and its field's path.
    """
    path = mixture_file(path)
    node, content = _parsed(path)
    problems = [*_duplicate_keys(node), *_across_fields(content)]
    mixture = None
    try:
        # A filter `module:function` may be in the mixture's folder.
        mixture = Mixture.model_validate(content, context={"folder": path.parent.resolve()})
    except ValidationError as error:
        problems += [_describe(problem) for problem in error.errors()]
    if mixture is None or problems:
        raise MixtureError(_listed(path, node, problems))
    return mixture


def mixture_file(path: str | Path) -> Path:
    """The file of a mixture that is given by its path or, if it is a shipped one, by its name."""
    return Path(find_config(str(path), DATA_CONFIGS))


def _parsed(path: Path) -> tuple[yaml.MappingNode, dict]:
    """The file's YAML, as nodes with their lines and as plain values."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device or a pipe"
        raise MixtureError(f"{path} is {kind}; give a mixture file")
    if not path.is_file():
        hint = nearest(path.name, (file.name for file in path.parent.glob("*.yaml")))
        raise MixtureError(f"{path}: no such mixture file{hint or nearest_config(str(path), DATA_CONFIGS)}")
    try:
        node, content = load_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise MixtureError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise MixtureError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise MixtureError(f"{path}, line {mark.line + 1}: not valid YAML: {one_line(error.problem)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2024-13-01
        raise MixtureError(f"{path}: not valid YAML: {one_line(error)}") from error
    if content is None:
        raise MixtureError(f"{path}: the file is empty; a mixture file is a mapping with 'metadata' and 'datasets'")
    if not isinstance(node, yaml.MappingNode):
        raise MixtureError(f"{path}: a mixture file is a mapping with 'metadata' and 'datasets'")
    return node, content


def _duplicate_keys(node: yaml.Node, where: Where = (), above: tuple = ()) -> Iterator[tuple[Where, str]]:
    """YAML would let the last of two equal keys win silently."""
    if node in above:
        return  # an alias of a node that contains it
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _duplicate_keys(item, (*where, index), (*above, node))
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        name = (*where, str(key.value))
        if name[-1] in seen:
            yield name, f"given twice (first in line {seen[name[-1]]})"
        seen.setdefault(name[-1], key.start_mark.line + 1)
        yield from _duplicate_keys(value, name, (*above, node))


def _across_fields(content: dict) -> Iterator[tuple[Where, str]]:
    """Problems between fields; found in the raw content, so that they are reported together with the fields' own."""
    sources = content.get("datasets")
    sources = dict(enumerate(sources)) if isinstance(sources, list) else {}
    sources = {index: source for index, source in sources.items() if isinstance(source, dict)}
    names: dict[str, int] = {}
    for index, source in sources.items():
        name = str(source.get("name", ""))
        if name and name in names:
            yield ("datasets", index, "name"), f"the name {name!r} is taken by datasets.{names[name]}"
        names.setdefault(name, index)
        yield from _schema_problems(content, index, source)
        if isinstance(content.get("validation"), str) and content["validation"].lower() == "none":
            yield from _held_out_anyway(index, source)
    yield from _ratio_sum(list(sources.values()))
    if content.get("streaming") is True:
        yield from _not_in_a_stream(content, sources)
    wanted, budget = value_at(content, "size.tokens"), value_at(content, "metadata.total_tokens")
    if isinstance(wanted, int) and isinstance(budget, int) and wanted > budget:
        yield ("size", "tokens"), f"{wanted} is over metadata.total_tokens {budget}"


def _held_out_anyway(index: int, source: dict) -> Iterator[tuple[Where, str]]:
    """A source with validation rows in a mixture without a held-out part."""
    problem = "the mixture says validation: none; leave one of the two out"
    if source.get("validation_splits"):
        yield ("datasets", index, "validation_splits"), problem
    if value_at(source, "data_files.validation"):
        yield ("datasets", index, "data_files", "validation"), problem


def _schema_problems(content: dict, index: int, source: dict) -> Iterator[tuple[Where, str]]:
    """A schema that does not fit the phase, and `fields` for columns that no schema of the phase reads."""
    schema, fields = source.get("schema"), source.get("fields")
    phase = _as_phase(value_at(content, "metadata.phase"))
    if not isinstance(phase, str) or phase not in PHASES:
        return
    _, usable = PHASES[phase]
    schema = schema if isinstance(schema, str) and schema in SCHEMAS else None
    if schema and schema not in usable:
        yield ("datasets", index, "schema"), f"{schema!r} does not fit phase {phase}, which takes {', '.join(usable)}"
    kept = source.get("keep_columns") or []
    read = [name for known in ([schema] if schema else usable) for name in known_columns(known)]
    known = [*read, *REWARD_COLUMNS, *(kept if isinstance(kept, list) else [])]
    for name in fields if isinstance(fields, dict) else []:
        if name not in known:
            hint = nearest(str(name), known) or f"; known: {', '.join(dict.fromkeys(read))}"
            yield ("datasets", index, "fields", name), f"no schema of phase {phase} reads {name!r}{hint}"


def _ratio_sum(sources: list[dict]) -> Iterator[tuple[Where, str]]:
    ratios = [source.get("mix_ratio", 1.0) for source in sources]
    if not ratios or not all(isinstance(ratio, int | float) and 0 < ratio <= 1 for ratio in ratios):
        return
    if abs(sum(ratios) - 1) > 1e-3:
        proposal = ", ".join(
            f"{source.get('name')}: {ratio / sum(ratios):.4g}" for source, ratio in zip(sources, ratios, strict=True)
        )
        yield ("datasets",), f"mix_ratio sums to {sum(ratios):.4g}, not 1; normalised values: {proposal}"


def _not_in_a_stream(content: dict, sources: dict[int, dict]) -> Iterator[tuple[Where, str]]:
    """Options that need all rows at once."""
    for path in ("metadata.total_tokens", "size.tokens"):
        if value_at(content, path):
            unknown = "a stream's tokens are not known ahead; set size.rows, or the recipe's max_steps"
            yield tuple(path.split(".")), unknown
    if content.get("dedup") not in (None, "none", {"method": "none"}):
        yield ("dedup",), "a stream does not remember its rows, so that duplicates cannot be found; use none"
    if value_at(content, "validation.stratified") is False:
        yield ("validation", "stratified"), "a stream's sources have their shares in both splits; leave it out"
    for index, source in sources.items():
        if "max_samples" in source:
            yield ("datasets", index, "max_samples"), "a random sample needs the whole source; set size.rows instead"


def _describe(problem: dict) -> tuple[Where, str]:
    where, found = _in_file(problem["loc"]), problem["input"]
    if problem["type"] == "extra_forbidden":
        return where, f"unknown key{nearest(str(where[-1]), _known_keys(problem['loc']), listed=True)}"
    if problem["type"] == "missing":
        return where, "is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "literal_error":
        message += nearest(str(found), re.findall(r"'([^']*)'", problem["ctx"]["expected"]))
    shown = repr(found)
    return where, message if found is None or isinstance(found, dict | list) else f"{message} (found {shown:.80})"


def _in_file(where: Where) -> Where:
    """The location without the type of a filter, which pydantic adds and which is no key of the file."""
    tags = [place for place in range(2, len(where)) if where[place - 2] == "filters" and where[place] != "type"]
    return tuple(part for place, part in enumerate(where) if place not in tags)


def _known_keys(where: Where) -> list[str]:
    """The valid keys of the mapping in which an unknown one was found."""
    models = {
        "metadata": Metadata,
        "datasets": Source,
        "data_files": DataFiles,
        "validation": Validation,
        "size": Size,
        "dedup": Dedup,
        "decontaminate": Decontaminate,
        "against": EvalSet,
        **{name: model for name, model in BUILTIN_FILTERS.items()},
    }
    parents = [part for part in where[:-1] if isinstance(part, str) and part in models]
    model = models[parents[-1]] if parents else Mixture
    return [field.alias or name for name, field in model.model_fields.items()]


def _listed(path: Path, node: yaml.Node, problems: list[tuple[Where, str]]) -> str:
    placed = sorted((_line(node, where), ".".join(map(str, where)), text) for where, text in problems)
    lines = [f"{path}, line {line}: {f'{where}: ' if where else ''}{text}" for line, where, text in placed]
    return "\n".join(dict.fromkeys(lines))


def _line(node: yaml.Node, where: Where) -> int:
    """The line of the deepest part of a location that is in the file."""
    line = node.start_mark.line + 1
    for part in where:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
            if not found:
                continue  # a missing key, or the long form of a short one
            key, node = found[-1]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line
