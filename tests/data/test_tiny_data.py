"""The embedded data set: reproducible, small, verifiable, and nothing held out is ever trained on."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

TINY = Path(__file__).parents[2] / "data_configs" / "tiny"
DATA = TINY / "data"
STAGES = ["pretrain", "midtrain", "sft", "dpo", "rlaif"]
CHATS = ["sft", "dpo", "rlaif"]
# Told a second time, on purpose: the answers are checked against this, not against the generator.
KINDS = {
    "animal": {"cat", "dog", "cow", "pig"},
    "color": {"red", "blue", "green", "pink"},
    "food": {"egg", "rice", "soup", "cake"},
    "thing": {"cup", "hat", "box", "bell", "lamp"},
}
PAIRS = ["hot cold", "big small", "fast slow", "wet dry", "old new", "hard soft", "good bad"]
OPPOSITES = {a: b for pair in PAIRS for a, b in (pair.split(), pair.split()[::-1])}
SCENE = re.compile(r"(words|numbers|owners): [\w ]+\.")


def rows(stage: str, split: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / f"{stage}_{split}.jsonl").read_text("utf-8").splitlines()]


def prompt_of(row: dict) -> str:
    prompt = row["messages"] if "messages" in row else row["prompt"]
    return prompt if isinstance(prompt, str) else prompt[0]["content"]


def questions(text: str) -> list[tuple[str, str]]:
    """(scene, question) of every question that a text or a prompt asks; one text asks several about one scene."""
    scene = SCENE.search(text)
    asked = re.findall(r"([a-z][a-z ]*)\?", text[scene.end() :])
    # In a text the answer follows its question and ends with a full stop, which no question contains.
    return [(" ".join(scene.group().split()), question.strip()) for question in asked]


def expected(prompt: str) -> str:
    """The answer, worked out from the wording alone."""
    [(scene, question)] = questions(prompt)
    last = question.split()[-1]
    items = re.findall(r"\w+", scene)[1:]
    if scene.startswith("owners"):
        return items[items.index(last) + 1]
    if "largest" in question:
        return str(max(map(int, items)))
    if "smallest" in question:
        return str(min(map(int, items)))
    if question in ("in order", "sorted"):
        return " ".join(map(str, sorted(map(int, items))))
    if question in ("again", "the same"):
        return " ".join(items)
    if question in ("backwards", "from the end"):
        return " ".join(items[::-1])
    if question in ("opposites", "what they are not"):
        return " ".join(OPPOSITES[item] for item in items)
    if question.startswith(("each", "only")):
        return " ".join(item for item in items if item in KINDS[last])
    if question.startswith(("how many", "count")):
        return str(items.count(last))
    nth = next(word for word in ("first", "second", "third", "last") if word in question)
    return items[{"first": 0, "second": 1, "third": 2, "last": -1}[nth]]


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
        question for stage in CHATS for row in rows(stage, "validation") for question in questions(prompt_of(row))
    }
    assert len(held_out) > 300
    for stage in STAGES:
        for row in rows(stage, "train"):
            asked = questions(row["text"] if "text" in row else prompt_of(row))
            assert asked and not held_out.intersection(asked), row
            assert len(asked) == str(row).count("?")  # the check has seen every question


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("stage", CHATS)
def test_chats_are_valid_and_their_answers_right(stage, split):
    seen = Counter()
    for row in rows(stage, split):
        prompt = prompt_of(row)
        seen[prompt] += 1
        if stage == "sft":
            assert set(row) == {"messages", "skill", "answer"} or (split == "train" and set(row) == {"messages"})
            assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
            answer = row["messages"][1]["content"]
            assert answer == row.get("answer", answer)
        elif stage == "dpo":
            assert set(row) == {"prompt", "chosen", "rejected", "skill"}
            answer, rejected = row["chosen"].split(), row["rejected"].split()
            assert answer != rejected and len(answer) == len(rejected)
            answer = " ".join(answer)
            assert (answer, " ".join(rejected)) == (row["chosen"], row["rejected"])
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
