"""Batches that threads make ahead: the same ones, in the same order, from any place on."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import spanish_rows, write_corpus
from trainables.data.batches import Batch, Stream
from trainables.data.config import CropConfig, FolderConfig, MixtureConfig, PromptsConfig
from trainables.data.corpus import Corpus, CorpusError, Utterance, read_corpus
from trainables.data.text import Characters

BATCHES = 25  # several epochs of the batches below
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "speed": {"augment_speed": True},
    "crops": {"crop": CropConfig(max_seconds=1.4, min_seconds=0.5)},
    "crops, speed": {"crop": CropConfig(max_seconds=1.4, min_seconds=0.5), "augment_speed": True},
    "accumulation": {"accumulation": 3},
    "mixture": {"sampling_exponent": 0.5},
    "all": {
        "crop": CropConfig(max_seconds=2, min_seconds=0.3),
        "augment_speed": True,
        "accumulation": 2,
        "sampling_exponent": 0.5,
    },
}
WORKERS = [(rank, count) for count in (1, 2, 3) for rank in range(count)]


@pytest.fixture(scope="module")
def labelled(small_corpus: Path) -> Corpus:
    return read_corpus(FolderConfig(root=small_corpus))


@pytest.fixture(scope="module")
def mixed(small_corpus: Path) -> Sequence[Utterance]:
    """Utterances of two sources."""
    folder = FolderConfig(root=small_corpus)
    italian = PromptsConfig(language="it", unlabelled_hours=0.003)
    return read_corpus(MixtureConfig(labelled=folder, unlabelled=(folder, italian))).unlabelled


def stream_of(utterances: Sequence[Utterance], threads: int, **changes: Any) -> Stream:
    symbols = Characters(u.text for u in utterances if u.text)
    given = {"batch_seconds": 8.0, "seed": 1, "augment_speed": False, "rank": 0, "world_size": 1}
    return Stream(utterances, symbols, **{**given, **changes, "threads": threads})


def spoken(labelled: Corpus, mixed: Sequence[Utterance], kind: str) -> Sequence[Utterance]:
    return mixed if "sampling_exponent" in KINDS[kind] else labelled.train


def assert_same(one: Sequence[Batch], other: Sequence[Batch]) -> None:
    assert len(one) == len(other)
    for ours, theirs in zip(one, other, strict=True):
        for field in fields(Batch):
            mine, its = getattr(ours, field.name), getattr(theirs, field.name)
            assert torch.equal(mine, its) if isinstance(mine, torch.Tensor) else mine == its


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rank", "world_size"), WORKERS)
def test_with_threads_a_stream_is_the_same(
    labelled: Corpus, mixed: Sequence[Utterance], kind: str, rank: int, world_size: int
) -> None:
    utterances = spoken(labelled, mixed, kind)
    worker = {"rank": rank, "world_size": world_size, **KINDS[kind]}
    alone, *ahead = (stream_of(utterances, threads, **worker) for threads in (0, 1, 3))
    for _ in range(BATCHES):
        expected = alone.next()
        for stream in ahead:
            assert_same(stream.next(), expected)
            assert stream.state() == alone.state()
            assert (stream.epoch, stream.audio_seconds) == (alone.epoch, alone.audio_seconds)
    assert alone.epoch >= 2


@settings(max_examples=25)
@given(
    st.sampled_from(sorted(KINDS)),
    st.integers(0, 3),
    st.integers(0, 3),
    st.lists(st.integers(0, 9), min_size=1, max_size=3),
)
def test_a_stream_goes_on_from_its_state_with_any_number_of_threads(
    labelled: Corpus, mixed: Sequence[Utterance], kind: str, threads: int, other: int, taken: list[int]
) -> None:
    """Also where a stream is sent back while batches that were made ahead wait in it."""
    utterances = spoken(labelled, mixed, kind)
    first, resumed = (stream_of(utterances, count, **KINDS[kind]) for count in (threads, other))
    resumed.next()
    for count in taken:
        for _ in range(count):
            first.next()
        resumed.load_state(first.state())
        assert resumed.state() == first.state()
        place = first.state()
        expected = [first.next() for _ in range(4)]
        for batch in expected:
            assert_same(resumed.next(), batch)
        assert resumed.state() == first.state()
        first.load_state(place)
        assert_same(first.next(), expected[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_that_of_the_batches_taken_not_of_those_made_ahead(
    labelled: Corpus, mixed: Sequence[Utterance], kind: str
) -> None:
    utterances = spoken(labelled, mixed, kind)
    stream, alone = (stream_of(utterances, threads, **KINDS[kind]) for threads in (3, 0))
    assert stream.state() == alone.state() == {"epoch": 0, "position": 0, "audio_seconds": 0.0}
    stream.next()
    alone.next()
    assert stream.state() == alone.state()
    assert stream.state()["position"] == 1


def test_audio_seconds_are_those_of_the_batches_of_all_workers(labelled: Corpus) -> None:
    workers = [stream_of(labelled.train, 2, rank=rank, world_size=2) for rank in range(2)]
    samples = 0
    for _ in range(BATCHES):
        shares = [batch for worker in workers for batch in worker.next() if batch.counted]
        samples += sum(int(share.num_samples_B.sum()) for share in shares)
        utterances = sum(len(share.seeds) for share in shares)
        assert utterances
    assert workers[0].audio_seconds == workers[1].audio_seconds == pytest.approx(samples / 16_000, rel=1e-3)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_an_unreadable_file_is_an_error_of_the_batch_that_has_it_and_of_no_other(
    tmp_path: Path, labelled: Corpus, threads: int
) -> None:
    """Batches of 0.1 s hold one utterance each."""
    rows = spanish_rows(16)
    utterances = read_corpus(FolderConfig(root=write_corpus(tmp_path, rows))).train
    broken = utterances[5]
    broken.path.write_bytes(b"\0" * broken.path.stat().st_size)
    stream = stream_of(utterances, threads, batch_seconds=0.1)
    expected = stream_of(labelled.train[: len(utterances)], 0, batch_seconds=0.1)
    assert [u.id for u in expected.utterances] == [u.id for u in stream.utterances]
    named = re.escape(str(broken.path))
    failed = 0
    for _ in range(2 * len(utterances)):
        batch = expected.next()
        if len(batch[0].seeds) != 1 or batch[0].seeds[0] not in broken_seeds(expected, broken.id):
            assert_same(stream.next(), batch)
            continue
        failed += 1
        with pytest.raises(CorpusError, match=rf"^{named}: cannot be decoded as audio"):
            stream.next()
        assert stream.state() == expected.state()
    assert failed == 2


def broken_seeds(stream: Stream, name: str) -> set[int]:
    index = next(i for i, u in enumerate(stream.utterances) if u.id == name)
    return {stream._utterance_seed(epoch, index, 0) for epoch in range(3)}


def test_a_stream_that_nobody_reads_makes_nothing(labelled: Corpus) -> None:
    """Making one, and sending it elsewhere, reads no audio: a file that is not there is not missed."""
    absent = [Utterance(f"{n}", Path("absent.wav"), 1.0, 1, "a", "train") for n in range(4)]
    stream = stream_of(absent, 2)
    stream.load_state({"epoch": 3, "position": 0, "audio_seconds": 12.0})
    assert stream.audio_seconds == 12.0
    with pytest.raises(CorpusError, match=r"^absent\.wav: cannot be decoded"):
        stream.next()


def test_epochs_follow_one_another_in_full(labelled: Corpus) -> None:
    stream = stream_of(labelled.train, 3)
    for epoch in range(3):
        seeds: list[int] = []
        while len(seeds) < len(labelled.train):
            seeds += list(itertools.chain.from_iterable(batch.seeds for batch in stream.next()))
            assert stream.epoch == epoch
        assert sorted(seeds) == sorted(stream._utterance_seed(epoch, i, 0) for i in range(len(labelled.train)))
