"""A study, a new ledger and a mirror, killed before every one of their writes: what comes out is always the same."""

from __future__ import annotations

import math
import os
import shutil
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from study.ledger import SCHEMA_VERSION, Ledger
from study.search import Proposal, Search
from study.spec import StudySpec
from study.stopper import Stopper
from study.tracking import Conclusion, Mirror, RunResults
from tests.study.builders import LEARNING_RATE, open_study, report, run_trial, spec_of, supervised
from tests.study.killing import Countdown, before_commits, before_file_operations, before_statements, dies, every_death
from tests.study.test_ledger import VERSION_1

STEPS, EVALUATIONS, TOGETHER = 40, 3, 2

State = dict[str, Any]
Causes = list[tuple[str, str]]


# ---- a study ---------------------------------------------------------------------------------------------------------


def sweep_of(storage: Path) -> StudySpec:
    space = {LEARNING_RATE: {"kind": "log_uniform", "low": 1e-5, "high": 1.0}}
    trial = supervised(STEPS, evaluate_every=STEPS // EVALUATIONS)
    return spec_of(
        storage,
        arms={"one": {"trial": trial, "space": space}},
        search={"trials": 6, "metric": "dev_cer", "sampler": {"kind": "tpe", "startup_trials": 2}},
        early_stopping={"kind": "asha", "reduction_factor": 2, "first_rung": 1 / 3},
        replication={"top": 1, "seeds": 1},
    )


def cer_at(point: dict[str, Any], evaluation: int) -> float:
    final = 0.1 + (math.log10(point[LEARNING_RATE]) + 3) ** 2 / 20
    return final + 0.3 * (1 - evaluation / EVALUATIONS)


def run_study(storage: Path) -> None:
    """Run the study, or go on with it: two trials at a time, evaluation by evaluation, both to their end."""
    spec = sweep_of(storage)
    ledger = open_study(spec)
    search, stopper = Search(spec, ledger), Stopper(spec, ledger)
    known = ledger.trials(spec.study)
    ended = sum(trial.status != "unfinished" for trial in known)
    while True:
        begun = [proposal for _ in range(TOGETHER - ended % TOGETHER) if (proposal := search.propose())]
        if not begun:
            break
        for proposal in begun:
            stopper.add(proposal.trial, proposal.stages)
        run_together(search, stopper, list(begun))
        ended += len(begun)
    assert search.is_over
    ledger.end_study(spec.study)
    ledger.close()


def run_together(search: Search, stopper: Stopper, running: list[Proposal]) -> None:
    """Every stage reports all it has from its start, as one that is resumed does."""
    spec, ledger = search.spec, search.ledger
    for evaluation in range(1, EVALUATIONS + 1):
        for proposal in list(running):
            trial, stage = proposal.trial, proposal.stages[-1]
            step = STEPS if evaluation == EVALUATIONS else evaluation * STEPS // EVALUATIONS
            reports = [report(step, dev_cer=cer_at(trial.point, evaluation))]
            ledger.append(stage.fingerprint(), reports)
            cause = stopper.stops(trial.trial, stage, reports)
            if cause or evaluation == EVALUATIONS:
                running.remove(proposal)
                ledger.end_trial(spec.study, trial.trial, "stopped" if cause else "finished", cause)
                search.ended(trial.trial)


QUERIES = {
    "trials": "select trial, arm, number, origin, grid, point, config, seed, status, cause is null, sampler_state "
    "from trials order by started_at",
    "order of ends": "select trial from trials order by ended_at",
    "stages": "select * from stages order by stage",
    "stages of trials": "select * from trial_stages order by study, trial, position",
    "points": "select stage, step, metric, value from points order by stage, step, metric",
    "evaluations": "select trial, progress, objectives from evaluations order by id",
    "studies": "select study, ended_at is not null from studies",
}


CAUSES = "select trial, cause from trials where cause is not null order by trial"


def causes(storage: Path) -> Causes:
    with closing(sqlite3.connect(storage / "ledger.db")) as db:
        return db.execute(CAUSES).fetchall()


def state_of(storage: Path) -> State:
    with closing(sqlite3.connect(storage / "ledger.db")) as db:
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert db.execute("pragma foreign_key_check").fetchall() == []
        return {name: db.execute(query).fetchall() for name, query in QUERIES.items()}


@dataclass(frozen=True)
class Ends:
    """How the study ends when it is left alone, and when it is killed before its n-th commit and run again."""

    alone: tuple[State, Causes]
    killed: dict[int, tuple[State, Causes]]


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    storage = tmp_path_factory.mktemp("killed") / "results"  # the same each time, for it is part of the settings

    def work(tick: Countdown) -> None:
        shutil.rmtree(storage, ignore_errors=True)
        before_commits(tick)
        run_study(storage)

    killed = {}
    for n in every_death(work):
        run_study(storage)
        killed[n] = state_of(storage), causes(storage)
    return Ends((state_of(storage), causes(storage)), killed)


def test_a_study_that_is_killed_before_any_commit_ends_as_one_that_is_not(ends: Ends) -> None:
    alone, _ = ends.alone
    statuses = [row[8] for row in alone["trials"]]
    assert statuses.count("stopped") >= 1
    assert statuses.count("finished") >= 3
    assert len(ends.killed) > 40
    for n, (killed, _) in ends.killed.items():
        assert killed == alone, f"killed at commit {n}"


def test_a_study_that_is_killed_before_it_records_a_stop_gives_the_same_cause(ends: Ends) -> None:
    _, alone = ends.alone
    assert alone
    for n, (_, killed) in ends.killed.items():
        assert killed == alone, f"killed at commit {n}"


# ---- a new ledger ----------------------------------------------------------------------------------------------------


def test_a_new_ledger_whose_maker_is_killed_at_any_moment_opens_and_leaves_no_files(tmp_path: Path) -> None:
    storage = tmp_path / "results"

    def work(tick: Countdown) -> None:
        shutil.rmtree(storage, ignore_errors=True)
        before_commits(tick)
        before_file_operations(tick)
        Ledger.in_folder(storage).close()

    deaths = 0
    for deaths in every_death(work):  # noqa: B007
        with closing(Ledger.in_folder(storage)) as ledger:
            assert ledger.studies() == []
        with closing(sqlite3.connect(storage / "ledger.db")) as db:
            assert db.execute("select version from schema").fetchall() == [(SCHEMA_VERSION,)]
        for file in storage.glob(".ledger-*"):
            os.utime(file, (time.time() - 7200,) * 2)
        Ledger.in_folder(storage).close()
        assert list(storage.glob(".ledger-*")) == []
    assert deaths >= 6


def test_an_update_of_an_earlier_version_that_is_killed_before_any_statement_is_made_by_the_next(
    tmp_path: Path,
) -> None:
    def work(tick: Countdown) -> None:
        (tmp_path / "ledger.db").unlink(missing_ok=True)
        Ledger.in_folder(tmp_path).close()
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as db:
            db.executescript(VERSION_1)
        before_statements(tick)
        Ledger.in_folder(tmp_path).close()

    deaths = 0
    for deaths in every_death(work):  # noqa: B007
        Ledger.in_folder(tmp_path).close()
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as db:
            assert db.execute("select version from schema").fetchall() == [(SCHEMA_VERSION,)]
            assert db.execute("select ended_at from studies").fetchall() == []
            assert db.execute("select sampler_state from trials").fetchall() == []
            assert db.execute("select * from evaluations join runs").fetchall() == []
    assert deaths >= 8


def test_what_another_process_is_making_now_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".ledger-12345678.db").touch()
    Ledger.in_folder(tmp_path).close()
    assert (tmp_path / ".ledger-12345678.db").exists()


# ---- the mirror ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage folder with a study of three trials, and an empty MLflow database, which takes seconds to make."""
    storage = tmp_path_factory.mktemp("mirrored")
    spec = spec_of(storage)
    ledger = open_study(spec)
    run_trial(ledger, spec, "slow", curve={10: 0.9, 20: 0.5})
    run_trial(ledger, spec, "slow", 1, rate=2e-3, curve={10: 0.8}, status="stopped", cause="not among the best")
    run_trial(ledger, spec, "fast", curve={10: 0.7}, status="unfinished")
    ledger.close()
    MlflowClient(f"sqlite:///{storage / 'mlflow.db'}").search_experiments()
    return storage


def sync(storage: Path) -> None:
    ledger = Ledger.in_folder(storage)
    mirror = Mirror(ledger, "race", storage, f"sqlite:///{storage / 'mlflow.db'}")
    mirror.sync(live=True)
    mirror.sync(live=False)
    results = {
        "study": RunResults({"fast/updates_ratio": 0.5}, {}),
        "fast-000": RunResults({}, {"stands_for_arm": "yes"}),
    }
    mirror.conclude(Conclusion(storage / "report", "Fast is faster.", results))
    ledger.close()


def content_of_mlflow(storage: Path) -> State:
    """Without MLflow's own code: runs by their key, each metric's history, parameters, tags and statuses."""
    with closing(sqlite3.connect(storage / "mlflow.db")) as db:
        runs = db.execute(
            "select value, status from tags join runs using (run_uuid) where key = 'study.key' "
            "and lifecycle_stage = 'active' order by value"
        ).fetchall()
        of_runs = "join tags on tags.run_uuid = t.run_uuid and tags.key = 'study.key'"
        return {
            "experiments": db.execute("select name from experiments order by name").fetchall(),
            "runs": runs,
            "metrics": db.execute(
                f"select tags.value, t.key, step, t.value, timestamp from metrics t {of_runs} order by 1, 2, 3, 4"
            ).fetchall(),
            "params": db.execute(f"select tags.value, t.key, t.value from params t {of_runs} order by 1, 2").fetchall(),
            "tags": db.execute(
                f"select tags.value, t.key, t.value from tags t {of_runs} where t.key like 'study.%' order by 1, 2"
            ).fetchall(),
            "report": sorted(path.name for path in storage.glob("mlflow-artifacts/race/*/artifacts/report/*")),
        }


@pytest.mark.slow
@pytest.mark.long
def test_a_mirror_that_is_killed_before_any_write_is_completed_by_the_next(mirrored: Path, tmp_path: Path) -> None:
    storage = tmp_path / "results"

    def begin_anew() -> None:
        shutil.rmtree(storage, ignore_errors=True)
        shutil.copytree(mirrored, storage)
        (storage / "report").mkdir()
        for name in ("report.html", "figure.svg"):
            (storage / "report" / name).write_text(name)

    def work(tick: Countdown) -> None:
        begin_anew()
        before_commits(tick)
        before_artifacts(tick)
        sync(storage)

    begin_anew()
    in_a_fork(lambda: sync(storage))
    expected = content_of_mlflow(storage)
    assert expected["runs"] == [
        ("fast-000", "KILLED"),
        ("slow-000", "FINISHED"),
        ("slow-001", "KILLED"),
        ("study", "FINISHED"),
    ]
    assert [m[:4] for m in expected["metrics"] if m[1] == "dev_cer"] == [
        ("fast-000", "dev_cer", 10, 0.7),
        ("slow-000", "dev_cer", 10, 0.9),
        ("slow-000", "dev_cer", 20, 0.5),
        ("slow-001", "dev_cer", 10, 0.8),
    ]
    assert expected["report"] == ["figure.svg", "report.html"]
    deaths = 0
    for n in every_death(work):
        in_a_fork(lambda: sync(storage))
        assert content_of_mlflow(storage) == expected, f"killed at write {n}"
        deaths = n
    assert deaths > 20


def in_a_fork(work: Any) -> None:
    """MLflow keeps open databases by their path, which another file takes here."""
    assert not dies(work)


def before_artifacts(tick: Countdown) -> None:
    log = MlflowClient.log_artifact

    def log_artifact(self: MlflowClient, *arguments: Any) -> None:
        tick()
        log(self, *arguments)

    MlflowClient.log_artifact = log_artifact
