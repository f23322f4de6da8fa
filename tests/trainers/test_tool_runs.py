"""Runs with environments in processes of their own: killed and resumed, and in several processes."""

import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.forking import accelerate_environment, run
from tests.trainers.online import equal


def started(method: str, folder: Path, kill_at: str, processes: int = 1, engine: str | None = None):
    folder.mkdir(exist_ok=True)
    environment = {"DS_ACCELERATOR": "cpu"}
    if engine:
        environment |= accelerate_environment(REPOSITORY / f"accelerate_configs/cpu/{engine}.yaml")
    options = [method, folder, kill_at]
    return run("tests/trainers/tool_runs.py", options, processes=processes, environment=environment)


def results(folder: Path, done) -> list[dict]:
    assert done.returncode == 0, done.stderr
    return [torch.load(file, weights_only=True) for file in sorted(folder.glob("rank-*.pt"))]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grpo", pytest.param("ppo", marks=pytest.mark.exhaustive)])
def test_a_run_with_environments_that_is_killed_and_resumed_ends_with_the_same_weights(tmp_path, method):
    [whole] = results(tmp_path / "whole", started(method, tmp_path / "whole", "0"))
    folder = tmp_path / "killed"
    assert started(method, folder, "5").returncode == -signal.SIGKILL
    assert (folder / "checkpoint-4").is_dir() and not (folder / "checkpoint-6").exists()
    [resumed] = results(folder, started(method, folder, "0"))
    assert equal(resumed["weights"], whole["weights"]) and resumed["losses"] == whole["losses"]
    assert resumed["figures"][1] == whole["figures"][1]
    # What is sampled after a result now and then begins another call.
    assert all(calls >= 1 for calls in whole["calls"]) and any(whole["errors"])


@pytest.mark.slow
def test_two_processes_learn_with_environments_what_one_does(tmp_path):
    """Fed the same answers: the same losses, figures and weights under DDP and ZeRO-2."""
    [one] = results(tmp_path / "one", started("grpo", tmp_path / "one", "fed"))
    assert all(calls == 1 for calls in one["calls"]) and any(one["errors"])
    for engine, wrapper in {None: "DistributedDataParallel", "zero2": "DeepSpeedEngine"}.items():
        if engine and shutil.which("g++") is None:
            pytest.skip("DDP is fine; for ZeRO-2 DeepSpeed builds a library with g++, which is not here")
        folder = tmp_path / (engine or "ddp")
        first, second = results(folder, started("grpo", folder, "fed", processes=2, engine=engine))
        assert first["world"] == 2 and first["wrapper"] == wrapper and equal(first["weights"], second["weights"])
        for name in ("losses", "calls", "errors"):
            assert first[name] == pytest.approx(one[name], abs=1e-4, rel=1e-4), name
        for figures, expected in zip(first["figures"], one["figures"], strict=True):
            assert figures == pytest.approx(expected, abs=1e-4)
        for name, tensor in one["weights"].items():
            torch.testing.assert_close(first["weights"][name], tensor, atol=1e-4, rtol=1e-3)
