"""Compiled count sketches. Imports numba: import it inside functions.

A row's hash function is h(i) = φ(a·i + b mod 2^64 >> 32) with random 64-bit numbers a and b. For any two i < 2^32 the
numbers that φ is given are independent and uniform on 32 bits (Dietzfelbinger 1996, "Universal hashing and k-wise
independent random variables via integer arithmetic without primes"), which is all that the variance of an estimate
needs. φ, the last step of MurmurHash3 (Appleby 2011), is one to one, so this remains true. It breaks up the even
spacing of a·i, in which equal entries of a vector would cancel almost always, and at rare draws not at all. The highest
bit of h gives the sign, the others the column.
"""

from __future__ import annotations

import numpy as np

from asyncsim.compiling import njit
from asyncsim.compressors.base import Address
from asyncsim.streams import COMPRESS, integers

_HALF = np.uint64(32)
_WORD = np.uint64(2**32 - 1)
_FACTORS = np.uint64(0x85EBCA6B), np.uint64(0xC2B2AE35)
_SHIFTS = np.uint64(16), np.uint64(13), np.uint64(16)
_TOP = np.uint64(31)
_REST = np.uint64(2**31 - 1)

#: Coordinates whose estimates are made together.
_TOGETHER = 128

_NUMBERS = "Array(float64, {}, 'C', readonly=True)"
_KEYS = "Array(uint64, 2, 'C', readonly=True)"


def hash_keys(address: Address, rows: int) -> np.ndarray:
    """Return a and b of every row, shape (rows, 2), from the address."""
    halves = integers(*address, COMPRESS, 4 * rows, 2**32).astype(np.uint64).reshape(rows, 2, 2)
    return halves[:, :, 0] << _HALF | halves[:, :, 1]


@njit("UniTuple(int64, 2)(uint64, uint64, int64, int64)", forceinline=True)
def place(a, b, i, columns):  # type: ignore[no-untyped-def]
    """Return the column of coordinate i, and 1 where its sign is negative."""
    h = (a * np.uint64(i) + b) >> _HALF
    h = ((h ^ (h >> _SHIFTS[0])) * _FACTORS[0]) & _WORD
    h = ((h ^ (h >> _SHIFTS[1])) * _FACTORS[1]) & _WORD
    h ^= h >> _SHIFTS[2]
    return np.int64(((h & _REST) * np.uint64(columns)) >> _TOP), np.int64(h >> _TOP)


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
    """Write the median over the rows of the entry of each coordinate, with its sign, into `out`.

    Coordinates go together, so that the compiler compares several at once; each column of `ordered` is sorted by as
    many rounds of exchanges between neighbours as there are rows.
    """
    rows = table.shape[0]
    ordered = np.empty((rows, _TOGETHER))
    for begin in range(0, out.size, _TOGETHER):
        count = min(_TOGETHER, out.size - begin)
        for row in range(rows):
            for i in range(count):
                column, negative = place(keys[row, 0], keys[row, 1], begin + i, table.shape[1])
                ordered[row, i] = -table[row, column] if negative else table[row, column]
        for turn in range(rows):
            for row in range(turn % 2, rows - 1, 2):
                for i in range(count):
                    one, other = ordered[row, i], ordered[row + 1, i]
                    ordered[row, i] = other if one > other else one
                    ordered[row + 1, i] = one if one > other else other
        for i in range(count):
            out[begin + i] = 0.5 * (ordered[(rows - 1) // 2, i] + ordered[rows // 2, i])
