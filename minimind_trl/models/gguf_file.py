"""Write a stock twin and its tokenizer as one GGUF file, which llama.cpp, Ollama and LM Studio read.

The tensors are named and laid out as llama.cpp's own `convert_hf_to_gguf.py` does it.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..errors import CheckpointError, InputError

if TYPE_CHECKING:
    from gguf import GGUFWriter

FILE_TYPES = ("f32", "f16", "bf16", "q8_0")
PIP_LINE = "pip install 'minimind-trl[gguf]'"

# llama.cpp's name for the pre-tokenizer of GPT-2, which is what `ByteLevel(use_regex=True)` of `tokenizers` computes.
PRE_TOKENIZER = "gpt-2"

_ARCHITECTURES = {"llama": "LLAMA", "qwen3": "QWEN3", "qwen3_moe": "QWEN3MOE"}


def check_gguf_installed() -> None:
    """Check that the package `gguf` is installed.

    Raises:
        InputError: it is not.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise InputError(f"--to gguf needs the package gguf ({error}): {PIP_LINE}") from error


def write_gguf(
    twin: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, path: Path, file_type: str, name: str
) -> None:
    """Write a model and its tokenizer to a GGUF file.

    Args:
        twin: a Llama, Qwen3 or Qwen3-MoE in float32, from `to_twin`.
        tokenizer: byte-level BPE; its chat template is stored, too, and must be plain Jinja.
        path: the file to write.
        file_type: of the matrices, one of `FILE_TYPES`. Norms and routers stay float32. A matrix whose rows cannot be
            cut into q8_0's blocks of 32 becomes f16.
        name: stored as the model's name.

    Raises:
        CheckpointError: the model or the tokenizer has a feature without a counterpart in llama.cpp.
    """
    import gguf

    _check_model(twin.config)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[_architecture(twin)])
    writer.add_name(name)
    _add_config(writer, twin.config)
    _add_tokenizer(writer, tokenizer, twin.config.vocab_size)
    writer.add_file_type(_file_type_of_file(file_type))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for tensor_name, values in _tensors(twin):
        kind = _type_of_tensor(tensor_name, values, file_type)
        _check_range(tensor_name, values, kind)
        writer.add_tensor(tensor_name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _architecture(twin: PreTrainedModel):
    import gguf

    return gguf.MODEL_ARCH[_ARCHITECTURES[twin.config.model_type]]


# --- config -----------------------------------------------------------------------------------------------------------


def _check_model(config) -> None:
    problems = [
        what
        for what, present in (
            (f"hidden_act={config.hidden_act!r} (llama.cpp has 'silu' here)", config.hidden_act != "silu"),
            (
                f"rope_type={config.rope_parameters['rope_type']!r} (default, linear or yarn can be exported)",
                config.rope_parameters["rope_type"] not in ("default", "linear", "yarn"),
            ),
            (
                "norm_topk_prob=False (llama.cpp's Qwen3-MoE normalizes the router's weights)",
                not getattr(config, "norm_topk_prob", True),
            ),
        )
        if present
    ]
    if problems:
        raise CheckpointError(f"--to gguf: this model has {' and '.join(problems)}")


def _add_config(writer: "GGUFWriter", config) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    _add_rope_scaling(writer, config.rope_parameters)
    if config.model_type == "qwen3_moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _add_rope_scaling(writer: "GGUFWriter", rope: dict) -> None:
    import gguf

    if rope["rope_type"] == "default":
        return
    factor = rope["factor"]
    writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
    writer.add_rope_scaling_factor(factor)
    if rope["rope_type"] != "yarn":
        return
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
    writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)
    # Both libraries scale cosine and sine. llama.cpp multiplies its factor by what is transformers' default.
    usual = 0.1 * math.log(factor) + 1.0
    scale = rope.get("attention_factor")
    writer.add_rope_scaling_attn_factors((usual if scale is None else scale) / usual)


# --- tokenizer --------------------------------------------------------------------------------------------------------


def _add_tokenizer(writer: "GGUFWriter", tokenizer: PreTrainedTokenizerFast, size: int) -> None:
    """Store the vocabulary; ids that the model has beyond the tokenizer's are unused tokens."""
    from gguf import TokenType

    _check_tokenizer(tokenizer)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    added = tokenizer.added_tokens_decoder
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    tokens, types = [], []
    for number in range(size):
        token = by_id.get(number)
        tokens.append(f"[PAD{number}]" if token is None else token)
        if token is None:
            types.append(TokenType.UNUSED)
        elif number in added:
            types.append(TokenType.CONTROL if added[number].special else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None:
            add(number)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _check_tokenizer(tokenizer) -> None:
    """Refuse a tokenizer that is not GPT-2's kind of byte-level BPE, which all of MiniMind's are."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(f"--to gguf: {type(tokenizer).__name__} is a slow tokenizer; load the fast one")
    splitter, sample = backend.pre_tokenizer, "a  b's\n\n 12é"
    expected = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(sample)
    if (
        type(backend.model).__name__ != "BPE"
        or backend.normalizer is not None
        or not isinstance(splitter, pre_tokenizers.ByteLevel)
        or splitter.pre_tokenize_str(sample) != expected
    ):
        raise CheckpointError(
            "--to gguf: only byte-level BPE tokenizers of GPT-2's kind can be exported, such as MiniMind's; this is a "
            f"{type(backend.model).__name__} with {type(splitter).__name__} and {type(backend.normalizer).__name__}"
        )


# --- tensors ----------------------------------------------------------------------------------------------------------


def _tensors(twin: PreTrainedModel) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor by llama.cpp's name, in float32."""
    import gguf

    config = twin.config
    names = gguf.get_tensor_name_map(_architecture(twin), config.num_hidden_layers)
    for key, tensor in _separate(twin.state_dict()):
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if config.model_type == "llama" and (found := re.search(r"\.([qk])_proj\.", key)):
            heads = config.num_attention_heads if found[1] == "q" else config.num_key_value_heads
            tensor = _interleaved(tensor, heads)
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise CheckpointError(f"--to gguf: llama.cpp has no name for the tensor {key}")
        yield name, tensor.detach().float().cpu().contiguous().numpy()


def _separate(state: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Split the experts' gate and up projections, which transformers stacks and llama.cpp does not."""
    for key, tensor in state.items():
        if key.endswith(".experts.gate_up_proj"):
            layer = key.removesuffix("gate_up_proj")
            gate, up = tensor.chunk(2, dim=1)
            yield f"{layer}gate_proj.weight", gate
            yield f"{layer}up_proj.weight", up
        elif key.endswith(".experts.down_proj"):
            yield f"{key}.weight", tensor
        else:
            yield key, tensor


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows in the order of llama.cpp's Llama, which rotates neighbours instead of the halves of a head."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def _type_of_tensor(name: str, values: np.ndarray, file_type: str):
    from gguf import GGMLQuantizationType

    if values.ndim < 2 or "ffn_gate_inp" in name:
        return GGMLQuantizationType.F32
    if file_type == "q8_0" and values.shape[-1] % 32:
        return GGMLQuantizationType.F16
    return GGMLQuantizationType[file_type.upper()]


def _check_range(name: str, values: np.ndarray, kind) -> None:
    limit = np.finfo(np.float16).max
    if kind.name == "F16" and np.abs(values).max() > limit:
        raise CheckpointError(
            f"--to gguf: {name} has values beyond float16 ({limit:,.0f}); use --gguf_type bf16 or f32"
        )


def _file_type_of_file(file_type: str):
    from gguf import LlamaFileType

    return LlamaFileType["ALL_F32" if file_type == "f32" else f"MOSTLY_{file_type.upper()}"]
