from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pandas  # type: ignore[import-untyped]
import pytest

from tests.trainables.corpora import layouts
from trainables.data.corpora.segment import LayoutError
from trainables.data.corpora.voxpopuli import read
from trainables.data.corpus import LABELLED, CorpusError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return layouts.voxpopuli(tmp_path)


def test_transcribed_speech_is_that_of_the_tables(root: Path) -> None:
    folder = root / "transcribed_data/es"
    expected = set()
    for split in LABELLED:
        table = pandas.read_csv(
            folder / f"asr_{split}.tsv", sep="\t", quoting=csv.QUOTE_NONE, na_filter=False, dtype=str
        )
        for row in table.itertuples():
            speaker = row.speaker_id.replace("None", "")
            expected.add((row.id, folder / row.id[:4] / f"{row.id}.ogg", row.normalized_text, split, speaker))
    labelled = [s for s in read(root, "es") if s.split != "unlabelled"]
    assert {(s.id, s.path, s.text, s.split, s.speaker) for s in labelled} == expected
    assert len(labelled) == 6
    assert {s.speaker for s in labelled} == {"1000", "1001", "1002", ""}


def test_unlabelled_speech_is_the_files_that_are_there(root: Path) -> None:
    unlabelled = [s for s in read(root, "es") if s.split == "unlabelled"]
    folder = root / "unlabelled_data/es"
    assert [s.path for s in unlabelled] == [
        folder / "2019/20190114-0900-PLENARY_es_0.ogg",
        folder / "2020/20200114-0900-PLENARY_es_1.ogg",
    ]
    assert {(s.text, s.speaker, s.language, s.duration_seconds) for s in unlabelled} == {(None, "", "es", None)}


def test_unlabelled_speech_of_the_sessions_of_dev_and_test_is_left_out(root: Path) -> None:
    """Also where another session's name begins like it; a session that is in train too is still one of dev."""
    folder = root / "unlabelled_data/es"
    for number in range(3):  # that of train, of dev, of test
        for session in (f"20131007-0900-PLENARY-{number}", f"20131007-0900-PLENARY-{number}0"):
            (folder / "2013").mkdir(exist_ok=True)
            shutil.copy(folder / "2019/20190114-0900-PLENARY_es_0.ogg", folder / f"2013/{session}_es_7.ogg")
    names = {s.id for s in read(root, "es") if s.split == "unlabelled" and s.id.startswith("2013")}
    assert names == {f"20131007-0900-PLENARY-{session}_es_7" for session in ("0", "00", "10", "20")}
    table = root / "transcribed_data/es/asr_dev.tsv"
    table.write_text(table.read_text().replace("PLENARY-1", "PLENARY-0"))
    assert "20131007-0900-PLENARY-0_es_7" not in {s.id for s in read(root, "es")}


@pytest.mark.parametrize(("part", "splits"), [("unlabelled_data", set(LABELLED)), ("transcribed_data", {"unlabelled"})])
def test_either_part_is_enough(root: Path, part: str, splits: set[str]) -> None:
    shutil.rmtree(root / part)
    assert {s.split for s in read(root, "es")} == splits


def test_a_language_may_have_unlabelled_speech_only(root: Path) -> None:
    assert [(s.id, s.split) for s in read(root, "it")] == [("20190114-0900-PLENARY_it_0", "unlabelled")]


def test_the_languages_there_are_named(root: Path) -> None:
    with pytest.raises(CorpusError, match="has the languages es, it; a language has to be given"):
        list(read(root, None))
    with pytest.raises(CorpusError, match="has the languages es, it; language 'de' is not one of them"):
        list(read(root, "de"))


def test_missing_tables_and_audio_are_listed(root: Path) -> None:
    for split in ("train", "dev"):
        (root / f"transcribed_data/es/asr_{split}.tsv").unlink()
    message = r"missing transcribed_data/es/asr_train\.tsv, transcribed_data/es/asr_dev\.tsv\. Needed"
    with pytest.raises(LayoutError, match=message):
        list(read(root, "es"))
    shutil.rmtree(root / "unlabelled_data/it/2019")
    with pytest.raises(LayoutError, match=r"missing unlabelled_data/it/YEAR/\*\.ogg\. Needed"):
        list(read(root, "it"))


@pytest.mark.parametrize(
    ("old", "new"), [("\tdev\t", "\ttest\t"), ("\n2013", "\nPLENARY"), ("\n2013", "\n2013/"), ("-es_", "_")]
)
def test_a_row_of_another_split_or_without_a_year_or_a_session_is_named(root: Path, old: str, new: str) -> None:
    table = root / "transcribed_data/es/asr_dev.tsv"
    table.write_text(table.read_text().replace(old, new, 1))
    with pytest.raises(CorpusError, match=r"asr_dev\.tsv:2: must be of the split dev, with an id that begins with the"):
        list(read(root, "es"))
