"""Fronts, hypervolumes and probabilities against brute force, closed forms, Monte Carlo and Optuna."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

from study.pareto import front_probability, hypervolume, hypervolume_over_time, non_dominated, reference_point

COORDINATES = st.integers(0, 5).map(float)  # few values, so that equal ones are common


def point_sets(objectives: int, most: int = 8) -> st.SearchStrategy[list[tuple[float, ...]]]:
    return st.lists(st.tuples(*[COORDINATES] * objectives), min_size=1, max_size=most)


ANY_POINTS = st.integers(1, 4).flatmap(point_sets)


def dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def sphere(count: int, objectives: int, seed: int = 0) -> np.ndarray:
    """Points of which none dominates another: 1 - x, with x on the positive part of the unit sphere."""
    normal = np.abs(np.random.default_rng(seed).standard_normal((count, objectives)))
    return np.asarray(1 - normal / np.linalg.norm(normal, axis=1, keepdims=True))


class TestNonDominated:
    @given(ANY_POINTS)
    def test_is_brute_force(self, points: list[tuple[float, ...]]) -> None:
        expected = [i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)]
        assert non_dominated(points) == expected

    @given(ANY_POINTS)
    def test_what_is_not_on_the_front_is_dominated_by_what_is(self, points: list[tuple[float, ...]]) -> None:
        front = non_dominated(points)
        for index in set(range(len(points))) - set(front):
            assert any(dominates(points[other], points[index]) for other in front)

    def test_equal_points_all_stay(self) -> None:
        assert non_dominated([(1, 2), (2, 1), (1, 2), (2, 2)]) == [0, 1, 2]

    def test_of_nothing_is_nothing(self) -> None:
        assert non_dominated([]) == []


class TestHypervolume:
    def test_of_one_point_is_its_box(self) -> None:
        assert hypervolume([(1, 2, 3)], (2, 4, 6)) == 1 * 2 * 3

    def test_of_a_staircase_is_the_sum_of_its_steps(self) -> None:
        assert hypervolume([(1, 3), (2, 2), (3, 1)], (4, 4)) == 3 + 2 + 1

    @pytest.mark.parametrize("count", [1, 2, 10, 25])
    def test_of_a_diagonal_has_a_closed_form(self, count: int) -> None:
        """n points (i, n - i) / n below (1, 1) leave out the triangle and the teeth: (n - 1) / 2n remain."""
        points = [(i / count, (count - i) / count) for i in range(count)]
        assert hypervolume(points, (1, 1)) == pytest.approx((count - 1) / (2 * count))

    @given(st.integers(1, 4).flatmap(lambda k: point_sets(k, most=5)))
    def test_is_inclusion_and_exclusion_of_boxes(self, points: list[tuple[float, ...]]) -> None:
        reference = [4.0] * len(points[0])
        expected = 0.0
        for size in range(1, len(points) + 1):
            for chosen in itertools.combinations(points, size):
                corner = np.max(chosen, axis=0)
                expected -= (-1) ** size * float(np.prod(np.maximum(0, reference - corner)))
        assert hypervolume(points, reference) == pytest.approx(expected)

    @pytest.mark.parametrize("objectives", [2, 3, 4, 5])
    def test_is_optuna_s(self, objectives: int) -> None:
        points = sphere(30, objectives)
        reference = np.full(objectives, 1.1)
        assert hypervolume(points, reference) == pytest.approx(compute_hypervolume(points, reference))

    @pytest.mark.parametrize("objectives", [2, 3, 4, 5])
    def test_is_the_share_of_random_places_that_are_dominated(self, objectives: int) -> None:
        points = sphere(20, objectives, seed=1)
        places = np.random.default_rng(2).random((40_000, objectives))
        share = np.any(np.all(points[None] <= places[:, None], axis=2), axis=1).mean()
        error = math.sqrt(share * (1 - share) / len(places))
        assert hypervolume(points, [1.0] * objectives) == pytest.approx(share, abs=5 * error)

    def test_points_beyond_the_reference_add_nothing(self) -> None:
        inside = [(1.0, 3.0), (3.0, 1.0)]
        beyond = [(0.0, 5.0), (4.0, 0.0), (9.0, 9.0)]
        assert hypervolume(beyond, (4, 4)) == 0
        assert hypervolume([*beyond, *inside], (4, 4)) == hypervolume(inside, (4, 4)) == 5

    def test_of_nothing_is_zero(self) -> None:
        assert hypervolume([], (1, 1)) == 0

    @given(ANY_POINTS, st.randoms())
    def test_neither_order_nor_repetition_matters(self, points: list[tuple[float, ...]], random: object) -> None:
        reference = [6.0] * len(points[0])
        other = points * 2
        random.shuffle(other)  # type: ignore[attr-defined]
        assert hypervolume(other, reference) == pytest.approx(hypervolume(points, reference))

    def test_many_equal_points_are_one(self) -> None:
        assert hypervolume([(1, 1, 1)] * 60, (2, 2, 2)) == 1


class TestHypervolumeOverTime:
    @given(ANY_POINTS)
    def test_is_the_hypervolume_of_the_points_so_far(self, points: list[tuple[float, ...]]) -> None:
        reference = [6.0] * len(points[0])
        expected = [compute_hypervolume(np.array(points[: n + 1]), np.array(reference)) for n in range(len(points))]
        assert hypervolume_over_time(points, reference) == pytest.approx(expected)

    @given(ANY_POINTS)
    def test_never_falls_and_rises_only_with_a_new_point_of_the_front(self, points: list[tuple[float, ...]]) -> None:
        volumes = [0.0, *hypervolume_over_time(points, [6.0] * len(points[0]))]
        for n, (before, after) in enumerate(itertools.pairwise(volumes)):
            new = n in non_dominated(points[: n + 1]) and points[n] not in points[:n]
            assert after > before if new else after == pytest.approx(before)


class TestReferencePoint:
    def test_is_the_worst_and_a_tenth_of_the_range(self) -> None:
        assert reference_point([(1, 10), (3, 30), (2, 0)]) == pytest.approx([3.2, 33])

    def test_where_all_are_equal_it_is_still_worse(self) -> None:
        assert reference_point([(2, 0, -5), (2, 0, -5)]) == pytest.approx([2.2, 0.1, -4.5])

    @given(ANY_POINTS)
    def test_every_point_has_a_volume(self, points: list[tuple[float, ...]]) -> None:
        reference = reference_point(points)
        assert all(hypervolume([point], reference) > 0 for point in points)


class TestFrontProbability:
    def test_far_apart_it_is_certain(self) -> None:
        samples = [[(0.1, 5), (0.2, 5)], [(0.8, 1), (0.9, 1)], [(0.8, 6), (0.9, 6)]]
        assert front_probability(samples) == [1.0, 1.0, 0.0]

    def test_two_seeds_each_have_four_draws_of_which_each_counts_a_quarter(self) -> None:
        """The means are 0, 1, 1, 2 against a constant 0.5, in one objective: below it in a quarter of the draws."""
        found = front_probability([[(0.0,), (2.0,)], [(0.5,), (0.5,)]], draws=20_000)
        assert found == pytest.approx([0.25, 0.75], abs=0.02)

    def test_one_seed_has_the_noise_of_the_others(self) -> None:
        """Deviations of 1 and 3 with 1 and 2 degrees of freedom: the variance is (1 * 1 + 2 * 9) / 3."""
        far, spread = 1000.0, math.sqrt(0.5)
        known = [[(far - spread, far), (far + spread, far)], [(far - 3, far), (far, far), (far + 3, far)]]
        deviation = math.sqrt(19 / 3)
        found = front_probability([*known, [(0.0, 0.0)], [(1.0, 0.0)]], draws=20_000)
        lower = scipy.stats.norm.cdf(1 / (deviation * math.sqrt(2)))
        assert found == pytest.approx([0, 0, lower, 1 - lower], abs=0.02)

    def test_what_does_not_vary_has_no_noise(self) -> None:
        """The second objective decides, and is the same with every seed."""
        found = front_probability([[(0.5, 1), (0.6, 1)], [(0.5, 2)], [(0.9, 1)]])
        assert found is not None
        assert found[0] == 1.0
        assert 0 < found[1] < 1

    def test_without_several_seeds_nothing_is_known(self) -> None:
        assert front_probability([[(0.5, 1)], [(0.6, 2)]]) is None
        assert front_probability([]) is None

    def test_is_the_same_again(self) -> None:
        samples = [[(0.5, 1), (0.7, 1)], [(0.6, 1), (0.7, 1)], [(0.6, 1)]]
        assert front_probability(samples, seed=3) == front_probability(samples, seed=3)

    @given(st.lists(st.lists(st.tuples(COORDINATES, COORDINATES), min_size=2, max_size=3), min_size=1, max_size=4))
    def test_some_configuration_is_on_every_front(self, samples: list[list[tuple[float, float]]]) -> None:
        found = front_probability(samples, draws=50)
        assert found is not None
        assert sum(found) >= 1 - 1e-9
        assert all(0 <= share <= 1 for share in found)
