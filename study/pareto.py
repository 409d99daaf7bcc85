"""Several objectives at once, all minimised: what no other result beats, how good a set of results is, and how sure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Points = Sequence[Sequence[float]] | np.ndarray  # one value for each objective

MARGIN = 0.1  # of the reference point, beyond the worst


def non_dominated(points: Points) -> list[int]:
    """Indices of the points that no other dominates; of equal points all stay.

    A point dominates another when it is nowhere worse, and better in at least one objective.
    """
    array = np.asarray(points, dtype=float)
    if not len(array):
        return []
    nowhere_worse = np.all(array[:, None] <= array[None], axis=2)
    somewhere_better = np.any(array[:, None] < array[None], axis=2)
    dominated = np.any(nowhere_worse & somewhere_better, axis=0)
    return [int(index) for index in np.flatnonzero(~dominated)]


def reference_point(points: Points) -> list[float]:
    """The worst value of each objective, and 10 % of the range of its values more.

    So that the best in one objective counts even where it is the worst in all others. Where all values are equal, the
    10 % are of the value itself, or 0.1 where that is 0. Needs at least one point.
    """
    array = np.asarray(points, dtype=float)
    worst, extent = array.max(axis=0), np.ptp(array, axis=0)
    scale = np.where(extent > 0, extent, np.where(worst == 0, 1.0, np.abs(worst)))
    return [float(value) for value in worst + MARGIN * scale]


def hypervolume(points: Points, reference: Sequence[float] | np.ndarray) -> float:
    """The exact volume of what at least one of the points dominates, up to the reference point.

    A point that is not better than the reference in every objective adds nothing.
    """
    return hypervolume_over_time(points, reference)[-1] if len(points) else 0.0


def hypervolume_over_time(points: Points, reference: Sequence[float] | np.ndarray) -> list[float]:
    """The hypervolume of the points so far after each of them, in their order.

    Each point adds the volume that it alone dominates (WFG: While, Bradstreet and Barone, A Fast Way of Calculating
    Exact Hypervolumes, 2012).
    """
    end = np.asarray(reference, dtype=float)
    inside = [np.minimum(point, end) for point in points]
    volumes: list[float] = []
    for index, point in enumerate(inside):
        before = volumes[-1] if volumes else 0.0
        volumes.append(before + _added(point, inside[:index], end))
    return volumes


def _added(point: np.ndarray, others: Sequence[np.ndarray], reference: np.ndarray) -> float:
    """The volume that the point dominates and none of the others does."""
    alone = float(np.prod(reference - point))
    if not alone or not others:
        return alone
    shared = np.unique(np.maximum(others, point), axis=0)
    return max(0.0, alone - hypervolume(shared[non_dominated(shared)], reference))


def front_probability(samples: Sequence[Points], draws: int = 1000, seed: int = 0) -> list[float] | None:
    """For each configuration, given its results with every seed, how probably its mean is non-dominated.

    The share of bootstrap draws in which it is: each draws the seeds of every configuration with replacement, and takes
    the mean of each objective. The noise of a configuration with one seed is not known; it is taken as normal, with the
    standard deviation of each objective pooled over the configurations with several seeds. None where no configuration
    has several seeds: then nothing is known of the noise. A bootstrap of n seeds sees (n - 1) / n of the variance, so
    with two or three seeds the probabilities are nearer to 0 and 1 than they should be.
    """
    arrays = [np.asarray(results, dtype=float) for results in samples]
    deviation = _pooled_deviation(arrays)
    if deviation is None:
        return None
    generator = np.random.default_rng(seed)
    means = np.stack([_drawn_means(results, deviation, draws, generator) for results in arrays], axis=1)
    counts = np.zeros(len(arrays))
    for draw in means:
        counts[non_dominated(draw)] += 1
    return [float(share) for share in counts / draws]


def _pooled_deviation(arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    """Standard deviation of each objective between seeds; None where no configuration has several."""
    several = [results for results in arrays if len(results) > 1]
    if not several:
        return None
    squares = sum(((results - results.mean(axis=0)) ** 2).sum(axis=0) for results in several)
    return np.asarray(np.sqrt(squares / sum(len(results) - 1 for results in several)))


def _drawn_means(results: np.ndarray, deviation: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """(draws x objectives): the mean of each objective in every draw."""
    seeds, objectives = results.shape
    if seeds == 1:
        return results + deviation * generator.standard_normal((draws, objectives))
    return np.asarray(results[generator.integers(seeds, size=(draws, seeds))].mean(axis=1))
