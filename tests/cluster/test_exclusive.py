"""A whole accelerator: waited for, held alone, and given back. On a real Ray cluster of one node with a made-up GPU."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
import ray

from cluster.exclusive import LostError, NotFreeError, whole_accelerator

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@ray.remote(num_cpus=1)
def hold_a_cpu(seconds: float) -> float:
    time.sleep(seconds)
    return time.time()


@ray.remote(num_cpus=0, num_gpus=0.5)
class HalfAGpu:
    def ready(self) -> None:
        """To see that it is there."""


def test_it_waits_until_nothing_else_holds_a_part_and_lets_nothing_else_in() -> None:
    before = hold_a_cpu.remote(1.5)
    time.sleep(0.5)
    with whole_accelerator(gpu=False, timeout_seconds=60) as accelerator:
        began = accelerator.run(time.time)
        beside = hold_a_cpu.remote(0.0)
        time.sleep(1.0)
        ended = accelerator.run(time.time)
    assert ray.get(before) <= began < ended <= ray.get(beside)


def test_a_gpu_of_which_others_hold_a_part_is_not_whole() -> None:
    other = HalfAGpu.remote()
    ray.get(other.ready.remote())
    refused = pytest.raises(NotFreeError, match=r"no whole GPU was free within 0\.05 min")
    with refused, whole_accelerator(gpu=True, timeout_seconds=3):
        raise AssertionError("it is not free")
    ray.kill(other)
    with whole_accelerator(gpu=True, timeout_seconds=60) as accelerator:
        assert accelerator.run(ray.get_gpu_ids) == [0]


def test_it_runs_all_in_one_process_and_raises_what_is_raised_there() -> None:
    with whole_accelerator(gpu=True, timeout_seconds=60) as accelerator:
        pid = accelerator.run(os.getpid)
        assert pid != os.getpid()
        with pytest.raises(ValueError, match="invalid literal"):
            accelerator.run(int, "many")
        assert accelerator.run(os.getpid) == pid
        with pytest.raises(LostError, match="the process that held the accelerator died"):
            accelerator.run(os._exit, 1)
