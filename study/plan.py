"""What a study will run, known before anything starts: trials, stages, which of them are shared, and how long they are.

Needs neither Ray nor torch.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
    probe_values,
    sampled,
    size,
    with_conditions,
)
from study.constraints import violated
from study.disk import DiskEstimate, disk_estimate, stage_bytes
from study.spec import ConstraintsSpec, GroupSpec, ResourcesSpec, StudySpec, trials_of
from trainables.decoding.files import missing
from trainables.stage import Stage, StageKind
from trainables.trial import absent, corpora_of, stages_of

# The number of values of parameters that decide a stage, up to which every possible stage is looked at.
MAX_ENUMERATED = 2_000

Stages = dict[str, Stage]  # by fingerprint


@dataclass(frozen=True)
class Planned:
    """`count` stages, each no longer than `longest` and like one of the examples; which one, the search decides.

    `replication`: they are asked for after the search.
    """

    longest: Stage
    examples: tuple[Stage, ...]
    count: int = 1
    replication: bool = False


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
    requested: list[Planned] = field(default_factory=list)  # what trials ask for
    distinct: list[Planned] = field(default_factory=list)  # what is trained at most
    disk: DiskEstimate = field(default_factory=lambda: DiskEstimate(0, 0))
    quota_bytes: int | None = None
    absent: list[str] = field(default_factory=list)  # why each corpus or language model that is not here cannot be read

    @property
    def trials(self) -> int:
        """The most trials that can run."""
        return sum(arm.trials for arm in self.arms.values())


@dataclass
class _Tally:
    """The stages of one kind that trials ask for. Where lengths differ, the longest that are possible count."""

    requested: list[Planned] = field(default_factory=list)
    known: dict[str, Planned] = field(default_factory=dict)  # each of these is trained; by fingerprint
    others: list[Planned] = field(default_factory=list)  # further stages, standing for their length

    def ask(self, trials: int, candidates: Stages, most: int, examples: tuple[Stage, ...], replication: bool) -> None:
        """`trials` ask for one of the candidates each; at most `most` different ones are trained."""
        longest = sorted(candidates.values(), key=audio_hours, reverse=True)
        self.requested.append(Planned(longest[0], examples, trials, replication))
        if len(candidates) <= most:
            for fingerprint, stage in candidates.items():
                self.known.setdefault(fingerprint, Planned(stage, (stage,), 1, replication))
        else:
            self.others += [Planned(stage, examples, 1, replication) for stage in longest[:most]]

    def ask_open(self, trials: int, examples: tuple[Stage, ...], replication: bool) -> None:
        """`trials` ask for a stage each, all different, and somewhere between the examples."""
        asked = Planned(max(examples, key=audio_hours), examples, trials, replication)
        self.requested.append(asked)
        self.others.append(asked)

    @property
    def distinct(self) -> list[Planned]:
        return [*self.known.values(), *self.others]

    def count(self) -> StageCount:
        requested, distinct = self.requested, self.distinct
        return StageCount(
            requested=sum(planned.count for planned in requested),
            distinct=sum(planned.count for planned in distinct),
            requested_steps=sum(planned.count * planned.longest.steps for planned in requested),
            distinct_steps=sum(planned.count * planned.longest.steps for planned in distinct),
            requested_audio_hours=math.fsum(planned.count * audio_hours(planned.longest) for planned in requested),
            distinct_audio_hours=math.fsum(planned.count * audio_hours(planned.longest) for planned in distinct),
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
    plan.requested = [planned for tally in tallies.values() for planned in tally.requested]
    plan.distinct = [planned for tally in tallies.values() for planned in tally.distinct]
    plan.disk, plan.quota_bytes = _disk(spec.resources, plan.distinct), spec.quota
    corpora = dict.fromkeys(corpus for trial in trials_of(spec) for corpus in corpora_of(trial))
    absent_corpora = [reason for corpus in corpora for reason in absent(corpus)]
    models = dict.fromkeys(trial.language_model for trial in trials_of(spec) if trial.language_model)
    plan.absent = list(dict.fromkeys([*absent_corpora, *(reason for model in models for reason in missing(model))]))
    return plan


def _disk(resources: ResourcesSpec, distinct: Sequence[Planned]) -> DiskEstimate:
    """Where sizes are searched, the largest of the examples count."""
    kinds = {planned.longest.kind for planned in distinct}
    concurrent = max((stages_at_a_time(resources, kind) for kind in kinds), default=1)
    stages = [
        stage
        for planned in distinct
        for stage in itertools.repeat(max(planned.examples, key=stage_bytes), planned.count)
    ]
    return disk_estimate(stages, concurrent)


def stages_at_a_time(resources: ResourcesSpec, kind: StageKind) -> int:
    """Worker groups for stages of this kind: `max_groups`, or else as many as this machine holds.

    On a machine without GPUs, its CPUs alone count.
    """
    group = resources.group(kind)
    here = groups_here(group if visible_gpus() else group.with_(gpus_per_worker=0.0))
    return resources.max_groups or max(1, here)


def groups_here(group: GroupSpec) -> int:
    """How many such worker groups this machine holds."""
    workers = (os.cpu_count() or 1) // group.cpus_per_worker
    if group.gpus_per_worker:
        workers = min(workers, int(len(visible_gpus()) / group.gpus_per_worker + 1e-9))
    return workers // group.workers


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs of this machine that a process may use."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu for gpu in chosen.split(",") if gpu]
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))


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
        for values in probe_values(self.space, MAX_ENUMERATED):
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

    def at_points(among: Iterable[Point], grid: Point, seed: int | None) -> Stages:
        matching = [at.completed(point, deciding) for point in among if grid.items() <= point.items()]
        stages = [at.stages(point, seed)[index] for point in matching]
        return {stage.fingerprint(): stage for stage in stages}

    def ask(trials: int, grid: Point, *, seed: int | None = None, trained: Collection[str] = ()) -> Stages:
        """Add trials with these values of the deciding grids; returns the stages that they may ask for."""
        rest = {path: Grid(choices=[grid[path]], when=d.when) if path in grid else d for path, d in deciding.items()}
        ends = at_points(probe_points(rest, most if grid else MAX_ENUMERATED), grid, seed)
        candidates, examples = ends if is_open else at_points(finite_points(rest), grid, seed), tuple(ends.values())
        replication = seed is not None
        if candidates.keys() <= set(trained):
            tally.ask(trials, candidates, 0, examples, replication)
        elif is_open:
            tally.ask_open(trials, examples, replication)
        else:
            tally.ask(trials, candidates, min(trials, len(candidates)), examples, replication)
        return candidates

    grids = [path for path, distribution in deciding.items() if isinstance(distribution, Grid)]
    trials = Counter[tuple[tuple[str, Value], ...]]()  # of each combination of the grids that decide the stage
    for grid_point in grid_of(spec, arm):
        trials[tuple((path, grid_point[path]) for path in grids if path in grid_point)] += samples(spec, arm)
    most = max(1, MAX_ENUMERATED // max(1, len(trials)))  # of each combination
    searched: Stages = {}
    for grid, number in trials.items():
        searched |= ask(number, dict(grid))
    for seed in fresh_seeds(spec, arm):  # a stage with a seed of its own is there from the search
        ask(_replicated(spec, arm), {}, seed=seed, trained=searched)


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
        "disk_bytes": plan.disk.kept_bytes,
        "training_disk_bytes": plan.disk.training_bytes,
        "absent_corpora": plan.absent,
    }
