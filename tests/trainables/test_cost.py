"""What a forward pass costs, in closed form, against what torch counts in a real one."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trainables.models import linear
from trainables.models.acoustic import AcousticModel
from trainables.models.config import (
    CnnGruConfig,
    CompactCnnGruConfig,
    DisentangledAttentionConfig,
    FilterBankExtractorConfig,
    TransformerConfig,
    WaveExtractorConfig,
)
from trainables.models.cost import UTTERANCE_SECONDS, flops_per_second
from trainables.models.inventory import measure
from trainables.models.presets import PRESETS, ModelConfig

SYMBOLS = 30
NUM_SAMPLES = 160_000

WAV2VEC2 = TransformerConfig(
    extractor=WaveExtractorConfig(channels=48), width=64, heads=4, layers=2, position_kernel=16, position_groups=4
)
SEW = WAV2VEC2.with_(extractor=WaveExtractorConfig(channels=12, compact=True), squeeze=2, position_kernel=15)
SEW_D = SEW.with_(attention=DisentangledAttentionConfig(buckets=16, max_distance=64))
MODELS: dict[str, ModelConfig] = {
    "wav2vec2": WAV2VEC2,
    "wav2vec2, one width": WAV2VEC2.with_(extractor=WaveExtractorConfig(channels=64)),
    "wav2vec2, large": WAV2VEC2.with_(
        extractor=WaveExtractorConfig(channels=48, norm="layer"), norm_first=True, normalise_waveform=True
    ),
    "wav2vec2, narrow feed-forward": WAV2VEC2.with_(feedforward_width=80, heads=2),
    "squeezed wav2vec2": SEW.with_(extractor=WaveExtractorConfig(channels=48)),
    "sew": SEW,
    "sew, squeezed by three, two pointwise": SEW.with_(
        squeeze=3, extractor=WaveExtractorConfig(channels=12, compact=True, pointwise_layers=2)
    ),
    "sew_d": SEW_D,
    "sew_d, buckets for every distance": SEW_D.with_(
        attention=DisentangledAttentionConfig(buckets=600, max_distance=1200)
    ),
    "filter bank": SEW.with_(extractor=FilterBankExtractorConfig(channels=16, mel_bins=41, width=48)),
    "cnn_gru": CnnGruConfig(mel_bins=40, channels=16, cnn_layers=2, gru_layers=3, gru_width=48),
    "cnn_gru without convolutions": CnnGruConfig(mel_bins=41, channels=8, cnn_layers=0, gru_layers=1, gru_width=48),
    "compact_cnn_gru": CompactCnnGruConfig(mel_bins=40, cnn_width=48, cnn_layers=3, gru_width=32, gru_layers=2),
}


def counted(config: ModelConfig) -> float:
    """Operations of a forward pass for 10 s, as torch counts them.

    Torch sees neither oneDNN's linear layers nor every kernel of fused attention: both are replaced by plain products.
    """
    model = AcousticModel(config, SYMBOLS, seed=0).eval().requires_grad_(False)
    waveform_BS = torch.randn(1, NUM_SAMPLES, generator=torch.Generator().manual_seed(0))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        features_BTD, num_frames_B = model.backbone.features(waveform_BS, torch.tensor([NUM_SAMPLES]))
        model.ctc_head(model.backbone.context(model.backbone.feature_norm(features_BTD), num_frames_B))
    return float(counter.get_total_flops())


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_the_cost_is_that_of_a_real_forward_pass(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_AVAILABLE", False)
    assert UTTERANCE_SECONDS == 10
    assert flops_per_second(config, SYMBOLS) * 10 == pytest.approx(counted(config), rel=0.005)


def test_by_hand_for_a_transformer_of_one_layer() -> None:
    """499 frames; convolutions of 31999, 15999, 7999, 3999, 1999, 999 and 499 outputs; two operations a product."""
    model = TransformerConfig(
        extractor=WaveExtractorConfig(channels=4), width=8, heads=1, layers=1, position_kernel=3, position_groups=2
    )
    extractor = 31_999 * 4 * 10 + (15_999 + 7_999 + 3_999 + 1_999) * 16 * 3 + (999 + 499) * 16 * 2
    positions, attention = 499 * 8 * 4 * 3, 499 * (3 * 64 + 64) + 2 * 499 * 499 * 8
    rest = 499 * 4 * 8 + 499 * 2 * 8 * 32 + 499 * 8 * SYMBOLS
    assert flops_per_second(model, SYMBOLS) * 10 == 2 * (extractor + positions + attention + rest)


LAYERS: dict[str, Callable[[int], ModelConfig]] = {
    "wav2vec2": lambda n: WAV2VEC2.with_(layers=n),
    "sew": lambda n: SEW.with_(layers=n),
    "sew_d": lambda n: SEW_D.with_(layers=n),
    "cnn_gru, convolutions": lambda n: CnnGruConfig(cnn_layers=n),
    "cnn_gru, recurrent": lambda n: CnnGruConfig(gru_layers=n),
    "compact_cnn_gru, convolutions": lambda n: CompactCnnGruConfig(cnn_layers=n),
    "compact_cnn_gru, recurrent": lambda n: CompactCnnGruConfig(gru_layers=n),
}


@pytest.mark.parametrize("with_layers", LAYERS.values(), ids=LAYERS)
def test_every_layer_costs_the_same(with_layers: Callable[[int], ModelConfig]) -> None:
    """The second recurrent layer may cost more than the first, whose input is narrower."""
    cost = {n: flops_per_second(with_layers(n), SYMBOLS) for n in (2, 3, 4, 8)}
    layer = cost[3] - cost[2]
    assert layer > 0
    assert cost[4] - cost[2] == pytest.approx(2 * layer, rel=1e-9)
    assert cost[8] - cost[4] == pytest.approx(4 * layer, rel=1e-9)


def test_a_layer_of_wav2vec2_base_costs_what_its_matrices_do() -> None:
    """499 frames of width 768: 12 x 768^2 weights, and attention's two products of every frame with every other."""
    base = PRESETS["w2v2_base"]
    layer = flops_per_second(base, 32) - flops_per_second(base.with_(layers=11), 32)
    assert layer * 10 == pytest.approx(2 * 499 * 12 * 768**2 + 4 * 499**2 * 768, rel=1e-9)


def test_squeezing_makes_the_context_network_cheaper_by_half_and_attention_by_a_quarter() -> None:
    projections = 2 * 12 * 64**2
    for squeeze, frames in ((1, 499), (2, 249), (4, 124)):
        model = WAV2VEC2.with_(squeeze=squeeze)
        layer = flops_per_second(model.with_(layers=3), SYMBOLS) - flops_per_second(model, SYMBOLS)
        assert layer * 10 == pytest.approx(frames * projections + 4 * frames**2 * 64, rel=1e-9)


@pytest.mark.parametrize("name", ["w2v2_tiny", "sew_d_tiny", "sew_tiny_fbfe", "compact_cnn_gru"])
def test_an_output_costs_one_product_a_frame_and_width(name: str) -> None:
    config = PRESETS[name]
    width = 2 * config.gru_width if isinstance(config, CompactCnnGruConfig) else config.width
    more = flops_per_second(config, 40) - flops_per_second(config, 30)
    assert more * 10 == pytest.approx(10 * 2 * config.num_frames(NUM_SAMPLES) * width, rel=1e-9)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_positive_finite_cost_that_its_inventory_repeats(name: str) -> None:
    size = measure(name)
    assert math.isfinite(size.flops_per_second)
    assert size.flops_per_second > 0
    assert size.flops_per_second == flops_per_second(PRESETS[name], size.outputs)


@pytest.mark.parametrize(
    "names",
    [
        ["w2v2_tiny", "w2v2_small", "w2v2_mid", "w2v2_base", "w2v2_large"],
        ["sew_tiny", "sew_small", "sew_mid"],
        ["sew_d_tiny", "sew_d_small", "sew_d_mid", "sew_d_base", "sew_d_base_plus"],
        ["cnn_gru_2x4", "cnn_gru_3x4", "cnn_gru_4x4", "cnn_gru_4x5", "cnn_gru_4x6"],
        ["sew_tiny", "w2v2_small"],
    ],
    ids=lambda names: names[-1],
)
def test_larger_presets_cost_more(names: list[str]) -> None:
    """The last ones: SEW's claim, more parameters at less cost (P-SEW Table 1)."""
    costs = [flops_per_second(PRESETS[name], 32) for name in names]
    assert costs == sorted(set(costs))
