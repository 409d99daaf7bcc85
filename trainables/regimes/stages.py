"""From a regime's settings to its stages.

Adding a regime: a settings class and its line in the union of `config.py`, and here one function and its line in
`REGIMES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainables.data.config import CharactersConfig, CorpusConfig, OutputsConfig, PhonesConfig
from trainables.data.symbols import made_with
from trainables.decoding.config import LanguageModelConfig
from trainables.decoding.files import fingerprint
from trainables.losses.config import BilevelConfig, CtcConfig, LossConfig, Part, PseudoLabelConfig, Stream
from trainables.models.config import TransformerConfig
from trainables.models.presets import ModelConfig
from trainables.regimes.config import (
    BlJustRegime,
    EvaluatedSettings,
    JointRegime,
    PretrainFinetuneRegime,
    PretrainSettings,
    RegimeConfig,
    SemiSupervisedSettings,
    StageDropoutConfig,
    StageSettings,
    SupervisedRegime,
    SupervisedSettings,
    Wav2vecSRegime,
)
from trainables.stage import InitialWeights, Phase, Stage, StageKind, TrainedWeights


@dataclass(frozen=True)
class StageData:
    """What a stage needs to know of a corpus: where it is, its content, and how much there is (None: not known)."""

    corpus: CorpusConfig
    fingerprints: Mapping[Stream, str]
    seconds: Mapping[Stream, float | None]


@dataclass(frozen=True)
class Setting:
    """What the stages of a trial have in common. The first stage takes over the weights of `start`."""

    corpus: CorpusConfig
    read: Callable[[CorpusConfig], StageData]
    model: ModelConfig
    seed: int
    outputs: OutputsConfig
    start: TrainedWeights | None = None


def _stage(
    setting: Setting,
    settings: StageSettings,
    kind: StageKind,
    phases: tuple[Phase, ...],
    *,
    last: bool = False,
    initial: InitialWeights | None = None,
    corpus: CorpusConfig | None = None,
    phones: str | None = None,
) -> Stage:
    """`phones`: the language whose phones are the outputs, in place of the trial's outputs."""
    data = setting.read(corpus or settings.corpus or setting.corpus)
    reads = {stream for phase in phases for stream in phase.loss.streams}
    evaluated = settings if isinstance(settings, EvaluatedSettings) else None
    # Without labels nothing is written: pre-training is shared by trials with other outputs.
    written = setting.outputs if "labelled" in reads else CharactersConfig()
    outputs = PhonesConfig(language=phones) if phones else written
    return Stage(
        kind=kind,
        corpus=data.corpus,
        data_fingerprint="-".join(data.fingerprints[stream] for stream in sorted(reads)),
        model=_with_dropout(setting.model, settings.dropout),
        phases=phases,
        steps=_steps(settings, data, "labelled" if "labelled" in reads else "unlabelled"),
        batch_seconds=settings.batch_seconds,
        accumulation=settings.accumulation,
        augment_speed=settings.augment_speed,
        crop=settings.crop if "unlabelled" in reads else None,
        outputs=outputs,
        outputs_made_with=made_with(outputs),
        schedule=settings.schedule,
        report_every=settings.report_every,
        evaluate_every=evaluated.evaluate_every if evaluated else None,
        dev_name="source_dev" if kind == "semi_supervised" else "dev",
        evaluate_test=last,
        keep=evaluated.keep if evaluated and last else "last",
        seed=setting.seed if settings.seed is None else settings.seed,
        initial=initial,
        start=setting.start if initial is None else None,
        precision=settings.precision,
        compile_layers=settings.compile_layers,
        checkpoint_seconds=settings.checkpoint_seconds,
        version=_version(phases),
    )


def _version(phases: tuple[Phase, ...]) -> int:
    """Of the mathematics. 5: equal masks are so of channels too; stages without them stay what they were, at 4."""
    ctc = [loss.ctc for phase in phases if isinstance(loss := phase.loss, BilevelConfig | PseudoLabelConfig)]
    ctc += [loss for phase in phases if isinstance(loss := phase.loss, CtcConfig)]
    return 5 if any(loss.mask.equal for loss in ctc) else 4


def _with_dropout(model: ModelConfig, dropout: StageDropoutConfig | None) -> ModelConfig:
    """The model with the stage's dropouts. Raises ValueError for a model that is no transformer."""
    if dropout is None:
        return model
    if not isinstance(model, TransformerConfig):
        raise ValueError(f"dropout of a stage is for transformers; a {model.kind} has one of its own, model.dropout")
    return model.with_(dropout=model.dropout.with_(**dropout.model_dump(exclude_none=True)))


def _steps(settings: StageSettings, data: StageData, stream: Stream) -> int:
    """Updates of the stage. Raises ValueError when it is as long as a corpus of which nothing is known."""
    if settings.steps is not None:
        return settings.steps
    assert settings.epochs is not None
    seconds = data.seconds[stream]
    if seconds is None:
        raise ValueError(
            f"epochs: {settings.epochs:g} of the {stream} speech are not known before the corpus is there; give steps"
        )
    return max(1, round(settings.epochs * seconds / settings.batch_seconds))


def _phase(
    loss: LossConfig, settings: StageSettings, *, steps: int = 1, frozen: int = 0, **learning_rates: float
) -> Phase:
    """`learning_rates` of the parts, and `default` for those that are not named."""
    rates: Any = {part: learning_rates.get(part, learning_rates["default"]) for part in loss.parts}
    return Phase(
        loss=loss, learning_rates=rates, optimiser=settings.optimiser, steps=steps, frozen_backbone_steps=frozen
    )


def _pretraining(setting: Setting, settings: PretrainSettings) -> Stage:
    return _stage(setting, settings, "pretrain", (_phase(settings.loss, settings, default=settings.learning_rate),))


def _pretrained(setting: Setting, settings: PretrainSettings | None, loss: LossConfig) -> InitialWeights | None:
    """The pre-training that a stage with this loss starts from: its backbone, and its head where the loss goes on."""
    if settings is None:
        return None
    stage = _pretraining(setting, settings)
    goes_on = isinstance(loss, BilevelConfig) and loss.self_supervised.kind == settings.loss.kind
    parts: tuple[Part, ...] = ("backbone", "self_supervised_head") if goes_on else ("backbone",)
    return InitialWeights(stage=stage, parts=parts)


def _finetuning(setting: Setting, settings: SupervisedSettings, initial: InitialWeights) -> Stage:
    phase = _phase(settings.loss, settings, frozen=settings.frozen_backbone_steps, default=settings.learning_rate)
    return _stage(setting, settings, "finetune", (phase,), initial=initial, last=True)


def supervised(regime: SupervisedRegime, setting: Setting) -> Stage:
    train = regime.train
    phase = _phase(train.loss, train, frozen=train.frozen_backbone_steps, default=train.learning_rate)
    return _stage(setting, train, "supervised", (phase,), last=True)


def pretrain_finetune(regime: PretrainFinetuneRegime, setting: Setting) -> Stage:
    initial = InitialWeights(stage=_pretraining(setting, regime.pretrain), parts=("backbone",))
    return _finetuning(setting, regime.finetune, initial)


def bl_just(regime: BlJustRegime, setting: Setting) -> Stage:
    settings, final = regime.joint, regime.finetune
    alpha, beta = settings.lower_learning_rate, settings.upper_learning_rate
    head_rate = settings.head_learning_rate or beta
    steps = settings.joint_steps
    phases = [
        _phase(settings.loss, settings, steps=steps, default=beta, self_supervised_head=alpha, ctc_head=head_rate)
    ]
    if settings.exploration_steps:
        exploration = settings.loss.self_supervised
        phases.insert(0, _phase(exploration, settings, steps=settings.exploration_steps, default=alpha))
    initial = _pretrained(setting, regime.pretrain, settings.loss)
    joint = _stage(setting, settings, "joint", tuple(phases), last=final is None, initial=initial)
    if final is None:
        return joint
    initial = InitialWeights(stage=joint, parts=("backbone", "ctc_head"))
    tuning = _phase(final.loss, final, default=beta * final.learning_rate_scale)
    return _stage(setting, final, "finetune", (tuning,), initial=initial, last=True, corpus=settings.corpus)


def joint(regime: JointRegime, setting: Setting) -> Stage:
    train, weight = regime.train, regime.train.self_supervised_weight
    loss = BilevelConfig(gamma_start=weight, gamma_end=weight, ctc=train.ctc, self_supervised=train.self_supervised)
    initial = _pretrained(setting, regime.pretrain, loss)
    phases = (_phase(loss, train, default=train.learning_rate),)
    return _stage(setting, train, "joint", phases, last=True, initial=initial)


def wav2vec_s(regime: Wav2vecSRegime, setting: Setting) -> Stage:
    settings = regime.semi_supervised
    loss = _semi_supervised_loss(settings)
    phase = _phase(loss, settings, frozen=settings.frozen_backbone_steps, default=settings.learning_rate)
    language = (settings.corpus or setting.corpus).language
    stage = _stage(
        setting,
        settings,
        "semi_supervised",
        (phase,),
        initial=_pretrained(setting, regime.pretrain, loss),
        phones=language if settings.labels == "phones" else None,
    )
    return _finetuning(setting, regime.finetune, InitialWeights(stage=stage, parts=("backbone",)))


def _semi_supervised_loss(settings: SemiSupervisedSettings) -> CtcConfig | BilevelConfig | PseudoLabelConfig:
    weight = settings.unlabelled_weight
    match settings.unlabelled:
        case "none":
            return settings.ctc
        case "contrastive":
            return BilevelConfig(
                gamma_start=weight, gamma_end=weight, ctc=settings.ctc, self_supervised=settings.self_supervised
            )
        case "pseudo_labels":
            return PseudoLabelConfig(
                weight=weight,
                teacher_decay=settings.teacher_decay,
                warmup_steps=settings.teacher_warmup_steps,
                ctc=settings.ctc,
            )


REGIMES: dict[type, Callable[..., Stage]] = {
    SupervisedRegime: supervised,
    PretrainFinetuneRegime: pretrain_finetune,
    BlJustRegime: bl_just,
    JointRegime: joint,
    Wav2vecSRegime: wav2vec_s,
}


def last_stage(regime: RegimeConfig, setting: Setting) -> Stage:
    """The last stage of the regime; it holds the earlier ones (`trainables.stage.chain`)."""
    return REGIMES[type(regime)](regime, setting)


def decoding(trained: Stage, language_model: LanguageModelConfig, setting: Setting) -> Stage:
    """The stage that decodes what another one has trained."""
    return Stage(
        kind="decode",
        corpus=trained.corpus,
        data_fingerprint=setting.read(trained.corpus).fingerprints["labelled"],
        model=trained.model,
        phases=(),
        steps=0,
        batch_seconds=trained.batch_seconds,
        augment_speed=False,
        outputs=trained.outputs,
        outputs_made_with=trained.outputs_made_with,
        schedule=trained.schedule,
        report_every=1,
        evaluate_every=None,
        evaluate_test=True,
        language_model=language_model,
        language_model_sha256=fingerprint(language_model),
        precision=trained.precision,
        seed=trained.seed,
        initial=InitialWeights(stage=trained, parts=("backbone", "ctc_head")),
    )
