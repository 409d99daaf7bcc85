"""The time that a trained model takes to recognise, and that what is timed is recognition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trainables.test_resume import supervised
from trainables.data.batches import make_batch
from trainables.inference_time import device_name, inference_time, prepared, recognise, sorted_batches
from trainables.loop import run_stage
from trainables.losses.ctc import ctc_log_probabilities
from trainables.models.checkpoints import read_ctc_model
from trainables.stage import Stage
from trainables.store import StageStore
from trainables.trial import corpus_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stage(small_corpus: Path) -> Stage:
    return supervised(small_corpus, 2)


@pytest.fixture(scope="module")
def folder(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = StageStore(tmp_path_factory.mktemp("store"))
    run_stage(stage, store, lambda report: None)
    return store.folder(stage)


def test_every_pass_that_counts_is_told_with_what_was_recognised(stage: Stage, folder: Path) -> None:
    found = inference_time(folder, stage.corpus, "dev", batch_seconds=10, warmup=1, repeats=3)
    dev = corpus_of(stage.corpus).dev
    assert len(found.seconds) == 3
    assert min(found.seconds) > 0
    assert found.utterances == len(dev)
    assert found.audio_seconds == pytest.approx(sum(u.duration_seconds for u in dev))
    assert found.device == device_name(CPU)
    assert str(torch.get_num_threads()) in found.device


def test_batches_hold_every_utterance_once_the_shortest_first(stage: Stage) -> None:
    dev = corpus_of(stage.corpus).dev
    batches = sorted_batches(dev, 8, CPU)
    lengths = [n for batch in batches for n in batch.num_samples_B.tolist()]
    assert sorted(lengths) == sorted(make_batch(dev, None, [0] * len(dev)).num_samples_B.tolist())
    longest = [int(batch.num_samples_B.max()) for batch in batches]
    assert longest == sorted(longest)
    assert all(batch.waveform_BS.numel() <= 8 * 16_000 or len(batch.waveform_BS) == 1 for batch in batches)


def test_what_is_timed_are_the_symbols_that_decoding_starts_from(stage: Stage, folder: Path) -> None:
    batches = sorted_batches(corpus_of(stage.corpus).dev, 10, CPU)
    model, _ = read_ctc_model(folder)
    with torch.inference_mode():
        expected = [ctc_log_probabilities(model.eval(), batch)[0].argmax(2) for batch in batches]
    for found, wanted in zip(recognise(prepared(model, CPU), batches), expected, strict=True):
        assert torch.equal(found, wanted)
