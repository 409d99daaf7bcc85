"""Parts of the report that a study has only when it asks for them, on the page and in the JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from study.report import write_report
from study.run import main
from study.similarity_report import similarity_file
from study.spec import StudySpec
from tests.study.builders import open_study, spec_of
from tests.study.paper_studies import claims_study, finish, languages_sweep, layers_study, task_agnostic, wav2vec_s
from tests.study.test_report import Page
from tests.study.test_similarity import ARMS, similarities
from trainables.stage import InferenceTime
from trainables.trial import stages_of

pytestmark = pytest.mark.usefixtures("no_pdf")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> StudySpec:
    """Two regimes of several stages, with two seeds; models were timed, and representations were compared."""
    storage = tmp_path_factory.mktemp("sections")
    wider = {"model": {"preset": "compact_cnn_gru", "gru_width": 192}}
    arms = {"theirs": task_agnostic(), "ours": (wav2vec_s() | wider, "theirs")}
    spec, ledger = claims_study(storage, arms, {"theirs": [0.5, 0.52], "ours": [0.4, 0.42]})
    for arm, seconds in (("theirs", (1.0, 2.0)), ("ours", (3.0, 4.0))):
        stage = stages_of(spec.trial_config(arm, seed=0))[-1]
        time = InferenceTime(
            split="dev", batch_seconds=250, device="H200", utterances=41, audio_seconds=100.0, seconds=seconds
        )
        ledger.add_inference_time(stage.fingerprint(), time)
    path = similarity_file(storage, spec.study)
    path.parent.mkdir(parents=True)
    similarities(path, ARMS)
    write_report(spec, ledger)
    return spec


@pytest.mark.parametrize(
    ("title", "figure", "words"),
    [
        ("Inference time", "inference", "H200"),
        ("Cost of the stages", "costs", "semi_supervised takes 1.00x the accelerator time of the pre-training"),
        ("Representations", "similarity", "CKA"),
        ("Claims of P-DATA and P-CS about wav2vec-S", "similarity", "the published 24.5 % is"),
    ],
)
def test_the_section_is_in_the_contents_with_its_figure(spec: StudySpec, title: str, figure: str, words: str) -> None:
    folder = spec.storage / "reports" / spec.study
    page = Page(folder / "report.html")
    assert page.words.count(title) >= 2, "in the contents, and as a heading"
    assert words in page.words
    for suffix in ("svg", "pdf", "png", "csv"):
        assert (folder / f"{figure}.{suffix}").stat().st_size > 100


def test_the_json_has_the_same(spec: StudySpec, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", spec.study, "--storage", str(spec.storage), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert {row["device"] for row in found["inference"]} == {"H200"}
    assert [arm["arm"] for arm in found["stage_costs"]["arms"]] == ["theirs", "ours"]
    assert found["similarity"]["study"] == "race"
    assert len(found["papers"]["claims"]) == 11


def test_a_table_of_a_paper_stands_beside_what_was_measured(tmp_path: Path) -> None:
    """BL-JUST is made better at 7 of 9 sizes."""

    def wer(arm: str, cnn: int, gru: int, seed: int) -> float:
        better = "two_stages" if (cnn, gru) in {(2, 4), (4, 6)} else "bilevel"
        return (0.4 if arm == better else 0.5) + 0.001 * seed

    spec = layers_study(tmp_path, wer)
    words = Page(write_report(spec, open_study(spec))).words
    assert "P-BLJ Table 2: Pre-training + fine-tuning (PT+FT) against BL-JUST, at nine sizes" in words
    assert "holds for 7 of 9 pairs, p = 0.09" in words
    assert "may be a character error rate" in words


def test_languages_have_a_radar(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, **languages_sweep())
    ledger = open_study(spec)
    for arm in spec.arms:
        for seed in range(2):
            finish(ledger, spec, arm, seed, seed=seed, test_wer=0.5 + 0.01 * seed)
    page = write_report(spec, ledger)
    assert "Languages" in Page(page).words
    assert (page.parent / "radar.csv").stat().st_size > 100
