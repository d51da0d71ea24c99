"""Projections onto convex sets: the nearest point of the set, P(x) = argmin_{y ∈ C} ‖y − x‖.

Each broadcasts over leading axes: x has shape (…, d) and so has P(x).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import model_validator

from asyncsim.spec import Positive, Spec, named_field, refuse


class Projection(Spec):
    """A closed convex set C of R^d, called with x to get its nearest point in C."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the point of the set nearest to x, shape (…, d)."""
        raise NotImplementedError


class Box(Projection):
    """All x with `low` ≤ x_i ≤ `high` for every coordinate.

    >>> Box(low=-1.0, high=1.0)(np.array([3.0, 0.5])).tolist()
    [1.0, 0.5]
    """

    set: Literal["box"] = "box"
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Box:
        if self.low > self.high:
            raise refuse(f"low must not exceed high = {self.high}, got {self.low}")
        return self

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return every coordinate cut to [low, high]."""
        return np.minimum(np.maximum(x, self.low), self.high)


class Ball(Projection):
    """All x with Euclidean norm ‖x‖ ≤ `radius`; the centre is 0.

    >>> Ball(radius=5.0)(np.array([[6.0, 8.0], [0.3, 0.4]])).tolist()
    [[3.0, 4.0], [0.3, 0.4]]
    """

    set: Literal["ball"] = "ball"
    radius: Positive

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return x · min(1, radius / ‖x‖)."""
        norm = np.sqrt(np.sum(x * x, axis=-1, keepdims=True))
        return x * (self.radius / np.maximum(norm, self.radius))


class Simplex(Projection):
    """All x with x_i ≥ 0 and Σ x_i = `total` (1 gives the probability simplex).

    The nearest point is max(x_i − θ, 0) with the one θ that makes the sum right. In decreasing order of the
    coordinates, u_1 ≥ … ≥ u_d, the positive ones are the first n, n being the number of j with
    u_j > θ_j, θ_j = (u_1 + … + u_j − total) / j, and θ = θ_n. Costs d log d.

    Source: Held, Wolfe, Crowder 1974, "Validation of subgradient optimization"; that the stated conditions are met was
    derived here (they are the optimality conditions of the projection).

    >>> Simplex()(np.array([0.5, 0.75, -2.0])).tolist()
    [0.375, 0.625, 0.0]
    """

    set: Literal["simplex"] = "simplex"
    total: Positive = 1.0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return max(x − θ, 0)."""
        x = x - x.max(axis=-1, keepdims=True)  # the same nearest point, and no cancellation far from the set
        ordered = np.sort(x, axis=-1)[..., ::-1]
        thresholds = (np.cumsum(ordered, axis=-1) - self.total) / np.arange(1, x.shape[-1] + 1)
        last = np.count_nonzero(ordered > thresholds, axis=-1)[..., None] - 1
        return np.maximum(x - np.take_along_axis(thresholds, last, axis=-1), 0.0)


class NonNegativeOrthant(Projection):
    """All x with x_i ≥ 0.

    >>> NonNegativeOrthant()(np.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """

    set: Literal["non_negative"] = "non_negative"

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return max(x, 0)."""
        return np.maximum(x, 0.0)


#: Every set by the name that a scenario file uses.
PROJECTIONS: dict[str, type[Spec]] = {
    "box": Box,
    "ball": Ball,
    "simplex": Simplex,
    "non_negative": NonNegativeOrthant,
}

AnyProjection = Annotated[Any, *named_field("set", PROJECTIONS, "projection")]
