"""What a process can know of `ray job submit` without importing Ray."""

from __future__ import annotations

import os


def inside_ray_job() -> bool:
    """Whether `ray job submit` started this process: then its working directory is a copy that goes away."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
