"""Which frames of a padded batch are valid. Lengths stay on the CPU, so that no forward pass waits for a device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from trainables.models.config import FrameGeometry


def frame_mask(num_frames_B: Tensor, max_frames: int, device: torch.device) -> Tensor:
    """(B, T) True where a frame is valid."""
    return torch.arange(max_frames, device=device) < num_frames_B.to(device, non_blocking=True)[:, None]


def padding_mask(num_frames_B: Tensor, max_frames: int, device: torch.device) -> Tensor | None:
    """(B, T) True where a frame is padding; None when none is."""
    if int(num_frames_B.min()) >= max_frames:
        return None
    return ~frame_mask(num_frames_B, max_frames, device)


def refuse_short(num_samples_B: Tensor, min_samples: int) -> None:
    """Raises ValueError for an utterance that is shorter than the model can take."""
    shortest = int(num_samples_B.min())
    if shortest < min_samples:
        raise ValueError(f"an utterance has {shortest} samples, and this model needs {min_samples}; leave it out")


def count_frames(geometry: FrameGeometry, num_samples_B: Tensor) -> Tensor:
    """(B,) lengths after the convolutions, 0 where there are too few samples."""
    for kernel, stride, padding in geometry:
        num_samples_B = ((num_samples_B + 2 * padding - kernel) // stride + 1).clamp(min=0)
    return num_samples_B


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Leave autocast, on whatever device."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield
