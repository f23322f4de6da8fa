"""Held-out loss and token accuracy, computed in the same way during training and afterwards."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from accelerate import Accelerator
from tokenizers.pre_tokenizers import ByteLevel
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..progress import progress
from ..tokenization import decode_tools, pieces, with_training_template
from ..tokenization.masks import Rendered, render_conversation, render_text, tokenize_rendered

_SCORED_AT_ONCE = 4096  # positions whose logits are in float32 at the same time


def held_out_figures(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[dict],
    *,
    max_length: int | None,
    batch_size: int,
    max_batches: int | None = None,
    assistant_only: bool = False,
    bf16: bool = False,
    accelerator: Accelerator | None = None,
    chunk: bool = False,
    on_row: Callable[[dict, list[int], torch.Tensor], None] | None = None,
) -> dict[str, float]:
    """Measure how well a model predicts held-out rows; every token has the same weight.

    No random numbers are drawn, and every module keeps its mode (training or not), so that evaluating more often does
    not change training. No figure includes the auxiliary loss of a mixture of experts.

    Args:
        model: a causal language model; it may be wrapped by PEFT or have TRL's fused head.
        tokenizer: a tokenizer with the chat template of training or of inference.
        rows: rows with `text`, or with `messages` and optionally `tools` (JSON); `source` is optional. They are
            tokenized as by TRL's SFTTrainer.
        max_length: tokens after which a row is truncated, or split with `chunk`; None keeps rows whole.
        batch_size: rows per forward pass and process. Apart from rounding it only affects `max_batches`.
        max_batches: use the first `max_batches * batch_size` rows, for any number of processes.
        assistant_only: count only the assistant's tokens (end-of-turn token included), as training with
            `assistant_only_loss` does.
        bf16: use bfloat16 autocast, as training with `bf16` does; the loss itself is float32.
        accelerator: the processes that share the rows; all must call this function, and all get the same figures.
        chunk: split rows longer than `max_length` into pieces, each of which counts as a row.
        on_row: called with each row of this process, its T token ids, and the negative log-likelihoods (T,) in nats;
            NaN for tokens that are no targets.

    Returns:
        - `eval_loss`: negative log-likelihood in nats per target token; `eval_loss_SOURCE` for each `source`;
        - `eval_perplexity`: its exponential;
        - `eval_bits_per_byte`: negative log-likelihood of the text in bits per UTF-8 byte, which compares models with
          different tokenizers. Special tokens count neither as loss nor as bytes, as in nanochat's `evaluate_bpb`.
          Omitted if there is no text or the tokenizer is not byte-level;
        - `eval_token_accuracy`: share of target tokens that are the most likely token;
        - `eval_num_tokens`, `eval_num_rows`: number of target tokens, and of rows that have any;
        - `eval_rows_without_target`: number of rows that have none, such as prompts of `max_length` tokens; omitted
          if 0.

    Raises:
        InputError: no row has a target token.
    """
    most = None if max_batches is None else max_batches * batch_size
    taken = list(islice(rows, most))
    rank, size = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    count = len(taken)
    if chunk and max_length is not None:  # every process splits all rows, to know which pieces are its own
        parts = list(islice(_pieces(taken, tokenizer, max_length, assistant_only), most))
        own, tokenized = [row for row, _ in parts][rank::size], [part for _, part in parts][rank::size]
        count = len(parts)
    else:
        own = taken[rank::size]
        tokenized = tokenize_rows(own, tokenizer, max_length, assistant_only)
    sources = sorted({row["source"] for row in taken if row.get("source") is not None})
    groups = [0 if row.get("source") is None else sources.index(row["source"]) + 1 for row in own]
    sums = torch.zeros(1 + len(sources), 7, dtype=torch.float64)
    token_bytes = token_byte_lengths(tokenizer)
    with evaluating(model), torch.autocast(device_of(model).type, torch.bfloat16, enabled=bf16):
        # All processes run the same number of passes, because sharded models synchronise in each of them.
        starts = range(0, math.ceil(count / size), batch_size)
        for start in progress("evaluating", len(starts), "batches", starts):
            batch = tokenized[start : start + batch_size] or [([tokenizer.eos_token_id], [False])]
            scores = score_tokens(model, batch, token_bytes)
            for group, row in zip(groups[start : start + batch_size], scores.sum(dim=1), strict=False):
                sums[group] += torch.cat([torch.tensor([row[1] > 0, row[1] == 0]), row])
            if on_row is not None:
                for row, (ids, _), tokens in zip(own[start : start + batch_size], batch, scores, strict=False):
                    on_row(row, ids, target_losses(tokens, len(ids)))
    if size > 1:
        sums = accelerator.reduce(sums.to(accelerator.device), reduction="sum").cpu()
    return _figures(sums, sources, max_length)


def tokenize_rows(
    rows: Iterable[dict], tokenizer: PreTrainedTokenizerBase, max_length: int | None, assistant_only: bool = False
) -> list[tuple[list[int], list[bool]]]:
    """Token ids of each row and a mask of those to predict, truncated to `max_length` tokens.

    Rows are prepared as by TRL's SFTTrainer: the end-of-sequence token is appended to a text that lacks it, and a
    conversation is rendered with the chat template, or with its training twin for `assistant_only`. Turns that are
    excluded from training are masked.

    Args:
        rows: rows with `text` and optionally `untrained`, or with `messages` and optionally `tools` (JSON or a list).
            The tokens that a mixture has kept of them are taken as they are.

    Raises:
        InputError: with `assistant_only`, the chat template has no training twin.
    """
    rows = list(rows)
    if rows and all(_has_tokens(row, assistant_only) for row in rows):
        tokenized = [_kept_tokens(row, assistant_only) for row in rows]
    else:
        tokenizer = with_training_template(tokenizer) if assistant_only else tokenizer
        is_text = bool(rows) and "messages" not in rows[0]
        rendered = [_rendered_row(row, tokenizer, assistant_only) for row in rows]
        tokenized = [(ids, mask.tolist()) for ids, mask in tokenize_rendered(tokenizer, rendered, is_text)]
    return [(ids[:max_length], mask[:max_length]) for ids, mask in tokenized]


def _has_tokens(row: dict, assistant_only: bool) -> bool:
    """Whether a row has a mixture's tokens whose mask fits the training.

    The masks of conversations are for `assistant_only`; without it all turns are learned but those excluded.
    """
    if row.get("input_ids") is None:
        return False
    return assistant_only or not any(turn.get("train") is False for turn in row.get("messages") or ())


def _kept_tokens(row: dict, assistant_only: bool) -> tuple[list[int], list[bool]]:
    ids, mask = row["input_ids"], row.get("assistant_masks")
    if mask is None or ("messages" in row and not assistant_only):
        return ids, [True] * len(ids)
    return ids, mask


def _pieces(
    rows: list[dict], tokenizer: PreTrainedTokenizerBase, max_length: int, assistant_only: bool
) -> Iterator[tuple[dict, tuple[list[int], list[bool]]]]:
    """Each row's pieces in order, each with its row."""
    for row in rows:
        [(ids, mask)] = tokenize_rows([row], tokenizer, None, assistant_only)
        yield from ((row, (ids[part], mask[part])) for part in pieces(len(ids), max_length))


def _rendered_row(row: dict, tokenizer, assistant_only: bool) -> Rendered:
    if "messages" not in row:
        return render_text(tokenizer, row["text"], row.get("untrained"))
    return render_conversation(tokenizer, row["messages"], decode_tools(row.get("tools")), assistant_only)


def token_byte_lengths(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Length of each token id in UTF-8 bytes (vocabulary,); 0 for special tokens.

    All are 0 if the vocabulary is not byte-level as GPT-2's, with one character per byte.
    """
    added = tokenizer.added_tokens_decoder
    names = {index: name for name, index in tokenizer.get_vocab().items() if index not in added}
    lengths = torch.zeros(len(tokenizer), dtype=torch.int64)
    if not set().union(*names.values()) <= set(ByteLevel.alphabet()):
        return lengths
    for index, name in names.items():
        lengths[index] = len(name)
    for index, token in added.items():
        lengths[index] = 0 if token.special else len(token.content.encode())
    return lengths


def score_rows(model, batch: list[tuple[list[int], list[bool]]], token_bytes: torch.Tensor) -> torch.Tensor:
    """The sums of `score_tokens` over each row's tokens (rows, 5)."""
    return score_tokens(model, batch, token_bytes).sum(dim=1)


def score_tokens(model, batch: list[tuple[list[int], list[bool]]], token_bytes: torch.Tensor) -> torch.Tensor:
    """Run one forward pass and score each row's T tokens from the second on (rows, T - 1, 5), float64 on the CPU.

    The five numbers of a target are its negative log-likelihood in nats, 1, whether it is the most likely token, the
    negative log-likelihood again if it is text, and its bytes. They are 0 for a token that is no target.

    Args:
        model: a model in evaluation mode.
        batch: token ids of each row and a mask of those to predict; the first id is never predicted.
        token_bytes: bytes of each token id (vocabulary,); 0 if it is not text.
    """
    length = max(len(ids) for ids, _ in batch)
    # Right padding with any token: earlier positions do not attend to it.
    input_ids = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in batch])
    wanted = torch.tensor([mask + [False] * (length - len(mask)) for _, mask in batch])
    attention_mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in batch])
    device = device_of(model)
    logits = model(input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), use_cache=False).logits
    logits = logits[:, -length:]  # without virtual tokens that PEFT may prepend

    wanted = wanted[:, 1:]
    targets = input_ids[:, 1:][wanted]
    nll, correct = _score_tokens(logits[:, :-1][wanted.to(logits.device)], targets.to(logits.device))
    size = token_bytes[targets].double()
    scores = torch.zeros(*wanted.shape, 5, dtype=torch.float64)
    scores[wanted] = torch.stack([nll, torch.ones_like(nll), correct, nll.where(size > 0, 0), size], dim=-1)
    return scores


def target_losses(scores: torch.Tensor, length: int) -> torch.Tensor:
    """(length,) negative log-likelihoods of a row's tokens, from its part of `score_tokens`; NaN where none is."""
    losses = torch.full((length,), math.nan, dtype=torch.float64)
    nll, is_target = scores[: length - 1, 0], scores[: length - 1, 1] > 0
    losses[1:] = nll.where(is_target, math.nan)
    return losses


def _score_tokens(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood in nats of each target, and whether it is the most likely token; float64 on the CPU."""
    nll, correct = [torch.zeros(0)], [torch.zeros(0)]
    for some, right in zip(logits.split(_SCORED_AT_ONCE), targets.split(_SCORED_AT_ONCE), strict=True):
        nll.append(F.cross_entropy(some.float(), right, reduction="none").cpu())
        correct.append((some.argmax(-1) == right).cpu())
    return torch.cat(nll).double(), torch.cat(correct).double()


def _figures(sums: torch.Tensor, sources: list[str], max_length: int | None) -> dict[str, float]:
    rows, without_target, nll, tokens, correct, text_nll, size = sums.sum(0).tolist()
    if not tokens:
        raise InputError(f"no held-out row has a token to predict within max_length={max_length}")
    loss = nll / tokens
    figures = {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 700))}  # a larger exponential overflows
    if size:
        figures["eval_bits_per_byte"] = text_nll / math.log(2) / size
    figures |= {"eval_token_accuracy": correct / tokens, "eval_num_tokens": int(tokens), "eval_num_rows": int(rows)}
    if without_target:
        figures["eval_rows_without_target"] = int(without_target)
    by_source = zip(sources, sums[1:].tolist(), strict=True)
    return figures | {f"eval_loss_{name}": row[2] / row[3] for name, row in by_source if row[3]}


def device_of(model: torch.nn.Module) -> torch.device:
    """The device of a model's first parameter."""
    return next(model.parameters()).device


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside the block; afterwards every module has its own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
