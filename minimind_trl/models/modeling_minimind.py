"""MiniMind models, both generations, dense and mixture-of-experts.

This file is saved with checkpoints as remote code, so it imports only torch and transformers. A dense MiniMind2 is a
Llama, a dense MiniMind-3 a Qwen3 and a MiniMind-3 MoE a Qwen3-MoE, so the shared parts come from transformers.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.integrations import use_experts_implementation
from transformers.masking_utils import (
    create_causal_mask,
    find_packed_sequence_indices,
    packed_sequence_mask_function,
)
from transformers.modeling_layers import (
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel, slice_logits_to_keep
from transformers.models.qwen3_moe.modeling_qwen3_moe import (
    Qwen3MoeMLP,
    Qwen3MoeRMSNorm,
    Qwen3MoeRotaryEmbedding,
    Qwen3MoeTopKRouter,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_minimind import MiniMindConfig

# transformers' name of the key-value cache: 5.24 renamed `past_key_values` to `cache`. Before that, `cache` was another
# argument, which only attention functions read. This file is saved with checkpoints, so it must run under both.
CACHE_NAME = "cache" if "cache" in MoeModelOutputWithPast.__dataclass_fields__ else "past_key_values"


def pop_cache(past_key_values: Cache | None, kwargs: dict) -> Cache | None:
    """The cache passed to `forward` under either name; `past_key_values` has priority, because PEFT passes both."""
    cache = kwargs.pop(CACHE_NAME, None)
    return cache if past_key_values is None else past_key_values


class MiniMindRMSNorm(Qwen3MoeRMSNorm):
    """`weight * x / sqrt(mean(x^2) + eps)`, computed in float32."""


class MiniMindRotaryEmbedding(Qwen3MoeRotaryEmbedding):
    """Rotate-half RoPE with any of transformers' scalings (YaRN upstream)."""


class MiniMindMLP(Qwen3MoeMLP):
    """`down(act(gate(x)) * up(x))`, no biases."""


class MiniMindTopKRouter(Qwen3MoeTopKRouter):
    """Softmax over the experts in float32, top-k, optionally renormalised; returns (logits, weights, indices)."""


class MiniMindAttention(nn.Module):
    """Grouped-query attention with RoPE; MiniMind-3 normalises queries and keys per head before the rotation."""

    def __init__(self, config: MiniMindConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attn_dropout = nn.Dropout(config.attention_dropout)  # a module, as TRL disables dropout by module type
        self.is_causal = True

        query_size = config.num_attention_heads * self.head_dim
        key_size = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_bias)
        if config.use_qk_norm:
            self.q_norm = MiniMindRMSNorm(self.head_dim, eps=config.rms_norm_eps)
            self.k_norm = MiniMindRMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch_and_length = hidden_states.shape[:-1]
        per_head = (*batch_and_length, -1, self.head_dim)
        query = self.q_proj(hidden_states).view(per_head)
        key = self.k_proj(hidden_states).view(per_head)
        value = self.v_proj(hidden_states).view(per_head).transpose(1, 2)
        if self.config.use_qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), *position_embeddings)

        cache = kwargs.pop(CACHE_NAME, None)
        if cache is not None:
            # The cache of continuous batching also changes `kwargs`, which the attention function reads.
            key, value = cache.update(key, value, self.layer_idx, kwargs=kwargs)

        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attn_dropout.p if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.reshape(*batch_and_length, -1).contiguous()), weights


@use_experts_implementation
class MiniMindExperts(nn.Module):
    """The routed experts of a layer, stacked: `gate_up_proj` (E, 2I, H) and `down_proj` (E, H, I).

    The decorator swaps in transformers' grouped or batched matmul; this forward is the eager fallback.
    """

    def __init__(self, config: MiniMindConfig):
        super().__init__()
        self.num_experts = config.num_experts
        self.gate_up_proj = nn.Parameter(
            torch.empty(config.num_experts, 2 * config.moe_intermediate_size, config.hidden_size)
        )
        self.down_proj = nn.Parameter(torch.empty(config.num_experts, config.hidden_size, config.moe_intermediate_size))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        output = torch.zeros_like(hidden_states)
        # Iterating unbinds; the gradient of an index would be as large as all experts.
        for expert, (gate_up_proj, down_proj) in enumerate(zip(self.gate_up_proj, self.down_proj, strict=True)):
            token, slot = torch.where(top_k_index == expert)
            gate_up = nn.functional.linear(hidden_states[token], gate_up_proj)
            expert_output = nn.functional.linear(self._apply_gate(gate_up), down_proj)
            expert_output = expert_output * top_k_weights[token, slot, None]
            output.index_add_(0, token, expert_output.to(output.dtype))
        return output


class MiniMindSparseMoeBlock(nn.Module):
    """Router, routed experts and, in MiniMind2, shared experts that every token passes through."""

    def __init__(self, config: MiniMindConfig):
        super().__init__()
        self.gate = MiniMindTopKRouter(config)
        self.experts = MiniMindExperts(config)
        if config.n_shared_experts > 0:
            self.shared_experts = nn.ModuleList(
                MiniMindMLP(config, config.moe_intermediate_size) for _ in range(config.n_shared_experts)
            )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights, indices = self.gate(tokens)
        output = self.experts(tokens, indices, weights).reshape(hidden_states.shape)
        for expert in getattr(self, "shared_experts", ()):
            output = output + expert(hidden_states)
        return output


class MiniMindDecoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: MiniMindConfig, layer_idx: int):
        super().__init__()
        self.self_attn = MiniMindAttention(config, layer_idx)
        self.mlp = MiniMindSparseMoeBlock(config) if config.num_experts > 0 else MiniMindMLP(config)
        self.input_layernorm = MiniMindRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = MiniMindRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        attention_output, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attention_output
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class MiniMindPreTrainedModel(PreTrainedModel):
    config: MiniMindConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["MiniMindDecoderLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values", "cache"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs: ClassVar[dict] = {
        "router_logits": OutputRecorder(MiniMindTopKRouter, index=0),
        "hidden_states": MiniMindDecoderLayer,
        "attentions": MiniMindAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, MiniMindExperts):
            init.normal_(module.gate_up_proj, mean=0.0, std=std)
            init.normal_(module.down_proj, mean=0.0, std=std)
        elif isinstance(module, MiniMindTopKRouter):
            init.normal_(module.weight, mean=0.0, std=std)


class MiniMindModel(MiniMindPreTrainedModel):
    """The backbone: token embeddings, decoder layers and the final norm."""

    def __init__(self, config: MiniMindConfig):
        super().__init__(config)
        # No `padding_idx`: upstream trains the embedding of <|endoftext|>, which is both its pad and its unknown token.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MiniMindDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = MiniMindRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = MiniMindRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> MoeModelOutputWithPast:
        """
        Args:
            input_ids: token ids (batch, length); exactly one of `input_ids` and `inputs_embeds` must be given.
            attention_mask: 1 for tokens, 0 for padding (batch, length); or a prepared 4D mask.
            position_ids: positions (batch, length). A position that is not its left neighbour's plus one starts a new
                packed sequence, which does not attend to earlier ones in the row.
            past_key_values: cache of earlier keys and values; from transformers 5.24 on also as `cache`.
            inputs_embeds: embeddings (batch, length, hidden) in place of `input_ids`.
            use_cache: return a cache for the next call.

        Returns:
            `MoeModelOutputWithPast` with `last_hidden_state` (batch, length, hidden) and, on request,
            `hidden_states`, `attentions`, `router_logits` (one (batch * length, experts) tensor per layer).
        """
        cache = pop_cache(past_key_values, kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)

        # The mask comes first: with a cache, even an empty one, packed sequences are not detected.
        causal_mask = self._causal_mask(inputs_embeds, attention_mask, position_ids, cache)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            seen = cache.get_seq_length() if cache is not None else 0
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None] + seen

        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=causal_mask,
                position_ids=position_ids,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **{CACHE_NAME: cache},
                **kwargs,
            )
        return MoeModelOutputWithPast(last_hidden_state=self.norm(hidden_states), **{CACHE_NAME: cache})

    def _causal_mask(self, inputs_embeds, attention_mask, position_ids, cache):
        if type(cache) is DynamicCache and cache.get_seq_length() == 0:
            cache = None  # transformers detects packing only without a cache
        and_mask_function = None
        if position_ids is not None and cache is None:
            sequences = packed_sequences(position_ids.expand(inputs_embeds.shape[0], -1), attention_mask)
            if sequences is not None and "flash" in self.config._attn_implementation and not is_tracing(sequences):
                attention_mask = _check_flash_packing(attention_mask, inputs_embeds.shape[0])
            elif sequences is not None and attention_mask is not None:
                # transformers does not detect packing if there is a padding mask
                and_mask_function = packed_sequence_mask_function(sequences)
        return create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            and_mask_function=and_mask_function,
            **{CACHE_NAME: cache},
        )


def packed_sequences(
    position_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
) -> torch.LongTensor | None:
    """Index of each token's packed sequence (batch, length), or None if every row is a single sequence.

    Padding is ignored: a left-padded row, whose positions restart at its first token, is one sequence.
    """
    sequences = find_packed_sequence_indices(position_ids)
    if sequences is None or attention_mask is None:
        return sequences
    if attention_mask.ndim != 2 or attention_mask.shape != position_ids.shape:
        return None  # a prepared mask already separates the sequences
    if is_tracing(sequences):
        return sequences  # a graph cannot depend on position values, so it always masks by sequence
    token = attention_mask.bool()
    last = sequences.masked_fill(~token, -1).amax(-1)
    first = sequences.masked_fill(~token, sequences.shape[-1]).amin(-1)
    return sequences if (last > first).any() else None


def _check_flash_packing(attention_mask: torch.Tensor | None, batch_size: int) -> None:
    # Flash attention derives boundaries from positions only for a single unpadded row.
    if batch_size > 1 or (attention_mask is not None and not attention_mask.all()):
        raise ValueError(
            "packed sequences under flash attention must come as one row without padding (as TRL's padding-free "
            "collator makes them), or they would attend to each other; use sdpa or flex_attention for padded packed "
            "batches"
        )


class MiniMindForCausalLM(MiniMindPreTrainedModel, GenerationMixin):
    """MiniMind with a language modelling head, tied to the embeddings by default."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan: ClassVar[dict[str, str]] = {"lm_head": "colwise_gather_output"}
    _pp_plan: ClassVar[dict[str, tuple[list[str], list[str]]]] = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan: ClassVar[dict[str, str]] = {"lm_head": "keep_full_weight"}

    def __init__(self, config: MiniMindConfig):
        super().__init__(config)
        self.model = MiniMindModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> MoeCausalLMOutputWithPast:
        """Arguments as in `MiniMindModel.forward`; `labels` (batch, length) are -100 for positions without loss.

        `aux_loss` is the load-balancing loss without its coefficient. It is returned, and `loss` includes it times
        `router_aux_loss_coef`, in training or with `output_router_logits=True`. As in upstream, the evaluation loss is
        plain cross-entropy.
        """
        if output_router_logits is None:
            output_router_logits = self.training and getattr(self.config, "output_router_logits", False)
        outputs: MoeModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=pop_cache(past_key_values, kwargs),
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_router_logits=output_router_logits,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        logits = self.lm_head(slice_logits_to_keep(hidden_states, logits_to_keep))

        loss = None
        if labels is not None or kwargs.get("shift_labels") is not None:
            loss = self.loss_function(logits, labels, self.vocab_size, **kwargs)
        aux_loss = None
        if outputs.router_logits:
            aux_loss = load_balancing_loss(outputs.router_logits, self.config, hidden_states.shape[:2], attention_mask)
            if loss is not None:
                loss = loss + self.config.router_aux_loss_coef * aux_loss.to(loss.device)

        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )


def load_balancing_loss(
    router_logits: tuple[torch.Tensor, ...],
    config: MiniMindConfig,
    batch_and_length: tuple[int, int],
    attention_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """MiniMind's auxiliary loss, summed over layers, without its coefficient; padding is ignored.

    p are the router's probabilities; E is the number of experts, of which k are chosen per token; f_e is how often
    expert e is chosen per token; means are over tokens:

    - "sequence" (MiniMind2, `seq_aux=True`; DeepSeekMoE, arXiv 2401.06066): mean over sequences of
      `E / k * sum_e f_e * mean(p_e)`, f and p averaged within each sequence;
    - "token" (MiniMind2, `seq_aux=False`): `E / k * sum_e f_e * mean(p_e)` over all tokens of the batch;
    - "global" (MiniMind-3; Switch Transformer, arXiv 2101.03961): `E * sum_e f_e * mean(p_e)` over all tokens.

    Args:
        router_logits: one tensor (batch * length, E) per layer.
        config: gives E, k and `router_aux_loss_type`.
        batch_and_length: shape of the token grid.
        attention_mask: 1 for tokens, 0 for padding (batch, length).
    """
    num_experts, top_k = config.num_experts, config.num_experts_per_tok
    device = router_logits[0].device
    weight = torch.ones(batch_and_length, device=device)
    if attention_mask is not None and attention_mask.shape == weight.shape:
        weight = attention_mask.to(weight)
    if config.router_aux_loss_type != "sequence":
        weight = weight.reshape(1, -1)  # the batch counts as one long sequence
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1)

    total = torch.zeros((), device=device)
    for layer_logits in router_logits:
        probabilities = layer_logits.to(device).float().softmax(-1)
        chosen = probabilities.topk(top_k, dim=-1).indices
        counts = torch.zeros_like(probabilities).scatter_(-1, chosen, 1.0)
        load = torch.einsum("bs,bse->be", weight, counts.view(*weight.shape, num_experts))
        importance = torch.einsum("bs,bse->be", weight, probabilities.view(*weight.shape, num_experts))
        total = total + num_experts * (load * importance).sum(-1).mean()
    return total if config.router_aux_loss_type == "global" else total / top_k


class MiniMindForSequenceClassification(GenericForSequenceClassification, MiniMindPreTrainedModel):
    """MiniMind with a linear score on the last token of each row; a reward model with `num_labels=1`."""

    def __init__(self, config: MiniMindConfig):
        # The generic constructor uses AutoModel, which does not know this class if it is remote code.
        MiniMindPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = MiniMindModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()


class MiniMindForTokenClassification(GenericForTokenClassification, MiniMindPreTrainedModel):
    """MiniMind with a linear score on every token; a value model with `num_labels=1`."""

    def __init__(self, config: MiniMindConfig):
        MiniMindPreTrainedModel.__init__(self, config)  # see MiniMindForSequenceClassification
        self.num_labels = config.num_labels
        self.model = MiniMindModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


__all__ = [
    "MiniMindForCausalLM",
    "MiniMindForSequenceClassification",
    "MiniMindForTokenClassification",
    "MiniMindModel",
    "MiniMindPreTrainedModel",
]
