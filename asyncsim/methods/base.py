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
    a memory at the workers, or takes one model at a time, says ``batched = False``.
    """

    batched: ClassVar[bool] = True

    def init(self, problem: Problem, x0: np.ndarray, workers: int) -> tuple[State, list[Any]]:
        """Return the server's state at version 0 and one memory per worker (None where the method keeps none)."""
        return State(x0), [None] * workers

    def message(self, problem: Problem, x_read: np.ndarray, memory: Any, row: Row) -> tuple[Any, Any]:
        """Return what the worker sends for the version that it read, and its memory afterwards."""
        return problem.stochastic_gradient(x_read, row), memory

    def apply(self, problem: Problem, state: State, payloads: list[Any], rows: list[Row]) -> State:
        """Return the state after one update made of these messages, which arrived in this order."""
        raise NotImplementedError

    def lost(self, payload: Any, memory: Any) -> Any:
        """Return the worker's memory after a message of its was lost on the way."""
        return memory
