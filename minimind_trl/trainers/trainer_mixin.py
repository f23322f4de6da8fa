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
        row_counts: how many rows are left and dropped, for the run's records; None for a trainer that drops none.

    Raises:
        InputError: options that TRL, transformers, accelerate or PEFT refuse.
    """

    rows_dropped: dict[str, int] | None = None
    """Rows of the mixture that the trainer has dropped, by split; None for a trainer that drops none."""
    drop_reason: str
    """Why it drops rows; `{}` stands for `max_length`."""

    def __init__(self, *args, eval_batches: int | None = None, **kwargs):
        if eval_batches is not None:
            if "eval_dataset" not in kwargs:
                raise TypeError("with eval_batches, give eval_dataset by name")
            config = next(given for given in (*args, *kwargs.values()) if isinstance(given, TrainingArguments))
            kwargs["eval_dataset"] = first_batches(kwargs["eval_dataset"], config, eval_batches)
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


def first_batches(rows: Any, args: TrainingArguments, batches: int | None) -> Any:
    """The rows of the first `batches` evaluation batches of every process, of one data set or of each in a dict.

    A stream and None stay as they are; so does everything with `batches=None`.
    """
    if isinstance(rows, dict):
        return {name: first_batches(part, args, batches) for name, part in rows.items()}
    if batches is None or not isinstance(rows, Dataset):
        return rows
    return rows.select(range(min(batches * args.per_device_eval_batch_size * args.world_size, len(rows))))
