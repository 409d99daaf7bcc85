"""The ledger mirrored to MLflow, in a process of its own: training never waits for MLflow.

The mirror reads the ledger from its cursor onwards and can be stopped, killed or cut off at any time; the next one
goes on where the last one came to. Runs are looked up by tag before they are made, so nothing is there twice. One
mirror of a study works at a time. While MLflow works, nothing of the ledger is locked or held open.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.database import make_file, sqlite_url
from study.ledger import MEASURED, CurvePoint, Ledger, Status, Trial
from study.spec import without_passwords
from trainables.lease import Lease, LeaseLostError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SYNC_SECONDS = 3.0
RETRY_SECONDS = 0.25  # after the first failure; then twice as long, and so on
MAX_RETRY_SECONDS = 5.0
MAX_STARTS = 3  # of mirrors that are killed, at the end
ENDING_SECONDS = 10.0  # in which what fails at the end is tried again
RESULTS = "answer/"  # begins the names of metrics that come from the answer and not from a curve
_WHOLE_COSTS = ("cost/audio_hours", "cost/accelerator_seconds")  # of a trial, logged when it has ended
_ENDINGS: dict[Status, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
BATCH = 1_000  # metrics in one request: MLflow's limit
MAX_PARAM = 500  # characters in a parameter that every version of MLflow accepts

# Seconds, not the minutes that MLflow's client waits by default for a server that is gone. It does not try again by
# itself, for a run whose making went unanswered would be made twice.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def tracking_uri(storage: Path, configured: str | None) -> str:
    """The server: that of the sweep file, else $MLFLOW_TRACKING_URI, else an SQLite file in the storage folder."""
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_url(storage / "mlflow.db")


def reach(uri: str) -> str | None:
    """Why the server does not answer, or None."""
    os.environ.update(_PATIENCE)
    from mlflow.tracking import MlflowClient

    try:
        MlflowClient(uri).search_experiments(max_results=1)
    except Exception as error:  # noqa: BLE001  (whatever MLflow raises)
        return without_passwords(f"{type(error).__name__}: {error}".splitlines()[0])
    return None


@dataclass(frozen=True)
class RunResults:
    """What a run in MLflow is told of the answer, for the columns of its table and for comparing runs."""

    metrics: dict[str, float]
    tags: dict[str, str]


@dataclass(frozen=True)
class Conclusion:
    """What the end of a study adds to what is mirrored."""

    report: Path  # a folder, whose files are attached to the study's run
    note: str  # the answer in words, which describes the study's run
    runs: dict[str, RunResults]  # by trial; `study`: of the study's run


class Mirror:
    """Brings one study of the ledger to one MLflow server. Every step may be repeated."""

    def __init__(self, ledger: Ledger, study: str, storage: Path, uri: str) -> None:
        from mlflow.tracking import MlflowClient

        self._ledger, self._study, self._storage, self._uri = ledger, study, storage, uri
        self._client: MlflowClient = MlflowClient(uri)
        self._server = without_passwords(uri)  # its name in the ledger
        self._runs: dict[str, str] = {}
        self._experiment: str | None = None
        self._ended: set[str] = set()
        self._doubtful: set[str] = set()  # keys of runs whose making failed, as far as is known here

    def sync(self, *, live: bool) -> None:
        """Bring over everything that is new. `live`: the study is running, and so are its unfinished trials."""
        parent = self._run("study", {"mlflow.runName": self._study, "study.question": self._question()}, None)
        for trial in self._ledger.trials(self._study):
            if trial.trial not in self._ended:
                self._sync_trial(trial, parent, live=live)
        self._set_status(parent, "RUNNING" if live else "FINISHED")
        if not live:
            for key in sorted(self._doubtful):
                self._find(key)  # the server may have made it after all, late

    def conclude(self, conclusion: Conclusion) -> None:
        """Attach the report to the study's run, with the answer as its description, and results to all runs."""
        self._client.set_tag(self._runs["study"], "mlflow.note.content", conclusion.note)
        for path in sorted(conclusion.report.iterdir()):
            self._client.log_artifact(self._runs["study"], str(path), "report")
        answered_at = round(self._ledger.study(self._study)["updated_at"] * 1000)
        for key, results in conclusion.runs.items():
            self._log_results(self._runs[key], results, answered_at)

    def _log_results(self, run: str, results: RunResults, at: int) -> None:
        from mlflow.entities import Metric, RunTag

        known = self._client.get_run(run).data.metrics
        found = {RESULTS + name: value for name, value in results.metrics.items()}
        metrics = [Metric(name, value, at, 0) for name, value in found.items() if known.get(name) != value]
        tags = [RunTag(f"study.{name}", value) for name, value in results.tags.items()]
        self._client.log_batch(run, metrics=metrics, tags=tags)

    def _question(self) -> str:
        return str(self._ledger.study(self._study)["spec"]["question"])

    def _sync_trial(self, trial: Trial, parent: str, *, live: bool) -> None:
        from mlflow.entities import Metric

        run = self._run(trial.trial, _tags(trial, parent), trial)
        done = self._ledger.mirrored(self._server, self._study, trial.trial)
        curve = self._ledger.curve(self._study, trial.trial)
        new = sorted((p for p in curve if p.id > done.get(p.stage, 0)), key=lambda p: p.id)  # as the cursor moves
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            metrics = [Metric(_metric(p), p.value, round(p.reported_at * 1000), p.step) for p in batch]
            self._client.log_batch(run, metrics=metrics)
            for stage in {p.stage for p in batch}:
                last = max(p.id for p in batch if p.stage == stage)
                self._ledger.set_mirrored(self._server, self._study, trial.trial, stage, last)
        if trial.status == "unfinished":
            self._set_status(run, "RUNNING" if live else "KILLED")
        else:
            self._log_cost(run, trial)
            if trial.cause:
                self._client.set_tag(run, "study.cause", trial.cause[:MAX_PARAM])
            elif "study.cause" in self._client.get_run(run).data.tags:  # of an earlier attempt
                self._client.delete_tag(run, "study.cause")
            self._set_status(run, _ENDINGS[trial.status], trial.ended_at)
            self._ended.add(trial.trial)

    def _log_cost(self, run: str, trial: Trial) -> None:
        """What the whole trial spent, and on which devices, for the columns of MLflow's table."""
        from mlflow.entities import Metric, RunTag

        curve = self._ledger.curve(self._study, trial.trial)
        if curve:
            last, at = curve[-1], round(curve[-1].reported_at * 1000)
            hours, seconds = last.audio_seconds / 3600, last.accelerator_seconds
            devices = ", ".join(sorted({point.device for point in curve if point.device}))
            self._client.log_batch(
                run,
                metrics=[
                    Metric(_WHOLE_COSTS[0], hours, at, last.step),
                    Metric(_WHOLE_COSTS[1], seconds, at, last.step),
                ],
                tags=[RunTag("study.devices", devices)] if devices else [],
            )

    def _set_status(self, run: str, status: str, ended_at: float | None = None) -> None:
        if status == "RUNNING" or (status == "KILLED" and ended_at is None):
            self._client.update_run(run, status=status)
        else:
            self._client.set_terminated(run, status, round((ended_at or time.time()) * 1000))

    def _run(self, key: str, tags: dict[str, str], trial: Trial | None) -> str:
        """The run with this key, found by its tag or made."""
        if key not in self._runs:
            run = self._find(key) or self._create_run(key, tags, trial)
            if trial:
                self._log_params(run, trial)
            self._runs[key] = run
        return self._runs[key]

    def _find(self, key: str) -> str | None:
        """The run with this key. Of several, which there are when answers of the server were lost, one stays."""
        found = self._client.search_runs([self._experiment_id()], f"tags.`study.key` = '{key}'")
        runs = sorted(run.info.run_id for run in found)
        kept = self._runs.get(key, runs[0] if runs else None)
        if len(runs) > 1 and key not in self._runs:
            self._ledger.forget_mirrored(self._server, self._study, key)  # another one may have the points
        for run in runs:
            if run != kept:
                self._client.delete_run(run)
        return kept

    def _create_run(self, key: str, tags: dict[str, str], trial: Trial | None) -> str:
        started_at = trial.started_at if trial else self._ledger.study(self._study)["created_at"]
        experiment, start = self._experiment_id(), round(started_at * 1000)
        try:
            run = self._client.create_run(experiment, start_time=start, tags={"study.key": key, **tags})
        except Exception:
            self._doubtful.add(key)
            raise
        return str(run.info.run_id)

    def _log_params(self, run: str, trial: Trial) -> None:
        from mlflow.entities import Param

        params = [Param(path, str(value)[:MAX_PARAM]) for path, value in _flat(trial.config)]
        for start in range(0, len(params), 100):
            self._client.log_batch(run, params=params[start : start + 100])

    def _experiment_id(self) -> str:
        if self._experiment is None:
            known = self._client.get_experiment_by_name(self._study)
            self._experiment = known.experiment_id if known else self._create_experiment()
        return self._experiment

    def _create_experiment(self) -> str:
        local = self._uri.startswith("sqlite:")
        artifacts = (self._storage / "mlflow-artifacts" / self._study).as_uri() if local else None
        # MLflow's own mark of an experiment that trains models, as opposed to one of language-model traces.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return str(self._client.create_experiment(self._study, artifacts, tags))


def mirror_problems(ledger: Ledger, study: str, uri: str) -> Iterator[str]:
    """In what MLflow differs from the ledger, for a study that has ended and been mirrored."""
    from mlflow.tracking import MlflowClient

    client, trials = MlflowClient(uri), ledger.trials(study)
    experiment = client.get_experiment_by_name(study)
    found = client.search_runs([experiment.experiment_id], max_results=50_000) if experiment else []
    statuses = {"study": "FINISHED", **{trial.trial: _ENDINGS.get(trial.status, "KILLED") for trial in trials}}
    keys = [run.data.tags.get("study.key", "a run without key") for run in found]
    for key in sorted({*statuses, *keys}):
        if keys.count(key) != (key in statuses):
            yield f"MLflow has {keys.count(key)} runs of {key}"
    for run, key in zip(found, keys, strict=True):
        if run.info.status != statuses.get(key):
            yield f"MLflow has {key} as {run.info.status}, and it is {statuses.get(key)}"
        if key in statuses and key != "study":
            yield from _curve_problems(client, run, Counter(_logged(p) for p in ledger.curve(study, key)), key)


def _curve_problems(
    client: MlflowClient, run: Any, expected: Counter[tuple[str, int, float]], key: str
) -> Iterator[str]:
    logged = Counter(
        (name, point.step, point.value)
        for name in run.data.metrics
        if name not in _WHOLE_COSTS and not name.startswith(RESULTS)
        for point in client.get_metric_history(run.info.run_id, name)
    )
    lacking, surplus = expected - logged, logged - expected
    if lacking or surplus:
        yield f"MLflow lacks {lacking.total()} values of {key}, and has {surplus.total()} that it should not have"


def _logged(point: CurvePoint) -> tuple[str, int, float]:
    return _metric(point), point.step, point.value


def _tags(trial: Trial, parent: str) -> dict[str, str]:
    return {
        "mlflow.runName": trial.trial,
        "mlflow.parentRunId": parent,
        "study.arm": trial.arm,
        "study.origin": trial.origin,
        "study.seed": str(trial.seed),
        "study.regime": trial.config["regime"]["kind"],
    }


def _metric(point: CurvePoint) -> str:
    """dev and test metrics under their own name, comparable between arms; training losses under their stage's."""
    if point.metric in MEASURED:
        return f"cost/{point.metric}"
    return point.metric if point.metric.startswith(("dev_", "test_")) else f"{point.kind}/{point.metric}"


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


class MirrorProcess:
    """The mirror of one study beside the process that runs it."""

    def __init__(self, ledger_url: str, study: str, storage: Path, uri: str) -> None:
        self._order = {"ledger": ledger_url, "study": study, "storage": str(storage), "uri": uri}
        self.log = storage / "ray" / "mirror.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        make_file(uri)
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "study.tracking"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.log.open("ab"),
            env={**os.environ, **_PATIENCE},
            start_new_session=True,
        )
        # On the standard input, not as arguments: a URL may hold a password, and arguments are for all to see.
        self._tell(self._order)

    @property
    def pid(self) -> int:
        return self._process.pid

    def finish(self, conclusion: Conclusion | None, timeout_seconds: float = 60.0) -> bool:
        """Let it bring over the rest, and the conclusion. False when it could not: the study's next run catches up.

        A mirror that was killed is started again.
        """
        for _ in range(MAX_STARTS):
            if self._process.poll() is not None:
                self._start()
            try:
                self._tell({"conclusion": asdict(conclusion)} if conclusion else {})
                assert self._process.stdin is not None
                self._process.stdin.close()
                code = self._process.wait(timeout_seconds)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()
                return False
            if code >= 0:
                return code == 0
        return False

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message, default=str).encode() + b"\n")  # paths are written as text
        self._process.stdin.flush()


@dataclass
class _Ending:
    """What the study's process says last. Nothing when it died."""

    came: threading.Event = field(default_factory=threading.Event)
    conclusion: Conclusion | None = None

    def listen(self) -> None:
        lines = sys.stdin.readlines()
        if lines and (said := json.loads(lines[-1]).get("conclusion")):
            runs = {key: RunResults(**results) for key, results in said["runs"].items()}
            self.conclusion = Conclusion(Path(said["report"]), said["note"], runs)
        self.came.set()


def main() -> int:
    """Mirror until the standard input ends (the study's process has finished, or died), then once more, and exit."""
    order = json.loads(sys.stdin.readline())
    ending = _Ending()
    threading.Thread(target=ending.listen, daemon=True).start()
    lease = Lease(Path(order["storage"]) / "studies" / f"{order['study']}.mirror.lease")
    while True:
        with lease.hold() as held:
            if held:
                return _mirror(order, ending, held)
        lease.held_by_another()  # by the mirror of an earlier run, which is about to end, unless it is dead
        time.sleep(1.0)


def _mirror(order: dict[str, str], ending: _Ending, lease: Lease) -> int:
    """Returns the exit code: whether MLflow has everything at the end."""
    mirror: Mirror | None = None
    pause, give_up_at = RETRY_SECONDS, math.inf
    while True:
        final = ending.came.is_set()
        if final:
            give_up_at = min(give_up_at, time.monotonic() + ENDING_SECONDS)
        try:
            lease.check()
            mirror = mirror or Mirror(Ledger(order["ledger"]), order["study"], Path(order["storage"]), order["uri"])
            mirror.sync(live=not final)
            if final:
                if ending.conclusion:
                    mirror.conclude(ending.conclusion)
                return 0
            pause = RETRY_SECONDS
            ending.came.wait(SYNC_SECONDS)
        except LeaseLostError:
            return 1
        except Exception as error:  # noqa: BLE001  (whatever MLflow raises: the next round tries again)
            reason = without_passwords(f"{type(error).__name__}: {error}")
            print(f"{time.strftime('%F %T')} {reason}", file=sys.stderr, flush=True)
            if time.monotonic() > give_up_at:
                return 1
            if final:
                time.sleep(min(pause, 1.0))
            else:
                ending.came.wait(pause)
            pause = min(2 * pause, MAX_RETRY_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
