"""What a fitted cluster gives when it is simulated, beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from asyncsim.cluster import Cluster, Server, WorkerGroup
from asyncsim.durations import Law
from asyncsim.staleness import Reply, throughput
from asyncsim.trace import Trace

#: Replicas simulated to see what chance does, how long they are at most, and their seed.
REPLICAS, LONGEST, SEED = 20, 20_000, 3


@dataclass(frozen=True)
class Prediction:
    """Throughput of a simulated cluster over the measured one, and total variation between the staleness of both.

    The `…_noise` are what chance alone exceeds once in 20 times, if the cluster is right: of |throughput − 1|, and of
    the total variation.
    """

    throughput: float
    throughput_noise: float
    staleness: float
    staleness_noise: float


def predict(trace: Trace, cluster: Cluster, warmup: int) -> Prediction:
    """Simulate a cluster under the policy async, and compare with the trace, `warmup` updates left out of both."""
    lengths = np.maximum(trace.updates - warmup, 0)
    length = min(int(lengths.max()), LONGEST)
    again = simulated(cluster, updates=length + warmup, replicas=REPLICAS, seed=SEED)
    shares = [staleness_shares(values) for values in staleness_by_replica(again, warmup)]
    shorter = float(np.sqrt(length / lengths.sum()))  # the measurement is longer than a replica, and less noisy
    mean = _mean(shares)
    rates, measured = throughput(again, warmup=warmup), throughput(trace, warmup=warmup)
    rate = float(1.0 / np.mean(1.0 / rates))
    known = ~np.isnan(measured)
    real = float(lengths[known].sum() / (lengths[known] / measured[known]).sum()) if known.any() else float("nan")
    return Prediction(
        throughput=rate / real,
        throughput_noise=float(np.quantile(np.abs(rates / rate - 1.0), 0.95)) * shorter,
        staleness=total_variation(staleness_shares(trace.staleness(warmup=warmup)), mean),
        staleness_noise=float(np.quantile([total_variation(part, mean) for part in shares], 0.95)) * shorter,
    )


@dataclass(frozen=True)
class Measured:
    """Measured staleness of `workers` alike workers: shares of 0, 1, …, and how many updates with what warmup."""

    shares: np.ndarray
    workers: int
    updates: int
    warmup: int
    reply: Reply = "after_apply"

    def distance(self, shares: np.ndarray) -> float:
        """Return the total variation between the measured shares and others."""
        return total_variation(self.shares, shares)

    def simulated(self, law: Law, *, updates: int, seed: int) -> Trace:
        """Return replicas as long as the measurement, of workers with this law; `updates` updates in all."""
        group = WorkerGroup(count=self.workers, service=law)
        cluster = Cluster(workers=(group,), server=Server(reply=self.reply))
        return simulated(cluster, updates=self.updates, replicas=max(1, -(-updates // self.updates)), seed=seed)

    def shares_of(self, law: Law, *, updates: int, seed: int) -> tuple[np.ndarray, float]:
        """Return a law's shares of staleness, and the distance from them that 1 in 20 of its replicas exceeds."""
        trace = self.simulated(law, updates=updates, seed=seed)
        shares = [staleness_shares(values) for values in staleness_by_replica(trace, self.warmup)]
        mean = _mean(shares)
        return mean, float(np.quantile([total_variation(part, mean) for part in shares], 0.95))


def simulated(cluster: Cluster, *, updates: int, replicas: int, seed: int) -> Trace:
    """Return a trace of a cluster under the policy async."""
    from asyncsim.scenario import build
    from asyncsim.sources import simulate

    return simulate(build({"seed": seed, "cluster": cluster, "run": {"updates": updates, "replicas": replicas}}))


def staleness_by_replica(trace: Trace, warmup: int) -> list[np.ndarray]:
    """Return the staleness of each replica's gradients, leaving out `warmup` updates."""
    used, staleness = trace["update"] >= warmup, trace["update"] - trace["read_version"]
    return [staleness[rows][used[rows]] for _, _, rows in trace.slices()]


def staleness_shares(staleness: np.ndarray) -> np.ndarray:
    """Return the shares of staleness 0, 1, 2, …"""
    return np.bincount(staleness) / staleness.size


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    """Return ½ Σ |p_τ − q_τ| of two arrays of shares, which may have different lengths."""
    size = max(p.size, q.size)
    return float(0.5 * np.abs(np.pad(p, (0, size - p.size)) - np.pad(q, (0, size - q.size))).sum())


def _mean(shares: Sequence[np.ndarray]) -> np.ndarray:
    size = max(part.size for part in shares)
    return np.mean([np.pad(part, (0, size - part.size)) for part in shares], axis=0)
