"""Leaving strict saddle points by a random perturbation, where gradients of blocks of coordinates are stale.

Notation: f has a gradient with Lipschitz constant L = `smoothness` and a Hessian with Lipschitz constant
ρ = `hessian_lipschitz`; N = `dimension`; no gradient is staler than τ = `delay_bound` updates; Δ_j = x_{j+1} − x_j.
A point is an ε-second-order stationary point where ‖∇f‖ ≤ ε = `epsilon` and λ_min(∇²f) ≥ −√(ρε). The energy is

    E_j = f(x_j) + c Σ_{i=j−τ}^{j−1} (i − (j−τ) + 1) ‖Δ_i‖²,    c = L/(2a),

a = `energy_a`, terms of negative index left out. From the descent lemma and L‖Δ_i‖‖Δ_j‖ ≤ (L/2a)‖Δ_i‖² + (aL/2)‖Δ_j‖²,
for steps Δ_j = −η times a block of a gradient of delays ≤ τ:

    E_j − E_{j+1} ≥ κ_E ‖Δ_j‖²,    κ_E = 1/η − L/2 − (Lτ/2)(a + 1/a).

Where the block was descended coordinate after coordinate (Gauss–Seidel), the same holds for quadratics; for other f it
is proved with τ and c multiplied by √(largest block) only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from asyncsim.theory.stability import constant_delay_limit

#: The share of its bound that a step takes where none is given. At the bound itself κ_E = 0 and nothing need descend.
SHARE = 0.9


def largest_safe_step(smoothness: float, delay_bound: int, energy_a: float = 1.0) -> float:
    """Return 2 / (L (1 + τ(a + 1/a))), up to which the energy never rises, whatever the delays ≤ τ.

    Largest at a = 1: 2/(L(2τ + 1)).

    >>> largest_safe_step(2.0, 2)
    0.2

    Source: Sun, Hannah and Yin 2017, "Asynchronous coordinate descent under more realistic assumptions" (a = 1); for
    other a, the inequality at the head of this module with κ_E = 0.
    """
    return 2.0 / (smoothness * (1.0 + delay_bound * (energy_a + 1.0 / energy_a)))


def report_step(smoothness: float, delay_bound: int) -> float:
    """Return 1/(2L√τ), below which the energy with a = √τ was claimed to fall. It does not: see below.

    Source: Bornstein 2021, "Escaping from saddle points using asynchronous coordinate descent", section 2.1. Refuted by
    `report_step_counterexample`.
    """
    return 1.0 / (2.0 * smoothness * math.sqrt(delay_bound))


def report_step_counterexample() -> int:
    """Return the smallest τ at which a step below 1/(2L√τ) diverges on f = Lx²/2 with constant delay τ.

    That is where 1/(2√τ) exceeds 2 sin(π/(2(2τ+1))), the largest stable ηL. For smaller τ this f refutes nothing.

    >>> report_step_counterexample()
    9

    Derivation: ours.
    """
    delay = 1
    while report_step(1.0, delay) <= constant_delay_limit(delay):
        delay += 1
    return delay


def energy_decrease(step: float, smoothness: float, delay_bound: int, energy_a: float = 1.0) -> float:
    """Return κ_E = 1/η − L/2 − (Lτ/2)(a + 1/a): the energy falls by κ_E ‖Δ‖² or more; η = `step`.

    With a = 1 and η = s · 2/(L(2τ+1)), κ_E η = 1 − s.

    >>> round(energy_decrease(0.1, 2.0, 2) * 0.1, 12)
    0.5
    """
    return 1.0 / step - 0.5 * smoothness - 0.5 * smoothness * delay_bound * (energy_a + 1.0 / energy_a)


def stuck_half_thickness(step: float, radius: float, delta: float, dimension: int) -> float:
    """Return ηr₀ = ηrδ√π/(2√N), half of the thickness of the region from which a perturbed point does not escape.

    Perturbed points are uniform in the ball of radius ηr, η = `step`, r = `radius`; thickness is measured along the
    direction of least curvature.

    Source: Bornstein 2021, Theorem 1, after Jin et al. 2017, "How to escape saddle points efficiently". The text calls
    ηr₀ the thickness; its equation (13) integrates over 2ηr₀.
    """
    return step * radius * delta * math.sqrt(math.pi) / (2.0 * math.sqrt(dimension))


def stuck_share_bound(delta: float, dimension: int) -> float:
    """Return δ√((N+1)/(2N)), above the share of the ball within ηr₀ of the plane through its centre; δ at N = 1.

    >>> round(stuck_share_bound(0.1, 1000), 4)
    0.0707

    Source: Bornstein 2021, equations (14)-(17): Γ(x+1)/Γ(x+½) ≤ √(x+½).
    """
    return delta * math.sqrt((dimension + 1.0) / (2.0 * dimension))


def stuck_share(delta: float, dimension: int, *, draws: int = 200_000, seed: int = 0, thickness: float = 1.0) -> float:
    """Return the share of the ball that lies within `thickness` · ηr₀ of the plane through its centre, by Monte Carlo.

    The ball's radius does not matter. Points are addressed by `seed` and their number; the standard error is about
    √(share / draws).

    >>> bool(0.06 < stuck_share(0.1, 10, draws=20_000) < 0.085)
    True
    """
    import numpy as np

    from asyncsim import streams

    half = thickness * stuck_half_thickness(1.0, 1.0, delta, dimension)
    inside = 0
    chunk = max(1, 4_000_000 // (dimension + 2))
    for low in range(0, draws, chunk):
        numbers = np.arange(low, min(low + chunk, draws))
        normals = streams.normals(seed, 0, -1, numbers, streams.PERTURBATION, dimension + 2)
        # The first N coordinates of a uniform point of the unit sphere in N + 2 dimensions are uniform in the ball.
        inside += int((normals[:, 0] ** 2 <= half**2 * np.square(normals).sum(axis=1)).sum())
    return inside / draws


def iota(dimension: int, epsilon: float, radius: float, delta: float) -> float:
    """Return ι = log₂(16√N ε / (rδ√π)); it must be positive for an escape time to be one.

    >>> round(iota(10, 0.1, 0.1, 0.01), 2)
    11.48

    Source: Bornstein 2021, Theorem 1.
    """
    return math.log2(16.0 * math.sqrt(dimension) * epsilon / (radius * delta * math.sqrt(math.pi)))


def escape_time(iota: float, step: float, curvature: float, window: int) -> int:
    """Return T = B_w ⌈ι/(η√(ρε))⌉, the updates of one block each that leave a saddle with probability ≥ 1 − δ.

    √(ρε) = `curvature`, η = `step`; B_w = `window` is the number of updates within which every block is updated at
    least once: the number of blocks where they take turns, τ + 1 where every worker has its own block.

    >>> escape_time(iota(1000, 0.1, 0.1, 0.1), 1 / (5.75 * 3), math.sqrt(0.9), window=5)
    1045

    Derivation: ours. Each factor 1 + η√(ρε) ≥ 2^{η√(ρε)} of the growth away from the saddle takes an update of *every*
    coordinate, so what Bornstein 2021 prints (`printed_escape_time`) is to be counted in windows.
    """
    return window * math.ceil(iota / (step * curvature))


def printed_escape_time(iota: float, step: float, curvature: float) -> int:
    """Return ⌈ι/(η√(ρε))⌉, as Bornstein 2021 prints it in updates of one block: too short with several blocks."""
    return math.ceil(iota / (step * curvature))


def iteration_bound(gap: float, decrease: float, descent: int, escape: int) -> float:
    """Return ((f(x_0) − f*)/F + 1)(n + T), above the number of updates until the method stops.

    `gap` = f(x_0) − f*. A descent of n = `descent` updates lowers the energy by F = `decrease`, or the T = `escape`
    updates after a perturbation do, or it is the end. With F = 16κ_E η²ε²/T, T ∝ log(N): O(log²(N)/ε³) up to constants.

    Derivation: ours.
    """
    return (gap / decrease + 1.0) * (descent + escape)


def saddle_growth(smoothness: float, curvature: float, step: float) -> float:
    """Return the factor by which gradient descent's time grows with each further saddle of a chain.

    1 + ln(1/(1 − 2ηL)) / ln(1 + 2ηγ), for curvatures 2L towards a saddle and −2γ away from it (f = Lx², −γx²),
    L = `smoothness`, γ = `curvature`, η = `step` < 1/(2L). While one coordinate leaves at 1 + 2ηγ per step, the next
    shrinks by 1 − 2ηL, and has all of that to make good. As η → 0 it is (L + γ)/γ.

    >>> [round(saddle_growth(L, 1.0, 1 / (4 * L)), 2) for L in (1.0, 1.5, 2.0)]
    [2.71, 3.41, 4.11]

    Source: the limit is Du et al. 2017, "Gradient descent can take exponential time to escape saddle points"; the exact
    form is ours.
    """
    if not 0.0 < 2.0 * step * smoothness < 1.0:
        raise ValueError(f"0 < 2 step smoothness < 1 fails: 2 step smoothness = {2.0 * step * smoothness:.6g}")
    return 1.0 + math.log(1.0 / (1.0 - 2.0 * step * smoothness)) / math.log(1.0 + 2.0 * step * curvature)


class EscapeParameters(NamedTuple):
    """All numbers of a saddle-escaping run; `warnings` says what the theorem asks for and these do not give."""

    step: float
    energy_weight: float
    energy_decrease: float
    radius: float
    escape_time: int
    decrease: float
    large_step: float
    warnings: tuple[str, ...]


def escape_parameters(
    *,
    dimension: int,
    epsilon: float,
    delta: float,
    delay_bound: int,
    smoothness: float,
    hessian_lipschitz: float | None = None,
    window: int = 1,
    step_rule: str = "safe",
    step: float | None = None,
    energy_a: float | None = None,
    radius: float | None = None,
    escape_time: int | None = None,
    decrease: float | None = None,
    large_step: float | None = None,
) -> EscapeParameters:
    """Return η, r, T, F and M by the theorem from (L, ρ, ε, δ, τ, N), each of them as given where it is given.

    η is .9 of `largest_safe_step` or, with `step_rule` = "report", of `report_step`; a is 1, or √τ with the report's
    rule; r = ε; T = `escape_time` in windows of B_w = `window` updates. After T updates one of two points that the
    theorem compares has moved by 4ηε or more, and one that has not lowered the energy by F moved by √(TF/κ_E) at most,
    hence

        F = 16 κ_E η²ε²/T,    M = √(F/κ_E):

    a perturbation helped where the energy fell by F, and a single step of length M lowers it by that much.

    Raises ValueError, naming the inequality that fails and both of its sides, where 0 < δ < 1, τ ≥ 1, ρε ≤ L²,
    κ_E > 0, 16√N ε/(rδ√π) > 1 or η√(ρε) ≤ 1 does not hold and what is asked for needs it.

    >>> found = escape_parameters(dimension=10, epsilon=0.1, delta=0.01, delay_bound=5, smoothness=5.75,
    ...                           hessian_lipschitz=9.0, window=5, step=1 / (5.75 * 11))
    >>> found.escape_time, f"{found.decrease:.3g}", f"{found.large_step:.3g}"
    (3830, '3.3e-07', '0.000102')

    Derivation: ours; Bornstein 2021 defines neither F nor M.
    """
    by_report = step_rule == "report"
    if not 0.0 < delta < 1.0:
        raise ValueError(f"0 < delta < 1 fails: delta = {delta:g}")
    if delay_bound < 1:
        raise ValueError(f"delay_bound >= 1 fails: delay_bound = {delay_bound}")
    _require("epsilon > 0", epsilon, ">", 0.0)
    a = (math.sqrt(delay_bound) if by_report else 1.0) if energy_a is None else energy_a
    bound = report_step(smoothness, delay_bound) if by_report else largest_safe_step(smoothness, delay_bound, a)
    if step is None:
        step = SHARE * bound
    elif by_report:
        _require("step < 1 / (2 L sqrt(tau))", step, "<", bound)
    kappa = energy_decrease(step, smoothness, delay_bound, a)
    if kappa <= 0.0 and not (by_report and decrease is not None and large_step is not None):
        cure = "; or give 'decrease' and 'large_step' by hand" if by_report else ""
        raise ValueError(
            f"1/step > L/2 + (L tau/2)(a + 1/a) fails: {1.0 / step:.6g} against {1.0 / step - kappa:.6g}, "
            f"with L = {smoothness:g}, tau = {delay_bound}, a = {a:g}: the energy need not fall{cure}"
        )
    r = epsilon if radius is None else radius
    warnings: list[str] = []
    if escape_time is None:
        escape_time = _time_by_theorem(
            dimension, epsilon, delta, smoothness, hessian_lipschitz, window, step, r, warnings
        )
    if decrease is None:
        decrease = 16.0 * kappa * (step * epsilon) ** 2 / escape_time
    if large_step is None:
        large_step = math.sqrt(decrease / kappa)
    return EscapeParameters(step, smoothness / (2.0 * a), kappa, r, escape_time, decrease, large_step, tuple(warnings))


def _time_by_theorem(
    dimension: int,
    epsilon: float,
    delta: float,
    smoothness: float,
    rho: float | None,
    window: int,
    step: float,
    radius: float,
    warnings: list[str],
) -> int:
    if rho is None:
        raise ValueError("rho > 0 fails: the Lipschitz constant of the Hessian is not known")
    _require("rho > 0", rho, ">", 0.0)
    _require("epsilon <= L^2 / rho", epsilon, "<=", smoothness**2 / rho)
    argument = 16.0 * math.sqrt(dimension) * epsilon / (radius * delta * math.sqrt(math.pi))
    _require("16 sqrt(N) epsilon / (r delta sqrt(pi)) > 1", argument, ">", 1.0)
    curvature, logarithm = math.sqrt(rho * epsilon), iota(dimension, epsilon, radius, delta)
    _require("step sqrt(rho epsilon) <= 1", step * curvature, "<=", 1.0)
    if logarithm * step * curvature > 0.125:
        warnings.append(
            f"iota step sqrt(rho epsilon) <= 1/8 fails: {logarithm * step * curvature:.3g}; "
            "the escape's quadratic model is not proved to hold that far"
        )
    return escape_time(logarithm, step, curvature, window)


def _require(inequality: str, left: float, sign: str, right: float) -> None:
    holds = {"<": left < right, "<=": left <= right, ">": left > right}[sign]
    if not holds:
        raise ValueError(f"{inequality} fails: {left:.6g} against {right:.6g}")


def constant_delay_path(strength: float, delay: int) -> Iterator[float]:
    """Yield x_0 = 1, x_1, … of x_{t+1} = x_t − ηL x_{max(t−τ, 0)}: f = Lx²/2, ηL = `strength`, τ = `delay`.

    >>> [x for _, x in zip(range(4), constant_delay_path(0.5, 1))]
    [1.0, 0.5, 0.0, -0.25]
    """
    last = [1.0] * (delay + 1)
    while True:
        yield last[-1]
        last = [*last[1:], last[-1] - strength * last[0]]
