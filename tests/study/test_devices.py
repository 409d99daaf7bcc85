"""Accelerator time of studies whose trials ran on several devices, on ledgers made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from study.answer import Answer, answer, answer_as_dict
from study.compare import compare
from study.conclusion import conclusion
from study.devices import UNRECORDED, Device, devices_of
from study.ledger import Ledger
from study.notebook import Study
from study.report import write_report
from study.spec import StudySpec
from study.stage_costs import stage_costs
from tests.study.builders import (
    add_trial,
    crossing_at,
    open_study,
    pretrain_finetune,
    report,
    run_trial,
    spec_of,
    supervised,
)
from tests.study.test_scaling_report import SIZES, STEPS
from tests.study.test_scaling_report import settings as scaling_settings

pytestmark = pytest.mark.usefixtures("no_pdf")

COST = {"new": 1.0, "old": 2.0, "oldest": 6.0}  # seconds of a step
CROSSINGS = {"slow": (25.0, 26.0, 27.0, 28.0), "fast": (20.0, 21.0, 22.0, 23.0)}


def race(
    storage: Path, devices: Mapping[str, Sequence[str]], first_seed: int = 0, **changes: Any
) -> tuple[StudySpec, Ledger]:
    """Replications of each arm, one on each device of the list."""
    spec = spec_of(storage, **changes)
    ledger = open_study(spec)
    for arm, names in devices.items():
        for seed, name in enumerate(names):
            run_trial(
                ledger,
                spec,
                arm,
                origin="replication",
                seed=first_seed + seed,
                curve=crossing_at(CROSSINGS[arm][seed]),
                seconds_a_step=COST[name],
                device=name,
            )
    return spec, ledger


def device(found: Answer, name: str) -> Device:
    (one,) = (device for device in found.devices.found if device.name == name)
    return one


BOTH = {"slow": ("new", "old", "new", "new"), "fast": ("old", "new", "old", "new")}
CHAIN = {"slow": ("new", "old", "new", "old"), "fast": ("old", "oldest", "old", "oldest")}
APART = {"slow": ("new", "new", "new", "new"), "fast": ("old", "old", "old", "old")}
NEW = {"slow": ("new",) * 4, "fast": ("new",) * 4}


class TestWhereEqualWorkRanOnBoth:
    @pytest.mark.parametrize("devices", [BOTH, CHAIN], ids=["two", "a chain of three"])
    def test_all_is_as_if_everything_had_run_on_the_reference(
        self, tmp_path: Path, devices: Mapping[str, Sequence[str]]
    ) -> None:
        found = answer(*race(tmp_path / "several", devices))
        (reference,) = found.devices.references
        same = {arm: [reference] * len(names) for arm, names in devices.items()}
        expected = answer(*race(tmp_path / "one", same))
        for ours, theirs in zip(found.arms, expected.arms, strict=True):
            for axis in ("step", "audio_seconds", "accelerator_seconds"):
                assert ours.spent[axis] == pytest.approx(theirs.spent[axis], rel=1e-9)
            for curve, other in zip(ours.curves, theirs.curves, strict=True):
                assert [p.accelerator_seconds for p in curve] == pytest.approx(
                    [p.accelerator_seconds for p in other], rel=1e-9
                )
        (ours_compared,), (theirs_compared,) = found.comparisons, expected.comparisons
        ratio, other_ratio = (c.ratios["accelerator_seconds"] for c in (ours_compared, theirs_compared))
        assert ratio is not None
        assert other_ratio is not None
        assert (ratio.estimate, ratio.low, ratio.high) == pytest.approx(
            (other_ratio.estimate, other_ratio.low, other_ratio.high), rel=1e-9
        )
        assert found.sentences[0] == expected.sentences[0]

    def test_the_reference_is_what_most_of_their_time_was_spent_on_and_others_have_a_speed(
        self, tmp_path: Path
    ) -> None:
        found = answer(*race(tmp_path, BOTH))
        assert [(d.name, d.stages, d.accelerator_seconds) for d in found.devices.found] == [
            ("old", 3, 3 * 30 * 2.0),
            ("new", 5, 5 * 30 * 1.0),
        ]
        new = device(found, "new")
        assert (new.reference, new.shapes, new.standing) == ("old", 4, True)
        assert (new.speed, new.low, new.high) == pytest.approx((2.0, 2.0, 2.0), rel=1e-9)
        assert device(found, "old").speed == 1.0

    def test_the_answer_and_its_data_say_so(self, tmp_path: Path) -> None:
        found = answer(*race(tmp_path, CHAIN))
        assert found.sentences[-1] == (
            "Accelerator time is counted as on oldest: on equal work, old is 3.00 times as fast (3.00-3.00, 4 shapes "
            "of work) and new is 6.00 times as fast (6.00-6.00, 2 shapes of work)."
        )
        told = json.loads(json.dumps(answer_as_dict(found)))["devices"]
        assert [row["name"] for row in told] == ["oldest", "old", "new"]
        assert told[2]["speed"] == pytest.approx(6.0)

    def test_speeds_are_found_beneath_noise(self, tmp_path: Path) -> None:
        """Five kinds of work, three devices, 20 % of noise on each increment of 150 stages."""
        arms = {f"arm{n}": {"trial": supervised(batch_seconds=10.0 + n)} for n in range(5)}
        spec = spec_of(tmp_path, arms=arms)
        ledger, rng = open_study(spec), np.random.default_rng(0)
        for arm in range(5):
            for seed, name in enumerate(sorted(COST) * 10):
                _, (stage,) = add_trial(ledger, spec, f"arm{arm}", seed, seed=seed)
                seconds = np.cumsum(10 * (1 + arm) * COST[name] * np.exp(0.2 * rng.standard_normal(10)))
                ledger.append(
                    stage.fingerprint(),
                    [
                        report(10 * n, device=name, loss=1.0).with_(accelerator_seconds=float(spent))
                        for n, spent in enumerate(seconds, start=1)
                    ],
                )
        found = {d.name: d for d in devices_of(ledger, spec.study, []).found}
        assert {d.reference for d in found.values()} == {"oldest"}
        for name, cost in COST.items():
            assert found[name].speed == pytest.approx(COST["oldest"] / cost, rel=0.04)
            assert found[name].low <= found[name].speed <= found[name].high
            assert found[name].shapes == 5

    def test_work_counts_by_the_time_that_was_spent_on_it(self, tmp_path: Path) -> None:
        """`new` is twice as fast at 90 s of work, and as fast at 10 s of it."""
        arms = {"heavy": {"trial": supervised()}, "light": {"trial": supervised(augment_speed=False)}}
        spec = spec_of(tmp_path, arms=arms)
        ledger = open_study(spec)
        for arm, seconds in (("heavy", {"old": 60.0, "new": 30.0}), ("light", {"old": 5.0, "new": 5.0})):
            for seed, (name, spent) in enumerate(seconds.items()):
                _, (stage,) = add_trial(ledger, spec, arm, seed, seed=seed)
                ledger.append(stage.fingerprint(), [report(10, seconds_a_step=spent / 10, device=name, loss=1.0)])
        (new,) = (d for d in devices_of(ledger, spec.study, []).found if d.name == "new")
        assert new.speed == pytest.approx(2.0**0.9)
        assert (new.low, new.high) == pytest.approx((1.0, 2.0))


class TestEqualWork:
    def speed(self, tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> float | None:
        """Of `new`, where the stages of two arms ran on a device each; None: they are not equal work."""
        spec = spec_of(tmp_path, arms={"one": {"trial": ours}, "other": {"trial": theirs}})
        ledger = open_study(spec)
        for arm, name in (("one", "old"), ("other", "new")):
            _, (stage,) = add_trial(ledger, spec, arm, seed=3 if arm == "one" else 4)
            curve = [report(10 * n, seconds_a_step=COST[name], device=name, loss=1.0) for n in (1, 2)]
            ledger.append(stage.fingerprint(), curve)
        (new,) = (d for d in devices_of(ledger, spec.study, []).found if d.name == "new")
        return new.speed if new.reference == "old" else None

    @pytest.mark.parametrize(
        "change",
        [
            {"steps": 50},
            {"learning_rate": 0.5},
            {"schedule": {"kind": "constant"}},
            {"optimiser": {"weight_decay": 0.5}},
            {"report_every": 5, "evaluate_every": 7, "keep": "last"},
            {"seed": 9},
        ],
        ids=str,
    )
    def test_is_that_of_stages_that_differ_in_what_costs_nothing(self, tmp_path: Path, change: dict[str, Any]) -> None:
        assert self.speed(tmp_path, supervised(), supervised(**change)) == pytest.approx(2.0)

    @pytest.mark.parametrize(
        "change",
        [{"batch_seconds": 12.0}, {"accumulation": 2}, {"precision": "bf16"}, {"frozen_backbone_steps": 5}],
        ids=str,
    )
    def test_is_not_that_of_stages_whose_steps_are_other_work(self, tmp_path: Path, change: dict[str, Any]) -> None:
        assert self.speed(tmp_path, supervised(), supervised(**change)) is None

    def test_is_not_that_of_another_model(self, tmp_path: Path) -> None:
        model = {"model": {"preset": "compact_cnn_gru", "gru_width": 96}}
        assert self.speed(tmp_path, supervised(), {**supervised(), **model}) is None

    def test_has_as_many_steps(self, tmp_path: Path) -> None:
        """A step of `old` costs 2 s; both have reports that are 10 steps apart, `new` has one after 5, too."""
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        for seed, (name, steps) in enumerate({"old": (10, 20), "new": (5, 15)}.items()):
            _, (stage,) = add_trial(ledger, spec, "slow", seed, seed=seed)
            curve = [report(step, seconds_a_step=COST[name], device=name, loss=1.0) for step in steps]
            ledger.append(stage.fingerprint(), curve)
        (new,) = (d for d in devices_of(ledger, spec.study, []).found if d.name == "new")
        assert (new.speed, new.shapes) == (pytest.approx(2.0), 1)

    def test_has_the_same_evaluations(self, tmp_path: Path) -> None:
        """On `old` each report has an evaluation of 5 s; on `new` every second one has, or they are farther apart."""
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        spent = {"old": {10: 25.0, 20: 50.0}, "new": {10: 10.0, 20: 22.5}}
        for seed, (name, reports) in enumerate(spent.items()):
            _, (stage,) = add_trial(ledger, spec, "slow", seed, seed=seed)
            ledger.append(
                stage.fingerprint(),
                [
                    report(step, device=name, loss=1.0, **({} if seconds == 10.0 else {"dev_cer": 0.5})).with_(
                        accelerator_seconds=seconds
                    )
                    for step, seconds in reports.items()
                ],
            )
        (new,) = (d for d in devices_of(ledger, spec.study, []).found if d.name == "new")
        assert (new.speed, new.shapes) == (pytest.approx(2.0), 1)

    def test_moved_stages_count_where_each_part_ran_and_tell_nothing_where_they_moved(self, tmp_path: Path) -> None:
        """The step from 20 to 30 took 100 s, with the move in it."""
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        _, (stage,) = add_trial(ledger, spec, "slow", seed=1)
        parts = [(10, 20.0, "old"), (20, 40.0, "old"), (30, 140.0, "new"), (40, 150.0, "new")]
        ledger.append(
            stage.fingerprint(),
            [report(step, device=on, loss=1.0).with_(accelerator_seconds=spent) for step, spent, on in parts],
        )
        (trial,) = ledger.trials(spec.study)
        found = devices_of(ledger, spec.study, [])
        speeds = {d.name: d.speed for d in found.found}
        assert speeds == pytest.approx({"new": 1.0, "old": 0.5})
        curve = found.curve(ledger, trial)
        assert [p.accelerator_seconds for p in curve] == pytest.approx([10, 20, 120, 130])
        assert [p.device for p in curve] == ["old", "old", "new", "new"]
        assert found.curve(ledger, trial, "nothing") == []

    def test_stages_that_were_trained_before_devices_were_recorded_are_one_more(self, tmp_path: Path) -> None:
        spec, ledger = race(tmp_path, BOTH)
        run_trial(ledger, spec, "slow", 7, curve=crossing_at(25), seed=9, seconds_a_step=4.0)
        assert device(answer(spec, ledger), UNRECORDED).speed == pytest.approx(0.5)


class TestWhereNoEqualWorkRanOnBoth:
    def test_accelerator_time_is_refused_and_updates_and_audio_are_told(self, tmp_path: Path) -> None:
        spec, ledger = race(tmp_path, APART)
        found = answer(spec, ledger)
        (comparison,) = found.comparisons
        updates = comparison.ratios["step"]
        assert updates is not None
        assert comparison.ratios["accelerator_seconds"] is None
        assert comparison.p_values["accelerator_seconds"] is None
        assert not comparison.significant
        assert found.sentences == [
            "The accelerator time of fast and slow does not compare: to a dev CER of 50%, pre-training included, fast "
            f"needs {updates.estimate:.2f}x the updates and {updates.estimate:.2f}x the audio of slow (95 % intervals "
            f"{updates.low:.2f}-{updates.high:.2f} and {updates.low:.2f}-{updates.high:.2f}, 4 and 4 seeds).",
            "Accelerator time on old and on new does not compare, for no equal work ran on both; updates and audio do.",
        ]
        rows = [row for row in found.targets if row.axis == "accelerator_seconds"]
        assert [(row.ratio, row.log_rank) for row in rows] == [(None, None)] * 2
        assert all(row.ratio for row in found.targets if row.axis == "step" and row.arm == "fast")

    def test_arms_that_ran_on_one_device_compare_all_the_same(self, tmp_path: Path) -> None:
        """The third arm is alone on another one."""
        arms = {
            name: {"trial": supervised(batch_seconds=seconds)} for name, seconds in (("slow", 24.0), ("fast", 12.0))
        }
        arms["alone"] = {"trial": supervised(batch_seconds=6.0)}
        spec, ledger = race(tmp_path, NEW, arms=arms)
        for seed in (1, 2, 3):
            curve = crossing_at(20 + seed)
            run_trial(ledger, spec, "alone", origin="replication", seed=seed, curve=curve, device="old")
        fast, alone = answer(spec, ledger).comparisons
        assert fast.arm.arm == "fast"
        assert fast.ratios["accelerator_seconds"] is not None
        assert alone.ratios["accelerator_seconds"] is None

    def test_no_law_is_made_of_accelerator_hours(self, tmp_path: Path) -> None:
        metric = {"metric": "accelerator_hours_to_target", "arms": ["slow"]}
        spec = spec_of(tmp_path, **scaling_settings(**metric))
        ledger = open_study(spec)
        for number, steps in enumerate(SIZES):
            add_scaled(ledger, spec, number, steps, "new" if number else "old", {"loss": 1.0} if number else {})
        assert "accelerator time on new and on old does not compare" in answer(spec, ledger).sentences[-1]


def add_scaled(
    ledger: Ledger, spec: StudySpec, number: int, steps: int, on: str, also: Mapping[str, float], seed: int = 0
) -> None:
    """A finished trial whose first report is other work where it has another metric or another number of steps."""
    name, (stage,) = add_trial(ledger, spec, "slow", number, point={STEPS: steps}, seed=seed)
    last = 15 + 5 * number
    cost = COST[on]
    ledger.append(
        stage.fingerprint(),
        [
            report(5 + number, seconds_a_step=cost, device=on, dev_cer=0.9, **also),
            report(last, seconds_a_step=cost, device=on, dev_cer=0.1, dev_wer=0.1),
        ],
    )
    ledger.end_trial(spec.study, name, "finished")


class TestWhereAllRanOnOneDevice:
    @pytest.mark.parametrize("recorded", [None, "new"])
    def test_nothing_is_said_and_nothing_changes(self, tmp_path: Path, recorded: str | None) -> None:
        spec = spec_of(tmp_path)
        ledger = open_study(spec)
        for arm in ("slow", "fast"):
            for seed, crossing in enumerate(CROSSINGS[arm]):
                on = recorded if seed else None
                curve = crossing_at(crossing)
                run_trial(ledger, spec, arm, origin="replication", seed=seed, curve=curve, device=on)
        found = answer(spec, ledger)
        assert found.devices.found == ()
        assert len(found.sentences) == 1
        assert found.arms[0].curves == [ledger.curve(spec.study, t.trial, "dev_cer") for t in found.arms[0].trials]
        page = write_report(spec, ledger).read_text()
        assert "Devices" not in page
        assert "counted as on" not in page

    def test_trials_that_stand_for_no_arm_make_no_sentence(self, tmp_path: Path) -> None:
        spec, ledger = race(tmp_path, NEW)
        run_trial(ledger, spec, "slow", curve=crossing_at(25), seed=9, seconds_a_step=2.0, device="old")
        found = answer(spec, ledger)
        assert device(found, "old").speed == pytest.approx(0.5)
        assert found.devices.references == ("new",)
        assert len(found.sentences) == 1


class TestWhatIsMadeOfIt:
    def test_the_report_has_the_speeds_and_says_what_its_axes_are(self, tmp_path: Path) -> None:
        path = write_report(*race(tmp_path, BOTH))
        page = path.read_text()
        assert "<td>2.00 (2.00 to 2.00)</td>" in page
        assert "Devices, with what they spent: old (3 stages, 3.0 min), new (5 stages, 2.5 min)." in page
        assert "Speeds of devices: least squares" in page
        for name in ("convergence", "survival"):
            assert "accelerator time, minutes, as on old" in (path.parent / f"{name}.csv").read_text()

    def test_the_report_says_where_nothing_is_known(self, tmp_path: Path) -> None:
        path = write_report(*race(tmp_path, APART))
        assert "<td>does not compare</td>" in path.read_text()
        assert "on devices that do not compare" in (path.parent / "convergence.csv").read_text()

    def test_stages_cost_what_they_would_on_the_reference_and_sharing_is_as_paid(self, tmp_path: Path) -> None:
        spec = spec_of(tmp_path, arms={"one": {"trial": pretrain_finetune()}})
        ledger = open_study(spec)
        for seed, on in enumerate(("new", "old", "old")):
            name, (pretrain, finetune) = add_trial(ledger, spec, "one", origin="replication", seed=seed)
            ledger.append(pretrain.fingerprint(), [report(100, seconds_a_step=COST[on], device=on, contrastive=1.0)])
            tuned = report(40, seconds_a_step=COST["new"], device="new", dev_cer=0.1, dev_wer=0.1)
            ledger.append(finetune.fingerprint(), [tuned])
            ledger.end_trial(spec.study, name, "finished")
        costs = stage_costs(spec, ledger, answer(spec, ledger))
        (arm,) = costs.arms
        assert [stage.accelerator_seconds for stage in arm.stages] == [
            pytest.approx((200.0,) * 3),
            pytest.approx((80.0,) * 3),
        ]
        assert costs.sharing[0].paid_seconds == pytest.approx(100 + 200 + 200 + 3 * 40)

    def test_mlflow_is_told_time_as_on_the_reference(self, tmp_path: Path) -> None:
        spec, ledger = race(tmp_path, BOTH)
        told = conclusion(spec, ledger, answer(spec, ledger), spec.storage).runs["slow-000-seed0"].metrics
        assert told["accelerator_seconds_to_target"] == pytest.approx(2 * 25.0)
        assert told["elapsed_seconds_to_target"] == pytest.approx(25.0)

    def test_notebooks_have_times_as_spent_and_the_device(self, tmp_path: Path) -> None:
        spec, _ = race(tmp_path, BOTH)
        curves = Study(spec.study, tmp_path).curves("dev_cer")
        ends = curves[curves.step == 30]
        assert dict(zip(ends.device, ends.accelerator_seconds, strict=True)) == {"new": 30.0, "old": 60.0}

    def test_studies_on_different_devices_do_not_compare_by_accelerator_time(self, tmp_path: Path) -> None:
        race(tmp_path, NEW, study="one")
        race(tmp_path, dict.fromkeys(NEW, ("old",) * 4), first_seed=10, study="two")
        found = compare(Ledger.in_folder(tmp_path), tmp_path, "one", "two")
        assert found.warnings == [
            "The devices differ: one ran on new, two ran on old. Updates and audio compare; times are about the "
            "devices, too."
        ]
        assert {row.axis for row in found.ratios if row.ratio is None} == {"accelerator_seconds"}


def test_log_ratio_of_elapsed_time_is_that_of_the_clock(tmp_path: Path) -> None:
    """The fourth axis takes the time as it was, on whatever it was spent."""
    (comparison,) = answer(*race(tmp_path, BOTH)).comparisons
    spent = {
        arm: [COST[on] * step for on, step in zip(BOTH[arm], CROSSINGS[arm], strict=True)] for arm in ("slow", "fast")
    }
    expected = np.mean(np.log(spent["fast"])) - np.mean(np.log(spent["slow"]))
    ratio = comparison.ratios["elapsed_seconds"]
    assert ratio is not None
    assert math.log(ratio.estimate) == pytest.approx(expected)
