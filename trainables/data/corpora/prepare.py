"""From a published corpus to a folder that a sweep reads: a manifest, and the audio decoded once to 16 kHz.

The folder holds `manifest.tsv`, `audio/*.s16` (samples of many utterances one after another, int16, mono, mapped into
memory in training), `lists/`, `findings.tsv` (utterances left out, and why) and `preparation.json`.

Audio files are grouped into shards. A shard is written beside its place and renamed when complete, under a name that
holds the hash of what it is made from: an interrupted preparation goes on where it was, and several at once, on one
machine or on many of one kind, write the same bytes. (Resampling and the decoding of MP3, Vorbis and Opus are floating
point: another processor or version of a library may round a sample otherwise.)
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import multiprocessing
import os
import random
import threading
import time
import uuid
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from trainables.data.audio import FULL_SCALE, LOUDEST, at_sample_rate, mono
from trainables.data.clean import clean
from trainables.data.config import SAMPLE_RATE_HZ
from trainables.data.corpora.findings import Finding, Limits, findings_table, text_finding
from trainables.data.corpora.segment import PublishedCorpus, Segment
from trainables.data.corpus import CorpusError, split_of

FORMAT_VERSION = 1  # of the audio store; part of the shards' names
SEGMENTS_A_SHARD = 500
ABANDONED_SECONDS = 3600.0  # since the last write to an unfinished file
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


@dataclass(frozen=True)
class _Stored:
    """Where the samples of one segment are, or why they are not."""

    id: str
    first_sample: int = 0
    num_samples: int = 0
    checksum: str = ""
    finding: Finding | None = None


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
    _remove_abandoned(audio)
    shards = [_Shard(tuple(part), root, audio, limits, verify) for part in _shards(segments)]
    stored = _store(shards, processes, progress)
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


def _shards(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Segments of one file stay together, so that no two shards open it."""
    shard: list[Segment] = []
    for segment in segments:
        if len(shard) >= SEGMENTS_A_SHARD and segment.path != shard[-1].path:
            yield shard
            shard = []
        shard.append(segment)
    if shard:
        yield shard


class _Shard:
    """Some segments, and the files that hold their samples and where these are."""

    def __init__(self, segments: tuple[Segment, ...], root: Path, folder: Path, limits: Limits, verify: bool) -> None:
        self.segments, self.folder, self.limits, self.verify = segments, folder, limits, verify
        made_from = json.dumps([FORMAT_VERSION, asdict(limits), [_identity(s, root) for s in segments]])
        self.name = hashlib.sha256(made_from.encode()).hexdigest()[:16]

    @property
    def samples(self) -> Path:
        return self.folder / f"{self.name}.s16"

    @property
    def index(self) -> Path:
        return self.folder / f"{self.name}.json"

    def finished(self) -> list[_Stored] | None:
        """Where the samples are, when they are there."""
        if not (self.index.is_file() and self.samples.is_file()):
            return None
        try:
            index = json.loads(self.index.read_text("utf-8"))
            whole = self.samples.stat().st_size == index["bytes"]
            if not whole or (self.verify and _checksum_of(self.samples) != index["checksum"]):
                return None
            return [
                _Stored(**{**row, "finding": Finding(**row["finding"]) if row["finding"] else None})
                for row in index["segments"]
            ]
        except (ValueError, KeyError, TypeError):  # an index that a crash of the machine has damaged
            return None

    def make(self) -> list[_Stored]:
        """Decode the segments and write them; what another process has made meanwhile is taken."""
        if (found := self.finished()) is not None:
            return found
        beside = self.samples.with_name(f".{self.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
        checksum, first, stored = 0, 0, []
        with beside.open("wb") as stream:
            for segment, samples in _decoded(self.segments, self.limits):
                if isinstance(samples, Finding):
                    stored.append(_Stored(segment.id, finding=samples))
                    continue
                content = samples.tobytes()
                stored.append(_Stored(segment.id, first, len(samples), f"{zlib.crc32(content):08x}"))
                checksum = zlib.crc32(content, checksum)
                first += len(samples)
                stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(self.samples)
        index = {"bytes": first * 2, "checksum": f"{checksum:08x}", "segments": [asdict(s) for s in stored]}
        write(self.index, json.dumps(index))
        return stored


def _identity(segment: Segment, root: Path) -> list[Any]:
    """What the samples of a segment are made from; a file that changes has another size or time."""
    place = os.path.relpath(segment.path, root)
    try:
        status = segment.path.stat()
    except OSError:
        return [segment.id, place, "absent"]
    stretch = [segment.start_seconds, segment.duration_seconds, segment.expected_seconds, segment.channel]
    return [segment.id, place, status.st_size, status.st_mtime_ns, *stretch]


def _remove_abandoned(folder: Path) -> None:
    """What killed preparations had begun to write; a shard takes minutes."""
    for path in folder.glob(".*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


def _store(shards: Sequence[_Shard], processes: int, progress: Callable[[int, int], None]) -> dict[str, list[_Stored]]:
    stored = {shard.name: found for shard in shards if (found := shard.finished()) is not None}
    total = sum(len(shard.segments) for shard in shards)
    progress(sum(len(found) for found in stored.values()), total)
    waiting = [shard for shard in shards if shard.name not in stored]
    random.shuffle(waiting)  # preparations that run at once take different ones
    if not waiting:
        return stored
    if processes == 1:
        for shard in waiting:
            stored[shard.name] = shard.make()
            progress(sum(len(found) for found in stored.values()), total)
        return stored
    context = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
    pool = ProcessPoolExecutor(min(processes, len(waiting)), context, initializer=_begin_worker)
    try:
        futures = {pool.submit(shard.make): shard for shard in waiting}
        for future in as_completed(futures):
            stored[futures[future].name] = future.result()
            progress(sum(len(found) for found in stored.values()), total)
    except BrokenProcessPool as error:
        raise CorpusError(
            f"one of the {processes} processes was killed, probably for lack of memory; go on with fewer --processes"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # an error or an interrupt must not wait for all other shards
    return stored


def _begin_worker() -> None:
    """One thread; and an end when the preparation is killed, for a pool's workers wait for work forever."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _decoded(segments: Sequence[Segment], limits: Limits) -> Iterator[tuple[Segment, NDArray[np.int16] | Finding]]:
    """The samples of each segment at 16 kHz, or what is wrong with it. A file is opened once for all its segments."""
    path, file = None, None
    problem: tuple[str, str] | None = None
    for segment in segments:
        if segment.path != path:
            if file:
                file.close()
            path, file, problem = segment.path, None, None
            try:
                file = soundfile.SoundFile(path)
            except (soundfile.SoundFileError, OSError) as error:
                missing = not path.is_file()
                problem = ("missing_audio", "no such file") if missing else ("undecodable", str(error))
        if file is None:
            assert problem
            yield segment, Finding(problem[0], segment.id, str(segment.path), problem[1])  # type: ignore[arg-type]
        else:
            yield segment, _samples(segment, file, limits)
    if file:
        file.close()


def _samples(segment: Segment, file: Any, limits: Limits) -> NDArray[np.int16] | Finding:
    def found(kind: Any, detail: str) -> Finding:
        return Finding(kind, segment.id, str(segment.path), detail)

    rate_hz = file.samplerate
    if rate_hz < limits.min_sample_rate_hz:
        return found("wrong_rate", f"{rate_hz} Hz; at least {limits.min_sample_rate_hz} Hz is needed")
    first = min(round(segment.start_seconds * rate_hz), file.frames)
    count = file.frames - first
    if segment.duration_seconds is not None:
        count = min(count, round(segment.duration_seconds * rate_hz))
    if message := _length_problem(segment, file, count / rate_hz, limits):  # hours are refused before they are read
        return found(*message)
    try:
        file.seek(first)
        samples = file.read(count, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        return found("undecodable", str(error))
    if message := _length_problem(segment, file, len(samples) / rate_hz, limits):
        return found(*message)
    if segment.channel is not None and segment.channel >= samples.shape[1]:
        return found("undecodable", f"has {samples.shape[1]} channel(s); channel {segment.channel} is asked for")
    heard = mono(samples) if segment.channel is None else samples[:, segment.channel]
    peak = float(np.abs(heard).max(initial=0.0))
    if not np.isfinite(heard).all() or peak > LOUDEST:
        return found("undecodable", f"has samples up to {peak:g}, not in [-1, 1]")
    if peak < limits.silence:
        return found("silent", f"no sample is louder than {peak:.2g} of full scale")
    resampled = at_sample_rate(torch.from_numpy(np.ascontiguousarray(heard)), rate_hz).numpy()
    stored: NDArray[np.int16] = np.clip(np.rint(resampled * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    return stored


def _is_cut_ogg(path: Path) -> bool:
    """Whether the last page of an Ogg file (RFC 3533) is not marked as the end of its stream."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 65_307))  # the longest page
        end = stream.read()
    last = end.rfind(b"OggS")
    return last < 0 or not end[last + 5] & 4


def _length_problem(segment: Segment, file: Any, seconds: float, limits: Limits) -> tuple[str, str] | None:
    asked = segment.duration_seconds
    if asked is None and file.format == "OGG" and _is_cut_ogg(segment.path):
        return "truncated", "the end of its Ogg stream is missing"
    if asked is None and "should be" in file.extra_info:  # libsndfile's word on a WAV header that promises more
        return "truncated", f"its header promises more than the {seconds:.2f} s that it holds"
    if (
        asked is None
        and segment.start_seconds == 0
        and seconds < file.frames / file.samplerate - limits.tolerance_seconds
    ):
        return (
            "truncated",
            f"holds {seconds:.2f} s of the {file.frames / file.samplerate:.2f} s that its header promises",
        )
    if asked is not None and seconds < asked - limits.tolerance_seconds:
        return "truncated", f"holds {seconds:.2f} s of the {asked:.2f} s from {segment.start_seconds:.2f} s on"
    if (expected := segment.expected_seconds) is not None and abs(seconds - expected) > max(0.1 * expected, 0.5):
        kind = "truncated" if seconds < expected else "wrong_rate"
        return kind, f"lasts {seconds:.2f} s; the corpus says {expected:.2f} s"
    if seconds < limits.min_seconds:
        return "too_short", f"{seconds:.3f} s; at least {limits.min_seconds:g} s"
    if seconds > limits.max_seconds + 1e-3:
        return "too_long", f"{seconds:.1f} s; at most {limits.max_seconds:g} s"
    return None


def _row(segment: Segment, stored: _Stored, shard: str) -> dict[str, Any]:
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


def _checksum_of(path: Path) -> str:
    checksum = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return f"{checksum:08x}"


def write(path: Path, text: str) -> None:
    """Write beside, then rename: a reader sees the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
