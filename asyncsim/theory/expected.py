"""Expected iterates of asynchronous gradient descent, exactly and update by update."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from asyncsim.theory.momentum import Reply, as_pmf, implicit_momentum, reply_shift

Gradient = Callable[[np.ndarray], np.ndarray]


def expected_iterates(
    gradient: Gradient,
    start: ArrayLike,
    *,
    step: float,
    momentum: float = 0.0,
    staleness: ArrayLike,
    updates: int,
) -> np.ndarray:
    r"""Return E x_0 … E x_T for any law of the staleness, drawn independently of the past.

    With Δ_t = x_t − x_{t−1}, Δ_0 = 0, η = `step`, β = `momentum` at the server, q = `staleness` and
    T = `updates`::

        E x_{t+1} = E x_t + β E Δ_t − η Σ_l q_l ∇f(E x_{max(t−l, 0)})

    A staleness larger than t means version 0. Subtracting two updates that follow one another gives, for
    β = 0 and t beyond the longest staleness,
    E Δ_{t+1} = E Δ_t − η q_0 E∇f(x_t) + η Σ_l (q_l − q_{l+1}) E∇f(x_{t−l−1}).

    `gradient` maps an array of the shape of `start` to the same shape and must be affine (f a quadratic):
    only then is the expected gradient the gradient at the expected iterate. Noise of mean zero in the
    gradient changes nothing. Returns shape (T + 1, \*start.shape). Raises ValueError if `staleness` is no law.

    >>> expected_iterates(lambda x: x, 1.0, step=0.5, staleness=[0.0, 1.0], updates=3)
    array([ 1.  ,  0.5 ,  0.  , -0.25])

    Source: Mitliagkas et al. 2016, Theorem 1 (memory from asynchrony). It holds exactly if the staleness is
    independent of the iterates before the version read, as with exponential workers, or constant.
    """
    pmf = as_pmf(staleness)
    beyond = 1.0 - np.concatenate([[0.0], np.cumsum(pmf)])  # beyond[l] = P(τ ≥ l)
    beyond[-1] = 0.0
    iterates, gradients = _empty(start, updates)
    for t in range(updates):
        gradients[t] = gradient(iterates[t])
        reach = min(t, pmf.size)
        mean_gradient = np.tensordot(pmf[:reach], gradients[t - reach + 1 : t + 1][::-1], axes=1)
        if t < pmf.size:
            mean_gradient = mean_gradient + beyond[t] * gradients[0]
        iterates[t + 1] = _next(iterates, t, momentum, step, mean_gradient)
    return iterates


def expected_iterates_exponential(
    gradient: Gradient,
    start: ArrayLike,
    *,
    step: float,
    workers: int,
    momentum: float = 0.0,
    updates: int,
    reply: Reply = "after_apply",
) -> np.ndarray:
    r"""Return E x_0 … E x_T for M = `workers` exponential workers and heavy ball at the server.

    The expected gradient that is applied is an exponential moving average of the expected gradients, with
    μ = 1 − 1/M, η = `step`, β = `momentum`::

        g_0 = ∇f(x_0),   g_t = μ g_{t−1} + (1 − μ) ∇f(E x_t)
        E x_{t+1} = E x_t + β (E x_t − E x_{t−1}) − η g_t,   x_{−1} = x_0

    so the first step is −η∇f(x_0) in full, not η/M of it, and from then on
    E Δ_{t+1} = (β + μ) E Δ_t − βμ E Δ_{t−1} − (1 − μ) η E∇f(x_t). With ``reply="before_apply"`` the average
    takes ∇f(E x_{t−1}) in place of ∇f(E x_t). `gradient` and the result are as in `expected_iterates`; with
    β = 0 the relation between expected step and expected gradient holds for every f.

    >>> expected_iterates_exponential(lambda x: x, 1.0, step=0.5, workers=2, updates=2)
    array([1.   , 0.5  , 0.125])

    Source: Mitliagkas et al. 2016, Theorem 3 and its extension to explicit momentum; start derived here:
    at t = 0 every worker holds version 0.
    """
    memory = implicit_momentum(workers)
    delay = reply_shift(reply)
    iterates, gradients = _empty(start, updates)
    for t in range(updates):
        gradients[t] = gradient(iterates[t])
        if t == 0:
            average = gradients[0]
        else:
            average = memory * average + (1.0 - memory) * gradients[t - delay]
        iterates[t + 1] = _next(iterates, t, momentum, step, average)
    return iterates


def _empty(start: ArrayLike, updates: int) -> tuple[np.ndarray, np.ndarray]:
    first = np.asarray(start, dtype=float)
    iterates = np.empty((updates + 1, *first.shape))
    iterates[0] = first
    return iterates, np.empty((updates, *first.shape))


def _next(iterates: np.ndarray, t: int, momentum: float, step: float, gradient: np.ndarray) -> np.ndarray:
    return iterates[t] + momentum * (iterates[t] - iterates[max(t - 1, 0)]) - step * gradient
