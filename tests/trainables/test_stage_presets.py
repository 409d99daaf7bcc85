"""Presets of stages: their numbers against the published ones, and how they go with fields beside them.

The tables are typed from fairseq's and SEW's files of settings, the same places as the presets' sources name; batches
are in samples of 16 kHz audio, as they are there.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from study.plan import make_plan
from study.spec import StudySpec, at_point, read_spec
from tests.conftest import SMALL_TRANSFORMER, small_trial
from trainables.config import Progress
from trainables.losses.config import BilevelConfig, ContrastiveConfig, CtcConfig
from trainables.losses.contrastive import gumbel_temperature
from trainables.models.config import TransformerConfig
from trainables.regimes.presets import PRESETS, StageType
from trainables.settings_file import SettingsError
from trainables.stage import ConstantConfig, OptimiserConfig, Stage, TriStageConfig
from trainables.trial import TrialConfig, stages_of

Settings = dict[str, Any]

# updates, learning rate, updates of the head alone, masking of time and of channels, LayerDrop, samples in a batch
FINETUNING: dict[str, tuple[int, float, int, float, float, float, float]] = {
    "w2v2_base_10m": (13_000, 5e-5, 10_000, 0.65, 0.25, 0.1, 25.6e6),
    "w2v2_base_1h": (13_000, 5e-5, 10_000, 0.65, 0.25, 0.1, 25.6e6),
    "w2v2_base_10h": (20_000, 5e-5, 10_000, 0.65, 0.5, 0.05, 25.6e6),
    "w2v2_base_100h": (80_000, 3e-5, 0, 0.65, 0.5, 0.1, 25.6e6),
    "w2v2_base_960h": (320_000, 1e-4, 0, 0.5, 0.1, 0.1, 25.6e6),
    "w2v2_large_10m": (13_000, 1e-4, 10_000, 0.65, 0.25, 0.1, 25.6e6),
    "w2v2_large_1h": (13_000, 3e-4, 10_000, 0.75, 0.25, 0.1, 25.6e6),
    "w2v2_large_10h": (20_000, 1e-4, 10_000, 0.75, 0.25, 0.1, 25.6e6),
    "w2v2_large_100h": (80_000, 3e-5, 10_000, 0.5, 0.5, 0.1, 25.6e6),
    "w2v2_large_960h": (320_000, 3e-5, 10_000, 0.5, 0.25, 0.1, 24 * 1.28e6),
    "sew_d_stable_10m": (13_000, 1e-5, 0, 0.65, 0.25, 0.1, 25.6e6),
    "sew_d_stable_1h": (13_000, 1e-5, 0, 0.65, 0.25, 0.1, 25.6e6),
    "sew_d_stable_10h": (20_000, 1e-5, 0, 0.65, 0.5, 0.05, 25.6e6),
    "sew_d_stable_100h": (80_000, 3e-5, 0, 0.65, 0.5, 0.1, 25.6e6),
    "xlsr_babel": (26_000, 3e-4, 10_000, 0.75, 0.25, 0.1, 25.6e6),
    "xlsr_common_voice": (13_000, 3e-4, 10_000, 0.75, 0.25, 0.1, 25.6e6),
    "xlsr_voxpopuli": (50_000, 3e-4, 10_000, 0.75, 0.25, 0.1, 25.6e6),
    "xlsr_mls_10h": (20_000, 3e-4, 10_000, 0.75, 0.25, 0.1, 25.6e6),
}
# dropout, attention_dropout, activation_dropout, dropout_input
DROPOUTS, STABLE_DROPOUTS = (0.0, 0.0, 0.1, 0.0), (0.1, 0.1, 0.0, 0.1)


def stages(corpus: Path, regime: Settings, model: Settings | None = None, **changes: Any) -> Sequence[Stage]:
    given = small_trial(corpus, regime, model=model or SMALL_TRANSFORMER, **changes)
    return stages_of(TrialConfig.model_validate(given))


def supervised(**train: Any) -> Settings:
    return {"kind": "supervised", "train": train}


def pretraining(**pretrain: Any) -> Settings:
    return {"kind": "pretrain_finetune", "pretrain": pretrain, "finetune": {"steps": 4}}


# Fine-tuning


@pytest.fixture(params=FINETUNING, ids=str)
def finetuning(request: pytest.FixtureRequest, small_corpus: Path) -> tuple[str, Stage]:
    pretrain_and_finetune = {**pretraining(steps=4), "finetune": {"preset": request.param}}
    _, stage = stages(small_corpus, pretrain_and_finetune)
    return request.param, stage


def test_every_published_fine_tuning_of_a_transformer_is_in_the_table() -> None:
    assert set(FINETUNING) == {name for name in PRESETS["supervised"] if name.startswith(("w2v2", "sew", "xlsr"))}


def test_finetuning_has_the_published_numbers(finetuning: tuple[str, Stage]) -> None:
    name, stage = finetuning
    (phase,) = stage.phases
    loss, model = phase.loss, stage.model
    assert isinstance(loss, CtcConfig)
    assert isinstance(model, TransformerConfig)
    assert (
        stage.steps,
        phase.learning_rates["backbone"],
        phase.frozen_backbone_steps,
        loss.mask.time_probability,
        loss.mask.channel_probability,
        model.dropout.layer,
        stage.batch_seconds * 16_000,
    ) == FINETUNING[name]
    assert phase.learning_rates == {"backbone": FINETUNING[name][1], "ctc_head": FINETUNING[name][1]}


def test_finetuning_has_what_all_budgets_have_in_common(finetuning: tuple[str, Stage]) -> None:
    name, stage = finetuning
    (phase,) = stage.phases
    loss, model = phase.loss, stage.model
    assert isinstance(loss, CtcConfig)
    assert isinstance(model, TransformerConfig)
    assert phase.optimiser == OptimiserConfig(betas=(0.9, 0.98), epsilon=1e-8, weight_decay=0, max_gradient_norm=None)
    assert (loss.mask.time_length, loss.mask.channel_length, loss.mask.equal) == (10, 64, True)
    assert loss.extractor_gradient == 0
    dropout = model.dropout
    found = (dropout.hidden, dropout.attention, dropout.activation, dropout.input)
    assert found == (STABLE_DROPOUTS if "stable" in name else DROPOUTS)
    assert (stage.augment_speed, stage.crop, stage.keep, stage.precision) == (False, None, "best", "fp16")


def test_finetuning_has_three_phases_of_a_tenth_four_tenths_and_a_half(finetuning: tuple[str, Stage]) -> None:
    _, stage = finetuning
    shares = {0.0: 0.01, 0.05: 0.505, 0.1: 1.0, 0.3: 1.0, 0.5: 1.0, 0.75: 0.05**0.5, 1.0: 0.05}
    found = {share: stage.schedule.scale(Progress(round(share * stage.steps), stage.steps)) for share in shares}
    assert found == pytest.approx(shares)


# Pre-training


def pretrain(corpus: Path, preset: str, model: str = "w2v2_base") -> tuple[Stage, ContrastiveConfig, TransformerConfig]:
    stage, _ = stages(corpus, pretraining(preset=preset), model={"preset": model})
    (phase,) = stage.phases
    assert isinstance(phase.loss, ContrastiveConfig)
    assert isinstance(stage.model, TransformerConfig)
    return stage, phase.loss, stage.model


def rates(stage: Stage, *steps: int) -> list[float]:
    """Learning rate of the backbone at these updates."""
    peak = stage.phases[0].learning_rates["backbone"]
    return [peak * stage.schedule.scale(Progress(step, stage.steps)) for step in steps]


ADAM = OptimiserConfig(betas=(0.9, 0.98), epsilon=1e-6, weight_decay=0.01, max_gradient_norm=None)


@pytest.mark.parametrize("preset", ["w2v2_base", "sew_100k"])
def test_pretraining_of_base_and_sew_has_the_published_numbers(small_corpus: Path, preset: str) -> None:
    stage, loss, _ = pretrain(small_corpus, preset)
    assert stage.steps == {"w2v2_base": 400_000, "sew_100k": 100_000}[preset]
    assert stage.phases[0].optimiser == ADAM
    assert stage.batch_seconds * 16_000 == 64 * 1.4e6
    assert stage.crop is not None
    assert (stage.crop.max_seconds * 16_000, stage.crop.min_seconds * 16_000) == (250_000, 32_000)
    assert (stage.augment_speed, stage.precision) == (False, "fp16")
    assert (loss.mask_probability, loss.mask_length, loss.equal_masks) == (0.65, 10, True)
    assert (loss.negatives, loss.temperature) == (100, 0.1)
    assert (loss.diversity, loss.diversity_weight, loss.feature_penalty_weight) == ("perplexity", 0.1, 10)
    assert loss.extractor_gradient == 0.1


def test_pretraining_of_large_has_the_published_numbers(small_corpus: Path) -> None:
    stage, loss, model = pretrain(small_corpus, "w2v2_large", "w2v2_large")
    assert stage.steps == 1_000_000
    assert stage.phases[0].optimiser == ADAM
    assert stage.batch_seconds * 16_000 == 128 * 1.2e6
    assert stage.crop is not None
    assert stage.crop.max_seconds * 16_000 == 320_000
    assert rates(stage, 16_000, 32_000, 516_000, 1_000_000) == pytest.approx([1.5e-4, 3e-4, 1.5e-4, 0])
    assert (loss.mask_probability, loss.mask_length, loss.negatives, loss.temperature) == (0.65, 10, 100, 0.1)
    assert (loss.diversity_weight, loss.feature_penalty_weight, loss.extractor_gradient) == (0.1, 0, 1)
    assert set(model.dropout.model_dump().values()) == {0}
    assert (model.quantiser.codebooks, model.quantiser.entries, model.quantiser.dim) == (2, 320, 768)


def test_the_learning_rate_of_400k_updates_ends_at_0_and_that_of_100k_on_its_way(small_corpus: Path) -> None:
    whole, short = (pretrain(small_corpus, preset)[0] for preset in ("w2v2_base", "sew_100k"))
    assert rates(whole, 16_000, 32_000, 216_000, 400_000) == pytest.approx([2.5e-4, 5e-4, 2.5e-4, 0])
    assert rates(short, 16_000, 32_000, 100_000) == pytest.approx([2.5e-4, 5e-4, 4.076e-4], rel=1e-4)


def test_the_gumbel_temperature_is_that_of_the_published_decay(small_corpus: Path) -> None:
    _, base, _ = pretrain(small_corpus, "sew_100k")
    _, large, _ = pretrain(small_corpus, "w2v2_large")
    at = {0: 2.0, 100_000: 1.2131, 277_258: 0.5, 400_000: 0.5}
    assert [gumbel_temperature(base, Progress(step, 400_000)) for step in at] == pytest.approx([*at.values()], abs=1e-4)
    assert [gumbel_temperature(large, Progress(step, 10**6)) for step in (599_000, 599_145, 10**6)] == pytest.approx(
        [0.10007, 0.1, 0.1], abs=1e-5
    )


@pytest.mark.parametrize(
    ("model", "layer_drop"),
    [
        ("w2v2_base", 0.05),
        ("sew_tiny", 0.05),
        ("sew_d_small", 0.05),
        ("sew_d_mid", 0.2),
        ("sew_d_mid_k127", 0.2),
        ("sew_d_base", 0.2),
        ("sew_d_base_plus", 0.2),
    ],
)
def test_dropouts_of_pretraining_are_the_model_s(small_corpus: Path, model: str, layer_drop: float) -> None:
    _, _, found = pretrain(small_corpus, "sew_100k", model)
    dropout = found.dropout
    assert dropout.layer == layer_drop
    assert (dropout.hidden, dropout.attention, dropout.activation) == (0.1, 0.1, 0)
    assert (dropout.input, dropout.features) == (0.1, 0.1)


# BL-JUST and P-BLJ

BILEVEL = {"bl_just": (1e-3, 1e-4), "p_blj": (5e-3, 5e-4)}  # alpha, beta


def bilevel(corpus: Path, preset: str) -> tuple[Stage, Stage]:
    regime = {"kind": "bl_just", "joint": {"preset": preset}, "finetune": {"preset": preset}}
    joint, finetune = stages(corpus, regime)
    return joint, finetune


@pytest.mark.parametrize("preset", BILEVEL)
def test_bilevel_training_alternates_four_passes_of_exploration_and_one_of_joint_steps(
    small_corpus: Path, preset: str
) -> None:
    alpha, beta = BILEVEL[preset]
    joint, _ = bilevel(small_corpus, preset)
    explore, together = joint.phases
    assert explore.steps == 4 * together.steps
    assert joint.steps % (explore.steps + together.steps) == 0
    assert explore.learning_rates == {"backbone": alpha, "self_supervised_head": alpha}
    assert together.learning_rates["backbone"] == together.learning_rates["ctc_head"] == beta


@pytest.mark.parametrize("preset", BILEVEL)
def test_the_penalty_of_bilevel_training_grows_by_a_500th_an_epoch(small_corpus: Path, preset: str) -> None:
    joint, _ = bilevel(small_corpus, preset)
    explore, together = joint.phases
    epochs = joint.steps / (explore.steps + together.steps)
    assert isinstance(together.loss, BilevelConfig)
    assert (together.loss.gamma_start, together.loss.gamma_end) == (0, pytest.approx(epochs / 500))
    assert together.loss.gamma_end <= 1


@pytest.mark.parametrize("preset", BILEVEL)
def test_bilevel_training_ends_with_five_epochs_at_a_tenth_of_beta(small_corpus: Path, preset: str) -> None:
    joint, finetune = bilevel(small_corpus, preset)
    beta = BILEVEL[preset][1]
    rates = finetune.phases[0].learning_rates
    assert rates == pytest.approx({"backbone": beta / 10, "ctc_head": beta / 10})
    assert finetune.steps == 5 * joint.phases[-1].steps
    assert isinstance(finetune.phases[0].loss, CtcConfig)


@pytest.mark.parametrize("preset", BILEVEL)
def test_bilevel_training_has_adamw_as_it_comes_and_a_constant_learning_rate(small_corpus: Path, preset: str) -> None:
    for stage in bilevel(small_corpus, preset):
        assert stage.schedule == ConstantConfig()
        assert not stage.augment_speed
        for phase in stage.phases:
            found = phase.optimiser
            assert (found.betas, found.epsilon, found.weight_decay) == ((0.9, 0.999), 1e-8, 0.01)


def test_the_learning_rates_of_p_blj_are_those_of_its_table_1(small_corpus: Path) -> None:
    regime = {"kind": "pretrain_finetune", "pretrain": {"preset": "p_blj"}, "finetune": {"preset": "p_blj"}}
    pretrain, finetune = stages(small_corpus, regime)
    assert [rates(stage, 1, stage.steps) for stage in (pretrain, finetune)] == [[5e-3, 5e-3], [5e-4, 5e-4]]
    assert pretrain.steps == finetune.steps


# What is beside a preset


def test_a_field_beside_a_preset_wins_and_leaves_the_others(small_corpus: Path) -> None:
    (plain,) = stages(small_corpus, supervised(preset="w2v2_base_10m"))
    (stage,) = stages(
        small_corpus,
        supervised(
            preset="w2v2_base_10m",
            learning_rate=7e-5,
            loss={"mask": {"time_probability": 0.3}},
            dropout={"layer": 0.2},
            optimiser={"max_gradient_norm": 2},
        ),
    )
    before, after = plain.phases[0], stage.phases[0]
    assert isinstance(before.loss, CtcConfig)
    assert isinstance(plain.model, TransformerConfig)
    assert after.learning_rates == {"backbone": 7e-5, "ctc_head": 7e-5}
    assert after.loss == before.loss.with_(mask=before.loss.mask.with_(time_probability=0.3))
    assert after.optimiser == before.optimiser.with_(max_gradient_norm=2.0)
    assert stage.model == plain.model.with_(dropout=plain.model.dropout.with_(layer=0.2))
    assert stage.with_(model=plain.model, phases=plain.phases) == plain


def test_a_mapping_of_another_kind_replaces_that_of_the_preset(small_corpus: Path) -> None:
    (stage,) = stages(small_corpus, supervised(preset="w2v2_base_10m", schedule={"kind": "constant"}))
    assert stage.schedule == ConstantConfig()
    first, _ = stages(small_corpus, pretraining(preset="w2v2_base", loss={"kind": "cpc"}))
    assert first.self_supervision == "cpc"


def test_null_beside_a_preset_takes_away_what_the_preset_gives(small_corpus: Path) -> None:
    first, _ = stages(small_corpus, pretraining(preset="w2v2_base", crop=None))
    assert first.crop is None


def test_what_a_preset_does_not_give_has_its_default(small_corpus: Path) -> None:
    first, _ = stages(small_corpus, pretraining(preset="compact", steps=4))
    assert first.schedule == TriStageConfig()
    assert (first.batch_seconds, first.crop) == (24, None)


@pytest.mark.parametrize("preset", ["w2v2_base_10m", "p_blj"])
def test_a_length_beside_a_preset_replaces_its_length_in_either_unit(small_corpus: Path, preset: str) -> None:
    (steps,) = stages(small_corpus, supervised(preset=preset, steps=7))
    (epochs,) = stages(small_corpus, supervised(preset=preset, epochs=200))
    train = TrialConfig.model_validate({"regime": supervised(preset=preset, epochs=200)}).regime.train  # type: ignore[union-attr]
    assert steps.steps == 7
    assert (train.steps, train.epochs) == (None, 200)
    assert epochs.steps < 100
    assert steps.with_(steps=epochs.steps) == epochs


def test_a_preset_without_a_length_needs_one() -> None:
    with pytest.raises(ValidationError, match="give either steps or epochs"):
        TrialConfig.model_validate({"regime": pretraining(preset="compact")})


# All presets


def names() -> Iterator[tuple[StageType, str]]:
    for stage_type, presets in PRESETS.items():
        yield from ((stage_type, name) for name in presets)


ALL = pytest.mark.parametrize(("stage_type", "name"), [*names()], ids=lambda value: value)


def regime_with(stage_type: StageType, settings: Settings) -> Settings:
    """A regime in which these are the settings of a stage."""
    regimes: dict[StageType, Settings] = {
        "pretrain": pretraining(**settings),
        "supervised": supervised(**settings),
        "joint": {"kind": "bl_just", "joint": settings, "finetune": None},
        "final": {"kind": "bl_just", "joint": {"steps": 4}, "finetune": settings},
        "weighted_sum": {"kind": "joint", "train": settings},
        "semi_supervised": {
            "kind": "wav2vec_s",
            "pretrain": {"steps": 4},
            "semi_supervised": settings,
            "finetune": {"steps": 4},
        },
    }
    return regimes[stage_type]


def length_of(settings: Settings) -> Settings:
    return {} if {"steps", "epochs"} & set(settings) else {"steps": 4}


@ALL
def test_every_preset_has_a_source(stage_type: StageType, name: str) -> None:
    assert len(PRESETS[stage_type][name].source.split()) >= 2


@ALL
def test_a_preset_and_its_settings_spelt_out_have_one_fingerprint(
    small_corpus: Path, stage_type: StageType, name: str
) -> None:
    spelt_out = PRESETS[stage_type][name].settings
    length = length_of(spelt_out)
    named, same = (
        stages(small_corpus, regime_with(stage_type, {**settings, **length}))
        for settings in ({"preset": name}, spelt_out)
    )
    assert [stage.fingerprint() for stage in named] == [stage.fingerprint() for stage in same]


@ALL
def test_a_resolved_trial_reads_back_as_itself(stage_type: StageType, name: str) -> None:
    """The ledger keeps it with the preset's name beside what the preset filled in."""
    settings = {"preset": name, **length_of(PRESETS[stage_type][name].settings), "report_every": 3}
    trial = TrialConfig.model_validate({"model": SMALL_TRANSFORMER, "regime": regime_with(stage_type, settings)})
    assert TrialConfig.model_validate(json.loads(trial.model_dump_json())) == trial


def test_no_preset_is_changed_by_being_used(small_corpus: Path) -> None:
    before = {key: json.dumps(PRESETS[key[0]][key[1]].settings) for key in names()}
    for stage_type, name in names():
        given = {"preset": name, "steps": 4, "optimiser": {"epsilon": 1e-3}, "learning_rate_scale": 0.3}
        if stage_type != "final":
            del given["learning_rate_scale"]
        stages(small_corpus, regime_with(stage_type, given))
    assert {key: json.dumps(PRESETS[key[0]][key[1]].settings) for key in names()} == before


def test_a_preset_of_another_kind_of_stage_is_refused() -> None:
    for (stage_type, _), (other, name) in itertools.product(names(), names()):
        if name not in PRESETS[stage_type] and other != stage_type:
            with pytest.raises(ValidationError, match=f"no preset '{name}' of such a stage"):
                TrialConfig.model_validate({"regime": regime_with(stage_type, {"preset": name})})


# Dropout of a stage


def test_dropout_of_a_stage_is_that_stage_s_alone(small_corpus: Path) -> None:
    regime: Settings = {**pretraining(steps=4), "finetune": {"steps": 4, "dropout": {"hidden": 0.3, "layer": 0}}}
    plain = stages(small_corpus, pretraining(steps=4))
    pretrain, finetune = stages(small_corpus, regime)
    assert isinstance(pretrain.model, TransformerConfig)
    assert isinstance(finetune.model, TransformerConfig)
    assert (finetune.model.dropout.hidden, finetune.model.dropout.layer) == (0.3, 0)
    assert pretrain.fingerprint() == plain[0].fingerprint()
    assert finetune.fingerprint() != plain[1].fingerprint()
    assert finetune.model.with_(dropout=pretrain.model.dropout) == pretrain.model


def test_dropout_of_pretraining_leaves_finetuning_the_model_s(small_corpus: Path) -> None:
    pretrain, finetune = stages(small_corpus, pretraining(steps=4, dropout={"hidden": 0.3}))
    assert isinstance(pretrain.model, TransformerConfig)
    assert isinstance(finetune.model, TransformerConfig)
    assert (pretrain.model.dropout.hidden, finetune.model.dropout.hidden) == (0.3, 0.1)


def test_budgets_share_the_pretraining_of_a_model(small_corpus: Path) -> None:
    regimes = [
        {**pretraining(preset="sew_100k"), "finetune": {"preset": preset}}
        for preset in FINETUNING
        if "100h" not in preset
    ]
    found = [stages(small_corpus, regime, model={"preset": "sew_d_tiny"}) for regime in regimes]
    assert len({pretrain.fingerprint() for pretrain, _ in found}) == 1


# In a sweep file

SWEEP = """\
study: presets
question: Which one is best?
trial:
  model: {preset: sew_tiny}
arms:
  one:
    trial:
      regime:
        kind: pretrain_finetune
        pretrain: {preset: sew_100k}
        finetune: {preset: w2v2_base_1h, report_every: 50}
    space: {}
search: {trials: 1}
replication: {seeds: 0}
convergence: {target: 0.4}
"""


def write(folder: Path, *changes: tuple[str, str]) -> Path:
    text = functools.reduce(lambda text, change: text.replace(*change), changes, SWEEP)
    (folder / "sweep.yaml").write_text(text, encoding="utf-8")
    return folder / "sweep.yaml"


def error_of(path: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        read_spec(path)
    (error,) = caught.value.errors
    return error.removeprefix(f"{path}:")


def test_an_unknown_preset_has_its_place_and_the_nearest_name(tmp_path: Path) -> None:
    assert error_of(write(tmp_path, ("w2v2_base_1h", "w2v2_base_1hour"))) == (
        "11:9: arms.one.trial.regime.finetune: no preset 'w2v2_base_1hour' of such a stage; "
        "did you mean 'w2v2_base_1h'?"
    )


def test_a_preset_of_another_kind_of_stage_has_its_place_and_the_list(tmp_path: Path) -> None:
    assert error_of(write(tmp_path, ("sew_100k", "xlsr_babel"))) == (
        "10:9: arms.one.trial.regime.pretrain: no preset 'xlsr_babel' of such a stage; "
        f"the presets are {', '.join(PRESETS['pretrain'])}"
    )


def test_a_field_that_a_stage_does_not_have_is_told_beside_a_preset(tmp_path: Path) -> None:
    found = error_of(write(tmp_path, ("report_every: 50", "reprt_every: 50")))
    assert found.startswith("11:42: arms.one.trial.regime.finetune.reprt_every: unknown field 'reprt_every'")


def searched(tmp_path: Path, space: Settings, *changes: tuple[str, str]) -> StudySpec:
    return read_spec(write(tmp_path, ("space: {}", f"space: {json.dumps(space)}"), *changes))


BUDGETS = ["w2v2_base_1h", "w2v2_base_10h", "sew_d_stable_100h"]


def test_a_preset_can_be_searched(tmp_path: Path) -> None:
    space = {"regime.finetune.preset": {"kind": "grid", "choices": BUDGETS}}
    spec = searched(tmp_path, space)
    for name in BUDGETS:
        pretrain, finetune = stages_of(spec.trial_config("one", {"regime.finetune.preset": name}, seed=3))
        assert (finetune.steps, finetune.phases[0].learning_rates["backbone"]) == FINETUNING[name][:2]
        assert (finetune.report_every, finetune.seed, pretrain.steps) == (50, 3, 100_000)
    counts = make_plan(spec).stages
    assert {kind: count.distinct for kind, count in counts.items()} == {"pretrain": 1, "finetune": 3}


def test_a_field_may_be_searched_beside_a_searched_preset(tmp_path: Path) -> None:
    rates = [1e-5, 1e-4]
    space = {
        "regime.finetune.learning_rate": {"kind": "grid", "choices": rates},
        "regime.finetune.preset": {"kind": "grid", "choices": BUDGETS},
        "regime.finetune.steps": {"kind": "grid", "choices": [5]},
    }
    spec = searched(tmp_path, space)
    for name, rate in itertools.product(BUDGETS, rates):
        point: Settings = dict(zip(space, (rate, name, 5), strict=True))
        _, finetune = stages_of(spec.trial_config("one", point))
        assert finetune.phases[0].learning_rates["backbone"] == rate
        assert finetune.steps == 5
        assert finetune.phases[0].frozen_backbone_steps == FINETUNING[name][2]


def test_an_unknown_preset_in_a_space_has_its_place(tmp_path: Path) -> None:
    space = {"regime.finetune.preset": {"kind": "grid", "choices": ["w2v2_base_1h", "w2v2_base_2h"]}}
    path = write(tmp_path, ("space: {}", f"space: {json.dumps(space)}"))
    assert error_of(path).startswith(
        "12:13: arms.one.space.regime.finetune.preset: 'w2v2_base_2h' is not possible: no preset 'w2v2_base_2h'"
    )


def test_a_searched_length_replaces_that_of_the_preset_in_either_unit() -> None:
    for unit in ("steps", "epochs"):
        trial = at_point({"regime": supervised(preset="w2v2_base_1h")}, {f"regime.train.{unit}": 5})
        train = trial.regime.train  # type: ignore[union-attr]
        assert {"steps": train.steps, "epochs": train.epochs} == {"steps": None, "epochs": None, unit: 5}
