from __future__ import annotations

import numpy as np
import pytest

from asyncsim import theory

# (β, M, mean, mean square, almost sure, constant delay M − 1), limits of ηλ, as in docs/theory.md.
LIMITS = [
    (0.0, 1, 2.0, 2.0, 2.0, 2.0),
    (0.0, 2, 6.0, 1.281, 1.523, 1.000),
    (0.0, 4, 14.0, 0.843, 1.099, 0.445),
    (0.0, 8, 30.0, 0.566, 0.692, 0.209),
    (0.0, 16, 62.0, 0.386, 0.475, 0.101),
    (0.0, 32, 126.0, 0.266, 0.329, 0.0499),
    (0.5, 4, 0.833, 0.390, 0.513, 0.199),
    (0.5, 16, 0.567, 0.171, 0.217, 0.048),
    (0.9, 4, 0.0482, 0.0465, 0.0485, 0.0348),
    (0.9, 16, 0.0185, 0.0169, 0.0187, 0.0079),
    (-0.3, 4, 9.8, 1.034, 1.145, 0.605),
    (-0.3, 16, 43.4, 0.509, 0.614, 0.134),
]


def delayed_radius(delay, strength, momentum):
    """Spectral radius of x' = x + β (x − y) − ηλ x_{t−τ} over the last τ + 1 iterates."""
    size = max(delay + 1, 2)
    matrix = np.diag(np.ones(size - 1), -1)
    matrix[0, :2] = 1.0 + momentum, -momentum
    matrix[0, delay] -= strength
    return np.abs(np.linalg.eigvals(matrix)).max()


def log_growth(workers, strength, momentum, updates=30_000, seed=1):
    """ln of the size of one run per update, with numpy's random numbers."""
    held, x, y, total = [1.0] * workers, 1.0, 1.0, 0.0
    for chosen in np.random.default_rng(seed).integers(workers, size=updates):
        x, y = (1.0 + momentum) * x - momentum * y - strength * held[chosen], x
        held[chosen] = x
        size = max(abs(x), abs(y))
        if not 1e-100 < size < 1e100:
            total += np.log(size)
            x, y, held = x / size, y / size, [value / size for value in held]
    return (total + np.log(max(abs(x), abs(y)))) / updates


@pytest.mark.parametrize("momentum", [-0.5, 0.0, 0.5, 0.9])
@pytest.mark.parametrize("delay", [*range(11), 20, 35, 50])
def test_constant_delay_limit_is_where_the_spectral_radius_passes_one(delay, momentum):
    limit = theory.constant_delay_limit(delay, momentum=momentum)
    assert delayed_radius(delay, 0.999 * limit, momentum) < 1.0 < delayed_radius(delay, 1.001 * limit, momentum)
    if momentum == 0.0:
        assert limit == pytest.approx(2.0 * np.sin(np.pi / (2.0 * (2.0 * delay + 1.0))))
    else:  # the limit without momentum is another one
        plain = theory.constant_delay_limit(delay)
        assert (delayed_radius(delay, 0.999 * plain, momentum) < 1.0) != (
            delayed_radius(delay, 1.001 * plain, momentum) > 1.0
        )


def test_no_delay_is_heavy_ball():
    assert theory.constant_delay_limit(0, momentum=0.6) == pytest.approx(theory.heavy_ball_limit(0.6))


@pytest.mark.parametrize(("momentum", "workers", "mean", "mean_square", "almost_sure", "constant"), LIMITS)
def test_limits_of_exponential_workers(momentum, workers, mean, mean_square, almost_sure, constant):
    assert theory.mean_limit(workers, momentum) == pytest.approx(mean, rel=2e-3)
    assert theory.mean_square_limit(workers, momentum) == pytest.approx(mean_square, rel=3e-3)
    assert theory.constant_delay_limit(workers - 1, momentum=momentum) == pytest.approx(constant, rel=7e-3)
    # Two finite runs, each with a standard error of about 0.5 %.
    assert theory.almost_sure_limit(workers, momentum) == pytest.approx(almost_sure, rel=0.02)


@pytest.mark.parametrize("momentum", [-0.4, 0.0, 0.2, 0.6, 0.95])
@pytest.mark.parametrize("workers", [1, 2, 5, 30])
def test_mean_limit_is_where_the_rate_of_the_mean_passes_one(workers, momentum):
    limit = theory.mean_limit(workers, momentum)
    below, above = (
        theory.mean_rate(workers, [1.0], step=factor * limit, momentum=momentum) for factor in (0.999, 1.001)
    )
    assert below < 1.0 < above


@pytest.mark.parametrize("momentum", [-0.4, 0.0, 0.6])
@pytest.mark.parametrize("workers", [1, 2, 5, 30])
def test_mean_square_limit_is_where_the_second_moment_grows(workers, momentum):
    limit = theory.mean_square_limit(workers, momentum)
    for factor, grows in ((0.97, False), (1.03, True)):
        squares = theory.second_moments(workers, 1.0, step=factor * limit, momentum=momentum, updates=1500)
        assert (squares[1300:].max() > squares[1000:1200].max()) == grows


@pytest.mark.parametrize(("workers", "momentum"), [(2, 0.0), (8, 0.0), (4, 0.5), (16, -0.3)])
def test_single_runs_see_the_almost_sure_limit_and_no_other(workers, momentum):
    limit = theory.almost_sure_limit(workers, momentum, updates=100_000, seed=2)
    assert log_growth(workers, 0.93 * limit, momentum) < 0.0 < log_growth(workers, 1.07 * limit, momentum)
    # Neither the mean's limit nor that of a constant delay of the same mean is where runs start to diverge.
    assert log_growth(workers, 0.99 * theory.mean_limit(workers, momentum), momentum) > 0.0
    constant = theory.constant_delay_limit(workers - 1, momentum=momentum)
    assert log_growth(workers, 1.3 * constant, momentum) < 0.0


def test_almost_sure_limit_is_a_function_of_its_seed():
    first, again, other = (theory.almost_sure_limit(4, updates=20_000, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("momentum", [-0.9, -0.5, -0.2, 0.0, 0.5, 0.9])
def test_synchronous_limits_are_where_the_roots_pass_one(momentum):
    def nesterov(strength):
        return np.abs(np.roots([1.0, -(1 + momentum) * (1 - strength), momentum * (1 - strength)])).max()

    limit = theory.nesterov_limit(momentum)
    assert nesterov(0.999 * limit) < 1.0 < nesterov(1.001 * limit)
    limit = theory.heavy_ball_limit(momentum)
    assert delayed_radius(0, 0.999 * limit, momentum) < 1.0 < delayed_radius(0, 1.001 * limit, momentum)


@pytest.mark.parametrize("momentum", [1.0, -1.0, 1.5, float("nan")])
@pytest.mark.parametrize(
    "limit",
    [
        theory.heavy_ball_limit,
        theory.nesterov_limit,
        lambda momentum: theory.constant_delay_limit(3, momentum=momentum),
        lambda momentum: theory.mean_limit(3, momentum),
        lambda momentum: theory.mean_square_limit(3, momentum),
        lambda momentum: theory.almost_sure_limit(3, momentum),
    ],
)
def test_momentum_outside_its_range_is_refused(limit, momentum):
    with pytest.raises(ValueError, match="momentum"):
        limit(momentum)


@pytest.mark.parametrize("delay", [-1, 0.5])
def test_impossible_delay_is_refused(delay):
    with pytest.raises(ValueError, match="delay"):
        theory.constant_delay_limit(delay)
