"""Self-supervised training sees neither a transcript nor the speech of dev and test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import SMALL_MODEL, Row, spanish_rows, write_corpus
from tests.trainables.test_loop import run, weights, without_times
from trainables.data.corpus import PROMPTS
from trainables.stage import Report, Stage
from trainables.store import StageStore
from trainables.trial import TrialConfig, stages_of

PRETRAIN = {"steps": 3, "batch_seconds": 6, "report_every": 1}
LABELLED = {**PRETRAIN, "evaluate_every": 3}
REGIMES: dict[str, dict[str, Any]] = {
    "contrastive": {"kind": "pretrain_finetune", "pretrain": PRETRAIN, "finetune": LABELLED},
    "cpc": {"kind": "pretrain_finetune", "pretrain": {**PRETRAIN, "loss": {"kind": "cpc"}}, "finetune": LABELLED},
    "wav2vec_s": {"kind": "wav2vec_s", "pretrain": PRETRAIN, "semi_supervised": LABELLED, "finetune": LABELLED},
}
Corpus = Callable[[Path], dict[str, Any]]


def folder(root: Path) -> dict[str, Any]:
    return {"kind": "folder", "root": str(root)}


def mixture(root: Path) -> dict[str, Any]:
    italian = {"kind": "prompts", "language": "it", "unlabelled_hours": 0.01}
    return {"kind": "mixture", "labelled": folder(root), "unlabelled": [folder(root), italian]}


def half(root: Path) -> dict[str, Any]:
    return {**folder(root), "unlabelled_fraction": 0.5}


CORPORA: dict[str, Corpus] = {"folder": folder, "mixture": mixture, "half": half}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("original"), spanish_rows(40))


def rows() -> list[Row]:
    """Of the same utterances, with other texts."""
    return [{**row, "text": f"nada {'x' * (i % 5)}"} for i, row in enumerate(spanish_rows(40))]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same train speech; all texts are others, and dev and test are French."""
    root = write_corpus(tmp_path_factory.mktemp("other"), rows())
    french = sorted((PROMPTS / "fr" / "audio").glob("*.ogg"))
    for number, row in enumerate(held_out()):
        shutil.copy(french[number], root / row["path"])
    return root


@pytest.fixture(scope="module")
def garbage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same train speech; all texts are others, and dev and test are no audio."""
    root = write_corpus(tmp_path_factory.mktemp("garbage"), rows())
    for row in held_out():
        path = root / row["path"]
        path.write_bytes(b"\xff" * path.stat().st_size)
    return root


def held_out() -> list[Row]:
    return [row for row in spanish_rows(40) if row["split"] in ("dev", "test")]


def first_stage(corpus: dict[str, Any], regime: str) -> Stage:
    given = {"corpus": corpus, "model": SMALL_MODEL, "regime": REGIMES[regime]}
    stage = stages_of(TrialConfig.model_validate(given))[0]
    assert stage.streams == ("unlabelled",)
    return stage


def trained(stage: Stage, storage: Path) -> tuple[list[Report], dict[str, torch.Tensor]]:
    store = StageStore(storage)
    return run(stage, store), weights(stage, store)


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("regime", REGIMES)
def test_neither_texts_nor_held_out_speech_are_part_of_what_a_self_supervised_stage_is(
    original: Path, other: Path, garbage: Path, regime: str, corpus: str
) -> None:
    expected, *found = (first_stage(CORPORA[corpus](root), regime) for root in (original, other, garbage))
    for stage in found:
        assert stage.data_fingerprint == expected.data_fingerprint
        assert (stage.name(), stage.fingerprint()) == (expected.name(), expected.fingerprint())


@pytest.mark.parametrize(("regime", "corpus"), [*((r, "folder") for r in REGIMES), ("contrastive", "mixture")])
def test_self_supervised_training_is_the_same_to_the_last_bit_whatever_the_texts_and_the_held_out_speech(
    original: Path, other: Path, garbage: Path, tmp_path: Path, regime: str, corpus: str
) -> None:
    """Speech of dev and test that cannot even be decoded is not missed."""
    make = CORPORA[corpus]
    reports, tensors = trained(first_stage(make(original), regime), tmp_path / "original")
    for root in (other, garbage):
        found_reports, found = trained(first_stage(make(root), regime), tmp_path / root.name)
        assert without_times(found_reports) == without_times(reports)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_other_train_recordings_are_another_stage_and_train_other_weights(original: Path, tmp_path: Path) -> None:
    """So the tests above see what they are to see."""
    changed = shutil.copytree(original, tmp_path / "changed")
    italian = sorted((PROMPTS / "it" / "audio").glob("*.ogg"))
    for number, row in enumerate(row for row in spanish_rows(40) if row["split"] == "train"):
        shutil.copy(italian[number], changed / row["path"])
    one, two = (first_stage(folder(root), "contrastive") for root in (original, changed))
    assert one.fingerprint() != two.fingerprint()
    (_, ours), (_, theirs) = trained(one, tmp_path / "one"), trained(two, tmp_path / "two")
    assert not all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("regime", REGIMES)
def test_the_labelled_stages_do_change_with_the_texts(original: Path, other: Path, regime: str) -> None:
    one, two = (
        stages_of(TrialConfig.model_validate({"corpus": folder(r), "model": SMALL_MODEL, "regime": REGIMES[regime]}))
        for r in (original, other)
    )
    assert all(a.fingerprint() != b.fingerprint() for a, b in zip(one[1:], two[1:], strict=True))
    assert len(one) > 1
