"""The stage store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.trainables.test_stage import FINETUNE
from trainables.stage import Report, Stage, StageResult
from trainables.store import StageStore, write_atomically


def result(loss: float) -> StageResult:
    report = Report(
        step=1,
        metrics={"ctc": loss},
        audio_seconds=2,
        epochs=3,
        elapsed_seconds=4,
        accelerator_seconds=5,
        reported_at=6,
    )
    return StageResult(reports=(report,), num_parameters=7)


def train(store: StageStore, weights: str) -> None:
    """Leave what a trained and uncommitted stage leaves."""
    partial = store.partial_folder(FINETUNE)
    partial.mkdir(parents=True)
    (partial / "checkpoint.pt").write_text("checkpoint")
    (partial / "backbone.safetensors").write_text(weights)


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return StageStore(tmp_path)


def test_a_folder_without_its_done_mark_is_no_result(store: StageStore) -> None:
    folder = store.folder(FINETUNE)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(result(1).model_dump_json())
    assert store.result(FINETUNE) is None
    (folder / "DONE").touch()
    assert store.result(FINETUNE) == result(1)


def test_a_commit_stores_result_stage_and_weights_without_the_checkpoint(store: StageStore) -> None:
    train(store, "first")
    assert store.result(FINETUNE) is None
    store.commit(FINETUNE, result(1))
    folder = store.folder(FINETUNE)
    assert store.result(FINETUNE) == result(1)
    assert Stage.model_validate_json((folder / "stage.json").read_text()) == FINETUNE
    assert sorted(os.listdir(folder)) == ["DONE", "backbone.safetensors", "result.json", "stage.json"]
    assert os.listdir(folder.parent) == [folder.name]


def test_committing_twice_changes_nothing(store: StageStore) -> None:
    train(store, "first")
    store.commit(FINETUNE, result(1))
    store.commit(FINETUNE, result(1))
    assert store.result(FINETUNE) == result(1)
    assert (store.folder(FINETUNE) / "backbone.safetensors").read_text() == "first"


def test_a_commit_that_was_cut_short_can_be_done_again(store: StageStore) -> None:
    train(store, "first")
    (store.partial_folder(FINETUNE) / "checkpoint.pt").unlink()
    (store.partial_folder(FINETUNE) / "DONE").touch()
    assert store.result(FINETUNE) is None
    store.commit(FINETUNE, result(1))
    assert store.result(FINETUNE) == result(1)


def test_a_second_worker_s_commit_leaves_the_first_in_place(store: StageStore) -> None:
    train(store, "first")
    store.commit(FINETUNE, result(1))
    train(store, "second")
    store.commit(FINETUNE, result(2))
    folder = store.folder(FINETUNE)
    assert store.result(FINETUNE) == result(1)
    assert (folder / "backbone.safetensors").read_text() == "first"
    assert os.listdir(folder.parent) == [folder.name]


def test_an_atomic_write_replaces_the_content_and_leaves_nothing_beside(tmp_path: Path) -> None:
    for content in (b"a longer old content", b"new"):
        write_atomically(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


# Lease
