"""Leases in a bucket: a real server, and thousands of interleavings of several that want one."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from tests.buckets import BUCKET, BucketServer, bucket_server
from tests.processes import eventually
from trainables.lease import LeaseLostError
from trainables.object_lease import ObjectLease, _host
from trainables.object_storage import ObjectStorage

__all__ = ["bucket_server"]

pytestmark = pytest.mark.usefixtures("bucket_server")

URL = f"s3://{BUCKET}/leases"
FOREIGN = b"another-host.invalid/boot 1 1 abc 0"
DEAD = f"{_host()} {os.getpid()} 1 abc 0".encode()  # an earlier process with this one's number


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


def lease(key: str) -> ObjectLease:
    return ObjectLease(URL, key)


def is_lost(held: ObjectLease) -> bool:
    try:
        held.check()
    except LeaseLostError:
        return True
    return False


def test_a_held_lease_is_refused_to_a_second_holder_and_free_after_the_block(key: str) -> None:
    with lease(key).hold() as first:
        assert first is not None
        assert lease(key).is_held_here()
        with lease(key).hold() as second:
            assert second is None
        assert lease(key).held_by_another()
        first.check()
        first.confirm()
    assert not lease(key).held_by_another()
    assert ObjectStorage(URL).read(key) is None
    with lease(key).hold() as third:
        assert third is not None


def test_a_lease_of_a_killed_process_can_be_taken_at_once(key: str) -> None:
    program = (
        "import sys, time, trainables.object_lease as s\n"
        "with s.ObjectLease(*sys.argv[1:]).hold() as lease:\n"
        "    print('ready' if lease else 'refused', flush=True)\n"
        "    time.sleep(600)\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program, URL, key]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            observer = lease(key)
            assert observer.held_by_another()
        finally:
            holder.kill()
    assert not observer.held_by_another()
    with observer.hold() as held:
        assert held is not None
    assert ObjectStorage(URL).read(key) is None


def test_a_foreign_lease_is_free_when_nobody_has_written_it_for_long(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjectLease, "STALE_SECONDS", 0.3)
    storage = ObjectStorage(URL)
    observer = lease(key)
    for beat in range(6):  # longer than STALE_SECONDS in all
        storage.write(key, FOREIGN + str(beat).encode())
        assert observer.held_by_another()
        time.sleep(0.1)
    assert eventually(lambda: not observer.held_by_another())
    with lease(key).hold() as held:
        assert held is not None


def test_a_holder_writes_its_lease_and_learns_that_it_was_taken_over(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjectLease, "HEARTBEAT_SECONDS", 0.02)
    storage = ObjectStorage(URL)
    with lease(key).hold() as held:
        assert held is not None
        first = storage.read(key)
        assert eventually(lambda: storage.read(key) != first)
        assert not is_lost(held)
        storage.write(key, FOREIGN)
        assert eventually(lambda: is_lost(held))
        with pytest.raises(LeaseLostError):
            held.confirm()
    found = storage.read(key)
    assert found is not None
    assert found.content == FOREIGN


def test_a_holder_is_not_lost_while_the_storage_is_away(
    key: str, bucket_server: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else reaches it either."""
    monkeypatch.setattr(ObjectLease, "HEARTBEAT_SECONDS", 0.02)
    with lease(key).hold() as held:
        assert held is not None
        bucket_server.go_away()
        time.sleep(0.5)
        bucket_server.come_back()
        held.confirm()
    assert ObjectStorage(URL).read(key) is None


def test_an_answer_that_is_lost_does_not_cost_the_lease(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write was made, and the holder does not know of its version; or it was told that another one was first."""
    create, replace = ObjectStorage.create, ObjectStorage.replace

    def unheard(*arguments: object) -> None:
        (create if len(arguments) == 3 else replace)(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ObjectStorage, "create", unheard)
    with lease(key).hold() as held:
        assert held is not None
        monkeypatch.setattr(ObjectStorage, "replace", unheard)
        threading.Timer(0.3, lambda: monkeypatch.setattr(ObjectStorage, "replace", replace)).start()
        held.confirm()
        assert lease(key).held_by_another()
    assert ObjectStorage(URL).read(key) is None


@pytest.mark.parametrize("seed", range(3))
def test_of_several_that_want_it_one_at_a_time_has_it(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead holders, beats, takings and releases in random order, each request after a random wait.

    Against obstore's store in memory, whose conditions are those of S3: thousands of requests a second.
    """
    draw, memory, explained = random.Random(seed), MemoryStore(), ObjectStorage._explained

    @contextlib.contextmanager
    def waiting(self: ObjectStorage, key: str, **options: bool):  # type: ignore[no-untyped-def]
        time.sleep(draw.random() * 0.0005)
        with explained(self, key, **options):
            yield

    monkeypatch.setattr(ObjectStorage, "_bucket", memory)
    monkeypatch.setattr(ObjectStorage, "_explained", waiting)
    monkeypatch.setattr(ObjectLease, "HEARTBEAT_SECONDS", 0.001)
    inside, storage, num_rounds = threading.Semaphore(1), ObjectStorage(URL), 100
    rounds = threading.Barrier(4, action=lambda: storage.write("it", DEAD + uuid.uuid4().hex.encode()), timeout=60)
    left: list[str] = []
    ends = threading.Barrier(4, action=lambda: left.extend([] if _is_free(storage) else ["it"]), timeout=60)

    def take_over() -> int:
        taken = 0
        for _ in range(num_rounds):
            rounds.wait()
            for _ in range(3):
                wanted = lease("it")
                wanted.held_by_another()
                with wanted.hold() as held:
                    if held:
                        assert inside.acquire(blocking=False), "two hold it at once"
                        taken += 1
                        time.sleep(draw.random() * 0.002)
                        held.confirm()
                        inside.release()
            ends.wait()
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = [future.result() for future in [pool.submit(take_over) for _ in range(4)]]
    assert not left
    assert sum(taken) >= num_rounds


def _is_free(storage: ObjectStorage) -> bool:
    found = storage.read("it")
    return found is None or found.content.startswith(b"free ")


@pytest.mark.parametrize("seed", range(3))
def test_a_holder_that_was_asleep_takes_nothing_from_the_one_that_took_over(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may believe for a while that it holds the lease; what it writes or deletes then changes nothing."""
    draw = random.Random(seed)
    monkeypatch.setattr(ObjectStorage, "_bucket", MemoryStore())
    monkeypatch.setattr(ObjectLease, "STALE_SECONDS", 0.0)
    monkeypatch.setattr(ObjectLease, "HEARTBEAT_SECONDS", 3600.0)
    for _ in range(50):
        asleep, other = lease("it"), lease("it")
        with contextlib.ExitStack() as sleeping:
            assert sleeping.enter_context(asleep.hold()) is not None
            while other.held_by_another():
                time.sleep(0.0001)
            with other.hold() as held:
                assert held is not None
                if draw.random() < 0.5:
                    with pytest.raises(LeaseLostError):
                        asleep.confirm()
                sleeping.close()
                held.confirm()
                with lease("it").hold() as third:
                    assert third is None
        with lease("it").hold() as third:
            assert third is not None
