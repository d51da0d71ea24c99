"""The theory of leaving saddle points: step rules, the stuck region, escape times, growth along a chain of saddles."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from asyncsim import theory
from asyncsim.methods import PGD
from asyncsim.problems import SaddleChain
from asyncsim.trace import Row

# --- step rules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("delay", [1, 4, 20])
def test_the_energy_can_fall_exactly_below_the_safe_step(delay, a):
    step = theory.largest_safe_step(3.0, delay, a)
    assert theory.energy_decrease(step, 3.0, delay, a) == pytest.approx(0.0, abs=1e-12 / step)
    assert theory.energy_decrease(0.25 * step, 3.0, delay, a) * 0.25 * step == pytest.approx(0.75)
    assert theory.energy_decrease(1.01 * step, 3.0, delay, a) < 0  # the control
    assert step <= theory.largest_safe_step(3.0, delay) == pytest.approx(2 / (3.0 * (2 * delay + 1)))


def spectral_radius(strength, delay):
    """Return the largest root of x^{τ+1} − x^τ + ηL, by the companion matrix."""
    return np.abs(np.roots([1.0, -1.0, *[0.0] * (delay - 1), strength])).max()


def test_the_reports_step_is_refuted_from_nine_on():
    assert theory.report_step_counterexample() == 9
    assert spectral_radius(theory.report_step(1.0, 9) * (1 - 1e-9), 9) == pytest.approx(1.00068, abs=1e-5)
    assert spectral_radius(theory.report_step(1.0, 10) * (1 - 1e-9), 10) == pytest.approx(1.00383, abs=1e-5)
    for delay in range(1, 9):
        assert spectral_radius(theory.report_step(1.0, delay), delay) < 1
    for delay in (9, 10, 50):
        assert spectral_radius(theory.largest_safe_step(1.0, delay), delay) < 1  # the control: the safe step is safe


def steps_to(bound, strength, delay, most):
    path = itertools.islice(theory.constant_delay_path(strength, delay), most)
    return next((t for t, x in enumerate(path) if abs(x) > bound), None)


def test_a_delay_of_ten_diverges_with_the_reports_step_and_not_with_the_safe_one():
    assert steps_to(1e30, theory.report_step(1.0, 10) * (1 - 1e-12), 10, 20_000) == pytest.approx(18_067, abs=40)
    assert steps_to(1.0, theory.largest_safe_step(1.0, 10), 10, 20_000) is None


# --- the stuck region -------------------------------------------------------------------------------------------------

SHARES = {2: (0.79, 200_000), 10: (0.72, 200_000), 100: (0.71, 200_000), 1000: (0.70, 40_000)}


@pytest.mark.parametrize("dimension", SHARES)
def test_the_share_of_the_stuck_region(dimension):
    expected, draws = SHARES[dimension]
    share = theory.stuck_share(0.1, dimension, draws=draws, seed=5) / 0.1
    noise = 4 * math.sqrt(0.07 / draws) / 0.1
    assert share == pytest.approx(expected, abs=0.006 + noise)
    assert 0.5 <= share <= theory.stuck_share_bound(1.0, dimension) + 0.03
    half = theory.stuck_share(0.1, dimension, draws=draws, seed=5, thickness=0.5) / 0.1
    assert half == pytest.approx(expected / 2, abs=0.02 + noise)  # the control: the printed thickness gives half
    assert half < 0.5


# --- parameters -------------------------------------------------------------------------------------------------------

#: (ε, δ, N, blocks): T for τ = 1, 5, 20 at η = 1/(L(2τ+1)), L = 5.75, ρ = 9, r = ε.
TIMES = {
    (0.1, 0.01, 2, 2): (376, 1376, 5130),
    (0.1, 0.01, 10, 5): (1045, 3830, 14_265),
    (0.1, 0.01, 100, 5): (1195, 4385, 16_330),
    (0.1, 0.01, 1000, 5): (1350, 4935, 18_395),
    (0.1, 0.1, 1000, 5): (1045, 3830, 14_265),
    (0.01, 0.1, 10, 5): (2350, 8600, 32_055),
}


def parameters(**given):
    given = {"dimension": 10, "epsilon": 0.1, "delta": 0.01, "delay_bound": 5, "smoothness": 5.75} | given
    return theory.escape_parameters(**({"hessian_lipschitz": 9.0, "window": 5} | given))


@pytest.mark.parametrize("case", TIMES, ids=str)
def test_escape_times(case):
    epsilon, delta, dimension, blocks = case
    for delay, expected in zip((1, 5, 20), TIMES[case], strict=True):
        step = 1 / (5.75 * (2 * delay + 1))
        found = parameters(
            dimension=dimension, epsilon=epsilon, delta=delta, delay_bound=delay, step=step, window=blocks
        )
        assert found.escape_time == expected
        assert found.energy_decrease * step == pytest.approx(0.5)  # s = ½ of the safe step
        assert found.decrease == pytest.approx(16 * found.energy_decrease * step**2 * epsilon**2 / expected)
        assert found.large_step == pytest.approx(4 * step * epsilon / math.sqrt(expected))
        logarithm = theory.iota(dimension, epsilon, epsilon, delta)
        printed = theory.printed_escape_time(logarithm, step, math.sqrt(9 * epsilon))
        assert printed * blocks == expected  # what is printed forgets the window


def test_what_is_given_by_hand_is_kept():
    found = parameters(step=0.001, radius=0.2, escape_time=77, decrease=1e-3, large_step=0.5)
    assert found.step == 0.001
    assert (found.radius, found.escape_time, found.decrease, found.large_step) == (0.2, 77, 1e-3, 0.5)
    assert parameters().step == pytest.approx(0.9 * theory.largest_safe_step(5.75, 5))
    by_report = parameters(step_rule="report", decrease=1e-3, large_step=1.0)
    assert by_report.step == pytest.approx(0.9 / (2 * 5.75 * math.sqrt(5)))
    assert by_report.energy_weight == pytest.approx(5.75 / (2 * math.sqrt(5)))


IMPOSSIBLE = {
    "delta_zero": ({"delta": 0.0}, "0 < delta < 1 fails: delta = 0"),
    "delta_one": ({"delta": 1.0}, "0 < delta < 1 fails: delta = 1"),
    "no_delay": ({"delay_bound": 0}, "delay_bound >= 1 fails: delay_bound = 0"),
    "epsilon": ({"epsilon": 4.0}, r"epsilon <= L\^2 / rho fails: 4 against 3.67361"),
    "step": ({"step": 0.04}, r"1/step > L/2 \+ \(L tau/2\)\(a \+ 1/a\) fails: 25 against 31.625"),
    "a": ({"step": 0.03, "energy_a": 3.0}, "fails: 33.3333 against 50.7917, with L = 5.75, tau = 5, a = 3"),
    "report": ({"step_rule": "report"}, "or give 'decrease' and 'large_step' by hand"),
    "report_step": (
        {"step_rule": "report", "step": 0.04},
        r"sqrt\(tau\)\) fails: 0.04 against 0.0388",
    ),
    "logarithm": ({"radius": 400.0}, r"16 sqrt\(N\) epsilon / \(r delta sqrt\(pi\)\) > 1 fails: 0.71"),
    "no_rho": ({"hessian_lipschitz": None}, "rho > 0 fails: the Lipschitz constant of the Hessian is not known"),
    "flat": ({"hessian_lipschitz": 0.0}, "rho > 0 fails: 0 against 0"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_impossible_combination_names_the_inequality(name):
    given, message = IMPOSSIBLE[name]
    with pytest.raises(ValueError, match=message):
        parameters(**given)
    assert parameters().escape_time > 0  # the control: without the mistake there is none


def test_what_the_localisation_needs_is_warned_of():
    assert parameters(delay_bound=1).warnings[0].startswith("iota step sqrt(rho epsilon) <= 1/8 fails")
    assert parameters(delay_bound=20).warnings == ()


def test_more_dimensions_cost_a_logarithm():
    small, large = (parameters(dimension=n).escape_time for n in (10, 10**7))
    assert small < large < 2 * small
    assert theory.iteration_bound(1.0, 0.1, 5, 100) == pytest.approx(1155)


# --- a chain of saddles -----------------------------------------------------------------------------------------------


def chain(dimension, **constants):
    return SaddleChain(dimension=dimension, **constants)


def descent_times(problem, step, most):
    """Return the steps that gradient descent takes to the end of the chain, from 9 starts; NaN where it does not."""
    x = problem.initial(3, np.arange(9))
    times = np.full(9, np.nan)
    for t in range(most):
        arrived = (x > 3.5 * math.e).all(axis=1)
        times[arrived & np.isnan(times)] = t
        if not np.isnan(times).any():
            break
        x = x - step * problem.gradient(x)
    return times


def test_the_exact_growth():
    assert theory.saddle_growth(1.0, 1.0, 0.05) == pytest.approx(2.105, abs=1e-3)
    assert theory.saddle_growth(0.5, 1.0, 0.25) == pytest.approx(1.710, abs=1e-3)
    assert theory.saddle_growth(1.0, 1.0, 1e-6) == pytest.approx(2.0, abs=1e-5)  # (L + γ)/γ
    with pytest.raises(ValueError, match="0 < 2 step smoothness < 1 fails"):
        theory.saddle_growth(1.0, 1.0, 0.5)


def test_gradient_descent_grows_by_the_exact_factor_per_saddle():
    medians = [np.median(descent_times(chain(d), 0.25, 4000)) for d in (4, 5, 6)]
    ratios = np.divide(medians[1:], medians[:-1])
    assert ratios == pytest.approx(theory.saddle_growth(1.0, 1.0, 0.25), rel=0.03)
    assert np.abs(ratios / 2.0 - 1).min() > 0.3  # the control: the limit (L + γ)/γ = 2 does not fit


def test_underflow_ends_the_growth():
    """A coordinate that waits for (1 − 2ηL)^t to make up for itself underflows to 0, and then waits for ever."""
    times = descent_times(chain(7), 0.25, 5000)  # exact numbers would take about 3600
    assert np.isnan(times).all()


def perturbed_times(dimension):
    problem = chain(dimension)
    method = PGD(step=0.25, epsilon=0.01, radius=0.01, escape_time=40)
    replicas = np.arange(9)
    state, _ = method.init(problem, problem.initial(3, replicas), 1)
    times = np.full(9, np.nan)
    for t in range(1000):
        arrived = (np.abs(state.x) > 3.5 * math.e).all(axis=1)
        times[arrived & np.isnan(times)] = t
        if not np.isnan(times).any():
            break
        row = Row(3, replicas, 0, t, t)
        state = method.apply(problem, state, [problem.gradient(state.x)], [row])
    return times


def test_perturbed_descent_is_linear_in_the_number_of_saddles():
    dimensions = np.arange(2, 10)
    medians = np.array([np.median(perturbed_times(d)) for d in dimensions.tolist()])
    line, residuals = np.polyfit(dimensions, medians, 1, full=True)[:2]
    assert 1 - residuals[0] / np.square(medians - medians.mean()).sum() > 0.98
    assert 25 < line[0] < 60  # steps for each further saddle, where gradient descent multiplies
