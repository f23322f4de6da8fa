"""What counts as the same text."""

import random

import pytest

from minimind_trl.data.duplicates import NGrams, near_duplicates, words

SENTENCE = "the quick brown fox jumps over the lazy dog and then runs home"  # 13 words


def test_words():
    assert words("It's 3 o'clock, Élodie!") == ["it", "s", "3", "o", "clock", "élodie"]
    assert words("我爱北京 and 東京タワー") == ["我", "爱", "北", "京", "and", "東", "京", "タ", "ワ", "ー"]


@pytest.mark.parametrize(
    ("asked", "text", "overlaps"),
    [
        (SENTENCE, f"He said: {SENTENCE.upper()}!", True),
        (f"{SENTENCE} again", f"So {SENTENCE} quickly", True),  # 13 words of 14
        (SENTENCE, SENTENCE.replace("fox", "dog"), False),
        (SENTENCE, "", False),
        # texts of fewer words than the run: from 8 on anywhere, fewer only alone
        ("What is the capital of the old kingdom?", "Q: what is the capital of the old kingdom A: Rome", True),
        ("What is the capital of the old kingdom?", "what is the capital of the new kingdom", False),
        ("What is it?", "Tell me. What is it? A fox.", False),
        ("What is it?", "what is it", True),
        ("", "...", False),
        ("水的沸点在标准大气压下是多少摄氏度", "问：水的沸点在标准大气压下是多少摄氏度？答：一百。", True),
    ],
)
def test_runs_of_words_that_two_texts_share(asked, text, overlaps):
    assert NGrams([asked, "another question of the same evaluation set"], 13).overlap(text) == overlaps


def test_shorter_runs_on_demand():
    assert NGrams(["the quick brown fox"], 3).overlap("a quick brown fox jumps")
    assert not NGrams(["the quick brown fox"], 3).overlap("a quick and brown fox jumps")


def article(seed: int, length: int = 200) -> list[str]:
    rng = random.Random(seed)
    return [f"w{rng.randrange(5000)}" for _ in range(length)]


def test_the_first_of_near_duplicates_stays():
    texts = [article(0), article(1), [*article(0), "end"], article(2), ["start", *article(1)], [*article(0), "stop"]]
    assert near_duplicates(map(" ".join, texts), 0.8).tolist() == [False, False, True, False, True, True]


def test_the_threshold_decides():
    """With 10 of 200 words replaced, 5-grams are about 62% alike: 146 shared of 246."""
    texts = []
    for seed in range(50):
        replaced = article(seed)
        for place in range(5, 200, 20):
            replaced[place] = f"new{place}"
        texts += [" ".join(article(seed)), " ".join(replaced)]
    assert near_duplicates(texts, 0.8).sum() == 0
    assert near_duplicates(texts, 0.5).sum() > 45


def test_texts_just_over_the_threshold_are_found():
    """3 of 200 words replaced leave 181 of 211 shingles, 86%: the index must propose those too."""
    texts = []
    for seed in range(100):
        replaced = article(seed)
        for place in (50, 100, 150):
            replaced[place] = "new"
        texts += [" ".join(article(seed)), " ".join(replaced)]
    marked = near_duplicates(texts, 0.8)
    assert marked[1::2].sum() > 85 and marked[::2].sum() == 0


def test_short_texts_and_texts_without_words():
    assert near_duplicates(["one two", "One, two!", "one three", "?!", "...", "?!", ""], 0.8).tolist() == [
        *[False, True, False],
        *[False, False, True, False],
    ]


def test_no_texts():
    assert near_duplicates([], 0.8).tolist() == []
