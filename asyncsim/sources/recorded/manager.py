"""Workers as processes, and all messages through queues in a process of their own, reached through proxies.

This is how `multiprocessing.Manager` shares things. Every message crosses two more connections than with
`asyncsim.sources.recorded.queue`, which makes it the slowest way; it is here to be measured.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.managers import BaseManager, BaseProxy
from queue import Empty, Queue
from typing import Any

from asyncsim.executors.worker import die_with
from asyncsim.sources.recorded.messages import Died, Job, Model
from asyncsim.sources.recorded.processes import BadStart, Processes, start_process, wait_until
from asyncsim.sources.recorded.server import WorkerLost

#: The longest that a proxy is waited for at once, so that somebody who is gone is noticed.
SPELL = 0.05
#: Seconds between two looks at whether a worker is gone.
LISTENS_EVERY = 0.2


class _Manager(BaseManager):
    """Gives out queues by name."""


_queues: dict[int, Queue[Any]] = {}


def _queue(name: int) -> Queue[Any]:
    return _queues.setdefault(name, Queue())


_Manager.register("queue", _queue, exposed=("get", "put", "get_nowait"))

#: The name of the server's queue; a worker's is its number.
SERVER = -1

GONE = "the manager's process is gone"


@contextlib.contextmanager
def _present() -> Iterator[None]:
    """Say so where the manager's process is gone."""
    try:
        yield
    except (EOFError, OSError):
        raise WorkerLost(GONE) from None


class Manager:
    """A transport whose messages lie in a manager's queues."""

    def __init__(self, job: Job, *, pin: bool = False):
        self.job, self.pin = job, pin
        self.generation = 0
        self.listens_at = 0.0

    def __enter__(self) -> Manager:
        """Start the manager, then the workers."""
        key, self.address = os.urandom(16).hex(), _address()
        self.processes = Processes("manager", self.job, arguments=[self.address, key, "0"], pin=self.pin)
        pipe = subprocess.PIPE
        self.manager = start_process("manager", self.address, os.getpid(), stdin=pipe, stdout=pipe)
        try:
            assert self.manager.stdin is not None
            assert self.manager.stdout is not None
            with _present():
                self.manager.stdin.write(key.encode() + b"\n")
                self.manager.stdin.flush()
                wait_until(self.manager.stdout, "the manager's process")
                if not self.manager.stdout.readline():
                    raise BadStart("the manager's process did not start")
                self.queues = _connected(self.address, key)
                self.inbox = self.queues.queue(SERVER)
                self.outboxes = [self.queues.queue(worker) for worker in range(self.job.workers)]
            self.processes.start_all(self.job.workers)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        """End the workers, then the manager."""
        with contextlib.suppress(EOFError, OSError):
            for outbox in getattr(self, "outboxes", ()):
                outbox.put(None)
        try:
            self.processes.end()
        finally:
            self.manager.kill()
            self.manager.wait()
            for stream in (self.manager.stdin, self.manager.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            with contextlib.suppress(OSError, ValueError):  # there is no such file on Linux
                os.unlink(_socket(self.address))
            # The library keeps what its proxies shared for every address that they ever had.
            getattr(BaseProxy, "_address_to_local", {}).pop(_socket(self.address), None)

    def send(self, worker: int, model: Model) -> None:
        """Send a model."""
        with _present():
            self.outboxes[worker].put(model)

    def receive(self, timeout: float) -> Any:
        """Return the next message, a `Died`, or None."""
        now = time.monotonic()
        if now > self.listens_at:
            self.listens_at = now + LISTENS_EVERY
            message = self._listen()
            if message is not None:
                return message
        with _present(), contextlib.suppress(Empty):
            return self.inbox.get(True, timeout)
        return None

    def _listen(self) -> Any:
        """Return what a worker's own connection says: that it is ready again, has failed, or is gone."""
        owner = {connection: worker for worker, connection in self.processes.connections.items()}
        for connection in wait(list(owner), 0.0):
            assert isinstance(connection, Connection)
            worker = owner[connection]
            try:
                return connection.recv()
            except (EOFError, OSError):
                connection.close()
                del self.processes.connections[worker]
                reason = self.processes.reason(worker)
                if self.manager.poll() is not None:  # and its workers end when they notice
                    raise WorkerLost(GONE) from None
                return Died(worker, reason)
        return None

    def restart(self, worker: int) -> None:
        """Start a worker that has died anew, with a new queue: something may still wait at the end of the old one."""
        self.generation += 1
        self.processes.arguments[-1] = str(self.generation)
        with _present():
            self.outboxes[worker] = self.queues.queue(worker + self.generation * self.job.workers)
        self.processes.start(worker)


class Proxies:
    """A worker's channel."""

    def __init__(self, address: str, key: str, generation: str, *, worker: int, workers: int):
        queues = _connected(address, key)
        self.inbox, self.outbox = queues.queue(worker + int(generation) * workers), queues.queue(SERVER)

    def receive(self, timeout: float | None = None) -> tuple[float, Model | None] | None:
        """Return (time of arrival, model), or None if nothing comes in time."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            left = end - time.monotonic()
            try:
                model = self.inbox.get(True, min(left, SPELL)) if left > 0 else self.inbox.get_nowait()
                return time.monotonic(), model
            except Empty:
                if left <= 0:
                    return None

    def send(self, message: Any) -> None:
        """Send a message to the server."""
        self.outbox.put(message)


def _address() -> str:
    """Return a name for a socket; on Linux one that is not in any folder."""
    name = f"asyncsim-{os.getpid()}-{time.monotonic_ns()}"
    return "@" + name if sys.platform == "linux" else os.path.join(tempfile.gettempdir(), name)


def _socket(address: str) -> str:
    return address.replace("@", "\0", 1) if address.startswith("@") else address


def _connected(address: str, key: str) -> Any:
    manager = _Manager(_socket(address), bytes.fromhex(key))
    manager.connect()
    return manager


if __name__ == "__main__":
    die_with(int(sys.argv[2]))
    _server = _Manager(_socket(sys.argv[1]), bytes.fromhex(sys.stdin.readline().strip())).get_server()
    print("ready", flush=True)
    _server.serve_forever()
