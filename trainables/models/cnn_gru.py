"""The CNN-GRU ("CNN-LSTM") of P-BLJ, in two variants of the same weights.

Legend: B utterances, S samples, M mel bins after the stem, T frames (20 ms apart), C channels, D = M x C width of the
features, E width between the recurrent layers.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.models.attention import StandardAttention
from trainables.models.config import CnnGruConfig
from trainables.models.extractors import LogMel
from trainables.models.frames import frame_mask, refuse_short
from trainables.models.linear import Linear
from trainables.models.recurrent import BidirectionalGru

HEADS = 8
MAX_ROWS = 65_535


class CnnLayer(nn.Module):
    """Attention, then four times LayerNorm over the mel axis -> GELU -> dropout -> Conv2d, and a residual around all.

    `fixed` attends over the mel bins of a frame, so that a layer stays local in time and its cost linear in the
    utterance. The published code (`compat`) attends over the utterances of the batch.
    """

    def __init__(self, channels: int, mel_bins: int, dropout: float, *, compat: bool) -> None:
        super().__init__()
        inner = 2 * channels
        widths = (channels, inner, inner, inner, channels)
        self.compat = compat
        self.attention = StandardAttention(channels, HEADS, dropout=0.0)
        self.norms = nn.ModuleList([nn.LayerNorm(mel_bins) for _ in range(4)])
        self.convs = nn.ModuleList([nn.Conv2d(i, o, 3, padding=1) for i, o in itertools.pairwise(widths)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BCMT: Tensor, valid_B11T: Tensor) -> Tensor:
        y_BCMT = self._attend(x_BCMT)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y_BCMT = self.dropout(F.gelu(norm(y_BCMT.transpose(2, 3)).transpose(2, 3)))
            y_BCMT = conv(y_BCMT if self.compat else y_BCMT * valid_B11T)
        return x_BCMT + y_BCMT

    def _attend(self, x_BCMT: Tensor) -> Tensor:
        B, M, T = len(x_BCMT), *x_BCMT.shape[2:]
        if self.compat:
            y_NBC = self._attention(x_BCMT.flatten(2).permute(2, 0, 1))
            return y_NBC.permute(1, 2, 0).reshape(B, -1, M, T)
        y_NMC = self._attention(x_BCMT.permute(0, 3, 2, 1).flatten(0, 1))
        return y_NMC.view(B, T, M, -1).permute(0, 3, 2, 1)

    def _attention(self, x_NLC: Tensor) -> Tensor:
        """In shares of N, for CUDA's fused kernels take no more rows."""
        return torch.cat([self.attention(share, None) for share in torch.split(x_NLC, MAX_ROWS)])


class GruLayer(nn.Module):
    """LayerNorm -> GELU -> bidirectional GRU -> dropout."""

    def __init__(self, in_width: int, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_width)
        self.gru = BidirectionalGru(in_width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTE: Tensor, num_frames_B: Tensor | None, *, across_batch: bool = False) -> Tensor:
        """None for `num_frames_B` runs over padding too; `across_batch` takes the batch for time, as `compat` does."""
        x_BTE = F.gelu(self.norm(x_BTE))
        y_BTE = self.gru(x_BTE.transpose(0, 1)).transpose(0, 1) if across_batch else self.gru(x_BTE, num_frames_B)
        dropped_BTE: Tensor = self.dropout(y_BTE)
        return dropped_BTE


class CnnGru(nn.Module):
    """Backbone: `features` is the stem's output, `context` all the rest, so that a masked frame is hidden from it.

    There is no weight in it that the published model lacks: features are not normalised, and masked ones become zero.
    With `fixed`, padding never changes a valid frame; with `compat` it does, and so do the utterances beside it.
    """

    def __init__(self, config: CnnGruConfig) -> None:
        super().__init__()
        self.config = config
        self.mel_bins = (config.mel_bins - 1) // 2 + 1
        self.feature_width = self.mask_width = self.mel_bins * config.channels
        self.context_width = 2 * config.gru_width
        self.log_mel = LogMel(config.mel_bins)
        self.stem = nn.Conv2d(1, config.channels, 3, stride=2, padding=1)
        self.feature_norm = nn.Identity()
        compat = config.variant == "compat"
        self.cnn = nn.ModuleList(
            [CnnLayer(config.channels, self.mel_bins, config.dropout, compat=compat) for _ in range(config.cnn_layers)]
        )
        self.project = Linear(self.feature_width, config.gru_width)
        widths = [config.gru_width] + [self.context_width] * (config.gru_layers - 1)
        self.gru = nn.ModuleList([GruLayer(width, config.gru_width, config.dropout) for width in widths])

    def features(self, waveform_BS: Tensor, num_samples_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) waveform -> (B, T, D) features, the channels of a mel bin side by side, and the (B,) valid frames.

        Raises ValueError for an utterance that is shorter than one frame.
        """
        refuse_short(num_samples_B, self.config.min_samples)
        mel_BMT, num_frames_B = self.log_mel(waveform_BS, num_samples_B)
        x_BCMT = self.stem(mel_BMT[:, None])
        return x_BCMT.permute(0, 3, 2, 1).flatten(2), (num_frames_B - 1) // 2 + 1

    @property
    def extractor_modules(self) -> list[nn.Module]:
        """What `features` is made by: frozen when the extractor is."""
        return [self.stem]

    def compile_layers(self) -> None:
        """Compile what is repeated, for utterances of any length."""
        for layer in self.cnn:
            layer.compile(dynamic=True)

    def context(
        self,
        features_BTD: Tensor,
        num_frames_B: Tensor,
        mask_BT: Tensor | None = None,
        channel_mask_BD: Tensor | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """(B, T, D) features -> (B, T, 2 x GRU width). Masked frames and channels are zero. `seed` is not used."""
        if mask_BT is not None:
            features_BTD = features_BTD.masked_fill(mask_BT[..., None], 0.0)
        if channel_mask_BD is not None:
            features_BTD = features_BTD.masked_fill(channel_mask_BD[:, None], 0.0)
        compat = self.config.variant == "compat"
        x_BCMT = features_BTD.reshape(*features_BTD.shape[:2], self.mel_bins, -1).permute(0, 3, 2, 1)
        valid_B11T = frame_mask(num_frames_B, x_BCMT.shape[3], x_BCMT.device)[:, None, None]
        for layer in self.cnn:
            x_BCMT = layer(x_BCMT, valid_B11T)
        x_BTE: Tensor = self.project(x_BCMT.flatten(1, 2).transpose(1, 2))
        for index, gru in enumerate(self.gru):
            x_BTE = gru(x_BTE, None if compat else num_frames_B, across_batch=compat and index > 0)
        return x_BTE


class CnnGruClassifier(nn.Sequential):
    """The published model's CTC head: Linear -> GELU -> dropout -> Linear."""

    def __init__(self, config: CnnGruConfig, num_symbols: int) -> None:
        width = 2 * config.gru_width
        super().__init__(
            Linear(width, 2 * width), nn.GELU(), nn.Dropout(config.dropout), Linear(2 * width, num_symbols)
        )
