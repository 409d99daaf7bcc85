"""The scaling laws of a study as a figure and as a table."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

from study.figure_files import Drawn, Look, looks
from study.scaling import preferred, size_text
from study.scaling_result import ArmScaling, ScalingResult
from study.wording import objective_name

BEYOND = 4.0  # how far curves are drawn past the largest measured size


def scaling_figure(result: ScalingResult) -> Drawn:
    """The metric against size: a dot for each run; curves with the 95 % band, dashed where they extrapolate."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    panel = figure.subplots()
    end = max(max((size for arm in result.arms for size in arm.sizes), default=1.0) * BEYOND, *result.predict_at, 0.0)
    for arm, look in zip(result.arms, looks(arm.arm for arm in result.arms).values(), strict=True):
        _draw(panel, result, arm, end, look)
    panel.set_xscale("log")
    _log_values(panel)
    panel.xaxis.set_major_formatter(
        EngFormatter(sep="") if result.size == "parameters" else StrMethodFormatter("{x:,g}")
    )
    panel.set_xlabel(result.size_name + (", repetitions discounted" if result.form == "repetition" else ""))
    panel.set_ylabel(_value_name(result))
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    columns = (
        "arm",
        "series",
        result.size_name,
        result.second_name or "",
        _value_name(result),
        "low, 95 %",
        "high, 95 %",
    )
    return Drawn(figure, columns, [row for arm in result.arms for row in _points(result, arm, end)])


def _value_name(result: ScalingResult) -> str:
    sign = result.unit[1]
    return objective_name(result.metric) + (f", {sign}" if sign else "")


def _points(result: ScalingResult, arm: ArmScaling, end: float) -> Iterator[tuple[str | float | None, ...]]:
    """The runs, and points on the curve."""
    factor, second = result.unit[0], result.second_name
    for m in arm.measurements:
        yield (arm.arm, "run", m.size, m.second if second else None, factor * m.value, None, None)
    if arm.found:
        for size in np.geomspace(arm.sizes[0], end, 60).tolist():
            law = arm.found.mean_at(size, arm.reference)
            values = (factor * law.estimate, factor * law.low, factor * law.high)
            yield (arm.arm, "law", size, arm.reference if second else None, *values)


def _log_values(panel: Axes) -> None:
    """A logarithmic y axis, with more labels where it is short."""
    panel.set_yscale("log")
    low, high = panel.get_ylim()
    panel.yaxis.set_major_locator(
        LogLocator(subs=(1, 2, 3, 5, 7) if high > 4 * low else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))
    )
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())


def _draw(panel: Axes, result: ScalingResult, arm: ArmScaling, end: float, look: Look) -> None:
    colour, marker = look.colour, look.marker
    factor = result.unit[0]
    x, y = [result.position(m) for m in arm.measurements], [factor * m.value for m in arm.measurements]
    label = arm.arm if arm.found else f"{arm.arm} (no law)"
    other = [result.form == "joint" and m.second != arm.reference for m in arm.measurements]
    faces = ["none" if hollow else colour for hollow in other]
    panel.scatter(x, y, s=18, facecolors=faces, edgecolors=colour, marker=marker, zorder=3, linewidths=0.8)
    panel.scatter([], [], s=18, color=colour, marker=marker, label=label)
    if arm.found is None:
        return
    measured = np.geomspace(min(x), max(x), 60)
    beyond = np.geomspace(max(x), max(end, max(x)), 30)
    for sizes, style in ((measured, "-"), (beyond, "--")):
        found = [arm.found.mean_at(size, arm.reference) for size in sizes]
        panel.plot(sizes, [factor * i.estimate for i in found], color=colour, linestyle=style, linewidth=1.5)
        low, high = [factor * i.low for i in found], [factor * i.high for i in found]
        panel.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)


def scaling_table(result: ScalingResult) -> tuple[list[str], list[list[str]]]:
    """Head and rows: an arm each, with its law and its predictions, or why there is none."""
    head = [
        "arm",
        "runs",
        "sizes",
        "exponent",
        *([f"exponent of {result.second_name}"] if result.form == "joint" else []),
        "asymptote",
        *(f"at {size_text(size)}" for size in result.predict_at),
        "largest size held out" + (": without / with asymptote" if result.form == "power_law" else ""),
        "note",
    ]
    return head, [_row(result, arm) for arm in result.arms]


def _row(result: ScalingResult, arm: ArmScaling) -> list[str]:
    counts = [arm.arm, str(len(arm.measurements)), str(len(arm.sizes))]
    if arm.found is None:
        empty = len(result.predict_at) + 3 + (result.form == "joint")
        return [*counts, *([""] * empty), f"not identifiable: {arm.refused}"]
    exponents = [arm.found.parameter(name) for name in ("alpha", "beta") if name in arm.found.law.form.names]
    misfit = arm.found.law.misfit
    return [
        *counts,
        *(f"{exponent.estimate:.2f} ({exponent.low:.2f}-{exponent.high:.2f})" for exponent in exponents),
        result.interval_text(arm.found.parameter("E")),
        *(result.interval_text(arm.found.mean_at(size, arm.reference)) for size in result.predict_at),
        " / ".join(f"{100 * np.expm1(h.error):+.1f} %" for h in arm.held_out) + f": {preferred(arm.held_out).name}",
        f"noise of a run {arm.found.law.noise:.1%}" + (f", lack of fit p = {misfit:.2g}" if misfit is not None else ""),
    ]


LAWS = {
    "power_law": "E + A * size^-alpha",
    "repetition": "E + A * D^-alpha, where D counts what is heard again for less and less (Muennighoff et al.)",
    "joint": "E + A * size^-alpha + B * second^-beta",
}


def caption(result: ScalingResult) -> str:
    """What the figure shows."""
    hollow = f" Hollow: runs with other {result.second_name} than the line's." if result.form == "joint" else ""
    return (
        f"A dot for each run. Lines: {LAWS[result.form]}, dashed beyond the largest measured size; bands: 95 % "
        f"interval of the curve, by a bootstrap over seeds. A single run lies further off.{hollow}"
    )
