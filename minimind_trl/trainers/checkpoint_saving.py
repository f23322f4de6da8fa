"""Checkpoints that are either complete or not there."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import InputError, TrainingError
from ..files import atomic_path, write_json
from .safe_checkpoints import contents_problem, processes_of, rotate, saving, write_checksums
from .throughput import Throughput

_STAGING = ".saving-"
_LEFTOVERS = (f"{_STAGING}*", f".{PREFIX_CHECKPOINT_DIR}-*")  # of a run that was killed while it saved


class CheckpointSaving(Throughput):
    """Checkpoints appear under their name when they are complete, and older ones are deleted only then.

    transformers writes a checkpoint in place. Here it writes into a hidden folder beside; every file is read back and
    gets a checksum before the folder gets its name.

    Attributes:
        records: by file name, functions that return the JSON content of further files for every checkpoint.
        complete_card: called after TRL has drafted the model card, to correct and complete it; None leaves the draft.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.records: dict[str, Callable[[], Any]] = {}
        self.complete_card: Callable[[], None] | None = None
        self._staging: Path | None = None  # the folder that transformers takes for the run's, while it saves

    def train(self, *args, **kwargs):
        if self.is_local_process_zero():
            for pattern in _LEFTOVERS:
                for leftover in Path(self.args.output_dir).glob(pattern):
                    shutil.rmtree(leftover, ignore_errors=True)
        return super().train(*args, **kwargs)

    def run_epoch(self, **kwargs) -> None:
        if self.state.global_step < self.state.max_steps:
            super().run_epoch(**kwargs)
        else:  # resumed after the last step: transformers would take one more
            self.control.should_training_stop = True

    def load_rng_state(self, checkpoint: str | None) -> None:
        saved_by = processes_of(Path(checkpoint)) if checkpoint else 0
        if saved_by not in (0, self.args.world_size):  # transformers would continue with other random numbers
            raise InputError(
                f"{checkpoint} was saved by {saved_by} processes, this run has {self.args.world_size}: resume with "
                f"{saved_by}, or start a new run from its weights"
            )
        super().load_rng_state(checkpoint)

    def checkpoint_folder(self, trial: Any = None) -> Path:
        """Where the checkpoint of the current step belongs."""
        return Path(self.get_run_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    def save_checkpoint(self, model: Any, trial: Any = None) -> None:
        folder = self.checkpoint_folder(trial)
        with self.untimed():
            self.write_checkpoint(model, trial)
            if self.args.push_to_hub:
                self.push_from_checkpoint(str(folder))
            if self.args.should_save:
                rotate(folder, self.args.save_total_limit, self.state.best_model_checkpoint)
            self.accelerator.wait_for_everyone()

    def write_checkpoint(self, model: Any, trial: Any = None) -> None:
        """Save the current step, and neither push it nor delete others.

        Raises:
            SavingError: the disk is full or broken.
            TrainingError: a file that was written cannot be read back.
        """
        folder = self.checkpoint_folder(trial)
        self.gather_token_counts()
        self._staging = folder.with_name(f"{_STAGING}{folder.name}")
        try:
            with saving(folder.name, folder.parent):
                super().save_checkpoint(model, trial)  # also rotates, among the one checkpoint in the staging folder
                self.accelerator.wait_for_everyone()
                self._publish(self._staging / folder.name, folder)
        finally:
            staging, self._staging = self._staging, None
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()  # a process that ended before it is there would end the others

    def _publish(self, staged: Path, final: Path) -> None:
        if self.state.best_global_step == self.state.global_step and self.state.best_model_checkpoint is not None:
            self.state.best_model_checkpoint = str(final)
        if self.args.should_save:
            self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
            for file, content in self.records.items():
                write_json(staged / file, content())
            if problem := contents_problem(staged):
                raise TrainingError(problem)
            write_checksums(staged)
            with atomic_path(final) as temporary:
                staged.rename(temporary)

    def get_run_dir(self, trial: Any = None) -> str:
        return super().get_run_dir(trial) if self._staging is None else str(self._staging)

    def push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._staging is None:
            if self.args.hub_always_push:
                self.wait_for_push()
            super().push_from_checkpoint(checkpoint_folder)

    def wait_for_push(self) -> None:
        """Wait until a push that goes on in the background has read its files, which may change then."""
        if (push := getattr(self, "push_in_progress", None)) is not None:
            push.wait_until_done()

    def create_model_card(self, *args, **kwargs) -> None:
        super().create_model_card(*args, **kwargs)
        if self.complete_card is not None and self.is_world_process_zero():
            self.complete_card()
