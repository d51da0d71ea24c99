"""The largest root of a polynomial, for polynomials with hundreds of coefficients."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def largest_root_modulus(coefficients: ArrayLike) -> float:
    r"""Return max |x| over the roots of x^n + c_1 x^{n−1} + … + c_n, given `coefficients` (1, c_1, …, c_n).

    This is the spectral radius of the companion matrix, whose eigenvalues cost n³ operations (0.7 s at
    n = 900); here it takes about 1 ms. The reversed polynomial g(w) = 1 + c_1 w + … + c_n w^n has its zeros at
    1/x, so the largest root is the smallest zero of g:

    1. the number of zeros in |w| < 1/r is the winding number of g on that circle, read off one FFT, and
       bisection of r brackets the largest |x|;
    2. Newton's method from the points of the circle where |g| is small makes it exact.

    Should no Newton iterate settle inside the bracket, the eigenvalues of the companion matrix decide.

    >>> round(largest_root_modulus(np.poly([0.9, 0.5j, -0.5j])), 12)
    0.9
    """
    g = np.trim_zeros(np.asarray(coefficients, dtype=float), "b")
    degree = g.size - 1
    if degree == 0:
        return 0.0
    power = np.arange(degree + 1)
    points = max(1024, 1 << (16 * degree).bit_length())

    def on_half_circle(radius: float) -> np.ndarray:
        return np.fft.rfft(g * radius ** (-1.0 * power), points)

    # The largest root is at least the geometric mean of all, and at most Fujiwara's bound.
    low = np.abs(g[-1]) ** (1.0 / degree) * (1.0 - 1e-9)
    high = 2.0 * np.max(np.abs(g[1:]) ** (1.0 / power[1:]))
    while high > low * (1.0 + 1.0 / points):
        middle = np.sqrt(low * high)
        values = on_half_circle(middle)
        # The FFT runs clockwise: each zero inside turns the half circle by −π.
        if np.angle(values[1:] * values[:-1].conj()).sum() < -1.0:
            low = middle
        else:
            high = middle

    size = np.abs(on_half_circle(high))
    around = np.concatenate([size[1:2], size, size[-2:-1]])
    minima = np.nonzero((size <= around[:-2]) & (size <= around[2:]))[0]
    minima = minima[np.argsort(size[minima])][:8]
    # Started slightly off the real axis, Newton can reach a complex pair that has just left it.
    zero = np.exp(-2j * np.pi * minima / points) / high * (1.0 + 1e-6j)
    origin = zero
    for _ in range(50):
        powers = np.vander(zero, degree + 1, increasing=True)
        move = (powers @ g) / (powers[:, :-1] @ (g[1:] * power[1:]))
        zero = zero - move
        near = np.abs(zero / origin - 1.0) < 0.05
        zero, origin, move = zero[near], origin[near], move[near]
        if np.all(np.abs(move) < 1e-9):
            break
    found = 1.0 / np.abs(zero[np.abs(move) < 1e-7])
    found = found[np.abs(np.log(found / high)) < 4.0 / points]
    if found.size:
        return float(found.max())
    companion = np.diag(np.ones(degree - 1), -1)
    companion[0] = -g[1:]
    return float(np.abs(np.linalg.eigvals(companion)).max())
