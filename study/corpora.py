"""`study corpora`: which published corpora can be prepared, and their preparation."""

from __future__ import annotations

import argparse
import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from trainables.settings_file import SettingsError, did_you_mean

if TYPE_CHECKING:
    from rich.console import Group

    from trainables.data.corpora.prepare import Prepared


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    corpora = verbs.add_parser("corpora", help="published corpora: what each needs, and their preparation")
    corpora.add_argument("--json", action="store_true", help="print JSON, for programs")
    corpora.set_defaults(command=_list)
    actions = corpora.add_subparsers(metavar="ACTION")
    prepare = actions.add_parser("prepare", help="check a corpus, decode its audio once, and write its manifest")
    prepare.add_argument("name", metavar="NAME", help="as `study corpora` lists it")
    prepare.add_argument("--root", type=Path, required=True, help="folder of the corpus, unpacked")
    prepare.add_argument("--output", type=Path, help="folder to write (default: $CORPORA/NAME, or NAME-LANGUAGE)")
    prepare.add_argument("--language", help="ISO 639-1 code, where the corpus has several")
    prepare.add_argument("--min-seconds", type=float, default=0.1, help="shorter utterances are left out (0.1)")
    prepare.add_argument("--max-seconds", type=float, default=40.0, help="longer ones are left out, or cut (40)")
    prepare.add_argument("--strict", action="store_true", help="refuse a corpus with any finding")
    prepare.add_argument("--verify", action="store_true", help="compare the checksums of audio that is there already")
    prepare.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="(default: one a core)")
    prepare.add_argument("--json", action="store_true", help="print JSON, for programs")
    prepare.set_defaults(command=_prepare)


def _list(options: argparse.Namespace) -> int:
    from rich.table import Table

    from study.terminal import make_console
    from trainables.data.corpora.registry import CORPORA

    if options.json:
        shown = ("title", "hours", "licence", "needs", "languages")
        rows = [{"name": name} | {field: getattr(c, field) for field in shown} for name, c in CORPORA.items()]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    table = Table("name", "corpus", show_lines=True)
    table.columns[1].overflow = "fold"  # of a long path nothing may be lost
    table.add_row("prompts", "Embedded telephone prompts in en, es, fr, it, ru; 99 minutes. Nothing to prepare.")
    for name, corpus in CORPORA.items():
        about = f"{corpus.title}. Hours: {corpus.hours}. Licence: {corpus.licence}."
        table.add_row(name, f"{about}\nNeeds below --root: {corpus.needs}")
    make_console().print(table)
    return 0


def _prepare(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from study.terminal import make_console
    from trainables.data.corpora.findings import Limits
    from trainables.data.corpora.prepare import prepare
    from trainables.data.corpora.registry import CORPORA
    from trainables.data.corpus import CorpusError

    corpus = CORPORA.get(options.name)
    if corpus is None:
        raise SettingsError([f"no corpus {options.name!r}{did_you_mean(options.name, CORPORA)}; see `study corpora`"])
    if options.language and corpus.languages and options.language not in corpus.languages:
        choices = ", ".join(corpus.languages)
        raise SettingsError(
            [f"--language {options.language}: {corpus.title} is in {choices}; leave it out, or name one"]
        )
    if not options.root.is_dir():
        raise SettingsError([f"--root {options.root}: no such folder"])
    if options.processes < 1:
        raise SettingsError([f"--processes must be at least 1, got {options.processes}"])
    if not 0 <= options.min_seconds < options.max_seconds < math.inf:
        times = f"{options.min_seconds:g} and {options.max_seconds:g}"
        raise SettingsError([f"--min-seconds and --max-seconds must be from 0 on, the second larger, got {times}"])
    output = (options.output or _default_output(options.name, options.language)).absolute()
    bar = Progress(
        *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)
    )
    try:
        with bar:
            task = bar.add_task("utterances", total=None)
            prepared = prepare(
                corpus,
                options.name,
                options.root.absolute(),
                output,
                language=options.language,
                limits=Limits(min_seconds=options.min_seconds, max_seconds=options.max_seconds),
                strict=options.strict,
                verify=options.verify,
                processes=options.processes,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except (CorpusError, OSError) as error:
        raise SettingsError([str(error)]) from error
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted. The same command goes on where it was.")
        return 130
    if options.json:
        print(json.dumps(asdict(prepared) | {"folder": str(prepared.folder)}, indent=2))
    else:
        make_console().print(_summary(prepared))
    return 0


def _default_output(name: str, language: str | None) -> Path:
    return Path(os.environ.get("CORPORA", "corpora")) / (f"{name}-{language}" if language else name)


def _summary(prepared: Prepared) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    hours = Table("split", "utterances", "hours", "speakers", title=str(prepared.folder), title_justify="left")
    for split in ("train", "dev", "test", "unlabelled"):
        if split in prepared.hours:
            speakers = str(prepared.speakers[split] or "not known")
            hours.add_row(split, str(prepared.utterances[split]), f"{prepared.hours[split]:.2f}", speakers)
    lines: list[Table | Text] = [hours]
    if prepared.findings:
        findings = Table("finding", "utterances", title="Left out (findings.tsv names each)", title_justify="left")
        for kind, count in sorted(prepared.findings.items()):
            findings.add_row(kind, str(count))
        lines.append(findings)
    if prepared.lists:
        lists = Table("list", "utterances", "left out", title="Lists", title_justify="left")
        for name, counts in prepared.lists.items():
            lists.add_row(name, str(counts["utterances"]), str(counts["left_out"]))
        lines.append(lists)
    if prepared.unused_files:
        size = f"{prepared.unused_files} files, {prepared.unused_bytes / 1e9:.2f} GB in {prepared.folder / 'audio'}"
        advice = "are no longer used by the manifest; delete them when no study runs on them"
        lines.append(Text(f"{size} {advice}."))
    absent = [split for split in ("train", "dev", "test") if split not in prepared.hours]
    if len(absent) < 3 and absent:
        lines.append(Text(f"No {' and no '.join(absent)} split: training with labels needs all three."))
    in_a_sweep = f"corpus: {{kind: folder, root: {prepared.folder.name}}}"
    lines.append(Text(f"In a sweep: {in_a_sweep}   with CORPORA={prepared.folder.parent}"))
    return Group(*lines)
