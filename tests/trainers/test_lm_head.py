"""The head of training: the same figures as TRL's, from fewer positions."""

import copy

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from minimind_trl.models import MiniMindForCausalLM
from minimind_trl.trainers import add_learned_positions_head
from tests.conftest import small_config


def batch(config, learned: float) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(0, config.vocab_size, (3, 20))
    attention_mask = torch.ones_like(ids)
    attention_mask[1, 15:] = 0
    labels = ids.masked_fill((torch.rand(ids.shape) >= learned) | (attention_mask == 0), -100)
    return {"input_ids": ids, "attention_mask": attention_mask, "labels": labels}


def outputs_and_gradient(model, inputs):
    outputs = model(**inputs, fused_lm_head=True)
    (-outputs.log_probs.sum()).backward()
    return outputs, model.lm_head.weight.grad


@pytest.mark.parametrize("learned", [1.0, 0.3, 0.0])
def test_its_figures_are_those_of_trl(learned):
    theirs = MiniMindForCausalLM(small_config("dense3"))
    ours = copy.deepcopy(theirs)
    learned_only = ("mean_logits", "log_sum_sq_probs")
    add_fused_lm_head(theirs, outputs=("log_probs", "entropy", "is_top1", *learned_only))
    add_learned_positions_head(ours, for_preferences=True)
    inputs = batch(ours.config, learned)
    expected, gradient = outputs_and_gradient(theirs, inputs)
    outputs, our_gradient = outputs_and_gradient(ours, inputs)
    for name in ("log_probs", "entropy", "is_top1", "label_mask"):
        torch.testing.assert_close(outputs[name].float(), expected[name].float(), msg=name)
    mask = expected["label_mask"]
    for name in learned_only:
        torch.testing.assert_close(outputs[name][mask], expected[name][mask], msg=name)
    torch.testing.assert_close(our_gradient, gradient)


def test_the_gradient_of_the_entropy_is_that_of_trl_where_it_is_asked_for():
    models = [MiniMindForCausalLM(small_config("dense3"))]
    models += [copy.deepcopy(models[0]) for _ in range(2)]
    add_fused_lm_head(models[0], outputs=("log_probs", "entropy"), temperature=0.7)
    add_learned_positions_head(models[1], 0.7, entropy_gradient=True)
    add_learned_positions_head(models[2], 0.7)
    inputs = batch(models[0].config, 0.3)
    entropies = [model(**inputs, fused_lm_head=True).entropy for model in models]
    assert [entropy.requires_grad for entropy in entropies] == [True, True, False]
    for entropy in entropies[:2]:
        entropy.sum().backward()
    for mine, theirs in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-3)


def test_the_balancing_loss_is_the_models_own():
    model = MiniMindForCausalLM(small_config("moe2"))
    inputs = batch(model.config, 1.0)
    expected = model(**inputs, output_router_logits=True).aux_loss
    add_learned_positions_head(model)
    outputs = model(**inputs, output_router_logits=True, fused_lm_head=True)
    torch.testing.assert_close(outputs.aux_loss, expected)


def test_without_it_the_forward_is_as_before():
    model = MiniMindForCausalLM(small_config("dense3")).eval()
    ids = batch(model.config, 1.0)["input_ids"]
    logits, answer = model(ids).logits, model.generate(ids, max_new_tokens=3, do_sample=False)
    add_learned_positions_head(model)
    assert torch.equal(model(ids).logits, logits)
    assert torch.equal(model.generate(ids, max_new_tokens=3, do_sample=False), answer)


def test_a_large_vocabulary_keeps_trls_head():
    model = MiniMindForCausalLM(small_config("dense3", vocab_size=40_000, hidden_size=8, num_hidden_layers=1))
    before = model.forward
    add_learned_positions_head(model)
    assert model.forward == before


def test_a_large_vocabulary_under_zero_3_does_not(monkeypatch):
    """TRL's head would gather the shards of a model that has none until training makes DeepSpeed's engine."""
    monkeypatch.setattr("minimind_trl.trainers.lm_head.is_deepspeed_zero3_enabled", lambda: True)
    model = MiniMindForCausalLM(small_config("dense3", vocab_size=40_000, hidden_size=8, num_hidden_layers=1))
    inputs = batch(model.config, 1.0)
    expected = -torch.nn.functional.cross_entropy(
        model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1].transpose(1, 2),
        inputs["labels"][:, 1:],
        reduction="none",
    )
    add_learned_positions_head(model)
    torch.testing.assert_close(model(**inputs, fused_lm_head=True).log_probs, expected)
