"""Checks that a prompt has the same tokens in training as in generation.

A model is prompted with the tokens of the generation prompt alone, but trained on rows that are tokenized as a whole.
Many tokenizers split the last characters of a prompt differently when an answer follows: GPT-2's words make one token
of the two line ends of `</think>\\n\\n`, and two of them before a letter. Then the prompt ends with a token that no
row has before an answer. The held-out loss is fine, but the answers are not.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from minimind_trl.tokenization.control_tokens import find_control_tokens
from minimind_trl.tokenization.templates import decode_tools

# Generation prompts of the known templates: those of evaluation and rollouts, and before reasoning.
_ASKED, _OPEN = {}, {"open_thinking": True}
_TOLERATED = 0.1  # share of answers; upstream's tokenizers merge line ends with the indentation of code
_SHOWN = 3  # tokens that a message names


@dataclass
class PromptBoundary:
    """Counts of answers by what stands before them.

    Attributes:
        answers: all of them.
        split_otherwise: those before which the row's tokens differ from the prompt's.
        written_otherwise: those before which the row's text differs from the end of evaluation's and rollouts' prompts.
        indented: those of `split_otherwise` that begin with white space.
        example: the tokens of the first of `split_otherwise`.
    """

    answers: int = 0
    split_otherwise: int = 0
    written_otherwise: int = 0
    indented: int = 0
    example: str = ""

    def problems(self) -> list[str]:
        """Why these rows must not be trained on with this tokenizer; at most one reason."""
        return [self._split()] if self.split_otherwise > _TOLERATED * self.answers else []

    def warnings(self) -> list[str]:
        """What to know of these rows, if they are not refused."""
        found = [self._split()] if 0 < self.split_otherwise <= _TOLERATED * self.answers else []
        if self.answers and self.written_otherwise == self.answers:
            found.append(
                f"none of {self.answers} answers stands where the chat template's generation prompt ends, as all have "
                "reasoning: ask this model with open_thinking=True; evaluation and rollouts ask it without"
            )
        return found

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
    """Compare the tokens of every generation prompt with the first tokens of its row.

    Args:
        rows: of any phase: `messages`; `prompt`, `chosen` and `rejected`; `prompt` and perhaps `answer`; or `text`, if
            it was rendered by the chat template.
        tokenizer: the one for training; without a chat template there is nothing to compare.
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
            found.example = found.example or _difference(tokenizer, asked, trained)
    return found


def _joints(row: dict, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str, bool]]:
    """For every answer: the prompt, the whole text that begins with it, and whether that is the default prompt."""
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
    """As `_joints`, for a text that the chat template rendered, which is detected by its special tokens."""
    for options in (_ASKED, _OPEN):
        header = _header(tokenizer, options)
        ends = _ends_of(header, text) if find_control_tokens(header, tokenizer) else []
        yield from ((text[:end], text, options is _ASKED) for end in ends if end < len(text))
        if ends:
            return


def _header(tokenizer, options: dict) -> str:
    """What the template prints between a user's turn and the answer."""
    user = [{"role": "user", "content": "?"}]
    asked = tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True, **options)
    return asked.removeprefix(tokenizer.apply_chat_template(user, tokenize=False))


def _ends_of(part: str, text: str) -> list[int]:
    ends, at = [], text.find(part)
    while at >= 0:
        ends.append(at + len(part))
        at = text.find(part, ends[-1])
    return ends


def _difference(tokenizer, asked: list[int], trained: list[int]) -> str:
    """The tokens at which a prompt and the beginning of its row differ."""
    at = next(i for i in range(len(asked)) if i >= len(trained) or asked[i] != trained[i])
    ends, goes_on = (
        ", ".join(f"{tokenizer.decode([token])!r} ({token})" for token in ids[at : at + _SHOWN])
        for ids in (asked, trained)
    )
    return f"the prompt ends in {ends}, the row has {goes_on} there"
