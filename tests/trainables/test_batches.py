from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.conftest import spanish_rows, write_corpus
from trainables.data.audio import load_audio
from trainables.data.batches import SPEEDS, Batch, Stream, epoch_batches, make_batch
from trainables.data.config import SAMPLE_RATE_HZ, FolderConfig
from trainables.data.corpus import Corpus, CorpusError, Utterance, read_corpus
from trainables.data.seeds import fold
from trainables.data.text import Characters

DURATIONS = st.lists(st.floats(0.1, 40), min_size=1, max_size=60)
BATCH_SECONDS = 6.0


@pytest.fixture(scope="module")
def corpus(small_corpus: Path) -> Corpus:
    return read_corpus(FolderConfig(root=small_corpus))


def stream_of(
    corpus: Corpus, *, rank: int = 0, world_size: int = 1, batch_seconds: float = BATCH_SECONDS, seed: int = 1
) -> Stream:
    return Stream(
        corpus.train,
        Characters(u.text or "" for u in corpus.train),
        batch_seconds=batch_seconds,
        seed=seed,
        augment_speed=True,
        rank=rank,
        world_size=world_size,
    )


def next_batch(stream: Stream) -> Batch:
    """Without accumulation a batch has one part."""
    (batch,) = stream.next()
    return batch


def rows_of(batch: Batch) -> list[tuple[int, Tensor, Tensor]]:
    """Seed, waveform and tokens of each utterance, without padding."""
    return [
        (seed, waveform[:samples], tokens[:length])
        for seed, waveform, samples, tokens, length in zip(
            batch.seeds, batch.waveform_BS, batch.num_samples_B, batch.tokens_BU, batch.num_tokens_B, strict=True
        )
    ]


def assert_same_batch(one: Batch, other: Batch) -> None:
    assert one.seeds == other.seeds
    assert one.counted == other.counted
    for name in ("waveform_BS", "num_samples_B", "tokens_BU", "num_tokens_B"):
        assert torch.equal(getattr(one, name), getattr(other, name))


@given(DURATIONS, st.floats(0.5, 100), st.integers(0, 1000), st.integers(0, 5))
def test_every_utterance_is_in_exactly_one_batch_of_an_epoch(
    durations: list[float], batch_seconds: float, seed: int, epoch: int
) -> None:
    batches = epoch_batches(durations, batch_seconds, seed, epoch)
    assert sorted(itertools.chain(*batches)) == list(range(len(durations)))
    assert all(batches)


@given(DURATIONS, st.floats(0.5, 100), st.integers(0, 1000))
def test_padded_audio_stays_within_batch_seconds_unless_the_utterance_is_alone(
    durations: list[float], batch_seconds: float, seed: int
) -> None:
    for batch in epoch_batches(durations, batch_seconds, seed, epoch=0):
        assert len(batch) == 1 or max(durations[i] for i in batch) * len(batch) <= batch_seconds


def test_batches_of_equal_utterances_are_full() -> None:
    batches = epoch_batches([1.0] * 20, 6.0, seed=0, epoch=0)
    assert Counter(map(len, batches)) == {6: 3, 2: 1}


def test_an_epoch_is_repeatable_and_differs_from_other_epochs_and_seeds() -> None:
    durations = np.random.default_rng(0).uniform(1, 5, 50).tolist()
    first = epoch_batches(durations, 20.0, seed=3, epoch=0)
    assert epoch_batches(durations, 20.0, seed=3, epoch=0) == first
    others = [epoch_batches(durations, 20.0, seed=3, epoch=1), epoch_batches(durations, 20.0, seed=4, epoch=0)]
    for other in others:
        assert {frozenset(batch) for batch in other} != {frozenset(batch) for batch in first}


def test_batches_come_in_random_order_not_by_length() -> None:
    """Lengths too far apart for the noise on them to swap two."""
    durations = [1.3**i for i in range(20)]
    order = [i for batch in epoch_batches(durations, 1.0, seed=0, epoch=0) for i in batch]
    assert order not in (sorted(order), sorted(order, reverse=True))


@pytest.mark.parametrize("world_size", [2, 3])
def test_shares_of_the_workers_together_are_the_single_workers_batch(corpus: Corpus, world_size: int) -> None:
    single = stream_of(corpus)
    workers = [stream_of(corpus, rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(12):
        whole = rows_of(next_batch(single))
        shares = [next_batch(worker) for worker in workers]
        together = [row for share in shares if share.counted for row in rows_of(share)]
        assert [row[0] for row in sorted(together, key=lambda r: r[0])] == sorted(row[0] for row in whole)
        by_seed = {seed: (waveform, tokens) for seed, waveform, tokens in whole}
        for seed, waveform, tokens in together:
            assert torch.equal(waveform, by_seed[seed][0])
            assert torch.equal(tokens, by_seed[seed][1])
    assert {worker.audio_seconds for worker in workers} == {single.audio_seconds}


def test_a_worker_without_a_share_gets_an_uncounted_filler(corpus: Corpus) -> None:
    """Batches of 0.1 s hold one utterance each."""
    first, second = (stream_of(corpus, rank=rank, world_size=2, batch_seconds=0.1) for rank in range(2))
    for _ in range(3):
        share, filler = next_batch(first), next_batch(second)
        assert (share.counted, filler.counted) == (True, False)
        assert_same_batch(share, replace(filler, counted=True))


def test_seeds_of_an_utterance_differ_between_utterances_epochs_and_stream_seeds(corpus: Corpus) -> None:
    def epoch_of_seeds(stream: Stream) -> list[int]:
        epoch, seeds = stream.epoch, []
        while True:
            batch = next_batch(stream)
            if stream.epoch != epoch:
                return seeds
            seeds += batch.seeds

    stream = stream_of(corpus)
    first = epoch_of_seeds(stream)
    stream.load_state({"epoch": 1, "position": 0, "audio_seconds": 0.0})
    seeds = [*first, *epoch_of_seeds(stream), *epoch_of_seeds(stream_of(corpus, seed=2))]
    assert len(seeds) == 3 * len(corpus.train)
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("drawn", [0, 1, 7, 25])
def test_a_stream_continues_identically_from_its_state(corpus: Corpus, drawn: int) -> None:
    stream = stream_of(corpus)
    for _ in range(drawn):
        stream.next()
    resumed = stream_of(corpus)
    resumed.load_state(stream.state())
    for _ in range(12):
        assert_same_batch(next_batch(stream), next_batch(resumed))
        assert resumed.state() == stream.state()


def test_epochs_roll_over_and_each_gives_every_utterance_once(corpus: Corpus) -> None:
    stream = stream_of(corpus)
    seconds = sum(u.duration_seconds for u in corpus.train)
    for epoch in range(3):
        drawn: list[int] = []
        while len(drawn) < len(corpus.train):
            drawn += next_batch(stream).seeds
            assert stream.epoch == epoch
        assert sorted(drawn) == sorted(fold(stream.seed, epoch, u.id) for u in corpus.train)
        assert stream.audio_seconds == pytest.approx((epoch + 1) * seconds)
    assert stream.seconds_per_epoch == pytest.approx(seconds)


def test_the_unlabelled_stream_carries_no_tokens(corpus: Corpus) -> None:
    stream = Stream(corpus.unlabelled, None, batch_seconds=6, seed=0, augment_speed=False, rank=0, world_size=1)
    batch = next_batch(stream)
    assert batch.tokens_BU.shape == (len(batch.seeds), 0)
    assert not batch.num_tokens_B.any()


def test_a_batch_is_the_zero_padded_audio_and_the_encoded_text(corpus: Corpus) -> None:
    characters = Characters(u.text or "" for u in corpus.train)
    share = corpus.train[:4]
    batch = make_batch(share, characters, range(4))
    assert batch.waveform_BS.dtype == torch.float32
    for i, utterance in enumerate(share):
        samples = int(batch.num_samples_B[i])
        assert samples == pytest.approx(utterance.duration_seconds * SAMPLE_RATE_HZ, abs=16)
        assert torch.equal(batch.waveform_BS[i, :samples], torch.from_numpy(load_audio(utterance.path)).float())
        assert not batch.waveform_BS[i, samples:].any()
        assert characters.decode(batch.tokens_BU[i, : batch.num_tokens_B[i]].tolist()) == utterance.text
        assert not batch.tokens_BU[i, batch.num_tokens_B[i] :].any()


def wav(path: Path, samples: np.ndarray, rate_hz: int) -> Utterance:
    soundfile.write(path, samples, rate_hz)
    return Utterance(path.name, path, len(samples) / rate_hz, path.stat().st_size, "a", "train")


def tone(frequency_hz: float, seconds: float, rate_hz: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate_hz)) / rate_hz)


def peak_hz(samples: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * SAMPLE_RATE_HZ / len(samples))


def test_stereo_at_48_khz_loads_as_mono_at_16_khz_with_the_tone_where_it_was(tmp_path: Path) -> None:
    left, right = tone(440, 1.0, 48_000), tone(440, 1.0, 48_000) * 0.5
    utterance = wav(tmp_path / "stereo.wav", np.stack([left, right], axis=1), 48_000)
    samples = load_audio(utterance.path).astype(np.float64)
    assert samples.shape == (16_000,)
    assert peak_hz(samples) == 440
    np.testing.assert_allclose(samples[500:-500], 0.75 * tone(440, 1.0, 16_000)[500:-500], atol=2e-3)


def test_speed_changes_play_the_audio_at_0_9_1_0_and_1_1(tmp_path: Path) -> None:
    """A tone of 1000 Hz played at 1.1 of its speed is one of 1100 Hz that lasts 1 / 1.1 as long."""
    utterance = wav(tmp_path / "tone.wav", tone(1000, 1.0, SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
    factors = Counter()
    for seed in range(300):
        batch = make_batch([utterance], None, [seed], augment_speed=True)
        samples = batch.waveform_BS[0].numpy()
        factor = SAMPLE_RATE_HZ / len(samples)
        assert peak_hz(samples) == pytest.approx(1000 * factor, abs=1)
        factors[round(factor, 3)] += 1
    assert set(factors) == set(SPEEDS) == {0.9, 1.0, 1.1}
    assert min(factors.values()) > 70  # 100 each, standard deviation 8


def test_speed_of_an_utterance_depends_on_its_own_seed_alone(corpus: Corpus) -> None:
    seeds = [11, 12, 13, 14]
    batch = make_batch(corpus.train[:4], None, seeds, augment_speed=True)
    for i, (utterance, seed) in enumerate(zip(corpus.train, seeds, strict=False)):
        alone = make_batch([utterance], None, [seed], augment_speed=True)
        assert torch.equal(alone.waveform_BS[0], batch.waveform_BS[i, : batch.num_samples_B[i]])


def test_a_file_that_is_no_audio_is_named(tmp_path: Path) -> None:
    root = write_corpus(tmp_path, spanish_rows(8))
    broken = read_corpus(FolderConfig(root=root)).train[0]
    broken.path.write_bytes(broken.path.read_bytes()[:40])
    with pytest.raises(CorpusError, match=rf"^{re.escape(str(broken.path))}: cannot be decoded as audio"):
        make_batch([broken], None, [0])


@pytest.mark.parametrize("samples", [np.zeros(1600), np.zeros(0)], ids=["silent", "empty"])
def test_a_file_without_sound_is_named(tmp_path: Path, samples: np.ndarray) -> None:
    silent = wav(tmp_path / "silent.wav", samples, SAMPLE_RATE_HZ)
    with pytest.raises(CorpusError, match=rf"^{re.escape(str(silent.path))}: holds no sound"):
        make_batch([silent], None, [0])


def test_samples_of_another_scale_are_refused_with_the_file(tmp_path: Path) -> None:
    """A float file in the scale of 16-bit integers would overflow 16-bit floats, and no step with it could be made."""
    path = tmp_path / "loud.wav"
    soundfile.write(path, np.sin(np.arange(8000)) * 32_000.0, SAMPLE_RATE_HZ, subtype="FLOAT")
    with pytest.raises(CorpusError, match=r"loud\.wav: has samples up to 31999.8, not in"):
        load_audio(path)
