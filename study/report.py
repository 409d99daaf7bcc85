"""One self-contained HTML file that answers the question of a study, and its figures as SVG and PNG."""

from __future__ import annotations

import html
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from search_spaces.space import AnyDistribution, Categorical, Grid, IntUniform, LogUniform
from study.answer import (
    AXES,
    Answer,
    ArmResult,
    Front,
    TargetResult,
    answer,
    by_decoding,
    metric_name,
    objective_name,
    objective_text,
    probability_text,
    rate_text,
    shown_rates,
)
from study.convergence import Axis
from study.differences import HEAD, NOTE, ArmDifference, difference_cells, differences, missing_trials
from study.ledger import CurvePoint, Ledger, Trial
from study.pareto import non_dominated
from study.scaling_report import CAPTION, scaling_figure, scaling_table
from study.scaling_result import ScalingResult
from study.spec import StudySpec, without_passwords
from study.statistics import Mean, Ratio
from study.survival import kaplan_meier
from study.terminal import duration, percent, point_text

COLOURS = ("#0b6fa4", "#d1495b", "#3c896d", "#8d6a9f", "#e08e45", "#555555")
UNITS: dict[Axis, tuple[str, float]] = {
    "step": ("updates (all stages)", 1.0),
    "audio_seconds": ("audio processed, hours", 3600.0),
    "accelerator_seconds": ("accelerator time, minutes", 60.0),
}


Importance = Mapping[str, Mapping[str, float]]  # arm -> searched path -> share of the variation that it explains


def write_report(spec: StudySpec, ledger: Ledger, importance: Importance | None = None) -> Path:
    """Write `report.html`, and each of its figures as SVG and PNG; returns the HTML file.

    The figures are `convergence`, where an arm has several seeds `survival`, with several objectives `pareto`, and
    where arms were searched `slices`.
    """
    folder = report_folder(spec.storage, spec.study)
    folder.mkdir(parents=True, exist_ok=True)
    found = answer(spec, ledger)
    figures = {"convergence": convergence_figure(spec, ledger, found)}
    if any(len(arm.trials) > 1 for arm in found.arms):
        figures["survival"] = survival_figure(spec, found)
    if found.front and found.front.candidates:
        figures["pareto"] = pareto_figure(spec, found.front)
    if found.scaling and any(arm.measurements for arm in found.scaling.arms):
        figures["scaling"] = scaling_figure(found.scaling, dict(zip(spec.arms, itertools.cycle(COLOURS), strict=False)))
    if searched := _searched(spec, ledger):
        figures["slices"] = slices_figure(spec, searched)
    drawn = {name: _save(figure, folder / name) for name, figure in figures.items()}
    page = folder / "report.html"
    page.write_text(_page(spec, ledger, found, importance or {}, drawn), encoding="utf-8")
    return page


def _save(figure: Figure, path: Path) -> str:
    """Write the figure as SVG and PNG, and close it; returns the SVG element."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=150)
    plt.close(figure)
    svg = buffer.getvalue()
    path.with_suffix(".svg").write_text(svg, encoding="utf-8")
    return svg[svg.index("<svg") :]


def report_folder(storage: Path, study: str) -> Path:
    return storage / "reports" / study


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


def _searched(spec: StudySpec, ledger: Ledger) -> dict[str, list[tuple[Trial, float]]]:
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


def _page(spec: StudySpec, ledger: Ledger, found: Answer, importance: Importance, figures: Mapping[str, str]) -> str:
    study = ledger.study(spec.study)
    environment = study["environment"]
    ran_at = datetime.fromtimestamp(study["updated_at"], UTC)
    sections = [
        f"<h1>{_text(spec.question)}</h1>",
        f"<p class=answer>{'<br>'.join(map(_text, found.sentences))}</p>",
        f"<p class=note>Study <b>{_text(spec.study)}</b>, last run {ran_at:%Y-%m-%d %H:%M} UTC.</p>",
        _figure(figures["convergence"], _caption(found)),
        "<h2>Results of each arm</h2>",
        _rate_table(found),
        *_difference_sections(differences(spec, ledger, found)),
        f"<h2>Cost until a {_text(metric_name(spec.convergence.metric))} of {spec.convergence.target:.0%}</h2>",
        _convergence_table(found),
        _comparison_table(found),
        *_survival_sections(found, figures),
        *_whole_curve_sections(spec, found),
        *_scaling_sections(found.scaling, figures),
        *_front_sections(found.front, figures),
        *_cell_sections(found),
        *_importance_sections(spec, importance, figures),
        "<h2>Trials</h2>",
        _trial_table(spec, ledger),
        "<h2>Data</h2>",
        _table(["corpus", "part", "sha256 of its list of utterances"], _data_rows(environment["data"])),
        "<h2>Versions</h2>",
        _table(["package", "version"], [[k, v] for k, v in environment["versions"].items()]),
        "<h2>Settings</h2>",
        f"<pre>{_text(without_passwords(json.dumps(study['spec'], indent=2, ensure_ascii=False)))}</pre>",
    ]
    return _FRAME.format(title=_text(spec.study), body="\n".join(sections))


def _data_rows(data: dict[str, dict[str, str]]) -> list[list[str]]:
    return [[corpus, part, digest] for corpus, parts in data.items() for part, digest in parts.items()]


def _caption(found: Answer) -> str:
    fresh = all(arm.fresh_seeds for arm in found.arms)
    which = "the best configuration of each arm with fresh seeds" if fresh else "the best trial of each arm"
    return (
        f"Thick lines: {which}; bands: lowest to highest seed. Thin lines: the other trials. Dotted: the target. "
        "Updates and time of earlier stages, pre-training included, are counted in."
    )


def _rate_table(found: Answer) -> str:
    shown = shown_rates(arm.rates for arm in found.arms)
    rows = [
        [arm.arm, str(len(arm.trials)), decoding, *(rate_text(rates.get(name)) for name in shown)]
        for arm in found.arms
        for decoding, rates in by_decoding(arm.rates).items()
    ]
    note = "<p class=note>Mean over seeds, with the 95 % interval of Student's t.</p>"
    return _table(["arm", "seeds", "decoding", *map(metric_name, shown)], rows) + note


def _difference_sections(rows: Sequence[ArmDifference]) -> list[str]:
    """Each arm against its baseline, utterance by utterance, where there are comparisons."""
    if not rows:
        return []
    gone = missing_trials(rows)
    missing = f"<p class=note>Without the hypotheses of {_text(', '.join(gone))}, which are gone or damaged.</p>"
    table = _table(HEAD, [difference_cells(row) for row in rows])
    return ["<h2>Differences</h2>", table, f"<p class=note>{_text(NOTE)}</p>", missing if gone else ""]


def _cell_sections(found: Answer) -> list[str]:
    """The results of every configuration, where an arm has several of them."""
    if len(found.cells) <= len(found.arms):
        return []
    shown = shown_rates(cell.rates for cell in found.cells)
    rows = [
        [c.arm, point_text(c.point) or "-", str(len(c.trials)), decoding, *(rate_text(rates.get(n)) for n in shown)]
        for c in found.cells
        for decoding, rates in by_decoding(c.rates).items()
    ]
    note = "<p class=note>Mean over all seeds, with the 95 % interval of Student's t where there are several.</p>"
    table = _table(["arm", "searched values", "seeds", "decoding", *map(metric_name, shown)], rows)
    return ["<h2>Results of each configuration</h2>", table + note]


def _front_sections(front: Front | None, figures: Mapping[str, str]) -> list[str]:
    """The Pareto front, where the study has several objectives."""
    if not front:
        return []
    title = "<h2>Pareto front</h2>"
    if not front.candidates:
        return [title, "<p>No finished trial has measured all objectives.</p>"]
    rows = [
        [
            candidate.arm,
            point_text(candidate.point) or "-",
            str(len(candidate.trials)),
            *(objective_text(name, mean) for name, mean in candidate.means.items()),
            probability_text(candidate.probability),
        ]
        for candidate in front.best
    ]
    head = ["arm", "searched values", "seeds", *map(objective_name, front.objectives), "probability"]
    return [title, _figure(figures["pareto"], _FRONT_CAPTION), _table(head, rows) + _FRONT_NOTE]


def _scaling_sections(scaling: ScalingResult | None, figures: Mapping[str, str]) -> list[str]:
    """The scaling laws of the arms, where the study asks for them."""
    if not scaling:
        return []
    figure = [_figure(figures["scaling"], CAPTION)] if "scaling" in figures else []
    return [f"<h2>Scaling with {_text(scaling.size_name)}</h2>", *figure, _table(*scaling_table(scaling))]


def _importance_sections(spec: StudySpec, importance: Importance, figures: Mapping[str, str]) -> list[str]:
    """How the metric depends on the searched values, where arms were searched."""
    estimated = any(importance.values())
    if not estimated and "slices" not in figures:
        return []
    metric = _text(metric_name(spec.search.metric))
    sections = ["<h2>Importance of the searched values</h2>"]
    if estimated:
        sections.append(_importance_table(importance))
        sections.append(
            f"<p class=note>Share of the variation of the {metric} between an arm's trials that each value explains "
            "(fANOVA). With few trials it is a rough estimate.</p>"
        )
    if "slices" in figures:
        sections.append(_figure(figures["slices"], _SLICES_CAPTION))
    return sections


def _importance_table(importance: Importance) -> str:
    """The shares of each arm as bars, the greatest first."""
    rows = [
        f"<tr><td>{_text(arm)}</td><td>{_text(path)}</td>"
        f"<td><div class=bar style='width:{10 * share:.2f}rem'></div></td><td>{share:.0%}</td></tr>"
        for arm, shares in importance.items()
        for path, share in sorted(shares.items(), key=lambda item: -item[1])
    ]
    head = "<tr><th>arm</th><th>searched value</th><th colspan=2>importance</th></tr>"
    return f"<div class=wide><table>{head}{''.join(rows)}</table></div>"


def _spent_text(axis: Axis, value: float) -> str:
    shown: dict[Axis, Callable[[float], str]] = {
        "step": lambda v: f"{v:.0f}",
        "audio_seconds": lambda v: f"{v / 3600:.2f} h",
        "accelerator_seconds": duration,
    }
    return shown[axis](value)


def _convergence_table(found: Answer) -> str:
    rows = []
    for arm in found.arms:
        spent = arm.spent
        cells = [", ".join("not reached" if v is None else _spent_text(a, v) for v in spent[a]) for a in AXES]
        rows.append([arm.arm, ", ".join(str(t.seed) for t in arm.trials), *cells, ", ".join(map(percent, arm.final))])
    return _table(["arm", "seeds", *AXES.values(), "final value"], rows)


def _comparison_table(found: Answer) -> str:
    if not found.comparisons:
        return ""
    rows = []
    for comparison in found.comparisons:
        for axis, name in AXES.items():
            ratio, p_value = comparison.ratios[axis], comparison.p_values[axis]
            compared = f"{comparison.arm.arm} / {comparison.baseline.arm}"
            of = "geometric" if comparison.arm.complete and comparison.baseline.complete else "restricted"
            rows.append([compared, name, _ratio_text(ratio), of if ratio else "", _p_text(p_value)])
    head = ["ratio", "in", "estimate (95 % interval, Welch's t on logarithms)", "of means", "p (Holm)"]
    return _table(head, rows) + _COMPARISON_NOTE


def _survival_sections(found: Answer, figures: Mapping[str, str]) -> list[str]:
    """When the seeds reached each target, where an arm has several of them."""
    if "survival" not in figures:
        return []
    mean, ratio = "restricted mean (95 %)", "ratio (95 %)"
    head = ["target", "arm", "reached", mean, "up to", "ratio to", ratio, "log-rank p"]
    rows = [_target_row(result) for result in found.targets if result.axis == "accelerator_seconds"]
    return [
        "<h2>Seeds that have not reached the target</h2>",
        _figure(figures["survival"], _SURVIVAL_CAPTION),
        _table(head, rows) + _TARGET_NOTE,
    ]


def _target_row(result: TargetResult) -> list[str]:
    return [
        f"{result.target:.1%}",
        result.arm,
        f"{result.reached} of {result.seeds}",
        _spent_mean_text(result.axis, result.mean),
        _spent_text(result.axis, result.horizon),
        result.baseline or "",
        _ratio_text(result.ratio) if result.baseline else "",
        _p_text(result.log_rank),
    ]


def _whole_curve_sections(spec: StudySpec, found: Answer) -> list[str]:
    """The mean of the metric over the budget that all trials have, and how fast it comes down."""
    if not found.whole_curves:
        return []
    metric = metric_name(spec.convergence.metric)
    rows = [
        [
            curves.arm,
            rate_text(curves.mean_linear),
            rate_text(curves.mean_log),
            _spent_mean_text("step", curves.tau) if curves.tau else "cannot be identified",
        ]
        for curves in found.whole_curves
    ]
    head = ["arm", f"mean {metric}, linear", f"mean {metric}, logarithmic", "decay time, updates"]
    until = found.whole_curves[0].until
    note = (
        f"<p class=note>Area under the curve of the {_text(metric)} over the updates that all trials have, up to "
        f"{until}, divided by its width: every update alike, and every doubling of the updates alike. Before its first "
        "evaluation a trial is at its first value. Decay time: tau of y_inf + a exp(-t / tau), fitted to each "
        "seed from its first evaluation on. Means over seeds, with the 95 % interval of Student's t.</p>"
    )
    return ["<h2>Whole curves</h2>", _table(head, rows) + note]


def _spent_mean_text(axis: Axis, mean: Mean) -> str:
    estimate = _spent_text(axis, mean.estimate)
    if mean.low is None or mean.high is None:
        return estimate
    return f"{estimate} ({_spent_text(axis, max(0.0, mean.low))} to {_spent_text(axis, mean.high)})"


def _ratio_text(ratio: Ratio | None) -> str:
    return f"{ratio.estimate:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else "cannot be estimated"


def _p_text(p_value: float | None) -> str:
    """Two digits, and nothing below a thousandth."""
    if p_value is None:
        return ""
    return "<0.001" if p_value < 0.001 else f"{p_value:.2g}"


def _trial_table(spec: StudySpec, ledger: Ledger) -> str:
    trials = ledger.trials(spec.study)
    ranked = ledger.ranked(trials, spec.search.metric)
    rows = []
    results = {trial.trial: by_decoding(ledger.final(spec.study, trial.trial)) for trial in trials}
    shown = shown_rates(found["greedy"] for found in results.values())
    for trial in [*ranked, *(t for t in trials if t not in ranked)]:
        curve = ledger.curve(spec.study, trial.trial)
        decoded = results[trial.trial].values()
        metrics = [" / ".join(percent(rates.get(name)) for rates in decoded) for name in shown]
        cost = [str(curve[-1].step), duration(curve[-1].accelerator_seconds)] if curve else ["", ""]
        status = f"{trial.status}: {trial.cause}" if trial.cause else trial.status
        rows.append(
            [trial.trial, trial.origin, str(trial.seed), *metrics, *cost, point_text(trial.point) or "-", status]
        )
    head = [
        "trial",
        "origin",
        "seed",
        *map(metric_name, shown),
        "updates",
        "accelerator time",
        "searched values",
        "status",
    ]
    return _table(head, rows)


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def line(tag: str, cells: Sequence[object]) -> str:
        return "<tr>" + "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<div class=wide><table>{line('th', head)}{''.join(line('td', row) for row in rows)}</table></div>"


def _text(value: object) -> str:
    return html.escape(str(value))


_FRONT_CAPTION = (
    "A dot for each configuration: mean over its seeds, bars from the lowest to the highest seed. Filled: on the front "
    "of all objectives. The line joins what no other beats in the two objectives of its panel. Last: the volume that "
    "the trials so far dominate, all objectives together."
)
_FRONT_NOTE = (
    "<p class=note>Mean over all seeds, with the 95 % interval of Student's t where there are several. Probability: "
    "how often no other configuration dominates this one when the seeds are drawn again (bootstrap); the noise of a "
    "single seed is taken from the configurations with several, and is unknown where there are none.</p>"
)
_COMPARISON_NOTE = (
    "<p class=note>Of geometric means where every seed of both arms reached the target; otherwise of restricted means: "
    "of what is spent until the target, or until the end of what is known of both arms where it comes first. p: of a "
    "ratio of 1, by Holm's method over the comparisons.</p>"
)
_SURVIVAL_CAPTION = (
    "Share of the seeds of each arm that have not reached the target (Kaplan and Meier). Ticks: where the curve of a "
    "seed ended above it."
)
_TARGET_NOTE = (
    "<p class=note>Restricted mean: the accelerator time that a seed spends until the target, or until the stated end "
    "of what is known of the arm and its baseline where it comes first, with the interval by Klein and Moeschberger's "
    "error. Ratio: as above. Log-rank p: exact over all arrangements of few seeds (3 and 3 cannot go below 0.1), by "
    "Holm's method over the arms that are compared at this target.</p>"
)
_SLICES_CAPTION = "Filled: finished trials of the search. Hollow: stopped early, with the last value that they had."

_FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
.answer {{ font-size: 1.1rem; border-left: 4px solid #0b6fa4; padding-left: 1rem; }}
.note, figcaption {{ color: #666; font-size: .9rem; }}
figure {{ margin: 1rem 0; }} svg {{ max-width: 100%; height: auto; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: .5rem 0; font-size: .9rem; }}
.bar {{ background: #0b6fa4; height: .7rem; }}
th, td {{ padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }}
pre {{ background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: .8rem; }}
</style></head><body>
{body}
</body></html>
"""
