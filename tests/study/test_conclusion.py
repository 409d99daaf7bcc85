"""What MLflow's runs are told of the answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.answer import answer
from study.conclusion import conclusion
from study.ledger import Ledger
from study.spec import StudySpec
from tests.study.builders import crossing_at, open_study, run_trial, spec_of
from trainables.stage import InferenceTime


@pytest.fixture
def spec(tmp_path: Path) -> StudySpec:
    return spec_of(tmp_path)


@pytest.fixture
def ledger(spec: StudySpec) -> Ledger:
    """Both arms reach 50 % at steps that are known; a step of `fast` costs a quarter."""
    ledger = open_study(spec)
    for arm, cost in (("slow", 2.0), ("fast", 0.5)):
        run_trial(ledger, spec, arm, curve={10: 0.9, 30: 0.6}, seconds_a_step=cost)
        for seed in (1, 2, 3):
            curve = crossing_at(20 + seed)
            run_trial(ledger, spec, arm, origin="replication", seed=seed, curve=curve, seconds_a_step=cost)
    return ledger


def test_a_trial_is_told_what_it_spent_until_the_target(spec: StudySpec, ledger: Ledger) -> None:
    told = conclusion(spec, ledger, answer(spec, ledger), spec.storage).runs["slow-000-seed2"]
    assert told.metrics == pytest.approx(
        {
            "updates_to_target": 22,
            "accelerator_seconds_to_target": 44,
            "elapsed_seconds_to_target": 44,
            "audio_hours_to_target": 22 * 24 / 3600,
        }
    )
    assert told.tags == {"reached_target": "yes", "stands_for_arm": "yes"}


def test_a_trial_that_did_not_reach_it_is_told_so(spec: StudySpec, ledger: Ledger) -> None:
    told = conclusion(spec, ledger, answer(spec, ledger), spec.storage).runs["slow-000"]
    assert told.metrics == {}
    assert told.tags == {"reached_target": "no", "stands_for_arm": "no"}


def test_the_study_is_told_means_and_ratios_with_their_intervals(spec: StudySpec, ledger: Ledger) -> None:
    found = answer(spec, ledger)
    told = conclusion(spec, ledger, found, spec.storage)
    metrics = told.runs["study"].metrics
    assert told.note == " ".join(found.sentences)
    assert metrics["fast/updates_ratio"] == pytest.approx(1.0)
    assert metrics["fast/accelerator_seconds_ratio"] == pytest.approx(0.25)
    assert metrics["fast/accelerator_seconds_ratio_low"] < 0.25 < metrics["fast/accelerator_seconds_ratio_high"]
    assert metrics["slow/dev_cer"] == found.arms[0].rates["dev_cer"].estimate
    assert metrics["slow/dev_cer_low"] < metrics["slow/dev_cer"] < metrics["slow/dev_cer_high"]


def test_inference_times_are_those_of_the_model(spec: StudySpec, ledger: Ledger) -> None:
    """Both arms have the same model."""
    (stage,) = ledger.trial_stages(spec.study, "fast-000")
    time = InferenceTime(
        split="dev", batch_seconds=250, device="one", utterances=1, audio_seconds=9.0, seconds=(1.0, 2.0)
    )
    ledger.add_inference_time(stage["stage"], time)
    runs = conclusion(spec, ledger, answer(spec, ledger), spec.storage).runs
    assert {run.metrics.get("inference_seconds") for key, run in runs.items() if key != "study"} == {1.5}
