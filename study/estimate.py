"""What a study costs in hours and money, from measured parts of its stages. Needs neither Ray nor torch."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from study.plan import Plan, Planned, stages_at_a_time, visible_gpus
from study.spec import ResourcesSpec, StudySpec
from trainables.data.corpus import total_seconds
from trainables.stage import Phase, Stage, StageKind, chain
from trainables.trial import corpus_of

# A corpus of fewer batches makes them less full, so that a step costs less.
FEW_BATCHES = 10
# What says how much of a corpus is used.
SUBSET = {"labelled_minutes", "unlabelled_hours", "unlabelled_fraction", "subset_seed", "labelled_list"}

# Fields of a stage that decide what a step and an evaluation cost.
DECIDING = {
    *("kind", "model", "precision", "compile_layers", "batch_seconds", "accumulation", "augment_speed", "crop"),
    *("outputs", "language_model", "keep", "evaluate_test"),
}


@dataclass(frozen=True)
class StageProbe:
    """Measured seconds of the parts of a stage."""

    startup_seconds: float  # its process, corpus and model, and storing the result
    step_seconds: tuple[float, ...]  # of an update of each phase
    frozen_step_seconds: tuple[float, ...]  # the same while the backbone does not learn
    evaluation_seconds: float = 0.0  # on dev
    test_seconds: float = 0.0  # on test, once; for a stage that decodes, all of it
    checkpoint_seconds: float = 0.0


@dataclass(frozen=True)
class Spending:
    """What some stages cost. `elapsed_hours` counts those that run side by side once; `cost` is None without prices."""

    elapsed_hours: float
    accelerator_hours: float
    cost: float | None


@dataclass(frozen=True)
class KindEstimate:
    """Stages of one kind; `shapes` of them were probed."""

    shapes: int
    trained: int
    requested: int
    mean_seconds: float  # of one of those that are trained
    shared: Spending
    unshared: Spending


@dataclass(frozen=True)
class Estimate:
    """What a study costs when every trial trains to its end, without what Ray takes to start.

    Where sizes are searched the mean over the ends of their intervals counts; `least_accelerator_hours` and
    `most_accelerator_hours` are those of the smallest and the largest ones.
    """

    stages: dict[StageKind, KindEstimate]
    shared: Spending
    unshared: Spending
    least_accelerator_hours: float
    most_accelerator_hours: float


@dataclass(frozen=True)
class _Timed:
    """Planned stages with the seconds that one takes, for each of the examples."""

    planned: Planned
    shapes: tuple[str, ...]
    seconds: tuple[float, ...]

    @property
    def kind(self) -> StageKind:
        return self.planned.longest.kind

    @property
    def mean_seconds(self) -> float:
        return statistics.fmean(self.seconds)


def estimate(spec: StudySpec, plan: Plan, probes: Mapping[str, StageProbe]) -> Estimate:
    """`probes` by the stages' `cost_shape`; each shape that the plan has must be there."""
    resources = spec.resources
    distinct, requested = _timed(plan.distinct, probes), _timed(plan.requested, probes)
    stages: dict[StageKind, KindEstimate] = {}
    for kind in dict.fromkeys(timed.kind for timed in distinct):
        trained = [timed for timed in distinct if timed.kind == kind]
        asked = [timed for timed in requested if timed.kind == kind]
        stages[kind] = KindEstimate(
            shapes=len({shape for timed in [*trained, *asked] for shape in timed.shapes}),
            trained=plan.stages[kind].distinct,
            requested=plan.stages[kind].requested,
            mean_seconds=math.fsum(t.planned.count * t.mean_seconds for t in trained) / plan.stages[kind].distinct,
            shared=_spending(resources, trained),
            unshared=_spending(resources, asked),
        )
    return Estimate(
        stages=stages,
        shared=_spending(resources, distinct),
        unshared=_spending(resources, requested),
        least_accelerator_hours=_accelerator_hours(resources, distinct, min),
        most_accelerator_hours=_accelerator_hours(resources, distinct, max),
    )


def _timed(stages: Sequence[Planned], probes: Mapping[str, StageProbe]) -> list[_Timed]:
    found = []
    for planned in stages:
        shapes = tuple(map(cost_shape, planned.examples))
        seconds = [stage_seconds(stage, probes[shape]) for stage, shape in zip(planned.examples, shapes, strict=True)]
        found.append(_Timed(planned, shapes, tuple(seconds)))
    return found


def stage_seconds(stage: Stage, probe: StageProbe) -> float:
    """Seconds of the whole stage, from its process's start to its end."""
    running = evaluations(stage) * probe.evaluation_seconds + stage.evaluate_test * probe.test_seconds
    for index in range(len(stage.phases)):
        frozen = frozen_updates(stage, index)
        running += frozen * probe.frozen_step_seconds[index]
        running += (updates(stage, index, stage.steps) - frozen) * probe.step_seconds[index]
    checkpoints = running // stage.checkpoint_seconds if stage.phases else 0
    return probe.startup_seconds + running + checkpoints * probe.checkpoint_seconds


def evaluations(stage: Stage) -> int:
    """On dev: every `evaluate_every` updates, and after the last one."""
    return math.ceil(stage.steps / stage.evaluate_every) if stage.evaluate_every else 0


def updates(stage: Stage, phase: int, first: int) -> int:
    """How many of the stage's `first` updates the phase makes."""
    lengths = [phase.steps for phase in stage.phases]
    cycles, rest = divmod(first, sum(lengths))
    return cycles * lengths[phase] + min(max(0, rest - sum(lengths[:phase])), lengths[phase])


def frozen_updates(stage: Stage, phase: int) -> int:
    """How many updates of the phase leave the backbone as it is."""
    return updates(stage, phase, min(stage.phases[phase].frozen_backbone_steps, stage.steps))


def cost_shape(stage: Stage) -> str:
    """What decides the seconds of a step and of an evaluation: not rates, seeds, lengths or how much data there is."""
    shape = {
        "stage": stage.model_dump(mode="json", include=DECIDING),
        "phases": [_phase_shape(phase) for phase in stage.phases],
        "corpus": stage.corpus.model_dump(mode="json", exclude=SUBSET),
        "data": stage.data_fingerprint if _has_few_batches(stage) else None,
    }
    return json.dumps(shape, sort_keys=True)


def _phase_shape(phase: Phase) -> list[object]:
    return [phase.loss.model_dump(mode="json"), phase.frozen_backbone_steps > 0]


def _has_few_batches(stage: Stage) -> bool:
    corpus = corpus_of(stage.corpus)
    speech = {"labelled": corpus.train, "unlabelled": corpus.unlabelled}
    return any(total_seconds(speech[stream]) < FEW_BATCHES * stage.batch_seconds for stream in stage.streams)


def _spending(resources: ResourcesSpec, stages: Sequence[_Timed]) -> Spending:
    prices = {timed.kind: hourly_cost(resources, timed.kind) for timed in stages}
    hours = [(timed.planned.count * timed.mean_seconds / 3600, timed.kind) for timed in stages]
    return Spending(
        elapsed_hours=_elapsed_seconds(resources, stages) / 3600,
        accelerator_hours=_accelerator_hours(resources, stages, statistics.fmean),
        cost=math.fsum(held * prices[kind] for held, kind in hours) if resources.node_prices else None,
    )


def _accelerator_hours(
    resources: ResourcesSpec, stages: Sequence[_Timed], mean: Callable[[Sequence[float]], float]
) -> float:
    return math.fsum(t.planned.count * mean(t.seconds) / 3600 * accelerators(resources, t.kind) for t in stages)


def _elapsed_seconds(resources: ResourcesSpec, stages: Sequence[_Timed]) -> float:
    """A study goes in waves: the first stages of all searches, those that start from them, then replications alike.

    A wave takes as long as its stages one after another, over those that run at a time, but no less than one of them.
    """
    waves: dict[tuple[bool, int], list[_Timed]] = defaultdict(list)
    for timed in stages:
        waves[wave_of(timed.planned)].append(timed)
    return math.fsum(
        max(
            math.fsum(t.planned.count * t.mean_seconds / stages_at_a_time(resources, t.kind) for t in wave),
            *(t.mean_seconds for t in wave),
        )
        for wave in waves.values()
    )


def wave_of(planned: Planned) -> tuple[bool, int]:
    """When it runs: in the search or in the replications, and after how many other stages of its trial."""
    return planned.replication, len(chain(planned.longest)) - 1


def accelerators(resources: ResourcesSpec, kind: StageKind) -> float:
    """Of a worker group; without GPUs, its workers."""
    group = resources.group(kind)
    return group.workers * (group.gpus_per_worker or 1.0)


def hourly_cost(resources: ResourcesSpec, kind: StageKind) -> float:
    """Of a worker group, if all nodes are like this machine, at the price of `default`, or else the highest one."""
    group, prices = resources.group(kind), resources.node_prices
    if not prices:
        return 0.0
    cpus, gpus = os.cpu_count() or 1, len(visible_gpus()) or 1
    share = group.gpus_per_worker / gpus if group.gpus_per_worker else group.cpus_per_worker / cpus
    return group.workers * share * prices.get("default", max(prices.values()))
