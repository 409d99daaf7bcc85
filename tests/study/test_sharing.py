"""Stages that many trials and several studies share, with real Ray, real training and real signals."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from study.ledger import Ledger, Trial
from study.plan import make_plan
from study.spec import StudySpec, read_spec
from tests.conftest import small_trial, spanish_rows, write_corpus
from tests.study.test_end_to_end import TIMEOUT_SECONDS, start, wait_for, write_sweep
from tests.trainables.test_stage_process import parent
from trainables.stage import StageResult

pytestmark = pytest.mark.slow

GRID = {
    "corpus.unlabelled_fraction": [0.25, 0.5, 0.75, 1.0],
    "corpus.labelled_minutes": [0.2, 0.3, 0.4],
    "regime.finetune.learning_rate": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
}
SEEDS = [1, 2, 3]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("speech"), spanish_rows(16))


def regime(pretrain_steps: int = 1) -> dict[str, Any]:
    short = {"steps": 1, "batch_seconds": 3, "report_every": 1}
    return {
        "kind": "pretrain_finetune",
        "pretrain": {**short, "steps": pretrain_steps, "checkpoint_seconds": 0.2},
        "finetune": {**short, "evaluate_every": 1},
    }


def grid(choices: dict[str, list[Any]]) -> dict[str, Any]:
    return {path: {"kind": "grid", "choices": values} for path, values in choices.items()}


def write(path: Path, arms: dict[str, Any], **changes: Any) -> Path:
    changes = {
        "search": {"trials": 1, "metric": "dev_cer", "sampler": {"kind": "random"}},
        "replication": {"seeds": 0},
        "mlflow": {"enabled": False},
        **changes,
    }
    return write_sweep(path, arms, **changes)


def sweep_of_180(path: Path, corpus: Path, seed_path: str = "regime.finetune.seed") -> Path:
    """4 pre-training fractions x 3 labelled budgets x 5 learning rates x 3 seeds."""
    space = grid({**GRID, seed_path: SEEDS})
    return write(path, {"arm": {"trial": small_trial(corpus, regime()), "space": space}})


def distinct(spec: StudySpec) -> dict[str, int]:
    return {kind: count.distinct for kind, count in make_plan(spec).stages.items()}


def test_the_plan_counts_each_shared_stage_once(corpus: Path, tmp_path: Path) -> None:
    spec = read_spec(sweep_of_180(tmp_path / "sweep.yaml", corpus))
    assert make_plan(spec).trials == 180
    assert distinct(spec) == {"pretrain": 4, "finetune": 180}


def test_the_plan_counts_a_pretraining_for_each_seed_of_the_whole_trial(corpus: Path, tmp_path: Path) -> None:
    spec = read_spec(sweep_of_180(tmp_path / "sweep.yaml", corpus, "seed"))
    assert distinct(spec) == {"pretrain": 12, "finetune": 180}


def results(storage: Path) -> dict[str, StageResult]:
    """fingerprint -> result of every finished stage."""
    return {
        path.parent.name.rpartition("-")[2]: StageResult.model_validate_json(path.read_text())
        for path in (storage / "stages").glob("*/*/result.json")
    }


@pytest.mark.long
def test_two_studies_at_once_train_every_stage_of_a_storage_once(corpus: Path, tmp_path: Path) -> None:
    """Each has two of three learning rates, one of them in common, and they begin at opposite ends.

    A second training of a stage would have reported at other times than the first.
    """
    storage, rates = tmp_path / "results", GRID["regime.finetune.learning_rate"][:3]
    processes = []
    for name, mine in {"one": rates[:2], "other": rates[:0:-1]}.items():
        choices = {
            **GRID,
            "corpus.unlabelled_fraction": GRID["corpus.unlabelled_fraction"][:2],
            "corpus.labelled_minutes": GRID["corpus.labelled_minutes"][:2],
            "regime.finetune.learning_rate": mine,
            "regime.finetune.seed": SEEDS[:2],
        }
        arm = {"trial": small_trial(corpus, regime()), "space": grid(choices)}
        processes.append(start(write(tmp_path / f"{name}.yaml", {"arm": arm}, study=name)))
    with ThreadPoolExecutor() as threads:
        outputs = list(threads.map(lambda process: process.communicate(timeout=3 * TIMEOUT_SECONDS)[0], processes))
    assert [process.returncode for process in processes] == [0, 0], outputs

    found = results(storage)
    folders = {kind: len(list((storage / "stages" / kind).iterdir())) for kind in ("pretrain", "finetune")}
    assert folders == {"pretrain": 2, "finetune": 2 * 2 * 3 * 2}, "and nothing else, neither lease nor checkpoint"
    ledger = Ledger.in_folder(storage)
    for study in ("one", "other"):
        trials = ledger.trials(study)
        assert [trial.status for trial in trials] == ["finished"] * (2 * 2 * 2 * 2)
        for trial in trials:
            stages = [row["stage"] for row in ledger.trial_stages(study, trial.trial)]
            trained = {report.reported_at for stage in stages for report in found[stage].reports}
            assert {point.reported_at for point in ledger.curve(study, trial.trial)} == trained


# Trials that wait for a long pre-training

WAITING, QUICK = 4, 4


@dataclass(frozen=True)
class Killed:
    """A study whose long pre-training was killed when everything else was done."""

    code: int
    quick_before: list[Trial]  # the trials of the other arm, when the pre-training was still running
    trials: list[Trial]


@pytest.fixture(scope="module")
def killed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("killed")
    storage, rates = folder / "results", [1e-4, 3e-4, 1e-3, 3e-3]
    train = {"steps": 1, "batch_seconds": 3, "report_every": 1, "evaluate_every": 1}
    arms = {
        "waiting": {
            "trial": small_trial(corpus, regime(100_000)),
            "space": grid({"regime.finetune.learning_rate": rates[:WAITING]}),
        },
        "quick": {
            "trial": small_trial(corpus, {"kind": "supervised", "train": train}),
            "space": grid({"regime.train.learning_rate": rates[:QUICK]}),
        },
    }
    process = start(write(folder / "sweep.yaml", arms, resources={"max_groups": 2, "retries": 0}))

    def trials(arm: str) -> list[Trial]:
        return [trial for trial in trials_of(storage, "small") if trial.arm == arm]

    def all_wait() -> bool:
        done = [trial for trial in trials("quick") if trial.status == "finished"]
        return len(done) == QUICK and len(trials("waiting")) == WAITING

    wait_for(all_wait, process)
    quick = trials("quick")
    while process.poll() is None:  # trials that did not follow the stage yet when it was killed start it again
        for lease in (storage / "stages" / "pretrain").glob("*.lease"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int(lease.read_text().split()[1]), signal.SIGKILL)
        time.sleep(0.2)
    process.communicate()
    return Killed(process.returncode, quick, trials("waiting"))


@pytest.mark.long
def test_trials_that_wait_for_a_pretraining_hold_no_worker(killed: Killed) -> None:
    """There are two worker groups, and four trials wait for the stage of one of them."""
    assert [trial.status for trial in killed.quick_before] == ["finished"] * QUICK


@pytest.mark.long
def test_when_a_shared_pretraining_is_killed_its_trials_fail_with_the_cause_and_the_study_ends(killed: Killed) -> None:
    assert killed.code == 3
    assert {trial.status for trial in killed.trials} == {"failed"}
    assert all("pretrain: its process was killed by SIGKILL" in (trial.cause or "") for trial in killed.trials)


# A study that dies


def trials_of(storage: Path, study: str) -> list[Trial]:
    return Ledger.in_folder(storage).trials(study) if (storage / "ledger.db").exists() else []


def ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        pid = parent(pid)
        yield pid


@pytest.mark.long
def test_a_study_that_waits_for_another_takes_over_when_that_one_is_killed(corpus: Path, tmp_path: Path) -> None:
    """From the last checkpoint of the killed one."""
    steps = 500
    sweep = write(tmp_path / "sweep.yaml", {"arm": {"trial": small_trial(corpus, regime(steps))}})
    storage = tmp_path / "results"
    folder = storage / "stages" / "pretrain"
    studies = {name: start(sweep, f"study={name}") for name in ("one", "other")}
    for name, process in studies.items():
        wait_for(lambda name=name: bool(trials_of(storage, name)), process)  # type: ignore[misc]
    wait_for(lambda: any(folder.glob("*.partial/checkpoint.pt")), studies["one"])
    (lease,) = folder.glob("*.lease")
    holders = set(ancestors(int(lease.read_text().split()[1])))
    (first,) = (name for name, process in studies.items() if process.pid in holders)
    (second,) = studies.keys() - {first}

    studies[first].kill()
    killed_at = time.time()
    studies[first].communicate()
    output, _ = studies[second].communicate(timeout=TIMEOUT_SECONDS)
    assert studies[second].returncode == 0, output
    assert [trial.status for trial in trials_of(storage, second)] == ["finished"]
    assert [trial.status for trial in trials_of(storage, first)] == ["unfinished"]
    (pretrained,) = (result for result in results(storage).values() if result.last.step == steps)
    times = [report.reported_at for report in pretrained.reports]
    assert times[0] < killed_at < times[-1], "the first steps are those of the killed study"
