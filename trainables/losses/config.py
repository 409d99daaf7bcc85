"""Settings of the losses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainables.config import Config

Stream = Literal["labelled", "unlabelled"]
Part = Literal["backbone", "ctc_head", "self_supervised_head"]


class MaskConfig(Config):
    """Masking of the features during supervised training, as wav2vec 2.0 fine-tuning does (its form of SpecAugment)."""

    time_probability: float = Field(0.2, ge=0, le=1, description="Masked frames / frames, overlaps not subtracted.")
    time_length: int = Field(5, ge=1, description="Frames in a span.")
    channel_probability: float = Field(0.1, ge=0, le=1, description="Zeroed channels / channels, likewise.")
    channel_length: int = Field(8, ge=1, description="Channels in a span.")


class CtcConfig(Config):
    """Connectionist temporal classification, summed over an utterance, mean over utterances (P-BLJ equation 6)."""

    kind: Literal["ctc"] = "ctc"
    mask: MaskConfig = MaskConfig()

    @property
    def streams(self) -> tuple[Stream, ...]:
        return ("labelled",)

    @property
    def parts(self) -> tuple[Part, ...]:
        return ("backbone", "ctc_head")


class ContrastiveConfig(Config):
    """Masked contrastive loss of wav2vec 2.0: contrastive + diversity + feature penalty, per masked frame."""

    kind: Literal["contrastive"] = "contrastive"
    mask_probability: float = Field(0.65, gt=0, le=1)
    mask_length: int = Field(5, ge=1, description="Frames in a span (10 at 20 ms in the paper; here 5 at 40 ms).")
    negatives: int = Field(50, ge=1, description="Distractors K, other masked frames of the same utterance.")
    temperature: float = Field(0.1, gt=0, description="Divides the cosine similarity.")
    gumbel_start: float = Field(2.0, gt=0)
    gumbel_end: float = Field(0.5, gt=0, description="Reached, by geometric decay, at the end of the stage.")
    diversity_weight: float = Field(0.1, ge=0)
    feature_penalty_weight: float = Field(1.0, ge=0, description="fairseq: 10, on features of another scale.")

    @property
    def streams(self) -> tuple[Stream, ...]:
        return ("unlabelled",)

    @property
    def parts(self) -> tuple[Part, ...]:
        return ("backbone", "self_supervised_head")


class BilevelConfig(Config):
    """The joint step of BL-JUST: CTC + gamma x self-supervised loss in the backbone, gamma rising over the stage.

    The CTC head receives the gradient of the CTC loss and the self-supervised head that of the self-supervised loss,
    whatever gamma is. gamma_start = gamma_end is plain weighted-sum training.
    """

    kind: Literal["bilevel"] = "bilevel"
    gamma_start: float = Field(0.0, ge=0)
    gamma_end: float = Field(1.0, ge=0)
    ctc: CtcConfig = CtcConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()

    @property
    def streams(self) -> tuple[Stream, ...]:
        return ("labelled", "unlabelled")

    @property
    def parts(self) -> tuple[Part, ...]:
        return ("backbone", "ctc_head", "self_supervised_head")


LossConfig = Annotated[CtcConfig | ContrastiveConfig | BilevelConfig, Field(discriminator="kind")]
