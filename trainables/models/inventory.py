"""The presets with their sizes and costs."""

from __future__ import annotations

import torch

from trainables.models.acoustic import AcousticModel, count_parameters
from trainables.models.config import CnnGruConfig
from trainables.models.cost import ModelSize, flops_per_second
from trainables.models.presets import NOTES, PRESETS

LETTERS = 32  # outputs of P-SEW's CTC models
SUBWORDS = 1023  # of P-BLJ's, which reproduce its Table 2


def measure(name: str) -> ModelSize:
    """Build the preset without memory for its weights, and count them."""
    config = PRESETS[name]
    outputs = SUBWORDS if isinstance(config, CnnGruConfig) else LETTERS
    with torch.device("meta"):
        model = AcousticModel(config, outputs, seed=0)
    backbone = count_parameters(model.backbone)
    return ModelSize(
        name=name,
        outputs=outputs,
        parameters_ctc=backbone + count_parameters(model.ctc_head),
        parameters_pretraining=backbone + count_parameters(model.self_supervised_head),
        frame_rate_hz=config.frame_rate_hz,
        flops_per_second=flops_per_second(config, outputs),
        note=NOTES.get(name, ""),
    )
