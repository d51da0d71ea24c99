"""What every method is: arithmetic at the worker and arithmetic at the server, and nothing about time.

The same object runs in a replay and inside a real backend, so a method is never written twice.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np

from asyncsim.completed import Completed
from asyncsim.problems.base import Problem
from asyncsim.spec import Spec
from asyncsim.trace import Row

#: Bytes of one number on the wire.
BYTES_PER_NUMBER = 8


class State(NamedTuple):
    """The server's side of a run: what it publishes, what else the method keeps, and what it asks of the schedule.

    `x` is what workers read of this version: a vector of the method's `size`, shape (size,), or (replicas, size) when
    replicas run as a batch. For most methods that is the model itself, size = d; `Method.model` says where the model is
    in it. `request` is "go", "barrier" (let the workers finish, discard what they send, start them all from the new
    model) or "stop".
    """

    x: np.ndarray
    extra: Any = None
    request: str = "go"


class Method(Spec):
    """A frozen rule that turns gradients into updates.

    Whatever moves the model happens inside `apply`, so that a version of the model names one point.

    What the server publishes as a version is a vector of `size` numbers, d of them unless a method says otherwise; a
    read, a checksum and a message down are of all of it. `model` gives the d coordinates in it that metrics, final
    iterates and stopping rules look at. So a method may tell its workers more than the model (`init`, given x0 of shape
    (d,), returns a state whose x has shape (size,)), or keep a model for each node of a graph.

    A method whose workers' memory changes says ``remembers = True`` and ``batched = False``. A worker's memory is that
    of all messages that it has computed, in order of its draws, whatever became of them. So a replay computes those of
    discarded gradients too, and of those lost on the way, after which `lost` follows; a gradient that was cancelled, or
    lost before it was computed, leaves no trace in the memory. (What every worker keeps alike, and never changes, is no
    such memory: where replicas run as a batch, `message` is given worker 0's.) A method that only takes one model at a
    time says ``batched = False`` and no more.

    `message` must look at no more of a row than its address and block: in a real run, and where a gradient is not
    applied, update is −1 and staleness 0.
    """

    batched: ClassVar[bool] = True
    #: Whether a worker's memory says something about the messages that it has computed.
    remembers: ClassVar[bool] = False
    #: Gradients that a worker computes, one after another, for one message.
    gradients_per_message: ClassVar[int] = 1
    #: What `measure` can tell about a state beside the model: names that metrics may record.
    measures: ClassVar[tuple[str, ...]] = ()

    def check(self, problem: Problem, workers: int) -> None:
        """Raise ValueError where problem, number of workers and method do not go together."""

    def size(self, problem: Problem, workers: int) -> int:
        """Return how many numbers the server publishes as a version."""
        return problem.dimension

    def model(self, problem: Problem, x: np.ndarray) -> np.ndarray:
        """Return the model, shape (…, d), that a version of shape (…, size) stands for."""
        return x

    def message_bytes(self, problem: Problem, workers: int) -> tuple[int, int]:
        """Return the bytes on the wire of a message (to the server, to a worker); 8 for each number published."""
        size = BYTES_PER_NUMBER * self.size(problem, workers)
        return size, size

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


def complete(own: Any) -> Any:
    """Return a method with every function: a user's object that leaves some out gets the defaults of `Method`.

    >>> class Halving:
    ...     def init(self, problem, x0, workers): return State(x0), [None] * workers
    ...     def message(self, problem, x_read, memory, row): return None, memory
    ...     def apply(self, problem, state, payloads, rows): return State(state.x / 2)
    >>> complete(Halving()).batched, complete(Halving()).measures
    (False, ())
    """
    return own if isinstance(own, Method) else Completed(own, Method, "method")
