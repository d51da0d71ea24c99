"""Asynchronous stochastic gradient descent at a parameter server: momentum, step rules, projection."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from asyncsim.methods.base import Method, State
from asyncsim.methods.projections import AnyProjection
from asyncsim.methods.steps import STEP_RULES, StepRule, StepRuleName
from asyncsim.problems.base import Problem
from asyncsim.spec import Positive, refuse
from asyncsim.trace import Row


class Extra(NamedTuple):
    """What the server keeps beside the model: the step rule's memory, and a point where there is momentum.

    `point` is the version before, x_{t−1}, for the heavy ball, and y_t for Nesterov's momentum.
    """

    rule: Any = None
    point: np.ndarray | None = None


class SGD(Method):
    """Stochastic gradient descent with explicit momentum at the server.

    Update t receives K ≥ 1 gradients g_i, of staleness τ_i, i.e. computed from versions x_{t−τ_i}. With steps γ_i from
    `step_rule` and `step`, β = `momentum` and P = `projection` (the identity if left out), the heavy ball is

        x_{t+1} = P(x_t − (1/K) Σ_i γ_i g_i + β (x_t − x_{t−1})),   x_{−1} = x_0,

    so the displacement is between projected points. β lies in (−1, 1); negative values take away some of the momentum
    that asynchrony itself adds. With `nesterov` the server publishes the extrapolated point, since that is where
    gradients are to be computed, and keeps the other sequence, y, to itself:

        y_{t+1} = P(x_t − (1/K) Σ_i γ_i g_i),   x_{t+1} = P(y_{t+1} + β (y_{t+1} − y_t)),   y_0 = x_0.

    With no staleness, one gradient and no projection this is the textbook form y_{t+1} = y_t + v_{t+1},
    v_{t+1} = βv_t − γ∇f(y_t + βv_t), v_0 = 0, with x_t = y_t + βv_t. Both points are projected so that every version
    lies in the set. Momentum 0 makes both forms plain gradient descent.

    Delayed SGD, x_{t+1} = P(x_t − γ_t g(x_{t−τ})) from round t = τ on (Zinkevich, Smola, Langford 2009, "Slow learners
    are fast"), is this method with a projection and no momentum on a trace of staleness min(t, τ). The first τ rounds,
    in which nothing arrives, are no updates here: version t is x_{t+τ}, and step/(t+1) is step/(t−τ+1) in rounds.

    Parameters
    ----------
    step
        Scale of the steps, positive; what it multiplies is the rule's.
    momentum, nesterov
        β and the form of momentum, above.
    step_rule
        "constant" γ = step; "inverse_sqrt" step/√(t+1); "inverse_time" step/(t+1); "staleness" step/(τ+1);
        "concurrency" step · min(1, M/max(τ, 1)) with M workers; "adaptive_1", "adaptive_2" the delay-adaptive rules,
        where step is γ' = h/L and an update has one step, from its largest staleness. See `asyncsim.methods.steps`.
    alpha
        α of "adaptive_1", in (0, 1), 0.9 if left out; an error with any other rule.
    projection
        The set that the model is kept in.

    Shapes: x and gradients (d,), or (replicas, d) with the fields of a row of shape (replicas,).

    Source: the heavy ball is Polyak 1964; momentum at the server of an asynchronous run, and why it may have to be
    negative, Mitliagkas et al. 2016, "Asynchrony begets momentum". Nesterov's form as in Sutskever et al. 2013,
    shifted to the point of the gradient.

    >>> method = SGD(step=0.5, momentum=-0.2)
    >>> problem = Problem()
    >>> state, _ = method.init(problem, np.array([1.0]), workers=1)
    >>> for update in range(2):  # f(x) = x²/2
    ...     state = method.apply(problem, state, [state.x], [Row(seed=7, replica=0, worker=0, draw=update)])
    >>> state.x.round(12).tolist()
    [0.35]
    """

    kind: Literal["sgd"] = "sgd"
    step: Positive
    momentum: Annotated[float, Field(gt=-1, lt=1)] = 0.0
    nesterov: bool = False
    step_rule: StepRuleName = "constant"
    alpha: Annotated[float, Field(gt=0, lt=1)] | None = None
    projection: AnyProjection | None = None

    @model_validator(mode="after")
    def _alpha_has_a_use(self) -> SGD:
        if self.alpha is not None and self.step_rule != "adaptive_1":
            raise refuse(f"alpha belongs to step_rule = 'adaptive_1'; leave it out with '{self.step_rule}'")
        return self

    @cached_property
    def rule(self) -> StepRule:
        """The step rule as an object."""
        make = STEP_RULES[self.step_rule]
        return make(self.step) if self.alpha is None else make(self.step, self.alpha)

    def init(self, problem: Problem, x0: np.ndarray, workers: int) -> tuple[State, list[Any]]:
        """Return the state at version 0; workers keep nothing."""
        memory = self.rule.start(workers, x0.shape[:-1])
        keeps = memory is not None or self.momentum != 0.0
        extra = Extra(memory, x0 if self.momentum != 0.0 else None) if keeps else None
        return State(x0, extra), [None] * workers

    def apply(self, problem: Problem, state: State, payloads: list[Any], rows: list[Row]) -> State:
        """Return the state after one update from the mean of the gradients, each times its step."""
        x, extra = state.x, state.extra
        project, beta = self.projection, self.momentum
        steps, memory = self.rule.steps(rows, None if extra is None else extra.rule)
        moved = x - _mean_step(steps, payloads)
        if beta == 0.0:
            moved = moved if project is None else project(moved)
            return State(moved, None if extra is None else Extra(memory))
        if self.nesterov:
            point = moved if project is None else project(moved)
            moved = point + beta * (point - extra.point)
        else:
            point = x
            moved = moved + beta * (x - extra.point)
        return State(moved if project is None else project(moved), Extra(memory, point))


def _mean_step(steps: list[Any], gradients: list[np.ndarray]) -> np.ndarray:
    """Return (1/K) Σ γ_i g_i, summed in order of arrival; a step is a number or has one entry per replica."""
    parts = [
        gradient * (step if isinstance(step, float) else step[:, None])
        for step, gradient in zip(steps, gradients, strict=True)
    ]
    return parts[0] if len(parts) == 1 else sum(parts[1:], parts[0]) / len(parts)
