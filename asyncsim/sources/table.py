"""Collecting the columns of a trace, replica by replica."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from asyncsim import stored
from asyncsim.checking import Checker
from asyncsim.durations import SimulationError
from asyncsim.stored import Facts, TraceWriter
from asyncsim.trace import COLUMNS, TIMES, Trace, order_keys

_FIELDS = ("worker", "draw", "read_version", "update", "status", *TIMES)

# A row as bytes, the same to numpy and to struct: both align fields as C does.
_ROW = np.dtype([(name, COLUMNS[name]) for name in _FIELDS], align=True)
_PACKED = struct.Struct("".join(_ROW[name].char for name in _FIELDS))
_COLUMNS_OF = attrgetter(*_FIELDS)


class TraceParts:
    """The rows of a trace under construction, replica by replica, and the events noted in them."""

    #: Rows that a replica may hold before it gives those that are final.
    most_rows = 2**62

    def __init__(self, message_bytes: tuple[int, int] | None):
        """Begin; `message_bytes` is what a message up and one down weigh on the wire, None where there is none."""
        self.message_bytes = message_bytes
        self.parts: list[dict[str, np.ndarray]] = []
        self.replicas: list[int] = []
        self.updates: list[int] = []
        self.events: list[tuple[int, float, int, str]] = []

    def event(self, replica: int, time: float, worker: int, kind: str) -> None:
        """Note a barrier or a stop, or a worker's crash or return."""
        self.events.append((replica, time, worker, kind))

    def add(self, replica: int, updates: int, part: dict[str, np.ndarray]) -> None:
        """Add a replica, or the rest of one: its columns, in order."""
        self.add_early(replica, part)
        self.replicas.append(replica)
        self.updates.append(updates)

    def add_early(self, replica: int, part: dict[str, np.ndarray]) -> None:
        """Add the first rows of a replica that goes on."""
        self.parts.append({"replica": np.full(part["worker"].size, replica, dtype=np.int32), **part})

    def trace(self, *, seed: int, workers: int) -> Trace:
        """Return the checked trace. The parts are its own from now on."""
        columns = {name: self._whole(name) for name in ("replica", *_FIELDS)}
        return Trace(
            columns | self._bytes(columns),
            seed=seed,
            workers=workers,
            updates=self.updates,
            replicas=self.replicas,
            events=self.events,
            reads=self._whole("reads") if self.parts and "reads" in self.parts[0] else None,
            copy=False,
        )

    def _bytes(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the columns of what went over the wire, where there is one."""
        if self.message_bytes is None:
            return {}
        up, down = (np.full(columns["worker"].size, size, dtype=np.int64) for size in self.message_bytes)
        return {"bytes_up": np.where(np.isnan(columns["done_time"]), 0, up), "bytes_down": down}

    def _whole(self, name: str) -> np.ndarray:
        """Return a column of all replicas; the parts let go of it, so that a long trace is not held twice."""
        pieces = [part.pop(name) for part in self.parts]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class TraceFile(TraceParts):
    """A trace under construction in a file, checked as it is written; only rows that may still change are held."""

    def __init__(
        self,
        message_bytes: tuple[int, int] | None,
        path: Path,
        *,
        seed: int,
        workers: int,
        replicas: list[int],
        most: int,
    ):
        """Begin; no replica makes more than `most` updates."""
        super().__init__(message_bytes)
        self.most_rows = stored.ROW_GROUP
        columns = ("replica", *_FIELDS, *(() if message_bytes is None else ("bytes_up", "bytes_down")))
        self.writer = TraceWriter(path, columns)
        self.facts = Facts(seed, workers, np.full(len(replicas), most), np.array(replicas, dtype=np.int32))
        self.checker = Checker(self.facts)

    def add(self, replica: int, updates: int, part: dict[str, np.ndarray]) -> None:
        """Add a replica, or the rest of one: its columns, in order."""
        super().add(replica, updates, part)
        self.facts.updates[len(self.updates) - 1] = updates
        self.checker.end_before(len(self.updates))

    def add_early(self, replica: int, part: dict[str, np.ndarray]) -> None:
        """Add the first rows of a replica that goes on."""
        if part["worker"].size:
            columns = {"replica": np.full(part["worker"].size, replica, dtype=np.int32), **part, **self._bytes(part)}
            self.checker.check(replica, columns)
            self.writer.write(columns)

    def close(self) -> None:
        """End the file."""
        self.writer.close(self.facts._replace(events=tuple(self.events)))


class SettledGradients:
    """The gradients of one replica whose fate is settled, in any order.

    What is settled, and what events are noted, after the last update does not count.
    """

    def __init__(self, parts: TraceParts, replica: int):
        self.parts, self.replica = parts, replica
        self.rows = bytearray()
        self.events: list[tuple[float, int, str]] = []
        self.counted = (0, 0)

    def add(self, gradient: Any) -> None:
        """Write the row of a gradient, which has an attribute for each column and may be forgotten now."""
        self.rows += _PACKED.pack(*_COLUMNS_OF(gradient))

    def mark(self) -> None:
        """Note that an update was made: everything so far counts."""
        self.counted = (len(self.rows), len(self.events))

    def close(self, updates: int) -> None:
        """End the replica with its last update: sort its rows and hand them over."""
        rows, events = self.rows[: self.counted[0]], self.events[: self.counted[1]]
        table = np.frombuffer(rows, dtype=_ROW)
        part = {name: table[name] for name in _FIELDS}
        keys = order_keys(part)
        assert keys is not None
        order = np.lexsort(keys[::-1])
        order = order[no_draw_missing(part["worker"], part["draw"])[order]]
        for event in events:
            self.parts.event(self.replica, *event)
        self.parts.add(self.replica, updates, {name: column[order] for name, column in part.items()})


def stands_still(replica: int, version: int, gone: Iterable[int]) -> SimulationError:
    """Return the error of a replica in which nothing can happen any more; `gone` are the workers that never return."""
    said = f"replica {replica} stands still at version {version}: nothing can happen any more"
    workers = sorted(gone)
    if workers:
        shown = ", ".join(map(str, workers[:8])) + (" …" if len(workers) > 8 else "")
        have = f"worker {shown} has" if len(workers) == 1 else f"workers {shown} have"
        said += f"; {have} crashed without return (crash.mean_down), and the policy waits for more than are left"
    return SimulationError(said)


def no_draw_missing(worker: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Say for each row whether all earlier draws of its worker have rows too.

    Near the end of a replica a newer gradient may be discarded or stopped while an older one still waits for the server
    or is on its way; it has no row then, so that draws count 0, 1, 2, …
    """
    order = np.lexsort((draw, worker))
    earlier = np.arange(order.size) - np.searchsorted(worker[order], worker[order])
    complete = np.empty(order.size, dtype=bool)
    complete[order] = draw[order] == earlier
    return complete
