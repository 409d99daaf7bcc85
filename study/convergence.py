"""Convergence speed: what a trial had spent when its metric came down to a target, and stayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from study.ledger import CurvePoint

Axis = Literal["step", "audio_seconds", "accelerator_seconds"]


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
