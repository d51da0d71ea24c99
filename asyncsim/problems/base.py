"""What every problem offers: an objective, its gradients, and what is known about it."""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncsim.spec import Spec
from asyncsim.trace import Row


class Problem(Spec):
    """An objective f on R^d.

    Every function broadcasts over leading axes: `x` has shape (…, d), a value has shape (…), a gradient (…, d). The
    replicas of a run are such a leading axis.
    """

    @property
    def dimension(self) -> int:
        """Number d of coordinates."""
        raise NotImplementedError

    @property
    def smoothness(self) -> float | None:
        """L, the Lipschitz constant of the gradient; None where unknown or infinite."""
        return None

    @property
    def strong_convexity(self) -> float | None:
        """μ, the strong convexity constant; None where unknown."""
        return None

    @property
    def minimizer(self) -> np.ndarray | None:
        """x*, shape (d,); None where unknown."""
        return None

    @property
    def minimum(self) -> float | None:
        """f*, the smallest value; None where unknown."""
        return None

    def initial(self, seed: int, replica: Any) -> np.ndarray:
        """Return the starting point of each replica, shape (…, d); zero unless the problem says otherwise."""
        return np.zeros((*np.shape(replica), self.dimension))

    def value(self, x: np.ndarray) -> np.ndarray:
        """Return f(x), shape (…)."""
        raise NotImplementedError

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Return ∇f(x), shape (…, d)."""
        raise NotImplementedError

    def stochastic_gradient(self, x: np.ndarray, row: Row) -> np.ndarray:
        """Return an unbiased estimate of ∇f(x), its randomness addressed by `row`; the gradient itself by default."""
        return self.gradient(x)

    def block_gradient(self, x: np.ndarray, block: slice) -> np.ndarray:
        """Return the coordinates `block` of ∇f(x)."""
        return self.gradient(x)[..., block]

    def hessian_vector(self, x: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return ∇²f(x) v, shape (…, d)."""
        raise NotImplementedError

    def accuracy(self, x: np.ndarray) -> np.ndarray:
        """Return the share of data classified rightly, for classification problems."""
        raise NotImplementedError
