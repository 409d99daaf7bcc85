"""Comparing arms: estimates with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats


@dataclass(frozen=True)
class Ratio:
    """A ratio of geometric means with its confidence interval."""

    estimate: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 1."""
        return not self.low <= 1 <= self.high


@dataclass(frozen=True)
class Mean:
    """A mean with its confidence interval; low and high are None where one value leaves no way to see the variation."""

    estimate: float
    low: float | None
    high: float | None


def mean_of(values: Sequence[float], confidence: float = 0.95) -> Mean:
    """The arithmetic mean of at least one value, with Student's t interval."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Mean(mean, None, None)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    margin = float(scipy.stats.t.ppf(0.5 + confidence / 2, len(values) - 1)) * error
    return Mean(mean, mean - margin, mean + margin)


def ratio_of_means(ours: Sequence[float], theirs: Sequence[float], confidence: float = 0.95) -> Ratio | None:
    """Geometric mean of `ours` / that of `theirs`, with Welch's t interval on the logarithms.

    None where fewer than two values on a side leave no way to see the variation. Values must be positive.
    """
    if len(ours) < 2 or len(theirs) < 2:
        return None
    a, b = np.log(ours), np.log(theirs)
    difference = float(a.mean() - b.mean())
    error_a, error_b = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    error = error_a + error_b
    if error == 0:
        return Ratio(math.exp(difference), math.exp(difference), math.exp(difference))
    freedom = error**2 / (error_a**2 / (len(a) - 1) + error_b**2 / (len(b) - 1))
    margin = float(scipy.stats.t.ppf(0.5 + confidence / 2, freedom)) * math.sqrt(error)
    return Ratio(math.exp(difference), math.exp(difference - margin), math.exp(difference + margin))
