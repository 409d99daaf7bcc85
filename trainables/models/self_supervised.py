"""The head for self-supervision: product quantiser and projections (wav2vec 2.0, arXiv:2006.11477, section 2).

Legend: N masked frames, D width of the features, C width of the context, G codebooks, V entries, P compared width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.distributed import sum_over_workers, world_size
from trainables.models.config import MlpProjectionConfig, ProjectionConfig, QuantiserConfig
from trainables.models.frames import full_precision
from trainables.models.linear import Linear


@dataclass(frozen=True)
class Quantised:
    vectors_ND: Tensor
    codes_NG: Tensor  # index of the chosen entry of each codebook
    logits_NGV: Tensor


class Quantiser(nn.Module):
    """Chooses one entry of each codebook: straight-through Gumbel softmax in training, argmax in evaluation."""

    def __init__(self, config: QuantiserConfig, in_width: int) -> None:
        super().__init__()
        self.logits = Linear(in_width, config.codebooks * config.entries)
        nn.init.normal_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)
        self.codewords_GVd = nn.Parameter(
            torch.empty(config.codebooks, config.entries, config.dim // config.codebooks).uniform_()
        )

    def forward(self, features_ND: Tensor, temperature: float, noise_NGV: Tensor | None) -> Quantised:
        """`noise_NGV` is Gumbel noise; None chooses the likeliest entry. In 32 bits: the logits' range is too wide."""
        with full_precision():
            return self._choose(features_ND.float(), temperature, noise_NGV)

    def _choose(self, features_ND: Tensor, temperature: float, noise_NGV: Tensor | None) -> Quantised:
        G, V, _ = self.codewords_GVd.shape
        logits_NGV = self.logits(features_ND).unflatten(1, (G, V))
        if noise_NGV is None:
            codes_NG = logits_NGV.argmax(2)
            choice_NGV = F.one_hot(codes_NG, V).to(logits_NGV.dtype)
        else:
            soft_NGV = ((logits_NGV + noise_NGV) / temperature).softmax(2)
            codes_NG = soft_NGV.argmax(2)
            choice_NGV = F.one_hot(codes_NG, V).to(soft_NGV.dtype) + soft_NGV - soft_NGV.detach()
        vectors_ND = torch.einsum("ngv,gvd->ngd", choice_NGV, self.codewords_GVd).flatten(1)
        return Quantised(vectors_ND, codes_NG, logits_NGV)


class FrameBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the masked frames of the global batch, in 32 bits: how many workers share it changes nothing."""

    def forward(self, x_NC: Tensor) -> Tensor:
        x_NC = x_NC.float()
        if not self.training or (world_size() == 1 and len(x_NC) > 1):
            return super().forward(x_NC)
        total = sum_over_workers(x_NC.new_full((), float(len(x_NC))))
        count = total.clamp(min=1)
        mean_C = sum_over_workers(x_NC.sum(0)) / count
        variance_C = sum_over_workers((x_NC - mean_C).square().sum(0)) / count
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            momentum = self.momentum * total.clamp(max=1)  # nothing masked anywhere: nothing learnt
            self.running_mean.lerp_(mean_C, momentum)
            self.running_var.lerp_(variance_C * count / (count - 1).clamp(min=1), momentum)
            self.num_batches_tracked += 1
        return (x_NC - mean_C) * (variance_C + self.eps).rsqrt() * self.weight + self.bias


def make_projection(config: ProjectionConfig, in_width: int, width: int) -> nn.Module:
    """The layer that projects into the width in which predictions and targets are compared."""
    if not isinstance(config, MlpProjectionConfig):
        return Linear(in_width, width)
    hidden = config.hidden_width
    first, last = Linear(in_width, hidden, bias=False), Linear(hidden, width)
    for linear in (first, last):
        nn.init.xavier_normal_(linear.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(first, FrameBatchNorm(hidden), nn.ReLU(), last)


class SelfSupervisedHead(nn.Module):
    def __init__(
        self,
        quantiser: QuantiserConfig,
        projection: ProjectionConfig,
        feature_width: int,
        context_width: int,
        feature_dropout: float,
    ) -> None:
        super().__init__()
        self.feature_dropout = nn.Dropout(feature_dropout)
        self.quantiser = Quantiser(quantiser, feature_width)
        self.project_context = make_projection(projection, context_width, quantiser.dim)
        self.project_target = make_projection(projection, quantiser.dim, quantiser.dim)


class CpcHead(nn.Module):
    """Contrastive predictive coding: from a context to the frame after it, from that to the next one, and so on."""

    def __init__(self, feature_width: int, context_width: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.project_context = Linear(context_width, width)
        self.predict = Linear(width, width)
        self.project_target = Linear(feature_width, width)
