"""A study on a cluster that begins with a head without CPUs, and gets and gives back nodes with Ray's autoscaler."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from study.ledger import Ledger
from tests.cluster import study_on_cpus
from tests.cluster.clusters import AutoscalingHead, Watch
from tests.cluster.stages_on_cpus import Ran, ran
from tests.conftest import pretrain_finetune, small_trial
from tests.study.test_end_to_end import write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.long]

TIMEOUT_SECONDS = 300
NODE_TYPES = {"cpu": ({"CPU": 2}, 2), "gpu": ({"CPU": 2, "GPU": 1}, 1)}  # either one holds a stage that asks for 2 CPUs


@pytest.fixture(scope="module", params=[1, 2], ids="version {}".format)
def head(request: pytest.FixtureRequest) -> Iterator[AutoscalingHead]:
    """One of each version of Ray's autoscaler: that of a cluster of machines, and that of KubeRay."""
    head = AutoscalingHead(NODE_TYPES, version=request.param)
    try:
        head.wait_for(sys.executable, "-c", "import ray; ray.init('auto')")
        yield head
    finally:
        head.end()


@pytest.fixture
def nodes(head: AutoscalingHead) -> Iterator[Watch]:
    watch = Watch(head)
    yield watch
    watch.end()


def write(folder: Path, corpus: Path) -> Path:
    """Two trials: one that waits, and one whose second stage asks for a GPU."""
    regime = {"steps": 4, "batch_seconds": 6, "report_every": 1, "evaluate_every": 2}
    return write_sweep(
        folder / "sweep.yaml",
        {
            "waits": {"trial": small_trial(corpus, {"kind": "supervised", "train": regime})},
            "accelerated": {"trial": small_trial(corpus, pretrain_finetune())},
        },
        search={"trials": 1, "metric": "dev_cer", "sampler": {"kind": "random"}},
        replication={"seeds": 0},
        mlflow={"enabled": False},
        resources={
            "cpus_per_worker": 2,
            "stages": {"finetune": {"cpus_per_worker": 1, "gpus_per_worker": 1}},
            "idle_seconds": 1,
        },
    )


def wait_until(condition: Callable[[], bool], study: subprocess.Popen[str] | None = None) -> None:
    """Fails when the study, where one is given, ends first."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert study is None or study.poll() is None, study.communicate()[0]
        assert time.monotonic() < deadline, "the nodes did not come or go as they should"
        time.sleep(0.1)


def test_nodes_come_with_demand_of_the_type_that_a_stage_needs_and_go_without(
    head: AutoscalingHead, nodes: Watch, small_corpus: Path, tmp_path: Path
) -> None:
    storage = tmp_path / "results"
    wait_until(lambda: bool(nodes.seen))
    assert nodes.now() == Counter()
    sweep = write(tmp_path, small_corpus)
    study = head.start(sys.executable, "-m", study_on_cpus.__name__, str(sweep))
    wait_until(lambda: len(ran(storage)) == 2, study)
    assert nodes.now() == Counter(cpu=2), "two stages at a time, on the nodes without what they do not need"
    wait_until(lambda: nodes.now()["gpu"] == 1, study)
    wait_until(lambda: nodes.now() == Counter(cpu=1), study)  # the others have had no work for a while
    (storage / "go").touch()
    output, _ = study.communicate(timeout=TIMEOUT_SECONDS)
    assert study.returncode == 0, output
    wait_until(lambda: nodes.now() == Counter())
    *first, last = ran(storage)
    assert {(stage.kind, stage.node_type) for stage in first} == {("supervised", "cpu"), ("pretrain", "cpu")}
    assert last == Ran("finetune", "cuda", "gpu")
    assert {trial.status for trial in Ledger.in_folder(storage).trials("small")} == {"finished"}
    assert all(seen <= Counter(cpu=2, gpu=1) for seen in nodes.seen)


def test_what_no_node_type_holds_is_refused_before_anything_starts(
    head: AutoscalingHead, nodes: Watch, small_corpus: Path, tmp_path: Path
) -> None:
    too_large = "resources.stages.finetune.gpus_per_worker=2"
    code, output = head.run(sys.executable, "-m", "study.run", str(write(tmp_path, small_corpus)), too_large)
    assert code == 2, output
    assert "a worker group needs 1 worker(s) of 1 CPU(s) and 2 GPU(s) each, and the cluster holds 0" in output
    assert not any(nodes.seen)
