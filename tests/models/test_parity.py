"""Our models against the recorded outputs of upstream's own code."""

import json

import pytest
import torch
from safetensors.torch import load_file

from minimind_trl.models import MiniMindConfig, load_native

CASES = [
    "minimind2_dense",
    "minimind2_dense_yarn",
    "minimind2_moe",
    "minimind3_dense",
    "minimind3_dense_yarn",
    "minimind3_moe",
    "minimind3_moe_top2",
]


@pytest.fixture(params=CASES)
def case(request, shared):
    return shared / "parity" / request.param


@pytest.fixture(params=["eager", "sdpa"])
def model_and_expected(request, case):
    config = MiniMindConfig(**json.loads(case.with_suffix(".config.json").read_text()))
    config._attn_implementation = request.param
    return load_native(case.with_suffix(".weights.safetensors"), config), load_file(
        case.with_suffix(".expected.safetensors")
    )


@torch.no_grad()
def test_logits_and_loss(model_and_expected):
    model, expected = model_and_expected
    output = model(expected["input_ids"], labels=expected["input_ids"])
    torch.testing.assert_close(output.logits, expected["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.loss, expected["loss"][0], atol=0, rtol=1e-6)


@torch.no_grad()
def test_right_and_left_padding(model_and_expected):
    model, expected = model_and_expected
    ids, mask = expected["input_ids"], expected["attention_mask"]
    token = mask.bool()
    logits = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(logits[token], expected["logits_masked"][token], atol=1e-5, rtol=0)

    left_ids, left_mask = torch.zeros_like(ids), torch.zeros_like(mask)
    for row, length in enumerate(mask.sum(-1)):
        left_ids[row, -length:], left_mask[row, -length:] = ids[row, :length], 1
    positions = (left_mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(left_ids, attention_mask=left_mask, position_ids=positions).logits
    torch.testing.assert_close(logits[left_mask.bool()], expected["logits_masked"][token], atol=1e-5, rtol=0)


def test_greedy_generation_with_cache(model_and_expected):
    model, expected = model_and_expected
    greedy = model.generate(
        expected["input_ids"][:1], max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(greedy, expected["greedy"])


def test_moe_in_training(model_and_expected):
    model, expected = model_and_expected
    if "train_logits" not in expected:
        pytest.skip("a dense model")
    output = model.train()(expected["input_ids"], labels=expected["input_ids"])
    aux_loss = model.config.router_aux_loss_coef * output.aux_loss
    torch.testing.assert_close(output.logits, expected["train_logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(aux_loss, expected["train_aux_loss"][0], atol=1e-6, rtol=1e-5)
    plain = model.loss_function(output.logits, expected["input_ids"], model.vocab_size)
    torch.testing.assert_close(output.loss, plain + aux_loss)
