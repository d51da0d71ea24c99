"""Random sets of k out of d coordinates by address. Imports numba: import it inside functions."""

from __future__ import annotations

import numpy as np

from asyncsim.compiling import njit
from asyncsim.compressors.base import Address
from asyncsim.streams import COMPRESS, uniforms

#: A de Bruijn sequence: its 64 windows of six bits all differ, so times 2^b its highest six bits tell b.
_SEQUENCE = 0x03F79D71B4CB0A89
_PLACE = np.zeros(64, dtype=np.int64)
_PLACE[[(_SEQUENCE << b) % 2**64 >> 58 for b in range(64)]] = np.arange(64)
_WINDOWS = np.uint64(_SEQUENCE)
_FIRST_SIX = np.uint64(58)
_ONE = np.uint64(1)


def random_subset(dimension: int, k: int, address: Address) -> np.ndarray:
    """Return k of the numbers 0 … d − 1 in increasing order, every set of k as likely as any other, shape (k,).

    Floyd's method: for j = d − k, …, d − 1 draw t uniform on 0 … j and take t, or j where t is taken already. After
    the step of j every set of j − d + k + 1 numbers out of 0 … j is equally likely: one with j in it comes about if
    t = j, or if t is one of the j − d + k numbers taken before, so with the right probability (j − d + k + 1)/(j + 1);
    and the others in it are then, by induction, uniform. One bit for each of the d says whether it is taken; beyond
    d/2 those that are left out are drawn instead.

    Source: Bentley, Floyd 1987, "Programming pearls: a sample of brilliance", Communications of the ACM 30(9).

    >>> random_subset(10, 3, (7, 0, -1, 17)).size, random_subset(3, 3, (7, 0, -1, 17)).tolist()
    (3, [0, 1, 2])
    """
    drawn = min(k, dimension - k)
    taken = np.zeros((dimension + 63) // 64, dtype=np.uint64)
    mark(uniforms(*address, COMPRESS, drawn), dimension, taken)
    chosen = np.empty(k, dtype=np.int64)
    list_marked(taken if drawn == k else ~taken, chosen)
    return chosen


@njit("void(float64[::1], int64, uint64[::1])")
def mark(uniform, dimension, taken):  # type: ignore[no-untyped-def]
    """Set as many of the first `dimension` bits as there are uniform numbers on (0, 1), by Floyd's method."""
    for i in range(uniform.size):
        j = dimension - uniform.size + i
        # 52 random bits: the bias towards any number is below d * 2^-52.
        t = np.int64(uniform[i] * (j + 1))
        if taken[t >> 6] >> np.uint64(t & 63) & _ONE:
            t = j
        taken[t >> 6] |= _ONE << np.uint64(t & 63)


@njit("void(uint64[::1], int64[::1])")
def list_marked(words, out):  # type: ignore[no-untyped-def]
    """Fill `out` with the places of the first bits that are set, in increasing order."""
    count = 0
    for w in range(words.size):
        word = words[w]
        while word and count < out.size:
            lowest = word & (~word + _ONE)
            out[count] = 64 * w + _PLACE[np.int64((lowest * _WINDOWS) >> _FIRST_SIX)]
            count += 1
            word ^= lowest
