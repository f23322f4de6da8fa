"""samples.jsonl: which moments it has, and how it goes on after an interruption."""

import pytest

from minimind_trl.reports.samples import SampleFile, first_of_groups, read_samples, rounded, token_texts
from minimind_trl.tokenization import tiny_tokenizer


def steps_of(file: SampleFile) -> list[int]:
    return [sample["step"] for sample in read_samples(file.path)]


def train(file: SampleFile, first: int, last: int, steps: int = 30) -> None:
    """As a trainer does that evaluates every fourth step, and before training."""
    file.add("loss", 0, [{"tokens": ["a"]}])
    file.begin(first)
    for step in range(first + 4, last + 1, 4):
        if file.is_due("loss", step, steps):
            file.add("loss", step, [{"tokens": ["a"]}])


def test_moments_are_spread_over_the_training(tmp_path):
    file = SampleFile(tmp_path)
    train(file, 0, 32, steps=30)
    assert steps_of(file) == [0, 12, 20, 32]


def test_samples_wait_until_training_begins(tmp_path):
    file = SampleFile(tmp_path)
    file.add("loss", 0, [{"tokens": ["a"]}])
    assert not file.path.exists() and not file.is_due("loss", 0, 0)
    file.begin(0)
    assert steps_of(file) == [0]


@pytest.mark.parametrize("killed_at", [16, 24])
def test_a_resumed_run_goes_on_without_duplicates(tmp_path, killed_at):
    train(SampleFile(tmp_path), 0, killed_at)
    with (tmp_path / "samples.jsonl").open("a") as unfinished:
        unfinished.write('{"kind": "loss", "st')
    file = SampleFile(tmp_path)
    train(file, 16, 32)  # the last checkpoint is that of step 16
    assert steps_of(file) == [0, 12, 20, 32]


def test_a_new_run_in_the_folder_begins_anew(tmp_path):
    train(SampleFile(tmp_path), 0, 16)
    file = SampleFile(tmp_path)
    train(file, 0, 0)
    assert steps_of(file) == [0]


def test_the_texts_of_tokens_give_the_text():
    tokenizer = tiny_tokenizer()
    text = "cat 猫 😀 <|im_end|>"
    ids = tokenizer(text).input_ids
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids) and "".join(texts) == tokenizer.decode(ids)
    assert "猫" in texts and "\ufffd" not in "".join(texts)


def test_groups_whose_rewards_differ_come_first_and_their_different_answers():
    assert first_of_groups(["a", "a", "b", "b", "b"], [1, 1, 0, 0, 1], each=2) == [2, 4, 0, 1]
    assert first_of_groups(list("abcdefghijk"), [0] * 11) == list(range(8))


def test_numbers_that_json_lacks_become_null():
    assert rounded([1.23456, float("nan"), -float("inf")]) == [1.235, None, None]
