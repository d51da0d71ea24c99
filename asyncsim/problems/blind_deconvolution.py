"""Blind deconvolution: a filter and a signal from their convolution."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
from pydantic import model_validator

from asyncsim.problems.balanced import BalancedFactors
from asyncsim.problems.data import refuse_too_large
from asyncsim.problems.start import check_start
from asyncsim.spec import Count, refuse
from asyncsim.trace import Row


class BlindDeconvolution(BalancedFactors):
    """f(h, z) = (1/2m) ‖h ⊛ Cz − y‖² + ¼ (‖h‖² − ‖z‖²)², y = h* ⊛ Cz*: both from their circular convolution.

    The filter h has `filter` coefficients k, the signal Cz has m = `samples` entries and lies in the span of the n =
    `signal` columns of C, which are standard normal:

        (h ⊛ Cz)_t = Σ_{s<k} h_s (Cz)_{t−s mod m},

    which the discrete Fourier transform F turns into the products Fh ∘ FCz of the papers; in real numbers, since F is a
    rotation but for scale. h* and z* are uniform on unit spheres; they and C are addressed by `data_seed`. x holds h,
    then z, d = k + n. A filter c times as long with a signal c times as short gives the same y; the second term takes
    the pair with ‖h‖ = ‖z‖, so that f* = 0 at ±(h*, z*). Over C the mean of f is ½ ‖hzᵀ − h*z*ᵀ‖² and that term. 0 is
    a strict saddle. Where ‖x‖ ≤ R = 2√2, with κ the largest eigenvalue of 𝒜ᵀ𝒜 for 𝒜(hzᵀ) = (h ⊛ Cz)/√m,

        L = (3/2 κ + 3) R² + σ₁(𝒜ᵀy),    ρ = (3κ + 6) R.

    `batch` of the m equations, drawn with replacement by address, make a stochastic gradient (of the first term; the
    second is exact).

    Runs begin at `start`: "random", the default, is N(0, 1/√(kn)) in every entry by address, "saddle" is 0 exactly; or
    numbers. With few equations there are other minima; what is proved is of starts near (h*, z*).

    Sources: X. Li, S. Ling, T. Strohmer and K. Wei, "Rapid, robust, and reliable blind deconvolution via nonconvex
    optimization", Applied and Computational Harmonic Analysis 47, 2019; C. Ma, K. Wang, Y. Chi and Y. Chen, "Implicit
    regularization in nonconvex statistical estimation", Foundations of Computational Mathematics 20, 2020. Their
    numbers are complex; the first have a penalty on large values of Fh, the second nothing beside the first term. The
    constants are derived in `BalancedFactors`.

    >>> problem = BlindDeconvolution(filter=3, signal=4, samples=40)
    >>> problem.dimension, bool(problem.value(-problem.minimizer) < 1e-25), bool(problem.strict_saddle[1] < 0)
    (7, True, True)
    """

    rank: ClassVar[int] = 1

    kind: Literal["blind_deconvolution"] = "blind_deconvolution"
    filter: Count
    signal: Count
    samples: Count
    batch: Count | None = None

    @model_validator(mode="after")
    def _check(self) -> BlindDeconvolution:
        if self.samples < max(self.shape):
            names = f"'filter' = {self.filter} and 'signal' = {self.signal}"
            raise refuse(f"'samples' must not be less than {names}, got {self.samples}")
        refuse_too_large(self.samples, self.filter * self.signal)
        check_start(self.start, self.dimension)
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """k and n."""
        return self.filter, self.signal

    @cached_property
    def _table(self) -> np.ndarray:
        """Row t of 𝒜 times √m, for each t: the matrix with entries C_{t−s, j}, shape (m, k, n)."""
        from asyncsim import streams

        draws = np.arange(self.samples)
        columns = streams.normals(self.data_seed, 0, -1, draws, streams.DATA, self.signal)
        return columns[(draws[:, None] - np.arange(self.filter)) % self.samples]

    @cached_property
    def minimizer(self) -> np.ndarray:
        """(h*, z*); its negative is the other minimiser."""
        from asyncsim import streams

        address = (self.data_seed, 0, -1)
        filtering = streams.normals(*address, self.samples, streams.DATA, self.filter)
        signal = streams.normals(*address, self.samples + 1, streams.DATA, self.signal)
        return np.concatenate([filtering / np.linalg.norm(filtering), signal / np.linalg.norm(signal)])

    @cached_property
    def measured(self) -> np.ndarray:
        """y/√m, shape (m,)."""
        return self.measure(*self.factors(self.minimizer))

    @cached_property
    def gain(self) -> float:
        """κ."""
        flat = self._table.reshape(self.samples, -1)
        return float(np.linalg.norm(flat, 2) ** 2 / self.samples)

    def measure(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return (h ⊛ Cz)/√m, shape (…, m)."""
        product = left @ right.swapaxes(-1, -2)
        flat = product.reshape(*product.shape[:-2], -1)
        return flat @ self._table.reshape(self.samples, -1).T / self.samples**0.5

    def pull_back(self, residual: np.ndarray, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return S z and Sᵀh for S = 𝒜ᵀ(residual), S_sj = (1/√m) Σ_t r_t C_{t−s, j}."""
        flat = residual @ self._table.reshape(self.samples, -1) / self.samples**0.5
        table = flat.reshape(*flat.shape[:-1], *self.shape)
        return table @ right, table.swapaxes(-1, -2) @ left

    def stochastic_gradient(self, x: np.ndarray, row: Row) -> np.ndarray:
        """Return the gradient over `batch` equations drawn with replacement; over all where `batch` is None."""
        if self.batch is None:
            return self.gradient(x)
        from asyncsim import streams

        address = (row.seed, row.replica, row.worker, row.draw)
        chosen = streams.integers(*address, streams.SAMPLE, self.batch, self.samples)
        table = self._table[chosen].reshape(*chosen.shape, -1)
        left, right = self.factors(x)
        product = (left @ right.swapaxes(-1, -2)).reshape(*x.shape[:-1], -1, 1)
        errors = (table @ product)[..., 0] - self.measured[chosen] * self.samples**0.5
        flat = (errors[..., None, :] @ table)[..., 0, :] / self.batch
        pulled = flat.reshape(*flat.shape[:-1], *self.shape)
        return self._with_balance(x, pulled @ right, pulled.swapaxes(-1, -2) @ left)
