"""Compiled searches of a long vector. Imports numba: import it inside functions."""

from __future__ import annotations

import numpy as np

from asyncsim.compiling import njit

_MAGNITUDE = np.uint64(2**63 - 1)
_SIGNATURE = "int64(Array(uint64, 1, 'C', readonly=True), uint64, int64[::1])"


@njit(_SIGNATURE)
def find_above(bits, bound, found):  # type: ignore[no-untyped-def]
    """Write the places where the magnitude exceeds `bound` into `found`, as long as `bits`; return how many."""
    count = 0
    for i in range(bits.size):
        found[count] = i  # without a branch, which the processor could not foresee
        count += (bits[i] & _MAGNITUDE) > bound
    return count


@njit(_SIGNATURE)
def find_equal(bits, bound, found):  # type: ignore[no-untyped-def]
    """Write the first places where the magnitude equals `bound` into `found`, until it is full; return how many."""
    count = 0
    for i in range(bits.size):
        if (bits[i] & _MAGNITUDE) == bound:
            found[count] = i
            count += 1
            if count == found.size:
                break
    return count
