from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.trainables.corpora import layouts
from trainables.data.corpora.librispeech import lists, read, read_clean
from trainables.data.corpora.segment import LayoutError, Segment
from trainables.data.corpus import CorpusError


def ids(root: Path, split: str) -> set[str]:
    return {s.id for s in read(root, None) if s.split == split}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return layouts.librispeech(tmp_path)


def test_utterances_are_those_of_lhotse(root: Path) -> None:
    from lhotse.recipes.librispeech import prepare_librispeech

    manifests = prepare_librispeech(root / "LibriSpeech", dataset_parts=["train-clean-100", "dev-other", "test-other"])
    split_of = {"train-clean-100": "train", "dev-other": "dev", "test-other": "test"}
    expected = {
        (s.id, s.text, s.speaker, split_of[part], Path(manifest["recordings"][s.recording_id].sources[0].source))
        for part, manifest in manifests.items()
        for s in manifest["supervisions"]
    }
    segments = [s for s in read(root, None) if s.split != "unlabelled"]
    assert {(s.id, s.text, s.speaker, s.split, s.path) for s in segments} == expected
    assert {s.language for s in segments} == {"en"}


def test_lists_are_those_of_torchaudio(root: Path) -> None:
    from torchaudio.datasets import librilight_limited as reference

    expected = {
        name: {
            utterance for _, utterance in reference._get_fileids_paths(root / reference._ARCHIVE_NAME, parts, ".flac")
        }
        for name, parts in reference._SUBSET_MAP.items()
    }
    assert {name: set(listed) for name, listed in lists(root).items() if name != "960h"} == expected


def test_lists_are_nested_and_all_of_train(root: Path) -> None:
    ten_minutes, hour, ten_hours, everything = (set(lists(root)[name]) for name in ("10min", "1h", "10h", "960h"))
    assert (len(ten_minutes), len(hour), len(ten_hours)) == (2, 7, 9)
    assert ten_minutes < hour < ten_hours < everything == ids(root, "train") | ids(root, "unlabelled")


def test_860_hours_are_unlabelled_with_their_text_kept_for_the_lists(root: Path) -> None:
    folders = {s.path.relative_to(root / "LibriSpeech").parts[0]: s.split for s in read(root, None)}
    assert folders["train-clean-100"] == "train"
    assert folders["train-clean-360"] == folders["train-other-500"] == "unlabelled"
    assert all(s.text for s in read(root, None))


def test_without_the_finetuning_folder_there_is_the_list_of_all_train_only(root: Path) -> None:
    shutil.rmtree(root / "librispeech_finetuning")
    assert list(lists(root)) == ["960h"]


def test_a_part_of_train_is_not_called_960_hours(root: Path) -> None:
    shutil.rmtree(root / "librispeech_finetuning")
    shutil.rmtree(root / "LibriSpeech" / "train-other-500")
    assert lists(root) == {}


def test_clean_is_the_100_hours_with_clean_dev_and_test(root: Path) -> None:
    parts = {(s.path.relative_to(root / "LibriSpeech").parts[0], s.split) for s in read_clean(root, None)}
    assert parts == {("train-clean-100", "train"), ("dev-clean", "dev"), ("test-clean", "test")}
    shutil.rmtree(root / "LibriSpeech" / "dev-clean")
    with pytest.raises(LayoutError, match="dev-clean"):
        list(read_clean(root, None))


def test_the_root_may_be_the_folder_of_the_parts(root: Path) -> None:
    shutil.move(root / "librispeech_finetuning", root / "LibriSpeech")
    inside = root / "LibriSpeech"
    assert list(read(inside, None)) == list(read(root, None))
    assert lists(inside) == lists(root) != {}


def test_clean_dev_and_test_are_read_only_without_other(root: Path) -> None:
    assert ids(root, "dev") == {"116-288045-0000", "116-288045-0001"}
    assert ids(root, "test") == {"367-130732-0000", "367-130732-0001"}
    shutil.rmtree(root / "LibriSpeech" / "dev-other")
    assert ids(root, "dev") == {"84-121123-0000", "84-121123-0001"}
    assert ids(root, "test") == {"367-130732-0000", "367-130732-0001"}


def test_mini_librispeech_is_halved_by_speaker(tmp_path: Path) -> None:
    segments = list(read(layouts.mini_librispeech(tmp_path), None))
    by_split = {split: Counter(s.speaker for s in segments if s.split == split) for split in ("train", "dev", "test")}
    assert by_split == {"train": {"1088": 2, "118": 2}, "dev": {"1272": 4, "84": 2}, "test": {"174": 2}}


def test_a_part_of_a_larger_part_is_not_read_twice(root: Path) -> None:
    """train-clean-5 holds utterances of train-clean-100, dev-clean-2 of dev-clean."""
    before = list(read(root, None))
    home = root / "LibriSpeech"
    shutil.copytree(home / "train-clean-100", home / "train-clean-5")
    shutil.copytree(home / "dev-clean", home / "dev-clean-2")
    assert list(read(root, None)) == before


def test_missing_folders_and_transcripts_are_listed_together(root: Path) -> None:
    home = root / "LibriSpeech"
    shutil.rmtree(home / "test-other")
    shutil.rmtree(home / "test-clean")
    for path in home.glob("dev-other/*/*/*.trans.txt"):
        path.unlink()
    message = rf"^{re.escape(str(home))}: missing test-other, dev-other/SPEAKER/CHAPTER/\*\.trans\.txt\. Needed"
    with pytest.raises(LayoutError, match=message):
        list(read(root, None))


@pytest.mark.parametrize("line", ["116-288045-0002", "116-288046-0002 ANOTHER CHAPTER", "NO ID HERE"])
def test_a_malformed_line_is_named_with_its_place_and_the_rule(root: Path, line: str) -> None:
    transcripts = root / "LibriSpeech/dev-other/116/288045/116-288045.trans.txt"
    with transcripts.open("a", encoding="utf-8") as stream:
        stream.write(f"{line}\n")
    message = rf"{re.escape(str(transcripts))}:3: must be an id 116-288045-NUMBER, a space and a text, got '{line}'"
    with pytest.raises(CorpusError, match=message):
        list(read(root, None))


def test_a_transcript_that_is_not_utf_8_is_named(root: Path) -> None:
    transcripts = root / "LibriSpeech/dev-other/116/288045/116-288045.trans.txt"
    transcripts.write_bytes(b"116-288045-0000 CAF\xe9\n")
    with pytest.raises(CorpusError, match=rf"^{re.escape(str(transcripts))}: cannot be read as text in UTF-8"):
        list(read(root, None))


def test_a_listed_utterance_without_a_transcript_is_refused(root: Path) -> None:
    shutil.rmtree(root / "LibriSpeech/train-other-500")
    with pytest.raises(LayoutError, match=r"lists 3 utterances, such as 20-205-0000, that no transcript has; unpack"):
        lists(root)
    assert all(isinstance(s, Segment) for s in read(root, None))


def test_parts_of_the_lists_that_overlap_or_lack_are_refused(root: Path) -> None:
    limited = root / "librispeech_finetuning"
    shutil.copytree(limited / "1h/2", limited / "1h/3", dirs_exist_ok=True)
    with pytest.raises(LayoutError, match="103-1241-0001 is in 1h/2 and 1h/3"):
        lists(root)
    shutil.rmtree(limited / "1h/3")
    with pytest.raises(LayoutError, match=r"missing librispeech_finetuning/1h/3/\{clean,other\}"):
        lists(root)
