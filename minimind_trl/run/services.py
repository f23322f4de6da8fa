"""Check before the data is built that a run can reach its trackers and the Hub."""

import importlib.util
import netrc
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx
from transformers.utils import ENV_VARS_TRUE_VALUES

from ..errors import first_line, nearest, one_line

# Packages of trackers with a different name.
_PACKAGES = {"azure_ml": "azureml", "flyte": "flytekit", "kubeflow": None}
_EXTRAS = ("swanlab", "tensorboard", "wandb")  # extras of this package
_WITHOUT_KEY = ("offline", "disabled", "dryrun")


def service_problems(config, use_wandb: bool = False) -> Iterator[str]:
    """One line for each tracker that cannot be used, and for a Hub that cannot be pushed to.

    Args:
        config: transformers' settings.
        use_wandb: also report to WandB.
    """
    names = [*config.report_to, *(["wandb"] if use_wandb and "wandb" not in config.report_to else [])]
    for name in names:
        option = "--use_wandb" if name == "wandb" and use_wandb else f"--report_to {name}"
        if problem := _tracker_problem(name):
            yield f"{option}: {problem}"
    for option in ("push_to_hub", "log_completions_hub_repo", "trackio_space_id"):
        if getattr(config, option, None) and (problem := hub_problem()):
            yield f"--{option}: {problem}"


def folder_problem(folder: str) -> str | None:
    """Why a run cannot write to a folder, which may not exist yet; None if it can. Leaves nothing behind."""
    path = Path(folder).absolute()
    try:
        existing = next(each for each in (path, *path.parents) if each.exists())
    except OSError as error:  # a name that is too long
        return f"{first_line(error)}; give another folder"
    if not existing.is_dir():
        return f"{existing} is a file; give a folder"
    try:
        with TemporaryDirectory(dir=existing):
            return None
    except OSError:
        return f"{existing} cannot be written to; give another folder"


def _tracker_problem(name: str) -> str | None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    if name not in INTEGRATION_TO_CALLBACK:
        return f"no such tracker{nearest(name, INTEGRATION_TO_CALLBACK, listed=True)}"
    package = _PACKAGES.get(name, name)
    if package and not any(map(importlib.util.find_spec, (package, "tensorboardX")[: 1 + (name == "tensorboard")])):
        wanted = f"'minimind-trl[{name}]'" if name in _EXTRAS else package
        return f"its package is not installed: pip install {wanted}"
    if name == "wandb" and not _has_wandb_key():
        return "WandB has no key: run `wandb login`, set WANDB_API_KEY, or WANDB_MODE=offline to keep the figures here"
    return _swanlab_problem() if name == "swanlab" else None


def _swanlab_problem() -> str | None:
    import swanlab

    if not hasattr(swanlab, "has_run"):
        return f"SwanLab {swanlab.__version__} is too old: pip install 'minimind-trl[swanlab]'"
    try:
        settings = swanlab.Settings()  # from the environment and its files; starts nothing
    except ValueError as error:
        return f"SwanLab's settings: {one_line(error)}"
    if settings.mode == "online" and settings.api_key is None:
        return "SwanLab has no key: run `swanlab login`, set SWANLAB_API_KEY, or SWANLAB_MODE=offline to keep it here"
    if settings.mode == "local" and importlib.util.find_spec("swanboard") is None:
        return "SWANLAB_MODE=local needs SwanLab's dashboard: pip install 'swanlab[dashboard]', or SWANLAB_MODE=offline"
    return None


def begin_swanlab(config) -> None:
    """Start SwanLab's run if the figures go there: transformers' callback cannot since SwanLab 0.8.

    It asks `get_run` whether there is a run, which raises an error if there is none.
    """
    if "swanlab" not in config.report_to or config.process_index != 0:
        return
    import swanlab

    if swanlab.has_run():
        return
    project = swanlab.Settings().project.name or config.project  # SWANLAB_PROJECT
    swanlab.init(project=project, name=config.run_name, resume="allow" if config.resume_from_checkpoint else None)


def _has_wandb_key() -> bool:
    """Whether WandB can start without prompting for a key, which it would do when training begins."""
    from wandb.sdk import wandb_setup

    settings = wandb_setup.singleton().settings  # from the environment and its files; starts nothing
    disabled = os.environ.get("WANDB_DISABLED", "").upper() in ENV_VARS_TRUE_VALUES
    if disabled or os.environ.get("WANDB_MODE", settings.mode) in _WITHOUT_KEY:
        return True
    if settings.api_key or any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return True
    files = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    host = urlsplit(settings.base_url).netloc
    return any(_has_entry(Path(file).expanduser(), host) for file in files if file)


def _has_entry(file: Path, host: str) -> bool:
    try:
        return netrc.netrc(file).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def hub_problem() -> str | None:
    """Why nothing can be pushed to the Hub; None if it can. The token is in no message."""
    if constants.is_offline_mode():
        return "needs the Hub, and HF_HUB_OFFLINE is set: unset it, or leave the option out"
    if get_token() is None:
        return "the Hub wants a token: log in with `hf auth login`, or set HF_TOKEN"
    if os.environ.get("RANK", "0") != "0":
        return None  # the first process asks for all
    try:
        HfApi().whoami(cache=True)
    except HfHubHTTPError as error:
        status = error.response.status_code
        refused = "refuses the token: log in with `hf auth login`, or set HF_TOKEN"
        return f"the Hub {refused if status in (401, 403) else f'answers {status}'}"
    except (httpx.HTTPError, OSError) as error:  # not its text, which may quote the header with the token
        return f"the Hub ({constants.ENDPOINT}) cannot be reached ({type(error).__name__})"
    return None
