"""Worker processes: fresh interpreters, children of this process, that end with it whatever happens.

They are started with `subprocess`, not with `multiprocessing`, which would run the user's own script again in each.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection, Pipe, wait
from types import FunctionType
from typing import Any

from asyncsim.sources.recorded import interrupts
from asyncsim.sources.recorded.messages import Failed, Job

#: Seconds that a worker has to begin in, and to end in when it is told to.
BEGINNING, FAREWELL = 120.0, 1.0

#: One thread for linear algebra in each worker, whichever library numpy was built with.
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)


class BadStart(RuntimeError):
    """A worker that did not come up; the message says why.

    It ends the run whatever `on_worker_death` says: the next one, or the same again, would hardly fare better.
    """


def could_not_start(worker: int, why: str) -> BadStart:
    """Return the error for a worker that failed before it was ready."""
    return BadStart(f"worker {worker} could not start, which run.on_worker_death is not about:\n{why}")


def nameless_file() -> int:
    """Return the descriptor of a file in memory that no folder lists."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("asyncsim")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class _ForOthers(pickle.Pickler):
    """Refuses what only the process that has defined it can find again."""

    def reducer_override(self, what: Any) -> Any:
        """Look at a class or function before it is written as a module and a name in it."""
        if isinstance(what, type | FunctionType):
            kind = "class" if isinstance(what, type) else "function"
            if what.__module__ == "__main__":
                raise _Unreachable(f"{kind} '{what.__qualname__}' is defined in the script that runs, or in a notebook")
            if "<" in what.__qualname__:  # <locals> or <lambda>
                raise _Unreachable(f"{kind} '{what.__qualname__}' of {what.__module__} is defined within a function")
        return NotImplemented


class _Unreachable(Exception):
    """Something that no other process can import; the message says what and where it is."""


def for_others(what: Any) -> bytes:
    """Return an object as bytes for processes of our own; raise `ScenarioError` where they cannot have it."""
    from asyncsim.documents import ScenarioError

    file = io.BytesIO()
    try:
        _ForOthers(file, protocol=5).dump(what)
    except _Unreachable as error:
        raise ScenarioError(
            f"{error}, where worker processes cannot import it from: move it into a module beside the script or the "
            "scenario and import it from there, or use backend = 'threads'"
        ) from None
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ScenarioError(
            f"the problem and the method cannot be handed to worker processes: {error}; use backend = 'threads', or "
            "leave out of their state (__getstate__) what a process cannot hand over"
        ) from error
    return file.getvalue()


def with_cache(job: Job) -> tuple[Job, dict[str, Any]]:
    """Return a job, and what its problem has read or computed so far, so that no worker does that again."""
    return job, dict(vars(job.problem)) if hasattr(job.problem, "__dict__") else {}


def unpack(data: bytes | mmap.mmap) -> Job:
    """Return the job that is written there `with_cache`."""
    job: Job
    job, cached = pickle.loads(data)
    if cached:
        job.problem.__dict__.update(cached)
    return job


def environment() -> dict[str, str]:
    """Return a worker's environment: it finds the modules that this process finds, and computes with one thread."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return {**os.environ, **ONE_THREAD, "PYTHONPATH": path}


def start_process(module: str, *arguments: Any, **settings: Any) -> subprocess.Popen[bytes]:
    """Start a module of this package in a process that Ctrl-C does not reach."""
    command = [sys.executable, "-m", f"asyncsim.sources.recorded.{module}", *map(str, arguments)]
    with interrupts.kept_from_children():
        return subprocess.Popen(command, env=environment(), **settings)


def wait_until(ready: Any, name: str) -> None:
    """Wait until there is something to read; raise `BadStart` if that takes too long."""
    end = time.monotonic() + BEGINNING
    while not wait([ready], interrupts.LOOK_EVERY):
        interrupts.check()
        if time.monotonic() > end:
            raise BadStart(f"{name} was not ready after {BEGINNING:g} s")


class Processes:
    """The worker processes of a run, each with a two-way connection of its own.

    `arguments` and the descriptors `inherit` are handed down to each; with `pin`, worker w runs on core w modulo their
    number. The job lies in a file, so that starting a worker never waits for one that does not read.
    """

    def __init__(
        self, backend: str, job: Job, *, arguments: Iterable[str] = (), inherit: Iterable[int] = (), pin: bool = False
    ):
        self.backend, self.pin, self.stops = backend, pin, job.on_death == "stop"
        self.arguments, self.inherit = list(arguments), list(inherit)
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.connections: dict[int, Connection] = {}
        data = for_others(with_cache(job))
        self.job = nameless_file()
        with os.fdopen(self.job, "wb", closefd=False) as file:
            file.write(data)

    def start(self, worker: int) -> None:
        """Start a worker, or start it again; it says `Ready` on its connection when it can begin."""
        ours, theirs = Pipe()
        try:
            self.processes[worker] = start_process(
                "process",
                *(self.backend, theirs.fileno(), self.job, worker, os.getpid(), *self.arguments),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), self.job, *self.inherit],
            )
        except OSError as error:
            ours.close()
            raise BadStart(f"worker {worker} could not be started: {error}") from None
        finally:
            theirs.close()
        self.connections[worker] = ours
        if self.pin and hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(self.processes[worker].pid, {cores[worker % len(cores)]})

    def start_all(self, workers: int) -> None:
        """Start workers 0, 1, … and wait until each is ready; one that dies is found out when it is listened to."""
        for worker in range(workers):
            self.start(worker)
        waiting = {connection: worker for worker, connection in self.connections.items()}
        end = time.monotonic() + BEGINNING
        while waiting:
            for connection in wait(list(waiting), interrupts.LOOK_EVERY):
                assert isinstance(connection, Connection)
                self._heard_first(waiting.pop(connection), connection)
            interrupts.check()
            if time.monotonic() > end and waiting:
                raise BadStart(f"worker {min(waiting.values())} was not ready after {BEGINNING:g} s")

    def _heard_first(self, worker: int, connection: Connection) -> None:
        try:
            answer = connection.recv()
        except (EOFError, OSError):
            if self.stops:
                raise BadStart(f"worker {worker} died ({self.reason(worker)}); run.on_worker_death = 'stop'") from None
            return
        if isinstance(answer, Failed):
            raise could_not_start(worker, answer.traceback)

    def reason(self, worker: int) -> str:
        """Return how a worker ended that does not answer any more, in words."""
        process = self.processes[worker]
        try:
            code = process.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return "it closed its connection"
        return f"ended with exit code {code}" if code >= 0 else f"killed by signal {-code}"

    def end(self) -> None:
        """End every worker: closed connections tell them to, and signals make them."""
        for connection in self.connections.values():
            connection.close()
        end = time.monotonic() + FAREWELL
        try:
            for process in self.processes.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(end - time.monotonic(), 0.0))
        finally:
            for process in self.processes.values():
                process.kill()
                process.wait()
            os.close(self.job)
