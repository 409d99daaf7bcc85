"""Worker groups: long-lived Ray Train runs that hold their accelerators and train one stage after another.

Starting a Ray Train run costs seconds of imports and process starts; handing the next stage to a warm group costs a
fork. One actor, `WorkerGroups`, queues the stages that trials ask for, starts groups as there is demand, and keeps what
the groups report until the trials have read it.

    trial  --submit-->  WorkerGroups  --take-->    every worker of a group: a process that runs the stage
    trial <--follow---  WorkerGroups <--report--   first worker of the group
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import math
import os
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.collective
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster.connect import HEAD_SLIVER, TRAIN_SETTINGS
from cluster.fair_share import FairShare
from cluster.nodes import (
    GroupSize,
    Node,
    autoscales,
    draining_nodes,
    fit_together,
    free_reservations_of_the_dead,
    may_grow_unknown,
    possible_nodes,
    present_nodes,
    this_node,
    this_node_id,
)
from trainables.object_storage import ObjectStorageError
from trainables.stage import Report, Stage
from trainables.stage_process import Order, Outcome, Place, StageProcesses, free_address
from trainables.store import StageStore

LONG_POLL_SECONDS = 5.0
MAX_FAILED_STARTS = 3
NODES_SECONDS = 2.0  # the list of nodes is read again after this
GROWTH_SECONDS = 300.0  # for an autoscaler to bring another study machines of its own


@dataclass(frozen=True)
class GroupSettings:
    """What all groups of a study have in common."""

    storage: Path
    stages: str | None = None  # URL of object storage where stages are kept; None: in the storage folder
    max_groups: int | None = None  # at a time; None: as many as the cluster holds
    idle_seconds: float = 20.0
    silence_seconds: float = math.inf  # a stage that reports nothing for so long hangs, and is killed
    retries: int = 0  # of a stage whose process was lost
    preemptions: int = 0  # of a stage whose group was lost, after which it is tried again
    study: str = ""  # told to the other studies on the cluster
    priority: int = 0
    patience_seconds: float = 20.0  # before a stage leaves machines that another study has a right to
    node_prices: Mapping[str, float] = field(default_factory=dict)  # of an hour, by node type; `default` for others
    module: str = "trainables.stage_process"  # runs the stages, see there


@dataclass(frozen=True)
class News:
    """What a trial has not yet seen of its stage."""

    reports: list[Report]
    outcome: Outcome | None


@dataclass(frozen=True)
class GroupsState:
    """What the groups have taken so far, and what they wait for."""

    accelerator_seconds: float  # held by groups; without GPUs, of workers
    cost: float
    accelerators_held: float  # now
    accelerators_busy: float  # of those, with a stage
    groups: int
    stages_waiting: int
    starting: GroupSize | None  # size of the group that has been starting for longest
    starting_seconds: float
    told: list[str]  # what a person should know, since this was last asked


@dataclass
class _Request:
    stage: Stage
    size: GroupSize
    followers: set[str]  # trials that want it
    reports: list[Report] = field(default_factory=list)
    ended: list[Outcome] = field(default_factory=list)  # what each worker said
    outcome: Outcome | None = None
    tried_again: bool = False  # by another request
    gave_way: bool = False  # its group was wanted by another study, or the study is paused

    def end(self, said: Outcome) -> None:
        """Once all workers have said how it ended, that is how; one that failed tells more than those it held up."""
        self.ended.append(said)
        if len(self.ended) == self.size.workers:
            self.outcome = min(self.ended, key=_how_telling)

    @property
    def has_failed(self) -> bool:
        return any(outcome.status == "failed" for outcome in self.ended)


def _how_telling(outcome: Outcome) -> tuple[int, bool]:
    """The most telling first; where a process was lost, the others fail because they no longer reach it."""
    return ("failed", "busy", "stopped", "finished").index(outcome.status), outcome.lost is None


@dataclass
class _Group:
    size: GroupSize
    turns: list[_Request | None] = field(default_factory=list)  # what it was given, in order; None ends it
    run: Any = None  # reference to the task that runs it
    started_at: float = field(default_factory=time.monotonic)
    ready_at: float | None = None  # since when it holds its machines
    nodes: set[str] = field(default_factory=set)  # ids of its machines
    hourly_cost: float = 0.0
    turn_started_at: float = 0.0
    gives_way: bool = False

    @property
    def accelerators(self) -> float:
        return self.size.workers * (self.size.gpus_per_worker or 1.0)

    @property
    def ending(self) -> bool:
        return bool(self.turns) and self.turns[-1] is None

    @property
    def unfinished(self) -> _Request | None:
        """The stage that it is running."""
        last = self.turns[-1] if self.turns else None
        return last if last and last.outcome is None else None

    @property
    def held_seconds(self) -> float:
        return time.monotonic() - self.ready_at if self.ready_at else 0.0

    def spent(self) -> tuple[float, float]:
        """(accelerator seconds, cost) so far."""
        return self.held_seconds * self.accelerators, self.held_seconds / 3600 * self.hourly_cost


@ray.remote
class WorkerGroups:
    """The queue between trials and worker groups of one study."""

    def __init__(self, settings: GroupSettings) -> None:
        self._settings = settings
        self._requests: dict[str, _Request] = {}
        self._waiting: list[_Request] = []
        self._stopped: set[str] = set()  # trials
        self._groups: dict[int, _Group] = {}
        self._started = 0
        self._failed_starts = 0  # in a row
        self._losses: Counter[tuple[str, str]] = Counter()  # of (stage, what was lost)
        self._told: list[str] = []
        self._spent_before = (0.0, 0.0)  # by groups that have ended
        self._blocked = False  # a stage waits for a group that there is no room for
        self._nodes: list[Node] = []
        self._may_grow = False  # by nodes that are not known of here
        self._draining: set[str] = set()  # ids of nodes that go away
        self._nodes_read_at = -NODES_SECONDS
        self._share = FairShare(settings.study, settings.priority)
        self._paused = False
        self._allotted: Counter[GroupSize] | None = None  # groups that the study may hold; None: what there is room for
        self._over_since: float | None = None  # when it began to hold more
        self._changed = asyncio.Condition()

    # ---- asked by trials ---------------------------------------------------------------------------------------

    async def submit(self, stage: Stage, size: GroupSize, trial: str) -> None:
        """Queue the stage for the trial, unless it is queued or running already for another one."""
        if trial in self._stopped:
            return
        fingerprint = stage.fingerprint()
        request = self._requests.get(fingerprint)
        if request is None or request.outcome is not None:
            request = self._requests[fingerprint] = _Request(stage, size, set())
            self._waiting.append(request)
            if self._allotted is not None:  # of what it did not want before, the study could hold nothing
                self._look_at_share()
        request.followers.add(trial)
        self._start_groups()
        await self._notify()

    async def follow(self, fingerprint: str, trial: str, seen: int) -> News:
        """Reports after the first `seen` ones, and the outcome; waits a while for something new."""
        request = self._requests.get(fingerprint)
        if request is None or trial not in request.followers:
            return News([], Outcome("stopped"))
        if self._nodes_are_old():
            self._start_groups()
        await self._wait(lambda: len(request.reports) > seen or request.outcome is not None)
        if request.tried_again:  # which reports the same once more, so that `seen` holds
            return News(request.reports[seen:], None)
        if request.outcome:
            self._leave(fingerprint, request, trial)
        return News(request.reports[seen:], request.outcome)

    async def stop(self, trial: str) -> None:
        """The trial wants nothing any more. A stage that no other one wants is not run any further."""
        self._stopped.add(trial)
        for fingerprint, request in list(self._requests.items()):
            self._leave(fingerprint, request, trial)

    def _leave(self, fingerprint: str, request: _Request, trial: str) -> None:
        request.followers.discard(trial)
        if not request.followers and self._requests.get(fingerprint) is request:
            del self._requests[fingerprint]
            if request in self._waiting:
                self._waiting.remove(request)

    async def pause(self, paused: bool) -> None:
        """Give back all machines, each stage with a checkpoint; or, with False, go on."""
        self._paused = paused
        self._nodes_read_at = -math.inf
        self._start_groups()
        await self._notify()

    async def leave(self) -> None:
        """The study ends: what it holds and what it wanted, others may have at once."""
        await self.pause(True)
        self._share.leave()

    async def state(self) -> GroupsState:
        """What the driver shows and accounts for. Asked about once a second; nodes may have come since."""
        self._start_groups()
        spent = [self._spent_before, *(group.spent() for group in self._groups.values())]
        ready = [group for group in self._groups.values() if group.ready_at is not None]
        starting = [group for group in self._groups.values() if group.ready_at is None]
        first = min(starting, key=lambda group: group.started_at, default=None)
        told, self._told = self._told, []
        return GroupsState(
            accelerator_seconds=sum(accelerator_seconds for accelerator_seconds, _ in spent),
            cost=sum(cost for _, cost in spent),
            accelerators_held=sum(group.accelerators for group in ready),
            accelerators_busy=sum(group.accelerators for group in ready if group.unfinished),
            groups=len(self._groups),
            stages_waiting=len(self._waiting),
            starting=first.size if first else None,
            starting_seconds=time.monotonic() - first.started_at if first else 0.0,
            told=told,
        )

    # ---- asked by workers --------------------------------------------------------------------------------------

    async def ready(self, group_id: int, node: str, hourly_cost: float) -> None:
        """A worker of the group has started on this node, and costs this much."""
        group = self._groups[group_id]
        group.ready_at = group.ready_at or time.monotonic()
        group.nodes.add(node)
        group.hourly_cost += hourly_cost

    async def take(self, group_id: int, turn: int) -> Stage | None:
        """The stage number `turn` of the group, the same for all its workers. None: the group ends.

        It ends when no work of its size came for a while, when it stands in the way of other work, when its machines go
        away, or when the study holds more groups of its size than it may.
        """
        group = self._groups[group_id]
        if turn == len(group.turns):
            await self._wait(
                lambda: (
                    self._next_for(group) is not None
                    or self._blocked
                    or self._is_to_end(group)
                    or turn < len(group.turns)
                ),
                self._settings.idle_seconds,
            )
        if turn == len(group.turns):
            request = None if self._is_to_end(group) else self._next_for(group)
            if request:
                self._waiting.remove(request)
                group.turn_started_at = time.monotonic()
            group.turns.append(request)
            await self._notify()
        given = group.turns[turn]
        return given.stage if given else None

    async def report(self, group_id: int, turn: int, report: Report) -> None:
        self._request(group_id, turn).reports.append(report)
        await self._notify()

    async def tell(self, message: str) -> None:
        """What a person should know."""
        self._told.append(message)

    async def order(self, group_id: int, turn: int) -> Order:
        """What a worker should do: stop, when no trial wants the stage or another worker of the group has failed."""
        if not await self.is_followed(group_id, turn) or self._request(group_id, turn).has_failed:
            return "stop"
        self._look_at_nodes()
        return "leave" if self._goes_away(self._groups[group_id]) else "go on"

    async def is_followed(self, group_id: int, turn: int) -> bool:
        """Whether a trial wants the stage."""
        return bool(self._request(group_id, turn).followers)

    async def end(self, group_id: int, turn: int, outcome: Outcome) -> None:
        """Record how that stage ended for one worker of the group."""
        request, group = self._request(group_id, turn), self._groups[group_id]
        request.gave_way |= group.gives_way
        request.end(outcome)
        if outcome.lost == "group" and not group.ending:  # its machines go away
            group.turns.append(None)
        self._try_again(request)
        await self._notify()

    def _request(self, group_id: int, turn: int) -> _Request:
        request = self._groups[group_id].turns[turn]
        assert request is not None
        return request

    # ---- groups ------------------------------------------------------------------------------------------------

    def _goes_away(self, group: _Group) -> bool:
        return group.gives_way or not group.nodes.isdisjoint(self._draining)

    def _is_to_end(self, group: _Group) -> bool:
        """Whether it is to take no further stage."""
        return self._goes_away(group) or self._excess()[group.size] > 0

    def _next_for(self, group: _Group) -> _Request | None:
        """The stage that has waited for longest among those that need groups of this size."""
        return next((request for request in self._waiting if request.size == group.size), None)

    def _able(self) -> list[_Group]:
        """The groups that stay."""
        return [group for group in self._groups.values() if not group.ending and not self._goes_away(group)]

    def _start_groups(self) -> None:
        """A group for each stage that waits and no idle group will take, in their order, while there is room."""
        self._blocked = False
        self._look_at_nodes()
        idle = [group.size for group in self._able() if not group.unfinished]
        for request in self._waiting:
            if request.size in idle:
                idle.remove(request.size)
            elif self._has_room(request.size):
                self._start_group(request.size)
            else:
                self._blocked = True
                return

    def _has_room(self, size: GroupSize) -> bool:
        """Whether one more group fits beside those that there are.

        Where an autoscaler may add nodes that are not known of here, one group at a time may ask for them.
        """
        most = self._settings.max_groups
        if most is not None and len(self._groups) >= most:
            return False
        mine = sum(group.size == size for group in self._able())
        if self._paused or (self._allotted is not None and mine >= self._allotted[size] and not self._may_grow):
            return False
        sizes = [group.size for group in self._groups.values() if not self._goes_away(group)]
        if fit_together([*sizes, size], self._nodes):
            return True
        return autoscales(self._nodes) and all(group.ready_at for group in self._groups.values())

    def _nodes_are_old(self) -> bool:
        return time.monotonic() - self._nodes_read_at > NODES_SECONDS

    def _look_at_nodes(self) -> None:
        if self._nodes_are_old():
            free_reservations_of_the_dead()
            present = present_nodes()
            self._nodes, self._draining = possible_nodes(present), draining_nodes()
            self._may_grow = may_grow_unknown(present)
            self._nodes_read_at = time.monotonic()
            self._look_at_share()

    def _look_at_share(self) -> None:
        """What the study may hold beside others, and give way where it has held more for a while."""
        running = [group.unfinished.size for group in self._groups.values() if group.unfinished]
        wanted = [] if self._paused else [*running, *(request.size for request in self._waiting)]
        allotted = self._share.allotment(wanted[: self._settings.max_groups], self._nodes)
        self._allotted = Counter() if self._paused else allotted
        excess = self._excess()
        if not excess:
            self._over_since = None
            return
        self._over_since = self._over_since or time.monotonic()
        patience = GROWTH_SECONDS if self._may_grow else self._settings.patience_seconds
        if self._paused or time.monotonic() - self._over_since > patience:
            self._give_way(excess)

    def _excess(self) -> Counter[GroupSize]:
        """By how many groups of each size the study is over its allotment."""
        if self._allotted is None:
            return Counter()
        return Counter(group.size for group in self._able()) - self._allotted

    def _give_way(self, excess: Counter[GroupSize]) -> None:
        """Those that have run their stage for the shortest time go first, after those without one."""
        for size, number in excess.items():
            mine = [group for group in self._able() if group.size == size]
            mine.sort(key=lambda group: group.turn_started_at if group.unfinished else math.inf, reverse=True)
            for group in mine[:number]:
                group.gives_way = True
        if not self._paused:
            self._told.append(f"{excess.total()} worker group(s) give way to other studies on the cluster")

    def _start_group(self, size: GroupSize) -> None:
        group_id, self._started = self._started, self._started + 1
        group = self._groups[group_id] = _Group(size)
        handle = ray.get_runtime_context().current_actor
        run = _run_group.remote(handle, group_id, self._settings, size)
        group.run = asyncio.ensure_future(self._watch(group_id, run))

    async def _watch(self, group_id: int, run: Any) -> None:
        """Wait for the end of a group. A stage that it leaves unfinished has failed."""
        cause = "the worker group ended without finishing the stage"
        try:
            await run
        except Exception as error:  # noqa: BLE001  (however it died, its stage failed)
            cause = f"the worker group died: {_innermost(error)}"
        group = self._groups.pop(group_id)
        self._failed_starts = 0 if group.ready_at else self._failed_starts + 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            self._give_up(group.size, cause)
        seconds, cost = group.spent()
        self._spent_before = self._spent_before[0] + seconds, self._spent_before[1] + cost
        if request := group.unfinished:
            request.outcome = Outcome("failed", cause, lost="group")
            self._try_again(request)
        self._start_groups()
        await self._notify()

    def _try_again(self, request: _Request) -> None:
        """Queue a stage that was lost once more, as often as that is allowed. It goes on from its checkpoint."""
        outcome, fingerprint = request.outcome, request.stage.fingerprint()
        if outcome is None or outcome.lost is None or self._requests.get(fingerprint) is not request:
            return
        if not request.gave_way:
            allowed = {"process": self._settings.retries, "group": self._settings.preemptions}[outcome.lost]
            self._losses[fingerprint, outcome.lost] += 1
            losses = self._losses[fingerprint, outcome.lost]
            if losses > allowed:
                after = f", {losses} times" if losses > 1 else ""
                request.outcome = Outcome("failed", f"{outcome.cause}{after}")
                return
            self._told.append(
                f"{request.stage.name()}: {outcome.cause}; it goes on from its checkpoint ({losses} of {allowed})"
            )
        request.tried_again = True
        self._requests[fingerprint] = again = _Request(request.stage, request.size, request.followers)
        self._waiting.insert(0, again)

    def _give_up(self, size: GroupSize, cause: str) -> None:
        """No group of this size comes up: what waits for one has failed."""
        for request in [request for request in self._waiting if request.size == size]:
            self._waiting.remove(request)
            request.outcome = Outcome("failed", f"no worker group started in {MAX_FAILED_STARTS} attempts: {cause}")

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _wait(self, condition: Callable[[], bool], timeout_seconds: float = LONG_POLL_SECONDS) -> None:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(condition), timeout_seconds)
            except TimeoutError:
                return


def start_worker_groups(settings: GroupSettings) -> Any:
    """The handle of a new `WorkerGroups` actor on the head node."""
    return WorkerGroups.options(num_cpus=0, resources=HEAD_SLIVER, max_concurrency=10_000).remote(settings)  # type: ignore[attr-defined]


class _TrainRun(DataParallelTrainer):  # type: ignore[misc]  # Ray has no types
    """A run of Ray Train, without two actors that each take a process.

    One frees the run's machines should its controller die. It needs Ray's dashboard, and lives on without it;
    `free_reservations_of_the_dead` does it here. The other one hands out Ray's datasets, and there are none. It is not
    Ray's class for torch, which would load torch into processes that only start others, and take GPU memory.
    """

    def _create_default_callbacks(self) -> list[Any]:
        left_out = (PlacementGroupCleanerCallback, DatasetsCallback)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, left_out)]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        given["scaling_policy"] = _PlacementGroupAlone(self.scaling_config)
        return super()._initialize_and_run_controller(**given)


class _PlacementGroupAlone(FixedScalingPolicy):  # type: ignore[misc]  # Ray has no types
    """Asks the autoscaler for machines by the placement group of the run, and so for as long as that is there.

    Ray's policy asks a second time, through an actor that outlives the study. When the study ends before its groups do,
    that request stands for three minutes more, and the machines with it.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ask for nothing."""

    def _maybe_send_resource_request(self) -> None:
        """Ask for nothing."""


@ray.remote(num_cpus=0, max_retries=0, resources=HEAD_SLIVER)  # type: ignore[untyped-decorator]
def _run_group(groups: Any, group_id: int, settings: GroupSettings, size: GroupSize) -> None:
    """One group, from its first stage to the time when no more work comes: a Ray Train run."""
    os.environ.update(TRAIN_SETTINGS)
    resources = {"CPU": float(size.cpus_per_worker)}
    if size.gpus_per_worker:
        resources["GPU"] = size.gpus_per_worker
    _TrainRun(
        _work,
        train_loop_config={"groups": groups, "group_id": group_id, "settings": settings, "size": size},
        scaling_config=ray.train.ScalingConfig(
            num_workers=size.workers, use_gpu=bool(size.gpus_per_worker), resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(name=f"group-{os.getpid()}", storage_path=str(settings.storage / "ray")),
    ).fit()


def _work(config: dict[str, Any]) -> None:
    """The train loop of one worker: take a stage, have a process run it, take the next."""
    groups, group_id, size = config["groups"], config["group_id"], config["size"]
    settings: GroupSettings = config["settings"]
    device = "cuda" if size.gpus_per_worker else "cpu"
    processes = StageProcesses(settings.storage, size.cpus_per_worker, device, settings.module, settings.stages)
    ray.get(groups.ready.remote(group_id, this_node_id(), _hourly_cost(size, settings.node_prices)))
    for turn in itertools.count():
        stage: Stage | None = ray.get(groups.take.remote(group_id, turn))
        if stage is None:
            processes.close()
            return
        outcome = processes.run(
            stage,
            _place(size),
            report=functools.partial(_report, groups, group_id, turn),
            order=functools.partial(_order, groups, group_id, turn),
            silence_seconds=settings.silence_seconds,
            tell=groups.tell.remote,
        )
        wanted = bool(ray.get(groups.is_followed.remote(group_id, turn)))
        with contextlib.suppress(ObjectStorageError):  # what is left then, the next worker of the stage takes up
            _tidy(stage, outcome, StageStore(settings.storage, settings.stages), keep_checkpoint=wanted)
        ray.get(groups.end.remote(group_id, turn, outcome))


def _tidy(stage: Stage, outcome: Outcome, store: StageStore, *, keep_checkpoint: bool) -> None:
    """A killed process leaves its lease, and a stage that nobody wants its checkpoint."""
    if outcome.status not in ("failed", "stopped"):
        return
    lease = store.lease(stage)
    lease.held_by_another()  # a dead holder's is removed
    if not keep_checkpoint:  # of several workers, those that are not stopped first fail
        with lease.hold() as held:  # not while another worker, or another study, runs it
            if held:
                store.discard(stage)


def _place(size: GroupSize) -> Place:
    if size.workers == 1:
        return Place()
    rank = ray.train.get_context().get_world_rank()
    mine = free_address(ray.util.get_node_ip_address()) if rank == 0 else None
    return Place(rank, size.workers, ray.train.collective.broadcast_from_rank_zero(mine))


def _hourly_cost(size: GroupSize, prices: Mapping[str, float]) -> float:
    """Of one worker on this node."""
    if not prices:
        return 0.0
    node = this_node()
    return prices.get(node.type, prices.get("default", 0.0)) * node.share(size)


def _report(groups: Any, group_id: int, turn: int, report: Report) -> None:
    ray.get(groups.report.remote(group_id, turn, report))


def _order(groups: Any, group_id: int, turn: int) -> Order:
    order: Order = ray.get(groups.order.remote(group_id, turn))
    return order


def _innermost(error: BaseException) -> str:
    """The beginning of the last line of the innermost cause, without Ray's wrapping."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    message = textwrap.shorten(lines[-1], 200, placeholder=" ...") if lines else "no message"
    return f"{type(error).__name__}: {message}"
