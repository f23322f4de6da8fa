"""The embedded data set: reproducible, small, verifiable, and nothing held out is ever trained on."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from minimind_trl.tokenization import tiny_tokenizer

TINY = Path(__file__).parents[2] / "data_configs" / "tiny"
DATA = TINY / "data"
STAGES = ["pretrain", "midtrain", "sft", "dpo", "rlaif"]
CHATS = ["sft", "dpo", "rlaif"]
# Told a second time, on purpose: the answers are checked against this, not against the generator.
KINDS = {
    "animal": {"cat", "dog", "cow", "pig"},
    "color": {"red", "blue", "green", "pink"},
    "food": {"egg", "rice", "soup", "cake"},
}
PAIRS = ["hot cold", "big small", "fast slow", "wet dry", "old new"]
OPPOSITES = {a: b for pair in PAIRS for a, b in (pair.split(), pair.split()[::-1])}
KIND_OF = {word: kind for kind, words in KINDS.items() for word in words}
SCENE = re.compile(r"(?:words|numbers): ([\w ]+)\.")


def rows(stage: str, split: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / f"{stage}_{split}.jsonl").read_text("utf-8").splitlines()]


def prompt_of(row: dict) -> str:
    prompt = row["messages"] if "messages" in row else row["prompt"]
    return prompt if isinstance(prompt, str) else prompt[0]["content"]


def questions(text: str) -> list[tuple[tuple[str, ...], str]]:
    """(words of the scene, question) of every question that a text or a prompt asks about its scenes."""
    scenes = [*SCENE.finditer(text)]
    ends = [*(scene.start() for scene in scenes[1:]), len(text)]
    return [
        (tuple(scene[1].split()), question.strip())
        for scene, end in zip(scenes, ends, strict=True)
        # In a text the answer follows its question and ends with a full stop, which no question contains.
        for question in re.findall(r"([a-z][a-z ]*)\?", text[scene.end() : end])
    ]


def instance(words: tuple[str, ...], question: str) -> tuple[tuple[str, ...], str]:
    """What makes a task: the order of the words is part of it, unless the question ignores it."""
    ignores_order = question.startswith(("in order", "the largest", "the smallest"))
    return (tuple(sorted(words)) if ignores_order else words, question)


def expected(prompt: str) -> str:
    """The answer, worked out from the wording alone."""
    [(words, question)] = questions(prompt)
    question, is_reversed = question.removesuffix("backwards").strip(), question.endswith("backwards")
    if question in ("", "again"):
        answer = list(words)
    elif question == "opposites":
        answer = [OPPOSITES[word] for word in words]
    elif question == "in order":
        answer = sorted(words, key=int)
    elif question.startswith("each"):
        answer = [word for word in words if word in KINDS[question.split()[-1]]]
    elif question.startswith("the "):
        which = question.split()[1]
        ordered = sorted(words, key=int) if which in ("smallest", "largest") else words
        places = {"first": 0, "second": 1, "third": 2, "last": -1, "smallest": 0, "largest": -1}
        answer = [ordered[places[which]]]
    return " ".join(answer[::-1] if is_reversed else answer)


def test_regenerating_gives_the_same_bytes(tmp_path):
    command = [sys.executable, str(TINY / "make_data.py"), "--output_dir", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    names = sorted(f"{stage}_{split}.jsonl" for stage in STAGES for split in ("train", "validation"))
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert sorted(path.name for path in DATA.iterdir()) == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), name


def test_at_most_two_megabytes():
    assert sum(path.stat().st_size for path in DATA.iterdir()) <= 2_000_000


def test_nothing_held_out_is_trained_on():
    held_out = {
        instance(*asked) for stage in CHATS for row in rows(stage, "validation") for asked in questions(prompt_of(row))
    }
    assert len(held_out) > 450
    for stage in STAGES:
        for row in rows(stage, "train"):
            asked = [instance(*asked) for asked in questions(row["text"] if "text" in row else prompt_of(row))]
            assert asked and not held_out.intersection(asked), row
            assert len(asked) == str(row).count("?")  # the check has seen every question


def test_every_stage_is_measured_on_the_same_held_out_prompts_short_and_long():
    prompts = [prompt_of(row) for row in rows("sft", "validation")]
    assert prompts == [prompt_of(row) for row in rows("rlaif", "validation")]
    lengths = Counter(len(words) for prompt in prompts for words, _ in questions(prompt))
    assert set(lengths) == {2, 3, 4, 5} and min(lengths.values()) >= 80
    assert {len(words) for row in rows("sft", "train") for words, _ in questions(prompt_of(row))} == {2, 3}


def test_every_word_of_an_answer_is_one_token_wherever_it_stands():
    words = {word for row in rows("rlaif", "train") for word in row["answer"].split()}
    assert words == {*KIND_OF, *OPPOSITES, *map(str, range(1, 13))}
    tokenizer = tiny_tokenizer()
    for word in words:
        assert len(tokenizer(word).input_ids) == len(tokenizer(f" {word}").input_ids) == 1, word


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("stage", CHATS)
def test_chats_are_valid_and_their_answers_right(stage, split):
    seen = Counter()
    for row in rows(stage, split):
        prompt = prompt_of(row)
        seen[prompt] += 1
        if stage == "sft":
            assert set(row) == {"messages", "skill", "answer"}
            assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
            answer = row["answer"]
            assert answer == row["messages"][1]["content"]
        elif stage == "dpo":
            assert set(row) == {"prompt", "chosen", "rejected", "skill"}
            answer, rejected = row["chosen"], row["rejected"]
            assert rejected and rejected != answer
        else:
            assert set(row) == {"prompt", "answer", "skill"}
            answer = row["answer"]
        assert answer == expected(prompt), row
    assert max(seen.values()) == 1


@pytest.mark.parametrize("stage", ["sft", "rlaif"])
def test_every_skill_is_held_out_often_enough(stage):
    counts = Counter(row["skill"] for row in rows(stage, "validation"))
    assert set(counts) == {row["skill"] for row in rows("rlaif", "train")}
    assert len(counts) >= 8 and min(counts.values()) >= 40


@pytest.mark.parametrize("stage", ["pretrain", "midtrain"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_texts_are_texts(stage, split):
    for row in rows(stage, split):
        assert set(row) == {"text"} and row["text"].strip() == row["text"] != ""
