"""How fast a method is replayed: many small replicas against a loop in numpy, one large model against copying."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from simulation import INSTANT, scenario
from table import Line
from timing import take_turns

import asyncsim
from asyncsim.methods import SGD
from asyncsim.problems import Quadratic
from asyncsim.replay import plan_of
from asyncsim.scenario import Metrics

STEP = 0.01
#: No metric is measured, neither by the replay nor by the loop.
NOTHING = Metrics(record=())


def loop(read_versions: list[list[int]], eigenvalues: np.ndarray, noise: float) -> np.ndarray:
    """Return where stochastic gradient descent on ½ Σ λᵢ xᵢ² ends in each replica, one update after the other."""
    generator = np.random.default_rng(0)
    ends = []
    for reads in read_versions:
        versions = [np.ones(eigenvalues.size)]
        for read in reads:
            gradient = eigenvalues * versions[read]
            if noise:
                gradient = gradient + noise * generator.standard_normal(eigenvalues.size)
            versions.append(versions[-1] - STEP * gradient)
        ends.append(versions[-1])
    return np.array(ends)


def many_replicas(quick: bool) -> Iterator[Line]:
    """Replicas as a batch against the loop, which runs only some of them: its cost does not depend on how many."""
    replicas, dimension, updates, rounds = 1000, 10, (100 if quick else 400), (3 if quick else 7)
    some = 100
    trace = asyncsim.simulate(scenario(INSTANT, 16, updates), replicas=replicas)
    reads = [trace["read_version"][rows].tolist() for _, _, rows in trace.slices()][:some]
    method = SGD(step=STEP)
    for noise in (0.0, 1.0):
        problem = Quadratic(dimension=dimension, condition_number=10.0, noise=noise)
        plan = plan_of(trace, method, problem)
        seconds = take_turns(
            {
                "loop": partial(loop, reads, problem.spectrum, noise),
                "replay": partial(asyncsim.replay, trace, method, problem, metrics=NOTHING),
                "planned": partial(asyncsim.replay, trace, method, problem, metrics=NOTHING, plan=plan),
            },
            rounds,
        )
        if noise == 0.0:
            mine = asyncsim.replay(trace, method, problem, metrics=NOTHING).final_iterates[:some]
            np.testing.assert_allclose(mine, loop(reads, problem.spectrum, noise), rtol=1e-9)
        one = seconds["loop"] / (some * updates) * 1e9
        for name, what in (("replay", ""), ("planned", ", plan at hand")):
            batch = seconds[name] / (replicas * updates) * 1e9
            kind = "noisy gradients" if noise else "exact gradients"
            yield Line(
                f"replay, times faster than a numpy loop: R = {replicas}, d = {dimension}, {kind}{what}",
                one / batch,
                "×",
                f"{batch:,.0f} ns against {one:,.0f} ns an update and replica",
                at_least=20.0,
            )


def one_large_model(quick: bool) -> Iterator[Line]:
    """One replica in many dimensions against copying three vectors: the version read, the current and the next."""
    dimension, updates, rounds = 1_000_000, (30 if quick else 100), (3 if quick else 9)
    trace = asyncsim.simulate(scenario(INSTANT, 16, updates))
    problem = Quadratic(dimension=dimension, condition_number=10.0)
    sources, targets = np.ones((3, dimension)), np.zeros((3, dimension))

    def copies() -> None:
        for _ in range(updates):
            for source, target in zip(sources, targets, strict=True):
                np.copyto(target, source)

    run = partial(asyncsim.replay, trace, SGD(step=STEP), problem, metrics=NOTHING)
    seconds = take_turns({"copies": copies, "replay": run}, rounds)
    shown = f"{seconds['replay'] / updates * 1e3:.2f} ms against {seconds['copies'] / updates * 1e3:.2f} ms an update"
    name = f"replay, time of copying three vectors = 1: one replica, d = {dimension:,}"
    yield Line(name, seconds["replay"] / seconds["copies"], "", shown, at_most=3.0)
