"""The mixture file: what a `data_configs/*.yaml` may say, checked as a whole before anything is read."""

import difflib
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import InputError

Phase = Literal["pretrain", "midtrain", "sft", "distill", "dpo", "reward", "rlaif"]


class MixtureError(InputError):
    """A mixture file, or the data that it names, cannot be used as it is."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Metadata(_Strict):
    phase: Phase
    description: str = ""
    version: str = ""
    max_seq_length: Annotated[int, Field(gt=0)] | None = None
    """Tokens per row; the recipe's `max_length` where the command line sets none."""


class DataFiles(_Strict):
    train: str
    validation: str | None = None
    """Rows held out for good. Without it, `validation.ratio` of the training rows are held out."""


class Source(_Strict):
    name: str
    source: str
    """A folder, or a single `.jsonl` file, relative to the mixture file."""
    format: Literal["jsonl"] = "jsonl"
    data_files: DataFiles | None = None
    mix_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the mixture's training rows."""


class Validation(_Strict):
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.05
    seed: int = 42


class Mixture(_Strict):
    metadata: Metadata
    datasets: Annotated[list[Source], Field(min_length=1)]
    validation: Validation = Validation()

    @model_validator(mode="after")
    def _check_sources(self):
        names = [source.name for source in self.datasets]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"datasets: the name {', '.join(twice)} is used twice")
        total = sum(source.mix_ratio for source in self.datasets)
        if abs(total - 1) > 1e-3:
            proposal = ", ".join(f"{source.name}: {source.mix_ratio / total:.4g}" for source in self.datasets)
            raise ValueError(f"datasets: mix_ratio sums to {total:.4g}, not 1; normalised values: {proposal}")
        return self


def load_mixture(path: str | Path) -> Mixture:
    """Read and check a mixture file.

    Raises:
        MixtureError: no such file, not YAML, or invalid; every problem is listed with its field's path.
    """
    path = Path(path)
    if not path.is_file():
        raise MixtureError(f"{path}: no such mixture file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MixtureError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise MixtureError(f"{path}: a mixture file is a mapping with 'metadata' and 'datasets'")
    try:
        return Mixture.model_validate(content)
    except ValidationError as error:
        problems = [_describe(problem) for problem in error.errors()]
        raise MixtureError(f"{path}: {len(problems)} problem(s)\n  " + "\n  ".join(problems)) from error


def _describe(problem: dict) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key{_nearest(problem['loc'])}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message} (found {problem['input']!r})" if where else message


def _nearest(location: tuple) -> str:
    model: type[BaseModel] = Mixture
    for part in location[:-1]:
        if isinstance(part, str):
            model = {
                "metadata": Metadata,
                "datasets": Source,
                "data_files": DataFiles,
                "validation": Validation,
            }[part]
    known = list(model.model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys are {', '.join(known)}"
