"""How long did what take? The durations that a trace with times holds, one array for each part of the model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from asyncsim.trace import APPLIED, CANCELLED, TIMES, Trace

#: A part of the model that takes less than this share of a worker's cycle is left out of it.
NEGLIGIBLE = 1e-3
#: Fewer durations of a kind say nothing.
FEW = 20
#: Where so many messages should have come while the server was busy and none has, it does not look at them meanwhile.
EXPECTED = 5.0


@dataclass(frozen=True)
class Intervals:
    """Durations of a trace, in its unit of time; each array is in order of replica, worker and draw.

    `rows` are the trace's rows whose service time is known, `worker` and `service` theirs. `turnaround` is the time
    from the previous update of the same worker to its next read, at those rows (0 where it does not apply). `server`
    holds the time of each update, from the moment that its last gradient had arrived and the server was free. `rest`
    holds the times from an update until the server looks at a message that waits already, where it looks at its
    messages one by one (none, where it does not, or where fewer than `FEW` have waited). `down` and `up` hold the times
    of messages to and from workers, `up_free` those of messages to a server that made no update until they arrived
    (all, where fewer than `FEW` are so). `cycle` is the mean time from one read of a worker to its next, `period` that
    from one update to the next.
    """

    rows: np.ndarray
    worker: np.ndarray
    service: np.ndarray
    turnaround: np.ndarray
    server: np.ndarray
    rest: np.ndarray
    down: np.ndarray
    up: np.ndarray
    up_free: np.ndarray
    cycle: float
    period: float


def intervals(trace: Trace, *, warmup: int = 0) -> Intervals:
    """Return the durations of a trace, gradients read before version `warmup` left out."""
    nan = np.full(len(trace), np.nan)
    read, start, done, arrive, apply = (trace[name] if name in trace.columns else nan for name in TIMES)
    order = np.lexsort((trace["draw"], trace["worker"], trace["replica"]))
    used = trace["read_version"] >= warmup
    rows = order[used[order] & ~np.isnan((done - start)[order])]
    back = _turnaround(trace, order)
    cycles = np.diff(read[order])[_same_worker(trace, order)]
    down = (start - read)[used]
    up, free = _up(trace, used)
    server = _server(trace, warmup, arrive, apply)
    updates = [np.diff(trace.update_times(one)[warmup:]) for one in trace.replicas]
    period = _known_mean(np.concatenate(updates))
    return Intervals(
        rows=rows,
        worker=trace["worker"][rows],
        service=(done - start)[rows],
        turnaround=back[rows],
        server=server,
        rest=_rest(trace, warmup, float(server.sum()) / period if server.size else 0.0, free),
        down=down[~np.isnan(down)],
        up=up,
        up_free=free,
        cycle=_known_mean(cycles if (~np.isnan(cycles)).any() else (done - start)[rows]),
        period=period,
    )


def _known_mean(times: np.ndarray) -> float:
    known = times[~np.isnan(times)]
    return float(known.mean()) if known.size else math.nan


def gradients_per_update(trace: Trace) -> float:
    """Return the mean number of gradients that go into an update."""
    return float((trace["status"] == APPLIED).sum() / max(int(trace.updates.sum()), 1))


def plainly_asynchronous(trace: Trace) -> bool:
    """Say whether every gradient makes an update, so that the trace may be one of the policy async."""
    return gradients_per_update(trace) == 1 and bool((trace["status"] == APPLIED).all())


def replies_before(trace: Trace) -> bool:
    """Say whether workers read the version from before their own update: the server replies, then applies."""
    order = np.lexsort((trace["draw"], trace["worker"], trace["replica"]))
    after = _same_worker(trace, order) & (trace["status"][order][:-1] == APPLIED)
    earlier = trace["read_version"][order][1:] <= trace["update"][order][:-1]
    return gradients_per_update(trace) == 1 and bool(after.any()) and float(earlier[after].mean()) > 0.5


def share_cancelled(trace: Trace) -> float:
    """Return the share of gradients that were stopped, so that nobody knows how long they would have taken."""
    return float((trace["status"] == CANCELLED).mean())


def computing_at_start(trace: Trace, rows: np.ndarray) -> np.ndarray:
    """Return how many workers compute, itself included, when each of these rows' worker starts; NaN where unknown.

    What a worker computes when the replica ends has no row, so nothing is known from the first moment on at which the
    last gradient of some worker is over.
    """
    number = np.full(len(trace), np.nan)
    end = np.where(trace["status"] == CANCELLED, trace["apply_time"], trace["done_time"])
    for _, _, part in trace.slices():
        start, over = trace["start_time"][part], end[part]
        known = ~np.isnan(start) & ~np.isnan(over)
        last = np.full(trace.workers, -np.inf)
        np.maximum.at(last, trace["worker"][part][known], over[known])
        begun = np.searchsorted(np.sort(start[known]), start, side="right")
        ended = np.searchsorted(np.sort(over[known]), start, side="right")
        seen = start < last[last > -np.inf].min(initial=np.inf)
        number[part] = np.where(seen, np.maximum(begun - ended, 1), np.nan)
    return number[rows]


def _same_worker(trace: Trace, order: np.ndarray) -> np.ndarray:
    """Say of each row in this order, but the last, whether the next one is of the same worker and replica."""
    return (np.diff(trace["worker"][order]) == 0) & (np.diff(trace["replica"][order]) == 0)


def _turnaround(trace: Trace, order: np.ndarray) -> np.ndarray:
    """Return the time from each worker's previous update to its next read.

    Zero where that is not how the server answers (several gradients per update, replies before applying), where the
    previous gradient was not applied, and where a time is unknown.
    """
    back = np.zeros(len(trace))
    if "read_time" not in trace or "apply_time" not in trace or gradients_per_update(trace) != 1:
        return back
    gap = trace["read_time"][order][1:] - trace["apply_time"][order][:-1]
    follows = _same_worker(trace, order) & (trace["status"][order][:-1] == APPLIED) & (gap > 0)
    back[order[1:][follows]] = gap[follows]
    return back


def _server(trace: Trace, warmup: int, arrive: np.ndarray, apply: np.ndarray) -> np.ndarray:
    times = []
    for _, count, part in trace.slices():
        applied = trace["status"][part] == APPLIED
        update = trace["update"][part][applied]
        ready, settled = np.full(count, -np.inf), np.full(count, np.nan)
        np.maximum.at(ready, update, np.where(np.isnan(arrive[part][applied]), np.inf, arrive[part][applied]))
        settled[update] = apply[part][applied]
        free = np.concatenate([[0.0], settled[:-1]])
        times.append((settled - np.maximum(ready, free))[warmup:])
    server = np.concatenate(times) if times else np.empty(0)
    return server[np.isfinite(server)]


def _rest(trace: Trace, warmup: int, during: float, up: np.ndarray) -> np.ndarray:
    """Return the times from an update until a message arrives that should have been there when the update was made.

    A real server that looks at one message after another sees none arrive while it makes an update, though `during` of
    them are to be expected. Then a gradient that was sent before the update, by more than the median time of messages
    to a free server, has waited for it, and what passes until it arrives is what else the server does for each update:
    reply, take notes, fetch the next message.
    """
    if not up.size or during < EXPECTED or not plainly_asynchronous(trace):
        return np.empty(0)
    usual = float(np.median(up))
    found = []
    for _, _, part in trace.slices():
        order = np.argsort(trace["update"][part])[warmup:]
        done, arrive, apply = (trace[name][part][order] for name in ("done_time", "arrive_time", "apply_time"))
        if (arrive[1:] < apply[:-1]).any():
            return np.empty(0)
        found.append((arrive[1:] - apply[:-1])[done[1:] + usual < apply[:-1]])
    rest = np.concatenate(found)
    return rest if rest.size >= FEW else np.empty(0)


def _up(trace: Trace, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the times of messages to the server: of all, and of those under way while it made no update."""
    if "arrive_time" not in trace or "done_time" not in trace:
        return np.empty(0), np.empty(0)
    free = np.zeros(len(trace), dtype=bool)
    for replica, _, part in trace.slices():
        applied = np.sort(trace.update_times(replica))
        applied = applied[~np.isnan(applied)]
        sent, came = trace["done_time"][part], trace["arrive_time"][part]
        free[part] = np.searchsorted(applied, sent, side="right") >= np.searchsorted(applied, came, side="left")
    up = trace["arrive_time"] - trace["done_time"]
    known = used & ~np.isnan(up)
    return up[known], up[known & free] if (known & free).sum() >= FEW else up[known]
