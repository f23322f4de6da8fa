"""A run of a recipe, from its options to the results in its folder."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, IterableDataset
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import default_logdir

from ..data import LOCK
from ..errors import InputError, TrainingInterrupted, nearest
from ..reports import FLIGHT_CHECK, RECIPE
from ..reports.samples import SampleFile
from ..trainers.callbacks import EvaluateAtEnd
from ..trainers.live_doctor import Doctor
from ..trainers.safe_checkpoints import saving
from .flight_check import flight_check
from .loading import build_data, open_mixture
from .model_card import complete_card
from .output_folder import lock_output_folder
from .processes import limit_waiting
from .records import run_record
from .results import count_rows, mixture_lock, save_both_forms, write_results
from .row_checks import row_checks
from .run_context import RunContext
from .services import begin_swanlab
from .settings import complete_config, set_checkpoint_to_resume, set_processes


class Splits(NamedTuple):
    """A mixture's rows for a trainer; `validation` is None if evaluation is off."""

    train: Dataset | IterableDataset
    validation: Dataset | None


class Run(RunContext):
    """What a recipe needs before its trainer, and everything it does with the trainer.

    Arguments, attributes and errors are those of `RunContext`.
    """

    def load_data(self, *phases: str) -> Splits:
        """Build the mixture or load it prepared, and complete the config.

        The output folder is locked first, so that a second run in it stops before the work.

        Raises:
            InputError: the mixture cannot be built or is for another phase; the options contradict it; or the output
                folder or the checkpoint to resume from cannot be used.
        """
        self.mixer = open_mixture(self.args.data_config, phases)
        complete_config(self)
        lock_output_folder(self.args, self.config)
        set_checkpoint_to_resume(self.args, self.config)
        self.data = build_data(self.args, self.config, self.tokenizer, self.mixer)
        set_processes(self.config, self.data["train"])
        limit_waiting(None)  # in the trainer's constructor, where TRL tokenizes in one process while the others wait
        return Splits(self.data["train"], self.data.get("validation") if self.args.eval_interval else None)

    def check(self, trainer) -> dict[str, Any]:
        """Refuse what would train on nothing or on the wrong thing; print the plan, and return what was printed."""
        return flight_check(trainer, self)

    def finish(self, trainer) -> dict[str, dict[str, float]]:
        """Check, evaluate, train, evaluate, and save model, tokenizer, figures, lock and model card.

        Returns:
            `{"before": ..., "after": ...}`, held-out figures; empty with `--eval_interval 0` and with `--dry_run`.

        Raises:
            InputError: from `check`.
            TrainingError, TrainingInterrupted: from the trainer; the latter also if a signal comes at the end, once
                all is saved.
        """
        trainer.row_counts = count_rows(trainer, self.data["train"])
        limit_waiting(self.config.ddp_timeout)
        checked = self.check(trainer)
        if self.args.dry_run:
            return {}
        if self.args.report and trainer.is_world_process_zero():
            trainer.record_samples_to(SampleFile(Path(self.config.output_dir)))
        record = run_record(trainer, self) | {"checks": row_checks(self)}
        metrics: dict[str, dict[str, float]] = {}
        trainer.records = {
            LOCK: lambda: mixture_lock(self, record),
            RECIPE: lambda: record,
            FLIGHT_CHECK: lambda: checked,
        }
        trainer.complete_card = lambda: complete_card(trainer, self, record, metrics)
        trainer.add_callback(Doctor(trainer, record))
        begin_swanlab(self.config)
        at_end = EvaluateAtEnd(trainer)
        if self.args.eval_interval:
            at_end.put_first()
            metrics["before"] = _evaluate_first(trainer)
            _check_best_metric(self.config, metrics["before"])
        trainer.train(resume_from_checkpoint=self.config.resume_from_checkpoint)
        if self.args.eval_interval:
            metrics["after"] = at_end.figures
        self._save_results(trainer, metrics)
        return metrics

    def _save_results(self, trainer, metrics: dict[str, dict[str, float]]) -> None:
        with trainer.signals:  # a signal waits until all is saved
            with saving("the model", self.config.output_dir):
                trainer.processing_class = self.tokenizer  # not a twin made for the training
                trainer.save_without_push()  # until the results are there
                if trainer.is_world_process_zero():
                    if self.args.as_twin and self.peft_config is None:
                        save_both_forms(Path(self.config.output_dir), type(self.model), self.tokenizer)
                    write_results(trainer, self, metrics)
            if self.config.push_to_hub:
                trainer.push_to_hub(commit_message="Model save", revision=self.config.hub_revision)
            stopped_by = trainer.signals.agreed(self.config)
        trainer.end()
        if stopped_by:
            trainer.accelerator.print(f"stopped by {stopped_by} after the last step; all is saved")
            raise TrainingInterrupted(128 + trainer.signals.number)


def _evaluate_first(trainer) -> dict[str, float]:
    """Held-out figures before the first step. TensorBoard's files begin here, so they go to the run's folder."""
    boards = [part for part in trainer.callback_handler.callbacks if isinstance(part, TensorBoardCallback)]
    for board in boards:
        # The callback itself sets it when training begins, which is later.
        board.logging_dir = board.logging_dir or os.path.join(trainer.args.output_dir, default_logdir())
    try:
        return trainer.evaluate()
    except BaseException:  # also Ctrl-C: a run that has not begun leaves nothing
        for board in boards:
            shutil.rmtree(board.logging_dir, ignore_errors=True)
            with suppress(OSError):  # a folder that holds something stays
                Path(board.logging_dir).parent.rmdir()
        raise


def _check_best_metric(config, figures: dict[str, float]) -> None:
    """Refuse an unknown metric; transformers would look for it only in training, and end in a traceback."""
    name = config.metric_for_best_model
    if name is None or not figures or f"eval_{name.removeprefix('eval_')}" in figures:
        return
    known = [figure.removeprefix("eval_") for figure in figures if figure.startswith("eval_")]
    hint = nearest(name, known, listed=True)
    raise InputError(f"--metric_for_best_model {name}: evaluation has no such figure{hint}")
