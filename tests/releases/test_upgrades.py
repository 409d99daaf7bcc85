"""What earlier versions wrote is read, served and gone on with."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import tarfile
import time
from contextlib import closing
from pathlib import Path

import pytest

from study.ledger import SCHEMA_VERSION, Ledger
from study.run import main
from trainables.data.corpus import PROMPTS
from trainables.loop import run_stage
from trainables.stage import Report
from trainables.store import StageStore
from trainables.trial import TrialConfig, stages_of

RELEASES = sorted(path for path in Path(__file__).parent.iterdir() if (path / "results.tar.gz").is_file())
SERVED = "pretrain_finetune-000"  # the trial whose stages are there
STATUSES = {"finished": 5, "stopped": 3, "failed": 0, "unfinished": 0}


class EnoughError(Exception):
    """Training has gone on."""


@pytest.fixture(params=RELEASES, ids=lambda path: str(path.name))
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the release wrote."""
    monkeypatch.delenv("STUDY_LEDGER", raising=False)
    with tarfile.open(request.param / "results.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_there_is_a_release() -> None:
    assert RELEASES


def test_no_release_names_the_machine_that_made_it(storage: Path) -> None:
    for path in storage.rglob("*"):
        if path.is_file():
            absolute = set(re.findall(rb'(?<=")/[a-z]+/', path.read_bytes()))
            assert absolute <= {b"/frozen/"}, path


def test_the_ledger_opens_and_has_its_trials(storage: Path) -> None:
    with closing(Ledger.in_folder(storage)) as ledger:
        assert {row["study"] for row in ledger.studies()} == {"frozen", "unfinished"}
        assert ledger.is_over("frozen")
        assert not ledger.is_over("unfinished")
        assert ledger.count("frozen") == STATUSES
        assert 0 < ledger.final("frozen", SERVED)["dev_cer"] < 1
        assert ledger.evaluations("frozen")


def test_a_ledger_of_schema_1_has_the_same_trials_and_curves(storage: Path) -> None:
    def content(ledger: Ledger) -> list[object]:
        trials = [ledger.trials(study) for study in ("frozen", "unfinished")]
        curves = [ledger.curve(t.study, t.trial) for several in trials for t in several]
        return [[(t.trial, t.point, t.config, t.status, t.cause, t.ended_at) for t in ts] for ts in trials] + [curves]

    with closing(Ledger.in_folder(storage)) as ledger:
        expected = content(ledger)
    shutil.move(storage / "ledger-schema-1.db", storage / "ledger.db")
    for _ in range(2):
        with closing(Ledger.in_folder(storage)) as ledger:
            assert content(ledger) == expected
    with closing(sqlite3.connect(storage / "ledger.db")) as db:
        assert db.execute("select version from schema").fetchall() == [(SCHEMA_VERSION,)]


@pytest.mark.parametrize("name", ["ledger.db", "ledger-schema-1.db"])
def test_status_and_report_are_made(storage: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name != "ledger.db":
        shutil.move(storage / name, storage / "ledger.db")
    assert main(["status", "--json", "--storage", str(storage)]) == 0
    frozen, unfinished = json.loads(capsys.readouterr().out)
    assert {status: frozen[status] for status in STATUSES} == STATUSES
    assert unfinished["unfinished"] == 1
    assert main(["status", "frozen", "--storage", str(storage)]) == 0
    assert main(["report", "frozen", "--storage", str(storage)]) == 0
    page = storage / "reports" / "frozen" / "report.html"
    assert SERVED in page.read_text()


def test_stages_have_the_same_identity(storage: Path) -> None:
    """The content of their data is part of it."""
    with closing(Ledger.in_folder(storage)) as ledger:
        for study in ("frozen", "unfinished"):
            for trial in ledger.trials(study):
                stages = stages_of(TrialConfig.model_validate(trial.config))
                assert [s["stage"] for s in ledger.trial_stages(study, trial.trial)] == [
                    s.fingerprint() for s in stages
                ]


def test_finished_stages_are_served_without_training(storage: Path) -> None:
    store = StageStore(storage)
    before = {path: path.stat().st_mtime_ns for path in (storage / "stages").rglob("*")}
    reports: list[Report] = []
    with closing(Ledger.in_folder(storage)) as ledger:
        for stage in stages_of(TrialConfig.model_validate(ledger.trial("frozen", SERVED).config)):
            run_stage(stage, store, reports.append)
        expected = {(p.metric, p.value, p.reported_at) for p in ledger.curve("frozen", SERVED)}
    values = {(name, value, report.reported_at) for report in reports for name, value in report.metrics.items()}
    assert values
    assert values <= expected
    assert {path: path.stat().st_mtime_ns for path in (storage / "stages").rglob("*")} == before


def test_an_unfinished_stage_goes_on_from_its_checkpoint(storage: Path) -> None:
    with closing(Ledger.in_folder(storage)) as ledger:
        (trial,) = ledger.trials("unfinished")
        known = {(p.step, p.metric): (p.value, p.reported_at) for p in ledger.curve("unfinished", trial.trial)}
    (stage,) = stages_of(TrialConfig.model_validate(trial.config))
    began, again, new = time.time(), list[Report](), list[Report]()

    def report(one: Report) -> None:
        (again if one.reported_at < began else new).append(one)
        if new:
            raise EnoughError

    with pytest.raises(EnoughError):
        run_stage(stage, StageStore(storage), report)
    assert len(again) > 10
    assert again[-1].step < new[0].step <= again[-1].step + 10
    for one in again:
        for metric, value in one.metrics.items():
            assert known.get((one.step, metric), (value, one.reported_at)) == (value, one.reported_at)


def test_a_finished_trial_transcribes(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    audio = next((PROMPTS / "es" / "audio").iterdir())
    assert main(["transcribe", SERVED, str(audio), "--storage", str(storage), "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"file", "text"}
