"""What each kind of stage costs in every arm, and what sharing stages saves, from the ledger."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.answer import ON_ONE_DEVICE, Answer
from study.devices import Devices
from study.figure_files import BARS, Drawn, Value
from study.ledger import CurvePoint, Ledger, Trial
from study.spec import StudySpec
from study.statistics import Mean, mean_of
from study.wording import time_text
from trainables.stage import StageKind

KINDS: tuple[str, ...] = get_args(StageKind)
WIDE_ENOUGH = 0.07  # of the longest bar: a part that has room for its share
UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0))
CAPTION = (
    "Accelerator time of a trial, by stage: mean over the seeds that stand for each arm, shared stages in full. "
    "Black: lowest to highest total of a seed. In the bars: share of the stage."
)
NOTE = (
    "Mean over seeds, with the 95 % interval of Student's t. Relative to the pre-training: geometric mean of the "
    "ratios within seeds, with the interval of their logarithms."
)
SHARING_NOTE = (
    "All trials, the search included. Paid: each stage once; one that two arms share is in both their rows, and once "
    "in that of the study. Unshared: each stage once for each trial that used it."
)


@dataclass(frozen=True)
class StageCost:
    """What the stages of one kind cost in the trials that stand for an arm; values in the order of the trials."""

    kind: str
    accelerator_seconds: tuple[float, ...]
    audio_seconds: tuple[float, ...]
    share: tuple[float, ...]  # of the trial's accelerator time
    relative: Mean | None  # accelerator time, of the pre-training's; None: there is none
    relative_audio: Mean | None


@dataclass(frozen=True)
class ArmCosts:
    arm: str
    seeds: tuple[int, ...]
    stages: tuple[StageCost, ...]  # in the order in which they run

    @property
    def totals(self) -> tuple[float, ...]:
        """Accelerator seconds of each trial."""
        return tuple(map(math.fsum, zip(*(stage.accelerator_seconds for stage in self.stages), strict=True)))


@dataclass(frozen=True)
class Sharing:
    """Stages of one kind, or of all kinds, that all trials of an arm, or of the study, asked for."""

    arm: str | None  # None: the whole study
    kind: str | None  # None: all kinds
    trained: int  # different stages
    used: int  # times that a trial used one
    paid_seconds: float  # accelerator time, each stage once
    unshared_seconds: float  # accelerator time, each stage once for each trial

    @property
    def saved(self) -> float:
        """The share of the unshared time that was not spent."""
        return 1 - self.paid_seconds / self.unshared_seconds if self.unshared_seconds else 0.0


@dataclass(frozen=True)
class StageCosts:
    arms: tuple[ArmCosts, ...]  # those with finished trials
    sharing: tuple[Sharing, ...]  # the study in total first, then its kinds of stages, then its arms


@dataclass(frozen=True)
class _Spent:
    """What one stage spent, as far as the ledger has heard of it."""

    stage: str  # fingerprint
    kind: str
    accelerator_seconds: float
    audio_seconds: float


def stage_costs(spec: StudySpec, ledger: Ledger, found: Answer) -> StageCosts:
    """The costs of the arms' stages, as on one device, and what all trials of the study paid, on any.

    Of a trial that was stopped early, or of a stage that other studies share, all that the stage spent counts.
    """
    arms = [_arm_costs(ledger, arm.arm, arm.trials, found.devices) for arm in found.arms if arm.trials]
    by_arm = {arm: [_spent(ledger, t) for t in ledger.trials(spec.study) if t.arm == arm] for arm in spec.arms}
    everything = [stage for trials in by_arm.values() for trial in trials for stage in trial]
    kinds = [kind for kind in KINDS if any(stage.kind == kind for stage in everything)]
    sharing = [
        _sharing(everything),
        *(_sharing([stage for stage in everything if stage.kind == kind], kind=kind) for kind in kinds),
        *(_sharing([stage for trial in trials for stage in trial], arm=arm) for arm, trials in by_arm.items()),
    ]
    return StageCosts(tuple(arm for arm in arms if arm.stages), tuple(row for row in sharing if row.used))


def _spent(ledger: Ledger, trial: Trial, devices: Devices = ON_ONE_DEVICE) -> list[_Spent]:
    """What each stage of the trial spent, in order; the ledger counts from the start of the first one."""
    ends: dict[str, CurvePoint] = {point.stage: point for point in devices.curve(ledger, trial)}
    found, accelerator_before, audio_before = [], 0.0, 0.0
    for stage, end in ends.items():
        accelerator, audio = end.accelerator_seconds - accelerator_before, end.audio_seconds - audio_before
        found.append(_Spent(stage, end.kind, accelerator, audio))
        accelerator_before, audio_before = end.accelerator_seconds, end.audio_seconds
    return found


def _arm_costs(ledger: Ledger, arm: str, trials: Sequence[Trial], devices: Devices) -> ArmCosts:
    """Of the trials that ran every kind of stage that any of them ran."""
    spent = {trial.seed: {stage.kind: stage for stage in _spent(ledger, trial, devices)} for trial in trials}
    kinds = max((tuple(stages) for stages in spent.values()), key=len)
    whole = {seed: stages for seed, stages in spent.items() if tuple(stages) == kinds}
    return ArmCosts(arm, tuple(whole), tuple(_stage_cost(kind, list(whole.values())) for kind in kinds))


def _stage_cost(kind: str, trials: Sequence[dict[str, _Spent]]) -> StageCost:
    accelerator = [trial[kind].accelerator_seconds for trial in trials]
    audio = [trial[kind].audio_seconds for trial in trials]
    totals = [math.fsum(stage.accelerator_seconds for stage in trial.values()) for trial in trials]
    pretraining = [trial["pretrain"] for trial in trials if "pretrain" in trial and kind != "pretrain"]
    return StageCost(
        kind=kind,
        accelerator_seconds=tuple(accelerator),
        audio_seconds=tuple(audio),
        share=tuple(spent / total if total else 0.0 for spent, total in zip(accelerator, totals, strict=True)),
        relative=_mean_ratio(accelerator, [stage.accelerator_seconds for stage in pretraining]),
        relative_audio=_mean_ratio(audio, [stage.audio_seconds for stage in pretraining]),
    )


def _mean_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Mean | None:
    """Geometric mean of the ratios of the pairs, with Student's t interval on the logarithms.

    None where there are no pairs, or one of the values is not positive.
    """
    if not theirs or min(*ours, *theirs) <= 0:
        return None
    logarithm = mean_of([math.log(a / b) for a, b in zip(ours, theirs, strict=True)])
    if logarithm.low is None or logarithm.high is None:
        return Mean(math.exp(logarithm.estimate), None, None)
    return Mean(*(math.exp(value) for value in (logarithm.estimate, logarithm.low, logarithm.high)))


def _sharing(used: Sequence[_Spent], *, arm: str | None = None, kind: str | None = None) -> Sharing:
    trained = {stage.stage: stage.accelerator_seconds for stage in used}
    return Sharing(
        arm=arm,
        kind=kind,
        trained=len(trained),
        used=len(used),
        paid_seconds=math.fsum(trained.values()),
        unshared_seconds=math.fsum(stage.accelerator_seconds for stage in used),
    )


def cost_sentences(costs: StageCosts) -> list[str]:
    """What each stage after a pre-training costs relative to it, and what sharing saved."""
    sentences = [
        f"{arm.arm}: {stage.kind} takes {_ratio_text(stage.relative)} the accelerator time of the pre-training, "
        f"{len(arm.seeds)} seed{'s' if len(arm.seeds) > 1 else ''}."
        for arm in costs.arms
        for stage in arm.stages
        if stage.relative
    ]
    if costs.sharing:
        total = costs.sharing[0]
        sentences.append(
            f"All trials together took {time_text(total.paid_seconds)} of accelerator time; without shared stages it "
            f"would have been {time_text(total.unshared_seconds)} ({total.saved:.0%} saved)."
        )
    return sentences


def cost_table(costs: StageCosts) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a stage of an arm each."""
    head = [
        "arm",
        "stage",
        "seeds",
        "accelerator time",
        "share",
        "audio",
        "time, of the pre-training's",
        "audio, of the pre-training's",
    ]
    return head, [_row(arm, stage) for arm in costs.arms for stage in arm.stages]


def _row(arm: ArmCosts, stage: StageCost) -> list[str]:
    return [
        arm.arm,
        stage.kind,
        str(len(arm.seeds)),
        _time_interval(stage.accelerator_seconds),
        f"{statistics.fmean(stage.share):.0%}",
        _time_interval(stage.audio_seconds),
        _ratio_text(stage.relative),
        _ratio_text(stage.relative_audio),
    ]


def sharing_table(costs: StageCosts) -> tuple[list[str], list[list[str]]]:
    """Head and rows: the study, its kinds of stages, its arms."""
    head = ["trials of", "stages", "trained", "used", "paid", "unshared", "saved"]
    return head, [
        [
            row.arm or "the study",
            row.kind or "all",
            str(row.trained),
            str(row.used),
            time_text(row.paid_seconds),
            time_text(row.unshared_seconds),
            f"{row.saved:.0%}",
        ]
        for row in costs.sharing
    ]


def _time_interval(seconds: Sequence[float]) -> str:
    """`3.1 min (2.9 min to 3.3 min)`; the mean alone where one seed leaves no interval, or all are the same."""
    mean = mean_of(seconds)
    if mean.low is None or mean.high is None or time_text(mean.low) == time_text(mean.high):
        return time_text(mean.estimate)
    return f"{time_text(mean.estimate)} ({time_text(max(0.0, mean.low))} to {time_text(mean.high)})"


def _ratio_text(ratio: Mean | None) -> str:
    if ratio is None:
        return ""
    if ratio.low is None or ratio.high is None or f"{ratio.low:.2f}" == f"{ratio.high:.2f}":
        return f"{ratio.estimate:.2f}x"
    return f"{ratio.estimate:.2f}x ({ratio.low:.2f}-{ratio.high:.2f})"


def stage_costs_as_dict(costs: StageCosts) -> dict[str, Any]:
    """What programs read."""
    return {
        "sentences": cost_sentences(costs),
        "arms": [asdict(arm) for arm in costs.arms],
        "sharing": [asdict(row) | {"saved": row.saved} for row in costs.sharing],
    }


def cost_figure(costs: StageCosts) -> Drawn | None:
    """Accelerator time of a trial of each arm, as a bar of its stages; None where nothing was spent."""
    longest = max((max(arm.totals) for arm in costs.arms), default=0.0)
    if longest == 0:
        return None
    figure = Figure(figsize=(8, 1.3 + 0.45 * len(costs.arms)), layout="constrained")
    panel = figure.subplots()
    name, unit = next((name, unit) for name, unit in UNITS if longest >= 2 * unit or unit == 1.0)
    for place, arm in enumerate(costs.arms):
        _bar(panel, place, arm, unit, longest)
    panel.set_yticks(range(len(costs.arms)), [arm.arm for arm in costs.arms])
    panel.invert_yaxis()
    panel.set_xlabel(f"accelerator time of a trial, {name}")
    panel.grid(alpha=0.25, axis="x")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    handles = {label: bar for bar, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    shown = [kind for kind in KINDS if kind in handles]
    figure.legend([handles[kind] for kind in shown], shown, frameon=False, loc="outside lower center", ncols=len(shown))
    columns = ("arm", "seed", "stage", "accelerator time, s", "audio, s", "share of accelerator time")
    rows: list[tuple[Value, ...]] = [
        (arm.arm, seed, stage.kind, *values)
        for arm in costs.arms
        for stage in arm.stages
        for seed, *values in zip(arm.seeds, stage.accelerator_seconds, stage.audio_seconds, stage.share, strict=True)
    ]
    return Drawn(figure, columns, rows)


def _bar(panel: Axes, place: int, arm: ArmCosts, unit: float, longest: float) -> None:
    start = 0.0
    for stage in arm.stages:
        length = statistics.fmean(stage.accelerator_seconds)
        panel.barh(
            place,
            length / unit,
            left=start / unit,
            height=0.7,
            label=stage.kind,
            **BARS[stage.kind],
        )
        if length > WIDE_ENOUGH * longest:
            text = f"{statistics.fmean(stage.share):.0%}"
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            panel.text((start + length / 2) / unit, place, text, ha="center", va="center", fontsize=8, bbox=box)
        start += length
    panel.hlines(place, min(arm.totals) / unit, max(arm.totals) / unit, color="black", linewidth=1.5)
