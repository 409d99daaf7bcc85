"""Early stopping: which trials need not be trained to their end.

A rule sees every evaluation of every trial once, in the order in which they arrive, and says of each whether its trial
should stop. It knows nothing else, so the same evaluations in the same order give the same decisions. All values are
minimised.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from trainables.config import Config

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Shares that differ by less are the same: 3 x 1/9 and 90/270 need not be equal in floating point.
SHARE_TOLERANCE = 1e-9


class AshaConfig(Config):
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934), the variant that stops and never pauses.

    With several objectives trials are ranked as in Schmucker et al. 2021 (arXiv:2106.12639): by non-dominated sorting,
    and within a front by crowding distance (Deb et al. 2002), which takes the place of their epsilon-net.
    """

    kind: Literal["asha"] = "asha"
    reduction_factor: int = Field(3, ge=2, description="of this many trials about one goes on at each rung")
    first_rung: float = Field(
        1 / 6,
        gt=0,
        lt=1,
        description="share of a trial's labelled training at which trials are first compared. While recognisers emit "
        "only blanks they cannot be ranked, so short trainings need a later first rung",
    )
    rung_spacing: float | None = Field(
        None,
        gt=1,
        description="each further rung is so many times as far (default: reduction_factor, as in the paper). Closer "
        "rungs stop more trials; with several objectives they stop the ends of the front, too",
    )
    across_arms: bool = Field(False, description="compare trials of all arms with one another, not each arm by itself")


class MedianConfig(Config):
    """The median stopping rule (Golovin et al. 2017, Google Vizier). It looks at the first objective alone."""

    kind: Literal["median"] = "median"
    first_look: float = Field(
        0.2, gt=0, lt=1, description="share of a trial's labelled training from which it can be stopped"
    )
    min_trials: int = Field(5, ge=1, description="others that must have come as far before a trial can be stopped")
    across_arms: bool = Field(False, description="compare trials of all arms with one another, not each arm by itself")


EarlyStoppingConfig = Annotated[AshaConfig | MedianConfig, Field(discriminator="kind")]


@dataclass
class _TrialState:
    progress: float = 0.0  # at its last evaluation
    best: float = math.inf  # lowest finite value of the first objective so far
    stopped: bool = False


@dataclass(frozen=True)
class _Evaluation:
    """An evaluation that is new, of a trial that was not stopped before."""

    trial: str
    group: str
    progress_before: float  # at the evaluation before this one
    progress: float
    best: float  # lowest value of the first objective, this evaluation's included
    values: tuple[float, ...]

    def passes(self, share: float) -> bool:
        """Whether this is the trial's first evaluation at or after this share of its training."""
        return self.progress_before < share - SHARE_TOLERANCE <= self.progress


class EarlyStopper:
    """Applies a rule to evaluations as they arrive.

    A study that was killed makes a new one, and hands it what was recorded, in the order in which it was recorded.
    """

    def __init__(self, config: AshaConfig | MedianConfig) -> None:
        self._rule = _Asha(config) if isinstance(config, AshaConfig) else _Median(config)
        self._trials: defaultdict[str, _TrialState] = defaultdict(_TrialState)

    def observe(self, trial: str, group: str, progress: float, values: Sequence[float]) -> bool:
        """Whether the trial should stop.

        `progress`: the share, in (0, 1], of the trial's labelled training that is done at this evaluation.
        `values`: what is minimised, the target metric first, then the other objectives; a value that is not finite is
        worse than every finite one. `group`: what trials are compared within (the arm, or "" for all).

        An evaluation at or before the trial's last changes nothing. A stopped trial stays stopped, and what it reports
        afterwards counts nowhere. A trial at progress 1 is finished, and never stopped.
        Raises ValueError when `progress` is outside (0, 1].
        """
        if not 0 < progress <= 1:
            raise ValueError(f"{trial}: progress must be in (0, 1], not {progress}")
        state = self._trials[trial]
        if state.stopped or progress <= state.progress:
            return state.stopped
        ranked = tuple(value if math.isfinite(value) else math.inf for value in values)
        state.best = min(state.best, ranked[0])
        evaluation = _Evaluation(trial, group, state.progress, progress, state.best, ranked)
        state.progress = progress
        state.stopped = self._rule.rejects(evaluation) and progress < 1
        return state.stopped


class _Asha:
    def __init__(self, config: AshaConfig) -> None:
        self._factor = config.reduction_factor
        self._shares = _rung_shares(config)
        self._rungs: defaultdict[tuple[str, float], _Rung] = defaultdict(_Rung)

    def rejects(self, evaluation: _Evaluation) -> bool:
        """Records the trial at every rung that this evaluation passes. True when it is not among the best of each."""
        passed = [share for share in self._shares if evaluation.passes(share)]
        point = (evaluation.best, *evaluation.values[1:])
        kept = [self._rungs[evaluation.group, share].keeps(point, self._factor) for share in passed]
        return not all(kept)


def _rung_shares(config: AshaConfig) -> list[float]:
    shares, share = [], config.first_rung
    while share < 1 - SHARE_TOLERANCE:
        shares.append(share)
        share *= config.rung_spacing or config.reduction_factor
    return shares


class _Rung:
    """What the trials of a group had when they passed a rung."""

    def __init__(self) -> None:
        self._trials = 0
        self._values: list[float] = []  # with a single objective, ascending
        self._fronts: list[Floats] = []  # with several
        self._not_finite = 0  # points of either kind; they are behind all others

    def keeps(self, point: tuple[float, ...], factor: int) -> bool:
        """Whether the point, once added, is among the best ceil(trials / factor), ties in its favour.

        For one objective this is: not above the 1/factor quantile of all values, its own included. While there are
        fewer than `factor` trials it always is.
        """
        self._trials += 1
        ahead = self._add(point)
        return self._trials < factor or ahead < math.ceil(self._trials / factor)

    def _add(self, point: tuple[float, ...]) -> int:
        """Returns how many points are better."""
        if not all(map(math.isfinite, point)):
            self._not_finite += 1
            return self._trials - self._not_finite
        if len(point) == 1:
            insort(self._values, point[0])
            return bisect_left(self._values, point[0])
        level = insert_into_fronts(np.array([point]), self._fronts)
        distance = crowding_distance(self._fronts[level])
        return sum(map(len, self._fronts[:level])) + int(np.count_nonzero(distance > distance[-1]))


def insert_into_fronts(point: Floats, fronts: list[Floats]) -> int:
    """Put the point, a matrix of one row, at the end of the front to which it belongs. Returns that front's index.

    Rows of a front are points. Within a front none dominates another; each is dominated by one of the front before.
    What the new point dominates in its front moves to the front behind, and so on; where all of a front would move,
    those that come are a front of their own before it.
    """
    level = bisect_left(fronts, True, key=lambda front: not dominated(point, front)[0])
    coming, behind = point, level
    while len(coming) and behind < len(fronts):
        moving = dominated(fronts[behind], coming)
        if moving.all():
            break
        staying, leaving = fronts[behind][~moving], fronts[behind][moving]
        fronts[behind] = np.concatenate([staying, coming])
        coming, behind = leaving, behind + 1
    if len(coming):
        fronts.insert(behind, coming)
    return level


def dominated(points: Floats, others: Floats) -> Bools:
    """For each row of `points`, whether a row of `others` is nowhere above it and somewhere below it."""
    nowhere_above = np.ones((len(points), len(others)), dtype=np.bool_)
    somewhere_below = np.zeros_like(nowhere_above)
    for mine, theirs in zip(points.T, others.T, strict=True):
        nowhere_above &= theirs <= mine[:, None]
        somewhere_below |= theirs < mine[:, None]
    result: Bools = np.any(nowhere_above & somewhere_below, axis=1)
    return result


def crowding_distance(front: Floats) -> Floats:
    """How much room each row of `front` has to itself, as in NSGA-II (Deb et al. 2002). The extremes have most, inf.

    The sum over the objectives of the distance between the two neighbours, as a share of the front's extent. An
    objective in which all are equal adds nothing.
    """
    distance = np.zeros(len(front))
    for values in front.T:
        order = np.argsort(values, kind="stable")
        ascending = values[order]
        extent = ascending[-1] - ascending[0]
        if extent > 0:
            distance[order[1:-1]] += (ascending[2:] - ascending[:-2]) / extent
            distance[order[[0, -1]]] = np.inf
    return distance


class _Median:
    def __init__(self, config: MedianConfig) -> None:
        self._config = config
        self._curves: defaultdict[str, _MeanCurves] = defaultdict(_MeanCurves)

    def rejects(self, evaluation: _Evaluation) -> bool:
        """Records the evaluation. True when the trial's best is above the median of what others had on average."""
        curves = self._curves[evaluation.group]
        curves.add(evaluation.trial, evaluation.progress, evaluation.values[0])
        if evaluation.progress < self._config.first_look - SHARE_TOLERANCE:
            return False
        others = curves.means_of_others(evaluation.trial, evaluation.progress)
        return len(others) >= self._config.min_trials and evaluation.best > float(np.median(others))


class _MeanCurves:
    """The mean of each trial's values up to each of its evaluations; a trial is a row, an evaluation a column."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._evaluations = np.zeros(8, dtype=np.int64)  # of each row
        self._progress = np.full((8, 8), np.inf)  # inf where there is no evaluation
        self._mean = np.zeros((8, 8))

    def add(self, trial: str, progress: float, value: float) -> None:
        row = self._rows.setdefault(trial, len(self._rows))
        self._make_room(row)
        count = self._evaluations[row]
        before = self._mean[row, count - 1] if count else 0.0
        self._mean[row, count] = before if math.isinf(before) else before + (value - before) / (count + 1)
        self._progress[row, count] = progress
        self._evaluations[row] += 1

    def means_of_others(self, trial: str, progress: float) -> Floats:
        """The mean up to this progress of every other trial that has come as far."""
        rows = np.arange(len(self._rows))
        last = self._progress[rows, self._evaluations[rows] - 1]
        until = np.count_nonzero(self._progress[rows] <= progress + SHARE_TOLERANCE, axis=1)
        counted = (rows != self._rows[trial]) & (last >= progress - SHARE_TOLERANCE) & (until > 0)
        means: Floats = self._mean[rows[counted], until[counted] - 1]
        return means

    def _make_room(self, row: int) -> None:
        """Double the matrices in each direction in which this row's next evaluation would not fit."""
        rows, columns = self._mean.shape
        more_rows = rows if row == rows else 0
        more_columns = columns if row < rows and self._evaluations[row] == columns else 0
        if more_rows or more_columns:
            more = ((0, more_rows), (0, more_columns))
            self._mean = np.pad(self._mean, more)
            self._progress = np.pad(self._progress, more, constant_values=np.inf)
            self._evaluations = np.pad(self._evaluations, (0, more_rows))
