"""What is killed goes on where it was."""

import subprocess
import sys
import time

import pytest

from tests.conftest import REPOSITORY
from tests.recipes.launching import QUICK, as_options, run, weights
from tests.recipes.test_online_recipes import ONLINE


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["pretrain", "midtrain", "sft", "distill", "dpo", "reward", "grpo", "ppo", "spo"])
def test_killed_and_resumed_it_ends_where_it_would_have(pretrained, tmp_path, recipe):
    """`kill -9` after the first checkpoint, then `--resume auto`: the same weights, bit for bit."""
    options = QUICK | {"max_steps": 12, "eval_interval": 0, "save_strategy": "steps", "save_steps": 4}
    options |= ONLINE.get(recipe, {})
    start = {"pretrain": None, "distill": "teacher_model_name_or_path"}.get(recipe, "from_weight")
    options |= {start: pretrained} if start else {}
    run(recipe, "tiny", output_dir=tmp_path / "whole", **options)
    killed = as_options(output_dir=tmp_path / "killed", **options)
    command = [sys.executable, f"recipes/{recipe}.py", "--config", f"recipes/configs/{recipe}/tiny.yaml", *killed]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "killed" / "checkpoint-4").is_dir():
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    run(recipe, "tiny", output_dir=tmp_path / "killed", resume="auto", **options)
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    if recipe == "ppo":
        assert weights(tmp_path / "killed" / "critic") == weights(tmp_path / "whole" / "critic")
