"""Losses that are no numbers, signals, full disks and kills: what is on disk stays whole, and a run goes on from it."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl import SFTTrainer

from minimind_trl.errors import InputError, TrainingError, TrainingInterrupted
from minimind_trl.files import file_digest
from minimind_trl.trainers import last_good_checkpoint
from minimind_trl.trainers.batch_rows import describe_rows
from minimind_trl.trainers.callbacks import SIGNALS
from minimind_trl.trainers.safe_checkpoints import CHECKSUMS, checkpoint_problem, rotate
from tests.conftest import REPOSITORY
from tests.forking import run, says, start
from tests.trainers.online import online
from tests.trainers.tiny import dpo, sft

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a.keys() & b.keys())


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class At(TrainerCallback):
    """Does something at the beginning of a step (numbered from 1)."""

    def __init__(self, step: int, do):
        self.step, self.do = step, do

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            self.do()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("make", [sft, dpo])
def test_a_loss_that_is_no_number_stops_before_the_weights_change(make, value, tmp_path):
    trainer = make(tmp_path, gradient_accumulation_steps=2, **SAVING)
    compute, calls, batches = trainer.compute_loss, [], []

    def broken(model, inputs, *args, **kwargs):
        batches.append(inputs["input_ids"])
        loss = compute(model, inputs, *args, **kwargs)
        calls.append(weights(trainer))
        return loss * value if len(calls) == 6 else loss  # the second batch of step 3

    trainer.compute_loss = broken
    with pytest.raises(TrainingError) as caught:
        trainer.train()
    message = str(caught.value)
    assert "step 3: the loss is" in message and str(value) in message
    assert f"the last good checkpoint is {tmp_path}/checkpoint-2" in message
    for ids in batches[-1]:
        row = ids[ids != trainer.processing_class.pad_token_id]
        assert trainer.processing_class.decode(row)[:20] in message
    assert len(calls) == 6 and same(weights(trainer), calls[4])
    assert last_good_checkpoint(tmp_path) == tmp_path / "checkpoint-2" and checkpoints(tmp_path) == ["checkpoint-2"]


def test_a_gradient_that_is_no_number_stops_too(tmp_path):
    trainer = sft(tmp_path)
    before = weights(trainer)
    parameter = next(trainer.model.parameters())
    parameter.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match=r"step 1: the norm of the gradient is nan.*there is no good checkpoint"):
        trainer.train()
    assert same(weights(trainer), before)


def test_rows_are_described_without_padding():
    class Letters:
        def decode(self, ids):
            return "".join(chr(97 + int(i)) for i in ids)

    ids, mask = torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert describe_rows({"input_ids": ids, "attention_mask": mask}, Letters()) == ["ab", "def"]
    assert describe_rows({"input_ids": ids[:1], "position_ids": torch.tensor([[0, 1, 0]])}, Letters()) == ["ab", "c"]
    assert describe_rows([{"prompt": "p"}], Letters()) == ["p"]
    assert describe_rows({"pixels": ids}, Letters()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_after_the_step_and_exits(number, code, tmp_path, capsys):
    before = [signal.getsignal(n) for n in SIGNALS]
    trainer = sft(tmp_path, max_steps=6, eval_strategy="steps", eval_steps=3)
    trainer.add_callback(At(3, lambda: os.kill(os.getpid(), number)))
    with pytest.raises(TrainingInterrupted) as caught:
        trainer.train()
    assert caught.value.code == code
    assert last_good_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    [line] = [line for line in capsys.readouterr().out.splitlines() if "stopped" in line]
    assert line == f"stopped by {number.name} after step 3 of 6; saved {tmp_path}/checkpoint-3"
    assert not any("eval_loss" in entry for entry in trainer.state.log_history), "no time for that"
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_a_run_that_a_signal_stopped_ends_where_a_whole_one_does(tmp_path):
    whole = sft(tmp_path / "whole", max_steps=6)
    whole.train()
    stopped = sft(tmp_path / "parts", max_steps=6)
    stopped.add_callback(At(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(TrainingInterrupted):
        stopped.train()
    resumed = sft(tmp_path / "parts", max_steps=6)
    resumed.train(resume_from_checkpoint=str(last_good_checkpoint(tmp_path / "parts")))
    assert resumed.state.global_step == 6 and same(weights(resumed), weights(whole))
    assert resumed.state.num_input_tokens_seen == whole.state.num_input_tokens_seen


@pytest.mark.parametrize("make", [sft, partial(online, "ppo")])
def test_a_run_resumed_after_its_last_step_takes_no_more(make, tmp_path):
    """It was killed between its last checkpoint and its results."""
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    make(tmp_path, **options).train()
    resumed = make(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 2 and checkpoints(tmp_path) == ["checkpoint-2"]
    assert same(weights(resumed), load_file(tmp_path / "checkpoint-2" / "model.safetensors"))


def test_a_signal_after_the_last_step_still_saves(tmp_path):
    trainer = sft(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=2)
    evaluate = trainer.evaluation_loop

    def loop(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, **kwargs)

    trainer.evaluation_loop = loop
    with pytest.raises(TrainingInterrupted):
        trainer.train()
    assert last_good_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_training_in_a_thread_leaves_signals_alone(tmp_path):
    trainer, handlers = sft(tmp_path, max_steps=2), []
    trainer.add_callback(At(1, lambda: handlers.append(signal.getsignal(signal.SIGINT))))
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.state.global_step == 2 and handlers == [signal.getsignal(signal.SIGINT)]


def test_errors_restore_the_handlers(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    trainer = sft(tmp_path)
    trainer.compute_loss = None
    with pytest.raises(TypeError):
        trainer.train()
    assert signal.getsignal(signal.SIGINT) is before


@contextmanager
def running(code: str, folder: Path):
    """A script in a process of its own, given `folder / "out"`, and the file that it prints to."""
    script, log = folder / "script.py", folder / "log"
    script.write_text(code)
    process = start(script, [folder / "out"], stdout=log)
    try:
        yield process, log
    finally:
        process.kill()
        process.join()


STUCK = """
import sys, time
from minimind_trl.trainers import callbacks
from tests.trainers.test_accidents import At
from tests.trainers.tiny import sft
callbacks._SECONDS_OF_ECHO = 0.5
trainer = sft(sys.argv[1])
def hang():
    print("hanging", flush=True)
    while True:
        time.sleep(0.1)
trainer.add_callback(At(2, hang))
trainer.train()
"""


def test_a_second_signal_kills_at_once_but_not_an_echo(tmp_path):
    with running(STUCK, tmp_path) as (process, log):
        assert says(log, "hanging")
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGINT)  # as a launcher passes it on
        assert says(log, "once more kills")
        time.sleep(1)
        assert process.is_alive()
        os.kill(process.pid, signal.SIGINT)
        process.join(10)
        assert process.exitcode == -signal.SIGINT


TWO_PROCESSES = """
import os, signal, sys
from tests.trainers.test_accidents import At
from tests.trainers.tiny import sft
accident, folder = sys.argv[1:]
trainer = sft(folder, save_strategy="steps", save_steps=2, max_steps=6)
compute = trainer.compute_loss
def broken(*args, **kwargs):
    return compute(*args, **kwargs) * (float("nan") if trainer.state.global_step == 2 else 1)
if trainer.args.process_index == 1 and accident == "nan":
    trainer.compute_loss = broken
if trainer.args.process_index == 1 and accident == "signal":
    trainer.add_callback(At(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
trainer.train()
"""


@pytest.mark.slow
@pytest.mark.parametrize("accident", ["nan", "signal"])
def test_an_accident_in_one_process_stops_all_at_the_same_step(accident, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(TWO_PROCESSES)
    folder = tmp_path / "out"
    result = run(script, [accident, folder], processes=2)
    assert result.returncode != 0
    if accident == "nan":
        assert "step 3 in process 1: the loss is nan" in result.stderr
        assert "step 3 in process 0: another process's loss is not finite" in result.stderr
        assert checkpoints(folder) == ["checkpoint-2"]
    else:
        assert f"stopped by SIGTERM after step 3 of 6; saved {folder}/checkpoint-3" in result.stdout
        assert checkpoints(folder) == ["checkpoint-2", "checkpoint-3"]
        assert (folder / "checkpoint-3" / "rng_state_1.pth").is_file()
    assert last_good_checkpoint(folder) is not None


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
save = trainer._save_rng_state
def killed(folder):
    save(folder)
    if trainer.state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
trainer._save_rng_state = killed
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


def test_a_spoiled_checkpoint_is_replaced_when_its_step_comes_again(tmp_path):
    sft(tmp_path, **SAVING).train()
    (tmp_path / "checkpoint-4" / "optimizer.pt").write_bytes(b"")
    (tmp_path / "checkpoint-6" / "model.safetensors").unlink()
    told = []
    found = last_good_checkpoint(tmp_path, report=told.append)
    assert found == tmp_path / "checkpoint-2"
    assert "checkpoint-6 is skipped: the model's weights" in told[0]
    assert "checkpoint-4 is skipped: optimizer.pt has 0 bytes" in told[1]
    sft(tmp_path, **SAVING).train(resume_from_checkpoint=str(found))
    assert last_good_checkpoint(tmp_path, report=told.append) == tmp_path / "checkpoint-6"
    assert checkpoint_problem(tmp_path / "checkpoint-4") is None


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[str, Path]:
    """Folders with a checkpoint-1, made by us and by transformers alone."""
    folders = {}
    for name, kind in {"ours": {}, "theirs": {"trainer": SFTTrainer}}.items():
        folders[name] = tmp_path_factory.mktemp(name)
        sft(folders[name], max_steps=1, save_strategy="steps", save_steps=1, **kind).train()
    assert (folders["ours"] / "checkpoint-1" / CHECKSUMS).is_file()
    assert not (folders["theirs"] / "checkpoint-1" / CHECKSUMS).exists()
    return folders


@pytest.mark.parametrize("maker", ["ours", "theirs"])
@pytest.mark.parametrize("damage", ["half", "empty", "missing"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
def test_damage_is_found(saved, tmp_path, maker, damage, name):
    folder = copy(saved[maker] / "checkpoint-1", tmp_path / "checkpoint-1")
    assert checkpoint_problem(folder) is None
    content = (folder / name).read_bytes()
    if damage == "missing":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content[: len(content) // 2] if damage == "half" else b"")
    assert checkpoint_problem(folder) is not None
    assert last_good_checkpoint(tmp_path, report=lambda line: None) is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_flipped_bit_is_found(saved, tmp_path, name):
    folder = copy(saved["ours"] / "checkpoint-1", tmp_path / "checkpoint-1")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert "corrupt" in checkpoint_problem(folder)


def truncated(content: bytes, count: int, seed: str) -> list[bytes]:
    """A file cut off at random places."""
    dice = random.Random(seed)
    return [content[: dice.randrange(len(content))] for _ in range(count)]


@pytest.fixture(scope="module")
def ppo_run(tmp_path_factory) -> Path:
    """A run with two checkpoints, each with every kind of file that there is."""
    folder = tmp_path_factory.mktemp("ppo")
    trainer = online("ppo", folder, save_strategy="steps", save_steps=1, max_steps=2)
    trainer.records = {"recipe.json": lambda: {"processes": 1}, "mixture.lock.json": lambda: {"seed": 42}}
    trainer.train()
    return folder


KINDS = [
    *("model.safetensors", "critic/model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"),
    *("trainer_state.json", "rollout_state-0.pt", "recipe.json", "mixture.lock.json", CHECKSUMS),
]


@pytest.mark.parametrize("name", KINDS)
def test_a_file_cut_off_anywhere_is_told_and_the_checkpoint_before_it_taken(ppo_run, tmp_path, name):
    folder = shutil.copytree(ppo_run, tmp_path / "run")
    before, last = folder / "checkpoint-1", folder / "checkpoint-2"
    content, kept = (last / name).read_bytes(), digests(before)
    assert last_good_checkpoint(folder) == last
    for rest in truncated(content, 10, name):
        (last / name).write_bytes(rest)
        told = []
        assert last_good_checkpoint(folder, report=told.append) == before
        assert len(told) == 1 and f"{last} is skipped: " in told[0] and Path(name).name in told[0]
        assert "\n" not in told[0] and digests(before) == kept


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe.json", '{"processes": 2}'),
        ("mixture.lock.json", "{}"),
        ("trainer_state.json", '{"global_step": 2}'),
        (CHECKSUMS, "[]"),
        (CHECKSUMS, '{"model.safetensors": 1}'),
        (CHECKSUMS, '{"model.safetensors": [1, 2]}'),
    ],
)
def test_a_file_edited_by_hand_is_told(ppo_run, tmp_path, name, content):
    folder = shutil.copytree(ppo_run, tmp_path / "run")
    (folder / "checkpoint-2" / name).write_text(content)
    told = []
    assert last_good_checkpoint(folder, report=told.append) == folder / "checkpoint-1" and len(told) == 1


def digests(folder: Path) -> dict[Path, str]:
    return {path: file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


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


def test_the_best_checkpoint_stays_when_it_is_the_only_whole_one(tmp_path):
    for step in (2, 4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
    rotate(tmp_path / "checkpoint-4", 1, best=str(tmp_path / "checkpoint-2"))
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    rotate(tmp_path / "checkpoint-4", None, best=None)
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-4"]


def test_a_kill_while_an_old_checkpoint_goes_leaves_none_that_has_its_name_and_is_not_whole(tmp_path, monkeypatch):
    sft(tmp_path, **SAVING).train()

    def killed(folder):
        (folder / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        rotate(tmp_path / "checkpoint-6", 2, best=None)
    assert checkpoints(tmp_path) == [".checkpoint-2.old", "checkpoint-4", "checkpoint-6"]
    sft(tmp_path, **SAVING | {"max_steps": 7}).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert checkpoints(tmp_path) == ["checkpoint-4", "checkpoint-6", "checkpoint-7"]


def test_an_old_checkpoint_that_cannot_be_deleted_is_no_reason_to_stop(tmp_path, monkeypatch, capsys):
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()

    def busy(folder):
        raise OSError("Device or resource busy")

    monkeypatch.setattr(shutil, "rmtree", busy)
    rotate(tmp_path / "checkpoint-4", 1, best=None)
    assert "checkpoint-2 is beyond save_total_limit and could not be deleted: Device or" in capsys.readouterr().err


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
from tests.trainers.test_accidents import SAVING, checkpoints
from tests.trainers.tiny import sft
folder = Path(sys.argv[1])
try:
    sft(folder, **SAVING).train()
except TrainingError as error:
    print(error)
print(checkpoints(folder), checkpoint_problem(folder / "checkpoint-2"))
"""


def test_a_disk_that_is_full_in_fact(tmp_path, mounting):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    command = [*mounting("size=14m", tmp_path), sys.executable, "-c", SMALL_DISK, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *_, message, left = done.stdout.splitlines()
    assert "checkpoint-4 could not be saved, with " in message and f"checkpoint is {tmp_path}/checkpoint-2" in message
    assert left == "['checkpoint-2'] None"


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert last_good_checkpoint(tmp_path) is None
    assert last_good_checkpoint(tmp_path / "missing") is None
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-7").mkdir()
    told = []
    assert last_good_checkpoint(tmp_path, report=told.append) is None
    assert len(told) == 1 and "trainer_state.json is missing" in told[0]


def copy(source: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target
