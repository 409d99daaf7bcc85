"""The scaling laws of a study as a figure and as a table."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

from study.answer import metric_name
from study.scaling import preferred, size_text
from study.scaling_result import ArmScaling, ScalingResult, percent_interval

MARKERS = "os^Dvp"
BEYOND = 4.0  # how far curves are drawn past the largest measured size


def scaling_figure(result: ScalingResult, colours: Mapping[str, str]) -> Figure:
    """The metric against size: a dot for each run; curves with the 95 % band, dashed where they extrapolate."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    panel = figure.subplots()
    last = max((size for arm in result.arms for size in arm.sizes), default=1.0) * BEYOND
    last = max((last, *result.predict_at))
    for arm, marker in zip(result.arms, itertools.cycle(MARKERS), strict=False):
        _draw(panel, arm, last, colours[arm.arm], marker)
    panel.set_xscale("log")
    _log_percentages(panel)
    panel.xaxis.set_major_formatter(
        EngFormatter(sep="") if result.size == "parameters" else StrMethodFormatter("{x:,g}")
    )
    panel.set_xlabel(result.size_name)
    panel.set_ylabel(f"{metric_name(result.metric)}, %")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    return figure


def _log_percentages(panel: Axes) -> None:
    """A logarithmic y axis, with more labels where it is short."""
    panel.set_yscale("log")
    low, high = panel.get_ylim()
    panel.yaxis.set_major_locator(
        LogLocator(subs=(1, 2, 3, 5, 7) if high > 4 * low else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))
    )
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _draw(panel: Axes, arm: ArmScaling, last: float, colour: str, marker: str) -> None:
    x, y = [m.size for m in arm.measurements], [100 * m.value for m in arm.measurements]
    label = arm.arm if arm.found else f"{arm.arm} (no law)"
    panel.scatter(x, y, s=18, color=colour, marker=marker, label=label, zorder=3, linewidths=0)
    if arm.found is None:
        return
    measured = np.geomspace(arm.sizes[0], arm.sizes[-1], 60)
    beyond = np.geomspace(arm.sizes[-1], last, 30)
    for sizes, style in ((measured, "-"), (beyond, "--")):
        found = [arm.found.mean_at(size) for size in sizes]
        panel.plot(sizes, [100 * i.estimate for i in found], color=colour, linestyle=style, linewidth=1.5)
        low, high = [100 * i.low for i in found], [100 * i.high for i in found]
        panel.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)


def scaling_table(result: ScalingResult) -> tuple[list[str], list[list[str]]]:
    """Head and rows: an arm each, with its law and its predictions, or why there is none."""
    head = [
        "arm",
        "runs",
        "sizes",
        "exponent",
        "asymptote",
        *(f"at {size_text(size)}" for size in result.predict_at),
        "largest size held out: without / with asymptote",
        "note",
    ]
    return head, [_row(result, arm) for arm in result.arms]


def _row(result: ScalingResult, arm: ArmScaling) -> list[str]:
    counts = [arm.arm, str(len(arm.measurements)), str(len(arm.sizes))]
    if arm.found is None:
        return [*counts, *([""] * (len(result.predict_at) + 3)), f"not identifiable: {arm.refused}"]
    alpha = arm.found.parameter("alpha")
    misfit = arm.found.law.misfit
    return [
        *counts,
        f"{alpha.estimate:.2f} ({alpha.low:.2f}-{alpha.high:.2f})",
        percent_interval(arm.found.parameter("E")),
        *(percent_interval(arm.found.mean_at(size)) for size in result.predict_at),
        " / ".join(f"{100 * np.expm1(h.error):+.1f} %" for h in arm.held_out) + f": {preferred(arm.held_out).name}",
        f"noise of a run {arm.found.law.noise:.1%}" + (f", lack of fit p = {misfit:.2g}" if misfit is not None else ""),
    ]


CAPTION = (
    "A dot for each run. Lines: E + A * size^-alpha, dashed beyond the largest measured size; bands: 95 % interval of "
    "the curve, by a bootstrap over seeds. A single run lies further off."
)
