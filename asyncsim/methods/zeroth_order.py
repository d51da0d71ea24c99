"""Methods that see values of f and no gradients: differences along random directions stand in for them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import model_validator

from asyncsim.methods.base import Method, State
from asyncsim.methods.perturbed import mean_of
from asyncsim.methods.projections import AnyProjection, Ball, Box, Simplex
from asyncsim.methods.sgd import SGD
from asyncsim.problems.base import Problem
from asyncsim.spec import Count, Positive, refuse
from asyncsim.trace import Row

Difference = Literal["central", "forward"]


def estimated_gradient(
    problem: Problem, x: np.ndarray, row: Row, smoothing: float, directions: int, difference: Difference
) -> np.ndarray:
    """Return the gradient at x as m = `directions` differences of values of f tell it, shape (…, d).

    With u_k ~ N(0, I) for k = 1 … m, by the row's address, and ν = `smoothing`, it is

        g = (1/m) Σ_k δ_k u_k,   δ_k = (f(x + νu_k) − f(x − νu_k)) / (2ν)   or, "forward",   (f(x + νu_k) − f(x)) / ν,

    which is unbiased for the gradient of f_ν(x) = E f(x + νu). On a quadratic that is ∇f; there the central δ = uᵀ∇f,

        E‖g‖² = (1 + (d + 1)/m) ‖∇f‖²,

    since E (uᵀa)² ‖u‖² = (d + 2) ‖a‖². Forward differences have (ν²/4m) E (uᵀHu)² ‖u‖² more, H being the Hessian, that
    is (ν²/4m) (d + 4) ((tr H)² + 2 tr H²). Costs 2m values of f, or m + 1.

    Source: Nesterov and Spokoiny 2017, "Random gradient-free minimization of convex functions"; the expectations were
    derived here.

    >>> from asyncsim.problems import Quadratic
    >>> problem, x = Quadratic(eigenvalues=[1.0, 2.0]), np.ones((20_000, 2))
    >>> rows = Row(7, np.arange(20_000), 0, 0)
    >>> estimated_gradient(problem, x, rows, 0.1, 1, "central").mean(axis=0).round(1).tolist()
    [1.0, 2.0]
    """
    from asyncsim import streams

    dimension = x.shape[-1]
    address = row.seed, row.replica, row.worker, row.draw
    normals = streams.normals(*address, streams.PERTURBATION, directions * dimension)
    u = normals.reshape(*x.shape[:-1], directions, dimension)
    here = x[..., None, :]

    def value(points: np.ndarray) -> np.ndarray:
        if problem.batched:
            return problem.value(points)
        flat = points.reshape(-1, dimension)
        return np.array([float(problem.value(one)) for one in flat]).reshape(points.shape[:-1])

    ahead = value(here + smoothing * u)
    if difference == "central":
        slopes = (ahead - value(here - smoothing * u)) / (2.0 * smoothing)
    else:
        slopes = (ahead - value(here)) / smoothing
    return np.asarray((slopes[..., None] * u).mean(axis=-2))


class ZerothOrderSGD(SGD):
    """`SGD` with estimated gradients: `directions` differences of values of f, `smoothing` apart, make each.

    See `estimated_gradient`. A gradient is about 1 + (d + 1)/m times as long as ∇f in the mean square, so steps have to
    be shorter by as much than with exact gradients. Values are those of the whole objective, without mini-batches.

    Source: Balasubramanian and Ghadimi 2018, "Zeroth-order (non)-convex stochastic optimization via conditional
    gradient and gradient updates", of which we know the abstract; the estimator above is the common one.
    """

    takes_whole_gradients: ClassVar[bool] = True

    kind: Literal["zeroth_order_sgd"] = "zeroth_order_sgd"  # type: ignore[assignment]
    smoothing: Positive
    directions: Count = 1
    difference: Difference = "central"

    def message(self, problem: Problem, x_read: np.ndarray, memory: Any, row: Row) -> tuple[Any, Any]:
        """Return the estimated gradient at the version that the worker read."""
        return _estimate(self, problem, x_read, row), memory


class ZerothOrderConditionalGradient(Method):
    """Conditional gradient (Frank and Wolfe) with estimated gradients: no projection, and no step to tune.

    With g the mean of an update's gradients and C the set of `projection`,

        s = argmin_{s ∈ C} gᵀs,   x ← x + γ_t (s − x),   γ_t = 2/(t + 2), or `step`,

    t the index of the update. Every version lies in C: x_0 is projected once, and from then on x is between points of
    C. The set must be bounded: a box (s_i = `low` where g_i > 0, else `high`), a ball (s = −radius · g/‖g‖, its centre
    where g = 0) or a simplex (s = total · e_i, i the first place of g's smallest entry). Noise in g is not averaged
    over updates, so how close x comes depends on `directions`.

    Source: the zeroth-order conditional gradient method is that of Balasubramanian and Ghadimi 2018 (see
    `ZerothOrderSGD`); γ_t is the textbook choice for convex f, with which exact gradients give
    f(x_t) − f* ≤ 2LD²/(t + 2) on a set of diameter D (Jaggi 2013, "Revisiting Frank–Wolfe", Theorem 1).

    >>> from asyncsim.problems import Quadratic
    >>> method = ZerothOrderConditionalGradient(projection=Simplex(), smoothing=0.1)
    >>> state, _ = method.init(Quadratic(eigenvalues=[1.0, 2.0]), np.zeros(2), workers=1)
    >>> method.apply(Quadratic(eigenvalues=[1.0, 2.0]), state, [np.array([1.0, 3.0])], [Row(7, 0, 0, 0, 2)]).x.tolist()
    [0.75, 0.25]
    """

    takes_whole_gradients: ClassVar[bool] = True

    kind: Literal["zeroth_order_conditional_gradient"] = "zeroth_order_conditional_gradient"
    projection: AnyProjection
    smoothing: Positive
    directions: Count = 1
    difference: Difference = "central"
    step: Positive | None = None

    @model_validator(mode="after")
    def _bounded(self) -> ZerothOrderConditionalGradient:
        if not isinstance(self.projection, Box | Ball | Simplex):
            raise refuse("must be a bounded set: 'box', 'ball' or 'simplex'", "projection")
        if self.step is not None and self.step > 1.0:
            raise refuse(f"must be at most 1, got {self.step:g}", "step")
        return self

    def init(self, problem: Problem, x0: np.ndarray, workers: int) -> tuple[State, list[Any]]:
        """Return the state at version 0, the problem's start or the point of the set nearest to it."""
        return State(self.projection(x0)), [None] * workers

    def message(self, problem: Problem, x_read: np.ndarray, memory: Any, row: Row) -> tuple[Any, Any]:
        """Return the estimated gradient at the version that the worker read."""
        return _estimate(self, problem, x_read, row), memory

    def apply(self, problem: Problem, state: State, payloads: list[Any], rows: list[Row]) -> State:
        """Return the state after a step towards the point of the set that the mean gradient favours."""
        share = 2.0 / (rows[0].update + 2.0) if self.step is None else self.step
        return State(state.x + share * (self.favoured(mean_of(payloads)) - state.x))

    def favoured(self, gradient: np.ndarray) -> np.ndarray:
        """Return argmin_{s ∈ C} gᵀs, shape (…, d)."""
        chosen = self.projection
        if isinstance(chosen, Box):
            return np.where(gradient > 0.0, chosen.low, chosen.high)
        if isinstance(chosen, Ball):
            norm = np.sqrt(np.square(gradient).sum(axis=-1, keepdims=True))
            return -gradient * (chosen.radius / np.where(norm > 0.0, norm, 1.0))
        best = gradient.argmin(axis=-1)[..., None]
        return np.where(np.arange(gradient.shape[-1]) == best, chosen.total, 0.0)


def _estimate(
    method: ZerothOrderSGD | ZerothOrderConditionalGradient, problem: Problem, x: np.ndarray, row: Row
) -> np.ndarray:
    return estimated_gradient(problem, x, row, method.smoothing, method.directions, method.difference)
