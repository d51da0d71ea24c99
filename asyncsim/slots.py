"""The plan of a replay, compiled: which rows make each update, and where each version of each replica is kept."""

from __future__ import annotations

import numpy as np

from asyncsim.compiling import njit

# One signature: numba would compile anew for columns that may be written to and columns that may not.
_NUMBERS = "Array(int64, 1, 'C', readonly=True)"
_CODES = "Array(int8, 1, 'C', readonly=True)"


@njit(f"UniTuple(int64[::1], 3)({_NUMBERS}, {_CODES}, int64, {_NUMBERS}, {_NUMBERS}, {_NUMBERS})")
def rows_by_update(update, status, applied, begin, end, updates):  # type: ignore[no-untyped-def]
    """Return the applied rows of every replica in order of update, where each replica's begin, gradients per update.

    A replica has its rows at `begin` … `end` − 1, and `updates` updates. Rows of one update stay in the order of the
    table. The number of gradients per update is −1 where a replica has none or its updates differ.
    """
    count, longest = 0, 0
    for row in range(status.size):
        count += status[row] == applied
    for r in range(updates.size):
        longest = max(longest, updates[r])
    rows = np.empty(count, dtype=np.int64)
    first = np.empty(begin.size + 1, dtype=np.int64)
    gradients = np.empty(begin.size, dtype=np.int64)
    place = np.empty(longest + 1, dtype=np.int64)
    first[0] = 0
    for r in range(begin.size):
        for t in range(updates[r] + 1):
            place[t] = 0
        for row in range(begin[r], end[r]):
            if status[row] == applied:
                place[update[row] + 1] += 1
        even = updates[r] > 0
        for t in range(updates[r]):
            even &= place[t + 1] == place[1]
        gradients[r] = place[1] if even else -1
        place[0] = first[r]
        for t in range(updates[r]):
            place[t + 1] += place[t]
        first[r + 1] = place[updates[r]]
        for row in range(begin[r], end[r]):
            if status[row] == applied:
                rows[place[update[row]]] = row
                place[update[row]] += 1
    return rows, first, gradients


@njit
def plan_slots(read_version, rows, gradients):  # type: ignore[no-untyped-def]
    """Return (place of each read, place of each version, number of slots) where version v of replica r is kept.

    `rows`, of shape (replicas, updates · gradients), says which entries of `read_version` make the updates. The kept
    versions are rows of one array: slot s of replica r is row s · replicas + r. Versions never read share slot 0. The
    others get slots from 1 on; a slot is free again once its version has been read for the last time, so a replica
    needs no more of them than it has versions still to be read.
    """
    replicas, reads = rows.shape
    updates = reads // gradients
    read_at = np.empty((replicas, reads), dtype=np.int32)
    kept_at = np.empty((replicas, updates + 1), dtype=np.int32)
    last = np.empty(updates, dtype=np.int64)
    free = np.empty(updates, dtype=np.int64)
    slots = 0
    for r in range(replicas):
        row, read, kept = rows[r], read_at[r], kept_at[r]
        for t in range(updates):
            last[t] = -1
        for i in range(reads):
            last[read_version[row[i]]] = i
        used, available = 0, 0
        for t in range(updates):
            if last[t] < 0:
                kept[t] = r
            elif available > 0:
                available -= 1
                kept[t] = free[available]
            else:
                used += 1
                kept[t] = used * replicas + r
            for i in range(t * gradients, (t + 1) * gradients):
                version = read_version[row[i]]
                read[i] = kept[version]
                if last[version] == i:
                    free[available] = read[i]
                    available += 1
        kept[updates] = r
        slots = max(slots, used)
    return read_at, kept_at, slots
