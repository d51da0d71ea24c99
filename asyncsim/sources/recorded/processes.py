"""Worker processes: fresh interpreters, children of this process, that end with it whatever happens.

They are started with `subprocess`, not with `multiprocessing`, which would run the user's own script again in each.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection, Pipe

from asyncsim.sources.recorded.messages import Failed, Job

#: Seconds that a worker has to begin in, and to end in when it is told to.
BEGINNING, FAREWELL = 120.0, 2.0

#: One thread for linear algebra in each worker, whichever library numpy was built with.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)


class BadStart(RuntimeError):
    """A worker that did not come up; the message says why."""


def pack(job: Job) -> bytes:
    """Return a job as bytes, with what its problem has read or computed so far, so that no worker does that again."""
    cached = dict(vars(job.problem)) if hasattr(job.problem, "__dict__") else {}
    return pickle.dumps((job, cached), protocol=5)


def unpack(data: bytes) -> Job:
    """Return the job that `pack` wrote."""
    job: Job
    job, cached = pickle.loads(data)
    if cached:
        job.problem.__dict__.update(cached)
    return job


def environment() -> dict[str, str]:
    """Return a worker's environment: it finds the modules that this process finds, and computes with one thread."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {**os.environ, **ONE_THREAD, "PYTHONPATH": path}


class Processes:
    """The worker processes of a run, each with a two-way connection of its own.

    `arguments` and the descriptors `inherit` are handed down to each; with `pin`, worker w runs on core w modulo their
    number.
    """

    def __init__(
        self, backend: str, job: Job, *, arguments: Iterable[str] = (), inherit: Iterable[int] = (), pin: bool = False
    ):
        self.backend, self.data, self.pin = backend, pack(job), pin
        self.arguments, self.inherit = list(arguments), list(inherit)
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.connections: dict[int, Connection] = {}

    def start(self, worker: int) -> None:
        """Start a worker, or start it again; it says `Ready` on its connection when it can begin."""
        ours, theirs = Pipe()
        program = [sys.executable, "-m", "asyncsim.sources.recorded.process"]
        numbers = [str(number) for number in (theirs.fileno(), worker, os.getpid())]
        self.processes[worker] = subprocess.Popen(
            [*program, self.backend, *numbers, *self.arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno(), *self.inherit],
            env=environment(),
        )
        theirs.close()
        if self.pin and hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(self.processes[worker].pid, {cores[worker % len(cores)]})
        self.connections[worker] = ours
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            ours.send_bytes(self.data)

    def start_all(self, workers: int) -> None:
        """Start workers 0, 1, … and wait until each is ready; one that dies is found out when it is listened to."""
        for worker in range(workers):
            self.start(worker)
        end = time.monotonic() + BEGINNING
        for worker in range(workers):
            if not self.connections[worker].poll(max(end - time.monotonic(), 0.0)):
                raise BadStart(f"worker {worker} was not ready after {BEGINNING:g} s")
            with contextlib.suppress(EOFError, OSError):
                answer = self.connections[worker].recv()
                if isinstance(answer, Failed):
                    raise BadStart(f"worker {worker} could not start:\n{answer.traceback}")

    def reason(self, worker: int) -> str:
        """Return how a dead worker ended, in words."""
        try:
            code = self.processes[worker].wait(FAREWELL)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        return f"ended with exit code {code}" if code >= 0 else f"killed by signal {-code}"

    def end(self) -> None:
        """End every worker: closed connections tell them to, and signals make them."""
        for connection in self.connections.values():
            connection.close()
        end = time.monotonic() + FAREWELL
        for process in self.processes.values():
            try:
                process.wait(max(end - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
