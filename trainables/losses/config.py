"""Settings of the losses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainables.config import Config, default_kind

Stream = Literal["labelled", "unlabelled"]
Part = Literal["backbone", "ctc_head", "self_supervised_head"]
SelfSupervision = Literal["contrastive", "cpc"]

EXTRACTOR_GRADIENT = (
    "Factor on the gradient that reaches the feature extractor (fairseq's feature_grad_mult); 0: it is frozen."
)
EQUAL_MASKS = (
    "As many masked frames (and channels) in every utterance of a batch as in the one with the fewest (fairseq's "
    "require_same_masks)."
)


class MaskConfig(Config):
    """Masking of the features during supervised training, as wav2vec 2.0 fine-tuning does (its form of SpecAugment).

    The defaults are light; the published ones depend on the labelled budget and stand in the presets of a stage.
    """

    time_probability: float = Field(0.2, ge=0, le=1, description="Masked frames / frames, overlaps not subtracted.")
    time_length: int = Field(5, ge=1, description="Frames in a span.")
    channel_probability: float = Field(0.1, ge=0, le=1, description="Zeroed channels / channels, likewise.")
    channel_length: int = Field(8, ge=1, description="Channels in a span.")
    min_spans: int = Field(0, ge=0, description="Spans in an utterance, at least (fairseq: 2).")
    equal: bool = Field(False, description=EQUAL_MASKS)


class CtcConfig(Config):
    """Connectionist temporal classification, summed over an utterance, mean over utterances (P-BLJ equation 6)."""

    kind: Literal["ctc"] = "ctc"
    mask: MaskConfig = MaskConfig()
    extractor_gradient: float = Field(1.0, ge=0, description=EXTRACTOR_GRADIENT)

    @property
    def streams(self) -> tuple[Stream, ...]:
        return ("labelled",)

    @property
    def parts(self) -> tuple[Part, ...]:
        return ("backbone", "ctc_head")

    @property
    def freezes_extractor(self) -> bool:
        return self.extractor_gradient == 0


class _SelfSupervisedConfig(Config):
    extractor_gradient: float = Field(1.0, ge=0, description=EXTRACTOR_GRADIENT)

    @property
    def streams(self) -> tuple[Stream, ...]:
        return ("unlabelled",)

    @property
    def parts(self) -> tuple[Part, ...]:
        return ("backbone", "self_supervised_head")

    @property
    def freezes_extractor(self) -> bool:
        return self.extractor_gradient == 0


class ContrastiveConfig(_SelfSupervisedConfig):
    """Masked contrastive loss of wav2vec 2.0: contrastive + diversity + feature penalty, per masked frame.

    The defaults are wav2vec 2.0's, for frames of 20 ms, but for the length of the Gumbel schedule.
    """

    kind: Literal["contrastive"] = "contrastive"
    mask_probability: float = Field(0.65, gt=0, le=1)
    mask_length: int = Field(10, ge=1, description="Frames in a span.")
    equal_masks: bool = Field(False, description=EQUAL_MASKS)
    negatives: int = Field(100, ge=1, description="Distractors K, other masked frames of the same utterance.")
    temperature: float = Field(0.1, gt=0, description="Divides the cosine similarity.")
    gumbel_start: float = Field(2.0, gt=0)
    gumbel_end: float = Field(0.5, gt=0, description="Lowest temperature.")
    gumbel_decay: float | None = Field(
        None, gt=0, lt=1, description="Factor an update (fairseq: 0.999995). None: gumbel_end is reached at the end."
    )
    diversity: Literal["perplexity", "entropy"] = Field(
        "perplexity",
        description="perplexity: (GV - sum exp H) / GV, as fairseq runs it; entropy: -(sum H) / GV, as in papers.",
    )
    diversity_weight: float = Field(0.1, ge=0)
    feature_penalty_weight: float = Field(10.0, ge=0)


class CpcConfig(_SelfSupervisedConfig):
    """Frame-level contrastive predictive coding: from a window of speech, which are the frames that follow it?

    As in BL-JUST's later code: one linear layer applied again and again predicts the features of the following frames
    from the last frame of a window. Distractors are other frames of the same utterance (there: of the batch). The
    recurrent matrix of a last layer that reads backwards is not trained: at the last frame it has only begun.
    """

    kind: Literal["cpc"] = "cpc"
    context_seconds: float = Field(2.0, gt=0, description="Longest window.")
    future_seconds: float = Field(1.0, gt=0, description="How far it is predicted.")
    hop_seconds: float = Field(1.0, gt=0, description="Between the ends of windows; the first one ends here.")
    negatives: int = Field(50, ge=1, description="Distractors of each predicted frame.")
    temperature: float = Field(0.1, gt=0, description="Divides the cosine similarity.")


SelfSupervisedLossConfig = Annotated[
    Annotated[ContrastiveConfig | CpcConfig, Field(discriminator="kind")], default_kind("contrastive")
]


class BilevelConfig(Config):
    """The joint step of BL-JUST: CTC + gamma x self-supervised loss in the backbone, gamma rising over the stage.

    The CTC head receives the gradient of the CTC loss and the self-supervised head that of the self-supervised loss,
    whatever gamma is. gamma_start = gamma_end is plain weighted-sum training.
    """

    kind: Literal["bilevel"] = "bilevel"
    gamma_start: float = Field(0.0, ge=0)
    gamma_end: float = Field(1.0, ge=0)
    ctc: CtcConfig = CtcConfig()
    self_supervised: SelfSupervisedLossConfig = ContrastiveConfig()

    @property
    def streams(self) -> tuple[Stream, ...]:
        return ("labelled", "unlabelled")

    @property
    def parts(self) -> tuple[Part, ...]:
        return ("backbone", "ctc_head", "self_supervised_head")

    @property
    def freezes_extractor(self) -> bool:
        return self.ctc.freezes_extractor and self.self_supervised.freezes_extractor


class PseudoLabelConfig(Config):
    """CTC on labelled speech + weight x CTC on unlabelled speech, towards what a teacher writes there.

    The teacher is an exponential moving average of the model; it sees unmasked speech and decodes greedily. Utterances
    in which it finds nothing add nothing.
    """

    kind: Literal["pseudo_label"] = "pseudo_label"
    weight: float = Field(1.0, ge=0, description="Of the unlabelled speech.")
    teacher_decay: float = Field(0.999, ge=0, lt=1, description="Of the teacher's weights, an update.")
    warmup_steps: int = Field(0, ge=0, description="First updates, on labelled speech alone.")
    ctc: CtcConfig = CtcConfig()

    @property
    def streams(self) -> tuple[Stream, ...]:
        return ("labelled", "unlabelled")

    @property
    def parts(self) -> tuple[Part, ...]:
        return ("backbone", "ctc_head")

    @property
    def freezes_extractor(self) -> bool:
        return self.ctc.freezes_extractor


LossConfig = Annotated[
    CtcConfig | ContrastiveConfig | CpcConfig | BilevelConfig | PseudoLabelConfig, Field(discriminator="kind")
]


def self_supervision(loss: LossConfig) -> SelfSupervision | None:
    """What its self-supervised head is for; None when it needs none."""
    if isinstance(loss, BilevelConfig):
        return loss.self_supervised.kind
    return loss.kind if isinstance(loss, ContrastiveConfig | CpcConfig) else None
