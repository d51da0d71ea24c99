"""A chain of saddles, through which gradient descent takes exponentially long."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from pydantic import model_validator

from asyncsim.problems.base import Problem
from asyncsim.problems.start import SaddleStart, check_start, starting_points
from asyncsim.spec import Count, Positive

#: t, the length of a step of the chain.
LENGTH = math.e


class SaddleChain(Problem):
    """d = `dimension` coordinates that must cross one after another, the next waiting at a saddle meanwhile.

    With L = `L`, γ = `gamma`, t = e, and everything mirrored (x stands for |x|),

        f(x) = P(x₁) + Σ_{i≥2} [(1 − b(x_{i−1})) L xᵢ² + b(x_{i−1}) P(xᵢ)].

    P is the road of one coordinate: −γx² up to t, then downhill to the bottom of the bowl L (x − 4t)² + P(4t), which it
    is from 2t on. Between t and 2t, with u = x/t − 1, its slope is the cubic

        P'(x) = s₀ + m₀u + (3(s₁ − s₀) − 2m₀ − m₁) u² + (2(s₀ − s₁) + m₀ + m₁) u³,
        s₀ = m₀ = −2γt,  s₁ = −4Lt,  m₁ = 2Lt,

    which makes P' once continuously differentiable. b opens the road of the next coordinate: 0 up to t, 1 from 2t on,
    u³ (10 − 15u + 6u²) between. So f is twice continuously differentiable, the minimum is at xᵢ = 4t for all i, and
    the points (4t, …, 4t, 0, …, 0) are strict saddles with least eigenvalue −2γ. A coordinate that waits shrinks by
    1 − 2ηL per step of gradient descent with step η and then grows by 1 + 2ηγ; each takes longer to come out than
    the one before it by the factor 1 + ln(1/(1 − 2ηL)) / ln(1 + 2ηγ). In double precision a waiting coordinate is
    the smallest number that there is, or 0, after about 745 / ln(1/(1 − 2ηL)) steps; its step is rounded to 0, and it
    never leaves.

    L is stated along the roads, that is where coordinates behind one that is crossing are 0 still:
    max(2L, max |P''|). Far from the roads the Hessian is about 70 times larger.

    Runs begin at `start`: "random", the default, is uniform on [0, 1]^d by address, "saddle" is 0 exactly; or a number
    for all coordinates, or a list of one each.

    Source: S. Du, C. Jin, J. Lee, M. Jordan, B. Póczos and A. Singh, "Gradient descent can take exponential time to
    escape saddle points", NIPS 2017, Section 4. They join the pieces in another way; along the roads it is the same.

    >>> problem = SaddleChain(dimension=3)
    >>> problem.gradient(problem.minimizer).tolist()
    [0.0, 0.0, 0.0]
    >>> x = np.array([4 * LENGTH, 0.0, 0.0])
    >>> problem.gradient(x).tolist(), problem.hessian_vector(x, np.eye(3)).diagonal().tolist()
    ([0.0, 0.0, 0.0], [2.0, -2.0, 2.0])
    """

    kind: Literal["saddle_chain"] = "saddle_chain"
    dimension: Count
    L: Positive = 1.0
    gamma: Positive = 1.0
    start: SaddleStart = "random"

    @model_validator(mode="after")
    def _matching_start(self) -> SaddleChain:
        check_start(self.start, self.dimension)
        return self

    @property
    def smoothness(self) -> float:
        """max(2L, max |P''|), along the roads."""
        _, first, second, third = self._cubic
        turning = [-second / (3 * third)] if third and 0 < -second / (3 * third) < 1 else []
        bends = [(first + 2 * second * u + 3 * third * u * u) / LENGTH for u in (0.0, 1.0, *turning)]
        return max(2 * self.L, *map(abs, bends))

    @property
    def strict_saddle(self) -> tuple[np.ndarray, float]:
        """0, the first of the chain, with least eigenvalue −2γ."""
        return np.zeros(self.dimension), -2 * self.gamma

    @property
    def minimizer(self) -> np.ndarray:
        """(4t, …, 4t); its mirror images are minima as well."""
        return np.full(self.dimension, 4 * LENGTH)

    @property
    def minimum(self) -> float:
        """f* = d P(4t)."""
        return float(self.value(self.minimizer))

    @property
    def _cubic(self) -> tuple[float, float, float, float]:
        """The coefficients of P' between t and 2t, by powers of u."""
        s0 = m0 = -2 * self.gamma * LENGTH
        s1, m1 = -4 * self.L * LENGTH, 2 * self.L * LENGTH
        return s0, m0, 3 * (s1 - s0) - 2 * m0 - m1, 2 * (s0 - s1) + m0 + m1

    def _road(self, x: np.ndarray, order: int) -> np.ndarray:
        """Return P, P' or P'' at x ≥ 0."""
        c0, c1, c2, c3 = self._cubic
        u = np.clip(x / LENGTH - 1.0, 0.0, 1.0)
        if order == 0:
            low = -self.gamma * np.square(np.minimum(x, LENGTH))
            middle = LENGTH * u * (c0 + u * (c1 / 2 + u * (c2 / 3 + u * c3 / 4)))
            beyond = np.maximum(x, 2 * LENGTH) - 4 * LENGTH
            return low + middle + self.L * (np.square(beyond) - 4 * LENGTH**2)
        if order == 1:
            first, last = -2 * self.gamma * x, 2 * self.L * (x - 4 * LENGTH)
            middle = c0 + u * (c1 + u * (c2 + u * c3))
        else:
            first, last = np.full_like(x, -2 * self.gamma), np.full_like(x, 2 * self.L)
            middle = (c1 + u * (2 * c2 + u * 3 * c3)) / LENGTH
        return np.where(x <= LENGTH, first, np.where(x < 2 * LENGTH, middle, last))

    def _gate(self, x: np.ndarray, order: int) -> np.ndarray:
        """Return b, b' or b'' at x ≥ 0."""
        u = np.clip(x / LENGTH - 1.0, 0.0, 1.0)
        if order == 0:
            return u**3 * (10 + u * (6 * u - 15))
        if order == 1:
            return 30 * np.square(u * (1 - u)) / LENGTH
        return 60 * u * (1 - u) * (1 - 2 * u) / LENGTH**2

    def _gates(self, size: np.ndarray) -> np.ndarray:
        """Return b(x_{i−1}) for every coordinate; the first road is always open."""
        return np.concatenate([np.ones_like(size[..., :1]), self._gate(size[..., :-1], 0)], axis=-1)

    def _waits(self, size: np.ndarray) -> np.ndarray:
        """Return what opening the gate of the next coordinate adds, P(xᵢ₊₁) − L xᵢ₊₁²; 0 for the last."""
        after = self._road(size[..., 1:], 0) - self.L * np.square(size[..., 1:])
        return np.concatenate([after, np.zeros_like(size[..., :1])], axis=-1)

    def initial(self, seed: int, replica: Any) -> np.ndarray:
        """Return `start` for each replica, shape (…, d)."""
        if self.start == "random":
            from asyncsim import streams

            return streams.uniforms(seed, replica, -1, 0, streams.START, self.dimension)
        return starting_points(self.start, self.dimension, 0.0, seed, replica)

    def value(self, x: np.ndarray) -> np.ndarray:
        """Return f(x), shape (…)."""
        size = np.abs(x)
        gates = self._gates(size)
        return ((1.0 - gates) * self.L * np.square(size) + gates * self._road(size, 0)).sum(axis=-1)

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Return ∇f(x), shape (…, d)."""
        size = np.abs(x)
        gates = self._gates(size)
        own = (1.0 - gates) * 2 * self.L * size + gates * self._road(size, 1)
        return np.sign(x) * (own + self._gate(size, 1) * self._waits(size))

    def block_gradient(self, x: np.ndarray, block: slice) -> np.ndarray:
        """Return the gradient's coordinates of the block, from these and their neighbours."""
        start, stop, step = block.indices(self.dimension)
        low, high = max(start - 1, 0), min(stop + 1, self.dimension)
        return self.gradient(x[..., low:high])[..., start - low : max(stop - low, 0) : step]

    def hessian_vector(self, x: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return ∇²f(x) v, shape (…, d); the Hessian has one diagonal beside the main one."""
        size, sign = np.abs(x), np.sign(x)
        gates = self._gates(size)
        main = (1.0 - gates) * 2 * self.L + gates * self._road(size, 2) + self._gate(size, 2) * self._waits(size)
        beside = self._gate(size[..., :-1], 1) * (self._road(size[..., 1:], 1) - 2 * self.L * size[..., 1:])
        beside = beside * sign[..., :-1] * sign[..., 1:]
        product = main * vector
        product[..., :-1] += beside * vector[..., 1:]
        product[..., 1:] += beside * vector[..., :-1]
        return product
