"""Generate and grade a model's answers to held-out prompts."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from torch.nn import Parameter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.decoding import can_sample, sample
from ..progress import progress
from ..tokenization import decode_tools
from .held_out import device_of, evaluating
from .measures import Measure, mean, share

_BATCH_SIZE = 64
_ROLLOUT_SIZE = 256  # prompts that our decoding loop gets at a time
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_NGRAM = 4
_SPARE_TOKENS = 8  # beyond the longest right answer, so that a wrong answer can end by itself
_LONGEST_SHOWN = 128  # tokens of an answer that is only shown


def position_score(completion: str, answer: str) -> float:
    """Share of positions at which two whitespace-separated word lists agree, relative to the longer list.

    1.0 is an exact match; two of four words in place score 0.5. This is the graded reward of the tiny tasks.
    """
    given, right = completion.split(), answer.split()
    longest = max(len(given), len(right))
    return sum(a == b for a, b in zip(given, right, strict=False)) / longest if longest else 1.0


def share_contained(text: str, wanted: list | str) -> float:
    """The share of strings that a text contains. Numbers are compared as numbers, other strings without case."""
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    if not wanted:
        return 0.0
    numbers = {float(number.replace(",", "")) for number in _NUMBER.findall(text)}
    return sum(_is_contained(str(part).strip(), text, numbers) for part in wanted) / len(wanted)


def _is_contained(part: str, text: str, numbers: set[float]) -> bool:
    if _NUMBER.fullmatch(part):
        return any(abs(float(part.replace(",", "")) - number) < 1e-6 for number in numbers)
    return part.lower() in text.lower()


def generate_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Iterable[list[dict]], max_new_tokens: int
) -> list[str]:
    """Greedy completions of conversational prompts, without special tokens; each stops at the end-of-turn token.

    Args:
        prompts: lists of messages; the last message is the user's.
    """
    texts = [render_prompt(tokenizer, prompt) for prompt in prompts]
    return tokenizer.batch_decode(generate_tokens(model, tokenizer, texts, max_new_tokens), skip_special_tokens=True)


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict], tools: str | list | None = None, **template: Any
) -> str:
    """Render a prompt up to where the assistant's turn begins.

    Args:
        tools: a list, or its JSON.
        template: variables for the chat template, such as MiniMind-3's `open_thinking=True`.
    """
    options = {"tools": decode_tools(tools), "tokenize": False, "add_generation_prompt": True, **template}
    return tokenizer.apply_chat_template(messages, **options)


def short_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], right: Iterable[str | None]
) -> list[str]:
    """Greedy completions of rendered prompts to look at: little longer than the longest right answer, if any is known.

    Args:
        right: the right answers, None where there is none.
    """
    longest = min(_room(tokenizer, right), _LONGEST_SHOWN)
    return tokenizer.batch_decode(generate_tokens(model, tokenizer, texts, longest), skip_special_tokens=True)


def _room(tokenizer: PreTrainedTokenizerBase, right: Iterable[str | None]) -> int:
    """Tokens that an answer may have."""
    return max(len(tokenizer(answer or "").input_ids) for answer in right) + _SPARE_TOKENS


def generate_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], max_new_tokens: int
) -> list[list[int]]:
    """Greedy completions of rendered prompts, each up to and including its end-of-turn token, if any."""
    completions = []
    own_loop = _has_own_loop(model)
    size = _ROLLOUT_SIZE if own_loop else _BATCH_SIZE
    starts = range(0, len(texts), size)
    for start in progress("answering", len(starts), "batches", starts):
        batch = tokenizer(
            texts[start : start + size],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_token_type_ids=False,
            return_tensors="pt",
        ).to(device_of(model))
        with evaluating(model):
            output = model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                custom_generate=sample if own_loop else None,
            )
        completions += [
            until_end(ids, [tokenizer.eos_token_id]) for ids in output[:, batch["input_ids"].shape[1] :].tolist()
        ]
    return completions


def _has_own_loop(model: PreTrainedModel) -> bool:
    """Whether our decoding loop can run the model, which reads the weights: all of them must be here."""
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return False
    whole = all(type(weight) is Parameter and weight.numel() for weight in model.parameters())
    return whole and can_sample(model.config, model.generation_config, device_of(model))


def until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Tokens up to and including the first that ends a turn; all of them if none does."""
    first = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[: first + 1]


def without_reasoning(text: str) -> str:
    """The text after the think block."""
    return text.rpartition("</think>")[2]


def exact_match_by_skill(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Iterable[dict]
) -> dict[str, dict[str, float]]:
    """Exact match and mean position score of greedy answers, per skill and over "all".

    Args:
        rows: rows with `messages` (the last one is the right answer and is not shown), `answer` and `skill`.

    Returns:
        `{skill: {"exact_match": share, "position_score": mean, "prompts": count}}`.
    """
    rows = list(rows)
    longest = _room(tokenizer, [row["answer"] for row in rows])
    completions = generate_answers(model, tokenizer, [row["messages"][:-1] for row in rows], longest)
    scores: dict[str, list[float]] = defaultdict(list)
    for row, completion in zip(rows, completions, strict=True):
        score = position_score(completion, row["answer"])
        scores[row["skill"]].append(score)
        scores["all"].append(score)
    return {
        skill: {
            "exact_match": sum(score == 1 for score in values) / len(values),
            "position_score": sum(values) / len(values),
            "prompts": len(values),
        }
        for skill, values in sorted(scores.items(), key=lambda item: (item[0] == "all", item[0]))
    }


def answer_measures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    max_new_tokens: int,
) -> dict[str, Measure]:
    """Grade greedy answers to held-out prompts.

    Args:
        rows: rows with `prompt`, or with `messages` whose last one is the right answer; `answer`, `skill` and `tools`
            are optional.

    Returns:
        - `exact_match`: share of answers that equal the right one, except for white space and a think block. The right
          answer is the column `answer`, else the last message; rows with neither and tool calls are not graded.
          `exact_match_SKILL` is the same per `skill`;
        - `end_of_turn_rate`: share of answers that end by themselves within `max_new_tokens`;
        - `repeated_4gram_rate`: mean share of repeated token 4-grams in an answer (seq-rep-4 of Welleck et al.,
          arXiv 1908.04319; 0 for shorter answers);
        - `answer_tokens`: mean length, without the end-of-turn token.
    """
    texts = [render_prompt(tokenizer, _asked(row), row.get("tools")) for row in rows]
    completions = generate_tokens(model, tokenizer, texts, max_new_tokens)
    ended = [bool(ids) and ids[-1] == tokenizer.eos_token_id for ids in completions]
    bodies = [ids[:-1] if end else ids for ids, end in zip(completions, ended, strict=True)]
    answers = [_words(text) for text in tokenizer.batch_decode(bodies, skip_special_tokens=True)]
    matches = {
        name: share([answers[index] == right for index, right in group]) for name, group in _graded(rows).items()
    }
    return matches | {
        "end_of_turn_rate": share(ended),
        f"repeated_{_NGRAM}gram_rate": mean([repeated_ngrams(ids, _NGRAM) for ids in bodies]),
        "answer_tokens": mean([float(len(ids)) for ids in bodies]),
    }


def guessing_measures(rows: Sequence[dict]) -> dict[str, Measure]:
    """Exact match of always giving the most frequent right answer, overall and per skill."""
    return {
        name: Measure(Counter(tuple(right) for _, right in group).most_common(1)[0][1] / len(group), count=len(group))
        for name, group in _graded(rows).items()
    }


def repeated_ngrams(ids: Sequence[int], size: int) -> float:
    """Share of n-grams that repeat an earlier one; 0 if there are no n-grams."""
    grams = [tuple(ids[at : at + size]) for at in range(len(ids) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _graded(rows: Sequence[dict]) -> dict[str, list[tuple[int, list[str]]]]:
    """`{name of the measure: [(row index, words of the right answer)]}` for rows with a right answer."""
    groups: dict[str, list[tuple[int, list[str]]]] = {}
    for index, row in enumerate(rows):
        right = _right_answer(row)
        if right is None:
            continue
        groups.setdefault("exact_match", []).append((index, _words(right)))
        if row.get("skill") is not None:
            groups.setdefault(f"exact_match_{row['skill']}", []).append((index, _words(right)))
    return dict(sorted(groups.items()))


def _asked(row: dict) -> list[dict]:
    return row["prompt"] if "prompt" in row else row["messages"][:-1]


def _right_answer(row: dict) -> str | None:
    answer: Any = row.get("answer")
    if answer is not None:
        return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    last = row["messages"][-1] if "messages" in row else {}
    if not last or last.get("tool_calls") or last.get("train") is False:
        return None
    return row["messages"][-1]["content"]


def _words(text: str) -> list[str]:
    return without_reasoning(text).split()
