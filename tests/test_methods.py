"""The arithmetic of methods: step rules, projections, momentum. Whole replays are tested elsewhere."""

from __future__ import annotations

import heapq
import math
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from asyncsim.methods import (
    GD,
    METHODS,
    PAGD,
    PGD,
    PROJECTIONS,
    PSGD,
    SGD,
    STEP_RULES,
    Adam,
    AnyMethod,
    Ball,
    Box,
    NoisyGD,
    NonNegativeOrthant,
    SaddleNGD,
    Simplex,
)
from asyncsim.methods.perturbation import in_ball
from asyncsim.methods.steps import StepRuleName
from asyncsim.problems.base import Problem
from asyncsim.spec import Floats
from asyncsim.trace import Row

RULES = tuple(STEP_RULES)
ADAPTIVE = ("adaptive_1", "adaptive_2")
MOMENTA = {
    "none": {},
    "positive": {"momentum": 0.6},
    "negative": {"momentum": -0.4},
    "nesterov": {"momentum": 0.6, "nesterov": True},
}
SETS = {
    "box": Box(low=-0.5, high=1.5),
    "ball": Ball(radius=1.3),
    "simplex": Simplex(total=2.0),
    "non_negative": NonNegativeOrthant(),
}


class Diagonal(Problem):
    """f(x) = ½ Σ λ_i (x_i − 1)²."""

    eigenvalues: Floats = (1.0, 0.7, 0.3, 0.1)

    def gradient(self, x):
        return np.array(self.eigenvalues) * (x - 1.0)


def row(update=0, staleness=0, worker=0):
    return Row(seed=7, replica=0, worker=worker, draw=update, update=update, staleness=staleness)


def freeze(state):
    """Make every array of a state read-only, so that changing an old state is an error."""
    for array in (state.x, *(state.extra or ())):
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    return state


def play(method, problem, x0, schedule, workers=4):
    """Return all versions under a schedule: per update the staleness of each gradient, a number or one per replica."""
    state = freeze(method.init(problem, x0, workers)[0])
    versions = [state.x]
    for update, stalenesses in enumerate(schedule):
        payloads, rows = [], []
        for staleness in stalenesses:
            if x0.ndim == 1:
                read = versions[update - staleness]
            else:
                read = np.stack([versions[update - s][r] for r, s in enumerate(staleness)])
            rows.append(row(np.full(np.shape(staleness), update)[()], staleness))
            payloads.append(method.message(problem, read, None, rows[-1])[0])
        state = freeze(method.apply(problem, state, payloads, rows))
        versions.append(state.x)
    return np.stack(versions)


def random_schedule(seed, updates, gradients, replicas):
    """Return staleness arrays of shape (updates, gradients, replicas), mostly short with some stragglers."""
    generator = np.random.default_rng(seed)
    short = generator.geometric(1 / 4, (updates, gradients, replicas)) - 1
    long = generator.integers(0, 60, short.shape)
    staleness = np.where(generator.random(short.shape) < 0.1, long, short)
    return np.minimum(staleness, np.arange(updates)[:, None, None])


# --- updates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradients", [1, 3])
@pytest.mark.parametrize("projection", [None, "ball", "simplex"])
@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("rule", RULES)
def test_a_batch_of_replicas_equals_single_ones(rule, momentum, projection, gradients):
    method = SGD(step=0.15, step_rule=rule, projection=SETS.get(projection), **MOMENTA[momentum])
    problem, schedule = Diagonal(), random_schedule(3, 80, gradients, 3)
    start = np.random.default_rng(4).normal(size=(3, 4))
    batch = play(method, problem, start, schedule)
    for replica in range(3):
        single = play(method, problem, start[replica], schedule[:, :, replica].tolist())
        np.testing.assert_allclose(batch[:, replica], single, rtol=1e-12, atol=1e-12)
    assert np.abs(batch[-1] - batch[-1, :1]).max() > 1e-6  # the replicas do differ


#: Steps of two gradients of staleness 1 and 7 in update 3, with step 0.8 and 4 workers.
BY_HAND = {
    "constant": (0.8, 0.8),
    "inverse_sqrt": (0.4, 0.4),
    "inverse_time": (0.2, 0.2),
    "staleness": (0.4, 0.1),
    "concurrency": (0.8, 0.8 * 4 / 7),
    "adaptive_1": (0.72, 0.72),
    "adaptive_2": (0.1, 0.1),
}


@pytest.mark.parametrize("rule", RULES)
def test_an_update_is_the_mean_of_gradients_times_their_steps(rule):
    method = SGD(step=0.8, step_rule=rule)
    state, memories = method.init(Diagonal(), np.zeros(2), 4)
    assert memories == [None] * 4
    moved = method.apply(Diagonal(), state, [np.array([1.0, 0.0]), np.array([0.0, 1.0])], [row(3, 1), row(3, 7)])
    np.testing.assert_allclose(moved.x, -np.array(BY_HAND[rule]) / 2, rtol=1e-14)


def test_every_rule_has_a_name_in_the_schema_and_a_case():
    assert set(get_args(StepRuleName)) == set(STEP_RULES) == set(BY_HAND)


@pytest.mark.parametrize("rule", ["constant", "inverse_sqrt", "inverse_time", "staleness"])
def test_the_server_keeps_nothing_beside_the_model_where_nothing_is_needed(rule):
    method = SGD(step=0.1, step_rule=rule)
    state, _ = method.init(Diagonal(), np.zeros(4), 2)
    assert state.extra is None
    assert method.apply(Diagonal(), state, [np.ones(4)], [row()]).extra is None


@pytest.mark.parametrize("delay", [0, 3])
@pytest.mark.parametrize("projection", [None, *SETS])
@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.5, -0.5])
def test_the_heavy_ball_is_a_plain_loop(momentum, projection, delay):
    problem, project = Diagonal(), SETS.get(projection, lambda x: x)
    method = SGD(step=0.1, momentum=momentum, projection=SETS.get(projection))
    start = project(np.array([0.1, -2.0, 0.5, 1.0]))
    versions = play(method, problem, start, [[min(t, delay)] for t in range(100)])
    x = [start, start]  # x_{−1} = x_0
    for t in range(100):
        x.append(project(x[-1] - 0.1 * problem.gradient(x[1 + max(t - delay, 0)]) + momentum * (x[-1] - x[-2])))
    np.testing.assert_allclose(versions, x[1:], rtol=1e-12, atol=1e-13)


def textbook_nesterov(problem, start, step, momentum, updates):
    """Return the points at which gradients are taken: v ← βv − γ∇f(y + βv), y ← y + v."""
    y, v, points = start, np.zeros_like(start), [start]
    for _ in range(updates):
        v = momentum * v - step * problem.gradient(y + momentum * v)
        y = y + v
        points.append(y + momentum * v)
    return np.stack(points)


@pytest.mark.parametrize("momentum", [0.9, 0.3, -0.5])
def test_nesterov_is_the_textbook_form_at_zero_staleness(momentum):
    problem, start = Diagonal(), np.array([0.1, -2.0, 0.5, 1.0])
    expected = textbook_nesterov(problem, start, 0.3, momentum, 100)
    schedule = [[0]] * 100
    versions = play(SGD(step=0.3, momentum=momentum, nesterov=True), problem, start, schedule)
    np.testing.assert_allclose(versions, expected, rtol=1e-12, atol=1e-13)
    heavy_ball = play(SGD(step=0.3, momentum=momentum), problem, start, schedule)
    assert np.abs(heavy_ball - expected).max() > 1e-2  # the control: the other form is another method


@pytest.mark.parametrize("name", SETS)
def test_projected_nesterov_is_a_plain_loop(name):
    problem, project = Diagonal(), SETS[name]
    y = x = project(np.array([3.0, -2.0, 0.5, 1.0]))
    points = [x]
    for t in range(60):
        before, y = y, project(x - 0.3 * problem.gradient(points[max(t - 2, 0)]))
        x = project(y + 0.6 * (y - before))
        points.append(x)
    method = SGD(step=0.3, momentum=0.6, nesterov=True, projection=SETS[name])
    versions = play(method, problem, points[0], [[min(t, 2)] for t in range(60)])
    np.testing.assert_allclose(versions, points, rtol=1e-12, atol=1e-13)


INSIDE = {
    "box": lambda x: ((x >= -0.5) & (x <= 1.5)).all(axis=-1),
    "ball": lambda x: np.linalg.norm(x, axis=-1) <= 1.3 * (1 + 1e-14),
    "simplex": lambda x: (x >= 0).all(axis=-1) & (np.abs(x.sum(axis=-1) - 2.0) <= 1e-14),
    "non_negative": lambda x: (x >= 0).all(axis=-1),
}


@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("name", SETS)
def test_every_version_lies_in_the_set(name, momentum):
    problem, schedule = Diagonal(eigenvalues=(2.0, -1.0, 1.0, -0.5)), random_schedule(5, 60, 1, 2)
    start = SETS[name](np.array([[0.3, -1.0, 2.0, 0.1], [3.0, 1.0, 0.0, -0.1]]))
    method = SGD(step=0.5, projection=SETS[name], **MOMENTA[momentum])
    assert INSIDE[name](play(method, problem, start, schedule)).all()
    free = play(method.model_copy(update={"projection": None}), problem, start, schedule)
    assert not INSIDE[name](free).all()  # the control: it is the projection that keeps them there


@pytest.mark.parametrize("delay", [0, 4])
def test_delayed_sgd_is_a_projection_on_a_trace_of_constant_staleness(delay):
    """x_{t+1} = P(x_t − γ_t g_{t−τ}) with γ_t = 1/(t−τ+1) from round τ on, as delayed SGD is written in rounds."""
    generator, rounds = np.random.default_rng(6), 200
    z = generator.choice([-1.0, 1.0], rounds)

    class Online(Problem):
        def stochastic_gradient(self, x, row):
            return x - z[row.draw]  # of f_t(x) = ½ (x − z_t)², where t is the draw

    box = Box(low=-0.9, high=0.9)
    x = [np.zeros(1)] * (delay + 1)
    for t in range(delay, rounds):
        x.append(np.clip(x[t] - (x[t - delay] - z[t - delay]) / (t - delay + 1), -0.9, 0.9))
    method = SGD(step=1.0, step_rule="inverse_time", projection=box)
    versions = play(method, Online(), np.zeros(1), [[min(t, delay)] for t in range(rounds - delay)])
    np.testing.assert_allclose(versions, x[delay:], rtol=1e-13, atol=1e-14)


# --- the delay-adaptive rules -------------------------------------------------------------------------------------


def staleness_traces():
    generator = np.random.default_rng(11)
    k = np.arange(400)
    some = generator.random(400)
    return {
        "zero": 0 * k,
        "geometric": np.minimum(k, generator.geometric(1 / 8, 400) - 1),
        "uniform": np.minimum(k, generator.integers(0, 30, 400)),
        "stragglers": np.minimum(k, np.where(some < 0.05, 200, generator.integers(0, 6, 400))),
        "growing": k // 3,
        "beyond the start": generator.integers(0, 500, 400),  # the window is cut at update 0
    }


TRACES = staleness_traces()


def steps_taken(rule, staleness, scale, alpha=None):
    """Return the steps of a rule over a sequence of staleness, shape (k,) or (k, replicas)."""
    rule = STEP_RULES[rule](scale) if alpha is None else STEP_RULES[rule](scale, alpha)
    staleness = np.asarray(staleness)
    memory, taken = rule.start(4, staleness.shape[1:]), []
    for k, tau in enumerate(staleness):
        (step,), memory = rule.steps([row(k, tau)], memory)
        taken.append(step)
    return np.array(taken)


def excess(steps, staleness, scale):
    """Return the largest amount by which a step exceeds max(0, γ' − the steps taken since the read)."""
    return max(
        step - max(0.0, scale - math.fsum(steps[max(k - tau, 0) : k]))
        for k, (step, tau) in enumerate(zip(steps, staleness, strict=True))
    )


@pytest.mark.parametrize("trace", TRACES)
@pytest.mark.parametrize("rule", ADAPTIVE)
def test_no_step_exceeds_what_the_principle_leaves(rule, trace):
    steps = steps_taken(rule, TRACES[trace], 0.37)
    assert (steps >= 0).all()
    assert excess(steps, TRACES[trace], 0.37) <= 1e-13
    assert steps.max() > 0.0


@pytest.mark.parametrize("trace", ["geometric", "uniform", "stragglers"])
def test_the_check_of_the_principle_can_fail(trace):
    """The controls: steps that ignore the sum of those applied, and a window that lacks its oldest step."""
    staleness = TRACES[trace]
    assert excess(steps_taken("staleness", staleness, 0.37), staleness, 0.37) > 0.01
    short = []
    for k, tau in enumerate(staleness):
        short.append(0.9 * max(0.0, 0.37 - math.fsum(short[max(k - tau + 1, 0) : k])))
    assert excess(short, staleness, 0.37) > 0.01
    nominal = []  # the window sums what a rule would have liked to take
    for k, tau in enumerate(staleness):
        wanted = [0.9 * 0.37 / (1 + 0.9 * t) for t in staleness[max(k - tau, 0) : k]]
        nominal.append(0.9 * max(0.0, 0.37 - math.fsum(wanted)))
    assert excess(nominal, staleness, 0.37) > 0.01


@pytest.mark.parametrize("trace", TRACES)
def test_adaptive_1_against_its_definition_with_the_whole_history(trace):
    expected = []
    for k, tau in enumerate(TRACES[trace]):
        expected.append(0.6 * max(0.0, 0.37 - math.fsum(expected[max(k - tau, 0) : k])))
    np.testing.assert_allclose(steps_taken("adaptive_1", TRACES[trace], 0.37, 0.6), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("trace", TRACES)
def test_adaptive_2_against_its_definition_in_exact_arithmetic(trace):
    exact: list[Fraction] = []
    for k, tau in enumerate(TRACES[trace].tolist()):
        wanted = Fraction(1, tau + 1)
        exact.append(wanted if wanted <= 1 - sum(exact[max(k - tau, 0) : k]) else Fraction(0))
    expected = 0.37 * np.array([float(step) for step in exact])
    np.testing.assert_allclose(steps_taken("adaptive_2", TRACES[trace], 0.37), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("trace", ["geometric", "uniform", "stragglers"])
@pytest.mark.parametrize("rule", ADAPTIVE)
def test_steps_never_die_out_under_bounded_staleness(rule, trace):
    """Any τ+1 consecutive steps add up to αγ' (adaptive_1) or γ'/(τ+1) (adaptive_2) at least, τ the largest."""
    staleness = TRACES[trace]
    longest = int(staleness.max())
    least = 0.9 * 0.37 if rule == "adaptive_1" else 0.37 / (longest + 1)
    sums = np.convolve(steps_taken(rule, staleness, 0.37), np.ones(longest + 1), mode="valid")
    assert sums.min() >= least * (1 - 1e-9)


@pytest.mark.parametrize("tau", [0, 1, 5])
@pytest.mark.parametrize("alpha", [0.5, 0.9])
def test_adaptive_1_settles_at_constant_staleness(alpha, tau):
    steps = steps_taken("adaptive_1", np.minimum(np.arange(4000), tau), 0.37, alpha)
    np.testing.assert_allclose(steps[-10:], alpha * 0.37 / (1 + alpha * tau), rtol=1e-10)
    if tau == 0:
        np.testing.assert_allclose(steps, alpha * 0.37, rtol=1e-14)


@pytest.mark.parametrize("tau", [0, 1, 6, 9, 48, 300])
def test_adaptive_2_at_constant_staleness(tau):
    """Equality in the bound at every update must not be lost to rounding, however many updates there are."""
    expected = 0.37 / (tau + 1)
    np.testing.assert_allclose(steps_taken("adaptive_2", np.full(3000, tau), 0.37), expected, rtol=1e-9)
    from_start = steps_taken("adaptive_2", np.minimum(np.arange(3000), tau), 0.37)
    np.testing.assert_allclose(from_start[0], 0.37)
    np.testing.assert_allclose(from_start[1 : tau + 1], 0.0)  # the first step used up all there was
    np.testing.assert_allclose(from_start[tau + 1 :], expected, rtol=1e-9)


@pytest.mark.parametrize("rule", ADAPTIVE)
def test_the_memory_is_as_long_as_the_window_not_as_the_run(rule):
    rule = STEP_RULES[rule](0.37)
    memory = rule.start(4, (2,))
    for update in range(2000):
        memory = rule.steps([row(update, np.array([5, 20]))], memory)[1]
    assert 21 <= len(memory) <= 60


@pytest.mark.parametrize("rule", ADAPTIVE)
def test_replicas_have_windows_of_their_own(rule):
    staleness = np.stack(list(TRACES.values()), axis=1)
    together = steps_taken(rule, staleness, 0.37)
    for place, name in enumerate(TRACES):
        np.testing.assert_allclose(together[:, place], steps_taken(rule, TRACES[name], 0.37), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("rule", ADAPTIVE)
def test_an_update_of_several_gradients_goes_by_the_stalest(rule):
    problem = Diagonal()
    several = SGD(step=0.2, step_rule=rule)
    schedule = random_schedule(8, 60, 3, 1)[:, :, 0]
    state, taken = several.init(problem, np.zeros(1), 4)[0], []
    for update, stalenesses in enumerate(schedule.tolist()):
        after = several.apply(problem, state, [-np.ones(1)] * 3, [row(update, tau) for tau in stalenesses])
        taken.append(float(after.x[0] - state.x[0]))
        state = after
    np.testing.assert_allclose(taken, steps_taken(rule, schedule.max(axis=1), 0.2), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("momentum", MOMENTA)
def test_a_state_can_be_continued_in_two_ways(rule, momentum):
    """States are values: what is applied to one of them leaves it, and everything made from it, as it was."""
    method, problem = SGD(step=0.2, step_rule=rule, **MOMENTA[momentum]), Diagonal()
    state, _ = method.init(problem, np.zeros(4), 4)
    for update in range(5):
        state = freeze(method.apply(problem, state, [np.ones(4)], [row(update, min(update, 2))]))

    def continued(staleness, value):
        one = method.apply(problem, state, [np.full(4, value)], [row(5, staleness)])
        return method.apply(problem, one, [np.ones(4)], [row(6, 1)]).x

    first = continued(4, 1.0)
    assert not np.array_equal(first, continued(0, -3.0))
    np.testing.assert_array_equal(first, continued(4, 1.0))


def updates_until_small(method, workers, slow, limit, tolerance=1e-6):
    """Return (updates, largest staleness) until ‖∇f‖² falls by `tolerance`; one worker takes `slow` times as long."""
    problem = Diagonal(eigenvalues=tuple(np.linspace(0.1, 1.0, 10).tolist()))
    state, _ = method.init(problem, np.zeros(10), workers)
    target = tolerance * float(np.sum(problem.gradient(state.x) ** 2))
    service = [float(slow)] + [1.0] * (workers - 1)
    heap = [(service[m], m, 0, problem.gradient(state.x)) for m in range(workers)]  # time, worker, version, gradient
    heapq.heapify(heap)
    longest = 0
    for update in range(limit):
        now, m, version, gradient = heapq.heappop(heap)
        longest = max(longest, update - version)
        state = method.apply(problem, state, [gradient], [row(update, update - version, m)])
        fresh = problem.gradient(state.x)
        if float(fresh @ fresh) <= target:
            return update + 1, longest
        heapq.heappush(heap, (now + service[m], m, update + 1, fresh))
    return limit, longest


def test_the_concurrency_rule_does_not_feel_a_straggler():
    """Mishchenko et al. 2022: what counts is the number of workers, not the largest staleness.

    L = 1, condition number 10, M = 8. The control takes the step that the largest staleness would ask for.
    """
    workers = 8
    rule = SGD(step=1 / (4 * workers), step_rule="concurrency")
    baseline, longest = updates_until_small(rule, workers, 1, 10_000)
    cautious, _ = updates_until_small(SGD(step=1 / (4 * longest)), workers, 1, 10_000)
    assert longest == workers - 1
    for slow in (10, 100):
        updates, longest = updates_until_small(rule, workers, slow, 10_000)
        assert abs(updates / baseline - 1) < 0.05
        assert longest > 6 * slow
        enough = math.ceil(cautious * slow / 2) + 1
        assert updates_until_small(SGD(step=1 / (4 * longest)), workers, slow, enough)[0] > cautious * slow / 2


# --- projections --------------------------------------------------------------------------------------------------

SHAPES = [(4,), (5, 4), (2, 3, 4), (1,), (3, 1)]


def points(shape, scale=2.0):
    return np.random.default_rng(21).normal(scale=scale, size=shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SETS)
def test_a_projection_lands_in_the_set_and_stays(name, shape):
    projected = SETS[name](points(shape))
    assert projected.shape == shape
    assert INSIDE[name](projected).all()
    np.testing.assert_allclose(SETS[name](projected), projected, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("name", SETS)
def test_a_projection_of_many_points_is_that_of_each(name):
    many = points((2, 3, 4))
    each = [[SETS[name](point) for point in group] for group in many]
    np.testing.assert_array_equal(SETS[name](many), each)


def is_nearest(x, projected, feasible):
    """Say whether ⟨x − p, y − p⟩ ≤ 0 for all these y of a convex set, which holds for its nearest point p alone."""
    return bool((((x - projected) * (feasible - projected)).sum(axis=-1) <= 1e-12).all())


def feasible_points(name, dimension=4):
    generator = np.random.default_rng(22)
    if name == "box":
        return np.concatenate([generator.uniform(-0.5, 1.5, (300, dimension)), generator.choice([-0.5, 1.5], (300, 4))])
    if name == "ball":
        directions = generator.normal(size=(600, dimension))
        return 1.3 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    if name == "simplex":
        return np.concatenate([2.0 * generator.dirichlet(np.full(dimension, 0.3), 600), 2.0 * np.eye(dimension)])
    return generator.exponential(2.0, (600, dimension)) * (generator.random((600, dimension)) < 0.7)


@pytest.mark.parametrize("name", SETS)
def test_no_feasible_point_is_nearer(name):
    feasible = feasible_points(name)
    for x in points((40, 4)):
        assert is_nearest(x, SETS[name](x), feasible)


#: Maps into the sets that are not projections.
NOT_NEAREST = {
    "box": lambda x: np.clip(x, -0.5, 1.5) * 0.5 + 0.25,
    "ball": lambda x: np.clip(x, -0.65, 0.65),
    "simplex": lambda x: 2.0 * np.exp(x) / np.exp(x).sum(),
    "non_negative": np.abs,
}


@pytest.mark.parametrize("name", SETS)
def test_the_check_of_nearest_points_can_fail(name):
    feasible = feasible_points(name)
    assert not all(is_nearest(x, NOT_NEAREST[name](x), feasible) for x in points((40, 4)))


@pytest.mark.parametrize("name", SETS)
def test_a_general_minimiser_finds_the_same_point(name):
    from scipy.optimize import minimize

    limits = {"box": (-0.5, 1.5), "simplex": (0.0, None), "non_negative": (0.0, None)}
    constraints = {
        "ball": [{"type": "ineq", "fun": lambda y: 1.3**2 - y @ y}],
        "simplex": [{"type": "eq", "fun": lambda y: y.sum() - 2.0}],
    }
    for x in points((5, 4)):
        found = minimize(
            lambda y, x=x: 0.5 * np.sum((y - x) ** 2),
            np.full(4, 0.5),
            jac=lambda y, x=x: y - x,
            bounds=[limits[name]] * 4 if name in limits else None,
            constraints=constraints.get(name, ()),
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 200},
        )
        np.testing.assert_allclose(SETS[name](x), found.x, atol=1e-5)


def test_the_simplex_far_from_the_origin():
    x = np.array([1e12, 1e12 + 0.25, 1e12 + 0.125, 1e12 - 3.0])
    np.testing.assert_allclose(Simplex()(x), [5 / 24, 11 / 24, 8 / 24, 0.0], atol=1e-15)
    np.testing.assert_allclose(Simplex(total=3.0)(np.zeros(6)), np.full(6, 0.5), rtol=1e-15)


def test_the_ball_at_its_centre():
    np.testing.assert_array_equal(Ball(radius=1.0)(np.zeros((2, 3))), np.zeros((2, 3)))


def test_every_set_has_a_case():
    assert {type(case) for case in SETS.values()} == set(PROJECTIONS.values())
    assert all(PROJECTIONS[name] is type(case) and case.set == name for name, case in SETS.items())


# --- as a scenario's table ----------------------------------------------------------------------------------------

TABLES = [
    {"kind": "sgd", "step": 0.1},
    {"kind": "sgd", "step": 1, "momentum": -0.5, "nesterov": True},
    {"kind": "sgd", "step": 0.1, "step_rule": "adaptive_1", "alpha": 0.5},
    *({"kind": "sgd", "step": 0.1, "projection": case.model_dump()} for case in SETS.values()),
]


@pytest.mark.parametrize("table", TABLES)
def test_a_table_makes_a_method_and_back(table):
    adapter = TypeAdapter(AnyMethod)
    method = adapter.validate_python(table)
    assert isinstance(method, METHODS[table["kind"]])
    dumped = adapter.dump_python(method, mode="json")
    assert {key: dumped[key] for key in table} == table
    assert adapter.validate_python(dumped) == method


BAD = [
    ({"step": 0}, "step"),
    ({"step": -0.1}, "step"),
    ({"step": float("nan")}, "step"),
    ({"step": float("inf")}, "step"),
    ({"step": "fast"}, "step"),
    ({}, "step"),
    ({"step": 0.1, "momentum": 1.0}, "momentum"),
    ({"step": 0.1, "momentum": -1.0}, "momentum"),
    ({"step": 0.1, "nesterov": 1}, "nesterov"),
    ({"step": 0.1, "momentun": 0.5}, "did you mean 'momentum'"),
    ({"step": 0.1, "step_rule": "adaptive"}, "step_rule"),
    ({"step": 0.1, "alpha": 0.5}, "alpha belongs to step_rule = 'adaptive_1'"),
    ({"step": 0.1, "alpha": 0.5, "step_rule": "adaptive_2"}, "alpha belongs to step_rule = 'adaptive_1'"),
    ({"step": 0.1, "alpha": 1.0, "step_rule": "adaptive_1"}, "alpha"),
    ({"step": 0.1, "alpha": 0.0, "step_rule": "adaptive_1"}, "alpha"),
    ({"step": 0.1, "projection": "ball"}, "must be a table"),
    ({"step": 0.1, "projection": {"radius": 1.0}}, "missing field 'set'"),
    ({"step": 0.1, "projection": {"set": "bal", "radius": 1.0}}, "did you mean 'ball'"),
    ({"step": 0.1, "projection": {"set": "box", "low": 1.0, "high": 0.0}}, "low must not exceed high"),
    ({"step": 0.1, "projection": {"set": "box", "low": 1.0}}, "high"),
    ({"step": 0.1, "projection": {"set": "ball", "radius": 0.0}}, "radius"),
    ({"step": 0.1, "projection": {"set": "ball", "radius": -1.0}}, "radius"),
    ({"step": 0.1, "projection": {"set": "simplex", "total": 0.0}}, "total"),
    ({"step": 0.1, "projection": {"set": "non_negative", "low": 0.0}}, "unknown field 'low'"),
]


@pytest.mark.parametrize(("fields", "said"), BAD)
def test_bad_values_are_refused_by_name(fields, said):
    with pytest.raises(ValidationError, match=said):
        SGD.model_validate(fields)


# --- gradient descent with noise, and Adam ------------------------------------------------------------------------


class Bowl(Diagonal):
    """f(x) = ½ Σ λ_i (x_i − 1)², with its value, and a stochastic gradient that is another vector."""

    def value(self, x):
        return 0.5 * (np.array(self.eigenvalues) * np.square(x - 1.0)).sum(axis=-1)

    def stochastic_gradient(self, x, row):
        return self.gradient(x) + 100.0


REPLICAS = np.arange(20_000)


def of_all(update=3):
    return Row(seed=7, replica=REPLICAS, worker=0, draw=0, update=update)


def noise_of(method, update=3):
    """Return the noise that a method adds in one update to a gradient of 0, for many replicas at once."""
    x = np.zeros((REPLICAS.size, 3))
    state, _ = method.init(Bowl(eigenvalues=(1.0, 1.0, 1.0)), x, 1)
    return method.apply(Bowl(), state, [x], [of_all(update)]).x


NOISES = {
    "psgd": (PSGD(step=0.5, radius=2.0), {"mean_square": 1.0, "largest": math.inf}),
    "noisy_gd": (NoisyGD(step=0.5), {"mean_square": 0.25, "largest": 0.5}),
    "saddle_ngd": (SaddleNGD(step=0.5, radius=2.0, every=3), {"mean_square": 4.0, "largest": 2.0}),
    "pgd": (PGD(step=0.5, epsilon=1.0, radius=2.0, escape_time=9), {"mean_square": 4.0 * 3 / 5, "largest": 2.0}),
}


@pytest.mark.parametrize("name", NOISES)
def test_the_law_of_the_noise(name):
    """The second moments of normal noise, of the sphere and of the ball in three dimensions; bands of 5 deviations."""
    method, law = NOISES[name]
    noise = noise_of(method)
    squared = np.square(noise).sum(axis=1)
    assert squared.mean() == pytest.approx(law["mean_square"], abs=5 * max(squared.std(), 1e-9) / math.sqrt(20_000))
    assert squared.max() <= law["largest"] ** 2 * (1 + 1e-12)
    covariance = noise.T @ noise / len(noise)
    np.testing.assert_allclose(covariance, np.eye(3) * law["mean_square"] / 3, atol=0.04 * law["mean_square"])
    assert np.abs(noise.mean(axis=0)).max() < 5 * math.sqrt(law["mean_square"] / 3 / 20_000)
    if name == "pgd":
        inside = (squared < 1.0).mean()  # half the radius: an eighth of the ball, and none of its sphere
        assert inside == pytest.approx(1 / 8, abs=0.012)
    if name in ("noisy_gd", "saddle_ngd"):
        np.testing.assert_allclose(squared, law["mean_square"], rtol=1e-12)
    assert not (noise_of(method, update=6) == noise).any()  # another update, another address
    assert (noise_of(method) == noise).all()


def test_exact_gradients_are_those_of_the_whole_objective():
    for method in (GD(step=0.1), NOISES["pgd"][0], SMALL_PAGD):
        assert (method.message(Bowl(), np.zeros(4), None, row())[0] == Bowl().gradient(np.zeros(4))).all()
    assert (
        PSGD(step=0.1, radius=1.0).message(Bowl(), np.zeros(4), None, row())[0] != Bowl().gradient(np.zeros(4))
    ).all()


def test_normalised_steps_have_one_length_and_noise_comes_every_so_often():
    method = SaddleNGD(step=0.2, radius=0.01, every=4)
    versions = play(method, Diagonal(), np.array([5.0, 3.0, 2.0, 1.0]), [[0]] * 9)
    lengths = np.linalg.norm(np.diff(versions, axis=0), axis=1)
    noisy = np.arange(9) % 4 == 0
    np.testing.assert_allclose(lengths[~noisy], 0.2, rtol=1e-12)
    assert (np.abs(lengths[noisy] - 0.2) > 1e-6).all()
    assert play(method, Diagonal(), np.ones(4), [[0]])[-1] == pytest.approx(np.ones(4), abs=0.01)  # g = 0


def test_noise_comes_once_in_so_many_steps_and_only_where_the_gradient_is_small():
    method = PGD(step=0.5, epsilon=0.3, radius=0.01, escape_time=6)
    problem, x0 = Diagonal(eigenvalues=(1.0, 1.0)), np.array([3.0, 1.0])
    state, _ = method.init(problem, x0, 1)
    perturbed = []
    for t in range(30):
        before = state.x
        gradient = problem.gradient(before)
        state = method.apply(problem, state, [gradient], [row(t)])
        if np.abs(state.x - (before - 0.5 * gradient)).max() > 0:
            perturbed.append(t)
            assert np.linalg.norm(gradient) <= 0.3
            assert np.linalg.norm(state.x - before) <= 0.01
    assert perturbed == [3, 10, 17, 24]  # ‖g‖ = 2, 1, ½, ¼; then more than six steps apart
    assert method.measure(problem, state, "perturbations") == 4
    assert not method.makes_requests


def test_perturbed_descent_ends_at_a_minimum_and_goes_on_from_a_saddle():
    method = PGD(step=0.1, epsilon=0.1, radius=0.01, escape_time=80, decrease=1e-3)
    assert method.makes_requests
    bowl, saddle = Bowl(eigenvalues=(1.0, 1.0)), Bowl(eigenvalues=(1.0, -1.0))
    for problem, ends in ((bowl, True), (saddle, False)):
        state, _ = method.init(problem, np.ones(2), 1)
        for t in range(82):
            state = method.apply(problem, state, [problem.gradient(state.x)], [row(t)])
        assert (state.request == "stop") is ends
        assert (state.x.tolist() == [1.0, 1.0]) is ends  # the point before the perturbation


def test_adam_is_a_plain_loop():
    problem, x = Diagonal(), np.array([0.1, -2.0, 0.5, 1.5])
    versions = play(Adam(step=0.05, beta1=0.8, beta2=0.95), problem, x, [[min(t, 2)] for t in range(50)])
    m, v, points = np.zeros(4), np.zeros(4), [x]
    for t in range(50):
        g = problem.gradient(points[t - min(t, 2)])
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        points.append(points[-1] - 0.05 * (m / (1 - 0.8 ** (t + 1))) / (np.sqrt(v / (1 - 0.95 ** (t + 1))) + 1e-8))
    np.testing.assert_allclose(versions, points, rtol=1e-10, atol=1e-12)
    rate = play(Adam(step=0.05), problem, x, [[min(t, 2)] for t in range(50)])
    assert np.abs(rate - versions).max() > 1e-3  # the control


SMALL_PAGD = PAGD(step=0.1, momentum=0.8, epsilon=1e-3, radius=1e-3, escape_time=20, curvature=0.5, distance=0.05)


class Ridge(Problem):
    """f(x) = ½ x² − ½ y² + ¼ y⁴."""

    def value(self, x):
        return 0.5 * x[..., 0] ** 2 - 0.5 * x[..., 1] ** 2 + 0.25 * x[..., 1] ** 4

    def gradient(self, x):
        return np.stack([x[..., 0], x[..., 1] ** 3 - x[..., 1]], axis=-1)


def test_perturbed_accelerated_descent_is_its_loop():
    """Written from the algorithm: x_t and v_t, with the perturbation at the beginning of the next iteration."""
    problem, method = Ridge(), SMALL_PAGD
    x, v, last, exploited, points = np.array([1.0, 0.0]), np.zeros(2), -(10**9), [0, 0], []
    state, _ = method.init(problem, x, 1)
    for t in range(150):
        y = x + 0.8 * v
        np.testing.assert_allclose(state.x, y, rtol=1e-9, atol=1e-13)
        points.append(y)
        g, away = problem.gradient(y), x - y
        new, velocity = y - 0.1 * g, y - 0.1 * g - x
        if away.any() and problem.value(x) <= problem.value(y) + g @ away - 0.25 * away @ away:
            fast = np.linalg.norm(v) >= 0.05
            aside = v * 0.05 / np.linalg.norm(v)
            new = x if fast else min(x + aside, x - aside, key=problem.value)
            velocity = np.zeros(2)
            exploited[int(fast)] += 1
        if t - last > 20 and np.linalg.norm(problem.gradient(new)) <= 1e-3:
            new, last = new + in_ball(row(t), 2, 1e-3), t
        x, v = new, velocity
        state = method.apply(problem, state, [problem.gradient(state.x)], [row(t)])
    assert sum(exploited) > 0
    assert state.extra.exploited == sum(exploited)
    assert abs(points[-1][1]) == pytest.approx(1.0, abs=0.01)


def test_accelerated_descent_leaves_the_saddle_sooner():
    problem, replicas = Ridge(), np.arange(20)
    times = []
    for method in (SMALL_PAGD, PGD(step=0.1, epsilon=1e-3, radius=1e-3, escape_time=20)):
        state, _ = method.init(problem, np.zeros((20, 2)), 1)
        left = np.full(20, np.inf)
        for t in range(400):
            left = np.where((np.abs(state.x[:, 1]) > 0.5) & np.isinf(left), t, left)
            at = Row(seed=7, replica=replicas, worker=0, draw=t, update=t)
            state = method.apply(problem, state, [problem.gradient(state.x)], [at])
        times.append(np.median(left))
    assert times[0] < 0.7 * times[1] < math.inf
