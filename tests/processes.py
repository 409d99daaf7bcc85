"""Other processes, as tests look at them, and waiting for what they do."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any


def eventually(condition: Callable[[], bool]) -> bool:
    """True as soon as the condition holds; False after a time that only a broken program needs."""
    deadline = time.monotonic() + 300
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def forkserver(module: str) -> ForkServerContext:
    """Makes processes that start at once: they are forked from one that has imported the module.

    Only the first module that is named in a test run is imported there; the processes import the others.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def forked(context: ForkServerContext, work: Callable[..., object], *arguments: Any) -> ForkServerProcess:
    """A process of the context, not yet started, with the environment of this one, not with that of the server."""
    return context.Process(target=_work, args=(dict(os.environ), work, arguments))


def _work(environment: dict[str, str], work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    work(*arguments)


def run_two_workers(work: Callable[..., object], *arguments: Any) -> None:
    """Calls it with the place, 0 or 1, and the arguments, in a process each, to the end of both."""
    import torch.multiprocessing

    forkserver(work.__module__)
    torch.multiprocessing.start_processes(work, arguments, nprocs=2, start_method="forkserver")


def is_alive(pid: int) -> bool:
    """Zombies are not. (An empty command line says nothing: that of a process that starts is empty, too.)"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
