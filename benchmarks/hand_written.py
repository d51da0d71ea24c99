"""What somebody would write without asyncsim: asynchronous workers at one server, as minimal SimPy loops.

Each simulates one cluster and one policy only, checks nothing and draws from the standard library's generator, the
fastest source of single numbers in Python. Where every worker has its own links it never has more than one message on
them, so crossing a link is no more than waiting for its latency; a shared cable is a resource.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import numpy as np
import simpy

COLUMNS = (
    "worker",
    "draw",
    "read_version",
    "update",
    "status",
    "read_time",
    "start_time",
    "done_time",
    "arrive_time",
    "apply_time",
)
Duration = Callable[[], float]


def exponential(mean: float) -> Duration:
    return partial(random.expovariate, 1.0 / mean)


def constant(value: float) -> Duration:
    return lambda: value


class Cluster:
    """Workers at a server with a queue, links in between; `latency` and `server_time` are None where there are none."""

    def __init__(
        self, workers: int, updates: int, service: Duration, latency: Duration | None, server_time: Duration | None
    ):
        self.service, self.latency, self.server_time = service, latency, server_time
        self.updates = updates
        self.version = 0
        self.rows: list[tuple[Any, ...]] = []
        self.env = simpy.Environment()
        self.server = simpy.Resource(self.env, capacity=1)
        self.end = self.env.event()
        worker = self.instant_worker if latency is None else self.linked_worker
        for me in range(workers):
            self.env.process(worker(me))

    def run(self) -> dict[str, np.ndarray]:
        """Simulate, and return the table."""
        self.env.run(until=self.end)
        return {name: np.array(column) for name, column in zip(COLUMNS, zip(*self.rows, strict=True), strict=True)}

    def linked_worker(self, me: int) -> Generator[simpy.Event, Any, None]:
        env, server, timeout = self.env, self.server, self.env.timeout
        service, latency, server_time = self.service, self.latency, self.server_time
        append = self.rows.append
        draw = 0
        while True:
            version, read = self.version, env.now
            yield timeout(latency())
            start = env.now
            yield timeout(service())
            done = env.now
            yield timeout(latency())
            arrive = env.now
            with server.request() as turn:
                yield turn
                yield timeout(server_time())
            append((me, draw, version, self.version, 0, read, start, done, arrive, env.now))
            self.count()
            draw += 1

    def instant_worker(self, me: int) -> Generator[simpy.Event, Any, None]:
        env, timeout, service, append = self.env, self.env.timeout, self.service, self.rows.append
        draw = 0
        while True:
            version, read = self.version, env.now
            yield timeout(service())
            done = env.now
            append((me, draw, version, self.version, 0, read, read, done, done, done))
            self.count()
            draw += 1

    def count(self) -> None:
        self.version += 1
        if self.version == self.updates:
            self.end.succeed()


class SharedCluster:
    """Workers behind one cable to the server, which takes every `together` gradients for an update (K-async).

    A message occupies each link that it crosses for `up` or `down`, its bytes over the bandwidth, and then takes
    `latency` on it.
    """

    def __init__(
        self, workers: int, updates: int, together: int, service: Duration, latency: float, up: float, down: float
    ):
        self.service, self.latency, self.up, self.down = service, latency, up, down
        self.updates, self.together = updates, together
        self.version = 0
        self.batch: list[tuple[simpy.Event, tuple[Any, ...]]] = []
        self.rows: list[tuple[Any, ...]] = []
        self.env = simpy.Environment()
        self.cable_up, self.cable_down = simpy.Resource(self.env), simpy.Resource(self.env)
        self.end = self.env.event()
        for me in range(workers):
            self.env.process(self.worker(me))

    def run(self) -> dict[str, np.ndarray]:
        """Simulate, and return the table."""
        self.env.run(until=self.end)
        return {name: np.array(column) for name, column in zip(COLUMNS, zip(*self.rows, strict=True), strict=True)}

    def worker(self, me: int) -> Generator[simpy.Event, Any, None]:
        env, timeout, event = self.env, self.env.timeout, self.env.event
        service, latency, up, down = self.service, self.latency, self.up, self.down
        draw = 0
        while True:
            version, read = self.version, env.now
            with self.cable_down.request() as turn:
                yield turn
                yield timeout(down)
            yield timeout(latency + down + latency)  # the rest of the cable's latency, and the worker's own link
            start = env.now
            yield timeout(service())
            done = env.now
            yield timeout(up + latency)
            with self.cable_up.request() as turn:
                yield turn
                yield timeout(up)
            yield timeout(latency)
            answer = event()
            self.batch.append((answer, (me, draw, version, self.version, 0, read, start, done, env.now, env.now)))
            if len(self.batch) == self.together:
                self.update()
            yield answer
            draw += 1

    def update(self) -> None:
        batch, self.batch = self.batch, []
        now = self.env.now
        self.rows += [(*row[:3], self.version, *row[4:9], now) for _, row in batch]
        self.version += 1
        for answer, _ in batch:
            answer.succeed()
        if self.version == self.updates:
            self.end.succeed()
