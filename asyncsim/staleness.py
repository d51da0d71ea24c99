"""Measurements on a trace: what it says about staleness, time and the conservation law.

Nothing here is stored in a trace; all of it is derived. Unknown is NaN, never 0.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from asyncsim.trace import APPLIED, CANCELLED, LOST, Trace

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
    return summary_of(*np.unique(np.asarray(staleness), return_counts=True))


def summary_of(values: np.ndarray, counts: np.ndarray) -> dict[str, float]:
    """Return the `summary` of staleness `values`, in increasing order, of which each occurs `counts` times.

    >>> summary_of(np.array([0, 1, 3]), np.array([2, 1, 1]))
    {'mean': 1.0, 'var': 1.5, 'p50': 0, 'p99': 3, 'max': 3}
    """
    if not values.size:
        return dict.fromkeys(("mean", "var", "p50", "p99", "max"), float("nan"))
    upto = np.cumsum(counts)
    total = int(upto[-1])
    mean = float(values @ counts) / total
    half, most = values[np.searchsorted(upto, [0.5 * total, 0.99 * total])]
    return {
        "mean": mean,
        "var": float((values - mean) ** 2 @ counts) / total,
        "p50": int(half),
        "p99": int(most),
        "max": int(values[-1]),
    }


def histogram_of(trace: Trace, *, warmup: int = 0) -> np.ndarray:
    """Return the `histogram` of a trace's staleness, leaving out `warmup` updates; a long trace is read in parts.

    >>> columns = dict(replica=[0, 0, 0], worker=[0, 1, 0], draw=[0, 0, 1], read_version=[0, 0, 1], update=[0, 1, 2],
    ...                status=[0, 0, 0])
    >>> histogram_of(Trace(columns, seed=7, workers=2, updates=[3])).tolist()
    [1, 2]
    """
    counts = np.zeros(0, dtype=np.int64)
    for part in trace.parts("status", "update", "read_version"):
        used = (part["status"] == APPLIED) & (part["update"] >= warmup)
        more = np.bincount((part["update"] - part["read_version"])[used])
        if more.size > counts.size:
            counts, more = more, counts
        counts[: more.size] += more
    return counts


def per_worker(trace: Trace, *, warmup: int = 0) -> dict[str, np.ndarray]:
    """Return what each worker contributed, over all replicas, leaving out `warmup` updates.

    Columns of length `workers`: `worker`, `applied` (its applied gradients), `share` (of all applied ones) and
    `mean_staleness`; the last two are NaN where there is nothing to divide by.

    >>> columns = dict(replica=[0, 0, 0], worker=[0, 1, 0], draw=[0, 0, 1], read_version=[0, 0, 1], update=[0, 1, 2],
    ...                status=[0, 0, 0])
    >>> per_worker(Trace(columns, seed=7, workers=2, updates=[3]))["applied"].tolist()
    [2, 1]
    """
    applied, total = np.zeros(trace.workers, dtype=np.int64), np.zeros(trace.workers)
    for part in trace.parts("status", "update", "worker", "read_version"):
        used = (part["status"] == APPLIED) & (part["update"] >= warmup)
        worker, staleness = part["worker"][used], (part["update"] - part["read_version"])[used]
        applied += np.bincount(worker, minlength=trace.workers)
        total += np.bincount(worker, weights=staleness, minlength=trace.workers)
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
    begin = trace.times_of(np.full(trace.replicas.size, warmup - 1)) if warmup else 0.0
    elapsed = trace.times_of(trace.updates - 1) - begin
    counts = np.maximum(trace.updates - warmup, 0)
    return _ratio(np.where(counts > 0, counts, np.nan), elapsed)


def waiting(trace: Trace) -> np.ndarray:
    """Return how long the worker idles after each gradient, until it starts its next one; shape (rows,).

    A worker stops computing at `done_time`, or at `apply_time` where the gradient was cancelled or the worker crashed.
    NaN for the last gradient of a worker, for unknown times, and after a gradient that was never finished.
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
    """Return when each gradient was computed or, where it was stopped or a crash ended it, when that was."""
    stopped = (trace["status"] == CANCELLED) | ((trace["status"] == LOST) & np.isnan(trace["done_time"]))
    return np.where(stopped, trace["apply_time"], trace["done_time"])


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
