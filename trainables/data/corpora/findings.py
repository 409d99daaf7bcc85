"""What preparation finds wrong with utterances, each by name."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from trainables.data.corpora.segment import Segment

FindingKind = Literal[
    "missing_audio",
    "undecodable",
    "truncated",
    "silent",
    "too_short",
    "too_long",
    "wrong_rate",
    "duplicate_id",
    "empty_transcript",
    "wrong_text",
]
CYRILLIC, ARABIC, LATIN = "CYRILLIC", "ARABIC", "LATIN"
SCRIPTS = {
    **dict.fromkeys(("ru", "mn", "uk", "bg", "be", "kk", "ky"), CYRILLIC),
    **dict.fromkeys(("ar", "fa", "ur"), ARABIC),
    **dict.fromkeys(("en", "es", "fr", "it", "de", "nl", "pt", "pl", "cs", "sv", "ca"), LATIN),
}


@dataclass(frozen=True)
class Finding:
    """Why an utterance is left out."""

    kind: FindingKind
    id: str
    path: str
    detail: str


@dataclass(frozen=True)
class Limits:
    """What an utterance has to be like. Times in seconds."""

    min_seconds: float = 0.1
    max_seconds: float = 40.0  # the longest of LibriSpeech lasts 35.2 s; unlabelled speech is cut instead
    min_sample_rate_hz: int = 8_000
    silence: float = 1e-3  # of full scale; -60 dB
    tolerance_seconds: float = 0.25  # that a file may lack of what is declared
    max_characters_per_second: float = 40.0  # fast English speech has about 25


def text_finding(segment: Segment) -> Finding | None:
    """What is wrong with a cleaned transcript by itself."""
    if segment.text is None:
        return None
    if not segment.text:
        return Finding("empty_transcript", segment.id, str(segment.path), "no letter and no digit in its transcript")
    letters = [c for c in segment.text if c.isalpha()]
    script = SCRIPTS.get(segment.language)
    if letters and script and not any(unicodedata.name(c, "").startswith(script) for c in letters):
        detail = f"no {script.title()} letter in {segment.text[:40]!r}, which is said to be {segment.language!r}"
        return Finding("wrong_text", segment.id, str(segment.path), detail)
    return None


def findings_table(findings: Iterable[Finding]) -> str:
    """Tab-separated: kind, id, path, detail."""
    lines = ["kind\tid\tpath\tdetail\n"]
    for finding in sorted(findings, key=lambda f: (f.kind, f.id)):
        fields = (finding.kind, finding.id, finding.path, finding.detail)
        lines.append("\t".join(" ".join(field.split()) for field in fields) + "\n")
    return "".join(lines)
