"""Random sets of k out of d coordinates by address. Imports numba: import it inside functions."""

from __future__ import annotations

import numpy as np

from asyncsim.compiling import njit
from asyncsim.compressors.base import Address
from asyncsim.streams import COMPRESS, uniforms


def random_subset(dimension: int, k: int, address: Address) -> np.ndarray:
    """Return k of the numbers 0 … d − 1 in increasing order, every set of k as likely as any other, shape (k,).

    Floyd's method: for j = d − k, …, d − 1 draw t uniform on 0 … j and take t, or j where t is taken already. After
    the step of j every set of j − d + k + 1 numbers out of 0 … j is equally likely: one with j in it comes about if
    t = j, or if t is one of the j − d + k numbers taken before, so with the right probability (j − d + k + 1)/(j + 1);
    and what was taken before is then, by induction, uniform. One byte for each of the d says whether it is taken;
    beyond d/2 those that are left out are drawn instead.

    Source: Bentley, Floyd 1987, "Programming pearls: a sample of brilliance", Communications of the ACM 30(9).

    >>> random_subset(10, 3, (7, 0, -1, 17)).size, random_subset(3, 3, (7, 0, -1, 17)).tolist()
    (3, [0, 1, 2])
    """
    drawn = min(k, dimension - k)
    taken = np.zeros(dimension, dtype=np.bool_)
    mark_subset(uniforms(*address, COMPRESS, drawn), taken)
    return np.flatnonzero(taken if drawn == k else ~taken)


@njit("void(float64[::1], boolean[::1])")
def mark_subset(uniform, taken):  # type: ignore[no-untyped-def]
    """Mark as many of `taken` as there are uniform numbers on (0, 1), by Floyd's method."""
    for i in range(uniform.size):
        j = taken.size - uniform.size + i
        # 52 random bits: the bias towards any number is below d * 2^-52.
        t = np.int64(uniform[i] * (j + 1))
        taken[j if taken[t] else t] = True
