"""Compiled searches of a long vector. Imports numba: import it inside functions."""

from __future__ import annotations

import numpy as np

from asyncsim.compiling import njit

_MAGNITUDE = np.uint64(2**63 - 1)
_BITS = "Array(uint64, 1, 'C', readonly=True)"


@njit(f"int64({_BITS}, uint64, int64[::1], uint64[::1])")
def find_above(bits, bound, places, found):  # type: ignore[no-untyped-def]
    """Write where the magnitude exceeds `bound`, and the bits there, into arrays as long as `bits`; return how many."""
    count = 0
    for i in range(bits.size):
        places[count] = i  # without a branch, which the processor could not foresee
        found[count] = bits[i]
        count += (bits[i] & _MAGNITUDE) > bound
    return count


@njit(f"int64({_BITS}, uint64, int64[::1])")
def find_equal(bits, bound, places):  # type: ignore[no-untyped-def]
    """Write the first places where the magnitude equals `bound` into `places`, until it is full; return how many."""
    count = 0
    for i in range(bits.size):
        if (bits[i] & _MAGNITUDE) == bound:
            places[count] = i
            count += 1
            if count == places.size:
                break
    return count


@njit("void(int64[::1], uint64[::1], uint64, int64)")
def keep_largest(places, found, bound, equal):  # type: ignore[no-untyped-def]
    """Move what exceeds `bound` in magnitude, and the first `equal` that equal it, to the front of both arrays."""
    count = 0
    for i in range(places.size):
        magnitude = found[i] & _MAGNITUDE
        among_equal = (magnitude == bound) & (equal > 0)
        places[count] = places[i]
        found[count] = found[i]
        count += (magnitude > bound) | among_equal
        equal -= among_equal
