"""A worker: computes what its method sends for each model that it gets.

It imports numpy and what its method and problem need, no more, since every process of a run starts here.
"""

from __future__ import annotations

import select
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any, Protocol

from asyncsim.sources.recorded.messages import Cancelled, Failed, Gradient, Job, Model
from asyncsim.trace import Row


class Channel(Protocol):
    """A worker's way to and from the server."""

    def receive(self, timeout: float | None = None) -> tuple[float, Model | None] | None:
        """Return (time of arrival, model); the model is None at the end of the run.

        None if nothing comes within `timeout` seconds; without one, wait for as long as it takes.
        """

    def send(self, message: Any) -> None:
        """Send a message to the server."""


def warm_up(job: Job) -> None:
    """Compute one gradient for nothing, so that what is imported or read on first use is there when the run begins."""
    x = job.problem.initial(job.seed, job.replica)
    memory = job.method.init(job.problem, x, job.workers)[1][0]
    job.method.message(job.problem, x, memory, Row(job.seed, job.replica, 0, 0))


def work(channel: Channel, job: Job, worker: int) -> None:
    """Compute until the run ends; an exception is sent to the server with its traceback."""
    draw = -1
    try:
        method, problem = job.method, job.problem
        memory = method.init(problem, problem.initial(job.seed, job.replica), job.workers)[1][worker]
        arrival = channel.receive()
        while arrival is not None and arrival[1] is not None:
            start, model = max(arrival[0], time.monotonic()), arrival[1]
            draw = model.draw
            payload, kept = method.message(problem, model.x, memory, Row(job.seed, job.replica, worker, draw))
            arrival = _rest(channel, start + model.seconds, job.wait)
            if arrival is None:
                memory = kept
                channel.send(Gradient(worker, draw, start, time.monotonic(), payload))
                arrival = channel.receive()
            elif arrival[1] is not None:
                channel.send(Cancelled(worker, draw, start, max(arrival[0], start)))
    except EOFError:
        return  # the server is gone
    except BaseException:  # also where a gradient calls sys.exit: a thread would end without a word
        channel.send(Failed(worker, draw, traceback.format_exc()))


def something_to_read(connection: Connection, timeout: float) -> bool:
    """Wait `timeout` seconds at most; say whether a message has come.

    `Connection.poll` waits for whole milliseconds, the next larger number of them, which is half a millisecond too
    long on average. `select` takes descriptors below 1024 only; a worker's has a low number.
    """
    return bool(select.select([connection], [], [], timeout)[0])


def _rest(channel: Channel, until: float, wait: str) -> tuple[float, Model | None] | None:
    """Spend what is left of a service time, unless something comes; return what came."""
    if wait == "spin":
        arrival = channel.receive(0.0)
        while arrival is None and time.monotonic() < until:
            arrival = channel.receive(0.0)
        return arrival
    left = until - time.monotonic() if wait == "sleep" else 0.0
    return channel.receive(max(left, 0.0))
