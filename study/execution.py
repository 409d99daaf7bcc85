"""Running a study: Ray Tune's trials hand their stages to worker groups and relay what those report to the ledger."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.tune
from ray.tune.experiment.trial import Trial as TuneTrial

from cluster.connect import HEAD_SLIVER, GroupSize, groups_that_fit
from study.ledger import Ledger
from study.search import StudySearcher
from study.spec import StudySpec
from study.watcher import Watcher
from trainables.ray_train import News, start_worker_groups
from trainables.stage import Report, Stage
from trainables.store import StageStore
from trainables.trial import TrialConfig, stages_of

LEASE_POLL_SECONDS = 1.0


def run_trials(spec: StudySpec, ledger: Ledger, watcher: Watcher) -> None:
    """Run every trial that the ledger does not yet have. Needs a connection to Ray.

    Raises InfeasibleError before anything starts when the cluster cannot hold a worker group.
    """
    wanted = spec.resources
    size = GroupSize(wanted.workers, wanted.cpus_per_worker, wanted.gpus_per_worker)
    fit = groups_that_fit(size)
    num_groups = min(fit, wanted.max_groups or fit)
    groups = start_worker_groups(spec.storage, size, num_groups, wanted.idle_seconds)
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C ends the study at once: it resumes from checkpoints
    trainable = ray.tune.with_parameters(_run_trial, groups=groups, storage=spec.storage)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, ray.tune.PlacementGroupFactory([HEAD_SLIVER])),
        tune_config=ray.tune.TuneConfig(
            search_alg=StudySearcher(spec, ledger),
            num_samples=-1,
            max_concurrent_trials=num_groups,
            reuse_actors=True,
        ),
        run_config=ray.tune.RunConfig(
            name=f"{spec.study}-{time.time_ns()}",
            storage_path=str(spec.storage / "ray"),
            callbacks=[_Relay(spec.study, ledger, watcher)],
            verbose=0,
        ),
    )
    tuner.fit()


class _Relay(ray.tune.Callback):  # type: ignore[misc]  # Ray has no types
    """Writes to the ledger what trials relay. It runs in the driver, so that curves have one writer."""

    def __init__(self, study: str, ledger: Ledger, watcher: Watcher) -> None:
        self._study, self._ledger, self._watcher = study, ledger, watcher

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks beside its results; there is nothing to keep."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._watcher.trial_started(trial.config["trial"])

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        name = trial.config["trial"]
        if "stage" in result:
            stage: Stage = result["stage"]
            self._ledger.append(stage.fingerprint(), result["reports"])
            for report in result["reports"]:
                self._watcher.reported(name, stage, report)
        if "status" in result:
            self._end(name, result["status"], result["cause"])

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._end(trial.config["trial"], "failed", "the trial ended without a result")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        lines = str(trial.get_error() or "the trial's process died").strip().splitlines()
        self._end(trial.config["trial"], "failed", lines[-1])

    def _end(self, trial: str, status: Any, cause: str | None) -> None:
        if self._ledger.end_trial(self._study, trial, status, cause):
            self._watcher.trial_ended(trial)


def _run_trial(config: dict[str, Any], groups: Any, storage: Path) -> None:
    """One trial, in a light process: its stages one after another, each trained by whichever group takes it."""
    store = StageStore(storage)
    for stage in stages_of(TrialConfig.model_validate(config["config"])):
        cause = _run_stage(stage, store, groups, functools.partial(_relay, stage))
        if cause is not None:
            ray.tune.report({"status": "failed", "cause": f"{stage.kind}: {cause}"})
            return
    ray.tune.report({"status": "finished", "cause": None})


def _run_stage(stage: Stage, store: StageStore, groups: Any, relay: Callable[[list[Report]], None]) -> str | None:
    """See to it that the stage is in the store, relaying its whole curve. Returns the cause of a failure."""
    lease = store.lease(stage)
    while True:
        if result := store.result(stage):
            relay(list(result.reports))
            return None
        if lease.held_by_another():  # wait here: a trial holds no accelerator
            time.sleep(LEASE_POLL_SECONDS)
            continue
        ray.get(groups.submit.remote(stage))
        seen = 0
        while True:
            news: News = ray.get(groups.follow.remote(stage.fingerprint(), seen))
            if news.reports:
                relay(news.reports)
                seen += len(news.reports)
            if news.outcome:
                break
        if news.outcome.status == "failed":
            return news.outcome.cause
        if news.outcome.status == "finished":
            return None


def _relay(stage: Stage, reports: list[Report]) -> None:
    ray.tune.report({"stage": stage, "reports": reports})
