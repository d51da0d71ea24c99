"""Gradient descent, and its variants that leave saddle points by added noise."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from asyncsim.methods.base import Method, State
from asyncsim.methods.perturbation import gaussian, in_ball, on_sphere
from asyncsim.methods.projections import AnyProjection
from asyncsim.methods.sgd import SGD
from asyncsim.problems.base import Problem
from asyncsim.spec import Positive
from asyncsim.trace import Row


def mean_of(payloads: list[np.ndarray]) -> np.ndarray:
    """Return the mean of the gradients of an update, summed in order of arrival."""
    return payloads[0] if len(payloads) == 1 else sum(payloads[1:], payloads[0]) / len(payloads)


class GD(SGD):
    """Gradient descent: what `SGD` is, from exact gradients of f, whatever the problem's mini-batches.

    From an exact saddle it never moves, since every product is exactly 0. With `momentum` it is the heavy ball, with
    `nesterov` as well Nesterov's method.

    >>> GD(step=0.1, momentum=0.9, nesterov=True).momentum
    0.9
    """

    #: Every gradient is that of the whole objective, of which a worker with a share of the data knows only a part.
    takes_whole_gradients: ClassVar[bool] = True

    kind: Literal["gd"] = "gd"  # type: ignore[assignment]

    def message(self, problem: Problem, x_read: np.ndarray, memory: Any, row: Row) -> tuple[Any, Any]:
        """Return ∇f at the version that the worker read."""
        return problem.gradient(x_read), memory


class Waiting(NamedTuple):
    """What perturbed gradient descent keeps: each entry has the replicas' shape, `before` (…, d)."""

    perturbed: np.ndarray  # the update of the last perturbation, very long ago at first
    before: np.ndarray  # the point before it
    value: np.ndarray  # f there
    stopped: np.ndarray
    perturbations: np.ndarray


#: An update so long ago that nothing waits for it.
LONG_AGO = -(2**60)


class PGD(Method):
    """Perturbed gradient descent: where the gradient is small, noise, but at most once in T steps.

    Let g be the mean of an update's exact gradients, η = `step`, T = `escape_time`. An update in which ‖g‖ ≤ `epsilon`,
    and more than T after the last perturbation, adds noise that is uniform in the ball of `radius`; any other subtracts
    ηg. With `decrease` = F the run is judged T updates after each perturbation: where f has not fallen by F since the
    point before it, the model returns to that point, and the method asks to stop.

    Source: Jin, Ge, Netrapalli, Kakade, Jordan 2017, "How to escape saddle points efficiently", Algorithm 1. There a
    perturbation and a gradient step share an iteration; here they are two updates, so that each gradient is one at a
    version.

    >>> class Saddle(Problem):
    ...     def value(self, x): return 0.5 * (x[..., 0] ** 2 - x[..., 1] ** 2)
    ...     def gradient(self, x): return x * np.array([1.0, -1.0])
    >>> method = PGD(step=0.1, epsilon=0.1, radius=0.01, escape_time=50)
    >>> state, _ = method.init(Saddle(), np.zeros(2), workers=1)
    >>> for update in range(40):
    ...     row = Row(seed=7, replica=0, worker=0, draw=update, update=update)
    ...     state = method.apply(Saddle(), state, [Saddle().gradient(state.x)], [row])
    >>> bool(Saddle().value(state.x) < 0)
    True
    """

    kind: Literal["pgd"] = "pgd"
    step: Positive
    epsilon: Positive
    radius: Positive
    escape_time: Annotated[int, Field(ge=1)]
    decrease: Positive | None = None
    projection: AnyProjection | None = None

    #: Every gradient is that of the whole objective, of which a worker with a share of the data knows only a part.
    takes_whole_gradients: ClassVar[bool] = True
    measures: ClassVar[tuple[str, ...]] = ("perturbations",)

    asks_for_barriers: ClassVar[bool] = False

    @property
    def makes_requests(self) -> bool:
        """Whether the method may ask to stop."""
        return self.decrease is not None

    def init(self, problem: Problem, x0: np.ndarray, workers: int) -> tuple[State, list[Any]]:
        """Return the state at version 0; workers keep nothing."""
        shape = x0.shape[:-1]
        extra = Waiting(
            np.full(shape, LONG_AGO), x0, np.zeros(shape), np.zeros(shape, dtype=bool), np.zeros(shape, dtype=np.int64)
        )
        return State(x0, extra), [None] * workers

    def message(self, problem: Problem, x_read: np.ndarray, memory: Any, row: Row) -> tuple[Any, Any]:
        """Return ∇f at the version that the worker read."""
        return problem.gradient(x_read), memory

    def apply(self, problem: Problem, state: State, payloads: list[Any], rows: list[Row]) -> State:
        """Return the state after a gradient step or a perturbation."""
        x, extra, gradient, update = state.x, state.extra, mean_of(payloads), rows[0].update
        small = np.sqrt(np.square(gradient).sum(axis=-1)) <= self.epsilon
        perturb = small & (update - extra.perturbed > self.escape_time) & ~extra.stopped
        moved = x - self.step * gradient
        if perturb.any():
            noise = in_ball(rows[0], x.shape[-1], self.radius)
            moved = np.where(perturb[..., None], x + noise, moved)
            extra = extra._replace(
                perturbed=np.where(perturb, update, extra.perturbed),
                before=np.where(perturb[..., None], x, extra.before),
                perturbations=extra.perturbations + perturb,
            )
            if self.decrease is not None:
                extra = extra._replace(value=np.where(perturb, problem.value(x), extra.value))
        moved = moved if self.projection is None else self.projection(moved)
        moved = np.where(extra.stopped[..., None], x, moved)
        if self.decrease is not None and (update - extra.perturbed == self.escape_time).any():
            judged = (update - extra.perturbed == self.escape_time) & ~extra.stopped
            stopped = judged & (problem.value(moved) - extra.value > -self.decrease)
            moved = np.where(stopped[..., None], extra.before, moved)
            extra = extra._replace(stopped=extra.stopped | stopped)
        return State(moved, extra, "stop" if extra.stopped.all() else "go")

    def measure(self, problem: Problem, state: State, name: str) -> np.ndarray:
        """Return how often each replica was perturbed."""
        return state.extra.perturbations


class PSGD(SGD):
    """Perturbed stochastic gradient descent: `SGD` with normal noise ξ ~ N(0, (r²/d) I) added to every gradient.

    x_{t+1} = x_t − η(g + ξ), r = `radius`. Its mini-batch form is the same with the mean of several gradients as g: the
    problem's own mini-batches, or a policy that puts K gradients into an update.

    Source: Jin, Netrapalli, Ge, Kakade, Jordan 2019, "On nonconvex optimization for machine learning", its PSGD.
    """

    kind: Literal["psgd"] = "psgd"  # type: ignore[assignment]
    radius: Positive

    def apply(self, problem: Problem, state: State, payloads: list[Any], rows: list[Row]) -> State:
        """Return the state after one update with noise."""
        noise = gaussian(rows[0], state.x.shape[-1], self.radius)
        return super().apply(problem, state, [payload + noise for payload in payloads], rows)


class NoisyGD(SGD):
    """Stochastic gradient descent with noise n that is uniform on the unit sphere: x_{t+1} = x_t − η(g + n).

    Source: Ge, Huang, Jin, Yuan 2015, "Escaping from saddle points: online stochastic gradient for tensor
    decomposition", its Noisy Gradient Descent.
    """

    kind: Literal["noisy_gd"] = "noisy_gd"  # type: ignore[assignment]

    def apply(self, problem: Problem, state: State, payloads: list[Any], rows: list[Row]) -> State:
        """Return the state after one update with noise."""
        noise = on_sphere(rows[0], state.x.shape[-1], 1.0)
        return super().apply(problem, state, [payload + noise for payload in payloads], rows)


class SaddleNGD(Method):
    """Normalised gradient descent with noise every N₀ updates: x_{t+1} = x_t − η g/‖g‖, plus θn if N₀ divides t.

    η = `step`, N₀ = `every`, θ = `radius`; n is uniform on the unit sphere, and g/‖g‖ is 0 where g is.

    Source: Levy 2016, "The power of normalization: faster evasion of saddle points", its Saddle-NGD. Its constants were
    not compared.
    """

    kind: Literal["saddle_ngd"] = "saddle_ngd"
    step: Positive
    radius: Positive
    every: Annotated[int, Field(ge=1)]
    projection: AnyProjection | None = None

    def apply(self, problem: Problem, state: State, payloads: list[Any], rows: list[Row]) -> State:
        """Return the state after one step of length `step`, with noise where it is due."""
        gradient = mean_of(payloads)
        norm = np.sqrt(np.square(gradient).sum(axis=-1, keepdims=True))
        moved = state.x - gradient * (self.step / np.where(norm > 0.0, norm, 1.0))
        if rows[0].update % self.every == 0:
            moved = moved + on_sphere(rows[0], moved.shape[-1], self.radius)
        return State(moved if self.projection is None else self.projection(moved))
