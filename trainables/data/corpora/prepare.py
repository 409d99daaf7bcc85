"""From a published corpus to a folder that a sweep reads: a manifest, and the audio decoded once to 16 kHz.

The folder holds `manifest.tsv`, `audio/*.s16` (samples of many utterances one after another, int16, mono, mapped into
memory in training), `lists/`, `findings.tsv` (utterances left out, and why) and `preparation.json`.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from trainables.data.clean import clean
from trainables.data.config import SAMPLE_RATE_HZ
from trainables.data.corpora.audio_store import (
    FORMAT_VERSION,
    Shard,
    Stored,
    remove_abandoned,
    shards_of,
    stored_in,
    write,
)
from trainables.data.corpora.findings import Finding, Limits, findings_table, text_finding
from trainables.data.corpora.segment import PublishedCorpus, Segment
from trainables.data.corpus import CorpusError, split_of

COLUMNS = (
    *("id", "path", "first_sample", "num_samples", "duration_seconds"),
    *("text", "speaker", "language", "split", "checksum"),
)


class FindingsError(CorpusError):
    """A strict preparation found utterances that cannot be used."""


@dataclass(frozen=True)
class Prepared:
    """What a preparation made: utterances and hours of each split, and how many utterances were left out for what.

    `lists` has for each list how many `utterances` it has, and how many were `left_out`: those that are not in the
    manifest, or not with a transcript. The `unused_files` in `audio/` are of earlier preparations, with other files or
    limits; they are never removed, for a running study may read them.
    """

    folder: Path
    utterances: dict[str, int]
    hours: dict[str, float]
    speakers: dict[str, int]
    findings: dict[str, int]
    lists: dict[str, dict[str, int]]
    unused_files: int
    unused_bytes: int


def prepare(
    corpus: PublishedCorpus,
    name: str,
    root: Path,
    output: Path,
    *,
    language: str | None = None,
    limits: Limits | None = None,
    strict: bool = False,
    verify: bool = False,
    processes: int = 1,
    progress: Callable[[int, int], None] = lambda done, segments: None,
) -> Prepared:
    """Prepare a corpus; `progress` is told how many segments are done, of how many.

    `verify` compares the checksum of every shard that is there already. Raises LayoutError for a corpus with parts
    missing, CorpusError for files that cannot be read, FindingsError in a strict preparation: for texts and ids before
    any audio is decoded.
    """
    limits = limits or Limits()
    segments, findings = _usable(corpus.read(root, language), limits)
    lists = corpus.lists(root) if corpus.lists else {}
    if strict and findings:
        _refuse(findings, output)
    if not segments:
        raise CorpusError(f"{root}: {corpus.title} has no utterance there that can be used")
    audio = output / "audio"
    audio.mkdir(parents=True, exist_ok=True)
    for folder in (output, audio, output / "lists"):
        remove_abandoned(folder)
    shards = [Shard(tuple(part), root, audio, limits, verify) for part in shards_of(segments)]
    stored = stored_in(shards, processes, progress)
    findings += [s.finding for shard in shards for s in stored[shard.name] if s.finding]
    rows = [
        _row(segment, kept, shard.name)
        for shard in shards
        for segment, kept in zip(shard.segments, stored[shard.name], strict=True)
        if kept.finding is None
    ]
    rows, late = _with_plausible_text(rows, {s.id: str(s.path) for s in segments}, limits)
    findings += late
    if strict and findings:
        _refuse(findings, output)
    write(output / "findings.tsv", findings_table(findings))
    counted = _write_lists(lists, rows, output / "lists")
    unused = _unused(audio, {shard.name for shard in shards})
    prepared = _summary(output, rows, findings, counted, unused)
    about = {"corpus": name, "language": language, "limits": asdict(limits), "format": FORMAT_VERSION}
    of_the_folder = ("folder", "unused_files", "unused_bytes")  # not of what is prepared
    counts = {field: value for field, value in asdict(prepared).items() if field not in of_the_folder}
    write(output / "preparation.json", json.dumps(about | counts, indent=1))
    write(output / "manifest.tsv", _table(rows))  # last: with it the corpus is there
    return prepared


def _usable(given: Iterable[Segment], limits: Limits) -> tuple[list[Segment], list[Finding]]:
    """Segments with a cleaned transcript, a split, and an id of their own; and what is wrong with the others."""
    segments: dict[str, Segment] = {}
    ids: set[str] = set()  # as the corpus gives them: pieces have others
    findings: list[Finding] = []
    for raw in given:
        _refuse_unwritable(raw)
        segment = _with_split(replace(raw, text=None if raw.text is None else clean(raw.text, raw.language)))
        if segment.split == "unlabelled" and text_finding(segment):
            segment = replace(segment, text=None)  # it is not needed
        pieces = tuple(_pieces(segment, limits.max_seconds))
        if segment.id in ids or any(piece.id in segments for piece in pieces):
            findings.append(Finding("duplicate_id", segment.id, str(segment.path), "the first one with it is kept"))
        elif finding := text_finding(segment):
            findings.append(finding)
        else:
            ids.add(segment.id)
            segments |= {piece.id: piece for piece in pieces}
    return sorted(segments.values(), key=lambda s: (str(s.path), s.start_seconds, s.id)), findings


def _refuse_unwritable(segment: Segment) -> None:
    """Raises CorpusError for what a line of a tab-separated table cannot hold."""
    for field, value in (("id", segment.id), ("speaker", segment.speaker), ("language", segment.language)):
        if set(value) & set("\t\r\n\0"):
            raise CorpusError(f"{segment.path}: utterance {segment.id!r}: {field} {value!r} has a tab or a line break")


def _with_split(segment: Segment) -> Segment:
    return segment if segment.split else replace(segment, split=split_of(segment.text or ""))


def _pieces(segment: Segment, max_seconds: float) -> Iterator[Segment]:
    """Unlabelled speech of a known length, cut into equal pieces that are not too long, without its transcript."""
    length = segment.expected_seconds if segment.duration_seconds is None else segment.duration_seconds
    if segment.split != "unlabelled" or length is None or length <= max_seconds:
        yield segment
        return
    count = int(np.ceil(length / max_seconds))
    piece = replace(segment, text=None, duration_seconds=length / count, expected_seconds=None)
    for number in range(count):
        start = segment.start_seconds + number * length / count
        yield replace(piece, id=f"{segment.id}-{number:04d}", start_seconds=start)


def _row(segment: Segment, stored: Stored, shard: str) -> dict[str, Any]:
    return {
        "id": segment.id,
        "path": f"audio/{shard}.s16",
        "first_sample": stored.first_sample,
        "num_samples": stored.num_samples,
        "duration_seconds": f"{stored.num_samples / SAMPLE_RATE_HZ:.4f}",
        "text": segment.text or "",
        "speaker": segment.speaker,
        "language": segment.language,
        "split": segment.split,
        "checksum": stored.checksum,
    }


def _with_plausible_text(
    rows: list[dict[str, Any]], files: dict[str, str], limits: Limits
) -> tuple[list[dict[str, Any]], list[Finding]]:
    findings = []
    for row in rows:
        pace = len(row["text"]) / float(row["duration_seconds"])
        if pace <= limits.max_characters_per_second:
            continue
        if row["split"] == "unlabelled":
            row["text"] = ""  # it is not needed, and no list can take it then
        else:
            detail = f"{pace:.0f} characters a second; its text or its time stamps are another utterance's"
            findings.append(Finding("wrong_text", row["id"], files[row["id"]], detail))
    wrong = {finding.id for finding in findings}
    return [row for row in rows if row["id"] not in wrong], findings


def _write_lists(
    lists: Mapping[str, Sequence[str]], rows: Iterable[dict[str, Any]], folder: Path
) -> dict[str, dict[str, int]]:
    """Write the ids that have a transcript in the manifest: with another one a list could not be used."""
    usable = {row["id"] for row in rows if row["text"]}
    counted = {}
    for name, ids in lists.items():
        kept = sorted(usable.intersection(ids))
        write(folder / f"{name}.txt", "".join(f"{utterance}\n" for utterance in kept))
        counted[name] = {"utterances": len(kept), "left_out": len(set(ids)) - len(kept)}
    return counted


def _unused(audio: Path, shards: Set[str]) -> list[Path]:
    """Finished files of shards other than these."""
    return [path for path in audio.glob("[!.]*") if path.stem not in shards]


def _summary(
    output: Path,
    rows: Sequence[dict[str, Any]],
    findings: Sequence[Finding],
    lists: dict[str, dict[str, int]],
    unused: Sequence[Path],
) -> Prepared:
    samples: Counter[str] = Counter()
    speakers: dict[str, set[str]] = {}
    for row in rows:
        samples[row["split"]] += row["num_samples"]
        speakers.setdefault(row["split"], set()).add(row["speaker"])
    return Prepared(
        folder=output,
        utterances=dict(Counter(row["split"] for row in rows)),
        hours={split: count / SAMPLE_RATE_HZ / 3600 for split, count in samples.items()},
        speakers={split: len(found - {""}) for split, found in speakers.items()},
        findings=dict(Counter(finding.kind for finding in findings)),
        lists=lists,
        unused_files=len(unused),
        unused_bytes=sum(path.stat().st_size for path in unused),
    )


def _table(rows: Iterable[dict[str, Any]]) -> str:
    stream = io.StringIO()
    table = csv.DictWriter(stream, COLUMNS, delimiter="\t", quoting=csv.QUOTE_NONE, lineterminator="\n", quotechar=None)
    table.writeheader()
    table.writerows(sorted(rows, key=lambda row: str(row["id"])))
    return stream.getvalue()


def _refuse(findings: Sequence[Finding], output: Path) -> NoReturn:
    """End a strict preparation. Raises FindingsError."""
    table = output / "findings.tsv"
    write(table, findings_table(findings))
    shown = "\n".join(f"  {f.kind}: {f.id} ({f.path}): {f.detail}" for f in findings[:20])
    more = f"\n  and {len(findings) - 20} more" if len(findings) > 20 else ""
    raise FindingsError(f"{len(findings)} utterance(s) cannot be used; {table} lists them\n{shown}{more}")
