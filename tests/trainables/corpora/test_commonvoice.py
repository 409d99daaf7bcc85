from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import pandas  # type: ignore[import-untyped]
import pytest

from tests.trainables.corpora import layouts
from trainables.data.corpora.commonvoice import read
from trainables.data.corpora.segment import LayoutError
from trainables.data.corpus import LABELLED, CorpusError

RELEASE = "cv-corpus-13.0-2023-03-09"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return layouts.commonvoice(tmp_path)


def test_utterances_are_those_of_lhotse(root: Path) -> None:
    from lhotse.recipes.commonvoice import _parse_utterance

    expected = set()
    for split in LABELLED:
        table = pandas.read_csv(root / RELEASE / f"es/{split}.tsv", sep="\t", quoting=csv.QUOTE_NONE, na_filter=False)
        for row in table.to_dict("records"):
            recording, supervision = _parse_utterance(root / RELEASE / "es", "es", row)
            path = Path(recording.sources[0].source)
            expected.add((supervision.id, path, supervision.text, split, supervision.speaker, "es"))
    labelled = (s for s in read(root, "es") if s.split != "unlabelled")
    assert {(s.id, s.path, s.text, s.split, s.speaker, s.language) for s in labelled} == expected


def test_other_validated_clips_are_unlabelled(root: Path) -> None:
    unlabelled = {s.id for s in read(root, "es") if s.split == "unlabelled"}
    assert unlabelled == {f"common_voice_es_{number}" for number in range(1012, 1016)}
    (root / RELEASE / "es/validated.tsv").unlink()
    assert {s.split for s in read(root, "es")} == set(LABELLED)


def test_durations_are_read_where_the_release_has_them(root: Path) -> None:
    table = root / RELEASE / "es/clip_durations.tsv"
    layouts.write_table(table, [{"clip": "common_voice_es_1000.mp3", "duration[ms]": "1234"}])
    expected = {s.id: s.expected_seconds for s in read(root, "es")}
    assert expected["common_voice_es_1000"] == 1.234
    assert expected["common_voice_es_1001"] is None
    layouts.write_table(table, [{"clip": "common_voice_es_1000.mp3", "duration[ms]": "long"}])
    with pytest.raises(CorpusError, match=r"clip_durations\.tsv:2: duration\[ms\] must be a number, got 'long'"):
        list(read(root, "es"))


@pytest.mark.parametrize("language", ["fr", "fr-FR"])
def test_a_language_is_its_code_also_where_the_folder_has_a_region(root: Path, language: str) -> None:
    segments = list(read(root, language))
    assert {s.language for s in segments} == {"fr"}
    assert {s.path.parent for s in segments} == {root / RELEASE / "fr-FR/clips"}


@pytest.mark.parametrize(
    ("language", "rule"),
    [(None, "a language has to be given"), ("nl", "language 'nl' is not one of them")],
)
def test_the_languages_there_are_named(root: Path, language: str | None, rule: str) -> None:
    with pytest.raises(CorpusError, match=f"has the languages es, fr-FR; {rule}"):
        list(read(root, language))


def test_a_language_that_is_there_in_two_regions_has_to_be_given_whole(root: Path) -> None:
    shutil.copytree(root / RELEASE / "fr-FR", root / RELEASE / "fr-CA")
    with pytest.raises(CorpusError, match="es, fr-CA, fr-FR; language 'fr' is several of them; give one by its whole"):
        list(read(root, "fr"))
    assert len(list(read(root, "fr-CA"))) == 16


def test_the_only_language_need_not_be_given(root: Path) -> None:
    shutil.rmtree(root / RELEASE / "fr-FR")
    assert list(read(root, None)) == list(read(root / RELEASE, "es"))


def test_several_releases_are_refused(root: Path) -> None:
    (root / "cv-corpus-9.0-2022-04-27").mkdir()
    with pytest.raises(LayoutError, match=r"has the releases cv-corpus-13\.0-2023-03-09, cv-corpus-9\.0-2022-04-27"):
        list(read(root, "es"))


def test_missing_tables_are_listed_together(root: Path) -> None:
    for name in ("dev.tsv", "test.tsv"):
        (root / RELEASE / "es" / name).unlink()
    shutil.rmtree(root / RELEASE / "es/clips")
    with pytest.raises(LayoutError, match=r"missing es/dev\.tsv, es/test\.tsv, es/clips\. Needed"):
        list(read(root, "es"))


@pytest.mark.parametrize("name", ["", "..", "../secret.mp3", "/etc/passwd", "a\\b.mp3"])
def test_a_clip_outside_of_clips_is_refused(root: Path, name: str) -> None:
    table = root / RELEASE / "es/dev.tsv"
    table.write_text(table.read_text().replace("common_voice_es_1005.mp3", name))
    message = rf"dev\.tsv:3: path must be the name of a file in .*/clips, got {re.escape(repr(name))}"
    with pytest.raises(CorpusError, match=message):
        list(read(root, "es"))


def test_a_table_without_a_column_or_with_a_short_row_is_named(root: Path) -> None:
    table = root / RELEASE / "es/dev.tsv"
    whole = table.read_text()
    table.write_text(whole + "short\trow\n")
    with pytest.raises(CorpusError, match=r"es/dev\.tsv:6: has 2 fields; the header has 11"):
        list(read(root, "es"))
    table.write_text(whole.replace("sentence", "text", 1))
    with pytest.raises(CorpusError, match=r"es/dev\.tsv:1: the header has no column sentence; it has"):
        list(read(root, "es"))
    table.write_bytes(whole.encode("utf-16"))
    with pytest.raises(CorpusError, match=r"es/dev\.tsv: cannot be read as a tab-separated table in UTF-8"):
        list(read(root, "es"))
