"""`minimind-trl RECIPE [OPTION ...]`: a recipe under `accelerate launch`."""

import argparse
import os
import sys
from pathlib import Path

from ..errors import InputError, one_line
from ..shipped_files import ACCELERATE_CONFIGS, find_config, nearest_config, shipped_root

RECIPES = {
    "pretrain": "train from scratch, on plain text",
    "midtrain": "train a checkpoint further, on plain text",
    "sft": "fine-tune on conversations",
    "distill": "train a smaller student on a teacher's probabilities",
    "dpo": "train the better answer over the worse one",
    "reward": "train a reward model",
    "grpo": "train on rewards, comparing several answers to a prompt",
    "ppo": "train on rewards, comparing an answer with what a critic expected",
    "spo": "train on rewards, comparing an answer with what its prompt used to get",
}
# Options of both accelerate's launcher and the recipes. As in `trl sft`, the recipe gets them.
SHARED = ("debug", "gradient_accumulation_steps", "help")


def add_cli(verbs: argparse._SubParsersAction) -> None:
    """Add a verb for each recipe. Their options are parsed by accelerate and by the recipe."""
    for recipe, what in RECIPES.items():
        verbs.add_parser(recipe, help=what, add_help=False, allow_abbrev=False).set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    return launch_recipe(args.verb, args.options)


def launch_recipe(recipe: str, words: list[str]) -> int:
    """Do what `accelerate launch [LAUNCH OPTIONS] recipes/RECIPE.py [RECIPE OPTIONS]` does.

    Where accelerate would start one process, this process becomes it, so that its signals and its exit code are those
    of the recipe.

    Args:
        words: options of the launcher and of the recipe, in any order. `--accelerate_config` is the launcher's
            `--config_file`, and takes the name of a shipped file too. The recipe's `--config` file may hold options of
            the launcher; the command line wins.

    Returns:
        The exit code of the process that failed first; 0 if none did.

    Raises:
        InputError: an option of the launcher cannot be used.
    """
    from accelerate.commands import launch
    from accelerate.utils import patch_environment
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from ..internals import replaced
    from ..run.config_files import LAUNCHED

    parser = launch.launch_command_parser()
    parser.exit_on_error = False  # its usage would fill two screens
    in_file = options_in_file(recipe, words, parser)
    from_file, _ = split_options([word for words in in_file.values() for word in words], parser)
    for_launcher, for_recipe = split_options(words, parser)
    script = shipped_root() / "recipes" / f"{recipe}.py"
    try:
        args = parser.parse_args([*from_file, *for_launcher, str(script), *for_recipe])
        if args.num_processes is not None and args.num_processes < 1:
            raise InputError(f"--num_processes {args.num_processes}: must be at least 1")
        with replaced(launch, simple_launcher=_become), patch_environment(**{LAUNCHED: ",".join(in_file)}):
            launch.launch_command(args)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except (argparse.ArgumentError, ValueError, ImportError, FileNotFoundError) as error:  # accelerate's own checks
        raise InputError(f"accelerate launch: {one_line(error)}") from error
    return 0


def options_in_file(recipe: str, words: list[str], parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """The launcher's options in the file of the recipe's `--config`, each with its words for the command line.

    Raises:
        InputError: the file cannot be read, or a switch in it is not true or false.
    """
    from ..run.config_files import read_config_file, split_config

    words = split_config(words)
    if _is_pipe(words):  # which can be read once, and the recipe has to
        return {}
    values, _ = read_config_file(words, recipe)
    found = {}
    for name, takes_value in _takes_value(parser).items():
        name = name.removeprefix("--")
        if name not in values:
            continue
        value = values[name]
        if takes_value:
            found[name] = [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
        elif isinstance(value, bool):
            found[name] = [f"--{name}"] * value
        else:
            raise InputError(f"{name}: {value!r} in the file of --config: must be true or false")
    return found


def split_options(words: list[str], parser: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
    """The words for accelerate's launcher, and those for the recipe.

    Args:
        parser: accelerate's.

    Raises:
        InputError: an option of the launcher has no value; or `--accelerate_config` names no file.
    """
    takes_value = _takes_value(parser)
    for_launcher, for_recipe = [], []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, has_value, value = word.partition("=")
        if option not in takes_value:
            for_recipe.append(word)
            continue
        if not has_value and takes_value[option]:
            if not rest:
                raise InputError(f"{option} needs a value")
            value, has_value = rest.pop(0), "="
        if option == "--accelerate_config":
            option, value = "--config_file", _accelerate_config(value)
        for_launcher += [option, value] if has_value else [option]
    return for_launcher, for_recipe


def _takes_value(parser: argparse.ArgumentParser) -> dict[str, bool]:
    """The launcher's options, and whether a value follows."""
    options = {
        option: action.nargs != 0
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and option.lstrip("-") not in SHARED
    }
    return options | {"--accelerate_config": True}


def _is_pipe(words: list[str]) -> bool:
    at = words.index("--config") if "--config" in words[:-1] else None
    return at is not None and Path(words[at + 1]).is_fifo()


def _accelerate_config(name: str) -> str:
    path = find_config(name, ACCELERATE_CONFIGS)
    if not Path(path).is_file():
        raise InputError(f"--accelerate_config {name}: no such file{nearest_config(name, ACCELERATE_CONFIGS)}")
    return path


def _become(args: argparse.Namespace) -> None:
    """Replace this process by the recipe, in the environment that accelerate gives it."""
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    command, environment = prepare_simple_launcher_cmd_env(args)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(command[0], command, environment)
