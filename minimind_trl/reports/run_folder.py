"""What a run left in its folder, read back for `minimind-trl report` and `minimind-trl doctor`."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from ..data import LOCK
from ..errors import InputError

HISTORY = "history.json"  # every log of the training, beginning with the evaluation before it
_RECIPE, _METRICS = "recipe.json", "metrics.json"


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
    """

    folder: Path
    record: dict[str, Any]
    history: list[dict[str, Any]]
    metrics: dict[str, Any] = field(default_factory=dict)
    lock: dict[str, Any] = field(default_factory=dict)

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
        home = folder if (folder / _RECIPE).is_file() else checkpoint
        record = _read_json(home / _RECIPE)
        if not record:
            raise InputError(f"{folder}: no {_RECIPE} in it, so no recipe ran there; name the --output_dir of a run")
        history = _read_json(folder / HISTORY) or _read_json(checkpoint / "trainer_state.json").get("log_history", [])
        return cls(folder, record, history, _read_json(folder / _METRICS), _read_json(home / LOCK))

    @property
    def method(self) -> str:
        """The stage: `pretrain`, `midtrain`, `sft`, `distill`, `dpo`, `reward`, `grpo`, `ppo` or `spo`."""
        trainer = self.record["trainer"].removeprefix("MiniMind").removesuffix("Trainer").lower()
        if trainer == "gkd":
            return "distill"
        phase = self.lock.get("phase")
        return phase if trainer == "sft" and phase in ("pretrain", "midtrain") else trainer

    @property
    def options(self) -> dict[str, Any]:
        """The training arguments that matter to the result."""
        return self.record["options"]


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
