"""One yardstick for every checkpoint: greedy answers to held-out prompts, compared with the known ones."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH_SIZE = 64
_SPARE_TOKENS = 8  # beyond the longest right answer, so that a wrong one may also end by itself


def position_score(completion: str, answer: str) -> float:
    """Share of positions at which two whitespace-separated token lists agree, over the longer one's length.

    1.0 is an exact match; a list with two of four words in place scores 0.5. The graded reward of the tiny tasks.
    """
    given, right = completion.split(), answer.split()
    longest = max(len(given), len(right))
    return sum(a == b for a, b in zip(given, right, strict=False)) / longest if longest else 1.0


@torch.no_grad()
def generate_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Iterable[list[dict]], max_new_tokens: int
) -> list[str]:
    """Greedy completions of conversational prompts, without special tokens; the end-of-turn token stops each.

    Args:
        prompts: lists of messages, the last one the user's.
    """
    texts = [tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True) for prompt in prompts]
    was_training = model.training
    model.eval()
    answers = []
    for start in range(0, len(texts), _BATCH_SIZE):
        batch = tokenizer(
            texts[start : start + _BATCH_SIZE],
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_token_type_ids=False,
            return_tensors="pt",
        ).to(model.device)
        output = model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        answers += tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    model.train(was_training)
    return answers


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
