"""What a replay sees of a trace: the rows of each update, and the versions that they were computed from.

Only versions that a gradient still to come was computed from are kept, whatever their age.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from asyncsim.trace import Row, Trace


class Schedule(Protocol):
    """The rows of each update and the versions they read."""

    updates: int

    def rows(self, update: int) -> list[Row]:
        """Return the gradients of an update, in order of arrival."""

    def read(self, update: int, gradient: int) -> np.ndarray:
        """Return the version that the update's gradient number `gradient` was computed from."""

    def write(self, version: int, x: np.ndarray) -> None:
        """Keep a version if it is still to be read, and drop those that will not be read again."""


class ReplicaSchedule:
    """One replica; models have shape (d,)."""

    def __init__(self, trace: Trace, replica: int, rows: np.ndarray, updates: int):
        """Plan from the numbers of the replica's applied rows, in order of update."""
        self.updates = updates
        self.address = (trace.seed, replica)
        self.bounds = np.searchsorted(trace["update"][rows], np.arange(updates + 1)).tolist()
        self.worker = trace["worker"][rows].tolist()
        self.draw = trace["draw"][rows].tolist()
        self.version = trace["read_version"][rows].tolist()
        self.block = trace["block"][rows].tolist() if "block" in trace else [-1] * len(rows)
        self.last_read = np.full(updates + 1, -1, dtype=np.int64)
        np.maximum.at(self.last_read, trace["read_version"][rows], trace["update"][rows])
        self.kept: dict[int, np.ndarray] = {}

    def rows(self, update: int) -> list[Row]:
        """Return the gradients of an update, in order of arrival."""
        return [
            Row(*self.address, self.worker[i], self.draw[i], update, update - self.version[i], self.block[i])
            for i in range(self.bounds[update], self.bounds[update + 1])
        ]

    def read(self, update: int, gradient: int) -> np.ndarray:
        """Return the version that the update's gradient number `gradient` was computed from."""
        return self.kept[self.version[self.bounds[update] + gradient]]

    def write(self, version: int, x: np.ndarray) -> None:
        """Keep a version if it is still to be read, and drop those that update `version` − 1 was the last to read."""
        if version == 0:
            self.kept = {}
        else:
            for i in range(self.bounds[version - 1], self.bounds[version]):
                if self.last_read[self.version[i]] == version - 1:
                    self.kept.pop(self.version[i], None)
        if self.last_read[version] >= 0:
            self.kept[version] = x


class BatchSchedule:
    """Many replicas with equally many updates of equally many gradients; models have shape (replicas, d).

    Replicas read different versions at the same update, so the kept ones lie in one array (slots, replicas, d), and
    each replica has its own plan of which version lies in which slot.
    """

    def __init__(self, trace: Trace, replicas: np.ndarray, rows: np.ndarray, updates: int, gradients: int):
        """Plan from the numbers of each replica's applied rows, in order of update: shape (replicas, rows)."""
        from asyncsim.slots import plan_slots

        self.updates, self.gradients = updates, gradients
        self.seed, self.replicas = trace.seed, replicas
        self.places = np.arange(replicas.size)

        def column(name: str) -> np.ndarray:
            """Return a column as (updates, gradients, replicas)."""
            shaped = trace[name][rows].reshape(replicas.size, updates, gradients)
            return np.ascontiguousarray(shaped.transpose(1, 2, 0))

        self.worker, self.draw = column("worker"), column("draw")
        version = column("read_version")
        self.staleness = column("update") - version
        self.block = column("block") if "block" in trace else np.full(version.shape, -1)
        self.read_slot, self.write_slot, self.slots = plan_slots(version)
        self.kept: np.ndarray | None = None

    def rows(self, update: int) -> list[Row]:
        """Return the gradients of an update, in order of arrival; each field holds one number per replica."""
        return [
            Row(
                self.seed,
                self.replicas,
                self.worker[update, k],
                self.draw[update, k],
                update,
                self.staleness[update, k],
                self.block[update, k],
            )
            for k in range(self.gradients)
        ]

    def read(self, update: int, gradient: int) -> np.ndarray:
        """Return what each replica's gradient number `gradient` was computed from."""
        assert self.kept is not None
        return self.kept[self.read_slot[update, gradient], self.places]

    def write(self, version: int, x: np.ndarray) -> None:
        """Keep a version of every replica; those that nobody will read share a last slot."""
        if self.kept is None or version == 0:
            self.kept = np.empty((self.slots + 1, *x.shape))
        self.kept[self.write_slot[version], self.places] = x
