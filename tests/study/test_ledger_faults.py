"""What the ledger says when its disk, its file or the clock fails; and that nothing recorded is lost."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from study.ledger import SCHEMA_VERSION, Ledger, LedgerError
from study.run import main
from study.search import Search
from study.spec import StopSpec, StudySpec
from study.stopping import budget_is_spent
from tests.processes import forked, forkserver
from tests.study.builders import add_trial, dev_curve, open_study, report, run_trial, spec_of, write_sweep
from tests.study.conftest import Call

Jump = Callable[[float], None]
NEEDS = "the folder must have room, and this user must have the right to write it"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip("needs the right to mount a disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill_up(ledger: Ledger, stage: str) -> tuple[int, LedgerError]:
    """Returns the last step that was recorded, and what the ledger said of the next."""
    step = 0
    while True:
        try:
            ledger.append(stage, [report(step + 1, loss=1.0, dev_cer=0.5)])
        except LedgerError as error:
            return step, error
        step += 1


def test_a_full_disk_is_said_and_what_comes_after_there_is_space_again_goes_on(disk: Path) -> None:
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(400_000))
    spec = spec_of(disk)
    ledger = open_study(spec)
    name, (stage,) = add_trial(ledger, spec, "slow")
    last, error = fill_up(ledger, stage.fingerprint())
    assert last > 10
    assert str(error) == (
        f"{disk}/ledger.db: the disk is full; free some space, then run the same command again: nothing that was "
        "recorded is lost"
    )
    assert [p.step for p in ledger.curve(spec.study, name, "loss")] == list(range(1, last + 1))
    ballast.unlink()
    for again in (ledger, Ledger.in_folder(disk)):
        again.append(stage.fingerprint(), [report(step, loss=1.0, dev_cer=0.5) for step in range(1, last + 3)])
        assert [p.step for p in again.curve(spec.study, name, "loss")] == list(range(1, last + 3))
        again.close()
    with closing(sqlite3.connect(disk / "ledger.db")) as db:
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]


def test_a_ledger_that_has_no_room_to_grow_says_that_the_disk_is_full(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    ledger = open_study(spec)
    name, (stage,) = add_trial(ledger, spec, "slow")
    with ledger._database.engine.connect() as db:
        pages = db.exec_driver_sql("pragma page_count").scalar_one()
        db.exec_driver_sql(f"pragma max_page_count = {pages + 3}")
    last, error = fill_up(ledger, stage.fingerprint())
    assert "the disk is full" in str(error)
    ledger.close()
    with closing(Ledger.in_folder(tmp_path)) as again:
        assert [p.step for p in again.curve(spec.study, name, "loss")] == list(range(1, last + 1))


def test_a_disk_that_may_not_be_written_is_said(disk: Path) -> None:
    spec = spec_of(disk)
    with closing(open_study(spec)) as ledger:
        name = run_trial(ledger, spec, "slow", curve={1: 0.5})
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(
        LedgerError, match=rf"^{disk}/ledger.db: it (may not be written|cannot be opened); .* this user"
    ):
        open_study(spec)
    with pytest.raises(LedgerError, match=rf"^{disk}/new/ledger.db: cannot be made: .*Read-only.*; give this user"):
        Ledger.in_folder(disk / "new")
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    with closing(open_study(spec)) as again:
        assert [t.trial for t in again.trials(spec.study)] == [name]


def test_those_who_may_only_read_see_the_study(disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = disk / "50% of it"  # of which a URL would make something else
    spec = spec_of(storage)
    with closing(open_study(spec)) as ledger:
        run_trial(ledger, spec, "slow", curve={1: 0.5})
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)

    def run(*words: str) -> tuple[int, str, str]:
        return main([*words, "--storage", str(storage)]), *capsys.readouterr()

    code, shown, _ = run("status", "--json")
    assert (code, [study["finished"] for study in json.loads(shown)]) == (0, [1])
    code, _, errors = run("report", spec.study)
    assert (code, errors) == (2, f"{storage}/reports: Read-only file system; {NEEDS}\n")
    code, shown, _ = run("report", spec.study, "--folder", str(tmp_path / "mine"))
    assert (code, Path(shown.strip())) == (0, tmp_path / "mine" / "report.html")
    code, _, errors = run("stop", spec.study)
    assert code == 2
    assert errors.startswith(f"{storage}/ledger.db: it may not be written; give this user the right")
    assert [path.name for path in storage.iterdir()] == ["ledger.db"]


def test_a_file_that_may_not_be_written_is_said(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    ledger = open_study(spec)
    with ledger._database.engine.connect() as db:
        db.exec_driver_sql("pragma query_only = on")
    with pytest.raises(LedgerError, match=rf"^{tmp_path}/ledger.db: it may not be written; give this user the right"):
        add_trial(ledger, spec, "fast")
    assert ledger.trials(spec.study) == []


def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("study: race\n" * 100)
    with pytest.raises(LedgerError, match=rf"^{tmp_path}/ledger.db: it is not an SQLite database; restore it"):
        Ledger.in_folder(tmp_path)
    assert (tmp_path / "ledger.db").read_text().startswith("study: race")


def test_a_folder_in_the_place_of_the_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").mkdir()
    with pytest.raises(LedgerError, match=rf"^{tmp_path}/ledger.db: it cannot be opened; let this user"):
        Ledger.in_folder(tmp_path)


def test_damaged_pages_are_said(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    with closing(open_study(spec)) as ledger:
        for number in range(20):
            run_trial(ledger, spec, "slow", number, rate=1e-3 + number / 1e6, curve={1: 0.5})
    path = tmp_path / "ledger.db"
    content = path.read_bytes()
    path.write_bytes(content[:4096] + os.urandom(len(content) - 4096))  # the first page lists the tables
    with pytest.raises(LedgerError, match=rf"^{path}: it is damaged; restore it from a copy, or save what is readable"):
        Ledger.in_folder(tmp_path).trials(spec.study)


def test_a_newer_schema_is_said_and_left_as_it_is(tmp_path: Path) -> None:
    Ledger.in_folder(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as db:
        db.execute("update schema set version = ?", [SCHEMA_VERSION + 1])
        db.commit()
    sentence = f"{tmp_path}/ledger.db has schema version {SCHEMA_VERSION + 1}; this program reads {SCHEMA_VERSION}; "
    with pytest.raises(LedgerError, match=f"^{sentence}update the program$"):
        Ledger.in_folder(tmp_path)


@pytest.mark.parametrize("verb", [["status"], ["report", "race"], ["export", "slow-000", "model"]])
def test_a_command_says_it_in_one_line(tmp_path: Path, call: Call, verb: list[str]) -> None:
    (tmp_path / "ledger.db").write_text("study: race\n" * 100)
    code, out, error = call(*verb, "--storage", tmp_path)
    assert (code, out) == (2, "")
    assert error.startswith(f"{tmp_path}/ledger.db: it is not an SQLite database; ")
    assert error.count("\n") == 1


def test_a_study_whose_ledger_fails_says_it_in_one_line(tmp_path: Path, call: Call) -> None:
    sweep = write_sweep(tmp_path / "sweep.yaml")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "ledger.db").write_text("study: race\n" * 100)
    code, _, error = call("run", sweep)
    assert code == 2
    assert error.endswith("it is not an SQLite database; restore it from a copy, or name another storage folder\n")
    assert "Traceback" not in error


def test_many_writers_at_once_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    """Each step comes from two of them."""
    spec = spec_of(tmp_path)
    ledger = open_study(spec)
    name, (stage,) = add_trial(ledger, spec, "slow")
    context = forkserver(__name__)
    writers = [
        forked(context, _append, tmp_path, stage.fingerprint(), range(first, first + 100))
        for first in (0, 50, 100, 150)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(300)
        assert writer.exitcode == 0
    assert [p.step for p in ledger.curve(spec.study, name, "loss")] == list(range(250))


def _append(folder: Path, stage: str, steps: range) -> None:
    ledger = Ledger.in_folder(folder)
    for step in steps:
        ledger.append(stage, [report(step, loss=float(step), dev_cer=0.5)])


# ---- the clock -------------------------------------------------------------------------------------------------------

DAY = 86_400.0


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Jump:
    """Sets the clock by so many seconds."""
    real, offset = time.time, 0.0

    def jump(seconds: float) -> None:
        nonlocal offset
        offset += seconds

    monkeypatch.setattr(time, "time", lambda: real() + offset)
    return jump


@pytest.mark.parametrize("seconds", [DAY, -DAY])
def test_a_clock_that_jumps_spends_no_wall_time(tmp_path: Path, jump: Jump, seconds: float) -> None:
    spec = spec_of(tmp_path)
    with closing(Ledger.in_folder(tmp_path)) as ledger:
        run = ledger.open_study(spec.study, spec.model_dump(mode="json"), {})
        jump(seconds)
        ledger.set_spent(run, 1.0, 2.0)
        spent = ledger.spent(spec.study)
        assert 0 <= spent.wall_seconds < 60
        assert (spent.accelerator_seconds, spent.cost) == (1.0, 2.0)
        assert budget_is_spent(StopSpec(wall_hours=0.1), spent) is None


def test_wall_time_is_the_time_that_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger.in_folder(tmp_path)
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    run = ledger.open_study("race", {}, {})
    monkeypatch.setattr(time, "monotonic", lambda: 4600.0)
    ledger.set_spent(run, 0.0, 0.0)
    assert ledger.spent("race").wall_seconds == pytest.approx(3600.0, abs=1e-3)


@pytest.mark.parametrize("resumed", [False, True])
def test_trials_stay_in_the_order_of_their_proposal_when_the_clock_is_set_back(
    tmp_path: Path, jump: Jump, resumed: bool
) -> None:
    spec = spec_of(tmp_path)
    ledger = open_study(spec)
    names, ended = [], []
    for number in range(4):
        if resumed:
            ledger.close()
            ledger = open_study(spec)
        names.append(add_trial(ledger, spec, "slow", 3 - number)[0])
        if number % 2:
            ended.append(names[-1])
            assert ledger.end_trial(spec.study, names[-1], "finished")
        jump(-DAY)
    trials = ledger.trials(spec.study)
    assert [t.trial for t in trials] == names
    assert sorted((t for t in trials if t.ended_at), key=lambda t: t.ended_at or 0) == [
        t for t in trials if t.trial in ended
    ]
    assert all(t.ended_at is None or t.ended_at > t.started_at for t in trials)


def test_a_search_is_built_again_in_the_same_order_when_the_clock_was_set_back(tmp_path: Path, jump: Jump) -> None:
    spec: StudySpec = spec_of(tmp_path, search={"trials": 6, "metric": "dev_cer", "sampler": {"kind": "tpe"}})
    ledger = open_study(spec)
    search = Search(spec, ledger)
    proposed: list[str] = []
    for number in range(6):
        proposal = search.propose()
        assert proposal is not None
        name = proposal.trial.trial
        proposed.append(name)
        ledger.append(proposal.stages[-1].fingerprint(), dev_curve({10: 0.9 - number / 10}))
        ledger.end_trial(spec.study, name, "finished")
        search.ended(name)
        jump(-DAY)
    again: Any = Search(spec, ledger)
    assert list(again._results) == proposed
    assert again._results == search._results


def test_a_group_may_write_a_ledger_if_the_umask_says_so(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with closing(Ledger.in_folder(tmp_path)) as ledger:
            assert not ledger.studies()
            rights = {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert rights == dict.fromkeys(("ledger.db", "ledger.db-shm", "ledger.db-wal"), "0o664")
