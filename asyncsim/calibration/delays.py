"""A service law from staleness alone: the one whose simulated staleness is closest to the measured one.

Without times the speed is unknown, so laws have mean 1: the unit of time is one mean service time. All workers are
alike, the server takes no time and messages take none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from asyncsim.calibration.laws import rounded
from asyncsim.calibration.predictions import Measured
from asyncsim.durations import Exponential, Gamma, Law, LogNormal, Mixture, Weibull

#: Updates simulated for each law tried, and for each law reported.
TRIED, REPORTED = 40_000, 200_000
#: Replicas from which the noise of a measurement is taken.
NOISE_REPLICAS = 40
#: Seeds of the laws tried, and of those reported: what was fitted to one must hold with other random numbers.
FIT_SEED, REPORT_SEED = 1, 2
#: A law with more parameters is taken where it brings the distance down by this much more.
GAIN = 0.01
#: Values of a shape that are tried first; the best one's neighbourhood is then searched.
GRID = np.geomspace(0.2, 5000.0, 14)
#: Starting points of the search for a mixture: log odds of a slow gradient, log shapes, log of how much slower.
MIXTURE_STARTS = ((-3.0, 0.0, 0.0, 1.0), (-1.5, 2.0, 1.0, 0.3))
MIXTURE_TRIES = 120


@dataclass(frozen=True)
class StalenessFit:
    """A law, its number of parameters, and the total variation between its staleness and the measured one.

    `noise` is what chance alone exceeds once in 20 times when as many updates as were measured follow this law.
    """

    law: Any
    parameters: int
    distance: float
    noise: float


def fit_delays(measured: Measured) -> list[StalenessFit]:
    """Return the laws of each family that come closest to measured staleness: the chosen one first, then by distance.

    For gamma, lognormal and Weibull laws the shape is searched, for a mixture of two gamma laws the share of the slow
    one, both shapes, and how much slower it is (Nelder and Mead 1965). Every law is simulated with the same random
    numbers, so the distance is a function of the parameters alone. The distances returned are of a longer simulation
    with other random numbers. The mixture, with four parameters, is taken where it is closer than the best of the
    others by more than 0.01; it is not tried where chance explains that one's distance.
    """
    families: list[tuple[int, Callable[[float], Law]]] = [
        (1, lambda shape: Gamma(shape=rounded(shape), mean=1.0)),
        (1, lambda shape: LogNormal(mean=1.0, sigma=rounded(float(np.sqrt(np.log1p(1 / shape)))))),
        (1, lambda shape: Weibull(shape=rounded(max(shape**0.5, 0.05)), mean=1.0)),
    ]
    fits = [_report(measured, Exponential(mean=1.0), 0)]
    fits += [_report(measured, _best_shape(measured, make), parameters) for parameters, make in families]
    best = min(fits, key=lambda fit: fit.distance)
    if best.distance > best.noise:
        mixture = _report(measured, _best_mixture(measured, best.law), 4)
        fits.append(mixture)
        best = mixture if mixture.distance < best.distance - GAIN else best
    return [best, *sorted([fit for fit in fits if fit is not best], key=lambda fit: fit.distance)]


def _tried(measured: Measured, law: Law) -> float:
    return measured.distance(measured.shares_of(law, updates=TRIED, seed=FIT_SEED)[0])


def _report(measured: Measured, law: Law, parameters: int) -> StalenessFit:
    updates = max(REPORTED, NOISE_REPLICAS * measured.updates)
    mean, noise = measured.shares_of(law, updates=updates, seed=REPORT_SEED)
    return StalenessFit(law, parameters, measured.distance(mean), noise)


def _best_shape(measured: Measured, make: Callable[[float], Law]) -> Law:
    from scipy.optimize import minimize_scalar

    def cost(log_shape: float) -> float:
        return _tried(measured, make(float(np.exp(log_shape))))

    logs = np.log(GRID)
    place = int(np.argmin([cost(value) for value in logs]))
    bounds = (logs[max(place - 1, 0)], logs[min(place + 1, logs.size - 1)])
    found = minimize_scalar(cost, bounds=bounds, method="bounded", options={"xatol": 0.01})
    return make(float(np.exp(found.x)))


def _best_mixture(measured: Measured, start: Any) -> Law:
    """Search around the best law without a mixture, whose relative variance says how steady components may be."""
    from scipy.optimize import minimize

    log_shape = float(np.log(1.0 / start.variance)) if np.isfinite(start.variance) else 0.0

    def law(point: np.ndarray) -> Law:
        odds, fast, slow, gap = np.clip(point, -8, 8)
        share = 1.0 / (1.0 + np.exp(-odds))
        ratio = np.exp(abs(gap))
        scale = 1.0 / (1.0 - share + share * ratio)  # so that the mean is 1
        shapes = [rounded(float(np.exp(np.clip(log_shape + part, -3, 12)))) for part in (fast, slow)]
        means = [rounded(float(scale)), rounded(float(scale * ratio))]
        parts = tuple(Gamma(shape=shape, mean=mean) for shape, mean in zip(shapes, means, strict=True))
        return Mixture(weights=(rounded(float(1 - share)), rounded(float(share))), laws=parts)

    found = [
        minimize(
            lambda point: _tried(measured, law(point)),
            np.array(begin),
            method="Nelder-Mead",
            options={"maxfev": MIXTURE_TRIES, "initial_simplex": np.array(begin) + 0.7 * np.eye(5, 4, k=-1)},
        )
        for begin in MIXTURE_STARTS
    ]
    return law(min(found, key=lambda result: result.fun).x)
