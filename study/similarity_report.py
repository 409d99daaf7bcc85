"""How alike the stages of each arm represent speech: numbers, sentences, figure and table of what was measured.

`study similarity` measures and writes `similarity.json`; everything here reads that file, and needs no torch.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pydantic import ValidationError

from study.figure_files import BARS, Drawn
from study.statistics import Mean, mean_of
from trainables.config import Config

Measure = Literal["cka", "svcca"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
INITIAL = "initial"  # the weights before the first stage, beside the kinds of stages
FEW_FRAMES = 10  # for each unit of a layer; below that, SVCCA of unrelated layers is well above zero

# Colour, style and marker of a stage's line. The last stage has none: it is what the others are compared with.
LOOKS = {
    INITIAL: ("black", ":", "x"),
    "pretrain": (BARS["pretrain"]["facecolor"], "-", "o"),
    "semi_supervised": (BARS["semi_supervised"]["facecolor"], "--", "s"),
    "joint": (BARS["joint"]["facecolor"], "-.", "^"),
}
CAPTION = (
    "How alike the hidden states of each stage and of the arm's last stage are, layer by layer, on the same frames of "
    "dev: 1 is the same up to rotation and scale. Lines: mean over seeds; bands and bars: lowest to highest seed."
)
COLUMNS = ("arm", "stage", "compared with", "measure", "layer", "mean", "lowest", "highest", "seeds")
NOTE = (
    "Mean over layers, then over seeds, with the 95 % interval of Student's t. Differences are within seeds; their "
    "intervals are not corrected for how many there are. Linear CKA: Kornblith et al. 2019. SVCCA: Raghu et al. 2017, "
    "principal components with 99 % of the variance."
)


class PairSimilarity(Config):
    """Of two sets of weights, layer by layer, on the same frames."""

    cka: tuple[float, ...]
    svcca: tuple[float, ...]
    frames: int
    width: int  # of the widest layer

    def values(self, measure: Measure) -> tuple[float, ...]:
        return self.cka if measure == "cka" else self.svcca


class TrialStages(Config):
    """The sets of weights of a trial, in the order in which they were trained."""

    arm: str
    trial: str
    seed: int
    utterances: str  # fingerprint of those that it was measured on
    weights: dict[str, str]  # INITIAL or the kind of the stage -> what identifies the weights

    @property
    def last(self) -> str:
        return list(self.weights)[-1]

    def key(self, first: str, second: str) -> str:
        """What identifies the similarity of two of its stages."""
        return f"{self.weights[first]} {self.weights[second]} {self.utterances}"


class Similarities(Config):
    """What `similarity.json` holds."""

    study: str
    utterances: int  # of dev, at most
    comparisons: tuple[tuple[str, str], ...]  # arm, baseline
    trials: tuple[TrialStages, ...]
    missing: tuple[str, ...]  # trials of which no similarity can be told, and why
    pairs: dict[str, PairSimilarity]  # by `TrialStages.key`; may hold those of earlier calls

    def pair(self, trial: TrialStages, first: str, second: str) -> PairSimilarity:
        return self.pairs[trial.key(first, second)]

    @property
    def arms(self) -> dict[str, list[TrialStages]]:
        """The trials of each arm that has any."""
        return {name: [t for t in self.trials if t.arm == name] for name in dict.fromkeys(t.arm for t in self.trials)}


@dataclass(frozen=True)
class Closeness:
    """How alike a stage of an arm and the arm's last stage are, as a mean over layers."""

    arm: str
    stage: str
    last: str
    measure: Measure
    by_seed: dict[int, float]
    gain: Mean | None = None  # less that of the pre-training of the same trials; of semi-supervised stages
    baseline: str | None = None
    baseline_gain: Mean | None = None  # less that of the baseline's pre-training to its own last stage, by seed

    @property
    def mean(self) -> Mean:
        return mean_of(list(self.by_seed.values()))


def similarity_file(storage: Path, study: str) -> Path:
    """Where the similarities of a study are kept."""
    return storage / "reports" / study / "similarity.json"


def read_similarities(path: Path) -> Similarities | None:
    """None where nothing was measured, or by another version of this project."""
    try:
        return Similarities.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def closeness(found: Similarities) -> list[Closeness]:
    """A row for each arm, stage before the last, and measure."""
    rows = [
        Closeness(arm, stage, trials[0].last, measure, _by_seed(found, trials, stage, measure))
        for arm, trials in found.arms.items()
        for stage in _earlier(trials)
        for measure in MEASURES
    ]
    known = {(row.arm, row.stage, row.measure): row for row in rows}
    baselines = dict(found.comparisons)
    return [_with_gains(row, known, baselines.get(row.arm)) if row.stage == "semi_supervised" else row for row in rows]


def _earlier(trials: Sequence[TrialStages]) -> list[str]:
    """The stages before the last that any of the trials still has."""
    stages = dict.fromkeys(stage for trial in trials for stage in trial.weights if stage != trial.last)
    return [stage for stage in LOOKS if stage in stages]


def _by_seed(found: Similarities, trials: Sequence[TrialStages], stage: str, measure: Measure) -> dict[int, float]:
    pairs = {trial.seed: found.pair(trial, stage, trial.last) for trial in trials if stage in trial.weights}
    return {seed: statistics.fmean(pair.values(measure)) for seed, pair in pairs.items()}


def _with_gains(row: Closeness, known: Mapping[tuple[str, str, Measure], Closeness], baseline: str | None) -> Closeness:
    before = known.get((row.arm, "pretrain", row.measure))
    theirs = known.get((baseline, "pretrain", row.measure)) if baseline else None
    return replace(
        row,
        gain=_paired_difference(row, before),
        baseline=baseline if theirs else None,
        baseline_gain=_paired_difference(row, theirs),
    )


def _paired_difference(ours: Closeness, theirs: Closeness | None) -> Mean | None:
    """Over the seeds that both have; None where there is none."""
    seeds = [seed for seed in ours.by_seed if theirs and seed in theirs.by_seed]
    return mean_of([ours.by_seed[seed] - theirs.by_seed[seed] for seed in seeds]) if theirs and seeds else None


def similarity_sentences(path: Path) -> list[str]:
    """What the semi-supervised stage does to the distance between pre-training and fine-tuning, or that distance."""
    found = read_similarities(path)
    rows = closeness(found) if found else []
    gained = [row for row in rows if row.gain]
    return [_gain_sentence(row, rows) for row in gained] or [_sentence(row) for row in rows if row.stage != INITIAL]


def _gain_sentence(row: Closeness, rows: Sequence[Closeness]) -> str:
    assert row.gain
    (before,) = (r for r in rows if (r.arm, r.stage, r.measure) == (row.arm, "pretrain", row.measure))
    words = (
        f"{row.arm}: {_verdict(row.gain)} by {row.measure.upper()}: semi-supervised {row.mean.estimate:.3f}, "
        f"pre-training {before.mean.estimate:.3f}, difference {_difference_text(row.gain)}, {_seeds(len(row.by_seed))}."
    )
    if row.baseline_gain is None:
        return words
    return f"{words} Against the pre-training of {row.baseline}: {_difference_text(row.baseline_gain)}."


def _verdict(gain: Mean) -> str:
    if gain.low is None or gain.high is None:
        return "with one seed it cannot be told whether the semi-supervised stage closes the gap to fine-tuning"
    if gain.low > 0:
        return "the semi-supervised stage is closer to fine-tuning than pre-training is"
    if gain.high < 0:
        return "the semi-supervised stage is further from fine-tuning than pre-training is"
    return "no significant difference in how close the semi-supervised stage and pre-training are to fine-tuning"


def _sentence(row: Closeness) -> str:
    return (
        f"{row.arm}: {row.stage} and {row.last} are alike to {_mean_text(row.mean)} by {row.measure.upper()}, "
        f"{_seeds(len(row.by_seed))}."
    )


def similarity_notes(path: Path) -> list[str]:
    """What a reader must know of the numbers: how they came about, and what is missing."""
    found = read_similarities(path)
    if found is None:
        return []
    notes = [f"{NOTE} At most {found.utterances} utterances of dev."]
    measured = [found.pair(trial, INITIAL, trial.last) for trial in found.trials]
    if few := [pair for pair in measured if pair.frames < FEW_FRAMES * pair.width]:
        frames, width = min((pair.frames, pair.width) for pair in few)
        notes.append(
            f"Only {frames} frames for layers as wide as {width}: SVCCA is biased upwards, the less the more "
            "utterances of dev are taken (`study similarity --utterances`)."
        )
    return [*notes, *(f"Without {reason}." for reason in found.missing)]


def similarity_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Head and rows: the closeness of each stage to its arm's last one, by each measure."""
    head = [
        "arm",
        "stage",
        "compared with",
        "measure",
        "seeds",
        "similarity",
        "less its pre-training's",
        "less the baseline's pre-training's",
    ]
    found = read_similarities(path)
    return head, [_row(row) for row in closeness(found)] if found else []


def _row(row: Closeness) -> list[str]:
    against = f"{_difference_text(row.baseline_gain)}, {row.baseline}" if row.baseline_gain else ""
    return [
        row.arm,
        row.stage,
        row.last,
        row.measure.upper(),
        str(len(row.by_seed)),
        _mean_text(row.mean),
        _difference_text(row.gain) if row.gain else "",
        against,
    ]


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}"


def _mean_text(mean: Mean) -> str:
    if mean.low is None or mean.high is None:
        return f"{mean.estimate:.3f}"
    return f"{mean.estimate:.3f} ({max(0.0, mean.low):.3f} to {min(1.0, mean.high):.3f})"  # no similarity is outside


def _difference_text(mean: Mean) -> str:
    if mean.low is None or mean.high is None:
        return f"{mean.estimate:+.3f}"
    return f"{mean.estimate:+.3f} ({mean.low:+.3f} to {mean.high:+.3f})"


def similarities_as_dict(path: Path) -> dict[str, Any] | None:
    """What programs read; None where nothing was measured."""
    found = read_similarities(path)
    if found is None:
        return None
    return {
        "study": found.study,
        "sentences": similarity_sentences(path),
        "notes": similarity_notes(path),
        "closeness": [asdict(row) | {"mean": asdict(row.mean)} for row in closeness(found)],
        "trials": [
            {
                **trial.model_dump(),
                "pairs": [
                    {"stages": [first, second], **found.pair(trial, first, second).model_dump()}
                    for first, second in itertools.combinations(trial.weights, 2)
                ],
            }
            for trial in found.trials
        ],
    }


@dataclass(frozen=True)
class _Line:
    """Of the figure: how alike a stage and the last one are, layer by layer, with each seed."""

    arm: str
    stage: str
    last: str
    measure: Measure
    values: tuple[tuple[float, ...], ...]  # of each seed, of each layer

    @property
    def points(self) -> list[tuple[int, float, float, float]]:
        """Number of the layer, from 1; mean, lowest and highest over seeds."""
        layers = zip(*self.values, strict=True)
        return [(n, statistics.fmean(seeds), min(seeds), max(seeds)) for n, seeds in enumerate(layers, start=1)]


def _lines(found: Similarities, trials: Sequence[TrialStages]) -> list[_Line]:
    """Of the trials of an arm."""
    return [
        _Line(
            trials[0].arm,
            stage,
            trials[0].last,
            measure,
            tuple(found.pair(t, stage, t.last).values(measure) for t in trials if stage in t.weights),
        )
        for stage in _earlier(trials)
        for measure in MEASURES
    ]


def similarity_figure(path: Path) -> Drawn | None:
    """Similarity to the arm's last stage against the layer: a row for each arm, a panel for each measure."""
    found = read_similarities(path)
    if found is None or not found.arms:
        return None
    figure = Figure(figsize=(8, 1.0 + 2.4 * len(found.arms)), layout="constrained")
    grid = figure.subplots(len(found.arms), len(MEASURES), squeeze=False, sharex="row", sharey=True)
    for panels, (arm, trials) in zip(grid, found.arms.items(), strict=True):
        lines = _lines(found, trials)
        for panel, measure in zip(panels, MEASURES, strict=True):
            _panel(panel, [line for line in lines if line.measure == measure])
        panels[0].set_ylabel(f"{arm}\nsimilarity to {trials[0].last}")
    for panel, measure in zip(grid[0], MEASURES, strict=True):
        panel.set_title(measure.upper(), fontsize=10)
    for panel in grid[-1]:
        panel.set_xlabel("layer")
    drawn = [panel.get_legend_handles_labels() for panel in grid[:, 0]]
    legend = {label: handle for handles, labels in drawn for handle, label in zip(handles, labels, strict=True)}
    figure.legend(legend.values(), legend.keys(), frameon=False, loc="outside lower center", ncols=4)
    rows = [
        (line.arm, line.stage, line.last, line.measure, layer, mean, low, high, len(line.values))
        for trials in found.arms.values()
        for line in _lines(found, trials)
        for layer, mean, low, high in line.points
    ]
    return Drawn(figure, COLUMNS, rows)


def _panel(panel: Axes, lines: Sequence[_Line]) -> None:
    for line in lines:
        layers, means, lows, highs = zip(*line.points, strict=True)
        colour, style, marker = LOOKS[line.stage]
        panel.plot(layers, means, color=colour, linestyle=style, marker=marker, markersize=4, label=line.stage)
        panel.fill_between(layers, lows, highs, color=colour, alpha=0.2, linewidth=0)
        panel.vlines(layers, lows, highs, color=colour, linewidth=1)  # where one layer leaves no band
        panel.set_xlim(0.5, len(layers) + 0.5)
    panel.set_ylim(0, 1.03)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
