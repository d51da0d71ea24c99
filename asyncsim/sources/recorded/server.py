"""The parameter server of a real run: it follows the policy as docs/trace.md describes it, on gradients that come.

It does the arithmetic and keeps the rows of the trace; how messages travel is the transport's business.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from asyncsim.checksums import checksum
from asyncsim.methods.base import State
from asyncsim.sources.recorded import interrupts
from asyncsim.sources.recorded.log import Log
from asyncsim.sources.recorded.messages import Cancelled, Died, Failed, Gradient, Job, Model, Ready
from asyncsim.trace import APPLIED, CANCELLED, DISCARDED, LOST, Row

#: A worker that dies so often without one gradient in between is not started again.
MOST_RESTARTS = 3


class Transport(Protocol):
    """How messages travel between the server and its workers."""

    def send(self, worker: int, model: Model) -> None:
        """Send a model; one for a worker that is gone is dropped."""

    def receive(self, timeout: float) -> Any:
        """Return the next message, a `Died`, or None when nothing comes within `timeout` seconds."""

    def restart(self, worker: int) -> None:
        """Start a worker that has died anew; a `Ready` follows."""


class WorkerLost(RuntimeError):
    """The run cannot go on, because of a worker; the message says which and why."""


class Server:
    """One replica of a real run."""

    def __init__(
        self,
        job: Job,
        *,
        policy: Any,
        replies_before: bool = False,
        updates: int | None = None,
        seconds: float = math.inf,
        service_time: Callable[[int, int], float] | None = None,
        stop_when: Callable[[np.ndarray, int], bool] | None = None,
        progress: Callable[[int], Any] | None = None,
    ):
        self.job, self.policy = job, policy
        self.replies_before, self.last_update, self.seconds = replies_before, updates, seconds
        self.service_time, self.stop_when, self.progress = service_time, stop_when, progress
        self.size = policy.gradients_per_update(job.workers)
        self.limit = policy.staleness_limit
        self.state: State = job.method.init(job.problem, job.problem.initial(job.seed, job.replica), job.workers)[0]
        self.version = 0
        self.log = Log(job.replica)
        self.log.checksums.append(checksum(self.state.x))
        self.transport: Transport
        self.next_draw = [0] * job.workers
        self.reads: dict[tuple[int, int], tuple[int, float]] = {}  # (worker, draw) of a model sent: version, time
        self.batch: list[tuple[Gradient, float]] = []
        self.alive = set(range(job.workers))
        self.deaths = [0] * job.workers
        self.at_barrier = False
        self.over = False

    @property
    def model(self) -> np.ndarray:
        """The model of the current version, shape (d,)."""
        return np.asarray(self.job.method.model(self.job.problem, self.state.x))

    def run(self, transport: Transport) -> None:
        """Serve until the run is over; rows settled so far are in `log` whatever happens."""
        self.transport = transport
        self.log.begin = time.monotonic()
        self._send(range(self.job.workers))
        while not self.over:
            interrupts.check()
            message = transport.receive(interrupts.LOOK_EVERY)
            now = time.monotonic()
            if now - self.log.begin > self.seconds:
                return
            if isinstance(message, Gradient | Cancelled) and (message.worker, message.draw) not in self.reads:
                continue  # lost: its worker's death was heard of first
            if isinstance(message, Gradient):
                self._arrived(message, now)
            elif isinstance(message, Cancelled):
                self._cancelled(message)
            elif isinstance(message, Failed):
                raise WorkerLost(f"worker {message.worker} failed at its draw {message.draw}:\n{message.traceback}")
            elif isinstance(message, Died):
                self._died(message, now)
            elif isinstance(message, Ready):  # again, after its death
                self.alive.add(message.worker)
                waits = not self.policy.goes_on and any(g.worker == message.worker for g, _ in self.batch)
                if not self.at_barrier and not waits:  # else it is sent the model with the others
                    self._send([message.worker])

    def _send(self, workers: Iterable[int]) -> None:
        """Send the current version; that is when a version is read."""
        for worker in workers:
            if worker in self.alive:
                draw = self.next_draw[worker]
                self.next_draw[worker] = draw + 1
                seconds = 0.0 if self.service_time is None else self.service_time(worker, draw)
                self.reads[worker, draw] = self.version, time.monotonic()
                self.transport.send(worker, Model(draw, self.version, seconds, self.state.x))

    def _arrived(self, gradient: Gradient, now: float) -> None:
        """Discard a gradient, collect it, or complete an update with it."""
        worker, draw = gradient.worker, gradient.draw
        self.deaths[worker] = 0
        latest = draw == self.next_draw[worker] - 1
        if self.at_barrier:
            self._settle(gradient, DISCARDED, now, now)
            self._pass_barrier()
        elif self.version - self._version(gradient) > self.limit:
            self._settle(gradient, DISCARDED, now, now)
            if latest and self.policy.sends_to != "everyone":
                self._send([worker])
        else:
            self.batch.append((gradient, now))
            if len(self.batch) == self.size:
                self._update()
            elif self.policy.goes_on:
                self._send([worker])

    def _update(self) -> None:
        """Apply the batch, and reply."""
        batch, self.batch = self.batch, []
        gradients = [gradient for gradient, _ in batch]
        contributors = [gradient.worker for gradient in gradients][-1 if self.policy.sends_to == "last" else 0 :]
        if self.replies_before:
            self._send(contributors)
        update = self.version
        rows = [
            Row(self.job.seed, self.job.replica, g.worker, g.draw, update, update - self._version(g)) for g in gradients
        ]
        before = self.state
        with np.errstate(over="ignore", invalid="ignore"):
            self.state = self.job.method.apply(self.job.problem, before, [g.payload for g in gradients], rows)
            finite = math.isfinite(np.vdot(self.state.x, self.state.x))
        now = time.monotonic()
        for gradient, arrived in batch:
            self._settle(gradient, APPLIED, arrived, now)
        self.version += 1
        if not finite:
            self.state, self.over = before, True  # as a replay does
        self.log.checksums.append(checksum(self.state.x))
        if self.progress is not None:
            self.progress(1)
        if self.over:
            return
        if self.stop_when is not None and self.stop_when(self.model, self.version):
            self.log.events.append((now, -1, "stop"))
            self.over = True
        elif self.version == self.last_update or self.state.request == "stop":
            self.over = True
        elif self.state.request == "barrier":
            self.at_barrier = True
            self._pass_barrier()
        elif self.policy.sends_to == "everyone":
            self._send(sorted(self.alive))
        else:
            hopeless = []
            if self.policy.cancels:
                hopeless = [w for w, draw in self._under_way() if self.version - self.reads[w, draw][0] > self.limit]
            self._send([*([] if self.replies_before else contributors), *hopeless])

    def _under_way(self) -> list[tuple[int, int]]:
        """Return the (worker, draw) of the last model sent to each worker, where it has not come back."""
        sent = [(worker, self.next_draw[worker] - 1) for worker in sorted(self.alive)]
        return [address for address in sent if address in self.reads]

    def _pass_barrier(self) -> None:
        """Once nothing is under way, let everybody go on from the current version."""
        if not self._under_way():
            self.at_barrier = False
            self.log.events.append((time.monotonic(), -1, "barrier"))
            self._send(sorted(self.alive))

    def _version(self, gradient: Gradient) -> int:
        return self.reads[gradient.worker, gradient.draw][0]

    def _settle(self, gradient: Gradient, status: int, arrived: float, now: float) -> None:
        version, read = self.reads.pop((gradient.worker, gradient.draw))
        update = self.version if status == APPLIED else -1
        times = read, gradient.start, gradient.done, arrived, now
        self.log.rows.append((gradient.worker, gradient.draw, version, update, status, *times))

    def _cancelled(self, message: Cancelled) -> None:
        version, read = self.reads.pop((message.worker, message.draw))
        times = read, message.start, math.nan, math.nan, message.time
        self.log.rows.append((message.worker, message.draw, version, -1, CANCELLED, *times))

    def _died(self, message: Died, now: float) -> None:
        """Settle what a dead worker had under way, and go on as `job.on_death` says."""
        worker = message.worker
        self.alive.discard(worker)
        self.deaths[worker] += 1
        self.log.events.append((now, worker, "crash"))
        collected = {(gradient.worker, gradient.draw) for gradient, _ in self.batch}
        for (other, draw), (version, read) in sorted(self.reads.items()):
            if other == worker and (worker, draw) not in collected:
                del self.reads[worker, draw]
                self.log.rows.append((worker, draw, version, -1, LOST, read, math.nan, math.nan, math.nan, now))
        if self.job.on_death == "stop":
            raise WorkerLost(f"worker {worker} died ({message.reason}); run.on_worker_death = 'stop'")
        if self.job.on_death == "restart":
            if self.deaths[worker] > MOST_RESTARTS:
                raise WorkerLost(f"worker {worker} died {self.deaths[worker]} times in a row ({message.reason})")
            self.transport.restart(worker)
            self.log.events.append((time.monotonic(), worker, "return"))
        elif not self.alive or (self.size > len(self.alive) and not self.policy.goes_on):
            raise WorkerLost(
                f"worker {worker} died ({message.reason}), and an update takes {self.size} gradients of different "
                f"workers, of which {len(self.alive)} are left"
            )
        if self.at_barrier:
            self._pass_barrier()
