"""Which workers are alike? Those whose durations cannot be told apart are one group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Workers that cannot be told apart at this level are pooled.
LEVEL = 0.01
#: Durations are compared in bins that hold equal shares of all of them: this many, or so many that each has `IN_BIN`.
BINS, IN_BIN = 10, 5


def pool(durations: Sequence[np.ndarray], inflation: Sequence[float] | None = None) -> list[list[int]]:
    """Return groups of workers whose durations cannot be told apart at 1 %, each and all in order of workers.

    Durations of the workers of a group are held against each other by the χ² test of homogeneity on the deciles of all
    of them, which sees differences of any kind. The workers are first laid out as a tree, those with the closest
    shares in the deciles next to each other (average linkage). From the top down, a branch that the test rejects is
    cut in two. A branch with a share s of the workers is rejected at level s · 1 %, which keeps the chance of any
    wrong cut at 1 % (the hierarchical test of Meinshausen 2008).

    Parameters
    ----------
    durations
        Of each worker, at least 10; a worker without durations makes a group of its own.
    inflation
        Of each worker, durations per independent duration: above 1 where they are autocorrelated.

    >>> pool([np.arange(100.0), np.arange(100.0) + 200, np.arange(100.0) + 0.5])
    [[0, 2], [1]]
    """
    from scipy.cluster.hierarchy import linkage, to_tree

    sizes = np.array([1.0] * len(durations) if inflation is None else inflation)
    scale = np.median(np.concatenate(durations)) or 1.0
    rounded = [np.round(times / scale, 9) for times in durations]  # times are differences, so equal ones are not quite
    if len(rounded) == 1:
        return [[0]]
    counts = _counts(rounded)
    shares = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).cumsum(axis=1)
    groups: list[list[int]] = []
    branches = [to_tree(linkage(shares, method="average"))]
    while branches:
        branch = branches.pop()
        members = sorted(branch.pre_order())
        level = LEVEL * len(members) / len(rounded)
        if len(members) == 1 or homogeneity([rounded[w] for w in members], sizes[members]) >= level:
            groups.append(members)
        else:
            branches += [branch.get_left(), branch.get_right()]
    return sorted(groups)


def homogeneity(durations: Sequence[np.ndarray], inflation: np.ndarray) -> float:
    """Return the p-value of the χ² test that all samples are of one law."""
    from scipy.stats import chi2

    counts = _counts(durations) / inflation[:, None]
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    if 0 in expected:
        return 0.0
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = (counts.shape[0] - 1) * (counts.shape[1] - 1)
    return float(chi2.sf(statistic, freedom)) if freedom else 1.0


def _counts(durations: Sequence[np.ndarray]) -> np.ndarray:
    """Return how many durations of each sample fall between the quantiles of all together; shape (samples, bins)."""
    together = np.concatenate(durations)
    bins = max(2, min(BINS, min(times.size for times in durations) // IN_BIN))
    edges = np.unique(np.quantile(together, np.arange(1, bins) / bins, method="inverted_cdf"))
    edges = edges[edges < together.max()]  # nothing lies beyond the largest
    counts = [np.bincount(np.searchsorted(edges, times), minlength=edges.size + 1) for times in durations]
    return np.array(counts, dtype=np.float64)


def inflation(durations: np.ndarray) -> float:
    """Return how many successive durations are worth one independent one, at least 1.

    It is 1 + 2 Σ ρ_k, with ρ_k the autocorrelation at lag k, summed in pairs (ρ_2j + ρ_2j+1) as long as these are
    positive and above what chance gives (the initial positive sequence of Geyer 1992).
    """
    n = durations.size
    if n < 10:
        return 1.0
    centred = durations - durations.mean()
    power = float(centred @ centred)
    if power <= (1e-9 * durations.mean()) ** 2 * n:
        return 1.0
    spectrum = np.abs(np.fft.rfft(centred, 2 * n)) ** 2
    correlation = np.fft.irfft(spectrum)[: n // 2] / power
    pairs = correlation[1::2][: correlation.size // 2 - 1] + correlation[2::2][: correlation.size // 2 - 1]
    small = np.flatnonzero(pairs < 2.0 * np.sqrt(2.0 / n))
    return max(1.0, 1.0 + 2.0 * float(pairs[: small[0] if small.size else None].sum()))
