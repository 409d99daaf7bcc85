"""What a person sees, where the output is not a terminal: text as it was written, and lines now and then."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from study.answer import answer
from study.ledger import Ledger
from study.plan import make_plan
from study.spec import StudySpec
from study.terminal import (
    Terminal,
    answer_lines,
    duration,
    failures,
    percent,
    plan_table,
    point_text,
    ranking,
    rate_table,
)
from tests.study.builders import add_trial, crossing_at, open_study, report, run_trial, spec_of, supervised

BRACKETS = "RuntimeError: [/data/x] has no [red] and [Errno 2]"

Show = Callable[[object], str]


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def show(console: Console) -> Show:
    def print_it(what: object) -> str:
        console.print(what)
        return written(console)

    return print_it


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def spec(tmp_path: Path) -> StudySpec:
    return spec_of(tmp_path, question="Is [/a] better than [b]?", arms={"slow": {"trial": supervised()}})


@pytest.fixture
def ledger(spec: StudySpec) -> Ledger:
    return open_study(spec)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (7, "0:07"), (59.6, "1:00"), (187, "3:07"), (3599.4, "59:59"), (3600, "1:00:00"), (3765, "1:02:45")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_numbers_for_people() -> None:
    assert percent(None) == ""
    assert percent(0.1234) == "12.3%"
    point = {"regime.train.learning_rate": 0.00123456, "model.gru_layers": 2, "regime.train.augment_speed": True}
    assert point_text(point) == "learning_rate=0.00123 gru_layers=2 augment_speed=True"


def test_parameters_of_one_name_are_both_shown() -> None:
    """Pre-training and fine-tuning have a learning rate each."""
    shown = point_text({"regime.pretrain.learning_rate": 0.001, "regime.finetune.learning_rate": 0.002})
    assert "0.001" in shown
    assert "0.002" in shown


def test_the_plan_shows_trials_and_what_is_shared(tmp_path: Path, show: Show) -> None:
    spec = spec_of(tmp_path)
    shown = show(plan_table(make_plan(spec)))
    assert "10 trials at most" in shown
    assert all(arm in shown for arm in spec.arms)


def test_the_causes_of_failures_are_shown_as_they_are(spec: StudySpec, ledger: Ledger, show: Show) -> None:
    assert failures(ledger.trials("race")) is None
    run_trial(ledger, spec, "slow", curve={}, status="failed", cause=BRACKETS)
    assert BRACKETS in show(failures(ledger.trials("race")))


def test_the_ranking_is_best_first_and_of_finished_trials(tmp_path: Path, show: Show) -> None:
    spec = spec_of(tmp_path)
    ledger = open_study(spec)
    for number, (step, status) in enumerate([(25, "finished"), (20, "finished"), (19, "failed"), (30, "finished")]):
        rate = 1e-3 + number * 1e-4
        run_trial(ledger, spec, "slow", number, curve=crossing_at(step), rate=rate, status=status)  # type: ignore[arg-type]
    shown = show(ranking(spec, ledger))
    assert shown.index("slow-001") < shown.index("slow-000") < shown.index("slow-003")
    assert "slow-002" not in shown
    assert "learning_rate=0.0011" in shown


def test_arms_without_a_finished_trial_have_no_row(spec: StudySpec, ledger: Ledger) -> None:
    add_trial(ledger, spec, "slow")
    assert not ranking(spec, ledger).row_count
    assert not rate_table(answer(spec, ledger)).row_count
    run_trial(ledger, spec, "slow", 1, curve=crossing_at(20))
    assert rate_table(answer(spec, ledger)).row_count == ranking(spec, ledger).row_count == 1


def test_the_question_is_shown_as_it_was_written(spec: StudySpec, ledger: Ledger, show: Show) -> None:
    assert "Is [/a] better than [b]?" in show(answer_lines(spec, answer(spec, ledger)))


def test_a_study_without_a_terminal_prints_a_line_for_starts_stages_and_ends(
    spec: StudySpec, ledger: Ledger, console: Console
) -> None:
    name, (stage,) = add_trial(ledger, spec, "slow")
    with Terminal(console, spec, make_plan(spec), ledger) as terminal:
        terminal.trial_started(name)
        terminal.reported(name, stage, report(40, dev_cer=0.25))
        ledger.append(stage.fingerprint(), [report(40, dev_cer=0.25)])
        ledger.end_trial("race", name, "finished")
        terminal.trial_ended(name)
    started, reported, ended = written(console).splitlines()
    assert started.endswith("slow-000: started")
    assert reported.endswith("slow-000: supervised 40/40 dev CER 25.0%")
    assert ended.endswith("slow-000: dev CER 25.0%  [1/4]")


def test_a_failure_is_a_line_with_its_cause_as_it_is(spec: StudySpec, ledger: Ledger, console: Console) -> None:
    name, _ = add_trial(ledger, spec, "slow")
    with Terminal(console, spec, make_plan(spec), ledger) as terminal:
        terminal.trial_started(name)
        ledger.end_trial("race", name, "failed", BRACKETS)
        terminal.trial_ended(name)
    assert written(console).splitlines()[-1].endswith(f"slow-000: failed: {BRACKETS}  [1/4]")


def test_the_live_table_has_progress_and_time_left(spec: StudySpec, ledger: Ledger) -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    name, (stage,) = add_trial(ledger, spec, "slow")
    with Terminal(console, spec, make_plan(spec), ledger) as terminal:
        terminal.trial_started(name)
        terminal.reported(name, stage, report(10, seconds_a_step=6.0, dev_cer=0.25))
    shown = written(console)
    assert "slow-000" in shown
    assert "10/40" in shown
    assert "3:00" in shown  # 30 more steps of 6 s
    assert "25.0%" in shown
    assert "0/4 trials done, 0 failed" in shown
