"""Durations until a target, of which some were not seen to their end (right-censored): curves, tests and ratios."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from study.statistics import Mean, Ratio, ratio_from_logarithms, ratio_of_means

MAX_ARRANGEMENTS = 20_000  # up to here the log-rank test goes through all of them: 8 and 8 seeds have 12,870


@dataclass(frozen=True)
class Duration:
    """What a seed spent until it reached the target, or until the end of its curve when it did not."""

    value: float
    reached: bool


@dataclass(frozen=True)
class SurvivalCurve:
    """The share of seeds that have not reached the target after each time, with its 95 % interval.

    The interval is Greenwood's on the log-log scale; NaN where it does not exist: before the first seed reached the
    target, and after the last one did.
    """

    times: list[float]  # of every duration, reached or not; before the first of them the share is 1
    survival: list[float]
    low: list[float]
    high: list[float]


def kaplan_meier(durations: Sequence[Duration], confidence: float = 0.95) -> SurvivalCurve:
    """Kaplan and Meier's estimate from at least one duration."""
    survival = scipy.stats.ecdf(_sample(durations)).sf
    with warnings.catch_warnings():  # scipy says what the NaNs say
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = survival.confidence_interval(confidence, method="log-log")
    return SurvivalCurve(
        times=survival.quantiles.tolist(),
        survival=survival.probabilities.tolist(),
        low=interval.low.probabilities.tolist(),  # type: ignore[attr-defined]  # the stubs say float
        high=interval.high.probabilities.tolist(),  # type: ignore[attr-defined]
    )


def log_rank(a: Sequence[Duration], b: Sequence[Duration]) -> float:
    """Two-sided p-value of the log-rank test, of at least one duration on each side.

    With at most MAX_ARRANGEMENTS ways to give the durations to the two sides it is exact: the share of them in which
    observed less expected is at least as far from 0. Otherwise it is that of the chi-square approximation. Three and
    three seeds cannot go below 0.1. Both sides must have been censored alike.
    """
    scores = _log_rank_scores([*a, *b])
    if not np.any(scores):
        return 1.0  # nobody has reached the target
    if math.comb(len(scores), len(a)) > MAX_ARRANGEMENTS:
        return float(scipy.stats.logrank(_sample(a), _sample(b)).pvalue)
    arrangements = np.array(list(itertools.combinations(range(len(scores)), len(a))))
    distances = np.abs(scores[arrangements].sum(axis=1))
    return float(np.mean(distances >= abs(scores[: len(a)].sum()) - 1e-9))


def _log_rank_scores(durations: Sequence[Duration]) -> np.ndarray:
    """Of each duration, 1 where it was reached, less the cumulative hazard at its end (Nelson and Aalen's).

    Summed over one side it is that side's observed less expected number, the numerator of the log-rank test.
    """
    values = np.array([d.value for d in durations])
    reached = np.array([d.reached for d in durations])
    events = np.unique(values[reached])
    hazards = np.array([np.sum(values[reached] == time) / np.sum(values >= time) for time in events])
    return np.array([end - hazards[events <= value].sum() for end, value in zip(reached, values, strict=True)])


def known_until(durations: Sequence[Duration]) -> float:
    """Up to which time the survival curve is known; infinite where it comes down to 0."""
    longest = max(d.value for d in durations)
    return math.inf if all(d.reached for d in durations if d.value == longest) else longest


def common_horizon(ours: Sequence[Duration], theirs: Sequence[Duration]) -> float:
    """Up to which time both survival curves are known; where both come down to 0, the longest duration."""
    horizon = min(known_until(ours), known_until(theirs))
    return horizon if math.isfinite(horizon) else max(d.value for d in (*ours, *theirs))


def restricted_mean(durations: Sequence[Duration], horizon: float, confidence: float = 0.95) -> Mean:
    """What a seed spends on average until it reaches the target, or until the horizon where it comes first.

    The area under the survival curve up to the horizon, with Klein and Moeschberger's standard error, corrected by
    n / (n - 1), and Student's t. Where every curve goes on to the horizon, it is the mean of the durations that are cut
    off there. Without an interval where one duration, or none that reached the target before the horizon, leaves no
    way to see the variation. Raises ValueError where the curve is not known up to the horizon.
    """
    mean, error = _restricted(durations, horizon)
    if len(durations) < 2 or error == 0:
        return Mean(mean, None, None)
    margin = float(scipy.stats.t.ppf(0.5 + confidence / 2, len(durations) - 1)) * error
    return Mean(mean, max(0.0, mean - margin), min(horizon, mean + margin))


def ratio_of_restricted_means(ours: Sequence[Duration], theirs: Sequence[Duration], horizon: float) -> Ratio | None:
    """Restricted mean of `ours` / that of `theirs`, with a 95 % interval.

    The interval is Welch's, with the errors of the logarithms by the delta method. A bootstrap over seeds holds the
    truth far less often with 3 to 5 of them. None where fewer than two durations on a side, or none that reached the
    target before the horizon, leave no way to see the variation. Durations and horizon must be positive.
    """
    if len(ours) < 2 or len(theirs) < 2:
        return None
    (mean_a, error_a), (mean_b, error_b) = _restricted(ours, horizon), _restricted(theirs, horizon)
    if error_a == error_b == 0:
        return None
    errors = ((error_a / mean_a) ** 2, (error_b / mean_b) ** 2)
    return ratio_from_logarithms(math.log(mean_a / mean_b), errors, (len(ours), len(theirs)))


def ratio_of_durations(ours: Sequence[Duration], theirs: Sequence[Duration]) -> Ratio | None:
    """Ratio of geometric means where every seed reached the target, otherwise of restricted means.

    The latter go up to the common horizon. None where a side has fewer than two seeds, no seed reached the target, or
    one had reached it before anything was spent.
    """
    if len(ours) < 2 or len(theirs) < 2 or any(d.value <= 0 for d in (*ours, *theirs)):
        return None
    if all(d.reached for d in (*ours, *theirs)):
        return ratio_of_means([d.value for d in ours], [d.value for d in theirs])
    return ratio_of_restricted_means(ours, theirs, common_horizon(ours, theirs))


def _restricted(durations: Sequence[Duration], horizon: float) -> tuple[float, float]:
    """The restricted mean and its standard error."""
    if horizon > known_until(durations):
        raise ValueError(f"what is spent is known up to {known_until(durations):g} only, not up to {horizon:g}")
    values = np.array([d.value for d in durations])
    reached = np.array([d.reached for d in durations])
    events = np.unique(values[reached & (values < horizon)])
    at_risk = np.array([np.sum(values >= time) for time in events])
    ended = np.array([np.sum(values[reached] == time) for time in events])
    survival = np.cumprod([1.0, *(1 - ended / at_risk)])
    areas = survival * np.diff([0.0, *events, horizon])
    after = areas.sum() - np.cumsum(areas)[:-1]  # the area from each event to the horizon
    left = at_risk > ended  # nothing is left to vary after an event that took all
    variance = float(np.sum(after[left] ** 2 * ended[left] / (at_risk[left] * (at_risk[left] - ended[left]))))
    n = len(durations)
    return float(areas.sum()), math.sqrt(variance * n / max(1, n - 1))


def _sample(durations: Sequence[Duration]) -> scipy.stats.CensoredData:
    reached, censored = ([d.value for d in durations if d.reached is there] for there in (True, False))
    return scipy.stats.CensoredData(uncensored=reached, right=censored)
