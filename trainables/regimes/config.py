"""Settings of the regimes. Learning rates are peaks of a schedule; published settings are presets (`presets.py`)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from trainables.config import Config, cosmetic
from trainables.data.config import CorpusConfig, CropConfig
from trainables.losses.config import BilevelConfig, ContrastiveConfig, CtcConfig, SelfSupervisedLossConfig
from trainables.regimes.presets import fill_in
from trainables.stage import OptimiserConfig, Precision, ScheduleConfig, TriStageConfig

LearningRate = Annotated[float, Field(gt=0)]


class StageDropoutConfig(Config):
    """Dropouts of a transformer in one stage; None: the model's (`trainables.models.config.DropoutConfig`)."""

    hidden: float | None = Field(None, ge=0, lt=1)
    attention: float | None = Field(None, ge=0, lt=1)
    activation: float | None = Field(None, ge=0, lt=1)
    input: float | None = Field(None, ge=0, lt=1)
    features: float | None = Field(None, ge=0, lt=1)
    layer: float | None = Field(None, ge=0, lt=1)


class StageSettings(Config):
    """What every stage has. Its length is given in steps or in epochs."""

    preset: str | None = cosmetic(None, description="Name of the published settings that fill in what is not given.")
    steps: int | None = Field(None, ge=1, description="Optimiser updates.")
    epochs: float | None = Field(
        None, gt=0, description="Instead of steps: as many as hold that many times the stage's speech in full batches."
    )
    corpus: CorpusConfig | None = Field(None, description="None: the trial's.")
    batch_seconds: float = Field(24.0, gt=0, description="Padded audio of the global batch, over all workers.")
    accumulation: int = Field(
        1,
        ge=1,
        description="Parts that a batch is processed in, one after another, to fit into memory. Diversity and the "
        "BatchNorm of MLP heads are over a part.",
    )
    augment_speed: bool = Field(True, description="Play each utterance at 0.9, 1.0 or 1.1 of its speed.")
    crop: CropConfig | None = Field(None, description="Of unlabelled speech. None: batches are padded.")
    schedule: ScheduleConfig = TriStageConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    dropout: StageDropoutConfig | None = Field(None, description="Of a transformer, in this stage.")
    report_every: int = Field(10, ge=1, description="Steps between reports of the training loss.")
    seed: int | None = Field(None, description="None: the trial's seed, so that every seed trains its own stage.")
    precision: Precision = Field(
        "fp32", description="bf16 or fp16: mixed precision (autocast), weights in 32 bits; fp16 scales the loss."
    )
    checkpoint_seconds: float = cosmetic(20.0, description="Time between checkpoints.", gt=0)
    compile_layers: bool = Field(False, description="torch.compile the layers; on a CPU it needs a C++ compiler.")

    @model_validator(mode="after")
    def _length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"give either steps or epochs, got steps={self.steps} and epochs={self.epochs}")
        return self


class EvaluatedSettings(StageSettings):
    """What stages with labels have."""

    evaluate_every: int = Field(50, ge=1, description="Steps between evaluations on dev.")
    keep: Literal["best", "last"] = Field(
        "best",
        description="Weights that a trial ends with, and is tested with: those with the best dev WER, or the last.",
    )


class PretrainSettings(StageSettings):
    """Self-supervised pre-training on unlabelled audio."""

    learning_rate: LearningRate = 1e-3
    loss: SelfSupervisedLossConfig = ContrastiveConfig()


class SupervisedSettings(EvaluatedSettings):
    """Training with CTC on labelled audio, evaluated on dev as it goes."""

    learning_rate: LearningRate = 1e-3
    frozen_backbone_steps: int = Field(
        0, ge=0, description="First updates, in which only the CTC head learns; all of them: a probe."
    )
    loss: CtcConfig = CtcConfig()


class JointSettings(EvaluatedSettings):
    """BL-JUST's alternation of self-supervised exploration and joint steps (arXiv:2401.06980)."""

    lower_learning_rate: LearningRate = Field(
        1e-3, description="alpha: of the backbone in exploration, and of the self-supervised head always."
    )
    upper_learning_rate: LearningRate = Field(
        1e-3, description="beta: of the backbone and the CTC head in joint steps, and in the final fine-tuning."
    )
    head_learning_rate: LearningRate | None = Field(None, description="Of the CTC head in joint steps. None: beta.")
    exploration_steps: int = Field(2, ge=0, description="Self-supervised updates before each run of joint ones.")
    joint_steps: int = Field(3, ge=1, description="Joint updates between explorations.")
    loss: BilevelConfig = BilevelConfig()


class FinalSettings(EvaluatedSettings):
    """BL-JUST's final supervised fine-tuning, at a fraction of the upper learning rate, on the same corpus."""

    learning_rate_scale: float = Field(0.5, gt=0, description="Times beta (0.1 in the published code).")
    loss: CtcConfig = CtcConfig()

    @model_validator(mode="after")
    def _same_corpus(self) -> Self:
        if self.corpus is not None:
            raise ValueError("the final fine-tuning has the corpus of the joint stage; set `joint.corpus` instead")
        return self


class WeightedSumSettings(EvaluatedSettings):
    """CTC + a fixed weight x self-supervised loss, one learning rate, no alternation."""

    learning_rate: LearningRate = 1e-3
    self_supervised_weight: float = Field(1.0, ge=0)
    ctc: CtcConfig = CtcConfig()
    self_supervised: SelfSupervisedLossConfig = ContrastiveConfig()


class SemiSupervisedSettings(EvaluatedSettings):
    """The task-specific stage of wav2vec-S: CTC on labelled source speech, and something on unlabelled speech.

    The paper's text does not give its loss on unlabelled speech, nor weights, lengths and learning rates: all three
    branches and all values here are this project's choice.
    """

    learning_rate: LearningRate = 1e-3
    frozen_backbone_steps: int = Field(
        0, ge=0, description="First updates, in which only the CTC head learns; all of them: a probe."
    )
    labels: Literal["characters", "phones"] = Field("characters", description="characters: what the trial `outputs`.")
    unlabelled: Literal["none", "contrastive", "pseudo_labels"] = Field(
        "none", description="Loss on unlabelled speech; pseudo_labels are those of an EMA teacher."
    )
    unlabelled_weight: float = Field(1.0, ge=0)
    teacher_decay: float = Field(0.999, ge=0, lt=1, description="Of the teacher's weights, an update.")
    teacher_warmup_steps: int = Field(0, ge=0, description="First updates, without pseudo-labels.")
    ctc: CtcConfig = CtcConfig()
    self_supervised: SelfSupervisedLossConfig = ContrastiveConfig()


Pretrain = Annotated[PretrainSettings, BeforeValidator(fill_in("pretrain"))]
Supervised = Annotated[SupervisedSettings, BeforeValidator(fill_in("supervised"))]
Joint = Annotated[JointSettings, BeforeValidator(fill_in("joint"))]
Final = Annotated[FinalSettings, BeforeValidator(fill_in("final"))]
WeightedSum = Annotated[WeightedSumSettings, BeforeValidator(fill_in("weighted_sum"))]
SemiSupervised = Annotated[SemiSupervisedSettings, BeforeValidator(fill_in("semi_supervised"))]


class SupervisedRegime(Config):
    """CTC from random or given weights."""

    kind: Literal["supervised"] = "supervised"
    train: Supervised


class PretrainFinetuneRegime(Config):
    """Self-supervised pre-training, then CTC fine-tuning of the backbone with a fresh head (PT+FT)."""

    kind: Literal["pretrain_finetune"] = "pretrain_finetune"
    pretrain: Pretrain
    finetune: Supervised


class BlJustRegime(Config):
    """Bilevel joint training, then supervised fine-tuning (BL-JUST)."""

    kind: Literal["bl_just"] = "bl_just"
    pretrain: Pretrain | None = Field(None, description="Before it. None: from the trial's `init`, or random weights.")
    joint: Joint
    finetune: Final | None = Field(description="None (null): no final fine-tuning.")


class JointRegime(Config):
    """Plain joint training: a weighted sum of both losses. BL-JUST without all that makes it bilevel."""

    kind: Literal["joint"] = "joint"
    pretrain: Pretrain | None = Field(None, description="Before it. None: from the trial's `init`, or random weights.")
    train: WeightedSum


class Wav2vecSRegime(Config):
    """Self-supervised, then task-specific semi-supervised, then low-resource fine-tuning (arXiv:2110.04484)."""

    kind: Literal["wav2vec_s"] = "wav2vec_s"
    pretrain: Pretrain | None = Field(None, description="None: from the trial's `init`.")
    semi_supervised: SemiSupervised
    finetune: Supervised


RegimeConfig = Annotated[
    SupervisedRegime | PretrainFinetuneRegime | BlJustRegime | JointRegime | Wav2vecSRegime,
    Field(discriminator="kind"),
]
