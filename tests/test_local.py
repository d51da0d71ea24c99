"""Local SGD: several steps at the worker for each message."""

from __future__ import annotations

import numpy as np
import pytest

import asyncsim
from asyncsim.compressors import Identity, TopK
from asyncsim.methods import SGD, LocalSGD
from asyncsim.problems import Online, Quadratic, Softmax
from asyncsim.scenario import ScenarioError, build
from asyncsim.trace import Row

PROBLEMS = {
    "quadratic": Quadratic(eigenvalues=[1.0, 3.0], noise=0.1),
    "softmax": Softmax(dataset="digits", batch=4),
}


def trace(kind="async", *, updates=40, replicas=3):
    return asyncsim.simulate(
        build(
            {
                "seed": 11,
                "cluster": {"workers": [{"count": 4, "service": {"law": "exponential", "mean": 1.0}}]},
                "policy": {"kind": kind},
                "run": {"updates": updates, "replicas": replicas},
            }
        )
    )


@pytest.mark.parametrize("local_steps", [1, 3])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_round_is_the_mean_of_workers_that_went_by_themselves(problem, local_steps):
    problem, rounds = PROBLEMS[problem], trace("sync", updates=6, replicas=1)
    method = LocalSGD(step=0.1, local_steps=local_steps)
    run = asyncsim.replay(rounds, method, problem, record_iterates=True)
    x = problem.initial(11, 0)
    for update in range(6):
        ends = []
        for worker in range(4):
            z = x
            for local in range(local_steps):
                z = z - 0.1 * problem.stochastic_gradient(z, Row(11, 0, worker, update * local_steps + local))
            ends.append(z)
        x = np.mean(ends, axis=0)
        np.testing.assert_allclose(run.iterates[0, update + 1], x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_one_step_is_sgd_and_three_are_not(kind):
    schedule, problem = trace(kind), PROBLEMS["quadratic"]
    plain = asyncsim.replay(schedule, SGD(step=0.1), problem).final_iterates
    one, three = (
        asyncsim.replay(schedule, LocalSGD(step=0.1, local_steps=steps), problem).final_iterates for steps in (1, 3)
    )
    np.testing.assert_allclose(one, plain, rtol=1e-12, atol=1e-14)
    assert np.abs(three - plain).max() > 1e-3


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_batch_of_replicas_equals_single_ones(problem):
    schedule, problem = trace(updates=20), PROBLEMS[problem]
    method = LocalSGD(step=0.05, local_steps=3)
    assert method.batched
    batch = asyncsim.replay(schedule, method, problem).final_iterates
    single = asyncsim.replay(schedule, method, problem, checksums=True).final_iterates
    np.testing.assert_allclose(batch, single, rtol=1e-11, atol=1e-13)


def test_no_two_gradients_have_the_same_address():
    seen = []

    class Watching(Quadratic):
        def stochastic_gradient(self, x, row):
            seen.append((row.worker, row.draw))
            return super().stochastic_gradient(x, row)

    problem = Watching(eigenvalues=[1.0, 3.0], noise=0.1)
    asyncsim.replay(trace(replicas=1), LocalSGD(step=0.05, local_steps=3), problem)
    assert len(seen) == len(set(seen)) == 3 * 40


def test_a_compressor_sends_less_and_remembers_the_rest():
    problem, schedule = Quadratic(eigenvalues=[1.0, 2.0, 3.0, 4.0]), trace("sync", updates=300, replicas=1)
    whole, same, short = (
        asyncsim.replay(schedule, LocalSGD(step=0.05, local_steps=2, compressor=one), problem).final_iterates
        for one in (None, Identity(), TopK(k=1))
    )
    np.testing.assert_allclose(same, whole, rtol=0, atol=1e-14)
    assert np.abs(short).max() < 1e-3  # from a start of 1
    method = LocalSGD(step=0.05, local_steps=2, compressor=TopK(k=1))
    assert method.message_bytes(problem, 4)[0] == TopK(k=1).nbytes(4) < method.message_bytes(problem, 4)[1] == 32
    state, memories = method.init(problem, np.ones(4), 4)
    sent, memory = method.message(problem, state.x, memories[0], Row(11, 0, 0, 0))
    assert np.count_nonzero(memory) == 3
    restored = method.lost(sent, memory)
    np.testing.assert_allclose(restored, 1 - (1 - 0.05 * np.arange(1.0, 5.0)) ** 2, rtol=1e-14)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="local_steps must be 1"):
        LocalSGD(step=0.1, local_steps=2).check(Online(), 4)
    LocalSGD(step=0.1, local_steps=1).check(Online(), 4)
    data = {
        "cluster": {"workers": [{"service": {"law": "constant", "value": 1.0}}]},
        "problem": {"kind": "quadratic", "eigenvalues": [1.0]},
        "method": {"kind": "local_sgd", "step": 0.1, "local_steps": 0},
        "run": {"updates": 3},
    }
    with pytest.raises(ScenarioError, match="local_steps"):
        build(data)


def test_a_message_counts_its_gradients():
    assert LocalSGD(step=0.1, local_steps=7).gradients_per_message == 7
    assert SGD(step=0.1).gradients_per_message == 1
