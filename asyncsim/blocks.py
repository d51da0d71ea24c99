"""Blocks of coordinates: contiguous, as equal as they can be."""

from __future__ import annotations

from itertools import pairwise


def block_bounds(dimension: int, blocks: int) -> list[slice]:
    """Return the coordinates of each of `blocks` blocks of a model of `dimension` coordinates.

    >>> block_bounds(7, 3)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
    """
    ends = [dimension * block // blocks for block in range(blocks + 1)]
    return [slice(low, high) for low, high in pairwise(ends)]
