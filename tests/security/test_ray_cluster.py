"""The cluster that a command starts on its own machine is nobody else's, and a study leaves no secret behind."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import small_trial, spanish_rows, write_corpus
from tests.security.listeners import LOOPBACK, listening, with_descendants
from tests.study.test_end_to_end import write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.ray]

TIMEOUT_SECONDS = 120
HOLD = """
import os, sys
from cluster.connect import connect

with connect():
    import ray

    seen = ray.get(ray.remote(lambda: os.environ["RAY_AUTH_TOKEN"]).remote())
    session = ray._private.worker._global_node.get_session_dir_path()
    print(ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"], seen, session, flush=True)
    sys.stdin.read()
"""
ASK = """
import sys
from ray._raylet import GcsClient

print(GcsClient(sys.argv[1]).internal_kv_keys(b"", None, timeout=10))
"""


@dataclass(frozen=True)
class Cluster:
    """One that `connect` has started in another process."""

    pid: int
    address: str
    token: str
    token_of_a_task: str
    session: Path


def without_ray(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | more


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=without_ray()
    )
    assert holder.stdin
    assert holder.stdout
    address, token, seen, session = holder.stdout.readline().split()
    yield Cluster(holder.pid, address, token, seen, Path(session))
    holder.stdin.close()
    holder.wait(TIMEOUT_SECONDS)


def ask(cluster: Cluster, **environment: str) -> subprocess.CompletedProcess[str]:
    """What another process of this machine gets to know of the cluster."""
    return subprocess.run(
        [sys.executable, "-c", ASK, cluster.address],
        env=without_ray(**environment),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def test_it_listens_on_the_loopback_interface_alone(cluster: Cluster) -> None:
    found = listening(with_descendants(cluster.pid))
    assert found
    assert found <= LOOPBACK


def test_its_tasks_have_the_token_and_no_command_line_and_no_file_shows_it(cluster: Cluster) -> None:
    assert cluster.token_of_a_task == cluster.token
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert cluster.token.encode() not in command.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
    files = [path for path in cluster.session.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if cluster.token.encode() in path.read_bytes()]


def test_only_who_has_the_token_is_answered(cluster: Cluster, tmp_path: Path) -> None:
    assert ask(cluster, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=cluster.token).returncode == 0
    without = ask(cluster, RAY_AUTH_MODE="disabled")
    another = ask(cluster, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    none_at_home = ask(cluster, HOME=str(tmp_path))
    for refused in (without, another, none_at_home):
        assert refused.returncode
        assert "AuthenticationError" in refused.stderr


def test_what_the_user_has_set_counts(tmp_path: Path) -> None:
    code = "import os; from cluster.connect import connect\nwith connect(): print(os.environ['RAY_AUTH_TOKEN'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=without_ray(RAY_AUTH_TOKEN="f" * 64),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.stdout.strip() == "f" * 64, done.stderr


@pytest.mark.long
def test_a_study_writes_no_secret_of_its_environment_and_its_sweep(tmp_path: Path) -> None:
    hidden = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY")
    secret = {name: secrets.token_hex(16) for name in (*hidden, "RAY_AUTH_TOKEN", "URL_PASSWORD", "QUERY_TOKEN")}
    environment = {name: secret[name] for name in (*hidden, "RAY_AUTH_TOKEN")}
    uri = f"http://me:{secret['URL_PASSWORD']}@127.0.0.1:9/?token={secret['QUERY_TOKEN']}"  # nothing listens there
    corpus = write_corpus(tmp_path / "corpus", spanish_rows(40))
    regime = {"kind": "supervised", "train": {"steps": 2, "batch_seconds": 6, "report_every": 1, "evaluate_every": 2}}
    sweep = write_sweep(
        tmp_path / "sweep.yaml",
        {"only": {"trial": small_trial(corpus, regime)}},
        search={"trials": 1, "metric": "dev_cer"},
        replication={"seeds": 0},
        mlflow={"tracking_uri": uri},
    )
    study = subprocess.Popen(
        [sys.executable, "-m", "study.run", str(sweep)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=without_ray(**environment),
    )
    commands: set[bytes] = set()
    while study.poll() is None:
        commands.update(map(command_line, with_descendants_alive(study.pid)))
        time.sleep(0.5)
    assert any(b"study.tracking" in command for command in commands)
    assert study.stdout
    output = study.stdout.read()
    assert study.returncode == 0, output
    results = tmp_path / "results"
    written = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    assert {"ledger.db", "report.html", "mirror.log"} <= {path.name for path in written}
    for name, value in secret.items():
        assert value not in output, name
        assert not [command for command in commands if value.encode() in command], name
        assert not [path for path, content in written.items() if value.encode() in content], name


def with_descendants_alive(pid: int) -> list[int]:
    try:
        return list(with_descendants(pid))
    except (FileNotFoundError, ProcessLookupError):  # one has ended meanwhile
        return [pid]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""
