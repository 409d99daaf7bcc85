"""Scaling laws: how an error rate falls with size, with intervals that a new run respects, or why no law can be told.

Sizes are hours of speech, parameters or updates; values are error rates, as fractions. Laws are fitted to the
logarithms of the values, for the noise of training is a share of the value.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy.stats
from numpy.typing import NDArray

Array = NDArray[np.float64]
RealOrComplex = NDArray[np.inexact]  # complex for derivatives

MIN_SIZES = 5  # distinct ones
MIN_DECADES = 1.5
ROUNDING = 0.01  # decades: suggested sizes have three digits
CONFIDENCE = 0.95
HUBER = 1.345  # standard deviations: 95 % of the efficiency of least squares where the noise is normal
MIN_DELTA = 1e-3  # of Hoffmann et al. (2022), for losses without visible noise
MAX_ITERATIONS = 300
MAX_EXPONENT = 4.0
MOST_CORRELATED = 0.9  # of the logarithms of two sizes
REPEATS = 15.0  # R* of Muennighoff et al. (2023)


class ScalingError(ValueError):
    """No law can be fitted; the message says why."""


@dataclass(frozen=True)
class Measurement:
    """The final value of a run. `second` is what `Repetition` and `Joint` take beside the size."""

    size: float
    value: float
    seed: int
    second: float = 1.0


class Form(abc.ABC):
    """A family of laws. Scale factors are handled as logarithms."""

    names: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def values(self, parameters: RealOrComplex, sizes: Array) -> RealOrComplex:
        """The value of each of B laws, given as (B, parameters), at each of N sizes, given as (N, 2); (B, N)."""

    @abc.abstractmethod
    def starts(self, log_values: Array, sizes: Array) -> Array:
        """Parameters to start a fit from; (starts, parameters). Values and sizes have a geometric mean of 1."""

    @abc.abstractmethod
    def bounds(self, log_values: Array) -> tuple[Array, Array]:
        """The lowest and the highest value of each parameter, where values and sizes have a geometric mean of 1."""

    @abc.abstractmethod
    def in_units(self, parameters: Array, size: float, second: float, value: float) -> Array:
        """The parameters (B, parameters) for sizes and values in these units, with A and B instead of logarithms."""


@dataclass(frozen=True)
class PowerLaw(Form):
    """y = E + A x^-alpha."""

    names: ClassVar[tuple[str, ...]] = ("A", "alpha", "E")

    def values(self, parameters: RealOrComplex, sizes: Array) -> RealOrComplex:
        log_A, alpha, E = parameters.T[..., None]
        return np.asarray(E + np.exp(log_A - alpha * np.log(sizes[:, 0])))

    def starts(self, log_values: Array, sizes: Array) -> Array:
        return _starts(log_values, sizes[:, 0], shares=(0.0, 0.3, 0.6, 0.9))

    def bounds(self, log_values: Array) -> tuple[Array, Array]:
        return np.array([-20.0, 0.0, 0.0]), np.array([20.0, MAX_EXPONENT, math.exp(log_values.max())])

    def in_units(self, parameters: Array, size: float, second: float, value: float) -> Array:
        log_A, alpha, E = parameters.T
        return np.stack([value * np.exp(log_A + alpha * math.log(size)), alpha, value * E], axis=1)


@dataclass(frozen=True)
class NoAsymptote(Form):
    """y = A x^-alpha: more data would bring the error rate down to nothing."""

    names: ClassVar[tuple[str, ...]] = ("A", "alpha")

    def values(self, parameters: RealOrComplex, sizes: Array) -> RealOrComplex:
        log_A, alpha = parameters.T[..., None]
        return np.asarray(np.exp(log_A - alpha * np.log(sizes[:, 0])))

    def starts(self, log_values: Array, sizes: Array) -> Array:
        return _starts(log_values, sizes[:, 0], shares=(0.0,))[:, :2]

    def bounds(self, log_values: Array) -> tuple[Array, Array]:
        return np.array([-20.0, 0.0]), np.array([20.0, MAX_EXPONENT])

    def in_units(self, parameters: Array, size: float, second: float, value: float) -> Array:
        log_A, alpha = parameters.T
        return np.stack([value * np.exp(log_A + alpha * math.log(size)), alpha], axis=1)


@dataclass(frozen=True)
class Repetition(Form):
    """y = E + A D'^-alpha of U unique hours that are seen in several epochs, which are the measurements' `second`.

    D' = U + U R* (1 - exp(-R / R*)), where R = epochs - 1 (Muennighoff et al., 2023): repetitions are worth less and
    less.
    """

    repeats: float | None = REPEATS  # R*; None: fitted, too

    names: ClassVar[tuple[str, ...]] = ("A", "alpha", "E", "R*")

    def values(self, parameters: RealOrComplex, sizes: Array) -> RealOrComplex:
        log_A, alpha, E, log_repeats = parameters.T[..., None]
        unique, epochs = sizes.T
        worth = np.log(_worth(epochs, np.exp(log_repeats)))
        return np.asarray(E + np.exp(log_A - alpha * (np.log(unique) + worth)))

    def starts(self, log_values: Array, sizes: Array) -> Array:
        found = []
        for repeats in (self.repeats,) if self.repeats else (3.0, REPEATS, 75.0):
            effective = sizes[:, 0] * _worth(sizes[:, 1], repeats).real
            plain = _starts(log_values, effective, shares=(0.0, 0.3, 0.6, 0.9))
            found.append(np.column_stack([plain, np.full(len(plain), math.log(repeats))]))
        return np.concatenate(found)

    def bounds(self, log_values: Array) -> tuple[Array, Array]:
        low, high = PowerLaw().bounds(log_values)
        ends = (self.repeats, self.repeats) if self.repeats else (0.1, 1e4)
        return np.append(low, math.log(ends[0])), np.append(high, math.log(ends[1]))

    def in_units(self, parameters: Array, size: float, second: float, value: float) -> Array:
        plain = PowerLaw().in_units(parameters[:, :3], size, second, value)
        return np.column_stack([plain, np.exp(parameters[:, 3])])


def _worth(epochs: Array, repeats: float | RealOrComplex) -> RealOrComplex:
    """How many unique hours an hour counts as that is seen in so many epochs."""
    return np.asarray(1 + repeats * (1 - np.exp(-(epochs - 1) / repeats)))


def effective_size(measurement: Measurement, repeats: float = REPEATS) -> float:
    """D' of `Repetition`: the unique hours that would serve as well as these in several epochs."""
    return float(measurement.size * _worth(np.array(measurement.second), repeats).real)


@dataclass(frozen=True)
class Joint(Form):
    """y = E + A N^-alpha + B D^-beta; the size is N, the measurements' `second` is D (Hoffmann et al., 2022)."""

    names: ClassVar[tuple[str, ...]] = ("A", "alpha", "B", "beta", "E")

    def values(self, parameters: RealOrComplex, sizes: Array) -> RealOrComplex:
        log_A, alpha, log_B, beta, E = parameters.T[..., None]
        first, second = np.log(sizes).T
        return np.asarray(E + np.exp(log_A - alpha * first) + np.exp(log_B - beta * second))

    def starts(self, log_values: Array, sizes: Array) -> Array:
        lowest = math.exp(log_values.min())
        grid = [
            (math.log(share), alpha, math.log(1 - share), beta, asymptote * lowest)
            for share in (0.2, 0.5, 0.8)
            for alpha in (0.2, 0.6, 1.2)
            for beta in (0.2, 0.6, 1.2)
            for asymptote in (0.0, 0.5)
        ]
        return np.array(grid)

    def bounds(self, log_values: Array) -> tuple[Array, Array]:
        low = np.array([-20.0, 0.0, -20.0, 0.0, 0.0])
        return low, np.array([20.0, MAX_EXPONENT, 20.0, MAX_EXPONENT, math.exp(log_values.max())])

    def in_units(self, parameters: Array, size: float, second: float, value: float) -> Array:
        log_A, alpha, log_B, beta, E = parameters.T
        A, B = np.exp(log_A + alpha * math.log(size)), np.exp(log_B + beta * math.log(second))
        return np.stack([value * A, alpha, value * B, beta, value * E], axis=1)


def _starts(log_values: Array, sizes: Array, shares: Sequence[float]) -> Array:
    """A grid of exponents and of asymptotes, as shares of the lowest value; the factor goes through the mean."""
    lowest = math.exp(log_values.min())
    mean = float(np.exp(log_values).mean())
    log_sizes = np.log(sizes)
    return np.array(
        [
            (math.log(max(mean - share * lowest, 1e-6)) + alpha * log_sizes.mean(), alpha, share * lowest)
            for alpha in (0.1, 0.3, 0.7, 1.5)
            for share in shares
        ]
    )


def _fitted(form: Form, log_values: Array, sizes: Array, starts: Array, delta: float) -> tuple[Array, Array, Array]:
    """B fits at once: Huber's loss of the logarithms, minimised within the form's bounds.

    log_values and starts have B rows. Levenberg-Marquardt on reweighted squares; a parameter at its bound that would
    leave it is held there. Returns the parameters, the losses, and which fits have converged.
    """
    low, high = form.bounds(log_values)
    parameters = np.clip(starts, low, high)
    losses = _loss(form, parameters, log_values, sizes, delta)
    damping = np.full(len(parameters), 1e-3)
    converged = np.zeros(len(parameters), dtype=bool)
    for _ in range(MAX_ITERATIONS):
        open_ = np.flatnonzero(~converged)
        if not open_.size:
            break
        now, targets = parameters[open_], log_values[open_]
        values, slopes = _slopes(form, now, sizes)
        residuals = np.log(values) - targets
        weights = np.minimum(1.0, delta / np.maximum(np.abs(residuals), 1e-300))
        gradient = np.einsum("bnp,bn->bp", slopes, weights * residuals)
        held = ((now <= low) & (gradient >= 0)) | ((now >= high) & (gradient <= 0))
        slopes = np.where(held[:, None, :], 0.0, slopes)
        gradient = np.where(held, 0.0, gradient)
        curvature = np.einsum("bnp,bn,bnq->bpq", slopes, weights, slopes)
        diagonal = np.einsum("bpp->bp", curvature)
        diagonal += damping[open_, None] * diagonal + np.where(held, 1.0, 1e-12)
        steps = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        proposed = np.clip(now - steps, low, high)
        proposed_losses = _loss(form, proposed, targets, sizes, delta)
        better = proposed_losses <= losses[open_]
        gain = np.einsum("bp,bp->b", gradient, steps)
        converged[open_] = gain <= 1e-9 * losses[open_] + 1e-20
        parameters[open_] = np.where(better[:, None], proposed, now)
        losses[open_] = np.where(better, proposed_losses, losses[open_])
        damping[open_] = np.clip(damping[open_] * np.where(better, 0.2, 5.0), 1e-12, 1e12)
    return parameters, losses, converged


def _loss(form: Form, parameters: Array, log_values: Array, sizes: Array, delta: float) -> Array:
    size = np.abs(np.log(form.values(parameters, sizes)) - log_values)
    return np.asarray(np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).sum(1))


def _slopes(form: Form, parameters: Array, sizes: Array) -> tuple[Array, Array]:
    """Values (B, N), and the derivatives of their logarithms (B, N, parameters) by complex steps, exact to rounding."""
    values = np.asarray(form.values(parameters, sizes).real)
    step = 1e-30
    columns = []
    for place in range(parameters.shape[1]):
        moved = parameters.astype(complex)
        moved[:, place] += 1j * step
        columns.append(form.values(moved, sizes).imag / step / values)
    return values, np.stack(columns, axis=-1)


@dataclass(frozen=True)
class _Data:
    """Measurements in units in which sizes and values have a geometric mean of 1, which makes fits free of units."""

    log_values: Array  # (N,)
    sizes: Array  # (N, 2)
    cells: NDArray[np.intp]  # (N,), equal for runs that differ in nothing but the seed
    units: tuple[float, float, float]  # of size, second and value

    @classmethod
    def of(cls, measurements: Sequence[Measurement], form: Form) -> _Data:
        if not measurements:
            raise ScalingError("there are no measurements")
        for m in measurements:
            if not all(math.isfinite(v) and v > 0 for v in (m.size, m.second, m.value)):
                raise ScalingError(f"sizes and values must be positive numbers, got {m}")
        raw = np.array([(m.size, m.second) for m in measurements])
        log_values = np.log([m.value for m in measurements])
        size, second = np.exp(np.log(raw).mean(0))
        units = (float(size), float(second) if isinstance(form, Joint) else 1.0, float(np.exp(log_values.mean())))
        _, cells = np.unique(raw, axis=0, return_inverse=True)
        return cls(log_values - log_values.mean(), raw / units[:2], cells.reshape(-1), units)

    @property
    def distinct(self) -> int:
        return int(self.cells.max()) + 1

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the noise."""
        return len(self.cells) - self.distinct

    @property
    def means(self) -> Array:
        """The mean of the logarithms over the seeds, for each measurement that of its own size; (N,)."""
        totals = np.bincount(self.cells, self.log_values)
        return np.asarray((totals / np.bincount(self.cells))[self.cells])

    @property
    def noise(self) -> float:
        """Standard deviation of the logarithm over seeds, pooled over sizes; 0 where no size has two seeds."""
        residuals = self.log_values - self.means
        return math.sqrt(float(residuals @ residuals) / self.freedom) if self.freedom else 0.0

    @property
    def delta(self) -> float:
        """Where Huber's loss turns from squares to magnitudes: what lies beyond is rather an outlier than noise."""
        return max(HUBER * self.noise, MIN_DELTA)


@dataclass(frozen=True)
class Law:
    """A fitted form."""

    form: Form
    normalised: Array  # parameters in the units of the fit
    units: tuple[float, float, float]
    noise: float  # standard deviation of the logarithm of a run's value, over seeds
    misfit: float | None  # p-value of the lack-of-fit test; None where seeds or sizes are too few for it

    @property
    def parameters(self) -> dict[str, float]:
        """By name, in the units of the measurements."""
        (values,) = self.form.in_units(self.normalised[None], *self.units)
        return dict(zip(self.form.names, map(float, values), strict=True))

    def predict(self, size: float, second: float = 1.0) -> float:
        """The value at the size."""
        return float(_predicted(self, self.normalised[None], size, second)[0])


def _predicted(law: Law, parameters: Array, size: float, second: float = 1.0) -> Array:
    """What each row of parameters says of the size; (B,)."""
    at = np.array([[size / law.units[0], second / law.units[1]]])
    return np.asarray(law.units[2] * law.form.values(parameters, at)[:, 0])


def fit(measurements: Sequence[Measurement], form: Form) -> Law:
    """Huber's loss of the logarithms, from a grid of starts, within bounds; E is never negative.

    Huber's delta is 1.345 standard deviations of the noise over seeds, and 0.001 where seeds do not differ. Raises
    ScalingError.
    """
    data = _Data.of(measurements, form)
    low, high = form.bounds(data.log_values)
    free = int((low < high).sum())
    if data.distinct < free:
        raise ScalingError(f"{data.distinct} distinct sizes cannot tell {free} parameters")
    starts = form.starts(data.log_values, data.sizes)
    rows = np.tile(data.log_values, (len(starts), 1))
    parameters, losses, converged = _fitted(form, rows, data.sizes, starts, data.delta)
    if not converged.any():
        raise ScalingError(f"no fit from {len(starts)} starts has converged in {MAX_ITERATIONS} iterations")
    best = parameters[np.where(converged, losses, np.inf).argmin()]
    return Law(form, best, data.units, data.noise, _lack_of_fit(data, form, best, free))


def _lack_of_fit(data: _Data, form: Form, parameters: Array, free: int) -> float | None:
    """Whether the means over seeds lie farther from the curve than noise explains: the F test against pure error."""
    if not data.noise or data.distinct <= free:
        return None
    distances = data.means - np.log(form.values(parameters[None], data.sizes)[0])
    ratio = float(distances @ distances) / (data.distinct - free) / data.noise**2
    return float(scipy.stats.f.sf(ratio, data.distinct - free, data.freedom))


@dataclass(frozen=True)
class HeldOut:
    """How a form that has not seen the largest size predicts it."""

    form: Form
    error: float  # of the logarithm: 0.02 is 2 % too high
    standard_error: float  # of the mean that was measured there

    @property
    def name(self) -> str:
        return type(self.form).__name__


def compare_forms(
    measurements: Sequence[Measurement], forms: Sequence[Form] = (NoAsymptote(), PowerLaw())
) -> list[HeldOut]:
    """Each form is fitted without the largest size, and predicts it. Raises ScalingError."""
    largest = max(m.size for m in measurements)
    seen = [m for m in measurements if m.size < largest]
    unseen = [m for m in measurements if m.size == largest]
    measured = np.log([m.value for m in unseen])
    found = []
    for form in forms:
        law = fit(seen, form)
        predicted = np.log([law.predict(m.size, m.second) for m in unseen])
        found.append(HeldOut(form, float((predicted - measured).mean()), law.noise / math.sqrt(len(unseen))))
    return found


def preferred(compared: Sequence[HeldOut]) -> HeldOut:
    """The form with the fewest parameters of those whose error is within a standard error of the least."""
    least = min(abs(c.error) for c in compared)
    near = [c for c in compared if abs(c.error) <= least + c.standard_error + 1e-6]
    return min(near, key=lambda c: len(c.form.names))


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Bootstrap:
    """A law, and the laws that other seeds could have led to."""

    law: Law
    resampled: Array  # (B, parameters), in the units of the fit
    noise: Array  # (B,) draws of the noise of a new run, on the logarithm

    def parameter(self, name: str) -> Interval:
        """Of the law, such as alpha."""
        values = self.law.form.in_units(self.resampled, *self.law.units)[:, self.law.form.names.index(name)]
        return _interval(self.law.parameters[name], values)

    def mean_at(self, size: float, second: float = 1.0) -> Interval:
        """The curve at the size: the mean over many seeds."""
        return _interval(self.law.predict(size, second), _predicted(self.law, self.resampled, size, second))

    def new_run_at(self, size: float, second: float = 1.0) -> Interval:
        """A single new run of the size, its noise included."""
        values = _predicted(self.law, self.resampled, size, second) * np.exp(self.noise)
        return _interval(self.law.predict(size, second), values)


def _interval(estimate: float, values: Array) -> Interval:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(estimate, float(low), float(high))


def bootstrap(measurements: Sequence[Measurement], form: Form, n: int = 1000, seed: int = 0) -> Bootstrap:
    """Seeds drawn again at every size, and the law fitted again each time; intervals are percentiles.

    Each draw is the mean of its size plus a residual of any size. With few seeds, residuals are smaller than the noise,
    and how large the noise is, is itself uncertain: they are enlarged by the root of N / (N - sizes), and by the
    quantile of Student's t over that of the normal distribution. Raises ScalingError, also where no size has two seeds.
    """
    law = fit(measurements, form)
    data = _Data.of(measurements, form)
    if not data.freedom:
        raise ScalingError("no size has two seeds, so that the noise is unknown")
    quantile = (1 + CONFIDENCE) / 2
    widening = float(scipy.stats.t.ppf(quantile, data.freedom) / scipy.stats.norm.ppf(quantile))
    residuals = widening * math.sqrt(len(data.cells) / data.freedom) * (data.log_values - data.means)
    rng = np.random.default_rng(seed)
    drawn = data.means + rng.choice(residuals, (n, len(residuals)))
    starts = np.tile(law.normalised, (n, 1))
    parameters, _, converged = _fitted(form, drawn, data.sizes, starts, data.delta)
    if converged.mean() < 0.95:
        raise ScalingError(f"{n - int(converged.sum())} of {n} fits of resampled seeds have not converged")
    kept = parameters[converged]
    return Bootstrap(law, kept, rng.choice(residuals, len(kept)))


def refuse_joint(measurements: Sequence[Measurement]) -> str | None:
    """The same for `Joint`: each of its two sizes must vary enough, and neither only together with the other."""
    reasons = [refuse(measurements)]
    if measurements:
        reasons.append(refuse([Measurement(m.second, m.value, m.seed) for m in measurements]))
    names = ("of the first size", "of the second size")
    found = [f"{name}, {reason}" for name, reason in zip(names, reasons, strict=False) if reason]
    if not found and abs(_correlation(measurements)) > MOST_CORRELATED:
        found.append(
            "both sizes grow together, so that what each brings cannot be told apart: run the largest first size with "
            "the smallest second size, and the other way round, next"
        )
    return "; ".join(found) or None


def _correlation(measurements: Sequence[Measurement]) -> float:
    first, second = np.log([(m.size, m.second) for m in measurements]).T
    return float(np.corrcoef(first, second)[0, 1])


def refuse(measurements: Sequence[Measurement]) -> str | None:
    """Why no law can be told from the measurements, and what to run next; None where one can."""
    sizes = sorted({m.size for m in measurements})
    if not sizes:
        return "no run has finished"
    reasons = []
    if math.log10(sizes[-1] / sizes[0]) < MIN_DECADES - ROUNDING or len(sizes) < MIN_SIZES:
        reasons.append(
            f"{len(sizes)} size(s) over {math.log10(sizes[-1] / sizes[0]):.1f} decades leave the asymptote "
            f"unconstrained ({MIN_SIZES} over {MIN_DECADES:g} are needed): run {_more_sizes(sizes)} next"
        )
    data = _Data.of(measurements, PowerLaw())
    if not data.freedom:
        reasons.append("no size has two seeds, so that the noise is unknown: run a second seed at every size next")
    elif len(sizes) > 1 and not _falls(data):
        step = (sizes[-1] / sizes[0]) ** (1 / (len(sizes) - 1))
        reasons.append(
            f"the values do not fall beyond the noise of seeds: run size {size_text(sizes[-1] * step)} next, or more "
            "seeds of the smallest and the largest size"
        )
    return "; ".join(reasons) or None


def _falls(data: _Data) -> bool:
    """Whether the slope of the logarithms is below zero, by a one-sided t test with the noise of seeds."""
    x = np.log(data.sizes[:, 0])
    x = x - x.mean()
    spread = float(x @ x)
    slope = float(x @ data.log_values) / spread
    return slope + float(scipy.stats.t.ppf(CONFIDENCE, data.freedom)) * data.noise / math.sqrt(spread) < 0


def _more_sizes(sizes: Sequence[float]) -> str:
    """What makes the range long enough, above it or below it, and fills its widest gaps."""
    above, below = _completed(sizes), [1 / size for size in _completed([1 / size for size in reversed(sizes)])][::-1]
    added = [
        _listed(s for s in found if not any(math.isclose(s, known) for known in sizes)) for found in (above, below)
    ]
    return "size " + ", or ".join(dict.fromkeys(added))


def _completed(sizes: Sequence[float]) -> list[float]:
    """Longer by their geometric step until the range suffices, then with the middles of the widest gaps."""
    least_step = MIN_DECADES / (MIN_SIZES - 1)
    found = list(sizes)
    step = 10 ** max(math.log10(found[-1] / found[0]) / max(len(found) - 1, 1), least_step)
    while math.log10(found[-1] / found[0]) < MIN_DECADES - ROUNDING:
        found.append(found[-1] * step)
    while len(found) < MIN_SIZES:
        gap = max(range(len(found) - 1), key=lambda i: found[i + 1] / found[i])
        found.insert(gap + 1, math.sqrt(found[gap] * found[gap + 1]))
    return found


def _listed(sizes: Iterable[float]) -> str:
    *others, last = map(size_text, sizes)
    return f"{', '.join(others)} and {last}" if others else last


def size_text(size: float) -> str:
    """To three digits: `960`, `0.08`, `9.5e+07`."""
    return f"{float(f'{size:.3g}'):,g}" if size < 1e6 else f"{size:.3g}"


@dataclass(frozen=True)
class BreakEven:
    """The size from which on the other of two arms is better; an end is None where it lies beyond the range."""

    size: float
    low: float | None
    high: float | None


def break_even(a: Bootstrap, b: Bootstrap, smallest: float, largest: float, second: float = 1.0) -> BreakEven | None:
    """The last size in the range where the curves of two laws cross, with its 95 % interval; None: they do not.

    Forms that take a second size have it as given. Resampled laws that do not cross in the range count as crossing
    below it, if all of it is ordered as its end is by the fitted laws, and above it otherwise.
    """
    grid = np.geomspace(smallest, largest, 400)
    gap = _gaps(a.law, a.law.normalised[None], grid, second) - _gaps(b.law, b.law.normalised[None], grid, second)
    (found,) = _crossings(gap, grid, float(np.sign(gap[0, -1])))
    if not 0 < found < math.inf:
        return None
    pairs = min(len(a.resampled), len(b.resampled))
    ours = _gaps(a.law, a.resampled[:pairs], grid, second)
    reverse = b.resampled[:pairs][::-1]  # both may come from the same random numbers
    theirs = _gaps(b.law, reverse, grid, second)
    crossings = _crossings(ours - theirs, grid, float(np.sign(gap[0, -1])))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(crossings, [tail, 1 - tail], method="inverted_cdf")
    return BreakEven(float(found), float(low) if low > 0 else None, float(high) if high < math.inf else None)


def _gaps(law: Law, parameters: Array, grid: Array, second: float) -> Array:
    """The logarithm of each law at each size; (B, sizes)."""
    at = np.column_stack([grid / law.units[0], np.full_like(grid, second / law.units[1])])
    return np.asarray(np.log(law.units[2] * law.form.values(parameters, at)))


def _crossings(gaps: Array, grid: Array, end: float) -> Array:
    """The size of the last change of sign of each row; without one, 0 where the sign is `end`, infinity elsewhere."""
    signs = np.sign(gaps)
    found = np.where(signs[:, -1] == end, 0.0, np.inf)
    for row, (gap, sign) in enumerate(zip(gaps, signs, strict=True)):
        changes = np.flatnonzero(sign[1:] != sign[:-1])
        if changes.size:
            i = changes[-1]
            share = gap[i] / (gap[i] - gap[i + 1])
            found[row] = grid[i] * (grid[i + 1] / grid[i]) ** share
    return found
