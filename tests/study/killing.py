"""Processes that die by SIGKILL just before their n-th write, for tests that kill at every one of them."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import sqlalchemy as sa

WRITES = ("INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "DROP")
FILE_EVENTS = ("os.mkdir", "os.link", "os.remove", "os.rename", "sqlite3.connect")  # of sys.addaudithook


class Countdown:
    """Kills this process when it is called for the n-th time."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def before_commits(tick: Callable[[], None]) -> None:
    """Call it from now on before every commit, to any SQL database, of a transaction that has written."""

    def executes(connection: sa.Connection, cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().upper().startswith(WRITES):
            connection.info["has written"] = True

    def ends(connection: sa.Connection) -> None:
        connection.info.pop("has written", None)

    def commits(connection: sa.Connection) -> None:
        if connection.info.pop("has written", False):
            tick()

    sa.event.listen(sa.Engine, "before_cursor_execute", executes)
    sa.event.listen(sa.Engine, "commit", commits)
    sa.event.listen(sa.Engine, "rollback", ends)


def before_statements(tick: Callable[[], None]) -> None:
    """Call it from now on before every SQL statement."""
    sa.event.listen(sa.Engine, "before_cursor_execute", lambda *_: tick())


def before_file_operations(tick: Callable[[], None]) -> None:
    """Call it from now on before every operation on files that Python's audit events tell of."""
    sys.addaudithook(lambda event, arguments: tick() if event in FILE_EVENTS else None)


def dies(work: Callable[[], object]) -> bool:
    """Run it in a forked process. True when that was killed, False when it came to its end; an error is raised here."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:  # noqa: BLE001  (the exit code tells)
            print(f"{type(error).__name__}: {error}", file=sys.__stderr__, flush=True)
        finally:
            os._exit(code)
    _, status = os.waitpid(process, 0)
    assert status == 0 or os.WIFSIGNALED(status), "the process failed"
    return os.WIFSIGNALED(status)


def every_death(work: Callable[[Countdown], object]) -> Iterator[int]:
    """n = 1, 2, ..., each after a process that did the work was killed at the n-th tick; ends when one came to its end.

    The work gets the countdown that it is to install, and must begin anew each time.
    """
    n = 1
    while dies(functools.partial(work, Countdown(n))):
        yield n
        n += 1
