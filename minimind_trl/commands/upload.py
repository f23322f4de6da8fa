"""Upload a run or a prepared mixture, with a card whose metadata the Hub reads."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import DatasetCard, HfApi, ModelCard, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import httpx, validate_repo_id
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from ..data import LOCK
from ..data.prepared import load_prepared, read_lock
from ..errors import InputError, first_line
from ..models.names import looks_like_path
from ..models.stored import read_object
from ..reports import METRICS, RECIPE
from ..reports.page import REPORT
from ..run.card_metadata import eval_results, hub_datasets
from ..run.services import hub_problem
from .conversion import convert

# What a run's folder is made of. Everything else there (optimizer states, pickled settings, logs) stays at home.
_MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "*.gguf", "*.py", "*.jinja", "Modelfile")
_MODEL_FILES += (CONFIG_NAME, ADAPTER_CONFIG_NAME, "generation_config.json", "certificate.json")
_MODEL_FILES += ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")
# What twin and model have in common.
_RUN_FILES = ("README.md", LOCK, RECIPE, METRICS, REPORT, "curves.png")
_OF_CONFIG = {"ForSequenceClassification": "text-classification"}


def push_model(
    folder: str,
    repo_id: str,
    *,
    twin: bool = False,
    private: bool = False,
    license: str | None = None,
    language: list[str] | None = None,
) -> str:
    """Upload a run's model, tokenizer, card, mixture lock, figures and report.

    Args:
        folder: of a run, a checkpoint, an adapter, or what `convert` wrote.
        repo_id: "user/name"; made if it does not exist.
        twin: upload the stock twin instead of the model with its code files.
        private: make a new repository private.
        license, language: replace what the card says.

    Returns:
        a line that says where it is.

    Raises:
        InputError: there is no model in the folder, or the Hub cannot be reached or refuses.
    """
    path = Path(folder)
    if not any((path / name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME)) and not [*path.glob("*.gguf")]:
        missing = "no such folder" if not path.is_dir() else f"no model there ({CONFIG_NAME} is missing)"
        raise InputError(f"{folder}: {missing}; give the output_dir of a run")
    _check_hub(repo_id)
    with TemporaryDirectory() as temporary:
        staged = Path(temporary) / "model"
        if twin:
            convert(folder, staged, "vllm", certified=False)
        _copy(path, staged, _RUN_FILES if twin else (*_MODEL_FILES, *_RUN_FILES))
        card = _model_card(staged, repo_id)
        if twin:  # loads without code of its own
            card.text = card.text.replace(", trust_remote_code=True", "")
        _complete(card.data, license, language)
        (staged / "README.md").write_text(str(card), encoding="utf-8")
        return _upload(staged, repo_id, "model", private)


def push_dataset(
    folder: str,
    repo_id: str,
    *,
    private: bool = False,
    license: str | None = None,
    language: list[str] | None = None,
) -> str:
    """Upload a prepared mixture as a data set in Parquet, with its lock.

    Arguments and return value as for `push_model`.

    Raises:
        InputError: the folder has no prepared mixture, or it was changed; or the Hub cannot be reached or refuses.
    """
    path = Path(folder)
    lock, data = read_lock(path), load_prepared(path)
    _check_hub(repo_id)
    with TemporaryDirectory() as temporary:
        staged = Path(temporary) / "data"
        _copy(path, staged, [LOCK])
        for split, rows in data.items():  # unlike JSON lines, Parquet stores the type of a column that begins empty
            rows.to_parquet(staged / f"{split}.parquet")
        card = _dataset_card(lock, repo_id)
        _complete(card.data, license, language)
        (staged / "README.md").write_text(str(card), encoding="utf-8")
        return _upload(staged, repo_id, "dataset", private)


def _check_hub(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(f"{repo_id}: not a name of a repository: {first_line(error)}") from error
    if repo_id.count("/") != 1:
        raise InputError(f"{repo_id}: give the owner, too: USER/NAME")
    if problem := hub_problem():
        raise InputError(f"push: {problem}")


def _copy(source: Path, staged: Path, names: Sequence[str]) -> None:
    staged.mkdir(exist_ok=True)
    for name in names:
        for file in source.glob(name):
            shutil.copyfile(file, staged / file.name)


def _upload(staged: Path, repo_id: str, kind: str, private: bool) -> str:
    api = HfApi()
    with _hub_errors(repo_id):
        api.create_repo(repo_id, repo_type=kind, private=private or None, exist_ok=True)
        # Files that are there already are not sent again, so a broken upload goes on where it stopped.
        done = api.upload_folder(
            repo_id=repo_id, folder_path=staged, repo_type=kind, commit_message="Upload with minimind-trl"
        )
    count = sum(1 for _ in staged.iterdir())
    return f"{count} files are at {done.repo_url}"


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """One line for what the Hub refuses, without the error's own text, which may quote the header with the token."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        reasons = {
            401: "the Hub refuses the token: log in with `hf auth login`, or set HF_TOKEN",
            403: "this token may not write there: use one with the right to write, or another name",
            429: "the Hub asks to wait (too many requests): repeat the command later, it continues the upload",
        }
        again = f"the Hub answers {status}: repeat the command, it continues the upload"
        raise InputError(f"{repo_id}: {reasons.get(status, again)}") from error
    except (httpx.HTTPError, OSError) as error:
        raise InputError(
            f"{repo_id}: the Hub ({constants.ENDPOINT}) cannot be reached ({type(error).__name__}): "
            "repeat the command, it continues the upload"
        ) from error


# --- cards ------------------------------------------------------------------------------------------------------------


def _complete(data, license: str | None, language: list[str] | None) -> None:
    if license:
        data.license = license
    if language:
        data.language = language


def _model_card(staged: Path, repo_id: str) -> ModelCard:
    """The run's card, or a short one for a folder without, with what the files beside it say."""
    file = staged / "README.md"
    name = repo_id.partition("/")[2]
    card = ModelCard.load(file) if file.is_file() else ModelCard(f"---\n{{}}\n---\n\n# {name}\n\nA MiniMind model.\n")
    data = card.data
    data.pipeline_tag = data.pipeline_tag or _task(staged)
    data.library_name = data.library_name or ("peft" if (staged / ADAPTER_CONFIG_NAME).is_file() else "transformers")
    data.tags = sorted({*(data.tags or []), "minimind"})
    if isinstance(data.base_model, str) and (Path(data.base_model).exists() or looks_like_path(data.base_model)):
        data.base_model = None  # a path of this machine
    lock, metrics = (_json(staged / name) for name in (LOCK, METRICS))
    if lock:
        data.datasets = data.datasets or hub_datasets(lock) or None
    if lock and metrics and (results := eval_results(metrics, lock, data.pipeline_tag)):
        data.model_name, data.eval_results = name, results
    return card


def _task(staged: Path) -> str:
    config = _json(staged / CONFIG_NAME)
    architecture = next(iter(config.get("architectures") or []), "")
    return next((task for ending, task in _OF_CONFIG.items() if architecture.endswith(ending)), "text-generation")


def _json(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def _dataset_card(lock: dict[str, Any], repo_id: str) -> DatasetCard:
    files = [{"split": split, "path": f"{split}.parquet"} for split in lock["prepared"]]
    metadata = {
        "configs": [{"config_name": "default", "data_files": files}],
        "tags": ["minimind", "minimind-trl", lock["phase"]],
        "task_categories": ["text-generation"],
    }
    if origins := hub_datasets(lock):
        metadata["source_datasets"] = origins
    rows = "\n".join(
        f"| {source['name']} | {source['source']} | {source['train']['rows']:,} | {source['train']['share']:.1%} |"
        for source in lock["sources"]
    )
    text = f"""\
# {repo_id.partition("/")[2]}

{lock["description"].removesuffix(".") or "A mixture"}. Prepared by `minimind-trl data build`, phase {lock["phase"]}.

| source | from | train rows | share |
|---|---|---|---|
{rows}

`{LOCK}` records the revisions of all sources, the seed, and the rows that were dropped and why.

```python
from datasets import load_dataset

data = load_dataset("{repo_id}")
```
"""
    return DatasetCard(f"---\n{json.dumps(metadata, ensure_ascii=False)}\n---\n\n{text}")
