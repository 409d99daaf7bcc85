"""SEAME (LDC2015S04): Mandarin-English conversations and interviews from Singapore and Malaysia.

A line of a transcript in `phaseII` has, separated by tabs, the recording, start and end in milliseconds, a tag (CS,
EN or ZH) and the text. The splits are those of https://github.com/zengzp0912/SEAME-dev-set (a clone of it in the
corpus folder), matched as ESPnet's recipe does (egs2/seame/asr1): an utterance is in dev_man or dev_sge when both its
ends are less than 0.03 s from those of a listed one, and in train when its recording is in train/wav_file.txt; others
are left out. The three share no speaker. Results are published for dev_man and dev_sge apart: both are the test split
here, and the ids of their utterances begin with `dev_man-` and `dev_sge-`. Dev are the train speakers of 5 % of the
utterances, chosen by the hash of their names (ESPnet draws 5 % of the utterances, of speakers who are also in train).

Left out of the text: noises such as (ppl), <unk> and <v-noise>. Left out as in ESPnet's recipe: utterances without a
word, and those of 10 ms or less. lhotse has no recipe.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from trainables.data.corpora.files import file_below, read_lines, refuse_missing
from trainables.data.corpora.segment import PublishedCorpus, Segment
from trainables.data.corpora.transcripts import held_out, stretch
from trainables.data.corpus import CorpusError

KINDS = ("conversation", "interview")
TEST_SETS = ("dev_man", "dev_sge")
LISTS = "SEAME-dev-set"
TOLERANCE_SECONDS = 0.03
SHORTEST_SECONDS = 0.01
DEV_SHARE = 0.05
MARKERS = re.compile(r"<[^>]*>|[(]pp[a-z]+[)]|\bpp[lbco]\b", re.IGNORECASE)
NEEDS = (
    "data/conversation/ and data/interview/, each with audio/ and transcript/phaseII/, and SEAME-dev-set/ with "
    "dev_man/segments, dev_sge/segments and train/wav_file.txt (git clone https://github.com/zengzp0912/SEAME-dev-set)"
)


@dataclass(frozen=True)
class _Listed:
    """An utterance of a test set. Times in seconds."""

    test_set: str
    start: float
    end: float


def read(root: Path, language: str | None) -> Iterator[Segment]:
    """The splits described above. Raises LayoutError, and CorpusError for a malformed line."""
    folders = [Path("data", kind, part) for kind in KINDS for part in ("audio", "transcript/phaseII")]
    files = [Path(LISTS, name, "segments") for name in TEST_SETS] + [Path(LISTS, "train", "wav_file.txt")]
    missing = [f"{folder}/" for folder in folders if not (root / folder).is_dir()]
    refuse_missing(root, missing + [str(file) for file in files if not (root / file).is_file()], NEEDS)
    return _segments(root)


def _segments(root: Path) -> Iterator[Segment]:
    listed = _test_utterances(root)
    in_train = {Path(line).parent.name.lower() for _, line in read_lines(root / LISTS / "train" / "wav_file.txt")}
    train = []
    for segment in (s for kind in KINDS for s in _transcripts(root / "data" / kind)):
        recording = segment.path.stem.lower()
        if test_set := _test_set(segment, listed.get(recording, [])):
            yield replace(segment, id=f"{test_set}-{segment.id}", split="test")
        elif recording in in_train:
            train.append(segment)
    dev = held_out((segment.speaker for segment in train), DEV_SHARE)
    for segment in train:
        yield replace(segment, split="dev" if segment.speaker in dev else "train")


def _test_utterances(root: Path) -> dict[str, list[_Listed]]:
    """By recording."""
    listed: dict[str, list[_Listed]] = {}
    for test_set in TEST_SETS:
        for where, line in read_lines(root / LISTS / test_set / "segments"):
            fields = line.split()
            if len(fields) != 4:
                raise CorpusError(f"{where}: must be an utterance, its recording, start and end, got {line!r}")
            start, seconds = stretch(fields[2], fields[3], where)
            listed.setdefault(fields[1].lower(), []).append(_Listed(test_set, start, start + seconds))
    return listed


def _test_set(segment: Segment, listed: list[_Listed]) -> str | None:
    assert segment.duration_seconds is not None
    start, end = segment.start_seconds, segment.start_seconds + segment.duration_seconds
    for one in listed:
        if abs(one.start - start) < TOLERANCE_SECONDS and abs(one.end - end) < TOLERANCE_SECONDS:
            return one.test_set
    return None


def _transcripts(folder: Path) -> Iterator[Segment]:
    """Utterances with a word, their split not yet set."""
    for path in sorted((folder / "transcript" / "phaseII").glob("*.txt")):
        for where, line in read_lines(path):
            fields = line.split("\t")
            if len(fields) != 5:
                rule = "must have 5 fields separated by tabs: recording, start and end in ms, tag, text"
                raise CorpusError(f"{where}: {rule}; got {len(fields)}")
            recording, start, end, tag, text = fields
            first, seconds = stretch(start, end, where, units_a_second=1000)
            words = " ".join(MARKERS.sub(" ", text).split())
            if not words or seconds <= SHORTEST_SECONDS:
                continue
            speaker = _speaker(recording)
            yield Segment(
                id=f"{speaker}-{recording.lower()}-{first * 1000:07.0f}-{(first + seconds) * 1000:07.0f}",
                path=file_below(folder / "audio", f"{recording}.flac", where),
                text=words,
                split=None,
                speaker=speaker,
                language="en" if tag == "EN" else "zh",
                start_seconds=first,
                duration_seconds=seconds,
            )


def _speaker(recording: str) -> str:
    """`nc12m` of the conversation `06NC12MAY_0101`, `ui23f` of the interview `UI23FAZ_0105` (as in ESPnet's recipe)."""
    name = recording.split("_")[0].lower()
    return name[2:-2] if name[:1].isdigit() else name[:5]


CORPUS = PublishedCorpus(
    title="SEAME (Mandarin-English)",
    hours="192",
    licence="LDC user agreement (LDC2015S04)",
    needs=NEEDS,
    read=read,
    languages=("zh",),
)
