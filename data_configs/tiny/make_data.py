"""Generate the embedded tiny data set: a small world that a 1M-parameter model learns in minutes on a CPU.

    python data_configs/tiny/make_data.py [--output_dir DIR]

A scene is a list of nouns, adjectives or numbers. A skill asks one question about a scene and knows the answer:
whitespace-separated words, so that one position-wise score grades every skill. Each stage has what the next one lacks:
texts for pretraining ask about short scenes; texts for midtraining also about long ones, and two skills at once; a few
chats with their answers show the form; many prompts come with a checkable answer, for reinforcement learning.

A text asks one to three things about a scene, and a fact may stand between a question and its answer. Answers are thus
not always as far from their scene, and a model learns to look for it, which it can also do in a chat. An answer starts
a line, in texts as in chats: a byte-level BPE gives a word another token there than after a space. A question about a
scene belongs to the held-out split or to training by a hash of its content, in all stages. Only the standard library is
used, and every run writes the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Short common words, so that a small BPE gives each one token; few of them, so that each is seen often.
KINDS = {
    "animal": ["cat", "dog", "cow", "pig"],
    "color": ["red", "blue", "green", "pink"],
    "food": ["egg", "rice", "soup", "cake"],
}
KIND_OF = {noun: kind for kind, nouns in KINDS.items() for noun in nouns}
PAIRS = ["hot cold", "big small", "fast slow", "wet dry", "old new"]
OPPOSITES = {a: b for pair in PAIRS for a, b in (pair.split(), reversed(pair.split()))}
ORDINALS = ["first", "second", "third", "last"]
NUMBERS = [str(n) for n in range(1, 13)]
WORDS = {"nouns": list(KIND_OF), "adjectives": list(OPPOSITES), "numbers": NUMBERS}

HELD_OUT_SHARE = 5  # one question in so many is held out
SHORT, ALL = (2, 3), (2, 3, 4, 5)  # words of a scene


@dataclass(frozen=True)
class Skill:
    question: str
    answer: Callable[..., list[str]]  # of the scene's words and the question's slots
    slots: Callable[[random.Random, list[str]], dict[str, str]] = lambda rng, words: {}


@dataclass(frozen=True)
class Task:
    skill: str
    scene: str
    words: list[str]
    question: str
    answer: list[str]

    @property
    def prompt(self) -> str:
        return f"{show(self.scene, self.words)} {self.question}?"


def an_ordinal(rng: random.Random, words: list[str]) -> dict[str, str]:
    return {"nth": rng.choice([*ORDINALS[: min(len(words), 3)], "last"])}


def a_size(rng: random.Random, words: list[str]) -> dict[str, str]:
    return {"size": rng.choice(["largest", "smallest"])}


def a_kind(rng: random.Random, words: list[str]) -> dict[str, str]:
    return {"kind": KIND_OF[rng.choice(words)]}


def pick(words: list[str], nth: str) -> list[str]:
    return [words[-1 if nth == "last" else ORDINALS.index(nth)]]


def keep(words: list[str], kind: str) -> list[str]:
    return [word for word in words if KIND_OF[word] == kind]


def opposite(words: list[str]) -> list[str]:
    return [OPPOSITES[word] for word in words]


def sort(words: list[str]) -> list[str]:
    return sorted(words, key=int)


def extreme(words: list[str], size: str) -> list[str]:
    return [sort(words)[-1 if size == "largest" else 0]]


SKILLS = {
    "copy": Skill("again", list),
    "pick": Skill("the {nth} one", pick, an_ordinal),
    "reverse": Skill("backwards", lambda words: words[::-1]),
    "keep": Skill("each {kind}", keep, a_kind),
    "opposite": Skill("opposites", opposite),
    "extreme": Skill("the {size}", extreme, a_size),
    "sort": Skill("in order", sort),
    # two skills at once: not in the texts for pretraining
    "keep_reversed": Skill("each {kind} backwards", lambda words, kind: keep(words, kind)[::-1], a_kind),
    "opposite_reversed": Skill("opposites backwards", lambda words: opposite(words)[::-1]),
    "sort_reversed": Skill("in order backwards", lambda words: sort(words)[::-1]),
}
SIMPLE = [skill for skill in SKILLS if not skill.endswith("_reversed")]
SCENES = {
    "nouns": ["copy", "pick", "reverse", "keep", "keep_reversed"],
    "adjectives": ["copy", "pick", "reverse", "opposite", "opposite_reversed"],
    "numbers": ["copy", "extreme", "sort", "sort_reversed"],
}


@dataclass(frozen=True)
class Stage:
    train: int  # texts; of chats those of each skill
    validation: int
    lengths: tuple[int, ...] = ALL
    skills: tuple[str, ...] = tuple(SKILLS)


TEXTS = {"pretrain": Stage(3800, 120, SHORT, tuple(SIMPLE)), "midtrain": Stage(2100, 120)}
# The held-out prompts of sft and rlaif are the same: every stage is measured on them.
CHATS = {"sft": Stage(40, 48, SHORT), "dpo": Stage(120, 20), "rlaif": Stage(300, 48)}


def show(scene: str, words: list[str]) -> str:
    return f"{'numbers' if scene == 'numbers' else 'words'}: {' '.join(words)}."


def is_held_out(skill: str, words: list[str], slots: dict[str, str]) -> bool:
    if skill in ("sort", "sort_reversed", "extreme"):  # the order of the numbers is no new task
        words = sorted(words)
    content = f"held out? {skill} {words} {sorted(slots.items())}"
    return hashlib.sha256(content.encode()).digest()[0] % HELD_OUT_SHARE == 0


def ask(rng: random.Random, name: str, scene: str, words: list[str], held_out: bool) -> Task | None:
    skill = SKILLS[name]
    slots = skill.slots(rng, words)
    if is_held_out(name, words, slots) != held_out:
        return None
    return Task(name, scene, words, skill.question.format(**slots), skill.answer(words, **slots))


def fact(rng: random.Random) -> str:
    """The knowledge that the skills need."""
    topic = rng.randrange(3)
    if topic == 0:
        word = rng.choice(list(OPPOSITES))
        return f"{word} is not {OPPOSITES[word]}."
    if topic == 1:
        word = rng.choice(list(KIND_OF))
        return f"{word} is {KIND_OF[word]}."
    number = rng.randrange(len(NUMBERS) - 1)
    return f"{NUMBERS[number]} and then {NUMBERS[number + 1]}."


def text(rng: random.Random, stage: Stage, held_out: bool) -> str:
    """A fact, and scenes with what is true of them, until four or more questions are answered."""
    skills = {scene: [name for name in names if name in stage.skills] for scene, names in SCENES.items()}
    parts, asked = [fact(rng)], 0
    while asked < 4:
        scene = rng.choices(list(skills), [len(names) for names in skills.values()])[0]
        words = rng.sample(WORDS[scene], rng.choice(stage.lengths))
        names = rng.sample(skills[scene], rng.randint(1, 3))
        tasks = [task for name in names if (task := ask(rng, name, scene, words, held_out))]
        if tasks:
            parts += [show(scene, words), *(asked_and_answered(rng, task) for task in tasks)]
            asked += len(tasks)
    return " ".join(parts)


def asked_and_answered(rng: random.Random, task: Task) -> str:
    between = f" {fact(rng)}" if rng.random() < 0.5 else ""
    return f"{task.question}?{between}\n{' '.join(task.answer)}."


def chats(rng: random.Random, stage: Stage, held_out: bool) -> list[Task]:
    """Shuffled tasks, equally many of each skill, none twice."""
    tasks: dict[str, Task] = {}
    for name in stage.skills:
        scenes = [scene for scene, names in SCENES.items() if name in names]
        goal = len(tasks) + (stage.validation if held_out else stage.train)
        while len(tasks) < goal:
            scene = rng.choice(scenes)
            words = rng.sample(WORDS[scene], rng.choice(stage.lengths))
            if task := ask(rng, name, scene, words, held_out):
                tasks.setdefault(task.prompt, task)
    shuffled = list(tasks.values())
    rng.shuffle(shuffled)
    return shuffled


def wrong(rng: random.Random, task: Task) -> str:
    """The answer with one of the mistakes that a half-trained model makes."""
    right = task.answer
    strangers = [word for word in WORDS[task.scene] if word not in right]
    place = rng.randrange(len(right))
    mistakes = [
        [*right[:place], rng.choice(strangers), *right[place + 1 :]],
        [*right[:place], *rng.choices(task.words, k=len(right) - place)],
        [*right[:place], rng.choice(task.words), *right[place:]],
        [*right[:place], *right[place + 1 :]],
        [*right[:place], *reversed(right[place : place + 2]), *right[place + 2 :]],
    ]
    return " ".join(rng.choice([answer for answer in mistakes if answer and answer != right]))


def make_rows(name: str, held_out: bool) -> list[dict]:
    if name in TEXTS:
        rng = random.Random(f"{name} {held_out}")
        stage = TEXTS[name]
        return [{"text": text(rng, stage, held_out)} for _ in range(stage.validation if held_out else stage.train)]
    if held_out and name == "sft":  # as in rlaif, with longer scenes than its training
        tasks = chats(random.Random("rlaif True"), CHATS["rlaif"], held_out)
    else:
        tasks = chats(random.Random(f"{name} {held_out}"), CHATS[name], held_out)
    rng = random.Random(f"wrong answers {held_out}")
    rows = []
    for task in tasks:
        answer = " ".join(task.answer)
        if name == "sft":
            user, assistant = {"role": "user", "content": task.prompt}, {"role": "assistant", "content": answer}
            rows.append({"messages": [user, assistant], "skill": task.skill, "answer": answer})
        elif name == "dpo":
            answers = {"chosen": answer, "rejected": wrong(rng, task)}
            rows.append({"prompt": task.prompt, **answers, "skill": task.skill})
        else:
            rows.append({"prompt": task.prompt, "answer": answer, "skill": task.skill})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "data")
    folder = parser.parse_args().output_dir
    folder.mkdir(parents=True, exist_ok=True)
    for stage in [*TEXTS, *CHATS]:
        for split in ("train", "validation"):
            path = folder / f"{stage}_{split}.jsonl"
            rows = make_rows(stage, held_out=split == "validation")
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
            part = path.with_suffix(".part")
            part.write_bytes(lines)
            os.replace(part, path)  # a reader never sees half a file
            print(f"{path.name}: {len(rows)} rows, {len(lines)} bytes")


if __name__ == "__main__":
    main()
