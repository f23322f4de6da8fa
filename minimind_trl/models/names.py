"""Names of models and tokenizers: decide whether one is a local path or a Hub repository before reading either."""

import os
from functools import cache
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import httpx, validate_repo_id

from ..errors import InputError

_SECONDS = 5  # to wait for the Hub; `from_pretrained` retries for minutes


def check_name(name: str | os.PathLike, option: str = "", cache_dir: str | None = None) -> None:
    """Refuse, within seconds, a name that nothing can be loaded from.

    A name that looks like a path is never looked up on the Hub. If the Hub is unreachable, a cached repository is
    accepted, and this process stays offline from then on.

    Args:
        name: a local path, or `owner/name` on the Hub.
        option: prefix of the message, such as `--from_weight`.
        cache_dir: cache of Hub files; huggingface_hub's by default.

    Raises:
        InputError: no such path, an invalid name, no such repository, or the Hub is unreachable and nothing is cached.
    """
    text = os.fspath(name)
    if not text or Path(text).exists():  # the caller refuses an empty name
        return
    shown = f"{option} {text}".strip()
    if looks_like_path(text):
        raise InputError(f"{shown}: no such file or directory")
    if problem := _hub_problem(text, cache_dir):
        raise InputError(f"{shown}: no such folder here, and {problem}")


def looks_like_path(name: str) -> bool:
    """Whether a name looks like a path: only `name` and `owner/name` can be on the Hub.

    `runs/sft` is a path, too, if the folder `runs` exists.
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
        return "this is not a valid name of a Hub model"
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
    except (httpx.HTTPError, OSError) as error:  # its text may quote the header with the token
        if not _is_cached(repo, cache_dir):
            return f"the Hub ({constants.ENDPOINT}) cannot be reached ({type(error).__name__}); give a local folder"
        constants.HF_HUB_OFFLINE = True  # otherwise every file that is not cached is requested again and again
    return None


def _is_cached(repo: str, cache_dir: str | None) -> bool:
    try:
        return bool(snapshot_download(repo, cache_dir=cache_dir, local_files_only=True))
    except (OSError, ValueError):
        return False
