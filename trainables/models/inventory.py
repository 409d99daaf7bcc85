"""The presets with their sizes and costs. Needs no torch."""

from __future__ import annotations

from trainables.models.config import CnnGruConfig
from trainables.models.cost import ModelSize, flops_per_second
from trainables.models.presets import NOTES, PRESETS
from trainables.models.sizes import num_parameters

LETTERS = 32  # outputs of P-SEW's CTC models
SUBWORDS = 1023  # of P-BLJ's, which reproduce its Table 2


def measure(name: str) -> ModelSize:
    """The size and cost of the preset, with the number of outputs of its paper."""
    config = PRESETS[name]
    outputs = SUBWORDS if isinstance(config, CnnGruConfig) else LETTERS
    backbone = num_parameters(config, "backbone", outputs)
    return ModelSize(
        name=name,
        outputs=outputs,
        parameters_ctc=backbone + num_parameters(config, "ctc_head", outputs),
        parameters_pretraining=backbone + num_parameters(config, "self_supervised_head", outputs),
        frame_rate_hz=config.frame_rate_hz,
        flops_per_second=flops_per_second(config, outputs),
        note=NOTES.get(name, ""),
    )
