"""Adam: steps scaled coordinate by coordinate by running means of the gradient and of its square."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from asyncsim.methods.base import Method, State
from asyncsim.methods.perturbed import mean_of
from asyncsim.methods.projections import AnyProjection
from asyncsim.problems.base import Problem
from asyncsim.spec import Positive
from asyncsim.trace import Row

Decay = Annotated[float, Field(ge=0, lt=1)]


class Moments(NamedTuple):
    """The running means of the gradient and of its square, and the products β₁^t and β₂^t."""

    first: np.ndarray
    second: np.ndarray
    decays: tuple[float, float] = (1.0, 1.0)


class Adam(Method):
    """x_{t+1} = x_t − η m̂/(√v̂ + `offset`), with m̂ and v̂ the means of g and g² that forget at rates β₁ and β₂.

    m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², m̂ = m/(1−β₁^t), v̂ = v/(1−β₂^t), t counting updates from 1; g is the mean of
    the update's gradients, β₁ = `beta1`, β₂ = `beta2`, η = `step`.

    Source: Kingma, Ba 2015, "Adam: a method for stochastic optimization", Algorithm 1.

    >>> method, problem = Adam(step=0.1), Problem()
    >>> state, _ = method.init(problem, np.array([1.0, -5.0]), workers=1)
    >>> row = Row(seed=7, replica=0, worker=0, draw=0, update=0)
    >>> method.apply(problem, state, [state.x], [row]).x.round(6).tolist()  # the first step is η times the sign
    [0.9, -4.9]
    """

    kind: Literal["adam"] = "adam"
    step: Positive = 1e-3
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    offset: Positive = 1e-8
    projection: AnyProjection | None = None

    def init(self, problem: Problem, x0: np.ndarray, workers: int) -> tuple[State, list[Any]]:
        """Return the state at version 0; workers keep nothing."""
        return State(x0, Moments(np.zeros_like(x0), np.zeros_like(x0))), [None] * workers

    def apply(self, problem: Problem, state: State, payloads: list[Any], rows: list[Row]) -> State:
        """Return the state after one update."""
        gradient, moments = mean_of(payloads), state.extra
        first = self.beta1 * moments.first + (1.0 - self.beta1) * gradient
        second = self.beta2 * moments.second + (1.0 - self.beta2) * np.square(gradient)
        decays = moments.decays[0] * self.beta1, moments.decays[1] * self.beta2
        scale = np.sqrt(second / (1.0 - decays[1])) + self.offset
        moved = state.x - (self.step / (1.0 - decays[0])) * first / scale
        return State(moved if self.projection is None else self.projection(moved), Moments(first, second, decays))
