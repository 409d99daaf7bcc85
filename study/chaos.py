"""`study chaos SWEEP --kills N`: run a study while killing its processes, and see that it ends as if nothing had been.

The sweep is run undisturbed first. Then it is run again elsewhere, in as many rounds as it takes to kill N processes at
random moments: its driver, its workers and stages, trials, the mirror. A killed driver is started again with the same
command. Every round is audited, and compared with the undisturbed study.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.connect import connect
from cluster.processes import Process, actors_of, address, children_of, commands_with, kill
from study.audit import audit, differences
from study.database import sqlite_url
from study.execution import LEARNING
from study.ledger import Ledger
from study.spec import StudySpec, read_spec
from study.terminal import make_console
from trainables.settings_file import SettingsError

ACTORS = {  # class of an actor of Ray -> what it is here
    "ImplicitFunc": "trial",
    "WorkerGroups": "queue of stages",
    "TrainController": "worker group",
    "RayTrainWorker": "worker",
}
DRIVER, STAGE, MIRROR = "driver", "stage", "mirror"
KINDS = (DRIVER, STAGE, MIRROR, *ACTORS.values())
PATIENT = ("resources.retries=1000000", "resources.preemptions=1000000")
SIGKILLED = -9
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Kill:
    """A process that was killed: what it was, and how many seconds after the start of its round."""

    round: int
    seconds: float
    what: str


@dataclass
class Record:
    """What `study chaos` did and found."""

    sweep: str
    seed: int
    kills: list[Kill] = field(default_factory=list)
    rounds: int = 0
    starts: int = 0  # of drivers
    problems: list[str] = field(default_factory=list)


def run_chaos(options: argparse.Namespace) -> int:
    """The command. Its exit code is 3 when something is not as it should be."""
    spec = read_spec(options.sweep, options.overrides)
    console = make_console()
    chaos = _Chaos(spec, options, console)
    with connect():
        chaos.run()
    (chaos.folder / "chaos.json").write_text(json.dumps(asdict(chaos.record), indent=1))
    console.print(_table(chaos.record), *(f"PROBLEM: {problem}" for problem in chaos.record.problems), sep="\n")
    record = chaos.record
    verdict = "see above" if record.problems else "all is there once, and as in the undisturbed study"
    console.print(f"{len(record.kills)} kills, {record.rounds} studies, {record.starts} starts of drivers: {verdict}")
    return 3 if record.problems else 0


class _Chaos:
    def __init__(self, spec: StudySpec, options: argparse.Namespace, console: Console) -> None:
        self._spec, self._console = spec, console
        self._sweep, self._overrides = options.sweep, list(options.overrides)
        self._wanted, self._every = options.kills, options.every
        self._random = random.Random(options.seed)  # noqa: S311  (no secret)
        self.folder = spec.storage / "chaos" / spec.study
        self.record = Record(str(options.sweep), options.seed)
        self._started = 0.0

    def run(self) -> None:
        undisturbed = self._variant("undisturbed")
        self._console.print(f"undisturbed: {undisturbed.storage}")
        if code := self._start(undisturbed).wait():
            raise SettingsError([f"the undisturbed study ended with code {code}; see {_log(undisturbed)}"])
        self.record.problems += [f"undisturbed: {problem}" for problem in _audited(undisturbed)]
        while len(self.record.kills) < self._wanted and not self.record.problems:
            self.record.rounds += 1
            disturbed = self._variant(f"round-{self.record.rounds}")
            shutil.rmtree(disturbed.storage, ignore_errors=True)
            self._console.print(f"round {self.record.rounds}: {disturbed.storage}")
            found = self._disturb(disturbed) or [*_audited(disturbed), *_compared(disturbed, undisturbed)]
            self.record.problems += [f"round {self.record.rounds}: {problem}" for problem in found]

    def _variant(self, name: str) -> StudySpec:
        """The same study in a folder of its own, with its stages, its ledger and MLflow in files there."""
        storage = self.folder / name
        mlflow = self._spec.mlflow.with_(tracking_uri=sqlite_url(storage / "mlflow.db"))
        return self._spec.with_(storage=storage, stages=None, ledger=None, mlflow=mlflow)

    def _start(self, spec: StudySpec) -> subprocess.Popen[bytes]:
        """The command of the study. Of a study that is killed all the time, no failure counts."""
        self.record.starts += 1
        spec.storage.mkdir(parents=True, exist_ok=True)
        own = [f"storage={spec.storage}", "stages=null", "ledger=null"]
        own.append(f"mlflow.tracking_uri={spec.mlflow.tracking_uri}")
        words = ["run", str(self._sweep), *self._overrides, *PATIENT, *own]
        environment = {name: value for name, value in os.environ.items() if name != "STUDY_LEDGER"}
        with _log(spec).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "study.run", *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment, "RAY_ADDRESS": address()},
            )

    def _disturb(self, spec: StudySpec) -> list[str]:
        """Run the study to its end, killing on the way. Returns how it ended wrongly."""
        self._started, driver = time.monotonic(), self._start(spec)
        next_at, kind = self._draw()
        while (code := _exit_code(driver)) != 0:
            if code == SIGKILLED:
                driver = self._start(spec)
            elif code is not None:
                return [f"the study ended with code {code}; see {_log(spec)}"]
            elif self._is_due(next_at) and (self._kill(kind, driver, spec) or self._is_due(next_at + PATIENCE_SECONDS)):
                next_at, kind = self._draw()
        return []

    def _is_due(self, next_at: float) -> bool:
        return len(self.record.kills) < self._wanted and time.monotonic() > next_at

    def _draw(self) -> tuple[float, str]:
        """When to kill next, and what, as soon as it is there then; some come seldom, and others are taken instead."""
        return time.monotonic() + self._random.expovariate(1 / self._every), self._random.choice(KINDS)

    def _kill(self, kind: str, driver: subprocess.Popen[bytes], spec: StudySpec) -> bool:
        """Whether there was such a process."""
        if kind == DRIVER:
            driver.kill()
        elif victims := _processes(kind, driver.pid, spec):
            kill(self._random.choice(victims))
        else:
            return False
        seconds = round(time.monotonic() - self._started, 1)
        self.record.kills.append(Kill(self.record.rounds, seconds, kind))
        self._console.print(f"{len(self.record.kills):4}  {seconds:6.1f} s  {kind}")
        return True


def _exit_code(driver: subprocess.Popen[bytes]) -> int | None:
    """None while it runs, after a moment."""
    try:
        return driver.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _processes(kind: str, driver: int, spec: StudySpec) -> list[Process]:
    """Those of the study of this kind, but for the driver."""
    if kind == STAGE:
        return commands_with("trainables.stage_process", str(spec.storage))
    if kind == MIRROR:
        return children_of(driver, "study.tracking")
    return [process for process in actors_of(driver) if ACTORS.get(process.what) == kind]


def _audited(spec: StudySpec) -> list[str]:
    return audit(spec, Ledger.in_folder(spec.storage))


def _compared(disturbed: StudySpec, undisturbed: StudySpec) -> list[str]:
    ledgers = (Ledger.in_folder(spec.storage) for spec in (disturbed, undisturbed))
    return differences(disturbed, *ledgers, determined=_is_determined(disturbed))


def _is_determined(spec: StudySpec) -> bool:
    """Whether no proposal and no early end depends on which of several trials is faster."""
    search_may_end = spec.stop.target is not None or spec.stop.no_improvement is not None
    adaptive = isinstance(spec.search.sampler, LEARNING) or spec.early_stopping is not None or search_may_end
    return spec.resources.max_groups == 1 or not adaptive


def _log(spec: StudySpec) -> Path:
    return spec.storage / "chaos.log"


def _table(record: Record) -> Table:
    table = Table("killed", "times", title="Kills", title_justify="left")
    for what, times in sorted(Counter(killed.what for killed in record.kills).items()):
        table.add_row(what, str(times))
    return table
