"""The published numbers, the mapping of sweeps to tables, and the verdicts on what the papers claim."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

import search_spaces
from search_spaces.space import probe_points
from study.answer import answer
from study.direction import Direction, Pair, sign_test
from study.ledger import Ledger
from study.papers import AnsweredTable, answered_tables, as_dicts
from study.published import PublishedTable, Value, coordinates_of, publications, same, value_at
from study.spec import StudySpec, read_spec
from study.statistics import mean_of
from study.wav2vec_s_claims import AnsweredReview, reviewed_claims
from tests.study.builders import open_study, spec_of, write_sweep
from tests.study.paper_studies import (
    LAYERS,
    SIZES,
    TABLE_2,
    claims_study,
    finish,
    languages_sweep,
    last_stage,
    layers_study,
    layers_sweep,
    task_agnostic,
    wav2vec_s,
)
from trainables.models.inventory import measure
from trainables.models.presets import PRESETS
from trainables.settings_file import SettingsError
from trainables.stage import InferenceTime

SWEEPS = sorted(
    path for path in Path(search_spaces.__file__).parent.glob("*.yaml") if "\ntables:" in path.read_text("utf-8")
)
P_SEW_PRESETS = {
    "W2V2-tiny": "w2v2_tiny",
    "W2V2-small": "w2v2_small",
    "W2V2-mid": "w2v2_mid",
    "W2V2-base": "w2v2_base",
    "W2V2-large": "w2v2_large",
    "SEW-D-tiny": "sew_d_tiny",
    "SEW-D-small": "sew_d_small",
    "SEW-D-mid": "sew_d_mid",
    "SEW-D-base": "sew_d_base",
    "SEW-D-base+": "sew_d_base_plus",
    "3 Sq-W2V E384 O-c256": "sq_w2v_e384_o256",
    "4 Sq-W2V E384 C-c96": "sq_w2v_e384_c96",
    "5 Sq-W2V E512 C-c48": "sq_w2v_e512_c48",
    "6 Sq-W2V E512 k31 C-c64": "sq_w2v_e512_c64",
    "7 SEW-tiny": "sew_tiny",
    "9 SEW-tiny with FBFE": "sew_tiny_fbfe",
}


def preset_of(model: Value) -> str:
    """Rows of Table 6 are numbered."""
    name = str(model)
    return P_SEW_PRESETS[name] if name in P_SEW_PRESETS else P_SEW_PRESETS[name.partition(" ")[2]]


def table(name: str) -> PublishedTable:
    found = publications().table(name)
    assert found is not None
    return found


def number(name: str, metric: str, **at: Value) -> float:
    cell = table(name).cell(at)
    assert cell is not None
    return cell.values[metric].value


def reduction(name: str, metric: str, lower: Mapping[str, Value], higher: Mapping[str, Value]) -> float:
    """Relative, in percent."""
    return 100 * (1 - number(name, metric, **lower) / number(name, metric, **higher))


class TestPublishedNumbers:
    def test_all_tables_are_there(self) -> None:
        names = [found.name for found in publications().tables]
        assert names == [*(f"P-BLJ-T{n}" for n in (1, 2, 3)), *(f"P-SEW-T{n}" for n in range(1, 7))]

    @pytest.mark.parametrize("found", publications().tables, ids=lambda found: found.name)
    def test_no_two_cells_of_a_table_have_the_same_coordinates(self, found: PublishedTable) -> None:
        assert all(found.cell(cell.at) is cell for cell in found.cells)
        assert all(cell.at.keys() == set(found.coordinates) for cell in found.cells)

    @pytest.mark.parametrize("found", publications().tables, ids=lambda found: found.name)
    def test_every_part_of_a_claim_has_cells_and_a_metric_that_studies_have(self, found: PublishedTable) -> None:
        for claim in found.claims:
            assert found.metrics[claim.metric].ours
            for expected in claim.pairs:
                assert found.pairs(claim.with_(pairs=(expected,))), expected

    def test_published_numbers_go_as_claimed_but_for_five_pairs(self) -> None:
        """P-BLJ T2: more convolutional layers; P-SEW T5: its caption; T6: two equal rows."""
        contradicted = [
            (found.name, claim.metric, low.at, high.at)
            for found in publications().tables
            for claim in found.claims
            for low, high in found.pairs(claim)
            if (a := low.values.get(claim.metric)) and (b := high.values.get(claim.metric)) and a.value >= b.value
        ]
        assert [(name, *(str(v) for v in low.values())) for name, _, low, _ in contradicted] == [
            ("P-BLJ-T2", "3", "6", "PT+FT"),
            ("P-BLJ-T2", "4", "5", "BL-JUST"),
            ("P-SEW-T5", "SEW-D-mid", "VoxPopuli"),
            ("P-SEW-T5", "SEW-D-mid", "Fisher + Switchboard"),
            ("P-SEW-T6", "6 Sq-W2V E512 k31 C-c64"),
        ]

    def test_p_blj_table_2_has_the_parameters_of_our_presets(self) -> None:
        for cell in table("P-BLJ-T2").cells:
            ours = measure(f"cnn_gru_{cell.at['cnn_layers']}x{cell.at['gru_layers']}").parameters_ctc
            assert cell.values["parameters"].value == ours

    @pytest.mark.parametrize("name", ["P-SEW-T1", "P-SEW-T4", "P-SEW-T6"])
    def test_p_sew_has_the_parameters_of_our_presets(self, name: str) -> None:
        for cell in table(name).cells:
            preset = preset_of(cell.at["model"])
            millions = measure(preset).parameters_ctc / 1e6
            expected = 24.8 if preset == "w2v2_small" else round(millions, 1)
            assert cell.values["parameters"].value == expected

    def test_p_sew_table_2_has_the_settings_of_our_presets(self) -> None:
        found = table("P-SEW-T2")
        for cell in found.cells:
            settings = {"model": PRESETS[preset_of(cell.at["model"])].model_dump(mode="json")}
            for name, metric in found.metrics.items():
                if metric.is_setting and name in cell.values:
                    assert metric.ours is not None
                    assert cell.values[name].value == value_at(settings, metric.ours)

    def test_relative_gains_of_p_blj_table_2_are_those_of_its_text(self) -> None:
        gains = [
            reduction("P-BLJ-T2", "test_wer", {**size, "method": "BL-JUST"}, {**size, "method": "PT+FT"})
            for cnn, gru in SIZES
            for size in [{"cnn_layers": cnn, "gru_layers": gru}]
        ]
        assert (round(min(gains), 1), round(max(gains), 1)) == (9.5, 19.1)

    @pytest.mark.parametrize(("language", "gain"), [("Dutch", 1.35), ("Mongolian", 1.10), ("Arabic", 1.96)])
    def test_gains_of_p_blj_table_3_are_relative(self, language: str, gain: float) -> None:
        sides = ({"language": language, "method": method} for method in ("JUST", "FT"))
        assert reduction("P-BLJ-T3", "test_wer", *sides) == pytest.approx(gain, abs=0.005)

    @pytest.mark.parametrize(
        ("size", "metric", "gain"),
        [
            ("tiny", "test_clean_wer", 54.4),
            ("tiny", "test_other_wer", 45.8),
            ("tiny", "test_clean_wer_lm", 41.0),
            ("tiny", "test_other_wer_lm", 45.7),
            ("mid", "test_clean_wer", 33.3),
            ("mid", "test_other_wer", 36.0),
            ("mid", "inference", 17.1),
        ],
    )
    def test_gains_of_p_sew_table_1_are_those_of_its_text(self, size: str, metric: str, gain: float) -> None:
        found = reduction("P-SEW-T1", metric, {"model": f"SEW-D-{size}"}, {"model": f"W2V2-{size}"})
        assert round(found, 1) == gain

    @pytest.mark.parametrize("model", ["SEW-D-mid", "SEW-D-base+"])
    def test_gpu_days_of_400k_updates_are_four_times_the_hours_of_100k_on_eight_gpus(self, model: str) -> None:
        hours = number("P-SEW-T1", "pretraining", model=model)
        assert number("P-SEW-T4", "pretraining", model=model) == round(4 * 8 * hours / 24, 1)

    def test_speed_ups_of_p_sew_are_those_of_its_text(self) -> None:
        seconds = {str(cell.at["model"]): cell.values["inference"].value for cell in table("P-SEW-T2").cells}
        assert round(seconds["W2V2-base"] / seconds["SEW-D-mid"], 1) == 1.9
        assert round(seconds["W2V2-large"] / seconds["SEW-D-base+"], 1) == 2.7
        days = {str(cell.at["model"]): cell.values["pretraining"].value for cell in table("P-SEW-T4").cells}
        assert round(days["W2V2-large"] / days["SEW-D-base+"], 1) == 3.2
        clean = [
            reduction("P-SEW-T4", "test_clean_wer", {"model": model}, {"model": "W2V2-base"})
            for model in ("SEW-D-mid", "SEW-D-base+")
        ]
        assert [round(gain, 1) for gain in clean] == [19.7, 27.9]

    def test_the_same_measurement_has_the_same_number_in_every_table(self) -> None:
        """Inference of dev-other, and parameters, wherever a model of P-SEW occurs."""
        for metric in ("inference", "parameters"):
            numbers: dict[str, set[float]] = {}
            for name in ("P-SEW-T1", "P-SEW-T2", "P-SEW-T3", "P-SEW-T4", "P-SEW-T6"):
                for cell in table(name).cells:
                    if metric in cell.values:
                        numbers.setdefault(preset_of(cell.at["model"]), set()).add(cell.values[metric].value)
            assert all(len(found) == 1 for found in numbers.values()), numbers

    def test_the_reviews_list_eleven_claims_and_agree_on_four(self) -> None:
        claims = publications().claims
        assert len({claim.key for claim in claims}) == 11
        assert [sum(claim.verified[paper] for claim in claims) for paper in ("P-DATA", "P-CS")] == [9, 6]
        assert sum(claim.verified["P-DATA"] == claim.verified["P-CS"] for claim in claims) == 4
        assert all(0.04 <= value <= 0.32 for claim in claims for value in claim.confidence.values())


class TestSweep:
    def refused(self, tmp_path: Path, tables: Mapping[str, Any]) -> str:
        with pytest.raises(SettingsError) as error:
            read_spec(write_sweep(tmp_path / "sweep.yaml", **{**layers_sweep(), "tables": tables}))
        return "\n".join(error.value.errors)

    def changed(self, **coordinates: Any) -> dict[str, Any]:
        return {"P-BLJ-T2": {**TABLE_2["P-BLJ-T2"], **coordinates}}

    def test_tables_are_read_and_survive_the_ledger(self, tmp_path: Path) -> None:
        spec = read_spec(write_sweep(tmp_path / "sweep.yaml", **layers_sweep()))
        assert spec.tables == TABLE_2
        assert StudySpec.model_validate(spec.model_dump(mode="json")) == spec

    def test_an_unknown_table_is_refused_with_the_one_that_is_meant(self, tmp_path: Path) -> None:
        message = self.refused(tmp_path, {"P-BLJ-2": TABLE_2["P-BLJ-T2"]})
        assert "sweep.yaml:" in message
        assert "no table 'P-BLJ-2'; did you mean 'P-BLJ-T2'?" in message

    def test_an_unknown_coordinate_is_refused(self, tmp_path: Path) -> None:
        message = self.refused(tmp_path, self.changed(lstm_layers="model.gru_layers"))
        assert "has no 'lstm_layers'; did you mean 'gru_layers'?" in message

    def test_a_coordinate_that_is_left_out_is_named(self, tmp_path: Path) -> None:
        message = self.refused(
            tmp_path, {"P-BLJ-T2": {"cnn_layers": "model.cnn_layers", "gru_layers": "model.gru_layers"}}
        )
        assert "needs its coordinate 'method'" in message

    def test_an_unknown_arm_is_refused(self, tmp_path: Path) -> None:
        message = self.refused(tmp_path, self.changed(method={"bilevell": "BL-JUST", "two_stages": "PT+FT"}))
        assert "no arm 'bilevell'; did you mean 'bilevel'?" in message

    def test_a_value_that_the_table_does_not_have_is_refused_with_those_that_it_has(self, tmp_path: Path) -> None:
        message = self.refused(tmp_path, self.changed(method={"bilevel": "JUST", "two_stages": "PT+FT"}))
        assert "no method of 'JUST'; give one of its values: 'PT+FT', 'BL-JUST'" in message

    def test_coordinates_that_have_no_arm_in_common_are_refused(self, tmp_path: Path) -> None:
        mapping = {
            "cnn_layers": {"bilevel": 2},
            "gru_layers": "model.gru_layers",
            "method": {"two_stages": "PT+FT"},
        }
        assert "no arm has a value for every coordinate" in self.refused(tmp_path, {"P-BLJ-T2": mapping})

    @pytest.mark.parametrize("mapping", [3, [], {"method": [1]}, {"method": {"bilevel": None}}])
    def test_a_mapping_of_another_shape_is_refused_with_its_place(self, tmp_path: Path, mapping: Any) -> None:
        assert "tables.P-BLJ-T2" in self.refused(tmp_path, {"P-BLJ-T2": mapping})

    def test_a_path_that_the_trial_does_not_have_is_refused(self, tmp_path: Path) -> None:
        message = self.refused(tmp_path, self.changed(cnn_layers="model.layers"))
        assert "has no 'model.layers'" in message

    def test_a_path_without_any_value_of_the_table_is_refused(self, tmp_path: Path) -> None:
        message = self.refused(tmp_path, self.changed(cnn_layers="model.gru_width"))
        assert "no cnn_layers of 144; give one of its values: 2, 3, 4" in message

    def test_a_path_may_have_values_beyond_those_of_the_table(self, tmp_path: Path) -> None:
        sweep = layers_sweep()
        sweep["arms"]["bilevel"]["space"] = {**LAYERS, "model.cnn_layers": {"kind": "grid", "choices": [1, 2]}}
        assert read_spec(write_sweep(tmp_path / "sweep.yaml", **sweep)).tables == TABLE_2

    def test_the_sweeps_reach_every_cell_of_their_tables(self) -> None:
        reached: dict[str, list[Mapping[str, Any]]] = {}
        for path in SWEEPS:
            spec = read_spec(path, absent_is_fine=True)
            for name, mapping in spec.tables.items():
                for arm in spec.arms:
                    for point in probe_points(spec.arms[arm].space) or [{}]:
                        at = coordinates_of(mapping, arm, spec.trial_config(arm, point).model_dump(mode="json"))
                        assert at is not None
                        reached.setdefault(name, []).append(at)
        assert set(reached) == {found.name for found in publications().tables}
        for name, places in reached.items():
            lacking = [cell.at for cell in table(name).cells if not any(same(cell.at, at) for at in places)]
            assert not lacking, name


class TestDirection:
    @given(st.integers(0, 40), st.integers(0, 40))
    def test_the_sign_test_is_the_binomial_test(self, holding: int, opposite: int) -> None:
        pairs = holding + opposite
        expected = scipy.stats.binomtest(holding, pairs, 0.5, "greater").pvalue if pairs else 1.0
        assert sign_test(holding, opposite) == pytest.approx(expected, rel=1e-9)

    def direction(self, differences: list[float], seeds: int = 3) -> Direction:
        return Direction(tuple(Pair(str(i), 0.5 + d, 0.5, seeds, (f"t{i}",)) for i, d in enumerate(differences)))

    def test_nine_of_nine_hold(self) -> None:
        found = self.direction([-0.01] * 9)
        assert found.p_value == 0.5**9
        assert found.verdict == "holds for 9 of 9 pairs, p = 0.002"

    def test_seven_of_nine_cannot_be_told_from_chance(self) -> None:
        found = self.direction([-0.01] * 7 + [0.01] * 2)
        assert found.p_value == pytest.approx(46 / 512)
        assert found.verdict == "holds for 7 of 9 pairs, p = 0.09: not told from chance"

    def test_three_pairs_are_too_few(self) -> None:
        assert (
            self.direction([-0.01] * 3).verdict
            == "holds for 3 of 3 pairs, p = 0.12: too few pairs to tell it from chance"
        )

    def test_the_opposite_direction_is_said(self) -> None:
        assert "the opposite direction, p = 0.002" in self.direction([0.01] * 9).verdict

    def test_equal_values_are_pairs_that_do_not_hold_and_have_no_part_in_p(self) -> None:
        found = self.direction([-0.01] * 5 + [0.0])
        assert found.p_value == 0.5**5
        assert "5 of 6 pairs" in found.verdict

    def test_one_seed_gives_no_verdict(self) -> None:
        found = self.direction([-0.01] * 9, seeds=1)
        assert found.p_value is None
        assert found.verdict == "cannot be told: one seed on a side (9 of 9 pairs go in the direction claimed)"

    def test_pairs_with_one_seed_are_left_out_beside_others(self) -> None:
        found = Direction((*self.direction([-0.01] * 5).pairs, *self.direction([0.2], seeds=1).pairs))
        assert found.verdict.startswith("holds for 5 of 5 pairs")
        assert found.difference is not None
        assert found.difference.estimate == pytest.approx(-0.01)
        assert found.trials == [f"t{i}" for i in range(5)]

    def test_nothing_measured_gives_no_verdict(self) -> None:
        assert Direction(()).verdict == "cannot be told: no pair is measured"
        assert Direction(()).difference is None

    @given(st.lists(st.floats(-0.4, 0.4), min_size=1, max_size=12))
    def test_exchanging_both_sides_turns_the_differences_round(self, differences: list[float]) -> None:
        found = self.direction(differences)
        turned = Direction(tuple(Pair(p.name, p.high, p.low, p.seeds, p.trials) for p in found.pairs))
        assert found.difference is not None
        assert turned.difference is not None
        assert turned.difference.estimate == pytest.approx(-found.difference.estimate)
        assert (turned.holding, turned.opposite) == (found.opposite, found.holding)


def tables_of(spec: StudySpec) -> AnsweredTable:
    ledger = Ledger.in_folder(spec.storage)
    (answered,) = answered_tables(spec, ledger, answer(spec, ledger))
    return answered


def better(arm: str, cnn: int, gru: int, seed: int) -> float:
    """BL-JUST is two points better, and each layer helps."""
    return 0.5 - 0.02 * (arm == "bilevel") - 0.01 * cnn - 0.02 * gru + 0.001 * seed


class TestTables:
    @pytest.fixture(scope="class")
    def answered(self, tmp_path_factory: pytest.TempPathFactory) -> AnsweredTable:
        return tables_of(layers_study(tmp_path_factory.mktemp("layers"), better))

    def test_every_cell_has_the_mean_and_the_interval_of_its_seeds(self, answered: AnsweredTable) -> None:
        assert len(answered.cells) == 18
        for cell in answered.cells:
            arm = "bilevel" if cell.published.at["method"] == "BL-JUST" else "two_stages"
            size = (int(cell.published.at["cnn_layers"]), int(cell.published.at["gru_layers"]))
            assert cell.measured["test_wer"].mean == mean_of([better(arm, *size, seed) for seed in range(3)])
            assert len(cell.trials) == 3
            assert all(trial.startswith(arm) for trial in cell.trials)

    def test_what_trials_do_not_record_is_said_to_be_missing(self, answered: AnsweredTable) -> None:
        assert {cell.missing["parameters"] for cell in answered.cells} == {"not recorded"}

    def test_claims_are_counted_over_the_pairs_of_the_table(self, answered: AnsweredTable) -> None:
        methods, recurrent, convolutional = answered.claims
        assert methods.direction.verdict == "holds for 9 of 9 pairs, p = 0.002"
        assert methods.direction.difference is not None
        assert methods.direction.difference.estimate == pytest.approx(-0.02)
        assert (methods.published_holding, methods.published_pairs) == (9, 9)
        assert [pair.difference for pair in recurrent.direction.pairs] == pytest.approx([-0.02] * 12)
        assert [pair.difference for pair in convolutional.direction.pairs] == pytest.approx([-0.01] * 12)
        assert (convolutional.published_holding, convolutional.published_pairs) == (10, 12)

    def test_cells_without_finished_trials_are_empty_and_leave_pairs_out(self, tmp_path: Path) -> None:
        def wer(arm: str, cnn: int, gru: int, seed: int) -> float | None:
            return None if (arm, gru) == ("bilevel", 6) else better(arm, cnn, gru, seed)

        answered = tables_of(layers_study(tmp_path, wer))
        empty = [cell for cell in answered.cells if cell.configuration is None]
        assert len(empty) == 3
        assert all(cell.missing["test_wer"] == "no finished trial" for cell in empty)
        assert (len(answered.claims[0].direction.pairs), answered.claims[0].direction.claimed) == (6, 9)

    def test_one_seed_gives_cells_and_no_verdict(self, tmp_path: Path) -> None:
        answered = tables_of(layers_study(tmp_path, better, seeds=1))
        assert answered.cells[0].measured["test_wer"].mean.low is None
        assert answered.claims[0].direction.verdict.startswith("cannot be told: one seed")

    def test_an_empty_ledger_leaves_every_cell_empty(self, tmp_path: Path) -> None:
        answered = tables_of(layers_study(tmp_path, lambda *_: None))
        assert not any(cell.configuration for cell in answered.cells)
        assert answered.claims[0].direction.verdict == "cannot be told: no pair is measured"

    def test_of_several_configurations_of_a_cell_that_with_most_seeds_and_best_dev_counts(self, tmp_path: Path) -> None:
        rate = "regime.finetune.learning_rate"
        sweep = layers_sweep()
        sweep["arms"]["two_stages"]["space"] = {**LAYERS, rate: {"kind": "categorical", "choices": [1e-3, 2e-3, 3e-3]}}
        spec = spec_of(tmp_path, **sweep)
        ledger = open_study(spec)
        at = {"model.cnn_layers": 2, "model.gru_layers": 4}
        runs = [
            (1e-3, 0, 0.40, 0.1),
            (2e-3, 0, 0.50, 0.2),
            (2e-3, 1, 0.50, 0.2),
            (3e-3, 0, 0.45, 0.3),
            (3e-3, 1, 0.45, 0.3),
        ]
        for number, (value, seed, dev, test) in enumerate(runs):
            point = {**at, rate: value}
            finish(ledger, spec, "two_stages", number, seed=seed, point=point, dev_cer=dev, test_wer=test)
        cell = tables_of(spec).cells[0]
        assert cell.configuration is not None
        assert cell.configuration.point[rate] == 3e-3

    def test_parameters_hours_and_inference_come_from_the_ledger(self, tmp_path: Path) -> None:
        sweep = {
            "arms": {
                "small": {"trial": task_agnostic()},
                "large": {"trial": task_agnostic() | {"model": {"preset": "compact_cnn_gru", "gru_layers": 2}}},
            },
            "tables": {"P-SEW-T1": {"model": {"small": "SEW-D-small", "large": "W2V2-mid"}}},
            "inference_time": {},
        }
        spec = spec_of(tmp_path, **sweep)
        ledger = open_study(spec)
        for arm, hours in (("small", 16.0), ("large", 24.0)):
            seconds = {"pretrain": 3600 * hours}
            finish(ledger, spec, arm, 0, seed=0, test_wer=0.2, parameters=41_000_000, stage_seconds=seconds)
        times = InferenceTime(
            split="dev", batch_seconds=250, device="cpu", utterances=9, audio_seconds=90, seconds=(1.0, 2.0, 3.0)
        )
        ledger.add_inference_time(last_stage(spec, "small"), times)
        cells = {str(cell.published.at["model"]): cell for cell in tables_of(spec).cells}
        small = cells["SEW-D-small"]
        metrics = table("P-SEW-T1").metrics
        assert small.measured["parameters"].mean.estimate == 41_000_000
        assert metrics["parameters"].printed(41_000_000) == 41
        assert metrics["pretraining"].printed(small.measured["pretraining"].mean.estimate) == pytest.approx(2)
        assert small.measured["inference"].mean == mean_of([1.0, 2.0, 3.0])
        assert small.missing["test_other_wer_lm"] == "no language model"
        assert "one test split" in small.missing["test_clean_wer"]
        assert "inference_time" in cells["W2V2-mid"].missing["inference"]
        ledger.add_inference_time(last_stage(spec, "large"), times.model_copy(update={"device": "another"}))
        cells = {str(cell.published.at["model"]): cell for cell in tables_of(spec).cells}
        assert "inference_time" in cells["W2V2-mid"].missing["inference"], "seconds on two devices do not compare"
        assert "no finished trial" in cells["SEW-D-base"].missing["test_other_wer"]

    def test_a_study_without_tables_has_none(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        assert answered_tables(spec, ledger, answer(spec, ledger)) == []

    def test_arms_name_the_language_and_the_method(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path, **languages_sweep())
        ledger = open_study(spec)
        for arm in spec.arms:
            for seed in range(2):
                finish(ledger, spec, arm, seed, seed=seed, test_wer=0.5 if arm.endswith("just") else 0.6)
        claim = tables_of(spec).claims[0]
        assert claim.direction.verdict == "holds for 3 of 3 pairs, p = 0.12: too few pairs to tell it from chance"

    def test_json_has_cells_claims_and_verdicts(self, tmp_path: Path) -> None:
        spec = layers_study(tmp_path, better)
        ledger = Ledger.in_folder(spec.storage)
        found = json.loads(json.dumps(as_dicts(spec, ledger, answer(spec, ledger))))
        (published,) = found["tables"]
        assert published["table"] == "P-BLJ-T2"
        assert published["cells"][0]["published"]["test_wer"] == {"value": 16.2, "spread": None}
        assert published["cells"][0]["ours"]["test_wer"]["estimate"] == pytest.approx(0.401)
        assert published["claims"][0]["verdict"].startswith("holds for 9 of 9")
        assert published["claims"][0]["claimed"] == 9
        assert found["claims"] == []


AGNOSTIC = [0.50, 0.52, 0.51]
SPECIFIC = [0.40, 0.41, 0.42]


class TestReviewedClaims:
    def claims(self, spec: StudySpec, ledger: Ledger) -> dict[str, AnsweredReview]:
        found = reviewed_claims(spec, ledger, answer(spec, ledger))
        return {answered.claim.key: answered for answered in found}

    def of(self, tmp_path: Path, arms: Mapping[str, Any], wers: Mapping[str, list[float]]) -> dict[str, AnsweredReview]:
        return self.claims(*claims_study(tmp_path, arms, wers))

    def pair(self, tmp_path: Path, minutes: float = 60, specific: list[float] = SPECIFIC) -> dict[str, AnsweredReview]:
        arms = {"agnostic": task_agnostic(minutes), "specific": wav2vec_s(minutes=minutes)}
        return self.of(tmp_path, arms, {"agnostic": AGNOSTIC, "specific": specific})

    def test_every_claim_has_an_answer_in_the_order_of_the_reviews(self, tmp_path: Path) -> None:
        answered = self.pair(tmp_path)
        assert list(answered) == [claim.key for claim in publications().claims]
        assert all(found.verdict for found in answered.values())

    def test_without_finished_trials_every_claim_still_has_a_verdict(self, tmp_path: Path) -> None:
        answered = self.of(tmp_path, {"agnostic": task_agnostic(), "specific": wav2vec_s()}, {})
        assert len(answered) == 11
        measured = ("reduction_1h", "reduction_10h", "improves", "characters", "trade_off", "cost", "other_models")
        assert all(answered[key].verdict.startswith("cannot be told") for key in measured)

    def test_a_study_without_wav2vec_s_has_none(self, tmp_path: Path) -> None:
        assert self.of(tmp_path, {"agnostic": task_agnostic()}, {"agnostic": AGNOSTIC}) == {}

    def test_the_reduction_of_one_pair_is_that_of_geometric_means_over_seeds(self, tmp_path: Path) -> None:
        found = self.pair(tmp_path)["reduction_1h"]
        ratio = scipy.stats.gmean(SPECIFIC) / scipy.stats.gmean(AGNOSTIC)
        assert found.reduction is not None
        assert found.reduction.low is not None
        assert found.reduction.high is not None
        assert found.reduction.estimate == pytest.approx(1 - ratio)
        assert found.reduction.low < found.reduction.estimate < found.reduction.high
        assert found.verdict == "the WER falls; the published 24.5 % is outside the interval"
        assert len(found.trials) == 6

    def test_ten_hours_are_another_claim(self, tmp_path: Path) -> None:
        answered = self.pair(tmp_path, minutes=600)
        assert answered["reduction_10h"].reduction is not None
        assert "60 labelled minutes" in answered["reduction_1h"].verdict

    def test_one_seed_gives_a_reduction_without_a_verdict(self, tmp_path: Path) -> None:
        found = self.pair(tmp_path, specific=[0.4])["reduction_1h"]
        assert found.verdict == "cannot be told: one seed on a side"
        assert found.reduction is not None
        assert found.reduction.estimate == pytest.approx(1 - 0.4 / 0.51)

    def test_a_rise_and_no_difference_are_told(self, tmp_path: Path) -> None:
        assert "the WER rises" in self.pair(tmp_path / "a", specific=[0.7, 0.71, 0.72])["reduction_1h"].verdict
        assert "no difference can be told" in self.pair(tmp_path / "b", specific=AGNOSTIC)["reduction_1h"].verdict

    def test_configurations_with_the_same_searched_values_are_pairs(self, tmp_path: Path) -> None:
        space = {"corpus.unlabelled_hours": {"kind": "grid", "choices": [0.1, 0.2]}}
        arms = {
            "agnostic": {"trial": task_agnostic(), "space": space},
            "specific": {"trial": wav2vec_s(), "space": space},
        }
        spec = spec_of(tmp_path, arms=arms)
        ledger = open_study(spec)
        for number, (arm, hours, wer) in enumerate(
            [("agnostic", 0.1, 0.6), ("agnostic", 0.2, 0.5), ("specific", 0.1, 0.3), ("specific", 0.2, 0.4)]
        ):
            for seed in range(2):
                point = {"corpus.unlabelled_hours": hours}
                finish(ledger, spec, arm, 10 * number + seed, seed=seed, point=point, test_wer=wer)
        found = self.claims(spec, ledger)
        assert found["reduction_1h"].reduction == mean_of([1 - 0.3 / 0.6, 1 - 0.4 / 0.5])
        assert found["improves"].direction is not None
        assert [pair.difference for pair in found["improves"].direction.pairs] == pytest.approx([-0.3, -0.1])

    def test_characters_are_compared_with_phones_whichever_is_the_baseline(self, tmp_path: Path) -> None:
        wers = {"characters": SPECIFIC, "phones": AGNOSTIC}
        for place, (first, second) in enumerate([("characters", "phones"), ("phones", "characters")]):
            arms = {first: wav2vec_s(labels=first), second: wav2vec_s(labels=second)}
            direction = self.of(tmp_path / str(place), arms, wers)["characters"].direction
            assert direction is not None
            (pair,) = direction.pairs
            assert pair.name == "characters / phones"
            assert pair.difference == pytest.approx(-0.10)

    @pytest.mark.parametrize(("better_at_home", "holding"), [("one", 1), ("two", 0)])
    def test_a_trade_off_is_to_be_better_on_the_source_and_worse_elsewhere(
        self, tmp_path: Path, better_at_home: str, holding: int
    ) -> None:
        one, two = wav2vec_s(source="it"), wav2vec_s(source="it", labels="phones")
        spec, ledger = claims_study(tmp_path, {"one": one, "two": two}, {})
        for arm, wers in (("one", AGNOSTIC), ("two", SPECIFIC)):
            for seed, wer in enumerate(wers):
                home = 0.2 if arm == better_at_home else 0.3
                finish(ledger, spec, arm, seed, seed=seed, test_wer=wer, source_dev_wer=home)
        found = self.claims(spec, ledger)["trade_off"]
        assert found.direction is not None
        assert (found.direction.holding, len(found.direction.pairs)) == (holding, 1)
        assert "source dev WER 20.0%" in found.ours

    def test_a_source_in_the_same_language_says_nothing_of_a_trade_off(self, tmp_path: Path) -> None:
        arms = {"one": wav2vec_s(), "two": wav2vec_s(labels="phones")}
        found = self.of(tmp_path, arms, {"one": SPECIFIC, "two": AGNOSTIC})["trade_off"]
        assert "source in another language" in found.verdict

    @pytest.mark.parametrize(
        ("seconds", "verdict"),
        [
            ([20.0, 21.0, 22.0], "costs less, with the lengths that the sweep gives"),
            ([200.0, 210.0, 220.0], "costs more than pre-training"),
            ([50.0, 100.0, 150.0], "no difference can be told"),
            ([20.0], "cannot be told: one seed"),
        ],
    )
    def test_the_cost_of_the_stage_is_a_share_of_that_of_pre_training(
        self, tmp_path: Path, seconds: list[float], verdict: str
    ) -> None:
        spec, ledger = claims_study(tmp_path, {"agnostic": task_agnostic(), "specific": wav2vec_s()}, {})
        for seed, spent in enumerate(seconds):
            finish(ledger, spec, "specific", seed, seed=seed, test_wer=0.4, stage_seconds={"semi_supervised": spent})
        found = self.claims(spec, ledger)["cost"]
        assert found.verdict == verdict
        assert found.ours.startswith(f"{sum(seconds) / len(seconds):.1f} %")

    def test_stages_that_trials_share_count_once(self, tmp_path: Path) -> None:
        arms = {"five": wav2vec_s(minutes=None), "again": {**wav2vec_s(minutes=None), "language_model": None}}
        regime = wav2vec_s(minutes=None)["regime"]
        arms["again"]["regime"] = {**regime, "finetune": {"steps": 80}}
        found = self.of(tmp_path, arms, {"five": SPECIFIC, "again": SPECIFIC})
        assert "over 3 stage(s)" in found["cost"].ours
        assert "3 semi-supervised stage(s) go on from 3 pre-training(s)" in found["coupling"].ours

    def test_one_family_of_models_does_not_tell_of_others(self, tmp_path: Path) -> None:
        found = self.pair(tmp_path)["other_models"]
        assert found.verdict == "cannot be told: one family of models only, compact_cnn_gru"

    def test_two_families_of_models_are_told_apart_and_together(self, tmp_path: Path) -> None:
        other = {"model": {"preset": "cnn_gru_2x4"}}
        arms = {
            "agnostic": task_agnostic(),
            "specific": (wav2vec_s(), "agnostic"),
            "agnostic_2": task_agnostic() | other,
            "specific_2": (wav2vec_s() | other, "agnostic_2"),
        }
        wers = {"agnostic": AGNOSTIC, "specific": SPECIFIC, "agnostic_2": AGNOSTIC, "specific_2": SPECIFIC}
        found = self.of(tmp_path, arms, wers)["other_models"]
        assert "compact_cnn_gru: holds for 1 of 1" in found.ours
        assert "cnn_gru: holds for 1 of 1" in found.ours
        assert found.verdict.startswith("holds for 2 of 2 pairs")

    def test_generalisation_is_told_by_sources_in_other_languages(self, tmp_path: Path) -> None:
        arms = {"agnostic": task_agnostic(), "specific": wav2vec_s(source="it")}
        found = self.of(tmp_path, arms, {"agnostic": AGNOSTIC, "specific": SPECIFIC})["improves"]
        assert "in other languages than the source: holds for 1 of 1 pairs" in found.ours
        assert "not measured" in self.pair(tmp_path / "same")["improves"].ours

    def test_claims_on_set_up_and_representations_are_not_measured_here(self, tmp_path: Path) -> None:
        answered = self.pair(tmp_path)
        assert answered["gap"].verdict == answered["task_specific"].verdict
        assert answered["gap"].verdict.startswith("cannot be told: not measured (`study similarity ")
        assert answered["source"].verdict.startswith("states a set-up")
        assert answered["source"].ours == "specific: prompts (es, 60 min)"

    def test_a_coordinate_is_compared_by_value_and_kind(self) -> None:
        assert same({"a": 2}, {"a": 2.0})
        assert not same({"a": 1}, {"a": True})
        assert not same({"a": 2}, {"a": "2"})
