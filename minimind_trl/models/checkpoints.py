"""Checkpoints from any path, and upstream's `.pth` files in and out.

A native file is a plain state dict in float16, `{stage}_{hidden}[_moe].pth`; a resume file holds one under "model". Its
keys are ours, except that it keeps every expert's three matrices apart where we stack the experts of a layer.
"""

import dataclasses
import os
import pickle
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ..errors import CheckpointError
from ..files import atomic_path
from .configuration_minimind import FAMILY_DEFAULTS, MiniMindConfig
from .modeling_minimind import MiniMindForCausalLM
from .twins import TWIN_TYPES, from_twin

NATIVE_SUFFIXES = (".pth", ".pt", ".safetensors")
_HUB_KWARGS = ("revision", "token", "subfolder", "cache_dir", "local_files_only", "trust_remote_code")
_MODEL_KWARGS = ("attn_implementation", "num_labels")

# Overrides of `load_native`: the config's fields, and the names and switches that it reads besides.
_KNOWN_FIELDS = {
    *(field.name for field in dataclasses.fields(MiniMindConfig)),
    *MiniMindConfig.attribute_map,
    *_MODEL_KWARGS,
    *("family", "inference_rope_scaling", "rope_scaling", "rope_theta", "seq_aux", "output_router_logits"),
}


# --- any path ---------------------------------------------------------------------------------------------------------


def load_model(
    name_or_path: str | os.PathLike,
    model_class: type[PreTrainedModel] = MiniMindForCausalLM,
    *,
    dtype: torch.dtype | str = torch.float32,
    config_overrides: dict[str, Any] | None = None,
    **kwargs,
) -> PreTrainedModel:
    """Load a MiniMind model from wherever it is kept.

    Args:
        name_or_path: a directory or Hub id with a MiniMind, Llama, Qwen3 or Qwen3-MoE checkpoint, or a native `.pth`.
        model_class: the MiniMind class to build; heads that the checkpoint lacks (`score`) start from random weights.
        dtype: of the parameters; "auto" keeps the file's.
        config_overrides: config fields that a native file cannot tell (see `load_native`).
        **kwargs: passed on to `from_pretrained` (`revision`, `attn_implementation`, ...).

    Raises:
        CheckpointError: the file is missing or unreadable, or tensors are missing, unexpected or of another shape.
    """
    path = Path(name_or_path)
    if path.suffix in NATIVE_SUFFIXES and not path.is_dir():
        return _load_native_as(path, model_class, dtype, config_overrides or {}, kwargs)
    if config_overrides:
        raise CheckpointError(f"{name_or_path}: {', '.join(config_overrides)} can be given for a native .pth file only")
    if not path.is_dir() and (path.is_absolute() or str(name_or_path).startswith(".") or path.exists()):
        raise CheckpointError(
            f"{name_or_path}: no such checkpoint directory; give a directory, a Hub id or a .pth file"
        )
    try:
        return _load_pretrained(name_or_path, model_class, dtype, kwargs)
    except CheckpointError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{name_or_path}: cannot be loaded: {_first_line(error)}") from error


def _load_native_as(path: Path, model_class, dtype, overrides: dict[str, Any], kwargs: dict[str, Any]):
    overrides = {**overrides, **{name: kwargs.pop(name) for name in _MODEL_KWARGS if name in kwargs}}
    if kwargs:
        raise CheckpointError(f"{path}: {', '.join(kwargs)} means nothing for a native file")
    return load_native(path, model_class=model_class, dtype=dtype, **overrides)


def _load_pretrained(
    name_or_path, model_class: type[PreTrainedModel], dtype, kwargs: dict[str, Any]
) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(name_or_path, **_only(kwargs, *_HUB_KWARGS))
    if config.model_type in TWIN_TYPES:
        own = _only(kwargs, *_MODEL_KWARGS)
        rest = {name: value for name, value in kwargs.items() if name not in own}
        twin = _from_pretrained(AutoModelForCausalLM, name_or_path, dtype=dtype, **rest)
        return _with_class(from_twin(twin, **own), model_class)
    if config.model_type != MiniMindConfig.model_type:
        raise CheckpointError(
            f"{name_or_path}: model_type {config.model_type!r} is not a MiniMind; "
            f"it must be one of minimind, {', '.join(TWIN_TYPES)}"
        )
    if config.num_experts > 0 and (state := _unstacked_state(Path(name_or_path))):
        config = MiniMindConfig(**{**config.to_dict(), **_only(kwargs, *_MODEL_KWARGS)})
        return _build_native(state, config, name_or_path, dtype, model_class)
    return _from_pretrained(model_class, name_or_path, dtype=dtype, **kwargs)


def _unstacked_state(folder: Path) -> dict[str, torch.Tensor] | None:
    """The tensors of upstream's own Hugging Face directories of a MoE, which keep every expert apart, or None."""
    files = sorted(folder.glob("*.safetensors"))
    if files and not any(_keeps_experts_apart(_safetensors_keys(file)) for file in files):
        return None  # ours: told from the headers, without reading the weights
    files = files or sorted(folder.glob("pytorch_model*.bin"))
    state = {key: value for file in files for key, value in read_native_state(file).items()}
    if not _keeps_experts_apart(state):
        return None
    if "model.embed_tokens.weight" in state:
        state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])  # safetensors store a tied tensor once
    return state


def _safetensors_keys(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def _keeps_experts_apart(keys: Iterable[str]) -> bool:
    return any(".mlp.experts.0." in key for key in keys)


def _from_pretrained(model_class, name_or_path, **kwargs) -> PreTrainedModel:
    """`from_pretrained`, but tensors that are missing, unexpected or mis-shaped are an error in place of a warning."""
    model, info = model_class.from_pretrained(
        name_or_path, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    # A new `score` head starts from random weights, and a head that the model has not is left behind; no other tensor.
    _raise_if_any(
        name_or_path,
        missing=sorted(key for key in info["missing_keys"] if not key.startswith("score.")),
        unexpected=sorted(key for key in info["unexpected_keys"] if not key.startswith(("score.", "lm_head."))),
        mismatched=[
            f"{key} is {tuple(found)}, the config wants {tuple(wanted)}"
            for key, found, wanted in info["mismatched_keys"]
        ],
    )
    return model


def _only(kwargs: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: kwargs[name] for name in names if name in kwargs}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _with_class(model: MiniMindForCausalLM, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """The same backbone under another head."""
    if model_class is MiniMindForCausalLM:
        return model
    other = model_class(model.config).to(model.dtype)
    backbone = other if not hasattr(other, "model") else other.model
    backbone.load_state_dict(model.model.state_dict())
    return other.eval()


# --- native files -----------------------------------------------------------------------------------------------------


def load_native(
    path: str | os.PathLike,
    config: MiniMindConfig | None = None,
    *,
    model_class: type[PreTrainedModel] = MiniMindForCausalLM,
    dtype: torch.dtype | str = torch.float32,
    **overrides,
) -> PreTrainedModel:
    """Load upstream's own checkpoint: a `.pth` state dict or resume file (or the same tensors as `.safetensors`).

    Pickled code is never run (`weights_only=True`). Without a config it is inferred from the shapes; what these cannot
    tell (the head count of a MiniMind2, experts per token) takes the generation's value, and that is printed.

    Args:
        path: the file.
        config: config of the model, instead of the inferred one.
        model_class: class to build; all but `MiniMindForCausalLM` take the backbone only.
        dtype: of the parameters; "auto" keeps the file's (float16 upstream).
        **overrides: config fields to set on the inferred config, such as `num_attention_heads=4`.

    Raises:
        CheckpointError: unreadable or unsafe file, or tensors that are missing, unexpected or of another shape: all of
            them are listed in the one error, and nothing is loaded.
    """
    if unknown := sorted(overrides.keys() - _KNOWN_FIELDS):
        raise CheckpointError(f"{path}: {', '.join(unknown)} is no field of MiniMindConfig")
    state = read_native_state(path)
    if config is None:
        config = infer_config(state, path, **overrides)
    elif overrides:
        raise CheckpointError(f"{path}: give either config or {', '.join(overrides)}, not both")
    return _build_native(state, config, path, dtype, model_class)


def _build_native(
    state: dict[str, torch.Tensor], config: MiniMindConfig, path, dtype, model_class: type[PreTrainedModel]
) -> PreTrainedModel:
    _check_native_state(state, config, path)
    model = MiniMindForCausalLM(config)
    if isinstance(dtype, str):
        dtype = _dtype_of(state) if dtype == "auto" else getattr(torch, dtype)
    model.to(dtype)
    model.load_state_dict(_stack_experts(state, config))
    model.tie_weights()
    model.config._name_or_path = str(path)
    return _with_class(model, model_class).eval()


def save_native(model: MiniMindForCausalLM, path: str | os.PathLike, dtype: torch.dtype = torch.float16) -> None:
    """Write a `.pth` that upstream's scripts load: a plain state dict, float16 as upstream saves it.

    Written to a temporary file first, so that an interrupted save leaves nothing half-written.

    Raises:
        CheckpointError: not a MiniMind language model, or a weight does not fit into `dtype`.
    """
    if not isinstance(model, MiniMindForCausalLM):
        raise CheckpointError(f"save_native writes MiniMindForCausalLM models, not {type(model).__name__}")
    path = Path(path)
    if path.suffix != ".pth":
        raise CheckpointError(f"{path}: a native checkpoint is a file ending in .pth, such as full_sft_768.pth")
    state = {key: value.cpu() for key, value in _unstack_experts(model.state_dict()).items()}
    too_large = [key for key, value in state.items() if not torch.isfinite(value.to(dtype)).all()]
    if too_large:
        raise CheckpointError(f"{path}: weights not finite as {dtype}: {', '.join(too_large)}; save it as float32")
    if untold := _untold(model.config):
        print(f"{path}: the file does not tell {', '.join(untold)}, which upstream's loader must be given")
    with atomic_path(path) as temporary:
        torch.save({key: value.to(dtype).contiguous() for key, value in state.items()}, temporary)


def _untold(config: MiniMindConfig) -> list[str]:
    """Fields that matter to the outputs, differ from the generation's defaults, and leave no trace in the tensors."""
    family = "minimind3" if config.use_qk_norm else "minimind2"
    usual = MiniMindConfig(family=family, num_experts=config.num_experts)
    fields = ["rms_norm_eps", "rope_parameters", "num_experts_per_tok", "norm_topk_prob"]
    if not config.use_qk_norm:
        fields.append("num_attention_heads")
    return [f"{name}={getattr(config, name)}" for name in fields if getattr(config, name) != getattr(usual, name)]


def read_native_state(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The state dict in a native file, without running any code from it.

    Raises:
        CheckpointError: no such file, not a checkpoint, or a pickle that holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message tells how to switch the protection off, so only the object's name is passed on
        name = re.search(r"GLOBAL (\S+)", str(error))
        found = f"it holds {name[1]}" if name else "its pickle is not one of tensors"
        raise CheckpointError(
            f"{path}: refused, the file is not a plain set of tensors and could run code when loaded ({found})"
        ) from error
    except (RuntimeError, EOFError, OSError, LookupError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable PyTorch checkpoint ({_first_line(error)})") from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]  # a resume file
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()
    ):
        raise CheckpointError(f"{path}: holds no state dict (a dictionary of tensors, or one under the key 'model')")
    return content


def infer_config(state: dict[str, torch.Tensor], path: str | os.PathLike, **overrides) -> MiniMindConfig:
    """Config of a native state dict, by majority over its tensors so that a damaged one does not mislead.

    Prints which fields the file does not tell. Raises `CheckpointError` where the tensors are not a MiniMind's.
    """
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    num_layers = _count_indices(shapes, r"^model\.layers\.(\d+)\.")
    hidden_size = _vote(shapes, (r"layernorm\.weight$|^model\.norm\.weight$", 0), (r"[qkv]_proj\.weight$", 1))
    intermediate_size = _vote(shapes, (r"(gate|up)_proj\.weight$", 0), (r"down_proj\.weight$", 1))
    vocab_size = _vote(shapes, (r"^(model\.embed_tokens|lm_head)\.weight$", 0))
    query_size = _vote(shapes, (r"q_proj\.weight$", 0), (r"o_proj\.weight$", 1))
    key_size = _vote(shapes, (r"[kv]_proj\.weight$", 0))
    if not num_layers or None in (hidden_size, intermediate_size, vocab_size, query_size, key_size):
        raise CheckpointError(
            f"{path}: not a MiniMind checkpoint; expected keys such as 'model.layers.0.self_attn.q_proj.weight', "
            f"found {', '.join(sorted(shapes)[:5]) or 'none'}"
        )
    head_dim = _vote(shapes, (r"[qk]_norm\.weight$", 0))
    family = "minimind2" if head_dim is None else "minimind3"
    assumed: dict[str, Any] = {}
    if head_dim is None:
        heads = overrides.get("num_attention_heads")
        if heads is None:
            heads = assumed["num_attention_heads"] = 8
        if heads < 1 or query_size % heads or key_size % (query_size // heads):
            raise CheckpointError(
                f"{path}: num_attention_heads={heads} does not fit q_proj of {query_size} and k_proj of {key_size} "
                "rows; give the number that the model was trained with (--num_attention_heads)"
            )
        head_dim = query_size // heads
    fields: dict[str, Any] = {
        "family": family,
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": query_size // head_dim,
        "num_key_value_heads": key_size // head_dim,
        "head_dim": head_dim,
        "tie_word_embeddings": _is_tied(state),
    }
    if num_experts := _count_indices(shapes, r"\.mlp\.experts\.(\d+)\."):
        fields["num_experts"] = num_experts
        fields["n_shared_experts"] = _count_indices(shapes, r"\.shared_experts\.(\d+)\.")
        if "num_experts_per_tok" not in overrides:
            top_k = FAMILY_DEFAULTS[family]["num_experts_per_tok"]
            fields["num_experts_per_tok"] = assumed["num_experts_per_tok"] = top_k
    if assumed:
        values = ", ".join(f"{name}={value}" for name, value in assumed.items())
        print(f"{path}: the file does not tell {', '.join(assumed)}; assuming {family}'s {values}")
    try:
        return MiniMindConfig(**{**fields, **overrides})
    except ValueError as error:
        raise CheckpointError(f"{path}: its tensors make no MiniMind: {error}") from error


def _vote(shapes: dict[str, tuple[int, ...]], *where: tuple[str, int]) -> int | None:
    """The most common size over all tensors whose key matches a pattern, along the dimension beside it."""
    sizes = Counter(
        shape[dim]
        for pattern, dim in where
        for key, shape in shapes.items()
        if re.search(pattern, key) and len(shape) > dim
    )
    return sizes.most_common(1)[0][0] if sizes else None


def _count_indices(shapes: dict[str, tuple[int, ...]], pattern: str) -> int:
    """Layers or experts by the numbers in the keys; a number that few tensors carry is taken for a misnamed one."""
    tensors = Counter(int(match[1]) for key in shapes if (match := re.search(pattern, key)))
    usual = max(tensors.values(), default=0)
    return max((index + 1 for index, count in tensors.items() if count > usual / 2), default=0)


def _is_tied(state: dict[str, torch.Tensor]) -> bool:
    head, embedding = state.get("lm_head.weight"), state.get("model.embed_tokens.weight")
    if head is None or embedding is None or head.shape != embedding.shape:
        return True  # upstream always ties; the missing or mis-shaped tensor is reported by the check
    return torch.equal(head, embedding)


def _tied_with(key: str, state: dict[str, torch.Tensor]) -> str:
    # Of two tied tensors with different shapes, the shapes alone cannot tell which one is damaged.
    other = {"lm_head.weight": "model.embed_tokens.weight", "model.embed_tokens.weight": "lm_head.weight"}.get(key)
    return f" (as {other}, to which it is tied, is {tuple(state[other].shape)})" if other in state else ""


def _dtype_of(state: dict[str, torch.Tensor]) -> torch.dtype:
    return next(value.dtype for value in state.values() if value.is_floating_point())


def _check_native_state(state: dict[str, torch.Tensor], config: MiniMindConfig, path: str | os.PathLike) -> None:
    with torch.device("meta"):
        expected = _unstack_experts(MiniMindForCausalLM(config).state_dict())
    _raise_if_any(
        path,
        missing=sorted(expected.keys() - state.keys()),
        unexpected=sorted(state.keys() - expected.keys()),
        mismatched=[
            f"{key} is {tuple(state[key].shape)}, the config wants {tuple(value.shape)}{_tied_with(key, state)}"
            for key, value in expected.items()
            if key in state and state[key].shape != value.shape
        ],
    )
    if config.tie_word_embeddings and not _is_tied(state):
        raise CheckpointError(
            f"{path}: lm_head.weight differs from model.embed_tokens.weight, but the config ties them; "
            "load it with tie_word_embeddings=False"
        )


def _raise_if_any(path, *, missing: list[str], unexpected: list[str], mismatched: list[str]) -> None:
    problems = [
        f"{len(keys)} {kind}: {', '.join(keys)}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched))
        if keys
    ]
    if problems:
        raise CheckpointError(f"{path}: tensors do not fit the model, nothing was loaded\n  " + "\n  ".join(problems))


def _stack_experts(state: dict[str, torch.Tensor], config: MiniMindConfig) -> dict[str, torch.Tensor]:
    """Native keys to ours: `experts.E.{gate,up,down}_proj.weight` become `experts.{gate_up_proj,down_proj}`."""
    if config.num_experts == 0:
        return state
    stacked = {key: value for key, value in state.items() if not re.search(r"\.mlp\.experts\.\d+\.", key)}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}.mlp.experts"
        gate, up, down = (
            torch.stack([state[f"{prefix}.{expert}.{name}_proj.weight"] for expert in range(config.num_experts)])
            for name in ("gate", "up", "down")
        )
        stacked[f"{prefix}.gate_up_proj"] = torch.cat([gate, up], dim=1)
        stacked[f"{prefix}.down_proj"] = down
    return stacked


def _unstack_experts(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our keys to native ones; the inverse of `_stack_experts`."""
    native = {}
    for key, value in state.items():
        if key.endswith(".experts.gate_up_proj"):
            prefix = key.removesuffix(".gate_up_proj")
            for expert, (gate, up) in enumerate(part.chunk(2) for part in value):
                native[f"{prefix}.{expert}.gate_proj.weight"] = gate
                native[f"{prefix}.{expert}.up_proj.weight"] = up
        elif key.endswith(".experts.down_proj"):
            for expert, down in enumerate(value):
                native[f"{key.removesuffix('.down_proj')}.{expert}.down_proj.weight"] = down
        else:
            native[key] = value
    return native
