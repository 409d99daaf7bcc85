"""The figures of a report, as matplotlib figures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from search_spaces.space import AnyDistribution, Categorical, Grid, IntUniform, LogUniform
from study.answer import Answer, ArmResult, Front, metric_name, objective_name
from study.convergence import Axis
from study.ledger import CurvePoint, Ledger, Trial
from study.pareto import non_dominated
from study.spec import StudySpec
from study.survival import kaplan_meier

COLOURS = ("#0b6fa4", "#d1495b", "#3c896d", "#8d6a9f", "#e08e45", "#555555")
UNITS: dict[Axis, tuple[str, float]] = {
    "step": ("updates (all stages)", 1.0),
    "audio_seconds": ("audio processed, hours", 3600.0),
    "accelerator_seconds": ("accelerator time, minutes", 60.0),
}


def convergence_figure(spec: StudySpec, ledger: Ledger, found: Answer) -> Figure:
    """dev WER (or mixed error rate) and CER against updates and against accelerator time; a row for each metric."""
    axes: tuple[Axis, Axis] = ("step", "accelerator_seconds")
    figure, grid = plt.subplots(2, 2, figsize=(10, 7), sharey="row", layout="constrained")
    upper = "dev_mer" if spec.convergence.metric == "dev_mer" else "dev_wer"
    for row, metric in zip(grid, (upper, "dev_cer"), strict=True):
        for panel, axis in zip(row, axes, strict=True):
            _panel(panel, spec, ledger, found, metric, axis)
        row[0].set_ylabel(f"{metric_name(metric)}, %")
    if any(arm.trials for arm in found.arms):
        figure.legend(*grid[0][1].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    figure.suptitle(spec.question.replace("$", r"\$"), fontsize=11, wrap=True)  # a dollar would begin a formula
    return figure


def _panel(panel: Axes, spec: StudySpec, ledger: Ledger, found: Answer, metric: str, axis: Axis) -> None:
    label, unit = UNITS[axis]
    standing = {t.trial for arm in found.arms for t in arm.trials}
    for (colour, style), arm in zip(_lines(), found.arms, strict=False):
        for trial in ledger.trials(spec.study):
            if trial.arm == arm.arm and trial.trial not in standing:
                x, y = _xy(ledger.curve(spec.study, trial.trial, metric), axis, unit)
                panel.plot(x, y, color=colour, alpha=0.22, linewidth=0.8)
        curves = [_xy(ledger.curve(spec.study, t.trial, metric), axis, unit) for t in arm.trials]
        if curves:
            _band(panel, curves, colour, style, f"{arm.arm} ({len(curves)} seed{'s' if len(curves) > 1 else ''})")
    if metric == spec.convergence.metric:
        panel.axhline(100 * spec.convergence.target, color="black", linewidth=0.8, linestyle=":")
    panel.set_xlabel(label)
    panel.set_xlim(left=0)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def _lines() -> Iterator[tuple[str, str]]:
    """Colour and style of each arm's line: when the colours are used up, they come again dashed, then dotted."""
    return ((colour, style) for style in itertools.cycle(("-", "--", ":")) for colour in COLOURS)


def _dots() -> Iterator[tuple[str, str]]:
    """Colour and marker of each arm's dots: when the colours are used up, squares follow, then triangles."""
    return ((colour, marker) for marker in itertools.cycle("os^") for colour in COLOURS)


def _xy(curve: Sequence[CurvePoint], axis: Axis, unit: float) -> tuple[np.ndarray, np.ndarray]:
    return (np.array([getattr(p, axis) / unit for p in curve]), np.array([100 * p.value for p in curve]))


def _band(panel: Axes, curves: Sequence[tuple[np.ndarray, np.ndarray]], colour: str, style: str, label: str) -> None:
    """Mean over seeds, and the band from the lowest to the highest, where all seeds have values."""
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    x = np.unique(np.concatenate([x[(x >= start) & (x <= end)] for x, _ in curves]))
    values = np.stack([np.interp(x, *curve) for curve in curves])
    panel.plot(x, values.mean(0), color=colour, linestyle=style, linewidth=2, label=label)
    if len(curves) > 1:
        panel.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)


def survival_figure(spec: StudySpec, found: Answer) -> Figure:
    """The share of seeds that have not reached the target, against updates and against accelerator time."""
    axes: tuple[Axis, Axis] = ("step", "accelerator_seconds")
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for panel, axis in zip(panels, axes, strict=True):
        for (colour, style), arm in zip(_distinct_lines(), found.arms, strict=False):
            if arm.trials:
                _survival_line(panel, arm, axis, colour, style)
        panel.set_xlabel(UNITS[axis][0])
        panel.set_xlim(left=0)
        panel.set_ylim(-3, 103)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    goal = f"{metric_name(spec.convergence.metric)} of {spec.convergence.target:.0%}"
    panels[0].set_ylabel(f"seeds above a {goal}, %")
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    return figure


def _survival_line(panel: Axes, arm: ArmResult, axis: Axis, colour: str, style: str) -> None:
    """Kaplan and Meier's estimate as steps, with a tick where the curve of a seed ended above the target."""
    unit = UNITS[axis][1]
    durations = arm.durations(arm.target, axis)
    curve = kaplan_meier(durations)
    times, shares = np.array([0.0, *curve.times]) / unit, 100 * np.array([1.0, *curve.survival])
    ended = np.isin([0.0, *curve.times], [d.value for d in durations if not d.reached])
    label = f"{arm.arm} ({arm.reached} of {len(arm.trials)} reached it)"
    panel.step(times, shares, where="post", color=colour, linestyle=style, linewidth=2, label=label)
    panel.plot(times[ended], shares[ended], linestyle="", marker="|", markersize=14, markeredgewidth=2, color=colour)


def _distinct_lines() -> Iterator[tuple[str, str]]:
    """Colour and style of each arm's line; neighbours differ in both, so that they can be told apart in grey, too."""
    return zip(itertools.cycle(COLOURS), itertools.cycle(("-", "--", ":", "-.")), strict=False)


def pareto_figure(spec: StudySpec, front: Front) -> Figure:
    """The metric against each further objective, a dot for each configuration; last, the hypervolume over trials."""
    metric, *costs = front.objectives
    figure, panels = plt.subplots(1, len(costs) + 1, figsize=(3.8 * (len(costs) + 1), 4), layout="constrained")
    looks = dict(zip(spec.arms, _dots(), strict=False))
    for panel, cost in zip(panels, costs, strict=False):
        _front_panel(panel, front, metric, cost, looks)
    _hypervolume_panel(panels[-1], front.hypervolume)
    for panel in panels:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    legend = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=arm) for arm, (colour, marker) in looks.items()
    ]
    figure.legend(handles=legend, frameon=False, loc="outside lower center", ncols=4)
    return figure


def _front_panel(panel: Axes, front: Front, metric: str, cost: str, looks: Mapping[str, tuple[str, str]]) -> None:
    means = []
    for candidate in front.candidates:
        colour, marker = looks[candidate.arm]
        x, y = np.array(candidate.values[cost]), 100 * np.array(candidate.values[metric])
        means.append((float(x.mean()), float(y.mean())))
        panel.errorbar(
            x.mean(),
            y.mean(),
            xerr=[[x.mean() - x.min()], [x.max() - x.mean()]],
            yerr=[[y.mean() - y.min()], [y.max() - y.mean()]],
            color=colour,
            marker=marker,
            markerfacecolor=colour if candidate.on_front else "white",
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


def _hypervolume_panel(panel: Axes, volumes: Sequence[float]) -> None:
    share = [100 * volume / volumes[-1] for volume in volumes]
    panel.step(range(1, len(share) + 1), share, where="post", color="black", linewidth=1, marker=".")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("finished trials of the search")
    panel.set_ylabel("hypervolume, % of the last")
    panel.set_ylim(bottom=0)


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


def slices_figure(spec: StudySpec, searched: Mapping[str, Sequence[tuple[Trial, float]]]) -> Figure:
    """The metric against each searched value: a row for each arm, a panel for each path."""
    columns = max(len(spec.arms[arm].space) for arm in searched)
    size = (max(5.0, 2.8 * columns), 2.2 * len(searched))
    figure, grid = plt.subplots(len(searched), columns, figsize=size, squeeze=False, sharey="row", layout="constrained")
    colours = {arm: colour for arm, (colour, _) in zip(spec.arms, _dots(), strict=False)}
    for row, (arm, trials) in zip(grid, searched.items(), strict=True):
        space = spec.arms[arm].space
        for panel, path in zip(row, space, strict=False):
            _slice(panel, space[path], path, trials, colours[arm])
        for panel in row[len(space) :]:
            panel.set_axis_off()
        row[0].set_ylabel(f"{arm}\n{metric_name(spec.search.metric)}, %", fontsize=8)
    return figure


def _slice(
    panel: Axes, distribution: AnyDistribution, path: str, trials: Sequence[tuple[Trial, float]], colour: str
) -> None:
    """A dot for each trial that has the path; hollow where it was stopped."""
    choices = distribution.choices if isinstance(distribution, Categorical | Grid) else None
    for trial, value in trials:
        if path in trial.point:
            x = choices.index(trial.point[path]) if choices else trial.point[path]
            face = colour if trial.status == "finished" else "none"
            panel.scatter(x, 100 * value, s=16, facecolors=face, edgecolors=colour, linewidths=0.8, clip_on=False)
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


def _shortened(name: str) -> str:
    return name if len(name) <= 14 else f"{name[:13]}…"
