"""From the ledger to the scaling laws of a study's arms, in numbers and in sentences."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from study.convergence import Axis, spent_until
from study.devices import Devices
from study.ledger import Ledger, Trial
from study.scaling import (
    Bootstrap,
    BreakEven,
    Form,
    HeldOut,
    Interval,
    Joint,
    Measurement,
    NoAsymptote,
    PowerLaw,
    Repetition,
    ScalingError,
    bootstrap,
    break_even,
    compare_forms,
    effective_size,
    refuse,
    refuse_joint,
    size_text,
)
from study.spec import METRICS, ScalingSpec, StudySpec

BEYOND = 10.0  # how far past the largest measured size two arms may cross
MISFIT = 0.05  # p-values from here down

FORMS: dict[str, Form] = {"power_law": PowerLaw(), "repetition": Repetition(), "joint": Joint()}
SPENT: dict[str, tuple[Axis, float]] = {  # metric -> what is spent until the target, and its unit
    "updates_to_target": ("step", 1.0),
    "audio_hours_to_target": ("audio_seconds", 3600.0),
    "accelerator_hours_to_target": ("accelerator_seconds", 3600.0),
}


@dataclass(frozen=True)
class ArmScaling:
    """The law of an arm, or why there is none."""

    arm: str
    measurements: list[Measurement]
    refused: str | None
    found: Bootstrap | None
    held_out: list[HeldOut]  # without an asymptote, and with one; other forms alone
    reference: float = 1.0  # second size that curves, predictions and crossings are about; of repetition: seen once

    @property
    def sizes(self) -> list[float]:
        """The distinct ones, smallest first."""
        return sorted({m.size for m in self.measurements})


@dataclass(frozen=True)
class Crossing:
    """Where an arm and its baseline change places; None: not in the range."""

    arm: str
    baseline: str
    range: tuple[float, float]
    at: BreakEven | None
    better_above: str  # the arm with the lower values at the end of the range


@dataclass(frozen=True)
class ScalingResult:
    size: str  # path of the trial, or `parameters`
    metric: str
    form: str
    second: str | None  # of `joint`; its path of the trial, or `parameters`
    predict_at: tuple[float, ...]
    arms: list[ArmScaling]
    crossings: list[Crossing]

    @property
    def size_name(self) -> str:
        """As a person reads it; `corpus.unlabelled_hours` is `unlabelled hours`."""
        return _name(self.size)

    @property
    def second_name(self) -> str | None:
        """Of what the law takes beside the size."""
        return {"repetition": "epochs", "joint": _name(self.second or "")}.get(self.form)

    def position(self, measurement: Measurement) -> float:
        """On the axis of sizes; repeated hours count for less and less."""
        return effective_size(measurement) if self.form == "repetition" else measurement.size

    @property
    def unit(self) -> tuple[float, str]:
        """Factor and sign with which values are shown: rates in percent."""
        return (100.0, "%") if self.metric in METRICS else (1.0, "")

    def interval_text(self, interval: Interval) -> str:
        """`11.0% (0.0-18.2)`, or `1,240 (1,100-1,390)`."""
        return f"{self._number_text(interval.estimate)}{self.unit[1]} ({self.range_text(interval)})"

    def range_text(self, interval: Interval) -> str:
        """The ends of the interval."""
        return f"{self._number_text(interval.low)}-{self._number_text(interval.high)}"

    def _number_text(self, value: float) -> str:
        factor, sign = self.unit
        digits = ".1f" if sign else ",.3g" if abs(value) < 999.5 else ",.0f"
        return f"{value * factor:{digits}}"

    def sentences(self, metric_name: str) -> list[str]:
        """What is known of each arm, and where arms cross."""
        laws = (_law_sentence(self, arm, metric_name) for arm in self.arms)
        return [*laws, *(_crossing_sentence(self, crossing, metric_name) for crossing in self.crossings)]


def scaling_result(spec: StudySpec, ledger: Ledger, devices: Devices) -> ScalingResult | None:
    """The laws of the arms that the study names; None where it asks for none."""
    if spec.scaling is None:
        return None
    scaled = [t for t in ledger.trials(spec.study) if t.arm in spec.scaled_arms and t.status == "finished"]
    references = devices.references_of(ledger, scaled)
    arms = [
        _arm_scaling(spec.scaling, arm, *_measurements(spec, ledger, arm, devices), references)
        for arm in spec.scaled_arms
    ]
    of = {arm.arm: arm for arm in arms}
    pairs = [(of[arm], of[baseline]) for arm, baseline in spec.comparisons() if arm in of and baseline in of]
    crossings = [found for arm, baseline in pairs if (found := _crossing(arm, baseline))]
    asked = spec.scaling
    return ScalingResult(asked.size, asked.metric, asked.form, asked.second, asked.predict_at, arms, crossings)


def _measurements(spec: StudySpec, ledger: Ledger, arm: str, devices: Devices) -> tuple[list[Measurement], int]:
    """The finished trials of the arm that have sizes and the metric; of those of equal sizes and seed, the best one.

    And how many more have sizes, but did not reach the target.
    """
    asked = spec.scaling
    assert asked is not None
    best: dict[tuple[float, float, int], Measurement] = {}
    missed = set()
    for trial in ledger.trials(spec.study):
        if trial.arm != arm or trial.status != "finished":
            continue
        final = ledger.final(spec.study, trial.trial)
        size, second = _size(trial, final, asked.size), _second(ledger, trial, final, asked)
        value = final.get(asked.metric) if asked.metric in METRICS else _value(spec, ledger, trial, devices)
        if size is None or second is None:
            continue
        updates = ledger.trial_stages(trial.study, trial.trial)[0]["steps"]
        key = (size, float(updates) if asked.form == "repetition" else second, trial.seed)
        if value is None:
            missed.update([key] if asked.metric in SPENT else [])
        elif key not in best or value < best[key].value:
            best[key] = Measurement(size, value, trial.seed, second)
    found = _with_mean_epochs(best) if asked.form == "repetition" else list(best.values())
    return sorted(found, key=lambda m: (m.size, m.second, m.seed)), len(missed - best.keys())


def _with_mean_epochs(found: Mapping[tuple[float, float, int], Measurement]) -> list[Measurement]:
    """Seeds of one size and number of updates hear their speech about equally often, for batches differ: the mean."""
    epochs = defaultdict(list)
    for (size, updates, _), measurement in found.items():
        epochs[size, updates].append(measurement.second)
    return [replace(m, second=statistics.fmean(epochs[size, updates])) for (size, updates, _), m in found.items()]


def _value(spec: StudySpec, ledger: Ledger, trial: Trial, devices: Devices) -> float | None:
    """What is spent until the target, None: it was not reached; or the training loss that was reported last."""
    assert spec.scaling is not None
    metric = spec.scaling.metric
    if metric not in SPENT:
        losses = ledger.curve(spec.study, trial.trial, metric)
        return losses[-1].value if losses else None
    axis, unit = SPENT[metric]
    curve = devices.curve(ledger, trial, spec.convergence.metric)
    spent = spent_until(curve, spec.convergence.target, axis)
    return None if spent is None else spent / unit


def _second(ledger: Ledger, trial: Trial, final: Mapping[str, float], asked: ScalingSpec) -> float | None:
    """What the law takes beside the size; None where the trial has none."""
    if asked.form == "repetition":  # epochs of the first stage, the pre-training
        curve = ledger.curve(trial.study, trial.trial)
        epochs = [point.epochs for point in curve if point.stage == curve[0].stage]
        return max(1.0, epochs[-1]) if epochs else None
    return _size(trial, final, asked.second) if asked.second else 1.0


def _name(path: str) -> str:
    return path.rpartition(".")[2].replace("_", " ")


def _size(trial: Trial, final: Mapping[str, float], path: str) -> float | None:
    """None where the trial has none."""
    if path == "parameters":
        return final.get(path)
    value: Any = trial.config
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def _arm_scaling(
    asked: ScalingSpec, arm: str, measurements: list[Measurement], missed: int, references: frozenset[str]
) -> ArmScaling:
    form = FORMS[asked.form]
    compared = (NoAsymptote(), form) if asked.form == "power_law" else (form,)
    try:
        refused = _incomparable(asked, references) or _censored(measurements, missed)
        refused = refused or (refuse_joint if asked.form == "joint" else refuse)(measurements)
        if refused is None:
            held_out = compare_forms(measurements, compared)
            largest = max(measurements, key=lambda m: (m.size, m.second))
            reference = largest.second if asked.form == "joint" else 1.0
            return ArmScaling(arm, measurements, None, bootstrap(measurements, form), held_out, reference)
    except ScalingError as error:
        refused = str(error)
    return ArmScaling(arm, measurements, refused, None, [])


def _incomparable(asked: ScalingSpec, references: frozenset[str]) -> str | None:
    """A law of times on devices of unknown speeds would be about the devices."""
    if asked.metric != "accelerator_hours_to_target" or len(references) < 2:
        return None
    return (
        f"accelerator time on {' and on '.join(sorted(references))} does not compare, for no equal work ran on both: "
        "take updates_to_target or audio_hours_to_target"
    )


def _censored(measurements: Sequence[Measurement], missed: int) -> str | None:
    """A law of the runs that reached the target would be too good."""
    if not missed:
        return None
    runs = len(measurements) + missed
    return f"{missed} of {runs} runs did not reach the target: train them for longer, or take a target that all reach"


def _crossing(arm: ArmScaling, baseline: ArmScaling) -> Crossing | None:
    """None where one of the two has no law."""
    if arm.found is None or baseline.found is None:
        return None
    smallest = min(arm.sizes[0], baseline.sizes[0])
    largest = BEYOND * max(arm.sizes[-1], baseline.sizes[-1])
    second = arm.reference
    sides = ((arm, arm.found), (baseline, baseline.found))
    above = min(sides, key=lambda side: side[1].law.predict(largest, second))[0]
    found = break_even(arm.found, baseline.found, smallest, largest, second)
    return Crossing(arm.arm, baseline.arm, (smallest, largest), found, above.arm)


def _law_sentence(result: ScalingResult, arm: ArmScaling, metric_name: str) -> str:
    if arm.found is None:
        return f"{arm.arm}: no scaling law of the {metric_name} can be told: {arm.refused}."
    found, asymptote = arm.found, result.interval_text(arm.found.parameter("E"))
    parts = [
        f"{arm.arm}: {metric_name} falls as {_powers(result, found)} towards {asymptote}.",
        *(_prediction(result, arm, found, size) for size in result.predict_at),
    ]
    if arm.found.law.misfit is not None and arm.found.law.misfit <= MISFIT:
        parts.append(
            f"The curve misses the means over seeds by more than their noise (p = {arm.found.law.misfit:.2g}): "
            "its intervals are too narrow."
        )
    return " ".join(parts)


def _powers(result: ScalingResult, found: Bootstrap) -> str:
    """`unlabelled hours^-0.48 (95 % interval 0.45-0.52)`, and what the other forms say besides."""
    first = f"{result.size_name}^-{_exponent(found.parameter('alpha'))}"
    if result.form == "joint":
        return f"{first} and {result.second_name}^-{_exponent(found.parameter('beta'))}"
    if result.form == "repetition":
        return f"{first}, repeated hours counted as Muennighoff et al. do (R* = {found.law.parameters['R*']:g}),"
    return first


def _exponent(interval: Interval) -> str:
    return f"{interval.estimate:.2f} (95 % interval {interval.low:.2f}-{interval.high:.2f})"


def _prediction(result: ScalingResult, arm: ArmScaling, found: Bootstrap, size: float) -> str:
    mean, run = found.mean_at(size, arm.reference), found.new_run_at(size, arm.reference)
    beside = {"repetition": ", seen once,", "joint": f" and {size_text(arm.reference)} {result.second_name}"}
    at = f"{size_text(size)} {result.size_name}{beside.get(result.form, '')}"
    average, single = result.interval_text(mean), result.range_text(run)
    return f"At {at} it would be {average} on average, and {single} with a single new run."


def _crossing_sentence(result: ScalingResult, crossing: Crossing, metric_name: str) -> str:
    low, high = map(size_text, crossing.range)
    arm, baseline = crossing.arm, crossing.baseline
    if crossing.at is None:
        return (
            f"From {low} to {high} {result.size_name}, the curves of {arm} and {baseline} do not cross; "
            f"{crossing.better_above} has the lower {metric_name}."
        )
    other = baseline if crossing.better_above == arm else arm
    return (
        f"From {size_text(crossing.at.size)} {result.size_name} on (95 % interval "
        f"{break_even_range(crossing)}), {crossing.better_above} has a lower {metric_name} than {other}."
    )


def break_even_range(crossing: Crossing) -> str:
    """`90-410`; an end that lies beyond the range is shown as such."""
    assert crossing.at is not None
    low, high = crossing.at.low, crossing.at.high
    return (
        f"{f'below {size_text(crossing.range[0])}' if low is None else size_text(low)} to "
        f"{f'above {size_text(crossing.range[1])}' if high is None else size_text(high)}"
    )


def scaling_as_dict(result: ScalingResult) -> dict[str, Any]:
    """What `study report --json` prints of it."""
    return {
        "size": result.size,
        "metric": result.metric,
        "form": result.form,
        "second": result.second_name,
        "arms": [_arm_as_dict(arm, result.predict_at) for arm in result.arms],
        "crossings": [asdict(crossing) for crossing in result.crossings],
    }


def _arm_as_dict(arm: ArmScaling, predict_at: Sequence[float]) -> dict[str, Any]:
    return {
        "arm": arm.arm,
        "measurements": [asdict(m) for m in arm.measurements],
        "refused": arm.refused,
        "law": _law_as_dict(arm.found, predict_at, arm.reference) if arm.found else None,
        "held_out": {h.name: h.error for h in arm.held_out},
    }


def _law_as_dict(found: Bootstrap, predict_at: Sequence[float], second: float) -> dict[str, Any]:
    return {
        **{name: asdict(found.parameter(name)) for name in found.law.form.names},
        "noise": found.law.noise,
        "misfit": found.law.misfit,
        "predictions": [
            {
                "size": size,
                "second": second,
                "mean": asdict(found.mean_at(size, second)),
                "new_run": asdict(found.new_run_at(size, second)),
            }
            for size in predict_at
        ],
    }
