"""`--as_twin`: the stock class learns what MiniMind's own learns, and both are saved."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from minimind_trl.errors import InputError
from minimind_trl.models import MiniMindForCausalLM, MiniMindForSequenceClassification, load_model
from minimind_trl.run.loading import as_twin
from minimind_trl.run.rl_run import _vllm_problems
from tests.conftest import small_config
from tests.recipes.launching import as_options, launch_in_turn

RECIPES = {
    "sft": {"eval_batches": 1},
    "reward": {"eval_batches": 1, "per_device_train_batch_size": 4},
    "grpo": {"eval_batches": 1, "per_device_train_batch_size": 32},
}


@pytest.mark.slow
def test_the_stock_class_learns_the_same_and_both_are_saved(pretrained, tmp_path):
    cases, common = [], {"from_weight": pretrained, "max_steps": 3, "eval_interval": 3, "logging_steps": 1}
    for recipe, options in RECIPES.items():
        options = common | options | {"config": f"recipes/configs/{recipe}/tiny.yaml", "report": False}
        for name in ("own", "stock"):
            words = as_options(**options, as_twin=name == "stock", output_dir=tmp_path / recipe / name)
            cases.append([recipe, *words])
    launch_in_turn("cpu", cases, tmp_path)
    for recipe in RECIPES:
        own, stock = (json.loads((tmp_path / recipe / name / "history.json").read_text()) for name in ("own", "stock"))
        losses = [[log[name] for log in logs for name in ("loss", "eval_loss") if name in log] for logs in (own, stock)]
        assert len(losses[0]) >= 3 and losses[1] == pytest.approx(losses[0], abs=1e-5)

        folder = tmp_path / recipe / "stock"
        assert AutoConfig.from_pretrained(folder / "twin").model_type == "qwen3"
        saved, twin = (load_file(path / "model.safetensors") for path in (folder, folder / "twin"))
        assert saved.keys() == twin.keys() and all(torch.equal(saved[name], twin[name]) for name in saved)
        load_model(folder, *[MiniMindForSequenceClassification] * (recipe == "reward"))


def test_a_mixture_of_experts_is_refused():
    with pytest.raises(InputError, match="--as_twin: the stock classes balance a mixture of experts by another loss"):
        as_twin(MiniMindForCausalLM(small_config("moe3")))


def test_vllm_wants_a_stock_start(checkpoints):
    config = SimpleNamespace(use_vllm=True, vllm_mode="colocate")
    args = SimpleNamespace(as_twin=False, from_weight=str(checkpoints["dense3"]), preset=None)
    assert [line.split(":")[0] for line in _vllm_problems(config, args)] == [
        "--use_vllm needs --as_twin",
        "--use_vllm reads the start from its folder, and " + args.from_weight + " is a MiniMind",
    ]
    args.as_twin, config.vllm_mode = True, "server"
    assert list(_vllm_problems(config, args)) == []
