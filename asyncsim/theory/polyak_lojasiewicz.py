"""The Polyak–Łojasiewicz inequality: linear convergence without convexity, and its standard example."""

from __future__ import annotations

import math
from typing import NamedTuple

#: Smoothness of x² + 3 sin² x: its second derivative 2 + 6 cos 2x is at most 8.
SINE_SMOOTHNESS = 8.0

#: A constant for x² + 3 sin² x that is valid and easily proved; not the best (Karimi, Nutini and Schmidt 2016).
SINE_CONSTANT = 1.0 / 32.0


class BestConstant(NamedTuple):
    """The largest constant of the inequality, and the point where it is attained."""

    constant: float
    point: float


def sine_best_constant() -> BestConstant:
    """Return the best constant of f(x) = x² + 3 sin² x, inf ½ f'(x)²/f(x), found numerically.

    The infimum is over x ≠ 0, of f − f* = f since f* = 0; by symmetry the point is given positive.

    >>> best = sine_best_constant()
    >>> round(best.constant, 5), round(best.point, 4)
    (0.17553, 2.2017)

    Derivation: ours; the valid constant 1/32 is from Karimi et al. 2016.
    """
    from scipy.optimize import minimize_scalar

    def ratio(x: float) -> float:
        return 0.5 * (2.0 * x + 3.0 * math.sin(2.0 * x)) ** 2 / (x**2 + 3.0 * math.sin(x) ** 2)

    # |f'| ≥ 2|x| − 3 keeps the ratio above 1 for |x| > 5; within, one dip lies between the others.
    found = minimize_scalar(ratio, bounds=(1.5, 3.0), method="bounded", options={"xatol": 1e-10})
    return BestConstant(float(found.fun), float(found.x))


def contraction(constant: float, smoothness: float) -> float:
    """Return 1 − μ/L, the factor by which a gradient step 1/L shrinks f − f* at least.

    ½‖∇f‖² ≥ μ (f − f*) with μ = `constant`, L = `smoothness`.

    >>> 1.0 - contraction(SINE_CONSTANT, SINE_SMOOTHNESS) == 1.0 / 256.0
    True

    Source: Polyak 1963; Karimi et al. 2016, Theorem 1.
    """
    return 1.0 - constant / smoothness


def smallest_gradient_bound(smoothness: float, gap: float, updates: int) -> float:
    """Return √(2 L (f(x_0) − f*)/k), a bound on the smallest of the first k gradient norms, steps 1/L.

    L = `smoothness`, f(x_0) − f* ≤ `gap`, k = `updates`. Any L-smooth f, convex or not.

    >>> smallest_gradient_bound(8.0, 1.0, 100)
    0.4

    Derivation: the descent lemma, f(x_{t+1}) ≤ f(x_t) − ‖∇f(x_t)‖²/(2L), summed over k steps.
    """
    return math.sqrt(2.0 * smoothness * gap / updates)
