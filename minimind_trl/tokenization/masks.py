"""Tokens of rows with a mask of those that are trained: all of them, or the assistant's.

Turns with `train: False` are never trained; for a conversation rendered as text, a column has the spans of such turns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from minimind_trl.tokenization.templates import ChatTemplateError

Spans = Sequence[Sequence[int]]


@dataclass
class Rendered:
    """A row's text before it is tokenized.

    Attributes:
        trained: character spans to train on; None for the whole text.
        untrained: character spans not to train on, wherever `trained` has them too.
    """

    text: str
    trained: Spans | None = None
    untrained: Spans | None = None


def render_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict], tools: list | None = None, assistant_only: bool = False
) -> Rendered:
    """The text of a conversation, and what is trained of it. Arguments and errors as of `tokenize_conversation`."""
    untrained = untrained_spans(tokenizer, messages, tools)
    if not assistant_only:
        return Rendered(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False), untrained=untrained)
    # As `apply_chat_template` does it, which returns the spans only as a mask of tokens.
    [text], [spans] = render_jinja_template(
        conversations=[[{key: value for key, value in turn.items() if value is not None} for turn in messages]],
        tools=tools,
        chat_template=tokenizer.get_chat_template(tools=tools),
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    return Rendered(text, spans, untrained)


def render_text(tokenizer: PreTrainedTokenizerBase, text: str, untrained: Spans | None = None) -> Rendered:
    """A text with an end-of-text token. Arguments as of `tokenize_text`."""
    return Rendered(text if text.endswith(tokenizer.eos_token) else text + tokenizer.eos_token, untrained=untrained)


def tokenize_rendered(
    tokenizer: PreTrainedTokenizerBase, rendered: Sequence[Rendered], add_special_tokens: bool
) -> list[tuple[list[int], np.ndarray]]:
    """Token ids of each text, and a boolean array (tokens,) of those that are trained.

    Args:
        rendered: tokenized together, which is faster than one by one.
        add_special_tokens: as for a tokenizer; False for conversations, whose template writes them.
    """
    if not rendered:
        return []
    texts = [one.text for one in rendered]
    if all(one.trained is None and not one.untrained for one in rendered):
        return [(ids, np.full(len(ids), True)) for ids in token_ids(tokenizer, texts, add_special_tokens)]
    options = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    encoded = tokenizer(texts, add_special_tokens=add_special_tokens, **options)
    encodings = encoded.encodings or [None] * len(rendered)  # a slow tokenizer has none
    pairs = zip(encoded["input_ids"], encodings, rendered, strict=True)
    return [(ids, _trained(len(ids), encoding, one)) for ids, encoding, one in pairs]


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
    """The token ids of each text, a third faster than by calling the tokenizer, which also finds their characters."""
    if not tokenizer.is_fast:
        return tokenizer(texts, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)]


def tokenize_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict], tools: list | None = None, assistant_only: bool = False
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and whether each of them is trained.

    Args:
        tokenizer: with `assistant_only`, one whose template marks the assistant's turns (`with_training_template`).

    Raises:
        ChatTemplateError: a turn must not be trained, and its bounds in the rendered text are unknown.
    """
    rendered = render_conversation(tokenizer, messages, tools, assistant_only)
    [(ids, mask)] = tokenize_rendered(tokenizer, [rendered], add_special_tokens=False)
    return ids, mask.tolist()


def tokenize_text(
    tokenizer: PreTrainedTokenizerBase, text: str, untrained: Spans | None = None
) -> tuple[list[int], list[bool]]:
    """Token ids of a text with an end-of-text token, and whether each of them is trained.

    Args:
        untrained: character spans that are not trained.
    """
    [(ids, mask)] = tokenize_rendered(tokenizer, [render_text(tokenizer, text, untrained)], add_special_tokens=True)
    return ids, mask.tolist()


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


def _trained(count: int, encoding: Encoding | None, rendered: Rendered) -> np.ndarray:
    mask = np.full(count, rendered.trained is None)
    for start, end in rendered.trained or ():
        mask[_overlapping(encoding, start, end)] = True
    for start, end in rendered.untrained or ():
        mask[_overlapping(encoding, start, end)] = False
    return mask


def _overlapping(encoding: Encoding, start: int, end: int) -> slice | list[int]:
    """The tokens that overlap a span of characters."""
    if start >= end:
        return []
    # The tokenizer finds a character's token faster than Python reads the offsets of all tokens.
    first, following = encoding.char_to_token(start), encoding.char_to_token(end)
    if first is not None and following is not None and encoding.token_to_chars(following)[0] >= end:
        return slice(first, following)
    return [at for at, (begin, stop) in enumerate(encoding.offsets) if begin < end and start < stop]
