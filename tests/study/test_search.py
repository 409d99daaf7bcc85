"""The searcher: every proposal follows from the sweep file and the ledger. `suggest` is called as Tune would."""

from __future__ import annotations

import math
import pickle
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from study.ledger import Ledger, Trial
from study.search import StudySearcher
from study.spec import StudySpec
from tests.study.builders import LEARNING_RATE, open_study, report, spec_of, supervised

OPTIMISER = "regime.train.optimiser"
GRU_LAYERS = "model.gru_layers"
CNN_LAYERS = "model.cnn_layers"
RATE = {"kind": "log_uniform", "low": 1e-4, "high": 1.0}
TPE = {"kind": "tpe", "startup_trials": 3}
RANDOM = {"kind": "random"}
NO_REPLICATION = {"top": 1, "seeds": 0}
GRID = {"kind": "grid", "choices": [1, 2]}

both_samplers = pytest.mark.parametrize("sampler", [TPE, RANDOM], ids=["tpe", "random"])

Open = Callable[[StudySpec], Ledger]
Loss = Callable[[dict[str, Any]], float]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens the ledger of a sweep, and closes it after the test."""
    ledgers: list[Ledger] = []

    def opened(spec: StudySpec) -> Ledger:
        ledgers.append(open_study(spec))
        return ledgers[-1]

    yield opened
    for ledger in ledgers:
        ledger.close()


def search(trials: int, sampler: dict[str, Any] = RANDOM, seed: int = 0) -> dict[str, Any]:
    return {"trials": trials, "metric": "dev_cer", "sampler": sampler, "seed": seed}


def one_arm(storage: Path, space: dict[str, Any], trials: int, **changes: Any) -> StudySpec:
    arms = {"arm": {"trial": supervised(), "space": space}}
    return spec_of(storage, **{"arms": arms, "search": search(trials), "replication": NO_REPLICATION, **changes})


def bowl(point: dict[str, Any]) -> float:
    """Lowest, at zero, where the learning rate is 0.01."""
    return (math.log10(point[LEARNING_RATE]) + 2) ** 2


def trial_of(ledger: Ledger, spec: StudySpec, name: str) -> Trial:
    return next(t for t in ledger.trials(spec.study) if t.trial == name)


def finish(ledger: Ledger, spec: StudySpec, name: str, cer: float) -> None:
    last = ledger.trial_stages(spec.study, name)[-1]
    ledger.append(last["stage"], [report(last["steps"], dev_cer=cer)])
    ledger.end_trial(spec.study, name, "finished")


def run(searcher: StudySearcher, loss: Loss = bowl, at_most: int = 1000) -> list[str]:
    """Take and finish trials one at a time, until there are no more; their names."""
    names: list[str] = []
    while len(names) < at_most:
        proposal = searcher.suggest("tune's id")
        if not isinstance(proposal, dict):
            assert proposal == Searcher.FINISHED
            break
        names.append(proposal["trial"])
        point = trial_of(searcher.ledger, searcher.spec, names[-1]).point
        finish(searcher.ledger, searcher.spec, names[-1], loss(point))
    return names


def take(searcher: StudySearcher) -> str:
    """Take a trial, and leave it unfinished."""
    proposal = searcher.suggest("tune's id")
    assert isinstance(proposal, dict)
    return proposal["trial"]


def points(ledger: Ledger, spec: StudySpec) -> list[dict[str, Any]]:
    return [t.point for t in ledger.trials(spec.study)]


def restarted_in(storage: Path, ledger: Ledger, spec: StudySpec, opened: Open) -> StudySearcher:
    """The searcher of a later process, on a copy of the ledger."""
    storage.mkdir()
    with (
        closing(sqlite3.connect(ledger.url.removeprefix("sqlite:///"))) as source,
        closing(sqlite3.connect(storage / "ledger.db")) as target,
    ):
        source.backup(target)
    later = spec.with_(storage=storage)
    return StudySearcher(later, opened(later))


def test_arms_take_turns(tmp_path: Path, opened: Open) -> None:
    spec = spec_of(tmp_path, search=search(3), replication=NO_REPLICATION)
    names = run(StudySearcher(spec, opened(spec)))
    assert names == ["slow-000", "fast-000", "slow-001", "fast-001", "slow-002", "fast-002"]


def test_the_arm_that_is_behind_catches_up_first(tmp_path: Path, opened: Open) -> None:
    spec = spec_of(tmp_path, search=search(2), replication=NO_REPLICATION)
    ledger = opened(spec)
    alone = spec.with_(arms={"slow": spec.arms["slow"]})
    run(StudySearcher(alone, ledger))
    assert run(StudySearcher(spec, ledger)) == ["fast-000", "fast-001"]


def test_arms_draw_different_points(tmp_path: Path, opened: Open) -> None:
    spec = spec_of(tmp_path, search=search(5), replication=NO_REPLICATION)
    ledger = opened(spec)
    run(StudySearcher(spec, ledger))
    assert len({point[LEARNING_RATE] for point in points(ledger, spec)}) == 10


@both_samplers
def test_another_seed_draws_other_points(tmp_path: Path, opened: Open, sampler: dict[str, Any]) -> None:
    drawn = []
    for seed in (0, 1):
        spec = one_arm(tmp_path / str(seed), {LEARNING_RATE: RATE}, 5, search=search(5, sampler, seed))
        ledger = opened(spec)
        run(StudySearcher(spec, ledger))
        drawn += [point[LEARNING_RATE] for point in points(ledger, spec)]
    assert len(set(drawn)) == 10


@both_samplers
@pytest.mark.parametrize("done", [1, 4, 9])
def test_a_restart_proposes_what_would_have_been_proposed(
    tmp_path: Path, opened: Open, sampler: dict[str, Any], done: int
) -> None:
    space = {LEARNING_RATE: RATE, f"{OPTIMISER}.weight_decay": {"kind": "uniform", "low": 0.0, "high": 0.1}}
    spec = one_arm(tmp_path / "first", space, 12, search=search(12, sampler), replication={"top": 2, "seeds": 2})
    ledger = opened(spec)
    searcher = StudySearcher(spec, ledger)
    run(searcher, at_most=done)
    restarted = restarted_in(tmp_path / "second", ledger, spec, opened)
    assert run(searcher) == run(restarted) != []
    assert points(restarted.ledger, spec) == points(ledger, spec)


@both_samplers
def test_a_restart_with_trials_in_flight_goes_on_as_before(
    tmp_path: Path, opened: Open, sampler: dict[str, Any]
) -> None:
    spec = one_arm(tmp_path / "first", {LEARNING_RATE: RATE}, 12, search=search(12, sampler))
    ledger = opened(spec)
    searcher = StudySearcher(spec, ledger)
    run(searcher, at_most=5)
    in_flight = [take(searcher), take(searcher)]
    restarted = restarted_in(tmp_path / "second", ledger, spec, opened)
    assert [take(restarted), take(restarted)] == in_flight
    assert take(restarted) == take(searcher)
    assert points(restarted.ledger, spec) == points(ledger, spec)


def test_unfinished_trials_of_an_earlier_run_come_first_unchanged(tmp_path: Path, opened: Open) -> None:
    spec = spec_of(tmp_path, search=search(3), replication=NO_REPLICATION)
    ledger = opened(spec)
    earlier = StudySearcher(spec, ledger)
    before = [earlier.suggest("a") for _ in range(3)]
    rows = ledger.trials(spec.study)
    finish(ledger, spec, "fast-000", 0.5)
    later = StudySearcher(spec, ledger)
    assert [later.suggest("b"), later.suggest("c")] == [before[0], before[2]]
    assert [t for t in ledger.trials(spec.study) if t.status == "unfinished"] == [rows[0], rows[2]]
    assert take(later) == "fast-001"


def test_the_ledger_has_a_trial_before_it_is_handed_out(tmp_path: Path, opened: Open) -> None:
    spec = spec_of(tmp_path, search=search(1), replication=NO_REPLICATION)
    ledger = opened(spec)
    proposal = StudySearcher(spec, ledger).suggest("tune's id")
    assert isinstance(proposal, dict)
    (trial,) = ledger.trials(spec.study)
    assert (trial.trial, trial.config) == (proposal["trial"], proposal["config"])
    assert (trial.arm, trial.number, trial.origin, trial.status) == ("slow", 0, "search", "unfinished")
    assert [stage["kind"] for stage in ledger.trial_stages(spec.study, trial.trial)] == ["supervised"]


def test_the_configuration_is_the_arm_at_the_point(tmp_path: Path, opened: Open) -> None:
    spec = spec_of(tmp_path, search=search(1), replication=NO_REPLICATION)
    ledger = opened(spec)
    run(StudySearcher(spec, ledger))
    slow, fast = ledger.trials(spec.study)
    assert slow.config["regime"]["train"]["learning_rate"] == slow.point[LEARNING_RATE]
    assert slow.config["regime"]["train"]["augment_speed"] is True
    assert fast.config["regime"]["train"]["augment_speed"] is False


def test_nothing_is_proposed_while_the_last_trials_run(tmp_path: Path, opened: Open) -> None:
    spec = spec_of(tmp_path, search=search(1), replication=NO_REPLICATION)
    ledger = opened(spec)
    searcher = StudySearcher(spec, ledger)
    slow, fast = take(searcher), take(searcher)
    assert searcher.suggest("a") is None
    finish(ledger, spec, slow, 0.5)
    assert searcher.suggest("a") is None
    ledger.end_trial(spec.study, fast, "failed")
    assert searcher.suggest("a") == Searcher.FINISHED
    assert len(ledger.trials(spec.study)) == 2


@both_samplers
def test_a_failed_trial_counts_as_done(tmp_path: Path, opened: Open, sampler: dict[str, Any]) -> None:
    spec = one_arm(tmp_path, {LEARNING_RATE: RATE}, 6, search=search(6, sampler))
    ledger = opened(spec)
    searcher = StudySearcher(spec, ledger)
    for _ in range(3):
        ledger.end_trial(spec.study, take(searcher), "failed", "diverged")
    assert run(searcher) == ["arm-003", "arm-004", "arm-005"]


def test_a_failed_trial_is_never_replicated(tmp_path: Path, opened: Open) -> None:
    spec = one_arm(tmp_path, {LEARNING_RATE: RATE}, 3, replication={"top": 3, "seeds": 1})
    ledger = opened(spec)
    searcher = StudySearcher(spec, ledger)
    failed = take(searcher)
    last = ledger.trial_stages(spec.study, failed)[-1]
    ledger.append(last["stage"], [report(10, dev_cer=0.0)])  # it was the best by far when it failed
    ledger.end_trial(spec.study, failed, "failed")
    assert sorted(run(searcher)) == ["arm-001", "arm-001-seed1", "arm-002", "arm-002-seed1"]


def test_an_arm_whose_trials_all_failed_has_no_replications(tmp_path: Path, opened: Open) -> None:
    spec = one_arm(tmp_path, {LEARNING_RATE: RATE}, 2, replication={"top": 1, "seeds": 3})
    ledger = opened(spec)
    searcher = StudySearcher(spec, ledger)
    for _ in range(2):
        ledger.end_trial(spec.study, take(searcher), "failed")
    assert searcher.suggest("a") == Searcher.FINISHED


def test_what_a_failed_trial_reported_does_not_steer_the_search(tmp_path: Path, opened: Open) -> None:
    proposed = []
    for cer in (None, 0.0, 9.0):
        spec = one_arm(tmp_path / str(cer), {LEARNING_RATE: RATE}, 12, search=search(12, TPE))
        ledger = opened(spec)
        searcher = StudySearcher(spec, ledger)
        run(searcher, at_most=5)
        failed = take(searcher)
        if cer is not None:
            last = ledger.trial_stages(spec.study, failed)[-1]
            ledger.append(last["stage"], [report(10, dev_cer=cer)])
        ledger.end_trial(spec.study, failed, "failed")
        run(searcher)
        proposed.append(points(ledger, spec))
    assert proposed[0] == proposed[1] == proposed[2]
    assert len(proposed[0]) == 12


def test_replication_waits_until_the_search_of_the_arm_is_over(tmp_path: Path, opened: Open) -> None:
    spec = one_arm(tmp_path, {LEARNING_RATE: RATE}, 2, replication={"top": 1, "seeds": 1})
    ledger = opened(spec)
    searcher = StudySearcher(spec, ledger)
    first, second = take(searcher), take(searcher)
    finish(ledger, spec, first, 0.5)
    assert searcher.suggest("a") is None
    finish(ledger, spec, second, 0.1)
    assert take(searcher) == f"{second}-seed1"


def test_an_arm_is_replicated_while_another_is_still_searched(tmp_path: Path, opened: Open) -> None:
    spec = spec_of(tmp_path, search=search(1), replication={"top": 1, "seeds": 1})
    ledger = opened(spec)
    searcher = StudySearcher(spec, ledger)
    take(searcher)
    finish(ledger, spec, take(searcher), 0.5)
    assert take(searcher) == "fast-000-seed1"
    assert searcher.suggest("a") is None


def test_the_best_are_replicated_at_their_point_with_the_next_seeds(tmp_path: Path, opened: Open) -> None:
    arms = {"arm": {"trial": {**supervised(), "seed": 10}, "space": {LEARNING_RATE: RATE}}}
    spec = one_arm(tmp_path, {}, 6, arms=arms, search=search(6), replication={"top": 2, "seeds": 3})
    ledger = opened(spec)
    names = run(StudySearcher(spec, ledger))
    searched = [t for t in ledger.trials(spec.study) if t.origin == "search"]
    best = sorted(searched, key=lambda t: bowl(t.point))[:2]
    assert names[6:] == [f"{t.trial}-seed{seed}" for t in best for seed in (11, 12, 13)]
    for original in best:
        for seed in (11, 12, 13):
            found = trial_of(ledger, spec, f"{original.trial}-seed{seed}")
            assert (found.origin, found.seed, found.point) == ("replication", seed, original.point)
            assert found.config == {**original.config, "seed": seed}


def test_a_lucky_replication_is_not_replicated_itself(tmp_path: Path, opened: Open) -> None:
    spec = one_arm(tmp_path, {LEARNING_RATE: RATE}, 2, replication={"top": 1, "seeds": 2})
    ledger = opened(spec)
    searcher = StudySearcher(spec, ledger)
    run(searcher, at_most=2)
    finish(ledger, spec, take(searcher), -1.0)
    assert len(run(searcher)) == 1


def test_each_combination_of_a_grid_gets_the_same_number_of_samples(tmp_path: Path, opened: Open) -> None:
    gru_layers = {"kind": "grid", "choices": [1, 2, 3]}
    spec = one_arm(tmp_path, {CNN_LAYERS: GRID, GRU_LAYERS: gru_layers, LEARNING_RATE: RATE}, 4)
    ledger = opened(spec)
    assert len(run(StudySearcher(spec, ledger))) == 24
    trials = ledger.trials(spec.study)
    combinations = Counter((t.point[CNN_LAYERS], t.point[GRU_LAYERS]) for t in trials)
    assert combinations == {(cnn, gru): 4 for cnn in (1, 2) for gru in (1, 2, 3)}
    assert len({t.point[LEARNING_RATE] for t in trials}) == 24
    assert all(t.grid == {CNN_LAYERS: t.point[CNN_LAYERS], GRU_LAYERS: t.point[GRU_LAYERS]} for t in trials)
    assert all(t.config["model"]["cnn_layers"] == t.point[CNN_LAYERS] for t in trials)


def test_results_of_one_combination_do_not_steer_another(tmp_path: Path, opened: Open) -> None:
    proposed = []
    for best in (-4, 0):  # of the second combination

        def loss(point: dict[str, Any], best: int = best) -> float:
            return bowl(point) if point[CNN_LAYERS] == 1 else abs(math.log10(point[LEARNING_RATE]) - best)

        spec = one_arm(tmp_path / str(best), {CNN_LAYERS: GRID, LEARNING_RATE: RATE}, 12, search=search(12, TPE))
        ledger = opened(spec)
        run(StudySearcher(spec, ledger), loss)
        proposed.append(points(ledger, spec))
    first, second = ([[p for p in found if p[CNN_LAYERS] == layers] for found in proposed] for layers in (1, 2))
    assert first[0] == first[1]
    assert second[0] != second[1]


def test_a_grid_without_sampled_parameters_runs_each_combination_once(tmp_path: Path, opened: Open) -> None:
    spec = one_arm(tmp_path, {CNN_LAYERS: GRID, GRU_LAYERS: GRID}, 5)
    ledger = opened(spec)
    run(StudySearcher(spec, ledger), loss=lambda point: 0.5)
    found = [(point[CNN_LAYERS], point[GRU_LAYERS]) for point in points(ledger, spec)]
    assert sorted(found) == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_an_arm_without_a_space_runs_once(tmp_path: Path, opened: Open) -> None:
    spec = one_arm(tmp_path, {}, 5)
    ledger = opened(spec)
    assert run(StudySearcher(spec, ledger), loss=lambda point: 0.5) == ["arm-000"]
    assert points(ledger, spec) == [{}]


@both_samplers
def test_a_parameter_whose_condition_does_not_hold_is_absent(
    tmp_path: Path, opened: Open, sampler: dict[str, Any]
) -> None:
    decay = f"{OPTIMISER}.weight_decay"
    space = {
        LEARNING_RATE: RATE,
        CNN_LAYERS: {"kind": "categorical", "choices": [1, 2]},
        decay: {"kind": "uniform", "low": 0.02, "high": 0.1, "when": {CNN_LAYERS: [2]}},
    }
    spec = one_arm(tmp_path, space, 15, search=search(15, sampler))
    ledger = opened(spec)
    run(StudySearcher(spec, ledger))
    trials = ledger.trials(spec.study)
    assert {t.point[CNN_LAYERS] for t in trials} == {1, 2}
    for trial in trials:
        found = trial.config["regime"]["train"]["optimiser"]["weight_decay"]
        if trial.point[CNN_LAYERS] == 2:
            assert found == trial.point[decay] >= 0.02
        else:
            assert decay not in trial.point
            assert found == 0.01  # the default


def test_a_condition_may_depend_on_a_grid(tmp_path: Path, opened: Open) -> None:
    space = {CNN_LAYERS: GRID, LEARNING_RATE: {**RATE, "when": {CNN_LAYERS: [2]}}}
    spec = one_arm(tmp_path, space, 3)
    ledger = opened(spec)
    run(StudySearcher(spec, ledger), loss=lambda point: 0.5)
    found = Counter((point[CNN_LAYERS], LEARNING_RATE in point) for point in points(ledger, spec))
    assert found == {(1, False): 3, (2, True): 3}


@both_samplers
def test_more_trials_asked_for_later_are_additional(tmp_path: Path, opened: Open, sampler: dict[str, Any]) -> None:
    few = one_arm(tmp_path / "grown", {LEARNING_RATE: RATE}, 4, search=search(4, sampler))
    ledger = opened(few)
    run(StudySearcher(few, ledger))
    before = ledger.trials(few.study)
    many = one_arm(tmp_path / "grown", {LEARNING_RATE: RATE}, 7, search=search(7, sampler))
    assert run(StudySearcher(many, ledger)) == ["arm-004", "arm-005", "arm-006"]
    assert ledger.trials(few.study)[:4] == before
    at_once = many.with_(storage=tmp_path / "at once")
    other = opened(at_once)
    run(StudySearcher(at_once, other))
    assert points(other, at_once) == points(ledger, many)


def test_more_samples_of_a_grid_keep_its_combinations_even(tmp_path: Path, opened: Open) -> None:
    for trials in (1, 3):
        spec = one_arm(tmp_path, {CNN_LAYERS: GRID, LEARNING_RATE: RATE}, trials)
        ledger = opened(spec)
        run(StudySearcher(spec, ledger))
        assert Counter(point[CNN_LAYERS] for point in points(ledger, spec)) == {1: trials, 2: trials}


def mean_distance_of_the_last_ten(storage: Path, opened: Open, sampler: dict[str, Any]) -> float:
    """From the best learning rate, in powers of ten, over three searches of thirty trials."""
    distances: list[float] = []
    for seed in range(3):
        spec = one_arm(storage / str(seed), {LEARNING_RATE: RATE}, 30, search=search(30, sampler, seed))
        ledger = opened(spec)
        run(StudySearcher(spec, ledger))
        distances += [math.sqrt(bowl(point)) for point in points(ledger, spec)[-10:]]
    return sum(distances) / len(distances)


def test_tpe_learns_from_results(tmp_path: Path, opened: Open) -> None:
    tpe = mean_distance_of_the_last_ten(tmp_path / "tpe", opened, {"kind": "tpe", "startup_trials": 10})
    random = mean_distance_of_the_last_ten(tmp_path / "random", opened, RANDOM)
    assert tpe < 0.7 * random


def test_values_lie_in_their_intervals_and_on_their_rasters(tmp_path: Path, opened: Open) -> None:
    space = {
        LEARNING_RATE: RATE,
        "model.dropout": {"kind": "uniform", "low": 0.1, "high": 0.3},
        "regime.train.report_every": {"kind": "int", "low": 2, "high": 12, "step": 3},
        "regime.train.augment_speed": {"kind": "categorical", "choices": [True, False]},
    }
    spec = one_arm(tmp_path, space, 30)
    ledger = opened(spec)
    run(StudySearcher(spec, ledger))
    drawn = points(ledger, spec)
    assert all(1e-4 <= point[LEARNING_RATE] <= 1.0 for point in drawn)
    assert all(0.1 <= point["model.dropout"] <= 0.3 for point in drawn)
    assert {point["regime.train.report_every"] for point in drawn} == {2, 5, 8, 11}
    assert {point["regime.train.augment_speed"] for point in drawn} == {True, False}


def test_replication_seeds_are_fresh_even_where_seeds_are_a_grid(tmp_path: Path, opened: Open) -> None:
    """A seed that the search has had would give the same trial again, and no news."""
    spec = one_arm(tmp_path, {"seed": {"kind": "grid", "choices": [0, 1, 2]}}, 5, replication={"top": 1, "seeds": 2})
    ledger = opened(spec)
    run(StudySearcher(spec, ledger), loss=lambda point: 0.2 + point["seed"] / 10)
    seeds = [trial.seed for trial in ledger.trials(spec.study)]
    assert len(seeds) == len(set(seeds)) == 3 + 2


def test_an_unfinished_replication_comes_again_with_its_seed(tmp_path: Path, opened: Open) -> None:
    spec = one_arm(tmp_path, {LEARNING_RATE: RATE}, 1, replication={"top": 1, "seeds": 2})
    ledger = opened(spec)
    earlier = StudySearcher(spec, ledger)
    finish(ledger, spec, take(earlier), 0.3)
    replication = earlier.suggest("a")
    assert StudySearcher(spec, ledger).suggest("b") == replication
    assert [t.origin for t in ledger.trials(spec.study)] == ["search", "replication"]


def test_a_failed_trial_that_is_retried_comes_again_unchanged(tmp_path: Path, opened: Open) -> None:
    spec = one_arm(tmp_path, {LEARNING_RATE: RATE}, 2)
    ledger = opened(spec)
    searcher = StudySearcher(spec, ledger)
    failed = searcher.suggest("a")
    assert isinstance(failed, dict)
    ledger.end_trial(spec.study, failed["trial"], "failed", "the disk is full")
    run(searcher)
    assert StudySearcher(spec, ledger).suggest("b") == Searcher.FINISHED
    ledger.reopen_failed(spec.study)
    assert StudySearcher(spec, ledger).suggest("c") == failed


def test_tune_finds_nothing_to_pickle(tmp_path: Path, opened: Open) -> None:
    """Tune saves its searcher beside its results; an open database or the whole study would go with it."""
    spec = one_arm(tmp_path, {LEARNING_RATE: RATE}, 2)
    searcher = StudySearcher(spec, opened(spec))
    take(searcher)
    assert vars(pickle.loads(pickle.dumps(searcher))) == {}


def test_tpe_draws_at_random_until_it_has_seen_enough(tmp_path: Path, opened: Open) -> None:
    drawn = []
    for startup in (4, 50):
        sampler = {"kind": "tpe", "startup_trials": startup}
        spec = one_arm(tmp_path / str(startup), {LEARNING_RATE: RATE}, 6, search=search(6, sampler))
        ledger = opened(spec)
        run(StudySearcher(spec, ledger))
        drawn.append(points(ledger, spec))
    assert drawn[0][:4] == drawn[1][:4]
    assert drawn[0][4:] != drawn[1][4:]
