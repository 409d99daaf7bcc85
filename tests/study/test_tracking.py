"""The mirror against a real MLflow server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from study.database import read_only_url
from study.ledger import Ledger
from study.tracking import BATCH, Conclusion, Mirror, MirrorProcess, RunResults, mirror_problems, tracking_uri
from tests.conftest import pretrain_finetune, small_trial
from tests.processes import eventually, is_alive
from tests.study.builders import open_study, run_trial, spec_of
from trainables.stage import Report
from trainables.trial import TrialConfig, stages_of

pytestmark = pytest.mark.slow


class Server:
    """A real `mlflow server` on loopback, which can be killed and started again on the same data."""

    def __init__(self, folder: Path, store: str | None = None) -> None:
        """`store` is the URL of its database, which no command line shows; else it is SQLite in the folder."""
        self._folder, self._store = folder, store or f"sqlite:///{folder / 'server.db'}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--artifacts-destination", str(self._folder / "artifacts"), "--workers", "1"]
        environment = {
            **os.environ,
            "MLFLOW_BACKEND_STORE_URI": self._store,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes more
        }
        log = (self._folder / "server.log").open("ab")
        self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        deadline = time.monotonic() + 300
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                assert time.monotonic() < deadline, (self._folder / "server.log").read_text()
                time.sleep(0.3)

    def kill(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


def report(step: int, **metrics: float) -> Report:
    return Report(
        step=step,
        metrics=metrics,
        audio_seconds=10.0 * step,
        epochs=0.5 * step,
        elapsed_seconds=2.0 * step,
        accelerator_seconds=2.0 * step,
        reported_at=1_700_000_000.0 + step,
        device="NVIDIA H200",
    )


@pytest.fixture
def ledger(tmp_path: Path, small_corpus: Path, request: pytest.FixtureRequest) -> Ledger:
    """Two trials that share a pre-training: one finished, one under way. The study is named after the test."""
    ledger = Ledger.in_folder(tmp_path)
    study = study_of(request)
    ledger.open_study(study, {"question": "Is it mirrored?"}, {})
    config = TrialConfig.model_validate(small_trial(small_corpus, pretrain_finetune()))
    stages = stages_of(config)
    for number, name in enumerate(("arm-000", "arm-001")):
        ledger.add_trial(
            study,
            name,
            arm="arm",
            number=number,
            origin="search",
            grid={},
            point={"seed": 0},
            config=config.model_dump(mode="json"),
            seed=0,
            stages=stages if number == 0 else stages[:1],
        )
    ledger.append(stages[0].fingerprint(), [report(step, contrastive=4.0 - step) for step in (1, 2)])
    ledger.append(stages[1].fingerprint(), [report(1, ctc=9.0), report(2, ctc=8.0, dev_cer=0.5, dev_wer=0.9)])
    ledger.end_trial(study, "arm-000", "finished")
    return ledger


def study_of(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def runs(uri: str, study: str) -> dict[str, Run]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    keys = [run.data.tags["study.key"] for run in found]
    assert len(keys) == len(set(keys)), f"a run is there twice: {keys}"
    return dict(zip(keys, found, strict=True))


def history(uri: str, run: Run, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient(uri).get_metric_history(run.info.run_id, metric)]


def check_content(uri: str, study: str) -> None:
    """What the ledger of the fixture looks like in MLflow: steps count on over the stages."""
    found = runs(uri, study)
    assert set(found) == {"study", "arm-000", "arm-001"}
    trial = found["arm-000"]
    assert history(uri, trial, "pretrain/contrastive") == [(1, 3.0), (2, 2.0)]
    assert history(uri, trial, "finetune/ctc") == [(3, 9.0), (4, 8.0)]
    assert history(uri, trial, "dev_cer") == [(4, 0.5)]
    assert history(uri, trial, "cost/accelerator_seconds") == [(4, 8.0)]
    assert history(uri, found["arm-001"], "pretrain/contrastive") == [(1, 3.0), (2, 2.0)]
    assert trial.data.params["regime.finetune.learning_rate"] == "0.001"
    assert trial.data.tags["mlflow.parentRunId"] == found["study"].info.run_id
    assert trial.data.tags["study.devices"] == "NVIDIA H200"
    assert trial.info.status == "FINISHED"


def test_mirroring_again_changes_nothing(
    server: Server, ledger: Ledger, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    study = study_of(request)
    mirror = Mirror(ledger, study, tmp_path, server.uri)
    mirror.sync(live=True)
    mirror.sync(live=True)
    check_content(server.uri, study)
    Mirror(ledger, study, tmp_path, server.uri).sync(live=True)  # as after a crash of the mirror
    check_content(server.uri, study)
    statuses = {key: run.info.status for key, run in runs(server.uri, study).items()}
    assert statuses == {"study": "RUNNING", "arm-000": "FINISHED", "arm-001": "RUNNING"}


def test_a_lost_cursor_duplicates_nothing(
    server: Server, ledger: Ledger, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Killed between sending a batch and writing the cursor, the mirror sends that batch again."""
    study = study_of(request)
    Mirror(ledger, study, tmp_path, server.uri).sync(live=True)
    with sa.create_engine(ledger.url).begin() as db:
        assert db.execute(sa.text("delete from mirrored")).rowcount > 0
    Mirror(ledger, study, tmp_path, server.uri).sync(live=True)
    check_content(server.uri, study)


def test_unfinished_trials_of_a_study_that_stopped_are_killed_and_run_again_later(
    server: Server, ledger: Ledger, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    study = study_of(request)
    mirror = Mirror(ledger, study, tmp_path, server.uri)
    mirror.sync(live=False)
    assert runs(server.uri, study)["arm-001"].info.status == "KILLED"
    mirror.sync(live=True)
    assert runs(server.uri, study)["arm-001"].info.status == "RUNNING"
    ledger.end_trial(study, "arm-001", "failed", "finetune: DivergedError: too hot")
    mirror.sync(live=False)
    failed = runs(server.uri, study)["arm-001"]
    assert failed.info.status == "FAILED"
    assert failed.data.tags["study.cause"] == "finetune: DivergedError: too hot"


@pytest.mark.long
def test_the_process_catches_up_with_a_server_that_comes_back(
    ledger: Ledger, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    study, server = study_of(request), Server(tmp_path)
    process = MirrorProcess(ledger.url, study, tmp_path, server.uri)  # no server listens yet
    try:
        time.sleep(2)
        server.start()
        folder = tmp_path / "report"
        folder.mkdir()
        (folder / "report.html").write_text("<p>answer</p>")
        results = {"study": RunResults({"arm/dev_cer": 0.4}, {"target": "dev_cer <= 0.5"})}
        assert process.finish(Conclusion(folder, "It is mirrored.", results)), process.log.read_text()
        check_content(server.uri, study)
        parent = runs(server.uri, study)["study"]
        assert parent.data.tags["mlflow.note.content"] == "It is mirrored."
        assert parent.data.tags["study.target"] == "dev_cer <= 0.5"
        assert parent.data.metrics["answer/arm/dev_cer"] == 0.4
        artifacts = MlflowClient(server.uri).list_artifacts(parent.info.run_id, "report")
        assert [artifact.path for artifact in artifacts] == ["report/report.html"]
    finally:
        server.kill()


def test_no_url_is_visible_in_the_process_list(
    server: Server, ledger: Ledger, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    process = MirrorProcess(ledger.url, study_of(request), tmp_path, server.uri)
    while not (command := Path(f"/proc/{process.pid}/cmdline").read_bytes()):  # empty for a moment while it starts
        time.sleep(0.001)
    assert b"study.tracking" in command
    assert b"://" not in command
    assert process.finish(None)


def test_a_server_that_is_gone_ends_in_a_no_and_its_password_is_not_in_the_log(
    ledger: Ledger, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = Server(tmp_path).uri.replace("//", "//me:s3cret@")  # nobody listens there
    process = MirrorProcess(ledger.url, study_of(request), tmp_path, uri)
    assert not process.finish(None)
    log = process.log.read_text()
    assert "Error" in log or "Exception" in log
    assert "s3cret" not in log


def test_more_points_than_one_request_holds_arrive_once_each(
    server: Server, ledger: Ledger, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    study = study_of(request)
    (stage,) = ledger.trial_stages(study, "arm-001")
    count = 2 * BATCH + BATCH // 2
    ledger.append(stage["stage"], [report(step, diversity=1 / step) for step in range(1, count + 1)])
    for _ in range(2):
        Mirror(ledger, study, tmp_path, server.uri).sync(live=True)
        found = history(server.uri, runs(server.uri, study)["arm-001"], "pretrain/diversity")
        assert sorted(found) == [(step, 1 / step) for step in range(1, count + 1)]


def test_a_retried_trial_sheds_the_cause_of_its_failure(
    server: Server, ledger: Ledger, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    study = study_of(request)
    ledger.end_trial(study, "arm-001", "failed", "the disk is full")
    Mirror(ledger, study, tmp_path, server.uri).sync(live=False)
    ledger.reopen_failed(study)
    Mirror(ledger, study, tmp_path, server.uri).sync(live=True)
    assert runs(server.uri, study)["arm-001"].info.status == "RUNNING"
    ledger.end_trial(study, "arm-001", "finished")
    Mirror(ledger, study, tmp_path, server.uri).sync(live=False)
    trial = runs(server.uri, study)["arm-001"]
    assert trial.info.status == "FINISHED"
    assert "study.cause" not in trial.data.tags


STUDY = """
import sys, time
from pathlib import Path
from study.tracking import MirrorProcess

print(MirrorProcess(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]).pid, flush=True)
time.sleep(600)
"""


def test_when_the_study_is_killed_the_mirror_says_so_and_ends(
    server: Server, ledger: Ledger, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    study = study_of(request)
    words = [sys.executable, "-c", STUDY, ledger.url, study, str(tmp_path), server.uri]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    mirror = int(process.stdout.readline())
    process.kill()
    process.wait()
    assert eventually(lambda: not is_alive(mirror))
    check_content(server.uri, study)
    statuses = {key: run.info.status for key, run in runs(server.uri, study).items()}
    assert statuses == {"study": "FINISHED", "arm-000": "FINISHED", "arm-001": "KILLED"}


def test_a_mirror_that_is_killed_is_started_again_at_the_end(
    server: Server, ledger: Ledger, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    study = study_of(request)
    process = MirrorProcess(ledger.url, study, tmp_path, server.uri)
    os.kill(process.pid, signal.SIGKILL)
    assert process.finish(None), process.log.read_text()
    assert list(mirror_problems(ledger, study, server.uri)) == []


@pytest.mark.long
def test_a_server_that_is_killed_in_between_has_everything_after_the_next_run(
    server: Server, ledger: Ledger, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    study = study_of(request)
    process = MirrorProcess(ledger.url, study, tmp_path, server.uri)
    assert eventually(lambda: ledger.mirrored(server.uri, study, "arm-001") != {}), process.log.read_text()
    server.kill()
    try:
        (stage,) = ledger.trial_stages(study, "arm-001")
        ledger.append(stage["stage"], [report(3, contrastive=1.0)])
        assert not process.finish(None)
    finally:
        server.start()
    again = MirrorProcess(ledger.url, study, tmp_path, server.uri)
    assert again.finish(None), again.log.read_text()
    found = runs(server.uri, study)
    assert set(found) == {"study", "arm-000", "arm-001"}
    assert history(server.uri, found["arm-001"], "pretrain/contrastive") == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_the_sweep_file_comes_before_the_environment_before_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(tmp_path, None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-environment")
    assert tracking_uri(tmp_path, None) == "http://from-environment"
    assert tracking_uri(tmp_path, "http://from-sweep") == "http://from-sweep"


def test_the_storage_folder_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of signs that mean something in a URL."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    storage = tmp_path / "half (50% of a%20b)? é#1"
    with closing(open_study(spec_of(storage))) as ledger:
        run_trial(ledger, spec_of(storage), "slow", curve={10: 0.9})
        Mirror(ledger, "race", storage, tracking_uri(storage, None)).sync(live=False)
    assert {"ledger.db", "mlflow.db"} <= {path.name for path in storage.iterdir()}
    with closing(Ledger(read_only_url(storage / "ledger.db"))) as ledger:
        assert len(ledger.trials("race")) == 1
    assert len(MlflowClient(tracking_uri(storage, None)).search_runs(["1"])) == 2
