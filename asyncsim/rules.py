"""The rules of docs/trace.md in one compiled pass: a quick yes for a trace that keeps them all.

`asyncsim.trace` has each rule in the open, with the message of the first row that breaks it. This pass knows only yes
and "not sure": it covers the tables that engines make, with all their times, and leaves the rest to those rules.
"""

from __future__ import annotations

import numpy as np

from asyncsim.compiling import njit
from asyncsim.trace import APPLIED, ARRIVE, RECEIVE


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
    times = np.empty(longest)
    next_draw = np.empty(workers, dtype=np.int64)
    row = 0
    for place in range(replicas.size):
        count, end = updates[place], row
        times[:count] = np.nan
        next_draw[:] = 0
        while end < rows and replica[end] == replicas[place]:
            u = update[end]
            if status[end] == APPLIED:
                if u < 0 or u >= count or version[end] > u:
                    return False
                if np.isnan(times[u]):
                    times[u] = settled[end]
                elif times[u] != settled[end]:
                    return False
            elif u != -1 or status[end] < 0 or status[end] > 3:
                return False
            end += 1
        for u in range(count):
            if np.isnan(times[u]) or (u > 0 and times[u] < times[u - 1]):
                return False
        before, kind_before = -np.inf, 0
        for i in range(row, end):
            w, v = worker[i], version[i]
            if w < 0 or w >= workers or v < 0 or v >= count or draw[i] != next_draw[w]:
                return False
            next_draw[w] += 1
            arrived = not np.isnan(arrive[i])
            if arrived:
                in_order = read[i] <= start[i] <= done[i] <= arrive[i] <= settled[i]
                time, kind = arrive[i], ARRIVE
            else:
                in_order = read[i] <= start[i] <= settled[i] and np.isnan(done[i])
                time, kind = settled[i], RECEIVE
            if not in_order or read[i] == -np.inf or settled[i] == np.inf or time < before:
                return False
            if time == before and (
                kind < kind_before
                or (kind == kind_before and (w < worker[i - 1] or (w == worker[i - 1] and draw[i] <= draw[i - 1])))
            ):
                return False
            before, kind_before = time, kind
            if v > 0 and times[v - 1] > read[i]:
                return False
            if v < count and times[v] < read[i]:
                return False
        row = end
    return row == rows
