"""A study's results as tables for notebooks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import study
from study.ledger import LedgerError
from tests.study.builders import LEARNING_RATE, crossing_at, open_study, run_trial, spec_of


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    spec = spec_of(tmp_path)
    ledger = open_study(spec)
    run_trial(ledger, spec, "slow", curve=crossing_at(20), rate=1e-3)
    run_trial(ledger, spec, "fast", curve=crossing_at(25), rate=2e-3, seconds_a_step=0.5)
    run_trial(ledger, spec, "fast", 1, curve={}, status="failed", cause="too hot")
    return tmp_path


def test_curves_have_a_row_for_each_value_of_the_metric(storage: Path) -> None:
    curves = study.open("race", storage).curves("dev_cer")
    fast = curves[curves["arm"] == "fast"]
    assert fast[["trial", "stage", "step", "value", "accelerator_seconds"]].values.tolist() == [
        ["fast-000", "supervised", 10, pytest.approx(0.9), 5.0],
        ["fast-000", "supervised", 30, pytest.approx(crossing_at(25)[30]), 15.0],
    ]
    assert set(curves["metric"]) == {"dev_cer"}


def test_without_a_metric_all_are_there(storage: Path) -> None:
    assert set(study.open("race", storage).curves()["metric"]) == {"dev_cer", "dev_wer", "test_cer", "test_wer"}


def test_curves_of_nothing_have_their_columns(storage: Path) -> None:
    curves = study.open("race", storage).curves("dev_mer")
    assert curves.empty
    assert {"arm", "step", "value"} <= set(curves.columns)


def test_a_study_without_trials_has_the_columns_of_trials(storage: Path, tmp_path: Path) -> None:
    open_study(spec_of(tmp_path, study="empty"))
    assert study.open("empty", tmp_path).trials().status.tolist() == []


def test_trials_have_what_was_searched_and_what_came_out(storage: Path) -> None:
    trials = study.open("race", storage).trials().set_index("trial")
    assert trials.loc["fast-000", LEARNING_RATE] == 2e-3
    assert trials.loc["fast-000", "test_cer"] == pytest.approx(crossing_at(25)[30])
    assert trials.loc["fast-000", "accelerator_seconds"] == 15.0
    assert trials.loc["fast-001", ["status", "cause"]].tolist() == ["failed", "too hot"]


def test_the_answer_is_that_of_the_report(storage: Path) -> None:
    assert study.open("race", storage).answer().sentences[0].startswith("No interval can be given")


def test_an_unknown_study_is_refused_with_the_known_ones(storage: Path) -> None:
    with pytest.raises(LedgerError, match=r"no study 'rice' in .*; known: race"):
        study.open("rice", storage)


def test_the_command_line_does_not_wait_for_pandas() -> None:
    code = "import sys, study.run; print('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
