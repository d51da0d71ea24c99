"""Checksums of the versions of a model, by which a replay that differs from a real run says where it begins to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def checksum(x: np.ndarray) -> int:
    """Return 64 bits that change with any bit of the model: the exclusive or of its coordinates' bits.

    It is read at the speed of memory, which a cryptographic hash is not. It misses only changes that cancel, such as
    two coordinates that trade places.

    >>> checksum(np.array([1.0, 2.0])) == checksum(np.array([1.0, 2.0 + 1e-15]))
    False
    """
    return int(np.bitwise_xor.reduce(np.ascontiguousarray(x, dtype=np.float64).view(np.uint64), axis=None))


def first_difference(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> tuple[int, int] | None:
    """Return the first (place of a replica, version) that two runs do not have in common; None if there is none.

    >>> first_difference([np.array([7, 8, 9])], [np.array([7, 8, 5])])
    (0, 2)
    """
    for place, (mine, theirs) in enumerate(zip(one, other, strict=True)):
        both = min(mine.size, theirs.size)
        unequal = np.flatnonzero(mine[:both] != theirs[:both])
        if unequal.size or mine.size != theirs.size:
            return place, int(unequal[0]) if unequal.size else both
    return None
