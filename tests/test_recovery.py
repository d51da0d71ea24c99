"""A matrix from some of its entries, a filter and a signal from their convolution: found, and not found."""

import numpy as np
import pytest

import asyncsim
from asyncsim.methods import GD, PGD
from asyncsim.problems import BlindDeconvolution, MatrixCompletion
from asyncsim.scenario import Metrics, build
from asyncsim.trace import Row

SEED = 7
COMPLETION = MatrixCompletion(rows=20, columns=16, rank=2, observed=0.6)
DECONVOLUTION = BlindDeconvolution(filter=5, signal=6, samples=40)


def final(problem, method, updates, replicas=4):
    """Return the last iterates of replicas without staleness."""
    run = {"source": "synthetic", "staleness": {"law": "constant", "value": 0}, "updates": updates}
    trace = asyncsim.simulate(build({"seed": SEED, "run": {**run, "replicas": replicas}}))
    return asyncsim.replay(trace, method, problem, metrics=Metrics(record=[])).final_iterates


def descend(problem, x, step, updates):
    for _ in range(updates):
        x = x - step * problem.gradient(x)
    return x


def hidden_error(problem, x):
    """Largest error of UVᵀ over all entries of M, those that are not observed included."""
    left, right = problem.factors(x)
    return np.abs(left @ right.swapaxes(-1, -2) - problem.matrix).max(axis=(-2, -1))


# --- completion -------------------------------------------------------------------------------------------------------


def test_perturbed_descent_leaves_the_saddle_and_finds_the_entries_that_nobody_saw():
    problem = COMPLETION.model_copy(update={"start": "saddle"})
    pgd = PGD(step=0.1, epsilon=0.01, radius=0.01, escape_time=100)
    assert hidden_error(problem, final(problem, pgd, 400)).max() < 0.05  # perturbed again where it rests
    assert hidden_error(problem, descend(problem, final(problem, pgd, 400), 0.1, 600)).max() < 1e-6
    np.testing.assert_array_equal(final(problem, GD(step=0.1), 400), 0.0)


def test_with_too_few_entries_the_matrix_is_not_found():
    """Below r (m + n − r) = 68 known entries there are other matrices of the rank with the same ones."""
    problem = COMPLETION.model_copy(update={"observed": 0.15})
    assert problem.known[0].size < 68
    x = descend(problem, problem.initial(SEED, np.arange(4)), 0.05, 3000)
    assert problem.value(x).max() < 0.03 * problem.value(np.zeros(problem.dimension))
    assert hidden_error(problem, x).min() > 0.05


def test_the_observed_entries_are_the_share_that_was_asked_for():
    """Within four standard errors; and more is seen of the same entries, not of others."""
    some, more = (MatrixCompletion(rows=80, columns=50, rank=1, observed=share).mask for share in (0.3, 0.4))
    assert some.mean() == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 4000) ** 0.5)
    assert abs(some.mean() - 0.35) > 4 * (0.3 * 0.7 / 4000) ** 0.5
    assert (more >= some).all()
    assert np.linalg.matrix_rank(COMPLETION.matrix) == 2


def test_completion_is_the_stated_function_entry_by_entry():
    problem = COMPLETION
    x = np.random.default_rng(0).normal(size=problem.dimension)
    u, v = x[:40].reshape(20, 2), x[40:].reshape(16, 2)
    fit = sum((u[i] @ v[j] - problem.matrix[i, j]) ** 2 for i, j in zip(*problem.known, strict=True)) / (2 * 0.6)
    assert problem.value(x) == pytest.approx(fit + 0.25 * np.sum((u.T @ u - v.T @ v) ** 2), rel=1e-12)


def test_factors_that_are_out_of_balance_are_no_minimum():
    x = COMPLETION.minimizer.copy()
    x[:40], x[40:] = 2.0 * x[:40], 0.5 * x[40:]
    assert hidden_error(COMPLETION, x) < 1e-12
    assert COMPLETION.value(x) > 1.0
    assert hidden_error(COMPLETION, descend(COMPLETION, x, 0.02, 2000)) < 1e-5


# --- deconvolution ----------------------------------------------------------------------------------------------------


def test_convolution_is_that_of_numpy():
    """np.convolve, wrapped around after m samples."""
    problem = DECONVOLUTION
    x = np.random.default_rng(0).normal(size=problem.dimension)
    columns = problem._table[:, 0, :]  # what s = 0 multiplies is C itself
    whole = np.convolve(x[:5], columns @ x[5:])
    whole[: whole.size - 40] += whole[40:]
    expected = np.sum((whole[:40] - 40**0.5 * problem.measured) ** 2) / 80
    balance = 0.25 * (np.sum(x[:5] ** 2) - np.sum(x[5:] ** 2)) ** 2
    assert problem.value(x) == pytest.approx(expected + balance, rel=1e-12)
    transformed = np.fft.fft(x[:5], 40) * np.fft.fft(columns @ x[5:])
    np.testing.assert_allclose(np.fft.ifft(transformed).real, whole[:40], atol=1e-12)


def test_descent_from_nearby_recovers_filter_and_signal():
    problem = DECONVOLUTION
    away = 0.1 * np.random.default_rng(0).normal(size=(20, problem.dimension))
    x = descend(problem, problem.minimizer + away, 0.1, 800)
    assert np.abs(x - problem.minimizer).max() < 1e-8
    assert np.linalg.norm(away, axis=1).min() > 0.1


def test_with_equations_to_spare_random_starts_recover_them_too_and_without_some_end_at_another_minimum():
    """k + n = 11 unknowns: 40 equations are enough for all of 100 starts. With 12 about 70 arrive; the others rest."""
    starts, found = np.arange(100), {}
    for samples, updates in ((12, 6000), (40, 1500)):
        problem = DECONVOLUTION.model_copy(update={"samples": samples})
        x = descend(problem, problem.initial(SEED, starts), 0.05, updates)
        found[samples] = problem.value(x) < 1e-5
    assert found[40].all()
    assert 55 < found[12].sum() < 85
    problem = DECONVOLUTION.model_copy(update={"samples": 12})
    rest = descend(problem, problem.initial(SEED, starts)[~found[12]][0], 0.05, 15_000)
    assert np.linalg.norm(problem.gradient(rest)) < 1e-6
    assert problem.value(rest) > 1e-3
    assert np.linalg.eigvalsh([problem.hessian_vector(rest, unit) for unit in np.eye(11)])[0] > 1e-3


@pytest.mark.parametrize("problem", [COMPLETION, DECONVOLUTION], ids=["completion", "deconvolution"])
def test_batches_are_unbiased(problem):
    """The mean over 4000 addresses is the gradient within five standard errors, and not 1.2 times it."""
    problem = problem.model_copy(update={"batch": 2})
    x = np.random.default_rng(1).normal(size=problem.dimension)
    each = problem.stochastic_gradient(np.tile(x, (4000, 1)), Row(SEED, np.arange(4000), 0, 0))
    error = each.std(axis=0) / 4000**0.5
    exact = problem.gradient(x)
    assert np.abs((each.mean(axis=0) - exact) / error).max() < 5
    assert np.abs((each.mean(axis=0) - 1.2 * exact) / error).max() > 5
