"""TED-LIUM 3 (Hernandez et al. 2018, arXiv:1805.04699, https://www.openslr.org/51), its `legacy` distribution.

The transcripts are parsed here: lhotse's recipe opens every talk, stops at a missing one, and keeps fillers but noise.
Their text is treated as by Kaldi's recipe and lhotse's option `kaldi`: `<unk>`, `<sil>`, fillers in brackets or braces
and pronunciation numbers such as (2) are left out, an utterance's name in brackets at the end too, and suffixes are
joined to their words (`they 're` becomes `they're`; Kaldi joins only what its dictionary has). Segments that are
marked `ignore_time_segment_in_scoring` are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from trainables.data.corpora.files import file_below, read_lines, refuse_missing, unpacked
from trainables.data.corpora.segment import PublishedCorpus, Segment
from trainables.data.corpus import LABELLED, CorpusError

IGNORED = "ignore_time_segment_in_scoring"
LINE = re.compile(r"(\S+)\s+(\S+)\s+(\S+)\s+(\d+\.?\d*)\s+(\d+\.?\d*)(?:\s+(<\S*>))?(?:\s+(.*))?")
NOT_WORDS = re.compile(r"<unk>|<sil>|\[[^]]*\]|\{[^}]*\}|\(\d+\)|\(\S+\)$")
NEEDS = "legacy/{train,dev,test}, each with sph/*.sph and stm/*.stm"


def read(root: Path, language: str | None) -> Iterator[Segment]:
    """One segment for each line of an STM file that is to be scored.

    Raises LayoutError for missing folders or STM files, CorpusError for a line that is not one of an STM file.
    """
    home = unpacked(root, "TEDLIUM_release-3")
    files = {split: sorted((home / "legacy" / split / "stm").glob("*.stm")) for split in LABELLED}
    missing = [f"legacy/{split}/stm/*.stm" for split, found in files.items() if not found]
    missing += [f"legacy/{split}/sph" for split in files if not (home / "legacy" / split / "sph").is_dir()]
    refuse_missing(home, missing, NEEDS)
    for split in LABELLED:
        for file in files[split]:
            for number, (where, line) in enumerate(read_lines(file)):
                talk, speaker, start, end, text = _fields(line, where)
                if text != IGNORED:
                    audio = file_below(home / "legacy" / split / "sph", f"{talk}.sph", where)
                    yield Segment(
                        *(f"{talk}-{number:04d}", audio, transcript(text), split, speaker, "en"),
                        *(start, end - start),
                    )


def transcript(text: str) -> str:
    """The words of an STM line's text."""
    joined = re.sub(r"(\w+) '(\w+)", r"\1'\2", " ".join(text.split()))
    joined = re.sub(r"' (\w+)", r"'\1", joined)  # ' 60s, ' cause
    return " ".join(NOT_WORDS.sub(" ", joined).split())  # last: the suffix of a filler is no other word's


def _fields(line: str, where: str) -> tuple[str, str, float, float, str]:
    """Talk, speaker, start and end in seconds, and text."""
    match = LINE.fullmatch(line)
    if not match:
        rule = "must be: talk, channel, speaker, start and end in seconds, <label>, text"
        raise CorpusError(f"{where}: {rule}; got {line[:80]!r}")
    start, end = float(match[4]), float(match[5])
    if start >= end:
        raise CorpusError(f"{where}: must end after its start; got {start:g} s to {end:g} s")
    return match[1], match[3], start, end, match[7] or ""


CORPUS = PublishedCorpus(
    title="TED-LIUM 3",
    hours="452 train, 1.6 dev, 2.6 test",
    licence="CC BY-NC-ND 3.0",
    needs=NEEDS,
    read=read,
    languages=("en",),
)
