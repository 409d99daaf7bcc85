"""Whether a study that has ended is as it should be: everything once, nothing missing, nothing left over."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from study.ledger import CurvePoint, Ledger, Trial
from study.spec import StudySpec
from study.tracking import mirror_problems, tracking_uri
from trainables.remote_stages import RemoteStages
from trainables.stage import StageResult
from trainables.store import StageStore

MEASURED_TIMES = ("real_time_factor",)  # metrics that differ from run to run
_Value = tuple[str, str, int, float]  # stage, metric, step, value


def audit(spec: StudySpec, ledger: Ledger) -> list[str]:
    """What is wrong with a study that has ended: in the ledger, the stage store, the storage folder and MLflow."""
    trials = ledger.trials(spec.study)
    found = [f"{trial.trial} is unfinished" for trial in trials if trial.status == "unfinished"]
    for trial in trials:
        found += _trial_problems(spec, ledger, trial)
    found += [f"left behind: {path}" for path in _leftovers(spec)]
    if spec.mlflow.enabled:
        found += mirror_problems(ledger, spec.study, tracking_uri(spec.storage, spec.mlflow.tracking_uri))
    return found


def differences(spec: StudySpec, ledger: Ledger, reference: Ledger, *, determined: bool) -> list[str]:
    """In what the trials of a study differ from those of another run of the same sweep, times excepted.

    Where it is not `determined` what is proposed and what is stopped, only trials with equal settings are compared, and
    of those their curves.
    """
    ours = {trial.trial: trial for trial in ledger.trials(spec.study)}
    theirs = {trial.trial: trial for trial in reference.trials(spec.study)}
    found: list[str] = []
    if determined:
        found += [f"{name} is in one of the two only" for name in sorted(ours.keys() ^ theirs.keys())]
        for name in sorted(ours.keys() & theirs.keys()):
            found += _differing_fields(ours[name], theirs[name])
    for name in sorted(ours.keys() & theirs.keys()):
        one, other = ours[name], theirs[name]
        # Of a trial that did not finish, some points may come after the one that decided.
        if one.status == other.status == "finished" and one.config == other.config:
            curves = [set(_values(which.curve(spec.study, name))) for which in (ledger, reference)]
            if differing := curves[0] ^ curves[1]:
                found.append(f"{name}: {len(differing)} values differ, such as {min(differing, key=_step)}")
    return found


def _differing_fields(one: Trial, other: Trial) -> Iterator[str]:
    for field in ("status", "cause", "point", "config", "origin", "seed"):
        ours, theirs = getattr(one, field), getattr(other, field)
        if ours != theirs:
            yield f"{one.trial}: {field} is {json.dumps(ours)}, and {json.dumps(theirs)} in the other run"


def _step(value: _Value) -> int:
    return value[2]


def _trial_problems(spec: StudySpec, ledger: Ledger, trial: Trial) -> Iterator[str]:
    values = list(_values(ledger.curve(spec.study, trial.trial)))
    for (_, metric, step), count in Counter(value[:3] for value in values).items():
        if count > 1:
            yield f"{trial.trial}: {metric} at step {step} is there {count} times"
    if trial.status != "finished":
        return
    stored: list[_Value] = []
    before = 0
    for stage in ledger.trial_stages(spec.study, trial.trial):
        try:
            content = StageStore(spec.storage, spec.stages).read_named(stage["kind"], stage["name"], "result.json")
        except FileNotFoundError as error:
            yield f"{trial.trial}: its stage {stage['name']} is not in the store: {error}"
            return
        result = StageResult.model_validate_json(content)
        stored += [
            (stage["stage"], metric, before + report.step, value)
            for report in result.reports
            for metric, value in report.metrics.items()
        ]
        before += result.last.step
    if missing := set(stored) ^ {value for value in values if value[1] != "parameters"}:
        yield f"{trial.trial}: the ledger and the store differ in {len(missing)} values, such as {min(missing)}"


def _values(curve: list[CurvePoint]) -> Iterator[_Value]:
    for point in curve:
        if point.metric not in MEASURED_TIMES:
            yield point.stage, point.metric, point.step, point.value


def _leftovers(spec: StudySpec) -> list[Path | str]:
    """Checkpoints, leases and unfinished files; of this machine, and in the object storage."""
    if spec.stages:
        return [*_leftovers(spec.with_(stages=None)), *RemoteStages(spec.stages).leftovers()]
    stages = spec.storage / "stages"
    return sorted({*stages.glob("*/*.partial"), *stages.glob("*/*.lease"), *stages.glob("*/*/.*")})
