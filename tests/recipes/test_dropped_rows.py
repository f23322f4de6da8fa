"""Rows that a trainer drops are counted and named: in the plan, the lock, the card and `recipe.json`."""

import json
import re
import runpy

import pytest
import yaml

from minimind_trl.run.output_folder import release_output_folders
from tests.conftest import REPOSITORY

# 8 prompts that are longer than 64 tokens with any answer, and 10 answers that are.
PROMPTS = [f"count {n}: {'cat ' * (80 if n % 10 == 0 else 1)}" for n in range(80)]
ANSWERS = [" ".join(["cat"] * (80 if n % 10 in (0, 1) else 2)) for n in range(80)]


@pytest.fixture
def pairs(tmp_path):
    """A mixture whose last 8 rows of 80 are held out, so that the counts are known."""
    rows = [
        {"prompt": prompt, "chosen": answer, "rejected": "dog"} for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
    ]
    for name, lines in {"train": rows[:70], "held": rows[70:]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))

    def write(phase: str):
        files = {"train": "train.jsonl", "validation": "held.jsonl"}
        source = {"name": "a", "source": ".", "format": "jsonl", "data_files": files}
        mixture = {"metadata": {"phase": phase, "max_seq_length": 64}, "datasets": [source]}
        (tmp_path / f"{phase}.yaml").write_text(yaml.safe_dump(mixture))
        return tmp_path / f"{phase}.yaml"

    return write


@pytest.fixture
def trained(pairs, checkpoints, tmp_path, monkeypatch):
    """A run of one step in this process: the lock, the rows of `recipe.json`, and the card."""

    def run(recipe: str):
        folder = tmp_path / "out"
        options = {"from_weight": checkpoints["dense3"], "data_config": pairs(recipe), "output_dir": folder}
        options |= {"max_steps": 1, "logging_steps": 1, "save_strategy": "no", "per_device_train_batch_size": 4}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        monkeypatch.setattr("sys.argv", [f"{recipe}.py", *words])
        runpy.run_path(str(REPOSITORY / "recipes" / f"{recipe}.py"))["main"]()
        release_output_folders()
        lock, record = (json.loads((folder / f"{name}.json").read_text()) for name in ("mixture.lock", "recipe"))
        return lock, record["rows"], (folder / "README.md").read_text()

    return run


def test_pairs_whose_prompt_leaves_no_room_are_reported_everywhere(trained, capsys):
    lock, rows, card = trained("dpo")
    told, reason = capsys.readouterr().out, "a prompt of max_length=64 tokens or more"
    assert f"data: 7 train rows dropped: {reason}" in told and f"data: 1 validation rows dropped: {reason}" in told
    assert f"10.0% of the rows are dropped: {reason}" in told  # and as many are cut
    assert re.search(r"10\.0% of the rows are longer: \d+ tokens \(\d+\.\d%\) cut off at 64; 10\.0%", told)
    assert lock["training"] == rows
    assert rows == {"train_rows": 63, "dropped": {"train": {reason: 7}, "validation": {reason: 1}}}
    lost = f"7 train rows ({reason}); 1 validation rows ({reason})"
    assert f"Of these the trainer dropped {lost}. 63 train rows are left." in card


def test_pairs_with_a_side_that_is_too_long_for_a_reward_model_are_dropped_by_the_mixture(trained, capsys):
    lock, rows, _ = trained("reward")
    assert rows == {"train_rows": 56, "dropped": {}} and lock["training"] == rows
    assert sum(lock["sources"][0]["dropped"].values()) == 16 and lock["train"]["rows"] == 56
    assert "cut off" not in capsys.readouterr().out
