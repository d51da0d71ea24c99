"""Mem-SGD: sparsified steps, with a memory of what is left of them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from asyncsim.compressors import AnyCompressor
from asyncsim.methods.base import BYTES_PER_NUMBER, Method, State
from asyncsim.methods.compressed import OnLoss, compressed, sum_of
from asyncsim.problems.base import Problem
from asyncsim.spec import Positive
from asyncsim.trace import Row


class MemSGD(Method):
    """Stochastic gradient descent whose workers compress steps, not gradients.

    A worker sends C(a) in place of its step and remembers the rest, in units of steps:

        a = m + η_t g,   m ← a − C(a),   η_t = `step` / (`shift` + t),

    with t the worker's own draw, m its memory, 0 at first, and C the `compressor`. The server moves by the mean of the
    K messages of an update, x ← x − (1/K) Σ C(a). Since steps fall, a memory in units of gradients (`compressed_sgd`)
    would let an old gradient go in with a new step; here it keeps the step that it had when it was computed.

    For a μ-strongly convex f the suboptimality falls as 1/t, as that of plain SGD does, with `step` of the order of 1/μ
    and `shift` at least d/k for a compressor that sends k of d coordinates: with steps that fall faster at the
    beginning than the memory is emptied, the memory would dominate. `on_loss` is that of `compressed_sgd`.

    Source: Stich, Cordonnier, Jaggi 2018, "Sparsified SGD with memory", Algorithm 1 and Theorem 2.4, where
    η_t = 8/(μ(a + t)). Its several workers (Algorithm 2) write to a shared model, each its own sparse steps; here they
    send them.

    >>> from asyncsim.compressors import TopK
    >>> class Bowl(Problem):
    ...     dimension: int = 2
    ...     def gradient(self, x): return x - np.array([3.0, 1.0])
    >>> method = MemSGD(step=1.0, shift=2.0, compressor=TopK(k=1))
    >>> state, (memory,) = method.init(Bowl(), np.zeros(2), workers=1)
    >>> sent, memory = method.message(Bowl(), state.x, memory, Row(seed=7, replica=0, worker=0, draw=0))
    >>> method.apply(Bowl(), state, [sent], [Row(seed=7, replica=0, worker=0, draw=0, update=0)]).x.tolist()
    [1.5, 0.0]
    >>> memory.tolist()
    [0.0, -0.5]
    """

    kind: Literal["mem_sgd"] = "mem_sgd"
    step: Positive
    shift: Positive
    compressor: AnyCompressor
    on_loss: OnLoss = "restore"
    batched: ClassVar[bool] = False
    remembers: ClassVar[bool] = True

    def check(self, problem: Problem, workers: int) -> None:
        """Raise ValueError where the compressor cannot take the problem's gradients."""
        self.compressor.check(problem.dimension)

    def message_bytes(self, problem: Problem, workers: int) -> tuple[int, int]:
        """Return the bytes of a compressed message up, and of the model down."""
        return self.compressor.nbytes(problem.dimension), BYTES_PER_NUMBER * problem.dimension

    def init(self, problem: Problem, x0: np.ndarray, workers: int) -> tuple[State, list[Any]]:
        """Return the state at version 0, and every worker with an empty memory."""
        self.check(problem, workers)
        return State(x0), [np.zeros(x0.size) for _ in range(workers)]

    def message(self, problem: Problem, x_read: np.ndarray, memory: Any, row: Row) -> tuple[Any, Any]:
        """Return C(m + ηg) for the version read, and what is left of it."""
        step = self.step / (self.shift + row.draw)
        return compressed(self.compressor, memory + step * problem.stochastic_gradient(x_read, row), row)

    def apply(self, problem: Problem, state: State, payloads: list[Any], rows: list[Row]) -> State:
        """Return the state after the mean of the steps that were sent."""
        return State(state.x - sum_of(self.compressor, payloads) / len(rows))

    def lost(self, payload: Any, memory: Any) -> Any:
        """Return the memory with what was lost in it again, or without, as `on_loss` says."""
        return memory if self.on_loss == "drop" else memory + self.compressor.decode(payload)
