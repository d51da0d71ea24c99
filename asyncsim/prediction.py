"""What theory says about a scenario: the formulas of `asyncsim.theory` that apply to its cluster and policy."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from asyncsim import theory
from asyncsim.cluster import Cluster
from asyncsim.durations import Constant, Exponential
from asyncsim.methods import SGD
from asyncsim.policies import Async
from asyncsim.problems import Quadratic
from asyncsim.scenario import Scenario


def predict(scenario: Scenario) -> dict[str, float]:
    """Return the numbers that theory gives for a scenario; empty where it says nothing.

    `staleness_mean` holds for any service law, equal workers or not, as long as none stops and nothing is
    discarded. Let M workers make updates of K gradients each (K = 1 for async). If a worker whose gradient went into
    update u always reads version u + c next, the stalenesses u − r of one worker telescope, and their mean over all
    gradients tends to M/K − c. With "after_apply", c = 1 for async and k_async; for k_batch_async it is 1 for the
    gradient that completes an update and 0 for the K − 1 others, who go on at once, provided the server takes no time:
    (M − 1)/K. With "before_apply" and a server that takes no time, c = 0 for all three. Policies that accept only the
    current version have staleness 0. A real server handles one message at a time, which is as good as no time here; in
    shared memory others update between a worker's update and its next read, so there the mean is somewhat smaller.

    `staleness_var`, `staleness_p99` and `implied_momentum`, that is 1 − 1/M, are those of equal exponential workers,
    async, without a network or server time (Mitliagkas et al. 2016, Theorem 3); `momentum` is the total with the
    method's own added. `throughput`, in updates per time unit, is that of Dutta et al. 2018 under the same condition on
    network and server; `service_mean` is the mean time per gradient of real workers that wait for it. `rate`, of √E‖x −
    x*‖², is that of heavy ball with a constant step on a quadratic without noise, with such workers
    (`theory.mean_square_rate`).

    >>> import asyncsim
    >>> workers = [{"count": 16, "service": {"law": "exponential", "mean": 1.0}}]
    >>> scenario = asyncsim.scenario.build({"cluster": {"workers": workers}, "run": {"updates": 10}})
    >>> predictions = predict(scenario)
    >>> [predictions[name] for name in ("staleness_mean", "implied_momentum", "throughput")]
    [15.0, 0.9375, 16.0]
    """
    cluster = scenario.cluster
    kind: Any = getattr(scenario.policy, "kind", "")
    if cluster is None or not _has_service_times(scenario):
        return _staleness(scenario, cluster, kind) if cluster is not None and _has_real_server(scenario) else {}
    instant = cluster.network is None and _takes_no_time(cluster) and not cluster.loses_gradients
    predictions = _staleness(scenario, cluster, kind)
    steps = getattr(scenario.method, "gradients_per_message", 1)
    if kind == "async" and instant and steps == 1 and exponential_mean(cluster) is not None:
        law = theory.geometric_staleness(cluster.size, reply=cluster.server.reply)
        predictions["staleness_var"], predictions["staleness_p99"] = law.variance, float(law.quantile(0.99))
        predictions["implied_momentum"] = theory.implicit_momentum(cluster.size)
        explicit = getattr(scenario.method, "momentum", 0.0)
        if not getattr(scenario.method, "nesterov", False):
            predictions["momentum"] = predictions["implied_momentum"] + explicit
    if instant:
        throughput = _throughput(scenario, cluster, kind, steps)
        if throughput is not None:
            predictions["throughput"] = throughput
    means = {group.service.mean for group in cluster.workers}
    if scenario.run.source == "record" and len(means) == 1:
        predictions["service_mean"] = steps * means.pop()
    spectrum = _heavy_ball_spectrum(scenario)
    if spectrum is not None:
        method: Any = scenario.method
        with contextlib.suppress(np.linalg.LinAlgError):  # numbers too large for the recursion
            predictions["rate"] = theory.mean_square_rate(
                cluster.size, spectrum, step=method.step, momentum=method.momentum
            )
    return predictions


def best_momenta(scenario: Scenario) -> dict[str, float]:
    """Return the best explicit momentum of theory, by each criterion; empty where there is none.

    `best_momentum_mean_square` makes √E‖x_t − x*‖² contract fastest, `best_momentum_mean` ‖E x_t − x*‖, each with its
    own best step; `best_rate_mean_square` is what the first one reaches. The conditions are those of the rate in
    `predict`. Takes some tenths of a second.
    """
    spectrum = _heavy_ball_spectrum(scenario)
    if spectrum is None:
        return {}
    try:
        of_runs, of_the_mean = (
            theory.optimal_momentum(spectrum, workers=scenario.workers, criterion=criterion)
            for criterion in ("mean_square", "mean")
        )
    except ValueError:  # a spectrum wider than numbers can tell (LinAlgError is one too)
        return {}
    return {
        "best_momentum_mean_square": of_runs.momentum,
        "best_momentum_mean": of_the_mean.momentum,
        "best_rate_mean_square": of_runs.rate,
    }


def _has_service_times(scenario: Scenario) -> bool:
    """Say whether the workers take the times of their service laws: simulated ones do, real ones if they wait."""
    return scenario.run.source == "simulate" or (scenario.run.source == "record" and scenario.run.wait != "none")


def _has_real_server(scenario: Scenario) -> bool:
    """Say whether a real server sends the models: a worker then reads the version right after its own update."""
    return scenario.run.source == "record" and scenario.run.backend != "shared_memory"


def _heavy_ball_spectrum(scenario: Scenario) -> list[float] | None:
    """Return the ends of the spectrum, which decide the rate, where the rate of asynchronous heavy ball is known."""
    cluster, problem, method = scenario.cluster, scenario.problem, scenario.method
    asynchronous = (
        _has_service_times(scenario)
        and cluster is not None
        and isinstance(scenario.policy, Async)
        and cluster.network is None
        and _takes_no_time(cluster)
        and not cluster.loses_gradients
        and cluster.server.reply == "after_apply"
        and exponential_mean(cluster) is not None
    )
    if not asynchronous or not isinstance(problem, Quadratic) or not isinstance(method, SGD):
        return None
    plain = method.step_rule == "constant" and not method.nesterov and method.projection is None
    if not plain or problem.noise or problem.strong_convexity is None:
        return None
    return [float(problem.spectrum.min()), float(problem.spectrum.max())]


def exponential_mean(cluster: Cluster) -> float | None:
    """Return the mean service time if all workers have the same exponential law, else None."""
    first = cluster.workers[0].service
    same = all(group.service == first for group in cluster.workers)
    return first.mean if same and isinstance(first, Exponential) else None


def _takes_no_time(cluster: Cluster) -> bool:
    law = cluster.server.service
    return isinstance(law, Constant) and law.value == 0.0


def _staleness(scenario: Scenario, cluster: Cluster, kind: Any) -> dict[str, float]:
    """Return the mean staleness, and that there is none where only the current version is accepted."""
    workers, k = cluster.size, scenario.policy.gradients_per_update(cluster.size)
    if kind in ("sync", "k_sync", "k_batch_sync", "rennala"):
        return {"staleness_mean": 0.0, "staleness_var": 0.0, "staleness_p99": 0.0}
    if kind not in ("async", "k_async", "k_batch_async") or cluster.loses_gradients:
        return {}
    if cluster.server.reply == "before_apply":
        return {"staleness_mean": workers / k} if _takes_no_time(cluster) else {}
    if kind == "k_batch_async":
        return {"staleness_mean": (workers - 1.0) / k} if _takes_no_time(cluster) else {}
    return {"staleness_mean": workers / k - 1.0}


def _throughput(scenario: Scenario, cluster: Cluster, kind: Any, steps: int) -> float | None:
    """Return the updates per time unit, of gradients that take `steps` service times; None without a formula."""
    workers = cluster.size
    k = scenario.policy.gradients_per_update(workers)
    exponential = steps == 1 and all(isinstance(group.service, Exponential) for group in cluster.workers)
    if kind in ("async", "k_batch_async") or (kind == "k_batch_sync" and exponential):
        # Workers that never wait; those who start over lose nothing where service has no memory.
        rates = [(group.count, steps * group.service.mean) for group in cluster.workers]
        if any(mean <= 0 for _, mean in rates):
            return None
        return sum(count / mean for count, mean in rates) / k
    first = cluster.workers[0].service
    if steps > 1 or any(group.service != first for group in cluster.workers):
        return None
    mean = exponential_mean(cluster)
    if mean is not None and kind in ("sync", "k_sync", "k_async"):
        return 1.0 / theory.time_per_update(kind, workers=workers, k=k, rate=1.0 / mean)
    if kind in ("sync", "k_sync") and first.mean > 0:
        return 1.0 / theory.time_per_update(kind, workers=workers, k=k, law=first)
    return None


def staleness_law(scenario: Scenario, size: int) -> Any:
    """Return P(τ = 0 … size − 1) where theory gives the whole law, else None."""
    predictions = predict(scenario)
    if "implied_momentum" not in predictions or scenario.cluster is None:
        return None
    shift = int(scenario.cluster.server.reply == "before_apply")
    pmf = theory.staleness_pmf(predictions["implied_momentum"], size)
    return np.concatenate([np.zeros(shift), pmf])[:size]
