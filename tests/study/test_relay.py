"""A trial as it hands its stages on, here to this process in place of worker groups."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.tune

from cluster.nodes import GroupSize
from study import relay
from tests.conftest import pretrain_finetune, small_trial
from trainables.loop import run_stage
from trainables.stage import Report, Stage
from trainables.stage_process import Outcome
from trainables.store import StageStore


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the trial tells Tune."""
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(ray.tune, "report", said.append)
    return said


def run(corpus: Path, storage: Path, monkeypatch: pytest.MonkeyPatch, removals: int) -> list[str]:
    """The kinds of stages that were run, when the pre-training is removed before the first fine-tunings."""
    ran: list[str] = []

    def here(
        trial: str, stage: Stage, store: StageStore, groups: Any, size: Any, relay: Callable[[list[Report]], None]
    ) -> Outcome:
        ran.append(stage.kind)
        if stage.initial and ran.count("finetune") <= removals:
            shutil.rmtree(store.folder(stage.initial.stage))
        try:
            relay(list(run_stage(stage, store, lambda report: None).reports))
        except OSError as error:
            return Outcome("failed", str(error))
        return Outcome("finished")

    monkeypatch.setattr(relay, "_run_stage", here)
    config = {"trial": "one", "config": small_trial(corpus, pretrain_finetune(2))}
    relay.run_trial(config, None, defaultdict(lambda: GroupSize(1, 1, 0)), storage, None)
    return ran


def test_a_stage_that_somebody_has_removed_is_trained_again(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[dict[str, Any]]
) -> None:
    assert run(small_corpus, tmp_path, monkeypatch, removals=2) == ["pretrain", "finetune"] * 3
    assert said[-1] == {"status": "finished", "cause": None}
    assert [found["position"] for found in said[:-1]] == [0, 0, 0, 1]


def test_a_stage_that_is_removed_again_and_again_fails_the_trial(
    small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[dict[str, Any]]
) -> None:
    assert run(small_corpus, tmp_path, monkeypatch, removals=9) == ["pretrain", "finetune"] * 4
    assert said[-1]["status"] == "failed"
    assert "the stage is not there" in said[-1]["cause"]
