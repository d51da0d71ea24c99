"""What a replay sees of a trace: the gradients that it computes for each update, and the versions that they read.

Only versions that a gradient still to come was computed from are kept, whatever their age.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from asyncsim.blocks import mixed_read
from asyncsim.computed import GONE
from asyncsim.trace import Row, Trace
from asyncsim.windows import Columns, in_windows, read_later, window_size


class Schedule(Protocol):
    """What is computed for each update and the versions that are read for it."""

    trace: Trace
    updates: int

    def rows(self, update: int) -> list[Any]:
        """Return the gradients of an update, in order of arrival."""

    def read(self, update: int, gradient: int) -> np.ndarray:
        """Return the version that the update's gradient number `gradient` was computed from."""

    def write(self, version: int, x: np.ndarray) -> None:
        """Keep a version if it is still to be read, and drop those that will not be read again."""


class ReplicaSchedule:
    """One replica, of which a window of updates is laid out at a time; models have shape (d,).

    Where workers remember, there are more rows than an update applies: those that were computed before it and not
    applied, whose own update is −1.
    """

    def __init__(self, trace: Trace, replica: int, parts: Callable[[], Iterable[Columns]], updates: int):
        """Plan; each call of `parts` gives the rows to compute in order, in parts of whole updates.

        Those that have a column `into` say there what became of the message; without one, all are applied.
        """
        self.trace, self.updates = trace, updates
        self.address = (trace.seed, replica)
        self.parts = parts
        self.later = read_later(self._windows())
        self.kept: dict[int, np.ndarray] = {}

    def _windows(self) -> Iterator[Columns]:
        if self.trace.reads is not None:
            return (part for part in self.parts() if part["update"].size)  # all at once, as such a trace is held
        return in_windows(self.parts(), window_size(self.trace.workers))

    def _begin(self) -> None:
        self.kept = {}
        self.end = 0
        self.last_read: dict[int, int] = {}
        self.coming = zip(self._windows(), self.later, strict=True)
        if self.updates:
            self._lay_out()

    def _lay_out(self) -> None:
        """Lay out the next window."""
        window, later = next(self.coming)
        self.first, self.end = self.end, int(window["update"][-1]) + 1
        self.bounds = np.searchsorted(window["update"], np.arange(self.first, self.end + 1)).tolist()
        self.worker, self.draw = window["worker"].tolist(), window["draw"].tolist()
        self.version = window["read_version"].tolist()
        self.block = window["block"].tolist() if "block" in window else [-1] * len(self.version)
        self.into = window["into"].tolist() if "into" in window else None
        self.reads = window["reads"].tolist() if "reads" in window else None
        updates = window["update"].tolist()
        self.last_read = dict(zip(self.version, updates, strict=True))  # of several the last one
        for of_block, update in zip(self.reads or (), updates, strict=False):
            self.last_read |= dict.fromkeys(of_block, update)
        self.last_read |= dict.fromkeys(later.tolist(), self.updates)

    def _places(self, update: int) -> range:
        return range(self.bounds[update - self.first], self.bounds[update - self.first + 1])

    def rows(self, update: int) -> list[Row]:
        """Return the gradients of an update, in order of arrival."""
        if update >= self.end:
            self._lay_out()
        return [
            Row(*self.address, self.worker[i], self.draw[i], update, update - self.version[i], self.block[i])
            if self.into is None or self.into[i] == update
            else Row(*self.address, self.worker[i], self.draw[i], block=self.block[i])
            for i in self._places(update)
        ]

    def lost(self, update: int) -> list[bool]:
        """Return which of these gradients were lost on their way."""
        return [] if self.into is None else [self.into[i] == GONE for i in self._places(update)]

    def read(self, update: int, gradient: int) -> np.ndarray:
        """Return the version that the update's gradient number `gradient` was computed from."""
        place = self.bounds[update - self.first] + gradient
        return self.kept[self.version[place]] if self.reads is None else mixed_read(self.kept, self.reads[place])

    def write(self, version: int, x: np.ndarray) -> None:
        """Keep a version if it is still to be read, and drop those that update `version` − 1 was the last to read."""
        if version == 0:
            self._begin()
        else:
            for i in self._places(version - 1):
                for read in (self.version[i],) if self.reads is None else {self.version[i], *self.reads[i]}:
                    if self.last_read[read] == version - 1:
                        self.kept.pop(read, None)
        if version in self.last_read:
            self.kept[version] = x


class BatchRow:
    """A `Row` of many replicas, each field looked up when it is asked for: exact gradients need none of them."""

    def __init__(self, schedule: BatchSchedule, update: int, gradient: int):
        """Stand for the update's gradient number `gradient` in every replica."""
        self.seed, self.replica, self.update = schedule.seed, schedule.replicas, update
        self._schedule, self._place = schedule, (update, gradient)

    def __getattr__(self, name: str) -> Any:
        """Return worker, draw, staleness or block, one number per replica."""
        if name not in Row._fields:
            raise AttributeError(f"a row has no '{name}'; it has: {', '.join(Row._fields)}")
        return getattr(self._schedule, name)[self._place]


class BatchSchedule:
    """Many replicas with equally many updates of equally many gradients; models have shape (replicas, d).

    Replicas read different versions at the same update, so the kept ones lie in one array, (slots · replicas, d), and
    each replica has its own plan of which version lies in which slot.
    """

    def __init__(self, trace: Trace, replicas: np.ndarray, rows: np.ndarray, updates: int, gradients: int):
        """Plan from the numbers of each replica's applied rows, in order of update: shape (replicas, rows)."""
        from asyncsim.slots import plan_slots

        self.updates, self.gradients = updates, gradients
        self.trace, self.seed, self.replicas = trace, trace.seed, replicas
        self._trace, self._rows = trace, rows
        read_at, kept_at, self.slots = plan_slots(np.ascontiguousarray(trace["read_version"]), rows, gradients)
        self.read_at, self.kept_at = self._by_update(read_at), np.ascontiguousarray(kept_at.T)
        self.kept: np.ndarray | None = None

    def _by_update(self, table: np.ndarray) -> np.ndarray:
        """Return what has a row for each replica as (updates, gradients, replicas)."""
        return np.ascontiguousarray(table.reshape(-1, self.updates, self.gradients).transpose(1, 2, 0))

    @cached_property
    def worker(self) -> np.ndarray:
        """The worker of each gradient."""
        return self._by_update(self._trace["worker"].take(self._rows))

    @cached_property
    def draw(self) -> np.ndarray:
        """The draw of each gradient."""
        return self._by_update(self._trace["draw"].take(self._rows))

    @cached_property
    def staleness(self) -> np.ndarray:
        """The staleness of each gradient."""
        version = self._by_update(self._trace["read_version"].take(self._rows))
        return np.arange(self.updates)[:, None, None] - version

    @cached_property
    def block(self) -> np.ndarray:
        """The block of each gradient, −1 where the trace has none."""
        if "block" not in self._trace:
            return np.broadcast_to(np.int32(-1), (self.updates, self.gradients, self.replicas.size))
        return self._by_update(self._trace["block"].take(self._rows))

    def rows(self, update: int) -> list[Any]:
        """Return the gradients of an update, in order of arrival."""
        return [BatchRow(self, update, gradient) for gradient in range(self.gradients)]

    def read(self, update: int, gradient: int) -> np.ndarray:
        """Return what each replica's gradient number `gradient` was computed from."""
        assert self.kept is not None
        return self.kept.take(self.read_at[update, gradient], axis=0)

    def write(self, version: int, x: np.ndarray) -> None:
        """Keep a version of every replica; those that nobody will read share a slot."""
        if self.kept is None or version == 0:
            self.kept = np.empty(((self.slots + 1) * len(x), x.shape[1]))
            # A replica's model as one item: numpy copies those several times faster than rows of numbers.
            self.model = np.dtype((np.void, self.kept[0].nbytes))
            self.kept_models = self.kept.view(self.model)
        x = np.ascontiguousarray(x, dtype=self.kept.dtype)
        self.kept_models.put(self.kept_at[version], x.view(self.model))
