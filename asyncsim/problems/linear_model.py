"""Losses averaged over data and linear in the features: what least squares, logistic and softmax regression share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import ClassVar

import numpy as np

from asyncsim.problems.empirical_risk import EmpiricalRisk
from asyncsim.spec import NonNegative


class LinearModel(EmpiricalRisk):
    """f(x) = (1/n) Σᵢ ℓ(W aᵢ, bᵢ) + (l2/2) ‖x‖², where x holds the rows of the matrix W one after another.

    A subclass gives the data (aᵢ, bᵢ) and the loss ℓ of the scores W aᵢ. Scores and targets are arrays of shape
    (…, outputs, samples), samples last, so that sums over the few outputs run along the samples.
    """

    l2: NonNegative = 0.0

    #: Largest eigenvalue that the Hessian of ℓ with respect to the scores can have.
    loss_curvature: ClassVar[float]

    # --- what a subclass gives -------------------------------------------------------------------------------------

    @property
    def outputs(self) -> int:
        """Number of rows of W."""
        raise NotImplementedError

    @cached_property
    def table(self) -> np.ndarray:
        """Row i holds (aᵢ, bᵢ), shape (n, width + outputs)."""
        raise NotImplementedError

    def losses(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return ℓ of every sample, shape (…, samples)."""
        raise NotImplementedError

    def slopes(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return the derivative of ℓ by the scores, shape (…, outputs, samples)."""
        raise NotImplementedError

    def bends(self, scores: np.ndarray, change: np.ndarray) -> np.ndarray:
        """Return the second derivative of ℓ by the scores, applied to a change of the scores."""
        raise NotImplementedError

    # --- what follows ----------------------------------------------------------------------------------------------

    @property
    def sample_count(self) -> int:
        """Number n of samples."""
        return len(self.table)

    @property
    def width(self) -> int:
        """Number of columns of W."""
        return self.dimension // self.outputs

    @cached_property
    def features(self) -> np.ndarray:
        """The rows aᵢ, shape (n, width)."""
        return self.table[:, : self.width]

    @cached_property
    def targets(self) -> np.ndarray:
        """The columns bᵢ, shape (outputs, n)."""
        return np.ascontiguousarray(self.table[:, self.width :].T)

    @cached_property
    def covariance_spectrum(self) -> np.ndarray:
        """Eigenvalues of (1/n) Σᵢ aᵢ aᵢᵀ in decreasing order, shape (width,)."""
        count, width = self.features.shape
        gram = self.features.T @ self.features if count >= width else self.features @ self.features.T
        return np.pad(np.linalg.eigvalsh(gram / count)[::-1], (0, width - len(gram)))

    @property
    def smoothness(self) -> float:
        """L = (largest curvature of ℓ) · λ_max((1/n) Σ aᵢ aᵢᵀ) + l2."""
        return float(self.loss_curvature * self.covariance_spectrum[0] + self.l2)

    @property
    def strong_convexity(self) -> float | None:
        """μ = l2; None without regularisation."""
        return self.l2 or None

    @cached_property
    def minimizer(self) -> np.ndarray | None:
        """x*, shape (d,), found by L-BFGS and then Newton's method to rounding error; None without regularisation."""
        return None if self.l2 == 0 else _minimize(self)

    @cached_property
    def minimum(self) -> float | None:
        """f*; None without regularisation."""
        return None if self.minimizer is None else float(self.value(self.minimizer))

    def value(self, x: np.ndarray) -> np.ndarray:
        """Return f(x), shape (…)."""
        return self._by_replicas(x, self._value, ())

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Return ∇f(x), shape (…, d)."""
        return self._by_replicas(x, self._gradient, (self.dimension,))

    def block_gradient(self, x: np.ndarray, block: slice) -> np.ndarray:
        """Return the coordinates `block` of ∇f(x), computed for the rows of W that the block touches."""
        start, stop, step = block.indices(self.dimension)
        rows = slice(start // self.width, -(-stop // self.width))
        inside = slice(start - rows.start * self.width, stop - rows.start * self.width, step)

        def part(x: np.ndarray) -> np.ndarray:
            slopes = self.slopes(self._scores(x), self.targets)[..., rows, :]
            return self._mean(slopes)[..., inside] + self.l2 * x[..., block]

        return self._by_replicas(x, part, (len(range(start, stop, step)),))

    def gradient_over(self, x: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Return the gradient of the mean loss over samples, shape (k,), or (…, k) with x's leading axes."""
        if samples.ndim == 1 and x.ndim > 1:  # as many as a worker holds, for many replicas
            return self._by_replicas(x, lambda rows: self._gradient_over(rows, samples), (self.dimension,))
        return self._gradient_over(x, samples)

    def _gradient_over(self, x: np.ndarray, samples: np.ndarray) -> np.ndarray:
        chosen = self.table.take(samples, axis=0)
        features, targets = chosen[..., : self.width], chosen[..., self.width :].swapaxes(-1, -2)
        weights = x.reshape(*x.shape[:-1], self.outputs, self.width)
        slopes = self.slopes(weights @ features.swapaxes(-1, -2), targets) @ features
        gradient = slopes.reshape(*slopes.shape[:-2], self.dimension) / samples.shape[-1]
        return gradient + self.l2 * x if self.l2 else gradient

    def hessian_vector(self, x: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return ∇²f(x) v, shape (…, d)."""
        bends = self.bends(self._scores(x), self._scores(vector))
        return self._mean(bends) + self.l2 * vector

    def _value(self, x: np.ndarray) -> np.ndarray:
        data = self.losses(self._scores(x), self.targets).mean(axis=-1)
        return data + 0.5 * self.l2 * np.square(x).sum(axis=-1)

    def _gradient(self, x: np.ndarray) -> np.ndarray:
        return self._mean(self.slopes(self._scores(x), self.targets)) + self.l2 * x

    def _scores(self, x: np.ndarray) -> np.ndarray:
        """Return W aᵢ of every sample, shape (…, outputs, n), as one product of matrices for all replicas."""
        scores = x.reshape(-1, self.width) @ self.features.T
        return scores.reshape(*x.shape[:-1], self.outputs, -1)

    def _mean(self, slopes: np.ndarray) -> np.ndarray:
        """Return the mean over samples of (slope times features), flat; slopes have shape (…, rows of W, n)."""
        count, rows = slopes.shape[-1], slopes.shape[-2]
        mean = slopes.reshape(-1, count) @ self.features / count
        return mean.reshape(*slopes.shape[:-2], rows * self.width)

    def _by_replicas(self, x: np.ndarray, function: Callable, shape: tuple[int, ...]) -> np.ndarray:
        """Apply a function to the leading axes of x in pieces whose scores fit the cache."""
        x = np.asarray(x, dtype=np.float64)
        rows = x.reshape(-1, self.dimension)
        step = max(1, SCORES_AT_ONCE // (self.outputs * len(self.features)))
        pieces = [function(rows[low : low + step]) for low in range(0, len(rows), step)]
        return np.concatenate(pieces).reshape((*x.shape[:-1], *shape))[()]


#: How many scores a full evaluation holds at once: 512 KB. Larger pieces leave the cache and take 3 times as long.
SCORES_AT_ONCE = 1 << 16


def _minimize(problem: LinearModel) -> np.ndarray:
    """Return the minimiser of a strongly convex problem."""
    from scipy.optimize import minimize
    from scipy.sparse.linalg import LinearOperator, cg
    from threadpoolctl import threadpool_limits

    size = problem.dimension
    options = {"maxiter": 20_000, "maxfun": 20_000, "ftol": 0.0, "gtol": 1e-9}
    with threadpool_limits(1):  # the same bits on any number of cores
        x = minimize(problem.value, np.zeros(size), jac=problem.gradient, method="L-BFGS-B", options=options).x
        for _ in range(3):
            hessian = LinearOperator((size, size), matvec=lambda v, x=x: problem.hessian_vector(x, v.reshape(-1)))
            step, _ = cg(hessian, problem.gradient(x), rtol=1e-4, atol=0.0)
            x = x - step
    x.flags.writeable = False
    return x
