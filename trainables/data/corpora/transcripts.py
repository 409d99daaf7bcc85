"""Time stamps of utterances in longer recordings, and which speakers a corpus without a dev set gives to dev."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable

from trainables.data.corpus import CorpusError


def stretch(start: str, end: str, where: str, *, units_a_second: float = 1.0) -> tuple[float, float]:
    """Start and duration in seconds.

    An end before the start gives a duration of 0, which preparation reports; raises CorpusError for what is no time.
    """
    try:
        first, last = float(start) / units_a_second, float(end) / units_a_second
    except ValueError:
        first = last = math.nan
    if not (0 <= first < math.inf and 0 <= last < math.inf):
        raise CorpusError(f"{where}: start and end must be numbers from 0 on, got {start!r} and {end!r}; correct them")
    return first, max(0.0, round(last - first, 6))


def held_out(speakers: Iterable[str], share: float) -> frozenset[str]:
    """Speakers of at least that share of the utterances, taken by the hash of their names; `speakers` has one for each.

    At least one speaker is taken. The choice depends on the names and on how often they occur alone.
    """
    counts = Counter(speakers)
    chosen: set[str] = set()
    utterances = 0
    for speaker in sorted(counts, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        if utterances >= share * counts.total():
            break
        chosen.add(speaker)
        utterances += counts[speaker]
    return frozenset(chosen)
