"""The applied gradients of a replica a window at a time, and what a window must know of those that follow.

A replay keeps only versions still to be read. Which ones these are depends on gradients that come much later; so a
first pass over the windows notes, for the end of each, the versions that later windows read: about one per worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

Columns = Mapping[str, np.ndarray]

#: What a replay needs of a gradient.
NEEDED = ("update", "worker", "draw", "read_version", "block")

#: Gradients of a window, about; more where there are so many workers that each boundary has much to note.
WINDOW = 1 << 16


def window_size(workers: int) -> int:
    """Return about how many gradients a window has."""
    return max(WINDOW, 4 * workers)


def in_windows(parts: Iterable[Columns], gradients: int) -> Iterator[Columns]:
    """Cut parts, which hold whole updates in order, into windows of whole updates with about so many gradients."""
    for part in parts:
        update, low = part["update"], 0
        while low < update.size:
            high = min(low + gradients, update.size)
            high = int(np.searchsorted(update, update[high - 1], side="right"))
            yield {name: column[low:high] for name, column in part.items()}
            low = high


def read_later(windows: Iterable[Columns]) -> list[np.ndarray]:
    """Return for each window the versions, up to the one that it ends with, that later windows read.

    >>> window = lambda update, version: {"update": np.array(update), "read_version": np.array(version)}
    >>> [versions.tolist() for versions in read_later([window([0, 1], [0, 0]), window([2], [1]), window([3], [0])])]
    [[0, 1], [0], []]
    """
    firsts: list[int] = []
    later: list[list[np.ndarray]] = []
    for number, window in enumerate(windows):
        firsts.append(int(window["update"][0]))
        later.append([])
        old = np.unique(window["read_version"])
        old = old[old <= firsts[-1]]
        # The first window that begins at or after a version is the first one that has to hand it on.
        begin = np.maximum(np.searchsorted(firsts, old), 1)
        for boundary in range(number, int(begin.min(initial=number)) - 1, -1):
            if boundary > 0:
                later[boundary - 1].append(old[begin <= boundary])
    return [np.unique(np.concatenate([np.empty(0, dtype=np.int64), *versions])) for versions in later]
