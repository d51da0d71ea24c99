"""The k largest of d numbers in one pass over them: the heart of TopK.

The bits of |x|, read as a whole number, are in the order of |x| itself, and so compare exactly, NaN above all numbers.
"""

from __future__ import annotations

import math

import numpy as np

#: The bits of |x|: all but the sign.
_MAGNITUDE = np.uint64(2**63 - 1)

#: From so many numbers on a bound is guessed first.
_MANY = 1 << 16

#: How many numbers the guess looks at.
_SAMPLE = 1 << 14

#: Multiples of it, modulo 1, are evenly spread without a period (Weyl 1916), so the sample cannot beat with a matrix.
_GOLDEN = 0.5 * (math.sqrt(5.0) - 1.0)


def largest(x: np.ndarray, k: int) -> np.ndarray:
    """Return the indices of the k largest |x_i| in increasing order, of equal ones those of lower index.

    A sample of x gives a bound that about k of the |x_i| should exceed, with a margin of four standard errors. One pass
    finds the indices of those that do, and the k largest are searched among them. Where fewer than k exceed the
    bound, because many equal it or the sample was misleading, the rest is made up of those that equal it, or all are
    searched: the result is the same, only later.

    >>> largest(np.array([1.0, -3.0, 0.0, 3.0, -1.0]), 3).tolist()
    [0, 1, 3]
    """
    if k == x.size:
        return np.arange(k)
    bits = x.view(np.uint64)
    bound = _guess(bits, k) if x.size >= _MANY else None
    if bound is not None:
        from asyncsim.compressors.scanning import find_above, find_equal

        found = np.empty(x.size, dtype=np.int64)  # memory that is not written to costs nothing
        count = find_above(bits, bound, found)
        if count >= k:
            above = found[:count]
            return above[_largest(bits[above] & _MAGNITUDE, k)]
        equal = np.empty(k - count, dtype=np.int64)
        if find_equal(bits, bound, equal) == equal.size:
            return np.sort(np.concatenate([found[:count], equal]))
    return _largest(bits & _MAGNITUDE, k)


def _guess(bits: np.ndarray, k: int) -> np.uint64 | None:
    """Return magnitude bits that probably k or a few more of the numbers exceed; None where that is nearly all."""
    expected = _SAMPLE * k / bits.size
    rank = int(expected + 4.0 * math.sqrt(expected)) + 4
    if rank >= _SAMPLE // 2:
        return None
    places = (np.arange(_SAMPLE) * _GOLDEN % 1.0 * bits.size).astype(np.int64)
    return np.partition(bits[places] & _MAGNITUDE, _SAMPLE - rank)[_SAMPLE - rank]


def _largest(magnitudes: np.ndarray, k: int) -> np.ndarray:
    """Return the places of the k largest whole numbers in increasing order, of equal ones the first."""
    bound = np.partition(magnitudes, magnitudes.size - k)[magnitudes.size - k]
    keep = magnitudes > bound
    keep[np.flatnonzero(magnitudes == bound)[: k - np.count_nonzero(keep)]] = True
    return np.flatnonzero(keep)
