"""Perturbed accelerated gradient descent: momentum, noise at small gradients, negative curvature exploited."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from asyncsim.methods.base import Method, State
from asyncsim.methods.perturbation import in_ball
from asyncsim.methods.perturbed import LONG_AGO, mean_of
from asyncsim.problems.base import Problem
from asyncsim.spec import NonNegative, Positive
from asyncsim.trace import Row


class Path(NamedTuple):
    """The sequence x_t, its velocity v_t, the update of the last perturbation, and how often what was done."""

    x: np.ndarray
    velocity: np.ndarray
    perturbed: np.ndarray
    perturbations: np.ndarray
    exploited: np.ndarray


class PAGD(Method):
    """Perturbed accelerated gradient descent.

    The server publishes y_t = x_t + (1−θ)v_t, where gradients are to be computed, and keeps x_t and v_t to itself:

        x_{t+1} = y_t − η∇f(y_t),   v_{t+1} = x_{t+1} − x_t,

    with η = `step`, 1 − θ = `momentum`. Where f is too concave between the two points,

        y_t ≠ x_t and f(x_t) ≤ f(y_t) + ⟨∇f(y_t), x_t − y_t⟩ − (γ/2)‖x_t − y_t‖²,    γ = `curvature`,

    that is exploited: with ‖v_t‖ ≥ s = `distance`, x_{t+1} = x_t; else x_{t+1} is the lower of x_t ± s v_t/‖v_t‖.
    Either way v_{t+1} = 0 and the method goes on. Then, where ‖∇f(x_{t+1})‖ ≤ `epsilon` and T = `escape_time` updates
    have passed since the last time, x_{t+1} is moved by noise uniform in the ball of `radius`. γ = 0 exploits where f
    is not convex along the way at all. The server computes ∇f(x_{t+1}) itself, and f twice, so an update costs it that.

    Source: Jin, Netrapalli, Jordan 2018, "Accelerated gradient descent escapes saddle points faster than gradient
    descent", Algorithm 2 and its negative curvature exploitation. Reviews print it without y_t ≠ x_t (then it exploits
    at rest), with v_{t+1} kept, and with a "return" that would end the run.
    """

    kind: Literal["pagd"] = "pagd"
    #: Every gradient is that of the whole objective, of which a worker with a share of the data knows only a part.
    takes_whole_gradients: ClassVar[bool] = True
    measures: ClassVar[tuple[str, ...]] = ("perturbations",)
    step: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    epsilon: Positive
    radius: Positive
    escape_time: Annotated[int, Field(ge=1)]
    curvature: NonNegative
    distance: Positive

    def init(self, problem: Problem, x0: np.ndarray, workers: int) -> tuple[State, list[Any]]:
        """Return the state at version 0, at rest; workers keep nothing."""
        shape = x0.shape[:-1]
        never = np.zeros(shape, dtype=np.int64)
        return State(x0, Path(x0, np.zeros_like(x0), np.full(shape, LONG_AGO), never, never)), [None] * workers

    def message(self, problem: Problem, x_read: np.ndarray, memory: Any, row: Row) -> tuple[Any, Any]:
        """Return ∇f at the version that the worker read."""
        return problem.gradient(x_read), memory

    def apply(self, problem: Problem, state: State, payloads: list[Any], rows: list[Row]) -> State:
        """Return the state after one accelerated step, with noise where it is due."""
        y, path, gradient, update = state.x, state.extra, mean_of(payloads), rows[0].update
        x = y - self.step * gradient
        velocity = x - path.x
        exploit = self._too_concave(problem, path.x, y, gradient)
        if exploit.any():
            x = np.where(exploit[..., None], self._lowest(problem, path), x)
            velocity = np.where(exploit[..., None], 0.0, velocity)
        perturb = update - path.perturbed > self.escape_time
        if perturb.any():
            perturb = perturb & (_norm(problem.gradient(x)) <= self.epsilon)
            x = np.where(perturb[..., None], x + in_ball(rows[0], x.shape[-1], self.radius), x)
        perturbed = np.where(perturb, update, path.perturbed)
        extra = Path(x, velocity, perturbed, path.perturbations + perturb, path.exploited + exploit)
        return State(x + self.momentum * velocity, extra)

    def _too_concave(self, problem: Problem, x: np.ndarray, y: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        back = x - y
        squared = np.square(back).sum(axis=-1)
        bound = problem.value(y) + (gradient * back).sum(axis=-1) - 0.5 * self.curvature * squared
        return np.asarray((squared > 0.0) & (problem.value(x) <= bound))

    def _lowest(self, problem: Problem, path: Path) -> np.ndarray:
        speed = _norm(path.velocity)
        aside = path.velocity * (self.distance / np.where(speed > 0.0, speed, 1.0))[..., None]
        ahead, behind = path.x + aside, path.x - aside
        lower = np.where((problem.value(ahead) <= problem.value(behind))[..., None], ahead, behind)
        return np.where((speed >= self.distance)[..., None], path.x, lower)

    def measure(self, problem: Problem, state: State, name: str) -> np.ndarray:
        """Return how often each replica was perturbed."""
        return np.asarray(state.extra.perturbations)


def _norm(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(np.square(x).sum(axis=-1)))
