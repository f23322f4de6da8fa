"""Runs that are killed at random, again and again, end where one that nobody touched does."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from minimind_trl.models import MiniMindConfig, MiniMindForCausalLM
from minimind_trl.tokenization import tiny_tokenizer
from minimind_trl.trainers.safe_checkpoints import checkpoint_problem, checkpoints_in
from tests.conftest import REPOSITORY
from tests.forking import LIMIT, start
from tests.recipes.launching import as_options, weights
from tests.recipes.test_online_recipes import ONLINE

COVERING = ["sft", "dpo", "grpo", "ppo", "spo"]
# They share a trainer with those (pretrain, midtrain), or have no state beside the model's (distill, reward).
OTHERS = [pytest.param(name, marks=pytest.mark.exhaustive) for name in ("pretrain", "midtrain", "distill", "reward")]
KILLS = int(os.environ.get("FAULT_KILLS", "2"))  # of each recipe, and of a run of two processes
STEPS, SAVE_STEPS = 20, 3
DICE = random.Random(KILLS)
RUN = {
    **{"max_steps": STEPS, "warmup_steps": 2, "learning_rate": 1e-3, "eval_interval": 0, "logging_steps": 1},
    **{"save_strategy": "steps", "save_steps": SAVE_STEPS, "save_total_limit": 2, "resume": "auto"},
}
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The smallest preset, untrained."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), tiny_tokenizer()
    MiniMindForCausalLM(MiniMindConfig.from_preset("nano", vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def options(recipe: str, model: Path, folder: Path) -> list[str]:
    given = {"pretrain": None, "distill": "teacher_model_name_or_path"}.get(recipe, "from_weight")
    values = RUN | ONLINE.get(recipe, {}) | ({given: model} if given else {})
    return ["--config", f"recipes/configs/{recipe}/tiny.yaml", *as_options(output_dir=folder, **values)]


def good_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints of a run; all that have their name must be whole."""
    found = checkpoints_in(folder)
    assert [checkpoint_problem(path) for path in found] == [None] * len(found)
    return [int(path.name.split("-")[1]) for path in found]


def last_step(log: Path) -> int:
    """The last step that a process tells of."""
    return max(map(int, re.findall(rf"^step (\d+)/{STEPS} ", log.read_text(), re.MULTILINE)), default=0)


def history(folder: Path) -> list[tuple]:
    """What every step of a run has learned from, and its loss."""
    state = json.loads((checkpoints_in(folder)[-1] / "trainer_state.json").read_text())
    logs = [log for log in state["log_history"] if "loss" in log]
    return [(log["step"], log["loss"], log["grad_norm"], log["num_input_tokens_seen"]) for log in logs]


def assert_same_end(folder: Path, whole: Path) -> None:
    steps = good_steps(folder)
    assert steps[-1] == STEPS and len(steps) >= len(good_steps(whole)) and history(folder) == history(whole)
    # Told to stop after step 19, a run keeps checkpoints 19 and 20, where the other one keeps 18 and 20.
    elsewhere = {f"checkpoint-{step}" for step in good_steps(whole) if step not in steps}
    for part in (path.parent.relative_to(whole) for path in whole.rglob("model.safetensors")):
        if elsewhere.isdisjoint(part.parts):
            assert weights(folder / part) == weights(whole / part), part


def reaches(step: int, log: Path, alive: Callable[[], bool]) -> bool:
    """Wait until a run tells of a step, and a moment more, in which it may save; whether it is still there."""
    while last_step(log) < step and alive():
        time.sleep(0.02)
    time.sleep(DICE.uniform(0, 0.3))
    return alive()


def killed(recipe: str, model: Path, folder: Path, signals: list[int]) -> int:
    """Run a recipe until it is done, with each of the signals at a random moment; how many met it."""
    for kills, number in enumerate([*signals, None]):
        log, kept = folder.with_name(f"{folder.name}-{kills}.log"), max(good_steps(folder), default=0)
        log.touch()
        process = start(f"recipes/{recipe}.py", options(recipe, model, folder), stdout=log)
        if number is not None and reaches(DICE.randint(min(kept + 1, STEPS), STEPS), log, process.is_alive):
            os.kill(process.pid, number)
        process.join(LIMIT)
        if process.exitcode == 0:
            return kills
        # what can be waited for is, and is deadly where nothing is to be saved any more
        assert process.exitcode in (-number, 128 + number), log.read_text()
        lost = last_step(log) - max(good_steps(folder), default=0)
        print(f"{recipe}: exit code {process.exitcode} after step {last_step(log)}, {lost} steps lost")
        assert 0 <= lost <= (SAVE_STEPS if process.exitcode == -number else 0)
    raise AssertionError(log.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [*COVERING, *OTHERS])
def test_killed_at_random_and_resumed_it_ends_where_it_would_have(model, tmp_path, recipe):
    """SIGKILL, SIGTERM and SIGHUP at any time: at most the steps since the last checkpoint are lost; no bit differs."""
    whole = tmp_path / "whole"
    process = start(f"recipes/{recipe}.py", options(recipe, model, whole), stdout=tmp_path / "whole.log")
    process.join(LIMIT)
    assert process.exitcode == 0, (tmp_path / "whole.log").read_text()
    assert weights(checkpoints_in(whole)[0]) != weights(whole), "nothing was learned that a kill could take away"
    signals = [signal.SIGKILL, DICE.choice([signal.SIGTERM, signal.SIGHUP])] * KILLS
    while len(signals) > KILLS:  # one that comes too late does not count
        folder = tmp_path / f"killed-{len(signals)}"
        signals = signals[killed(recipe, model, folder, signals[: len(signals) - KILLS]) :]
        assert_same_end(folder, whole)


def launch_two(recipe: str, model: Path, folder: Path, log: Path) -> subprocess.Popen:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [*TWO, f"recipes/{recipe}.py", *options(recipe, model, folder)]
    with log.open("w") as file:
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.STDOUT)


def kill_rank(number: int, launcher: int) -> None:
    with suppress(psutil.NoSuchProcess):  # it has just ended
        for child in psutil.Process(launcher).children(recursive=True):
            if child.environ().get("RANK") == str(number):
                child.kill()


def dies_of_one(victim: int, model: Path, folder: Path, log: Path) -> bool:
    """Run two processes and kill one after a checkpoint more; False if the job was faster, and is done."""
    until = min(max(good_steps(folder), default=0) + DICE.randint(SAVE_STEPS + 1, 2 * SAVE_STEPS), STEPS)
    with launch_two("sft", model, folder, log) as job:
        if reaches(until, log, lambda: job.poll() is None):
            kill_rank(victim, job.pid)
        if job.wait(timeout=LIMIT) == 0:
            return False
    text = log.read_text()
    assert job.returncode == 1 and "Signal 9 (SIGKILL) received" in text and f"local_rank: {victim}" in text, text
    lost = last_step(log) - max(good_steps(folder), default=0)
    print(f"two processes: rank {victim} killed after step {last_step(log)}, {lost} steps lost")
    assert 0 <= lost <= SAVE_STEPS
    return True


@pytest.mark.slow
def test_one_of_two_processes_dies_and_the_job_ends_with_a_message(model, tmp_path):
    whole, folder, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    assert launch_two("sft", model, whole, log).wait() == 0, log.read_text()
    for kill in range(KILLS):
        while not dies_of_one(kill % 2, model, folder, log):  # a kill that comes too late does not count
            assert_same_end(folder, whole)
            folder = folder.with_name(f"{folder.name}-again")
    alone = tmp_path / "alone.log"
    process = start("recipes/sft.py", options("sft", model, folder), stdout=alone)
    process.join(LIMIT)
    assert process.exitcode == 2, alone.read_text()
    assert "processes was 2 and is 1. Resume with its settings" in alone.read_text()
    assert launch_two("sft", model, folder, log).wait() == 0, log.read_text()
    assert_same_end(folder, whole)
