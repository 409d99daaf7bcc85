"""How often the intervals of scaling laws cover the truth: `python -m tests.study.scaling_calibration 2000`."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np

from study.scaling import Measurement, PowerLaw, bootstrap

SEEDS = 3
EXTRAPOLATION = 4  # times the largest size


def coverage(laws: int, seed: int, replicates: int = 100) -> dict[str, float]:
    """The share of laws whose 95 % intervals hold the truth.

    Of word error rates: from 10 to 90 % at the smallest size towards 0 to 30 %, exponents of 0.15 to 0.8, 5 to 7 sizes
    over 1.5 to 3 decades, 3 seeds with 1 to 5 % log-normal noise.
    """
    rng = np.random.default_rng(seed)
    covered: Counter[str] = Counter()
    for number in range(laws):
        alpha, asymptote, noise = rng.uniform(0.15, 0.8), rng.uniform(0.0, 0.3), rng.uniform(0.01, 0.05)
        factor = rng.uniform(asymptote + 0.1, 0.9) - asymptote
        sizes = np.geomspace(1, 10 ** rng.uniform(1.5, 3), int(rng.integers(5, 8)))
        at = EXTRAPOLATION * float(sizes[-1])

        def law(x: float, a: float = factor, exponent: float = alpha, end: float = asymptote) -> float:
            return end + a * x**-exponent

        runs = noisy_runs(law, sizes, noise, rng)
        found = bootstrap(runs, PowerLaw(), n=replicates, seed=number)
        new_run = law(at) * math.exp(noise * rng.standard_normal())
        for name, interval, truth in (
            ("curve", found.mean_at(at), law(at)),
            ("new run", found.new_run_at(at), new_run),
            ("alpha", found.parameter("alpha"), alpha),
            ("E", found.parameter("E"), asymptote),
        ):
            covered[name] += interval.low <= truth <= interval.high
    return {name: count / laws for name, count in covered.items()}


def noisy_runs(
    law: Callable[[float], float], sizes: np.ndarray, noise: float, rng: np.random.Generator, seeds: int = SEEDS
) -> list[Measurement]:
    """Runs of each size whose logarithms have normal noise."""
    return [
        Measurement(float(x), law(float(x)) * math.exp(noise * rng.standard_normal()), s)
        for x in sizes
        for s in range(seeds)
    ]


if __name__ == "__main__":
    for name, share in coverage(int(sys.argv[1]), seed=1).items():
        print(f"{name}: {share:.1%}")
