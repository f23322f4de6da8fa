"""`recipe.json`: how a run was started. It is in every checkpoint, and compared on a resume."""

import json
import math
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
import trl

from ..reports import RECIPE
from .learning_rates import usual_rate_of
from .run_context import RunContext
from .secrets import take_out_secrets

# Beginnings of the names of settings that change neither data nor weights.
_NO_MATTER = (
    *("output_dir", "resume", "logging_", "log_", "report_to", "run_name", "project", "trackio", "disable_tqdm"),
    *("eval_", "do_", "save_", "per_device_eval", "prediction_loss", "include_", "load_best", "metric_", "greater_"),
    *("push_to_hub", "hub_", "dataloader_", "dataset_num_proc", "skip_memory", "torch_empty", "ddp_", "enable_jit"),
    *("gradient_checkpointing", "activation_", "precompute_ref_batch", "parallelism", "accelerator_config"),
    "reward_errors",  # may be changed to resume after an error in a reward
)
_VOLATILE = ("transformers_version", "_name_or_path", "dtype", "architectures", "auto_map", "use_cache")
# Trainers under the names that earlier versions wrote.
_RENAMED = {
    **{f"Recipe{method}Trainer": f"MiniMind{method}Trainer" for method in ("SFT", "DPO", "Reward", "GKD")},
    "RolloutTrainer": "MiniMindGRPOTrainer",
}
_COMPARED = ("trainer", "start", "options", "processes", "model", "lora", "data")


def run_record(trainer, run: RunContext) -> dict[str, Any]:
    """The content of `recipe.json`, as it is read back from the file."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapter = getattr(model, "peft_config", {}).get("default")
    record = {
        "trainer": type(trainer).__name__,
        "command": command_line(),
        "start": {name: getattr(run.args, name) for name in ("preset", "from_weight", "tokenizer", "chat_template")},
        "options": _without(trainer.args.to_dict(), _NO_MATTER),
        "processes": trainer.args.world_size,
        "model": _without(model.config.to_dict(), _VOLATILE),
        "lora": adapter and adapter.to_dict(),
        "data": {name: value for name, value in run.mixer.lock()["made_from"].items() if name not in _CODE},
        "usual_learning_rate": usual_rate_of(run)[0],
        "reward_range": _finite(trainer.declared_range()) if hasattr(trainer, "declared_range") else None,
        "rows": trainer.row_counts,  # left and dropped by the trainer; None for online trainers
        "versions": {"trl": trl.__version__, "transformers": transformers.__version__},
    }
    return json.loads(json.dumps(record, default=_plain))


# Entries of a mixture's lock to leave out: versions do not make another run, and the length is an option.
_CODE = ("code", "minimind-trl", "datasets", "transformers", "max_length")


def differences(folder: Path, now: dict[str, Any]) -> list[str]:
    """How a run differs from the one that wrote a checkpoint; empty for a checkpoint without a record."""
    try:
        then = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        return [f"{folder / RECIPE} cannot be read ({error})"]
    then["trainer"] = _RENAMED.get(then.get("trainer"), then.get("trainer"))
    return [line for name in _COMPARED for line in _differing(name, then.get(name), now[name])]


def command_line() -> str:
    """The command line of this process as a user would type it, without secrets."""
    words = take_out_secrets(list(sys.argv))
    launcher = ["accelerate", "launch"] if "ACCELERATE_MIXED_PRECISION" in os.environ else ["python"]
    return shlex.join([*launcher, *words])


def _differing(name: str, then: Any, now: Any) -> Iterator[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in {**then, **now}:
            yield from _differing(key, then.get(key), now.get(key))
    elif then != now:
        yield f"{name} was {_short(then)} and is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _without(values: dict[str, Any], beginnings: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not name.startswith(beginnings)}


def _finite(ends: tuple[float, float]) -> list[float | None]:
    """A range for JSON, which has no infinity: None where it has no end."""
    return [end if math.isfinite(end) else None for end in ends]


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
