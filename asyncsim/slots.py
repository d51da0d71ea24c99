"""The plan of a batch's kept versions: which version of which replica lies in which slot, compiled."""

from __future__ import annotations

import numpy as np

from asyncsim.compiling import njit


@njit
def plan_slots(read_version):  # type: ignore[no-untyped-def]
    """Return (slot of each read, slot of each version, number of slots); versions never read get slot `slots`.

    `read_version` has shape (updates, gradients, replicas). A slot is free again once its version has been read for the
    last time, so a replica needs no more slots than it has versions still to be read.
    """
    updates, gradients, replicas = read_version.shape
    read_slot = np.empty((updates, gradients, replicas), dtype=np.int32)
    write_slot = np.full((updates + 1, replicas), -1, dtype=np.int32)
    last = np.empty(updates + 1, dtype=np.int64)
    free = np.empty(updates + 1, dtype=np.int32)
    most = 0
    for r in range(replicas):
        last[:] = -1
        for t in range(updates):
            for k in range(gradients):
                last[read_version[t, k, r]] = t
        used, available = 0, 0
        if last[0] >= 0:
            write_slot[0, r] = 0
            used = 1
        for t in range(updates):
            for k in range(gradients):
                read_slot[t, k, r] = write_slot[read_version[t, k, r], r]
            for k in range(gradients):
                version = read_version[t, k, r]
                if last[version] == t:
                    free[available] = write_slot[version, r]
                    available += 1
                    last[version] = -1
            if last[t + 1] >= 0:
                if available > 0:
                    available -= 1
                    write_slot[t + 1, r] = free[available]
                else:
                    write_slot[t + 1, r] = used
                    used += 1
        most = max(most, used)
    for t in range(updates + 1):
        for r in range(replicas):
            if write_slot[t, r] < 0:
                write_slot[t, r] = most
    return read_slot, write_slot, most
