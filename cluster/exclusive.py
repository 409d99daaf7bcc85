"""A whole accelerator of the cluster, for what must run with nothing beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import ray

from cluster.nodes import possible_nodes, present_nodes

P = ParamSpec("P")
T = TypeVar("T")


class NotFreeError(RuntimeError):
    """No accelerator became free in time."""


class LostError(RuntimeError):
    """What held the accelerator died."""


class Accelerator:
    """A process that holds a whole GPU, or all CPUs of a node."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def run(self, function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        """The function's result there. Exceptions of the function are raised; LostError when the process died."""
        try:
            result: T = ray.get(self._actor.run.remote(function, arguments, keywords))
            return result
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayActorError as error:
            raise LostError(f"the process that held the accelerator died: {str(error).splitlines()[0]}") from None


@contextmanager
def whole_accelerator(gpu: bool, timeout_seconds: float) -> Iterator[Accelerator]:
    """A GPU that nothing else uses, or without `gpu` the largest node, as far as Ray knows who uses what.

    Raises NotFreeError.
    """
    cpus = max((node.cpus for node in possible_nodes(present_nodes())), default=1)
    needed = {"num_cpus": 1, "num_gpus": 1} if gpu else {"num_cpus": cpus}
    actor = ray.remote(**needed)(_Runner).remote()
    try:
        ready = actor.run.remote(_nothing, (), {})
        if not ray.wait([ready], timeout=timeout_seconds)[0]:
            what = "GPU" if gpu else f"node with {cpus:g} CPUs"
            raise NotFreeError(f"no whole {what} was free within {timeout_seconds / 60:g} min")
        yield Accelerator(actor)
    finally:
        ray.kill(actor)


class _Runner:
    def run(self, function: Callable[..., T], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> T:
        return function(*arguments, **keywords)


def _nothing() -> None:
    """To see that the process is there."""
