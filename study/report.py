"""One self-contained HTML file that answers the question of a study, and its figures as SVG and PNG."""

from __future__ import annotations

import html
import io
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from study.answer import (
    AXES,
    Answer,
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
from study.figures import COLOURS, convergence_figure, pareto_figure, searched_trials, slices_figure, survival_figure
from study.ledger import Ledger
from study.scaling_report import CAPTION, scaling_figure, scaling_table
from study.scaling_result import ScalingResult
from study.spec import StudySpec, without_passwords
from study.statistics import Mean, Ratio
from study.terminal import duration, percent, point_text

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
    if searched := searched_trials(spec, ledger):
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
