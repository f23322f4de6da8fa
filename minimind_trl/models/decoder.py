"""A model's layers for generation: tokens as rows of one matrix, prepared weights, attention left to a cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, rms_norm
from transformers import PreTrainedConfig

from .tiled_attention import TILE_WIDTH, tiled_attention

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

_MODEL_TYPES = ("minimind", "llama", "qwen3", "qwen3_moe")
_ROPE_TYPES = ("default", "linear", "yarn", "llama3")  # of which the angles do not depend on the length of the text
_LEAST_SHARED = 32  # tokens, such as those of a system message, that are worth reading once for all prompts


def can_decode(config: PreTrainedConfig, device: torch.device) -> bool:
    """Whether `Decoder` supports the model: full attention, and on a GPU dense layers, which CUDA graphs need."""
    full = all(kind == "full_attention" for kind in getattr(config, "layer_types", None) or ())
    rope = getattr(config, "rope_parameters", None) or {}
    known = config.model_type in _MODEL_TYPES and rope.get("rope_type", "default") in _ROPE_TYPES
    dense = not getattr(config, "num_experts", 0) and getattr(config, "quantization_config", None) is None
    return full and known and (device.type == "cpu" or (device.type == "cuda" and dense))


@dataclass
class Prompts:
    """What the layers computed for prompts.

    Attributes:
        logits: (N, V), after each prompt.
        keys, values: for each layer (N, P, kv_heads, D), each prompt's from 0 on, and anything after its length.
        lengths: of the prompts, in tokens.
    """

    logits: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    lengths: list[int]


class Decoder:
    """Runs the layers of a causal language model. The weights are copied or reordered when it is made."""

    def __init__(self, model: nn.Module, max_length: int):
        body = model.model
        self.attention = attention = body.layers[0].self_attn
        self.head_dim, self.heads = attention.head_dim, model.config.num_attention_heads
        self.kv_heads = model.config.num_key_value_heads
        self.device = body.embed_tokens.weight.device
        self.embed_tokens, self.norm = _prepared_embedding(body.embed_tokens), body.norm
        self.head = prepared_linear([model.lm_head])
        self.layers = [_Layer(layer) for layer in body.layers]
        positions = torch.arange(max_length, device=self.device)[None]
        cos, sin = body.rotary_emb(body.embed_tokens.weight[:1, None], positions)
        # The first half of the sines is negated, as `rotate_half` would.
        half = self.head_dim // 2
        self.angles = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)  # each (max_length, D)
        scales = [attention.scaling] * self.heads + [1.0] * self.kv_heads  # of rotated queries and keys
        self.scales = cos.new_tensor(scales)[:, None]

    def hidden_states(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Hidden states (T, H) of the tokens (T,) at these positions (T,), before the final norm.

        Args:
            attend: gets the layer's index, scaled queries (T, heads, D), keys and values (T, kv_heads, D), and returns
                the attention output (T, heads * D).
        """
        hidden = self.embed_tokens(tokens)
        cos, sin = (part[positions][:, None] * self.scales for part in self.angles)  # (T, heads + kv_heads, D)
        for index, layer in enumerate(self.layers):
            states = layer.qkv(_normed(layer.input_norm, hidden)).view(len(hidden), -1, self.head_dim)
            rotated, value = states.split([self.heads + self.kv_heads, self.kv_heads], 1)
            if layer.qk_norm is not None:
                rotated = rms_norm(rotated, rotated.shape[-1:], None, layer.qk_eps) * layer.qk_norm
            rotated = torch.addcmul(rotated * cos, rotated.roll(self.head_dim // 2, -1), sin)
            query, key = rotated.split([self.heads, self.kv_heads], 1)
            hidden = hidden + layer.output(attend(index, query, key.to(value.dtype), value))
            hidden = hidden + layer.mlp(_normed(layer.mlp_norm, hidden))
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(_normed(self.norm, hidden))

    def next_logits(self, tokens: Tensor, cache) -> Tensor:
        """Logits (slots, V) after one more token (slots,) in every slot of a cache, which has made room for them."""
        return self.logits(self.hidden_states(tokens, cache.positions, cache.attend))

    def step(self, tokens: Tensor, cache) -> Tensor:
        """Logits (slots, V) after one more token (slots,) in every slot of a cache."""
        cache.advance()
        return self.next_logits(tokens, cache)

    def read(self, prompts: Sequence[Sequence[int]]) -> Prompts:
        """Run prompts, given as token ids, without padding. A beginning that all share is computed once."""
        shared = _shared_length(prompts)
        prefix = self._read([prompts[0][:shared]]) if shared else None
        return self._read([prompt[shared:] for prompt in prompts], prefix)

    def _read(self, texts: Sequence[Sequence[int]], prefix: Prompts | None = None) -> Prompts:
        before = prefix.lengths[0] if prefix else 0
        lengths = [len(text) for text in texts]
        places = torch.arange(-(-max(lengths) // TILE_WIDTH) * TILE_WIDTH)
        inside = (places < torch.tensor(lengths)[:, None]).to(self.device)  # (N, P)
        positions = (places.to(self.device) + before).expand(len(texts), -1)[inside]
        tokens = torch.tensor([token for text in texts for token in text], device=self.device)
        causal = None
        if prefix:
            causal = torch.ones(len(places), before + len(places), dtype=torch.bool, device=self.device).tril(before)
            causal = causal[None, None]
        keys, values = [], []

        def attend(index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            query, key, value = (_padded(part, inside) for part in (query, key, value))
            if prefix:
                key = torch.cat([prefix.keys[index][:, :before].expand(len(texts), -1, -1, -1), key], 1)
                value = torch.cat([prefix.values[index][:, :before].expand(len(texts), -1, -1, -1), value], 1)
            keys.append(key)
            values.append(value)
            query, key, value = (part.transpose(1, 2) for part in (query, key, value))
            output, _ = tiled_attention(self.attention, query, key, value, causal, scaling=1.0)
            return output[inside].flatten(1)

        hidden = self.hidden_states(tokens, positions, attend)
        last = torch.tensor(lengths).cumsum(0).to(self.device) - 1
        return Prompts(self.logits(hidden[last]), keys, values, [before + length for length in lengths])


class _Layer:
    """The parts of a decoder layer."""

    def __init__(self, layer: nn.Module):
        attention = layer.self_attn
        self.input_norm, self.mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = prepared_linear([attention.q_proj, attention.k_proj, attention.v_proj])
        self.output = prepared_linear([attention.o_proj])
        self.mlp = _prepared_mlp(layer.mlp)
        self.qk_norm = None
        if hasattr(attention, "q_norm"):
            self.qk_eps, width = attention.q_norm.variance_epsilon, attention.head_dim
            weights = (attention.q_norm.weight, attention.q_proj), (attention.k_norm.weight, attention.k_proj)
            self.qk_norm = torch.cat([norm.expand(linear.out_features // width, -1) for norm, linear in weights])


def prepared_linear(layers: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
    """A function of states (T, in) that returns the outputs (T, out) of all these linear layers, side by side.

    Plain linear layers become one product with a copy of their weights, in autocast's dtype if it is on. On a CPU the
    copy is in oneDNN's order, as in the frozen graphs of `torch.compile`. Other layers, such as adapters, are called.
    """
    if not all(type(layer) is nn.Linear for layer in layers):
        return lambda states: torch.cat([layer(states) for layer in layers], -1)
    weight, bias = _joined([layer.weight for layer in layers]), _joined([layer.bias for layer in layers])
    if weight.device.type != "cpu" or not _has_reordered_products():
        return lambda states: linear(states, weight, bias)
    weight = torch.ops.mkldnn._reorder_linear_weight(weight)
    return lambda states: torch.ops.mkldnn._linear_pointwise(states.to(weight.dtype), weight, bias, "none", [], "")


def _prepared_embedding(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """The embeddings of tokens without hooks: NEFTune's noise is for updates."""
    return partial(embedding, weight=layer.weight) if type(layer) is nn.Embedding else layer


def _has_reordered_products() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    if any(part is None for part in parts):
        return None
    device = parts[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else parts[0].dtype
    return torch.cat([part.detach().to(dtype) for part in parts])


def _prepared_mlp(mlp: nn.Module) -> Callable[[Tensor], Tensor]:
    if not all(type(getattr(mlp, name, None)) is nn.Linear for name in ("gate_proj", "up_proj", "down_proj")):
        return lambda states: mlp(states[:, None])[:, 0]
    gate_up, down = prepared_linear([mlp.gate_proj, mlp.up_proj]), prepared_linear([mlp.down_proj])

    def run(states: Tensor) -> Tensor:
        gate, up = gate_up(states).chunk(2, -1)
        return down(mlp.act_fn(gate) * up)

    return run


def _normed(norm: nn.Module, states: Tensor) -> Tensor:
    return rms_norm(states, states.shape[-1:], norm.weight, norm.variance_epsilon)


def _padded(parts: Tensor, inside: Tensor) -> Tensor:
    """(N, P, heads, D) of (T, heads, D), zero where `inside` (N, P) is False."""
    grid = parts.new_zeros(*inside.shape, *parts.shape[1:])
    grid[inside] = parts
    return grid


def _shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with; 0 if they are too few for a pass of their own."""
    equal = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False))
    shared = min(sum(1 for _ in equal), min(map(len, prompts)) - 1)
    return shared if len(prompts) > 1 and shared >= _LEAST_SHARED else 0
