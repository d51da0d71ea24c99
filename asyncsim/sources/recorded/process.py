"""A worker process, started by `asyncsim.sources.recorded.processes` with

    python -m asyncsim.sources.recorded.process BACKEND CONNECTION JOB WORKER PARENT ARGUMENTS…

CONNECTION is the descriptor of its connection to the process PARENT, and JOB that of the file where its job lies.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import sys
import time
import traceback
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from asyncsim.allocator import keep_freed_memory
from asyncsim.executors.worker import die_with
from asyncsim.sources.recorded.messages import Failed, Model, Ready, SharedJob
from asyncsim.sources.recorded.processes import unpack
from asyncsim.sources.recorded.worker import something_to_read, warm_up, work


class Pipe:
    """A worker's channel. Where models may come while it computes, a thread of its own takes them in.

    Otherwise server and worker could both be sending, each waiting for the other to read.
    """

    def __init__(self, connection: Connection, *, listens: bool):
        self.connection = connection
        self.inbox: SimpleQueue[tuple[float, Model | None]] | None = None
        if listens:
            self.inbox = SimpleQueue()
            Thread(target=self._listen, args=(self.inbox,), daemon=True).start()

    def _listen(self, inbox: SimpleQueue[tuple[float, Model | None]]) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                inbox.put((time.monotonic(), self.connection.recv()))
        inbox.put((time.monotonic(), None))

    def receive(self, timeout: float | None = None) -> tuple[float, Model | None] | None:
        """Return (time of arrival, model), or None if nothing comes in time."""
        if self.inbox is not None:
            try:
                return self.inbox.get(timeout=timeout) if timeout != 0.0 else self.inbox.get_nowait()
            except Empty:
                return None
        if timeout is not None and not something_to_read(self.connection, timeout):
            return None
        try:
            model = self.connection.recv()
        except (EOFError, OSError):
            model = None
        return time.monotonic(), model

    def send(self, message: Any) -> None:
        """Send a message to the server."""
        try:
            self.connection.send(message)
        except OSError:
            raise EOFError from None


def main() -> None:
    """Be a worker until the run is over."""
    backend, arguments = sys.argv[1], sys.argv[6:]
    descriptor, file, worker, parent = (int(argument) for argument in sys.argv[2:6])
    die_with(parent)
    keep_freed_memory()
    faulthandler.enable()
    connection = Connection(os.dup(descriptor))  # a low number; whom the user's own code starts does not keep it open
    os.close(descriptor)
    try:
        with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as data:
            job = unpack(data)
        os.close(file)
        warm_up(job)
        if backend == "queue":
            connection.send(Ready(worker, os.getpid()))
            work(Pipe(connection, listens="listen" in arguments), job, worker)
        elif backend == "manager":
            from asyncsim.sources.recorded.manager import Proxies

            channel = Proxies(*arguments, worker=worker, workers=job.workers)
            connection.send(Ready(worker, os.getpid()))
            work(channel, job, worker)
        else:
            from asyncsim.sources.recorded.memory import Memory
            from asyncsim.sources.recorded.shared_memory import SharedWorker

            assert isinstance(job, SharedJob)
            memory = Memory(job.layout, int(arguments[0]))
            connection.send(Ready(worker, os.getpid()))
            SharedWorker(memory, job, worker, connection).run(connection.recv())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone
    except BaseException:  # also where a gradient calls sys.exit
        with contextlib.suppress(OSError):
            connection.send(Failed(worker, -1, traceback.format_exc()))


if __name__ == "__main__":
    main()
