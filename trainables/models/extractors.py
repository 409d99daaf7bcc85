"""Feature extractors: from a waveform to local features, usually 20 ms apart.

Legend: B utterances, S samples, M mel bins, C channels, T frames, D width of the features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor, nn

from trainables.data.config import SAMPLE_RATE_HZ
from trainables.models.config import MEL_HOP, MEL_WINDOW, FilterBankExtractorConfig, WaveExtractorConfig
from trainables.models.frames import count_frames, frame_mask, full_precision
from trainables.models.linear import Linear

CHUNK_SAMPLES = 20 * SAMPLE_RATE_HZ  # that a wave extractor takes at a time when no gradient is wanted


def gelu(x: Tensor) -> Tensor:
    """GELU of a tensor that nothing else uses: in its place where no gradient needs the input."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.gelu(x)
    in_place: Tensor = torch.ops.aten.gelu_(x)
    return in_place


class LogMel(nn.Module):
    """Log-mel filter bank, normalised to zero mean and unit variance per utterance and bin over its valid frames."""

    def __init__(self, mel_bins: int) -> None:
        super().__init__()
        # Not centred: every frame lies inside its own utterance, so padding cannot change it.
        with torch.device("cpu"):  # torchaudio looks at values, which a model on the meta device does not have
            self.mel = torchaudio.transforms.MelSpectrogram(
                SAMPLE_RATE_HZ, n_fft=MEL_WINDOW, hop_length=MEL_HOP, n_mels=mel_bins, center=False
            )

    def forward(self, waveform_BS: Tensor, num_samples_B: Tensor) -> tuple[Tensor, Tensor]:
        with full_precision():  # a spectrum's range is too wide for 16 bits
            mel_BMT = self.mel(waveform_BS.float()).add(1e-6).log()
        num_frames_B = count_frames(((MEL_WINDOW, MEL_HOP, 0),), num_samples_B)
        valid_B1T = frame_mask(num_frames_B, mel_BMT.shape[2], mel_BMT.device)[:, None]
        mean, variance = masked_moments(mel_BMT, valid_B1T)
        return (mel_BMT - mean) / (variance + 1e-5).sqrt() * valid_B1T, num_frames_B


def masked_moments(x_BCT: Tensor, valid_B1T: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, 1) mean and variance over the valid frames."""
    count_B11 = valid_B1T.sum(2, keepdim=True).clamp(min=1)
    mean_BC1 = (x_BCT * valid_B1T).sum(2, keepdim=True) / count_B11
    variance_BC1 = ((x_BCT - mean_BC1).square() * valid_B1T).sum(2, keepdim=True) / count_B11
    return mean_BC1, variance_BC1


class WaveExtractor(nn.Module):
    """WFE-O and WFE-C: convolutions without padding, each followed by GELU, the first or all of them normalised."""

    def __init__(self, config: WaveExtractorConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList()
        in_channels = 1
        for index, (channels, kernel, stride) in enumerate(config.layers):
            norm: nn.Module
            if config.norm == "layer":
                norm = nn.LayerNorm(channels)
            else:
                norm = nn.GroupNorm(channels, channels) if index == 0 else nn.Identity()
            conv = nn.Conv1d(in_channels, channels, kernel, stride, bias=config.norm == "layer")
            nn.init.kaiming_normal_(conv.weight)
            self.layers.append(nn.ModuleDict({"conv": conv, "norm": norm}))
            in_channels = channels

    def forward(self, waveform_BS: Tensor, num_samples_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) features and the (B,) valid frames."""
        num_frames_B = count_frames(self.config.geometry, num_samples_B)
        if torch.is_grad_enabled():
            return self._convolve(waveform_BS, num_samples_B), num_frames_B
        # Most memory of a forward pass is here; without gradients, a few utterances at a time need only their share.
        rows = max(1, CHUNK_SAMPLES // waveform_BS.shape[1])
        chunks = zip(torch.split(waveform_BS, rows), torch.split(num_samples_B, rows), strict=True)
        return torch.cat([self._convolve(*chunk) for chunk in chunks]), num_frames_B

    def _convolve(self, waveform_BS: Tensor, num_samples_B: Tensor) -> Tensor:
        x_BCT = waveform_BS[:, None]
        for index, layer in enumerate(self.layers):
            x_BCT = layer["conv"](x_BCT)  # type: ignore[index]
            norm = layer["norm"]  # type: ignore[index]
            if self.config.norm == "layer":
                x_BCT = norm(x_BCT.transpose(1, 2)).transpose(1, 2)
            elif index == 0:
                x_BCT = self._group_norm(norm, x_BCT, num_samples_B)
            x_BCT = gelu(x_BCT)
        return x_BCT.transpose(1, 2)

    def _group_norm(self, norm: nn.GroupNorm, x_BCT: Tensor, num_samples_B: Tensor) -> Tensor:
        if not self.config.masked_statistics:
            return F.group_norm(x_BCT.float(), norm.num_groups, norm.weight, norm.bias, norm.eps)
        num_frames_B = count_frames(self.config.geometry[:1], num_samples_B)
        valid_B1T = frame_mask(num_frames_B, x_BCT.shape[2], x_BCT.device)[:, None]
        mean, variance = masked_moments(x_BCT.float(), valid_B1T)
        scale = norm.weight[:, None] * (variance + norm.eps).rsqrt()
        return (x_BCT - mean) * scale + norm.bias[:, None]


class FilterBankExtractor(nn.Module):
    """FBFE: log-mel, two convolutions over time and frequency, the second of stride 2, and a linear layer."""

    def __init__(self, config: FilterBankExtractorConfig) -> None:
        super().__init__()
        self.config = config
        self.log_mel = LogMel(config.mel_bins)
        self.conv1 = nn.Conv2d(1, config.channels, 3)
        self.conv2 = nn.Conv2d(config.channels, config.channels, 3, stride=2)
        self.project = Linear(config.channels * ((config.mel_bins - 2 - 3) // 2 + 1), config.width)

    def forward(self, waveform_BS: Tensor, num_samples_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) features and the (B,) valid frames."""
        mel_BMT, _ = self.log_mel(waveform_BS, num_samples_B)
        x_BCMT = F.gelu(self.conv2(F.gelu(self.conv1(mel_BMT[:, None]))))
        features_BTD = self.project(x_BCMT.flatten(1, 2).transpose(1, 2))
        return features_BTD, count_frames(self.config.geometry, num_samples_B)
