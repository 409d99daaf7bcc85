"""Distributions and the points that they make."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from search_spaces.space import (
    IntUniform,
    LogUniform,
    Point,
    Space,
    Uniform,
    condition_errors,
    finite_points,
    grid_points,
    probe_points,
    probe_values,
    sampled,
    size,
)


def space_of(**distributions: dict[str, Any]) -> Space:
    return TypeAdapter(Space).validate_python(distributions)


def grid(*choices: Any, **when: list[Any]) -> dict[str, Any]:
    return {"kind": "grid", "choices": list(choices), "when": when}


def pick(*choices: Any, **when: list[Any]) -> dict[str, Any]:
    return {"kind": "categorical", "choices": list(choices), "when": when}


def by_content(points: list[Point]) -> list[tuple[tuple[str, Any], ...]]:
    return sorted(tuple(sorted(point.items())) for point in points)


class TestValidation:
    @pytest.mark.parametrize(
        ("distribution", "rule"),
        [
            ({"kind": "uniform", "low": 2.0, "high": 1.0}, "low must be smaller than high, got low=2, high=1"),
            ({"kind": "uniform", "low": 1.0, "high": 1.0}, "low must be smaller than high, got low=1, high=1"),
            ({"kind": "log_uniform", "low": 1e-2, "high": 1e-3}, "low must be smaller than high"),
            ({"kind": "log_uniform", "low": 0.0, "high": 1.0}, "greater than 0"),
            ({"kind": "log_uniform", "low": -1.0, "high": 1.0}, "greater than 0"),
            ({"kind": "int", "low": 3, "high": 2}, "low must not be greater than high, got low=3, high=2"),
            ({"kind": "int", "low": 1, "high": 4, "step": 0}, "greater than or equal to 1"),
            ({"kind": "int", "low": 1.5, "high": 4}, "valid integer"),
            ({"kind": "categorical", "choices": []}, "at least 1 item"),
            ({"kind": "grid", "choices": []}, "at least 1 item"),
            ({"kind": "grid", "choices": [None]}, "valid"),
            ({"kind": "grid", "choices": [[1, 2]]}, "valid"),
            ({"kind": "normal", "low": 1}, "does not match any of the expected tags"),
            ({"low": 1.0, "high": 2.0}, "discriminator 'kind'"),
            ({"kind": "uniform", "low": 1.0, "high": 2.0, "step": 1}, "Extra inputs are not permitted"),
        ],
    )
    def test_an_impossible_distribution_is_refused_with_its_rule(self, distribution: dict[str, Any], rule: str) -> None:
        with pytest.raises(ValidationError, match=rule):
            space_of(x=distribution)

    def test_an_integer_interval_of_one_value_is_possible(self) -> None:
        assert list(IntUniform(low=3, high=3).values()) == [3]

    def test_choices_keep_their_types(self) -> None:
        choices = space_of(x=grid(True, 1, 1.0, "1"))["x"].values()
        assert choices is not None
        assert [type(choice) for choice in choices] == [bool, int, float, str]


class TestValues:
    @pytest.mark.parametrize(
        ("low", "high", "step", "values"),
        [
            (1, 4, 1, [1, 2, 3, 4]),
            (1, 6, 2, [1, 3, 5]),  # high is not on the raster
            (1, 7, 2, [1, 3, 5, 7]),
            (-2, 2, 2, [-2, 0, 2]),
            (0, 3, 10, [0]),
        ],
    )
    def test_integers_run_from_low_to_high_in_steps(self, low: int, high: int, step: int, values: list[int]) -> None:
        distribution = IntUniform(low=low, high=high, step=step)
        assert list(distribution.values()) == values
        assert list(distribution.probes()) == [values[0], values[-1]]

    def test_real_intervals_have_no_list_of_values_and_are_probed_at_both_ends(self) -> None:
        for distribution in (Uniform(low=-1, high=2), LogUniform(low=1e-3, high=2)):
            assert distribution.values() is None
            assert tuple(distribution.probes()) == (distribution.low, distribution.high)

    def test_every_choice_is_probed(self) -> None:
        space = space_of(a=grid(1, 2, 3), b=pick("x", "y"))
        assert [list(d.probes()) for d in space.values()] == [[1, 2, 3], ["x", "y"]]

    def test_only_grids_are_not_sampled(self) -> None:
        space = space_of(
            a=grid(1, 2),
            b=pick(1, 2),
            c={"kind": "int", "low": 1, "high": 2},
            d={"kind": "uniform", "low": 0, "high": 1},
            e={"kind": "log_uniform", "low": 1, "high": 2},
        )
        assert list(sampled(space)) == ["b", "c", "d", "e"]


class TestConditions:
    def test_a_parameter_is_active_when_every_condition_holds(self) -> None:
        distribution = space_of(x=pick(1, a=[1, 2], b=["y"]))["x"]
        assert distribution.active({"a": 2, "b": "y"})
        assert not distribution.active({"a": 3, "b": "y"})
        assert not distribution.active({"a": 2, "b": "z"})

    def test_a_condition_on_an_absent_parameter_does_not_hold(self) -> None:
        assert not space_of(x=pick(1, a=[1]))["x"].active({})

    def test_a_parameter_without_conditions_is_always_active(self) -> None:
        assert space_of(x=pick(1))["x"].active({})

    def test_naming_nothing_listed_before_is_an_error(self) -> None:
        space = space_of(a=pick(1, b=[1]), b=pick(1), c=pick(1, c=[1]), d=pick(1, nowhere=[1]), e=pick(1, b=[1]))
        errors = dict(condition_errors(space))
        assert list(errors) == ["a", "c", "d"]
        assert "'b', which is not listed before 'a'" in errors["a"]

    def test_a_grid_may_depend_on_grids_only(self) -> None:
        space = space_of(a=pick(1, 2), b=grid(1, 2), c=grid(3, b=[1]), d=grid(4, a=[1]), e=pick(5, b=[1]))
        errors = dict(condition_errors(space))
        assert list(errors) == ["d"]
        assert "'a' is sampled" in errors["d"]


class TestPoints:
    def test_without_a_grid_there_is_one_empty_combination(self) -> None:
        assert grid_points(space_of()) == [{}]
        assert grid_points(space_of(a=pick(1, 2))) == [{}]

    def test_a_grid_is_the_product_of_its_choices(self) -> None:
        space = space_of(a=grid(1, 2), x=pick(7, 8), b=grid("u", "v", "w"))
        expected = [{"a": a, "b": b} for a, b in itertools.product((1, 2), ("u", "v", "w"))]
        assert grid_points(space) == expected

    def test_a_conditional_grid_is_absent_where_its_condition_does_not_hold(self) -> None:
        space = space_of(a=grid("plain", "deep"), b=grid(1, 2, 3, a=["deep"]))
        assert grid_points(space) == [{"a": "plain"}, *({"a": "deep", "b": b} for b in (1, 2, 3))]

    def test_conditions_chain(self) -> None:
        space = space_of(a=grid(0, 1), b=grid(0, 1, a=[1]), c=grid(0, 1, b=[1]))
        expected: list[Point] = [{"a": 0}, {"a": 1, "b": 0}, {"a": 1, "b": 1, "c": 0}, {"a": 1, "b": 1, "c": 1}]
        assert by_content(grid_points(space)) == by_content(expected)

    def test_finite_points_take_sampled_parameters_as_well(self) -> None:
        space = space_of(
            a=pick("plain", "deep"), b={"kind": "int", "low": 1, "high": 5, "step": 2, "when": {"a": ["deep"]}}
        )
        expected: list[Point] = [{"a": "plain"}, {"a": "deep", "b": 1}, {"a": "deep", "b": 3}, {"a": "deep", "b": 5}]
        assert by_content(list(finite_points(space))) == by_content(expected)

    @given(st.data())
    def test_finite_points_are_the_leaves_of_the_tree_of_choices_each_once(self, data: st.DataObject) -> None:
        """Parity with a depth-first walk that decides one parameter after the other."""
        distributions: dict[str, dict[str, Any]] = {}
        for name in "abcd"[: data.draw(st.integers(0, 4))]:
            when = {}
            for other in distributions:
                if data.draw(st.booleans()):
                    when[other] = data.draw(st.lists(st.integers(0, 3), max_size=3))
            distributions[name] = grid(*range(data.draw(st.integers(1, 3))), **when)
        space = space_of(**distributions)

        def walk(names: list[str], point: Point) -> list[Point]:
            if not names:
                return [point]
            head, *rest = names
            if all(other in point and point[other] in values for other, values in space[head].when.items()):
                return [leaf for value in space[head].values() or () for leaf in walk(rest, {**point, head: value})]
            return walk(rest, point)

        points = list(finite_points(space))
        assert by_content(points) == by_content(walk(list(space), {}))
        assert len({tuple(point.items()) for point in points}) == len(points)

    def test_probes_of_a_large_space_have_every_value_and_are_no_more_than_asked_for(self) -> None:
        space = space_of(**{name: pick(*range(5)) for name in "abcdefgh"})
        found = list(probe_values(space, 300))
        assert len(found) == 300
        assert found == list(probe_values(space, 300))
        assert {(0,) * 8, (4,) * 8} < set(found)
        assert all({values[position] for values in found} == set(range(5)) for position in range(8))
        assert len({tuple(point.values()) for point in probe_points(space, 300)}) > 200

    def test_probes_of_a_small_space_are_all_combinations(self) -> None:
        space = space_of(a=pick(1, 2), b={"kind": "uniform", "low": 0, "high": 1})
        assert list(probe_values(space, 4)) == [(1, 0.0), (1, 1.0), (2, 0.0), (2, 1.0)]

    def test_size_is_the_product_and_infinite_with_a_real_parameter(self) -> None:
        finite = {"a": grid(1, 2), "b": pick("x", "y", "z"), "c": {"kind": "int", "low": 0, "high": 9, "step": 3}}
        assert size(space_of()) == 1
        assert size(space_of(**finite)) == 2 * 3 * 4
        assert size(space_of(**finite, d={"kind": "uniform", "low": 0, "high": 1})) == math.inf
