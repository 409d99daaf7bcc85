from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from trainables.models.acoustic import BACKBONES, AcousticModel, Backbone, count_parameters
from trainables.models.config import (
    CnnGruConfig,
    CompactCnnGruConfig,
    DisentangledAttentionConfig,
    FilterBankExtractorConfig,
    TransformerConfig,
    WaveExtractorConfig,
    frames_after,
)
from trainables.models.extractors import WaveExtractor
from trainables.models.frames import count_frames
from trainables.models.presets import PRESETS, ModelConfig

MODELS: TypeAdapter[Any] = TypeAdapter(ModelConfig)

# CTC model with 32 outputs, and pre-training model: backbone, quantiser and projections.
TRANSFORMERS = {
    "w2v2_tiny": (11_062_944, 11_432_704),
    "w2v2_small": (24_851_872, 25_332_224),
    "w2v2_mid": (44_145_824, 44_736_768),
    "w2v2_base": (94_396_320, 95_044_608),
    "w2v2_large": (315_461_792, 317_380_864),
    "w2v2_large_lv60": (315_471_520, 317_390_592),
    "sq_w2v_e384_o256": (23_933_728, 24_332_160),
    "sq_w2v_e384_c96": (27_228_064, 27_954_176),
    "sq_w2v_e512_c48": (41_704_928, 42_213_952),
    "sq_w2v_e512_c64": (40_725_311, 41_316_255),
    "sew_tiny": (40_725_311, 46_378_911),
    "sew_small": (89_645_119, 96_339_103),
    "sew_mid": (174_699_583, 181_393_567),
    "sew_tiny_fbfe": (42_226_975, None),
    "sew_d_tiny": (24_127_423, 29_260_831),
    "sew_d_small": (40_987_455, 46_641_055),
    "sew_d_mid": (78_816_063, 84_469_663),
    "sew_d_mid_k127": (80_389_023, 86_042_623),
    "sew_d_base": (175_092_799, 181_786_783),
    "sew_d_base_plus": (177_003_711, 183_861_535),
}
# CTC model with 1023 outputs.
CNN_GRUS = {
    "cnn_gru_2x4": 22_415_487,
    "cnn_gru_3x4": 22_530_847,
    "cnn_gru_4x4": 22_646_207,
    "cnn_gru_2x5": 27_142_271,
    "cnn_gru_3x5": 27_257_631,
    "cnn_gru_4x5": 27_372_991,
    "cnn_gru_2x6": 31_869_055,
    "cnn_gru_3x6": 31_984_415,
    "cnn_gru_4x6": 32_099_775,
}
SMALL = {
    "width": 16,
    "heads": 2,
    "layers": 1,
    "feedforward_width": 16,
    "position_kernel": 4,
    "position_groups": 2,
    "quantiser": {"entries": 4, "dim": 4},
}
EXTRACTORS = {
    "wave": {"kind": "wave", "channels": 4},
    "compact wave": {"kind": "wave", "channels": 2, "compact": True},
    "compact wave, two pointwise": {"kind": "wave", "channels": 2, "compact": True, "pointwise_layers": 2},
    "layer norm": {"kind": "wave", "channels": 4, "norm": "layer"},
    "masked statistics": {"kind": "wave", "channels": 4, "masked_statistics": True},
    "filter bank": {"kind": "filter_bank", "channels": 2, "mel_bins": 8, "width": 8},
}
LOG_MEL_MODELS = {
    "cnn_gru": CnnGruConfig(mel_bins=8, channels=8, cnn_layers=1, gru_layers=1, gru_width=4),
    "compact_cnn_gru": CompactCnnGruConfig(mel_bins=8, cnn_width=8, cnn_layers=1, gru_width=8),
}
WAVE_PRESETS = [n for n, c in PRESETS.items() if isinstance(getattr(c, "extractor", None), WaveExtractorConfig)]


def meta_model(config: ModelConfig, num_symbols: int) -> AcousticModel:
    with torch.device("meta"):
        return AcousticModel(config, num_symbols, seed=0)


def ctc_parameters(config: ModelConfig, num_symbols: int) -> int:
    model = meta_model(config, num_symbols)
    return count_parameters(model.backbone) + count_parameters(model.ctc_head)


def pretraining_parameters(config: ModelConfig) -> int:
    model = meta_model(config, 32)
    return count_parameters(model.backbone) + count_parameters(model.self_supervised_head)


def small_transformer(extractor: str, squeeze: int = 1) -> TransformerConfig:
    return TransformerConfig.model_validate({**SMALL, "extractor": EXTRACTORS[extractor], "squeeze": squeeze})


def backbone_of(config: Any) -> Backbone:
    return BACKBONES[type(config)](config).eval()


@torch.no_grad()
def frames_of(backbone: Backbone, num_samples: int) -> int:
    """What `features` reports, which is also what it returns."""
    features_BTD, num_frames_B = backbone.features(torch.randn(1, num_samples), torch.tensor([num_samples]))
    assert num_frames_B.tolist() == [features_BTD.shape[1]]
    return features_BTD.shape[1]


def test_every_preset_is_counted_here() -> None:
    assert {*TRANSFORMERS, *CNN_GRUS, "compact_cnn_gru"} == set(PRESETS)


@pytest.mark.parametrize(("name", "counts"), TRANSFORMERS.items(), ids=TRANSFORMERS)
def test_transformers_have_exactly_the_published_parameters(name: str, counts: tuple[int, int | None]) -> None:
    """Section 1.2 of shared/models_and_regimes.md; checked there against P-SEW Tables 1 and 6."""
    ctc, pretraining = counts
    assert ctc_parameters(PRESETS[name], 32) == ctc
    if pretraining is not None:
        assert pretraining_parameters(PRESETS[name]) == pretraining


def test_the_large_model_pre_trained_at_a_compared_width_of_256() -> None:
    """Section 1.2: 316,167,424 where final_dim is 256 instead of 768."""
    config = MODELS.validate_python({"preset": "w2v2_large", "quantiser": {"dim": 256}})
    assert pretraining_parameters(config) == 316_167_424


@pytest.mark.parametrize(("name", "count"), CNN_GRUS.items(), ids=CNN_GRUS)
@pytest.mark.parametrize("variant", ["fixed", "compat"])
def test_cnn_grus_have_exactly_the_published_parameters(name: str, count: int, variant: str) -> None:
    """P-BLJ Table 2 with 1023 outputs, and by the formula of section 3."""
    config = MODELS.validate_python({"preset": name, "variant": variant})
    formula = 320 + 115_360 * config.cnn_layers + 655_872 + 3_152_896 + 4_726_784 * (config.gru_layers - 1)
    assert ctc_parameters(config, 1023) == count == formula + 2_099_200 + 2049 * 1023


def test_a_cnn_gru_with_1000_outputs_has_the_parameters_that_the_published_notebook_prints() -> None:
    assert ctc_parameters(PRESETS["cnn_gru_3x5"], 1000) == 27_210_504


@pytest.mark.parametrize(
    ("extractor", "count"),
    [
        ({"channels": 256}, 1_051_648),
        ({"channels": 384}, 2_363_904),
        ({"channels": 512}, 4_200_448),
        ({"channels": 48, "compact": True}, 1_037_376),
        ({"channels": 64, "compact": True}, 1_843_968),
        ({"channels": 96, "compact": True}, 4_148_352),
    ],
)
def test_wave_extractors_have_exactly_these_parameters(extractor: dict[str, Any], count: int) -> None:
    """Section 1.1, the first GroupNorm included."""
    with torch.device("meta"):
        assert count_parameters(WaveExtractor(WaveExtractorConfig.model_validate(extractor))) == count


@pytest.mark.parametrize("name", PRESETS)
def test_frames_are_20_ms_apart_and_those_of_the_compact_cnn_gru_40_ms(name: str) -> None:
    config = PRESETS[name]
    rate = 25 if name == "compact_cnn_gru" else 50
    assert config.frame_rate_hz == rate
    assert config.num_frames(160_000 + 8000) - config.num_frames(8000) == 10 * rate


@pytest.mark.parametrize("name", WAVE_PRESETS)
def test_one_frame_of_a_wave_extractor_takes_400_samples(name: str) -> None:
    assert [PRESETS[name].num_frames(n) for n in (399, 400, 719, 720)] == [0, 1, 1, 2]


@pytest.mark.parametrize("compact", [False, True])
def test_a_feature_depends_on_400_samples_that_begin_320_after_those_of_the_last(compact: bool) -> None:
    extractor = WaveExtractor(WaveExtractorConfig(channels=2, compact=compact, norm="layer"))
    waveform = torch.randn(1, 2000, requires_grad=True)
    features_BTD, _ = extractor(waveform, torch.tensor([2000]))
    for frame in (0, 3):
        (gradient,) = torch.autograd.grad(features_BTD[0, frame].sum(), waveform, retain_graph=True)
        reached = gradient[0].nonzero()[:, 0]
        assert (reached.min().item(), reached.max().item()) == (320 * frame, 320 * frame + 399)


@pytest.mark.parametrize("squeeze", [1, 2, 3])
@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_settings_know_how_many_frames_a_transformer_returns(extractor: str, squeeze: int) -> None:
    config = small_transformer(extractor, squeeze)
    backbone = backbone_of(config)

    @given(st.integers(config.min_samples, 24_000))
    def check(num_samples: int) -> None:
        assert config.num_frames(num_samples) == frames_of(backbone, num_samples)

    check()


@pytest.mark.parametrize("name", LOG_MEL_MODELS)
def test_settings_know_how_many_frames_a_cnn_gru_returns(name: str) -> None:
    config = LOG_MEL_MODELS[name]
    backbone = backbone_of(config)

    @given(st.integers(400, 24_000))
    def check(num_samples: int) -> None:
        assert config.num_frames(num_samples) == frames_of(backbone, num_samples)

    check()


@given(st.lists(st.integers(1, 60_000), min_size=1), st.sampled_from(sorted(PRESETS)))
def test_frames_of_a_batch_are_counted_as_those_of_one_utterance(lengths: list[int], name: str) -> None:
    geometry = PRESETS[name].geometry
    assert count_frames(geometry, torch.tensor(lengths)).tolist() == [frames_after(geometry, n) for n in lengths]


@pytest.mark.parametrize(
    ("extractor", "squeeze", "expected"),
    [("wave", 1, 400), ("wave", 2, 720), ("compact wave", 3, 1040), ("filter bank", 1, 1040), ("filter bank", 2, 1360)],
)
def test_the_least_length_of_a_transformer_is_that_of_one_frame_of_its_context(
    extractor: str, squeeze: int, expected: int
) -> None:
    """400 + 320 (s - 1) samples on the waveform; a filter bank needs 5 + 2 (s - 1) windows of 400, 160 apart."""
    assert small_transformer(extractor, squeeze).min_samples == expected


@pytest.mark.parametrize("squeeze", [1, 2, 3])
@pytest.mark.parametrize("extractor", EXTRACTORS)
@torch.no_grad()
def test_a_transformer_takes_its_least_length_and_refuses_one_sample_fewer(extractor: str, squeeze: int) -> None:
    config = small_transformer(extractor, squeeze)
    backbone, least = backbone_of(config), config.min_samples
    features_BTD, num_frames_B = backbone.features(torch.randn(1, least), torch.tensor([least]))
    assert num_frames_B.tolist() == [squeeze]
    assert backbone.context(features_BTD, num_frames_B).shape == (1, squeeze, 16)
    with pytest.raises(ValueError, match=f"has {least - 1} samples, and this model needs {least};"):
        backbone.features(torch.randn(1, least - 1), torch.tensor([least - 1]))
    with pytest.raises(ValueError, match=f"has {least - 1} samples, and this model needs {least};"):
        backbone.features(torch.randn(2, 8000), torch.tensor([8000, least - 1]))


@pytest.mark.parametrize("num_samples", [1, 399, 400])
@pytest.mark.parametrize("name", LOG_MEL_MODELS)
def test_settings_agree_with_a_cnn_gru_on_utterances_shorter_than_one_window(name: str, num_samples: int) -> None:
    """A log-mel front-end pads such an utterance to one window: the model takes it, and returns one frame."""
    config = LOG_MEL_MODELS[name]
    backbone = backbone_of(config)
    try:
        frames = frames_of(backbone, num_samples)
    except ValueError:
        frames = 0
    assert config.num_frames(num_samples) == frames
    assert (num_samples >= config.min_samples) == (frames > 0)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_alone_is_its_settings(name: str) -> None:
    assert MODELS.validate_python({"preset": name}) == PRESETS[name].with_(preset=name)


@pytest.mark.parametrize(
    "given",
    [
        *[{"preset": name} for name in PRESETS],
        {"preset": "sew_d_tiny", "width": 512},
        {"preset": "sew_tiny", "extractor": {"kind": "filter_bank"}, "projection": {"kind": "linear"}},
        {"preset": "sew_tiny", "attention": {"kind": "disentangled", "buckets": 64}, "heads": 4},
        {"preset": "cnn_gru_3x5", "variant": "compat"},
        {"kind": "transformer", "squeeze": 3},
    ],
    ids=str,
)
def test_expansion_is_idempotent(given: dict[str, Any]) -> None:
    once = MODELS.validate_python(given)
    assert MODELS.validate_python(MODELS.dump_python(once)) == once
    assert MODELS.validate_json(MODELS.dump_json(once)) == once
    assert MODELS.validate_python(once) == once


def test_what_is_given_beside_a_preset_replaces_its_own() -> None:
    config = MODELS.validate_python({"preset": "sew_d_mid", "layers": 6, "position_kernel": 63})
    assert (config.layers, config.position_kernel) == (6, 63)
    assert config == PRESETS["sew_d_mid"].with_(preset="sew_d_mid", layers=6, position_kernel=63)


def test_a_nested_setting_leaves_its_neighbours_as_the_preset_has_them() -> None:
    given = {"preset": "sew_d_mid", "dropout": {"hidden": 0.3}, "extractor": {"norm": "layer"}, "quantiser": {"dim": 8}}
    config, preset = MODELS.validate_python(given), PRESETS["sew_d_mid"]
    assert isinstance(preset, TransformerConfig)
    assert config.dropout == preset.dropout.with_(hidden=0.3)
    assert config.dropout.layer == 0.2
    assert config.extractor == WaveExtractorConfig(channels=64, compact=True, norm="layer")
    assert config.quantiser == preset.quantiser.with_(dim=8)


def test_a_part_of_another_kind_takes_nothing_from_the_part_that_it_replaces() -> None:
    config = MODELS.validate_python({"preset": "sew_tiny", "extractor": {"kind": "filter_bank", "mel_bins": 40}})
    assert config.extractor == FilterBankExtractorConfig(mel_bins=40)
    other = MODELS.validate_python({"preset": "sew_tiny", "attention": {"kind": "disentangled"}})
    assert other.attention == DisentangledAttentionConfig()
    assert other.family == "sew_d"
    assert ctc_parameters(other, 32) == ctc_parameters(PRESETS["sew_d_small"], 32)


def test_fields_of_a_replaced_part_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"filter_bank\.compact"):
        MODELS.validate_python({"preset": "sew_tiny", "extractor": {"kind": "filter_bank", "compact": True}})


def test_heads_and_feed_forward_follow_the_width() -> None:
    narrow, wide = (MODELS.validate_python({"preset": "sew_d_tiny", "width": width}) for width in (384, 512))
    assert (narrow.num_heads, narrow.inner_width) == (6, 1536)
    assert (wide.num_heads, wide.inner_width) == (8, 2048)
    assert ctc_parameters(wide, 32) == TRANSFORMERS["sew_d_small"][0]


def test_heads_that_are_given_stay_when_the_width_changes() -> None:
    config = MODELS.validate_python({"preset": "sew_d_tiny", "width": 512, "heads": 4, "feedforward_width": 100})
    assert (config.num_heads, config.inner_width) == (4, 100)


@pytest.mark.parametrize("name", ["nope", 3])
def test_an_unknown_preset_is_refused_with_those_that_exist(name: Any) -> None:
    with pytest.raises(ValidationError) as error:
        MODELS.validate_python({"preset": name})
    assert f"no preset {name!r}" in str(error.value)
    assert all(known in str(error.value) for known in PRESETS)


def test_a_preset_that_is_no_name_at_all_is_refused_like_an_unknown_one() -> None:
    with pytest.raises(ValidationError):
        MODELS.validate_python({"preset": ["sew_tiny", "sew_small"]})


def test_a_kind_other_than_the_presets_is_refused() -> None:
    with pytest.raises(ValidationError, match="preset 'sew_tiny' is of kind 'transformer', got kind 'cnn_gru'"):
        MODELS.validate_python({"preset": "sew_tiny", "kind": "cnn_gru"})
    assert MODELS.validate_python({"preset": "sew_tiny", "kind": "transformer"}).kind == "transformer"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 500}, "width must be a multiple of 64, the size of a head, or set heads; got 500"),
        ({"heads": 5}, "width 512 is not a multiple of heads 5"),
        ({"width": 520, "heads": 8}, "width must be a multiple of position_groups, got 520 and 16"),
        ({"position_groups": 48}, "width must be a multiple of position_groups, got 512 and 48"),
        ({"norm_first": True}, "norm_first does not go with squeeze"),
        ({"norm_first": True, "squeeze": 1, "attention": {"kind": "disentangled"}}, "norm_first does not go with dis"),
        ({"attention": {"kind": "disentangled", "max_distance": 129}}, "buckets / 2 .*got 129 and 256"),
        ({"widht": 512}, r"transformer\.widht"),
        ({"extractor": {"channel": 4}}, r"transformer\.extractor\.wave\.channel"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MODELS.validate_python({"preset": "sew_tiny", **given})
