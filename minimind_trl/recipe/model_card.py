"""What the recipes add to TRL's model card."""

from pathlib import Path
from typing import Any

from ..data import DatasetMixer
from ..files import atomic_path

_HYPERPARAMETERS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "max_steps", "num_train_epochs"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "packing", "weight_decay"),
    *("adam_beta2", "max_grad_norm", "beta", "lmbda", "bf16", "seed", "reward_funcs", "reward_weights"),
)


def complete_card(card: Path, metrics: dict[str, dict], record: dict[str, Any], mixer: DatasetMixer) -> None:
    """Add results, command, hyperparameters and the mixture to a model card that is there.

    Args:
        metrics: held-out figures `before` and `after` training; may be empty.
        record: of `run_record`.
    """
    options = record["options"] | {"processes": record["processes"]}
    chosen = [(name, options[name]) for name in (*_HYPERPARAMETERS, "processes") if options.get(name) is not None]
    start = record["start"]["from_weight"] or f"scratch (the preset {record['start']['preset']})"
    text = card.read_text(encoding="utf-8").rstrip()
    # TRL's line about a model of the Hub, where there is none
    text = text.replace(
        "This model is a fine-tuned version of [None](https://huggingface.co/None).", f"This model starts from {start}."
    )
    parts = [
        text,
        "## Results on held-out data",
        _results(metrics) if metrics else _not_measured(mixer),
        "![curves](curves.png)",
        "## How to repeat it",
        f"```bash\n{record['command']}\n```",
        "| hyperparameter | value |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in chosen),
        "## Training data",
        mixer.markdown(),
    ]
    with atomic_path(card) as temporary:
        temporary.write_text("\n\n".join(parts), encoding="utf-8")


def _not_measured(mixer: DatasetMixer) -> str:
    held_out = mixer.mixture.validation is not None
    return f"Not measured ({'`--eval_interval 0`' if held_out else 'the mixture holds no rows out'})."


def _results(metrics: dict[str, dict]) -> str:
    timing = ("_runtime", "_per_second", "_preparation_time")
    names = [name for name in metrics["after"] if name.startswith("eval_") and not name.endswith(timing)]
    figures = [(name, metrics["before"].get(name, float("nan")), metrics["after"][name]) for name in names]
    rows = [f"| {name.removeprefix('eval_')} | {before:.4g} | {after:.4g} |" for name, before, after in figures]
    return "| figure | before | after |\n|---|---|---|\n" + "\n".join(rows)
