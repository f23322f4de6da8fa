"""Renders and tokenizes converted rows, once: the mixer counts the tokens, and trainers take them as they are."""

from functools import cached_property
from itertools import takewhile
from typing import Any, NamedTuple

from datasets import List, Value
from transformers import PreTrainedTokenizerBase

from ..tokenization.masks import (
    Rendered,
    render_conversation,
    render_text,
    token_ids,
    tokenize_rendered,
    untrained_spans,
)
from ..tokenization.renderings import PrintedFields, first_unprinted, reasoning_in_content
from ..tokenization.templates import ChatTemplateError, decode_tools, prints_the_same, with_training_template
from .schemas import PHASES
from .turns import Row, RowError

# What trainers take of a row instead of rendering and tokenizing it again, under TRL's names. Both sides of a pair are
# whole, as RewardTrainer takes them; `prompt_tokens` is how many first tokens are the prompt's, as DPOTrainer cuts them
# (null if the chat template refuses the prompt alone, and in mixtures for reward models, which do not cut).
TOKENS = {
    "text": ("input_ids", "assistant_masks"),
    "messages": ("input_ids", "assistant_masks"),
    "pair": ("chosen_ids", "rejected_ids", "prompt_tokens"),
    "prompt": ("prompt_ids",),
}
TOKEN_COLUMNS = tuple(dict.fromkeys(name for names in TOKENS.values() for name in names))
_FEATURES = {"assistant_masks": List(Value("bool")), "prompt_tokens": Value("uint32")}


class Tokens(NamedTuple):
    """The tokens of a row.

    Attributes:
        count: of a preference pair those of the longer side.
        columns: `TOKENS` of the row; empty where they are not kept. `assistant_masks` is (tokens,), whether each is
            trained; None also where all are.
    """

    count: int
    columns: Row


class RowRenderer:
    """Renders the rows of one schema for one phase, and tokenizes them.

    Args:
        tokenizer: with a chat template, unless `is_text`.
        is_text: the rows are texts, not conversations.
        keep_tokens: keep `TOKENS` where possible.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, phase: str, is_text: bool, keep_tokens: bool):
        self.tokenizer, self.is_text, self.keep_tokens = tokenizer, is_text, keep_tokens
        self.columns, self.finds_answers = PHASES[phase][0], phase != "reward"

    @property
    def flattens(self) -> bool:
        """Whether conversations become texts."""
        return self.columns == "text" and not self.is_text

    @cached_property
    def keeps_tokens(self) -> bool:
        """Whether rows keep `TOKENS`: those of conversations only if the trainer's template prints the same."""
        if not self.keep_tokens or not self.tokenizer.is_fast or self.tokenizer.eos_token is None:
            return False
        return self.columns != "messages" or self._training_tokenizer is not None

    @property
    def features(self) -> dict[str, List | Value]:
        """Those of `TOKENS`; none where they are not kept."""
        if not self.keeps_tokens:
            return {}
        ids = List(Value("uint16" if len(self.tokenizer) <= 2**16 else "uint32"))
        return {name: _FEATURES.get(name, ids) for name in TOKENS[self.columns]}

    def render(self, row: Row) -> tuple[Row, int, tuple[Rendered, ...]]:
        """A row as it is trained on, how many turns' reasoning was moved for that, and what is tokenized of it.

        Raises:
            RowError: the chat template refuses it, or leaves out a part.
        """
        row, moved = self._printable(row)
        rendered = self._rendered(row)
        if self.flattens:
            [text] = rendered
            text.untrained = self._untrained(row["messages"], decode_tools(row.get("tools")))
            row = {"text": text.text, "untrained": text.untrained}
        return row, moved, rendered

    def tokens_of(self, rows: list[Row]) -> list[Row]:
        """`TOKENS` of rows that `render` returned, perhaps long ago."""
        return [tokens.columns for tokens in self.tokenize([self._rendered(row) for row in rows])]

    def _rendered(self, row: Row) -> tuple[Rendered, ...]:
        if "text" in row:
            return (Rendered(row["text"], untrained=row.get("untrained")),)
        tools = decode_tools(row.get("tools"))
        if "chosen" in row:
            sides = tuple(self._render(row["prompt"] + row[side], tools) for side in ("chosen", "rejected"))
            return sides + self._prompt_of_pair(row["prompt"], tools)
        if "messages" not in row:
            return (self._render(row["prompt"], tools, add_generation_prompt=True),)
        return (self._render(row["messages"], tools),)

    def tokenize(self, rendered: list[tuple[Rendered, ...]]) -> list[Tokens]:
        """The tokens of rows that `render` returned."""
        if not rendered:
            return []
        if not self.keeps_tokens:
            return self._count(rendered)
        if self.columns in ("pair", "prompt"):
            ids = iter(self._ids([one.text for row in rendered for one in row]))
            tokens_of = _of_pair if self.columns == "pair" else _of_prompt
            return [tokens_of(*(next(ids) for _ in row)) for row in rendered]
        texts = [one for (one,) in rendered]
        if self.columns == "text":
            texts = [render_text(self.tokenizer, one.text, one.untrained) for one in texts]
        tokenized = tokenize_rendered(self.tokenizer, texts, add_special_tokens=self.columns == "text")
        counts = [len(ids) for ids, _ in tokenized]
        if self.flattens:  # only what the template writes counts, not what is put around it
            special = self.tokenizer.num_special_tokens_to_add()
            ends = (one.text != row.text for one, (row,) in zip(texts, rendered, strict=True))
            counts = [count - special - end for count, end in zip(counts, ends, strict=True)]
        columns = ({"input_ids": ids, "assistant_masks": None if mask.all() else mask} for ids, mask in tokenized)
        return list(map(Tokens, counts, columns))

    def _count(self, rendered: list[tuple[Rendered, ...]]) -> list[Tokens]:
        ids = iter(self._ids([one.text for row in rendered for one in row]))
        # The trainer appends the end-of-text token to a plain text.
        return [Tokens(max(len(next(ids)) + self.is_text for _ in row), {}) for row in rendered]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return token_ids(self.tokenizer, texts, add_special_tokens=self.is_text)

    def _prompt_of_pair(self, prompt: list[Row], tools: list | None) -> tuple[Rendered, ...]:
        """The prompt alone, to find where the answers begin; empty if the template refuses it, or nobody asks."""
        if not (self.keeps_tokens and self.finds_answers):
            return ()
        try:
            options = {"tools": tools, "add_generation_prompt": True, "tokenize": False}
            return (Rendered(self.tokenizer.apply_chat_template(prompt, **options)),)
        except Exception:  # a template may refuse it in any way
            return ()

    def _render(self, messages: list[Row], tools: list | None, **options: Any) -> Rendered:
        try:
            if self.keeps_tokens and self.columns == "messages":
                rendered = render_conversation(self._training_tokenizer, messages, tools, assistant_only=True)
            else:
                text = self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)
                rendered = Rendered(text)
        except ChatTemplateError as error:
            raise RowError(str(error)) from error
        except Exception as error:  # a template may refuse a row in any way
            raise RowError(f"the chat template refuses it: {type(error).__name__}") from error
        turn = first_unprinted(rendered.text, messages)
        if turn is not None and self._printed_in_training is not self._printed:
            trainers = self._printed_in_training.tokenizer
            turn = first_unprinted(trainers.apply_chat_template(messages, tools=tools, tokenize=False), messages)
        if turn is not None:
            raise RowError(f"the chat template leaves out a part of the {messages[turn]['role']}'s content")
        return rendered

    def _untrained(self, messages: list[Row], tools: list | None) -> list[list[int]] | None:
        """Character spans of the text that are not trained, or None."""
        try:
            return untrained_spans(self.tokenizer, messages, tools) or None
        except ChatTemplateError as error:
            raise RowError(str(error)) from error

    def _printable(self, row: Row) -> tuple[Row, int]:
        """The row in a form that the chat template prints in full, and how many turns' reasoning was moved for that.

        Raises:
            RowError: the template leaves out something else.
        """
        if "text" in row:
            return row, 0
        tools = decode_tools(row.get("tools"))
        before, printed = row.get("prompt") or [], dict(row)
        if sides := [name for name in ("messages", "chosen", "rejected") if name in row]:
            for side in sides:
                turns = self._printable_turns(before + row[side], tools)
                printed |= {side: turns[len(before) :]} | ({"prompt": turns[: len(before)]} if before else {})
        else:
            printed["prompt"] = self._printable_turns(before, tools)
        columns = [name for name in ("prompt", *sides) if name in row]
        moved = [new is not old for name in columns for new, old in zip(printed[name], row[name], strict=True)]
        return printed, sum(moved)

    def _printable_turns(self, turns: list[Row], tools: list | None) -> list[Row]:
        if not (missing := self._missing(turns, tools)):
            return turns
        thinkers = {turn for turn, field in missing if field == "reasoning_content"}
        reasoning = {turn for turn in thinkers if turns[turn]["role"] == "assistant"}
        turns = [reasoning_in_content(turn) if at in reasoning else turn for at, turn in enumerate(turns)]
        if missing := self._missing(turns, tools):
            at, field = missing[0]
            what = field if field == "tools" else f"the {turns[at]['role']}'s {field}"
            raise RowError(f"the chat template leaves out {what}")
        return turns

    def _missing(self, turns: list[Row], tools: list | None) -> list[tuple[int, str]]:
        """What neither this template nor, if the trainer uses another one, the training template prints."""
        missing = self._printed.missing(turns, tools)
        return missing and self._printed_in_training.missing(turns, tools)

    @cached_property
    def _printed(self) -> PrintedFields:
        return PrintedFields(self.tokenizer)

    @cached_property
    def _printed_in_training(self) -> PrintedFields:
        if self.columns != "messages":
            return self._printed
        try:
            return PrintedFields(with_training_template(self.tokenizer))
        except ChatTemplateError:  # the recipe reports it
            return self._printed

    @cached_property
    def _training_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer of training on the assistant's turns; None without one that prints what `tokenizer` prints."""
        try:
            trained = with_training_template(self.tokenizer)
        except ChatTemplateError:  # the recipe reports it
            return None
        return trained if prints_the_same(self.tokenizer, trained) else None


def _of_pair(chosen: list[int], rejected: list[int], prompt: list[int] | None = None) -> Tokens:
    start = None
    if prompt is not None:  # the answers begin where one of the three differs, as in DPOTrainer
        shared = zip(prompt, chosen, rejected, strict=False)
        start = sum(1 for _ in takewhile(lambda tokens: tokens[0] == tokens[1] == tokens[2], shared))
    columns = {"chosen_ids": chosen, "rejected_ids": rejected, "prompt_tokens": start}
    return Tokens(max(len(chosen), len(rejected)), columns)


def _of_prompt(ids: list[int]) -> Tokens:
    return Tokens(len(ids), {"prompt_ids": ids})
