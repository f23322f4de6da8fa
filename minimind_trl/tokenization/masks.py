"""Rows to tokens, and which of them are learned: all, or what the assistant wrote; never a turn that says it is not.

A turn says so by `train: False`; of a conversation that was written out as a text, a column holds where such turns are.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from minimind_trl.tokenization.templates import ChatTemplateError


def tokenize_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict], tools: list | None = None, assistant_only: bool = False
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and whether each of them is learned.

    Args:
        tokenizer: with `assistant_only`, one whose template marks the assistant's turns (`with_training_template`).

    Raises:
        ChatTemplateError: a turn is not to be trained, and the template does not show where it begins and ends.
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
    """Token ids of a text, its end-of-text token appended where it is missing, and whether each of them is learned.

    Args:
        untrained: characters, from and to, that are not learned.
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
    """Where in the rendered conversation the turns are that are not trained: characters, from and to, of each.

    Raises:
        ChatTemplateError: the template does not write a conversation turn by turn.
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
    """Where `count` tokens are cut into pieces of at most `length`, one after the other.

    A last token alone would have nothing that predicts it: the piece before gives it one of its own.
    """
    starts = list(range(0, count, length))
    if len(starts) > 1 and count - starts[-1] == 1 and length > 2:
        starts[-1] -= 1
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], count], strict=True)]


def _without(mask: list[bool], offsets: list[tuple[int, int]], spans: Sequence[Sequence[int]]) -> list[bool]:
    """The mask without the tokens that have a character in one of the spans."""
    return [
        learned and not any(start < end and first < stop for start, stop in spans)
        for learned, (first, end) in zip(mask, offsets, strict=True)
    ]
