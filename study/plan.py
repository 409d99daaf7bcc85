"""What a study will run, known before anything starts: trials, stages, which of them are shared, and how long they are.

Needs neither Ray nor torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from search_spaces.space import Point, finite_points, grid_points, sampled, size
from study.spec import StudySpec
from trainables.stage import Stage
from trainables.trial import stages_of

# A stage that depends on more combinations of finite parameters than this is counted by their number alone.
MAX_ENUMERATED = 2_000


@dataclass(frozen=True)
class StageCount:
    """Stages of one kind. `requested` is what trials ask for; `distinct` is the most that are trained."""

    requested: int
    distinct: int
    requested_steps: int
    distinct_steps: int
    requested_audio_hours: float
    distinct_audio_hours: float

    def __add__(self, other: StageCount) -> StageCount:
        ours, theirs = vars(self), vars(other)
        return StageCount(**{name: ours[name] + theirs[name] for name in ours})


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

    @property
    def trials(self) -> int:
        """The most trials that can run."""
        return sum(arm.trials for arm in self.arms.values())


@dataclass
class _Use:
    """How the trials of one arm use one of its stages."""

    requested: int
    distinct: int
    fingerprints: set[str]  # all that are possible, where they can be enumerated and all of them may run
    steps: int
    audio_hours: float


def make_plan(spec: StudySpec) -> Plan:
    plan = Plan()
    seen: set[str] = set()  # a stage that two arms ask for is trained once
    for arm in spec.arms:
        uses = _uses(spec, arm)
        plan.arms[arm] = ArmPlan(search_trials(spec, arm), _replications(spec, arm), tuple(kind for kind, _ in uses))
        for kind, use in uses:
            distinct = use.distinct - len(use.fingerprints & seen)
            seen |= use.fingerprints
            count = StageCount(
                requested=use.requested,
                distinct=distinct,
                requested_steps=use.requested * use.steps,
                distinct_steps=distinct * use.steps,
                requested_audio_hours=use.requested * use.audio_hours,
                distinct_audio_hours=distinct * use.audio_hours,
            )
            plan.stages[kind] = plan.stages[kind] + count if kind in plan.stages else count
    return plan


def search_trials(spec: StudySpec, arm: str) -> int:
    """Trials of the arm's search: for each combination of its grid, `search.trials` samples of what is not a grid."""
    space = spec.arms[arm].space
    samples = spec.search.trials if sampled(space) else 1
    return len(grid_points(space)) * samples


def _replications(spec: StudySpec, arm: str) -> int:
    return min(spec.replication.top, search_trials(spec, arm)) * spec.replication.seeds


def _uses(spec: StudySpec, arm: str) -> list[tuple[str, _Use]]:
    """Each stage of the arm, in order, with the number of times it is requested and the number trained at most."""
    space = spec.arms[arm].space
    searched, replications = search_trials(spec, arm), _replications(spec, arm)
    base = _stages(spec, arm, {})
    fresh = _stages(spec, arm, {}, seed=_fresh_seed(spec, arm))
    uses: list[tuple[str, _Use]] = []
    for index, stage in enumerate(base):
        deciding = {path: d for path, d in space.items() if _decides(spec, arm, path, index)}
        if size(deciding) <= MAX_ENUMERATED:
            fingerprints = {_stages(spec, arm, point)[index].fingerprint() for point in finite_points(deciding)}
            most = min(searched, len(fingerprints))
        else:
            fingerprints, most = set(), searched
        varies_with_seed = fresh[index].fingerprint() != stage.fingerprint()
        distinct = most + (replications if varies_with_seed else 0)
        use = _Use(
            searched + replications,
            distinct,
            fingerprints if most == len(fingerprints) else set(),
            stage.steps,
            audio_hours(stage),
        )
        uses.append((stage.kind, use))
    return uses


def _decides(spec: StudySpec, arm: str, path: str, index: int) -> bool:
    """Whether the parameter can change the stage number `index` of the arm's trials."""
    probes = spec.arms[arm].space[path].probes()
    return len({_stages(spec, arm, {path: value})[index].fingerprint() for value in probes}) > 1


def _fresh_seed(spec: StudySpec, arm: str) -> int:
    return spec.trial_config(arm).seed + 1


def _stages(spec: StudySpec, arm: str, point: Point, seed: int | None = None) -> Sequence[Stage]:
    return stages_of(spec.trial_config(arm, point, seed))


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
    }
