from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainables.corpora import layouts
from trainables.data.corpora.librilight import read, stretches
from trainables.data.corpora.segment import LayoutError
from trainables.data.corpus import CorpusError

MILLISECONDS = st.lists(st.integers(1, 80_000), max_size=24)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return layouts.librilight(tmp_path)


@given(MILLISECONDS)
def test_stretches_are_short_in_order_and_hold_all_speech(times: list[int]) -> None:
    ends = [sum(times[: i + 1]) / 1000 for i in range(len(times))]
    activity = list(zip(ends[::2], ends[1::2], strict=False))
    found = list(stretches(activity))
    assert all(0 < end - start <= 30 + 1e-6 for start, end in found)
    assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(found))
    for start, end in activity:
        inside = sum(max(0.0, min(end, b) - max(start, a)) for a, b in found)
        assert inside == pytest.approx(end - start, abs=1e-6)


@given(MILLISECONDS)
def test_no_two_neighbouring_stretches_of_whole_activity_could_be_joined(times: list[int]) -> None:
    ends = [sum(times[: i + 1]) / 1000 for i in range(len(times))]
    activity = list(zip(ends[::2], ends[1::2], strict=False))
    starts = {start for start, _ in activity}
    for (first, _), (start, _) in pairwise(stretches(activity)):
        if first in starts and start in starts:  # else a part of activity that is longer than 30 s
            end = next(end for begin, end in activity if begin == start)
            assert end - first > 30


@pytest.mark.parametrize(
    ("activity", "expected"),
    [
        ([], []),
        ([(0.4, 12.32)], [(0.4, 12.32)]),
        ([(0, 10), (12, 20), (25, 30), (30.5, 31)], [(0, 30), (30.5, 31)]),
        ([(5, 10), (0, 4)], [(0, 10)]),
        ([(0, 5), (10, 85), (86, 90)], [(0, 5), (10, 35), (35, 60), (60, 85), (86, 90)]),
    ],
)
def test_stretches_of(activity: list[tuple[float, float]], expected: list[tuple[float, float]]) -> None:
    assert list(stretches(activity)) == expected


def test_speech_and_speakers_are_those_of_lhotse(root: Path) -> None:
    from lhotse.recipes.librilight import _prepare_subset

    for size in ("small", "medium"):
        _, supervisions = _prepare_subset(size, root)
        segments = {s.path: s for s in read(root, None) if size in s.path.parts}
        assert len(segments) == len({s.recording_id for s in supervisions})
        for supervision in supervisions:
            segment = segments[root / f"{supervision.recording_id}.flac"]
            assert segment.duration_seconds is not None
            assert segment.speaker == supervision.speaker
            assert segment.start_seconds <= supervision.start
            assert supervision.end <= segment.start_seconds + segment.duration_seconds + 1e-3


def test_a_stretch_holds_its_neighbours_with_the_pauses(root: Path) -> None:
    activity = json.loads((root / "medium/12/emma/emma_01_64kb.json").read_text())["voice_activity"]
    (segment,) = (s for s in read(root, None) if s.speaker == "12")
    assert segment.id == "medium/12/emma/emma_01_64kb-0000"
    assert (segment.text, segment.split, segment.start_seconds) == (None, "unlabelled", 0)
    assert segment.duration_seconds == activity[-1][1]


def test_missing_sizes_and_json_files_are_listed(root: Path, tmp_path: Path) -> None:
    (root / "small/100/sea_fairies/sea_fairies_01_64kb.json").unlink()
    (root / "large").mkdir()
    message = r"missing small/100/sea_fairies/sea_fairies_01_64kb\.json, large/SPEAKER/BOOK/\*\.json\. Needed"
    with pytest.raises(LayoutError, match=message):
        list(read(root, None))


def test_of_many_missing_files_some_are_shown(root: Path) -> None:
    for number in range(30):
        (root / f"small/100/sea_fairies/{number:02d}.flac").touch()
    with pytest.raises(LayoutError, match=r"sea_fairies/19\.json and 10 more\. Needed"):
        list(read(root, None))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"snr": 1,\n "voice', r":2: is not JSON"),
        ("[]", ": voice_activity must be a list"),
        ('{"snr": 1}', ": voice_activity must be a list"),
        ('{"voice_activity": [[1]]}', ": voice_activity must be a list"),
        ('{"voice_activity": [["a", 2]]}', ": voice_activity must be a list"),
        ('{"voice_activity": [[2, 1]]}', r": voice_activity must have 0 <= start < end, got \[2, 1\]"),
        ('{"voice_activity": [[0, NaN]]}', r": voice_activity must have 0 <= start < end, got \[0, nan\]"),
    ],
)
def test_a_malformed_json_file_is_named(root: Path, content: str, message: str) -> None:
    file = root / "small/100/sea_fairies/sea_fairies_01_64kb.json"
    file.write_text(content)
    with pytest.raises(CorpusError, match=re.escape(str(file)) + message):
        list(read(root, None))
