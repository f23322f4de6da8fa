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
from .sample_recording import SampleRecording


class TrainerMixin(SampleRecording, GracefulShutdown, StreamTraining, FiniteLoss, EarlyEvaluation):
    """Stands before one of TRL's trainers: `class MiniMindSFTTrainer(TrainerMixin, SFTTrainer)`.

    Composed of mixins with one job each:

    - `SampleRecording`: what the model says at a few moments of the training goes to `samples.jsonl`;
    - `GracefulShutdown`: errors and signals end training after its last completed step is saved;
    - `CheckpointSaving`: checkpoints are either complete or not there;
    - `Throughput`: tokens per second, MFU, time left in every training log;
    - `StreamTraining`: streams are trained on pass after pass, and resumed at their row;
    - `FiniteLoss`: training stops at a loss or gradient that is not finite;
    - `EarlyEvaluation`: evaluation before training leaves the model as training needs it.

    Args:
        eval_batches: how many batches of each process to evaluate on; further rows of `eval_dataset` are dropped. None:
            all rows. `args` must be given, and `eval_dataset` by name.

    Attributes:
        progress: the callback that shows a bar, or prints a line for every log.
        signals: the callback that listens for signals; see `GracefulShutdown`.
        rows_dropped: rows of the mixture that the trainer dropped, by split; None for a trainer that drops none.
        drop_reason: why it drops rows; `{}` stands for `max_length`.
        row_counts: set by a run for its records: rows left and dropped; None for a trainer that drops none.
        records, complete_card: set by a run; see `CheckpointSaving`.

    Raises:
        InputError: TRL, transformers, accelerate or PEFT refuse the options.
    """

    rows_dropped: dict[str, int] | None = None
    drop_reason: str
    row_counts: dict[str, Any] | None = None

    def __init__(self, *args, eval_batches: int | None = None, **kwargs):
        if eval_batches is not None:
            config = next((given for given in (*args, *kwargs.values()) if isinstance(given, TrainingArguments)), None)
            if config is None or "eval_dataset" not in kwargs:
                raise TypeError("with eval_batches, give args, and eval_dataset by name")
            kwargs["eval_dataset"] = first_batches(kwargs["eval_dataset"], config, eval_batches)
        try:
            super().__init__(*args, **kwargs)
        except InputError:
            raise
        except (ImportError, NotImplementedError, ValueError) as error:
            raise InputError(one_line(error)) from error
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
