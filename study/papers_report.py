"""The papers' tables and claims as tables of text, and a radar figure of languages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.figure import Figure
from matplotlib.projections.polar import PolarAxes

from study.answer import Answer
from study.direction import p_text
from study.figure_files import Drawn, Look, looks
from study.ledger import Ledger
from study.papers import AnsweredCell, AnsweredClaim, AnsweredTable, answered_tables, standing_for
from study.published import PublishedMetric, PublishedTable, PublishedValue, coordinates_of, publications
from study.spec import StudySpec
from study.statistics import Mean
from study.wav2vec_s_claims import AnsweredReview, corpus_text, points_text, reviewed_claims

RADAR_METRIC = "test_wer"
FEWEST_LANGUAGES = 3  # of a polygon


@dataclass(frozen=True)
class ReportTable:
    """A table as plain text."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str]


def published_tables(spec: StudySpec, ledger: Ledger, found: Answer) -> list[ReportTable]:
    """For each table that the study covers: its cells, published and ours; then its claims, with verdicts."""
    tables = []
    for answered in answered_tables(spec, ledger, found):
        tables += [_cells_table(spec, answered), _directions_table(answered)]
    return tables


def claims_table(spec: StudySpec, ledger: Ledger, found: Answer) -> ReportTable | None:
    """The eleven claims of P-DATA and P-CS; None where no arm is trained as wav2vec-S."""
    claims = reviewed_claims(spec, ledger, found)
    if not claims:
        return None
    head = ["claim", "P-DATA", "P-CS", "published", "ours (95 % interval)", "verdict", "trials"]
    return ReportTable("Claims of P-DATA and P-CS about wav2vec-S", head, [_claim_row(c) for c in claims], CLAIMS_NOTES)


CLAIMS_NOTES = [
    "Both are machine-made reviews of wav2vec-S (arXiv:2110.04484) and list the same eleven claims, cut as here. "
    "P-DATA calls nine of them verified and P-CS six; they agree on four. In brackets: the confidence that they give.",
    "The published reductions are averages over data sets; a study is about its own. Ours: the relative reduction of "
    "the test WER between arms with and without the semi-supervised stage, with Student's t interval over pairs, or "
    "over seeds where there is one pair.",
    "Claims of direction: the number of pairs (arm and baseline with the same searched values and several seeds on "
    "each side; where there are none, what stands for the two), and p by the exact one-sided sign test over them.",
]
DIRECTION_NOTE = (
    "A pair is two cells that differ only in what the claim is about. p: exact one-sided sign test over the pairs with "
    "several seeds (of inference times: passes, on one device) on each side, ties left out. Difference: mean over "
    "pairs of the value said to be lower less the other, with Student's t interval. Both take pairs as independent, "
    "which those with a cell in common are not."
)
RADAR_CAPTION = (
    "Test WER of each language, in percent; closer to the origin is better. Bars: 95 % interval of Student's t "
    "over seeds. Dashed: as published, where the study covers the table."
)


# ---- cells ---------------------------------------------------------------------------------------------------------


def _cells_table(spec: StudySpec, answered: AnsweredTable) -> ReportTable:
    table = answered.table
    columns = [text for metric in table.metrics.values() for text in (f"{metric.name}: published", "ours")]
    paper = publications().papers[table.paper]
    notes = [
        f"{paper.title}; {paper.source}. Published: {table.measured_on}.",
        f"Ours: {_study_text(spec, answered)}. Mean over seeds, with the 95 % interval of Student's t.",
        *table.notes,
    ]
    head = [*(name.replace("_", " ") for name in table.coordinates), *columns, "trials"]
    return ReportTable(_title(table), head, [_cell_row(table, cell) for cell in answered.cells], notes)


def _title(table: PublishedTable) -> str:
    return f"{table.paper} Table {table.number}: {table.caption}"


def _study_text(spec: StudySpec, answered: AnsweredTable) -> str:
    """The corpora and models of the arms in the table; of all arms where none has finished."""
    arms = {cell.configuration.arm for cell in answered.cells if cell.configuration} or set(spec.arms)
    configs = [config for arm, config in spec.known_trials().items() if arm in arms]
    corpora = dict.fromkeys(corpus_text(config.corpus) for config in configs)
    models = dict.fromkeys(config.model.preset or config.model.family for config in configs)
    return f"corpus {', '.join(corpora)}; model {', '.join(models)}"


def _cell_row(table: PublishedTable, cell: AnsweredCell) -> list[str]:
    values = []
    for name, metric in table.metrics.items():
        published = cell.published.values.get(name)
        values += [_published_text(metric, published), _ours_text(metric, cell, name)]
    return [*(str(cell.published.at[name]) for name in table.coordinates), *values, ", ".join(cell.trials)]


def _published_text(metric: PublishedMetric, published: PublishedValue | None) -> str:
    """As printed: rates have one decimal."""
    if published is None:
        return "not known"
    return f"{published.value:.1f}" if metric.is_rate and published.spread is None else str(published)


def _ours_text(metric: PublishedMetric, cell: AnsweredCell, name: str) -> str:
    if name in cell.missing:
        return cell.missing[name]
    return mean_text(metric, cell.measured[name].mean)


def mean_text(metric: PublishedMetric, mean: Mean) -> str:
    """`31.2 (29.8-32.6)`, in the unit of the paper; without an interval where there is none, or its ends are alike."""
    estimate = _number(metric, mean.estimate)
    if mean.low is None or mean.high is None:
        return estimate
    low, high = (_number(metric, max(0.0, value)) for value in (mean.low, mean.high))  # nothing here is below zero
    return estimate if low == high else f"{estimate} ({low}-{high})"


def _number(metric: PublishedMetric, ours: float) -> str:
    printed = metric.printed(ours)
    if metric.is_rate or metric.unit > 1:
        return f"{printed:.1f}"
    return f"{printed:.0f}" if printed == round(printed) else f"{printed:.3g}"


# ---- claims --------------------------------------------------------------------------------------------------------


def _directions_table(answered: AnsweredTable) -> ReportTable:
    head = [
        "claim",
        "metric",
        "published pairs that hold",
        "pairs measured",
        "pairs that hold",
        "difference (95 % interval)",
        "relative, %",
        "p",
        "verdict",
        "trials",
    ]
    rows = [_direction_row(claim) for claim in answered.claims]
    return ReportTable(f"Claims of {answered.table.paper} Table {answered.table.number}", head, rows, [DIRECTION_NOTE])


def _direction_row(answered: AnsweredClaim) -> list[str]:
    found = answered.direction
    difference = found.difference
    return [
        answered.claim.text,
        answered.metric.name,
        f"{answered.published_holding} of {answered.published_pairs}" if answered.published_pairs else "not known",
        f"{len(found.pairs)} of {found.claimed}",
        f"{found.holding} of {len(found.told_by)}" if found.pairs else "",
        _difference_text(answered.metric, difference) if difference else "",
        points_text(found.relative) if found.relative else "",
        "" if found.p_value is None else p_text(found.p_value).removeprefix("p = ").removeprefix("p "),
        found.verdict,
        ", ".join(found.trials),
    ]


def _difference_text(metric: PublishedMetric, difference: Mean) -> str:
    """In the unit of the paper: points for rates."""
    values = (difference.estimate, difference.low, difference.high)
    estimate, *ends = (f"{metric.printed(value):+.3g}" for value in values if value is not None)
    return f"{estimate} ({' to '.join(ends)})" if ends else estimate


def _claim_row(answered: AnsweredReview) -> list[str]:
    claim = answered.claim
    reviews = [
        f"{'verified' if verified else 'not verified'} ({claim.confidence[paper]:.2f})"
        for paper, verified in claim.verified.items()
    ]
    published = "" if claim.published is None else f"{claim.published:g} %"
    return [claim.text, *reviews, published, answered.ours, answered.verdict, ", ".join(answered.trials)]


# ---- radar ---------------------------------------------------------------------------------------------------------

Polygons = Mapping[str, Mapping[str, Mean]]  # regime -> language -> test WER


def radar_figure(spec: StudySpec, found: Answer) -> Drawn | None:
    """The test WER of each regime in each language, as P-BLJ Figure 3.

    None unless there are three languages, with one arm in each of them for each regime, and all of one regime finished.
    """
    arms = _arms_by_place(spec)
    languages = list(dict.fromkeys(language for _, language in arms))
    regimes = list(dict.fromkeys(regime for regime, _ in arms))
    if len(languages) < FEWEST_LANGUAGES or len(regimes) < 2 or len(arms) != len(languages) * len(regimes):
        return None
    ours = _complete({place: _measured(spec, found, arm) for place, arm in arms.items()}, regimes, languages)
    if not ours:
        return None
    published = _complete({place: _published(spec, arm) for place, arm in arms.items()}, regimes, languages)
    columns = ("regime", "source", "language", "test WER, %", "low, 95 %", "high, 95 %")
    rows = [*_points("measured", ours), *_points("published", published)]
    return Drawn(_draw(languages, regimes, ours, published), columns, rows)


def _points(source: str, polygons: Polygons) -> Iterator[tuple[str | float | None, ...]]:
    for regime, rates in polygons.items():
        for language, rate in rates.items():
            values = (None if value is None else 100 * value for value in (rate.estimate, rate.low, rate.high))
            yield (regime, source, language, *values)


def _arms_by_place(spec: StudySpec) -> dict[tuple[str, str], str]:
    """(regime, language) -> arm; empty where two arms have the same place, or a language is not known."""
    places: dict[tuple[str, str], str] = {}
    for arm, config in spec.known_trials().items():
        place = (config.regime.kind, config.corpus.language or "")
        if place in places or not place[1]:
            return {}
        places[place] = arm
    return places


def _measured(spec: StudySpec, found: Answer, arm: str) -> Mean | None:
    """The rate of the configuration that stands for the arm, as in the tables."""
    cells = [cell for cell in found.cells if cell.arm == arm]
    return standing_for(cells, spec).rates.get(RADAR_METRIC) if cells else None


def _published(spec: StudySpec, arm: str) -> Mean | None:
    """The rate of the arm's cell in a table with a radar figure, as a fraction."""
    settings = spec.known_trials()[arm].model_dump(mode="json")
    for name, mapping in spec.tables.items():
        table = publications().table(name)
        at = coordinates_of(mapping, arm, settings)
        cell = table.cell(at) if table and table.radar and at else None
        if table and table.radar and cell and (value := cell.values.get(table.radar.metric)):
            return Mean(value.value / 100, None, None)
    return None


def _complete(
    rates: Mapping[tuple[str, str], Mean | None], regimes: Sequence[str], languages: Sequence[str]
) -> dict[str, dict[str, Mean]]:
    """The regimes that have a rate in every language."""
    found = {r: {lang: rate for lang in languages if (rate := rates[r, lang])} for r in regimes}
    return {regime: there for regime, there in found.items() if len(there) == len(languages)}


def _draw(languages: Sequence[str], regimes: Sequence[str], ours: Polygons, published: Polygons) -> Figure:
    figure = Figure(figsize=(8, 6), layout="constrained")
    panel = figure.add_subplot(projection="polar")
    assert isinstance(panel, PolarAxes)
    angles = [2 * math.pi * place / len(languages) for place in range(len(languages))]
    for regime, look in looks(regimes).items():
        for polygons, style, label in ((ours, "-", regime), (published, "--", f"{regime} (published)")):
            if regime in polygons:
                rates = [polygons[regime][language] for language in languages]
                _polygon(panel, angles, rates, look, style, label)
    panel.set_theta_zero_location("N")
    panel.set_xticks(angles, [_axis_label(language, ours) for language in languages])
    panel.tick_params(axis="x", pad=12)
    for text, angle in zip(panel.get_xticklabels(), angles, strict=True):
        text.set_horizontalalignment(_side(angle))
    panel.set_ylim(bottom=0)
    panel.set_rlabel_position(180 / len(languages))
    panel.grid(alpha=0.3)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    return figure


def _side(angle: float) -> Literal["left", "center", "right"]:
    """How text is aligned that stands beside the circle, at an angle from the top, anticlockwise."""
    across = math.sin(angle)
    if math.isclose(across, 0, abs_tol=1e-9):
        return "center"
    return "right" if across > 0 else "left"


def _axis_label(language: str, ours: Polygons) -> str:
    """The language, and below it the rates, which a radar alone does not show well."""
    return "\n".join([language, *(f"{regime} {100 * rates[language].estimate:.1f}" for regime, rates in ours.items())])


def _polygon(
    panel: PolarAxes, angles: Sequence[float], rates: Sequence[Mean], look: Look, style: str, label: str
) -> None:
    """A closed line with its markers, hollow where it is dashed, and the intervals along the axes."""
    values = [100 * rate.estimate for rate in rates]
    closed = ([*angles, angles[0]], [*values, values[0]])
    face = look.colour if style == "-" else "none"
    panel.plot(*closed, style, color=look.colour, marker=look.marker, markerfacecolor=face, markersize=6, label=label)
    for angle, rate in zip(angles, rates, strict=True):
        if rate.low is not None and rate.high is not None:
            lengths = [[100 * (rate.estimate - max(0.0, rate.low))], [100 * (rate.high - rate.estimate)]]
            panel.errorbar([angle], [100 * rate.estimate], yerr=lengths, fmt="none", ecolor=look.colour, capsize=8)
