# ruff: noqa: RUF001 (full-width letters and punctuation are what is tested)
from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainables.corpora import layouts_b
from tests.trainables.corpora.layouts import write_text
from trainables.data.clean import clean
from trainables.data.corpora.segment import LayoutError, Segment
from trainables.data.corpora.talcs import CORPUS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return layouts_b.talcs(tmp_path)


def read(root: Path) -> list[Segment]:
    return list(CORPUS.read(root, "zh"))


def test_it_equals_lhotse_s_recipe(root: Path) -> None:
    from lhotse.recipes.tal_csasr import prepare_tal_csasr

    label = root / "TALCS_corpus" / "test_set" / "label.txt"
    name = label.read_text().split()[0]
    write_text(label, [f"{name} 上面是一般现在，对！然后 HE IS ALWAYS FINISHIＮG", *label.read_text().splitlines()[1:]])
    theirs = prepare_tal_csasr(root)
    for split, part in {"train": "train_set", "dev": "dev_set", "test": "test_set"}.items():
        ours = {s.id: s for s in read(root) if s.split == split}
        assert len(ours) == 3
        assert set(ours) == {one.id for one in theirs[part]["supervisions"]}
        for one in theirs[part]["supervisions"]:
            recording = theirs[part]["recordings"][one.recording_id]
            assert clean(ours[one.id].text or "", "zh") == clean(one.text, "zh")
            assert str(ours[one.id].path) == recording.sources[0].source
            assert (ours[one.id].start_seconds, ours[one.id].duration_seconds) == (one.start, None)
            assert recording.duration == one.duration


def test_a_line_without_words_is_an_empty_transcript_and_speakers_are_not_known(root: Path) -> None:
    write_text(root / "TALCS_corpus" / "dev_set" / "label.txt", ["one\t", "two\t什么 is", ""])
    dev = [s for s in read(root) if s.split == "dev"]
    assert [(s.id, s.text, s.speaker) for s in dev] == [("one", "", ""), ("two", "什么 is", "")]


def test_only_what_is_missing_is_named(root: Path) -> None:
    (root / "TALCS_corpus" / "dev_set" / "label.txt").unlink()
    with pytest.raises(LayoutError, match=r"missing TALCS_corpus/dev_set/label\.txt\. Needed"):
        CORPUS.read(root, None)
