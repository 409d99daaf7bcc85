"""The compact CNN-GRU backbone, for machines without an accelerator.

Legend: B utterances, S samples, T frames (40 ms apart), D width of the features, C width of the context.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.models.config import CompactCnnGruConfig
from trainables.models.extractors import LogMel
from trainables.models.frames import frame_mask, refuse_short
from trainables.models.recurrent import BidirectionalGru


class ConvLayer(nn.Module):
    """Conv1d -> LayerNorm over channels -> GELU; frames beyond the utterance are zero, as its own padding would be."""

    def __init__(self, in_width: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_width, width, kernel_size=5, stride=stride, padding=2)
        self.norm = nn.LayerNorm(width)
        self.stride = stride

    def forward(self, x_BDT: Tensor, num_frames_B: Tensor) -> tuple[Tensor, Tensor]:
        y_BDT = self.conv(x_BDT)
        y_BDT = F.gelu(self.norm(y_BDT.transpose(1, 2)).transpose(1, 2))
        num_frames_B = (num_frames_B - 1) // self.stride + 1
        return y_BDT * frame_mask(num_frames_B, y_BDT.shape[2], y_BDT.device)[:, None], num_frames_B


class CompactCnnGru(nn.Module):
    """Backbone: `features` (local) and `context` (whole utterance). Padding never changes a valid frame."""

    def __init__(self, config: CompactCnnGruConfig) -> None:
        super().__init__()
        width = config.cnn_width
        self.config = config
        self.feature_width = self.mask_width = width
        self.context_width = 2 * config.gru_width
        self.log_mel = LogMel(config.mel_bins)
        self.subsample = nn.ModuleList([ConvLayer(config.mel_bins, width, stride=2), ConvLayer(width, width, stride=2)])
        self.residual = nn.ModuleList([ConvLayer(width, width, stride=1) for _ in range(config.cnn_layers)])
        self.feature_norm = nn.LayerNorm(width)
        self.mask_embedding = nn.Parameter(torch.empty(width).uniform_())
        self.gru = nn.ModuleList(
            BidirectionalGru(width if i == 0 else self.context_width, config.gru_width)
            for i in range(config.gru_layers)
        )
        self.context_norm = nn.ModuleList([nn.LayerNorm(self.context_width) for _ in range(config.gru_layers)])
        self.dropout = nn.Dropout(config.dropout)

    def features(self, waveform_BS: Tensor, num_samples_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) waveform -> (B, T, D) features before normalisation, and the (B,) valid frames, on the CPU.

        Raises ValueError for an utterance that is shorter than one frame.
        """
        refuse_short(num_samples_B, self.config.min_samples)
        x_BDT, num_frames_B = self.log_mel(waveform_BS, num_samples_B)
        for layer in self.subsample:
            x_BDT, num_frames_B = layer(x_BDT, num_frames_B)
        for layer in self.residual:
            y_BDT, num_frames_B = layer(x_BDT, num_frames_B)
            x_BDT = x_BDT + y_BDT
        return x_BDT.transpose(1, 2), num_frames_B

    @property
    def extractor_modules(self) -> list[nn.Module]:
        """What `features` is made by: frozen when the extractor is."""
        return [self.subsample, self.residual]

    def compile_layers(self) -> None:
        """Compile what is repeated, for utterances of any length."""
        for layer in self.residual:
            layer.compile(dynamic=True)

    def context(
        self,
        features_BTD: Tensor,
        num_frames_B: Tensor,
        mask_BT: Tensor | None = None,
        channel_mask_BD: Tensor | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """(B, T, D) normalised features -> (B, T, C).

        Channels in `channel_mask_BD` become zero, then frames in `mask_BT` a learnt vector. `seed` is not used.
        """
        x_BTD = features_BTD
        if channel_mask_BD is not None:
            x_BTD = x_BTD.masked_fill(channel_mask_BD[:, None], 0.0)
        if mask_BT is not None:
            x_BTD = torch.where(mask_BT[..., None], self.mask_embedding.to(x_BTD.dtype), x_BTD)
        for gru, norm in zip(self.gru, self.context_norm, strict=True):
            y_BTC = norm(gru(self.dropout(x_BTD), num_frames_B))
            x_BTD = x_BTD + y_BTC if x_BTD.shape == y_BTC.shape else y_BTC
        context_BTC: Tensor = self.dropout(x_BTD)
        return context_BTC
