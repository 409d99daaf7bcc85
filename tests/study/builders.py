"""Sweeps, ledgers and curves made by hand, for tests that know what must come out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from search_spaces.space import Point
from study.ledger import Ledger, Origin, Status
from study.provenance import environment
from study.spec import StudySpec
from trainables.stage import Report, Stage
from trainables.trial import TrialConfig, stages_of

LEARNING_RATE = "regime.train.learning_rate"
SECONDS_OF_AUDIO_A_STEP = 24.0
REPORTED_FROM = 1_700_000_000.0


def supervised(steps: int = 40, **train: Any) -> dict[str, Any]:
    return {"regime": {"kind": "supervised", "train": {"steps": steps, **train}}}


def pretrain_finetune(pretrain: Mapping[str, Any] | None = None, **finetune: Any) -> dict[str, Any]:
    regime = {
        "kind": "pretrain_finetune",
        "pretrain": {"steps": 100, **(pretrain or {})},
        "finetune": {"steps": 40, **finetune},
    }
    return {"regime": regime}


def sweep(storage: Path, **changes: Any) -> dict[str, Any]:
    """Two arms of one stage each, `slow` (the baseline) and `fast`; dev CER is to come down to 50 %."""
    space = {LEARNING_RATE: {"kind": "log_uniform", "low": 1e-4, "high": 1e-2}}
    return {
        "study": "race",
        "question": "Which one is faster?",
        "storage": str(storage),
        "arms": {
            "slow": {"trial": supervised(), "space": space},
            "fast": {"trial": supervised(augment_speed=False), "space": space},
        },
        "search": {"trials": 2, "metric": "dev_cer", "sampler": {"kind": "random"}},
        "replication": {"top": 1, "seeds": 3},
        "convergence": {"metric": "dev_cer", "target": 0.5},
        **changes,
    }


def spec_of(storage: Path, **changes: Any) -> StudySpec:
    return StudySpec.model_validate(sweep(storage, **changes))


def write_sweep(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps(sweep(path.parent / "results", **changes), indent=1), encoding="utf-8")
    return path


def open_study(spec: StudySpec) -> Ledger:
    ledger = Ledger.in_folder(spec.storage)
    ledger.open_study(spec.study, spec.model_dump(mode="json"), environment(spec))
    return ledger


def report(step: int, *, seconds_a_step: float = 1.0, device: str | None = None, **metrics: float) -> Report:
    """A report of a stage that costs the same at every step."""
    return Report(
        step=step,
        metrics=metrics,
        audio_seconds=SECONDS_OF_AUDIO_A_STEP * step,
        epochs=step / 10,
        elapsed_seconds=seconds_a_step * step,
        accelerator_seconds=seconds_a_step * step,
        reported_at=REPORTED_FROM + step,
        device=device,
    )


def dev_curve(values: Mapping[int, float], *, seconds_a_step: float = 1.0, device: str | None = None) -> list[Report]:
    """step -> dev CER as reports; the WER is the square root of it, and the last report has test metrics too."""
    last = max(values)
    reports = []
    for step, cer in values.items():
        metrics = {"dev_cer": cer, "dev_wer": cer**0.5}
        if step == last:
            metrics |= {"test_cer": cer, "test_wer": cer**0.5}
        reports.append(report(step, seconds_a_step=seconds_a_step, device=device, **metrics))
    return reports


def crossing_at(step: float) -> dict[int, float]:
    """A dev CER of 90 % at step 10 that comes down to 50 % at this step, in [19, 30], in a straight line to step 30."""
    return {10: 0.9, 30: 0.9 - 0.4 * 20 / (step - 10)}


def add_trial(
    ledger: Ledger,
    spec: StudySpec,
    arm: str,
    number: int = 0,
    *,
    origin: Origin = "search",
    point: Point | None = None,
    seed: int | None = None,
) -> tuple[str, Sequence[Stage]]:
    """Record an unfinished trial as the searcher would; returns its name and its stages."""
    config: TrialConfig = spec.trial_config(arm, point, seed)
    name = f"{arm}-{number:03d}" + (f"-seed{config.seed}" if origin == "replication" else "")
    stages = stages_of(config)
    ledger.add_trial(
        spec.study,
        name,
        arm=arm,
        number=number,
        origin=origin,
        grid={},
        point=point or {},
        config=config.model_dump(mode="json"),
        seed=config.seed,
        stages=stages,
    )
    return name, stages


def run_trial(
    ledger: Ledger,
    spec: StudySpec,
    arm: str,
    number: int = 0,
    *,
    curve: Mapping[int, float],
    origin: Origin = "search",
    seed: int | None = None,
    rate: float = 1e-3,
    seconds_a_step: float = 1.0,
    device: str | None = None,
    status: Status = "finished",
    cause: str | None = None,
) -> str:
    """Record a trial of a one-stage arm, its dev curve and its end."""
    name, stages = add_trial(ledger, spec, arm, number, origin=origin, point={LEARNING_RATE: rate}, seed=seed)
    if curve:
        ledger.append(stages[-1].fingerprint(), dev_curve(curve, seconds_a_step=seconds_a_step, device=device))
    if status != "unfinished":
        ledger.end_trial(spec.study, name, status, cause)
    return name
