"""Differences of error rates: against closed forms and a program with loops, and against their own promise."""

from __future__ import annotations

import csv
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from study import significance
from study.significance import Difference, Scored, paired_bootstrap, rate_interval

Side = list[Scored]
MEASURED = Path(__file__).parent / "character_errors.tsv"  # of small recognisers of the embedded Spanish, dev and test


def side(errors: Sequence[Sequence[int]] | np.ndarray, lengths: Sequence[int] | np.ndarray) -> Side:
    ids = [f"u{place}" for place in range(len(lengths))]
    return [Scored(ids, np.asarray(seed), np.asarray(lengths)) for seed in errors]


def unknown(lengths: Sequence[int] | np.ndarray) -> list[str]:
    return [""] * len(lengths)


def simulated(
    generator: np.random.Generator,
    seeds: tuple[int, int],
    speakers: int,
    between_seeds: float,
    difference: float = 0.0,
) -> tuple[Side, Side, list[str]]:
    """Two arms whose rates differ by this much.

    Speakers have different numbers of utterances, utterances different lengths. The rate varies with the speaker and
    the utterance (for all alike), with the arm and the speaker, with the seed, and with the seed and the utterance.
    """
    spoken = np.maximum(1, generator.lognormal(math.log(10), 0.5, speakers).astype(int))
    speaker_U = np.repeat(np.arange(speakers), spoken)
    lengths_U = np.maximum(1, generator.lognormal(2.2, 0.5, len(speaker_U)).astype(int))
    common_U = 0.35 + generator.normal(0, 0.04, speakers)[speaker_U] + generator.normal(0, 0.06, len(speaker_U))
    arms = []
    for size, added in zip(seeds, (difference, 0.0), strict=True):
        arm_U = common_U + added + generator.normal(0, 0.02, speakers)[speaker_U]
        noise_SU = generator.normal(0, between_seeds, (size, 1)) + generator.normal(0, 0.06, (size, len(speaker_U)))
        arms.append(side(generator.binomial(lengths_U, np.clip(arm_U + noise_SU, 0, 1)), lengths_U))
    return arms[0], arms[1], [f"speaker {number}" for number in speaker_U]


@st.composite
def compared(draw: st.DrawFn) -> tuple[Side, Side, list[str]]:
    """Small sets with speakers, some unknown, and one to three seeds a side."""
    size = draw(st.integers(2, 8))
    lengths = draw(st.lists(st.integers(1, 20), min_size=size, max_size=size))
    errors = st.lists(st.lists(st.integers(0, 25), min_size=size, max_size=size), min_size=1, max_size=3)
    blocks = draw(st.lists(st.sampled_from(["", "ana", "eva", "leo"]), min_size=size, max_size=size))
    return side(draw(errors), lengths), side(draw(errors), lengths), blocks


class TestClosedForms:
    def test_one_seed_and_utterances_of_equal_length_are_a_paired_t_test(self) -> None:
        generator = np.random.default_rng(1)
        lengths = np.full(12, 50)
        ours, theirs = generator.binomial(50, 0.3, 12), generator.binomial(50, 0.36, 12)
        found = paired_bootstrap(side([ours], lengths), side([theirs], lengths), unknown(lengths), replicates=100_000)
        expected = scipy.stats.ttest_rel(ours / 50, theirs / 50)
        interval = expected.confidence_interval()
        assert found.estimate == pytest.approx((ours - theirs).mean() / 50)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=0.02, abs=0.001)
        assert found.p_value == pytest.approx(expected.pvalue, rel=0.05)

    @pytest.mark.parametrize("sizes", [(2, 2), (3, 3), (5, 2), (4, 5)])
    def test_errors_that_vary_with_the_seed_alone_are_a_two_sample_t_test(self, sizes: tuple[int, int]) -> None:
        generator = np.random.default_rng(sum(sizes))
        lengths = np.full(7, 100)
        ours, theirs = (generator.integers(20, 40, size) for size in sizes)
        found = paired_bootstrap(*(side(np.outer(s, np.ones(7)), lengths) for s in (ours, theirs)), unknown(lengths))
        expected = scipy.stats.ttest_ind(ours / 100, theirs / 100)
        interval = expected.confidence_interval()
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
        assert found.p_value == pytest.approx(expected.pvalue)

    def test_the_rate_of_one_seed_on_utterances_of_equal_length_has_the_interval_of_a_mean(self) -> None:
        lengths = np.full(15, 40)
        errors = np.random.default_rng(2).binomial(40, 0.25, 15)
        found = rate_interval(side([errors], lengths), unknown(lengths), replicates=100_000)
        margin = scipy.stats.t.ppf(0.975, 14) * np.std(errors / 40, ddof=1) / math.sqrt(15)
        assert found.estimate == pytest.approx(errors.mean() / 40)
        assert found.low == pytest.approx(found.estimate - margin, rel=0.01)
        assert found.high == pytest.approx(found.estimate + margin, rel=0.01)

    def test_rates_are_of_the_whole_set_and_a_mean_over_seeds(self) -> None:
        found = paired_bootstrap(side([[1, 9], [3, 9]], [2, 18]), side([[0, 5]], [2, 18]), ["", ""])
        assert found.estimate == pytest.approx((10 / 20 + 12 / 20) / 2 - 5 / 20)


def by_loops(ours: Side, theirs: Side, blocks: Sequence[str], replicates: int) -> tuple[float, float, float]:
    """Estimate and interval by the same method, written with loops and dictionaries, with other random numbers."""
    chance = random.Random(5)
    places: dict[str, list[int]] = {}
    for place, block in enumerate(blocks):
        places.setdefault(block or f"utterance {place}", []).append(place)

    def rate(result: Scored, drawn: list[str]) -> float:
        chosen = [place for name in drawn for place in places[name]]
        return sum(int(result.errors[p]) for p in chosen) / sum(int(result.lengths[p]) for p in chosen)

    whole = list(places)
    draws = [chance.choices(whole, k=len(whole)) for _ in range(replicates)]
    drawn = {id(result): [rate(result, names) for names in draws] for result in (*ours, *theirs)}
    mean_differences = [
        statistics.fmean(drawn[id(r)][n] for r in ours) - statistics.fmean(drawn[id(r)][n] for r in theirs)
        for n in range(replicates)
    ]
    spoken = [sum(int(ours[0].lengths[p]) for p in places[name]) for name in whole]
    effective = sum(spoken) ** 2 / sum(length**2 for length in spoken)
    unbiased = effective / (effective - 1)
    squares = noise_squares = 0.0
    for arm in (ours, theirs):
        rates = [rate(r, whole) for r in arm]
        squares += statistics.variance(rates) * (len(arm) - 1)
        spread = [statistics.fmean(drawn[id(r)]) for r in arm]
        for n in range(replicates):
            deviations = [drawn[id(r)][n] - mean for r, mean in zip(arm, spread, strict=True)]
            noise_squares += statistics.variance(deviations) * (len(arm) - 1) / replicates
    freedom = len(ours) + len(theirs) - 2
    share = 1 / len(ours) + 1 / len(theirs)
    of_blocks = unbiased * statistics.pvariance(mean_differences)
    of_noise = unbiased * share * noise_squares / freedom
    quantile = scipy.stats.t.ppf(0.975, effective - 1)
    again = math.hypot(
        quantile * math.sqrt(max(0.0, of_blocks - of_noise)),
        scipy.stats.t.ppf(0.975, freedom) * math.sqrt(share * squares / freedom),
    )
    margin = max(again, quantile * math.sqrt(of_blocks))
    estimate = statistics.fmean(rate(r, whole) for r in ours) - statistics.fmean(rate(r, whole) for r in theirs)
    return estimate, estimate - margin, estimate + margin


class TestAgainstLoops:
    @pytest.mark.parametrize("seeds", [(2, 2), (3, 2)])
    def test_estimate_and_interval(self, seeds: tuple[int, int]) -> None:
        ours, theirs, blocks = simulated(np.random.default_rng(7), seeds, 8, 0.01, 0.05)
        blocks[:5] = [""] * 5
        found = paired_bootstrap(ours, theirs, blocks, replicates=20_000)
        expected = by_loops(ours, theirs, blocks, 2000)
        assert found.estimate == pytest.approx(expected[0])
        assert found.high - found.low == pytest.approx(expected[2] - expected[1], rel=0.05)
        assert found.low + found.high == pytest.approx(2 * expected[0])


class TestInvariants:
    @settings(max_examples=40, deadline=None)
    @given(compared())
    def test_swapped_sides_give_the_opposite(self, case: tuple[Side, Side, list[str]]) -> None:
        ours, theirs, blocks = case
        if len({b or place for place, b in enumerate(blocks)}) > 1:
            one = paired_bootstrap(ours, theirs, blocks, 100)
            other = paired_bootstrap(theirs, ours, blocks, 100)
            assert (other.estimate, other.low, other.high) == pytest.approx((-one.estimate, -one.high, -one.low))
            assert other.p_value == pytest.approx(one.p_value, abs=1e-6)

    @settings(max_examples=40, deadline=None)
    @given(compared(), st.integers(1, 9))
    def test_errors_that_both_sides_make_do_not_count(self, case: tuple[Side, Side, list[str]], more: int) -> None:
        ours, theirs, blocks = case
        added = more * np.arange(len(blocks))
        found = paired_bootstrap(ours, theirs, blocks, 100)
        shifted = [[replace(r, errors=r.errors + added) for r in s] for s in (ours, theirs)]
        again = paired_bootstrap(shifted[0], shifted[1], blocks, 100)
        ends = (found.estimate, found.low, found.high)
        assert (again.estimate, again.low, again.high) == pytest.approx(ends, abs=1e-6)

    @settings(max_examples=40, deadline=None)
    @given(compared())
    def test_p_is_below_5_percent_where_the_interval_leaves_out_zero(self, case: tuple[Side, Side, list[str]]) -> None:
        found = paired_bootstrap(*case, replicates=100)
        assert found.low <= found.estimate <= found.high
        assert 0 < found.p_value <= 1
        if abs(found.p_value - 0.05) > 1e-6:
            assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)

    @settings(max_examples=40, deadline=None)
    @given(compared())
    def test_a_system_does_not_differ_from_itself(self, case: tuple[Side, Side, list[str]]) -> None:
        ours, _, blocks = case
        found = paired_bootstrap(ours, ours, blocks, 100)
        assert (found.estimate, found.p_value) == (0.0, 1.0)
        assert found.low == pytest.approx(-found.high)

    def test_models_that_write_the_same_leave_no_doubt(self) -> None:
        one = side([[1, 2, 3]], [5, 5, 5])
        assert paired_bootstrap(one, one, unknown([5, 5, 5])) == Difference(0.0, 0.0, 0.0, 1.0)

    def test_the_same_seed_gives_the_same_result_and_another_nearly_the_same(self) -> None:
        case = simulated(np.random.default_rng(3), (1, 1), 20, 0.01, 0.05)
        found = paired_bootstrap(*case)
        assert paired_bootstrap(*case) == found
        assert paired_bootstrap(*case, seed=1) != found
        assert paired_bootstrap(*case, seed=1).low == pytest.approx(found.low, abs=0.1 * (found.high - found.low))

    def test_draws_in_parts_are_the_same_draws(self, monkeypatch: pytest.MonkeyPatch) -> None:
        case = simulated(np.random.default_rng(3), (2, 2), 9, 0.01)
        at_once = paired_bootstrap(*case, replicates=100)
        monkeypatch.setattr(significance, "DRAWS_AT_ONCE", 60)
        assert paired_bootstrap(*case, replicates=100) == at_once

    def test_one_speaker_is_as_good_as_none(self) -> None:
        ours, theirs, blocks = simulated(np.random.default_rng(4), (2, 2), 9, 0.01)
        alone = paired_bootstrap(ours, theirs, ["ana"] * len(blocks))
        assert alone == paired_bootstrap(ours, theirs, unknown(blocks))

    def test_speakers_that_differ_widen_the_interval(self) -> None:
        ours, theirs = (side([[errors] * 10 + [20 - errors] * 10], [40] * 20) for errors in (5, 10))
        known = paired_bootstrap(ours, theirs, ["ana"] * 10 + ["eva"] * 10)
        without = paired_bootstrap(ours, theirs, unknown([40] * 20))
        assert known.high - known.low > 3 * (without.high - without.low)


REGIMES = [
    ((2, 2), 5, 0.01),
    ((5, 5), 5, 0.0),
    ((2, 2), 10, 0.0),
    ((3, 3), 10, 0.03),
    ((2, 2), 30, 0.03),
    ((2, 5), 30, 0.01),
    ((3, 3), 30, 0.01),
    ((5, 5), 30, 0.03),
]  # seeds, speakers, deviation between seeds
CASES = 150


class TestPromise:
    @pytest.fixture(scope="class")
    def null(self) -> list[list[Difference]]:
        """Of arms that do not differ, in each regime."""
        generator = np.random.default_rng(11)
        return [
            [paired_bootstrap(*simulated(generator, *regime), replicates=150) for _ in range(CASES)]
            for regime in REGIMES
        ]

    def test_one_in_twenty_at_most_is_called_different_without_cause(self, null: list[list[Difference]]) -> None:
        wrong = [sum(found.p_value < 0.05 for found in cases) for cases in null]
        assert sum(wrong) <= scipy.stats.binom.ppf(0.99, CASES * len(REGIMES), 0.05)
        assert max(wrong) <= scipy.stats.binom.ppf(0.999, CASES, 0.05)

    def test_the_test_is_not_idle(self, null: list[list[Difference]]) -> None:
        assert sum(found.p_value < 0.05 for cases in null for found in cases) > 0.015 * CASES * len(REGIMES)

    @pytest.mark.parametrize(("seeds", "speakers", "between_seeds"), [REGIMES[3], REGIMES[4], REGIMES[6], REGIMES[7]])
    def test_the_interval_holds_a_known_difference(
        self, seeds: tuple[int, int], speakers: int, between_seeds: float
    ) -> None:
        generator = np.random.default_rng(12)
        found = [
            paired_bootstrap(*simulated(generator, seeds, speakers, between_seeds, -0.08), replicates=150)
            for _ in range(200)
        ]
        assert 0.90 <= np.mean([f.low <= -0.08 <= f.high for f in found]) <= 0.99

    @pytest.mark.parametrize(("seeds", "speakers"), [(1, 20), (3, 20), (3, 8)])
    def test_the_interval_of_a_rate_holds_it(self, seeds: int, speakers: int) -> None:
        generator = np.random.default_rng(13)
        between_seeds = 0.0 if seeds == 1 else 0.02
        held = 0
        for _ in range(200):
            ours, _, blocks = simulated(generator, (seeds, 1), speakers, between_seeds)
            found = rate_interval(ours, blocks, replicates=150)
            assert found.low is not None
            assert found.high is not None
            held += found.low <= 0.35 <= found.high
        assert 0.90 <= held / 200 <= 0.99

    def test_a_clear_difference_is_found(self) -> None:
        generator = np.random.default_rng(14)
        found = [paired_bootstrap(*simulated(generator, (3, 3), 20, 0.01, -0.1), replicates=150) for _ in range(50)]
        assert sum(f.p_value < 0.05 and f.estimate < 0 for f in found) >= 48

    def test_more_seeds_find_smaller_differences(self) -> None:
        generator = np.random.default_rng(15)
        power = [
            np.mean(
                [paired_bootstrap(*simulated(generator, n, 20, 0.01, -0.04), 150).p_value < 0.05 for _ in range(80)]
            )
            for n in ((2, 2), (5, 5))
        ]
        assert power[1] > power[0] + 0.2

    def test_one_seed_a_side_says_nothing_of_other_seeds(self) -> None:
        """Two models of one method differ as their seeds do, and the interval is about these two."""
        generator = np.random.default_rng(16)
        found = [paired_bootstrap(*simulated(generator, (1, 1), 30, 0.05), replicates=150) for _ in range(100)]
        assert sum(f.p_value < 0.05 for f in found) > 30

    def test_a_side_with_one_seed_varies_as_the_other(self) -> None:
        generator = np.random.default_rng(17)
        found = [paired_bootstrap(*simulated(generator, (1, 3), 30, 0.05), replicates=150) for _ in range(200)]
        assert sum(f.p_value < 0.05 for f in found) <= scipy.stats.binom.ppf(0.999, 200, 0.05)


class TestMeasured:
    """On what real recognisers wrote."""

    @pytest.fixture(scope="class")
    def columns(self) -> dict[str, np.ndarray]:
        with MEASURED.open(encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
        return {name: np.array([int(row[name]) for row in rows]) for name in rows[0] if name != "id"}

    @pytest.mark.parametrize("seeds", [1, 2])
    def test_outputs_shared_out_at_random_do_not_differ(self, columns: dict[str, np.ndarray], seeds: int) -> None:
        errors = np.stack([columns[f"supervised-{number}"] for number in range(1, 2 * seeds + 1)])
        lengths = columns["characters"]
        generator = np.random.default_rng(18)
        wrong = 0
        for _ in range(200):
            shared = generator.permuted(errors, axis=0)
            found = paired_bootstrap(
                side(shared[:seeds], lengths), side(shared[seeds:], lengths), unknown(lengths), 150
            )
            wrong += found.p_value < 0.05
        assert wrong <= scipy.stats.binom.ppf(0.999, 200, 0.05)

    def test_recognisers_that_were_pre_trained_and_trained_longer_are_better(
        self, columns: dict[str, np.ndarray]
    ) -> None:
        arms = [[columns[f"{arm}-{n}"] for n in (1, 2)] for arm in ("pretrained", "supervised")]
        found = paired_bootstrap(*(side(arm, columns["characters"]) for arm in arms), unknown(columns["characters"]))
        assert -0.16 < found.low < found.high < -0.05
        assert found.p_value < 0.01


class TestRefusals:
    def refused(self, ours: Side, theirs: Side, blocks: Sequence[str]) -> str:
        with pytest.raises(ValueError, match=r"\w") as caught:
            paired_bootstrap(ours, theirs, blocks)
        return str(caught.value)

    def test_another_utterance_is_named(self) -> None:
        one = side([[1, 2, 3]], [5, 5, 5])
        other = [replace(one[0], ids=["u0", "other", "else"])]
        assert self.refused(one, other, [""] * 3) == "utterance 2 is u1 in result 1 and other in result 2"

    @pytest.mark.parametrize("longer_first", [True, False])
    def test_a_missing_utterance_is_named(self, longer_first: bool) -> None:
        long, short = side([[1, 2, 3]], [5, 5, 5]), side([[1, 2]], [5, 5])
        ours, theirs = (long, short) if longer_first else (short, long)
        where = 1 if longer_first else 2
        expected = f"utterance u2 is in result {where} of results 1 and 2 only"
        assert self.refused(ours, theirs, [""] * len(ours[0].ids)) == expected

    def test_another_reference_is_named(self) -> None:
        found = self.refused(side([[1, 2]], [5, 5]), side([[1, 2], [1, 2]], [5, 6]), ["", ""])
        assert found == "the reference of utterance u1 has length 5 in result 1 and 6 in result 2"

    def test_too_few_speakers(self) -> None:
        assert self.refused(side([[1, 2]], [5, 5]), side([[1, 2]], [5, 5]), [""]) == (
            "1 speakers for 2 utterances; each needs one"
        )

    def test_a_side_without_results(self) -> None:
        assert "a side has no results" in self.refused(side([[1, 2]], [5, 5]), [], ["", ""])

    @pytest.mark.parametrize("lengths", [[5], [0, 0], [5, 0]])
    def test_what_gives_no_interval(self, lengths: list[int]) -> None:
        one = side([[0] * len(lengths)], lengths)
        assert "two utterances with words" in self.refused(one, one, unknown(lengths))
