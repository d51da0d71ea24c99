"""Staleness of exponential workers, and the momentum that it amounts to."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

Reply = Literal["after_apply", "before_apply"]


def implicit_momentum(workers: int) -> float:
    r"""Return the momentum μ = 1 − 1/M that M asynchronous exponential workers add.

    With M = `workers` independent workers of one exponential service time and an instant network, each
    update comes from a worker chosen uniformly at random, so the staleness is geometric with parameter μ and
    the expected step obeys E Δ_{t+1} = μ E Δ_t − (1 − μ) η E∇f(x_t), where Δ_t = x_t − x_{t−1}.

    >>> implicit_momentum(16)
    0.9375

    Source: Mitliagkas, Zhang, Hadjis and Ré 2016, "Asynchrony begets momentum", Theorem 3.
    """
    if workers != int(workers) or workers < 1:
        raise ValueError(f"workers must be a whole number of at least 1, not {workers!r}")
    return 1.0 - 1.0 / int(workers)


def momentum_from_mean_staleness(mean: float) -> float:
    """Return μ = m/(1 + m), the momentum of a geometric staleness law with mean m = `mean`.

    The mean staleness is M − 1 for every service law (all workers busy, nothing discarded), so this gives
    1 − 1/M whatever the law; that the effect of such a staleness *is* momentum μ holds for the geometric law.
    Where the server replies before it applies, pass m − 1: there staleness is 1 + geometric.

    >>> momentum_from_mean_staleness(15.0)
    0.9375

    Source: Mitliagkas et al. 2016, with the mean of the geometric law.
    """
    if not mean >= 0.0 or math.isinf(mean):
        raise ValueError(f"a mean staleness is finite and at least 0, not {mean!r}")
    return mean / (1.0 + mean)


def staleness_pmf(momentum: float, size: int) -> np.ndarray:
    """Return the first `size` probabilities q_l = (1 − μ) μ^l of the geometric law, l = 0, 1, ….

    μ = `momentum` in [0, 1). The probabilities left out add up to μ^`size`.

    >>> staleness_pmf(0.5, 3)
    array([0.5  , 0.25 , 0.125])

    Source: Mitliagkas et al. 2016.
    """
    _require_probability(momentum)
    return (1.0 - momentum) * momentum ** np.arange(size, dtype=float)


def staleness_pmf_at(momentum: float, update: int) -> np.ndarray:
    """Return the exact law of the staleness of update t = `update`, for l = 0 … t.

    No version before 0 exists, so the geometric law is cut: P(τ_t = l) = (1 − μ) μ^l for l < t, and
    P(τ_t = t) = μ^t collects every worker that still works on version 0. μ = `momentum` in [0, 1).

    >>> staleness_pmf_at(0.5, 2)
    array([0.5 , 0.25, 0.25])

    Derivation: τ_t = l < t says that the worker of update t last applied update t − l − 1 and was not chosen
    in the l updates between.
    """
    pmf = staleness_pmf(momentum, update + 1)
    pmf[update] = momentum**update
    return pmf


class GeometricStaleness(NamedTuple):
    """The staleness of M exponential workers long after the start: `shift` plus a geometric number."""

    momentum: float  #: parameter μ = 1 − 1/M
    shift: int = 0  #: 0 if the server applies before it replies, 1 if it replies first

    @property
    def mean(self) -> float:
        """The mean, shift + μ/(1 − μ): M − 1, or M where the server replies first."""
        return self.shift + self.momentum / (1.0 - self.momentum)

    @property
    def variance(self) -> float:
        """The variance, μ/(1 − μ)² = M (M − 1)."""
        return self.momentum / (1.0 - self.momentum) ** 2

    def quantile(self, probability: float) -> int:
        """Return the smallest l with P(τ ≤ l) ≥ `probability`, which lies in [0, 1)."""
        _require_probability(probability)
        if self.momentum == 0.0:
            return self.shift
        # P(τ > l) = μ^(l+1); the bisection of rounding errors is one step either way.
        value = max(0, math.ceil(math.log1p(-probability) / math.log(self.momentum)) - 2)
        while 1.0 - self.momentum ** (value + 1) < probability:
            value += 1
        return self.shift + value


def geometric_staleness(workers: int, *, reply: Reply = "after_apply") -> GeometricStaleness:
    """Return the stationary staleness law of M = `workers` exponential workers.

    With ``reply="after_apply"`` P(τ = l) = (1 − μ) μ^l, mean M − 1; with ``"before_apply"`` the worker is sent
    on with a model that lacks its own gradient and every staleness is one larger. The variance is M (M − 1).

    >>> law = geometric_staleness(16)
    >>> round(law.mean, 9), round(law.variance, 9), law.quantile(0.99)
    (15.0, 240.0, 71)

    Source: Mitliagkas et al. 2016, Theorem 3; the second law follows from the first.
    """
    return GeometricStaleness(implicit_momentum(workers), shift=reply_shift(reply))


def reply_shift(reply: Reply) -> int:
    """Return what the order of reply adds to every staleness: 0 after applying, 1 before."""
    if reply not in ("after_apply", "before_apply"):
        raise ValueError(f"reply must be 'after_apply' or 'before_apply', not {reply!r}")
    return int(reply == "before_apply")


def as_pmf(staleness: ArrayLike) -> np.ndarray:
    """Return a staleness histogram as probabilities that add up to 1.

    A law cut from an infinite one may lack 1e-6 of its mass, which is spread over what is there; more than
    that is taken for a mistake.
    """
    pmf = np.asarray(staleness, dtype=float)
    if pmf.ndim != 1 or pmf.size == 0:
        raise ValueError("a staleness law is a list of probabilities of 0, 1, 2, …")
    if not np.all(pmf >= 0.0) or not abs(pmf.sum() - 1.0) <= 1e-6:
        raise ValueError(
            f"the probabilities of a staleness law are at least 0 and add up to 1, these to {pmf.sum():.9g}; "
            "divide a histogram by its sum, and keep all but 1e-6 of a law that never ends"
        )
    return pmf / pmf.sum()


def _require_probability(value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"expected a number in [0, 1), not {value!r}")
