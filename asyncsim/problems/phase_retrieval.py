"""Phase retrieval: a vector from the squares of its projections."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from asyncsim.problems.base import Problem
from asyncsim.problems.data import refuse_too_large
from asyncsim.problems.start import SaddleStart, check_start, starting_points
from asyncsim.spec import Count
from asyncsim.trace import Row


class PhaseRetrieval(Problem):
    """f(x) = (1/4m) Σᵢ ((aᵢᵀx)² − yᵢ)², real and without noise: yᵢ = (aᵢᵀx*)², so f* = 0 at ±x*.

    The m = `samples` vectors aᵢ are standard normal, x* is uniform on the unit sphere of R^d, d = `dimension`, both
    addressed by `data_seed`. 0 is a stationary point with Hessian −(1/m) Σ yᵢ aᵢaᵢᵀ, the first of the strict saddles
    (a maximum, in fact). Where ‖x‖ ≤ 2, with B = maxᵢ ‖aᵢ‖² · λ_max((1/m) Σ aᵢaᵢᵀ) ≥ max_{‖u‖=1} (1/m) Σ (aᵢᵀu)⁴,

        L = max(12 B, λ_max((1/m) Σ yᵢ aᵢaᵢᵀ)),    ρ = 12 B,

    from vᵀ∇²f v = (1/m) Σ (3(aᵢᵀx)² − yᵢ)(aᵢᵀv)² and the third derivative (6/m) Σ (aᵢᵀx)(aᵢᵀv)³. Both are bounds,
    several times what is reached. `batch` samples, drawn with replacement by address, make a stochastic gradient.

    Runs begin at `start`: "random", the default, is N(0, I/d) by address, "saddle" is 0 exactly; or numbers.

    Source of the problem's landscape: J. Sun, Q. Qu and J. Wright, "A geometric analysis of phase retrieval",
    Foundations of Computational Mathematics 18, 2018. The constants are derived here.

    >>> problem = PhaseRetrieval(dimension=4, samples=40)
    >>> bool(problem.value(-problem.minimizer) < 1e-25), bool(problem.strict_saddle[1] < -1)
    (True, True)
    """

    kind: Literal["phase_retrieval"] = "phase_retrieval"
    dimension: Annotated[Count, Field(ge=2)]
    samples: Count
    batch: Count | None = None
    data_seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    start: SaddleStart = "random"

    @model_validator(mode="after")
    def _check(self) -> PhaseRetrieval:
        check_start(self.start, self.dimension)
        refuse_too_large(self.samples, self.dimension)
        return self

    @cached_property
    def _normals(self) -> np.ndarray:
        """Draws 0 … m − 1 are the aᵢ, draw m makes x*."""
        from asyncsim import streams

        return streams.normals(self.data_seed, 0, -1, np.arange(self.samples + 1), streams.DATA, self.dimension)

    @property
    def vectors(self) -> np.ndarray:
        """The aᵢ, shape (m, d)."""
        return self._normals[:-1]

    @cached_property
    def minimizer(self) -> np.ndarray:
        """x*; −x* is the other minimiser."""
        return self._normals[-1] / np.linalg.norm(self._normals[-1])

    @property
    def minimum(self) -> float:
        """f* = 0."""
        return 0.0

    @cached_property
    def measured(self) -> np.ndarray:
        """The yᵢ, shape (m,)."""
        return np.square(self.vectors @ self.minimizer)

    @cached_property
    def _largest(self) -> tuple[float, float]:
        """B, and the largest eigenvalue of (1/m) Σ yᵢ aᵢaᵢᵀ."""
        squares = np.square(self.vectors).sum(axis=1)
        gram = np.linalg.eigvalsh(self.vectors.T @ self.vectors)[-1] / self.samples
        weighted = np.linalg.eigvalsh((self.vectors * self.measured[:, None]).T @ self.vectors)[-1] / self.samples
        return float(squares.max() * gram), float(weighted)

    @property
    def smoothness(self) -> float:
        """L where ‖x‖ ≤ 2."""
        return max(12 * self._largest[0], self._largest[1])

    @property
    def hessian_lipschitz(self) -> float:
        """ρ where ‖x‖ ≤ 2."""
        return 12 * self._largest[0]

    @property
    def strict_saddle(self) -> tuple[np.ndarray, float]:
        """0, with least eigenvalue −λ_max((1/m) Σ yᵢ aᵢaᵢᵀ)."""
        return np.zeros(self.dimension), -self._largest[1]

    def initial(self, seed: int, replica: Any) -> np.ndarray:
        """Return `start` for each replica, shape (…, d)."""
        return starting_points(self.start, self.dimension, self.dimension**-0.5, seed, replica)

    def value(self, x: np.ndarray) -> np.ndarray:
        """Return f(x), shape (…)."""
        return 0.25 * np.square(np.square(x @ self.vectors.T) - self.measured).mean(axis=-1)

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Return (1/m) Σ ((aᵢᵀx)² − yᵢ)(aᵢᵀx) aᵢ, shape (…, d)."""
        return self.block_gradient(x, slice(None))

    def block_gradient(self, x: np.ndarray, block: slice) -> np.ndarray:
        """Return the coordinates `block` of ∇f(x): half of the gradient's work, and the block's share of the rest."""
        along = x @ self.vectors.T
        return (np.square(along) - self.measured) * along @ self.vectors[:, block] / self.samples

    def stochastic_gradient(self, x: np.ndarray, row: Row) -> np.ndarray:
        """Return the gradient over `batch` samples drawn with replacement; over all where `batch` is None."""
        if self.batch is None:
            return self.gradient(x)
        from asyncsim import streams

        address = (row.seed, row.replica, row.worker, row.draw)
        chosen = streams.integers(*address, streams.SAMPLE, self.batch, self.samples)
        vectors, measured = self.vectors[chosen], self.measured[chosen]
        along = (vectors @ x[..., None])[..., 0]
        weights = (np.square(along) - measured) * along
        return (weights[..., None, :] @ vectors)[..., 0, :] / self.batch

    def hessian_vector(self, x: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return (1/m) Σ (3(aᵢᵀx)² − yᵢ)(aᵢᵀv) aᵢ, shape (…, d)."""
        bends = 3.0 * np.square(x @ self.vectors.T) - self.measured
        return bends * (vector @ self.vectors.T) @ self.vectors / self.samples
