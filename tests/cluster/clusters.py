"""Ray clusters as users start them: by `ray start --head`, with a token, and listening on this machine's loopback."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.fake_nodes import NODE_TYPE_VARIABLE, FakeNodes
from tests.security.listeners import with_descendants

STARTS_SECONDS = 120
COMMAND_SECONDS = 120
BIN = Path(sys.executable).parent  # of `ray` and of the `python` that jobs name


ROOT = Path(__file__).parents[2]
HEAD_TYPE = "ray.head.default"
HEAD_ID = f"{0:05}".rjust(56, "f")  # that Ray gives the head of fake nodes
WATCH = """
import json, sys, time
from ray._raylet import GcsClient
from ray.core.generated.gcs_pb2 import GcsNodeInfo

gcs = GcsClient(sys.argv[1])
while True:
    alive = [node for node in gcs.get_all_node_info().values() if node.state == GcsNodeInfo.ALIVE]
    print(json.dumps([node.node_type_name for node in alive if not node.is_head_node]), flush=True)
    time.sleep(0.3)
"""


class HeadError(RuntimeError):
    """The cluster's head does not come up."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Head:
    """The head of a new cluster, and all its nodes, as children of `ray start --block`."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        """`arguments` are those of `ray start`; `environment` is that of all its processes, and so of jobs."""
        # Not below pytest's folder: the paths of Ray's sockets would be too long.
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))
        self.address, dashboard = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PATH": os.pathsep.join([str(BIN), os.environ["PATH"]]),
            "HOME": str(self.folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_API_SERVER_ADDRESS": f"http://{dashboard}",  # for `ray job`
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # see cluster/connect.py
            "RAY_DISABLE_MEMORY_MONITOR": "1",
            **environment,
        }
        self._commands: list[subprocess.Popen[str]] = []
        self._log = self.folder / "ray-start.log"
        command = [
            *("ray", "start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--port", _port(self.address)),
            *("--dashboard-port", _port(dashboard), "--dashboard-agent-listen-port", str(free_port())),
            *("--ray-client-server-port", str(free_port()), "--temp-dir", str(self.folder)),
            *self.more_arguments(),
            *arguments,
        ]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        self.environment["RAY_ADDRESS"] = self.address

    def more_arguments(self) -> Sequence[str]:
        """What a kind of cluster adds to those of `ray start`."""
        return ()

    def wait_for(self, *command: str) -> None:
        """Until the command succeeds. Raises HeadError."""
        deadline = time.monotonic() + STARTS_SECONDS
        while self.run(*command)[0]:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise HeadError(self._log.read_text())
            time.sleep(0.2)

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A command of a user of the cluster, which ends with it at the latest."""
        process = subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._commands.append(process)
        return process

    def run(self, *command: str) -> tuple[int, str]:
        """Its exit code and what it prints."""
        process = self.start(*command)
        output, _ = process.communicate(timeout=COMMAND_SECONDS)
        return process.returncode, output

    def end(self) -> None:
        """The cluster, at once: `ray stop` would end every Ray of this machine."""
        running = [process for process in (*self._commands, self._process) if process.poll() is None]
        for pid in [pid for process in running for pid in with_descendants(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in running:
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class AutoscalingHead(Head):
    """A head without CPUs, with Ray's fake nodes: each is a raylet on this machine.

    The settings are where Ray's cluster launcher leaves them on a head node, and where `cluster.nodes` looks for them.
    """

    IDLE_MINUTES = 0.1

    def __init__(self, node_types: Mapping[str, tuple[Mapping[str, float], int]], *, version: int = 1) -> None:
        """`node_types`: name -> (resources, most nodes of it). `version` of Ray's autoscaler."""
        self._node_types = node_types
        environment = {
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "PYTHONPATH": str(ROOT),  # where the autoscaler finds the fake nodes
        }
        if version == 2:  # the last two as Ray's launcher of clusters gives them to a head
            environment |= {"RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD_ID}
            environment[NODE_TYPE_VARIABLE] = HEAD_TYPE
        super().__init__("--num-cpus", "0", "--num-gpus", "0", "--include-dashboard", "false", **environment)

    def more_arguments(self) -> Sequence[str]:
        path = self.folder / "ray_bootstrap_config.yaml"
        path.write_text(yaml.safe_dump(self._settings()))
        return "--autoscaling-config", str(path)

    def _settings(self) -> dict[str, Any]:
        head = {HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}}
        types = {
            name: {"resources": {**resources, "object_store_memory": 10**8}, "node_config": {}, "max_workers": most}
            for name, (resources, most) in self._node_types.items()
        }
        lists = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands")
        more = ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
        return {
            "cluster_name": "fake",
            "max_workers": sum(most for _, most in self._node_types.values()),
            "idle_timeout_minutes": self.IDLE_MINUTES,
            "upscaling_speed": 1.0,
            "provider": {
                "type": "external",
                "module": f"{FakeNodes.__module__}.{FakeNodes.__name__}",
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "gcs_address": self.address,
                "head_node_id": HEAD_ID,
            },
            "head_node_type": HEAD_TYPE,
            "available_node_types": head | types,
            "file_mounts_sync_continuously": False,
            **{name: {} for name in ("auth", "docker", "file_mounts")},
            **{name: [] for name in (*lists, *more)},
        }


class Watch:
    """The types of the nodes that are there besides the head, as another process sees them all the time."""

    def __init__(self, head: Head) -> None:
        self._process = head.start(sys.executable, "-c", WATCH, head.address)
        self.seen: list[Counter[str]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def now(self) -> Counter[str]:
        return self.seen[-1] if self.seen else Counter()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.seen.append(Counter(json.loads(line)))


def _port(address: str) -> str:
    return address.rpartition(":")[2]
