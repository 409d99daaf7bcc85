"""The ledger mirrored to MLflow, in a process of its own: training never waits for MLflow.

The mirror reads the ledger from its cursor onwards and can be stopped, killed or cut off at any time; the next one
goes on where the last one came to. Runs are looked up by tag before they are made, so nothing is there twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.ledger import MEASURED, CurvePoint, Ledger, Status, Trial
from study.spec import without_passwords

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SYNC_SECONDS = 3.0
_ENDINGS: dict[Status, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
BATCH = 1_000  # metrics in one request: MLflow's limit
MAX_PARAM = 500  # characters in a parameter that every version of MLflow accepts

# Seconds, not the minutes that MLflow's client waits by default for a server that is gone.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def tracking_uri(storage: Path, configured: str | None) -> str:
    """The server: that of the sweep file, else $MLFLOW_TRACKING_URI, else an SQLite file in the storage folder."""
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{storage / 'mlflow.db'}"


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

    def sync(self, *, live: bool) -> None:
        """Bring over everything that is new. `live`: the study is running, and so are its unfinished trials."""
        parent = self._run("study", {"mlflow.runName": self._study, "study.question": self._question()}, None)
        for trial in self._ledger.trials(self._study):
            if trial.trial not in self._ended:
                self._sync_trial(trial, parent, live=live)
        self._set_status(parent, "RUNNING" if live else "FINISHED")

    def conclude(self, folder: Path, note: str) -> None:
        """Attach the report to the study's run, and the answer as its description."""
        self._client.set_tag(self._runs["study"], "mlflow.note.content", note)
        for path in sorted(folder.iterdir()):
            self._client.log_artifact(self._runs["study"], str(path), "report")

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
        """What the whole trial spent, for the columns of MLflow's table."""
        from mlflow.entities import Metric

        curve = self._ledger.curve(self._study, trial.trial)
        if curve:
            last, at = curve[-1], round(curve[-1].reported_at * 1000)
            hours, seconds = last.audio_seconds / 3600, last.accelerator_seconds
            self._client.log_batch(
                run,
                metrics=[
                    Metric("cost/audio_hours", hours, at, last.step),
                    Metric("cost/accelerator_seconds", seconds, at, last.step),
                ],
            )

    def _set_status(self, run: str, status: str, ended_at: float | None = None) -> None:
        if status == "RUNNING" or (status == "KILLED" and ended_at is None):
            self._client.update_run(run, status=status)
        else:
            self._client.set_terminated(run, status, round((ended_at or time.time()) * 1000))

    def _run(self, key: str, tags: dict[str, str], trial: Trial | None) -> str:
        """The run with this key, found by its tag or made."""
        if key not in self._runs:
            experiment = self._experiment_id()
            found = self._client.search_runs([experiment], f"tags.`study.key` = '{key}'", max_results=1)
            if found:
                self._runs[key] = found[0].info.run_id
            else:
                started_at = trial.started_at if trial else self._ledger.study(self._study)["created_at"]
                run = self._client.create_run(
                    experiment, start_time=round(started_at * 1000), tags={"study.key": key, **tags}
                )
                self._runs[key] = run.info.run_id
            if trial:
                self._log_params(self._runs[key], trial)
        return self._runs[key]

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


def _tags(trial: Trial, parent: str) -> dict[str, str]:
    return {
        "mlflow.runName": trial.trial,
        "mlflow.parentRunId": parent,
        "study.arm": trial.arm,
        "study.origin": trial.origin,
        "study.seed": str(trial.seed),
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
        # On the standard input, not as arguments: a URL may hold a password, and arguments are for all to see.
        order = {"ledger": ledger_url, "study": study, "storage": str(storage), "uri": uri}
        log = (storage / "ray").joinpath("mirror.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self._process = subprocess.Popen(
            [sys.executable, "-m", "study.tracking"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log.open("ab"),
            env={**os.environ, **_PATIENCE},
            start_new_session=True,
        )
        self._tell(order)

    @property
    def pid(self) -> int:
        return self._process.pid

    def finish(self, report: Path | None, note: str, timeout_seconds: float = 60.0) -> bool:
        """Let it bring over the rest, and the report. False when it could not: the next run of the study catches up."""
        try:
            self._tell({"report": str(report), "note": note} if report else {})
            assert self._process.stdin is not None
            self._process.stdin.close()
            return self._process.wait(timeout_seconds) == 0
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            return False

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()


def main() -> int:
    """Mirror until the standard input ends (the study's process has finished, or died), then once more, and exit."""
    order = json.loads(sys.stdin.readline())
    ledger, storage = Ledger(order["ledger"]), Path(order["storage"])
    ended = threading.Event()
    last_words: list[str] = []

    def listen() -> None:
        last_words.extend(sys.stdin.readlines())
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    mirror: Mirror | None = None
    while True:
        final = ended.is_set()
        try:
            mirror = mirror or Mirror(ledger, order["study"], storage, order["uri"])
            mirror.sync(live=not final)
            if final:
                ending: dict[str, str] = json.loads(last_words[-1]) if last_words else {}
                if "report" in ending:
                    mirror.conclude(Path(ending["report"]), ending["note"])
                return 0
        except Exception as error:  # noqa: BLE001  (whatever MLflow raises: the next round tries again)
            reason = without_passwords(f"{type(error).__name__}: {error}")
            print(f"{time.strftime('%F %T')} {reason}", file=sys.stderr, flush=True)
            if final:
                return 1
        ended.wait(SYNC_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
