"""Batches of audio: which utterances form a batch, and their waveforms and tokens.

Legend: B utterances, S samples, U tokens.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.functional
from torch import Tensor

from trainables.data.config import SAMPLE_RATE_HZ, CropConfig
from trainables.data.corpus import CorpusError, Utterance
from trainables.data.seeds import fold, numpy_generator
from trainables.data.symbols import Symbols

SPEEDS = (0.9, 1.0, 1.1)
LOUDEST = 1_000.0  # of a sample: what is beyond was written in another scale


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
    share: float = 1.0  # of the global batch's utterances, when the batch is a part of it (gradient accumulation)

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.waveform_BS.to(device),
            self.num_samples_B,
            self.tokens_BU.to(device),
            self.num_tokens_B,
            self.seeds,
            self.seed,
            self.counted,
            self.share,
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
    if float(mono.abs().max()) > LOUDEST:
        raise CorpusError(f"{path}: has samples up to {float(mono.abs().max()):g}, not in [-1, 1]; convert it")
    return mono.numpy().astype(np.float16)


@functools.lru_cache(maxsize=4_000)  # about 2 GB of 15 s utterances
def load_audio(path: Path) -> np.ndarray:
    """The same, kept in memory: the warm worker's next stage reads nothing."""
    return read_audio(path)


def sampled_epoch(utterances: Sequence[Utterance], exponent: float, seed: int, epoch: int) -> list[tuple[int, int]]:
    """(index, repetition) of the utterances of one epoch, whose audio is in total that of all utterances.

    A source with d seconds has a share proportional to d ** exponent: its utterances are repeated as often as that
    holds, and the rest is drawn without replacement, to within half an utterance. With exponent 1 every utterance is
    there once.
    """
    if exponent == 1.0:
        return [(index, 0) for index in range(len(utterances))]
    seconds: dict[int, float] = {}
    for utterance in utterances:
        seconds[utterance.source] = seconds.get(utterance.source, 0.0) + utterance.duration_seconds
    weight = math.fsum(d**exponent for d in seconds.values())
    total = math.fsum(seconds.values())
    drawn: list[tuple[int, int]] = []
    for source, own in seconds.items():
        indices = [index for index, u in enumerate(utterances) if u.source == source]
        copies = own**exponent / weight * total / own
        whole = int(copies)
        drawn += [(index, repetition) for repetition in range(whole) for index in indices]
        random = numpy_generator(seed, "source", source, epoch)
        rest = random.permutation(indices).tolist()
        ends = itertools.accumulate(utterances[index].duration_seconds for index in rest)
        left = (copies - whole) * own
        drawn += [
            (index, whole)
            for index, end in zip(rest, ends, strict=True)
            if end - utterances[index].duration_seconds / 2 <= left
        ]
    return drawn


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
    symbols: Symbols | None,
    seeds: Sequence[int],
    *,
    seed: int = 0,
    augment_speed: bool = False,
    crop_samples: int | None = None,
    counted: bool = True,
    share: float = 1.0,
) -> Batch:
    """Decode, optionally change speed, and crop or pad. Tokens are made only where `symbols` are given."""
    waveforms = [torch.from_numpy(load_audio(u.path)).float() for u in utterances]
    if augment_speed:
        waveforms = [_change_speed(w, _speed(seed)) for w, seed in zip(waveforms, seeds, strict=True)]
    if crop_samples is not None:
        waveforms = [_crop(w, crop_samples, seed) for w, seed in zip(waveforms, seeds, strict=True)]
    tokens = [torch.tensor(symbols.encode(u.text or "") if symbols else [], dtype=torch.long) for u in utterances]
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    return Batch(
        waveform_BS=pad(waveforms),
        num_samples_B=torch.tensor([len(w) for w in waveforms]),
        tokens_BU=pad(tokens),
        num_tokens_B=torch.tensor([len(t) for t in tokens]),
        seeds=tuple(seeds),
        seed=seed,
        counted=counted,
        share=share,
    )


def _speed(seed: int) -> float:
    """One of three factors, drawn from the utterance's seed."""
    return SPEEDS[fold(seed, "speed") % len(SPEEDS)]


def _change_speed(waveform_S: Tensor, factor: float) -> Tensor:
    """Speed perturbation (Ko et al. 2015)."""
    return torchaudio.functional.resample(waveform_S, round(factor * 100), 100) if factor != 1.0 else waveform_S


def _crop(waveform_S: Tensor, num_samples: int, seed: int) -> Tensor:
    """That many samples from a place drawn from the seed; zeros at the end where a manifest rounded a length up."""
    spare = max(0, len(waveform_S) - num_samples)
    start = int(numpy_generator(seed, "crop").integers(spare + 1))
    cropped_S = waveform_S[start : start + num_samples]
    return torch.nn.functional.pad(cropped_S, (0, num_samples - len(cropped_S)))


class Stream:
    """An endless, resumable sequence of one worker's shares of global batches. The whole state is (epoch, position)."""

    def __init__(
        self,
        utterances: Sequence[Utterance],
        symbols: Symbols | None,
        *,
        batch_seconds: float,
        seed: int,
        augment_speed: bool,
        rank: int,
        world_size: int,
        sampling_exponent: float = 1.0,
        crop: CropConfig | None = None,
        accumulation: int = 1,
    ) -> None:
        self.utterances = [u for u in utterances if crop is None or u.duration_seconds >= crop.min_seconds]
        if not self.utterances:
            raise CorpusError(f"no utterance is as long as crop.min_seconds, {crop.min_seconds if crop else 0:g} s")
        self.symbols = symbols
        self.batch_seconds = batch_seconds
        self.seed = seed
        self.augment_speed = augment_speed
        self.rank, self.world_size = rank, world_size
        self.sampling_exponent = sampling_exponent
        self.crop = crop
        self.accumulation = accumulation
        self._durations = [min(u.duration_seconds, crop.max_seconds if crop else math.inf) for u in self.utterances]
        self.seconds_per_epoch = math.fsum(self._durations)
        self.audio_seconds = 0.0  # drawn so far by all workers together
        self._seek(0, 0)

    def state(self) -> dict[str, float]:
        return {"epoch": self.epoch, "position": self.position, "audio_seconds": self.audio_seconds}

    def load_state(self, state: dict[str, float]) -> None:
        self._seek(int(state["epoch"]), int(state["position"]))
        self.audio_seconds = state["audio_seconds"]

    def _seek(self, epoch: int, position: int) -> None:
        self.epoch, self.position = epoch, position
        drawn = sampled_epoch(self.utterances, self.sampling_exponent, self.seed, epoch)
        durations = [self._durations[index] for index, _ in drawn]
        batches = epoch_batches(durations, self.batch_seconds, self.seed, epoch)
        self._batches = [[drawn[i] for i in batch] for batch in batches]

    def next(self) -> list[Batch]:
        """This worker's share of each part of the next global batch; without accumulation there is one part.

        Which utterances are in which part does not depend on the number of workers.
        """
        if self.position == len(self._batches):
            self._seek(self.epoch + 1, 0)
        whole = self._batches[self.position]
        self.position += 1
        seeds = {drawn: self._utterance_seed(*drawn) for drawn in whole}
        crop_samples = self._crop_samples(seeds) if self.crop else None
        if crop_samples is None:
            self.audio_seconds += math.fsum(self._durations[index] for index, _ in whole)
        else:
            self.audio_seconds += len(whole) * crop_samples / SAMPLE_RATE_HZ
        parts = []
        for number in range(self.accumulation):
            part = whole[number :: self.accumulation]
            mine = part[self.rank :: self.world_size]
            chosen = mine or part[:1] or whole[:1]
            parts.append(
                make_batch(
                    [self.utterances[index] for index, _ in chosen],
                    self.symbols,
                    [seeds[drawn] for drawn in chosen],
                    seed=fold(self.seed, self.epoch, self.position, number),
                    augment_speed=self.augment_speed,
                    crop_samples=crop_samples,
                    counted=bool(mine),
                    share=len(part) / len(whole),
                )
            )
        return parts

    def _utterance_seed(self, index: int, repetition: int) -> int:
        repeated = (repetition,) if repetition else ()
        return fold(self.seed, self.epoch, self.utterances[index].id, *repeated)

    def _crop_samples(self, seeds: Mapping[tuple[int, int], int]) -> int:
        """Length of the shortest utterance of the global batch, after the change of speed, or the longest crop."""
        assert self.crop is not None
        played = (
            self.utterances[index].duration_seconds / (_speed(seed) if self.augment_speed else 1.0)
            for (index, _), seed in seeds.items()
        )
        return int(min(self.crop.max_seconds, *played) * SAMPLE_RATE_HZ)
