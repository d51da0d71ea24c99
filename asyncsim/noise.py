"""Do two samples differ by more than chance? Distances between traces and between curves, each beside its noise.

The staleness of successive gradients is strongly correlated: a slow worker's gradient makes those around it stale
too, and steady workers keep their order for many rounds. So the noise is not that of as many independent numbers. Here
each trace is cut into `BLOCKS` long blocks of successive updates, which depend on each other only at their edges, and
each block counts as one observation, a vector x of what is compared. With D the difference of the two mean vectors, V
the sum of their two estimated variances, and ‖·‖ the norm that makes the distance, the statistic is T = ‖D‖ / ‖√V‖.

If both traces are samples of one process, every way of dealing the blocks to the two is as likely as the one that was
seen, so T must not stand out among its values at random dealings. Such a permutation test holds with any number of
blocks, so a few long ones will do, and no autocorrelation need be estimated. As T is standardised, it also holds
approximately where the two have one mean but vary unequally, as a real run and a simulated one may (Janssen 1997;
Chung and Romano 2013), and a real difference does not widen the band: that is ‖√V‖ times a quantile of T.

Replicas are independent of each other: a block never spans two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from asyncsim.trace import APPLIED, Trace

#: Blocks that the shorter trace is cut into. Fewer would cost power (16 widen the 99 % band by 7 %), more would
#: shorten the blocks, whose edges must not matter.
BLOCKS = 16

#: Blocks used of the longer trace: when it has 64 times as many as the other, its own noise hardly counts.
MOST_BLOCKS = 64 * BLOCKS

#: Random dealings; with the one that was seen, 2000.
DEALINGS = 1999

#: Dealings that are looked at together.
PART = 250

#: Ways to deal the blocks below which the rarest percent cannot be told.
FEWEST_WAYS = 400

#: A difference no larger than this is rounding.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Difference:
    """A quantity of two samples, how far they are apart, and how far chance alone takes them.

    `a` and `b` are its values (NaN where it has none of its own), `a_error` and `b_error` the half-widths of their
    95 % intervals (NaN where there is none). `chance` holds the distances of random dealings, in increasing order;
    it is empty where there are too few blocks to deal.
    """

    quantity: str
    a: float
    b: float
    distance: float
    chance: np.ndarray = field(repr=False)
    a_error: float = math.nan
    b_error: float = math.nan

    def band(self, confidence: float = 0.95) -> float:
        """Return the distance that chance alone exceeds with probability at most 1 − confidence; NaN if unknown."""
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
        if not self.chance.size:
            return math.nan
        place = math.ceil(confidence * (self.chance.size + 1)) - 1
        return float(self.chance[min(place, self.chance.size - 1)])


# --- traces -------------------------------------------------------------------------------------------------------


def trace_differences(a: Trace, b: Trace, *, warmup: int = 0, blocks: int = BLOCKS) -> dict[str, Difference]:
    """Compare two traces: `total_variation`, `kolmogorov_smirnov`, `shares` and, where times are known, `throughput`.

    With p and q the shares of applied gradients of each staleness in `a` and `b`, and r the updates per time unit,

        total variation     ½ Σ |p_s − q_s|
        Kolmogorov–Smirnov  max_s |Σ_{j ≤ s} (p_j − q_j)|
        shares              the same worker's share of all applied gradients: the largest difference
        throughput          |r_b / r_a − 1|

    The first `warmup` updates of each replica are left out. `blocks` is the number of blocks of the shorter trace;
    blocks of one update treat gradients as independent.

    Raises ValueError where a trace has fewer updates after `warmup` than blocks.

    >>> from asyncsim.scenario import build
    >>> from asyncsim.sources import simulate
    >>> four, other, five = (
    ...     simulate(build({
    ...         "seed": seed,
    ...         "cluster": {"workers": [{"count": count, "service": {"law": "exponential", "mean": 1.0}}]},
    ...         "run": {"updates": 4000},
    ...     }))
    ...     for seed, count in ((1, 4), (2, 4), (3, 5))
    ... )
    >>> same, changed = (trace_differences(four, trace)["total_variation"] for trace in (other, five))
    >>> same.distance < same.band(), changed.distance < changed.band()
    (True, False)
    """
    length = block_length(a, b, warmup=warmup, blocks=blocks)
    values = np.union1d(*(staleness_counts(trace, warmup=warmup)[0] for trace in (a, b)))
    workers = max(a.workers, b.workers)
    tables = [_blocks(trace, warmup, length, values, workers) for trace in (a, b)]
    stale, ends = values.size, values.size + workers
    shares, laws = [table[:, stale:ends] for table in tables], [table[:, :stale] for table in tables]
    worker = int(np.abs(shares[0].mean(axis=0) - shares[1].mean(axis=0)).argmax())
    times = [table[:, ends] for table in tables]
    rates = [float(1 / time.mean()) if time.mean() > 0 else math.nan for time in times]
    with _one_thread():
        found = {
            "total_variation": _difference("staleness: total variation", laws, _half_sum),
            "kolmogorov_smirnov": _difference(
                "staleness: Kolmogorov–Smirnov", [law.cumsum(axis=1) for law in laws], _largest
            ),
            "shares": _difference(
                f"share of worker {worker}", shares, _largest, [float(share.mean(axis=0)[worker]) for share in shares]
            ),
        }
        if np.isfinite(rates).all():
            # In units of the mean time per update in b, the difference of these means is r_b / r_a − 1.
            relative = [time[:, None] * rates[1] for time in times]
            difference = _difference("throughput, relative", relative, _largest, rates)
            errors = [rate**2 * _mean_error(time) for rate, time in zip(rates, times, strict=True)]
            found["throughput"] = replace(difference, a_error=errors[0], b_error=errors[1])
    return found


def _difference(
    quantity: str,
    tables: list[np.ndarray],
    norm: Callable[[np.ndarray], np.ndarray],
    ends: Sequence[float] = (math.nan, math.nan),
) -> Difference:
    """Return the distance of the means of two tables of blocks, with what chance makes of it."""
    a, b = tables

    def statistic(difference: np.ndarray, error: np.ndarray) -> np.ndarray:
        return _ratio(norm(difference), norm(error))

    distance = float(norm(a.mean(axis=0) - b.mean(axis=0)))
    chance = _dealt(a, b, statistic) * float(norm(_standard_error(a, b)))
    return Difference(quantity, ends[0], ends[1], distance, chance)


def _half_sum(vectors: np.ndarray) -> np.ndarray:
    total: np.ndarray = 0.5 * np.abs(vectors).sum(axis=-1)
    return total


def _largest(vectors: np.ndarray) -> np.ndarray:
    largest: np.ndarray = np.abs(vectors).max(axis=-1)
    return largest


def staleness_counts(trace: Trace, *, warmup: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of staleness that occur, in order, and how many applied gradients have each."""
    values, counts = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    for part in trace.parts("update", "read_version", "status"):
        used = (part["status"] == APPLIED) & (part["update"] >= warmup)
        more, many = np.unique(part["update"][used] - part["read_version"][used], return_counts=True)
        both, place = np.unique(np.concatenate([values, more]), return_inverse=True)
        counts = np.bincount(place, weights=np.concatenate([counts, many]), minlength=both.size).astype(np.int64)
        values = both
    return values, counts


def block_length(a: Trace, b: Trace, *, warmup: int = 0, blocks: int = BLOCKS) -> float:
    """Return the updates in a block: those of the shorter trace over `blocks`, but no more than a replica has."""
    length = math.inf
    for trace in (a, b):
        left = np.maximum(trace.updates - warmup, 0)
        if left.sum() < blocks:
            raise ValueError(f"needs {blocks} updates after a warmup of {warmup:,}, a trace has {left.sum():,}")
        length = min(length, left.sum() / blocks, left.max())
    return max(length, 1.0)


def independent_gradients(trace: Trace, *, warmup: int = 0, blocks: int = BLOCKS) -> float:
    """Return how many independent gradients would show the staleness distribution as precisely as this trace does.

    With p_s the share of staleness s, and the variance of its estimate taken from the spread between blocks, it is
    Σ p_s (1 − p_s) / Σ Var p_s: the number n at which independent draws have the same total variance. Far fewer
    than the gradients where these are correlated; more where they balance each other. Infinite where blocks are equal.
    """
    values = staleness_counts(trace, warmup=warmup)[0]
    length = block_length(trace, trace, warmup=warmup, blocks=blocks)
    table = _blocks(trace, warmup, length, values, trace.workers)[:, : values.size]
    p = table.mean(axis=0)
    variance = table.var(axis=0, ddof=1).sum() / len(table)
    return float((p * (1 - p)).sum() / variance) if variance > 0 else math.inf


def _blocks(trace: Trace, warmup: int, length: float, values: np.ndarray, workers: int) -> np.ndarray:
    """Return one row per block: its gradients of each staleness, gradients of each worker, and time.

    Each is divided by what a block has on average, gradients or updates, so that the mean over blocks is the trace's
    share or time per update.
    """
    left = np.maximum(trace.updates - warmup, 0)
    blocks = np.where(left > 0, np.maximum(np.rint(left / length), 1), 0).astype(np.int64)
    place = np.repeat(np.arange(left.size), blocks)
    number = np.arange(place.size) - (np.cumsum(blocks) - blocks)[place]
    begin, end = (warmup + (number + more) * left[place] // blocks[place] for more in (0, 1))
    # One increasing number for (replica, version): a version's time is that of the update that made it.
    span = int(trace.updates.max()) + 1
    versions = np.stack([place * span + begin, place * span + end])
    times = np.where(np.stack([begin, end]) == 0, 0.0, np.nan)
    timed = ("apply_time",) if "apply_time" in trace else ()

    counts = [np.zeros((place.size, size)) for size in (values.size, workers)]
    for part in trace.parts("replica", "worker", "read_version", "update", "status", *timed):
        applied = {name: column[part["status"] == APPLIED] for name, column in part.items()}
        made = np.searchsorted(trace.replicas, applied["replica"]) * span + applied["update"] + 1
        for name in timed:
            for edges, known in zip(versions, times, strict=True):
                at = np.minimum(np.searchsorted(edges, made), edges.size - 1)
                known[at[edges[at] == made]] = applied[name][edges[at] == made]
        used = applied["update"] >= warmup
        block = np.searchsorted(versions[0], made[used] - 1, side="right") - 1
        staleness = (applied["update"] - applied["read_version"])[used]
        for table, column in zip(counts, (np.searchsorted(values, staleness), applied["worker"][used]), strict=True):
            table += _counts(block, column, *table.shape)
    gradients, updates = counts[0].sum() / place.size, left.sum() / place.size
    return np.hstack([*(table / gradients for table in counts), (times[1] - times[0])[:, None] / updates])


def _counts(row: np.ndarray, column: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return how often each (row, column) occurs."""
    return np.bincount(row * columns + column, minlength=rows * columns).reshape(rows, columns).astype(np.float64)


# --- curves -------------------------------------------------------------------------------------------------------


def curve_difference(
    quantity: str, a: np.ndarray, b: np.ndarray, *, standardised: bool = True
) -> tuple[Difference, int]:
    """Compare two sets of curves, one row per replica, at common points; return the difference and its point.

    The point is where the means over replicas differ most, in units of their standard error if `standardised` (and if
    there are replicas enough to deal), so that a curve's large first values do not hide its last ones. Chance is that
    of the largest standardised difference anywhere along the curve, expressed at this point: replicas are dealt as
    wholes, so that no curve is taken for independent of its earlier values. All values must be finite.

    Returns the difference, and the place of the point.

    >>> curves = np.arange(8.0)[:, None] + np.zeros(3)
    >>> difference, point = curve_difference("loss", curves, curves + [0, 1, 40])
    >>> point, difference.distance, difference.distance > difference.band()
    (2, 40.0, True)
    """
    means = a.mean(axis=0), b.mean(axis=0)
    gap = np.abs(means[0] - means[1])
    with _one_thread():
        chance = _dealt(a, b, lambda difference, error: _ratio(np.abs(difference), error).max(axis=-1))
    if standardised and chance.size:
        error = _standard_error(a, b)
        place = _last_largest(_ratio(gap, error))
        chance = chance * error[place]
    else:
        place, chance = _last_largest(gap), np.empty(0)
    errors = [_mean_error(values[:, place]) for values in (a, b)]
    ends = float(means[0][place]), float(means[1][place])
    return Difference(quantity, *ends, float(gap[place]), chance, *errors), place


def _last_largest(values: np.ndarray) -> int:
    """Return where the largest value is; of equal ones the last."""
    return values.size - 1 - int(values[::-1].argmax())


def _mean_error(values: np.ndarray) -> float:
    """Return the half-width of the 95 % interval of the mean of independent values; NaN for a single one."""
    from scipy.stats import t

    if values.size < 2:
        return math.nan
    return float(t.ppf(0.975, values.size - 1) * values.std(ddof=1) / math.sqrt(values.size))


# --- dealing ------------------------------------------------------------------------------------------------------


def _one_thread() -> Any:
    """Keep linear algebra to one thread: more make small products slower, and their bits vary."""
    return _libraries().limit(limits=1, user_api="blas")


@cache
def _libraries() -> Any:
    """Return the libraries that have threads; to look for them takes longer than a comparison."""
    return ThreadpoolController()


def _dealt(a: np.ndarray, b: np.ndarray, statistic: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Return a statistic of random dealings of the rows of two tables, in increasing order; shape (dealings,).

    `statistic` takes the differences of the two means and their standard errors, both of shape (dealings, columns).
    Empty where there are fewer than `FEWEST_WAYS` ways to deal.
    """
    a, b = _thinned(a), _thinned(b)
    if min(len(a), len(b)) < 2 or math.comb(len(a) + len(b), len(a)) < FEWEST_WAYS:
        return np.empty(0)
    rows = np.concatenate([a, b])
    rows = rows - rows[0]  # so that equal values make exactly no variance
    parts = [_dealt_part(low, rows, len(a), statistic) for low in range(0, DEALINGS, PART)]
    return np.sort(np.concatenate(parts))


def _dealt_part(
    low: int, rows: np.ndarray, first: int, statistic: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return the statistic of the dealings from `low` on; the first of the two sides gets `first` rows."""
    from asyncsim import streams

    dealing = np.arange(low, min(low + PART, DEALINGS))
    keys = streams.uniforms(0, 0, -1, dealing, streams.RESAMPLE, len(rows))
    chosen = np.zeros(keys.shape)
    np.put_along_axis(chosen, np.argpartition(keys, first - 1, axis=1)[:, :first], 1.0, axis=1)
    means, variance = [], np.zeros(())
    for side, count in ((chosen, first), (1 - chosen, len(rows) - first)):
        mean = side @ rows / count
        spread = np.maximum(side @ rows**2 / count - mean**2, 0.0)
        variance = variance + spread / (count - 1)
        means.append(mean)
    return statistic(means[0] - means[1], np.sqrt(variance))


def _standard_error(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the standard error of the difference of the means of each column."""
    variances = [(values - values[0]).var(axis=0, ddof=1) / len(values) for values in (a, b)]
    error: np.ndarray = np.sqrt(variances[0] + variances[1])
    return error


def _ratio(differences: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Return differences in units of their errors: 0 where there is none, large where there is one without error."""
    ratio: np.ndarray = np.divide(differences, errors, out=np.where(differences > 0, 1e9, 0.0), where=errors > 0)
    return ratio


def _thinned(table: np.ndarray) -> np.ndarray:
    """Return the rows that are dealt: all, or `MOST_BLOCKS` evenly spaced ones."""
    if len(table) <= MOST_BLOCKS:
        return table
    thinned: np.ndarray = table[np.linspace(0, len(table) - 1, MOST_BLOCKS).round().astype(np.int64)]
    return thinned
