"""Problems that are not convex: derivatives, saddles, minima, stated constants, passes of coordinate descent."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from asyncsim import streams
from asyncsim.problems import (
    PROBLEMS,
    TSNE,
    AnyProblem,
    Autoencoder,
    BlindDeconvolution,
    ConvNetwork,
    DeepLinear,
    MatrixCompletion,
    MatrixFactorization,
    MatrixSensing,
    NonNegativeFactorization,
    PhaseRetrieval,
    PLExample,
    Problem,
    Quadratic,
    Saddle,
    SaddleChain,
    TanhNetwork,
)
from asyncsim.problems.data import read
from asyncsim.problems.matrix_factorization import Factorization
from asyncsim.problems.saddle_chain import LENGTH
from asyncsim.problems.tsne import joint_probabilities
from asyncsim.trace import Row

SEED = 7
TINY = str(Path(__file__).parent / "cases" / "valid" / "data" / "tiny.png")

CASES = {
    "saddle": Saddle(dimension=4, noise=0.1),
    "steep_saddle": Saddle(dimension=2, curvature=3.0),
    "saddle_in_one_dimension": Saddle(dimension=1, curvature=0.1),
    "saddle_chain": SaddleChain(dimension=5, L=0.7, gamma=1.3),
    "phase_retrieval": PhaseRetrieval(dimension=5, samples=40, batch=3),
    "matrix_sensing": MatrixSensing(size=4, rank=2, samples=30, batch=3),
    "few_measurements": MatrixSensing(size=4, rank=1, samples=9, data_seed=3),
    "matrix_completion": MatrixCompletion(rows=6, columns=5, rank=2, observed=0.6, batch=3),
    "all_entries": MatrixCompletion(rows=3, columns=7, rank=3, observed=1.0, data_seed=4),
    "blind_deconvolution": BlindDeconvolution(filter=3, signal=4, samples=20, batch=3),
    "deep_linear": DeepLinear(depth=4),
    "two_layers": DeepLinear(depth=2),
    "matrix_factorization": MatrixFactorization(rows=6, columns=4, rank=2),
    "wide_factorization": MatrixFactorization(rows=3, columns=8, rank=3, data_seed=5),
    "nmf": NonNegativeFactorization(photograph=TINY, rank=3),
    "tsne": TSNE(samples=25, perplexity=6.0),
    "tanh_network": TanhNetwork(dataset="breast_cancer", hidden=3, batch=5),
    "conv_network": ConvNetwork(filters=2, batch=5),
    "autoencoder": Autoencoder(dataset="breast_cancer", hidden=[4, 2, 3], batch=5),
    "relu_autoencoder": Autoencoder(dataset="breast_cancer", hidden=[3], activation="relu", batch=5),
    "tied_autoencoder": Autoencoder(dataset="breast_cancer", hidden=[4, 2, 4], tied=True, batch=5),
}
WITH_SADDLE = {name: problem for name, problem in CASES.items() if problem.strict_saddle is not None}
WITH_SADDLE["quadratic"] = Quadratic(eigenvalues=[-3.0, 1.0, 2.0])
WITH_MINIMUM = {name: problem for name, problem in CASES.items() if problem.minimizer is not None}
BATCHED = {name: problem for name, problem in CASES.items() if problem.batched}
SAMPLED = {name: problem for name, problem in CASES.items() if getattr(problem, "batch", None)}


def over(table):
    return pytest.mark.parametrize("problem", table.values(), ids=table)


def points(problem, *shape, size=None, seed=0):
    """Points to test at: the chain's spread over its roads and its corners."""
    size = size or (1.5 * LENGTH if isinstance(problem, SaddleChain) else 1.0)
    return size * np.random.default_rng(seed).normal(size=(*shape, problem.dimension))


def test_every_kind_is_tested():
    elsewhere = {"quadratic", "least_squares", "softmax", "logistic", "pl_example", "online", "torch"}
    assert {problem.kind for problem in CASES.values()} == set(PROBLEMS) - elsewhere


# --- derivatives ------------------------------------------------------------------------------------------------------


def slope_error(problem, gradient):
    """Relative difference between the gradient along a direction and a central difference of the value."""
    x, direction = points(problem), points(problem, size=1.0, seed=1)
    measured = (problem.value(x + 1e-5 * direction) - problem.value(x - 1e-5 * direction)) / 2e-5
    return abs(gradient(x) @ direction - measured) / max(abs(measured), 1e-3)


@over(CASES)
def test_gradient_is_the_slope_of_the_value(problem):
    assert slope_error(problem, problem.gradient) < 1e-6
    assert slope_error(problem, lambda x: 1.001 * problem.gradient(x)) > 1e-4


@over(CASES)
def test_hessian_vector_is_the_slope_of_the_gradient(problem):
    x, vector = points(problem), points(problem, size=1.0, seed=1)
    measured = (problem.gradient(x + 1e-5 * vector) - problem.gradient(x - 1e-5 * vector)) / 2e-5
    product = problem.hessian_vector(x, vector)
    assert product.shape == (problem.dimension,)
    assert np.abs(product - measured).max() <= 1e-6 * np.abs(measured).max()
    assert not problem.hessian_vector(x, np.zeros(problem.dimension)).any()


@over(CASES)
def test_block_gradient_is_part_of_the_gradient(problem):
    x, d = points(problem), problem.dimension
    whole = problem.gradient(x)
    for block in (slice(None), slice(0, 1), slice(d // 3, d // 2), slice(d // 4, d), slice(0, d, 2), slice(d, d)):
        part = problem.block_gradient(x, block)
        assert part.shape == whole[block].shape
        np.testing.assert_allclose(part, whole[block], rtol=1e-11, atol=1e-13 * np.abs(whole).max())


@over(CASES)
def test_value_and_gradient_are_the_value_and_the_gradient(problem):
    x = points(problem)
    value, gradient = problem.value_and_gradient(x)
    assert value == pytest.approx(problem.value(x), rel=1e-12)
    np.testing.assert_allclose(gradient, problem.gradient(x), rtol=1e-12)


def hessian(problem, x):
    rows = np.array([problem.hessian_vector(x, unit) for unit in np.eye(problem.dimension)])
    np.testing.assert_allclose(rows, rows.T, atol=1e-9 * max(np.abs(rows).max(), 1e-300))
    return rows


# --- saddles, minima, constants ---------------------------------------------------------------------------------------


@over(WITH_SADDLE)
def test_the_saddle_is_one(problem):
    x, curvature = problem.strict_saddle
    np.testing.assert_array_equal(problem.gradient(x), 0.0)
    least = np.linalg.eigvalsh(hessian(problem, x))[0]
    assert least < 0
    assert least == pytest.approx(curvature, rel=1e-10)


@over({name: WITH_SADDLE[name] for name in WITH_SADDLE if name != "quadratic"})
def test_started_at_the_saddle_gradient_descent_stays_there_to_the_bit(problem):
    x, _ = problem.strict_saddle
    started = problem.model_copy(update={"start": "saddle"}).initial(SEED, np.arange(3))
    np.testing.assert_array_equal(started, np.tile(x, (3, 1)))
    for _ in range(5):
        started = started - 0.1 * problem.gradient(started)
    np.testing.assert_array_equal(started, np.tile(x, (3, 1)))


@over(WITH_MINIMUM)
def test_the_minimizer_minimises(problem):
    x = problem.minimizer
    assert x.shape == (problem.dimension,)
    assert problem.value(x) == pytest.approx(problem.minimum, rel=1e-12, abs=1e-24)
    scale = np.abs(hessian(problem, x)).max()
    assert np.abs(problem.gradient(x)).max() <= 1e-12 * scale * np.abs(x).max()
    assert np.linalg.eigvalsh(hessian(problem, x))[0] >= -1e-12 * scale
    for near in x + points(problem, 20, size=0.1):
        assert problem.value(near) >= problem.minimum


def test_the_chain_has_a_saddle_after_every_coordinate_that_crossed():
    problem = CASES["saddle_chain"]
    for crossed in range(problem.dimension):
        x = np.where(np.arange(problem.dimension) < crossed, 4 * LENGTH, 0.0)
        np.testing.assert_array_equal(problem.gradient(x), 0.0)
        spectrum = np.linalg.eigvalsh(hessian(problem, x))
        np.testing.assert_allclose(spectrum, [-2 * problem.gamma] + [2 * problem.L] * (problem.dimension - 1))


def in_domain(problem, seed):
    """A random point where the stated constants hold, and one nearby."""
    x, y = points(problem, 2, seed=seed, size=1.0)
    if isinstance(problem, Saddle):
        return np.clip(x, -1.5, 1.5), np.clip(0.9 * x + 0.3 * y, -1.4, 1.4)
    if isinstance(problem, Factorization):
        largest = np.sqrt(2 * np.linalg.norm(problem.matrix, 2)) / max(
            np.linalg.norm(factor, 2) for one in (x, x + 0.3 * y) for factor in problem.factors(one)
        )
        return largest * x, largest * (x + 0.3 * y)
    radius = 2.0 * np.linalg.norm(problem.minimizer)
    norm = max(np.linalg.norm(x), np.linalg.norm(x + 0.3 * y))
    return radius / norm * x, radius / norm * (x + 0.3 * y)


@over({name: problem for name, problem in CASES.items() if problem.hessian_lipschitz is not None})
def test_smoothness_and_hessian_lipschitz_hold_where_they_are_said_to(problem):
    bends, changes = [], []
    for seed in range(20):
        x, y = in_domain(problem, seed)
        here, there = hessian(problem, x), hessian(problem, y)
        bends.append(np.abs(np.linalg.eigvalsh(here)).max() / problem.smoothness)
        change = np.abs(np.linalg.eigvalsh(here - there)).max()
        changes.append(change / (problem.hessian_lipschitz * np.linalg.norm(x - y)))
    assert max(bends) <= 1 + 1e-12
    assert max(changes) <= 1 + 1e-12
    assert max(bends) > 0.02  # the bounds are of the right size
    assert max(changes) > 0.02


def test_the_saddles_constants_are_reached_at_the_edge_of_the_domain():
    for curvature in (1.0, 3.0):
        problem = Saddle(dimension=3, curvature=curvature)
        edge, inside = np.array([0.0, 0.0, 1.5]), np.array([0.0, 0.0, 1.5 - 1e-6])
        assert np.linalg.eigvalsh(hessian(problem, edge))[-1] == pytest.approx(problem.smoothness)
        change = (hessian(problem, edge) - hessian(problem, inside))[-1, -1]
        assert change / 1e-6 == pytest.approx(problem.hessian_lipschitz, rel=1e-5)
    assert (Saddle(dimension=2).smoothness, Saddle(dimension=2).hessian_lipschitz) == (5.75, 9.0)


def test_the_chains_smoothness_is_the_largest_curvature_along_the_roads():
    for up, down in ((1.0, 1.0), (0.5, 1.0), (2.0, 0.1)):
        problem = SaddleChain(dimension=3, L=up, gamma=down)
        road = np.zeros((4001, 3))
        road[:, 0] = np.linspace(0, 5 * LENGTH, 4001)
        largest = max(np.abs(np.linalg.eigvalsh(hessian(problem, x))).max() for x in road[::20])
        assert largest == pytest.approx(problem.smoothness, rel=0.01)


@pytest.mark.parametrize("name", ["matrix_factorization", "wide_factorization"])
def test_the_factorizations_minimum_is_what_descent_finds(name):
    from scipy.optimize import minimize

    problem = CASES[name]
    found = min(
        minimize(problem.value, x, jac=problem.gradient, method="L-BFGS-B", options={"ftol": 0, "gtol": 1e-10}).fun
        for x in problem.initial(SEED, np.arange(4))
    )
    assert found == pytest.approx(problem.minimum, rel=1e-8, abs=1e-12)


# --- formulas by plain loops ------------------------------------------------------------------------------------------


def test_the_saddle_is_the_stated_function():
    x = np.array([0.3, -0.2, 0.7])
    assert Saddle(dimension=3).value(x) == pytest.approx(0.5 * (0.09 + 0.04) - 0.5 * 0.49 + 0.25 * 0.7**4)


def test_the_factorizations_gradient_is_that_of_the_mean_squared_error_entry_by_entry():
    problem = CASES["matrix_factorization"]
    (rows, columns), k = problem.shape, problem.rank
    x = points(problem)
    w, h = x[: rows * k].reshape(rows, k), x[rows * k :].reshape(columns, k).T
    expected, total = np.zeros(problem.dimension), 0.0
    for i in range(rows):
        for j in range(columns):
            error = problem.matrix[i, j] - sum(w[i, a] * h[a, j] for a in range(k))
            total += error**2
            for a in range(k):
                expected[i * k + a] -= 2 * error * h[a, j]
                expected[rows * k + j * k + a] -= 2 * error * w[i, a]
    assert problem.value(x) == pytest.approx(total / (rows * columns))
    np.testing.assert_allclose(problem.gradient(x), expected / (rows * columns), rtol=1e-12)


@pytest.mark.parametrize("rank", [1, 4, 17, 30])
def test_gram_matrices_and_residual_give_the_same(rank):
    """Above rank 2mn/3(m + n) ≈ 14 the gradient goes through the residual, below through Gram matrices."""
    problem = MatrixFactorization(rows=30, columns=60, rank=rank)
    x = problem.initial(SEED, 0)
    left, right = problem.factors(x)
    residual = left @ right.T - problem.matrix
    expected = np.concatenate([residual @ right, residual.T @ left]).reshape(-1) / 900
    np.testing.assert_allclose(problem.gradient(x), expected, atol=1e-13)
    assert problem.value_and_gradient(x)[0] == pytest.approx(np.mean(residual**2), rel=1e-12)
    for block in (slice(0, 7), slice(5, 30 * rank - 1), slice(30 * rank + 2, 90 * rank)):
        np.testing.assert_allclose(problem.block_gradient(x, block), expected[block], atol=1e-13)


def test_divergence_and_gradient_are_those_of_scikit_learn():
    from sklearn.manifold._t_sne import _joint_probabilities, _kl_divergence
    from sklearn.metrics import pairwise_distances

    problem = TSNE(samples=60, perplexity=12.0)
    data = read("digits")[0][:60]
    theirs = _joint_probabilities(pairwise_distances(data, metric="sqeuclidean").astype(np.float32), 12.0, 0)
    upper = np.triu_indices(60, 1)
    np.testing.assert_allclose(2 * problem.neighbours[upper], 2 * theirs, rtol=2e-3, atol=1e-9)  # theirs has 32 bits
    x = points(problem)
    value, gradient = _kl_divergence(x, problem.neighbours[upper], 1, 60, 2)
    # They sum p log(p/q) over pairs once, with p of a pair twice that of each order.
    assert problem.value(x) == pytest.approx(value, rel=1e-9)
    np.testing.assert_allclose(problem.gradient(x), gradient, rtol=1e-7, atol=1e-12)


def test_every_neighbourhood_has_the_perplexity():
    data = np.random.default_rng(0).normal(size=(40, 5)) * 10.0 ** np.arange(-2, 3)
    distances = np.square(data[:, None] - data).sum(axis=-1)
    joint = joint_probabilities(distances, 7.0)
    np.testing.assert_allclose(joint, joint.T)
    assert joint.sum() == pytest.approx(1.0)
    # p_{j|i} is not kept; on points that all see the same it is n p_ij, as on a ring.
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    conditional = 40 * joint_probabilities(np.square(ring[:, None] - ring).sum(axis=-1), 7.0)
    rows = conditional[~np.eye(40, dtype=bool)].reshape(40, 39)
    entropy = -(rows * np.log(np.maximum(rows, 1e-300))).sum(axis=1)
    np.testing.assert_allclose(np.exp(entropy), 7.0, rtol=1e-9)


def test_the_convolution_by_plain_loops():
    problem = CASES["conv_network"]
    x, sample = points(problem), 3
    filters, bias, dense, dense_bias = problem.parts(x)
    picture = problem.features[sample].reshape(8, 8)
    inside = []
    for i in range(3):
        for j in range(3):
            for f in range(2):
                answers = [
                    np.sum(picture[2 * i + a : 2 * i + a + 3, 2 * j + b : 2 * j + b + 3] * filters[f].reshape(3, 3))
                    for a in (0, 1)
                    for b in (0, 1)
                ]
                inside.append(max(0.0, max(answers) + bias[f]))
    scores = problem.forward(problem.parts(x), problem.features[sample : sample + 1])[0][0]
    np.testing.assert_allclose(scores, dense @ inside + dense_bias, rtol=1e-12)


@pytest.mark.parametrize("name", ["tanh_network", "conv_network"])
def test_networks_learn(name):
    """Fifty steps from the start already classify most samples, and the loss is the mean of −log p."""
    problem = CASES[name].model_copy(update={"batch": 50})
    x = problem.initial(SEED, 0)
    scores = problem.forward(problem.parts(x), problem.features)[0]
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    right = shares[np.arange(len(shares)), problem.classes]
    assert problem.value(x) == pytest.approx(-np.log(right).mean(), rel=1e-12)
    for draw in range(300):
        x = x - 0.3 * problem.stochastic_gradient(x, Row(SEED, 0, 0, draw))
    assert problem.accuracy(x) > 0.85
    assert problem.accuracy(np.zeros(problem.dimension)) == pytest.approx(np.mean(problem.classes == 0))


# --- randomness by address, replicas ----------------------------------------------------------------------------------


@over(CASES)
def test_replicas_start_where_their_address_says(problem):
    together = problem.initial(SEED, np.arange(4))
    assert together.shape == (4, problem.dimension)
    assert np.isfinite(together).all()
    for replica in range(4):
        np.testing.assert_array_equal(problem.initial(SEED, replica), together[replica])
    if not isinstance(problem, Saddle):
        assert not np.array_equal(together[0], together[1])
        assert not np.array_equal(problem.initial(SEED + 1, 0), together[0])


def test_a_photograph_starts_without_negative_entries_and_as_bright_as_it_is():
    problem = CASES["nmf"]
    x = problem.initial(SEED, np.arange(200))
    assert (x >= 0).all()
    left, right = problem.factors(x)
    # E|N|² of both factors is 2/π of the mean of A.
    assert (left @ right.swapaxes(-1, -2)).mean() == pytest.approx(2 / np.pi * problem.matrix.mean(), rel=0.1)


@over(BATCHED)
def test_replicas_in_a_batch_agree_with_single_ones(problem):
    x, vectors = points(problem, 2, 3), points(problem, 2, 3, size=1.0, seed=1)
    replica = np.arange(6).reshape(2, 3)
    block = slice(0, max(problem.dimension // 2, 1))
    pairs = {
        "value": problem.value,
        "gradient": problem.gradient,
        "block_gradient": lambda x: problem.block_gradient(x, block),
        "sweep": lambda x: problem.sweep(x, slice(0, 4), 0.1),
    }
    for name, function in pairs.items():
        each = np.array([[function(one) for one in row] for row in x])
        together = function(x)
        assert together.shape == each.shape, name
        np.testing.assert_allclose(together, each, rtol=1e-10, atol=1e-12 * np.abs(each).max(), err_msg=name)
    product, stochastic = problem.hessian_vector(x, vectors), problem.stochastic_gradient(x, Row(SEED, replica, 1, 2))
    for i in range(2):
        for j in range(3):
            alone = problem.hessian_vector(x[i, j], vectors[i, j])
            np.testing.assert_allclose(product[i, j], alone, rtol=1e-9, atol=1e-12 * np.abs(product).max())
            alone = problem.stochastic_gradient(x[i, j], Row(SEED, int(replica[i, j]), 1, 2))
            np.testing.assert_allclose(stochastic[i, j], alone, rtol=1e-10, atol=1e-12 * np.abs(stochastic).max())


def sample_count(problem):
    if isinstance(problem, MatrixCompletion):
        return problem.known[0].size
    return problem.samples if "samples" in type(problem).model_fields else len(problem.classes)


@over(SAMPLED)
def test_the_stochastic_gradient_is_the_mean_over_the_samples_addressed(problem):
    """Batches of one by the same address add up to it, and all samples together give the gradient."""
    x, row = points(problem), Row(SEED, 2, 3, 11)
    count = sample_count(problem)
    drawn = streams.integers(SEED, 2, 3, 11, streams.SAMPLE, 2000, count)
    longer = problem.model_copy(update={"batch": 2000}).stochastic_gradient(x, row)
    exact, each = problem.gradient(x), []
    first = problem.stochastic_gradient(x, row)
    for length in range(1, problem.batch + 1):
        mean = problem.model_copy(update={"batch": length}).stochastic_gradient(x, row)
        each.append(length * mean - sum(each, np.zeros_like(x)))
    np.testing.assert_allclose(first, np.mean(each, axis=0), rtol=1e-9, atol=1e-12 * np.abs(first).max())
    assert len(np.unique(drawn)) > 0.9 * min(count, 2000) * (1 - np.exp(-2000 / count)) / min(1, 2000 / count)
    assert np.linalg.norm(longer - exact) < 0.5 * np.linalg.norm(first - exact)
    none = problem.model_copy(update={"batch": None})
    np.testing.assert_array_equal(none.stochastic_gradient(x, row), exact)


# --- passes of coordinate descent -------------------------------------------------------------------------------------

SWEPT = CASES | {"quadratic": Quadratic(eigenvalues=[-3.0, 1.0, 2.0, 5.0]), "pl_example": PLExample(dimension=4)}


@over({name: SWEPT[name] for name in SWEPT if type(SWEPT[name]).sweep is not Problem.sweep})
def test_a_sweep_is_the_slow_one(problem):
    x, d = points(problem), problem.dimension
    kept = x.copy()
    edge = problem.rank * problem.shape[0] if isinstance(problem, Factorization) else 1
    bounds = [(0, d), (1, d - 1), (d // 2, d // 2 + 1), (edge - 1, edge + 1), (0, d, 2), (d, d)]
    for block in (slice(*bound) for bound in bounds):
        slow = Problem.sweep(problem, x, block, 0.2)
        fast = problem.sweep(x, block, 0.2)
        assert fast.shape == slow.shape
        np.testing.assert_allclose(fast, slow, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(x, kept)


def test_a_sweep_is_not_a_gradient_step_where_coordinates_feel_each_other():
    problem = CASES["matrix_factorization"]
    x, block = points(problem), slice(0, 8)
    step = x[block] - 0.2 * problem.block_gradient(x, block)
    assert np.abs(problem.sweep(x, block, 0.2) - step).max() > 1e-3


@over({name: CASES[name] for name in ("saddle_chain", "phase_retrieval", "tsne")})
def test_the_slow_sweep_goes_coordinate_by_coordinate(problem):
    x, block = points(problem, size=1.0), slice(1, 4)
    expected = x.copy()
    for i in range(1, 4):
        expected[i] -= 0.05 * problem.gradient(expected)[i]
    np.testing.assert_allclose(problem.sweep(x, block, 0.05), expected[block], rtol=1e-12)


# --- refusals ---------------------------------------------------------------------------------------------------------

adapter = TypeAdapter(AnyProblem)


@over(CASES)
def test_a_problem_survives_being_written_down(problem):
    again = adapter.validate_python(adapter.dump_python(problem, mode="json"))
    assert again == problem
    np.testing.assert_array_equal(again.gradient(points(problem)), problem.gradient(points(problem)))


MISTAKES = {
    "no_coordinate": ({"kind": "saddle", "dimension": 0}, "greater than or equal to 1"),
    "flat": ({"kind": "saddle", "dimension": 3, "curvature": 0.0}, "greater than 0"),
    "start": ({"kind": "saddle", "dimension": 3, "start": [1.0]}, "'start' has 1 numbers"),
    "chain_start": ({"kind": "saddle_chain", "dimension": 2, "start": [1.0]}, "'start' has 1 numbers"),
    "one_phase": ({"kind": "phase_retrieval", "dimension": 1, "samples": 3}, "greater than or equal to 2"),
    "too_large": ({"kind": "phase_retrieval", "dimension": 10**6, "samples": 10**6}, "too large"),
    "sensing_rank": (
        {"kind": "matrix_sensing", "size": 3, "rank": 4, "samples": 9},
        "at most 'size' = 3",
    ),
    "completion_rank": (
        {"kind": "matrix_completion", "rows": 5, "columns": 3, "rank": 4, "observed": 0.5},
        "'rank' must be at most 3, the matrix is 5 × 3",
    ),
    "nothing_observed": (
        {"kind": "matrix_completion", "rows": 5, "columns": 3, "rank": 2, "observed": 0.0},
        "greater than 0",
    ),
    "more_than_all_observed": (
        {"kind": "matrix_completion", "rows": 5, "columns": 3, "rank": 2, "observed": 1.5},
        "less than or equal to 1",
    ),
    "less_than_one_observed": (
        {"kind": "matrix_completion", "rows": 5, "columns": 3, "rank": 2, "observed": 0.01},
        "is less than one entry",
    ),
    "completion_start": (
        {"kind": "matrix_completion", "rows": 5, "columns": 3, "rank": 1, "observed": 0.5, "start": [1.0]},
        "'start' has 1 numbers",
    ),
    "long_filter": (
        {"kind": "blind_deconvolution", "filter": 30, "signal": 4, "samples": 20},
        "'samples' must not be less than 'filter' = 30",
    ),
    "no_filter": ({"kind": "blind_deconvolution", "filter": 0, "signal": 4, "samples": 20}, "greater than or equal"),
    "no_depth": ({"kind": "deep_linear", "depth": 0}, "greater than or equal to 1"),
    "deep_start": ({"kind": "deep_linear", "depth": 3, "start": [1.0, 2.0]}, "'start' has 2 numbers"),
    "no_hidden": ({"kind": "autoencoder", "hidden": []}, "at least 1 item"),
    "hidden_zero": ({"kind": "autoencoder", "hidden": [8, 0, 8]}, "greater than or equal to 1"),
    "tied_unlike": ({"kind": "autoencoder", "hidden": [8, 2, 6], "tied": True}, "read the same from both ends"),
    "tied_even": ({"kind": "autoencoder", "hidden": [8, 8], "tied": True}, "an odd number of hidden layers"),
    "activation": ({"kind": "autoencoder", "activation": "sigmoid"}, "'tanh' or 'relu'"),
    "rank": ({"kind": "matrix_factorization", "rows": 5, "columns": 3, "rank": 4}, "'rank' must be at most 3"),
    "no_matrix": ({"kind": "matrix_factorization", "rows": 5, "rank": 2}, "give either 'file'"),
    "two_matrices": ({"kind": "matrix_factorization", "file": TINY, "rows": 5, "rank": 2}, "give either 'file'"),
    "no_matrix_file": ({"kind": "matrix_factorization", "file": TINY, "rank": 2}, "ends in .npy or .csv"),
    "photograph_rank": ({"kind": "nmf", "photograph": "china", "rank": 428}, "'rank' must be at most 427"),
    "photograph": ({"kind": "nmf", "photograph": "chnia", "rank": 2}, "did you mean 'china'"),
    "no_photograph": ({"kind": "nmf", "photograph": "nowhere.png", "rank": 2}, "no such file"),
    "perplexity": ({"kind": "tsne", "samples": 20, "perplexity": 19.0}, "less than samples − 1 = 19"),
    "samples": ({"kind": "tsne", "samples": 5000}, "but 'digits' has 1797"),
    "hidden": ({"kind": "tanh_network", "hidden": 0}, "greater than or equal to 1"),
    "kernel": ({"kind": "conv_network", "kernel": 8}, "'kernel' must be at most 7"),
    "no_pictures": ({"kind": "conv_network", "dataset": "breast_cancer"}, "30 features are no square picture"),
}


@pytest.mark.parametrize(("entry", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_refused(entry, message):
    with pytest.raises(ValidationError) as error:
        adapter.validate_python(entry)
    assert message in " ".join(each["msg"] for each in error.value.errors())
