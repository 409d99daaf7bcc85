"""Sizes of the models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainables.config import Config


class QuantiserConfig(Config):
    """Product quantiser and projections of the self-supervised head (wav2vec 2.0, arXiv:2006.11477, section 2)."""

    codebooks: int = Field(2, ge=1, description="Number of codebooks G.")
    entries: int = Field(64, ge=2, description="Entries V of each codebook (the paper: 320).")
    dim: int = Field(128, ge=1, description="Width in which predictions and targets are compared (the paper: 256).")


class CnnGruConfig(Config):
    """Log-mel, a 4x subsampling convolutional front-end, residual convolutions, bidirectional GRU layers.

    The family that P-BLJ calls "CNN-LSTM" (its published code uses GRUs), scaled down. Each convolution is followed by
    LayerNorm over channels: at this size a recurrent network without a normalised, subsampling front does not learn.
    """

    kind: Literal["cnn_gru"] = "cnn_gru"
    mel_bins: int = Field(80, ge=8, le=128)
    cnn_width: int = Field(144, ge=8, description="Channels of the convolutions and width D of the features.")
    cnn_layers: int = Field(2, ge=0, description="Residual convolution layers after the front-end.")
    gru_width: int = Field(144, ge=8, description="Hidden units of each direction.")
    gru_layers: int = Field(1, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    quantiser: QuantiserConfig = QuantiserConfig()


ModelConfig = CnnGruConfig
