"""Certificates: is a point stationary of the first order, of the second, or not at all?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

#: Up to so many coordinates the Hessian is written out; beyond, its smallest eigenvalue is searched for.
DENSE = 64


def smallest_eigenvalue(problem: Any, x: np.ndarray, *, free: np.ndarray | None = None, seed: int = 0) -> float | None:
    """Return λ_min(∇²f(x)) from Hessian-vector products; None where there are none, or where the search fails.

    Beyond 64 coordinates by Lanczos from a vector addressed by `seed`, to 1e-6 of the largest eigenvalue. `free` marks
    the coordinates that may move, shape (d,): rows and columns of the others are left out.

    >>> from asyncsim.problems import Quadratic
    >>> smallest_eigenvalue(Quadratic(eigenvalues=(1.0, -0.5)), np.zeros(2))
    -0.5
    """
    places = np.arange(x.size) if free is None else np.flatnonzero(free)
    if places.size == 0:
        return math.inf

    def product(vector: np.ndarray) -> np.ndarray:
        whole = np.zeros(x.size)
        whole[places] = np.ravel(vector)
        return np.asarray(problem.hessian_vector(x, whole))[places]

    try:
        if places.size <= DENSE:
            hessian = np.array([product(column) for column in np.eye(places.size)])
            return float(np.linalg.eigvalsh(0.5 * (hessian + hessian.T))[0])
        return _lanczos(product, places.size, seed)
    except (NotImplementedError, AttributeError):
        return None


def _lanczos(product: Any, size: int, seed: int) -> float | None:
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    from asyncsim import streams

    start = streams.normals(seed, 0, -1, 0, streams.PROBE, size)
    # The operator is shifted so that Lanczos looks for an eigenvalue of largest modulus, to an accuracy relative to it.
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    try:
        largest = float(abs(eigsh(operator, k=1, v0=start, tol=1e-2, return_eigenvectors=False)[0]))
        shift = 1.1 * largest
        shifted = LinearOperator((size, size), matvec=lambda v: product(v) - shift * np.ravel(v), dtype=np.float64)
        values = eigsh(shifted, k=1, which="LM", v0=start, tol=1e-7, maxiter=50 * size, return_eigenvectors=False)
    except ArpackError:
        return None
    return float(values[0]) + shift


def certificate(
    problem: Any,
    x: np.ndarray,
    *,
    epsilon: float,
    hessian_lipschitz: float | None = None,
    projection: Any = None,
    step: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Say of which order the point x is ε-stationary, ε = `epsilon`: 0, 1 or 2.

    Order 1: ‖∇f(x)‖ ≤ ε. Order 2: also λ_min(∇²f(x)) ≥ −√(ρε), ρ = `hessian_lipschitz`; without ρ or Hessian-vector
    products no more than order 1 can be said. With a `projection` P, the gradient mapping (x − P(x − η∇f(x)))/η,
    η = `step`, stands for the gradient, and the Hessian is taken on the coordinates that P leaves alone.

    Returns gradient_norm, lambda_min (None where unknown), bound (−√(ρε)), order, and, where order 2 could not be
    judged, `first_order_only` with the reason.

    >>> from asyncsim.problems import Quadratic
    >>> saddle = Quadratic(eigenvalues=(1.0, -0.5))
    >>> certificate(saddle, np.zeros(2), epsilon=0.1, hessian_lipschitz=1.0)["order"]
    1
    >>> certificate(saddle, np.zeros(2), epsilon=0.3, hessian_lipschitz=1.0)["order"]
    2
    """
    gradient, free = np.asarray(problem.gradient(x)), None
    if projection is not None:
        moved = x - step * gradient
        nearest = projection(moved)
        gradient, free = (x - nearest) / step, nearest == moved
    norm = float(np.linalg.norm(gradient))
    found: dict[str, Any] = {"gradient_norm": norm, "lambda_min": None, "bound": None, "order": int(norm <= epsilon)}
    found["lambda_min"] = lowest = smallest_eigenvalue(problem, x, free=free, seed=seed)
    if hessian_lipschitz is not None:
        found["bound"] = -math.sqrt(hessian_lipschitz * epsilon)
    if lowest is None or hessian_lipschitz is None:
        what = "smallest eigenvalue" if lowest is None else "Lipschitz constant"
        found["first_order_only"] = f"the {what} of the Hessian is not known"
    elif found["order"] == 1 and lowest >= found["bound"]:
        found["order"] = 2
    return found


def acceptable_saddle(problem: Any, epsilon: float, bound: float | None) -> str | None:
    """Say so where ε makes the strict saddle that the problem knows acceptable: λ_min there is ≥ −√(ρε) = `bound`.

    A method that ends at that saddle is then right to.
    """
    saddle = getattr(problem, "strict_saddle", None)
    if saddle is None or not bound or saddle[1] < bound:
        return None
    return (
        f"epsilon = {epsilon:g} makes the problem's saddle acceptable: its least eigenvalue, {saddle[1]:.3g}, "
        f"is not below -sqrt(rho epsilon) = {bound:.3g}"
    )


def certificates(problem: Any, method: Any, points: np.ndarray, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return the certificate of each of `points`, shape (replicas, d), with the method's ε, ρ, step and projection."""
    rho = getattr(method, "hessian_lipschitz", None)
    rho = getattr(problem, "hessian_lipschitz", None) if rho is None else rho
    parameters = getattr(method, "parameters", None)
    step = method.step if parameters is None else parameters(problem).step
    known = {"hessian_lipschitz": rho, "projection": getattr(method, "projection", None), "step": step, "seed": seed}
    return [certificate(problem, x, epsilon=method.epsilon, **known) for x in points]
