"""Estimates from replicas: the momentum with which a run moves, the rate at which it converges, and how costs grow.

Each comes with an interval, and is refused, by an error that carries it, where the data are too few.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

#: A mean is told from noise where it exceeds this many standard errors.
VISIBLE = 5.0

#: Steps that an estimate must rest on.
STEPS = 10

#: Replicas whose spread can be taken for that of all replicas.
REPLICAS = 20

#: Resamples of the replicas behind an interval; its width is then known to 5 %.
RESAMPLES = 200

#: A number this much smaller than those it was computed from is rounding.
ROUNDING = 1e-14


class TooFewData(ValueError):
    """The data cannot carry the estimate; the message says what would, `estimate` is what they gave all the same."""

    def __init__(self, message: str, estimate: Any):
        super().__init__(message)
        self.estimate = estimate


@dataclass(frozen=True)
class Momentum:
    """A fitted momentum with its interval, and the fitted effective step with its own.

    `momentum` is the total: the explicit momentum that was given plus what asynchrony adds. `steps_used` counts the
    updates that the fit rests on, `confidence` is the level of both intervals.
    """

    momentum: float
    low: float
    high: float
    effective_step: float
    effective_step_low: float
    effective_step_high: float
    steps_used: int
    confidence: float


@dataclass(frozen=True)
class Rate:
    """A fitted rate per update with its interval; below 1 is decay. `steps_used` counts the points of the line."""

    rate: float
    low: float
    high: float
    steps_used: int
    confidence: float


@dataclass(frozen=True)
class Growth:
    """How a measured number grows for one more of a number that was varied: by so much, or to so many times as much.

    `added` is the slope of a line, `factor` the exponential of that of a line through the logarithms, `bend` what the
    slope grows by, as a share of it: 0 where the same is added each time, and log `factor` or so where each multiplies.
    Each is (mean over replicas, low, high), and NaN where it has no meaning: `factor` if not all values are positive,
    `bend` if some replicas grow and others do not. `numbers` are those that the fit rests on.
    """

    numbers: tuple[float, ...]
    added: tuple[float, float, float]
    factor: tuple[float, float, float]
    bend: tuple[float, float, float]
    confidence: float


def fit_growth(numbers: np.ndarray, values: np.ndarray, *, confidence: float = 0.95) -> Growth | None:
    """Fit how `values`, shape (replicas, numbers), grow with `numbers`, in the larger half of these.

    The smaller half is left out for what it has of a beginning. So are numbers at which not all replicas have a value
    (NaN): those that have would be the fastest. Lines and parabolas are fitted to each replica by itself, and the
    intervals are Student's over replicas, so it does not matter that a replica has the same start at several numbers.
    None where fewer than three numbers, or two replicas, are left.

    >>> fit = fit_growth(np.arange(1, 9), np.outer([1.0, 1.1], 3.0 * 2.0 ** np.arange(8)))
    >>> fit.numbers, round(fit.factor[0], 6)
    ((5.0, 6.0, 7.0, 8.0), 2.0)
    """
    from scipy import stats

    known = np.isfinite(values).all(axis=0)
    number, values = np.asarray(numbers, dtype=np.float64)[known], values[:, known]
    half = max(3, -(-number.size // 2))
    number, values = number[-half:], values[:, -half:]
    if number.size < 3 or len(values) < 2:
        return None
    slope, nothing = np.polyfit(number, values.T, 1)[0], np.full(len(values), np.nan)
    logs = np.polyfit(number, np.log(values.T), 1)[0] if (values > 0).all() else nothing
    alike = (slope > 0).all() or (slope < 0).all()
    bend = 2.0 * np.polyfit(number, values.T, 2)[0] / slope if alike else nothing

    def interval(each: np.ndarray) -> tuple[float, float, float]:
        width = stats.t.ppf(0.5 + confidence / 2, len(each) - 1) * each.std(ddof=1) / len(each) ** 0.5
        return float(each.mean()), float(each.mean() - width), float(each.mean() + width)

    factor = tuple(np.exp(interval(logs)).tolist())
    return Growth(tuple(number.tolist()), interval(slope), factor, interval(bend), confidence)


def fit_momentum(
    iterates: np.ndarray,
    gradient: Callable[[np.ndarray], np.ndarray],
    *,
    explicit: float = 0.0,
    confidence: float = 0.99,
    seed: int = 0,
) -> Momentum:
    """Measure the momentum with which the mean iterate moves.

    With M workers of exponential service times and Δ_t = x_t − x_{t−1}, the mean over replicas obeys, for t ≥ 1,

        E Δ_{t+1} = μ E Δ_t − s E ∇f(x_t),        μ = 1 − 1/M,  s = η/M,

    for every objective f (Mitliagkas et al. 2016, Theorem 3; all it takes is that the worker of an update does not
    depend on what happened before, so noise in the gradients does no harm). The first step, Δ_1 = −η∇f(x_0), is left
    out. With explicit momentum β at the server the same holds for u_t = Δ_t − β Δ_{t−1} in place of Δ_t, where Δ_0 = 0:
    written out, E Δ_{t+1} = (β + μ) E Δ_t − β μ E Δ_{t−1} − s E ∇f(x_t). So μ and s are fitted by least squares on u,
    and the total momentum is the coefficient of Δ_t, β + μ. For other service laws the line holds only roughly, and the
    fit is what describes the run best; for `before_apply`, where the gradient is that of x_{t−1}, it means nothing.

    Plain least squares on the means is biased, because noise in the regressors weakens them. Here every product of two
    means is the average over pairs of *different* replicas, whose noise is independent, so the normal equations are
    unbiased. Steps at which u and ∇f both are within 5 standard errors of 0 are left out. The interval is the normal
    one with the standard deviation of 200 resamples of the replicas: the errors of successive steps are correlated,
    those of replicas are not.

    Parameters
    ----------
    iterates
        x_0 … x_T of each replica, shape (replicas, updates + 1, d), all of one start, one gradient per update.
    gradient
        x ↦ ∇f(x) without noise, for arrays of any leading shape, such as `problem.gradient`.
    explicit
        β, the momentum that the server itself applies.
    confidence
        Level of the intervals.
    seed
        Addresses the resampling.

    Raises
    ------
    TooFewData
        Fewer than 20 replicas; u or ∇f exceed 5 standard errors in fewer than 10 steps; or the two cannot be told
        apart (with one eigenvalue and one worker they are proportional). Its `estimate` is the `Momentum` all the
        same, NaN where there is none.
    ValueError
        A single replica, or iterates that are not finite.

    >>> x = [np.array([1.0, 1.0])] * 2
    >>> for _ in range(40):  # heavy ball with momentum ½ and step 0.1 on two eigenvalues
    ...     x.append(x[-1] + 0.5 * (x[-1] - x[-2]) - 0.1 * np.array([1.0, 4.0]) * x[-1])
    >>> fit = fit_momentum(np.array([x] * 20), lambda x: np.array([1.0, 4.0]) * x)
    >>> round(fit.momentum, 6), round(fit.effective_step, 6)
    (0.5, 0.1)
    """
    x = _replicas(iterates, "iterates (replicas, updates + 1, d)", dimensions=3)
    if not np.isfinite(x).all():
        replica, update, _ = np.argwhere(~np.isfinite(x))[0]
        raise ValueError(f"iterates must be finite; those of replica {replica} are not from update {update} on")
    change = np.diff(x, axis=1)
    change[:, 1:] -= explicit * change[:, :-1]
    regressors = np.stack([change[:, :-1], -gradient(x[:, 1:-1])], axis=1)  # (replicas, 2, steps, d)
    # Rounding enters a difference through the numbers that it is the difference of.
    size = np.stack([np.abs(x).max(axis=(0, 1)), np.abs(regressors[:, 1]).max(axis=(0, 1), initial=0.0)])
    noise = _standard_error(regressors) + ROUNDING * size[:, None]
    distance = np.abs(regressors.mean(axis=0)) / np.where(noise > 0, noise, np.inf)  # from 0, in standard errors
    used = (distance > VISIBLE).any(axis=0)
    numbers = np.concatenate([change[:, None, 1:], regressors], axis=1)[..., used]
    estimates, contrast = _pairwise_least_squares(numbers, _resamples(len(x), seed))

    mu, step = estimates[0].tolist()
    mu_width, step_width = (_normal_quantile(confidence) * estimates[1:].std(axis=0, ddof=1)).tolist()
    total = explicit + mu
    fit = Momentum(
        momentum=total,
        low=total - mu_width,
        high=total + mu_width,
        effective_step=step,
        effective_step_low=step - step_width,
        effective_step_high=step + step_width,
        steps_used=int(used.any(axis=1).sum()),
        confidence=confidence,
    )
    best = np.sort(distance.max(axis=2), axis=1)
    clear, steps = int((best > VISIBLE).sum(axis=1).min()), best.shape[1]
    if len(x) < REPLICAS or clear < STEPS or contrast < VISIBLE**2:
        tenth = best[:, -STEPS].min() if steps >= STEPS else 0.0
        raise TooFewData(
            f"step and gradient of the mean exceed {VISIBLE:g} standard errors in {clear} of {steps} updates, {STEPS} "
            f"are needed; their directions differ by {contrast**0.5:.2g} standard errors, {VISIBLE:g} are needed. "
            f"{_enough_replicas(len(x), min(tenth, contrast**0.5))}; more updates or a smaller step give more steps, "
            f"several eigenvalues give different directions. The estimate {total:.3g} is not to be trusted",
            fit,
        )
    return fit


def fit_rate(squared_norms: np.ndarray, *, warmup: int = 0, confidence: float = 0.99, seed: int = 0) -> Rate:
    """Measure the rate per update at which √(E‖x_t − x*‖²) decays.

    Half the slope of the least-squares line through log mean ‖x_t − x*‖² against t, exponentiated. The line starts at
    t = `warmup`, where the transients should have died out, and ends before the first t at which the mean is within 5
    standard errors of 0, has sunk to rounding or is not finite. Where the spread between replicas grows, a few of them
    come to dominate the second moment, and from there on no mean of a sample says anything about it. The interval is
    the normal one, on the log scale, with the standard deviation of 200 resamples of the replicas; it does not know of
    transients that are left (compare several `warmup`).

    Parameters
    ----------
    squared_norms
        ‖x_t − x*‖² of each replica, shape (replicas, updates + 1).
    warmup
        Updates to leave out at the start.
    confidence, seed
        As in `fit_momentum`.

    Raises
    ------
    TooFewData
        Fewer than 20 replicas, or fewer than 10 points are left. In the latter case `estimate` is the line through all
        points after `warmup`; a rate above 1 there says that the runs diverge.
    ValueError
        A single replica, or a warmup that leaves fewer than two points.

    >>> decay = 0.81 ** np.arange(30)
    >>> round(fit_rate(np.stack([decay, 2 * decay, 3 * decay] * 10)).rate, 6)
    0.9
    """
    squares = _replicas(squared_norms, "squared norms (replicas, updates + 1)", dimensions=2)
    replicas, points = squares.shape
    if not 0 <= warmup <= points - 2:
        raise ValueError(f"warmup must leave two of the {points} points, got {warmup}")
    with np.errstate(invalid="ignore", over="ignore"):
        mean, noise = squares.mean(axis=0), _standard_error(squares)
        usable = np.isfinite(mean) & (mean > ROUNDING**2 * np.fmax.accumulate(mean))
        clear = usable & (mean > VISIBLE * noise)
    end = int(np.append(np.flatnonzero(~clear[warmup:]), points - warmup)[0]) + warmup
    short = end - warmup < STEPS
    time = warmup + np.flatnonzero(usable[warmup:]) if short else np.arange(warmup, end)

    counts = np.vstack([np.ones(replicas), _resamples(replicas, seed)])
    centred = time - time.mean() if time.size else time
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(counts @ squares[:, time] / replicas)
        rates = logs @ centred / np.float64(2 * (centred @ centred))
    width = float(rates[1:].std(ddof=1)) * _normal_quantile(confidence)
    rate, low, high = np.exp([rates[0], rates[0] - width, rates[0] + width]).tolist()
    fit = Rate(rate=rate, low=low, high=high, steps_used=time.size, confidence=confidence)
    if short or replicas < REPLICAS:
        raise TooFewData(
            f"the mean of ‖x − x*‖² exceeds {VISIBLE:g} standard errors and rounding in {end - warmup} points from "
            f"update {warmup} on, {STEPS} are needed, of at least {REPLICAS} replicas. Take more replicas (there are "
            f"{replicas:,}), more updates (there are {points - 1:,}) or a smaller step. The estimate {rate:.3g} is not "
            f"to be trusted{', but says that the runs diverge' if rate > 1 else ''}",
            fit,
        )
    return fit


def _replicas(values: Any, what: str, *, dimensions: int) -> np.ndarray:
    """Return an array with a leading replica axis; refuse a single replica and a wrong shape."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != dimensions or array.shape[0] < 2:
        raise ValueError(f"needs {what} of at least 2 replicas, got shape {array.shape}")
    return array


def _standard_error(values: np.ndarray) -> np.ndarray:
    """Return the standard error of the mean over replicas."""
    error: np.ndarray = values.std(axis=0, ddof=1) / len(values) ** 0.5
    return error


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _resamples(replicas: int, seed: int) -> np.ndarray:
    """Return how often each resample holds each replica; shape (RESAMPLES, replicas)."""
    from asyncsim import streams

    row = np.arange(RESAMPLES)
    picks = streams.integers(seed, 0, -1, row, streams.RESAMPLE, replicas, replicas)
    counts = np.bincount((picks + row[:, None] * replicas).reshape(-1), minlength=RESAMPLES * replicas)
    return counts.reshape(RESAMPLES, replicas).astype(np.float64)


def _pairwise_least_squares(numbers: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, float]:
    """Regress a response on two regressors, in all replicas and in each resample of them.

    `numbers` holds (response, regressor, regressor) of each replica, shape (replicas, 3, points); `counts` is from
    `_resamples`. The entry (a, b) of the normal equations is Σ_{i≠j} c_i c_j Σ_points a_i b_j with c the counts.
    Returns the coefficients, shape (1 + RESAMPLES, 2), those of all replicas first; and the contrast: the squared mean
    of the regressors over its sampling variance, in the direction in which that is smallest.
    """
    replicas = len(numbers)
    counts = np.vstack([np.ones(replicas), counts])
    sums = np.tensordot(counts, numbers, axes=1)
    all_pairs = sums @ sums.transpose(0, 2, 1)
    own_pairs = (counts**2 @ (numbers @ numbers.transpose(0, 2, 1)).reshape(replicas, 9)).reshape(-1, 3, 3)
    signal, own = all_pairs[0, 1:, 1:], own_pairs[0, 1:, 1:]
    scale = np.sqrt(np.diag(signal))
    if not scale.all():
        return np.full((len(counts), 2), np.nan), 0.0
    products = all_pairs - own_pairs
    coefficients = (np.linalg.pinv(products[:, 1:, 1:], hermitian=True) @ products[:, 1:, :1])[..., 0]

    sampling = (replicas * own - signal) / (replicas - 1)  # of the sums over replicas
    unit = np.outer(scale, scale)
    ratio = np.linalg.solve(sampling / unit + 1e-12 * np.eye(2), signal / unit)  # 1e-12: the least that rounding leaves
    return coefficients, max(float(np.linalg.eigvals(ratio).real.min()), 0.0)


def _enough_replicas(replicas: int, distance: float) -> str:
    """Say how many replicas would bring a distance from 0, in standard errors, to `VISIBLE`."""
    if distance < VISIBLE / 100:
        return f"More replicas than these {replicas:,} are of little use"
    enough = max(REPLICAS, int(np.ceil(replicas * max(VISIBLE / distance, 1) ** 2)))
    return f"About {enough:,} replicas would do, there are {replicas:,}"
