"""Convergence speed: what a trial had spent when its metric came down to a target, and the shape of its whole curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.optimize
import scipy.stats

from study.ledger import CurvePoint
from study.survival import Duration

Axis = Literal["step", "audio_seconds", "accelerator_seconds", "elapsed_seconds"]
Scale = Literal["linear", "log"]

NOISE = 0.01  # of one evaluation: residuals well above it count in proportion to their size, not to its square
TAU_STARTS = (0.1, 0.3, 1.0, 3.0)  # of the length of the curve
WIDEST_TAU = 100.0  # an interval whose ends differ by a greater factor says nothing


@dataclass(frozen=True)
class DecayTime:
    """tau of y(t) = y_inf + a * exp(-t / tau), in updates, with its confidence interval."""

    estimate: float
    low: float
    high: float
    asymptote: float  # y_inf


def spent_until(curve: Sequence[CurvePoint], target: float, axis: Axis) -> float | None:
    """Cost at the first sustained crossing of `target` from above; None when there is none (right-censored).

    `curve` holds one metric, in order. Sustained: the evaluation after the crossing is at or below the target too,
    unless the crossing is the last evaluation. Between the evaluation before the crossing and the crossing the curve
    is taken as a straight line.
    """
    for index, point in enumerate(curve):
        if point.value <= target and all(later.value <= target for later in curve[index + 1 : index + 2]):
            if index == 0:
                return float(getattr(point, axis))
            before = curve[index - 1]
            share = (before.value - target) / (before.value - point.value)
            start, end = getattr(before, axis), getattr(point, axis)
            return float(start + share * (end - start))
    return None


def duration(curve: Sequence[CurvePoint], target: float, axis: Axis) -> Duration | None:
    """Cost until the target, or until the last evaluation where it was not reached; None where there is none."""
    if not curve:
        return None
    spent = spent_until(curve, target, axis)
    return Duration(float(getattr(curve[-1], axis)), False) if spent is None else Duration(spent, True)


def common_budget(curves: Sequence[Sequence[CurvePoint]], axis: Axis) -> tuple[float, float] | None:
    """From the latest first evaluation to the earliest last one; None where that leaves nothing to compare."""
    if not all(curves):
        return None
    low = max((float(getattr(curve[0], axis)) for curve in curves), default=0.0)
    high = min((float(getattr(curve[-1], axis)) for curve in curves), default=0.0)
    return (low, high) if low < high else None


def area_under_curve(curve: Sequence[CurvePoint], axis: Axis, scale: Scale, low: float, high: float) -> float:
    """The mean of the metric from `low` to `high`, every unit of cost (linear) or every doubling of it (log) alike.

    Between evaluations the curve is a straight line on that scale; before the first it is at its first value. Raises
    ValueError where the curve ends before `high`, or the range is empty or, on the logarithmic scale, not positive.
    """
    costs = np.array([getattr(point, axis) for point in curve], dtype=float)
    if not low < high or (scale == "log" and low <= 0):
        raise ValueError(f"no range for the area under a curve: {low:g} to {high:g}, {scale}")
    if not len(costs) or costs[-1] < high:
        raise ValueError(f"the curve ends before {high:g}")
    edges = np.unique([low, *costs[(costs > low) & (costs < high)], high])
    values = [point.value for point in curve]
    if scale == "log":
        edges = np.log(edges)
        with np.errstate(divide="ignore"):  # an evaluation before the first update is infinitely far to the left
            costs = np.log(costs)
    heights = np.interp(edges, costs, values)
    return float(np.trapezoid(heights, edges) / (edges[-1] - edges[0]))


def fit_rate(curve: Sequence[CurvePoint], confidence: float = 0.95) -> DecayTime | None:
    """How fast the curve comes down: y(t) = y_inf + a * exp(-t / tau) over updates, by robust least squares.

    The loss is soft L1, from several starts; the interval is Student's t on the logarithm of tau, from the curvature
    at the solution, and takes the noise of evaluations as independent. None where tau cannot be identified: fewer than
    five evaluations, a curve that does not come down, or an interval wider than a factor of WIDEST_TAU.
    """
    steps = np.array([point.step for point in curve], dtype=float)
    values = np.array([point.value for point in curve])
    if len(curve) < 5 or np.ptp(steps) == 0 or np.ptp(values) == 0:
        return None
    times = (steps - steps[0]) / np.ptp(steps)

    def residuals(parameters: np.ndarray) -> np.ndarray:
        asymptote, drop, log_tau = parameters
        return np.asarray(asymptote + drop * np.exp(-times * np.exp(-log_tau)) - values)

    fits = [
        scipy.optimize.least_squares(
            residuals, [values[-1], values[0] - values[-1], math.log(start)], loss="soft_l1", f_scale=NOISE
        )
        for start in TAU_STARTS
    ]
    best = min(fits, key=lambda fit: float(fit.cost))
    asymptote, drop, log_tau = (float(parameter) for parameter in best.x)
    freedom = len(curve) - 3
    jacobian = np.asarray(best.jac)
    curvature = jacobian.T @ jacobian
    if drop <= 0 or np.linalg.cond(curvature) > 1e12:
        return None
    error = math.sqrt(2 * float(best.cost) / freedom * float(np.linalg.inv(curvature)[2, 2]))
    margin = float(scipy.stats.t.ppf(0.5 + confidence / 2, freedom)) * error
    if 2 * margin > math.log(WIDEST_TAU):
        return None
    tau, low, high = (float(np.ptp(steps)) * math.exp(log_tau + sign * margin) for sign in (0, -1, 1))
    return DecayTime(tau, low, high, asymptote)
