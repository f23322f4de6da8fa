"""Convert MiniMind models to and from their twins: the stock Llama, Qwen3 or Qwen3-MoE that computes the same."""

import copy

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3MoeForSequenceClassification,
)

from ..errors import CheckpointError
from .configuration_minimind import MiniMindConfig
from .modeling_minimind import MiniMindForCausalLM, MiniMindForSequenceClassification

# The classes of each type: config, language model, reward model.
_TWINS = {
    "llama": (LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, Qwen3MoeForSequenceClassification),
}
TWIN_TYPES = tuple(_TWINS)

_SHARED_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache",
    "tie_word_embeddings", "rope_parameters", "attention_bias", "attention_dropout", "pad_token_id", "bos_token_id",
    "eos_token_id",
)  # fmt: skip
_MOE_FIELDS = (
    "num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "router_aux_loss_coef",
    "output_router_logits",
)  # fmt: skip


def twin_type(config: MiniMindConfig) -> str:
    """The stock architecture that computes the same function: "llama", "qwen3" or "qwen3_moe".

    Raises:
        CheckpointError: there is none (MiniMind2's mixture of experts).
    """
    if config.num_experts == 0:
        return "qwen3" if config.use_qk_norm else "llama"
    if config.use_qk_norm and config.n_shared_experts == 0:
        return "qwen3_moe"
    raise CheckpointError(
        "a MiniMind2 mixture of experts (shared experts, no QK norm) has no stock twin; convert it --to hf or native"
    )


def to_twin(model: MiniMindForCausalLM | MiniMindForSequenceClassification) -> PreTrainedModel:
    """The same weights, bit for bit, as a Llama (MiniMind2), Qwen3 (MiniMind-3) or Qwen3-MoE (MiniMind-3 MoE).

    A reward model becomes one of the same type.

    Raises:
        CheckpointError: from `twin_type`.
    """
    kind = twin_type(model.config)
    fields = {name: _copied(getattr(model.config, name)) for name in _SHARED_FIELDS}
    if kind == "qwen3_moe":
        fields |= {name: getattr(model.config, name) for name in _MOE_FIELDS}
    config_class, language_model, reward_model = _TWINS[kind]
    if isinstance(model, MiniMindForSequenceClassification):
        return _with_weights_of(model, reward_model(config_class(**fields, num_labels=model.config.num_labels)))
    return _with_weights_of(model, language_model(config_class(**fields)))


def from_twin(twin: PreTrainedModel, **overrides) -> MiniMindForCausalLM | MiniMindForSequenceClassification:
    """A Llama, Qwen3 or Qwen3-MoE as a MiniMind, bit for bit; the inverse of `to_twin`.

    Args:
        twin: the stock model.
        **overrides: config fields that do not touch the weights, such as `num_labels` for another head.

    Raises:
        CheckpointError: the twin has a feature that MiniMind lacks (sliding window, MLP bias, dense MoE layers).
    """
    config = twin.config
    if config.model_type not in TWIN_TYPES:
        raise CheckpointError(f"model_type {config.model_type!r} is not a twin of MiniMind; use one of {TWIN_TYPES}")
    unsupported = [
        what
        for what, present in (
            ("an MLP bias", getattr(config, "mlp_bias", False)),
            ("sliding-window attention", getattr(config, "sliding_window", None) is not None),
            ("dense layers among the experts", bool(getattr(config, "mlp_only_layers", None))),
            ("experts in some layers only", getattr(config, "decoder_sparse_step", 1) != 1),
        )
        if present
    ]
    if unsupported:
        raise CheckpointError(f"this {config.model_type} has {' and '.join(unsupported)}, which MiniMind lacks")
    fields = {name: _copied(getattr(config, name)) for name in _SHARED_FIELDS}
    fields["family"] = "minimind2" if config.model_type == "llama" else "minimind3"
    if config.model_type == "qwen3_moe":
        fields |= {name: getattr(config, name) for name in _MOE_FIELDS}
    if isinstance(twin, tuple(reward_model for _, _, reward_model in _TWINS.values())):
        fields["num_labels"] = config.num_labels
        return _with_weights_of(twin, MiniMindForSequenceClassification(MiniMindConfig(**fields | overrides)))
    return _with_weights_of(twin, MiniMindForCausalLM(MiniMindConfig(**fields | overrides)))


def _copied(value):
    return dict(value) if isinstance(value, dict) else value


def _with_weights_of(source: PreTrainedModel, target: PreTrainedModel) -> PreTrainedModel:
    target.to(source.dtype).load_state_dict(source.state_dict())
    target.tie_weights()
    if source.can_generate():
        target.generation_config = copy.deepcopy(source.generation_config)
    target.config.name_or_path = target.name_or_path = source.config.name_or_path or ""
    return target.eval()
