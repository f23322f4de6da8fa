"""Peak FLOP/s of a device and training FLOPs of a model: the two sides of model FLOPs utilisation (MFU)."""

import functools
import platform
import re
import subprocess
import time
from pathlib import Path

import torch
from transformers import PreTrainedConfig

# Model types that `train_flops_per_token` supports.
COUNTED_MODELS = ("minimind", "llama", "qwen3", "qwen3_moe")

_TERA = 1e12
_MEASURE_SECONDS = 0.4

# Dense peaks in TFLOP/s: (bf16 or fp16 on tensor cores with fp32 accumulation, plain fp32), keyed by a part of the name
# that CUDA reports. The first match wins, so specific names come before general ones. Values that data sheets quote
# for tensor cores "with sparsity" are halved.
_NVIDIA = {
    # Blackwell: HGX B200/B300 and GB200 NVL72 data sheets; RTX Blackwell architecture whitepaper, appendix A
    "GB200": (2500, 80),
    "B300": (2250, 75),
    "B200": (2250, 75),
    "B100": (1750, 60),
    "RTX PRO 6000": (503.8, 125),
    "RTX 5090": (209.5, 104.8),
    "RTX 5080": (112.6, 56.3),
    "RTX 5070 Ti": (87.9, 43.9),
    "RTX 5070": (61.7, 30.9),
    # Hopper: H100, H200 and GH200 data sheets
    "GH200": (989.4, 66.9),
    "H200 NVL": (835.5, 60),
    "H200": (989.4, 66.9),
    "H100 NVL": (835.5, 60),
    "H100 PCIe": (756, 51),
    "H100": (989.4, 66.9),
    "H800 PCIe": (756, 51),
    "H800": (989.4, 66.9),
    "H20": (148, 44),
    # Ada: L4, L40 and L40S data sheets; Ada architecture whitepaper, appendices A and B
    "L40S": (362, 91.6),
    "L40": (181, 90.5),
    "L4": (121, 30.3),
    "RTX 6000 Ada": (364.2, 91.1),
    "RTX 4090": (165.2, 82.6),
    "RTX 4080": (97.5, 48.7),
    "RTX 4070 Ti": (80.2, 40.1),
    "RTX 4070": (58.3, 29.1),
    "RTX 4060 Ti": (44.1, 22.1),
    "RTX 4060": (30.2, 15.1),
    # Ampere: A100, A30, A10 and A40 data sheets; GA102 whitepaper, appendix A; AWS on the A10G
    "A100": (312, 19.5),
    "A800": (312, 19.5),
    "A10G": (70, 35),
    "A30": (165, 10.3),
    "A10": (125, 31.2),
    "A40": (149.7, 37.4),
    "RTX A6000": (154.8, 38.7),
    "RTX 3090 Ti": (80, 40),
    "RTX 3090": (71, 35.6),
    "RTX 3080": (59.5, 29.8),
    "RTX 3070": (40.6, 20.3),
    # Volta and Turing (fp16 only): V100 and T4 data sheets
    "V100-PCIE": (112, 14),
    "V100": (125, 15.7),
    "T4": (65, 8.1),
}
# Laptop, Max-Q and cut-down cards share a desktop card's name but not its speed.
_OTHER_CARD = re.compile(r"Laptop|Max-Q|SUPER|Ti\b|MIG|\bD\b")
# TFLOP/s in fp32; Apple's GPUs before the M5 have the same rate in half precision. From Apple's announcement of each
# chip with all its GPU cores.
_APPLE = {"M1": 2.6, "M1 Pro": 5.2, "M1 Max": 10.4, "M1 Ultra": 21, "M2": 3.6}


def has_fast_bf16(use_cpu: bool) -> bool:
    """Whether the device computes bfloat16 faster than float32 (on CPUs: AVX512-BF16 or AMX)."""
    if not use_cpu:
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    # Linux lists the feature in /proc/cpuinfo; elsewhere float32 is the safe choice
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and re.search(r"\b(avx512_bf16|amx_bf16)\b", cpuinfo.read_text()) is not None


def peak_flops(device: torch.device | str, dtype: torch.dtype) -> float:
    """Dense peak of one device in FLOP/s; a multiply-add counts as two.

    Common NVIDIA and Apple GPUs have the peak of their data sheets. For any other device, including every CPU, it is
    the best measured rate of a matrix product with torch's current threads; it takes about half a second and is cached.
    If torch may use TF32 for float32, the peak is TF32's: half of bfloat16's on all GPUs that have it.
    """
    device = torch.device(device)
    listed = _listed_peak(device, dtype)
    return listed if listed is not None else _measured_peak(device, dtype, torch.get_num_threads())


def train_flops_per_token(
    config: PreTrainedConfig,
    sequence_length: float,
    output_size: int | None = None,
    trained_parameters: int | None = None,
) -> float:
    """FLOPs of one training step per token, forward and backward: `6 * N + 12 * layers * heads * head_dim * T`.

    This is the formula of PaLM (arXiv 2204.02311, appendix B), which nanochat also uses. N counts the weights that
    multiply a token: the output head (tied or not), the router and the experts that the token is routed to. It excludes
    embeddings, norms and biases. The attention term counts the full T x T square, as both of them do. A causal kernel
    may skip half of it, so for long rows the result overstates such a kernel by up to half of the attention's share.
    Recomputed activations do not count.

    Args:
        config: config of a MiniMind, Llama, Qwen3 or Qwen3-MoE model with full attention in every layer.
        sequence_length: tokens that a token attends to, T. For rows of different lengths the mean over *tokens*,
            `sum(length^2) / sum(length)`, is exact.
        output_size: width of the head; `vocab_size` by default, `num_labels` for a reward model.
        trained_parameters: number of parameters with gradients, if not all have them (LoRA). Each of the N weights then
            costs 4 FLOPs, and each trained one 2 more.

    Raises:
        ValueError: the model type is not one of `COUNTED_MODELS`.
    """
    if config.model_type not in COUNTED_MODELS:
        raise ValueError(f"FLOPs of a {config.model_type!r} model are unknown; supported: {', '.join(COUNTED_MODELS)}")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    query, key = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    attention = config.hidden_size * (query + key + key + query)
    feed_forward = sum(_feed_forward_weights(config, layer) for layer in range(config.num_hidden_layers))
    head = config.hidden_size * (config.vocab_size if output_size is None else output_size)
    weights = config.num_hidden_layers * attention + feed_forward + head
    scores = 12 * config.num_hidden_layers * query * sequence_length
    return 4 * weights + 2 * (weights if trained_parameters is None else trained_parameters) + scores


def _feed_forward_weights(config: PreTrainedConfig, layer: int) -> int:
    """Weights of a layer's gated FFN that multiply one token."""
    experts = getattr(config, "num_experts", 0)
    dense = layer in (getattr(config, "mlp_only_layers", None) or ())
    if not experts or dense or (layer + 1) % (getattr(config, "decoder_sparse_step", None) or 1):
        return 3 * config.hidden_size * config.intermediate_size
    active = config.num_experts_per_tok + getattr(config, "n_shared_experts", 0)
    return config.hidden_size * (3 * active * config.moe_intermediate_size + experts)


def _listed_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    half = dtype in (torch.bfloat16, torch.float16)
    if not half and dtype != torch.float32:
        return None
    if device.type == "mps":
        peak = _APPLE.get(_apple_chip())
        return peak and peak * _TERA
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    key = next((key for key in _NVIDIA if re.search(rf"\b{key}\b", name)), None)
    if key is None or _OTHER_CARD.search(name.replace(key, "", 1)):
        return None
    half_peak, full_peak = _NVIDIA[key]
    if half:
        # before Ampere bfloat16 is emulated
        return half_peak * _TERA if dtype == torch.float16 or has_fast_bf16(use_cpu=False) else full_peak * _TERA
    has_tf32 = torch.cuda.get_device_capability(device)[0] >= 8
    tf32 = has_tf32 and torch.get_float32_matmul_precision() != "highest"
    return max(half_peak / 2 if tf32 else 0, full_peak) * _TERA


def _apple_chip() -> str:
    """The chip's name, such as `M1 Pro`; empty if it is unknown."""
    if platform.system() != "Darwin":
        return ""
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    name = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return name.strip().removeprefix("Apple ")


@functools.cache
def _measured_peak(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """Best rate of square matrix products in FLOP/s; the size doubles while a product takes under 10 ms."""
    del threads  # only part of the cache key
    best, size, deadline = 0.0, 256, time.perf_counter() + _MEASURE_SECONDS
    left = right = torch.ones(size, size, device=device, dtype=dtype)
    while True:
        left @ right  # the first product of a size sets up kernels
        _synchronize(device)
        start = time.perf_counter()
        left @ right
        _synchronize(device)
        seconds = time.perf_counter() - start
        best = max(best, 2 * size**3 / seconds)
        if time.perf_counter() + 2 * seconds > deadline:
            return best
        if seconds < _MEASURE_SECONDS / 40 and size < 8192:
            size *= 2
            left = right = torch.ones(size, size, device=device, dtype=dtype)


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
