"""Attention in tiles gives what `sdpa` gives, and the same gradients."""

import copy

import pytest
import torch

from minimind_trl.internals import attention_implementation
from minimind_trl.models import (
    MiniMindForCausalLM,
    MiniMindForSequenceClassification,
    load_model,
    tiled_attention,
    to_twin,
)
from minimind_trl.models.cpu_kernels import use_cpu_kernels
from minimind_trl.models.tiled_attention import TILED_SDPA
from minimind_trl.rewards.reward_models import RewardModel
from minimind_trl.tokenization import tiny_tokenizer
from minimind_trl.trainers.critic import make_critic
from minimind_trl.trainers.gkd_trainer import load_teacher
from tests.conftest import small_config

LENGTH = 48


def random_ids(*shape: int) -> torch.Tensor:
    return torch.randint(3, 768, shape, generator=torch.Generator().manual_seed(1))


def positions(*lengths: int) -> list[int]:
    return [place for length in lengths for place in range(length)]


def rows_of(kind: str) -> dict[str, torch.Tensor]:
    ids = random_ids(3, LENGTH)
    if kind == "whole":
        return {"input_ids": ids}
    if kind == "packed":
        packed = [positions(5, 3, 30, 1, 9), positions(LENGTH), positions(20, 28)]
        return {"input_ids": ids, "position_ids": torch.tensor(packed)}
    if kind == "padded":  # on the left, so that the first queries attend to nothing
        mask = torch.ones_like(ids)
        mask[1, :17], mask[2, :40] = 0, 0
        return {"input_ids": ids, "attention_mask": mask}
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()  # two answers to one prompt, and another sequence
    mask[20:30, 10:20], mask[30:, :30] = False, False
    return {"input_ids": ids, "attention_mask": mask.expand(3, 1, -1, -1)}


@pytest.fixture(params=[8, 16, 128], ids="tile{}".format)
def tile(request, monkeypatch):
    monkeypatch.setattr(tiled_attention, "_TILE", request.param)
    monkeypatch.setattr(tiled_attention, "_AT_ONCE", 4096)
    monkeypatch.setattr(tiled_attention, "_last", None)


@pytest.mark.parametrize("rows", ["whole", "packed", "padded", "answers"])
def test_logits_and_gradients_are_those_of_sdpa(tile, rows):
    inputs, results = rows_of(rows), []
    for attention in ("sdpa", TILED_SDPA):
        torch.manual_seed(0)
        model = MiniMindForCausalLM(small_config("dense3", attn_implementation=attention))
        logits = model(**inputs).logits
        if rows == "padded":
            logits = logits[inputs["attention_mask"].bool()]
        logits.float().log_softmax(-1)[..., 5].sum().backward()
        results.append([logits, *(part.grad for part in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_generation_is_that_of_sdpa():
    model = MiniMindForCausalLM(small_config("dense3")).eval()
    prompt = {"input_ids": random_ids(2, 7), "attention_mask": torch.tensor([[0] * 3 + [1] * 4, [1] * 7])}
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(**prompt, **options)
    assert torch.equal(use_cpu_kernels(model).generate(**prompt, **options), expected)


def test_a_checkpoint_does_not_name_the_kernels(tmp_path):
    use_cpu_kernels(MiniMindForCausalLM(small_config("moe3"))).save_pretrained(tmp_path)
    assert attention_implementation(load_model(tmp_path)) == "sdpa"
    assert TILED_SDPA not in (tmp_path / "config.json").read_text()


def test_every_model_of_a_run_gets_the_kernels(tmp_path):
    def kernels(model):
        return attention_implementation(model), model.get_experts_implementation()[""]

    fast = (TILED_SDPA, "eager")
    policy = use_cpu_kernels(MiniMindForCausalLM(small_config("moe3")))
    assert kernels(policy) == kernels(copy.deepcopy(policy)) == kernels(make_critic(policy)) == fast
    policy.save_pretrained(tmp_path / "policy")
    assert kernels(load_teacher(str(tmp_path / "policy"), policy, use_cpu=True)) == fast
    assert kernels(use_cpu_kernels(to_twin(policy))) == fast
    MiniMindForSequenceClassification(small_config("moe3", num_labels=1)).save_pretrained(tmp_path / "reward")
    tiny_tokenizer().save_pretrained(tmp_path / "reward")
    assert kernels(make_critic(policy, str(tmp_path / "reward"))) == fast
    reward = RewardModel(str(tmp_path / "reward"))
    reward([[{"role": "user", "content": "a"}]], [[{"role": "assistant", "content": "b"}]])
    assert kernels(reward.model) == fast


def test_another_attention_that_was_chosen_stays():
    model = use_cpu_kernels(MiniMindForCausalLM(small_config("dense3", attn_implementation="eager")))
    assert attention_implementation(model) == "eager"
