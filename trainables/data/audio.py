"""Samples of utterances: decoded from a file of any format, or read from the 16 kHz store that preparation makes.

Legend: S samples.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.functional
from numpy.typing import NDArray
from torch import Tensor

from trainables.data.config import SAMPLE_RATE_HZ
from trainables.data.corpus import CorpusError, Utterance

LOUDEST = 1_000.0  # of a sample: what is beyond was written in another scale
FULL_SCALE = 32_768  # of a stored sample, which is int16


def read_audio(path: Path) -> NDArray[np.float16]:
    """The file as mono float16 at 16 kHz.

    Raises CorpusError naming the file when it cannot be decoded or holds no sound.
    """
    try:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise CorpusError(f"{path}: cannot be decoded as audio ({error}); repair it or remove its line") from error
    mono_S = at_sample_rate(torch.from_numpy(samples.mean(axis=1)), rate_hz)
    if not mono_S.numel() or not torch.isfinite(mono_S).all() or not mono_S.any():
        raise CorpusError(f"{path}: holds no sound; remove its line from the manifest")
    if float(mono_S.abs().max()) > LOUDEST:
        raise CorpusError(f"{path}: has samples up to {float(mono_S.abs().max()):g}, not in [-1, 1]; convert it")
    return mono_S.numpy().astype(np.float16)


def at_sample_rate(waveform_S: Tensor, rate_hz: int) -> Tensor:
    """The waveform at 16 kHz."""
    if rate_hz == SAMPLE_RATE_HZ:
        return waveform_S
    resampled_S: Tensor = torchaudio.functional.resample(waveform_S, rate_hz, SAMPLE_RATE_HZ)
    return resampled_S


@functools.lru_cache(maxsize=4_000)  # about 2 GB of 15 s utterances
def load_audio(path: Path) -> NDArray[np.float16]:
    """The same, kept in memory: the warm worker's next stage reads nothing."""
    return read_audio(path)


def num_samples(utterance: Utterance) -> int:
    """Length of the utterance at 16 kHz, without decoding it where it is in a store."""
    return utterance.stored[1] if utterance.stored else len(load_audio(utterance.path))


def waveform(utterance: Utterance, first: int = 0, count: int | None = None) -> Tensor:
    """(S,) float32 in [-1, 1]: the utterance, or `count` samples from number `first` on, or as many as there are.

    Of an utterance in a store no more than that is read.
    """
    if utterance.stored is None:
        end = None if count is None else first + count
        return torch.from_numpy(load_audio(utterance.path)[first:end].astype(np.float32))
    start, length = utterance.stored
    count = length - first if count is None else min(count, length - first)
    samples_S = _mapped(utterance.path)[start + first : start + first + count]
    return torch.from_numpy(samples_S.astype(np.float32)).div_(FULL_SCALE)


@functools.lru_cache(maxsize=256)  # each holds a file descriptor
def _mapped(path: Path) -> NDArray[np.int16]:
    return np.memmap(path, dtype=np.int16, mode="r")
