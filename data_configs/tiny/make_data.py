"""Generate the embedded tiny data set: a small world that a 1M-parameter model learns in minutes on a CPU.

    python data_configs/tiny/make_data.py [--output_dir DIR]

A scene is a list of nouns, adjectives or numbers, or of who owns what. A skill asks one question about a scene and
knows the answer: whitespace-separated tokens, so that one position-wise score grades every skill. Texts for
pretraining ask much about one scene, so that most of a text follows from its beginning; chats ask one thing.
An answer starts a line, in texts as in chats: a byte-level BPE gives a word another token there than after a space.
A question about a scene belongs to the held-out split or to training by a hash of its content, never of its
phrasing, in all stages. Only the standard library is used, and every run writes the same bytes.
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
    "thing": ["cup", "hat", "box", "bell", "lamp"],
}
KIND_OF = {noun: kind for kind, nouns in KINDS.items() for noun in nouns}
NAMES = ["tom", "ann", "ben", "sue", "max", "eva", "pam"]
PAIRS = ["hot cold", "big small", "fast slow", "wet dry", "old new", "hard soft", "good bad"]
OPPOSITES = {a: b for pair in PAIRS for a, b in (pair.split(), reversed(pair.split()))}
ORDINALS = ["first", "second", "third", "last"]
MAX_NUMBER = 20
NUMBERS = [str(n) for n in range(1, MAX_NUMBER + 1)]

HELD_OUT_SHARE = 5  # one question in so many is held out
ROWS = {  # train and validation rows; per skill for the chats
    "pretrain": (6250, 120),
    "midtrain": (600, 90),
    "sft": (600, 50),
    "dpo": (150, 20),
    "rlaif": (155, 50),
}
HARD_SHARE = {"pretrain": 0.25, "midtrain": 0.75, "sft": 0.25, "dpo": 0.25, "rlaif": 0.25}


@dataclass(frozen=True)
class Question:
    slots: dict[str, str]  # fill the phrasings
    answer: str
    made_up: list[str]  # tokens for wrong answers: of the same sort, and not in the scene


def but(pool: list[str], items: list[str]) -> list[str]:
    return [token for token in pool if token not in items]


def others(items: list[str]) -> list[str]:
    """Tokens of the sort that a scene of one sort consists of, which it does not have."""
    return next(but(pool, items) for pool in (NUMBERS, list(OPPOSITES), list(KIND_OF)) if items[0] in pool)


# --- scenes: hard ones are longer ---
def adjectives(rng, hard):
    return rng.sample(list(OPPOSITES), rng.randint(2, 3) + hard)


def nouns(rng, hard):
    return rng.sample(list(KIND_OF), rng.randint(2, 3) + hard)


def repeats(rng, hard):
    words = rng.sample(list(KIND_OF), 2)
    return words + rng.choices(words, k=rng.randint(1, 2) + hard)


def numbers(rng, hard):
    return rng.sample(NUMBERS, rng.randint(2, 3) + hard)


def owners(rng, hard):
    n = 2 + hard
    return [word for pair in zip(rng.sample(NAMES, n), rng.sample(KINDS["thing"], n), strict=True) for word in pair]


def show(scene: str, items: list[str]) -> str:
    title = "owners" if scene == "owners" else "words" if items[0].isalpha() else "numbers"
    return f"{title}: {' '.join(items)}."


# --- skills: a question about the items, or None where the scene does not allow it ---
def copy(rng, items):
    return Question({}, " ".join(items), others(items))


def pick(rng, items):
    nth = rng.choice(ORDINALS)
    index = -1 if nth == "last" else ORDINALS.index(nth)
    return Question({"nth": nth}, items[index], others(items)) if index < len(items) else None


def reverse(rng, items):
    return Question({}, " ".join(reversed(items)), others(items))


def opposite(rng, items):
    return Question({}, " ".join(OPPOSITES[word] for word in items), list(OPPOSITES))


def keep(rng, items):
    kind = KIND_OF[rng.choice(items)]
    return Question({"kind": kind}, " ".join(word for word in items if KIND_OF[word] == kind), others(items))


def count(rng, items):
    word = rng.choice(items)
    return Question({"word": word}, str(items.count(word)), list("1234"))


def extreme(rng, items):
    size, choose = rng.choice([("largest", max), ("smallest", min)])
    return Question({"size": size}, choose(items, key=int), others(items))


def sort(rng, items):
    return Question({}, " ".join(sorted(items, key=int)), others(items))


def lookup(rng, items):
    i = rng.randrange(0, len(items), 2)
    return Question({"name": items[i]}, items[i + 1], but(KINDS["thing"], items))


SKILLS: dict[str, tuple[Callable, list[str]]] = {
    "copy": (copy, ["again", "the same"]),
    "pick": (pick, ["the {nth} one", "{nth}"]),
    "reverse": (reverse, ["backwards", "from the end"]),
    "opposite": (opposite, ["opposites", "what they are not"]),
    "keep": (keep, ["each {kind}", "only {kind}"]),
    "count": (count, ["how many {word}", "count {word}"]),
    "extreme": (extreme, ["the {size}", "{size}"]),
    "sort": (sort, ["in order", "sorted"]),
    "lookup": (lookup, ["what has {name}", "thing of {name}"]),
}
# What can be asked about each scene; texts use all of it, chats ask a skill about its own scenes.
SCENES: dict[str, tuple[Callable, list[str]]] = {
    "nouns": (nouns, ["copy", "pick", "reverse", "keep"]),
    "adjectives": (adjectives, ["copy", "pick", "reverse", "opposite"]),
    "repeats": (repeats, ["copy", "count"]),
    "numbers": (numbers, ["copy", "extreme", "sort"]),
    "owners": (owners, ["lookup"]),
}


def held_out(skill: str, items: list[str], question: Question) -> bool:
    if skill in ("sort", "extreme"):  # the order of the numbers is no new task
        items = sorted(items)
    content = f"held out? {skill} {items} {sorted(question.slots.items())}"
    return hashlib.sha256(content.encode()).digest()[0] % HELD_OUT_SHARE == 0


def ask(rng: random.Random, skill: str, items: list[str], validation: bool) -> Question | None:
    question = SKILLS[skill][0](rng, items)
    return question if question and held_out(skill, items, question) == validation else None


def phrase(rng: random.Random, skill: str, question: Question) -> str:
    return rng.choice(SKILLS[skill][1]).format(**question.slots)


def fact(rng: random.Random) -> str:
    """The knowledge that the skills need."""
    topic = rng.randrange(3)
    if topic == 0:
        word = rng.choice(list(OPPOSITES))
        return f"{word} is not {OPPOSITES[word]}."
    if topic == 1:
        word = rng.choice(list(KIND_OF))
        return f"{word} is {KIND_OF[word]}."
    number = rng.randrange(MAX_NUMBER - 1)
    return f"{NUMBERS[number]} and then {NUMBERS[number + 1]}."


def text(rng: random.Random, validation: bool, hard_share: float) -> str:
    """A fact, a scene, and what is true of the scene: most of it follows from what stands before."""
    scene = rng.choice(list(SCENES))
    draw, skills = SCENES[scene]
    while True:
        items = draw(rng, rng.random() < hard_share)
        said = {}
        for skill in skills[:1] + rng.choices(skills, k=8):
            if len(said) < 5 and (question := ask(rng, skill, items, validation)):
                said[f"{phrase(rng, skill, question)}?\n{question.answer}."] = None
        if said:
            return " ".join([fact(rng), show(scene, items), *said])


def chats(rng: random.Random, per_skill: int, validation: bool, hard_share: float) -> list[tuple]:
    """Shuffled (skill, prompt, question), no prompt twice."""
    rows = {}
    for skill in SKILLS:
        scenes = [scene for scene, (_, skills) in SCENES.items() if skill in skills]
        goal = len(rows) + per_skill
        while len(rows) < goal:
            scene = rng.choice(scenes)
            items = SCENES[scene][0](rng, rng.random() < hard_share)
            if question := ask(rng, skill, items, validation):
                prompt = f"{show(scene, items)} {phrase(rng, skill, question)}?"
                rows.setdefault(prompt, (skill, prompt, question))
    rows = list(rows.values())
    rng.shuffle(rows)
    return rows


def wrong(rng: random.Random, question: Question) -> str:
    """As many tokens as the right answer, so that length gives nothing away, but some of them made up."""
    right = question.answer.split()
    made_up = [token for token in question.made_up if token not in right]
    changed = rng.sample(range(len(right)), rng.randint(1, len(right)))
    return " ".join(rng.choice(made_up) if i in changed else token for i, token in enumerate(right))


def make_rows(stage: str, validation: bool) -> list[dict]:
    rng = random.Random(f"{stage} {validation}")
    n, hard_share = ROWS[stage][validation], HARD_SHARE[stage]
    if stage in ("pretrain", "midtrain"):
        return [{"text": text(rng, validation, hard_share)} for _ in range(n)]
    rows = []
    for skill, prompt, question in chats(rng, n, validation, hard_share):
        user = [{"role": "user", "content": prompt}]
        right = [{"role": "assistant", "content": question.answer}]
        if stage == "sft" and not validation:  # training needs no more; the bytes go into rows
            rows.append({"messages": user + right})
        elif stage == "sft":
            rows.append({"messages": user + right, "skill": skill, "answer": question.answer})
        elif stage == "dpo":
            answers = {"chosen": question.answer, "rejected": wrong(rng, question)}
            rows.append({"prompt": prompt, **answers, "skill": skill})
        else:
            rows.append({"prompt": prompt, "answer": question.answer, "skill": skill})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "data")
    folder = parser.parse_args().output_dir
    folder.mkdir(parents=True, exist_ok=True)
    for stage in ROWS:
        for split in ("train", "validation"):
            path = folder / f"{stage}_{split}.jsonl"
            rows = make_rows(stage, validation=split == "validation")
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
            part = path.with_suffix(".part")
            part.write_bytes(lines)
            os.replace(part, path)  # a reader never sees half a file
            print(f"{path.name}: {len(rows)} rows, {len(lines)} bytes")


if __name__ == "__main__":
    main()
