"""What a study will run, known before anything starts: trials, stages, which of them are shared, and how long they are.

Needs neither Ray nor torch.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from search_spaces.space import (
    Grid,
    Point,
    Space,
    Value,
    active_part,
    finite_points,
    grid_points,
    probe_points,
    sampled,
    size,
    with_conditions,
)
from study.constraints import violated
from study.spec import ConstraintsSpec, StudySpec, trials_of
from trainables.decoding.files import missing
from trainables.stage import Stage
from trainables.trial import absent, corpora_of, stages_of

# The number of values of parameters that decide a stage, up to which every possible stage is looked at.
MAX_ENUMERATED = 2_000

Stages = dict[str, Stage]  # by fingerprint


@dataclass(frozen=True)
class StageCount:
    """Stages of one kind. `requested` is what trials ask for; `distinct` is the most that are trained."""

    requested: int
    distinct: int
    requested_steps: int
    distinct_steps: int
    requested_audio_hours: float
    distinct_audio_hours: float


@dataclass(frozen=True)
class ArmPlan:
    search_trials: int
    replications: int
    stages: tuple[str, ...]  # kinds, in the order in which they run

    @property
    def trials(self) -> int:
        return self.search_trials + self.replications


@dataclass
class Plan:
    arms: dict[str, ArmPlan] = field(default_factory=dict)
    stages: dict[str, StageCount] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)  # why each corpus or language model that is not here cannot be read

    @property
    def trials(self) -> int:
        """The most trials that can run."""
        return sum(arm.trials for arm in self.arms.values())


@dataclass
class _Tally:
    """The stages of one kind that trials ask for. Where lengths differ, the longest that are possible count."""

    requested: list[Stage] = field(default_factory=list)
    known: Stages = field(default_factory=dict)  # each of these is trained
    others: list[Stage] = field(default_factory=list)  # one for each further stage, standing for its length

    def ask(self, trials: int, candidates: Stages, most: int) -> None:
        """`trials` ask for one of the candidates each; at most `most` different ones are trained."""
        longest = sorted(candidates.values(), key=audio_hours, reverse=True)
        self.requested += [longest[0]] * trials
        if len(candidates) <= most:
            self.known |= candidates
        else:
            self.others += longest[:most]

    def ask_open(self, trials: int, candidates: Stages) -> None:
        """`trials` ask for a stage each, all different; the candidates are examples of them."""
        longest = max(candidates.values(), key=audio_hours)
        self.requested += [longest] * trials
        self.others += [longest] * trials

    def count(self) -> StageCount:
        distinct = [*self.known.values(), *self.others]
        return StageCount(
            requested=len(self.requested),
            distinct=len(distinct),
            requested_steps=sum(stage.steps for stage in self.requested),
            distinct_steps=sum(stage.steps for stage in distinct),
            requested_audio_hours=math.fsum(map(audio_hours, self.requested)),
            distinct_audio_hours=math.fsum(map(audio_hours, distinct)),
        )


def make_plan(spec: StudySpec) -> Plan:
    """What the study will run at most. A stage that several trials or arms ask for is trained once."""
    plan, tallies = Plan(), dict[str, _Tally]()
    for arm in spec.arms:
        stages = stages_of(spec.trial_config(arm))
        plan.arms[arm] = ArmPlan(search_trials(spec, arm), _replications(spec, arm), tuple(s.kind for s in stages))
        for index, stage in enumerate(stages):
            _tally_stage(tallies.setdefault(stage.kind, _Tally()), spec, arm, index)
    plan.stages = {kind: tally.count() for kind, tally in tallies.items()}
    corpora = dict.fromkeys(corpus for trial in trials_of(spec) for corpus in corpora_of(trial))
    absent_corpora = [reason for corpus in corpora for reason in absent(corpus)]
    models = dict.fromkeys(trial.language_model for trial in trials_of(spec) if trial.language_model)
    plan.absent = list(dict.fromkeys([*absent_corpora, *(reason for model in models for reason in missing(model))]))
    return plan


def search_trials(spec: StudySpec, arm: str) -> int:
    """Trials of the arm's search: for each combination of its grid, `search.trials` samples of what is not a grid."""
    return len(grid_of(spec, arm)) * samples(spec, arm)


def grid_of(spec: StudySpec, arm: str) -> list[Point]:
    """The combinations of the arm's grid; where nothing else is searched, those that meet the constraints."""
    points, constraints = grid_points(spec.arms[arm].space), spec.search.constraints
    if sampled(spec.arms[arm].space) or constraints == ConstraintsSpec():
        return points
    return [point for point in points if not violated(constraints, stages_of(spec.trial_config(arm, point)))]


def fresh_seeds(spec: StudySpec, arm: str) -> range:
    """The seeds of the arm's replications: none that its search uses."""
    searched = spec.arms[arm].space.get("seed")
    seeds = [spec.trial_config(arm).seed, *(int(value) for value in (searched.probes() if searched else ()))]
    return range(max(seeds) + 1, max(seeds) + 1 + spec.replication.seeds)


def samples(spec: StudySpec, arm: str) -> int:
    """Search trials for each combination of the arm's grid."""
    return spec.search.trials if sampled(spec.arms[arm].space) else 1


def _replicated(spec: StudySpec, arm: str) -> int:
    return min(spec.replication.top, search_trials(spec, arm))


def _replications(spec: StudySpec, arm: str) -> int:
    return _replicated(spec, arm) * spec.replication.seeds


class _Points:
    """The stages at points of an arm's space, each worked out once."""

    def __init__(self, spec: StudySpec, arm: str) -> None:
        self._spec, self._arm = spec, arm
        self.space = spec.arms[arm].space
        self._known: dict[tuple[Any, ...], Sequence[Stage]] = {}

    def stages(self, point: Point, seed: int | None = None) -> Sequence[Stage]:
        key = (*point.items(), seed)
        if key not in self._known:
            self._known[key] = stages_of(self._spec.trial_config(self._arm, point, seed))
        return self._known[key]

    def deciding(self, index: int) -> Space:
        """The parameters that can change the stage number `index`, and those that these depend on.

        A parameter decides when two choices of values that differ in it alone have different stages.
        """
        found: dict[tuple[Any, ...], str] = {}
        deciding: set[str] = set()
        choices = itertools.product(*(distribution.probes() for distribution in self.space.values()))
        for values in itertools.islice(choices, MAX_ENUMERATED):
            fingerprint = self.stages(active_part(self.space, values))[index].fingerprint()
            for position, path in enumerate(self.space):
                others = (path, *values[:position], *values[position + 1 :])
                if found.setdefault(others, fingerprint) != fingerprint:
                    deciding.add(path)
        return with_conditions(self.space, deciding)

    def completed(self, point: Point, deciding: Space) -> Point:
        """The point with a value for each active parameter that does not decide, for it may still be set."""
        whole: Point = {}
        for path, distribution in self.space.items():
            if path in point:
                whole[path] = point[path]
            elif path not in deciding and distribution.active(whole):
                whole[path] = distribution.probes()[0]
        return whole


def _tally_stage(tally: _Tally, spec: StudySpec, arm: str, index: int) -> None:
    """Add the stage number `index` of every trial of the arm."""
    at = _Points(spec, arm)
    deciding = at.deciding(index)
    is_open = size(deciding) > MAX_ENUMERATED
    points = list(itertools.islice(probe_points(deciding) if is_open else finite_points(deciding), MAX_ENUMERATED))

    def possible(grid: Point, seed: int | None = None) -> Stages:
        """The stages that trials with these values of the deciding grids may ask for."""
        matching = [at.completed(point, deciding) for point in points if grid.items() <= point.items()]
        stages = [at.stages(point, seed)[index] for point in matching]
        return {stage.fingerprint(): stage for stage in stages}

    grids = [path for path, distribution in deciding.items() if isinstance(distribution, Grid)]
    trials = Counter[tuple[tuple[str, Value], ...]]()  # of each combination of the grids that decide the stage
    for grid_point in grid_of(spec, arm):
        trials[tuple((path, grid_point[path]) for path in grids if path in grid_point)] += samples(spec, arm)
    searched: Stages = {}
    for grid, number in trials.items():
        candidates = possible(dict(grid))
        searched |= candidates
        if is_open:
            tally.ask_open(number, candidates)
        else:
            tally.ask(number, candidates, min(number, len(candidates)))

    for seed in fresh_seeds(spec, arm):
        candidates, number = possible({}, seed), _replicated(spec, arm)
        if candidates.keys() <= searched.keys():  # the stage has a seed of its own: it is there from the search
            tally.ask(number, candidates, most=0)
        elif is_open:
            tally.ask_open(number, candidates)
        else:
            tally.ask(number, candidates, min(number, len(candidates)))


def audio_hours(stage: Stage) -> float:
    """Audio that the stage processes at most, in hours: full batches of every stream at every step."""
    cycle = sum(phase.steps for phase in stage.phases)
    drawn = sum(
        len(stage.phases[stage.phase_at(step)].loss.streams) * count
        for step, count in _steps_in_cycle(stage.steps, cycle)
    )
    return drawn * stage.batch_seconds / 3600


def _steps_in_cycle(steps: int, cycle: int) -> Iterator[tuple[int, int]]:
    """(position in the cycle, how many of the steps fall on it)."""
    for position in range(min(cycle, steps)):
        yield position, math.ceil((steps - position) / cycle)


def plan_as_dict(plan: Plan) -> dict[str, object]:
    """What `study plan --json` prints."""
    return {
        "arms": list(plan.arms),
        "trials": plan.trials,
        "trials_by_arm": {name: arm.trials for name, arm in plan.arms.items()},
        "stages": {
            kind: {"requested": count.requested, "distinct": count.distinct} for kind, count in plan.stages.items()
        },
        "steps": sum(count.distinct_steps for count in plan.stages.values()),
        "steps_without_sharing": sum(count.requested_steps for count in plan.stages.values()),
        "audio_hours": round(sum(count.distinct_audio_hours for count in plan.stages.values()), 3),
        "audio_hours_without_sharing": round(sum(c.requested_audio_hours for c in plan.stages.values()), 3),
        "absent_corpora": plan.absent,
    }
