from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from asyncsim.estimates import TooFewData, fit_growth, fit_momentum, fit_rate

# --- the momentum meter -------------------------------------------------------------------------------------------


def exponential_workers(
    workers, *, replicas=4000, updates=120, step=0.2, eigenvalues=(1.0,), momentum=0.0, noise=0.0, seed=0, slope=None
):
    """Return iterates, shape (replicas, updates + 1, d), of M workers with exponential service times.

    Such workers have no memory, so the one that delivers next is uniform over them, whatever happened before.
    """
    rng = np.random.default_rng([seed, workers])
    spectrum = np.array(eigenvalues)
    everyone = np.arange(replicas)
    x = np.ones((replicas, spectrum.size))
    before, read, out = x, np.ones((replicas, workers, spectrum.size)), [x]
    for _ in range(updates):
        who = rng.integers(workers, size=replicas)
        stale = read[everyone, who]
        gradient = (spectrum * stale if slope is None else slope(stale)) + noise * rng.standard_normal(x.shape)
        x, before = x - step * gradient + momentum * (x - before), x
        read[everyone, who] = x
        out.append(x)
    return np.stack(out, axis=1)


def identity(x):
    return x


@cache
def measured(workers):
    return fit_momentum(exponential_workers(workers, replicas=16_000 if workers == 2 else 4000), identity)


@pytest.mark.parametrize("workers", [2, 4, 8, 16])
def test_asynchrony_adds_the_predicted_momentum(workers):
    fit = measured(workers)
    assert abs(fit.momentum - (1 - 1 / workers)) <= 0.01
    assert fit.low <= 1 - 1 / workers <= fit.high
    assert abs(workers * fit.effective_step - 0.2) <= 0.008
    assert fit.effective_step_low <= 0.2 / workers <= fit.effective_step_high
    assert fit.steps_used >= 10


@pytest.mark.parametrize("workers", [4, 8, 16])
def test_the_meter_rejects_wrong_formulas(workers):
    fit = measured(workers)
    assert not fit.low <= 1 - 1 / (workers + 1) <= fit.high
    assert not fit.low <= 1 - 1 / (workers - 1) <= fit.high
    assert not fit.effective_step_low <= 0.2 <= fit.effective_step_high


def test_steps_where_one_regressor_vanishes_are_of_use():
    # The mean oscillates at M = 8. Where it crosses 0 only the last step acts, which shows the momentum best: without
    # these steps the interval is 1.9 times as wide.
    fit = measured(8)
    assert fit.high - fit.low < 0.0028


@pytest.mark.parametrize("momentum", [-0.3, 0.4])
def test_explicit_momentum_adds_to_it(momentum):
    iterates = exponential_workers(4, momentum=momentum)
    fit = fit_momentum(iterates, identity, explicit=momentum)
    assert abs(fit.momentum - (0.75 + momentum)) <= 0.005
    assert fit.low <= 0.75 + momentum <= fit.high
    assert abs(4 * fit.effective_step - 0.2) <= 0.008
    forgotten = fit_momentum(iterates, identity)
    assert not forgotten.low <= 0.75 + momentum <= forgotten.high


def test_the_prediction_needs_no_quadratic_and_no_exact_gradients():
    def slope(x):
        return x + x**3

    fit = fit_momentum(exponential_workers(4, slope=slope, noise=0.2), slope)
    assert fit.low <= 0.75 <= fit.high
    assert abs(fit.momentum - 0.75) <= 0.01


def test_the_interval_has_the_width_that_repeating_the_experiment_shows():
    fits = [fit_momentum(exponential_workers(4, replicas=1000, updates=60, seed=seed), identity) for seed in range(40)]
    spread = np.std([fit.momentum for fit in fits], ddof=1)
    claimed = np.mean([(fit.high - fit.low) / (2 * 2.5758) for fit in fits])
    # 40 repeats know their spread to 11 %: the band is three of that.
    assert 0.67 <= spread / claimed <= 1.33
    assert sum(fit.low <= 0.75 <= fit.high for fit in fits) >= 38


def test_the_meter_has_no_bias_where_plain_least_squares_has():
    workers = 64
    iterates = exponential_workers(workers)
    fit = fit_momentum(iterates, identity)
    assert fit.low <= 1 - 1 / workers <= fit.high
    mean = iterates.mean(axis=0)[:, 0]
    step = np.diff(mean)
    plain = np.linalg.lstsq(np.stack([step[:-1], -mean[1:-1]], axis=1), step[1:], rcond=None)[0][0]
    assert plain < 1 - 1 / workers - 0.0015
    assert abs(fit.momentum - (1 - 1 / workers)) < 0.0015


def test_beyond_the_mean_square_limit_late_steps_are_left_out():
    # At M = 4, step 1, the spread between replicas grows; the mean still obeys the recursion, but few steps show it.
    iterates = exponential_workers(4, step=1.0)
    fit = fit_momentum(iterates, identity)
    assert fit.steps_used < 30
    assert fit.low <= 0.75 <= fit.high
    mean = iterates.mean(axis=0)[:, 0]
    step = np.diff(mean)
    plain = np.linalg.lstsq(np.stack([step[:-1], -mean[1:-1]], axis=1), step[1:], rcond=None)[0][0]
    assert abs(plain - 0.75) > 0.05


@pytest.mark.parametrize(
    ("reason", "settings"),
    [
        ("About .* replicas would do, there are 10", {"replicas": 10}),
        ("in . of 119 updates, 10 are needed", {"step": 1.5}),
        ("in 4 of 4 updates, 10 are needed; .* of little use", {"updates": 5}),
        # They do not differ at all; how rounding says so depends on the processor.
        (r"directions differ by 0(\.0\d*)? standard errors, 5 are needed", {"workers": 1}),
        ("directions differ by [0-3]", {"workers": 1, "noise": 0.5}),
        ("in 0 of 0 updates", {"updates": 1}),
    ],
)
def test_the_meter_refuses_with_its_estimate(reason, settings):
    settings = {"workers": 4} | settings
    with pytest.raises(TooFewData, match=reason) as refused:
        fit_momentum(exponential_workers(**settings), identity)
    estimate = refused.value.estimate
    assert estimate.steps_used <= 119
    assert np.isnan(estimate.momentum) == (settings.get("updates") == 1)


def test_two_eigenvalues_tell_momentum_from_step_for_one_worker():
    spectrum = (1.0, 4.0)
    fit = fit_momentum(exponential_workers(1, eigenvalues=spectrum, noise=0.5), lambda x: np.array(spectrum) * x)
    assert fit.low <= 0 <= fit.high
    assert fit.high - fit.low < 0.04


def test_the_seed_addresses_the_resampling():
    iterates = exponential_workers(4, replicas=200)
    one, again, other = (fit_momentum(iterates, identity, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one.momentum == other.momentum
    assert one.low != other.low


def test_the_interval_widens_with_the_confidence():
    iterates = exponential_workers(4, replicas=200)
    wide, narrow = (fit_momentum(iterates, identity, confidence=level) for level in (0.99, 0.6827))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2.5758, rel=1e-3)


@pytest.mark.parametrize(
    ("message", "iterates", "settings"),
    [
        ("at least 2 replicas, got shape", np.ones((1, 30, 1)), {}),
        ("at least 2 replicas, got shape", np.ones((30, 30)), {}),
        ("replica 1 are not from update 7 on", np.where(np.arange(30) < 7, 1.0, [[0.5], [np.nan]])[..., None], {}),
        ("confidence must be between", np.ones((30, 30, 1)), {"confidence": 99}),
    ],
)
def test_the_meter_refuses_bad_input(message, iterates, settings):
    with pytest.raises(ValueError, match=message):
        fit_momentum(iterates, identity, **settings)


# --- the rate -----------------------------------------------------------------------------------------------------


def squared_norms(workers, eigenvalues, momentum, step, **settings):
    iterates = exponential_workers(workers, eigenvalues=eigenvalues, momentum=momentum, step=step, **settings)
    return (iterates**2).sum(axis=-1)


#: Workers, eigenvalues, momentum, step and the mean-square rate: √ of the spectral radius of the exact second moments.
MEAN_SQUARE = [
    (2, (1.0, 5.0), 0.0056, 0.12974, 0.83864),
    (4, (1.0, 5.0), -0.2712, 0.08119, 0.91267),
    (8, (1.0, 5.0), -0.4745, 0.04668, 0.95264),
]


@pytest.mark.parametrize(("workers", "eigenvalues", "momentum", "step", "rate"), MEAN_SQUARE)
def test_the_rate_is_that_of_the_second_moments(workers, eigenvalues, momentum, step, rate):
    fit = fit_rate(squared_norms(workers, eigenvalues, momentum, step, updates=80), warmup=20)
    assert abs(fit.rate - rate) <= 0.003
    assert fit.high - fit.low < 0.02
    slower = fit_rate(squared_norms(workers, eigenvalues, momentum, step / 2, updates=80), warmup=20)
    assert slower.rate > rate + 0.01


def test_the_rate_of_a_diverging_run_is_refused_and_above_one():
    with pytest.raises(TooFewData, match="says that the runs diverge") as refused:
        fit_rate(squared_norms(4, (1.0, 5.0), -0.268, 1.877, replicas=1000, updates=40))
    assert refused.value.estimate.rate > 2


def test_the_rate_ends_where_numbers_do():
    decay = np.tile(0.25 ** np.arange(100.0), (30, 1))
    decay[:, 20:] += 0.25**60  # rounding, as of a minimizer that is not zero
    assert fit_rate(decay).rate == pytest.approx(0.5, abs=1e-3)
    assert fit_rate(decay).steps_used < 50
    decay[3, 40:] = np.inf
    assert fit_rate(decay).steps_used == 40


def test_the_interval_of_the_rate_covers():
    # Replica i decays exactly at 0.9 from a random start, plus independent relative noise at each point.
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(40):
        squares = 0.81 ** np.arange(40) * rng.gamma(4.0, 0.25, size=(50, 40))
        fit = fit_rate(squares, seed=seed, confidence=0.9)
        covered += fit.low <= 0.9 <= fit.high
    assert 30 <= covered <= 40  # Binomial(40, 0.9) is below 30 with probability 0.002


@pytest.mark.parametrize(
    ("message", "shape", "settings"),
    [
        ("at least 2 replicas", (1, 30), {}),
        ("at least 2 replicas", (30,), {}),
        ("warmup must leave two of the 30 points, got 29", (30, 30), {"warmup": 29}),
        ("of at least 20 replicas", (19, 30), {}),
        ("in 9 points from update 21 on", (30, 30), {"warmup": 21}),
    ],
)
def test_the_rate_refuses_bad_input(message, shape, settings):
    with pytest.raises(ValueError, match=message):
        fit_rate(np.broadcast_to(0.5 ** np.arange(30.0), shape), **settings)


# --- growth -----------------------------------------------------------------------------------------------------------


def growing(law, *, replicas=9, noise=0.0, seed=0):
    """Return what replicas took at 1 … 8: each has a luck of its own, which lasts, and some at every number."""
    rng, numbers = np.random.default_rng(seed), np.arange(1.0, 9.0)
    luck = 1.0 + noise * rng.standard_normal((replicas, 1))
    return numbers, luck * law(numbers) * (1.0 + noise * rng.standard_normal((replicas, 8)))


def test_growth_of_a_line_and_of_a_power():
    line = fit_growth(*growing(lambda d: 30.0 + 41.0 * d))
    assert line.added == pytest.approx([41.0] * 3)
    assert line.bend == pytest.approx([0.0] * 3, abs=1e-12)
    power = fit_growth(*growing(lambda d: 3.0 * 2.7**d))
    assert power.factor == pytest.approx([2.7] * 3)
    assert power.bend[0] > 0.5
    assert line.numbers == power.numbers == (5.0, 6.0, 7.0, 8.0)


def test_the_intervals_of_growth_hold_what_they_should():
    covered = {"line": 0, "power": 0, "bend": 0, "no line": 0}
    for seed in range(60):
        line = fit_growth(*growing(lambda d: 30.0 + 41.0 * d, noise=0.01, seed=seed), confidence=0.9)
        power = fit_growth(*growing(lambda d: 3.0 * 2.7**d, noise=0.01, seed=seed), confidence=0.9)
        covered["line"] += line.added[1] <= 41.0 <= line.added[2]
        covered["power"] += power.factor[1] <= 2.7 <= power.factor[2]
        covered["bend"] += line.bend[1] <= 0.0 <= line.bend[2]
        covered["no line"] += power.bend[1] <= 0.0 <= power.bend[2]
    for name in ("line", "power", "bend"):
        assert covered[name] >= 46  # Binomial(60, 0.9) is below 46 with probability 0.0008
    assert covered["no line"] == 0  # the control


def test_growth_looks_at_numbers_where_everybody_arrived():
    numbers, values = growing(lambda d: 3.0 * 2.0**d, replicas=4)
    values[2, 6], values[:, 7] = np.nan, np.nan
    assert fit_growth(numbers, values).numbers == (4.0, 5.0, 6.0)
    values[0, 2:] = np.nan
    assert fit_growth(numbers, values) is None  # two numbers are left
    assert fit_growth(numbers, growing(lambda d: d, replicas=1)[1]) is None


def test_growth_says_nothing_of_factors_from_zero_and_of_the_bend_of_replicas_that_disagree():
    numbers, values = growing(lambda d: 10.0 * d, replicas=4)
    values[1] = [0.0, 0, 0, 0, 0, 30, 20, 10]  # grows all the same, and has no factor
    fit = fit_growth(numbers, values)
    assert np.isnan(fit.factor).all()
    assert np.isfinite([fit.added, fit.bend]).all()
    values[1] = 100.0 - values[0]
    fit = fit_growth(numbers, values)
    assert np.isnan(fit.bend).all()
    assert np.isfinite([fit.added, fit.factor]).all()
