"""Running a study: Ray Tune's trials hand their stages to worker groups and relay what those report to the ledger."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import ray
import ray.tune
from ray.tune.experiment.trial import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from cluster.connect import HEAD_SLIVER
from cluster.nodes import GroupSize, autoscales, groups_that_fit, possible_nodes, present_nodes, refuse_infeasible
from search_spaces.space import sampled
from study.database import LedgerError
from study.garbage import fit
from study.ledger import Ledger, Order
from study.metrics import StudyMetrics
from study.relay import run_trial
from study.search import Proposal, Search
from study.spec import (
    CmaEsSampler,
    GpSampler,
    Nsga2Sampler,
    Nsga3Sampler,
    ResourcesSpec,
    StudySpec,
    TpeSampler,
)
from study.stopper import Stopper
from study.stopping import budget_is_spent
from study.watcher import Watcher
from trainables import stage_process
from trainables.ray_train import GroupSettings, GroupsState, start_worker_groups
from trainables.stage import Report, Stage, StageKind
from trainables.trial import stages_of

Ending = Literal["over", "stopped", "budget"]

LOOK_SECONDS = 1.0  # between looks at the worker groups
MISSING_SECONDS = 60.0  # until the first word about a group that does not start; then twice as long, and so on
LEARNING = TpeSampler | GpSampler | CmaEsSampler | Nsga2Sampler | Nsga3Sampler
QUOTA_SECONDS = 30.0  # between looks at the disk
STOP_SECONDS = 30.0  # for the stages of a study that is stopped to leave their checkpoints
ORDERED: dict[Order | None, str] = {
    "pause": "paused: running stages leave their checkpoints and machines; `study resume {study}` goes on",
    "stop": "stopping: running stages leave their checkpoints",
    None: "resumed",
}
QUEUE_LOST = "the process that hands stages to worker groups was lost"
TUNE_SETTINGS = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the study at once: it resumes from checkpoints
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",  # the ledger has the trials
}


class GroupsLostError(RuntimeError):
    """The process that hands stages to worker groups died again and again."""


def run_trials(
    spec: StudySpec, ledger: Ledger, run: str, watcher: Watcher, stage_module: str = stage_process.__name__
) -> Ending:
    """Run every trial that the ledger does not yet have, or until a budget is spent, or a person stops the study.

    Needs a connection to Ray. `run` is the name that the ledger gave this run; `stage_module` is run with -m to run
    stages. Raises InfeasibleError before anything starts when the cluster can never hold a worker group, and
    GroupsLostError.
    """
    wanted = spec.resources
    sizes = {kind: group_size(wanted, kind) for kind in get_args(StageKind)}
    used = {sizes[stage.kind] for arm in spec.arms for stage in stages_of(spec.trial_config(arm))}
    for size in used:
        refuse_infeasible(size)
    settings = GroupSettings(
        storage=spec.storage,
        stages=spec.stages,
        max_groups=wanted.max_groups,
        idle_seconds=wanted.idle_seconds,
        silence_seconds=60 * wanted.silence_minutes,
        retries=wanted.retries,
        preemptions=wanted.preemptions,
        study=spec.study,
        priority=wanted.priority,
        node_prices=dict(wanted.node_prices),
        module=stage_module,
    )
    for losses in range(1 + wanted.preemptions):
        groups = start_worker_groups(settings)
        conductor = Conductor(spec, ledger, run, watcher, groups, used)
        places = {"storage": spec.storage, "stages": spec.stages}
        trainable = ray.tune.with_parameters(run_trial, groups=groups, sizes=sizes, **places)
        tune(conductor, trainable, spec.storage)
        conductor.leave()
        if not conductor.groups_lost:
            break
        watcher.told(f"{QUEUE_LOST}; its stages go on from their checkpoints ({losses + 1} of {wanted.preemptions})")
    else:
        raise GroupsLostError(f"{QUEUE_LOST} {1 + wanted.preemptions} times; the same command goes on")
    if spec.quota is not None:
        fit(ledger, spec.storage, spec.quota)
    if conductor.stopped:
        watcher.told(f"stopped by `study stop {spec.study}`; the same command goes on from the last checkpoints")
        return "stopped"
    if conductor.budget_spent:
        watcher.told(f"stopped: {conductor.budget_spent}; a larger budget goes on from the last checkpoints")
        return "budget"
    ledger.end_study(spec.study)
    return "over"


def group_size(resources: ResourcesSpec, kind: StageKind) -> GroupSize:
    """The size of the worker groups that run stages of this kind."""
    group = resources.group(kind)
    return GroupSize(group.workers, group.cpus_per_worker, group.gpus_per_worker)


def tune(conductor: Conductor, trainable: Any, storage: Path) -> None:
    """Run the conductor's trials with Ray Tune, each in a light process that holds no CPU.

    Raises LedgerError when the ledger cannot be written any more; what runs is then ended.
    """
    os.environ.update(TUNE_SETTINGS)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the person is told of trials that fail, without traces
    processes = _Processes()
    conductor.may_take_process = processes.may_take
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(trainable, ray.tune.PlacementGroupFactory([HEAD_SLIVER])),
        tune_config=ray.tune.TuneConfig(
            search_alg=_Proposals(conductor), scheduler=processes, num_samples=-1, reuse_actors=True
        ),
        run_config=ray.tune.RunConfig(
            name=f"{conductor.spec.study}-{time.time_ns()}",
            storage_path=str(storage / "ray"),
            callbacks=[_Events(conductor)],
            stop=_Budget(conductor),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except Exception as error:
        if ledger_error := _ledger_error(error):
            raise ledger_error from None
        raise


def _ledger_error(error: BaseException | None) -> LedgerError | None:
    """That of a callback, which Tune wraps in its own."""
    while error:
        if isinstance(error, LedgerError):
            return error
        error = error.__cause__ or error.__context__
    return None


class Conductor:
    """Decides what runs and what stops, and writes to the ledger what trials relay: curves have one writer."""

    def __init__(
        self, spec: StudySpec, ledger: Ledger, run: str, watcher: Watcher, groups: Any, sizes: Collection[GroupSize]
    ) -> None:
        self.spec, self.ledger, self.search = spec, ledger, Search(spec, ledger)
        self.budget_spent: str | None = None
        self.groups_lost = False
        self.stopped = False
        self._order: Order | None = None
        self._ordered_at = 0.0
        self._lost: Counter[str] = Counter()  # trial -> how often its process was lost
        self._run, self._watcher, self._groups, self._sizes = run, watcher, groups, sizes
        self._stages: dict[str, Sequence[Stage]] = {}  # of trials that run
        self._running: dict[str, str] = {}  # Tune's trials -> fingerprint of the stage that each wants at present
        self._arms: dict[str, str] = {}
        self._ended: set[str] = set()  # those of them that the ledger knows to have ended
        self._stopper = Stopper(spec, ledger)
        self._metrics = StudyMetrics(spec.study, ledger)
        self._done_arms: set[str] = set()
        self._started_at = 0.0  # when the last trial was proposed
        self.may_take_process: Callable[[float], bool] = lambda running_seconds: True
        self._room, self._looked_at, self._fitted_at, self._patience = 0, -LOOK_SECONDS, 0.0, MISSING_SECONDS

    # ---- what runs ---------------------------------------------------------------------------------------------

    def propose(self) -> Proposal | None:
        """The next trial, when there is one and there is room for it."""
        if self.is_ending or self._order or not self._has_room() or not self.may_take_process(self._running_seconds()):
            return None
        proposal = self.search.propose(not_of=self._waiting_arms())
        if proposal:
            self._arms[proposal.trial.trial] = proposal.trial.arm
            self._stages[proposal.trial.trial] = proposal.stages
            self._running[proposal.trial.trial] = proposal.stages[0].fingerprint()
            self._started_at = time.monotonic()
            self._stopper.add(proposal.trial, proposal.stages)
        return proposal

    @property
    def is_ending(self) -> bool:
        """Whether what runs is to end, and to go on another time."""
        return self.groups_lost or self.stopped or self.budget_spent is not None

    def _running_seconds(self) -> float:
        """How long the last trial has been running, infinite when none is."""
        return time.monotonic() - self._started_at if self._running else math.inf

    def _has_room(self) -> bool:
        """As many different stages run at a time as the cluster holds groups, which may change while the study runs.

        Trials that wait for a stage of another one take no room, but a process each, so there are not many of them.
        """
        return len(set(self._running.values())) < self._room and len(self._running) < 2 * self._room + 2

    def _waiting_arms(self) -> set[str]:
        """Arms with a trial that waits for a stage that another one trains, and a sampler that learns from results.

        More trials that wait would be proposed without what the first ones will tell.
        """
        if not isinstance(self.spec.search.sampler, LEARNING):
            return set()
        first: dict[str, str] = {}
        for trial, stage in self._running.items():
            first.setdefault(stage, trial)
        waiting = {self._arms[trial] for trial, stage in self._running.items() if first[stage] != trial}
        return {arm for arm in waiting if sampled(self.spec.arms[arm].space)}

    # ---- what happens ------------------------------------------------------------------------------------------

    def started(self, trial: str) -> None:
        self._watcher.trial_started(trial)

    def relayed(self, trial: str, position: int, reports: list[Report]) -> None:
        """Reports of a running trial's stage at this position, for the ledger and for early stopping."""
        if trial in self._ended:
            return  # it was stopped
        stage = self._stages[trial][position]
        self._running[trial] = fingerprint = stage.fingerprint()
        self.ledger.append(fingerprint, reports)
        for report in reports:
            self._watcher.reported(trial, stage, report)
        if (cause := self._stopper.stops(trial, stage, reports)) is not None:
            self._ask_groups("stop", trial)
            self.ended(trial, "stopped", cause)

    def ended(self, trial: str, status: Any, cause: str | None) -> None:
        """The trial has ended. The first word counts; a study that stops leaves its trials unfinished."""
        if self.is_ending and status == "failed":
            return
        self._ended.add(trial)
        if self.ledger.end_trial(self.spec.study, trial, status, cause):
            self.search.ended(trial)
            self._watcher.trial_ended(trial)
            self._tell_of_arms()
            self._keep_quota()

    def lost(self, trial: str, cause: str) -> None:
        """The trial's process died. It goes on in another one, as often as that is allowed."""
        self.look(at_once=True)  # perhaps because the groups did
        if trial in self._ended or self.is_ending:
            return
        self._lost[trial] += 1
        if self._lost[trial] > self.spec.resources.retries:
            self.ended(trial, "failed", cause)
        else:
            self._watcher.told(f"{trial}: its process was lost; it goes on in another one")
            self.search.again(trial)

    def left(self, trial: str) -> None:
        """The trial's process is free. Only now is there room for the next one, which then takes the same process."""
        self._running.pop(trial, None)
        self._stages.pop(trial, None)

    def look(self, *, at_once: bool = False) -> None:
        """Account for what is spent, see what the cluster holds now, and tell when something does not start."""
        if time.monotonic() - self._looked_at < LOOK_SECONDS and not at_once:
            return
        self._looked_at = time.monotonic()
        state: GroupsState | None = self._ask_groups("state")
        if state is None:
            return
        self.ledger.set_spent(self._run, state.accelerator_seconds, state.cost)
        self._metrics.set(state)
        self._heed_order(state.accelerators_busy == 0)
        for message in state.told:
            self._watcher.told(message)
        self.budget_spent = budget_is_spent(self.spec.stop, self.ledger.spent(self.spec.study))
        present = present_nodes()
        fitting = max(groups_that_fit(size, possible_nodes(present)) for size in self._sizes)
        room = fitting + 1 if autoscales(present) else max(1, fitting)
        self._room = min(room, self.spec.resources.max_groups or room)
        if not state.starting:
            self._patience = MISSING_SECONDS
        elif state.starting_seconds > self._patience:
            self._patience *= 2
            free = ray.available_resources()
            self._watcher.told(
                f"a worker group of {state.starting} has not started for {state.starting_seconds:.0f} s: free are "
                f"{free.get('CPU', 0):g} CPU(s) and {free.get('GPU', 0):g} GPU(s) on {len(present)} node(s)"
            )

    def _heed_order(self, idle: bool) -> None:
        """Pause, go on, or end once no stage runs any more: each has left its checkpoint."""
        before, self._order = self._order, self.ledger.order(self.spec.study)
        if self._order != before:
            self._ordered_at = time.monotonic()
            self._ask_groups("pause", self._order is not None)
            self._watcher.told(ORDERED[self._order].format(study=self.spec.study))
        waited = time.monotonic() - self._ordered_at
        self.stopped = self._order == "stop" and (idle or waited > STOP_SECONDS)

    def leave(self) -> None:
        """Let other studies have what this one wanted."""
        if not self.groups_lost:
            self._ask_groups("leave")

    def _ask_groups(self, what: str, *arguments: Any) -> Any:
        """The answer of the worker groups' queue; None when it is no longer there."""
        try:
            return ray.get(getattr(self._groups, what).remote(*arguments))
        except ray.exceptions.RayActorError:
            self.groups_lost = True
            return None

    def _tell_of_arms(self) -> None:
        """Which arms are searched no further, once for each."""
        for arm in self.spec.arms:
            if arm not in self._done_arms and (reason := self.search.reason_to_stop(arm)):
                self._done_arms.add(arm)
                self._watcher.told(f"{arm}: no further search, {reason}")

    def _keep_quota(self) -> None:
        if self.spec.quota is not None and time.monotonic() - self._fitted_at > QUOTA_SECONDS:
            self._fitted_at = time.monotonic()
            fit(self.ledger, self.spec.storage, self.spec.quota)


class _Proposals(Searcher):  # type: ignore[misc]  # Ray has no types
    """The conductor as Tune's searcher. Nothing of it is saved: the ledger has everything."""

    def __init__(self, conductor: Conductor) -> None:
        super().__init__()
        self._conductor = conductor

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial as `{"trial": name, "config": resolved}`; None: ask again later; FINISHED: that is all."""
        self._conductor.look()
        proposal = self._conductor.propose()
        if proposal:
            return {"trial": proposal.trial.trial, "config": proposal.trial.config}
        return Searcher.FINISHED if self._conductor.search.is_over else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing to do: the conductor has it from the callback."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class _Events(ray.tune.Callback):  # type: ignore[misc]  # Ray has no types
    """What happens to Tune's trials, for the conductor. It runs in the driver."""

    def __init__(self, conductor: Conductor) -> None:
        self._conductor = conductor

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks beside its results; there is nothing to keep."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        self._conductor.look()

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._conductor.started(trial.config["trial"])

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        name = trial.config["trial"]
        if "reports" in result:
            self._conductor.relayed(name, result["position"], result["reports"])
        if "status" in result:
            self._conductor.ended(name, result["status"], result["cause"])

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        self._conductor.ended(trial.config["trial"], "failed", "the trial ended without a result")
        self._conductor.left(trial.config["trial"])

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        lines = str(trial.get_error() or "the trial's process died").strip().splitlines()
        self._conductor.lost(trial.config["trial"], lines[-1])
        self._conductor.left(trial.config["trial"])


class _Processes(FIFOScheduler):  # type: ignore[misc]  # Ray has no types
    """Runs trials as they come, in as few processes as do: a new one costs a second of imports.

    Tune by itself starts one for a trial whenever none is free, gives the trial another one that becomes free
    meanwhile, and throws the new one away; and it keeps no more free ones than trials are waiting, which is one here.
    """

    KEPT = 1_000
    STARTING = 4  # at a time
    SHORT_SECONDS = 1.0  # a trial that runs for longer than this does not soon leave its process to another

    def __init__(self) -> None:
        super().__init__()
        self._tune: Any = None

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        self._tune = tune_controller
        kept = tune_controller._actor_cache
        kept.increase_max(trial.placement_group_factory, by=max(0, self.KEPT - kept.total_max_objects))

    def may_take(self, running_seconds: float) -> bool:
        """Whether one more trial may start, when the last one has been running for so long."""
        if self._tune is None or self._tune._actor_cache.num_cached_objects:
            return True
        starting = self._tune._actor_manager.num_pending_actors
        return bool(starting < self.STARTING and running_seconds > self.SHORT_SECONDS)


class _Budget(ray.tune.Stopper):  # type: ignore[misc]  # Ray has no types
    """Ends Tune's run when the conductor says so; unfinished trials keep their checkpoints."""

    def __init__(self, conductor: Conductor) -> None:
        self._conductor = conductor

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._conductor.is_ending
