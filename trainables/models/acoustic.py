"""The whole model: three parts, which are also the three groups of parameters of BL-JUST."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from trainables.data.seeds import fold
from trainables.models.cnn_gru import CnnGru
from trainables.models.config import ModelConfig
from trainables.models.self_supervised import SelfSupervisedHead

M = TypeVar("M", bound=nn.Module)


class AcousticModel(nn.Module):
    """`backbone` (theta), `ctc_head` (phi), `self_supervised_head` (eta): P-BLJ equation 7 and its lower level.

    Each part is drawn from a seed of its own, so that its initial weights do not depend on the size of the others.
    """

    def __init__(self, config: ModelConfig, num_symbols: int, seed: int) -> None:
        super().__init__()
        self.backbone = _seeded(fold(seed, "backbone"), lambda: CnnGru(config))
        self.ctc_head = _seeded(fold(seed, "ctc_head"), lambda: nn.Linear(self.backbone.context_width, num_symbols))
        self.self_supervised_head = _seeded(
            fold(seed, "self_supervised_head"),
            lambda: SelfSupervisedHead(config.quantiser, self.backbone.feature_width, self.backbone.context_width),
        )


def _seeded(seed: int, build: Callable[[], M]) -> M:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
