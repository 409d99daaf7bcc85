"""The search of one arm as an Optuna study: proposals, results, importance of parameters, and a copy for its dashboard.

Samplers keep nothing between proposals but what they note in the study, and that is in the ledger. So a study that is
built again from the ledger proposes what the one before would have proposed.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from search_spaces.space import Categorical, Grid, IntUniform, LogUniform, Point, Space, Uniform
from study.ledger import Ledger, Status, Trial
from study.spec import (
    CmaEsSampler,
    GpSampler,
    Nsga2Sampler,
    Nsga3Sampler,
    QuasiRandomSampler,
    RandomSampler,
    SamplerConfig,
    StudySpec,
    TpeSampler,
)
from trainables.data.seeds import fold

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

SAMPLER_DRAWS = 10  # for one proposal

STATES: dict[Status, TrialState] = {
    "finished": TrialState.COMPLETE,
    "failed": TrialState.FAIL,
    "stopped": TrialState.PRUNED,
    "unfinished": TrialState.RUNNING,
}


@dataclass(frozen=True)
class Result:
    """How a trial ended: the objectives of a finished one, or how far a stopped one came, and its metric there."""

    status: Status
    objectives: tuple[float, ...] = ()
    stopped_at: tuple[int, float] | None = None  # (step, metric)


class ArmSearch:
    """The search of an arm over the parameters that are sampled, for one combination of its grid."""

    def __init__(self, name: str, space: Space, sampler: SamplerConfig, seed: int, num_objectives: int) -> None:
        self._space, self._sampler, self._seed = space, sampler, seed
        self.study = optuna.create_study(study_name=name, directions=["minimize"] * num_objectives)
        self._attributes = dict(self._study_attributes())

    def draw(self, number: int, grid: Point, fixed: Point, attempt: int = 0) -> tuple[Point, dict[str, Any]]:
        """Values of the sampled parameters beside those of the grid, and what the sampler notes with them.

        `fixed`: values that are given. A proposal that is rejected is drawn again, as another attempt; after some of
        them at random, for the sampler may not find what is admitted.
        """
        sampler = self._sampler if attempt < SAMPLER_DRAWS else RandomSampler()
        self.study.sampler = make_sampler(sampler, self._seed, number, attempt, len(self.study.directions))
        if fixed:
            self.study.enqueue_trial(fixed)
        trial = self.study.ask()
        point = dict(grid)
        for path, distribution in self._space.items():
            if distribution.active(point):
                point[path] = _suggest(trial, path, distribution)
        attributes = self._study_attributes()
        changed = {key: value for key, value in attributes.items() if self._attributes.get(key) != value}
        self._attributes |= changed
        attributes_of_trial = self.study._storage.get_trial_system_attrs(trial._trial_id)
        # As JSON gives it back: a study that is built from the ledger sees the same.
        return point, json.loads(json.dumps({"trial": attributes_of_trial, "study": changed}))

    def add(self, point: Mapping[str, Any], state: Mapping[str, Any], result: Result) -> None:
        """A trial that the ledger has: its values, what the sampler noted, and how it ended.

        Draws before it that were rejected never end: samplers that learn take what runs for bad, and avoid it.
        """
        for draw in state.get("rejected", ()):
            self.add(draw["point"], draw, Result("unfinished"))
        params = {path: point[path] for path in self._space if path in point}
        self.study.add_trial(
            optuna.trial.create_trial(
                state=STATES[result.status],
                values=list(result.objectives) or None,
                params=params,
                distributions={path: as_optuna(self._space[path]) for path in params},
                system_attrs=state.get("trial", {}),
                intermediate_values=dict([result.stopped_at]) if result.stopped_at else None,
            )
        )
        for key, value in state.get("study", {}).items():
            self.study._storage.set_study_system_attr(self.study._study_id, key, value)
        self._attributes |= state.get("study", {})

    @property
    def last_number(self) -> int:
        """Optuna's number of the trial that was added or drawn last."""
        return len(self.study.get_trials(deepcopy=False)) - 1

    def tell(self, number: int, result: Result) -> None:
        """How the trial of Optuna's number ended. A failed one is told as failed, never as a number."""
        if result.stopped_at:
            trial_id = self.study.get_trials(deepcopy=False)[number]._trial_id
            step, value = result.stopped_at
            optuna.trial.Trial(self.study, trial_id).report(value, step)
        self.study.tell(number, list(result.objectives) or None, state=STATES[result.status])

    def _study_attributes(self) -> dict[str, Any]:
        return dict(self.study._storage.get_study_system_attrs(self.study._study_id))


def make_sampler(
    config: SamplerConfig, seed: int, number: int, attempt: int, num_objectives: int
) -> optuna.samplers.BaseSampler:
    """The sampler of one proposal."""
    own = fold(seed, number, *([attempt] if attempt else [])) % 2**32
    match config:
        case RandomSampler():
            return optuna.samplers.RandomSampler(own)
        case QuasiRandomSampler():  # one sequence for all proposals: the study counts how far it has come
            independent = optuna.samplers.RandomSampler(own)
            return optuna.samplers.QMCSampler(
                scramble=True,
                seed=seed % 2**32,
                independent_sampler=independent,
            )
        case TpeSampler():
            return optuna.samplers.TPESampler(
                seed=own,
                n_startup_trials=config.startup_trials,
                multivariate=config.multivariate,
                group=config.group,
                constant_liar=True,
            )
        case CmaEsSampler():
            return optuna.samplers.CmaEsSampler(
                seed=own,
                n_startup_trials=config.startup_trials,
                independent_sampler=optuna.samplers.RandomSampler(own),
            )
        case Nsga2Sampler():
            return optuna.samplers.NSGAIISampler(seed=own, population_size=config.population)
        case Nsga3Sampler():
            return optuna.samplers.NSGAIIISampler(seed=own, population_size=config.population)
        case GpSampler():
            return optuna.samplers.GPSampler(
                seed=own,
                n_startup_trials=config.startup_trials,
                independent_sampler=optuna.samplers.RandomSampler(own),
            )
    raise AssertionError(f"not a sampler: {config}")


def as_optuna(distribution: Any) -> optuna.distributions.BaseDistribution:
    """The distribution of a parameter."""
    match distribution:
        case Uniform():
            return optuna.distributions.FloatDistribution(distribution.low, distribution.high)
        case LogUniform():
            return optuna.distributions.FloatDistribution(distribution.low, distribution.high, log=True)
        case IntUniform():
            return optuna.distributions.IntDistribution(
                distribution.low, int(distribution.values()[-1]), step=distribution.step
            )
        case Categorical() | Grid():
            return optuna.distributions.CategoricalDistribution(distribution.choices)
    raise AssertionError(f"not a distribution: {type(distribution).__name__}")


def _suggest(trial: optuna.Trial, path: str, distribution: Any) -> Any:
    match as_optuna(distribution):
        case optuna.distributions.FloatDistribution() as real:
            return trial.suggest_float(path, real.low, real.high, log=real.log)
        case optuna.distributions.IntDistribution() as integer:
            return trial.suggest_int(path, integer.low, integer.high, step=integer.step)
        case optuna.distributions.CategoricalDistribution() as categorical:
            return trial.suggest_categorical(path, categorical.choices)
    raise AssertionError(f"not a distribution: {type(distribution).__name__}")


def result_of(spec: StudySpec, ledger: Ledger, trial: Trial) -> Result:
    """A trial as its arm's search sees it. One that lacks an objective counts as failed."""
    if trial.status == "finished":
        final = ledger.final(trial.study, trial.trial)
        objectives = tuple(final.get(name, math.nan) for name in spec.search.objectives)
        return Result("finished", objectives) if all(map(math.isfinite, objectives)) else Result("failed")
    if trial.status == "stopped" and not spec.search.also_minimise:
        curve = ledger.curve(trial.study, trial.trial, spec.early_stopping_metric)
        return Result("stopped", stopped_at=(curve[-1].step, curve[-1].value)) if curve else Result("failed")
    return Result(trial.status)


def arm_as_study(spec: StudySpec, ledger: Ledger, arm: str) -> optuna.Study:
    """All search trials of the arm as one Optuna study, with its grid as categorical parameters."""
    space = spec.arms[arm].space
    search = ArmSearch(f"{spec.study}/{arm}", space, RandomSampler(), 0, len(spec.search.objectives))
    for trial in ledger.trials(spec.study):
        if trial.arm == arm and trial.origin == "search":
            search.add(trial.point, {}, result_of(spec, ledger, trial))
    return search.study


def importance(spec: StudySpec, ledger: Ledger) -> dict[str, dict[str, float]]:
    """Of each arm, the share of the metric's variance that each searched parameter explains, largest first.

    fANOVA (Hutter et al. 2014), over the finished trials and the parameters that all of them have. An arm whose trials
    are fewer than two, or do not differ, is left out.
    """
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found: dict[str, dict[str, float]] = {}
    for arm in spec.arms:
        study = arm_as_study(spec, ledger, arm)
        finished = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if len({json.dumps(trial.params) for trial in finished}) > 1 and len({t.values[0] for t in finished}) > 1:
            shares = optuna.importance.get_param_importances(study, evaluator=evaluator, target=lambda t: t.values[0])
            found[arm] = {path: float(share) for path, share in shares.items()}
    return found


def write_journal(spec: StudySpec, ledger: Ledger, path: Path) -> None:
    """Write each arm as an Optuna study to a new journal file, which optuna-dashboard opens."""
    storage = JournalStorage(JournalFileBackend(str(path)))
    for arm in spec.arms:
        study = arm_as_study(spec, ledger, arm)
        copy = optuna.create_study(study_name=study.study_name, storage=storage, directions=study.directions)
        copy.set_metric_names(list(spec.search.objectives))
        copy.add_trials(study.get_trials(deepcopy=False))
