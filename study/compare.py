"""`study compare`: in what two studies differ, and whether their results do. All is told as B relative to A."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from study.ledger import Ledger
from study.page import Section, figure, note, page, paragraph, table, text
from study.spec import StudySpec, without_passwords
from trainables.settings_file import SettingsError

if TYPE_CHECKING:
    from study.answer import Answer, ArmResult
    from study.convergence import Axis
    from study.devices import Devices
    from study.differences import ArmDifference
    from study.statistics import Mean, Ratio

NEVER_COMPARED = ("study", "storage")  # settings that always differ, or never
RATE_HEAD = ("arm", "rate", "A", "B", "B less A (95 % interval), points", "p", "verdict", "seeds A, B", "utterances")
RATIO_HEAD = ("arm", "target", "in", "B / A (95 % interval)", "p", "reached A", "reached B")
RATE_NOTE = (
    "Rates: mean over seeds, with the 95 % interval of Student's t. Differences: paired bootstrap over speakers, with "
    "the variance of seeds (Bisani and Ney, 2004; Cameron, Gelbach and Miller, 2011); below zero B is better; p by "
    "Holm's method over all rows. With one seed on each side, a difference is about these two trained models."
)
RATIO_NOTE = (
    "What B spends until the target, relative to A, earlier stages counted in: ratio of geometric means where every "
    "seed reached it, otherwise of restricted means; Welch's t on logarithms; p of a ratio of 1, by Holm's method over "
    "all rows. Accelerator time compares only where both studies ran on the same device."
)


@dataclass(frozen=True)
class Setting:
    """A setting that differs, as read from JSON; None where a study does not set it."""

    path: str
    a: object
    b: object


@dataclass(frozen=True)
class RatePair:
    """An error rate of the same arm of both studies."""

    arm: str
    metric: str
    a: Mean
    b: Mean
    difference: ArmDifference | None  # None: no utterances are counted for this rate

    @property
    def verdict(self) -> str:
        return self.difference.verdict if self.difference else "cannot be compared: its errors are not kept"


@dataclass(frozen=True)
class DurationRatio:
    """What B spends until the target relative to A; the p-value is by Holm's method over all rows."""

    arm: str
    target: float
    axis: Axis
    ratio: Ratio | None
    p_value: float | None
    reached: tuple[str, str]  # how many of how many seeds, of A and of B


@dataclass(frozen=True)
class StudyComparison:
    studies: tuple[str, str]  # A and B
    arms: list[tuple[ArmResult, ArmResult]]
    pairing: str  # how arms were paired, as a sentence
    settings: list[Setting]
    environment: list[Setting]
    warnings: list[str]  # where the data differ
    rates: list[RatePair]
    ratios: list[DurationRatio]
    no_ratios: str  # why there are none, or ""
    devices: tuple[Devices, Devices]


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    compare = verbs.add_parser("compare", help="in what two studies differ, and whether their results do")
    compare.add_argument("a", metavar="A", help="name of a study")
    compare.add_argument("b", metavar="B", help="name of another study in the same storage")
    compare.add_argument("--storage", type=Path, default=Path("results"), help="storage folder (default: results)")
    compare.add_argument("--folder", type=Path, help="where to write (default: reports/A-vs-B in the storage folder)")
    compare.add_argument("--json", action="store_true", help="print JSON, for programs")
    compare.set_defaults(command=_compare)


def _compare(options: argparse.Namespace) -> int:
    from study.terminal import make_console

    storage = options.storage.absolute()
    ledger = Ledger.existing(storage)
    found = compare(ledger, storage, options.a, options.b)
    path = write_comparison(ledger, storage, found, options.folder)
    if options.json:
        print(json.dumps({"report": str(path), **comparison_as_dict(found)}, indent=2, ensure_ascii=False))
        return 0
    console = make_console()
    console.print(*sentences(found), *found.warnings, sep="\n", soft_wrap=True)
    console.print(*_tables(found), f"report: {path}", sep="\n", soft_wrap=True, highlight=False)
    return 0


def compare(ledger: Ledger, storage: Path, a: str, b: str) -> StudyComparison:
    """Raises SettingsError when both are the same study, and LedgerError when one is not there."""
    from study.answer import answer, targets_of

    if a == b:
        known = ", ".join(row["study"] for row in ledger.studies())
        raise SettingsError([f"study compare takes two different studies, got {a!r} twice; there are: {known}"])
    specs = (ledger.spec(a, storage), ledger.spec(b, storage))
    answers = (answer(specs[0], ledger), answer(specs[1], ledger))
    arms, pairing = _paired(specs, answers)
    ours, theirs = (ledger.study(name)["environment"] for name in (a, b))
    targets = [targets_of(spec, found.arms) for spec, found in zip(specs, answers, strict=True)]
    names = (ledger.devices(a), ledger.devices(b))
    ratios, no_ratios = _ratios(specs, targets, arms, names)
    return StudyComparison(
        studies=(a, b),
        arms=arms,
        pairing=pairing,
        settings=_settings(specs, arms),
        environment=[row for row in _differing(ours, theirs) if not row.path.startswith("data.")],
        warnings=[*_data_warnings((a, b), ours["data"], theirs["data"]), *_device_warnings((a, b), names)],
        rates=_rates(specs[0], ledger, answers[0], arms),
        ratios=ratios,
        no_ratios=no_ratios,
        devices=(answers[0].devices, answers[1].devices),
    )


def _paired(
    specs: tuple[StudySpec, StudySpec], answers: tuple[Answer, Answer]
) -> tuple[list[tuple[ArmResult, ArmResult]], str]:
    """The arms of the same name; where there are none, the best of each study. And a sentence that says which."""
    ours, theirs = ({arm.arm: arm for arm in found.arms} for found in answers)
    if shared := [name for name in ours if name in theirs]:
        alone = [name for name in (*ours, *theirs) if name not in shared]
        left_out = f" In one study only: {', '.join(alone)}." if alone else ""
        return [(ours[name], theirs[name]) for name in shared], f"Compared by name: {', '.join(shared)}.{left_out}"
    a, b = (_best(spec, found) for spec, found in zip(specs, answers, strict=True))
    if a is None or b is None:
        return [], "No arms have the same name, and not both studies have finished trials: no arms are compared."
    return [(a, b)], f"No arms have the same name: the best of A, {a.arm}, is compared with the best of B, {b.arm}."


def _best(spec: StudySpec, found: Answer) -> ArmResult | None:
    """The arm with the lowest mean of what its study minimised; None where no arm has finished trials."""
    metric = spec.search.metric
    return min((a for a in found.arms if metric in a.rates), key=lambda a: a.rates[metric].estimate, default=None)


def _label(a: ArmResult, b: ArmResult) -> str:
    return a.arm if a.arm == b.arm else f"{a.arm} / {b.arm}"


def _settings(specs: tuple[StudySpec, StudySpec], arms: Sequence[tuple[ArmResult, ArmResult]]) -> list[Setting]:
    """Settings of the studies, and of the trials of the arms that are compared, with all defaults filled in."""

    def shown(place: int) -> dict[str, Any]:
        spec = specs[place]
        study = spec.model_dump(mode="json", exclude={"trial", "arms", *NEVER_COMPARED})
        study["arms"] = dict.fromkeys(spec.arms, "present")
        for pair in arms:
            arm = pair[place].arm
            trial = spec.trial_config(arm).model_dump(mode="json")
            settings = spec.arms[arm].model_dump(mode="json") | {"trial": trial}
            if pair[0].arm == pair[1].arm:
                study["arms"][arm] = settings
            else:
                study["best_arm"] = settings
        found: dict[str, Any] = json.loads(without_passwords(json.dumps(study)))
        return found

    return _differing(shown(0), shown(1))


def _differing(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[Setting]:
    """What is not equal under the same path. What only one of them has is one row, however much is in it."""
    found = []
    for name in dict.fromkeys([*a, *b]):
        ours, theirs, path = a.get(name), b.get(name), f"{prefix}{name}"
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            found += _differing(ours, theirs, f"{path}.")
        elif ours != theirs:
            found.append(Setting(path, ours, theirs))
    return found


def _data_warnings(
    studies: tuple[str, str], a: Mapping[str, Mapping[str, str]], b: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """A sentence for each corpus that only one study reads, or whose utterances are not the same."""
    found = [f"The data differ: only {studies[0]} reads {corpus}." for corpus in a if corpus not in b]
    found += [f"The data differ: only {studies[1]} reads {corpus}." for corpus in b if corpus not in a]
    for corpus in a:
        parts = [part for part in a[corpus] if corpus in b and a[corpus][part] != b[corpus].get(part)]
        if parts:
            found.append(f"The data differ: {' and '.join(parts)} of {corpus} had other utterances.")
    return found


def _device_warnings(studies: tuple[str, str], names: tuple[frozenset[str], frozenset[str]]) -> list[str]:
    """That accelerator time does not compare, where the studies ran on other devices."""
    if names[0] == names[1] or not all(names):
        return []
    ran = [f"{study} ran on {' and '.join(sorted(of_study))}" for study, of_study in zip(studies, names, strict=True)]
    return [f"The devices differ: {', '.join(ran)}. Updates and audio compare; times are about the devices, too."]


def _rates(
    spec: StudySpec, ledger: Ledger, found: Answer, arms: Sequence[tuple[ArmResult, ArmResult]]
) -> list[RatePair]:
    """The rates that both have measured. `spec` and `found` are those of either study: both share the storage."""
    from study.answer import Comparison
    from study.differences import differences

    compared = [Comparison(arm=b, baseline=a, ratios={}, p_values={}) for a, b in arms]
    rows = {(row.baseline, row.metric): row for row in differences(spec, ledger, replace(found, comparisons=compared))}
    return [
        RatePair(_label(a, b), metric, a.rates[metric], b.rates[metric], rows.get((a.arm, metric)))
        for a, b in arms
        for metric in a.rates
        if metric in b.rates
    ]


def _ratios(
    specs: tuple[StudySpec, StudySpec],
    targets: Sequence[Sequence[float]],
    arms: Sequence[tuple[ArmResult, ArmResult]],
    devices: tuple[frozenset[str], frozenset[str]],
) -> tuple[list[DurationRatio], str]:
    """Ratios at the targets that both studies have, and why there are none, or ""."""
    from study.answer import AXES
    from study.statistics import holm
    from study.wording import target_text

    metrics = [spec.convergence.metric for spec in specs]
    if metrics[0] != metrics[1]:
        return [], f"A measures convergence by {metrics[0]}, B by {metrics[1]}: what they spend cannot be compared."
    common = [target for target in targets[0] if target in targets[1]]
    if not common:
        shown = [", ".join(target_text(target) for target in of_study) for of_study in targets]
        return [], (
            f"The studies have no target in common (A: {shown[0]}; B: {shown[1]}); give one of them the other's target "
            "in convergence.further_targets, and run it again; a finished study trains nothing then."
        )
    rows = [_ratio(a, b, target, axis, devices) for a, b in arms for target in common for axis in AXES]
    tested = [place for place, row in enumerate(rows) if row.ratio]
    for place, p_value in zip(tested, holm([row.ratio.p_value for row in rows if row.ratio]), strict=True):
        rows[place] = replace(rows[place], p_value=p_value)
    return rows, ""


def _ratio(
    a: ArmResult, b: ArmResult, target: float, axis: Axis, devices: tuple[frozenset[str], frozenset[str]]
) -> DurationRatio:
    from study.survival import ratio_of_durations

    theirs, ours = a.durations(target, axis), b.durations(target, axis)
    reached = [f"{sum(d.reached for d in durations)} of {len(durations)}" for durations in (theirs, ours)]
    counted_on = (a.references or devices[0]) | (b.references or devices[1])
    compares = axis != "accelerator_seconds" or len(counted_on) <= 1
    ratio = ratio_of_durations(ours, theirs) if compares else None
    return DurationRatio(_label(a, b), target, axis, ratio, None, (reached[0], reached[1]))


def sentences(found: StudyComparison) -> list[str]:
    """What a reader must know before the tables."""
    a, b = found.studies
    counts = f"Settings that differ: {len(found.settings)}; entries of the environment: {len(found.environment)}."
    return [f"A is {a}, B is {b}. {found.pairing}", *_verdicts(found), counts]


def _verdicts(found: StudyComparison) -> list[str]:
    """For each arm, where the rates differ beyond chance."""
    from study.wording import metric_name

    told = []
    for arm in dict.fromkeys(rate.arm for rate in found.rates if rate.difference and rate.difference.difference):
        named = {
            verdict: ", ".join(metric_name(r.metric) for r in found.rates if (r.arm, r.verdict) == (arm, verdict))
            for verdict in ("better", "worse")
        }
        differ = " and ".join(f"{verdict} in {metrics}" for verdict, metrics in named.items() if metrics)
        told.append(f"{arm}: B is {differ}." if differ else f"{arm}: no significant difference of error rates.")
    return told


def comparison_as_dict(found: StudyComparison) -> dict[str, Any]:
    """What `study compare --json` prints."""
    return {
        "studies": list(found.studies),
        "arms": [[a.arm, b.arm] for a, b in found.arms],
        "pairing": found.pairing,
        "warnings": found.warnings,
        "settings": [asdict(row) for row in found.settings],
        "environment": [asdict(row) for row in found.environment],
        "rates": [asdict(row) | {"verdict": row.verdict} for row in found.rates],
        "ratios": [asdict(row) for row in found.ratios],
        "no_ratios": found.no_ratios,
    }


def write_comparison(ledger: Ledger, storage: Path, found: StudyComparison, folder: Path | None = None) -> Path:
    """Write `report.html` (by default in `reports/A-vs-B`), with a figure of the curves of both; returns the file."""
    from study.figure_files import save
    from study.figures import Curves, curves_figure
    from study.report import report_folder

    a, b = found.studies
    title = f"{a} and {b}"
    folder = folder or report_folder(storage, f"{a}-vs-{b}")
    folder.mkdir(parents=True, exist_ok=True)
    curves = [
        Curves(f"{study}: {arm.arm}", study, arm.trials, [], devices)
        for pair in found.arms
        for study, arm, devices in zip(found.studies, pair, found.devices, strict=True)
    ]
    goals = [ledger.spec(study, storage).convergence for study in found.studies]
    drawn = curves_figure(title, ledger, curves, {(goal.metric, goal.target) for goal in goals})
    told = "<br>".join(text(sentence) for sentence in sentences(found))
    warned = "".join(f"<p class=warning>{text(warning)}</p>" for warning in found.warnings)
    lead = f"<h1>{text(title)}</h1><p class=answer>{told}</p>{warned}"
    path = folder / "report.html"
    path.write_text(page(title, lead, _sections(found, save(drawn, folder / "convergence"))), encoding="utf-8")
    return path


def _sections(found: StudyComparison, curves: str) -> list[Section]:
    caption = (
        "Means over the seeds of each arm; bands: lowest to highest seed. Dotted: the targets of both studies. Updates "
        "and time of earlier stages are counted in."
    )
    ratios = table(RATIO_HEAD, _ratio_rows(found)) + note(RATIO_NOTE)
    settings, environment = (
        table(["path", "A", "B"], _setting_rows(rows)) if rows else paragraph("None.")
        for rows in (found.settings, found.environment)
    )
    return [
        Section("Convergence", figure("convergence", curves, caption)),
        Section("Error rates", table(RATE_HEAD, _rate_rows(found)) + note(RATE_NOTE)),
        Section("Cost until the target", paragraph(found.no_ratios) if found.no_ratios else ratios),
        Section("Settings that differ", settings),
        Section("Environments that differ", environment),
    ]


def _rate_rows(found: StudyComparison) -> list[list[str]]:
    from study.differences import difference_cells
    from study.wording import metric_name, rate_text

    rows = []
    for rate in found.rates:
        difference, p_value, seeds, utterances = "", "", "", ""
        if rate.difference:
            _, _, difference, p_value, _, seeds, utterances, _ = difference_cells(rate.difference)
        cells = [metric_name(rate.metric), rate_text(rate.a), rate_text(rate.b)]
        rows.append([rate.arm, *cells, difference, p_value, rate.verdict, seeds, utterances])
    return rows


def _ratio_rows(found: StudyComparison) -> list[list[str]]:
    from study.answer import AXES
    from study.wording import target_text

    rows = []
    for row in found.ratios:
        estimate = "cannot be estimated"
        if row.ratio:
            estimate = f"{row.ratio.estimate:.2f} ({row.ratio.low:.2f} to {row.ratio.high:.2f})"
        p_value = "" if row.p_value is None else f"{row.p_value:.2g}"
        rows.append([row.arm, target_text(row.target), AXES[row.axis], estimate, p_value, *row.reached])
    return rows


def _setting_rows(settings: Sequence[Setting]) -> list[list[str]]:
    def shown(value: object) -> str:
        return "not set" if value is None else json.dumps(value, ensure_ascii=False)

    return [[row.path, shown(row.a), shown(row.b)] for row in settings]


def _tables(found: StudyComparison) -> list[Table | str]:
    """What the terminal shows."""
    tables: list[Table | str] = []
    for title, head, rows in (
        ("Error rates", RATE_HEAD, _rate_rows(found)),
        ("Cost until the target", RATIO_HEAD, _ratio_rows(found)),
        ("Settings that differ", ("path", "A", "B"), _setting_rows(found.settings)),
        ("Environments that differ", ("path", "A", "B"), _setting_rows(found.environment)),
    ):
        if rows:
            shown = Table(*head, title=title, title_justify="left")
            for row in rows:
                shown.add_row(*map(Text, row))
            tables.append(shown)
    return [*tables, *([found.no_ratios] if found.no_ratios else [])]
