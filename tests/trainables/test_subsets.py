"""Subsets of a corpus: nested, within their budget, drawn from the ids and the seed alone; and who sees what."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.conftest import SMALL_MODEL, bl_just, pretrain_finetune, spanish_rows, write_corpus
from trainables.data.batches import Stream
from trainables.data.config import CorpusConfig, FolderConfig, MixtureConfig, PromptsConfig
from trainables.data.corpus import Corpus, Utterance, read_corpus, subset, total_seconds
from trainables.data.text import Characters
from trainables.stage import Stage
from trainables.trial import TrialConfig, stages_of

SECONDS = st.floats(0.001, 300) | st.integers(1, 30)
SEEDS = st.integers(0, 50)
MINUTES = (0.01, 0.5, 1, 3, 8, 100)
HOURS = (1e-6, 0.01, 0.05, 0.1, 0.2, 10)
FRACTIONS = (0.001, 0.1, 0.25, 0.5, 0.75, 0.999, 1)


def made(durations: Sequence[float]) -> list[Utterance]:
    return [
        Utterance(f"{number:03d}", Path(f"{number}.wav"), duration, 1, "a", "train")
        for number, duration in enumerate(durations)
    ]


UTTERANCES = (
    st.lists(st.floats(0.05, 30), min_size=1, max_size=40) | st.lists(st.integers(1, 9), min_size=1, max_size=9)
).map(made)


def longest(utterances: Sequence[Utterance]) -> float:
    return max((u.duration_seconds for u in utterances), default=0.0)


def assert_within_budget(chosen: Sequence[Utterance], everything: Sequence[Utterance], seconds: float) -> None:
    """At most the budget, unless one utterance alone is longer; and no utterance more would fit for certain."""
    assert chosen
    assert len(chosen) == 1 or total_seconds(chosen) <= seconds + 1e-5
    left_out = set(everything) - set(chosen)
    assert len(left_out) == len(everything) - len(chosen)
    assert not left_out or total_seconds(chosen) + longest([*left_out]) > seconds


# The function


@given(UTTERANCES, SECONDS, SECONDS, SEEDS)
def test_a_smaller_subset_lies_in_a_larger_one(
    utterances: list[Utterance], one: float, other: float, seed: int
) -> None:
    smaller, larger = (subset(utterances, seconds, seed) for seconds in sorted((one, other)))
    assert set(smaller) <= set(larger) <= set(utterances)


@given(UTTERANCES, SECONDS, SEEDS)
def test_a_subset_is_within_one_utterance_of_its_budget_and_never_empty(
    utterances: list[Utterance], seconds: float, seed: int
) -> None:
    assert_within_budget(subset(utterances, seconds, seed), utterances, seconds)


@given(UTTERANCES, SEEDS)
def test_a_budget_of_all_the_speech_takes_all(utterances: list[Utterance], seed: int) -> None:
    assert subset(utterances, total_seconds(utterances), seed) == tuple(utterances)


@given(UTTERANCES, SECONDS, SEEDS, st.randoms(use_true_random=False))
def test_a_subset_depends_neither_on_the_order_nor_on_where_the_files_lie(
    utterances: list[Utterance], seconds: float, seed: int, order: random.Random
) -> None:
    moved = [replace(u, path=Path("/elsewhere") / u.path, source=3) for u in utterances]
    order.shuffle(moved)
    chosen = [u.id for u in subset(utterances, seconds, seed)]
    assert [u.id for u in subset(moved, seconds, seed)] == chosen == sorted(chosen)


def test_another_seed_gives_another_subset() -> None:
    utterances = made([1.0] * 40)
    chosen = {tuple(u.id for u in subset(utterances, 20, seed)) for seed in range(20)}
    assert len(chosen) == 20
    assert {u for ids in chosen for u in ids} == {u.id for u in utterances}


# The embedded speech


def prompts(**settings: Any) -> Corpus:
    return read_corpus(PromptsConfig(language="it", **settings))


def subsets(name: str, values: Sequence[float]) -> list[Corpus]:
    return [prompts(**{name: value}) for value in values]


def nested(parts: Sequence[Sequence[Utterance]]) -> bool:
    return all(set(smaller) <= set(larger) for smaller, larger in itertools.combinations(parts, 2))


def test_labelled_budgets_are_nested_train_speech_and_nothing_else_changes() -> None:
    whole, found = prompts(), subsets("labelled_minutes", MINUTES)
    assert nested([corpus.train for corpus in found])
    for minutes, corpus in zip(MINUTES, found, strict=True):
        assert_within_budget(corpus.train, whole.train, minutes * 60)
        assert replace(corpus, train=whole.train) == whole
    assert found[-1] == whole != found[-2]


def test_unlabelled_hours_are_nested_unlabelled_speech_and_nothing_else_changes() -> None:
    whole, found = prompts(), subsets("unlabelled_hours", HOURS)
    assert nested([corpus.unlabelled for corpus in found])
    for hours, corpus in zip(HOURS, found, strict=True):
        assert_within_budget(corpus.unlabelled, whole.unlabelled, hours * 3600)
        assert replace(corpus, unlabelled=whole.unlabelled) == whole
    assert found[-1] == whole != found[-2]


def test_unlabelled_fractions_are_nested_shares_of_the_duration_and_nothing_else_changes() -> None:
    whole, found = prompts(), subsets("unlabelled_fraction", FRACTIONS)
    assert nested([corpus.unlabelled for corpus in found])
    for fraction, corpus in zip(FRACTIONS, found, strict=True):
        assert_within_budget(corpus.unlabelled, whole.unlabelled, fraction * total_seconds(whole.unlabelled))
        assert replace(corpus, unlabelled=whole.unlabelled) == whole
    assert found[-1] == whole != found[-2]


def test_of_hours_and_fraction_the_smaller_counts() -> None:
    hours = total_seconds(prompts().unlabelled) / 3600
    half = prompts(unlabelled_fraction=0.5)
    assert prompts(unlabelled_fraction=0.5, unlabelled_hours=hours * 0.6) == half
    assert prompts(unlabelled_fraction=0.6, unlabelled_hours=hours * 0.5) == half
    assert prompts(unlabelled_hours=hours * 0.5) == half


def test_labelled_and_unlabelled_subsets_of_one_seed_share_their_utterances() -> None:
    small = prompts(labelled_minutes=2, unlabelled_hours=2 / 60)
    assert [u.id for u in small.train] == [u.id for u in small.unlabelled]


@pytest.mark.parametrize(
    ("part", "budget"),
    [("train", {"labelled_minutes": 3}), ("unlabelled", {"unlabelled_hours": 0.05, "unlabelled_fraction": 0.9})],
)
def test_subset_seed_decides_which_utterances_a_subset_takes(part: str, budget: dict[str, float]) -> None:
    one, other = (prompts(**budget, subset_seed=seed) for seed in (0, 1))
    assert getattr(one, part) != getattr(other, part)
    assert (one.dev, one.test) == (other.dev, other.test)


def test_subset_seed_changes_nothing_where_there_is_no_subset() -> None:
    assert prompts(subset_seed=1) == prompts()


def test_subsets_of_a_folder_depend_neither_on_its_place_nor_on_the_order_of_its_rows(tmp_path: Path) -> None:
    rows = spanish_rows(40)
    shuffled = random.Random(0).sample(rows, len(rows))
    budget: dict[str, Any] = {"labelled_minutes": 0.4, "unlabelled_fraction": 0.5}
    one, other = (
        read_corpus(FolderConfig(root=write_corpus(tmp_path / name, order), **budget))
        for name, order in {"one": rows, "elsewhere": shuffled}.items()
    )
    assert one.split_hashes() == other.split_hashes()
    assert [u.id for u in one.train] == [u.id for u in other.train]
    assert 1 < len(one.train) < 30


@pytest.mark.parametrize(
    "settings",
    [
        {"labelled_minutes": 0},
        {"labelled_minutes": -1},
        {"unlabelled_hours": 0},
        {"unlabelled_fraction": 0},
        {"unlabelled_fraction": 1.01},
        {"subset_seed": -1},
    ],
)
def test_impossible_budgets_are_refused(settings: dict[str, float]) -> None:
    (name,) = settings
    with pytest.raises(ValidationError, match=name):
        PromptsConfig.model_validate(settings)


# What is shared

SUPERVISED = {"kind": "supervised", "train": {"steps": 4}}


def stages(regime: dict[str, Any], **corpus: Any) -> Sequence[Stage]:
    given = {"corpus": {"kind": "prompts", **corpus}, "model": SMALL_MODEL, "regime": regime}
    return stages_of(TrialConfig.model_validate(given))


def data(regime: dict[str, Any], **corpus: Any) -> list[str]:
    return [stage.data_fingerprint for stage in stages(regime, **corpus)]


@pytest.mark.parametrize("change", [{"labelled_minutes": 5}, {"labelled_minutes": 5, "subset_seed": 1}])
def test_a_labelled_budget_changes_labelled_stages_and_leaves_pretraining(change: dict[str, Any]) -> None:
    whole, budget = (stages(pretrain_finetune(), **corpus) for corpus in ({"labelled_minutes": 10}, change))
    assert whole[0].fingerprint() == budget[0].fingerprint()
    assert whole[1].data_fingerprint != budget[1].data_fingerprint
    assert whole[1].fingerprint() != budget[1].fingerprint()


@pytest.mark.parametrize("change", [{"unlabelled_hours": 0.1}, {"unlabelled_fraction": 0.5}])
def test_less_unlabelled_speech_changes_pretraining_and_no_labelled_data(change: dict[str, Any]) -> None:
    whole, less = data(pretrain_finetune()), data(pretrain_finetune(), **change)
    assert whole[0] != less[0]
    assert whole[1] == less[1]
    (supervised,), (same,) = stages(SUPERVISED), stages(SUPERVISED, **change)
    assert supervised.fingerprint() == same.fingerprint()


@pytest.mark.parametrize("change", [{"labelled_minutes": 5}, {"unlabelled_hours": 0.1}])
def test_both_kinds_of_subset_change_joint_training(change: dict[str, Any]) -> None:
    assert data(bl_just())[0] != data(bl_just(), **change)[0]


def test_budgets_beyond_the_corpus_are_the_whole_corpus() -> None:
    whole = [stage.fingerprint() for stage in stages(pretrain_finetune())]
    more = stages(pretrain_finetune(), labelled_minutes=600, unlabelled_hours=10)
    assert [stage.fingerprint() for stage in more] == whole


# Who sees what


def folder(root: Path, **settings: Any) -> FolderConfig:
    """With rows of every split, in which the unlabelled ones have a text that nobody may see."""
    rows = [{**row, "split": "unlabelled"} if i % 8 == 7 else row for i, row in enumerate(spanish_rows(40))]
    return FolderConfig(root=write_corpus(root, rows), **settings)


def mixture(root: Path, **settings: Any) -> MixtureConfig:
    return MixtureConfig(
        labelled=folder(root), unlabelled=(FolderConfig(root=root), PromptsConfig(language="fr")), **settings
    )


CORPORA: dict[str, Callable[[Path], CorpusConfig]] = {
    "prompts": lambda _: PromptsConfig(),
    "prompts, subset": lambda _: PromptsConfig(labelled_minutes=1, unlabelled_fraction=0.5),
    "folder": folder,
    "folder, subset": lambda root: folder(root, labelled_minutes=0.2, unlabelled_hours=0.01),
    "mixture": mixture,
    "mixture, subset": lambda root: mixture(root, labelled_minutes=0.2, unlabelled_fraction=0.5),
}


@pytest.mark.parametrize("make", CORPORA.values(), ids=CORPORA.keys())
def test_unlabelled_speech_has_no_text_and_nothing_of_dev_and_test(
    tmp_path: Path, make: Callable[[Path], CorpusConfig]
) -> None:
    corpus = read_corpus(make(tmp_path))
    held_out = (*corpus.dev, *corpus.test)
    assert {u.text for u in corpus.unlabelled} == {None}
    assert not {u.id for u in corpus.unlabelled} & {u.id for u in held_out}
    assert not {u.path for u in corpus.unlabelled} & {u.path for u in held_out}
    assert all(u.text for u in (*corpus.train, *held_out))


@pytest.mark.parametrize("make", CORPORA.values(), ids=CORPORA.keys())
def test_batches_of_unlabelled_speech_hold_no_tokens_even_where_there_are_symbols(
    tmp_path: Path, make: Callable[[Path], CorpusConfig]
) -> None:
    corpus = read_corpus(make(tmp_path))
    symbols = Characters(u.text or "" for u in corpus.train)
    stream = Stream(corpus.unlabelled[:8], symbols, batch_seconds=6, seed=0, augment_speed=False, rank=0, world_size=1)
    (batch,) = stream.next()
    assert batch.num_samples_B.sum() > 0
    assert batch.num_tokens_B.sum() == 0
