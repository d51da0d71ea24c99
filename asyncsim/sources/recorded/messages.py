"""What a server and its workers say to one another, and the job that both are given.

Times are seconds of one clock, `time.monotonic`, which all processes of a machine share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Job:
    """What a worker needs to know to compute: the very objects that a replay uses, and where its randomness lies.

    `wait` says how a worker spends the rest of its service time: "none", "sleep" or "spin"; `on_death` what the death
    of one means: "continue", "restart" or "stop".
    """

    method: Any
    problem: Any
    seed: int
    replica: int
    workers: int
    wait: str = "none"
    on_death: str = "continue"


@dataclass(frozen=True)
class SharedJob(Job):
    """A job, and what a worker that shares its memory needs to know of the run, there being no server."""

    layout: Any = None  # a `Layout`
    consistency: str = "locked"
    limit: int = 0
    last_update: float = math.inf
    seconds: float = math.inf


class Model(NamedTuple):
    """The server sends a version of the model, for draw number `draw` of the worker that gets it.

    `seconds` is the service time that the worker has to take, 0 where it takes the time that it needs.
    """

    draw: int
    version: int
    seconds: float
    x: np.ndarray


class Ready(NamedTuple):
    """A worker can begin."""

    worker: int
    pid: int


class Gradient(NamedTuple):
    """A worker has computed what its method sends."""

    worker: int
    draw: int
    start: float
    done: float
    payload: Any


class Cancelled(NamedTuple):
    """A worker got a newer model before it was done, and let go of a gradient."""

    worker: int
    draw: int
    start: float
    time: float


class Failed(NamedTuple):
    """An exception ended a worker."""

    worker: int
    draw: int
    traceback: str


class Died(NamedTuple):
    """A worker is gone; nothing more comes from it. (Said by the transport, not by the worker.)"""

    worker: int
    reason: str
