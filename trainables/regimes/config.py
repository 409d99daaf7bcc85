"""Settings of the regimes. Lengths are in optimiser steps; learning rates are peaks of a tri-stage schedule."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainables.config import Config, cosmetic
from trainables.losses.config import BilevelConfig, ContrastiveConfig, CtcConfig
from trainables.stage import OptimiserConfig, Precision, ScheduleConfig

LearningRate = Annotated[float, Field(gt=0)]


class StageSettings(Config):
    """What every stage has."""

    steps: int = Field(ge=1, description="Optimiser updates.")
    batch_seconds: float = Field(24.0, gt=0, description="Padded audio of the global batch, over all workers.")
    augment_speed: bool = Field(True, description="Play each utterance at 0.9, 1.0 or 1.1 of its speed.")
    schedule: ScheduleConfig = ScheduleConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    report_every: int = Field(10, ge=1, description="Steps between reports of the training loss.")
    seed: int | None = Field(None, description="None: the trial's seed, so that every seed trains its own stage.")
    precision: Precision = Field("fp32", description="bf16: mixed precision (autocast); weights stay in 32 bits.")
    checkpoint_seconds: float = cosmetic(20.0, description="Time between checkpoints.", gt=0)
    compile_layers: bool = Field(False, description="torch.compile the layers; on a CPU it needs a C++ compiler.")


class PretrainSettings(StageSettings):
    """Self-supervised pre-training on unlabelled audio."""

    learning_rate: LearningRate = 1e-3
    loss: ContrastiveConfig = ContrastiveConfig()


class SupervisedSettings(StageSettings):
    """Training with CTC on labelled audio, evaluated on dev as it goes."""

    learning_rate: LearningRate = 1e-3
    loss: CtcConfig = CtcConfig()
    evaluate_every: int = Field(50, ge=1, description="Steps between evaluations on dev.")


class JointSettings(StageSettings):
    """BL-JUST's alternation of self-supervised exploration and joint steps (arXiv:2401.06980)."""

    lower_learning_rate: LearningRate = Field(
        1e-3, description="alpha: of the backbone in exploration, and of the self-supervised head always."
    )
    upper_learning_rate: LearningRate = Field(
        1e-3, description="beta: of the backbone and the CTC head in joint steps, and in the final fine-tuning."
    )
    exploration_steps: int = Field(2, ge=0, description="Self-supervised updates before each run of joint ones.")
    joint_steps: int = Field(3, ge=1, description="Joint updates between explorations.")
    loss: BilevelConfig = BilevelConfig()
    evaluate_every: int = Field(50, ge=1, description="Steps between evaluations on dev.")


class FinalSettings(StageSettings):
    """BL-JUST's final supervised fine-tuning, at a fraction of the upper learning rate."""

    learning_rate_scale: float = Field(0.5, gt=0, description="Times beta (0.1 in the published code).")
    loss: CtcConfig = CtcConfig()
    evaluate_every: int = Field(50, ge=1, description="Steps between evaluations on dev.")


class SupervisedRegime(Config):
    """CTC from random weights."""

    kind: Literal["supervised"] = "supervised"
    train: SupervisedSettings


class PretrainFinetuneRegime(Config):
    """Self-supervised pre-training, then CTC fine-tuning of the backbone with a fresh head (PT+FT)."""

    kind: Literal["pretrain_finetune"] = "pretrain_finetune"
    pretrain: PretrainSettings
    finetune: SupervisedSettings


class BlJustRegime(Config):
    """Bilevel joint training, then supervised fine-tuning (BL-JUST)."""

    kind: Literal["bl_just"] = "bl_just"
    joint: JointSettings
    finetune: FinalSettings | None = Field(description="None (null): no final fine-tuning.")


RegimeConfig = Annotated[SupervisedRegime | PretrainFinetuneRegime | BlJustRegime, Field(discriminator="kind")]
