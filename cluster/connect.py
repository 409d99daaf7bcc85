"""Reaching a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

# Read by Ray when it is imported or started. Metrics and dashboards of a cluster that lives as long as one command
# only cost processes, and usage reports would leave the machine.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2": "1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

# One unit of it exists on the node that runs the cluster's head, whatever else that node offers. Light drivers ask for
# a sliver: they need no CPU, fit on a head without CPUs, and never compete with training.
HEAD_SLIVER = {"node:__internal_head__": 0.0001}

REACH_SECONDS = 10


class NoClusterError(RuntimeError):
    """No cluster answers at the address that is given."""


@contextmanager
def connect() -> Iterator[None]:
    """Join the cluster at $RAY_ADDRESS, or start one on this machine that ends with this process.

    Raises NoClusterError when none can be joined there.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray
    import ray._private.worker

    # Warnings of the raylet reach the driver's output past every public switch; what matters of them comes back as the
    # cause of a failure.
    ray._private.worker._worker_logs_enabled = False
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _refuse_dead(address)
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            **({} if address else {"include_dashboard": False}),
        )
    except ConnectionError as error:
        raise NoClusterError(
            f"RAY_ADDRESS={address}: Ray cannot join a cluster there ({str(error).strip().splitlines()[0]}); a cluster "
            "with token authentication needs RAY_AUTH_MODE=token and its token here, too"
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
