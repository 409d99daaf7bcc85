"""Which frames of a padded batch are valid. Lengths stay on the CPU, so that no forward pass waits for a device."""

from __future__ import annotations

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


def count_frames(geometry: FrameGeometry, num_samples_B: Tensor) -> Tensor:
    """(B,) lengths after the convolutions, 0 where there are too few samples."""
    for kernel, stride, padding in geometry:
        num_samples_B = ((num_samples_B + 2 * padding - kernel) // stride + 1).clamp(min=0)
    return num_samples_B
