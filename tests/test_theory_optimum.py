from __future__ import annotations

import numpy as np
import pytest
from asynchronous_runs import random_runs

from asyncsim import theory

# Best of the expected iterate, spectrum [1, κ]: (κ, M, β, η, rate, best rate at β = 0), as in docs/theory.md.
MEAN = [
    (5, 1, 0.1459, 0.3820, 0.38197, 0.66667),
    (5, 2, -0.2169, 0.7887, 0.66950, 0.70711),
    (5, 3, -0.2522, 1.3351, 0.77329, 0.81650),
    (5, 4, -0.2680, 1.8770, 0.82025, 0.86603),
    (5, 6, -0.2828, 2.9571, 0.86466, 0.91287),
    (5, 8, -0.2898, 4.0357, 0.88602, 0.93541),
    (5, 16, -0.3001, 8.3464, 0.91713, 0.96825),
    (5, 32, -0.3051, 16.965, 0.93230, 0.98425),
    (20, 1, 0.4026, 0.1336, 0.63451, 0.90476),
    (20, 2, -0.1812, 0.2158, 0.69834, 0.70711),
    (20, 3, -0.2666, 0.3312, 0.80613, 0.81650),
    (20, 4, -0.2833, 0.4657, 0.85505, 0.86603),
    (20, 6, -0.2989, 0.7337, 0.90131, 0.91287),
    (20, 8, -0.3064, 1.0012, 0.92357, 0.93541),
    (20, 16, -0.3173, 2.0707, 0.95599, 0.96825),
    (20, 32, -0.3225, 4.2089, 0.97179, 0.98425),
]

# Best in mean square: (κ, M, β, η, rate of the root mean square, rate of the mean there).
MEAN_SQUARE = [
    (5, 1, 0.1459, 0.38197, 0.38197, 0.38197),
    (5, 2, 0.0056, 0.12974, 0.83864, 0.83811),
    (5, 3, -0.1657, 0.09991, 0.88774, 0.88706),
    (5, 4, -0.2712, 0.08119, 0.91267, 0.91187),
    (5, 6, -0.3980, 0.05916, 0.93884, 0.93793),
    (5, 8, -0.4745, 0.04668, 0.95264, 0.95167),
    (5, 16, -0.6217, 0.02564, 0.97468, 0.97368),
    (5, 32, -0.7285, 0.01370, 0.98664, 0.98560),
    (20, 1, 0.4026, 0.13358, 0.63451, 0.63451),
    (20, 2, 0.2734, 0.04016, 0.93946, None),
    (20, 3, 0.0710, 0.03668, 0.95641, None),
    (20, 4, -0.0464, 0.03333, 0.96421, None),
    (20, 6, -0.1832, 0.02798, 0.97260, None),
    (20, 8, -0.2656, 0.02414, 0.97734, None),
    (20, 16, -0.4302, 0.01593, 0.98588, None),
    (20, 32, -0.5614, 0.00981, 0.99146, None),
]

#: Growth per update of the root mean square at the optimum of the mean, κ = 5.
GROWTH = {2: 2.44, 3: 3.6, 4: 4.5, 6: 5.9, 8: 7.0, 16: 10.3, 32: 14.9}


@pytest.mark.parametrize(("kappa", "workers", "momentum", "step", "rate", "without"), MEAN)
def test_optimum_of_the_mean(kappa, workers, momentum, step, rate, without):
    best = theory.optimal_momentum([1.0, kappa], workers=workers)
    assert best.momentum == pytest.approx(momentum, abs=1.1e-4)
    assert best.step == pytest.approx(step, rel=2e-4, abs=1e-4)
    assert best.rate == pytest.approx(rate, abs=1.1e-5)
    assert theory.optimal_step([1.0, kappa], workers=workers).rate == pytest.approx(without, abs=1.1e-5)


@pytest.mark.parametrize(("kappa", "workers", "momentum", "step", "rate", "mean"), MEAN_SQUARE)
def test_optimum_in_mean_square(kappa, workers, momentum, step, rate, mean):
    best = theory.optimal_momentum([1.0, kappa], workers=workers, criterion="mean_square")
    assert best.momentum == pytest.approx(momentum, abs=1.1e-4)
    assert best.step == pytest.approx(step, abs=1.1e-5)
    assert best.rate == pytest.approx(rate, abs=1.1e-5)
    if mean is not None:
        there = theory.mean_rate(workers, [1.0, kappa], step=best.step, momentum=best.momentum)
        assert there == pytest.approx(mean, abs=1.1e-5)


@pytest.mark.parametrize(("workers", "growth"), GROWTH.items())
def test_optimum_of_the_mean_is_unstable_in_mean_square(workers, growth):
    best = theory.optimal_momentum([1.0, 5.0], workers=workers)
    assert best.rate < 1.0
    rate = theory.mean_square_rate(workers, [1.0, 5.0], step=best.step, momentum=best.momentum)
    assert rate == pytest.approx(growth, abs=0.051)


def test_single_runs_tell_the_two_optima_apart():
    eigenvalues = [1.0, 5.0]
    size = {}
    for criterion in ("mean", "mean_square"):
        best = theory.optimal_momentum(eigenvalues, workers=4, criterion=criterion)
        size[criterion] = [
            np.abs(
                random_runs(
                    4,
                    lambda x, strength=best.step * eigenvalue: strength * x,
                    momentum=best.momentum,
                    updates=200,
                    replicas=50,
                    seed=8,
                )[:, -1]
            )
            for eigenvalue in eigenvalues
        ]
    assert np.max(size["mean_square"]) < 1e-5  # every run converges
    assert np.min(size["mean"][1]) > 1e20  # every run diverges, although its mean contracts


@pytest.mark.parametrize("kappa", [2.0, 50.0, 1e4])
@pytest.mark.parametrize("criterion", ["mean", "mean_square"])
def test_one_worker_is_polyaks_heavy_ball(kappa, criterion):
    best = theory.optimal_momentum([3.0, 3.0 * kappa], workers=1, criterion=criterion)
    root = np.sqrt(kappa)
    assert best.momentum == pytest.approx(((root - 1) / (root + 1)) ** 2, abs=1e-5)
    assert best.step == pytest.approx(4.0 / 3.0 / (root + 1) ** 2, rel=1e-4)


@pytest.mark.parametrize(("kappa", "last_positive"), [(5.0, 2), (20.0, 3)])
def test_best_momentum_turns_negative(kappa, last_positive):
    def momentum(workers):
        return theory.optimal_momentum([1.0, kappa], workers=workers, criterion="mean_square").momentum

    assert momentum(last_positive) > 0.0 > momentum(last_positive + 1)


@pytest.mark.parametrize("criterion", ["mean", "mean_square"])
@pytest.mark.parametrize("workers", [3, 16])
def test_no_point_of_a_fine_grid_is_better(workers, criterion):
    """The rates have kinks: the search is compared with brute force, off the optimum and around it."""
    eigenvalues = [1.0, 7.0]
    best = theory.optimal_momentum(eigenvalues, workers=workers, criterion=criterion)
    rate = {"mean": theory.mean_rate, "mean_square": theory.mean_square_rate}[criterion]
    wide = [(b, s) for b in np.linspace(-0.95, 0.95, 25) for s in np.geomspace(1e-3, 8.0 * workers, 60)]
    near = [(best.momentum + b, best.step * s) for b in (-0.01, 0.0, 0.01) for s in (0.99, 1.0, 1.01)]
    lowest = min(rate(workers, eigenvalues, step=s, momentum=b) for b, s in wide + near)
    assert best.rate <= lowest * (1.0 + 1e-9)
    assert lowest < best.rate + 0.02  # the grid comes close, so the comparison means something


def test_interior_eigenvalues_change_nothing():
    ends = theory.optimal_momentum([1.0, 20.0], workers=4, criterion="mean_square")
    full = theory.optimal_momentum(np.linspace(1.0, 20.0, 40), workers=4, criterion="mean_square")
    assert full == ends


def test_histogram_of_exponential_workers_gives_their_optimum():
    pmf = theory.staleness_pmf(0.5, 40)
    histogram = theory.optimal_momentum([1.0, 20.0], staleness_pmf=pmf)
    workers = theory.optimal_momentum([1.0, 20.0], workers=2)
    assert histogram.rate == pytest.approx(workers.rate, abs=1e-5)
    assert histogram.momentum == pytest.approx(workers.momentum, abs=1e-3)


def test_no_staleness_is_one_worker():
    assert theory.optimal_step([1.0, 5.0], staleness_pmf=[1.0]).rate == pytest.approx(2.0 / 3.0, abs=1e-6)
    assert theory.optimal_step([1.0, 5.0], staleness_pmf=[0.0, 1.0]).rate > 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"staleness_pmf": [0.5, 0.5], "criterion": "mean_square"}, "needs workers"),
        ({}, "either workers or staleness_pmf"),
        ({"workers": 2, "staleness_pmf": [1.0]}, "either workers or staleness_pmf"),
        ({"workers": 2, "criterion": "median"}, "criterion must be"),
        ({"workers": 0}, "workers must be"),
    ],
)
def test_impossible_questions_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        theory.optimal_momentum([1.0, 5.0], **arguments)


def test_condition_numbers_beyond_the_search_are_refused():
    with pytest.raises(ValueError, match="condition number"):
        theory.optimal_momentum([1.0, 1e6], workers=1)
