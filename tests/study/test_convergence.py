"""When a curve came down to a target and stayed, worked out by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from study.answer import AXES
from study.convergence import spent_until
from study.ledger import CurvePoint

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
        assert set(AXES) == {"step", "audio_seconds", "accelerator_seconds"}
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
