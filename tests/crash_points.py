"""Death at every write: an action is killed before each of its writes to a folder, and what comes after is compared.

A write is what changes the folder's files: to open one for writing, rename, link, remove, make a folder, set times.
An audit hook (PEP 578) sees each of them before it happens, and what is tested knows nothing of it. `os.fsync` has no
audit event and is wrapped: before it the content is written, and not yet renamed. Death before a write is death after
the one before. Writes of the lease's heartbeat are left out, for they come by the clock.

Every run is a fork, killed by a signal as the kernel or an operator would kill it: nothing is cleaned up. That the
power fails, which takes what the kernel had not yet written to the disk, too, is not tested here.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Action = Callable[[Path], object]  # gets the folder
Deaths = tuple[int, ...]  # before which write the first run dies, the second one, ...

# Arguments of an audit event that are paths, and the one that is the folder in which they are, as a file descriptor.
_WRITES: dict[str, tuple[tuple[int, ...], int | None]] = {
    "os.rename": ((0, 1), None),
    "os.link": ((0, 1), None),
    "os.truncate": ((0,), None),
    "os.remove": ((0,), 1),
    "os.rmdir": ((0,), 1),
    "os.mkdir": ((0,), 2),
    "os.utime": ((0,), 3),
}
_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_RANDOM = re.compile(r"\.(\d+\.)?[0-9a-f]{8}(?=/|$)")  # of the names of files that are not complete
_NOT_OF_THE_ACTION = "lease-heartbeat"


@dataclass(frozen=True)
class Case:
    """An action, the folder that it starts from (None: an empty one), and what of the folder counts at its end."""

    action: Action
    seen: Callable[[Path], object]
    start: Path | None = None

    def fresh(self, folder: Path) -> Path:
        """A new folder to run the action in."""
        shutil.rmtree(folder, ignore_errors=True)
        if self.start:
            return shutil.copytree(self.start, folder)
        folder.mkdir(parents=True)
        return folder


def writes(action: Action, folder: Path) -> list[str]:
    """Run the action. Its writes below the folder, each with its path, in which random parts are `.*`."""
    found, status = _forked(action, folder, kill_at=None)
    assert status == 0, f"the action failed, see the standard error (wait status {status})"
    return found


def killed(action: Action, folder: Path, at: int) -> bool:
    """Run the action, and kill it before write number `at`. False when it ended without so many."""
    _, status = _forked(action, folder, kill_at=at)
    assert status in (0, signal.SIGKILL), f"the action failed, see the standard error (wait status {status})"
    return status == signal.SIGKILL


def distinct(found: Sequence[str]) -> list[tuple[int]]:
    """A death before the first, and before the last, of equal writes: those between are many, and like these."""
    first = {write: number for number, write in reversed(list(enumerate(found)))}
    last = {write: number for number, write in enumerate(found)}
    return [(number,) for number in sorted({*first.values(), *last.values()})]


def pairs(found: Sequence[str], count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Two deaths in turn, drawn at random: of the first run, and of the one after it, which may end before."""
    draw = random.Random(seed)
    return [(draw.randrange(len(found)), draw.randrange(len(found))) for _ in range(count)]


def traces(case: Case, expected: object, folder: Path, found: Sequence[str], deaths: Iterable[Deaths]) -> list[str]:
    """Of runs that died in these ways, and were run again to the end: those whose end is not as expected."""
    left = []
    for death in deaths:
        case.fresh(folder)
        try:
            for at in death:
                killed(case.action, folder, at)
            writes(case.action, folder)
            differs = "" if case.seen(folder) == expected else "ends otherwise"
        except AssertionError as error:
            differs = str(error)
        if differs:
            where = ", then before write ".join([found[death[0]], *map(str, death[1:])])
            left.append(f"killed before {where}: {differs}")
    return left


def contents(folder: Path, content: Callable[[Path], object] = Path.read_bytes) -> dict[str, object]:
    """What is below the folder, hidden files included: the content of each file, None for a folder."""
    return {
        str(path.relative_to(folder)): content(path) if path.is_file() else None for path in sorted(folder.rglob("*"))
    }


def _forked(action: Action, folder: Path, kill_at: int | None) -> tuple[list[str], int]:
    """The writes of the action, run in a fork, and the wait status of that."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _run(action, folder, kill_at, writing)
    os.close(writing)
    with open(reading, encoding="utf-8") as stream:
        found = stream.read().splitlines()
    return found, os.waitpid(pid, 0)[1]


def _run(action: Action, folder: Path, kill_at: int | None, told: int) -> None:
    """In the fork: run the action under the hook, and exit."""
    number = 0

    def happen(event: str, paths: Sequence[str]) -> None:
        nonlocal number
        inside = [os.path.relpath(path, folder) for path in paths if Path(path).is_relative_to(folder)]
        if not inside or threading.current_thread().name == _NOT_OF_THE_ACTION:
            return
        if number == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        number += 1
        os.write(told, f"{event} {' -> '.join(_RANDOM.sub('.*', path) for path in inside)}\n".encode())

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if paths := _written(event, arguments):
            happen(event, paths)

    flush = os.fsync

    def fsync(fd: Any) -> None:
        happen("os.fsync", [_place(fd)])
        flush(fd)

    status = 1
    try:
        os.fsync = fsync
        sys.addaudithook(hook)
        action(folder)
        status = 0
    except BaseException:  # noqa: BLE001  (whatever it is, this process must not go on as the test)
        traceback.print_exc()
    finally:
        os._exit(status)


def _written(event: str, arguments: tuple[Any, ...]) -> list[str]:
    """The paths that the audit event changes; none for one that changes nothing."""
    if event == "open":
        path, _, flags = arguments
        return [] if isinstance(path, int) or not flags & _TO_WRITE else [_absolute(path, None)]
    if event not in _WRITES:
        return []
    positions, folder = _WRITES[event]
    paths = [_absolute(arguments[i], None if folder is None else arguments[folder]) for i in positions]
    there = os.path.lexists(paths[0])
    if event == "os.mkdir":
        return paths if not there and os.path.isdir(os.path.dirname(paths[0])) else []
    return paths if there else []


def _absolute(path: Any, folder: int | None) -> str:
    """`folder`: a descriptor; -1 and None stand for the working directory."""
    parent = os.getcwd() if folder in (None, -1) else _place(folder)
    return os.path.normpath(os.path.join(parent, os.fsdecode(path)))


def _place(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")
