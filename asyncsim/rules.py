"""The rules of docs/trace.md in one compiled pass: a quick yes for a table that keeps them all.

`asyncsim.trace` has each rule in the open, with the message of the first row that breaks it. This pass knows only yes
and "not sure": it covers the tables that engines make, with all their times, and leaves the rest to those rules. It
takes a replica part by part, and carries from part to part what the rows to come are checked against.
"""

from __future__ import annotations

import numpy as np

from asyncsim.compiling import njit
from asyncsim.trace import APPLIED, ARRIVE, LOST, RECEIVE

#: What is carried of the rows before: time and kind of the last one, its worker and draw, and the newest update that
#: was applied, first before the rows that share the last one's time, then with them.
LAST_KIND, LAST_WORKER, LAST_DRAW, NEWEST_BEFORE, NEWEST, CARRIED = range(6)


@njit
def part_kept(  # type: ignore[no-untyped-def]
    workers, base, times, next_draw, held, last_time, last,
    worker, draw, version, update, status, read, start, done, arrive, settled,
):  # fmt: skip
    """Return whether rules 2 to 5 and 7 to 9 are surely kept by these rows of a replica, which end no tie early.

    Carried, and changed in place: `times` of updates `base`, `base` + 1, …, NaN where not known yet; each worker's next
    draw and the newest version that it `held`; the time of the last row (an array of one), and the rest about it.
    """
    rows = worker.size
    lowest, highest = times.size, -1
    for i in range(rows):
        if status[i] == APPLIED:
            u = update[i] - base
            if u < 0 or u >= times.size or version[i] > update[i]:
                return False
            if np.isnan(times[u]):
                times[u] = settled[i]
            elif times[u] != settled[i]:
                return False
            lowest, highest = min(lowest, u), max(highest, u)
        elif update[i] != -1 or status[i] < 0 or status[i] > 3:
            return False
    for u in range(max(lowest, 1), min(highest + 2, times.size)):
        if times[u] < times[u - 1]:
            return False
    before = last_time[0]
    kind_before, worker_before, draw_before = last[LAST_KIND], last[LAST_WORKER], last[LAST_DRAW]
    newest_before, newest = last[NEWEST_BEFORE], last[NEWEST]
    for i in range(rows):
        w, v = worker[i], version[i]
        if w < 0 or w >= workers or v < 0 or draw[i] != next_draw[w]:
            return False
        next_draw[w] += 1
        held[w] = max(held[w], v)
        if not np.isnan(arrive[i]):
            in_order = read[i] <= start[i] <= done[i] <= arrive[i] <= settled[i]
            time, kind = arrive[i], ARRIVE
        elif status[i] == LOST:  # it may have been started and computed, or not
            before_start = read[i] <= start[i] or np.isnan(start[i])
            begun = read[i] if np.isnan(start[i]) else start[i]
            ended = begun if np.isnan(done[i]) else done[i]
            in_order = before_start and begun <= ended <= settled[i]
            time, kind = settled[i], RECEIVE
        else:
            in_order = read[i] <= start[i] <= settled[i] and np.isnan(done[i])
            time, kind = settled[i], RECEIVE
        if not in_order or read[i] == -np.inf or settled[i] == np.inf or time < before:
            return False
        if time > before:
            newest_before = newest
        elif kind < kind_before or (
            kind == kind_before and (w < worker_before or (w == worker_before and draw[i] <= draw_before))
        ):
            return False
        before, kind_before, worker_before, draw_before = time, kind, w, draw[i]
        if status[i] == APPLIED:
            if update[i] < newest_before:
                return False
            newest = max(newest, update[i])
        if v > 0 and not (v > base and v <= base + times.size and times[v - 1 - base] <= read[i]):
            return False
        if v < base + times.size and v >= base and times[v - base] < read[i]:
            return False
    last_time[0] = before
    last[LAST_KIND], last[LAST_WORKER], last[LAST_DRAW] = kind_before, worker_before, draw_before
    last[NEWEST_BEFORE], last[NEWEST] = newest_before, newest
    return True


@njit
def surely_kept(  # type: ignore[no-untyped-def]
    replicas, updates, workers,
    replica, worker, draw, version, update, status, read, start, done, arrive, settled,
):  # fmt: skip
    """Return whether rules 2 to 9 are surely kept by a table with all times and consecutive draws."""
    rows = replica.size
    longest = 0
    for count in updates:
        longest = max(longest, count)
    all_times = np.empty(longest)
    next_draw, held = np.empty(workers, dtype=np.int64), np.empty(workers, dtype=np.int64)
    last_time, last = np.empty(1), np.empty(CARRIED, dtype=np.int64)
    row = 0
    for place in range(replicas.size):
        end = row
        while end < rows and replica[end] == replicas[place]:
            end += 1
        times = all_times[: updates[place]]
        times[:] = np.nan
        next_draw[:], held[:], last_time[0], last[:] = 0, 0, -np.inf, -1
        kept = part_kept(
            workers, 0, times, next_draw, held, last_time, last,
            worker[row:end], draw[row:end], version[row:end], update[row:end], status[row:end],
            read[row:end], start[row:end], done[row:end], arrive[row:end], settled[row:end],
        )  # fmt: skip
        if not kept or np.isnan(times).any() or held.max() >= max(times.size, 1):
            return False
        row = end
    return row == rows
