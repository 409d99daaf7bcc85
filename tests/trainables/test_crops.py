"""Batches of crops: one length, no padding, random places, and the same over any number of workers and parts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torchaudio.functional
from torch import Tensor

from tests.conftest import bl_just, pretrain_finetune, small_trial
from trainables.data.audio import load_audio
from trainables.data.batches import SPEEDS, Batch, Stream
from trainables.data.config import SAMPLE_RATE_HZ, CropConfig, FolderConfig
from trainables.data.corpus import CorpusError, Utterance, read_corpus
from trainables.data.seeds import fold
from trainables.trial import TrialConfig, problems

SEED = 1
BATCH_SECONDS = 8.0
BATCHES = 12  # a little more than an epoch
ROUNDED_SAMPLES = SAMPLE_RATE_HZ // 2000  # a manifest's durations are in whole milliseconds
UNCUT = CropConfig(max_seconds=100, min_seconds=1.0)
CUT = CropConfig(max_seconds=1.4, min_seconds=1.2)
SETTINGS = pytest.mark.parametrize("augment_speed", [False, True], ids=["plain", "speed"])


@pytest.fixture(scope="module")
def spoken(small_corpus: Path) -> tuple[Utterance, ...]:
    return read_corpus(FolderConfig(root=small_corpus)).unlabelled


def stream_of(spoken: Sequence[Utterance], crop: CropConfig | None = UNCUT, **settings: Any) -> Stream:
    given = {"seed": SEED, "augment_speed": False, "rank": 0, "world_size": 1, "batch_seconds": BATCH_SECONDS}
    return Stream(spoken, None, crop=crop, **{**given, **settings})


def workers(spoken: Sequence[Utterance], count: int, **settings: Any) -> list[Stream]:
    return [stream_of(spoken, rank=rank, world_size=count, **settings) for rank in range(count)]


def together(shares: Sequence[Batch]) -> dict[int, Tensor]:
    """Seed -> waveform of what counts in the shares of all workers or in all parts."""
    counted = [share for share in shares if share.counted]
    rows = [row for share in counted for row in zip(share.seeds, share.waveform_BS, strict=True)]
    assert len({seed for seed, _ in rows}) == len(rows)
    return dict(rows)


def utterances_by_seed(stream: Stream) -> dict[int, Utterance]:
    """Of the first epochs."""
    return {fold(stream.seed, epoch, u.id): u for epoch in range(9) for u in stream.utterances}


def played(utterance: Utterance, factor: float = 1.0) -> Tensor:
    waveform = torch.from_numpy(load_audio(utterance.path)).float()
    return waveform if factor == 1.0 else torchaudio.functional.resample(waveform, round(factor * 100), 100)


def place_in(whole: Tensor, crop: Tensor) -> int | None:
    """Where the crop starts, without the zeros that stand for what a manifest rounded up."""
    kept = crop[: len(crop) - ROUNDED_SAMPLES]
    pattern, text = kept.numpy().tobytes(), whole.numpy().tobytes()
    start = text.find(pattern)
    while start >= 0 and start % 4:
        start = text.find(pattern, start + 1)
    return start // 4 if start >= 0 else None


def durations_of(stream: Stream, batch: Batch) -> list[float]:
    known = utterances_by_seed(stream)
    return [known[seed].duration_seconds for seed in batch.seeds]


@pytest.mark.parametrize("crop", [UNCUT, CUT], ids=["uncut", "cut"])
def test_all_waveforms_of_a_batch_are_as_long_as_its_shortest_utterance_or_the_longest_crop(
    spoken: Sequence[Utterance], crop: CropConfig
) -> None:
    stream = stream_of(spoken, crop)
    for _ in range(BATCHES):
        (batch,) = stream.next()
        samples = int(min(crop.max_seconds, *durations_of(stream, batch)) * SAMPLE_RATE_HZ)
        assert batch.num_samples_B.tolist() == [samples] * len(batch.seeds)
        assert batch.waveform_BS.shape == (len(batch.seeds), samples)


def test_the_shortest_utterance_is_taken_whole(spoken: Sequence[Utterance]) -> None:
    stream = stream_of(spoken)
    for _ in range(BATCHES):
        (batch,) = stream.next()
        known = utterances_by_seed(stream)
        shortest = min(range(len(batch.seeds)), key=lambda i: known[batch.seeds[i]].duration_seconds)
        whole = played(known[batch.seeds[shortest]])
        start = place_in(whole, batch.waveform_BS[shortest])
        assert start is not None
        assert 0 <= start <= ROUNDED_SAMPLES
        assert batch.waveform_BS.shape[1] == pytest.approx(len(whole), abs=ROUNDED_SAMPLES)


@SETTINGS
@pytest.mark.parametrize("crop", [UNCUT, CUT], ids=["uncut", "cut"])
def test_a_crop_is_a_piece_of_its_own_utterance_and_no_padding(
    spoken: Sequence[Utterance], crop: CropConfig, augment_speed: bool
) -> None:
    stream = stream_of(spoken, crop, augment_speed=augment_speed)
    factors: set[float] = set()
    for _ in range(BATCHES):
        (batch,) = stream.next()
        known = utterances_by_seed(stream)
        for seed, waveform in zip(batch.seeds, batch.waveform_BS, strict=True):
            found = [
                factor
                for factor in (SPEEDS if augment_speed else (1.0,))
                if place_in(played(known[seed], factor), waveform) is not None
            ]
            assert len(found) == 1
            factors |= {*found}
    assert factors == (set(SPEEDS) if augment_speed else {1.0})


def test_with_other_speeds_a_batch_is_as_long_as_the_shortest_after_the_change(spoken: Sequence[Utterance]) -> None:
    stream = stream_of(spoken, augment_speed=True)
    for _ in range(BATCHES):
        (batch,) = stream.next()
        known = utterances_by_seed(stream)
        lengths = []
        for seed, waveform in zip(batch.seeds, batch.waveform_BS, strict=True):
            (audio,) = [
                audio for factor in SPEEDS if place_in(audio := played(known[seed], factor), waveform) is not None
            ]
            lengths.append(len(audio))
        assert batch.waveform_BS.shape[1] == pytest.approx(min(lengths), abs=ROUNDED_SAMPLES + 4)


def test_the_place_of_a_crop_is_drawn_from_the_seed_and_may_be_anywhere(spoken: Sequence[Utterance]) -> None:
    crop = CropConfig(max_seconds=0.5, min_seconds=2.0)
    starts: dict[str, set[int]] = {}
    ends_after: list[float] = []
    for seed in range(12):
        stream = stream_of(spoken, crop, seed=seed)
        known = {fold(seed, 0, u.id): u for u in stream.utterances}
        while not stream.epoch and (batch := stream.next()[0]):
            for waveform_seed, waveform in zip(batch.seeds, batch.waveform_BS, strict=True):
                if waveform_seed not in known:
                    continue  # of the next epoch
                whole = played(known[waveform_seed])
                start = place_in(whole, waveform)
                assert start is not None
                starts.setdefault(known[waveform_seed].id, set()).add(start)
                ends_after.append(start / (len(whole) - len(waveform)))
    assert min(map(len, starts.values())) > 6
    assert min(ends_after) < 0.1 < 0.9 < max(ends_after) <= 1


def test_the_same_stream_draws_the_same_crops(spoken: Sequence[Utterance]) -> None:
    one, other = stream_of(spoken, CUT), stream_of(spoken, CUT)
    for _ in range(BATCHES):
        assert torch.equal(one.next()[0].waveform_BS, other.next()[0].waveform_BS)


def test_utterances_below_min_seconds_never_appear_and_all_others_do(spoken: Sequence[Utterance]) -> None:
    limit = sorted(u.duration_seconds for u in spoken)[10]
    stream = stream_of(spoken, CropConfig(min_seconds=limit))
    long_enough = {u.id: u for u in spoken if u.duration_seconds >= limit}
    known, seen = {fold(SEED, 0, u.id): u.id for u in spoken}, []
    while (batch := stream.next()[0]) and not stream.epoch:
        seen += [known[seed] for seed in batch.seeds]
    assert sorted(seen) == sorted(long_enough)
    assert 0 < len(long_enough) < len(spoken)
    assert stream.seconds_per_epoch == pytest.approx(sum(u.duration_seconds for u in long_enough.values()))


def test_without_crops_short_utterances_are_padded_as_before(spoken: Sequence[Utterance]) -> None:
    stream = stream_of(spoken, None)
    lengths = [stream.next()[0].num_samples_B for _ in range(BATCHES)]
    assert any(len(set(batch.tolist())) > 1 for batch in lengths)


@SETTINGS
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_audio_seconds_are_what_was_processed(
    spoken: Sequence[Utterance], count: int, accumulation: int, augment_speed: bool
) -> None:
    streams = workers(spoken, count, accumulation=accumulation, augment_speed=augment_speed, crop=CUT)
    samples = 0
    for _ in range(BATCHES):
        drawn = itertools.chain(*(stream.next() for stream in streams))
        samples += sum(int(batch.num_samples_B.sum()) for batch in drawn if batch.counted)
        assert {stream.audio_seconds for stream in streams} == {streams[0].audio_seconds}
        assert streams[0].audio_seconds == pytest.approx(samples / SAMPLE_RATE_HZ)


@SETTINGS
@pytest.mark.parametrize("count", [2, 3])
def test_shares_of_the_workers_together_are_the_single_worker_s_crops(
    spoken: Sequence[Utterance], count: int, augment_speed: bool
) -> None:
    alone, several = (workers(spoken, number, augment_speed=augment_speed) for number in (1, count))
    for _ in range(BATCHES):
        whole = together(alone[0].next())
        shared = together([batch for stream in several for batch in stream.next()])
        assert shared.keys() == whole.keys()
        assert all(torch.equal(shared[seed], waveform) for seed, waveform in whole.items())


@SETTINGS
@pytest.mark.parametrize("accumulation", [2, 3, 50])
def test_parts_together_are_the_batch_with_each_utterance_once_and_shares_that_sum_to_1(
    spoken: Sequence[Utterance], accumulation: int, augment_speed: bool
) -> None:
    at_once = stream_of(spoken, augment_speed=augment_speed)
    in_parts = stream_of(spoken, augment_speed=augment_speed, accumulation=accumulation)
    for _ in range(BATCHES):
        whole, parts = together(at_once.next()), in_parts.next()
        found = together(parts)
        assert len(parts) == accumulation
        assert found.keys() == whole.keys()
        assert all(torch.equal(found[seed], waveform) for seed, waveform in whole.items())
        counted = [len(part.seeds) if part.counted else 0 for part in parts]
        assert [part.share for part in parts] == pytest.approx([number / len(whole) for number in counted])
        assert sum(part.share for part in parts) == pytest.approx(1)
        assert max(counted) - min(counted) <= 1
        assert len({part.seed for part in parts}) == accumulation


@SETTINGS
@pytest.mark.parametrize("count", [2, 3])
def test_parts_do_not_depend_on_the_number_of_workers(
    spoken: Sequence[Utterance], count: int, augment_speed: bool
) -> None:
    alone, several = (
        workers(spoken, number, augment_speed=augment_speed, accumulation=3, crop=CUT) for number in (1, count)
    )
    for _ in range(BATCHES):
        for whole, *shares in zip(alone[0].next(), *(stream.next() for stream in several), strict=True):
            expected, found = together([whole]), together(shares)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[seed], waveform) for seed, waveform in expected.items())
            assert {(share.seed, share.share) for share in shares} == {(whole.seed, whole.share)}


@pytest.mark.parametrize("accumulation", [1, 3])
def test_resuming_draws_the_same_crops(spoken: Sequence[Utterance], accumulation: int) -> None:
    whole, stopped = (stream_of(spoken, CUT, accumulation=accumulation, augment_speed=True) for _ in range(2))
    for _ in range(5):
        whole.next()
        stopped.next()
    resumed = stream_of(spoken, CUT, accumulation=accumulation, augment_speed=True)
    resumed.load_state(stopped.state())
    for _ in range(BATCHES):
        for one, other in zip(whole.next(), resumed.next(), strict=True):
            assert one.seeds == other.seeds
            assert torch.equal(one.waveform_BS, other.waveform_BS)
    assert resumed.audio_seconds == whole.audio_seconds


# When nothing is long enough

NOTHING = "no unlabelled utterance is as long as crop.min_seconds, 30 s; set a smaller one"
LONG = {"crop": {"min_seconds": 30}}


def test_a_stream_of_utterances_that_are_all_too_short_is_refused(spoken: Sequence[Utterance]) -> None:
    with pytest.raises(CorpusError, match=r"no utterance is as long as crop\.min_seconds, 30 s"):
        stream_of(spoken, CropConfig(min_seconds=30))


@pytest.mark.parametrize("regime", [pretrain_finetune(), bl_just()], ids=["pretraining", "joint"])
def test_it_is_a_problem_of_the_trial(small_corpus: Path, regime: dict[str, Any]) -> None:
    section = "joint" if "joint" in regime else "pretrain"
    given = small_trial(small_corpus, {**regime, section: {**regime[section], **LONG}})
    assert NOTHING in [message for _, message in problems(TrialConfig.model_validate(given))]
    given = small_trial(small_corpus, {**regime, section: {**regime[section], "crop": {"min_seconds": 1}}})
    assert not list(problems(TrialConfig.model_validate(given)))


def test_crops_that_are_too_short_for_the_model_are_a_problem(small_corpus: Path) -> None:
    regime = pretrain_finetune()
    regime["pretrain"] |= {"crop": {"max_seconds": 0.01, "min_seconds": 0}}
    ((_, message),) = problems(TrialConfig.model_validate(small_trial(small_corpus, regime)))
    assert "crop.max_seconds" in message
