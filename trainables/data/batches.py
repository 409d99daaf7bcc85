"""Batches of audio: which utterances form a batch, and their waveforms and tokens.

Legend: B utterances, S samples, U tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.functional
from torch import Tensor

from trainables.data.config import SAMPLE_RATE_HZ
from trainables.data.corpus import CorpusError, Utterance
from trainables.data.seeds import fold, numpy_generator
from trainables.data.text import Characters

SPEEDS = (0.9, 1.0, 1.1)


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch."""

    waveform_BS: Tensor  # zero-padded, float32 in [-1, 1]
    num_samples_B: Tensor  # int64, on the CPU
    tokens_BU: Tensor  # int64, zero-padded; width 0 for unlabelled audio
    num_tokens_B: Tensor  # int64, on the CPU
    seeds: tuple[int, ...]  # one an utterance, for masks and noise
    seed: int  # of the global batch, the same on every worker, for what all utterances share
    counted: bool  # False for a filler: a worker without a share repeats an utterance that counts for nothing

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.waveform_BS.to(device),
            self.num_samples_B,
            self.tokens_BU.to(device),
            self.num_tokens_B,
            self.seeds,
            self.seed,
            self.counted,
        )


def read_audio(path: Path) -> np.ndarray:
    """The file as mono float16 at 16 kHz.

    Raises CorpusError naming the file when it cannot be decoded or holds no sound.
    """
    try:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise CorpusError(f"{path}: cannot be decoded as audio ({error}); repair it or remove its line") from error
    mono = torch.from_numpy(samples.mean(axis=1))
    if rate_hz != SAMPLE_RATE_HZ:
        mono = torchaudio.functional.resample(mono, rate_hz, SAMPLE_RATE_HZ)
    if not mono.numel() or not torch.isfinite(mono).all() or not mono.any():
        raise CorpusError(f"{path}: holds no sound; remove its line from the manifest")
    return mono.numpy().astype(np.float16)


@functools.lru_cache(maxsize=4_000)  # about 2 GB of 15 s utterances
def load_audio(path: Path) -> np.ndarray:
    """The same, kept in memory: the warm worker's next stage reads nothing."""
    return read_audio(path)


def epoch_batches(durations_seconds: Sequence[float], batch_seconds: float, seed: int, epoch: int) -> list[list[int]]:
    """Indices of the utterances of each global batch of one epoch: every utterance once.

    Utterances of like length share a batch whose padded area stays within `batch_seconds`; one longer than that is a
    batch of its own. Depends on the seed and the epoch alone, not on the number of workers.
    """
    random = numpy_generator(seed, "epoch", epoch)
    order = np.argsort(np.asarray(durations_seconds) * random.uniform(0.9, 1.1, len(durations_seconds)), kind="stable")
    batches: list[list[int]] = []
    longest = 0.0
    for index in order.tolist():
        longest = max(longest, durations_seconds[index])
        if batches and longest * (len(batches[-1]) + 1) <= batch_seconds:
            batches[-1].append(index)
        else:
            batches.append([index])
            longest = durations_seconds[index]
    random.shuffle(batches)
    return batches


def make_batch(
    utterances: Sequence[Utterance],
    characters: Characters | None,
    seeds: Sequence[int],
    *,
    seed: int = 0,
    augment_speed: bool = False,
    counted: bool = True,
) -> Batch:
    """Decode, optionally change speed, and pad. Tokens are made only where `characters` are given."""
    waveforms = [torch.from_numpy(load_audio(u.path)).float() for u in utterances]
    if augment_speed:
        waveforms = [_change_speed(w, seed) for w, seed in zip(waveforms, seeds, strict=True)]
    tokens = [torch.tensor(characters.encode(u.text or "") if characters else [], dtype=torch.long) for u in utterances]
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    return Batch(
        waveform_BS=pad(waveforms),
        num_samples_B=torch.tensor([len(w) for w in waveforms]),
        tokens_BU=pad(tokens),
        num_tokens_B=torch.tensor([len(t) for t in tokens]),
        seeds=tuple(seeds),
        seed=seed,
        counted=counted,
    )


def _change_speed(waveform_S: Tensor, seed: int) -> Tensor:
    """Speed perturbation (Ko et al. 2015) by one of three factors, drawn from the utterance's seed."""
    factor = SPEEDS[fold(seed, "speed") % len(SPEEDS)]
    return torchaudio.functional.resample(waveform_S, round(factor * 100), 100) if factor != 1.0 else waveform_S


class Stream:
    """An endless, resumable sequence of one worker's shares of global batches. The whole state is (epoch, position)."""

    def __init__(
        self,
        utterances: Sequence[Utterance],
        characters: Characters | None,
        *,
        batch_seconds: float,
        seed: int,
        augment_speed: bool,
        rank: int,
        world_size: int,
    ) -> None:
        self.utterances = utterances
        self.characters = characters
        self.batch_seconds = batch_seconds
        self.seed = seed
        self.augment_speed = augment_speed
        self.rank, self.world_size = rank, world_size
        self.seconds_per_epoch = math.fsum(u.duration_seconds for u in utterances)
        self.audio_seconds = 0.0  # drawn so far by all workers together
        self._seek(0, 0)

    def state(self) -> dict[str, float]:
        return {"epoch": self.epoch, "position": self.position, "audio_seconds": self.audio_seconds}

    def load_state(self, state: dict[str, float]) -> None:
        self._seek(int(state["epoch"]), int(state["position"]))
        self.audio_seconds = state["audio_seconds"]

    def _seek(self, epoch: int, position: int) -> None:
        durations = [u.duration_seconds for u in self.utterances]
        self.epoch, self.position = epoch, position
        self._batches = epoch_batches(durations, self.batch_seconds, self.seed, epoch)

    def next(self) -> Batch:
        """This worker's share of the next global batch."""
        if self.position == len(self._batches):
            self._seek(self.epoch + 1, 0)
        indices = self._batches[self.position]
        self.position += 1
        self.audio_seconds += math.fsum(self.utterances[i].duration_seconds for i in indices)
        mine = indices[self.rank :: self.world_size]
        share = [self.utterances[i] for i in (mine or indices[:1])]
        seeds = [fold(self.seed, self.epoch, u.id) for u in share]
        return make_batch(
            share,
            self.characters,
            seeds,
            seed=fold(self.seed, self.epoch, self.position),
            augment_speed=self.augment_speed,
            counted=bool(mine),
        )
