"""What the readers of code-switched and telephone corpora, and of a folder, promise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.trainables.corpora import layouts_b
from tests.trainables.corpora.layouts import FORMATS
from trainables.data.corpora import ascend, folder, mucs2021, seame, switchboard, talcs
from trainables.data.corpora.segment import LayoutError, PublishedCorpus, Segment
from trainables.data.corpus import LABELLED

Write = Callable[[Path], Path]


@dataclass(frozen=True)
class Case:
    corpus: PublishedCorpus
    write: Write
    language: str | None = None

    def read(self, root: Path) -> list[Segment]:
        return list(self.corpus.read(root, self.language))


def whole_switchboard(root: Path) -> Path:
    return layouts_b.with_fisher(layouts_b.with_callers(layouts_b.switchboard(root)))


CASES: Mapping[str, Case] = {
    "switchboard": Case(switchboard.CORPUS, layouts_b.switchboard),
    "switchboard_with_callers_and_fisher": Case(switchboard.CORPUS, whole_switchboard),
    "ascend": Case(ascend.CORPUS, layouts_b.ascend),
    "seame": Case(seame.CORPUS, layouts_b.seame),
    "talcs": Case(talcs.CORPUS, layouts_b.talcs),
    "mucs2021_hi": Case(mucs2021.CORPUS, layouts_b.mucs2021, "hi"),
    "mucs2021_bn": Case(mucs2021.CORPUS, layouts_b.mucs2021, "bn"),
    "folder": Case(folder.CORPUS, layouts_b.folder),
}
PATHS_IN_NEEDS = {
    "switchboard": ("LDC97S62/", "swb_ms98_transcriptions/", "LDC2002S09/", "LDC2002T43/"),
    "ascend": ("train_metadata.csv", "validation_metadata.csv", "test_metadata.csv", "waves/"),
    "seame": (
        *("data/conversation/audio/", "data/conversation/transcript/phaseII/"),
        *("data/interview/audio/", "data/interview/transcript/phaseII/"),
        *("SEAME-dev-set/dev_man/segments", "SEAME-dev-set/dev_sge/segments", "SEAME-dev-set/train/wav_file.txt"),
    ),
    "talcs": tuple(
        f"TALCS_corpus/{part}/{name}" for part in ("train_set", "dev_set", "test_set") for name in ("label.txt", "wav/")
    ),
    "mucs2021_hi": ("Hindi-English/", "Bengali-English/"),
    "folder": ("manifest.tsv",),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def root(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case.write(tmp_path_factory.mktemp("corpus"))


def audio_files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.suffix in FORMATS]


def test_ids_are_unique_and_reading_twice_gives_the_same(case: Case, root: Path) -> None:
    segments = case.read(root)
    assert len({s.id for s in segments}) == len(segments)
    assert case.read(root) == segments


def test_every_labelled_split_has_text_and_speakers_of_its_own(case: Case, root: Path) -> None:
    segments = case.read(root)
    assert {s.split for s in segments} == set(LABELLED)
    assert all(s.text for s in segments)
    speakers = [{s.speaker for s in segments if s.split == split and s.speaker} for split in LABELLED]
    assert len(set.union(*speakers)) == sum(map(len, speakers))


def test_segments_are_stretches_of_speech_with_silence_around(case: Case, root: Path) -> None:
    """Nearly all energy of a segment's channel in its stretch and 0.1 s around is in the stretch itself."""
    for segment in case.read(root):
        samples, rate_hz = soundfile.read(segment.path, always_2d=True)
        if segment.duration_seconds is None:
            if segment.expected_seconds is not None:
                assert len(samples) / rate_hz == pytest.approx(segment.expected_seconds, abs=2e-3)
            continue
        energy = samples[:, segment.channel or 0] ** 2
        first = round(segment.start_seconds * rate_hz)
        last = first + round(segment.duration_seconds * rate_hz)
        around = round(0.1 * rate_hz)
        assert last <= len(energy) + 0.01 * rate_hz
        inside = float(np.sum(energy[first:last]))
        assert inside > 0.99 * float(np.sum(energy[max(0, first - around) : last + around])) > 0


def test_no_audio_is_opened_and_missing_audio_is_still_a_segment(case: Case, tmp_path: Path) -> None:
    root = case.write(tmp_path)
    segments = case.read(root)
    for path in audio_files(root):
        path.write_bytes(b"not audio")
    assert case.read(root) == segments
    for path in audio_files(root):
        path.unlink()
    without = case.read(root)
    assert [(s.id, s.path.name) for s in without] == [(s.id, s.path.name) for s in segments]
    assert not any(s.path.exists() for s in without)


@pytest.mark.parametrize("name", PATHS_IN_NEEDS)
def test_an_empty_or_absent_folder_is_refused_with_all_that_is_missing(name: str, tmp_path: Path) -> None:
    corpus = CASES[name].corpus
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(LayoutError) as error:
            corpus.read(place, None)  # before the first segment is asked for
        message = str(error.value)
        assert message.startswith(f"{place}: ")
        assert corpus.needs in message
        assert all(path in message.removesuffix(corpus.needs) for path in PATHS_IN_NEEDS[name])


def test_a_corpus_says_what_it_is(case: Case) -> None:
    corpus = case.corpus
    assert all((corpus.title, corpus.hours, corpus.licence, corpus.needs))
    assert all(len(language) == 2 for language in corpus.languages)
