"""SEACD's energy at every version of a replay, from the gradients that are computed there anyway."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from asyncsim.methods.base import State
from asyncsim.methods.seacd import SEACD
from asyncsim.problems.base import Problem
from asyncsim.trace import Row


class WithEnergies:
    """SEACD for one replay, the same to the bit, which learns f of a version from the first gradient computed there.

    An energy needs f(x), and f(x) by itself may take as long as a block's gradient; `block_value_and_gradient` has
    both for little more than one where the problem's products give it. But gradients of a version are computed after
    it. So `measure` answers NaN and keeps the version, `message` finds its energy, and `complete` puts what was found
    into the measurements. A version of which no gradient comes is evaluated plainly, once more than two of them for
    each worker are waiting, or at the end; so is the start, and so is all where replicas run as a batch.

    Parameters
    ----------
    method
        With `sweep` = "jacobi": a pass of coordinate descent does not tell f where it began.

    >>> from asyncsim.problems import MatrixFactorization
    >>> problem = MatrixFactorization(rows=9, columns=7, rank=2)
    >>> watched = WithEnergies(SEACD(delay_bound=1, epsilon=0.1, blocks=2))
    >>> state, memories = watched.init(problem, problem.initial(0, 0), 1)
    >>> for update in range(2):
    ...     row = Row(0, 0, 0, update, update)
    ...     state = watched.apply(problem, state, [watched.message(problem, state.x, 1, row)[0]], [row])
    ...     found = watched.measure(problem, state, "energy"), watched.method.measure(problem, state, "energy")
    >>> [str(number) for number in watched.facts(problem, state)["perturbations"].shape], np.isnan(found[0]).item()
    ([], True)
    >>> bool(np.isclose(watched.energies[0, 2], found[1], rtol=1e-12))
    True
    """

    def __init__(self, method: SEACD):
        self.method = method
        #: The energy by (replica, version).
        self.energies: dict[tuple[int, int], float] = {}

    def __getattr__(self, name: str) -> Any:
        """Return what the method has."""
        return getattr(self.method, name)

    def init(self, problem: Problem, x0: np.ndarray, workers: int) -> tuple[State, list[Any]]:
        """Return what the method does; another replica begins."""
        self.replica, self.version, self.most = -1, 0, 2 * workers
        #: The models whose f is not known yet, with the steps to them, by version.
        self.waiting: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        return self.method.init(problem, x0, workers)

    def message(self, problem: Problem, x_read: np.ndarray, memory: Any, row: Row) -> tuple[Any, Any]:
        """Return what the method does, and find the energy of the version read where it is still to be found."""
        read = row.update - row.staleness if x_read.ndim == 1 else None
        if read not in self.waiting or self.waiting[read][0] is not x_read:  # not the version, where reads mix several
            return self.method.message(problem, x_read, memory, row)
        block = self.method.bounds(problem)[int(self.method.block_of(row, memory))]
        value, gradient = problem.block_value_and_gradient(x_read, block)
        self._found(problem, read, value)
        return gradient, memory

    def apply(self, problem: Problem, state: State, payloads: list[Any], rows: list[Row]) -> State:
        """Return what the method does."""
        if state.x.ndim == 1:
            self.replica, self.version = rows[0].replica, rows[0].update + 1
        return self.method.apply(problem, state, payloads, rows)

    def measure(self, problem: Problem, state: State, name: str) -> np.ndarray:
        """Return what the method does, but NaN for an energy that is to be found."""
        if name != "energy" or state.x.ndim > 1 or self.version == 0:
            return self.method.measure(problem, state, name)
        self.waiting[self.version] = state.x, state.extra.lengths
        if len(self.waiting) > self.most:
            self._evaluate(problem)
        return np.array(math.nan)

    def facts(self, problem: Problem, state: State) -> dict[str, np.ndarray]:
        """Return what the method does; the replica is at its end."""
        while self.waiting:
            self._evaluate(problem)
        return self.method.facts(problem, state)

    def complete(self, measurements: dict[str, np.ndarray], metric: int) -> dict[str, np.ndarray]:
        """Return the measurements with the energies found, `metric` being the energy's number there."""
        value = measurements["value"].copy()
        for place in np.flatnonzero((measurements["metric"] == metric) & np.isnan(value)).tolist():
            key = int(measurements["replica"][place]), int(measurements["update"][place])
            value[place] = self.energies.get(key, math.nan)
        return {**measurements, "value": value}

    def _evaluate(self, problem: Problem) -> None:
        """Evaluate f of the version that has waited longest."""
        version = next(iter(self.waiting))
        self._found(problem, version, problem.value(self.waiting[version][0]))

    def _found(self, problem: Problem, version: int, loss: Any) -> None:
        _, lengths = self.waiting.pop(version)
        self.energies[self.replica, version] = float(self.method.energy(problem, loss, lengths))
