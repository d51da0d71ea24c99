"""Exponential workers in plain numpy, for tests of theory: each update comes from a worker chosen at random."""

from __future__ import annotations

import itertools

import numpy as np


def all_runs(workers, strength, *, momentum=0.0, updates, reply="after_apply"):
    """Return x_0 … x_T of every one of the workers**updates equally likely runs, shape (runs, updates + 1)."""
    choices = np.array(list(itertools.product(range(workers), repeat=updates)))
    return _runs(choices, workers, lambda x: strength * x, momentum, reply)


def random_runs(workers, gradient, *, momentum=0.0, updates, replicas, seed, reply="after_apply"):
    """Return x_0 … x_T of random runs from x_0 = 1, shape (replicas, updates + 1); `gradient` is times the step."""
    choices = np.random.default_rng(seed).integers(workers, size=(replicas, updates))
    return _runs(choices, workers, gradient, momentum, reply)


def _runs(choices, workers, gradient, momentum, reply):
    replicas, updates = choices.shape
    rows = np.arange(replicas)
    iterates = np.ones((replicas, updates + 1))
    held = np.ones((replicas, workers))
    for t in range(updates):
        now, before = iterates[:, t], iterates[:, max(t - 1, 0)]
        worker = choices[:, t]
        iterates[:, t + 1] = now + momentum * (now - before) - gradient(held[rows, worker])
        held[rows, worker] = iterates[:, t + 1] if reply == "after_apply" else now
    return iterates
