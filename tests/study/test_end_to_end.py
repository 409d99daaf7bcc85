"""Whole studies: real Ray, real training, real signals."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from study.ledger import Ledger
from study.run import main
from study.status import state_of
from tests.conftest import bl_just, pretrain_finetune, small_trial, spanish_rows, write_corpus

pytestmark = pytest.mark.slow

TIMEOUT_SECONDS = 300
# Metrics that differ from run to run.
TIMES = ("accelerator_seconds", "elapsed_seconds", "real_time_factor", "inference_seconds")


def write_sweep(path: Path, arms: dict[str, Any], **changes: Any) -> Path:
    sweep = {
        "study": "small",
        "question": "Does it hold?",
        "storage": str(path.parent / "results"),
        "arms": arms,
        "search": {"trials": 2, "metric": "dev_cer", "sampler": {"kind": "tpe", "startup_trials": 1}},
        "replication": {"seeds": 1},
        "convergence": {"metric": "dev_cer", "target": 0.9},
        "resources": {"max_groups": 1},  # one trial at a time: then proposals do not depend on which one is faster
        **changes,
    }
    path.write_text(json.dumps(sweep, indent=1))  # JSON is YAML
    return path


def two_arms(corpus: Path, steps: int) -> dict[str, Any]:
    regime = pretrain_finetune(steps, checkpoint_seconds=0.2)
    regime["pretrain"]["checkpoint_seconds"] = 0.2
    rate = {"kind": "log_uniform", "low": 1e-3, "high": 1e-2}
    return {
        "pretrain_finetune": {
            "trial": small_trial(corpus, regime),
            "space": {"regime.finetune.learning_rate": rate},
        },
        "bl_just": {
            "trial": small_trial(corpus, bl_just(steps, checkpoint_seconds=0.2)),
            "space": {"regime.joint.upper_learning_rate": rate},
        },
    }


def start(sweep: Path | str, *words: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return subprocess.Popen(
        [sys.executable, "-m", "study.run", str(sweep), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        umask=0o002,  # as those have it who work on a folder together
    )


def run(sweep: Path | str, *words: str) -> tuple[int, str]:
    process = start(sweep, *words)
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    return process.returncode, output


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until the condition holds; fails when the study ends first."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the study did not come as far as it should"
        time.sleep(0.05)


def num_points(storage: Path) -> int:
    try:
        with sqlite3.connect(f"file:{storage / 'ledger.db'}?mode=ro", uri=True) as db:
            return int(db.execute("select count(*) from points").fetchone()[0])
    except sqlite3.OperationalError:  # not there yet
        return 0


def outcome(storage: Path) -> dict[str, Any]:
    """Everything in the ledger but times."""
    ledger = Ledger.in_folder(storage)
    return {
        trial.trial: {
            "status": trial.status,
            "point": trial.point,
            "config": trial.config,
            "stages": ledger.trial_stages("small", trial.trial),
            "curve": [
                (p.kind, p.metric, p.step, p.value, p.audio_seconds)
                for p in ledger.curve("small", trial.trial)
                if p.metric != "real_time_factor"
            ],
        }
        for trial in ledger.trials("small")
    }


def mlflow_runs(storage: Path) -> dict[str, Any]:
    """name -> (status, metric histories) of every run in the study's MLflow database."""
    client = MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs: dict[str, Any] = {}
    for found in client.search_runs([experiment.experiment_id]):
        name = found.data.tags["study.key"]
        assert name not in runs, f"two runs for {name}"
        metrics = [metric for metric in found.data.metrics if not any(time in metric for time in TIMES)]
        histories = {m: client.get_metric_history(found.info.run_id, m) for m in metrics}
        runs[name] = (
            found.info.status,
            {m: sorted((point.step, point.value) for point in history) for m, history in histories.items()},
        )
    return runs


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("speech"), spanish_rows(40))


@pytest.fixture(scope="module")
def uninterrupted(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a study that ran in one go."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    code, output = run(write_sweep(folder / "sweep.yaml", two_arms(corpus, 30), inference_time={"repeats": 2}))
    assert code == 0, output
    assert "WARNING" not in output
    return folder / "results"


def test_a_group_may_go_on_with_what_one_of_it_began(uninterrupted: Path) -> None:
    files = [path for path in uninterrupted.rglob("*") if path.exists()]
    assert {"ledger.db", "mlflow.db"} < {path.name for path in files}
    assert not [path for path in files if path.stat().st_mode & 0o060 != 0o060]


def test_every_trial_and_stage_of_the_plan_is_there(uninterrupted: Path) -> None:
    trials = outcome(uninterrupted)
    assert len(trials) == 6
    assert all(trial["status"] == "finished" for trial in trials.values())
    pretrainings = {trial["stages"][0]["stage"] for name, trial in trials.items() if name.startswith("pretrain")}
    assert len(pretrainings) == 2, "two searched trials share one pre-training; the fresh seed has its own"
    assert len(list((uninterrupted / "stages" / "pretrain").iterdir())) == 2
    assert not list((uninterrupted / "stages").glob("*/*.partial"))
    assert not list((uninterrupted / "stages").glob("*/*.lease"))


def test_mlflow_mirrors_the_ledger(uninterrupted: Path) -> None:
    trials, runs = outcome(uninterrupted), mlflow_runs(uninterrupted)
    assert set(runs) == {"study", *trials}
    assert {status for status, _ in runs.values()} == {"FINISHED"}
    for name, trial in trials.items():
        expected = [(step, value) for _, metric, step, value, _ in trial["curve"] if metric == "dev_cer"]
        assert runs[name][1]["dev_cer"] == expected


def test_the_model_of_both_arms_was_timed_once_and_mlflow_has_it(uninterrupted: Path) -> None:
    ((found,),) = Ledger.in_folder(uninterrupted).inference_times("small").values()
    assert len(found.seconds) == 2
    runs = MlflowClient(f"sqlite:///{uninterrupted / 'mlflow.db'}").search_runs(["1"], "tags.`study.arm` = 'bl_just'")
    assert {run.data.metrics["answer/inference_seconds"] for run in runs} == {sum(found.seconds) / 2}


@pytest.mark.long
def test_a_study_that_is_interrupted_paused_and_stopped_ends_as_the_uninterrupted_one(
    corpus: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    sweep, storage = write_sweep(tmp_path / "sweep.yaml", two_arms(corpus, 30)), tmp_path / "results"

    def leases() -> list[Path]:
        return list((storage / "stages").glob("*/*.lease"))

    def order(verb: str) -> None:
        assert main([verb, "small", "--storage", str(storage)]) == 0

    process = start(sweep)
    wait_for(lambda: num_points(storage) > 10, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 130, output

    points = num_points(storage)
    process = start(sweep)
    wait_for(lambda: num_points(storage) > points, process)
    order("pause")
    wait_for(lambda: not leases(), process)
    time.sleep(2)  # what had been reported by then reaches the ledger
    points = num_points(storage)
    time.sleep(2)
    assert process.poll() is None
    assert (num_points(storage), leases()) == (points, [])
    order("resume")
    wait_for(lambda: num_points(storage) > points, process)
    order("stop")
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 130, output
    assert "stopped by `study stop small`" in output
    assert state_of(Ledger.in_folder(storage), "small") == "interrupted"

    code, output = run(sweep)
    assert code == 0, output
    assert outcome(storage) == outcome(uninterrupted)
    assert mlflow_runs(storage) == mlflow_runs(uninterrupted)


def test_a_finished_study_trains_nothing_when_run_again(uninterrupted: Path) -> None:
    def stages() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (uninterrupted / "stages").rglob("*")}

    before, trials, runs = stages(), outcome(uninterrupted), mlflow_runs(uninterrupted)
    code, output = run(uninterrupted.parent / "sweep.yaml")
    assert code == 0, output
    assert stages() == before
    assert outcome(uninterrupted) == trials
    assert mlflow_runs(uninterrupted) == runs


@pytest.mark.long
def test_two_workers_give_the_curve_of_one(corpus: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """DistributedDataParallel over gloo; the difference is float32 summation order, grown over 60 updates."""
    arms = {"bl_just": two_arms(corpus, 30)["bl_just"]}
    sweep = write_sweep(tmp_path / "sweep.yaml", arms, replication={"seeds": 0}, mlflow={"enabled": False})
    code, output = run(sweep, "resources.workers=2", "search.trials=1")
    assert code == 0, output
    one, two = outcome(uninterrupted), outcome(tmp_path / "results")
    assert set(two) == {"bl_just-000"}
    for name, trial in two.items():
        losses = [point for point in trial["curve"] if not point[1].startswith(("dev_", "test_"))]
        expected = [point for point in one[name]["curve"] if not point[1].startswith(("dev_", "test_"))]
        assert [point[:3] for point in losses] == [point[:3] for point in expected]
        assert [p[3] for p in losses] == pytest.approx([p[3] for p in expected], rel=2e-3, abs=2e-3)
        assert [p[4] for p in losses] == pytest.approx([p[4] for p in expected])


def test_failures_are_recorded_and_the_study_goes_on(corpus: Path, tmp_path: Path) -> None:
    broken = write_corpus(tmp_path / "broken", spanish_rows(40))
    victim = next(broken.glob("audio/*.ogg"))
    victim.write_bytes(b"this is no audio")
    long = pretrain_finetune(4)
    long["pretrain"]["steps"] = 100_000
    arms = {
        "bad_audio": {"trial": small_trial(broken, pretrain_finetune())},
        "diverges": {"trial": small_trial(corpus, pretrain_finetune(learning_rate=1e30))},
        "killed": {"trial": small_trial(corpus, long)},
        "fine": {"trial": small_trial(corpus, pretrain_finetune())},
    }
    sweep, storage = (
        write_sweep(tmp_path / "sweep.yaml", arms, search={"trials": 1, "metric": "dev_cer"}),
        (tmp_path / "results"),
    )
    process = start(sweep, "replication.seeds=0", "resources.retries=0")
    partial = storage / "stages" / "pretrain"
    wait_for(lambda: any("100000steps" in lease.name for lease in partial.glob("*.lease")), process)
    lease = next(lease for lease in partial.glob("*.lease") if "100000steps" in lease.name)
    os.kill(int(lease.read_text().split()[1]), signal.SIGKILL)
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)

    assert process.returncode == 3, output
    trials = {trial.arm: trial for trial in Ledger.in_folder(storage).trials("small")}
    assert victim.name in (trials["bad_audio"].cause or "")
    assert "DivergedError: training diverged at step" in (trials["diverges"].cause or "")
    assert "pretrain: its process was killed by SIGKILL" in (trials["killed"].cause or "")
    assert trials["fine"].status == "finished"
    assert "cannot be decoded" in output
    assert (storage / "reports" / "small" / "report.html").is_file()
    assert mlflow_runs(storage)["bad_audio-000"][0] == "FAILED"


def test_a_bad_sweep_is_refused_before_anything_starts(corpus: Path, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep.yaml", two_arms(corpus, 4))
    code, output = run(sweep, "serch.trials=1")
    assert code == 2
    assert "unknown field 'serch'; did you mean 'search'?" in output
    assert not (tmp_path / "results").exists()


@pytest.mark.long
def test_a_cluster_that_is_too_small_is_refused(corpus: Path, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep.yaml", two_arms(corpus, 4))
    code, output = run(sweep, "resources.workers=1000")
    assert code == 2
    assert "a worker group needs 1000 worker(s)" in output


@pytest.mark.long
def test_a_budget_ends_a_study_in_good_order_and_a_larger_one_goes_on(corpus: Path, tmp_path: Path) -> None:
    long = {"steps": 120, "batch_seconds": 6, "report_every": 10, "evaluate_every": 60, "checkpoint_seconds": 0.1}
    arms = {"supervised": {"trial": small_trial(corpus, {"kind": "supervised", "train": long})}}
    sweep = write_sweep(tmp_path / "sweep.yaml", arms, replication={"seeds": 0}, mlflow={"enabled": False})
    ledger = Ledger.in_folder(tmp_path / "results")

    code, output = run(sweep, "stop.accelerator_hours=1e-6")
    assert code == 0, output
    assert "stopped: stop.accelerator_hours is 1e-06" in output
    assert "a larger budget goes on" in output
    assert not ledger.is_over("small")
    assert ledger.count("small")["unfinished"] == 1

    code, output = run(sweep, "stop.accelerator_hours=1")
    assert code == 0, output
    assert ledger.is_over("small")
    assert ledger.count("small")["finished"] == 1


def test_a_study_that_runs_is_refused_to_a_second_process(corpus: Path, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep.yaml", two_arms(corpus, 30), mlflow={"enabled": False})
    process = start(sweep)
    wait_for((tmp_path / "results" / "studies" / "small.lease").exists, process)
    code, output = run(sweep)
    assert process.poll() is None
    process.kill()
    process.communicate()
    assert code == 2, output
    assert "study 'small' is being run by another process" in output
