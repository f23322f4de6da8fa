"""Load checkpoints from any path; read and write upstream's native `.pth` files.

A native file is a plain state dict in float16, `{stage}_{hidden}[_moe].pth`; a resume file holds one under "model". Its
keys are ours, except that it stores three matrices per expert, while we stack the experts of a layer.
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE

from ..errors import CheckpointError, InputError, one_line
from ..files import atomic_path
from .adapters import Adapter, adapter_chain, adapter_class, adapter_config_file
from .configuration_minimind import FAMILY_DEFAULTS, MiniMindConfig
from .modeling_minimind import MiniMindForCausalLM
from .names import check_name, looks_like_path
from .stored import (
    UNREADABLE,
    check_finite,
    common_size,
    count_numbered,
    is_native_file,
    read_config,
    read_native_state,
    size_problems,
    weight_files,
    without_load_report,
)
from .twins import TWIN_TYPES, from_twin

_HUB_KWARGS = ("revision", "token", "subfolder", "cache_dir", "local_files_only", "trust_remote_code")
_MODEL_KWARGS = ("attn_implementation", "num_labels")
_OTHER_HEADS = ("ForSequenceClassification", "ForTokenClassification")
OWN_TYPES = (MiniMindConfig.model_type, *TWIN_TYPES)  # model types whose tensor names are known

# Overrides that `load_native` accepts: the config's fields, and the other keys that the config reads.
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
    merge: bool = True,
    **kwargs,
) -> PreTrainedModel:
    """Load a MiniMind model from any kind of checkpoint. Code that comes with the checkpoint is not run.

    Args:
        name_or_path: a directory or Hub id with a MiniMind, Llama, Qwen3 or Qwen3-MoE checkpoint, a native `.pth`, or
            a PEFT adapter of any of them, which is merged into its base model.
        model_class: the MiniMind class to build; heads that the checkpoint lacks (`score`) start from random weights.
        dtype: dtype of the parameters; "auto" keeps the file's.
        config_overrides: config fields that a native file does not store (see `load_native`), also if the file is an
            adapter's base.
        merge: False keeps an adapter separate and returns a `PeftModel`.
        **kwargs: passed on to `from_pretrained` (`revision`, `attn_implementation`, ...).

    Raises:
        CheckpointError: the file is missing or unreadable; its config does not fit its tensors; tensors are missing,
            unexpected, of another shape or not finite; or the checkpoint has another head than `model_class`.
    """
    path = Path(name_or_path)
    if is_native_file(path):
        return _load_native_as(path, model_class, dtype, config_overrides or {}, kwargs)
    if path.is_file() or (not path.exists() and looks_like_path(str(name_or_path))):
        raise CheckpointError(
            f"{name_or_path}: no such checkpoint directory; give a directory, a Hub id or a .pth file"
        )
    _check_name(name_or_path, kwargs.get("cache_dir"))
    if adapter_config_file(name_or_path, **_only(kwargs, *_HUB_KWARGS)):
        return _load_adapter(name_or_path, model_class, dtype, config_overrides, merge, kwargs)
    if config_overrides:
        raise CheckpointError(f"{name_or_path}: {', '.join(config_overrides)} is for native .pth files only")
    try:
        model = _load_pretrained(name_or_path, model_class, dtype, kwargs)
    except CheckpointError:
        raise
    except UNREADABLE as error:
        raise CheckpointError(f"{name_or_path}: cannot be loaded: {one_line(error)}") from error
    check_finite(model.named_parameters(), name_or_path)
    return model


def load_tokenizer_of(name_or_path: str | os.PathLike, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint; for an adapter without one, that of its base model.

    Raises:
        CheckpointError: there is no tokenizer, or it cannot be read.
    """
    _check_name(name_or_path)
    try:
        name = tokenizer_folder(name_or_path) or str(name_or_path)
        if (Path(name) / "config.json").is_file():  # AutoTokenizer reads it, too
            read_config(name, OWN_TYPES)
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except CheckpointError:
        raise
    except UNREADABLE as error:
        raise CheckpointError(f"no tokenizer at {name_or_path}: {one_line(error)}") from error


def _check_name(name: str | os.PathLike, cache_dir: str | None = None) -> None:
    try:
        check_name(name, cache_dir=cache_dir)
    except InputError as error:
        raise CheckpointError(str(error)) from error


def tokenizer_folder(name_or_path: str | os.PathLike) -> str | None:
    """The folder or Hub id of a checkpoint's tokenizer; None if there is no tokenizer.

    An adapter without a tokenizer has its base model's. A Hub id is assumed to have a tokenizer.
    """
    for name in adapter_chain(name_or_path):
        if is_native_file(name):  # has no tokenizer
            continue
        if not Path(name).exists() or (Path(name) / TOKENIZER_CONFIG_FILE).is_file():
            return name
    return None


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str | os.PathLike) -> None:
    """Refuse a tokenizer with ids beyond the model's embeddings.

    Raises:
        CheckpointError: there is such an id.
    """
    size = vocabulary_size(tokenizer)
    if size > model.config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {size} tokens, {name} only {model.config.vocab_size}: "
            "give --tokenizer the tokenizer that the checkpoint was trained with"
        )


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of embeddings that a tokenizer needs: its highest id plus one."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def architecture_of(name_or_path: str | os.PathLike) -> str | None:
    """The class that a checkpoint was saved as, such as MiniMindForCausalLM; None if it is unknown.

    Raises:
        CheckpointError: a local checkpoint's config cannot be read.
    """
    if (of_adapter := adapter_class(name_or_path)) is not None:
        return of_adapter.__name__
    name = adapter_chain(name_or_path)[-1]
    if is_native_file(name):
        return MiniMindForCausalLM.__name__
    try:
        config, _ = read_config(name, OWN_TYPES)
    except CheckpointError:
        if (Path(name) / "config.json").is_file():
            raise
        return None  # missing or unreachable: loading it reports why
    return next(iter(config.get("architectures") or []), None)


def _load_native_as(path: Path, model_class, dtype, overrides: dict[str, Any], kwargs: dict[str, Any]):
    overrides = {**overrides, **{name: kwargs.pop(name) for name in _MODEL_KWARGS if name in kwargs}}
    if kwargs:
        raise CheckpointError(f"{path}: {', '.join(kwargs)} does not apply to a native file")
    return load_native(path, model_class=model_class, dtype=dtype, **overrides)


def _load_adapter(
    name, model_class: type[PreTrainedModel], dtype, overrides: dict[str, Any] | None, merge: bool, kwargs: dict
) -> PreTrainedModel:
    """An adapter's base model with the adapter merged or, with `merge=False`, attached."""
    adapter_chain(name, **_only(kwargs, *_HUB_KWARGS))  # refuses a circle
    adapter = Adapter(name, **_only(kwargs, *_HUB_KWARGS))
    own_class = adapter.model_class or model_class
    if own_class is not model_class and own_class is not MiniMindForCausalLM:
        raise _other_head(name, own_class.__name__, model_class)
    of_base = _only(kwargs, "attn_implementation")
    if own_class is not MiniMindForCausalLM:
        if adapter.labels is None and architecture_of(adapter.base) != own_class.__name__:
            raise CheckpointError(f"{name}: neither the adapter nor its base model {adapter.base} has a head (score)")
        of_base["num_labels"] = adapter.labels or kwargs.get("num_labels", 1)
    try:
        model = load_model(adapter.base, own_class, dtype=dtype, config_overrides=overrides, **of_base)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: the adapter's base model: {error}") from error
    if not merge:
        return adapter.put_on(model)
    merged = _with_name(adapter.merged_into(model), name)
    if own_class is not model_class and "num_labels" in kwargs:
        merged.config.num_labels = kwargs["num_labels"]
    return _with_class(merged, model_class)


def _other_head(name, architecture: str, wanted: type[PreTrainedModel]) -> CheckpointError:
    return CheckpointError(
        f"{name} is a {architecture}, which generates no text: give the language model that it was trained from"
        if wanted is MiniMindForCausalLM
        else f"{name} is a {architecture}, not a {wanted.__name__}"
    )


def _load_pretrained(
    name_or_path, model_class: type[PreTrainedModel], dtype, kwargs: dict[str, Any]
) -> PreTrainedModel:
    hub = {"trust_remote_code": False, **_only(kwargs, *_HUB_KWARGS)}
    stored, shapes = read_config(name_or_path, OWN_TYPES, **hub)
    if not shapes:
        raise CheckpointError(f"{name_or_path}: cannot be loaded: no model.safetensors or pytorch_model.bin there")
    config = AutoConfig.from_pretrained(name_or_path, **hub)
    if config.model_type not in OWN_TYPES:
        raise CheckpointError(
            f"{name_or_path}: model_type {config.model_type!r} is not a MiniMind; "
            f"it must be one of minimind, {', '.join(TWIN_TYPES)}"
        )
    problems = size_problems(lambda field: getattr(config, field, None), shapes)
    if problems and not stored.get("quantization_config"):
        raise CheckpointError(f"{name_or_path}: config.json does not fit: {'; '.join(problems)}")
    made_for = next(iter(stored.get("architectures") or []), "")
    is_twin = config.model_type in TWIN_TYPES
    if made_for.endswith(_OTHER_HEADS) and (is_twin or model_class is MiniMindForCausalLM):
        raise _other_head(name_or_path, made_for, model_class)
    if is_twin:
        own = _only(kwargs, *_MODEL_KWARGS)
        rest = {name: value for name, value in kwargs.items() if name not in own}
        twin = _from_pretrained(AutoModelForCausalLM, name_or_path, dtype=dtype, **{**rest, **hub})
        return _with_class(_with_name(from_twin(twin, **own), name_or_path), model_class)
    has_separate_experts = any(".mlp.experts.0." in key for key in shapes)
    if config.num_experts > 0 and has_separate_experts:  # upstream's own Hugging Face directories
        config = MiniMindConfig(**{**config.to_dict(), **_only(kwargs, *_MODEL_KWARGS)})
        return _build_native(_state_in(name_or_path, **hub), config, name_or_path, dtype, model_class)
    head_may_miss = made_for != model_class.__name__
    return _from_pretrained(model_class, name_or_path, head_may_miss, dtype=dtype, **{**kwargs, **hub})


def _state_in(name_or_path, **hub) -> dict[str, torch.Tensor]:
    """All stored tensors of a directory or Hub id; safetensors files store a tied tensor once."""
    state = {key: value for file in weight_files(name_or_path, **hub) for key, value in read_native_state(file).items()}
    if "model.embed_tokens.weight" in state:
        state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    return state


def _from_pretrained(model_class, name_or_path, head_may_miss: bool = True, **kwargs) -> PreTrainedModel:
    """`from_pretrained` that raises an error for missing, unexpected or mis-shaped tensors instead of a warning."""
    with without_load_report():
        model, info = model_class.from_pretrained(
            name_or_path, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    # A new `score` head starts from random weights, and a head that the model lacks is dropped. All else must match.
    _raise_if_any(
        name_or_path,
        missing=sorted(key for key in info["missing_keys"] if not (head_may_miss and key.startswith("score."))),
        unexpected=sorted(key for key in info["unexpected_keys"] if not key.startswith(("score.", "lm_head."))),
        mismatched=[
            f"{key} is {tuple(found)}, the config wants {tuple(wanted)}"
            for key, found, wanted in info["mismatched_keys"]
        ],
    )
    return model


def _only(kwargs: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: kwargs[name] for name in names if name in kwargs}


def _with_name(model: PreTrainedModel, name) -> PreTrainedModel:
    """Record the checkpoint's name in the model: adapters store it as their base model."""
    model.config.name_or_path = model.name_or_path = str(name)
    return model


def _with_class(model: MiniMindForCausalLM, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    """The same backbone under another head."""
    if type(model) is model_class:
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

    Pickled code is never run (`weights_only=True`). Without a config, one is inferred from the shapes. Fields that
    leave no trace in the shapes (heads of a MiniMind2, experts per token) get their generation's value, and a message
    lists them.

    Args:
        path: the file.
        config: config of the model, instead of the inferred one.
        model_class: class to build; all but `MiniMindForCausalLM` use the backbone only.
        dtype: dtype of the parameters; "auto" keeps the file's (float16 upstream).
        **overrides: config fields to set on the inferred config, such as `num_attention_heads=4`.

    Raises:
        CheckpointError: the file is unreadable or unsafe, or tensors are missing, unexpected or of another shape. The
            error lists all of them.
    """
    if unknown := sorted(overrides.keys() - _KNOWN_FIELDS):
        raise CheckpointError(f"{path}: not a field of MiniMindConfig: {', '.join(unknown)}")
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
    check_finite(state.items(), path)
    model = MiniMindForCausalLM(config)
    if dtype == "auto":
        dtype = next(value.dtype for value in state.values() if value.is_floating_point())
    model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    model.load_state_dict(_stack_experts(state, config))
    model.tie_weights()
    return _with_class(_with_name(model, path), model_class).eval()


def save_native(model: MiniMindForCausalLM, path: str | os.PathLike, dtype: torch.dtype = torch.float16) -> None:
    """Write a `.pth` that upstream's scripts load: a plain state dict, float16 as upstream saves it.

    The write is atomic, so an interrupted save leaves no partial file.

    Raises:
        CheckpointError: the model is not a MiniMind language model, or a weight overflows `dtype`.
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
    if unstored := _unstored_fields(model.config):
        print(f"{path}: the file does not store {', '.join(unstored)}; pass it to upstream's loader")
    with atomic_path(path) as temporary:
        torch.save({key: value.to(dtype).contiguous() for key, value in state.items()}, temporary)


def _unstored_fields(config: MiniMindConfig) -> list[str]:
    """Fields that affect the outputs, differ from their generation's defaults and leave no trace in the tensors."""
    family = "minimind3" if config.use_qk_norm else "minimind2"
    usual = MiniMindConfig(family=family, num_experts=config.num_experts)
    fields = ["rms_norm_eps", "rope_parameters", "num_experts_per_tok", "norm_topk_prob"]
    if not config.use_qk_norm:
        fields.append("num_attention_heads")
    return [f"{name}={getattr(config, name)}" for name in fields if getattr(config, name) != getattr(usual, name)]


def infer_config(state: dict[str, torch.Tensor], path: str | os.PathLike, **overrides) -> MiniMindConfig:
    """Infer the config of a native state dict by majority over its tensors, so that a damaged one does not mislead.

    Prints the fields that had to be assumed.

    Raises:
        CheckpointError: the tensors are not those of a MiniMind.
    """
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    num_layers = count_numbered(shapes, r"^model\.layers\.(\d+)\.")
    hidden_size = common_size(shapes, (r"layernorm\.weight$|^model\.norm\.weight$", 0), (r"[qkv]_proj\.weight$", 1))
    intermediate_size = common_size(shapes, (r"(gate|up)_proj\.weight$", 0), (r"down_proj\.weight$", 1))
    vocab_size = common_size(shapes, (r"^(model\.embed_tokens|lm_head)\.weight$", 0))
    query_size = common_size(shapes, (r"q_proj\.weight$", 0), (r"o_proj\.weight$", 1))
    key_size = common_size(shapes, (r"[kv]_proj\.weight$", 0))
    if not num_layers or None in (hidden_size, intermediate_size, vocab_size, query_size, key_size):
        raise CheckpointError(
            f"{path}: not a MiniMind checkpoint; expected keys such as 'model.layers.0.self_attn.q_proj.weight', "
            f"found {', '.join(sorted(shapes)[:5]) or 'none'}"
        )
    head_dim = common_size(shapes, (r"[qk]_norm\.weight$", 0))
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
    if num_experts := count_numbered(shapes, r"\.mlp\.experts\.(\d+)\."):
        fields["num_experts"] = num_experts
        fields["n_shared_experts"] = count_numbered(shapes, r"\.shared_experts\.(\d+)\.")
        if "num_experts_per_tok" not in overrides:
            top_k = FAMILY_DEFAULTS[family]["num_experts_per_tok"]
            fields["num_experts_per_tok"] = assumed["num_experts_per_tok"] = top_k
    if assumed:
        values = ", ".join(f"{name}={value}" for name, value in assumed.items())
        print(f"{path}: the file does not store {', '.join(assumed)}; assuming {family}'s {values}")
    try:
        return MiniMindConfig(**{**fields, **overrides})
    except ValueError as error:
        raise CheckpointError(f"{path}: its tensors are not those of a MiniMind: {error}") from error


def _is_tied(state: dict[str, torch.Tensor]) -> bool:
    head, embedding = state.get("lm_head.weight"), state.get("model.embed_tokens.weight")
    if head is None or embedding is None or head.shape != embedding.shape:
        return True  # upstream always ties; the check reports a missing or mis-shaped tensor
    return torch.equal(head, embedding)


def _tied_with(key: str, state: dict[str, torch.Tensor]) -> str:
    # If two tied tensors differ in shape, either one may be damaged.
    other = {"lm_head.weight": "model.embed_tokens.weight", "model.embed_tokens.weight": "lm_head.weight"}.get(key)
    return f" (as {other}, to which it is tied, is {tuple(state[other].shape)})" if other in state else ""


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
    """Convert native keys to ours: `experts.E.{gate,up,down}_proj.weight` to `experts.{gate_up_proj,down_proj}`."""
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
    """Convert our keys to native ones; the inverse of `_stack_experts`."""
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
