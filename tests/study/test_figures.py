"""Figures: their looks, their files, the data beside them, the grid of two numbers and the timeline."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.answer import answer
from study.figure_files import COLOURS, Drawn, looks, save
from study.figures import Attempt, attempts, convergence_figure, grids, heat_map_figure, lanes, running, survival_figure
from study.ledger import Ledger
from study.page import FORMATS
from study.report import write_report
from study.spec import StudySpec
from tests.study.builders import (
    LEARNING_RATE,
    add_trial,
    crossing_at,
    open_study,
    pretrain_finetune,
    report,
    run_trial,
    spec_of,
    supervised,
)

# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency" (2009),
# severity 1; on linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def lab(colour: str, vision: str) -> np.ndarray:
    """CIELAB of an sRGB colour as it is seen."""
    srgb = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    ratio = XYZ @ np.clip(VISIONS[vision] @ linear, 0, 1) / WHITE
    x, y, z = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(a: str, b: str, vision: str) -> float:
    """CIE 1976; 2.3 is just noticeable."""
    return float(np.linalg.norm(lab(a, vision) - lab(b, vision)))


class TestLooks:
    @pytest.mark.parametrize("vision", VISIONS)
    def test_colours_can_be_told_apart_by_colour_blind_readers(self, vision: str) -> None:
        assert min(distance(a, b, vision) for a, b in itertools.combinations(COLOURS, 2)) > 15
        assert min(distance(a, b, vision) for a, b in itertools.pairwise(COLOURS)) > 30
        assert min(distance(a, "#FFFFFF", vision) for a in COLOURS) > 30

    def test_black_and_white_are_as_far_apart_as_cielab_says(self) -> None:
        assert distance("#000000", "#FFFFFF", "normal") == pytest.approx(100, abs=1e-3)

    def test_arms_next_to_each_other_differ_in_colour_line_and_marker(self) -> None:
        found = list(looks(f"arm{n}" for n in range(140)).values())
        for a, b in itertools.pairwise(found):
            assert a.colour != b.colour
            assert a.line != b.line
            assert a.marker != b.marker
        assert len(set(found)) == 140


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> StudySpec:
    """Two arms with two replications each, and a search trial of the first."""
    spec = spec_of(tmp_path_factory.mktemp("study"))
    ledger = open_study(spec)
    run_trial(ledger, spec, "slow", curve=crossing_at(20))
    for arm in ("slow", "fast"):
        for seed, step in ((1, 20), (2, 25)):
            run_trial(ledger, spec, arm, origin="replication", seed=seed, curve=crossing_at(step), seconds_a_step=6.0)
    return spec


def convergence(spec: StudySpec) -> Drawn:
    ledger = Ledger.in_folder(spec.storage)
    return convergence_figure(spec, ledger, answer(spec, ledger))


class TestFiles:
    def test_a_figure_has_a_file_in_every_format(self, spec: StudySpec, tmp_path: Path) -> None:
        save(convergence(spec), tmp_path / "it")
        assert {path.name for path in tmp_path.iterdir()} == {f"it.{suffix}" for suffix in FORMATS}

    def test_the_svg_is_what_is_returned_and_its_text_is_text(self, spec: StudySpec, tmp_path: Path) -> None:
        element = save(convergence(spec), tmp_path / "it")
        assert element.startswith("<svg")
        assert (tmp_path / "it.svg").read_text(encoding="utf-8").endswith(element)
        assert {"slow (2 seeds)", "dev CER, %", "accelerator time, minutes"} <= set(
            re.findall(r">([^<>]+)</text>", element)
        )

    def test_the_pdf_embeds_its_fonts_as_truetype(self, spec: StudySpec, tmp_path: Path) -> None:
        save(convergence(spec), tmp_path / "it")
        pdf = (tmp_path / "it.pdf").read_bytes()
        assert b"/FontFile2" in pdf
        assert b"/Type3" not in pdf

    def test_saved_twice_they_are_the_same(self, spec: StudySpec, tmp_path: Path) -> None:
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            save(convergence(spec), tmp_path / folder / "it")
        for suffix in FORMATS:
            a, b = ((tmp_path / folder / f"it.{suffix}").read_bytes() for folder in ("a", "b"))
            assert a == b, suffix

    def test_every_figure_of_a_report_has_a_csv_that_others_can_read(self, spec: StudySpec) -> None:
        folder = write_report(spec, Ledger.in_folder(spec.storage)).parent
        names = {path.stem for path in folder.glob("*.svg")}
        assert names == {"convergence", "survival"}
        for name in names:
            table = pd.read_csv(folder / f"{name}.csv")
            assert len(table) > 3
            assert not any(column.startswith("Unnamed") for column in table.columns)


def table_of(drawn: Drawn, path: Path) -> pd.DataFrame:
    save(drawn, path)
    return pd.read_csv(path.with_suffix(".csv"))


class TestData:
    def test_of_the_curves_are_the_points_of_the_ledger(self, spec: StudySpec, tmp_path: Path) -> None:
        table = table_of(convergence(spec), tmp_path / "it")
        ((trial, points),) = table[table.series.str.fullmatch(r"slow-\d+")].groupby("series")
        assert trial == "slow-000"
        cer = points[(points.metric == "dev CER") & (points["x is"] == "updates (all stages)")]
        assert cer.x.tolist() == [10, 30]
        assert cer["metric, %"].tolist() == pytest.approx([90, 100 * crossing_at(20)[30]])

    def test_of_the_bands_are_mean_lowest_and_highest_of_the_seeds(self, spec: StudySpec, tmp_path: Path) -> None:
        table = table_of(convergence(spec), tmp_path / "it")
        time = "accelerator time, minutes"
        band = table[(table.arm == "fast") & (table.metric == "dev CER") & (table["x is"] == time)]
        ends = sorted(100 * crossing_at(step)[30] for step in (20, 25))
        assert band.series.unique().tolist() == ["mean of 2 seeds"]
        assert band.x.tolist() == pytest.approx([1, 3])  # minutes: 10 and 30 updates of 6 s
        assert band["metric, %"].tolist() == pytest.approx([90, sum(ends) / 2])
        assert band["lowest seed, %"].tolist() == pytest.approx([90, ends[0]])
        assert band["highest seed, %"].tolist() == pytest.approx([90, ends[1]])

    def test_of_the_target_is_where_the_study_wants_to_be(self, spec: StudySpec, tmp_path: Path) -> None:
        table = table_of(convergence(spec), tmp_path / "it")
        target = table[table.series == "target"]
        assert set(target.metric) == {"dev CER"}
        assert set(target["metric, %"]) == {50}

    def test_of_survival_are_the_crossings(self, spec: StudySpec, tmp_path: Path) -> None:
        table = table_of(survival_figure(spec, answer(spec, Ledger.in_folder(spec.storage))), tmp_path / "it")
        steps = table[(table.arm == "slow") & (table["x is"] == "updates (all stages)")]
        assert steps.x.tolist() == pytest.approx([0, 20, 25])
        assert steps["seeds above a dev CER of 50% from x on, %"].tolist() == pytest.approx([100, 50, 0])


SEED_GRID = {"seed": {"kind": "grid", "choices": [0, 1]}}
RATES = {"kind": "grid", "choices": [3e-3, 1e-3]}
FROZEN = "regime.train.frozen_backbone_steps"


def grid_study(storage: Path, **more: Any) -> tuple[StudySpec, Ledger]:
    """Every point of a grid of 2 x 3 but the last, with two seeds; the CER is lowest at (1e-3, 5)."""
    space = {LEARNING_RATE: RATES, FROZEN: {"kind": "grid", "choices": [0, 5, 10]}, **more}
    spec = spec_of(storage, arms={"one": {"trial": supervised(), "space": space}})
    ledger = open_study(spec)
    points = list(itertools.product((3e-3, 1e-3), (0, 5, 10)))[:-1]
    for number, ((rate, frozen), seed) in enumerate(itertools.product(points, (0, 1))):
        point = {LEARNING_RATE: rate, FROZEN: frozen}
        name, (stage,) = add_trial(ledger, spec, "one", number, point=point, seed=seed)
        ledger.append(stage.fingerprint(), [report(40, dev_wer=0.9, dev_cer=cer(rate, frozen) + 0.02 * seed)])
        ledger.end_trial(spec.study, name, "finished")
    return spec, ledger


def cer(rate: float, frozen: int) -> float:
    return 0.3 + 20 * rate + 0.01 * abs(frozen - 5)


class TestHeatMap:
    def test_each_cell_is_the_mean_over_seeds_and_the_lowest_is_the_best(self, tmp_path: Path) -> None:
        spec, ledger = grid_study(tmp_path)
        found = answer(spec, ledger)
        table = table_of(heat_map_figure(spec, found, grids(spec, found)), tmp_path / "it")
        assert len(table) == 5
        for row in table.to_dict("records"):
            assert (row["path of x"], row["path of y"], row["seeds"]) == (LEARNING_RATE, FROZEN, 2)
            assert row["dev CER, %, mean over seeds"] == pytest.approx(100 * (cer(row["x"], row["y"]) + 0.01))
        (best,) = table[table["best of the arm"] == "yes"].to_dict("records")
        assert (best["x"], best["y"]) == (1e-3, 5)

    def test_the_numbers_stand_in_the_cells_and_the_choices_at_the_axes(self, tmp_path: Path) -> None:
        spec, ledger = grid_study(tmp_path)
        svg = (write_report(spec, ledger).parent / "grids.svg").read_text(encoding="utf-8")
        shown = re.findall(r">([^<>]+)</text>", svg)
        cells = [f"{100 * (cer(rate, frozen) + 0.01):.1f}" for rate in (3e-3, 1e-3) for frozen in (0, 5, 10)][:-1]
        assert all(shown.count(cell) >= cells.count(cell) for cell in cells)
        assert {"0.001", "0.003", "0", "5", "10"} <= set(shown)

    def test_the_page_shows_it(self, tmp_path: Path) -> None:
        page = write_report(*grid_study(tmp_path)).read_text(encoding="utf-8")
        assert "<h2>dev CER over the grid</h2>" in page
        assert 'href="grids.csv"' in page

    def test_a_grid_of_seeds_is_no_third_axis(self, tmp_path: Path) -> None:
        spec, ledger = grid_study(tmp_path, **SEED_GRID)
        assert grids(spec, answer(spec, ledger)) == {"one": (LEARNING_RATE, FROZEN)}

    @pytest.mark.parametrize(
        "third",
        [
            {"model.gru_layers": {"kind": "grid", "choices": [1, 2]}},
            {"model.dropout": {"kind": "uniform", "low": 0, "high": 0.5}},
        ],
    )
    def test_a_third_searched_value_leaves_no_grid_of_two(self, tmp_path: Path, third: dict[str, Any]) -> None:
        spec, ledger = grid_study(tmp_path, **third)
        assert grids(spec, answer(spec, ledger)) == {}

    @pytest.mark.parametrize(
        "other",
        [
            {"regime.train.augment_speed": {"kind": "grid", "choices": [True, False]}},
            {"regime.train.keep": {"kind": "grid", "choices": ["best", "last"]}},
            {"regime.train.batch_seconds": {"kind": "categorical", "choices": [8.0, 16.0]}},
        ],
    )
    def test_only_numbers_on_a_grid_count(self, tmp_path: Path, other: dict[str, Any]) -> None:
        spec = spec_of(tmp_path, arms={"one": {"trial": supervised(), "space": {LEARNING_RATE: RATES, **other}}})
        ledger = open_study(spec)
        run_trial(ledger, spec, "one", curve=crossing_at(20))
        assert grids(spec, answer(spec, ledger)) == {}

    def test_before_a_trial_has_finished_there_is_none(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path, arms={"one": {"trial": supervised(), "space": {LEARNING_RATE: RATES, **SEED_GRID}}})
        assert grids(spec, answer(spec, open_study(spec))) == {}


spans = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), min_size=1, max_size=15)


def as_attempts(found: list[tuple[int, int]]) -> list[Attempt]:
    return [Attempt(str(n), "joint", start, start + length) for n, (start, length) in enumerate(sorted(found))]


class TestLanes:
    @given(spans)
    def test_attempts_in_a_lane_do_not_overlap_and_no_lane_is_too_many(self, found: list[tuple[int, int]]) -> None:
        ran = as_attempts(found)
        lane_of = lanes(ran)
        for (a, lane_a), (b, lane_b) in itertools.combinations(zip(ran, lane_of, strict=True), 2):
            assert lane_a != lane_b or a.end <= b.start
        at_a_time = max(sum(a.start <= moment < a.end for a in ran) for moment in range(50))
        assert max(lane_of) + 1 == at_a_time

    @given(spans)
    def test_how_many_run_is_what_counting_says(self, found: list[tuple[int, int]]) -> None:
        ran = as_attempts(found)
        moments = running(ran)
        assert [moment for moment, _ in moments] == sorted({m for a in ran for m in (a.start, a.end)})
        for moment, count in moments:
            assert count == sum(a.start <= moment < a.end for a in ran)


def ran_study(storage: Path, ran: dict[str, list[tuple[float, float]]]) -> tuple[StudySpec, Ledger, float]:
    """A pre-training, and its fine-tuning, with the (seconds since the study began, seconds spent) of their reports."""
    spec = spec_of(storage, arms={"one": {"trial": pretrain_finetune()}})
    ledger = open_study(spec)
    began = ledger.study(spec.study)["created_at"]
    _, stages = add_trial(ledger, spec, "one")
    for stage in stages:
        reports = [
            report(10 * n, dev_cer=0.5).with_(reported_at=began + at, elapsed_seconds=spent)
            for n, (at, spent) in enumerate(ran[stage.kind], start=1)
        ]
        ledger.append(stage.fingerprint(), reports)
    return spec, ledger, began


class TestTimeline:
    def test_an_undisturbed_stage_is_one_bar_from_its_start_to_its_last_report(self, tmp_path: Path) -> None:
        ran = {"pretrain": [(15, 5), (25, 15)], "finetune": [(40, 10), (50, 20)]}
        spec, ledger, began = ran_study(tmp_path, ran)
        found = [(a.kind, a.start - began, a.end - began) for a in attempts(spec, ledger)]
        assert [kind for kind, _, _ in found] == ["pretrain", "finetune"]
        assert [times for _, *times in found] == [pytest.approx([10, 25]), pytest.approx([30, 50])]

    def test_a_restart_leaves_a_gap(self, tmp_path: Path) -> None:
        ran = {"pretrain": [(15, 5), (25, 15), (125, 20), (135, 30)], "finetune": []}
        spec, ledger, began = ran_study(tmp_path, ran)
        found = [[a.start - began, a.end - began] for a in attempts(spec, ledger)]
        assert found == [pytest.approx([10, 25]), pytest.approx([120, 135])]

    def test_a_short_wait_is_no_restart(self, tmp_path: Path) -> None:
        spec, ledger, _ = ran_study(tmp_path, {"pretrain": [(15, 5), (29, 15)], "finetune": []})
        assert len(attempts(spec, ledger)) == 1

    def test_a_stage_that_trials_share_ran_once(self, tmp_path: Path) -> None:
        spec, ledger, _ = ran_study(tmp_path, {"pretrain": [(15, 5)], "finetune": [(40, 10)]})
        rate = {"regime.finetune.learning_rate": 0.005}
        add_trial(ledger, spec, "one", 1, point=rate)
        assert [a.kind for a in attempts(spec, ledger)] == ["pretrain", "finetune"]

    def test_what_an_earlier_study_trained_is_not_shown(self, tmp_path: Path) -> None:
        spec, ledger, _ = ran_study(tmp_path, {"pretrain": [(-50, 5)], "finetune": [(40, 10)]})
        assert [a.kind for a in attempts(spec, ledger)] == ["finetune"]

    def test_the_page_has_it_with_its_kinds_and_its_data(self, tmp_path: Path) -> None:
        spec, ledger, _ = ran_study(tmp_path, {"pretrain": [(70, 60)], "finetune": [(100, 60)]})
        page = write_report(spec, ledger)
        assert "<h2>Timeline</h2>" in page.read_text(encoding="utf-8")
        assert re.findall(r">(pretrain|finetune)</text>", (page.parent / "timeline.svg").read_text(encoding="utf-8"))
        table = pd.read_csv(page.parent / "timeline.csv")
        stages = table[table.series == "stage"]
        assert stages.kind.tolist() == ["pretrain", "finetune"]
        assert stages.lane.tolist() == [0, 1]
        assert stages["start, minutes"].tolist() == pytest.approx([0, 0.5])
        assert stages["end, minutes"].tolist() == pytest.approx([1, 1.5])
        assert table["stages at a time from start on"].dropna().tolist() == [1, 2, 1, 0]

    def test_without_stages_of_its_own_a_study_has_none(self, spec: StudySpec) -> None:
        assert attempts(spec, Ledger.in_folder(spec.storage)) == []  # their reports are older than the study
        assert "Timeline" not in write_report(spec, Ledger.in_folder(spec.storage)).read_text(encoding="utf-8")
