"""Problems whose number of coordinates the user gives, as the field `dimension`."""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncsim.problems.base import Problem
from asyncsim.spec import Floats, refuse

#: A starting point: one number for every coordinate, or one number each.
Start = float | Floats


class _Nothing:
    """Hides an inherited attribute, so that a field of the same name shadows nothing."""

    def __get__(self, instance: Any, owner: Any) -> Any:
        raise AttributeError


class SizedProblem(Problem):
    """A problem in which `dimension` is a field rather than a consequence of the data."""


SizedProblem.dimension = _Nothing()  # type: ignore[assignment,method-assign]


def starting_point(start: float | tuple[float, ...], dimension: int) -> np.ndarray:
    """Return `start` as an array of shape (dimension,), or refuse a list of another length."""
    if isinstance(start, tuple) and len(start) != dimension:
        raise refuse(f"'start' has {len(start)} numbers, but the problem has {dimension} coordinates")
    return np.full(dimension, start, dtype=np.float64)
