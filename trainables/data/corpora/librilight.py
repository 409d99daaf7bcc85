"""Libri-Light (arXiv:1912.07875): unlabelled English audiobooks.

The JSON files are parsed here: lhotse's recipe leaves out missing audio with a log line and opens every file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from trainables.data.corpora.files import refuse_missing
from trainables.data.corpora.segment import PublishedCorpus, Segment
from trainables.data.corpus import CorpusError

SIZES = ("small", "medium", "large")
LONGEST_SECONDS = 30.0
NEEDS = "one or more of small, medium and large, each with SPEAKER/BOOK/*.flac and a *.json beside each"


def read(root: Path, language: str | None) -> Iterator[Segment]:
    """One segment for each stretch of neighbouring voice activity of at most 30 s, pauses inside it included.

    Raises LayoutError for missing folders or JSON files, CorpusError for a JSON file without `voice_activity`.
    """
    for metadata in _metadata_files(root):
        name = metadata.relative_to(root).with_suffix("").as_posix()
        audio, speaker = metadata.with_suffix(".flac"), metadata.parent.parent.name
        for number, (start, end) in enumerate(stretches(_voice_activity(metadata))):
            yield Segment(f"{name}-{number:04d}", audio, None, "unlabelled", speaker, "en", start, end - start)


def stretches(voice_activity: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Start and end of stretches in seconds, in order of time, each at most 30 s long; together they hold all speech.

    Neighbours are joined from the left as long as they fit. Longer activity is cut into equal parts.
    """
    stretch: tuple[float, float] | None = None
    for start, end in sorted(voice_activity):
        if stretch and max(end, stretch[1]) - stretch[0] <= LONGEST_SECONDS:
            stretch = (stretch[0], max(end, stretch[1]))
            continue
        if stretch:
            yield from _cut(*stretch)
        stretch = (start, end)
    if stretch:
        yield from _cut(*stretch)


def _cut(start: float, end: float) -> Iterator[tuple[float, float]]:
    parts = math.ceil((end - start) / LONGEST_SECONDS - 1e-9)
    times = [start + (end - start) * part / parts for part in range(parts)]
    yield from zip(times, [*times[1:], end], strict=True)


def _metadata_files(root: Path) -> list[Path]:
    there = [size for size in SIZES if (root / size).is_dir()]
    missing = [] if there else [" or ".join(SIZES)]
    files: list[Path] = []
    for size in there:
        found = sorted((root / size).glob("*/*/*.json"))
        needed = {path.with_suffix(".json") for path in (root / size).glob("*/*/*.flac")}
        missing += sorted(path.relative_to(root).as_posix() for path in needed.difference(found))
        missing += [] if found or needed else [f"{size}/SPEAKER/BOOK/*.json"]
        files += found
    refuse_missing(root, missing, NEEDS)
    return files


def _voice_activity(path: Path) -> list[tuple[float, float]]:
    try:
        metadata = json.loads(path.read_bytes())
        activity = [(float(start), float(end)) for start, end in metadata["voice_activity"]]
    except json.JSONDecodeError as error:
        raise CorpusError(f"{path}:{error.lineno}: is not JSON: {error.msg}; unpack the corpus again") from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        message = "voice_activity must be a list of [start, end] in seconds"
        raise CorpusError(f"{path}: {message}: {error!r}; unpack the corpus again") from error
    for start, end in activity:
        if not 0 <= start < end < math.inf:
            raise CorpusError(f"{path}: voice_activity must have 0 <= start < end, got [{start:g}, {end:g}]")
    return activity


CORPUS = PublishedCorpus(
    title="Libri-Light",
    hours="577 small, 5,193 medium, 51,934 large, all unlabelled",
    licence="public domain (LibriVox)",
    needs=NEEDS,
    read=read,
    languages=("en",),
)
