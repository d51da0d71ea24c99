"""Randomness by address: the only module that makes random numbers.

Every random number of asyncsim is a function of where it is used, never of what was drawn before:

    (seed, replica, worker, draw, purpose, index)  ->  one number

so draw 17 of worker 3 is the same number in every engine, in every process and in every order of evaluation,
and one replica can be made again alone. The function is Philox4x32-10 (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011): the key is the seed (64 bits), the counter is the four 32-bit words
(draw, purpose and index, worker, replica). `purpose` takes the upper 8 bits of its word, `index` the lower 24.

The server draws with ``worker = -1`` and ``draw = update``; shared randomness with ``worker = -1`` and
``draw = round``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from asyncsim.compiling import njit

#: What a number is for. A new use gets a new number; a number is never given away twice.
SERVICE = 1  # a worker's service time; index: attempt of a rejection sampler
SERVER = 2  # the server's service time
LATENCY_UP = 3  # latency of a message to the server; index: hop
LATENCY_DOWN = 4  # latency of a message to a worker; index: hop
SAMPLE = 5  # which data a stochastic gradient uses; index: position in the mini-batch
NOISE = 6  # noise added to a gradient; index: coordinate pair
STALENESS = 7  # a staleness drawn from a law
START = 8  # a random starting point; index: coordinate pair
DATA = 9  # synthetic data; index: coordinate pair
RESAMPLE = 10  # bootstrap resampling in an estimator; index: position
WORKER = 11  # which worker a synthetic update is given to
LOSS = 12  # the loss that nature picks in an online problem
PERTURBATION = 13  # noise that the server adds to the model; index: coordinate pair
PROBE = 14  # the vector that an eigenvalue is searched from; index: coordinate pair
COMPRESS = 15  # what all who compress share: the coordinates sent, hash functions; index: position
ROUNDING = 22  # random rounding of a compressed message; index: coordinate
LOSS_UP = 16  # how often a message to the server is sent until it comes through; index: hop
LOSS_DOWN = 17  # the same for a message to a worker; index: hop
CRASH = 18  # when a worker crashes and returns, draw: count of its crashes; index: 0 time up, 1 time down
SHARES = 19  # which worker holds which data; index: attempt of a rejection sampler
BANDWIDTH_UP = 20  # bandwidth that a message to the server finds on a link; index: hop
BANDWIDTH_DOWN = 21  # the same for a message to a worker; index: hop

MAX_INDEX = 1 << 24
_INDEX_BITS = np.uint32(24)

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint32(0x9E3779B9)
_WEYL_1 = np.uint32(0xBB67AE85)
_TO_UNIT = 1.0 / 4503599627370496.0  # 2^-52
_DROP = np.uint64(12)
_TO_OCTANT = np.uint64(61)


# One signature each, so that numba compiles each once: left to itself it makes one for every constant argument.
# The first two are compiled into their callers: a loop over draws then makes several numbers at once.
_ADDRESS = "(uint64, int64, int64, int64, int64, int64)"


@njit("UniTuple(uint64, 2)" + _ADDRESS, forceinline=True)
def philox(seed, replica, worker, draw, purpose, index):  # type: ignore[no-untyped-def]
    """Return the two 64-bit words of Philox4x32-10 at an address."""
    key = np.uint64(seed)
    k0 = np.uint32(key & _LOW)
    k1 = np.uint32(key >> _SHIFT)
    c0 = np.uint32(np.int64(draw) & 0xFFFFFFFF)
    c1 = np.uint32((np.uint32(purpose) << _INDEX_BITS) | np.uint32(index))
    c2 = np.uint32(np.int64(worker) & 0xFFFFFFFF)
    c3 = np.uint32(np.int64(replica) & 0xFFFFFFFF)
    for _ in range(10):
        product_0 = _MULTIPLIER_0 * np.uint64(c0)
        product_1 = _MULTIPLIER_1 * np.uint64(c2)
        high_0 = np.uint32(product_0 >> _SHIFT)
        high_1 = np.uint32(product_1 >> _SHIFT)
        low_0 = np.uint32(product_0 & _LOW)
        low_1 = np.uint32(product_1 & _LOW)
        c0 = np.uint32(high_1 ^ c1 ^ k0)
        c1 = low_1
        c2 = np.uint32(high_0 ^ c3 ^ k1)
        c3 = low_0
        k0 = np.uint32(k0 + _WEYL_0)
        k1 = np.uint32(k1 + _WEYL_1)
    return (np.uint64(c1) << _SHIFT) | np.uint64(c0), (np.uint64(c3) << _SHIFT) | np.uint64(c2)


@njit("float64" + _ADDRESS, forceinline=True)
def uniform(seed, replica, worker, draw, purpose, index):  # type: ignore[no-untyped-def]
    """Return a number uniform on the open interval (0, 1): an odd multiple of 2^-53.

    With 52 random bits and half a step added, neither 0 nor 1 can come out, and the value is exact.
    """
    word, _ = philox(seed, replica, worker, draw, purpose, index)
    return (np.float64(word >> _DROP) + 0.5) * _TO_UNIT


@njit("UniTuple(float64, 2)" + _ADDRESS)
def normal_pair(seed, replica, worker, draw, purpose, index):  # type: ignore[no-untyped-def]
    """Return two independent standard normal numbers (Box and Muller 1958)."""
    first, second = philox(seed, replica, worker, draw, purpose, index)
    radius = math.sqrt(-2.0 * math.log((np.float64(first >> _DROP) + 0.5) * _TO_UNIT))
    angle = 2.0 * math.pi * (np.float64(second >> _DROP) + 0.5) * _TO_UNIT
    return radius * math.cos(angle), radius * math.sin(angle)


@njit
def _uniforms(seed, replica, worker, draw, purpose, out):  # type: ignore[no-untyped-def]
    for row in range(out.shape[0]):
        for index in range(out.shape[1]):
            out[row, index] = uniform(seed, replica[row], worker[row], draw[row], purpose, index)


@njit
def _integers(seed, replica, worker, draw, purpose, high, out):  # type: ignore[no-untyped-def]
    for row in range(out.shape[0]):
        for index in range(out.shape[1]):
            # 52 random bits: the bias towards any value is below high * 2^-52.
            out[row, index] = np.int64(uniform(seed, replica[row], worker[row], draw[row], purpose, index) * high)


#: Pairs of normal numbers that are made together.
_TOGETHER = 256


@njit
def _normals(seed, replica, worker, draw, purpose, out):  # type: ignore[no-untyped-def]
    """Fill each row of `out`, of even length, with what `normal_pair` returns for its address and index 0, 1, …

    One loop for each step: the compiler makes several numbers at once only in loops that do not call log or sincos.
    The angles are taken octant by octant: sincos branches by octant, which the processor could not guess otherwise.
    """
    pairs = out.shape[1] // 2
    numbers = out.reshape(-1)
    replicas, workers = np.empty(_TOGETHER, dtype=np.int64), np.empty(_TOGETHER, dtype=np.int64)
    draws, indices = np.empty(_TOGETHER, dtype=np.int64), np.empty(_TOGETHER, dtype=np.int64)
    radius, angle = np.empty(_TOGETHER), np.empty(_TOGETHER)
    octant, held = np.empty(_TOGETHER, dtype=np.int64), np.empty(8, dtype=np.int64)
    members = np.empty((8, _TOGETHER), dtype=np.int32)
    row, index = 0, 0
    for begin in range(0, numbers.size // 2, _TOGETHER):
        count = min(_TOGETHER, numbers.size // 2 - begin)
        for i in range(count):
            replicas[i], workers[i], draws[i], indices[i] = replica[row], worker[row], draw[row], index
            index += 1
            if index == pairs:
                row, index = row + 1, 0
        for i in range(count):
            first, second = philox(seed, replicas[i], workers[i], draws[i], purpose, indices[i])
            radius[i] = (np.float64(first >> _DROP) + 0.5) * _TO_UNIT
            angle[i] = 2.0 * math.pi * (np.float64(second >> _DROP) + 0.5) * _TO_UNIT
            octant[i] = np.int64(second >> _TO_OCTANT)
        for i in range(count):
            radius[i] = math.log(radius[i])
        for i in range(count):
            radius[i] = math.sqrt(-2.0 * radius[i])
        for o in range(8):
            held[o] = 0
        for i in range(count):
            members[octant[i], held[octant[i]]] = i
            held[octant[i]] += 1
        for o in range(8):
            for j in range(held[o]):
                i = members[o, j]
                cosine, sine = math.cos(angle[i]), math.sin(angle[i])  # side by side, so that they become one call
                numbers[2 * (begin + i)] = radius[i] * cosine
                numbers[2 * (begin + i) + 1] = radius[i] * sine


def _rows(*parts: Any) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """Broadcast parts of an address and flatten them to one row each."""
    arrays = [np.asarray(part, dtype=np.int64) for part in parts]
    if len({array.shape for array in arrays}) > 1:  # broadcasting costs as much as making a few numbers
        arrays = [array.copy() for array in np.broadcast_arrays(*arrays)]  # of a view numpy warns whoever may write
    return arrays[0].shape, [np.ascontiguousarray(array.reshape(-1)) for array in arrays]


#: A replica, a worker or a draw: one number, or an array of them.
Part = int | ArrayLike


def _fill(
    kernel: Any, seed: int, replica: Part, worker: Part, draw: Part, purpose: int, size: int, dtype: Any, *extra: Any
) -> np.ndarray:
    if not 0 <= size <= MAX_INDEX:
        raise ValueError(f"an address holds at most {MAX_INDEX} numbers, asked for {size}")
    shape, rows = _rows(replica, worker, draw)
    out = np.empty((rows[0].size, size), dtype=dtype)
    kernel(np.uint64(seed), *rows, purpose, *extra, out)
    return out.reshape((*shape, size))


def uniforms(seed: int, replica: Part, worker: Part, draw: Part, purpose: int, size: int) -> np.ndarray:
    """Return `size` uniform numbers on (0, 1) at each address.

    `replica`, `worker` and `draw` may be integers or arrays that broadcast; the result has their shape followed by
    `size`.

    >>> uniforms(7, 0, 3, 17, SAMPLE, 2).shape
    (2,)
    >>> bool((uniforms(7, [0, 5], 3, 17, SAMPLE, 4)[1] == uniforms(7, 5, 3, 17, SAMPLE, 4)).all())
    True
    """
    return _fill(_uniforms, seed, replica, worker, draw, purpose, size, np.float64)


def integers(seed: int, replica: Part, worker: Part, draw: Part, purpose: int, size: int, high: int) -> np.ndarray:
    """Return `size` integers uniform on 0 … high − 1 at each address; shapes as in `uniforms`."""
    return _fill(_integers, seed, replica, worker, draw, purpose, size, np.int64, high)


def normals(seed: int, replica: Part, worker: Part, draw: Part, purpose: int, size: int) -> np.ndarray:
    """Return `size` standard normal numbers at each address; shapes as in `uniforms`."""
    return _fill(_normals, seed, replica, worker, draw, purpose, size + size % 2, np.float64)[..., :size]
