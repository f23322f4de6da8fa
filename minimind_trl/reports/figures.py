"""A run's logged figures by name, from its start and as they are now."""

import math
from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean, median
from typing import Any

FIRST = 3  # logs at the start, whose means are what is normal
LATEST = 3  # logs at the end, whose medians count: one noisy log convinces nobody


class Figures:
    """The figures of a run so far. Missing ones are NaN, which compares as False.

    Attributes:
        training: logs of training, in order.
        held_out: logs of evaluation, in order; names without `eval_`.
    """

    def __init__(self, history: Iterable[dict[str, Any]] = ()):
        self.training: list[dict[str, float]] = []
        self.held_out: list[dict[str, float]] = []
        self._columns: dict[str, list[float]] = defaultdict(list)  # of training
        for log in history:
            self.add(log)

    def add(self, log: dict[str, Any]) -> None:
        """Take in one more log of the run."""
        numbers = _numbers(log)
        if any(name.startswith("eval_") for name in numbers):
            self.held_out.append({name.removeprefix("eval_"): value for name, value in numbers.items()})
        elif "loss" in numbers:
            self.training.append(numbers)
            for name, value in numbers.items():
                self._columns[name].append(value)

    def column(self, name: str) -> list[float]:
        """A training figure of every log that has it."""
        return self._columns.get(name, [])

    def first(self, name: str) -> float:
        """What was normal: the mean of a training figure over the first logs, once there are more than those."""
        values = self.column(name)
        return fmean(values[:FIRST]) if len(values) > FIRST else math.nan

    def latest(self, name: str, count: int = LATEST) -> float:
        """The median of a training figure over the latest logs."""
        values = self.column(name)[-count:]
        return median(values) if values else math.nan

    def before(self, name: str) -> float:
        """A held-out figure before training; NaN if the only evaluation came later."""
        return self.held_out[0].get(name, math.nan) if len(self.held_out) > 1 else math.nan

    def after(self, name: str) -> float:
        """The latest held-out figure."""
        return self.held_out[-1].get(name, math.nan) if self.held_out else math.nan

    def evaluations(self, name: str) -> list[float]:
        """A held-out figure of every evaluation that has it."""
        return [log[name] for log in self.held_out if name in log]


def _numbers(log: dict) -> dict[str, float]:
    """The finite figures of a log."""
    return {
        name: value
        for name, value in log.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
