"""Deep linear networks and autoencoders: what they compute, where they are flat, how long descent takes."""

from pathlib import Path

import numpy as np
import pytest

import asyncsim
from asyncsim.problems import Autoencoder, DeepLinear
from asyncsim.problems.shares import Shares
from asyncsim.scenario import ScenarioError, build
from asyncsim.summary import first_passage
from asyncsim.sweep import cells
from asyncsim.trace import Row

SEED = 7
SCENARIOS = Path(__file__).parent.parent / "scenarios"


# --- deep linear networks ---------------------------------------------------------------------------------------------


def test_only_two_zeros_make_a_strict_saddle():
    """Curvature −|Π of the others|; three zeros leave nothing."""
    x, problem = np.array([0.0, 1.5, 0.0, -2.0]), DeepLinear(depth=4)
    np.testing.assert_array_equal(problem.gradient(x), 0.0)
    spectrum = np.linalg.eigvalsh([problem.hessian_vector(x, unit) for unit in np.eye(4)])
    np.testing.assert_allclose(spectrum, [-3.0, 0.0, 0.0, 3.0], atol=1e-12)
    x[1] = 0.0
    assert not np.any([problem.hessian_vector(x, unit) for unit in np.eye(4)])


def test_zeros_divide_nothing():
    np.testing.assert_array_equal(DeepLinear(depth=3).gradient(np.array([2.0, 0.0, 3.0])), [0.0, -6.0, 0.0])


def test_the_times_in_the_scenarios_table_are_measured():
    """Medians of 400 replicas, in tens. This pins figures; that they grow exponentially is not claimed from them."""
    medians = {}
    for cell in cells(asyncsim.load(SCENARIOS / "deep_linear.toml", overrides={"run.updates": 400})):
        if cell.scenario.problem.depth in (4, 8, 10):
            times = first_passage(asyncsim.run(cell.scenario), "loss < 0.01")[0]
            medians[cell.scenario.problem.depth] = np.quantile(np.nan_to_num(times, nan=np.inf), 0.5, method="lower")
    assert medians == {4: 50, 8: 110, 10: 250}


# --- autoencoders -----------------------------------------------------------------------------------------------------


def test_an_autoencoder_by_plain_loops():
    problem = Autoencoder(dataset="breast_cancer", hidden=[4, 2, 3], activation="relu")
    x, sample = np.random.default_rng(0).normal(size=problem.dimension), problem.features[11]
    inside, parts = sample, problem.parts(x)
    for layer in range(4):
        weight, bias = parts[2 * layer], parts[2 * layer + 1]
        inside = np.array(
            [sum(weight[i, j] * inside[j] for j in range(len(inside))) + bias[i] for i in range(len(bias))]
        )
        if layer < 3:
            inside = np.maximum(inside, 0.0)
    np.testing.assert_allclose(problem.forward(parts, problem.features[11:12])[0][0], inside, rtol=1e-12)
    loss = problem.losses(inside[None], sample[None], problem.classes[11:12])[0]
    assert loss == pytest.approx(np.mean((inside - sample) ** 2))


def test_tied_weights_are_those_of_an_untied_network_whose_decoder_is_the_transposed_encoder():
    tied = Autoencoder(hidden=[5, 2, 5], tied=True)
    x = np.random.default_rng(0).normal(size=tied.dimension)
    first, b1, second, b2, b3, b4 = tied.parts(x)
    parts = [first, b1, second, b2, second.T, b3, first.T, b4]
    untied, same = Autoencoder(hidden=[5, 2, 5]), np.concatenate([part.ravel() for part in parts])
    assert tied.value(x) == pytest.approx(untied.value(same), rel=1e-13)
    assert tied.dimension == untied.dimension - first.size - second.size


def mean_picture(problem):
    """The point where all weights are 0 and the last biases are the mean picture."""
    x = np.zeros(problem.dimension)
    x[-problem.feature_count :] = problem.features.mean(axis=0)
    return x


def least_curvature(problem):
    x = mean_picture(problem)
    return np.linalg.eigvalsh([problem.hessian_vector(x, unit) for unit in np.eye(problem.dimension)])[0]


def test_without_weights_it_is_stationary_and_one_hidden_layer_makes_a_strict_saddle():
    shallow = Autoencoder(dataset="breast_cancer", hidden=[2])
    deep = Autoencoder(dataset="breast_cancer", hidden=[2, 2])
    for problem in (shallow, deep):
        assert np.abs(problem.gradient(mean_picture(problem))).max() < 1e-15
        assert problem.value(mean_picture(problem)) == pytest.approx(problem.features.var(axis=0).mean())
    covariance = np.cov(shallow.features.T, bias=True)
    assert least_curvature(shallow) == pytest.approx(-2 / 30 * np.linalg.eigvalsh(covariance)[-1], rel=1e-9)
    assert abs(least_curvature(deep)) < 1e-12


def test_an_autoencoder_learns_more_than_the_mean_picture_and_stays_longer_the_closer_it_starts():
    """After 600 steps the usual start is well below the variance of the pictures; a small one is still at it."""
    reached = {}
    for scale in (1.0, 0.2):
        problem = Autoencoder(hidden=[16, 4, 16], batch=64, start_scale=scale)
        x = problem.initial(SEED, 0)
        for draw in range(600):
            x = x - 0.5 * problem.stochastic_gradient(x, Row(SEED, 0, 0, draw))
        reached[scale] = problem.value(x) / problem.features.var(axis=0).mean()
    assert reached[1.0] < 0.8
    assert reached[0.2] == pytest.approx(1.0, abs=0.02)


def test_workers_may_have_one_class_each():
    problem = Autoencoder(hidden=[3], batch=4).shared_out(Shares(split="one_class", workers=10, seed=SEED))
    chosen = problem.chosen(Row(SEED, np.arange(50), 6, 0), 4)
    assert set(problem.classes[chosen].ravel()) == {6}
    x = problem.initial(SEED, 0)
    own = Autoencoder(hidden=[3]).gradient_over(x, np.flatnonzero(problem.classes == 6))
    whole = problem.model_copy(update={"batch": None})
    np.testing.assert_allclose(whole.stochastic_gradient(x, Row(SEED, 0, 6, 0)), own, rtol=1e-10, atol=1e-15)


def test_an_autoencoder_has_no_accuracy():
    data = {
        "problem": {"kind": "autoencoder"},
        "method": {"kind": "sgd", "step": 0.1},
        "run": {"source": "synthetic", "staleness": {"law": "constant", "value": 0}, "updates": 5},
        "metrics": {"record": ["accuracy"]},
    }
    with pytest.raises(ScenarioError, match="'accuracy' needs a classification problem"):
        asyncsim.run(build(data))


def test_noise_shortens_the_plateau_of_the_scenario():
    """After 600 updates the noisy run has left the variance of the pictures, the other has not."""
    short = {"run.updates": 600, "run.replicas": 1, "metrics.every": 600}
    swept = [cell.scenario for cell in cells(asyncsim.load(SCENARIOS / "autoencoder_noise.toml", overrides=short))]
    reached = {}
    for scenario in swept[:2]:
        assert scenario.method.compressor.kind == "identity"
        run, problem = asyncsim.run(scenario), scenario.problem
        reached[scenario.method.noise] = problem.value(run.final_iterates) / problem.features.var(axis=0).mean()
    assert reached[0.0] == pytest.approx(1.0, abs=0.01)
    assert reached[0.01] < 0.93
