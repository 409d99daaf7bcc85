"""The methods section of a report: sentences that are true of the study, and of no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from study.ledger import Ledger
from study.report import write_report
from study.spec import StudySpec
from tests.study.builders import (
    LEARNING_RATE,
    add_trial,
    crossing_at,
    open_study,
    pretrain_finetune,
    report,
    run_trial,
    spec_of,
    supervised,
    sweep,
)
from trainables.data.config import PromptsConfig
from trainables.trial import corpus_of

pytestmark = pytest.mark.usefixtures("no_pdf")


def methods(spec: StudySpec, ledger: Ledger) -> dict[str, str]:
    """Heading -> words below it."""
    page = write_report(spec, ledger).read_text(encoding="utf-8")
    (section,) = re.findall(r"<h2>Methods</h2>(.*?)</section>", page, re.DOTALL)
    parts = re.findall(r"<h3>(.*?)</h3>(.*?)(?=<h3>|$)", section, re.DOTALL)
    return {title: " ".join(re.sub(r"<.*?>", " ", body).split()) for title, body in parts}


def filled(storage: Path, **changes: Any) -> dict[str, str]:
    """Of a study of two searched arms with three fresh seeds each."""
    spec = spec_of(storage, **changes)
    ledger = open_study(spec)
    for arm in spec.arms:
        run_trial(ledger, spec, arm, curve=crossing_at(20), rate=2e-3)
        run_trial(ledger, spec, arm, 1, curve={10: 0.8}, status="failed", cause="lost")
        for seed in (1, 2, 3):
            run_trial(ledger, spec, arm, origin="replication", seed=seed, curve=crossing_at(20 + seed), rate=2e-3)
    return methods(spec, ledger)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return filled(tmp_path_factory.mktemp("study"))


def test_the_corpus_has_its_splits_with_durations(usual: dict[str, str]) -> None:
    corpus = corpus_of(PromptsConfig())
    minutes = sum(utterance.duration_seconds for utterance in corpus.train) / 60
    assert f"train {minutes:.1f} min ({len(corpus.train)} utterances)" in usual["Data"]
    assert all(part in usual["Data"] for part in ("dev", "test", "unlabelled"))


def test_hours_of_a_corpus_that_has_changed_since_are_not_given(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    ledger = open_study(spec)
    recorded = ledger.study("race")["environment"]
    ((corpus, parts),) = recorded["data"].items()
    ledger.open_study("race", spec.model_dump(mode="json"), {**recorded, "data": {corpus: {**parts, "dev": "0" * 64}}})
    assert "it has changed since" in methods(spec, ledger)["Data"]
    assert "utterances" not in methods(spec, ledger)["Data"]


def test_a_corpus_that_is_not_there_does_not_stop_the_report(tmp_path: Path) -> None:
    corpus = {"kind": "folder", "root": str(tmp_path / "gone"), "language": "en"}
    spec = spec_of(tmp_path / "results", trial={"corpus": corpus})
    ledger = Ledger.in_folder(spec.storage)
    ledger.open_study(spec.study, spec.model_dump(mode="json"), {"versions": {}, "data": {}})
    assert "The corpus gone in &#x27;en&#x27; (it cannot be read on this machine" in methods(spec, ledger)["Data"]


def test_stages_have_updates_batches_and_the_learning_rate_of_the_best(usual: dict[str, str]) -> None:
    (slow, fast) = re.split(r"(?=fast:)", usual["Models and training"])
    for words in (slow, fast):
        assert "Of the searched values, the best: learning_rate=0.002." in words
        assert "Stage supervised: 40 updates with AdamW, batches of 24 s of padded audio" in words
        assert "the CTC loss and a peak learning rate of 0.002, tri-stage schedule, fp32." in words


def test_every_stage_of_an_arm_is_told(tmp_path: Path) -> None:
    arms = {"one": {"trial": pretrain_finetune({"learning_rate": 7e-4}, frozen_backbone_steps=11, learning_rate=3e-4)}}
    spec = spec_of(tmp_path, arms=arms)
    ledger = open_study(spec)
    name, stages = add_trial(ledger, spec, "one")
    ledger.append(stages[-1].fingerprint(), [report(40, dev_cer=0.4, dev_wer=0.5, parameters=1234567)])
    ledger.end_trial(spec.study, name, "finished")
    words = methods(spec, ledger)["Models and training"]
    assert "compact_cnn_gru with 1,234,567 parameters (backbone and CTC head), from random weights" in words
    assert "Stage pretrain: 100 updates" in words
    assert "the contrastive loss and a peak learning rate of 0.0007" in words
    assert "Stage finetune: 40 updates" in words
    assert "of 0.0003, the backbone frozen for 11 updates" in words


def test_the_search_has_sampler_trials_space_and_outcomes(usual: dict[str, str]) -> None:
    words = usual["Search"]
    assert "with 2 trials, for the lowest final dev CER." in words
    assert "Sampler: independent draws, in Optuna (Akiba et al., 2019), seed 0." in words
    assert f"Searched in slow: {LEARNING_RATE} (log-uniform: low 0.0001, high 0.01)." in words
    assert "Of 4 trials of the search: 2 finished, 2 failed." in words
    assert "Early stopping" not in words


def test_early_stopping_and_limits_are_told_where_there_are_any(tmp_path: Path) -> None:
    words = filled(tmp_path, early_stopping={"kind": "asha"}, stop={"accelerator_hours": 3})["Search"]
    assert "Early stopping on dev CER: asynchronous successive halving (Li et al., 2020), reduction factor 3" in words
    assert "Limits of the search: accelerator hours 3.0." in words


def test_a_study_without_a_space_searched_nothing(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, arms={"one": {"trial": supervised()}})
    assert methods(spec, open_study(spec))["Search"] == "Nothing was searched: each arm has one configuration."


def test_a_grid_is_searched_without_a_sampler(tmp_path: Path) -> None:
    arms = {"one": {"trial": supervised(), "space": {LEARNING_RATE: {"kind": "grid", "choices": [1e-3, 2e-3]}}}}
    spec = spec_of(tmp_path, arms=arms)
    words = methods(spec, open_study(spec))["Search"]
    assert "with 1 trial for each of the 2 combinations of its grid," in words
    assert "Sampler" not in words


def test_replication_and_convergence_are_those_of_the_study(usual: dict[str, str]) -> None:
    words = usual["Replication and convergence"]
    assert "Reported of slow: 3 runs, with fresh seeds, after the search (seed 1, 2, 3)." in words
    assert "its dev CER is at or below 50%" in words


def test_hardware_and_versions_are_those_that_were_recorded(tmp_path: Path) -> None:
    words = filled(tmp_path, resources={"workers": 2, "stages": {"pretrain": {"gpus_per_worker": 1}}})
    assert "2 workers with 1 CPU core and no GPU." in words["Hardware and software"]
    assert "pretrain were trained by 1 worker with 1 CPU core and 1 GPU each." in words["Hardware and software"]
    versions = Ledger.in_folder(tmp_path).study("race")["environment"]["versions"]
    assert all(f"{name} {version}".strip() in words["Hardware and software"] for name, version in versions.items())


def test_every_method_of_the_page_has_its_reference(usual: dict[str, str]) -> None:
    for name in ("Student, 1908", "Welch, 1947", "Holm, 1979", "Kaplan and Meier (1958)", "Mantel, 1966"):
        assert name in usual["Statistics"]


def test_methods_that_the_page_does_not_use_are_not_named(usual: dict[str, str]) -> None:
    for name in ("Royston", "Bisani", "Hoffmann", "Pareto", "Hutter", "soft L1"):
        assert name not in usual["Statistics"]


def test_without_results_there_are_no_statistics(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    assert "Statistics" not in methods(spec, open_study(spec))


def test_settings_that_only_another_version_understands_do_not_stop_the_report(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, arms={"one": sweep(tmp_path)["arms"]["slow"]})
    ledger = open_study(spec)
    name, (stage,) = add_trial(ledger, spec, "one", point={LEARNING_RATE: 1e-3})
    ledger.append(stage.fingerprint(), [report(40, dev_cer=0.4, dev_wer=0.5)])
    ledger.end_trial(spec.study, name, "finished")
    unknown = {**spec.arms["one"].trial, "no_such_field": 1}
    changed = spec.with_(arms={"one": spec.arms["one"].with_(trial=unknown)})
    assert "its stages cannot be told on this machine" in methods(changed, ledger)["Models and training"]
