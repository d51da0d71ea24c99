"""Blocks of coordinates: contiguous, as equal as they can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np


def block_bounds(dimension: int, blocks: int) -> list[slice]:
    """Return the coordinates of each of `blocks` blocks of a model of `dimension` coordinates.

    >>> block_bounds(7, 3)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
    """
    ends = [dimension * block // blocks for block in range(blocks + 1)]
    return [slice(low, high) for low, high in pairwise(ends)]


def mixed_read(versions: Mapping[int, np.ndarray], of_block: Sequence[int]) -> np.ndarray:
    """Return the model that a reader saw who found version ``of_block[b]`` in block b.

    >>> mixed_read({3: np.zeros(4), 4: np.ones(4)}, [4, 3]).tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    x = np.empty_like(versions[of_block[0]])
    for bounds, version in zip(block_bounds(x.size, len(of_block)), of_block, strict=True):
        x[bounds] = versions[version][bounds]
    return x
