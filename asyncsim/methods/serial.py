"""SEACD without asynchrony: one worker that updates one block after another, as plain loops.

This is the algorithm as it stands on paper, with no messages, no server and no state machine. The event-driven method
gives the same bits on the trace of one worker whose gradients take no time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from asyncsim.methods.perturbation import in_ball
from asyncsim.methods.seacd import SEACD, squared_length, swacd
from asyncsim.problems.base import Problem
from asyncsim.trace import Row


class Point(NamedTuple):
    """A point, the squared lengths of the last τ steps to it, the newest last, and the block updates made so far."""

    x: np.ndarray
    lengths: np.ndarray
    updates: int


class SerialRun(NamedTuple):
    """Every version of a run, shape (updates + 1, d), the number of perturbations, and whether it ended itself."""

    iterates: np.ndarray
    perturbations: int
    finished: bool

    @property
    def x(self) -> np.ndarray:
        """The last version."""
        return self.iterates[-1]


class OutOfUpdates(Exception):
    """The run has made as many updates as it may."""


class Serial:
    """One serial run: Algorithms 1 and 3-5 of Bornstein 2021, as corrected in `SEACD`, each a function of its own."""

    def __init__(self, method: SEACD, problem: Problem, *, seed: int, replica: int, updates: int):
        self.method, self.problem, self.updates = method, problem, updates
        self.address = seed, replica
        self.known = method.parameters(problem)
        self.descent = method.descent or max(method.delay_bound, method.window or method.blocks)
        self.versions: list[np.ndarray] = []

    def update(self, point: Point) -> Point:
        """Return the point after one block has been moved; blocks take turns."""
        if point.updates == self.updates:
            raise OutOfUpdates
        method, x = self.method, point.x.copy()
        block = method.bounds(self.problem)[point.updates % method.blocks]
        sent = swacd(self.problem, x, block, self.known.step, method.sweep)
        moved = x[block] - self.known.step * sent if method.sweep == "jacobi" else x[block] + sent
        if method.projection is not None:
            moved = method.projection(moved)
        squared = float(squared_length(moved - x[block]))
        x[block] = moved
        self.versions.append(x)
        return Point(x, np.append(point.lengths[1:], squared), point.updates + 1)

    def energy(self, point: Point) -> float:
        """Return the energy at a point."""
        return float(self.method.energy(self.problem, self.problem.value(point.x), point.lengths))

    def at_rest(self, x: np.ndarray, updates: int) -> Point:
        """Return a point with no steps to it."""
        return Point(x, np.zeros(self.method.delay_bound), updates)

    def gacd(self, point: Point) -> Point:
        """Return the point after n block updates, or after one that is long enough."""
        for _ in range(self.descent):
            point = self.update(point)
            if point.lengths[-1] >= self.method.long_enough(self.known):
                break
        return point

    def pacd(self, point: Point) -> Point:
        """Return the point T block updates after a perturbation, which happens within the last update so far."""
        row = Row(*self.address, worker=-1, draw=-1, update=point.updates - 1)
        y = point.x + in_ball(row, point.x.size, self.known.step * self.known.radius)
        if self.method.projection is not None:
            y = self.method.projection(y)
        self.versions[-1] = y
        point = self.at_rest(y, point.updates)
        for _ in range(self.known.escape_time):
            point = self.update(point)
        return point

    def seacd(self, x0: np.ndarray) -> SerialRun:
        """Return the run from x0 to its own end, or to as many updates as it may make."""
        self.versions = [x0]
        point, perturbations, finished = self.at_rest(x0, 0), 0, False
        energy = self.energy(point)
        try:
            while not finished:
                point = self.gacd(point)
                now = self.energy(point)
                if now - energy <= -self.known.decrease:
                    energy = now
                    continue
                before, lowest = point.x, float(self.problem.value(point.x))
                perturbations += 1
                point = self.pacd(point)
                if self.energy(point) - lowest <= -self.known.decrease:
                    point = self.at_rest(point.x, point.updates)
                    energy = self.energy(point)
                else:
                    self.versions[-1], finished = before, True
        except OutOfUpdates:
            pass
        return SerialRun(np.array(self.versions), perturbations, finished)


def serial_seacd(method: SEACD, problem: Problem, *, updates: int, seed: int = 0, replica: int = 0) -> SerialRun:
    """Run SEACD serially: one worker, blocks in turn, no staleness.

    Parameters
    ----------
    method, problem
        As for a replay; `method.momentum` must be 0.
    updates
        The most block updates to make.
    seed, replica
        They address the perturbations and the problem's start.

    >>> from asyncsim.problems import Quadratic
    >>> bowl = Quadratic(eigenvalues=(1.0, 0.5, 1.0))
    >>> method = SEACD(delay_bound=1, epsilon=1e-3, blocks=3, escape_time=60)
    >>> run = serial_seacd(method, bowl, updates=1000)
    >>> run.finished, run.perturbations, bool(bowl.value(run.x) < 1e-5)
    (True, 1, True)
    """
    if method.momentum > 0.0:
        raise ValueError("momentum = 0 fails: serial SEACD is not accelerated")
    x0 = np.asarray(problem.initial(seed, replica), dtype=np.float64)
    method.check(problem, 1)
    return Serial(method, problem, seed=seed, replica=replica, updates=updates).seacd(x0)
