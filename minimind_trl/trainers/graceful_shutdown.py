"""Errors and signals that end training after its last completed step is saved."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache

from ..errors import InputError, SavingError, TrainingError, TrainingInterrupted, describe
from ..internals import replaced
from .batch_rows import RowNamingCollator, describe_rows, numbered_list
from .callbacks import StopOnSignal
from .checkpoint_saving import CheckpointSaving
from .finite_loss import NonFiniteError
from .safe_checkpoints import checkpoint_problem, what_is_safe

_OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


class GracefulShutdown(CheckpointSaving):
    """Saves the last completed step where an error or a signal ends training.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP end `train` with `TrainingInterrupted` (exit code 130, 143 or 129) after the
    current step and a checkpoint.

    An error after the first step ends `train` with `TrainingError`, after the last completed step is saved as if it had
    been saved then: a resumed run ends with the weights of a run without the error. Several processes fail and save
    together where rows cannot be read, a collator or a reward fails, or a loss or gradient is not finite. A process
    that fails alone (out of memory) ends at once without a checkpoint, since the others cannot take part.

    Attributes:
        signals: the callback that listens for signals while `train` runs.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.signals = StopOnSignal()
        self.add_callback(self.signals)
        self._in_step = False
        self._batch: Any = None  # the one that is trained on
        self._completed: tuple[int, dict[str, Any]] | None = None  # the last completed step, and its snapshot
        self._lost_step = -1  # the completed step whose weights the optimizer, or the best checkpoint, has overwritten
        self._fails_everywhere = self.args.world_size == 1  # whether all processes stop at the same place

    def train(self, *args, **kwargs):
        """As `Trainer.train`.

        Raises:
            TrainingError: an error after the first step; the last completed one is saved if that is possible. An error
                before that is raised as it is.
            TrainingInterrupted: a signal came; its step is saved.
        """
        self._completed, self._fails_everywhere = None, self.args.world_size == 1
        with self.signals, self._saving_last_step():
            result = super().train(*args, **kwargs)
            if name := self.signals.agreed(self.args):
                self._leave(name)
            return result

    def fail_together(self, failure: BaseException | None) -> None:
        """Raise what failed in this or another process, so that none waits for it; all processes must call it.

        Raises:
            TrainingError: another process failed; else the failure of this one.
        """
        if self.args.world_size == 1:
            anywhere = failure is not None
        else:
            anywhere = self.accelerator.gather(torch.tensor([failure is not None], device=self.args.device).int()).any()
        if not anywhere:
            return
        self._fails_everywhere = True
        raise failure or TrainingError("another process failed, and reports why")

    # Where training is

    def get_dataloader(self, *args, **kwargs):
        with replaced(self, data_collator=RowNamingCollator(self.data_collator, self.processing_class)):
            return super().get_dataloader(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        self._in_step, batches, failure = True, [], None
        try:
            batches = list(islice(epoch_iterator, num_batches))
        except (Exception, SystemExit) as error:
            failure = error
        self.fail_together(failure)  # before the processes count their tokens together
        return super().get_batch_samples(iter(batches), num_batches, device)

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        self._batch = inputs
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        trains = self._in_step and torch.is_grad_enabled()
        if self.is_deepspeed_enabled and trains and self.accelerator.sync_gradients:
            self._lost_step = self.state.global_step  # DeepSpeed's optimizer steps within `training_step`
        return result

    def get_grad_norm(self, model, grad_norm=None):
        norm = super().get_grad_norm(model, grad_norm)
        self._lost_step = self.state.global_step  # the optimizer steps next
        return norm

    def maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        self._in_step, self._batch = False, None
        super().maybe_log_save_evaluate(*args, **kwargs)
        if self.steps_done:  # else an epoch without a step has ended
            self._completed = self.state.global_step, self.snapshot()

    def load_best_model(self) -> None:
        super().load_best_model()
        self._lost_step = self.state.global_step

    # The end

    @contextmanager
    def _saving_last_step(self) -> Iterator[None]:
        try:
            yield
        except (TrainingInterrupted, SavingError):
            raise
        except NonFiniteError as error:
            raise TrainingError(self._shut_down(error)) from None
        except BaseException as error:  # of any kind: sys.exit() and Ctrl-C in a function of the user's, too
            if not self.steps_done:
                raise
            failure = TrainingError(self._shut_down(error))
            if self.signals.number and isinstance(error, OSError):  # the terminal went away while a line was printed
                raise TrainingInterrupted(128 + self.signals.number) from error
            if not isinstance(error, (InputError, TrainingError, SystemExit, *_OUT_OF_MEMORY)):
                failure.unexpected = error
            raise failure from error

    def _shut_down(self, error: BaseException) -> str:
        """Save the last completed step; returns where training failed and why, what is saved, and the batch's rows."""
        process = f" in process {self.args.process_index}" if self.args.world_size > 1 else ""
        where = f"step {self.state.global_step + 1}" if self._in_step else f"after step {self.state.global_step}"
        not_finite, bad_input = isinstance(error, NonFiniteError), isinstance(error, InputError)
        why = error if bad_input or isinstance(error, TrainingError) else describe(error)
        self._fails_everywhere |= not_finite or bad_input  # which every process raises
        batch = error.batch if not_finite else self._batch
        rows = [] if bad_input else describe_rows(batch, self.processing_class)  # bad input names its row itself
        if isinstance(error, _OUT_OF_MEMORY):  # free what the error's frames hold, and the gradients
            traceback.clear_frames(error.__traceback__)
            self.model.zero_grad()
            clear_device_cache(garbage_collection=True)
        listing = f". The batch's {len(rows)} rows begin:\n{numbered_list(rows)}" if rows else ""
        return f"{where}{process}: {why}{', ' if not_finite else '; '}{self._save_last_step()}{listing}"

    def _save_last_step(self) -> str:
        """Save the last completed step, unless it is; returns what is safe then."""
        folder, safe = self.checkpoint_folder(), what_is_safe(self.args.output_dir)
        if not self.steps_done or checkpoint_problem(folder) is None:
            return safe
        if self._lost_step == self.state.global_step:
            return f"the optimizer was at work, and nothing was saved; {safe}"
        if not self._fails_everywhere:
            return f"the other processes cannot save with this one; {safe}"
        # Without a snapshot, the step's own callbacks or its evaluation failed, and nothing of the next step has begun.
        if self._completed is not None and self._completed[0] == self.state.global_step:
            self.restore_snapshot(self._completed[1])
        try:
            self.write_checkpoint(self.model)
        except SavingError as error:
            return str(error)
        except Exception as error:  # the first error must still be reported
            return f"its state could not be saved: {describe(error)}; {what_is_safe(self.args.output_dir)}"
        return f"saved {folder}, --resume auto goes on from it"

    def _leave(self, signal_name: str) -> None:
        """Save the current step if it is not, and raise `TrainingInterrupted`."""
        folder = self.checkpoint_folder()
        self.accelerator.wait_for_everyone()
        if not folder.is_dir():  # the signal came after the last step
            self.save_checkpoint(self.model)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        self.accelerator.print(
            f"stopped by {signal_name} after step {self.state.global_step} of {self.state.max_steps}; saved {folder}"
        )
        raise TrainingInterrupted(128 + self.signals.number)
