"""The best explicit momentum and step for a given asynchrony and spectrum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from asyncsim.theory.momentum import as_pmf, implicit_momentum
from asyncsim.theory.rates import histogram_rate, mean_rate, positive_eigenvalues
from asyncsim.theory.second_moment import mean_square_rate

Criterion = Literal["mean", "mean_square"]
_COARSE = 1e-3  #: precision of log η while the momentum is only being located
_EXACT = 1e-11  #: fine, because an error in η moves the minimum over the flat direction β by far more

Rate = Callable[[np.ndarray, float, float], float]  # (eigenvalues, step, momentum) -> rate


class Optimum(NamedTuple):
    """A heavy-ball momentum and step, with the factor per update by which they contract."""

    momentum: float
    step: float
    rate: float


def optimal_momentum(
    eigenvalues: ArrayLike,
    *,
    workers: int | None = None,
    staleness_pmf: ArrayLike | None = None,
    criterion: Criterion = "mean",
) -> Optimum:
    r"""Return the momentum β in (−0.99, 0.99) and step η that contract fastest on a quadratic.

    Minimises over (β, η) the largest rate over `eigenvalues` of the Hessian; η is in units of 1/eigenvalue.
    The asynchrony is M = `workers` exponential workers or any histogram `staleness_pmf` (give one), and the
    rate is, by `criterion`:

    - ``"mean"``: that of ‖E x_t − x*‖ (`mean_rate`, `histogram_rate`). For M ≥ 2 a run cannot show this
      optimum: its mean contracts while the run itself diverges.
    - ``"mean_square"``: that of √E‖x_t − x*‖² (`mean_square_rate`), exponential workers only. This is the
      optimum to compare runs with.

    As M grows the best β falls and turns negative by either criterion. M = 1 is Polyak's heavy ball,
    β = ((√κ − 1)/(√κ + 1))². A histogram takes a second or two (60 entries) where `workers` takes 0.1 s; cut
    from a geometric law it gives the law's own optimum only where that contracts more slowly than the tail, at
    a rate above μ (κ = 5: M ≤ 8). Raises ValueError for a histogram with ``"mean_square"``, as no exact
    recursion is known there, and for κ > 1e5.

    >>> alone = optimal_momentum([1.0, 20.0], workers=1)
    >>> round(alone.momentum, 4), round(alone.step, 4), round(alone.rate, 4)
    (0.4026, 0.1336, 0.6345)
    >>> eight = optimal_momentum([1.0, 20.0], workers=8, criterion="mean_square")
    >>> round(eight.momentum, 2), round(eight.step, 3), round(eight.rate, 4)
    (-0.27, 0.024, 0.9773)

    Source: Polyak 1964 (M = 1); Mitliagkas et al. 2016 (the mean); the mean square is derived here.
    """
    rate, mean_staleness = _rate(workers, staleness_pmf, criterion)
    spectrum = positive_eigenvalues(eigenvalues)
    if spectrum.max() > 1e5 * spectrum.min():
        raise ValueError("a condition number above 1e5 needs momenta beyond 0.99, which are not searched")
    # The ends of the spectrum decide wherever we looked; where they should not, all of it is used.
    ends = np.unique([spectrum.min(), spectrum.max()])
    for values in (ends, np.unique(spectrum)):

        def best_step(position: float, precision: float, values: np.ndarray = values) -> float:
            return _best_step(rate, values, float(np.tanh(position)), mean_staleness, precision).rate

        # In the coordinate artanh β, momenta near 1 (large condition numbers) are resolved like the others.
        position, _ = _minimise(best_step, np.linspace(-2.65, 2.65, 15), precision=1e-5)
        best = _best_step(rate, values, float(np.tanh(position)), mean_staleness, _EXACT)
        if rate(spectrum, best.step, best.momentum) <= best.rate * (1.0 + 1e-9):
            break
    return best


def optimal_step(
    eigenvalues: ArrayLike,
    *,
    momentum: float = 0.0,
    workers: int | None = None,
    staleness_pmf: ArrayLike | None = None,
    criterion: Criterion = "mean",
) -> Optimum:
    """Return the step that contracts fastest at a given β = `momentum`; the rest is as in `optimal_momentum`.

    >>> best = optimal_step([1.0, 5.0], workers=1)
    >>> round(best.step, 5), round(best.rate, 5)  # 2/(1 + 5) and (κ − 1)/(κ + 1)
    (0.33333, 0.66667)

    Source: as `optimal_momentum`.
    """
    rate, mean_staleness = _rate(workers, staleness_pmf, criterion)
    return _best_step(rate, np.unique(positive_eigenvalues(eigenvalues)), momentum, mean_staleness, _EXACT)


def _rate(workers: int | None, staleness_pmf: ArrayLike | None, criterion: Criterion) -> tuple[Rate, float]:
    """Return the rate to minimise, and the mean staleness."""
    if (workers is None) == (staleness_pmf is None):
        raise ValueError("give either workers or staleness_pmf")
    if criterion not in ("mean", "mean_square"):
        raise ValueError(f"criterion must be 'mean' or 'mean_square', not {criterion!r}")
    if workers is not None:
        implicit_momentum(workers)
        known = {"mean": mean_rate, "mean_square": mean_square_rate}[criterion]
        return lambda values, step, beta: known(workers, values, step=step, momentum=beta), workers - 1.0
    if criterion == "mean_square":
        raise ValueError(
            "criterion 'mean_square' needs workers: the second moment has an exact recursion for exponential "
            "workers only, a histogram does not say how the staleness of one update depends on the others"
        )
    assert staleness_pmf is not None
    pmf = as_pmf(staleness_pmf)
    mean = float(pmf @ np.arange(pmf.size))
    return lambda values, step, beta: histogram_rate(pmf, values, step=step, momentum=beta), mean


def _best_step(
    rate: Rate, eigenvalues: np.ndarray, momentum: float, mean_staleness: float, precision: float
) -> Optimum:
    def at(log_step: float, _: float = 0.0) -> float:
        return rate(eigenvalues, float(np.exp(log_step)), momentum)

    # The mean of exponential workers is stable up to ηλ = 2 (1 + β)(1 + 2 mean) at most.
    largest = 8.0 * (1.0 + 2.0 * mean_staleness)
    grid = np.linspace(np.log(1e-6), np.log(largest), 25) - np.log(eigenvalues.max())
    log_step, value = _minimise(at, grid, precision)
    return Optimum(momentum, float(np.exp(log_step)), value)


def _minimise(function: Callable[[float, float], float], grid: np.ndarray, precision: float) -> tuple[float, float]:
    """Return where a kinked function of (point, precision) is least, and its value there.

    The best point of a grid, asked for with little precision, then a golden-section search between its
    neighbours: the rates have kinks where two roots or two eigenvalues meet, mostly just at the minimum.
    """
    values = [function(float(point), _COARSE) for point in grid]
    best = int(np.argmin(values))
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, grid.size - 1)])
    ratio = (5.0**0.5 - 1.0) / 2.0
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left, _EXACT), function(right, _EXACT)
    while high - low > precision:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left, _EXACT)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right, _EXACT)
    return (left, at_left) if at_left <= at_right else (right, at_right)
