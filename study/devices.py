"""How fast the devices of a study are, and what its trials would have spent, had all run on one of them.

Accelerator time on different devices does not compare. Work that several of them did tells how fast each is: the time
from one report to the next, over as many updates with as many evaluations, of stages with equal settings. Seeds,
learning rates and lengths make no difference to it.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from study.ledger import CurvePoint, Ledger, Trial

UNRECORDED = "a device that was not recorded"
NO_WORK = frozenset(  # settings of a stage that do not change what an update costs, nor an evaluation
    {
        "preset",
        "seed",
        "steps",
        "epochs",
        "learning_rate",
        "lower_learning_rate",
        "upper_learning_rate",
        "head_learning_rate",
        "learning_rate_scale",
        "schedule",
        "optimiser",
        "report_every",
        "evaluate_every",
        "keep",
        "checkpoint_seconds",
    }
)
SPLITS = ("dev", "source_dev", "test")


@dataclass(frozen=True)
class Device:
    """A device, and how many times as fast as another it is on equal work."""

    name: str
    reference: str  # that other one; itself, where it is the measure of others or no equal work relates it to any
    speed: float
    low: float  # of the speeds at each shape of work that it shares
    high: float
    shapes: int  # of work that it shares with others
    stages: int  # of the study, that ran on it in part or whole
    accelerator_seconds: float  # as spent, each stage once
    standing: bool  # trials that stand for arms ran on it


@dataclass(frozen=True)
class Devices:
    """Those of a study that ran on several; none where it ran on one, as far as was recorded."""

    found: tuple[Device, ...] = ()  # those that most accelerator time was spent on first

    @property
    def references(self) -> tuple[str, ...]:
        """The devices as on which the accelerator time of the standing trials is counted. One: all of it compares."""
        return tuple(dict.fromkeys(device.reference for device in self.found if device.standing))

    def curve(self, ledger: Ledger, trial: Trial, metric: str | None = None) -> list[CurvePoint]:
        """As `Ledger.curve`, with accelerator seconds as if each device were its reference."""
        if not self.found:
            return ledger.curve(trial.study, trial.trial, metric)
        speeds = {device.name: device.speed for device in self.found}
        curve, before, spent = [], 0.0, 0.0
        for point in ledger.curve(trial.study, trial.trial):
            spent += (point.accelerator_seconds - before) * speeds.get(_device(point), 1.0)  # it may be new
            before = point.accelerator_seconds
            if metric is None or point.metric == metric:
                curve.append(replace(point, accelerator_seconds=spent))
        return curve

    def references_of(self, ledger: Ledger, trials: Iterable[Trial]) -> frozenset[str]:
        """The devices as on which the accelerator time of the trials is counted."""
        if not self.found:
            return frozenset()
        references = {device.name: device.reference for device in self.found}
        curves = (ledger.curve(trial.study, trial.trial) for trial in trials)
        names = {_device(point) for curve in curves for point in curve}
        return frozenset(references.get(name, name) for name in names)


@dataclass(frozen=True)
class _Increment:
    """What a stage spent from one report to the next."""

    stage: str
    device: str
    shape: tuple[object, ...]
    seconds: float
    whole: bool  # all of it on the device: the stage had not come from another one


def devices_of(ledger: Ledger, study: str, standing: Iterable[Trial]) -> Devices:
    """The devices of all trials of the study. Those of the trials that stand for its arms are references first."""
    if len(ledger.devices(study)) < 2:
        return Devices()
    of_stage: dict[str, list[_Increment]] = {}
    for trial in ledger.trials(study):
        for stage, increments in itertools.groupby(_increments(ledger, trial), key=lambda increment: increment.stage):
            of_stage.setdefault(stage, list(increments))
    standing_stages = {point.stage for trial in standing for point in ledger.curve(study, trial.trial)}
    every = [increment for increments in of_stage.values() for increment in increments]
    uses, shared = _uses(every, standing_stages), _shared(every)
    found: list[Device] = []
    for reference in sorted(uses, key=lambda name: (-uses[name].standing_seconds, -uses[name].seconds, name)):
        if all(device.name != reference for device in found):
            found += _related(reference, shared, uses)
    return Devices(tuple(sorted(found, key=lambda device: (-device.accelerator_seconds, device.name))))


def _device(point: CurvePoint) -> str:
    return point.device or UNRECORDED


def _increments(ledger: Ledger, trial: Trial) -> Iterator[_Increment]:
    before: CurvePoint | None = None
    curve = ledger.curve(trial.study, trial.trial)
    work = {kind: _work(trial, kind) for kind in {point.kind for point in curve}}
    for _, points in itertools.groupby(curve, key=lambda point: (point.stage, point.step)):
        report = list(points)
        last = report[-1]
        steps = last.step - (before.step if before else 0)
        yield _Increment(
            stage=last.stage,
            device=_device(last),
            shape=(work[last.kind], steps, *_evaluated(report)),
            seconds=last.accelerator_seconds - (before.accelerator_seconds if before else 0.0),
            whole=before is None or before.stage != last.stage or before.device == last.device,
        )
        before = last


def _work(trial: Trial, kind: str) -> str:
    """The settings that determine the work of a step of the trial's stage of this kind."""
    config, regime = trial.config, trial.config["regime"]
    settings = config.get("language_model") if kind == "decode" else regime.get(kind) or regime.get("train")
    stage = {name: value for name, value in (settings or {}).items() if name not in NO_WORK}
    return json.dumps([kind, stage, *(config.get(name) for name in ("model", "corpus", "outputs"))], sort_keys=True)


def _evaluated(report: Iterable[CurvePoint]) -> list[str]:
    """The splits that the report has results of."""
    metrics = [point.metric for point in report]
    return [split for split in SPLITS if any(metric.startswith(f"{split}_") for metric in metrics)]


@dataclass(frozen=True)
class _Use:
    """What a device did."""

    stages: int
    seconds: float
    standing_seconds: float  # of stages of the trials that stand for arms


def _uses(increments: Iterable[_Increment], standing: Collection[str]) -> dict[str, _Use]:
    """Of each device."""
    found: defaultdict[str, list[_Increment]] = defaultdict(list)
    for increment in increments:
        found[increment.device].append(increment)
    return {
        device: _Use(
            stages=len({increment.stage for increment in several}),
            seconds=math.fsum(increment.seconds for increment in several),
            standing_seconds=math.fsum(increment.seconds for increment in several if increment.stage in standing),
        )
        for device, several in found.items()
    }


@dataclass(frozen=True)
class _Shape:
    """Work that several devices did."""

    costs: Mapping[str, float]  # device -> logarithm of the median of its seconds
    weight: float  # seconds of all of it


def _shared(increments: Iterable[_Increment]) -> list[_Shape]:
    seconds: defaultdict[tuple[object, ...], defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for increment in increments:
        if increment.whole and increment.seconds > 0:
            seconds[increment.shape][increment.device].append(increment.seconds)
    return [
        _Shape(
            {device: math.log(statistics.median(found)) for device, found in by_device.items()},
            math.fsum(itertools.chain.from_iterable(by_device.values())),
        )
        for by_device in seconds.values()
        if len(by_device) > 1
    ]


def _related(reference: str, shapes: Collection[_Shape], uses: Mapping[str, _Use]) -> Iterator[Device]:
    """The reference and all devices that shapes relate to it, directly or through others."""
    names = {reference}
    while more := {name for shape in shapes if names & shape.costs.keys() for name in shape.costs} - names:
        names |= more
    mine = [shape for shape in shapes if names & shape.costs.keys()]
    costs = _relative_costs(reference, sorted(names - {reference}), mine)
    for name in sorted(names):
        speeds = [_speed(name, shape, costs) for shape in mine if name in shape.costs]
        yield Device(
            name=name,
            reference=reference,
            speed=math.exp(-costs[name]),
            low=1.0 if name == reference else min(speeds),
            high=1.0 if name == reference else max(speeds),
            shapes=len(speeds),
            stages=uses[name].stages,
            accelerator_seconds=uses[name].seconds,
            standing=uses[name].standing_seconds > 0,
        )


def _relative_costs(reference: str, others: Sequence[str], shapes: Collection[_Shape]) -> dict[str, float]:
    """Logarithm of what each device takes for work that takes the reference 1 s.

    The least squares of log cost = shape + device, each shape weighted by the time that was spent on it: with two
    devices, the weighted geometric mean of the ratios of their costs.
    """
    if not others:
        return {reference: 0.0}
    rows, costs = [], []
    for shape in shapes:
        effects = np.array([[float(name == other) for other in others] for name in shape.costs])
        logarithms = np.array(list(shape.costs.values()))
        weight = math.sqrt(shape.weight)
        rows.append(weight * (effects - effects.mean(0)))  # the effect of the shape is the mean of what is left
        costs.append(weight * (logarithms - logarithms.mean()))
    found = np.linalg.lstsq(np.concatenate(rows), np.concatenate(costs))[0]
    return {reference: 0.0, **dict(zip(others, found.tolist(), strict=True))}


def _speed(name: str, shape: _Shape, costs: Mapping[str, float]) -> float:
    """Of the device by one shape, going by the other devices that did it."""
    expected = statistics.fmean(cost - costs[other] for other, cost in shape.costs.items() if other != name)
    return math.exp(expected - shape.costs[name])
