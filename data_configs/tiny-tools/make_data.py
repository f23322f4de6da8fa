"""Generate the tool tasks of the embedded world: sums too large for a 1M-parameter model's head, and prices.

    python data_configs/tiny-tools/make_data.py [--output_dir DIR]

A question has numbers of three digits. `calculate` needs one call of the calculator, `look up` one of the price list,
`both` one of each, the second with the result of the first. Nothing in a question tells its answer: a model must copy
numbers into a call and the result out of it. Each stage has what the next one lacks: chats of pretraining repeat what
the user says (`copies`) or make the calls that the user asks for (`calls`); a few chats of SFT answer questions, most
of them at once, as from a larger model that can do it in its head, one in six with calls; reinforcement learning has
only questions, their right calls and answers.

An item of the price list, or the two numbers of a sum, belong to the held-out split or to training by a hash, in all
stages. `words` trains the tokenizer: it has no digit, so that every digit stays a token of its own. Every run writes
the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from price_list import price

from minimind_trl.files import atomic_path
from minimind_trl.tokenization import tiny_tokenizer
from minimind_trl.tools import TOOLS, tool_schemas

OPERATORS = {"plus": "+", "minus": "-", "times": "*"}
SKILLS = ("calculate", "look up", "both")
HELD_OUT_SHARE = 5  # one question in so many is held out
PRETRAIN = {"copies": {"train": 3200, "validation": 60}, "calls": {"train": 8400, "validation": 120}}
CALLS = {"calculate": 16, "look up": 12, "both": 12}  # chats of sft that show calls
DIRECT = 66  # chats of sft per skill that answer at once
PROMPTS = {"train": 400, "validation": 50}  # of rlaif, per skill


@dataclass(frozen=True)
class Step:
    """A call, and its result."""

    tool: str
    argument: str
    value: str | int
    result: int

    @property
    def call(self) -> dict:
        return {"name": self.tool, "arguments": {self.argument: self.value}}


@dataclass(frozen=True)
class Task:
    skill: str
    question: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> str:
        return str(self.steps[-1].result)


def number(rng: random.Random, digits: int = 3) -> int:
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def calculation(word: str, a: int, b: int) -> Step:
    result = {"plus": a + b, "minus": a - b, "times": a * b}[word]
    return Step("calculator", "expression", f"{a} {OPERATORS[word]} {b}", result)


def look_up(item: int) -> Step:
    return Step("price", "item", item, price(item))


def is_held_out(*content: int) -> bool:
    return hashlib.sha256(f"held out? {content}".encode()).digest()[0] % HELD_OUT_SHARE == 0


def task(rng: random.Random, skill: str, held_out: bool, digits: Sequence[int] = (3,)) -> Task:
    while True:
        a, b = (number(rng, rng.choice(digits)) for _ in range(2))
        word = rng.choice(list(OPERATORS))
        if skill == "calculate" and (word != "minus" or a > b) and is_held_out(a, b) == held_out:
            return Task(skill, f"{a} {word} {b}?", (calculation(word, a, b),))
        first = look_up(a)
        if skill == "look up" and is_held_out(a) == held_out:
            return Task(skill, f"price of {a}?", (first,))
        if skill == "both" and (word != "minus" or first.result > b) and is_held_out(a) == held_out:
            return Task(skill, f"price of {a} {word} {b}?", (first, calculation(word, first.result, b)))


def tasks(rng: random.Random, counts: dict[str, int], held_out: bool) -> list[Task]:
    """Shuffled tasks, none twice."""
    found: dict[str, Task] = {}
    for skill, count in counts.items():
        goal = len(found) + count
        while len(found) < goal:
            new = task(rng, skill, held_out)
            found.setdefault(new.question, new)
    shuffled = list(found.values())
    rng.shuffle(shuffled)
    return shuffled


# Chats


def pretraining_task(rng: random.Random, held_out: bool) -> Task:
    """With a result of any length: a length that is seldom seen is not copied."""
    return task(rng, rng.choice(SKILLS), held_out, digits=rng.choice([(3,), (1, 2, 3)]))


def copied(rng: random.Random, held_out: bool) -> dict:
    """The assistant says what the user says."""
    one = pretraining_task(rng, held_out)
    numbers = " ".join(str(number(rng, rng.randint(1, 6))) for _ in range(rng.randint(1, 3)))
    again = rng.choice([one.question, one.answer, numbers])
    return {"messages": [{"role": "user", "content": f"say {again}"}, {"role": "assistant", "content": again}]}


def logged(rng: random.Random, held_out: bool) -> dict:
    """The assistant makes the calls that the user asks for."""
    request, *turns = messages(pretraining_task(rng, held_out), with_calls=True)
    return {"messages": [request | {"content": f"call {request['content']}"}, *turns]}


def messages(one: Task, with_calls: bool) -> list[dict]:
    turns = [{"role": "user", "content": one.question}]
    for step in one.steps if with_calls else ():
        call = {"type": "function", "function": step.call}
        turns += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": str(step.result)},
        ]
    return [*turns, {"role": "assistant", "content": one.answer}]


def chat(one: Task, with_calls: bool) -> dict:
    return {"messages": messages(one, with_calls), "skill": one.skill, "answer": one.answer}


def prompt_row(one: Task) -> dict:
    calls = json.dumps([step.call for step in one.steps])
    return {"prompt": one.question, "expected_calls": calls, "answer": one.answer, "skill": one.skill}


def prompts(held_out: bool) -> list[Task]:
    count = PROMPTS["validation" if held_out else "train"]
    return tasks(random.Random(f"prompts {held_out}"), dict.fromkeys(SKILLS, count), held_out)


def rows(name: str, split: str) -> list[dict]:
    held_out = split == "validation"
    rng = random.Random(f"{name} {split}")
    if name in ("copies", "calls"):
        make = copied if name == "copies" else logged
        return [make(rng, held_out) for _ in range(PRETRAIN[name][split])]
    if name == "rlaif":
        return [prompt_row(one) for one in prompts(held_out)]
    if held_out:
        return [chat(one, True) for one in prompts(held_out)]
    found = [chat(one, True) for one in tasks(rng, CALLS, held_out)]
    found += [chat(one, False) for one in tasks(rng, dict.fromkeys(SKILLS, DIRECT), held_out)]
    rng.shuffle(found)
    return found


def words(tools: list[dict]) -> list[dict]:
    """What a chat is made of, without its numbers."""
    shown = [messages(task(random.Random(skill), skill, False), True) for skill in SKILLS]
    texts = [tiny_tokenizer().apply_chat_template(turns, tools=tools, tokenize=False) for turns in shown]
    texts.append(" ".join(["say call", *OPERATORS, *OPERATORS.values()]))
    return [{"text": "".join(letter for letter in text if not letter.isdigit())} for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "data")
    folder = parser.parse_args().output_dir
    folder.mkdir(parents=True, exist_ok=True)
    tools = tool_schemas([TOOLS["calculator"], price])
    files = {"words": words(tools)}
    for name in ("copies", "calls", "sft", "rlaif"):
        files |= {f"{name}_{split}": rows(name, split) for split in ("train", "validation")}
    for name, content in files.items():
        path = folder / f"{name}.jsonl"
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content).encode()
        with atomic_path(path) as temporary:
            temporary.write_bytes(lines)
        print(f"{path.name}: {len(content)} rows, {len(lines)} bytes")


if __name__ == "__main__":
    main()
