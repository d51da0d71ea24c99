"""Lyapunov exponent of asynchronous heavy ball by simulation. Imports numba: import it inside functions."""

from __future__ import annotations

import math

import numpy as np

from asyncsim import streams
from asyncsim.compiling import njit


@njit
def lyapunov_exponent(workers, strength, momentum, updates, seed):  # type: ignore[no-untyped-def]
    """Return the mean of ln |growth| per update of one long run on f = λx²/2, with `strength` = ηλ.

    Which worker update t comes from is the number at address (`seed`, worker −1, draw t), the same for every
    strength, so the result is a smooth function of it and a bisection over it is well posed.
    """
    held = np.ones(workers)  # what each worker last read
    current = 1.0
    previous = 1.0
    logarithm = 0.0
    for t in range(updates):
        chosen = int(streams.uniform(seed, 0, -1, t, streams.WORKER, 0) * workers)
        following = (1.0 + momentum) * current - momentum * previous - strength * held[chosen]
        previous = current
        current = following
        held[chosen] = following
        # The recursion is linear: rescale the state before it leaves the range of floating-point numbers.
        if t % 64 == 63 or t == updates - 1:
            size = max(abs(current), abs(previous), np.abs(held).max())
            if size == 0.0:
                return -math.inf
            logarithm += math.log(size)
            current /= size
            previous /= size
            held /= size
    return logarithm / updates
