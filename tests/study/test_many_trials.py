"""Thousands of simulated trials through the search, early stopping and the ledger, on a clock that only counts."""

from __future__ import annotations

import heapq
import math
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from study.ledger import Ledger, Trial
from study.search import Proposal, Search
from study.spec import StudySpec
from study.stopper import Stopper
from tests.study.builders import LEARNING_RATE, open_study, report, spec_of, supervised
from trainables.stage import Stage

ARMS = {"plain": True, "augmented": False}
TRIALS, WORKERS, STEPS, EVALUATIONS = 2_000, 64, 80, 8
MIDDLE = 1_000  # trials that have ended when the search is built again
COMPARED = 50  # proposals of the rebuilt search
DROPOUT = "model.dropout"

Event = tuple[float, int, str]  # time, evaluation, trial


def sweep_of(storage: Path) -> StudySpec:
    space = {
        LEARNING_RATE: {"kind": "log_uniform", "low": 1e-5, "high": 1.0},
        DROPOUT: {"kind": "uniform", "low": 0.0, "high": 0.5},
    }
    arms = {
        arm: {"trial": supervised(STEPS, augment_speed=speed, evaluate_every=STEPS // EVALUATIONS), "space": space}
        for arm, speed in ARMS.items()
    }
    return spec_of(
        storage,
        arms=arms,
        search={"trials": TRIALS // len(ARMS), "metric": "dev_cer", "sampler": {"kind": "random"}},
        early_stopping={"kind": "asha", "reduction_factor": 3, "first_rung": 1 / EVALUATIONS},
        replication={"top": 1, "seeds": 0},
    )


def final_cer(point: dict[str, Any]) -> float:
    """Between 10 % and 100 %, lowest at a learning rate of 0.001 and a dropout of 0.1."""
    distance = (math.log10(point[LEARNING_RATE]) + 3) ** 2 / 9 + (point[DROPOUT] - 0.1) ** 2 / 0.16
    return 1.0 - 0.9 * math.exp(-distance)


def cer_at(point: dict[str, Any], evaluation: int) -> float:
    """Falls from 100 % to the final value; a higher learning rate falls sooner."""
    speed = 3.0 + 0.3 * (math.log10(point[LEARNING_RATE]) + 3)
    share = (1 - math.exp(-speed * evaluation / EVALUATIONS)) / (1 - math.exp(-speed))
    return 1.0 - share * (1.0 - final_cer(point))


def evaluation_seconds(point: dict[str, Any]) -> float:
    """Trials take different times, so that they end in another order than they began."""
    return 1.0 + point[DROPOUT]


@dataclass
class Cluster:
    """Workers that run the trials of a search, one each, on a virtual clock."""

    search: Search
    stopper: Stopper
    workers: int
    now: float = 0.0
    events: list[Event] = field(default_factory=list)
    running: dict[str, tuple[Trial, Stage]] = field(default_factory=dict)
    log: list[tuple[str, ...]] = field(default_factory=list)  # what was proposed and how it ended
    steps: int = 0
    ended: int = 0

    def run(self, until_ended: int = TRIALS) -> None:
        """Hand out trials and let them report, until so many have ended."""
        while self.ended < until_ended:
            while len(self.running) < self.workers and (proposal := self.search.propose()):
                self._start(proposal)
            if not self.events:
                return
            self.now, evaluation, name = heapq.heappop(self.events)
            self._evaluate(name, evaluation)

    def _start(self, proposal: Proposal) -> None:
        trial = proposal.trial
        self.log.append((trial.trial, str(trial.point)))
        self.running[trial.trial] = (trial, proposal.stages[-1])
        self.stopper.add(trial, proposal.stages)
        heapq.heappush(self.events, (self.now + evaluation_seconds(trial.point), 1, trial.trial))

    def _evaluate(self, name: str, evaluation: int) -> None:
        trial, stage = self.running[name]
        reports = [report(evaluation * STEPS // EVALUATIONS, dev_cer=cer_at(trial.point, evaluation))]
        self.steps += STEPS // EVALUATIONS
        self.search.ledger.append(stage.fingerprint(), reports)
        cause = self.stopper.stops(name, stage, reports)
        if cause is None and evaluation < EVALUATIONS:
            heapq.heappush(self.events, (self.now + evaluation_seconds(trial.point), evaluation + 1, name))
            return
        del self.running[name]
        self.search.ledger.end_trial(trial.study, name, "stopped" if cause else "finished", cause)
        self.search.ended(name)
        self.log.append((name, cause or "finished"))
        self.ended += 1

    def rebuilt(self, storage: Path) -> Cluster:
        """The same cluster, with a search and a stopper that are built from a copy of the ledger."""
        storage.mkdir()
        with (
            closing(sqlite3.connect(self.search.ledger.url.removeprefix("sqlite:///"))) as source,
            closing(sqlite3.connect(storage / "ledger.db")) as target,
        ):
            source.backup(target)
        ledger, spec = Ledger.in_folder(storage), self.search.spec
        again = Cluster(Search(spec, ledger), Stopper(spec, ledger), self.workers, self.now, list(self.events))
        for _ in self.running:
            proposal = again.search.propose()
            assert proposal is not None
            again.stopper.add(proposal.trial, proposal.stages)
            again.running[proposal.trial.trial] = (proposal.trial, proposal.stages[-1])
        again.ended = self.ended
        return again


@dataclass(frozen=True)
class Ran:
    """The whole study, and the first trials after the middle of it, live and by what was built again there."""

    spec: StudySpec
    ledger: Ledger
    steps: int
    resumed: list[str]
    live: list[tuple[str, ...]]
    rebuilt: list[tuple[str, ...]]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    storage = tmp_path_factory.mktemp("many")
    spec = sweep_of(storage / "live")
    ledger = open_study(spec)
    live = Cluster(Search(spec, ledger), Stopper(spec, ledger), WORKERS)
    live.run(MIDDLE)
    rebuilt = live.rebuilt(storage / "rebuilt")
    resumed, before = sorted(rebuilt.running), len(live.log)
    assert resumed == sorted(live.running)
    rebuilt.run(MIDDLE + COMPARED)
    live.run()
    assert live.search.propose() is None
    assert live.search.is_over
    assert not live.running
    return Ran(spec, ledger, live.steps, resumed, live.log[before:], rebuilt.log)


def test_every_trial_is_proposed_and_ends_once(ran: Ran) -> None:
    counts = ran.ledger.count(ran.spec.study)
    assert counts["finished"] + counts["stopped"] == TRIALS
    assert counts["failed"] == counts["unfinished"] == 0
    trials = ran.ledger.trials(ran.spec.study)
    assert len({str(trial.point) for trial in trials}) == TRIALS
    assert all(trial.ended_at is not None for trial in trials)
    for arm in ARMS:
        assert sorted(t.number for t in trials if t.arm == arm) == list(range(TRIALS // len(ARMS)))


def test_early_stopping_saves_most_of_the_steps(ran: Ran) -> None:
    """A third goes on at 1/8 of the training, and a third of those at 3/8."""
    expected = STEPS * (1 / 8 + 2 / 8 / 3 + 5 / 8 / 9)
    assert ran.steps / TRIALS == pytest.approx(expected, rel=0.1)


def test_the_best_found_is_near_the_best_of_all(ran: Ran) -> None:
    trials = ran.ledger.trials(ran.spec.study)
    for arm in ARMS:
        cers = sorted(final_cer(trial.point) for trial in trials if trial.arm == arm)
        found = min(final_cer(t.point) for t in trials if t.arm == arm and t.status == "finished")
        assert found <= cers[len(cers) // 1000]


def test_nothing_is_recorded_of_a_trial_after_its_stop(ran: Ran) -> None:
    path = ran.ledger.url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as db:
        last_point = dict(
            db.execute("select trial, max(step) from points join trial_stages using (stage) group by trial").fetchall()
        )
        last_evaluation = dict(db.execute("select trial, max(progress) from evaluations group by trial").fetchall())
    for trial in ran.ledger.trials(ran.spec.study):
        assert last_point[trial.trial] == pytest.approx(last_evaluation[trial.trial] * STEPS)
        if trial.status == "stopped":
            assert last_point[trial.trial] < STEPS
            assert f"after {last_evaluation[trial.trial]:.0%} of the labelled training" in (trial.cause or "")
        else:
            assert last_point[trial.trial] == STEPS


def test_what_is_rebuilt_in_the_middle_goes_on_as_before(ran: Ran) -> None:
    assert len(ran.resumed) in range(WORKERS - 1, WORKERS + 1)
    assert len(ran.rebuilt) >= 2 * COMPARED - 1
    assert ran.live[: len(ran.rebuilt)] == ran.rebuilt
