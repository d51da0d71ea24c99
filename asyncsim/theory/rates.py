"""How fast the expected iterate contracts on a quadratic."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from asyncsim.theory.momentum import as_pmf, implicit_momentum
from asyncsim.theory.roots import largest_root_modulus


def mean_rate(workers: int, eigenvalues: ArrayLike, *, step: float, momentum: float = 0.0) -> float:
    r"""Return γ, the factor per update by which E x_t contracts under M exponential workers.

    With μ = 1 − 1/M, M = `workers`, β = `momentum`, η = `step` and λ over `eigenvalues` of the Hessian, γ is
    the largest modulus of the roots x of::

        x³ − (1 + μ + β − η(1 − μ)λ) x² + (μ + β + μβ) x − μβ

    and ‖E x_t − x*‖ = O(t^{m−1} γ^t), m the multiplicity of the largest root (m = 2 at the best momentum, where
    O(γ^t) would be false). Written with the largest root rather than with the smallest root of the reversed
    polynomial, it keeps its degree at μβ = 0.

    It speaks of the mean alone: the mean may contract while every run diverges (see `mean_square_rate`).

    >>> round(mean_rate(4, [1.0], step=1.0), 6)  # complex roots at β = 0: the root of μ, whatever the step
    0.866025

    Source: Mitliagkas et al. 2016 (rate of the expected iterates on quadratics), corrected for repeated roots.
    """
    memory = implicit_momentum(workers)
    strength = step * positive_eigenvalues(eigenvalues)
    companion = np.zeros((strength.size, 3, 3))
    companion[:, 0, 0] = 1.0 + memory + momentum - (1.0 - memory) * strength
    companion[:, 0, 1] = -(memory + momentum + memory * momentum)
    companion[:, 0, 2] = memory * momentum
    companion[:, 1, 0] = companion[:, 2, 1] = 1.0
    return float(np.abs(np.linalg.eigvals(companion)).max())


def histogram_rate(staleness: ArrayLike, eigenvalues: ArrayLike, *, step: float, momentum: float = 0.0) -> float:
    r"""Return the factor per update by which E x_t contracts under any histogram of the staleness.

    With q = `staleness`, H its longest, β = `momentum`, η = `step` and λ over `eigenvalues`, it is the spectral
    radius of the companion matrix over (x_t, …, x_{t−H}) with first row
    (1 + β − ηλ q_0, −β − ηλ q_1, −ηλ q_2, …, −ηλ q_H).

    It is exact if the staleness is independent of the past (exponential workers) or constant. For any other
    service law the staleness of one update tells about the next, and the number is an approximation: say so
    where you show it. A law without end must be cut where less than 1e-6 of it is left; the rest is
    renormalised. Raises ValueError if `staleness` does not add up to 1 within 1e-6.

    >>> from asyncsim.theory import staleness_pmf
    >>> round(histogram_rate(staleness_pmf(0.75, 200), [1.0], step=0.3, momentum=0.2), 5)
    0.87994
    >>> round(mean_rate(4, [1.0], step=0.3, momentum=0.2), 5)
    0.87994

    Derivation: `expected_iterates` with a linear gradient is this linear recursion.
    """
    pmf = as_pmf(staleness)
    polynomial = np.zeros(max(pmf.size + 1, 3))
    rates = []
    for strength in step * positive_eigenvalues(eigenvalues):
        polynomial[:] = 0.0
        polynomial[:3] = 1.0, -1.0 - momentum, momentum
        polynomial[1 : pmf.size + 1] += strength * pmf
        rates.append(largest_root_modulus(polynomial))
    return max(rates)


def positive_eigenvalues(eigenvalues: ArrayLike) -> np.ndarray:
    """Return the eigenvalues as a flat array; raise ValueError unless positive and finite."""
    values = np.atleast_1d(np.asarray(eigenvalues, dtype=float)).ravel()
    if values.size == 0 or not np.all((values > 0.0) & np.isfinite(values)):
        raise ValueError(f"eigenvalues must be positive and finite, not {eigenvalues!r}")
    return values
