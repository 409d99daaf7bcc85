"""A database of SQLite or PostgreSQL: short transactions, and a sentence that says what is wrong with it."""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from study.spec import without_passwords

PATIENCE_SECONDS = 120.0  # for a database server that is away, such as while it is started again
RETRY_SECONDS = 0.5
WARN_SECONDS = 5.0

_LOCK = 7_305_808_869  # PostgreSQL's advisory lock of those who write points, or make or update the tables
_LIBPQ = {"connect_timeout": "10", "tcp_user_timeout": "30000"}  # seconds; milliseconds
_DISK_FULL = "53100"  # SQLSTATE

_AGAIN = "then run the same command again: nothing that was recorded is lost"
_TROUBLES = {  # SQLite's name of an error -> what it is, and what to do
    "SQLITE_FULL": f"the disk is full; free some space, {_AGAIN}",
    "SQLITE_READONLY": f"it may not be written; give this user the right to write it and its folder, {_AGAIN}",
    "SQLITE_CANTOPEN": "it cannot be opened; let this user read and write it and its folder",
    "SQLITE_PERM": "it cannot be opened; let this user read and write it and its folder",
    "SQLITE_NOTADB": "it is not an SQLite database; restore it from a copy, or name another storage folder",
    "SQLITE_CORRUPT": "it is damaged; restore it from a copy, or save what is readable with sqlite3's .recover",
    "SQLITE_BUSY": f"another process keeps it locked; end that process, {_AGAIN}",
    "SQLITE_IOERR": f"it cannot be read or written; see to the disk and its free space, {_AGAIN}",
}

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class _JsonText(sa.types.TypeDecorator[Any]):
    """JSON as text, for PostgreSQL: its own types refuse the numbers that are not finite."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str:
        return json.dumps(value)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        return None if value is None else json.loads(value)


JSON = sa.JSON().with_variant(_JsonText(), "postgresql")


class LedgerError(RuntimeError):
    """The ledger cannot be used; the message says why and what to do."""


class Database:
    """The database of a URL. Raises LedgerError, here and wherever the database refuses."""

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self._answered = False  # a server that never did is not waited for

    @property
    def name(self) -> str:
        """The path of an SQLite file; otherwise the URL without a password."""
        return database_name(self.engine.url)

    def insert_once(self, table: sa.Table) -> Any:
        """INSERT that does nothing where the key exists."""
        dialect: Any = postgresql if self.engine.dialect.name == "postgresql" else sqlite
        return dialect.insert(table).on_conflict_do_nothing()

    def read(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        """All rows at once: nothing stays open while the caller thinks."""
        return self.run(lambda db: db.execute(query).all())

    def write(self, *statements: sa.Executable | tuple[sa.Executable, Any]) -> None:
        """All in one transaction; with a statement may go what it inserts, which saves compiling it each time."""

        def execute(db: sa.Connection) -> None:
            for statement in statements:
                db.execute(*statement) if isinstance(statement, tuple) else db.execute(statement)

        self.run(execute)

    def run(self, action: Callable[[sa.Connection], Result]) -> Result:
        """What the action returns, in a transaction. While a server is away it is tried again, for some minutes."""
        began, told = time.monotonic(), False
        while True:
            try:
                with self.engine.begin() as db:
                    result = action(db)
                self._answered = True
                return result
            except sa.exc.IntegrityError:
                raise  # a fault of this program
            except (sa.exc.DBAPIError, sqlite3.Error) as error:
                waited = time.monotonic() - began
                if not self._passes(error) or waited > PATIENCE_SECONDS:
                    raise LedgerError(f"{self.name}: {_sentence(error)}") from error
                if waited > WARN_SECONDS and not told:
                    told = True
                    logger.warning("%s does not answer; trying again for %.0f s", self.name, PATIENCE_SECONDS - waited)
            time.sleep(RETRY_SECONDS)

    def _passes(self, error: Exception) -> bool:
        """Whether it is a server that is away for a moment, in the middle of the work."""
        if self.engine.dialect.name != "postgresql" or not self._answered:
            return False
        lost = isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated
        return lost or (isinstance(error, sa.exc.OperationalError) and _state(error) != _DISK_FULL)


def one_at_a_time(db: sa.Connection) -> None:
    """Wait until no other transaction on PostgreSQL has come here and not ended. SQLite has one writer by itself."""
    if db.dialect.name == "postgresql":
        db.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))


def make_file(url: str) -> None:
    """Make the file of an SQLite URL, if it is not there, with the rights of the umask: SQLite lets no group write."""
    parts = sa.make_url(url) if url.startswith("sqlite:") else None
    if parts and "uri" not in parts.query and parts.database not in (None, ":memory:"):
        with contextlib.suppress(OSError):  # SQLite will say it in its own words
            Path(str(parts.database)).open("xb").close()


def _engine(url: str) -> sa.Engine:
    """Raises LedgerError for a URL that is none, or is of another kind of database."""
    try:
        parts = sa.make_url(url)
        if (kind := parts.get_backend_name()) not in ("sqlite", "postgresql"):
            raise LedgerError(f"{database_name(parts)}: a ledger is kept in sqlite or postgresql, not in {kind}")
        engine = sa.create_engine(parts, connect_args={} if kind == "sqlite" else {**_LIBPQ, **parts.query})
    except sa.exc.ArgumentError as error:
        raise LedgerError(
            f"{without_passwords(url)}: not the URL of a ledger, such as postgresql+psycopg://user:password@host/name"
        ) from error
    except ModuleNotFoundError as error:
        raise LedgerError(f"{database_name(parts)}: {error}; pip install 'asr-scaling-studies[postgresql]'") from error
    if kind == "sqlite":
        make_file(url)
        sa.event.listen(engine, "connect", _configure_sqlite)
    return engine


def database_name(url: sa.URL) -> str:
    if url.get_backend_name() != "sqlite":
        return without_passwords(str(url))
    name = str(url.database)
    return unquote(name.removeprefix("file:")) if "uri" in url.query else name


def sqlite_url(path: Path) -> str:
    """Of an SQLite file. What means something in a URL is quoted, and no more, for MLflow takes the rest as a path."""
    return f"sqlite:///{str(path).replace('%', '%25').replace('?', '%3F')}"


def read_only_url(path: Path) -> str:
    """Of an SQLite file that nobody writes, in a folder that this user may not write: SQLite then makes no files."""
    return str(sa.URL.create("sqlite", database=f"file:{quote(str(path))}", query={"immutable": "1", "uri": "true"}))


def _sentence(error: Exception) -> str:
    """What is wrong with the database, and what to do."""
    cause = getattr(error, "orig", None) or error
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorname", "")
        known = next((text for name, text in _TROUBLES.items() if code.startswith(name)), None)
        return known or f"{cause} ({code}); see to the file, {_AGAIN}"
    if _state(error) == _DISK_FULL:
        return f"the server's {_TROUBLES['SQLITE_FULL']}"
    reason = " ".join(without_passwords(str(cause)).split())
    return f"{reason}; see that the server runs and lets this user in, {_AGAIN}"


def _state(error: Exception) -> str | None:
    """PostgreSQL's SQLSTATE, None when the server did not come to say one."""
    return getattr(getattr(error, "orig", None), "sqlstate", None)


def _configure_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA busy_timeout=30000")  # first: the next one waits for other processes too
    cursor.execute("PRAGMA journal_mode=WAL")  # readers and the writer do not block each other
    cursor.execute("PRAGMA synchronous=NORMAL")  # a crash of the machine may lose the last moment, never consistency
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
