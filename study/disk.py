"""How much disk stages take, known before anything starts. Needs no torch.

Weights and the optimisers' moments are counted exactly, as numbers of 4 bytes; hypotheses and curves roughly.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

from trainables.data.config import CorpusConfig, LettersConfig, PhonesConfig, PiecesConfig, StageOutputsConfig
from trainables.data.corpus import AbsentCorpusError, Utterance
from trainables.data.text import LETTERS, Characters
from trainables.losses.config import Part, PseudoLabelConfig
from trainables.models.sizes import num_constants, num_extractor_parameters, num_parameters
from trainables.stage import Phase, Stage, chain
from trainables.trial import corpus_of

BYTES_PER_NUMBER = 4  # fp32, whatever the precision of the stage
ASSUMED_SYMBOLS = 32  # outputs, where a corpus is not here; and of phones
PARTS: tuple[Part, ...] = ("backbone", "ctc_head", "self_supervised_head")

# Measured, beside the texts of a hypothesis and for a report of some metrics; settings are those of one stage.
HYPOTHESIS_BYTES, REPORT_BYTES, SETTINGS_BYTES = 170, 330, 2_000


@dataclass(frozen=True)
class DiskEstimate:
    """`kept_bytes`: what all stages keep; `training_bytes`: the most that those in training take beside it."""

    kept_bytes: int
    training_bytes: int


def disk_estimate(stages: Iterable[Stage], concurrent: int) -> DiskEstimate:
    """What these stages take, when at most `concurrent` of them train at a time.

    A stage counts as often as it is given. The largest may train together, and each of them write a new checkpoint
    beside its last two.
    """
    stages = list(stages)
    most = sorted((training_bytes(stage) + checkpoint_bytes(stage) for stage in stages), reverse=True)
    return DiskEstimate(sum(map(stage_bytes, stages)), sum(most[:concurrent]))


def stage_bytes(stage: Stage) -> int:
    """What the stage keeps when it has finished: weights of the parts that it trains, hypotheses, its curve."""
    hypotheses = _hypotheses_bytes(stage.corpus, dev=_evaluates_dev(stage), test=_evaluates_test(stage))
    return _weights_bytes(stage, stage.parts) + hypotheses + _curve_bytes(stage) + SETTINGS_BYTES * len(chain(stage))


def training_bytes(stage: Stage) -> int:
    """What the stage takes while it trains: two checkpoints, each with the best weights by then if it keeps those."""
    kept = _weights_bytes(stage, stage.parts) if stage.keep == "best" else 0
    return 2 * (checkpoint_bytes(stage) + kept)


def checkpoint_bytes(stage: Stage) -> int:
    """The weights of the whole model, and for each phase two moments of what it trains. 0 for a stage that decodes."""
    if not stage.phases:
        return 0
    return (
        _weights_bytes(stage, PARTS) + sum(_phase_bytes(stage, phase) for phase in stage.phases) + _curve_bytes(stage)
    )


def num_outputs(stage: Stage) -> int:
    """Symbols that the stage's CTC head writes, the blank included; assumed where they cannot be known."""
    return _num_outputs(stage.outputs, stage.corpus)


@functools.lru_cache
def _num_outputs(outputs: StageOutputsConfig, corpus: CorpusConfig) -> int:
    if isinstance(outputs, LettersConfig):
        return len(LETTERS)
    if isinstance(outputs, PiecesConfig):
        return outputs.vocabulary_size
    if isinstance(outputs, PhonesConfig):
        return ASSUMED_SYMBOLS
    try:
        return len(Characters(u.text or "" for u in corpus_of(corpus).train))
    except AbsentCorpusError:
        return ASSUMED_SYMBOLS


def _weights_bytes(stage: Stage, parts: Iterable[Part]) -> int:
    return BYTES_PER_NUMBER * sum(
        _parameters(stage, part) + num_constants(stage.model, part, stage.self_supervision) for part in parts
    )


def _parameters(stage: Stage, part: Part) -> int:
    return num_parameters(stage.model, part, num_outputs(stage), stage.self_supervision)


def _phase_bytes(stage: Stage, phase: Phase) -> int:
    """The moments of AdamW, and the weights of the teacher if there is one."""
    teacher = _weights_bytes(stage, phase.loss.parts) if isinstance(phase.loss, PseudoLabelConfig) else 0
    return 2 * BYTES_PER_NUMBER * _learning(stage, phase) + teacher


def _learning(stage: Stage, phase: Phase) -> int:
    """Parameters that the phase changes; what is frozen all the time has no moments."""
    learning = sum(_parameters(stage, part) for part in phase.loss.parts)
    if phase.frozen_backbone_steps >= stage.steps:
        return learning - _parameters(stage, "backbone")
    return learning - (num_extractor_parameters(stage.model) if phase.loss.freezes_extractor else 0)


def _evaluates_dev(stage: Stage) -> bool:
    return stage.evaluate_every is not None or stage.language_model is not None


def _evaluates_test(stage: Stage) -> bool:
    return stage.evaluate_test or stage.language_model is not None


@functools.lru_cache
def _hypotheses_bytes(corpus: CorpusConfig, *, dev: bool, test: bool) -> int:
    """Of the hypotheses of dev and test, each as long as its reference; 0 where the corpus is not here."""
    try:
        found = corpus_of(corpus)
    except AbsentCorpusError:
        return 0
    utterances: list[Utterance] = [*(found.dev if dev else ()), *(found.test if test else ())]
    return sum(HYPOTHESIS_BYTES + 2 * len((u.text or "").encode()) for u in utterances)


def _curve_bytes(stage: Stage) -> int:
    evaluations = stage.steps // stage.evaluate_every if stage.evaluate_every else 0
    return REPORT_BYTES * (stage.steps // stage.report_every + evaluations + 1)
