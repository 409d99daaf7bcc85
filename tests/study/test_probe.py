"""Hours and money before a study starts: arithmetic against the loop step by step, and probes that really train."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from study.estimate import (
    Estimate,
    StageProbe,
    cost_shape,
    estimate,
    evaluations,
    frozen_updates,
    stage_seconds,
    updates,
)
from study.plan import make_plan
from study.probe import Effort, measure
from study.spec import StudySpec
from tests.conftest import SMALL_MODEL, bl_just, pretrain_finetune, small_trial
from tests.study.builders import spec_of, write_sweep
from tests.study.conftest import Call
from trainables.loop import run_stage
from trainables.settings_file import SettingsError
from trainables.stage import Report, Stage
from trainables.store import StageStore
from trainables.trial import TrialConfig, stages_of

QUICK = Effort(least_seconds=0.0, most_seconds=5.0, least_updates=1)
UNIT = StageProbe(startup_seconds=2.0, step_seconds=(1.0,), frozen_step_seconds=(1.0,))


def stage(**changes: Any) -> Stage:
    regime = {"kind": "supervised", "train": {"steps": 40, "evaluate_every": 10}}
    return stages_of(TrialConfig.model_validate({"regime": regime}))[0].with_(**changes)


def silent(message: str) -> None:
    """Nobody listens."""


def real_study(corpus: Path, arms: dict[str, Any], **changes: Any) -> StudySpec:
    """One trial of each arm, on the small corpus."""
    changes = {"search": {"trials": 1, "metric": "dev_cer"}, "replication": {"seeds": 0}, **changes}
    return spec_of(
        corpus / "no-results", trial={"corpus": {"kind": "folder", "root": str(corpus)}}, arms=arms, **changes
    )


class TestOneStage:
    @settings(max_examples=200, deadline=None)
    @given(
        steps=st.integers(1, 60),
        lengths=st.lists(st.integers(1, 7), min_size=1, max_size=3),
        frozen=st.lists(st.integers(0, 70), min_size=3, max_size=3),
        every=st.one_of(st.none(), st.integers(1, 25)),
        test=st.booleans(),
    )
    def test_it_is_what_the_loop_adds_up_update_by_update(
        self, steps: int, lengths: list[int], frozen: list[int], every: int | None, test: bool
    ) -> None:
        (phase,) = stage().phases
        phases = tuple(
            phase.with_(steps=length, frozen_backbone_steps=f) for length, f in zip(lengths, frozen, strict=False)
        )
        one = stage(steps=steps, phases=phases, evaluate_every=every, evaluate_test=test, checkpoint_seconds=1e6)
        probe = StageProbe(100.0, (1.0, 3.0, 5.0)[: len(phases)], (0.5, 2.0, 4.0)[: len(phases)], 7.0, 11.0, 13.0)
        seconds = probe.startup_seconds
        for step in range(steps):
            index = one.phase_at(step)
            is_frozen = step < phases[index].frozen_backbone_steps
            seconds += (probe.frozen_step_seconds if is_frozen else probe.step_seconds)[index]
            last = step + 1 == steps
            if every and (last or (step + 1) % every == 0):
                seconds += probe.evaluation_seconds
            if last and test:
                seconds += probe.test_seconds
        assert stage_seconds(one, probe) == pytest.approx(seconds)

    def test_a_checkpoint_is_written_after_each_interval(self) -> None:
        one = stage(steps=100, evaluate_every=None, evaluate_test=False, checkpoint_seconds=30.0)
        probe = StageProbe(5.0, (1.0,), (1.0,), checkpoint_seconds=2.0)
        assert stage_seconds(one, probe) == 5 + 100 + 3 * 2

    def test_a_stage_that_decodes_takes_its_start_and_its_decoding(self, small_corpus: Path) -> None:
        trial = small_trial(small_corpus, pretrain_finetune(), language_model={})
        *_, decoding = stages_of(TrialConfig.model_validate(trial))
        assert stage_seconds(decoding, StageProbe(2.0, (), (), test_seconds=9.0)) == 11.0

    def test_evaluations_and_phases_are_counted_as_a_real_stage_has_them(
        self, small_corpus: Path, tmp_path: Path
    ) -> None:
        torch.set_num_threads(1)
        regime = bl_just(7, exploration_steps=2, joint_steps=3, evaluate_every=3)
        joint, _ = stages_of(TrialConfig.model_validate(small_trial(small_corpus, regime)))
        reports: list[Report] = []
        run_stage(joint, StageStore(tmp_path), reports.append)
        assert evaluations(joint) == sum("dev_wer" in report.metrics for report in reports) == 3
        labelled = sum("ctc" in report.metrics for report in reports)
        assert (updates(joint, 0, joint.steps), updates(joint, 1, joint.steps)) == (7 - labelled, labelled) == (4, 3)

    def test_frozen_updates_are_the_first_ones(self) -> None:
        (phase,) = stage().phases
        assert frozen_updates(stage(phases=(phase.with_(frozen_backbone_steps=15),)), 0) == 15
        assert frozen_updates(stage(phases=(phase.with_(frozen_backbone_steps=1000),)), 0) == 40


class TestShapes:
    def shape(self, **train: Any) -> str:
        trial = {"regime": {"kind": "supervised", "train": {"steps": 40, "batch_seconds": 6, **train}}}
        return cost_shape(stages_of(TrialConfig.model_validate(trial))[0])

    @pytest.mark.parametrize(
        "train", [{"learning_rate": 0.1}, {"seed": 7}, {"steps": 99}, {"evaluate_every": 3}, {"schedule": "constant"}]
    )
    def test_rates_seeds_lengths_and_schedules_share_a_shape(self, train: dict[str, Any]) -> None:
        assert self.shape(**train) == self.shape()

    @pytest.mark.parametrize(
        "train",
        [
            {"batch_seconds": 12},
            {"accumulation": 2},
            {"precision": "bf16"},
            {"augment_speed": False},
            {"frozen_backbone_steps": 3},
            {"loss": {"extractor_gradient": 0}},
        ],
    )
    def test_what_changes_a_step_or_an_evaluation_is_another_shape(self, train: dict[str, Any]) -> None:
        assert self.shape(**train) != self.shape()

    def test_a_model_of_another_size_is_another_shape(self) -> None:
        assert cost_shape(stage(model={**SMALL_MODEL, "gru_width": 13})) != cost_shape(stage(model=SMALL_MODEL))

    def test_the_amount_of_data_is_another_shape_only_where_it_leaves_few_batches(self) -> None:
        def shape(minutes: float) -> str:
            trial = {
                "corpus": {"kind": "prompts", "labelled_minutes": minutes},
                "regime": {"kind": "supervised", "train": {"steps": 40, "batch_seconds": 12}},
            }
            return cost_shape(stages_of(TrialConfig.model_validate(trial))[0])

        assert shape(5) == shape(10)
        assert shape(1) != shape(10)


def found_for(spec: StudySpec, one: StageProbe = UNIT) -> Estimate:
    """The estimate when every stage has these parts."""
    plan = make_plan(spec)
    return estimate(spec, plan, {cost_shape(s): one for planned in plan.requested for s in planned.examples})


def shared_pretraining(**changes: Any) -> StudySpec:
    """Pre-training of 100 updates for six fine-tunings of 40."""
    regime = {
        "kind": "pretrain_finetune",
        "pretrain": {"steps": 100, "seed": 7},
        "finetune": {"steps": 40},
    }
    rates = {"kind": "grid", "choices": [n * 1e-4 for n in range(1, 7)]}
    arms = {"arm": {"trial": {"regime": regime}, "space": {"regime.finetune.learning_rate": rates}}}
    base = {"arms": arms, "replication": {"seeds": 0}, "resources": {"max_groups": 2}}
    return spec_of(Path("unused"), **{**base, **changes})


class TestTheStudy:
    def test_a_shared_stage_is_paid_once_and_all_wait_for_it(self) -> None:
        found = found_for(shared_pretraining())
        pretrain, finetune = 2 + 100, 2 + 40
        assert found.shared.accelerator_hours * 3600 == pytest.approx(pretrain + 6 * finetune)
        assert found.unshared.accelerator_hours * 3600 == pytest.approx(6 * (pretrain + finetune))
        assert found.shared.elapsed_hours * 3600 == pytest.approx(pretrain + 6 * finetune / 2)
        assert found.unshared.elapsed_hours * 3600 == pytest.approx(6 * (pretrain + finetune) / 2)

    def test_kinds_add_up_to_the_total(self) -> None:
        found = found_for(shared_pretraining())
        assert list(found.stages) == ["pretrain", "finetune"]
        for which in ("shared", "unshared"):
            parts = [getattr(kind, which).accelerator_hours for kind in found.stages.values()]
            assert math.fsum(parts) == pytest.approx(getattr(found, which).accelerator_hours)
        assert (found.stages["pretrain"].trained, found.stages["pretrain"].requested) == (1, 6)
        assert found.stages["finetune"].mean_seconds == 42

    def test_replications_come_after_the_search(self) -> None:
        """Two fresh seeds of one fine-tuning, beside each other; their pre-training is there."""
        found = found_for(shared_pretraining(replication={"top": 1, "seeds": 2}))
        assert found.shared.elapsed_hours * 3600 == pytest.approx(102 + 6 * 42 / 2 + 42)

    def test_no_wave_is_shorter_than_its_longest_stage(self) -> None:
        found = found_for(shared_pretraining(resources={"max_groups": 100}))
        assert found.shared.elapsed_hours * 3600 == pytest.approx(102 + 42)

    def test_workers_count_each_and_parts_of_a_gpu_as_parts(self) -> None:
        alone = found_for(shared_pretraining()).shared.accelerator_hours
        stages = {"pretrain": {"workers": 4}}
        several = found_for(shared_pretraining(resources={"stages": stages})).shared.accelerator_hours
        assert several * 3600 == pytest.approx(4 * 102 + 6 * 42)
        part = found_for(shared_pretraining(resources={"gpus_per_worker": 0.25})).shared.accelerator_hours
        assert part == pytest.approx(alone / 4)

    def test_cost_is_the_share_of_a_node_that_a_group_holds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        prices = {"default": 3.0, "large": 9.0}
        found = found_for(shared_pretraining(resources={"node_prices": prices}))
        cpus = os.cpu_count()
        assert cpus
        assert found.shared.cost == pytest.approx((102 + 6 * 42) / 3600 * 3.0 / cpus)
        assert found_for(shared_pretraining()).shared.cost is None

    def test_of_node_types_without_a_default_the_dearest_counts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
        found = found_for(
            shared_pretraining(resources={"gpus_per_worker": 2, "node_prices": {"small": 3.0, "large": 9.0}})
        )
        assert found.shared.cost == pytest.approx((102 + 6 * 42) / 3600 * 9.0 / 2)

    def test_a_size_that_is_searched_counts_between_its_ends(self) -> None:
        widths = {"kind": "int", "low": 64, "high": 96, "step": 32}
        spec = spec_of(
            Path("unused"),
            arms={
                "arm": {
                    "trial": {"regime": {"kind": "supervised", "train": {"steps": 10}}},
                    "space": {
                        "model.gru_width": widths,
                        "regime.train.learning_rate": {"kind": "log_uniform", "low": 1e-4, "high": 1e-2},
                    },
                }
            },
            search={"trials": 3, "metric": "dev_cer"},
            replication={"seeds": 0},
        )
        plan = make_plan(spec)
        examples = [s for planned in plan.distinct for s in planned.examples]
        assert {s.model.gru_width for s in examples} == {64, 96}  # type: ignore[union-attr]
        probes = {
            cost_shape(s): StageProbe(0.0, (s.model.gru_width / 32,), (0.0,))  # type: ignore[union-attr]
            for s in examples
        }
        found = estimate(spec, plan, probes)
        assert found.least_accelerator_hours * 3600 == pytest.approx(3 * 10 * 2)
        assert found.shared.accelerator_hours * 3600 == pytest.approx(3 * 10 * 2.5)
        assert found.most_accelerator_hours * 3600 == pytest.approx(3 * 10 * 3)
        assert found.stages["supervised"].shapes == 2


class TestRefusals:
    def test_a_probe_needs_the_corpora(self, tmp_path: Path) -> None:
        arms = {"arm": {"trial": {"regime": pretrain_finetune()}}}
        spec = real_study(tmp_path / "absent", arms)
        with pytest.raises(SettingsError, match="absent"):
            measure(spec, make_plan(spec), silent)

    @pytest.mark.parametrize("resources", [{"workers": 1000}, {"cpus_per_worker": 1000}, {"gpus_per_worker": 1}])
    def test_a_probe_needs_the_machines_of_a_worker_group(
        self, small_corpus: Path, resources: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        arms = {"arm": {"trial": {"model": SMALL_MODEL, "regime": pretrain_finetune()}}}
        spec = real_study(small_corpus, arms, resources=resources)
        with pytest.raises(SettingsError, match="a probe runs on this machine"):
            measure(spec, make_plan(spec), silent)


PSEUDO_LABELS = {
    "kind": "wav2vec_s",
    "pretrain": {"steps": 4, "batch_seconds": 6},
    "semi_supervised": {
        "steps": 4,
        "batch_seconds": 6,
        "evaluate_every": 2,
        "unlabelled": "pseudo_labels",
        "teacher_warmup_steps": 2,
    },
    "finetune": {"steps": 4, "batch_seconds": 6, "evaluate_every": 2},
}


@pytest.mark.slow
class TestRealProbes:
    def probes(self, spec: StudySpec) -> dict[str, StageProbe]:
        """By kind of stage; each kind of these studies has one shape."""
        plan = make_plan(spec)
        measured = measure(spec, plan, silent, QUICK)
        assert not spec.storage.exists()
        kinds = {cost_shape(s): s.kind for planned in plan.distinct for s in planned.examples}
        assert measured.keys() == kinds.keys()
        return {kinds[shape]: one for shape, one in measured.items()}

    def test_every_phase_and_both_states_of_a_frozen_backbone_are_measured(self, small_corpus: Path) -> None:
        """Phases too long for a probe to come to the second one, and a backbone that never learns in earnest."""
        regime = bl_just(5000, exploration_steps=2000, joint_steps=3000)
        regime["finetune"]["keep"] = "best"
        arms = {
            "bl_just": {"trial": {"model": SMALL_MODEL, "regime": regime}},
            "frozen": {
                "trial": {
                    "model": SMALL_MODEL,
                    "regime": {
                        "kind": "supervised",
                        "train": {"steps": 4, "batch_seconds": 6, "evaluate_every": 2, "frozen_backbone_steps": 4},
                    },
                }
            },
        }
        found = self.probes(real_study(small_corpus, arms))
        assert set(found) == {"joint", "finetune", "supervised"}
        assert len(found["joint"].step_seconds) == 2
        assert found["joint"].step_seconds == found["joint"].frozen_step_seconds
        assert found["supervised"].step_seconds != found["supervised"].frozen_step_seconds
        for one in found.values():
            assert all(seconds > 0 for seconds in (*one.step_seconds, *one.frozen_step_seconds, one.startup_seconds))
        assert found["joint"].test_seconds == 0

    @pytest.mark.long
    def test_a_teacher_and_a_language_model_and_two_workers(self, small_corpus: Path) -> None:
        arms = {"arm": {"trial": {"model": SMALL_MODEL, "regime": PSEUDO_LABELS, "language_model": {}}}}
        found = self.probes(real_study(small_corpus, arms, resources={"workers": 2}))
        assert list(found) == ["pretrain", "semi_supervised", "finetune", "decode"]
        assert found["pretrain"].evaluation_seconds == found["pretrain"].test_seconds == 0
        assert found["decode"].step_seconds == ()
        assert found["decode"].test_seconds > 0

    def test_shapes_that_differ_in_what_a_run_leaves_out_are_measured_each(self, small_corpus: Path) -> None:
        """Of the second one no run is found in the store, which the first one would have left."""
        frozen = {"regime.train.frozen_backbone_steps": {"kind": "grid", "choices": [0, 2]}}
        train = {"steps": 4, "batch_seconds": 6, "evaluate_every": 2}
        trial = {"model": SMALL_MODEL, "regime": {"kind": "supervised", "train": train}}
        spec = real_study(small_corpus, {"arm": {"trial": trial, "space": frozen}}, resources={"max_groups": 1})
        found = measure(spec, make_plan(spec), silent, QUICK)
        assert len(found) == 2
        assert all(probe.startup_seconds > 0 for probe in found.values())

    def test_a_stage_that_fails_says_why(self, small_corpus: Path) -> None:
        train = {"steps": 4, "batch_seconds": 6, "evaluate_every": 2}
        arms = {"arm": {"trial": {"model": SMALL_MODEL, "regime": {"kind": "supervised", "train": train}}}}
        spec = real_study(small_corpus, arms)
        plan = make_plan(spec)
        (planned,) = plan.distinct
        changed = planned.longest.with_(data_fingerprint="other")
        plan.distinct = plan.requested = [type(planned)(changed, (changed,))]
        with pytest.raises(SettingsError, match="supervised: CorpusError: the corpus of"):
            measure(spec, plan, silent, QUICK)


@pytest.mark.slow
def test_the_command_prints_the_estimate_with_the_plan(
    small_corpus: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("study.probe.Effort", lambda: QUICK)
    trial = small_trial(small_corpus, pretrain_finetune())
    sweep = write_sweep(
        tmp_path / "sweep.yaml",
        trial=trial,
        arms={"arm": {}},
        replication={"seeds": 0},
        resources={"node_prices": {"default": 1.0}},
    )
    code, out, err = call("plan", sweep, "--probe", "--json")
    plan = json.loads(out)
    assert code == 0
    assert plan["trials"] == 1
    assert set(plan["estimate"]["stages"]) == {"pretrain", "finetune"}
    assert plan["estimate"]["shared"]["accelerator_hours"] > 0
    assert plan["estimate"]["shared"]["cost"] > 0
    assert "probing 2 of 2: finetune" in err

    code, out, _ = call("plan", sweep, "--probe")
    assert code == 0
    assert "accelerator hours" in out
    assert "cost without sharing" in out
