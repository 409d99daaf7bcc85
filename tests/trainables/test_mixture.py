"""Mixtures: labelled speech of one corpus, unlabelled speech of several, and how the several are sampled."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.conftest import SMALL_MODEL, Row, pretrain_finetune, spanish_rows, write_corpus
from trainables.data.batches import Stream, sampled_epoch
from trainables.data.config import FolderConfig, MixtureConfig, PromptsConfig
from trainables.data.corpus import Corpus, CorpusError, Utterance, read_corpus, total_seconds
from trainables.stage import Stage
from trainables.trial import TrialConfig, problems, stages_of

SPANISH, ITALIAN, RUSSIAN = (PromptsConfig(language=language) for language in ("es", "it", "ru"))
SUPERVISED = {"kind": "supervised", "train": {"steps": 4}}
EXPONENTS = st.one_of(st.just(0.0), st.just(0.5), st.floats(0, 0.99))


def mixture(*unlabelled: Any, labelled: Any = SPANISH, **settings: Any) -> MixtureConfig:
    return MixtureConfig(labelled=labelled, unlabelled=unlabelled, **settings)


def read(*unlabelled: Any, **settings: Any) -> Corpus:
    return read_corpus(mixture(*unlabelled, **settings))


def stages(corpus: MixtureConfig, regime: dict[str, Any]) -> Sequence[Stage]:
    return stages_of(TrialConfig.model_validate({"corpus": corpus, "model": SMALL_MODEL, "regime": regime}))


# The corpus


def test_the_labelled_splits_are_those_of_the_labelled_corpus() -> None:
    mixed, spanish = read(ITALIAN, RUSSIAN), read_corpus(SPANISH)
    assert (mixed.train, mixed.dev, mixed.test) == (spanish.train, spanish.dev, spanish.test)


def test_the_unlabelled_speech_is_the_train_audio_of_all_that_are_named_and_of_no_other() -> None:
    mixed = read(RUSSIAN, SPANISH)
    trains = {0: read_corpus(RUSSIAN).train, 1: read_corpus(SPANISH).train}
    assert {u.text for u in mixed.unlabelled} == {None}
    for source, train in trains.items():
        assert [u.id for u in mixed.unlabelled if u.source == source] == [u.id for u in train]
    assert len(mixed.unlabelled) == sum(map(len, trains.values()))
    assert [u.id for u in mixed.unlabelled] == sorted(u.id for u in mixed.unlabelled)


def test_each_corpus_may_be_a_subset_of_its_own() -> None:
    little = PromptsConfig(language="it", unlabelled_hours=0.05, labelled_minutes=1)
    mixed = read(little, RUSSIAN, labelled=PromptsConfig(language="es", labelled_minutes=2, unlabelled_hours=0.01))
    assert mixed.train == read_corpus(PromptsConfig(language="es", labelled_minutes=2)).train
    assert [u.id for u in mixed.unlabelled if u.source == 0] == [u.id for u in read_corpus(little).unlabelled]
    assert [u.id for u in mixed.unlabelled if u.source == 1] == [u.id for u in read_corpus(RUSSIAN).unlabelled]


def test_a_subset_of_a_mixture_has_speech_of_every_corpus() -> None:
    mixed = read(SPANISH, ITALIAN, RUSSIAN, unlabelled_hours=0.1)
    assert {u.source for u in mixed.unlabelled} == {0, 1, 2}
    assert 350 < total_seconds(mixed.unlabelled) <= 360


def test_a_corpus_that_is_named_twice_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"^id 'it/.*' occurs twice in a mixture's unlabelled corpora"):
        read(ITALIAN, SPANISH, ITALIAN)


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="unlabelled"):
        mixture()


def in_train(rows: list[Row], split: str) -> list[Row]:
    """The rows with one of dev or test moved to train, for another of train."""
    held_out = next(i for i, row in enumerate(rows) if row["split"] == split)
    return [
        {**row, "split": "train" if i == held_out else split if i == len(rows) - 1 else row["split"]}
        for i, row in enumerate(rows)
    ]


@pytest.mark.parametrize("split", ["dev", "test"])
def test_speech_of_dev_or_test_among_the_unlabelled_is_refused(tmp_path: Path, split: str) -> None:
    rows = spanish_rows(24)
    labelled = FolderConfig(root=write_corpus(tmp_path / "labelled", rows))
    leaking = FolderConfig(root=write_corpus(tmp_path / "leaking", in_train(rows, split)))
    leaked = next(row["id"] for row in rows if row["split"] == split)
    with pytest.raises(CorpusError, match=rf"^id '{leaked}' is in dev or test of a mixture and in its unlabelled"):
        read(leaking, ITALIAN, labelled=labelled)
    assert read(labelled, ITALIAN, labelled=labelled).unlabelled
    trial = TrialConfig.model_validate({"corpus": mixture(leaking, labelled=labelled), "regime": SUPERVISED})
    ((field, message),) = problems(trial)
    assert (field, leaked in message) == ("corpus", True)


def test_speech_of_dev_in_the_train_split_of_another_labelled_corpus_is_refused(tmp_path: Path) -> None:
    rows = spanish_rows(24)
    one = FolderConfig(root=write_corpus(tmp_path / "one", rows))
    leaked = next(row["id"] for row in rows if row["split"] == "dev")
    others = [row if row["id"] == leaked else {**row, "id": f"another-{row['id']}"} for row in in_train(rows, "dev")]
    other = FolderConfig(root=write_corpus(tmp_path / "other", others))
    both = {"kind": "mixture", "labelled": [one, other], "unlabelled": [ITALIAN]}
    with pytest.raises(CorpusError, match=rf"'{leaked}'"):
        read_corpus(MixtureConfig.model_validate(both))


def test_the_corpora_of_a_mixture_are_found_from_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_corpus(tmp_path / "here", spanish_rows(16))
    monkeypatch.setenv("CORPORA", str(tmp_path))
    relative = FolderConfig(root=Path("here"))
    (stage,) = stages(mixture(relative, ITALIAN, labelled=relative), SUPERVISED)
    assert isinstance(stage.corpus, MixtureConfig)
    monkeypatch.delenv("CORPORA")
    monkeypatch.chdir("/")
    assert stage.corpus.labelled[0] == stage.corpus.unlabelled[0] == FolderConfig(root=tmp_path / "here")
    assert read_corpus(stage.corpus).train


# Sampling


def sources(*durations: Sequence[float]) -> list[Utterance]:
    return [
        Utterance(f"{source}/{number}", Path("a.wav"), duration, 1, None, "train", source=source)
        for source, own in enumerate(durations)
        for number, duration in enumerate(own)
    ]


SOURCES = st.lists(st.lists(st.floats(0.5, 20), min_size=1, max_size=30), min_size=1, max_size=4).map(
    lambda durations: sources(*durations)
)


def seconds_of(utterances: Sequence[Utterance]) -> dict[int, float]:
    return {
        source: total_seconds(u for u in utterances if u.source == source) for source in {u.source for u in utterances}
    }


def longest(utterances: Sequence[Utterance], source: int) -> float:
    return max(u.duration_seconds for u in utterances if u.source == source)


def shares(utterances: Sequence[Utterance], exponent: float) -> dict[int, float]:
    """The closed form: seconds of each source in an epoch."""
    weights = {source: seconds**exponent for source, seconds in seconds_of(utterances).items()}
    total, whole = math.fsum(weights.values()), total_seconds(utterances)
    return {source: weight / total * whole for source, weight in weights.items()}


def drawn_seconds(utterances: Sequence[Utterance], exponent: float, seed: int, epoch: int) -> dict[int, float]:
    return seconds_of([utterances[index] for index, _ in sampled_epoch(utterances, exponent, seed, epoch)])


@given(SOURCES, st.integers(0, 9), st.integers(0, 9))
def test_with_exponent_1_every_utterance_is_there_once(utterances: list[Utterance], seed: int, epoch: int) -> None:
    assert sampled_epoch(utterances, 1.0, seed, epoch) == [(index, 0) for index in range(len(utterances))]


@given(SOURCES, EXPONENTS, st.integers(0, 9), st.integers(0, 9))
def test_every_utterance_of_a_source_is_there_as_often_as_the_others_or_once_more(
    utterances: list[Utterance], exponent: float, seed: int, epoch: int
) -> None:
    drawn = sampled_epoch(utterances, exponent, seed, epoch)
    times = Counter(index for index, _ in drawn)
    assert sorted(drawn) == sorted((index, n) for index, count in times.items() for n in range(count))
    expected, own = shares(utterances, exponent), seconds_of(utterances)
    for index, utterance in enumerate(utterances):
        copies = expected[utterance.source] / own[utterance.source]
        assert math.floor(copies - 1e-9) <= times[index] <= math.ceil(copies + 1e-9)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0.5, 20)), min_size=1, max_size=4),
    EXPONENTS,
    st.integers(0, 9),
)
def test_where_the_utterances_of_a_source_last_equally_long_its_share_is_the_closed_form(
    counts: list[tuple[int, float]], exponent: float, seed: int
) -> None:
    utterances = sources(*([duration] * count for count, duration in counts))
    found = drawn_seconds(utterances, exponent, seed, 0)
    for source, seconds in shares(utterances, exponent).items():
        assert found.get(source, 0.0) == pytest.approx(seconds, abs=counts[source][1] * 0.500001)


@pytest.mark.parametrize("exponent", [0.0, 0.3, 0.5, 0.9])
def test_over_many_epochs_shares_of_real_speech_are_the_closed_form_within_an_utterance(
    exponent: float,
) -> None:
    utterances = read(SPANISH, ITALIAN, PromptsConfig(language="ru", unlabelled_hours=0.05)).unlabelled
    epochs = [drawn_seconds(utterances, exponent, 1, epoch) for epoch in range(100)]
    for source, seconds in shares(utterances, exponent).items():
        mean = math.fsum(epoch[source] for epoch in epochs) / len(epochs)
        assert mean == pytest.approx(seconds, abs=longest(utterances, source) / 2)


def test_every_epoch_of_real_speech_has_its_shares_within_an_utterance_a_source() -> None:
    utterances = read(SPANISH, ITALIAN, RUSSIAN).unlabelled
    most = [longest(utterances, source) for source in range(3)]
    for exponent in (0.0, 0.5):
        expected = shares(utterances, exponent)
        for epoch in range(20):
            found = drawn_seconds(utterances, exponent, 1, epoch)
            assert all(abs(found[source] - expected[source]) <= most[source] for source in range(3))
            assert abs(sum(found.values()) - total_seconds(utterances)) <= sum(most)


def test_an_epoch_is_repeatable_and_another_epoch_or_seed_draws_others() -> None:
    utterances = read(SPANISH, PromptsConfig(language="ru", unlabelled_hours=0.05)).unlabelled
    first = sampled_epoch(utterances, 0.5, 3, 0)
    assert sampled_epoch(utterances, 0.5, 3, 0) == first
    assert {len(set(first) - set(sampled_epoch(utterances, 0.5, *other))) > 10 for other in ((3, 1), (4, 0))} == {True}


def test_over_enough_epochs_all_speech_of_a_large_corpus_is_drawn() -> None:
    utterances = sources([1.0] * 90, [1.0] * 10)
    epochs = [sampled_epoch(utterances, 0.0, 1, epoch) for epoch in range(10)]
    assert {index for drawn in epochs for index, _ in drawn} == set(range(100))
    assert all(len(drawn) == 100 for drawn in epochs)


def stream_of(utterances: Sequence[Utterance], exponent: float, rank: int = 0, world_size: int = 1) -> Stream:
    return Stream(
        utterances,
        None,
        batch_seconds=10,
        seed=1,
        augment_speed=False,
        rank=rank,
        world_size=world_size,
        sampling_exponent=exponent,
    )


@pytest.fixture
def unbalanced(small_corpus: Path) -> list[Utterance]:
    """27 utterances and 3 of another source: with exponent 0 each of the latter is there five times or so."""
    spoken = read_corpus(FolderConfig(root=small_corpus)).unlabelled
    return [replace(u, source=int(number >= 27)) for number, u in enumerate(spoken)]


def epoch_seeds(stream: Stream) -> list[int]:
    """Of the first epoch."""
    seeds: list[int] = []
    while True:
        (batch,) = stream.next()
        if stream.epoch:
            return seeds
        seeds += batch.seeds if batch.counted else ()


def test_repetitions_of_an_utterance_have_other_seeds(unbalanced: list[Utterance]) -> None:
    seeds = epoch_seeds(stream_of(unbalanced, 0.0))
    drawn = sampled_epoch(unbalanced, 0.0, 1, 0)
    assert len(set(seeds)) == len(seeds) == len(drawn)
    assert max(repetition for _, repetition in drawn) >= 3


def test_the_first_of_an_utterance_s_repetitions_has_the_seed_that_it_has_without_sampling(
    unbalanced: list[Utterance],
) -> None:
    sampled, whole = (set(epoch_seeds(stream_of(unbalanced, exponent))) for exponent in (0.0, 1.0))
    once = {index for index, repetition in sampled_epoch(unbalanced, 0.0, 1, 0) if repetition == 0}
    assert len(sampled & whole) == len(once)


def test_the_sample_does_not_depend_on_the_number_of_workers(unbalanced: list[Utterance]) -> None:
    alone = epoch_seeds(stream_of(unbalanced, 0.0))
    shared = [seed for rank in range(3) for seed in epoch_seeds(stream_of(unbalanced, 0.0, rank, 3))]
    assert sorted(shared) == sorted(alone)


# What it changes


def fingerprints(regime: dict[str, Any], **settings: Any) -> list[tuple[str, str]]:
    found = stages(mixture(SPANISH, ITALIAN, **settings), regime)
    return [(stage.fingerprint(), stage.data_fingerprint) for stage in found]


def test_the_exponent_changes_pretraining_and_not_what_finetuning_reads() -> None:
    exponents = (0.0, 0.5, 1.0)
    found = [fingerprints(pretrain_finetune(), sampling_exponent=exponent) for exponent in exponents]
    assert len({pretrain for (pretrain, _), _ in found}) == len(exponents)
    assert len({data for _, (_, data) in found}) == 1
    assert len({fingerprints(SUPERVISED, sampling_exponent=exponent)[0] for exponent in exponents}) == 1


def test_supervised_training_is_shared_by_a_mixture_and_its_labelled_corpus() -> None:
    (plain,) = stages_of(TrialConfig.model_validate({"model": SMALL_MODEL, "regime": SUPERVISED}))
    assert fingerprints(SUPERVISED)[0][0] == plain.fingerprint()


@pytest.mark.parametrize("hours", [0.02, 0.1, 0.15])
def test_a_monolingual_control_of_equal_hours_matches_a_mixture_within_an_utterance(hours: float) -> None:
    mixed, alone = read(SPANISH, ITALIAN, RUSSIAN, unlabelled_hours=hours), read(SPANISH, unlabelled_hours=hours)
    single = read_corpus(PromptsConfig(language="es", unlabelled_hours=hours))
    assert [u.id for u in single.unlabelled] == [u.id for u in alone.unlabelled]
    assert len({u.source for u in mixed.unlabelled}) == 3
    most = max(u.duration_seconds for u in read(SPANISH, ITALIAN, RUSSIAN).unlabelled)
    for corpus in (mixed, single):
        assert 0 <= hours * 3600 - total_seconds(corpus.unlabelled) < most
    assert mixed.train == single.train


# Several labelled corpora


def test_labelled_speech_of_several_corpora_is_that_of_each_and_sampled_by_the_exponent() -> None:
    short_russian = PromptsConfig(language="ru", labelled_minutes=2)
    corpus = read(SPANISH, labelled=[SPANISH, short_russian], sampling_exponent=0.0)
    spanish, russian = read_corpus(SPANISH), read_corpus(short_russian)
    for split in ("train", "dev", "test"):
        own, other = getattr(spanish, split), getattr(russian, split)
        assert {u.id for u in getattr(corpus, split)} == {u.id for u in (*own, *other)}
    drawn = [corpus.train[index] for index, _ in sampled_epoch(corpus.train, corpus.sampling_exponent, 0, 0)]
    seconds = [total_seconds(u for u in drawn if u.source == source) for source in (0, 1)]
    assert seconds[0] == pytest.approx(seconds[1], rel=0.02)


def test_a_labelled_budget_of_several_corpora_keeps_their_shares() -> None:
    whole = read(SPANISH, labelled=[SPANISH, RUSSIAN])
    part = read(SPANISH, labelled=[SPANISH, RUSSIAN], labelled_minutes=5)
    shares = [
        total_seconds(u for u in corpus.train if u.source == 0) / total_seconds(corpus.train)
        for corpus in (whole, part)
    ]
    assert shares[0] == pytest.approx(shares[1], abs=0.03)


def test_the_exponent_is_part_of_the_identity_of_several_labelled_corpora_only() -> None:
    def hashes(labelled: Any) -> set[str]:
        return {
            read(SPANISH, labelled=labelled, sampling_exponent=exponent).fingerprint(["labelled"])
            for exponent in (0.5, 1)
        }

    assert (len(hashes(SPANISH)), len(hashes([SPANISH, RUSSIAN]))) == (1, 2)
    assert mixture(SPANISH, labelled=[SPANISH, RUSSIAN]).language is None
    assert mixture(SPANISH, labelled=[SPANISH, SPANISH]).language == "es"


def test_a_corpus_that_is_named_twice_among_the_labelled_is_refused() -> None:
    with pytest.raises(CorpusError, match="occurs twice in a mixture's labelled corpora"):
        read(RUSSIAN, labelled=[SPANISH, SPANISH])
