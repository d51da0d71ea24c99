"""What theory says about a scenario: the formulas of `asyncsim.theory` that apply to its cluster and policy."""

from __future__ import annotations

from typing import Any

from asyncsim import theory
from asyncsim.durations import Constant, Exponential
from asyncsim.scenario import Cluster, Scenario


def predict(scenario: Scenario) -> dict[str, float]:
    """Return the numbers that theory gives for a scenario; empty where it says nothing.

    `staleness_mean` follows from the conservation law (every worker busy, nothing discarded), for any service law:
    M − 1 for async, M/K − 1 for k_async and (M − 1)/K for k_batch_async with M workers and K gradients per update, and
    0 for the policies that accept only the current version. `staleness_var`, `staleness_p99` and `momentum`, that is
    1 − 1/M, are those of equal exponential workers, async, without a network or server time (Mitliagkas et al. 2016,
    Theorem 3). `throughput`, in updates per time unit, is that of Dutta et al. 2018 under the same two conditions on
    network and server.

    >>> import asyncsim
    >>> workers = [{"count": 16, "service": {"law": "exponential", "mean": 1.0}}]
    >>> scenario = asyncsim.scenario.build({"cluster": {"workers": workers}, "run": {"updates": 10}})
    >>> {name: round(value, 4) for name, value in predict(scenario).items()}
    {'staleness_mean': 15.0, 'staleness_var': 240.0, 'staleness_p99': 71.0, 'momentum': 0.9375, 'throughput': 16.0}
    """
    cluster = scenario.cluster
    if scenario.run.source != "simulate" or cluster is None:
        return {}
    kind: Any = getattr(scenario.policy, "kind", "")
    instant = cluster.network is None and _takes_no_time(cluster)
    predictions = _staleness(scenario, cluster, kind, instant)
    if instant and cluster.server.reply == "after_apply":
        throughput = _throughput(scenario, cluster, kind)
        if throughput is not None:
            predictions["throughput"] = throughput
    return predictions


def exponential_mean(cluster: Cluster) -> float | None:
    """Return the mean service time if all workers have the same exponential law, else None."""
    first = cluster.workers[0].service
    same = all(group.service == first for group in cluster.workers)
    return first.mean if same and isinstance(first, Exponential) else None


def _takes_no_time(cluster: Cluster) -> bool:
    law = cluster.server.service
    return isinstance(law, Constant) and law.value == 0.0


def _staleness(scenario: Scenario, cluster: Cluster, kind: str, instant: bool) -> dict[str, float]:
    workers, after = cluster.size, cluster.server.reply == "after_apply"
    k = scenario.policy.gradients_per_update(workers)
    if kind in ("sync", "k_sync", "k_batch_sync", "rennala"):
        return {"staleness_mean": 0.0, "staleness_var": 0.0, "staleness_p99": 0.0}
    if kind == "k_async" and after:
        return {"staleness_mean": workers / k - 1.0}
    if kind == "k_batch_async" and after:
        return {"staleness_mean": (workers - 1.0) / k}
    if kind != "async" or not (after or instant):
        return {}
    if instant and exponential_mean(cluster) is not None:
        law = theory.geometric_staleness(workers, reply=cluster.server.reply)
        return {
            "staleness_mean": law.mean,
            "staleness_var": law.variance,
            "staleness_p99": float(law.quantile(0.99)),
            "momentum": theory.implicit_momentum(workers),
        }
    return {"staleness_mean": float(workers - 1 if after else workers)}


def _throughput(scenario: Scenario, cluster: Cluster, kind: Any) -> float | None:
    """Return the updates per time unit, None where there is no formula."""
    workers = cluster.size
    k = scenario.policy.gradients_per_update(workers)
    if kind in ("async", "k_batch_async"):
        rates = [(group.count, group.service.mean) for group in cluster.workers]
        if any(mean <= 0 for _, mean in rates):
            return None
        return sum(count / mean for count, mean in rates) / k
    first = cluster.workers[0].service
    if any(group.service != first for group in cluster.workers):
        return None
    mean = exponential_mean(cluster)
    if mean is not None and kind in ("sync", "k_sync", "k_async", "k_batch_sync"):
        return 1.0 / theory.time_per_update(kind, workers=workers, k=k, rate=1.0 / mean)
    if kind in ("sync", "k_sync") and first.mean > 0:
        return 1.0 / theory.time_per_update(kind, workers=workers, k=k, law=first)
    return None


def staleness_law(scenario: Scenario, size: int) -> Any:
    """Return P(τ = 0 … size − 1) where theory gives the whole law, else None."""
    predictions = predict(scenario)
    if "momentum" not in predictions or scenario.cluster is None:
        return None
    import numpy as np

    shift = int(scenario.cluster.server.reply == "before_apply")
    pmf = theory.staleness_pmf(predictions["momentum"], size)
    return np.concatenate([np.zeros(shift), pmf])[:size]
