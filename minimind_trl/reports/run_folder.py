"""What a run left in its folder, read back for `minimind-trl report` and `minimind-trl doctor`."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from ..data import LOCK
from ..errors import InputError
from .samples import SAMPLES, Sample, read_samples

FLIGHT_CHECK = "flight_check.json"  # what the flight check printed
HISTORY = "history.json"  # every log of the training, beginning with the evaluation before it
RECIPE, METRICS = "recipe.json", "metrics.json"


@dataclass(frozen=True)
class RunFolder:
    """The files of a run, finished or not.

    Attributes:
        folder: the run's `--output_dir`.
        record: `recipe.json`, how the run was started.
        history: the trainer's logs in order, each with its `step`; those of an unfinished run come from its last
            checkpoint.
        metrics: `metrics.json`, held-out figures `before` and `after`; empty for an unfinished run.
        lock: the mixture's lock; empty if there is none.
        flight_check: what it printed, `plan` and `warnings`; empty for runs of earlier versions.
        samples: what the model said at a few moments, see `SampleFile`; empty with `--report false`.
    """

    folder: Path
    record: dict[str, Any]
    history: list[dict[str, Any]]
    metrics: dict[str, Any] = field(default_factory=dict)
    lock: dict[str, Any] = field(default_factory=dict)
    flight_check: dict[str, Any] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    @classmethod
    def read(cls, folder: str | Path) -> "RunFolder":
        """Read a run's folder.

        Raises:
            InputError: the folder holds no run of a recipe, or one of its files cannot be read.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; name the --output_dir of a run")
        checkpoint = Path(get_last_checkpoint(folder) or folder)
        home = folder if (folder / RECIPE).is_file() else checkpoint
        record = _read_json(home / RECIPE)
        if not isinstance(record, dict) or not record.keys() >= {"trainer", "options"}:
            raise InputError(f"{folder}: no {RECIPE} in it, so no recipe ran there; name the --output_dir of a run")
        history = _read_json(folder / HISTORY) or _read_json(checkpoint / "trainer_state.json").get("log_history", [])
        others = [_read_json(path) for path in (folder / METRICS, home / LOCK, home / FLIGHT_CHECK)]
        return cls(folder, record, history, *others, read_samples(folder / SAMPLES))

    @property
    def method(self) -> str:
        """The stage: `pretrain`, `midtrain`, `sft`, `distill`, `dpo`, `reward`, `grpo`, `ppo` or `spo`."""
        trainer = self.record["trainer"].removeprefix("MiniMind").removesuffix("Trainer").lower()
        if trainer == "gkd":
            return "distill"
        phase = self.lock.get("phase")
        return phase if trainer == "sft" and phase in ("pretrain", "midtrain") else trainer

    @property
    def last_step(self) -> int:
        return next((entry["step"] for entry in reversed(self.history) if "step" in entry), 0)

    @property
    def options(self) -> dict[str, Any]:
        """The training arguments that matter to the result."""
        return self.record["options"]

    @property
    def checks(self) -> dict[str, Any]:
        """What `run/row_checks.py` recorded of the rows; empty for runs of earlier versions."""
        return self.record.get("checks") or {}


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
