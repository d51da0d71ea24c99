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


def largest(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the k largest |x_i| in increasing order, of equal ones those of lower index, and these x_i.

    A sample of x gives a bound that about k of the |x_i| should exceed, with a margin of four standard errors. One pass
    finds those that do, and the k largest are searched among them. Where fewer than k exceed the bound, because
    many equal it or the sample was misleading, the rest is made up of those that equal it, or all are searched: the
    result is the same, only later.

    >>> [found.tolist() for found in largest(np.array([1.0, -3.0, 0.0, 3.0, -1.0]), 3)]
    [[0, 1, 3], [1.0, -3.0, 3.0]]
    """
    bits = x.view(np.uint64)
    bound = _guess(bits, k) if x.size >= _MANY else None
    indices = _search(bits, k) if bound is None else None
    if bound is not None:
        from asyncsim.compressors.scanning import find_above, find_equal, keep_largest

        # Memory that is not written to costs nothing.
        places, found = np.empty(x.size, dtype=np.int64), np.empty(x.size, dtype=np.uint64)
        count = find_above(bits, bound, places, found)
        if count >= k:
            places, found = places[:count], found[:count]
            bound, above = _kth(found & _MAGNITUDE, k)
            keep_largest(places, found, bound, k - above)
            return places[:k], found[:k].view(np.float64)
        equal = np.empty(k - count, dtype=np.int64)
        if find_equal(bits, bound, equal) == equal.size:
            indices = np.sort(np.concatenate([places[:count], equal]))
    if indices is None:
        indices = _search(bits, k)
    return indices, x[indices]


def _guess(bits: np.ndarray, k: int) -> np.uint64 | None:
    """Return magnitude bits that probably k or a few more of the numbers exceed; None where that is nearly all."""
    expected = _SAMPLE * k / bits.size
    rank = int(expected + 4.0 * math.sqrt(expected)) + 4
    if rank >= _SAMPLE // 2:
        return None
    places = (np.arange(_SAMPLE) * _GOLDEN % 1.0 * bits.size).astype(np.int64)
    return _kth(bits[places] & _MAGNITUDE, rank)[0]


def _kth(magnitudes: np.ndarray, k: int) -> tuple[np.uint64, int]:
    """Return the k-th largest whole number, and how many exceed it."""
    ordered = np.partition(magnitudes, magnitudes.size - k)
    bound = ordered[magnitudes.size - k]
    return bound, int(np.count_nonzero(ordered[magnitudes.size - k :] > bound))


def _search(bits: np.ndarray, k: int) -> np.ndarray:
    """Return the indices by looking at all numbers as often as it takes."""
    magnitudes = bits & _MAGNITUDE
    bound, above = _kth(magnitudes, k)
    keep = magnitudes > bound
    keep[np.flatnonzero(magnitudes == bound)[: k - above]] = True
    return np.flatnonzero(keep)
