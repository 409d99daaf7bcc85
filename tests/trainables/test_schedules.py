"""Learning rates and Gumbel temperatures of the published settings, as resolved stages have them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.config import Progress
from trainables.losses.config import ContrastiveConfig
from trainables.losses.contrastive import gumbel_temperature
from trainables.regimes.presets import PRESETS
from trainables.stage import ConstantConfig, PolynomialConfig, Stage, TriStageConfig
from trainables.trial import TrialConfig, stages_of

FINETUNING = [name for name, preset in PRESETS["supervised"].items() if preset.source.startswith(("fairseq", "SEW"))]


def resolved(regime: dict[str, Any]) -> Stage:
    """The first stage of the regime, on the embedded corpus."""
    return stages_of(TrialConfig.model_validate({"model": {"preset": "sew_tiny"}, "regime": regime}))[0]


def pretraining(**settings: Any) -> Stage:
    return resolved({"kind": "pretrain_finetune", "pretrain": settings, "finetune": {"steps": 1}})


def finetuning(**settings: Any) -> Stage:
    return resolved({"kind": "supervised", "train": settings})


def learning_rate(stage: Stage, step: int) -> float:
    """Of the backbone, when `step` updates are done."""
    return stage.phases[0].learning_rates["backbone"] * stage.schedule.scale(Progress(step, stage.steps))


def contrastive(stage: Stage) -> ContrastiveConfig:
    loss = stage.phases[0].loss
    assert isinstance(loss, ContrastiveConfig)
    return loss


# Polynomial


def fairseq_polynomial(update: int, *, peak: float, warmup: int, total: int, end: float, power: float) -> float:
    """`polynomial_decay` of fairseq, from its definition. Its first update of all has a learning rate of 0."""
    if update <= warmup and warmup:
        return peak * update / warmup
    if update >= total:
        return end
    return (peak - end) * (1 - (update - warmup) / (total - warmup)) ** power + end


def test_sew_ends_its_100k_updates_at_the_rate_that_400k_updates_have_there() -> None:
    """5e-4 x (400,000 - 100,000) / (400,000 - 32,000); models_and_regimes.md section 1.3."""
    stage = pretraining(preset="sew_100k")
    assert stage.steps == 100_000
    assert learning_rate(stage, 100_000) == pytest.approx(4.076e-4, abs=5e-8)
    assert learning_rate(stage, 100_000) == pytest.approx(5e-4 * 300 / 368, rel=1e-12)


@pytest.mark.parametrize("step", [0, 1, 17, 31_999, 32_000, 32_001, 66_666, 100_000])
def test_sew_and_wav2vec2_base_have_the_same_rates_for_as_long_as_sew_trains(step: int) -> None:
    sew, base = pretraining(preset="sew_100k"), pretraining(preset="w2v2_base")
    assert learning_rate(sew, step) == learning_rate(base, step)


def test_a_preset_cut_short_still_decays_towards_its_own_end() -> None:
    """With `steps` beside the preset: SEW's end is given in updates, wav2vec 2.0's is that of the stage."""
    sew, base = pretraining(preset="sew_100k", steps=64_000), pretraining(preset="w2v2_base", steps=64_000)
    assert learning_rate(sew, 64_000) == pytest.approx(5e-4 * 336 / 368, rel=1e-12)
    assert learning_rate(base, 64_000) == 0


def test_wav2vec2_base_by_hand() -> None:
    stage = pretraining(preset="w2v2_base")
    assert learning_rate(stage, 16_000) == pytest.approx(2.5e-4, rel=1e-12)
    assert learning_rate(stage, 32_000) == 5e-4
    assert learning_rate(stage, 216_000) == pytest.approx(2.5e-4, rel=1e-12)
    assert learning_rate(stage, 400_000) == 0


@pytest.mark.parametrize("preset", ["w2v2_base", "w2v2_large", "sew_100k"])
def test_the_first_update_has_the_peak_over_the_warmup(preset: str) -> None:
    """And not 0, with which it would do nothing; the second one has fairseq's rate, which is the same."""
    stage = pretraining(preset=preset)
    peak = stage.phases[0].learning_rates["backbone"]
    assert learning_rate(stage, 0) == learning_rate(stage, 1) == pytest.approx(peak / 32_000, rel=1e-12)


@given(
    st.integers(1, 50), st.integers(0, 20), st.integers(1, 60), st.floats(0, 1), st.sampled_from([0.5, 1.0, 2.0, 3.5])
)
def test_polynomial_decay_is_that_of_fairseq_after_the_first_update(
    step: int, warmup: int, decay: int, end: float, power: float
) -> None:
    total = warmup + decay
    schedule = PolynomialConfig(warmup_steps=warmup, total_steps=total, power=power, end_scale=end)
    expected = fairseq_polynomial(step, peak=3e-3, warmup=warmup, total=total, end=3e-3 * end, power=power)
    assert 3e-3 * schedule.scale(Progress(step, 50)) == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("end", [0.0, 0.25])
def test_polynomial_decay_ends_with_the_stage_and_stays_there(end: float) -> None:
    with_the_stage = PolynomialConfig(warmup_steps=5, end_scale=end)
    earlier = with_the_stage.with_(total_steps=40)
    assert with_the_stage.scale(Progress(100, 100)) == end
    assert with_the_stage.scale(Progress(99, 100)) > end
    assert [earlier.scale(Progress(step, 100)) for step in (40, 41, 100)] == [end] * 3
    assert earlier.scale(Progress(39, 100)) > end


# Tri-stage


def fairseq_tri_stage(update: int, *, peak: float, warmup: int, hold: int, decay: int) -> float:
    """`tri_stage` of fairseq with init_lr_scale 0.01 and final_lr_scale 0.05, from its definition."""
    initial, final = 0.01 * peak, 0.05 * peak
    if update < warmup:
        return initial + (peak - initial) / warmup * update
    update -= warmup
    if update < hold:
        return peak
    update -= hold
    decay_factor = -math.log(0.05) / decay
    return peak * math.exp(-decay_factor * update) if update <= decay else final


@pytest.mark.parametrize("preset", FINETUNING)
def test_finetuning_has_the_rates_of_fairseq(preset: str) -> None:
    """Warm-up over a tenth of the updates, hold over four, decay over five."""
    stage = finetuning(preset=preset)
    peak, tenth = stage.phases[0].learning_rates["ctc_head"], stage.steps // 10
    assert tenth * 10 == stage.steps
    edges = [0, tenth, 5 * tenth, 10 * tenth]
    for step in sorted({max(0, min(stage.steps, e + d)) for e in edges for d in (-1, 0, 1)} | {tenth // 3, 7 * tenth}):
        expected = fairseq_tri_stage(step, peak=peak, warmup=tenth, hold=4 * tenth, decay=5 * tenth)
        assert learning_rate(stage, step) == pytest.approx(expected, rel=1e-9), step


def test_tri_stage_of_100_hours_by_hand() -> None:
    """w2v2_base_100h: 80,000 updates, 3e-5; a quarter of the way down it has fallen by the fourth root of 0.05."""
    stage = finetuning(preset="w2v2_base_100h")
    expected = {0: 3e-7, 4_000: 0.505 * 3e-5, 8_000: 3e-5, 40_000: 3e-5, 50_000: 3e-5 * 0.05**0.25, 80_000: 1.5e-6}
    assert {step: learning_rate(stage, step) for step in expected} == pytest.approx(expected, rel=1e-9)
    assert len(FINETUNING) == 18


@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 40), st.data())
def test_tri_stage_is_that_of_fairseq(warmup: int, hold: int, decay: int, data: st.DataObject) -> None:
    steps = warmup + hold + decay
    step = data.draw(st.integers(0, steps))
    schedule = TriStageConfig(warmup_fraction=warmup / steps, decay_fraction=decay / steps * (1 - 1e-12))
    expected = fairseq_tri_stage(step, peak=2e-4, warmup=warmup, hold=hold, decay=decay)
    assert 2e-4 * schedule.scale(Progress(step, steps)) == pytest.approx(expected, rel=1e-8)


# Constant


def test_a_constant_rate_is_one_throughout() -> None:
    assert {ConstantConfig().scale(Progress(step, 10)) for step in range(11)} == {1.0}


def test_a_constant_rate_warms_up_as_a_polynomial_one_does() -> None:
    constant, polynomial = ConstantConfig(warmup_steps=8), PolynomialConfig(warmup_steps=8)
    scales = [constant.scale(Progress(step, 100)) for step in range(100)]
    assert scales[:9] == [polynomial.scale(Progress(step, 100)) for step in range(9)]
    assert scales[:4] == [1 / 8, 1 / 8, 2 / 8, 3 / 8]
    assert set(scales[8:]) == {1.0}


# Gumbel temperature


def test_sew_ends_its_100k_updates_at_a_temperature_of_1_2131() -> None:
    stage = pretraining(preset="sew_100k")
    temperature = gumbel_temperature(contrastive(stage), Progress(stage.steps, stage.steps))
    assert temperature == pytest.approx(1.2131, abs=5e-5)
    assert temperature == pytest.approx(2 * math.exp(100_000 * math.log(0.999995)), rel=1e-9)


@pytest.mark.parametrize(
    ("preset", "lowest", "first"), [("w2v2_base", 0.5, 277_258), ("w2v2_large", 0.1, 599_145)], ids=["base", "large"]
)
def test_the_lowest_temperature_is_first_reached_at_the_derived_update(preset: str, lowest: float, first: int) -> None:
    """models_and_regimes.md section 1.3."""
    stage = pretraining(preset=preset)
    config = contrastive(stage)
    below = next(n for n in range(first - 50, first + 50) if gumbel_temperature(config, Progress(n, 1)) == lowest)
    assert abs(below - first) <= 1
    assert gumbel_temperature(config, Progress(stage.steps, stage.steps)) == lowest
    assert gumbel_temperature(config, Progress(0, stage.steps)) == 2.0


@pytest.mark.parametrize("steps", [1, 7, 400])
@pytest.mark.parametrize(("start", "end"), [(2.0, 0.5), (2.0, 0.1), (1.0, 1.0)])
def test_without_a_decay_the_temperature_ends_with_the_stage(start: float, end: float, steps: int) -> None:
    config = ContrastiveConfig(gumbel_start=start, gumbel_end=end)
    assert config.gumbel_decay is None
    assert gumbel_temperature(config, Progress(0, steps)) == start
    assert gumbel_temperature(config, Progress(steps, steps)) == end
    if steps > 1:
        ratios = [
            gumbel_temperature(config, Progress(n + 1, steps)) / gumbel_temperature(config, Progress(n, steps))
            for n in range(steps)
        ]
        assert ratios == pytest.approx([(end / start) ** (1 / steps)] * steps, rel=1e-9)


def test_a_decay_per_update_does_not_depend_on_the_length_of_the_stage() -> None:
    config = ContrastiveConfig(gumbel_decay=0.99)
    temperatures = {gumbel_temperature(config, Progress(30, steps)) for steps in (30, 100, 1000)}
    assert temperatures == {2 * 0.99**30}
