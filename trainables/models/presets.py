"""Named models. A preset fills in numbers; the difference between two presets reads like that of their papers.

A sweep names one as `model: {preset: sew_d_tiny}`, and may set or search any other field beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from trainables.config import merge, preset_named
from trainables.models.config import (
    CnnGruConfig,
    CompactCnnGruConfig,
    DisentangledAttentionConfig,
    DropoutConfig,
    FilterBankExtractorConfig,
    MlpProjectionConfig,
    QuantiserConfig,
    TransformerConfig,
    WaveExtractorConfig,
)

# wav2vec 2.0: P-SEW Table 1, and Baevski et al. (arXiv:2006.11477) for base and large.
W2V2_BASE = TransformerConfig()
W2V2_LARGE = W2V2_BASE.with_(
    width=1024,
    layers=24,
    dropout=DropoutConfig(hidden=0, attention=0, input=0, features=0, layer=0),
    quantiser=QuantiserConfig(dim=768),
)
W2V2_LARGE_LV60 = W2V2_LARGE.with_(
    extractor=WaveExtractorConfig(norm="layer"), norm_first=True, normalise_waveform=True
)


def _w2v2(channels: int) -> TransformerConfig:
    """One width throughout, so that nothing is projected between extractor and context network."""
    return W2V2_BASE.with_(extractor=WaveExtractorConfig(channels=channels), width=channels)


def _squeezed(channels: int, width: int, *, compact: bool = True, kernel: int = 128) -> TransformerConfig:
    """wav2vec 2.0 whose context network runs at half the frame rate (P-SEW Table 6)."""
    extractor = WaveExtractorConfig(channels=channels, compact=compact)
    return W2V2_BASE.with_(extractor=extractor, width=width, squeeze=2, position_kernel=kernel)


def _sew(
    channels: int, width: int, layers: int = 12, *, layer_drop: float = 0.05, kernel: int = 31
) -> TransformerConfig:
    """SEW: squeezed, compact extractor, MLP projections."""
    return _squeezed(channels, width, kernel=kernel).with_(
        layers=layers, projection=MlpProjectionConfig(), dropout=DropoutConfig(layer=layer_drop)
    )


def _sew_d(sew: TransformerConfig) -> TransformerConfig:
    return sew.with_(attention=DisentangledAttentionConfig())


PRESETS: dict[str, TransformerConfig | CnnGruConfig | CompactCnnGruConfig] = {
    "w2v2_tiny": _w2v2(256),
    "w2v2_small": _w2v2(384),
    "w2v2_mid": _w2v2(512),
    "w2v2_base": W2V2_BASE,
    "w2v2_large": W2V2_LARGE,
    "w2v2_large_lv60": W2V2_LARGE_LV60,
    # P-SEW Table 6, rows 3 to 6: from wav2vec 2.0 to SEW, a step a row.
    "sq_w2v_e384_o256": _squeezed(256, 384, compact=False),
    "sq_w2v_e384_c96": _squeezed(96, 384),
    "sq_w2v_e512_c48": _squeezed(48, 512),
    "sq_w2v_e512_c64": _squeezed(64, 512, kernel=31),
    "sew_tiny": _sew(64, 512),
    "sew_small": _sew(64, 768),
    "sew_mid": _sew(64, 768, 24, layer_drop=0.2),
    "sew_tiny_fbfe": _sew(64, 512).with_(extractor=FilterBankExtractorConfig()),
    "sew_d_tiny": _sew_d(_sew(64, 384)),
    "sew_d_small": _sew_d(_sew(64, 512)),
    "sew_d_mid": _sew_d(_sew(64, 512, 24, layer_drop=0.2)),
    "sew_d_mid_k127": _sew_d(_sew(64, 512, 24, layer_drop=0.2, kernel=127)),
    "sew_d_base": _sew_d(_sew(64, 768, 24, layer_drop=0.2)),
    "sew_d_base_plus": _sew_d(_sew(96, 768, 24, layer_drop=0.2)),
    # P-BLJ Table 2: convolutional x recurrent layers.
    **{f"cnn_gru_{c}x{r}": CnnGruConfig(cnn_layers=c, gru_layers=r) for r in (4, 5, 6) for c in (2, 3, 4)},
    "compact_cnn_gru": CompactCnnGruConfig(),
}

# What a reader should know beside the numbers.
NOTES = {
    "w2v2_small": "P-SEW Table 1 prints 24.8 M; this is 24.9 M, and the cause is not known",
    "sew_tiny_fbfe": "the front-end's code was never published; derived from the paper's count",
    "sew_small": "in P-SEW's repository only",
    "sew_mid": "in P-SEW's repository only",
    "sew_d_mid_k127": "in P-SEW's repository only",
    "w2v2_large": "no dropout, as in fairseq's file for Libri-Light; the paper's on LibriSpeech: 0.1, and layers 0.2",
    "w2v2_large_lv60": "also the architecture of XLSR-53 and XLS-R-300M",
    "compact_cnn_gru": "this project's own, for machines without an accelerator",
}


def fill_in(given: Any) -> Any:
    """The settings of the preset that is named, with what is given laid over them. Raises ValueError."""
    name = given.get("preset") if isinstance(given, Mapping) else None
    if name is None:
        return given
    preset = preset_named(PRESETS, name).model_dump(exclude_none=True)
    if given.get("kind", preset["kind"]) != preset["kind"]:
        raise ValueError(f"preset {name!r} is of kind {preset['kind']!r}, got kind {given['kind']!r}; leave kind out")
    return merge(preset, given)


ModelConfig = Annotated[
    Annotated[TransformerConfig | CnnGruConfig | CompactCnnGruConfig, Field(discriminator="kind")],
    BeforeValidator(fill_in),
]
