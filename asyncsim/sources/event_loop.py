"""The compiled event loop: everything that the SimPy model does, under numba, with the same table as its result.

It follows docs/trace.md step by step; `asyncsim.sources.simpy_model` is the definition, and tests compare the two bit
for bit. The loop runs until the replica is over, until an update was made that somebody wants to see, or until its
arrays are too small. Python then reacts and calls it again: all state lies in the arrays of `Memory`.

Four liberties make it fast, none visible in the table. An event that nothing can come between is not put on the heap:
where no policy stops workers, a model's arrival, the computation and the passage over a link of the worker's own follow
from one another, so only the last of them is an event. The server's one pending update is kept beside the heap.
Exponential durations are made for several draws of a worker at once, which randomness by address allows. And where
messages and updates take no time and every gradient is used at once, all that follows a computation is one step.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from asyncsim.compiling import njit
from asyncsim.durations import EXPONENTIAL
from asyncsim.sampler import duration, durations
from asyncsim.streams import LATENCY_DOWN, LATENCY_UP, SERVER, SERVICE
from asyncsim.trace import APPLIED, ARRIVE, CANCELLED, COMPUTED, DISCARDED, HOP, RECEIVE

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
    BARRIERS,
    PHASE,
    SERVER_BUSY,
    COUNTERS,
) = range(14)
# Places in the vector of times.
NOW, BARRIER_LEFT, APPLIES_AT, CLOCKS = range(4)

# What the column `update` holds while a gradient waits for its update. One that is not used holds −2 − version until
# the end: it counts only if another update follows.
WAITING = -(2**62)

#: One event of the heap. Its key orders simultaneous events, by kind and then worker, and holds its gradient's slot.
EVENT = np.dtype([("time", "f8"), ("key", "i8")])
_WORKER, _KIND = 30, 60  # bits of the key from which on they stand
_MASK = (1 << _WORKER) - 1

#: One gradient on its way. `hop` counts links up 0, 1, … and down −1, −2, …; a cancelled one has `version` −1.
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
    occupied: float  # time that a message occupies a link
    latency_law: np.ndarray
    last_update: int
    last_time: float
    reports: bool  # return after every update


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


@inlined
def _tie(key, other, gradients):  # type: ignore[no-untyped-def]
    """Say whether the event of `key` comes before an `other` of the same time: by kind and worker, then draw."""
    if key >> _WORKER != other >> _WORKER:
        return key < other
    return gradients[key & _MASK].draw < gradients[other & _MASK].draw


@inlined
def _sift_down(counter, heap, gradients, time, key):  # type: ignore[no-untyped-def]
    """Put an event at the top of the heap, where each has four below it, and sink it to its place."""
    size = counter[HEAP]
    place = 0
    while True:
        child = 4 * place + 1
        if child >= size:
            break
        first, earliest = child, heap[child].time
        for other in range(child + 1, min(child + 4, size)):
            candidate = heap[other].time
            if candidate == earliest:
                if _tie(heap[other].key, heap[first].key, gradients):
                    first = other
            else:  # without a branch, which would be guessed wrong every other time
                first = other if candidate < earliest else first
                earliest = min(earliest, candidate)
        if earliest > time or (earliest == time and not _tie(heap[first].key, key, gradients)):
            break
        heap[place].time, heap[place].key = earliest, heap[first].key
        place = first
    heap[place].time, heap[place].key = time, key


@inlined
def _push(counter, heap, gradients, time, kind, worker, slot):  # type: ignore[no-untyped-def]
    """Schedule an event; it takes the place of the one that was taken last, if that is still empty."""
    key = (kind << _KIND) | (worker << _WORKER) | slot
    if counter[TOP_EMPTY]:
        counter[TOP_EMPTY] = 0
        _sift_down(counter, heap, gradients, time, key)
        return
    place = counter[HEAP]
    counter[HEAP] += 1
    while place > 0:
        parent = (place - 1) >> 2
        before = heap[parent].time
        if before < time or (before == time and _tie(heap[parent].key, key, gradients)):
            break
        heap[place].time, heap[place].key = before, heap[parent].key
        place = parent
    heap[place].time, heap[place].key = time, key


@inlined
def _fill_top(counter, heap, gradients):  # type: ignore[no-untyped-def]
    """Close the gap that the event taken last has left."""
    counter[TOP_EMPTY] = 0
    counter[HEAP] -= 1
    last = counter[HEAP]
    if last > 0:
        _sift_down(counter, heap, gradients, heap[last].time, heap[last].key)


# One signature, so that numba compiles it once and not for every constant argument.
@inlined("float64(float64[:,:,::1], int64[:,::1], float64[::1], int64, uint64, int64, int64, int64, int64, int64)")
def _duration(ahead, ahead_until, law, place, seed, replica, worker, draw, purpose, index):  # type: ignore[no-untyped-def]
    """Return a duration as the sampler does; the exponential ones of a block of draws are made at once."""
    if law[place] != EXPONENTIAL or index > 0:
        return duration(law, place, seed, replica, worker, draw, purpose, index)
    first = draw & -AHEAD
    if ahead_until[purpose, worker] != first + AHEAD:
        ahead_until[purpose, worker] = first + AHEAD
        durations(law, place, seed, replica, worker, first, purpose, index, ahead[purpose, worker])
    return ahead[purpose, worker, draw - first]


@compiled
def advance(cluster, memory, columns, seed, replica, request):  # type: ignore[no-untyped-def]
    """Run the replica on; return why it stopped: OVER, UPDATED, GROW or STILL."""
    (
        workers,
        laws,
        law_of,
        server_law,
        server_takes_time,
        batch,
        limit,
        goes_on,
        sends_to,
        cancels,
        replies_before,
        has_network,
        up,
        up_of,
        own_link,
        down,
        down_of,
        never_stops,
        occupied,
        latency_law,
        last_update,
        last_time,
        reports,
    ) = cluster
    (
        counter,
        clock,
        heap,
        free_slot,
        gradients,
        link_free,
        link_delivered,
        last_draw,
        last_version,
        under_way,
        computing,
        to_send,
        pending,
        ahead,
        ahead_until,
    ) = memory
    (c_worker, c_draw, c_version, c_update, c_status, c_read, c_start, c_done, c_arrive, c_apply) = columns
    mask = pending.size - 1
    room = workers + 2
    now = clock[NOW]
    sending, sent = 0, 0  # the first `sending` entries of to_send are sent the model, `sent` of them have been
    received = -1  # slot of a model that has reached its worker
    start = now
    moving = -1  # slot of a message that joins its next link
    arrived = -1  # slot of a gradient that has reached the server
    applies = False
    instant = not (has_network or server_takes_time or replies_before) and never_stops and batch == 1
    at_once = instant and limit >= last_update and not reports
    after_apply = counter[PHASE] == AFTER_APPLY
    to_all = counter[PHASE] == START
    counter[PHASE] = NEXT_EVENT
    while True:
        # A message joins the next link of its way.
        if moving >= 0:
            g = gradients[moving]
            worker, hop = g.worker, g.hop
            if hop >= 0:
                index, place, end = hop, up_of[worker] + hop, up_of[worker + 1]
                link, purpose, kind = up[place], LATENCY_UP, ARRIVE
                g.hop = hop + 1
            else:
                index = -1 - hop
                place, end = down_of[worker] + index, down_of[worker + 1]
                link, purpose, kind = down[place], LATENCY_DOWN, RECEIVE
                g.hop = hop - 1
            if place + 1 < end:
                kind = HOP
            link_free[link] = max(now, link_free[link]) + occupied
            latency = _duration(ahead, ahead_until, latency_law, 0, seed, replica, worker, g.draw, purpose, index)
            link_delivered[link] = max(link_delivered[link], link_free[link] + latency)
            if kind == RECEIVE and never_stops and link_delivered[link] > now:
                received, start = moving, link_delivered[link]
            else:
                _push(counter, heap, gradients, link_delivered[link], kind, worker, moving)
            moving = -1

        # A model has reached its worker: a gradient under way there is cancelled, and a new one starts.
        if received >= 0:
            g = gradients[received]
            worker = g.worker
            old = computing[worker]
            if old >= 0:
                row = counter[ROWS]
                counter[ROWS] += 1
                o = gradients[old]
                c_worker[row], c_draw[row], c_version[row] = worker, o.draw, o.version
                c_update[row], c_status[row] = -2 - counter[VERSION], CANCELLED
                c_read[row], c_start[row], c_done[row] = o.read, o.start, np.nan
                c_arrive[row], c_apply[row] = np.nan, now
                o.version = -1  # its event will release the slot
            g.start = start
            done = start + _duration(
                ahead, ahead_until, laws, law_of[worker], seed, replica, worker, g.draw, SERVICE, 0
            )
            time, kind = done, COMPUTED
            computing[worker] = received
            if never_stops and own_link[worker]:
                # Nobody else uses the first link up, so the passage of the result is known before it is sent.
                place = up_of[worker]
                link = up[place]
                free = max(done, link_free[link]) + occupied
                latency = _duration(ahead, ahead_until, latency_law, 0, seed, replica, worker, g.draw, LATENCY_UP, 0)
                delivered = max(link_delivered[link], free + latency)
                if delivered > done:
                    computing[worker] = -1
                    g.done, g.hop = done, 1
                    link_free[link], link_delivered[link] = free, delivered
                    time, kind = delivered, ARRIVE if place + 1 == up_of[worker + 1] else HOP
            if start > now and time == start:
                # A gradient that takes no time must wait for its turn among the events of that moment.
                computing[worker] = -1
                kind = RECEIVE
            _push(counter, heap, gradients, time, kind, worker, received)
            received = -1

        # The server sends the current version to the next worker that it is for.
        if sent < sending:
            worker = to_send[sent]
            sent += 1
            counter[FREE] -= 1
            slot = free_slot[counter[FREE]]
            last_draw[worker] += 1
            last_version[worker] = counter[VERSION]
            if not under_way[worker]:
                under_way[worker] = True
                counter[UNDER_WAY] += 1
            g = gradients[slot]
            g.worker, g.draw, g.version, g.hop = worker, last_draw[worker], counter[VERSION], -1
            g.read = now
            if has_network and down_of[worker] < down_of[worker + 1]:
                moving = slot
            else:
                received, start = slot, now
            continue
        sending, sent = 0, 0

        if to_all:
            to_all = False
            if counter[AT_BARRIER]:
                counter[AT_BARRIER] = 0
                counter[BARRIERS] += 1
                clock[BARRIER_LEFT] = now
            sending = workers
            for worker in range(workers):
                to_send[worker] = worker
            continue

        # The server applies the oldest complete batch.
        if applies:
            applies = False
            for place in range(counter[HEAD], counter[HEAD] + batch):
                row = pending[place & mask]
                c_update[row], c_status[row], c_apply[row] = counter[VERSION], APPLIED, now
            counter[HEAD] += batch
            counter[PENDING] -= batch
            counter[JOBS] -= 1
            counter[VERSION] += 1
            if reports:
                counter[PHASE] = AFTER_APPLY
                return UPDATED
            after_apply = True

        # What follows an update: the end, a barrier, or replies.
        if after_apply:
            after_apply = False
            if counter[VERSION] == last_update or request == STOP:
                return OVER
            if request == BARRIER:
                for place in range(counter[HEAD], counter[HEAD] + counter[PENDING]):
                    row = pending[place & mask]
                    c_update[row], c_apply[row] = -2 - counter[VERSION], now
                counter[HEAD] += counter[PENDING]
                counter[PENDING] = 0
                counter[JOBS] = 0
                counter[AT_BARRIER] = 1
                to_all = counter[UNDER_WAY] == 0
            elif sends_to == EVERYONE:
                to_all = True
            elif not replies_before:
                end = counter[HEAD]
                for place in range(end - 1 if sends_to == LAST else end - batch, end):
                    to_send[sending] = c_worker[pending[place & mask]]
                    sending += 1
            if cancels and not counter[AT_BARRIER]:
                for worker in range(workers):
                    if under_way[worker] and counter[VERSION] - last_version[worker] > limit:
                        to_send[sending] = worker
                        sending += 1
            request = GO
            continue

        if server_takes_time and counter[JOBS] > 0 and counter[SERVER_BUSY] == 0:
            counter[SERVER_BUSY] = 1
            clock[APPLIES_AT] = now + _duration(
                ahead, ahead_until, server_law, 0, seed, replica, -1, counter[VERSION], SERVER, 0
            )

        # The next event.
        if counter[TOP_EMPTY]:
            _fill_top(counter, heap, gradients)
        if (
            counter[FREE] < room
            or heap.size - counter[HEAP] < room
            or c_worker.size - counter[ROWS] < room
            or pending.size - counter[PENDING] < 2 * batch + 2
        ):
            return GROW
        if counter[SERVER_BUSY] and (counter[HEAP] == 0 or clock[APPLIES_AT] <= heap[0].time):
            if clock[APPLIES_AT] > last_time:
                return OVER
            now = clock[APPLIES_AT]
            clock[NOW] = now
            counter[SERVER_BUSY] = 0
            applies = True
            continue
        if counter[HEAP] == 0:
            return STILL
        if heap[0].time > last_time:
            return OVER
        now = heap[0].time
        clock[NOW] = now
        kind, worker, slot = heap[0].key >> _KIND, heap[0].key >> _WORKER & _MASK, heap[0].key & _MASK
        counter[TOP_EMPTY] = 1
        if kind == COMPUTED:
            g = gradients[slot]
            if at_once and counter[VERSION] + 1 < last_update:
                # It arrives, is applied and answered in one moment, so its slot can hold the worker's next one.
                row = counter[ROWS]
                counter[ROWS] += 1
                c_worker[row], c_draw[row], c_version[row] = worker, g.draw, g.version
                c_update[row], c_status[row] = counter[VERSION], APPLIED
                c_read[row], c_start[row], c_done[row], c_arrive[row], c_apply[row] = g.read, g.start, now, now, now
                counter[VERSION] += 1
                g.draw, g.version, g.read, g.start = g.draw + 1, counter[VERSION], now, now
                last_draw[worker], last_version[worker] = g.draw, g.version
                done = now + _duration(
                    ahead, ahead_until, laws, law_of[worker], seed, replica, worker, g.draw, SERVICE, 0
                )
                _push(counter, heap, gradients, done, kind, worker, slot)
                continue
            if g.version < 0:
                free_slot[counter[FREE]] = slot
                counter[FREE] += 1
                continue
            g.done = now
            computing[worker] = -1
            if has_network and up_of[worker] < up_of[worker + 1]:
                g.hop = 0
                moving = slot
                continue
            arrived = slot
        elif kind == ARRIVE:
            arrived = slot
        elif kind == HOP:
            moving = slot
            continue
        else:
            received, start = slot, now
            continue

        # A gradient has reached the server: discard it, collect it, or complete an update with it.
        g = gradients[arrived]
        version = g.version
        latest = g.draw == last_draw[worker]
        row = counter[ROWS]
        counter[ROWS] += 1
        c_worker[row], c_draw[row], c_version[row] = worker, g.draw, version
        c_update[row], c_status[row] = -2 - counter[VERSION], DISCARDED
        c_read[row], c_start[row], c_done[row], c_arrive[row], c_apply[row] = g.read, g.start, g.done, now, now
        free_slot[counter[FREE]] = arrived
        counter[FREE] += 1
        if latest:
            under_way[worker] = False
            counter[UNDER_WAY] -= 1
        if counter[AT_BARRIER]:
            to_all = counter[UNDER_WAY] == 0
        elif counter[VERSION] + counter[JOBS] - version > limit:
            if sends_to != EVERYONE and latest:
                to_send[0], sending = worker, 1
        else:
            c_update[row] = WAITING
            pending[(counter[HEAD] + counter[PENDING]) & mask] = row
            counter[PENDING] += 1
            if counter[PENDING] - counter[JOBS] * batch < batch:
                if goes_on:
                    to_send[0], sending = worker, 1
            else:
                counter[JOBS] += 1
                applies = not server_takes_time
                if replies_before:
                    end = counter[HEAD] + counter[PENDING]
                    for place in range(end - 1 if sends_to == LAST else end - batch, end):
                        to_send[sending] = c_worker[pending[place & mask]]
                        sending += 1


@njit
def _unsettled_draws(memory, columns, version):  # type: ignore[no-untyped-def]
    """Return each worker's first draw whose fate is not settled by update `version` − 1; 2**62 if there is none."""
    counter = memory.counter
    unsettled = np.full(memory.last_draw.size, 2**62)
    for place in range(counter[TOP_EMPTY], counter[HEAP]):
        g = memory.gradients[memory.heap[place].key & _MASK]
        if g.version >= 0:
            unsettled[g.worker] = min(unsettled[g.worker], g.draw)
    for row in range(counter[ROWS]):
        update = columns.update[row]
        if update == WAITING or update == -2 - version:
            worker = columns.worker[row]
            unsettled[worker] = min(unsettled[worker], columns.draw[row])
    return unsettled


@njit
def final_rows(memory, columns):  # type: ignore[no-untyped-def]
    """Return how many rows at the beginning are as they will be at the end, and earlier than all others to come."""
    unsettled = _unsettled_draws(memory, columns, memory.counter[VERSION])
    final = 0
    for row in range(memory.counter[ROWS]):
        if row > 0 and _settled_at(columns, row - 1) < _settled_at(columns, row):
            final = row
        if columns.draw[row] >= unsettled[columns.worker[row]]:
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
def oldest_read(memory, columns):  # type: ignore[no-untyped-def]
    """Return the oldest version that a gradient under way or waiting was read at; the current one if there is none."""
    counter = memory.counter
    oldest = counter[VERSION]
    for worker in range(memory.last_version.size):
        if memory.under_way[worker]:
            oldest = min(oldest, memory.last_version[worker])
    mask = memory.pending.size - 1
    for place in range(counter[HEAD], counter[HEAD] + counter[PENDING]):
        oldest = min(oldest, columns.read_version[memory.pending[place & mask]])
    return oldest
