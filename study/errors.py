"""`study errors`: what a finished trial gets wrong."""

from __future__ import annotations

import argparse
import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from trainables.settings_file import SettingsError

if TYPE_CHECKING:
    from study.statistics import Mean
    from trainables.scoring import Hypothesis


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    errors = verbs.add_parser("errors", help="the worst utterances and the commonest confusions of a trial")
    errors.add_argument("trial", metavar="TRIAL", help="as STUDY/TRIAL, or TRIAL where that is unique")
    errors.add_argument("--split", choices=("dev", "test"), default="test", help="(default: test)")
    errors.add_argument("--greedy", action="store_true", help="without the language model that the trial has")
    errors.add_argument("--top", type=_count, default=10, help="how many of each (default: 10)")
    errors.add_argument("--storage", type=Path, default=Path("results"), help="storage folder (default: results)")
    errors.add_argument("--json", action="store_true", help="print JSON, for programs")
    errors.set_defaults(command=_errors)


def _count(text: str) -> int:
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text}")
    return value


def _errors(options: argparse.Namespace) -> int:
    from rich.table import Table
    from rich.text import Text

    from study.statistics import Mean
    from study.terminal import make_console
    from study.wording import metric_name, rate_text
    from trainables.scoring import confusions, counts, error_rates, worst

    path, decoding = _file(options)
    hypotheses, intervals = _read(path)
    rates = error_rates(hypotheses)
    utterances = worst(hypotheses)[: options.top]
    found = {unit: confusions(hypotheses, unit)[: options.top] for unit in ("words", "characters")}
    if options.json:
        rows = {unit: [asdict(confusion) for confusion in pairs] for unit, pairs in found.items()}
        worst_rows = [asdict(h) | counts(h)._asdict() for h in utterances]
        ends = {name: [mean.low, mean.high] for name, mean in intervals.items()}
        content = {"rates": rates, "intervals": ends, "worst": worst_rows, "confusions": rows}
        print(json.dumps(content, indent=2, ensure_ascii=False))
        return 0
    console = make_console()
    shown = "  ".join(
        f"{metric_name(f'{options.split}_{name}')} {rate_text(intervals.get(name, Mean(value, None, None)))}"
        for name, value in rates.items()
    )
    console.print(Text(f"{options.trial}, {decoding}, {len(hypotheses)} utterances: {shown}"))
    if intervals:
        console.print(
            Text("95 % intervals over speakers, or one speaker's utterances; of this model, not of other seeds")
        )
    table = Table(
        "utterance",
        "errors",
        "reference, and below it the hypothesis",
        title="Worst",
        title_justify="left",
        show_lines=True,
    )
    for hypothesis in utterances:
        errors, words, *_ = counts(hypothesis)
        table.add_row(
            hypothesis.id, f"{errors} / {words}", f"{hypothesis.reference}\n{hypothesis.hypothesis or '(nothing)'}"
        )
    console.print(table)
    for unit, pairs in found.items():
        table = Table("said", "written", "times", title=f"Confused {unit}", title_justify="left")
        for confusion in pairs:
            table.add_row(_shown(confusion.reference), _shown(confusion.hypothesis), str(confusion.count))
        console.print(table)
    return 0


def _shown(token: str) -> str:
    return {"": "-", " ": "(space)"}.get(token, token)


def _file(options: argparse.Namespace) -> tuple[Path, str]:
    """Of the hypotheses, and how they were decoded."""
    from study.ledger import Ledger
    from study.trained import decoded_folder, trained_folder

    storage = options.storage.absolute()
    ledger = Ledger.existing(storage)
    decoded = None if options.greedy else decoded_folder(ledger, storage, options.trial)
    path = (decoded or trained_folder(ledger, storage, options.trial)) / f"hypotheses-{options.split}.jsonl"
    if not path.is_file():
        raise SettingsError([f"{path}: no such file; was the storage folder moved without its stages?"])
    return path, "with its language model" if decoded else "greedy decoding"


def _read(path: Path) -> tuple[list[Hypothesis], dict[str, Mean]]:
    """The hypotheses, and their error rates with intervals, where there are two speakers or utterances to tell from."""
    from study.differences import scored_split
    from study.significance import rate_interval
    from trainables.evaluate import read_hypotheses

    try:
        hypotheses, found = read_hypotheses(path), scored_split(path.read_bytes())
    except (ValueError, TypeError, KeyError) as error:
        raise SettingsError(
            [f"{path}: is damaged ({error}); remove the stage's folder, and it is trained again"]
        ) from None
    intervals = {}
    for rate, scored in found.scored.items():
        with contextlib.suppress(ValueError):
            intervals[rate] = rate_interval([scored], found.speakers)
    return hypotheses, intervals
