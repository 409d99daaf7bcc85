"""The right to run a stage, held by one worker group at a time, on storage that every node sees."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


class LeaseLostError(RuntimeError):
    """Another worker took over the stage, because this one seemed dead."""


class WatchedLease(Protocol):
    """What those who wait for a lease ask of it, wherever it is kept."""

    HEARTBEAT_SECONDS: float
    STALE_SECONDS: float

    def held_by_another(self) -> bool: ...

    def is_held_here(self) -> bool: ...


class Lease:
    """The right to run a stage: a file that its holder touches every few seconds.

    A holder is dead when its process is gone (seen where it ran: on its machine, in its container), or when the file
    has not been touched for `STALE_SECONDS` of the observer's own clock (seen from anywhere; none are compared).
    """

    HEARTBEAT_SECONDS = 5.0
    STALE_SECONDS = 45.0

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[str, int] | None = None
        self._seen_at = 0.0

    @contextmanager
    def hold(self) -> Iterator[Lease | None]:
        """Hold the lease, or yield None at once when another holds it."""
        holder = f"{here()} {os.getpid()} {process_start(os.getpid())} {uuid.uuid4().hex}"
        if not self._create(holder):
            yield None
            return
        self._remove_unfinished()
        self.holder, self.lost, stop = holder, False, threading.Event()
        beat = threading.Thread(target=self._beat, args=(stop,), daemon=True, name="lease-heartbeat")
        beat.start()
        try:
            yield self
        finally:
            stop.set()
            beat.join()
            if self._read() == holder:
                self.path.unlink(missing_ok=True)

    def held_by_another(self) -> bool:
        """True while a live holder has the lease. A dead holder's lease is removed. Ask repeatedly."""
        holder = self._read()
        if holder is None:
            return False
        try:
            seen = (holder, self.path.stat().st_mtime_ns)
        except FileNotFoundError:
            return False
        if seen != self._seen:
            self._seen, self._seen_at = seen, time.monotonic()
        if _is_gone(holder) or time.monotonic() - self._seen_at > self.STALE_SECONDS:
            self._break(holder)
            return False
        return True

    def is_held_here(self) -> bool:
        """Whether the holder is a process whose end can be seen from here."""
        return (self._read() or "").startswith(f"{here()} ")

    def check(self) -> None:
        """Raise LeaseLostError when the lease that this process holds has been taken over."""
        if self.lost:
            raise LeaseLostError(f"the lease of {self.path.stem} was taken over by another worker")

    def confirm(self) -> None:
        """Look into the file. Raises LeaseLostError when the lease has been taken over, OSError."""
        self.lost = self.lost or self._read() != self.holder
        self.check()

    def _create(self, holder: str) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}")
        try:
            beside.write_text(holder)
            os.link(beside, self.path)  # unlike rename, fails when the lease exists, and shows it only when complete
        except (FileExistsError, FileNotFoundError):  # not found: a holder has removed what is beside
            return False
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
        return True

    def _remove_unfinished(self) -> None:
        """Remove what processes that died left beside the lease. Its holder may: others cannot have it now."""
        with contextlib.suppress(OSError):
            for left in self.path.parent.glob(f".{self.path.name}.*"):
                left.unlink(missing_ok=True)

    def _read(self) -> str | None:
        try:
            return self.path.read_text()
        except FileNotFoundError:
            return None

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(self.HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # shared storage may fail for a moment: the next beat tries again
                if self._read() != self.holder:
                    self.lost = True
                    return
                os.utime(self.path)

    def _break(self, holder: str) -> None:
        """Remove the dead holder's lease, unless another observer has done so: it may be that of a new holder now."""
        with one_at_a_time(self.path.with_name(".breaking")):
            if self._read() == holder:
                self.path.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until no other process of any machine is in such a block. Without effect where storage has no locks."""
    with path.open("w") as file:  # closing it ends the lock, and so does the death of the process
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def process_start(pid: int) -> str:
    """Start time in clock ticks since boot, which tells a process from a later one with the same number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "dead" if fields[0] == "Z" else fields[19]  # a zombie holds nothing
    except (OSError, IndexError):
        return "?"


def here() -> str:
    """Where processes are known by their numbers: a machine, or a container that may share its name."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def process_is_gone(here: str, host: str, pid: str, start: str) -> bool:
    """Whether the process of that host and start time has ended, as far as that can be known `here`."""
    if host != here or start == "?":
        return False
    started = process_start(int(pid))
    return _is_no_process(int(pid)) if started == "?" else started != start


def _is_no_process(pid: int) -> bool:
    """Whether there is none of that number; /proc may hide those of other users."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def wait_for_silence(lease: WatchedLease) -> None:
    """Wait for as long as it takes to know that a holder on another machine has died."""
    deadline = time.monotonic() + lease.STALE_SECONDS + lease.HEARTBEAT_SECONDS
    while lease.held_by_another() and not lease.is_held_here() and time.monotonic() < deadline:
        time.sleep(1.0)


def _is_gone(holder: str) -> bool:
    if holder.count(" ") != 3:  # torn by a crash of its machine
        return True
    host, pid, start, _ = holder.split(" ")
    return process_is_gone(here(), host, pid, start)
