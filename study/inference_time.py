"""How long the models of a study take to recognise, measured when the search is over, with nothing beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cluster.exclusive import Accelerator, LostError, NotFreeError, whole_accelerator
from study.execution import group_size
from study.inference_report import is_wanted, model_key
from study.ledger import Ledger, Trial
from study.spec import InferenceTimeSpec, StudySpec
from study.watcher import Watcher
from trainables.inference_time import inference_time
from trainables.models.checkpoint_files import CheckpointError
from trainables.stage import Stage
from trainables.store import StageStore
from trainables.trial import TrialConfig, stages_of


def measure_inference_times(spec: StudySpec, ledger: Ledger, watcher: Watcher) -> None:
    """Measure each model of the finished trials that has not been measured, once, and write it to the ledger.

    Needs a connection to Ray. What cannot be measured is told; the same command measures it later.
    """
    wanted = spec.inference_time
    if wanted is None:
        return
    stages = list(_unmeasured(spec, ledger, wanted))
    if not stages:
        return
    gpu = any(group_size(spec.resources, stage.kind).gpus_per_worker > 0 for stage in stages)
    watcher.told(f"measuring the inference time of {len(stages)} model(s)")
    try:
        with whole_accelerator(gpu, 60 * wanted.wait_minutes) as accelerator:
            for stage in stages:
                _measure(spec, stage, wanted, accelerator, ledger, watcher)
    except (NotFreeError, LostError) as error:
        watcher.told(f"inference times were not measured: {error}; the same command measures them later")


def _measure(
    spec: StudySpec, stage: Stage, wanted: InferenceTimeSpec, accelerator: Accelerator, ledger: Ledger, watcher: Watcher
) -> None:
    protocol = (wanted.split, wanted.batch_seconds, wanted.warmup, wanted.repeats)
    try:
        folder = accelerator.run(_fetched, spec.storage, spec.stages, stage)
        found = accelerator.run(inference_time, folder, stage.corpus, *protocol)
    except LostError:
        raise
    except (CheckpointError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: torch, out of memory
        watcher.told(f"the inference time of {stage.name()} was not measured: {error}")
    else:
        ledger.add_inference_time(stage.fingerprint(), found)


def _fetched(storage: Path, stages: str | None, stage: Stage) -> Path:
    """The folder of the stage on the machine that measures."""
    return StageStore(storage, stages).fetch(stage)


def _unmeasured(spec: StudySpec, ledger: Ledger, wanted: InferenceTimeSpec) -> Iterator[Stage]:
    """The last trained stage of a finished trial, for each different model that lacks such a measurement."""
    known = ledger.inference_times(spec.study)
    seen: set[str] = set()
    trained = [(trial, last_trained(trial)) for trial in ledger.trials(spec.study) if trial.status == "finished"]
    for trial, stage in trained:
        if any(is_wanted(found, wanted) for found in known.get(stage.fingerprint(), [])):
            seen.add(model_key(trial))
    for trial, stage in trained:
        if model_key(trial) not in seen:
            seen.add(model_key(trial))
            yield stage


def last_trained(trial: Trial) -> Stage:
    """The stage whose weights recognise."""
    return next(s for s in reversed(stages_of(TrialConfig.model_validate(trial.config))) if s.kind != "decode")
