"""`study doctor SWEEP`: whether everything that a study needs is there, on every node, before money is spent.

Nothing is trained. Each check says what it saw, and what to do where it failed.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.connect import NoClusterError, connect
from cluster.nodes import (
    GroupSize,
    InfeasibleError,
    groups_that_fit,
    possible_nodes,
    present_nodes,
    refuse_infeasible,
    this_node_id,
)
from cluster.processes import on_nodes, on_nodes_with_gpus
from study.database import LedgerError
from study.execution import group_size
from study.ledger import Ledger
from study.plan import make_plan
from study.provenance import PACKAGES
from study.spec import StudySpec, read_spec, without_passwords
from study.terminal import bytes_text, make_console
from study.tracking import reach, tracking_uri
from trainables.object_storage import storage_problem
from trainables.trial import TrialConfig, stages_of

SKEW_SECONDS = 5.0  # between clocks, from which on times in reports and logs mislead
GPU_SECONDS = 60.0  # until GPUs that others use are not waited for any longer


@dataclass(frozen=True)
class Finding:
    """What a check saw. `ok` None: it is no error, and worth knowing."""

    check: str
    ok: bool | None
    saw: str


def run_doctor(options: argparse.Namespace) -> int:
    """The command. Its exit code is 2 when the study could not run as it should."""
    spec = read_spec(options.sweep, options.overrides)
    console, findings = make_console(), list[Finding]()
    for check in (_ledger, _mlflow, _disk):
        findings += check(spec)
    try:
        with connect():
            for check in (_groups, _versions, _storage, _stages, _clocks, _gpus):
                findings += check(spec)
    except NoClusterError as error:
        findings.append(Finding("Ray", False, str(error)))
    _show(console, findings)
    return 2 if any(finding.ok is False for finding in findings) else 0


def _show(console: Console, findings: list[Finding]) -> None:
    table = Table("", "check", "what it saw")
    for finding in findings:
        mark, style = {True: ("ok", "green"), False: ("NO", "red"), None: ("!", "yellow")}[finding.ok]
        table.add_row(mark, finding.check, finding.saw, style=style)
    console.print(table)


# ---- on this machine ---------------------------------------------------------------------------------------------


def _ledger(spec: StudySpec) -> Iterator[Finding]:
    try:
        ledger = Ledger.of(spec.storage, spec.ledger)
        names = [row["study"] for row in ledger.studies()]
    except (LedgerError, OSError) as error:
        yield Finding("ledger", False, str(error))
        return
    yield Finding("ledger", True, f"{without_passwords(ledger.url)}: {len(names)} studies")


def _mlflow(spec: StudySpec) -> Iterator[Finding]:
    if not spec.mlflow.enabled:
        yield Finding("MLflow", None, "the sweep has it switched off")
        return
    uri = tracking_uri(spec.storage, spec.mlflow.tracking_uri)
    if uri.startswith("sqlite:"):
        yield Finding("MLflow", True, f"{uri}: no server is needed")
        return
    problem = reach(uri)
    # The study would run without it, and the mirror catch up later.
    yield Finding("MLflow", None if problem else True, f"{without_passwords(uri)}: {problem or 'answers'}")


def _disk(spec: StudySpec) -> Iterator[Finding]:
    spec.storage.mkdir(parents=True, exist_ok=True)
    needed, free = make_plan(spec).disk, shutil.disk_usage(spec.storage).free
    most = needed.kept_bytes + needed.training_bytes
    saw = f"{bytes_text(free)} free, and the study takes {bytes_text(most)} at most"
    yield Finding("disk", free > most, saw)


# ---- on the cluster ----------------------------------------------------------------------------------------------


def _groups(spec: StudySpec) -> Iterator[Finding]:
    nodes = possible_nodes(present_nodes())
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    yield Finding("Ray", True, f"{len(nodes)} node(s), {cpus:g} CPUs, {gpus:g} GPUs, those that may be added included")
    for size in _sizes(spec):
        try:
            refuse_infeasible(size)
        except InfeasibleError as error:
            yield Finding("worker groups", False, str(error))
        else:
            yield Finding("worker groups", True, f"{groups_that_fit(size, nodes)} of {size} at a time")


def _sizes(spec: StudySpec) -> list[GroupSize]:
    kinds = [stage.kind for arm in spec.arms for stage in stages_of(spec.trial_config(arm))]
    return list(dict.fromkeys(group_size(spec.resources, kind) for kind in kinds))


def _versions(spec: StudySpec) -> Iterator[Finding]:
    here = _installed()
    for node, there in on_nodes(_installed).items():
        differing = [f"{name} {there.get(name)} (here {here[name]})" for name in here if there.get(name) != here[name]]
        saw = ", ".join(differing) or f"Python {here['Python']}, torch {here['torch']}, Ray {here['ray']}, as here"
        yield Finding(f"versions {_short(node)}", not differing, saw)


def _installed() -> dict[str, str]:
    return {"Python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


def _storage(spec: StudySpec) -> Iterator[Finding]:
    """Each node reads what this machine wrote, and makes a file by the steps that leases need.

    Stages in object storage need no such folder; then each node has to write there.
    """
    if spec.stages:
        for node, problem in {"here": storage_problem(spec.stages), **on_nodes(storage_problem, spec.stages)}.items():
            saw = problem or "can write, list and delete; refuses to write over what is there when it is told to"
            yield Finding(f"stages {_short(node)}", problem is None, f"{spec.stages}: {saw}")
        return
    folder = spec.storage / f".doctor-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    try:
        token = uuid.uuid4().hex
        (folder / "here").write_text(token)
        for node, problem in on_nodes(_use_storage, folder, token).items():
            written = folder / node
            if problem is None and not written.is_file():
                problem = "what it writes is not seen here"
            saw = problem or "reads what is written here, and the other way round; can rename and link"
            yield Finding(f"storage {_short(node)}", problem is None, f"{spec.storage}: {saw}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _use_storage(folder: Path, token: str) -> str | None:
    """Why this node cannot use the folder as the one that wrote the token does."""
    me = this_node_id()
    try:
        if (folder / "here").read_text() != token:
            return "another file is there; storage must be the same on every node"
        beside = folder / f".{me}"
        beside.write_text(token)
        os.link(beside, folder / f"{me}.linked")
        beside.replace(folder / me)
    except OSError as error:
        return f"{error}; storage must be writable, and the same, on every node"
    return None


def _stages(spec: StudySpec) -> Iterator[Finding]:
    """Each node reads corpora and code as this machine does: then it names the stages alike."""
    trials = [spec.trial_config(arm) for arm in spec.arms]
    here = _fingerprints(trials)
    for node, there in on_nodes(_fingerprints, trials).items():
        problem = there if isinstance(there, str) else "other data or another version of the code than here"
        saw = "the same as here" if there == here else f"{problem}; every node must see the same corpora and code"
        yield Finding(f"corpora, code {_short(node)}", there == here, saw)


def _fingerprints(trials: list[TrialConfig]) -> list[str] | str:
    """Of all stages of the trials; or why they cannot be known."""
    try:
        return [stage.fingerprint() for trial in trials for stage in stages_of(trial)]
    except (ValueError, OSError) as error:
        return str(error)


def _clocks(spec: StudySpec) -> Iterator[Finding]:
    on_nodes(_clock)  # then the processes are there
    before = time.time()
    there, after = on_nodes(_clock), time.time()
    for node, clock in there.items():
        skew = max(before - clock, clock - after, 0.0)
        saw = f"{skew:.1f} s apart from the clock here, at least" if skew else "as here"
        yield Finding(f"clock {_short(node)}", True if skew < SKEW_SECONDS else None, saw)


def _clock() -> float:
    return time.time()


def _gpus(spec: StudySpec) -> Iterator[Finding]:
    wanted = max(size.gpus_per_worker for size in _sizes(spec))
    if not wanted:
        return
    for node, found in on_nodes_with_gpus(_use_gpu, min(wanted, 1.0), GPU_SECONDS).items():
        ok, saw = found or (None, f"not free within {GPU_SECONDS:g} s, so not looked at")
        yield Finding(f"GPU {_short(node)}", ok, saw)


def _use_gpu() -> tuple[bool, str]:
    """Whether it can be used, and what was seen."""
    import torch

    if not torch.cuda.is_available():
        return False, f"torch {torch.__version__} sees no GPU"
    product = torch.ones(64, 64, device="cuda") @ torch.ones(64, 64, device="cuda")
    free, total = torch.cuda.mem_get_info()
    if float(product.sum()) != 64.0**3:
        return False, f"{torch.cuda.get_device_name()} computes wrongly"
    return True, f"{torch.cuda.get_device_name()}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free"


def _short(node: str) -> str:
    return node[:8]
