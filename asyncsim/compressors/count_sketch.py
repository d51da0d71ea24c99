"""Compiled count sketches. Imports numba: import it inside functions.

A row's hash function is h(i) = (a·i + b mod 2^64) >> 32 with random 64-bit numbers a and b. For i < 2^32 the values of
any two i are independent and uniform on 32 bits (Dietzfelbinger 1996, "Universal hashing and k-wise independent random
variables via integer arithmetic without primes"), which is all that the variance of an estimate needs. The highest bit
of h gives the sign, the others the column.
"""

from __future__ import annotations

import numpy as np

from asyncsim.compiling import njit
from asyncsim.compressors.base import Address
from asyncsim.streams import COMPRESS, integers

_HALF = np.uint64(32)
_TOP = np.uint64(63)
_REST = np.uint64(2**31 - 1)
_SHIFT = np.uint64(31)

_NUMBERS = "Array(float64, {}, 'C', readonly=True)"
_KEYS = "Array(uint64, 2, 'C', readonly=True)"


def hash_keys(address: Address, rows: int) -> np.ndarray:
    """Return a and b of every row, shape (rows, 2), from the address."""
    halves = integers(*address, COMPRESS, 4 * rows, 2**32).astype(np.uint64).reshape(rows, 2, 2)
    return halves[:, :, 0] << _HALF | halves[:, :, 1]


@njit("UniTuple(int64, 2)(uint64, uint64, int64, int64)", forceinline=True)
def place(a, b, i, columns):  # type: ignore[no-untyped-def]
    """Return the column of coordinate i, and 1 where its sign is negative."""
    word = a * np.uint64(i) + b
    column = (((word >> _HALF) & _REST) * np.uint64(columns)) >> _SHIFT
    return np.int64(column), np.int64(word >> _TOP)


@njit(f"void({_NUMBERS.format(1)}, {_KEYS}, float64[:, ::1])")
def make_sketch(x, keys, table):  # type: ignore[no-untyped-def]
    """Add every x_i, with its sign, to its column of every row of `table`."""
    for row in range(table.shape[0]):
        a, b = keys[row]
        for i in range(x.size):
            column, negative = place(a, b, i, table.shape[1])
            table[row, column] += -x[i] if negative else x[i]


@njit(f"void({_NUMBERS.format(2)}, {_KEYS}, float64[::1])")
def estimate(table, keys, out):  # type: ignore[no-untyped-def]
    """Write the median over the rows of the entry of each coordinate, with its sign, into `out`."""
    rows = table.shape[0]
    ordered = np.empty(rows)
    for i in range(out.size):
        for row in range(rows):
            column, negative = place(keys[row, 0], keys[row, 1], i, table.shape[1])
            value = -table[row, column] if negative else table[row, column]
            below = row  # sorted as it comes in
            while below > 0 and ordered[below - 1] > value:
                ordered[below] = ordered[below - 1]
                below -= 1
            ordered[below] = value
        out[i] = 0.5 * (ordered[(rows - 1) // 2] + ordered[rows // 2])
