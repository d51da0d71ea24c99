"""The largest stable step times eigenvalue, ηλ, under each kind of staleness.

Every limit is in units of ηλ: divide by λ for the largest step, by η for the largest stable sharpness.
The update is x_{t+1} = x_t + β (x_t − x_{t−1}) − η g; where an implementation averages, (1 − β) η in place
of η, divide the limits by 1 − β.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from asyncsim.theory.momentum import implicit_momentum
from asyncsim.theory.second_moment import mean_square_rate


def heavy_ball_limit(momentum: float = 0.0) -> float:
    """Return 2 (1 + β), the limit of synchronous heavy ball; 2 for plain gradient descent (β = 0).

    Full-batch training at a constant step drives the sharpness up to this over η and keeps it there.

    >>> heavy_ball_limit(), heavy_ball_limit(0.5)
    (2.0, 3.0)

    Source: Polyak 1964; Cohen, Kaur, Li, Kolter and Talwalkar 2021, "Gradient descent on neural networks
    typically occurs at the edge of stability".
    """
    _require_momentum(momentum)
    return 2.0 * (1.0 + momentum)


def nesterov_limit(momentum: float) -> float:
    """Return the limit of Nesterov's method, (2 + 2β)/(1 + 2β) for β ≥ −1/3.

    The gradient is taken at x_t + β (x_t − x_{t−1}). Below β = −1/3 a complex pair leaves the unit circle
    first, at 1 + 1/|β|.

    >>> nesterov_limit(0.5)
    1.5

    Source: Cohen et al. 2021; the case of negative β follows from the roots of
    x² − (1 + β)(1 − ηλ) x + β(1 − ηλ).
    """
    _require_momentum(momentum)
    return 1.0 + 1.0 / max(1.0 + 2.0 * momentum, -momentum)


def constant_delay_limit(delay: int, *, momentum: float = 0.0) -> float:
    r"""Return the limit for a staleness of exactly τ = `delay` at every update, β = `momentum`.

    A root crosses the unit circle at e^{iθ}, where θ in (0, π] solves
    arg(e^{iθ} − β) + (τ − ½) θ = π/2, and the limit is 2 sin(θ/2) √(1 − 2β cos θ + β²). At β = 0 it is
    2 sin(π/(2(2τ + 1))). It is no limit for asynchrony: exponential workers with the same mean staleness
    tolerate several times as much (`almost_sure_limit`).

    >>> round(constant_delay_limit(7), 3)
    0.209

    Derivation: modulus and argument of (1 − x)(1 − β/x)·x^{τ+1} = −ηλ x at x = e^{iθ}; the left side of the
    equation for θ increases for |β| < 1, so its root is unique.
    """
    _require_momentum(momentum)
    if delay != int(delay) or delay < 0:
        raise ValueError(f"delay must be a whole number of at least 0, not {delay!r}")

    def phase(theta: float) -> float:
        return float(np.angle(np.exp(1j * theta) - momentum)) + (delay - 0.5) * theta - np.pi / 2.0

    # At τ = 0 the root is π itself, where the argument jumps.
    theta = np.pi if delay == 0 else _bisect(lambda value: phase(value) < 0.0, 0.0, np.pi)
    return float(2.0 * np.sin(theta / 2.0) * np.sqrt(1.0 - 2.0 * momentum * np.cos(theta) + momentum**2))


def mean_limit(workers: int, momentum: float = 0.0) -> float:
    r"""Return the limit below which the expected iterate converges, M = `workers` exponential workers.

    With μ = 1 − 1/M and β = `momentum`, the smaller of 2 (1 + μ)(1 + β)/(1 − μ) and, where μβ > 0,
    (1 − β)(1 − μβ)/(μβ). At β = 0 it is 2 (2M − 1): it grows with M, while single runs diverge ever earlier.
    No training run sees this limit.

    >>> round(mean_limit(8), 9), round(mean_limit(4, 0.5), 3)
    (30.0, 0.833)

    Derivation: the Jury conditions of the cubic in `mean_rate`.
    """
    _require_momentum(momentum)
    memory = implicit_momentum(workers)
    limit = 2.0 * (1.0 + memory) * (1.0 + momentum) / (1.0 - memory)
    product = memory * momentum
    if product > 0.0:
        limit = min(limit, (1.0 - momentum) * (1.0 - product) / product)
    return limit


def mean_square_limit(workers: int, momentum: float = 0.0) -> float:
    """Return the limit below which E x_t² converges, M = `workers` exponential workers, β = `momentum`.

    At β = 0 it falls with M. Beyond it single runs still converge up to `almost_sure_limit`, with excursions so
    large that averages over replicas mean nothing.

    >>> round(mean_square_limit(8), 3)
    0.566

    Derivation: the root in ηλ of `mean_square_rate` = 1.
    """
    _require_momentum(momentum)
    highest = mean_limit(workers, momentum)
    if workers == 1:
        return highest
    return _bisect(
        lambda strength: mean_square_rate(workers, [strength], step=1.0, momentum=momentum) < 1.0,
        0.0,
        highest,
    )


def almost_sure_limit(workers: int, momentum: float = 0.0, *, updates: int = 400_000, seed: int = 0) -> float:
    """Return the limit below which a single run converges: what training sees.

    It is the root in ηλ of the Lyapunov exponent of x_{t+1} = (1 + β) x_t − β x_{t−1} − ηλ v, v what a worker
    chosen at random among M = `workers` last read, β = `momentum`. The exponent is estimated from one run of
    `updates` updates with the same random numbers for every ηλ; the default gives about 1 %.

    >>> bool(0.67 < almost_sure_limit(8) < 0.72)
    True

    Derivation: ours (Furstenberg and Kesten 1960 for the existence of the exponent).
    """
    from asyncsim.theory.lyapunov import lyapunov_exponent

    def converges(strength: float) -> bool:
        return lyapunov_exponent(int(workers), strength, float(momentum), updates, seed) < 0.0

    low = mean_square_limit(workers, momentum)
    if workers == 1:
        return low
    # Jensen: a run converges wherever its mean square does, up to the noise of a finite run.
    low *= 0.9
    high = 1.5 * low
    while converges(high):
        low, high = high, 1.5 * high
    return _bisect(converges, low, high, precision=1e-5)


def _bisect(below: Callable[[float], bool], low: float, high: float, precision: float = 1e-13) -> float:
    """Return where `below` turns from true to false, to a relative `precision`."""
    while high - low > precision * high:
        middle = 0.5 * (low + high)
        if below(middle):
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def _require_momentum(momentum: float) -> None:
    if not -1.0 < momentum < 1.0:
        raise ValueError(f"momentum must lie between -1 and 1, not {momentum!r}: heavy ball diverges there")
