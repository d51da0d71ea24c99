"""What a scenario would take: gradients, memory, time."""

from __future__ import annotations

import math
from typing import NamedTuple

from asyncsim.cluster import Cluster
from asyncsim.measure import DEFAULT_POINTS
from asyncsim.methods.base import complete
from asyncsim.problems.base import complete as complete_problem
from asyncsim.results import open_trace
from asyncsim.scenario import SECONDS, Scenario
from asyncsim.sources import BYTES_PER_COORDINATE, choose_engine

#: Rough costs on one core of a small machine, for estimates only.
SECONDS_PER_GRADIENT = {"compiled": 4e-7, "simpy": 6e-6}
SECONDS_PER_CALL, SECONDS_PER_CALL_ALONE = 4e-5, 1.2e-4  # a gradient of a batch of replicas, and of one by itself
SECONDS_PER_COORDINATE = 3e-9  # of what a worker reads
SECONDS_PER_PARAMETER = 3e-10  # of a problem with data, for each sample of a batch
SECONDS_PER_METRIC = 1e-4
SAMPLES = 1800  # of a data set of the size of the built-in ones
BYTES_PER_ROW = 80
#: Of real runs: rows and versions read are collected one by one; each process starts Python and numpy.
BYTES_PER_REAL_ROW, BYTES_PER_BLOCK_READ = 500, 50
SECONDS_TO_START = 0.3

#: Values that the search of a sweep tries in each cell, about.
TRIED_BY_SEARCH = 15


class Cost(NamedTuple):
    """Expected number of gradients (rows of the trace), bytes of memory, and seconds on one core.

    Of a real run the seconds are those of the clock. What depends on how fast its workers compute is NaN.
    """

    gradients: float
    bytes: float
    seconds: float


def cost(scenario: Scenario) -> Cost:
    """Return what a scenario is expected to take, from means; nothing is run.

    >>> import asyncsim
    >>> cost(asyncsim.load("scenarios/quickstart.toml", overrides={"run.updates": 500, "run.replicas": 2})).gradients
    1000.0
    """
    settings, policy = scenario.run, scenario.policy
    per_update, replicas = float(policy.gradients_per_update(scenario.workers)), settings.replicas
    if settings.source == "trace":
        trace = open_trace(str(settings.trace))
        rows, updates, replicas = float(len(trace)), float(trace.updates.sum()), trace.replicas.size
    elif settings.source == "synthetic" or scenario.cluster is None:
        rows = updates = float(settings.updates or 0) * replicas
    else:
        groups = [group for group in scenario.cluster.workers if group.service.mean > 0]
        rate = sum(group.count / group.service.mean for group in groups)
        rate /= getattr(scenario.method, "gradients_per_message", 1)
        by_time = math.inf if settings.time is None else settings.time * rate
        rows = min((settings.updates or math.inf) * per_update, by_time) * replicas
        updates = rows / per_update
        if settings.source == "record":
            return _real_cost(scenario, scenario.cluster, rows, rate)
    engine = choose_engine(scenario) if settings.source == "simulate" else "compiled"
    seconds = SECONDS_PER_GRADIENT[engine] * rows + _seconds_to_replay(scenario, rows, updates, replicas)
    return Cost(rows, BYTES_PER_ROW * rows + _bytes_kept(scenario, updates), seconds)


def _real_cost(scenario: Scenario, cluster: Cluster, rows: float, rate: float) -> Cost:
    """Return the cost of a real run whose waiting workers would compute `rows` gradients at a `rate` per time unit."""
    settings, replicas = scenario.run, scenario.run.replicas
    unit = SECONDS[cluster.time_unit]
    per_update = float(scenario.policy.gradients_per_update(cluster.size))
    if settings.wait == "none":  # how long a gradient takes is the machine's secret
        rows = math.nan if settings.updates is None else settings.updates * per_update * replicas
        seconds = math.nan if settings.time is None else settings.time * unit * replicas
    else:
        seconds = unit * rows / rate if rate else 0.0
    processes = 0 if settings.backend == "threads" else cluster.size
    seconds += SECONDS_TO_START * processes * replicas
    if not math.isnan(rows):
        seconds += _seconds_to_replay(scenario, rows, rows / per_update, replicas)
    per_row = BYTES_PER_ROW + BYTES_PER_REAL_ROW + BYTES_PER_BLOCK_READ * (settings.blocks or 0)
    return Cost(rows, per_row * rows + _bytes_kept(scenario, rows / per_update), seconds)


def _seconds_to_replay(scenario: Scenario, rows: float, updates: float, replicas: int) -> float:
    """Return how long a method takes on a schedule, its metrics included.

    Every row is a gradient or several; replicas run as a batch where method and problem can, which saves calls.
    """
    if scenario.problem is None or not replicas:
        return 0.0
    method, problem = complete(scenario.method), complete_problem(scenario.problem)
    batched = method.batched and problem.batched and not method.remembers
    calls, per_call = (rows / replicas, SECONDS_PER_CALL) if batched else (rows, SECONDS_PER_CALL_ALONE)
    per_row = SECONDS_PER_COORDINATE * method.size(problem, scenario.workers)
    steps = method.gradients_per_message
    if getattr(problem, "dataset", None) is None:
        return steps * per_call * calls + per_row * rows
    per_sample = SECONDS_PER_PARAMETER * problem.dimension
    per_row += steps * per_sample * (getattr(problem, "batch", None) or SAMPLES)
    every = scenario.metrics.every
    points = scenario.metrics.at_times or (updates / replicas / every if every else DEFAULT_POINTS)
    measured = points * replicas * len(scenario.metrics.of_model)
    return steps * per_call * calls + per_row * rows + (SECONDS_PER_METRIC + per_sample * SAMPLES) * measured


def _bytes_kept(scenario: Scenario, updates: float) -> float:
    """Return the memory of what is kept of every version."""
    kept = _dimension(scenario) * ("momentum" in scenario.metrics.record) + ("rate" in scenario.metrics.record)
    return BYTES_PER_COORDINATE * kept * updates


def _dimension(scenario: Scenario) -> int:
    return 0 if scenario.problem is None else int(scenario.problem.dimension)
