from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.trainables.corpora import layouts_b
from trainables.data.corpora.ascend import CORPUS
from trainables.data.corpora.segment import LayoutError, Segment
from trainables.data.corpus import CorpusError

HEADER = ["file_name", "transcription", "duration", "language", "original_speaker_id", "session_id", "topic"]
ROW = ["waves/ses1_spk17_L3823_15.3200_0.7810.wav", "好的 okay", "0.781", "mixed", "17", "1", "persona"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return layouts_b.ascend(tmp_path)


def read(root: Path) -> list[Segment]:
    return list(CORPUS.read(root, None))


def write(root: Path, *rows: list[str]) -> Path:
    path = root / "test_metadata.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return path


def test_a_row_is_a_segment(root: Path) -> None:
    write(root, HEADER, ROW)
    (segment,) = (s for s in read(root) if s.split == "test")
    assert segment == Segment(
        id="ses1_spk17_L3823_15.3200_0.7810",
        path=root / ROW[0],
        text="好的 okay",
        split="test",
        speaker="17",
        language="zh",
        expected_seconds=0.781,
    )


def test_the_splits_are_those_of_the_three_tables(root: Path) -> None:
    speakers = {split: {s.speaker for s in read(root) if s.split == split} for split in ("train", "dev", "test")}
    assert speakers == {"train": {"1", "3"}, "dev": {"5"}, "test": {"7"}}


def test_the_language_of_an_utterance_is_kept_and_mixed_is_mandarin(root: Path) -> None:
    assert [s.language for s in read(root) if s.split == "dev"] == ["zh", "en", "zh"]


def test_words_that_were_not_understood_and_quoted_commas(root: Path) -> None:
    write(root, HEADER, [ROW[0], 'so, [UNK] 然后 "ok"', *ROW[2:]])
    (segment,) = (s for s in read(root) if s.split == "test")
    assert segment.text is not None
    assert segment.text.split() == ["so,", "然后", '"ok"']


@pytest.mark.parametrize("missing", ["train_metadata.csv", "validation_metadata.csv", "test_metadata.csv"])
def test_a_missing_table_alone_is_named(root: Path, missing: str) -> None:
    (root / missing).unlink()
    with pytest.raises(LayoutError, match=f"missing {missing}. Needed"):
        CORPUS.read(root, None)


@pytest.mark.parametrize(
    ("place", "value", "rule"),
    [
        (0, "", "must have file_name, transcription, duration"),
        (2, "long", "duration must be a number of seconds, got 'long'"),
        (3, "yue", "language must be one of zh, en, mixed, got 'yue'"),
        (4, "", "must have file_name, transcription, duration"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(root: Path, place: int, value: str, rule: str) -> None:
    path = write(root, HEADER, ROW, [*ROW[:place], value, *ROW[place + 1 :]])
    with pytest.raises(CorpusError) as error:
        read(root)
    assert str(error.value).startswith(f"{path}:3: ")
    assert rule in str(error.value)


def test_a_row_that_ends_early_and_a_missing_column_are_named(root: Path) -> None:
    path = write(root, HEADER, ROW[:3])
    with pytest.raises(CorpusError, match=rf"{path}:2: must have"):
        read(root)
    write(root, HEADER[1:], ROW[1:])
    with pytest.raises(CorpusError, match=rf"{path}:1: lacks the column\(s\) file_name"):
        read(root)


def test_a_table_that_is_not_text_is_named(root: Path) -> None:
    (root / "test_metadata.csv").write_bytes(b"\xff\xfe\x00,\n")
    with pytest.raises(CorpusError, match=r"test_metadata\.csv: is not a table"):
        read(root)
