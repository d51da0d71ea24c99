"""Expected time per update of each policy, and the least time to an accuracy."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike

Policy = Literal["sync", "k_sync", "k_batch_sync", "k_async", "k_batch_async", "async"]
POLICIES: tuple[Policy, ...] = ("sync", "k_sync", "k_batch_sync", "k_async", "k_batch_async", "async")


class ServiceLaw(Protocol):
    """What is needed of a service law; the laws of `asyncsim.durations` have it."""

    @property
    def mean(self) -> float:
        """Expected service time."""

    def quantile(self, probability: Any) -> Any:
        """Return the service time that is not exceeded with this probability."""


def harmonic(n: int) -> float:
    """Return the harmonic number H_n = 1 + 1/2 + … + 1/n, with H_0 = 0.

    >>> harmonic(3) * 6
    11.0

    Source: definition.
    """
    return math.fsum(1.0 / i for i in range(1, n + 1))


def order_statistic_mean(law: ServiceLaw, k: int, workers: int) -> float:
    r"""Return E X_{K:M}, the expected K-th smallest of M independent service times.

    K = `k`, M = `workers`, X of law `law` with quantile function Q::

        E X_{K:M} = ∫ Q(1 − e^{−s}) M!/((K−1)!(M−K)!) (1 − e^{−s})^{K−1} e^{−(M−K+1)s} ds

    over s from 0 to 36, the K-th smallest of M exponential times being put through Q. What lies beyond, where
    1 − e^{−s} can no longer be told from 1, is left out: for a Pareto law of shape α it is of relative size
    10^{−16(1−1/α)}, that is 1e-5 at α = 1.5 and K = M. Units: those of the law.

    >>> class Uniform:
    ...     mean = 0.5
    ...     def quantile(self, probability):
    ...         return probability
    >>> round(order_statistic_mean(Uniform(), 2, 3), 9)
    0.5

    Source: the density of order statistics (David and Nagaraja 2003, section 2.1).
    """
    from scipy.integrate import quad
    from scipy.special import betaincinv

    _require_k(k, workers)
    log_count = math.lgamma(workers + 1) - math.lgamma(k) - math.lgamma(workers - k + 1)

    def integrand(s: float) -> float:
        if s <= 0.0:
            return 0.0 if k > 1 else math.exp(log_count) * float(law.quantile(0.0))
        below = -math.expm1(-s)
        return float(law.quantile(below)) * math.exp(log_count + (k - 1) * math.log(below) - (workers - k + 1) * s)

    # Break the range where the order statistic lives, so that the peak is not missed for large M.
    levels = np.array([0.0, 1e-6, 0.01, 0.2, 0.5, 0.8, 0.99, 1.0 - 1e-6])
    edges = [*(-np.log1p(-betaincinv(k, workers - k + 1, levels))), 36.0]
    # Where 1 − e^{−s} rounds, a heavy tail is ragged and the integrator would warn: full_output keeps it quiet.
    return math.fsum(
        quad(integrand, a, b, limit=200, epsrel=1e-9, full_output=1)[0] for a, b in pairwise(edges) if b > a
    )


def time_per_update(
    policy: Policy,
    *,
    workers: int,
    k: int = 1,
    law: ServiceLaw | None = None,
    rate: float | None = None,
) -> float:
    r"""Return the expected time between updates, M = `workers` equal workers, instant network and server.

    Service times are exponential with rate λ = `rate`, or follow `law` (give one). K = `k` is the number of
    gradients in an update, at most M except in the batch policies; ``sync`` (K = M) and ``async`` (K = 1) ignore it.

    ============== ================= ====================== ==========================================
    policy         law               exponential            holds
    ============== ================= ====================== ==========================================
    sync           E X_{M:M}         H_M/λ                  for any law
    k_sync         E X_{K:M}         (H_M − H_{M−K})/λ      for any law
    k_batch_sync   unknown           K/(Mλ)                 for the exponential law
    k_async        E X_{K:M}         (H_M − H_{M−K})/λ      equal for the exponential law; an upper
                                                            bound for new-better-than-used laws
                                                            (constant, gamma of shape ≥ 1, uniform);
                                                            too low for hyperexponential ones
    k_batch_async  K E X/M           K/(Mλ)                 for any law, in the long run
    async          E X/M             1/(Mλ)                 for any law, in the long run
    ============== ================= ====================== ==========================================

    Units: those of the law, or of 1/`rate`. Raises ValueError for ``k_batch_sync`` with a `law`: there is no
    formula (for an exponential law pass its rate).

    >>> round(time_per_update("k_sync", workers=4, k=2, rate=1.0), 6)  # 1/4 + 1/3
    0.583333

    Source: Dutta, Joshi, Ghosh, Dube and Nagpurkar 2018, "Slow and stale gradients can win the race",
    where the bound on k_async is stated for new-better-than-used service; that it turns round for
    hyperexponential service is our own simulation.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, not {policy!r}")
    if (law is None) == (rate is None):
        raise ValueError("give either law or rate")
    k = {"sync": workers, "async": 1}.get(policy, k)
    _require_k(k, max(k, workers) if policy.startswith("k_batch") else workers)
    if policy in ("sync", "k_sync", "k_async"):
        if law is not None:
            return order_statistic_mean(law, k, workers)
        mean = harmonic(workers) - harmonic(workers - k)
    else:
        if law is not None and policy == "k_batch_sync":
            raise ValueError("k_batch_sync has a formula for exponential service only: pass rate, not law")
        if law is not None:
            return k * float(law.mean) / workers
        mean = k / workers
    assert rate is not None
    if not rate > 0.0:
        raise ValueError(f"rate must be positive, not {rate!r}")
    return mean / rate


def asynchronous_throughput(service_means: ArrayLike) -> float:
    """Return the updates per unit of time of asynchronous workers, Σ_i 1/E X_i over `service_means`.

    Each worker contributes at its own rate, whatever the laws; the long-run limit (renewal theorem).

    >>> asynchronous_throughput([1.0, 1.0, 10.0])
    2.1

    Source: Dutta et al. 2018 for equal workers; the sum for unequal ones.
    """
    return math.fsum(1.0 / _positive(service_means))


class OptimalTime(NamedTuple):
    """The least time to an accuracy, up to a constant, and how many of the fastest workers attain it."""

    time: float
    workers: int


def optimal_time(
    service_means: ArrayLike, *, smoothness: float, gap: float, noise_variance: float, accuracy: float
) -> OptimalTime:
    r"""Return the optimal time to reach E‖∇f‖² ≤ ε, up to a universal constant.

    With τ_1 ≤ … ≤ τ_n = `service_means` sorted, L = `smoothness`, Δ = `gap` = f(x_0) − inf f,
    σ² = `noise_variance` of a stochastic gradient and ε = `accuracy` (of the *squared* gradient norm)::

        min_m (1/m Σ_{i≤m} 1/τ_i)^{−1} (LΔ/ε + σ²LΔ/(m ε²))

    Rennala SGD (collect ⌈σ²/ε⌉ gradients of one version) and Ringmaster ASGD (drop what is staler than
    ⌈σ²/ε⌉) attain it; plain asynchronous SGD does not when workers become arbitrarily slow.

    >>> optimal_time([1.0, 1.0, 1e9], smoothness=1.0, gap=1.0, noise_variance=1.0, accuracy=0.5)
    OptimalTime(time=4.0, workers=2)

    Source: Tyurin and Richtárik 2023, "Optimal time complexities of parallel stochastic optimization methods
    under a fixed computation model"; Maranjyan, Tyurin and Richtárik 2025, "Ringmaster ASGD".
    """
    means = np.sort(_positive(service_means))
    count = np.arange(1, means.size + 1)
    harmonic_mean = count / np.cumsum(1.0 / means)
    work = smoothness * gap * (1.0 / accuracy + noise_variance / (count * accuracy**2))
    times = harmonic_mean * work
    best = int(np.argmin(times))
    return OptimalTime(float(times[best]), best + 1)


def _positive(values: ArrayLike) -> np.ndarray:
    array = np.atleast_1d(np.asarray(values, dtype=float))
    if array.size == 0 or not np.all((array > 0.0) & np.isfinite(array)):
        raise ValueError(f"service means must be positive and finite, not {values!r}")
    return array


def _require_k(k: int, workers: int) -> None:
    if not 1 <= k <= workers:
        raise ValueError(f"k must lie between 1 and the number of workers, {workers}; it is {k}")
