"""Every sweep file that ships is one that runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import search_spaces
from search_spaces.space import grid_points, sampled
from study.plan import audio_hours, make_plan, plan_as_dict
from study.spec import StudySpec, read_spec
from trainables.trial import stages_of

FOLDER = Path(search_spaces.__file__).parent
SWEEPS = sorted(FOLDER.glob("*.yaml"))
by_name = pytest.mark.parametrize("sweep", SWEEPS, ids=lambda path: path.stem)


def test_there_are_sweeps_to_check() -> None:
    assert FOLDER / "quickstart.yaml" in SWEEPS


@by_name
def test_it_is_valid(sweep: Path) -> None:
    spec = read_spec(sweep, absent_is_fine=True)
    assert spec.question.strip()
    assert spec.arms


@by_name
def test_it_survives_the_way_into_the_ledger_and_back(sweep: Path) -> None:
    spec = read_spec(sweep, absent_is_fine=True)
    assert StudySpec.model_validate(spec.model_dump(mode="json")) == spec


@by_name
def test_it_can_be_planned_and_no_stage_is_trained_more_often_than_asked_for(sweep: Path) -> None:
    spec = read_spec(sweep, absent_is_fine=True)
    plan = make_plan(spec)
    assert list(plan.arms) == list(spec.arms)
    for name, arm in plan.arms.items():
        space = spec.arms[name].space
        assert arm.search_trials == len(grid_points(space)) * (spec.search.trials if sampled(space) else 1)
    assert plan.trials == sum(arm.search_trials + arm.replications for arm in plan.arms.values())
    for count in plan.stages.values():
        assert 1 <= count.distinct <= count.requested


@by_name
def test_it_has_no_aliases_and_no_anchors(sweep: Path) -> None:
    events = list(yaml.parse(sweep.read_text(encoding="utf-8")))
    assert not [event for event in events if getattr(event, "anchor", None)]


def test_the_example_in_the_readme_is_valid(tmp_path: Path) -> None:
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    path = tmp_path / "sweep.yaml"
    path.write_text(example, encoding="utf-8")
    assert make_plan(read_spec(path)).trials > 0


class TestQuickstart:
    @pytest.fixture(scope="class")
    def spec(self) -> StudySpec:
        return read_spec(FOLDER / "quickstart.yaml")

    def test_it_compares_bl_just_with_pretraining_and_finetuning(self, spec: StudySpec) -> None:
        assert list(spec.arms) == ["pretrain_finetune", "bl_just"]

    def test_its_plan(self, spec: StudySpec) -> None:
        """4 search trials and 2 replications of each arm. Pre-training depends on the depth (2 choices) and the seed
        (2 fresh ones) only; everything else on a continuous learning rate."""
        plan = plan_as_dict(make_plan(spec))
        assert plan["arms"] == ["pretrain_finetune", "bl_just"]
        assert plan["trials"] == 12
        assert plan["trials_by_arm"] == {"pretrain_finetune": 6, "bl_just": 6}
        assert plan["stages"] == {
            "pretrain": {"requested": 6, "distinct": 4},
            "finetune": {"requested": 12, "distinct": 12},
            "joint": {"requested": 6, "distinct": 6},
        }
        pretrain, finetune, joint, final = (
            stage.steps for arm in spec.arms for stage in stages_of(spec.trial_config(arm))
        )
        assert plan["steps"] == 4 * pretrain + 6 * (finetune + joint + final)
        assert plan["steps_without_sharing"] == 6 * (pretrain + finetune + joint + final)

    def test_both_arms_process_the_same_audio_within_a_twentieth(self, spec: StudySpec) -> None:
        """The question says "on the same data and budget"."""
        hours = {arm: sum(map(audio_hours, stages_of(spec.trial_config(arm)))) for arm in spec.arms}
        assert hours["bl_just"] == pytest.approx(hours["pretrain_finetune"], rel=0.05)
