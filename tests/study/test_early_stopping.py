"""Early stopping: against slow implementations that look at everything again, by invariants, and on real curves."""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from study.early_stopping import (
    AshaConfig,
    EarlyStopper,
    EarlyStoppingConfig,
    MedianConfig,
    crowding_distance,
    insert_into_fronts,
)
from tests.golden.curves import RecordedCurve, recorded

NINTHS = AshaConfig(reduction_factor=3, first_rung=1 / 9)
Rule = AshaConfig | MedianConfig
Point = tuple[float, ...]


@dataclass(frozen=True)
class Seen:
    """An evaluation as a study hands it over."""

    trial: str
    group: str
    progress: float
    values: Point


def decisions(config: Rule, log: Sequence[Seen]) -> list[bool]:
    stopper = EarlyStopper(config)
    return [stopper.observe(seen.trial, seen.group, seen.progress, seen.values) for seen in log]


def at(progress: float, *values: float) -> list[Seen]:
    """One trial after another, all at the same progress, with one objective."""
    return [Seen(f"trial {number}", "", progress, (value,)) for number, value in enumerate(values)]


# ---- the rules, written down slowly ------------------------------------------------------------------------------


def counted(log: Sequence[Seen], decided: Sequence[bool]) -> list[Seen]:
    """What counts of a log: neither what a stopped trial said after its end, nor what was known."""
    last: dict[str, float] = {}
    counting = []
    for seen, stopped in zip(log, decided, strict=True):
        if seen.progress > last.get(seen.trial, 0.0):
            counting.append(seen)
            last[seen.trial] = math.inf if stopped else seen.progress
    return counting


def finite_or_last(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def best_of(evaluations: Sequence[Seen]) -> float:
    return min(finite_or_last(seen.values[0]) for seen in evaluations)


def up_to(log: Sequence[Seen], trial: str, progress: float) -> list[Seen]:
    return [seen for seen in log if seen.trial == trial and seen.progress <= progress]


def beats(a: Point, b: Point) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True)) and a != b


def peeled(points: Sequence[Point]) -> Iterator[list[int]]:
    """Indices of the points by front: what none of the remaining beats, again and again."""
    left = list(range(len(points)))
    while left:
        front = [i for i in left if not any(beats(points[j], points[i]) for j in left)]
        yield front
        left = [i for i in left if i not in front]


def ahead_of_last(points: Sequence[Point]) -> int:
    """How many points are ahead of the last one, by front and then by crowding distance."""
    if math.inf in points[-1]:
        return sum(math.inf not in point for point in points)
    ahead = 0
    finite = [point for point in points if math.inf not in point]
    for front in peeled(finite):
        if len(finite) - 1 in front:
            distance = textbook_crowding([finite[i] for i in front])
            return ahead + sum(other > distance[-1] for other in distance)
        ahead += len(front)
    raise AssertionError("every point is in a front")


def textbook_crowding(front: Sequence[Point]) -> list[float]:
    """Deb et al. 2002, the procedure of section III-B."""
    distance = [0.0] * len(front)
    for m in range(len(front[0])):
        order = sorted(range(len(front)), key=lambda i: front[i][m])
        extent = front[order[-1]][m] - front[order[0]][m]
        if extent == 0:
            continue
        distance[order[0]] = distance[order[-1]] = math.inf
        for before, i, after in zip(order, order[1:], order[2:], strict=False):
            distance[i] += (front[after][m] - front[before][m]) / extent
    return distance


def asha_rejects(config: AshaConfig, log: Sequence[Seen]) -> bool:
    """Whether the last evaluation of the log stops its trial; all before it count."""
    latest, rung = log[-1], config.first_rung
    earlier = up_to(log[:-1], latest.trial, 1.0)
    rejected = False
    while rung < 1 - 1e-9:
        if latest.progress >= rung - 1e-9 and not any(seen.progress >= rung - 1e-9 for seen in earlier):
            points, entered = [], set()
            for seen in log:
                if seen.group == latest.group and seen.trial not in entered and seen.progress >= rung - 1e-9:
                    entered.add(seen.trial)
                    rest = tuple(map(finite_or_last, seen.values[1:]))
                    points.append((best_of(up_to(log, seen.trial, seen.progress)), *rest))
            places = math.ceil(len(points) / config.reduction_factor)
            rejected |= len(points) >= config.reduction_factor and ahead_of_last(points) >= places
        rung *= config.rung_spacing or config.reduction_factor
    return rejected


def median_rejects(config: MedianConfig, log: Sequence[Seen]) -> bool:
    """Whether the last evaluation of the log stops its trial; all before it count."""
    latest = log[-1]
    others = {seen.trial for seen in log if seen.group == latest.group and seen.progress >= latest.progress - 1e-9}
    until = [up_to(log, trial, latest.progress + 1e-9) for trial in others - {latest.trial}]
    means = [statistics.fmean(finite_or_last(seen.values[0]) for seen in curve) for curve in until if curve]
    enough = latest.progress >= config.first_look - 1e-9 and len(means) >= config.min_trials
    return enough and best_of(up_to(log, latest.trial, 1.0)) > statistics.median(means)


def slow_decisions(config: Rule, log: Sequence[Seen]) -> list[bool]:
    decided: list[bool] = []
    for number, seen in enumerate(log):
        before = counted(log[:number], decided)
        known = [stopped for old, stopped in zip(log[:number], decided, strict=True) if old.trial == seen.trial]
        if any(known) or any(old.trial == seen.trial and old.progress >= seen.progress for old in before):
            decided.append(any(known))
        else:
            now = [*before, seen]
            rejected = asha_rejects(config, now) if isinstance(config, AshaConfig) else median_rejects(config, now)
            decided.append(rejected and seen.progress < 1)
    return decided


# Multiples of 1/18 meet the rungs of every reduction factor, and few values make many ties.
PROGRESS = st.integers(1, 18).map(lambda eighteenths: eighteenths / 18)
FINITE = st.integers(0, 6).map(float)
VALUES = FINITE | st.sampled_from([math.nan, math.inf, -math.inf])
ASHA = st.builds(
    AshaConfig,
    reduction_factor=st.integers(2, 4),
    first_rung=st.sampled_from([1 / 18, 1 / 9, 1 / 6]),
    rung_spacing=st.none() | st.sampled_from([1.5, 2.0, 3.0]),
)
MEDIAN = st.builds(MedianConfig, first_look=st.sampled_from([1 / 9, 0.2]), min_trials=st.integers(1, 3))
RULES = ASHA | MEDIAN


def logs(values: st.SearchStrategy[float] = VALUES, objectives: int = 1) -> st.SearchStrategy[list[Seen]]:
    """Logs of up to 15 trials in two groups, with evaluations in any order: relayed ones, and ones after a stop."""
    trials = st.sampled_from("abcdefghijklmno")
    points = st.tuples(*[values] * objectives)
    seen = st.builds(lambda t, p, v: Seen(t, "early" if t < "l" else "late", p, v), trials, PROGRESS, points)
    return st.lists(seen, max_size=40)


class TestSettings:
    def test_the_kind_chooses_the_rule(self) -> None:
        adapter: TypeAdapter[Rule] = TypeAdapter(EarlyStoppingConfig)
        assert adapter.validate_python({"kind": "asha"}) == AshaConfig()
        assert adapter.validate_python({"kind": "median", "min_trials": 3}) == MedianConfig(min_trials=3)

    @pytest.mark.parametrize(
        "settings",
        [
            {"kind": "asha", "reduction_factor": 1},
            {"kind": "asha", "first_rung": 1.0},
            {"kind": "asha", "rung_spacing": 1.0},
            {"kind": "median", "first_look": 0.0},
            {"kind": "median", "min_trials": 0},
            {"kind": "median", "reduction_factor": 3},
        ],
    )
    def test_what_makes_no_sense_is_refused(self, settings: dict[str, float]) -> None:
        with pytest.raises(ValidationError):
            TypeAdapter(EarlyStoppingConfig).validate_python(settings)


class TestAgainstSlowImplementations:
    @settings(deadline=None)
    @given(ASHA, logs())
    def test_asha(self, config: AshaConfig, log: list[Seen]) -> None:
        assert decisions(config, log) == slow_decisions(config, log)

    @settings(deadline=None)
    @given(ASHA, st.sampled_from([2, 3]).flatmap(lambda objectives: logs(objectives=objectives)))
    def test_asha_with_several_objectives(self, config: AshaConfig, log: list[Seen]) -> None:
        assert decisions(config, log) == slow_decisions(config, log)

    @settings(deadline=None)
    @given(MEDIAN, logs())
    def test_median(self, config: MedianConfig, log: list[Seen]) -> None:
        """Values of two trials never tie, for means that are equal may be rounded in two ways."""
        log = [
            Seen(
                seen.trial, seen.group, seen.progress, (seen.values[0] + math.sqrt(2) * 2.0 ** (95 - ord(seen.trial)),)
            )
            for seen in log
        ]
        assert decisions(config, log) == slow_decisions(config, log)

    @settings(deadline=None)
    @given(st.integers(2, 5), st.lists(FINITE, min_size=1, max_size=40))
    def test_a_trial_goes_on_at_or_below_the_quantile_of_its_rung(self, factor: int, values: list[float]) -> None:
        """numpy's quantile, which interpolates between the values of the rung."""
        config = AshaConfig(reduction_factor=factor, first_rung=0.5)
        for number, stopped in enumerate(decisions(config, at(0.5, *values))):
            rung = values[: number + 1]
            assert stopped == (len(rung) >= factor and rung[-1] > np.quantile(rung, 1 / factor) + 1e-9)


class TestFronts:
    @settings(deadline=None)
    @given(st.integers(1, 3).flatmap(lambda size: st.lists(st.tuples(*[FINITE] * size), min_size=1, max_size=30)))
    def test_points_put_in_one_by_one_make_the_fronts_that_peeling_makes(self, points: list[Point]) -> None:
        fronts: list[np.ndarray] = []
        for number, point in enumerate(points, start=1):
            level = insert_into_fronts(np.array([point]), fronts)
            assert tuple(fronts[level][-1]) == point
            expected = [sorted(points[i] for i in front) for front in peeled(points[:number])]
            assert [sorted(map(tuple, front)) for front in fronts] == expected

    def test_crowding_by_hand(self) -> None:
        """(1, 2) has (3 - 0) / 4 + (4 - 1) / 4, and (3, 1) has (4 - 1) / 4 + (2 - 0) / 4."""
        front = np.array([[0.0, 4.0], [1.0, 2.0], [3.0, 1.0], [4.0, 0.0]])
        assert crowding_distance(front).tolist() == [math.inf, 1.5, 1.25, math.inf]

    def test_an_objective_in_which_all_are_equal_adds_no_room(self) -> None:
        assert crowding_distance(np.array([[1.0, 7.0], [1.0, 7.0], [1.0, 7.0]])).tolist() == [0.0, 0.0, 0.0]

    @settings(deadline=None)
    @given(ASHA, logs())
    def test_a_second_objective_that_is_constant_changes_nothing(self, config: AshaConfig, log: list[Seen]) -> None:
        both = [Seen(seen.trial, seen.group, seen.progress, (*seen.values, 5.0)) for seen in log]
        assert decisions(config, both) == decisions(config, log)


class TestForEveryRule:
    @settings(deadline=None)
    @given(RULES, logs(), st.integers(0, 40))
    def test_a_study_that_was_killed_decides_as_if_it_had_not_been(
        self, config: Rule, log: list[Seen], killed: int
    ) -> None:
        """The ledger holds what counted; a new stopper gets that, and then the rest."""
        uninterrupted = decisions(config, log)
        ledger = counted(log[:killed], uninterrupted[:killed])
        assert decisions(config, [*ledger, *log[killed:]])[len(ledger) :] == uninterrupted[killed:]

    @settings(deadline=None)
    @given(RULES, logs())
    def test_relaying_every_curve_after_each_evaluation_changes_nothing(self, config: Rule, log: list[Seen]) -> None:
        stopper = EarlyStopper(config)
        for number, (seen, expected) in enumerate(zip(log, decisions(config, log), strict=True)):
            assert stopper.observe(seen.trial, seen.group, seen.progress, seen.values) == expected
            for old in up_to(log[: number + 1], seen.trial, 1.0):
                assert stopper.observe(old.trial, old.group, old.progress, old.values) == expected

    @settings(deadline=None)
    @given(RULES, logs())
    def test_stopped_is_stopped_for_ever_and_counts_no_more(self, config: Rule, log: list[Seen]) -> None:
        decided = decisions(config, log)
        stopped: set[str] = set()
        for seen, decision in zip(log, decided, strict=True):
            assert decision or seen.trial not in stopped
            stopped |= {seen.trial} if decision else set()
        assert decisions(config, counted(log, decided)).count(True) == len(stopped)

    @settings(deadline=None)
    @given(RULES, logs())
    def test_a_finished_trial_is_not_stopped(self, config: Rule, log: list[Seen]) -> None:
        finished = [Seen(seen.trial, seen.group, 1.0, seen.values) for seen in log]
        assert not any(decisions(config, finished))

    @settings(deadline=None)
    @given(RULES, logs())
    def test_groups_do_not_see_one_another(self, config: Rule, log: list[Seen]) -> None:
        decided = decisions(config, log)
        for group in ("early", "late"):
            alone = [seen for seen in log if seen.group == group]
            expected = [stop for seen, stop in zip(log, decided, strict=True) if seen.group == group]
            assert decisions(config, alone) == expected

    @settings(deadline=None)
    @given(RULES, logs(FINITE))
    def test_the_unit_of_the_metric_does_not_matter(self, config: Rule, log: list[Seen]) -> None:
        eighths = [Seen(seen.trial, seen.group, seen.progress, (seen.values[0] / 8,)) for seen in log]
        assert decisions(config, eighths) == decisions(config, log)

    @settings(deadline=None)
    @given(ASHA, logs(FINITE))
    def test_only_the_order_of_the_values_matters_to_asha(self, config: AshaConfig, log: list[Seen]) -> None:
        powers = [Seen(seen.trial, seen.group, seen.progress, (math.exp(seen.values[0]),)) for seen in log]
        assert decisions(config, powers) == decisions(config, log)

    @pytest.mark.parametrize("config", [AshaConfig(), MedianConfig()])
    @pytest.mark.parametrize("progress", [0.0, -0.1, 1.1, math.nan])
    def test_a_share_is_above_zero_and_at_most_one(self, config: Rule, progress: float) -> None:
        with pytest.raises(ValueError, match="progress"):
            decisions(config, at(progress, 0.5))


class TestAshaByHand:
    def test_until_there_are_as_many_as_the_reduction_factor_all_go_on(self) -> None:
        assert decisions(NINTHS, at(1 / 9, 1.0, 2.0, 3.0)) == [False, False, True]

    def test_the_share_that_goes_on_is_one_of_the_reduction_factor(self) -> None:
        """In whatever order 300 different values come, the last is stopped unless it is among the best 100."""
        values = np.random.default_rng(0).permutation(300).astype(float)
        for last in (0.0, 99.0, 100.0, 299.0):
            others = values[values != last]
            assert decisions(NINTHS, at(1 / 9, *others, last))[-1] == (last > 99)

    def test_the_best_so_far_counts(self) -> None:
        fell_and_rose = [Seen("x", "", 0.05, (0.1,)), Seen("x", "", 1 / 9, (0.9,))]
        assert not any(decisions(NINTHS, [*at(1 / 9, 0.2, 0.3), *fell_and_rose]))

    def test_an_evaluation_far_along_is_held_to_every_rung_that_it_passes(self) -> None:
        """Better than all at the second rung, where there is nobody else; third of three at the first."""
        first = at(1 / 9, 0.2, 0.3)
        assert decisions(NINTHS, [*first, Seen("x", "", 0.5, (0.4,))])[-1]
        assert not decisions(NINTHS, [*first, Seen("x", "", 0.5, (0.1,))])[-1]

    def test_a_step_on_a_rung_is_at_the_rung(self) -> None:
        """Whatever is lost when shares are worked out in floating point."""
        tenths = AshaConfig(reduction_factor=3, first_rung=0.1)
        assert 3 * tenths.first_rung > 0.3
        first = [Seen(name, "", 0.1, (value,)) for name, value in (("a", 0.5), ("b", 0.4), ("c", 0.3))]
        second = [Seen(name, "", 0.3, (value,)) for name, value in (("a", 0.1), ("b", 0.1), ("c", 0.2))]
        assert decisions(tenths, [*first, *second]) == [False, False, False, False, False, True]

    def test_what_is_not_finite_is_last(self) -> None:
        for bad in (math.nan, math.inf, -math.inf):
            assert decisions(NINTHS, at(1 / 9, 1e9, 1e9, bad))[-1]
            assert not decisions(NINTHS, at(1 / 9, bad, bad, 1e9))[-1]

    def test_a_diverged_trial_is_last_however_small_it_is(self) -> None:
        log = [Seen(str(i), "", 1 / 9, (error, size)) for i, (error, size) in enumerate([(0.5, 9), (0.4, 9), (0.3, 9)])]
        assert decisions(NINTHS, [*log, Seen("x", "", 1 / 9, (math.nan, 1.0))])[-1]
        assert not decisions(NINTHS, [*log, Seen("x", "", 1 / 9, (0.9, 1.0))])[-1]

    def test_of_one_front_the_crowded_are_stopped(self) -> None:
        """All on a line. Both ends go on, and so does one in a gap; one next to another does not."""
        line = [(float(x), 10.0 - x) for x in (0, 10, 1, 2, 3, 4)]
        log = [Seen(str(i), "", 1 / 9, point) for i, point in enumerate(line)]
        assert decisions(NINTHS, [*log, Seen("crowded", "", 1 / 9, (2.5, 7.5))])[-1]
        assert not decisions(NINTHS, [*log, Seen("alone", "", 1 / 9, (7.0, 3.0))])[-1]


class TestMedianByHand:
    OTHERS = tuple(
        Seen(f"other {i}", "", progress, (value,)) for i, value in enumerate((0.2, 0.4, 0.6)) for progress in (0.2, 0.4)
    )

    @pytest.mark.parametrize(("best", "stopped"), [(0.39, False), (0.4, False), (0.41, True)])
    def test_worse_than_the_median_stops(self, best: float, stopped: bool) -> None:
        config = MedianConfig(min_trials=3)
        assert decisions(config, [*self.OTHERS, Seen("x", "", 0.4, (best,))])[-1] is stopped

    def test_not_before_the_first_look_nor_with_too_few(self) -> None:
        log = [*self.OTHERS, Seen("x", "", 0.4, (9.0,))]
        assert decisions(MedianConfig(min_trials=3, first_look=0.4), log)[-1]
        assert not decisions(MedianConfig(min_trials=3, first_look=0.41), log)[-1]
        assert not decisions(MedianConfig(min_trials=4), log)[-1]

    def test_others_count_as_they_were_then(self) -> None:
        """That others came to 0 later does not make 0.5 bad at 0.2."""
        later = [Seen(f"other {i}", "", 0.8, (0.0,)) for i in range(3)]
        start = [Seen(f"other {i}", "", 0.1, (0.9,)) for i in range(3)]
        assert not decisions(MedianConfig(min_trials=3), [*start, *later, Seen("x", "", 0.2, (0.5,))])[-1]
        assert decisions(MedianConfig(min_trials=3), [*start, *later, Seen("x", "", 0.8, (0.5,))])[-1]

    def test_the_best_so_far_counts(self) -> None:
        rose = [Seen("x", "", 0.1, (0.3,)), Seen("x", "", 0.4, (0.9,))]
        assert not decisions(MedianConfig(min_trials=3), [*self.OTHERS, *rose])[-1]

    def test_an_other_that_diverged_once_is_worse_than_the_median(self) -> None:
        """Of 0.2, 0.4, 0.6 and twice infinity the median is 0.6."""
        diverged = [Seen(name, "", progress, (v,)) for name in "ab" for progress, v in ((0.2, math.nan), (0.4, 0.1))]
        for best, stopped in ((0.59, False), (0.61, True)):
            log = [*self.OTHERS, *diverged, Seen("x", "", 0.4, (best,))]
            assert decisions(MedianConfig(min_trials=5), log)[-1] is stopped

    def test_many_long_curves_are_as_well_remembered_as_few_short_ones(self) -> None:
        values = np.random.default_rng(0).random((20, 20)) + np.random.default_rng(1).permutation(20)[:, None] / 5
        log = [
            Seen(str(trial), "", (evaluation + 1) / 20, (float(values[trial, evaluation]),))
            for evaluation in range(20)
            for trial in range(20)
        ]
        config = MedianConfig(first_look=0.9, min_trials=1)
        decided = decisions(config, log)
        assert any(decided)
        assert decided == slow_decisions(config, log)


# ---- real curves -------------------------------------------------------------------------------------------------

WORKERS = 4
CURVES = recorded()


@dataclass(frozen=True)
class Outcome:
    """What a study with early stopping would have done."""

    kept: tuple[RecordedCurve, ...]  # trained to the end
    cost: float  # steps, as a share of those of training all to the end


def simulate(
    curves: Sequence[RecordedCurve], config: Rule, objectives: Callable[[RecordedCurve, int], Point]
) -> Outcome:
    """Trains the curves in their order, on workers that take the next when they are free, by the recorded times."""
    stopper, waiting = EarlyStopper(config), list(enumerate(curves))
    events: list[tuple[float, int, int]] = []  # when, curve, evaluation
    kept, steps = [], 0

    def start_next(now: float) -> None:
        if waiting:
            number, curve = waiting.pop(0)
            heapq.heappush(events, (now + curve.accelerator_seconds[0], number, 0))

    for _ in range(WORKERS):
        start_next(0.0)
    while events:
        now, number, evaluation = heapq.heappop(events)
        curve = curves[number]
        progress = curve.step[evaluation] / curve.step[-1]
        stopped = stopper.observe(curve.trial, "", progress, objectives(curve, evaluation))
        if progress < 1 and not stopped:
            seconds = curve.accelerator_seconds[evaluation + 1] - curve.accelerator_seconds[evaluation]
            heapq.heappush(events, (now + seconds, number, evaluation + 1))
            continue
        kept += [] if stopped else [curve]
        steps += curve.step[evaluation]
        start_next(now)
    return Outcome(tuple(kept), steps / sum(curve.step[-1] for curve in curves))


def error(curve: RecordedCurve, evaluation: int) -> Point:
    return (curve.dev_cer[evaluation],)


def error_and_size(curve: RecordedCurve, evaluation: int) -> Point:
    return (curve.dev_cer[evaluation], float(curve.num_parameters))


def final_error(curve: RecordedCurve) -> float:
    return min(curve.dev_cer)


def shuffled(seed: int) -> list[RecordedCurve]:
    order = np.random.default_rng(seed).permutation(len(CURVES))
    return [CURVES[index] for index in order]


def hypervolume(curves: Sequence[RecordedCurve]) -> float:
    """Area of error x parameters that the curves dominate, up to the worst of each over all curves."""
    worst_error = max(map(final_error, CURVES))
    right, area = max(curve.num_parameters for curve in CURVES), 0.0
    lowest = {size: min(final_error(c) for c in curves if c.num_parameters <= size) for size in sizes(curves)}
    for size in sorted(lowest, reverse=True):
        area += (right - size) * (worst_error - lowest[size])
        right = size
    return area


def sizes(curves: Sequence[RecordedCurve]) -> set[int]:
    return {curve.num_parameters for curve in curves}


ORDERS = [CURVES, *map(shuffled, range(20))]
BEST = min(CURVES, key=final_error)


class TestOnRealCurves:
    """64 configurations that were all trained to the end: in the order of their study, and in 20 orders by chance.

    In its own order, from the lowest learning rate to the highest, the study meets its best trials in the middle.
    """

    def test_asha_finds_the_best_configuration_with_half_of_the_training(self) -> None:
        outcomes = [simulate(order, AshaConfig(), error) for order in ORDERS]
        assert [min(outcome.kept, key=final_error) for outcome in outcomes] == [BEST] * 21
        assert max(outcome.cost for outcome in outcomes) <= 1 / 2
        assert statistics.fmean(outcome.cost for outcome in outcomes) <= 0.42

    def test_with_closer_rungs_it_needs_a_third_of_the_training(self) -> None:
        outcomes = [simulate(order, AshaConfig(first_rung=1 / 8, rung_spacing=1.5), error) for order in ORDERS]
        assert [min(outcome.kept, key=final_error) for outcome in outcomes] == [BEST] * 21
        assert max(outcome.cost for outcome in outcomes) <= 1 / 3

    def test_asha_keeps_the_front_of_error_and_size_with_half_of_the_training(self) -> None:
        outcomes = [simulate(order, AshaConfig(), error_and_size) for order in ORDERS]
        found = sorted(hypervolume(outcome.kept) / hypervolume(CURVES) for outcome in outcomes)
        assert found[0] >= 0.94
        assert found[3] >= 0.95
        assert max(outcome.cost for outcome in outcomes) <= 1 / 2

    def test_with_closer_rungs_the_front_of_error_and_size_is_lost(self) -> None:
        config = AshaConfig(first_rung=1 / 8, rung_spacing=1.5)
        kept = [hypervolume(simulate(order, config, error_and_size).kept) for order in ORDERS]
        assert min(kept) / hypervolume(CURVES) == pytest.approx(0.44, abs=0.005)

    def test_the_median_rule_finds_the_best_configuration_with_three_quarters_of_the_training(self) -> None:
        outcomes = [simulate(order, MedianConfig(), error) for order in ORDERS]
        assert [min(outcome.kept, key=final_error) for outcome in outcomes] == [BEST] * 21
        assert max(outcome.cost for outcome in outcomes) <= 3 / 4

    def test_the_hypervolume_is_an_area(self) -> None:
        """Against the share of random points in the box that a configuration dominates."""
        draws = np.random.default_rng(0).random((20_000, 2))
        worst, largest, smallest = max(map(final_error, CURVES)), max(sizes(CURVES)), min(sizes(CURVES))
        errors, numbers = draws[:, 0] * worst, smallest + draws[:, 1] * (largest - smallest)
        under = [(errors >= final_error(curve)) & (numbers >= curve.num_parameters) for curve in CURVES]
        area = np.any(under, axis=0).mean() * worst * (largest - smallest)
        assert hypervolume(CURVES) == pytest.approx(area, rel=0.02)
