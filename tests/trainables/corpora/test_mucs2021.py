from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.trainables.corpora import layouts_b
from tests.trainables.corpora.layouts import write_text
from trainables.data.corpora.mucs2021 import CORPUS
from trainables.data.corpora.segment import LayoutError, Segment
from trainables.data.corpus import CorpusError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return layouts_b.mucs2021(tmp_path)


def read(root: Path, language: str | None = "hi") -> list[Segment]:
    return list(CORPUS.read(root, language))


@pytest.mark.parametrize(("language", "folder"), [("hi", "Hindi-English"), ("bn", "Bengali-English")])
def test_it_equals_lhotse_s_reading_of_kaldi_folders(root: Path, tmp_path: Path, language: str, folder: str) -> None:
    from lhotse.kaldi import load_kaldi_data_dir

    ours = {s.id: s for s in read(root, language)}
    theirs = []
    for part in ("train", "test"):
        kaldi = shutil.copytree(root / folder / part / "transcripts", tmp_path / f"kaldi_{part}")
        recordings = [line.split() for line in (kaldi / "wav.scp").read_text().splitlines()]
        write_text(kaldi / "wav.scp", (f"{name} {root / folder / part / file}" for name, file in recordings))
        files, supervisions, _ = load_kaldi_data_dir(kaldi, sampling_rate=16_000)
        theirs += [(one, files[one.recording_id].sources[0].source, part) for one in supervisions]
    assert len(theirs) == len(ours) == 12
    for one, source, part in theirs:
        segment = ours[one.id]
        assert (segment.text, segment.speaker, str(segment.path)) == (one.text, one.speaker, source)
        assert (segment.start_seconds, segment.duration_seconds) == pytest.approx((one.start, one.duration), abs=1e-6)
        assert (segment.split == "test") == (part == "test")
        assert segment.language == language


def test_dev_is_one_speaker_of_train(root: Path) -> None:
    segments = read(root)
    speakers = {split: {s.speaker for s in segments if s.split == split} for split in ("train", "dev", "test")}
    assert (len(speakers["train"]), len(speakers["dev"]), speakers["test"]) == (2, 1, {"0test"})


@pytest.mark.parametrize("language", [None, "fr"])
def test_the_languages_on_disk_are_named_when_none_of_them_is_given(root: Path, language: str | None) -> None:
    with pytest.raises(CorpusError, match=r"has the languages hi, bn"):
        CORPUS.read(root, language)


def test_a_language_that_is_not_on_disk_is_refused_and_one_alone_needs_no_name(root: Path) -> None:
    shutil.rmtree(root / "Hindi-English")
    with pytest.raises(CorpusError, match=r"has the languages bn; language 'hi' is not one of them"):
        CORPUS.read(root, "hi")
    assert read(root, None) == read(root, "bn")


def test_only_what_is_missing_is_named(root: Path) -> None:
    shutil.rmtree(root / "Bengali-English" / "test")
    (root / "Hindi-English" / "train" / "transcripts" / "utt2spk").unlink()
    with pytest.raises(LayoutError, match=r"missing Hindi-English/train/transcripts/utt2spk\. Needed"):
        CORPUS.read(root, "hi")
    with pytest.raises(LayoutError, match=r"missing Bengali-English/test/transcripts/wav\.scp, "):
        CORPUS.read(root, "bn")


def test_an_empty_transcript_is_read_as_one(root: Path) -> None:
    path = root / "Hindi-English" / "test" / "transcripts" / "text"
    first, *others = path.read_text().splitlines()
    write_text(path, [first.split()[0], *others])
    assert next(s.text for s in read(root) if s.split == "test") == ""


@pytest.mark.parametrize(
    ("table", "line", "named", "rule"),
    [
        ("segments", "utterance Htest0 0.5", "segments", "must be an utterance, its recording, start and end"),
        ("segments", "utterance Htest0 a 1.5", "segments", "utterance 'utterance' has no line in text"),
        ("segments", "0test_Htest0_0000 Htest0 a 1.5", "segments", "must be numbers from 0 on, got 'a' and '1.5'"),
        ("segments", "0test_Htest0_0000 other 0.5 1.5", "segments", "recording 'other' has no line in wav.scp"),
        ("utt2spk", "other 0test", "segments", "utterance '0test_Htest0_0000' has no line in utt2spk"),
        ("wav.scp", "Htest0 flac -dcs Htest0.flac |", "wav.scp", "must name a recording and its file, not a command"),
        ("wav.scp", "Htest0", "wav.scp", "must name a recording and its file, not a command"),
    ],
)
def test_a_bad_line_is_named_with_file_and_line(root: Path, table: str, line: str, named: str, rule: str) -> None:
    folder = root / "Hindi-English" / "test" / "transcripts"
    write_text(folder / table, [line])
    with pytest.raises(CorpusError) as error:
        read(root)
    assert str(error.value).startswith(f"{folder / named}:1: ")
    assert rule in str(error.value)
