from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainables.corpora import layouts_b
from tests.trainables.corpora.layouts import write_text
from trainables.data.corpora.seame import CORPUS
from trainables.data.corpora.segment import LayoutError, Segment
from trainables.data.corpus import CorpusError

RECORDING = "NI66MBQ_0101"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return layouts_b.seame(tmp_path)


def read(root: Path) -> list[Segment]:
    return list(CORPUS.read(root, None))


def with_line(root: Path, start_ms: str, end_ms: str, text: str, *, listed: str = "1.00 3.00", tag: str = "CS") -> Path:
    """One utterance in the recording of dev_sge, and one in its list."""
    path = root / "data" / "interview" / "transcript" / "phaseII" / f"{RECORDING}.txt"
    write_text(path, [f"{RECORDING}\t{start_ms}\t{end_ms}\t{tag}\t{text}"])
    write_text(root / "SEAME-dev-set" / "dev_sge" / "segments", [f"ni66m-x {RECORDING.lower()} {listed}"])
    return path


def of_sge(root: Path) -> list[Segment]:
    return [s for s in read(root) if RECORDING in s.path.name]


def test_a_listed_utterance_is_a_segment_of_test(root: Path) -> None:
    with_line(root, "1000", "3000", "然后 okay [ah]")
    assert of_sge(root) == [
        Segment(
            id="dev_sge-ni66m-ni66mbq_0101-0001000-0003000",
            path=root / "data" / "interview" / "audio" / f"{RECORDING}.flac",
            text="然后 okay [ah]",
            split="test",
            speaker="ni66m",
            language="zh",
            start_seconds=1.0,
            duration_seconds=2.0,
        )
    ]


def test_splits_and_what_is_in_no_list(root: Path) -> None:
    segments = read(root)
    test = [s.id.split("-")[0] for s in segments if s.split == "test"]
    assert (test.count("dev_man"), test.count("dev_sge"), len(test)) == (2, 2, 4)
    assert {s.speaker for s in segments if s.split == "test"} == {"nc12m", "ni66m"}
    assert {s.speaker for s in segments if s.split != "test"} == {"nc01f", "nc02f", "nc03f", "ni01m"}
    assert not [s for s in segments if "UI05MAZ" in s.path.name]
    assert len(segments) == 4 + 4 * 3


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "is_listed"),
    [
        ("1000", "3000", True),
        ("1025", "2975", True),
        ("1035", "3000", False),
        ("1000", "2960", False),
        ("965", "3000", False),
    ],
)
def test_both_ends_must_be_near_those_of_the_list(root: Path, start_ms: str, end_ms: str, is_listed: bool) -> None:
    with_line(root, start_ms, end_ms, "okay 啦")
    assert bool(of_sge(root)) == is_listed


@pytest.mark.parametrize(
    ("published", "heard"),
    [
        ("(ppl) 哦 okay <unk> (err) <v-noise> 我 ppb", "哦 okay (err) 我"),
        ("<ppo> apple ppp", "apple ppp"),
        ("(ppl) <unk>", None),
    ],
)
def test_noises_are_left_out(root: Path, published: str, heard: str | None) -> None:
    with_line(root, "1000", "3000", published)
    assert [s.text for s in of_sge(root)] == ([heard] if heard else [])


def test_an_utterance_of_10_ms_is_left_out_and_english_is_english(root: Path) -> None:
    with_line(root, "1000", "1010", "okay", listed="1.00 1.01", tag="EN")
    assert of_sge(root) == []
    with_line(root, "1000", "1200", "okay", listed="1.00 1.20", tag="EN")
    assert [s.language for s in of_sge(root)] == ["en"]


def test_dev_speakers_do_not_depend_on_the_test_sets(root: Path) -> None:
    before = {s.speaker for s in read(root) if s.split == "dev"}
    with_line(root, "1000", "3000", "okay")
    assert {s.speaker for s in read(root) if s.split == "dev"} == before
    assert len(before) == 1


@pytest.mark.parametrize("missing", ["dev_man/segments", "dev_sge/segments", "train/wav_file.txt"])
def test_a_missing_list_alone_is_named(root: Path, missing: str) -> None:
    (root / "SEAME-dev-set" / missing).unlink()
    with pytest.raises(LayoutError, match=rf"missing SEAME-dev-set/{missing}\. Needed"):
        CORPUS.read(root, None)


def test_malformed_lines_are_named_with_file_and_line(root: Path) -> None:
    path = with_line(root, "1000", "x", "okay")
    with pytest.raises(CorpusError, match=rf"{path}:1: start and end must be numbers from 0 on, got '1000' and 'x'"):
        read(root)
    write_text(path, [f"{RECORDING}\t1000\t3000\tokay"])
    with pytest.raises(CorpusError, match=rf"{path}:1: must have 5 fields .* got 4"):
        read(root)
    segments = root / "SEAME-dev-set" / "dev_sge" / "segments"
    write_text(segments, ["ni66m-x ni66mbq_0101 1.00"])
    with pytest.raises(CorpusError, match=rf"{segments}:1: must be an utterance, its recording, start and end"):
        read(root)
