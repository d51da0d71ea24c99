"""Conservation of staleness: an identity between integers that every asynchronous trace obeys."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from asyncsim.theory.momentum import Reply, reply_shift


def conservation_residual(
    staleness: ArrayLike,
    last_read_versions: ArrayLike,
    *,
    updates: int,
    workers: int,
    reply: Reply = "after_apply",
) -> int:
    r"""Return by how much a trace misses the conservation of staleness; 0 for every right trace.

    With τ the `staleness` of each of the T = `updates` gradients applied, M = `workers`, and r_m the version
    that worker m read last (`last_read_versions`, 0 for one that is still at its first gradient), the residual is

    - ``reply="after_apply"``:  Σ (τ + 1) + Σ_m (T − r_m) − M T
    - ``reply="before_apply"``: Σ τ + Σ_m (T − r_m) − M T

    It holds for every service law, if each update is one gradient and none is discarded: from one read of a
    worker to its next lie τ + 1 (τ) versions, so its τ + 1 (τ) add up to r_m. Hence the mean staleness is M − 1
    (M) less Σ_m (T − r_m)/T, exactly. Batched policies (K gradients to an update) do not obey it.

    Takes and returns whole numbers; raises TypeError for others, ValueError for wrong lengths.

    >>> conservation_residual([0, 1, 1], [3, 2], updates=3, workers=2)
    0

    Derivation: ours.
    """
    ages, versions = np.asarray(staleness), np.asarray(last_read_versions)
    if ages.dtype.kind not in "iu" or versions.dtype.kind not in "iu":
        raise TypeError("staleness and versions are whole numbers")
    if ages.shape != (updates,) or versions.shape != (workers,):
        raise ValueError(
            f"expected one staleness for each of {updates} updates and one version for each of {workers} "
            f"workers, got arrays of shape {ages.shape} and {versions.shape}"
        )
    between_reads = int(ages.sum()) + (1 - reply_shift(reply)) * updates
    since_last_read = workers * updates - int(versions.sum())
    return between_reads + since_last_read - workers * updates
