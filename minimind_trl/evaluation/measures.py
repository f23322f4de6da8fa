"""Figures with their uncertainty."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = statistics.NormalDist().inv_cdf(0.975)  # standard errors to either side of a 95% interval


@dataclass(frozen=True)
class Measure:
    """A figure; where it is a mean over `count` rows or answers, with its 95% interval."""

    value: float
    low: float | None = None
    high: float | None = None
    count: int | None = None

    def as_dict(self) -> dict[str, float | None]:
        """Without what is not there; a value that is not finite is None, for which JSON has a word."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        return {name: value if math.isfinite(value) else None for name, value in given.items()}


def share(flags: Sequence[bool]) -> Measure:
    """The share of true flags, with Wilson's interval."""
    return wilson(sum(flags) / len(flags), len(flags))


def wilson(p: float, count: int) -> Measure:
    """A share of `count` with the interval of Wilson (1927), which is sound near 0 and 1 and for few rows.

    `(p + z^2 / 2n +- z * sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)`
    """
    centre = p + Z95**2 / (2 * count)
    reach = Z95 * math.sqrt(p * (1 - p) / count + Z95**2 / (4 * count**2))
    scale = 1 + Z95**2 / count
    low = (centre - reach) / scale if p > 0 else 0.0  # what the formula gives there, but for rounding
    high = (centre + reach) / scale if p < 1 else 1.0
    return Measure(p, low, high, count)


def mean(values: Sequence[float]) -> Measure:
    """The mean, with its normal interval `+- z * s / sqrt(n)`; a single value has none."""
    if len(values) < 2:
        return Measure(values[0], count=1)
    middle = statistics.fmean(values)
    reach = Z95 * statistics.stdev(values) / math.sqrt(len(values))
    return Measure(middle, middle - reach, middle + reach, len(values))
