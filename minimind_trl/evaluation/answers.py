"""What a model answers to held-out prompts."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..tokenization import decode_tools
from .held_out import device_of, evaluating
from .measures import Measure, mean, share

_BATCH_SIZE = 64
_NGRAM = 4
_SPARE_TOKENS = 8  # beyond the longest right answer, so that a wrong one may also end by itself


def position_score(completion: str, answer: str) -> float:
    """Share of positions at which two whitespace-separated token lists agree, over the longer one's length.

    1.0 is an exact match; a list with two of four words in place scores 0.5. The graded reward of the tiny tasks.
    """
    given, right = completion.split(), answer.split()
    longest = max(len(given), len(right))
    return sum(a == b for a, b in zip(given, right, strict=False)) / longest if longest else 1.0


def generate_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Iterable[list[dict]], max_new_tokens: int
) -> list[str]:
    """Greedy completions of conversational prompts, without special tokens; the end-of-turn token stops each.

    Args:
        prompts: lists of messages, the last one the user's.
    """
    texts = [render_prompt(tokenizer, prompt) for prompt in prompts]
    return tokenizer.batch_decode(generate_tokens(model, tokenizer, texts, max_new_tokens), skip_special_tokens=True)


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict], tools: str | list | None = None, **template: Any
) -> str:
    """What the model is asked, up to where the assistant's turn begins.

    Args:
        tools: a list, or its JSON.
        template: more for the chat template, such as MiniMind-3's `open_thinking=True`.
    """
    options = {"tools": decode_tools(tools), "tokenize": False, "add_generation_prompt": True, **template}
    return tokenizer.apply_chat_template(messages, **options)


def generate_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], max_new_tokens: int
) -> list[list[int]]:
    """Greedy continuations of rendered prompts, each up to and with its end-of-turn token where there is one."""
    completions = []
    for start in range(0, len(texts), _BATCH_SIZE):
        batch = tokenizer(
            texts[start : start + _BATCH_SIZE],
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
            )
        completions += [
            until_end(ids, [tokenizer.eos_token_id]) for ids in output[:, batch["input_ids"].shape[1] :].tolist()
        ]
    return completions


def until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Tokens up to and with the first that ends a turn; all of them where none does."""
    first = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[: first + 1]


def without_reasoning(text: str) -> str:
    """What stands after the think block."""
    return text.rpartition("</think>")[2]


def exact_match_by_skill(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Iterable[dict]
) -> dict[str, dict[str, float]]:
    """Exact match and mean position score of greedy answers, per skill and over "all".

    Args:
        rows: with `messages` (the last one the right answer, not shown to the model), `answer` and `skill`.

    Returns:
        `{skill: {"exact_match": share, "position_score": mean, "prompts": count}}`.
    """
    rows = list(rows)
    longest = max(len(tokenizer(row["answer"]).input_ids) for row in rows)
    completions = generate_answers(model, tokenizer, [row["messages"][:-1] for row in rows], longest + _SPARE_TOKENS)
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
    """How greedy answers to held-out prompts are.

    Args:
        rows: with `prompt`, or `messages` whose last one is the right answer, and perhaps `answer`, `skill`, `tools`.

    Returns:
        - `exact_match`: share of answers that are the right one but for white space, without a think block; right is
          the column `answer`, else the last message (rows that have neither, and calls of tools, do not count);
          `exact_match_SKILL` for each `skill`;
        - `end_of_turn_rate`: share of answers that end by themselves within `max_new_tokens`;
        - `repeated_4gram_rate`: mean share of an answer's token 4-grams that it had already (seq-rep-4 of Welleck et
          al., arXiv 1908.04319; answers that are too short repeat nothing);
        - `answer_tokens`: mean length, the end-of-turn token not counted.
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
    """The exact match of who gives every prompt (of a skill: of that skill) the most frequent right answer."""
    return {
        name: Measure(Counter(tuple(right) for _, right in group).most_common(1)[0][1] / len(group), count=len(group))
        for name, group in _graded(rows).items()
    }


def repeated_ngrams(ids: Sequence[int], size: int) -> float:
    """Share of n-grams that are not the first of their kind; 0 where there is none."""
    grams = [tuple(ids[at : at + size]) for at in range(len(ids) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _graded(rows: Sequence[dict]) -> dict[str, list[tuple[int, list[str]]]]:
    """`{name of the measure: [(index, words of the right answer)]}` of the rows that have one."""
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
