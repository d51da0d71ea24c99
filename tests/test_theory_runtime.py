from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import pytest

from asyncsim import theory


@dataclass(frozen=True)
class Service:
    """A service law for tests: its mean, quantile function and how to draw it."""

    name: str
    mean: float
    quantile: object
    draw: object


def _exponential(probability):
    return -np.log1p(-np.asarray(probability))


def _gamma(probability):
    from scipy.special import gammaincinv

    return gammaincinv(4.0, probability) / 4.0


def _hyperexponential(probability):
    """Nine in ten services have mean 0.3, the tenth 7.3."""
    low, high = 0.0, 400.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if 0.9 * np.exp(-middle / 0.3) + 0.1 * np.exp(-middle / 7.3) > 1.0 - probability:
            low = middle
        else:
            high = middle
    return low


def _draw_hyperexponential(rng, size):
    return rng.exponential(np.where(rng.random(size) < 0.9, 0.3, 7.3))


EXPONENTIAL = Service("exponential", 1.0, _exponential, lambda rng, size: rng.exponential(size=size))
GAMMA = Service("gamma", 1.0, _gamma, lambda rng, size: rng.gamma(4.0, 0.25, size=size))
HYPEREXPONENTIAL = Service("hyperexponential", 1.0, _hyperexponential, _draw_hyperexponential)
UNIFORM = Service("uniform", 0.5, lambda probability: probability, lambda rng, size: rng.random(size))
CONSTANT = Service("constant", 2.0, lambda probability: 2.0, lambda rng, size: np.full(size, 2.0))
PARETO = Service(
    "pareto",
    3.0,
    lambda probability: (1.0 - probability) ** (-2.0 / 3.0),
    lambda rng, size: 1.0 + rng.pareto(1.5, size),
)


def measured_time_per_update(policy, law, workers, k, updates, seed=0):
    """Mean time between updates by a plain event loop; in k_async the workers that pushed wait."""
    times = iter(law.draw(np.random.default_rng(seed), 40 * updates * k + 100 * workers))
    arrivals = [(next(times), worker) for worker in range(workers)]
    heapq.heapify(arrivals)
    now, batch = 0.0, []
    for _ in range(updates):
        while len(batch) < k:
            now, worker = heapq.heappop(arrivals)
            batch.append(worker)
            if policy != "k_async":
                heapq.heappush(arrivals, (now + next(times), worker))
        if policy == "k_async":
            for worker in batch:
                heapq.heappush(arrivals, (now + next(times), worker))
        if policy == "k_batch_sync":
            arrivals = [(now + next(times), worker) for worker in range(workers)]
            heapq.heapify(arrivals)
        batch = []
    return now / updates


@pytest.mark.parametrize("workers", [1, 3, 8, 100])
@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
def test_order_statistics_of_the_exponential_law_are_harmonic(workers, part):
    k = max(1, round(part * workers))
    exact = theory.harmonic(workers) - theory.harmonic(workers - k)
    assert theory.order_statistic_mean(EXPONENTIAL, k, workers) == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize(("workers", "k"), [(1, 1), (8, 1), (8, 5), (8, 8), (500, 250)])
def test_order_statistics_of_other_laws(workers, k):
    from scipy.special import beta

    assert theory.order_statistic_mean(UNIFORM, k, workers) == pytest.approx(k / (workers + 1), rel=1e-7)
    assert theory.order_statistic_mean(CONSTANT, k, workers) == pytest.approx(2.0, rel=1e-7)
    tail = workers - k + 1.0
    exact = beta(k, tail - 2.0 / 3.0) / beta(k, tail)
    assert theory.order_statistic_mean(PARETO, k, workers) == pytest.approx(exact, rel=3e-4)


@pytest.mark.parametrize(("workers", "k"), [(8, 2), (8, 4), (8, 7), (3, 1)])
def test_order_statistics_of_sampled_laws(workers, k):
    for law in (GAMMA, HYPEREXPONENTIAL):
        sample = np.sort(law.draw(np.random.default_rng(2), (100_000, workers)), axis=1)[:, k - 1]
        error = sample.std() / np.sqrt(len(sample))
        assert abs(theory.order_statistic_mean(law, k, workers) - sample.mean()) < 4.0 * error


# M = 8, mean service 1: time per update that k_async takes, and E X_{K:M}.
K_ASYNC = [
    (GAMMA, 2, 0.267, 0.589),
    (GAMMA, 4, 0.614, 0.864),
    (GAMMA, 7, 1.359, 1.409),
    (EXPONENTIAL, 2, 0.2679, 0.2679),
    (EXPONENTIAL, 4, 0.6345, 0.6345),
    (EXPONENTIAL, 7, 1.7179, 1.7179),
    (HYPEREXPONENTIAL, 2, 0.276, 0.091),
    (HYPEREXPONENTIAL, 4, 0.696, 0.226),
    (HYPEREXPONENTIAL, 7, 2.53, 1.31),
]


@pytest.mark.parametrize(("law", "k", "measured", "formula"), K_ASYNC, ids=lambda value: getattr(value, "name", None))
def test_k_async_is_bounded_only_for_new_better_than_used_service(law, k, measured, formula):
    predicted = theory.time_per_update("k_async", workers=8, k=k, law=law)
    assert predicted == pytest.approx(formula, rel=6e-3)
    updates = {2: 20_000, 4: 10_000, 7: 6000}[k]
    found = measured_time_per_update("k_async", law, 8, k, updates)
    assert found == pytest.approx(measured, rel=0.04)
    if law is GAMMA:
        assert found < 0.985 * predicted
    elif law is EXPONENTIAL:
        assert found == pytest.approx(predicted, rel=0.03)
    else:
        assert found > 1.5 * predicted


@pytest.mark.parametrize("law", [EXPONENTIAL, GAMMA, HYPEREXPONENTIAL, CONSTANT], ids=lambda law: law.name)
@pytest.mark.parametrize(("policy", "k"), [("async", 1), ("k_batch_async", 5)])
def test_batches_of_workers_that_go_on_take_the_same_time_under_every_law(policy, k, law):
    predicted = theory.time_per_update(policy, workers=8, k=k, law=law)
    assert predicted == pytest.approx(k * law.mean / 8)
    assert measured_time_per_update(policy, law, 8, k, 40_000 // k) == pytest.approx(predicted, rel=0.03)


def test_k_batch_sync_is_for_exponential_service():
    predicted = theory.time_per_update("k_batch_sync", workers=8, k=5, rate=1.0)
    assert measured_time_per_update("k_batch_sync", EXPONENTIAL, 8, 5, 6000) == pytest.approx(predicted, rel=0.03)
    assert measured_time_per_update("k_batch_sync", GAMMA, 8, 5, 6000) > 1.2 * predicted
    with pytest.raises(ValueError, match="exponential service only"):
        theory.time_per_update("k_batch_sync", workers=8, k=5, law=GAMMA)


@pytest.mark.parametrize("policy", ["sync", "k_sync", "k_async", "k_batch_async", "async"])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_rate_and_exponential_law_agree(policy, k):
    by_rate = theory.time_per_update(policy, workers=6, k=k, rate=0.25)
    by_law = theory.time_per_update(policy, workers=6, k=k, law=EXPONENTIAL)
    assert by_rate == pytest.approx(4.0 * by_law, rel=1e-7)


def test_the_laws_of_asyncsim_fit():
    from asyncsim.durations import Gamma

    found = theory.time_per_update("k_sync", workers=8, k=4, law=Gamma(shape=4.0, mean=1.0))
    assert found == pytest.approx(theory.time_per_update("k_sync", workers=8, k=4, law=GAMMA), rel=1e-6)


@pytest.mark.parametrize(
    ("policy", "arguments", "message"),
    [
        ("k_sync", {"k": 9, "rate": 1.0}, "k must lie between 1 and the number of workers, 8"),
        ("k_sync", {"k": 0, "rate": 1.0}, "k must lie between"),
        ("k_sync", {"k": 2}, "either law or rate"),
        ("async", {"rate": 0.0}, "rate must be positive"),
        ("hogwild", {"rate": 1.0}, "policy must be one of sync"),
    ],
)
def test_impossible_policies_are_refused(policy, arguments, message):
    with pytest.raises(ValueError, match=message):
        theory.time_per_update(policy, workers=8, **arguments)


def test_unequal_workers_add_their_rates():
    means = [1.0, 2.0, 10.0]
    draws = np.random.default_rng(3).exponential(means, size=(20_000, 3)).cumsum(axis=0)
    done = (draws < 10_000.0).sum()
    assert done / 10_000.0 == pytest.approx(theory.asynchronous_throughput(means), rel=0.03)
    assert theory.asynchronous_throughput(means) != pytest.approx(3.0 / np.mean(means), rel=0.3)


@pytest.mark.parametrize("noise", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("slowest", [1.0, 30.0, 1e9])
def test_optimal_time_is_the_least_over_prefixes(noise, slowest):
    means = [slowest, 1.0, 3.0, 2.0]
    best = theory.optimal_time(means, smoothness=2.0, gap=3.0, noise_variance=noise, accuracy=0.1)
    times = {}
    for m in range(1, 5):
        fastest = sorted(means)[:m]
        times[m] = m / sum(1.0 / t for t in fastest) * (6.0 / 0.1 + noise * 6.0 / (m * 0.01))
    assert best.time == pytest.approx(min(times.values()))
    assert times[best.workers] == pytest.approx(best.time)
    if noise == 0.0:
        assert best.workers == 1 or slowest == 1.0
    if slowest == 1e9:
        assert best.workers < 4  # a worker this slow is left out, so it does not matter how slow it is


def test_harmonic_numbers():
    assert [theory.harmonic(n) for n in (0, 1, 2, 3)] == pytest.approx([0.0, 1.0, 1.5, 11.0 / 6.0])
