"""What to try next: Optuna as a Tune searcher that is fed from the ledger.

The searcher keeps no state of its own. Each proposal follows from the sweep file and the ledger, so a study that was
killed proposes what it would have proposed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import optuna
from ray.tune.search import Searcher

from search_spaces.space import Categorical, IntUniform, LogUniform, Point, Space, Uniform, grid_points, sampled
from study.ledger import Ledger, Origin, Trial
from study.plan import fresh_seeds, search_trials
from study.spec import StudySpec, TpeSampler
from trainables.data.seeds import fold
from trainables.trial import TrialConfig, stages_of

optuna.logging.set_verbosity(optuna.logging.WARNING)


class StudySearcher(Searcher):  # type: ignore[misc]  # Ray has no types
    """Unfinished trials of an earlier run first, then the search of every arm in turn, then replications."""

    def __init__(self, spec: StudySpec, ledger: Ledger) -> None:
        super().__init__()
        self.spec, self.ledger = spec, ledger
        self._handed_out: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial as `{"trial": name, "config": resolved}`; None: ask again later; FINISHED: that is all."""
        trials = self.ledger.trials(self.spec.study)
        waiting = [t for t in trials if t.status == "unfinished"]
        for trial in waiting:
            if trial.trial not in self._handed_out:
                return self._again(trial)
        proposal = next(self._new_searches(trials), None) or next(self._new_replications(trials), None)
        if proposal:
            return proposal
        return None if waiting else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing to do: results are read from the ledger."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher beside its results; there is nothing in it to keep, and the ledger stays out."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: everything is in the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: everything is in the ledger."""

    def _again(self, trial: Trial) -> dict[str, Any]:
        """A trial that an earlier run left unfinished, with its own configuration."""
        return self._record(
            trial.trial,
            trial.arm,
            trial.number,
            trial.origin,
            trial.grid,
            trial.point,
            TrialConfig.model_validate(trial.config),
        )

    def _new_searches(self, trials: list[Trial]) -> Iterator[dict[str, Any]]:
        """The next search trial of the arm that has had the fewest."""
        proposed = {arm: [t for t in trials if t.arm == arm and t.origin == "search"] for arm in self.spec.arms}
        for arm in sorted(self.spec.arms, key=lambda arm: len(proposed[arm])):
            number = len(proposed[arm])
            if number < search_trials(self.spec, arm):
                grid = self._next_grid_point(arm, number)
                siblings = [t for t in proposed[arm] if t.grid == grid]
                point = self._draw(arm, number, grid, siblings)
                config = self.spec.trial_config(arm, point)
                yield self._record(f"{arm}-{number:03d}", arm, number, "search", grid, point, config)

    def _next_grid_point(self, arm: str, number: int) -> Point:
        points = grid_points(self.spec.arms[arm].space)
        return points[number % len(points)]

    def _record(
        self, name: str, arm: str, number: int, origin: Origin, grid: Point, point: Point, config: TrialConfig
    ) -> dict[str, Any]:
        """Write the trial to the ledger, before anything of it runs, and hand it out."""
        as_json = config.model_dump(mode="json")
        self.ledger.add_trial(
            self.spec.study,
            name,
            arm=arm,
            number=number,
            origin=origin,
            grid=grid,
            point=point,
            config=as_json,
            seed=config.seed,
            stages=stages_of(config),
        )
        self._handed_out.add(name)
        return {"trial": name, "config": as_json}

    def _draw(self, arm: str, number: int, grid: Point, siblings: list[Trial]) -> Point:
        """Values for the sampled parameters, given what earlier trials of the arm with the same grid values found."""
        space = sampled(self.spec.arms[arm].space)
        study = optuna.create_study(sampler=self._sampler(arm, number), direction="minimize")
        for sibling in siblings:
            study.add_trial(self._as_optuna(sibling, space))
        drawn = study.ask({path: _as_optuna_distribution(d) for path, d in space.items()}).params
        point = dict(grid)
        for path, distribution in space.items():
            if distribution.active(point):
                point[path] = drawn[path]
        return point

    def _sampler(self, arm: str, number: int) -> optuna.samplers.BaseSampler:
        seed = fold(self.spec.search.seed, arm, number) % 2**32
        sampler = self.spec.search.sampler
        if isinstance(sampler, TpeSampler):
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=sampler.startup_trials, constant_liar=True)
        return optuna.samplers.RandomSampler(seed=seed)

    def _as_optuna(self, trial: Trial, space: Space) -> optuna.trial.FrozenTrial:
        """A trial of the ledger as Optuna sees it. A failed one is told as failed, never as a number."""
        states = optuna.trial.TrialState
        state = {"finished": states.COMPLETE, "failed": states.FAIL, "unfinished": states.RUNNING}[trial.status]
        final = self.ledger.final(trial.study, trial.trial)
        value = final[self.spec.search.metric] if trial.status == "finished" else None
        params = {path: trial.point[path] for path in space if path in trial.point}
        distributions = {path: _as_optuna_distribution(space[path]) for path in params}
        return optuna.trial.create_trial(state=state, value=value, params=params, distributions=distributions)

    def _new_replications(self, trials: list[Trial]) -> Iterator[dict[str, Any]]:
        """The best of each arm with fresh seeds, once its search is over."""
        known = {t.trial for t in trials}
        for arm in self.spec.arms:
            searches = [t for t in trials if t.arm == arm and t.origin == "search"]
            if any(t.status == "unfinished" for t in searches):
                continue
            best = self.ledger.ranked(searches, self.spec.search.metric)
            for trial in best[: self.spec.replication.top]:
                for seed in fresh_seeds(self.spec, arm):
                    name = f"{trial.trial}-seed{seed}"
                    if name not in known:
                        config = self.spec.trial_config(arm, trial.point, seed)
                        yield self._record(name, arm, trial.number, "replication", trial.grid, trial.point, config)


def _as_optuna_distribution(distribution: Any) -> optuna.distributions.BaseDistribution:
    match distribution:
        case Uniform():
            return optuna.distributions.FloatDistribution(distribution.low, distribution.high)
        case LogUniform():
            return optuna.distributions.FloatDistribution(distribution.low, distribution.high, log=True)
        case IntUniform():
            return optuna.distributions.IntDistribution(
                distribution.low, int(distribution.values()[-1]), step=distribution.step
            )
        case Categorical():
            return optuna.distributions.CategoricalDistribution(distribution.choices)
    raise AssertionError(f"not a sampled distribution: {type(distribution).__name__}")
