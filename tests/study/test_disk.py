"""The disk that stages take, against folders of stages that were trained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from study.disk import ASSUMED_SYMBOLS, checkpoint_bytes, disk_estimate, num_outputs, stage_bytes, training_bytes
from tests.conftest import bl_just, pretrain_finetune, small_trial
from trainables.data.config import FolderConfig, LettersConfig, PiecesConfig
from trainables.data.symbols import symbols_of
from trainables.loop import run_stage
from trainables.stage import Report, Stage
from trainables.store import StageStore
from trainables.trial import TrialConfig, corpus_of, stages_of

COMPACT = {"preset": "compact_cnn_gru"}
TRANSFORMER = {
    "preset": "sew_d_tiny",
    "width": 128,
    "layers": 3,
    "extractor": {"channels": 16},
    "quantiser": {"entries": 40, "dim": 64},
    "projection": {"kind": "mlp", "hidden_width": 256},
}
BRIEF = {"steps": 2, "batch_seconds": 6, "report_every": 1}
EVALUATED = {**BRIEF, "evaluate_every": 1}
FROZEN = {"mask": {"time_probability": 0.2}, "extractor_gradient": 0}
REGIMES: dict[str, dict[str, Any]] = {
    "pretrain_finetune": pretrain_finetune(2),
    "bl_just": bl_just(6),
    "cpc, then a frozen extractor": {
        "kind": "pretrain_finetune",
        "pretrain": {**BRIEF, "loss": {"kind": "cpc"}},
        "finetune": {**EVALUATED, "loss": FROZEN},
    },
    "a probe": {"kind": "supervised", "train": {**EVALUATED, "frozen_backbone_steps": 2}},
    "pseudo labels": {
        "kind": "wav2vec_s",
        "pretrain": BRIEF,
        "semi_supervised": {**EVALUATED, "unlabelled": "pseudo_labels"},
        "finetune": EVALUATED,
    },
}


def stages(corpus: Path, regime: dict[str, Any], **changes: Any) -> list[Stage]:
    """Stages that write a checkpoint at every step."""
    trial = TrialConfig.model_validate(small_trial(corpus, regime, **changes))
    return [stage.with_(checkpoint_seconds=1e-9) for stage in stages_of(trial)]


def size(folder: Path, pattern: str = "*") -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))


def largest_checkpoint(stage: Stage, store: StageStore) -> int:
    """Train the stage; the size of the largest checkpoint that it had before a report."""
    sizes = [0]

    def look(report: Report) -> None:
        sizes.append(size(store.partial_folder(stage), "checkpoint.pt"))

    run_stage(stage, store, look)
    return max(sizes)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("model", [COMPACT, TRANSFORMER], ids=["compact_cnn_gru", "sew_d"])
@pytest.mark.parametrize("regime", REGIMES.values(), ids=REGIMES)
def test_a_trained_stage_takes_what_was_estimated(
    small_corpus: Path, tmp_path: Path, model: dict[str, Any], regime: dict[str, Any]
) -> None:
    store = StageStore(tmp_path)
    for stage in stages(small_corpus, regime, model=model):
        assert checkpoint_bytes(stage) == pytest.approx(largest_checkpoint(stage, store), rel=0.1)
        assert stage_bytes(stage) == pytest.approx(size(store.folder(stage)), rel=0.1)


def test_two_checkpoints_and_the_best_weights_at_their_time_are_there_while_a_stage_trains(
    small_corpus: Path, tmp_path: Path
) -> None:
    *_, stage = stages(
        small_corpus, {"kind": "supervised", "train": {**EVALUATED, "steps": 4, "keep": "best"}}, model=COMPACT
    )
    store, sizes = StageStore(tmp_path), []

    def look(report: Report) -> None:
        folder = store.partial_folder(stage)
        sizes.append(size(folder, "checkpoint*.pt") + 2 * max(p.stat().st_size for p in folder.glob("kept-*")))

    run_stage(stage, store, look)
    assert training_bytes(stage) == pytest.approx(max(sizes), rel=0.1)
    assert training_bytes(stage.with_(keep="last")) == 2 * checkpoint_bytes(stage)


def test_a_stage_that_decodes_keeps_its_hypotheses_and_has_no_checkpoint(small_corpus: Path, tmp_path: Path) -> None:
    regime = {"kind": "supervised", "train": EVALUATED}
    trained, decoded = stages(small_corpus, regime, language_model={})
    for stage in (trained, decoded):
        run_stage(stage, StageStore(tmp_path), lambda report: None)
    assert (training_bytes(decoded), decoded.phases) == (0, ())
    assert stage_bytes(decoded) == pytest.approx(size(StageStore(tmp_path).folder(decoded)), rel=0.25)


def test_the_outputs_are_as_many_as_the_symbols_of_the_train_transcripts(small_corpus: Path) -> None:
    stage = stages(small_corpus, {"kind": "supervised", "train": BRIEF})[0]
    texts = [u.text or "" for u in corpus_of(stage.corpus).train]
    assert num_outputs(stage) == len(symbols_of(texts, stage.outputs))
    assert num_outputs(stage.with_(outputs=LettersConfig())) == len(symbols_of(texts, LettersConfig()))
    assert num_outputs(stage.with_(outputs=PiecesConfig(vocabulary_size=40))) == 40


def test_a_corpus_that_is_not_here_has_as_many_outputs_as_english_letters(small_corpus: Path, tmp_path: Path) -> None:
    stage = stages(small_corpus, {"kind": "supervised", "train": BRIEF})[0]
    absent = stage.with_(corpus=FolderConfig(root=tmp_path / "absent"))
    assert num_outputs(absent) == ASSUMED_SYMBOLS == 32
    assert stage_bytes(absent) == pytest.approx(stage_bytes(stage), rel=0.1)


def test_w2v2_base_by_hand() -> None:
    """94,371,712 parameters of backbone and a head of 768 x 32 + 32; two moments of those in a checkpoint."""
    regime = {"kind": "supervised", "train": {"steps": 10, "report_every": 10}}
    trial = {"model": {"preset": "w2v2_base"}, "outputs": {"kind": "letters"}, "regime": regime}
    stage = stages_of(TrialConfig.model_validate(trial))[0]
    trained = 4 * (94_371_712 + 768 * 32 + 32)
    assert stage_bytes(stage) == pytest.approx(trained, rel=1e-3)
    head = 4 * (512 * 640 + 640 + 320 * 256 + 768 * 256 + 256 + 256 * 256 + 256)
    assert checkpoint_bytes(stage) == pytest.approx(3 * trained + head, rel=1e-3)


class TestEstimate:
    def test_is_the_sum_of_what_is_kept_and_of_the_largest_in_training(self, small_corpus: Path) -> None:
        small = stages(small_corpus, {"kind": "supervised", "train": EVALUATED})[0]
        large = stages(small_corpus, {"kind": "supervised", "train": EVALUATED}, model=COMPACT)[0]
        found = disk_estimate([small, large, small], concurrent=2)
        assert found.kept_bytes == 2 * stage_bytes(small) + stage_bytes(large)
        beside = training_bytes(small) + training_bytes(large) + checkpoint_bytes(small) + checkpoint_bytes(large)
        assert found.training_bytes == beside

    def test_of_nothing_is_nothing(self) -> None:
        found = disk_estimate([], concurrent=4)
        assert (found.kept_bytes, found.training_bytes) == (0, 0)

    def test_needs_no_torch(self) -> None:
        """In a process of its own, for this one has imported it."""
        program = "import sys, study.disk; assert not {'torch', 'ray', 'optuna'} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", program], check=True)
