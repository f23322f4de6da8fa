"""Escapes control tokens that are spelled inside data.

A chat template pastes message text between control tokens. The tokenizer cannot tell the template's `<|im_end|>` from
one in the text, so a document about chat models would end turns, forge roles, or teach the model to stop in
mid-sentence. Every *special* token of the tokenizer that is spelled inside data therefore gets a space after its first
character: `<|im_end|>` becomes `< |im_end|>`, which tokenizes as plain characters. Added tokens that are not special
(`<think>`, `<tool_call>`) are part of messages, and stay. The rule holds for plain pretraining text too: the trainer
separates documents, not the data.

Dropping such rows would lose the texts about chat formats, raising would stop a run for one row in millions, and
transformers' `apply_chat_template(sanitize_control_tokens=True)` cannot return the assistant mask that training needs.
The number of rewritten tokens is returned, for callers to report.

Templates paste roles into the header, so an unknown role is an error.
"""

import json
import re
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from minimind_trl.errors import InputError

ROLES = ("system", "user", "assistant", "tool")

_TEXT_COLUMNS = ("text", "messages", "prompt", "completion", "chosen", "rejected")
_JSON_FIELDS = ("tools", "tool_calls")  # of a message; upstream's data stores both as JSON


class MessageError(InputError):
    """A message without a known role."""


def find_control_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """List the special tokens of a tokenizer that are spelled inside a text.

    Args:
        text: the text as a person wrote it.
        tokenizer: decides which tokens are special.

    Returns:
        The tokens found, in order, with repetitions; empty when the text is harmless.
    """
    return special_tokens(tokenizer).findall(text)


def escape_control_tokens(example: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, Any], int]:
    """Break up the special tokens spelled inside one row of data.

    Args:
        example: a row with any of the columns `text`, `messages`, `prompt`, `completion`, `chosen`,
            `rejected` (each a string or a list of messages) and `tools` (a list or its JSON); other columns
            pass through. Of a message, everything but the role is text: content, reasoning, names and
            arguments of tool calls.
        tokenizer: decides which tokens are special.

    Returns:
        The row (a copy; the argument is not changed), and how many tokens were broken up in it.

    Raises:
        MessageError: a message has no role, or one that is not system, user, assistant or tool.
        ValueError: a special token is one character long, so that it cannot be broken up.
    """
    return escape_matches(example, special_tokens(tokenizer))


def escape_matches(example: dict[str, Any], tokens: re.Pattern[str]) -> tuple[dict[str, Any], int]:
    """As `escape_control_tokens`, for many rows; `tokens` are a tokenizer's `special_tokens`."""
    escaper = _Escaper(tokens)
    escaped = dict(example)
    for column in _TEXT_COLUMNS:
        if isinstance(value := example.get(column), str):
            escaped[column] = escaper.text(value)
        elif value is not None:
            escaped[column] = [escaper.message(m, f"{column}[{i}]") for i, m in enumerate(value)]
    if "tools" in example:
        escaped["tools"] = escaper.json(example["tools"])
    return escaped, escaper.count


class _Escaper:
    def __init__(self, tokens: re.Pattern[str]):
        self.tokens = tokens
        self.count = 0

    def text(self, text: str) -> str:
        # Repeated, because tokens may overlap, or contain another one with a space inside.
        while True:
            text, found = self.tokens.subn(_break_up, text)
            if not found:
                return text
            self.count += found

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            return {self.value(key): self.value(item) for key, item in value.items()}
        return value

    def json(self, value: Any) -> Any:
        """Escape a value that may be stored as JSON, in which `\\u003c` is a `<`."""
        if not isinstance(value, str):
            return self.value(value)
        before = self.count
        try:
            decoded = self.value(json.loads(value))
        except json.JSONDecodeError:
            return self.text(value)
        return value if self.count == before else json.dumps(decoded, ensure_ascii=False)

    def message(self, message: Any, where: str) -> dict[str, Any]:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise MessageError(
                f"{where}: {message!r:.80} has the role {role!r}: a message is a mapping whose role is "
                f"one of {', '.join(ROLES)}; rename the role or leave the message out"
            )
        return {key: self.json(value) if key in _JSON_FIELDS else self.value(value) for key, value in message.items()}


def _break_up(match: re.Match[str]) -> str:
    token = match.group()
    if len(token) == 1:
        raise ValueError(
            f"the special token {token!r} of this tokenizer is one character long, so text that holds it "
            "cannot be told from the token: take it out of the data, or make it an ordinary token"
        )
    return f"{token[0]} {token[1:]}"


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """A pattern that matches each special token of a tokenizer."""
    return _compile(tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special))


@lru_cache
def _compile(tokens: tuple[str, ...]) -> re.Pattern[str]:
    if not tokens:
        return re.compile(r"(?!)")  # an empty alternation would match everywhere
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))
