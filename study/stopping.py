"""When a study stops before all its trials have run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from study.ledger import Spent
from study.spec import StopSpec


def search_is_done(stop: StopSpec, values: Sequence[float], noise: float) -> str | None:
    """Why an arm needs no further search trials, given the metric of those that have ended, in that order.

    `noise`: differences of the metric up to this may be chance.
    """
    if not values:
        return None
    if stop.target is not None and min(values) <= stop.target:
        return f"a trial reached {min(values):.1%}, and stop.target is {stop.target:.1%}"
    patience = stop.no_improvement
    if patience is not None and len(values) > patience.trials:
        before, lately = min(values[: -patience.trials]), min(values[-patience.trials :])
        if not lately < before - noise:
            return f"the last {patience.trials} trials brought nothing beyond the noise of {noise:.2%}"
    return None


def seed_noise(groups: Iterable[Sequence[float]]) -> float:
    """Standard deviation over seeds, pooled over configurations; zero where none has two seeds.

    Each group holds the values of one configuration with different seeds.
    """
    several = [values for values in groups if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    squares = math.fsum(statistics.variance(values) * (len(values) - 1) for values in several)
    return math.sqrt(squares / freedom) if freedom else 0.0


def budget_is_spent(stop: StopSpec, spent: Spent) -> str | None:
    """Which budget of the study is used up."""
    budgets = (
        ("accelerator_hours", stop.accelerator_hours, spent.accelerator_seconds / 3600),
        ("cost", stop.cost, spent.cost),
        ("wall_hours", stop.wall_hours, spent.wall_seconds / 3600),
    )
    for name, limit, value in budgets:
        if limit is not None and value >= limit:
            return f"stop.{name} is {limit:g}, and {value:.4g} are spent"
    return None
