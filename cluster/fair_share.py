"""How studies share one cluster: higher priorities first, and dominant resource fairness among equal ones."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list, _internal_kv_put

from cluster.nodes import GroupSize, Node, Packing

SILENT_SECONDS = 30.0  # a study that says nothing for so long, by the clock of who listens, has ended
_PREFIX = "study-demand:"


@dataclass(frozen=True)
class Demand:
    """What a study would run at once if it had the cluster to itself: its worker groups, the most wanted first."""

    study: str
    priority: int
    groups: tuple[GroupSize, ...]


def allot(demands: Iterable[Demand], nodes: Sequence[Node]) -> dict[str, Counter[GroupSize]]:
    """How many groups of each size each study may hold on these nodes.

    Among studies of one priority, the next group goes to the one with the smallest dominant share, which is the larger
    one of its shares of the cluster's CPUs and GPUs (dominant resource fairness; Ghodsi et al., NSDI 2011).
    """
    packing = Packing(nodes)
    held = {demand.study: Counter[GroupSize]() for demand in demands}
    wanted = {demand.study: list(demand.groups) for demand in demands}
    for priority in sorted({demand.priority for demand in demands}, reverse=True):
        hungry = sorted(demand.study for demand in demands if demand.priority == priority)
        while hungry := [study for study in hungry if wanted[study]]:
            study = min(hungry, key=lambda study: _dominant_share(held[study], nodes))
            size = wanted[study].pop(0)
            if packing.take(size):
                held[study][size] += 1
    return held


def _dominant_share(held: Counter[GroupSize], nodes: Sequence[Node]) -> float:
    cpus = sum(size.workers * size.cpus_per_worker * number for size, number in held.items())
    gpus = sum(size.workers * size.gpus_per_worker * number for size, number in held.items())
    all_cpus, all_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    return max(cpus / all_cpus if all_cpus else 0.0, gpus / all_gpus if all_gpus else 0.0)


class FairShare:
    """This study's demand beside those of the others on the cluster. Each writes its own to the head's key-value store.

    A study that has died is known by its silence, which everybody takes the time of by a clock of their own.
    """

    def __init__(self, study: str, priority: int) -> None:
        self._name, self._priority = f"{study}:{uuid.uuid4().hex}", priority
        self._beats = 0
        self._left = False
        self._heard: dict[str, tuple[bytes, float]] = {}  # key -> what it said last, and when it first said so

    def allotment(self, wanted: Sequence[GroupSize], nodes: Sequence[Node]) -> Counter[GroupSize] | None:
        """How many groups of each size this study may hold now, as far as all are known; None: it is alone."""
        if self._left:
            return None
        self._beats += 1
        content = [self._beats, self._priority, [astuple(size) for size in wanted]]
        _internal_kv_put(_PREFIX + self._name, json.dumps(content), overwrite=True)
        others = list(self._others())
        if not others:
            return None
        mine = Demand(self._name, self._priority, tuple(wanted))
        return allot([mine, *others], nodes)[self._name]

    def leave(self) -> None:
        """Take the demand back for good, so that others need not wait for the silence."""
        self._left = True
        _internal_kv_del(_PREFIX + self._name)

    def _others(self) -> Iterable[Demand]:
        for key in map(bytes.decode, _internal_kv_list(_PREFIX)):
            name, content = key.removeprefix(_PREFIX), _internal_kv_get(key)
            if name == self._name or content is None:
                continue
            before, since = self._heard.get(key, (b"", 0.0))
            if content != before:
                self._heard[key] = content, (since := time.monotonic())
            if time.monotonic() - since > SILENT_SECONDS:
                _internal_kv_del(key)
                continue
            _, priority, sizes = json.loads(content)
            yield Demand(name, priority, tuple(GroupSize(*size) for size in sizes))
