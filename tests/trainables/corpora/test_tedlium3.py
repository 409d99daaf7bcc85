from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainables.corpora import layouts
from trainables.data.corpora.segment import LayoutError
from trainables.data.corpora.tedlium3 import read, transcript
from trainables.data.corpus import LABELLED, CorpusError

WORDS = st.sampled_from(["i", "'m", "they", "'re", "'", "60s", "'cause", "<unk>", "[NOISE]", "[a b]", "x2", "été"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return layouts.tedlium3(tmp_path)


@given(st.lists(WORDS))
def test_text_is_that_of_lhotse_s_kaldi_form(words: list[str]) -> None:
    from lhotse.recipes.utils import normalize_text_tedlium

    text = " ".join(words)
    assert transcript(text).split() == normalize_text_tedlium(text, "kaldi").split()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("i 'm here {COUGH} today [NOISE]", "i'm here today"),
        ("<sil> a(2) read(3) word <sil>", "a read word"),
        ("the ' 60s and ' cause", "the '60s and 'cause"),
        ("all is well (AdaA_2010-16.00-24.44-F0_M-S1)", "all is well"),
        ("the <unk> 's house", "the 's house"),
        ("{SMACK} <unk>", ""),
    ],
)
def test_fillers_are_left_out_and_suffixes_joined(text: str, expected: str) -> None:
    assert transcript(text) == expected


def test_segments_are_those_of_lhotse(root: Path) -> None:
    from lhotse.recipes.tedlium import _parse_stm_file

    for split in LABELLED:
        folder = root / "TEDLIUM_release-3/legacy" / split
        expected = {
            (folder / f"sph/{s.recording_id}.sph", s.text, s.start, s.duration, s.speaker)
            for stm in (folder / "stm").glob("*.stm")
            for s in _parse_stm_file(stm, normalize_text="kaldi")
        }
        found = {
            (s.path, s.text, s.start_seconds, round(s.duration_seconds or 0, 8), s.speaker)
            for s in read(root, None)
            if s.split == split
        }
        assert found == expected


def test_ids_are_talk_and_line_and_ignored_lines_are_left_out(root: Path) -> None:
    ids = {split: [s.id for s in read(root, None) if s.split == split] for split in LABELLED}
    assert ids["dev"] == ["CyC_2012-0001", "CyC_2012-0002", "CyC_2012-0003"]
    assert ids["test"] == ["DeeD_2013-0000", "DeeD_2013-0001", "DeeD_2013-0002"]
    assert len(ids["train"]) == 6


def test_the_root_may_be_the_release_s_folder(root: Path) -> None:
    assert list(read(root / "TEDLIUM_release-3", None)) == list(read(root, None))


def test_missing_folders_are_listed_together(root: Path) -> None:
    shutil.rmtree(root / "TEDLIUM_release-3/legacy/dev")
    shutil.rmtree(root / "TEDLIUM_release-3/legacy/test/sph")
    message = r"missing legacy/dev/stm/\*\.stm, legacy/dev/sph, legacy/test/sph\. Needed"
    with pytest.raises(LayoutError, match=message):
        list(read(root, None))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("CyC_2012 1 CyC_2012 1.0", "must be: talk, channel, speaker, start and end in seconds, <label>, text; got"),
        ("CyC_2012 1 CyC_2012 one 2.0 <NA> words", "must be: talk, channel, speaker"),
        ("CyC_2012 1 CyC_2012 2.0 2.0 <NA> words", "must end after its start; got 2 s to 2 s"),
    ],
)
def test_a_malformed_line_is_named_with_its_place_and_the_rule(root: Path, line: str, message: str) -> None:
    file = root / "TEDLIUM_release-3/legacy/dev/stm/CyC_2012.stm"
    file.write_text(f"{file.read_text()}{line}\n")
    with pytest.raises(CorpusError, match=f"{re.escape(str(file))}:5: {message}"):
        list(read(root, None))
