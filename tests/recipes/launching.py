"""Recipes run as a user runs them, and what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
QUICK = {"max_steps": 20, "warmup_steps": 2, "eval_interval": 10, "eval_batches": 2}


def launch(recipe: str, *options: str, command: list[str] = LAUNCH, environment=None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})}
    return subprocess.run(
        [*command, f"recipes/{recipe}.py", *options], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )


def as_options(**values) -> list[str]:
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def run(recipe: str, config: str, command: list[str] = LAUNCH, environment=None, **values) -> dict:
    options = ["--config", f"recipes/configs/{recipe}/{config}.yaml", *as_options(**values)]
    result = launch(recipe, *options, command=command, environment=environment)
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
