"""Scaling laws: closed forms, an independent fit, and intervals that cover the truth as often as they say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from study.scaling import (
    Bootstrap,
    Form,
    HeldOut,
    Joint,
    Measurement,
    NoAsymptote,
    PowerLaw,
    Repetition,
    ScalingError,
    bootstrap,
    break_even,
    compare_forms,
    fit,
    preferred,
    refuse,
)
from tests.study.scaling_calibration import coverage, noisy_runs

SIZES = np.geomspace(10, 1000, 6)


def power_law(x: float) -> float:
    return 0.1 + 0.5 * x**-0.4


def measured(
    law: Callable[[float], float] = power_law,
    sizes: Sequence[float] | np.ndarray = SIZES,
    *,
    seeds: int = 3,
    noise: float = 0.0,
    seed: int = 0,
) -> list[Measurement]:
    return noisy_runs(law, np.asarray(sizes), noise, np.random.default_rng(seed), seeds)


class TestFit:
    @settings(max_examples=40, deadline=None)
    @given(
        alpha=st.floats(0.1, 1.2), asymptote=st.floats(0.02, 0.4), share=st.floats(0.2, 3), first=st.floats(1e-3, 1e6)
    )
    def test_without_noise_the_parameters_are_recovered(
        self, alpha: float, asymptote: float, share: float, first: float
    ) -> None:
        law = fit(
            measured(lambda x: asymptote * (1 + share * (x / first) ** -alpha), first * np.geomspace(1, 300, 6)),
            PowerLaw(),
        )
        expected = {"A": asymptote * share * first**alpha, "alpha": alpha, "E": asymptote}
        assert law.parameters == pytest.approx(expected, rel=1e-4)

    def test_a_law_without_asymptote_is_the_least_squares_line_of_the_logarithms(self) -> None:
        runs = measured(lambda x: 0.9 * x**-0.3, noise=0.02)
        slope, _ = np.polyfit(np.log([m.size for m in runs]), np.log([m.value for m in runs]), 1)
        inside = [m for m in runs if abs(math.log(m.value / (0.9 * m.size**-0.3))) < 0.025]  # none beyond Huber's delta
        slope, intercept = np.polyfit(np.log([m.size for m in inside]), np.log([m.value for m in inside]), 1)
        law = fit(inside, NoAsymptote())
        assert law.parameters["alpha"] == pytest.approx(-slope, abs=0.01)
        assert law.predict(100) == pytest.approx(math.exp(intercept + slope * math.log(100)), rel=0.01)

    @pytest.mark.parametrize("seed", range(6))
    def test_scipy_finds_no_lower_loss(self, seed: int) -> None:
        """The same loss, minimised by another method from the truth and from afar."""
        runs = measured(noise=0.04, seed=seed)
        x, y = np.array([m.size for m in runs]), np.log([m.value for m in runs])
        law = fit(runs, PowerLaw())
        delta = 1.345 * law.noise

        def residuals(p: np.ndarray) -> np.ndarray:
            return np.asarray(np.log(p[2] + p[0] * x ** -p[1]) - y)

        def loss(p: Sequence[float]) -> float:
            size = np.abs(residuals(np.array(p)))
            return float(np.where(size < delta, size**2 / 2, delta * (size - delta / 2)).sum())

        ends = ([1e-6, 1e-6, 0.0], [100.0, 4.0, 1.0])
        found = [
            scipy.optimize.least_squares(
                residuals, start, bounds=ends, loss="huber", f_scale=delta, xtol=1e-12, ftol=1e-12, gtol=1e-12
            )
            for start in ([0.5, 0.4, 0.1], [1.0, 1.0, 0.05], [1.0, 0.2, 0.001])
        ]
        ours = loss([law.parameters[name] for name in ("A", "alpha", "E")])
        assert ours <= min(loss(f.x) for f in found) * (1 + 1e-6)

    @settings(max_examples=20, deadline=None)
    @given(unit=st.floats(1e-6, 1e6))
    def test_the_unit_of_size_changes_nothing_but_the_factor(self, unit: float) -> None:
        runs = measured(noise=0.03)
        rescaled = [Measurement(m.size * unit, m.value, m.seed) for m in runs]
        ours, theirs = fit(runs, PowerLaw()).parameters, fit(rescaled, PowerLaw()).parameters
        assert theirs["alpha"] == pytest.approx(ours["alpha"], rel=1e-4)
        assert theirs["E"] == pytest.approx(ours["E"], rel=1e-4)
        assert theirs["A"] == pytest.approx(ours["A"] * unit ** ours["alpha"], rel=1e-2)

    def test_one_broken_run_hardly_moves_the_law(self) -> None:
        runs = measured(seeds=5, noise=0.02)
        broken = [*runs[1:], Measurement(runs[0].size, 3 * runs[0].value, 0)]
        assert fit(broken, PowerLaw()).predict(4000) == pytest.approx(fit(runs, PowerLaw()).predict(4000), rel=0.05)

    def test_the_asymptote_is_never_below_zero(self) -> None:
        bent_down = measured(lambda x: 0.9 * x**-0.2 * math.exp(-x / 2000))
        assert fit(bent_down, PowerLaw()).parameters["E"] == 0

    @pytest.mark.parametrize(("repeats", "form"), [(15.0, Repetition()), (6.0, Repetition(repeats=None))])
    def test_what_repetition_is_worth_is_recovered(self, repeats: float, form: Form) -> None:
        """Unique hours at a fixed number of updates, and at twice as many."""

        def value(hours: float, epochs: float) -> float:
            effective = hours + hours * repeats * (1 - math.exp(-(epochs - 1) / repeats))
            return 0.05 + 0.9 * effective**-0.5

        runs = [
            Measurement(hours, value(hours, epochs), 0, epochs)
            for hours in (10, 30, 100, 300, 1000)
            for epochs in (2000 / hours, 4000 / hours)
        ]
        expected = {"A": 0.9, "alpha": 0.5, "E": 0.05, "R*": repeats}
        assert fit(runs, form).parameters == pytest.approx(expected, rel=1e-3)

    def test_without_repetition_the_law_is_that_of_unique_hours(self) -> None:
        parameters = fit(measured(noise=0.02), Repetition()).parameters
        assert parameters.pop("R*") == pytest.approx(15)
        assert parameters == pytest.approx(fit(measured(noise=0.02), PowerLaw()).parameters, rel=1e-4)

    def test_the_joint_law_is_recovered(self) -> None:
        runs = [
            Measurement(n, 0.08 + 2 * n**-0.35 + 0.7 * d**-0.5, 0, d)
            for n in (10, 30, 100, 300)
            for d in (1, 5, 25, 125)
        ]
        expected = {"A": 2, "alpha": 0.35, "B": 0.7, "beta": 0.5, "E": 0.08}
        assert fit(runs, Joint()).parameters == pytest.approx(expected, rel=1e-3)

    def test_too_few_sizes_values_of_zero_and_no_runs_are_refused(self) -> None:
        with pytest.raises(ScalingError, match="2 distinct sizes cannot tell 3 parameters"):
            fit(measured(sizes=[1, 10]), PowerLaw())
        with pytest.raises(ScalingError, match="positive"):
            fit([*measured(), Measurement(1, 0.0, 0)], PowerLaw())
        with pytest.raises(ScalingError, match="no measurements"):
            fit([], PowerLaw())

    def test_the_noise_is_the_pooled_standard_deviation(self) -> None:
        runs = measured(noise=0.05)
        by_size = [[math.log(m.value) for m in runs if m.size == x] for x in sorted({m.size for m in runs})]
        expected = math.sqrt(np.mean([np.var(values, ddof=1) for values in by_size]))
        assert fit(runs, PowerLaw()).noise == pytest.approx(expected)

    def test_lack_of_fit_is_seen_where_the_curve_is_another(self) -> None:
        step = measured(lambda x: 0.5 if x < 100 else 0.2, noise=0.02)
        broken, fine = fit(step, PowerLaw()).misfit, fit(measured(noise=0.02), PowerLaw()).misfit
        assert broken is not None
        assert fine is not None
        assert broken < 1e-3 < 0.05 < fine


class TestForms:
    def chosen(self, law: Callable[[float], float], seed: int) -> str:
        return preferred(compare_forms(measured(law, noise=0.01, seed=seed))).name

    def test_data_without_asymptote_choose_no_asymptote(self) -> None:
        found = [self.chosen(lambda x: 0.9 * x**-0.25, seed) for seed in range(20)]
        assert found.count("NoAsymptote") >= 17

    def test_data_with_an_asymptote_choose_it(self) -> None:
        found = [self.chosen(lambda x: 0.1 + 0.8 * x**-0.7, seed) for seed in range(20)]
        assert found.count("PowerLaw") == 20

    def test_errors_are_those_of_the_largest_size(self) -> None:
        plain, bent = compare_forms(measured(lambda x: 0.9 * x**-0.25)[:-3] + measured(lambda x: 0.5, [1000.0]))
        assert plain.error == pytest.approx(math.log(0.9 * 1000**-0.25 / 0.5), abs=1e-6)
        assert bent.error == pytest.approx(plain.error, abs=1e-3)

    def test_the_simplest_form_within_a_standard_error_is_preferred(self) -> None:
        far, near = HeldOut(NoAsymptote(), -0.05, 0.01), HeldOut(PowerLaw(), 0.02, 0.01)
        assert preferred([far, near]) is near
        assert preferred([HeldOut(NoAsymptote(), -0.025, 0.01), near]).name == "NoAsymptote"


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """The curve and a new run at 4 times the largest size, and the parameters, of 200 laws."""
    found = coverage(200, seed=1)
    assert all(0.90 <= share <= 0.98 for share in found.values()), found


class TestBootstrap:
    @pytest.fixture(scope="class")
    def found(self) -> Bootstrap:
        return bootstrap(measured(noise=0.03), PowerLaw(), n=400)

    def test_intervals_hold_their_estimates_and_a_new_run_is_less_certain_than_the_curve(
        self, found: Bootstrap
    ) -> None:
        for size in (10, 1000, 4000):
            curve, run = found.mean_at(size), found.new_run_at(size)
            assert run.low < curve.low < curve.estimate < curve.high < run.high

    def test_extrapolation_is_less_certain(self, found: Bootstrap) -> None:
        widths = [math.log(i.high / i.low) for i in map(found.mean_at, (1000, 4000, 16000))]
        assert widths == sorted(widths)

    def test_the_same_seed_gives_the_same_interval(self, found: Bootstrap) -> None:
        again = bootstrap(measured(noise=0.03), PowerLaw(), n=400)
        assert again.mean_at(4000) == found.mean_at(4000)

    def test_without_noise_the_interval_is_the_truth(self) -> None:
        interval = bootstrap(measured(), PowerLaw(), n=50).mean_at(4000)
        assert (interval.low, interval.high) == pytest.approx((power_law(4000),) * 2, rel=1e-5)

    def test_fewer_seeds_give_wider_intervals(self) -> None:
        def width(seeds: int) -> float:
            intervals = [
                bootstrap(measured(noise=0.03, seeds=seeds, seed=s), PowerLaw(), n=100).mean_at(4000) for s in range(10)
            ]
            return float(np.mean([math.log(i.high / i.low) for i in intervals]))

        assert width(2) > 1.3 * width(8)

    def test_a_size_with_one_seed_takes_the_noise_of_the_others(self) -> None:
        runs = [m for m in measured(noise=0.03) if m.size < 999 or m.seed == 0]
        interval = bootstrap(runs, PowerLaw(), n=200).mean_at(1000)
        assert math.log(interval.high / interval.low) > 0.02

    def test_one_seed_everywhere_is_refused(self) -> None:
        with pytest.raises(ScalingError, match="no size has two seeds"):
            bootstrap(measured(seeds=1), PowerLaw())


class TestRefuse:
    def test_enough_sizes_decades_and_seeds_are_taken(self) -> None:
        assert refuse(measured(noise=0.02)) is None

    def test_a_short_range_is_to_be_made_longer_by_its_own_step(self) -> None:
        reason = refuse(measured(sizes=[1, 2, 4, 8, 16]))
        assert reason is not None
        assert "5 size(s) over 1.2 decades leave the asymptote unconstrained" in reason
        assert "run size 37.9, or 0.422 next" in reason

    def test_few_sizes_are_to_be_filled_in_between(self) -> None:
        reason = refuse(measured(sizes=[1, 10, 100, 10000]))
        assert reason is not None
        assert "run size 1,000 next" in reason

    def test_what_it_asks_for_is_enough(self) -> None:
        for sizes in ([5.0], [1.0, 10.0], [1.0, 1.1], [0.03, 0.08, 0.2], [1.0, 100.0]):
            reason = refuse(measured(sizes=sizes))
            assert reason is not None
            asked = reason.partition("run size ")[2].partition(", or ")[0].partition(" next")[0]
            more = [float(s.replace(",", "")) for s in asked.replace(" and ", ", ").split(", ")]
            assert refuse(measured(sizes=sorted([*sizes, *more]))) is None

    def test_one_seed_everywhere(self) -> None:
        assert "run a second seed at every size" in (refuse(measured(seeds=1)) or "")

    def test_values_that_do_not_fall(self) -> None:
        rising = refuse(measured(lambda x: 0.3 * x**0.1))
        assert rising is not None
        assert "do not fall" in rising
        assert "run size 2,510" in rising
        flat = [refuse(measured(lambda x: 0.3, noise=0.02, seed=seed)) for seed in range(100)]
        assert sum(reason is not None for reason in flat) >= 90

    def test_no_runs(self) -> None:
        assert refuse([]) == "no run has finished"


class TestBreakEven:
    def law(self, function: Callable[[float], float], seed: int = 0, noise: float = 0.01) -> Bootstrap:
        return bootstrap(measured(function, noise=noise, seed=seed), PowerLaw(), n=200)

    def test_curves_cross_where_algebra_says(self) -> None:
        """0.9 x^-0.3 = 1.8 x^-0.5 at x = 2^5 = 32."""
        a, b = self.law(lambda x: 0.9 * x**-0.3, noise=0), self.law(lambda x: 1.8 * x**-0.5, noise=0)
        found = break_even(a, b, 10, 1000)
        assert found is not None
        assert (found.size, found.low, found.high) == pytest.approx((32, 32, 32), rel=1e-3)

    def test_the_interval_covers_the_crossing(self) -> None:
        covered = 0
        for seed in range(40):
            a = self.law(lambda x: 0.1 + 0.9 * x**-0.4, seed)
            b = self.law(lambda x: 0.1 + 1.8 * x**-0.6, 100 + seed)
            found = break_even(a, b, 10, 1000)
            assert found is not None
            covered += (found.low or 0) <= 32 <= (found.high or math.inf)
        assert covered >= 35

    def test_curves_that_do_not_cross_in_the_range_have_none(self) -> None:
        a, b = self.law(lambda x: 0.1 + 0.9 * x**-0.4), self.law(lambda x: 0.1 + 1.8 * x**-0.6, 1)
        assert break_even(a, b, 100, 1000) is None
        assert break_even(a, a, 10, 1000) is None

    def test_an_end_that_lies_beyond_the_range_is_open(self) -> None:
        a, b = self.law(lambda x: 0.9 * x**-0.3, noise=0.1), self.law(lambda x: 1.8 * x**-0.5, 1, noise=0.1)
        found = break_even(a, b, 25, 45)
        if found is not None:
            assert found.low is None or found.high is None

    def test_the_order_of_the_arms_does_not_matter(self) -> None:
        a, b = self.law(lambda x: 0.9 * x**-0.3), self.law(lambda x: 1.8 * x**-0.5, 1)
        one, other = break_even(a, b, 10, 1000), break_even(b, a, 10, 1000)
        assert one is not None
        assert other is not None
        assert other.size == pytest.approx(one.size)
