"""Whatever bytes an audio file or a language model has: it is read, or refused with an error that names the file."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.security.mutations import changed_bytes, may_be_refused
from tests.trainables.corpora.layouts import recordings
from trainables.data.audio import can_resample, read_audio
from trainables.data.corpora.audio_store import decoded
from trainables.data.corpora.findings import Finding, Limits
from trainables.data.corpora.segment import Segment
from trainables.data.corpus import CorpusError
from trainables.decoding.ngram import estimate, vocabulary

FORMATS = ("OGG", "FLAC", "WAV", "MP3", "NIST")
HEADER_BYTES = 120
BOUNDED = settings(
    max_examples=80, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module", params=FORMATS)
def recording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("audio") / f"speech.{request.param.lower()}"
    soundfile.write(path, next(recordings("es")).samples[:8_000], 16_000, format=request.param)
    return path, path.read_bytes()


def found(path: Path) -> np.ndarray | Finding:
    [(_, samples)] = decoded([Segment("one", path, "hola", "train")], Limits())
    return samples


@given(st.data())
@BOUNDED
def test_a_changed_audio_file_is_decoded_or_refused(recording: tuple[Path, bytes], data: st.DataObject) -> None:
    path, content = recording
    last = data.draw(st.sampled_from([HEADER_BYTES, len(content)]))
    path.write_bytes(data.draw(changed_bytes(content, 0, last)))
    with may_be_refused(CorpusError, path):
        assert np.isfinite(read_audio(path)).all()
    samples = found(path)
    assert isinstance(samples, Finding) or samples.dtype == np.int16


@pytest.fixture(scope="module")
def arpa(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tmp_path_factory.mktemp("arpa") / "model.arpa"
    estimate([recording.text.split() for _, recording in zip(range(12), recordings("es"), strict=False)], 2, path)
    return path, path.read_bytes()


@given(st.data())
@BOUNDED
def test_the_words_of_a_changed_arpa_file_are_read_or_it_is_refused(
    arpa: tuple[Path, bytes], data: st.DataObject
) -> None:
    path, content = arpa
    path.write_bytes(data.draw(changed_bytes(content)))
    with may_be_refused(ValueError, path):
        assert all(isinstance(word, str) for word in vocabulary(path))


def wav(rate_hz: int, samples: int = 1_600) -> bytes:
    """16 bits, one channel."""
    body = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate_hz, min(2 * rate_hz, 2**32 - 1), 2, 16)
    body += struct.pack("<4sI", b"data", 2 * samples) + b"\x10\x27" * samples
    return struct.pack("<4sI4s", b"RIFF", 4 + len(body), b"WAVE") + body


@pytest.mark.parametrize("rate_hz", [44_101, 2**31 - 1])
def test_a_sample_rate_whose_filter_would_fill_the_memory_is_refused(rate_hz: int, tmp_path: Path) -> None:
    path = tmp_path / "speech.wav"
    path.write_bytes(wav(rate_hz))
    with pytest.raises(CorpusError, match=f"speech.wav: its sample rate, {rate_hz} Hz, is none that audio has"):
        read_audio(path)
    samples = found(path)
    assert isinstance(samples, Finding)
    assert samples.kind == "wrong_rate"


@pytest.mark.parametrize(
    "rate_hz", [8_000, 11_025, 12_000, 16_000, 22_050, 22_254, 24_000, 32_000, 44_056, 44_100, 48_000, 96_000, 192_000]
)
def test_sample_rates_of_real_audio_are_read(rate_hz: int) -> None:
    assert can_resample(rate_hz)


def test_a_flac_header_that_promises_a_day_is_refused_without_taking_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "speech.flac"
    soundfile.write(path, next(recordings("es")).samples, 16_000)
    content = bytearray(path.read_bytes())
    content[21:26] = bytes([content[21] & 0xF0 | 0x0F]) + b"\xff\xff\xff\xff"  # 2 ** 36 - 1 samples
    path.write_bytes(content)
    assert soundfile.info(path).frames == 2**36 - 1
    with pytest.raises(CorpusError, match=f"{path}: cannot be decoded as audio"):
        read_audio(path)


@pytest.mark.parametrize("name", ["speech.raw", "speech.RAW"])
def test_samples_without_a_header_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"\0\1" * 1_000)
    with pytest.raises(CorpusError, match=f"{name}: cannot be decoded as audio"):
        read_audio(path)
    samples = found(path)
    assert isinstance(samples, Finding)
    assert samples.kind == "undecodable"


def test_a_pipe_in_the_place_of_an_audio_file_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "speech.wav")
    samples = found(tmp_path / "speech.wav")
    assert isinstance(samples, Finding)
    assert samples.kind == "missing_audio"
