"""A function that is not convex, yet gradient descent finds its minimum at a linear rate."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from asyncsim.problems.base import Problem
from asyncsim.problems.quadratic import add_noise
from asyncsim.problems.start import Start, starting_point
from asyncsim.spec import Count, NonNegative
from asyncsim.trace import Row


class PLExample(Problem):
    """f(x) = Σᵢ xᵢ² + 3 sin² xᵢ, which satisfies the Polyak–Łojasiewicz inequality without being convex.

    The inequality is ½ ‖∇f(x)‖² ≥ μ_PL (f(x) − f*), here with μ_PL = 1/32; it holds for the sum over the `dimension`
    coordinates since it holds for each. The second derivative 2 + 6 cos 2xᵢ lies in [−4, 8], so L = 8. The only
    stationary point is x* = 0, with f* = 0. The stochastic gradient adds `noise` · N(0, I). Runs start at `start`.

    Source: H. Karimi, J. Nutini and M. Schmidt, "Linear convergence of gradient and proximal-gradient methods under
    the Polyak–Łojasiewicz condition", ECML PKDD 2016, Section 2.2.

    >>> problem = PLExample()
    >>> x = problem.initial(seed=0, replica=0)
    >>> x.tolist()
    [3.0]
    >>> bool(0.5 * problem.gradient(x)[0] ** 2 >= problem.pl_constant * problem.value(x))
    True
    """

    kind: Literal["pl_example"] = "pl_example"
    dimension: Count = 1
    noise: NonNegative = 0.0
    start: Start = 3.0

    @model_validator(mode="after")
    def _matching_start(self) -> PLExample:
        starting_point(self.start, self.dimension)
        return self

    @property
    def smoothness(self) -> float:
        """L = 8."""
        return 8.0

    @property
    def hessian_lipschitz(self) -> float:
        """ρ = 12: the third derivative is −12 sin 2xᵢ."""
        return 12.0

    @property
    def pl_constant(self) -> float:
        """μ_PL = 1/32."""
        return 1.0 / 32.0

    @property
    def minimizer(self) -> np.ndarray:
        """x* = 0."""
        return np.zeros(self.dimension)

    @property
    def minimum(self) -> float:
        """f* = 0."""
        return 0.0

    def initial(self, seed: int, replica: Any) -> np.ndarray:
        """Return `start` for each replica, shape (…, d)."""
        return np.tile(starting_point(self.start, self.dimension), (*np.shape(replica), 1))

    def value(self, x: np.ndarray) -> np.ndarray:
        """Return Σ xᵢ² + 3 sin² xᵢ, shape (…)."""
        return np.sum(np.square(x) + 3.0 * np.square(np.sin(x)), axis=-1)

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Return 2xᵢ + 3 sin 2xᵢ, shape (…, d)."""
        return 2.0 * x + 3.0 * np.sin(2.0 * x)

    def stochastic_gradient(self, x: np.ndarray, row: Row) -> np.ndarray:
        """Return the gradient with addressed noise, shape (…, d)."""
        return add_noise(self.gradient(x), self.noise, row)

    def block_gradient(self, x: np.ndarray, block: slice) -> np.ndarray:
        """Return the gradient's coordinates of the block."""
        return self.gradient(x[..., block])

    def sweep(self, x: np.ndarray, block: slice, step: float) -> np.ndarray:
        """Return the block after a pass over it: no coordinate feels another, so all of them move at once."""
        return x[..., block] - step * self.block_gradient(x, block)

    def hessian_vector(self, x: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return (2 + 6 cos 2xᵢ) vᵢ, shape (…, d)."""
        return (2.0 + 6.0 * np.cos(2.0 * x)) * vector
