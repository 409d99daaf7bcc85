"""Whether a claim of direction, "this is lower than that", holds over pairs of configurations."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from study.statistics import Mean, mean_of

SIGNIFICANT = 0.05  # p-values from here down
FEWEST_SEEDS = 2  # on each side of a pair; with one, chance cannot be told from the training


@dataclass(frozen=True)
class Pair:
    """Two configurations: the claim says that the value of the first, `low`, is below that of the second, `high`."""

    name: str
    low: float
    high: float
    seeds: int  # the fewer of both sides
    trials: tuple[str, ...]

    @property
    def difference(self) -> float:
        """Below zero: in the direction claimed."""
        return self.low - self.high


@dataclass(frozen=True)
class Direction:
    """The pairs that a study has measured, of those that a claim is about.

    The p-value is that of the exact one-sided sign test over pairs with several seeds on each side, without pairs of
    equal values. Pairs that have a configuration in common are not independent, and p is then a rough guide.
    """

    pairs: tuple[Pair, ...]
    claimed: int | None = None  # pairs in the publication; None: it does not say

    @property
    def replicated(self) -> tuple[Pair, ...]:
        return tuple(pair for pair in self.pairs if pair.seeds >= FEWEST_SEEDS)

    @property
    def told_by(self) -> tuple[Pair, ...]:
        """Those with several seeds; all of them where none has."""
        return self.replicated or self.pairs

    @property
    def holding(self) -> int:
        """How many of them go in the direction claimed."""
        return sum(pair.difference < 0 for pair in self.told_by)

    @property
    def opposite(self) -> int:
        return sum(pair.difference > 0 for pair in self.told_by)

    @property
    def p_value(self) -> float | None:
        """None: no pair has several seeds on each side."""
        return sign_test(self.holding, self.opposite) if self.replicated else None

    @property
    def difference(self) -> Mean | None:
        """Mean over pairs, with Student's t interval."""
        return mean_of([pair.difference for pair in self.told_by]) if self.pairs else None

    @property
    def relative(self) -> Mean | None:
        """The same, as a share of the value that is said to be higher."""
        positive = [pair for pair in self.told_by if pair.high > 0]
        return mean_of([pair.difference / pair.high for pair in positive]) if positive else None

    @property
    def trials(self) -> list[str]:
        return list(dict.fromkeys(trial for pair in self.told_by for trial in pair.trials))

    @property
    def verdict(self) -> str:
        counted = f"{self.holding} of {len(self.told_by)} pairs"
        if not self.pairs:
            return "cannot be told: no pair is measured"
        if self.p_value is None:
            return f"cannot be told: one seed on a side ({counted} go in the direction claimed)"
        opposite = sign_test(self.opposite, self.holding)
        if self.p_value <= SIGNIFICANT:
            conclusion = ""
        elif opposite <= SIGNIFICANT:
            conclusion = f": the opposite direction, {p_text(opposite)}"
        elif 0.5 ** (self.holding + self.opposite) > SIGNIFICANT:
            conclusion = ": too few pairs to tell it from chance"
        else:
            conclusion = ": not told from chance"
        return f"holds for {counted}, {p_text(self.p_value)}{conclusion}"


def sign_test(holding: int, opposite: int) -> float:
    """The probability of at least `holding` pairs in the direction claimed, were both directions alike."""
    pairs = holding + opposite
    return sum(math.comb(pairs, k) for k in range(holding, pairs + 1)) * 0.5**pairs


def direction_as_dict(found: Direction) -> dict[str, Any]:
    return {
        "pairs": [asdict(pair) for pair in found.pairs],
        "claimed": found.claimed,
        "replicated": len(found.replicated),
        "holding": found.holding,
        "p_value": found.p_value,
        "difference": asdict(found.difference) if found.difference else None,
        "relative": asdict(found.relative) if found.relative else None,
        "verdict": found.verdict,
    }


def p_text(p_value: float) -> str:
    """`p = 0.09`: two digits, and nothing below a thousandth."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"
