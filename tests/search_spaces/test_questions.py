"""The papers' questions: each has its sweep for the real corpora, and a small twin that really trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import search_spaces
from study.plan import make_plan
from study.spec import StudySpec, read_spec
from trainables.loop import run_stage
from trainables.stage import InitialWeights, Stage
from trainables.store import StageStore
from trainables.trial import stages_of

FOLDER = Path(search_spaces.__file__).parent
QUESTIONS = (
    "bl_just_learning_rates",
    "cnn_gru_layers",
    "wav2vec2_just_languages",
    "model_sizes_100k",
    "model_sizes_400k",
    "labelled_budgets",
    "transfer",
    "squeeze_ablation",
    "unlabelled_hours",
    "cross_lingual_code_switching",
    "sew_d_width_by_fraction",
)
TWINS = (*(f"{question}_prompts" for question in QUESTIONS), "regimes_prompts")
QUICK = ("regimes_prompts", "squeeze_ablation_prompts", "cross_lingual_code_switching_prompts")
ON_LIBRISPEECH = ("labelled_budgets", "model_sizes_100k", "squeeze_ablation", "sew_d_width_by_fraction")


def read(name: str) -> StudySpec:
    return read_spec(FOLDER / f"{name}.yaml", absent_is_fine=True)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_planned_while_its_corpora_are_absent_and_tells_them(
    question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORPORA", "/nowhere")
    plan = make_plan(read(question))
    assert plan.absent
    assert all(reason.startswith("/nowhere/") for reason in plan.absent)


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_twin_searches_what_its_question_searches(question: str) -> None:
    asked, small = read(question), read(f"{question}_prompts")
    searched = {path for arm in asked.arms.values() for path in arm.space} - {"seed"}
    assert {path for arm in small.arms.values() for path in arm.space} == searched
    assert make_plan(small).absent == []


@pytest.mark.parametrize("question", ON_LIBRISPEECH)
def test_sew_s_questions_train_for_100_thousand_updates_of_the_schedule_of_400_thousand(question: str) -> None:
    spec = read(question)
    for arm in spec.arms:
        pretrain, finetune, *_ = stages_of(spec.trial_config(arm))
        assert (pretrain.steps, getattr(pretrain.schedule, "total_steps", None)) == (100_000, 400_000)
        assert (pretrain.batch_seconds, finetune.batch_seconds) == (5600, 1600)


def test_the_arms_of_labelled_budgets_share_one_pretraining_a_model() -> None:
    spec = read("labelled_budgets")
    pretrained = {stages_of(spec.trial_config(arm))[0].fingerprint() for arm in spec.arms}
    assert (len(spec.arms), len(pretrained)) == (9, 3)


def test_at_fixed_epochs_updates_grow_with_the_hours_and_at_fixed_updates_they_do_not() -> None:
    spec = read("unlabelled_hours")

    def steps(arm: str, hours: int) -> int:
        return stages_of(spec.trial_config(arm, {"corpus.unlabelled_hours": hours}))[0].steps

    assert steps("task_agnostic_fixed_epochs", 960) == pytest.approx(
        10 * steps("task_agnostic_fixed_epochs", 96), rel=0.01
    )
    assert steps("task_agnostic_fixed_updates", 960) == steps("task_agnostic_fixed_updates", 96) == 100_000


def test_cross_lingual_pretraining_and_its_control_match_in_hours_architecture_and_updates() -> None:
    """On embedded speech; within one utterance of a few seconds."""
    spec = read("cross_lingual_code_switching_prompts")
    pretrainings = [stages_of(spec.trial_config(arm))[0] for arm in ("monolingual", "cross_lingual")]
    assert len({(stage.model, stage.steps, stage.batch_seconds) for stage in pretrainings}) == 1
    one, several = (spec.trial_config(arm).corpus for arm in ("monolingual", "cross_lingual"))
    assert one.unlabelled_hours == several.unlabelled_hours


def shortened(stage: Stage) -> Stage:
    """Two updates of each stage of the chain."""
    initial = stage.initial and InitialWeights(stage=shortened(stage.initial.stage), parts=stage.initial.parts)
    if stage.kind == "decode":
        return stage.with_(initial=initial)
    evaluate = 2 if stage.evaluate_every else None
    return stage.with_(steps=2, batch_seconds=6, evaluate_every=evaluate, evaluate_test=False, initial=initial)


@pytest.mark.slow
@pytest.mark.parametrize(
    "twin", [twin if twin in QUICK else pytest.param(twin, marks=pytest.mark.long) for twin in TWINS]
)
def test_every_arm_of_a_twin_trains(twin: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two updates a stage. All twins use one store: stages that they have in common are trained once."""
    torch.set_num_threads(1)
    store = StageStore(tmp_path_factory.getbasetemp() / "twins")
    spec = read(twin)
    for arm in spec.arms:
        *_, last = stages_of(spec.trial_config(arm))
        chain = [shortened(last)]
        while chain[0].initial:
            chain.insert(0, chain[0].initial.stage)
        for stage in chain:
            assert run_stage(stage, store, lambda report: None).last.step == stage.steps
