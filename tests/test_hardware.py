"""Peaks of devices, and FLOPs of a training step compared with torch's own count."""

import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from minimind_trl import hardware
from minimind_trl.hardware import peak_flops, train_flops_per_token
from minimind_trl.models import MiniMindConfig, MiniMindForSequenceClassification
from tests.conftest import small_config

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 80}
CONFIGS = {
    "minimind tiny": MiniMindConfig.from_preset("tiny"),
    "minimind3": small_config("dense3"),
    "minimind3 untied, wide heads": small_config("dense3", tie_word_embeddings=False, head_dim=32),
    "minimind2 with experts": small_config("moe2"),  # two of four, and a shared one
    "minimind3 with experts": small_config("moe3"),
    "llama": LlamaConfig(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "qwen3-moe": Qwen3MoeConfig(**SIZES, **EXPERTS),
    "qwen3-moe with dense layers": Qwen3MoeConfig(**SIZES, **EXPERTS, mlp_only_layers=[0], decoder_sparse_step=2),
}


def counted_flops(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> float:
    with FlopCounterMode(display=False) as counter:
        output = model(**batch, use_cache=False)
        (output.logits.float().sum() if output.loss is None else output.loss).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", CONFIGS)
def test_flops_are_what_torch_counts(name):
    config: PreTrainedConfig = CONFIGS[name]
    # implementations that the counter can count: full attention, and a matrix product per expert
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    ids = torch.randint(3, 290, (2, 48))
    counted = counted_flops(model, {"input_ids": ids, "labels": ids})
    assert train_flops_per_token(config, 48) * ids.numel() == pytest.approx(counted, rel=0.01)


def test_flops_of_a_reward_model_are_without_the_vocabulary():
    config = small_config("dense3", num_labels=1)
    model = MiniMindForSequenceClassification._from_config(config, attn_implementation="eager")
    ids = torch.randint(3, 290, (2, 48))
    counted = counted_flops(model, {"input_ids": ids})
    assert train_flops_per_token(config, 48, output_size=1) * ids.numel() == pytest.approx(counted, rel=0.01)


def test_frozen_weights_cost_no_weight_gradients():
    config = small_config("dense3")
    scores = train_flops_per_token(config, 100) - train_flops_per_token(config, 0)
    assert scores == 12 * config.num_hidden_layers * config.hidden_size * 100
    assert train_flops_per_token(config, 0, trained_parameters=0) == pytest.approx(
        train_flops_per_token(config, 0) * 2 / 3
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_of_a_cpu_is_measured_once_and_quickly(dtype):
    hardware._measured_peak.cache_clear()
    start = time.perf_counter()
    peak = peak_flops("cpu", dtype)
    assert time.perf_counter() - start < 2  # half a second on an idle machine
    assert 1e8 < peak < 1e14
    start = time.perf_counter()
    assert peak_flops(torch.device("cpu"), dtype) == peak
    assert time.perf_counter() - start < 0.01


@pytest.mark.parametrize(
    ("name", "half", "full"),
    [
        ("NVIDIA H200", 989.4, 66.9),
        ("NVIDIA H20", 148, 44),
        ("NVIDIA H100 80GB HBM3", 989.4, 66.9),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA A10G", 70, 35),
        ("NVIDIA L40S", 362, 91.6),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("NVIDIA GeForce RTX 3090 Ti", 80, 40),
        ("NVIDIA RTX 6000 Ada Generation", 364.2, 91.1),
        ("Tesla T4", 65, 8.1),
    ],
)
def test_peaks_of_listed_gpus(monkeypatch, name, half, full):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(hardware, "has_fast_bf16", lambda use_cpu: "T4" not in name)
    assert peak_flops("cuda", torch.float16) == pytest.approx(half * 1e12)
    assert peak_flops("cuda", torch.float32) == pytest.approx(full * 1e12)
    assert peak_flops("cuda", torch.bfloat16) == pytest.approx((full if "T4" in name else half) * 1e12)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert peak_flops("cuda", torch.float32) == pytest.approx(max(half / 2, full) * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3080 Ti",
        "NVIDIA GeForce RTX 4070 SUPER",
        "NVIDIA RTX A4000",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "A card of tomorrow",
    ],
)
def test_other_gpus_are_measured(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(hardware, "_measured_peak", lambda device, dtype, threads: 123.0)
    assert peak_flops("cuda", torch.bfloat16) == 123.0
