"""KTO rows (an answer with a label, good or bad) joined into pairs of answers to the same prompt."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

from .turns import Message, Row

WORSE, ALONE = "_worse", "_alone"
"""Keys that `Pairs.joined` adds to a row: the worse answer of its pair, or why it is in no pair of its own."""


class Labelled(NamedTuple):
    """What pairing needs of a row."""

    prompt: Hashable
    answer: list[Message]
    is_good: bool


class Pairs:
    """Pairs the first good answer to a prompt with the first bad one, the second with the second, and so on.

    Args:
        parts: all rows; no pair is made between two parts, such as training and held-out rows.
        read: reads a row; None of a row that cannot be used.
    """

    def __init__(self, parts: Iterable[Iterable[Row]], read: Callable[[Row], Labelled | None]):
        self._added: dict[int, Row] = {}
        place = 0
        for rows in parts:
            answers: dict[bool, dict[Hashable, list]] = {True: defaultdict(list), False: defaultdict(list)}
            for row in rows:
                if labelled := read(row):
                    answer = None if labelled.is_good else labelled.answer  # only the place of a good one is needed
                    answers[labelled.is_good][labelled.prompt].append((place, answer))
                place += 1
            for prompt in answers[True].keys() | answers[False].keys():
                self._pair(answers[True][prompt], answers[False][prompt])

    def joined(self, place: int, row: Row) -> Row:
        """The row at a place (from 0, over all parts) with the keys `WORSE` or `ALONE`."""
        return row | self._added.get(place, {})

    def _pair(self, good: list, bad: list) -> None:
        for (better, _), (worse, answer) in zip(good, bad, strict=False):
            self._added[better] = {WORSE: answer}
            self._added[worse] = {ALONE: "the worse answer of a pair"}
        for place, _ in good[len(bad) :]:
            self._added[place] = {ALONE: "no bad answer (label false) is left for its prompt"}
        for place, _ in bad[len(good) :]:
            self._added[place] = {ALONE: "no good answer (label true) is left for its prompt"}
