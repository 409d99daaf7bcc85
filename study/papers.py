"""The papers' tables as a study answers them: each published cell beside the configuration that stands for it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from study.answer import Answer, Cell
from study.direction import Direction, Pair, direction_as_dict
from study.inference_report import model_times
from study.ledger import Ledger, Trial
from study.published import (
    DirectionClaim,
    PublishedCell,
    PublishedMetric,
    PublishedTable,
    TableMapping,
    coordinates_of,
    publications,
    same,
    value_at,
)
from study.spec import StudySpec
from study.statistics import Mean, mean_of
from study.wav2vec_s_claims import claim_as_dict, reviewed_claims
from study.wording import WITH_LM

Times = list[tuple[Cell, Sequence[float]]]  # seconds of each pass over dev


@dataclass(frozen=True)
class Measured:
    """What a configuration has for a column of a table, in our units: rates are fractions."""

    mean: Mean
    count: int  # of the values behind the mean: seeds, or passes of an inference time


@dataclass(frozen=True)
class AnsweredCell:
    """A published cell, and the configuration of the study at its coordinates."""

    published: PublishedCell
    configuration: Cell | None  # None: no finished trial stands there
    measured: dict[str, Measured]  # by metric of the table
    missing: dict[str, str]  # metric -> why nothing is measured

    @property
    def trials(self) -> list[str]:
        return [trial.trial for trial in self.configuration.trials] if self.configuration else []


@dataclass(frozen=True)
class AnsweredClaim:
    """What the study says of a claim, and how many of the published pairs go in the direction that it claims."""

    claim: DirectionClaim
    metric: PublishedMetric
    direction: Direction
    published_holding: int
    published_pairs: int  # whose numbers are known


@dataclass(frozen=True)
class AnsweredTable:
    table: PublishedTable
    cells: list[AnsweredCell]
    claims: list[AnsweredClaim]


def answered_tables(spec: StudySpec, ledger: Ledger, found: Answer) -> list[AnsweredTable]:
    """The tables that the study covers, in the order of its sweep.

    Where several configurations have the coordinates of a cell, the one with the most seeds stands for it, and of these
    the one with the best search metric, which is measured on dev.
    """
    times = _inference_times(spec, ledger, found) if spec.tables else []
    return [
        _answered_table(spec, ledger, table, mapping, found.cells, times)
        for name, mapping in spec.tables.items()
        if (table := publications().table(name))
    ]


def _inference_times(spec: StudySpec, ledger: Ledger, found: Answer) -> Times:
    """The seconds of each pass over dev, of the configurations measured on the device on which most were."""
    measured = [row for row in model_times(spec, ledger, found.cells) if row.time.split == "dev"]
    device = statistics.mode([row.time.device for row in measured]) if measured else ""
    return [(row.cell, row.time.seconds) for row in measured if row.time.device == device]


def _answered_table(
    spec: StudySpec,
    ledger: Ledger,
    table: PublishedTable,
    mapping: TableMapping,
    configurations: Sequence[Cell],
    times: Times,
) -> AnsweredTable:
    placed = [
        (cell, coordinates_of(mapping, cell.arm, cell.trials[0].config))
        for cell in configurations
        if cell.arm in spec.arms
    ]
    cells = []
    for published in table.cells:
        there = [cell for cell, at in placed if at and same(at, published.at)]
        chosen = standing_for(there, spec) if there else None
        cells.append(_answered_cell(ledger, table, published, chosen, times))
    return AnsweredTable(table, cells, [_answered_claim(table, cells, claim) for claim in table.claims])


def _answered_cell(
    ledger: Ledger, table: PublishedTable, published: PublishedCell, chosen: Cell | None, times: Times
) -> AnsweredCell:
    found = {
        name: values
        for name, metric in table.metrics.items()
        if chosen and (values := _measured(ledger, chosen, metric, times))
    }
    missing = {name: _absent(m, chosen) for name, m in table.metrics.items() if name not in found}
    return AnsweredCell(published, chosen, found, missing)


def standing_for(cells: Sequence[Cell], spec: StudySpec) -> Cell:
    """Of several configurations, the one with the most seeds, and of these the one with the best search metric."""

    def search_metric(cell: Cell) -> float:
        rate = cell.rates.get(spec.search.metric)
        return rate.estimate if rate else math.inf

    return min(cells, key=lambda cell: (-len(cell.trials), search_metric(cell)))


def _absent(metric: PublishedMetric, cell: Cell | None) -> str:
    """Why a configuration has nothing for the metric."""
    if metric.ours is None:
        return f"not measured: {metric.absent}"
    if cell is None:
        return "no finished trial"
    if metric.ours.endswith(WITH_LM):
        return "no language model"
    if metric.ours == "pretrain_accelerator_hours":
        return "not pre-trained here"
    if metric.ours == "inference_seconds":
        return "not measured where most were (`inference_time` of the sweep)"
    return "not recorded"


def _measured(ledger: Ledger, cell: Cell, metric: PublishedMetric, times: Times) -> Measured | None:
    """What the trials of the configuration have for the metric; None where one of them lacks it."""
    if metric.ours is None:
        return None
    if metric.ours in cell.rates:
        return Measured(cell.rates[metric.ours], len(cell.trials))
    if metric.ours == "inference_seconds":
        passes = next((seconds for measured, seconds in times if measured is cell), None)
        return Measured(mean_of(passes), len(passes)) if passes else None
    if metric.is_setting:
        values = [value_at(trial.config, metric.ours) for trial in cell.trials]
    elif metric.ours == "pretrain_accelerator_hours":
        values = [_pretrain_hours(ledger, trial) for trial in cell.trials]
    else:
        values = [ledger.final(trial.study, trial.trial).get(metric.ours) for trial in cell.trials]
    numbers = [value for value in values if value is not None]
    return Measured(mean_of(numbers), len(numbers)) if numbers and len(numbers) == len(values) else None


def _pretrain_hours(ledger: Ledger, trial: Trial) -> float | None:
    """Of the accelerator, in the trial's pre-training, which it may share with others; None where it has none."""
    ends = [p.accelerator_seconds for p in ledger.curve(trial.study, trial.trial) if p.kind == "pretrain"]
    return ends[-1] / 3600 if ends else None


def _answered_claim(table: PublishedTable, cells: Sequence[AnsweredCell], claim: DirectionClaim) -> AnsweredClaim:
    claimed = table.pairs(claim)
    answered = {id(cell.published): cell for cell in cells}
    pairs = [_pair(claim.metric, answered[id(low)], answered[id(high)]) for low, high in claimed]
    numbers = [(low.values.get(claim.metric), high.values.get(claim.metric)) for low, high in claimed]
    known = [(low.value, high.value) for low, high in numbers if low and high]
    return AnsweredClaim(
        claim=claim,
        metric=table.metrics[claim.metric],
        direction=Direction(tuple(pair for pair in pairs if pair), len(claimed)),
        published_holding=sum(low < high for low, high in known),
        published_pairs=len(known),
    )


def _pair(metric: str, low: AnsweredCell, high: AnsweredCell) -> Pair | None:
    """None where one of the cells is not measured."""
    ours, theirs = low.measured.get(metric), high.measured.get(metric)
    if ours is None or theirs is None:
        return None
    return Pair(
        name=f"{place_text(low.published)} / {place_text(high.published)}",
        low=ours.mean.estimate,
        high=theirs.mean.estimate,
        seeds=min(ours.count, theirs.count),
        trials=(*low.trials, *high.trials),
    )


def place_text(cell: PublishedCell) -> str:
    """The coordinates of a cell on one line."""
    return " ".join(str(value) for value in cell.at.values())


def as_dicts(spec: StudySpec, ledger: Ledger, found: Answer) -> dict[str, Any]:
    """What `study report --json` prints of the papers. Ours are fractions where the papers' are percent."""
    return {
        "tables": [_table_as_dict(answered) for answered in answered_tables(spec, ledger, found)],
        "claims": [claim_as_dict(claim) for claim in reviewed_claims(spec, ledger, found)],
    }


def _table_as_dict(answered: AnsweredTable) -> dict[str, Any]:
    return {
        "table": answered.table.name,
        "caption": answered.table.caption,
        "measured_on": answered.table.measured_on,
        "cells": [_cell_as_dict(cell) for cell in answered.cells],
        "claims": [_claim_as_dict(claim) for claim in answered.claims],
        "notes": list(answered.table.notes),
    }


def _cell_as_dict(cell: AnsweredCell) -> dict[str, Any]:
    return {
        "at": cell.published.at,
        "published": {name: asdict(value) for name, value in cell.published.values.items()},  # as printed
        "ours": {name: asdict(measured.mean) for name, measured in cell.measured.items()},
        "missing": cell.missing,
        "arm": cell.configuration.arm if cell.configuration else None,
        "point": cell.configuration.point if cell.configuration else None,
        "trials": cell.trials,
    }


def _claim_as_dict(answered: AnsweredClaim) -> dict[str, Any]:
    return {
        "claim": answered.claim.text,
        "metric": answered.claim.metric,
        "published_pairs": answered.published_pairs,
        "published_holding": answered.published_holding,
        **direction_as_dict(answered.direction),
    }
