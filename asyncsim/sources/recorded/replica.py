"""One replica of a real run: what a backend is given, and what it hands over."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from asyncsim.methods.base import complete as complete_method
from asyncsim.problems.base import complete
from asyncsim.scenario import SECONDS, Scenario, parse_condition
from asyncsim.sources.recorded.interrupts import Ended
from asyncsim.sources.recorded.log import Log
from asyncsim.sources.recorded.messages import Job
from asyncsim.sources.recorded.processes import BadStart
from asyncsim.sources.recorded.server import Server, WorkerLost
from asyncsim.sources.recorded.worker import warm_up

#: Updates between two looks at `stop_when` where the metrics do not say.
LOOK_EVERY = 10


@dataclass
class Outcome:
    """One replica of a real run, as a backend hands it over: its rows, and the model at its end."""

    log: Log
    x: np.ndarray
    ended: str | None = None
    interrupted: bool = False


def outcome_of(run: Callable[[], Any]) -> tuple[str | None, bool]:
    """Run, and return (why it ended early, None if it did not; whether it was interrupted)."""
    try:
        run()
    except (WorkerLost, BadStart) as error:
        return str(error), False
    except Ended as signal:
        return str(signal), True
    except KeyboardInterrupt:
        return "interrupted", True
    return None, False


def serve(server: Server, transport: Any) -> Outcome:
    """Let a server run on a transport to its end, whatever ends it."""

    def run() -> None:
        with transport:
            server.run(transport)

    ended, interrupted = outcome_of(run)
    return Outcome(server.log, server.model, ended, interrupted)


def make_job(scenario: Scenario, replica: int) -> Job:
    """Return what the workers of a replica are given, its problem warmed up: data read, modules imported."""
    settings = scenario.run
    addressed = scenario.seed, replica, scenario.workers
    method, problem = complete_method(scenario.method), complete(scenario.problem)
    job = Job(method, problem, *addressed, settings.wait, settings.on_worker_death)
    with contextlib.suppress(Exception):  # a worker will meet it again, and say so with its name
        warm_up(job)
    return job


def make_server(scenario: Scenario, replica: int, progress: Any) -> Server:
    """Return the server of a replica."""
    cluster, settings = scenario.cluster, scenario.run
    assert cluster is not None
    return Server(
        make_job(scenario, replica),
        policy=scenario.policy,
        replies_before=cluster.server.reply == "before_apply",
        updates=settings.updates,
        seconds=math.inf if settings.time is None else settings.time * SECONDS[cluster.time_unit],
        service_time=None if settings.wait == "none" else service_times(scenario, replica),
        stop_when=_condition(scenario),
        progress=progress,
    )


def service_times(scenario: Scenario, replica: int) -> Callable[[int, int], float]:
    """Return the function (worker, draw) → seconds that the service law gives, the same as in a simulation."""
    from asyncsim.sources.crossings import AddressedDurations
    from asyncsim.streams import SERVICE

    cluster = scenario.cluster
    assert cluster is not None
    unit = SECONDS[cluster.time_unit]
    steps, address = getattr(scenario.method, "gradients_per_message", 1), (scenario.seed, replica)
    laws = [AddressedDurations(law, *address, w, SERVICE, steps=steps) for w, law in enumerate(cluster.laws)]
    for law in laws:
        law(0)  # compiled code is loaded now, not when the clock runs
    return lambda worker, draw: unit * laws[worker](draw)


def _condition(scenario: Scenario) -> Callable[[np.ndarray, int], bool] | None:
    """Return the function (x, version) → whether `stop_when` holds."""
    from asyncsim.measure import metric_functions

    if scenario.run.stop_when is None:
        return None
    metric, sign, bound = parse_condition(scenario.run.stop_when)
    value = metric_functions(complete(scenario.problem), (metric,))[metric]
    every = scenario.metrics.every or LOOK_EVERY

    def holds(x: np.ndarray, version: int) -> bool:
        found = float(value(x)) if version % every == 0 else math.nan
        return found < bound if sign == "<" else found > bound

    return holds
