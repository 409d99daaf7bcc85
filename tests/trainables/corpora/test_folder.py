from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from tests.trainables.corpora import layouts_b
from tests.trainables.corpora.layouts import write_table
from trainables.data.config import CORPORA_VARIABLE
from trainables.data.corpora.folder import CORPUS
from trainables.data.corpora.segment import LayoutError, Segment
from trainables.data.corpus import PROMPTS, CorpusError, read_manifest
from trainables.data.text import normalise

Row = dict[str, str]


def read(root: Path, language: str | None = None) -> list[Segment]:
    return list(CORPUS.read(root, language))


def row(**changes: str) -> Row:
    return {"id": "one", "path": "audio/one.wav", "text": "Uno, dos.", **changes}


def agrees_with_read_manifest(root: Path) -> None:
    """An independent reading of the same table, for those who train on it without preparation."""
    segments = sorted(read(root), key=lambda s: s.id)
    utterances = read_manifest(root)
    assert [(s.id, s.path, normalise(s.text or "")) for s in segments] == [(u.id, u.path, u.text) for u in utterances]
    assert [s.expected_seconds for s in segments] == [u.duration_seconds for u in utterances]
    assert {s.duration_seconds for s in segments} == {None}


@pytest.mark.parametrize("language", ["en", "es", "fr", "it", "ru"])
def test_the_embedded_prompts_are_read_as_in_training(language: str) -> None:
    agrees_with_read_manifest(PROMPTS / language)
    assert {s.language for s in read(PROMPTS / language)} == {language}


@pytest.mark.parametrize(("name", "splits"), [("speechocean762", {"train", "dev"}), ("digits", {"train", "dev"})])
def test_other_corpora_of_this_form_are_read_as_in_training(name: str, splits: set[str]) -> None:
    root = Path(os.environ.get(CORPORA_VARIABLE, "")) / name
    if not (root / "manifest.tsv").is_file():
        pytest.skip(f"${CORPORA_VARIABLE} has no {name}")
    agrees_with_read_manifest(root)
    assert {s.split for s in read(root)} == splits
    assert all(s.speaker for s in read(root))


def test_all_columns_are_read(tmp_path: Path) -> None:
    layouts_b.folder(tmp_path)
    with (tmp_path / "manifest.tsv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert read(tmp_path) == [
        Segment(
            id=r["id"],
            path=tmp_path / r["path"],
            text=r["text"],
            split=r["split"],  # type: ignore[arg-type]
            speaker=r["speaker"],
            language=r["language"],
            start_seconds=float(r["start_seconds"]),
            duration_seconds=float(r["duration_seconds"]),
            channel=int(r["channel"]),
        )
        for r in rows
    ]


def test_three_columns_are_enough_and_the_only_table_is_taken(tmp_path: Path) -> None:
    write_table(tmp_path / "mine.tsv", [row()])
    (segment,) = read(tmp_path, "es")
    assert segment == Segment("one", tmp_path / "audio/one.wav", "Uno, dos.", None, language="es")


def test_a_row_s_language_comes_before_the_one_given(tmp_path: Path) -> None:
    write_table(tmp_path / "manifest.tsv", [row(language="it"), row(id="two", language="")])
    assert [s.language for s in read(tmp_path, "es")] == ["it", "es"]


def test_manifest_is_taken_beside_other_tables_and_several_others_are_refused(tmp_path: Path) -> None:
    for name in ("other.tsv", "more.tsv"):
        write_table(tmp_path / name, [row(id=name)])
    with pytest.raises(CorpusError, match=r"has several tables: more\.tsv, other\.tsv; name one manifest\.tsv"):
        CORPUS.read(tmp_path, None)
    write_table(tmp_path / "manifest.tsv", [row()])
    assert [s.id for s in read(tmp_path)] == ["one"]


def test_unlabelled_rows_have_no_text(tmp_path: Path) -> None:
    write_table(tmp_path / "manifest.tsv", [row(split="unlabelled"), row(id="two", split="")])
    assert [(s.split, s.text) for s in read(tmp_path)] == [("unlabelled", None), (None, "Uno, dos.")]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"id": ""}, "id and path must not be empty, got '' and 'audio/one.wav'"),
        ({"path": ""}, "id and path must not be empty, got 'one' and ''"),
        ({"path": "../one.wav"}, "path '../one.wav' leaves the folder"),
        ({"id": "zero"}, "id 'zero' occurs twice"),
        ({"split": "eval"}, "split must be one of train, dev, test, unlabelled, got 'eval'"),
        ({"start_seconds": "-1"}, "start_seconds must be a number from 0 on, got '-1'"),
        ({"duration_seconds": "nan"}, "duration_seconds must be a number from 0 on, got 'nan'"),
        ({"duration_seconds": "long"}, "duration_seconds must be a number from 0 on, got 'long'"),
        ({"channel": "0.5"}, "channel must be a whole number from 0 on, got '0.5'"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path: Path, change: Row, rule: str) -> None:
    columns = {"split": "train", "start_seconds": "0", "duration_seconds": "1", "channel": "0"}
    write_table(tmp_path / "manifest.tsv", [row(id="zero", **columns), row(**{**columns, **change})])
    with pytest.raises(CorpusError) as error:
        read(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/manifest.tsv:3: ")
    assert rule in str(error.value)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    write_table(tmp_path / "manifest.tsv", [{"id": "one", "path": "one.wav"}])
    with pytest.raises(CorpusError, match=r"manifest\.tsv:1: .*text"):
        read(tmp_path)


def test_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.wav").touch()
    with pytest.raises(LayoutError, match=r"missing manifest\.tsv\. Needed"):
        CORPUS.read(tmp_path, None)
