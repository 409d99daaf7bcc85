"""Samples of utterances: decoded from a file of any format, or read from the 16 kHz store that preparation makes.

Legend: S samples.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.functional
from numpy.typing import NDArray
from torch import Tensor

from trainables.data.config import SAMPLE_RATE_HZ
from trainables.data.corpus import CorpusError, Utterance

BLOCK_SAMPLES = 1 << 20  # read at a time: what a header promises may not be there
LARGEST_FILTER = 100_000_000  # weights of the filter that resamples; 44,100 Hz needs 91,000 of them
UNDECODABLE = (soundfile.SoundFileError, OSError)
LOUDEST = 1_000.0  # of a sample: what is beyond was written in another scale
FULL_SCALE = 32_768  # of a stored sample, which is int16
ENDS_WITH_SOUND = ("FLAC", "MP3", "OGG")  # formats in which hardly more than a tag may follow the sound
UNREAD_SECONDS = 0.25  # of sound that may be left behind what a file is said to hold
KEPT_FILES = 4_000  # about 2 GB of 15 s utterances


def read_audio(path: Path) -> NDArray[np.float16]:
    """The file as mono float16 at 16 kHz.

    Raises CorpusError naming the file when it cannot be decoded, to its end, or holds no sound.
    """
    try:
        with open_audio(path) as file:
            rate_hz, blocks = file.samplerate, list(_blocks(file))
            left_behind = left_behind_end(file, sum(len(block) for block in blocks) / rate_hz)
    except UNDECODABLE as error:
        reason = undecodable_because(error)
        raise CorpusError(f"{path}: cannot be decoded as audio ({reason}); repair it or remove its line") from error
    if left_behind:
        raise CorpusError(f"{path}: {left_behind}")
    if not can_resample(rate_hz):
        raise CorpusError(
            f"{path}: its sample rate, {rate_hz} Hz, is none that audio has; convert it, or remove its line"
        )
    samples = np.concatenate(blocks) if blocks else np.empty((0, 1), np.float32)
    mono_S = at_sample_rate(torch.from_numpy(mono(samples)), rate_hz)
    peak = float(mono_S.abs().max()) if mono_S.numel() else 0.0  # NaN where a sample is
    if not 0 < peak < math.inf:
        raise CorpusError(f"{path}: holds no sound; remove its line from the manifest")
    if peak > LOUDEST:
        raise CorpusError(f"{path}: has samples up to {peak:g}, not in [-1, 1]; convert it")
    stored: NDArray[np.float16] = mono_S.to(torch.float16).numpy()
    return stored


def open_audio(path: Path) -> soundfile.SoundFile:
    """The file, by a descriptor that it closes. Raises one of UNDECODABLE."""
    return soundfile.SoundFile(os.open(path, os.O_RDONLY))


def undecodable_because(error: Exception) -> str:
    """Without the number of the descriptor."""
    return error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)


def left_behind_end(file: soundfile.SoundFile, seconds: float) -> str | None:
    """What is wrong with a file of which `seconds` were read, all that libsndfile finds, and much is left; else None.

    libsndfile stops where the first of several joined files ends, and where it guesses the end of an MP3 file whose
    bit rate varies, and which has no table of it. How long the rest lasts is judged by its bytes.
    """
    end = os.lseek(file.name, 0, os.SEEK_CUR)
    bytes_left = os.fstat(file.name).st_size - end
    if file.format not in ENDS_WITH_SOUND or not end or seconds * bytes_left / end <= UNREAD_SECONDS:
        return None
    return f"goes on for about {seconds * bytes_left / end:.1f} s behind the end that libsndfile finds; encode it again"


def _blocks(file: soundfile.SoundFile) -> Iterator[NDArray[np.float32]]:
    """(S, channels) after (S, channels), as far as there is sound."""
    frames = max(1, BLOCK_SAMPLES // file.channels)
    while len(samples_SC := file.read(frames, dtype="float32", always_2d=True)):
        yield samples_SC


def mono(samples_SC: NDArray[np.float32]) -> NDArray[np.float32]:
    """(S,): the mean of the channels."""
    return samples_SC[:, 0] if samples_SC.shape[1] == 1 else samples_SC.mean(axis=1)  # the mean of one is slow


def can_resample(rate_hz: int) -> bool:
    """Whether resampling takes a filter of a possible size.

    It has one row for each phase, and the rates' ratio in lowest terms gives their number and length: rates that real
    audio has share large factors with 16 kHz.
    """
    common = math.gcd(rate_hz, SAMPLE_RATE_HZ)
    return rate_hz > 0 and (SAMPLE_RATE_HZ // common) * (rate_hz // common) <= LARGEST_FILTER


def at_sample_rate(waveform_S: Tensor, rate_hz: int) -> Tensor:
    """The waveform at 16 kHz."""
    if rate_hz == SAMPLE_RATE_HZ:
        return waveform_S
    resampled_S: Tensor = torchaudio.functional.resample(waveform_S, rate_hz, SAMPLE_RATE_HZ)
    return resampled_S


@functools.lru_cache(maxsize=KEPT_FILES)
def load_audio(path: Path) -> NDArray[np.float16]:
    """The same, kept in memory while the process lives."""
    return read_audio(path)


def decode_ahead(utterances: Iterable[Utterance]) -> None:
    """Decode them now, so that processes forked later find them decoded. Nothing when there are too many to keep.

    Raises CorpusError at the first that cannot be read.
    """
    files = {utterance.path for utterance in utterances if utterance.stored is None}
    if len(files) <= KEPT_FILES:
        for file in sorted(files):
            load_audio(file)


def num_samples(utterance: Utterance) -> int:
    """Length of the utterance at 16 kHz, without decoding it where it is in a store."""
    return utterance.stored[1] if utterance.stored else len(load_audio(utterance.path))


def waveform(utterance: Utterance, first: int = 0, count: int | None = None) -> Tensor:
    """(S,) float32 in [-1, 1]: the utterance, or `count` samples from number `first` on, or as many as there are.

    Of an utterance in a store no more than that is read.
    """
    left = max(0, num_samples(utterance) - first)
    waveform_S = np.empty(left if count is None else min(count, left), np.float32)
    read_into(waveform_S, utterance, first)
    return torch.from_numpy(waveform_S)


def read_into(row_S: NDArray[np.float32], utterance: Utterance, first: int = 0) -> None:
    """Fill the row with the utterance from sample `first` on, in [-1, 1], and with zeros beyond its end."""
    count = max(0, min(len(row_S), num_samples(utterance) - first))
    if utterance.stored is None:
        row_S[:count] = load_audio(utterance.path)[first : first + count]
    else:
        start = utterance.stored[0] + first
        row_S[:count] = _mapped(utterance.path)[start : start + count]
        row_S[:count] *= 1 / FULL_SCALE
    row_S[count:] = 0


@functools.lru_cache(maxsize=256)  # each holds a file descriptor
def _mapped(path: Path) -> NDArray[np.int16]:
    return np.asarray(np.memmap(path, dtype=np.int16, mode="r"))  # a plain array is sliced faster
