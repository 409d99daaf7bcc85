"""A stage: one unit of training, what identifies it, and what it reports."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, Field, model_validator

from trainables.config import Config, Progress, cosmetic, default_kind
from trainables.data.config import CharactersConfig, CorpusConfig, CropConfig, StageOutputsConfig
from trainables.decoding.config import LanguageModelConfig
from trainables.losses.config import LossConfig, Part, SelfSupervision, Stream, self_supervision
from trainables.models.presets import ModelConfig

Precision = Literal["fp32", "bf16", "fp16"]
StageKind = Literal["pretrain", "semi_supervised", "joint", "finetune", "supervised", "decode"]


class TriStageConfig(Config):
    """Tri-stage learning rate: linear warm-up, constant, exponential decay (fairseq `tri_stage`)."""

    kind: Literal["tri_stage"] = "tri_stage"
    warmup_fraction: float = Field(0.1, ge=0, le=1)
    decay_fraction: float = Field(0.5, ge=0, le=1)
    start_scale: float = Field(0.01, gt=0, le=1, description="Of the learning rate, at the first step.")
    end_scale: float = Field(0.05, gt=0, le=1, description="Of the learning rate, after the last step.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.warmup_fraction + self.decay_fraction > 1:
            raise ValueError(
                f"warmup_fraction + decay_fraction must be at most 1, got {self.warmup_fraction} + "
                f"{self.decay_fraction}"
            )
        return self

    def scale(self, progress: Progress) -> float:
        """The factor on the learning rate of the next update."""
        share = progress.share
        if share < self.warmup_fraction:
            return self.start_scale + (1 - self.start_scale) * share / self.warmup_fraction
        into_decay = share - (1 - self.decay_fraction)
        return self.end_scale ** (into_decay / self.decay_fraction) if into_decay > 0 else 1.0


class PolynomialConfig(Config):
    """Linear warm-up, then polynomial decay (fairseq `polynomial_decay`; wav2vec 2.0 pre-training)."""

    kind: Literal["polynomial"] = "polynomial"
    warmup_steps: int = Field(0, ge=0)
    total_steps: int | None = Field(
        None, ge=1, description="Where it ends. None: with the stage. SEW's stages of 100k updates end it at 400k."
    )
    power: float = Field(1.0, gt=0)
    end_scale: float = Field(0.0, ge=0, le=1, description="Of the learning rate, at the end.")

    def scale(self, progress: Progress) -> float:
        """The factor on the learning rate of the next update."""
        total = self.total_steps or progress.steps
        if progress.step < self.warmup_steps:
            return max(progress.step, 1) / self.warmup_steps
        remaining = max(0.0, (total - progress.step) / max(1, total - self.warmup_steps))
        return float(self.end_scale + (1 - self.end_scale) * remaining**self.power)


class ConstantConfig(Config):
    """The learning rate as it is, for comparisons that a schedule's length would bias."""

    kind: Literal["constant"] = "constant"
    warmup_steps: int = Field(0, ge=0, description="Linear warm-up.")

    def scale(self, progress: Progress) -> float:
        """The factor on the learning rate of the next update."""
        return min(1.0, max(progress.step, 1) / max(1, self.warmup_steps))


ScheduleConfig = Annotated[
    Annotated[TriStageConfig | PolynomialConfig | ConstantConfig, Field(discriminator="kind")],
    default_kind("tri_stage"),
]


class OptimiserConfig(Config):
    """AdamW."""

    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    max_gradient_norm: float | None = Field(
        5.0, gt=0, description="Each part's gradient is clipped to this norm. None: not at all, as in fairseq."
    )


class Phase(Config):
    """One loss with its own optimiser. A stage goes through its phases in turn, `steps` updates each, and again."""

    loss: LossConfig
    learning_rates: dict[Part, float] = Field(description="Peak learning rate of each part that the loss trains.")
    optimiser: OptimiserConfig = OptimiserConfig()
    steps: int = Field(1, ge=1, description="Consecutive updates before the next phase takes over.")
    frozen_backbone_steps: int = Field(
        0, ge=0, description="First updates of the stage, in which the backbone does not learn."
    )


class InitialWeights(Config):
    """The parts that a stage takes over from an earlier stage; other parts start fresh."""

    stage: Stage
    parts: tuple[Part, ...]


class TrainedWeights(Config):
    """Weights from outside the store: the stage takes over the backbone, and the self-supervised head if there is one.

    Their content identifies them, wherever they lie.
    """

    source: str = cosmetic(..., description="Path, or name on the Hugging Face hub.")
    sha256: str


class Stage(Config):
    """Fully resolved, defaults included. Everything here that is not marked cosmetic is part of the identity."""

    kind: StageKind
    corpus: CorpusConfig = cosmetic(..., description="Where the data is; its content enters as `data_fingerprint`.")
    data_fingerprint: str
    model: ModelConfig
    phases: tuple[Phase, ...] = Field(description="None in a stage that decodes.")
    steps: int = Field(ge=0, description="Optimiser updates.")
    batch_seconds: float = Field(gt=0, description="Padded audio of the global batch, over all workers.")
    augment_speed: bool
    crop: CropConfig | None = Field(None, description="Of unlabelled speech. None: batches are padded.")
    accumulation: int = Field(1, ge=1, description="Parts that a batch is processed in, one after another.")
    outputs: StageOutputsConfig = CharactersConfig()
    outputs_made_with: str | None = Field(None, description="Libraries that the outputs depend on, with versions.")
    schedule: ScheduleConfig
    report_every: int = Field(ge=1, description="Steps between reports of the training loss.")
    evaluate_every: int | None = Field(ge=1, description="Steps between evaluations on dev; None: never.")
    dev_name: Literal["dev", "source_dev"] = Field("dev", description="What the results on its dev split are called.")
    evaluate_test: bool = Field(description="Evaluate on test once, at the end.")
    language_model: LanguageModelConfig | None = Field(None, description="With which dev and test are decoded.")
    language_model_sha256: str | None = Field(None, description="Content of its files.")
    keep: Literal["last", "best"] = Field("last", description="Weights that are stored and tested; best on dev.")
    precision: Precision = "fp32"
    compile_layers: bool = Field(False, description="torch.compile; its dropout draws other numbers.")
    seed: int
    initial: InitialWeights | None = None
    start: TrainedWeights | None = None
    version: int = Field(4, description="Raised by hand where the mathematics of training changes.")
    checkpoint_seconds: float = cosmetic(20.0, description="Time between checkpoints.", gt=0)

    @model_validator(mode="after")
    def _trains_or_decodes(self) -> Self:
        if (self.kind == "decode") != (self.language_model is not None) or bool(self.phases) != (self.steps > 0):
            raise ValueError("a stage has phases and steps, or else decodes with a language model")
        return self

    @property
    def self_supervision(self) -> SelfSupervision:
        """What the self-supervised head is for."""
        found = [kind for phase in self.phases if (kind := self_supervision(phase.loss))]
        return found[0] if found else "contrastive"

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The kinds of audio that the stage reads."""
        used = {stream for phase in self.phases for stream in phase.loss.streams} or {"labelled"}
        return tuple(stream for stream in get_args(Stream) if stream in used)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the model that the stage trains, and stores at its end."""
        return tuple(dict.fromkeys(part for phase in self.phases for part in phase.loss.parts))

    def phase_at(self, step: int) -> int:
        """Index of the phase that makes update number `step`."""
        position = step % sum(phase.steps for phase in self.phases)
        for index, phase in enumerate(self.phases):
            position -= phase.steps
            if position < 0:
                return index
        raise AssertionError("unreachable: position is within the cycle")

    def fingerprint(self) -> str:
        """16 hexadecimal digits of the sha256 of everything that can change the result."""
        payload = {name: _identity(value) for name, value in _identifying_fields(self)}
        return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:16]

    def name(self) -> str:
        """Readable name and fingerprint, unique to this stage."""
        return f"{self.kind}-{self.model.family}-{self.steps}steps-seed{self.seed}-{self.fingerprint()}"


def _identifying_fields(config: BaseModel) -> Iterator[tuple[str, Any]]:
    for name, field in type(config).model_fields.items():
        extra = field.json_schema_extra
        if not (isinstance(extra, dict) and extra.get("cosmetic")):
            yield name, getattr(config, name)


def _identity(value: Any) -> Any:
    if isinstance(value, Stage):
        return value.fingerprint()
    if isinstance(value, BaseModel):
        return {name: _identity(inner) for name, inner in _identifying_fields(value)}
    if isinstance(value, list | tuple):
        return [_identity(inner) for inner in value]
    if isinstance(value, dict):
        return {str(key): _identity(inner) for key, inner in value.items()}
    return value


class Report(Config):
    """Metrics of a stage at one step, and what it had cost by then."""

    step: int
    metrics: dict[str, float]
    audio_seconds: float = Field(description="Audio processed by all workers, every stream and repetition counted.")
    epochs: float
    elapsed_seconds: float = Field(description="Time spent in the stage, over all its attempts.")
    accelerator_seconds: float = Field(description="elapsed_seconds x workers; without a GPU, a worker counts as one.")
    reported_at: float = Field(description="Unix time.")
    device: str | None = Field(
        None, description="Name of the accelerator, or else of the processor, of the first worker. None: not recorded."
    )
    parameters: int | None = Field(None, description="Of the recogniser: backbone and CTC head. With results on dev.")
    real_time_factor: float | None = Field(
        None, description="Seconds of all workers to transcribe a second of audio of dev. With results on dev."
    )


class InferenceTime(Config):
    """How long a trained model takes to recognise a split of its corpus (trainables/inference_time.py)."""

    split: Literal["dev", "test"]
    batch_seconds: float = Field(description="Padded audio in a batch.")
    device: str = Field(description="Its name.")
    utterances: int
    audio_seconds: float
    seconds: tuple[float, ...] = Field(description="Of each pass over the split; those to warm up are left out.")


class StageResult(Config):
    """What a finished stage leaves beside its weights."""

    reports: tuple[Report, ...]
    num_parameters: int

    @property
    def last(self) -> Report:
        return self.reports[-1]


def chain(stage: Stage) -> Sequence[Stage]:
    """The stage and all that it starts from, in the order in which they run."""
    return (*(chain(stage.initial.stage) if stage.initial else ()), stage)


InitialWeights.model_rebuild()
