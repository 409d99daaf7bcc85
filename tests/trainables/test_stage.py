"""Stages: what their identity holds, their schedule and their phases."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainables.config import Progress
from trainables.data.config import CropConfig, FolderConfig, LettersConfig, PromptsConfig
from trainables.decoding.config import LanguageModelConfig
from trainables.losses.config import BilevelConfig, ContrastiveConfig, CtcConfig, MaskConfig
from trainables.models.config import CompactCnnGruConfig, QuantiserConfig
from trainables.models.presets import PRESETS
from trainables.stage import InitialWeights, OptimiserConfig, Phase, Stage, TrainedWeights, TriStageConfig, chain

SELF_SUPERVISED = Phase(loss=ContrastiveConfig(), learning_rates={"backbone": 1e-3, "self_supervised_head": 2e-3})
BILEVEL = Phase(
    loss=BilevelConfig(), learning_rates={"backbone": 3e-3, "ctc_head": 4e-3, "self_supervised_head": 5e-3}, steps=3
)
CTC = Phase(loss=CtcConfig(), learning_rates={"backbone": 6e-3, "ctc_head": 7e-3})

PRETRAIN = Stage(
    kind="pretrain",
    corpus=FolderConfig(root=Path("/corpora/here")),
    data_fingerprint="unlabelled",
    model=CompactCnnGruConfig(),
    phases=(SELF_SUPERVISED,),
    steps=100,
    batch_seconds=24,
    augment_speed=True,
    schedule=TriStageConfig(),
    report_every=10,
    evaluate_every=None,
    evaluate_test=False,
    seed=1,
)
JOINT = PRETRAIN.with_(
    kind="joint",
    data_fingerprint="labelled-unlabelled",
    phases=(SELF_SUPERVISED, BILEVEL),
    evaluate_every=50,
    initial=InitialWeights(stage=PRETRAIN, parts=("backbone",)),
)
FINETUNE = JOINT.with_(
    kind="finetune",
    data_fingerprint="labelled",
    phases=(CTC,),
    evaluate_test=True,
    initial=InitialWeights(stage=JOINT, parts=("backbone", "ctc_head")),
)

DECODE = FINETUNE.with_(
    kind="decode",
    phases=(),
    steps=0,
    language_model=LanguageModelConfig(),
    initial=InitialWeights(stage=FINETUNE, parts=("backbone", "ctc_head")),
)

COSMETIC = {"corpus", "checkpoint_seconds"}

# Another value of every field. A field added to Stage needs its line here.
ALTERNATIVES: dict[str, Any] = {
    "kind": "supervised",
    "corpus": PromptsConfig(language="fr"),
    "data_fingerprint": "other",
    "model": CompactCnnGruConfig(gru_layers=2),
    "phases": (CTC, CTC),
    "steps": 101,
    "batch_seconds": 25.0,
    "augment_speed": False,
    "crop": CropConfig(),
    "accumulation": 2,
    "outputs": LettersConfig(),
    "outputs_made_with": "sentencepiece 0.2.3",
    "schedule": TriStageConfig(warmup_fraction=0.2),
    "report_every": 11,
    "evaluate_every": None,
    "dev_name": "source_dev",
    "evaluate_test": False,
    "keep": "best",
    "language_model": LanguageModelConfig(weight=3.0),
    "language_model_sha256": "cd",
    "precision": "bf16",
    "compile_layers": True,
    "seed": 2,
    "initial": None,
    "start": TrainedWeights(source="weights", sha256="ab"),
    "version": 5,
    "checkpoint_seconds": 7.0,
}


def ctc_phase(**changes: Any) -> dict[str, Any]:
    return {"phases": (CTC.with_(**changes),)}


def upstream(**changes: Any) -> dict[str, Any]:
    return {"initial": InitialWeights(stage=JOINT.with_(**changes), parts=("backbone", "ctc_head"))}


NESTED: dict[str, dict[str, Any]] = {
    "loss": ctc_phase(loss=CtcConfig(mask=MaskConfig(time_length=6))),
    "learning rate": ctc_phase(learning_rates={"backbone": 6e-3, "ctc_head": 8e-3}),
    "learning rates swapped": ctc_phase(learning_rates={"backbone": 7e-3, "ctc_head": 6e-3}),
    "optimiser": ctc_phase(optimiser=OptimiserConfig(betas=(0.9, 0.99))),
    "steps of a phase": ctc_phase(steps=2),
    "frozen backbone": ctc_phase(frozen_backbone_steps=1),
    "frozen extractor": ctc_phase(loss=CtcConfig(extractor_gradient=0)),
    "model": {"model": CompactCnnGruConfig(quantiser=QuantiserConfig(entries=65))},
    "schedule": {"schedule": TriStageConfig(end_scale=0.06)},
    "upstream seed": upstream(seed=2),
    "upstream loss": upstream(phases=(SELF_SUPERVISED, BILEVEL.with_(loss=BilevelConfig(gamma_end=2)))),
    "upstream order of phases": upstream(phases=(BILEVEL, SELF_SUPERVISED)),
    "parts taken over": {"initial": InitialWeights(stage=JOINT, parts=("backbone",))},
}


@pytest.mark.parametrize("field", Stage.model_fields)
def test_every_field_except_the_cosmetic_ones_is_in_the_fingerprint(field: str) -> None:
    stage = DECODE if field.startswith("language_model") else FINETUNE
    changed = stage.with_(**{field: ALTERNATIVES[field]})
    assert getattr(changed, field) != getattr(stage, field)
    assert (changed.fingerprint() == stage.fingerprint()) == (field in COSMETIC)


def test_the_cosmetic_fields_of_a_stage_are_the_corpus_and_the_checkpoint_interval() -> None:
    extras = {name: field.json_schema_extra or {} for name, field in Stage.model_fields.items()}
    assert {name for name, extra in extras.items() if isinstance(extra, dict) and extra.get("cosmetic")} == COSMETIC


@pytest.mark.parametrize("change", [{"corpus": FolderConfig(root=Path("/elsewhere"))}, {"checkpoint_seconds": 7.0}])
def test_a_cosmetic_change_upstream_leaves_the_fingerprint(change: dict[str, Any]) -> None:
    assert FINETUNE.with_(**change, **upstream(**change)).fingerprint() == FINETUNE.fingerprint()


@pytest.mark.parametrize("change", NESTED.values(), ids=NESTED)
def test_a_nested_change_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert FINETUNE.with_(**change).fingerprint() != FINETUNE.fingerprint()


def other_numbers(value: Any) -> Iterator[tuple[str, Any]]:
    """The path of each number and switch in dumped settings, and the settings with another value there."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            for path, changed in other_numbers(inner):
                copy = value.copy()
                copy[key] = changed
                yield f".{key}{path}", copy
    elif isinstance(value, bool):
        yield "", not value
    elif isinstance(value, int | float):
        yield "", value + 2 if isinstance(value, int) else value * 0.8 + 0.003


def test_every_number_in_a_chain_of_stages_is_in_the_fingerprint_of_the_last() -> None:
    changes = dict(other_numbers(FINETUNE.model_dump(mode="json")))
    same = {p for p, dump in changes.items() if Stage.model_validate(dump).fingerprint() == FINETUNE.fingerprint()}
    assert ".initial.stage.initial.stage.phases.0.loss.temperature" in changes
    places = ("", ".initial.stage", ".initial.stage.initial.stage")
    cosmetic = ("checkpoint_seconds", "corpus.unlabelled_fraction", "corpus.subset_seed")
    assert same == {f"{place}.{name}" for place in places for name in cosmetic}


def test_a_stage_read_back_from_json_has_the_same_fingerprint() -> None:
    assert Stage.model_validate_json(FINETUNE.model_dump_json()).fingerprint() == FINETUNE.fingerprint()


def test_trained_weights_are_known_by_their_content_wherever_they_lie() -> None:
    here, there = (PRETRAIN.with_(start=TrainedWeights(source=source, sha256="ab")) for source in ("here", "there"))
    changed = PRETRAIN.with_(start=TrainedWeights(source="here", sha256="cd"))
    assert here.fingerprint() == there.fingerprint() != changed.fingerprint()


def test_a_preset_is_the_model_that_it_fills_in() -> None:
    named, spelt_out = (PRETRAIN.with_(model=PRESETS["sew_tiny"].with_(preset=name)) for name in ("sew_tiny", None))
    assert named.fingerprint() == spelt_out.fingerprint()


def test_golden_fingerprint() -> None:
    """Changes only when stage identity is meant to change: every stored stage is then trained again."""
    assert FINETUNE.fingerprint() == "ab7097a50d786d34"


def test_the_name_ends_in_the_fingerprint() -> None:
    assert FINETUNE.name() == f"finetune-compact_cnn_gru-100steps-seed1-{FINETUNE.fingerprint()}"


def test_a_chain_runs_from_the_first_stage_to_the_last() -> None:
    assert list(chain(FINETUNE)) == [PRETRAIN, JOINT, FINETUNE]
    assert list(chain(PRETRAIN)) == [PRETRAIN]


# Phases and schedule


def test_phases_alternate_by_their_steps_and_start_over() -> None:
    assert [JOINT.phase_at(step) for step in range(9)] == [0, 1, 1, 1, 0, 1, 1, 1, 0]


def test_a_stage_trains_the_parts_and_reads_the_streams_of_all_its_phases() -> None:
    assert set(JOINT.parts) == {"backbone", "ctc_head", "self_supervised_head"}
    assert JOINT.streams == ("labelled", "unlabelled")
    assert (FINETUNE.parts, FINETUNE.streams) == (("backbone", "ctc_head"), ("labelled",))


@pytest.mark.parametrize(
    ("progress", "scale"),
    [(0, 0.1), (0.1, 0.55), (0.2, 1), (0.4, 1), (0.6, 1), (0.8, math.sqrt(0.04)), (1, 0.04)],
)
def test_the_schedule_warms_up_linearly_stays_and_decays_geometrically(progress: float, scale: float) -> None:
    schedule = TriStageConfig(warmup_fraction=0.2, decay_fraction=0.4, start_scale=0.1, end_scale=0.04)
    assert schedule.scale(Progress(round(progress * 10), 10)) == pytest.approx(scale)


@pytest.mark.parametrize("progress", [0, 0.5, 1])
def test_a_schedule_without_warmup_and_decay_is_constant(progress: float) -> None:
    assert TriStageConfig(warmup_fraction=0, decay_fraction=0).scale(Progress(round(progress * 2), 2)) == 1


def test_warmup_and_decay_must_fit_into_the_stage() -> None:
    with pytest.raises(ValueError, match="at most 1"):
        TriStageConfig(warmup_fraction=0.6, decay_fraction=0.5)


# Store
