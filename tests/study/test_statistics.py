"""Ratios with intervals, against another implementation and against their own promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from study.statistics import Ratio, holm, ratio_of_means

COSTS = st.lists(st.floats(1.0, 1e6), min_size=2, max_size=8).filter(lambda costs: max(costs) > 1.001 * min(costs))


class TestByHand:
    def test_two_and_two(self) -> None:
        """Logarithms 0 and 2 against 3 and 5: means 1 and 4, variances 2 and 2, error 2/2 + 2/2 = 2, freedom
        2^2 / (1 + 1) = 2, and t(0.975, 2) = 4.302653."""
        ratio = ratio_of_means([1.0, math.exp(2)], [math.exp(3), math.exp(5)])
        assert ratio is not None
        margin = 4.302652729911275 * math.sqrt(2)
        assert ratio.estimate == pytest.approx(math.exp(-3))
        assert ratio.low == pytest.approx(math.exp(-3 - margin))
        assert ratio.high == pytest.approx(math.exp(-3 + margin))
        assert not ratio.significant

    def test_of_geometric_means(self) -> None:
        ratio = ratio_of_means([2.0, 8.0], [1.0, 1.0, 1.0])
        assert ratio is not None
        assert ratio.estimate == pytest.approx(4.0)

    @pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [1.0, 2.0]), ([1.0, 2.0], [1.0]), ([1.0, 2.0], [])])
    def test_one_value_on_a_side_says_nothing_of_the_variation(self, ours: list[float], theirs: list[float]) -> None:
        assert ratio_of_means(ours, theirs) is None

    def test_without_any_variation_there_is_none(self) -> None:
        """Such as of seeds that were all at the target when they were first evaluated."""
        assert ratio_of_means([2.0, 2.0], [1.0, 1.0]) is None
        assert ratio_of_means([0.1, 0.1, 0.1], [0.3, 0.3, 0.3]) is None

    def test_variation_on_one_side_is_enough(self) -> None:
        ratio = ratio_of_means([2.0, 2.0, 2.0], [1.0, 1.1, 0.9])
        assert ratio is not None
        assert ratio.low < ratio.estimate < ratio.high

    @pytest.mark.parametrize(
        ("low", "high", "significant"),
        [(0.5, 0.9, True), (1.1, 2, True), (0.9, 1.1, False), (1, 2, False), (0.5, 1, False)],
    )
    def test_significant_leaves_out_one(self, low: float, high: float, significant: bool) -> None:
        assert Ratio(0.7, low, high, p_value=0.5).significant is significant


class TestAgainstScipy:
    @given(COSTS, COSTS, st.sampled_from([0.8, 0.95, 0.99]))
    def test_welch_on_logarithms(self, ours: list[float], theirs: list[float], confidence: float) -> None:
        ratio = ratio_of_means(ours, theirs, confidence)
        test = scipy.stats.ttest_ind(np.log(ours), np.log(theirs), equal_var=False)
        interval = test.confidence_interval(confidence)
        assert ratio is not None
        assert ratio.estimate == pytest.approx(scipy.stats.gmean(ours) / scipy.stats.gmean(theirs))
        assert math.log(ratio.low) == pytest.approx(interval.low, rel=1e-6, abs=1e-6)
        assert math.log(ratio.high) == pytest.approx(interval.high, rel=1e-6, abs=1e-6)
        assert ratio.p_value == pytest.approx(float(test.pvalue), rel=1e-6, abs=1e-9)

    @given(COSTS, COSTS)
    def test_the_other_way_round_it_is_the_inverse(self, ours: list[float], theirs: list[float]) -> None:
        there, back = ratio_of_means(ours, theirs), ratio_of_means(theirs, ours)
        assert there is not None
        assert back is not None
        assert there.estimate == pytest.approx(1 / back.estimate)
        assert math.log(there.low) == pytest.approx(-math.log(back.high), abs=1e-9)

    @given(COSTS, COSTS, st.floats(0.01, 100))
    def test_units_do_not_matter(self, ours: list[float], theirs: list[float], unit: float) -> None:
        plain, scaled = (
            ratio_of_means(ours, theirs),
            ratio_of_means([unit * c for c in ours], [unit * c for c in theirs]),
        )
        assert plain is not None
        assert scaled is not None
        assert scaled.estimate == pytest.approx(plain.estimate, rel=1e-6)
        assert math.log(scaled.high) == pytest.approx(math.log(plain.high), rel=1e-6, abs=1e-6)


class TestPromise:
    @pytest.mark.parametrize(
        ("truth", "spread_ours", "spread_theirs"), [(0.7, 0.1, 0.1), (1.0, 0.3, 0.3), (1.5, 0.05, 0.1)]
    )
    def test_95_of_100_intervals_of_three_seeds_hold_the_true_ratio(
        self, truth: float, spread_ours: float, spread_theirs: float
    ) -> None:
        """Costs of seeds are log-normal, 4000 studies of 3 + 3 seeds each."""
        generator = np.random.default_rng(2024)
        ours = truth * np.exp(spread_ours * generator.standard_normal((4000, 3)))
        theirs = np.exp(spread_theirs * generator.standard_normal((4000, 3)))
        ratios = [ratio_of_means(a, b) for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)]
        held = [ratio.low <= truth <= ratio.high for ratio in ratios if ratio]
        assert len(held) == 4000
        assert 0.93 <= np.mean(held) <= 0.975

    def test_without_a_difference_five_in_a_hundred_studies_claim_one(self) -> None:
        generator = np.random.default_rng(2024)
        costs = np.exp(0.2 * generator.standard_normal((4000, 2, 3)))
        claims = [ratio.significant for a, b in costs.tolist() if (ratio := ratio_of_means(a, b))]
        assert 0.025 <= np.mean(claims) <= 0.07


P_VALUES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6)


class TestHolm:
    def test_a_published_example(self) -> None:
        """R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    def test_of_none_there_are_none_and_one_stays_as_it_is(self) -> None:
        assert holm([]) == []
        assert holm([0.04]) == [0.04]

    @given(P_VALUES, st.floats(0.001, 0.5))
    def test_it_rejects_what_the_step_down_procedure_rejects(self, p_values: list[float], level: float) -> None:
        """From the smallest up, each against level / (how many are left), until one is not rejected."""
        margins = [p * (len(p_values) - rank) - level for rank, p in enumerate(sorted(p_values))]
        if any(abs(margin) < 1e-9 for margin in margins):
            return  # on the edge rounding decides
        rejected = next((rank for rank, margin in enumerate(margins) if margin > 0), len(p_values))
        assert sum(p <= level for p in holm(p_values)) == rejected

    @given(P_VALUES)
    def test_it_keeps_the_order_and_lies_between_the_p_value_and_bonferronis(self, p_values: list[float]) -> None:
        corrected = holm(p_values)
        in_order = [found for _, found in sorted(zip(p_values, corrected, strict=True))]
        assert in_order == sorted(in_order)
        for p, found in zip(p_values, corrected, strict=True):
            assert p <= found <= min(1.0, len(p_values) * p)

    def test_without_any_difference_five_in_a_hundred_studies_of_five_comparisons_claim_one(self) -> None:
        studies = np.random.default_rng(7).uniform(size=(2000, 5))
        claims = np.mean([min(holm(p_values)) <= 0.05 for p_values in studies.tolist()])
        assert claims <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)
