"""Error rates with intervals, and whether one recogniser is better than another: a bootstrap over speakers and seeds.

What varies is who speaks, and the seed that a recogniser was trained with. Utterances of a speaker are alike, so whole
speakers are drawn (block bootstrap); both sides are scored on the same draw (paired: Bisani and Ney, Bootstrap
Estimates for Confidence Intervals in ASR Performance Evaluation, ICASSP 2004). Utterances without a speaker are drawn
one by one, and so are all utterances where there is only one speaker.

The bootstrap gives the variance due to speakers. Two to five seeds are too few to be drawn: their variance is taken
from the rates themselves, pooled over both sides. Both hold the noise of single utterances with single seeds, which is
therefore subtracted once (two-way clustering: Cameron, Gelbach and Miller, Robust Inference With Multiway Clustering,
2011). Each of the two parts has its own quantile of Student's t, for its own degrees of freedom, and the margin is the
root of the sum of their squares (as in Cochran's approximation for two unequal variances). It is never less than the
margin for these very models, which seeds that happen to be alike could make it. In simulations of 5 to 30 speakers and
2 to 5 seeds, 1 to 6 of 100 pairs of equal arms were called different, the fewest with few of both. Percentiles of
nested draws are not used: with two seeds, which differed more than speakers did, they called 10 to 20 of 100 different.

Where the promise of 95 % does not hold:

- One seed on each side: the interval is about these two trained models, not about the methods that made them. One seed
  on one side only: it is taken to vary as those of the other side.
- One speaker, or unknown speakers: the interval is about these speakers.
- Sides whose seeds vary very differently: with two seeds each the interval is too narrow, and with unequal numbers of
  seeds too narrow when the side with fewer varies more, too wide otherwise.
- Two or three speakers, and rates near to 0: intervals are symmetrical, while what they stand for is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.stats

from study.statistics import Mean

SMALLEST_P = 1e-12
DIGITS = 12  # of a difference; what rounding leaves between equal rates is none
DRAWS_AT_ONCE = 4_000_000  # numbers, to bound the memory


@dataclass(frozen=True)
class Scored:
    """What one trained model got wrong: errors, and the length of the reference, of each utterance."""

    ids: Sequence[str]
    errors: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class Difference:
    """A difference of two rates with its 95 % interval, and the two-sided p-value of its being 0."""

    estimate: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    ours: Sequence[Scored], theirs: Sequence[Scored], blocks: Sequence[str], replicates: int = 2000, seed: int = 0
) -> Difference:
    """The rate of `ours` less that of `theirs`: each the mean over seeds of all errors / all lengths.

    A side has a result for each seed; `blocks` has the speaker of each utterance, "" where not known. Raises ValueError
    when the results are not of the same utterances in the same order, and when there are not two blocks with words.
    """
    return _estimate([ours, theirs], blocks, replicates, seed)


def rate_interval(system: Sequence[Scored], blocks: Sequence[str], replicates: int = 2000, seed: int = 0) -> Mean:
    """The rate of one side, mean over its seeds, with its 95 % interval. Raises ValueError as `paired_bootstrap`."""
    found = _estimate([system], blocks, replicates, seed)
    return Mean(found.estimate, found.low, found.high)


def _estimate(sides: Sequence[Sequence[Scored]], blocks: Sequence[str], replicates: int, seed: int) -> Difference:
    """Of the first side, less the second where there is one."""
    scored = [result for side in sides for result in side]
    _check(sides, scored, blocks)
    sizes = [len(side) for side in sides]
    block_of = _block_of(blocks)
    errors_SK = np.stack([np.bincount(block_of, result.errors) for result in scored])
    lengths_K = np.bincount(block_of, scored[0].lengths)
    if np.count_nonzero(lengths_K) < 2:
        raise ValueError("an interval needs two utterances with words, and those of one speaker must not be all")
    rates_S = errors_SK.sum(1) / lengths_K.sum()
    weights_S = np.concatenate([np.full(n, sign / n) for n, sign in zip(sizes, (1, -1), strict=False)])

    deviations_RS = _drawn_rates(errors_SK, lengths_K, replicates, seed)
    deviations_RS -= deviations_RS.mean(0)
    num_effective = lengths_K.sum() ** 2 / (lengths_K**2).sum()  # as many blocks of equal length
    unbiased = num_effective / (num_effective - 1)
    of_blocks = unbiased * float(np.mean((deviations_RS @ weights_S) ** 2))
    seeds_freedom = sum(sizes) - len(sizes)
    of_seeds = of_noise = 0.0
    if seeds_freedom:
        share = sum(1 / n for n in sizes)
        of_seeds = share * float(_variance_within(rates_S, sizes))
        of_noise = share * unbiased * float(_variance_within(deviations_RS, sizes).mean())
    speakers = max(1.0, num_effective - 1)
    fixed = [(of_blocks, speakers)]
    trained_again = [(max(0.0, of_blocks - of_noise), speakers), (of_seeds, float(max(1, seeds_freedom)))]
    estimate = round(float(rates_S @ weights_S), DIGITS)
    return _interval(estimate, [fixed, trained_again])


def _check(sides: Sequence[Sequence[Scored]], scored: Sequence[Scored], blocks: Sequence[str]) -> None:
    if not all(sides):
        raise ValueError("a side has no results; it needs those of one seed at least")
    first, *others = scored
    for number, other in enumerate(others, start=2):
        for place, (ours, theirs) in enumerate(zip(first.ids, other.ids, strict=False)):
            if ours != theirs:
                raise ValueError(f"utterance {place + 1} is {ours} in result 1 and {theirs} in result {number}")
        if len(first.ids) != len(other.ids):
            longer, where = (first, 1) if len(first.ids) > len(other.ids) else (other, number)
            missing = longer.ids[min(len(first.ids), len(other.ids))]
            raise ValueError(f"utterance {missing} is in result {where} of results 1 and {number} only")
        if len(unequal := np.flatnonzero(first.lengths != other.lengths)):
            place = int(unequal[0])
            raise ValueError(
                f"the reference of utterance {first.ids[place]} has length {first.lengths[place]} in result 1 and "
                f"{other.lengths[place]} in result {number}"
            )
    if len(blocks) != len(first.ids):
        raise ValueError(f"{len(blocks)} speakers for {len(first.ids)} utterances; each needs one")


def _block_of(blocks: Sequence[str]) -> np.ndarray:
    """The number of each utterance's block."""
    named = [("speaker", block) if block else ("utterance", str(place)) for place, block in enumerate(blocks)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(named))}
    if len(numbers) == 1:
        return np.arange(len(blocks))
    return np.array([numbers[name] for name in named])


def _drawn_rates(errors_SK: np.ndarray, lengths_K: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """(replicates x seeds): the rates on as many blocks as there are, drawn with replacement."""
    drawn = [
        (times_RK @ errors_SK.T) / np.maximum(times_RK @ lengths_K, 1.0)[:, None]
        for times_RK in _draws(len(lengths_K), replicates, seed)
    ]
    return np.concatenate(drawn)


def _draws(num: int, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of `num` blocks is in each draw, some draws at once."""
    generator = np.random.default_rng(seed)
    at_once = max(1, DRAWS_AT_ONCE // num)
    for start in range(0, replicates, at_once):
        rows = min(at_once, replicates - start)
        chosen = generator.integers(num, size=(rows, num)) + num * np.arange(rows)[:, None]
        yield np.bincount(chosen.ravel(), minlength=rows * num).reshape(rows, num).astype(float)


def _variance_within(values: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Variance between the seeds of a side (the last axis), pooled over the sides."""
    sides = np.split(values, np.cumsum(sizes)[:-1], axis=-1)
    squares = sum(((side - side.mean(-1, keepdims=True)) ** 2).sum(-1) for side in sides)
    return np.asarray(squares / (sum(sizes) - len(sizes)))


def _interval(estimate: float, alternatives: Sequence[Sequence[tuple[float, float]]]) -> Difference:
    """The widest of the alternatives: variances that add up to the error, each with its degrees of freedom."""

    def margin(p: float) -> float:
        squares = (
            sum(variance * float(scipy.stats.t.isf(p / 2, freedom)) ** 2 for variance, freedom in parts)
            for parts in alternatives
        )
        return math.sqrt(max(squares))

    return Difference(estimate, estimate - margin(0.05), estimate + margin(0.05), _p_value(estimate, margin))


def _p_value(estimate: float, margin: Callable[[float], float]) -> float:
    """One less the confidence of the interval that just reaches 0; never below SMALLEST_P."""
    if margin(1.0) >= abs(estimate):
        return 1.0
    if margin(SMALLEST_P) <= abs(estimate):
        return SMALLEST_P
    return float(scipy.optimize.brentq(lambda p: margin(p) - abs(estimate), SMALLEST_P, 1.0))
