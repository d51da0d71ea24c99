"""Workers as processes that read and update one model in shared memory; there is no server.

Each gradient is an update, made by the worker that computed it while it holds the right to update. How it reads is the
run's `consistency`: "locked", the whole model while nobody updates it; "block", block by block from the last to the
first, while another may be writing from the first to the last, so that what is read mixes versions; "hogwild", without
a lock, and written without one.
"""

from __future__ import annotations

import math
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from asyncsim.methods.base import State
from asyncsim.sources.recorded.log import checksum
from asyncsim.sources.recorded.memory import (
    AHEAD,
    DIVERGED,
    DONE,
    FULL,
    OVER,
    ROWS,
    RUNNING,
    UNFINISHED,
    UPDATE,
    Memory,
)
from asyncsim.sources.recorded.messages import SharedJob
from asyncsim.trace import APPLIED, DISCARDED, Row


class SharedWorker:
    """One worker: it reads, computes, and updates."""

    def __init__(self, memory: Memory, job: SharedJob, worker: int, connection: Connection):
        self.memory, self.job, self.worker, self.connection = memory, job, worker, connection
        self.mine = memory.doing[worker]

    def run(self, begin: float) -> None:
        """Compute until the run is over."""
        job, memory = self.job, self.memory
        method, problem = job.method, job.problem
        kept = method.init(problem, problem.initial(job.seed, job.replica), job.workers)[1][self.worker]
        self.end = begin + job.seconds
        reads = {"locked": self._read_whole, "block": self._read_blocks, "hogwild": self._read_torn}
        read = reads[job.consistency]
        while memory.counter[OVER] == RUNNING:
            draw = int(self.mine["draw"])
            seconds = self._service_time(draw)
            version, read_time, x, versions = read()
            start = time.monotonic()
            payload, kept = method.message(problem, x, kept, Row(job.seed, job.replica, self.worker, draw))
            if not self._rest(start + seconds):
                return
            done = time.monotonic()
            row = (self.worker, draw, version, -1, DISCARDED, read_time, start, done)
            if job.consistency == "hogwild":
                self._add(row, payload)
            else:
                with memory.lock():
                    self._update(row, payload, versions)
            self.mine["draw"] = draw + 1

    def _service_time(self, draw: int) -> float:
        """Return the seconds that this draw has to take; the parent supplies them."""
        if self.job.wait == "none":
            return 0.0
        while self.mine["supplied"] <= draw and self.memory.counter[OVER] == RUNNING:
            time.sleep(1e-3)
        return float(self.memory.durations[self.worker, draw % AHEAD])

    def _rest(self, until: float) -> bool:
        """Spend what is left of a service time; say whether the run still goes on."""
        if self.job.wait == "spin":
            while time.monotonic() < until and self.memory.counter[OVER] == RUNNING:
                pass
        elif self.job.wait == "sleep":
            left = until - time.monotonic()
            if left > 0 and self.connection.poll(left):
                return False
        return bool(self.memory.counter[OVER] == RUNNING)

    # --- reading ---

    def _begin_read(self) -> tuple[int, float]:
        """Return (version, time), which belong together only where nobody can finish an update meanwhile."""
        self.mine["reading"] = self.mine["draw"]
        self.mine["read_version"], self.mine["read_time"] = self.memory.version, time.monotonic()
        return int(self.mine["read_version"]), float(self.mine["read_time"])

    def _read_whole(self) -> tuple[int, float, np.ndarray, np.ndarray | None]:
        with self.memory.lock():
            version, read_time = self._begin_read()
            return version, read_time, self.memory.model(version).copy(), None

    def _read_torn(self) -> tuple[int, float, np.ndarray, np.ndarray | None]:
        with self.memory.lock():  # for the row's sake: the model is read after it
            version, read_time = self._begin_read()
        return version, read_time, self.memory.model(0).copy(), None

    def _read_blocks(self) -> tuple[int, float, np.ndarray, np.ndarray | None]:
        memory = self.memory
        x, versions = np.empty(memory.layout.dimension), np.empty(len(memory.bounds), dtype=np.int64)
        last = len(memory.bounds) - 1
        for block in range(last, -1, -1):
            torn = True
            while torn:
                with memory.lock(UPDATE + 1 + block):
                    torn = memory.block_version[block] < 0
                    if not torn:
                        if block == last:  # a writer finishes with this block, so version and time agree here
                            version, read_time = self._begin_read()
                        x[memory.bounds[block]] = memory.models[0, memory.bounds[block]]
                        versions[block] = memory.block_version[block]
                if torn:  # its writer was killed
                    with memory.lock():
                        memory.finish()
        return version, read_time, x, versions

    # --- updating ---

    def _update(self, row: tuple[Any, ...], payload: Any, versions: np.ndarray | None) -> None:
        """Apply a gradient, or discard it; the right to update is ours."""
        memory, job = self.memory, self.job
        arrived = time.monotonic()
        if memory.counter[OVER] != RUNNING:
            return
        memory.finish()
        if arrived > self.end:
            memory.counter[OVER] = DONE
            return
        version = memory.version
        address = Row(job.seed, job.replica, self.worker, row[1], version, version - row[2])
        if address.staleness > job.limit:
            self._write((*row, arrived, arrived, version, 0))
            memory.counter[ROWS] += 1
            return
        x = memory.model(version)
        with np.errstate(over="ignore", invalid="ignore"):
            state = job.method.apply(job.problem, State(x, memory.kept(version)), [payload], [address])
            finite = math.isfinite(np.vdot(state.x, state.x))
        settled = (*row[:3], version, APPLIED, *row[5:], arrived)
        after = (version + 1, checksum(state.x))
        if versions is not None:
            memory.reads[memory.counter[ROWS]] = versions
        if not finite:  # as in a replay, the model stays at its last finite version
            self._write((*settled, time.monotonic(), *after))
            memory.counter[OVER] = DIVERGED
            memory.counter[ROWS] += 1
            return
        memory.keep(version + 1, state.extra)
        if versions is None:
            memory.model(version + 1)[:] = state.x
            self._write((*settled, time.monotonic(), *after))
            memory.counter[ROWS] += 1
        else:
            memory.models[1] = state.x
            self._write((*settled, math.nan, *after))
            memory.counter[UNFINISHED] = memory.counter[ROWS] + 1
            memory.finish()
        if version + 1 == job.last_update:
            memory.counter[OVER] = DONE

    def _write(self, row: tuple[Any, ...]) -> None:
        """Write a row behind the last one; it does not count yet."""
        rows = int(self.memory.counter[ROWS])
        self.memory.log[rows] = row
        if rows + 1 == self.memory.layout.rows:
            self.memory.counter[OVER] = FULL

    def _add(self, row: tuple[Any, ...], payload: Any) -> None:
        """Move the model without a lock, then take a number for the update."""
        memory, job = self.memory, self.job
        x = memory.models[0]
        before = x.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            state = job.method.apply(
                job.problem, State(before), [payload], [Row(job.seed, job.replica, self.worker, row[1], memory.version)]
            )
            x += state.x - before
            finite = math.isfinite(np.vdot(x, x))
        with memory.lock():
            now = time.monotonic()
            if memory.counter[OVER] == RUNNING:
                version = memory.version
                self._write((*row[:3], version, APPLIED, *row[5:], row[7], now, version + 1, 0))
                memory.counter[ROWS] += 1
                if not finite:
                    memory.counter[OVER] = DIVERGED
                elif version + 1 == job.last_update or now > self.end:
                    memory.counter[OVER] = DONE
