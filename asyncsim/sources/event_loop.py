"""The compiled event loop: everything that the SimPy model does, under numba, with the same table as its result.

It follows docs/trace.md step by step; `asyncsim.sources.simpy_model` is the definition, and tests compare the two bit
for bit. The loop runs until the replica is over, until an update was made that somebody wants to see, or until its
arrays are too small. Python then reacts and calls it again: all state lies in the arrays of `Memory`.

Four liberties make it fast, none visible in the table. An event that nothing can come between is not put on the heap:
where no policy stops workers, a model's arrival, the computation and the passage over a link of the worker's own follow
from one another, so only the last of them is an event. The server's one pending update is kept beside the heap.
Exponential durations are made for several draws of a worker at once, which randomness by address allows. And where
messages and updates take no time and every gradient is used at once, all that follows a computation is one step.

What only some clusters have (links that differ, lose messages or fill up, workers that crash, gradients of several
steps) is in `Particulars`. Where it is None, numba leaves out every branch that asks for it.

Editing a function that is compiled into this loop from another file (event_heap, sampler) leaves numba's compiled copy
of the loop as it was: delete the .nbi files of this folder's __pycache__.
"""

from __future__ import annotations

import numpy as np

from asyncsim.durations import EXPONENTIAL
from asyncsim.sampler import attempts, duration, durations
from asyncsim.sources.event_heap import fill_top, push
from asyncsim.sources.loop_state import (
    AFTER_APPLY,
    AHEAD,
    APPLIES_AT,
    AT_BARRIER,
    BARRIER,
    BARRIER_LEFT,
    COUNTED,
    EVERYONE,
    FREE,
    GO,
    GONE,
    GROW,
    HEAD,
    HEAP,
    JOBS,
    KIND_BIT,
    LAST,
    MASK,
    NEXT_EVENT,
    NOTED,
    NOW,
    OVER,
    PENDING,
    PHASE,
    ROWS,
    SERVER_BUSY,
    START,
    STILL,
    STOP,
    TOP_EMPTY,
    UNDER_WAY,
    UPDATED,
    VERSION,
    WAITING,
    WORKER_BIT,
    compiled,
    inlined,
)
from asyncsim.streams import (
    BANDWIDTH_DOWN,
    BANDWIDTH_UP,
    LATENCY_DOWN,
    LATENCY_UP,
    LOSS_DOWN,
    LOSS_UP,
    SERVER,
    SERVICE,
)
from asyncsim.streams import CRASH as CRASH_TIMES
from asyncsim.trace import APPLIED, ARRIVE, CANCELLED, COMPUTED, CRASH, DISCARDED, HOP, LOST, RECEIVE, RETURN


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


@inlined
def _service(ahead, ahead_until, laws, place, steps, seed, replica, worker, draw):  # type: ignore[no-untyped-def]
    """Return the service time of a gradient: its steps' times, added up in order."""
    time = 0.0
    for step in range(draw * steps, draw * steps + steps):
        time += _duration(ahead, ahead_until, laws, place, seed, replica, worker, step, SERVICE, 0)
    return time


@inlined
def _join(particulars, memory, now, link, up, seed, replica, worker, draw, hop):  # type: ignore[no-untyped-def]
    """Have a message join a link; return when it is delivered, or given up, and whether it is delivered.

    As `Crossing.join` of the SimPy model has it.
    """
    link_free, link_delivered, laws = memory.link_free, memory.link_delivered, particulars.laws
    begin = max(now, link_free[link])
    if up and begin > now + particulars.longest_wait:
        return now + particulars.longest_wait, False
    occupied = 0.0
    if particulars.bandwidth_of[link] >= 0:
        purpose = BANDWIDTH_UP if up else BANDWIDTH_DOWN
        bandwidth = duration(laws, particulars.bandwidth_of[link], seed, replica, worker, draw, purpose, hop)
        occupied = (particulars.bytes_up if up else particulars.bytes_down) / bandwidth
    sent, unanswered = 1, 0
    if particulars.loss[link] > 0.0:
        sent = attempts(particulars.loss[link], seed, replica, worker, draw, LOSS_UP if up else LOSS_DOWN, hop)
        unanswered = sent - 1
        if up and sent > particulars.most_attempts:
            sent = unanswered = particulars.most_attempts
    link_free[link] = begin + (sent * occupied + unanswered * particulars.retry_after)
    if sent == unanswered:
        return link_free[link], False
    purpose = LATENCY_UP if up else LATENCY_DOWN
    law = particulars.latency_of[link]
    latency = _duration(memory.ahead, memory.ahead_until, laws, law, seed, replica, worker, draw, purpose, hop)
    link_delivered[link] = max(link_delivered[link], link_free[link] + latency)
    return link_delivered[link], True


@inlined
def _lose(memory, columns, slot, now):  # type: ignore[no-untyped-def]
    """Write the row of a gradient that is lost now; return whether a barrier is over thereby."""
    counter, g = memory.counter, memory.gradients[slot]
    row = counter[ROWS]
    counter[ROWS] += 1
    columns.worker[row], columns.draw[row], columns.read_version[row] = g.worker, g.draw, g.version
    columns.update[row], columns.status[row] = -2 - counter[VERSION], LOST
    columns.read_time[row], columns.start_time[row], columns.done_time[row] = g.read, g.start, g.done
    columns.arrive_time[row], columns.apply_time[row] = np.nan, now
    if g.draw == memory.last_draw[g.worker]:
        memory.under_way[g.worker] = False
        counter[UNDER_WAY] -= 1
        memory.owed[g.worker] = True
    return counter[AT_BARRIER] == 1 and counter[UNDER_WAY] == 0


@inlined
def _note(memory, now, worker, kind):  # type: ignore[no-untyped-def]
    """Note an event for the trace."""
    note = memory.noted[memory.counter[NOTED]]
    note.time, note.worker, note.kind = now, worker, kind
    memory.counter[NOTED] += 1


@inlined
def _nobody_returns(particulars, memory):  # type: ignore[no-untyped-def]
    """Say whether no worker will be sent the model when it returns."""
    for worker in range(memory.down.size):
        if memory.down[worker] and memory.owed[worker] and particulars.laws[particulars.crash_of[worker] + 3] < np.inf:
            return False
    return True


@compiled
def advance(cluster, particulars, memory, columns, seed, replica, request):  # type: ignore[no-untyped-def]
    """Run the replica on; return why it stopped: OVER, UPDATED, GROW or STILL. `particulars` may be None."""
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
        occupied_up,
        occupied_down,
        latency_laws,
        latency_down,
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
        noted,
        down_now,
        crashes,
        owed,
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
    if particulars is not None:
        at_once = False
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
                law, occupied = 0, occupied_up
                g.hop = hop + 1
            else:
                index = -1 - hop
                place, end = down_of[worker] + index, down_of[worker + 1]
                link, purpose, kind = down[place], LATENCY_DOWN, RECEIVE
                law, occupied = latency_down, occupied_down
                g.hop = hop - 1
            if place + 1 < end:
                kind = HOP
            if particulars is not None:
                time, delivered = _join(
                    particulars, memory, now, link, purpose == LATENCY_UP, seed, replica, worker, g.draw, index
                )
                if not delivered:
                    g.hop, kind = GONE, ARRIVE
            else:
                link_free[link] = max(now, link_free[link]) + occupied
                latency = _duration(
                    ahead, ahead_until, latency_laws, law, seed, replica, worker, g.draw, purpose, index
                )
                link_delivered[link] = max(link_delivered[link], link_free[link] + latency)
                time = link_delivered[link]
            if kind == RECEIVE and never_stops and time > now:
                received, start = moving, time
            else:
                push(counter, heap, gradients, time, kind, worker, moving)
            moving = -1

        # A model has reached its worker: a gradient under way there is cancelled, and a new one starts.
        if received >= 0:
            g = gradients[received]
            worker = g.worker
            if particulars is not None and down_now[worker]:
                g.start = g.done = np.nan
                to_all = _lose(memory, columns, received, now)
                free_slot[counter[FREE]] = received
                counter[FREE] += 1
                received = -1
                continue
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
            if particulars is not None:
                done = start + _service(
                    ahead, ahead_until, laws, law_of[worker], particulars.steps, seed, replica, worker, g.draw
                )
            else:
                done = start + _duration(
                    ahead, ahead_until, laws, law_of[worker], seed, replica, worker, g.draw, SERVICE, 0
                )
            time, kind = done, COMPUTED
            computing[worker] = received
            if never_stops and own_link[worker]:
                # Nobody else uses the first link up, so the passage of the result is known before it is sent.
                place = up_of[worker]
                link = up[place]
                free = max(done, link_free[link]) + occupied_up
                latency = _duration(ahead, ahead_until, latency_laws, 0, seed, replica, worker, g.draw, LATENCY_UP, 0)
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
            push(counter, heap, gradients, time, kind, worker, received)
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
            if particulars is not None:
                owed[worker] = False
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
                _note(memory, now, -1, BARRIER_LEFT)
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
            if particulars is not None:
                counter[COUNTED] = counter[NOTED]
            if reports:
                counter[COUNTED] = counter[NOTED]
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
            fill_top(counter, heap, gradients)
        if (
            counter[FREE] < room
            or heap.size - counter[HEAP] < room
            or c_worker.size - counter[ROWS] < room
            or pending.size - counter[PENDING] < 2 * batch + 2
        ):
            return GROW
        if particulars is not None and noted.size - counter[NOTED] < 2:
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
        kind, worker, slot = heap[0].key >> KIND_BIT, heap[0].key >> WORKER_BIT & MASK, heap[0].key & MASK
        counter[TOP_EMPTY] = 1
        if particulars is not None:
            if kind == CRASH:
                _note(memory, now, worker, kind)
                down_now[worker] = True
                slot = computing[worker]
                if slot >= 0:
                    gradients[slot].done = np.nan
                    to_all = _lose(memory, columns, slot, now)
                    gradients[slot].version = -1  # its event will release the slot
                    computing[worker] = -1
                place = particulars.crash_of[worker] + 2
                if particulars.laws[place + 1] < np.inf:
                    time = now + duration(
                        particulars.laws, place, seed, replica, worker, crashes[worker], CRASH_TIMES, 1
                    )
                    push(counter, heap, gradients, time, RETURN, worker, 0)
            elif kind == RETURN:
                _note(memory, now, worker, kind)
                down_now[worker] = False
                crashes[worker] += 1
                place = particulars.crash_of[worker]
                time = now + duration(particulars.laws, place, seed, replica, worker, crashes[worker], CRASH_TIMES, 0)
                push(counter, heap, gradients, time, CRASH, worker, 0)
                if owed[worker] and not counter[AT_BARRIER] and (sends_to != EVERYONE or counter[JOBS] == 0):
                    to_send[0], sending = worker, 1
            elif kind == ARRIVE and gradients[slot].hop == GONE:
                latest = gradients[slot].draw == last_draw[worker]
                to_all = _lose(memory, columns, slot, now)
                free_slot[counter[FREE]] = slot
                counter[FREE] += 1
                if latest and not counter[AT_BARRIER] and (sends_to != EVERYONE or counter[JOBS] == 0):
                    to_send[0], sending = worker, 1
                continue
            if kind >= CRASH:
                idle = counter[UNDER_WAY] == 0 and counter[JOBS] == 0 and sending == 0 and not to_all
                if idle and _nobody_returns(particulars, memory):
                    return STILL
                continue
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
                push(counter, heap, gradients, done, kind, worker, slot)
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
