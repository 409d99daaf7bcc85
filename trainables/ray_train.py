"""Worker groups: long-lived Ray Train runs that hold their accelerators and train one stage after another.

Starting a Ray Train run costs seconds of imports and process starts; handing the next stage to a warm group costs
milliseconds. One actor, `WorkerGroups`, queues the stages that trials ask for, starts groups as there is demand, and
keeps what the groups report until the trials have read it.

    trial  --submit-->  WorkerGroups  --take-->    every worker of a group: run_stage(stage)
    trial <--follow---  WorkerGroups <--report--   first worker of the group
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import textwrap
import traceback
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ray
import ray.train
import ray.train.torch

from cluster.connect import HEAD_SLIVER, GroupSize
from trainables.stage import Report, Stage
from trainables.store import StageStore

LONG_POLL_SECONDS = 5.0


@dataclass(frozen=True)
class Outcome:
    """How a stage ended. `busy`: another study's worker is running it."""

    status: Literal["finished", "failed", "busy"]
    cause: str | None = None


@dataclass(frozen=True)
class News:
    """What a trial has not yet seen of its stage."""

    reports: list[Report]
    outcome: Outcome | None


@dataclass
class _Request:
    stage: Stage
    reports: list[Report] = field(default_factory=list)
    outcome: Outcome | None = None


@dataclass
class _Group:
    turns: list[_Request | None] = field(default_factory=list)  # what it was given, in order; None ends it
    run: Any = None  # reference to the task that runs it

    @property
    def ending(self) -> bool:
        return bool(self.turns) and self.turns[-1] is None

    @property
    def unfinished(self) -> _Request | None:
        """The stage that it is running."""
        last = self.turns[-1] if self.turns else None
        return last if last and last.outcome is None else None


@ray.remote
class WorkerGroups:
    """The queue between trials and worker groups of one study."""

    def __init__(self, storage: Path, size: GroupSize, max_groups: int, idle_seconds: float) -> None:
        self._storage, self._size = storage, size
        self._max_groups, self._idle_seconds = max_groups, idle_seconds
        self._requests: dict[str, _Request] = {}
        self._waiting: deque[_Request] = deque()
        self._groups: dict[int, _Group] = {}
        self._started = 0
        self._changed = asyncio.Condition()

    # ---- asked by trials ---------------------------------------------------------------------------------------

    async def submit(self, stage: Stage) -> None:
        """Queue the stage, unless it is queued or running already for another trial."""
        fingerprint = stage.fingerprint()
        request = self._requests.get(fingerprint)
        if request is None or request.outcome is not None:
            request = self._requests[fingerprint] = _Request(stage)
            self._waiting.append(request)
        self._start_groups()
        await self._notify()

    async def follow(self, fingerprint: str, seen: int) -> News:
        """Reports after the first `seen` ones, and the outcome; waits a while for something new."""
        request = self._requests[fingerprint]
        await self._wait(lambda: len(request.reports) > seen or request.outcome is not None)
        return News(request.reports[seen:], request.outcome)

    # ---- asked by workers --------------------------------------------------------------------------------------

    async def take(self, group_id: int, turn: int) -> Stage | None:
        """The stage number `turn` of the group, the same for all its workers. None: no work came, the group ends."""
        group = self._groups[group_id]
        if turn == len(group.turns):
            await self._wait(lambda: bool(self._waiting) or turn < len(group.turns), self._idle_seconds)
        if turn == len(group.turns):
            group.turns.append(self._waiting.popleft() if self._waiting else None)
            await self._notify()
        request = group.turns[turn]
        return request.stage if request else None

    async def report(self, group_id: int, turn: int, report: Report) -> None:
        request = self._groups[group_id].turns[turn]
        assert request is not None
        request.reports.append(report)
        await self._notify()

    async def end(self, group_id: int, turn: int, outcome: Outcome) -> None:
        """Record how that stage of the group ended. Every worker says so; the first word counts."""
        request = self._groups[group_id].turns[turn]
        assert request is not None
        request.outcome = request.outcome or outcome
        await self._notify()

    # ---- groups ------------------------------------------------------------------------------------------------

    def _start_groups(self) -> None:
        """One group for each stage that waits and no idle group will take, up to the limit."""
        idle = sum(1 for group in self._groups.values() if not group.unfinished and not group.ending)
        room = self._max_groups - len(self._groups)
        for _ in range(min(len(self._waiting) - idle, room)):
            group_id, self._started = self._started, self._started + 1
            self._groups[group_id] = _Group()
            handle = ray.get_runtime_context().current_actor
            run = _run_group.remote(handle, group_id, self._storage, self._size)
            self._groups[group_id].run = asyncio.ensure_future(self._watch(group_id, run))

    async def _watch(self, group_id: int, run: Any) -> None:
        """Wait for the end of a group. A stage that it leaves unfinished has failed."""
        cause = "the worker group ended without finishing the stage"
        try:
            await run
        except Exception as error:  # noqa: BLE001  (however it died, its stage failed)
            cause = f"the worker group died: {_innermost(error)}"
        group = self._groups.pop(group_id)
        if group.unfinished:
            group.unfinished.outcome = Outcome("failed", cause)
        self._start_groups()
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _wait(self, condition: Any, timeout_seconds: float = LONG_POLL_SECONDS) -> None:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(condition), timeout_seconds)
            except TimeoutError:
                return


def start_worker_groups(storage: Path, size: GroupSize, max_groups: int, idle_seconds: float) -> Any:
    """The handle of a new `WorkerGroups` actor on the head node."""
    return WorkerGroups.options(num_cpus=0, resources=HEAD_SLIVER, max_concurrency=10_000).remote(  # type: ignore[attr-defined]
        storage, size, max_groups, idle_seconds
    )


@ray.remote(num_cpus=0, max_retries=0, resources=HEAD_SLIVER)  # type: ignore[untyped-decorator]
def _run_group(groups: Any, group_id: int, storage: Path, size: GroupSize) -> None:
    """One group, from its first stage to the time when no more work comes: a Ray Train run."""
    resources = {"CPU": float(size.cpus_per_worker)}
    if size.gpus_per_worker:
        resources["GPU"] = size.gpus_per_worker
    ray.train.torch.TorchTrainer(
        _work,
        train_loop_config={
            "groups": groups,
            "group_id": group_id,
            "storage": str(storage),
            "threads": size.cpus_per_worker,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=size.workers, use_gpu=bool(size.gpus_per_worker), resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(name=f"group-{os.getpid()}", storage_path=str(storage / "ray")),
    ).fit()


def _work(config: dict[str, Any]) -> None:
    """The train loop of one worker: take a stage, run it, take the next."""
    import torch

    from trainables.loop import StageBusyError, run_stage

    groups, group_id, store = config["groups"], config["group_id"], StageStore(Path(config["storage"]))
    torch.set_num_threads(config["threads"])
    device = ray.train.torch.get_device()
    for turn in itertools.count():
        stage = ray.get(groups.take.remote(group_id, turn))
        if stage is None:
            return
        try:
            run_stage(stage, store, functools.partial(_report, groups, group_id, turn), device)
            outcome = Outcome("finished")
        except StageBusyError as error:
            outcome = Outcome("busy", str(error))
        except Exception as error:
            # The group ends with a failed stage: the next one gets processes that nothing can have harmed.
            ray.get(groups.end.remote(group_id, turn, Outcome("failed", _describe(error))))
            raise
        ray.get(groups.end.remote(group_id, turn, outcome))


def _report(groups: Any, group_id: int, turn: int, report: Report) -> None:
    ray.get(groups.report.remote(group_id, turn, report))


def _describe(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"


def _innermost(error: BaseException) -> str:
    """The beginning of the last line of the innermost cause, without Ray's wrapping."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    message = textwrap.shorten(lines[-1], 200, placeholder=" ...") if lines else "no message"
    return f"{type(error).__name__}: {message}"
