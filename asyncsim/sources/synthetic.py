"""Synthetic traces: a staleness law instead of a cluster; no times."""

from __future__ import annotations

import numpy as np

from asyncsim import streams
from asyncsim.scenario import Scenario
from asyncsim.sources.slow_worker import slow_worker_trace
from asyncsim.staleness_laws import SlowWorker
from asyncsim.trace import Trace

_CHUNK = 1 << 20


def synthetic_trace(scenario: Scenario, replicas: list[int]) -> Trace:
    """Return a trace whose update t has staleness min(τ_t, t), τ_t drawn from the scenario's law.

    Every update has one gradient, of worker 0, with draw = update. τ_t is addressed by (seed, replica, worker −1,
    draw t), purpose STALENESS. The law "slow_worker" is a schedule of its own, `slow_worker_trace`.

    >>> import asyncsim
    >>> run = {"source": "synthetic", "staleness": {"law": "constant", "value": 2}, "updates": 5}
    >>> synthetic_trace(asyncsim.scenario.build({"run": run}), [0]).staleness().tolist()
    [0, 1, 2, 2, 2]
    """
    law, updates = scenario.run.staleness, scenario.run.updates
    assert law is not None
    assert updates is not None
    if isinstance(law, SlowWorker):
        both = {"workers": law.workers, "delay_bound": law.delay_bound}
        return slow_worker_trace(**both, updates=updates, replicas=replicas, seed=scenario.seed)
    index = np.arange(updates, dtype=np.int64)
    read = []
    for replica in replicas:
        probability = np.concatenate(
            [
                streams.uniforms(scenario.seed, replica, -1, index[low : low + _CHUNK], streams.STALENESS, 1)[:, 0]
                for low in range(0, updates, _CHUNK)
            ]
        )
        read.append(index - np.minimum(law.sequence(probability), index))
    count = len(replicas)
    rows = np.tile(index, count)
    columns = {
        "replica": np.repeat(np.array(replicas, dtype=np.int32), updates),
        "worker": np.zeros(rows.size, dtype=np.int32),
        "draw": rows,
        "read_version": np.concatenate(read),
        "update": rows,
        "status": np.zeros(rows.size, dtype=np.int8),
    }
    return Trace(columns, seed=scenario.seed, workers=scenario.workers, updates=[updates] * count, replicas=replicas)
