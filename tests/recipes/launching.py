"""Recipes run as a user runs them, and what they leave."""

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.forking import LIMIT, accelerate_environment
from tests.forking import run as run_forked

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
# Without TRL's SFT term, which the tiny config adds: a mean over the tokens of a batch depends on how a step is cut.
PLAIN_DPO = {"loss_type": "sigmoid", "loss_weights": 1.0}
QUICK = {"max_steps": 20, "warmup_steps": 2, "eval_interval": 10, "eval_batches": 2, "report": False}


def launch(
    recipe: str, *options: str, environment: dict[str, str] | None = None, processes: int = 1
) -> subprocess.CompletedProcess:
    """`accelerate launch recipes/RECIPE.py`, forked; with several processes as torchrun does on a CPU."""
    added = environment_of("cpu") if processes == 1 else {"ACCELERATE_USE_CPU": "true"}
    return run_forked(f"recipes/{recipe}.py", options, processes=processes, environment=added | (environment or {}))


def launch_program(recipe: str, *options: str, command: Sequence[str] = LAUNCH) -> subprocess.CompletedProcess:
    """A recipe by a launcher or an interpreter of its own, for the tests that are about those."""
    words = [*command, f"recipes/{recipe}.py", *options]
    return subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT)


@cache
def environment_of(config: str) -> dict[str, str]:
    return accelerate_environment(REPOSITORY / "accelerate_configs" / f"{config}.yaml")


def launch_in_turn(config: str, cases: list[list[str]], folder: Path, processes: int = 1) -> None:
    """Recipes one after the other, `[recipe, option, ...]` each, in the processes of one launch.

    With more processes than one starting, and the libraries of an engine, take longer than a few steps.
    """
    (folder / "cases.json").write_text(json.dumps(cases))
    environment = environment_of(config) | {"PYTHONPATH": str(REPOSITORY), "DS_ACCELERATOR": "cpu"}
    script, options = "tests/recipes/in_turn.py", [folder / "cases.json"]
    done = run_forked(script, options, processes=processes, environment=environment, limit=3 * LIMIT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-15000:]


def as_options(**values) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def run(recipe: str, config: str, environment=None, processes: int = 1, **values) -> dict:
    options = ["--config", f"recipes/configs/{recipe}/{config}.yaml", *as_options(**values)]
    result = launch(recipe, *options, environment=environment, processes=processes)
    assert result.returncode == 0, result.stderr
    return json.loads((Path(values["output_dir"]) / "metrics.json").read_text())


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


TRAINING_FIGURES = [
    f"train/{name}"
    for name in (
        *("loss", "learning_rate", "grad_norm", "epoch", "global_step", "tokens_per_second", "samples_per_second"),
        *("steps_per_second", "num_input_tokens_seen", "mfu_percent", "eta_minutes"),
    )
]


def offline_wandb(folder: Path) -> dict[str, str]:
    return {"WANDB_MODE": "offline", "WANDB_DIR": str(folder), "WANDB_SILENT": "true"}


def wandb_history(folder: Path) -> dict[str, list[float]]:
    """Every figure of the one offline run in a folder, in the order in which it was logged."""
    [run_folder] = folder.glob("wandb/offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run_folder)]
    inspected = subprocess.run(command, capture_output=True, text=True, check=True)
    seen: dict[str, list[float]] = {}
    for row in map(json.loads, inspected.stdout.splitlines()):
        for name, value in row["history"]["item"].items() if row.get("type") == "history" else ():
            seen.setdefault(name, []).append(value)
    return seen
