"""Which law do these durations follow? Maximum likelihood, a penalty for parameters, and a test of what is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from asyncsim.durations import (
    Constant,
    Empirical,
    Exponential,
    Gamma,
    Law,
    LogNormal,
    Mixture,
    Pareto,
    ShiftedExponential,
    Uniform,
    Weibull,
)

#: A law is kept where its distance from the measured durations is no more than this, or than chance at `LEVEL`.
TOLERANCE, LEVEL = 0.02, 0.01
#: … and its mean is off by no more than this, or than two standard errors: the throughput is 1 / mean.
MEAN_TOLERANCE, MEAN_ERRORS = 0.01, 2.0
#: Durations that differ by less than this, relative to their mean, are constant.
CONSTANT_WITHIN = 1e-6
#: Fewer durations than this say nothing about their law.
FEWEST = 20
#: An empirical law keeps no more values than this: means of equally many neighbours, so its mean is the measured one.
MOST_VALUES = 10_000
#: Points on which mixtures are fitted, and rounds at most; the likelihood is that of all durations.
MIXTURE_POINTS, MIXTURE_ROUNDS = 2_000, 300
#: A component with a smaller share than this is an outlier, not a component.
LEAST_SHARE = 0.005
#: The steadiest gamma law that is told from a constant: a relative standard deviation of 0.1 %.
STEADIEST = 1e6
#: Significant digits of fitted parameters.
DIGITS = 8


class Fit(NamedTuple):
    """A law fitted to `size` durations.

    `bic` is parameters · log(size) − 2 · log-likelihood, the smaller the better (NaN for constant and empirical
    laws, which have no density); `distance` the largest difference between the law's cumulative probability and the
    share of durations (Kolmogorov–Smirnov), `noise` what chance alone exceeds with probability `LEVEL`.
    """

    law: Any
    size: int
    bic: float
    distance: float
    noise: float

    @property
    def name(self) -> str:
        """The law's name, and in brackets that of a mixture's components."""
        inner = f" ({self.law.laws[0].law})" if isinstance(self.law, Mixture) else ""
        return f"{self.law.law}{inner}"


def fit_law(durations: Any, *, inflation: float = 1.0) -> Fit:
    """Return the law of smallest BIC among those that fit, or the empirical law where none does.

    Candidates are constant, exponential, shifted exponential, gamma, lognormal, Pareto, Weibull and uniform laws, and
    mixtures of two exponential or two gamma laws. In order of BIC (Schwarz 1978), the first one is taken whose mean is
    right (within 1 % or two standard errors) and whose Kolmogorov–Smirnov distance is below the larger of 0.02 and
    the critical value at 1 %. That value, 1.63 / √n, is for a law that is known, not fitted. So the law is fitted to
    every other duration, and held against all of them: the errors of the fit and of the sample then make up just that
    distribution, whatever the family (the half-sample method, Stephens 1978).

    Parameters
    ----------
    durations
        In the order in which they were measured, at least 20.
    inflation
        Durations per independent duration: above 1 where they are autocorrelated.

    >>> from asyncsim import streams
    >>> times = Gamma(shape=4.0, mean=2.0).sample(7, 0, 0, 0, size=4000, purpose=streams.SERVICE)
    >>> fit = fit_law(times)
    >>> fit.name, round(fit.law.shape, 1), round(fit.law.mean, 2)
    ('gamma', 4.0, 2.0)
    """
    x = np.asarray(durations, dtype=np.float64)
    if x.size < FEWEST:
        raise ValueError(f"a law needs at least {FEWEST} durations, got {x.size}")
    noise = kolmogorov_quantile(LEVEL) * math.sqrt(inflation / x.size)
    mean, spread = float(x.mean()), float(x.max() - x.min())
    if spread <= CONSTANT_WITHIN * mean or mean == 0.0:
        return Fit(Constant(value=rounded(mean)), x.size, math.nan, 0.0, noise)
    error = float(x.std()) * math.sqrt(inflation / x.size)
    for fit in candidates(x, inflation=inflation):
        if abs(fit.law.mean - mean) > max(MEAN_TOLERANCE * mean, MEAN_ERRORS * error):
            continue
        half = _fitted(CANDIDATES[fit.name], x[::2])
        if half is not None and distance(half, x) <= max(TOLERANCE, noise):
            return fit
    law = empirical(x)
    return Fit(law, x.size, math.nan, 0.0, noise)


def candidates(durations: Any, *, inflation: float = 1.0) -> list[Fit]:
    """Return every law that can be fitted, the smallest BIC first, whether it fits well or not."""
    x = np.asarray(durations, dtype=np.float64)
    noise = kolmogorov_quantile(LEVEL) * math.sqrt(inflation / x.size)
    fits = []
    for parameters, fit in CANDIDATES.values():
        law = _fitted((parameters, fit), x)
        if law is None:
            continue
        likelihood = log_likelihood(law, x)
        if np.isfinite(likelihood):
            bic = parameters * math.log(x.size) - 2.0 * likelihood
            fits.append(Fit(law, x.size, bic, distance(law, x), noise))
    return sorted(fits, key=lambda fit: fit.bic)


def empirical(durations: np.ndarray) -> Empirical:
    """Return the law of the durations themselves, thinned to `MOST_VALUES` if there are more."""
    ordered = np.sort(durations)
    if ordered.size > MOST_VALUES:
        ordered = np.array([part.mean() for part in np.array_split(ordered, MOST_VALUES)])
    return Empirical(values=tuple(rounded(value) for value in ordered.tolist()))


def distance(law: Law, durations: np.ndarray) -> float:
    """Return the largest difference between a continuous law's cumulative probability and the share of durations."""
    values, counts = np.unique(durations, return_counts=True)
    above = np.cumsum(counts) / durations.size
    at = np.asarray(law.cumulative(values), dtype=np.float64)
    return float(np.maximum(np.abs(above - at), np.abs(above - counts / durations.size - at)).max())


def kolmogorov_quantile(level: float) -> float:
    """Return c such that the distance of n durations from their own law exceeds c / √n with probability `level`."""
    from scipy.special import kolmogi

    return float(kolmogi(level))


def rounded(value: float) -> float:
    """Return a number with `DIGITS` significant digits."""
    return float(f"{value:.{DIGITS}g}")


def _fitted(candidate: tuple[int, Callable[[np.ndarray], Law | None]], x: np.ndarray) -> Any:
    """Return the fitted law, None where there is none; fitted at mean 1, so that units do not matter."""
    mean = float(x.mean())
    with np.errstate(all="ignore"):
        law = candidate[1](x / mean)
    return None if law is None else _scaled(law, mean)


def _scaled(law: Any, factor: float) -> Any:
    """Return the law of durations `factor` times as long, with rounded parameters."""
    if isinstance(law, Mixture):
        parts = tuple(_scaled(part, factor) for part in law.laws)
        return Mixture(weights=tuple(rounded(weight) for weight in law.weights), laws=parts)
    times = ("mean", "shift", "low", "high", "value")
    given = {name: value for name, value in law.model_dump().items() if name != "law"}
    return type(law)(**{k: rounded(v * factor if k in times else v) for k, v in given.items()})


# --- densities ----------------------------------------------------------------------------------------------------


def log_likelihood(law: Any, x: np.ndarray) -> float:
    """Return the sum of the log densities of durations; the ends of a fitted range belong to it."""
    return float(_log_density(law, x).sum())


def _log_density(law: Any, x: np.ndarray) -> np.ndarray:
    from scipy.special import gammaln

    x = np.asarray(x, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        if isinstance(law, Exponential):
            return -math.log(law.mean) - x / law.mean
        if isinstance(law, ShiftedExponential):
            rest = law.mean - law.shift
            return -math.log(rest) - np.maximum(x - law.shift, 0.0) / rest
        if isinstance(law, Gamma):
            scale = law.mean / law.shape
            return (law.shape - 1) * np.log(x / scale) - x / scale - gammaln(law.shape) - math.log(scale)
        if isinstance(law, LogNormal):
            z = (np.log(x) - math.log(law.mean)) / law.sigma + 0.5 * law.sigma
            return -0.5 * z**2 - np.log(x) - math.log(law.sigma) - 0.5 * math.log(2 * math.pi)
        if isinstance(law, Pareto):
            return math.log(law.shape) - math.log(law.scale) - (law.shape + 1) * np.log(np.maximum(x / law.scale, 1.0))
        if isinstance(law, Weibull):
            z = np.log(x / law.scale)
            return math.log(law.shape / law.scale) + (law.shape - 1) * z - np.exp(law.shape * z)
        if isinstance(law, Uniform):
            return np.full(x.size, -math.log(law.high - law.low))
        parts = [math.log(share) + _log_density(part, x) for share, part in law.components()]
        return np.logaddexp.reduce(parts)


# --- maximum likelihood, durations of mean 1 ------------------------------------------------------------------------


def _exponential(x: np.ndarray) -> Law | None:
    return Exponential(mean=1.0)


def _shifted_exponential(x: np.ndarray) -> Law | None:
    """The shift is the shortest duration, less what that exceeds the shift by on average."""
    excess = (1.0 - float(x.min())) / (x.size - 1)
    shift = float(x.min()) - excess
    return ShiftedExponential(shift=shift, mean=1.0) if 0 < shift < 1 else None


def _gamma(x: np.ndarray) -> Law | None:
    if x.min() <= 0:
        return None
    return Gamma(shape=_gamma_shape(float(np.log(x.mean()) - np.log(x).mean())), mean=1.0)


def _gamma_shape(gap: float) -> float:
    """Solve log k − ψ(k) = gap, the gap between the logarithm of the mean and the mean of the logarithms, by Newton."""
    from scipy.special import digamma, polygamma

    if gap < 0.5 / STEADIEST:
        return STEADIEST
    k = (3 - gap + math.sqrt((gap - 3) ** 2 + 24 * gap)) / (12 * gap)  # within 1.5 % of the solution (Minka 2002)
    for _ in range(5):
        k = 1 / (1 / k + (math.log(k) - digamma(k) - gap) / (k * k * (1 / k - polygamma(1, k))))
    return float(min(max(k, 1e-3), STEADIEST))


def _lognormal(x: np.ndarray) -> Law | None:
    if x.min() <= 0:
        return None
    logs = np.log(x)
    sigma = float(logs.std())
    return LogNormal(mean=math.exp(float(logs.mean()) + 0.5 * sigma**2), sigma=sigma) if 0 < sigma <= 20 else None


def _pareto(x: np.ndarray) -> Law | None:
    if x.min() <= 0:
        return None
    scale = float(x.min())
    shape = x.size / float(np.log(x / scale).sum())
    return Pareto(shape=shape, mean=scale * shape / (shape - 1)) if shape > 1.001 else None


def _weibull(x: np.ndarray) -> Law | None:
    """Solve Σ x^k log x / Σ x^k − 1/k = mean log x, whose left side increases with k."""
    from scipy.optimize import brentq

    if x.min() <= 0:
        return None
    logs = np.log(x) - math.log(float(x.max()))

    def slope(k: float) -> float:
        weight = np.exp(k * logs)
        return float(weight @ logs / weight.sum() - 1 / k - logs.mean())

    if slope(0.05) > 0 or slope(STEADIEST) < 0:
        return None
    k = float(brentq(slope, 0.05, STEADIEST, xtol=1e-10))
    scale = float(x.max()) * float(np.exp(k * logs).mean()) ** (1 / k)
    return Weibull(shape=k, mean=scale * math.gamma(1 + 1 / k))


def _uniform(x: np.ndarray) -> Law | None:
    return Uniform(low=float(x.min()), high=float(x.max()))


def _mixture(x: np.ndarray, *, exponential: bool) -> Law | None:
    """Fit two components by expectation and maximization, from two starting points; the likelier result counts."""
    if x.min() <= 0 or x.size < 5 * FEWEST:
        return None
    points = np.sort(x)
    if points.size > MIXTURE_POINTS:
        points = np.quantile(points, (np.arange(MIXTURE_POINTS) + 0.5) / MIXTURE_POINTS)
    found = [_separated(points, exponential=exponential, cut=cut) for cut in (0.5, 0.9)]
    fits = [law for law in found if law is not None]
    return max(fits, key=lambda law: log_likelihood(law, points), default=None)


def _separated(x: np.ndarray, *, exponential: bool, cut: float) -> Mixture | None:
    """Alternate between each duration's chance of being of the slow component, and the components given that."""
    logs = np.log(x)
    slow = (np.arange(x.size) >= cut * x.size).astype(np.float64)  # the chance of each to be slow, at first 0 or 1
    before = -math.inf
    for _ in range(MIXTURE_ROUNDS):
        parts: list[Law] = []
        share = float(slow.mean())
        if not LEAST_SHARE < share < 1 - LEAST_SHARE:
            return None
        for weight in (1 - slow, slow):
            mean = float(weight @ x / weight.sum())
            if exponential:
                parts.append(Exponential.model_construct(law="exponential", mean=mean))
            else:
                shape = _gamma_shape(math.log(mean) - float(weight @ logs / weight.sum()))
                parts.append(Gamma.model_construct(law="gamma", shape=shape, mean=mean))
        fast_density = math.log1p(-share) + _log_density(parts[0], x)
        slow_density = math.log(share) + _log_density(parts[1], x)
        both = np.logaddexp(fast_density, slow_density)
        slow = np.exp(slow_density - both)
        now = float(both.sum())
        if now - before < 1e-6 * x.size:
            break
        before = now
    return Mixture(weights=(1 - share, share), laws=tuple(parts))


def _two_exponentials(x: np.ndarray) -> Law | None:
    return _mixture(x, exponential=True)


def _two_gammas(x: np.ndarray) -> Law | None:
    return _mixture(x, exponential=False)


#: Number of parameters and fit of each candidate, by the name that its `Fit` has.
CANDIDATES: dict[str, tuple[int, Callable[[np.ndarray], Law | None]]] = {
    "exponential": (1, _exponential),
    "shifted_exponential": (2, _shifted_exponential),
    "gamma": (2, _gamma),
    "lognormal": (2, _lognormal),
    "pareto": (2, _pareto),
    "weibull": (2, _weibull),
    "uniform": (2, _uniform),
    "mixture (exponential)": (3, _two_exponentials),
    "mixture (gamma)": (5, _two_gammas),
}
