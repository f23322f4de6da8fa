"""The doctor's findings while a run trains."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..reports import Finding, RunFolder, examine
from ..reports.figures import Figures

_AT_ONCE = ("reward hacking",)  # which is beyond chance already, and needs no second log


class Doctor(TrainerCallback):
    """Prints each finding of `minimind_trl.reports.examine` once, after two training logs in a row show it.

    A resumed run reads what is normal, and what was printed, from the logs before it.

    Args:
        trainer: whose logs to examine.
        record: content of the run's `recipe.json`. Without it, as in a script of your own, the doctor knows the
            trainer and its options, but not the rows.

    Attributes:
        said: `{name of a finding: the finding}`.
    """

    def __init__(self, trainer, record: dict[str, Any] | None = None):
        own = {"trainer": type(trainer).__name__, "options": trainer.args.to_dict()}
        if hasattr(trainer, "declared_range"):
            own["reward_range"] = trainer.declared_range()
        self._record = own | (record or {})
        self._folder = Path(trainer.args.output_dir)
        self._before: list[dict[str, float]] = []
        self._reset()

    def _reset(self) -> None:
        self.said: dict[str, Finding] = {}
        self._run = RunFolder(self._folder, self._record, [])
        self._figures = Figures()
        self._symptoms: set[str] = set()

    def on_train_begin(self, args, state, control, **kwargs):
        self._reset()
        for logs in [] if state.log_history else self._before:
            self._add(logs)
        for logs in state.log_history:
            self._examine(logs)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if not self._run.history:  # before training; later ones are logs as well
            self._before = [{"step": 0, **metrics}]

    def on_log(self, args, state, control, logs=None, **kwargs):
        for finding in self._examine({"step": state.global_step, **(logs or {})}):
            if state.is_world_process_zero:
                print(f"doctor, step {state.global_step}: {finding.name}: {finding.sentence}")

    def _add(self, logs: dict[str, float]) -> None:
        self._run.history.append(logs)
        self._figures.add(logs)

    def _examine(self, logs: dict[str, float]) -> list[Finding]:
        """The new findings."""
        self._add(logs)
        is_evaluation = any(name.startswith("eval_") for name in logs)
        if "loss" not in logs and not is_evaluation:
            return []
        found = {finding.name: finding for finding in examine(self._run, self._figures)}
        sure = {*_AT_ONCE} if is_evaluation else self._symptoms | {*_AT_ONCE}
        new = {name: found[name] for name in found if name in sure and name not in self.said}
        if not is_evaluation:
            self._symptoms = set(found)
        self.said |= new
        return list(new.values())
