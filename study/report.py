"""One self-contained HTML file that answers the question of a study, and its figures as SVG and PNG."""

from __future__ import annotations

import html
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study.answer import AXES, Answer, answer, by_decoding, metric_name, rate_text, shown_rates
from study.convergence import Axis
from study.ledger import CurvePoint, Ledger
from study.spec import StudySpec, without_passwords
from study.terminal import duration, percent, point_text

COLOURS = ("#0b6fa4", "#d1495b", "#3c896d", "#8d6a9f", "#e08e45", "#555555")
UNITS: dict[Axis, tuple[str, float]] = {
    "step": ("updates (all stages)", 1.0),
    "audio_seconds": ("audio processed, hours", 3600.0),
    "accelerator_seconds": ("accelerator time, minutes", 60.0),
}


def write_report(spec: StudySpec, ledger: Ledger) -> Path:
    """Write `report.html`, `convergence.svg` and `convergence.png`; returns the HTML file."""
    folder = report_folder(spec.storage, spec.study)
    folder.mkdir(parents=True, exist_ok=True)
    found = answer(spec, ledger)
    figure = convergence_figure(spec, ledger, found)
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    (folder / "convergence.svg").write_text(svg.getvalue(), encoding="utf-8")
    figure.savefig(folder / "convergence.png", dpi=150)
    plt.close(figure)
    page = folder / "report.html"
    page.write_text(_page(spec, ledger, found, svg.getvalue()), encoding="utf-8")
    return page


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


def _page(spec: StudySpec, ledger: Ledger, found: Answer, svg: str) -> str:
    study = ledger.study(spec.study)
    environment = study["environment"]
    ran_at = datetime.fromtimestamp(study["updated_at"], UTC)
    sections = [
        f"<h1>{_text(spec.question)}</h1>",
        f"<p class=answer>{'<br>'.join(map(_text, found.sentences))}</p>",
        f"<p class=note>Study <b>{_text(spec.study)}</b>, last run {ran_at:%Y-%m-%d %H:%M} UTC.</p>",
        f"<figure>{svg[svg.index('<svg') :]}<figcaption>{_caption(found)}</figcaption></figure>",
        "<h2>Results of each arm</h2>",
        _rate_table(found),
        f"<h2>Cost until a {_text(metric_name(spec.convergence.metric))} of {spec.convergence.target:.0%}</h2>",
        _convergence_table(found),
        _comparison_table(found),
        *_cell_sections(found),
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


def _convergence_table(found: Answer) -> str:
    shown: dict[Axis, Callable[[float], str]] = {
        "step": lambda v: f"{v:.0f}",
        "audio_seconds": lambda v: f"{v / 3600:.2f} h",
        "accelerator_seconds": duration,
    }
    rows = []
    for arm in found.arms:
        cells = [", ".join("not reached" if v is None else shown[a](v) for v in arm.spent[a]) for a in AXES]
        rows.append([arm.arm, ", ".join(str(t.seed) for t in arm.trials), *cells, ", ".join(map(percent, arm.final))])
    return _table(["arm", "seeds", *AXES.values(), "final value"], rows)


def _comparison_table(found: Answer) -> str:
    rows = []
    for comparison in found.comparisons:
        for axis, name in AXES.items():
            ratio = comparison.ratios[axis]
            shown = f"{ratio.estimate:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else "cannot be estimated"
            rows.append([f"{comparison.arm.arm} / {comparison.baseline.arm}", name, shown])
    return _table(["ratio", "in", "estimate (95 % interval, Welch's t on logarithms)"], rows) if rows else ""


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


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def line(tag: str, cells: Sequence[object]) -> str:
        return "<tr>" + "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<div class=wide><table>{line('th', head)}{''.join(line('td', row) for row in rows)}</table></div>"


def _text(value: object) -> str:
    return html.escape(str(value))


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
th, td {{ padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }}
pre {{ background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: .8rem; }}
</style></head><body>
{body}
</body></html>
"""
