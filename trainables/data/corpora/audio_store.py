"""The audio store of a prepared corpus: each recording decoded once to 16 kHz mono int16, and what is wrong with it.

Audio files are grouped into shards. A shard is written beside its place and renamed when complete, under a name that
holds the hash of what it is made from: an interrupted preparation goes on where it was, and several at once, on one
machine or on many of one kind, write the same bytes. (Resampling and the decoding of MP3, Vorbis and Opus are floating
point: another processor or version of a library may round a sample otherwise.)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import random
import re
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from trainables.data.audio import (
    FULL_SCALE,
    LOUDEST,
    UNDECODABLE,
    at_sample_rate,
    can_resample,
    left_behind_end,
    mono,
    open_audio,
    undecodable_because,
)
from trainables.data.corpora.findings import Finding, Limits
from trainables.data.corpora.segment import Segment
from trainables.data.corpus import BYTES_PER_SAMPLE, CorpusError

FORMAT_VERSION = 1  # of the audio store; part of the shards' names
SEGMENTS_A_SHARD = 500
UNKNOWN_BYTES = 2**31 - 2**16  # and what is above: no length, but a promise by who could not know it
UNKNOWN_FRAMES = 2**48
ABANDONED_SECONDS = 3600.0  # since the last write to an unfinished file
_UNFINISHED = re.compile(r"\..+\.\d+\.[0-9a-f]+")  # name, process, and what makes it unique


@dataclass(frozen=True)
class Stored:
    """Where the samples of one segment are, or why they are not."""

    id: str
    first_sample: int = 0
    num_samples: int = 0
    checksum: str = ""
    finding: Finding | None = None


def shards_of(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Segments of one file stay together, so that no two shards open it."""
    shard: list[Segment] = []
    for segment in segments:
        if len(shard) >= SEGMENTS_A_SHARD and segment.path != shard[-1].path:
            yield shard
            shard = []
        shard.append(segment)
    if shard:
        yield shard


class Shard:
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

    def finished(self) -> list[Stored] | None:
        """Where the samples are, when they are there."""
        if not (self.index.is_file() and self.samples.is_file()):
            return None
        try:
            index = json.loads(self.index.read_text("utf-8"))
            whole = self.samples.stat().st_size == index["bytes"]
            if not whole or (self.verify and _checksum_of(self.samples) != index["checksum"]):
                return None
            return [
                Stored(**{**row, "finding": Finding(**row["finding"]) if row["finding"] else None})
                for row in index["segments"]
            ]
        except (ValueError, KeyError, TypeError):  # an index that a crash of the machine has damaged
            return None

    def make(self) -> list[Stored]:
        """Decode the segments and write them; what another process has made meanwhile is taken."""
        if (found := self.finished()) is not None:
            return found
        checksum, first, stored = 0, 0, []
        with _writing(self.samples) as stream:
            for segment, samples in decoded(self.segments, self.limits):
                if isinstance(samples, Finding):
                    stored.append(Stored(segment.id, finding=samples))
                    continue
                content = samples.tobytes()
                stored.append(Stored(segment.id, first, len(samples), f"{zlib.crc32(content):08x}"))
                checksum = zlib.crc32(content, checksum)
                first += len(samples)
                stream.write(content)
        index = {
            "bytes": first * BYTES_PER_SAMPLE,
            "checksum": f"{checksum:08x}",
            "segments": [asdict(s) for s in stored],
        }
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


def remove_abandoned(folder: Path) -> None:
    """What killed preparations had begun to write; a shard takes minutes."""
    for path in folder.glob(".*"):
        with contextlib.suppress(FileNotFoundError):
            if _UNFINISHED.fullmatch(path.name) and time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


def stored_in(shards: Sequence[Shard], processes: int, progress: Callable[[int, int], None]) -> dict[str, list[Stored]]:
    """Where the samples of each shard are, by its name; what is not there is made."""
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


def decoded(segments: Sequence[Segment], limits: Limits) -> Iterator[tuple[Segment, NDArray[np.int16] | Finding]]:
    """The samples of each segment at 16 kHz, or what is wrong with it. A file is opened once for all its segments."""
    path, file = None, None
    problem: tuple[str, str] | None = None
    for segment in segments:
        if segment.path != path:
            if file:
                file.close()
            path, problem = segment.path, None
            try:
                file = _opened(path)
                problem = None if file else ("missing_audio", "no such file")
            except UNDECODABLE as error:
                file, problem = None, ("undecodable", undecodable_because(error))
        if file is None:
            assert problem
            yield segment, Finding(problem[0], segment.id, str(segment.path), problem[1])  # type: ignore[arg-type]
        else:
            yield segment, _samples(segment, file, limits)
    if file:
        file.close()


def _opened(path: Path) -> Any:
    """The audio file; None where there is no regular file, such as a pipe, which nobody may ever write to."""
    return open_audio(path) if path.is_file() else None


def _samples(segment: Segment, file: Any, limits: Limits) -> NDArray[np.int16] | Finding:
    def found(kind: Any, detail: str) -> Finding:
        return Finding(kind, segment.id, str(segment.path), detail)

    rate_hz = file.samplerate
    if rate_hz < limits.min_sample_rate_hz:
        return found("wrong_rate", f"{rate_hz} Hz; at least {limits.min_sample_rate_hz} Hz is needed")
    if not can_resample(rate_hz):
        return found("wrong_rate", f"{rate_hz} Hz is none that audio has")
    if file.frames > UNKNOWN_FRAMES:
        return found("undecodable", "its header does not tell how long it is; encode it again")
    first = min(round(segment.start_seconds * rate_hz), file.frames)
    count = file.frames - first
    if segment.duration_seconds is not None:
        count = min(count, round(segment.duration_seconds * rate_hz))
    if message := _length_problem(segment, file, count / rate_hz, limits):  # hours are refused before they are read
        return found(*message)
    try:
        file.seek(first)
        samples = file.read(count, dtype="float32", always_2d=True)
    except UNDECODABLE as error:
        return found("undecodable", undecodable_because(error))
    if message := _length_problem(segment, file, len(samples) / rate_hz, limits):
        return found(*message)
    whole = segment.start_seconds == 0 and segment.duration_seconds is None
    if whole and (left_behind := left_behind_end(file, len(samples) / rate_hz)):
        return found("undecodable", left_behind)
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


def _is_cut_wav(extra_info: str) -> bool:
    """Whether the header promises more than there is, by what libsndfile tells of it.

    Programs that write to a pipe cannot know the length, and promise what never is: ffmpeg 2^32 - 1 bytes, sox 2^31.
    """
    promised = re.search(r"^\s*(?:data|SSND)\s*:\s*(\d+) \(should be", extra_info, re.MULTILINE)
    return promised is not None and int(promised[1]) < UNKNOWN_BYTES


def _length_problem(segment: Segment, file: Any, seconds: float, limits: Limits) -> tuple[str, str] | None:
    asked = segment.duration_seconds
    if asked is None and file.format == "OGG" and _is_cut_ogg(segment.path):
        return "truncated", "the end of its Ogg stream is missing"
    if asked is None and _is_cut_wav(file.extra_info):
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


def _checksum_of(path: Path) -> str:
    checksum = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return f"{checksum:08x}"


def write(path: Path, text: str) -> None:
    """Write beside, then rename: a reader sees the old content or the new."""
    with _writing(path) as stream:
        stream.write(text.encode())


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path`, flushed to the disk and put in its place after the block, and removed on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        with beside.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
