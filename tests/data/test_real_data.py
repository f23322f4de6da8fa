"""The mixer on samples of public data sets: Alpaca, TinyStories, Python code and HH-RLHF."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from minimind_trl.data import DatasetMixer
from minimind_trl.data.mixer import make_mix
from minimind_trl.tokenization import tiny_tokenizer

RATIOS = {"alpaca": 0.5, "tinystories": 0.3, "python_code": 0.2}

# The split as a fresh process sees it: a digest of every row of both sides, in order.
DIGEST = """
import hashlib, sys
from minimind_trl.data import DatasetMixer
from minimind_trl.tokenization import tiny_tokenizer
data = DatasetMixer.from_yaml(sys.argv[1]).build(tiny_tokenizer())
for side in ("train", "validation"):
    rows = repr([(row["source"], row["text"]) for row in data[side]])
    print(side, len(data[side]), hashlib.sha256(rows.encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def real(shared) -> Path:
    folder = shared / "data" / "real"
    if not folder.is_dir():
        pytest.skip("the samples of public data sets (shared/data/real) are not here")
    return folder


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_mixture(path: Path, phase: str, files: list[Path], ratios=None, **extra) -> Path:
    sources = [
        {"name": file.stem, "source": str(file), "mix_ratio": (ratios or {}).get(file.stem, 1 / len(files))}
        for file in files
    ]
    path.write_text(yaml.safe_dump({"metadata": {"phase": phase}, "datasets": sources, **extra}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pretraining(real, tmp_path_factory) -> Path:
    files = [real / f"{name}.jsonl" for name in RATIOS]
    return write_mixture(tmp_path_factory.mktemp("mixture") / "mixture.yaml", "pretrain", files, RATIOS)


@pytest.fixture(scope="module")
def built(pretraining):
    mixer = DatasetMixer.from_yaml(pretraining)
    return mixer.build(tiny_tokenizer()), mixer.report


def test_shares_of_conversations_stories_and_code_are_exact(built):
    data, report = built
    for side in ("train", "validation"):
        counts = Counter(data[side]["source"])
        assert sum(counts.values()) > 30
        for name, ratio in RATIOS.items():
            assert abs(counts[name] - ratio * len(data[side])) < 1
    for source in report.sources:
        assert source.train.share == pytest.approx(RATIOS[source.name], abs=1e-3)
        assert source.rows_in == source.train.rows + source.validation.rows + sum(source.dropped.values())


def test_conversations_are_written_as_text_and_no_row_comes_twice(built):
    data, report = built
    rows = [*data["train"]["text"], *data["validation"]["text"]]
    assert len(set(rows)) == len(rows)
    assert data["train"].column_names == ["text", "source"]
    for row in data["train"]:
        assert row["text"].startswith("<|im_start|>") == (row["source"] == "alpaca")
    assert all(source.train.repeated == 0 and source.train.tokens > 1000 for source in report.sources)


def test_every_process_builds_the_same_split(built, pretraining, real, tmp_path):
    """Whatever its hash seed, and without a cache of another; the last has the sources in another order."""
    files = [real / f"{name}.jsonl" for name in reversed(RATIOS)]
    turned = write_mixture(tmp_path / "mixture.yaml", "pretrain", files, RATIOS)
    running = []
    for number, path in enumerate((pretraining, turned)):
        environment = {"PYTHONHASHSEED": str(number), "HF_DATASETS_CACHE": str(tmp_path / f"cache{number}")}
        command = [sys.executable, "-c", DIGEST, str(path)]
        running.append(subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=300)[0].splitlines() for process in running]
    assert all(process.returncode == 0 for process in running)
    assert len({tuple(lines) for lines in said}) == 1
    sizes = [line.split()[:2] for line in said[0]]
    assert sizes == [[side, str(len(built[0][side]))] for side in ("train", "validation")]


@pytest.mark.parametrize("phase", ["dpo", "reward"])
def test_preferences(real, tmp_path, phase):
    """HH-RLHF's pairs as they are; and its longer conversations, which come without answers, with two added."""
    prompts = dict.fromkeys(row["text"] for row in read(real / "hh_multiturn_prefixes.jsonl"))
    answers = {"chosen": "\n\nAssistant: Let us see.", "rejected": "\n\nAssistant: No."}
    rows = [{side: prompt + answer for side, answer in answers.items()} for prompt in prompts]
    rows += [{"chosen": prompt + answers["chosen"], "rejected": prompt + answers["chosen"]} for prompt in prompts][:5]
    files = [real / "hh_rlhf.jsonl", write_rows(tmp_path / "longer.jsonl", rows)]
    mixer = DatasetMixer.from_yaml(write_mixture(tmp_path / "mixture.yaml", phase, files, size={"rows": 400}))
    data = mixer.build()

    turns = {"hh_rlhf": Counter(), "longer": Counter()}
    for row in [*data["train"], *data["validation"]]:
        assert row["chosen"] != row["rejected"]
        assert [turn["role"] for side in ("chosen", "rejected") for turn in row[side]] == ["assistant"] * 2
        texts = [turn["content"] for column in ("prompt", "chosen", "rejected") for turn in row[column]]
        assert all(text == text.strip() and "\n\nHuman:" not in text for text in texts)
        turns[row["source"]][" ".join(turn["role"] for turn in row["prompt"])] += 1
    assert set(turns["hh_rlhf"]) == {"user"}
    assert turns["longer"]["user assistant user"] > 0.95 * turns["longer"].total()
    assert mixer.report.sources[1].dropped["chosen equals rejected"] == 5
    prompts = [{json.dumps(row["prompt"]) for row in data[side]} for side in ("train", "validation")]
    assert prompts[0] and prompts[1] and not prompts[0] & prompts[1]


def edited(text: str, number: int) -> str:
    """The text as somebody would copy it: a word replaced or left out, a sentence added, in other letters."""
    found = text.split()
    place = random.Random(number).randrange(len(found))
    return [
        " ".join([*found[:place], "something", *found[place + 1 :]]),
        " ".join([*found[:place], *found[place + 1 :]]),
        f"{text} And that was the end of it.",
        text.upper().replace(".", "!"),
    ][number % 4]


def test_near_duplicates_are_found_and_little_else(real, tmp_path):
    stories = [row["text"] for row in read(real / "tinystories.jsonl")]
    copies = [edited(text, number) for number, text in enumerate(stories[:200])]
    file = write_rows(tmp_path / "stories.jsonl", [{"text": text} for text in stories + copies])
    mixer = DatasetMixer.from_yaml(write_mixture(tmp_path / "mixture.yaml", "pretrain", [file], dedup="near"))
    mix = make_mix(mixer.reader())
    [source] = mixer.mixture.datasets
    dropped = [
        mix.outcome(source, 0, number) == "dropped: near-duplicate"
        for number in range(1, len(stories) + len(copies) + 1)
    ]
    # Of a story and its copy either may go.
    pairs = zip(dropped[:200], dropped[len(stories) :], strict=True)
    assert sum(one or other for one, other in pairs) >= 0.95 * len(copies)
    assert sum(dropped) <= len(copies) + 0.01 * len(stories)
    assert sum(dropped[200 : len(stories)]) < 0.01 * len(stories)


def test_near_duplicates_are_the_same_in_any_order(real, tmp_path):
    stories = read(real / "tinystories.jsonl")[:100]
    rows = stories + [{"text": edited(row["text"], number)} for number, row in enumerate(stories[:50])]
    found = []
    for number, order in enumerate((rows, rows[::-1])):
        file = write_rows(tmp_path / f"stories{number}.jsonl", order)
        path = write_mixture(tmp_path / "mixture.yaml", "pretrain", [file], dedup="near", validation={"ratio": 0.2})
        data = DatasetMixer.from_yaml(path).build()
        found.append([list(data[side]["text"]) for side in ("train", "validation")])
    assert found[0] == found[1]


def test_what_an_evaluation_set_asks_is_dropped_and_counted(real, tmp_path):
    """The questions are Alpaca's, planted in stories, in other letters and with other punctuation."""
    asked = [row["instruction"] for row in read(real / "alpaca.jsonl")]
    asked = [question for question in dict.fromkeys(asked) if 8 <= len(question.split()) < 40][:30]
    exam = write_rows(tmp_path / "exam.jsonl", [{"question": question} for question in asked])
    stories = [row["text"] for row in read(real / "tinystories.jsonl")]
    questions = (question.upper().replace(",", " -") for question in asked)
    planted = [f"{text[:300]} {question} {text[300:]}" for text, question in zip(stories[:30], questions, strict=True)]
    file = write_rows(tmp_path / "stories.jsonl", [{"text": text} for text in planted + stories[30:]])
    against = [{"name": "exam", "source": str(exam), "field": "question"}]
    path = write_mixture(tmp_path / "mixture.yaml", "pretrain", [file], decontaminate={"against": against})
    mixer = DatasetMixer.from_yaml(path)
    data = mixer.build()
    left = {*data["train"]["text"], *data["validation"]["text"]}
    assert not left & set(planted) and left == set(stories[30:])
    assert mixer.report.sources[0].dropped == {"shares a run of words with an evaluation set": 30}
