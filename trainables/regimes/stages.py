"""From a regime's settings to its stages.

Adding a regime: a settings class and its line in the union of `config.py`, and here one function and its line in
`REGIMES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainables.config import Config
from trainables.data.config import CorpusConfig
from trainables.losses.config import LossConfig
from trainables.models.presets import ModelConfig
from trainables.regimes.config import (
    BlJustRegime,
    PretrainFinetuneRegime,
    RegimeConfig,
    StageSettings,
    SupervisedRegime,
)
from trainables.stage import InitialWeights, Phase, Stage, StageKind, TrainedWeights


class Setting(Config):
    """What the stages of a trial have in common. `fingerprints` are those of the labelled and the unlabelled data.

    The first stage takes over the weights of `start`.
    """

    corpus: CorpusConfig
    fingerprints: dict[str, str]
    model: ModelConfig
    start: TrainedWeights | None = None
    seed: int


def _stage(
    setting: Setting,
    settings: StageSettings,
    kind: StageKind,
    phases: tuple[Phase, ...],
    *,
    last: bool = False,
    initial: InitialWeights | None = None,
) -> Stage:
    reads = {stream for phase in phases for stream in phase.loss.streams}
    return Stage(
        kind=kind,
        corpus=setting.corpus,
        data_fingerprint="-".join(setting.fingerprints[stream] for stream in sorted(reads)),
        model=setting.model,
        phases=phases,
        steps=settings.steps,
        batch_seconds=settings.batch_seconds,
        augment_speed=settings.augment_speed,
        schedule=settings.schedule,
        report_every=settings.report_every,
        evaluate_every=getattr(settings, "evaluate_every", None),
        evaluate_test=last,
        seed=setting.seed if settings.seed is None else settings.seed,
        initial=initial,
        start=setting.start if initial is None else None,
        precision=settings.precision,
        compile_layers=settings.compile_layers,
        checkpoint_seconds=settings.checkpoint_seconds,
    )


def _phase(loss: LossConfig, settings: StageSettings, steps: int = 1, **learning_rates: float) -> Phase:
    rates: Any = {part: learning_rates.get(part, learning_rates["default"]) for part in loss.parts}
    return Phase(loss=loss, learning_rates=rates, optimiser=settings.optimiser, steps=steps)


def supervised(regime: SupervisedRegime, setting: Setting) -> Stage:
    train = regime.train
    return _stage(setting, train, "supervised", (_phase(train.loss, train, default=train.learning_rate),), last=True)


def pretrain_finetune(regime: PretrainFinetuneRegime, setting: Setting) -> Stage:
    first, second = regime.pretrain, regime.finetune
    pretraining = _stage(setting, first, "pretrain", (_phase(first.loss, first, default=first.learning_rate),))
    initial = InitialWeights(stage=pretraining, parts=("backbone",))
    phases = (_phase(second.loss, second, default=second.learning_rate),)
    return _stage(setting, second, "finetune", phases, initial=initial, last=True)


def bl_just(regime: BlJustRegime, setting: Setting) -> Stage:
    settings, final = regime.joint, regime.finetune
    alpha, beta = settings.lower_learning_rate, settings.upper_learning_rate
    phases = [_phase(settings.loss, settings, settings.joint_steps, default=beta, self_supervised_head=alpha)]
    if settings.exploration_steps:
        phases.insert(0, _phase(settings.loss.contrastive, settings, settings.exploration_steps, default=alpha))
    joint = _stage(setting, settings, "joint", tuple(phases), last=final is None)
    if final is None:
        return joint
    initial = InitialWeights(stage=joint, parts=("backbone", "ctc_head"))
    tuning = _phase(final.loss, final, default=beta * final.learning_rate_scale)
    return _stage(setting, final, "finetune", (tuning,), initial=initial, last=True)


REGIMES: dict[type, Callable[..., Stage]] = {
    SupervisedRegime: supervised,
    PretrainFinetuneRegime: pretrain_finetune,
    BlJustRegime: bl_just,
}


def last_stage(regime: RegimeConfig, setting: Setting) -> Stage:
    """The last stage of the regime; it holds the earlier ones (`trainables.stage.chain`)."""
    return REGIMES[type(regime)](regime, setting)
