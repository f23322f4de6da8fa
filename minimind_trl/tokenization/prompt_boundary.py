"""Where the prompt ends and the answer begins: the same tokens in training as in generation.

A model is asked with the tokens of the generation prompt alone, and trained on rows that were tokenized as a whole.
Many tokenizers split the last characters of a prompt otherwise once an answer follows: GPT-2's words make one token of
the two line ends of `</think>\\n\\n`, and two of them before a letter. The model is then asked with a token that no row
had in front of an answer. Its held-out loss is fine, and its answers are not.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from minimind_trl.tokenization.control_tokens import find_control_tokens
from minimind_trl.tokenization.templates import decode_tools

# Generation prompts of the known templates: as evaluation and rollouts ask, and as a row with reasoning begins.
_ASKED, _OPEN = {}, {"open_thinking": True}
_TOLERATED = 0.1  # share of answers; upstream's own tokenizers merge line ends with the indentation of code
_SHOWN = 3  # tokens that a message names


@dataclass
class PromptBoundary:
    """How the answers of some rows begin, beside the prompt that a model is asked with."""

    answers: int = 0
    """That were looked at."""
    split_otherwise: int = 0
    """Of the answers, those before which the row has other tokens than the prompt."""
    written_otherwise: int = 0
    """Of the answers, those before which the row has another text than evaluation and rollouts end a prompt with."""
    indented: int = 0
    """Of `split_otherwise`, those that begin with white space."""
    example: str = ""
    """The tokens of the first of `split_otherwise`."""

    def problems(self) -> list[str]:
        """Why not to train on these rows with this tokenizer; at most one reason."""
        return [self._split()] if self.split_otherwise > _TOLERATED * self.answers else []

    def warnings(self) -> list[str]:
        """What to know of these rows, where they are not refused."""
        told = [self._split()] if 0 < self.split_otherwise <= _TOLERATED * self.answers else []
        if self.answers and self.written_otherwise == self.answers:
            told.append(
                f"none of {self.answers} answers stands where the chat template's generation prompt ends, as all have "
                "reasoning: ask this model with open_thinking=True; evaluation and rollouts ask it without"
            )
        return told

    def _split(self) -> str:
        told = f"{self.split_otherwise} of {self.answers} answers"
        learned = "so such an answer is learned after tokens that the model is never asked with"
        remedy = "take a tokenizer whose line ends are tokens of their own (`minimind-trl tokenizer train` makes such)"
        if self.indented == self.split_otherwise:
            return (
                f"the tokenizer merges the end of the generation prompt with the white space that {told} begin with "
                f"({self.example}), {learned}: strip that white space, or {remedy}"
            )
        return (
            f"the tokenizer splits the end of the generation prompt otherwise before {told} ({self.example}), "
            f"{learned}: {remedy}"
        )


def compare_prompts(rows: Iterable[dict], tokenizer: PreTrainedTokenizerBase) -> PromptBoundary:
    """Compare the tokens of every generation prompt with those that its row begins with.

    Args:
        rows: of any phase: `messages`; `prompt`, `chosen` and `rejected`; `prompt` and perhaps `answer`; or `text`, of
            which only what the chat template has written is looked at.
        tokenizer: as it is trained with; without a chat template there is nothing to compare.
    """
    found = PromptBoundary()
    if not tokenizer.chat_template:
        return found
    for row in rows:
        for prompt, whole, as_asked in _joints(row, tokenizer):
            found.answers += 1
            found.written_otherwise += not as_asked
            asked, trained = tokenizer([prompt, whole], add_special_tokens=False, verbose=False)["input_ids"]
            if trained[: len(asked)] == asked:
                continue
            found.split_otherwise += 1
            found.indented += whole[len(prompt)].isspace()
            found.example = found.example or _told(tokenizer, asked, trained)
    return found


def _joints(row: dict, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str, bool]]:
    """Of every answer: the prompt, the whole text that begins with it, and whether one is asked so by default."""
    tools = decode_tools(row.get("tools"))
    if "text" in row:
        yield from _joints_in_text(row["text"], tokenizer)
    elif "messages" in row and "prompt" not in row:
        yield from _joints_in_chat(row["messages"], 0, tools, tokenizer)
    elif "chosen" in row:
        for side in ("chosen", "rejected"):
            yield from _joints_in_chat(row["prompt"] + row[side], len(row["prompt"]), tools, tokenizer)
    elif row.get("answer"):
        answer = row["answer"] if isinstance(row["answer"], str) else json.dumps(row["answer"], ensure_ascii=False)
        if isinstance(row["prompt"], str):
            yield row["prompt"], row["prompt"] + answer, True
        else:
            answered = [*row["prompt"], {"role": "assistant", "content": answer}]
            yield from _joints_in_chat(answered, len(row["prompt"]), tools, tokenizer)


def _joints_in_chat(messages: list[dict], first: int, tools, tokenizer) -> Iterator[tuple[str, str, bool]]:
    whole = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    for turn in range(max(first, 1), len(messages)):
        if messages[turn]["role"] != "assistant":
            continue
        for options in (_ASKED, _OPEN):
            asked = {"tools": tools, "tokenize": False, "add_generation_prompt": True, **options}
            prompt = tokenizer.apply_chat_template(messages[:turn], **asked)
            if whole.startswith(prompt) and len(whole) > len(prompt):
                yield prompt, whole, options is _ASKED
                break


def _joints_in_text(text: str, tokenizer) -> Iterator[tuple[str, str, bool]]:
    """Of a text that the chat template has written, told by the special tokens that no other text may hold."""
    for options in (_ASKED, _OPEN):
        header = _header(tokenizer, options)
        ends = _ends_of(header, text) if find_control_tokens(header, tokenizer) else []
        yield from ((text[:end], text, options is _ASKED) for end in ends if end < len(text))
        if ends:
            return


def _header(tokenizer, options: dict) -> str:
    """What the template writes between a user's turn and the answer."""
    user = [{"role": "user", "content": "?"}]
    asked = tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True, **options)
    return asked.removeprefix(tokenizer.apply_chat_template(user, tokenize=False))


def _ends_of(part: str, text: str) -> list[int]:
    ends, at = [], text.find(part)
    while at >= 0:
        ends.append(at + len(part))
        at = text.find(part, ends[-1])
    return ends


def _told(tokenizer, asked: list[int], trained: list[int]) -> str:
    """The tokens at which a prompt and the beginning of its row part."""
    at = next(i for i in range(len(asked)) if i >= len(trained) or asked[i] != trained[i])
    ends, goes_on = (
        ", ".join(f"{tokenizer.decode([token])!r} ({token})" for token in ids[at : at + _SHOWN])
        for ids in (asked, trained)
    )
    return f"the prompt ends in {ends}, the row has {goes_on} there"
