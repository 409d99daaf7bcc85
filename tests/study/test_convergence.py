"""When a curve came down to a target and stayed, and the shape of whole curves, worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from study.answer import AXES
from study.convergence import Scale, area_under_curve, common_budget, duration, fit_rate, spent_until
from study.ledger import CurvePoint
from study.survival import Duration

AUDIO_SECONDS, ACCELERATOR_SECONDS = 24.0, 3.0  # of a step


def curve(*points: tuple[int, float]) -> list[CurvePoint]:
    """(step, value) as a curve that costs the same at every step."""
    return [
        CurvePoint(
            id=number,
            stage="s",
            kind="finetune",
            metric="dev_cer",
            value=value,
            step=step,
            audio_seconds=AUDIO_SECONDS * step,
            epochs=0.0,
            elapsed_seconds=2.0 * step,
            accelerator_seconds=ACCELERATOR_SECONDS * step,
            reported_at=0.0,
        )
        for number, (step, value) in enumerate(points)
    ]


class TestByHand:
    def test_between_two_evaluations_the_curve_is_a_straight_line(self) -> None:
        """From 0.8 at 10 to 0.4 at 30: 0.5 is three quarters of the way down."""
        found = spent_until(curve((10, 0.8), (30, 0.4), (50, 0.3)), 0.5, "step")
        assert found == pytest.approx(25.0)

    def test_on_every_axis(self) -> None:
        points = curve((10, 0.8), (30, 0.4), (50, 0.3))
        assert set(AXES) == {"step", "audio_seconds", "accelerator_seconds", "elapsed_seconds"}
        assert spent_until(points, 0.5, "step") == pytest.approx(25.0)
        assert spent_until(points, 0.5, "audio_seconds") == pytest.approx(25.0 * AUDIO_SECONDS)
        assert spent_until(points, 0.5, "accelerator_seconds") == pytest.approx(25.0 * ACCELERATOR_SECONDS)

    def test_an_axis_that_does_not_run_with_the_steps_is_interpolated_for_itself(self) -> None:
        first, second = curve((10, 0.8), (30, 0.4))
        first, second = (
            dataclasses.replace(first, accelerator_seconds=100.0),
            dataclasses.replace(second, accelerator_seconds=500.0),
        )
        assert spent_until([first, second], 0.5, "accelerator_seconds") == pytest.approx(400.0)

    @pytest.mark.parametrize(
        ("points", "expected"),
        [
            # a dip that the next evaluation takes back does not count
            ([(10, 0.8), (20, 0.4), (30, 0.6), (40, 0.4), (50, 0.3)], 35.0),
            ([(10, 0.8), (20, 0.4), (30, 0.6)], None),
            # one evaluation at or below the target after the crossing is enough
            ([(10, 0.6), (20, 0.4), (30, 0.5), (40, 0.9)], 15.0),
            # the last evaluation needs no confirmation
            ([(10, 0.8), (20, 0.6), (30, 0.4)], 25.0),
            ([(10, 0.8), (20, 0.4), (30, 0.6), (40, 0.4)], 35.0),
            # never
            ([(10, 0.8), (20, 0.6), (30, 0.51)], None),
            ([], None),
            # at the first evaluation, where nothing is known of what was before
            ([(10, 0.3), (20, 0.2)], 10.0),
            ([(10, 0.3)], 10.0),
            ([(10, 0.3), (20, 0.7), (30, 0.2)], 24.0),
            # exactly the target
            ([(10, 0.9), (20, 0.5), (30, 0.5)], 20.0),
            ([(10, 0.5), (20, 0.5)], 10.0),
            ([(10, 0.6), (20, 0.5), (30, 0.6)], None),
        ],
    )
    def test_sustained_crossings(self, points: list[tuple[int, float]], expected: float | None) -> None:
        found = spent_until(curve(*points), 0.5, "step")
        assert found == (None if expected is None else pytest.approx(expected))


VALUES = st.lists(st.floats(0.0, 1.0).map(lambda value: round(value, 3)), min_size=1, max_size=12)


def steps_of(values: Sequence[float]) -> list[tuple[int, float]]:
    return [(10 * (number + 1), value) for number, value in enumerate(values)]


class TestProperties:
    @given(VALUES, st.sampled_from([0.1, 0.25, 0.5, 0.9]))
    def test_it_is_where_the_straight_lines_first_reach_the_target_for_good(
        self, values: list[float], target: float
    ) -> None:
        """Parity with a search along the polyline, a thousandth of an interval at a time."""
        found = spent_until(curve(*steps_of(values)), target, "step")
        held = [i for i, v in enumerate(values) if v <= target and (i + 1 == len(values) or values[i + 1] <= target)]
        if not held:
            assert found is None
            return
        index = held[0]
        if index == 0:
            assert found == 10.0
            return
        before, after = values[index - 1], values[index]
        shares = (k / 1000 for k in range(1001))
        walked = next(share for share in shares if before + share * (after - before) <= target + 1e-12)
        assert found == pytest.approx(10 * index + 10 * walked, abs=0.0101)

    @given(VALUES, st.floats(0.05, 0.9), st.floats(0.05, 0.9))
    def test_on_a_falling_curve_a_lower_target_is_never_cheaper(self, values: list[float], a: float, b: float) -> None:
        falling = curve(*steps_of(sorted(values, reverse=True)))
        low, high = sorted((a, b))
        costs = spent_until(falling, low, "step"), spent_until(falling, high, "step")
        assume(costs[0] is not None)
        assert costs[1] is not None
        assert costs[1] <= costs[0]  # type: ignore[operator]


class TestDuration:
    def test_until_the_target_or_to_the_end_of_the_curve(self) -> None:
        points = curve((10, 0.8), (30, 0.4), (50, 0.3))
        assert duration(points, 0.5, "step") == Duration(25.0, reached=True)
        assert duration(points, 0.2, "accelerator_seconds") == Duration(50 * ACCELERATOR_SECONDS, reached=False)
        assert duration([], 0.5, "step") is None


class TestArea:
    def test_a_constant_is_its_own_mean(self) -> None:
        flat = curve((10, 0.4), (20, 0.4), (90, 0.4))
        assert area_under_curve(flat, "step", "linear", 10, 90) == pytest.approx(0.4)
        assert area_under_curve(flat, "audio_seconds", "log", 300, 900) == pytest.approx(0.4)

    def test_a_straight_line_has_the_mean_of_its_ends(self) -> None:
        """Linear from 0.9 at 0 to 0.1 at 80; logarithmic from 0.8 at 10 to 0.4 at 160, four doublings."""
        falling = curve((0, 0.9), (20, 0.7), (80, 0.1))
        assert area_under_curve(falling, "step", "linear", 0, 80) == pytest.approx(0.5)
        assert area_under_curve(falling, "step", "linear", 10, 40) == pytest.approx((0.8 + 0.5) / 2)
        doubling = curve((10, 0.8), (20, 0.7), (80, 0.5), (160, 0.4))
        assert area_under_curve(doubling, "step", "log", 10, 160) == pytest.approx(0.6)
        assert area_under_curve(doubling, "step", "log", 20, 40) == pytest.approx((0.7 + 0.6) / 2)

    def test_before_its_first_evaluation_it_is_at_its_first_value(self) -> None:
        late = curve((50, 0.8), (100, 0.4))
        assert area_under_curve(late, "step", "linear", 0, 100) == pytest.approx((0.8 + 0.6) / 2)

    def test_the_error_of_an_exponential_is_its_integral(self) -> None:
        tau, end = 100.0, 400
        falling = curve(*((step, 0.2 + 0.7 * math.exp(-step / tau)) for step in range(end + 1)))
        expected = 0.2 + 0.7 * tau / end * (1 - math.exp(-end / tau))
        assert area_under_curve(falling, "step", "linear", 0, end) == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize(("scale", "low", "high"), [("linear", 5, 5), ("log", 0, 20), ("linear", 0, 31)])
    def test_what_cannot_be_measured_is_refused(self, scale: Scale, low: float, high: float) -> None:
        with pytest.raises(ValueError, match=r"no range|ends before"):
            area_under_curve(curve((10, 0.8), (30, 0.4)), "step", scale, low, high)

    def test_the_common_budget_is_where_all_curves_have_evaluations(self) -> None:
        long, short = curve((10, 0.8), (90, 0.4)), curve((20, 0.8), (30, 0.4))
        assert common_budget([long, short], "step") == (20, 30)
        assert common_budget([curve((10, 0.8), (40, 0.4)), curve((50, 0.5), (90, 0.4))], "step") is None
        assert common_budget([long, []], "step") is None
        assert common_budget([], "step") is None
        assert common_budget([curve((10, 0.8)), long], "step") is None


def decay(tau: float, noise: Sequence[float] = (0.0,) * 20) -> list[CurvePoint]:
    """From 0.9 down to 0.2, an evaluation every 20 updates."""
    steps = range(20, 20 * (len(noise) + 1), 20)
    return curve(*((s, 0.2 + 0.7 * math.exp(-s / tau) + e) for s, e in zip(steps, noise, strict=True)))


class TestRate:
    @pytest.mark.parametrize("tau", [30.0, 100.0, 400.0])
    def test_an_exponential_is_found_again(self, tau: float) -> None:
        found = fit_rate(decay(tau))
        assert found is not None
        assert (found.estimate, found.low, found.high) == pytest.approx((tau, tau, tau), rel=1e-3)
        assert found.asymptote == pytest.approx(0.2, abs=1e-3)

    def test_one_bad_evaluation_moves_it_little(self) -> None:
        found = fit_rate(decay(100.0, [0.3 if place == 8 else 0.0 for place in range(20)]))
        assert found is not None
        assert found.estimate == pytest.approx(100, rel=0.1)

    def test_95_of_100_intervals_hold_the_true_time(self) -> None:
        """100 curves with noise of one point: three standard errors of the share are 6.5 %."""
        noise = 0.01 * np.random.default_rng(5).standard_normal((100, 20))
        found = [fit_rate(decay(100.0, errors)) for errors in noise.tolist()]
        held = [rate.low <= 100 <= rate.high for rate in found if rate]
        assert len(held) == 100
        assert np.mean(held) >= 0.885

    def test_what_does_not_come_down_or_is_too_short_has_none(self) -> None:
        rising = curve(*((step, 1 - 0.7 * math.exp(-step / 100)) for step in range(20, 420, 20)))
        noise = np.random.default_rng(6).standard_normal(20)
        wandering = curve(*((20 * place + 20, 0.5 + 0.05 * e) for place, e in enumerate(noise.tolist())))
        for points in (rising, wandering, decay(100.0)[:4], curve(*((s, 0.5) for s in range(9))), []):
            assert fit_rate(points) is None
