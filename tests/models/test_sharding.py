"""The models under torch's fully_shard, which is what FSDP2 runs: in two processes, over gloo."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import REPOSITORY


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense3", "moe3"])
def test_sharded_over_two_processes_it_trains_as_in_one(kind, tmp_path):
    """Equal losses and weights; the whole weights that it saves load without an engine."""
    alone, two = tmp_path / "alone", tmp_path / "two"
    launchers = {alone: [], two: ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]}
    for folder, launcher in launchers.items():
        command = [sys.executable, *launcher, "tests/models/sharded.py", kind, str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, timeout=300)
    losses = [json.loads((folder / "losses.json").read_text()) for folder in launchers]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    expected, found = (load_file(folder / "model.safetensors") for folder in launchers)
    assert set(found) - set(expected) <= {"lm_head.weight"}  # gathered apart from the embedding that it is
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)
    model, told = AutoModelForCausalLM.from_pretrained(two, output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert sum(parameter.numel() for parameter in model.parameters()) > 10_000
