"""The record of truth: written once whatever happens, read back as it was, in SQLite and in PostgreSQL."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from study.ledger import SCHEMA_VERSION, Evaluation, Ledger, LedgerError, Spent
from study.provenance import environment
from study.spec import StudySpec
from tests.processes import forked, forkserver
from tests.study.builders import (
    LEARNING_RATE,
    SECONDS_OF_AUDIO_A_STEP,
    add_trial,
    dev_curve,
    pretrain_finetune,
    report,
    run_trial,
    spec_of,
    supervised,
)
from tests.study.postgresql import PostgreSQL, binaries
from trainables.stage import Report

Row = tuple[object, ...]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "database" in metafunc.fixturenames:
        kinds = ["sqlite"] if metafunc.cls is TestCrashes else ["sqlite", "postgresql"]
        metafunc.parametrize("database", kinds, indirect=True, ids=kinds)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    if binaries() is None:
        pytest.skip("there is no PostgreSQL here")
    server = PostgreSQL()
    server.start()
    yield server
    server.remove()


@pytest.fixture(autouse=True)
def database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """URL of an empty database, which `Ledger.of` opens."""
    if request.param == "sqlite":
        monkeypatch.delenv("STUDY_LEDGER", raising=False)
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    server: PostgreSQL = request.getfixturevalue("server")
    url = server.new_database()
    monkeypatch.setenv("STUDY_LEDGER", url)
    return url


@pytest.fixture
def spec(tmp_path: Path) -> StudySpec:
    return spec_of(tmp_path)


@pytest.fixture
def ledger(database: str, spec: StudySpec) -> Iterator[Ledger]:
    ledger = open_study(spec)
    yield ledger
    ledger.close()


def open_study(spec: StudySpec) -> Ledger:
    ledger = Ledger.of(spec.storage)
    ledger.open_study(spec.study, spec.model_dump(mode="json"), environment(spec))
    return ledger


def rows(folder: Path, query: str) -> list[Row]:
    """Read the database without the ledger's code."""
    engine = sa.create_engine(os.environ.get("STUDY_LEDGER", f"sqlite:///{folder / 'ledger.db'}"))
    with engine.connect() as db:
        found = [tuple(row) for row in db.execute(sa.text(query))]
    engine.dispose()
    return found


def execute(folder: Path, script: str) -> None:
    engine = sa.create_engine(os.environ.get("STUDY_LEDGER", f"sqlite:///{folder / 'ledger.db'}"))
    with engine.begin() as db:
        for statement in script.strip().rstrip(";").split(";"):
            db.execute(sa.text(statement))
    engine.dispose()


POINTS = "select stage, step, metric, value, audio_seconds, elapsed_seconds from points order by stage, step, metric"


class TestPoints:
    def test_are_read_back_as_they_were_reported(self, tmp_path: Path, ledger: Ledger, spec: StudySpec) -> None:
        name, (stage,) = add_trial(ledger, spec, "slow")
        value = 0.1 + 0.2  # all 53 bits
        ledger.append(stage.fingerprint(), [report(3, seconds_a_step=1 / 3, loss=value, dev_cer=1.0)])
        loss, cer = ledger.curve("race", name)
        assert (loss.device, ledger.devices("race")) == (None, frozenset())
        ledger.append(stage.fingerprint(), [report(4, device="NVIDIA H200", loss=1.0)])
        assert ledger.curve("race", name)[-1].device == "NVIDIA H200"
        assert ledger.devices("race") == {"NVIDIA H200"}
        assert (loss.metric, loss.value, loss.step, loss.kind) == ("loss", value, 3, "supervised")
        assert (cer.metric, cer.value) == ("dev_cer", 1.0)
        expected = report(3, seconds_a_step=1 / 3, loss=value, dev_cer=1.0)
        for name_ in ("audio_seconds", "epochs", "elapsed_seconds", "accelerator_seconds", "reported_at"):
            assert getattr(loss, name_) == getattr(expected, name_)

    def test_appending_the_same_reports_again_changes_nothing(
        self, tmp_path: Path, ledger: Ledger, spec: StudySpec
    ) -> None:
        _, (stage,) = add_trial(ledger, spec, "slow")
        reports = dev_curve({10: 0.9, 20: 0.5, 30: 0.2})
        ledger.append(stage.fingerprint(), reports)
        before = rows(tmp_path, POINTS)
        ledger.append(stage.fingerprint(), reports)
        ledger.append(stage.fingerprint(), reports[:1])
        assert rows(tmp_path, POINTS) == before
        assert len(before) == 2 + 2 + 4

    def test_what_is_there_stays_as_it_is(self, ledger: Ledger, spec: StudySpec) -> None:
        """A resumed stage repeats steps at another cost; the first report of a step counts."""
        name, (stage,) = add_trial(ledger, spec, "slow")
        ledger.append(stage.fingerprint(), [report(10, dev_cer=0.9)])
        ledger.append(stage.fingerprint(), [report(10, seconds_a_step=9, dev_cer=0.1), report(20, dev_cer=0.5)])
        assert [(p.step, p.value, p.elapsed_seconds) for p in ledger.curve("race", name)] == [
            (10, 0.9, 10.0),
            (20, 0.5, 20.0),
        ]

    def test_two_processes_that_append_the_same_reports_at_once_write_them_once(
        self, tmp_path: Path, ledger: Ledger, spec: StudySpec
    ) -> None:
        _, (stage,) = add_trial(ledger, spec, "slow")
        reports = [report(step, loss=1 / step, dev_cer=0.5) for step in range(1, 201)]
        context = forkserver(__name__)
        start = context.Barrier(3)
        writers = [forked(context, _append_one_by_one, tmp_path, stage.fingerprint(), reports, start) for _ in range(2)]
        for writer in writers:
            writer.start()
        start.wait(300)
        for writer in writers:
            writer.join(300)
            assert writer.exitcode == 0
        found = rows(tmp_path, "select step, metric, value from points order by step, metric")
        assert found == [row for step in range(1, 201) for row in ((step, "dev_cer", 0.5), (step, "loss", 1 / step))]

    def test_of_a_stage_that_no_trial_recorded_are_refused(self, ledger: Ledger) -> None:
        with pytest.raises(Exception, match=r"(?i)foreign key"):
            ledger.append("nowhere", [report(1, loss=1.0)])

    def test_appending_nothing_is_possible(self, tmp_path: Path, ledger: Ledger) -> None:
        ledger.append("nowhere", [])
        assert rows(tmp_path, POINTS) == []


def _append_one_by_one(folder: Path, stage: str, reports: list[Report], start: Any) -> None:
    ledger = Ledger.of(folder)
    start.wait(300)
    for each in reports:
        ledger.append(stage, [each])


class TestTrials:
    def test_are_read_back_as_they_were_added(self, ledger: Ledger, spec: StudySpec) -> None:
        point = {LEARNING_RATE: 0.1 + 0.2, "model.gru_layers": 2, "regime.train.augment_speed": True}
        name, (stage,) = add_trial(ledger, spec, "fast", 7, point=point, seed=3)
        (trial,) = ledger.trials("race")
        assert (trial.trial, trial.arm, trial.number, trial.origin, trial.seed) == (name, "fast", 7, "search", 3)
        assert trial.point == point
        assert [type(value) for value in trial.point.values()] == [float, int, bool]
        assert trial.config == spec.trial_config("fast", point, 3).model_dump(mode="json")
        assert (trial.status, trial.cause, trial.ended_at) == ("unfinished", None, None)
        assert ledger.trial_stages("race", name) == [
            {"stage": stage.fingerprint(), "kind": "supervised", "name": stage.name(), "steps": 40}
        ]

    def test_adding_one_again_keeps_its_row(self, tmp_path: Path, ledger: Ledger, spec: StudySpec) -> None:
        add_trial(ledger, spec, "slow", point={LEARNING_RATE: 1e-3})
        ledger.end_trial("race", "slow-000", "failed", "out of memory")
        before = (ledger.trials("race"), rows(tmp_path, "select * from trial_stages"))
        add_trial(ledger, spec, "slow", point={LEARNING_RATE: 2e-3}, seed=9)
        assert ledger.trials("race") == before[0]

    def test_adding_one_again_records_the_stages_anew(self, ledger: Ledger, tmp_path: Path) -> None:
        """After an update of the program a stage may have another identity; the trial then runs that one."""
        two = spec_of(tmp_path, arms={"slow": {"trial": pretrain_finetune()}})
        name, (one,) = add_trial(ledger, spec_of(tmp_path), "slow")
        assert [s["stage"] for s in ledger.trial_stages("race", name)] == [one.fingerprint()]
        for _ in range(2):
            name, stages = add_trial(ledger, two, "slow")
            assert [s["stage"] for s in ledger.trial_stages("race", name)] == [s.fingerprint() for s in stages]
            assert [s["kind"] for s in ledger.trial_stages("race", name)] == ["pretrain", "finetune"]

    def test_come_in_the_order_in_which_they_were_added(self, ledger: Ledger, spec: StudySpec) -> None:
        names = [add_trial(ledger, spec, arm, number)[0] for number in (1, 0) for arm in ("slow", "fast")]
        assert [trial.trial for trial in ledger.trials("race")] == names

    def test_the_first_end_counts(self, ledger: Ledger, spec: StudySpec) -> None:
        name, _ = add_trial(ledger, spec, "slow")
        assert ledger.end_trial("race", name, "failed", "first")
        assert not ledger.end_trial("race", name, "finished")
        assert not ledger.end_trial("race", name, "failed", "second")
        (trial,) = ledger.trials("race")
        assert (trial.status, trial.cause) == ("failed", "first")
        assert trial.ended_at is not None
        assert trial.ended_at >= trial.started_at

    def test_ending_one_that_is_not_there_is_no_end(self, ledger: Ledger) -> None:
        assert not ledger.end_trial("race", "nobody", "finished")

    def test_failed_ones_are_opened_again_and_finished_ones_not(self, ledger: Ledger, spec: StudySpec) -> None:
        for number, status in enumerate(("failed", "finished", "unfinished")):
            run_trial(ledger, spec, "slow", number, curve={1: 0.5}, status=status, cause="x" if number == 0 else None)
        ledger.reopen_failed("race")
        assert [(t.status, t.cause) for t in ledger.trials("race")] == [
            ("unfinished", None),
            ("finished", None),
            ("unfinished", None),
        ]
        assert ledger.trials("race")[0].ended_at is None
        assert ledger.end_trial("race", "slow-000", "finished")

    def test_of_another_study_are_another_matter(self, ledger: Ledger, tmp_path: Path, spec: StudySpec) -> None:
        other = spec_of(tmp_path, study="other")
        ledger.open_study("other", other.model_dump(mode="json"), {})
        run_trial(ledger, spec, "slow", curve={1: 0.5}, status="failed", cause="x")
        add_trial(ledger, other, "slow")
        ledger.reopen_failed("other")
        assert [t.status for t in ledger.trials("race")] == ["failed"]
        assert [t.status for t in ledger.trials("other")] == ["unfinished"]


class TestCurves:
    def test_of_two_stages_count_from_the_start_of_the_first(self, ledger: Ledger, tmp_path: Path) -> None:
        spec = spec_of(tmp_path, arms={"one": {"trial": pretrain_finetune()}})
        name, (pretraining, finetuning) = add_trial(ledger, spec, "one")
        ledger.append(
            pretraining.fingerprint(),
            [report(50, seconds_a_step=2.0, loss=3.0), report(100, seconds_a_step=2.0, loss=2.0)],
        )
        ledger.append(
            finetuning.fingerprint(),
            [
                report(20, seconds_a_step=0.5, loss=1.5, dev_cer=0.8),
                report(40, seconds_a_step=0.5, loss=1.0, dev_cer=0.4),
            ],
        )
        audio = SECONDS_OF_AUDIO_A_STEP
        assert [
            (p.kind, p.metric, p.value, p.step, p.audio_seconds, p.elapsed_seconds, p.accelerator_seconds, p.epochs)
            for p in ledger.curve("race", name)
        ] == [
            ("pretrain", "loss", 3.0, 50, 50 * audio, 100.0, 100.0, 5.0),
            ("pretrain", "loss", 2.0, 100, 100 * audio, 200.0, 200.0, 10.0),
            ("finetune", "loss", 1.5, 120, 120 * audio, 210.0, 210.0, 2.0),
            ("finetune", "dev_cer", 0.8, 120, 120 * audio, 210.0, 210.0, 2.0),
            ("finetune", "loss", 1.0, 140, 140 * audio, 220.0, 220.0, 4.0),
            ("finetune", "dev_cer", 0.4, 140, 140 * audio, 220.0, 220.0, 4.0),
        ]
        # One metric: the cost of the stage that does not have it is in all the same.
        assert [(p.step, p.value) for p in ledger.curve("race", name, "dev_cer")] == [(120, 0.8), (140, 0.4)]
        assert ledger.final("race", name) == {"loss": 1.0, "dev_cer": 0.4, "accelerator_hours": 220 / 3600}

    def test_a_shared_stage_is_part_of_every_trial_that_uses_it(self, ledger: Ledger, tmp_path: Path) -> None:
        arms = {"one": {"trial": pretrain_finetune()}, "two": {"trial": pretrain_finetune(learning_rate=1e-4)}}
        spec = spec_of(tmp_path, arms=arms)
        (one, (shared, first)), (two, (again, second)) = (add_trial(ledger, spec, arm) for arm in arms)
        assert shared.fingerprint() == again.fingerprint()
        ledger.append(shared.fingerprint(), [report(100, loss=1.0)])
        ledger.append(first.fingerprint(), [report(10, dev_cer=0.7)])
        ledger.append(second.fingerprint(), [report(20, dev_cer=0.6)])
        assert [(p.step, p.value) for p in ledger.curve("race", one)] == [(100, 1.0), (110, 0.7)]
        assert [(p.step, p.value) for p in ledger.curve("race", two)] == [(100, 1.0), (120, 0.6)]

    def test_are_in_the_order_of_steps_however_they_were_written(self, ledger: Ledger, spec: StudySpec) -> None:
        name, (stage,) = add_trial(ledger, spec, "slow")
        for step in (30, 10, 20):
            ledger.append(stage.fingerprint(), [report(step, dev_cer=step / 100)])
        assert [p.step for p in ledger.curve("race", name)] == [10, 20, 30]
        assert ledger.final("race", name) == {"dev_cer": 0.3, "accelerator_hours": 30 / 3600}

    def test_the_results_on_dev_are_those_of_the_weights_that_were_kept(self, ledger: Ledger, spec: StudySpec) -> None:
        name, (stage,) = add_trial(ledger, spec, "slow")
        kept = {"kept_step": 10.0, "kept_dev_wer": 0.5, "kept_dev_cer": 0.2}
        last = report(20, dev_wer=0.7, dev_cer=0.1, **kept, test_wer=0.6)
        ledger.append(stage.fingerprint(), [report(10, dev_wer=0.5, dev_cer=0.2), last])
        found = {"dev_wer": 0.5, "dev_cer": 0.2, **kept, "test_wer": 0.6, "accelerator_hours": 20 / 3600}
        assert ledger.final("race", name) == found

    def test_without_points_there_is_none(self, ledger: Ledger, spec: StudySpec) -> None:
        name, _ = add_trial(ledger, spec, "slow")
        assert ledger.curve("race", name) == []
        assert ledger.final("race", name) == {}
        assert ledger.final("race", "nobody") == {}

    def test_the_contents_of_trials_are_their_stages_in_order(self, ledger: Ledger, tmp_path: Path) -> None:
        spec = spec_of(tmp_path, arms={"one": {"trial": pretrain_finetune()}, "two": {"trial": supervised()}})
        expected = {}
        for arm in spec.arms:
            name, stages = add_trial(ledger, spec, arm)
            expected[name] = tuple(stage.fingerprint() for stage in stages)
        assert ledger.contents("race") == expected
        assert ledger.contents("another") == {}


class TestRanking:
    def test_finished_trials_by_their_last_value_and_then_by_name(self, ledger: Ledger, spec: StudySpec) -> None:
        curves = [{10: 0.1, 20: 0.6}, {10: 0.9, 20: 0.3}, {10: 0.5, 20: 0.3}, {10: 0.9, 20: 0.01}, {10: 0.001}]
        statuses = ["finished", "finished", "finished", "failed", "unfinished"]
        for number in (2, 1, 0, 3, 4):
            run_trial(
                ledger,
                spec,
                "slow",
                number,
                rate=1e-3 + number * 1e-4,
                curve=curves[number],
                status=statuses[number],  # type: ignore[arg-type]
            )
        ranked = ledger.ranked(ledger.trials("race"), "dev_cer")
        assert [trial.trial for trial in ranked] == ["slow-001", "slow-002", "slow-000"]


class TestStudies:
    def test_an_unknown_one_is_an_error_that_names_the_known(self, ledger: Ledger, spec: StudySpec) -> None:
        ledger.open_study("another", spec.model_dump(mode="json"), {})
        with pytest.raises(LedgerError, match=r"no study 'rice' in .*; known: another, race"):
            ledger.study("rice")

    def test_an_empty_ledger_knows_none(self, tmp_path: Path) -> None:
        with pytest.raises(LedgerError, match="known: none"):
            Ledger.of(tmp_path / "new").study("race")

    def test_opening_one_again_keeps_its_birth_and_takes_the_new_settings(
        self, tmp_path: Path, spec: StudySpec
    ) -> None:
        ledger = open_study(spec)
        before = ledger.study("race")
        changed = spec_of(tmp_path, question="Still?")
        ledger.open_study("race", changed.model_dump(mode="json"), {"versions": {}})
        (after,) = ledger.studies()
        assert after["created_at"] == before["created_at"]
        assert after["updated_at"] > before["updated_at"]
        assert StudySpec.model_validate(after["spec"]) == changed
        assert after["environment"] == {"versions": {}}

    def test_objectives_that_are_not_finite_come_back(self, ledger: Ledger) -> None:
        evaluation = Evaluation("slow-000", 0.5, [float("inf"), -float("inf"), 0.1 + 0.2])
        ledger.add_evaluation("race", evaluation)
        assert ledger.evaluations("race") == [evaluation]

    def test_everything_is_there_when_the_ledger_is_opened_again(self, tmp_path: Path, spec: StudySpec) -> None:
        first = open_study(spec)
        name = run_trial(first, spec, "slow", curve={10: 0.9, 20: 0.1})
        seen = (first.studies(), first.trials("race"), first.curve("race", name), first.trial_stages("race", name))
        first.close()
        again = Ledger.of(tmp_path)
        assert (
            again.studies(),
            again.trials("race"),
            again.curve("race", name),
            again.trial_stages("race", name),
        ) == seen


# The tables that changed since version 1, as it made them.
VERSION_1 = """
alter table studies drop column ended_at;
alter table trials drop column sampler_state;
alter table points drop column device;
drop table runs;
drop table evaluations;
update schema set version = 1;
"""


class TestEarlierVersions:
    def test_a_ledger_of_version_1_is_read_and_goes_on(self, tmp_path: Path, spec: StudySpec) -> None:
        first = open_study(spec)
        name = run_trial(first, spec, "slow", curve={10: 0.9, 20: 0.1})
        add_trial(first, spec, "fast")
        seen = (first.trials("race"), first.curve("race", name), first.trial_stages("race", name))
        study = first.study("race")
        first.close()
        execute(tmp_path, VERSION_1)
        for _ in range(2):  # the second time it is of this version
            with closing(Ledger.of(tmp_path)) as again:
                assert (again.trials("race"), again.curve("race", name), again.trial_stages("race", name)) == seen
                assert again.study("race") == study
                assert not again.is_over("race")
                assert again.evaluations("race") == []
                assert again.spent("race") == Spent(0.0, 0.0, 0.0)
        with closing(open_study(spec)) as later:
            evaluation = Evaluation("fast-000", 0.5, [0.25])
            later.add_evaluation("race", evaluation)
            assert later.evaluations("race") == [evaluation]
            later.end_trial("race", "fast-000", "stopped", "not among the best")
            later.end_study("race")
            assert later.is_over("race")
            assert later.count("race") == {"unfinished": 0, "finished": 1, "failed": 0, "stopped": 1}
        assert rows(tmp_path, "select version from schema") == [(SCHEMA_VERSION,)]

    def test_another_schema_is_refused_with_both_versions(self, tmp_path: Path) -> None:
        Ledger.of(tmp_path).close()
        execute(tmp_path, f"update schema set version = {SCHEMA_VERSION + 1}")
        with pytest.raises(
            LedgerError, match=rf"schema version {SCHEMA_VERSION + 1}; this program reads {SCHEMA_VERSION}"
        ):
            Ledger.of(tmp_path)

    def test_processes_may_open_one_of_version_1_at_the_same_moment(self, tmp_path: Path, spec: StudySpec) -> None:
        open_study(spec).close()
        execute(tmp_path, VERSION_1)
        _at_once(4, _open, tmp_path)
        with closing(Ledger.of(tmp_path)) as ledger:
            assert [row["study"] for row in ledger.studies()] == ["race"]
        assert rows(tmp_path, "select version from schema") == [(SCHEMA_VERSION,)]

    def test_processes_may_make_a_new_one_at_the_same_moment(self, tmp_path: Path) -> None:
        _at_once(4, _open, tmp_path)
        assert rows(tmp_path, "select version from schema") == [(SCHEMA_VERSION,)]


def _at_once(count: int, work: Any, folder: Path) -> None:
    context = forkserver(__name__)
    start = context.Barrier(count)
    processes = [forked(context, work, folder, start) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * count


def _open(folder: Path, start: Any) -> None:
    start.wait(300)
    Ledger.of(folder).close()


class TestMirrorCursor:
    def test_can_be_forgotten_for_one_trial(self, ledger: Ledger) -> None:
        for server, trial in (("http://a", "slow-000"), ("http://a", "fast-000"), ("http://b", "slow-000")):
            ledger.set_mirrored(server, "race", trial, "s1", 4)
        ledger.forget_mirrored("http://a", "race", "slow-000")
        assert ledger.mirrored("http://a", "race", "slow-000") == {}
        assert ledger.mirrored("http://a", "race", "fast-000") == {"s1": 4}
        assert ledger.mirrored("http://b", "race", "slow-000") == {"s1": 4}

    def test_is_kept_for_every_server_trial_and_stage(self, ledger: Ledger) -> None:
        assert ledger.mirrored("http://a", "race", "slow-000") == {}
        ledger.set_mirrored("http://a", "race", "slow-000", "s1", 4)
        ledger.set_mirrored("http://a", "race", "slow-000", "s2", 9)
        ledger.set_mirrored("http://a", "race", "slow-000", "s1", 7)
        ledger.set_mirrored("http://b", "race", "slow-000", "s1", 1)
        assert ledger.mirrored("http://a", "race", "slow-000") == {"s1": 7, "s2": 9}
        assert ledger.mirrored("http://b", "race", "slow-000") == {"s1": 1}
        assert ledger.mirrored("http://a", "race", "fast-000") == {}


WRITER = """
import sys
from pathlib import Path
from study.ledger import Ledger
from tests.study.builders import report

ledger, stage = Ledger.of(Path(sys.argv[1])), sys.argv[2]
step = 0
while True:
    ledger.append(stage, [report(step + i, a=1.0, b=2.0, c=3.0) for i in range(5)])
    step += 5
    print(step, flush=True)
"""


class TestCrashes:
    def test_readers_and_the_writer_do_not_block_each_other(self, tmp_path: Path, ledger: Ledger) -> None:
        assert rows(tmp_path, "pragma journal_mode") == [("wal",)]

    def test_a_reader_sees_the_last_commit_while_a_write_is_under_way(
        self, tmp_path: Path, ledger: Ledger, spec: StudySpec
    ) -> None:
        name, (stage,) = add_trial(ledger, spec, "slow")
        ledger.append(stage.fingerprint(), [report(1, loss=1.0)])
        writer = sqlite3.connect(tmp_path / "ledger.db")
        writer.execute("begin immediate")
        writer.execute("update points set value = 9")
        assert [p.value for p in ledger.curve("race", name)] == [1.0]
        writer.rollback()
        writer.close()

    def test_a_writer_that_is_killed_leaves_whole_transactions_and_nothing_committed_is_lost(
        self, tmp_path: Path, ledger: Ledger, spec: StudySpec
    ) -> None:
        _, (stage,) = add_trial(ledger, spec, "slow")
        for at_least in (20, 120, 320):  # three crashes, one after the other
            process = subprocess.Popen(
                [sys.executable, "-c", WRITER, str(tmp_path), stage.fingerprint()], stdout=subprocess.PIPE, text=True
            )
            assert process.stdout is not None
            confirmed = 0
            while confirmed < at_least:
                confirmed = int(process.stdout.readline())
            time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            confirmed = max([confirmed, *map(int, process.stdout.read().split())])
            process.wait()
            assert rows(tmp_path, "pragma integrity_check") == [("ok",)]
            assert rows(tmp_path, "pragma foreign_key_check") == []
            steps = rows(tmp_path, "select step, group_concat(metric || value, ' ') from points group by step")
            assert {metrics for _, metrics in steps} == {"a1.0 b2.0 c3.0"}
            assert [step for step, _ in steps] == list(range(len(steps)))
            assert len(steps) % 5 == 0
            assert len(steps) >= confirmed

    def test_processes_may_open_a_new_ledger_at_the_same_moment(self, tmp_path: Path) -> None:
        context = forkserver(__name__)
        start = context.Barrier(4)
        openers = [forked(context, _open_new_ones, tmp_path, start) for _ in range(4)]
        for opener in openers:
            opener.start()
        for opener in openers:
            opener.join(300)
        assert [opener.exitcode for opener in openers] == [0] * 4


def _open_new_ones(folder: Path, start: Any) -> None:
    try:
        for number in range(20):
            start.wait(300)
            Ledger.of(folder / str(number)).close()
    except BaseException:
        start.abort()  # the others need not wait
        raise
