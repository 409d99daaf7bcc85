"""Whether an arm recognises better than its baseline: from the hypotheses of finished trials to rows of a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from study.answer import SIGNIFICANT, Answer, ArmResult, Comparison
from study.ledger import Ledger
from study.significance import Difference, Scored, paired_bootstrap
from study.spec import StudySpec
from study.statistics import holm
from study.wording import WITH_LM, metric_name
from trainables.store import StageStore

COUNTS = {"wer": ("errors", "words"), "cer": ("character_errors", "characters")}  # as hypotheses are written
HEAD = (
    "arm / baseline",
    "rate",
    "difference (95 % interval), points",
    "p",
    "verdict",
    "seeds",
    "utterances",
    "speakers",
)
NOTE = (
    "The rate of the arm less that of its baseline, in percentage points; below zero is better. Speakers are drawn "
    "again (utterances, where speakers are unknown), and seeds count with their variance; p by Holm's method over all "
    "rows. With one seed on each side, this is about these two trained models, not about how they were trained."
)


@dataclass(frozen=True)
class ArmDifference:
    """The rate of an arm less that of its baseline, as a fraction; the p-value is by Holm's method over all rows."""

    arm: str
    baseline: str
    metric: str
    seeds: tuple[int, int]  # whose hypotheses are there
    utterances: int
    speakers: int  # 0: not known
    difference: Difference | None
    p_value: float | None
    missing: tuple[str, ...]  # trials whose hypotheses are gone or damaged
    problem: str  # why there is no difference, or ""

    @property
    def verdict(self) -> str:
        if self.difference is None or self.p_value is None:
            return f"cannot be compared: {self.problem}"
        if self.p_value > SIGNIFICANT:
            return "no significant difference"
        return "better" if self.difference.estimate < 0 else "worse"


@dataclass(frozen=True)
class ScoredSplit:
    """The hypotheses of one trial for a split."""

    speakers: list[str]
    scored: dict[str, Scored]  # by the name of the rate


def differences(spec: StudySpec, ledger: Ledger, found: Answer) -> list[ArmDifference]:
    """A row for each arm that has a baseline, and each word and character error rate that both have measured.

    Trials whose hypotheses were removed (`study gc`) are named in the row, and the others compared.
    """
    rows = [
        row
        for comparison in found.comparisons
        for split in ("dev", "test")
        for decoding in ("", WITH_LM)
        for row in _rows(spec, ledger, comparison, split, decoding)
    ]
    tested = [place for place, row in enumerate(rows) if row.difference]
    for place, p_value in zip(tested, holm([d.p_value for row in rows if (d := row.difference)]), strict=True):
        rows[place] = replace(rows[place], p_value=p_value)
    return rows


def differences_as_dicts(rows: Sequence[ArmDifference]) -> list[dict[str, Any]]:
    """What `study report --json` prints."""
    return [asdict(row) | {"verdict": row.verdict} for row in rows]


def difference_cells(row: ArmDifference) -> list[str]:
    """The row as a person reads it, in the columns of HEAD."""
    shown = p_value = ""
    if (found := row.difference) and row.p_value is not None:
        low, middle, high = (f"{100 * value:+.1f}" for value in (found.low, found.estimate, found.high))
        shown = f"{middle} ({low} to {high})"
        p_value = f"{row.p_value:.3f}" if row.p_value >= 0.001 else "< 0.001"
    return [
        f"{row.arm} / {row.baseline}",
        metric_name(row.metric),
        shown,
        p_value,
        row.verdict,
        f"{row.seeds[0]} and {row.seeds[1]}",
        str(row.utterances),
        str(row.speakers or "unknown"),
    ]


def missing_trials(rows: Sequence[ArmDifference]) -> list[str]:
    """All trials whose hypotheses are gone or damaged."""
    return sorted({trial for row in rows for trial in row.missing})


def _rows(spec: StudySpec, ledger: Ledger, comparison: Comparison, split: str, decoding: str) -> list[ArmDifference]:
    arm, baseline = comparison.arm, comparison.baseline
    metrics = {rate: f"{split}_{rate}{decoding}" for rate in COUNTS}
    if not all(metric in side.rates for side in (arm, baseline) for metric in metrics.values()):
        return []
    (ours, gone), (theirs, also_gone) = (_read(spec, ledger, side, split, decoding) for side in (arm, baseline))
    missing = tuple(dict.fromkeys((*gone, *also_gone)))
    return [_row(comparison, metric, rate, ours, theirs, missing) for rate, metric in metrics.items()]


def _row(
    comparison: Comparison,
    metric: str,
    rate: str,
    ours: Sequence[ScoredSplit],
    theirs: Sequence[ScoredSplit],
    missing: tuple[str, ...],
) -> ArmDifference:
    difference, problem = None, ""
    speakers = next((result.speakers for result in (*ours, *theirs)), [])
    if ours and theirs:
        try:
            difference = paired_bootstrap([r.scored[rate] for r in ours], [r.scored[rate] for r in theirs], speakers)
        except ValueError as error:
            problem = str(error)
    else:
        problem = "no hypotheses are left"
    return ArmDifference(
        arm=comparison.arm.arm,
        baseline=comparison.baseline.arm,
        metric=metric,
        seeds=(len(ours), len(theirs)),
        utterances=len(speakers),
        speakers=len({speaker for speaker in speakers if speaker}),
        difference=difference,
        p_value=None,
        missing=missing,
        problem=problem,
    )


def _read(
    spec: StudySpec, ledger: Ledger, arm: ArmResult, split: str, decoding: str
) -> tuple[list[ScoredSplit], list[str]]:
    """The hypotheses of the arm's trials, and the names of those whose hypotheses are gone or damaged."""
    results, gone = [], []
    for trial in arm.trials:
        store = StageStore(spec.storage, ledger.spec(trial.study, spec.storage).stages)
        stages = ledger.trial_stages(trial.study, trial.trial)
        try:
            last = [stage for stage in stages if (stage["kind"] == "decode") == bool(decoding)][-1]
            results.append(scored_split(store.read_named(last["kind"], last["name"], f"hypotheses-{split}.jsonl")))
        except (OSError, ValueError, LookupError):
            gone.append(trial.trial)
    return results, gone


def scored_split(hypotheses: bytes) -> ScoredSplit:
    """From the content of a file of hypotheses."""
    rows = [json.loads(line) for line in hypotheses.decode().splitlines()]
    ids = [row["id"] for row in rows]
    return ScoredSplit(
        speakers=[row.get("speaker", "") for row in rows],
        scored={
            rate: Scored(ids, np.array([row[errors] for row in rows]), np.array([row[length] for row in rows]))
            for rate, (errors, length) in COUNTS.items()
        },
    )
