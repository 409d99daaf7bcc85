"""A transformer with LayerDrop and batch-normalised projections: two workers train it as one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.conftest import bl_just, pretrain_finetune, small_trial
from tests.processes import run_two_workers
from tests.trainables.test_loop import run, weights
from trainables.loop import run_stage
from trainables.stage import Stage
from trainables.store import StageStore
from trainables.trial import TrialConfig, stages_of

pytestmark = pytest.mark.long

# No dropout, and statistics over each utterance: then nothing depends on which utterances share a worker.
MODEL: dict[str, Any] = {
    "preset": "sew_d_tiny",
    "extractor": {"channels": 8, "masked_statistics": True},
    "width": 32,
    "heads": 2,
    "layers": 4,
    "position_kernel": 15,
    "dropout": {"hidden": 0, "attention": 0, "input": 0, "features": 0, "layer": 0.5},
    "quantiser": {"entries": 8, "dim": 16},
    "projection": {"hidden_width": 24},
}


def _worker(place: int, stages: list[Stage], root: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root / 'rendezvous'}", rank=place, world_size=2)
    for stage in stages:
        run_stage(stage, StageStore(root / "together"), lambda report: None)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def stages(small_corpus: Path) -> list[Stage]:
    trials = [small_trial(small_corpus, regime(4), model=MODEL) for regime in (pretrain_finetune, bl_just)]
    return [stage for trial in trials for stage in stages_of(TrialConfig.model_validate(trial))]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, stages: list[Stage]) -> Path:
    root = tmp_path_factory.mktemp("workers")
    run_two_workers(_worker, stages, root)
    return root


@pytest.mark.parametrize("index", range(4), ids=["pretrain", "finetune after it", "joint", "finetune after that"])
def test_two_workers_train_as_one(index: int, root: Path, stages: list[Stage], tmp_path: Path) -> None:
    alone, together = StageStore(tmp_path), StageStore(root / "together")
    for stage in stages[index // 2 * 2 : index + 1]:
        expected = run(stage, alone)
    result = together.result(stages[index])
    assert result
    for one, two in zip(expected, result.reports, strict=True):
        assert two.metrics == pytest.approx(one.metrics, rel=2e-3, abs=1e-4)
    for name, tensor in weights(stages[index], alone).items():
        torch.testing.assert_close(weights(stages[index], together)[name], tensor, rtol=2e-2, atol=2e-4)
