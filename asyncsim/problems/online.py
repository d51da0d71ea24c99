"""Losses revealed one after another: the problem in which delayed updates pay with regret."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import numpy as np

from asyncsim.problems.base import Problem
from asyncsim.spec import Count
from asyncsim.trace import Row


class Online(Problem):
    """A sequence of losses f₀, f₁, … on [−1, 1], made of signs z_k = ±1 that nature picks.

    `loss` = "square": f_k(x) = ½ (x − z_k)², strongly convex; "linear": f_k(x) = z_k x. Update k of a run uses f_k,
    at the version that it was computed from, and pays for it there. The signs are fair coins addressed by
    (seed, replica) and constant on `block` consecutive updates: with the default 1 they are independent; with
    `block` = τ + 1, at constant staleness τ, no gradient arrives before its sign has gone, so the method follows signs
    that tell it nothing. Regret after T updates against the best fixed point is

        R(T) = Σ_{k<T} f_k(x_{r(k)}) − min_{x in [−1, 1]} Σ_{k<T} f_k(x),

    where r(k) is the version that update k read. The interval is enforced by the method's projection, not here. As an
    objective, f is the expected loss: ½ (x² + 1) or 0.

    For delayed online methods and their regret bounds see M. Zinkevich, J. Langford and A. J. Smola, "Slow learners
    are fast", NIPS 2009.

    >>> problem, nature = Online(loss="linear"), dict(seed=7, replica=0)
    >>> rows = Row(**nature, worker=0, draw=0, update=np.arange(100))
    >>> paid = problem.played_loss(np.zeros((100, 1)), rows).sum()  # stay at 0 for 100 updates
    >>> best = -abs(problem.sign(**nature, update=np.arange(100)).sum())  # what the better end of the interval pays
    >>> bool(problem.regret(paid, **nature, updates=100) == paid - best)
    True
    """

    kind: Literal["online"] = "online"
    loss: Literal["square", "linear"] = "square"
    block: Count = 1

    @property
    def dimension(self) -> int:
        """One coordinate."""
        return 1

    @property
    def smoothness(self) -> float:
        """L of every single loss: 1 for squares, 0 for linear losses."""
        return 1.0 if self.loss == "square" else 0.0

    @property
    def strong_convexity(self) -> float | None:
        """μ of every single loss: 1 for squares, none for linear losses."""
        return 1.0 if self.loss == "square" else None

    @property
    def minimizer(self) -> np.ndarray:
        """Zero minimises the expected loss."""
        return np.zeros(1)

    @property
    def minimum(self) -> float:
        """The smallest expected loss."""
        return float(self.value(np.zeros(1)))

    def sign(self, seed: int, replica: Any, update: Any) -> np.ndarray:
        """Return z_k = ±1 for each replica and update k, which broadcast."""
        return _coins(seed, replica, np.asarray(update) // self.block)

    def value(self, x: np.ndarray) -> np.ndarray:
        """Return the expected loss of one update, shape (…)."""
        first = np.asarray(x)[..., 0]
        return 0.5 * (np.square(first) + 1.0) if self.loss == "square" else 0.0 * first

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """Return the gradient of the expected loss, shape (…, 1)."""
        return 1.0 * x if self.loss == "square" else 0.0 * x

    def stochastic_gradient(self, x: np.ndarray, row: Row) -> np.ndarray:
        """Return ∇f_k(x) for k = row.update, shape (…, 1)."""
        sign = self.sign(row.seed, row.replica, row.update)[..., None]
        return x - sign if self.loss == "square" else np.broadcast_to(sign, np.broadcast_shapes(sign.shape, x.shape))

    def hessian_vector(self, x: np.ndarray, vector: np.ndarray) -> np.ndarray:
        """Return ∇²f v: v for squares, 0 for linear losses."""
        return (self.smoothness * vector) + 0.0 * x

    def played_loss(self, x: np.ndarray, row: Row) -> np.ndarray:
        """Return f_k(x) for k = row.update, shape (…)."""
        sign, first = self.sign(row.seed, row.replica, row.update), np.asarray(x)[..., 0]
        return 0.5 * np.square(first - sign) if self.loss == "square" else sign * first

    def regret(self, played_total: Any, seed: int, replica: Any, updates: Any) -> np.ndarray:
        """Return R(T) for T = `updates`, where `played_total` = Σ_{k<T} f_k at the points played.

        With S = Σ_{k<T} z_k the best fixed point pays ½ (T − S²/T) for squares and −|S| for linear losses. The
        arguments broadcast. Sums of past signs are kept, so that asking again and again along a run costs little.
        """
        replicas, counts = np.broadcast_arrays(np.asarray(replica), np.asarray(updates))
        total = self._sum_of_signs(seed, replicas.ravel(), counts.ravel()).reshape(counts.shape)
        best = 0.5 * (counts - total**2 / np.maximum(counts, 1)) if self.loss == "square" else -np.abs(total)
        return played_total - best

    def _sum_of_signs(self, seed: int, replicas: np.ndarray, updates: np.ndarray) -> np.ndarray:
        """Return Σ_{k<updates} z_k for pairs of replica and updates, shape (pairs,)."""
        blocks, rest = np.divmod(updates, self.block)
        chunks, left = np.divmod(blocks, CHUNK)
        pairs = zip(replicas.tolist(), chunks.tolist(), strict=True)
        kept = np.array([sum(_chunk_sum(seed, r, chunk) for chunk in range(count)) for r, count in pairs])
        # What the chunks leave over: whole blocks, then the first updates of one more.
        place = np.arange(left.max(initial=0) + 1)
        signs = _coins(seed, replicas[:, None], chunks[:, None] * CHUNK + place)
        whole = (signs * (place < left[:, None])).sum(axis=1)
        return self.block * (kept + whole) + rest * signs[np.arange(left.size), left]


#: Signs are summed in chunks of so many blocks, and the sums kept.
CHUNK = 512


def _coins(seed: int, replica: Any, block: Any) -> np.ndarray:
    """Return ±1, with equal chance, at the address of each block of updates."""
    from asyncsim import streams

    return np.where(streams.uniforms(seed, replica, -1, block, streams.LOSS, 1)[..., 0] < 0.5, -1.0, 1.0)


@lru_cache(maxsize=1 << 17)
def _chunk_sum(seed: int, replica: int, chunk: int) -> float:
    return float(_coins(seed, replica, chunk * CHUNK + np.arange(CHUNK)).sum())
