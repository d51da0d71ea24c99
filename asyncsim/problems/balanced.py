"""What recovering a low-rank matrix from linear measurements shares: two factors, kept in balance."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from asyncsim.problems.base import Problem
from asyncsim.problems.start import SaddleStart, starting_points


class BalancedFactors(Problem):
    """f(U, V) = ½ ‖𝒜(UVᵀ) − y‖² + ¼ ‖UᵀU − VᵀV‖², y = 𝒜(U*V*ᵀ): no noise, so f* = 0 at (U*, V*).

    U is m × r, V is n × r, 𝒜 is linear; x holds the rows of U and then those of V, so d = r (m + n). The second term
    takes nothing from the minimum: it chooses among the pairs (UG, VG⁻ᵀ) of equal product those that are balanced, and
    U*, V* is one. What is left is (U*Q, V*Q) with QQᵀ = I.

    0 is a strict saddle: there vᵀ∇²f v = −2⟨𝒜ᵀy, ABᵀ⟩ for v = (A, B), least −σ₁(𝒜ᵀy) among unit vectors. Where
    ‖x‖ ≤ R = 2 ‖x*‖, with κ = ‖𝒜‖²,

        L = (3/2 κ + 3) R² + σ₁(𝒜ᵀy),    ρ = (3κ + 6) R,

    since along x + tv the residual is 𝒜(UVᵀ) − y + t 𝒜(AVᵀ + UBᵀ) + t² 𝒜(ABᵀ), where ‖AVᵀ + UBᵀ‖ ≤ ‖v‖ R, ‖ABᵀ‖ ≤
    ½ ‖v‖² and ‖UVᵀ‖ ≤ ½ R²; and what the second term squares is, with terms of norm at most R², 2 ‖v‖ R and ‖v‖²,
    quadratic in t, too.
    """

    data_seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    start: SaddleStart = "random"

    if TYPE_CHECKING:
        # Not there at run time, so that it may be a field of a subclass.
        @property
        def rank(self) -> int:
            """r."""

    # --- what a subclass gives -------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """m and n."""
        raise NotImplementedError

    @cached_property
    def minimizer(self) -> np.ndarray:
        """x*: U*, then V*, flat and balanced; one of many."""
        raise NotImplementedError

    @cached_property
    def measured(self) -> np.ndarray:
        """y."""
        raise NotImplementedError

    def measure(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return 𝒜(UVᵀ), for leading axes of both, the measurements along as many last axes as `measured` has."""
        raise NotImplementedError

    def pull_back(self, residual: np.ndarray, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return S V and SᵀU for the matrix S = 𝒜ᵀ(residual)."""
        raise NotImplementedError

    @cached_property
    def gain(self) -> float:
        """κ = ‖𝒜‖², or a bound on it."""
        raise NotImplementedError

    # --- what follows ----------------------------------------------------------------------------------------------

    @property
    def dimension(self) -> int:
        """d = r (m + n)."""
        return self.rank * sum(self.shape)

    @property
    def minimum(self) -> float:
        """f* = 0."""
        return 0.0

    @cached_property
    def _pulled(self) -> float:
        """σ₁(𝒜ᵀy), from 𝒜ᵀy times the columns of I."""
        rows, columns = self.shape
        table, _ = self.pull_back(self.measured, np.zeros((rows, columns)), np.eye(columns))
        return float(np.linalg.norm(table, 2))

    @property
    def _radius(self) -> float:
        """R."""
        return 2.0 * float(np.linalg.norm(self.minimizer))

    @property
    def smoothness(self) -> float:
        """L where ‖x‖ ≤ R."""
        return (1.5 * self.gain + 3.0) * self._radius**2 + self._pulled

    @property
    def hessian_lipschitz(self) -> float:
        """ρ where ‖x‖ ≤ R."""
        return (3.0 * self.gain + 6.0) * self._radius

    @property
    def strict_saddle(self) -> tuple[np.ndarray, float]:
        """0, with least eigenvalue −σ₁(𝒜ᵀy)."""
        return np.zeros(self.dimension), -self._pulled

    def factors(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return U and V as views of x, shapes (…, m, r) and (…, n, r)."""
        rows = x.reshape(*x.shape[:-1], sum(self.shape), self.rank)
        return rows[..., : self.shape[0], :], rows[..., self.shape[0] :, :]

    def initial(self, seed: int, replica: Any) -> np.ndarray:
        """Return `start` for each replica, shape (…, d)."""
        spread = float(np.prod(self.shape)) ** -0.25
        return starting_points(self.start, self.dimension, spread, seed, replica)

    def value(self, x: np.ndarray) -> np.ndarray:
        """Return f(U, V), shape (…)."""
        left, right = self.factors(x)
        residual = self.measure(left, right) - self.measured
        last = tuple(range(-self.measured.ndim, 0))
        return 0.5 * np.square(residual).sum(axis=last) + 0.25 * np.square(_imbalance(left, right)).sum(axis=(-2, -1))

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Return (S V + U G, SᵀU − V G), flat, shape (…, d), with S = 𝒜ᵀ(𝒜(UVᵀ) − y) and G = UᵀU − VᵀV."""
        left, right = self.factors(x)
        return self._with_balance(x, *self.pull_back(self.measure(left, right) - self.measured, left, right))

    def _with_balance(self, x: np.ndarray, by_left: np.ndarray, by_right: np.ndarray) -> np.ndarray:
        """Return the gradient from that of the first term, flat."""
        left, right = self.factors(x)
        imbalance = _imbalance(left, right)
        return _flat(by_left + left @ imbalance, by_right - right @ imbalance)

    def hessian_vector(self, x: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return ∇²f(x) v, flat, shape (…, d): the gradient's derivative along v, product by product."""
        (left, right), (a, b) = self.factors(x), self.factors(vector)
        residual = self.measure(left, right) - self.measured
        change = self.measure(a, right) + self.measure(left, b)
        here, there = self.pull_back(residual, a, b), self.pull_back(change, left, right)
        imbalance, moved = _imbalance(left, right), a.swapaxes(-1, -2) @ left - b.swapaxes(-1, -2) @ right
        moved = moved + moved.swapaxes(-1, -2)
        return _flat(
            here[0] + there[0] + a @ imbalance + left @ moved, here[1] + there[1] - b @ imbalance - right @ moved
        )


def _imbalance(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return UᵀU − VᵀV, shape (…, r, r)."""
    return left.swapaxes(-1, -2) @ left - right.swapaxes(-1, -2) @ right


def _flat(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    rows = np.concatenate([left, right], axis=-2)
    return rows.reshape(*rows.shape[:-2], -1)
