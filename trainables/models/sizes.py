"""How many numbers a model is made of, in closed form. Needs no torch.

Every function counts exactly what the modules of the same name have.
"""

from __future__ import annotations

import itertools
from typing import Literal

from trainables.models.config import (
    MEL_WINDOW,
    CnnGruConfig,
    CompactCnnGruConfig,
    DisentangledAttentionConfig,
    FilterBankExtractorConfig,
    MlpProjectionConfig,
    ProjectionConfig,
    TransformerConfig,
    WaveExtractorConfig,
)
from trainables.models.presets import ModelConfig

Part = Literal["backbone", "ctc_head", "self_supervised_head"]
SelfSupervision = Literal["contrastive", "cpc"]

COMPACT_KERNEL = 5  # of the convolutions of the compact CNN-GRU


def num_parameters(
    model: ModelConfig, part: Part, num_symbols: int, self_supervision: SelfSupervision = "contrastive"
) -> int:
    """Parameters of a part of the acoustic model, the blank counted among the symbols."""
    if part == "backbone":
        return _backbone(model)
    if part == "ctc_head":
        return _ctc_head(model, num_symbols)
    return _contrastive_head(model) if self_supervision == "contrastive" else _cpc_head(model)


def num_constants(model: ModelConfig, part: Part, self_supervision: SelfSupervision = "contrastive") -> int:
    """Numbers that are stored with the part beside its parameters: a mel filter bank, statistics of batch norms."""
    if part == "backbone":
        mel_bins = _mel_bins(model)
        return MEL_WINDOW + (MEL_WINDOW // 2 + 1) * mel_bins if mel_bins else 0
    projection = model.projection
    if part == "self_supervised_head" and self_supervision == "contrastive":
        return 2 * (2 * projection.hidden_width + 1) if isinstance(projection, MlpProjectionConfig) else 0
    return 0


def num_extractor_parameters(model: ModelConfig) -> int:
    """Parameters of the backbone that do not learn where the extractor is frozen."""
    if isinstance(model, TransformerConfig):
        return _extractor(model.extractor)
    if isinstance(model, CnnGruConfig):
        return _convolution(1, model.channels, 3 * 3)
    width = model.cnn_width
    return _compact_convolution(model.mel_bins, width) + (1 + model.cnn_layers) * _compact_convolution(width, width)


def _backbone(model: ModelConfig) -> int:
    if isinstance(model, TransformerConfig):
        return _transformer(model)
    if isinstance(model, CnnGruConfig):
        return _cnn_gru(model)
    return _compact_cnn_gru(model)


def _ctc_head(model: ModelConfig, num_symbols: int) -> int:
    width = _context_width(model)
    if isinstance(model, CnnGruConfig):
        return _linear(width, 2 * width) + _linear(2 * width, num_symbols)
    return _linear(width, num_symbols)


def _contrastive_head(model: ModelConfig) -> int:
    quantiser, projection = model.quantiser, model.projection
    logits = _linear(_feature_width(model), quantiser.codebooks * quantiser.entries)
    codewords = quantiser.entries * quantiser.dim
    context = _projection(projection, _context_width(model), quantiser.dim)
    return logits + codewords + context + _projection(projection, quantiser.dim, quantiser.dim)


def _cpc_head(model: ModelConfig) -> int:
    width = model.quantiser.dim
    return _linear(_context_width(model), width) + _linear(width, width) + _linear(_feature_width(model), width)


def _transformer(model: TransformerConfig) -> int:
    width, feature_width = model.width, model.extractor.width
    total = num_extractor_parameters(model) + _norm(feature_width)
    if feature_width != width:
        total += _linear(feature_width, width)
    total += width  # the vector that stands for masked frames
    total += width * (width // model.position_groups) * model.position_kernel + width + model.position_kernel
    if isinstance(model.attention, DisentangledAttentionConfig):
        total += 2 * model.attention.buckets * width
    total += _norm(width)  # of the relative positions, or else of the context network
    total += model.layers * _layer(model)
    return total + (_linear(width, model.squeeze * width) if model.squeeze > 1 else 0)


def _layer(model: TransformerConfig) -> int:
    width, inner = model.width, model.inner_width
    return _attention(width) + _linear(width, inner) + _linear(inner, width) + 2 * _norm(width)


def _extractor(extractor: WaveExtractorConfig | FilterBankExtractorConfig) -> int:
    if isinstance(extractor, FilterBankExtractorConfig):
        channels, half = extractor.channels, (extractor.mel_bins - 2 - 3) // 2 + 1
        convolutions = _convolution(1, channels, 3 * 3) + _convolution(channels, channels, 3 * 3)
        return convolutions + _linear(channels * half, extractor.width)
    total, in_channels = 0, 1
    for index, (channels, kernel, _) in enumerate(extractor.layers):
        total += in_channels * channels * kernel
        if extractor.norm == "layer":
            total += channels + _norm(channels)  # a bias, and the norm
        elif index == 0:
            total += _norm(channels)
        in_channels = channels
    return total


def _cnn_gru(model: CnnGruConfig) -> int:
    width = model.gru_width
    total = num_extractor_parameters(model) + model.cnn_layers * _cnn_layer(model)
    total += _linear(_feature_width(model), width) + _norm(width) + _gru(width, width)
    return total + (model.gru_layers - 1) * (_norm(2 * width) + _gru(2 * width, width))


def _cnn_layer(model: CnnGruConfig) -> int:
    channels, inner = model.channels, 2 * model.channels
    widths = (channels, inner, inner, inner, channels)
    convolutions = sum(_convolution(i, o, 3 * 3) for i, o in itertools.pairwise(widths))
    return _attention(channels) + 4 * _norm(_stem_bins(model)) + convolutions


def _compact_cnn_gru(model: CompactCnnGruConfig) -> int:
    width, hidden = model.cnn_width, model.gru_width
    total = num_extractor_parameters(model) + _norm(width) + width  # the vector that stands for masked frames
    total += _gru(width, hidden) + (model.gru_layers - 1) * _gru(2 * hidden, hidden)
    return total + model.gru_layers * _norm(2 * hidden)


def _feature_width(model: ModelConfig) -> int:
    if isinstance(model, TransformerConfig):
        return model.extractor.width
    return _stem_bins(model) * model.channels if isinstance(model, CnnGruConfig) else model.cnn_width


def _context_width(model: ModelConfig) -> int:
    return model.width if isinstance(model, TransformerConfig) else 2 * model.gru_width


def _stem_bins(model: CnnGruConfig) -> int:
    return (model.mel_bins - 1) // 2 + 1


def _mel_bins(model: ModelConfig) -> int:
    """0 where the model hears the waveform."""
    source = model.extractor if isinstance(model, TransformerConfig) else model
    return 0 if isinstance(source, WaveExtractorConfig) else source.mel_bins


def _projection(projection: ProjectionConfig, in_width: int, width: int) -> int:
    if not isinstance(projection, MlpProjectionConfig):
        return _linear(in_width, width)
    hidden = projection.hidden_width
    return in_width * hidden + _norm(hidden) + _linear(hidden, width)


def _linear(in_width: int, width: int) -> int:
    return in_width * width + width


def _convolution(in_channels: int, channels: int, kernel: int) -> int:
    return in_channels * channels * kernel + channels


def _compact_convolution(in_width: int, width: int) -> int:
    return _convolution(in_width, width, COMPACT_KERNEL) + _norm(width)


def _norm(width: int) -> int:
    return 2 * width


def _attention(width: int) -> int:
    return _linear(width, 3 * width) + _linear(width, width)


def _gru(in_width: int, width: int) -> int:
    """Two directions of three gates, with two biases each."""
    return 2 * 3 * (in_width * width + width * width + 2 * width)
