"""`python -m tests.cluster.study_on_cpus SWEEP`: a study whose stages train on CPUs, whatever they ask for."""

from __future__ import annotations

import sys
from pathlib import Path

from cluster.connect import connect
from study.execution import run_trials
from study.ledger import Ledger
from study.plan import make_plan
from study.provenance import environment
from study.spec import read_spec
from study.terminal import Terminal, make_console
from tests.cluster import stages_on_cpus


def main() -> None:
    spec = read_spec(Path(sys.argv[1]), sys.argv[2:])
    ledger = Ledger.in_folder(spec.storage)
    run = ledger.open_study(spec.study, spec.model_dump(mode="json"), environment(spec))
    with connect(), Terminal(make_console(), spec, make_plan(spec), ledger) as terminal:
        run_trials(spec, ledger, run, terminal, stage_module=stages_on_cpus.__name__)


if __name__ == "__main__":
    main()
