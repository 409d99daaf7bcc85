"""One self-contained HTML file that answers the question of a study, and its figures as files of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from study.answer import AXES, Answer, Comparison, TargetResult, answer
from study.convergence import Axis
from study.devices import Device
from study.differences import HEAD, NOTE, ArmDifference, difference_cells, differences, missing_trials
from study.figure_files import Drawn, save
from study.figures import (
    attempts,
    convergence_figure,
    grids,
    heat_map_figure,
    pareto_figure,
    searched_trials,
    slices_figure,
    survival_figure,
    timeline_figure,
)
from study.inference_report import inference_figure, inference_note, inference_table, model_times
from study.ledger import Ledger
from study.methods import Importance, methods_section
from study.page import Section, bar, bullets, figure, note, page, paragraph, preformatted, table, table_of_html, text
from study.papers_report import RADAR_CAPTION, ReportTable, claims_table, published_tables, radar_figure
from study.scaling_report import caption, scaling_figure, scaling_table
from study.scaling_result import ScalingResult
from study.similarity_report import CAPTION as SIMILARITY_CAPTION
from study.similarity_report import (
    similarity_figure,
    similarity_file,
    similarity_notes,
    similarity_sentences,
    similarity_table,
)
from study.spec import StudySpec, without_passwords
from study.stage_costs import CAPTION as COST_CAPTION
from study.stage_costs import NOTE as COST_NOTE
from study.stage_costs import SHARING_NOTE, cost_figure, cost_sentences, cost_table, sharing_table, stage_costs
from study.statistics import Mean, Ratio
from study.terminal import duration, percent, point_text
from study.wording import (
    by_decoding,
    goal_text,
    metric_name,
    objective_name,
    objective_text,
    probability_text,
    rate_text,
    shown_rates,
    target_text,
)

Svgs = Mapping[str, str]  # name of a figure -> SVG element


def write_report(
    spec: StudySpec, ledger: Ledger, importance: Importance | None = None, folder: Path | None = None
) -> Path:
    """Write `report.html`, and beside it each of its figures as SVG, PNG, PDF and CSV; returns the HTML file.

    `folder` is where to write; by default the study's own in the storage folder.
    The figures are `convergence` and `timeline`; where an arm has several seeds `survival`, several stages `costs`;
    with several objectives `pareto`; where arms were searched `slices`, by a grid of two numbers `grids`; and where the
    study has them `scaling`, `inference`, `similarity` and `radar`.
    """
    folder = folder or report_folder(spec.storage, spec.study)
    folder.mkdir(parents=True, exist_ok=True)
    found = answer(spec, ledger)
    svgs = {name: save(drawn, folder / name) for name, drawn in _figures(spec, ledger, found)}
    sections = _sections(spec, ledger, found, importance or {}, svgs)
    path = folder / "report.html"
    path.write_text(page(spec.study, _lead(spec, ledger, found), sections), encoding="utf-8")
    return path


def report_folder(storage: Path, study: str) -> Path:
    return storage / "reports" / study


def _figures(spec: StudySpec, ledger: Ledger, found: Answer) -> Iterator[tuple[str, Drawn]]:
    """Name and figure of each that there is something to draw in."""
    yield "convergence", convergence_figure(spec, ledger, found)
    if any(len(arm.trials) > 1 for arm in found.arms):
        yield "survival", survival_figure(spec, found)
    if found.front and found.front.candidates:
        yield "pareto", pareto_figure(spec, found.front)
    if found.scaling and any(arm.measurements for arm in found.scaling.arms):
        yield "scaling", scaling_figure(found.scaling)
    times = model_times(spec, ledger, found.cells)
    if len({row.time for row in times}) > 1:
        yield "inference", inference_figure(spec, times)
    costs = stage_costs(spec, ledger, found)
    if any(len(arm.stages) > 1 for arm in costs.arms) and (drawn := cost_figure(costs)):
        yield "costs", drawn
    if drawn := similarity_figure(similarity_file(spec.storage, spec.study)):
        yield "similarity", drawn
    if drawn := radar_figure(spec, found):
        yield "radar", drawn
    if searched := searched_trials(spec, ledger):
        yield "slices", slices_figure(spec, searched)
    if pairs := grids(spec, found):
        yield "grids", heat_map_figure(spec, found, pairs)
    if ran := attempts(spec, ledger):
        yield "timeline", timeline_figure(ran)


def _lead(spec: StudySpec, ledger: Ledger, found: Answer) -> str:
    ran_at = datetime.fromtimestamp(ledger.study(spec.study)["updated_at"], UTC)
    return (
        f"<h1>{text(spec.question)}</h1>\n<p class=answer>{'<br>'.join(map(text, found.sentences))}</p>\n"
        f"<p class=note>Study <b>{text(spec.study)}</b>, last run {ran_at:%Y-%m-%d %H:%M} UTC.</p>"
    )


def _sections(spec: StudySpec, ledger: Ledger, found: Answer, importance: Importance, svgs: Svgs) -> list[Section]:
    """The parts of the page, in order; a part that this study has nothing for is left out."""
    study = ledger.study(spec.study)
    environment = study["environment"]
    compared = differences(spec, ledger, found)
    goal = goal_text(spec)
    settings = without_passwords(json.dumps(study["spec"], indent=2, ensure_ascii=False))
    sections = [
        Section("Convergence", figure("convergence", svgs["convergence"], _caption(found))),
        Section("Results of each arm", _rate_table(found)),
        _differences_section(compared),
        Section(f"Cost until a {goal}", _convergence_table(found) + _comparison_table(found)),
        _devices_section(found),
        _survival_section(found, svgs),
        _whole_curves_section(spec, found),
        _scaling_section(found.scaling, svgs),
        _front_section(found, svgs),
        _inference_section(spec, ledger, found, svgs),
        _costs_section(spec, ledger, found, svgs),
        _similarity_section(spec, svgs),
        *_papers_sections(spec, ledger, found, svgs),
        _cells_section(found),
        _grids_section(spec, svgs),
        _importance_section(spec, importance, svgs),
        Section("Trials", _trial_table(spec, ledger)),
        _timeline_section(svgs),
        methods_section(spec, ledger, found, compared, importance),
        Section("Data", table(["corpus", "part", "sha256 of its list of utterances"], _data_rows(environment["data"]))),
        Section("Versions", table(["package", "version"], list(environment["versions"].items()))),
        Section("Settings", preformatted(settings)),
    ]
    return [section for section in sections if section]


def _data_rows(data: dict[str, dict[str, str]]) -> list[list[str]]:
    return [[corpus, part, digest] for corpus, parts in data.items() for part, digest in parts.items()]


def _caption(found: Answer) -> str:
    fresh = {arm.fresh_seeds for arm in found.arms if arm.trials}
    kinds = {True: "the best configuration with fresh seeds", False: "the best trial"}
    which = f"of each arm {' or, where it has none, '.join(kinds[kind] for kind in sorted(fresh, reverse=True))}"
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
    head = ["arm", "seeds", "decoding", *map(metric_name, shown)]
    return table(head, rows) + note("Mean over seeds, with the 95 % interval of Student's t.")


def _differences_section(rows: Sequence[ArmDifference]) -> Section | None:
    """Each arm against its baseline, utterance by utterance, where there are comparisons."""
    if not rows:
        return None
    gone = missing_trials(rows)
    missing = note(f"Without the hypotheses of {', '.join(gone)}, which are gone or damaged.") if gone else ""
    return Section("Differences", table(HEAD, [difference_cells(row) for row in rows]) + note(NOTE) + missing)


def _cells_section(found: Answer) -> Section | None:
    """The results of every configuration, where an arm has several of them."""
    if len(found.cells) <= len(found.arms):
        return None
    shown = shown_rates(cell.rates for cell in found.cells)
    rows = [
        [c.arm, point_text(c.point) or "-", str(len(c.trials)), decoding, *(rate_text(rates.get(n)) for n in shown)]
        for c in found.cells
        for decoding, rates in by_decoding(c.rates).items()
    ]
    words = "Mean over all seeds, with the 95 % interval of Student's t where there are several."
    head = ["arm", "searched values", "seeds", "decoding", *map(metric_name, shown)]
    return Section("Results of each configuration", table(head, rows) + note(words))


def _front_section(found: Answer, svgs: Svgs) -> Section | None:
    """The Pareto front, where the study has several objectives."""
    front = found.front
    if not front:
        return None
    if not front.candidates:
        return Section("Pareto front", paragraph("No finished trial has measured all objectives."))
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
    drawn = figure("pareto", svgs["pareto"], _FRONT_CAPTION)
    return Section("Pareto front", drawn + table(head, rows) + note(_FRONT_NOTE))


def _scaling_section(scaling: ScalingResult | None, svgs: Svgs) -> Section | None:
    """The scaling laws of the arms, where the study asks for them."""
    if not scaling:
        return None
    drawn = figure("scaling", svgs["scaling"], caption(scaling)) if "scaling" in svgs else ""
    return Section(f"Scaling with {scaling.size_name}", drawn + table(*scaling_table(scaling)))


def _inference_section(spec: StudySpec, ledger: Ledger, found: Answer, svgs: Svgs) -> Section | None:
    """How long the models take to recognise, where that was measured."""
    times = model_times(spec, ledger, found.cells)
    if not times:
        return None
    drawn = figure("inference", svgs["inference"], _INFERENCE_CAPTION) if "inference" in svgs else ""
    return Section("Inference time", drawn + table(*inference_table(spec, times)) + note(inference_note(times)))


def _costs_section(spec: StudySpec, ledger: Ledger, found: Answer, svgs: Svgs) -> Section | None:
    """What each stage costs, and what sharing saved, where trials have several stages."""
    if "costs" not in svgs:
        return None
    costs = stage_costs(spec, ledger, found)
    body = figure("costs", svgs["costs"], COST_CAPTION) + bullets(cost_sentences(costs))
    body += table(*cost_table(costs)) + note(COST_NOTE) + table(*sharing_table(costs)) + note(SHARING_NOTE)
    return Section("Cost of the stages", body)


def _similarity_section(spec: StudySpec, svgs: Svgs) -> Section | None:
    """How alike the stages represent speech, where `study similarity` has measured it."""
    if "similarity" not in svgs:
        return None
    path = similarity_file(spec.storage, spec.study)
    body = figure("similarity", svgs["similarity"], SIMILARITY_CAPTION) + bullets(similarity_sentences(path))
    notes = "".join(map(note, similarity_notes(path)))
    return Section("Representations", body + table(*similarity_table(path)) + notes)


def _papers_sections(spec: StudySpec, ledger: Ledger, found: Answer, svgs: Svgs) -> list[Section]:
    """The papers' tables that the study covers, beside what it measured, and the claims about wav2vec-S."""
    sections = [_report_table(tabled) for tabled in published_tables(spec, ledger, found)]
    if "radar" in svgs:
        sections.append(Section("Languages", figure("radar", svgs["radar"], RADAR_CAPTION)))
    claims = claims_table(spec, ledger, found)
    return [*sections, _report_table(claims)] if claims else sections


def _report_table(tabled: ReportTable) -> Section:
    return Section(tabled.title, table(tabled.head, tabled.rows) + "".join(map(note, tabled.notes)))


def _grids_section(spec: StudySpec, svgs: Svgs) -> Section | None:
    """The metric over each grid of two numbers."""
    if "grids" not in svgs:
        return None
    title = f"{metric_name(spec.search.metric)} over the grid"
    return Section(title, figure("grids", svgs["grids"], _GRIDS_CAPTION))


def _timeline_section(svgs: Svgs) -> Section | None:
    """When the stages ran, where this study has trained any itself."""
    return Section("Timeline", figure("timeline", svgs["timeline"], _TIMELINE_CAPTION)) if "timeline" in svgs else None


def _importance_section(spec: StudySpec, importance: Importance, svgs: Svgs) -> Section | None:
    """How the metric depends on the searched values, where arms were searched."""
    estimated = any(importance.values())
    if not estimated and "slices" not in svgs:
        return None
    body = _importance_table(spec, importance) if estimated else ""
    body += figure("slices", svgs["slices"], _SLICES_CAPTION) if "slices" in svgs else ""
    return Section("Importance of the searched values", body)


def _importance_table(spec: StudySpec, importance: Importance) -> str:
    """The shares of each arm as bars, the greatest first."""
    rows = [
        [text(arm), text(path), bar(share), f"{share:.0%}"]
        for arm, shares in importance.items()
        for path, share in sorted(shares.items(), key=lambda item: -item[1])
    ]
    words = (
        f"Share of the variation of the {metric_name(spec.search.metric)} between an arm's trials that each value "
        "explains (fANOVA). With few trials it is a rough estimate."
    )
    return table_of_html(["arm", "searched value", "", "importance"], rows) + note(words)


def _spent_text(axis: Axis, value: float) -> str:
    shown: dict[Axis, Callable[[float], str]] = {
        "step": lambda v: f"{v:.0f}",
        "audio_seconds": lambda v: f"{v / 3600:.2f} h",
        "accelerator_seconds": duration,
        "elapsed_seconds": duration,
    }
    return shown[axis](value)


def _convergence_table(found: Answer) -> str:
    rows = []
    for arm in found.arms:
        spent = arm.spent
        cells = [", ".join("not reached" if v is None else _spent_text(a, v) for v in spent[a]) for a in AXES]
        rows.append([arm.arm, ", ".join(str(t.seed) for t in arm.trials), *cells, ", ".join(map(percent, arm.final))])
    return table(["arm", "seeds", *AXES.values(), "final value"], rows)


def _comparison_table(found: Answer) -> str:
    if not found.comparisons:
        return ""
    rows = [row for comparison in found.comparisons for row in _comparison_rows(comparison, "included")]
    rows += [row for comparison in found.without_pretraining for row in _comparison_rows(comparison, "left out")]
    estimate = "estimate (95 % interval, Welch's t on logarithms)"
    return table(["ratio", "in", "pre-training", estimate, "of means", "p (Holm)"], rows) + note(_COMPARISON_NOTE)


def _comparison_rows(comparison: Comparison, pretraining: str) -> Iterator[list[str]]:
    compared = f"{comparison.arm.arm} / {comparison.baseline.arm}"
    of = "geometric" if comparison.arm.complete and comparison.baseline.complete else "restricted"
    for axis, name in AXES.items():
        ratio, p_value = comparison.ratios[axis], comparison.p_values[axis]
        shown = _ratio_text(ratio) if axis != "accelerator_seconds" or comparison.comparable else "does not compare"
        yield [compared, name, pretraining, shown, of if ratio else "", _p_text(p_value)]


def _devices_section(found: Answer) -> Section | None:
    """How fast the devices are, where the study ran on several."""
    devices = found.devices.found
    if not devices:
        return None
    rows = [
        [
            device.name,
            str(device.stages),
            duration(device.accelerator_seconds),
            device.reference,
            _speed_text(device),
            str(device.shapes),
        ]
        for device in devices
    ]
    head = ["device", "stages", "accelerator time", "counted as on", "speed on equal work", "shapes of work"]
    return Section("Devices", table(head, rows) + note(_DEVICES_NOTE))


def _speed_text(device: Device) -> str:
    if device.name == device.reference:
        return "1"
    return f"{device.speed:.2f} ({device.low:.2f} to {device.high:.2f})"


def _survival_section(found: Answer, svgs: Svgs) -> Section | None:
    """When the seeds reached each target, where an arm has several of them."""
    if "survival" not in svgs:
        return None
    mean, ratio = "restricted mean (95 %)", "ratio (95 %)"
    head = ["target", "arm", "reached", mean, "up to", "ratio to", ratio, "log-rank p"]
    rows = [_target_row(result) for result in found.targets if result.axis == "accelerator_seconds"]
    drawn = figure("survival", svgs["survival"], _SURVIVAL_CAPTION)
    return Section("Seeds that have not reached the target", drawn + table(head, rows) + note(_TARGET_NOTE))


def _target_row(result: TargetResult) -> list[str]:
    return [
        target_text(result.target),
        result.arm,
        f"{result.reached} of {result.seeds}",
        _spent_mean_text(result.axis, result.mean),
        _spent_text(result.axis, result.horizon),
        result.baseline or "",
        _ratio_text(result.ratio) if result.baseline else "",
        _p_text(result.log_rank),
    ]


def _whole_curves_section(spec: StudySpec, found: Answer) -> Section | None:
    """The mean of the metric over the budget that all trials have, and how fast it comes down."""
    if not found.whole_curves:
        return None
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
    since, until = found.whole_curves[0].since, found.whole_curves[0].until
    words = (
        f"Area under the curve of the {metric} over the updates in which all trials were evaluated, from {since} to "
        f"{until}, divided by its width: every update alike, and every doubling of the updates alike. Decay time: tau "
        "of y_inf + a exp(-t / tau), fitted to each seed from its first evaluation on. Means over seeds, with the 95 % "
        "interval of Student's t."
    )
    return Section("Whole curves", table(head, rows) + note(words))


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
    return table(head, rows)


_FRONT_CAPTION = (
    "A dot for each configuration: mean over its seeds, bars from the lowest to the highest seed. Filled: on the front "
    "of all objectives. The line joins what no other beats in the two objectives of its panel. Last: the volume that "
    "the trials so far dominate, all objectives together."
)
_FRONT_NOTE = (
    "Mean over all seeds, with the 95 % interval of Student's t where there are several. Probability: "
    "how often no other configuration dominates this one when the seeds are drawn again (bootstrap); the noise of a "
    "single seed is taken from the configurations with several, and is unknown where there are none."
)
_COMPARISON_NOTE = (
    "Of geometric means where every seed of both arms reached the target; otherwise of restricted means: "
    "of what is spent until the target, or until the end of what is known of both arms where it comes first. p: of a "
    "ratio of 1, by Holm's method over the comparisons. Pre-training left out: the stages pretrain and semi_supervised "
    "cost nothing."
)
_DEVICES_NOTE = (
    "Accelerator time is as spent, each stage once. Speed: seconds that the device it is counted as on needs for the "
    "work of one second, by least squares on the logarithms of what equal work took (median), weighted by time; in "
    "brackets, the lowest and the highest of single shapes of work. A shape: as many updates and evaluations of stages "
    "with equal settings, apart from seeds, learning rates and lengths. Convergence and the costs of the arms' stages "
    "are as on that device; the tables of trials and of what sharing saved and objectives of the search are as spent, "
    "and so is elapsed time everywhere."
)
_SURVIVAL_CAPTION = (
    "Share of the seeds of each arm that have not reached the target (Kaplan and Meier). Ticks: where the curve of a "
    "seed ended above it."
)
_TARGET_NOTE = (
    "Restricted mean: the accelerator time that a seed spends until the target, or until the stated end "
    "of what is known of the arm and its baseline where it comes first, with the interval by Klein and Moeschberger's "
    "error. Ratio: as above. Log-rank p: exact over all arrangements of few seeds (3 and 3 cannot go below 0.1), by "
    "Holm's method over the arms that are compared at this target."
)
_INFERENCE_CAPTION = (
    "A dot for each configuration: means, with the standard deviation of the passes and the 95 % interval over seeds. "
    "The line joins what no other beats in both."
)
_SLICES_CAPTION = "Filled: finished trials of the search. Hollow: stopped early, with the last value that they had."
_GRIDS_CAPTION = (
    "Mean over the seeds of each point of the grid; outlined: the lowest of the arm. Points without a finished trial "
    "are empty."
)
_TIMELINE_CAPTION = (
    "A bar for each stretch of time in which a stage ran, from the times of its reports, in as many lanes as stages "
    "ran at a time. A stage that was interrupted has several bars; what it did after the last report before an "
    "interruption, and what it then did again, falls into the gap. Stages that an earlier study had trained are not "
    "shown."
)
