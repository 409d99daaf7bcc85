"""The report page, and the commands that read a ledger: status and report; a study that drifted is refused."""

from __future__ import annotations

import io
import json
import re
import shutil
import sqlite3
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from study.answer import answer
from study.ledger import Ledger, Origin, Status
from study.provenance import environment, refuse_drift
from study.report import write_report
from study.run import main
from study.spec import StudySpec, read_spec
from study.terminal import front_table
from tests.study.builders import (
    LEARNING_RATE,
    add_trial,
    crossing_at,
    open_study,
    report,
    run_trial,
    spec_of,
    supervised,
    sweep,
    write_sweep,
)
from trainables.decoding.ngram import estimate
from trainables.settings_file import SettingsError
from trainables.trial import stages_of

pytestmark = pytest.mark.usefixtures("no_pdf")


def fill(spec: StudySpec) -> Ledger:
    """Two arms with a search trial, a failure and three replications each, and one unfinished trial."""
    ledger = open_study(spec)
    for arm, cost in (("slow", 2.0), ("fast", 0.5)):
        run_trial(ledger, spec, arm, 0, curve=crossing_at(20), seconds_a_step=cost)
        run_trial(ledger, spec, arm, 1, curve={10: 0.8}, rate=2e-3, status="failed", cause=f"{arm}: <lost> & gone")
        for seed in (1, 2, 3):
            curve = crossing_at(20 + seed)
            run_trial(ledger, spec, arm, 0, origin="replication", seed=seed, curve=curve, seconds_a_step=cost)
    run_trial(ledger, spec, "slow", 2, curve={}, rate=3e-3, status="unfinished")
    return ledger


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []  # tag, name, value
        self.text: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> StudySpec:
    return spec_of(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def page(spec: StudySpec) -> Path:
    return write_report(spec, fill(spec))


class TestPage:
    def test_loads_nothing_from_anywhere(self, page: Path) -> None:
        content = Page(page)
        assert not {"link", "iframe", "object", "embed", "base"} & set(content.tags)
        loading = {"src", "href", "xlink:href", "srcset", "data", "action", "background", "poster"}
        elsewhere = {(t, n, v) for t, n, v in content.attributes if n in loading and not v.startswith(("#", "data:"))}
        names = ("convergence", "survival")
        files = {("a", "href", f"{name}.{suffix}") for name in names for suffix in ("svg", "png", "pdf", "csv")}
        assert elsewhere == files
        assert all((page.parent / name).stat().st_size for _, _, name in files)
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"url\((?!#)|@import", text)
        assert not [n for _, n, _ in content.attributes if n.startswith("on")]
        script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
        assert len(script) == content.tags.count("script") == 1
        assert not re.search(r"fetch|XMLHttpRequest|import|https?:|eval", script[0])

    def test_the_contents_name_every_part_and_lead_to_it(self, page: Path) -> None:
        text = page.read_text(encoding="utf-8")
        nav = re.search(r"<nav.*?</nav>", text, re.DOTALL)
        assert nav
        links = re.findall(r'<a href="#([\w-]+)">(.*?)</a>', nav[0])
        parts = re.findall(r'<section id="([\w-]+)"><h2>(.*?)</h2>', text)
        assert links == parts
        assert len({name for name, _ in parts}) == len(parts) == text.count("<h2>")
        titles = [title for _, title in parts]
        assert titles[:2] == ["Convergence", "Results of each arm"]
        assert titles[-4:] == ["Methods", "Data", "Versions", "Settings"]

    def test_every_table_has_a_head_and_rows_as_wide_as_it(self, page: Path) -> None:
        tables = re.findall(r"<table>(.*?)</table>", page.read_text(encoding="utf-8"), re.DOTALL)
        assert len(tables) > 6
        for table in tables:
            head, body = re.fullmatch(r"<thead><tr>(.*?)</tr></thead><tbody>(.*?)</tbody>", table, re.DOTALL).groups()  # type: ignore[union-attr]
            widths = {row.count("<td") for row in re.findall(r"<tr>(.*?)</tr>", body)}
            assert widths == {head.count("<th scope=col>")}

    def test_holds_question_answer_hashes_and_versions(self, page: Path, spec: StudySpec) -> None:
        words = Page(page).words
        assert spec.question in words
        assert "fast converges faster than slow: to a dev CER of 50%" in words
        known = environment(spec)
        hashes = [digest for parts in known["data"].values() for digest in parts.values()]
        assert len(hashes) == 4
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) and digest in words for digest in hashes)
        assert {"torch", "ray", "optuna", "mlflow", "commit", "python"} <= set(known["versions"])
        assert all(f"{name} {version}".strip() in words for name, version in known["versions"].items())

    def test_lists_every_trial_with_its_outcome(self, page: Path, spec: StudySpec) -> None:
        text = page.read_text(encoding="utf-8")
        rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
        trials = {row[0]: row for row in rows if row and re.fullmatch(r"(slow|fast)-\d{3}(-seed\d)?", row[0])}
        assert set(trials) == {trial.trial for trial in Ledger.in_folder(spec.storage).trials("race")}
        assert len(trials) == 2 * 5 + 1
        assert trials["slow-001"][-1] == "failed: slow: &lt;lost&gt; &amp; gone"
        assert trials["slow-002"][-1] == "unfinished"
        assert trials["fast-000-seed1"][-1] == "finished"
        assert "10.0%" in trials["slow-000"]  # the final CER of crossing_at(20)
        assert "1:00" in trials["slow-000"]  # 30 steps of 2 s

    def test_has_its_figure_inside_and_beside_it(self, page: Path) -> None:
        svg = (page.parent / "convergence.svg").read_text(encoding="utf-8")
        assert svg[svg.index("<svg") :].strip() in page.read_text(encoding="utf-8")
        with Image.open(io.BytesIO((page.parent / "convergence.png").read_bytes())) as image:
            image.load()
            assert image.format == "PNG"
            assert image.size == (1500, 1050)
            assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 20  # not blank

    def test_tags_are_balanced(self, page: Path) -> None:
        body = page.read_text(encoding="utf-8").partition("<body>")[2]
        tables = ("table", "thead", "tbody", "tr", "td", "th")
        for tag in (
            "p",
            "h1",
            "h2",
            "h3",
            *tables,
            "figure",
            "figcaption",
            "pre",
            "div",
            "svg",
            "section",
            "nav",
            "ul",
            "li",
        ):
            assert len(re.findall(rf"<{tag}[ >]", body)) == body.count(f"</{tag}>"), tag

    def test_without_a_finished_trial_it_says_so(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        run_trial(ledger, spec, "slow", curve={10: 0.8}, status="failed", cause="no luck")
        add_trial(ledger, spec, "fast")
        words = Page(write_report(spec, ledger)).words
        assert "No answer: no trial of slow has finished." in words
        assert "failed: no luck" in words

    def test_seeds_that_were_evaluated_at_different_times_can_be_drawn(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        for seed, curve in enumerate(({10: 0.9, 20: 0.5}, {30: 0.4, 40: 0.3}, {15: 0.6}), start=1):
            run_trial(ledger, spec, "slow", origin="replication", seed=seed, curve=curve)
        assert write_report(spec, ledger).is_file()

    def test_what_people_write_is_shown_and_not_interpreted(self, tmp_path: Path) -> None:
        question = "Is <b>x</b> & \"y\" < 'z'? <script>alert(1)</script>"
        spec = spec_of(tmp_path, question=question)
        page = write_report(spec, fill(spec))
        content = Page(page)
        assert question in content.words
        assert content.tags.count("script") == 1  # that of the page
        assert "<script>alert" not in page.read_text(encoding="utf-8")
        assert "<b>x</b>" not in page.read_text(encoding="utf-8")

    @pytest.mark.parametrize("question", [r"Is $\bad$ better?", "Is $5 better than $6?", "Is 5$ better?"])
    def test_a_dollar_is_no_formula(self, tmp_path: Path, question: str) -> None:
        spec = spec_of(tmp_path, question=question)
        page = write_report(spec, fill(spec))
        assert question in Page(page).words
        assert question in " ".join(Page(page.parent / "convergence.svg").text)

    def test_the_password_of_a_server_is_not_in_it(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path, mlflow={"tracking_uri": "http://me:s3cret@127.0.0.1:1"})
        assert "s3cret" not in write_report(spec, fill(spec)).read_text(encoding="utf-8")

    def test_written_twice_it_is_the_same(self, page: Path, spec: StudySpec) -> None:
        before = Page(page).words
        assert write_report(spec, Ledger.in_folder(spec.storage)) == page
        assert Page(page).words == before


def rows_of(page: Path, head: str) -> list[list[str]]:
    """The rows, without markup, of the table whose headings begin like this, with a bar between them."""
    text = page.read_text(encoding="utf-8")
    tables = re.findall(r"<table>(.*?)</table>", text, re.DOTALL)
    (table,) = [t for t in tables if "|".join(re.findall(r"<th scope=col>(.*?)</th>", t)).startswith(head)]
    rows = re.findall(r"<tr>(<td.*?)</tr>", table)
    return [[re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<td.*?>(.*?)</td>", row)] for row in rows]


def picture(path: Path) -> tuple[tuple[int, int], int]:
    """Size in pixels, and the number of colours."""
    with Image.open(path) as image:
        return image.size, len(image.convert("RGB").getcolors(1 << 24) or ())


def fill_several(spec: StudySpec) -> Ledger:
    """For every arm three finished trials, one with two more seeds, and one that was stopped."""
    ledger = open_study(spec)
    for place, arm in enumerate(spec.arms):
        outcomes: list[tuple[int, int | None, float, Status]] = [
            (0, None, 0.5, "finished"),
            (1, None, 0.4, "finished"),
            (2, None, 0.6, "finished"),
            (3, None, 0.8, "stopped"),
            (0, 1, 0.45, "finished"),
            (0, 2, 0.55, "finished"),
        ]
        for number, seed, wer, status in outcomes:
            origin: Origin = "search" if seed is None else "replication"
            point = {LEARNING_RATE: 1e-3 * (number + 1)}
            name, (stage,) = add_trial(ledger, spec, arm, number, origin=origin, point=point, seed=seed)
            size = {"parameters": (number + 1) * 1e6 * (place + 1), "real_time_factor": 0.01 * (number + 1)}
            measured = {"dev_wer": wer + place / 50, "dev_cer": wer / 2, **(size if status == "finished" else {})}
            ledger.append(stage.fingerprint(), [report(10, dev_wer=0.9, dev_cer=0.8), report(40, **measured)])
            cause = "worse than its rivals at half of its training" if status == "stopped" else None
            ledger.end_trial(spec.study, name, status, cause)
    return ledger


def spec_with_costs(storage: Path, *also: str, **changes: Any) -> StudySpec:
    return spec_of(storage, search={"trials": 4, "metric": "dev_wer", "also_minimise": also}, **changes)


class TestFront:
    def test_the_table_has_the_front_with_intervals_and_probability(self, tmp_path: Path) -> None:
        """Normal noise of 5 % on 40 %, against means of 50 % and 52 % of three seeds: dominated in one draw of 20."""
        spec = spec_with_costs(tmp_path, "parameters")
        page = write_report(spec, fill_several(spec))
        assert rows_of(page, "arm|searched values|seeds|dev WER|parameters") == [
            ["slow", "learning_rate=0.002", "1", "40.0%", "2,000,000", "95%"],
            ["slow", "learning_rate=0.001", "3", "50.0% (37.6-62.4)", "1,000,000", "100%"],
        ]

    @pytest.mark.parametrize(
        ("also", "width"),
        [(["parameters"], 1140), (["parameters", "real_time_factor", "accelerator_hours"], 2280)],
    )
    def test_the_figure_has_a_panel_for_each_further_objective_and_the_hypervolume(
        self, tmp_path: Path, also: list[str], width: int
    ) -> None:
        spec = spec_with_costs(tmp_path, *also)
        page = write_report(spec, fill_several(spec))
        assert Page(page).tags.count("figure") == 4  # convergence, survival, front and slices
        svg = (page.parent / "pareto.svg").read_text(encoding="utf-8")
        assert svg[svg.index("<svg") :].strip() in page.read_text(encoding="utf-8")
        assert svg.count('<g id="axes_') == len(also) + 1
        (found_width, height), colours = picture(page.parent / "pareto.png")
        assert (found_width, height) == (width, 600)
        assert colours > 20

    @pytest.mark.parametrize("count", [1, *(pytest.param(count, marks=pytest.mark.long) for count in (9, 19))])
    def test_any_number_of_arms_can_be_drawn(self, tmp_path: Path, count: int) -> None:
        space = {LEARNING_RATE: {"kind": "log_uniform", "low": 1e-4, "high": 1e-2}}
        arms = {f"arm{n}": {"trial": supervised(steps=40 + n), "space": space} for n in range(count)}
        spec = spec_with_costs(tmp_path, "parameters", arms=arms)
        page = write_report(spec, fill_several(spec))
        svg = (page.parent / "pareto.svg").read_text(encoding="utf-8")
        assert all(f">arm{n}</text>" in svg for n in range(count))

    def test_the_worst_that_can_be_measured_can_be_drawn(self, tmp_path: Path) -> None:
        """One trial, whose cost is nothing."""
        spec = spec_with_costs(tmp_path, "parameters", "real_time_factor")
        ledger = open_study(spec)
        name, (stage,) = add_trial(ledger, spec, "slow")
        final = report(40, dev_wer=1.0, dev_cer=1.0, parameters=0.0, real_time_factor=0.0)
        ledger.append(stage.fingerprint(), [final])
        ledger.end_trial(spec.study, name, "finished")
        assert (write_report(spec, ledger).parent / "pareto.png").is_file()

    def test_before_anything_is_measured_it_says_so(self, tmp_path: Path) -> None:
        spec = spec_with_costs(tmp_path, "parameters")
        page = write_report(spec, open_study(spec))
        assert "No finished trial has measured all objectives." in Page(page).words
        assert not (page.parent / "pareto.png").exists()

    def test_a_study_of_one_objective_has_no_such_section(self, page: Path) -> None:
        assert "Pareto front" not in Page(page).words
        assert not (page.parent / "pareto.png").exists()

    def test_the_terminal_shows_the_same_front(self, tmp_path: Path) -> None:
        spec = spec_with_costs(tmp_path, "parameters")
        table = front_table(answer(spec, fill_several(spec)))
        assert table is not None
        console = Console(width=140, file=io.StringIO(), record=True)
        console.print(table)
        shown = console.export_text()
        assert re.search(r"slow .* 3 .* 50.0% \(37.6-62.4\) .* 1,000,000 .* 100% .* learning_rate=0.001", shown)
        assert "learning_rate=0.003" not in shown

    def test_the_terminal_shows_nothing_where_there_is_none(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        assert front_table(answer(spec, open_study(spec))) is None


class TestSurvival:
    def fill(self, spec: StudySpec) -> Ledger:
        """Every curve ends at 30 s; of slow, one seed of three does not reach the target."""
        ledger = open_study(spec)
        for arm, crossings in (("slow", [20, None, 22]), ("fast", [20, 21, 22])):
            for seed, step in enumerate(crossings, start=1):
                curve = {10: 0.9, 30: 0.6} if step is None else crossing_at(step)
                run_trial(ledger, spec, arm, origin="replication", seed=seed, curve=curve)
        return ledger

    def test_a_row_for_each_target_and_arm(self, tmp_path: Path) -> None:
        convergence = {"metric": "dev_cer", "target": 0.5, "further_targets": [0.05]}
        spec = spec_of(tmp_path, convergence=convergence)
        rows = rows_of(write_report(spec, self.fill(spec)), "target|")
        assert [row[:3] + row[4:6] for row in rows] == [
            ["50%", "slow", "2 of 3", "0:30", ""],
            ["50%", "fast", "3 of 3", "0:30", "slow"],
            ["5%", "slow", "0 of 3", "0:30", ""],
            ["5%", "fast", "0 of 3", "0:30", "slow"],
        ]
        assert [row[3][:4] for row in rows] == ["0:24", "0:21", "0:30", "0:30"]
        assert rows[1][6].startswith("0.88 (")
        assert [row[6:] for row in rows[2:]] == [["", ""], ["cannot be estimated", "1"]]

    def test_the_comparison_says_of_which_means_it_is(self, tmp_path: Path, page: Path) -> None:
        spec = spec_of(tmp_path)
        restricted = rows_of(write_report(spec, self.fill(spec)), "ratio|")
        assert {row[4] for row in restricted} == {"restricted"}
        assert {row[4] for row in rows_of(page, "ratio|")} == {"geometric"}

    def test_the_figure_has_two_panels_and_an_entry_for_each_arm(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        page = write_report(spec, self.fill(spec))
        svg = (page.parent / "survival.svg").read_text(encoding="utf-8")
        assert svg[svg.index("<svg") :].strip() in page.read_text(encoding="utf-8")
        assert svg.count('<g id="axes_') == 2
        assert ">slow (2 of 3 reached it)</text>" in svg
        assert ">fast (3 of 3 reached it)</text>" in svg
        size, colours = picture(page.parent / "survival.png")
        assert size == (1500, 600)
        assert colours > 20

    def test_with_one_seed_of_each_arm_there_is_none(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        for arm in ("slow", "fast"):
            run_trial(ledger, spec, arm, curve=crossing_at(20))
        page = write_report(spec, ledger)
        assert "Seeds that have not reached the target" not in Page(page).words
        assert not (page.parent / "survival.png").exists()


class TestSearchedValues:
    def test_shares_are_bars_of_their_length_the_greatest_first(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        shares = {"slow": {"model.width": 0.25, LEARNING_RATE: 0.75}, "fast": {LEARNING_RATE: 1.0}}
        page = write_report(spec, fill_several(spec), shares)
        assert rows_of(page, "arm|searched value|") == [
            ["slow", LEARNING_RATE, "", "75%"],
            ["slow", "model.width", "", "25%"],
            ["fast", LEARNING_RATE, "", "100%"],
        ]
        styles = [value for tag, name, value in Page(page).attributes if (tag, name) == ("div", "style")]
        assert styles == ["width:7.50rem", "width:2.50rem", "width:10.00rem"]

    def test_without_shares_there_is_no_table_of_them(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = fill_several(spec)
        for shares in (None, {"slow": {}}):
            words = Page(write_report(spec, ledger, shares)).words
            assert "Importance of the searched values" in words
            assert "fANOVA" not in words

    def test_every_searched_path_of_every_kind_has_a_panel(self, tmp_path: Path) -> None:
        space = {
            LEARNING_RATE: {"kind": "log_uniform", "low": 1e-4, "high": 1e-2},
            "model.gru_layers": {"kind": "int", "low": 1, "high": 4},
            "model.dropout": {"kind": "uniform", "low": 0, "high": 1, "when": {"model.gru_layers": [2]}},
            "model.preset": {"kind": "categorical", "choices": ["compact", "one_whose_name_goes_on_for_ever"]},
            "augment_speed": {"kind": "grid", "choices": [True, False]},
        }
        arms = {"one": {"trial": supervised(), "space": space}, "none": {"trial": supervised(steps=41)}}
        spec = spec_of(tmp_path, arms=arms)
        ledger = open_study(spec)
        first = {"model.gru_layers": 1, "model.preset": "compact", "augment_speed": True}
        second = {"model.gru_layers": 2, "model.dropout": 0.5, "model.preset": space["model.preset"]["choices"][1]}  # type: ignore[index]
        for number, values in enumerate((first, {**second, "augment_speed": False})):
            point = {LEARNING_RATE: 1e-3 + number * 1e-4, **values}
            config = spec.trial_config("one", {LEARNING_RATE: point[LEARNING_RATE]})
            ledger.add_trial(
                spec.study,
                f"one-{number:03d}",
                arm="one",
                number=number,
                origin="search",
                grid={},
                point=point,
                config={},
                seed=0,
                stages=stages_of(config),
            )
            ledger.append(stages_of(config)[-1].fingerprint(), [report(40, dev_wer=0.5, dev_cer=0.4)])
            ledger.end_trial(spec.study, f"one-{number:03d}", "finished")
        svg = (write_report(spec, ledger).parent / "slices.svg").read_text(encoding="utf-8")
        assert all(f">{path}</text>" in svg for path in space)
        assert all(f">{choice}</text>" in svg for choice in ("compact", "one_whose_nam…", "True", "False"))

    def test_stopped_trials_are_drawn_and_failed_ones_are_not(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        drawn = []
        for status in ("failed", "stopped"):
            changed = spec.with_(study=status)
            ledger = fill_several(changed)
            name, (stage,) = add_trial(ledger, changed, "slow", 4, point={LEARNING_RATE: 9e-3})
            ledger.append(stage.fingerprint(), [report(30, dev_wer=0.7, dev_cer=0.7)])
            ledger.end_trial(changed.study, name, status, "a cause")  # type: ignore[arg-type]
            svg = (write_report(changed, ledger).parent / "slices.svg").read_text(encoding="utf-8")
            drawn.append(svg.count('<g id="PathCollection_'))
        assert drawn == [8, 9]

    def test_one_finished_trial_is_no_slice(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        run_trial(ledger, spec, "slow", curve=crossing_at(20))
        run_trial(ledger, spec, "slow", 1, curve=crossing_at(20), rate=2e-3, status="stopped", cause="no hope")
        page = write_report(spec, ledger)
        assert not (page.parent / "slices.png").exists()
        assert "Importance of the searched values" not in Page(page).words


class TestStoppedTrials:
    def test_are_listed_with_the_reason(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        page = write_report(spec, fill_several(spec))
        rows = {row[0]: row for row in rows_of(page, "trial|")}
        assert rows["slow-003"][-1] == "stopped: worse than its rivals at half of its training"
        assert "80.0%" in rows["slow-003"]

    def test_never_stand_for_an_arm(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        run_trial(ledger, spec, "slow", curve=crossing_at(20), status="stopped", cause="no hope")
        found = answer(spec, ledger)
        assert found.sentences == ["No answer: no trial of slow has finished."]
        assert found.cells == []
        assert write_report(spec, ledger).is_file()


class TestReportCommand:
    def test_writes_the_page_and_prints_where_it_is(
        self, spec: StudySpec, page: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        page.unlink()
        assert main(["report", "race", "--storage", str(spec.storage)]) == 0
        assert capsys.readouterr().out.strip() == str(page)
        assert page.is_file()

    def test_prints_json(self, spec: StudySpec, page: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["report", "race", "--storage", str(spec.storage), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["report"] == str(page)
        assert [arm["arm"] for arm in found["arms"]] == ["slow", "fast"]
        assert found["answer"][0].startswith("fast converges faster than slow")
        assert found["ratios"][0]["accelerator_seconds"]["estimate"] == pytest.approx(0.25)

    def test_in_a_folder_that_was_moved_it_writes_there(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fill(spec_of(tmp_path / "old")).close()
        shutil.move(tmp_path / "old", tmp_path / "new")
        assert main(["report", "race", "--storage", str(tmp_path / "new")]) == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / "new" / "reports" / "race" / "report.html")
        assert not (tmp_path / "old").exists()

    def test_an_unknown_study_is_an_error_that_names_the_known(
        self, spec: StudySpec, page: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for verb in ("report", "status"):
            assert main([verb, "rice", "--storage", str(spec.storage)]) == 2
            captured = capsys.readouterr()
            assert "no study 'rice'" in captured.err
            assert "known: race" in captured.err
            assert captured.out == ""

    @pytest.mark.parametrize("words", [["report", "race"], ["status"], ["status", "race", "--json"]])
    def test_a_folder_without_a_ledger_is_an_error_and_stays_empty(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
    ) -> None:
        assert main([*words, "--storage", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert f"{tmp_path / 'ledger.db'}: no such file; --storage is the folder of studies that have run" in error
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("words", [["report", "race"], ["status"]])
    def test_a_ledger_of_another_version_is_an_error(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
    ) -> None:
        fill(spec_of(tmp_path)).close()
        with sqlite3.connect(tmp_path / "ledger.db") as db:
            db.execute("update schema set version = 99")
        assert main([*words, "--storage", str(tmp_path)]) == 2
        assert "schema version 99" in capsys.readouterr().err


class TestDrift:
    def drift(self, tmp_path: Path, **changes: Any) -> None:
        before = spec_of(tmp_path)
        ledger = open_study(before)
        refuse_drift(spec_of(tmp_path, **changes), ledger)

    def other_arms(self, tmp_path: Path) -> dict[str, Any]:
        arms: dict[str, Any] = sweep(tmp_path)["arms"]
        return arms

    def test_a_new_study_is_welcome(self, tmp_path: Path) -> None:
        self.drift(tmp_path, study="another")

    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"search": {"trials": 20, "metric": "dev_cer", "sampler": {"kind": "random"}}},
            {"question": "Put otherwise?"},
            {"convergence": {"metric": "dev_wer", "target": 0.3}},
            {"replication": {"top": 2, "seeds": 5}},
            {"resources": {"workers": 2}},
            {"mlflow": {"enabled": False}},
        ],
    )
    def test_what_leaves_trials_comparable_may_change(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        self.drift(tmp_path, **changes)

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"trial": {"seed": 3}}, "trial changed"),
            ({"search": {"trials": 2, "metric": "dev_wer", "sampler": {"kind": "random"}}}, "search.metric changed"),
            ({"search": {"trials": 2, "metric": "dev_cer", "sampler": {"kind": "tpe"}}}, "search.sampler changed"),
            (
                {"search": {"trials": 2, "metric": "dev_cer", "sampler": {"kind": "random"}, "seed": 1}},
                "search.seed changed",
            ),
        ],
    )
    def test_what_does_not_is_refused_by_name(self, tmp_path: Path, changes: dict[str, Any], named: str) -> None:
        with pytest.raises(SettingsError, match=named) as caught:
            self.drift(tmp_path, **changes)
        assert "study=race-2" in str(caught.value)

    def test_a_changed_arm_is_refused_and_so_is_another_order(self, tmp_path: Path) -> None:
        arms = self.other_arms(tmp_path)
        narrower = {LEARNING_RATE: {"kind": "log_uniform", "low": 1e-4, "high": 2e-2}}
        for changed in (
            {**arms, "slow": {"trial": supervised(steps=41), "space": arms["slow"]["space"]}},
            {**arms, "slow": {"trial": supervised(), "space": narrower}},
            {"slow": arms["slow"]},
        ):
            with pytest.raises(SettingsError, match="arms changed"):
                self.drift(tmp_path, arms=changed)

    def test_changed_data_are_refused(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        known = environment(spec)
        ((corpus, parts),) = known["data"].items()
        ledger.open_study("race", spec.model_dump(mode="json"), {**known, "data": {corpus: {**parts, "dev": "0" * 64}}})
        with pytest.raises(SettingsError, match="the content of the corpus or the language model changed"):
            refuse_drift(spec, ledger)

    def test_another_language_model_of_the_same_name_is_refused(self, tmp_path: Path) -> None:
        arpa = tmp_path / "lm.arpa"
        estimate([["uno", "dos"]], 2, arpa)
        arms = {"fast": {"trial": {**supervised(), "language_model": {"path": str(arpa)}}}}
        spec = spec_of(tmp_path, arms=arms)
        ledger = open_study(spec)
        refuse_drift(spec, ledger)
        estimate([["uno", "tres"]], 2, arpa)
        with pytest.raises(SettingsError, match="the content of the corpus or the language model changed"):
            refuse_drift(spec, ledger)

    def test_the_command_refuses_before_anything_starts(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write_sweep(tmp_path / "sweep.yaml")
        open_study(read_spec(path)).close()
        before = sorted(tmp_path.rglob("*"))
        assert main([str(path), "arms.slow.trial.regime.train.steps=41"]) == 2
        assert "arms changed" in capsys.readouterr().err
        assert [p for p in sorted(tmp_path.rglob("*")) if not p.name.startswith("ledger.db-")] == before
        assert Ledger.in_folder(tmp_path / "results").trials("race") == []


class TestCommandLine:
    def test_a_wrong_sweep_file_is_exit_code_2_with_a_line_for_each_error(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = write_sweep(tmp_path / "sweep.yaml", serch=1, replication={"top": 0})
        for verb in (["plan"], ["run"], []):
            assert main([*verb, str(path)]) == 2
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 2
            assert all(line.startswith(f"{path}:") for line in lines)

    @pytest.mark.parametrize("order", [["S", "--json", "O"], ["--json", "S", "O"], ["S", "O", "--json"]])
    def test_options_and_overrides_may_come_in_any_order(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], order: list[str]
    ) -> None:
        path = write_sweep(tmp_path / "sweep.yaml")
        words = [{"S": str(path), "O": "search.trials=7"}.get(word, word) for word in order]
        assert main(["plan", *words]) == 0
        assert json.loads(capsys.readouterr().out)["trials"] == 2 * (7 + 3)

    def test_the_plan_for_people_has_its_numbers(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["plan", str(write_sweep(tmp_path / "sweep.yaml"))]) == 0
        shown = capsys.readouterr().out
        assert "10 trials at most" in shown
        assert "supervised" in shown
