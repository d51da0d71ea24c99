from __future__ import annotations

import numpy as np
import pytest
from asynchronous_runs import all_runs, random_runs

from asyncsim import theory

REPLIES = ["after_apply", "before_apply"]
CASES = [(2, 0.0), (4, 0.0), (4, 0.5), (4, -0.3), (16, -0.3)]


def largest_z(runs, predicted):
    """Largest deviation of the mean of runs from a prediction, in standard errors, where runs differ at all."""
    error = runs.std(axis=0) / np.sqrt(len(runs))
    random = error > 1e-12
    assert np.allclose(runs[0, ~random], predicted[~random], atol=1e-12)
    return np.abs((runs.mean(axis=0) - predicted)[random] / error[random]).max()


def identity(x):
    return x


@pytest.mark.parametrize("workers", [1, 2, 16, 64])
def test_momentum_of_the_mean_staleness_is_that_of_the_workers(workers):
    assert theory.momentum_from_mean_staleness(workers - 1) == pytest.approx(theory.implicit_momentum(workers))


@pytest.mark.parametrize("workers", [0, -3, 2.5])
def test_impossible_workers_are_refused(workers):
    with pytest.raises(ValueError, match="workers"):
        theory.implicit_momentum(workers)


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize("workers", [1, 3, 16])
def test_geometric_staleness_agrees_with_its_probabilities(workers, reply):
    law = theory.geometric_staleness(workers, reply=reply)
    values = np.arange(4000) + (reply == "before_apply")
    pmf = theory.staleness_pmf(theory.implicit_momentum(workers), 4000)
    assert law.mean == pytest.approx(pmf @ values)
    assert law.variance == pytest.approx(pmf @ values**2 - (pmf @ values) ** 2)
    for probability in (0.0, 0.1, 0.5, 0.99, 0.9999):
        expected = values[np.searchsorted(np.cumsum(pmf), probability * (1 - 1e-12))]
        assert law.quantile(probability) == expected


@pytest.mark.parametrize("update", [0, 1, 5])
def test_law_of_one_update_by_enumeration(update):
    workers = 3
    counts = np.zeros(update + 1)
    for run in np.ndindex(*(workers,) * (update + 1)):
        earlier = [s for s in range(update) if run[s] == run[update]]
        counts[update - (earlier[-1] + 1) if earlier else update] += 1
    law = theory.staleness_pmf_at(theory.implicit_momentum(workers), update)
    assert law == pytest.approx(counts / counts.sum())
    untruncated = theory.staleness_pmf(theory.implicit_momentum(workers), update + 1)
    assert untruncated.sum() < 1.0 - 1e-3  # the geometric law itself is wrong this early


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize(("workers", "momentum"), CASES)
def test_exponential_recursion_is_exact(workers, momentum, reply):
    updates = {2: 12, 4: 6, 16: 3}[workers]
    runs = all_runs(workers, 0.4, momentum=momentum, updates=updates, reply=reply)
    predicted = theory.expected_iterates_exponential(
        identity, 1.0, step=0.4, workers=workers, momentum=momentum, updates=updates, reply=reply
    )
    assert runs.mean(axis=0) == pytest.approx(predicted, abs=1e-12)


@pytest.mark.parametrize("reply", REPLIES)
@pytest.mark.parametrize(("workers", "momentum"), CASES)
def test_expected_iterates_within_the_band_of_replicas(workers, momentum, reply):
    step, updates = 0.2, 40
    runs = random_runs(
        workers, lambda x: step * x, momentum=momentum, updates=updates, replicas=40_000, seed=3, reply=reply
    )
    predicted = theory.expected_iterates_exponential(
        identity, 1.0, step=step, workers=workers, momentum=momentum, updates=updates, reply=reply
    )
    # 40 correlated comparisons in each of 10 cases: 4.2 standard errors are passed at a level of 1 %.
    assert largest_z(runs, predicted) < 4.2

    other = {"after_apply": "before_apply", "before_apply": "after_apply"}[reply]
    wrong = theory.expected_iterates_exponential(
        identity, 1.0, step=step, workers=workers, momentum=momentum, updates=updates, reply=other
    )
    assert np.abs(wrong - runs.mean(axis=0)).max() > 10 * runs.std(axis=0).max() / np.sqrt(len(runs))


@pytest.mark.parametrize("workers", [2, 4, 16])
def test_reading_the_start_as_rest_is_refuted(workers):
    """With Δ_0 = 0 put into E Δ_{t+1} = μ E Δ_t − (1 − μ) η E∇f(x_t) from t = 0 on, the first step is η/M."""
    step, updates, memory = 0.2, 40, 1.0 - 1.0 / workers
    wrong = np.ones(updates + 1)
    move = 0.0
    for t in range(updates):
        move = memory * move - (1.0 - memory) * step * wrong[t]
        wrong[t + 1] = wrong[t] + move
    right = theory.expected_iterates_exponential(identity, 1.0, step=step, workers=workers, updates=updates)
    runs = random_runs(workers, lambda x: step * x, updates=updates, replicas=40_000, seed=4)
    assert largest_z(runs, right) < 4.2
    assert np.abs(wrong - right).max() > {2: 0.14, 4: 0.35, 16: 1.1}[workers]
    assert np.abs(wrong - runs.mean(axis=0)).max() > {2: 0.14, 4: 0.35, 16: 1.1}[workers]


@pytest.mark.parametrize("gradient", [np.tanh, np.sin, lambda x: x**3], ids=["tanh", "sin", "cube"])
def test_momentum_relation_holds_for_nonlinear_gradients_too(gradient):
    workers, step, memory = 4, 0.5, 0.75
    x = random_runs(workers, lambda v: step * gradient(v), updates=20, replicas=40_000, seed=5)
    moves = np.diff(x, axis=1)
    residual = moves[:, 1:] - memory * moves[:, :-1] + (1 - memory) * step * gradient(x[:, 1:-1])
    error = residual.std(axis=0) / np.sqrt(len(x))
    assert np.abs(residual.mean(axis=0) / error).max() < 4.0
    wrong = moves[:, 1:] - 0.5 * moves[:, :-1] + 0.5 * step * gradient(x[:, 1:-1])
    assert np.abs(wrong.mean(axis=0) / error).max() > 25.0


@pytest.mark.parametrize("momentum", [0.0, 0.5, -0.3])
@pytest.mark.parametrize("reply", REPLIES)
def test_general_recursion_agrees_with_the_exponential_one(momentum, reply):
    curvature = np.array([[2.0, 0.3], [0.3, 1.0]])

    def gradient(x):
        return curvature @ (x - 1.0)

    pmf = theory.staleness_pmf(0.75, 200)
    if reply == "before_apply":
        pmf = np.concatenate([[0.0], pmf])
    settings = {"step": 0.3, "momentum": momentum, "updates": 60}
    general = theory.expected_iterates(gradient, [1.0, -2.0], staleness=pmf, **settings)
    exponential = theory.expected_iterates_exponential(gradient, [1.0, -2.0], workers=4, reply=reply, **settings)
    assert general.shape == (61, 2)
    assert general == pytest.approx(exponential, rel=1e-10, abs=1e-12)


def test_general_recursion_satisfies_its_difference_form():
    pmf = np.array([0.1, 0.5, 0.0, 0.4])
    x = theory.expected_iterates(identity, 1.0, step=0.3, staleness=pmf, updates=30)
    change = np.append(pmf, 0.0)[:-1] - np.append(pmf[1:], 0.0)
    for t in range(5, 30):
        step = x[t] - x[t - 1] - 0.3 * pmf[0] * x[t]
        step += 0.3 * sum(change[lag] * x[t - lag - 1] for lag in range(4))
        assert x[t + 1] - x[t] == pytest.approx(step, abs=1e-12)


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_general_recursion_at_constant_delay_is_delayed_descent(delay):
    x = theory.expected_iterates(identity, 1.0, step=0.3, staleness=[0.0] * delay + [1.0], updates=20)
    expected = [1.0]
    for t in range(20):
        expected.append(expected[t] - 0.3 * expected[max(t - delay, 0)])
    assert x == pytest.approx(np.array(expected))


@pytest.mark.parametrize("staleness", [[], [0.5, 0.4], [1.5, -0.5], [[1.0]], [3, 1], [float("nan"), 1.0]], ids=str)
def test_what_is_no_law_is_refused(staleness):
    with pytest.raises(ValueError, match="staleness law"):
        theory.expected_iterates(identity, 1.0, step=0.1, staleness=staleness, updates=3)
