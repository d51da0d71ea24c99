"""Compiled packing of small whole numbers into bytes. Imports numba: import it inside functions."""

from __future__ import annotations

import numpy as np

from asyncsim.compiling import njit

_EIGHT = np.uint64(8)


@njit("void(Array(uint32, 1, 'C', readonly=True), int64, uint8[::1])")
def pack_codes(codes, bits, out):  # type: ignore[no-untyped-def]
    """Write the lowest `bits` ≤ 32 bits of each number into `out` one after another, lowest bit first."""
    held, count, at = np.uint64(0), 0, 0
    for i in range(codes.size):
        held |= np.uint64(codes[i]) << np.uint64(count)
        count += bits
        while count >= 8:
            out[at] = np.uint8(held & np.uint64(255))
            held >>= _EIGHT
            count -= 8
            at += 1
    if count > 0:
        out[at] = np.uint8(held & np.uint64(255))


@njit("void(Array(uint8, 1, 'C', readonly=True), int64, uint32[::1])")
def unpack_codes(data, bits, out):  # type: ignore[no-untyped-def]
    """Read what `pack_codes` has written into `out`."""
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    held, count, at = np.uint64(0), 0, 0
    for i in range(out.size):
        while count < bits:
            held |= np.uint64(data[at]) << np.uint64(count)
            count += 8
            at += 1
        out[i] = np.uint32(held & mask)
        held >>= np.uint64(bits)
        count -= bits
