"""From the ledger to the answer of a study: which trials stand for an arm, and how the arms compare."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from study.convergence import Axis, spent_until
from study.ledger import Ledger, Trial
from study.pareto import front_probability, hypervolume_over_time, non_dominated, reference_point
from study.spec import StudySpec
from study.statistics import Mean, Ratio, mean_of, ratio_of_means

AXES: dict[Axis, str] = {
    "step": "updates",
    "audio_seconds": "audio processed",
    "accelerator_seconds": "accelerator time",
}

# In the order in which they are shown. Every trial has character and word error rates; code-switched speech has mixed
# ones, too.
RATES = tuple(
    f"{split}_{rate}"
    for split in ("dev", "test")
    for rate in ("cer", "wer", "mer", "mer_switched", "mer_monolingual", "pier")
)
Rate = TypeVar("Rate")
WITH_LM = "_lm"  # ending of a rate that was decoded with a language model
ALWAYS_SHOWN = frozenset(f"{split}_{rate}" for split in ("dev", "test") for rate in ("cer", "wer"))


@dataclass(frozen=True)
class ArmResult:
    """The trials that stand for an arm, and what each of them spent until the target; None: never reached."""

    arm: str
    trials: list[Trial]
    fresh_seeds: bool  # replications; otherwise the one best trial of the search, which chance has flattered
    final: list[float]  # of the convergence metric
    rates: dict[str, Mean]  # of the metrics in RATES, over the trials
    spent: dict[Axis, list[float | None]]

    @property
    def reached(self) -> int:
        return sum(cost is not None for cost in self.spent["step"])


@dataclass(frozen=True)
class Comparison:
    """What `arm` spends until the target relative to `baseline`, on each axis where that can be estimated."""

    arm: ArmResult
    baseline: ArmResult
    ratios: dict[Axis, Ratio | None]


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
    sentences: list[str]
    cells: list[Cell]
    front: Front | None  # None: the study has one objective


def arm_result(spec: StudySpec, ledger: Ledger, arm: str) -> ArmResult:
    finished = [t for t in ledger.trials(spec.study) if t.arm == arm and t.status == "finished"]
    replications = [t for t in finished if t.origin == "replication"]
    if replications:  # of several configurations, the one whose replications are best on average
        replications = _best_configuration(spec, ledger, replications)
    searched = ledger.ranked((t for t in finished if t.origin == "search"), spec.search.metric)
    trials = replications or searched[:1]
    metric, target = spec.convergence.metric, spec.convergence.target
    curves = [ledger.curve(spec.study, t.trial, metric) for t in trials]
    finals = [ledger.final(t.study, t.trial) for t in trials]
    return ArmResult(
        arm=arm,
        trials=trials,
        fresh_seeds=bool(replications),
        final=[final[metric] for final in finals],
        rates=_rates(finals),
        spent={axis: [spent_until(curve, target, axis) for curve in curves] for axis in AXES},
    )


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

    return min(by_number.values(), key=mean_final)


def answer(spec: StudySpec, ledger: Ledger) -> Answer:
    """The comparison of every arm with the first one, in numbers and in sentences."""
    arms = [arm_result(spec, ledger, arm) for arm in spec.arms]
    of = {arm.arm: arm for arm in arms}
    comparisons = [_compare(of[arm], of[baseline]) for arm, baseline in spec.comparisons()]
    sentences = [_sentence(spec, comparison) for comparison in comparisons] or [_single(spec, arms[0])]
    found = cells(spec, ledger)
    leading = front(spec, ledger, found)
    if leading and leading.candidates:
        sentences.append(_front_sentence(leading))
    return Answer(arms, comparisons, sentences, found, leading)


def _compare(arm: ArmResult, baseline: ArmResult) -> Comparison:
    ratios: dict[Axis, Ratio | None] = {}
    for axis in AXES:
        ours, theirs = arm.spent[axis], baseline.spent[axis]
        complete = None not in ours and None not in theirs
        ratios[axis] = ratio_of_means([c for c in ours if c], [c for c in theirs if c]) if complete else None
    return Comparison(arm, baseline, ratios)


def _goal(spec: StudySpec) -> str:
    return f"{metric_name(spec.convergence.metric)} of {spec.convergence.target:.0%}"


def _single(spec: StudySpec, arm: ArmResult) -> str:
    if not arm.trials:
        return f"No trial of {arm.arm} has finished."
    return (
        f"{arm.arm} reached a {_goal(spec)} with {arm.reached} of {len(arm.trials)} seed(s); "
        f"final {metric_name(spec.convergence.metric)} {_percentages(arm.final)}."
    )


def _sentence(spec: StudySpec, comparison: Comparison) -> str:
    arm, baseline, ratio = comparison.arm, comparison.baseline, comparison.ratios["accelerator_seconds"]
    for side in (baseline, arm):
        if not side.trials:
            return f"No answer: no trial of {side.arm} has finished."
    for side in (baseline, arm):
        if side.reached < len(side.trials):
            return f"No ratio can be given: {_single(spec, baseline)} {_single(spec, arm)}"
    if ratio is None:
        return (
            f"No interval can be given: it needs two fresh seeds of each arm. {_single(spec, baseline)} "
            f"{_single(spec, arm)}"
        )
    verdict = (
        f"{arm.arm} converges {'faster' if ratio.estimate < 1 else 'slower'} than {baseline.arm}"
        if ratio.significant
        else f"No significant difference between {arm.arm} and {baseline.arm}"
    )
    return (
        f"{verdict}: to a {_goal(spec)}, pre-training included, {arm.arm} needs {ratio.estimate:.2f}x the accelerator "
        f"time of {baseline.arm} (95 % interval {ratio.low:.2f}-{ratio.high:.2f}, {len(arm.trials)} and "
        f"{len(baseline.trials)} seeds)."
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
        "ratios": [
            {
                "arm": c.arm.arm,
                "baseline": c.baseline.arm,
                **{axis: asdict(ratio) if ratio else None for axis, ratio in c.ratios.items()},
            }
            for c in found.comparisons
        ],
        "front": _front_as_dict(found.front) if found.front else None,
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


def shown_rates(found: Iterable[Mapping[str, object]]) -> list[str]:
    """The metrics of RATES that a table has columns for: those that any of its rows has, and the usual four."""
    there = {name for rates in found for name in rates}
    return [name for name in RATES if name in there or name in ALWAYS_SHOWN]


def by_decoding(rates: Mapping[str, Rate]) -> dict[str, dict[str, Rate]]:
    """The rates of greedy decoding, and of decoding with a language model where that was done, under the same names."""
    with_lm = {name.removesuffix(WITH_LM): rate for name, rate in rates.items() if name.endswith(WITH_LM)}
    greedy = {name: rate for name, rate in rates.items() if not name.endswith(WITH_LM)}
    return {"greedy": greedy, **({"+ LM": with_lm} if with_lm else {})}


def metric_name(metric: str) -> str:
    """`dev_cer` as a person reads it; `dev_wer_lm` is `dev WER + LM`."""
    split, _, rate = metric.removesuffix(WITH_LM).partition("_")
    name, _, of = rate.partition("_")
    decoding = " + LM" if metric.endswith(WITH_LM) else ""
    return f"{split} {name.upper()}{f' {of}' if of else ''}{decoding}"


def rate_text(mean: Mean | None) -> str:
    """`31.2% (29.8-32.6)`; without an interval where one trial stands for the arm."""
    if mean is None:
        return ""
    if mean.low is None or mean.high is None:
        return f"{mean.estimate:.1%}"
    return f"{mean.estimate:.1%} ({100 * max(0.0, mean.low):.1f}-{100 * mean.high:.1f})"  # no rate is below zero


def objective_name(objective: str) -> str:
    """As a person reads it; `accelerator_hours` is `accelerator hours`."""
    return metric_name(objective) if objective.startswith(("dev_", "test_")) else objective.replace("_", " ")


def objective_text(objective: str, mean: Mean) -> str:
    """With the interval, where there is one and its ends differ in three digits."""
    if objective.startswith(("dev_", "test_")):
        return rate_text(mean)
    if objective == "parameters":
        return f"{mean.estimate:,.0f}"  # the same with every seed
    if mean.low is None or mean.high is None:
        return f"{mean.estimate:.3g}"
    low, high = f"{max(0.0, mean.low):.3g}", f"{mean.high:.3g}"  # neither time nor cost is below zero
    return f"{mean.estimate:.3g} ({low}-{high})" if low != high else low


def probability_text(probability: float | None) -> str:
    return "unknown" if probability is None else f"{probability:.0%}"


def _percentages(values: list[float]) -> str:
    return ", ".join(f"{value:.1%}" for value in values)
