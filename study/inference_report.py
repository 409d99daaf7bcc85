"""Error rate against inference time: what the models of a study cost when they are used."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from study.answer import Cell
from study.figure_files import Drawn, Look, looks
from study.ledger import Ledger, Trial
from study.pareto import non_dominated
from study.spec import InferenceTimeSpec, StudySpec
from study.terminal import point_text
from study.wording import metric_name, rate_text
from trainables.stage import InferenceTime


@dataclass(frozen=True)
class ModelTime:
    """A configuration of an arm with the inference time of its model; the rates are those of all its seeds."""

    cell: Cell
    time: InferenceTime
    ratio: float  # to the model that is listed first on the same device

    @property
    def seconds(self) -> float:
        """Mean of the passes over the split."""
        return statistics.fmean(self.time.seconds)

    @property
    def spread(self) -> float:
        """Standard deviation of the passes."""
        return statistics.stdev(self.time.seconds)


def model_key(trial: Trial) -> str:
    """Equal for trials whose models take the same time on the same speech."""
    regime = trial.config["regime"]
    settings = [regime[name] for name in ("finetune", "joint", "train") if regime.get(name)]
    corpus = next((s["corpus"] for s in settings if s.get("corpus")), trial.config["corpus"])  # of the last stage
    spoken = corpus.get("labelled") or {name: corpus.get(name) for name in ("kind", "root", "language")}
    return json.dumps([trial.config["model"], trial.config["outputs"], spoken], sort_keys=True)


def is_wanted(found: InferenceTime, wanted: InferenceTimeSpec) -> bool:
    """Whether it was measured on that split, in batches of that size."""
    return found.split == wanted.split and found.batch_seconds == wanted.batch_seconds


def model_times(spec: StudySpec, ledger: Ledger, cells: Sequence[Cell]) -> list[ModelTime]:
    """The configurations whose models were measured as the sweep asks, in the order of the cells, device by device.

    Of times that the sweep does not ask for any more, those of the split and the batches that most models have.
    """
    measured = ledger.inference_times(spec.study)
    if not measured:
        return []
    protocols = Counter((found.split, found.batch_seconds) for several in measured.values() for found in several)
    (split, batch_seconds), _ = protocols.most_common(1)[0]
    wanted = spec.inference_time or InferenceTimeSpec(split=split, batch_seconds=batch_seconds)
    times: dict[str, dict[str, InferenceTime]] = {}  # key of the model -> device -> time
    for trial in ledger.trials(spec.study):
        for stage in ledger.trial_stages(spec.study, trial.trial):
            for found in measured.get(stage["stage"], []):
                if is_wanted(found, wanted):
                    times.setdefault(model_key(trial), {})[found.device] = found
    found_cells = [(cell, time) for cell in cells for time in times.get(model_key(cell.trials[0]), {}).values()]
    firsts: dict[str, float] = {}
    for _, time in found_cells:
        firsts.setdefault(time.device, statistics.fmean(time.seconds))
    rows = [ModelTime(cell, time, statistics.fmean(time.seconds) / firsts[time.device]) for cell, time in found_cells]
    return sorted(rows, key=lambda row: list(firsts).index(row.time.device))


def model_times_as_dicts(rows: Sequence[ModelTime]) -> list[dict[str, Any]]:
    """What `study report --json` prints."""
    return [
        {
            "arm": row.cell.arm,
            "point": row.cell.point,
            **row.time.model_dump(),
            "ratio": row.ratio,
            "rates": {name: asdict(mean) for name, mean in row.cell.rates.items()},
        }
        for row in rows
    ]


def inference_table(spec: StudySpec, rows: Sequence[ModelTime]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a configuration each."""
    metric = rate_metric(spec)
    head = ["arm", "searched values", metric_name(metric), "inference, s", "relative", "times real time", "device"]
    return head, [
        [
            row.cell.arm,
            point_text(row.cell.point) or "-",
            rate_text(row.cell.rates.get(metric)),
            f"{row.seconds:.3g} ± {row.spread:.2g}",
            f"{row.ratio:.2f}",
            f"{row.time.audio_seconds / row.seconds:,.0f}",
            row.time.device,
        ]
        for row in rows
    ]


def inference_note(rows: Sequence[ModelTime]) -> str:
    """What was timed."""
    time = rows[0].time
    return (
        f"Mean and standard deviation of {len(time.seconds)} passes over {time.split} ({time.utterances} utterances, "
        f"{time.audio_seconds / 60:.1f} min of audio), after warming up, in batches of {time.batch_seconds:g} s, fp32, "
        "on an accelerator that nothing else used: forward pass, best symbol of each frame, and its copy to the CPU; "
        "not reading and scoring (the protocol of P-SEW). One trained model of each kind was timed."
    )


def rate_metric(spec: StudySpec) -> str:
    """The metric of the search, on the split that was timed."""
    split = spec.inference_time.split if spec.inference_time else "dev"
    return spec.search.metric.replace("dev", split, 1)


def inference_figure(spec: StudySpec, rows: Sequence[ModelTime]) -> Drawn:
    """The error rate against the inference time of the first device, with intervals; a line joins the best ones."""
    metric, device, split = rate_metric(spec), rows[0].time.device, rows[0].time.split
    shown = [row for row in rows if row.time.device == device and metric in row.cell.rates]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    panel = figure.subplots()
    for arm, look in looks(spec.arms).items():
        for place, row in enumerate(row for row in shown if row.cell.arm == arm):
            _dot(panel, row, metric, look, arm if not place else None)
    points = [(row.seconds, 100 * row.cell.rates[metric].estimate) for row in shown]
    front = sorted(points[index] for index in non_dominated(points))
    panel.step(*zip(*front, strict=True), where="post", color="black", linewidth=0.8, zorder=1)
    if max(seconds for seconds, _ in points) > 10 * min(seconds for seconds, _ in points):
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.set_xlabel(f"inference time of the {split} split, s ({device})")
    panel.set_ylabel(f"{metric_name(metric)}, %")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    rate = f"{metric_name(metric)}, %"
    columns = ("arm", "searched values", "inference, s", "standard deviation, s", rate, "low, 95 %", "high, 95 %")
    return Drawn(figure, columns, [_point(row, metric) for row in shown])


def _dot(panel: Axes, row: ModelTime, metric: str, look: Look, label: str | None) -> None:
    mean = row.cell.rates[metric]
    low, high = (mean.estimate if end is None else end for end in (mean.low, mean.high))
    panel.errorbar(
        row.seconds,
        100 * mean.estimate,
        xerr=row.spread,
        yerr=[[100 * (mean.estimate - max(0.0, low))], [100 * (high - mean.estimate)]],
        color=look.colour,
        marker=look.marker,
        linewidth=0.8,
        linestyle="",
        label=label,
    )


def _point(row: ModelTime, metric: str) -> tuple[str | float | None, ...]:
    mean = row.cell.rates[metric]
    low, high = (None if end is None else 100 * end for end in (mean.low, mean.high))
    return (row.cell.arm, point_text(row.cell.point), row.seconds, row.spread, 100 * mean.estimate, low, high)
