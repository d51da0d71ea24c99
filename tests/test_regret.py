"""Regret of delayed descent end to end: a trace of constant staleness, its replay, and the regret measured on it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import asyncsim
from asyncsim import theory
from asyncsim.scenario import build

DELAYS = (0, 4, 16, 64)
CONVEX_DELAYS = (0, 3, 15, 63)


def online(delay, *, updates, replicas=1, loss="square", block=1, seed=7):
    """A scenario of delayed descent on online losses, with the step that suits them."""
    rule = {"step": 1.0, "step_rule": "inverse_time"}
    if loss == "linear":
        rule = {"step": 1.0 / np.sqrt(delay + 1.0), "step_rule": "inverse_sqrt"}
    return build(
        {
            "seed": seed,
            "problem": {"kind": "online", "loss": loss, "block": block},
            "method": {"kind": "sgd", **rule, "projection": {"set": "box", "low": -1.0, "high": 1.0}},
            "run": {
                "source": "synthetic",
                "staleness": {"law": "constant", "value": delay},
                "updates": updates,
                "replicas": replicas,
            },
            "metrics": {"record": ["regret"], "every": max(1, updates // 64)},
        }
    )


@cache
def measured(delay, *, updates=4096, replicas=200, **losses):
    """Return the updates at which regret was measured and the mean over replicas, from an eighth of the run on."""
    run = asyncsim.run(online(delay, updates=updates, replicas=replicas, **losses))
    mean = run.metrics.groupby("update")["value"].mean()
    late = mean[mean.index >= updates // 8]
    return late.index.to_numpy(), late.to_numpy()


def independent(delay):
    """From 32 (τ + 1) rounds on, where the start is over."""
    return measured(delay, updates=max(2048, 256 * (delay + 1)))


def blocks(delay):
    return measured(delay, updates=8192, block=delay + 1)


def slope_in_log(curve):
    updates, regret = curve
    return np.polyfit(np.log(updates), regret, 1)[0]


def exponent(x, y):
    return np.polyfit(np.log(x), np.log(y), 1)[0]


@pytest.mark.parametrize("loss", ["square", "linear"])
@pytest.mark.parametrize("delay", [0, 1, 7])
def test_it_is_delayed_descent(loss, delay):
    """Round t plays x_t, which has learnt of the losses before t − τ; the first τ + 1 points are equal and count."""
    updates = 60
    scenario = online(delay, updates=updates, loss=loss)
    z = scenario.problem.sign(scenario.seed, 0, np.arange(updates))

    def plain(delay):
        """Regret after each round of the loop as it is written in books, in rounds."""
        x, paid, found = np.zeros(updates + delay + 1), 0.0, []
        for t in range(updates):
            paid += 0.5 * (x[t] - z[t]) ** 2 if loss == "square" else z[t] * x[t]
            if t >= delay:
                n = t - delay + 1
                gradient = x[t - delay] - z[t - delay] if loss == "square" else z[t - delay]
                x[t + 1] = np.clip(x[t] - gradient * scenario.method.step / (n if loss == "square" else n**0.5), -1, 1)
            total = z[: t + 1].sum()
            found.append(paid - (0.5 * (t + 1 - total**2 / (t + 1)) if loss == "square" else -abs(total)))
        return np.array(found)

    frame = asyncsim.run(scenario).metrics
    np.testing.assert_allclose(frame["value"].to_numpy()[1:], plain(delay), atol=1e-10)
    assert np.abs(frame["value"].to_numpy()[1:] - plain(delay + 1)).max() > 0.01


# --- independent, strongly convex losses: O(τ + log T) holds ------------------------------------------------------


@pytest.mark.parametrize("delay", DELAYS)
def test_independent_losses_grow_like_half_log_of_the_rounds(delay):
    assert slope_in_log(independent(delay)) == pytest.approx(0.50, abs=0.05)


def test_independent_losses_pay_the_delay_once():
    """The slope in τ is ½ E X² ∫ρ² = 0.285, see `theory.independent_regret`."""
    last = [measured(delay, updates=2048, replicas=1000)[1][-1] for delay in DELAYS]
    slope = np.polyfit(DELAYS, last, 1)[0]
    assert slope == pytest.approx(0.285, abs=0.03)
    predicted = [theory.independent_regret(2048, delay) for delay in DELAYS]
    assert slope == pytest.approx(np.polyfit(DELAYS, predicted, 1)[0], abs=0.03)


# --- the same losses in blocks: O(τ + log T) fails ----------------------------------------------------------------


@pytest.mark.parametrize("delay", DELAYS)
def test_losses_in_blocks_grow_like_delay_times_log(delay):
    assert slope_in_log(blocks(delay)) == pytest.approx((delay + 1) / 2.0, rel=0.1)


def test_a_delay_that_only_adds_is_refuted_for_losses_in_blocks():
    """Under c (τ + log T) a fourfold T adds at most c log 4 at every τ. In blocks it adds more and more with τ."""

    def added(curve):
        updates, regret = curve
        return regret[-1] - regret[updates == updates[-1] // 4][0]

    in_blocks = [added(blocks(delay)) for delay in DELAYS]
    alone = [added(independent(delay)) for delay in DELAYS]
    assert in_blocks[0] == pytest.approx(0.69, abs=0.07)
    for delay, more in zip(DELAYS, in_blocks, strict=True):
        assert more == pytest.approx(theory.block_regret(4096, delay) - theory.block_regret(1024, delay), rel=0.1)
    # The control: the same method, delays and steps; only the blocks are gone, and so is the growth.
    assert max(alone) < 1.3 * min(alone)


# --- linear losses: √((τ + 1) T) ----------------------------------------------------------------------------------


def linear(delay):
    return measured(delay, updates=8192, loss="linear", block=delay + 1)


def test_linear_losses_in_blocks_grow_like_the_root_of_delay_and_rounds():
    """No method sees a block's sign before it has gone, so each pays E|Σ s_t| = √(2 (τ + 1) T/π)."""
    last = []
    for delay in CONVEX_DELAYS:
        updates, regret = linear(delay)
        in_rounds = exponent(updates, regret)
        assert in_rounds == pytest.approx(theory.CONVEX_TUNED.rounds, abs=0.05)
        last.append(regret[-1])
        assert last[-1] == pytest.approx(np.sqrt(2.0 * (delay + 1) * updates[-1] / np.pi), rel=0.15)
    in_delay = exponent(np.array(CONVEX_DELAYS) + 1.0, last)
    assert in_delay == pytest.approx(theory.CONVEX_TUNED.delay, abs=0.05)
    assert in_delay <= theory.CONVEX_BOUND.delay


def test_linear_losses_without_blocks_do_not_know_the_delay():
    """The control: the exponent in τ + 1 comes from the blocks."""
    last = [measured(delay, updates=2048, loss="linear")[1][-1] for delay in CONVEX_DELAYS]
    assert abs(exponent(np.array(CONVEX_DELAYS) + 1.0, last)) < 0.1
