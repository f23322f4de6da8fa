"""How far a long step is: a bar on a terminal, else a line for every tenth; nothing of what takes a few seconds."""

import io
import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_PATIENCE = 5.0  # seconds
_TENTHS = 10


def progress(what: str, total: int | None = None, unit: str = "rows", items: Iterable[Any] | None = None) -> tqdm:
    """A tqdm bar for `with` and `.update(count)`, or around `items`; with items a second and the time left.

    Args:
        what: what is done, as in "tokenizing".
        total: how many there are; None if unknown, then a line comes about every half minute.
    """
    kind = tqdm if sys.stderr.isatty() else ProgressLines
    return kind(items, desc=what, total=total, unit=f" {unit}", delay=_PATIENCE, leave=False, disable=_is_other())


def _is_other() -> bool:
    """Whether this is a process of a run after the first of its machine; that one shows the progress."""
    return int(os.environ.get("LOCAL_RANK", "0")) > 0


class ProgressLines(tqdm):
    """A line on stderr for every tenth, where a bar would write over itself thousands of times into a log."""

    monitor_interval = 0  # no thread, since processes are forked meanwhile

    def __init__(self, *args, **kwargs):
        self._shown = 0
        kwargs["disable"] = kwargs.get("disable") or _is_other()
        kwargs.setdefault("delay", _PATIENCE)
        super().__init__(*args, **{"mininterval": 1.0, "file": io.StringIO(), **kwargs})  # tqdm's own output

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        elapsed = self.format_dict["elapsed"]
        reached = self.n * _TENTHS // self.total if self.total else int(elapsed // 30)
        if reached > self._shown and elapsed >= self.delay:
            self._shown = reached
            print(self._line(elapsed), file=sys.stderr, flush=True)
        return True

    def _line(self, elapsed: float) -> str:
        rate = self.n / elapsed
        done = f"{self.n:,}{self.unit}"
        if self.total:
            left = self.format_interval((self.total - self.n) / rate)
            done = f"{self.n / self.total:.0%}, {self.n:,} of {self.total:,}{self.unit}, {left} left"
        return f"{(self.desc or 'rows').removesuffix(': ')}: {done}, {rate:,.0f}{self.unit}/s"
