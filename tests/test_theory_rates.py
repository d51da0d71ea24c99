from __future__ import annotations

import numpy as np
import pytest
from asynchronous_runs import all_runs, random_runs

from asyncsim import theory


def companion_radius(coefficients):
    """Spectral radius of the companion matrix of a polynomial with leading coefficient 1, by eigenvalues."""
    size = len(coefficients) - 1
    matrix = np.diag(np.ones(size - 1), -1)
    matrix[0] = -np.asarray(coefficients)[1:]
    return np.abs(np.linalg.eigvals(matrix)).max()


def delayed_polynomial(pmf, strength, momentum):
    polynomial = np.zeros(max(len(pmf) + 1, 3))
    polynomial[:3] = 1.0, -1.0 - momentum, momentum
    polynomial[1 : len(pmf) + 1] += strength * np.asarray(pmf)
    return polynomial


def observed_rate(sequence):
    """Factor per step by which the peaks of a decaying, perhaps oscillating, sequence shrink."""
    size = np.abs(sequence)
    third = len(size) // 3
    early, late = size[third : third + 60].max(), size[2 * third : 2 * third + 60].max()
    return (late / early) ** (1.0 / third)


@pytest.mark.parametrize(
    ("entries", "printed"), [(20, 0.88204), (60, 0.879948), (200, 0.879941)], ids=["20", "60", "200"]
)
def test_histogram_rate_of_a_cut_geometric_law(entries, printed):
    pmf = theory.staleness_pmf(0.75, entries)
    rate = theory.histogram_rate(pmf / pmf.sum(), [1.0], step=0.3, momentum=0.2)
    assert rate == pytest.approx(printed, abs=1e-5 if entries == 20 else 1e-6)
    assert theory.mean_rate(4, [1.0], step=0.3, momentum=0.2) == pytest.approx(0.879941, abs=1e-6)


def test_a_law_cut_too_early_is_refused():
    with pytest.raises(ValueError, match="keep all but 1e-6"):
        theory.histogram_rate(theory.staleness_pmf(0.75, 20), [1.0], step=0.3)


@pytest.mark.parametrize("spread", [0.05, 0.3, 3.0])
@pytest.mark.parametrize("momentum", [-0.8, 0.0, 0.5, 0.95])
def test_largest_root_equals_the_companion_matrix(spread, momentum):
    rng = np.random.default_rng(11)
    for size in (1, 2, 3, 10, 45):
        for strength in (0.01, 0.5, 3.0):
            polynomial = delayed_polynomial(rng.dirichlet(np.full(size, spread)), strength, momentum)
            assert theory.largest_root_modulus(polynomial) == pytest.approx(
                companion_radius(polynomial), rel=1e-7, abs=1e-9
            )


@pytest.mark.parametrize("delay", [0, 1, 7, 30])
def test_largest_root_of_a_constant_delay(delay):
    polynomial = delayed_polynomial([0.0] * delay + [1.0], 0.05, 0.3)
    assert theory.largest_root_modulus(polynomial) == pytest.approx(companion_radius(polynomial), rel=1e-9)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("roots", "largest"),
    [([0.9, 0.9, 0.5], 0.9), ([2.0, -2.0, 1.9], 2.0), ([0.7, 0.0, 0.0], 0.7), ([0.0], 0.0), ([1e-8, 1e3], 1e3)],
)
def test_largest_root_of_known_polynomials(roots, largest):
    assert theory.largest_root_modulus(np.poly(roots)) == pytest.approx(largest, rel=1e-7)


@pytest.mark.parametrize(("workers", "momentum"), [(1, 0.0), (1, 0.4), (4, 0.0), (4, 0.5), (4, -0.3), (16, -0.3)])
def test_mean_rate_is_the_decay_of_the_expected_iterate(workers, momentum):
    eigenvalues, step = np.array([0.2, 1.0]), 0.35
    x = theory.expected_iterates_exponential(
        lambda x: eigenvalues * x, [1.0, 1.0], step=step, workers=workers, momentum=momentum, updates=900
    )
    rate = theory.mean_rate(workers, eigenvalues, step=step, momentum=momentum)
    assert observed_rate(np.linalg.norm(x, axis=1)) == pytest.approx(rate, abs=2e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.4, -0.4])
def test_histogram_rate_is_the_decay_of_the_expected_iterate(momentum):
    pmf = [0.2, 0.0, 0.5, 0.1, 0.2]
    x = theory.expected_iterates(lambda x: x, 1.0, step=0.15, momentum=momentum, staleness=pmf, updates=900)
    rate = theory.histogram_rate(pmf, [1.0], step=0.15, momentum=momentum)
    assert observed_rate(x) == pytest.approx(rate, abs=2e-3)


@pytest.mark.parametrize(("workers", "momentum"), [(1, 0.0), (1, 0.3), (4, 0.0)])
def test_rate_survives_the_loss_of_degree(workers, momentum):
    """The smallest root of μβ t³ − (μ+β+μβ) t² + z t − 1 has no companion matrix where μβ = 0."""
    memory = 1.0 - 1.0 / workers
    z = 1.0 + memory + momentum - (1.0 - memory)
    reversed_form = np.array([memory * momentum, -(memory + momentum + memory * momentum), z, -1.0])
    with np.errstate(divide="ignore", invalid="ignore"), pytest.raises(np.linalg.LinAlgError):
        companion_radius(reversed_form / reversed_form[0])
    expected = np.abs(np.roots([1.0, -z, memory + momentum])).max()
    assert theory.mean_rate(workers, [1.0], step=1.0, momentum=momentum) == pytest.approx(expected, abs=1e-9)


def test_bound_without_the_multiplicity_fails_at_the_optimum():
    best = theory.optimal_momentum([1.0, 5.0], workers=1)
    x = theory.expected_iterates_exponential(
        lambda x: x, 1.0, step=best.step, workers=1, momentum=best.momentum, updates=60
    )
    ratio = np.abs(x[[20, 60]]) / best.rate ** np.array([20, 60])
    assert 2.0 < ratio[1] / ratio[0] < 3.5  # grows like t, so O(γ^t) is false and O(t γ^t) right


@pytest.mark.parametrize("momentum", [0.0, 0.4, -0.3])
@pytest.mark.parametrize(("workers", "updates"), [(1, 8), (2, 12), (3, 8), (5, 5)])
def test_second_moments_by_enumeration(workers, updates, momentum):
    runs = all_runs(workers, 0.6, momentum=momentum, updates=updates)
    predicted = theory.second_moments(workers, 2.0, step=0.3, momentum=momentum, updates=updates)
    assert (runs**2).mean(axis=0) == pytest.approx(predicted, rel=1e-10)
    if workers > 1:  # the square of the mean is something else
        assert np.abs(runs.mean(axis=0) ** 2 - predicted).max() > 1e-3


def test_second_moments_within_the_band_of_replicas():
    runs = random_runs(8, lambda x: 0.2 * x, momentum=0.3, updates=30, replicas=50_000, seed=6)
    predicted = theory.second_moments(8, 1.0, step=0.2, momentum=0.3, updates=30)
    error = (runs**2).std(axis=0) / np.sqrt(len(runs))
    z = np.abs((runs**2).mean(axis=0) - predicted)[2:] / error[2:]
    assert z.max() < 4.0
    wrong = theory.second_moments(7, 1.0, step=0.2, momentum=0.3, updates=30)
    assert (np.abs((runs**2).mean(axis=0) - wrong)[2:] / error[2:]).max() > 20.0


def test_diverging_second_moments_end_at_infinity():
    squares = theory.second_moments(4, 1.0, step=14.0, updates=500)
    assert squares[-1] == np.inf
    assert not np.any(np.isnan(squares))


@pytest.mark.parametrize(("workers", "momentum"), [(2, 0.2), (4, -0.3), (16, 0.0)])
def test_mean_square_rate_is_the_decay_of_the_second_moment(workers, momentum):
    rate = theory.mean_square_rate(workers, [1.0], step=0.15, momentum=momentum)
    squares = theory.second_moments(workers, 1.0, step=0.15, momentum=momentum, updates=900)
    assert np.sqrt(observed_rate(squares)) == pytest.approx(rate, abs=1e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.4])
def test_one_worker_has_the_mean_rate_in_mean_square(momentum):
    settings = {"step": 0.3, "momentum": momentum}
    assert theory.mean_square_rate(1, [1.0, 3.0], **settings) == pytest.approx(
        theory.mean_rate(1, [1.0, 3.0], **settings)
    )


@pytest.mark.parametrize("eigenvalues", [[], [0.0, 1.0], [-1.0], [float("inf")]])
@pytest.mark.parametrize("rate", [theory.mean_rate, theory.mean_square_rate])
def test_impossible_eigenvalues_are_refused(rate, eigenvalues):
    with pytest.raises(ValueError, match="eigenvalues"):
        rate(2, eigenvalues, step=0.1)
