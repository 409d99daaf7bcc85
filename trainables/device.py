"""The name of what a stage runs on."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch


@functools.cache
def hardware_name(device: torch.device) -> str:
    """Such as `NVIDIA H200`; without an accelerator that of the processor, such as `AMD EPYC 7763`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [line for line in _cpu_info() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
