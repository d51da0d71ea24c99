"""Workers as threads of this process."""

from __future__ import annotations

import time
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from asyncsim.sources.recorded.messages import Job, Model
from asyncsim.sources.recorded.worker import work

#: Seconds that a thread has to finish its last gradient in; nothing can stop one that does not.
FAREWELL = 10.0


class _Queues:
    """A worker's channel: a queue of its own, and one to the server for all."""

    def __init__(self, outbox: SimpleQueue[Any]):
        self.inbox: SimpleQueue[tuple[float, Model | None]] = SimpleQueue()
        self.outbox = outbox

    def receive(self, timeout: float | None = None) -> tuple[float, Model | None] | None:
        """Return (time of arrival, model), or None if nothing comes in time."""
        try:
            return self.inbox.get_nowait() if timeout == 0.0 else self.inbox.get(timeout=timeout)
        except Empty:
            return None

    def send(self, message: Any) -> None:
        """Send a message to the server."""
        self.outbox.put(message)


class Threads:
    """A transport whose workers are threads; the models that it hands over are the server's own arrays."""

    def __init__(self, job: Job):
        self.outbox: SimpleQueue[Any] = SimpleQueue()
        self.channels = [_Queues(self.outbox) for _ in range(job.workers)]
        self.threads = [
            Thread(target=work, args=(channel, job, worker), name=f"worker {worker}", daemon=True)
            for worker, channel in enumerate(self.channels)
        ]

    def __enter__(self) -> Threads:
        """Start the workers."""
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        """Tell the workers that the run is over, and wait for them."""
        for channel in self.channels:
            channel.inbox.put((time.monotonic(), None))
        end = time.monotonic() + FAREWELL
        for thread in self.threads:
            thread.join(max(end - time.monotonic(), 0.0))

    def send(self, worker: int, model: Model) -> None:
        """Send a model."""
        self.channels[worker].inbox.put((time.monotonic(), model))

    def receive(self, timeout: float) -> Any:
        """Return the next message, or None."""
        try:
            return self.outbox.get(timeout=timeout)
        except Empty:
            return None

    def restart(self, worker: int) -> None:
        """Never called: a thread does not die but by an exception, which ends the run."""
        raise NotImplementedError
