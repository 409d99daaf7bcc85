"""A forward pass never asks the device for a value: on the meta device there is none to give, and asking raises."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainables.config import Progress
from trainables.data.batches import Batch
from trainables.losses.config import ContrastiveConfig, MaskConfig
from trainables.losses.contrastive import contrastive_terms
from trainables.losses.ctc import ctc_log_probabilities
from trainables.losses.terms import total
from trainables.models.acoustic import AcousticModel
from trainables.models.config import TransformerConfig
from trainables.models.presets import PRESETS


def model_without_values(preset: str, **changes: Any) -> AcousticModel:
    config = PRESETS[preset].with_(width=64, layers=2, **changes)
    assert isinstance(config, TransformerConfig)
    with torch.device("meta"):
        return AcousticModel(config, 32, seed=0).train()


@pytest.fixture
def batch() -> Batch:
    return Batch(
        waveform_BS=torch.empty(2, 32_000, device="meta"),
        num_samples_B=torch.tensor([32_000, 20_000]),
        tokens_BU=torch.ones(2, 5, dtype=torch.long),
        num_tokens_B=torch.tensor([5, 3]),
        seeds=(1, 2),
        seed=3,
        counted=True,
    )


MODELS = ["w2v2_base", "w2v2_large_lv60", "sew_tiny", "sew_d_tiny"]


@pytest.mark.parametrize("preset", MODELS)
def test_ctc_with_masks_and_padding(preset: str, batch: Batch) -> None:
    log_probabilities, num_frames = ctc_log_probabilities(model_without_values(preset), batch, MaskConfig())
    assert log_probabilities.is_meta
    assert num_frames.tolist() == [99, 62]


@pytest.mark.parametrize("preset", MODELS)
def test_self_supervised_loss_and_its_gradient(preset: str, batch: Batch) -> None:
    model = model_without_values(preset)
    loss = total(contrastive_terms(model, batch, ContrastiveConfig(), Progress(1, 2)))
    loss.backward()
    assert loss.is_meta


def test_reading_a_value_would_be_noticed(batch: Batch) -> None:
    with pytest.raises(RuntimeError, match="meta tensors"):
        batch.waveform_BS.sum().item()
