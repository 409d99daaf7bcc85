"""The head for self-supervision: product quantiser and projections (wav2vec 2.0, arXiv:2006.11477, section 2).

Legend: N masked frames, D width of the features, C width of the context, G codebooks, V entries, P compared width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.models.config import QuantiserConfig


@dataclass(frozen=True)
class Quantised:
    vectors_ND: Tensor
    codes_NG: Tensor  # index of the chosen entry of each codebook
    logits_NGV: Tensor


class Quantiser(nn.Module):
    """Chooses one entry of each codebook: straight-through Gumbel softmax in training, argmax in evaluation."""

    def __init__(self, config: QuantiserConfig, in_width: int) -> None:
        super().__init__()
        if config.dim % config.codebooks:
            raise ValueError(
                f"quantiser.dim must be a multiple of quantiser.codebooks, got {config.dim} and {config.codebooks}"
            )
        self.logits = nn.Linear(in_width, config.codebooks * config.entries)
        nn.init.normal_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)
        self.codewords_GVd = nn.Parameter(
            torch.empty(config.codebooks, config.entries, config.dim // config.codebooks).uniform_()
        )

    def forward(self, features_ND: Tensor, temperature: float, noise_NGV: Tensor | None) -> Quantised:
        """`noise_NGV` is Gumbel noise; None chooses the likeliest entry."""
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


class SelfSupervisedHead(nn.Module):
    def __init__(self, config: QuantiserConfig, feature_width: int, context_width: int) -> None:
        super().__init__()
        self.quantiser = Quantiser(config, feature_width)
        self.project_context = nn.Linear(context_width, config.dim)
        self.project_target = nn.Linear(config.dim, config.dim)
