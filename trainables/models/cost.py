"""What a forward pass of a CTC model costs, in closed form. Needs no torch.

A multiply-add counts as two operations. Counted are matrix products and convolutions, attention's included; not
norms, activations and the Fourier transform.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainables.config import Config
from trainables.data.config import SAMPLE_RATE_HZ
from trainables.models.config import (
    MEL_HOP,
    MEL_WINDOW,
    CnnGruConfig,
    CompactCnnGruConfig,
    DisentangledAttentionConfig,
    FilterBankExtractorConfig,
    TransformerConfig,
    WaveExtractorConfig,
    bucket,
    frames_after,
)

UTTERANCE_SECONDS = 10.0  # attention makes the cost of a second depend on the utterance's length


@dataclass(frozen=True)
class ModelSize:
    """A preset: exact parameter counts, and the cost of a forward pass of its CTC model."""

    name: str
    outputs: int
    parameters_ctc: int
    parameters_pretraining: int
    frame_rate_hz: float
    flops_per_second: float
    note: str


def flops_per_second(model: Config, num_symbols: int) -> float:
    """Operations for a second of audio, in an utterance of 10 s."""
    num_samples = round(UTTERANCE_SECONDS * SAMPLE_RATE_HZ)
    if isinstance(model, TransformerConfig):
        total = _transformer(model, num_samples, num_symbols)
    elif isinstance(model, CnnGruConfig):
        total = _cnn_gru(model, num_samples, num_symbols)
    else:
        assert isinstance(model, CompactCnnGruConfig)
        total = _compact_cnn_gru(model, num_samples, num_symbols)
    return total / UTTERANCE_SECONDS


def _transformer(model: TransformerConfig, num_samples: int, num_symbols: int) -> float:
    width, frames = model.width, model.num_frames(num_samples)
    short = frames // model.squeeze
    total = _extractor(model.extractor, num_samples)
    if model.extractor.width != width:
        total += 2 * frames * model.extractor.width * width
    total += 2 * short * width * (width // model.position_groups) * model.position_kernel
    total += model.layers * _layer(model, short)
    if model.squeeze > 1:
        total += 2 * short * width * width * model.squeeze
    return total + 2 * frames * width * num_symbols


def _layer(model: TransformerConfig, frames: int) -> float:
    width = model.width
    projections = 2 * frames * width * (4 * width + 2 * model.inner_width)
    attention = 4 * frames * frames * width
    if isinstance(model.attention, DisentangledAttentionConfig):
        distances = min(2 * bucket(model.attention, frames - 1) + 1, 2 * model.attention.buckets)
        attention += 4 * frames * distances * width + 4 * distances * width * width
    return projections + attention


def _extractor(extractor: WaveExtractorConfig | FilterBankExtractorConfig, num_samples: int) -> float:
    if isinstance(extractor, FilterBankExtractorConfig):
        return _filter_bank(extractor, num_samples)
    total, in_channels = 0.0, 1
    for channels, kernel, stride in extractor.layers:
        num_samples = (num_samples - kernel) // stride + 1
        total += 2 * num_samples * in_channels * channels * kernel
        in_channels = channels
    return total


def _filter_bank(extractor: FilterBankExtractorConfig, num_samples: int) -> float:
    c, bins = extractor.channels, extractor.mel_bins - 2
    first, last = (frames_after(extractor.geometry[:n], num_samples) for n in (2, 3))
    half = (bins - 3) // 2 + 1
    mel = _mel(extractor.mel_bins, num_samples)
    return mel + 2 * (first * bins * c * 9 + last * half * c * c * 9 + last * half * c * extractor.width)


def _mel(bins: int, num_samples: int) -> float:
    return 2 * frames_after(((MEL_WINDOW, MEL_HOP, 0),), num_samples) * bins * (MEL_WINDOW // 2 + 1)


def _gru(in_width: int, width: int, frames: int) -> float:
    return 2 * frames * 2 * 3 * width * (in_width + width)  # two directions, three gates


def _cnn_gru(model: CnnGruConfig, num_samples: int, num_symbols: int) -> float:
    c, width, frames = model.channels, model.gru_width, model.num_frames(num_samples)
    bins = (model.mel_bins - 1) // 2 + 1
    convolutions = 9 * (2 * c * c + 4 * c * c + 4 * c * c + 2 * c * c)
    attention = 4 * c * c + 2 * bins * c
    total = _mel(model.mel_bins, num_samples) + 2 * frames * bins * 9 * c
    total += model.cnn_layers * 2 * frames * bins * (convolutions + attention)
    total += 2 * frames * bins * c * width
    total += _gru(width, width, frames) + (model.gru_layers - 1) * _gru(2 * width, width, frames)
    return total + 2 * frames * (2 * width * 4 * width + 4 * width * num_symbols)


def _compact_cnn_gru(model: CompactCnnGruConfig, num_samples: int, num_symbols: int) -> float:
    width, hidden = model.cnn_width, model.gru_width
    first, frames = (frames_after(model.geometry[:n], num_samples) for n in (2, 3))
    total = _mel(model.mel_bins, num_samples) + 2 * 5 * width * (first * model.mel_bins + frames * width)
    total += model.cnn_layers * 2 * 5 * frames * width * width
    total += _gru(width, hidden, frames) + (model.gru_layers - 1) * _gru(2 * hidden, hidden, frames)
    return total + 2 * frames * 2 * hidden * num_symbols
