"""Which frames and channels are masked. Computed on the CPU from each utterance's seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trainables.data.seeds import numpy_generator
from trainables.distributed import min_over_workers


def span_mask(
    size: int,
    probability: float,
    length: int,
    min_spans: int,
    random: np.random.Generator,
    rounding: float | None = None,
) -> np.ndarray:
    """(size,) True inside spans; overlaps allowed, starts distinct.

    The number of spans is probability x size / length, rounded up or down at random (by `rounding`, from [0, 1), where
    it is given), at least `min_spans` (`compute_mask_indices` of fairseq, static lengths). At least one position stays
    unmasked.
    """
    mask = np.zeros(size, dtype=bool)
    length = min(length, size - 1)
    if length < 1 or probability == 0:
        return mask
    num_spans = max(min_spans, int(probability * size / length + (random.random() if rounding is None else rounding)))
    num_starts = size - length
    starts = random.choice(num_starts, min(num_spans, num_starts), replace=False)
    mask[(starts[:, None] + np.arange(length)).ravel()] = True
    return mask


def time_masks(
    num_frames_B: Tensor,
    max_frames: int,
    seeds: Sequence[int],
    *,
    purpose: str,
    probability: float,
    length: int,
    min_spans: int = 0,
) -> Tensor:
    """(B, T) masks inside the valid frames of each utterance."""
    mask_BT = np.zeros((len(seeds), max_frames), dtype=bool)
    for row, num_frames, seed in zip(mask_BT, num_frames_B.tolist(), seeds, strict=True):
        row[:num_frames] = span_mask(num_frames, probability, length, min_spans, numpy_generator(seed, purpose))
    return torch.from_numpy(mask_BT)


def equalise(
    mask_BT: Tensor, seeds: Sequence[int], counted: bool, device: torch.device, purpose: str = "equal"
) -> Tensor:
    """The masks with as many frames (or channels) each as the one with the fewest in the batch, over all workers.

    Those that stay are drawn from each utterance's seed (fairseq's `require_same_masks`).
    """
    fewest = int(mask_BT.sum(1).min()) if counted else mask_BT.shape[1]
    fewest = min_over_workers(fewest, device)
    equal_BT = torch.zeros_like(mask_BT)
    for row, mask, seed in zip(equal_BT, mask_BT, seeds, strict=True):
        frames = mask.nonzero()[:, 0].numpy()
        row[torch.from_numpy(numpy_generator(seed, purpose).permutation(frames)[:fewest])] = True
    return equal_BT


def channel_masks(
    width: int, seeds: Sequence[int], *, probability: float, length: int, batch_seed: int | None = None
) -> Tensor:
    """(B, D) masks over the channels of each utterance. With `batch_seed`, all have the same number of spans."""
    rounding = None if batch_seed is None else numpy_generator(batch_seed, "channels").random()
    rows = [span_mask(width, probability, length, 0, numpy_generator(seed, "channels"), rounding) for seed in seeds]
    return torch.from_numpy(np.stack(rows))
