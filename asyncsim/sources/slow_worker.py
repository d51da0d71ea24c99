"""Serial-asynchronous traces: one process that plays several workers, one of them slow. No times.

A scenario names it as ``staleness = { law = "slow_worker", workers = 3, delay_bound = 4 }``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asyncsim import streams
from asyncsim.scenario import ScenarioError
from asyncsim.trace import Trace


def slow_worker_trace(
    *, workers: int, delay_bound: int, updates: int, replicas: int | Sequence[int] = 1, seed: int = 0
) -> Trace:
    """Return a trace in rounds of τ updates: the last of each is the slow worker's, from what it read at its beginning.

    τ = `delay_bound`. The others' updates of a round have staleness 0. Each of them comes once, in random order, and
    then they are drawn uniformly. The slow worker is the last one, M − 1, with M = `workers` ≤ τ. The order is
    addressed by (seed, replica, worker −1, draw = round), purpose WORKER. `replicas` says how many, or which.

    Source: Bornstein 2021, "Escaping from saddle points using asynchronous coordinate descent", section 3.1.1.

    >>> trace = slow_worker_trace(workers=3, delay_bound=4, updates=8)
    >>> trace.staleness().tolist()
    [0, 0, 0, 3, 0, 0, 0, 3]
    >>> [sorted(trace["worker"][:2].tolist()), trace["worker"][3].item()]
    [[0, 1], 2]
    """
    if not 2 <= workers <= delay_bound:
        raise ScenarioError(
            f"a round of delay_bound = {delay_bound} updates has each of {workers} workers at least once: "
            "2 <= workers <= delay_bound fails"
        )
    which = np.arange(replicas) if isinstance(replicas, int) else np.array(replicas)
    others, rounds = workers - 1, -(-updates // delay_bound)
    place = np.arange(rounds)[None, :]
    numbers = streams.uniforms(seed, which[:, None], -1, place, streams.WORKER, delay_bound - 1)
    chosen = np.empty((which.size, rounds, delay_bound), dtype=np.int64)
    chosen[..., :others] = np.argsort(numbers[..., :others], axis=-1)
    chosen[..., others:-1] = (numbers[..., others:] * others).astype(np.int64)
    chosen[..., -1] = others
    worker = chosen.reshape(which.size, -1)[:, :updates]
    update = np.arange(updates)
    slow = update % delay_bound == delay_bound - 1
    # A worker's draw is how often it came before.
    came = worker[:, :, None] == np.arange(workers)
    draw = (np.cumsum(came, axis=1)[came] - 1).reshape(worker.shape)
    columns = {
        "replica": np.repeat(which, updates),
        "worker": worker.ravel(),
        "draw": draw.ravel(),
        "read_version": np.tile(np.where(slow, update - (delay_bound - 1), update), which.size),
        "update": np.tile(update, which.size),
        "status": np.zeros(worker.size, dtype=np.int8),
    }
    return Trace(columns, seed=seed, workers=workers, updates=[updates] * which.size, replicas=which)
