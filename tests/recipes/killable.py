"""Recipes in processes that can be killed: forked from a server that has imported them once, which takes seconds."""

import multiprocessing
import os
import runpy
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("minimind_trl.recipe.online", "minimind_trl.recipe.distillation", "minimind_trl.trainers.ppo_trainer"),
        *("minimind_trl.trainers.spo_trainer", "tests.recipes.own_rewards"),
    ]
)


def start(recipe: str, options: list[str], output: Path) -> BaseProcess:
    """Start a recipe, in the current folder, with all that it prints at the end of a file."""
    process = _CONTEXT.Process(target=_run, args=(recipe, options, output))
    process.start()
    return process


def _run(recipe: str, options: list[str], output: Path) -> None:
    with output.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.argv = [f"recipes/{recipe}.py", *options]
    runpy.run_path(sys.argv[0], run_name="__main__")
