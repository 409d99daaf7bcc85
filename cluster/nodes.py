"""The nodes of the cluster, and how many worker groups they hold."""

from __future__ import annotations

import copy
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.core.generated import gcs_pb2
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.placement_group import PlacementGroup, remove_placement_group

NODE_TYPE_LABEL = "ray.io/node-group"  # set by KubeRay and Ray's autoscalers of version 2
AUTOSCALER_STATUS = "__autoscaling_status"  # where the autoscaler tells `ray status` what it does
WATCHED = "node_"  # what a monitor that adds no nodes calls them begins with this
CLUSTER_FILE = Path("~/ray_bootstrap_config.yaml")  # where Ray's cluster launcher leaves its settings on the head node

ROUNDING = 1e-9  # three thirds of a GPU are one


@dataclass(frozen=True)
class GroupSize:
    """What one worker group needs."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: float

    def __str__(self) -> str:
        gpus = f" and {self.gpus_per_worker:g} GPU(s)" if self.gpus_per_worker else ""
        return f"{self.workers} worker(s) of {self.cpus_per_worker} CPU(s){gpus} each"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, or one that the autoscaler may add."""

    cpus: float
    gpus: float
    type: str = ""  # its node type in the autoscaler's settings; empty: it was started by hand
    most_at_once: int | None = None  # of all nodes with the same number here

    def holds(self, size: GroupSize) -> int:
        """How many workers of this size fit."""
        by_cpu = int(self.cpus // size.cpus_per_worker)
        if not size.gpus_per_worker:
            return by_cpu
        if size.gpus_per_worker < 1:  # a worker gets a part of one GPU, never parts of two
            return min(by_cpu, int(self.gpus) * int(1 / size.gpus_per_worker + ROUNDING))
        return min(by_cpu, int(self.gpus // size.gpus_per_worker))

    def share(self, size: GroupSize) -> float:
        """The part of the node that one worker takes up: of its GPUs where it asks for any, else of its CPUs."""
        return size.gpus_per_worker / self.gpus if size.gpus_per_worker else size.cpus_per_worker / self.cpus


class InfeasibleError(ValueError):
    """The cluster can never hold what is asked for."""


def present_nodes() -> list[Node]:
    """The nodes that are there now, and stay."""
    types, leaving = _reported_types(), draining_nodes()
    return [_node(found, types) for found in ray.nodes() if found["Alive"] and found["NodeID"] not in leaving]


def draining_nodes() -> set[str]:
    """Ids of the nodes that have been told to go: by the cloud, by an autoscaler, or by SIGTERM to their Ray."""
    return set(ray._private.state.state.get_draining_nodes())


def this_node_id() -> str:
    """Of the node that this worker runs on."""
    return str(ray.get_runtime_context().get_node_id())


def this_node() -> Node:
    """The node that this worker runs on."""
    me = this_node_id()
    return next(_node(found, _reported_types()) for found in ray.nodes() if found["NodeID"] == me)


def _node(found: Mapping[str, Any], types: Mapping[str, str]) -> Node:
    names = (types.get(found["NodeID"]), types.get(found["NodeManagerAddress"]))
    type_ = found["Labels"].get(NODE_TYPE_LABEL) or next(filter(None, names), "")
    return Node(found["Resources"].get("CPU", 0), found["Resources"].get("GPU", 0), type_)


def _reported_types() -> dict[str, str]:
    """Id or address of a node -> its type, as the autoscaler on the head reports it; empty where there is none."""
    status = json.loads(_internal_kv_get(AUTOSCALER_STATUS) or "{}")
    types = (status.get("autoscaler_report") or {}).get("node_type_mapping") or {}
    return {node: type_ for node, type_ in types.items() if not type_.startswith(WATCHED)}


def possible_nodes(present: Sequence[Node]) -> list[Node]:
    """The nodes that there can be: those present, and what the autoscaler may add as far as its settings are here.

    Of the latter, as many of each type as there can be; `most_at_once` says how many of all types together.
    """
    path = CLUSTER_FILE.expanduser()
    settings = yaml.safe_load(path.read_text()) if path.is_file() else {}
    most = settings.get("max_workers", 0)
    addable = [
        Node(type_["resources"].get("CPU", 0), type_["resources"].get("GPU", 0), name, most)
        for name, type_ in settings.get("available_node_types", {}).items()
        if type_.get("resources") and name != settings.get("head_node_type")
        for _ in range(min(type_.get("max_workers", most), most))
    ]
    types = {node.type for node in addable}
    return [*(node for node in present if node.type not in types), *addable]


def may_grow_unknown(present: Sequence[Node]) -> bool:
    """Whether an autoscaler may add nodes, and its settings are not here to say which."""
    return autoscales(present) and possible_nodes(present) == list(present)


def autoscales(nodes: Iterable[Node]) -> bool:
    """Whether an autoscaler may add nodes to these."""
    return any(node.type for node in nodes)


def free_reservations_of_the_dead() -> None:
    """Remove the placement groups of this job whose creator, an actor, has died. Ray waits until the whole job has."""
    job = ray.get_runtime_context().get_job_id()
    for content in ray._private.state.state._connect_and_get_accessor().get_placement_group_table():
        found = gcs_pb2.PlacementGroupTableData.FromString(content)
        by_actor = not ray.ActorID(found.creator_actor_id).is_nil()  # and not by a driver
        removed = found.state == gcs_pb2.PlacementGroupTableData.REMOVED
        if by_actor and found.creator_actor_dead and not removed and found.creator_job_id.hex() == job:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(found.placement_group_id)))


def groups_that_fit(size: GroupSize, nodes: Iterable[Node]) -> int:
    """How many groups the nodes hold at once, if nothing else runs there."""
    held: defaultdict[int | None, list[int]] = defaultdict(list)
    for node in nodes:
        held[node.most_at_once].append(node.holds(size))
    return sum(sum(sorted(workers, reverse=True)[:most]) for most, workers in held.items()) // size.workers


def fit_together(sizes: Iterable[GroupSize], nodes: Iterable[Node]) -> bool:
    """Whether groups of these sizes fit on the nodes side by side."""
    packing = Packing(nodes)
    return all(packing.take(size) for size in sizes)


class Packing:
    """Worker groups side by side on nodes: each worker takes the first node with room."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._rooms = [_Room(node.cpus, [1.0] * int(node.gpus), node.most_at_once) for node in nodes]
        self._used = 0  # of the nodes that cannot all be there at once
        self._first: dict[GroupSize, int] = {}  # of the nodes, those before this one have no room for the size

    def take(self, size: GroupSize) -> bool:
        """Take what the group needs, if it is there: all of it or nothing."""
        before = (copy.deepcopy(self._rooms), dict(self._first), self._used) if size.workers > 1 else None
        if all(self._take_worker(size) for _ in range(size.workers)):
            return True
        if before:
            self._rooms, self._first, self._used = before
        return False

    def _take_worker(self, size: GroupSize) -> bool:
        index = self._first.get(size, 0)
        while index < len(self._rooms) and not self._take_from(self._rooms[index], size):
            index += 1
        self._first[size] = index
        return index < len(self._rooms)

    def _take_from(self, room: _Room, size: GroupSize) -> bool:
        is_new = room.most_at_once is not None and not room.used
        if (is_new and room.most_at_once == self._used) or not room.take(size):
            return False
        self._used += is_new
        return True


@dataclass
class _Room:
    """What is free on a node, and of each of its GPUs."""

    cpus: float
    gpus: list[float]
    most_at_once: int | None = None
    used: bool = False

    def take(self, size: GroupSize) -> bool:
        """Take what one worker needs, if it is there. A part of a GPU is taken where the least is left, as Ray does."""
        count, part = math.ceil(size.gpus_per_worker), min(size.gpus_per_worker, 1.0)
        fitting = sorted((free, index) for index, free in enumerate(self.gpus) if free >= part - ROUNDING)[:count]
        if self.cpus < size.cpus_per_worker or len(fitting) < count:
            return False
        for _, index in fitting:
            self.gpus[index] -= part
        self.cpus -= size.cpus_per_worker
        self.used = True
        return True


def refuse_infeasible(size: GroupSize) -> None:
    """Raise InfeasibleError when the cluster can never hold one group, now or with nodes that may be added."""
    present = present_nodes()
    possible = possible_nodes(present)
    if may_grow_unknown(present) or groups_that_fit(size, possible):  # the watchdog tells when nothing comes
        return
    largest = max(possible, key=lambda node: (node.gpus, node.cpus), default=Node(0, 0))
    workers = sum(node.holds(size) for node in possible)
    raise InfeasibleError(
        f"a worker group needs {size}, and the cluster holds {workers} such worker(s): {len(possible)} node(s), the "
        f"largest with {largest.cpus:g} CPU(s) and {largest.gpus:g} GPU(s); lower workers, cpus_per_worker or "
        "gpus_per_worker in resources"
    )
