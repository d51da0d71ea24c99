"""Starting points: one number for every coordinate, or one number each."""

from __future__ import annotations

import numpy as np

from asyncsim.spec import Floats, refuse

Start = float | Floats


def starting_point(start: float | tuple[float, ...], dimension: int) -> np.ndarray:
    """Return `start` as an array of shape (dimension,), or refuse a list of another length."""
    if isinstance(start, tuple) and len(start) != dimension:
        raise refuse(f"'start' has {len(start)} numbers, but the problem has {dimension} coordinates")
    return np.full(dimension, start, dtype=np.float64)
