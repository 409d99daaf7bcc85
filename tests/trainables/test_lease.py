"""Leases, with real processes that die."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.processes import eventually
from trainables import lease as lease_module
from trainables.lease import Lease, LeaseLostError, here, process_is_gone, process_start, wait_for_silence
from trainables.store import write_atomically

# Identity


FOREIGN = "another-host.invalid 1 1 abc"


def test_a_held_lease_is_refused_to_a_second_holder_and_free_after_the_block(tmp_path: Path) -> None:
    path = tmp_path / "stages" / "a.lease"
    with Lease(path).hold() as first:
        assert first is not None
        with Lease(path).hold() as second:
            assert second is None
        assert Lease(path).held_by_another()
        first.check()
    assert not Lease(path).held_by_another()
    with Lease(path).hold() as third:
        assert third is not None
    assert os.listdir(path.parent) == []


def test_a_lease_is_free_after_a_block_that_raised(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Lease(tmp_path / "a.lease").hold():
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_a_lease_of_a_killed_process_can_be_taken_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.lease"
    program = (
        "import sys, time, pathlib, trainables.lease as s\n"
        "with s.Lease(pathlib.Path(sys.argv[1])).hold() as lease:\n"
        "    print('ready' if lease else 'refused', flush=True)\n"
        "    time.sleep(600)\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True, cwd=root) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
            observer = Lease(path)
            assert observer.held_by_another()
        finally:
            holder.kill()
    assert path.exists()
    assert not observer.held_by_another()
    with observer.hold() as lease:
        assert lease is not None


def test_a_later_process_with_the_number_of_a_dead_holder_does_not_keep_its_lease(tmp_path: Path) -> None:
    path = tmp_path / "a.lease"
    path.write_text(f"{here()} {os.getpid()} 1 abc")
    assert not Lease(path).held_by_another()


def test_a_process_of_another_container_with_this_machines_name_may_live(tmp_path: Path) -> None:
    path = tmp_path / "a.lease"
    path.write_text(f"{socket.gethostname()}/pid:[1] {os.getpid()} 1 abc")
    lease = Lease(path)
    assert lease.held_by_another()
    assert not lease.is_held_here()


def test_a_process_that_the_system_hides_may_live_and_one_that_is_nowhere_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As /proc with `hidepid=2` shows those of other users: not at all."""
    pid, start = os.getpid(), process_start(os.getpid())
    with subprocess.Popen(["true"]) as ended:
        pass
    monkeypatch.setattr(lease_module, "process_start", lambda pid: "?")
    assert not process_is_gone(here(), here(), str(pid), start)
    assert process_is_gone(here(), here(), str(ended.pid), start)


def test_who_waits_for_silence_takes_over_from_a_holder_on_a_dead_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lease, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(Lease, "HEARTBEAT_SECONDS", 1.0)
    path = tmp_path / "a.lease"
    path.write_text(FOREIGN)
    wait_for_silence(Lease(path))
    with Lease(path).hold() as lease:
        assert lease is not None


def test_a_holder_learns_at_once_that_it_was_taken_over_when_it_asks(tmp_path: Path) -> None:
    path = tmp_path / "a.lease"
    with Lease(path).hold() as lease:
        assert lease is not None
        lease.confirm()
        path.write_text(FOREIGN)
        lease.check()  # the next beat will tell
        with pytest.raises(LeaseLostError):
            lease.confirm()
        with pytest.raises(LeaseLostError):
            lease.check()
    assert path.read_text() == FOREIGN


def test_several_that_find_a_dead_holder_take_turns_and_leave_no_lease(tmp_path: Path) -> None:
    """None may take a lease away that another one has just taken."""
    path, inside, num_rounds = tmp_path / "a.lease", threading.Semaphore(1), 300
    dead = f"{here()} {os.getpid()} 1"
    rounds = threading.Barrier(4, action=lambda: path.write_text(f"{dead} {uuid.uuid4().hex}"), timeout=60)

    def take_over() -> int:
        taken = 0
        for _ in range(num_rounds):
            rounds.wait()
            lease = Lease(path)
            lease.held_by_another()
            with lease.hold() as held:
                if held:
                    assert inside.acquire(blocking=False), "two hold it at once"
                    taken += 1
                    assert path.read_text() == lease.holder
                    inside.release()
            rounds_ended.wait()
        return taken

    left: list[str] = []
    rounds_ended = threading.Barrier(4, action=lambda: left.extend(map(str, tmp_path.glob("*.lease"))), timeout=60)
    with ThreadPoolExecutor(4) as pool:
        taken = [future.result() for future in [pool.submit(take_over) for _ in range(4)]]
    assert not left
    assert sum(taken) >= num_rounds


def test_an_old_foreign_lease_is_respected_at_first_sight_for_clocks_may_differ(tmp_path: Path) -> None:
    path = tmp_path / "a.lease"
    path.write_text(FOREIGN)
    os.utime(path, (0, 0))
    assert Lease(path).held_by_another()


def test_a_foreign_lease_that_nobody_touches_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "STALE_SECONDS", 0.2)
    path = tmp_path / "a.lease"
    path.write_text(FOREIGN)
    observer = Lease(path)
    assert observer.held_by_another()
    assert eventually(lambda: not observer.held_by_another())
    assert not path.exists()


def test_a_foreign_lease_that_is_being_touched_is_not_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "STALE_SECONDS", 0.2)
    path = tmp_path / "a.lease"
    path.write_text(FOREIGN)
    observer = Lease(path)
    for beat in range(10):  # longer than STALE_SECONDS in all
        os.utime(path, (beat, beat))
        assert observer.held_by_another()
        time.sleep(0.05)
    assert path.read_text() == FOREIGN


def test_a_holder_touches_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "HEARTBEAT_SECONDS", 0.01)
    path = tmp_path / "a.lease"
    with Lease(path).hold():
        os.utime(path, (0, 0))
        assert eventually(lambda: path.stat().st_mtime > 0)


def test_a_holder_whose_lease_was_taken_over_is_told_and_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lease, "HEARTBEAT_SECONDS", 0.01)
    path = tmp_path / "a.lease"

    def lost(lease: Lease) -> bool:
        try:
            lease.check()
        except LeaseLostError:
            return True
        return False

    with Lease(path).hold() as lease:
        assert lease is not None
        assert not lost(lease)
        write_atomically(path, FOREIGN.encode())
        assert eventually(lambda: lost(lease))
    assert path.read_text() == FOREIGN
