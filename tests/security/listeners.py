"""Which addresses processes listen on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}  # as /proc/net has them
_LISTENING = "0A"


def with_descendants(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for child in children.read_text().split():
                yield from with_descendants(int(child))


def listening(pids: Iterable[int]) -> set[str]:
    """Addresses on which the processes take connections; those that end meanwhile are left out."""
    sockets = set().union(*map(_sockets_of, pids))
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == _LISTENING and row[9] in sockets}


def _sockets_of(pid: int) -> set[str]:
    links = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                links.append(os.readlink(link))
    return {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:")}
