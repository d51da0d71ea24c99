"""The compiled engine: lays out a scenario's cluster as arrays and runs the compiled event loop on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from asyncsim.durations import Constant, SimulationError
from asyncsim.network import Routes
from asyncsim.scenario import Scenario
from asyncsim.sources import event_loop
from asyncsim.sources.event_loop import Cluster, Columns, Memory, advance, final_rows, oldest_read, settle
from asyncsim.sources.table import TraceParts
from asyncsim.trace import COLUMNS, UpdateRows, order_keys

_SENDS_TO = {
    "contributors": event_loop.CONTRIBUTORS,
    "last": event_loop.LAST,
    "everyone": event_loop.EVERYONE,
}
#: Updates after which the loop comes back to say how far it is.
PAUSE_AFTER = 1 << 20

_REQUESTS = {"go": event_loop.GO, "barrier": event_loop.BARRIER, "stop": event_loop.STOP}


def run_replica(
    scenario: Scenario,
    replica: int,
    *,
    message_bytes: int,
    on_update: Callable[[UpdateRows], str] | None,
    parts: TraceParts,
    progress: Callable[[int], Any],
) -> None:
    """Run one replica to its end, and give its rows to `parts`: early those that are final, where it holds but few."""
    cluster = _cluster(scenario, message_bytes, reports=on_update is not None)
    memory = _memory(cluster)
    rows = 1024 if scenario.run.updates is None else scenario.run.updates * cluster.batch
    columns = _columns(min(rows, parts.most_rows) + cluster.workers + 64)
    counter, seed = memory.counter, np.uint64(scenario.seed)
    barriers, request, reported = 0, event_loop.GO, 0
    while True:
        pause = min(reported + PAUSE_AFTER, cluster.last_update)
        why = advance(cluster._replace(last_update=pause), memory, columns, seed, replica, request)
        request = event_loop.GO
        if counter[event_loop.VERSION] == pause:
            progress(pause - reported)
            reported = pause
            if why == event_loop.OVER and pause < cluster.last_update:
                counter[event_loop.PHASE] = event_loop.AFTER_APPLY  # a pause, not the end
                continue
        if why == event_loop.OVER:
            break
        if why == event_loop.STILL:
            raise SimulationError(
                f"replica {replica} stands still at version {counter[event_loop.VERSION]}: nothing can happen any more"
            )
        if why == event_loop.GROW:
            if counter[event_loop.ROWS] > parts.most_rows:
                _hand_over(replica, memory, columns, parts)
            memory, columns = _grown(cluster, memory, columns)
            counter = memory.counter
            continue
        assert on_update is not None
        if counter[event_loop.BARRIERS] > barriers:
            # An update has followed, so the barrier counts.
            barriers += 1
            parts.event(replica, float(memory.clock[event_loop.BARRIER_LEFT]), -1, "barrier")
        answer = on_update(_update_rows(cluster, memory, columns, replica))
        if answer == "stop":
            parts.event(replica, float(memory.clock[event_loop.NOW]), -1, "stop")
        request = _REQUESTS[answer]
    updates = int(counter[event_loop.VERSION])
    progress(updates - reported)
    kept, in_order = settle(memory, columns, updates)
    part = {name: column[:kept] for name, column in columns._asdict().items()}
    parts.add(replica, updates, part if in_order else _sorted(part))


def _sorted(part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return rows in the order of the trace."""
    keys = order_keys(part)
    assert keys is not None
    if (np.diff(keys[0]) > 0).all():
        return part
    order = np.lexsort(keys[::-1])
    return {name: column[order] for name, column in part.items()}


def _hand_over(replica: int, memory: Memory, columns: Columns, parts: TraceParts) -> None:
    """Give the rows that are final to `parts`, and move the others to the front; not where that makes little room."""
    counter, pending = memory.counter, memory.pending
    rows, final = int(counter[event_loop.ROWS]), final_rows(memory, columns)
    if 2 * final < rows:
        return
    part = {name: column[:final].copy() for name, column in columns._asdict().items()}
    part["update"] = np.maximum(part["update"], -1)
    part = _sorted(part)
    parts.add_early(replica, part)
    for column in columns:
        column[: rows - final] = column[final:rows]
    waiting = np.arange(counter[event_loop.HEAD], counter[event_loop.HEAD] + counter[event_loop.PENDING])
    pending[waiting & (pending.size - 1)] -= final
    counter[event_loop.ROWS] = rows - final


def _update_rows(cluster: Cluster, memory: Memory, columns: Columns, replica: int) -> UpdateRows:
    """Return the update just made, as `on_update` sees it."""
    head = memory.counter[event_loop.HEAD]
    rows = memory.pending[np.arange(head - cluster.batch, head) & (memory.pending.size - 1)]
    return UpdateRows(
        replica=replica,
        update=int(memory.counter[event_loop.VERSION]) - 1,
        time=float(memory.clock[event_loop.NOW]),
        worker=columns.worker[rows].astype(np.int64),
        draw=columns.draw[rows],
        read_version=columns.read_version[rows],
        block=np.full(cluster.batch, -1),
        oldest_read=int(oldest_read(memory, columns)),
    )


# --- laying out arrays ---


def _cluster(scenario: Scenario, message_bytes: int, *, reports: bool) -> Cluster:
    """Return the scenario's cluster and policy as arrays and numbers."""
    spec, policy = scenario.cluster, scenario.policy
    assert spec is not None
    workers, network, server = spec.size, spec.network, spec.server.service
    tables = [group.service.table for group in spec.workers]
    begins = np.cumsum([0, *(table.size for table in tables[:-1])])
    counts = [group.count for group in spec.workers]
    none: list[list[int]] = [[]] * workers
    routes = Routes(0, none, none, []) if network is None else network.routes(workers)
    up_links, up_of = _one_after_another(routes.up)
    down_links, down_of = _one_after_another(routes.down)
    used = np.bincount(up_links, minlength=routes.links + 1)
    first = up_links[np.minimum(up_of[:-1], up_links.size - 1)]
    return Cluster(
        workers=workers,
        laws=np.concatenate(tables),
        law_of=np.repeat(begins, counts),
        server_law=server.table,
        server_takes_time=not (isinstance(server, Constant) and server.value == 0.0),
        batch=policy.gradients_per_update(workers),
        limit=policy.staleness_limit,
        goes_on=policy.goes_on,
        sends_to=_SENDS_TO[policy.sends_to],
        cancels=policy.cancels,
        replies_before=spec.server.reply == "before_apply",
        has_network=network is not None,
        up=up_links,
        up_of=up_of,
        own_link=(up_of[:-1] < up_of[1:]) & (used[first] == 1),
        down=down_links,
        down_of=down_of,
        never_stops=not policy.cancels and policy.sends_to != "everyone",
        occupied=0.0 if network is None or network.bandwidth is None else message_bytes / network.bandwidth,
        latency_law=np.zeros(2) if network is None else network.latency.table,
        last_update=scenario.run.updates or 2**62,
        last_time=np.inf if scenario.run.time is None else float(scenario.run.time),
        reports=reports,
    )


def _one_after_another(ways: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return all ways in one array (never empty), and where each begins."""
    begins = np.zeros(len(ways) + 1, dtype=np.int64)
    np.cumsum([len(way) for way in ways], out=begins[1:])
    links = np.array([link for way in ways for link in way], dtype=np.int64)
    return (links if links.size else np.full(1, 0)), begins


def _memory(cluster: Cluster) -> Memory:
    """Return the memory of a replica that has not begun."""
    workers = cluster.workers
    slots, heap = 2 * workers + 16, 3 * workers + 16
    links = int(max(cluster.up.max(), cluster.down.max())) + 1
    ring = 1 << (4 * cluster.batch + workers + 4).bit_length()
    memory = Memory(
        counter=np.zeros(event_loop.COUNTERS, dtype=np.int64),
        clock=np.zeros(event_loop.CLOCKS),
        heap=np.empty(heap, dtype=event_loop.EVENT),
        free_slot=np.arange(slots)[::-1].copy(),
        gradients=np.zeros(slots, dtype=event_loop.GRADIENT),
        link_free=np.zeros(links),
        link_delivered=np.zeros(links),
        last_draw=np.full(workers, -1, dtype=np.int64),
        last_version=np.zeros(workers, dtype=np.int64),
        under_way=np.zeros(workers, dtype=np.bool_),
        computing=np.full(workers, -1, dtype=np.int64),
        to_send=np.empty(2 * workers + 2, dtype=np.int64),
        pending=np.zeros(ring, dtype=np.int64),
        ahead=np.empty((event_loop.PURPOSES, workers, event_loop.AHEAD)),
        ahead_until=np.zeros((event_loop.PURPOSES, workers), dtype=np.int64),
    )
    memory.counter[event_loop.FREE] = slots
    return memory


def _columns(rows: int) -> Columns:
    return Columns(**{name: np.empty(rows, dtype=COLUMNS[name]) for name in Columns._fields})


def _grown(cluster: Cluster, memory: Memory, columns: Columns) -> tuple[Memory, Columns]:
    """Return the same state with twice the room where it was short."""
    counter, room = memory.counter, cluster.workers + 2
    if columns.worker.size - counter[event_loop.ROWS] < room:
        columns = Columns(*[_twice(column) for column in columns])
    changed: dict[str, Any] = {}
    if memory.heap.size - counter[event_loop.HEAP] < room:
        changed["heap"] = _twice(memory.heap)
    if counter[event_loop.FREE] < room:
        slots, free = memory.gradients.size, int(counter[event_loop.FREE])
        free_slot = np.empty(2 * slots, dtype=np.int64)
        free_slot[:free] = memory.free_slot[:free]
        free_slot[free : free + slots] = np.arange(slots, 2 * slots)
        changed |= {"free_slot": free_slot, "gradients": _twice(memory.gradients)}
        counter[event_loop.FREE] += slots
    old, head, pending = memory.pending, counter[event_loop.HEAD], counter[event_loop.PENDING]
    if old.size - pending < 2 * cluster.batch + 2:
        ring = np.zeros(2 * old.size, dtype=np.int64)
        places = np.arange(head - cluster.batch, head + pending)
        ring[places & (ring.size - 1)] = old[places & (old.size - 1)]
        changed["pending"] = ring
    return memory._replace(**changed), columns


def _twice(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array, np.zeros_like(array)])
