"""Collecting settled gradients into the columns of a trace."""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncsim.trace import COLUMNS, TIMES, Trace, order_keys

_FIELDS = ("worker", "draw", "read_version", "update", "status", *TIMES)


class GradientTable:
    """The rows of a trace under construction, replica by replica.

    `rows` takes the settled gradients of the current replica in any order; `mark` notes that an update was made, after
    which nothing settled and no event counts until the next update; `close` sorts the replica's rows and keeps their
    columns.
    """

    def __init__(self, message_bytes: int | None):
        self.message_bytes = message_bytes
        self.rows: list[Any] = []
        self.counted = 0
        self.events_counted = 0
        self.events: list[tuple[int, float, int, str]] = []
        self.parts: list[dict[str, np.ndarray]] = []
        self.replicas: list[int] = []
        self.updates: list[int] = []

    def mark(self) -> None:
        """Count everything settled and noted so far."""
        self.counted = len(self.rows)
        self.events_counted = len(self.events)

    def event(self, replica: int, time: float, worker: int, kind: str) -> None:
        """Note a barrier or a stop."""
        self.events.append((replica, time, worker, kind))

    def close(self, replica: int, updates: int) -> None:
        """End the replica with its last update."""
        rows = self.rows[: self.counted]
        del self.events[self.events_counted :]
        part = {name: np.array([getattr(row, name) for row in rows], dtype=COLUMNS[name]) for name in _FIELDS}
        part["replica"] = np.full(len(rows), replica, dtype=np.int32)
        keys = order_keys(part)
        assert keys is not None
        order = np.lexsort(keys[::-1])
        order = order[_no_draw_missing(part["worker"], part["draw"])[order]]
        self.parts.append({name: column[order] for name, column in part.items()})
        self.replicas.append(replica)
        self.updates.append(updates)
        self.rows, self.counted = [], 0

    def trace(self, *, seed: int, workers: int) -> Trace:
        """Return the checked trace."""
        columns = {name: np.concatenate([part[name] for part in self.parts]) for name in ("replica", *_FIELDS)}
        if self.message_bytes is not None:
            size = np.full(columns["worker"].size, self.message_bytes, dtype=np.int64)
            columns |= {"bytes_up": np.where(np.isnan(columns["done_time"]), 0, size), "bytes_down": size}
        return Trace(
            columns, seed=seed, workers=workers, updates=self.updates, replicas=self.replicas, events=self.events
        )


def _no_draw_missing(worker: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Say for each row whether all earlier draws of its worker have rows too.

    Near the end of a replica a newer gradient may be discarded or stopped while an older one still waits for the server
    or is on its way; it has no row then, so that draws count 0, 1, 2, …
    """
    order = np.lexsort((draw, worker))
    earlier = np.arange(order.size) - np.searchsorted(worker[order], worker[order])
    complete = np.empty(order.size, dtype=bool)
    complete[order] = draw[order] == earlier
    return complete
