"""How fast a cluster is simulated: by hand, by the SimPy model, by the compiled engine, by numpy alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import cumulative_sums
import hand_written
from table import Line
from timing import in_new_process, take_turns

import asyncsim
from asyncsim.scenario import build

LATENCY = 0.1


class Case(NamedTuple):
    """A kind of cluster: are there links and a server queue, and are their times random?"""

    name: str
    links: bool
    random: bool


CONSTANT_LINKS = Case("links and server of constant time", links=True, random=False)
RANDOM_LINKS = Case("links and server of exponential time", links=True, random=True)
INSTANT = Case("no links, instant server", links=False, random=False)


def scenario(case: Case, workers: int, updates: int) -> Any:
    """Exponential workers of mean 1, latency 0.1 each way, and a server that could apply `workers` per unit of time."""

    def law(mean: float) -> dict[str, Any]:
        return {"law": "exponential", "mean": mean} if case.random else {"law": "constant", "value": mean}

    cluster: dict[str, Any] = {"workers": [{"count": workers, "service": {"law": "exponential", "mean": 1.0}}]}
    if case.links:
        cluster |= {"network": {"topology": "star", "latency": law(LATENCY)}, "server": {"service": law(1.0 / workers)}}
    return build({"cluster": cluster, "run": {"updates": updates}})


def by_hand(case: Case, workers: int, updates: int) -> None:
    """Simulate the same cluster without asyncsim."""
    law = hand_written.exponential if case.random else hand_written.constant
    latency, server = (law(LATENCY), law(1.0 / workers)) if case.links else (None, None)
    hand_written.Cluster(workers, updates, hand_written.exponential(1.0), latency, server).run()


def nanoseconds(
    case: Case, workers: int, updates: int, rounds: int, of: tuple[str, ...] = ("hand", "simpy", "compiled")
) -> dict[str, float]:
    """Return the cost of a gradient in each way of simulating the case."""
    this = scenario(case, workers, updates)
    ways = {
        "hand": partial(by_hand, case, workers, updates),
        "simpy": partial(asyncsim.simulate, this, engine="simpy"),
        "compiled": partial(asyncsim.simulate, this, engine="compiled"),
        "numpy": partial(cumulative_sums.table, workers, updates, 1.0, seed=0),
    }
    return {way: s / updates * 1e9 for way, s in take_turns({way: ways[way] for way in of}, rounds).items()}


def against_hand_written(quick: bool) -> Iterator[Line]:
    """Both engines against the loop written by hand."""
    shortest, each, rounds = (20_000, 10, 3) if quick else (100_000, 50, 5)
    targets = {16: (60.0, 100.0), 4096: (35.0, 60.0)}
    for case in (CONSTANT_LINKS, RANDOM_LINKS, INSTANT):
        for workers, (target, aim) in targets.items():
            cost = nanoseconds(case, workers, max(shortest, each * workers), rounds)
            where = f"M = {workers}, {case.name}"
            shown = f"{cost['compiled']:,.0f} ns against {cost['hand']:,.0f} ns"
            ratio = cost["hand"] / cost["compiled"]
            if case.links:
                yield Line(f"compiled, times faster than by hand: {where}", ratio, "×", shown, at_least=target, aim=aim)
            else:
                yield Line(f"compiled, times faster than by hand: {where}", ratio, "×", shown)
            shown = f"{cost['simpy']:,.0f} ns against {cost['hand']:,.0f} ns"
            yield Line(
                f"SimPy model, speed by hand = 1: {where}", cost["hand"] / cost["simpy"], "", shown, at_least=0.7
            )


def against_numpy(quick: bool) -> Iterator[Line]:
    """The compiled engine against cumulative sums and one sort."""
    updates, rounds = (100_000, 3) if quick else (1_000_000, 7)
    for workers in (16, 1024):
        cost = nanoseconds(INSTANT, workers, updates, rounds, of=("numpy", "compiled"))
        shown = f"{cost['compiled']:,.0f} ns against {cost['numpy']:,.0f} ns"
        name = f"compiled, time of numpy's sums and sort = 1: M = {workers}, {INSTANT.name}"
        yield Line(name, cost["compiled"] / cost["numpy"], "", shown, at_most=1.5)


#: A cable that all workers share, and what is on it: compressed gradients up, models of `COORDINATES` numbers down.
COORDINATES, FRACTION, TOGETHER, CABLE_LATENCY = 10_000, 0.01, 100, 0.01
#: Share of the time in which the cable carries something, were it never idle for want of gradients: contended.
LOAD = 0.9


def shared_scenario(workers: int, updates: int) -> Any:
    """Workers behind one cable, which send one coordinate in a hundred; every update takes `TOGETHER` gradients."""
    up, down = FRACTION * COORDINATES * 8, COORDINATES * 8
    links = {side: {"bandwidth": size * workers / LOAD} for side, size in (("up", up), ("down", down))}
    return build(
        {
            "cluster": {
                "workers": [{"count": workers, "service": {"law": "exponential", "mean": 1.0}}],
                "network": {
                    "topology": "switch",
                    "latency": {"law": "constant", "value": CABLE_LATENCY},
                    **links,
                },
            },
            "policy": {"kind": "k_async", "k": TOGETHER},
            "problem": {"kind": "quadratic", "eigenvalues": [1.0] * COORDINATES},
            "method": {"kind": "compressed_sgd", "step": 0.1, "compressor": {"kind": "rand_k", "fraction": FRACTION}},
            "run": {"updates": updates},
        }
    )


def shared_cable(quick: bool) -> Iterator[Line]:
    """Both engines against the loop written by hand where messages queue for a cable and an update takes many."""
    workers, updates, rounds = (1_000, 200, 3) if quick else (10_000, 2_000, 5)
    this, occupied = shared_scenario(workers, updates), LOAD / workers
    service = hand_written.exponential(1.0)

    def by_hand() -> None:
        hand_written.SharedCluster(workers, updates, TOGETHER, service, CABLE_LATENCY, occupied, occupied).run()

    ways = {
        "hand": by_hand,
        "simpy": partial(asyncsim.simulate, this, engine="simpy"),
        "compiled": partial(asyncsim.simulate, this, engine="compiled"),
    }
    cost = {way: s / (updates * TOGETHER) * 1e9 for way, s in take_turns(ways, rounds).items()}
    where = f"M = {workers:,}, {TOGETHER} gradients an update, compressed, one shared cable"
    shown = f"{cost['compiled']:,.0f} ns against {cost['hand']:,.0f} ns"
    ratio = cost["hand"] / cost["compiled"]
    yield Line(f"compiled, times faster than by hand: {where}", ratio, "×", shown, at_least=30.0)
    shown = f"{cost['simpy']:,.0f} ns against {cost['hand']:,.0f} ns"
    yield Line(f"SimPy model, speed by hand = 1: {where}", cost["hand"] / cost["simpy"], "", shown, at_least=0.7)


#: The largest number of workers that the growth with M is measured for without the compiled engine.
LARGEST_IN_PYTHON = 16_384


def growth(quick: bool) -> list[tuple[str, int, float]]:
    """Return (way, M, nanoseconds a gradient) for growing M, with links and a server queue of constant time."""
    grid = (16, 256, 4096, 65_536) if quick else (16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_000_000)
    points = []
    for workers in grid:
        if workers <= (256 if quick else LARGEST_IN_PYTHON):
            cost = nanoseconds(CONSTANT_LINKS, workers, max(20_000, 10 * workers), 3, of=("hand", "simpy"))
            points += [(way, workers, ns) for way, ns in cost.items()]
        updates = max(100_000 if quick else 1_000_000, 10 * workers)
        cost = nanoseconds(CONSTANT_LINKS, workers, updates, 3, of=("compiled",))
        points.append(("compiled", workers, cost["compiled"]))
    return points


def of_growth(points: list[tuple[str, int, float]]) -> Iterator[Line]:
    """The compiled engine's cost at the largest M against that at the smallest."""
    costs = {workers: ns for way, workers, ns in points if way == "compiled"}
    low, high = min(costs), max(costs)
    name = f"compiled, cost of a gradient at M = {high:,} over that at M = {low}"
    yield Line(name, costs[high] / costs[low], "×", f"{costs[high]:,.0f} ns against {costs[low]:,.0f} ns", at_most=20.0)


MEMORY = """
import resource, sys
sys.path.insert(0, {benchmarks!r})
import asyncsim, simulation
trace = asyncsim.simulate(simulation.scenario(simulation.CONSTANT_LINKS, {workers}, {updates}), engine="compiled")
assert len(trace) == {updates}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2)
"""


def memory(quick: bool, benchmarks: str) -> Iterator[Line]:
    """Peak memory of a process that simulates very many workers and returns the trace."""
    workers, updates = (100_000, 1_000_000) if quick else (1_000_000, 10_000_000)
    done = in_new_process(MEMORY.format(benchmarks=benchmarks, workers=workers, updates=updates))
    if done.returncode:
        raise RuntimeError(done.stderr)
    name = f"compiled, peak memory of {workers:,} workers and {updates:,} gradients, trace included"
    yield Line(name, float(done.stdout), "GiB", "", at_most=4.0)
