"""Distributions over the dotted paths of a trial, such as `regime.finetune.learning_rate`."""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from trainables.config import Config

Value = StrictBool | StrictInt | StrictFloat | StrictStr
Point = dict[str, Value]  # path -> value


class Distribution(Config):
    """What every distribution has."""

    when: dict[str, list[Value]] = Field(
        {}, description="Sampled only while each of these paths, listed before this one, has one of the given values."
    )

    def active(self, point: Mapping[str, Value]) -> bool:
        """Whether the parameter exists, given the values drawn so far."""
        return all(point.get(path) in values for path, values in self.when.items())

    def values(self) -> Sequence[Value] | None:
        """All values when there are finitely many, otherwise None."""
        return None

    @abc.abstractmethod
    def contains(self, value: Value) -> bool:
        """Whether the value could be drawn."""

    @abc.abstractmethod
    def probes(self) -> Sequence[Value]:
        """Values to try for validity: all of a finite distribution, the ends of an interval."""


class _Interval(Distribution):
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low must be smaller than high, got low={self.low:g}, high={self.high:g}")
        return self

    def contains(self, value: Value) -> bool:
        return _is_number(value) and self.low <= float(value) <= self.high

    def probes(self) -> Sequence[Value]:
        return (self.low, self.high)


class Uniform(_Interval):
    """A real number between low and high."""

    kind: Literal["uniform"] = "uniform"


class LogUniform(_Interval):
    """A positive real number whose logarithm is uniform."""

    kind: Literal["log_uniform"] = "log_uniform"
    low: float = Field(gt=0)


class IntUniform(Distribution):
    """An integer from low to high, both included, in steps."""

    kind: Literal["int"] = "int"
    low: int
    high: int
    step: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low must not be greater than high, got low={self.low}, high={self.high}")
        return self

    def values(self) -> Sequence[Value]:
        return range(self.low, self.high + 1, self.step)

    def contains(self, value: Value) -> bool:
        return _is_number(value) and value in self.values()

    def probes(self) -> Sequence[Value]:
        return (self.values()[0], self.values()[-1])


class _Choices(Distribution):
    choices: list[Value] = Field(min_length=1)

    def values(self) -> Sequence[Value]:
        return self.choices

    def contains(self, value: Value) -> bool:
        return any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in self.choices)

    def probes(self) -> Sequence[Value]:
        return self.choices


class Categorical(_Choices):
    """One of the choices, picked by the sampler."""

    kind: Literal["categorical"] = "categorical"


class Grid(_Choices):
    """Every one of the choices: `search.trials` samples of the other parameters are drawn for each combination."""

    kind: Literal["grid"] = "grid"


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


AnyDistribution = Annotated[Uniform | LogUniform | IntUniform | Categorical | Grid, Field(discriminator="kind")]
Space = dict[str, AnyDistribution]


def sampled(space: Space) -> Space:
    """The parameters that the sampler draws: all but the grid ones."""
    return {path: distribution for path, distribution in space.items() if not isinstance(distribution, Grid)}


def grid_points(space: Space) -> list[Point]:
    """Every combination of the grid parameters whose conditions hold; one empty point when there is none."""
    return list(finite_points({path: d for path, d in space.items() if isinstance(d, Grid)}))


def finite_points(space: Space) -> Iterator[Point]:
    """Every combination of finite parameters, each once. Parameters whose conditions do not hold are absent."""
    return _points(space, itertools.product(*(distribution.values() or () for distribution in space.values())))


def probe_points(space: Space, most: float = math.inf) -> Iterator[Point]:
    """Every combination of the values that stand for each parameter (`probes`), each once.

    Where there are more than `most`, no more than that: see `probe_values`.
    """
    return _points(space, probe_values(space, most))


def probe_values(space: Space, most: float = math.inf) -> Iterator[tuple[Value, ...]]:
    """The same, with a value for every parameter, whether or not its conditions hold.

    Where there are more than `most`: the first and the last combination, some by chance (always the same), and after
    each of them those that differ from it in one value. So every value of every parameter is among them.
    """
    choices = [distribution.probes() for distribution in space.values()]
    if math.prod(map(len, choices)) <= most:
        yield from itertools.product(*choices)
        return
    draw = np.random.default_rng(0)
    bases = itertools.chain(
        [tuple(values[0] for values in choices), tuple(values[-1] for values in choices)],
        (tuple(values[int(draw.integers(len(values)))] for values in choices) for _ in itertools.count()),
    )
    around = (
        (*base[:position], value, *base[position + 1 :])
        for base in bases
        for position, values in enumerate(choices)
        for value in values
    )
    yield from itertools.islice(around, int(most))


def _points(space: Space, combinations: Iterable[tuple[Value, ...]]) -> Iterator[Point]:
    seen: set[tuple[tuple[str, Value], ...]] = set()
    for values in combinations:
        point = active_part(space, values)
        key = tuple(point.items())
        if key not in seen:
            seen.add(key)
            yield point


def active_part(space: Space, values: Sequence[Value]) -> Point:
    """The point of one value for each parameter, without those whose conditions do not hold."""
    point: Point = {}
    for (path, distribution), value in zip(space.items(), values, strict=True):
        if distribution.active(point):
            point[path] = value
    return point


def with_conditions(space: Space, paths: Collection[str]) -> Space:
    """The part of the space with these paths and all that their conditions, and those conditions' own, refer to."""
    wanted = set(paths)
    for path in reversed(space):  # a condition refers to what is listed before it
        if path in wanted:
            wanted |= set(space[path].when)
    return {path: distribution for path, distribution in space.items() if path in wanted}


def size(space: Space) -> float:
    """Number of points, infinite when a parameter is real; conditions are not taken into account."""
    return math.prod(math.inf if d.values() is None else len(d.values() or ()) for d in space.values())


def condition_errors(space: Space) -> Iterator[tuple[str, str]]:
    """(path, message) for each `when` that refers to nothing sampled before it, or from a grid to a sampled path."""
    before: list[str] = []
    for path, distribution in space.items():
        for other in distribution.when:
            if other not in before:
                yield path, f"`when` names {other!r}, which is not listed before {path!r} in this space"
            elif isinstance(distribution, Grid) and not isinstance(space[other], Grid):
                yield path, f"a grid may depend on other grids only, and {other!r} is sampled"
        before.append(path)
