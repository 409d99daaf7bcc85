"""`study similarity`: how alike the stages of a study's trials represent the same speech."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from trainables.data.corpus import CorpusError, Utterance, hash_utterances
from trainables.data.seeds import fold
from trainables.settings_file import SettingsError
from trainables.stage import Stage
from trainables.store import StageStore, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from study.ledger import Ledger, Trial
    from study.similarity_report import PairSimilarity, Similarities, TrialStages
    from study.spec import StudySpec


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    similarity = verbs.add_parser("similarity", help="how alike the stages of each arm represent the same speech")
    similarity.add_argument("study", help="name of the study")
    similarity.add_argument("--utterances", type=_count, default=50, help="of dev, at most (default: 50)")
    similarity.add_argument("--storage", type=Path, default=Path("results"), help="storage folder (default: results)")
    similarity.add_argument("--json", action="store_true", help="print JSON, for programs")
    similarity.set_defaults(command=_similarity)


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return value


def _similarity(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from study.ledger import Ledger
    from study.similarity_report import similarities_as_dict, similarity_notes, similarity_sentences, similarity_table
    from study.terminal import make_console

    storage = options.storage.absolute()
    ledger = Ledger.existing(storage)
    spec = ledger.spec(options.study, storage)
    progress = Console(stderr=True, markup=False)
    path = measure(spec, ledger, options.utterances, lambda line: progress.print(line, style="dim", soft_wrap=True))
    if options.json:
        print(json.dumps(similarities_as_dict(path), indent=2))
        return 0
    head, rows = similarity_table(path)
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    console = make_console()
    console.print(table, *map(Text, similarity_sentences(path)), *map(Text, similarity_notes(path)), sep="\n")
    return 0


def measure(spec: StudySpec, ledger: Ledger, utterances: int, tell: Callable[[str], None] = lambda line: None) -> Path:
    """Compare all stages of the trials that stand for the arms, and write the study's `similarity.json`.

    What the file has already is not computed again. Dev audio is that of each trial's last stage. `tell` hears of each
    trial. Raises SettingsError when no trial has its weights, or its corpus or initial weights cannot be used.
    """
    from study.answer import arm_result
    from study.similarity_report import Similarities, read_similarities, similarity_file

    path = similarity_file(spec.storage, spec.study)
    before = read_similarities(path)
    found = Similarities(
        study=spec.study,
        utterances=utterances,
        comparisons=tuple(spec.comparisons()),
        trials=(),
        missing=(),
        pairs=before.pairs if before else {},
    )
    store = StageStore(spec.storage, spec.stages)
    for trial in [trial for arm in spec.arms for trial in arm_result(spec, ledger, arm).trials]:
        stored = _stored(ledger, store, trial)
        if stored:
            found = _with_trial(found, trial, stored, store, tell)
        else:
            found = found.with_(missing=(*found.missing, f"{trial.trial}, whose last weights are gone or unreadable"))
        if found.trials:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, found.model_dump_json(indent=1).encode())
    if not found.trials:
        reason = "; ".join(found.missing) or "no trial has finished"
        raise SettingsError([f"{spec.study}: nothing to compare: {reason}"])
    return path


@dataclass(frozen=True)
class _Stored:
    """The stages of a trial whose weights are there."""

    last: Stage
    folders: dict[str, Path]  # kind -> folder, in order
    weights: dict[str, str]  # INITIAL, then the kinds -> what identifies the weights


def _stored(ledger: Ledger, store: StageStore, trial: Trial) -> _Stored | None:
    """None where the last stage is not there, or of another version of this project."""
    from study.similarity_report import INITIAL

    rows = [row for row in ledger.trial_stages(trial.study, trial.trial) if row["kind"] != "decode"]
    there = {}
    for row in rows:
        with contextlib.suppress(FileNotFoundError):
            there[row["kind"]] = store.fetch_named(row["kind"], row["name"])
    last = rows[-1]["kind"]
    if last not in there:
        return None
    try:
        stage = Stage.model_validate_json((there[last] / "stage.json").read_bytes())
    except (OSError, ValidationError):
        return None
    weights = {row["kind"]: row["stage"] for row in rows if row["kind"] in there}
    return _Stored(stage, there, {INITIAL: f"initial-{rows[0]['stage']}", **weights})


def _with_trial(
    found: Similarities, trial: Trial, stored: _Stored, store: StageStore, tell: Callable[[str], None]
) -> Similarities:
    """With the similarities of all pairs of the trial's weights. Raises SettingsError."""
    from study.similarity_report import TrialStages
    from trainables.models.checkpoint_files import CheckpointError
    from trainables.start import corpus_of_stage

    try:
        chosen = choose(corpus_of_stage(stored.last).dev, found.utterances)
        described = TrialStages(
            arm=trial.arm,
            trial=trial.trial,
            seed=trial.seed,
            utterances=hash_utterances(chosen)[:16],
            weights=stored.weights,
        )
        wanted = _unknown(found, described)
        tell(f"{trial.trial}: {len(wanted)} pairs of stages to compare on {len(chosen)} utterances")
        new = _compare(described, wanted, stored, store, chosen)
    except (CorpusError, CheckpointError) as error:
        raise SettingsError([f"{trial.trial}: {error}"]) from error
    return found.with_(trials=(*found.trials, described), pairs=found.pairs | new)


def choose(utterances: Sequence[Utterance], number: int) -> list[Utterance]:
    """As many as there are, up to this number, by a hash of their ids: those of a smaller number are among them."""
    return sorted(utterances, key=lambda u: (fold("similarity", u.id), u.id))[:number]


def _unknown(found: Similarities, trial: TrialStages) -> list[tuple[str, str]]:
    """The pairs of the trial's weights that were not compared yet."""
    return [pair for pair in itertools.combinations(trial.weights, 2) if trial.key(*pair) not in found.pairs]


def _compare(
    trial: TrialStages, wanted: Sequence[tuple[str, str]], stored: _Stored, store: StageStore, chosen: list[Utterance]
) -> dict[str, PairSimilarity]:
    """By the key of the pair. Only weights that a wanted pair needs are read. Raises CheckpointError."""
    import torch

    from study.similarity_report import INITIAL
    from trainables.similarity import hidden_states, initial_backbone, trained_backbone

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hidden: dict[str, list[Tensor]] = {}
    for kind in dict.fromkeys(itertools.chain(*wanted)):
        backbone = initial_backbone(stored.last, store) if kind == INITIAL else trained_backbone(stored.folders[kind])
        hidden[kind] = hidden_states(backbone, chosen, device)
    return {trial.key(first, second): _pair(hidden[first], hidden[second]) for first, second in wanted}


def _pair(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> PairSimilarity:
    from study.similarity_report import PairSimilarity
    from trainables.similarity import linear_cka, svcca

    layers = list(zip(ours, theirs, strict=True))
    return PairSimilarity(
        cka=tuple(linear_cka(x_NP, y_NQ) for x_NP, y_NQ in layers),
        svcca=tuple(svcca(x_NP, y_NQ) for x_NP, y_NQ in layers),
        frames=len(ours[0]),
        width=max(x_NP.shape[1] for x_NP in ours),
    )
