"""The models in two processes over gloo: with torch's fully_shard, which FSDP2 uses, and tensor parallelism."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from minimind_trl.models import MiniMindForCausalLM
from tests.conftest import small_config
from tests.forking import run


def test_every_rule_of_the_tensor_parallel_plan_has_its_layers(kind):
    """transformers warns of rules that match nothing."""
    names = {re.sub(r"\.\d+\.", ".*.", name) for name, _ in MiniMindForCausalLM(small_config(kind)).named_modules()}
    names |= {f"model.layers.*.mlp.experts.{weight}_proj" for weight in ("gate_up", "down") if kind.startswith("moe")}
    rules = {f"model.{rule}" for rule in small_config(kind).base_model_tp_plan}
    assert rules <= names
    linear = {name for name in names if name.endswith("_proj")}
    assert linear == {rule for rule in rules if rule.endswith("_proj")}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense3", "moe3"])
def test_two_sharded_processes_train_as_one_process_does(kind, tmp_path):
    """Losses and weights are equal, and the saved unsharded weights load without an engine."""
    alone, two = tmp_path / "alone", tmp_path / "two"
    for folder, processes in ((alone, 1), (two, 2)):
        done = run("tests/models/sharded.py", [kind, folder], processes=processes)
        assert done.returncode == 0, done.stderr
    losses = [json.loads((folder / "losses.json").read_text()) for folder in (alone, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    expected, found = (load_file(folder / "model.safetensors") for folder in (alone, two))
    assert set(found) - set(expected) <= {"lm_head.weight"}  # gathered separately, though tied to the embedding
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-4)
    model, info = AutoModelForCausalLM.from_pretrained(two, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert sum(parameter.numel() for parameter in model.parameters()) > 10_000


@pytest.mark.slow
def test_tensor_parallel_models_have_the_same_logits(checkpoints, kind, tmp_path):
    """`from_pretrained(..., tp_plan="auto")`: attention, feed-forward, experts and shared experts are split."""
    done = run("tests/models/tensor_parallel.py", [checkpoints[kind], tmp_path / "sharded.pt"], processes=2)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "sharded.pt", weights_only=True)
    parts = ("q_proj", "o_proj", "experts.gate_up_proj" if kind.startswith("moe") else "mlp.gate_proj")
    assert all(any(part in name for name in found["sharded"]) for part in parts)
    whole = AutoModelForCausalLM.from_pretrained(checkpoints[kind]).eval()
    with torch.no_grad():
        expected = whole(torch.arange(3, 15).reshape(2, 6)).logits
    torch.testing.assert_close(found["logits"], expected, atol=1e-5, rtol=1e-4)
