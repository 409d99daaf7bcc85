"""Stages in processes of their own: real training, and stages that crash, leak, spoil, fork and hang."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import torch

from tests.conftest import bl_just
from tests.processes import eventually, is_alive, parent
from tests.security.listeners import LOOPBACK, listening, with_descendants
from tests.trainables.misbehaving import LEAKED_BYTES, Behaviour, misbehaving, started
from tests.trainables.test_loop import run, stages, weights, without_times
from tests.trainables.test_resume import supervised
from trainables.checkpoint import load_checkpoint
from trainables.stage import Report, Stage
from trainables.stage_process import Order, Outcome, Place, StageProcesses, free_address
from trainables.store import StageStore

MISBEHAVING = "tests.trainables.misbehaving"
OR_TRAINING = "tests.trainables.misbehaving_or_training"
ALONE = Place()
FAILURES = {
    Behaviour.SEGFAULTS: r"its process was killed by SIGSEGV",
    Behaviour.IS_KILLED: r"its process was killed by SIGKILL; the machine may have run out of memory",
    Behaviour.EXITS: r"its process ended with code 3 before the stage did",
    Behaviour.RAISES: r"ValueError: a corpus that nobody can read \(misbehaving.py:\d+\)",
    Behaviour.CALLS_EXIT: r"SystemExit: enough \(misbehaving.py:\d+\)",
    Behaviour.PRINTS: r"ValueError: after printing \(misbehaving.py:\d+\)",
    Behaviour.BREAKS_OFF: r"its process was killed by SIGKILL; the machine may have run out of memory",
    Behaviour.GOES_BACK: r"it reported step 5 after step 7",
}
SUCCESSES = [
    Behaviour.REPORTS,
    Behaviour.LEAKS,
    Behaviour.SPOILS,
    Behaviour.FORKS,
    Behaviour.READS_INPUT,
]


def for_ever() -> Order:
    return "go on"


def not_any_more() -> Order:
    return "stop"


def run_one(processes: StageProcesses, stage: Stage, order: Callable[[], Order] = for_ever) -> list[Report]:
    """The reports of a stage that finishes."""
    reports: list[Report] = []
    assert processes.run(stage, ALONE, reports.append, order) == Outcome("finished")
    return reports


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


def ignore(report: Report) -> None:
    """What a failing stage reports does not matter."""


@pytest.fixture(scope="module")
def processes(storage: Path) -> Iterator[StageProcesses]:
    """One server for the whole file, whatever its stages do. It has come up."""
    with closing(StageProcesses(storage, 1, "cpu", OR_TRAINING)) as processes:
        run_one(processes, misbehaving(Behaviour.REPORTS, 99))
        yield processes


@pytest.fixture(scope="module")
def stage(small_corpus: Path) -> Stage:
    return supervised(small_corpus, 2)


@pytest.fixture(scope="module")
def expected(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> StageStore:
    """A store with the stage, trained in this process."""
    torch.set_num_threads(1)
    store = StageStore(tmp_path_factory.mktemp("expected"))
    run(stage, store)
    return store


def assert_same(stage: Stage, expected: StageStore, found: StageStore) -> None:
    """To the last bit, times apart."""
    one, other = expected.result(stage), found.result(stage)
    assert one is not None
    assert other is not None
    assert without_times(list(other.reports)) == without_times(list(one.reports))
    for name, tensor in weights(stage, expected).items():
        assert torch.equal(weights(stage, found)[name], tensor), name


# A stage and the next


def test_a_stage_gives_what_it_gives_in_any_process(stage: Stage, expected: StageStore, tmp_path: Path) -> None:
    with closing(StageProcesses(tmp_path, 1, "cpu")) as processes:
        reports = run_one(processes, stage)
        again = run_one(processes, stage)
    assert_same(stage, expected, StageStore(tmp_path))
    assert again == reports, "a finished stage is only reported again"


def spoilt(corpus: Path) -> None:
    """Every file made unreadable, with as many bytes as before."""
    for file in (corpus / "audio").iterdir():
        file.write_bytes(bytes(file.stat().st_size))


def test_audio_is_decoded_once_for_all_stages(small_corpus: Path, tmp_path: Path) -> None:
    corpus = Path(shutil.copytree(small_corpus, tmp_path / "corpus"))
    first = supervised(corpus, 2)
    with closing(StageProcesses(tmp_path / "storage", 1, "cpu")) as processes:
        run_one(processes, first)
        spoilt(corpus)
        run_one(processes, first.with_(seed=first.seed + 1))


def test_audio_that_cannot_be_decoded_fails_the_stage_alone(
    small_corpus: Path, stage: Stage, expected: StageStore, tmp_path: Path
) -> None:
    corpus = Path(shutil.copytree(small_corpus, tmp_path / "corpus"))
    bad, store = supervised(corpus, 3), StageStore(tmp_path / "storage")
    spoilt(corpus)
    with closing(StageProcesses(tmp_path / "storage", 1, "cpu")) as processes:
        outcome = processes.run(bad, ALONE, ignore, for_ever)
        assert outcome.status == "failed"
        assert re.match(r"CorpusError: .*corpus/audio/.*: cannot be decoded", outcome.cause or "")
        run_one(processes, stage)
    assert_same(stage, expected, store)


def test_warnings_are_told(processes: StageProcesses, storage: Path, small_corpus: Path) -> None:
    stage, told = supervised(small_corpus, 1), list[str]()
    partial = StageStore(storage).partial_folder(stage)
    partial.mkdir(parents=True)
    (partial / "checkpoint.pt").write_bytes(b"half a checkpoint")
    assert processes.run(stage, ALONE, ignore, for_ever, tell=told.append) == Outcome("finished")
    assert [message.partition(" ")[2] for message in told] == [
        "is not as it was written, and is left out; training goes on from an earlier state"
    ]


@pytest.mark.parametrize("behaviour", FAILURES, ids=lambda behaviour: behaviour.name.lower())
def test_a_failure_has_a_cause_and_leaves_the_next_stage_unharmed(
    behaviour: Behaviour, processes: StageProcesses, storage: Path, stage: Stage, expected: StageStore
) -> None:
    outcome = processes.run(misbehaving(behaviour), ALONE, ignore, for_ever)
    assert outcome.status == "failed"
    assert re.fullmatch(FAILURES[behaviour], outcome.cause or "")
    assert_next_is_unharmed(processes, storage, stage, expected)


@pytest.mark.parametrize("behaviour", SUCCESSES, ids=lambda behaviour: behaviour.name.lower())
def test_a_stage_that_does_what_it_likes_leaves_the_next_one_unharmed(
    behaviour: Behaviour, processes: StageProcesses, storage: Path, stage: Stage, expected: StageStore
) -> None:
    run_one(processes, misbehaving(behaviour))
    assert_next_is_unharmed(processes, storage, stage, expected)


def assert_next_is_unharmed(processes: StageProcesses, storage: Path, stage: Stage, expected: StageStore) -> None:
    shutil.rmtree(storage / "stages", ignore_errors=True)
    run_one(processes, stage)
    assert_same(stage, expected, StageStore(storage))


def test_memory_that_stages_leak_is_free_again(processes: StageProcesses, storage: Path) -> None:
    run_one(processes, misbehaving(Behaviour.SLEEPS))
    server = started(storage)[-1].server
    before = resident_bytes(server)
    for number in range(3):
        run_one(processes, misbehaving(Behaviour.LEAKS, number))
    assert resident_bytes(server) - before < LEAKED_BYTES / 10


def test_reports_arrive_complete_and_in_order(processes: StageProcesses) -> None:
    reports = run_one(processes, misbehaving(Behaviour.REPORTS, amount=3000))
    assert [r.step for r in reports] == list(range(1, 3001))
    assert [r.metrics for r in reports] == [{"loss": 1 / step} for step in range(1, 3001)]


def test_the_children_of_a_stage_end_with_it(processes: StageProcesses, storage: Path) -> None:
    run_one(processes, misbehaving(Behaviour.FORKS))
    assert eventually(lambda: not is_alive(int((storage / "child").read_text())))


# Stages that are not wanted


def test_a_stage_that_nobody_wants_is_killed_with_its_children(processes: StageProcesses, storage: Path) -> None:
    stage = misbehaving(Behaviour.HANGS_WITH_CHILD)
    assert processes.run(stage, ALONE, ignore, not_any_more) == Outcome("stopped")
    assert not is_alive(started(storage)[-1].pid)
    assert eventually(lambda: not is_alive(int((storage / "child").read_text())))


def test_a_stage_that_reports_nothing_for_too_long_is_killed(processes: StageProcesses, storage: Path) -> None:
    reports: list[Report] = []
    outcome = processes.run(misbehaving(Behaviour.HANGS, 1), ALONE, reports.append, for_ever, silence_seconds=1.5)
    assert outcome == Outcome("failed", "it reported nothing for 1.5 s", lost="process")
    assert len(reports) == 1
    assert not is_alive(started(storage)[-1].pid)


# Stages that are told to leave


def leave() -> Order:
    return "leave"


@pytest.mark.parametrize("how", ["order", pytest.param("signal", marks=pytest.mark.long)])
def test_a_stage_that_has_to_leave_loses_no_step(how: str, small_corpus: Path, tmp_path: Path) -> None:
    """It writes its checkpoint at once, whatever the settings say, and elsewhere goes on from there."""
    stage, reports = supervised(small_corpus, 60, checkpoint_seconds=1000.0), list[Report]()
    holder = StageStore(tmp_path).lease(stage).path

    def report(new: Report) -> None:
        reports.append(new)
        if how == "signal" and new.step == 5:
            os.kill(int(holder.read_text().split()[1]), signal.SIGTERM)

    with closing(StageProcesses(tmp_path, 1, "cpu")) as processes:
        outcome = processes.run(stage, ALONE, report, leave if how == "order" else for_ever)
        assert outcome.status == "failed"
        assert outcome.lost == "group"
        found = re.fullmatch(r"its machine goes away; it left at step (\d+) of 60", outcome.cause or "")
        assert found
        reached = int(found[1])
        assert 0 < reached < 60
        state = load_checkpoint(StageStore(tmp_path).partial_folder(stage))
        assert state is not None
        assert state["step"] == reached
        again: list[Report] = []
        assert processes.run(stage, ALONE, again.append, for_ever) == Outcome("finished")
    assert again[: len(reports)] == reports, "what had been reported before is not computed again"
    assert without_times(again) == without_times(run(stage, StageStore(tmp_path / "whole")))


def test_a_stage_that_does_not_heed_the_notice_is_killed(processes: StageProcesses, storage: Path) -> None:
    outcome = processes.run(misbehaving(Behaviour.HANGS, 2), ALONE, ignore, leave)
    assert outcome == Outcome("failed", "it did not leave its machine in time", lost="group")
    assert not is_alive(started(storage)[-1].pid)


def test_a_stage_whose_caller_dies_leaves_with_a_checkpoint(small_corpus: Path, tmp_path: Path) -> None:
    long = supervised(small_corpus, 100_000, checkpoint_seconds=1000.0)
    caller = subprocess.Popen([sys.executable, "-c", CALLER, str(tmp_path), long.model_dump_json()])
    store = StageStore(tmp_path)
    assert eventually(lambda: store.lease(long).path.exists())
    caller.kill()
    caller.wait()
    assert eventually(lambda: not store.lease(long).path.exists())
    assert load_checkpoint(store.partial_folder(long)) is not None


# Stages that are not wanted from the beginning


def test_a_stage_that_nobody_wants_before_it_begins_is_killed(tmp_path: Path) -> None:
    """The order to stop is there before the process that starts stages has come up."""
    with closing(StageProcesses(tmp_path, 1, "cpu", OR_TRAINING)) as processes:
        assert processes.run(misbehaving(Behaviour.HANGS), ALONE, ignore, not_any_more) == Outcome("stopped")


def test_a_stage_that_was_stopped_leaves_the_next_one_unharmed(
    processes: StageProcesses, storage: Path, stage: Stage, expected: StageStore
) -> None:
    assert processes.run(misbehaving(Behaviour.HANGS), ALONE, ignore, not_any_more).status == "stopped"
    assert_next_is_unharmed(processes, storage, stage, expected)


def test_a_stage_that_ends_before_it_is_asked_about_has_finished(processes: StageProcesses) -> None:
    run_one(processes, misbehaving(Behaviour.SLEEPS), not_any_more)


def test_closing_ends_the_stage_that_runs(tmp_path: Path) -> None:
    processes = StageProcesses(tmp_path, 1, "cpu", MISBEHAVING)

    def close(report: Report) -> None:
        processes.close()

    outcome = processes.run(misbehaving(Behaviour.HANGS_WITH_CHILD), ALONE, close, for_ever)
    assert outcome.status == "failed"
    assert eventually(lambda: not is_alive(int((tmp_path / "child").read_text())))


# Processes that are killed


def test_a_stage_dies_with_the_server_and_the_caller_is_told(tmp_path: Path) -> None:
    processes = StageProcesses(tmp_path, 1, "cpu", MISBEHAVING)

    def kill_server(report: Report) -> None:
        os.kill(started(tmp_path)[-1].server, signal.SIGKILL)

    with pytest.raises(RuntimeError, match="the process that starts stages ended with code -9"):
        processes.run(misbehaving(Behaviour.HANGS), ALONE, kill_server, for_ever)
    assert eventually(lambda: not is_alive(started(tmp_path)[-1].pid))


CALLER = """
import sys, pathlib
from trainables.stage import Stage
from trainables.stage_process import Place, StageProcesses
processes = StageProcesses(pathlib.Path(sys.argv[1]), 1, "cpu")
processes.run(Stage.model_validate_json(sys.argv[2]), Place(), lambda report: None, lambda: "go on")
"""


@pytest.mark.parametrize("victim", ["server", "caller"])
def test_the_lease_of_a_stage_is_free_at_once_when_what_runs_it_is_killed(
    victim: str, small_corpus: Path, tmp_path: Path
) -> None:
    """Without waiting until the lease is stale."""
    long = supervised(small_corpus, 100_000)
    lease = StageStore(tmp_path).lease(long)
    caller = subprocess.Popen([sys.executable, "-c", CALLER, str(tmp_path), long.model_dump_json()])
    try:
        assert eventually(lambda: lease.path.exists())
        stage_pid = int(lease.path.read_text().split()[1])
        server_pid = parent(stage_pid)
        assert lease.held_by_another()
        os.kill(server_pid if victim == "server" else caller.pid, signal.SIGKILL)
        assert eventually(lambda: not lease.held_by_another())
        assert eventually(lambda: not is_alive(server_pid))
        assert eventually(lambda: not is_alive(stage_pid))
    finally:
        caller.kill()
        caller.wait()


# Several workers


def test_two_workers_train_as_one(small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over gloo, and on the loopback interface alone. Tolerance 2e-3: the order of float32 sums differs."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")  # as cluster/connect.py sets it
    (joint, _) = stages(small_corpus, bl_just(4))
    address, listeners, ended = free_address("127.0.0.1"), set[str](), threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            listeners.update(listening(with_descendants(os.getpid())))

    def work(rank: int) -> tuple[Outcome, list[Report]]:
        reports: list[Report] = []
        with closing(StageProcesses(tmp_path / "two", 1, "cpu")) as processes:
            return processes.run(joint, Place(rank, 2, address), reports.append, for_ever), reports

    with ThreadPoolExecutor() as threads:
        looking = threads.submit(look)
        try:
            (first, reports), (second, none) = threads.map(work, range(2))
        finally:
            ended.set()
        looking.result()
    assert (first, second) == (Outcome("finished"), Outcome("finished"))
    assert none == [], "the first worker reports"
    assert listeners
    assert listeners <= LOOPBACK
    for two, one in zip(reports, run(joint, StageStore(tmp_path / "one")), strict=True):
        assert two.step == one.step
        assert two.metrics == pytest.approx(one.metrics, rel=2e-3, abs=2e-3)
