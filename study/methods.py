"""The methods section of a report: what a study has done, in sentences for a paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from study.answer import Answer, ArmResult, device_sentences
from study.differences import ArmDifference
from study.ledger import Ledger
from study.page import Section, bullets, paragraph
from study.plan import grid_of, samples
from study.scaling_report import LAWS
from study.spec import GroupSpec, StudySpec
from study.terminal import point_text
from study.wording import metric_name, objective_name, target_text, time_text
from trainables.data.config import CorpusConfig, FolderConfig, MixtureConfig, PromptsConfig
from trainables.data.corpus import CorpusError, total_seconds
from trainables.stage import Phase, Stage
from trainables.trial import corpus_of, stages_of

Importance = Mapping[str, Mapping[str, float]]  # arm -> searched path -> share of the variation that it explains

_SAMPLERS = {
    "tpe": "tree-structured Parzen estimator (Bergstra et al., 2011)",
    "random": "independent draws",
    "quasi_random": "scrambled Sobol sequence (Sobol, 1967; Owen, 1998)",
    "cma_es": "covariance matrix adaptation (Hansen and Ostermeier, 2001)",
    "nsga2": "NSGA-II (Deb et al., 2002)",
    "nsga3": "NSGA-III (Deb and Jain, 2014)",
    "gp": "Gaussian process (Snoek, Larochelle and Adams, 2012)",
}
_RULES = {
    "asha": "asynchronous successive halving (Li et al., 2020)",
    "median": "median stopping rule (Golovin et al., 2017)",
}


def methods_section(
    spec: StudySpec, ledger: Ledger, found: Answer, compared: Sequence[ArmDifference], importance: Importance
) -> Section:
    """What was done, in sentences for a paper. Nothing stands here that this study has not done."""
    environment = ledger.study(spec.study)["environment"]
    parts = {
        "Data": paragraph(" ".join(_data_sentences(spec, environment["data"]))),
        "Models and training": bullets(_arm_sentences(spec, ledger, arm) for arm in found.arms),
        "Search": paragraph(" ".join(_search_sentences(spec, ledger))),
        "Replication and convergence": paragraph(" ".join(_convergence_sentences(spec, found))),
    }
    if statistics := list(_statistics(found, compared, importance)):
        parts["Statistics"] = bullets(statistics)
    parts["Hardware and software"] = paragraph(" ".join(_hardware_sentences(spec, ledger, found, environment)))
    return Section("Methods", "".join(f"<h3>{title}</h3>{body}" for title, body in parts.items()))


def _data_sentences(spec: StudySpec, recorded: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """What each corpus is, and how much speech each part has, where it is still the one that was recorded."""
    corpora = dict.fromkeys(stage.corpus for arm in spec.arms for stage in _stages(spec, arm, {}))
    if not corpora:
        yield "The corpora are not on this machine, so that their hours are not known here."
    for config in corpora:
        name = _corpus_name(config)
        try:
            corpus = corpus_of(config)
        except CorpusError:
            yield f"{name} (it cannot be read on this machine, so that its hours are not known here)."
            continue
        hashes = corpus.split_hashes()
        if hashes not in recorded.values():
            yield f"{name} (it has changed since, so that its hours are not known)."
            continue
        amounts = [
            f"{part} {time_text(total_seconds(utterances))} ({len(utterances):,} utterances)"
            for part in hashes
            if (utterances := getattr(corpus, part))
        ]
        yield f"{name}: {', '.join(amounts)}."


def _corpus_name(config: CorpusConfig) -> str:
    match config:
        case PromptsConfig():
            name = f"The embedded telephone prompts in {config.language!r}"
        case FolderConfig():
            name = f"The corpus {config.root.name}" + (f" in {config.language!r}" if config.language else "")
            name += f", labelled speech of the list {config.labelled_list}" if config.labelled_list else ""
        case MixtureConfig():
            labelled, unlabelled = (
                " and ".join(_corpus_name(part)[0].lower() + _corpus_name(part)[1:] for part in parts)
                for parts in (config.labelled, config.unlabelled)
            )
            name = (
                f"A mixture with the labelled speech of {labelled} and the unlabelled speech of {unlabelled}, drawn in "
                f"proportion to hours to the power of {config.sampling_exponent:g}"
            )
    name += f", at most {config.labelled_minutes:g} minutes of it labelled" if config.labelled_minutes else ""
    name += f", at most {config.unlabelled_hours:g} hours of it unlabelled" if config.unlabelled_hours else ""
    share = config.unlabelled_fraction
    return name + (f", {share:.3g} of its unlabelled speech" if share < 1 else "")


def _stages(spec: StudySpec, arm: str, point: Mapping[str, bool | int | float | str]) -> Sequence[Stage]:
    """The stages of the arm at the point; none where this machine cannot know them, as without its corpus."""
    try:
        return stages_of(spec.trial_config(arm, dict(point)))
    except ValueError:
        return []


def _arm_sentences(spec: StudySpec, ledger: Ledger, arm: ArmResult) -> str:
    """Model, stages and hyperparameters of the configuration that stands for the arm."""
    point = {path: value for path, value in arm.trials[0].point.items() if path != "seed"} if arm.trials else {}
    stages = _stages(spec, arm.arm, point)
    if not stages:
        return f"{arm.arm}: its stages cannot be told on this machine."
    sentences = [f"{arm.arm}: {_model_text(spec, ledger, arm, stages[-1])}."]
    if arm.trials and spec.arms[arm.arm].space:
        sentences.append(f"Of the searched values, the best: {point_text(point) or 'none'}.")
    return " ".join([*sentences, *(_stage_sentence(stage) for stage in stages)])


def _model_text(spec: StudySpec, ledger: Ledger, arm: ArmResult, last: Stage) -> str:
    name = getattr(last.model, "preset", None) or last.model.family
    final = ledger.final(spec.study, arm.trials[0].trial) if arm.trials else {}
    size = f" with {final['parameters']:,.0f} parameters (backbone and CTC head)" if "parameters" in final else ""
    init = spec.trial_config(arm.arm).init
    return f"{name}{size}, {f'from the weights of {init}' if init else 'from random weights'}"


def _stage_sentence(stage: Stage) -> str:
    if stage.kind == "decode":
        return "Then dev and test were decoded with the language model."
    batch = f"batches of {stage.batch_seconds:g} s of padded audio"
    phases = "; ".join(_phase_text(phase, several=len(stage.phases) > 1) for phase in stage.phases)
    kind, schedule = stage.kind.replace("_", "-"), stage.schedule.kind.replace("_", "-")
    updates = f"{stage.steps:,} updates with AdamW"
    return f"Stage {kind}: {updates}, {batch}, {phases}, {schedule} schedule, {stage.precision}."


def _phase_text(phase: Phase, *, several: bool) -> str:
    rates = phase.learning_rates
    by_part = [f"{rate:.3g} ({part.replace('_', ' ')})" for part, rate in rates.items()]
    shown = f"{min(rates.values()):.3g}" if len(set(rates.values())) == 1 else ", ".join(by_part)
    turn = f"{phase.steps} in turn with " if several else ""
    loss = "CTC" if phase.loss.kind == "ctc" else phase.loss.kind.replace("_", "-")
    frozen = phase.frozen_backbone_steps
    backbone = f", the backbone frozen for {frozen:,} updates" if frozen else ""
    return f"{turn}the {loss} loss and a peak learning rate of {shown}{backbone}"


def _search_sentences(spec: StudySpec, ledger: Ledger) -> Iterator[str]:
    spaces = {name: arm.space for name, arm in spec.arms.items() if arm.space}
    if not spaces:
        yield "Nothing was searched: each arm has one configuration."
        return
    search = spec.search
    kinds = {distribution.kind for space in spaces.values() for distribution in space.values()}
    trials = {name: _trials_text(spec, name) for name in spaces}
    alike = len({*trials.values()}) == 1
    each = next(iter(trials.values())) if alike else ", ".join(f"{text} in {name}" for name, text in trials.items())
    yield f"Each arm was searched on its own, with {each}, for the lowest final {metric_name(search.metric)}."
    if search.also_minimise:
        yield f"Also minimised: {', '.join(map(objective_name, search.also_minimise))}."
    if kinds - {"grid"}:
        yield f"Sampler: {_SAMPLERS[search.sampler.kind]}, in Optuna (Akiba et al., 2019), seed {search.seed}."
    for name, space in spaces.items():
        shown = (
            f"{path} ({distribution.kind.replace('_', '-')}: {_listed(distribution.model_dump(exclude_defaults=True))})"
            for path, distribution in space.items()
        )
        yield f"Searched in {name}: {'; '.join(shown)}."
    if spec.search.warm_start:
        yield f"The sampler had learned from {', '.join(spec.search.warm_start)}."
    if spec.early_stopping:
        settings = spec.early_stopping.model_dump(exclude={"kind"})
        rule = f"{_RULES[spec.early_stopping.kind]}, {_listed(settings)}"
        yield f"Early stopping on {metric_name(spec.early_stopping_metric)}: {rule}."
    if limits := {**search.constraints.model_dump(exclude_none=True), **spec.stop.model_dump(exclude_none=True)}:
        yield f"Limits of the search: {_listed(limits)}."
    searched = [trial for trial in ledger.trials(spec.study) if trial.origin == "search"]
    ended = {status: sum(t.status == status for t in searched) for status in ("finished", "stopped", "failed")}
    counts = ", ".join(f"{count} {'stopped early' if s == 'stopped' else s}" for s, count in ended.items() if count)
    yield f"Of {len(searched)} trials of the search: {counts or 'none has ended'}."


def _listed(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())


def _convergence_sentences(spec: StudySpec, found: Answer) -> Iterator[str]:
    for arm in found.arms:
        if arm.trials:
            seeds = ", ".join(str(trial.seed) for trial in arm.trials)
            runs = "with fresh seeds, after the search" if arm.fresh_seeds else "the best one of its search"
            yield f"Reported of {arm.arm}: {_counted(len(arm.trials), 'run')}, {runs} (seed {seeds})."
    yield (
        f"A run has converged when its {metric_name(spec.convergence.metric)} is at or below "
        f"{target_text(spec.convergence.target)} for the first time and still at the evaluation after that one; "
        "between evaluations the curve is taken as a straight line. Updates, audio and time of all stages of the run "
        "count, pre-training included."
    )


def _hardware_sentences(
    spec: StudySpec, ledger: Ledger, found: Answer, environment: Mapping[str, Mapping[str, object]]
) -> Iterator[str]:
    yield f"Each stage was trained by {_group_text(spec.resources)}."
    for kind, group in spec.resources.stages.items():
        yield f"Stages of the kind {kind} were trained by {_group_text(group)}."
    if devices := found.devices.found:
        shares = (f"{d.name} ({_counted(d.stages, 'stage')}, {time_text(d.accelerator_seconds)})" for d in devices)
        yield f"Devices, with what they spent: {', '.join(shares)}."
    yield from device_sentences(found.devices)
    if machine := environment.get("machine"):
        yield f"The study was started on a machine with {machine['cpus']} CPU cores ({machine['platform']})."
    spent = ledger.spent(spec.study)
    yield (
        f"All runs of the study together took {time_text(spent.accelerator_seconds)} of accelerator time (without "
        f"GPUs, of workers) in {time_text(spent.wall_seconds)}."
    )
    versions = [f"{name} {version}" for name, version in environment["versions"].items() if version]
    yield f"Versions: {', '.join(versions)}."


def _group_text(group: GroupSpec) -> str:
    gpus = f"{group.gpus_per_worker:g} GPU each" if group.gpus_per_worker else "no GPU"
    return f"{_counted(group.workers, 'worker')} with {_counted(group.cpus_per_worker, 'CPU core')} and {gpus}"


def _trials_text(spec: StudySpec, arm: str) -> str:
    combinations = len(grid_of(spec, arm))
    each = f" for each of the {combinations:,} combinations of its grid" if combinations > 1 else ""
    return _counted(samples(spec, arm), "trial") + each


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def _statistics(found: Answer, compared: Sequence[ArmDifference], importance: Importance) -> Iterator[str]:
    """Every method that the page uses, with its reference."""
    several = any(len(cell.trials) > 1 for cell in found.cells)
    ratios = [(c, ratio) for c in found.comparisons for ratio in c.ratios.values() if ratio]
    if several:
        yield "Means over seeds: 95 % intervals of Student's t (Student, 1908)."
    if any(c.arm.complete and c.baseline.complete for c, _ in ratios):
        yield "Ratios of geometric means: Welch's t on logarithms (Welch, 1947)."
    if any(not (c.arm.complete and c.baseline.complete) for c, _ in ratios):
        yield (
            "Ratios of restricted means where seeds did not reach the target (Royston and Parmar, 2013), with the "
            "standard error of Klein and Moeschberger (2003) and Welch's t on logarithms."
        )
    if ratios or any(row.difference for row in compared):
        yield "p-values are corrected by Holm's step-down method (Holm, 1979)."
    if any(device.name != device.reference for device in found.devices.found):
        yield (
            "Speeds of devices: least squares on the logarithms of the median times of equal work, with an effect of "
            "the work and one of the device."
        )
    if any(len(arm.trials) > 1 for arm in found.arms):
        yield "Seeds that have not reached the target: the estimate of Kaplan and Meier (1958)."
    if any(row.log_rank is not None for row in found.targets):
        yield (
            "Log-rank test (Mantel, 1966; Peto and Peto, 1972), exact over all arrangements of few seeds, otherwise by "
            "the chi-square approximation."
        )
    if any(curve.tau for curve in found.whole_curves):
        yield "Decay times: least squares with the soft L1 loss, an exponential for each seed."
    if any(row.difference for row in compared):
        yield (
            "Differences of error rates: paired bootstrap over speakers (Bisani and Ney, 2004), with the variance of "
            "seeds by two-way clustering (Cameron, Gelbach and Miller, 2011)."
        )
    if found.scaling and any(arm.found for arm in found.scaling.arms):
        yield (
            f"Scaling laws: {LAWS[found.scaling.form]}, fitted to logarithms with the Huber loss (as Hoffmann et al., "
            "2022); intervals by a bootstrap of residuals over seeds."
        )
    if found.front and found.front.candidates:
        yield (
            "Pareto front of means over seeds, with the share of bootstrap draws in which a configuration is on it, "
            "and the dominated hypervolume (Zitzler and Thiele, 1999)."
        )
    if any(importance.values()):
        yield "Importance of searched values: functional analysis of variance (Hutter, Hoos and Leyton-Brown, 2014)."
