"""Names of models and tokenizers: a local folder, or a repository of the Hub; told apart before either is read."""

import os
from functools import cache
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import httpx, validate_repo_id

from ..errors import InputError

_SECONDS = 5  # to wait for the Hub; the libraries behind `from_pretrained` wait and try again for minutes


def check_name(name: str | os.PathLike, option: str = "", cache_dir: str | None = None) -> None:
    """Refuse a name that nothing can be loaded from, within seconds.

    A name that has a path's form is never looked up on the Hub. Where the Hub cannot be reached, a repository is taken
    from the cache, and this process stays offline from then on.

    Args:
        name: a local path, or `owner/name` on the Hub.
        option: what the message begins with, such as `--from_weight`.
        cache_dir: of the Hub's files; by default huggingface_hub's.

    Raises:
        InputError: no such path, no possible name, no such repository, or neither reachable nor cached.
    """
    text = os.fspath(name)
    if not text or Path(text).exists():  # an empty name is refused by the caller
        return
    shown = f"{option} {text}".strip()
    if has_path_form(text):
        raise InputError(f"{shown}: no such file or directory")
    if problem := _hub_problem(text, cache_dir):
        raise InputError(f"{shown}: no such folder here, and {problem}")


def has_path_form(name: str) -> bool:
    """Whether a name means a file or folder: only `name` and `owner/name` can be on the Hub.

    `runs/sft` where `runs` is a folder counts as a path as well.
    """
    path = Path(name)
    if path.is_absolute() or name.startswith((".", "~")) or name.endswith("/") or "\\" in name:
        return True
    return len(path.parts) > 2 or (len(path.parts) == 2 and path.parent.is_dir())


@cache
def _hub_problem(repo: str, cache_dir: str | None) -> str | None:
    try:
        validate_repo_id(repo)
    except HFValidationError:
        return "no model of the Hub can have this name"
    if constants.is_offline_mode():
        is_cached = _is_cached(repo, cache_dir)
        return None if is_cached else "it is not in the cache (HF_HUB_OFFLINE is set); load it online once"
    try:
        HfApi().model_info(repo, timeout=_SECONDS)
    except GatedRepoError:
        return f"on the Hub it is gated: ask for access at {constants.ENDPOINT}/{repo}, then `hf auth login`"
    except RepositoryNotFoundError:
        return "no such model on the Hub (or it is private: log in with `hf auth login` or set HF_TOKEN)"
    except HfHubHTTPError as error:
        return f"the Hub answers {error.response.status_code} when asked for it"
    except (httpx.HTTPError, OSError) as error:  # never its text, which may quote the header that holds the token
        if not _is_cached(repo, cache_dir):
            return f"the Hub ({constants.ENDPOINT}) cannot be reached ({type(error).__name__}); give a local folder"
        constants.HF_HUB_OFFLINE = True  # or every file that is not cached would be asked for again and again
    return None


def _is_cached(repo: str, cache_dir: str | None) -> bool:
    try:
        return bool(snapshot_download(repo, cache_dir=cache_dir, local_files_only=True))
    except (OSError, ValueError):
        return False
