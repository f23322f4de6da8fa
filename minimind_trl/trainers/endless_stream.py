"""Training on a stream: each process on its share, pass after pass, and resumed at its row."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from torch.utils.data import DataLoader

from ..errors import InputError
from ..files import write_json
from ..internals import is_node_share
from .step_snapshot import StepSnapshot

STREAM_STATE = "stream-{}.json"


class EndlessStream(torch.utils.data.IterableDataset):
    """A stream's rows pass after pass, each in another order, and its state at any row.

    Without an end: processes with shares of different length would end their passes at different steps, and wait for
    each other forever.

    Args:
        rows: the stream.
        batch_size: of one process, where every process reads the whole stream and keeps its part of every batch.
        process: the index of this process.
        processes: how many there are; 1 where `rows` is already a share.
    """

    def __init__(self, rows: IterableDataset, batch_size: int, process: int = 0, processes: int = 1):
        super().__init__()
        self.rows, self.batch_size, self.process, self.processes = rows, batch_size, process, processes
        self.passes = self.rows_read = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        empty_passes = 0
        # A resumed pass may have no rows left. A second empty pass means a worker without files.
        while empty_passes < 2:
            self.rows.set_epoch(self.passes)
            empty_passes += 1
            for row in self.rows:
                empty_passes = 0
                batch = self.rows_read // self.batch_size
                self.rows_read += 1
                if batch % self.processes == self.process:
                    yield row
            self.passes += 1

    def state_dict(self) -> dict[str, Any]:
        """Where the rows read so far end; values that JSON can hold."""
        return {"pass": self.passes, "read": self.rows_read, "rows": self.rows.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.passes, self.rows_read = state["pass"], state["read"]
        self.rows.load_state_dict(state["rows"])


class StreamTraining(StepSnapshot):
    """Trains on a stream pass after pass; a resumed run continues at its row.

    Each process takes its part of every batch, or the share that `split_dataset_by_node` gives it. Loader workers read
    ahead, so that with them the position is unknown, and a resumed run reads the rows before it again.
    """

    _endless_stream: EndlessStream | None = None
    _position: dict[str, Any] | None = None  # where the last completed step ends, if the stream was read further

    def get_dataloader(self, dataset, description, batch_size, sampler_fn=None, is_training=False, dataloader_key=None):
        if is_training and isinstance(dataset, IterableDataset):
            return self._stream_loader(dataset, description, batch_size)
        return super().get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)

    def _stream_loader(self, dataset: IterableDataset, description: str, batch_size: int) -> DataLoader:
        # Not prepared by accelerate, which would read a batch ahead of the state, and share out a share again.
        share = () if is_node_share(dataset) else (self.args.process_index, self.args.world_size)
        self._endless_stream, self._position = EndlessStream(dataset, batch_size, *share), None
        return DataLoader(
            self._endless_stream,
            batch_size=batch_size,
            collate_fn=self.collator_without_unused_columns(self.data_collator, description),
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            in_order=self.args.dataloader_in_order,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),  # or it would draw from the training's random numbers
        )

    def run_epoch(self, **kwargs) -> None:
        checkpoint = kwargs["resume_from_checkpoint"]
        if self._endless_stream and checkpoint and self._state_file(checkpoint).exists():
            state = self._state_file(checkpoint).read_text(encoding="utf-8")
            self._endless_stream.load_state_dict(json.loads(state))
            kwargs["steps_trained_in_current_epoch"] = 0  # or transformers would read these steps' rows again
            kwargs["epoch"] = kwargs["epochs_trained"] = self.state.global_step / self.state.max_steps
        before = self.state.global_step
        super().run_epoch(**kwargs)
        if self._endless_stream and self.state.global_step == before:  # transformers would take it for the end
            raise InputError(
                "the training stream gives not one batch: all its rows are dropped, or a batch takes more prompts than "
                "it has; look at it with `minimind-trl data`, or make the batch smaller"
            )

    def save_rng_state(self, output_dir: str) -> None:
        super().save_rng_state(output_dir)
        if state := self._position or self._stream_state():
            write_json(self._state_file(output_dir), state)

    def snapshot(self) -> dict[str, Any]:
        return super().snapshot() | {"stream": self._stream_state()}

    def restore_snapshot(self, snapshot: dict[str, Any]) -> None:
        super().restore_snapshot(snapshot)
        self._position = snapshot["stream"]

    def _stream_state(self) -> dict[str, Any] | None:
        known = self._endless_stream and not self.args.dataloader_num_workers
        return self._endless_stream.state_dict() if known else None

    def _state_file(self, checkpoint: str) -> Path:
        return Path(checkpoint) / STREAM_STATE.format(self.args.process_index)
