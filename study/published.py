"""The tables and claims of the papers as data (`papers.yaml`), and how a sweep says that it covers a table."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from search_spaces.space import Value
from trainables.config import Config
from trainables.settings_file import did_you_mean, parse_value

Coordinates = dict[str, Value]  # coordinate of a table -> value


def _path_or_values(given: Any) -> Any:
    """Raises ValueError for what is neither."""
    by_arm = given.values() if isinstance(given, Mapping) else ()
    if isinstance(given, str) or (by_arm and all(isinstance(value, bool | int | float | str) for value in by_arm)):
        return given
    raise ValueError(f"must be a dotted path of the trial, or a mapping arm: value, got {given!r}")


ValueSource = Annotated[str | dict[str, Value], BeforeValidator(_path_or_values)]  # a dotted path, or arm -> value
TableMapping = dict[str, ValueSource]  # by coordinate
PaperName = Literal["P-BLJ", "P-SEW", "P-DATA", "P-CS"]


class Paper(Config):
    """Where a paper is found."""

    title: str
    source: str


class PublishedMetric(Config):
    """A column of a published table, and what a study has in its place."""

    name: str = Field(description="With its unit; rates are printed in percent.")
    ours: str | None = Field(None, description="A metric of a trial, or a dotted path of its settings.")
    unit: float = Field(1, description="What one of the paper's units is in ours; percent are known without it.")
    absent: str = Field("", description="Why a study has nothing in its place.")

    @property
    def is_setting(self) -> bool:
        """Whether it is a setting, such as model.width, and nothing measured."""
        return self.ours is not None and "." in self.ours

    @property
    def is_rate(self) -> bool:
        """Whether ours is an error rate: a fraction where the paper prints percent."""
        return self.ours is not None and self.ours.startswith(("dev_", "test_"))

    def printed(self, ours: float) -> float:
        """A value of ours in the unit of the paper."""
        return 100 * ours if self.is_rate else ours / self.unit


class Expected(Config):
    """Two parts of a table: where both have a cell, the metric is said to be lower in the first.

    Cells are paired by the coordinates that neither part names.
    """

    lower: Coordinates
    higher: Coordinates


class DirectionClaim(Config):
    """What a paper says of a table, as an inequality between its cells."""

    text: str
    metric: str
    pairs: tuple[Expected, ...]


class Radar(Config):
    """Which coordinates of a table are the axes and the polygons of a radar figure."""

    axes: str
    series: str
    metric: str


class PublishedTable(Config):
    """A table of a paper. A row has a value for each coordinate, then one for each metric; null: not known."""

    paper: PaperName
    number: int
    caption: str
    measured_on: str
    coordinates: tuple[str, ...]
    metrics: dict[str, PublishedMetric]
    rows: tuple[tuple[Value | None, ...], ...]
    notes: tuple[str, ...] = ()
    claims: tuple[DirectionClaim, ...] = ()
    radar: Radar | None = None

    @functools.cached_property
    def cells(self) -> tuple[PublishedCell, ...]:
        """In the order of the paper."""
        return tuple(self._cell(row) for row in self.rows)

    def _cell(self, row: Sequence[Value | None]) -> PublishedCell:
        names = (*self.coordinates, *self.metrics)
        if len(row) != len(names):
            raise ValueError(f"a row of {self.name} has {len(names)} values ({', '.join(names)}), got {row}")
        found = dict(zip(names, row, strict=True))
        at = {name: value for name in self.coordinates if (value := found[name]) is not None}
        return PublishedCell(at, {name: v for name in self.metrics if (v := _published(found[name])) is not None})

    @property
    def name(self) -> str:
        return f"{self.paper}-T{self.number}"

    def known(self, coordinate: str) -> list[Value]:
        """The values that the table has for the coordinate."""
        return list(dict.fromkeys(cell.at[coordinate] for cell in self.cells))

    def cell(self, at: Mapping[str, Value]) -> PublishedCell | None:
        """The cell at these coordinates."""
        return next((cell for cell in self.cells if same(cell.at, at)), None)

    def pairs(self, claim: DirectionClaim) -> list[tuple[PublishedCell, PublishedCell]]:
        """The cells that the claim compares; its metric is said to be lower in the first of each pair."""
        return [
            (low, high)
            for expected in claim.pairs
            for low, high in itertools.product(self.cells, self.cells)
            if low.is_part(expected.lower)
            and high.is_part(expected.higher)
            and same(low.without(expected.lower), high.without(expected.higher))
        ]


@dataclass(frozen=True)
class PublishedValue:
    """As printed; `spread` is the standard deviation after the sign `±`, where there is one."""

    value: float
    spread: float | None = None

    def __str__(self) -> str:
        return f"{self.value:.10g}" + ("" if self.spread is None else f" ± {self.spread:.10g}")


@dataclass(frozen=True)
class PublishedCell:
    """The numbers of a table at one set of coordinates."""

    at: Coordinates
    values: dict[str, PublishedValue]  # by metric; without those that are not known

    def is_part(self, part: Mapping[str, Value]) -> bool:
        return all(same({name: self.at.get(name)}, {name: value}) for name, value in part.items())

    def without(self, part: Mapping[str, Value]) -> Coordinates:
        return {name: value for name, value in self.at.items() if name not in part}


class ReviewedClaim(Config):
    """A claim that P-DATA and P-CS both list, each with its own verdict and confidence."""

    key: str
    text: str = Field(description="As printed, cut where the papers cut it.")
    published: float | None = Field(None, description="The number that it names, in percent.")
    verified: dict[Literal["P-DATA", "P-CS"], bool]
    confidence: dict[Literal["P-DATA", "P-CS"], float]


class Publications(Config):
    """All of `papers.yaml`."""

    papers: dict[PaperName, Paper]
    tables: tuple[PublishedTable, ...]
    claims: tuple[ReviewedClaim, ...]

    def table(self, name: str) -> PublishedTable | None:
        return next((table for table in self.tables if table.name == name), None)


@functools.cache
def publications() -> Publications:
    """What the papers have published."""
    path = Path(__file__).with_name("papers.yaml")
    return Publications.model_validate(parse_value(path.read_text("utf-8"), path.name))


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both have the same values. 2 is 2.0, but True is not 1, and "2" is no number."""
    return one.keys() == other.keys() and all(_equal(value, other[name]) for name, value in one.items())


def _equal(one: object, other: object) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _published(printed: Value | None) -> PublishedValue | None:
    """`40.0 ± 2.34` is a value with its spread."""
    if printed is None:
        return None
    value, _, spread = str(printed).partition("±")
    return PublishedValue(float(value), float(spread) if spread else None)


def coordinates_of(mapping: TableMapping, arm: str, settings: Mapping[str, Any]) -> Coordinates | None:
    """Where in the table a trial of the arm stands, by its resolved settings; None where a coordinate is not known."""
    found = {
        coordinate: source.get(arm) if isinstance(source, dict) else value_at(settings, source)
        for coordinate, source in mapping.items()
    }
    known = {name: value for name, value in found.items() if value is not None}
    return known if len(known) == len(found) else None


def value_at(settings: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of resolved settings; None where there is none."""
    value: Any = settings
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


ValuesOf = Callable[[str, str], Sequence[object] | None]


def mapping_errors(
    name: str, mapping: TableMapping, arms: Iterable[str], values_of: ValuesOf
) -> Iterator[tuple[tuple[str, ...], str]]:
    """(location below `tables`, message) for each reason why the mapping cannot be used.

    `values_of(arm, path)` are the values that trials of the arm can have at the path; None where there is no such path.
    """
    table = publications().table(name)
    if table is None:
        known = [known.name for known in publications().tables]
        yield (name,), f"there is no table {name!r}{did_you_mean(name, known)}"
        return
    for coordinate in mapping:
        if coordinate not in table.coordinates:
            yield (name, coordinate), f"{name} has no {coordinate!r}{did_you_mean(coordinate, table.coordinates)}"
    for coordinate in table.coordinates:
        if coordinate not in mapping:
            yield (name,), f"{name} needs its coordinate {coordinate!r}: a dotted path of the trial, or arm: value"
    arms = list(arms)
    covered = [arm for arm in arms if all(arm in s for s in mapping.values() if isinstance(s, dict))]
    if not covered:
        yield (name,), "no arm has a value for every coordinate; name the same arms below each of them"
    for coordinate, source in mapping.items():
        if coordinate in table.coordinates and isinstance(source, dict):
            yield from _arm_errors(table, coordinate, source, arms)
        elif coordinate in table.coordinates and isinstance(source, str):
            yield from _path_errors(table, coordinate, source, covered, values_of)


def _arm_errors(
    table: PublishedTable, coordinate: str, source: Mapping[str, Value], arms: Sequence[str]
) -> Iterator[tuple[tuple[str, ...], str]]:
    for arm, value in source.items():
        where = (table.name, coordinate, arm)
        if arm not in arms:
            yield where, f"there is no arm {arm!r}{did_you_mean(arm, arms)}"
        elif not _has(table, coordinate, value):
            yield where, _unknown_value(table, coordinate, value)


def _path_errors(
    table: PublishedTable, coordinate: str, path: str, covered: Sequence[str], values_of: ValuesOf
) -> Iterator[tuple[tuple[str, ...], str]]:
    """A path is wrong where an arm lacks it, or where no arm has a value there that the table has."""
    where = (table.name, coordinate)
    seen: list[object] = []
    for arm in covered:
        values = values_of(arm, path)
        if values is None:
            yield where, f"the trial of arm {arm!r} has no {path!r}; give a dotted path that it has, or arm: value"
            return
        seen += values
    if seen and not any(_has(table, coordinate, value) for value in seen):
        yield where, _unknown_value(table, coordinate, *dict.fromkeys(seen))


def _has(table: PublishedTable, coordinate: str, value: object) -> bool:
    return any(_equal(value, known) for known in table.known(coordinate))


def _unknown_value(table: PublishedTable, coordinate: str, *values: object) -> str:
    shown, known = (", ".join(map(repr, some)) for some in (values, table.known(coordinate)))
    return f"{table.name} has no {coordinate} of {shown}; give one of its values: {known}"
