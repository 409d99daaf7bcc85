"""The sweep file, typed: what a study asks, which arms it compares, what it searches and with which resources."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import ByteSize, Field, ValidationError, field_validator, model_validator

from cluster.ray_job import inside_ray_job
from search_spaces.space import Point, Space, Value, condition_errors, probe_points, sampled
from study.early_stopping import EarlyStoppingConfig
from study.published import TableMapping, mapping_errors
from trainables.config import Config, merge
from trainables.data.corpus import CorpusError, total_seconds
from trainables.object_storage import checked_url
from trainables.settings_file import Location, SettingsError, SettingsFile, did_you_mean, explain, read_settings_file
from trainables.stage import StageKind
from trainables.trial import TrialConfig, corpus_of, lacks_metric, problems

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Metric = Literal["dev_wer", "dev_cer", "dev_mer"]
FinalMetric = Literal[Metric, "dev_wer_lm", "dev_cer_lm", "dev_mer_lm"]
METRICS = get_args(FinalMetric)
SpentMetric = Literal["updates_to_target", "audio_hours_to_target", "accelerator_hours_to_target"]
LossMetric = Literal["contrastive", "cpc", "ctc"]

# Combinations of values that are checked before a study starts; each takes about a millisecond.
MAX_COMBINATIONS = 2_000

BEYOND_CORPUS = 1.02  # how far past a corpus's hours its size may be called: "960 h" of LibriSpeech are 960.9


class TpeSampler(Config):
    """Tree-structured Parzen estimator; running trials count as bad ones, so that parallel trials spread."""

    kind: Literal["tpe"] = "tpe"
    startup_trials: int = Field(10, ge=1, description="Random trials of an arm before the estimator takes over.")
    multivariate: bool = Field(False, description="Model the parameters together instead of one by one.")
    group: bool = Field(False, description="Multivariate within each group of parameters that exist together.")

    @model_validator(mode="after")
    def _groups_are_multivariate(self) -> Self:
        if self.group and not self.multivariate:
            raise ValueError("group: true models groups of parameters together; give multivariate: true, too")
        return self


class RandomSampler(Config):
    """Independent draws."""

    kind: Literal["random"] = "random"


class QuasiRandomSampler(Config):
    """A scrambled Sobol sequence: covers the space more evenly than independent draws."""

    kind: Literal["quasi_random"] = "quasi_random"


class CmaEsSampler(Config):
    """Covariance matrix adaptation; for numbers, and one objective."""

    kind: Literal["cma_es"] = "cma_es"
    startup_trials: int = Field(1, ge=1, description="Random trials of an arm before the strategy takes over.")


class Nsga2Sampler(Config):
    """Genetic algorithm with non-dominated sorting and crowding distance."""

    kind: Literal["nsga2"] = "nsga2"
    population: int = Field(50, ge=2, description="Trials of a generation.")


class Nsga3Sampler(Config):
    """Genetic algorithm with non-dominated sorting and reference points; for three objectives and more."""

    kind: Literal["nsga3"] = "nsga3"
    population: int = Field(50, ge=2, description="Trials of a generation.")


class GpSampler(Config):
    """Gaussian process; costs seconds a proposal, for searches of up to some hundred trials."""

    kind: Literal["gp"] = "gp"
    startup_trials: int = Field(10, ge=1, description="Random trials of an arm before the process takes over.")


SamplerConfig = Annotated[
    TpeSampler | RandomSampler | QuasiRandomSampler | CmaEsSampler | Nsga2Sampler | Nsga3Sampler | GpSampler,
    Field(discriminator="kind"),
]
Cost = Literal["parameters", "real_time_factor", "accelerator_hours"]


class ConstraintsSpec(Config):
    """Upper bounds of what is known before training. Proposals beyond them are drawn again, and never trained."""

    parameters: float | None = Field(None, gt=0, description="Of the recogniser: backbone and CTC head.")
    flops_per_second: float | None = Field(None, gt=0, description="Operations of inference, for a second of audio.")


class SearchSpec(Config):
    """How each arm's space is searched. Each arm is searched on its own, with the same number of trials."""

    sampler: SamplerConfig = TpeSampler()
    trials: int = Field(ge=1, description="Trials of each arm (for each combination of its grid, if it has one).")
    metric: FinalMetric = Field(
        "dev_wer", description="Minimised: its value at the end of the trial. `_lm`: decoded with the language model."
    )
    also_minimise: tuple[Cost, ...] = Field(
        (), description="Further objectives: the answer is then a Pareto front of them and the metric."
    )
    constraints: ConstraintsSpec = ConstraintsSpec()
    warm_start: tuple[Name, ...] = Field(
        (), description="Earlier studies in the same storage: the sampler learns from trials of arms of the same name."
    )
    seed: int = Field(0, ge=0, description="Of the sampler.")

    @property
    def objectives(self) -> tuple[str, ...]:
        """What is minimised, the metric first."""
        return (self.metric, *self.also_minimise)

    @model_validator(mode="after")
    def _sampler_fits_objectives(self) -> Self:
        if len(set(self.also_minimise)) < len(self.also_minimise):
            raise ValueError(f"also_minimise names an objective twice: {', '.join(self.also_minimise)}")
        if self.also_minimise and isinstance(self.sampler, CmaEsSampler):
            raise ValueError("cma_es minimises one objective; take tpe, nsga2, nsga3, gp, random or quasi_random")
        return self


class ReplicationSpec(Config):
    """After the search: the best of each arm again, with fresh seeds, so that a winner is not a lucky draw."""

    top: int = Field(1, ge=1, description="How many of the best configurations of each arm.")
    seeds: int = Field(2, ge=0, description="Fresh seeds for each of them.")


class ConvergenceSpec(Config):
    """The answer: what each arm spends until the metric stays at or below the target."""

    metric: Metric = "dev_wer"
    target: float = Field(gt=0, lt=1, description="As a fraction: 0.45 is 45 %. The answer is about this one.")
    further_targets: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [], description="The report compares the arms at these, too: which one is faster can depend on the target."
    )
    relative_targets: list[Annotated[float, Field(ge=1)]] = Field(
        [], description="The same, as multiples of the best final value of the trials that stand for the arms."
    )

    @model_validator(mode="after")
    def _targets_differ(self) -> Self:
        for targets in ([self.target, *self.further_targets], self.relative_targets):
            if len(set(targets)) < len(targets):
                raise ValueError(f"each target stands here once, got {targets}")
        return self


class ScalingSpec(Config):
    """How the metric falls with size: a law for each arm, fitted to all finished trials of its search and replication.

    Of trials with the same size and seed, the best one counts.
    """

    size: str = Field(
        description="Dotted path of the trial, such as corpus.unlabelled_hours; `parameters`: of the recogniser."
    )
    metric: FinalMetric | SpentMetric | LossMetric = Field(
        "dev_wer",
        description="Or what is spent until the target of `convergence` (updates_to_target ...), or a training loss.",
    )
    form: Literal["power_law", "repetition", "joint"] = Field(
        "power_law", description="repetition: hours are unique, and the epochs of pre-training count; joint: two sizes."
    )
    second: str | None = Field(None, description="Of joint: the other size, a path of the trial or `parameters`.")
    arms: tuple[Name, ...] | Literal["all"] = "all"
    predict_at: tuple[Annotated[float, Field(gt=0)], ...] = Field((), description="Sizes to predict the metric at.")

    @model_validator(mode="after")
    def _second_goes_with_joint(self) -> Self:
        if (self.form == "joint") != (self.second is not None):
            raise ValueError(f"scaling.second is the other size of form: joint, got {self.second!r} with {self.form}")
        return self


class InferenceTimeSpec(Config):
    """How long trained models take to recognise a split: measured after the search, with nothing beside it."""

    split: Literal["dev", "test"] = "dev"
    batch_seconds: float = Field(250, gt=0, description="Padded audio in a batch (P-SEW: 250 s).")
    warmup: int = Field(1, ge=0, description="Passes over the split that do not count.")
    repeats: int = Field(5, ge=2, description="Passes that count; their spread is told.")
    wait_minutes: float = Field(10, gt=0, description="Until a whole accelerator (without GPUs, a node) is free.")


class GroupSpec(Config):
    """The size of a worker group. It changes no result beyond rounding: it is not part of a stage's identity."""

    workers: int = Field(1, ge=1, description="Workers that train one stage together (DistributedDataParallel).")
    cpus_per_worker: int = Field(1, ge=1)
    gpus_per_worker: float = Field(0, ge=0, description="Below 1, several small stages share a GPU.")

    @model_validator(mode="after")
    def _whole_gpus_or_a_part_of_one(self) -> Self:
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise ValueError(f"gpus_per_worker is a part of one GPU or whole GPUs, got {self.gpus_per_worker:g}")
        return self


class ResourcesSpec(GroupSpec):
    """Worker groups: their size, how many, and what their machines cost."""

    stages: dict[StageKind, GroupSpec] = Field(
        {}, description="Other sizes for some stages, e.g. 8 workers to pretrain."
    )
    max_groups: int | None = Field(None, ge=1, description="Stages at a time; None: as many as the cluster holds.")
    idle_seconds: float = Field(20.0, ge=1, description="A group without work gives its machines back after this.")
    silence_minutes: float = Field(60, gt=0, description="A stage that reports nothing for so long is killed.")
    retries: int = Field(2, ge=0, description="Times that a stage goes on from its checkpoint after a killed process.")
    preemptions: int = Field(20, ge=0, description="The same after the loss of its machines.")
    priority: int = Field(
        0, description="Of studies on one cluster, a higher one gets machines first; equal ones share them fairly."
    )
    node_prices: dict[str, float] = Field(
        {}, description="Price of an hour of a node, by node type (Ray's node group); `default` is for all others."
    )

    def group(self, kind: StageKind) -> GroupSpec:
        """The size of the groups that run stages of this kind."""
        return self.stages.get(kind, self)


class NoImprovementSpec(Config):
    """The search of an arm ends when its last trials brought nothing beyond noise."""

    trials: int = Field(ge=1, description="So many trials of the arm in a row, finished or stopped early.")
    noise: float | None = Field(
        None, ge=0, description="Of the metric. None: standard deviation over seeds, pooled over configurations."
    )


class StopSpec(Config):
    """When to stop before all trials have run. What is spent counts over all runs of the study."""

    target: float | None = Field(None, gt=0, description="An arm's search ends when its metric is at or below this.")
    no_improvement: NoImprovementSpec | None = None
    accelerator_hours: float | None = Field(None, gt=0, description="Held by worker groups; without GPUs, of workers.")
    cost: float | None = Field(None, gt=0, description="Of the nodes' shares held, at resources.node_prices.")
    wall_hours: float | None = Field(None, gt=0, description="While the study was running.")


class MlflowSpec(Config):
    """Where the study is mirrored."""

    enabled: bool = True
    tracking_uri: str | None = Field(
        None, description="None: $MLFLOW_TRACKING_URI, or else an SQLite file in the storage folder."
    )


class ArmSpec(Config):
    """A named variation: what it sets in the trial, and what is searched."""

    trial: dict[str, Any] = Field({}, description="Laid over the study's `trial`.")
    space: Space = Field({}, description="Dotted path of the trial -> distribution.")
    try_first: list[Point] = Field([], description="Values of searched paths to try first; the others are drawn.")
    baseline: Name | None = Field(
        None, description="Arm that it is compared with. When no arm names one, all are compared with the first."
    )

    @model_validator(mode="after")
    def _tries_what_can_be_drawn(self) -> Self:
        space = sampled(self.space)
        for point in self.try_first:
            for path, value in point.items():
                if path not in space:
                    raise ValueError(f"try_first names {path!r}, which is not sampled here{did_you_mean(path, space)}")
                if not space[path].contains(value):
                    raise ValueError(
                        f"try_first gives {path!r} the value {value!r}, which its distribution cannot draw"
                    )
        return self


class StudySpec(Config):
    """A question asked with one sweep file."""

    study: Name
    question: str
    storage: Path = Field(Path("results"), description="Folder, on storage that every node sees.")
    stages: str | None = Field(
        None,
        description="URL of object storage that keeps the stages, such as s3://bucket/prefix; `storage` may then be "
        "another folder on each node. None: in the storage folder.",
    )
    trial: dict[str, Any] = Field({}, description="What all arms share; an arm's own `trial` is laid over it.")
    arms: dict[Name, ArmSpec] = Field(min_length=1)
    search: SearchSpec
    replication: ReplicationSpec = ReplicationSpec()
    convergence: ConvergenceSpec
    scaling: ScalingSpec | None = Field(None, description="None: no scaling law is fitted.")
    inference_time: InferenceTimeSpec | None = Field(None, description="None: it is not measured.")
    tables: dict[str, TableMapping] = Field(
        {}, description="Published tables that the study covers: coordinate -> dotted path of the trial, or arm: value."
    )
    early_stopping: EarlyStoppingConfig | None = Field(None, description="None: every trial trains to its end.")
    stop: StopSpec = StopSpec()
    resources: ResourcesSpec = ResourcesSpec()
    quota: ByteSize | None = Field(
        None, description="Of all stages in the storage, such as 50GB; what is needed stays."
    )
    ledger: str | None = Field(
        None,
        description="URL, such as postgresql+psycopg://... None: $STUDY_LEDGER, or else SQLite in the storage folder.",
    )
    mlflow: MlflowSpec = MlflowSpec()

    @property
    def early_stopping_metric(self) -> str:
        """What early stopping sees while a trial trains: the metric, with greedy decoding."""
        return self.search.metric.removesuffix("_lm")

    def comparisons(self) -> list[tuple[str, str]]:
        """(arm, baseline) of each comparison that the study is about."""
        named = [(name, arm.baseline) for name, arm in self.arms.items() if arm.baseline]
        first, *others = self.arms
        return named or [(other, first) for other in others]

    @field_validator("stages")
    @classmethod
    def _stages_are_at_a_url(cls, value: str | None) -> str | None:
        return checked_url(value) if value else None

    @model_validator(mode="after")
    def _quota_is_of_folders(self) -> Self:
        if self.quota is not None and self.stages:
            raise ValueError(
                "quota is about the storage folder, and `stages` keeps weights in object storage; leave out one of them"
            )
        return self

    @model_validator(mode="after")
    def _costs_are_known(self) -> Self:
        if self.stop.cost is not None and not self.resources.node_prices:
            raise ValueError("stop.cost needs prices; give resources.node_prices, e.g. {default: 2.5} for an hour")
        return self

    @model_validator(mode="after")
    def _baselines(self) -> Self:
        for name, arm in self.arms.items():
            if arm.baseline is not None and (arm.baseline not in self.arms or arm.baseline == name):
                raise ValueError(
                    f"baseline of arm {name!r} must be another arm, got {arm.baseline!r}; the arms are "
                    f"{', '.join(self.arms)}"
                )
        return self

    @model_validator(mode="after")
    def _scaled_arms(self) -> Self:
        for name in self.scaled_arms:
            if name not in self.arms:
                raise ValueError(f"scaling.arms names {name!r}; the arms are {', '.join(self.arms)}")
        return self

    @property
    def scaled_arms(self) -> tuple[str, ...]:
        """The arms that `scaling` is about."""
        if self.scaling is None:
            return ()
        return tuple(self.arms) if self.scaling.arms == "all" else self.scaling.arms

    def known_trials(self) -> dict[str, TrialConfig]:
        """Arm -> its configuration, without its searched values; arms that only another version knows are left out."""
        found = {}
        for arm in self.arms:
            with contextlib.suppress(ValidationError):
                found[arm] = self.trial_config(arm)
        return found

    def trial_config(self, arm: str, point: Point | None = None, seed: int | None = None) -> TrialConfig:
        """The resolved configuration of an arm at a point of its space. Raises pydantic's ValidationError."""
        given = merge(self.trial, self.arms[arm].trial)
        return at_point(given, {**(point or {}), **({} if seed is None else {"seed": seed})})


def at_point(given: Mapping[str, Any], point: Point) -> TrialConfig:
    """The trial as the file gives it, with the values of the point. Raises pydantic's ValidationError.

    A preset comes first: it fills in only what neither the file nor the point gives.
    """
    presets = {path: value for path, value in point.items() if path.endswith(".preset")}
    for path, value in presets.items():
        given = merge(given, nested(path, value))
    base = TrialConfig.model_validate(given)
    tree = base.model_dump(mode="json")
    for path, value in point.items():
        if path not in presets:
            tree = merge(merge(tree, _replaced_by(path)), nested(path, value))
    return TrialConfig.model_validate(tree) if len(point) > len(presets) else base


def _replaced_by(path: str) -> dict[str, Any]:
    """What a searched value takes the place of: the length of a stage is given either in steps or in epochs."""
    stage, _, field = path.rpartition(".")
    other = {"steps": "epochs", "epochs": "steps"}.get(field)
    return nested(f"{stage}.{other}", None) if stage and other else {}


def trials_of(spec: StudySpec) -> Iterator[TrialConfig]:
    """Each arm as it stands, and at as many points of its space as are checked before a study starts."""
    for arm, settings in spec.arms.items():
        yield spec.trial_config(arm)
        for point in probe_points(settings.space, MAX_COMBINATIONS):
            yield spec.trial_config(arm, point)


def without_passwords(text: str) -> str:
    """The text with `***` for the secrets of every URL in it.

    They are the password, a name without one, which is a token, and such fields of the query as `password` and `token`.
    """
    text = re.sub(r"(://[^/@:\s\"]*):[^\s\"]*@", r"\1:***@", text)  # a password may hold / and @
    text = re.sub(r"(://)[^/@:\s\"]+@", r"\1***@", text)
    return re.sub(r"([?&][^=&#\s\"]*(?:passw|pwd|token|secret|key)[^=&#\s\"]*=)[^&#\s\"]+", r"\1***", text, flags=re.I)


def nested(path: str, value: Any) -> dict[str, Any]:
    """`nested("a.b", 1)` is `{"a": {"b": 1}}`."""
    head, _, rest = path.partition(".")
    return {head: nested(rest, value) if rest else value}


def read_spec(path: Path, overrides: Iterable[str] = (), *, absent_is_fine: bool = False) -> StudySpec:
    """Read and check a sweep file, corpora included. Raises SettingsError with every error of the file at once.

    `absent_is_fine`: a corpus that is not on this machine is no error, for a plan does without it. Errors show no
    password of a URL.
    """
    try:
        return _read_spec(path, overrides, absent_is_fine=absent_is_fine)
    except SettingsError as error:
        raise SettingsError([without_passwords(line) for line in error.errors]) from None


def _read_spec(path: Path, overrides: Iterable[str], *, absent_is_fine: bool) -> StudySpec:
    file = read_settings_file(path, overrides)
    found: list[tuple[Location, str]] = []
    spec: StudySpec | None = None
    try:
        spec = StudySpec.model_validate(file.data)
    except ValidationError as error:
        found += explain(error, StudySpec)
    found += _arm_errors(file, absent_is_fine=absent_is_fine)
    if spec and not found:
        found += _table_errors(spec)
    storage = Path()
    try:
        storage = spec.storage.expanduser() if spec else storage
        if "\0" in str(storage):
            raise ValueError(f"no folder can have the name {str(storage)!r}")
        storage.is_dir()  # raises for a name that is too long
    except (RuntimeError, ValueError, OSError) as error:
        found.append((("storage",), str(error)))
    if spec and inside_ray_job() and not storage.is_absolute():
        rule = (
            "must be absolute in a Ray job, whose working directory is a copy that goes away, such as /shared/results"
        )
        found.append((("storage",), f"{rule}; got {storage}"))
    if found or not spec:
        raise SettingsError(list(dict.fromkeys(file.error(location, message) for location, message in found)))
    return spec.with_(storage=storage.absolute())


def _arm_errors(file: SettingsFile, *, absent_is_fine: bool) -> Iterator[tuple[Location, str]]:
    """Errors in what the arms set and search. Works on the raw data, so that they show beside other errors."""
    arms = file.data.get("arms")
    shared = file.data.get("trial") or {}
    for name, arm in arms.items() if isinstance(arms, dict) and isinstance(shared, dict) else ():
        own = arm.get("trial") or {} if isinstance(arm, dict) else None
        if not isinstance(own, dict):
            continue
        given = merge(shared, own)
        try:
            trial = TrialConfig.model_validate(given)
        except ValidationError as error:
            for location, message in explain(error, TrialConfig):
                yield _where(file, name, location), message
            continue
        found = list(problems(trial, absent_is_fine=absent_is_fine))
        for field, message in found:
            yield _where(file, name, (field,)), message
        if found:
            continue
        metrics = _metrics(file, name)
        lacking = [(place, lack) for place, metric in metrics.items() if (lack := lacks_metric(trial, metric))]
        yield from ((place, f"arm {name!r}: {lack}") for place, lack in lacking)
        if lacking:
            continue
        try:
            space = ArmSpec.model_validate(arm).space
        except ValidationError:
            continue  # explained with the rest of the file
        point_problem = functools.partial(_point_problem, given, tuple(metrics.values()), absent_is_fine)
        yield from _space_errors(space, ("arms", name, "space"), trial, point_problem)
        for field in ("size", "second") if _is_scaled(file, name) else ():
            if problem := _size_problem(file.data["scaling"].get(field), space, trial):
                yield ("scaling", field), f"arm {name!r}: {problem}"


def _table_errors(spec: StudySpec) -> Iterator[tuple[Location, str]]:
    """Tables, coordinates, arms and values that are not there."""
    values_of = functools.partial(_values_at, spec)
    for name, mapping in spec.tables.items():
        for location, message in mapping_errors(name, mapping, spec.arms, values_of):
            yield ("tables", *location), message


def _values_at(spec: StudySpec, arm: str, path: str) -> list[Value] | None:
    """The values that trials of the arm can have at the path, of an interval its ends; None: there is no such path."""
    settings = dict(_values(spec.trial_config(arm).model_dump(mode="json")))
    if path not in settings:
        return None
    space = spec.arms[arm].space
    return list(space[path].probes()) if path in space else [settings[path]]


def _is_scaled(file: SettingsFile, arm: str) -> bool:
    """Whether the file asks for a scaling law of the arm."""
    scaling = file.data.get("scaling")
    chosen = scaling.get("arms", "all") if isinstance(scaling, dict) else ()
    return chosen == "all" or (isinstance(chosen, list) and arm in chosen)


def _size_problem(path: object, space: Space, trial: TrialConfig) -> str | None:
    """Why the path cannot be the size of a scaling law of this arm; what is no text is an error of its own."""
    if not isinstance(path, str) or path == "parameters":
        return None
    known = list(_paths(trial.model_dump(mode="json")))
    if path not in known:
        return f"the trial of this arm has no {path!r}{_instead(path, trial, known)}"
    if path not in space:
        return f"{path!r} is not in its space, so that it has one size; give it a grid of sizes"
    for value in space[path].probes():
        if isinstance(value, bool | str) or value <= 0:
            return f"sizes are positive numbers, and {path!r} can be {value!r}"
    return _more_than_there(path, space, trial)


def _more_than_there(path: str, space: Space, trial: TrialConfig) -> str | None:
    """Sizes beyond what the corpus has would be its own size again, under another name."""
    parts = {"corpus.unlabelled_hours": ("unlabelled", 3600.0), "corpus.labelled_minutes": ("train", 60.0)}
    if path not in parts:
        return None
    part, unit = parts[path]
    try:
        whole = corpus_of(trial.corpus.model_copy(update={"unlabelled_hours": None, "labelled_minutes": None}))
    except CorpusError:
        return None  # not on this machine
    there = total_seconds(getattr(whole, part)) / unit
    largest = max(value for value in space[path].probes() if not isinstance(value, str))
    if largest <= there * BEYOND_CORPUS:
        return None
    return f"{path!r} can be {largest:g}, and the corpus has {there:.3g}; a law needs sizes that are what they say"


def _metric_problem(metrics: Iterable[str], trial: TrialConfig) -> str | None:
    """Why the trial will not have one of the metrics that the study asks for."""
    return next((message for metric in metrics if (message := lacks_metric(trial, metric))), None)


def _metrics(file: SettingsFile, arm: str) -> dict[Location, str]:
    """Where the file asks for which metric of the arm; what is no metric is an error of its own."""
    found: dict[Location, str] = {}
    for section in ("search", "convergence", *(["scaling"] if _is_scaled(file, arm) else [])):
        settings = file.data.get(section)
        metric = settings.get("metric") if isinstance(settings, dict) else None
        if isinstance(metric, str) and metric in METRICS:
            found[section, "metric"] = metric
    return found


def _where(file: SettingsFile, arm: str, location: Location) -> Location:
    """Where a value of a resolved trial stands in the file: in the arm's own part, or in what all arms share."""
    own: Location = ("arms", arm, "trial", *location)
    common: Location = ("trial", *location)
    for end in range(len(location), 0, -1):
        for candidate in (own, common):
            offset = len(candidate) - len(location)
            if file.contains(candidate[: offset + end]):
                return candidate
    return own


def _space_errors(
    space: Space, where: Location, trial: TrialConfig, point_problem: Callable[[Point], str | None]
) -> Iterator[tuple[Location, str]]:
    """Paths that the trial does not have, and values that it cannot take, alone or together."""
    known = list(_paths(trial.model_dump(mode="json")))
    errors = [((*where, path), message) for path, message in condition_errors(space)]
    for path, distribution in space.items():
        if path not in known:
            errors.append(((*where, path), f"the trial of this arm has no {path!r}{_instead(path, trial, known)}"))
            continue
        for value in distribution.probes():
            if (problem := point_problem({path: value})) is not None:
                errors.append(((*where, path), f"{value!r} is not possible: {problem}"))
    yield from errors
    for point in probe_points(space, MAX_COMBINATIONS) if not errors else ():
        if (problem := point_problem(point)) is not None:
            shown = ", ".join(f"{path}={value}" for path, value in point.items())
            yield where, f"{shown} is not possible: {problem}"
            return


def _instead(path: str, trial: TrialConfig, known: Iterable[str]) -> str:
    """What to write for a path that is not there."""
    head = path.partition(".")[0]
    if head in TrialConfig.model_fields and getattr(trial, head) is None:
        return f"; give the trial its `{head}`, whose values can then be searched"
    return did_you_mean(path, known)


def _point_problem(given: Mapping[str, Any], metrics: Iterable[str], absent_is_fine: bool, point: Point) -> str | None:
    try:
        trial = at_point(given, point)
    except ValidationError as error:
        return "; ".join(message for _, message in explain(error, TrialConfig))
    found = next((message for _, message in problems(trial, absent_is_fine=absent_is_fine)), None)
    return found or _metric_problem(metrics, trial)


def _paths(tree: Mapping[str, Any]) -> Iterator[str]:
    return (path for path, _ in _values(tree))


def _values(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of each setting."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _values(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
