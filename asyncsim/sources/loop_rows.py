"""The rows that the compiled event loop has written: which of them are final, and closing the table of a replica."""

from __future__ import annotations

import numpy as np

from asyncsim.compiling import njit
from asyncsim.sources.loop_state import HEAP, KIND_BIT, MASK, ROWS, TOLD, TOP_EMPTY, VERSION, WAITING
from asyncsim.trace import APPLIED, CRASH


@njit
def _unsettled_draws(memory, columns, version):  # type: ignore[no-untyped-def]
    """Return each worker's first draw whose fate is not settled by update `version` − 1; 2**62 if there is none."""
    counter = memory.counter
    unsettled = np.full(memory.last_draw.size, 2**62)
    for place in range(counter[TOP_EMPTY], counter[HEAP]):
        key = memory.heap[place].key
        g = memory.gradients[key & MASK]
        if g.version >= 0 and key >> KIND_BIT < CRASH:
            unsettled[g.worker] = min(unsettled[g.worker], g.draw)
    for row in range(counter[ROWS]):
        update = columns.update[row]
        if update == WAITING or update == -2 - version:
            worker = columns.worker[row]
            unsettled[worker] = min(unsettled[worker], columns.draw[row])
    return unsettled


@njit
def final_rows(memory, columns):  # type: ignore[no-untyped-def]
    """Return how many rows at the beginning are told of, will stay as they are, and are earlier than all to come."""
    unsettled = _unsettled_draws(memory, columns, memory.counter[VERSION])
    final = 0
    for row in range(memory.counter[ROWS]):
        if row > 0 and _settled_at(columns, row - 1) < _settled_at(columns, row):
            final = row
        if columns.draw[row] >= unsettled[columns.worker[row]] or row >= memory.counter[TOLD]:
            break
    return final


@njit
def settle(memory, columns, version):  # type: ignore[no-untyped-def]
    """Close a replica that ends with `version` updates: drop rows that do not count; return (rows, whether in order).

    Dropped are gradients that wait for an update, those settled after the last one, and those settled while an earlier
    draw of the same worker was not.
    """
    rows = memory.counter[ROWS]
    unsettled = _unsettled_draws(memory, columns, version)
    kept = 0
    in_order = True
    for row in range(rows):
        if columns.draw[row] >= unsettled[columns.worker[row]]:
            continue
        if kept < row:
            columns.worker[kept], columns.draw[kept] = columns.worker[row], columns.draw[row]
            columns.read_version[kept], columns.update[kept] = columns.read_version[row], columns.update[row]
            columns.status[kept], columns.read_time[kept] = columns.status[row], columns.read_time[row]
            columns.start_time[kept], columns.done_time[kept] = columns.start_time[row], columns.done_time[row]
            columns.arrive_time[kept], columns.apply_time[kept] = columns.arrive_time[row], columns.apply_time[row]
        if columns.update[kept] < 0:
            columns.update[kept] = -1
        if kept > 0:
            in_order = in_order and _settled_at(columns, kept - 1) < _settled_at(columns, kept)
        kept += 1
    return kept, in_order


@njit
def _settled_at(columns, row):  # type: ignore[no-untyped-def]
    """Return the time that orders a row: of its arrival, or of its end if it never arrived."""
    time = columns.arrive_time[row]
    return columns.apply_time[row] if np.isnan(time) else time


@njit
def wasted_rows(memory, columns, last, told):  # type: ignore[no-untyped-def]
    """Return the rows of gradients computed for nothing that belong to an update, and the oldest version still needed.

    They lie before row `last`, which has the last gradient of the update, and no earlier draw of their worker is still
    on its way. `told` holds each worker's first draw that no update before told of, and is brought up to date; of
    the rows before TOLD none is to be told any more.
    """
    counter = memory.counter
    first, counter[TOLD] = counter[TOLD], last + 1
    untold = memory.last_draw + 1
    oldest = counter[VERSION]
    for place in range(counter[TOP_EMPTY], counter[HEAP]):
        key = memory.heap[place].key
        g = memory.gradients[key & MASK]
        if g.version >= 0 and key >> KIND_BIT < CRASH:
            untold[g.worker] = min(untold[g.worker], g.draw)
            oldest = min(oldest, g.version)
    for row in range(last + 1, counter[ROWS]):
        worker = columns.worker[row]
        untold[worker] = min(untold[worker], columns.draw[row])
        oldest = min(oldest, columns.read_version[row])
    found = np.empty(last - first, dtype=np.int64)
    count = 0
    for row in range(first, last):
        worker, draw = columns.worker[row], columns.draw[row]
        if draw >= untold[worker]:
            counter[TOLD] = min(counter[TOLD], row)
        elif draw >= told[worker] and columns.status[row] != APPLIED and not np.isnan(columns.done_time[row]):
            found[count] = row
            count += 1
    told[:] = untold
    return found[:count], oldest
