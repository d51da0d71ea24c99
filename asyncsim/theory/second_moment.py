"""The second moment of asynchronous heavy ball on a quadratic: what a single run does."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from asyncsim.theory.momentum import implicit_momentum
from asyncsim.theory.rates import positive_eigenvalues


def second_moment_matrix(workers: int, strength: ArrayLike, *, momentum: float = 0.0) -> np.ndarray:
    r"""Return the matrix that carries the second moments of one eigendirection over one update.

    M = `workers` exponential workers, a = `strength` = ηλ (step times eigenvalue), β = `momentum`. Let x be the
    iterate, y the one before, v and w what two different workers last read. An update picks a worker at
    random, with value v: x' = (1 + β) x − β y − a v, y' = x, and that worker then holds x'. The seven moments
    m = E(xx, xy, yy, xv, yv, vv, vw) close, because the chosen worker is independent of the past::

        xx' = (1+β)² xx − 2(1+β)β xy + β² yy − 2(1+β)a xv + 2βa yv + a² vv
        xy' = (1+β) xx − β xy − a xv                         yy' = xx
        xv' = xx'/M + (1 − 1/M) p,   p = (1+β) xv − β yv − a vw
        yv' = xy'/M + (1 − 1/M) xv
        vv' = xx'/M + (1 − 1/M) vv
        vw' = (2/M) p + (1 − 2/M) vw

    Shape (\*strength.shape, 7, 7). With one worker there is no second one, and the row of vw is left zero.

    >>> second_moment_matrix(4, [0.1, 0.2]).shape
    (2, 7, 7)

    Derivation: ours.
    """
    implicit_momentum(workers)
    a = np.asarray(strength, dtype=float)
    chosen = 1.0 / workers
    carry = 1.0 + momentum
    xx, xy, yy, xv, yv, vv, vw = range(7)
    matrix = np.zeros((*a.shape, 7, 7))
    matrix[..., xx, xx] = carry**2
    matrix[..., xx, xy] = -2.0 * carry * momentum
    matrix[..., xx, yy] = momentum**2
    matrix[..., xx, xv] = -2.0 * carry * a
    matrix[..., xx, yv] = 2.0 * momentum * a
    matrix[..., xx, vv] = a**2
    matrix[..., xy, xx] = carry
    matrix[..., xy, xy] = -momentum
    matrix[..., xy, xv] = -a
    matrix[..., yy, xx] = 1.0
    # p: the next iterate times what a worker that was not chosen holds.
    product = np.zeros((*a.shape, 7))
    product[..., xv] = carry
    product[..., yv] = -momentum
    product[..., vw] = -a
    matrix[..., xv, :] = chosen * matrix[..., xx, :] + (1.0 - chosen) * product
    matrix[..., yv, :] = chosen * matrix[..., xy, :]
    matrix[..., yv, xv] += 1.0 - chosen
    matrix[..., vv, :] = chosen * matrix[..., xx, :]
    matrix[..., vv, vv] += 1.0 - chosen
    if workers > 1:
        matrix[..., vw, :] = 2.0 * chosen * product
        matrix[..., vw, vw] += 1.0 - 2.0 * chosen
    return matrix


def second_moments(workers: int, eigenvalue: float, *, step: float, momentum: float = 0.0, updates: int) -> np.ndarray:
    r"""Return E x_t² for t = 0 … `updates`, from x_0 = 1, on f = λx²/2 with λ = `eigenvalue`.

    At the start every worker holds x_0 and x_{−1} = x_0, so all seven moments of `second_moment_matrix` are 1.
    For a vector objective ½ Σ λ_i x_i², E‖x_t‖² is the sum over i of x_{0,i}² times this.
    Moments beyond 1e300 are given as infinite.

    >>> second_moments(2, 1.0, step=0.5, updates=2)
    array([1.     , 0.25   , 0.03125])

    The third figure: the second update reads version 0 or 1 with chance ½ each, x_2 = 0 or ¼.

    Derivation: ours, see `second_moment_matrix`; exact, not asymptotic.
    """
    matrix = second_moment_matrix(workers, step * eigenvalue, momentum=momentum)
    moments = np.ones(7)
    squares = np.full(updates + 1, np.inf)
    for t in range(updates + 1):
        if not np.abs(moments).max() < 1e300:
            break  # diverged: the rest is beyond what a number holds
        squares[t] = moments[0]
        moments = matrix @ moments
    return squares


def mean_square_rate(workers: int, eigenvalues: ArrayLike, *, step: float, momentum: float = 0.0) -> float:
    r"""Return the factor per update by which √(E‖x_t − x*‖²) contracts under M exponential workers.

    It is the root of the spectral radius of `second_moment_matrix`, the largest over `eigenvalues`. Below 1
    every run converges; above 1 the mean over replicas says nothing, even where `mean_rate` is below 1.

    >>> round(mean_square_rate(4, [1.0, 5.0], step=0.08119, momentum=-0.2712), 5)
    0.91267
    >>> from asyncsim.theory import mean_rate
    >>> best_of_the_mean = {"step": 1.8770, "momentum": -0.2680}
    >>> round(mean_rate(4, [1.0, 5.0], **best_of_the_mean), 3)
    0.82
    >>> round(mean_square_rate(4, [1.0, 5.0], **best_of_the_mean), 1)
    4.5

    Derivation: ours.
    """
    strength = step * positive_eigenvalues(eigenvalues)
    matrix = second_moment_matrix(workers, strength, momentum=momentum)
    return float(np.sqrt(np.abs(np.linalg.eigvals(matrix)).max()))
