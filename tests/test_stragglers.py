"""What a slow worker costs: steps that know the delay, and policies that do not wait, on simulated clusters."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

import asyncsim
from asyncsim import theory
from asyncsim.experiment import make_trace
from asyncsim.methods import SGD
from asyncsim.problems import Quadratic
from asyncsim.scenario import build

WORKERS = 8


def one_slow_worker(slowdown, *, law="uniform", **parts):
    """A scenario of M workers, one of them slower than the others by a factor."""

    def service(mean):
        return {"law": law, "mean": mean} if law != "uniform" else {"law": law, "low": 0.9 * mean, "high": 1.1 * mean}

    groups = [{"count": WORKERS - 1, "service": service(1.0)}, {"service": service(float(slowdown))}]
    return build({"seed": 8, "cluster": {"workers": groups}, **parts})


# --- the rate depends on the number of workers, not on the largest delay (Mishchenko et al. 2022) -----------------

QUADRATIC = Quadratic(dimension=10, condition_number=10.0)
FIRST_NORM = float(np.linalg.norm(QUADRATIC.gradient(np.ones(10))))
SAFE = 1.0 / (4.0 * QUADRATIC.smoothness * WORKERS)


@cache
def updates_until_small(slowdown, rule, step, most=5000):
    """Return the updates until ‖∇f‖² has fallen by 1e-6 (or `most`), and the largest staleness among them."""
    scenario = one_slow_worker(
        slowdown,
        problem={"kind": "quadratic", "dimension": 10, "condition_number": 10.0},
        method={"kind": "sgd", "step": step, "step_rule": rule},
        run={"updates": most, "stop_when": f"grad_norm < {1e-3 * FIRST_NORM}"},
        metrics={"record": ["grad_norm"], "every": 1},
    )
    trace = make_trace(scenario)
    return int(trace.updates[0]), int(trace.staleness().max())


@pytest.mark.parametrize("slowdown", [10, 100])
def test_the_concurrency_rule_does_not_feel_a_straggler(slowdown):
    equal, least = updates_until_small(1, "concurrency", SAFE)
    slowed, largest = updates_until_small(slowdown, "concurrency", SAFE)
    assert largest > 5 * least
    assert slowed / equal == pytest.approx(1.0, abs=0.05)
    # The control: the step that the largest delay asks for, 1/(4Lτ_max), pays for the delay in full.
    equal, _ = updates_until_small(1, "constant", SAFE * WORKERS / least)
    limit = slowdown * equal // 2
    slowed, _ = updates_until_small(slowdown, "constant", SAFE * WORKERS / largest, most=limit + 1)
    assert slowed > limit


def test_this_instance_does_not_tell_the_concurrency_rule_from_a_constant_step():
    """A constant step of that size is as insensitive here: a smooth quadratic is not the worst case of the theorem."""
    equal, _ = updates_until_small(1, "constant", SAFE)
    slowed, _ = updates_until_small(10, "constant", SAFE)
    assert slowed / equal == pytest.approx(1.0, abs=0.05)


# --- delay-adaptive steps (Wu et al. 2022) ------------------------------------------------------------------------


class Slope:
    """f(x) = x: the iterates are minus the sums of the steps."""

    dimension = 1
    batched = True

    def value(self, x):
        return x[..., 0]

    def gradient(self, x):
        return np.ones_like(x)


@cache
def straggling_trace():
    return make_trace(one_slow_worker(10, law="exponential", run={"updates": 3000}))


def steps_taken(rule, step=1.0, **parameters):
    """Return the step γ_k of every update and its staleness, on the trace with a straggler."""
    method = SGD(step=step, step_rule=rule, **parameters)
    run = asyncsim.replay(straggling_trace(), method, Slope(), record_iterates=True)
    return -np.diff(run.iterates[0, :, 0]), straggling_trace().staleness()


def excess(steps, staleness, allowed=1.0):
    """Return the most by which a step exceeds max(0, γ' − Σ of the steps since the version it was computed from)."""
    total = np.concatenate([[0.0], np.cumsum(steps)])
    k = np.arange(steps.size)
    return float((steps - np.maximum(allowed - (total[k] - total[k - staleness]), 0.0)).max())


@pytest.mark.parametrize(
    ("rule", "parameters", "least"),
    [
        ("adaptive_1", {"alpha": 0.9}, lambda most: 0.9),
        ("adaptive_1", {"alpha": 0.3}, lambda most: 0.3),
        ("adaptive_2", {}, lambda most: 1.0 / (most + 1.0)),
    ],
)
def test_delay_adaptive_steps_keep_their_principle_on_a_simulated_trace(rule, parameters, least):
    """0 ≤ γ_k ≤ max(0, γ' − Σ_{k−τ_k}^{k−1} γ), and any τ_max + 1 steps together are not small, so that Σγ = ∞."""
    steps, staleness = steps_taken(rule, **parameters)
    assert staleness.max() > 100
    assert steps.min() >= -1e-12
    assert excess(steps, staleness) <= 1e-9
    window = int(staleness.max()) + 1
    sums = np.convolve(steps, np.ones(window), mode="valid")
    assert sums.min() >= least(staleness.max()) - 1e-9


@pytest.mark.parametrize(("rule", "step"), [("constant", 0.25), ("staleness", 1.0), ("concurrency", 0.25)])
def test_other_steps_break_the_principle(rule, step):
    steps, staleness = steps_taken(rule, step)
    assert excess(steps, staleness) > 0.1


@pytest.mark.parametrize("rule", ["adaptive_1", "adaptive_2"])
def test_delay_adaptive_steps_converge_with_a_straggler_where_a_constant_one_diverges(rule):
    allowed = 0.99 / QUADRATIC.smoothness
    adaptive = asyncsim.replay(straggling_trace(), SGD(step=allowed, step_rule=rule), QUADRATIC)
    assert QUADRATIC.value(adaptive.final_iterates[0]) < 1e-12
    constant = asyncsim.replay(straggling_trace(), SGD(step=allowed), QUADRATIC)
    assert QUADRATIC.value(constant.final_iterates[0]) > 1e6 or constant.diverged


# --- the optimal time (Tyurin and Richtárik 2023; Maranjyan et al. 2025) ------------------------------------------

#: Curvatures L 2^−i, of which each holds the same share of the gap Δ: ‖∇f‖² falls like LΔ/T, as slowly as it may.
CURVATURES = 2.0 ** -np.arange(8)
START = np.sqrt(2.0 / CURVATURES.size / CURVATURES)

CLUSTERS = {
    "one": [1.0],
    "equal": [1.0] * 8,
    "a straggler": [1.0] * 7 + [1000.0],
    "half are slow": [1.0] * 4 + [30.0] * 4,
    "each slower": [float(i) for i in range(1, 33)],
}


def time_over_formula(times, policy, step, *, accuracy, noise_ratio, updates):
    """Return measured time to E‖∇f‖² ≤ ε, over the formula for L = Δ = 1 and σ² = noise_ratio · ε; and the formula."""
    variance = noise_ratio * accuracy
    scenario = build(
        {
            "seed": 7,
            "cluster": {"workers": [{"service": {"law": "constant", "value": time}} for time in times]},
            "policy": policy,
            "problem": {
                "kind": "quadratic",
                "eigenvalues": CURVATURES.tolist(),
                "start": START.tolist(),
                "noise": math.sqrt(variance / CURVATURES.size),
            },
            "method": {"kind": "sgd", "step": step},
            "run": {"updates": updates, "replicas": 8},
            "metrics": {"record": ["grad_norm"], "every": max(1, updates // 200)},
        }
    )
    frame = asyncsim.run(scenario).metrics
    frame = frame.assign(squared=frame["value"] ** 2).groupby("update")[["squared", "time"]].mean()
    reached = frame.loc[frame["squared"] <= accuracy, "time"]
    formula = theory.optimal_time(times, smoothness=1.0, gap=1.0, noise_variance=variance, accuracy=accuracy).time
    return (reached.iloc[0] if len(reached) else np.inf) / formula, formula


def rennala(gap, noise_ratio):
    batch = max(1, noise_ratio)
    return {"policy": {"kind": "rennala", "batch": batch}, "step": 0.5, "updates": gap + 10}


def ringmaster(gap, noise_ratio):
    threshold = max(1, noise_ratio)
    step = min(0.5 / threshold, 0.25 / noise_ratio if noise_ratio else np.inf)
    policy = {"kind": "ringmaster", "max_staleness": threshold - 1}
    return {"policy": policy, "step": step, "updates": 2 * gap * threshold + 20}


#: LΔ/ε and σ²/ε.
ACCURACIES = [(8, 0), (8, 4), (8, 64), (64, 0), (64, 4)]


@pytest.mark.parametrize("method", [rennala, ringmaster])
def test_time_stays_within_a_constant_of_the_optimum(method):
    """The formula varies five-hundredfold; the measured time is always between a fifth of it and all of it."""
    cases = [(times, *accuracy) for times in CLUSTERS.values() for accuracy in ACCURACIES]
    found = [
        time_over_formula(times, accuracy=1.0 / gap, noise_ratio=noise_ratio, **method(gap, noise_ratio))
        for times, gap, noise_ratio in [*cases, (CLUSTERS["one"], 64, 64)]
    ]
    ratios, formulas = np.array(found).T
    assert formulas.max() / formulas.min() > 500
    assert 0.2 < ratios.min() <= ratios.max() < 1.0


@pytest.mark.parametrize(
    ("times", "policy", "step", "updates"),
    [
        ([1.0] * 7 + [100.0], {"kind": "sync"}, 0.5, 100),
        ([1.0] * 7 + [100.0], {"kind": "async"}, 1.0 / (4.0 * 701), 40_000),
        ([1.0] + [1000.0] * 63, {"kind": "async"}, 1.0 / (4.0 * 64), 4000),
        ([1.0] * 8, {"kind": "async"}, 0.5, 1000),
    ],
    ids=[
        "sync waits",
        "step for the worst delay",
        "step for idle workers",
        "no threshold",
    ],
)
def test_other_policies_and_steps_leave_that_constant_behind(times, policy, step, updates):
    """With LΔ/ε = 64 and no noise, where Ringmaster takes 0.33 to 0.38 of the formula."""
    ratio, _ = time_over_formula(times, policy, step, accuracy=1 / 64, noise_ratio=0, updates=updates)
    assert ratio > 20.0


def test_plain_asynchrony_with_a_step_for_its_workers_is_not_hurt_by_one_straggler():
    """One worker a thousand times slower: a step of 1/(4LM) needs no knowledge of the delay."""
    ratio, _ = time_over_formula(
        CLUSTERS["a straggler"], {"kind": "async"}, 1.0 / 32.0, accuracy=1 / 64, noise_ratio=0, updates=1000
    )
    assert 0.2 < ratio < 1.0
