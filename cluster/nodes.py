"""The nodes of the cluster, and how many worker groups they hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
import yaml

NODE_TYPE_LABEL = "ray.io/node-group"  # set by Ray's autoscalers; nodes that were started by hand have none
CLUSTER_FILE = Path("~/ray_bootstrap_config.yaml")  # where Ray's cluster launcher leaves its settings on the head node


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
    type: str = ""  # its node type in the autoscaler's settings

    def holds(self, size: GroupSize) -> int:
        """How many workers of this size fit."""
        by_cpu = int(self.cpus // size.cpus_per_worker)
        if not size.gpus_per_worker:
            return by_cpu
        if size.gpus_per_worker < 1:  # a worker gets a part of one GPU, never parts of two
            return min(by_cpu, int(self.gpus) * int(1 / size.gpus_per_worker + 1e-9))
        return min(by_cpu, int(self.gpus // size.gpus_per_worker))

    def without(self, size: GroupSize, workers: int) -> Node:
        """What is left beside so many workers."""
        return Node(self.cpus - workers * size.cpus_per_worker, self.gpus - workers * size.gpus_per_worker, self.type)

    def share(self, size: GroupSize) -> float:
        """The part of the node that one worker takes up: of its GPUs where it has any, else of its CPUs."""
        return size.gpus_per_worker / self.gpus if self.gpus else size.cpus_per_worker / self.cpus


class InfeasibleError(ValueError):
    """The cluster can never hold what is asked for."""


def present_nodes() -> list[Node]:
    """The nodes that are there now."""
    return [
        Node(n["Resources"].get("CPU", 0), n["Resources"].get("GPU", 0), n["Labels"].get(NODE_TYPE_LABEL, ""))
        for n in ray.nodes()
        if n["Alive"]
    ]


def possible_nodes(present: Sequence[Node]) -> list[Node]:
    """The nodes that there can be: those present, and what the autoscaler may add as far as its settings are here."""
    path = CLUSTER_FILE.expanduser()
    settings = yaml.safe_load(path.read_text()) if path.is_file() else {}
    most = settings.get("max_workers", 0)
    addable = [
        Node(type_["resources"].get("CPU", 0), type_["resources"].get("GPU", 0), name)
        for name, type_ in settings.get("available_node_types", {}).items()
        if type_.get("resources") and name != settings.get("head_node_type")
        for _ in range(min(type_.get("max_workers", most), most))
    ]
    return [*(node for node in present if not (addable and node.type)), *addable]


def autoscales(nodes: Iterable[Node]) -> bool:
    """Whether an autoscaler may add nodes to these."""
    return any(node.type for node in nodes)


def groups_that_fit(size: GroupSize, nodes: Iterable[Node]) -> int:
    """How many groups the nodes hold at once, if nothing else runs there."""
    return sum(node.holds(size) for node in nodes) // size.workers


def fit_together(sizes: Iterable[GroupSize], nodes: Iterable[Node]) -> bool:
    """Whether groups of these sizes fit on the nodes side by side, when each worker takes the first node with room."""
    room = list(nodes)
    for size in sizes:
        missing = size.workers
        for index, node in enumerate(room):
            taken = min(missing, node.holds(size))
            room[index] = node.without(size, taken)
            missing -= taken
        if missing:
            return False
    return True


def refuse_infeasible(size: GroupSize) -> None:
    """Raise InfeasibleError when the cluster can never hold one group, now or with nodes that may be added."""
    present = present_nodes()
    possible = possible_nodes(present)
    unknown = autoscales(present) and possible == present  # what may be added: the watchdog tells when it does not come
    if unknown or groups_that_fit(size, possible):
        return
    largest = max(possible, key=lambda node: (node.gpus, node.cpus), default=Node(0, 0))
    workers = sum(node.holds(size) for node in possible)
    raise InfeasibleError(
        f"a worker group needs {size}, and the cluster holds {workers} such worker(s): {len(possible)} node(s), the "
        f"largest with {largest.cpus:g} CPU(s) and {largest.gpus:g} GPU(s); lower workers, cpus_per_worker or "
        "gpus_per_worker in resources"
    )
