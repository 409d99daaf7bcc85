"""Measuring what a study will cost: a few real steps of each shape of stage, on this machine.

As many stages run side by side as the study would run, each in processes like those of a worker group. Estimates are
those of full training. Left out: what an untrained model makes cheaper or dearer than a trained one, above all in a
stage that decodes with a language model; updates of pseudo-labelling before its teacher starts, which count as full.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from study.estimate import Estimate, StageProbe, cost_shape, estimate, wave_of
from study.plan import Plan, groups_here, stages_at_a_time, visible_gpus
from study.spec import GroupSpec, ResourcesSpec, StudySpec
from trainables.data.corpus import total_seconds
from trainables.losses.config import LossConfig, PseudoLabelConfig
from trainables.settings_file import SettingsError
from trainables.stage import InitialWeights, Report, Stage, StageKind, chain
from trainables.stage_process import Place, StageProcesses, free_address
from trainables.trial import corpus_of

WARM_UP = 2  # updates of each phase that are left out
ENDLESS = 1_000_000  # updates, of a stage that is stopped
EACH_TIME = 1e-9  # seconds between checkpoints

Result = TypeVar("Result")


@dataclass(frozen=True)
class Effort:
    """How long each shape is measured: so many seconds and updates of each phase, but no more than the most seconds."""

    least_seconds: float = 10.0
    most_seconds: float = 60.0
    least_updates: int = 8


@dataclass(frozen=True)
class _Run:
    """What a stage said, and the seconds from its order to its end."""

    reports: list[Report]
    seconds: float

    @property
    def steps(self) -> list[float]:
        """Seconds of each update, with what came between it and the one before."""
        elapsed = [0.0, *(report.elapsed_seconds for report in self.reports)]
        return [after - before for before, after in itertools.pairwise(elapsed)]


def probe(spec: StudySpec, plan: Plan, tell: Callable[[str], None]) -> Estimate:
    """What the study costs, going by what `measure` finds on this machine."""
    return estimate(spec, plan, measure(spec, plan, tell))


def measure(
    spec: StudySpec, plan: Plan, tell: Callable[[str], None], effort: Effort | None = None
) -> dict[str, StageProbe]:
    """What each shape of stage takes, by `cost_shape`; `tell` hears which one is being measured.

    Raises SettingsError where the corpora or a worker group's CPUs and GPUs are not on this machine, and for a stage
    that fails.
    """
    if plan.absent:
        raise SettingsError(plan.absent)
    shapes = _shapes(plan)
    for kind in {stage.kind for stage in shapes.values()}:
        _refuse_too_large(spec.resources.group(kind))
    probes = {}
    folder = spec.storage if spec.storage.is_dir() else None  # writing takes as long there as it will
    with tempfile.TemporaryDirectory(prefix="probe-", dir=folder) as storage, _Lanes(Path(storage)) as all_lanes:
        for number, (shape, stage) in enumerate(shapes.items(), start=1):
            tell(f"probing {number} of {len(shapes)}: {stage.kind}, {stage.model.family}")
            lanes = all_lanes.take(spec.resources.group(stage.kind), _side_by_side(spec.resources, plan, stage.kind))
            own = stage.with_(seed=stage.seed + 1000 * number)  # no run of another shape is taken for one of this
            probes[shape] = _probe_stage(own, lanes, effort or Effort())
    return probes


def _shapes(plan: Plan) -> dict[str, Stage]:
    """One stage of each shape that the study has."""
    found: dict[str, Stage] = {}
    for planned in (*plan.distinct, *plan.requested):
        for stage in planned.examples:
            found.setdefault(cost_shape(stage), stage)
    return found


# ---- worker groups on this machine -----------------------------------------------------------------------------------


class _Lane:
    """What a worker group would be: a process for each worker."""

    def __init__(self, number: int, group: GroupSpec, storage: Path) -> None:
        self.number, self._workers, self._ended = number, group.workers, False
        first = number * group.workers
        self._processes = [_processes(group, first + rank, storage / str(number)) for rank in range(group.workers)]

    def run(self, stage: Stage, is_enough: Callable[[Sequence[Report]], bool] = lambda reports: False) -> _Run:
        """Run the stage to its end, or until that is enough. Raises SettingsError when it fails."""
        reports: list[Report] = []
        causes: list[str] = []
        address = free_address("127.0.0.1") if self._workers > 1 else ""
        started = time.monotonic()

        def work(rank: int) -> None:
            place = Place(rank, self._workers, address)
            outcome = self._processes[rank].run(
                stage, place, reports.append, lambda: "stop" if self._ended or causes or is_enough(reports) else "go on"
            )
            if outcome.status == "failed" and not is_enough(reports):  # workers fail when another one has stopped
                causes.append(f"{stage.kind}: {outcome.cause}")

        with ThreadPoolExecutor(self._workers) as pool:
            list(pool.map(work, range(self._workers)))
        if causes:
            raise SettingsError(causes[:1])
        return _Run(reports, time.monotonic() - started)

    def end(self) -> None:
        """Let a stage that is running end soon."""
        self._ended = True

    def close(self) -> None:
        for processes in self._processes:
            processes.close()


class _Lanes(ExitStack):
    """The lanes of a probe, started as they are needed."""

    def __init__(self, storage: Path) -> None:
        super().__init__()
        self._storage = storage
        self._lanes: dict[tuple[int, int, float], list[_Lane]] = {}

    def take(self, group: GroupSpec, number: int) -> list[_Lane]:
        """So many lanes for groups of this size."""
        size = (group.workers, group.cpus_per_worker, group.gpus_per_worker)
        lanes = self._lanes.setdefault(size, [])
        while len(lanes) < number:
            lanes.append(_Lane(len(lanes), group, self._storage))
            self.callback(lanes[-1].close)
        return lanes[:number]


def _side_by_side(resources: ResourcesSpec, plan: Plan, kind: StageKind) -> int:
    """How many stages run at a time in the study's widest wave that has such stages, and fit on this machine."""
    waves = {wave_of(planned) for planned in plan.distinct if planned.longest.kind == kind}
    widest = max(sum(p.count for p in plan.distinct if wave_of(p) == wave) for wave in waves)
    return min(stages_at_a_time(resources, kind), widest, groups_here(resources.group(kind)))


def _refuse_too_large(group: GroupSpec) -> None:
    if not groups_here(group):
        raise SettingsError(
            [
                f"a probe runs on this machine, which holds {os.cpu_count()} CPU(s) and {len(visible_gpus())} GPU(s), "
                f"and a worker group needs {group.workers} worker(s) of {group.cpus_per_worker} CPU(s) and "
                f"{group.gpus_per_worker:g} GPU(s) each; run it on a node of the cluster, or lower resources"
            ]
        )


def _processes(group: GroupSpec, worker: int, storage: Path) -> StageProcesses:
    """The processes of the worker with this number among all on this machine."""
    if not group.gpus_per_worker:
        return StageProcesses(storage, group.cpus_per_worker, "cpu")
    before, gpus = os.environ.get("CUDA_VISIBLE_DEVICES"), visible_gpus()
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(worker * group.gpus_per_worker + 1e-9)]
    try:
        return StageProcesses(storage, group.cpus_per_worker, "cuda")
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


# ---- one shape -------------------------------------------------------------------------------------------------------


def _probe_stage(stage: Stage, lanes: Sequence[_Lane], effort: Effort) -> StageProbe:
    stage = _from_brief(stage)
    _on_all(lanes, lambda lane: [lane.run(earlier) for earlier in chain(stage)[:-1]])
    if not stage.phases:
        runs = _on_all(lanes, lambda lane: lane.run(stage))
        elapsed = statistics.fmean(run.reports[-1].elapsed_seconds for run in runs)
        return StageProbe(_startup_seconds(runs), (), (), test_seconds=elapsed)
    step_seconds = _step_seconds(stage, lanes, effort, frozen=False)
    freezes = any(phase.frozen_backbone_steps for phase in stage.phases)
    frozen_step_seconds = _step_seconds(stage, lanes, effort, frozen=True) if freezes else step_seconds
    runs = _on_all(lanes, lambda lane: lane.run(_whole(stage, lane.number)))
    checkpoint_seconds = max(0.0, statistics.fmean(_checkpoint_seconds(run, step_seconds) for run in runs))
    last = statistics.fmean(run.steps[-1] for run in runs) - step_seconds[-1] - checkpoint_seconds
    dev_share, test_share = _evaluated_shares(stage)
    return StageProbe(
        startup_seconds=_startup_seconds(runs),
        step_seconds=step_seconds,
        frozen_step_seconds=frozen_step_seconds,
        evaluation_seconds=max(0.0, last) * dev_share,
        test_seconds=max(0.0, last) * test_share,
        checkpoint_seconds=checkpoint_seconds,
    )


def _on_all(lanes: Sequence[_Lane], work: Callable[[_Lane], Result]) -> list[Result]:
    """The work on all lanes side by side."""
    with ThreadPoolExecutor(len(lanes)) as pool:
        try:
            return list(pool.map(work, lanes))
        except BaseException:
            for lane in lanes:
                lane.end()
            raise


def _step_seconds(stage: Stage, lanes: Sequence[_Lane], effort: Effort, *, frozen: bool) -> tuple[float, ...]:
    """Of an update of each phase, as the mean over the batches that come first; each lane has others."""
    phases = len(stage.phases)

    def is_enough(reports: Sequence[Report]) -> bool:
        seconds = reports[-1].elapsed_seconds if reports else 0.0
        measured = len(reports) // phases - WARM_UP
        wanted = effort.least_updates if seconds < effort.most_seconds else 1
        return seconds >= effort.least_seconds and measured >= wanted

    runs = _on_all(lanes, lambda lane: lane.run(_endless(stage, lane.number, frozen=frozen), is_enough))
    warm = WARM_UP * phases
    return tuple(
        statistics.fmean(seconds for run in runs for seconds in run.steps[warm + phase :: phases])
        for phase in range(phases)
    )


def _startup_seconds(runs: Sequence[_Run]) -> float:
    return statistics.fmean(run.seconds - run.reports[-1].elapsed_seconds for run in runs)


def _checkpoint_seconds(run: _Run, step_seconds: Sequence[float]) -> float:
    """What updates that come after a checkpoint take longer, where nothing was evaluated."""
    steps = run.steps
    half = len(steps) // 2
    return statistics.fmean(steps[i] - step_seconds[i % len(step_seconds)] for i in range(half, len(steps) - 1))


def _evaluated_shares(stage: Stage) -> tuple[float, float]:
    """The parts of the last evaluation that are on dev and on test; none where nothing is evaluated."""
    corpus = corpus_of(stage.corpus)
    dev = total_seconds(corpus.dev) if stage.evaluate_every else 0.0
    test = total_seconds(corpus.test) if stage.evaluate_test else 0.0
    both = (dev + test) or 1.0
    return dev / both, test / both


# ---- brief versions of a stage ---------------------------------------------------------------------------------------


def _brief(stage: Stage) -> Stage:
    """An update of each phase, for its weights."""
    stage = _in_turn(_from_brief(stage), frozen=False)
    return stage.with_(steps=len(stage.phases), evaluate_every=None, evaluate_test=False, keep="last")


def _from_brief(stage: Stage) -> Stage:
    """The stage, started from brief versions of those before it."""
    if stage.initial is None:
        return stage
    return stage.with_(initial=InitialWeights(stage=_brief(stage.initial.stage), parts=stage.initial.parts))


def _endless(stage: Stage, lane: int, *, frozen: bool) -> Stage:
    """Updates alone."""
    stage = _in_turn(stage, frozen=frozen)
    return stage.with_(
        steps=ENDLESS,
        evaluate_every=None,
        evaluate_test=False,
        keep="last",
        checkpoint_seconds=float(ENDLESS),
        seed=stage.seed + lane,
    )


def _whole(stage: Stage, lane: int) -> Stage:
    """Evaluations at the middle and at the end, and a checkpoint after each update."""
    stage = _in_turn(stage, frozen=False)
    half = 2 * len(stage.phases)
    evaluate = half if stage.evaluate_every else None
    return stage.with_(steps=2 * half, evaluate_every=evaluate, checkpoint_seconds=EACH_TIME, seed=stage.seed + lane)


def _in_turn(stage: Stage, *, frozen: bool) -> Stage:
    """The phases after one another, an update each, with a report each. `frozen`: those that begin so stay so."""
    phases = [
        phase.with_(
            steps=1,
            frozen_backbone_steps=ENDLESS if frozen and phase.frozen_backbone_steps else 0,
            loss=_from_the_first_update(phase.loss),
        )
        for phase in stage.phases
    ]
    return stage.with_(phases=tuple(phases), report_every=1)


def _from_the_first_update(loss: LossConfig) -> LossConfig:
    """Pseudo-labelling without its warm-up."""
    return loss.with_(warmup_steps=0) if isinstance(loss, PseudoLabelConfig) else loss
