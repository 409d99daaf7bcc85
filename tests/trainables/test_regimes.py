"""Regimes: their stages, learning rates and what stages share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SMALL_MODEL, Row, bl_just, pretrain_finetune, small_trial, spanish_rows, write_corpus
from trainables.data.config import FolderConfig
from trainables.losses.config import BilevelConfig, ContrastiveConfig, CtcConfig
from trainables.stage import Stage
from trainables.trial import TrialConfig, corpus_of, stages_of

Regime = dict[str, Any]

SUPERVISED: Regime = {"kind": "supervised", "train": {"steps": 4, "learning_rate": 5e-3}}
REGIMES = {
    ("supervised",): SUPERVISED,
    ("pretrain", "finetune"): pretrain_finetune(),
    ("joint", "finetune"): bl_just(),
    ("joint",): {**bl_just(), "finetune": None},
}


def stages(corpus: Path, regime: Regime, **changes: Any) -> Sequence[Stage]:
    return stages_of(TrialConfig.model_validate(small_trial(corpus, regime, **changes)))


def with_settings(regime: Regime, section: str, **changes: Any) -> Regime:
    return {**regime, section: {**regime[section], **changes}}


def fingerprints(corpus: Path, regime: Regime, **changes: Any) -> list[str]:
    return [stage.fingerprint() for stage in stages(corpus, regime, **changes)]


# Stages


@pytest.mark.parametrize(("kinds", "regime"), REGIMES.items(), ids="-".join)
def test_each_regime_runs_its_stages_in_order(small_corpus: Path, kinds: tuple[str, ...], regime: Regime) -> None:
    assert tuple(stage.kind for stage in stages(small_corpus, regime)) == kinds


@pytest.mark.parametrize("regime", REGIMES.values(), ids=["-".join(kinds) for kinds in REGIMES])
def test_only_the_last_stage_is_evaluated_on_test(small_corpus: Path, regime: Regime) -> None:
    *earlier, last = stages(small_corpus, regime)
    assert last.evaluate_test
    assert not any(stage.evaluate_test for stage in earlier)


@pytest.mark.parametrize("regime", REGIMES.values(), ids=["-".join(kinds) for kinds in REGIMES])
def test_each_stage_starts_from_the_one_before_it(small_corpus: Path, regime: Regime) -> None:
    chain = stages(small_corpus, regime)
    assert [stage.initial and stage.initial.stage for stage in chain] == [None, *chain[:-1]]


def test_finetuning_after_pretraining_takes_over_the_backbone_and_no_head(small_corpus: Path) -> None:
    pretrain, finetune = stages(small_corpus, pretrain_finetune())
    assert finetune.initial is not None
    assert finetune.initial.parts == ("backbone",)
    assert "ctc_head" in finetune.parts
    assert "ctc_head" not in pretrain.parts


def test_finetuning_after_joint_training_takes_over_the_backbone_and_the_ctc_head(small_corpus: Path) -> None:
    joint, finetune = stages(small_corpus, bl_just())
    assert finetune.initial is not None
    assert set(finetune.initial.parts) == {"backbone", "ctc_head"} <= set(joint.parts)


def test_a_stage_has_the_settings_of_its_own_section(small_corpus: Path) -> None:
    first = {"steps": 7, "batch_seconds": 5.0, "report_every": 2, "augment_speed": False, "checkpoint_seconds": 3.0}
    second = {"steps": 9, "batch_seconds": 8.0, "report_every": 3, "augment_speed": True, "checkpoint_seconds": 4.0}
    regime = {"kind": "pretrain_finetune", "pretrain": first, "finetune": {**second, "evaluate_every": 6}}
    pretrain, finetune = stages(small_corpus, regime)
    assert {name: getattr(pretrain, name) for name in first} == first
    assert {name: getattr(finetune, name) for name in second} == second
    assert (pretrain.evaluate_every, finetune.evaluate_every) == (None, 6)


# Phases and learning rates


def test_learning_rates_of_single_phase_stages_are_those_of_their_settings(small_corpus: Path) -> None:
    regime = with_settings(pretrain_finetune(learning_rate=2e-3), "pretrain", learning_rate=3e-3)
    pretrain, finetune = stages(small_corpus, regime)
    (supervised,) = stages(small_corpus, SUPERVISED)
    assert [phase.learning_rates for stage in (pretrain, finetune, supervised) for phase in stage.phases] == [
        {"backbone": 3e-3, "self_supervised_head": 3e-3},
        {"backbone": 2e-3, "ctc_head": 2e-3},
        {"backbone": 5e-3, "ctc_head": 5e-3},
    ]


def test_bl_just_uses_alpha_for_the_lower_level_beta_for_the_upper_and_scaled_beta_at_the_end(
    small_corpus: Path,
) -> None:
    alpha, beta, scale = 3e-3, 2e-3, 0.25
    regime = bl_just(lower_learning_rate=alpha, upper_learning_rate=beta, exploration_steps=5, joint_steps=7)
    joint, finetune = stages(small_corpus, with_settings(regime, "finetune", learning_rate_scale=scale))
    assert [phase.learning_rates for phase in (*joint.phases, *finetune.phases)] == [
        {"backbone": alpha, "self_supervised_head": alpha},
        {"backbone": beta, "ctc_head": beta, "self_supervised_head": alpha},
        {"backbone": beta * scale, "ctc_head": beta * scale},
    ]
    assert [phase.steps for phase in joint.phases] == [5, 7]
    losses = [type(phase.loss) for phase in (*joint.phases, *finetune.phases)]
    assert losses == [ContrastiveConfig, BilevelConfig, CtcConfig]


def test_exploration_and_joint_steps_share_the_self_supervised_loss(small_corpus: Path) -> None:
    joint, _ = stages(small_corpus, bl_just(loss={"self_supervised": {"negatives": 3}}))
    explore, together = joint.phases
    assert isinstance(together.loss, BilevelConfig)
    assert explore.loss == together.loss.self_supervised == ContrastiveConfig(negatives=3)


def test_without_exploration_only_the_joint_phase_remains(small_corpus: Path) -> None:
    joint, _ = stages(small_corpus, bl_just(exploration_steps=0))
    assert [type(phase.loss) for phase in joint.phases] == [BilevelConfig]


# What is shared


@pytest.mark.parametrize(("seed", "distinct_pretrainings"), [(None, 2), (3, 1)])
def test_pretraining_is_shared_over_trial_seeds_only_with_a_seed_of_its_own(
    small_corpus: Path, seed: int | None, distinct_pretrainings: int
) -> None:
    regime = with_settings(pretrain_finetune(), "pretrain", seed=seed)
    chains = [stages(small_corpus, regime, seed=trial_seed) for trial_seed in (0, 1)]
    assert len({pretrain.fingerprint() for pretrain, _ in chains}) == distinct_pretrainings
    assert [pretrain.seed for pretrain, _ in chains] == ([0, 1] if seed is None else [seed, seed])
    assert [finetune.seed for _, finetune in chains] == [0, 1]


@pytest.mark.parametrize(
    ("change", "pretraining_changes"),
    [
        ({"regime": pretrain_finetune(learning_rate=9e-3)}, False),
        ({"regime": pretrain_finetune(steps=4, seed=8)}, False),
        ({"regime": pretrain_finetune(loss={"mask": {"time_length": 3}})}, False),
        ({"regime": pretrain_finetune(evaluate_every=3)}, False),
        ({"model": {**SMALL_MODEL, "gru_width": 14}}, True),
        ({"model": {**SMALL_MODEL, "quantiser": {"codebooks": 2, "entries": 9, "dim": 16}}}, True),
        ({"regime": with_settings(pretrain_finetune(), "pretrain", learning_rate=9e-3)}, True),
        ({"regime": with_settings(pretrain_finetune(), "pretrain", loss={"temperature": 0.2})}, True),
    ],
)
def test_pretraining_depends_on_its_own_and_the_model_s_settings_and_finetuning_on_all(
    small_corpus: Path, change: dict[str, Any], pretraining_changes: bool
) -> None:
    before = fingerprints(small_corpus, pretrain_finetune())
    after = fingerprints(small_corpus, **{"regime": pretrain_finetune(), **change})
    assert (before[0] != after[0]) == pretraining_changes
    assert before[1] != after[1]


def test_joint_training_does_not_depend_on_the_settings_of_the_final_finetuning(small_corpus: Path) -> None:
    changed = with_settings(bl_just(), "finetune", learning_rate_scale=0.1)
    before, after = fingerprints(small_corpus, bl_just()), fingerprints(small_corpus, changed)
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_arms_with_equal_pretraining_settings_share_it_wherever_the_corpus_lies(tmp_path: Path) -> None:
    rows = spanish_rows(16)
    here, there = write_corpus(tmp_path / "here", rows), write_corpus(tmp_path / "there", rows)
    spelled_out = with_settings(pretrain_finetune(learning_rate=9e-3), "pretrain", learning_rate=1e-3, seed=None)
    one, other = fingerprints(here, pretrain_finetune()), fingerprints(there, spelled_out)
    assert one[0] == other[0]
    assert one[1] != other[1]


# Data


def test_pretraining_reads_unlabelled_speech_only_and_that_has_no_text(small_corpus: Path) -> None:
    pretrain, finetune = stages(small_corpus, pretrain_finetune())
    corpus = corpus_of(FolderConfig(root=small_corpus))
    assert (pretrain.streams, finetune.streams) == (("unlabelled",), ("labelled",))
    assert {u.id for u in corpus.unlabelled} == {u.id for u in corpus.train} != set()
    assert {u.text for u in corpus.unlabelled} == {None}


def with_text_of_first(split: str, rows: list[Row], text: str) -> list[Row]:
    first = next(row for row in rows if row["split"] == split)
    return [{**row, "text": text} if row is first else row for row in rows]


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_a_changed_transcript_changes_labelled_stages_and_leaves_pretraining(tmp_path: Path, split: str) -> None:
    rows = spanish_rows(16)
    before = write_corpus(tmp_path / "before", rows)
    after = write_corpus(tmp_path / "after", with_text_of_first(split, rows, "otra frase"))
    (pretrain, finetune), (same, changed) = (stages(root, pretrain_finetune()) for root in (before, after))
    assert pretrain.data_fingerprint == same.data_fingerprint
    assert pretrain.fingerprint() == same.fingerprint()
    assert finetune.data_fingerprint != changed.data_fingerprint
    assert finetune.fingerprint() != changed.fingerprint()


def test_joint_training_depends_on_labelled_and_unlabelled_data(small_corpus: Path) -> None:
    joint, finetune = stages(small_corpus, bl_just())
    pretrain, _ = stages(small_corpus, pretrain_finetune())
    assert joint.data_fingerprint == f"{finetune.data_fingerprint}-{pretrain.data_fingerprint}"


def test_one_more_training_recording_changes_pretraining(tmp_path: Path) -> None:
    rows = spanish_rows(16)
    assert rows[-1]["split"] == "train"
    fewer, more = write_corpus(tmp_path / "fewer", rows[:-1]), write_corpus(tmp_path / "more", rows)
    assert fingerprints(fewer, pretrain_finetune())[0] != fingerprints(more, pretrain_finetune())[0]
