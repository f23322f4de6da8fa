"""Attention for training on a CPU: plain matrix products over the tiles of the mask that are not empty.

torch's CPU kernel of `scaled_dot_product_attention` computes the whole square of a row that has a mask, and its
backward pass reaches a tenth of the processor's peak. Here each packed sequence attends within itself, and queries only
to keys before them, by batched products, which reach most of the peak. Memory is that of the kernel: probabilities are
computed again in the backward pass.

`model.set_attn_implementation("tiled_sdpa")` switches a model to it; `config.json` does not name it.
"""

import itertools
import math
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..internals import softmax_backward

TILED_SDPA = "tiled_sdpa"
_TILE = 128  # queries of a tile: fewer do not fill the products, more compute too much of what the mask hides
_AT_ONCE = 2**17  # scores of a head that are computed together, more or less
# A tile's keys are a multiple of it, if the row has as many: a softmax in bf16 of others takes up to 5 times as long.
TILE_WIDTH = 32


def tiled_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """An attention function of transformers, for whole rows on a CPU; anything else goes to transformers' `sdpa`."""
    is_boolean = attention_mask is None or attention_mask.dtype == torch.bool
    whole_rows = query.shape[2] == key.shape[2] and query.device.type == "cpu" and kwargs.get("is_causal") is None
    if dropout or not is_boolean or not whole_rows or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast, norms are in float32
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attention_mask, scaling), None


AttentionInterface.register(TILED_SDPA, tiled_attention)
AttentionMaskInterface.register(TILED_SDPA, sdpa_mask)


class _Tiles:
    """The tiles of a batch.

    Attributes:
        places: for each tile its rows, keys and queries, as slices.
        bias: (B or 1, S, S), added to the scores: 0 where a token attends, else the lowest number.
    """

    def __init__(self, mask: Tensor | None, rows: int, length: int, dtype: torch.dtype):
        if mask is None or length <= _TILE:  # the same tiles in all rows
            places = [(slice(None), *place) for place in _places([0], length)]
        else:
            starts = enumerate(_starts(mask[:, 0]))
            places = [(slice(row, row + 1), *place) for row, found in starts for place in _places(found, length)]
        attends = torch.ones(1, length, length, dtype=torch.bool).tril() if mask is None else mask[:, 0]
        self.bias = torch.zeros(attends.shape, dtype=dtype).masked_fill_(~attends, torch.finfo(dtype).min)
        self.places = [part for place in places for part in _in_parts(rows, length, *place)]

    def bias_of(self, rows: slice, keys: slice, queries: slice) -> Tensor:
        """(rows or 1, queries, keys) of a tile."""
        return self.bias[rows if len(self.bias) > 1 else slice(None), queries, keys]


def _starts(mask: Tensor) -> list[list[int]]:
    """The tokens of each row (B, S, S) before which no later token looks; the first of all is one of them."""
    positions = torch.arange(mask.shape[-1])
    first = mask.to(torch.uint8).argmax(-1)
    first = torch.where(mask.any(-1), first, positions)  # a padded query attends to nothing
    earliest_after = first.flip(1).cummin(1).values.flip(1)
    return [(row == positions).nonzero().flatten().tolist() for row in earliest_after]


def _places(starts: list[int], length: int) -> list[tuple[int, int, int]]:
    """(first key, first query, end) of a row's tiles: short sequences share one, long ones have several."""
    places, first = [], 0
    for start, end in zip(starts, [*starts[1:], length], strict=True):
        if end - first > _TILE and start > first:
            places.append((first, first, start))
            first = start
        if end - first > _TILE:
            count = math.ceil((end - first) / _TILE)
            cuts = [first + (end - first) * part // count for part in range(count + 1)]
            places += [(first, *cut) for cut in itertools.pairwise(cuts)]
            first = end
    return [*places, (first, first, length)] if first < length else places


def _in_parts(
    rows: int, length: int, chosen: slice, first: int, start: int, end: int
) -> Iterator[tuple[slice, slice, slice]]:
    """A tile of several rows in parts that stay in the processor's cache."""
    width = min(math.ceil((end - first) / TILE_WIDTH) * TILE_WIDTH, length)
    last = min(first + width, length)
    begin, stop, _ = chosen.indices(rows)
    count = max(1, _AT_ONCE // ((end - start) * width))
    for row in range(begin, stop, count):
        yield slice(row, min(row + count, stop)), slice(last - width, last), slice(start, end)


_last: tuple[weakref.ref, torch.dtype, _Tiles] | None = None  # all layers of a forward pass share a mask


def _tiles_of(mask: Tensor | None, query: Tensor) -> _Tiles:
    global _last
    if mask is None:
        return _Tiles(None, query.shape[0], query.shape[1], query.dtype)
    if _last is None or _last[0]() is not mask or _last[1] != query.dtype:
        _last = weakref.ref(mask), query.dtype, _Tiles(mask, query.shape[0], query.shape[1], query.dtype)
    return _last[2]


def _fold(part: Tensor, groups: int) -> Tensor:
    """(R, T, heads, D) -> (R * groups, heads / groups * T, D): below each other what the heads of a group ask."""
    rows, length, heads, size = part.shape
    by_group = part.view(rows, length, groups, heads // groups, size).permute(0, 2, 3, 1, 4)
    return by_group.reshape(rows * groups, -1, size)


def _put(folded: Tensor, part: Tensor, groups: int) -> None:
    """Write what is folded into (R, T, heads, D)."""
    rows, length, heads, size = part.shape
    unfolded = folded.view(rows, groups, heads // groups, length, size).permute(0, 3, 1, 2, 4)
    part.view(unfolded.shape).copy_(unfolded)


def _of_groups(part: Tensor) -> Tensor:
    """(R, K, groups, D) -> (R * groups, K, D)"""
    return part.transpose(1, 2).flatten(0, 1)


def _add(folded: Tensor, part: Tensor) -> None:
    """Add (R * groups, K, D) to (R, K, groups, D)."""
    part += folded.view(len(part), -1, *folded.shape[1:]).transpose(1, 2)


def _probabilities(rows: int, query: Tensor, key: Tensor, bias: Tensor, scaling: float) -> Tensor:
    """(R * groups, heads / groups * T, K) from folded queries, keys (R * groups, K, D) and a bias (R or 1, T, K)."""
    scores = torch.bmm(query, key.transpose(1, 2)).view(rows, -1, *bias.shape[1:])
    return torch.add(bias[:, None], scores, alpha=scaling).softmax(-1).view(len(query), -1, bias.shape[-1])


@torch.library.custom_op("minimind_trl::tiled_attention", mutates_args=())
def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Queries (B, S, heads, D), keys and values (B, S, groups, D), mask (B, 1, S, S) or None for a causal one."""
    tiles, groups = _tiles_of(mask, query), key.shape[2]
    output = query.new_empty(query.shape)
    for rows, keys, queries in tiles.places:
        asked, found = _fold(query[rows, queries], groups), _of_groups(key[rows, keys])
        weights = _probabilities(rows.stop - rows.start, asked, found, tiles.bias_of(rows, keys, queries), scaling)
        _put(torch.bmm(weights, _of_groups(value[rows, keys])), output[rows, queries], groups)
    return output


@_attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    return query.new_empty(query.shape)


@torch.library.custom_op("minimind_trl::tiled_attention_backward", mutates_args=())
def _attend_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    tiles, groups = _tiles_of(mask, query), key.shape[2]
    of_query = query.new_empty(query.shape)
    of_key, of_value = key.new_zeros(key.shape), value.new_zeros(value.shape)
    for rows, keys, queries in tiles.places:
        asked, found = _fold(query[rows, queries], groups), _of_groups(key[rows, keys])
        outer, values = _fold(gradient[rows, queries], groups), _of_groups(value[rows, keys])
        weights = _probabilities(rows.stop - rows.start, asked, found, tiles.bias_of(rows, keys, queries), scaling)
        _add(torch.bmm(weights.transpose(1, 2), outer), of_value[rows, keys])
        of_scores = softmax_backward(torch.bmm(outer, values.transpose(1, 2)), weights).mul_(scaling)
        _put(torch.bmm(of_scores, found), of_query[rows, queries], groups)
        _add(torch.bmm(of_scores.transpose(1, 2), asked), of_key[rows, keys])
    return of_query, of_key, of_value


@_attend_backward.register_fake
def _(gradient, query, key, value, mask, scaling):
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.scaling = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, gradient: Tensor) -> tuple:
    return *_attend_backward(gradient.contiguous(), *ctx.saved_tensors, ctx.scaling), None, None


_attend.register_autograd(_backward, setup_context=_setup_context)
