"""Matrix sensing: a low-rank matrix from linear measurements of it."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from asyncsim.problems.base import Problem
from asyncsim.problems.data import refuse_too_large
from asyncsim.problems.start import SaddleStart, check_start, starting_points
from asyncsim.spec import Count, refuse
from asyncsim.trace import Row


class MatrixSensing(Problem):
    """f(U) = (1/2m) Σᵢ (⟨Aᵢ, UUᵀ⟩ − yᵢ)², yᵢ = ⟨Aᵢ, U*U*ᵀ⟩: no noise, so f* = 0 at U* (and U*Q with QQᵀ = I).

    U has n = `size` rows and `rank` columns; x holds its rows one after another, so d = n · rank. The m = `samples`
    symmetric n × n matrices Aᵢ are the symmetric parts of standard normal ones, U* has entries N(0, 1/n), both
    addressed by `data_seed`. 0 is a strict saddle with Hessian −2S (for each column of U), S = (1/m) Σ yᵢ Aᵢ, which
    is near U*U*ᵀ. Where ‖U‖_F ≤ R = 2 ‖U*‖_F, with κ the largest eigenvalue of (1/m) Σ vec(Aᵢ) vec(Aᵢ)ᵀ,

        L = κ (6R² + 2 ‖U*U*ᵀ‖_F),    ρ = 12 κR.

    `batch` samples, drawn with replacement by address, make a stochastic gradient.

    Runs begin at `start`: "random", the default, is N(0, 1/n) in every entry by address, "saddle" is 0 exactly; or
    numbers.

    Source of the problem's landscape: S. Bhojanapalli, B. Neyshabur and N. Srebro, "Global optimality of local search
    for low rank matrix recovery", NIPS 2016. The constants are derived here: along U + tV the residual is a polynomial
    in t with coefficients ‖UUᵀ − U*U*ᵀ‖_F, at most 2 ‖U‖_F and 1 in norm, each times √(mκ).

    >>> problem = MatrixSensing(size=4, rank=2, samples=60)
    >>> problem.dimension, bool(problem.value(problem.minimizer) < 1e-25), bool(problem.strict_saddle[1] < 0)
    (8, True, True)
    """

    kind: Literal["matrix_sensing"] = "matrix_sensing"
    size: Annotated[Count, Field(ge=2)]
    rank: Count
    samples: Count
    batch: Count | None = None
    data_seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    start: SaddleStart = "random"

    @model_validator(mode="after")
    def _check(self) -> MatrixSensing:
        if self.rank > self.size:
            raise refuse(f"'rank' must be at most 'size' = {self.size}, got {self.rank}")
        refuse_too_large(self.samples, self.size**2)
        check_start(self.start, self.dimension)
        return self

    @property
    def dimension(self) -> int:
        """d = n · rank."""
        return self.size * self.rank

    @cached_property
    def matrices(self) -> np.ndarray:
        """The symmetric Aᵢ, each one row, shape (m, n²)."""
        from asyncsim import streams

        size = self.size
        table = streams.normals(self.data_seed, 0, -1, np.arange(self.samples), streams.DATA, size * size)
        square = table.reshape(-1, size, size)
        return (0.5 * (square + square.swapaxes(1, 2))).reshape(-1, size * size)

    @cached_property
    def minimizer(self) -> np.ndarray:
        """U*, flat; one of all U*Q."""
        from asyncsim import streams

        return streams.normals(self.data_seed, 0, -1, self.samples, streams.DATA, self.dimension) / self.size**0.5

    @property
    def minimum(self) -> float:
        """f* = 0."""
        return 0.0

    @cached_property
    def measured(self) -> np.ndarray:
        """The yᵢ, shape (m,)."""
        return self._product(self.minimizer, self.minimizer) @ self.matrices.T

    @cached_property
    def _scale(self) -> float:
        """κ."""
        few = self.samples < self.size**2
        gram = self.matrices @ self.matrices.T if few else self.matrices.T @ self.matrices
        return float(np.linalg.eigvalsh(gram)[-1] / self.samples)

    @property
    def _radius(self) -> float:
        """R."""
        return 2.0 * float(np.linalg.norm(self.minimizer))

    @property
    def smoothness(self) -> float:
        """L where ‖U‖_F ≤ R."""
        target = float(np.linalg.norm(self._product(self.minimizer, self.minimizer)))
        return self._scale * (6 * self._radius**2 + 2 * target)

    @property
    def hessian_lipschitz(self) -> float:
        """ρ where ‖U‖_F ≤ R."""
        return 12 * self._scale * self._radius

    @cached_property
    def strict_saddle(self) -> tuple[np.ndarray, float]:
        """0, with least eigenvalue −2 λ_max(S)."""
        weighted = (self.measured @ self.matrices / self.samples).reshape(self.size, self.size)
        return np.zeros(self.dimension), -2.0 * float(np.linalg.eigvalsh(weighted)[-1])

    def _product(self, x: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return U Vᵀ, flat, shape (…, n²)."""
        left, right = (one.reshape(*one.shape[:-1], self.size, self.rank) for one in (x, other))
        product = left @ right.swapaxes(-1, -2)
        return product.reshape(*product.shape[:-2], self.size**2)

    def _apply(self, flat: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return the matrix `flat` times U, flat, shape (…, d)."""
        matrix = flat.reshape(*flat.shape[:-1], self.size, self.size)
        product = matrix @ x.reshape(*x.shape[:-1], self.size, self.rank)
        return product.reshape(*product.shape[:-2], self.dimension)

    def initial(self, seed: int, replica: Any) -> np.ndarray:
        """Return `start` for each replica, shape (…, d)."""
        return starting_points(self.start, self.dimension, self.size**-0.5, seed, replica)

    def value(self, x: np.ndarray) -> np.ndarray:
        """Return f(U), shape (…)."""
        return 0.5 * np.square(self._product(x, x) @ self.matrices.T - self.measured).mean(axis=-1)

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Return (2/m) Σ (⟨Aᵢ, UUᵀ⟩ − yᵢ) Aᵢ U, flat, shape (…, d)."""
        residual = self._product(x, x) @ self.matrices.T - self.measured
        return self._apply(residual @ self.matrices * (2 / self.samples), x)

    def stochastic_gradient(self, x: np.ndarray, row: Row) -> np.ndarray:
        """Return the gradient over `batch` samples drawn with replacement; over all where `batch` is None."""
        if self.batch is None:
            return self.gradient(x)
        from asyncsim import streams

        address = (row.seed, row.replica, row.worker, row.draw)
        chosen = streams.integers(*address, streams.SAMPLE, self.batch, self.samples)
        matrices = self.matrices[chosen]
        residual = (matrices @ self._product(x, x)[..., None])[..., 0] - self.measured[chosen]
        return self._apply((residual[..., None, :] @ matrices)[..., 0, :] * (2 / self.batch), x)

    def block_gradient(self, x: np.ndarray, block: slice) -> np.ndarray:
        """Return the coordinates `block` of ∇f, from the rows of (1/m) Σ rᵢAᵢ that it needs."""
        start, stop, step = block.indices(self.dimension)
        rows = slice(start // self.rank, -(-stop // self.rank))
        residual = self._product(x, x) @ self.matrices.T - self.measured
        part = self.matrices[:, rows.start * self.size : rows.stop * self.size]
        weighted = (residual @ part * (2 / self.samples)).reshape(*x.shape[:-1], -1, self.size)
        product = weighted @ x.reshape(*x.shape[:-1], self.size, self.rank)
        flat = product.reshape(*x.shape[:-1], -1)
        return flat[..., start - rows.start * self.rank : stop - rows.start * self.rank : step]

    def hessian_vector(self, x: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return (2/m) Σ [(⟨Aᵢ, UUᵀ⟩ − yᵢ) AᵢV + 2⟨Aᵢ, UVᵀ⟩ AᵢU], flat, shape (…, d)."""
        residual = self._product(x, x) @ self.matrices.T - self.measured
        change = 2.0 * self._product(x, vector) @ self.matrices.T
        factor = 2 / self.samples
        return self._apply(residual @ self.matrices * factor, vector) + self._apply(change @ self.matrices * factor, x)
