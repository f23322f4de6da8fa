"""A decoding loop for many short answers on a CPU, for transformers' `generate(custom_generate=sample)`.

For each new token, transformers' own loop copies the whole key-value cache, continues finished rows and draws a random
number per vocabulary entry. This loop preallocates the cache, removes finished rows from the batch and draws one number
per row. Samples have the same distribution; greedy answers are the same up to rounding.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, PreTrainedConfig, StoppingCriteriaList
from transformers.generation import GenerationMode

_MODEL_TYPES = ("minimind", "llama", "qwen3", "qwen3_moe")  # supported by `_Decoder`
_CACHE_GROWTH = 64  # tokens
_LEAST_SHARED = 32  # tokens, such as those of a system message, that are worth reading once for all prompts
_MAX_UNFINISHED = 0.75  # share of rows up to which finished rows are removed: moving the cache costs about one step


def can_sample(config: PreTrainedConfig, generation_config: GenerationConfig) -> bool:
    """Whether `sample` supports the model and the generation mode: sampling or greedy search with full attention."""
    full = all(kind == "full_attention" for kind in getattr(config, "layer_types", None) or ())
    modes = (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH)
    return config.model_type in _MODEL_TYPES and full and generation_config.get_generation_mode() in modes


@torch.no_grad()
def sample(
    model: nn.Module,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **inputs: Any,
) -> Tensor:
    """Prompts with their completions (B, P + T), padded after the end-of-sequence token.

    The signature is that of transformers' decoding methods. Logits processors see only unfinished rows, so they must
    not keep state per row.

    Args:
        input_ids: left-padded prompts (B, P); `inputs["attention_mask"]` is 0 for padding.
    """
    mask = inputs.get("attention_mask")
    decoder = _Decoder(model, input_ids, torch.ones_like(input_ids) if mask is None else mask)
    fill = generation_config.pad_token_id
    answers = input_ids.new_full((len(input_ids), generation_config.max_length), 0 if fill is None else fill)
    answers[:, : input_ids.shape[1]] = input_ids
    ids, rows, ended = input_ids, torch.arange(len(input_ids)), torch.zeros(len(input_ids), dtype=torch.bool)
    logits = decoder.logits
    with _packed_weights(model):
        while True:
            scores = logits_processor(ids, logits.float())
            tokens = _draw(scores) if generation_config.do_sample else scores.argmax(-1)
            ids = torch.cat([ids, tokens[:, None]], 1)
            answers[rows[~ended], ids.shape[1] - 1] = tokens[~ended]
            ended = ended | stopping_criteria(ids, scores).bool()
            left = (~ended).nonzero()[:, 0]
            if not len(left):
                return answers[:, : ids.shape[1]]
            if len(left) <= _MAX_UNFINISHED * len(rows):
                ids, rows, tokens, ended = ids[left], rows[left], tokens[left], ended[left]
                decoder.keep(left)
            logits = decoder.step(tokens)


def _draw(scores: Tensor) -> Tensor:
    """Draw tokens (B,) from softmax(scores) by inverse transform sampling: one uniform number per row."""
    sums = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    place = torch.rand(len(sums), 1, dtype=torch.float64) * sums[:, -1:]
    return torch.searchsorted(sums, place, right=True)[:, 0]


@contextmanager
def _packed_weights(model: nn.Module) -> Iterator[None]:
    """Reorder the weights of linear layers for oneDNN once, instead of at every matrix product.

    Uses the operators that `torch.compile` uses for frozen graphs; without them nothing changes. Under autocast the
    products have its dtype, as they would anyway.
    """
    layers = [layer for layer in (*model.model.layers.modules(), model.lm_head) if type(layer) is nn.Linear]
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        layers = []
    for layer in layers:
        layer.forward = functools.partial(_packed_linear, *_packed(layer))
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _packed(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else layer.weight.dtype
    bias = layer.bias if layer.bias is None else layer.bias.to(dtype)
    return torch.ops.mkldnn._reorder_linear_weight(layer.weight.to(dtype)), bias


def _packed_linear(weight: Tensor, bias: Tensor | None, states: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(states.to(weight.dtype), weight, bias, "none", [], "")


def _shared_first(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, int]:
    """Left-padded prompts (B, P) with the padding moved behind the tokens that all begin with, and their number.

    It is 0, and nothing is moved, where they share too little to be worth a pass of its own.
    """
    lengths = mask.sum(-1)
    places = torch.arange(ids.shape[1])
    starts = (places + (ids.shape[1] - lengths)[:, None]).clamp(max=ids.shape[1] - 1)
    aligned = ids.gather(1, starts)  # (B, P): the tokens first, then anything
    differs = (aligned != aligned[:1]).any(0)
    differs[int(lengths.min()) - 1 :] = True  # at least one token of each is its own
    shared = int(differs.int().argmax())
    if len(ids) == 1 or shared < _LEAST_SHARED or (mask.diff(dim=-1) < 0).any():
        return ids, mask, 0
    moved = torch.cat([aligned[:, :shared], ids[:, shared:]], 1)
    of_row = places >= (shared + ids.shape[1] - lengths)[:, None]
    return moved, torch.where(places < shared, 1, of_row.to(mask)), shared


class _Decoder:
    """Runs a model's layers for one token of every row at a time.

    Keys and values are (B * kv_heads, allocated length, head_dim) per layer, so that a matrix product reads them in
    place; positions that are not yet written are masked like padding.
    """

    def __init__(self, model: nn.Module, ids: Tensor, mask: Tensor):
        self.body, self.head = model.model, model.lm_head
        attention = self.body.layers[0].self_attn
        self.head_dim, self.scaling = attention.head_dim, attention.scaling
        # Equal prompts, such as those of a GRPO group, are read once.
        prompts, place = torch.stack([ids, mask.to(ids)]).unique(dim=1, return_inverse=True)
        ids, mask, shared = _shared_first(*prompts)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=model.config)
        if shared:
            self.body(ids[:1, :shared], mask[:1, :shared], positions[:1, :shared], cache, use_cache=True)
            cache.batch_repeat_interleave(len(ids))
        # the cache's keyword depends on the version
        output = self.body(ids[:, shared:], mask, positions[:, shared:], cache, use_cache=True)
        self.logits = self.head(output.last_hidden_state[:, -1])[place]
        self.position, self.length, mask = positions[place, -1:], ids.shape[1], mask[place]
        layers = cache.layers
        self.kv_heads = layers[0].keys.shape[1]
        self.keys = [layer.keys[place].flatten(0, 1) for layer in layers]
        self.values = [layer.values[place].flatten(0, 1) for layer in layers]
        masked = torch.zeros_like(mask, dtype=self.keys[0].dtype).masked_fill(mask == 0, float("-inf"))
        self.bias = masked.repeat_interleave(self.kv_heads, 0)[:, None]
        self._grow()

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows only."""
        self.position = self.position[rows]
        heads = (rows[:, None] * self.kv_heads + torch.arange(self.kv_heads)).flatten()
        self.bias = self.bias[heads]
        self.keys, self.values = [[part[heads] for part in parts] for parts in (self.keys, self.values)]

    def _grow(self) -> None:
        self.bias = pad(self.bias, (0, _CACHE_GROWTH), value=float("-inf"))
        self.keys, self.values = [
            [pad(part, (0, 0, 0, _CACHE_GROWTH)) for part in parts] for parts in (self.keys, self.values)
        ]

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after one more token (B,) in every row."""
        if self.length == self.bias.shape[-1]:
            self._grow()
        self.position = self.position + 1
        self.bias[..., self.length] = 0
        hidden = self.body.embed_tokens(tokens[:, None])
        cos, sin = self.body.rotary_emb(hidden, self.position)
        half = self.head_dim // 2
        rotation = cos, torch.cat([-sin[..., :half], sin[..., half:]], -1)
        for layer, keys, values in zip(self.body.layers, self.keys, self.values, strict=True):
            hidden = hidden + self._attend(layer.self_attn, layer.input_layernorm(hidden), keys, values, rotation)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        self.length += 1
        return self.head(self.body.norm(hidden))[:, 0]

    def _attend(self, attention: nn.Module, hidden: Tensor, keys: Tensor, values: Tensor, rotation) -> Tensor:
        per_head = (len(hidden), -1, self.head_dim)
        query, key = attention.q_proj(hidden).view(per_head), attention.k_proj(hidden).view(per_head)
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        keys[:, self.length] = _rotated(key, *rotation).reshape(-1, self.head_dim)
        values[:, self.length] = attention.v_proj(hidden).view(-1, self.head_dim)
        query = (_rotated(query, *rotation) * self.scaling).reshape(len(keys), -1, self.head_dim)
        weights = torch.bmm(query, keys.transpose(1, 2)).add_(self.bias).softmax(-1)
        return attention.o_proj(torch.bmm(weights, values).view(len(hidden), 1, -1))


def _rotated(states: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """RoPE of (B, heads, D) by angles (B, 1, D); the first half of the sines is negated, as `rotate_half` would."""
    return torch.addcmul(states * cos, states.roll(states.shape[-1] // 2, -1), signed_sin)
