"""What to try next. Every proposal follows from the sweep file and the ledger: a killed study goes on as it would have.

Unfinished trials of an earlier run come first, then the search of every arm in turn, then replications.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces.space import Point, Space, sampled
from study.constraints import violated
from study.ledger import Ledger, Origin, Status, Trial
from study.optuna_studies import ArmSearch, Result, result_of
from study.pareto import non_dominated
from study.plan import fresh_seeds, grid_of, samples
from study.spec import StudySpec
from study.stopping import search_is_done, seed_noise
from trainables.data.seeds import fold
from trainables.stage import Stage
from trainables.trial import TrialConfig, stages_of

MAX_DRAWS = 300  # for values that meet the constraints


@dataclass(frozen=True)
class Proposal:
    """A trial to run, and its stages."""

    trial: Trial
    stages: Sequence[Stage]


class Search:
    """Proposes the trials of a study, and learns how they end. It holds what the ledger has, and nothing else."""

    def __init__(self, spec: StudySpec, ledger: Ledger) -> None:
        self.spec, self.ledger = spec, ledger
        self._trials: dict[str, Trial] = {}
        self._numbers: dict[str, int] = {}  # of trials, within their arm's Optuna study
        self._searched: defaultdict[str, list[str]] = defaultdict(list)  # search trials of each arm, in order
        self._results: dict[str, Result] = {}  # of trials that have ended, in the order of their end
        self._by_configuration: defaultdict[str, dict[int, float]] = defaultdict(dict)  # metric, by seed
        self._unfinished: set[str] = set()
        self._nothing_left = False
        self._contents = ledger.contents(spec.study)  # trial -> its stages
        self._by_content: dict[tuple[str, ...], str] = {}  # trial that ended first with these stages
        self._searches: dict[str, ArmSearch] = {}
        self._grids = {arm: {_values(point): point for point in grid_of(spec, arm)} for arm in spec.arms}
        self._samples = {arm: dict.fromkeys(grid, 0) for arm, grid in self._grids.items()}  # search trials of each
        known = ledger.trials(spec.study)
        self._waiting = deque(trial for trial in known if trial.status == "unfinished")
        for trial in sorted(known, key=lambda trial: trial.number):
            self._know(trial)
        for trial in sorted((t for t in known if t.ended_at is not None), key=lambda t: (t.ended_at, t.trial)):
            self._count(trial, result_of(spec, ledger, trial))

    def propose(self, not_of: Collection[str] = ()) -> Proposal | None:
        """The next trial, which is in the ledger now. None: there is none until a running one ends, or at all.

        `not_of`: arms that are not to be searched further at present.

        A trial that equals one that has ended is not run again: the ledger has its results.
        """
        while (proposal := next(self._proposals(not_of), None)) is not None:
            if proposal.trial.status == "unfinished":
                return proposal
        self._nothing_left = True
        return None

    @property
    def is_over(self) -> bool:
        """Whether nothing is running, and nothing was left to propose."""
        return self._nothing_left and not self._unfinished

    def ended(self, name: str) -> None:
        """The trial has ended; the ledger knows how."""
        trial = self.ledger.trial(self.spec.study, name)
        result = result_of(self.spec, self.ledger, trial)
        self._trials[name] = trial
        self._unfinished.discard(name)
        self._nothing_left = False
        if trial.origin == "search" and name in self._numbers:
            self._search_of(trial.arm, trial.grid).tell(self._numbers[name], result)
        self._count(trial, result)

    # ---- what is known -----------------------------------------------------------------------------------------

    def _know(self, trial: Trial) -> None:
        self._trials[trial.trial] = trial
        if trial.origin == "search":
            self._add_searched(trial)
        if trial.status == "unfinished":
            self._unfinished.add(trial.trial)

    def _add_searched(self, trial: Trial) -> None:
        self._searched[trial.arm].append(trial.trial)
        if (values := _values(trial.grid)) in self._samples[trial.arm]:
            self._samples[trial.arm][values] += 1

    def _count(self, trial: Trial, result: Result) -> None:
        """The trial has ended, after all that were counted before."""
        self._results[trial.trial] = result
        self._by_content.setdefault(self._contents[trial.trial], trial.trial)
        if result.status == "finished":
            self._by_configuration[_configuration(trial)][trial.seed] = result.objectives[0]

    def _search_of(self, arm: str, grid: Mapping[str, Any]) -> ArmSearch:
        """The search of an arm for one combination of its grid, with all trials that the ledger has."""
        key = json.dumps([arm, grid], sort_keys=True)
        if key not in self._searches:
            settings, space = self.spec.search, sampled(self.spec.arms[arm].space)
            name = arm if not grid else f"{arm} {json.dumps(grid)}"
            search = ArmSearch(name, space, settings.sampler, fold(settings.seed, arm), len(settings.objectives))
            for trial, result in self._earlier_trials(arm, grid, space):
                search.add(trial.point, {}, result)
            self._searches[key] = search
            for name in self._searched[arm]:
                trial = self._trials[name]
                if trial.grid == grid and name not in self._numbers:
                    result = self._results.get(name, Result("unfinished"))
                    search.add(trial.point, trial.sampler_state or {}, result)
                    self._numbers[name] = search.last_number
        return self._searches[key]

    def _earlier_trials(self, arm: str, grid: Mapping[str, Any], space: Space) -> Iterator[tuple[Trial, Result]]:
        """What the sampler may learn from: finished trials of earlier studies whose values this space could draw."""
        began = self.ledger.study(self.spec.study)["created_at"]
        for study in self.spec.search.warm_start:
            for trial in self.ledger.trials(study):
                fits = trial.arm == arm and trial.grid == grid and _could_draw(space, trial.point)
                if fits and trial.origin == "search" and trial.ended_at is not None and trial.ended_at < began:
                    result = result_of(self.spec, self.ledger, trial)
                    if result.status == "finished":
                        yield trial, result

    def again(self, trial: str) -> None:
        """Propose an unfinished trial once more."""
        self._waiting.append(self._trials[trial])

    # ---- new trials --------------------------------------------------------------------------------------------

    def _proposals(self, not_of: Collection[str]) -> Iterator[Proposal]:
        while self._waiting:
            trial = self._waiting.popleft()
            yield self._record(trial, TrialConfig.model_validate(trial.config))
        yield from self._new_searches(not_of)
        yield from self._new_replications()

    def _new_searches(self, not_of: Collection[str]) -> Iterator[Proposal]:
        """The next search trial of the arm that has had the fewest."""
        for arm in sorted(set(self.spec.arms) - set(not_of), key=self._turn):
            number, grid, done = len(self._searched[arm]), self._grids[arm], self._samples[arm]
            if number < len(grid) * samples(self.spec, arm) and self.reason_to_stop(arm) is None:
                fewest = min(done, key=done.__getitem__)  # of several the one that comes first in the grid
                yield self._new_search(arm, number, grid[fewest], done[fewest])

    def _turn(self, arm: str) -> tuple[int, int]:
        """The arm that has had the fewest trials comes first, of several the one that stands first in the sweep."""
        return len(self._searched[arm]), list(self.spec.arms).index(arm)

    def reason_to_stop(self, arm: str) -> str | None:
        """Why the arm needs no further search trials."""
        stop = self.spec.stop
        if stop.target is None and stop.no_improvement is None:
            return None
        ended = [result for name, result in self._results.items() if self._is_search_of(name, arm)]
        values = [
            result.objectives[0] if result.status == "finished" else math.inf  # stopped early: no improvement
            for result in ended
            if result.status in ("finished", "stopped")
        ]
        return search_is_done(stop, values, self.noise())

    def _is_search_of(self, name: str, arm: str) -> bool:
        return self._trials[name].arm == arm and self._trials[name].origin == "search"

    def noise(self) -> float:
        """Differences of the metric up to this may be chance."""
        patience = self.spec.stop.no_improvement
        if patience is None:
            return 0.0
        if patience.noise is not None:
            return patience.noise
        return seed_noise([list(by_seed.values()) for by_seed in self._by_configuration.values()])

    def _new_search(self, arm: str, number: int, grid: Point, sample: int) -> Proposal:
        """A trial of the arm; `sample` counts those with the same values of the grid."""
        search = self._search_of(arm, grid)
        given = self.spec.arms[arm].try_first[sample : sample + 1]
        rejected: list[dict[str, Any]] = []
        for attempt in range(MAX_DRAWS):
            point, state = search.draw(number, grid, given[0] if given else {}, attempt)
            config = self.spec.trial_config(arm, point)
            stages = stages_of(config)
            if given or attempt == MAX_DRAWS - 1 or not violated(self.spec.search.constraints, stages):
                break
            rejected.append({"point": point, **state})
        state |= {"rejected": rejected} if rejected else {}
        name = f"{arm}-{number:03d}"
        self._numbers[name] = search.last_number
        trial = self._trial(name, arm, number, "search", grid, point, config, state)
        self._add_searched(trial)
        return self._record(trial, config, stages)

    def _new_replications(self) -> Iterator[Proposal]:
        """The best of each arm with fresh seeds, once its search is over."""
        for arm in self.spec.arms:
            searched = [self._trials[name] for name in self._searched[arm]]
            if any(trial.status == "unfinished" for trial in searched):
                continue
            for trial in self._best(searched):
                for seed in fresh_seeds(self.spec, arm):
                    name = f"{trial.trial}-seed{seed}"
                    if name not in self._trials:
                        config = self.spec.trial_config(arm, trial.point, seed)
                        fresh = self._trial(name, arm, trial.number, "replication", trial.grid, trial.point, config, {})
                        yield self._record(fresh, config)

    def _best(self, searched: Sequence[Trial]) -> list[Trial]:
        """The best `replication.top` configurations: by the metric, and with several objectives front after front."""
        finished = [trial for trial in searched if self._results[trial.trial].status == "finished"]
        left = _without_copies(sorted(finished, key=lambda trial: (self._objectives(trial)[0], trial.trial)))
        top, best = self.spec.replication.top, list[Trial]()
        while left and len(best) < top and self.spec.search.also_minimise:
            front = {left[index].trial for index in non_dominated([self._objectives(trial) for trial in left])}
            best += [trial for trial in left if trial.trial in front]
            left = [trial for trial in left if trial.trial not in front]
        return [*best, *left][:top]

    def _objectives(self, trial: Trial) -> tuple[float, ...]:
        return self._results[trial.trial].objectives

    def _trial(
        self,
        name: str,
        arm: str,
        number: int,
        origin: Origin,
        grid: Point,
        point: Point,
        config: TrialConfig,
        sampler_state: dict[str, Any],
    ) -> Trial:
        return Trial(
            study=self.spec.study,
            trial=name,
            arm=arm,
            number=number,
            origin=origin,
            grid=grid,
            point=point,
            config=config.model_dump(mode="json"),
            seed=config.seed,
            status="unfinished",
            cause=None,
            started_at=0.0,
            ended_at=None,
            sampler_state=sampler_state,
        )

    def _record(self, trial: Trial, config: TrialConfig, stages: Sequence[Stage] = ()) -> Proposal:
        """Write the trial to the ledger, before anything of it runs."""
        stages = stages or stages_of(config)
        content = tuple(stage.fingerprint() for stage in stages)
        self.ledger.add_trial(
            self.spec.study,
            trial.trial,
            arm=trial.arm,
            number=trial.number,
            origin=trial.origin,
            grid=trial.grid,
            point=trial.point,
            config=trial.config,
            seed=trial.seed,
            stages=stages,
            sampler_state=trial.sampler_state,
        )
        self._trials[trial.trial] = trial
        self._contents[trial.trial] = content
        self._unfinished.add(trial.trial)
        equal = self._trials.get(self._by_content.get(content, ""))
        if broken := violated(self.spec.search.constraints, stages):
            self._end(trial, "failed", f"not trained: it has {broken}")
        elif equal:
            self._end(trial, equal.status, equal.cause)
        return Proposal(self._trials[trial.trial], stages)

    def _end(self, trial: Trial, status: Status, cause: str | None) -> None:
        """What is known of a trial without running it."""
        self.ledger.end_trial(self.spec.study, trial.trial, status, cause)
        self.ended(trial.trial)


def _could_draw(space: Space, point: Mapping[str, Any]) -> bool:
    """Whether the space could have drawn the point's values, of just the parameters that exist then."""
    active: Point = {}
    for path, distribution in space.items():
        if distribution.active(active):
            if path not in point or not distribution.contains(point[path]):
                return False
            active[path] = point[path]
    return True


def _without_copies(trials: Sequence[Trial]) -> list[Trial]:
    """Of trials of the same configuration, whatever their seeds, the first."""
    first: dict[str, Trial] = {}
    for trial in trials:
        first.setdefault(_configuration(trial), trial)
    return list(first.values())


def _configuration(trial: Trial) -> str:
    without_seed = {path: value for path, value in trial.point.items() if path != "seed"}
    return json.dumps([trial.arm, without_seed], sort_keys=True)


def _values(grid: Point) -> str:
    """In whatever order they are listed."""
    return json.dumps(grid, sort_keys=True)
