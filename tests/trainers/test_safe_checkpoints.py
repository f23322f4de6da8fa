"""Damaged checkpoints are found, and the one before is taken."""

import random
import shutil
from pathlib import Path

import pytest
from trl import SFTTrainer

from minimind_trl.files import file_digest
from minimind_trl.trainers import last_good_checkpoint
from minimind_trl.trainers.safe_checkpoints import CHECKSUMS, checkpoint_problem, rotate
from tests.trainers.accidents import SAVING, checkpoints
from tests.trainers.online import online
from tests.trainers.tiny import sft


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
    """A file cut off at random places, before the last byte that matters: JSON is whole without its last line end."""
    dice = random.Random(seed)
    return [content[: dice.randrange(len(content.rstrip()))] for _ in range(count)]


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
