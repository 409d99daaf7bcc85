from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pandas  # type: ignore[import-untyped]
import pytest

from tests.trainables.corpora import layouts
from trainables.data.corpora.covost2 import read
from trainables.data.corpora.segment import LayoutError
from trainables.data.corpus import CorpusError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return layouts.covost2(tmp_path)


def joined(root: Path) -> pandas.DataFrame:
    form = {"sep": "\t", "quoting": csv.QUOTE_NONE, "escapechar": "\\", "na_filter": False}
    sentences = pandas.read_csv(root / "es/validated.tsv", **form)[["path", "sentence", "client_id"]]
    table = pandas.read_csv(root / "covost_v2.es_en.tsv", **form).merge(sentences, on="path")
    return table.assign(split=table["split"].replace("train_covost", "train")).query(
        "split in ('train', 'dev', 'test')"
    )


def write_splits(root: Path) -> None:
    """What the published script writes."""
    for split, rows in joined(root).groupby("split"):
        columns = ["path", "sentence", "translation", "client_id"]
        form = {"sep": "\t", "index": False, "quoting": csv.QUOTE_NONE, "escapechar": "\\"}
        rows[columns].to_csv(root / f"es/covost_v2.es_en.{split}.tsv", **form)


def test_the_published_table_is_joined_as_by_pandas(root: Path) -> None:
    expected = {(row.path, row.sentence, row.split, row.client_id) for row in joined(root).itertuples()}
    segments = list(read(root, "es"))
    assert {(s.path.name, s.text, s.split, s.speaker) for s in segments} == expected
    assert sorted(s.split or "" for s in segments) == ["dev", "test", "train", "train", "train"]
    assert {s.path.parent for s in segments} == {root / "es/clips"}
    assert {s.language for s in segments} == {"es"}


def test_the_files_of_the_script_give_the_same(root: Path) -> None:
    from_table = sorted(read(root, "es"), key=lambda s: s.id)
    write_splits(root)
    (root / "es/validated.tsv").unlink()
    (root / "covost_v2.es_en.tsv").unlink()
    assert sorted(read(root, "es"), key=lambda s: s.id) == from_table
    for path in (root / "es").glob("*.tsv"):
        shutil.move(path, root)
    shutil.move(root / "es/clips", root)
    assert [s.id for s in sorted(read(root, None), key=lambda s: s.id)] == [s.id for s in from_table]


def test_common_voice_s_own_folder_may_be_below_the_root(root: Path) -> None:
    expected = [(s.id, s.text, s.split) for s in read(root, "es")]
    (root / "cv-corpus-4-2019-12-10").mkdir()
    shutil.move(root / "es", root / "cv-corpus-4-2019-12-10")
    assert [(s.id, s.text, s.split) for s in read(root, "es")] == expected


def test_a_clip_that_common_voice_lacks_has_an_empty_text(root: Path) -> None:
    table = root / "es/validated.tsv"
    table.write_text("".join(line for line in table.open() if "common_voice_es_5.mp3" not in line))
    texts = {s.id: s.text for s in read(root, "es")}
    assert texts["common_voice_es_5"] == ""
    assert all(text for name, text in texts.items() if name != "common_voice_es_5")


def test_missing_files_are_listed_together(root: Path) -> None:
    (root / "es/validated.tsv").unlink()
    shutil.rmtree(root / "es/clips")
    with pytest.raises(LayoutError, match=r"missing validated\.tsv, clips\. Needed"):
        list(read(root, "es"))
    layouts.write_table(root / "covost_v2.es_en.dev.tsv", [{"path": "a.mp3", "sentence": "a", "client_id": "b"}])
    message = r"missing covost_v2\.es_en\.train\.tsv, covost_v2\.es_en\.test\.tsv, clips\. Needed"
    with pytest.raises(LayoutError, match=message):
        list(read(root, "es"))


def test_the_languages_there_are_named(root: Path) -> None:
    shutil.copy(root / "covost_v2.es_en.tsv", root / "covost_v2.sv-SE_en.tsv")
    with pytest.raises(CorpusError, match="has the languages es, sv-SE; a language has to be given"):
        list(read(root, None))


def test_translations_from_english_are_not_taken_for_a_language(root: Path) -> None:
    shutil.copy(root / "covost_v2.es_en.tsv", root / "covost_v2.en_de.tsv")
    assert len(list(read(root, None))) == 5
