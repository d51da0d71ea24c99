"""Gradients from values: their moments, and the methods that use them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from pydantic import ValidationError

import asyncsim
from asyncsim.methods import SGD, Ball, Box, NonNegativeOrthant, Simplex, ZerothOrderConditionalGradient, ZerothOrderSGD
from asyncsim.methods.zeroth_order import estimated_gradient
from asyncsim.problems import Quadratic
from asyncsim.problems.base import Problem
from asyncsim.scenario import build
from asyncsim.sources import simulate
from asyncsim.trace import Row

REPLICAS = 40_000
SPECTRUM = np.array([0.5, 1.0, 1.5, 2.0, 4.0])
POINT = np.array([1.0, -2.0, 0.5, 1.0, -0.3])


def estimates(problem, smoothing, directions, difference):
    x = np.broadcast_to(POINT, (REPLICAS, 5))
    return estimated_gradient(problem, x, Row(7, np.arange(REPLICAS), 0, 0), smoothing, directions, difference)


def z_of(values, expected):
    """Return how many standard errors the means over the first axis are from what is expected, at most."""
    return float(np.abs((values.mean(axis=0) - expected) / (values.std(axis=0) / math.sqrt(len(values)))).max())


@pytest.mark.parametrize("difference", ["central", "forward"])
@pytest.mark.parametrize("directions", [1, 3])
def test_moments_on_a_quadratic(difference, directions):
    problem, smoothing, d = Quadratic(eigenvalues=SPECTRUM.tolist()), 1.0, 5
    gradient = SPECTRUM * POINT
    found = estimates(problem, smoothing, directions, difference)
    assert z_of(found, gradient) < 4
    lengths, squared = np.square(found).sum(axis=1), gradient @ gradient
    expected = (1 + (d + 1) / directions) * squared
    more = smoothing**2 / 4 / directions * (d + 4) * (SPECTRUM.sum() ** 2 + 2 * (SPECTRUM**2).sum())
    if difference == "forward":
        assert z_of(lengths, expected) > 10  # the control: it does have more
        expected += more
    else:
        assert z_of(lengths, expected - squared / directions) > 4  # the control: d + 1 in place of d + 2
    assert z_of(lengths, expected) < 4


class Quartic(Problem):
    """f(x) = Σ x_i⁴."""

    dimension: int = 5

    def value(self, x):
        return (x**4).sum(axis=-1)


def test_elsewhere_the_gradient_is_that_of_the_smoothed_objective():
    """E (x + νu)⁴ has the derivative 4x³ + 12ν²x."""
    found = estimates(Quartic(), 0.5, 1, "central")
    assert z_of(found, 4 * POINT**3 + 12 * 0.25 * POINT) < 4
    assert z_of(found, 4 * POINT**3) > 4


class OneAtATime(Quartic):
    """The same for a single model."""

    batched = False

    def value(self, x):
        assert x.shape == (5,)
        return float((x**4).sum())


def test_problems_that_take_one_model_at_a_time():
    row = Row(7, 3, 1, 2)
    for difference in ("central", "forward"):
        whole, single = (estimated_gradient(p, POINT, row, 0.1, 4, difference) for p in (Quartic(), OneAtATime()))
        np.testing.assert_allclose(single, whole, rtol=1e-12)


# --- methods ------------------------------------------------------------------------------------------------------

LEAST_SQUARES = {"kind": "least_squares", "samples": 40, "dimension": 4, "condition_number": 5.0}
METHODS = {
    "sgd": {"kind": "zeroth_order_sgd", "step": 0.01, "smoothing": 1e-3, "directions": 2},
    "cg": {
        "kind": "zeroth_order_conditional_gradient",
        "smoothing": 1e-3,
        "directions": 20,
        "projection": {"set": "ball", "radius": 0.5},
    },
}


def scenario(method, policy="async", **run):
    return build(
        {
            "seed": 7,
            "cluster": {"workers": [{"count": 3, "service": {"law": "exponential", "mean": 1.0}}]},
            "policy": {"kind": policy},
            "problem": LEAST_SQUARES,
            "method": METHODS[method],
            "run": {"updates": 400, "replicas": 4, **run},
        }
    )


@pytest.mark.parametrize("policy", ["async", "sync"])
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_replicas_equals_single_ones(method, policy):
    whole = scenario(method, policy)
    trace = simulate(whole)
    batch = asyncsim.replay(trace, whole.method, whole.problem)
    single = asyncsim.replay(trace, whole.method, whole.problem, checksums=True)
    np.testing.assert_allclose(batch.final_iterates, single.final_iterates, rtol=1e-10, atol=1e-12)
    assert np.abs(batch.final_iterates - batch.final_iterates[:1]).max() > 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_a_real_run_replays_to_the_bit(method):
    recorded = scenario(method, source="record", backend="threads", updates=60, replicas=1)
    recording = asyncsim.record(recorded)
    again = asyncsim.replay(recording.trace, recorded.method, recorded.problem)
    assert again.final_iterates.tobytes() == recording.final_iterates.tobytes()


def test_descent_without_gradients_finds_the_minimum():
    whole = scenario("sgd", updates=3000)
    run = asyncsim.replay(simulate(whole), whole.method, whole.problem)
    assert whole.problem.value(run.final_iterates).max() < 1e-4 * whole.problem.value(np.zeros(4))
    exact = asyncsim.replay(simulate(whole), SGD(step=0.01), whole.problem, record_iterates=True)
    np.testing.assert_allclose(run.final_iterates, exact.final_iterates, atol=1e-6)
    iterates = asyncsim.replay(simulate(whole), whole.method, whole.problem, record_iterates=True).iterates
    assert np.abs(iterates[:, 50] - exact.iterates[:, 50]).max() > 1e-3  # by another way


SETS = {"box": Box(low=-0.5, high=0.7), "ball": Ball(radius=1.3), "simplex": Simplex(total=2.0)}


def conditional(name, **fields):
    return ZerothOrderConditionalGradient(projection=SETS[name], **{"smoothing": 1e-3, **fields})


@pytest.mark.parametrize("name", SETS)
def test_the_favoured_point_is_the_best_of_the_set(name):
    """Against corners, all of them, or many points of the sphere; and it lies in the set."""
    generator = np.random.default_rng(3)
    corners = {
        "box": np.array(list(itertools.product((-0.5, 0.7), repeat=4))),
        "simplex": 2.0 * np.eye(4),
        "ball": (lambda v: 1.3 * v / np.linalg.norm(v, axis=1, keepdims=True))(generator.normal(size=(5000, 4))),
    }[name]
    method = conditional(name)
    for gradient in generator.normal(size=(50, 4)):
        chosen = method.favoured(gradient)
        np.testing.assert_allclose(SETS[name](chosen), chosen, atol=1e-12)
        assert gradient @ chosen <= (corners @ gradient).min() + 1e-12
        assert gradient @ method.favoured(-gradient) > (corners @ gradient).min() + 0.1  # the control
    np.testing.assert_array_equal(method.favoured(generator.normal(size=(6, 4))).shape, (6, 4))


class Away(Problem):
    """f(x) = ½ Σ λ_i (x_i − c_i)², with its minimum outside of every set above."""

    dimension: int = 4

    def value(self, x):
        return 0.5 * (np.array([0.5, 1.0, 2.0, 3.0]) * np.square(x - np.array([2.0, -2.0, 1.0, 3.0]))).sum(axis=-1)

    def gradient(self, x):
        return np.array([0.5, 1.0, 2.0, 3.0]) * (x - np.array([2.0, -2.0, 1.0, 3.0]))


def lowest(name):
    """Return the smallest value on the set, by projected gradient descent."""
    x = np.zeros(4)
    for _ in range(3000):
        x = SETS[name](x - 0.3 * Away().gradient(x))
    return float(Away().value(x))


@pytest.mark.parametrize("name", SETS)
def test_exact_gradients_keep_the_bound_of_the_theorem(name):
    problem, best = Away(), lowest(name)
    diameter = {"box": 2 * 1.2, "ball": 2.6, "simplex": 2.0 * math.sqrt(2)}[name]
    for sign, holds in ((1.0, True), (-1.0, False)):  # the control goes the other way
        method, met = conditional(name), []
        state, _ = method.init(problem, np.full(4, 9.0), 1)
        for t in range(300):
            np.testing.assert_allclose(SETS[name](state.x), state.x, atol=1e-9)
            state = method.apply(problem, state, [sign * problem.gradient(state.x)], [Row(7, 0, 0, t, t)])
            met.append(problem.value(state.x) - best <= 2 * 3.0 * diameter**2 / (t + 3))
        assert all(met) is holds


def test_estimated_gradients_come_close_to_the_best_of_the_set():
    problem, method = Away(), conditional("simplex", directions=50)
    state, _ = method.init(problem, np.zeros(4), 1)
    for t in range(400):
        row = Row(7, 0, 0, t, t)
        state = method.apply(problem, state, [method.message(problem, state.x, None, row)[0]], [row])
    start = float(problem.value(SETS["simplex"](np.zeros(4))))
    assert problem.value(state.x) - lowest("simplex") < 0.02 * (start - lowest("simplex"))
    assert conditional("box", step=0.25).apply(
        problem, state._replace(x=np.zeros(4)), [np.array([1.0, -1.0, 1.0, -1.0])], [Row(7, 0, 0, 0, 9)]
    ).x.tolist() == pytest.approx([-0.125, 0.175, -0.125, 0.175])


BAD = [
    (ZerothOrderSGD, {"step": 0.1}, "smoothing"),
    (ZerothOrderSGD, {"step": 0.1, "smoothing": 0.0}, "smoothing"),
    (ZerothOrderSGD, {"step": 0.1, "smoothing": 0.1, "directions": 0}, "directions"),
    (ZerothOrderSGD, {"step": 0.1, "smoothing": 0.1, "difference": "backward"}, "difference"),
    (ZerothOrderConditionalGradient, {"smoothing": 0.1}, "projection"),
    (ZerothOrderConditionalGradient, {"smoothing": 0.1, "projection": NonNegativeOrthant()}, "bounded set"),
    (ZerothOrderConditionalGradient, {"smoothing": 0.1, "projection": Simplex(), "step": 1.5}, "at most 1"),
]


@pytest.mark.parametrize(("kind", "fields", "said"), BAD)
def test_bad_values_are_refused_by_name(kind, fields, said):
    with pytest.raises(ValidationError, match=said):
        kind(**fields)
