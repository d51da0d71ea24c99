"""t-SNE: a map of points of high dimension, by the exact gradient."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from asyncsim.problems.base import Problem
from asyncsim.problems.complex_step import hessian_vector
from asyncsim.problems.data import BUILT_IN, Dataset, prepared, refuse_too_large
from asyncsim.problems.start import random_rows
from asyncsim.spec import Count, Positive, refuse

#: Nothing is counted as less probable than this.
LEAST = float(np.finfo(np.float64).eps)


class TSNE(Problem):
    """f(y) = Σ_{i≠j} p_ij log(p_ij / q_ij), the Kullback–Leibler divergence of a map's neighbourhoods from the data's.

    The data are the first n = `samples` of `dataset` (all if left out). Their neighbourhoods are p_ij = (p_{j|i} +
    p_{i|j}) / 2n with p_{j|i} ∝ exp(−β_i ‖a_i − a_j‖²), j ≠ i, where β_i is found by bisection such that the entropy of
    p_{·|i} is log `perplexity`. Each sample has a point y_i in the plane, and q_ij ∝ w_ij = 1/(1 + ‖y_i − y_j‖²).
    x holds y₁, y₂, … one after another, so d = 2n. The gradient is

        ∇_{y_i} f = 4 Σ_j (p_ij − q_ij) w_ij (y_i − y_j),

    computed over all pairs, n² memory and time. The loss has no saddle that is known, and neither L nor f*.

    Runs begin at N(0, 10⁻⁸ I) by address. One model at a time (``batched = False``).

    Source: L. van der Maaten and G. Hinton, "Visualizing data using t-SNE", Journal of Machine Learning Research 9,
    2008, Equations 1 and 4 to 6.

    >>> problem = TSNE(samples=30, perplexity=5.0)
    >>> problem.dimension, bool(np.isclose(problem.neighbours.sum(), 1.0))
    (60, True)
    """

    batched: ClassVar[bool] = False

    kind: Literal["tsne"] = "tsne"
    dataset: Dataset = "digits"
    target: str | int | None = None
    scale: bool = False
    samples: Annotated[Count, Field(ge=4)] = Field(default=None)  # type: ignore[assignment]  # found out if not given
    perplexity: Positive = 30.0

    @model_validator(mode="after")
    def _check(self) -> TSNE:
        known = BUILT_IN.get(self.dataset) if self.target is None else None
        have = known.samples if known else len(prepared(self.dataset, self.target, self.scale)[0])
        if self.samples is None:
            object.__setattr__(self, "samples", have)
        if self.samples > have:
            raise refuse(f"'samples' is {self.samples}, but '{self.dataset}' has {have}")
        if not 1 < self.perplexity < self.samples - 1:
            raise refuse(
                f"'perplexity' must be more than 1 and less than samples − 1 = {self.samples - 1}, the number of "
                f"neighbours that a sample can have, got {self.perplexity}"
            )
        refuse_too_large(self.samples, self.samples)
        return self

    @property
    def dimension(self) -> int:
        """d = 2n."""
        return 2 * self.samples

    @cached_property
    def neighbours(self) -> np.ndarray:
        """The p_ij, shape (n, n), 0 on the diagonal."""
        data = prepared(self.dataset, self.target, self.scale)[0][: self.samples]
        return joint_probabilities(_squared_distances(data), self.perplexity)

    def initial(self, seed: int, replica: Any) -> np.ndarray:
        """Return the starting point of each replica, shape (…, d)."""
        rows = random_rows(2, self.samples, seed, replica)
        return 1e-4 * rows.reshape(*rows.shape[:-2], self.dimension)

    def _closeness(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the points y, shape (n, 2), and the w_ij, shape (n, n), 0 on the diagonal."""
        points = x.reshape(self.samples, 2)
        weights = 1.0 / (1.0 + _squared_distances(points))
        np.fill_diagonal(weights, 0.0)
        return points, weights

    def _divergence(self, weights: np.ndarray) -> np.ndarray:
        shares = np.maximum(weights / weights.sum(), LEAST)
        wanted = self.neighbours
        return np.sum(wanted * np.log(np.maximum(wanted, LEAST) / shares))

    def _slopes(self, points: np.ndarray, weights: np.ndarray, rows: slice) -> np.ndarray:
        total = weights.sum()
        pull = (self.neighbours[rows] - weights[rows] / total) * weights[rows]
        return (4.0 * (pull.sum(axis=1)[:, None] * points[rows] - pull @ points)).reshape(-1)

    def value(self, x: np.ndarray) -> np.ndarray:
        """Return f(y)."""
        return self._divergence(self._closeness(x)[1])

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Return ∇f(y), shape (d,)."""
        return self._slopes(*self._closeness(x), slice(None))

    def value_and_gradient(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return f(y) and ∇f(y) from the same distances."""
        points, weights = self._closeness(x)
        return self._divergence(weights), self._slopes(points, weights, slice(None))

    def block_gradient(self, x: np.ndarray, block: slice) -> np.ndarray:
        """Return the coordinates `block` of ∇f(y): all distances, and the forces on the block's points alone."""
        start, stop, step = block.indices(self.dimension)
        rows = slice(start // 2, -(-stop // 2))
        return self._slopes(*self._closeness(x), rows)[start - 2 * rows.start : max(stop - 2 * rows.start, 0) : step]

    def hessian_vector(self, x: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return ∇²f(y) v, shape (d,), by a complex step."""
        return hessian_vector(self.gradient, x, vector)


def _squared_distances(points: np.ndarray) -> np.ndarray:
    """Return ‖y_i − y_j‖² of all pairs, shape (n, n); also of complex points, without conjugation."""
    squares = np.zeros((len(points), len(points)), dtype=points.dtype)
    if points.shape[1] <= 4:  # differences lose no digits; for many coordinates a product is much faster
        for coordinate in points.T:
            squares += np.square(coordinate[:, None] - coordinate)
        return squares
    lengths = np.square(points).sum(axis=1)
    squares = np.maximum(lengths[:, None] + lengths - 2.0 * points @ points.T, 0.0)
    np.fill_diagonal(squares, 0.0)
    return squares


def joint_probabilities(distances: np.ndarray, perplexity: float) -> np.ndarray:
    """Return p_ij = (p_{j|i} + p_{i|j}) / 2n for squared distances of shape (n, n), each row of this perplexity.

    The entropy of a row falls from log(n − 1) to that of its nearest neighbours as β grows, so β is found by bisection
    of its logarithm; where several samples coincide and no β gives the perplexity, the sharpest tried is taken.

    >>> even = joint_probabilities(1.0 - np.eye(4), perplexity=2.5)  # all as far from each other: nothing to choose
    >>> np.allclose(even, (1 - np.eye(4)) / 12)
    True
    """
    count = len(distances)
    others = ~np.eye(count, dtype=bool)
    above = distances[others].reshape(count, count - 1)
    above = above - above.min(axis=1, keepdims=True)  # the nearest neighbour's exponent is 0: nothing underflows whole
    size = above.mean(axis=1)
    size[size == 0.0] = 1.0
    low, high = np.log(1e-12 / size), np.log(1e12 / size)
    rows = np.empty_like(above)
    for _ in range(64):
        middle = 0.5 * (low + high)
        np.exp(-np.exp(middle)[:, None] * above, out=rows)
        total = rows.sum(axis=1)
        entropy = np.log(total) + np.exp(middle) * (rows * above).sum(axis=1) / total
        flat = entropy > np.log(perplexity)
        low, high = np.where(flat, middle, low), np.where(flat, high, middle)
    conditional = np.zeros((count, count))
    conditional[others] = (rows / total[:, None]).reshape(-1)
    return (conditional + conditional.T) / (2 * count)
