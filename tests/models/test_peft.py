"""PEFT's methods on our models: by default they adapt the same layers as in Qwen3."""

import peft
import pytest
import torch
from peft.utils.hotswap import hotswap_adapter
from transformers import Qwen3Config, Qwen3ForCausalLM

from minimind_trl.models import MiniMindForCausalLM
from tests.conftest import small_config

METHODS = {
    "lora": peft.LoraConfig(r=4),
    "dora": peft.LoraConfig(r=4, use_dora=True),
    "adalora": peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10),
    "ia3": peft.IA3Config(),
    "vera": peft.VeraConfig(r=4),
    "loha": peft.LoHaConfig(r=4),
    "lokr": peft.LoKrConfig(r=4),
    "oft": peft.OFTConfig(r=0, oft_block_size=8),
    "boft": peft.BOFTConfig(boft_block_size=8),
    "hra": peft.HRAConfig(r=4),
    "ln": peft.LNTuningConfig(),
    "fourierft": peft.FourierFTConfig(n_frequency=8),
    "vblora": peft.VBLoRAConfig(r=4, num_vectors=8, vector_length=16, topk=2),
}
PREFIX = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)


def adapted_parts(model) -> set[str]:
    """Names of the layers with trainable parameters, without PEFT's prefixes and suffixes."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj", "input_layernorm", "post_attention_layernorm")
    return {part for name in trained for part in name.split(".") if part in kinds}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_adapts_the_same_layers_as_in_qwen3_and_changes_the_output(method):
    config = small_config("dense3")
    sizes = {name: getattr(config, name) for name in ("vocab_size", "hidden_size", "intermediate_size", "head_dim")}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    theirs = peft.get_peft_model(Qwen3ForCausalLM(Qwen3Config(**sizes)), METHODS[method])
    ours = peft.get_peft_model(MiniMindForCausalLM(config), METHODS[method])
    assert adapted_parts(ours) == adapted_parts(theirs) != set()
    ids = torch.arange(3, 15).reshape(2, 6)
    optimizer = torch.optim.SGD([p for p in ours.parameters() if p.requires_grad], lr=1.0)
    before = ours(ids).logits.detach()
    for _ in range(2):  # LoRA's A gets a gradient only once B has moved
        ours(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.allclose(ours(ids).logits, before)


@pytest.mark.parametrize("kind", ["moe2", "moe3"])
def test_experts_are_adapted_if_target_parameters_names_them(kind):
    """PEFT's `all-linear` means linear layers; experts are stacked parameters, which `target_parameters` names."""
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = peft.LoraConfig(r=4, target_modules="all-linear", target_parameters=experts)
    model = peft.get_peft_model(MiniMindForCausalLM(small_config(kind)), config)
    assert any("experts" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_prefix_tuning_and_hot_swapping(tmp_path):
    ids = torch.arange(3, 15).reshape(2, 6)
    model = MiniMindForCausalLM(small_config("dense3")).eval()
    plain = model(ids).logits.detach()
    tuned = peft.get_peft_model(MiniMindForCausalLM(small_config("dense3")), PREFIX)
    assert tuned(ids).logits.shape == plain.shape
    for name in ("one", "other"):
        adapted = peft.get_peft_model(
            MiniMindForCausalLM(small_config("dense3")), peft.LoraConfig(r=4, init_lora_weights=False)
        )
        adapted.save_pretrained(tmp_path / name)
    swapped = peft.PeftModel.from_pretrained(model, tmp_path / "one").eval()
    first = swapped(ids).logits.detach()
    hotswap_adapter(swapped, tmp_path / "other", adapter_name="default")
    assert not torch.allclose(swapped(ids).logits, first)
