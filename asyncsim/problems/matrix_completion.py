"""Matrix completion: a low-rank matrix from some of its entries."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from asyncsim.problems.balanced import BalancedFactors
from asyncsim.problems.data import refuse_too_large
from asyncsim.problems.start import check_start
from asyncsim.spec import Count, refuse
from asyncsim.trace import Row


class MatrixCompletion(BalancedFactors):
    """f(U, V) = (1/2p) Σ_Ω ((UVᵀ)ᵢⱼ − Mᵢⱼ)² + ¼ ‖UᵀU − VᵀV‖²: M from those of its entries that are in Ω.

    M is m × n, m = `rows`, n = `columns`, of rank r = `rank`: the product of factors with entries N(0, 1/m) and
    N(0, 1/n), so that its singular values are near 1. Each of its entries is in Ω with probability p = `observed`,
    independently. Both are addressed by `data_seed`. x holds the rows of U and then those of V, so d = r (m + n);
    f* = 0 at the balanced factors of M (which may have others where too few entries are known), and 0 is a strict
    saddle with least eigenvalue −σ₁(P_Ω M)/p. Where ‖x‖ ≤ R = 2 ‖x*‖,

        L = (3/(2p) + 3) R² + σ₁(P_Ω M)/p,    ρ = (3/p + 6) R.

    `batch` entries of Ω, drawn with replacement by address, make a stochastic gradient (of the first term; the second
    is exact).

    Runs begin at `start`: "random", the default, is N(0, 1/√(mn)) in every entry by address, "saddle" is 0 exactly; or
    numbers.

    Sources: R. Ge, J. D. Lee and T. Ma, "Matrix completion has no spurious local minimum", NIPS 2016; with two factors
    and the balancing term, R. Ge, C. Jin and Y. Zheng, "No spurious local minima in nonconvex low rank problems", ICML
    2017. Their theorems add a penalty on rows much longer than the rest, which is left out here. The constants are
    derived in `BalancedFactors`, with 𝒜 = P_Ω/√p and so κ = 1/p.

    >>> problem = MatrixCompletion(rows=6, columns=5, rank=2, observed=0.8)
    >>> problem.dimension, bool(problem.value(problem.minimizer) < 1e-25), bool(problem.strict_saddle[1] < 0)
    (22, True, True)
    """

    kind: Literal["matrix_completion"] = "matrix_completion"
    rows: Count
    columns: Count
    rank: Count
    observed: Annotated[float, Field(gt=0, le=1)]
    batch: Count | None = None

    @model_validator(mode="after")
    def _check(self) -> MatrixCompletion:
        if self.rank > min(self.shape):
            least = min(self.shape)
            raise refuse(f"'rank' must be at most {least}, the matrix is {self.rows} × {self.columns}; got {self.rank}")
        refuse_too_large(*self.shape)
        if self.observed * self.rows * self.columns < 1:
            raise refuse(f"'observed' = {self.observed} of {self.rows} × {self.columns} entries is less than one entry")
        check_start(self.start, self.dimension)
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """m and n."""
        return self.rows, self.columns

    @cached_property
    def matrix(self) -> np.ndarray:
        """M, shape (m, n)."""
        from asyncsim import streams

        both = np.arange(sum(self.shape))  # draw i is row i of the factors, one above the other
        normals = streams.normals(self.data_seed, 0, -1, both, streams.DATA, self.rank)
        return normals[: self.rows] @ normals[self.rows :].T / (self.rows * self.columns) ** 0.5

    @cached_property
    def mask(self) -> np.ndarray:
        """1 for the entries of Ω, else 0, shape (m, n)."""
        from asyncsim import streams

        draws = np.arange(self.rows) + sum(self.shape)
        uniforms = streams.uniforms(self.data_seed, 0, -1, draws, streams.DATA, self.columns)
        mask = (uniforms < self.observed).astype(np.float64)
        if not mask.any():
            raise refuse(f"with 'data_seed' = {self.data_seed} no entry is observed")
        return mask

    @cached_property
    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the entries of Ω."""
        rows, columns = np.nonzero(self.mask)
        return rows, columns

    @cached_property
    def minimizer(self) -> np.ndarray:
        """The balanced factors of M, flat; one of all (U*Q, V*Q)."""
        left, values, right = np.linalg.svd(self.matrix, full_matrices=False)
        root = np.sqrt(values[: self.rank])
        return np.concatenate([left[:, : self.rank] * root, right[: self.rank].T * root]).reshape(-1)

    @cached_property
    def measured(self) -> np.ndarray:
        """P_Ω M/√p."""
        return self.mask * self.matrix / self.observed**0.5

    @property
    def gain(self) -> float:
        """κ = 1/p."""
        return 1.0 / self.observed

    def measure(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return P_Ω(UVᵀ)/√p, shape (…, m, n)."""
        return left @ right.swapaxes(-1, -2) * (self.mask / self.observed**0.5)

    def pull_back(self, residual: np.ndarray, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return S V and SᵀU for S = P_Ω(residual)/√p; the residual is 0 outside Ω."""
        spread = residual / self.observed**0.5
        return spread @ right, spread.swapaxes(-1, -2) @ left

    def block_gradient(self, x: np.ndarray, block: slice) -> np.ndarray:
        """Return the coordinates `block` of ∇f, from the rows and columns of M that it needs."""
        left, right = self.factors(x)
        start, stop, step = block.indices(self.dimension)
        low, high = start // self.rank, -(-max(stop, start) // self.rank)
        upper, lower = slice(low, min(high, self.rows)), slice(max(low - self.rows, 0), max(high - self.rows, 0))
        imbalance = left.swapaxes(-1, -2) @ left - right.swapaxes(-1, -2) @ right
        parts = []
        if low < self.rows:
            u = left[..., upper, :]
            error = self.mask[upper] * (u @ right.swapaxes(-1, -2) - self.matrix[upper]) / self.observed
            parts.append(error @ right + u @ imbalance)
        if high > self.rows:
            v = right[..., lower, :]
            error = self.mask[:, lower] * (left @ v.swapaxes(-1, -2) - self.matrix[:, lower]) / self.observed
            parts.append(error.swapaxes(-1, -2) @ left - v @ imbalance)
        rows = np.concatenate(parts, axis=-2) if parts else np.zeros((*x.shape[:-1], 0, self.rank))
        flat = rows.reshape(*x.shape[:-1], -1)
        return flat[..., start - low * self.rank : max(stop, start) - low * self.rank : step]

    def stochastic_gradient(self, x: np.ndarray, row: Row) -> np.ndarray:
        """Return the gradient over `batch` entries drawn with replacement; over all where `batch` is None."""
        if self.batch is None:
            return self.gradient(x)
        from asyncsim import streams

        count = self.known[0].size
        chosen = streams.integers(row.seed, row.replica, row.worker, row.draw, streams.SAMPLE, self.batch, count)
        rows, columns = (place[chosen] for place in self.known)
        left, right = self.factors(x)
        u = np.take_along_axis(left, rows[..., None], axis=-2)
        v = np.take_along_axis(right, columns[..., None], axis=-2)
        errors = (u * v).sum(axis=-1, keepdims=True) - self.matrix[rows, columns][..., None]
        errors *= count / (self.batch * self.observed)
        by_rows = np.zeros((chosen.size // self.batch, sum(self.shape), self.rank))
        replica = np.arange(len(by_rows))[:, None]
        np.add.at(by_rows, (replica, rows.reshape(-1, self.batch)), (errors * v).reshape(-1, self.batch, self.rank))
        below = columns.reshape(-1, self.batch) + self.rows
        np.add.at(by_rows, (replica, below), (errors * u).reshape(-1, self.batch, self.rank))
        return self._with_balance(x, *self.factors(by_rows.reshape(x.shape)))
