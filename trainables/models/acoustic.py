"""The whole model: three parts, which are also the three groups of parameters of BL-JUST."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from trainables.data.seeds import fold
from trainables.models.cnn_gru import CnnGru, CnnGruClassifier
from trainables.models.compact_cnn_gru import CompactCnnGru
from trainables.models.config import CnnGruConfig, CompactCnnGruConfig, TransformerConfig
from trainables.models.linear import Linear
from trainables.models.presets import ModelConfig
from trainables.models.self_supervised import CpcHead, SelfSupervisedHead
from trainables.models.transformer import Transformer

M = TypeVar("M", bound=nn.Module)
Backbone = Transformer | CnnGru | CompactCnnGru

BACKBONES: dict[type, Callable[..., Backbone]] = {
    TransformerConfig: Transformer,
    CnnGruConfig: CnnGru,
    CompactCnnGruConfig: CompactCnnGru,
}


class AcousticModel(nn.Module):
    """`backbone` (theta), `ctc_head` (phi), `self_supervised_head` (eta): P-BLJ equation 7 and its lower level.

    Each part is drawn from a seed of its own, so that its initial weights do not depend on the size of the others.
    """

    def __init__(self, config: ModelConfig, num_symbols: int, seed: int, self_supervision: str = "contrastive") -> None:
        super().__init__()
        self.config = config
        self.backbone = _seeded(fold(seed, "backbone"), lambda: BACKBONES[type(config)](config))
        self.ctc_head = _seeded(fold(seed, "ctc_head"), lambda: _ctc_head(config, self.backbone, num_symbols))
        heads = {"contrastive": _contrastive_head, "cpc": _cpc_head}
        self.self_supervised_head: nn.Module = _seeded(
            fold(seed, "self_supervised_head"), lambda: heads[self_supervision](config, self.backbone)
        )

    @property
    def num_recogniser_parameters(self) -> int:
        """Of what transcribes: backbone and CTC head."""
        return count_parameters(self.backbone) + count_parameters(self.ctc_head)


def _contrastive_head(config: ModelConfig, backbone: Backbone) -> nn.Module:
    feature_dropout = config.dropout.features if isinstance(config, TransformerConfig) else 0.0
    return SelfSupervisedHead(
        config.quantiser, config.projection, backbone.feature_width, backbone.context_width, feature_dropout
    )


def _cpc_head(config: ModelConfig, backbone: Backbone) -> nn.Module:
    return CpcHead(backbone.feature_width, backbone.context_width, config.quantiser.dim)


def _ctc_head(config: ModelConfig, backbone: Backbone, num_symbols: int) -> nn.Module:
    if isinstance(config, CnnGruConfig):
        return CnnGruClassifier(config, num_symbols)
    return Linear(backbone.context_width, num_symbols)


def _seeded(seed: int, build: Callable[[], M]) -> M:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
