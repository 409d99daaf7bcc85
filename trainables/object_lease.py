"""The right to run a stage, as an object in a bucket, where nothing can be renamed, linked or locked."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainables.lease import LeaseLostError, here, process_is_gone, process_start
from trainables.object_storage import Found, ObjectStorage

FREE = b"free "  # how the object begins that a dead holder's was replaced with
PATIENCE_SECONDS = 10.0  # for storage that is away; the next beat tries again


class ObjectLease:
    """The right to run a stage: an object that its holder writes again every few seconds.

    Every write names the version that it replaces, and fails where another one is there: of several that take the lease
    one gets it, and a holder that was taken over learns it from its next write, which changes nothing. Who is dead is
    told as by `Lease`. The object is deleted by its holder only, just after a write that has shown that it still holds
    the lease: for `STALE_SECONDS` from then on, nobody may take it.
    """

    HEARTBEAT_SECONDS = 5.0
    STALE_SECONDS = 45.0

    def __init__(self, url: str, key: str) -> None:
        self.path = f"{url}/{key}"
        self._storage, self._key = ObjectStorage(url, PATIENCE_SECONDS), key
        self._seen: Any = None
        self._seen_at = 0.0
        self._writing = threading.Lock()

    @contextmanager
    def hold(self) -> Iterator[ObjectLease | None]:
        """Hold the lease, or yield None at once when another holds it. Raises ObjectStorageError."""
        self.holder = f"{_host()} {os.getpid()} {process_start(os.getpid())} {uuid.uuid4().hex}"
        self.lost, self._beats = False, itertools.count()
        if not self._take():
            yield None
            return
        stop = threading.Event()
        beat = threading.Thread(target=self._beat, args=(stop,), daemon=True, name="lease-heartbeat")
        beat.start()
        try:
            yield self
        finally:
            stop.set()
            beat.join()
            with contextlib.suppress(OSError):  # then it is taken over as a dead holder's
                if not self.lost and self._write():
                    self._storage.delete([self._key])

    def held_by_another(self) -> bool:
        """True while a live holder has the lease. A dead holder's lease is given up for it. Ask repeatedly."""
        found = self._storage.read(self._key)
        if found is None or found.content.startswith(FREE):
            return False
        if found.version != self._seen:
            self._seen, self._seen_at = found.version, time.monotonic()
        if _is_gone(found) or time.monotonic() - self._seen_at > self.STALE_SECONDS:
            self._storage.replace(self._key, FREE + uuid.uuid4().hex.encode(), found.version)
            return False
        return True

    def is_held_here(self) -> bool:
        """Whether the holder is a process whose end can be seen from here."""
        found = self._storage.read(self._key)
        return found is not None and found.content.startswith(f"{_host()} ".encode())

    def check(self) -> None:
        """Raise LeaseLostError when the lease that this process holds is known to have been taken over."""
        if self.lost:
            raise LeaseLostError(f"the lease {self.path} was taken over by another worker")

    def confirm(self) -> None:
        """Ask the storage. Raises LeaseLostError when the lease has been taken over, ObjectStorageError."""
        self.lost = self.lost or not self._write()
        self.check()

    def _take(self) -> bool:
        found = self._storage.read(self._key)
        if found is None:
            self._version = self._storage.create(self._key, self._content())
        elif found.content.startswith(FREE):
            self._version = self._storage.replace(self._key, self._content(), found.version)
        else:
            return False
        return self._version is not None or self._is_mine()

    def _write(self) -> bool:
        """Write the object again. False when it is no longer ours."""
        with self._writing:
            while (version := self._storage.replace(self._key, self._content(), self._version)) is None:
                if not self._is_mine():
                    return False
            self._version = version
            return True

    def _is_mine(self) -> bool:
        """Whether a write was ours after all, and only its answer was lost."""
        found = self._storage.read(self._key)
        if found is None or not found.content.startswith(self.holder.encode()):
            return False
        self._version = found.version
        return True

    def _content(self) -> bytes:
        """Another one each time, for a version may be a hash of the content."""
        return f"{self.holder} {next(self._beats)}".encode()

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(self.HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                if not self._write():
                    self.lost = True
                    return


def _host() -> str:
    """This machine since it was started: buckets are shared more widely than names of machines are unique."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = "?"
    return f"{here()}/{boot}"


def _is_gone(found: Found) -> bool:
    """Whether the holder's process is known to be gone, which only its own machine knows."""
    words = found.content.decode(errors="replace").split(" ")
    return len(words) != 5 or process_is_gone(_host(), *words[:3])
