"""The compiled engine: lays out a scenario's cluster as arrays and runs the compiled event loop on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from asyncsim.cluster import Cluster as ClusterSpec
from asyncsim.cluster import Crash
from asyncsim.durations import EXPONENTIAL, Constant, Exponential
from asyncsim.network import Passage, Routes
from asyncsim.scenario import Scenario
from asyncsim.sources import loop_state
from asyncsim.sources.event_loop import advance
from asyncsim.sources.loop_rows import final_rows, settle, wasted_rows
from asyncsim.sources.loop_state import Cluster, Columns, Memory, Particulars
from asyncsim.sources.table import TraceParts, stands_still
from asyncsim.streams import CRASH as CRASH_TIMES
from asyncsim.trace import COLUMNS, CRASH, LOST, RETURN, UpdateRows, Wasted, order_keys

_SENDS_TO = {
    "contributors": loop_state.CONTRIBUTORS,
    "last": loop_state.LAST,
    "everyone": loop_state.EVERYONE,
}
#: Updates after which the loop comes back to say how far it is.
PAUSE_AFTER = 1 << 20

#: What most updates tell of.
_NONE = np.empty(0, dtype=np.int64)
_NOTHING = Wasted(_NONE, _NONE, _NONE, _NONE, np.empty(0, dtype=np.bool_))

_KINDS = {CRASH: "crash", RETURN: "return", loop_state.BARRIER_LEFT: "barrier"}
_REQUESTS = {"go": loop_state.GO, "barrier": loop_state.BARRIER, "stop": loop_state.STOP}


def run_replica(
    scenario: Scenario,
    replica: int,
    *,
    message_bytes: tuple[int, int],
    on_update: Callable[[UpdateRows], str] | None,
    parts: TraceParts,
    progress: Callable[[int], Any],
) -> None:
    """Run one replica to its end, and give its rows to `parts`: early those that are final, where it holds but few."""
    cluster, particulars = _cluster(scenario, message_bytes, reports=on_update is not None)
    memory = _memory(cluster, scenario, replica)
    rows = 1024 if scenario.run.updates is None else scenario.run.updates * cluster.batch
    columns = _columns(min(rows, parts.most_rows) + cluster.workers + 64)
    counter, seed = memory.counter, np.uint64(scenario.seed)
    told = np.zeros(cluster.workers, dtype=np.int64)
    request, reported = loop_state.GO, 0
    while True:
        pause = min(reported + PAUSE_AFTER, cluster.last_update)
        why = advance(cluster._replace(last_update=pause), particulars, memory, columns, seed, replica, request)
        request = loop_state.GO
        if counter[loop_state.VERSION] == pause:
            progress(pause - reported)
            reported = pause
            if why == loop_state.OVER and pause < cluster.last_update:
                counter[loop_state.PHASE] = loop_state.AFTER_APPLY  # a pause, not the end
                continue
        _hand_over_events(replica, memory, parts)
        if why == loop_state.OVER:
            break
        if why == loop_state.STILL:
            crashes = scenario.cluster.crashes if scenario.cluster else {}
            gone = [worker for worker in np.flatnonzero(memory.down).tolist() if crashes[worker].mean_down is None]
            raise stands_still(replica, int(counter[loop_state.VERSION]), gone)
        if why == loop_state.GROW:
            if counter[loop_state.ROWS] > parts.most_rows:
                _hand_over(replica, memory, columns, parts)
            memory, columns = _grown(cluster, memory, columns)
            counter = memory.counter
            continue
        assert on_update is not None
        answer = on_update(_update_rows(cluster, memory, columns, replica, told))
        if answer == "stop":
            parts.event(replica, float(memory.clock[loop_state.NOW]), -1, "stop")
        request = _REQUESTS[answer]
    updates = int(counter[loop_state.VERSION])
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


def _hand_over_events(replica: int, memory: Memory, parts: TraceParts) -> None:
    """Give the events that an update has followed, and so count, to `parts`; move the others to the front."""
    counter = memory.counter
    counted, noted = int(counter[loop_state.COUNTED]), int(counter[loop_state.NOTED])
    for note in memory.noted[:counted]:
        parts.event(replica, float(note["time"]), int(note["worker"]), _KINDS[int(note["kind"])])
    memory.noted[: noted - counted] = memory.noted[counted:noted]
    counter[loop_state.COUNTED], counter[loop_state.NOTED] = 0, noted - counted


def _hand_over(replica: int, memory: Memory, columns: Columns, parts: TraceParts) -> None:
    """Give the rows that are final to `parts`, and move the others to the front; not where that makes little room."""
    counter, pending = memory.counter, memory.pending
    rows, final = int(counter[loop_state.ROWS]), final_rows(memory, columns)
    if 2 * final < rows:
        return
    part = {name: column[:final].copy() for name, column in columns._asdict().items()}
    part["update"] = np.maximum(part["update"], -1)
    part = _sorted(part)
    parts.add_early(replica, part)
    for column in columns:
        column[: rows - final] = column[final:rows]
    waiting = np.arange(counter[loop_state.HEAD], counter[loop_state.HEAD] + counter[loop_state.PENDING])
    pending[waiting & (pending.size - 1)] -= final
    counter[loop_state.ROWS] = rows - final
    counter[loop_state.TOLD] -= final


def _update_rows(cluster: Cluster, memory: Memory, columns: Columns, replica: int, told: np.ndarray) -> UpdateRows:
    """Return the update just made, as `on_update` sees it; `told` is that of `wasted_rows`."""
    head = memory.counter[loop_state.HEAD]
    rows = memory.pending[np.arange(head - cluster.batch, head) & (memory.pending.size - 1)]
    wasted, oldest = wasted_rows(memory, columns, rows[-1], told)

    def seen(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        worker = columns.worker[rows].astype(np.int64)
        return worker, columns.draw[rows], columns.read_version[rows], np.full(rows.size, -1)

    return UpdateRows(
        replica,
        int(memory.counter[loop_state.VERSION]) - 1,
        float(memory.clock[loop_state.NOW]),
        *seen(rows),
        oldest_read=int(oldest),
        wasted=Wasted(*seen(wasted), columns.status[wasted] == LOST) if wasted.size else _NOTHING,
    )


# --- laying out arrays ---


def _cluster(
    scenario: Scenario, message_bytes: tuple[int, int], *, reports: bool
) -> tuple[Cluster, Particulars | None]:
    """Return the scenario's cluster and policy as arrays and numbers."""
    spec, policy = scenario.cluster, scenario.policy
    assert spec is not None
    workers, network, server = spec.size, spec.network, spec.server.service
    laws, begins = _one_table([group.service.table for group in spec.workers])
    counts = [group.count for group in spec.workers]
    none: list[list[int]] = [[]] * workers
    routes = Routes(0, none, none, []) if network is None else network.routes(workers)
    up_links, up_of = _one_after_another(routes.up)
    down_links, down_of = _one_after_another(routes.down)
    used = np.bincount(up_links, minlength=routes.links + 1)
    first = up_links[np.minimum(up_of[:-1], up_links.size - 1)]
    passages = [] if network is None else spec.passages(routes)
    steps = getattr(scenario.method, "gradients_per_message", 1)
    particulars = _particulars(spec, passages, message_bytes, steps)
    common = passages[:2] or [Passage(Constant(value=0.0), None, 0.0)] * 2  # of all links up, and of all links down
    latency_laws, (_, latency_down) = _one_table([passage.latency.table for passage in common])
    occupied = [
        size / passage.bandwidth if isinstance(passage.bandwidth, float) else 0.0
        for passage, size in zip(common, message_bytes, strict=True)
    ]
    return Cluster(
        workers=workers,
        laws=laws,
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
        own_link=(up_of[:-1] < up_of[1:]) & (used[first] == 1) & (particulars is None),
        down=down_links,
        down_of=down_of,
        never_stops=not policy.cancels and policy.sends_to != "everyone" and not spec.crashes,
        occupied_up=occupied[0],
        occupied_down=occupied[1],
        latency_laws=latency_laws,
        latency_down=int(latency_down),
        last_update=scenario.run.updates or 2**62,
        last_time=np.inf if scenario.run.time is None else float(scenario.run.time),
        reports=reports,
    ), particulars


def _particulars(
    spec: ClusterSpec, passages: list[Passage], message_bytes: tuple[int, int], steps: int
) -> Particulars | None:
    """Return what the cluster has beside alike links that never fail, and workers that never do; None if nothing."""
    different = {id(passage): passage for passage in passages}
    network, crashes = spec.network, spec.crashes
    alike = len(different) <= 2 and all(
        passage.loss == 0.0 and (passage.bandwidth is None or isinstance(passage.bandwidth, float))
        for passage in different.values()
    )
    patient = network is None or network.longest_wait is None or not passages
    if alike and patient and not crashes and steps == 1:
        return None
    tables: list[Any] = [np.zeros(2)]  # never empty
    place_of: dict[int, tuple[int, int]] = {}
    for key, passage in different.items():
        bandwidth = passage.bandwidth
        law = Constant(value=bandwidth) if isinstance(bandwidth, float) else bandwidth
        place_of[key] = len(tables), -1 if law is None else len(tables) + 1
        tables += [passage.latency.table] if law is None else [passage.latency.table, law.table]
    crash_of = np.full(spec.size, -1)
    kinds: dict[Crash, int] = {}
    for worker, crash in crashes.items():
        if crash not in kinds:
            kinds[crash] = len(tables)
            never = np.inf if crash.mean_down is None else crash.mean_down
            tables += [np.array([EXPONENTIAL, crash.mean_up]), np.array([EXPONENTIAL, never])]
        crash_of[worker] = kinds[crash]
    laws, begins = _one_table(tables)
    begins = np.append(begins, -1)  # for numbers of laws that are −1
    links = np.array([place_of[id(passage)] for passage in passages] or [(-1, -1)])
    return Particulars(
        steps=steps,
        laws=laws,
        latency_of=begins[links[:, 0]],
        bandwidth_of=begins[links[:, 1]],
        loss=np.array([passage.loss for passage in passages] or [0.0]),
        bytes_up=float(message_bytes[0]),
        bytes_down=float(message_bytes[1]),
        retry_after=(network and network.retry_after) or 0.0,
        most_attempts=2**62 if network is None or network.retries is None else network.retries + 1,
        longest_wait=np.inf if network is None or network.longest_wait is None else network.longest_wait,
        crash_of=begins[crash_of],
    )


def _one_table(tables: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return encoded laws in one array, and where each begins."""
    return np.concatenate(tables), np.cumsum([0, *(table.size for table in tables[:-1])])


def _one_after_another(ways: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return all ways in one array (never empty), and where each begins."""
    begins = np.zeros(len(ways) + 1, dtype=np.int64)
    np.cumsum([len(way) for way in ways], out=begins[1:])
    links = np.array([link for way in ways for link in way], dtype=np.int64)
    return (links if links.size else np.full(1, 0)), begins


def _memory(cluster: Cluster, scenario: Scenario, replica: int) -> Memory:
    """Return the memory of a replica that has not begun."""
    workers = cluster.workers
    slots, heap = 2 * workers + 16, 4 * workers + 16
    links = int(max(cluster.up.max(), cluster.down.max())) + 1
    ring = 1 << (4 * cluster.batch + workers + 4).bit_length()
    memory = Memory(
        counter=np.zeros(loop_state.COUNTERS, dtype=np.int64),
        clock=np.zeros(loop_state.CLOCKS),
        heap=np.empty(heap, dtype=loop_state.EVENT),
        free_slot=np.arange(slots)[::-1].copy(),
        gradients=np.zeros(slots, dtype=loop_state.GRADIENT),
        link_free=np.zeros(links),
        link_delivered=np.zeros(links),
        last_draw=np.full(workers, -1, dtype=np.int64),
        last_version=np.zeros(workers, dtype=np.int64),
        under_way=np.zeros(workers, dtype=np.bool_),
        computing=np.full(workers, -1, dtype=np.int64),
        to_send=np.empty(2 * workers + 2, dtype=np.int64),
        pending=np.zeros(ring, dtype=np.int64),
        ahead=np.empty((loop_state.PURPOSES, workers, loop_state.AHEAD)),
        ahead_until=np.zeros((loop_state.PURPOSES, workers), dtype=np.int64),
        noted=np.empty(64, dtype=loop_state.NOTE),
        down=np.zeros(workers, dtype=np.bool_),
        crashes=np.zeros(workers, dtype=np.int64),
        owed=np.zeros(workers, dtype=np.bool_),
    )
    memory.counter[loop_state.FREE] = slots
    memory.counter[loop_state.TOLD] = 0 if cluster.reports else 2**62
    _plan_crashes(memory, scenario, replica)
    return memory


def _plan_crashes(memory: Memory, scenario: Scenario, replica: int) -> None:
    """Put each worker's first crash on the empty heap: in order, they are one."""
    assert scenario.cluster is not None
    first = [
        (
            float(
                Exponential(mean=crash.mean_up).sample(scenario.seed, replica, worker, 0, size=1, purpose=CRASH_TIMES)[
                    0
                ]
            ),
            worker,
        )
        for worker, crash in scenario.cluster.crashes.items()
    ]
    for place, (time, worker) in enumerate(sorted(first)):
        memory.heap[place] = time, (CRASH << loop_state.KIND_BIT) | (worker << loop_state.WORKER_BIT)
    memory.counter[loop_state.HEAP] = len(first)


def _columns(rows: int) -> Columns:
    return Columns(**{name: np.empty(rows, dtype=COLUMNS[name]) for name in Columns._fields})


def _grown(cluster: Cluster, memory: Memory, columns: Columns) -> tuple[Memory, Columns]:
    """Return the same state with twice the room where it was short."""
    counter, room = memory.counter, cluster.workers + 2
    if columns.worker.size - counter[loop_state.ROWS] < room:
        columns = Columns(*[_twice(column) for column in columns])
    changed: dict[str, Any] = {}
    if memory.heap.size - counter[loop_state.HEAP] < room:
        changed["heap"] = _twice(memory.heap)
    if memory.noted.size - counter[loop_state.NOTED] < 2:
        changed["noted"] = _twice(memory.noted)
    if counter[loop_state.FREE] < room:
        slots, free = memory.gradients.size, int(counter[loop_state.FREE])
        free_slot = np.empty(2 * slots, dtype=np.int64)
        free_slot[:free] = memory.free_slot[:free]
        free_slot[free : free + slots] = np.arange(slots, 2 * slots)
        changed |= {"free_slot": free_slot, "gradients": _twice(memory.gradients)}
        counter[loop_state.FREE] += slots
    old, head, pending = memory.pending, counter[loop_state.HEAD], counter[loop_state.PENDING]
    if old.size - pending < 2 * cluster.batch + 2:
        ring = np.zeros(2 * old.size, dtype=np.int64)
        places = np.arange(head - cluster.batch, head + pending)
        ring[places & (ring.size - 1)] = old[places & (old.size - 1)]
        changed["pending"] = ring
    return memory._replace(**changed), columns


def _twice(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array, np.zeros_like(array)])
