"""How metrics, objectives and figures are written for people: in the terminal, the report and MLflow alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from study.spec import StudySpec
from study.statistics import Mean

# In the order in which they are shown. Every trial has character and word error rates; code-switched speech has mixed
# ones, too.
RATES = tuple(
    f"{split}_{rate}"
    for split in ("dev", "test")
    for rate in ("cer", "wer", "mer", "mer_switched", "mer_monolingual", "pier")
)
Rate = TypeVar("Rate")
WITH_LM = "_lm"  # ending of a rate that was decoded with a language model
ALWAYS_SHOWN = frozenset(f"{split}_{rate}" for split in ("dev", "test") for rate in ("cer", "wer"))


def shown_rates(found: Iterable[Mapping[str, object]]) -> list[str]:
    """The metrics of RATES that a table has columns for: those that any of its rows has, and the usual four."""
    there = {name for rates in found for name in rates}
    return [name for name in RATES if name in there or name in ALWAYS_SHOWN]


def by_decoding(rates: Mapping[str, Rate]) -> dict[str, dict[str, Rate]]:
    """The rates of greedy decoding, and of decoding with a language model where that was done, under the same names."""
    with_lm = {name.removesuffix(WITH_LM): rate for name, rate in rates.items() if name.endswith(WITH_LM)}
    greedy = {name: rate for name, rate in rates.items() if not name.endswith(WITH_LM)}
    return {"greedy": greedy, **({"+ LM": with_lm} if with_lm else {})}


def metric_name(metric: str) -> str:
    """`dev_cer` as a person reads it; `dev_wer_lm` is `dev WER + LM`."""
    split, _, rate = metric.removesuffix(WITH_LM).partition("_")
    name, _, of = rate.partition("_")
    decoding = " + LM" if metric.endswith(WITH_LM) else ""
    return f"{split} {name.upper()}{f' {of}' if of else ''}{decoding}"


def rate_text(mean: Mean | None) -> str:
    """`31.2% (29.8-32.6)`; without an interval where one trial stands for the arm."""
    if mean is None:
        return ""
    if mean.low is None or mean.high is None:
        return f"{mean.estimate:.1%}"
    return f"{mean.estimate:.1%} ({100 * max(0.0, mean.low):.1f}-{100 * mean.high:.1f})"  # no rate is below zero


def objective_name(objective: str) -> str:
    """As a person reads it; `accelerator_hours` is `accelerator hours`."""
    return metric_name(objective) if objective.startswith(("dev_", "test_")) else objective.replace("_", " ")


def objective_text(objective: str, mean: Mean) -> str:
    """With the interval, where there is one and its ends differ in three digits."""
    if objective.startswith(("dev_", "test_")):
        return rate_text(mean)
    if objective == "parameters":
        return f"{mean.estimate:,.0f}"  # the same with every seed
    if mean.low is None or mean.high is None:
        return f"{mean.estimate:.3g}"
    low, high = f"{max(0.0, mean.low):.3g}", f"{mean.high:.3g}"  # neither time nor cost is below zero
    return f"{mean.estimate:.3g} ({low}-{high})" if low != high else low


def probability_text(probability: float | None) -> str:
    return "unknown" if probability is None else f"{probability:.0%}"


def goal_text(spec: StudySpec) -> str:
    """`dev CER of 50%`."""
    return f"{metric_name(spec.convergence.metric)} of {target_text(spec.convergence.target)}"


def target_text(target: float) -> str:
    """`12.5%`: as it was written, for rounded it would be another one."""
    return f"{100 * target:.4g}%"


def time_text(seconds: float) -> str:
    """In the unit that a person would use: `45 s`, `12.3 min`, `5.2 h`."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.3g} s"
