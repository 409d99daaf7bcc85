"""Early stopping of a study's trials. Its memory is the ledger: a killed study decides as it would have."""

from __future__ import annotations

from collections.abc import Sequence

from study.constraints import recogniser_parameters
from study.early_stopping import EarlyStopper
from study.ledger import Evaluation, Ledger, Trial
from study.spec import StudySpec
from study.wording import metric_name
from trainables.stage import Report, Stage


class Stopper:
    """Stops search trials by the metric of their labelled training; replications train to their end."""

    def __init__(self, spec: StudySpec, ledger: Ledger) -> None:
        self._spec, self._ledger = spec, ledger
        self._rule = EarlyStopper(spec.early_stopping) if spec.early_stopping else None
        self._arms: dict[str, str] = {}
        self._labelled: dict[str, list[Stage]] = {}
        self._parameters: dict[str, float] = {}
        self._reached: dict[str, float] = {}  # trial -> progress at the last evaluation that the rule was told of
        if self._rule:
            self._arms = {trial.trial: trial.arm for trial in ledger.trials(spec.study)}
            for past in ledger.evaluations(spec.study):
                self._observe(past)

    def add(self, trial: Trial, stages: Sequence[Stage]) -> None:
        """A trial that is about to run."""
        if self._rule and trial.origin == "search":
            self._arms[trial.trial] = trial.arm
            self._labelled[trial.trial] = [s for s in stages if s.evaluate_every and s.dev_name == "dev"]
            self._parameters[trial.trial] = float(recogniser_parameters(stages))

    def stops(self, trial: str, stage: Stage, reports: Sequence[Report]) -> str | None:
        """Why the trial should stop, given what the stage reports."""
        labelled = self._labelled.get(trial, [])
        if stage not in labelled:
            return None
        before = sum(earlier.steps for earlier in labelled[: labelled.index(stage)])
        total = sum(one.steps for one in labelled)
        name = self._spec.early_stopping_metric
        for report in reports:
            if name in report.metrics:
                progress = (before + report.step) / total
                if progress < self._reached.get(trial, 0.0):
                    continue  # the trial went on after it: a stage that is resumed reports it again
                evaluation = Evaluation(trial, progress, self._objectives(trial, stage, report))
                self._ledger.add_evaluation(self._spec.study, evaluation)
                if self._observe(evaluation):
                    reached = f"{metric_name(name)} {report.metrics[name]:.1%}"
                    return f"{reached} after {evaluation.progress:.0%} of the labelled training was not among the best"
        return None

    def _objectives(self, trial: str, stage: Stage, report: Report) -> list[float]:
        known = {
            "parameters": self._parameters[trial],
            "real_time_factor": report.real_time_factor or 0.0,
            "accelerator_hours": (self._earlier_seconds(trial, stage) + report.accelerator_seconds) / 3600,
        }
        metric = report.metrics[self._spec.early_stopping_metric]
        return [metric, *(known[name] for name in self._spec.search.also_minimise)]

    def _earlier_seconds(self, trial: str, stage: Stage) -> float:
        """What the accelerator spent on the trial's stages before this one, which have ended."""
        if "accelerator_hours" not in self._spec.search.also_minimise:
            return 0.0
        own, curve = stage.fingerprint(), self._ledger.curve(self._spec.study, trial)
        return max((point.accelerator_seconds for point in curve if point.stage != own), default=0.0)

    def _observe(self, evaluation: Evaluation) -> bool:
        config = self._spec.early_stopping
        assert self._rule is not None
        assert config is not None
        group = "" if config.across_arms else self._arms[evaluation.trial]
        self._reached[evaluation.trial] = max(evaluation.progress, self._reached.get(evaluation.trial, 0.0))
        return self._rule.observe(evaluation.trial, group, evaluation.progress, evaluation.objectives)
