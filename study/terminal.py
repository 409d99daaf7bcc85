"""What a person sees: the plan, a live table while the study runs, the ranking and the answer at its end."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from pydantic import ByteSize
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from study.answer import Answer
from study.estimate import Estimate, Spending
from study.ledger import Ledger, Trial
from study.plan import Plan
from study.spec import METRICS, StudySpec
from study.watcher import Watcher
from study.wording import (
    by_decoding,
    metric_name,
    objective_name,
    objective_text,
    probability_text,
    rate_text,
    shown_rates,
)
from trainables.models.cost import ModelSize
from trainables.stage import Report, Stage

PLAIN_SECONDS = 20.0  # between lines about one trial, when the output is not a terminal


def make_console() -> Console:
    """A console as wide as its terminal; where the output is a file or a pipe, wide enough for the tables."""
    console = Console(markup=False)  # brackets in a question or a cause are text
    return console if console.is_terminal else Console(width=140, markup=False)


def duration(seconds: float) -> str:
    """`3:07`, or `1:02:45`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def plan_table(plan: Plan) -> Group:
    arms = Table("arm", "trials", "search", "replication", "stages of a trial", title="Arms", title_justify="left")
    for name, arm in plan.arms.items():
        arms.add_row(name, str(arm.trials), str(arm.search_trials), str(arm.replications), " -> ".join(arm.stages))
    stages = Table(
        "stage",
        "requested",
        "distinct",
        "steps",
        "audio hours",
        "saved by sharing",
        title="Stages (at most)",
        title_justify="left",
    )
    for kind, count in plan.stages.items():
        saved = count.requested_audio_hours - count.distinct_audio_hours
        stages.add_row(
            kind,
            str(count.requested),
            str(count.distinct),
            str(count.distinct_steps),
            f"{count.distinct_audio_hours:.1f}",
            f"{saved:.1f} audio hours" if saved else "",
        )
    absent = [Text(f"not on this machine: {reason}", style="yellow") for reason in plan.absent]
    return Group(arms, stages, Text(f"{plan.trials} trials at most"), *_disk_lines(plan), *absent)


def _disk_lines(plan: Plan) -> list[Text]:
    kept, training = plan.disk.kept_bytes, plan.disk.training_bytes
    lines = [Text(f"about {bytes_text(kept)} on disk when done, {bytes_text(training)} more while training")]
    if plan.quota_bytes is not None and kept > plan.quota_bytes:
        quota = bytes_text(plan.quota_bytes)
        lines.append(Text(f"more than the quota of {quota}: stages that nothing needs will go", style="yellow"))
    return lines


def bytes_text(number: int) -> str:
    """`1.2 GB`."""
    return ByteSize(number).human_readable(decimal=True, separator=" ")


def estimate_table(found: Estimate) -> Group:
    """Hours and money, by kind of stage and in total."""
    table = Table(title="Full training, as measured on this machine (at most)", title_justify="left")
    table.add_column("stage")
    with_cost = found.shared.cost is not None
    headings = ("probed", "distinct", "one takes", "accelerator hours", "without sharing")
    for heading in (*headings, *(("cost", "cost without sharing") if with_cost else ())):
        table.add_column(heading, justify="right")
    for kind, stages in found.stages.items():
        one = duration(stages.mean_seconds)
        spent = _spending_cells(stages.shared, stages.unshared)
        table.add_row(kind, str(stages.shapes), str(stages.trained), one, *spent)
    table.add_row("total", "", "", "", *_spending_cells(found.shared, found.unshared), end_section=True)
    elapsed, unshared = (duration(3600 * spending.elapsed_hours) for spending in (found.shared, found.unshared))
    lines = [Text(f"about {elapsed} elapsed, {unshared} without sharing; less where trials are stopped early")]
    low, high = found.least_accelerator_hours, found.most_accelerator_hours
    if high > 1.05 * low:
        lines.append(Text(f"between {low:.3g} and {high:.3g} accelerator hours, as sizes are drawn"))
    return Group(table, *lines)


def _spending_cells(shared: Spending, unshared: Spending) -> list[str]:
    hours = [f"{spending.accelerator_hours:.3g}" for spending in (shared, unshared)]
    costs = [f"{spending.cost:.2f}" for spending in (shared, unshared) if spending.cost is not None]
    return [*hours, *costs]


def model_table(sizes: Sequence[ModelSize]) -> Table:
    numbers = ("parameters (CTC)", "outputs", "parameters (pre-training)", "frames / s", "GFLOP / s of audio")
    table = Table("preset", title="Models", title_justify="left")
    for name in numbers:
        table.add_column(name, justify="right")
    table.add_column("note")
    for size in sizes:
        table.add_row(
            size.name,
            f"{size.parameters_ctc:,}",
            str(size.outputs),
            f"{size.parameters_pretraining:,}",
            f"{size.frame_rate_hz:g}",
            f"{size.flops_per_second / 1e9:.2f}",
            size.note,
        )
    return table


@dataclass
class _Active:
    """A trial that is running now."""

    stage: Stage | None = None
    report: Report | None = None
    dev: dict[str, float] = field(default_factory=dict)
    printed: float = 0.0

    def see(self, stage: Stage, report: Report) -> None:
        self.stage, self.report = stage, report
        self.dev |= {name: value for name, value in report.metrics.items() if name.startswith("dev_")}

    @property
    def speed(self) -> float:
        """Audio seconds a second."""
        report = self.report
        return report.audio_seconds / report.elapsed_seconds if report and report.elapsed_seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Of this stage, at the pace so far."""
        if not self.report or not self.stage or not self.report.step:
            return None
        return self.report.elapsed_seconds / self.report.step * (self.stage.steps - self.report.step)


class Terminal(Watcher):
    """A live table on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, spec: StudySpec, plan: Plan, ledger: Ledger) -> None:
        self._console, self._spec, self._plan, self._ledger = console, spec, plan, ledger
        self._active: dict[str, _Active] = {}
        self._started = time.monotonic()
        self._before = self._count()
        self._live = Live(get_renderable=self._table, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Terminal:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def trial_started(self, trial: str) -> None:
        self._active[trial] = _Active()
        self._line(f"{trial}: started")

    def reported(self, trial: str, stage: Stage, report: Report) -> None:
        active = self._active.setdefault(trial, _Active())
        active.see(stage, report)
        due = time.monotonic() - active.printed > PLAIN_SECONDS or report.step == stage.steps
        if due and not self._console.is_terminal:
            active.printed = time.monotonic()
            progress = f" {report.step}/{stage.steps}" if stage.steps else ""
            self._line(f"{trial}: {stage.kind}{progress} {self._metrics(active)}".rstrip())

    def trial_ended(self, trial: str) -> None:
        self._active.pop(trial, None)
        ended = self._ledger.trial(self._spec.study, trial)
        outcome = f"{ended.status}: {ended.cause}" if ended.cause else _finals(self._ledger, ended)
        finished, failed = self._count()
        self._line(f"{trial}: {outcome}  [{finished + failed}/{self._plan.trials}]", always=True)

    def told(self, message: str) -> None:
        self._line(message, always=True)

    def _count(self) -> tuple[int, int]:
        counts = self._ledger.count(self._spec.study)
        return counts["finished"] + counts["stopped"], counts["failed"]

    def _line(self, text: str, *, always: bool = False) -> None:
        if always or not self._console.is_terminal:
            elapsed = duration(time.monotonic() - self._started)
            self._console.print(f"{elapsed:>7}  {text}", highlight=False, markup=False, soft_wrap=True)

    def _metrics(self, active: _Active) -> str:
        return " ".join(f"{metric_name(name)} {value:.1%}" for name, value in sorted(active.dev.items()))

    def _table(self) -> Group:
        table = Table("trial", "stage", "progress", "", "last on dev", "audio s/s", "stage left", expand=False)
        for name, active in sorted(self._active.items()):
            stage, report = active.stage, active.report
            if not stage or not report:
                table.add_row(name, "waiting for a worker", "", "", "", "", "")
                continue
            left = active.seconds_left
            table.add_row(
                name,
                stage.kind,
                ProgressBar(total=max(1, stage.steps), completed=report.step, width=16),
                f"{report.step}/{stage.steps}",
                self._metrics(active).replace("dev ", ""),
                f"{active.speed:.0f}",
                duration(left) if left is not None else "",
            )
        summary = Text(self._summary(), style="dim")
        return Group(table, summary) if self._active else Group(summary)

    def _summary(self) -> str:
        finished, failed = self._count()
        done, done_before = finished + failed, sum(self._before)
        elapsed = time.monotonic() - self._started
        summary = f"{done}/{self._plan.trials} trials done, {failed} failed, {duration(elapsed)} elapsed"
        if done > done_before:
            left = elapsed / (done - done_before) * (self._plan.trials - done)
            summary += f", about {duration(left)} left"
        return summary


def _finals(ledger: Ledger, trial: Trial) -> str:
    final = ledger.final(trial.study, trial.trial)
    shown = [f"{metric_name(name)} {final[name]:.1%}" for name in METRICS if name in final]
    return ", ".join(shown)


def ranking(spec: StudySpec, ledger: Ledger) -> Table:
    """Finished trials, best first, with what was varied."""
    trials = ledger.ranked(ledger.trials(spec.study), spec.search.metric)
    results = {trial.trial: by_decoding(ledger.final(spec.study, trial.trial)) for trial in trials}
    shown = _main(shown_rates(found["greedy"] for found in results.values()))
    with_lm = any(len(found) > 1 for found in results.values())
    title = "Trials, best first" + (" (greedy decoding / with the language model)" if with_lm else "")
    table = Table(title=title, title_justify="left")
    for heading in ("trial", *map(metric_name, shown), "updates", "time"):
        table.add_column(heading, no_wrap=True, justify="left" if heading == "trial" else "right")
    table.add_column("searched values", overflow="fold")
    for trial in trials:
        last = ledger.curve(spec.study, trial.trial)[-1]
        decoded = results[trial.trial].values()
        metrics = (" / ".join(percent(rates.get(name)) for rates in decoded) for name in shown)
        cost = (str(last.step), duration(last.accelerator_seconds))
        table.add_row(trial.trial, *metrics, *cost, point_text(trial.point))
    return table


def rate_table(found: Answer) -> Table:
    """Each arm's results over its seeds, with a row for each way of decoding."""
    table = Table(title="Arms: mean over seeds (95 % interval)", title_justify="left")
    shown = _main(shown_rates(arm.rates for arm in found.arms))
    for heading in ("arm", "seeds", "decoding", *map(metric_name, shown)):
        table.add_column(heading, no_wrap=True, justify="left" if heading in ("arm", "decoding") else "right")
    for arm in (arm for arm in found.arms if arm.trials):
        for decoding, rates in by_decoding(arm.rates).items():
            first = (arm.arm, str(len(arm.trials))) if decoding == "greedy" else ("", "")
            table.add_row(*first, decoding, *(rate_text(rates.get(name)) for name in shown))
    return table


def front_table(found: Answer) -> Table | None:
    """The configurations on the Pareto front, best metric first; None where there is none."""
    if not found.front or not found.front.candidates:
        return None
    table = Table(title="Pareto front: mean over seeds (95 % interval)", title_justify="left")
    for heading in ("arm", "seeds", *map(objective_name, found.front.objectives), "P(on front)"):
        table.add_column(heading, no_wrap=True, justify="left" if heading == "arm" else "right")
    table.add_column("searched values", overflow="fold")
    for candidate in found.front.best:
        values = (objective_text(name, mean) for name, mean in candidate.means.items())
        seeds, probability = str(len(candidate.trials)), probability_text(candidate.probability)
        table.add_row(candidate.arm, seeds, *values, probability, point_text(candidate.point))
    return table


def _main(metrics: Iterable[str]) -> list[str]:
    """Without what the mixed error rate is made up of, which the report has."""
    return [name for name in metrics if name.endswith(("_cer", "_wer", "_mer"))]


def point_text(point: dict[str, object]) -> str:
    """`learning_rate=0.0012 gru_layers=2`: of each path as many last parts as tell it from the others."""
    shown = {_short(path, point): value for path, value in point.items()}
    return " ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in shown.items())


def _short(path: str, among: Collection[str]) -> str:
    parts = path.split(".")
    suffixes = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
    return next((s for s in suffixes if sum(other == s or other.endswith(f".{s}") for other in among) == 1), path)


def failures(trials: list[Trial]) -> Table | None:
    failed = [t for t in trials if t.status == "failed"]
    if not failed:
        return None
    table = Table("trial", "cause", title="Failed trials", title_justify="left", title_style="bold red")
    for trial in failed:
        table.add_row(trial.trial, Text(trial.cause or ""))
    return table


def answer_lines(spec: StudySpec, found: Answer) -> Group:
    return Group(Text(spec.question, style="bold"), *(Text(sentence) for sentence in found.sentences))
