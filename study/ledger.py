"""The record of truth: studies, trials, stages and curves, in a database that no crash can corrupt.

Everything else (MLflow, terminal, report, Optuna's state) is derived from it and can be rebuilt. Every write is one
transaction and keyed, so that doing it twice changes nothing: while a database server is away, it is tried again.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import sqlalchemy as sa

from study.database import JSON, Database, LedgerError, database_name, one_at_a_time, read_only_url, sqlite_url
from study.spec import StudySpec
from trainables.stage import InferenceTime, Report, Stage

SCHEMA_VERSION = 4

Status = Literal["unfinished", "finished", "failed", "stopped"]  # stopped: early, by comparison with others
Origin = Literal["search", "replication"]
Order = Literal["pause", "stop"]

MEASURED = ("parameters", "real_time_factor")  # fields of a report that are metrics here

LEFT_OVER_SECONDS = 3600.0  # after which a new ledger that is not complete is that of a process that was killed

_TICK = 1e-6  # seconds between events, at least, where the clock says otherwise


_metadata = sa.MetaData()

_schema = sa.Table("schema", _metadata, sa.Column("version", sa.Integer, primary_key=True))
_studies = sa.Table(
    "studies",
    _metadata,
    sa.Column("study", sa.String, primary_key=True),
    sa.Column("spec", JSON, nullable=False),  # of the latest run
    sa.Column("environment", JSON, nullable=False),  # versions, data hashes
    sa.Column("created_at", sa.Float, nullable=False),  # Unix time, as every *_at
    sa.Column("updated_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float),  # when it had nothing more to run; None: it is running, or was interrupted
)
_runs = sa.Table(
    "runs",
    _metadata,  # each time that the study ran, and what that took
    sa.Column("run", sa.String, primary_key=True),
    sa.Column("study", sa.ForeignKey("studies.study"), nullable=False),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("seen_at", sa.Float, nullable=False),
    sa.Column("accelerator_seconds", sa.Float, nullable=False),
    sa.Column("cost", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float),  # None: it is running, or was killed
)
_trials = sa.Table(
    "trials",
    _metadata,
    sa.Column("study", sa.ForeignKey("studies.study"), primary_key=True),
    sa.Column("trial", sa.String, primary_key=True),
    sa.Column("arm", sa.String, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),  # within the arm, in the order of proposal
    sa.Column("origin", sa.String, nullable=False),
    sa.Column("grid", JSON, nullable=False),  # the part of `point` that a grid fixed
    sa.Column("point", JSON, nullable=False),  # searched path -> value
    sa.Column("config", JSON, nullable=False),  # fully resolved
    sa.Column("seed", sa.Integer, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("cause", sa.String),  # of a failure, or of an early stop
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float),
    sa.Column("sampler_state", JSON),  # what the sampler notes with a trial, such as its generation
)
_stages = sa.Table(
    "stages",
    _metadata,
    sa.Column("stage", sa.String, primary_key=True),  # fingerprint
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("steps", sa.Integer, nullable=False),
)
_trial_stages = sa.Table(
    "trial_stages",
    _metadata,
    sa.Column("study", sa.String, primary_key=True),
    sa.Column("trial", sa.String, primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("stage", sa.ForeignKey("stages.stage"), nullable=False),
    sa.ForeignKeyConstraint(["study", "trial"], ["trials.study", "trials.trial"]),
)
_points = sa.Table(
    "points",
    _metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("stage", sa.ForeignKey("stages.stage"), nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("metric", sa.String, nullable=False),
    sa.Column("value", sa.Float, nullable=False),
    sa.Column("audio_seconds", sa.Float, nullable=False),
    sa.Column("epochs", sa.Float, nullable=False),
    sa.Column("elapsed_seconds", sa.Float, nullable=False),
    sa.Column("accelerator_seconds", sa.Float, nullable=False),
    sa.Column("reported_at", sa.Float, nullable=False),
    sa.Column("device", sa.String),  # None: not recorded
    sa.UniqueConstraint("stage", "step", "metric"),
)
_evaluations = sa.Table(
    "evaluations",
    _metadata,  # what early stopping was told, in its order
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("study", sa.String, nullable=False),
    sa.Column("trial", sa.String, nullable=False),
    sa.Column("progress", sa.Float, nullable=False),
    sa.Column("objectives", JSON, nullable=False),
    sa.UniqueConstraint("study", "trial", "progress"),
)
_inference_times = sa.Table(
    "inference_times",
    _metadata,
    sa.Column("stage", sa.ForeignKey("stages.stage"), primary_key=True),
    sa.Column("split", sa.String, primary_key=True),
    sa.Column("batch_seconds", sa.Float, primary_key=True),
    sa.Column("device", sa.String, primary_key=True),
    sa.Column("utterances", sa.Integer, nullable=False),
    sa.Column("audio_seconds", sa.Float, nullable=False),
    sa.Column("seconds", JSON, nullable=False),  # of each pass
)
_orders = sa.Table(
    "orders",
    _metadata,  # what a person wants of a running study
    sa.Column("study", sa.ForeignKey("studies.study"), primary_key=True),
    sa.Column("order", sa.String, nullable=False),
)
_mirrored = sa.Table(
    "mirrored",
    _metadata,  # how far the MLflow mirror has come
    sa.Column("server", sa.String, primary_key=True),
    sa.Column("study", sa.String, primary_key=True),
    sa.Column("trial", sa.String, primary_key=True),
    sa.Column("stage", sa.String, primary_key=True),
    sa.Column("point", sa.Integer, nullable=False),  # id of the last point that arrived
)


@dataclass(frozen=True)
class Trial:
    """A trial as the ledger has it."""

    study: str
    trial: str
    arm: str
    number: int
    origin: Origin
    grid: dict[str, Any]
    point: dict[str, Any]
    config: dict[str, Any]
    seed: int
    status: Status
    cause: str | None
    started_at: float
    ended_at: float | None
    sampler_state: dict[str, Any] | None = None


@dataclass(frozen=True)
class Evaluation:
    """What early stopping was told of a trial: values to minimise, at a share of its labelled training."""

    trial: str
    progress: float
    objectives: list[float]


@dataclass(frozen=True)
class Spent:
    """What all runs of a study took so far."""

    wall_seconds: float
    accelerator_seconds: float
    cost: float


@dataclass(frozen=True)
class CurvePoint:
    """One value of one metric of a trial.

    `step`, `audio_seconds`, `elapsed_seconds` and `accelerator_seconds` count from the start of the trial's first
    stage: what a shared stage cost is part of every trial that uses it.
    """

    id: int
    stage: str
    kind: str
    metric: str
    value: float
    step: int
    audio_seconds: float
    epochs: float
    elapsed_seconds: float
    accelerator_seconds: float
    reported_at: float
    device: str | None = None  # on which it was reported; None: not recorded


class Ledger:
    """Opens or creates the ledger of a database URL, such as `sqlite:////shared/results/ledger.db`.

    SQLite and PostgreSQL are supported. Raises LedgerError, here and wherever the database refuses.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._database = Database(url)
        self._began: dict[str, float] = {}  # run of this process -> when, on a clock that is never set
        self._latest: float | None = None  # moment that was recorded last
        if self._database.run(_version) != SCHEMA_VERSION:
            self._database.run(_make_tables)

    @property
    def name(self) -> str:
        """The path of an SQLite file; otherwise the URL without a password."""
        return self._database.name

    @classmethod
    def in_folder(cls, storage: Path) -> Ledger:
        """The SQLite ledger of a storage folder. Several processes may open a new one at the same time."""
        path = storage / "ledger.db"
        try:
            storage.mkdir(parents=True, exist_ok=True)
            if not path.exists():  # made beside, and put in its place when complete
                beside = storage / f".ledger-{uuid.uuid4().hex[:8]}.db"
                cls(sqlite_url(beside)).close()
                with contextlib.suppress(FileExistsError):
                    os.link(beside, path)
                beside.unlink(missing_ok=True)
            _remove_left_over(storage, path)
        except OSError as error:
            raise LedgerError(f"{path}: cannot be made: {error}; give this user the right to write there") from error
        return cls(sqlite_url(path))

    @classmethod
    def of(cls, storage: Path, configured: str | None = None) -> Ledger:
        """That of the sweep file, else of $STUDY_LEDGER, else the SQLite file in the storage folder."""
        url = configured or os.environ.get("STUDY_LEDGER")
        return cls(url) if url else cls.in_folder(storage)

    @classmethod
    def existing(cls, storage: Path) -> Ledger:
        """The ledger of $STUDY_LEDGER, else of studies that have run in the storage folder, which must be there.

        Those who may not write the folder can read it.
        """
        path = storage / "ledger.db"
        if os.environ.get("STUDY_LEDGER"):
            return cls.of(storage)
        if not path.exists():
            raise LedgerError(
                f"{path}: no such file; --storage is the folder of studies that have run, and "
                "$STUDY_LEDGER the URL of a ledger elsewhere"
            )
        at_rest = not path.with_name("ledger.db-wal").exists()  # no process has it open
        return cls(read_only_url(path)) if at_rest and not os.access(storage, os.W_OK) else cls.in_folder(storage)

    def close(self) -> None:
        self._database.engine.dispose()

    # ---- writing -----------------------------------------------------------------------------------------------

    def open_study(self, study: str, spec: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
        """Record the study, or that it runs again. Returns the name of this run."""
        now, run = self._now(), uuid.uuid4().hex
        row = {"spec": dict(spec), "environment": dict(environment), "updated_at": now, "ended_at": None}
        spent = {"started_at": now, "seen_at": now, "accelerator_seconds": 0.0, "cost": 0.0}
        self._database.write(
            self._database.insert_once(_studies).values(study=study, created_at=now, **row),
            sa.update(_studies).where(_studies.c.study == study).values(**row),
            self._database.insert_once(_runs).values(run=run, study=study, **spent),
            sa.delete(_orders).where(_orders.c.study == study),
        )
        self._began[run] = time.monotonic()
        return run

    def end_study(self, study: str) -> None:
        """Record that the study has nothing more to run."""
        self._database.write(sa.update(_studies).where(_studies.c.study == study).values(ended_at=self._now()))

    def give_order(self, study: str, order: Order | None) -> None:
        """Tell the process that runs the study what to do; None: to go on. It reads this once a second."""
        insert = [] if order is None else [sa.insert(_orders).values(study=study, order=order)]
        self._database.write(sa.delete(_orders).where(_orders.c.study == study), *insert)

    def end_run(self, run: str) -> None:
        """Record that the process runs the study no more, however far it came."""
        self._database.write(sa.update(_runs).where(_runs.c.run == run).values(ended_at=time.time()))

    def set_spent(self, run: str, accelerator_seconds: float, cost: float) -> None:
        """Record what the run took so far. It is one that this object has opened."""
        seen_at = _runs.c.started_at + (time.monotonic() - self._began[run])
        row = {"seen_at": seen_at, "accelerator_seconds": accelerator_seconds, "cost": cost}
        self._database.write(sa.update(_runs).where(_runs.c.run == run).values(**row))

    def add_evaluation(self, study: str, evaluation: Evaluation) -> None:
        """Record what early stopping is told, before it is told. What is there already stays as it is."""
        self._database.write((self._database.insert_once(_evaluations), {"study": study, **asdict(evaluation)}))

    def add_trial(
        self,
        study: str,
        trial: str,
        *,
        arm: str,
        number: int,
        origin: Origin,
        grid: Mapping[str, Any],
        point: Mapping[str, Any],
        config: Mapping[str, Any],
        seed: int,
        stages: Sequence[Stage],
        sampler_state: Mapping[str, Any] | None = None,
        status: Status = "unfinished",
        cause: str | None = None,
    ) -> None:
        """Record a trial, before it starts, and the stages that it will run.

        A trial that is there keeps its row, and gets these stages. With another `status`, it has ended already: an
        equal trial has run.
        """
        now = self._now()
        row = {
            "study": study,
            "trial": trial,
            "arm": arm,
            "number": number,
            "origin": origin,
            "grid": dict(grid),
            "point": dict(point),
            "config": dict(config),
            "seed": seed,
            "status": status,
            "cause": cause,
            "started_at": now,
            "ended_at": None if status == "unfinished" else now,
            "sampler_state": dict(sampler_state) if sampler_state else None,
        }
        known = [
            {"stage": stage.fingerprint(), "kind": stage.kind, "name": stage.name(), "steps": stage.steps}
            for stage in stages
        ]
        mine = [
            {"study": study, "trial": trial, "position": position, "stage": stage["stage"]}
            for position, stage in enumerate(known)
        ]
        self._database.write(
            (self._database.insert_once(_trials), row),
            sa.delete(_trial_stages).where(_trial_stages.c.study == study, _trial_stages.c.trial == trial),
            (self._database.insert_once(_stages), known),
            (sa.insert(_trial_stages), mine),
        )

    def append(self, stage: str, reports: Iterable[Report]) -> None:
        """Add reports to the curve of a stage. What is there already stays as it is."""
        rows = [
            {"stage": stage, "metric": metric, "value": value, **cost}
            for report in reports
            for cost in [report.model_dump(exclude={"metrics", *MEASURED})]
            for metric, value in _values(report)
        ]

        def write(db: sa.Connection) -> None:
            one_at_a_time(db)  # so that a point that can be seen has a higher id than all that could be before it
            db.execute(self._database.insert_once(_points), rows)

        if rows:
            self._database.run(write)

    def add_inference_time(self, stage: str, found: InferenceTime) -> None:
        """Record how long the weights of a stage take to recognise. What is there already stays as it is."""
        row = {"stage": stage, **found.model_dump(), "seconds": list(found.seconds)}
        self._database.write((self._database.insert_once(_inference_times), row))

    def end_trial(self, study: str, trial: str, status: Status, cause: str | None = None) -> bool:
        """Record how an unfinished trial ended. The first end counts; True when this was it."""
        mine = (_trials.c.study == study, _trials.c.trial == trial)
        now = self._now()
        self._database.write(
            sa.update(_trials)
            .where(*mine, _trials.c.status == "unfinished")
            .values(status=status, cause=cause, ended_at=now)
        )
        # Not the number of rows: when the answer to a write is lost, the second attempt finds none.
        return bool(self._database.read(sa.select(_trials).where(*mine, _trials.c.ended_at == now)))

    def reopen_failed(self, study: str) -> None:
        """Make failed trials run again."""
        self._database.write(
            sa.update(_trials)
            .where(_trials.c.study == study, _trials.c.status == "failed")
            .values(status="unfinished", cause=None, ended_at=None)
        )

    def set_mirrored(self, server: str, study: str, trial: str, stage: str, point: int) -> None:
        """Record that the mirror has all points of the trial's stage up to this id."""
        key = {"server": server, "study": study, "trial": trial, "stage": stage}
        conditions = [_mirrored.c[name] == value for name, value in key.items()]
        self._database.write(
            self._database.insert_once(_mirrored).values(**key, point=point),
            sa.update(_mirrored).where(*conditions).values(point=point),
        )

    def forget_mirrored(self, server: str, study: str, trial: str) -> None:
        """Make the mirror bring over the whole trial again."""
        mine = (_mirrored.c.server == server, _mirrored.c.study == study, _mirrored.c.trial == trial)
        self._database.write(sa.delete(_mirrored).where(*mine))

    def _now(self) -> float:
        """The moment of an event: the time, but after all that are recorded, even when the clock was set back."""
        if self._latest is None:
            moments = (_studies.c.updated_at, _studies.c.ended_at, _trials.c.started_at, _trials.c.ended_at)
            recorded = sa.union_all(*(sa.select(moment.label("at")) for moment in moments)).subquery()
            (row,) = self._database.read(sa.select(sa.func.max(recorded.c.at).label("latest")))
            self._latest = float(row.latest or 0.0)
        self._latest = max(time.time(), self._latest + _TICK)
        return self._latest

    # ---- reading -----------------------------------------------------------------------------------------------

    def studies(self) -> list[dict[str, Any]]:
        return [dict(row._mapping) for row in self._database.read(sa.select(_studies).order_by(_studies.c.created_at))]

    def study(self, study: str) -> dict[str, Any]:
        """Raises LedgerError, naming the known studies, when there is no such study."""
        known = {row["study"]: row for row in self.studies()}
        if study not in known:
            raise LedgerError(f"no study {study!r} in {self.name}; known: {', '.join(sorted(known)) or 'none'}")
        return known[study]

    def spec(self, study: str, storage: Path) -> StudySpec:
        """The sweep of the study's latest run; the storage folder may have been moved since. Raises as `study`."""
        return StudySpec.model_validate(self.study(study)["spec"]).with_(storage=storage)

    def order(self, study: str) -> Order | None:
        """What the study has been told to do since it was started last."""
        rows = self._database.read(sa.select(_orders).where(_orders.c.study == study))
        return rows[0].order if rows else None

    def seen_at(self, study: str) -> float | None:
        """When the process that runs the study was last seen, in Unix time; None when it has said that it ended."""
        running = (_runs.c.study == study, _runs.c.ended_at.is_(None))
        (row,) = self._database.read(sa.select(sa.func.max(_runs.c.seen_at).label("at")).where(*running))
        return None if row.at is None else float(row.at)

    def is_over(self, study: str) -> bool:
        """Whether the study had nothing more to run when it ended."""
        return self.study(study)["ended_at"] is not None

    def spent(self, study: str) -> Spent:
        """What all runs of the study took, as far as each was seen."""
        run = _runs.c
        sums = (sa.func.sum(run.seen_at - run.started_at), sa.func.sum(run.accelerator_seconds), sa.func.sum(run.cost))
        (found,) = self._database.read(sa.select(*sums).where(run.study == study))
        return Spent(*(float(value or 0.0) for value in found))

    def evaluations(self, study: str) -> list[Evaluation]:
        """What early stopping was told, in its order."""
        query = sa.select(_evaluations).where(_evaluations.c.study == study).order_by(_evaluations.c.id)
        return [Evaluation(row.trial, row.progress, row.objectives) for row in self._database.read(query)]

    def count(self, study: str) -> dict[Status, int]:
        """Number of trials of each status."""
        query = sa.select(_trials.c.status, sa.func.count().label("trials")).where(_trials.c.study == study)
        found: dict[Status, int] = dict.fromkeys(get_args(Status), 0)
        return found | {row.status: row.trials for row in self._database.read(query.group_by(_trials.c.status))}

    def trial(self, study: str, trial: str) -> Trial:
        (row,) = self._database.read(sa.select(_trials).where(_trials.c.study == study, _trials.c.trial == trial))
        return Trial(**row._mapping)

    def trials(self, study: str) -> list[Trial]:
        """In the order in which they were proposed."""
        query = sa.select(_trials).where(_trials.c.study == study).order_by(_trials.c.started_at, _trials.c.trial)
        return [Trial(**row._mapping) for row in self._database.read(query)]

    def trial_stages(self, study: str, trial: str) -> list[dict[str, Any]]:
        """fingerprint (`stage`), `kind`, `name` and `steps` of the trial's stages, in order."""
        query = (
            sa.select(_stages)
            .join(_trial_stages, _trial_stages.c.stage == _stages.c.stage)
            .where(_trial_stages.c.study == study, _trial_stages.c.trial == trial)
            .order_by(_trial_stages.c.position)
        )
        return [dict(row._mapping) for row in self._database.read(query)]

    def contents(self, study: str) -> dict[str, tuple[str, ...]]:
        """trial -> the fingerprints of its stages, in order."""
        stage = _trial_stages.c
        found: defaultdict[str, list[str]] = defaultdict(list)
        query = sa.select(stage.trial, stage.stage).where(stage.study == study)
        for row in self._database.read(query.order_by(stage.trial, stage.position)):
            found[row.trial].append(row.stage)
        return {trial: tuple(stages) for trial, stages in found.items()}

    def devices(self, study: str) -> frozenset[str]:
        """Names of all devices that stages of the study's trials are known to have run on."""
        mine = sa.select(_trial_stages.c.stage).where(_trial_stages.c.study == study)
        query = sa.select(_points.c.device).distinct()
        known = query.where(_points.c.stage.in_(mine), _points.c.device.is_not(None))
        return frozenset(row.device for row in self._database.read(known))

    def curve(self, study: str, trial: str, metric: str | None = None) -> list[CurvePoint]:
        """The trial's points over all its stages, in order, with cumulative steps and costs."""
        curve: list[CurvePoint] = []
        before = {"step": 0, "audio_seconds": 0.0, "elapsed_seconds": 0.0, "accelerator_seconds": 0.0}
        for stage in self.trial_stages(study, trial):
            rows = self._points_of(stage["stage"])
            for row in rows:
                if metric is None or row["metric"] == metric:
                    cumulative = {name: before[name] + row[name] for name in before}
                    curve.append(CurvePoint(**{**row, **cumulative, "kind": stage["kind"]}))
            if rows:
                before = {name: before[name] + rows[-1][name] for name in before}
        return curve

    def _points_of(self, stage: str) -> list[dict[str, Any]]:
        query = sa.select(_points).where(_points.c.stage == stage).order_by(_points.c.step, _points.c.id)
        return [dict(row._mapping) for row in self._database.read(query)]

    def final(self, study: str, trial: str) -> dict[str, float]:
        """The results of the trial: the last value of each metric of its last stage, and of decoding after it.

        Where that stage kept its best weights, its results on dev are those of the weights that it kept.
        `accelerator_hours` are those of all stages, shared ones included.
        """
        stages = [(stage["kind"], self._points_of(stage["stage"])) for stage in self.trial_stages(study, trial)]
        trained = [rows for kind, rows in stages if kind != "decode"]
        decoded = [rows for kind, rows in stages if kind == "decode"]
        last = {row["metric"]: row["value"] for rows in (*trained[-1:], *decoded) for row in rows}
        if trained and trained[-1]:
            last["accelerator_hours"] = sum(rows[-1]["accelerator_seconds"] for _, rows in stages if rows) / 3600
        return last | {m.removeprefix("kept_"): v for m, v in last.items() if m.startswith("kept_dev_")}

    def inference_times(self, study: str) -> dict[str, list[InferenceTime]]:
        """stage -> what was measured of it, of all stages of the study's trials."""
        mine = sa.select(_trial_stages.c.stage).where(_trial_stages.c.study == study)
        found: defaultdict[str, list[InferenceTime]] = defaultdict(list)
        query = sa.select(_inference_times).where(_inference_times.c.stage.in_(mine))
        for row in self._database.read(query.order_by(_inference_times.c.device)):
            fields = dict(row._mapping)
            found[fields.pop("stage")].append(InferenceTime(**fields))
        return dict(found)

    def ranked(self, trials: Iterable[Trial], metric: str) -> list[Trial]:
        """The finished ones of the trials that have the metric, lowest final value first."""
        finals = [(self.final(t.study, t.trial).get(metric), t) for t in trials if t.status == "finished"]
        return [t for _, t in sorted(((v, t) for v, t in finals if v is not None), key=lambda f: (f[0], f[1].trial))]

    def mirrored(self, server: str, study: str, trial: str) -> dict[str, int]:
        """stage -> id of the last point that the mirror has."""
        mine = (_mirrored.c.server == server, _mirrored.c.study == study, _mirrored.c.trial == trial)
        return {row.stage: row.point for row in self._database.read(sa.select(_mirrored).where(*mine))}


def _values(report: Report) -> Iterator[tuple[str, float]]:
    """The metrics of a report, and what it says of the model's cost."""
    yield from report.metrics.items()
    for name in MEASURED:
        value = getattr(report, name)
        if value is not None:
            yield name, float(value)


def _version(db: sa.Connection) -> int | None:
    """Of the schema; None when the tables are not there."""
    if not sa.inspect(db).has_table(_schema.name):
        return None
    version: int | None = db.scalar(sa.select(_schema.c.version))
    return version


def _make_tables(db: sa.Connection) -> None:
    """Make the tables, or bring those of an earlier version up to this one: all of it, or nothing."""
    if db.dialect.name == "sqlite":
        db.exec_driver_sql("BEGIN IMMEDIATE")  # Python's driver begins no transaction for changes of tables
    one_at_a_time(db)
    version = _version(db)
    if version is not None and not 1 <= version <= SCHEMA_VERSION:
        name = database_name(db.engine.url)
        fix = "update the program" if version > SCHEMA_VERSION else "restore it from a copy"
        raise LedgerError(f"{name} has schema version {version}; this program reads {SCHEMA_VERSION}; {fix}")
    _metadata.create_all(db)
    if version == 1:
        db.execute(sa.text("ALTER TABLE studies ADD COLUMN ended_at FLOAT"))
        db.execute(sa.text("ALTER TABLE trials ADD COLUMN sampler_state JSON"))
    if "ended_at" not in {column["name"] for column in sa.inspect(db).get_columns(_runs.name)}:
        db.execute(sa.text("ALTER TABLE runs ADD COLUMN ended_at FLOAT"))
    if "device" not in {column["name"] for column in sa.inspect(db).get_columns(_points.name)}:
        db.execute(sa.text("ALTER TABLE points ADD COLUMN device VARCHAR"))
    if version is None:
        db.execute(sa.insert(_schema).values(version=SCHEMA_VERSION))
    else:
        db.execute(sa.update(_schema).values(version=SCHEMA_VERSION))


def _remove_left_over(storage: Path, path: Path) -> None:
    """Remove what processes left that were killed while they made a new ledger."""
    for file in storage.glob(".ledger-*"):
        with contextlib.suppress(FileNotFoundError):
            if file.samefile(path) or time.time() - file.stat().st_mtime > LEFT_OVER_SECONDS:
                file.unlink()
