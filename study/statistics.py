"""Comparing arms: estimates with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats


@dataclass(frozen=True)
class Ratio:
    """A ratio of means with its confidence interval, and the two-sided p-value of its being 1."""

    estimate: float
    low: float
    high: float
    p_value: float

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

    None where fewer than two values on a side, or no two that differ on either, leave no way to see the variation.
    Values must be positive.
    """
    if len(ours) < 2 or len(theirs) < 2 or len({*ours}) == len({*theirs}) == 1:
        return None
    a, b = np.log(ours), np.log(theirs)
    errors = (float(a.var(ddof=1)) / len(a), float(b.var(ddof=1)) / len(b))
    return ratio_from_logarithms(float(a.mean() - b.mean()), errors, (len(a), len(b)), confidence)


def ratio_from_logarithms(
    difference: float, errors: tuple[float, float], sizes: tuple[int, int], confidence: float = 0.95
) -> Ratio:
    """The ratio whose logarithm is the difference, with Welch's t interval.

    `errors` are the squared standard errors of the two logarithms, each estimated from as many values as `sizes` says;
    one of them may be zero.
    """
    error = sum(errors)
    freedom = error**2 / sum(e**2 / (n - 1) for e, n in zip(errors, sizes, strict=True))
    margin = float(scipy.stats.t.ppf(0.5 + confidence / 2, freedom)) * math.sqrt(error)
    p_value = 2 * float(scipy.stats.t.sf(abs(difference) / math.sqrt(error), freedom))
    return Ratio(math.exp(difference), math.exp(difference - margin), math.exp(difference + margin), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected by Holm's step-down method: among them all, one false claim at most in 1/level cases."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected
