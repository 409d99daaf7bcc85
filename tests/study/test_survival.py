"""Censored durations: against scipy, by hand, by brute force, and against what intervals and tests promise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from study.statistics import Mean, mean_of, ratio_of_means
from study.survival import (
    MAX_ARRANGEMENTS,
    Duration,
    common_horizon,
    kaplan_meier,
    known_until,
    log_rank,
    ratio_of_durations,
    ratio_of_restricted_means,
    restricted_mean,
)

# Remission in weeks under 6-mercaptopurine and placebo (Freireich et al. 1963), the usual textbook example.
TREATED = [
    *(Duration(weeks, True) for weeks in (6, 6, 6, 7, 10, 13, 16, 22, 23)),
    *(Duration(weeks, False) for weeks in (6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35)),
]
PLACEBO = [Duration(w, True) for w in (1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23)]

DURATIONS = st.lists(st.builds(Duration, st.integers(1, 20).map(float), st.booleans()), min_size=1, max_size=7)
FEW = st.lists(st.builds(Duration, st.integers(1, 9).map(float), st.booleans()), min_size=1, max_size=4)


def until(budget: float, values: Sequence[float]) -> list[Duration]:
    """What is seen of durations when every seed stops at the budget."""
    return [Duration(min(value, budget), value < budget) for value in values]


def share_left(durations: Sequence[Duration], time: float) -> Fraction:
    """Kaplan and Meier's product by its definition, exactly."""
    share = Fraction(1)
    for event in sorted({d.value for d in durations if d.reached and d.value <= time}):
        at_risk = sum(d.value >= event for d in durations)
        share *= 1 - Fraction(sum(d.reached and d.value == event for d in durations), at_risk)
    return share


class TestKaplanMeier:
    def test_the_textbook_example(self) -> None:
        curve = kaplan_meier(TREATED)
        shares = dict(zip(curve.times, curve.survival, strict=True))
        expected = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448, 35: 0.448}
        assert {time: round(shares[time], 3) for time in expected} == expected

    def test_the_interval_is_greenwoods_on_the_log_log_scale(self) -> None:
        """At 6 weeks 3 of 21: Greenwood's sum is 3 / (21 * 18)."""
        curve = kaplan_meier(TREATED)
        share = 18 / 21
        factor = math.exp(1.959963984540054 * math.sqrt(3 / (21 * 18)) / math.log(share))
        assert curve.times[0] == 6
        assert (curve.low[0], curve.high[0]) == (pytest.approx(share ** (1 / factor)), pytest.approx(share**factor))

    @given(DURATIONS)
    def test_it_is_the_product_over_the_times_at_which_seeds_reach_the_target(self, durations: list[Duration]) -> None:
        curve = kaplan_meier(durations)
        assert curve.times == sorted({d.value for d in durations})
        assert curve.survival == pytest.approx([float(share_left(durations, time)) for time in curve.times])

    def test_without_censoring_it_is_the_share_of_longer_durations(self) -> None:
        assert kaplan_meier([Duration(v, True) for v in (1.0, 2.0, 2.0, 5.0)]).survival == [0.75, 0.25, 0.0]

    def test_where_no_seed_or_every_seed_reached_the_target_no_interval_is_known(self) -> None:
        never = kaplan_meier([Duration(3, False), Duration(4, False)])
        assert never.survival == [1.0, 1.0]
        assert np.isnan([*never.low, *never.high]).all()
        assert math.isnan(kaplan_meier([Duration(3, True)]).low[-1])


class TestLogRank:
    def test_with_many_durations_it_is_that_of_scipy_on_the_textbook_example(self) -> None:
        """Published: chi-square 16.79."""
        assert math.comb(42, 21) > MAX_ARRANGEMENTS
        assert log_rank(TREATED, PLACEBO) == pytest.approx(float(scipy.stats.chi2.sf(16.79, 1)), rel=5e-3)

    @given(FEW, FEW)
    def test_with_few_it_is_the_share_of_arrangements_as_far_from_what_is_expected(
        self, a: list[Duration], b: list[Duration]
    ) -> None:
        pooled = [*a, *b]

        def distance(side: set[int]) -> Fraction:
            excess = Fraction(0)
            for time in {d.value for d in pooled if d.reached}:
                at_risk = [place for place, d in enumerate(pooled) if d.value >= time]
                events = [place for place, d in enumerate(pooled) if d.reached and d.value == time]
                expected = Fraction(len(events) * len(side & set(at_risk)), len(at_risk))
                excess += len(side & set(events)) - expected
            return abs(excess)

        found = distance(set(range(len(a))))
        every = [distance(set(side)) for side in itertools.combinations(range(len(pooled)), len(a))]
        assert log_rank(a, b) == pytest.approx(sum(other >= found for other in every) / len(every))

    @given(DURATIONS, DURATIONS)
    def test_the_sides_are_alike(self, a: list[Duration], b: list[Duration]) -> None:
        assert log_rank(a, b) == pytest.approx(log_rank(b, a))

    def test_three_against_three_cannot_go_below_a_tenth(self) -> None:
        assert log_rank(until(9, [1, 2, 3]), until(9, [9, 9, 9])) == pytest.approx(0.1)

    def test_where_nobody_reached_the_target_nothing_speaks_for_a_difference(self) -> None:
        assert log_rank([Duration(1, False)] * 12, [Duration(2, False)] * 12) == 1.0

    def test_exact_and_approximate_agree_where_both_can_be_had(self) -> None:
        generator = np.random.default_rng(3)
        for _ in range(20):
            a, b = (until(1.5, generator.exponential(scale, 8)) for scale in (1.0, 1.5))
            samples = [
                scipy.stats.CensoredData(
                    [d.value for d in side if d.reached], right=[d.value for d in side if not d.reached]
                )
                for side in (a, b)
            ]
            assert log_rank(a, b) == pytest.approx(float(scipy.stats.logrank(*samples).pvalue), abs=0.06)


class TestRestrictedMean:
    def test_the_area_under_the_steps(self) -> None:
        """1 up to 2, 2/3 up to 4, then 1/3 up to 5: the duration of 3 is censored, so that half of 2/3 is left."""
        found = restricted_mean([Duration(2, True), Duration(3, False), Duration(4, True), Duration(6, False)], 5)
        area = 2 + 0.75 * 2 + 0.375 * 1
        variance = (0.75 * 2 + 0.375) ** 2 * 1 / (4 * 3) + 0.375**2 * 1 / (2 * 1)
        margin = scipy.stats.t.ppf(0.975, 3) * math.sqrt(variance * 4 / 3)
        assert (found.estimate, found.low) == (pytest.approx(area), pytest.approx(max(0, area - margin)))
        assert found.high == pytest.approx(min(5, area + margin))

    @given(st.lists(st.floats(0.1, 10), min_size=2, max_size=8), st.floats(1, 9))
    def test_where_every_seed_goes_on_to_the_horizon_it_is_the_mean_of_what_is_cut_off_there(
        self, values: list[float], horizon: float
    ) -> None:
        cut = mean_of([min(value, horizon) for value in values])
        found = restricted_mean(until(10.5, values), horizon)
        assert found.estimate == pytest.approx(cut.estimate)
        if found.low is not None and found.high is not None:
            assert cut.low is not None
            assert cut.high is not None
            assert found.low == pytest.approx(max(0.0, cut.low), abs=1e-6)
            assert found.high == pytest.approx(min(horizon, cut.high), abs=1e-6)
        else:
            assert np.std([min(value, horizon) for value in values]) == pytest.approx(0, abs=1e-6)

    @given(DURATIONS, st.integers(1, 20))
    def test_it_is_the_integral_of_the_survival_curve(self, durations: list[Duration], horizon: int) -> None:
        if horizon > known_until(durations):
            with pytest.raises(ValueError, match="known up to"):
                restricted_mean(durations, horizon)
        else:
            area = sum(share_left(durations, time) for time in range(horizon))
            assert restricted_mean(durations, horizon).estimate == pytest.approx(float(area))

    def test_one_seed_or_none_that_reached_the_target_shows_no_variation(self) -> None:
        assert restricted_mean([Duration(3, True)], 5) == Mean(3.0, None, None)
        assert restricted_mean(until(5, [7, 8, 9]), 5) == Mean(5.0, None, None)


class TestHorizon:
    def test_a_curve_that_comes_down_to_zero_is_known_for_good(self) -> None:
        assert known_until(until(9, [1, 2, 3])) == math.inf
        assert known_until([Duration(5, False), Duration(6, True)]) == math.inf

    def test_one_that_does_not_is_known_to_its_longest_duration(self) -> None:
        assert known_until([Duration(5, True), Duration(6, False)]) == 6
        assert known_until([Duration(6, True), Duration(6, False)]) == 6

    def test_two_curves_are_known_as_far_as_both_are(self) -> None:
        assert common_horizon(until(9, [1, 2, 3]), until(7, [8, 8, 8])) == 7
        assert common_horizon(until(9, [1, 10, 3]), until(7, [8, 8, 8])) == 7
        assert common_horizon(until(9, [1, 2]), until(9, [3, 4])) == 4


class TestRatio:
    def test_where_every_seed_reached_the_target_it_is_that_of_geometric_means(self) -> None:
        ours, theirs = [1.0, 2.0, 3.0], [2.0, 5.0, 4.0]
        found = ratio_of_durations([Duration(v, True) for v in ours], [Duration(v, True) for v in theirs])
        assert found == ratio_of_means(ours, theirs)

    def test_otherwise_of_restricted_means_with_the_errors_of_their_logarithms(self) -> None:
        ours, theirs = until(10, [2, 3, 4]), until(10, [8, 12, 9])
        found = ratio_of_durations(ours, theirs)
        assert found is not None
        errors = [np.std(cut, ddof=1) / math.sqrt(3) / np.mean(cut) for cut in ([2, 3, 4], [8, 10, 9])]
        error = math.hypot(*errors)
        freedom = error**4 / sum(e**4 / 2 for e in errors)
        margin = scipy.stats.t.ppf(0.975, freedom) * error
        assert found.estimate == pytest.approx(3 / 9)
        assert (found.low, found.high) == (
            pytest.approx(math.exp(math.log(1 / 3) - margin)),
            pytest.approx(math.exp(math.log(1 / 3) + margin)),
        )

    @given(DURATIONS, DURATIONS)
    def test_the_other_way_round_it_is_the_inverse(self, a: list[Duration], b: list[Duration]) -> None:
        there, back = ratio_of_durations(a, b), ratio_of_durations(b, a)
        assert (there is None) == (back is None)
        if there and back:
            assert there.estimate == pytest.approx(1 / back.estimate)
            assert there.low == pytest.approx(1 / back.high)
            assert there.p_value == pytest.approx(back.p_value)

    def test_without_variation_or_a_start_there_is_none(self) -> None:
        some, never = until(9, [1, 2, 10]), until(9, [10, 10, 10])
        assert ratio_of_durations(never, never) is None
        assert ratio_of_durations(some[:1], some) is None
        assert ratio_of_durations([], some) is None
        assert ratio_of_durations([Duration(0, True), Duration(1, True)], some) is None


Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def exponential(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return generator.exponential(size=shape)


def log_normal(spread: float) -> Draw:
    return lambda generator, shape: np.exp(spread * generator.standard_normal(shape))


class TestPromise:
    """The interval was chosen by this simulation, over 24 settings of distribution, censoring, ratio and seeds.

    The delta method with Welch's t held the true ratio in 93 to 99.8 % of studies; a percentile bootstrap over seeds in
    77 to 89 %.
    """

    @pytest.mark.parametrize("seeds", [3, 5])
    @pytest.mark.parametrize(
        ("draw", "ratio", "censored"),
        [
            (exponential, 1.0, 0.3),
            (exponential, 0.6, 0.1),
            (log_normal(0.2), 0.6, 0.3),
            (log_normal(0.2), 1.0, 0.6),
            (log_normal(0.8), 0.6, 0.3),
        ],
    )
    def test_95_of_100_intervals_hold_the_true_ratio_of_restricted_means(
        self, draw: Draw, ratio: float, censored: float, seeds: int
    ) -> None:
        """400 studies: three standard errors of the share are 3.3 %."""
        generator = np.random.default_rng(11)
        many = draw(generator, (200_000,))
        budget = float(np.quantile(many, 1 - censored))
        truth = np.minimum(ratio * many, budget).mean() / np.minimum(many, budget).mean()
        ours, theirs = ratio * draw(generator, (400, seeds)), draw(generator, (400, seeds))
        found = [
            ratio_of_restricted_means(until(budget, a), until(budget, b), budget)
            for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)
        ]
        held = np.mean([interval.low <= truth <= interval.high for interval in found if interval])
        assert held >= 0.917

    @pytest.mark.parametrize("censored", [0.0, 0.2, 0.5, 0.8])
    def test_without_a_difference_at_most_five_in_a_hundred_studies_claim_one(self, censored: float) -> None:
        """2,000 studies of 3 + 3 seeds: three standard errors of the share are 1.5 %."""
        generator = np.random.default_rng(12)
        costs = np.exp(0.3 * generator.standard_normal((2000, 2, 3)))
        budget = math.exp(0.3 * scipy.stats.norm.isf(censored)) if censored else math.inf
        studies = [(until(budget, a), until(budget, b)) for a, b in costs.tolist()]
        ratios = [ratio_of_durations(a, b) for a, b in studies]
        assert np.mean([ratio is not None and ratio.p_value <= 0.05 for ratio in ratios]) <= 0.065
        assert not any(log_rank(a, b) <= 0.05 for a, b in studies)
