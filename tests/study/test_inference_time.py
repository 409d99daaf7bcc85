"""Measuring inference times on a real Ray cluster: what cannot be measured is told, and nothing is measured twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from study.inference_time import measure_inference_times
from study.ledger import Ledger
from study.spec import StudySpec
from tests.conftest import small_trial, spanish_rows, write_corpus
from tests.study.builders import add_trial, dev_curve, open_study, spec_of
from trainables.loop import run_stage
from trainables.stage import Report, Stage
from trainables.store import StageStore

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class Heard:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def told(self, message: str) -> None:
        self.messages.append(message)

    def trial_started(self, trial: str) -> None:
        raise AssertionError("no trial runs")

    def reported(self, trial: str, stage: Stage, report: Report) -> None:
        raise AssertionError("no trial runs")

    def trial_ended(self, trial: str) -> None:
        raise AssertionError("no trial runs")


@pytest.fixture
def spec(tmp_path: Path) -> StudySpec:
    corpus = write_corpus(tmp_path / "speech", spanish_rows(20))
    regime = {"kind": "supervised", "train": {"steps": 2, "batch_seconds": 6, "evaluate_every": 2}}
    arms = {name: {"trial": small_trial(corpus, regime)} for name in ("one", "other")}
    return spec_of(tmp_path / "results", arms=arms, inference_time={"repeats": 2, "batch_seconds": 10})


def finish(ledger: Ledger, spec: StudySpec, arm: str) -> Stage:
    name, (stage,) = add_trial(ledger, spec, arm)
    ledger.append(stage.fingerprint(), dev_curve({2: 0.9}))
    ledger.end_trial(spec.study, name, "finished")
    return stage


def test_each_model_is_measured_once_and_only_once(spec: StudySpec) -> None:
    """Both arms have the same one."""
    ledger, heard = open_study(spec), Heard()
    stage = finish(ledger, spec, "one")
    run_stage(stage, StageStore(spec.storage), lambda report: None)
    finish(ledger, spec, "other")
    for _ in range(2):
        measure_inference_times(spec, ledger, heard)
    ((found,),) = ledger.inference_times(spec.study).values()
    assert len(found.seconds) == 2
    assert heard.messages == ["measuring the inference time of 1 model(s)"]


def test_weights_that_were_removed_are_told(spec: StudySpec) -> None:
    ledger, heard = open_study(spec), Heard()
    stage = finish(ledger, spec, "one")
    measure_inference_times(spec, ledger, heard)
    assert ledger.inference_times(spec.study) == {}
    assert f"the inference time of {stage.name()} was not measured: " in heard.messages[-1]


def test_an_accelerator_that_does_not_become_free_is_told(spec: StudySpec) -> None:
    @ray.remote(num_cpus=1)
    class Holder:
        def ready(self) -> None:
            """To see that it is there."""

    holder = Holder.remote()
    ray.get(holder.ready.remote())
    ledger, heard = open_study(spec), Heard()
    finish(ledger, spec, "one")
    assert spec.inference_time is not None
    impatient = spec.with_(inference_time=spec.inference_time.with_(wait_minutes=0.02))
    measure_inference_times(impatient, ledger, heard)
    ray.kill(holder)
    assert heard.messages[-1] == (
        "inference times were not measured: no whole node with 1 CPUs was free within 0.02 min; the same command "
        "measures them later"
    )
