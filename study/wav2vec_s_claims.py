"""The eleven claims about wav2vec-S (arXiv:2110.04484) that P-DATA and P-CS list, and what a study says of each.

They apply to the comparisons of a study, by what the configurations of arm and baseline are; no sweep has to name them.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from study.answer import Answer
from study.direction import FEWEST_SEEDS, Direction, Pair, direction_as_dict
from study.ledger import Ledger, Trial
from study.published import ReviewedClaim, publications
from study.similarity_report import similarity_file, similarity_sentences
from study.spec import StudySpec
from study.statistics import Mean, mean_of, ratio_of_means
from trainables.data.config import CorpusConfig, FolderConfig
from trainables.regimes.config import PretrainFinetuneRegime, SupervisedRegime, Wav2vecSRegime
from trainables.trial import TrialConfig

RATE = "test_wer"
SOURCE_RATE = "source_dev_wer"
LISTS = {"10min": 10.0, "1h": 60.0, "10h": 600.0}  # of Libri-Light, in minutes
NO_PAIR = "cannot be told: no arm of wav2vec_s has as its `baseline` one that is pre-trained and fine-tuned only"


@dataclass(frozen=True)
class Side:
    """A configuration in a comparison: the finished trials that have its test WER, a seed each."""

    arm: str
    config: TrialConfig
    trials: tuple[Trial, ...]
    wers: tuple[float, ...]


Sides = tuple[Side, Side]


@dataclass(frozen=True)
class CostShare:
    """What the semi-supervised stage of a trial costs of the pre-training before it; both by their fingerprints."""

    pretraining: str
    stage: str
    share: float


@dataclass(frozen=True)
class AnsweredReview:
    """What the study says of a claim."""

    claim: ReviewedClaim
    ours: str  # what was measured, or what the study has instead
    verdict: str
    trials: list[str]
    reduction: Mean | None = None  # relative, of the WER, where the claim names one
    direction: Direction | None = None  # where the claim is one of direction


def reviewed_claims(spec: StudySpec, ledger: Ledger, found: Answer) -> list[AnsweredReview]:
    """Every claim with a verdict, or with what is missing to give one; none where no arm is trained as wav2vec-S."""
    if not any(map(_semi_supervised, spec.known_trials().values())):
        return []
    pairs = _pairs(ledger, found)
    against = [(arm, base) for arm, base in pairs if _semi_supervised(arm.config) and _self_supervised(base.config)]
    both = [(arm, base) for arm, base in pairs if _semi_supervised(arm.config) and _semi_supervised(base.config)]
    finished = [trial for trial in ledger.trials(spec.study) if trial.status == "finished"]
    specific = [trial for trial in finished if trial.config["regime"]["kind"] == "wav2vec_s"]
    shares = {trial.trial: share for trial in specific if (share := _cost_share(ledger, trial))}
    answers: dict[str, Callable[[ReviewedClaim], AnsweredReview]] = {
        "reduction_1h": lambda claim: _reduction(claim, against, 60),
        "reduction_10h": lambda claim: _reduction(claim, against, 600),
        "improves": lambda claim: _improves(claim, against),
        "characters": lambda claim: _characters(claim, both),
        "trade_off": lambda claim: _trade_off(claim, ledger, both),
        "cost": lambda claim: _cost(claim, shares),
        "other_models": lambda claim: _other_models(claim, against),
        "gap": lambda claim: _representations(claim, spec),
        "source": lambda claim: _source(claim, spec),
        "task_specific": lambda claim: _representations(claim, spec),
        "coupling": lambda claim: _coupling(claim, shares),
    }
    return [answers[claim.key](claim) for claim in publications().claims]


def claim_as_dict(answered: AnsweredReview) -> dict[str, Any]:
    return {
        "claim": answered.claim.text,
        "published": answered.claim.published,
        "verified": answered.claim.verified,
        "confidence": answered.claim.confidence,
        "ours": answered.ours,
        "reduction": asdict(answered.reduction) if answered.reduction else None,
        "direction": direction_as_dict(answered.direction) if answered.direction else None,
        "verdict": answered.verdict,
        "trials": answered.trials,
    }


# ---- configurations that are compared ------------------------------------------------------------------------------


def _pairs(ledger: Ledger, found: Answer) -> list[Sides]:
    """The configurations of arm and baseline with the same searched values; else those that stand for the two.

    Those with several seeds on each side come before those with one.
    """
    pairs = []
    for comparison in found.comparisons:
        arm, baseline = comparison.arm, comparison.baseline
        ours = {_key(cell.point): cell.trials for cell in found.cells if cell.arm == arm.arm}
        theirs = {_key(cell.point): cell.trials for cell in found.cells if cell.arm == baseline.arm}
        shared = [(trials, theirs[key]) for key, trials in ours.items() if key in theirs]
        standing = [(arm.trials, baseline.trials)]
        chosen = _with_several_seeds(shared) or _with_several_seeds(standing) or shared or standing
        sides = [(_side(ledger, a), _side(ledger, b)) for a, b in chosen]
        pairs += [(a, b) for a, b in sides if a and b]
    return pairs


def _with_several_seeds(pairs: Sequence[tuple[Sequence[Trial], Sequence[Trial]]]) -> list[Any]:
    return [(a, b) for a, b in pairs if min(len(a), len(b)) > 1]


def _key(point: dict[str, Any]) -> str:
    return json.dumps(point, sort_keys=True)


def _side(ledger: Ledger, trials: Sequence[Trial]) -> Side | None:
    """None where no trial has a test WER."""
    wers = [(trial, ledger.final(trial.study, trial.trial).get(RATE)) for trial in trials]
    measured = [(trial, wer) for trial, wer in wers if wer is not None]
    if not measured:
        return None
    first, _ = measured[0]
    config = TrialConfig.model_validate(first.config)
    return Side(first.arm, config, tuple(trial for trial, _ in measured), tuple(wer for _, wer in measured))


def _semi_supervised(config: TrialConfig) -> bool:
    return isinstance(config.regime, Wav2vecSRegime)


def _self_supervised(config: TrialConfig) -> bool:
    """Whether it is pre-trained without labels, and then only fine-tuned."""
    if isinstance(config.regime, SupervisedRegime):
        return config.init is not None
    return isinstance(config.regime, PretrainFinetuneRegime)


def _regime(config: TrialConfig) -> Wav2vecSRegime:
    assert isinstance(config.regime, Wav2vecSRegime)
    return config.regime


def _source_language(config: TrialConfig) -> str | None:
    """Of the speech that the semi-supervised stage has labels of."""
    return (_regime(config).semi_supervised.corpus or config.corpus).language


def _labelled_minutes(config: TrialConfig) -> float | None:
    """The budget of the fine-tuning; None: all that the corpus has."""
    regime, corpus = config.regime, config.corpus
    if isinstance(regime, Wav2vecSRegime | PretrainFinetuneRegime):
        corpus = regime.finetune.corpus or corpus
    listed = corpus.labelled_list if isinstance(corpus, FolderConfig) else None
    return corpus.labelled_minutes or LISTS.get(listed or "")


def _direction(pairs: Iterable[Sides]) -> Direction:
    """Whether the first of each two has the lower test WER."""
    return Direction(
        tuple(
            Pair(
                name=f"{low.arm} / {high.arm}",
                low=statistics.fmean(low.wers),
                high=statistics.fmean(high.wers),
                seeds=min(len(low.wers), len(high.wers)),
                trials=tuple(trial.trial for trial in (*low.trials, *high.trials)),
            )
            for low, high in pairs
        )
    )


# ---- verdicts ------------------------------------------------------------------------------------------------------


def _reduction(claim: ReviewedClaim, against: Sequence[Sides], minutes: float) -> AnsweredReview:
    """The mean over pairs of 1 - WER / WER of the baseline; of one pair, of geometric means over its seeds."""
    wanted = [(a, b) for a, b in against if _labelled_minutes(a.config) == _labelled_minutes(b.config) == minutes]
    budget = [(a, b) for a, b in wanted if all((*a.wers, *b.wers))]  # of no errors nothing is a share
    if not budget:
        return AnsweredReview(claim, "", f"{NO_PAIR}, both with {minutes:g} labelled minutes", [])
    replicated = [(a, b) for a, b in budget if min(len(a.wers), len(b.wers)) >= FEWEST_SEEDS]
    used = replicated or budget
    reductions = [1 - statistics.fmean(a.wers) / statistics.fmean(b.wers) for a, b in used]
    reduction = mean_of(reductions)
    if len(used) == 1 and (ratio := ratio_of_means(used[0][0].wers, used[0][1].wers)):
        reduction = Mean(1 - ratio.estimate, 1 - ratio.high, 1 - ratio.low)
    trials = [trial.trial for pair in used for side in pair for trial in side.trials]
    ours = f"{interval_text(reduction)} over {len(used)} pair(s)"
    return AnsweredReview(claim, ours, _reduction_verdict(claim, reduction, bool(replicated)), trials, reduction)


def _reduction_verdict(claim: ReviewedClaim, reduction: Mean, replicated: bool) -> str:
    if not replicated or reduction.low is None or reduction.high is None:
        return "cannot be told: one seed on a side"
    published = (claim.published or 0.0) / 100
    place = "inside" if reduction.low <= published <= reduction.high else "outside"
    if reduction.high < 0:
        direction = "the WER rises"
    else:
        direction = "the WER falls" if reduction.low > 0 else "no difference can be told"
    return f"{direction}; the published {100 * published:g} % is {place} the interval"


def _improves(claim: ReviewedClaim, against: Sequence[Sides]) -> AnsweredReview:
    direction = _direction(against)
    if not direction.pairs:
        return AnsweredReview(claim, "", NO_PAIR, [])
    abroad = _direction((a, b) for a, b in against if _source_language(a.config) != a.config.corpus.language)
    ours = f"{_difference_text(direction)}; in other languages than the source: " + (
        abroad.verdict if abroad.pairs else "not measured"
    )
    return AnsweredReview(claim, ours, direction.verdict, direction.trials, direction=direction)


def _characters(claim: ReviewedClaim, both: Sequence[Sides]) -> AnsweredReview:
    def by_phones(side: Side) -> bool:
        return _regime(side.config).semi_supervised.labels == "phones"

    pairs = [(b, a) if by_phones(a) else (a, b) for a, b in both if by_phones(a) != by_phones(b)]
    direction = _direction(pairs)
    if not pairs:
        missing = "no arm with semi_supervised.labels: phones is compared with one of characters"
        return AnsweredReview(claim, "", f"cannot be told: {missing}", [])
    return AnsweredReview(claim, _difference_text(direction), direction.verdict, direction.trials, direction=direction)


def _trade_off(claim: ReviewedClaim, ledger: Ledger, both: Sequence[Sides]) -> AnsweredReview:
    """A trade-off: of two ways to the same other language, the one that is better on the source is worse there."""
    abroad = [(a, b) for a, b in both if _source_language(a.config) not in (None, a.config.corpus.language)]
    at_home = [(a, b, _source_wer(ledger, a), _source_wer(ledger, b)) for a, b in abroad]
    known = [(a, b, x, y) for a, b, x, y in at_home if x is not None and y is not None]
    if not known:
        missing = f"no two arms of wav2vec_s with a source in another language are compared, both with {SOURCE_RATE}"
        return AnsweredReview(claim, "", f"cannot be told: {missing}", [])
    direction = _direction((a, b) if x > y else (b, a) for a, b, x, y in known if x != y)
    ours = "; ".join(
        f"{side.arm}: source dev WER {wer:.1%}, test WER {statistics.fmean(side.wers):.1%}"
        for a, b, x, y in known
        for side, wer in ((a, x), (b, y))
    )
    return AnsweredReview(claim, ours, direction.verdict, direction.trials, direction=direction)


def _source_wer(ledger: Ledger, side: Side) -> float | None:
    """On the dev split of the source, at the end of the semi-supervised stage; mean over seeds."""
    curves = [ledger.curve(trial.study, trial.trial, SOURCE_RATE) for trial in side.trials]
    return statistics.fmean(curve[-1].value for curve in curves) if all(curves) else None


def _cost(claim: ReviewedClaim, shares: Mapping[str, CostShare]) -> AnsweredReview:
    """Accelerator time of the stage as a share of the pre-training before it; stages that trials share count once."""
    if not shares:
        return AnsweredReview(claim, "", "cannot be told: no finished trial has pre-training and this stage", [])
    once = {(found.pretraining, found.stage): found.share for found in shares.values()}
    share = mean_of(list(once.values()))
    ours = f"{interval_text(share)} of the accelerator time of pre-training, over {len(once)} stage(s)"
    return AnsweredReview(claim, ours, _cost_verdict(share), list(shares))


def _cost_verdict(share: Mean) -> str:
    if share.low is None or share.high is None:
        return "cannot be told: one seed"
    if share.low <= 1 <= share.high:
        return "no difference can be told"
    return "costs less, with the lengths that the sweep gives" if share.high < 1 else "costs more than pre-training"


def _cost_share(ledger: Ledger, trial: Trial) -> CostShare | None:
    """None where the trial has not both stages."""
    ends = {point.kind: point for point in ledger.curve(trial.study, trial.trial)}
    first, second = ends.get("pretrain"), ends.get("semi_supervised")
    if not first or not second or not first.accelerator_seconds:
        return None
    spent = second.accelerator_seconds - first.accelerator_seconds
    return CostShare(first.stage, second.stage, spent / first.accelerator_seconds)


def _other_models(claim: ReviewedClaim, against: Sequence[Sides]) -> AnsweredReview:
    if not against:
        return AnsweredReview(claim, "", NO_PAIR, [])
    families = sorted({arm.config.model.family for arm, _ in against})
    found = {family: _direction((a, b) for a, b in against if a.config.model.family == family) for family in families}
    ours = "; ".join(f"{family}: {direction.verdict}" for family, direction in found.items())
    trials = [trial for direction in found.values() for trial in direction.trials]
    if len(families) == 1:
        return AnsweredReview(claim, ours, f"cannot be told: one family of models only, {families[0]}", trials)
    together = _direction(against)
    return AnsweredReview(claim, ours, together.verdict, trials, direction=together)


def _representations(claim: ReviewedClaim, spec: StudySpec) -> AnsweredReview:
    """What `study similarity` has measured."""
    sentences = similarity_sentences(similarity_file(spec.storage, spec.study))
    if not sentences:
        return AnsweredReview(claim, "", f"cannot be told: not measured (`study similarity {spec.study}`)", [])
    return AnsweredReview(claim, " ".join(sentences), "see Representations", [])


def _source(claim: ReviewedClaim, spec: StudySpec) -> AnsweredReview:
    configs = {arm: config for arm, config in spec.known_trials().items() if _semi_supervised(config)}
    sources = {arm: _regime(config).semi_supervised.corpus or config.corpus for arm, config in configs.items()}
    ours = "; ".join(f"{arm}: {corpus_text(corpus)}" for arm, corpus in sources.items())
    return AnsweredReview(claim, ours, "states a set-up, nothing to measure; the study's own is beside it", [])


def corpus_text(corpus: CorpusConfig) -> str:
    """What a corpus is, in a few words."""
    name = corpus.root.name if isinstance(corpus, FolderConfig) else corpus.kind
    part = f", {corpus.labelled_minutes:g} min" if corpus.labelled_minutes else ""
    return f"{name} ({corpus.language or 'language not given'}{part})"


def _coupling(claim: ReviewedClaim, shares: Mapping[str, CostShare]) -> AnsweredReview:
    """How many semi-supervised stages go on from how many pre-trainings."""
    first, second = len({s.pretraining for s in shares.values()}), len({s.stage for s in shares.values()})
    ours = "each step is a stage of its own, with its own corpus, loss and length"
    if shares:
        ours += f"; {second} semi-supervised stage(s) go on from {first} pre-training(s)"
    return AnsweredReview(claim, ours, "states a set-up, nothing to measure; the study's own is beside it", [])


def _difference_text(direction: Direction) -> str:
    return f"test WER {points_text(direction.difference)} points" if direction.difference else ""


def interval_text(share: Mean) -> str:
    """`12.0 % (3.1 to 20.2)`; without an interval where there is none."""
    if share.low is None or share.high is None:
        return f"{100 * share.estimate:.1f} %"
    return f"{100 * share.estimate:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"


def points_text(difference: Mean) -> str:
    """A difference of rates in percentage points, with its interval."""
    if difference.low is None or difference.high is None:
        return f"{100 * difference.estimate:+.1f}"
    low, high = (f"{100 * value:+.1f}" for value in (difference.low, difference.high))
    return f"{100 * difference.estimate:+.1f} ({low} to {high})"
