"""The encoder of wav2vec 2.0, squeezed wav2vec 2.0, SEW and SEW-D: one set of parts.

Legend: B utterances, S samples, T frames, D width of the features, E width of the context network, s squeeze factor,
U = floor(T / s) frames of the context network.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from trainables.data.seeds import fold
from trainables.models.attention import DisentangledAttention, RelativeEmbeddings, RelativePositions, StandardAttention
from trainables.models.config import (
    DisentangledAttentionConfig,
    FilterBankExtractorConfig,
    TransformerConfig,
    WaveExtractorConfig,
)
from trainables.models.extractors import FilterBankExtractor, WaveExtractor, gelu
from trainables.models.frames import frame_mask, padding_mask, refuse_short
from trainables.models.linear import Linear

EXTRACTORS: dict[type, type[nn.Module]] = {
    WaveExtractorConfig: WaveExtractor,
    FilterBankExtractorConfig: FilterBankExtractor,
}


class ConvPositions(nn.Module):
    """Convolutional position embedding, at 1 / s of the frame rate: grouped, weight-normalised, GELU."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, kernel = config.width, config.position_kernel
        self.squeeze = config.squeeze
        conv = nn.Conv1d(width, width, kernel, self.squeeze, kernel // 2, groups=config.position_groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4 / (kernel * width)))
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.conv = parametrizations.weight_norm(conv, dim=2)

    def forward(self, x_BTE: Tensor) -> Tensor:
        """(B, T, E) -> (B, U, E): positions added to the input, or to its mean over each s frames (the shortcut)."""
        x_BET = x_BTE.transpose(1, 2)
        num_frames = x_BTE.shape[1] // self.squeeze
        positions_BEU = F.gelu(self._convolve(x_BET)[..., :num_frames])
        shortcut_BEU = F.avg_pool1d(x_BET, self.squeeze) if self.squeeze > 1 else x_BET
        return (shortcut_BEU + positions_BEU).transpose(1, 2)

    def _convolve(self, x_BET: Tensor) -> Tensor:
        """In fp32 on a CPU: the bf16 kernels of oneDNN for Intel AMX sum groups of 4, 8 or 12 channels wrongly."""
        if x_BET.dtype == torch.bfloat16 and x_BET.device.type == "cpu":
            x_BET = x_BET.float()
        with torch.autocast("cpu", enabled=False):
            convolved_BEU: Tensor = self.conv(x_BET)
        return convolved_BEU


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward with residuals, and a LayerNorm after each (post-LN) or before it (pre-LN)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, dropout = config.width, config.dropout
        disentangled = isinstance(config.attention, DisentangledAttentionConfig)
        epsilon = 1e-7 if disentangled else 1e-5
        self.norm_first = config.norm_first
        self.attention: StandardAttention
        self.activation_dropout: nn.Module
        if disentangled:
            # DeBERTa has no dropout inside the feed-forward; SEW-D gives `activation` to the places of `hidden`.
            self.attention = DisentangledAttention(width, config.num_heads, dropout.attention, dropout.activation)
            self.dropout = nn.Dropout(dropout.activation)
            self.activation_dropout = nn.Identity()
        else:
            self.attention = StandardAttention(width, config.num_heads, dropout.attention)
            self.dropout = nn.Dropout(dropout.hidden)
            self.activation_dropout = nn.Dropout(dropout.activation)
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.expand = Linear(width, config.inner_width)
        self.contract = Linear(config.inner_width, width)
        self.feedforward_norm = nn.LayerNorm(width, eps=epsilon)

    def forward(self, x_BUE: Tensor, valid_BU: Tensor | None, positions: RelativePositions | None) -> Tensor:
        if self.norm_first:
            x_BUE = x_BUE + self.dropout(self.attention(self.attention_norm(x_BUE), valid_BU, positions))
            z_BUE: Tensor = x_BUE + self.dropout(self._feedforward(self.feedforward_norm(x_BUE)))
            return z_BUE
        x_BUE = self.attention_norm(x_BUE + self.dropout(self.attention(x_BUE, valid_BU, positions)))
        y_BUE: Tensor = self.feedforward_norm(x_BUE + self.dropout(self._feedforward(x_BUE)))
        return y_BUE

    def _feedforward(self, x_BUE: Tensor) -> Tensor:
        y_BUE: Tensor = self.contract(self.activation_dropout(gelu(self.expand(x_BUE))))
        return y_BUE


class Transformer(nn.Module):
    """Backbone: `features` (local) and `context` (whole utterance).

    Padding changes no valid frame, except through the group norm of a wave extractor that has no `masked_statistics`:
    it normalises over time, padding included, as the published models do.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, feature_width = config.width, config.extractor.width
        self.config = config
        self.feature_width = feature_width
        self.mask_width = self.context_width = width
        self.extractor = EXTRACTORS[type(config.extractor)](config.extractor)
        self.feature_norm = nn.LayerNorm(feature_width)
        self.project = Linear(feature_width, width) if feature_width != width else nn.Identity()
        self.input_dropout = nn.Dropout(config.dropout.input)
        self.mask_embedding = nn.Parameter(torch.empty(width).uniform_())
        self.positions = ConvPositions(config)
        disentangled = isinstance(config.attention, DisentangledAttentionConfig)
        self.relative = RelativeEmbeddings(config.attention, width) if disentangled else None  # type: ignore[arg-type]
        self.norm = nn.Identity() if disentangled else nn.LayerNorm(width)  # before post-LN layers, after pre-LN ones
        self.dropout = nn.Identity() if disentangled else nn.Dropout(config.dropout.hidden)
        self.layers = nn.ModuleList([TransformerLayer(config) for _ in range(config.layers)])
        self.upsample = Linear(width, config.squeeze * width) if config.squeeze > 1 else None
        self._initialise(bert=not disentangled)

    def _initialise(self, *, bert: bool) -> None:
        if bert:  # fairseq's init_bert_params; SEW's code leaves the DeBERTa encoder as torch made it
            for module in self.layers.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)
        if self.upsample is not None:
            nn.init.kaiming_normal_(self.upsample.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(self.upsample.bias)

    def features(self, waveform_BS: Tensor, num_samples_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) waveform -> (B, T, D) features before normalisation, and the (B,) valid frames, on the CPU.

        Raises ValueError for an utterance that is shorter than the model can take.
        """
        refuse_short(num_samples_B, self.config.min_samples)
        if self.config.normalise_waveform:
            waveform_BS = normalise_waveform(waveform_BS, num_samples_B)
        features_BTD, num_frames_B = self.extractor(waveform_BS, num_samples_B)
        return features_BTD, num_frames_B

    def context(
        self,
        features_BTD: Tensor,
        num_frames_B: Tensor,
        mask_BT: Tensor | None = None,
        channel_mask_BE: Tensor | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """(B, T, D) normalised features -> (B, T, E).

        Frames in `mask_BT` are replaced by a learnt vector, then channels in `channel_mask_BE` by zero. In training,
        `seed` decides which layers LayerDrop leaves out: give the same one on every worker. None leaves out none.
        """
        x_BTE = self.input_dropout(self.project(features_BTD))
        if mask_BT is not None:
            x_BTE = torch.where(mask_BT[..., None], self.mask_embedding.to(x_BTE.dtype), x_BTE)
        if channel_mask_BE is not None:
            x_BTE = x_BTE.masked_fill(channel_mask_BE[:, None], 0.0)
        max_frames, device = x_BTE.shape[1], x_BTE.device
        padding_BT = padding_mask(num_frames_B, max_frames, device)
        if padding_BT is not None:
            x_BTE = x_BTE.masked_fill(padding_BT[..., None], 0.0)
        x_BUE = self.positions(x_BTE)
        if not self.config.norm_first:
            x_BUE = self.norm(x_BUE)
        x_BUE = self._layers(self.dropout(x_BUE), num_frames_B // self.config.squeeze, seed)
        if self.config.norm_first:
            x_BUE = self.norm(x_BUE)
        return x_BUE if self.upsample is None else self._upsampled(x_BUE, num_frames_B, max_frames)

    def _layers(self, x_BUE: Tensor, num_frames_B: Tensor, seed: int | None) -> Tensor:
        num_frames, device = x_BUE.shape[1], x_BUE.device
        padded = padding_mask(num_frames_B, num_frames, device) is not None
        valid_BU = frame_mask(num_frames_B, num_frames, device) if padded else None
        relative = self.relative(num_frames) if self.relative is not None else None
        for index, layer in enumerate(self.layers):
            if self.training and seed is not None and _dropped(seed, index, self.config.dropout.layer):
                unused = [*layer.parameters(), *(self.relative.parameters() if self.relative is not None else ())]
                x_BUE = _Unused.apply(x_BUE, *unused)
            else:
                x_BUE = layer(x_BUE, valid_BU, relative)
        return x_BUE

    def _upsampled(self, x_BUE: Tensor, num_frames_B: Tensor, max_frames: int) -> Tensor:
        """(B, U, E) -> (B, T, E). A last frame that fills no group of s is zero, alone and in a padded batch alike."""
        assert self.upsample is not None
        y_BTE = F.gelu(self.upsample(x_BUE)).reshape(len(x_BUE), -1, x_BUE.shape[2])
        y_BTE = F.pad(y_BTE, (0, 0, 0, max_frames - y_BTE.shape[1]))
        left_over_BT = padding_mask(num_frames_B // self.config.squeeze * self.config.squeeze, max_frames, y_BTE.device)
        return y_BTE if left_over_BT is None else y_BTE.masked_fill(left_over_BT[..., None], 0.0)

    @property
    def extractor_modules(self) -> list[nn.Module]:
        """What `features` is made by: frozen when the extractor is."""
        return [self.extractor]

    def compile_layers(self) -> None:
        """Compile what is repeated, for utterances of any length."""
        for layer in self.layers:
            layer.compile(dynamic=True)

    def prepare_for_inference(self) -> None:
        """Do once what does not depend on the input. The weights must not change afterwards.

        Not for a deep copy: torch gives copies of a parametrised module one class, and folding changes it for all.
        """
        self.fold_weight_norm()
        self.cache_positions()

    def fold_weight_norm(self) -> None:
        if parametrize.is_parametrized(self.positions.conv):
            parametrize.remove_parametrizations(self.positions.conv, "weight")

    @torch.no_grad()
    def cache_positions(self) -> None:
        """Project the embeddings of relative positions, in each layer."""
        assert not self.training, "the cache would hold dropout, and weights that change"
        table_RE = self.relative.table() if self.relative is not None else None
        for layer in self.layers if table_RE is not None else ():
            layer.attention.cache_positions(table_RE)  # type: ignore[union-attr, operator]


class _Unused(torch.autograd.Function):
    """`x` as it is; the gradient of the parameters is zero, not missing: DistributedDataParallel waits for each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros_like(p) for p in ctx.saved_tensors)


def _dropped(seed: int, layer: int, probability: float) -> bool:
    return probability > 0 and fold(seed, "layer", layer) / 2**63 < probability


def normalise_waveform(waveform_BS: Tensor, num_samples_B: Tensor) -> Tensor:
    """Each utterance to zero mean and unit variance over its own samples; padding stays zero."""
    valid_BS = frame_mask(num_samples_B, waveform_BS.shape[1], waveform_BS.device)
    count_B1 = valid_BS.sum(1, keepdim=True)
    mean_B1 = (waveform_BS * valid_BS).sum(1, keepdim=True) / count_B1
    variance_B1 = ((waveform_BS - mean_B1).square() * valid_BS).sum(1, keepdim=True) / count_B1
    return (waveform_BS - mean_B1) * (variance_B1 + 1e-7).rsqrt() * valid_BS
