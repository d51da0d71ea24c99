"""Derivatives by a complex step: as right as the function itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: Far below the rounding of any sum that it is part of, so that no digit of the derivative is lost.
STEP = 1e-30


def hessian_vector(gradient: Callable[[np.ndarray], np.ndarray], x: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Return ∇²f(x) v = Im ∇f(x + i h v) / h, for a gradient made of analytic operations.

    The terms left out are of size h², so with h = 1e-30 the result has no error but rounding. The gradient must take
    complex numbers: no conjugates, and comparisons of real parts only.

    Source: W. Squire and G. Trapp, "Using complex variables to estimate derivatives of real functions", SIAM Review 40,
    1998.

    >>> hessian_vector(lambda x: x**3, np.array([1.0, 2.0]), np.array([1.0, 0.5])).tolist()
    [3.0, 6.0]
    """
    size = float(np.abs(vector).max()) if np.size(vector) else 0.0
    if size == 0.0:
        return np.zeros(np.broadcast_shapes(np.shape(x), np.shape(vector)))
    step = STEP / size
    return np.asarray(np.imag(gradient(x + 1j * (step * vector))) / step)
