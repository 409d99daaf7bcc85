"""What every reader of a published corpus promises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import soundfile

from tests.trainables.corpora import layouts
from trainables.data.corpora import (
    commonvoice,
    covost2,
    lhotse_manifests,
    librilight,
    librispeech,
    tedlium3,
    voxpopuli,
)
from trainables.data.corpora.segment import LayoutError, PublishedCorpus, Segment
from trainables.data.corpus import LABELLED


@dataclass(frozen=True)
class Case:
    corpus: PublishedCorpus
    write: Callable[[Path], Path]
    language: str | None = None
    has_disjoint_speakers: bool = True

    def read(self, root: Path) -> list[Segment]:
        return list(self.corpus.read(root, self.language))


CASES: Mapping[str, Case] = {
    "librispeech": Case(librispeech.CORPUS, layouts.librispeech),
    "mini_librispeech": Case(librispeech.CORPUS, layouts.mini_librispeech),
    "librilight": Case(librilight.CORPUS, layouts.librilight),
    "commonvoice": Case(commonvoice.CORPUS, layouts.commonvoice, "es"),
    "covost2": Case(covost2.CORPUS, layouts.covost2, has_disjoint_speakers=False),
    "tedlium3": Case(tedlium3.CORPUS, layouts.tedlium3),
    "voxpopuli": Case(voxpopuli.CORPUS, layouts.voxpopuli, "es"),
    "lhotse_recordings": Case(lhotse_manifests.CORPUS, layouts.lhotse_recordings),
    "lhotse_cuts": Case(lhotse_manifests.CORPUS, layouts.lhotse_cuts),
}
AUDIO = tuple(layouts.FORMATS)
NAMES_TELL = {"unlabelled_data", "librispeech_finetuning"}  # folders where only the files' names tell what there is


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def root(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case.write(tmp_path_factory.mktemp("corpus"))


def audio_files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.suffix in AUDIO]


def test_ids_are_unique_and_reading_twice_gives_the_same(case: Case, root: Path) -> None:
    segments = case.read(root)
    assert segments
    assert len({s.id for s in segments}) == len(segments)
    assert case.read(root) == segments


def test_speakers_of_the_labelled_splits_are_disjoint(case: Case, root: Path) -> None:
    if not case.has_disjoint_speakers:
        pytest.skip("the corpus does not promise it")
    segments = case.read(root)
    speakers = [{s.speaker for s in segments if s.split == split and s.speaker} for split in LABELLED]
    assert len(set.union(*speakers)) == sum(map(len, speakers))


def test_a_text_is_optional_for_unlabelled_speech_alone(case: Case, root: Path) -> None:
    for segment in case.read(root):
        assert segment.text or (segment.text is None and segment.split == "unlabelled")


def test_segments_lie_in_real_audio(case: Case, root: Path) -> None:
    for segment in case.read(root):
        info = soundfile.info(segment.path)
        assert segment.start_seconds >= 0
        assert segment.start_seconds + (segment.duration_seconds or 0) <= info.duration + 0.02  # of times in 1/100 s


def test_no_audio_is_opened_and_missing_audio_is_still_a_segment(case: Case, tmp_path: Path) -> None:
    root = case.write(tmp_path)
    segments = case.read(root)
    for path in audio_files(root):
        path.write_bytes(b"not audio")
    assert case.read(root) == segments
    for path in audio_files(root):
        if not NAMES_TELL.intersection(path.parts):
            path.unlink()
    assert case.read(root) == segments


def test_an_empty_or_absent_folder_is_refused_with_what_is_needed(case: Case, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(LayoutError, match="missing ") as error:
            case.read(folder)
        assert str(folder) in str(error.value)
        assert case.corpus.needs in str(error.value)


def test_a_corpus_says_what_it_is(case: Case) -> None:
    corpus = case.corpus
    assert corpus.title
    assert corpus.hours
    assert corpus.licence
    assert all(len(language) == 2 for language in corpus.languages)
