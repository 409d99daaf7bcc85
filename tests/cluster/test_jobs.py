"""A study as jobs of a cluster: `ray job submit`, also with the ledger and MLflow on a PostgreSQL server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from study.audit import audit
from study.ledger import Ledger, LedgerError
from study.spec import read_spec
from tests.cluster.clusters import Head, free_port
from tests.conftest import small_trial, spanish_rows, write_corpus
from tests.study.postgresql import PASSWORD, PostgreSQL, binaries
from tests.study.test_end_to_end import write_sweep
from tests.study.test_tracking import Server
from tests.study.webhooks import Listener, listening
from trainables.stage import StageResult

pytestmark = [pytest.mark.slow, pytest.mark.ray]

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 300
LONG_STEPS = 600
SOME_STEPS = 20  # so many more are waited for before a job is ended
BUSY = re.compile(r"ray_study_accelerators_busy\{[^}]*\} 1\.0")
STUDY = ("python", "-m", "study.run", "sweep.yaml")


@dataclass(frozen=True)
class Place:
    """A cluster whose environment names a ledger and an MLflow server, both on PostgreSQL."""

    head: Head
    ledger_url: str
    mlflow_uri: str
    mlflow_folder: Path
    metrics_url: str
    webhook: Listener


def submit(head: Head, name: str, sweep: Path) -> subprocess.Popen[str]:
    """`ray job submit` of the folder that the sweep is in, which prints the job's log and ends with the job."""
    words = ("job", "submit", "--submission-id", name, "--working-dir", str(sweep.parent))
    return head.start("ray", *words, "--", *STUDY)


def status_of(head: Head, name: str) -> str:
    return head.run("ray", "job", "status", name)[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if binaries() is None:
        pytest.skip("there is no PostgreSQL here")
    postgresql = PostgreSQL()
    postgresql.start()
    ledger_url, folder = postgresql.new_database(), tmp_path_factory.mktemp("mlflow")
    mlflow = Server(folder, store=postgresql.new_database())
    port = free_port()
    with listening() as webhook:
        environment = {"STUDY_LEDGER": ledger_url, "MLFLOW_TRACKING_URI": mlflow.uri, "STUDY_WEBHOOK": webhook.url}
        head = Head("--num-cpus", "2", "--metrics-export-port", str(port), **environment)
        try:
            mlflow.start()
            head.wait_for("ray", "job", "list")
            yield Place(head, ledger_url, mlflow.uri, folder, f"http://127.0.0.1:{port}/metrics", webhook)
        finally:
            head.end()
            mlflow.kill()
            postgresql.remove()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("speech"), spanish_rows(40))


def supervised(corpus: Path, steps: int, **train: Any) -> dict[str, Any]:
    settings = {"steps": steps, "batch_seconds": 6, "report_every": 1, "evaluate_every": steps, **train}
    return {"trial": small_trial(corpus, {"kind": "supervised", "train": settings})}


def write(folder: Path, study: str, storage: Path | str, arms: dict[str, Any]) -> Path:
    """A sweep alone in a new folder, of which a job gets a copy; one trial of each arm, one after another."""
    folder.mkdir()
    search = {"trials": 1, "metric": "dev_cer", "sampler": {"kind": "random"}}
    changes = {"study": study, "storage": str(storage), "search": search, "replication": {"seeds": 0}}
    return write_sweep(folder / "sweep.yaml", arms, **changes)


def output_of(job: subprocess.Popen[str]) -> str:
    return job.communicate(timeout=TIMEOUT_SECONDS)[0]


# ---- without services ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    head = Head("--num-cpus", "2")
    try:
        head.wait_for("ray", "job", "list")
        yield head
    finally:
        head.end()


def test_a_job_runs_a_study_to_its_end(head: Head, corpus: Path, tmp_path: Path) -> None:
    storage = tmp_path / "results"
    job = submit(head, "whole", write(tmp_path / "sweep", "small", storage, {"only": supervised(corpus, 2)}))
    output = output_of(job)
    assert job.returncode == 0, output
    assert "succeeded" in status_of(head, "whole")
    assert "only-000" in output
    assert Ledger.in_folder(storage).is_over("small")


def test_a_relative_storage_is_refused(head: Head, corpus: Path, tmp_path: Path) -> None:
    """It would be in the job's copy of the working directory, which goes away."""
    job = submit(head, "relative", write(tmp_path / "sweep", "relative", "results", {"only": supervised(corpus, 2)}))
    output = output_of(job)
    assert job.returncode == 1
    assert "storage: must be absolute in a Ray job" in output
    assert "failed with exit code 2" in status_of(head, "relative")


# ---- a study in three jobs -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Three:
    """A study whose first job was stopped, whose second job was killed, and whose third one came to its end."""

    sweep: Path
    storage: Path
    names: tuple[str, ...]
    codes: tuple[int, ...]  # of `ray job submit`
    outputs: tuple[str, ...]
    stopped_at: float
    killed_at: float
    commands: set[bytes]  # command lines seen meanwhile
    metrics: str  # of the cluster's exporter, while the second job ran
    heard: list[dict[str, Any]]  # by the webhook


@pytest.fixture(scope="module")
def three(place: Place, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Three:
    folder = tmp_path_factory.mktemp("study")
    arms = {"quick": supervised(corpus, 2), "long": supervised(corpus, LONG_STEPS, checkpoint_seconds=0.2)}
    sweep, storage = write(folder / "sweep", "small", folder / "results", arms), folder / "results"
    commands: set[bytes] = set()

    def submit_until(name: str, points: int) -> subprocess.Popen[str]:
        job = submit(place.head, name, sweep)
        wait_for(lambda: num_points(place.ledger_url) >= points, job, commands)
        return job

    first = submit_until("first", SOME_STEPS)
    assert place.head.run("ray", "job", "stop", "first")[0] == 0
    stopped_at, output = time.time(), output_of(first)
    second = submit_until("second", num_points(place.ledger_url) + SOME_STEPS)
    wait_for(lambda: BUSY.search(metrics_of(place)) is not None, second, commands)
    metrics = metrics_of(place)
    os.kill(int((storage / "studies" / "small.lease").read_text().split()[1]), signal.SIGKILL)
    killed_at = time.time()
    third = submit(place.head, "third", sweep)
    outputs = (output, output_of(second), output_of(third))
    codes = (first.returncode, second.returncode, third.returncode)
    names, heard = ("first", "second", "third"), list(place.webhook.heard)
    return Three(sweep, storage, names, codes, outputs, stopped_at, killed_at, commands, metrics, heard)


def metrics_of(place: Place) -> str:
    with urllib.request.urlopen(place.metrics_url, timeout=10) as answer:
        return str(answer.read().decode())


def num_points(ledger_url: str) -> int:
    """How many values of its curve the long trial has."""
    try:
        return len(Ledger(ledger_url).curve("small", "long-000"))
    except LedgerError:  # it has not begun
        return 0


def wait_for(condition: Callable[[], bool], job: subprocess.Popen[str], commands: set[bytes]) -> None:
    """Until the condition holds; fails when the job ends first."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert job.poll() is None, output_of(job)
        assert time.monotonic() < deadline, "the study did not come as far as it should"
        commands |= command_lines()
        time.sleep(0.2)


def command_lines() -> set[bytes]:
    """Of all processes of this machine."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.add(path.read_bytes())
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
    return found


@pytest.mark.long
def test_a_job_tells_how_it_ended(place: Place, three: Three) -> None:
    """`ray job submit` itself fails with the job, and not when somebody stops it."""
    assert three.codes == (0, 1, 0), three.outputs
    statuses = [status_of(place.head, name) for name in three.names]
    for status, expected in zip(statuses, ("was stopped", "failed", "succeeded"), strict=True):
        assert expected in status


@pytest.mark.long
def test_what_is_finished_is_not_run_again_and_what_is_not_goes_on_from_its_checkpoint(three: Three) -> None:
    assert "quick-000: started" in three.outputs[0]
    for output in three.outputs[1:]:
        assert "quick-000: started" not in output
        assert "long-000: started" in output
    (result,) = [
        found
        for path in (three.storage / "stages").glob("*/*/result.json")
        if (found := StageResult.model_validate_json(path.read_text())).last.step == LONG_STEPS
    ]
    times = [report.reported_at for report in result.reports]
    assert times[SOME_STEPS // 2] < three.stopped_at
    assert any(three.stopped_at < reported_at < three.killed_at for reported_at in times)
    assert times[-1] > three.killed_at
    assert [report.step for report in result.reports] == list(range(1, LONG_STEPS + 1))


@pytest.mark.long
def test_ledger_and_mlflow_on_postgresql_hold_everything_once(place: Place, three: Three) -> None:
    spec, ledger = read_spec(three.sweep, [f"mlflow.tracking_uri={place.mlflow_uri}"]), Ledger(place.ledger_url)
    assert not (three.storage / "ledger.db").exists()
    assert not (three.storage / "mlflow.db").exists()
    assert {trial.trial: trial.status for trial in ledger.trials("small")} == {
        "quick-000": "finished",
        "long-000": "finished",
    }
    assert audit(spec, ledger) == []
    assert ledger.is_over("small")


@pytest.mark.long
def test_prometheus_gets_all_that_the_dashboard_shows(three: Three) -> None:
    wanted = set(re.findall(r"ray_study_\w+", (ROOT / "cluster" / "grafana.json").read_text()))
    assert len(wanted) == 7
    found = {
        (name, status): float(value)
        for name, labels, value in re.findall(r"^(ray_study_\w+)\{(.*)\} (\S+)$", three.metrics, re.MULTILINE)
        if 'study="small"' in labels
        for status in re.findall(r'status="(\w+)"', labels) or [""]
    }
    assert {name for name, _ in found} == wanted
    assert found["ray_study_trials", "finished"] == found["ray_study_trials", "unfinished"] == 1
    assert found["ray_study_trials", "failed"] == 0
    assert found["ray_study_accelerators_held", ""] == found["ray_study_accelerators_busy", ""] == 1


@pytest.mark.long
def test_the_webhook_hears_of_the_end_and_not_of_interruptions(three: Three) -> None:
    assert [(word["event"], word["study"]) for word in three.heard] == [("finished", "small")]
    assert three.heard[0]["trials"]["finished"] == 2


@pytest.mark.long
def test_no_password_and_no_token_is_in_a_log_a_file_or_a_command_line(place: Place, three: Three) -> None:
    folders = (place.head.folder, three.storage, place.mlflow_folder)
    files = {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert any(path.name.startswith("job-driver-first") for path in files)
    for secret in (PASSWORD.encode(), place.head.environment["RAY_AUTH_TOKEN"].encode()):
        assert not [path for path, content in files.items() if secret in content]
        assert not [command for command in three.commands if secret in command]


@pytest.mark.long
def test_a_job_whose_trials_fail_has_failed_and_says_which(place: Place, corpus: Path, tmp_path: Path) -> None:
    arms = {"diverges": supervised(corpus, 10, learning_rate=1e30)}
    job = submit(place.head, "failing", write(tmp_path / "sweep", "failing", tmp_path / "results", arms))
    output = output_of(job)
    assert job.returncode == 1
    assert "diverges-000" in output
    assert "training diverged at step" in output
    assert "failed with exit code 3" in status_of(place.head, "failing")
    events = [word["event"] for word in place.webhook.heard if word["study"] == "failing"]
    assert events == ["failure", "finished"]
