"""The process that starts workers in shared memory: it supplies their service times, and notices when one dies."""

from __future__ import annotations

import contextlib
import math
import pickle
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from asyncsim.checksums import checksum
from asyncsim.scenario import SECONDS, Scenario
from asyncsim.sources.recorded import interrupts
from asyncsim.sources.recorded.log import FIELDS, Log
from asyncsim.sources.recorded.memory import (
    AHEAD,
    DONE,
    FULL,
    MOST_BLOCK_VERSIONS,
    MOST_ROWS,
    OVER,
    ROWS,
    RUNNING,
    SPARE,
    Layout,
    Memory,
)
from asyncsim.sources.recorded.messages import Failed, Ready, SharedJob
from asyncsim.sources.recorded.processes import Processes
from asyncsim.sources.recorded.replica import Outcome, make_job, outcome_of, service_times
from asyncsim.sources.recorded.server import MOST_RESTARTS, WorkerLost
from asyncsim.trace import APPLIED, LOST

#: Seconds between two looks at the clock, the supply of service times, and the number of updates.
GLANCE = 0.02
#: Blocks where the scenario does not say how many.
BLOCKS = 8


class Monitor:
    """One replica of a run in shared memory."""

    def __init__(self, memory: Memory, job: SharedJob, scenario: Scenario, replica: int):
        self.memory, self.job, self.settings = memory, job, scenario.run
        self.processes = Processes(
            "shared_memory",
            job,
            arguments=[str(memory.file)],
            inherit=[memory.file],
            pin=scenario.run.pin,
        )
        self.service_time = None if job.wait == "none" else service_times(scenario, replica)
        self.log = Log(replica)
        self.lost: list[tuple[Any, ...]] = []
        self.deaths = [0] * job.workers
        self.draws_at_death = [-1] * job.workers

    def run(self, progress: Callable[[int], Any] | None) -> None:
        """Start the workers, and watch them to the end of the run."""
        self.processes.start_all(self.job.workers)
        self._supply()
        self.log.begin = time.monotonic()
        for connection in self.processes.connections.values():
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(self.log.begin)
        seen = 0
        while self.memory.counter[OVER] == RUNNING:
            interrupts.check()
            owner = {connection: worker for worker, connection in self.processes.connections.items()}
            for heard in wait(list(owner), GLANCE):
                assert isinstance(heard, Connection)
                self._hear(owner[heard], heard)
            self._supply()
            if progress is not None:
                version = self.memory.version
                progress(version - seen)
                seen = version
            if time.monotonic() - self.log.begin > self.job.seconds:
                break
        if self.memory.counter[OVER] == FULL:
            raise WorkerLost(f"there is room for {self.memory.layout.rows:,} gradients; end the run before")

    def _supply(self) -> None:
        """Keep the service times of the next draws ready for every worker."""
        if self.service_time is None:
            return
        for worker, doing in enumerate(self.memory.doing):
            for draw in range(int(doing["supplied"]), int(doing["draw"]) + AHEAD):
                self.memory.durations[worker, draw % AHEAD] = self.service_time(worker, draw)
                doing["supplied"] = draw + 1

    def _hear(self, worker: int, connection: Connection) -> None:
        """Take what a worker says: ready again, failed, or nothing any more."""
        try:
            message = connection.recv()
        except (EOFError, OSError):
            if self.memory.counter[OVER] == RUNNING:
                self._died(worker, connection)
            return
        if isinstance(message, Failed):
            draw = int(self.memory.doing[worker]["draw"])
            raise WorkerLost(f"worker {worker} failed at its draw {draw}:\n{message.traceback}")
        if isinstance(message, Ready):  # again, after its death
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(self.log.begin)

    def _died(self, worker: int, connection: Connection) -> None:
        """Settle what a dead worker had under way, and go on as `on_worker_death` says."""
        connection.close()
        del self.processes.connections[worker]
        reason = self.processes.reason(worker)
        doing = self.memory.doing[worker]
        with self.memory.lock():
            self.memory.finish()
            now = time.monotonic()
            draw = int(doing["draw"])
            rows = self.memory.log[: self.memory.counter[ROWS]]
            settled = bool(((rows["worker"] == worker) & (rows["draw"] == draw)).any())
            if not settled and doing["reading"] == draw:
                read = int(doing["read_version"]), float(doing["read_time"])
                self.lost.append((worker, draw, read[0], -1, LOST, read[1], math.nan, math.nan, math.nan, now))
                settled = True
            doing["draw"] = draw + settled
            why = self.memory.why_over(self.job.last_update)
            if why != RUNNING:  # it died before it could say so
                self.memory.counter[OVER] = why
                return
        self.log.events.append((now, worker, "crash"))
        self.deaths[worker] = 1 + self.deaths[worker] * (draw <= self.draws_at_death[worker] + 1)
        self.draws_at_death[worker] = draw
        if self.settings.on_worker_death == "stop":
            raise WorkerLost(f"worker {worker} died ({reason}); run.on_worker_death = 'stop'")
        if self.settings.on_worker_death == "restart":
            if self.deaths[worker] > MOST_RESTARTS:
                raise WorkerLost(f"worker {worker} died {self.deaths[worker]} times in a row ({reason})")
            self.processes.start(worker)
            self.log.events.append((time.monotonic(), worker, "return"))
        elif not self.processes.connections:
            raise WorkerLost(f"worker {worker} died ({reason}), and no other is left")

    def collect(self) -> None:
        """Take the rows out of the shared memory, once no worker lives."""
        self.memory.finish()
        rows = self.memory.log[: self.memory.counter[ROWS]]
        self.log.rows = [*rows[list(FIELDS)].tolist(), *self.lost]
        applied = rows[rows["status"] == APPLIED]
        if self.settings.consistency != "hogwild":
            self.log.checksums += applied["checksum"].tolist()
        blocks = self.memory.layout.blocks
        if blocks:
            versions = [*self.memory.reads[: rows.size].tolist(), *([row[2]] * blocks for row in self.lost)]
            self.log.block_versions = np.array(versions, dtype=np.int64).reshape(-1, blocks)


def run_replica(scenario: Scenario, replica: int, progress: Callable[[int], Any] | None) -> Outcome:
    """Run a replica in shared memory."""
    job, settings = make_job(scenario, replica), scenario.run
    state = job.method.init(job.problem, job.problem.initial(job.seed, job.replica), job.workers)[0]
    blocks = min(settings.blocks or BLOCKS, state.x.size) if settings.consistency == "block" else 0
    size = 0 if state.extra is None else len(pickle.dumps(state.extra, protocol=5)) + SPARE
    rows = min(MOST_ROWS, MOST_BLOCK_VERSIONS // max(blocks, 1))
    layout = Layout(state.x.size, job.workers, blocks, size, rows, 2 if settings.consistency == "locked" else 1)
    assert scenario.cluster is not None
    shared = SharedJob(
        **vars(job),
        layout=layout,
        consistency=settings.consistency,
        limit=scenario.policy.staleness_limit,
        last_update=math.inf if settings.updates is None else settings.updates,
        seconds=math.inf if settings.time is None else settings.time * SECONDS[scenario.cluster.time_unit],
    )
    memory = Memory(layout)
    try:
        memory.models[0] = state.x
        memory.keep(0, state.extra)
        memory.doing["reading"] = -1
        monitor = Monitor(memory, shared, scenario, replica)
        monitor.log.checksums.append(checksum(state.x))

        def watch() -> None:
            try:
                monitor.run(progress)
            finally:
                memory.counter[OVER] = memory.counter[OVER] or DONE
                try:
                    monitor.processes.end()
                finally:
                    monitor.collect()

        ended, interrupted = outcome_of(watch)
        x = np.array(job.method.model(job.problem, memory.model(memory.version)))
    finally:
        memory.close()
    return Outcome(monitor.log, x, ended, interrupted)
