"""Sizes of the models. A named model is a preset (`trainables.models.presets`) that fills these in.

"P-SEW" is Wu et al., "Performance-efficiency trade-offs in unsupervised pre-training for speech recognition"
(arXiv:2109.06870); "P-BLJ" the bilevel joint training of wav2vec 2.0 and CNN-LSTM models.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainables.config import Config, cosmetic
from trainables.data.config import SAMPLE_RATE_HZ

MEL_WINDOW, MEL_HOP = 400, 160  # samples: 25 ms and 10 ms

# (channels, kernel, stride) of each convolution of a wave extractor.
ConvLayers = Sequence[tuple[int, int, int]]
# (kernel, stride, padding on either side) of what turns samples into frames.
FrameGeometry = tuple[tuple[int, int, int], ...]


class QuantiserConfig(Config):
    """Product quantiser (wav2vec 2.0, arXiv:2006.11477, section 2)."""

    codebooks: int = Field(2, ge=1, description="Number of codebooks G.")
    entries: int = Field(320, ge=2, description="Entries V of each codebook.")
    dim: int = Field(256, ge=1, description="Width in which predictions and targets are compared.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.dim % self.codebooks:
            raise ValueError(f"dim must be a multiple of codebooks, got {self.dim} and {self.codebooks}")
        return self


class LinearProjectionConfig(Config):
    """One linear layer (wav2vec 2.0)."""

    kind: Literal["linear"] = "linear"


class MlpProjectionConfig(Config):
    """Linear -> BatchNorm -> ReLU -> linear (P-SEW section 3.5, as its code does it: no norm after the second)."""

    kind: Literal["mlp"] = "mlp"
    hidden_width: int = Field(4096, ge=1)


ProjectionConfig = Annotated[LinearProjectionConfig | MlpProjectionConfig, Field(discriminator="kind")]


class WaveExtractorConfig(Config):
    """Convolutions on the waveform, 320 samples a frame: WFE-O of wav2vec 2.0, or WFE-C, the compact one of P-SEW.

    `compact` doubles the channels three times on the way, from `channels` to 8 x `channels`, each strided
    convolution followed by `pointwise_layers` convolutions of kernel 1 (P-SEW section 3.2, "WFE-C-c64-l1"). The first
    kernel is 10, as in all public code and for the paper's receptive field of 400 samples; its text says 7.
    """

    kind: Literal["wave"] = "wave"
    channels: int = Field(512, ge=1)
    compact: bool = False
    pointwise_layers: int = Field(1, ge=0, description="After each strided convolution but the first; compact only.")
    norm: Literal["group", "layer"] = Field(
        "group",
        description="group: one norm, over time, after the first convolution; layer: over channels, after each, and "
        "convolutions have a bias (large-LV60, XLSR-53, XLS-R).",
    )
    masked_statistics: bool = Field(
        False,
        description="Group norm over each utterance's own frames. False, as published: over the padded batch, so that "
        "an utterance's result depends on the padding beside it.",
    )

    @property
    def layers(self) -> ConvLayers:
        c = self.channels
        if not self.compact:
            return [(c, 10, 5), *[(c, 3, 2)] * 4, *[(c, 2, 2)] * 2]
        layers = [(c, 10, 5)]
        for width, kernel in ((2 * c, 3), (2 * c, 3), (4 * c, 3), (4 * c, 3), (8 * c, 2), (8 * c, 2)):
            layers += [(width, kernel, 2), *[(width, 1, 1)] * self.pointwise_layers]
        return layers

    @property
    def width(self) -> int:
        return self.layers[-1][0]

    @property
    def geometry(self) -> FrameGeometry:
        return tuple((kernel, stride, 0) for _, kernel, stride in self.layers)


class FilterBankExtractorConfig(Config):
    """Log-mel filter bank and two 3 x 3 convolutions, 20 ms a frame (FBFE; P-SEW Table 6 row 9).

    Its code was never published: strides and padding are the only ones that give the paper's count. What stands
    between the convolutions is not known; here GELU, as in the other extractors.
    """

    kind: Literal["filter_bank"] = "filter_bank"
    channels: int = Field(160, ge=1)
    mel_bins: int = Field(80, ge=8, le=128)
    width: int = Field(512, ge=1, description="Width of the features.")

    @property
    def geometry(self) -> FrameGeometry:
        return ((MEL_WINDOW, MEL_HOP, 0), (3, 1, 0), (3, 2, 0))


ExtractorConfig = Annotated[WaveExtractorConfig | FilterBankExtractorConfig, Field(discriminator="kind")]


class StandardAttentionConfig(Config):
    """Scaled dot-product attention."""

    kind: Literal["standard"] = "standard"


class DisentangledAttentionConfig(Config):
    """Disentangled attention of DeBERTa (arXiv:2006.03654) as in SEW-D: content and relative position, keys shared."""

    kind: Literal["disentangled"] = "disentangled"
    buckets: int = Field(256, ge=2, multiple_of=2, description="Of relative distance on either side; log beyond half.")
    max_distance: int = Field(512, ge=4, description="Distances from here on share the last bucket.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_distance <= self.buckets // 2 + 1:
            raise ValueError(
                f"max_distance must be more than buckets / 2 + 1, got {self.max_distance} and {self.buckets}"
            )
        return self


def bucket(config: DisentangledAttentionConfig, distance: int) -> int:
    """Signed bucket of a relative distance (query - key): itself up to half the buckets, logarithmic beyond."""
    half = config.buckets // 2
    if abs(distance) <= half:
        return distance
    ratio = math.log(abs(distance) / half) / math.log((config.max_distance - 1) / half)
    return int(math.copysign(math.ceil(ratio * (half - 1)) + half, distance))


AttentionConfig = Annotated[StandardAttentionConfig | DisentangledAttentionConfig, Field(discriminator="kind")]


class DropoutConfig(Config):
    """Dropout in training. The defaults are those of wav2vec 2.0 base pre-training (fairseq)."""

    hidden: float = Field(0.1, ge=0, lt=1, description="After attention and feed-forward. Not used by SEW-D's layers.")
    attention: float = Field(0.1, ge=0, lt=1, description="Of attention probabilities.")
    activation: float = Field(
        0.0, ge=0, lt=1, description="Inside the feed-forward; in SEW-D after attention and feed-forward instead."
    )
    input: float = Field(0.1, ge=0, lt=1, description="Of the projected features.")
    features: float = Field(0.1, ge=0, lt=1, description="Of the features that are quantised.")
    layer: float = Field(0.05, ge=0, lt=1, description="LayerDrop (arXiv:1909.11556): whole layers are left out.")


class _Frames(Config):
    """What a model's settings say about time. Subclasses have `geometry`."""

    @property
    @abc.abstractmethod
    def geometry(self) -> FrameGeometry: ...

    @property
    def min_frames(self) -> int:
        """The model needs this many frames."""
        return 1

    def num_frames(self, num_samples: int) -> int:
        """Frames of an utterance of this many samples; 0 when it is shorter than one frame."""
        return frames_after(self.geometry, num_samples)

    @property
    def min_samples(self) -> int:
        """The fewest samples that the model can take."""
        needed = self.min_frames
        for kernel, stride, padding in reversed(self.geometry):
            needed = max(1, (needed - 1) * stride + kernel - 2 * padding)
        return needed

    @property
    def frame_rate_hz(self) -> float:
        return SAMPLE_RATE_HZ / functools.reduce(lambda product, layer: product * layer[1], self.geometry, 1)


def frames_after(geometry: FrameGeometry, num_samples: int) -> int:
    """Length after the convolutions, 0 when there are too few samples."""
    for kernel, stride, padding in geometry:
        num_samples = max(0, (num_samples + 2 * padding - kernel) // stride + 1)
    return num_samples


class TransformerConfig(_Frames):
    """One encoder made of parts: wav2vec 2.0, squeezed wav2vec 2.0, SEW and SEW-D differ in their settings only."""

    kind: Literal["transformer"] = "transformer"
    preset: str | None = cosmetic(None, description="Name of the preset that fills in what is not given.")
    extractor: ExtractorConfig = WaveExtractorConfig()
    normalise_waveform: bool = Field(False, description="Each utterance to zero mean and unit variance.")
    width: int = Field(768, ge=1, description="Width E of the context network.")
    layers: int = Field(12, ge=1)
    heads: int | None = Field(None, ge=1, description="None: width / 64, the rule of P-SEW.")
    feedforward_width: int | None = Field(None, ge=1, description="None: 4 x width.")
    norm_first: bool = Field(False, description="Pre-LN with a final norm (large-LV60, XLSR-53, XLS-R).")
    attention: AttentionConfig = StandardAttentionConfig()
    squeeze: int = Field(1, ge=1, description="The context network runs at 1 / squeeze of the frame rate (SEW: 2).")
    position_kernel: int = Field(128, ge=1, description="Of the convolutional position embedding, in frames.")
    position_groups: int = Field(16, ge=1)
    dropout: DropoutConfig = DropoutConfig()
    quantiser: QuantiserConfig = QuantiserConfig()
    projection: ProjectionConfig = Field(
        LinearProjectionConfig(), description="Of context and targets, into the width in which they are compared."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.heads is None and self.width % 64:
            raise ValueError(f"width must be a multiple of 64, the size of a head, or set heads; got {self.width}")
        if self.width % self.num_heads:
            raise ValueError(
                f"heads x head size must equal width, but width {self.width} is not a multiple of heads {self.heads}"
            )
        if self.width % self.position_groups:
            raise ValueError(
                f"width must be a multiple of position_groups, got {self.width} and {self.position_groups}"
            )
        if self.norm_first and isinstance(self.attention, DisentangledAttentionConfig):
            raise ValueError("norm_first does not go with disentangled attention, whose encoder is post-LN")
        if self.norm_first and self.squeeze > 1:
            raise ValueError("norm_first does not go with squeeze: no squeezed model is pre-LN")
        return self

    @property
    def num_heads(self) -> int:
        return self.heads or self.width // 64

    @property
    def inner_width(self) -> int:
        """Width inside the feed-forward."""
        return self.feedforward_width or 4 * self.width

    @property
    def family(self) -> str:
        if isinstance(self.attention, DisentangledAttentionConfig):
            return "sew_d"
        return "sew" if self.squeeze > 1 else "wav2vec2"

    @property
    def geometry(self) -> FrameGeometry:
        return self.extractor.geometry

    @property
    def min_frames(self) -> int:
        return self.squeeze


class CnnGruConfig(_Frames):
    """The "CNN-LSTM" of P-BLJ. Its published code has bidirectional GRUs, and its nine sizes fit this model exactly.

    `fixed` is the model that was meant; `compat` does what the published code does: attention and every recurrent
    layer but the first run across the utterances of a batch instead of over an utterance, and padding is not masked.
    """

    kind: Literal["cnn_gru"] = "cnn_gru"
    preset: str | None = cosmetic(None, description="Name of the preset that fills in what is not given.")
    variant: Literal["fixed", "compat"] = "fixed"
    mel_bins: int = Field(80, ge=8, le=128)
    channels: int = Field(32, ge=8, multiple_of=8, description="Of the stem; inside a layer twice as many.")
    cnn_layers: int = Field(3, ge=0)
    gru_layers: int = Field(5, ge=1)
    gru_width: int = Field(512, ge=1, description="Hidden units of each direction, and width of the GRUs' input.")
    dropout: float = Field(0.05, ge=0, lt=1)
    quantiser: QuantiserConfig = QuantiserConfig()
    projection: ProjectionConfig = LinearProjectionConfig()

    @property
    def family(self) -> str:
        return "cnn_gru"

    @property
    def geometry(self) -> FrameGeometry:
        return ((MEL_WINDOW, MEL_HOP, 0), (3, 2, 1))


class CompactCnnGruConfig(_Frames):
    """Log-mel, a 4x subsampling convolutional front-end, residual convolutions, bidirectional GRU layers.

    This project's small relative of P-BLJ's CNN-GRU, for machines without an accelerator: 0.6 million parameters.
    Each convolution is followed by LayerNorm over channels: at this size a recurrent network without a normalised,
    subsampling front does not learn.
    """

    kind: Literal["compact_cnn_gru"] = "compact_cnn_gru"
    preset: str | None = cosmetic(None, description="Name of the preset that fills in what is not given.")
    mel_bins: int = Field(80, ge=8, le=128)
    cnn_width: int = Field(144, ge=8, description="Channels of the convolutions and width D of the features.")
    cnn_layers: int = Field(2, ge=0, description="Residual convolution layers after the front-end.")
    gru_width: int = Field(144, ge=8, description="Hidden units of each direction.")
    gru_layers: int = Field(1, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    quantiser: QuantiserConfig = QuantiserConfig(entries=64, dim=128)
    projection: ProjectionConfig = LinearProjectionConfig()

    @property
    def family(self) -> str:
        return "compact_cnn_gru"

    @property
    def geometry(self) -> FrameGeometry:
        return ((MEL_WINDOW, MEL_HOP, 0), (5, 2, 2), (5, 2, 2))
