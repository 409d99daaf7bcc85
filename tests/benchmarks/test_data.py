"""The benchmark's pipelines deliver the same audio; how fast they are is not tested."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.benchmarks.data import (
    AudioSet,
    Pipeline,
    bucketed,
    compare,
    joined,
    main,
    our_pipeline,
    pipelines,
    prompts,
    run,
    some,
    write_set,
)
from trainables.data.audio import waveform
from trainables.data.config import SAMPLE_RATE_HZ, CropConfig

SECONDS = 30.0
BATCH_SECONDS = 12.0


@pytest.fixture(scope="module", params=["flac", "mp3"])
def audio(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AudioSet:
    """30 s of real prompts in five languages."""
    waveforms = map(waveform, some(prompts(), SECONDS))
    folder = tmp_path_factory.mktemp("audio") / request.param
    return write_set(waveforms, folder, request.param, 16_000 if request.param == "flac" else 48_000)


def rows_of(pipeline: Pipeline) -> Tensor:
    """Of each utterance, sorted: its length, the sum of its squares, and that of its padding."""
    rows = [
        (len(waveform_S[:length]), float(waveform_S[:length].square().sum()), float(waveform_S[length:].square().sum()))
        for waveform_BS, num_samples_B in pipeline()
        for waveform_S, length in zip(waveform_BS, num_samples_B.tolist(), strict=True)
    ]
    return torch.tensor(sorted(rows), dtype=torch.float64)


def test_every_pipeline_delivers_the_same_utterances_once(audio: AudioSet) -> None:
    delivered = {key: rows_of(pipeline) for key, pipeline in pipelines(audio, BATCH_SECONDS, [0]).items()}
    lengths = sorted(utterance.stored[1] for utterance in audio.stored if utterance.stored)
    for rows in delivered.values():
        assert rows[:, 0].tolist() == lengths
        assert not rows[:, 2].any()
        torch.testing.assert_close(rows, delivered["ours, store", 0], rtol=1e-2, atol=1e-4)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("audio", ["flac"], indirect=True)
def test_workers_deliver_all_samples_once(audio: AudioSet) -> None:
    epochs = {key: run(pipeline) for key, pipeline in pipelines(audio, BATCH_SECONDS, [2]).items()}
    samples = sum(utterance.stored[1] for utterance in audio.stored if utterance.stored)
    assert {key: epoch.samples for key, epoch in epochs.items()} == dict.fromkeys(epochs, samples)
    assert all(0 < epoch.padding < 1 for epoch in epochs.values())


def test_an_epoch_of_crops_is_one_crop_of_each_recording(tmp_path: Path) -> None:
    recordings = list(joined(some(prompts(), 60.0), 12.0))
    audio = write_set(recordings, tmp_path / "long")
    for threads in (0, 2):
        epoch = run(our_pipeline(audio.stored, 8.0, threads, CropConfig(max_seconds=4.0)))
        assert epoch.samples == epoch.padded_samples == len(recordings) * 4 * SAMPLE_RATE_HZ


def test_bucketed_batches_hold_each_utterance_once_within_the_padded_area() -> None:
    durations_seconds = [u.duration_seconds for u in prompts()]
    batches = bucketed(durations_seconds, batch_seconds=20.0)
    assert sorted(index for batch in batches for index in batch) == list(range(len(durations_seconds)))
    assert max(len(batch) * max(durations_seconds[i] for i in batch) for batch in batches) <= 20.0


@pytest.mark.parametrize("audio", ["flac"], indirect=True)
@pytest.mark.long
def test_comparison_prints_a_line_for_each_pipeline_and_the_ratios(
    audio: AudioSet, capsys: pytest.CaptureFixture[str]
) -> None:
    found = pipelines(audio, BATCH_SECONDS, [0])
    compare("flac", found, rounds=1)
    printed = capsys.readouterr().out
    assert printed.count("padding") == len(found)
    assert printed.count("as many times faster") == 1


@pytest.mark.slow
@pytest.mark.long
def test_the_command_prints_padding_crops_and_random_access(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--sets", "long", "--seconds", "70", "--threads", "0", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["data.py", *small])
    main()
    printed = capsys.readouterr().out
    assert printed.startswith("padding of our batches, prompts")
    assert printed.count("a crop takes") == 2
    assert printed.count("random access") == 3
