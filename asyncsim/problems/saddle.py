"""The plainest strict saddle: a bowl in all directions but one, and two valleys along that one."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from asyncsim.problems.base import Problem
from asyncsim.problems.quadratic import add_noise
from asyncsim.problems.start import SaddleStart, check_start, starting_points
from asyncsim.spec import Count, NonNegative, Positive
from asyncsim.trace import Row

#: The constants hold where |x_N| is at most this.
DOMAIN = 1.5


class Saddle(Problem):
    """f(x) = ½ Σ_{i<N} xᵢ² + c (−½ x_N² + ¼ x_N⁴), with N = `dimension` and c = `curvature`.

    0 is a strict saddle: the gradient is exactly 0, and the Hessian's eigenvalues are 1 (N − 1 times) and −c. (In one
    dimension f(x) = c (−½x² + ¼x⁴), and 0 is a maximum, which gradient descent does not leave either.) The minima are
    at x_N = ±1, the other coordinates 0, with f* = −c/4; `minimizer` is the one with x_N = 1. There is no global L.
    Where |x_N| ≤ 1.5, as it stays for a method that begins at 0 and never lets f rise above c/8, L = max(1, 5.75 c), or
    5.75 c in one dimension, and ρ = 9 c, since the second derivative along x_N is c (3 x_N² − 1) and the third 6 c x_N.

    A point is taken for a second-order stationary one at accuracy ε where λ_min ≥ −√(ρε). So the saddle passes for one
    where ε ≥ c/9, and is escaped only for smaller ε; c = 9.18 ε makes its curvature just 1 % more than √(ρε).

    Runs begin at `start`: "saddle", the default, is 0 exactly, where gradient descent stays for ever; "random" is
    N(0, I/N) by address; a number stands for all coordinates, a list has one each. The stochastic gradient adds
    `noise` · N(0, I).

    >>> problem = Saddle(dimension=3)
    >>> problem.gradient(problem.initial(seed=0, replica=0)).tolist()
    [0.0, 0.0, 0.0]
    >>> problem.smoothness, problem.hessian_lipschitz, problem.minimum
    (5.75, 9.0, -0.25)
    """

    kind: Literal["saddle"] = "saddle"
    dimension: Count
    curvature: Positive = 1.0
    noise: NonNegative = 0.0
    start: SaddleStart = "saddle"

    @model_validator(mode="after")
    def _matching_start(self) -> Saddle:
        check_start(self.start, self.dimension)
        return self

    @property
    def smoothness(self) -> float:
        """L = max(1, 5.75 c) where |x_N| ≤ 1.5; 5.75 c in one dimension."""
        return max(1.0 if self.dimension > 1 else 0.0, self.curvature * (3 * DOMAIN**2 - 1))

    @property
    def hessian_lipschitz(self) -> float:
        """ρ = 9 c where |x_N| ≤ 1.5."""
        return self.curvature * 6 * DOMAIN

    @property
    def strict_saddle(self) -> tuple[np.ndarray, float]:
        """0, with least eigenvalue −c."""
        return np.zeros(self.dimension), -self.curvature

    @property
    def minimizer(self) -> np.ndarray:
        """The minimum at x_N = 1; the other is its mirror image."""
        return np.eye(1, self.dimension, self.dimension - 1)[0]

    @property
    def minimum(self) -> float:
        """f* = −c/4."""
        return -self.curvature / 4

    def initial(self, seed: int, replica: Any) -> np.ndarray:
        """Return `start` for each replica, shape (…, N)."""
        return starting_points(self.start, self.dimension, self.dimension**-0.5, seed, replica)

    def value(self, x: np.ndarray) -> np.ndarray:
        """Return f(x), shape (…)."""
        square = np.square(x[..., -1])
        bowl = 0.5 * np.square(x[..., :-1]).sum(axis=-1)
        return bowl + self.curvature * (0.25 * square - 0.5) * square

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Return xᵢ, and last c (x_N³ − x_N); shape (…, N)."""
        gradient = np.array(x, dtype=np.float64)
        last = x[..., -1]
        gradient[..., -1] = self.curvature * (last**3 - last)
        return gradient

    def stochastic_gradient(self, x: np.ndarray, row: Row) -> np.ndarray:
        """Return the gradient with addressed noise, shape (…, N)."""
        return add_noise(self.gradient(x), self.noise, row)

    def block_gradient(self, x: np.ndarray, block: slice) -> np.ndarray:
        """Return the gradient's coordinates of the block, looking at no others."""
        places = range(*block.indices(self.dimension))
        if self.dimension - 1 not in places:
            return np.array(x[..., block], dtype=np.float64)
        last = x[..., -1]
        gradient = np.array(x[..., block], dtype=np.float64)
        gradient[..., places.index(self.dimension - 1)] = self.curvature * (last**3 - last)
        return gradient

    def sweep(self, x: np.ndarray, block: slice, step: float) -> np.ndarray:
        """Return the block after a pass over it: no coordinate feels another, so all of them move at once."""
        return x[..., block] - step * self.block_gradient(x, block)

    def hessian_vector(self, x: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return vᵢ, and last c (3 x_N² − 1) v_N; shape (…, N)."""
        product = np.array(np.broadcast_to(vector, np.broadcast_shapes(np.shape(x), np.shape(vector))))
        product[..., -1] *= self.curvature * (3.0 * np.square(x[..., -1]) - 1.0)
        return product
