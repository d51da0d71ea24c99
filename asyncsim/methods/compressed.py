"""Compressed SGD: workers send few bytes in place of a gradient, and remember what they have not sent."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from asyncsim.compressors import AnyCompressor
from asyncsim.methods.base import BYTES_PER_NUMBER, Method, State
from asyncsim.methods.steps import STEP_RULES, StepRule, StepRuleName
from asyncsim.problems.base import Problem
from asyncsim.spec import NonNegative, Positive, refuse
from asyncsim.trace import Row

#: What becomes of the content of a message that is lost: it returns to the worker's memory, or is gone.
OnLoss = Literal["restore", "drop"]


class Memory(NamedTuple):
    """What a worker remembers: its `error`, what it has not sent yet; and how often errors had been reset by then."""

    error: np.ndarray
    resets: float = 0.0


class Sent(NamedTuple):
    """A message where the server must know the errors: the compressed vector, and the worker's error after it."""

    payload: Any
    error: np.ndarray


class Ledger(NamedTuple):
    """What the server keeps where errors are reset.

    `errors` has each worker's error as last heard of and `total` their sum; `of` is K, the messages of an update.
    `anchor` is x_{t'}, the point after the last reset, `taken` is t − t', and `since` the version that it made.
    """

    errors: tuple[np.ndarray, ...]
    total: np.ndarray
    of: int
    anchor: np.ndarray
    taken: int = 0
    since: int = 0
    resets: int = 0


def compressed(compressor: Any, vector: np.ndarray, row: Row) -> tuple[Any, np.ndarray]:
    """Return what is sent in place of a vector, and what is left of the vector."""
    payload = compressor.encode(vector, (row.seed, row.replica, row.worker, row.draw))
    return payload, vector - compressor.decode(payload)


def sum_of(compressor: Any, payloads: list[Any], steps: list[float] | None = None) -> np.ndarray:
    """Return the sum of what was sent, each times its step, in order of arrival."""
    total: Any = None
    for place, payload in enumerate(payloads):
        part = compressor.decode(payload)
        part = part if steps is None else steps[place] * part
        total = part if total is None else total + part
    return np.asarray(total)


class CompressedSGD(Method):
    """Stochastic gradient descent from compressed gradients, with error feedback, noise, and resets of the errors.

    Worker i computes the gradient g at the version x that it read and sends C(a) in place of

        a = e^(i) + g + ξ,   then   e^(i) ← a − C(a),

    with C the `compressor`, e^(i) the worker's error, 0 at first, and ξ ~ N(0, r² I) with r = `noise` per coordinate. ξ
    is the same for all workers at the same draw, so in rounds it does not average out. Without `error_feedback` e^(i)
    stays 0, and what is not sent is lost. Update t takes the K messages that it is made of:

        x_{t+1} = x_t − (1/K) Σ γ C(a),   γ = `step`, or as `step_rule` says.

    So with e_t = (1/K) Σ_i e^(i) over all workers, x_t − γ e_t is where plain SGD with the same gradients would be. In
    rounds (`policy.kind = "sync"`) K is the number of workers, e_t the mean error, and this is Algorithm 1 of the
    paper; on other traces it is asynchronous compressed SGD: gradients are stale, and errors wait at their workers.

    Resets. Let t' be the update of the last reset (0 at first) and x_{t'} the point after it. Where

        t − t' > I = `reset_after`   or   ‖x_{t'} − (x_t − γ e_t)‖ > R = `reset_radius`

    (one left out never holds), x_t becomes x_t − γ e_t if f(x_t − γ e_t) < f(x_{t'}) and x_{t'} if not; all errors
    become 0, and t' becomes t. So t − t' never exceeds I + 1. The paper has f(x_t) in the test, while it is to say
    whether the point that is moved to is lower: that is `reset_test` = "printed". f is the objective itself, two
    evaluations at the server for each reset. A reset is part of the update before it, so that the version that workers
    read is the point at which Algorithm 1 takes its gradient; the last version has been tested too, though the paper
    returns it untested.

    The server publishes the number of resets as a last number beside the model (size d + 1), so that a worker that
    reads the model sees that its error has become 0. It must know the errors: each message carries the worker's, which
    makes it 8d bytes longer. (For the norm alone a linear sketch of the error would do, and much shorter.) A message
    computed from a version before the last reset is void: it holds an error that the reset has already added or thrown
    away. It counts among the K but adds nothing, an update made of void messages alone leaves the model, and such an
    update does not count in t − t'. In rounds there are none.

    Parameters
    ----------
    compressor
        C, one of `asyncsim.compressors`.
    on_loss
        What becomes of a message that is lost on its way: "restore", its content returns to the worker's error; "drop",
        it is gone.
    step_rule
        As in `SGD`; only "constant" where there are resets. "adaptive_1" has α = 0.9.

    Bytes of a message: `compressor.nbytes(d)` up, 8d down; with resets and error feedback 8d more up, 8 more down.
    Models have shape (d,); replicas run one by one, since a compressor takes one vector.

    Source: Avdiukhin, Yaroslavtsev 2021, "Escaping saddle points with compressed SGD", Algorithm 1 and its distributed
    setting. There e_t is the mean of the errors; without rounds their sum over K keeps x_t − γ e_t what it is.

    >>> from asyncsim.compressors import TopK
    >>> class Bowl(Problem):
    ...     dimension: int = 2
    ...     def gradient(self, x): return x - np.array([3.0, 1.0])
    >>> method = CompressedSGD(step=0.5, compressor=TopK(k=1))
    >>> state, (memory,) = method.init(Bowl(), np.zeros(2), workers=1)
    >>> for update in range(2):
    ...     row = Row(seed=7, replica=0, worker=0, draw=update, update=update)
    ...     sent, memory = method.message(Bowl(), state.x, memory, row)
    ...     state = method.apply(Bowl(), state, [sent], [row])
    >>> state.x.tolist(), memory.error.tolist()
    ([1.5, 1.0], [-1.5, 0.0])
    """

    kind: Literal["compressed_sgd"] = "compressed_sgd"
    step: Positive
    compressor: AnyCompressor
    error_feedback: bool = True
    noise: NonNegative = 0.0
    reset_after: Annotated[int, Field(ge=1)] | None = None
    reset_radius: Positive | None = None
    reset_test: Literal["corrected", "printed"] = "corrected"
    on_loss: OnLoss = "restore"
    step_rule: StepRuleName = "constant"
    batched: ClassVar[bool] = False

    @model_validator(mode="after")
    def _used(self) -> CompressedSGD:
        if self.reset_test != "corrected" and not self.resets:
            raise refuse("needs resets: give reset_after or reset_radius", "reset_test")
        if self.on_loss != "restore" and not self.error_feedback:
            raise refuse("belongs to error_feedback; without it what is lost is lost", "on_loss")
        if self.step_rule != "constant" and self.resets:
            raise refuse("must be 'constant' where errors are reset", "step_rule")
        return self

    @property
    def resets(self) -> bool:
        """Whether errors are ever reset."""
        return self.reset_after is not None or self.reset_radius is not None

    @property
    def tells_errors(self) -> bool:
        """Whether messages carry the workers' errors."""
        return self.resets and self.error_feedback

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        """Whether workers have errors."""
        return self.error_feedback

    @property
    def measures(self) -> tuple[str, ...]:  # type: ignore[override]
        """The norm of e_t and the number of resets, which a server knows that resets."""
        return ("memory", "resets") if self.resets else ()

    @cached_property
    def rule(self) -> StepRule:
        """The step rule as an object."""
        return STEP_RULES[self.step_rule](self.step)

    def check(self, problem: Problem, workers: int) -> None:
        """Raise ValueError where the compressor cannot take the problem's gradients."""
        self.compressor.check(problem.dimension)

    def size(self, problem: Problem, workers: int) -> int:
        """Return d, or d + 1 where workers must hear of resets."""
        return problem.dimension + self.tells_errors

    def model(self, problem: Problem, x: np.ndarray) -> np.ndarray:
        """Return the first d numbers of a version."""
        return x[..., : problem.dimension]

    def message_bytes(self, problem: Problem, workers: int) -> tuple[int, int]:
        """Return the bytes of a message up, with the error where that is told, and of one down."""
        told = BYTES_PER_NUMBER * problem.dimension if self.tells_errors else 0
        return self.compressor.nbytes(problem.dimension) + told, BYTES_PER_NUMBER * self.size(problem, workers)

    def init(self, problem: Problem, x0: np.ndarray, workers: int) -> tuple[State, list[Any]]:
        """Return the state at version 0, and every worker without an error."""
        self.check(problem, workers)
        memories = [Memory(np.zeros(x0.size)) if self.error_feedback else None for _ in range(workers)]
        if not self.resets:
            return State(x0, self.rule.start(workers, ())), memories
        # Arrays of their own, since a run in shared memory makes room for as many as there are at the beginning.
        errors = tuple(np.zeros(x0.size) for _ in range(workers)) if self.error_feedback else ()
        return State(self._published(x0, 0), Ledger(errors, np.zeros(x0.size), 1, x0)), memories

    def _published(self, x: np.ndarray, resets: int) -> np.ndarray:
        return np.append(x, float(resets)) if self.tells_errors else x

    # --- at the worker ------------------------------------------------------------------------------------------------

    def message(self, problem: Problem, x_read: np.ndarray, memory: Any, row: Row) -> tuple[Any, Any]:
        """Return C(e + g + ξ) for the version read, and the error after it."""
        vector = problem.stochastic_gradient(self.model(problem, x_read), row)
        if self.noise > 0.0:
            vector = vector + self.noise * shared_normals(row, problem.dimension)
        if not self.error_feedback:
            return self.compressor.encode(vector, (row.seed, row.replica, row.worker, row.draw)), memory
        resets = float(x_read[-1]) if self.tells_errors else 0.0
        if resets == memory.resets:
            vector = memory.error + vector
        payload, error = compressed(self.compressor, vector, row)
        return Sent(payload, error) if self.tells_errors else payload, Memory(error, resets)

    def lost(self, payload: Any, memory: Any) -> Any:
        """Return the memory with what was lost in it again, or without, as `on_loss` says."""
        if memory is None or self.on_loss == "drop":
            return memory
        content = self.compressor.decode(payload.payload if self.tells_errors else payload)
        return memory._replace(error=memory.error + content)

    # --- at the server ------------------------------------------------------------------------------------------------

    def apply(self, problem: Problem, state: State, payloads: list[Any], rows: list[Row]) -> State:
        """Return the state after a step of the mean of what was sent, and after a reset if one is due."""
        if self.resets:
            return self._apply_and_reset(problem, state, payloads, rows)
        if self.step_rule == "constant":
            return State(state.x - (self.step / len(rows)) * sum_of(self.compressor, payloads), state.extra)
        steps, memory = self.rule.steps(rows, state.extra)
        return State(state.x - sum_of(self.compressor, payloads, steps) / len(rows), memory)

    def _apply_and_reset(self, problem: Problem, state: State, payloads: list[Any], rows: list[Row]) -> State:
        ledger: Ledger = state.extra
        valid = [
            (sent, row) for sent, row in zip(payloads, rows, strict=True) if row.update - row.staleness >= ledger.since
        ]
        if not valid:
            return state
        sent = [message.payload if self.tells_errors else message for message, _ in valid]
        x = self.model(problem, state.x) - (self.step / len(rows)) * sum_of(self.compressor, sent)
        ledger = ledger._replace(of=len(rows), taken=ledger.taken + 1)
        if self.tells_errors:
            ledger = _heard(ledger, valid)
        ahead = x - (self.step / ledger.of) * ledger.total
        late = self.reset_after is not None and ledger.taken > self.reset_after
        far = self.reset_radius is not None and _norm(ledger.anchor - ahead) > self.reset_radius
        if late or far:
            judged = ahead if self.reset_test == "corrected" else x
            x = ahead if problem.value(judged) < problem.value(ledger.anchor) else ledger.anchor
            nothing = np.zeros(x.size)
            errors = (nothing,) * len(ledger.errors)
            ledger = Ledger(errors, nothing, ledger.of, x, 0, rows[0].update + 1, ledger.resets + 1)
        return State(self._published(x, ledger.resets), ledger)

    # --- what is told about a run -------------------------------------------------------------------------------------

    def measure(self, problem: Problem, state: State, name: str) -> np.ndarray:
        """Return ‖e_t‖, or the number of resets."""
        ledger: Ledger = state.extra
        return np.asarray(_norm(ledger.total) / ledger.of if name == "memory" else float(ledger.resets))

    def facts(self, problem: Problem, state: State) -> dict[str, np.ndarray]:
        """Return the number of resets where there are any."""
        return {"resets": np.asarray(state.extra.resets)} if self.resets else {}


def _heard(ledger: Ledger, valid: list[tuple[Any, Row]]) -> Ledger:
    """Return the ledger with the errors that these messages carry."""
    errors, total = list(ledger.errors), ledger.total
    for message, row in valid:
        total = total + (message.error - errors[row.worker])
        errors[row.worker] = message.error
    return ledger._replace(errors=tuple(errors), total=total)


def _norm(x: np.ndarray) -> float:
    """Return ‖x‖, without BLAS, whose threads would change the bits."""
    return float(np.sqrt(np.square(x).sum()))


def shared_normals(row: Row, dimension: int) -> np.ndarray:
    """Return N(0, I) numbers that are the same for all workers at a draw, shape (d,)."""
    from asyncsim import streams

    return streams.normals(row.seed, row.replica, -1, row.draw, streams.NOISE, dimension)
