"""Which gradients of a trace were computed, and in which order, for methods whose workers remember their messages.

What a worker remembers depends on every message that it has computed, in order of its draws, whatever became of them.
So a replay computes three kinds of gradients: those that were applied, those that arrived and were discarded, and those
that were lost on their way. One that was cancelled, or lost while it was computed, was never a message.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from asyncsim.checking import replica_parts
from asyncsim.stored import StoredTrace
from asyncsim.trace import APPLIED, DISCARDED, LOST, Trace, TraceError
from asyncsim.windows import NEEDED, Columns

#: What the column `into` holds beside updates: the message was discarded, or lost on its way.
WASTED, GONE = -1, -2

#: What must be known of every gradient; the times and the block only where a trace has them.
COLUMNS = ("status", *NEEDED, "done_time")


def computed(trace: Trace, replica: int) -> Iterator[Columns]:
    """Yield the computed gradients of a replica in the order in which a replay computes them.

    They have the columns that a replay needs, `update` being the update before which a gradient is computed, and `into`
    the one that it was applied in, `WASTED` or `GONE`. They come in parts of whole updates; from memory as a single
    part.
    """
    if isinstance(trace, StoredTrace):
        names = [name for name in ("replica", *COLUMNS, "arrive_time", "apply_time") if name in trace]
        parts = replica_parts(trace.parts(*names, replicas=(replica, replica)))
        yield from _in_parts((rows for whose, rows in parts if whose == replica), trace.workers)
        return
    rows = trace.rows_of(replica)
    columns = {name: trace[name][rows] for name in COLUMNS if name in trace}
    if trace.reads is not None:
        columns["reads"] = trace.reads[rows]
    yield in_order(columns)


def _in_parts(parts: Iterable[Columns], workers: int) -> Iterator[Columns]:
    """Yield the computed gradients of a replica whose rows come in parts."""
    rest: Columns = {}
    newest = np.full(workers, -1)
    for columns in parts:
        part = {name: np.concatenate([rest[name], column]) if rest else column for name, column in columns.items()}
        applied = np.flatnonzero(part["status"] == APPLIED)
        earlier = applied[part["update"][applied] < part["update"][applied].max(initial=0)]
        cut = int(earlier[-1]) + 1 if earlier.size else 0  # the last update may not be whole
        if cut:
            yield _following({name: column[:cut] for name, column in part.items()}, newest)
        rest = {name: column[cut:] for name, column in part.items()}
    if rest:
        yield _following(rest, newest)


def _following(columns: Columns, newest: np.ndarray) -> Columns:
    """Return `in_order`, and note each worker's newest draw; no part may hold a draw older than those before it."""
    part = in_order(columns)
    worker, draw = part["worker"], part["draw"]
    if (draw <= newest[worker]).any():
        raise TraceError("too long to be held, and a worker's gradients are not settled in the order of its draws")
    np.maximum.at(newest, worker, draw)
    return part


def in_order(columns: Columns) -> dict[str, np.ndarray]:
    """Return the computed gradients among the rows of a replica, in the order in which a replay computes them.

    A gradient that was not applied is computed before the next one in the table that was, but a worker's gradients
    always in order of its draws. Those after which none is applied make no difference, and are left out.

    >>> rows = dict(worker=[0, 1, 0], draw=[0, 0, 1], read_version=[0, 0, 0], update=[0, -1, 1], status=[0, 1, 0])
    >>> found = in_order({name: np.array(column) for name, column in rows.items()})
    >>> found["worker"].tolist(), found["update"].tolist(), found["into"].tolist()
    ([0, 1, 0], [0, 1, 1], [0, -1, 1])
    """
    status, used = columns["status"], was_computed(columns)
    rows = {name: column[used] for name, column in columns.items() if name not in ("status", "done_time")}
    status = status[used]
    applied = np.flatnonzero(status == APPLIED)
    # `end` stands for an update that does not come.
    end = int(rows["update"].max(initial=-1)) + 1
    before = np.append(rows["update"][applied], end)[np.searchsorted(applied, np.arange(status.size))]
    order = np.argsort(before, kind="stable")
    place = np.empty(order.size, dtype=np.int64)
    place[order] = np.arange(order.size)
    earliest = _earliest(place, rows["worker"], rows["draw"])
    if (earliest[applied] < place[applied]).any():
        raise TraceError("a worker's gradients are not applied in the order of its draws, which a memory relies on")
    before = before[order][earliest]
    rows["into"] = np.where(status == APPLIED, rows["update"], np.where(status == LOST, GONE, WASTED))
    rows["update"] = before
    needed = before < end
    if (rows["read_version"] > before)[needed].any():
        raise TraceError("a worker reads an older version after a newer one, which a memory cannot")
    sequence = np.lexsort((rows["draw"], earliest))
    sequence = sequence[needed[sequence]]
    return {name: column[sequence] for name, column in rows.items()}


def was_computed(columns: Columns) -> np.ndarray:
    """Return whether each gradient was computed: applied, discarded, or lost after that."""
    status = columns["status"]
    used = (status == APPLIED) | (status == DISCARDED)
    return used | ((status == LOST) & ~np.isnan(columns["done_time"])) if "done_time" in columns else used


def messages_at(trace: Trace, replica: int, versions: np.ndarray) -> np.ndarray:
    """Return how many messages the workers of a replica had sent before each of these versions came to be.

    They are the computed gradients among its rows down to the last one that the version's update applied. That is for
    any method, so nothing is asked of the order of draws.
    """
    count = np.zeros(versions.size, dtype=np.int64)
    before = 0
    for part in _rows(trace, replica, ("status", "update", "done_time")):
        sent = before + np.cumsum(was_computed(part))
        applied = np.flatnonzero(part["status"] == APPLIED)
        applied = applied[np.argsort(part["update"][applied], kind="stable")]
        update = part["update"][applied]
        last = update.searchsorted(versions - 1, side="right") - 1
        here = np.flatnonzero((last >= 0) & (last >= update.searchsorted(versions - 1)))
        count[here] = sent[applied[last[here]]]
        before = int(sent[-1]) if sent.size else before
    return count


def _rows(trace: Trace, replica: int, names: tuple[str, ...]) -> Iterator[dict[str, np.ndarray]]:
    """Yield the columns of these names that a trace has, of the rows of a replica, part by part if it is stored."""
    names = tuple(name for name in names if name in trace)
    if not isinstance(trace, StoredTrace):
        rows = trace.rows_of(replica)
        yield {name: trace[name][rows] for name in names}
        return
    for part in trace.parts("replica", *names, replicas=(replica, replica)):
        mine = part["replica"] == replica
        yield {name: part[name][mine] for name in names}


def _earliest(place: np.ndarray, worker: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Return the first of the places that a gradient and its worker's later ones have."""
    order = np.lexsort((draw, worker))[::-1]
    # Each worker's places are below those of the workers before it here, so one running minimum does for all.
    below = np.cumsum(np.diff(worker[order], prepend=worker[order][:1]) != 0) * place.size
    earliest = np.empty_like(place)
    earliest[order] = np.minimum.accumulate(place[order] - below) + below
    return earliest
