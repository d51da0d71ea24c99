from __future__ import annotations

import numpy as np
import pytest

from asyncsim import theory

ROUNDS = 8192
DELAYS = [0, 4, 16, 64]


def quadratic_regret(delay, *, block, replicas=200, seed=1):
    """Mean regret after 1 … ROUNDS rounds of ½ (x − z_t)² on [−1, 1], steps 1/(t − τ + 1)."""
    rng = np.random.default_rng(seed)
    length = delay + 1 if block else 1
    z = np.repeat(rng.choice([-1.0, 1.0], size=(-(-ROUNDS // length), replicas)), length, axis=0)[:ROUNDS]
    x = np.zeros((ROUNDS + 1, replicas))
    for t in range(delay, ROUNDS):
        gradient = x[t - delay] - z[t - delay]
        x[t + 1] = np.clip(x[t] - gradient / (t - delay + 1), -1.0, 1.0)
    count = np.arange(1, ROUNDS + 1)[:, None]
    least = 0.5 * count * (1.0 - (np.cumsum(z, axis=0) / count) ** 2)
    return (np.cumsum(0.5 * (x[:-1] - z) ** 2, axis=0) - least).mean(axis=1)


def linear_regret(delay, *, replicas=200, seed=2):
    """Mean regret after 1 … ROUNDS rounds of s_t x on [−1, 1], steps 1/√((τ + 1) t), signs constant on blocks."""
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], size=(-(-ROUNDS // (delay + 1)), replicas))
    s = np.repeat(signs, delay + 1, axis=0)[:ROUNDS]
    x = np.zeros((ROUNDS + 1, replicas))
    for t in range(delay, ROUNDS):
        x[t + 1] = np.clip(x[t] - s[t - delay] / np.sqrt((delay + 1.0) * (t + 1.0)), -1.0, 1.0)
    return (np.cumsum(s * x[:-1], axis=0) + np.abs(np.cumsum(s, axis=0))).mean(axis=1)


@pytest.fixture(scope="module")
def block():
    return {delay: quadratic_regret(delay, block=True) for delay in DELAYS}


@pytest.fixture(scope="module")
def independent():
    return {delay: quadratic_regret(delay, block=False) for delay in DELAYS}


@pytest.mark.parametrize("delay", DELAYS)
def test_block_instance_grows_as_predicted(block, delay):
    late, early = block[delay][[ROUNDS - 1, ROUNDS // 8 - 1]]
    predicted = theory.block_regret(ROUNDS, delay) - theory.block_regret(ROUNDS // 8, delay)
    assert late - early == pytest.approx(predicted, rel=0.08)
    assert theory.block_regret(ROUNDS, delay) < late < theory.block_regret(ROUNDS, delay) + 2.0 * (delay + 1)


def test_block_instance_refutes_a_delay_that_only_adds(block, independent):
    """O(τ + log T) has a growth from T/8 to T that does not depend on τ: so with independent losses, not here."""

    def growth(regret, delay):
        return regret[delay][-1] - regret[delay][ROUNDS // 8 - 1]

    assert growth(block, 64) > 40.0 * growth(block, 0)
    assert growth(independent, 64) < 1.1 * growth(independent, 0)


def test_independent_losses_pay_the_delay_once(independent):
    slope_in_delay = np.polyfit(DELAYS, [independent[delay][-1] for delay in DELAYS], 1)[0]
    predicted = theory.independent_regret(ROUNDS, 64) - theory.independent_regret(ROUNDS, 0)
    # 200 replicas leave a standard error of 0.016 in the slope.
    assert slope_in_delay == pytest.approx(predicted / 64, abs=0.05)
    rounds = np.geomspace(ROUNDS / 8, ROUNDS, 8).astype(int)
    for delay in DELAYS:
        slope = np.polyfit(np.log(rounds), independent[delay][rounds - 1], 1)[0]
        predicted = theory.independent_regret(2 * ROUNDS, delay) - theory.independent_regret(ROUNDS, delay)
        assert slope == pytest.approx(predicted / np.log(2.0), abs=0.05)


def test_convex_losses_grow_with_the_tuned_exponents():
    delays = np.array([0, 3, 15, 63])
    regret = {delay: linear_regret(delay) for delay in delays}
    in_delay = np.polyfit(np.log(delays + 1), np.log([regret[delay][-1] for delay in delays]), 1)[0]
    assert in_delay == pytest.approx(theory.CONVEX_TUNED.delay, abs=0.07)
    assert in_delay < theory.CONVEX_BOUND.delay - 0.3  # the bound's power of τ is not attained
    rounds = np.geomspace(ROUNDS / 16, ROUNDS, 8).astype(int)
    for delay in delays:
        in_rounds = np.polyfit(np.log(rounds), np.log(regret[delay][rounds - 1]), 1)[0]
        assert in_rounds == pytest.approx(theory.CONVEX_TUNED.rounds, abs=0.07)


@pytest.mark.parametrize("formula", [theory.block_regret, theory.independent_regret])
@pytest.mark.parametrize(("rounds", "delay"), [(10, 10), (10, -1), (0, 0)])
def test_impossible_delays_are_refused(formula, rounds, delay):
    with pytest.raises(ValueError, match="delay"):
        formula(rounds, delay)
