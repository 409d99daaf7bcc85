"""What is tried next, and what is stopped. Every proposal and every decision follows from the sweep and the ledger."""

from __future__ import annotations

import itertools
import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from study.constraints import recogniser_parameters
from study.ledger import Evaluation, Ledger, Spent, Status, Trial
from study.plan import make_plan
from study.search import Proposal, Search
from study.spec import StopSpec, StudySpec
from study.stopper import Stopper
from study.stopping import budget_is_spent, search_is_done, seed_noise
from tests.study.builders import LEARNING_RATE, open_study, pretrain_finetune, report, spec_of, supervised
from trainables.trial import stages_of

DECAY = "regime.train.optimiser.weight_decay"
GRU_LAYERS = "model.gru_layers"
GRU_WIDTH = "model.gru_width"
CNN_LAYERS = "model.cnn_layers"
RATE = {"kind": "log_uniform", "low": 1e-4, "high": 1.0}
GRID = {"kind": "grid", "choices": [1, 2]}
WIDTH = {"kind": "int", "low": 16, "high": 256}
NO_REPLICATION = {"top": 1, "seeds": 0}

RANDOM = {"kind": "random"}
TPE = {"kind": "tpe", "startup_trials": 3}
NSGA2 = {"kind": "nsga2", "population": 3}
FOR_ONE_OBJECTIVE: dict[str, dict[str, Any]] = {"cma_es": {"kind": "cma_es", "startup_trials": 2}}
FOR_ANY: dict[str, dict[str, Any]] = {
    "random": RANDOM,
    "quasi_random": {"kind": "quasi_random"},
    "tpe": TPE,
    "tpe_in_groups": {**TPE, "multivariate": True, "group": True},
    "nsga2": NSGA2,
    "nsga3": {"kind": "nsga3", "population": 3},
    "gp": {"kind": "gp", "startup_trials": 3},
}
ALL = FOR_ANY | FOR_ONE_OBJECTIVE

both_samplers = pytest.mark.parametrize("sampler", [TPE, RANDOM], ids=["tpe", "random"])
QUICK = {name: sampler for name, sampler in ALL.items() if name != "gp"}  # that one takes a second for a proposal
all_samplers = pytest.mark.parametrize("sampler", ALL.values(), ids=list(ALL))
quick_samplers = pytest.mark.parametrize("sampler", QUICK.values(), ids=list(QUICK))

Start = Callable[[StudySpec], Search]
Loss = Callable[[dict[str, Any]], float]


@pytest.fixture
def start() -> Iterator[Start]:
    """The search of a sweep, as a process starts it; its ledger is closed after the test."""
    ledgers: list[Ledger] = []

    def started(spec: StudySpec) -> Search:
        ledgers.append(open_study(spec))
        return Search(spec, ledgers[-1])

    yield started
    for ledger in ledgers:
        ledger.close()


def searched(trials: int, sampler: dict[str, Any] = RANDOM, seed: int = 0, **more: Any) -> dict[str, Any]:
    return {"trials": trials, "metric": "dev_cer", "sampler": sampler, "seed": seed, **more}


def one_arm(storage: Path, space: dict[str, Any], trials: int, **changes: Any) -> StudySpec:
    arms = {"arm": {"trial": supervised(), "space": space}}
    return spec_of(storage, **{"arms": arms, "search": searched(trials), "replication": NO_REPLICATION, **changes})


def bowl(point: dict[str, Any]) -> float:
    """Lowest, at zero, where the learning rate is 0.01."""
    return (math.log10(point[LEARNING_RATE]) + 2) ** 2


def trials_of(search: Search) -> list[Trial]:
    return search.ledger.trials(search.spec.study)


def trial_of(search: Search, name: str) -> Trial:
    return search.ledger.trial(search.spec.study, name)


def points(search: Search) -> list[dict[str, Any]]:
    return [trial.point for trial in trials_of(search)]


def relay(search: Search, name: str, step: int, cer: float, hours: float = 1.0) -> None:
    """What the last stage of a trial reports, and the accelerator hours that it took."""
    last = search.ledger.trial_stages(search.spec.study, name)[-1]
    search.ledger.append(last["stage"], [report(step, seconds_a_step=3600 * hours / step, dev_cer=cer)])


def end(search: Search, name: str, status: Status, cause: str | None = None) -> None:
    search.ledger.end_trial(search.spec.study, name, status, cause)
    search.ended(name)


def finish(search: Search, name: str, cer: float) -> None:
    relay(search, name, 40, cer)
    end(search, name, "finished")


def run(search: Search, loss: Loss = bowl, at_most: int = 1000) -> list[str]:
    """Take and finish trials one at a time, until there are no more; their names."""
    names: list[str] = []
    while len(names) < at_most and (proposal := search.propose()):
        names.append(proposal.trial.trial)
        finish(search, names[-1], loss(proposal.trial.point))
    return names


def take(search: Search) -> str:
    """Take a trial, and leave it unfinished."""
    proposal = search.propose()
    assert proposal is not None
    return proposal.trial.trial


def restarted(storage: Path, search: Search, start: Start, **changes: Any) -> Search:
    """The search of a later process, on a copy of the ledger."""
    storage.mkdir()
    with (
        closing(sqlite3.connect(search.ledger.url.removeprefix("sqlite:///"))) as source,
        closing(sqlite3.connect(storage / "ledger.db")) as target,
    ):
        source.backup(target)
    return start(search.spec.with_(storage=storage, **changes))


# ---- the order of trials -----------------------------------------------------------------------------------------


def test_arms_take_turns(tmp_path: Path, start: Start) -> None:
    names = run(start(spec_of(tmp_path, search=searched(3), replication=NO_REPLICATION)))
    assert names == ["slow-000", "fast-000", "slow-001", "fast-001", "slow-002", "fast-002"]


def test_the_arm_that_is_behind_catches_up_first(tmp_path: Path, start: Start) -> None:
    spec = spec_of(tmp_path, search=searched(2), replication=NO_REPLICATION)
    run(start(spec.with_(arms={"slow": spec.arms["slow"]})))
    assert run(start(spec)) == ["fast-000", "fast-001"]


def test_unfinished_trials_of_an_earlier_run_come_first_unchanged(tmp_path: Path, start: Start) -> None:
    spec = spec_of(tmp_path, search=searched(3), replication=NO_REPLICATION)
    earlier = start(spec)
    before = [earlier.propose() for _ in range(3)]
    finish(earlier, "fast-000", 0.5)
    rows = trials_of(earlier)
    later = start(spec)
    assert [seen(later.propose()), seen(later.propose())] == [seen(before[0]), seen(before[2])]
    assert trials_of(later) == rows
    assert take(later) == "fast-001"


def seen(proposal: Proposal | None) -> tuple[object, ...] | None:
    """What a proposal asks for."""
    if proposal is None:
        return None
    trial = proposal.trial
    stages = tuple(stage.fingerprint() for stage in proposal.stages)
    return (trial.trial, trial.point, trial.grid, trial.config, trial.seed, trial.sampler_state or {}, stages)


def test_the_ledger_has_a_trial_before_it_is_handed_out(tmp_path: Path, start: Start) -> None:
    search = start(spec_of(tmp_path, search=searched(1), replication=NO_REPLICATION))
    proposal = search.propose()
    assert proposal is not None
    (trial,) = trials_of(search)
    assert (trial.trial, trial.config) == (proposal.trial.trial, proposal.trial.config)
    assert (trial.arm, trial.number, trial.origin, trial.status) == ("slow", 0, "search", "unfinished")
    recorded = search.ledger.trial_stages(search.spec.study, trial.trial)
    assert [stage["stage"] for stage in recorded] == [stage.fingerprint() for stage in proposal.stages]


def test_the_configuration_is_the_arm_at_the_point(tmp_path: Path, start: Start) -> None:
    search = start(spec_of(tmp_path, search=searched(1), replication=NO_REPLICATION))
    run(search)
    slow, fast = trials_of(search)
    assert slow.config["regime"]["train"]["learning_rate"] == slow.point[LEARNING_RATE]
    assert slow.config["regime"]["train"]["augment_speed"] is True
    assert fast.config["regime"]["train"]["augment_speed"] is False


def test_a_search_is_over_when_its_last_trial_has_ended(tmp_path: Path, start: Start) -> None:
    search = start(spec_of(tmp_path, search=searched(1), replication=NO_REPLICATION))
    slow, fast = take(search), take(search)
    assert search.propose() is None
    assert not search.is_over
    finish(search, slow, 0.5)
    assert search.propose() is None
    assert not search.is_over
    end(search, fast, "failed")
    assert search.propose() is None
    assert search.is_over
    assert len(trials_of(search)) == 2
    again = start(search.spec)
    assert again.propose() is None
    assert again.is_over


def test_more_trials_asked_for_later_are_additional(tmp_path: Path, start: Start) -> None:
    for name, sampler in QUICK.items():
        few = one_arm(tmp_path / name, {LEARNING_RATE: RATE}, 4, search=searched(4, sampler))
        search = start(few)
        run(search)
        before = trials_of(search)
        many = few.with_(search=searched(7, sampler))
        grown = start(many)
        assert run(grown) == ["arm-004", "arm-005", "arm-006"]
        assert trials_of(grown)[:4] == before
        at_once = start(many.with_(storage=tmp_path / f"{name} at once"))
        run(at_once)
        assert points(at_once) == points(grown)


# ---- grids and conditions ----------------------------------------------------------------------------------------


def test_each_combination_of_a_grid_gets_the_same_number_of_samples(tmp_path: Path, start: Start) -> None:
    gru_layers = {"kind": "grid", "choices": [1, 2, 3]}
    search = start(one_arm(tmp_path, {CNN_LAYERS: GRID, GRU_LAYERS: gru_layers, LEARNING_RATE: RATE}, 4))
    assert len(run(search)) == 24
    trials = trials_of(search)
    combinations = Counter((t.point[CNN_LAYERS], t.point[GRU_LAYERS]) for t in trials)
    assert combinations == {(cnn, gru): 4 for cnn in (1, 2) for gru in (1, 2, 3)}
    assert len({t.point[LEARNING_RATE] for t in trials}) == 24
    assert all(t.grid == {CNN_LAYERS: t.point[CNN_LAYERS], GRU_LAYERS: t.point[GRU_LAYERS]} for t in trials)
    assert all(t.config["model"]["cnn_layers"] == t.point[CNN_LAYERS] for t in trials)


def test_results_of_one_combination_do_not_steer_another(tmp_path: Path, start: Start) -> None:
    proposed = []
    for best in (-4, 0):  # of the second combination

        def loss(point: dict[str, Any], best: int = best) -> float:
            return bowl(point) if point[CNN_LAYERS] == 1 else abs(math.log10(point[LEARNING_RATE]) - best)

        space = {CNN_LAYERS: GRID, LEARNING_RATE: RATE}
        search = start(one_arm(tmp_path / str(best), space, 12, search=searched(12, TPE)))
        run(search, loss)
        proposed.append(points(search))
    first, second = ([[p for p in found if p[CNN_LAYERS] == layers] for found in proposed] for layers in (1, 2))
    assert first[0] == first[1]
    assert second[0] != second[1]


def test_a_grid_without_sampled_parameters_runs_each_combination_once(tmp_path: Path, start: Start) -> None:
    search = start(one_arm(tmp_path, {CNN_LAYERS: GRID, GRU_LAYERS: GRID}, 5))
    run(search, loss=lambda point: 0.5)
    found = [(point[CNN_LAYERS], point[GRU_LAYERS]) for point in points(search)]
    assert sorted(found) == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_a_grid_that_is_listed_in_another_order_runs_what_has_not_run(tmp_path: Path, start: Start) -> None:
    space = {CNN_LAYERS: GRID, GRU_LAYERS: GRID, LEARNING_RATE: RATE}
    run(start(one_arm(tmp_path, space, 2)), at_most=3)
    search = start(one_arm(tmp_path, dict(reversed(space.items())), 2))
    assert len(run(search)) == 5
    combinations = Counter((point[CNN_LAYERS], point[GRU_LAYERS]) for point in points(search))
    assert combinations == dict.fromkeys([(1, 1), (1, 2), (2, 1), (2, 2)], 2)


def test_an_arm_without_a_space_runs_once(tmp_path: Path, start: Start) -> None:
    search = start(one_arm(tmp_path, {}, 5))
    assert run(search, loss=lambda point: 0.5) == ["arm-000"]
    assert points(search) == [{}]


def test_more_samples_of_a_grid_keep_its_combinations_even(tmp_path: Path, start: Start) -> None:
    for trials in (1, 3):
        search = start(one_arm(tmp_path, {CNN_LAYERS: GRID, LEARNING_RATE: RATE}, trials))
        run(search)
        assert Counter(point[CNN_LAYERS] for point in points(search)) == {1: trials, 2: trials}


@both_samplers
def test_a_parameter_whose_condition_does_not_hold_is_absent(
    tmp_path: Path, start: Start, sampler: dict[str, Any]
) -> None:
    space = {
        LEARNING_RATE: RATE,
        CNN_LAYERS: {"kind": "categorical", "choices": [1, 2]},
        DECAY: {"kind": "uniform", "low": 0.02, "high": 0.1, "when": {CNN_LAYERS: [2]}},
    }
    search = start(one_arm(tmp_path, space, 15, search=searched(15, sampler)))
    run(search)
    assert {trial.point[CNN_LAYERS] for trial in trials_of(search)} == {1, 2}
    for trial in trials_of(search):
        found = trial.config["regime"]["train"]["optimiser"]["weight_decay"]
        if trial.point[CNN_LAYERS] == 2:
            assert found == trial.point[DECAY] >= 0.02
        else:
            assert DECAY not in trial.point
            assert found == 0.01  # the default


def test_a_condition_may_depend_on_a_grid(tmp_path: Path, start: Start) -> None:
    space = {CNN_LAYERS: GRID, LEARNING_RATE: {**RATE, "when": {CNN_LAYERS: [2]}}}
    search = start(one_arm(tmp_path, space, 3))
    run(search, loss=lambda point: 0.5)
    found = Counter((point[CNN_LAYERS], LEARNING_RATE in point) for point in points(search))
    assert found == {(1, False): 3, (2, True): 3}


@quick_samplers
def test_values_lie_in_their_intervals_and_on_their_rasters(
    tmp_path: Path, start: Start, sampler: dict[str, Any]
) -> None:
    space = {
        LEARNING_RATE: RATE,
        "model.dropout": {"kind": "uniform", "low": 0.1, "high": 0.3},
        "regime.train.report_every": {"kind": "int", "low": 2, "high": 12, "step": 3},
        "regime.train.augment_speed": {"kind": "categorical", "choices": [True, False]},
    }
    search = start(one_arm(tmp_path, space, 12, search=searched(12, sampler)))
    run(search)
    for point in points(search):
        assert 1e-4 <= point[LEARNING_RATE] <= 1.0
        assert 0.1 <= point["model.dropout"] <= 0.3
        assert point["regime.train.report_every"] in {2, 5, 8, 11}
        assert point["regime.train.augment_speed"] in {True, False}


# ---- samplers ----------------------------------------------------------------------------------------------------


def test_arms_draw_different_points(tmp_path: Path, start: Start) -> None:
    search = start(spec_of(tmp_path, search=searched(5), replication=NO_REPLICATION))
    run(search)
    assert len({point[LEARNING_RATE] for point in points(search)}) == 10


@quick_samplers
def test_a_seed_decides_the_points(tmp_path: Path, start: Start, sampler: dict[str, Any]) -> None:
    drawn = []
    for number, seed in enumerate((0, 0, 1)):
        search = start(one_arm(tmp_path / str(number), {LEARNING_RATE: RATE}, 8, search=searched(8, sampler, seed)))
        run(search)
        drawn.append([point[LEARNING_RATE] for point in points(search)])
    assert drawn[0] == drawn[1]
    assert len({*drawn[0], *drawn[2]}) == 16


def mean_distance_of_the_last_ten(storage: Path, start: Start, sampler: dict[str, Any]) -> float:
    """From the best learning rate, in powers of ten, over three searches of thirty trials."""
    distances: list[float] = []
    for seed in range(3):
        search = start(one_arm(storage / str(seed), {LEARNING_RATE: RATE}, 30, search=searched(30, sampler, seed)))
        run(search)
        distances += [math.sqrt(bowl(point)) for point in points(search)[-10:]]
    return sum(distances) / len(distances)


def test_tpe_learns_from_results(tmp_path: Path, start: Start) -> None:
    tpe = mean_distance_of_the_last_ten(tmp_path / "tpe", start, {"kind": "tpe", "startup_trials": 10})
    random = mean_distance_of_the_last_ten(tmp_path / "random", start, RANDOM)
    assert tpe < 0.7 * random


def test_tpe_draws_at_random_until_it_has_seen_enough(tmp_path: Path, start: Start) -> None:
    drawn = []
    for startup in (4, 50):
        sampler = {"kind": "tpe", "startup_trials": startup}
        search = start(one_arm(tmp_path / str(startup), {LEARNING_RATE: RATE}, 6, search=searched(6, sampler)))
        run(search)
        drawn.append(points(search))
    assert drawn[0][:4] == drawn[1][:4]
    assert drawn[0][4:] != drawn[1][4:]


def test_a_quasi_random_sequence_is_more_even_than_independent_draws(tmp_path: Path, start: Start) -> None:
    """Of 17 points the first is independent; the others fill 16 equal parts of the interval better."""
    filled = {}
    for name in ("random", "quasi_random"):
        search = start(one_arm(tmp_path / name, {LEARNING_RATE: RATE}, 17, search=searched(17, {"kind": name})))
        run(search)
        parts = {math.floor((math.log10(point[LEARNING_RATE]) + 4) * 4) for point in points(search)[1:]}
        filled[name] = len(parts)
    assert filled["quasi_random"] >= 15 > filled["random"]


def test_two_objectives_are_searched_together(tmp_path: Path, start: Start) -> None:
    """A wider layer costs more and does not help: the trials that come last are narrower than those that came first."""
    space = {LEARNING_RATE: RATE, GRU_WIDTH: WIDTH}
    search = start(one_arm(tmp_path, space, 40, search=searched(40, NSGA2, also_minimise=["accelerator_hours"])))
    while proposal := search.propose():
        point = proposal.trial.point
        relay(search, proposal.trial.trial, 40, bowl(point), hours=point[GRU_WIDTH])
        end(search, proposal.trial.trial, "finished")
    widths = [point[GRU_WIDTH] for point in points(search)]
    assert np.mean(widths[-15:]) < np.mean(widths[:15])


# ---- how trials end ----------------------------------------------------------------------------------------------


@both_samplers
def test_a_failed_trial_counts_as_done(tmp_path: Path, start: Start, sampler: dict[str, Any]) -> None:
    search = start(one_arm(tmp_path, {LEARNING_RATE: RATE}, 6, search=searched(6, sampler)))
    for _ in range(3):
        end(search, take(search), "failed", "diverged")
    assert run(search) == ["arm-003", "arm-004", "arm-005"]


@pytest.mark.parametrize("status", ["failed", "stopped"])
def test_what_did_not_finish_is_never_replicated(tmp_path: Path, start: Start, status: Status) -> None:
    search = start(one_arm(tmp_path, {LEARNING_RATE: RATE}, 3, replication={"top": 3, "seeds": 1}))
    first = take(search)
    relay(search, first, 10, 0.0)  # it was the best by far
    end(search, first, status)
    assert sorted(run(search)) == ["arm-001", "arm-001-seed1", "arm-002", "arm-002-seed1"]


def test_an_arm_whose_trials_all_failed_has_no_replications(tmp_path: Path, start: Start) -> None:
    search = start(one_arm(tmp_path, {LEARNING_RATE: RATE}, 2, replication={"top": 1, "seeds": 3}))
    for _ in range(2):
        end(search, take(search), "failed")
    assert search.propose() is None
    assert search.is_over


def test_what_a_failed_trial_reported_does_not_steer_the_search(tmp_path: Path, start: Start) -> None:
    proposed = []
    for cer in (None, 0.0, 9.0):
        search = start(one_arm(tmp_path / str(cer), {LEARNING_RATE: RATE}, 12, search=searched(12, TPE)))
        run(search, at_most=5)
        failed = take(search)
        if cer is not None:
            relay(search, failed, 10, cer)
        end(search, failed, "failed")
        run(search)
        proposed.append(points(search))
    assert proposed[0] == proposed[1] == proposed[2]
    assert len(proposed[0]) == 12


def test_how_far_a_stopped_trial_came_steers_the_search(tmp_path: Path, start: Start) -> None:
    proposed = []
    for cer in (0.0, 9.0):
        search = start(one_arm(tmp_path / str(cer), {LEARNING_RATE: RATE}, 12, search=searched(12, TPE)))
        for _ in range(5):
            stopped = take(search)
            relay(search, stopped, 10, bowl(trial_of(search, stopped).point) * (1 if cer else -1))
            end(search, stopped, "stopped")
        run(search)
        proposed.append(points(search))
    assert proposed[0][:3] == proposed[1][:3]
    assert proposed[0][5:] != proposed[1][5:]


def test_a_failed_trial_that_is_retried_comes_again_unchanged(tmp_path: Path, start: Start) -> None:
    search = start(one_arm(tmp_path, {LEARNING_RATE: RATE}, 2))
    failed = search.propose()
    assert failed is not None
    end(search, failed.trial.trial, "failed", "the disk is full")
    run(search)
    assert start(search.spec).propose() is None
    search.ledger.reopen_failed(search.spec.study)
    assert seen(start(search.spec).propose()) == seen(failed)


# ---- replications ------------------------------------------------------------------------------------------------


def test_replication_waits_until_the_search_of_the_arm_is_over(tmp_path: Path, start: Start) -> None:
    search = start(one_arm(tmp_path, {LEARNING_RATE: RATE}, 2, replication={"top": 1, "seeds": 1}))
    first, second = take(search), take(search)
    finish(search, first, 0.5)
    assert search.propose() is None
    finish(search, second, 0.1)
    assert take(search) == f"{second}-seed1"


def test_an_arm_is_replicated_while_another_is_still_searched(tmp_path: Path, start: Start) -> None:
    search = start(spec_of(tmp_path, search=searched(1), replication={"top": 1, "seeds": 1}))
    take(search)
    finish(search, take(search), 0.5)
    assert take(search) == "fast-000-seed1"
    assert search.propose() is None


def test_the_best_are_replicated_at_their_point_with_the_next_seeds(tmp_path: Path, start: Start) -> None:
    arms = {"arm": {"trial": {**supervised(), "seed": 10}, "space": {LEARNING_RATE: RATE}}}
    search = start(one_arm(tmp_path, {}, 6, arms=arms, search=searched(6), replication={"top": 2, "seeds": 3}))
    names = run(search)
    best = sorted((t for t in trials_of(search) if t.origin == "search"), key=lambda t: bowl(t.point))[:2]
    assert names[6:] == [f"{t.trial}-seed{seed}" for t in best for seed in (11, 12, 13)]
    for original in best:
        for seed in (11, 12, 13):
            found = trial_of(search, f"{original.trial}-seed{seed}")
            assert (found.origin, found.seed, found.point) == ("replication", seed, original.point)
            assert found.config == {**original.config, "seed": seed}


def test_a_lucky_replication_is_not_replicated_itself(tmp_path: Path, start: Start) -> None:
    search = start(one_arm(tmp_path, {LEARNING_RATE: RATE}, 2, replication={"top": 1, "seeds": 2}))
    run(search, at_most=2)
    finish(search, take(search), -1.0)
    assert len(run(search)) == 1


def test_replication_seeds_are_fresh_even_where_seeds_are_a_grid(tmp_path: Path, start: Start) -> None:
    """A seed that the search has had would give the same trial again, and no news."""
    space = {"seed": {"kind": "grid", "choices": [0, 1, 2]}}
    search = start(one_arm(tmp_path, space, 5, replication={"top": 1, "seeds": 2}))
    run(search, loss=lambda point: 0.2 + point.get("seed", 0) / 10)
    seeds = [trial.seed for trial in trials_of(search)]
    assert len(seeds) == len(set(seeds)) == 3 + 2


def test_two_seeds_of_one_configuration_are_one_of_the_best(tmp_path: Path, start: Start) -> None:
    space = {LEARNING_RATE: {"kind": "grid", "choices": [1e-2, 1e-3]}, "seed": {"kind": "grid", "choices": [0, 1]}}
    search = start(one_arm(tmp_path, space, 1, replication={"top": 2, "seeds": 2}))
    run(search)
    rates = [trial.point[LEARNING_RATE] for trial in trials_of(search) if trial.origin == "replication"]
    assert rates == [1e-2, 1e-2, 1e-3, 1e-3]


def test_an_unfinished_replication_comes_again_with_its_seed(tmp_path: Path, start: Start) -> None:
    earlier = start(one_arm(tmp_path, {LEARNING_RATE: RATE}, 1, replication={"top": 1, "seeds": 2}))
    finish(earlier, take(earlier), 0.3)
    replication = earlier.propose()
    later = start(earlier.spec)
    assert seen(later.propose()) == seen(replication)
    assert [trial.origin for trial in trials_of(later)] == ["search", "replication"]


# ---- restarts ----------------------------------------------------------------------------------------------------

CONDITIONAL = {
    LEARNING_RATE: RATE,
    GRU_WIDTH: WIDTH,
    GRU_LAYERS: {"kind": "categorical", "choices": [1, 2]},
    DECAY: {"kind": "uniform", "low": 0.02, "high": 0.1, "when": {GRU_LAYERS: [2]}},
    CNN_LAYERS: GRID,
}


def end_somehow(search: Search, name: str, random: Random) -> None:
    status: Status = random.choice(["finished", "finished", "finished", "failed", "stopped"])
    step = 40 if status == "finished" else random.choice([10, 20])
    if status != "failed":
        relay(search, name, step, random.random(), hours=random.random())
    end(search, name, status)


def propose_like_rebuilt_ones(storage: Path, live: Search, start: Start) -> int:
    """Run a search to its end, up to three trials at a time. Before each proposal a search is built again from a copy
    of the ledger, and must hand out what is running and then propose the same. Returns the number of proposals."""
    running: list[str] = []
    events = Random(0)
    for number in itertools.count():
        rebuilt = restarted(storage / f"copy{number}", live, start)
        assert sorted(take(rebuilt) for _ in running) == sorted(running)
        proposal = live.propose()
        assert seen(rebuilt.propose()) == seen(proposal)
        if proposal:
            running.append(proposal.trial.trial)
        elif not running:
            assert live.is_over
            assert rebuilt.is_over
            break
        if proposal is None or len(running) >= events.randint(1, 3):
            end_somehow(live, running.pop(events.randrange(len(running))), events)
    return len(trials_of(live))


@all_samplers
def test_a_rebuilt_search_proposes_what_the_live_one_proposes(
    tmp_path: Path, start: Start, sampler: dict[str, Any]
) -> None:
    trials = 6 if sampler["kind"] == "gp" else 12
    settings = searched(trials, sampler)
    spec = one_arm(tmp_path / "live", CONDITIONAL, trials, search=settings, replication={"top": 2, "seeds": 2})
    assert propose_like_rebuilt_ones(tmp_path, start(spec), start) == 2 * trials + 4


@pytest.mark.parametrize(
    "sampler",
    [pytest.param(FOR_ANY[name], marks=[] if name == "tpe" else pytest.mark.long, id=name) for name in FOR_ANY],
)
def test_a_rebuilt_search_of_two_objectives_proposes_what_the_live_one_proposes(
    tmp_path: Path, start: Start, sampler: dict[str, Any]
) -> None:
    trials = 6 if sampler["kind"] == "gp" else 12
    settings = searched(trials, sampler, also_minimise=["accelerator_hours"])
    spec = one_arm(tmp_path / "live", CONDITIONAL, trials, search=settings)
    assert propose_like_rebuilt_ones(tmp_path, start(spec), start) == 2 * trials


@quick_samplers
def test_a_rebuilt_search_with_rejections_proposes_what_the_live_one_proposes(
    tmp_path: Path, start: Start, sampler: dict[str, Any]
) -> None:
    """In a space of numbers alone, which is what CMA-ES is for."""
    space = {LEARNING_RATE: RATE, GRU_WIDTH: WIDTH}
    trials = 16
    constraints = {"parameters": parameters_of({GRU_WIDTH: 80}, tmp_path)}
    spec = one_arm(tmp_path / "live", space, trials, search=searched(trials, sampler, constraints=constraints))
    live = start(spec)
    assert propose_like_rebuilt_ones(tmp_path, live, start) == trials
    assert all(point[GRU_WIDTH] <= 80 for point in points(live))
    assert sum(len((trial.sampler_state or {}).get("rejected", ())) for trial in trials_of(live)) > 3


def test_the_clock_of_the_machine_may_be_set_back_between_trials(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(1e9, -1.0)
    monkeypatch.setattr("study.ledger.time.time", lambda: next(clock))
    spec = one_arm(tmp_path / "live", {LEARNING_RATE: RATE, GRU_WIDTH: WIDTH}, 8, search=searched(8, TPE))
    live = start(spec)
    run(live, at_most=6)
    rebuilt = restarted(tmp_path / "copy", live, start)
    assert [seen(rebuilt.propose()) for _ in range(2)] == [seen(live.propose()) for _ in range(2)]


# ---- given values ------------------------------------------------------------------------------------------------


def with_first(storage: Path, try_first: list[dict[str, Any]], trials: int = 4, **changes: Any) -> StudySpec:
    space = {CNN_LAYERS: GRID, LEARNING_RATE: RATE, GRU_WIDTH: WIDTH}
    arms = {"arm": {"trial": supervised(), "space": space, "try_first": try_first}}
    return one_arm(storage, {}, trials, arms=arms, **changes)


@quick_samplers
def test_given_values_come_first_for_each_combination_of_the_grid(
    tmp_path: Path, start: Start, sampler: dict[str, Any]
) -> None:
    given = [{LEARNING_RATE: 0.01, GRU_WIDTH: 32}, {LEARNING_RATE: 0.02, GRU_WIDTH: 48}]
    search = start(with_first(tmp_path / "live", given, search=searched(4, sampler)))
    assert propose_like_rebuilt_ones(tmp_path, search, start) == 8
    tried = points(search)
    assert tried[:4] == [{CNN_LAYERS: layers, **point} for point in given for layers in (1, 2)]
    assert not any(point[GRU_WIDTH] in (32, 48) and point[LEARNING_RATE] in (0.01, 0.02) for point in tried[4:])


def test_values_that_are_not_given_are_drawn(tmp_path: Path, start: Start) -> None:
    search = start(with_first(tmp_path, [{LEARNING_RATE: 0.01}]))
    run(search)
    first, second, *others = points(search)
    assert first[LEARNING_RATE] == second[LEARNING_RATE] == 0.01
    assert first[GRU_WIDTH] != second[GRU_WIDTH]
    assert all(16 <= point[GRU_WIDTH] <= 256 for point in (first, second))
    assert 0.01 not in {point[LEARNING_RATE] for point in others}


def test_given_values_beyond_a_constraint_fail_with_the_cause(tmp_path: Path, start: Start) -> None:
    constraints = {"parameters": parameters_of({GRU_WIDTH: 80, CNN_LAYERS: 2}, tmp_path)}
    search = start(with_first(tmp_path, [{GRU_WIDTH: 200}], search=searched(4, constraints=constraints)))
    run(search)
    refused = [trial for trial in trials_of(search) if trial.status == "failed"]
    assert [trial.trial for trial in refused] == ["arm-000", "arm-001"]
    assert all("parameters, and search.constraints allows" in (trial.cause or "") for trial in refused)


# ---- constraints -------------------------------------------------------------------------------------------------


def parameters_of(point: dict[str, Any], storage: Path) -> int:
    return recogniser_parameters(stages_of(one_arm(storage, {}, 1).trial_config("arm", point)))


@quick_samplers
def test_nothing_above_a_constraint_is_proposed(tmp_path: Path, start: Start, sampler: dict[str, Any]) -> None:
    limit = parameters_of({GRU_WIDTH: 60}, tmp_path)
    settings = searched(8, sampler, constraints={"parameters": limit})
    search = start(one_arm(tmp_path, {LEARNING_RATE: RATE, GRU_WIDTH: WIDTH}, 8, search=settings))
    assert len(run(search)) == 8
    assert all(parameters_of(point, tmp_path) <= limit for point in points(search))
    assert {trial.status for trial in trials_of(search)} == {"finished"}


def test_a_grid_leaves_out_what_is_above_a_constraint(tmp_path: Path, start: Start) -> None:
    space = {GRU_WIDTH: {"kind": "grid", "choices": [32, 64, 128, 256]}}
    constraints = {"parameters": parameters_of({GRU_WIDTH: 64}, tmp_path)}
    search = start(one_arm(tmp_path, space, 1, search=searched(1, constraints=constraints)))
    assert make_plan(search.spec).trials == 2
    run(search, loss=lambda point: 0.5)
    assert points(search) == [{GRU_WIDTH: 32}, {GRU_WIDTH: 64}]


def test_constraints_that_nothing_meets_end_the_trials_as_failed_with_the_cause(tmp_path: Path, start: Start) -> None:
    settings = searched(2, constraints={"flops_per_second": 1.0})
    search = start(one_arm(tmp_path, {LEARNING_RATE: RATE}, 2, search=settings))
    assert search.propose() is None
    assert search.is_over
    assert [trial.status for trial in trials_of(search)] == ["failed", "failed"]
    assert all("operations a second of audio" in (trial.cause or "") for trial in trials_of(search))


# ---- trials that are equal ---------------------------------------------------------------------------------------

THREE = {CNN_LAYERS: {"kind": "categorical", "choices": [0, 1, 2]}}


@both_samplers
def test_equal_trials_run_once_and_count_each(tmp_path: Path, start: Start, sampler: dict[str, Any]) -> None:
    search = start(one_arm(tmp_path, THREE, 30, search=searched(30, sampler)))
    assert len(run(search, loss=lambda point: 0.1 + point[CNN_LAYERS] / 10)) == 3
    assert [trial.status for trial in trials_of(search)] == ["finished"] * 30
    for trial in trials_of(search):
        assert search.ledger.final("race", trial.trial)["dev_cer"] == 0.1 + trial.point[CNN_LAYERS] / 10


def test_a_rebuilt_search_with_equal_trials_proposes_what_the_live_one_proposes(tmp_path: Path, start: Start) -> None:
    space = {CNN_LAYERS: {"kind": "int", "low": 0, "high": 9}}
    live = start(one_arm(tmp_path / "live", space, 30, search=searched(30, TPE)))
    while True:
        rebuilt = restarted(tmp_path / f"copy{len(trials_of(live))}", live, start)
        ours, theirs = live.propose(), rebuilt.propose()
        assert seen(ours) == seen(theirs)
        assert [(t.trial, t.point, t.status) for t in trials_of(live)] == [
            (t.trial, t.point, t.status) for t in trials_of(rebuilt)
        ]
        if ours is None:
            break
        finish(live, ours.trial.trial, ours.trial.point[CNN_LAYERS] / 10)
    assert len(trials_of(live)) == 30


def test_copies_end_as_the_trial_that_ended_first(tmp_path: Path, start: Start) -> None:
    one = {CNN_LAYERS: {"kind": "categorical", "choices": [1]}}
    for order in ([0, 1], [1, 0]):
        search = start(one_arm(tmp_path / str(order), one, 4))
        names = [take(search), take(search)]  # both before one of them has ended
        causes = ["the disk is full", "diverged"]
        for index in order:
            end(search, names[index], "failed", causes[index])
        restarted(tmp_path / f"{order} again", search, start).propose()
        assert search.propose() is None
        rebuilt = Ledger.in_folder(tmp_path / f"{order} again")
        expected = [(status, causes[order[0]]) for status in ("failed", "failed")]
        assert [(t.status, t.cause) for t in trials_of(search)[2:]] == expected
        assert [(t.status, t.cause) for t in rebuilt.trials("race")[2:]] == expected


@pytest.mark.parametrize("status", ["stopped", "failed"])
def test_copies_of_what_did_not_finish_do_not_finish(tmp_path: Path, start: Start, status: Status) -> None:
    search = start(one_arm(tmp_path, {CNN_LAYERS: {"kind": "categorical", "choices": [1]}}, 3))
    name = take(search)
    relay(search, name, 10, 0.9)
    end(search, name, status, "not among the best")
    assert search.propose() is None
    assert [(trial.status, trial.cause) for trial in trials_of(search)] == [(status, "not among the best")] * 3


def test_a_replication_is_no_copy_and_equal_configurations_are_replicated_once(tmp_path: Path, start: Start) -> None:
    search = start(one_arm(tmp_path, THREE, 30, replication={"top": 2, "seeds": 2}))
    names = run(search, loss=lambda point: 0.1 + point[CNN_LAYERS] / 10)
    replicated = [trial_of(search, name) for name in names[3:]]
    assert [(t.point[CNN_LAYERS], t.seed) for t in replicated] == [(0, 1), (0, 2), (1, 1), (1, 2)]


# ---- earlier studies ---------------------------------------------------------------------------------------------


def first_proposals(storage: Path, start: Start, earlier: StudySpec | None, *, before: bool = True) -> list[float]:
    """The first learning rates of ten studies that differ in their seed, and may learn from an earlier one."""
    learns = {"warm_start": ["earlier"]} if earlier else {}
    later = [
        one_arm(storage, {LEARNING_RATE: RATE}, 1, study=f"later{seed}", search=searched(1, TPE, seed, **learns))
        for seed in range(10)
    ]
    if earlier and before:
        run(start(earlier))
    searches = [start(spec) for spec in later]
    if earlier and not before:
        run(start(earlier))
    rebuilt = [seen(start(spec.with_(storage=storage)).propose()) for spec in later]
    assert [seen(search.propose()) for search in searches] == rebuilt
    return [point[LEARNING_RATE] for search in searches for point in points(search)]


def earlier_study(storage: Path, arm: str = "arm", low: float = 1e-4) -> StudySpec:
    """Its best learning rate is 0.01."""
    space = {LEARNING_RATE: {**RATE, "low": low, "high": low * 1e4}}
    arms = {arm: {"trial": supervised(), "space": space}}
    return one_arm(storage, {}, 20, study="earlier", arms=arms, search=searched(20, TPE))


def mean_loss(rates: Sequence[float]) -> float:
    return float(np.mean([bowl({LEARNING_RATE: rate}) for rate in rates]))


def test_trials_of_an_earlier_study_move_the_first_proposals(tmp_path: Path, start: Start) -> None:
    cold = first_proposals(tmp_path / "cold", start, None)
    warm = first_proposals(tmp_path / "warm", start, earlier_study(tmp_path / "warm"))
    assert not set(cold) & set(warm)
    assert mean_loss(warm) < 0.5 * mean_loss(cold)


@pytest.mark.parametrize("other", [{"arm": "other"}, {"low": 1e-9}], ids=["arm", "space"])
def test_trials_of_other_arms_and_beyond_the_space_do_not(tmp_path: Path, start: Start, other: dict[str, Any]) -> None:
    cold = first_proposals(tmp_path / "cold", start, None)
    assert first_proposals(tmp_path / "warm", start, earlier_study(tmp_path / "warm", **other)) == cold


def test_trials_that_ended_after_a_study_began_do_not_move_its_proposals(tmp_path: Path, start: Start) -> None:
    """Or else a restart would propose other values."""
    cold = first_proposals(tmp_path / "cold", start, None)
    assert first_proposals(tmp_path / "warm", start, earlier_study(tmp_path / "warm"), before=False) == cold


# ---- when to stop searching --------------------------------------------------------------------------------------


def test_the_search_of_an_arm_ends_at_its_target(tmp_path: Path, start: Start) -> None:
    spec = spec_of(tmp_path, search=searched(6), stop={"target": 0.2}, replication={"top": 1, "seeds": 1})
    search = start(spec)
    for _ in range(2):
        finish(search, take(search), 0.5)
        finish(search, take(search), 0.5)
    running = [take(search), take(search)]
    assert running == ["slow-002", "fast-002"]
    finish(search, "slow-002", 0.2)
    assert search.reason_to_stop("slow") == "a trial reached 20.0%, and stop.target is 20.0%"
    assert search.reason_to_stop("fast") is None
    rebuilt = restarted(tmp_path / "copy", search, start)
    assert take(rebuilt) == "fast-002"
    for each in (search, rebuilt):
        assert take(each) == "fast-003"
        assert take(each) == "fast-004"
        assert take(each) == "fast-005"
        assert take(each) == "slow-002-seed1"
        assert each.propose() is None


def test_the_search_of_an_arm_ends_when_nothing_gets_better(tmp_path: Path, start: Start) -> None:
    stop = {"no_improvement": {"trials": 3, "noise": 0.01}}
    search = start(one_arm(tmp_path / "live", {LEARNING_RATE: RATE}, 20, stop=stop))
    values = iter([0.9, 0.8, 0.5, 0.7, 0.495, 0.6, 0.1])
    names = run(search, loss=lambda point: next(values))
    assert len(names) == 6
    assert search.reason_to_stop("arm") == "the last 3 trials brought nothing beyond the noise of 1.00%"
    assert restarted(tmp_path / "copy", search, start).propose() is None


def test_trials_that_were_stopped_early_brought_nothing_either(tmp_path: Path, start: Start) -> None:
    stop = {"no_improvement": {"trials": 3, "noise": 0.01}}
    search = start(one_arm(tmp_path, {LEARNING_RATE: RATE}, 20, stop=stop, early_stopping={"kind": "asha"}))
    finish(search, take(search), 0.5)
    for _ in range(3):
        assert search.reason_to_stop("arm") is None
        name = take(search)
        relay(search, name, 10, 0.9)
        end(search, name, "stopped")
    assert search.reason_to_stop("arm")


def test_a_copy_of_a_trial_tells_nothing_of_the_noise(tmp_path: Path, start: Start) -> None:
    space = {"seed": {"kind": "categorical", "choices": [1, 2]}}
    search = start(one_arm(tmp_path, space, 12, stop={"no_improvement": {"trials": 50}}))
    assert len(run(search, loss=lambda point: 0.4 + point["seed"] / 10)) == 2
    assert len(trials_of(search)) == 12
    assert search.noise() == pytest.approx(seed_noise([[0.5, 0.6]]))


def test_noise_is_that_of_seeds_of_one_configuration(tmp_path: Path, start: Start) -> None:
    """Two configurations far apart; the seeds of each differ by 0.04."""
    space = {CNN_LAYERS: GRID, "seed": {"kind": "int", "low": 0, "high": 1_000_000}}
    search = start(one_arm(tmp_path, space, 20, stop={"no_improvement": {"trials": 2}}))
    values = iter([0.50, 0.90, 0.46, 0.94])
    assert len(run(search, loss=lambda point: next(values), at_most=3)) == 3
    assert search.reason_to_stop("arm") is None  # the third was better by more than the noise of 2.83%
    finish(search, take(search), next(values))
    assert search.reason_to_stop("arm") is None
    again = restarted(tmp_path / "copy", search, start)
    for each in (search, again):
        finish(each, take(each), 0.47)
        noise = seed_noise([[0.50, 0.46, 0.47], [0.90, 0.94]])
        assert each.reason_to_stop("arm") == f"the last 2 trials brought nothing beyond the noise of {noise:.2%}"
        assert each.propose() is None


def test_noise_is_pooled_over_configurations() -> None:
    assert seed_noise([]) == seed_noise([[0.1], [0.9]]) == 0.0
    groups = [[0.1, 0.3], [0.5, 0.5, 0.8], [0.9]]
    deviations = [np.array(group) - np.mean(group) for group in groups]
    squares = sum(float(np.sum(deviation**2)) for deviation in deviations)
    assert seed_noise(groups) == pytest.approx(math.sqrt(squares / (1 + 2 + 0)))


@pytest.mark.parametrize(
    ("values", "done"),
    [
        ([], False),
        ([0.5, 0.5], False),  # as many as the patience: there is nothing that they could be better than
        ([0.5, 0.5, 0.5], True),
        ([0.5, 0.5, 0.44], False),
        ([0.5, 0.5, 0.46], True),  # better, but not beyond the noise
        ([0.5, 0.3, 0.5], False),
        ([0.3, 0.5, 0.5], True),
    ],
)
def test_patience(values: Sequence[float], done: bool) -> None:
    stop = StopSpec.model_validate({"no_improvement": {"trials": 2, "noise": 0.05}})
    assert (search_is_done(stop, values, 0.05) is not None) == done


def test_budgets_count_over_all_runs_of_a_study(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    with closing(open_study(spec)) as ledger:
        other = ledger.open_study("other", {}, {})
        ledger.set_spent(other, 1e9, 1e9)
        for hours, cost in ((1.0, 10.0), (2.0, 5.0)):
            run_name = ledger.open_study(spec.study, {}, {})
            ledger.set_spent(run_name, 1.0, 1.0)  # the last word of a run counts
            ledger.set_spent(run_name, hours * 3600, cost)
        spent = ledger.spent(spec.study)
    assert (spent.accelerator_seconds, spent.cost) == (3 * 3600, 15.0)
    assert 0 < spent.wall_seconds < 60
    assert budget_is_spent(StopSpec(), spent) is None
    assert budget_is_spent(StopSpec(accelerator_hours=3.01, cost=15.01, wall_hours=1), spent) is None
    assert budget_is_spent(StopSpec(accelerator_hours=3), spent) == "stop.accelerator_hours is 3, and 3 are spent"
    assert budget_is_spent(StopSpec(cost=15), spent) == "stop.cost is 15, and 15 are spent"
    assert budget_is_spent(StopSpec(wall_hours=2), Spent(7200.0, 0.0, 0.0)) == "stop.wall_hours is 2, and 2 are spent"


# ---- early stopping ----------------------------------------------------------------------------------------------

EARLY = {"kind": "asha", "reduction_factor": 2, "first_rung": 0.25}


def stopping(storage: Path, arm: dict[str, Any] | None = None, **rule: Any) -> StudySpec:
    arms = {name: {"trial": arm or supervised(), "space": {LEARNING_RATE: RATE}} for name in ("slow", "fast")}
    rules = {**EARLY, **rule}
    return spec_of(storage, arms=arms, search=searched(20), early_stopping=rules, replication={"top": 1, "seeds": 2})


def decide(stopper: Stopper, proposal: Proposal, step: int, cer: float) -> str | None:
    return stopper.stops(proposal.trial.trial, proposal.stages[-1], [report(step, dev_cer=cer)])


def started(search: Search, stopper: Stopper) -> Proposal:
    proposal = search.propose()
    assert proposal is not None
    stopper.add(proposal.trial, proposal.stages)
    return proposal


def test_a_rebuilt_stopper_decides_as_the_live_one(tmp_path: Path, start: Start) -> None:
    for objectives in ([], ["accelerator_hours"]):
        storage = tmp_path / str(len(objectives))
        spec = stopping(storage).with_(search=searched(20, also_minimise=objectives))
        search, values = start(spec), Random(0)
        live = Stopper(spec, search.ledger)
        proposals = [started(search, live) for _ in range(8)]
        decided = set[bool]()
        for step in (10, 20, 40):
            for proposal in proposals:
                cer = values.random()
                with closing(restarted(storage / f"{step}{proposal.trial.trial}", search, start).ledger) as copy:
                    rebuilt = Stopper(spec, copy)
                    rebuilt.add(proposal.trial, proposal.stages)
                    again = decide(rebuilt, proposal, step, cer)
                assert decide(live, proposal, step, cer) == again
                decided.add(again is not None)
        assert decided == {True, False}


def test_what_was_decided_is_decided_again_when_it_is_relayed_again(tmp_path: Path, start: Start) -> None:
    """A trial that goes on in a later run relays the whole curve of its stage."""
    spec = stopping(tmp_path / "live")
    search = start(spec)
    stopper = Stopper(spec, search.ledger)
    slow = [trial for trial in (started(search, stopper) for _ in range(8)) if trial.trial.arm == "slow"]
    decided = [decide(stopper, trial, 10, cer) for trial, cer in zip(slow, [0.5, 0.9, 0.4, 0.8], strict=True)]
    assert [cause is not None for cause in decided] == [False, True, False, True]
    assert decided[1] == "dev CER 90.0% after 25% of the labelled training was not among the best"
    recorded = search.ledger.evaluations(spec.study)
    later = restarted(tmp_path / "copy", search, start)
    again = Stopper(spec, later.ledger)
    for trial, before in zip(slow, decided, strict=True):
        again.add(trial.trial, trial.stages)
        assert (decide(again, trial, 10, 0.0) is None) == (before is None)
    assert later.ledger.evaluations(spec.study) == recorded


def test_replications_are_never_stopped(tmp_path: Path, start: Start) -> None:
    spec = one_arm(tmp_path, {LEARNING_RATE: RATE}, 4, early_stopping=EARLY, replication={"top": 1, "seeds": 2})
    search = start(spec)
    stopper = Stopper(spec, search.ledger)
    for cer in (0.1, 0.2, 0.3, 0.4):
        proposal = started(search, stopper)
        cause = decide(stopper, proposal, 10, cer)
        relay(search, proposal.trial.trial, 40, cer)
        end(search, proposal.trial.trial, "stopped" if cause else "finished", cause)
    assert search.ledger.count("race") == {"unfinished": 0, "finished": 1, "failed": 0, "stopped": 3}
    for _ in range(2):
        replication = started(search, stopper)
        assert replication.trial.origin == "replication"
        assert decide(stopper, replication, 10, 9.0) is None
    assert len(search.ledger.evaluations("race")) == 4


@pytest.mark.parametrize("across_arms", [True, False])
def test_arms_are_compared_with_one_another_only_where_that_is_asked_for(
    tmp_path: Path, start: Start, across_arms: bool
) -> None:
    spec = stopping(tmp_path, across_arms=across_arms)
    search = start(spec)
    stopper = Stopper(spec, search.ledger)
    for cer in (0.1, 0.9):  # of slow-000 and fast-000, each the first of its arm
        cause = decide(stopper, started(search, stopper), 10, cer)
    assert (cause is not None) == across_arms


def test_progress_is_the_share_of_labelled_training(tmp_path: Path, start: Start) -> None:
    """100 steps of pre-training do not count."""
    arms = {"arm": {"trial": pretrain_finetune()}}
    spec = one_arm(tmp_path, {}, 1, arms=arms, early_stopping=EARLY)
    search = start(spec)
    stopper = Stopper(spec, search.ledger)
    proposal = started(search, stopper)
    pretraining, finetuning = proposal.stages
    name = proposal.trial.trial
    assert stopper.stops(name, pretraining, [report(50, loss=1.0)]) is None
    assert (
        stopper.stops(name, finetuning, [report(5, loss=1.0), report(10, dev_cer=0.5), report(20, dev_cer=0.4)]) is None
    )
    assert search.ledger.evaluations("race") == [Evaluation(name, 0.25, [0.5]), Evaluation(name, 0.5, [0.4])]


def test_hours_of_a_trial_are_those_of_all_its_stages(tmp_path: Path, start: Start) -> None:
    """As they are as an objective of the search: the pre-training counts, wherever it ran."""
    arms = {"arm": {"trial": pretrain_finetune()}}
    objectives = searched(1, also_minimise=["accelerator_hours"])
    search = start(one_arm(tmp_path, {}, 1, arms=arms, early_stopping=EARLY, search=objectives))
    stopper = Stopper(search.spec, search.ledger)
    proposal = started(search, stopper)
    pretraining, finetuning = proposal.stages
    search.ledger.append(pretraining.fingerprint(), [report(100, seconds_a_step=36.0, contrastive=1.0)])
    last = report(10, seconds_a_step=36.0, dev_cer=0.5)
    search.ledger.append(finetuning.fingerprint(), [last])
    stopper.stops(proposal.trial.trial, finetuning, [last])
    assert search.ledger.evaluations("race") == [Evaluation(proposal.trial.trial, 0.25, [0.5, pytest.approx(1.1)])]
