"""Training on a stream: every process its share, without an end, and resumed without reading what was before."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset

STREAM_STATE = "stream-{}.json"


class EndlessStream(torch.utils.data.IterableDataset):
    """A stream's rows pass after pass, each in another order, and its state at any row.

    Without an end, because processes whose shares differ in length would end their passes at different steps, and wait
    for each other forever.

    Args:
        rows: the stream.
        batch_size: of one process, if the stream is read whole by all of them; each then keeps its slices of it.
        process: which of them this is.
        processes: how many there are; 1 where `rows` is a share already.
    """

    def __init__(self, rows: IterableDataset, batch_size: int, process: int = 0, processes: int = 1):
        super().__init__()
        self._rows, self._batch_size, self._process, self._processes = rows, batch_size, process, processes
        self._pass = self._read = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        empty = 0
        # The first pass may be what is left of one. None at all has a worker that got no file.
        while empty < 2:
            self._rows.set_epoch(self._pass)
            empty += 1
            for row in self._rows:
                empty = 0
                batch = self._read // self._batch_size
                self._read += 1
                if batch % self._processes == self._process:
                    yield row
            self._pass += 1

    def state_dict(self) -> dict[str, Any]:
        """Where the rows that were given so far end; JSON can hold it."""
        return {"pass": self._pass, "read": self._read, "rows": self._rows.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pass, self._read = state["pass"], state["read"]
        self._rows.load_state_dict(state["rows"])


def stream_state(checkpoint: str | Path, process: int) -> Path:
    """The file of a checkpoint that holds a process's `EndlessStream.state_dict`."""
    return Path(checkpoint) / STREAM_STATE.format(process)
