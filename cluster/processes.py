"""A study's processes, on whichever node they run, and how to kill them."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """A process of a node of the cluster; `what` it is: the class of an actor, or a word of its command line."""

    node: str
    pid: int
    what: str


def on_nodes(function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> dict[str, T]:
    """Node id -> what the function gives there, on every node that is alive, nodes that die meanwhile left out.

    It takes no CPU. An exception of the function is raised.
    """
    task: Any = ray.remote(num_cpus=0, max_retries=0)(function)
    running = {
        node["NodeID"]: task.options(scheduling_strategy=_on(node["NodeID"])).remote(*arguments, **keywords)
        for node in ray.nodes()
        if node["Alive"]
    }
    found: dict[str, T] = {}
    for node, result in running.items():
        with contextlib.suppress(ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError):
            found[node] = ray.get(result)
    return found


def on_nodes_with_gpus(function: Callable[[], T], gpus: float, timeout_seconds: float) -> dict[str, T | None]:
    """The same on every node that has GPUs, with so many of them; None where they were not free in time."""
    task: Any = ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0)(function)
    running = {
        node["NodeID"]: task.options(scheduling_strategy=_on(node["NodeID"])).remote()
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU", 0) >= gpus
    }
    done, _ = ray.wait([*running.values()], num_returns=len(running), timeout=timeout_seconds)
    return {node: ray.get(result) if result in done else None for node, result in running.items()}


def actors_of(driver: int) -> list[Process]:
    """The actors that live in the job of the driver with this process number on this machine."""
    jobs = {job["JobID"] for job in ray._private.state.jobs() if job["DriverPid"] == driver and not job["IsDead"]}
    return [
        Process(actor["Address"]["NodeID"], actor["Pid"], actor["ActorClassName"])
        for actor in ray._private.state.actors().values()
        if actor["JobID"] in jobs and actor["State"] == "ALIVE" and actor["Pid"]
    ]


def commands_with(word: str, argument: str) -> list[Process]:
    """The processes of all nodes whose command line has both of these."""
    found = on_nodes(_pids_with, word, argument)
    return [Process(node, pid, word) for node, pids in found.items() for pid in pids]


def children_of(parent: int, word: str) -> list[Process]:
    """The children of this machine's process whose command line has the word."""
    me = ray.get_runtime_context().get_node_id()
    return [Process(me, pid, word) for pid, command in _commands() if word in command and _parent(pid) == parent]


def address() -> str:
    """Where other processes join the cluster that this one is in."""
    return str(ray.get_runtime_context().gcs_address)


def kill(process: Process) -> None:
    """SIGKILL. Nothing happens when it has ended."""
    task: Any = ray.remote(num_cpus=0, max_retries=0)(_kill)
    ray.get(task.options(scheduling_strategy=_on(process.node)).remote(process.pid))


def _on(node: str) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node, soft=False)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _pids_with(word: str, argument: str) -> list[int]:
    return [pid for pid, command in _commands() if word in command and argument in command]


def _parent(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def _commands() -> Iterator[tuple[int, list[str]]]:
    """Process number and command line of each process of this machine."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(folder.name), (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
