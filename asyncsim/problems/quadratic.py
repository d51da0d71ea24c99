"""The quadratic: the problem on which everything can be calculated."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from asyncsim.problems.base import Problem
from asyncsim.problems.start import Start, starting_point
from asyncsim.spec import Count, Floats, NonNegative, refuse
from asyncsim.trace import Row


class Quadratic(Problem):
    """f(x) = ½ Σᵢ λᵢ xᵢ², with gradient noise of the same size everywhere.

    The λᵢ are `eigenvalues` (negative ones make a saddle), or, where `dimension` = d and `condition_number` = κ are
    given instead, λᵢ = κ^((i−1)/(d−1)) for i = 1 … d, spaced geometrically from 1 to κ. A rotation would change
    nothing for a method whose steps do not depend on the coordinates, so there is none. The stochastic gradient is

        ∇f(x) + `noise` · ξ,    ξ ~ N(0, I),

    with ξ addressed by the gradient's row. Runs start at `start`. Known: L = maxᵢ |λᵢ|, μ = minᵢ λᵢ where that is
    positive; x* = 0 and f* = 0 where every λᵢ is positive.

    >>> problem = Quadratic(dimension=3, condition_number=100.0)
    >>> problem.spectrum.tolist()
    [1.0, 10.0, 100.0]
    >>> float(problem.value(np.ones(3)))
    55.5
    """

    kind: Literal["quadratic"] = "quadratic"
    eigenvalues: Floats | None = None
    dimension: Count = Field(default=None)  # type: ignore[assignment]  # found out where not given
    condition_number: Annotated[float, Field(ge=1)] | None = None
    noise: NonNegative = 0.0
    start: Start = 1.0

    @model_validator(mode="after")
    def _one_spectrum(self) -> Quadratic:
        if (self.eigenvalues is None) == (self.condition_number is None):
            raise refuse("give either 'eigenvalues', or 'dimension' with 'condition_number'")
        if self.eigenvalues is not None:
            if not self.eigenvalues:
                raise refuse("'eigenvalues' is empty: at least one is needed")
            if self.dimension not in (None, len(self.eigenvalues)):
                raise refuse(f"'dimension' is {self.dimension}, but there are {len(self.eigenvalues)} eigenvalues")
            object.__setattr__(self, "dimension", len(self.eigenvalues))
        elif self.dimension is None:
            raise refuse("'condition_number' needs 'dimension', the number of eigenvalues")
        elif self.dimension == 1 and self.condition_number != 1:
            raise refuse(f"one eigenvalue has condition number 1, got {self.condition_number}")
        starting_point(self.start, self.dimension)
        return self

    @cached_property
    def spectrum(self) -> np.ndarray:
        """The eigenvalues λᵢ of the Hessian, shape (d,)."""
        if self.eigenvalues is not None:
            return np.array(self.eigenvalues, dtype=np.float64)
        return np.geomspace(1.0, self.condition_number or 1.0, self.dimension)

    @property
    def smoothness(self) -> float:
        """L = max |λᵢ|."""
        return float(np.abs(self.spectrum).max())

    @property
    def hessian_lipschitz(self) -> float:
        """ρ = 0: the Hessian is the same everywhere."""
        return 0.0

    @property
    def strict_saddle(self) -> tuple[np.ndarray, float] | None:
        """0, where an eigenvalue is negative, with the least of them."""
        smallest = float(self.spectrum.min())
        return (np.zeros(self.dimension), smallest) if smallest < 0 else None

    @property
    def strong_convexity(self) -> float | None:
        """μ = min λᵢ; None where that is not positive."""
        smallest = float(self.spectrum.min())
        return smallest if smallest > 0 else None

    @property
    def minimizer(self) -> np.ndarray | None:
        """x* = 0; None where an eigenvalue is not positive."""
        return None if self.strong_convexity is None else np.zeros(self.dimension)

    @property
    def minimum(self) -> float | None:
        """f* = 0; None where an eigenvalue is not positive."""
        return None if self.strong_convexity is None else 0.0

    def initial(self, seed: int, replica: Any) -> np.ndarray:
        """Return `start` for each replica, shape (…, d)."""
        return np.tile(starting_point(self.start, self.dimension), (*np.shape(replica), 1))

    def value(self, x: np.ndarray) -> np.ndarray:
        """Return ½ Σ λᵢ xᵢ², shape (…)."""
        # A matrix product rounds one x another way than many, on some processors.
        return 0.5 * (self.spectrum * np.square(x)).sum(axis=-1)

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Return λᵢ xᵢ, shape (…, d)."""
        return self.spectrum * x

    def stochastic_gradient(self, x: np.ndarray, row: Row) -> np.ndarray:
        """Return the gradient with addressed noise, shape (…, d)."""
        return add_noise(self.gradient(x), self.noise, row)

    def block_gradient(self, x: np.ndarray, block: slice) -> np.ndarray:
        """Return λᵢ xᵢ for the coordinates of the block."""
        return self.spectrum[block] * x[..., block]

    def sweep(self, x: np.ndarray, block: slice, step: float) -> np.ndarray:
        """Return the block after a pass over it: no coordinate feels another, so all of them move at once."""
        return x[..., block] - step * self.block_gradient(x, block)

    def hessian_vector(self, x: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return λᵢ vᵢ at every x, shape (…, d)."""
        return np.broadcast_to(self.spectrum * vector, np.broadcast_shapes(np.shape(x), np.shape(vector)))


def add_noise(gradient: np.ndarray, noise: float, row: Row) -> np.ndarray:
    """Return gradient + noise · ξ, with standard normal ξ at the row's address."""
    if noise == 0.0:
        return gradient
    from asyncsim import streams

    dimension = gradient.shape[-1]
    normals = streams.normals(row.seed, row.replica, row.worker, row.draw, streams.NOISE, dimension)
    normals *= noise
    return gradient + normals
