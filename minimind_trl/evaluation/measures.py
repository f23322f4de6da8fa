"""Measures with confidence intervals, and how they are printed."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Z95 = statistics.NormalDist().inv_cdf(0.975)  # half-width of a 95% interval in standard errors


@dataclass(frozen=True)
class Measure:
    """A figure, with its 95% interval if it is a mean over `count` rows or answers."""

    value: float
    low: float | None = None
    high: float | None = None
    count: int | None = None

    def as_dict(self) -> dict[str, float | None]:
        """The fields that are set; values that are not finite become None, which JSON can store."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return {name: value if math.isfinite(value) else None for name, value in given.items()}


def share(flags: Sequence[bool]) -> Measure:
    """The share of true flags, with Wilson's interval."""
    return wilson(sum(flags) / len(flags), len(flags))


def wilson(p: float, count: int) -> Measure:
    """A share of `count` with the interval of Wilson (1927), which is reliable near 0 and 1 and for few rows.

    `(p + z^2 / 2n +- z * sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)`
    """
    centre = p + Z95**2 / (2 * count)
    reach = Z95 * math.sqrt(p * (1 - p) / count + Z95**2 / (4 * count**2))
    scale = 1 + Z95**2 / count
    low = (centre - reach) / scale if p > 0 else 0.0  # the exact limit, without rounding
    high = (centre + reach) / scale if p < 1 else 1.0
    return Measure(p, low, high, count)


def mean(values: Sequence[float]) -> Measure:
    """The mean with its normal interval `+- z * s / sqrt(n)`; a single value has no interval."""
    if len(values) < 2:
        return Measure(values[0], count=1)
    middle = statistics.fmean(values)
    reach = Z95 * statistics.stdev(values) / math.sqrt(len(values))
    return Measure(middle, middle - reach, middle + reach, len(values))


def short_number(value: float) -> str:
    """Format a figure with its meaningful digits: integers whole, no decimals from 1,000 on, else about four digits.

    `0.8951`, `12.35`, `1,234,567`, `3.1e-05`.
    """
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    decimals = min(max(3 - math.floor(math.log10(abs(value))), 0), 4)
    return f"{value:,.{decimals}f}"


# Figures in the line of an evaluation, by importance; the others are in metrics.json and the trackers.
_FIRST = (
    *("reward", "win_rate", "loss", "divergence", "rewards/accuracies", "rewards/margins", "accuracy", "margin"),
    *("perplexity", "token_accuracy", "bits_per_byte", "kl", "explained_variance", "eos_rate", "completion_length"),
)
_IN_A_LINE = 5
_TIMES = ("_runtime", "_per_second", "_preparation_time")


def main_figures(figures: Mapping[str, Any], prefix: str = "eval_") -> str:
    """The five most important figures of an evaluation, such as `loss 0.8951, perplexity 2.448`; "" if none."""
    known = by_importance(figures, prefix)
    if "reward" in known:  # the surrogate loss says nothing about the rewards
        known.pop("loss", None)
    return ", ".join(f"{name} {short_number(value)}" for name, value in list(known.items())[:_IN_A_LINE])


def by_importance(figures: Mapping[str, Any], prefix: str = "eval_") -> dict[str, float]:
    """The figures of an evaluation without prefix and times, the most important first."""
    known = {
        name.removeprefix(prefix): value
        for name, value in figures.items()
        if name.startswith(prefix) and isinstance(value, int | float) and not name.endswith(_TIMES)
    }
    watched = [name for name in known if name.startswith("watch/") and not name.endswith("_std")]
    first = [name for name in _FIRST if name in known]
    return {name: known[name] for name in dict.fromkeys([*first[:1], *watched, *first, *known])}
