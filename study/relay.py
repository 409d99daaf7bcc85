"""One trial of Ray Tune: a light process that hands its stages to worker groups and relays what they report.

It holds no worker while it waits. Little is imported here, for Tune starts such a process for each trial that runs at a
time.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.tune

from cluster.nodes import GroupSize
from trainables.stage import Report, Stage
from trainables.stage_process import Outcome
from trainables.store import StageStore
from trainables.trial import TrialConfig, stages_of

if TYPE_CHECKING:
    from trainables.ray_train import News

LEASE_POLL_SECONDS = 1.0
MAX_REMOVALS = 3  # of stages that a trial starts from, after which it fails


def run_trial(
    config: dict[str, Any], groups: Any, sizes: Mapping[str, GroupSize], storage: Path, stages: str | None
) -> None:
    """One trial, in a light process: its stages one after another, each trained by whichever group takes it.

    Where a stage fails and the one that it starts from is no longer there, because somebody has removed it, that one is
    trained again.
    """
    store, chain = StageStore(storage, stages), stages_of(TrialConfig.model_validate(config["config"]))
    position, removals = 0, 0
    while position < len(chain):
        stage, relay = chain[position], functools.partial(_relay, position)
        outcome = _run_stage(config["trial"], stage, store, groups, sizes[stage.kind], relay)
        if outcome.status == "stopped":
            return  # the driver, which stopped it, has recorded that
        if outcome.status == "finished":
            position += 1
        elif position > 0 and removals < MAX_REMOVALS and store.result(chain[position - 1]) is None:
            position, removals = position - 1, removals + 1
        else:
            ray.tune.report({"status": "failed", "cause": f"{stage.kind}: {outcome.cause}"})
            return
    ray.tune.report({"status": "finished", "cause": None})


def _run_stage(
    trial: str,
    stage: Stage,
    store: StageStore,
    groups: Any,
    size: GroupSize,
    relay: Callable[[list[Report]], None],
) -> Outcome:
    """See to it that the stage is in the store, relaying its whole curve."""
    lease = store.lease(stage)
    while True:
        if result := store.result(stage):
            relay(list(result.reports))
            return Outcome("finished")
        if lease.held_by_another():  # wait here: a trial holds no accelerator
            time.sleep(LEASE_POLL_SECONDS)
            continue
        ray.get(groups.submit.remote(stage, size, trial))
        outcome = _follow(trial, stage, groups, relay)
        if outcome.status != "busy":
            return outcome


def _follow(trial: str, stage: Stage, groups: Any, relay: Callable[[list[Report]], None]) -> Outcome:
    """Relay what the stage reports until it has ended."""
    seen = 0
    while True:
        news: News = ray.get(groups.follow.remote(stage.fingerprint(), trial, seen))
        if news.reports:
            relay(news.reports)
            seen += len(news.reports)
        if news.outcome:
            return news.outcome


def _relay(position: int, reports: list[Report]) -> None:
    """Of the trial's stage at this position."""
    ray.tune.report({"position": position, "reports": reports})
