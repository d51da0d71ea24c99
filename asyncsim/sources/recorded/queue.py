"""Workers as processes, the server in this one, and a queue of messages each way between them.

A queue here is what multiprocessing makes its queues of, a connection that carries pickled messages, one for each
worker. One queue for all workers would need a lock, which a worker that is killed takes with it.
"""

from __future__ import annotations

import contextlib
from multiprocessing.connection import Connection, wait
from typing import Any

from asyncsim.sources.recorded.messages import Died, Job, Model
from asyncsim.sources.recorded.processes import Processes


class Queues:
    """A transport whose workers are processes."""

    def __init__(self, job: Job, *, interrupts: bool = False, pin: bool = False):
        """`interrupts` says whether models may come while a worker computes."""
        self.workers = job.workers
        self.processes = Processes("queue", job, arguments=["listen"] * interrupts, pin=pin)
        self.heard: list[Any] = []

    def __enter__(self) -> Queues:
        """Start the workers, and wait until they are ready."""
        try:
            self.processes.start_all(self.workers)
        except BaseException:
            self.processes.end()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        """End the workers."""
        self.processes.end()

    def send(self, worker: int, model: Model) -> None:
        """Send a model; a worker that is gone is found out when its connection is read."""
        connection = self.processes.connections.get(worker)
        if connection is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(model)

    def receive(self, timeout: float) -> Any:
        """Return the next message, a `Died`, or None."""
        if not self.heard:
            owner = {connection: worker for worker, connection in self.processes.connections.items()}
            for connection in wait(list(owner), timeout):
                assert isinstance(connection, Connection)
                self.heard.append(self._read(owner[connection], connection))
        return self.heard.pop(0) if self.heard else None

    def _read(self, worker: int, connection: Connection) -> Any:
        try:
            return connection.recv()
        except (EOFError, OSError):
            connection.close()
            del self.processes.connections[worker]
            return Died(worker, self.processes.reason(worker))

    def restart(self, worker: int) -> None:
        """Start a worker that has died anew."""
        self.processes.start(worker)
