"""`study status`: how far studies are; and `study pause`, `resume` and `stop`, which a running study heeds."""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from study.ledger import Ledger, Order
from trainables.settings_file import SettingsError

if TYPE_CHECKING:
    from rich.table import Table

State = Literal["running", "paused", "stopping", "interrupted", "over"]
SEEN_SECONDS = 60.0  # a study that was not seen for so long is not being run
WATCH_SECONDS = 2.0
COUNTS = ("finished", "stopped", "failed", "unfinished")


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    status = verbs.add_parser("status", help="how far studies are")
    status.add_argument("study", nargs="?", help="name of a study; without it, all studies")
    status.add_argument("--watch", action="store_true", help="show it again and again, until all studies have ended")
    status.add_argument("--json", action="store_true", help="print JSON, for programs")
    status.set_defaults(command=_status)
    found = [status]
    told: tuple[tuple[str, Order | None, str], ...] = (
        ("pause", "pause", "have a running study give back its machines, and wait"),
        ("resume", None, "have a paused study go on"),
        ("stop", "stop", "have a running study end; the command that ran it goes on with it"),
    )
    for verb, order, help_ in told:
        found.append(verbs.add_parser(verb, help=help_))
        found[-1].add_argument("study", help="name of the study")
        found[-1].set_defaults(command=functools.partial(_give_order, order))
    for parser in found:
        parser.add_argument("--storage", type=Path, default=Path("results"), help="storage folder (default: results)")


def state_of(ledger: Ledger, study: str) -> State:
    """What the study is doing now. That it is not being run any more is known by the clock of this machine."""
    if ledger.is_over(study):
        return "over"
    seen_at = ledger.seen_at(study)
    if seen_at is None or time.time() - seen_at > SEEN_SECONDS:
        return "interrupted"
    order = ledger.order(study)
    return "running" if order is None else "paused" if order == "pause" else "stopping"


def status_of(ledger: Ledger, study: str) -> dict[str, Any]:
    """State, counts of trials, what was spent and the best trial of a study, as it is printed."""
    spec = ledger.spec(study, Path())
    metric, spent = spec.search.metric, ledger.spent(study)
    ranked = ledger.ranked(ledger.trials(study), metric)[:1]
    best = [{"trial": t.trial, "metric": metric, "value": ledger.final(study, t.trial)[metric]} for t in ranked]
    return {
        "study": study,
        "state": state_of(ledger, study),
        "question": spec.question,
        **{str(status): trials for status, trials in ledger.count(study).items()},
        "accelerator_hours": spent.accelerator_seconds / 3600,
        "cost": spent.cost if spec.resources.node_prices else None,
        "best": best[0] if best else None,
    }


def _status(options: argparse.Namespace) -> int:
    if options.watch and options.json:
        raise SettingsError(["--watch is for people and --json for programs; give one of them"])
    ledger = Ledger.existing(options.storage.absolute())
    names = [options.study] if options.study else [row["study"] for row in ledger.studies()]
    if options.watch:
        return _watch(ledger, names)
    rows = [status_of(ledger, name) for name in names]
    if options.json:
        print(json.dumps(rows[0] if options.study else rows, indent=2))
        return 0
    from study.terminal import failures, make_console, ranking

    console = make_console()
    console.print(_table(rows))
    if options.study:
        spec = ledger.spec(options.study, options.storage.absolute())
        tables = (ranking(spec, ledger), failures(ledger.trials(options.study)))
        console.print(*[table for table in tables if table and table.row_count], sep="\n")
    return 0


def _watch(ledger: Ledger, names: list[str]) -> int:
    from rich.live import Live

    from study.terminal import make_console

    with Live(console=make_console(), auto_refresh=False) as live:
        while True:
            rows = [status_of(ledger, name) for name in names]
            live.update(_table(rows), refresh=True)
            if not any(row["state"] in ("running", "paused", "stopping") for row in rows):
                return 0
            try:
                time.sleep(WATCH_SECONDS)
            except KeyboardInterrupt:
                return 0


def _table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    from study.wording import metric_name

    with_cost = any(row["cost"] is not None for row in rows)
    table = Table("study", "state")
    for heading in (*COUNTS, "accelerator h", *(["cost"] if with_cost else [])):
        table.add_column(heading, justify="right")
    table.add_column("best trial")
    table.add_column("question")
    for row in rows:
        found = row["best"]
        best = f"{found['trial']} {metric_name(found['metric'])} {found['value']:.1%}" if found else ""
        cost = ["" if row["cost"] is None else f"{row['cost']:.2f}"] if with_cost else []
        counts = (str(row[status]) for status in COUNTS)
        table.add_row(
            row["study"], row["state"], *counts, f"{row['accelerator_hours']:.3g}", *cost, best, row["question"]
        )
    return table


def _give_order(order: Order | None, options: argparse.Namespace) -> int:
    ledger = Ledger.existing(options.storage.absolute())
    state = state_of(ledger, options.study)
    if state in ("over", "interrupted"):
        found = "is over" if state == "over" else "is not being run; `study run` goes on with it"
        raise SettingsError([f"study {options.study!r} {found}"])
    if state == "stopping":
        raise SettingsError([f"study {options.study!r} has been told to stop; `study run` goes on with it afterwards"])
    ledger.give_order(options.study, order)
    told = {
        "pause": "gives back its machines as its stages leave their checkpoints; `study resume` goes on",
        "stop": "ends as its stages leave their checkpoints; the command that ran it goes on with it",
        None: "goes on",
    }
    print(f"study {options.study!r} {told[order]}")
    return 0
