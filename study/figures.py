"""The figures of a report, with the data that are drawn in them."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from search_spaces.space import AnyDistribution, Categorical, Grid, IntUniform, LogUniform
from study.answer import ON_ONE_DEVICE, Answer, ArmResult, Cell, Front
from study.convergence import Axis
from study.devices import Devices
from study.figure_files import BARS, COLOURS, Drawn, Look, Value, looks
from study.ledger import CurvePoint, Ledger, Trial
from study.pareto import non_dominated
from study.spec import StudySpec
from study.survival import kaplan_meier
from study.wording import goal_text, metric_name, objective_name

UNITS: dict[Axis, tuple[str, float]] = {
    "step": ("updates (all stages)", 1.0),
    "audio_seconds": ("audio processed, hours", 3600.0),
    "accelerator_seconds": ("accelerator time, minutes", 60.0),
    "elapsed_seconds": ("elapsed time, minutes", 60.0),
}
PANELS: tuple[Axis, Axis] = ("step", "accelerator_seconds")
LABEL_WIDTH = 62  # characters that stand below a panel
BREAK_SECONDS = 5.0  # between two reports, beyond the time spent in the stage: it was interrupted

Rows = list[tuple[Value, ...]]


@dataclass(frozen=True)
class Curves:
    """The trials of an arm in a figure of convergence: those that stand for it, and the others."""

    label: str
    study: str
    standing: Sequence[Trial]
    others: Sequence[Trial]
    devices: Devices = ON_ONE_DEVICE  # of the study


def _arm_curves(spec: StudySpec, ledger: Ledger, found: Answer, arm: ArmResult) -> Curves:
    standing = {trial.trial for trial in arm.trials}
    others = [t for t in ledger.trials(spec.study) if t.arm == arm.arm and t.trial not in standing]
    return Curves(arm.arm, spec.study, arm.trials, others, found.devices)


def convergence_figure(spec: StudySpec, ledger: Ledger, found: Answer) -> Drawn:
    """dev WER (or mixed error rate) and CER against updates and against accelerator time; a row for each metric."""
    arms = [_arm_curves(spec, ledger, found, arm) for arm in found.arms]
    return curves_figure(spec.question, ledger, arms, {(spec.convergence.metric, spec.convergence.target)})


def _label(axis: Axis, devices: Iterable[Devices]) -> str:
    """What the axis shows. Accelerator time of different devices is as on one of them."""
    label = UNITS[axis][0]
    references = list(dict.fromkeys(reference for of_study in devices for reference in of_study.references))
    if axis != "accelerator_seconds" or not references:
        return label
    return f"{label}, {f'as on {references[0]}' if len(references) == 1 else 'on devices that do not compare'}"


def curves_figure(title: str, ledger: Ledger, arms: Sequence[Curves], targets: Iterable[tuple[str, float]]) -> Drawn:
    """The same for arms of any studies. `targets` are pairs of a metric and its target."""
    targets = sorted(targets)
    upper = "dev_mer" if any(metric == "dev_mer" for metric, _ in targets) else "dev_wer"
    figure, grid = plt.subplots(2, 2, figsize=(10, 7), sharey="row", layout="constrained")
    rows: Rows = []
    for panels, metric in zip(grid, (upper, "dev_cer"), strict=True):
        for panel, axis in zip(panels, PANELS, strict=True):
            rows += _curves_panel(panel, ledger, arms, metric, axis)
            for target in (value for name, value in targets if name == metric):
                panel.axhline(100 * target, color="black", linewidth=0.8, linestyle=":")
                label = _label(axis, (arm.devices for arm in arms))
                rows.append((metric_name(metric), label, None, "target", None, 100 * target, None, None))
        panels[0].set_ylabel(f"{metric_name(metric)}, %")
    if any(arm.standing for arm in arms):
        figure.legend(*grid[0][1].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    figure.suptitle(title.replace("$", r"\$"), fontsize=11, wrap=True)  # a dollar would begin a formula
    band = ("lowest seed, %", "highest seed, %")
    return Drawn(figure, ("metric", "x is", "arm", "series", "x", "metric, %", *band), rows)


def _curves_panel(panel: Axes, ledger: Ledger, arms: Sequence[Curves], metric: str, axis: Axis) -> Rows:
    label, unit = _label(axis, (arm.devices for arm in arms)), UNITS[axis][1]
    rows: Rows = []
    for arm, look in zip(arms, looks(arm.label for arm in arms).values(), strict=True):
        start = (metric_name(metric), label, arm.label)
        for trial in arm.others:
            x, y = _xy(arm.devices.curve(ledger, trial, metric), axis, unit)
            panel.plot(x, y, color=look.colour, linestyle=look.line, alpha=0.3, linewidth=0.8)
            rows += [(*start, trial.trial, *point, None, None) for point in zip(x.tolist(), y.tolist(), strict=True)]
        found = [_xy(arm.devices.curve(ledger, trial, metric), axis, unit) for trial in arm.standing]
        if curves := [curve for curve in found if len(curve[0])]:
            seeds = f"{len(curves)} seed{'s' if len(curves) > 1 else ''}"
            band = _band(panel, curves, look, f"{arm.label} ({seeds})")
            rows += [(*start, f"mean of {seeds}", *point) for point in band]
    panel.set_xlabel(textwrap.fill(label, LABEL_WIDTH))
    panel.set_xlim(left=0)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    return rows


def _xy(curve: Sequence[CurvePoint], axis: Axis, unit: float) -> tuple[np.ndarray, np.ndarray]:
    return (np.array([getattr(p, axis) / unit for p in curve]), np.array([100 * p.value for p in curve]))


def _band(panel: Axes, curves: Sequence[tuple[np.ndarray, np.ndarray]], look: Look, label: str) -> list[list[float]]:
    """Mean over seeds, and the band from the lowest to the highest, where all seeds have values.

    Returns x, mean, lowest and highest of each point.
    """
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    x = np.unique(np.concatenate([x[(x >= start) & (x <= end)] for x, _ in curves]))
    values = np.stack([np.interp(x, *curve) for curve in curves])
    panel.plot(x, values.mean(0), color=look.colour, linestyle=look.line, linewidth=2, label=label)
    if len(curves) > 1:
        panel.fill_between(x, values.min(0), values.max(0), color=look.colour, alpha=0.2, linewidth=0)
    points: list[list[float]] = np.stack([x, values.mean(0), values.min(0), values.max(0)], axis=1).tolist()
    return points


def survival_figure(spec: StudySpec, found: Answer) -> Drawn:
    """The share of seeds that have not reached the target, against updates and against accelerator time."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    rows: Rows = []
    for panel, axis in zip(panels, PANELS, strict=True):
        label = _label(axis, [found.devices])
        for arm, look in zip(found.arms, looks(arm.arm for arm in found.arms).values(), strict=True):
            if arm.trials:
                rows += _survival_line(panel, arm, axis, look, label)
        panel.set_xlabel(textwrap.fill(label, LABEL_WIDTH))
        panel.set_xlim(left=0)
        panel.set_ylim(-3, 103)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    goal = goal_text(spec)
    panels[0].set_ylabel(f"seeds above a {goal}, %")
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    return Drawn(figure, ("x is", "arm", "x", f"seeds above a {goal} from x on, %", "a curve ended here"), rows)


def _to_extremes(values: NDArray[Any]) -> list[list[float]]:
    """Lengths of error bars from the mean to the lowest and to the highest; rounding makes none negative."""
    mean = values.mean()
    return [[max(0.0, mean - values.min())], [max(0.0, values.max() - mean)]]


def _survival_line(panel: Axes, arm: ArmResult, axis: Axis, look: Look, name: str) -> Rows:
    """Kaplan and Meier's estimate as steps, with a tick where the curve of a seed ended above the target."""
    unit = UNITS[axis][1]
    durations = arm.durations(arm.target, axis)
    curve = kaplan_meier(durations)
    times, shares = np.array([0.0, *curve.times]) / unit, 100 * np.array([1.0, *curve.survival])
    ended = np.isin([0.0, *curve.times], [d.value for d in durations if not d.reached])
    label = f"{arm.arm} ({arm.reached} of {len(arm.trials)} reached it)"
    panel.step(times, shares, where="post", color=look.colour, linestyle=look.line, linewidth=2, label=label)
    ticks = (times[ended], shares[ended])
    panel.plot(*ticks, linestyle="", marker="|", markersize=14, markeredgewidth=2, color=look.colour)
    points = zip(times.tolist(), shares.tolist(), ended.tolist(), strict=True)
    return [(name, arm.arm, time, share, "yes" if tick else "no") for time, share, tick in points]


def pareto_figure(spec: StudySpec, front: Front) -> Drawn:
    """The metric against each further objective, a dot for each configuration; last, the hypervolume over trials."""
    metric, *costs = front.objectives
    figure, panels = plt.subplots(1, len(costs) + 1, figsize=(3.8 * (len(costs) + 1), 4), layout="constrained")
    look_of = looks(spec.arms)
    rows: Rows = []
    for panel, cost in zip(panels, costs, strict=False):
        rows += _front_panel(panel, front, metric, cost, look_of)
    rows += _hypervolume_panel(panels[-1], front.hypervolume)
    for panel in panels:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    legend = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle="", label=arm) for arm, look in look_of.items()
    ]
    figure.legend(handles=legend, frameon=False, loc="outside lower center", ncols=4)
    columns = ("x is", "y is", "arm", "on the front", "x", "lowest x", "highest x", "y", "lowest y", "highest y")
    return Drawn(figure, columns, rows)


def _front_panel(panel: Axes, front: Front, metric: str, cost: str, look_of: Mapping[str, Look]) -> Rows:
    means: list[tuple[float, float]] = []
    rows: Rows = []
    for candidate in front.candidates:
        look = look_of[candidate.arm]
        x, y = np.array(candidate.values[cost]), 100 * np.array(candidate.values[metric])
        means.append((float(x.mean()), float(y.mean())))
        spans = [float(value) for v in (x, y) for value in (v.mean(), v.min(), v.max())]
        names = (objective_name(cost), f"{metric_name(metric)}, %", candidate.arm)
        rows.append((*names, "yes" if candidate.on_front else "no", *spans))
        panel.errorbar(
            x.mean(),
            y.mean(),
            xerr=_to_extremes(x),
            yerr=_to_extremes(y),
            color=look.colour,
            marker=look.marker,
            markerfacecolor=look.colour if candidate.on_front else "white",
            alpha=1.0 if candidate.on_front else 0.5,
            linewidth=0.8,
        )
    steps = np.array(sorted(means[index] for index in non_dominated(means)))
    panel.step(*steps.T, where="post", color="black", linewidth=0.8, zorder=1)
    panel.set_xlabel(objective_name(cost))
    panel.set_ylabel(f"{metric_name(metric)}, %")
    if max(x for x, _ in means) > 10 * min(x for x, _ in means) > 0:
        panel.set_xscale("log")
    if cost == "parameters":
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    return rows


def _hypervolume_panel(panel: Axes, volumes: Sequence[float]) -> Rows:
    share = [100 * volume / volumes[-1] for volume in volumes]
    panel.step(range(1, len(share) + 1), share, where="post", color="black", linewidth=1, marker=".")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    names = ("finished trials of the search", "hypervolume, % of the last")
    panel.set_xlabel(names[0])
    panel.set_ylabel(names[1])
    panel.set_ylim(bottom=0)
    return [(*names, None, None, x, None, None, y, None, None) for x, y in enumerate(share, start=1)]


def searched_trials(spec: StudySpec, ledger: Ledger) -> dict[str, list[tuple[Trial, float]]]:
    """Search trials that finished or were stopped, with their metric, of each searched arm with two finished ones."""
    metric = spec.search.metric
    found: dict[str, list[tuple[Trial, float]]] = {name: [] for name, arm in spec.arms.items() if arm.space}
    for trial in ledger.trials(spec.study):
        if trial.arm in found and trial.origin == "search" and trial.status in ("finished", "stopped"):
            final = ledger.final(spec.study, trial.trial)
            if metric in final:
                found[trial.arm].append((trial, final[metric]))
    return {arm: trials for arm, trials in found.items() if sum(t.status == "finished" for t, _ in trials) > 1}


def slices_figure(spec: StudySpec, searched: Mapping[str, Sequence[tuple[Trial, float]]]) -> Drawn:
    """The metric against each searched value: a row for each arm, a panel for each path."""
    columns = max(len(spec.arms[arm].space) for arm in searched)
    size = (max(5.0, 2.8 * columns), 2.2 * len(searched))
    figure, grid = plt.subplots(len(searched), columns, figsize=size, squeeze=False, sharey="row", layout="constrained")
    look_of = looks(spec.arms)
    rows: Rows = []
    for row, (arm, trials) in zip(grid, searched.items(), strict=True):
        space = spec.arms[arm].space
        for panel, path in zip(row, space, strict=False):
            rows += _slice(panel, space[path], path, trials, look_of[arm])
        for panel in row[len(space) :]:
            panel.set_axis_off()
        row[0].set_ylabel(f"{arm}\n{metric_name(spec.search.metric)}, %", fontsize=8)
    head = ("arm", "trial", "status", "searched path", "value", f"{metric_name(spec.search.metric)}, %")
    return Drawn(figure, head, rows)


def _slice(
    panel: Axes, distribution: AnyDistribution, path: str, trials: Sequence[tuple[Trial, float]], look: Look
) -> Rows:
    """A dot for each trial that has the path; hollow where it was stopped."""
    choices = distribution.choices if isinstance(distribution, Categorical | Grid) else None
    there = [(trial, value) for trial, value in trials if path in trial.point]
    for trial, value in there:
        x = choices.index(trial.point[path]) if choices else trial.point[path]
        face = look.colour if trial.status == "finished" else "none"
        panel.scatter(
            x,
            100 * value,
            s=16,
            marker=look.marker,
            facecolors=face,
            edgecolors=look.colour,
            linewidths=0.8,
            clip_on=False,
        )
    if choices:
        names = [_shortened(str(choice)) for choice in choices]
        panel.set_xticks(range(len(names)), names, rotation=90 if len("".join(names)) > 30 else 0)
        panel.set_xlim(-0.5, len(choices) - 0.5)
    elif isinstance(distribution, LogUniform):
        panel.set_xscale("log")
        panel.set_xlim(distribution.low, distribution.high)
        decades = math.log10(distribution.high / distribution.low)
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0)))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
    elif isinstance(distribution, IntUniform):
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel(path, fontsize=7)
    panel.tick_params(labelsize=7)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    return [(trial.arm, trial.trial, trial.status, path, trial.point[path], 100 * value) for trial, value in there]


def _shortened(name: str) -> str:
    return name if len(name) <= 14 else f"{name[:13]}…"


def grids(spec: StudySpec, found: Answer) -> dict[str, tuple[str, str]]:
    """The two paths of each arm that searches two numbers by grid and nothing else but seeds, where it has results."""
    pairs = {}
    for name, arm in spec.arms.items():
        space = {path: distribution for path, distribution in arm.space.items() if path != "seed"}
        if len(space) == 2 and all(_is_numeric_grid(d) for d in space.values()) and _measured(spec, found, name):
            first, second = space
            pairs[name] = (first, second)
    return pairs


def _is_numeric_grid(distribution: AnyDistribution) -> bool:
    if not isinstance(distribution, Grid) or distribution.when or len(distribution.choices) < 2:
        return False
    return all(isinstance(c, int | float) and not isinstance(c, bool) for c in distribution.choices)


def _measured(spec: StudySpec, found: Answer, arm: str) -> list[Cell]:
    """The configurations of the arm that have the metric of the search."""
    return [cell for cell in found.cells if cell.arm == arm and spec.search.metric in cell.rates]


def heat_map_figure(spec: StudySpec, found: Answer, pairs: Mapping[str, tuple[str, str]]) -> Drawn:
    """The metric at every point of each arm's grid: mean over seeds, the lowest outlined. `pairs` are as of `grids`."""
    metric = spec.search.metric
    sizes = [[len(_ticks(spec, arm, path)) for path in paths] for arm, paths in pairs.items()]
    size = (sum(2.4 + 0.9 * columns for columns, _ in sizes), 1.8 + 0.6 * max(rows for _, rows in sizes))
    figure, panels = plt.subplots(1, len(pairs), figsize=size, squeeze=False, layout="constrained")
    rates = [100 * cell.rates[metric].estimate for arm in pairs for cell in _measured(spec, found, arm)]
    rows: Rows = []
    for panel, (arm, paths) in zip(panels[0], pairs.items(), strict=True):
        rows += _heat_map(panel, spec, arm, paths, _measured(spec, found, arm), (min(rates), max(rates)))
    figure.colorbar(panels[0][0].images[0], ax=panels[0].tolist(), label=f"{metric_name(metric)}, %", shrink=0.8)
    head = (f"{metric_name(metric)}, %, mean over seeds", "seeds", "best of the arm")
    return Drawn(figure, ("arm", "path of x", "x", "path of y", "y", *head), rows)


def _ticks(spec: StudySpec, arm: str, path: str) -> list[float]:
    """The choices of the path, in ascending order."""
    return sorted(float(choice) for choice in spec.arms[arm].space[path].probes())


def _heat_map(
    panel: Axes, spec: StudySpec, arm: str, paths: tuple[str, str], cells: Sequence[Cell], span: tuple[float, float]
) -> Rows:
    """Colours go from the lowest to the highest of `span`, in percent."""
    xs, ys = (_ticks(spec, arm, path) for path in paths)
    rates = np.full((len(ys), len(xs)), np.nan)
    rows: Rows = []
    best = min(cells, key=lambda cell: cell.rates[spec.search.metric].estimate)
    for cell in cells:
        x, y = (float(cell.point[path]) for path in paths)
        rate = 100 * cell.rates[spec.search.metric].estimate
        rates[ys.index(y), xs.index(x)] = rate
        shade = (rate - span[0]) / max(span[1] - span[0], 1e-9)
        colour = "white" if shade < 0.5 else "black"
        panel.text(xs.index(x), ys.index(y), f"{rate:.1f}", color=colour, ha="center", va="center", fontsize=9)
        rows.append((arm, paths[0], x, paths[1], y, rate, len(cell.trials), "yes" if cell is best else "no"))
    panel.imshow(rates, cmap="cividis", vmin=span[0], vmax=span[1], origin="lower", aspect="auto")
    left, bottom = (ticks.index(float(best.point[path])) - 0.5 for ticks, path in zip((xs, ys), paths, strict=True))
    panel.add_patch(Rectangle((left, bottom), 1, 1, fill=False, edgecolor=COLOURS[1], linewidth=3, clip_on=False))
    panel.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    panel.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    panel.set_xlabel(paths[0], fontsize=8)
    panel.set_ylabel(paths[1], fontsize=8)
    panel.set_title(arm, fontsize=9)
    return rows


@dataclass(frozen=True)
class Attempt:
    """A stretch of time, in Unix seconds, in which a stage ran without a break."""

    stage: str  # fingerprint
    kind: str
    start: float
    end: float


def attempts(spec: StudySpec, ledger: Ledger) -> list[Attempt]:
    """When the stages of the study ran, by their reports, in the order in which they began.

    Where more time lies between two reports than was spent in the stage, it was interrupted, and another attempt
    begins as late as the second report allows. What an attempt did after its last report is not seen. Stages that an
    earlier study had trained are left out.
    """
    found: dict[str, list[Attempt]] = {}
    for trial in ledger.trials(spec.study):
        before = 0.0
        for stage, points in itertools.groupby(ledger.curve(spec.study, trial.trial), key=lambda point: point.stage):
            reports = list(points)
            found.setdefault(stage, _attempts(reports, before))
            before = reports[-1].elapsed_seconds
    began = ledger.study(spec.study)["created_at"]
    return sorted(
        (a for several in found.values() for a in several if a.end > began), key=lambda a: (a.start, a.end, a.stage)
    )


def _attempts(reports: Sequence[CurvePoint], before: float) -> list[Attempt]:
    """Of one stage; `before` is what the earlier stages of the trial took."""
    first = reports[0]
    starts, ends = [first.reported_at - (first.elapsed_seconds - before)], []
    for previous, report in itertools.pairwise(reports):
        began = report.reported_at - (report.elapsed_seconds - previous.elapsed_seconds)
        if began > previous.reported_at + BREAK_SECONDS:
            ends.append(previous.reported_at)
            starts.append(began)
    ends.append(reports[-1].reported_at)
    return [Attempt(first.stage, first.kind, start, end) for start, end in zip(starts, ends, strict=True)]


def lanes(ran: Sequence[Attempt]) -> list[int]:
    """A lane for each attempt, so that those in one lane do not overlap: the first that is free when it begins.

    Attempts come in the order in which they began. No packing needs fewer lanes.
    """
    free_at: list[float] = []
    found = []
    for attempt in ran:
        lane = next((lane for lane, end in enumerate(free_at) if end <= attempt.start), len(free_at))
        free_at[lane:] = [attempt.end, *free_at[lane + 1 :]]
        found.append(lane)
    return found


def running(ran: Sequence[Attempt]) -> list[tuple[float, int]]:
    """How many attempts run from each moment on at which that changes."""
    changes = sorted([(a.start, 1) for a in ran] + [(a.end, -1) for a in ran])
    counts = itertools.accumulate(change for _, change in changes)
    return list({moment: count for (moment, _), count in zip(changes, counts, strict=True)}.items())


def timeline_figure(ran: Sequence[Attempt]) -> Drawn:
    """At least one attempt as bars over wall-clock time, in as many lanes as ran at a time; below, how many ran."""
    zero, end = min(a.start for a in ran), max(a.end for a in ran)
    name, unit = ("hours", 3600.0) if end - zero > 2 * 3600 else ("minutes", 60.0)
    lane_of = lanes(ran)
    height = min(8.0, 0.9 + 0.22 * (max(lane_of) + 1))
    figure, (bars, counts) = plt.subplots(
        2, 1, figsize=(10, height + 1.9), height_ratios=(height, 1.3), sharex=True, layout="constrained"
    )
    rows: Rows = []
    for attempt, lane in zip(ran, lane_of, strict=True):
        start, length = (attempt.start - zero) / unit, (attempt.end - attempt.start) / unit
        bars.broken_barh([(start, length)], (lane - 0.42, 0.84), linewidth=0.4, **BARS[attempt.kind])
        rows.append(("stage", attempt.kind, attempt.stage, lane, start, start + length, None))
    moments = [((moment - zero) / unit, count) for moment, count in running(ran)]
    counts.step(*zip(*moments, strict=True), where="post", color="black", linewidth=1)
    rows += [("stages at a time", None, None, None, start, None, count) for start, count in moments]
    bars.set_yticks([])
    bars.set_ylabel("stages")
    counts.set_ylabel("at a time")
    counts.set_ylim(bottom=0)
    counts.yaxis.set_major_locator(MaxNLocator(integer=True))
    counts.set_xlabel(f"{name} since the first stage began")
    for panel in (bars, counts):
        panel.grid(axis="x", alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    shown = {attempt.kind for attempt in ran}
    legend = [Patch(label=kind, **BARS[kind]) for kind in BARS if kind in shown]
    figure.legend(handles=legend, frameon=False, loc="outside upper center", ncols=6)
    span = (f"start, {name}", f"end, {name}")
    return Drawn(figure, ("series", "kind", "stage", "lane", *span, "stages at a time from start on"), rows)
