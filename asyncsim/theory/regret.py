r"""Regret of delayed gradient descent: how it grows with the number of rounds and the delay.

Delayed descent plays x_{t+1} = P(x_t − η_t ∇f_{t−τ}(x_{t−τ})) and pays f_t(x_t); its regret after T rounds is
Σ f_t(x_t) − min_x Σ f_t(x). The first τ + 1 points are equal and count.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class GrowthExponents(NamedTuple):
    """Powers a and b in a regret of order T^a (τ + 1)^b."""

    rounds: float
    delay: float


#: O(τ√T) for convex losses with steps c/√t: an upper bound (delayed SGD: Langford, Smola and Zinkevich 2009,
#: "Slow learners are fast"). Losses s_t x with random signs, constant on blocks of τ + 1, attain the power ½ of τ.
CONVEX_BOUND = GrowthExponents(rounds=0.5, delay=1.0)

#: √((τ + 1) T) for convex losses with steps c/√((τ + 1) t), attained by the same losses.
CONVEX_TUNED = GrowthExponents(rounds=0.5, delay=0.5)


def block_regret(rounds: int, delay: int) -> float:
    r"""Return the expected regret of the block instance, which refutes O(τ + log T) for adversarial losses.

    Losses f_t(x) = ½ (x − z_t)² on [−1, 1], z_t = ±1 with random sign, constant on blocks of τ + 1 rounds;
    steps 1/(t − τ + 1); T = `rounds`, τ = `delay`. Then, up to a term that does not grow with T::

        E regret ≈ (τ + 1)/2 · ln(T/(τ + 1))

    These losses are smooth and strongly convex. A regret of O(τ + log T), which is sometimes stated for all
    such losses, therefore cannot hold against an adversary: it would need τ log T. It does hold for independent
    losses (`independent_regret`). Differences over T are accurate, the value itself is short by a term of
    order τ + 1.

    >>> round(block_regret(16384, 4) - block_regret(4096, 4), 2)
    3.47

    Derivation: x_t averages t/(τ+1) independent block signs, so it has variance (τ+1)/t, and it is independent
    of z_t, whose block it has not seen: the excess loss is (τ+1)/(2t) a round.
    """
    _require_rounds(rounds, delay)
    return (delay + 1) / 2.0 * math.log(rounds / (delay + 1))


def independent_regret(rounds: int, delay: int) -> float:
    r"""Return the expected regret with independent losses: ½ ln T + 0.285 τ, up to a constant.

    As `block_regret`, but with independent z_t = ±1: T = `rounds`, τ = `delay`. The delay adds, it does not
    multiply. The slope ½ in ln T is that of averaging; the 0.285 τ is paid in the first few times τ rounds.

    >>> round(independent_regret(16384, 16) - independent_regret(16384, 0), 2)
    4.56

    Source: the order τ + log T is that stated for delayed SGD on strongly convex losses; the constants are ours.
    Derivation: the first τ + 1 gradients are taken at 0, so the points are x ← clip(x + z_t/t), which settles at
    an X with E X² = 0.395 (simulated). From then on x = X ρ(u) at u = t/τ, since u x′(u) = −x(u − 1) is the equation
    of Dickman's function ρ, and ∫ρ² = 1.443: the excess losses ½ x² add up to ½ E X² ∫ρ² τ = 0.285 τ. Simulated
    excess over τ = 0: 0.24 τ, 0.27 τ, 0.28 τ and 0.28 τ at τ = 4, 16, 32, 64.
    """
    _require_rounds(rounds, delay)
    return 0.5 * math.log(rounds) + 0.285 * delay


def _require_rounds(rounds: int, delay: int) -> None:
    if not 0 <= delay < rounds:
        raise ValueError(f"a delay lies between 0 and the number of rounds, {rounds}; it is {delay}")
