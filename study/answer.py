"""From the ledger to the answer of a study: which trials stand for an arm, and how the arms compare."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from study.convergence import Axis, area_under_curve, common_budget, duration, fit_rate
from study.devices import Device, Devices, devices_of
from study.ledger import CurvePoint, Ledger, Trial
from study.pareto import front_probability, hypervolume_over_time, non_dominated, reference_point
from study.scaling_result import ScalingResult, scaling_as_dict, scaling_result
from study.spec import StudySpec
from study.statistics import Mean, Ratio, holm, mean_of
from study.survival import Duration, common_horizon, log_rank, ratio_of_durations, restricted_mean
from study.wording import RATES, WITH_LM, goal_text, metric_name, objective_name, objective_text, time_text

AXES: dict[Axis, str] = {
    "step": "updates",
    "audio_seconds": "audio processed",
    "accelerator_seconds": "accelerator time",
    "elapsed_seconds": "elapsed time",
}

SIGNIFICANT = 0.05  # p-values from here down
ON_ONE_DEVICE = Devices()
PRETRAINING = ("pretrain", "semi_supervised")  # kinds of stages whose cost is left out where pre-training is


@dataclass(frozen=True)
class ArmResult:
    """The trials that stand for an arm, and what each of them spent until the targets."""

    arm: str
    trials: list[Trial]
    fresh_seeds: bool  # replications; otherwise the one best trial of the search, which chance has flattered
    final: list[float]  # of the convergence metric
    rates: dict[str, Mean]  # of the metrics in RATES, over the trials
    curves: list[list[CurvePoint]]  # of the convergence metric
    target: float
    pretraining: list[dict[Axis, float]]  # what each trial had spent at the end of its pre-training
    references: frozenset[str] = frozenset()  # devices as on which accelerator time is counted; of one, it is as spent

    def without_pretraining(self) -> ArmResult:
        """The same trials, as if their pre-training cost nothing."""
        curves = [
            [
                replace(p, **{axis: getattr(p, axis) - spent[axis] for axis in AXES})
                for p in curve
                if p.kind not in PRETRAINING
            ]
            for curve, spent in zip(self.curves, self.pretraining, strict=True)
        ]
        return replace(self, curves=curves, pretraining=[dict.fromkeys(AXES, 0.0) for _ in curves])

    @property
    def spent(self) -> dict[Axis, list[float | None]]:
        """Until the target; None: not reached."""
        return {axis: [d.value if d.reached else None for d in self.durations(self.target, axis)] for axis in AXES}

    @property
    def reached(self) -> int:
        """How many seeds reached the target."""
        return sum(d.reached for d in self.durations(self.target, "step"))

    @property
    def complete(self) -> bool:
        """Whether every seed reached the target."""
        return self.reached == len(self.trials)

    def durations(self, target: float, axis: Axis) -> list[Duration]:
        """Until any target, of each trial that has evaluated the metric."""
        return [found for curve in self.curves if (found := duration(curve, target, axis))]


@dataclass(frozen=True)
class Comparison:
    """What `arm` spends until the target relative to `baseline`, on each axis where that can be estimated.

    The ratios are of geometric means, or, where not all seeds reached the target, of restricted means up to the
    horizon of both. The p-values are those of the ratios, by Holm's method over the comparisons of the study.
    """

    arm: ArmResult
    baseline: ArmResult
    ratios: dict[Axis, Ratio | None]
    p_values: dict[Axis, float | None]

    @property
    def comparable(self) -> bool:
        """Whether the accelerator time of both is counted as on one device."""
        return _comparable(self.arm, self.baseline)

    @property
    def significant(self) -> bool:
        """Whether the accelerator time differs."""
        p_value = self.p_values["accelerator_seconds"]
        return p_value is not None and p_value <= SIGNIFICANT


@dataclass(frozen=True)
class TargetResult:
    """What an arm spends until one target, alone and relative to its baseline."""

    arm: str
    target: float
    axis: Axis
    seeds: int
    reached: int
    horizon: float  # that of the arm and its baseline; of the arm alone where it has none
    mean: Mean  # restricted, up to the horizon
    baseline: str | None
    ratio: Ratio | None  # as in Comparison
    log_rank: float | None  # p-value, by Holm's method over the arms that are compared at this target


@dataclass(frozen=True)
class CurveResult:
    """The whole curves of an arm, over its seeds."""

    arm: str
    since: int  # update from which all arms are compared
    until: int  # up to this one
    mean_linear: Mean  # of the metric, every update alike
    mean_log: Mean  # every doubling of the updates alike
    tau: Mean | None  # updates of the exponential that fits; None: it cannot be identified for every seed


@dataclass(frozen=True)
class Cell:
    """One configuration of an arm: a finished trial for each seed that it ran with."""

    arm: str
    point: dict[str, Any]  # without the seed
    trials: list[Trial]
    rates: dict[str, Mean]


@dataclass(frozen=True)
class Candidate:
    """A configuration as several objectives see it."""

    arm: str
    point: dict[str, Any]  # without the seed
    trials: list[Trial]
    values: dict[str, list[float]]  # of each objective, with every seed
    on_front: bool  # no other configuration of the study dominates its means
    probability: float | None  # of being on the front; None: no configuration has several seeds

    @property
    def means(self) -> dict[str, Mean]:
        return {objective: mean_of(values) for objective, values in self.values.items()}


@dataclass(frozen=True)
class Front:
    """What several objectives, all minimised, leave to choose from."""

    objectives: tuple[str, ...]  # the metric first
    candidates: list[Candidate]  # in the order in which they were first tried
    hypervolume: list[float]  # after each finished trial of the search, in the order in which they ended

    @property
    def best(self) -> list[Candidate]:
        """The candidates on the front, best metric first."""
        metric = self.objectives[0]
        return sorted((c for c in self.candidates if c.on_front), key=lambda c: c.means[metric].estimate)


@dataclass(frozen=True)
class Answer:
    arms: list[ArmResult]
    comparisons: list[Comparison]
    without_pretraining: list[Comparison]  # the same, as if pre-training cost nothing; empty where there is none
    targets: list[TargetResult]
    whole_curves: list[CurveResult]
    sentences: list[str]
    cells: list[Cell]
    front: Front | None  # None: the study has one objective
    scaling: ScalingResult | None = None  # None: the study asks for no scaling law
    devices: Devices = ON_ONE_DEVICE


def arm_result(spec: StudySpec, ledger: Ledger, arm: str, devices: Devices = ON_ONE_DEVICE) -> ArmResult:
    """`devices` are those of the study, which its accelerator time goes by."""
    trials, fresh_seeds = _standing(spec, ledger, arm)
    metric = spec.convergence.metric
    finals = [ledger.final(t.study, t.trial) for t in trials]
    return ArmResult(
        arm=arm,
        trials=trials,
        fresh_seeds=fresh_seeds,
        final=[final[metric] for final in finals],
        rates=_rates(finals),
        curves=[devices.curve(ledger, t, metric) for t in trials],
        target=spec.convergence.target,
        pretraining=[_pretraining(devices.curve(ledger, t)) for t in trials],
        references=devices.references_of(ledger, trials),
    )


def _standing(spec: StudySpec, ledger: Ledger, arm: str) -> tuple[list[Trial], bool]:
    """The trials that stand for the arm, and whether they are replications."""
    finished = [t for t in ledger.trials(spec.study) if t.arm == arm and t.status == "finished"]
    replications = [t for t in finished if t.origin == "replication"]
    if replications:  # of several configurations, the one whose replications are best on average
        replications = _best_configuration(spec, ledger, replications)
    searched = ledger.ranked((t for t in finished if t.origin == "search"), spec.search.metric)
    return replications or searched[:1], bool(replications)


def _pretraining(curve: Sequence[CurvePoint]) -> dict[Axis, float]:
    spent = [p for p in curve if p.kind in PRETRAINING]
    return {axis: float(getattr(spent[-1], axis)) if spent else 0.0 for axis in AXES}


def cells(spec: StudySpec, ledger: Ledger) -> list[Cell]:
    """The results of every configuration, over its seeds, in the order in which they were first tried.

    A configuration that was proposed again with the same seed is the same training, and counts once.
    """
    found: dict[str, dict[int, Trial]] = {}
    for trial in ledger.trials(spec.study):
        if trial.status == "finished":
            key = json.dumps([trial.arm, _without_seed(trial)], sort_keys=True)
            found.setdefault(key, {}).setdefault(trial.seed, trial)
    return [_cell(ledger, list(by_seed.values())) for by_seed in found.values()]


def _cell(ledger: Ledger, trials: list[Trial]) -> Cell:
    finals = [ledger.final(t.study, t.trial) for t in trials]
    return Cell(trials[0].arm, _without_seed(trials[0]), trials, _rates(finals))


def front(spec: StudySpec, ledger: Ledger, found: Sequence[Cell]) -> Front | None:
    """The Pareto front of the study's configurations; None where the study has one objective.

    Trials that failed or were stopped, and those that did not measure every objective, have no part in it.
    """
    objectives = spec.search.objectives
    if len(objectives) == 1:
        return None
    measured = [(cell, results) for cell in found if (results := _measured(ledger, cell, objectives))]
    samples = [[values for _, values in results] for _, results in measured]
    on_front = non_dominated([[statistics.fmean(values) for values in zip(*s, strict=True)] for s in samples])
    probabilities = front_probability(samples)
    candidates = [
        Candidate(
            arm=cell.arm,
            point=cell.point,
            trials=[trial for trial, _ in results],
            values={name: [values[place] for _, values in results] for place, name in enumerate(objectives)},
            on_front=index in on_front,
            probability=probabilities[index] if probabilities else None,
        )
        for index, (cell, results) in enumerate(measured)
    ]
    return Front(objectives, candidates, _search_hypervolume(result for _, results in measured for result in results))


def _measured(ledger: Ledger, cell: Cell, objectives: Sequence[str]) -> list[tuple[Trial, list[float]]]:
    """The final value of each objective, of the trials that have them all."""
    finals = [(trial, ledger.final(trial.study, trial.trial)) for trial in cell.trials]
    return [(t, [final[name] for name in objectives]) for t, final in finals if all(n in final for n in objectives)]


def _search_hypervolume(results: Iterable[tuple[Trial, list[float]]]) -> list[float]:
    """After each trial of the search, in the order in which they ended, up to the reference point of all of them."""
    searched = [(trial, values) for trial, values in results if trial.origin == "search"]
    points = [values for _, values in sorted(searched, key=lambda result: (result[0].ended_at or 0.0, result[0].trial))]
    return hypervolume_over_time(points, reference_point(points)) if points else []


def _without_seed(trial: Trial) -> dict[str, Any]:
    return {path: value for path, value in trial.point.items() if path != "seed"}


def _rates(finals: list[dict[str, float]]) -> dict[str, Mean]:
    names = (*RATES, *(f"{name}{WITH_LM}" for name in RATES))
    return {name: mean_of([final[name] for final in finals]) for name in names if _all_have(finals, name)}


def _all_have(finals: list[dict[str, float]], name: str) -> bool:
    return bool(finals) and all(name in final for final in finals)


def _best_configuration(spec: StudySpec, ledger: Ledger, replications: list[Trial]) -> list[Trial]:
    by_number: dict[int, list[Trial]] = {}
    for trial in replications:
        by_number.setdefault(trial.number, []).append(trial)

    def mean_final(trials: list[Trial]) -> float:
        return statistics.fmean(ledger.final(t.study, t.trial)[spec.search.metric] for t in trials)

    return min(by_number.values(), key=lambda trials: (-len(trials), mean_final(trials)))


def answer(spec: StudySpec, ledger: Ledger) -> Answer:
    """The comparison of every arm with its baseline, in numbers and in sentences."""
    standing = [trial for arm in spec.arms for trial in _standing(spec, ledger, arm)[0]]
    devices = devices_of(ledger, spec.study, standing)
    arms = [arm_result(spec, ledger, arm, devices) for arm in spec.arms]
    of = {arm.arm: arm for arm in arms}
    pairs = [(of[arm], of[baseline]) for arm, baseline in spec.comparisons()]
    comparisons = _compare(pairs)
    pretrained = any(spent["step"] for arm in arms for spent in arm.pretraining)
    without = _compare([(a.without_pretraining(), b.without_pretraining()) for a, b in pairs]) if pretrained else []
    sentences = [
        _sentence(spec, comparison, len(pairs)) + (_without_sentence(without[place]) if without else "")
        for place, comparison in enumerate(comparisons)
    ] or [_single(spec, arms[0])]
    sentences += device_sentences(devices)
    found = cells(spec, ledger)
    leading = front(spec, ledger, found)
    if leading and leading.candidates:
        sentences.append(_front_sentence(leading))
    scaling = scaling_result(spec, ledger, devices)
    if scaling:
        sentences += scaling.sentences(objective_name(scaling.metric))
    curves = _whole_curves(arms)
    targets = _targets(spec, arms, pairs)
    return Answer(arms, comparisons, without, targets, curves, sentences, found, leading, scaling, devices)


def _compare(pairs: Sequence[tuple[ArmResult, ArmResult]]) -> list[Comparison]:
    ratios: dict[Axis, list[Ratio | None]] = {
        axis: [_ratio(arm, baseline, arm.target, axis) for arm, baseline in pairs] for axis in AXES
    }
    p_values = {axis: _holm([ratio.p_value if ratio else None for ratio in found]) for axis, found in ratios.items()}
    return [
        Comparison(
            arm=arm,
            baseline=baseline,
            ratios={axis: ratios[axis][place] for axis in AXES},
            p_values={axis: p_values[axis][place] for axis in AXES},
        )
        for place, (arm, baseline) in enumerate(pairs)
    ]


def _ratio(arm: ArmResult, baseline: ArmResult, target: float, axis: Axis) -> Ratio | None:
    if axis == "accelerator_seconds" and not _comparable(arm, baseline):
        return None
    return ratio_of_durations(arm.durations(target, axis), baseline.durations(target, axis))


def _comparable(arm: ArmResult, baseline: ArmResult) -> bool:
    return len(arm.references | baseline.references) <= 1


def _holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's method over the p-values that are there."""
    corrected = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(corrected) for p in p_values]


def targets_of(spec: StudySpec, arms: Sequence[ArmResult]) -> list[float]:
    """The targets of the study, the one of the answer first; relative ones by what the arms came down to."""
    finals = [final for arm in arms for final in arm.final]
    relative = [_rounded_up(factor * min(finals)) for factor in spec.convergence.relative_targets] if finals else []
    return list(dict.fromkeys([spec.convergence.target, *spec.convergence.further_targets, *relative]))


def _rounded_up(target: float) -> float:
    """To nine digits, so that equal targets are equal, and the trial that a target comes from reaches it."""
    return math.ceil(target * 1e9 - 1e-3) / 1e9


def _targets(
    spec: StudySpec, arms: Sequence[ArmResult], pairs: Sequence[tuple[ArmResult, ArmResult]]
) -> list[TargetResult]:
    """A row for each target, axis and arm that has finished trials."""
    baselines = {arm.arm: baseline for arm, baseline in pairs if baseline.trials}
    of = {arm.arm: arm for arm in arms}
    return [
        row
        for target in targets_of(spec, arms)
        for axis in AXES
        for row in _at_target([arm for arm in arms if arm.trials], _on_axis(baselines, of, axis), target, axis)
    ]


def _on_axis(baselines: Mapping[str, ArmResult], arms: Mapping[str, ArmResult], axis: Axis) -> Mapping[str, ArmResult]:
    """The baselines of the arms that compare with them on the axis."""
    if axis != "accelerator_seconds":
        return baselines
    return {arm: baseline for arm, baseline in baselines.items() if _comparable(arms[arm], baseline)}


def _at_target(
    arms: Sequence[ArmResult], baselines: Mapping[str, ArmResult], target: float, axis: Axis
) -> list[TargetResult]:
    tests = [
        log_rank(arm.durations(target, axis), baselines[arm.arm].durations(target, axis))
        if arm.arm in baselines
        else None
        for arm in arms
    ]
    return [
        _target_result(arm, baselines.get(arm.arm), target, axis, p_value)
        for arm, p_value in zip(arms, _holm(tests), strict=True)
    ]


def _target_result(
    arm: ArmResult, baseline: ArmResult | None, target: float, axis: Axis, p_value: float | None
) -> TargetResult:
    ours = arm.durations(target, axis)
    horizon = common_horizon(ours, baseline.durations(target, axis) if baseline else ours)
    return TargetResult(
        arm=arm.arm,
        target=target,
        axis=axis,
        seeds=len(ours),
        reached=sum(d.reached for d in ours),
        horizon=horizon,
        mean=restricted_mean(ours, horizon),
        baseline=baseline.arm if baseline else None,
        ratio=_ratio(arm, baseline, target, axis) if baseline else None,
        log_rank=p_value,
    )


def _whole_curves(arms: Sequence[ArmResult]) -> list[CurveResult]:
    """Over the updates in which all trials were evaluated; empty where they have none in common."""
    budget = common_budget([curve for arm in arms for curve in arm.curves], "step")
    if budget is None or budget[0] <= 0:
        return []
    results = []
    for arm in arms:
        if arm.curves:
            linear = [area_under_curve(curve, "step", "linear", *budget) for curve in arm.curves]
            log = [area_under_curve(curve, "step", "log", *budget) for curve in arm.curves]
            rates = [rate.estimate for curve in arm.curves if (rate := fit_rate(curve))]
            tau = mean_of(rates) if len(rates) == len(arm.curves) else None
            results.append(CurveResult(arm.arm, round(budget[0]), round(budget[1]), mean_of(linear), mean_of(log), tau))
    return results


def _single(spec: StudySpec, arm: ArmResult) -> str:
    if not arm.trials:
        return f"No trial of {arm.arm} has finished."
    return (
        f"{arm.arm} reached a {goal_text(spec)} with {arm.reached} of {len(arm.trials)} seed(s); "
        f"final {metric_name(spec.convergence.metric)} {_percentages(arm.final)}."
    )


def _sentence(spec: StudySpec, comparison: Comparison, comparisons: int) -> str:
    arm, baseline, ratio = comparison.arm, comparison.baseline, comparison.ratios["accelerator_seconds"]
    for side in (baseline, arm):
        if not side.trials:
            return f"No answer: no trial of {side.arm} has finished."
    both = f"{_single(spec, baseline)} {_single(spec, arm)}"
    if min(len(arm.trials), len(baseline.trials)) < 2:
        return f"No interval can be given: it needs two fresh seeds of each arm. {both}"
    if not comparison.comparable:
        return _sentence_without_time(spec, comparison)
    if ratio is None:
        return f"No ratio can be given: {both}"
    verdict = (
        f"{arm.arm} converges {'faster' if ratio.estimate < 1 else 'slower'} than {baseline.arm}"
        if comparison.significant
        else f"No significant difference between {arm.arm} and {baseline.arm}"
    )
    p_value = comparison.p_values["accelerator_seconds"]
    corrected = f", p = {p_value:.2g} by Holm's method over {comparisons} comparisons" if comparisons > 1 else ""
    return (
        f"{verdict}: to a {goal_text(spec)}, pre-training included, {arm.arm} needs {ratio.estimate:.2f}x the "
        f"accelerator time of {baseline.arm} (95 % interval {ratio.low:.2f}-{ratio.high:.2f}, {len(arm.trials)} and "
        f"{len(baseline.trials)} seeds{corrected}).{_restriction(arm, baseline)}"
    )


def _sentence_without_time(spec: StudySpec, comparison: Comparison) -> str:
    """Of arms whose accelerator time does not compare."""
    arm, baseline = comparison.arm, comparison.baseline
    updates, audio = (comparison.ratios[axis] for axis in ("step", "audio_seconds"))
    if updates is None or audio is None:
        return f"No ratio can be given: {_single(spec, baseline)} {_single(spec, arm)}"
    shown = [f"{ratio.estimate:.2f}x {of}" for ratio, of in ((updates, "the updates"), (audio, "the audio"))]
    intervals = " and ".join(f"{ratio.low:.2f}-{ratio.high:.2f}" for ratio in (updates, audio))
    whole = arm.complete and baseline.complete
    restricted = "" if whole else " Not all seeds reached it: these are ratios of restricted means."
    return (
        f"The accelerator time of {arm.arm} and {baseline.arm} does not compare: to a {goal_text(spec)}, pre-training "
        f"included, {arm.arm} needs {' and '.join(shown)} of {baseline.arm} (95 % intervals {intervals}, "
        f"{len(arm.trials)} and {len(baseline.trials)} seeds).{restricted}"
    )


def device_sentences(devices: Devices) -> list[str]:
    """What became of accelerator time, where the trials that stand for the arms ran on several devices."""
    standing = [device for device in devices.found if device.standing]
    references = list(dict.fromkeys(device.reference for device in standing))
    sentences = [
        f"Accelerator time is counted as on {reference}: on equal work, {' and '.join(map(_speed_text, others))}."
        for reference in references
        if (others := [d for d in standing if d.reference == reference != d.name])
    ]
    if len(references) > 1:
        sentences.append(
            f"Accelerator time on {' and on '.join(references)} does not compare, for no equal work ran on both; "
            "updates and audio do."
        )
    return sentences


def _speed_text(device: Device) -> str:
    shapes = f"{device.shapes} shape{'s' if device.shapes > 1 else ''} of work"
    return f"{device.name} is {device.speed:.2f} times as fast ({device.low:.2f}-{device.high:.2f}, {shapes})"


def _without_sentence(comparison: Comparison) -> str:
    """The ratio as if pre-training cost nothing; empty where there is none."""
    ratio = comparison.ratios["accelerator_seconds"]
    if ratio is None:
        return ""
    verdict = "" if comparison.significant else ", no significant difference"
    return f" With pre-training left out, it is {ratio.estimate:.2f}x ({ratio.low:.2f}-{ratio.high:.2f}){verdict}."


def _restriction(arm: ArmResult, baseline: ArmResult) -> str:
    """What the ratio is of, where not all seeds reached the target."""
    if arm.complete and baseline.complete:
        return ""
    axis: Axis = "accelerator_seconds"
    horizon = common_horizon(arm.durations(arm.target, axis), baseline.durations(arm.target, axis))
    return (
        f" Not all seeds reached it ({arm.reached} of {len(arm.trials)} and {baseline.reached} of "
        f"{len(baseline.trials)}): this is the ratio of restricted means, of what is spent of the first "
        f"{time_text(horizon)} until the target."
    )


def _front_sentence(found: Front) -> str:
    """How many configurations are on the front, and what it spans."""
    best = found.best
    spans = (_span(name, [candidate.means[name].estimate for candidate in best]) for name in found.objectives)
    return f"On the Pareto front are {len(best)} of {len(found.candidates)} configurations: {', '.join(spans)}."


def _span(objective: str, values: Sequence[float]) -> str:
    low, high = (objective_text(objective, mean_of([value])) for value in (min(values), max(values)))
    return f"{objective_name(objective)} {low} to {high}"


def answer_as_dict(found: Answer) -> dict[str, Any]:
    """What `study report --json` prints."""
    return {
        "answer": found.sentences,
        "arms": [
            {
                "arm": a.arm,
                "trials": [t.trial for t in a.trials],
                "fresh_seeds": a.fresh_seeds,
                "final": a.final,
                "rates": {name: asdict(mean) for name, mean in a.rates.items()},
                "spent": a.spent,
            }
            for a in found.arms
        ],
        "cells": [
            {
                "arm": c.arm,
                "point": c.point,
                "trials": [t.trial for t in c.trials],
                "rates": {name: asdict(mean) for name, mean in c.rates.items()},
            }
            for c in found.cells
        ],
        "ratios": [_comparison_as_dict(c) for c in found.comparisons],
        "ratios_without_pretraining": [_comparison_as_dict(c) for c in found.without_pretraining],
        "targets": [asdict(row) for row in found.targets],
        "whole_curves": [asdict(row) for row in found.whole_curves],
        "front": _front_as_dict(found.front) if found.front else None,
        "scaling": scaling_as_dict(found.scaling) if found.scaling else None,
        "devices": [asdict(device) for device in found.devices.found],
    }


def _comparison_as_dict(comparison: Comparison) -> dict[str, Any]:
    return {
        "arm": comparison.arm.arm,
        "baseline": comparison.baseline.arm,
        **{axis: asdict(ratio) if ratio else None for axis, ratio in comparison.ratios.items()},
        "p_values": comparison.p_values,
    }


def _front_as_dict(found: Front) -> dict[str, Any]:
    return {
        "objectives": list(found.objectives),
        "configurations": [
            {
                "arm": c.arm,
                "point": c.point,
                "trials": [t.trial for t in c.trials],
                "objectives": {name: asdict(mean) for name, mean in c.means.items()},
                "on_front": c.on_front,
                "probability": c.probability,
            }
            for c in found.candidates
        ],
        "hypervolume": found.hypervolume,
    }


def _percentages(values: list[float]) -> str:
    return ", ".join(f"{value:.1%}" for value in values)
