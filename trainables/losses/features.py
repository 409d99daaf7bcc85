"""Features of a batch, and how much of the gradient reaches the network below them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainables.data.batches import Batch
from trainables.models.acoustic import Backbone


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """`x` as it is, whose gradient is multiplied by `scale` on the way back."""
    scaled: Tensor = x if scale == 1.0 else _ScaledGradient.apply(x, scale)
    return scaled


def local_features(backbone: Backbone, batch: Batch, gradient: float) -> tuple[Tensor, Tensor]:
    """(B, T, D) features before normalisation and the (B,) valid frames; `gradient` scales what the extractor learns.

    With 0 the extractor is run without gradients, which saves their memory.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and gradient > 0):
        raw_BTD, num_frames_B = backbone.features(batch.waveform_BS, batch.num_samples_B)
    return (scale_gradient(raw_BTD, gradient) if gradient > 0 else raw_BTD), num_frames_B
