"""What numpy alone can do where messages and updates take no time: cumulative sums of service times, and one sort.

A worker then starts its next gradient the moment it hands in one, so its gradients arrive at the cumulative sums of its
service times, and the updates are all arrivals in order.
"""

from __future__ import annotations

import math

import numpy as np


def table(workers: int, updates: int, mean: float, seed: int) -> dict[str, np.ndarray]:
    """Return the table of asynchronous workers with exponential service times."""
    expected = updates / workers
    each = int(expected + 6.0 * math.sqrt(expected) + 10.0)  # enough that no worker runs out before the end
    finish = np.random.default_rng(seed).exponential(mean, (workers, each))
    np.cumsum(finish, axis=1, out=finish)
    order = np.argsort(finish, axis=None)
    worker, draw = np.divmod(order[:updates], each)
    time = finish.ravel()[order[:updates]]
    if time[-1] > finish[:, -1].min():
        raise RuntimeError("a worker ran out of draws")
    update = np.arange(updates)
    # A gradient was read when its worker's one before was applied.
    applied = np.full((workers, each + 1), -1)
    applied[worker, draw + 1] = update
    read_version = applied[worker, draw] + 1
    read = np.where(draw > 0, time[read_version - 1], 0.0)
    return {
        "worker": worker,
        "draw": draw,
        "read_version": read_version,
        "update": update,
        "status": np.zeros(updates, dtype=np.int8),
        "read_time": read,
        "start_time": read,
        "done_time": time,
        "arrive_time": time,
        "apply_time": time,
    }
