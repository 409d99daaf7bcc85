"""What the runs of a study in MLflow are told of its answer, so that its table and its compare page show it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from study.answer import Answer, ArmResult, Comparison
from study.convergence import Axis, duration
from study.inference_report import model_times
from study.ledger import Ledger, Trial
from study.spec import StudySpec
from study.statistics import Mean
from study.tracking import Conclusion, RunResults

UNITS: dict[Axis, tuple[str, float]] = {
    "step": ("updates", 1.0),
    "audio_seconds": ("audio_hours", 3600.0),
    "accelerator_seconds": ("accelerator_seconds", 1.0),
    "elapsed_seconds": ("elapsed_seconds", 1.0),
}


def conclusion(spec: StudySpec, ledger: Ledger, found: Answer, report: Path) -> Conclusion:
    """Of a study whose report is in the folder."""
    runs = {trial.trial: _of_trial(spec, ledger, found, trial) for trial in ledger.trials(spec.study)}
    for row in model_times(spec, ledger, found.cells):
        for trial in row.cell.trials:
            runs[trial.trial].metrics["inference_seconds"] = row.seconds
    return Conclusion(report, " ".join(found.sentences), {"study": _of_study(spec, found), **runs})


def _of_trial(spec: StudySpec, ledger: Ledger, found: Answer, trial: Trial) -> RunResults:
    """`updates_to_target` and so on where the target was reached, and whether the trial stands for its arm."""
    curve = found.devices.curve(ledger, trial, spec.convergence.metric)
    spent = {axis: until for axis in UNITS if (until := duration(curve, spec.convergence.target, axis))}
    metrics = {f"{UNITS[axis][0]}_to_target": d.value / UNITS[axis][1] for axis, d in spent.items() if d.reached}
    standing = any(trial in arm.trials for arm in found.arms)
    return RunResults(metrics, {"reached_target": _yes(metrics), "stands_for_arm": _yes(standing)})


def _of_study(spec: StudySpec, found: Answer) -> RunResults:
    """Means of the arms and ratios between them, with the ends of their 95 % intervals."""
    metrics: dict[str, float] = {}
    for arm in found.arms:
        metrics |= _means(arm)
    for comparison in found.comparisons:
        metrics |= _ratios(comparison)
    target = f"{spec.convergence.metric} <= {spec.convergence.target:g}"
    return RunResults(metrics, {"target": target, "arms": ", ".join(spec.arms)})


def _means(arm: ArmResult) -> dict[str, float]:
    return {
        name: value for rate, mean in arm.rates.items() for name, value in _interval(f"{arm.arm}/{rate}", mean).items()
    }


def _ratios(comparison: Comparison) -> Mapping[str, float]:
    found: dict[str, float] = {}
    for axis, ratio in comparison.ratios.items():
        if ratio:
            name = f"{comparison.arm.arm}/{UNITS[axis][0]}_ratio"
            found |= _interval(name, Mean(ratio.estimate, ratio.low, ratio.high))
    return found


def _interval(name: str, mean: Mean) -> dict[str, float]:
    ends = {} if mean.low is None or mean.high is None else {f"{name}_low": mean.low, f"{name}_high": mean.high}
    return {name: mean.estimate, **ends}


def _yes(value: object) -> str:
    return "yes" if value else "no"
