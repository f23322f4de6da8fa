"""Tokens of rows with a mask of those that are trained: all of them, or the assistant's.

Turns with `train: False` are never trained; for a conversation rendered as text, a column has the spans of such turns.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from minimind_trl.tokenization.templates import ChatTemplateError


def tokenize_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict], tools: list | None = None, assistant_only: bool = False
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and whether each of them is trained.

    Args:
        tokenizer: with `assistant_only`, one whose template marks the assistant's turns (`with_training_template`).

    Raises:
        ChatTemplateError: a turn must not be trained, and its bounds in the rendered text are unknown.
    """
    spans = untrained_spans(tokenizer, messages, tools)
    rendered = tokenizer.apply_chat_template(
        messages,
        tools=tools,
        return_dict=True,
        return_assistant_tokens_mask=assistant_only,
        tokenizer_kwargs={"return_offsets_mapping": True} if spans else None,
    )
    ids = rendered["input_ids"]
    mask = [bit == 1 for bit in rendered["assistant_masks"]] if assistant_only else [True] * len(ids)
    return ids, _without(mask, rendered["offset_mapping"], spans) if spans else mask


def tokenize_text(
    tokenizer: PreTrainedTokenizerBase, text: str, untrained: Sequence[Sequence[int]] | None = None
) -> tuple[list[int], list[bool]]:
    """Token ids of a text with an end-of-text token, and whether each of them is trained.

    Args:
        untrained: character spans that are not trained.
    """
    text = text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token
    if not untrained:
        ids = tokenizer(text)["input_ids"]
        return ids, [True] * len(ids)
    encoded = tokenizer(text, return_offsets_mapping=True)
    return encoded["input_ids"], _without([True] * len(encoded["input_ids"]), encoded["offset_mapping"], untrained)


def untrained_spans(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict], tools: list | None = None
) -> list[list[int]]:
    """Character spans, in the rendered conversation, of the turns that are not trained.

    Raises:
        ChatTemplateError: the template does not render a conversation turn by turn.
    """
    places = [place for place, turn in enumerate(messages) if turn.get("train") is False]
    if not places:
        return []

    def rendered(count: int) -> str:
        return tokenizer.apply_chat_template(messages[:count], tools=tools, tokenize=False) if count else ""

    whole, spans = rendered(len(messages)), []
    for place in places:
        before, after = rendered(place), rendered(place + 1)
        if not (after.startswith(before) and whole.startswith(after)):
            raise ChatTemplateError("the chat template does not show where the turn ends that is not to be trained")
        spans.append([len(before), len(after)])
    return spans


def pieces(count: int, length: int) -> list[slice]:
    """Cut `count` tokens into consecutive pieces of at most `length`.

    A last piece of one token would have nothing to predict it, so the piece before gives it one of its tokens.
    """
    starts = list(range(0, count, length))
    if len(starts) > 1 and count - starts[-1] == 1 and length > 2:
        starts[-1] -= 1
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], count], strict=True)]


def _without(mask: list[bool], offsets: list[tuple[int, int]], spans: Sequence[Sequence[int]]) -> list[bool]:
    """The mask without tokens that overlap one of the spans."""
    return [
        learned and not any(start < end and first < stop for start, stop in spans)
        for learned, (first, end) in zip(mask, offsets, strict=True)
    ]
