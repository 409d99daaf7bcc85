"""The record of truth: studies, trials, stages and curves, in a database that no crash can corrupt.

Everything else (MLflow, terminal, report, Optuna's state) is derived from it and can be rebuilt. Every write is one
transaction and keyed, so that doing it twice changes nothing.
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
from sqlalchemy.dialects import postgresql, sqlite

from trainables.stage import Report, Stage

SCHEMA_VERSION = 2

Status = Literal["unfinished", "finished", "failed", "stopped"]  # stopped: early, by comparison with others
Origin = Literal["search", "replication"]

MEASURED = ("parameters", "real_time_factor")  # fields of a report that are metrics here

_metadata = sa.MetaData()

_schema = sa.Table("schema", _metadata, sa.Column("version", sa.Integer, primary_key=True))
_studies = sa.Table(
    "studies",
    _metadata,
    sa.Column("study", sa.String, primary_key=True),
    sa.Column("spec", sa.JSON, nullable=False),  # of the latest run
    sa.Column("environment", sa.JSON, nullable=False),  # versions, data hashes
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
)
_trials = sa.Table(
    "trials",
    _metadata,
    sa.Column("study", sa.ForeignKey("studies.study"), primary_key=True),
    sa.Column("trial", sa.String, primary_key=True),
    sa.Column("arm", sa.String, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),  # within the arm, in the order of proposal
    sa.Column("origin", sa.String, nullable=False),
    sa.Column("grid", sa.JSON, nullable=False),  # the part of `point` that a grid fixed
    sa.Column("point", sa.JSON, nullable=False),  # searched path -> value
    sa.Column("config", sa.JSON, nullable=False),  # fully resolved
    sa.Column("seed", sa.Integer, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("cause", sa.String),  # of a failure, or of an early stop
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("ended_at", sa.Float),
    sa.Column("sampler_state", sa.JSON),  # what the sampler notes with a trial, such as its generation
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
    sa.UniqueConstraint("stage", "step", "metric"),
)
_evaluations = sa.Table(
    "evaluations",
    _metadata,  # what early stopping was told, in its order
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("study", sa.String, nullable=False),
    sa.Column("trial", sa.String, nullable=False),
    sa.Column("progress", sa.Float, nullable=False),
    sa.Column("objectives", sa.JSON, nullable=False),
    sa.UniqueConstraint("study", "trial", "progress"),
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


class LedgerError(RuntimeError):
    """The ledger cannot be used; the message says why and what to do."""


class Ledger:
    """Opens or creates the ledger of a database URL, such as `sqlite:////shared/results/ledger.db`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = sa.create_engine(url)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _configure_sqlite)
        with self._engine.begin() as db:
            # Not `create_all`: it looks first, and two processes may look at once.
            for table in _metadata.sorted_tables:
                db.execute(sa.schema.CreateTable(table, if_not_exists=True))
            version = db.scalar(sa.select(_schema.c.version))
            if version is None:
                db.execute(self._insert_once(_schema).values(version=SCHEMA_VERSION))
            elif version == 1:
                db.execute(sa.text("ALTER TABLE studies ADD COLUMN ended_at FLOAT"))
                db.execute(sa.text("ALTER TABLE trials ADD COLUMN sampler_state JSON"))
                db.execute(sa.update(_schema).values(version=SCHEMA_VERSION))
            elif version != SCHEMA_VERSION:
                raise LedgerError(f"{url} has schema version {version}; this program reads {SCHEMA_VERSION}")

    @classmethod
    def in_folder(cls, storage: Path) -> Ledger:
        """The ledger of a storage folder. Several processes may open a new one at the same time."""
        storage.mkdir(parents=True, exist_ok=True)
        path = storage / "ledger.db"
        if not path.exists():  # made beside, and put in its place when complete
            beside = storage / f".ledger-{uuid.uuid4().hex[:8]}.db"
            cls(f"sqlite:///{beside}").close()
            with contextlib.suppress(FileExistsError):
                os.link(beside, path)
            beside.unlink()
        return cls(f"sqlite:///{path}")

    def close(self) -> None:
        self._engine.dispose()

    # ---- writing -----------------------------------------------------------------------------------------------

    def open_study(self, study: str, spec: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
        """Record the study, or that it runs again. Returns the name of this run."""
        now, run = time.time(), uuid.uuid4().hex
        row = {"spec": dict(spec), "environment": dict(environment), "updated_at": now, "ended_at": None}
        with self._engine.begin() as db:
            db.execute(self._insert_once(_studies).values(study=study, created_at=now, **row))
            db.execute(sa.update(_studies).where(_studies.c.study == study).values(**row))
            spent = {"started_at": now, "seen_at": now, "accelerator_seconds": 0.0, "cost": 0.0}
            db.execute(sa.insert(_runs).values(run=run, study=study, **spent))
        return run

    def end_study(self, study: str) -> None:
        """Record that the study has nothing more to run."""
        with self._engine.begin() as db:
            db.execute(sa.update(_studies).where(_studies.c.study == study).values(ended_at=time.time()))

    def set_spent(self, run: str, accelerator_seconds: float, cost: float) -> None:
        """Record what the run took so far."""
        row = {"seen_at": time.time(), "accelerator_seconds": accelerator_seconds, "cost": cost}
        with self._engine.begin() as db:
            db.execute(sa.update(_runs).where(_runs.c.run == run).values(**row))

    def add_evaluation(self, study: str, evaluation: Evaluation) -> None:
        """Record what early stopping is told, before it is told. What is there already stays as it is."""
        with self._engine.begin() as db:
            db.execute(self._insert_once(_evaluations), {"study": study, **asdict(evaluation)})

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
        now = time.time()
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
        with self._engine.begin() as db:
            db.execute(self._insert_once(_trials), row)
            db.execute(sa.delete(_trial_stages).where(_trial_stages.c.study == study, _trial_stages.c.trial == trial))
            db.execute(self._insert_once(_stages), known)
            db.execute(sa.insert(_trial_stages), mine)

    def append(self, stage: str, reports: Iterable[Report]) -> None:
        """Add reports to the curve of a stage. What is there already stays as it is."""
        rows = [
            {"stage": stage, "metric": metric, "value": value, **cost}
            for report in reports
            for cost in [report.model_dump(exclude={"metrics", *MEASURED})]
            for metric, value in _values(report)
        ]
        if rows:
            with self._engine.begin() as db:
                db.execute(self._insert_once(_points), rows)

    def end_trial(self, study: str, trial: str, status: Status, cause: str | None = None) -> bool:
        """Record how an unfinished trial ended. The first end counts; True when this was it."""
        with self._engine.begin() as db:
            ended = db.execute(
                sa.update(_trials)
                .where(_trials.c.study == study, _trials.c.trial == trial, _trials.c.status == "unfinished")
                .values(status=status, cause=cause, ended_at=time.time())
            )
            return bool(ended.rowcount)

    def reopen_failed(self, study: str) -> None:
        """Make failed trials run again."""
        with self._engine.begin() as db:
            db.execute(
                sa.update(_trials)
                .where(_trials.c.study == study, _trials.c.status == "failed")
                .values(status="unfinished", cause=None, ended_at=None)
            )

    def set_mirrored(self, server: str, study: str, trial: str, stage: str, point: int) -> None:
        """Record that the mirror has all points of the trial's stage up to this id."""
        key = {"server": server, "study": study, "trial": trial, "stage": stage}
        with self._engine.begin() as db:
            db.execute(self._insert_once(_mirrored).values(**key, point=point))
            conditions = [_mirrored.c[name] == value for name, value in key.items()]
            db.execute(sa.update(_mirrored).where(*conditions).values(point=point))

    def _insert_once(self, table: sa.Table) -> Any:
        """INSERT that does nothing where the key exists."""
        dialect: Any = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        return dialect.insert(table).on_conflict_do_nothing()

    # ---- reading -----------------------------------------------------------------------------------------------

    def studies(self) -> list[dict[str, Any]]:
        with self._engine.connect() as db:
            rows = db.execute(sa.select(_studies).order_by(_studies.c.created_at)).mappings()
            return [dict(row) for row in rows]

    def study(self, study: str) -> dict[str, Any]:
        """Raises LedgerError, naming the known studies, when there is no such study."""
        known = {row["study"]: row for row in self.studies()}
        if study not in known:
            raise LedgerError(f"no study {study!r} in {self.url}; known: {', '.join(sorted(known)) or 'none'}")
        return known[study]

    def is_over(self, study: str) -> bool:
        """Whether the study had nothing more to run when it ended."""
        return self.study(study)["ended_at"] is not None

    def spent(self, study: str) -> Spent:
        """What all runs of the study took, as far as each was seen."""
        run = _runs.c
        sums = (sa.func.sum(run.seen_at - run.started_at), sa.func.sum(run.accelerator_seconds), sa.func.sum(run.cost))
        with self._engine.connect() as db:
            found = db.execute(sa.select(*sums).where(run.study == study)).one()
        return Spent(*(float(value or 0.0) for value in found))

    def evaluations(self, study: str) -> list[Evaluation]:
        """What early stopping was told, in its order."""
        with self._engine.connect() as db:
            query = sa.select(_evaluations).where(_evaluations.c.study == study).order_by(_evaluations.c.id)
            return [Evaluation(row.trial, row.progress, row.objectives) for row in db.execute(query)]

    def count(self, study: str) -> dict[Status, int]:
        """Number of trials of each status."""
        with self._engine.connect() as db:
            query = sa.select(_trials.c.status, sa.func.count()).where(_trials.c.study == study)
            found: dict[Status, int] = dict.fromkeys(get_args(Status), 0)
            return found | {row.status: row[1] for row in db.execute(query.group_by(_trials.c.status))}

    def trial(self, study: str, trial: str) -> Trial:
        with self._engine.connect() as db:
            query = sa.select(_trials).where(_trials.c.study == study, _trials.c.trial == trial)
            return Trial(**db.execute(query).mappings().one())

    def trials(self, study: str) -> list[Trial]:
        with self._engine.connect() as db:
            query = sa.select(_trials).where(_trials.c.study == study)
            rows = db.execute(query.order_by(_trials.c.started_at, _trials.c.trial)).mappings()
            return [Trial(**row) for row in rows]

    def trial_stages(self, study: str, trial: str) -> list[dict[str, Any]]:
        """fingerprint (`stage`), `kind`, `name` and `steps` of the trial's stages, in order."""
        with self._engine.connect() as db:
            rows = db.execute(
                sa.select(_stages)
                .join(_trial_stages, _trial_stages.c.stage == _stages.c.stage)
                .where(_trial_stages.c.study == study, _trial_stages.c.trial == trial)
                .order_by(_trial_stages.c.position)
            ).mappings()
            return [dict(row) for row in rows]

    def contents(self, study: str) -> dict[str, tuple[str, ...]]:
        """trial -> the fingerprints of its stages, in order."""
        stage = _trial_stages.c
        found: defaultdict[str, list[str]] = defaultdict(list)
        with self._engine.connect() as db:
            query = sa.select(stage.trial, stage.stage).where(stage.study == study)
            for row in db.execute(query.order_by(stage.trial, stage.position)):
                found[row.trial].append(row.stage)
        return {trial: tuple(stages) for trial, stages in found.items()}

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
        with self._engine.connect() as db:
            query = sa.select(_points).where(_points.c.stage == stage).order_by(_points.c.step, _points.c.id)
            return [dict(row) for row in db.execute(query).mappings()]

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

    def ranked(self, trials: Iterable[Trial], metric: str) -> list[Trial]:
        """The finished ones of the trials that have the metric, lowest final value first."""
        finals = [(self.final(t.study, t.trial).get(metric), t) for t in trials if t.status == "finished"]
        return [t for _, t in sorted(((v, t) for v, t in finals if v is not None), key=lambda f: (f[0], f[1].trial))]

    def mirrored(self, server: str, study: str, trial: str) -> dict[str, int]:
        """stage -> id of the last point that the mirror has."""
        with self._engine.connect() as db:
            query = sa.select(_mirrored.c.stage, _mirrored.c.point).where(
                _mirrored.c.server == server, _mirrored.c.study == study, _mirrored.c.trial == trial
            )
            return {row.stage: row.point for row in db.execute(query)}


def _values(report: Report) -> Iterator[tuple[str, float]]:
    """The metrics of a report, and what it says of the model's cost."""
    yield from report.metrics.items()
    for name in MEASURED:
        value = getattr(report, name)
        if value is not None:
            yield name, float(value)


def _configure_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout=30000")  # first: the next one waits for other processes too
    cursor.execute("PRAGMA journal_mode=WAL")  # readers and the writer do not block each other
    cursor.execute("PRAGMA synchronous=NORMAL")  # a crash of the machine may lose the last moment, never consistency
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
