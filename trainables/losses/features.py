"""Features of a batch, and how much of the gradient reaches the network below them."""

from __future__ import annotations

import torch
from torch import Tensor

from trainables.data.batches import Batch
from trainables.models.acoustic import Backbone


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """`x`, whose gradient is multiplied by `scale` on the way back."""
    return x if scale == 1.0 else x * scale + x.detach() * (1.0 - scale)


def local_features(backbone: Backbone, batch: Batch, gradient: float) -> tuple[Tensor, Tensor]:
    """(B, T, D) features before normalisation and the (B,) valid frames; `gradient` scales what the extractor learns.

    With 0 the extractor is run without gradients, which saves their memory.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and gradient > 0):
        raw_BTD, num_frames_B = backbone.features(batch.waveform_BS, batch.num_samples_B)
    return (scale_gradient(raw_BTD, gradient) if gradient > 0 else raw_BTD), num_frames_B
