"""Local SGD: workers take several steps by themselves, and send how far they have come."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from asyncsim.compressors import AnyCompressor
from asyncsim.methods.base import BYTES_PER_NUMBER, Method, State
from asyncsim.methods.compressed import OnLoss, compressed, sum_of
from asyncsim.methods.perturbed import mean_of
from asyncsim.problems.base import Problem
from asyncsim.spec import Positive
from asyncsim.trace import Row


class LocalSGD(Method):
    """Local SGD: H = `local_steps` steps at the worker for each message.

    From the version x that it read a worker makes z_0 = x, z_{h+1} = z_h − η g_h with η = `step` and a fresh stochastic
    gradient g_h at z_h, and sends Δ = x − z_H. The server moves by the mean of the K messages of an update,

        x_{t+1} = x_t − (1/K) Σ Δ,

    which in rounds of all workers (`policy.kind = "sync"`) is the mean of their z_H. On other traces Δ is stale, as a
    gradient would be. H = 1 is plain SGD. The gradients of a worker's draw k are those at the addresses kH … kH + H − 1
    of its draws, so no two are the same; a simulated worker takes as many service times for a message.

    With a `compressor` C a worker sends C(e + Δ) and remembers the error, e ← e + Δ − C(e + Δ); `on_loss` is that of
    `compressed_sgd`.

    Source: Stich 2019, "Local SGD converges fast and communicates little", Algorithm 1 with equally long local runs;
    with a compressor, Basu, Data, Karakus, Diggavi 2019, "Qsparse-local-SGD".

    >>> class Bowl(Problem):
    ...     dimension: int = 1
    ...     def gradient(self, x): return x
    >>> method = LocalSGD(step=0.5, local_steps=3)
    >>> state, _ = method.init(Bowl(), np.array([8.0]), workers=1)
    >>> row = Row(seed=7, replica=0, worker=0, draw=0, update=0)
    >>> sent, _ = method.message(Bowl(), state.x, None, row)
    >>> method.apply(Bowl(), state, [sent], [row]).x.tolist()
    [1.0]
    """

    kind: Literal["local_sgd"] = "local_sgd"
    step: Positive
    local_steps: Annotated[int, Field(ge=1, le=1_000_000)]
    compressor: AnyCompressor | None = None
    on_loss: OnLoss = "restore"

    @property
    def batched(self) -> bool:  # type: ignore[override]
        """Whether replicas run as a batch: a compressor takes one vector at a time."""
        return self.compressor is None

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        """Whether workers have errors: those of a compressor."""
        return self.compressor is not None

    @property
    def gradients_per_message(self) -> int:  # type: ignore[override]
        """H."""
        return self.local_steps

    def check(self, problem: Problem, workers: int) -> None:
        """Raise ValueError where compressor or losses do not go together with the problem."""
        if self.compressor is not None:
            self.compressor.check(problem.dimension)
        if self.local_steps > 1 and hasattr(problem, "played_loss"):
            raise ValueError("an online problem has one loss for each message: local_steps must be 1")

    def message_bytes(self, problem: Problem, workers: int) -> tuple[int, int]:
        """Return the bytes of a message up, compressed or not, and of the model down."""
        whole = BYTES_PER_NUMBER * problem.dimension
        return whole if self.compressor is None else self.compressor.nbytes(problem.dimension), whole

    def init(self, problem: Problem, x0: np.ndarray, workers: int) -> tuple[State, list[Any]]:
        """Return the state at version 0, and every worker without an error."""
        self.check(problem, workers)
        return State(x0), [None if self.compressor is None else np.zeros(x0.size) for _ in range(workers)]

    def message(self, problem: Problem, x_read: np.ndarray, memory: Any, row: Row) -> tuple[Any, Any]:
        """Return how far H steps go from the version read, or that compressed and the error after it."""
        x = x_read
        for local in range(self.local_steps):
            address = Row(row.seed, row.replica, row.worker, row.draw * self.local_steps + local, block=row.block)
            x = x - self.step * problem.stochastic_gradient(x, address)
        if self.compressor is None:
            return x_read - x, memory
        return compressed(self.compressor, memory + (x_read - x), row)

    def apply(self, problem: Problem, state: State, payloads: list[Any], rows: list[Row]) -> State:
        """Return the state after the mean of the ways that were sent."""
        if self.compressor is None:
            return State(state.x - mean_of(payloads))
        return State(state.x - sum_of(self.compressor, payloads) / len(rows))

    def lost(self, payload: Any, memory: Any) -> Any:
        """Return the memory with what was lost in it again, or without, as `on_loss` says."""
        if self.compressor is None or self.on_loss == "drop":
            return memory
        return memory + self.compressor.decode(payload)
