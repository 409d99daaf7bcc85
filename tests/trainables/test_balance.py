"""Subsets of speech by many speakers: equal shares, whatever the order of rows; and published lists."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import Row, spanish_rows, write_corpus
from trainables.data.config import FolderConfig, MixtureConfig, PromptsConfig
from trainables.data.corpus import Corpus, CorpusError, Utterance, read_corpus, subset, total_seconds
from trainables.data.seeds import fold

SEEDS = st.integers(0, 50)
SHARES = st.floats(0, 1.1)


def made(spoken: Sequence[tuple[int, float]]) -> list[Utterance]:
    return [
        Utterance(f"{number:03d}", Path("a.wav"), seconds, 1, "a", "train", speaker=f"speaker {speaker}")
        for number, (speaker, seconds) in enumerate(spoken)
    ]


SPOKEN = st.lists(st.tuples(st.integers(0, 5), st.floats(0.1, 30)), min_size=1, max_size=50).map(made)


def by_speaker(utterances: Sequence[Utterance]) -> dict[str, float]:
    return {
        speaker: total_seconds(u for u in utterances if u.speaker == speaker)
        for speaker in {u.speaker for u in utterances}
    }


@given(SPOKEN, SHARES, SEEDS)
def test_speakers_with_speech_left_differ_by_at_most_the_longest_utterance(
    utterances: list[Utterance], share: float, seed: int
) -> None:
    chosen = subset(utterances, share * total_seconds(utterances), seed)
    spoken = dict.fromkeys(by_speaker(utterances), 0.0) | by_speaker(chosen)
    left = {u.speaker for u in {*utterances} - {*chosen}}
    longest = max(u.duration_seconds for u in utterances)
    for one, other in itertools.combinations(sorted(left), 2):
        assert abs(spoken[one] - spoken[other]) <= longest + 1e-6
    assert all(spoken[done] <= spoken[one] + longest + 1e-6 for one in left for done in spoken)


@given(SPOKEN, SHARES, SHARES, SEEDS)
def test_smaller_subsets_lie_in_larger_ones(utterances: list[Utterance], one: float, other: float, seed: int) -> None:
    total = total_seconds(utterances)
    smaller, larger = (subset(utterances, share * total, seed) for share in sorted((one, other)))
    assert {*smaller} <= {*larger}


@given(SPOKEN, SHARES, SEEDS, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(
    utterances: list[Utterance], share: float, seed: int, order: random.Random
) -> None:
    seconds = share * total_seconds(utterances)
    shuffled = order.sample(utterances, len(utterances))
    assert subset(shuffled, seconds, seed) == subset(utterances, seconds, seed)


@given(SPOKEN, SHARES, SEEDS)
def test_without_speakers_the_order_is_that_of_the_hashes(utterances: list[Utterance], share: float, seed: int) -> None:
    unknown = [replace(u, speaker="") for u in utterances]
    seconds = share * total_seconds(unknown)
    ordered = sorted(unknown, key=lambda u: (fold(seed, "subset", u.id), u.id))
    ends = itertools.accumulate(u.duration_seconds for u in ordered)
    count = max(1, sum(end <= seconds + 1e-6 for end in ends))
    assert {*subset(unknown, seconds, seed)} == {*ordered[:count]}


@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 72), SEEDS)
def test_of_utterances_that_last_equally_long_every_speaker_has_as_many_or_one_more(
    speakers: int, each: int, count: int, seed: int
) -> None:
    utterances = made([(speaker, 2.0) for speaker in range(speakers) for _ in range(each)])
    chosen = subset(utterances, 2.0 * count, seed)
    found = sorted(seconds / 2 for seconds in by_speaker(chosen).values())
    assert len(chosen) == min(count, len(utterances))
    assert found[-1] - (found[0] if len(found) == speakers else 0) <= 1


# Golden

GOLDEN = "288d24feb1dd75781a1ffc492a920419c8dff9aa31accb3a2e473db8ba7c04ce"
GOLDEN_SPEAKERS = "42b09eb9150677c68ef6208083d27dfa9f0486672247a9a62f97b63b2b5023b9"
LIST = """
import hashlib
from trainables.data.config import PromptsConfig
from trainables.data.corpus import read_corpus
ids = [u.id for u in read_corpus(PromptsConfig(language="es", labelled_minutes=5, subset_seed=1)).train]
print(hashlib.sha256(chr(10).join(ids).encode()).hexdigest())
"""


@pytest.mark.parametrize("hash_seed", ["0", "12345"])
def test_a_subset_of_the_embedded_speech_is_the_golden_one_whatever_python_s_own_hashes(hash_seed: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", LIST], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == GOLDEN


def test_a_subset_by_speakers_is_the_golden_one() -> None:
    utterances = made([(number % 7, 1 + number % 5 / 4) for number in range(200)])
    ids = "\n".join(u.id for u in subset(utterances, 100, 3))
    assert hashlib.sha256(ids.encode()).hexdigest() == GOLDEN_SPEAKERS


# Folders with speakers

ROWS = [{**row, "speaker": f"s{number % 3 if number < 30 else 3}"} for number, row in enumerate(spanish_rows(40))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Spanish prompts said to be by four speakers, one of whom has little; and two lists of train utterances."""
    return with_lists(write_corpus(tmp_path_factory.mktemp("corpus"), ROWS))


def train_ids(rows: Sequence[Row] = ROWS) -> list[str]:
    return sorted(row["id"] for row in rows if row["split"] == "train")


def with_lists(root: Path) -> Path:
    (root / "lists").mkdir()
    ids = train_ids()
    listed = {"10min": ids[:6], "1h": ids[:20], "foreign": [*ids[:2], "elsewhere"]}
    listed["dev"] = [row["id"] for row in ROWS if row["split"] == "dev"]
    for name, chosen in listed.items():
        (root / "lists" / f"{name}.txt").write_text("".join(f"{i}\n" for i in chosen), encoding="utf-8")
    return root


def corpus(root: Path, **settings: Any) -> Corpus:
    return read_corpus(FolderConfig(root=root, **settings))


@given(st.floats(0.05, 1.5), st.floats(0.05, 1.5), SEEDS)
def test_labelled_minutes_of_a_folder_are_nested_and_balanced(
    folder: Path, one: float, other: float, seed: int
) -> None:
    smaller, larger = (corpus(folder, labelled_minutes=m, subset_seed=seed).train for m in sorted((one, other)))
    assert {*smaller} <= {*larger}
    whole = corpus(folder).train
    left = {u.speaker for u in {*whole} - {*larger}}
    spoken = [by_speaker(larger).get(speaker, 0.0) for speaker in left]
    assert not spoken or max(spoken) - min(spoken) <= max(u.duration_seconds for u in whole) + 1e-6


@given(st.floats(0.05, 1), st.floats(0.05, 1), SEEDS)
def test_unlabelled_fractions_of_a_folder_are_nested_and_hours_are_the_same_subsets(
    folder: Path, one: float, other: float, seed: int
) -> None:
    fractions = sorted((one, other))
    smaller, larger = (corpus(folder, unlabelled_fraction=f, subset_seed=seed).unlabelled for f in fractions)
    assert {*smaller} <= {*larger}
    hours = total_seconds(corpus(folder).unlabelled) * fractions[1] / 3600
    assert corpus(folder, unlabelled_hours=hours, subset_seed=seed).unlabelled == larger


def test_ten_minutes_lie_in_an_hour_of_the_embedded_speech() -> None:
    ten, hour = (read_corpus(PromptsConfig(language="fr", labelled_minutes=minutes)).train for minutes in (10, 60))
    assert {*ten} < {*hour}
    assert 590 < total_seconds(ten) <= 600


@settings(max_examples=25)
@given(st.floats(0.1, 1), SEEDS)
def test_every_source_of_a_mixture_keeps_its_share(folder: Path, fraction: float, seed: int) -> None:
    sources = (FolderConfig(root=folder), PromptsConfig(language="it"))
    settings = {"labelled": sources[0], "unlabelled": sources}
    whole = read_corpus(MixtureConfig.model_validate(settings)).unlabelled
    part = read_corpus(MixtureConfig.model_validate({**settings, "unlabelled_fraction": fraction, "subset_seed": seed}))
    for source in range(2):
        own, chosen = ([u for u in utterances if u.source == source] for utterances in (whole, part.unlabelled))
        left = {*own} - {*chosen}
        wanted = fraction * total_seconds(own)
        assert total_seconds(chosen) <= wanted + 1e-5 or len(chosen) == 1
        assert not left or total_seconds(chosen) + max(u.duration_seconds for u in left) > wanted


# Published lists


def test_a_labelled_list_is_those_utterances_and_dev_test_and_unlabelled_stay(folder: Path) -> None:
    whole, ten, hour = corpus(folder), corpus(folder, labelled_list="10min"), corpus(folder, labelled_list="1h")
    assert [u.id for u in ten.train] == train_ids()[:6]
    assert {*ten.train} < {*hour.train} < {*whole.train}
    assert replace(ten, train=whole.train) == replace(hour, train=whole.train) == whole


def test_a_subset_of_a_list_is_the_subset_of_its_utterances(folder: Path) -> None:
    listed = corpus(folder, labelled_list="1h").train
    part = corpus(folder, labelled_list="1h", labelled_minutes=0.3, subset_seed=2).train
    assert part == subset(listed, 18, 2)
    assert 1 < len(part) < len(listed)


def test_a_list_that_is_not_there_is_refused_with_those_that_are(folder: Path) -> None:
    message = f"{folder}/lists/10h.txt: no such list of utterances; this corpus has: 10min, 1h, dev, foreign"
    with pytest.raises(CorpusError, match=f"^{re.escape(message)}$"):
        corpus(folder, labelled_list="10h")


def test_without_lists_it_says_so(small_corpus: Path) -> None:
    with pytest.raises(CorpusError, match=r"lists/1h\.txt: no such list of utterances; this corpus has: none$"):
        corpus(small_corpus, labelled_list="1h")


def test_listed_utterances_that_are_not_train_are_refused(folder: Path) -> None:
    with pytest.raises(CorpusError, match=r"1 of the 3 utterances of list 'foreign' are not .*such as 'elsewhere'"):
        corpus(folder, labelled_list="foreign")
    with pytest.raises(CorpusError, match=r"5 of the 5 utterances of list 'dev' are not in its train split"):
        corpus(folder, labelled_list="dev")


@pytest.mark.parametrize("name", ["../manifest", "a/b", ""])
def test_a_list_has_a_name_and_no_path(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="labelled_list"):
        FolderConfig(root=folder, labelled_list=name)


def test_listed_unlabelled_utterances_become_train_with_their_text_and_stay_unlabelled_speech(tmp_path: Path) -> None:
    """As in Libri-Light: a list chooses the labels of speech that is otherwise unlabelled."""
    chosen = train_ids()[:6]
    rows = [{**row, "split": "unlabelled"} if row["id"] in train_ids()[:20] else row for row in ROWS]
    root = with_lists(write_corpus(tmp_path, rows))
    plain, listed = corpus(root), corpus(root, labelled_list="10min")
    texts = {row["id"]: row["text"] for row in ROWS}
    assert not {u.id for u in plain.train} & {*chosen}
    assert {u.id: u.text for u in listed.train} == {name: texts[name] for name in chosen}
    assert [u.id for u in listed.unlabelled] == [u.id for u in plain.unlabelled]
    assert {u.text for u in listed.unlabelled} == {None}
