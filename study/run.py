"""The command line: `python -m study.run sweep.yaml`, or `study run sweep.yaml`, and plan, status, report."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from study import compare, corpora, errors, garbage, language_model, similarity, status
from study.database import LedgerError
from study.ledger import Ledger
from study.notify import Webhook
from study.spec import StudySpec, read_spec, trials_of, without_passwords
from study.watcher import Watchers
from trainables.lease import Lease, wait_for_silence
from trainables.object_lease import ObjectLease
from trainables.object_storage import ObjectStorageError, storage_problem
from trainables.settings_file import SettingsError

if TYPE_CHECKING:
    from study.answer import Answer
    from study.estimate import Estimate
    from study.execution import Ending
    from study.notify import Event
    from study.plan import Plan
    from study.tracking import Conclusion
    from trainables.recogniser import Recogniser

DONE, BAD_SWEEP, SOME_FAILED, INTERRUPTED = 0, 2, 3, 130
CANNOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
VERBS = (
    "run",
    "plan",
    "status",
    "pause",
    "resume",
    "stop",
    "report",
    "compare",
    "errors",
    "similarity",
    "models",
    "presets",
    "export",
    "transcribe",
    "corpora",
    "lm",
    "gc",
    "optuna",
    "chaos",
    "doctor",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0: all done; 2: bad sweep file or request; 3: some trials failed; 130: interrupted, or told to stop.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] not in VERBS and not words[0].startswith("-"):
        words.insert(0, "run")
    if words and words[0] in ("run", "plan"):  # flags may stand anywhere among the overrides
        words[1:] = sorted(words[1:], key=lambda word: not word.startswith("-"))
    options = _parser().parse_args(words)
    try:
        return int(options.command(options))
    except SettingsError as error:
        for line in error.errors:
            print(line, file=sys.stderr)
        return BAD_SWEEP
    except (LedgerError, ObjectStorageError) as error:
        print(error, file=sys.stderr)
        return BAD_SWEEP
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        fix = "the folder must have room, and this user must have the right to write it"
        print(f"{error.filename or 'a file'}: {error.strerror}; {fix}", file=sys.stderr)
        return BAD_SWEEP


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="study", description="Studies of speech-recognition training.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    run = verbs.add_parser("run", help="run a study, or go on with it")
    plan = verbs.add_parser("plan", help="what a study would run, without starting anything")
    chaos = verbs.add_parser("chaos", help="kill a study's processes at random, and audit how it ends")
    chaos.add_argument("--kills", type=int, default=20, help="how many processes to kill (default: 20)")
    chaos.add_argument("--every", type=float, default=4.0, help="mean seconds between kills (default: 4)")
    chaos.add_argument("--seed", type=int, default=0, help="of the moments and the victims (default: 0)")
    chaos.set_defaults(command=_chaos)
    doctor = verbs.add_parser("doctor", help="see whether all that a study needs is there, on every node")
    doctor.set_defaults(command=_doctor)
    for verb in (run, plan, chaos, doctor):
        verb.add_argument("sweep", type=Path, help="the sweep file")
        verb.add_argument("overrides", nargs="*", metavar="path=value", help="e.g. search.trials=4")
    run.add_argument("--retry-failed", action="store_true", help="run failed trials again")
    run.set_defaults(command=_run)
    plan.add_argument("--probe", action="store_true", help="measure a few steps here, and estimate hours and cost")
    plan.set_defaults(command=_plan)

    report = verbs.add_parser("report", help="write the report of a study again")
    report.add_argument("study", help="name of the study")
    report.add_argument("--folder", type=Path, help="where to write (default: reports/STUDY in the storage folder)")
    report.set_defaults(command=_report)
    journal = verbs.add_parser("optuna", help="write the search of a study as a file that optuna-dashboard opens")
    journal.add_argument("study", help="name of the study")
    journal.add_argument("file", type=Path, help="where to write")
    journal.set_defaults(command=_optuna)
    models = verbs.add_parser("models", help="the models by name, with their sizes")
    models.set_defaults(command=_models)
    presets = verbs.add_parser("presets", help="published settings of stages by name, with their sources")
    presets.set_defaults(command=_presets)
    export = verbs.add_parser("export", help="write a trained model as a Hugging Face folder")
    export.add_argument("trained", metavar="TRIAL-or-folder", help="a trial, as STUDY/TRIAL or TRIAL, or a folder")
    export.add_argument("folder", type=Path, help="where to write")
    export.set_defaults(command=_export)
    transcribe = verbs.add_parser("transcribe", help="turn audio files into text with a trained model")
    transcribe.add_argument("trained", metavar="TRIAL-or-folder", help="a trial, as STUDY/TRIAL or TRIAL, or a folder")
    transcribe.add_argument("files", nargs="+", type=Path, metavar="FILE", help="audio, any rate, any channels")
    transcribe.set_defaults(command=_transcribe)
    for module in (status, compare, errors, similarity, corpora, language_model, garbage):
        module.add_parser(verbs)
    for verb in (report, export, transcribe, journal):
        verb.add_argument("--storage", type=Path, default=Path("results"), help="storage folder (default: results)")
    for verb in (plan, report, models, presets, transcribe):
        verb.add_argument("--json", action="store_true", help="print JSON, for programs")
    return parser


def _plan(options: argparse.Namespace) -> int:
    from study.plan import make_plan, plan_as_dict
    from study.terminal import estimate_table, make_console, plan_table

    spec = read_spec(options.sweep, options.overrides, absent_is_fine=not options.probe)
    if options.probe:
        _fetch_initial_weights(spec)
    plan = make_plan(spec)
    try:
        found = _probe(spec, plan) if options.probe else None
    except KeyboardInterrupt:
        return INTERRUPTED
    if options.json:
        print(json.dumps({**plan_as_dict(plan), **({"estimate": asdict(found)} if found else {})}, indent=2))
    else:
        console = make_console()
        console.print(plan_table(plan), *([estimate_table(found)] if found else []), sep="\n")
    return DONE


def _probe(spec: StudySpec, plan: Plan) -> Estimate:
    from study.probe import probe

    console = Console(stderr=True, markup=False)
    return probe(spec, plan, lambda message: console.print(message, style="dim", soft_wrap=True))


def _run(options: argparse.Namespace) -> int:
    spec = read_spec(options.sweep, options.overrides)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped job ends like Ctrl-C, and resumes
    try:
        return _run_study(spec, retry_failed=options.retry_failed)
    except KeyboardInterrupt:
        Console(stderr=True).print("Interrupted. The same command goes on from the last checkpoints.")
        return INTERRUPTED


def _run_study(spec: StudySpec, *, retry_failed: bool) -> int:
    from study.plan import make_plan
    from study.provenance import environment, refuse_drift
    from study.terminal import make_console, plan_table

    _refuse_unusable_stages(spec)
    _fetch_initial_weights(spec)
    console, plan = make_console(), make_plan(spec)
    console.print(Text(spec.question, style="bold"), plan_table(plan), sep="\n")
    ledger = _open_ledger(spec)
    refuse_drift(spec, ledger)
    _refuse_unknown_studies(spec, ledger)
    with _alone(spec):
        run = ledger.open_study(spec.study, json.loads(without_passwords(spec.model_dump_json())), environment(spec))
        if retry_failed:
            ledger.reopen_failed(spec.study)
        try:
            with Webhook(spec.study, ledger) as webhook:
                return _run_and_mirror(console, spec, plan, ledger, run, webhook)
        finally:
            with contextlib.suppress(LedgerError):  # which has been told of
                ledger.end_run(run)


def _run_and_mirror(console: Console, spec: StudySpec, plan: Plan, ledger: Ledger, run: str, webhook: Webhook) -> int:
    from cluster.connect import NoClusterError, connect
    from study.answer import answer
    from study.tracking import MirrorProcess, tracking_uri

    uri = tracking_uri(spec.storage, spec.mlflow.tracking_uri)
    mirror = MirrorProcess(ledger.url, spec.study, spec.storage, uri) if spec.mlflow.enabled else None
    console.print("Starting Ray and the first workers; this takes about half a minute.", style="dim")
    conclusion = None
    try:
        with connect():
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray has put its own in the place
            ending = _run_trials(console, spec, plan, ledger, run, webhook)
        found = answer(spec, ledger)
        conclusion = _conclude(console, spec, ledger, found)
        webhook.send(*_last_words(ending, found))
    except NoClusterError as error:
        raise SettingsError([str(error)]) from error
    finally:
        mirrored = mirror.finish(conclusion) if mirror else True
    if mirror:
        _tell_mlflow(console, uri, mirrored, mirror.log)
    if ending == "stopped":
        return INTERRUPTED
    return SOME_FAILED if ledger.count(spec.study)["failed"] else DONE


def _last_words(ending: Ending, found: Answer) -> tuple[Event, str]:
    """For the webhook."""
    if ending == "over":
        return "finished", " ".join(["finished.", *found.sentences[:1]])
    told = "a budget is spent" if ending == "budget" else "stopped by `study stop`"
    return ending, f"{told}; the same command goes on"


def _run_trials(console: Console, spec: StudySpec, plan: Plan, ledger: Ledger, run: str, webhook: Webhook) -> Ending:
    from cluster.nodes import InfeasibleError
    from study.execution import run_trials
    from study.inference_time import measure_inference_times
    from study.terminal import Terminal

    try:
        with Terminal(console, spec, plan, ledger) as terminal:
            ending = run_trials(spec, ledger, run, Watchers(terminal, webhook))
            if ending == "over":
                measure_inference_times(spec, ledger, terminal)
            return ending
    except InfeasibleError as error:
        raise SettingsError([str(error)]) from error


def _refuse_unknown_studies(spec: StudySpec, ledger: Ledger) -> None:
    for name in spec.search.warm_start:
        if name == spec.study:
            raise SettingsError([f"search.warm_start names {name!r}, which is this study; name earlier ones"])
        ledger.study(name)


@contextmanager
def _alone(spec: StudySpec) -> Iterator[None]:
    """Hold the study, so that no other process runs it. Raises SettingsError when another one does."""
    if spec.stages:
        lease: Lease | ObjectLease = ObjectLease(spec.stages, f"studies/{spec.study}.lease")
    else:
        lease = Lease(spec.storage / "studies" / f"{spec.study}.lease")
    wait_for_silence(lease)
    with lease.hold() as held:
        if held is None:
            raise SettingsError(
                [
                    f"study {spec.study!r} is being run by another process, which holds {lease.path}; wait until it "
                    "ends, or end it with `study stop`"
                ]
            )
        yield


def _refuse_unusable_stages(spec: StudySpec) -> None:
    if spec.stages and (problem := storage_problem(spec.stages)):
        raise SettingsError([f"stages: {problem}"])


def _fetch_initial_weights(spec: StudySpec) -> None:
    """Download what arms start from, and look into what only its weights describe."""
    if not any(spec.trial_config(arm).init or "init" in settings.space for arm, settings in spec.arms.items()):
        return
    starts = {(trial.init, trial.model) for trial in trials_of(spec) if trial.init}
    from trainables.models.checkpoint_files import CheckpointError, locate
    from trainables.models.checkpoints import check_fits, read_checkpoint

    errors = []
    for init in sorted({init for init, _ in starts}):
        try:
            checkpoint = read_checkpoint(locate(init))
            for model in [model for name, model in starts if name == init]:
                check_fits(checkpoint, model)
        except CheckpointError as error:
            errors.append(str(error))
    if errors:
        raise SettingsError(errors)


def _conclude(console: Console, spec: StudySpec, ledger: Ledger, found: Answer) -> Conclusion:
    """Print ranking, failures and answer, and write the report."""
    from study.conclusion import conclusion
    from study.optuna_studies import importance
    from study.report import write_report
    from study.terminal import answer_lines, failures, front_table, ranking, rate_table

    tables = (ranking(spec, ledger), failures(ledger.trials(spec.study)), rate_table(found), front_table(found))
    console.print(*[table for table in tables if table and table.row_count], answer_lines(spec, found), sep="\n")
    page = write_report(spec, ledger, importance(spec, ledger))
    console.print(f"report: {page}", soft_wrap=True, highlight=False)
    return conclusion(spec, ledger, found, page.parent)


def _tell_mlflow(console: Console, uri: str, mirrored: bool, log: Path) -> None:
    if mirrored:
        shown = f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite:") else without_passwords(uri)
        console.print(f"MLflow: {shown}", soft_wrap=True, highlight=False)
    else:
        console.print(f"MLflow is not up to date (see {log}); the same command again completes it.", soft_wrap=True)


def _report(options: argparse.Namespace) -> int:
    from study.answer import answer, answer_as_dict
    from study.differences import differences, differences_as_dicts
    from study.inference_report import model_times, model_times_as_dicts
    from study.optuna_studies import importance
    from study.papers import as_dicts
    from study.report import write_report
    from study.similarity_report import similarities_as_dict, similarity_file
    from study.stage_costs import stage_costs, stage_costs_as_dict

    ledger = _ledger(options.storage)
    spec = ledger.spec(options.study, options.storage.absolute())
    shares = importance(spec, ledger)
    page = write_report(spec, ledger, shares, options.folder)
    if options.json:
        found = answer(spec, ledger)
        whole = {
            "report": str(page),
            **answer_as_dict(found),
            "differences": differences_as_dicts(differences(spec, ledger, found)),
            "importance": shares,
            "inference": model_times_as_dicts(model_times(spec, ledger, found.cells)),
            "stage_costs": stage_costs_as_dict(stage_costs(spec, ledger, found)),
            "similarity": similarities_as_dict(similarity_file(spec.storage, spec.study)),
            "papers": as_dicts(spec, ledger, found),
        }
        print(json.dumps(whole, indent=2))
    else:
        print(page)
    return DONE


def _doctor(options: argparse.Namespace) -> int:
    from study.doctor import run_doctor

    return run_doctor(options)


def _chaos(options: argparse.Namespace) -> int:
    from study.chaos import run_chaos

    return run_chaos(options)


def _optuna(options: argparse.Namespace) -> int:
    from study.optuna_studies import write_journal

    if options.file.exists():
        raise SettingsError([f"{options.file}: is there already; name a new file"])
    ledger = _ledger(options.storage)
    spec = ledger.spec(options.study, options.storage.absolute())
    write_journal(spec, ledger, options.file)
    print(f"optuna-dashboard {options.file}")
    return DONE


def _presets(options: argparse.Namespace) -> int:
    from study.terminal import make_console
    from trainables.regimes.presets import PRESETS

    if options.json:
        rows = [
            {"stage": stage, "name": name, "source": preset.source, "settings": preset.settings}
            for stage, presets in PRESETS.items()
            for name, preset in presets.items()
        ]
        print(json.dumps(rows, indent=2))
        return DONE
    table = Table("stage", "preset", "source", title="Presets of stages", title_justify="left")
    for stage, presets in PRESETS.items():
        for name, preset in presets.items():
            table.add_row(stage, name, preset.source)
    make_console().print(table)
    return DONE


def _models(options: argparse.Namespace) -> int:
    from study.terminal import make_console, model_table
    from trainables.models.inventory import measure
    from trainables.models.presets import PRESETS

    sizes = [measure(name) for name in PRESETS]
    if options.json:
        print(json.dumps([asdict(size) for size in sizes], indent=2))
    else:
        make_console().print(model_table(sizes))
    return DONE


def _export(options: argparse.Namespace) -> int:
    from trainables.models.checkpoint_files import CheckpointError
    from trainables.models.checkpoints import read_ctc_model, write_huggingface

    if options.folder.is_file() or (options.folder.is_dir() and any(options.folder.iterdir())):
        raise SettingsError([f"{options.folder}: is there already, and not an empty folder; name a new one"])
    try:
        write_huggingface(*read_ctc_model(_trained_folder(options)), options.folder)
    except (CheckpointError, ValueError) as error:
        raise SettingsError([str(error)]) from error
    print(options.folder)
    return DONE


def _transcribe(options: argparse.Namespace) -> int:
    from trainables.data.corpus import CorpusError
    from trainables.models.checkpoint_files import CheckpointError
    from trainables.recogniser import Recogniser

    missing = [f"{path}: no such file" for path in options.files if not path.is_file()]
    if missing:
        raise SettingsError(missing)
    try:
        recogniser = Recogniser.open(_trained_folder(options))
        for path in options.files:
            text = _transcribed(recogniser, path)
            line = json.dumps({"file": str(path), "text": text}, ensure_ascii=False)
            print(line if options.json else f"{path}\t{text}", flush=True)
    except (CheckpointError, CorpusError, ValueError) as error:
        raise SettingsError([str(error)]) from error
    return DONE


def _transcribed(recogniser: Recogniser, path: Path) -> str:
    try:
        return recogniser.transcribe(path)
    except RuntimeError as error:  # torch has no class for a CPU's memory that is used up
        if "memory" not in str(error):
            raise
        raise SettingsError([f"{path}: is too long for the memory of this machine; cut it into pieces"]) from error


def _trained_folder(options: argparse.Namespace) -> Path:
    """The folder that is named, or that of the last stage of the finished trial that is named."""
    from study.trained import trained_folder

    if Path(options.trained).exists():
        return Path(options.trained)
    return trained_folder(_ledger(options.storage), options.storage.absolute(), options.trained)


def _ledger(storage: Path) -> Ledger:
    return Ledger.existing(storage.absolute())


def _open_ledger(spec: StudySpec) -> Ledger:
    return Ledger.of(spec.storage, spec.ledger)


if __name__ == "__main__":
    sys.exit(main())
