"""Noise that the server adds to the model: uniform in a ball, uniform on a sphere, or normal, each at its address.

The address is (seed, replica, worker −1, draw = update), so the same update is perturbed alike in a simulation, in a
real run and in a replay. Each function takes a row of the update, and returns an array of shape (…, d) with the leading
axes of the row's `replica`; `which` picks some replicas of a batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def _normals(row: Any, size: int, which: Any) -> np.ndarray:
    from asyncsim import streams

    replica = np.asarray(row.replica if which is None else np.asarray(row.replica)[which])
    server, update = np.full(replica.shape, -1), np.full(replica.shape, row.update)
    return streams.normals(row.seed, replica, server, update, streams.PERTURBATION, size)


def _norm(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(x).sum(axis=-1, keepdims=True))


def in_ball(row: Any, dimension: int, radius: float, which: Any = None) -> np.ndarray:
    """Return points uniform in the ball of this radius around 0.

    They are the first d coordinates of points uniform on the sphere in d + 2 dimensions, which is the same law.

    >>> from asyncsim.trace import Row
    >>> points = in_ball(Row(seed=7, replica=np.arange(1000), worker=0, draw=0, update=3), dimension=2, radius=1.0)
    >>> share = np.mean(np.square(points).sum(axis=1) < 0.5)  # half of the area
    >>> points.shape, bool(0.45 < share < 0.55)
    ((1000, 2), True)
    """
    normals = _normals(row, dimension + 2, which)
    return normals[..., :dimension] * (radius / _norm(normals))


def on_sphere(row: Any, dimension: int, radius: float, which: Any = None) -> np.ndarray:
    """Return points uniform on the sphere of this radius around 0."""
    normals = _normals(row, dimension, which)
    return normals * (radius / _norm(normals))


def gaussian(row: Any, dimension: int, radius: float, which: Any = None) -> np.ndarray:
    """Return normal numbers of variance radius²/d each, so that their squared length is radius² on average."""
    return _normals(row, dimension, which) * (radius / math.sqrt(dimension))
