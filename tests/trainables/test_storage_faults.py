"""Storage that is full, read-only, or spoils files, and a clock that jumps: a clear cause, and nothing half made."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import multiprocessing
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import spanish_rows, write_corpus
from tests.crash_points import contents
from tests.processes import eventually
from tests.trainables.corpora.layouts import recordings, write_audio
from tests.trainables.test_crash_points import stored
from tests.trainables.test_lease import FOREIGN
from tests.trainables.test_loop import run
from tests.trainables.test_resume import interrupted, supervised
from tests.trainables.test_stage import FINETUNE
from tests.trainables.test_store import result, train
from trainables.checkpoint import load_checkpoint, save_checkpoint
from trainables.data.corpora.prepare import prepare
from trainables.data.corpora.segment import PublishedCorpus, Segment
from trainables.data.corpus import LABELLED
from trainables.lease import Lease, here
from trainables.loop import run_stage
from trainables.stage import Stage
from trainables.store import StageStore, write_atomically

PAGE_BYTES = 4096
DAY_SECONDS = 24 * 3600.0
Action = Callable[[], object]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), spanish_rows(8, longest_seconds=2.0))


def quietly(stage: Stage, storage: Path) -> None:
    run_stage(stage, StageStore(storage), lambda report: None)


# What is full, and what is for reading only


@dataclass(frozen=True)
class Ended:
    """The OSError that ended an action, None without one, and the warnings before it."""

    error: OSError | None
    warnings: tuple[str, ...]

    @property
    def is_full(self) -> bool:
        return self.error is not None and self.error.errno in (errno.ENOSPC, errno.EFBIG)


@dataclass(frozen=True)
class Disk:
    """A folder, and how to run an action when files below it can no more be written, or only as short as this."""

    folder: Path
    full: Callable[[Action, int], Ended]


def in_a_fork(action: Action) -> Ended:
    context = multiprocessing.get_context("fork")
    told, tell = context.Pipe(duplex=False)

    def go() -> None:
        warnings: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("trainables").addHandler(handler)
        error = None
        try:
            action()
        except OSError as raised:
            error = raised
        tell.send(Ended(error, tuple(warnings)))

    process = context.Process(target=go)
    process.start()
    tell.close()
    ended: Ended = told.recv()
    process.join()
    return ended


def with_a_limit(action: Action, num_bytes: int) -> Ended:
    """No file can be longer than this. Python gets EFBIG in place of the signal."""

    def go() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
        action()

    return in_a_fork(go)


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A disk of this size in memory. Skips the test without the privilege to mount."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs privileges")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(params=["a limit on files", "a full disk"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "a limit on files":
        (tmp_path / "limited").mkdir()
        yield Disk(tmp_path / "limited", with_a_limit)
        return
    with mounted(tmp_path / "small", "4m") as folder:

        def full(action: Action, free_bytes: int) -> Ended:
            ballast = folder / "ballast"
            free = shutil.disk_usage(folder).free
            ballast.write_bytes(bytes(free - free_bytes // PAGE_BYTES * PAGE_BYTES))
            ended = in_a_fork(action)
            ballast.unlink()
            return ended

        yield Disk(folder, full)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], Path]]:
    """Makes a copy of a folder that cannot be written to. Permissions do not bind root: a disk does."""
    with contextlib.ExitStack() as stack:

        def copied(folder: Path) -> Path:
            if os.geteuid():
                copy = shutil.copytree(folder, tmp_path / "for-reading")
                folders = [copy, *(path for path in copy.rglob("*") if path.is_dir())]
                for path in folders:
                    path.chmod(0o555)
                    stack.callback(path.chmod, 0o755)
                return copy
            disk = stack.enter_context(mounted(tmp_path / "for-reading", "4m"))
            shutil.copytree(folder, disk, dirs_exist_ok=True)
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            return disk

        yield copied


# Full


def test_a_write_that_fails_leaves_the_old_content_and_nothing_beside(disk: Disk) -> None:
    path = disk.folder / "file"
    write_atomically(path, b"old")
    ended = disk.full(lambda: write_atomically(path, bytes(3 * PAGE_BYTES)), PAGE_BYTES)
    assert ended.is_full
    assert contents(disk.folder) == {"file": b"old"}
    assert str(path) in str(ended.error)


def test_a_checkpoint_that_fails_leaves_the_newest_whole_one(disk: Disk) -> None:
    for step in (1, 2):
        save_checkpoint(disk.folder, {"step": step})
    state = {"step": 3, "weights": torch.zeros(PAGE_BYTES)}
    for _ in range(3):
        assert disk.full(lambda: save_checkpoint(disk.folder, state), PAGE_BYTES).is_full
    assert load_checkpoint(disk.folder) == {"step": 2}
    assert not list(disk.folder.glob(".*"))
    save_checkpoint(disk.folder, {"step": 4})
    assert load_checkpoint(disk.folder) == {"step": 4}


def test_without_place_for_checkpoints_training_goes_on_to_the_same_result(corpus: Path, tmp_path: Path) -> None:
    stage = supervised(corpus, 3, batch_seconds=3, evaluate_every=2, keep="best")
    quietly(stage, tmp_path / "whole")
    longest = max(path.stat().st_size for path in (tmp_path / "whole").rglob("*.safetensors"))
    ended = with_a_limit(lambda: quietly(stage, tmp_path / "limited"), longest + PAGE_BYTES)
    assert ended.error is None
    assert [f"no checkpoint at step {step}" in ended.warnings[step - 1] for step in (1, 2, 3)] == [True] * 3
    assert stored(tmp_path / "limited") == stored(tmp_path / "whole")


@pytest.mark.parametrize("free_bytes", [0, 4 * PAGE_BYTES])
def test_a_stage_that_cannot_be_stored_fails_and_goes_on_from_its_checkpoint_when_it_can(
    disk: Disk, corpus: Path, tmp_path: Path, free_bytes: int
) -> None:
    """There is place for its lease and its hypotheses, not for its weights; and for nothing at all."""
    stage = supervised(corpus, 3, batch_seconds=3, evaluate_every=2).with_(checkpoint_seconds=3600)
    quietly(stage, tmp_path / "whole")
    before = interrupted(stage.with_(checkpoint_seconds=1e-9), StageStore(disk.folder), at=3)
    ended = disk.full(lambda: quietly(stage, disk.folder), free_bytes)
    assert ended.is_full
    assert free_bytes == 0 or ".safetensors" in str(ended.error)
    assert StageStore(disk.folder).result(stage) is None
    assert not list(disk.folder.rglob(".*"))
    assert not list(disk.folder.rglob("*.lease"))
    after = run(stage, StageStore(disk.folder))
    assert after[: len(before)] == before, "these steps were made again"
    assert stored(disk.folder) == stored(tmp_path / "whole")


def test_a_preparation_that_fails_leaves_nothing_unfinished_and_can_be_repeated(disk: Disk, tmp_path: Path) -> None:
    recording, output = next(recordings("es")), disk.folder / "prepared"
    segments = [Segment(split, tmp_path / f"{split}.wav", recording.text, split=split) for split in LABELLED]
    published = PublishedCorpus("a test's", "", "", "", lambda root, language: iter(segments))
    for segment in segments:
        write_audio(segment.path, recording.samples)
    assert disk.full(lambda: prepare(published, "test", tmp_path, output), PAGE_BYTES).is_full
    assert contents(output) == {"audio": None}
    prepare(published, "test", tmp_path, output)
    prepare(published, "test", tmp_path, tmp_path / "whole")
    assert contents(output) == contents(tmp_path / "whole")


# For reading only


def test_a_stage_on_read_only_storage_fails_with_its_place(
    corpus: Path, tmp_path: Path, read_only: Callable[[Path], Path]
) -> None:
    stage = supervised(corpus, 1)
    (tmp_path / "empty" / "stages").mkdir(parents=True)
    storage = read_only(tmp_path / "empty")
    with pytest.raises(OSError, match=f"{storage}/stages") as raised:
        quietly(stage, storage)
    assert raised.value.errno in (errno.EROFS, errno.EACCES)
    assert contents(storage) == {"stages": None}


def test_a_finished_stage_can_be_read_from_read_only_storage(tmp_path: Path, read_only: Callable[[Path], Path]) -> None:
    """Though what its commit left cannot be removed."""
    store = StageStore(tmp_path / "storage")
    train(store, "weights")
    store.commit(FINETUNE, result(1))
    (store.folder(FINETUNE) / "checkpoint.pt").touch()
    store.lease(FINETUNE).path.write_text(f"{here()} {os.getpid()} 1 abc")  # of a dead process
    before = contents(store.root)
    storage = read_only(store.root)
    assert StageStore(storage).result(FINETUNE) == result(1)
    assert contents(storage) == before


# Spoilt files


def two_checkpoints(folder: Path) -> bytes:
    """Of steps 1 and 2; the content of the newer one."""
    folder.mkdir()
    for step in (1, 2):
        save_checkpoint(folder, {"step": step, "weights": torch.arange(100.0) * step})
    return (folder / "checkpoint.pt").read_bytes()


def assert_step_one_is_read(folder: Path) -> None:
    state = load_checkpoint(folder)
    assert state
    assert state["step"] == 1
    assert torch.equal(state["weights"], torch.arange(100.0))
    assert os.listdir(folder) == ["checkpoint-before.pt"]


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 500, -33, -32, -1])
def test_of_a_truncated_checkpoint_the_one_before_is_read(
    tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    content = two_checkpoints(folder := tmp_path / "stage")
    (folder / "checkpoint.pt").write_bytes(content[:length])
    assert_step_one_is_read(folder)
    assert "checkpoint.pt is not as it was written" in caplog.text
    (folder / "checkpoint-before.pt").write_bytes(content[:length])
    assert load_checkpoint(folder) is None


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("written") / "stage"
    return folder, two_checkpoints(folder)


@settings(max_examples=60)
@given(data=st.data())
def test_of_a_checkpoint_with_a_flipped_bit_the_one_before_is_read(
    written: tuple[Path, bytes], data: st.DataObject
) -> None:
    folder, content = written
    spoilt = bytearray(content)
    spoilt[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "checkpoint.pt").write_bytes(spoilt)
    assert_step_one_is_read(folder)


def test_of_a_folder_in_place_of_a_checkpoint_the_one_before_is_read(tmp_path: Path) -> None:
    two_checkpoints(folder := tmp_path / "stage")
    (folder / "checkpoint.pt").unlink()
    (folder / "checkpoint.pt" / "inside").mkdir(parents=True)
    assert_step_one_is_read(folder)
    save_checkpoint(folder, {"step": 2})
    assert load_checkpoint(folder) == {"step": 2}


SPOILT = {"empty": b"", "torn": b'{"reports": [{"st', "zeros": bytes(100), "no result": b"[]"}


@pytest.mark.parametrize("content", [*SPOILT.values(), None], ids=[*SPOILT, "gone"])
def test_a_stage_whose_result_is_spoilt_is_not_finished_until_the_next_commit(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    store = StageStore(tmp_path)
    train(store, "first")
    store.commit(FINETUNE, result(1))
    path = store.folder(FINETUNE) / "result.json"
    path.unlink() if content is None else path.write_bytes(content)
    assert store.result(FINETUNE) is None
    assert store.result(FINETUNE) is None
    assert caplog.text.count("counts as not finished") == 1, "it is asked for every second"
    train(store, "second")
    store.commit(FINETUNE, result(2))
    assert store.result(FINETUNE) == result(2)
    assert (store.folder(FINETUNE) / "backbone.safetensors").read_text() == "second"


def test_a_stage_whose_result_is_spoilt_is_trained_again(corpus: Path, tmp_path: Path) -> None:
    stage = supervised(corpus, 2, batch_seconds=3)
    quietly(stage, tmp_path)
    expected = stored(tmp_path)
    (StageStore(tmp_path).folder(stage) / "result.json").write_bytes(b"")
    quietly(stage, tmp_path)
    assert stored(tmp_path) == expected


# The lease


@pytest.mark.parametrize("torn", ["", "\0" * 60, "host 12"], ids=["empty", "zeros", "cut"])
def test_a_lease_that_a_crash_of_its_machine_tore_is_no_obstacle(tmp_path: Path, torn: str) -> None:
    (tmp_path / "a.lease").write_text(torn)
    assert not Lease(tmp_path / "a.lease").held_by_another()
    with Lease(tmp_path / "a.lease").hold() as lease:
        assert lease


def test_a_lease_that_cannot_be_written_is_not_there(tmp_path: Path) -> None:
    def hold() -> None:
        with Lease(tmp_path / "a.lease").hold():
            pass

    assert with_a_limit(hold, 0).is_full
    assert contents(tmp_path) == {}


@pytest.fixture
def _jumping_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock finds it a day ahead or behind."""
    days, now = itertools.cycle((1, -1, 0)), time.time
    monkeypatch.setattr(time, "time", lambda: now() + next(days) * DAY_SECONDS)


@pytest.mark.usefixtures("_jumping_clock")
class TestClock:
    def test_a_foreign_lease_does_not_grow_old_by_jumps(self, tmp_path: Path) -> None:
        path = tmp_path / "a.lease"
        path.write_text(FOREIGN)
        observer = Lease(path)
        assert all(observer.held_by_another() for _ in range(20))

    def test_a_foreign_lease_grows_old_though_the_clock_jumps(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Lease, "STALE_SECONDS", 0.1)
        path = tmp_path / "a.lease"
        path.write_text(FOREIGN)
        observer = Lease(path)
        assert observer.held_by_another()
        assert eventually(lambda: not observer.held_by_another())

    def test_a_holder_whose_clock_jumps_is_alive(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Seen from another machine: what it touches gets times a day ahead and behind, and each is a sign of life."""
        monkeypatch.setattr(Lease, "STALE_SECONDS", 0.5)
        path = tmp_path / "a.lease"
        path.write_text(FOREIGN)
        observer = Lease(path)
        for _ in range(12):  # longer than STALE_SECONDS in all
            os.utime(path, (time.time(), time.time()))
            assert observer.held_by_another()
            time.sleep(0.1)

    def test_a_held_lease_is_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Lease, "HEARTBEAT_SECONDS", 0.01)
        path = tmp_path / "a.lease"
        with Lease(path).hold() as lease:
            assert lease
            for _ in range(3):
                os.utime(path, (0, 0))
                assert eventually(lambda: path.stat().st_mtime > 0)
                assert Lease(path).held_by_another()
            lease.check()
        assert not path.exists()
