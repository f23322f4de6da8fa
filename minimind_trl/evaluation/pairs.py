"""Measure which of two answers a model or a reward model prefers."""

from collections.abc import Iterable

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..tokenization import decode_tools
from .held_out import device_of, evaluating, score_rows, score_tokens, target_losses
from .measures import Measure, mean, share

_SIDES = ("chosen", "rejected")


def pair_log_probs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[dict],
    *,
    max_length: int | None,
    batch_size: int,
    bf16: bool = False,
) -> torch.Tensor:
    """Log-probability in nats of each row's chosen and rejected answer (rows, 2), float64 on the CPU.

    Rows are prepared as by TRL's DPOTrainer: the answer begins where prompt and conversation diverge, both sides are
    truncated to `max_length` tokens, and rows whose prompt alone is that long are dropped.

    Args:
        rows: rows with `prompt`, `chosen`, `rejected` (messages) and optionally `tools`.
        batch_size: pairs per forward pass.

    Raises:
        InputError: all rows are dropped.
    """
    pairs = [tokenize_answers(row, tokenizer, max_length) for row in rows]
    sequences = [side for pair in pairs if pair for side in pair]
    _check_left(sequences, max_length)
    no_text = torch.zeros(len(tokenizer), dtype=torch.int64)
    with evaluating(model), torch.autocast(device_of(model).type, torch.bfloat16, enabled=bf16):
        scores = [score_rows(model, batch, no_text)[:, 0] for batch in _batches(sequences, 2 * batch_size)]
    return -torch.cat(scores).view(-1, 2)


def answer_log_probs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, row: dict, *, max_length: int | None, bf16: bool = False
) -> list[tuple[list[int], torch.Tensor]] | None:
    """The T tokens of a row's chosen and of its rejected answer, each with their log-probabilities (T,) in nats.

    Rows are prepared as by `pair_log_probs`; None for one whose prompt leaves no room for an answer.
    """
    pair = tokenize_answers(row, tokenizer, max_length)
    if pair is None:
        return None
    no_text = torch.zeros(len(tokenizer), dtype=torch.int64)
    with evaluating(model), torch.autocast(device_of(model).type, torch.bfloat16, enabled=bf16):
        scores = score_tokens(model, pair, no_text)
    answers = []
    for (ids, mask), tokens in zip(pair, scores, strict=True):
        start = mask.index(True) if any(mask) else len(ids)
        answers.append((ids[start:], -target_losses(tokens, len(ids))[start:]))
    return answers


def preference_measures(
    log_probs: torch.Tensor, reference: torch.Tensor | None = None, beta: float = 0.1
) -> dict[str, Measure]:
    """Preference measures from log-probabilities of chosen and rejected answers (rows, 2).

    Returns:
        - `eval_log_prob_accuracy`, `eval_log_prob_margin`: how often, and by how many nats, the chosen answer is more
          likely, without a reference;
        - with a reference, under TRL's names: `eval_rewards/accuracies`, `eval_rewards/margins` and `eval_loss` of the
          implicit reward `beta * (log p(answer) - log p_reference(answer))`; the loss is `-log sigmoid(margin)`
          (DPO, arXiv 2305.18290).
    """
    margins = log_probs[:, 0] - log_probs[:, 1]
    measures = {
        "eval_log_prob_accuracy": share((margins > 0).tolist()),
        "eval_log_prob_margin": mean(margins.tolist()),
    }
    if reference is None:
        return measures
    margins = beta * (margins - (reference[:, 0] - reference[:, 1]))
    return measures | {
        "eval_rewards/accuracies": share((margins > 0).tolist()),
        "eval_rewards/margins": mean(margins.tolist()),
        "eval_loss": mean((-F.logsigmoid(margins)).tolist()),
    }


def reward_measures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[dict],
    *,
    max_length: int | None,
    batch_size: int,
    bf16: bool = False,
) -> dict[str, Measure]:
    """How often a reward model prefers the chosen answer, under the names of TRL's RewardTrainer.

    As in that trainer, rows with a side longer than `max_length` are dropped.

    Args:
        model: a sequence classifier with one label.
        rows: rows with `prompt`, `chosen`, `rejected` (messages) and optionally `tools`.
        batch_size: pairs per forward pass.

    Returns:
        `eval_accuracy`, `eval_margin`, and `eval_loss`, which is `-log sigmoid(margin)`.

    Raises:
        InputError: all rows are dropped.
    """
    sequences = []
    for row in rows:
        sides = [_render(tokenizer, row["prompt"] + row[side], row) for side in _SIDES]
        if max_length is None or max(map(len, sides)) <= max_length:
            sequences += sides
    _check_left(sequences, max_length)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    model.config.get_text_config().pad_token_id = pad  # the model needs it to find the last token
    with evaluating(model), torch.autocast(device_of(model).type, torch.bfloat16, enabled=bf16):
        rewards = [_rewards(model, batch, pad) for batch in _batches(sequences, 2 * batch_size)]
    chosen, rejected = torch.cat(rewards).view(-1, 2).T
    margins = chosen - rejected
    return {
        "eval_accuracy": share((margins > 0).tolist()),
        "eval_margin": mean(margins.tolist()),
        "eval_loss": mean((-F.logsigmoid(margins)).tolist()),
    }


def pair_rewards(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, row: dict, *, max_length: int | None, bf16: bool = False
) -> torch.Tensor | None:
    """The rewards (2,) of a row's chosen and rejected answer; None if one is longer than `max_length`."""
    sides = [_render(tokenizer, row["prompt"] + row[side], row) for side in _SIDES]
    if max_length is not None and max(map(len, sides)) > max_length:
        return None
    with evaluating(model), torch.autocast(device_of(model).type, torch.bfloat16, enabled=bf16):
        return _rewards(model, sides, tokenizer.pad_token_id)


def _rewards(model, batch: list[list[int]], pad: int) -> torch.Tensor:
    length = max(map(len, batch))
    input_ids = torch.tensor([ids + [pad] * (length - len(ids)) for ids in batch], device=device_of(model))
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in batch], device=device_of(model))
    return model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits[:, 0].double().cpu()


def tokenize_answers(row: dict, tokenizer, max_length: int | None) -> list[tuple[list[int], list[bool]]] | None:
    """Token ids of prompt + chosen and of prompt + rejected, truncated to `max_length`, each with a mask of the answer.

    None if the prompt leaves no room for an answer; DPOTrainer drops such a row.
    """
    prompt = _render(tokenizer, row["prompt"], row, add_generation_prompt=True)
    sides = [_render(tokenizer, row["prompt"] + row[side], row) for side in _SIDES]
    start = min(_common_prefix(prompt, side) for side in sides)
    if max_length is not None and start >= max_length:
        return None
    return [(ids[:max_length], [at >= start for at in range(len(ids[:max_length]))]) for ids in sides]


def _render(tokenizer, messages: list[dict], row: dict, **options) -> list[int]:
    tools = decode_tools(row.get("tools"))
    return tokenizer.apply_chat_template(messages, tools=tools, return_dict=False, **options)


def _common_prefix(one: list[int], other: list[int]) -> int:
    length = min(len(one), len(other))
    return next((at for at in range(length) if one[at] != other[at]), length)


def _batches(items: list, size: int) -> Iterable[list]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _check_left(sequences: list, max_length: int | None) -> None:
    if not sequences:
        raise InputError(f"no held-out pair fits into max_length={max_length}")
