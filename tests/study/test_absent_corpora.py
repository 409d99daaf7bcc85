"""Sweeps over corpora that are not on this machine: they can be planned, and not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from study.plan import make_plan, plan_as_dict
from study.spec import read_spec
from tests.study.builders import pretrain_finetune, sweep
from tests.study.conftest import Call
from trainables.settings_file import SettingsError

SWEEP = """\
study: absent
question: Which budget is enough?
storage: {storage}
trial:
  corpus: {{kind: folder, root: {root}/one, language: en}}
  regime: {{kind: pretrain_finetune, pretrain: {{steps: 40}}, finetune: {{steps: 10}}}}
arms:
  small:
    trial: {{corpus: {{labelled_minutes: 10}}}}
  large:
    trial: {{corpus: {{labelled_minutes: 60}}}}
  other:
    trial:
      corpus: {{root: {root}/other}}
      regime:
        finetune: {{steps: 20}}
search: {{trials: 1}}
replication: {{seeds: 0}}
convergence: {{target: 0.4}}
"""


def write(folder: Path) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(SWEEP.format(storage=folder / "results", root=folder), encoding="utf-8")
    return path


def reason(folder: Path, name: str) -> str:
    return f"{folder / name}/manifest.tsv: no such file; a corpus folder needs a manifest.tsv"


def test_a_plan_is_printed_and_tells_each_absent_corpus_once(tmp_path: Path, call: Call) -> None:
    code, out, err = call("plan", write(tmp_path))
    unwrapped = "".join(line.rstrip() for line in out.splitlines())
    assert (code, err) == (0, "")
    assert "3 trials at most" in out
    assert out.count("not on this machine") == 2
    for name in ("one", "other"):
        assert unwrapped.replace(" ", "").count(f"{tmp_path}/{name}/manifest.tsv") == 1


def test_as_json_the_plan_lists_each_absent_corpus_once(tmp_path: Path, call: Call) -> None:
    code, out, err = call("plan", write(tmp_path), "--json")
    assert (code, err) == (0, "")
    plan = json.loads(out)
    assert plan["absent_corpora"] == [reason(tmp_path, "one"), reason(tmp_path, "other")]
    assert plan["trials"] == 3


def test_budgets_of_an_absent_corpus_share_their_pretraining_in_the_plan(tmp_path: Path) -> None:
    plan = plan_as_dict(make_plan(read_spec(write(tmp_path), absent_is_fine=True)))
    assert plan["stages"] == {
        "pretrain": {"requested": 3, "distinct": 2},
        "finetune": {"requested": 3, "distinct": 3},
    }
    assert plan["steps"] == 2 * 40 + 10 + 10 + 20


def test_a_corpus_that_is_there_is_not_listed(tmp_path: Path, small_corpus: Path, call: Call) -> None:
    code, out, _ = call("plan", write(tmp_path), f"trial.corpus.root={small_corpus}", "--json")
    assert (code, json.loads(out)["absent_corpora"]) == (0, [reason(tmp_path, "other")])


def test_planning_makes_no_folder(tmp_path: Path, call: Call) -> None:
    path = write(tmp_path)
    call("plan", path)
    assert [*tmp_path.iterdir()] == [path]


def test_running_is_refused_with_the_place_in_every_arm_and_starts_nothing(tmp_path: Path, call: Call) -> None:
    path = write(tmp_path)
    code, out, err = call("run", path)
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"{path}:9:13: arms.small.trial.corpus: {reason(tmp_path, 'one')}",
        f"{path}:11:13: arms.large.trial.corpus: {reason(tmp_path, 'one')}",
        f"{path}:14:7: arms.other.trial.corpus: {reason(tmp_path, 'other')}",
    ]
    assert [*tmp_path.iterdir()] == [path]


def test_other_errors_of_the_sweep_file_are_errors_of_a_plan_too(tmp_path: Path, call: Call) -> None:
    path = write(tmp_path)
    code, out, err = call("plan", path, "arms.small.trial.corpus.labelled_minutes=0")
    assert (code, out) == (2, "")
    assert "labelled_minutes" in err


def test_a_broken_corpus_is_an_error_of_a_plan_too(tmp_path: Path, call: Call) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.tsv").write_text("id\tpath\n", encoding="utf-8")
    code, out, err = call("plan", write(tmp_path))
    assert (code, out) == (2, "")
    assert err.startswith(f"{tmp_path}/sweep.yaml:14:7: arms.other.trial.corpus: {tmp_path}/other/manifest.tsv:1: ")


def test_epochs_of_an_absent_corpus_are_an_error_of_the_plan_that_says_what_to_give(tmp_path: Path, call: Call) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text().replace("finetune: {steps: 20}", "finetune: {steps: null, epochs: 3}"))
    code, out, err = call("plan", path)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"{path}:15:7: arms.other.trial.regime: epochs: 3 of the labelled speech are not known")
    assert line.endswith("; give steps")
    assert call("plan", path, "arms.other.trial.corpus.labelled_minutes=30")[0] == 0


def space_over_roots(folder: Path) -> Path:
    given: dict[str, Any] = {
        "trial": {"corpus": {"kind": "folder", "root": str(folder / "one")}, **pretrain_finetune()},
        "space": {"corpus.root": {"kind": "grid", "choices": [str(folder / "one"), str(folder / "other")]}},
    }
    path = folder / "sweep.yaml"
    path.write_text(json.dumps(sweep(folder / "results", arms={"arm": given})), encoding="utf-8")
    return path


def test_absent_corpora_that_a_space_chooses_are_listed_too(tmp_path: Path) -> None:
    plan = make_plan(read_spec(space_over_roots(tmp_path), absent_is_fine=True))
    assert plan.absent == [reason(tmp_path, "one"), reason(tmp_path, "other")]


def test_absent_corpora_that_a_space_chooses_are_refused_by_a_run(tmp_path: Path, small_corpus: Path) -> None:
    path = space_over_roots(tmp_path)
    path.write_text(path.read_text().replace(json.dumps(str(tmp_path / "one")), json.dumps(str(small_corpus))))
    assert read_spec(path, absent_is_fine=True)
    with pytest.raises(SettingsError) as caught:
        read_spec(path)
    (error,) = caught.value.errors
    assert f"arms.arm.space.corpus.root: '{tmp_path}/other' is not possible: {reason(tmp_path, 'other')}" in error
