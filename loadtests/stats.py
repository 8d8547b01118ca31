"""Percentiles of measured times, by one definition for every report."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


def percentile(values: Iterable[float], percent: float) -> float:
    """The nearest-rank percentile: the smallest value that at least `percent` % of the values do not exceed.

    It is always a value that was measured. NaN for no values; `percent` is within 0 to 100.
    """
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Quantiles:
    """The two percentiles that reports show, in the unit of the values."""

    p50: float
    p95: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Quantiles":
        ordered = sorted(values)
        return cls(percentile(ordered, 50), percentile(ordered, 95))
