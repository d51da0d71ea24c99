"""The compiled sampler: one duration at one address, for every law that encodes itself as a row of numbers.

The rows are made by `Law.encode` in `asyncsim.durations`. Both simulation engines call this very function, so a law
cannot mean two things.
"""

from __future__ import annotations

import math

from asyncsim.compiling import njit
from asyncsim.durations import (
    CONSTANT,
    EMPIRICAL,
    EXPONENTIAL,
    GAMMA,
    LOGNORMAL,
    MIXTURE,
    PARETO,
    SHIFTED_EXPONENTIAL,
    UNIFORM,
    WEIBULL,
)
from asyncsim.streams import normal_pair, uniform

# An address's index holds the hop of a message in its lower 12 bits and the attempt of a rejection sampler above
# them. The last attempt is kept for choosing a mixture's component.
_ATTEMPT = 1 << 12
_CHOICE = 4095 * _ATTEMPT


@njit("float64(float64, uint64, int64, int64, int64, int64, int64)")
def _gamma(shape, seed, replica, worker, draw, purpose, index):  # type: ignore[no-untyped-def]
    """Return a gamma number of unit scale, by the rejection of Marsaglia and Tsang (2000)."""
    boost = 1.0
    if shape < 1.0:
        boost = uniform(seed, replica, worker, draw, purpose, index) ** (1.0 / shape)
        shape += 1.0
    d = shape - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    attempt = 1
    while True:
        normal, _ = normal_pair(seed, replica, worker, draw, purpose, index + attempt * _ATTEMPT)
        u = uniform(seed, replica, worker, draw, purpose, index + (attempt + 1) * _ATTEMPT)
        v = (1.0 + c * normal) ** 3
        if v > 0.0 and math.log(u) < 0.5 * normal * normal + d - d * v + d * math.log(v):
            return boost * d * v
        attempt += 2


@njit("float64(float64, uint64, int64, int64, int64, int64, int64)", forceinline=True)
def _exponential(mean, seed, replica, worker, draw, purpose, index):  # type: ignore[no-untyped-def]
    return -mean * math.log(uniform(seed, replica, worker, draw, purpose, index))


# One signature, so that numba compiles it once and not for every constant argument.
_DURATION = "float64(float64[::1], int64, uint64, int64, int64, int64, int64, int64)"


@njit(_DURATION)
def _random_duration(table, place, seed, replica, worker, draw, purpose, index):  # type: ignore[no-untyped-def]
    first = place
    code = int(table[place])
    if code == MIXTURE:
        u = uniform(seed, replica, worker, draw, purpose, index + _CHOICE)
        count = int(table[first + 1])
        choice = 0
        while choice < count - 1 and u >= table[first + 2 + choice]:
            choice += 1
        place = first + int(table[first + 2 + count + choice])
        code = int(table[place])
    if code == CONSTANT:  # a mixture's
        return table[place + 1]
    if code == GAMMA:
        return table[place + 2] * _gamma(table[place + 1], seed, replica, worker, draw, purpose, index)
    if code == LOGNORMAL:
        normal, _ = normal_pair(seed, replica, worker, draw, purpose, index)
        return math.exp(table[place + 1] + table[place + 2] * normal)
    if code == EXPONENTIAL:
        return _exponential(table[place + 1], seed, replica, worker, draw, purpose, index)
    u = uniform(seed, replica, worker, draw, purpose, index)
    if code == SHIFTED_EXPONENTIAL:
        return table[place + 1] - table[place + 2] * math.log(u)
    if code == PARETO:
        return table[place + 1] * u ** table[place + 2]
    if code == WEIBULL:
        return table[place + 1] * (-math.log(u)) ** table[place + 2]
    if code == UNIFORM:
        return table[place + 1] + table[place + 2] * u
    if code == EMPIRICAL:
        return table[place + 2 + int(u * table[place + 1])]
    return math.nan


@njit(_DURATION)
def duration(table, place, seed, replica, worker, draw, purpose, index):  # type: ignore[no-untyped-def]
    """Return the duration of the law encoded in `table` from `place` on, at an address (see `asyncsim.streams`)."""
    # A constant law is worth no call: this much is compiled into the event loop.
    if table[place] == CONSTANT:
        return table[place + 1]
    return _random_duration(table, place, seed, replica, worker, draw, purpose, index)


@njit("void(float64[::1], int64, uint64, int64, int64, int64, int64, int64, float64[::1])")
def durations(table, place, seed, replica, worker, first_draw, purpose, index, out):  # type: ignore[no-untyped-def]
    """Fill `out` with the durations of consecutive draws, starting at `first_draw`."""
    if table[place] == EXPONENTIAL:
        # In a loop of its own, a vector of them takes a third of the time.
        for i in range(out.size):
            out[i] = _exponential(table[place + 1], seed, replica, worker, first_draw + i, purpose, index)
    else:
        for i in range(out.size):
            out[i] = duration(table, place, seed, replica, worker, first_draw + i, purpose, index)


@njit("int64(float64, uint64, int64, int64, int64, int64, int64)")
def attempts(loss, seed, replica, worker, draw, purpose, index):  # type: ignore[no-untyped-def]
    """Return how often a message is sent until it gets through, where each attempt fails with probability `loss`.

    With u the address's uniform number it is 1 + ⌊log u / log loss⌋, which exceeds n with probability lossⁿ.
    """
    if loss == 0.0:
        return 1
    return 1 + int(math.log(uniform(seed, replica, worker, draw, purpose, index)) / math.log(loss))
