"""Batches of audio: which utterances form a batch, and their waveforms and tokens.

Legend: B utterances, S samples, U tokens.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
import torchaudio.functional
from torch import Tensor

from trainables.data.audio import num_samples, read_into, waveform
from trainables.data.config import SAMPLE_RATE_HZ, CropConfig
from trainables.data.corpus import CorpusError, Utterance
from trainables.data.seeds import fold, numpy_generator
from trainables.data.symbols import Symbols

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
    share: float = 1.0  # of the global batch's utterances, when the batch is a part of it (gradient accumulation)

    def to(self, device: torch.device) -> Batch:
        def moved(tensor: Tensor) -> Tensor:
            return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

        return replace(self, waveform_BS=moved(self.waveform_BS), tokens_BU=moved(self.tokens_BU))


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
    order = np.argsort(
        np.asarray(durations_seconds) * random.uniform(0.98, 1.02, len(durations_seconds)), kind="stable"
    )
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
    make_waveforms = _changed if augment_speed else _read
    waveform_BS, lengths = make_waveforms(utterances, seeds, crop_samples)
    tokens = [torch.tensor(symbols.encode(u.text or "") if symbols else [], dtype=torch.long) for u in utterances]
    return Batch(
        waveform_BS=waveform_BS,
        num_samples_B=torch.tensor(lengths),
        tokens_BU=torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True),
        num_tokens_B=torch.tensor([len(t) for t in tokens]),
        seeds=tuple(seeds),
        seed=seed,
        counted=counted,
        share=share,
    )


def _read(utterances: Sequence[Utterance], seeds: Sequence[int], crop_samples: int | None) -> tuple[Tensor, list[int]]:
    """Padded waveforms and their lengths. Each sample is written once, in its place."""
    lengths = [crop_samples or num_samples(utterance) for utterance in utterances]
    waveform_BS = torch.from_numpy(np.empty((len(utterances), max(lengths)), np.float32))  # in huge pages
    for row_S, utterance, length, seed in zip(waveform_BS.numpy(), utterances, lengths, seeds, strict=True):
        read_into(row_S, utterance, _crop_start(num_samples(utterance), length, seed))
    return waveform_BS, lengths


def _changed(
    utterances: Sequence[Utterance], seeds: Sequence[int], crop_samples: int | None
) -> tuple[Tensor, list[int]]:
    """The same, each utterance at the speed drawn from its seed."""
    drawn = [(utterance, _speed(seed), seed) for utterance, seed in zip(utterances, seeds, strict=True)]
    if crop_samples is None:
        waveforms = [_change_speed(waveform(utterance), speed) for utterance, speed, _ in drawn]
    else:
        waveforms = [_crop(utterance, speed, crop_samples, seed) for utterance, speed, seed in drawn]
    return torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), [len(w) for w in waveforms]


def _crop_start(samples: int, length: int, seed: int) -> int:
    spare = samples - length
    return int(numpy_generator(seed, "crop").integers(spare + 1)) if spare > 0 else 0


def _speed(seed: int) -> float:
    """One of three factors, drawn from the utterance's seed."""
    return SPEEDS[fold(seed, "speed") % len(SPEEDS)]


def _change_speed(waveform_S: Tensor, factor: float) -> Tensor:
    """Speed perturbation (Ko et al. 2015)."""
    return torchaudio.functional.resample(waveform_S, round(factor * 100), 100) if factor != 1.0 else waveform_S


def _crop(utterance: Utterance, speed: float, length: int, seed: int) -> Tensor:
    """That many samples, after the change of speed, from a place drawn from the seed; no more than needed is read.

    Zeros at the end where a manifest rounded a length up.
    """
    read, played = _ratio(speed)
    start = _crop_start(math.ceil(num_samples(utterance) * played / read), length, seed)
    before = max(0, start // played - 2)  # groups; resampling looks at fewer samples than two of them to each side
    groups = length // played + 5
    changed_S = _change_speed(waveform(utterance, before * read, groups * read), speed)
    cropped_S = changed_S[start - before * played :][:length]
    return torch.nn.functional.pad(cropped_S, (0, length - len(cropped_S)))


def _ratio(speed: float) -> tuple[int, int]:
    """Samples read and samples played in each group: 11 and 10 for speed 1.1."""
    percent = round(speed * 100)
    common = math.gcd(percent, 100)
    return percent // common, 100 // common


@dataclass(frozen=True)
class _Place:
    """How far a stream is: what has been drawn so far by all workers together."""

    epoch: int = 0
    position: int = 0  # of the next batch in its epoch
    audio_seconds: float = 0.0


class Stream:
    """An endless, resumable sequence of one worker's shares of global batches. The whole state is its place.

    With `threads`, that many make the next batches while the caller computes: the same ones, in the same order.
    """

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
        threads: int = 0,
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
        self._pool = ThreadPoolExecutor(threads, "batches") if threads else None
        self._most_ahead = 2 * threads
        self._ahead: deque[tuple[_Place, Future[list[Batch]]]] = deque()
        self._go_to(_Place())

    def state(self) -> dict[str, float]:
        return asdict(self._taken)

    def load_state(self, state: dict[str, float]) -> None:
        self._go_to(_Place(int(state["epoch"]), int(state["position"]), state["audio_seconds"]))

    @property
    def epoch(self) -> int:
        """Of the last batch taken."""
        return self._taken.epoch

    @property
    def audio_seconds(self) -> float:
        """Of the batches taken so far, by all workers together."""
        return self._taken.audio_seconds

    def _go_to(self, place: _Place) -> None:
        self._ahead.clear()
        self._taken = self._drawn = place
        self._batches = self._epoch(place.epoch)

    def _epoch(self, epoch: int) -> list[list[tuple[int, int]]]:
        drawn = sampled_epoch(self.utterances, self.sampling_exponent, self.seed, epoch)
        durations = [self._durations[index] for index, _ in drawn]
        if self.augment_speed:
            speeds = (_speed(self._utterance_seed(epoch, *one)) for one in drawn)
            played = (self.utterances[index].duration_seconds / s for (index, _), s in zip(drawn, speeds, strict=True))
            durations = [min(seconds, self.crop.max_seconds if self.crop else math.inf) for seconds in played]
        batches = epoch_batches(durations, self.batch_seconds, self.seed, epoch)
        return [[drawn[i] for i in batch] for batch in batches]

    def next(self) -> list[Batch]:
        """This worker's share of each part of the next global batch; without accumulation there is one part.

        Which utterances are in which part does not depend on the number of workers.
        """
        if self._pool is None:
            make = self._draw()
            self._taken = self._drawn
            return make()
        while len(self._ahead) < self._most_ahead:
            make = self._draw()
            self._ahead.append((self._drawn, self._pool.submit(make)))
        self._taken, batch = self._ahead.popleft()
        return batch.result()

    def _draw(self) -> Callable[[], list[Batch]]:
        """Choose the next global batch; what is returned reads its audio."""
        place = self._drawn
        if place.position == len(self._batches):
            place = replace(place, epoch=place.epoch + 1, position=0)
            self._batches = self._epoch(place.epoch)
        whole = self._batches[place.position]
        seeds = {drawn: self._utterance_seed(place.epoch, *drawn) for drawn in whole}
        crop_samples = self._crop_samples(seeds) if self.crop else None
        if crop_samples is None:
            audio_seconds = math.fsum(self._durations[index] for index, _ in whole)
        else:
            audio_seconds = len(whole) * crop_samples / SAMPLE_RATE_HZ
        self._drawn = _Place(place.epoch, place.position + 1, place.audio_seconds + audio_seconds)
        return functools.partial(self._parts, self._drawn, whole, seeds, crop_samples)

    def _parts(
        self,
        place: _Place,
        whole: Sequence[tuple[int, int]],
        seeds: Mapping[tuple[int, int], int],
        crop_samples: int | None,
    ) -> list[Batch]:
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
                    seed=fold(self.seed, place.epoch, place.position, number),
                    augment_speed=self.augment_speed,
                    crop_samples=crop_samples,
                    counted=bool(mine),
                    share=len(part) / len(whole),
                )
            )
        return parts

    def _utterance_seed(self, epoch: int, index: int, repetition: int) -> int:
        repeated = (repetition,) if repetition else ()
        return fold(self.seed, epoch, self.utterances[index].id, *repeated)

    def _crop_samples(self, seeds: Mapping[tuple[int, int], int]) -> int:
        """Length of the shortest utterance of the global batch, after the change of speed, or the longest crop."""
        assert self.crop is not None
        played = (
            self.utterances[index].duration_seconds / (_speed(seed) if self.augment_speed else 1.0)
            for (index, _), seed in seeds.items()
        )
        return int(min(self.crop.max_seconds, *played) * SAMPLE_RATE_HZ)
