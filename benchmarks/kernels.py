"""Where compiled code pays in a replay: each step with numpy and with numba, `python benchmarks/kernels.py`.

Prints the table of README.md: nanoseconds for each update and replica, at R = 1000 and d = 10, medians in turns.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import numpy as np  # noqa: E402
from numba import njit  # noqa: E402
from simulation import INSTANT, scenario  # noqa: E402
from timing import take_turns  # noqa: E402

import asyncsim  # noqa: E402
from asyncsim import streams  # noqa: E402
from asyncsim.problems import LeastSquares  # noqa: E402
from asyncsim.slots import plan_slots, rows_by_update  # noqa: E402
from asyncsim.trace import APPLIED, Row  # noqa: E402

REPLICAS, DIMENSION, UPDATES, BATCH, STEP = 1000, 10, 400, 4, 0.01


def rows_in_numpy(trace: Any) -> list[np.ndarray]:
    """Return each replica's applied rows in order of update, and check that its updates are of equal size."""
    found = []
    for place, (_, updates, rows) in enumerate(trace.slices()):
        mine = np.flatnonzero(trace["status"][rows] == APPLIED) + rows.start
        mine = mine[np.argsort(trace["update"][mine], kind="stable")]
        counts = np.bincount(trace["update"][mine], minlength=updates)
        found.append(mine if (counts == counts[0]).all() else mine[:place])
    return found


@njit
def gather(kept: Any, at: Any, out: Any) -> None:
    for r in range(out.shape[0]):
        for i in range(out.shape[1]):
            out[r, i] = kept[at[r], i]


@njit
def keep(kept: Any, at: Any, x: Any) -> None:
    for r in range(x.shape[0]):
        for i in range(x.shape[1]):
            kept[at[r], i] = x[r, i]


@njit
def whole_updates(kept: Any, read_at: Any, kept_at: Any, eigenvalues: Any, x: Any) -> None:
    """Stochastic gradient descent on a quadratic and nothing else: all updates of all replicas in one loop."""
    for t in range(read_at.shape[0]):
        for r in range(x.shape[0]):
            for i in range(x.shape[1]):
                x[r, i] -= STEP * (eigenvalues[i] * kept[read_at[t, r], i])
                kept[kept_at[t + 1, r], i] = x[r, i]


def philox_in_numpy(seed: int, *address: np.ndarray) -> np.ndarray:
    """Return pairs of normal numbers by the formulas of `asyncsim.streams`, each step for all addresses at once."""
    draw, index, worker, replica = np.broadcast_arrays(*address)
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = (np.asarray(part, dtype=np.uint64) & low for part in (draw, index, worker, replica))
    k0, k1 = np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)
    for _ in range(10):
        one, other = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (other >> shift) ^ c1 ^ k0, other & low, (one >> shift) ^ c3 ^ k1, one & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    unit, angle = ((((b << shift | a) >> np.uint64(12)) + 0.5) * 2.0**-52 for a, b in ((c0, c1), (c2, c3)))
    radius, angle = np.sqrt(-2.0 * np.log(unit)), 2.0 * np.pi * angle
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(len(replica), -1)


@njit
def minibatch(x: Any, table: Any, chosen: Any, out: Any) -> None:
    """The gradient of least squares over the chosen samples of each replica."""
    width = x.shape[1]
    for r in range(x.shape[0]):
        out[r] = 0.0
        for sample in chosen[r]:
            slope = -table[sample, width]
            for i in range(width):
                slope += x[r, i] * table[sample, i]
            for i in range(width):
                out[r, i] += slope * table[sample, i] / chosen.shape[1]


def main() -> None:
    """Measure and print."""
    trace = asyncsim.simulate(scenario(INSTANT, 16, UPDATES), replicas=REPLICAS)
    begin, end = (trace["replica"].searchsorted(trace.replicas, side) for side in ("left", "right"))
    ordered = partial(rows_by_update, trace["update"], trace["status"], APPLIED, begin, end, trace.updates)
    rows = ordered()[0].reshape(REPLICAS, UPDATES)
    read_at, kept_at, slots = plan_slots(trace["read_version"], rows, 1)
    read_at, kept_at = (np.ascontiguousarray(table.T) for table in (read_at, kept_at))
    read_slot, kept_slot = read_at // REPLICAS, kept_at // REPLICAS
    x, out = np.ones((2, REPLICAS, DIMENSION))
    kept = np.ones(((slots + 1) * REPLICAS, DIMENSION))
    model = np.dtype((np.void, x[0].nbytes))
    deep, everyone = kept.reshape(slots + 1, REPLICAS, DIMENSION), np.arange(REPLICAS)
    eigenvalues = np.geomspace(1.0, 10.0, DIMENSION)
    problem = LeastSquares(samples=500, dimension=DIMENSION, batch=BATCH)
    table, samples = problem.table, len(problem.table)
    worker, draw = (np.ascontiguousarray(trace[name][rows].T) for name in ("worker", "draw"))

    def each(step: Any) -> Any:
        """Do a step for every update, and forget what it returns."""

        def run() -> None:
            for t in range(UPDATES):
                step(t)

        return run

    def address(t: int) -> tuple[Any, ...]:
        return trace.seed, trace.replicas, worker[t], draw[t]

    def pairs_in_numpy(t: int) -> np.ndarray:
        index = np.arange(DIMENSION // 2) + (streams.NOISE << 24)
        return philox_in_numpy(trace.seed, draw[t][:, None], index, worker[t][:, None], trace.replicas[:, None])

    def fancy_keep(t: int) -> None:
        deep[kept_slot[t], everyone] = x

    def chosen(t: int) -> np.ndarray:
        return streams.integers(*address(t), streams.SAMPLE, BATCH, samples)

    normals = streams.normals(*address(3), streams.NOISE, DIMENSION)
    np.testing.assert_allclose(pairs_in_numpy(3), normals, rtol=1e-12)
    minibatch(x, table, chosen(3), out)
    np.testing.assert_allclose(problem.stochastic_gradient(x, Row(trace.seed, trace.replicas, worker[3], draw[3])), out)

    def one_by_one(t: int) -> Any:
        """Return what numpy does in one update of a quadratic."""
        moved = x - STEP * (eigenvalues * kept.take(read_at[t], axis=0))
        kept.view(model).put(kept_at[t], moved.view(model))

    steps = {
        "rows in order of update": (partial(rows_in_numpy, trace), None, ordered),
        "slots of versions": (None, None, partial(plan_slots, trace["read_version"], rows, 1)),
        "gather the versions read": (
            each(lambda t: deep[read_slot[t], everyone]),
            each(lambda t: kept.take(read_at[t], axis=0)),
            each(lambda t: gather(kept, read_at[t], out)),
        ),
        "keep the new versions": (
            each(fancy_keep),
            each(lambda t: kept.view(model).put(kept_at[t], x.view(model))),
            each(lambda t: keep(kept, kept_at[t], x)),
        ),
        "the whole update, one method and problem": (
            None,
            each(one_by_one),
            lambda: whole_updates(kept, read_at, kept_at, eigenvalues, x),
        ),
        f"{DIMENSION} addressed normal numbers": (
            None,
            each(pairs_in_numpy),
            each(lambda t: streams.normals(*address(t), streams.NOISE, DIMENSION)),
        ),
        f"least squares, {BATCH} samples": (
            None,
            each(lambda t: problem.stochastic_gradient(x, Row(*address(t)))),
            each(lambda t: minibatch(x, table, chosen(t), out)),
        ),
    }
    candidates = {(name, i): run for name, runs in steps.items() for i, run in enumerate(runs) if run is not None}
    seconds = take_turns(candidates, 7)
    for name in steps:
        cells = [seconds.get((name, i)) for i in range(3)]
        shown = ("" if cell is None else f"{cell / (REPLICAS * UPDATES) * 1e9:.1f}" for cell in cells)
        print(f"| {name} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
