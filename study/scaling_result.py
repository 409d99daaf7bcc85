"""From the ledger to the scaling laws of a study's arms, in numbers and in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from study.ledger import Ledger, Trial
from study.scaling import (
    Bootstrap,
    BreakEven,
    HeldOut,
    Interval,
    Measurement,
    PowerLaw,
    ScalingError,
    bootstrap,
    break_even,
    compare_forms,
    refuse,
    size_text,
)
from study.spec import StudySpec

BEYOND = 10.0  # how far past the largest measured size two arms may cross
MISFIT = 0.05  # p-values from here down


@dataclass(frozen=True)
class ArmScaling:
    """The law of an arm, or why there is none."""

    arm: str
    measurements: list[Measurement]
    refused: str | None
    found: Bootstrap | None
    held_out: list[HeldOut]  # without an asymptote, and with one

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
    predict_at: tuple[float, ...]
    arms: list[ArmScaling]
    crossings: list[Crossing]

    @property
    def size_name(self) -> str:
        """As a person reads it; `corpus.unlabelled_hours` is `unlabelled hours`."""
        return self.size.rpartition(".")[2].replace("_", " ")

    def sentences(self, metric_name: str) -> list[str]:
        """What is known of each arm, and where arms cross."""
        laws = (_law_sentence(self, arm, metric_name) for arm in self.arms)
        return [*laws, *(_crossing_sentence(self, crossing, metric_name) for crossing in self.crossings)]


def scaling_result(spec: StudySpec, ledger: Ledger) -> ScalingResult | None:
    """The laws of the arms that the study names; None where it asks for none."""
    if spec.scaling is None:
        return None
    arms = [_arm_scaling(arm, _measurements(spec, ledger, arm)) for arm in spec.scaled_arms]
    of = {arm.arm: arm for arm in arms}
    pairs = [(of[arm], of[baseline]) for arm, baseline in spec.comparisons() if arm in of and baseline in of]
    crossings = [found for arm, baseline in pairs if (found := _crossing(arm, baseline))]
    return ScalingResult(spec.scaling.size, spec.scaling.metric, spec.scaling.predict_at, arms, crossings)


def _measurements(spec: StudySpec, ledger: Ledger, arm: str) -> list[Measurement]:
    """The finished trials of the arm that have a size and the metric; of those of one size and seed, the best one."""
    assert spec.scaling is not None
    best: dict[tuple[float, int], Measurement] = {}
    for trial in ledger.trials(spec.study):
        if trial.arm != arm or trial.status != "finished":
            continue
        final = ledger.final(spec.study, trial.trial)
        size, value = _size(trial, final, spec.scaling.size), final.get(spec.scaling.metric)
        if size is None or value is None:
            continue
        known = best.get((size, trial.seed))
        if known is None or value < known.value:
            best[size, trial.seed] = Measurement(size, value, trial.seed)
    return sorted(best.values(), key=lambda m: (m.size, m.seed))


def _size(trial: Trial, final: Mapping[str, float], path: str) -> float | None:
    """None where the trial has none."""
    if path == "parameters":
        return final.get(path)
    value: Any = trial.config
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def _arm_scaling(arm: str, measurements: list[Measurement]) -> ArmScaling:
    try:
        refused = refuse(measurements)
        if refused is None:
            return ArmScaling(arm, measurements, None, bootstrap(measurements, PowerLaw()), compare_forms(measurements))
    except ScalingError as error:
        refused = str(error)
    return ArmScaling(arm, measurements, refused, None, [])


def _crossing(arm: ArmScaling, baseline: ArmScaling) -> Crossing | None:
    """None where one of the two has no law."""
    if arm.found is None or baseline.found is None:
        return None
    smallest = min(arm.sizes[0], baseline.sizes[0])
    largest = BEYOND * max(arm.sizes[-1], baseline.sizes[-1])
    above = min((arm, arm.found), (baseline, baseline.found), key=lambda side: side[1].law.predict(largest))[0]
    found = break_even(arm.found, baseline.found, smallest, largest)
    return Crossing(arm.arm, baseline.arm, (smallest, largest), found, above.arm)


def _law_sentence(result: ScalingResult, arm: ArmScaling, metric_name: str) -> str:
    if arm.found is None:
        return f"{arm.arm}: no scaling law of the {metric_name} can be told: {arm.refused}."
    alpha, asymptote = arm.found.parameter("alpha"), arm.found.parameter("E")
    parts = [
        f"{arm.arm}: {metric_name} falls as {result.size_name}^-{alpha.estimate:.2f} (95 % interval {alpha.low:.2f}-"
        f"{alpha.high:.2f}) towards {percent_interval(asymptote)}.",
        *(_prediction(result, arm.found, size) for size in result.predict_at),
    ]
    if arm.found.law.misfit is not None and arm.found.law.misfit <= MISFIT:
        parts.append(
            f"The curve misses the means over seeds by more than their noise (p = {arm.found.law.misfit:.2g}): "
            "its intervals are too narrow."
        )
    return " ".join(parts)


def _prediction(result: ScalingResult, found: Bootstrap, size: float) -> str:
    mean, run = found.mean_at(size), found.new_run_at(size)
    return (
        f"At {size_text(size)} {result.size_name} it would be {percent_interval(mean)} on average, and {_range(run)} "
        "with a single new run."
    )


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


def percent_interval(interval: Interval) -> str:
    """`11.0% (0.0-18.2)`."""
    return f"{interval.estimate:.1%} ({_range(interval)})"


def _range(interval: Interval) -> str:
    return f"{100 * interval.low:.1f}-{100 * interval.high:.1f}"


def scaling_as_dict(result: ScalingResult) -> dict[str, Any]:
    """What `study report --json` prints of it."""
    return {
        "size": result.size,
        "metric": result.metric,
        "arms": [_arm_as_dict(arm, result.predict_at) for arm in result.arms],
        "crossings": [asdict(crossing) for crossing in result.crossings],
    }


def _arm_as_dict(arm: ArmScaling, predict_at: Sequence[float]) -> dict[str, Any]:
    return {
        "arm": arm.arm,
        "measurements": [{"size": m.size, "value": m.value, "seed": m.seed} for m in arm.measurements],
        "refused": arm.refused,
        "law": _law_as_dict(arm.found, predict_at) if arm.found else None,
        "held_out": {h.name: h.error for h in arm.held_out},
    }


def _law_as_dict(found: Bootstrap, predict_at: Sequence[float]) -> dict[str, Any]:
    return {
        **{name: asdict(found.parameter(name)) for name in found.law.form.names},
        "noise": found.law.noise,
        "misfit": found.law.misfit,
        "predictions": [
            {"size": size, "mean": asdict(found.mean_at(size)), "new_run": asdict(found.new_run_at(size))}
            for size in predict_at
        ],
    }
