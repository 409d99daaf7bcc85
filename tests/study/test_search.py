"""What is tried next: the searcher asked by hand, its results written to a real ledger by hand. No Ray runs."""

from __future__ import annotations

import math
import pickle
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from study.ledger import Ledger, Trial
from study.search import StudySearcher
from study.spec import StudySpec
from tests.study.builders import LEARNING_RATE, open_study, pretrain_finetune, report, spec_of, supervised
from trainables.trial import TrialConfig, stages_of

FINISHED = StudySearcher.FINISHED
RATE = {"kind": "log_uniform", "low": 1e-4, "high": 1e-1}
OPTIMUM = -2.5  # of the logarithm of the learning rate

Proposal = dict[str, Any]


def study(folder: Path, arms: dict[str, Any] | None = None, **changes: Any) -> StudySpec:
    one = {"trial": supervised(), "space": {LEARNING_RATE: RATE}}
    settings = {"search": {"trials": 3, "metric": "dev_cer"}, "replication": {"top": 1, "seeds": 2}}
    return spec_of(folder, arms=arms or {"one": one}, **{**settings, **changes})


def searching(trials: int, kind: str = "tpe", *, seed: int = 0, startup: int = 3) -> dict[str, Any]:
    sampler = {"kind": kind, **({"startup_trials": startup} if kind == "tpe" else {})}
    return {"trials": trials, "metric": "dev_cer", "sampler": sampler, "seed": seed}


def bowl(config: dict[str, Any]) -> float:
    """A final CER that is lowest at the optimum."""
    return 0.1 + (math.log10(config["regime"]["train"]["learning_rate"]) - OPTIMUM) ** 2


def finish(ledger: Ledger, spec: StudySpec, proposal: Proposal, cer: float) -> None:
    last = stages_of(TrialConfig.model_validate(proposal["config"]))[-1]
    ledger.append(last.fingerprint(), [report(last.steps, dev_cer=cer, dev_wer=cer)])
    ledger.end_trial(spec.study, proposal["trial"], "finished")


def ask(searcher: StudySearcher) -> Proposal:
    proposal = searcher.suggest("any")
    assert isinstance(proposal, dict)
    return proposal


def play(spec: StudySpec, ledger: Ledger, cer: Callable[[dict[str, Any]], float] = bowl) -> list[Proposal]:
    """The whole study, one trial at a time; each process lives for one trial."""
    played: list[Proposal] = []
    while (proposal := StudySearcher(spec, ledger).suggest("any")) != FINISHED:
        assert isinstance(proposal, dict)
        finish(ledger, spec, proposal, cer(proposal["config"]))
        played.append(proposal)
    return played


def points(ledger: Ledger, arm: str = "one", origin: str = "search") -> list[dict[str, Any]]:
    return [t.point for t in ledger.trials("race") if t.arm == arm and t.origin == origin]


def by_name(ledger: Ledger) -> dict[str, Trial]:
    return {trial.trial: trial for trial in ledger.trials("race")}


class TestOrder:
    def test_arms_take_turns_in_the_order_of_the_sweep_file(self, tmp_path: Path) -> None:
        arm = {"trial": supervised(), "space": {LEARNING_RATE: RATE}}
        spec = study(tmp_path, {"b": arm, "a": arm, "c": arm}, search=searching(2), replication={"seeds": 0})
        names = [proposal["trial"] for proposal in play(spec, open_study(spec))]
        assert names == ["b-000", "a-000", "c-000", "b-001", "a-001", "c-001"]

    def test_an_arm_with_more_trials_goes_on_alone(self, tmp_path: Path) -> None:
        arms = {
            "few": {"trial": supervised()},
            "many": {"trial": supervised(), "space": {LEARNING_RATE: {"kind": "grid", "choices": [1e-4, 1e-3, 1e-2]}}},
        }
        spec = study(tmp_path, arms, replication={"seeds": 0})
        names = [proposal["trial"] for proposal in play(spec, open_study(spec))]
        assert names == ["few-000", "many-000", "many-001", "many-002"]

    def test_the_trial_is_in_the_ledger_before_it_is_handed_out(self, tmp_path: Path) -> None:
        spec = study(tmp_path)
        ledger = open_study(spec)
        proposal = ask(StudySearcher(spec, ledger))
        (trial,) = ledger.trials("race")
        assert (trial.trial, trial.config, trial.status) == (proposal["trial"], proposal["config"], "unfinished")
        config = TrialConfig.model_validate(proposal["config"])
        assert config == spec.trial_config("one", trial.point)
        assert [s["stage"] for s in ledger.trial_stages("race", trial.trial)] == [
            stage.fingerprint() for stage in stages_of(config)
        ]

    def test_values_lie_in_their_intervals_and_choices(self, tmp_path: Path) -> None:
        space = {
            LEARNING_RATE: RATE,
            "model.dropout": {"kind": "uniform", "low": 0.1, "high": 0.3},
            "regime.train.report_every": {"kind": "int", "low": 2, "high": 11, "step": 3},
            "model.gru_layers": {"kind": "categorical", "choices": [1, 3]},
            "regime.train.augment_speed": {"kind": "categorical", "choices": [True, False]},
        }
        spec = study(tmp_path, {"one": {"trial": supervised(), "space": space}}, search=searching(30))
        ledger = open_study(spec)
        play(spec, ledger)
        drawn = points(ledger)
        assert len(drawn) == 30
        assert all(1e-4 <= point[LEARNING_RATE] <= 1e-1 for point in drawn)
        assert all(0.1 <= point["model.dropout"] <= 0.3 for point in drawn)
        assert {point["regime.train.report_every"] for point in drawn} == {2, 5, 8, 11}
        assert {point["model.gru_layers"] for point in drawn} == {1, 3}
        assert {point["regime.train.augment_speed"] for point in drawn} == {True, False}
        assert len({point[LEARNING_RATE] for point in drawn}) == 30


class TestEnd:
    def test_nothing_is_proposed_while_trials_run_and_finished_is_said_when_they_ended(self, tmp_path: Path) -> None:
        spec = study(tmp_path, search=searching(2), replication={"seeds": 0})
        ledger = open_study(spec)
        searcher = StudySearcher(spec, ledger)
        first, second = ask(searcher), ask(searcher)
        assert searcher.suggest("any") is None
        finish(ledger, spec, first, 0.4)
        assert searcher.suggest("any") is None
        ledger.end_trial("race", second["trial"], "failed", "out of memory")
        assert searcher.suggest("any") == FINISHED
        assert StudySearcher(spec, ledger).suggest("any") == FINISHED

    def test_a_study_whose_trials_all_failed_is_finished(self, tmp_path: Path) -> None:
        spec = study(tmp_path)
        ledger = open_study(spec)
        searcher = StudySearcher(spec, ledger)
        while isinstance(proposal := searcher.suggest("any"), dict):
            ledger.end_trial("race", proposal["trial"], "failed", "x")
        assert proposal == FINISHED
        assert len(ledger.trials("race")) == 3


class TestRestart:
    @pytest.mark.parametrize("kind", ["tpe", "random"])
    def test_a_study_that_is_killed_after_every_trial_proposes_what_one_that_is_not_does(
        self, tmp_path: Path, kind: str
    ) -> None:
        """Bit for bit, TPE past its start-up included."""
        spec, straight = (
            study(tmp_path / "a", search=searching(9, kind)),
            study(tmp_path / "b", search=searching(9, kind)),
        )
        killed_ledger, ledger = open_study(spec), open_study(straight)
        killed = play(spec, killed_ledger)
        searcher, through = StudySearcher(straight, ledger), []
        while isinstance(proposal := searcher.suggest("any"), dict):
            finish(ledger, straight, proposal, bowl(proposal["config"]))
            through.append(proposal)
        assert killed == through
        assert len(killed) == 9 + 2

    @pytest.mark.parametrize("kind", ["tpe", "random"])
    def test_the_seed_decides_the_proposals(self, tmp_path: Path, kind: str) -> None:
        played = []
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            spec = study(tmp_path / name, search=searching(5, kind, seed=seed))
            played.append(play(spec, open_study(spec)))
        assert played[0] == played[1]
        assert played[0] != played[2]

    def test_unfinished_trials_come_first_and_unchanged(self, tmp_path: Path) -> None:
        spec = study(tmp_path, search=searching(4))
        ledger = open_study(spec)
        before = StudySearcher(spec, ledger)
        first, second, third = ask(before), ask(before), ask(before)
        finish(ledger, spec, second, 0.3)
        points_before = points(ledger)
        after = StudySearcher(spec, ledger)
        assert [ask(after), ask(after)] == [first, third]
        assert points(ledger) == points_before
        assert ask(after)["trial"] == "one-003"
        assert after.suggest("any") is None

    def test_an_unfinished_replication_comes_again_with_its_seed(self, tmp_path: Path) -> None:
        spec = study(tmp_path, search=searching(1))
        ledger = open_study(spec)
        searcher = StudySearcher(spec, ledger)
        finish(ledger, spec, ask(searcher), 0.3)
        replication = ask(searcher)
        again = ask(StudySearcher(spec, ledger))
        assert again == replication
        assert by_name(ledger)[again["trial"]].origin == "replication"
        assert len(ledger.trials("race")) == 2

    def test_failed_trials_that_are_retried_come_again(self, tmp_path: Path) -> None:
        spec = study(tmp_path, search=searching(2), replication={"seeds": 0})
        ledger = open_study(spec)
        searcher = StudySearcher(spec, ledger)
        first, second = ask(searcher), ask(searcher)
        ledger.end_trial("race", first["trial"], "failed", "x")
        finish(ledger, spec, second, 0.3)
        assert StudySearcher(spec, ledger).suggest("any") == FINISHED
        ledger.reopen_failed("race")
        assert ask(StudySearcher(spec, ledger)) == first

    def test_tune_finds_nothing_to_pickle(self, tmp_path: Path) -> None:
        spec = study(tmp_path)
        searcher = StudySearcher(spec, open_study(spec))
        ask(searcher)
        assert pickle.loads(pickle.dumps(searcher)).__dict__ == {}

    def test_more_trials_on_a_finished_study_are_only_the_additional_ones(self, tmp_path: Path) -> None:
        spec = study(tmp_path / "a", search=searching(4), replication={"seeds": 0})
        ledger = open_study(spec)
        play(spec, ledger)
        before = points(ledger)
        more = study(tmp_path / "a", search=searching(7), replication={"seeds": 0})
        added = play(more, ledger)
        assert [proposal["trial"] for proposal in added] == ["one-004", "one-005", "one-006"]
        assert points(ledger)[:4] == before
        straight = study(tmp_path / "b", search=searching(7), replication={"seeds": 0})
        at_once = open_study(straight)
        play(straight, at_once)
        assert points(ledger) == points(at_once)


class TestFailures:
    def test_are_told_as_failed_and_teach_the_sampler_nothing(self, tmp_path: Path) -> None:
        """A failure moves no proposal towards or away from it: TPE goes on as if in its start-up."""
        spec = study(tmp_path / "tpe", search=searching(8, "tpe", startup=4), replication={"seeds": 0})
        random = study(tmp_path / "random", search=searching(8, "random"), replication={"seeds": 0})
        ledger = open_study(spec)
        while isinstance(proposal := StudySearcher(spec, ledger).suggest("any"), dict):
            ledger.end_trial("race", proposal["trial"], "failed", "x")
        random_ledger = open_study(random)
        play(random, random_ledger)
        assert points(ledger) == points(random_ledger)

    def test_are_not_replicated(self, tmp_path: Path) -> None:
        spec = study(tmp_path, search=searching(3))
        ledger = open_study(spec)
        searcher = StudySearcher(spec, ledger)
        best, middle, worst = ask(searcher), ask(searcher), ask(searcher)
        last = stages_of(TrialConfig.model_validate(best["config"]))[-1]
        ledger.append(last.fingerprint(), [report(last.steps, dev_cer=0.01, dev_wer=0.01)])
        ledger.end_trial("race", best["trial"], "failed", "the disk is full")
        finish(ledger, spec, middle, 0.5)
        finish(ledger, spec, worst, 0.9)
        assert [ask(searcher)["trial"] for _ in range(2)] == [f"{middle['trial']}-seed{seed}" for seed in (1, 2)]


class TestReplication:
    def test_waits_for_the_end_of_the_search_of_its_own_arm_only(self, tmp_path: Path) -> None:
        arm = {"trial": supervised(), "space": {LEARNING_RATE: RATE}}
        spec = study(tmp_path, {"a": arm, "b": arm}, search=searching(2), replication={"seeds": 1})
        ledger = open_study(spec)
        searcher = StudySearcher(spec, ledger)
        trials = {proposal["trial"]: proposal for proposal in (ask(searcher) for _ in range(4))}
        finish(ledger, spec, trials["a-000"], 0.5)
        assert searcher.suggest("any") is None
        finish(ledger, spec, trials["a-001"], 0.4)
        assert ask(searcher)["trial"] == "a-001-seed1"
        assert searcher.suggest("any") is None
        finish(ledger, spec, trials["b-000"], 0.1)
        finish(ledger, spec, trials["b-001"], 0.2)
        assert ask(searcher)["trial"] == "b-000-seed1"

    def test_takes_the_best_of_each_arm_with_fresh_seeds(self, tmp_path: Path) -> None:
        arms = {
            name: {"trial": {**supervised(), "seed": seed}, "space": {LEARNING_RATE: RATE}}
            for name, seed in (("a", 0), ("b", 10))
        }
        spec = study(tmp_path, arms, search=searching(4), replication={"top": 2, "seeds": 3})
        ledger = open_study(spec)
        play(spec, ledger)
        for arm, seed in (("a", 0), ("b", 10)):
            searched = [t for t in ledger.trials("race") if t.arm == arm and t.origin == "search"]
            best = sorted(searched, key=lambda t: bowl(t.config))[:2]
            replicated = [t for t in ledger.trials("race") if t.arm == arm and t.origin == "replication"]
            assert {(t.number, t.seed) for t in replicated} == {
                (t.number, fresh) for t in best for fresh in (seed + 1, seed + 2, seed + 3)
            }
            for trial in replicated:
                original = next(t for t in best if t.number == trial.number)
                assert trial.point == original.point
                assert trial.config == {**original.config, "seed": trial.seed}

    def test_of_an_arm_without_a_space_repeats_its_one_trial(self, tmp_path: Path) -> None:
        spec = study(tmp_path, {"one": {"trial": supervised()}})
        names = [proposal["trial"] for proposal in play(spec, open_study(spec), cer=lambda _: 0.5)]
        assert names == ["one-000", "one-000-seed1", "one-000-seed2"]

    def test_seeds_are_fresh_even_where_seeds_are_a_grid(self, tmp_path: Path) -> None:
        """A seed that the search has had gives the same trial again, and no news."""
        space = {"seed": {"kind": "grid", "choices": [0, 1, 2]}}
        spec = study(tmp_path, {"one": {"trial": supervised(), "space": space}})
        ledger = open_study(spec)
        play(spec, ledger, cer=lambda config: 0.2 + config["seed"] / 10)
        seeds = [trial.seed for trial in ledger.trials("race")]
        assert len(seeds) == 3 + 2
        assert len(set(seeds)) == len(seeds)


class TestGrid:
    def test_every_combination_gets_the_samples_in_turn(self, tmp_path: Path) -> None:
        space = {
            "model.gru_layers": {"kind": "grid", "choices": [1, 2]},
            LEARNING_RATE: RATE,
            "model.cnn_layers": {"kind": "grid", "choices": [0, 1, 2]},
        }
        spec = study(tmp_path, {"one": {"trial": supervised(), "space": space}}, search=searching(3))
        ledger = open_study(spec)
        play(spec, ledger)
        trials = [t for t in ledger.trials("race") if t.origin == "search"]
        cells = [(t.point["model.gru_layers"], t.point["model.cnn_layers"]) for t in trials]
        assert cells == [(gru, cnn) for gru in (1, 2) for cnn in (0, 1, 2)] * 3
        assert all(t.grid.items() <= t.point.items() and len(t.grid) == 2 for t in trials)
        assert len({t.point[LEARNING_RATE] for t in trials}) == 18

    def test_combinations_are_searched_apart(self, tmp_path: Path) -> None:
        """The results of one combination do not reach the proposals of another."""
        space = {"model.gru_layers": {"kind": "grid", "choices": [1, 2]}, LEARNING_RATE: RATE}
        found = []
        for name, elsewhere in (("a", 0.3), ("b", 0.9)):
            spec = study(
                tmp_path / name,
                {"one": {"trial": supervised(), "space": space}},
                search=searching(8),
                replication={"seeds": 0},
            )
            ledger = open_study(spec)

            def cer(config: dict[str, Any], elsewhere: float = elsewhere) -> float:
                mine = config["model"]["gru_layers"] == 1
                return bowl(config) if mine else elsewhere * config["regime"]["train"]["learning_rate"]

            play(spec, ledger, cer)
            found.append([p[LEARNING_RATE] for p in points(ledger) if p["model.gru_layers"] == 1])
        assert found[0] == found[1]
        assert len(found[0]) == 8


class TestConditions:
    def test_an_inactive_parameter_is_absent_from_point_and_trial(self, tmp_path: Path) -> None:
        rate = "regime.finetune.learning_rate"
        space = {
            "model.gru_layers": {"kind": "categorical", "choices": [1, 2]},
            "model.dropout": {"kind": "uniform", "low": 0.2, "high": 0.4, "when": {"model.gru_layers": [2]}},
            rate: RATE,
        }
        spec = study(tmp_path, {"one": {"trial": pretrain_finetune(), "space": space}}, search=searching(20))
        ledger = open_study(spec)
        play(spec, ledger, cer=lambda config: 0.3 + abs(config["model"]["dropout"] - 0.3))
        trials = [t for t in ledger.trials("race") if t.origin == "search"]
        assert {t.point["model.gru_layers"] for t in trials} == {1, 2}
        for trial in trials:
            deep = trial.point["model.gru_layers"] == 2
            assert ("model.dropout" in trial.point) == deep
            assert (trial.config["model"]["dropout"] > 0) == deep
            assert rate in trial.point

    def test_a_sampled_parameter_may_depend_on_a_grid(self, tmp_path: Path) -> None:
        space = {
            "model.gru_layers": {"kind": "grid", "choices": [1, 2]},
            "model.dropout": {"kind": "uniform", "low": 0.2, "high": 0.4, "when": {"model.gru_layers": [2]}},
        }
        spec = study(tmp_path, {"one": {"trial": supervised(), "space": space}}, search=searching(2))
        ledger = open_study(spec)
        play(spec, ledger, cer=lambda _: 0.5)
        assert [sorted(point) for point in points(ledger)] == [
            ["model.gru_layers"],
            ["model.dropout", "model.gru_layers"],
        ] * 2


class TestEstimator:
    def test_it_learns_from_results(self, tmp_path: Path) -> None:
        """Over five seeds, the late proposals of TPE lie several times closer to the optimum than random ones."""
        distances: dict[str, list[float]] = {"tpe": [], "random": []}
        for kind, collected in distances.items():
            for seed in range(5):
                spec = study(
                    tmp_path / f"{kind}{seed}",
                    search=searching(30, kind, seed=seed, startup=8),
                    replication={"seeds": 0},
                )
                ledger = open_study(spec)
                play(spec, ledger)
                late = points(ledger)[15:]
                collected += [abs(math.log10(point[LEARNING_RATE]) - OPTIMUM) for point in late]
        # Random: uniform over three decades with the optimum in the middle, so 0.75 in the median.
        assert statistics.median(distances["random"]) == pytest.approx(0.75, abs=0.2)
        assert statistics.median(distances["tpe"]) < statistics.median(distances["random"]) / 2

    def test_it_draws_at_random_until_it_has_enough(self, tmp_path: Path) -> None:
        late, never = (
            study(tmp_path / name, search=searching(6, startup=startup), replication={"seeds": 0})
            for name, startup in (("late", 4), ("never", 50))
        )
        first, second = open_study(late), open_study(never)
        play(late, first)
        play(never, second)
        assert points(first)[:4] == points(second)[:4]
        assert points(first)[4:] != points(second)[4:]
