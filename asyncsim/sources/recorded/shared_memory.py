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

from asyncsim.checksums import checksum
from asyncsim.methods.base import State
from asyncsim.sources.recorded.memory import (
    AHEAD,
    DIVERGED,
    DONE,
    OVER,
    ROWS,
    RUNNING,
    UNFINISHED,
    UPDATE,
    Memory,
)
from asyncsim.sources.recorded.messages import SharedJob
from asyncsim.sources.recorded.worker import something_to_read
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
            if left > 0 and something_to_read(self.connection, left):
                return False
        return bool(self.memory.counter[OVER] == RUNNING)

    # --- reading ---

    def _begin_read(self) -> tuple[int, float]:
        """Return (version, time), which belong together only where nobody can finish an update meanwhile."""
        version, now = self.memory.version, time.monotonic()
        self.mine["read_version"], self.mine["read_time"] = version, now
        self.mine["reading"] = self.mine["draw"]  # the last of the three: who is killed before has read nothing
        return version, now

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
        x, versions = np.empty(memory.layout.size), np.empty(len(memory.bounds), dtype=np.int64)
        last = len(memory.bounds) - 1
        for block in range(last, -1, -1):
            torn = True
            while torn:
                with memory.lock(UPDATE + 1 + block):
                    torn = not 0 <= memory.block_version[block] <= (memory.version if block == last else math.inf)
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
        if self._is_over():
            return
        version, place = memory.version, int(memory.counter[ROWS])
        if versions is not None:
            memory.reads[place] = versions
        address = Row(job.seed, job.replica, self.worker, row[1], version, version - row[2])
        if address.staleness > job.limit:
            memory.log[place] = (*row, arrived, arrived, version, 0, RUNNING)
            memory.counter[ROWS] = place + 1
            self._is_over()
            return
        x = memory.model(version)
        with np.errstate(over="ignore", invalid="ignore"):
            state = job.method.apply(job.problem, State(x, memory.kept(version)), [payload], [address])
            finite = math.isfinite(np.vdot(state.x, state.x))
        settled = (*row[:3], version, APPLIED, *row[5:], arrived)
        # As in a replay, the model stays at its last finite version.
        after = (version + finite, checksum(state.x if finite else x), _why_over(state, finite))
        if finite:
            memory.keep(version + 1, state.extra)
            memory.models[(version + 1) % 2 if versions is None else 1] = state.x
        if versions is None or not finite:
            memory.log[place] = (*settled, time.monotonic(), *after)
            memory.counter[ROWS] = place + 1
        else:
            memory.log[place] = (*settled, math.nan, *after)
            memory.counter[UNFINISHED] = place + 1
            memory.finish()
        self._is_over()

    def _is_over(self) -> bool:
        """Say whether the run is over, to the others too."""
        why = self.memory.why_over(self.job.last_update)
        if why != RUNNING:
            self.memory.counter[OVER] = why
        return bool(self.memory.counter[OVER] != RUNNING)

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
            if now > self.end:
                memory.counter[OVER] = DONE
            if memory.counter[OVER] != RUNNING or self._is_over():
                return
            version, place = memory.version, int(memory.counter[ROWS])
            after = (version + finite, 0, _why_over(state, finite))
            memory.log[place] = (*row[:3], version, APPLIED, *row[5:], row[7], now, *after)
            memory.counter[ROWS] = place + 1
            self._is_over()


def _why_over(state: State, finite: bool) -> int:
    """Return why the run is over with an update, `RUNNING` if it goes on."""
    if not finite:
        return DIVERGED
    return DONE if state.request == "stop" else RUNNING
