"""Data sets of the Hugging Face Hub, one split at one revision; every failure becomes a one-line message."""

import ast
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import has_magic
from pathlib import Path
from typing import TypeVar

import datasets
from datasets import Dataset, DatasetBuilder, IterableDataset
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi, HfFileSystem, constants, get_token, scan_cache_dir
from huggingface_hub.errors import (
    CacheNotFound,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from ..errors import InputError, MixtureError, nearest

Patterns = str | list[str] | dict[str, str | list[str]]
Result = TypeVar("Result")

TRIES = 5
BASE_DELAY = 1.0
"""Seconds before the second try; each further wait is twice as long, or what the Hub's Retry-After says."""
LONGEST_DELAY = 60.0

_SHA = re.compile("[0-9a-f]{40}")
_EXPECTED = (OSError, ValueError, RuntimeError, EntryNotFoundError, DatasetsError, httpx.HTTPError)
_log = logging.getLogger(__name__)


class _HubTrouble(ConnectionError):
    """A request of `datasets` failed, and it fell back to its cache of any revision of the data set."""


def resolve_revision(repo: str, revision: str | None = None) -> str:
    """The commit of a branch, a tag or (by default) the main branch; offline, the commit that was last loaded.

    Raises:
        MixtureError: no such data set or revision, no access to it, the Hub cannot be reached, or not cached (offline).
    """
    if repo.count("/") != 1:
        raise MixtureError(f"{repo!r}: a data set of the Hub is named owner/name")
    if _is_offline():
        return _cached_revision(repo, revision)
    if _SHA.fullmatch(revision or ""):
        return revision
    with hub_errors(repo, revision):
        return _persist(lambda: HfApi().dataset_info(repo, revision=revision).sha)


def load_hub_split(
    repo: str,
    *,
    split: str,
    config_name: str | None = None,
    data_dir: str | None = None,
    data_files: Patterns | None = None,
    revision: str | None = None,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """Load one split, pinned to the commit that `revision` stands for.

    The files of the config are downloaded into huggingface_hub's cache and loaded from there, online and offline.

    Args:
        repo: "owner/name".
        split: a split, or several or a part of one in the notation of `datasets`.
        config_name: a config of the data set; by default its default one.
        data_dir: the folder in the repo to take the files from.
        data_files: paths or patterns in the repo, or such for each split; without splits, all of them are "train".
        revision: a branch, a tag or a commit; the main branch by default.
        streaming: read while iterating, without downloading first. Wrap the iteration in `hub_errors`.

    Raises:
        MixtureError: the Hub has no such data set, revision, config, split or files, refuses access or cannot be
            reached, or the mode is offline and nothing is cached.
    """
    sha = resolve_revision(repo, revision)
    options = {"name": config_name, "data_dir": data_dir, "data_files": data_files}
    with hub_errors(repo, revision):
        if not _is_offline():
            list_files(repo, sha, _patterns(data_files) or ["**"] * bool(data_dir), data_dir)  # they must be there
            builder = _persist(lambda: _remote_builder(repo, sha, options))
            _check_split(repo, split, list(builder.config.data_files))
            if streaming:
                return _persist(lambda: builder.as_streaming_dataset(split=split))
            urls = (url for files in builder.config.data_files.values() for url in files)
            for name in filter(None, (url.partition(f"{repo}@{sha}/")[2] for url in urls)):
                download_file(repo, name, sha)
            remember_revision(repo, revision, sha)
        try:
            builder = _builder(repo, str(_snapshot(repo, sha)), options)
        except (FileNotFoundError, DatasetsError):
            if not _is_offline():
                raise
            told = f"this config (or data_dir, data_files) is not cached at {sha}; load it online once"
            raise MixtureError(f"{repo}: offline, and {told}") from None
        _check_split(repo, split, list(builder.config.data_files))
        if streaming:
            return builder.as_streaming_dataset(split=split)
        builder.download_and_prepare()
        return builder.as_dataset(split=split)


def remember_revision(repo: str, revision: str | None, sha: str) -> None:
    """Remember for offline use the commit of a branch or tag whose data was loaded."""
    if revision != sha:
        # Where huggingface_hub itself notes it.
        ref = _snapshot(repo, sha).parents[1] / "refs" / (revision or constants.DEFAULT_REVISION)
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(sha)


@contextmanager
def hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Convert errors of `datasets` and the Hub to a one-line MixtureError; also for the iteration over a stream."""
    try:
        yield
    except InputError:
        raise
    except _EXPECTED as error:
        raise MixtureError(f"{repo}: {_explain(error, repo, revision)}") from error


def _persist(call: Callable[[], Result]) -> Result:
    """Retry with growing delays while the Hub cannot be reached, is overloaded or drops the connection."""
    for number in range(TRIES - 1):
        try:
            return call()
        except _EXPECTED as error:
            if not _is_transient(error):
                raise
            delay = _delay(error, number)
            _log.warning("The Hub: %s; next try in %g s", _symptom(error), delay)
            time.sleep(delay)
    return call()


def _remote_builder(repo: str, sha: str, options: dict) -> DatasetBuilder:
    for card in ("README.md", ".huggingface.yaml"):
        # Cached first: if the Hub fails on one of these, `datasets` assumes that the data set has no configs.
        try:
            HfApi().hf_hub_download(repo, card, repo_type="dataset", revision=sha)
        except RemoteEntryNotFoundError:
            continue
    builder = _builder(repo, f"hf://datasets/{repo}", options, revision=sha)  # a bare name could be a local folder
    if not builder.config.data_files:  # a builder of what `datasets` has in its cache
        raise _HubTrouble
    return builder


def _builder(repo: str, path: str, options: dict, **more: str) -> DatasetBuilder:
    try:
        return datasets.load_dataset_builder(path, **options, **more)
    except ValueError as error:
        if "find cache for" in str(error):
            raise _HubTrouble from None
        known = re.search(r"[Aa]vailable(?: configs)?: (\[.*\])", str(error))
        if known is None:
            raise
        configs, name = ast.literal_eval(known[1]), options["name"]
        if name is None:
            raise MixtureError(f"{repo}: config_name is needed, one of: {_enumerate(configs)}") from None
        raise MixtureError(f"{repo}: no config {name!r}{_choice(name, configs)}") from None


def list_files(repo: str, revision: str, patterns: list[str], data_dir: str | None = None) -> list[str]:
    """Names of files of a data set, at a commit, that match patterns; offline, those that were downloaded.

    Raises:
        MixtureError: a pattern matches nothing, or the Hub cannot be reached.
    """
    if _is_offline():
        snapshot = _snapshot(repo, revision)
        wanted = [_join(data_dir, pattern) for pattern in patterns]
        found = [path.relative_to(snapshot).as_posix() for pattern in wanted for path in sorted(snapshot.glob(pattern))]
        if not found:
            raise MixtureError(f"{repo}: offline, and {', '.join(wanted)} is not cached at {revision}")
        return found
    with hub_errors(repo, revision):
        return [name for pattern in patterns for name in _persist(lambda p=pattern: _glob(repo, revision, data_dir, p))]


def download_file(repo: str, name: str, revision: str) -> Path:
    """Download a file of a data set at a commit, unless it is cached.

    Raises:
        MixtureError: that failed.
    """
    with hub_errors(repo, revision):
        return Path(_persist(lambda: HfApi().hf_hub_download(repo, name, repo_type="dataset", revision=revision)))


def _glob(repo: str, sha: str, data_dir: str | None, pattern: str) -> list[str]:
    files = HfFileSystem(endpoint=datasets.config.HF_ENDPOINT)
    root, wanted = f"datasets/{repo}@{sha}/", _join(data_dir, pattern)
    # A wildcard at the end: for a path without any, `glob` takes every failure for "not there".
    glob = wanted if has_magic(wanted) else re.sub("(.)$", r"[\1]", wanted)
    found = [path for path, entry in files.glob(root + glob, detail=True).items() if entry["type"] == "file"]
    if not found:
        known = [path.removeprefix(root) for path in files.find(root)]
        raise MixtureError(f"{repo}: no file matches {wanted!r}{_choice(wanted, known)}")
    return sorted(path.removeprefix(root) for path in found)


def _join(data_dir: str | None, pattern: str) -> str:
    return "/".join(part.strip("/") for part in (data_dir, pattern) if part)


def _patterns(data_files: Patterns | None) -> list[str]:
    if isinstance(data_files, dict):
        return [pattern for patterns in data_files.values() for pattern in _patterns(patterns)]
    return [data_files] if isinstance(data_files, str) else list(data_files or [])


def _check_split(repo: str, split: str, splits: list[str]):
    for part in split.split("+"):
        name = part.split("[")[0].strip()
        if name not in splits:
            raise MixtureError(f"{repo}: no split {name!r}{_choice(name, splits)}")


def _choice(wanted: str, known: list[str]) -> str:
    return f"{nearest(wanted, known)}; there are: {_enumerate(known)}"


def _enumerate(names: list[str]) -> str:
    return ", ".join(sorted(names)[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none"


def _is_offline() -> bool:
    return datasets.config.HF_HUB_OFFLINE or constants.is_offline_mode()


def _snapshot(repo: str, revision: str | None) -> Path:
    """The folder in huggingface_hub's cache for a revision, by commit or by the name that it was loaded under.

    Raises:
        LocalEntryNotFoundError: nothing of it is cached.
    """
    return Path(HfApi().snapshot_download(repo, repo_type="dataset", revision=revision, local_files_only=True))


def _cached_revision(repo: str, revision: str | None) -> str:
    try:
        return _snapshot(repo, revision).name
    except LocalEntryNotFoundError:
        known = _cached_commits(repo)
    cached = f"only {_enumerate(known)}" if known else "nothing of this data set"
    raise MixtureError(
        f"{repo}: offline, and revision {revision or 'main'!r} is not cached ({cached} is); load it online once"
    )


def _cached_commits(repo: str) -> list[str]:
    try:
        found = [one for one in scan_cache_dir().repos if (one.repo_id, one.repo_type) == (repo, "dataset")]
    except CacheNotFound:
        return []
    return [revision.commit_hash for one in found for revision in one.revisions]


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _status(error: BaseException) -> int | None:
    return next((e.response.status_code for e in _chain(error) if isinstance(e, HfHubHTTPError)), None)


def _is_transient(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    lost = (httpx.TransportError, ConnectionError, TimeoutError, LocalEntryNotFoundError)
    if any(isinstance(e, lost) for e in _chain(error)):
        return True
    # `datasets` and `huggingface_hub` pass on only the text of these two.
    return "LocalEntryNotFoundError" in str(error) or "Consistency check failed" in str(error)


def _delay(error: BaseException, number: int) -> float:
    response = next((e.response for e in _chain(error) if isinstance(e, HfHubHTTPError)), None)
    wanted = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(wanted) if wanted.isdigit() else BASE_DELAY * 2**number, LONGEST_DELAY)


def _symptom(error: BaseException) -> str:
    # Never the text of a transport error, which may quote the header with the token.
    status = _status(error)
    return f"answers {status}" if status else f"cannot be reached ({type(list(_chain(error))[-1]).__name__})"


def _explain(error: BaseException, repo: str, revision: str | None) -> str:
    causes, status = list(_chain(error)), _status(error)
    login = "log in with `hf auth login` or set HF_TOKEN"
    if _is_transient(error):
        tried = f"tried at least {TRIES} times; HF_HUB_OFFLINE=1 uses the cache"
        return f"the Hub ({constants.ENDPOINT}) {_symptom(error)}, {tried}"
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return f"a gated data set: ask for access at {constants.ENDPOINT}/datasets/{repo}, then {login}"
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return f"no revision {revision!r} on the Hub"
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes) or status == 404:
        private = "your token may not read it" if get_token() else f"needs a token: {login}"
        return f"no such data set on the Hub, or it is private and {private}"
    if status in (401, 403):
        return f"the Hub refuses the token that was sent ({status}); {login}"
    text = str(causes[-1]).split("on the Hugging Face Hub either: ")[-1]
    return f"cannot be loaded: {' '.join(text.split())}"
