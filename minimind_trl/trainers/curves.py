"""Training curves as a picture."""

from pathlib import Path

from ..errors import InputError
from ..files import atomic_path

# Panel -> curve -> names of its figure, of which the first that was logged is drawn.
_PANELS = {
    "loss": {"train": ("loss",), "held out": ("eval_loss",)},
    "accuracy": {
        "train": ("mean_token_accuracy", "accuracy", "rewards/accuracies"),
        "held out": ("eval_mean_token_accuracy", "eval_accuracy", "eval_rewards/accuracies"),
    },
    "reward": {"train": ("reward",), "held out": ("eval_reward",)},
    "KL to the reference": {"train": ("kl_ref",), "held out": ("eval_kl",)},
    "learning rate": {"train": ("learning_rate",)},
    "tokens per second": {"train": ("tokens_per_second",)},
}


def write_curves(log_history: list[dict[str, float]], path: Path) -> None:
    """Draw `trainer.state.log_history` over the steps, from step 0, before training.

    Args:
        path: a PNG file. It is not written if no figure was logged.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # takes a second to import
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise InputError("curves need matplotlib: pip install matplotlib") from error
    panels = {title: curves for title, lines in _PANELS.items() if (curves := _curves(log_history, lines))}
    if not panels:
        return
    figure = Figure(figsize=(8, 2.4 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for label, (steps, values) in curves.items():
            axis.plot(steps, values, label=label, marker="." if len(steps) < 50 else "")
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
        if len(curves) > 1:
            axis.legend()
    axes[-1].set_xlabel("step")
    axes[-1].set_xlim(0, max([1, *(entry["step"] for entry in log_history if "step" in entry)]))
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    with atomic_path(Path(path)) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _curves(log_history: list[dict[str, float]], lines: dict[str, tuple[str, ...]]) -> dict[str, tuple[list, list]]:
    """Label -> steps and values."""
    curves = {}
    for label, names in lines.items():
        for name in names:
            points = [(entry["step"], entry[name]) for entry in log_history if name in entry]
            if points:
                curves[label] = tuple(map(list, zip(*points, strict=True)))
                break
    return curves
