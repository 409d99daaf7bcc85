"""The papers' tables and claims as text, and the radar figure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from study.answer import answer
from study.ledger import Ledger
from study.papers_report import ReportTable, claims_table, mean_text, published_tables, radar_figure
from study.published import PublishedMetric, publications
from study.spec import StudySpec
from study.statistics import Mean
from tests.study.builders import open_study, spec_of
from tests.study.paper_studies import (
    LANGUAGES,
    claims_study,
    finish,
    languages_sweep,
    layers_study,
    task_agnostic,
    wav2vec_s,
)


def tables_of(spec: StudySpec) -> list[ReportTable]:
    ledger = Ledger.in_folder(spec.storage)
    return published_tables(spec, ledger, answer(spec, ledger))


def test_a_table_has_published_ours_and_trials_side_by_side(tmp_path: Path) -> None:
    spec = layers_study(tmp_path, lambda arm, cnn, gru, seed: 0.3 - 0.02 * (arm == "bilevel") + 0.01 * seed)
    cells, claims = tables_of(spec)
    assert cells.title == "P-BLJ Table 2: Pre-training + fine-tuning (PT+FT) against BL-JUST, at nine sizes"
    assert cells.head[:3] == ["cnn layers", "gru layers", "method"]
    assert cells.head[5:] == ["test WER, %: published", "ours", "trials"]
    assert cells.rows[1][:4] == ["2", "4", "BL-JUST", "22415487"]
    assert cells.rows[1][4] == "not recorded"
    assert cells.rows[1][5:7] == ["13.1", "29.0 (26.5-31.5)"]
    assert cells.rows[1][7] == "bilevel-000, bilevel-001, bilevel-002"
    assert any("character error rate" in note for note in cells.notes)
    assert any("corpus prompts (es); model compact_cnn_gru" in note for note in cells.notes)
    assert claims.rows[0][:5] == [
        "BL-JUST is better than PT+FT at every size",
        "test WER, %",
        "9 of 9",
        "9 of 9",
        "9 of 9",
    ]
    assert claims.rows[0][5].startswith("-2")
    assert claims.rows[0][7:9] == ["0.002", "holds for 9 of 9 pairs, p = 0.002"]


def test_all_rows_are_as_wide_as_the_head(tmp_path: Path) -> None:
    spec = layers_study(tmp_path / "layers", lambda *_: 0.3)
    claims = claims_study(tmp_path / "claims", {"agnostic": task_agnostic(), "specific": wav2vec_s()}, {})
    reviewed = claims_table(*claims, answer(*claims))
    assert reviewed is not None
    for found in (*tables_of(spec), reviewed):
        assert all(len(row) == len(found.head) for row in found.rows)
        assert all(isinstance(cell, str) for row in found.rows for cell in row)


@pytest.mark.parametrize("name", [table.name for table in publications().tables])
def test_a_table_of_which_nothing_has_run_says_so_in_every_cell(tmp_path: Path, name: str) -> None:
    table = publications().table(name)
    assert table is not None
    arms = {"slow": {"trial": task_agnostic()}}
    mapping = {coordinate: {"slow": table.known(coordinate)[0]} for coordinate in table.coordinates}
    spec = spec_of(tmp_path, arms=arms, tables={name: mapping})
    open_study(spec)
    cells, claims = tables_of(spec)
    assert len(cells.rows) == len(table.rows)
    for row in cells.rows:
        ours = row[len(table.coordinates) + 1 : -1 : 2]
        assert all(text.startswith(("no finished trial", "not measured")) for text in ours)
    assert all(row[8] == "cannot be told: no pair is measured" for row in claims.rows)


def test_the_numbers_of_a_table_are_printed_as_the_paper_has_them() -> None:
    rate = PublishedMetric(name="WER", ours="test_wer")
    millions = PublishedMetric(name="parameters", ours="parameters", unit=1e6)
    count = PublishedMetric(name="parameters", ours="parameters")
    seconds = PublishedMetric(name="inference", ours="inference_seconds")
    assert mean_text(rate, Mean(0.312, 0.298, 0.326)) == "31.2 (29.8-32.6)"
    assert mean_text(rate, Mean(0.02, -0.01, 0.05)) == "2.0 (0.0-5.0)"
    assert mean_text(rate, Mean(0.312, None, None)) == "31.2"
    assert mean_text(millions, Mean(24_127_423, 24_127_423, 24_127_423)) == "24.1"
    assert mean_text(count, Mean(22_415_487, None, None)) == "22415487"
    assert mean_text(seconds, Mean(7.512, 7.47, 7.55)) == "7.51 (7.47-7.55)"


def test_published_spreads_and_lost_numbers_are_shown(tmp_path: Path) -> None:
    mapping = {"model": {"slow": "W2V2-base"}, "labels": {"slow": "1h"}}
    spec = spec_of(tmp_path, arms={"slow": {"trial": task_agnostic()}}, tables={"P-SEW-T3": mapping})
    open_study(spec)
    cells, _ = tables_of(spec)
    shown = {(row[0], row[1]): row for row in cells.rows}
    assert shown["W2V2-base", "1h"][4] == "40 ± 2.34"
    assert shown["W2V2-base", "10m"][4] == "not known"


def test_the_claims_have_both_reviews_beside_the_verdict(tmp_path: Path) -> None:
    arms = {"agnostic": task_agnostic(), "specific": wav2vec_s()}
    spec, ledger = claims_study(tmp_path, arms, {"agnostic": [0.5, 0.52], "specific": [0.4, 0.41]})
    found = claims_table(spec, ledger, answer(spec, ledger))
    assert found is not None
    assert len(found.rows) == 11
    first = found.rows[0]
    assert first[1:4] == ["not verified (0.14)", "verified (0.15)", "24.5 %"]
    assert "the WER falls" in first[5]
    assert first[6] == "specific-000, specific-001, agnostic-000, agnostic-001"


def test_a_study_without_wav2vec_s_has_no_table_of_claims(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    ledger = open_study(spec)
    assert claims_table(spec, ledger, answer(spec, ledger)) is None


class TestRadar:
    def drawn(self, storage: Path, wer: Callable[[str, int], float | None], *, tables: bool = True) -> Figure | None:
        spec = spec_of(storage, **languages_sweep(tables))
        ledger = open_study(spec)
        for arm in spec.arms:
            for seed in range(2):
                if (value := wer(arm, seed)) is not None:
                    finish(ledger, spec, arm, seed, seed=seed, test_wer=value)
        drawn = radar_figure(spec, answer(spec, ledger))
        return drawn.figure if drawn else None

    def test_each_regime_is_a_closed_polygon_of_its_test_wers(self, tmp_path: Path) -> None:
        rates = {"es_ft": 0.5, "es_just": 0.4, "it_ft": 0.6, "it_just": 0.55, "ru_ft": 0.8, "ru_just": 0.7}
        figure = self.drawn(tmp_path, lambda arm, seed: rates[arm], tables=False)
        assert figure is not None
        lines = {str(line.get_label()): line for line in figure.axes[0].get_lines()}
        for regime, end in (("pretrain_finetune", "ft"), ("bl_just", "just")):
            y = np.asarray(lines[regime].get_ydata())
            assert y == pytest.approx([100 * rates[f"{code}_{end}"] for code in (*LANGUAGES, "es")])
        assert not any("published" in label for label in lines)

    def test_a_study_that_covers_the_table_shows_the_published_polygons(self, tmp_path: Path) -> None:
        figure = self.drawn(tmp_path, lambda arm, seed: 0.5)
        assert figure is not None
        lines = {str(line.get_label()): line for line in figure.axes[0].get_lines()}
        assert np.asarray(lines["bl_just (published)"].get_ydata()) == pytest.approx([58.4, 71.8, 70.2, 58.4])
        assert np.asarray(lines["pretrain_finetune (published)"].get_ydata()) == pytest.approx([59.2, 72.6, 71.6, 59.2])

    def test_a_regime_that_lacks_a_language_is_left_out(self, tmp_path: Path) -> None:
        figure = self.drawn(tmp_path, lambda arm, seed: None if arm == "ru_just" else 0.5)
        assert figure is not None
        labels = [str(line.get_label()) for line in figure.axes[0].get_lines()]
        assert "pretrain_finetune" in labels
        assert "bl_just" not in labels

    def test_there_is_none_without_finished_trials(self, tmp_path: Path) -> None:
        assert self.drawn(tmp_path, lambda arm, seed: None) is None

    def test_there_is_none_for_a_study_in_one_language(self, tmp_path: Path) -> None:
        spec = layers_study(tmp_path, lambda *_: 0.3, seeds=1)
        assert radar_figure(spec, answer(spec, Ledger.in_folder(spec.storage))) is None
