"""What the compiled event loop works on: a cluster laid out as numbers and arrays, and the memory of a replica."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from asyncsim.compiling import njit
from asyncsim.streams import LATENCY_DOWN, LATENCY_UP, SERVER, SERVICE

# The loop only reads and writes arrays that its caller holds, so it can do without numba's reference counts, which
# would take a third of its time. (`_nrt` is numba's own switch for that.)
compiled = njit(_nrt=False)
# What it calls is compiled into it: a call would hand over all numbers that describe each array.
inlined: Any = partial(njit, _nrt=False, forceinline=True)

# Why the loop returned.
OVER, UPDATED, GROW, STILL = range(4)
# Where it goes on when called again.
START, NEXT_EVENT, AFTER_APPLY = range(3)
# What `on_update` asked for.
GO, BARRIER, STOP = range(3)
# Whom an update is sent to.
CONTRIBUTORS, LAST, EVERYONE = range(3)

# Draws of a worker whose exponential durations are made at once; a power of two.
AHEAD = 8
PURPOSES = 1 + max(SERVICE, SERVER, LATENCY_UP, LATENCY_DOWN)

# Places in the vector of counters.
(
    VERSION,
    ROWS,
    HEAP,
    TOP_EMPTY,
    FREE,
    HEAD,
    PENDING,
    JOBS,
    UNDER_WAY,
    AT_BARRIER,
    PHASE,
    SERVER_BUSY,
    NOTED,
    COUNTED,
    TOLD,
    COUNTERS,
) = range(16)
# Places in the vector of times.
NOW, APPLIES_AT, CLOCKS = range(3)

# What the column `update` holds while a gradient waits for its update. One that is not used holds −2 − version until
# the end: it counts only if another update follows.
WAITING = -(2**62)

#: One event of the heap. Its key orders simultaneous events, by kind and then worker, and holds its gradient's slot.
EVENT = np.dtype([("time", "f8"), ("key", "i8")])
WORKER_BIT, KIND_BIT = 30, 60  # bits of the key from which on they stand
MASK = (1 << WORKER_BIT) - 1

#: One gradient on its way. `hop` counts links up 0, 1, … and down −1, −2, …, and is GONE for one that does not get
#: through; one that was stopped has `version` −1.
GRADIENT = np.dtype(
    [
        ("worker", "i8"),
        ("draw", "i8"),
        ("version", "i8"),
        ("hop", "i8"),
        ("read", "f8"),
        ("start", "f8"),
        ("done", "f8"),
    ]
)

GONE = 1 << 40

#: One event of the trace: its kind is CRASH or RETURN of a worker, or BARRIER_LEFT.
NOTE = np.dtype([("time", "f8"), ("worker", "i8"), ("kind", "i8")])
BARRIER_LEFT = -1


class Cluster(NamedTuple):
    """What does not change while a replica runs."""

    workers: int
    laws: np.ndarray  # encoded laws, one after another
    law_of: np.ndarray  # where each worker's law begins
    server_law: np.ndarray
    server_takes_time: bool
    batch: int
    limit: int  # largest staleness that is accepted
    goes_on: bool
    sends_to: int
    cancels: bool
    replies_before: bool
    has_network: bool
    up: np.ndarray  # links of all ways up, one way after another
    up_of: np.ndarray  # where each worker's way up begins; one longer than there are workers
    own_link: np.ndarray  # whether a worker's first link up is used by it alone
    down: np.ndarray
    down_of: np.ndarray
    never_stops: bool  # no policy sends a model to a worker that computes
    occupied_up: float  # time that a message occupies a link
    occupied_down: float
    latency_laws: np.ndarray  # the law of links up, then that of links down
    latency_down: int  # where the latter begins
    last_update: int
    last_time: float
    reports: bool  # return after every update


class Particulars(NamedTuple):
    """What only some clusters have: links that are not alike or fail, workers that crash, gradients of several steps.

    The loop is compiled once without it and once with it, so that clusters that have none of this do not pay for it.
    """

    steps: int  # service times that a gradient takes, one after another
    laws: np.ndarray  # encoded laws, one after another
    latency_of: np.ndarray  # where each link's law of latency begins
    bandwidth_of: np.ndarray  # where its law of bandwidth begins, −1 for no limit
    loss: np.ndarray  # of each link
    bytes_up: float
    bytes_down: float
    retry_after: float
    most_attempts: int
    longest_wait: float
    crash_of: np.ndarray  # where the law of a worker's time up begins; the law of its time down is behind it


class Memory(NamedTuple):
    """What changes: counters, clocks, the heap of events, gradients on their way, links, workers, rows that wait."""

    counter: np.ndarray
    clock: np.ndarray
    heap: np.ndarray
    free_slot: np.ndarray
    gradients: np.ndarray  # by slot
    link_free: np.ndarray
    link_delivered: np.ndarray
    last_draw: np.ndarray
    last_version: np.ndarray
    under_way: np.ndarray
    computing: np.ndarray  # the slot that a worker computes, −1 if idle
    to_send: np.ndarray  # the workers that this handler sends the model to
    pending: np.ndarray  # ring of the rows that wait for their update
    ahead: np.ndarray  # (purpose, worker, draw mod AHEAD): durations made ahead; the server is worker −1, the last one
    ahead_until: np.ndarray  # (purpose, worker): the draw after those made ahead, 0 for none
    noted: np.ndarray  # events for the trace that have not been handed over
    down: np.ndarray  # whether a worker has crashed and not returned
    crashes: np.ndarray  # how often it has returned
    owed: np.ndarray  # whether the last gradient begun for it was lost


class Columns(NamedTuple):
    """The rows written so far, in order of arrival."""

    worker: np.ndarray
    draw: np.ndarray
    read_version: np.ndarray
    update: np.ndarray
    status: np.ndarray
    read_time: np.ndarray
    start_time: np.ndarray
    done_time: np.ndarray
    arrive_time: np.ndarray
    apply_time: np.ndarray
