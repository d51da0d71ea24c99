"""Measurements: what a trace says about staleness and time, and what iterates say about momentum and rate.

Nothing here is stored in a trace; all of it is derived. Unknown is NaN, never 0. Estimators that could mislead refuse:
they raise `TooFewData`, which carries the estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from asyncsim.trace import APPLIED, CANCELLED, Trace

Reply = Literal["after_apply", "before_apply"]

# --- staleness ----------------------------------------------------------------------------------------------------


def histogram(staleness: Any) -> np.ndarray:
    """Return how many gradients have staleness 0, 1, 2, …; shape (largest + 1,), its sum the number of gradients.

    >>> histogram([0, 2, 2, 3]).tolist()
    [1, 0, 2, 1]
    """
    values = np.asarray(staleness)
    if values.size and (values.dtype.kind not in "iu" or values.min() < 0):
        raise ValueError("staleness must be whole numbers, not negative")
    return np.bincount(values.astype(np.int64).reshape(-1))


def summary(staleness: Any) -> dict[str, float]:
    """Return mean, var, p50, p99 and max of staleness (in updates); all NaN where there is no gradient.

    `var` is the population variance, the mean of (τ − mean)². The quantile pq is the smallest staleness that at least
    q percent of the gradients do not exceed, so it is a whole number that occurs.

    >>> summary([0, 0, 1, 3])
    {'mean': 1.0, 'var': 1.5, 'p50': 0, 'p99': 3, 'max': 3}
    """
    values = np.asarray(staleness)
    if not values.size:
        return dict.fromkeys(("mean", "var", "p50", "p99", "max"), float("nan"))
    half, most = np.quantile(values, [0.5, 0.99], method="inverted_cdf")
    return {
        "mean": float(values.mean()),
        "var": float(values.var()),
        "p50": int(half),
        "p99": int(most),
        "max": int(values.max()),
    }


def per_worker(trace: Trace, *, warmup: int = 0) -> dict[str, np.ndarray]:
    """Return what each worker contributed, over all replicas, leaving out `warmup` updates.

    Columns of length `workers`: `worker`, `applied` (its applied gradients), `share` (of all applied ones) and
    `mean_staleness`; the last two are NaN where there is nothing to divide by.

    >>> columns = dict(replica=[0, 0, 0], worker=[0, 1, 0], draw=[0, 0, 1], read_version=[0, 0, 1], update=[0, 1, 2],
    ...                status=[0, 0, 0])
    >>> per_worker(Trace(columns, seed=7, workers=2, updates=[3]))["applied"].tolist()
    [2, 1]
    """
    used = (trace["status"] == APPLIED) & (trace["update"] >= warmup)
    worker, staleness = trace["worker"][used], (trace["update"] - trace["read_version"])[used]
    applied = np.bincount(worker, minlength=trace.workers)
    total = np.bincount(worker, weights=staleness, minlength=trace.workers)
    return {
        "worker": np.arange(trace.workers),
        "applied": applied,
        "share": _ratio(applied, np.full(trace.workers, applied.sum())),
        "mean_staleness": _ratio(total, applied),
    }


# --- time ---------------------------------------------------------------------------------------------------------


def throughput(trace: Trace, *, warmup: int = 0) -> np.ndarray:
    """Return the updates per time unit of each replica, leaving out its first `warmup` updates; shape (replicas,).

    With t_u the time of update u, counted from 0, it is (T − warmup) / (t_{T−1} − t_{warmup−1}), where t_{−1} = 0 is
    the start. NaN where a time is unknown or the replica has no more than `warmup` updates.
    """
    rates = np.full(trace.replicas.size, np.nan)
    if "apply_time" not in trace:
        return rates
    for place, (_, count, rows) in enumerate(trace.slices()):
        update, time = trace["update"][rows], trace["apply_time"][rows]
        if count > warmup:
            begin = time[update == warmup - 1][0] if warmup else 0.0
            elapsed = time[update == count - 1][0] - begin
            rates[place] = (count - warmup) / elapsed if elapsed > 0 else np.nan
    return rates


def waiting(trace: Trace) -> np.ndarray:
    """Return how long the worker idles after each gradient, until it starts its next one; shape (rows,).

    A worker stops computing at `done_time`, or, where the gradient was cancelled, at `apply_time`. NaN for the last
    gradient of a worker, for unknown times, and after a gradient that was never finished.
    """
    _need(trace, "waiting", "start_time", "done_time", "apply_time")
    after = _next_row(trace)
    return np.where(after >= 0, trace["start_time"][after] - _end_of_computing(trace), np.nan)


def utilization(trace: Trace, *, warmup: int = 0) -> np.ndarray:
    """Return the share of its time that each worker spends computing; shape (replicas, workers).

    A worker's time falls into cycles, each from the start of one gradient to the start of its next. The share is the
    time spent computing over all complete cycles (those of gradients read from version `warmup` on) divided by their
    length, so the gradient under way when the replica ends, which has no row, cannot bias it. Exactly 1 where workers
    never wait. NaN where a worker has no complete cycle.
    """
    _need(trace, "utilization", "start_time", "done_time", "apply_time")
    return _share_of_cycles(trace, trace["start_time"], _end_of_computing(trace), warmup)


def concurrency(trace: Trace, *, warmup: int = 0) -> np.ndarray:
    """Return the mean number of gradients that are read and not yet settled; shape (replicas,).

    The time average over each worker's cycles, here from one read to its next, summed over workers; a gradient counts
    from `read_time` to `apply_time` in the cycle that it begins (Little's law). Exactly M where every worker is sent
    the model the moment its gradient is applied. NaN where a worker has no complete cycle.
    """
    _need(trace, "concurrency", "read_time", "apply_time")
    return _share_of_cycles(trace, trace["read_time"], trace["apply_time"], warmup).sum(axis=1)


def _need(trace: Trace, what: str, *columns: str) -> None:
    """Refuse a trace that lacks a column."""
    missing = [name for name in columns if name not in trace]
    if missing:
        raise ValueError(f"{what} needs a trace with the columns {', '.join(columns)}; it lacks {', '.join(missing)}")


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, NaN where whole is not positive."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def _next_row(trace: Trace) -> np.ndarray:
    """Return the row of the same worker's next gradient, −1 where there is none."""
    order = np.lexsort((trace["draw"], trace["worker"], trace["replica"]))
    same = np.ones(max(order.size - 1, 0), dtype=bool)
    for name in ("replica", "worker"):
        same &= np.diff(trace[name][order]) == 0
    after = np.full(order.size, -1)
    after[order[:-1][same]] = order[1:][same]
    return after


def _end_of_computing(trace: Trace) -> np.ndarray:
    """Return when each gradient was computed or, where it was cancelled, given up; NaN where unknown."""
    return np.where(trace["status"] == CANCELLED, trace["apply_time"], trace["done_time"])


def _share_of_cycles(trace: Trace, begin: np.ndarray, end: np.ndarray, warmup: int) -> np.ndarray:
    """Return Σ (end − begin) / Σ (next begin − begin) over the complete cycles of each worker."""
    after = _next_row(trace)
    spent, length = end - begin, begin[after] - begin
    known = (after >= 0) & (trace["read_version"] >= warmup) & ~np.isnan(spent) & ~np.isnan(length)
    cell = (np.searchsorted(trace.replicas, trace["replica"]) * trace.workers + trace["worker"])[known]
    cells = trace.replicas.size * trace.workers
    sums = [np.bincount(cell, weights=time[known], minlength=cells) for time in (spent, length)]
    return _ratio(sums[0], sums[1]).reshape(trace.replicas.size, trace.workers)


# --- the conservation law -----------------------------------------------------------------------------------------


def last_reads(trace: Trace, *, reply: Reply = "after_apply") -> np.ndarray:
    """Return r_m, the version that each worker holds when the replica ends; shape (replicas, workers).

    A gradient still under way has no row, so r_m follows from what the server answers to the worker's last gradient,
    which went into update u: version u + 1 if it replies after applying it, version u if before. A worker without
    rows still holds version 0. The replica ends before the reply to its very last update is sent; with `after_apply`
    the worker of that update counts as holding version T, the one it would have been sent.

    This holds for every policy under which a worker waits for its own update (`async`, `k_async`, `sync`) as long as
    nothing is discarded, cancelled or lost (refused with a ValueError); with `before_apply` the server must also take
    no time per update, else an older version goes out.
    """
    if reply not in ("after_apply", "before_apply"):
        raise ValueError(f"reply must be 'after_apply' or 'before_apply', got {reply!r}")
    unused = np.flatnonzero(trace["status"] != APPLIED)
    if unused.size:
        raise ValueError(
            f"the version a worker holds is known only where every gradient is applied; {unused.size:,} of "
            f"{len(trace):,} are not, the first in row {unused[0]}"
        )
    held = np.zeros((trace.replicas.size, trace.workers), dtype=np.int64)
    cells = np.searchsorted(trace.replicas, trace["replica"]), trace["worker"]
    np.maximum.at(held, cells, trace["update"] + (reply == "after_apply"))
    return held


def conservation_residual(trace: Trace, *, reply: Reply = "after_apply") -> np.ndarray:
    """Return by how much each replica misses the conservation law of staleness, 0 on a right trace; shape (replicas,).

    A worker that reads r_1 = 0, r_2, … and whose gradients go into updates u_1, u_2, … has r_{j+1} = u_j + 1 when the
    server replies after applying. So Σ_j (τ_j + 1) = Σ_j (u_j − r_j + 1) telescopes to the version r_m that it holds at
    the end, and over the M workers of a replica of T updates, for any service law whatever,

        Σ (τ + 1) + Σ_m (T − r_m) = M T        (after_apply)
        Σ  τ      + Σ_m (T − r_m) = M T        (before_apply: r_{j+1} = u_j)

    in whole numbers; the residual is left minus right. One gradient per update then makes the mean staleness
    M − 1 − Σ_m (T − r_m) / T, or one more with `before_apply`. Conditions: see `last_reads`.

    >>> columns = dict(replica=[0, 0, 0], worker=[0, 1, 0], draw=[0, 0, 1], read_version=[0, 0, 1], update=[0, 1, 2],
    ...                status=[0, 0, 0])
    >>> conservation_residual(Trace(columns, seed=7, workers=2, updates=[3])).tolist()
    [0]
    """
    held = last_reads(trace, reply=reply)
    passed = trace["update"] - trace["read_version"] + (reply == "after_apply")
    totals = np.zeros(trace.replicas.size, dtype=np.int64)
    np.add.at(totals, np.searchsorted(trace.replicas, trace["replica"]), passed)
    return totals + (trace.updates[:, None] - held).sum(axis=1) - trace.workers * trace.updates


# --- estimators over replicas -------------------------------------------------------------------------------------

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
