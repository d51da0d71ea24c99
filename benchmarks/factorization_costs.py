"""What SEACD costs beside gradients when it factors a photograph, and what a gradient is in operations.

Times are processor time, so that a busy machine does not count for much.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
from threadpoolctl import threadpool_limits
from timing import take_turns

from asyncsim.checksums import checksum
from asyncsim.methods import SEACD
from asyncsim.methods.base import State
from asyncsim.problems.base import Problem
from asyncsim.problems.matrix_factorization import NonNegativeFactorization
from asyncsim.sources.recorded.memory import ROW, Layout, Memory
from asyncsim.trace import Row

#: What a worker sends: a block's gradient, or how far a pass over its coordinates, one after another, has moved them.
Sweep = Literal["jacobi", "gauss_seidel"]
#: Workers, which have a block each.
WORKERS = 2
#: Updates from one evaluation of the energy to the next, and the delay that the method reckons with.
DESCENT, DELAY_BOUND = 100, 4


def seacd(step: float, sweep: Sweep = "jacobi") -> SEACD:
    """Return the method with a step of the safe rule for a smoothness given by hand, as the local one is not known."""
    return SEACD(
        sweep=sweep,
        blocks=WORKERS,
        delay_bound=DELAY_BOUND,
        smoothness=1.8 / (step * (2 * DELAY_BOUND + 1)),
        epsilon=1e-6,
        escape_time=1000,
        descent=DESCENT,
        projection={"set": "non_negative"},
    )


def block_work(problem: NonNegativeFactorization, block: slice) -> float:
    """Return the floating-point operations of a block's gradient, as the problem computes it."""
    (rows, columns), k = problem.shape, problem.rank
    low, high = block.start // k, -(-block.stop // k)
    counts = max(min(high, rows) - low, 0), max(high - max(low, rows), 0)
    return sum(
        min(2.0 * count * other * k + (other + 2.0 * count) * k * k, 4.0 * count * other * k)
        for count, other in zip(counts, (columns, rows), strict=True)
        if count
    )


def work(problem: NonNegativeFactorization) -> dict[str, Any]:
    """Return the operations, in 10⁹, of gradient descent in both ways, and of SEACD's two blocks."""
    (m, n), k = problem.shape, problem.rank
    blocks = [block_work(problem, block) for block in problem.block_bounds(WORKERS)]
    return {
        "residual": 6e-9 * m * n * k,
        "gram": 1e-9 * (4.0 * m * n * k + 3.0 * (m + n) * k * k),
        "blocks": [1e-9 * operations for operations in blocks],
    }


def costs(problem: NonNegativeFactorization, rounds: int) -> dict[str, float]:
    """Return milliseconds of processor time: a pass of SEACD's two blocks, and what is done beside its gradients.

    "every energy" is what an update takes more where its gradient tells f, and so the energy, of the version read.
    """
    x, blocks = problem.initial(0, 0), problem.block_bounds(WORKERS)
    method = seacd(1.0 / problem.smoothness)
    state = method.init(problem, x, WORKERS)[0]
    memory = Memory(Layout(x.size, WORKERS, 0, 24 * x.size + (1 << 17), 8, 2))
    memory.keep(0, state.extra)
    kept = memory.kept(0)
    payload = problem.block_gradient(x, blocks[0])
    row = Row(0, 0, 0, 0, 0, 0)

    def gradients() -> None:
        for block in blocks:
            problem.block_gradient(x, block)

    def gradients_and_energies() -> None:
        for block in blocks:
            method.energy(problem, problem.block_value_and_gradient(x, block)[0], state.extra.lengths)

    once = {
        "pass": gradients,
        "energy": lambda: method.measure(problem, state, "energy"),
        "recording": lambda: (checksum(x), memory.log.__setitem__(0, (0,) * len(ROW.names or ()))),
        "kept": lambda: memory.keep(1, memory.kept(0)),
        "apply": lambda: method.apply(problem, State(x, kept), [payload], [row]),
        "copies": lambda: (x.copy(), np.vdot(x, x), memory.models.__setitem__(1, x)),
    }
    with threadpool_limits(1, "blas"):
        times = take_turns({name: partial(_ten, call) for name, call in once.items()}, rounds)
        found = {name: 1e3 * seconds / 10 for name, seconds in times.items()}
        both = 1e3 * longer(gradients, gradients_and_energies, int(2000 * rounds / (5.0 + found["pass"])))
    return {"pass": found.pop("pass"), "every energy": both / WORKERS, **found}


def longer(short: Callable[[], Any], long: Callable[[], Any], pairs: int) -> float:
    """Return by how many seconds of processor time the second takes longer, of two that hardly differ.

    They take turns, the first one first or last. Compared is where the fastest tenth of each ends, for what other
    programs do to caches lengthens the others.
    """
    seconds: dict[Callable[[], Any], list[float]] = {short: [], long: []}
    for pair in range(pairs):
        for call in (short, long) if pair % 2 else (long, short):
            begin = time.process_time()
            call()
            seconds[call].append(time.process_time() - begin)
    return float(np.quantile(seconds[long], 0.1) - np.quantile(seconds[short], 0.1))


def _ten(call: Callable[[], Any]) -> None:
    for _ in range(10):
        call()


def sweeps(problem: NonNegativeFactorization, rounds: int) -> dict[str, float]:
    """Return nanoseconds per coordinate of a pass of coordinate descent over a block, compiled and in Python.

    "definition" has a block gradient for each coordinate. "python" is what is compiled, run by Python.
    """
    from asyncsim.problems.compiled_sweep import move_rows

    x, step, half = problem.initial(0, 0), 1.0 / problem.smoothness, problem.block_bounds(WORKERS)[0].stop
    few, rows = 20, 2
    arrays = [np.ones((1, rows, problem.rank)) for _ in range(2)] + [np.ones((1, problem.rank, problem.rank))]
    size = rows * problem.rank
    calls: dict[str, tuple[int, Callable[[], Any]]] = {
        "compiled": (half, lambda: problem.sweep(x, slice(0, half), step)),
        "gradient alone": (half, lambda: problem.block_gradient(x, slice(0, half))),
        "definition": (few, lambda: Problem.sweep(problem, x, slice(0, few), step)),
        "python": (size, lambda: move_rows.py_func(*arrays, 0, size, 1e-9)),
    }
    with threadpool_limits(1, "blas"):
        times = take_turns({name: call for name, (_, call) in calls.items()}, rounds)
    return {name: 1e9 * times[name] / count for name, (count, _) in calls.items()}
