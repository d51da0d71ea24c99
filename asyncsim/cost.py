"""What a scenario would take: gradients, memory, time."""

from __future__ import annotations

import math
from typing import NamedTuple

from asyncsim.results import read_trace
from asyncsim.scenario import Scenario
from asyncsim.sources import BYTES_PER_COORDINATE

#: Rough costs on one core of a small machine, for estimates only.
SECONDS_PER_GRADIENT, SECONDS_PER_UPDATE, SECONDS_PER_COORDINATE = 6e-6, 3e-5, 5e-9
BYTES_PER_ROW = 80


class Cost(NamedTuple):
    """Expected number of gradients (rows of the trace), bytes of memory, and seconds on one core."""

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
        trace = read_trace(str(settings.trace))
        rows, updates, replicas = float(len(trace)), float(trace.updates.sum()), trace.replicas.size
    elif settings.source == "synthetic" or scenario.cluster is None:
        rows = updates = float(settings.updates or 0) * replicas
    else:
        groups = [group for group in scenario.cluster.workers if group.service.mean > 0]
        rate = sum(group.count / group.service.mean for group in groups)
        by_time = math.inf if settings.time is None else settings.time * rate
        rows = min((settings.updates or math.inf) * per_update, by_time) * replicas
        updates = rows / per_update
    dimension = 0 if scenario.problem is None else int(scenario.problem.dimension)
    seconds = SECONDS_PER_GRADIENT * rows
    if dimension:
        seconds += SECONDS_PER_UPDATE * updates / replicas + SECONDS_PER_COORDINATE * dimension * updates
    kept = dimension * ("momentum" in scenario.metrics.record) + ("rate" in scenario.metrics.record)
    return Cost(rows, BYTES_PER_ROW * rows + BYTES_PER_COORDINATE * kept * updates, seconds)
