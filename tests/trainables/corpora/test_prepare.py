"""Preparation of corpora, on real recordings: what is stored, what is left out and why, and going on after a kill."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import soundfile
import torch
import torchaudio.functional
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.signal import resample_poly

from tests.processes import eventually
from tests.trainables.corpora.layouts import Recording, recordings, write_table
from trainables.data.audio import read_audio, waveform
from trainables.data.config import SAMPLE_RATE_HZ, FolderConfig
from trainables.data.corpora import audio_store
from trainables.data.corpora import prepare as preparation
from trainables.data.corpora.findings import Finding, FindingKind, Limits
from trainables.data.corpora.folder import CORPUS
from trainables.data.corpora.prepare import FindingsError, Prepared, prepare
from trainables.data.corpora.segment import LayoutError, Lists, PublishedCorpus, Segment
from trainables.data.corpus import LABELLED, Corpus, CorpusError, Split, Utterance, read_corpus, read_manifest, split_of

FULL_SCALE = 2**15
STEP = 1 / FULL_SCALE
LIMITS = Limits()


@dataclass(frozen=True)
class Case:
    """A corpus as given, and what its preparation made."""

    segments: Sequence[Segment]
    output: Path
    prepared: Prepared

    @property
    def corpus(self) -> Corpus:
        return read_corpus(FolderConfig(root=self.output))

    @property
    def utterances(self) -> dict[str, Utterance]:
        return {u.id: u for u in read_manifest(self.output)}

    @property
    def findings(self) -> dict[str, dict[str, str]]:
        return {row["id"]: row for row in table(self.output / "findings.tsv")}


def published(segments: Sequence[Segment], lists: Lists | None = None) -> PublishedCorpus:
    return PublishedCorpus("a test's", "", "", "", lambda root, language: iter(segments), lists=lists)


def prepared_case(segments: Sequence[Segment], root: Path, output: Path) -> Case:
    return Case(segments, output, prepare(published(segments), "test", root, output))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))


def several(count: int) -> list[Recording]:
    return list(itertools.islice(recordings("es"), count))


def in_turn(number: int) -> Split:
    return LABELLED[number % 3]


def steps(utterance: Utterance) -> NDArray[np.int64]:
    """The stored samples as whole numbers; each is one exactly."""
    scaled = waveform(utterance).double().numpy() * FULL_SCALE
    np.testing.assert_array_equal(scaled, np.rint(scaled))
    return scaled.astype(np.int64)


def decoded_steps(path: Path, channel: int | None = None) -> NDArray[np.float64]:
    """What torchaudio makes of the decoded file at 16 kHz, in steps of the store."""
    samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    mono = torch.from_numpy(samples.mean(axis=1) if channel is None else samples[:, channel].copy())
    resampled = torchaudio.functional.resample(mono, rate_hz, SAMPLE_RATE_HZ)
    expected: NDArray[np.float64] = np.clip(resampled.double().numpy() * FULL_SCALE, -FULL_SCALE, FULL_SCALE - 1)
    return expected


# What is stored

RATES_HZ = (8_000, 16_000, 44_100, 48_000)
FILES = list(itertools.product((".flac", ".wav", ".ogg", ".mp3"), RATES_HZ, (1, 2)))
CHANNELS = {"left": 0, "right": 1, "both": None}


def name_of(suffix: str, rate_hz: int, channels: int) -> str:
    return f"{suffix[1:]}-{rate_hz}-{channels}"


def at_rate(samples: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
    common = math.gcd(rate_hz, SAMPLE_RATE_HZ)
    changed: NDArray[np.float32] = resample_poly(samples, rate_hz // common, SAMPLE_RATE_HZ // common)
    return changed.astype(np.float32)


def stereo(left: Recording, right: Recording) -> NDArray[np.float32]:
    length = min(len(left.samples), len(right.samples))
    return np.stack([left.samples[:length], right.samples[:length]], axis=1)


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A file of every kind, three readings of a stereo file, and a long file with an utterance in each second."""
    root = tmp_path_factory.mktemp("formats")
    one, other, *_ = several(2)
    segments = []
    for number, (suffix, rate_hz, channels) in enumerate(FILES):
        path = root / f"{name_of(suffix, rate_hz, channels)}{suffix}"
        samples = one.samples if channels == 1 else stereo(one, other)
        at = at_rate(samples, rate_hz)
        soundfile.write(path, at, rate_hz)
        segments.append(Segment(path.stem, path, one.text, in_turn(number), f"speaker {number % 2}", "es"))
    two_sides = root / name_of(".flac", 16_000, 2)
    for side, channel in CHANNELS.items():
        segments.append(Segment(side, two_sides.with_suffix(".flac"), one.text, "train", "", "es", channel=channel))
    long = root / "long.flac"
    soundfile.write(long, np.concatenate([r.samples for r in several(8)]), SAMPLE_RATE_HZ)
    for second in range(3):
        segments.append(Segment(f"long-{second}", long, "Uno: dos.", None, "", "es", second + 0.25, 0.9))
    segments.append(Segment("long", long, None, "unlabelled"))
    return prepared_case(segments, root, tmp_path_factory.mktemp("prepared") / "formats")


@pytest.mark.parametrize("suffix", [".flac", ".wav"])
def test_16_bit_samples_at_16_khz_are_stored_as_they_are(formats: Case, suffix: str) -> None:
    name = name_of(suffix, 16_000, 1)
    samples, _ = soundfile.read(formats.segments[0].path.with_name(f"{name}{suffix}"), dtype="int16")
    np.testing.assert_array_equal(steps(formats.utterances[name]), samples)


@pytest.mark.parametrize(("suffix", "rate_hz", "channels"), FILES)
def test_other_audio_is_torchaudio_s_resampling_of_the_decoded_file(
    formats: Case, suffix: str, rate_hz: int, channels: int
) -> None:
    name = name_of(suffix, rate_hz, channels)
    expected = decoded_steps(formats.segments[0].path.with_name(f"{name}{suffix}"))
    assert len(expected) > SAMPLE_RATE_HZ / 2
    np.testing.assert_allclose(steps(formats.utterances[name]), expected, rtol=0, atol=1)


@pytest.mark.parametrize(("side", "channel"), CHANNELS.items())
def test_a_channel_is_taken_alone_and_without_one_their_mean(formats: Case, side: str, channel: int | None) -> None:
    path = formats.segments[0].path.with_name(f"{name_of('.flac', 16_000, 2)}.flac")
    samples, _ = soundfile.read(path, dtype="int16")
    expected = samples.mean(axis=1) if channel is None else samples[:, channel]
    np.testing.assert_allclose(steps(formats.utterances[side]), expected, rtol=0, atol=0.5)


def test_segments_of_a_long_file_are_slices_of_it(formats: Case) -> None:
    whole = steps(formats.utterances["long"])
    assert len(whole) == sum(len(r.samples) for r in several(8))
    for second in range(3):
        start = round((second + 0.25) * SAMPLE_RATE_HZ)
        np.testing.assert_array_equal(steps(formats.utterances[f"long-{second}"]), whole[start : start + 14_400])


def test_the_corpus_that_a_sweep_reads_is_the_one_that_was_published(formats: Case) -> None:
    corpus = formats.corpus
    for segment in formats.segments:
        utterance = formats.utterances[segment.id]
        assert utterance.split == (segment.split or split_of("uno dos"))
        assert utterance.speaker == segment.speaker
        assert utterance.text == (None if segment.text is None else segment.text.replace("Uno: dos.", "uno dos"))
        samples = len(waveform(utterance))
        assert utterance.duration_seconds == pytest.approx(samples / SAMPLE_RATE_HZ, abs=1e-4)
        seconds = segment.duration_seconds or soundfile.info(segment.path).duration
        assert samples == pytest.approx(seconds * SAMPLE_RATE_HZ, abs=1)
    assert {u.id for part in LABELLED for u in getattr(corpus, part)} | {"long"} == {s.id for s in formats.segments}
    assert {u.id for u in corpus.unlabelled} == {u.id for u in corpus.train} | {"long"}


@given(st.sampled_from(["long", "long-1", "mp3-44100-2"]), st.integers(0, 40_000), st.integers(0, 40_000) | st.none())
def test_a_crop_is_a_slice_of_the_whole(formats: Case, name: str, first: int, count: int | None) -> None:
    utterance = formats.utterances[name]
    whole = waveform(utterance)
    first = min(first, len(whole))
    assert torch.equal(waveform(utterance, first, count), whole[first:][:count])


def test_counts_hours_and_speakers_are_those_of_the_manifest(formats: Case) -> None:
    found, prepared = list(formats.utterances.values()), formats.prepared
    assert prepared.utterances == dict(Counter(u.split for u in found))
    for split, hours in prepared.hours.items():
        own = [u for u in found if u.split == split]
        assert hours * 3600 == pytest.approx(math.fsum(u.duration_seconds for u in own), abs=1e-4 * len(own))
        assert prepared.speakers[split] == len({u.speaker for u in own} - {""})
    assert (prepared.findings, formats.findings) == ({}, {})
    about = json.loads((formats.output / "preparation.json").read_text("utf-8"))
    assert about["hours"] == prepared.hours
    assert about["limits"] == asdict(LIMITS)


def test_checksums_are_those_of_the_stored_samples(formats: Case) -> None:
    for utterance in formats.utterances.values():
        assert utterance.content == f"{zlib.crc32(steps(utterance).astype('<i2').tobytes()):08x}"


# What is left out

TOO_LONG_SECONDS = 45.0
BEFORE_DECODING = ("duplicate_id", "empty_transcript", "wrong_text")


class Bad:
    """Utterances of bad files. Their names are what is wrong; `expected` has the kind of finding."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.good, self.other, *_ = several(2)
        self.segments: list[Segment] = []
        self.expected: dict[str, FindingKind] = {}
        self._audio()
        self._lengths()
        self._texts()

    def add(self, kind: FindingKind | None, path: Path, **changes: Any) -> None:
        given: dict[str, Any] = {"id": path.stem, "path": path, "text": self.good.text, "split": "train"}
        self.segments.append(Segment(**{**given, "language": "es", **changes}))
        if kind:
            self.expected[self.segments[-1].id] = kind

    def written(self, name: str, samples: NDArray[Any] | None = None, rate_hz: int = 16_000, **form: str) -> Path:
        soundfile.write(self.root / name, self.good.samples if samples is None else samples, rate_hz, **form)
        return self.root / name

    def cut(self, name: str, share: float) -> Path:
        path = self.written(name)
        os.truncate(path, int(path.stat().st_size * share))
        return path

    def promising(self, name: str, share: float, promised: int) -> Path:
        """A WAV file with that share of its samples, whose header promises so many bytes of them."""
        path = self.written(name)
        content = path.read_bytes()
        data = content.index(b"data") + 4
        kept = content[data + 4 : data + 4 + round((len(content) - data - 4) * share)]
        path.write_bytes(content[:data] + promised.to_bytes(4, "little") + kept)
        return path

    def _audio(self) -> None:
        self.add("missing_audio", self.root / "missing.flac")
        for suffix in (".flac", ".wav", ".ogg", ".mp3"):
            path = self.root / f"garbage-{suffix[1:]}{suffix}"
            path.write_bytes(np.random.default_rng(0).bytes(20_000))
            self.add("undecodable", path)
        (self.root / "empty.wav").touch()
        (self.root / "folder.wav").mkdir()
        self.add("undecodable", self.root / "empty.wav")
        self.add("missing_audio", self.root / "folder.wav")
        self.add("undecodable", self.written("mono.wav"), channel=1)
        self.add("undecodable", self.written("scale.wav", self.good.samples * 3e4, subtype="FLOAT"))
        self.add("undecodable", self.written("nan.wav", self.good.samples * np.nan, subtype="FLOAT"))
        self.add("silent", self.written("zeros.flac", np.zeros(16_000)))
        self.add("silent", self.written("quiet.wav", self.good.samples * 5e-4, subtype="FLOAT"))
        self.add("wrong_rate", self.written("slow.wav", rate_hz=4_000))

    def _lengths(self) -> None:
        seconds = self.good.seconds
        self.add("undecodable", self.cut("cut-flac.flac", 0.5))  # libsndfile reads nothing of it
        self.add("truncated", self.cut("cut-wav.wav", 0.5))
        self.add("truncated", self.promising("broken-off.wav", 0.5, len(self.good.samples) * 2))
        for name, promised in (("ffmpeg.wav", 2**32 - 1), ("sox.wav", 2**31 - 37)):  # what is written to a pipe
            self.add(None, self.promising(name, 1.0, promised))
        unknown = self.written("streamed.flac")
        header = bytearray(unknown.read_bytes())
        header[21:26] = bytes([header[21] & 0xF0, 0, 0, 0, 0])  # the number of samples in STREAMINFO
        unknown.write_bytes(header)
        self.add("undecodable", unknown)
        self.add("truncated", self.written("half.flac"), expected_seconds=2 * seconds + 1)
        double = self.written("double.flac")
        self.add("wrong_rate", double, expected_seconds=seconds - 0.6)
        self.add("truncated", self.written("beyond.flac"), start_seconds=seconds + 1, duration_seconds=1.0)
        self.add("truncated", self.written("over.flac"), start_seconds=0.1, duration_seconds=seconds + 0.5)
        self.add("too_short", self.written("short.flac", self.good.samples[:1_500]))
        self.add("too_short", self.written("nothing.flac"), start_seconds=0.2, duration_seconds=0.0)
        long = self.written("long.flac", np.resize(self.good.samples, round(TOO_LONG_SECONDS * SAMPLE_RATE_HZ)))
        self.add("too_long", long)
        self.add("too_long", long, id="long-unknown", text=None, split="unlabelled")
        known = {"text": None, "split": "unlabelled", "start_seconds": 1.0, "duration_seconds": TOO_LONG_SECONDS - 1}
        self.add(None, long, id="cut", **known)
        self.add("duplicate_id", double, id="cut", **known)
        of_a_file = {"split": "unlabelled", "expected_seconds": TOO_LONG_SECONDS}
        self.add(None, long, id="cut-whole", **of_a_file)  # with a transcript, which is of no piece
        self.add(None, self.written("whole.flac"), id="whole", split="unlabelled", expected_seconds=seconds)

    def _texts(self) -> None:
        path = self.written("good.flac")
        for number, split in enumerate((*LABELLED, "unlabelled")):
            self.add(None, path, id=f"good-{number}", split=split, text=None if split == "unlabelled" else "Sí.")
        again = self.written("other.flac", self.other.samples)
        self.add("duplicate_id", again, id="good-0")
        self.add("empty_transcript", path, id="no words", text=" - ?!")
        self.add("wrong_text", path, id="cyrillic", text="не испанский")
        self.add("wrong_text", path, id="arabic", text="hola", language="ar")
        self.add("wrong_text", path, id="pace", text="una frase que nadie dice en tan poco tiempo " * 10)
        self.add(None, path, id="digits", text="1 2 3", language="ru")
        self.add(None, path, id="unlabelled", text="не испанский", split="unlabelled")


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Bad:
    return Bad(tmp_path_factory.mktemp("bad"))


@pytest.fixture(scope="module")
def left_out(bad: Bad, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return prepared_case(bad.segments, bad.root, tmp_path_factory.mktemp("prepared") / "bad")


def test_every_kind_of_finding_has_a_case(bad: Bad) -> None:
    assert set(bad.expected.values()) == {*get_args(FindingKind)}


def test_each_bad_utterance_is_a_finding_of_its_kind_with_its_file(bad: Bad, left_out: Case) -> None:
    assert {name: row["kind"] for name, row in left_out.findings.items()} == bad.expected
    assert left_out.prepared.findings == dict(Counter(bad.expected.values()))
    about = json.loads((left_out.output / "preparation.json").read_text("utf-8"))
    assert about["findings"] == left_out.prepared.findings
    assert all(row["detail"] for row in left_out.findings.values())


def test_each_finding_names_the_corpus_s_own_file(bad: Bad, left_out: Case) -> None:
    paths = {s.id: str(s.path) for s in bad.segments}  # of a duplicate the later one, which is left out
    expected = {name: paths[name] for name in bad.expected}
    assert {name: row["path"] for name, row in left_out.findings.items()} == expected


def test_all_others_are_there_and_hold_their_own_samples(bad: Bad, left_out: Case) -> None:
    kept = {s.id for s in bad.segments} - {*bad.expected} - {"cut-whole"} | {"good-0"}
    kept |= {f"{name}-000{number}" for name in ("cut", "cut-whole") for number in range(2)}
    assert {*left_out.utterances} == kept
    samples, _ = soundfile.read(bad.root / "good.flac", dtype="int16")
    for number in range(4):
        np.testing.assert_array_equal(steps(left_out.utterances[f"good-{number}"]), samples)
    assert left_out.utterances["good-0"].text == "sí"
    assert left_out.utterances["unlabelled"].text is None


def test_long_unlabelled_speech_of_known_length_is_cut_into_equal_pieces_that_join_to_it(
    bad: Bad, left_out: Case
) -> None:
    """Of two with one id those of the first."""
    whole, _ = soundfile.read(bad.root / "long.flac", dtype="int16")
    for name, start in (("cut", SAMPLE_RATE_HZ), ("cut-whole", 0)):
        pieces = [left_out.utterances[f"{name}-000{number}"] for number in range(2)]
        lengths = {len(waveform(piece)) for piece in pieces}
        assert len(lengths) == 1
        assert max(lengths) <= LIMITS.max_seconds * SAMPLE_RATE_HZ
        np.testing.assert_array_equal(np.concatenate([steps(piece) for piece in pieces]), whole[start:])
    texts = {row["id"]: row["text"] for row in table(left_out.output / "manifest.tsv")}
    assert [texts["cut-whole-0000"], texts["cut-whole-0001"]] == ["", ""]
    assert texts["whole"] == bad.good.text  # no piece


@pytest.mark.parametrize("name", ["a", "a-0001"])
def test_an_utterance_with_the_id_of_one_that_is_cut_or_of_its_piece_is_a_finding(name: str) -> None:
    long = Segment("a", Path("a.flac"), None, "unlabelled", duration_seconds=80.0)
    other = Segment(name, Path("b.flac"), "uno", "train")
    for first, second in ((long, other), (other, long)):
        kept, findings = preparation._usable([first, second], LIMITS)
        assert {s.path for s in kept} == {first.path}
        assert [(f.kind, f.id) for f in findings] == [("duplicate_id", second.id)]


def test_too_long_a_file_is_refused_before_its_samples_are_read(whole: Mapping[str, Path], tmp_path: Path) -> None:
    """One whose FLAC header says 2 ** 36 - 1 samples, the most that it can."""
    content = bytearray(whole[".flac"].read_bytes())
    packed = int.from_bytes(content[18:26], "big")  # of STREAMINFO: rate, channels, bits, and 36 bits of samples
    content[18:26] = (packed | 2**36 - 1).to_bytes(8, "big")
    path = tmp_path / "long.flac"
    path.write_bytes(content)
    ((_, found),) = audio_store.decoded([Segment("id", path, "uno", "train")], LIMITS)
    assert isinstance(found, Finding)
    assert (found.kind, found.detail) == ("too_long", f"{(2**36 - 1) / SAMPLE_RATE_HZ:.1f} s; at most 40 s")


@given(st.floats(0.2, 500), st.floats(1, 40), st.floats(0, 100))
def test_pieces_cover_the_stretch_and_none_is_too_long(seconds: float, longest: float, start: float) -> None:
    segment = Segment("id", Path("a.flac"), None, "unlabelled", start_seconds=start, duration_seconds=seconds)
    (prepared, findings) = preparation._usable([segment], Limits(max_seconds=longest))
    places = [start, *(p.start_seconds + (p.duration_seconds or 0) for p in prepared)]
    assert [p.start_seconds for p in prepared] == pytest.approx(places[:-1])
    assert places[-1] == pytest.approx(start + seconds)
    lengths = [p.duration_seconds or 0 for p in prepared]
    assert lengths == pytest.approx([lengths[0]] * len(lengths))
    assert lengths[0] <= longest
    assert not findings


def test_a_strict_preparation_is_refused_with_every_finding_and_makes_no_corpus(
    bad: Bad, left_out: Case, tmp_path: Path
) -> None:
    """Those of texts and ids before any audio is decoded, those of audio when all is."""
    early = {name for name, kind in bad.expected.items() if kind in BEFORE_DECODING} - {"pace"}
    all_but_early = [s for s in bad.segments if s.id not in early]
    expected = {True: early, False: bad.expected.keys() - early}
    for with_early, segments in ((True, bad.segments), (False, all_but_early)):
        output = tmp_path / str(with_early)
        with pytest.raises(FindingsError) as error:
            prepare(published(segments), "test", bad.root, output, strict=True)
        count = len(expected[with_early])
        assert str(error.value).startswith(f"{count} utterance(s) cannot be used; {output}/findings.tsv lists them\n")
        assert str(error.value).count("\n") == min(count, 20) + (count > 20)
        assert (f"and {count - 20} more" in str(error.value)) == (count > 20)
        found = table(output / "findings.tsv")
        assert found == [row for row in table(left_out.output / "findings.tsv") if row["id"] in expected[with_early]]
        assert (output / "audio").exists() != with_early
        assert not (output / "manifest.tsv").exists()


def test_a_corpus_without_any_usable_transcript_is_refused(bad: Bad, tmp_path: Path) -> None:
    unusable = [s for s in bad.segments if s.id in ("no words", "cyrillic")]
    with pytest.raises(CorpusError, match=r"a test's has no utterance there that can be used"):
        prepare(published(unusable), "test", bad.root, tmp_path)


def test_a_list_has_the_utterances_of_the_manifest_with_a_transcript_and_can_be_used(bad: Bad, tmp_path: Path) -> None:
    kept = ["good-0", "good-1", "good-2", "whole"]
    given = {"all": [*kept, "zeros", "pace", "cut-whole", "good-3", "absent"], "one": ["whole"], "none": ["zeros"]}
    segments = [s for s in bad.segments if s.id in given["all"]]
    prepared = prepare(published(segments, lambda root: given), "test", bad.root, tmp_path)
    lists = {path.stem: path.read_text().split() for path in (tmp_path / "lists").iterdir()}
    assert lists == {"all": kept, "one": ["whole"], "none": []}
    counts = {"all": (4, 5), "one": (1, 0), "none": (0, 1)}
    assert prepared.lists == {name: dict(zip(("utterances", "left_out"), n, strict=True)) for name, n in counts.items()}
    assert json.loads((tmp_path / "preparation.json").read_text("utf-8"))["lists"] == prepared.lists
    corpus = read_corpus(FolderConfig(root=tmp_path, labelled_list="one"))
    assert [u.id for u in corpus.train] == ["whole"]


def test_lists_that_cannot_be_read_are_refused_before_anything_is_decoded(bad: Bad, tmp_path: Path) -> None:
    def lists(root: Path) -> Mapping[str, Sequence[str]]:
        raise LayoutError("no lists")

    with pytest.raises(LayoutError, match="no lists"):
        prepare(published(bad.segments, lists), "test", bad.root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


FORMATS = (".flac", ".wav", ".ogg", ".mp3")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    spoken = several(1)[0].samples
    for suffix in FORMATS:
        soundfile.write(folder / f"spoken{suffix}", spoken, SAMPLE_RATE_HZ)
    return {suffix: folder / f"spoken{suffix}" for suffix in FORMATS}


def decoded_of(path: Path) -> NDArray[np.int16] | Finding:
    ((_, found),) = audio_store.decoded([Segment("id", path, "uno", "train")], LIMITS)
    return found


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_a_file_that_was_cut_short_is_never_stored(
    whole: Mapping[str, Path], tmp_path: Path, suffix: str, share: float
) -> None:
    """Also where the corpus says nothing of its length; an Ogg file without its last page tells none either."""
    content = whole[suffix].read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(content[: int(share * len(content))])
    assert isinstance(decoded_of(path), Finding)


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3"])
def test_of_joined_files_the_first_is_not_taken_for_the_whole(
    whole: Mapping[str, Path], tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"joined{suffix}"
    path.write_bytes(whole[suffix].read_bytes() * 2)
    found = decoded_of(path)
    assert isinstance(found, Finding)
    assert (found.kind, "goes on for about" in found.detail) == ("undecodable", True)
    with pytest.raises(CorpusError, match="goes on for about"):
        read_audio(path)


def test_mp3_of_two_bit_rates_without_a_table_is_not_cut_where_its_first_rate_ends(tmp_path: Path) -> None:
    spoken, content = several(1)[0].samples, b""
    for level in (0.0, 0.9):  # a high bit rate, then a low one
        part = tmp_path / f"part{level}.mp3"
        soundfile.write(part, spoken, SAMPLE_RATE_HZ, bitrate_mode="CONSTANT", compression_level=level)
        written = part.read_bytes()
        content += written[written.index(written[:2], 4) :]  # without the frame that has the table
    path = tmp_path / "rates.mp3"
    path.write_bytes(content)
    assert soundfile.info(path).frames < 1.9 * len(spoken)
    assert isinstance(decoded_of(path), Finding)


@pytest.mark.parametrize("suffix", [".flac", ".ogg", ".mp3"])
def test_a_tag_behind_the_sound_is_no_sound(whole: Mapping[str, Path], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tagged{suffix}"
    path.write_bytes(whole[suffix].read_bytes() + b"TAG" + b"speech".ljust(125, b"\0"))  # ID3v1
    np.testing.assert_array_equal(decoded_of(path), decoded_of(whole[suffix]))


BYTES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=6)
HEADER_BYTES = st.lists(st.tuples(st.floats(0, 0.004), st.integers(1, 255)), max_size=3)


@settings(max_examples=150)
@given(st.sampled_from(FORMATS), BYTES, HEADER_BYTES, st.floats(0, 1) | st.just(1.0))
def test_whatever_happens_to_a_file_it_is_stored_or_found(
    whole: Mapping[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    flipped: list[tuple[float, int]],
    header: list[tuple[float, int]],
    kept: float,
) -> None:
    content = bytearray(whole[suffix].read_bytes())
    for place, bits in (*flipped, *header):
        content[int(place * len(content))] ^= bits
    path = tmp_path_factory.getbasetemp() / f"corrupt{suffix}"
    path.write_bytes(content[: int(kept * len(content))])
    segment = Segment("id", path, "uno", "train", expected_seconds=soundfile.info(whole[suffix]).duration)
    ((given, found),) = audio_store.decoded([segment], LIMITS)
    assert given == segment
    if isinstance(found, Finding):
        assert found.kind in get_args(FindingKind)
        assert found.detail
    else:
        assert found.dtype == np.int16
        assert len(found) >= LIMITS.min_seconds * SAMPLE_RATE_HZ


# Interrupted, at once, and again

SHARD = 2
UTTERANCES = 40
DRIVER = f"""
import os, signal, sys
from pathlib import Path
from trainables.data.corpora import audio_store
from trainables.data.corpora.prepare import prepare
from trainables.data.corpora.folder import CORPUS
audio_store.SEGMENTS_A_SHARD = {SHARD}
killed = sys.argv[3:] == ["killed"]
print("ready", flush=True)
sys.stdin.readline()
prepare(
    CORPUS, "folder", Path(sys.argv[1]), Path(sys.argv[2]), processes=2 if killed else 1,
    progress=lambda done, of: os.kill(os.getpid(), signal.SIGKILL) if killed and done else None,
)
"""
State = dict[str, tuple[int, int]]  # inode and time of the last change by name


def driver(root: Path, output: Path, *words: str) -> subprocess.Popen[str]:
    """A process that is ready to prepare the corpus, and does when told."""
    command = [sys.executable, "-c", DRIVER, str(root), str(output), *words]
    return subprocess.Popen(command, start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(*drivers: subprocess.Popen[str]) -> list[int]:
    """Their exit codes, when all have begun at the same time."""
    for process in drivers:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in drivers:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.close()
    return [process.wait(60) for process in drivers]


def state(folder: Path) -> State:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.iterdir() if not p.name.startswith(".")}


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files, unfinished ones included."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def used_files(output: Path) -> set[str]:
    """Files of the shards that the manifest names."""
    shards = {Path(row["path"]).stem for row in table(output / "manifest.tsv")}
    return {f"{shard}{suffix}" for shard in shards for suffix in (".s16", ".json")}


def write_folder(root: Path) -> list[dict[str, str]]:
    root.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, recording in enumerate(several(UTTERANCES)):
        name = f"{number:02d}"
        soundfile.write(root / f"{name}.flac", recording.samples, SAMPLE_RATE_HZ)
        speaker = f"speaker {number % 4}"
        about = {"split": in_turn(number), "speaker": speaker}
        rows.append({"id": name, "path": f"{name}.flac", "text": recording.text, **about})
    write_table(root / "manifest.tsv", rows)
    return rows


def prepare_folder(root: Path, output: Path, **given: Any) -> Prepared:
    return prepare(CORPUS, "folder", root, output, **given)


@pytest.fixture
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_store, "SEGMENTS_A_SHARD", SHARD)


small_shards = pytest.mark.usefixtures("_small_shards")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A corpus, and what one uninterrupted preparation makes of it."""
    folder = tmp_path_factory.mktemp("alone")
    write_folder(folder / "corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audio_store, "SEGMENTS_A_SHARD", SHARD)
        prepare_folder(folder / "corpus", folder / "prepared")
    return folder / "corpus", folder / "prepared"


@pytest.fixture
def again(alone: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same in another place, with the times of the files as they were."""
    root, output = shutil.copytree(alone[0], tmp_path / "corpus"), shutil.copytree(alone[1], tmp_path / "prepared")
    return root, output


def fingerprint(output: Path) -> str:
    return read_corpus(FolderConfig(root=output)).fingerprint(("labelled", "unlabelled"))


@dataclass(frozen=True)
class Killed:
    output: Path
    workers_ended: bool  # by themselves


@pytest.fixture(scope="module")
def killed(alone: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """A preparation that was killed when a shard was finished."""
    output = tmp_path_factory.mktemp("killed")
    process = driver(alone[0], output, "killed")
    assert finish(process) == [-signal.SIGKILL]
    ended = eventually(lambda: not session_is_alive(process.pid))
    if not ended:
        os.killpg(process.pid, signal.SIGKILL)
    return Killed(output, ended)


def session_is_alive(session: int) -> bool:
    """Whether any process of it runs; one that has ended and that nobody has asked about does not."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group, *_ = path.read_text().rpartition(")")[2].split()
            if int(group) == session and state != "Z":
                return True
    return False


@small_shards
def test_a_killed_preparation_goes_on_and_makes_what_an_uninterrupted_one_makes(
    alone: tuple[Path, Path], killed: Killed, tmp_path: Path
) -> None:
    root, expected = alone
    output = shutil.copytree(killed.output, tmp_path / "prepared")
    before = state(output / "audio")
    finished = {name for index in before if index.endswith(".json") for name in (index, index.replace("json", "s16"))}
    assert 2 <= len(finished) < 2 * UTTERANCES // SHARD
    assert not (output / "manifest.tsv").exists()
    prepare_folder(root, output)
    after = state(output / "audio")
    assert {name: after[name] for name in finished} == {name: before[name] for name in finished}
    made = {name: found for name, found in contents(output).items() if not Path(name).name.startswith(".")}
    assert made == contents(expected)


def test_the_workers_of_a_killed_preparation_end(killed: Killed) -> None:
    assert killed.workers_ended


def test_two_preparations_at_once_make_what_one_makes(alone: tuple[Path, Path], tmp_path: Path) -> None:
    root, expected = alone
    assert finish(driver(root, tmp_path), driver(root, tmp_path)) == [0, 0]
    assert contents(tmp_path) == contents(expected)


@pytest.fixture
def _single_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_store, "SEGMENTS_A_SHARD", 1)


@pytest.mark.usefixtures("_single_shards")
def test_an_interrupt_makes_no_waiting_shard(alone: tuple[Path, Path], tmp_path: Path) -> None:
    def interrupt(done: int, of: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_folder(alone[0], tmp_path, processes=2, progress=interrupt)
    assert 1 <= len(list((tmp_path / "audio").glob("*.json"))) < UTTERANCES


@pytest.mark.usefixtures("_single_shards")
def test_a_killed_worker_is_reported_with_what_helps(alone: tuple[Path, Path], tmp_path: Path) -> None:
    def kill(done: int, of: int) -> None:
        for worker in multiprocessing.active_children() if done else ():
            worker.kill()

    message = "one of the 2 processes was killed, probably for lack of memory; go on with fewer --processes"
    with pytest.raises(CorpusError, match=message):
        prepare_folder(alone[0], tmp_path, processes=2, progress=kill)


@small_shards
def test_what_killed_preparations_had_begun_is_removed_when_it_is_old(again: tuple[Path, Path]) -> None:
    root, output = again
    old, new = output / "audio" / ".0123.7.ab", output / "audio" / ".0123.8.cd"
    for path, age in ((old, audio_store.ABANDONED_SECONDS + 60), (new, audio_store.ABANDONED_SECONDS - 60)):
        path.write_bytes(b"begun")
        os.utime(path, (time.time() - age,) * 2)
    prepare_folder(root, output)
    assert (old.exists(), new.exists()) == (False, True)


@small_shards
def test_preparing_again_changes_no_file(again: tuple[Path, Path], alone: tuple[Path, Path]) -> None:
    root, output = again
    before = state(output / "audio")
    prepared = prepare_folder(root, output, verify=True)
    assert state(output / "audio") == before
    assert contents(output) == contents(alone[1])
    assert (prepared.unused_files, prepared.unused_bytes) == (0, 0)


@small_shards
def test_a_changed_transcript_decodes_nothing(again: tuple[Path, Path]) -> None:
    root, output = again
    before, text = state(output / "audio"), (root / "manifest.tsv").read_text("utf-8")
    one = several(1)[0].text
    (root / "manifest.tsv").write_text(text.replace(one, "otra cosa", 1), encoding="utf-8")
    prepare_folder(root, output)
    assert state(output / "audio") == before
    assert {u.id: u.text for u in read_manifest(output)}["00"] == "otra cosa"


@small_shards
def test_of_changed_audio_that_alone_is_decoded_again_and_one_sample_is_another_corpus(
    again: tuple[Path, Path],
) -> None:
    root, output = again
    before, fingerprint_before = state(output / "audio"), fingerprint(output)
    samples, _ = soundfile.read(root / "05.flac", dtype="int16")
    samples[1_000] ^= 1
    soundfile.write(root / "05.flac", samples, SAMPLE_RATE_HZ)
    prepared = prepare_folder(root, output)
    after = state(output / "audio")
    assert len(after.keys() - before.keys()) == 2  # the samples of a shard, and their index
    assert {name: after[name] for name in before} == before
    np.testing.assert_array_equal(steps({u.id: u for u in read_manifest(output)}["05"]), samples)
    assert fingerprint(output) != fingerprint_before
    unused = before.keys() - used_files(output)
    assert len(unused) == 2
    assert prepared.unused_files == 2
    assert prepared.unused_bytes == sum((output / "audio" / name).stat().st_size for name in unused)


@small_shards
def test_damaged_shards_are_made_again(again: tuple[Path, Path], alone: tuple[Path, Path]) -> None:
    """A missing byte is noticed at any time, a changed one where checksums are compared."""
    root, output = again
    changed, shorter, *_ = sorted((output / "audio").glob("*.s16"))
    content = bytearray(changed.read_bytes())
    content[1_001] ^= 4
    changed.write_bytes(content)
    before = state(output / "audio")
    prepare_folder(root, output)
    assert state(output / "audio") == before
    os.truncate(shorter, shorter.stat().st_size - 1)
    prepare_folder(root, output, verify=True)
    assert contents(output) == contents(alone[1])
    remade = {name for name, found in state(output / "audio").items() if found != before[name]}
    assert remade == {p.with_suffix(s).name for p in (changed, shorter) for s in (".s16", ".json")}


@small_shards
@pytest.mark.parametrize("content", ["", "{}", "[1"])
def test_a_damaged_index_is_made_again(again: tuple[Path, Path], alone: tuple[Path, Path], content: str) -> None:
    root, output = again
    min((output / "audio").glob("*.json")).write_text(content)
    prepare_folder(root, output)
    assert contents(output) == contents(alone[1])


def test_neither_the_place_nor_the_shards_nor_the_times_of_files_change_the_data(
    alone: tuple[Path, Path], tmp_path: Path
) -> None:
    root, expected = alone
    elsewhere = shutil.copytree(root, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    prepare_folder(elsewhere, tmp_path / "prepared")
    assert len(list((tmp_path / "prepared" / "audio").glob("*.s16"))) == 1
    assert fingerprint(tmp_path / "prepared") == fingerprint(expected)
