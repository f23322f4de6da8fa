"""Checkpoints are complete or not there: full disks, kills while saving, and which older ones are deleted."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minimind_trl.errors import InputError, TrainingError
from minimind_trl.trainers import last_good_checkpoint
from minimind_trl.trainers.safe_checkpoints import checkpoint_problem
from tests.conftest import REPOSITORY
from tests.trainers.accidents import SAVING, At, checkpoints, contents, running, same, weights
from tests.trainers.online import online
from tests.trainers.tiny import sft


@pytest.mark.parametrize("make", [sft, partial(online, "ppo")])
def test_a_run_resumed_after_its_last_step_takes_no_more(make, tmp_path):
    """It was killed between its last checkpoint and its results."""
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    make(tmp_path, **options).train()
    resumed = make(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 2 and checkpoints(tmp_path) == ["checkpoint-2"]
    assert same(weights(resumed), load_file(tmp_path / "checkpoint-2" / "model.safetensors"))


@pytest.mark.parametrize("make", [sft, partial(online, "ppo")])
def test_another_number_of_processes_is_refused(make, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    make(tmp_path, **options).train()
    checkpoint = tmp_path / "checkpoint-1"
    for process in (0, 1):  # as two processes save
        shutil.copy(checkpoint / "rng_state.pth", checkpoint / f"rng_state_{process}.pth")
    (checkpoint / "rng_state.pth").unlink()
    with pytest.raises(InputError, match="was saved by 2 processes, this run has 1: resume with 2, or start a new run"):
        make(tmp_path, **options).train(resume_from_checkpoint=str(checkpoint))


def full_disk(allowed_bytes: int, function):
    """A function that saves to a path, as it fails on a disk with that much room."""

    def save(content, path, *args, **kwargs):
        function(content, path, *args, **kwargs)
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[:allowed_bytes])
        if len(whole) > allowed_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    return save


def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path, monkeypatch):
    trainer = sft(tmp_path, save_total_limit=1, **SAVING)
    before = {}

    def fill():
        before.update(contents(tmp_path / "checkpoint-2"))
        monkeypatch.setattr(torch, "save", full_disk(1000, torch.save))

    trainer.add_callback(At(3, fill))
    with pytest.raises(TrainingError, match=r"checkpoint-4 could not be saved.*MiB free.*No space left.*checkpoint-2"):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["checkpoint-2"]
    assert contents(tmp_path / "checkpoint-2") == before
    assert checkpoint_problem(tmp_path / "checkpoint-2") is None


KILLED = """
import os, signal, sys
from tests.trainers.tiny import sft
trainer = sft(sys.argv[1], save_strategy="steps", save_steps=2, max_steps=6, save_total_limit=1)
save = trainer.save_rng_state
def killed(folder):
    save(folder)
    if trainer.state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
trainer.save_rng_state = killed
trainer.train()
"""


def test_a_kill_while_saving_leaves_the_previous_checkpoint_whole(tmp_path):
    with running(KILLED, tmp_path) as (process, log):
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, log.read_text()
    folder = tmp_path / "out"
    assert checkpoints(folder) == [".saving-checkpoint-4", "checkpoint-2"]
    assert last_good_checkpoint(folder) == folder / "checkpoint-2"
    resumed = sft(folder, save_total_limit=1, **SAVING)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert resumed.state.global_step == 6 and checkpoints(folder) == ["checkpoint-6"]


def test_an_end_that_the_disk_loses_in_silence_is_noticed_while_the_last_checkpoint_is_there(tmp_path, monkeypatch):
    trainer = sft(tmp_path, save_total_limit=1, **SAVING)

    def lose():
        save = torch.save
        monkeypatch.setattr(torch, "save", lambda content, path: (save(content, path), os.truncate(path, 500)))

    trainer.add_callback(At(3, lose))
    with pytest.raises(
        TrainingError, match=r"checkpoint-4 could not be saved.* is truncated or corrupt; .*checkpoint-2"
    ):
        trainer.train()
    assert checkpoints(tmp_path) == ["checkpoint-2"] and checkpoint_problem(tmp_path / "checkpoint-2") is None


SMALL_DISK = """
import sys
from pathlib import Path
from minimind_trl.errors import TrainingError
from minimind_trl.trainers import checkpoint_problem
from tests.trainers.accidents import SAVING, checkpoints
from tests.trainers.tiny import sft
folder = Path(sys.argv[1])
try:
    sft(folder, **SAVING).train()
except TrainingError as error:
    print(error)
print(checkpoints(folder), checkpoint_problem(folder / "checkpoint-2"))
"""


@pytest.mark.slow
def test_a_disk_that_is_full_in_fact(tmp_path, mounting):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    command = [*mounting("size=14m", tmp_path), sys.executable, "-c", SMALL_DISK, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, message, left = done.stdout.splitlines()
    assert "checkpoint-4 could not be saved, with " in message and f"checkpoint is {tmp_path}/checkpoint-2" in message
    assert left == "['checkpoint-2'] None"


def test_old_checkpoints_go_and_the_best_stays(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss", "save_total_limit": 2}
    trainer = sft(tmp_path, **{**SAVING, "max_steps": 8}, load_best_model_at_end=True, **options)
    losses = iter([3.0, 1.0, 2.0, 4.0])
    original = trainer.evaluation_loop

    def evaluation_loop(*args, **kwargs):
        output = original(*args, **kwargs)
        output.metrics["eval_loss"] = next(losses)
        return output

    trainer.evaluation_loop = evaluation_loop
    trainer.train()
    best = tmp_path / "checkpoint-4"
    assert checkpoints(tmp_path) == ["checkpoint-4", "checkpoint-8"]
    assert trainer.state.best_model_checkpoint == str(best)
    assert f'"best_model_checkpoint": "{best}"' in (best / "trainer_state.json").read_text()
    assert same(weights(trainer), load_file(best / "model.safetensors"))


def test_with_room_for_one_checkpoint_the_good_one_stays(tmp_path):
    """A torn one of a later step, as new as it may look, is no reason to delete what was just saved."""
    sft(tmp_path, **SAVING).train()
    torn = tmp_path / "checkpoint-6"
    (torn / "model.safetensors").write_bytes(b"")
    found = last_good_checkpoint(tmp_path, report=lambda line: None)
    assert found == tmp_path / "checkpoint-4"
    trainer = sft(tmp_path, **SAVING | {"save_steps": 1, "max_steps": 5}, save_total_limit=1)
    later = time.time() + 3600
    trainer.add_callback(At(5, lambda: os.utime(torn, (later, later))))
    trainer.train(resume_from_checkpoint=str(found))
    assert checkpoints(tmp_path) == ["checkpoint-5"] and checkpoint_problem(tmp_path / "checkpoint-5") is None
