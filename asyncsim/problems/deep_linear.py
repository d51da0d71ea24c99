"""A deep linear network of width one: the square loss of a product of weights."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from asyncsim.problems.base import Problem
from asyncsim.problems.complex_step import hessian_vector
from asyncsim.problems.start import SaddleStart, check_start, starting_points
from asyncsim.spec import Count


class DeepLinear(Problem):
    """f(w) = ½ (w₁ w₂ ⋯ w_d − 1)², d = `depth`: a chain of d linear units that is to pass its input on.

    ∂ᵢf = (Π w − 1) Π_{j≠i} wⱼ. Every w with product 1 is a minimum, f* = 0. Every w with two zeros is stationary, with
    f = ½; a strict saddle, of curvature ∓Π_{j≠a,b} wⱼ, where only two are 0: so 0 itself is one for d = 2, with least
    eigenvalue −1, while for d > 2 the Hessian vanishes there. Far from the saddles the gradient is as small: it is a
    product of d − 1 weights, which is exponentially small in d for most starts. L is infinite.

    Runs begin at `start`: "random", the default, is N(0, 1) in every weight by address, "saddle" is 0 exactly; or
    numbers.

    Source: O. Shamir, "Exponential convergence time of gradient descent for one-dimensional deep linear neural
    networks", COLT 2019: from standard random starts the number of steps grows exponentially with the depth.

    >>> problem = DeepLinear(depth=3)
    >>> float(problem.value(np.array([2.0, 0.5, 2.0]))), problem.gradient(np.array([2.0, 0.5, 2.0])).tolist()
    (0.5, [1.0, 4.0, 1.0])
    """

    kind: Literal["deep_linear"] = "deep_linear"
    depth: Count
    start: SaddleStart = "random"

    @model_validator(mode="after")
    def _check_start(self) -> DeepLinear:
        check_start(self.start, self.dimension)
        return self

    @property
    def dimension(self) -> int:
        """One weight per layer."""
        return self.depth

    @property
    def minimizer(self) -> np.ndarray:
        """All weights 1; one of many."""
        return np.ones(self.depth)

    @property
    def minimum(self) -> float:
        """f* = 0."""
        return 0.0

    @property
    def strict_saddle(self) -> tuple[np.ndarray, float] | None:
        """0, with least eigenvalue −1, where there are two layers."""
        return (np.zeros(2), -1.0) if self.depth == 2 else None

    def initial(self, seed: int, replica: Any) -> np.ndarray:
        """Return `start` for each replica, shape (…, d)."""
        return starting_points(self.start, self.depth, 1.0, seed, replica)

    def value(self, x: np.ndarray) -> np.ndarray:
        """Return f(w), shape (…)."""
        return 0.5 * np.square(x.prod(axis=-1) - 1.0)

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Return (Π w − 1) Π_{j≠i} wⱼ, shape (…, d), by products from both ends: a zero divides nothing."""
        one = np.ones_like(x[..., :1])
        before = np.cumprod(np.concatenate([one, x[..., :-1]], axis=-1), axis=-1)
        after = np.cumprod(np.concatenate([one, x[..., :0:-1]], axis=-1), axis=-1)[..., ::-1]
        return (x.prod(axis=-1, keepdims=True) - 1.0) * before * after

    def hessian_vector(self, x: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return ∇²f(w) v, shape (…, d), by a complex step."""
        return hessian_vector(self.gradient, x, vector)
