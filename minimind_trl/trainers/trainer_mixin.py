"""What every trainer of this package shares."""

from typing import Any

from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback, TrainingArguments

from ..errors import InputError, one_line
from .callbacks import RecipeProgress
from .early_evaluation import EarlyEvaluation
from .endless_stream import StreamTraining
from .finite_loss import FiniteLoss
from .graceful_shutdown import GracefulShutdown


class TrainerMixin(GracefulShutdown, StreamTraining, FiniteLoss, EarlyEvaluation):
    """Stands before one of TRL's trainers: `class MiniMindSFTTrainer(TrainerMixin, SFTTrainer)`.

    Composed of mixins with one job each:

    - `GracefulShutdown`: errors and signals end training after its last completed step is saved;
    - `CheckpointSaving`: checkpoints are either complete or not there;
    - `Throughput`: tokens per second, MFU, time left in every training log;
    - `StreamTraining`: streams are trained on pass after pass, and resumed at their row;
    - `FiniteLoss`: training stops at a loss or gradient that is not finite;
    - `EarlyEvaluation`: evaluation before training leaves the model as training needs it.

    Args:
        eval_batches: how many batches of each process to evaluate on: the rows of `eval_dataset` beyond are dropped.
            None: all rows. `eval_dataset` must be given by name then.

    Attributes:
        progress: the callback that shows a bar or prints a line for every log.
        signals, records, complete_card: see `GracefulShutdown` and `CheckpointSaving`.
        row_counts: for the run's records, how many rows the trainer uses and has dropped; None where it drops none.

    Raises:
        InputError: options that TRL, transformers, accelerate or PEFT refuse.
    """

    def __init__(self, *args, eval_batches: int | None = None, **kwargs):
        if eval_batches is not None:
            if "eval_dataset" not in kwargs:
                raise TypeError("with eval_batches, give eval_dataset by name")
            config = next(given for given in (*args, *kwargs.values()) if isinstance(given, TrainingArguments))
            count = eval_batches * config.per_device_eval_batch_size * config.world_size
            kwargs["eval_dataset"] = first_rows(kwargs["eval_dataset"], count)
        try:
            super().__init__(*args, **kwargs)
        except InputError:
            raise
        except (ImportError, NotImplementedError, ValueError) as error:
            raise InputError(one_line(error)) from error
        self.row_counts: dict[str, Any] | None = None
        self.progress = RecipeProgress()
        if self.pop_callback(ProgressCallback) or self.pop_callback(PrinterCallback):
            self.add_callback(self.progress)

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        finally:
            self.progress.close()


def first_rows(rows: Any, count: int) -> Any:
    """The first `count` rows of a data set, or of each in a dict; a stream and None stay as they are."""
    if isinstance(rows, dict):
        return {name: first_rows(part, count) for name, part in rows.items()}
    return rows.select(range(min(count, len(rows)))) if isinstance(rows, Dataset) else rows
