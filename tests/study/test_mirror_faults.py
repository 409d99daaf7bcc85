"""The mirror behind a proxy that fails: everything arrives, nothing twice, and nobody else waits."""

from __future__ import annotations

import http.client
import os
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mlflow.exceptions import MlflowException

from study import tracking
from study.ledger import Ledger, Status
from study.spec import StudySpec
from study.tracking import Mirror, MirrorProcess
from tests.study.builders import add_trial, dev_curve, open_study, report, run_trial, spec_of
from tests.study.test_tracking import Server

pytestmark = pytest.mark.slow

TRIALS = 20
ENDS: tuple[Status, ...] = ("finished", "stopped", "failed", "unfinished")
MLFLOW_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED", "unfinished": "KILLED"}

Fault = int | Callable[[], None] | None  # a status to answer with; or what to do before the answer is lost
Plan = Callable[[str], Fault]  # path of a request -> what goes wrong with it


class Proxy(ThreadingHTTPServer):
    """Passes requests on to the server, and fails as it is told."""

    daemon_threads = True

    def __init__(self, server: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.server_name_and_port = urlsplit(server).netloc
        self.uri = f"http://127.0.0.1:{self.server_address[1]}"
        self.before: Callable[[str], None] = lambda path: None  # what to do first, such as waiting
        self.plan: Plan = lambda path: None
        self.seen: Counter[str] = Counter()

    def handle_error(self, *_: object) -> None:
        """The client has gone away: that is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: Proxy

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        self.server.seen[path] += 1
        fault = self.server.plan(path)
        self.server.before(path)
        if isinstance(fault, int):
            self.send_response(fault)
            self.send_header("Retry-After", "3600")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        upstream = http.client.HTTPConnection(self.server.server_name_and_port, timeout=30)
        with closing(upstream):
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            content = answer.read()
        if callable(fault):  # the work is done, the answer is lost
            fault()
            self.close_connection = True
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

    def log_message(self, *_: object) -> None:
        pass


def lose() -> None:
    """The connection closes without an answer."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(server.uri)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    yield proxy
    proxy.shutdown()
    proxy.server_close()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the mirror's process, but for the time that a request may take: on a busy machine, long."""
    for name, value in {**tracking._PATIENCE, "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def spec(tmp_path: Path, request: pytest.FixtureRequest) -> StudySpec:
    return spec_of(tmp_path, study=f"s{abs(hash(request.node.name))}")


@pytest.fixture
def ledger(spec: StudySpec) -> Iterator[Ledger]:
    with closing(open_study(spec)) as ledger:
        yield ledger


def add_trials(ledger: Ledger, spec: StudySpec, count: int) -> None:
    for number in range(count):
        status, curve = ENDS[number % len(ENDS)], {10: 0.9, 20: 0.5 + number / 100}
        cause = None if status in ("finished", "unfinished") else "a cause"
        run_trial(ledger, spec, "slow", number, rate=1e-3 + number / 1e5, curve=curve, status=status, cause=cause)


def check(folder: Path, ledger: Ledger, study: str) -> None:
    """MLflow's database has the ledger's trials and curves, each once. Read without MLflow's code."""
    runs = (
        "runs r join tags k on k.run_uuid = r.run_uuid and k.key = 'study.key' and r.lifecycle_stage = 'active' "
        "join experiments e on e.experiment_id = r.experiment_id and e.name = ?"
    )
    learning_rate = "p.key = 'regime.train.learning_rate'"
    with closing(sqlite3.connect(folder / "server.db", timeout=30)) as db:
        found = db.execute(f"select k.value, r.status from {runs}", [study]).fetchall()
        points = db.execute(
            f"select k.value, m.key, m.step, m.value from {runs} join metrics m on m.run_uuid = r.run_uuid", [study]
        ).fetchall()
        params = db.execute(
            f"select k.value, p.value from {runs} join params p on p.run_uuid = r.run_uuid where {learning_rate}",
            [study],
        ).fetchall()
    trials = ledger.trials(study)
    assert sorted(found) == sorted([("study", "FINISHED"), *((t.trial, MLFLOW_STATUS[t.status]) for t in trials)])
    expected = [(t.trial, p.metric, p.step, p.value) for t in trials for p in ledger.curve(study, t.trial)]
    assert sorted(p for p in points if not p[1].startswith("cost/")) == sorted(expected)
    ended = [t.trial for t in trials if t.status != "unfinished"]
    for cost in ("cost/audio_hours", "cost/accelerator_seconds"):
        assert sorted(p[0] for p in points if p[1] == cost) == sorted(ended)
    assert sorted(params) == sorted((t.trial, str(t.config["regime"]["train"]["learning_rate"])) for t in trials)


def sync_until_it_succeeds(mirror: Mirror, attempts: int = 400) -> int:
    """Returns how often it failed."""
    for failures in range(attempts):
        try:
            mirror.sync(live=False)
            return failures
        except MlflowException:
            continue
    raise AssertionError("the mirror never came to its end")


def nothing_is_held(ledger: Ledger) -> bool:
    """Whether no connection holds a lock or a read snapshot: only then can the whole log be written back."""
    with closing(sqlite3.connect(ledger.name, timeout=0)) as db:
        ((busy, *_),) = db.execute("pragma wal_checkpoint(truncate)").fetchall()
        return not busy


@pytest.mark.long
def test_under_random_faults_all_arrives_once_and_the_ledger_is_free_at_every_request(
    folder: Path, proxy: Proxy, ledger: Ledger, spec: StudySpec
) -> None:
    add_trials(ledger, spec, TRIALS)
    rng = random.Random(0)
    faults: list[Fault] = [429, 500, 503, lose, lose, *[None] * 20]
    held: list[str] = []
    proxy.plan = lambda path: rng.choice(faults)
    proxy.before = lambda path: None if nothing_is_held(ledger) else held.append(path)
    failures = sync_until_it_succeeds(Mirror(ledger, spec.study, spec.storage, proxy.uri))
    assert failures > 10
    assert held == []
    check(folder, ledger, spec.study)


def test_the_lost_answer_to_any_request_doubles_nothing(
    folder: Path, proxy: Proxy, ledger: Ledger, spec: StudySpec
) -> None:
    """The first request of each kind, such as `runs/create`, is done and not answered."""
    add_trials(ledger, spec, 4)
    held: list[str] = []
    proxy.plan = lambda path: lose if proxy.seen[path] == 1 else None
    proxy.before = lambda path: None if nothing_is_held(ledger) else held.append(path)
    failures = sync_until_it_succeeds(Mirror(ledger, spec.study, spec.storage, proxy.uri))
    assert {"/api/2.0/mlflow/runs/create", "/api/2.0/mlflow/runs/log-batch"} <= set(proxy.seen)
    assert failures == len(proxy.seen)
    assert held == []
    check(folder, ledger, spec.study)


def test_a_run_that_a_slow_server_makes_after_all_goes_again(
    folder: Path, proxy: Proxy, ledger: Ledger, spec: StudySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = "/api/2.0/mlflow/runs/create"
    arrived = threading.Event()

    def wait(path: str) -> None:  # longer than the mirror does
        if path == create and proxy.seen[path] == 2:  # the trial's; the first is the study's
            arrived.wait(300)
            time.sleep(0.1)

    proxy.before = wait
    mirror = Mirror(ledger, spec.study, spec.storage, proxy.uri)
    mirror.sync(live=True)
    add_trials(ledger, spec, 1)
    with monkeypatch.context() as impatient:
        impatient.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
        while proxy.seen[create] < 2:
            with pytest.raises(MlflowException, match="timed out"):
                mirror.sync(live=True)
    mirror.sync(live=True)  # looks, finds none, and makes another
    before = runs_of(folder, "slow-000", spec.study)
    arrived.set()
    while len(runs_of(folder, "slow-000", spec.study)) < 2:
        time.sleep(0.05)
    mirror.sync(live=False)
    assert runs_of(folder, "slow-000", spec.study) == before
    check(folder, ledger, spec.study)


def test_of_two_runs_of_a_trial_one_stays_and_has_all_its_points(
    folder: Path, proxy: Proxy, ledger: Ledger, spec: StudySpec
) -> None:
    """Whichever of them the mirror that was killed had filled."""
    add_trials(ledger, spec, 2)
    mirror = Mirror(ledger, spec.study, spec.storage, proxy.uri)
    mirror.sync(live=False)
    for trial in ("slow-000", "slow-001"):
        for _ in range(3):
            mirror._client.create_run(mirror._experiment_id(), tags={"study.key": trial})
    assert len(runs_of(folder, "slow-000", spec.study)) == 4
    Mirror(ledger, spec.study, spec.storage, proxy.uri).sync(live=False)
    check(folder, ledger, spec.study)


def runs_of(folder: Path, trial: str, study: str) -> list[str]:
    with closing(sqlite3.connect(folder / "server.db", timeout=30)) as db:
        query = (
            "select run_uuid from runs join tags using (run_uuid) join experiments using (experiment_id) "
            "where key = 'study.key' and value = ? and experiments.name = ? and runs.lifecycle_stage = 'active'"
        )
        return [run for (run,) in db.execute(query, [trial, study])]


def test_while_a_request_hangs_the_ledger_is_written_as_ever(proxy: Proxy, ledger: Ledger, spec: StudySpec) -> None:
    name, (stage,) = add_trial(ledger, spec, "slow")
    ledger.append(stage.fingerprint(), dev_curve({10: 0.9}))
    hangs, goes_on = threading.Event(), threading.Event()

    def wait(path: str) -> None:
        if path.endswith("/log-batch"):
            hangs.set()
            goes_on.wait(60)

    proxy.before = wait
    mirror = Mirror(ledger, spec.study, spec.storage, proxy.uri)

    def sync() -> None:
        with suppress(Exception):
            mirror.sync(live=True)

    thread = threading.Thread(target=sync)
    thread.start()
    assert hangs.wait(60)
    try:
        with closing(sqlite3.connect(ledger.name, timeout=0)) as db:
            db.execute("begin exclusive")
            db.rollback()
        assert nothing_is_held(ledger)
        ledger.append(stage.fingerprint(), [report(20, dev_cer=0.5)])
        assert [p.step for p in ledger.curve(spec.study, name, "dev_cer")] == [10, 20]
    finally:
        goes_on.set()
        thread.join()


def test_the_end_is_bounded_when_the_server_takes_requests_and_never_answers(
    proxy: Proxy, ledger: Ledger, spec: StudySpec
) -> None:
    goes_on = threading.Event()
    proxy.before = lambda path: goes_on.wait(60) and None
    process = MirrorProcess(ledger.url, spec.study, spec.storage, proxy.uri)
    assert not process.finish(None, timeout_seconds=1.0)
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    goes_on.set()


def test_a_server_that_asks_for_an_hours_patience_does_not_get_it_from_a_study_that_ends(
    folder: Path, proxy: Proxy, ledger: Ledger, spec: StudySpec
) -> None:
    """The first requests are answered with 429 and Retry-After: 3600."""
    add_trials(ledger, spec, 4)
    proxy.plan = lambda path: 429 if proxy.seen.total() <= 3 else None
    process = MirrorProcess(ledger.url, spec.study, spec.storage, proxy.uri)
    assert process.finish(None), process.log.read_text()
    assert process.log.read_text().count("429") >= 3
    check(folder, ledger, spec.study)


def test_two_mirrors_of_a_study_work_one_after_the_other(
    folder: Path, proxy: Proxy, ledger: Ledger, spec: StudySpec
) -> None:
    add_trials(ledger, spec, 4)
    first = MirrorProcess(ledger.url, spec.study, spec.storage, proxy.uri)
    while not proxy.seen["/api/2.0/mlflow/runs/create"]:
        time.sleep(0.05)
    second = MirrorProcess(ledger.url, spec.study, spec.storage, proxy.uri)
    assert first.finish(None), first.log.read_text()
    assert second.finish(None), second.log.read_text()
    assert first.log.read_text() == ""
    check(folder, ledger, spec.study)
