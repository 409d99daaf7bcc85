"""CTC. Legend: B utterances, T frames, D width, V symbols."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from trainables.data.batches import Batch
from trainables.data.text import BLANK
from trainables.losses.config import CtcConfig, MaskConfig
from trainables.losses.features import local_features
from trainables.losses.masks import channel_masks, equalise, time_masks
from trainables.losses.terms import Term, Terms
from trainables.models.acoustic import AcousticModel, Backbone


class CtcModel(Protocol):
    """An acoustic model, or as much of one as CTC needs."""

    backbone: Backbone
    ctc_head: nn.Module


def ctc_log_probabilities(
    model: CtcModel, batch: Batch, mask: MaskConfig | None = None, extractor_gradient: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(B, T, V) log-probabilities and the (B,) valid frames; `mask` augments the features in training."""
    backbone = model.backbone
    features_BTD, num_frames_B = local_features(backbone, batch, extractor_gradient)
    mask_BT = channel_mask_BC = None
    if mask is not None:
        device = features_BTD.device
        mask_BT = time_masks(
            num_frames_B,
            features_BTD.shape[1],
            batch.seeds,
            purpose="augment",
            probability=mask.time_probability,
            length=mask.time_length,
            min_spans=mask.min_spans,
        )
        channel_mask_BC = channel_masks(
            backbone.mask_width,
            batch.seeds,
            probability=mask.channel_probability,
            length=mask.channel_length,
            batch_seed=batch.seed if mask.equal else None,
        )
        if mask.equal:
            mask_BT = equalise(mask_BT, batch.seeds, batch.counted, device)
            channel_mask_BC = equalise(channel_mask_BC, batch.seeds, batch.counted, device, "equal channels")
        mask_BT = mask_BT.to(device, non_blocking=True)
        channel_mask_BC = channel_mask_BC.to(device, non_blocking=True)
    context_BTC = backbone.context(
        backbone.feature_norm(features_BTD), num_frames_B, mask_BT, channel_mask_BC, seed=batch.seed
    )
    return model.ctc_head(context_BTC).float().log_softmax(2), num_frames_B


def ctc_terms(model: AcousticModel, batch: Batch, config: CtcConfig) -> Terms:
    nll_B = ctc_losses(model, batch, config)
    counted = float(batch.counted)
    return {"ctc": Term(nll_B.sum() * counted, nll_B.new_full((), len(nll_B) * counted), batch.share)}


def ctc_losses(model: CtcModel, batch: Batch, config: CtcConfig) -> Tensor:
    """(B,) negative log-likelihoods of the tokens of the batch."""
    log_probabilities_BTV, num_frames_B = ctc_log_probabilities(model, batch, config.mask, config.extractor_gradient)
    # An utterance with fewer frames than its text needs has no alignment: it counts zero, not infinity.
    return F.ctc_loss(
        log_probabilities_BTV.transpose(0, 1),
        batch.tokens_BU,
        num_frames_B,
        batch.num_tokens_B,
        blank=BLANK,
        reduction="none",
        zero_infinity=True,
    )
