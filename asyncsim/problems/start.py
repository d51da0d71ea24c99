"""Starting points: one number for every coordinate, one number each, a known saddle, or random ones by address."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from asyncsim.spec import Floats, refuse

Start = float | Floats

#: What a problem with a saddle at 0 can start from.
SaddleStart = Literal["saddle", "random"] | Start


def starting_point(start: float | tuple[float, ...], dimension: int) -> np.ndarray:
    """Return `start` as an array of shape (dimension,), or refuse a list of another length."""
    if isinstance(start, tuple) and len(start) != dimension:
        raise refuse(f"'start' has {len(start)} numbers, but the problem has {dimension} coordinates")
    return np.full(dimension, start, dtype=np.float64)


def check_start(start: str | float | tuple[float, ...], dimension: int) -> None:
    """Refuse a list of another length than the problem's."""
    if not isinstance(start, str):
        starting_point(start, dimension)


def starting_points(
    start: str | float | tuple[float, ...], dimension: int, spread: float, seed: int, replica: Any
) -> np.ndarray:
    """Return the starting point of each replica, shape (…, dimension): 0 for "saddle", N(0, spread² I) for "random".

    >>> starting_points("saddle", 3, spread=1.0, seed=7, replica=0).tolist()
    [0.0, 0.0, 0.0]
    """
    if start == "random":
        return spread * random_rows(dimension, 1, seed, replica)[..., 0, :]
    point = starting_point(0.0 if isinstance(start, str) else start, dimension)
    return np.tile(point, (*np.shape(replica), 1))


def random_rows(width: int, rows: int, seed: int, replica: Any) -> np.ndarray:
    """Return standard normal numbers of shape (…, rows, width), addressed by seed, replica and row."""
    from asyncsim import streams

    return streams.normals(seed, np.asarray(replica)[..., None], -1, np.arange(rows), streams.START, width)
