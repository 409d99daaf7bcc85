"""Where a study of 10,000 trials on 1,000 GPUs breaks first: constants measured here, and a simulation with them.

    python -m tests.benchmarks.scale measure constants.json
    python -m tests.benchmarks.scale simulate tests/benchmarks/scale_constants.json

`measure` runs studies whose stages only report, on eight worker groups of one machine, and takes processor time, which
other work on the machine changes little, and private memory. What one more trial or report costs is the difference
between two such studies.

`simulate` lets groups, the process that queues stages, and the driver work on a virtual clock. The queue and the driver
do one thing at a time. A trial hands its driver all that was reported since the driver took its last reports, as in
study/relay.py; the next trial starts when the driver has seen the end of one.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

from cluster.connect import connect
from study.execution import run_trials
from study.ledger import Ledger
from study.search import Search
from study.spec import StudySpec
from study.watcher import Watcher
from tests.benchmarks.noop_stages import last_report
from tests.benchmarks.starts import opened, study_of
from trainables.stage import Stage
from trainables.trial import TrialConfig, stages_of

GROUPS, TRIALS, REPORTS = 8, 24, 60
TRIAL_PROCESS, QUEUE_PROCESS = "ray::ImplicitFunc", "ray::WorkerGroups"
GROUP_PROCESSES = ("ray::_run_group", "ray::TrainController", "ray::SynchronizationActor")


@dataclass(frozen=True)
class Constants:
    """Seconds of processor time, and bytes."""

    driver_trial: float  # all that the driver does for a trial with one report, but for its proposal
    driver_reports: float  # for reports that it gets together
    driver_row: float  # for each further report among them
    queue_trial: float
    queue_report: float
    head_report: float  # of Ray's own processes on the head
    propose: dict[str, float]  # the next trial, by how many there are (TPE)
    trial_bytes: float  # private memory on the head, of each trial that runs
    group_bytes: float  # the same of each worker group, one worker or many
    ledger_report_bytes: float  # of a report of four metrics


# ---- measuring -----------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        with _cluster():
            few = _of_a_study(path / "few", TRIALS, 1)
            more = _of_a_study(path / "more", 4 * TRIALS, 1)
            many = _of_a_study(path / "many", TRIALS, REPORTS)
        ledger = _of_the_ledger(path / "ledger")
        propose = {str(trials): _of_a_proposal(path / str(trials), trials) for trials in (100, 1_000, 10_000)}
    trials, reports = 3 * TRIALS, TRIALS * (REPORTS - 1)
    found = Constants(
        driver_trial=(more.driver - few.driver) / trials,
        driver_reports=(many.driver - few.driver) / reports,
        driver_row=ledger[0],
        queue_trial=(more.queue - few.queue) / trials,
        queue_report=(many.queue - few.queue) / reports,
        head_report=(many.ray - few.ray) / reports,
        propose=propose,
        trial_bytes=many.trial_bytes,
        group_bytes=many.group_bytes,
        ledger_report_bytes=ledger[1],
    )
    options.file.write_text(json.dumps(asdict(found), indent=1) + "\n")
    print(options.file.read_text())


@contextmanager
def _cluster() -> Iterator[None]:
    """On this machine: a head without CPUs, and a node that says that it has one for each group."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.add_node(num_cpus=GROUPS)
    os.environ["RAY_ADDRESS"] = cluster.address
    with connect():
        yield
    cluster.shutdown()


@dataclass(frozen=True)
class _Spent:
    driver: float
    queue: float
    ray: float
    trial_bytes: float
    group_bytes: float


def _of_a_study(storage: Path, trials: int, reports: int) -> _Spent:
    """What the processes of a study take whose stages report so often. Needs a connection to Ray."""
    spec = study_of(storage, trials, reports)
    ledger, run = opened(spec)
    before, began = _seconds_of_ray(), time.process_time()
    watch = _Processes()
    run_trials(spec, ledger, run, watch, stage_module="tests.benchmarks.noop_stages")
    watch.ended.set()
    assert ledger.count(spec.study)["finished"] == trials
    driver, queue = time.process_time() - began, watch.queue_seconds
    return _Spent(driver, queue, _seconds_of_ray() - before, watch.trial_bytes, watch.group_bytes)


class _Processes(Watcher):
    """Looks at the study's processes once a second while it runs."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.queue_seconds = self.trial_bytes = self.group_bytes = 0.0
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        most = 0
        while not self.ended.wait(1.0):
            found = [process for process in psutil.process_iter() if (_title(process) or "").startswith("ray::")]
            for process in found:
                if _title(process).startswith(QUEUE_PROCESS):
                    self.queue_seconds = sum(process.cpu_times()[:2])
            trials = [process for process in found if _title(process).startswith(TRIAL_PROCESS)]
            groups = [process for process in found if _title(process).startswith(GROUP_PROCESSES)]
            if len(groups) >= most and trials:
                most = len(groups)
                running = sum(_title(process).startswith(GROUP_PROCESSES[0]) for process in groups)
                self.trial_bytes = sum(map(_private_bytes, trials)) / len(trials)
                self.group_bytes = sum(map(_private_bytes, groups)) / max(1, running)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _private_bytes(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().uss)
    except psutil.Error:
        return 0.0


def _seconds_of_ray() -> float:
    """Of the processes of Ray that a head has, whatever runs on it."""
    names = ("gcs_server", "raylet")
    return sum(sum(p.cpu_times()[:2]) for p in psutil.process_iter() if p.name() in names)


def _of_the_ledger(storage: Path) -> tuple[float, float]:
    """(seconds of each report beyond the first that are appended together, bytes of a report)."""
    ledger, _ = opened(study_of(storage, 1))
    (stage,) = stages_of(study_of(storage, 1).trial_config("only"))
    _add(ledger, "only-000", 0, stage)
    seconds = []
    for number in (1, 1_000):
        reports = [last_report(stage).with_(step=number * 10_000 + i) for i in range(number)]
        began = time.process_time()
        ledger.append(stage.fingerprint(), reports)
        seconds.append(time.process_time() - began)
    for i in range(20):
        ledger.append(stage.fingerprint(), [last_report(stage).with_(step=i * 1_000 + j) for j in range(1_000)])
    ledger.close()
    return (seconds[1] - seconds[0]) / 999, (storage / "ledger.db").stat().st_size / 21_000


def _add(ledger: Ledger, name: str, number: int, stage: Stage) -> None:
    config = TrialConfig.model_validate({"regime": {"kind": "supervised", "train": {"steps": 10}}})
    ledger.add_trial(
        "nothing",
        name,
        arm="only",
        number=number,
        origin="search",
        grid={},
        point={"regime.train.learning_rate": 10 ** random.Random(number).uniform(-4, -2)},
        config=config.model_dump(mode="json"),
        seed=number,
        stages=[stage],
    )


def _of_a_proposal(storage: Path, trials: int) -> float:
    """Seconds of processor time for the next trial of TPE, in a study of so many, and for what follows its end."""
    spec = _with_tpe(study_of(storage, trials + 10))
    ledger, _ = opened(spec)
    base = spec.trial_config("only")
    for number in range(trials):
        (stage,) = stages_of(base.with_(seed=number))
        _add(ledger, f"only-{number:03d}", number, stage)
        result = last_report(stage).with_(metrics={"dev_cer": random.Random(number).random()})
        ledger.append(stage.fingerprint(), [result])
        ledger.end_trial(spec.study, f"only-{number:03d}", "finished")
    search = Search(spec, ledger)
    search.propose()
    began = time.process_time()
    for _ in range(5):
        proposal = search.propose()
        assert proposal
        ledger.append(proposal.stages[0].fingerprint(), [last_report(proposal.stages[0])])
        ledger.end_trial(spec.study, proposal.trial.trial, "finished")
        search.ended(proposal.trial.trial)
    return (time.process_time() - began) / 5


def _with_tpe(spec: StudySpec) -> StudySpec:
    return StudySpec.model_validate(
        {**spec.model_dump(), "search": {**spec.search.model_dump(), "sampler": {"kind": "tpe"}}}
    )


# ---- simulating ----------------------------------------------------------------------------------------------------


@dataclass
class _Server:
    """Does one thing at a time, in the order of arrival."""

    free_at: float = 0.0
    busy: float = 0.0

    def serve(self, now: float, seconds: float) -> float:
        """When it is done."""
        self.free_at = max(now, self.free_at) + seconds
        self.busy += seconds
        return self.free_at


@dataclass
class Simulation:
    """Groups that train one stage after another, the queue between them and the trials, and the driver."""

    constants: Constants
    groups: int
    trials: int
    stage_seconds: float
    report_seconds: float
    seed: int = 0

    def __post_init__(self) -> None:
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = 0
        self._queue, self._driver = _Server(), _Server()
        self._begun = self._ended = 0
        self._random = random.Random(self.seed)
        self.trained = 0.0  # seconds, over all groups
        self.delays: list[float] = []  # from a report to its place in the ledger
        self.gaps: list[float] = []  # of a group, between two stages

    def run(self) -> float:
        """Seconds until the last trial has ended."""
        for _ in range(min(self.groups, self.trials)):
            self._propose(0.0, None)
        now = 0.0
        while self._events:
            now, _, act = heapq.heappop(self._events)
            act(now)
        return now

    @property
    def loads(self) -> tuple[float, float]:
        """Busy seconds of the queue and of the driver."""
        return self._queue.busy, self._driver.busy

    def _at(self, when: float, act: Callable[[float], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (when, self._order, act))

    def _propose(self, now: float, free_since: float | None) -> None:
        if self._begun < self.trials:
            self._begun += 1
            seconds = self.constants.driver_trial + _interpolated(self.constants.propose, self._begun)
            begun = self._driver.serve(now, seconds)
            self._at(self._queue.serve(begun, self.constants.queue_trial), lambda at: self._train(at, free_since))

    def _train(self, now: float, free_since: float | None) -> None:
        if free_since is not None:
            self.gaps.append(now - free_since)
        seconds = self.stage_seconds * self._random.lognormvariate(-0.125, 0.5)  # mean 1
        self.trained += seconds
        _Trial(self, now, seconds).begin()


class _Trial:
    """The reports of one stage on their way to the ledger."""

    def __init__(self, world: Simulation, began: float, seconds: float) -> None:
        self.world = world
        number = max(1, int(seconds / world.report_seconds))
        self.times = deque(began + seconds * (i + 1) / number for i in range(number))
        self.waiting: list[float] = []  # reported, and not yet with the driver
        self.is_busy = False  # the driver has not yet taken what it was sent last

    def begin(self) -> None:
        self.world._at(self.times[0], self._report)

    def _report(self, now: float) -> None:
        made = self.times.popleft()
        arrived = self.world._queue.serve(now, self.world.constants.queue_report)
        self.world._at(arrived, lambda at: self._arrive(at, made))
        if self.times:
            self.world._at(self.times[0], self._report)

    def _arrive(self, now: float, made: float) -> None:
        self.waiting.append(made)
        if not self.is_busy:
            self._send(now)

    def _send(self, now: float) -> None:
        """All that waits, which the driver writes in one transaction."""
        sent, self.waiting, self.is_busy = self.waiting, [], True
        constants = self.world.constants
        done = self.world._driver.serve(now, constants.driver_reports + constants.driver_row * (len(sent) - 1))
        self.world._at(done, lambda at: self._taken(at, sent))

    def _taken(self, now: float, sent: Sequence[float]) -> None:
        self.is_busy = False
        self.world.delays += [now - made for made in sent]
        if self.waiting:
            self._send(now)
        elif not self.times:
            self.world._propose(now, sent[-1])


def _interpolated(table: dict[str, float], number: int) -> float:
    """On straight lines between the numbers of the table."""
    points = sorted((int(known), value) for known, value in table.items())
    low = max([p for p in points if p[0] <= number], default=points[0])
    high = min([p for p in points if p[0] > number], default=points[-1])
    if low[0] == high[0]:
        return low[1]
    return low[1] + (high[1] - low[1]) * (number - low[0]) / (high[0] - low[0])


def simulate(options: argparse.Namespace) -> None:
    constants = Constants(**json.loads(options.file.read_text()))
    print(f"{options.trials} trials, stages of {options.stage_minutes:g} min; reports every ... s of each stage\n")
    print("| groups | report every | groups train | gap between stages | report to ledger | driver busy | queue busy |")
    print("|---|---|---|---|---|---|---|")
    for groups in options.groups:
        for report_seconds in options.report_seconds:
            world = Simulation(constants, groups, options.trials, 60 * options.stage_minutes, report_seconds)
            seconds = world.run()
            queue, driver = (busy / seconds for busy in world.loads)
            used = world.trained / (world.trained + sum(world.gaps))
            print(
                f"| {groups:,} | {report_seconds:g} s | {used:.1%} | {_middle_and_worst(world.gaps)} | "
                f"{_middle_and_worst(world.delays)} | {driver:.1%} | {queue:.1%} |"
            )
    print("\nmemory of the head, beside Ray's own:")
    for groups in options.groups:
        needed = groups * (constants.group_bytes + constants.trial_bytes)
        print(f"  {groups:,} groups with a trial each: {needed / 1e9:,.0f} GB")


def _middle_and_worst(values: Sequence[float]) -> str:
    """Median and 99th percentile."""
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:.2f} s, {ordered[int(len(ordered) * 0.99)]:.2f} s" if ordered else ""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["measure", "simulate"])
    parser.add_argument("file", type=Path, help="the constants, written or read")
    parser.add_argument("--groups", type=int, nargs="+", default=[125, 1_000])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--stage-minutes", type=float, default=60.0)
    parser.add_argument("--report-seconds", type=float, nargs="+", default=[60.0, 10.0, 1.0])
    options = parser.parse_args(arguments)
    {"measure": measure, "simulate": simulate}[options.part](options)


if __name__ == "__main__":
    main()
