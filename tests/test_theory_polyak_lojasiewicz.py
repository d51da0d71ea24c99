from __future__ import annotations

import numpy as np
import pytest

from asyncsim import theory


def value(x):
    return x**2 + 3.0 * np.sin(x) ** 2


def slope(x):
    return 2.0 * x + 3.0 * np.sin(2.0 * x)


GRID = np.linspace(1e-3, 60.0, 400_001)


def test_stated_constant_is_valid_and_not_the_best():
    ratio = 0.5 * slope(GRID) ** 2 / value(GRID)
    assert ratio.min() >= theory.SINE_CONSTANT
    best = theory.sine_best_constant()
    assert 0.175 < ratio.min() < 0.176
    assert best.constant == pytest.approx(0.17553, abs=1e-5)
    assert best.constant == pytest.approx(ratio.min(), abs=1e-6)
    assert best.point == pytest.approx(GRID[ratio.argmin()], abs=1e-3)
    # The misprint 1/(2α) = 1/32 would make the constant α = 16.
    assert not np.all(ratio >= 16.0)


def test_smoothness_is_attained():
    curvature = np.diff(slope(GRID)) / np.diff(GRID)
    assert curvature.max() == pytest.approx(theory.SINE_SMOOTHNESS, abs=1e-4)


@pytest.mark.parametrize("start", [-50.0, -2.2, 0.3, 1.7, 2.2017, 30.0])
def test_gradient_descent_contracts_and_finds_a_small_gradient(start):
    x = [start]
    for _ in range(100):
        x.append(x[-1] - slope(x[-1]) / theory.SINE_SMOOTHNESS)
    f = value(np.array(x))
    assert np.all(f[1:] <= theory.contraction(theory.SINE_CONSTANT, theory.SINE_SMOOTHNESS) * f[:-1] + 1e-300)
    for k in (1, 10, 100):
        bound = theory.smallest_gradient_bound(theory.SINE_SMOOTHNESS, f[0], k)
        assert np.abs(slope(np.array(x[:k]))).min() <= bound
    # With the constant of the misprint the contraction 1 − 16/8 would be impossible.
    assert theory.contraction(16.0, theory.SINE_SMOOTHNESS) < 0.0
