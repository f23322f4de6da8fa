"""The held-out figures and the curves of a run, as a report shows them."""

import math
from dataclasses import dataclass
from typing import Any

from ..evaluation.measures import Z95, Measure, by_importance, wilson
from .run_folder import RunFolder

_LOWER = ("loss", "perplexity", "bits_per_byte", "divergence")  # the lower, the better; names may have a suffix
_HIGHER = (
    *("reward", "rewards/", "accuracy", "accuracies", "margin", "win_rate", "token_accuracy", "exact_match"),
    "success",
)
_NEITHER = ("rewards/chosen", "rewards/rejected", "reward_std", "policy_loss", "num_", "rows_")
_ACCURACIES = ("rewards/accuracies", "accuracy")  # of pairs
_NO_CURVE = ("step", "epoch", "total_flos", "train_", "eval_runtime", "eval_num_", "eval_prompts", "eval_answers")
_CURVES = (
    *("reward", "exact_match", "success", "loss", "rewards/accuracies", "accuracy", "rewards/margins", "margin"),
    "perplexity",
    *("divergence", "kl", "kl_ref", "entropy", "token_accuracy", "mean_token_accuracy", "completions/mean_length"),
    *("completion_length", "frac_reward_zero_std", "explained_variance", "win_rate", "grad_norm", "learning_rate"),
    "tokens_per_second",
)

_MAIN = 6  # pictures that are open at first


@dataclass(frozen=True)
class FigureRow:
    """A held-out figure of a run, before and after training; None where it was not measured."""

    name: str
    before: Measure | None
    after: Measure | None

    @property
    def change(self) -> float | None:
        return None if self.before is None or self.after is None else self.after.value - self.before.value

    @property
    def reach(self) -> float | None:
        """Half of the 95% interval of the change, as if the two were measured on different rows; None if not known."""
        if self.change is None or self.before.low is None or self.after.low is None:
            return None
        return math.hypot(*((measure.high - measure.low) / 2 for measure in (self.before, self.after)))

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `same` (no change), `noise` (within the interval of the change), or "" (no matter)."""
        direction = better(self.name)
        if direction == 0 or self.change is None:
            return ""
        if self.change == 0:
            return "same"
        if self.reach is not None and abs(self.change) <= self.reach:
            return "noise"
        return "better" if direction * self.change > 0 else "worse"


def better(name: str) -> int:
    """1 if a higher value of a figure is better, -1 if a lower one is, 0 if neither."""
    if name.startswith(_NEITHER):
        return 0
    return -1 if name.startswith(_LOWER) else 1 if name.startswith(_HIGHER) else 0


def figure_rows(run: RunFolder) -> list[FigureRow]:
    """All held-out figures of a run, the most important first."""
    before, after = (run.metrics.get(when) or {} for when in ("before", "after"))
    names = list(by_importance({**before, **after}))
    if "reward" in names and "loss" in names:  # the surrogate loss says nothing about the rewards
        names.remove("loss")
        names.append("loss")
    return [FigureRow(name, _measure(run, name, before), _measure(run, name, after)) for name in names]


def _measure(run: RunFolder, name: str, figures: dict[str, Any]) -> Measure | None:
    value = figures.get(f"eval_{name}")
    if value is None:
        return None
    # Several answers to one prompt are alike, so an interval over answers would be too narrow.
    count, deviation = figures.get("eval_prompts"), figures.get("eval_reward_std")
    if name == "reward" and count and deviation is not None:
        count = round(count * (1 - figures.get("eval_frac_reward_none", 0)))
        reach = Z95 * deviation / math.sqrt(max(count, 1))
        return Measure(value, value - reach, value + reach, count)
    if name in _ACCURACIES and (pairs := _held_out_pairs(run)) and 0 <= value <= 1:
        return wilson(value, pairs)
    return Measure(value)


def _held_out_pairs(run: RunFolder) -> int:
    """How many held-out pairs an evaluation had; 0 if that is not known."""
    options = run.metrics.get("options", {})
    rows = run.lock.get("held_out", {}).get("rows", 0)
    evaluated = min(rows, options.get("batch_size", 0) * options.get("eval_batches", 0))
    dropped = sum(run.lock.get("training", {}).get("dropped", {}).get("validation", {}).values())
    return max(evaluated - dropped, 0)


def curves(run: RunFolder, most_points: int) -> dict[str, list[list[float]]]:
    """Every logged figure: its steps and values, at most `most_points` of them, evenly chosen; the last is kept.

    Losses that cannot be compared with that of a language model have the method's name: `dpo loss`.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    for entry in run.history:
        for name, value in entry.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if is_number and "step" in entry and not name.startswith(_NO_CURVE):
                points.setdefault(_curve_name(run, name), []).append((entry["step"], value))
    return {name: [*map(list, zip(*_thinned(given, most_points), strict=True))] for name, given in points.items()}


def _curve_name(run: RunFolder, name: str) -> str:
    if run.method == "distill" and name == "loss":
        return "divergence"  # from the teacher, which is what it trains on
    is_other = name in ("loss", "eval_loss") and run.method not in ("pretrain", "midtrain", "sft", "distill")
    return name.replace("loss", f"{run.method} loss") if is_other else name


def _thinned(points: list, most: int) -> list:
    stride = -(-len(points) // most)
    return points[len(points) - 1 :: -stride][::-1] if stride > 1 else points


def panels(names: set[str]) -> list[dict[str, Any]]:
    """The pictures to draw: `title`, the logged figures `train` and `held_out` (None for none), `is_main`."""
    bases = {name.removeprefix("eval_") for name in names}
    known = [name for name in _CURVES if name in bases]
    losses = sorted(name for name in bases if name.endswith(" loss"))
    order = [*known, *losses, *sorted(bases - {*known, *losses})]
    return [
        {
            "title": name,
            "train": name if name in names else None,
            "held_out": f"eval_{name}" if f"eval_{name}" in names else None,
            "is_main": number < _MAIN and name in known,
        }
        for number, name in enumerate(order)
    ]
