"""How far studies are, as their ledger tells it, and orders to a study that is running."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path

import pytest

from study import status
from study.ledger import Ledger
from study.run import main
from study.spec import StudySpec
from study.status import state_of
from tests.study.builders import crossing_at, open_study, run_trial, spec_of


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> StudySpec:
    """A study that runs, with a finished, a failed and an unfinished trial."""
    spec = spec_of(tmp_path_factory.mktemp("race"), question="Is [/a] or [bold] best?")
    ledger = open_study(spec)
    run_trial(ledger, spec, "fast", 0, curve=crossing_at(20))
    run_trial(ledger, spec, "slow", 0, curve={}, status="failed", cause="lost [/data/x] and [red]")
    run_trial(ledger, spec, "slow", 1, curve={}, rate=2e-3, status="unfinished")
    ledger.close()
    return spec


def age(spec: StudySpec, seconds: float) -> None:
    """Make the study one that was seen last so long ago."""
    with sqlite3.connect(spec.storage / "ledger.db") as db:
        db.execute("update runs set seen_at = ?", (time.time() - seconds,))


def words(spec: StudySpec, *given: str) -> list[str]:
    return [*given, "--storage", str(spec.storage)]


class TestStatus:
    def test_of_one_study_as_json(self, spec: StudySpec, capsys: pytest.CaptureFixture[str]) -> None:
        age(spec, 0)
        assert main(words(spec, "status", "race", "--json")) == 0
        assert json.loads(capsys.readouterr().out) == {
            "study": "race",
            "state": "running",
            "question": spec.question,
            "finished": 1,
            "failed": 1,
            "stopped": 0,
            "unfinished": 1,
            "accelerator_hours": 0.0,
            "cost": None,
            "best": {"trial": "fast-000", "metric": "dev_cer", "value": pytest.approx(0.1)},
        }

    def test_of_all_studies_as_json(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        open_study(spec_of(tmp_path))
        open_study(spec_of(tmp_path, study="second"))
        assert main(["status", "--storage", str(tmp_path), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [(row["study"], row["finished"], row["best"]) for row in found] == [
            ("race", 0, None),
            ("second", 0, None),
        ]

    def test_what_it_took_is_told(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        spec = spec_of(tmp_path, resources={"node_prices": {"default": 2.5}})
        ledger = open_study(spec)
        run = ledger.open_study(spec.study, json.loads(spec.model_dump_json()), {})
        ledger.set_spent(run, 7200.0, 5.0)
        assert main(["status", "race", "--storage", str(tmp_path), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["accelerator_hours"], found["cost"]) == (2.0, 5.0)
        assert main(["status", "--storage", str(tmp_path)]) == 0
        assert "5.00" in capsys.readouterr().out

    def test_for_people_names_trials_and_causes(self, spec: StudySpec, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(words(spec, "status", "race")) == 0
        shown = capsys.readouterr().out
        assert "fast-000 dev CER 10.0%" in shown
        assert "lost [/data/x] and [red]" in shown

    @pytest.mark.parametrize("given", [["status"], ["status", "race"]])
    def test_brackets_are_text(self, spec: StudySpec, capsys: pytest.CaptureFixture[str], given: list[str]) -> None:
        assert main(words(spec, *given)) == 0
        assert "Is [/a] or [bold] best?" in capsys.readouterr().out

    def test_watching_ends_with_the_studies(
        self, spec: StudySpec, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        age(spec, 0)
        monkeypatch.setattr(status, "WATCH_SECONDS", 0.2)
        monkeypatch.setattr(status, "SEEN_SECONDS", 1.0)
        began = time.monotonic()
        assert main(words(spec, "status", "--watch")) == 0
        assert time.monotonic() - began > 0.5
        assert "interrupted" in capsys.readouterr().out

    def test_watching_is_for_people(self, spec: StudySpec, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(words(spec, "status", "--watch", "--json")) == 2
        assert "--watch is for people" in capsys.readouterr().err


class TestStates:
    def test_what_each_is_known_by(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = Ledger.in_folder(tmp_path)
        run = ledger.open_study(spec.study, json.loads(spec.model_dump_json()), {})
        assert state_of(ledger, "race") == "running"
        ledger.give_order("race", "pause")
        assert state_of(ledger, "race") == "paused"
        ledger.give_order("race", "stop")
        assert state_of(ledger, "race") == "stopping"
        age(spec, status.SEEN_SECONDS + 1)
        assert state_of(ledger, "race") == "interrupted"
        age(spec, 0)
        assert state_of(ledger, "race") == "stopping"
        ledger.end_run(run)
        assert state_of(ledger, "race") == "interrupted"
        ledger.open_study(spec.study, json.loads(spec.model_dump_json()), {})
        assert state_of(ledger, "race") == "running"  # an order is for one run
        ledger.end_study("race")
        assert state_of(ledger, "race") == "over"


class TestOrders:
    def test_they_are_recorded(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        ledger = open_study(spec_of(tmp_path))
        for verb, order in (("pause", "pause"), ("resume", None), ("stop", "stop")):
            assert main([verb, "race", "--storage", str(tmp_path)]) == 0
            assert ledger.order("race") == order
        assert "study run` goes on" not in capsys.readouterr().err

    @pytest.mark.parametrize("verb", ["pause", "resume", "stop"])
    def test_a_study_that_does_not_run_takes_none(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
    ) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        age(spec, status.SEEN_SECONDS + 1)
        assert main([verb, "race", "--storage", str(tmp_path)]) == 2
        assert "study 'race' is not being run; `study run` goes on with it" in capsys.readouterr().err
        ledger.end_study("race")
        assert main([verb, "race", "--storage", str(tmp_path)]) == 2
        assert "study 'race' is over" in capsys.readouterr().err
        assert ledger.order("race") is None

    def test_stopping_is_not_taken_back(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        ledger = open_study(spec_of(tmp_path))
        assert main(["stop", "race", "--storage", str(tmp_path)]) == 0
        assert main(["resume", "race", "--storage", str(tmp_path)]) == 2
        assert "has been told to stop" in capsys.readouterr().err
        assert ledger.order("race") == "stop"

    def test_an_unknown_study_is_an_error(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        open_study(spec_of(tmp_path))
        assert main(["stop", "rice", "--storage", str(tmp_path)]) == 2
        assert "no study 'rice'" in capsys.readouterr().err
