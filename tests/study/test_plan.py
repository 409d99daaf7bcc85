"""What a study will run: trials, stages, sharing, steps and audio, against brute force and closed forms."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

import search_spaces
from search_spaces.space import Point, Space, grid_points
from study import plan
from study.disk import disk_estimate, stage_bytes
from study.plan import audio_hours, make_plan, plan_as_dict, stages_at_a_time
from study.spec import ResourcesSpec, StudySpec
from study.terminal import plan_table
from tests.study.builders import pretrain_finetune, spec_of, supervised
from trainables.stage import Stage
from trainables.trial import stages_of

QUICKSTART = Path(search_spaces.__file__).parent / "quickstart.yaml"
PRETRAIN, FINETUNE = "regime.pretrain", "regime.finetune"
CHOICES: dict[str, list[Any]] = {  # 243 combinations
    "batch_seconds": [16, 20, 24],
    "schedule.warmup_fraction": [0.02, 0.05, 0.1],
    "optimiser.weight_decay": [0.0, 0.001, 0.01],
    "loss.mask.time_probability": [0.0, 0.1, 0.2],
    "loss.mask.time_length": [4, 5, 6],
}
SECONDS = 24.0  # of audio in a batch, by default


def grid(*choices: Any, **more: Any) -> dict[str, Any]:
    return {"kind": "grid", "choices": list(choices), **more}


def pick(*choices: Any) -> dict[str, Any]:
    return {"kind": "categorical", "choices": list(choices)}


RATE = {"kind": "log_uniform", "low": 1e-4, "high": 1e-2}


def study(arms: dict[str, Any], *, trials: int = 1, top: int = 1, seeds: int = 0) -> StudySpec:
    return spec_of(Path("unused"), arms=arms, search={"trials": trials}, replication={"top": top, "seeds": seeds})


def one_arm(space: dict[str, Any], trial: dict[str, Any] | None = None, **counts: int) -> StudySpec:
    return study({"arm": {"trial": trial or pretrain_finetune(), "space": space}}, **counts)


def counts_of(spec: StudySpec) -> dict[str, tuple[int, int]]:
    """kind -> (requested, distinct)."""
    return {kind: (count.requested, count.distinct) for kind, count in make_plan(spec).stages.items()}


class Tally:
    """Stages of some trials, counted one by one."""

    def __init__(self) -> None:
        self.requested: dict[str, list[Stage]] = defaultdict(list)
        self.distinct: dict[str, dict[str, Stage]] = defaultdict(dict)

    def add(self, stages: Sequence[Stage]) -> None:
        for stage in stages:
            self.requested[stage.kind].append(stage)
            self.distinct[stage.kind][stage.fingerprint()] = stage


def brute_force(spec: StudySpec) -> Tally:
    tally = Tally()
    for arm in spec.arms:
        for point in grid_points(spec.arms[arm].space):
            tally.add(stages_of(spec.trial_config(arm, point)))
    return tally


def assert_plan_is(spec: StudySpec, tally: Tally) -> None:
    plan = make_plan(spec)
    assert list(plan.stages) == list(tally.requested)
    for kind, count in plan.stages.items():
        requested, distinct = tally.requested[kind], tally.distinct[kind].values()
        assert (count.requested, count.distinct) == (len(requested), len(distinct)), kind
        assert count.requested_steps == sum(stage.steps for stage in requested), kind
        assert count.distinct_steps == sum(stage.steps for stage in distinct), kind
        assert count.requested_audio_hours == pytest.approx(sum(map(audio_hours, requested))), kind
        assert count.distinct_audio_hours == pytest.approx(sum(map(audio_hours, distinct))), kind


class TestSharing:
    def test_pretraining_is_shared_by_all_that_finetunes_from_it(self) -> None:
        """4 lengths of pre-training x 3 of fine-tuning x 5 learning rates."""
        spec = one_arm(
            {
                f"{PRETRAIN}.steps": grid(25, 50, 100, 200),
                f"{FINETUNE}.steps": grid(10, 20, 40),
                f"{FINETUNE}.learning_rate": grid(1e-4, 2e-4, 5e-4, 1e-3, 2e-3),
            }
        )
        assert make_plan(spec).trials == 60
        assert counts_of(spec) == {"pretrain": (60, 4), "finetune": (60, 60)}

    def test_steps_count_each_length_that_is_searched(self) -> None:
        spec = one_arm(
            {f"{PRETRAIN}.steps": grid(25, 50, 100, 200), f"{FINETUNE}.learning_rate": grid(1e-4, 1e-3, 1e-2)}
        )
        pretraining = make_plan(spec).stages["pretrain"]
        assert pretraining.distinct_steps == 25 + 50 + 100 + 200
        assert pretraining.requested_steps == 3 * (25 + 50 + 100 + 200)
        assert pretraining.distinct_audio_hours == pytest.approx(375 * SECONDS / 3600)

    def test_every_seed_pretrains_for_itself(self) -> None:
        spec = one_arm({"seed": grid(0, 1, 2), f"{FINETUNE}.learning_rate": grid(1e-4, 1e-3)})
        assert counts_of(spec) == {"pretrain": (6, 3), "finetune": (6, 6)}

    def test_unless_pretraining_has_a_seed_of_its_own(self) -> None:
        trial = pretrain_finetune(pretrain={"seed": 7})
        spec = one_arm({"seed": grid(0, 1, 2), f"{FINETUNE}.learning_rate": grid(1e-4, 1e-3)}, trial)
        assert counts_of(spec) == {"pretrain": (6, 1), "finetune": (6, 6)}

    def test_a_stage_that_two_arms_ask_for_is_counted_once(self) -> None:
        arms = {
            "short": {"trial": pretrain_finetune(steps=10)},
            "long": {"trial": pretrain_finetune(steps=20)},
            "other": {"trial": pretrain_finetune(pretrain={"learning_rate": 1e-4}, steps=10)},
        }
        assert counts_of(study(arms)) == {"pretrain": (3, 2), "finetune": (3, 3)}

    def test_arms_share_the_part_of_their_grids_that_overlaps(self) -> None:
        arms = {
            "one": {"trial": pretrain_finetune(steps=10), "space": {f"{PRETRAIN}.steps": grid(1, 2, 3)}},
            "two": {"trial": pretrain_finetune(steps=20), "space": {f"{PRETRAIN}.steps": grid(3, 4)}},
        }
        assert counts_of(study(arms)) == {"pretrain": (5, 4), "finetune": (5, 5)}

    def test_what_does_not_change_a_result_does_not_split_a_stage(self) -> None:
        spec = one_arm({f"{PRETRAIN}.checkpoint_seconds": grid(5.0, 10.0)})
        assert counts_of(spec) == {"pretrain": (2, 1), "finetune": (2, 1)}

    def test_a_real_parameter_makes_as_many_stages_as_trials(self) -> None:
        spec = one_arm({f"{PRETRAIN}.learning_rate": RATE}, trials=7)
        assert counts_of(spec) == {"pretrain": (7, 7), "finetune": (7, 7)}
        spec = one_arm({f"{FINETUNE}.learning_rate": RATE}, trials=7)
        assert counts_of(spec) == {"pretrain": (7, 1), "finetune": (7, 7)}

    def test_choices_make_no_more_stages_than_there_are_trials(self) -> None:
        space = {"model.gru_layers": pick(1, 2, 3), f"{FINETUNE}.learning_rate": RATE}
        assert counts_of(one_arm(space, trials=2)) == {"pretrain": (2, 2), "finetune": (2, 2)}
        assert counts_of(one_arm(space, trials=9)) == {"pretrain": (9, 3), "finetune": (9, 9)}

    def test_too_many_combinations_to_list_are_bounded_by_the_trials(self) -> None:
        space = {f"{PRETRAIN}.{name}": {"kind": "int", "low": 1, "high": 1000} for name in ("steps", "report_every")}
        assert counts_of(one_arm(space, trials=5)) == {"pretrain": (5, 5), "finetune": (5, 5)}

    def test_a_parameter_decides_wherever_it_is_listed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """More combinations than are looked at: the one that is listed first, or last, is seen to matter."""
        monkeypatch.setattr(plan, "MAX_ENUMERATED", 100)
        rest = {f"{FINETUNE}.{name}": pick(*choices) for name, choices in CHOICES.items()}
        rate = {f"{PRETRAIN}.learning_rate": RATE}
        for space in (rate | rest, rest | rate):
            assert counts_of(one_arm(space, trials=4)) == {"pretrain": (4, 4), "finetune": (4, 4)}

    def test_each_value_of_a_grid_beside_a_large_space_is_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plan, "MAX_ENUMERATED", 100)
        rest = {f"{FINETUNE}.{name}": pick(*choices) for name, choices in CHOICES.items()}
        spec = one_arm({f"{PRETRAIN}.steps": grid(25, 50, 100), **rest, f"{FINETUNE}.learning_rate": RATE}, trials=2)
        assert counts_of(spec) == {"pretrain": (6, 3), "finetune": (6, 6)}
        assert make_plan(spec).stages["pretrain"].distinct_steps == 25 + 50 + 100

    def test_a_grid_of_more_combinations_than_are_looked_at(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plan, "MAX_ENUMERATED", 100)
        seeds, rates = grid(*range(15)), grid(*(1e-4 * n for n in range(1, 16)))
        spec = one_arm({f"{FINETUNE}.seed": seeds, f"{FINETUNE}.learning_rate": rates})
        assert counts_of(spec) == {"pretrain": (225, 1), "finetune": (225, 225)}

    def test_every_combination_of_the_grid_gets_the_samples(self) -> None:
        spec = one_arm({"seed": grid(0, 1, 2), f"{FINETUNE}.learning_rate": RATE}, trials=4)
        assert make_plan(spec).trials == 12
        assert counts_of(spec) == {"pretrain": (12, 3), "finetune": (12, 12)}

    def test_a_pure_grid_runs_once_whatever_the_number_of_samples(self) -> None:
        assert make_plan(one_arm({"seed": grid(0, 1, 2)}, trials=4)).trials == 3


class TestConditions:
    def test_an_inactive_parameter_makes_no_stage(self) -> None:
        deep = {f"{PRETRAIN}.learning_rate": grid(1e-3, 2e-3, 3e-3, when={"model.gru_layers": [2]})}
        spec = one_arm({"model.gru_layers": grid(1, 2), **deep})
        assert make_plan(spec).trials == 4
        assert counts_of(spec) == {"pretrain": (4, 4), "finetune": (4, 4)}

    def test_a_condition_on_what_does_not_decide_the_stage_itself(self) -> None:
        """Pre-training does not depend on the learning rate of fine-tuning, but on a parameter that does."""
        space = {
            f"{FINETUNE}.learning_rate": grid(1e-3, 2e-3),
            f"{PRETRAIN}.steps": grid(25, 50, 75, when={f"{FINETUNE}.learning_rate": [2e-3]}),
        }
        spec = one_arm(space)  # trials: (1e-3, default 100 steps), (2e-3, 25), (2e-3, 50), (2e-3, 75)
        assert counts_of(spec) == {"pretrain": (4, 4), "finetune": (4, 4)}


class TestReplications:
    def test_each_fresh_seed_trains_stages_of_its_own(self) -> None:
        spec = one_arm({f"{FINETUNE}.learning_rate": RATE}, trials=5, top=1, seeds=2)
        assert make_plan(spec).arms["arm"].replications == 2
        assert counts_of(spec) == {"pretrain": (7, 3), "finetune": (7, 7)}

    def test_unless_pretraining_has_a_seed_of_its_own(self) -> None:
        trial = pretrain_finetune(pretrain={"seed": 7})
        spec = one_arm({f"{FINETUNE}.learning_rate": RATE}, trial, trials=5, top=1, seeds=2)
        assert counts_of(spec) == {"pretrain": (7, 1), "finetune": (7, 7)}

    def test_what_the_search_has_trained_is_not_trained_again(self) -> None:
        """3 of 10 learning rates are sampled; their replications start from the same pre-training."""
        space = {f"{PRETRAIN}.learning_rate": pick(*(n * 1e-4 for n in range(1, 11)))}
        spec = one_arm(space, pretrain_finetune(pretrain={"seed": 7}), trials=3, top=1, seeds=2)
        assert counts_of(spec) == {"pretrain": (5, 3), "finetune": (5, 5)}

    def test_the_best_configurations_share_the_pretraining_of_a_fresh_seed(self) -> None:
        """3 configurations x 2 fresh seeds ask for pre-training 6 times; it differs between the 2 seeds only."""
        spec = one_arm({f"{FINETUNE}.learning_rate": RATE}, trials=5, top=3, seeds=2)
        assert counts_of(spec) == {"pretrain": (11, 1 + 2), "finetune": (11, 11)}

    def test_there_are_no_more_of_them_than_configurations(self) -> None:
        assert make_plan(one_arm({"seed": grid(0, 1)}, top=5, seeds=3)).arms["arm"].replications == 2 * 3

    def test_arms_whose_fresh_seeds_pretrain_alike_share_it(self) -> None:
        arms = {
            "low": {"trial": pretrain_finetune(learning_rate=1e-4)},
            "high": {"trial": pretrain_finetune(learning_rate=1e-3)},
        }
        assert counts_of(study(arms, seeds=2)) == {"pretrain": (6, 3), "finetune": (6, 6)}


PATHS: dict[str, list[Any]] = {
    f"{PRETRAIN}.steps": [25, 50, 100],
    f"{FINETUNE}.steps": [10, 20],
    f"{PRETRAIN}.learning_rate": [1e-3, 2e-3, 4e-3],
    f"{FINETUNE}.learning_rate": [1e-3, 2e-3],
    f"{PRETRAIN}.seed": [0, 5],
    f"{FINETUNE}.batch_seconds": [12.0, 24.0],
    "model.gru_layers": [1, 2],
    "model.dropout": [0.0, 0.1],
    "seed": [0, 1],
    f"{PRETRAIN}.checkpoint_seconds": [1.0, 2.0],
}


@st.composite
def grids(draw: st.DrawFn) -> dict[str, Any]:
    """A space of up to four grids, some conditional on earlier ones."""
    space: dict[str, Any] = {}
    for path in draw(st.lists(st.sampled_from(list(PATHS)), max_size=4, unique=True)):
        choices = draw(st.lists(st.sampled_from(PATHS[path]), min_size=1, unique=True))
        when = {}
        if space and draw(st.booleans()):
            other = draw(st.sampled_from(list(space)))
            when[other] = draw(st.lists(st.sampled_from(PATHS[other]), min_size=1, unique=True))
        space[path] = grid(*choices, when=when)
    return space


class TestAgainstBruteForce:
    @settings(max_examples=80, deadline=None)
    @given(grids())
    @example({"seed": grid(0, 1), f"{PRETRAIN}.seed": grid(0)})  # alone, the second changes nothing
    def test_one_arm_of_grids(self, space: dict[str, Any]) -> None:
        spec = one_arm(space)
        assert_plan_is(spec, brute_force(spec))

    @settings(max_examples=40, deadline=None)
    @given(grids(), grids())
    def test_two_arms_of_grids(self, one: dict[str, Any], two: dict[str, Any]) -> None:
        arms = {
            "one": {"trial": pretrain_finetune(), "space": one},
            "two": {"trial": pretrain_finetune(steps=20), "space": two},
        }
        spec = study(arms)
        assert_plan_is(spec, brute_force(spec))

    @pytest.mark.parametrize("top", [1, 2, 3])
    def test_no_run_of_a_study_trains_more_and_one_trains_as_much(self, top: int) -> None:
        """Studies played through with random draws and random winners: `distinct` is their maximum."""
        space = {
            "model.gru_layers": grid(1, 2),
            f"{PRETRAIN}.learning_rate": pick(1e-3, 2e-3),
            f"{FINETUNE}.learning_rate": RATE,
        }
        spec = one_arm(space, trials=4, top=top, seeds=2)
        planned = counts_of(spec)
        generator = random.Random(0)
        played = [_play(spec, generator) for _ in range(60)]
        for kind, (requested, distinct) in planned.items():
            assert {len(tally.requested[kind]) for tally in played} == {requested}
            assert max(len(tally.distinct[kind]) for tally in played) == distinct


def _play(spec: StudySpec, generator: random.Random) -> Tally:
    tally = Tally()
    for arm, settings_ in spec.arms.items():
        trials = [
            {**point, **dict(_draw(settings_.space, generator))}
            for point in grid_points(settings_.space)
            for _ in range(spec.search.trials)
        ]
        for trial in trials:
            tally.add(stages_of(spec.trial_config(arm, trial)))
        for trial in generator.sample(trials, spec.replication.top):
            for seed in range(1, 1 + spec.replication.seeds):
                tally.add(stages_of(spec.trial_config(arm, trial, seed)))
    return tally


def _draw(space: Space, generator: random.Random) -> Iterator[tuple[str, Any]]:
    for path, distribution in space.items():
        if distribution.kind == "categorical":
            yield path, generator.choice(distribution.choices)
        elif distribution.kind == "log_uniform":
            yield path, generator.uniform(distribution.low, distribution.high)


class TestAudio:
    def stages(self, trial: dict[str, Any], point: Point | None = None) -> Sequence[Stage]:
        return stages_of(study({"arm": {"trial": trial}}).trial_config("arm", point))

    @pytest.mark.parametrize(
        ("steps", "exploration", "joint"),
        [(10, 2, 3), (5, 2, 3), (7, 2, 3), (1, 2, 3), (2, 2, 3), (100, 1, 4), (9, 0, 3), (3, 10, 1), (11, 10, 1)],
    )
    def test_of_bilevel_training_is_one_stream_in_exploration_and_two_in_joint_steps(
        self, steps: int, exploration: int, joint: int
    ) -> None:
        regime = {
            "kind": "bl_just",
            "joint": {"steps": steps, "exploration_steps": exploration, "joint_steps": joint, "batch_seconds": 30},
            "finetune": None,
        }
        (stage,) = self.stages({"regime": regime})
        cycles, rest = divmod(steps, exploration + joint)
        explored = cycles * exploration + min(rest, exploration)
        batches = explored + 2 * (steps - explored)
        assert audio_hours(stage) == pytest.approx(batches * 30 / 3600)

    def test_of_other_stages_is_steps_times_batches(self) -> None:
        for stage in self.stages(pretrain_finetune()):
            assert audio_hours(stage) == pytest.approx(stage.steps * SECONDS / 3600)

    def test_json_sums_it_with_and_without_sharing(self) -> None:
        spec = one_arm({f"{FINETUNE}.learning_rate": grid(1e-4, 1e-3, 1e-2)})
        plan = plan_as_dict(make_plan(spec))
        assert plan["steps"] == 100 + 3 * 40
        assert plan["steps_without_sharing"] == 3 * 100 + 3 * 40
        assert plan["audio_hours"] == pytest.approx(220 * SECONDS / 3600, abs=1e-3)
        assert plan["audio_hours_without_sharing"] == pytest.approx(420 * SECONDS / 3600, abs=1e-3)


class TestArms:
    def test_stages_are_named_in_the_order_in_which_they_run(self) -> None:
        arms = {"one": {"trial": pretrain_finetune()}, "two": {"trial": supervised()}}
        plan = make_plan(study(arms))
        assert [arm.stages for arm in plan.arms.values()] == [("pretrain", "finetune"), ("supervised",)]


class TestDisk:
    """The bytes of a stage are tested with `study.disk`."""

    def test_is_that_of_every_distinct_stage_and_of_the_groups_at_a_time(self) -> None:
        space = {"model.gru_layers": grid(1, 2, 3), f"{FINETUNE}.learning_rate": grid(1e-4, 1e-3)}
        spec = one_arm(space).with_(resources={"max_groups": 2})
        distinct = [stage for stages in brute_force(spec).distinct.values() for stage in stages.values()]
        assert make_plan(spec).disk == disk_estimate(distinct, concurrent=2)
        assert plan_as_dict(make_plan(spec))["disk_bytes"] == sum(map(stage_bytes, distinct))

    def test_where_the_groups_are_not_limited_as_many_train_as_this_machine_has_cpus_for(self) -> None:
        resources = ResourcesSpec(cpus_per_worker=1, stages={"pretrain": {"workers": 10_000}})
        assert stages_at_a_time(resources, "finetune") == os.cpu_count()
        assert stages_at_a_time(resources, "pretrain") == 1
        assert stages_at_a_time(ResourcesSpec(max_groups=3), "finetune") == 3

    def test_and_as_its_gpus_hold_where_it_has_any(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: 64)
        quarters = ResourcesSpec(gpus_per_worker=0.25, stages={"pretrain": {"workers": 2, "gpus_per_worker": 1}})
        for gpus, (small, large) in {"0": (4, 1), "0,1,2,3": (16, 2), "": (64, 32)}.items():
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
            assert stages_at_a_time(quarters, "finetune") == small
            assert stages_at_a_time(quarters, "pretrain") == large

    def test_of_a_size_that_is_searched_is_that_of_the_largest(self) -> None:
        widths = {"model.gru_width": {"kind": "int", "low": 16, "high": 64}, f"{FINETUNE}.learning_rate": RATE}
        largest = {"model.gru_width": 64, f"{FINETUNE}.learning_rate": 1e-3}
        spec = one_arm(widths, trials=2)
        stages = stages_of(spec.trial_config("arm", largest))
        assert make_plan(spec).disk.kept_bytes == pytest.approx(2 * sum(map(stage_bytes, stages)), rel=0.01)

    def test_beyond_the_quota_is_said(self) -> None:
        spec = one_arm({})
        kept = make_plan(spec).disk.kept_bytes
        assert "on disk when done" in shown(spec)
        assert "quota" not in shown(spec.with_(quota=kept))
        assert "more than the quota" in shown(spec.with_(quota=kept - 1))


def shown(spec: StudySpec) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(plan_table(make_plan(spec)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class TestWhatIsPlanned:
    def test_examples_of_a_searched_stage_are_the_ends_of_intervals_and_all_choices(self) -> None:
        space = {"model.gru_layers": pick(1, 2, 3), f"{FINETUNE}.learning_rate": RATE}
        plan = make_plan(one_arm(space, trials=2, seeds=1))
        finetunings = [planned for planned in plan.distinct if planned.longest.kind == "finetune"]
        assert [(planned.count, planned.replication) for planned in finetunings] == [(2, False), (1, True)]
        for planned in finetunings:
            assert len(planned.examples) == 3 * 2
            assert {s.phases[0].learning_rates["backbone"] for s in planned.examples} == {1e-4, 1e-2}

    def test_stages_that_are_all_trained_stand_for_themselves(self) -> None:
        plan = make_plan(one_arm({"model.gru_layers": pick(1, 2), f"{FINETUNE}.learning_rate": RATE}, trials=5))
        pretrainings = [planned for planned in plan.distinct if planned.longest.kind == "pretrain"]
        assert [(planned.count, planned.examples) for planned in pretrainings] == [
            (1, (planned.longest,)) for planned in pretrainings
        ]
        assert len(pretrainings) == 2

    @settings(max_examples=20, deadline=None)
    @given(grids())
    def test_what_is_planned_adds_up_to_the_counts(self, space: dict[str, Any]) -> None:
        plan = make_plan(one_arm(space, seeds=1))
        for kind, count in plan.stages.items():
            assert sum(p.count for p in plan.requested if p.longest.kind == kind) == count.requested
            assert sum(p.count for p in plan.distinct if p.longest.kind == kind) == count.distinct


PROGRAM = """
import sys
from study.run import main
code = main(["plan", sys.argv[1], "--json"])
heavy = [name for name in ("torch", "ray", "mlflow", "optuna", "torchaudio") if name in sys.modules]
print(code, heavy, file=sys.stderr)
"""


def test_study_plan_prints_json_and_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(QUICKSTART)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr.strip() == "0 []"
    plan = json.loads(done.stdout)
    assert plan["arms"] == ["pretrain_finetune", "bl_just"]
    assert plan["trials"] == 12
    assert set(plan["stages"]) == {"pretrain", "finetune", "joint"}
    for count in plan["stages"].values():
        assert set(count) == {"requested", "distinct"}
        assert all(isinstance(number, int) for number in count.values())
