"""Reaching a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

# Read by Ray Train where a run of it starts, on a cluster that knows nothing of this process's environment.
TRAIN_SETTINGS = {
    "RAY_TRAIN_ENABLE_V2": "1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor for each group; trainables/ray_train.py has one for all
}

# Read by Ray when it is imported or started. Metrics and dashboards of a cluster that lives as long as one command
# only cost processes, and usage reports would leave the machine.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    **TRAIN_SETTINGS,
    "RAY_DEDUP_LOGS": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

# Of a cluster on this machine: nobody else may use it. Ray takes 127.0.0.1 for the node's address, and so listens there
# alone, where it is told that it forms no cluster of several machines; that setting has its name from the systems where
# this is the default. gloo and nccl, too, take no other interface.
_LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
}

_CREDENTIALS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}

# One unit of it exists on the node that runs the cluster's head, whatever else that node offers. Light drivers ask for
# a sliver: they need no CPU, fit on a head without CPUs, and never compete with training.
HEAD_SLIVER = {"node:__internal_head__": 0.0001}

REACH_SECONDS = 10


class NoClusterError(RuntimeError):
    """No cluster answers at the address that is given."""


@contextmanager
def connect() -> Iterator[None]:
    """Join the cluster at $RAY_ADDRESS, or start one on this machine that ends with this process.

    The one on this machine listens on the loopback interface, and asks for a random token that only this process and
    those it starts have (unless RAY_AUTH_TOKEN gives another one, or RAY_AUTH_MODE=disabled gives it up). It must be
    the first use of Ray in the process. Raises NoClusterError when none can be joined at $RAY_ADDRESS.
    """
    address = os.environ.get("RAY_ADDRESS")
    # In the environment, which other users of the machine cannot read, and never in a file, as Ray's own token is.
    private = {} if address else {**_LOOPBACK, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for name, value in {**_QUIET, **private}.items():
        os.environ.setdefault(name, value)
    import ray
    import ray._private.worker
    from ray.tune.execution import class_cache

    # Tune puts these into the command lines of its processes, which everybody sees. Nothing here needs them.
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(_CREDENTIALS)
    # Warnings of the raylet reach the driver's output past every public switch; what matters of them comes back as the
    # cause of a failure.
    ray._private.worker._worker_logs_enabled = False
    if address:
        _refuse_dead(address)
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            **({} if address else {"include_dashboard": False}),
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        if not address:
            raise
        raise NoClusterError(
            f"RAY_ADDRESS={address}: Ray cannot join a cluster there ({str(error).strip().splitlines()[0]}); it must "
            "be HOST:PORT of a head with the same versions of Ray and Python, and a cluster with token authentication "
            "needs RAY_AUTH_MODE=token and its token here, too"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _refuse_dead(address: str) -> None:
    """Ray would try for minutes to reach what is not there."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
        except OSError as error:
            raise NoClusterError(
                f"RAY_ADDRESS={address}: no cluster answers there ({error}); start it, or unset RAY_ADDRESS to have "
                "one on this machine"
            ) from error
