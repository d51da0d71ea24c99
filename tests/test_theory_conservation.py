from __future__ import annotations

import heapq

import numpy as np
import pytest

from asyncsim import theory

LAWS = {
    "constant": lambda rng: 1.0,
    "exponential": lambda rng: rng.exponential(),
    "pareto": lambda rng: 1.0 + rng.pareto(1.2),
    "hyperexponential": lambda rng: rng.exponential(0.3 if rng.random() < 0.9 else 7.3),
}


def schedule(law, workers, updates, reply, seed=0):
    """Return the staleness of every update, and the version each worker read last."""
    rng = np.random.default_rng(seed)
    arrivals = [(law(rng), worker) for worker in range(workers)]
    heapq.heapify(arrivals)
    read, staleness = [0] * workers, []
    for version in range(updates):
        now, worker = heapq.heappop(arrivals)
        staleness.append(version - read[worker])
        read[worker] = version + (reply == "after_apply")
        heapq.heappush(arrivals, (now + law(rng), worker))
    return staleness, read


@pytest.mark.parametrize("reply", ["after_apply", "before_apply"])
@pytest.mark.parametrize("workers", [1, 2, 9])
@pytest.mark.parametrize("law", LAWS)
def test_staleness_is_conserved_exactly(law, workers, reply):
    updates = 777
    staleness, read = schedule(LAWS[law], workers, updates, reply)
    residual = theory.conservation_residual(staleness, read, updates=updates, workers=workers, reply=reply)
    assert residual == 0
    assert isinstance(residual, int)

    other = {"after_apply": "before_apply", "before_apply": "after_apply"}[reply]
    assert theory.conservation_residual(staleness, read, updates=updates, workers=workers, reply=other) != 0
    staleness[100] += 1
    assert theory.conservation_residual(staleness, read, updates=updates, workers=workers, reply=reply) == 1


def test_identity_gives_the_mean_staleness():
    staleness, read = schedule(LAWS["pareto"], 8, 5000, "after_apply")
    missing = sum(5000 - version for version in read) / 5000
    assert np.mean(staleness) == pytest.approx(7.0 - missing, abs=1e-12)


def test_staleness_counted_from_the_update_before_is_caught():
    """A common mistake: counting from the last upload, as if the worker had read the version it made stale."""
    staleness, read = schedule(LAWS["exponential"], 4, 500, "after_apply")
    mistaken = [max(value - 1, 0) for value in staleness]
    assert theory.conservation_residual(mistaken, read, updates=500, workers=4) < -100


@pytest.mark.parametrize(
    ("staleness", "read", "error"),
    [
        ([0.0, 1.0], [2, 1], TypeError),
        ([0, 1], [2.0, 1.0], TypeError),
        ([0, 1, 1], [2, 1], ValueError),
        ([0, 1], [2], ValueError),
    ],
)
def test_tables_that_do_not_fit_are_refused(staleness, read, error):
    with pytest.raises(error):
        theory.conservation_residual(staleness, read, updates=2, workers=2)
