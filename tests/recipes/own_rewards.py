"""Rewards for tests of the recipes: one that anything gets some of, and many that are none."""


def vowels(prompts, completions, **_):
    """The share of vowels among the characters."""
    texts = [completion[-1]["content"].strip().lower() for completion in completions]
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in texts]


vowels.low, vowels.high = 0.0, 1.0


def nothing(prompts, completions, **_):
    return [None] * len(prompts)


def not_a_number(prompts, completions, **_):
    return [float("nan")] * len(prompts)


def too_few(prompts, completions, **_):
    return [1.0]


def fails(prompts, completions, **_):
    return [{}["missing"]]


def constant(prompts, completions, **_):
    return [1.0] * len(prompts)


def unbounded(prompts, completions, **_):
    return [float(len(str(completion))) for completion in completions]
