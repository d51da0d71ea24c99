"""SEACD: what it does on a schedule, that it leaves saddles, that its energy falls, and that all its forms agree."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import pytest
from pydantic import Field

import asyncsim
from asyncsim.blocks import block_bounds
from asyncsim.certificate import certificate, smallest_eigenvalue
from asyncsim.methods import GD, PGD, PSGD, SEACD, NoisyGD, SaddleNGD
from asyncsim.methods.serial import serial_seacd
from asyncsim.problems import Quadratic, Saddle
from asyncsim.problems.base import Problem
from asyncsim.replay import Replayer, replay
from asyncsim.report import summary_lines
from asyncsim.scenario import ScenarioError, build
from asyncsim.sources import simulate
from asyncsim.sources.slow_worker import slow_worker_trace
from asyncsim.spec import Floats
from asyncsim.theory import largest_safe_step, report_step
from asyncsim.trace import Row, Trace


def cluster(workers, law="exponential"):
    service = {"law": "exponential", "mean": 1.0} if law == "exponential" else {"law": "constant", "value": 0.0}
    return {"workers": [{"count": workers, "service": service}]}


def scenario(problem, method, *, seed=3, workers=5, law="exponential", updates=30_000, metrics=None, **run):
    return build(
        {
            "seed": seed,
            "cluster": cluster(workers, law),
            "problem": problem,
            "method": method,
            "run": {"updates": updates, **run},
            "metrics": metrics or {"every": updates},
        }
    )


# --- leaving strict saddles -------------------------------------------------------------------------------------------


def escapes(problem, delay, *, epsilon, delta, seeds, blocks=5, printed=False, together=200):
    """Return how many of these seeds leave the exact saddle at 0 in one perturbation and the T updates after it.

    Blocks take turns, the whole vector that a gradient is computed from is uniformly up to τ updates old.
    """
    blocks = min(blocks, problem.dimension)
    step = 0.5 * largest_safe_step(problem.smoothness, delay)
    method = SEACD(delay_bound=delay, epsilon=epsilon, delta=delta, blocks=blocks, step=step)
    time = method.parameters(problem).escape_time
    if printed:
        time //= blocks
        method = method.model_copy(update={"escape_time": time})
    # The gradients that arrive after the perturbation and were read before it count for nothing: at most τ.
    updates, left = max(delay, blocks) + time + 2 * delay, 0
    for first in range(0, seeds, together):
        run = {"source": "synthetic", "staleness": {"law": "uniform", "high": delay}, "updates": updates}
        described = build({"seed": 5, "problem": problem, "method": method, "run": run})
        trace = simulate(described, replicas=range(first, min(first + together, seeds)))
        done = replay(trace, method, problem, metrics=asyncsim.scenario.Metrics(record=[]))
        stays = (done.final_iterates == 0.0).all(axis=1)
        assert (done.facts["finished"] == stays).mean() > 0.9  # all but those that ended after a second perturbation
        left += int((~stays).sum())
    return left


#: The 1 % quantile of Binomial(1000, 1 − δ), for one cell and for twelve at once.
ACCEPTED = {0.01: (982, 979), 0.1: (877, 869)}

QUICK = [(2, 1, 0.01), (2, 5, 0.1), (10, 1, 0.01), (100, 1, 0.1)]
ALL = [(n, tau, delta) for delta in ACCEPTED for n in (2, 10, 100, 1000) for tau in (1, 5, 20)]


@pytest.mark.parametrize(("dimension", "delay", "delta"), QUICK)
def test_the_saddle_is_left_as_often_as_promised(dimension, delay, delta):
    left = escapes(Saddle(dimension=dimension), delay, epsilon=0.1, delta=delta, seeds=1000, together=1000)
    assert left >= ACCEPTED[delta][0]


@pytest.mark.slow
@pytest.mark.parametrize(("dimension", "delay", "delta"), ALL)
def test_every_saddle_is_left_as_often_as_promised(dimension, delay, delta):
    left = escapes(Saddle(dimension=dimension), delay, epsilon=0.1, delta=delta, seeds=1000)
    print(f"N = {dimension}, tau = {delay}, delta = {delta}: {left} of 1000")
    assert left >= ACCEPTED[delta][1]


@pytest.mark.parametrize("delay", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_a_curvature_just_beyond_the_accuracy_is_left_too(delay):
    problem = Saddle(dimension=10, curvature=9.0 * 0.1 * 1.01**2)  # λ_min = −1.01 √(ρε), with ρ = 9 · curvature
    bound = -math.sqrt(problem.hessian_lipschitz * 0.1)
    assert problem.strict_saddle[1] == pytest.approx(1.01 * bound)
    assert escapes(problem, delay, epsilon=0.1, delta=0.1, seeds=1000, together=1000) >= ACCEPTED[0.1][0]


@pytest.mark.parametrize("dimension", [10, 100])
def test_the_printed_time_falls_short(dimension):
    """The control: T without the window of blocks."""
    left = escapes(Saddle(dimension=dimension), 1, epsilon=0.1, delta=0.01, seeds=400, together=400, printed=True)
    assert left < {10: 0.85, 100: 0.55}[dimension] * 400


@pytest.mark.parametrize("momentum", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
def test_gradient_descent_stays_at_an_exact_saddle(momentum):
    run = asyncsim.run(scenario(Saddle(dimension=10), GD(step=0.1, **momentum), updates=500))
    assert run.final_iterates.tobytes() == np.zeros((1, 10)).tobytes()


NOISY = {
    "psgd": PSGD(step=0.1, radius=0.01),
    "noisy_gd": NoisyGD(step=0.01),
    "saddle_ngd": SaddleNGD(step=0.01, radius=0.01, every=20),
}


@pytest.mark.parametrize("name", NOISY)
def test_noise_leaves_the_saddle(name):
    run = asyncsim.run(scenario(Saddle(dimension=10), NOISY[name], updates=3000, workers=1))
    assert run.summary["final_loss"] < -0.2


def test_an_accuracy_that_makes_the_saddle_acceptable_is_said():
    methods = SEACD(delay_bound=4, epsilon=0.2), PGD(step=0.05, epsilon=0.2, radius=0.01, escape_time=50)
    for method in methods:
        run = asyncsim.run(scenario(Saddle(dimension=4), method, updates=10))
        assert "makes the problem's saddle acceptable" in run.summary["method"]["warnings"][-1]
        assert summary_lines(run.summary)[-1] == f"warning: {run.summary['method']['warnings'][-1]}"
        fine = asyncsim.run(scenario(Saddle(dimension=4), method.model_copy(update={"epsilon": 0.1}), updates=10))
        assert not any("acceptable" in line for line in summary_lines(fine.summary))


# --- the energy -------------------------------------------------------------------------------------------------------


Rows = Annotated[tuple[Floats, ...], Field(strict=False)]


class Waves(Problem):
    """f(x) = Σ_k s_k (1 − cos(k w_k·x))/k², s_k = ±1: L ≤ Σ ‖w_k‖², neither convex nor quadratic."""

    directions: Rows
    signs: Floats

    @property
    def dimension(self):
        return len(self.directions[0])

    def _phases(self, x):
        k = np.arange(1.0, len(self.signs) + 1.0)
        return k, k * (x @ np.array(self.directions).T)

    def value(self, x):
        k, phases = self._phases(x)
        return (np.array(self.signs) * (1.0 - np.cos(phases)) / k**2).sum(axis=-1)

    def gradient(self, x):
        k, phases = self._phases(x)
        return (np.array(self.signs) * np.sin(phases) / k) @ np.array(self.directions)

    @property
    def smoothness(self):
        return float(np.square(self.directions).sum())


class Bilinear(Problem):
    """f(x) = ½ xᵀHx."""

    rows: Rows

    @property
    def dimension(self):
        return len(self.rows)

    def value(self, x):
        return 0.5 * (x * (x @ np.array(self.rows))).sum(axis=-1)

    def gradient(self, x):
        return x @ np.array(self.rows)

    @property
    def smoothness(self):
        return float(np.abs(np.linalg.eigvalsh(np.array(self.rows))).max())


def random_problem(generator):
    """Return a quadratic, half of them indefinite, or waves."""
    dimension = int(generator.integers(1, 8))
    if generator.random() < 0.3:
        directions = generator.normal(size=(3, dimension)).tolist()
        return Waves(directions=directions, signs=generator.choice([-1.0, 1.0], 3).tolist())
    square = generator.normal(size=(dimension, dimension))
    matrix = square @ square.T if generator.random() < 0.5 else 0.5 * (square + square.T)
    return Bilinear(rows=matrix.tolist())


def energies(method, problem, x0, updates, generator, *, mixed=False, constant=False):
    """Return the energy at every version, with delays of the whole vector, or of each coordinate where `mixed`."""
    tau = method.delay_bound
    workers = method.blocks
    state, memories = method.init(problem, x0, workers)
    versions, found = [state.x], [float(method.measure(problem, state, "energy"))]
    for t in range(updates):
        if constant:
            delays = np.full(x0.size, min(t, tau))
        else:
            delays = generator.integers(0, min(t, tau) + 1, x0.size if mixed else 1) * np.ones(x0.size, dtype=int)
        read = np.array([versions[t - delay][i] for i, delay in enumerate(delays.tolist())])
        row = Row(7, 0, int(generator.integers(workers)), t, t, int(delays.max()))
        payload, _ = method.message(problem, read, memories[0], row)
        state = method.apply(problem, state, [payload], [row])
        versions.append(state.x)
        found.append(float(method.measure(problem, state, "energy")))
    return np.array(found), versions


NEVER = {"epsilon": 1.0, "escape_time": 10, "decrease": 1.0, "large_step": 1e300, "descent": 10**9}


def rises(seed, sweep="jacobi", report=False, mixed=False):
    """Say by how much the energy of a random problem rises at most, over 1e-12 |f(x_0)|."""
    generator = np.random.default_rng(seed)
    problem = random_problem(generator)
    tau = int(generator.integers(1, 9))
    a = float(np.exp(generator.uniform(-1.5, 1.5)))
    step = float(generator.uniform(0.3, 1.0)) * 0.9999999 * largest_safe_step(problem.smoothness, tau, a)
    rule = {"step": step, "energy_a": a}
    if report:
        rule = {"step": 0.999 * report_step(problem.smoothness, tau), "step_rule": "report"}
    blocks = int(generator.integers(1, problem.dimension + 1))
    method = SEACD(delay_bound=tau, blocks=blocks, sweep=sweep, **rule, **NEVER)
    x0 = generator.normal(size=problem.dimension)
    found, _ = energies(method, problem, x0, 25, generator, mixed=mixed)
    scale = max(abs(float(problem.value(x0))), 1e-3)
    return float(np.diff(found).max()) / (1e-12 * scale)


def test_the_energy_never_rises_in_a_thousand_random_problems():
    assert max(rises(seed, mixed=seed % 2 == 0) for seed in range(1000)) <= 1.0


def test_nor_where_a_block_is_descended_coordinate_after_coordinate():
    assert max(rises(seed, sweep="gauss_seidel") for seed in range(100)) <= 1.0


def test_it_rises_in_some_of_them_with_the_reports_pair():
    assert sum(rises(seed, report=True) > 1e6 for seed in range(100)) >= 3


def test_the_reports_pair_rises_and_diverges_at_a_delay_of_ten():
    problem, x0 = Quadratic(eigenvalues=[1.0]), np.ones(1)
    just_under = SEACD(delay_bound=10, step_rule="report", step=0.999999 * report_step(1.0, 10), **NEVER)
    found, versions = energies(just_under, problem, x0, 19_500, np.random.default_rng(0), constant=True)
    assert np.diff(found).max() > 0
    assert np.abs(versions[-1]) > 1e30
    safe = SEACD(delay_bound=10, **NEVER)
    found, versions = energies(safe, problem, x0, 1000, np.random.default_rng(0), constant=True)
    assert np.diff(found).max() <= 1e-12  # the control
    assert np.abs(versions[-1]) < 1e-6


# --- all forms are the same -------------------------------------------------------------------------------------------

FORMS = {
    "jacobi": {},
    "gauss_seidel": {"sweep": "gauss_seidel"},
    "barrier": {"phase_boundary": "barrier"},
    "projected": {"projection": {"set": "box", "low": -0.5, "high": 0.8}},
    "by_hand": {"descent": 7, "large_step": 1e-3, "escape_time": 900},
}


@pytest.mark.parametrize("form", FORMS)
def test_serial_is_event_driven_with_one_worker_and_instant_service(form):
    method = SEACD(delay_bound=3, epsilon=0.1, blocks=5, **FORMS[form])
    problem = Saddle(dimension=11)
    run = asyncsim.run(scenario(problem, method, workers=1, law="constant"), record_iterates=True)
    serial = serial_seacd(method, problem, updates=30_000, seed=3)
    assert run.iterates[0].tobytes() == serial.iterates.tobytes()
    assert (run.summary["method"]["perturbations"], serial.finished) == ([serial.perturbations], True)
    assert serial.perturbations >= 2  # it left the saddle, and ended at the next
    other = serial_seacd(method, problem, updates=30_000, seed=4)
    assert other.iterates.tobytes() != serial.iterates.tobytes()  # the control


def test_serial_stops_where_it_may_go_no_further():
    method = SEACD(delay_bound=3, epsilon=0.1, blocks=5)
    serial = serial_seacd(method, Saddle(dimension=10), updates=100, seed=3)
    assert len(serial.iterates) == 101
    assert not serial.finished
    with pytest.raises(ValueError, match="momentum = 0 fails"):
        serial_seacd(method.model_copy(update={"momentum": 0.5}), Saddle(dimension=10), updates=10)


@pytest.mark.parametrize("boundary", ["continue", "barrier"])
def test_a_driven_simulation_and_the_replay_of_its_trace_are_the_same(boundary):
    method = SEACD(delay_bound=12, epsilon=0.1, blocks=3, phase_boundary=boundary, escape_time=600)
    described = scenario(Saddle(dimension=7), method, workers=4)
    replayer = Replayer(method, described.problem, seed=described.seed, workers=4)
    online = [np.zeros(7)]

    def step(rows):
        answer = replayer.step(rows)
        online.append(replayer.state.x)
        return answer

    trace = simulate(described, on_update=step)
    run = replay(trace, method, described.problem, record_iterates=True)
    assert run.iterates[0].tobytes() == np.array(online).tobytes()
    kinds = [kind for *_, kind in trace.events]
    assert kinds[-1] == "stop"
    barriers = 2 * int(run.facts["perturbations"][0]) - 1  # before and after each that helped, before the last
    assert kinds.count("barrier") == (barriers if boundary == "barrier" else 0)
    assert int(trace.updates[0]) < 30_000  # it ended itself


@pytest.mark.parametrize("backend", ["threads", "queue"])
def test_a_real_run_replays_bit_for_bit(backend):
    method = SEACD(delay_bound=20, epsilon=0.1, blocks=2, escape_time=400)
    described = scenario(
        Saddle(dimension=6), method, workers=2, updates=4000, source="record", backend=backend, metrics={"every": 500}
    )
    run = asyncsim.run(described)
    assert run.summary["recorded"]["replay"] == "identical"
    assert run.summary["method"]["perturbations"][0] >= 1


@pytest.mark.parametrize("per_update", [1, 2])
@pytest.mark.parametrize("extra", [{}, {"momentum": 0.7}, {"projection": {"set": "box", "low": -0.4, "high": 2.0}}])
def test_a_batch_of_replicas_equals_single_ones(extra, per_update):
    method = SEACD(delay_bound=3, epsilon=0.1, blocks=3, escape_time=60, decrease=1e-3, large_step=1.0, **extra)
    problem = Saddle(dimension=8, start=[0.3, -0.2, 0.1, 0.5, 0.3, -0.2, 0.1, 1e-3])
    policy = {"kind": "async"} if per_update == 1 else {"kind": "k_batch_async", "k": 2}
    described = build({"seed": 2, "cluster": cluster(4), "policy": policy, "run": {"updates": 400, "replicas": 6}})
    trace = simulate(described)
    together = replay(trace, method, problem, record_iterates=True)
    assert together.facts["perturbations"].min() >= 1
    for replica in range(6):
        alone = replay(simulate(described, replicas=[replica]), method, problem, record_iterates=True)
        np.testing.assert_allclose(together.iterates[replica], alone.iterates[0], rtol=1e-10, atol=1e-12)
        for name, values in together.facts.items():
            assert values[replica] == alone.facts[name][0]


# --- one update at a time ---------------------------------------------------------------------------------------------


def test_a_gradient_moves_its_block_alone():
    method, problem = SEACD(delay_bound=2, blocks=3, step=0.1, **NEVER), Quadratic(eigenvalues=[1.0] * 7)
    state, memories = method.init(problem, np.ones(7), workers=5)
    for worker in range(5):
        row = Row(7, 0, worker, 0, 0)
        payload, _ = method.message(problem, state.x, memories[worker], row)
        block = block_bounds(7, 3)[worker % 3]
        assert payload.shape == np.ones(7)[block].shape  # the block is all that is sent
        moved = method.apply(problem, state, [payload], [row]).x
        expected = np.ones(7)
        expected[block] = 0.9
        assert moved.tolist() == expected.tolist()


def test_few_workers_take_turns_and_a_trace_may_say_whose_turn_it_is():
    method = SEACD(delay_bound=2, blocks=5, epsilon=0.1)
    assert [method.block_of(Row(7, 0, 0, draw), 1) for draw in range(6)] == [0, 1, 2, 3, 4, 0]
    assert {method.block_of(Row(7, 0, w, draw), 2) for w in (0, 1) for draw in range(5)} == set(range(5))
    assert [method.block_of(Row(7, 0, worker, 9), 7) for worker in range(7)] == [0, 1, 2, 3, 4, 0, 1]
    assert method.block_of(Row(7, 0, 0, 0, block=3), 1) == 3


def test_gradients_of_one_block_in_one_update_are_averaged():
    method, problem = SEACD(delay_bound=2, blocks=2, step=0.1, **NEVER), Quadratic(eigenvalues=[1.0] * 2)
    state, _ = method.init(problem, np.ones(2), workers=4)
    rows = [Row(7, 0, worker, 0, 0) for worker in (0, 2, 1)]
    moved = method.apply(problem, state, [np.array([1.0]), np.array([3.0]), np.array([5.0])], rows)
    assert moved.x == pytest.approx([0.8, 0.5])


def at_the_end_of_a_descent(boundary):
    """Return method, problem and the state in which the next update ends a GACD without having helped."""
    method = SEACD(delay_bound=1, epsilon=0.1, escape_time=5, phase_boundary=boundary)
    problem = Saddle(dimension=3)
    state, _ = method.init(problem, np.zeros(3), workers=2)
    return method, problem, state


@pytest.mark.parametrize("boundary", ["continue", "barrier"])
def test_a_perturbation_happens_inside_an_update_and_voids_what_is_under_way(boundary):
    method, problem, state = at_the_end_of_a_descent(boundary)
    after = method.apply(problem, state, [np.zeros(3)], [Row(7, 0, 0, 0, 0, 0)])
    radius = method.parameters(problem).step * 0.1
    assert 0 < np.linalg.norm(after.x) <= radius
    assert after.request == ("barrier" if boundary == "barrier" else "go")
    stale = method.apply(problem, after, [np.ones(3)], [Row(7, 0, 1, 0, 1, staleness=1)])  # read before it
    assert stale.x.tobytes() == after.x.tobytes()
    assert stale.extra.taken == 0
    fresh = method.apply(problem, after, [np.ones(3)], [Row(7, 0, 1, 0, 1, staleness=0)])
    assert fresh.extra.taken == 1
    assert fresh.x.tobytes() != after.x.tobytes()


def test_what_did_not_help_is_undone_and_the_end_asked_for():
    method, problem, state = at_the_end_of_a_descent("continue")
    method = method.model_copy(update={"decrease": 1.0, "large_step": 1.0})
    for update in range(6):
        assert state.request == "go"
        state = method.apply(problem, state, [problem.gradient(state.x)], [Row(7, 0, 0, update, update)])
    assert state.request == "stop"
    assert state.x.tolist() == [0.0, 0.0, 0.0]
    assert method.measure(problem, state, "energy") == 0.0
    again = method.apply(problem, state, [np.ones(3)], [Row(7, 0, 0, 6, 6)])
    assert (again.request, again.x.tolist()) == ("stop", [0.0, 0.0, 0.0])


def test_gradients_beyond_the_delay_bound_are_used_counted_and_warned_of():
    method = SEACD(delay_bound=2, epsilon=0.1, blocks=5, escape_time=100)
    run = asyncsim.run(scenario(Saddle(dimension=10), method, updates=300))
    trace = run.trace
    late = run.summary["method"]["late"][0]
    assert 0 < late <= int((trace.staleness() > 2).sum())
    assert f"{late:,} gradients were staler than delay_bound = 2" in run.summary["method"]["warnings"][-1]
    assert f"{late:,} gradients were staler" in summary_lines(run.summary)[-1]


# --- accelerated ------------------------------------------------------------------------------------------------------


def updates_to(bound, method, problem, workers=4):
    described = scenario(problem, method, workers=workers, updates=6000, metrics={"every": 1, "record": ["loss"]})
    table = asyncsim.run(described).metrics
    below = table["update"][table["value"] < bound]
    return int(below.min()) if below.size else 10**9


def test_momentum_takes_fewer_updates_and_the_energy_still_falls_from_phase_to_phase():
    problem = Quadratic(dimension=8, condition_number=100.0)
    plain = SEACD(delay_bound=12, epsilon=1e-3, blocks=4, escape_time=50, descent=20)
    fast = plain.model_copy(update={"momentum": 0.8})
    bound = 1e-2 * float(problem.value(np.ones(8)))
    assert updates_to(bound, fast, problem) < 0.6 * updates_to(bound, plain, problem)
    energies_at_phases = []
    state, _ = fast.init(problem, np.ones(8), 4)
    for t in range(3000):
        if state.extra.kind != 0:
            break
        energies_at_phases.append(float(state.extra.energy))
        row = Row(7, 0, t % 4, t, t)
        state = fast.apply(problem, state, [fast.message(problem, state.x, 4, row)[0]], [row])
    assert len(set(energies_at_phases)) > 20
    assert np.diff(energies_at_phases).max() <= 0.0


def test_momentum_too_large_for_the_delays_is_undone():
    """With so much momentum the iteration by itself diverges."""
    problem = Quadratic(dimension=4, condition_number=10.0)
    method = SEACD(delay_bound=6, epsilon=1e-3, blocks=2, escape_time=50, momentum=0.99, descent=40)
    run = asyncsim.run(scenario(problem, method, workers=4, updates=6000))
    assert run.summary["final_loss"] < 1e-4


# --- the report's schedule --------------------------------------------------------------------------------------------


def test_the_slow_worker_comes_once_a_round_and_the_others_at_least_once():
    trace = slow_worker_trace(workers=4, delay_bound=7, updates=70, replicas=3, seed=1)
    workers = trace["worker"].reshape(3, 10, 7)
    assert (workers[..., -1] == 3).all()
    assert (workers[..., :-1] < 3).all()
    assert all(set(round_[:3].tolist()) == {0, 1, 2} for replica in workers for round_ in replica)
    assert (trace.staleness().reshape(3, 10, 7) == [0, 0, 0, 0, 0, 0, 6]).all()
    assert np.bincount(workers[..., 3:-1].ravel()).min() > 15  # 90 draws from three
    assert not (workers[0] == workers[1]).all()
    with pytest.raises(ScenarioError, match="2 <= workers <= delay_bound fails"):
        slow_worker_trace(workers=5, delay_bound=4, updates=10)


def test_a_scenario_names_the_slow_worker():
    law = {"law": "slow_worker", "workers": 4, "delay_bound": 7}
    run = {"source": "synthetic", "staleness": law, "updates": 30, "replicas": 3}
    described = build({"seed": 1, "run": run})
    named, plain = simulate(described), slow_worker_trace(workers=4, delay_bound=7, updates=30, replicas=3, seed=1)
    assert (named.sha256(), named.workers, described.workers) == (plain.sha256(), 4, 4)
    alone = simulate(described, replicas=[2])  # the same alone as among others
    np.testing.assert_array_equal(alone["worker"], plain["worker"][60:])
    staleness = described.run.staleness.sequence(np.full(30, 0.5))
    np.testing.assert_array_equal(staleness, plain.staleness()[:30])
    assert described.run.staleness.mean == staleness[:28].mean()
    drawn = described.run.staleness.quantile((np.arange(7000) + 0.5) / 7000)
    assert drawn.mean() == pytest.approx(described.run.staleness.mean)


def test_serial_asynchronous_seacd_leaves_the_saddle():
    method = SEACD(delay_bound=3, epsilon=0.1, blocks=3)
    trace = slow_worker_trace(workers=3, delay_bound=3, updates=8000, seed=1)
    run = replay(trace, method, Saddle(dimension=6))
    assert run.facts["finished"].all()
    assert abs(run.final_iterates[0, -1]) == pytest.approx(1.0, abs=1e-3)
    assert run.facts["late"].tolist() == [0]


# --- certificates and metrics -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [5, 64, 65, 300])
def test_the_smallest_eigenvalue(dimension):
    generator = np.random.default_rng(3)
    square = generator.normal(size=(dimension, dimension))
    problem = _Hessian(0.5 * (square + square.T))
    expected = np.linalg.eigvalsh(problem.matrix)[0]
    assert smallest_eigenvalue(problem, np.zeros(dimension)) == pytest.approx(expected, rel=1e-5)
    free = generator.random(dimension) < 0.7
    reduced = np.linalg.eigvalsh(problem.matrix[np.ix_(free, free)])[0]
    assert smallest_eigenvalue(problem, np.zeros(dimension), free=free) == pytest.approx(reduced, rel=1e-5)
    assert reduced > expected


class _Hessian:
    def __init__(self, matrix):
        self.matrix = matrix

    def gradient(self, x):
        return self.matrix @ x

    def hessian_vector(self, x, vector):
        return self.matrix @ vector


ORDERS = {
    "minimum": ([0.0, 0.0, 1.0], 2),
    "saddle": ([0.0, 0.0, 0.0], 1),
    "nearly": ([0.05, 0.0, 1.0], 2),
    "slope": ([0.5, 0.0, 1.0], 0),
    "between": ([0.0, 0.0, 0.09], 1),
}


@pytest.mark.parametrize("name", ORDERS)
def test_certificates(name):
    x, order = ORDERS[name]
    found = certificate(Saddle(dimension=3), np.array(x), epsilon=0.1, hessian_lipschitz=9.0)
    assert found["order"] == order
    assert found["bound"] == pytest.approx(-math.sqrt(0.9))
    assert found["gradient_norm"] == pytest.approx(np.linalg.norm(Saddle(dimension=3).gradient(np.array(x))))


def test_what_cannot_be_judged_is_first_order_only():
    found = certificate(Saddle(dimension=3), np.array([0.0, 0.0, 1.0]), epsilon=0.1)
    assert (found["order"], "Lipschitz" in found["first_order_only"]) == (1, True)
    bare = Waves(directions=[[1.0, 0.5]], signs=[1.0])
    found = certificate(bare, np.zeros(2), epsilon=0.1, hessian_lipschitz=1.0)
    assert (found["order"], found["lambda_min"], "eigenvalue" in found["first_order_only"]) == (1, None, True)


def test_a_projected_point_is_judged_on_what_may_move():
    """At the corner of the box the gradient is large and points outwards; the saddle's direction cannot be taken."""
    box = asyncsim.methods.Box(low=-1.0, high=0.2)
    problem = Saddle(dimension=3)
    corner = certificate(
        problem, np.array([0.0, 0.0, 0.2]), epsilon=0.1, hessian_lipschitz=9.0, projection=box, step=0.1
    )
    assert (corner["order"], corner["gradient_norm"], corner["lambda_min"]) == (2, 0.0, 1.0)
    free = certificate(problem, np.array([0.0, 0.0, 0.2]), epsilon=0.1, hessian_lipschitz=9.0)
    assert free["order"] == 0


def test_a_run_has_its_metrics_and_a_certificate_of_every_replica():
    method = SEACD(delay_bound=12, epsilon=0.1, blocks=2)
    record = ["loss", "energy", "perturbations", "lambda_min"]
    described = scenario(
        Saddle(dimension=4),
        method,
        workers=3,
        replicas=2,
        metrics={"every": 1000, "record": record, "target": "lambda_min > 0"},
    )
    run = asyncsim.run(described)
    assert [found["order"] for found in run.summary["certificate"]] == [2, 2]
    assert f"{'stationary, second order: replicas':<34}{'2 of 2':>12}" in summary_lines(run.summary)
    table = run.metrics.pivot_table(index=["replica", "update"], columns="metric", values="value", observed=True)
    assert (table["energy"] >= table["loss"]).all()
    assert table["lambda_min"].iloc[0] == -1.0
    assert table["perturbations"].groupby("replica").max().tolist() == run.summary["method"]["perturbations"]
    assert run.summary["target"]["reached"] == 2
    assert run.summary["method"]["parameters"]["escape_time"] == method.parameters(described.problem).escape_time


REFUSED = {
    "blocks": ({"blocks": 7}, {}, "blocks <= dimension fails: 7 against 4"),
    "delta": ({"delta": 1.0}, {}, "method.delta: must be less than 1"),
    "delay": ({"delay_bound": 0}, {}, "method.delay_bound: must be greater than or equal to 1"),
    "step": ({"step": 0.5}, {}, "method: 1/step > L/2"),
    "logarithm": ({"radius": 1e6}, {}, "method: 16 sqrt(N) epsilon / (r delta sqrt(pi)) > 1 fails"),
    "rho": ({}, {"kind": "quadratic", "eigenvalues": [1.0] * 4}, "give 'hessian_lipschitz' or 'escape_time'"),
    "ball": ({"blocks": 2, "projection": {"set": "ball", "radius": 1.0}}, {}, "a set of each coordinate on its own"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_before_anything_runs(name):
    given, problem, message = REFUSED[name]
    method = {"kind": "seacd", "delay_bound": 4, "epsilon": 0.1, **given}
    with pytest.raises(ScenarioError) as refusal:
        scenario(problem or {"kind": "saddle", "dimension": 4}, method)
    assert message in str(refusal.value)


def test_only_a_method_that_keeps_it_gives_an_energy():
    with pytest.raises(ScenarioError, match="'energy' needs a method that keeps one"):
        scenario(Saddle(dimension=3), GD(step=0.1), metrics={"record": ["energy"]})


def test_a_trace_with_blocks_is_followed():
    columns = {
        "replica": [0] * 4, "worker": [0] * 4, "draw": [0, 1, 2, 3], "read_version": [0, 1, 2, 3],
        "update": [0, 1, 2, 3], "status": [0] * 4, "block": [2, 2, 0, 1],
    }  # fmt: skip
    trace = Trace(columns, seed=0, workers=1, updates=[4])
    method = SEACD(delay_bound=1, blocks=3, step=0.5, **NEVER)
    run = replay(trace, method, Quadratic(eigenvalues=[1.0] * 3), record_iterates=True)
    assert run.iterates[0].tolist() == [[1, 1, 1], [1, 1, 0.5], [1, 1, 0.25], [0.5, 1, 0.25], [0.5, 0.5, 0.25]]
