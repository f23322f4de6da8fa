"""The YAML file of `--config`."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError
from ..shipped_files import RECIPE_CONFIGS, find_config, nearest_config
from ..yaml_files import load_yaml

LAUNCHED = (
    "MINIMIND_TRL_LAUNCHED"  # variable with the names in the file that `minimind-trl RECIPE` gave to the launcher
)


def read_config_file(options: list[str], recipe: str) -> tuple[dict[str, Any], list[str]]:
    """Take `--config FILE` out of the options.

    Args:
        recipe: the recipe whose shipped configs may be given by name, such as `tiny`.

    Returns:
        The file's values without those that the launcher has, with their paths resolved, and the remaining options.

    Raises:
        InputError: the file is missing, or is not a YAML mapping of options.
    """
    options = split_config(options)
    if "--config" not in options:
        return {}, options
    at = options.index("--config")
    if at + 1 == len(options):
        raise InputError("--config needs a file")
    folders = (f"{RECIPE_CONFIGS}/{recipe}", RECIPE_CONFIGS)
    path = Path(find_config(options[at + 1], *folders))
    if path.exists() and not (path.is_file() or path.is_fifo()):
        raise InputError(f"--config {path} is {'a folder' if path.is_dir() else 'a device'}; give a file")
    try:
        _, values = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = nearest_config(options[at + 1], *folders)
        raise InputError(f"--config {path}: no such file{hint}") from error
    except OSError as error:
        raise InputError(f"--config {path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"--config {path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise InputError(f"--config {path}: must be a mapping of options, each as name: value")
    environment = values.pop("env", None) or {}  # as in TRL's own scripts
    if not isinstance(environment, dict):
        raise InputError(f"--config {path}: env must be a mapping of names to values")
    os.environ.update({str(name): str(value) for name, value in environment.items()})
    launched = os.environ.get(LAUNCHED, "").split(",")
    values = {name: value for name, value in values.items() if name not in launched}
    return found_from(path, values), [*options[:at], *options[at + 2 :]]


def split_config(words: list[str]) -> list[str]:
    """The words with `--config=FILE` as two."""
    return [
        part
        for word in words
        for part in (["--config", word.removeprefix("--config=")] if word.startswith("--config=") else [word])
    ]


# Options that name a file or folder to read, or something on the Hub.
_READ = (
    *("data_config", "from_weight", "tokenizer", "resume", "teacher_model_name_or_path", "critic_model"),
    *("reward_funcs", "chat_template_path", "deepspeed", "fsdp_config", "accelerate_config"),
)
_REWARD_MODEL = re.compile(r"((?:reward_model:|minimind\d:reward_model=)?)([^,]+)(.*)", re.DOTALL)


def found_from(config_file: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Resolve the paths of input files in a config file's values.

    A path is taken relative to the working directory. If nothing is there, it is taken relative to the nearest folder
    above the config file that has it, so that a repository's configs work from any directory. Output paths are always
    relative to the working directory.
    """
    folders = config_file.resolve().parents

    def found(name: str) -> str:
        if not name or Path(name).is_absolute() or Path(name).exists():
            return name
        return next((str(folder / name) for folder in folders if (folder / name).exists()), name)

    def reward(spec: Any) -> Any:
        parts = _REWARD_MODEL.fullmatch(spec) if isinstance(spec, str) else None
        return f"{parts[1]}{found(parts[2])}{parts[3]}" if parts else spec

    def value_of(name: str, value: Any) -> Any:
        if name == "reward_funcs" and isinstance(value, str | list):
            return reward(value) if isinstance(value, str) else [reward(spec) for spec in value]
        return found(value) if name in _READ and isinstance(value, str) else value

    return {name: value_of(name, value) for name, value in values.items()}
