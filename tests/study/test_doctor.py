"""`study doctor`, on a real cluster of a head without CPUs and two nodes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.connect import connect
from cluster.processes import on_nodes
from study.doctor import _use_storage
from tests.conftest import pretrain_finetune, small_trial, spanish_rows, write_corpus
from tests.study.conftest import Call
from tests.study.test_end_to_end import write_sweep

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
        for _ in range(2):
            cluster.add_node(num_cpus=1, num_gpus=0)
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    corpus = write_corpus(tmp_path / "corpus", spanish_rows(16))
    return write_sweep(tmp_path / "sweep.yaml", {"arm": {"trial": small_trial(corpus, pretrain_finetune())}})


def line(output: str, check: str) -> str:
    """The first line of the table about this check."""
    return next(text for text in output.splitlines() if re.search(rf"│ {check}", text))


def test_a_healthy_setup_passes_on_every_node_and_nothing_is_left_behind(
    cluster: Cluster, call: Call, sweep: Path
) -> None:
    code, output, _ = call("doctor", sweep)
    assert code == 0, output
    assert "3 node(s), 2 CPUs, 0 GPUs" in line(output, "Ray")
    assert "2 of 1 worker(s) of 1 CPU(s) each at a time" in line(output, "worker groups")
    for check in ("versions", "storage", "corpora, code", "clock"):
        assert len(re.findall(rf"│ ok │ {check} \w{{8}}", output)) == 3, output
    assert {path.name.partition("-")[0] for path in (sweep.parent / "results").iterdir()} == {"ledger.db"}


def test_what_is_missing_is_told_and_the_rest_is_looked_at_all_the_same(
    cluster: Cluster, call: Call, sweep: Path
) -> None:
    """MLflow being gone is no reason not to run: the mirror catches up."""
    code, output, _ = call("doctor", sweep, "resources.workers=3", "mlflow.tracking_uri=http://127.0.0.1:9")
    assert code == 2
    assert line(output, "worker groups").startswith("│ NO │")
    assert "a worker group needs 3 worker(s)" in line(output, "worker groups")
    assert line(output, "MLflow").startswith("│ !  │")
    assert line(output, "disk").startswith("│ ok │")


def test_a_node_that_sees_another_folder_is_told(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("another token")
    with connect():
        assert len(ray.nodes()) == 3
        found = on_nodes(_use_storage, tmp_path, "token")
    assert set(found.values()) == {"another file is there; storage must be the same on every node"}


def test_without_a_cluster_it_says_so(call: Call, sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    code, output, _ = call("doctor", sweep)
    assert code == 2
    assert "no cluster answers there" in output
