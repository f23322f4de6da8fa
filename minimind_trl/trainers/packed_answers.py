"""Rows of prompts with answers, repacked without padding and with equal prompts once, for a forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..internals import attention_implementation
from ..models.tiled_attention import TILED_SDPA

_SHORTEST = 64  # tokens of a packed row: shorter ones would not fill the processor
_LONGEST = 1024  # tokens of a packed row, unless a given one is longer: attention's cost grows with it
_WORTH = 0.8  # of the padded batch's size: above, repacking gains nothing


@dataclass(frozen=True)
class PackedAnswers:
    """R rows of L tokens, each with some prompts and their answers.

    Attributes:
        input_ids: (R, L).
        position_ids: (R, L); an answer's go on from its prompt's.
        attention_mask: (R, 1, L, L), true where a token (third dimension) attends to another: those before it in its
            prompt and in its own answer.
        states: (N,) for each answer token, in the order of the given rows, the place in the flattened rows of the
            hidden state that predicts it.
        read: the same places, each once.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    states: Tensor
    read: Tensor

    def inputs(self) -> dict[str, Tensor]:
        """Arguments of a model's body."""
        names = ("input_ids", "position_ids", "attention_mask")
        return {name: getattr(self, name) for name in names}

    @contextmanager
    def states_only(self, body: nn.Module) -> Iterator[None]:
        """Within the block the last layer's feed-forward computes `states` only, as nothing reads the others.

        Not with activation checkpointing, which computes the layer again after the block, and not for a mixture of
        experts, which is balanced over all tokens.
        """
        last = body.layers[-1]
        if getattr(last, "gradient_checkpointing", False) or getattr(body.config, "num_experts", 0):
            yield
            return
        feed_forward = last.mlp.forward

        def forward(hidden_states: Tensor) -> Tensor:
            flat = hidden_states.flatten(0, 1)
            computed = feed_forward(flat[self.read])
            return computed.new_zeros(flat.shape).index_copy(0, self.read, computed).view(hidden_states.shape)

        last.mlp.forward = forward
        try:
            yield
        finally:
            del last.mlp.forward  # that of its class is there again


class _Row:
    """A packed row in the making."""

    def __init__(self):
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.prompts: list[int] = []  # of each token; those of different prompts do not see each other
        self.answers: list[int] = []  # of each token, 0 in the prompt itself

    def add(self, ids: list[int], first_position: int, prompt: int, answer: int) -> int:
        """Append tokens; returns the place of the first."""
        start = len(self.ids)
        self.ids += ids
        self.positions += range(first_position, first_position + len(ids))
        self.prompts += [prompt] * len(ids)
        self.answers += [answer] * len(ids)
        return start


def pack_inputs(model: nn.Module, inputs: dict[str, Any], answered: Tensor) -> PackedAnswers | None:
    """`pack_answers` of a model's inputs; None also where the model cannot take a mask of its own.

    The balancing loss of a mixture of experts is one of the given rows, so they stay as they are where it is asked for.
    """
    mask = inputs.get("attention_mask")
    if mask is None or mask.dim() != 2 or "position_ids" in inputs or inputs.get("output_router_logits"):
        return None
    if attention_implementation(model) not in ("sdpa", TILED_SDPA):  # whose masks are arbitrary
        return None
    return _packed_once(inputs["input_ids"], mask, answered)


_last: tuple[list, PackedAnswers | None] | None = None


def _packed_once(*given: Tensor) -> PackedAnswers | None:
    """`pack_answers`; of the same rows only once, which policy, reference and critic read one after the other."""
    global _last
    rows = [given[0].device, *(part.tolist() for part in given)]
    if _last is None or _last[0] != rows:
        _last = rows, pack_answers(*given)
    return _last[1]


def pack_answers(input_ids: Tensor, attention_mask: Tensor, answered: Tensor) -> PackedAnswers | None:
    """Pack prompts with their answers.

    A packed row is as long as the longest given one, or 64 tokens if that is more. Where it saves a fifth of the
    tokens, it is as long as a prompt with all its answers instead, up to 1024 tokens: a long prompt, such as one that
    describes tools, is then read once for all of them. Answers to one prompt share it as long as they fit in a row with
    it. None if less than a fifth of the batch would be saved, or if an answer has no prompt.

    Args:
        input_ids: (B, S).
        attention_mask: (B, S), 1 for tokens; they are contiguous in a row.
        answered: (B, S), true for the tokens that are predicted. The tokens before the first of a row are its prompt.
    """
    split = [_split(*row) for row in zip(input_ids.tolist(), attention_mask.tolist(), answered.tolist(), strict=True)]
    split = [row for row in split if row is not None]
    if not split or any(not row.prompt for row in split):  # nothing before the answer that could predict it
        return None
    together: dict[tuple[int, ...], int] = {}
    for row in split:
        together[row.prompt] = together.get(row.prompt, len(row.prompt)) + len(row.answer)
    length = max(_SHORTEST, int(attention_mask.sum(1).max()))
    rows, states = _packed(split, length)
    longer = min(max(together.values()), _LONGEST)
    if longer > length:
        fewer, their_states = _packed(split, longer)
        if len(fewer) * longer <= _WORTH * len(rows) * length:
            length, rows, states = longer, fewer, their_states
    if len(rows) * length > _WORTH * input_ids.numel():
        return None
    return _as_tensors(rows, length, states, input_ids.device)


@dataclass(frozen=True)
class _Answered:
    """A given row: its prompt, its answer, and which tokens of the answer are predicted."""

    prompt: tuple[int, ...]
    answer: list[int]
    targets: list[bool]


def _split(ids: list[int], mask: list[int], targets: list[bool]) -> _Answered | None:
    """None if nothing of the row is predicted."""
    if True not in targets:
        return None
    first, begin, end = targets.index(True), mask.index(1), len(mask) - mask[::-1].index(1)
    return _Answered(tuple(ids[begin:first]), ids[first:end], targets[first:end])


def _packed(answered: list[_Answered], length: int) -> tuple[list[_Row], list[int]]:
    """Rows of at most `length` tokens, and `PackedAnswers.states`."""
    rows: list[_Row] = []
    open_rows: dict[tuple[int, ...], tuple[int, int]] = {}  # prompt -> its row, and the prompt's place there
    states = []
    for number, one in enumerate(answered, 1):
        size = len(one.prompt)
        place = open_rows.get(one.prompt)
        if place is None or len(rows[place[0]].ids) + len(one.answer) > length:
            needed = size + len(one.answer)
            row = next((index for index, row in enumerate(rows) if len(row.ids) + needed <= length), len(rows))
            if row == len(rows):
                rows.append(_Row())
            place = open_rows[one.prompt] = row, rows[row].add(list(one.prompt), 0, number, 0)
        row, prompt_start = place
        start = rows[row].add(one.answer, size, rows[row].prompts[prompt_start], number)
        before = [prompt_start + size - 1, *range(start, start + len(one.answer) - 1)]
        states += [row * length + state for state, is_target in zip(before, one.targets, strict=True) if is_target]
    return rows, states


def _as_tensors(rows: list[_Row], length: int, states: list[int], device: torch.device) -> PackedAnswers:
    def padded(values: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (length - len(row)) for row in values], device=device)

    prompts, answers = padded([row.prompts for row in rows], 0), padded([row.answers for row in rows], 0)
    of_prompt, of_answer = prompts[:, :, None] == prompts[:, None], answers[:, :, None] == answers[:, None]
    attends = of_prompt & (of_answer | (answers == 0)[:, None])
    return PackedAnswers(
        input_ids=padded([row.ids for row in rows], 0),
        position_ids=padded([row.positions for row in rows], 0),
        attention_mask=attends.tril()[:, None],
        states=torch.tensor(states, device=device),
        read=torch.tensor(sorted({*states}), device=device),
    )
