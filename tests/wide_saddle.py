"""A strict saddle whose Hessian changes slowly, so that it is no approximate second-order point even for large ε."""

from __future__ import annotations

import numpy as np

from asyncsim import streams
from asyncsim.problems.base import Problem
from asyncsim.trace import Row


class WideSaddle(Problem):
    """f(x) = ½ Σ_{i<d} x_i² + w² (−½u² + ¼u⁴), u = x_d / w: the saddle at 0 has minima at distance w = `width`.

    ρ = 9/w where |u| ≤ 3/2. Stochastic gradients have noise of variance 1 in all. `accuracy` says whether x is an
    ε-second-order stationary point: ‖∇f(x)‖ ≤ ε and λ_min ≥ −√(ρε), with ε = `epsilon`.
    """

    size: int
    epsilon: float
    width: float = 4.0

    @property
    def dimension(self) -> int:
        return self.size

    def value(self, x: np.ndarray) -> np.ndarray:
        u = x[..., -1] / self.width
        return 0.5 * (x[..., :-1] ** 2).sum(axis=-1) + self.width**2 * (-0.5 * u**2 + 0.25 * u**4)

    def gradient(self, x: np.ndarray) -> np.ndarray:
        gradient = x.copy()
        gradient[..., -1] = -x[..., -1] + x[..., -1] ** 3 / self.width**2
        return gradient

    def stochastic_gradient(self, x: np.ndarray, row: Row) -> np.ndarray:
        noise = streams.normals(row.seed, row.replica, row.worker, row.draw, streams.SAMPLE, self.size)
        return self.gradient(x) + noise / np.sqrt(self.size)

    def accuracy(self, x: np.ndarray) -> np.ndarray:
        flat = np.linalg.norm(self.gradient(x), axis=-1) <= self.epsilon
        lowest = np.minimum(1.0, -1.0 + 3.0 * (x[..., -1] / self.width) ** 2)
        return np.asarray(flat & (lowest >= -np.sqrt(9.0 / self.width * self.epsilon)), dtype=float)
