"""What every method is: arithmetic at the worker and arithmetic at the server, and nothing about time.

The same object runs in a replay and inside a real backend, so a method is never written twice.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np

from asyncsim.problems.base import Problem
from asyncsim.spec import Spec
from asyncsim.trace import Row


class State(NamedTuple):
    """The server's side of a run: the model `x`, what else the method keeps, and what it asks of the schedule.

    `x` has shape (d,), or (replicas, d) when replicas run as a batch. `request` is "go", "barrier" (let the workers
    finish, discard what they send, start them all from the new model) or "stop".
    """

    x: np.ndarray
    extra: Any = None
    request: str = "go"


class Method(Spec):
    """A frozen rule that turns gradients into updates.

    Whatever moves the model happens inside `apply`, so that a version of the model names one point. A method that keeps
    a memory at the workers, or takes one model at a time, says ``batched = False``. (What every worker keeps alike, and
    never changes, does not count: where replicas run as a batch, `message` is given worker 0's.)
    """

    batched: ClassVar[bool] = True
    #: What `measure` can tell about a state beside the model: names that metrics may record.
    measures: ClassVar[tuple[str, ...]] = ()

    def check(self, problem: Problem, workers: int) -> None:
        """Raise ValueError where problem, number of workers and method do not go together."""

    def init(self, problem: Problem, x0: np.ndarray, workers: int) -> tuple[State, list[Any]]:
        """Return the server's state at version 0 and one memory per worker (None where the method keeps none)."""
        return State(x0), [None] * workers

    def message(self, problem: Problem, x_read: np.ndarray, memory: Any, row: Row) -> tuple[Any, Any]:
        """Return what the worker sends for the version that it read, and its memory afterwards."""
        return problem.stochastic_gradient(x_read, row), memory

    def apply(self, problem: Problem, state: State, payloads: list[Any], rows: list[Row]) -> State:
        """Return the state after one update made of these messages, which arrived in this order."""
        raise NotImplementedError

    def measure(self, problem: Problem, state: State, name: str) -> np.ndarray:
        """Return one of `measures` for a state, shape () or (replicas,)."""
        raise NotImplementedError

    def facts(self, problem: Problem, state: State) -> dict[str, np.ndarray]:
        """Return what a run's last state says about the run, by name, each of shape () or (replicas,)."""
        return {}

    def lost(self, payload: Any, memory: Any) -> Any:
        """Return the worker's memory after a message of its was lost on the way."""
        return memory
