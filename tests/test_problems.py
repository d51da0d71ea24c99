"""Every problem is what its docstring says: gradients, curvature, minima, noise by address."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from scipy import stats

from asyncsim import streams
from asyncsim.problems import PROBLEMS, AnyProblem, LeastSquares, Logistic, Online, PLExample, Quadratic, Softmax
from asyncsim.problems.base import complete
from asyncsim.problems.data import BUILT_IN, read
from asyncsim.trace import Row

SEED = 7

CASES = {
    "quadratic": Quadratic(eigenvalues=[0.5, 2.0, 7.0], noise=0.3),
    "saddle": Quadratic(eigenvalues=[-3.0, 1.0, 2.0], noise=0.1, start=[1.0, 2.0, 3.0]),
    "conditioned": Quadratic(dimension=6, condition_number=50.0, noise=1.0),
    "synthetic": LeastSquares(samples=40, dimension=5, condition_number=30.0, noise=0.2, batch=4),
    "ridge": LeastSquares(dataset="breast_cancer", batch=3, l2=0.1),
    "logistic": Logistic(dataset="breast_cancer", batch=5, l2=0.01),
    "softmax": Softmax(dataset="digits", batch=8, l2=0.05),
    "two_classes": Softmax(dataset="breast_cancer", batch=2, l2=0.01, scale=False),
    "pl_example": PLExample(dimension=3, noise=0.5),
    "square_losses": Online(loss="square"),
    "linear_losses": Online(loss="linear", block=3),
}
NOISY = {name: CASES[name] for name in CASES if name != "linear_losses"}
KNOWN_MINIMUM = [name for name in CASES if CASES[name].minimizer is not None]
SMALL = [name for name in CASES if CASES[name].dimension < 100]

cases = pytest.mark.parametrize("problem", CASES.values(), ids=CASES)
small_cases = pytest.mark.parametrize("problem", [CASES[name] for name in SMALL], ids=SMALL)
minimum_cases = pytest.mark.parametrize("problem", [CASES[name] for name in KNOWN_MINIMUM], ids=KNOWN_MINIMUM)


def points(problem, *shape, size=1.0, seed=0):
    """Points to test at; data that are not scaled have features of size 1000, so their points are small."""
    size = size if getattr(problem, "scale", True) else size * 1e-3
    return size * np.random.default_rng(seed).normal(size=(*shape, problem.dimension))


def relative(a, b):
    return np.abs(a - b).max() / max(np.abs(b).max(), 1e-300)


# --- derivatives ------------------------------------------------------------------------------------------------------


def slope_error(problem, gradient):
    """Relative difference between the gradient along a direction and a central difference of the value."""
    x, direction = points(problem), points(problem, seed=1)
    step = 1e-5
    measured = (problem.value(x + step * direction) - problem.value(x - step * direction)) / (2 * step)
    return abs(gradient(x) @ direction - measured) / max(abs(measured), 1e-3)


@cases
def test_gradient_is_the_slope_of_the_value(problem):
    assert slope_error(problem, problem.gradient) < 1e-6
    assert slope_error(problem, lambda x: 1.001 * problem.gradient(x) + 1e-4 * points(problem, seed=1)) > 1e-5


@cases
def test_hessian_vector_is_the_slope_of_the_gradient(problem):
    x, vector = points(problem), points(problem, seed=1)
    step = 1e-5
    measured = (problem.gradient(x + step * vector) - problem.gradient(x - step * vector)) / (2 * step)
    product = problem.hessian_vector(x, vector)
    assert product.shape == (problem.dimension,)
    assert np.abs(product - measured).max() <= 1e-6 * max(np.abs(measured).max(), 1e-3)


@cases
def test_block_gradient_is_part_of_the_gradient(problem):
    x, d = points(problem, 2), problem.dimension
    for block in (slice(None), slice(0, 1), slice(d // 3, d // 2), slice(d // 4, d), slice(0, d, 2), slice(d, d)):
        expected = problem.gradient(x)[..., block]
        part = problem.block_gradient(x, block)
        assert part.shape == expected.shape
        np.testing.assert_allclose(part, expected, rtol=1e-12, atol=1e-14)


def eigenvalues(problem, x):
    hessian = problem.hessian_vector(x, np.eye(problem.dimension))
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-12 * max(np.abs(hessian).max(), 1))
    return np.linalg.eigvalsh(hessian)


@small_cases
def test_smoothness_and_strong_convexity_bound_the_hessian(problem):
    for x in points(problem, 5, size=2.0):
        spectrum = eigenvalues(problem, x)
        assert np.abs(spectrum).max() <= problem.smoothness * (1 + 1e-12)
        assert spectrum.min() >= (problem.strong_convexity or -np.inf) - 1e-12 * problem.smoothness


@small_cases
def test_smoothness_is_the_least_bound(problem):
    """At x = 0 every one of these reaches its L, so nothing smaller would do."""
    assert np.abs(eigenvalues(problem, np.zeros(problem.dimension))).max() == pytest.approx(problem.smoothness)


def test_smoothness_bounds_the_softmax_hessian_of_ten_classes():
    problem = CASES["softmax"]
    vector = points(problem, seed=3)
    for x in points(problem, 3):
        for _ in range(30):  # power iteration
            vector = problem.hessian_vector(x, vector / np.linalg.norm(vector))
        assert 0.01 * problem.smoothness < np.linalg.norm(vector) <= problem.smoothness


@pytest.mark.parametrize("name", ["quadratic", "conditioned", "synthetic", "ridge"])
def test_strong_convexity_of_a_quadratic_is_its_smallest_eigenvalue(name):
    problem = CASES[name]
    assert eigenvalues(problem, points(problem)).min() == pytest.approx(problem.strong_convexity, rel=1e-9)


@pytest.mark.parametrize(
    "problem",
    [
        Quadratic(eigenvalues=[0.0, 1.0]),
        CASES["saddle"],
        Softmax(dataset="digits"),
        Logistic(dataset="breast_cancer"),
        LeastSquares(dataset="digits"),
    ],
)
def test_without_strong_convexity_none_is_claimed(problem):
    assert problem.strong_convexity is None


# --- minima -----------------------------------------------------------------------------------------------------------


@minimum_cases
def test_minimizer_minimises(problem):
    x, lowest = problem.minimizer, problem.minimum
    assert x.shape == (problem.dimension,)
    assert np.linalg.norm(problem.gradient(x)) <= 1e-10 * problem.smoothness * (1 + np.linalg.norm(x))
    assert problem.value(x) == pytest.approx(lowest, abs=1e-14)
    away = points(problem, 20)
    curvature = problem.strong_convexity or 0.0
    quadratic_growth = 0.5 * curvature * np.square(away).sum(axis=-1)
    assert (problem.value(x + away) - lowest >= quadratic_growth * (1 - 1e-9)).all()


@pytest.mark.parametrize("name", ["saddle"])
def test_a_saddle_has_no_minimum(name):
    assert CASES[name].minimizer is None
    assert CASES[name].minimum is None


@pytest.mark.parametrize("problem", [Softmax(dataset="digits"), Logistic(dataset="breast_cancer")])
def test_classification_without_regularisation_knows_no_minimum(problem):
    assert problem.minimizer is None
    assert problem.minimum is None


def test_least_squares_solution_is_lstsq():
    problem = LeastSquares(dataset="digits")  # some pixels are always 0, so the matrix is singular
    features, targets = read("digits")
    matrix = features / np.maximum(features.max(axis=0), 1)
    solution = np.linalg.lstsq(matrix, targets.astype(float), rcond=None)[0]
    np.testing.assert_allclose(problem.minimizer, solution, atol=1e-10)
    assert problem.minimum == pytest.approx(0.5 * np.mean((matrix @ solution - targets) ** 2))


def test_pl_inequality():
    problem = PLExample(dimension=1)
    x = np.linspace(-20, 20, 100_001)[:, None]
    slope, height = 0.5 * problem.gradient(x)[:, 0] ** 2, problem.value(x)
    assert (slope >= problem.pl_constant * height).all()
    assert not (slope >= 0.2 * height).all()  # a constant that is too large
    assert problem.hessian_vector(np.array([np.pi / 2]), np.ones(1))[0] == pytest.approx(-4.0)  # not convex


def test_synthetic_least_squares_has_the_spectrum_asked_for():
    problem = LeastSquares(samples=30, dimension=4, condition_number=1000.0, data_seed=5)
    matrix = problem.features
    np.testing.assert_allclose(np.linalg.eigvalsh(matrix.T @ matrix / 30), [1, 10, 100, 1000], rtol=1e-9)
    assert not np.allclose(matrix, LeastSquares(samples=30, dimension=4, condition_number=1000.0).features)
    residuals = LeastSquares(samples=2000, dimension=4, noise=0.5).minimum * 2
    assert residuals == pytest.approx(0.25 * (1 - 4 / 2000), rel=4 * np.sqrt(2 / 2000))


# --- the formulas of the data problems, by plain loops ----------------------------------------------------------------


def scaled_data(name):
    features, targets = read(name)
    largest = np.abs(features).max(axis=0)
    return features / np.where(largest == 0, 1, largest), targets


def softmax_sample(x, a, label):
    weights = x.reshape(-1, a.size + 1)
    powers = np.array([np.exp(w @ np.append(a, 1.0)) for w in weights])
    share = powers / powers.sum()
    rows = [(share[c] - (c == label)) * np.append(a, 1.0) for c in range(len(weights))]
    return -np.log(share[label]), np.concatenate(rows)


def logistic_sample(x, a, label):
    sign, a = (1 if label else -1), np.append(a, 1.0)
    odds = np.exp(-sign * (a @ x))
    return np.log(1 + odds), -sign * a * odds / (1 + odds)


def squared_sample(x, a, target):
    return 0.5 * (a @ x - target) ** 2, (a @ x - target) * a


@pytest.mark.parametrize(
    ("name", "sample"), [("softmax", softmax_sample), ("logistic", logistic_sample), ("ridge", squared_sample)]
)
def test_value_and_gradient_are_means_over_samples(name, sample):
    problem = CASES[name]
    x = points(problem, size=0.3)
    features, targets = scaled_data(problem.dataset)
    losses, gradients = zip(*[sample(x, a, b) for a, b in zip(features, targets, strict=True)], strict=True)
    assert problem.value(x) == pytest.approx(np.mean(losses) + 0.5 * problem.l2 * x @ x, rel=1e-12)
    assert relative(problem.gradient(x), np.mean(gradients, axis=0) + problem.l2 * x) < 1e-11

    row = Row(seed=SEED, replica=2, worker=3, draw=11)
    chosen = streams.integers(SEED, 2, 3, 11, streams.SAMPLE, problem.batch, len(targets))
    mean = np.mean([gradients[i] for i in chosen], axis=0)
    assert relative(problem.stochastic_gradient(x, row), mean + problem.l2 * x) < 1e-11


@pytest.mark.parametrize("name", ["softmax", "logistic", "two_classes"])
def test_accuracy(name):
    problem = CASES[name]
    assert 0.9 < problem.accuracy(problem.minimizer) < 1.0
    labels = read(problem.dataset)[1]
    largest_bias = np.zeros(problem.dimension)
    largest_bias[-1] = 1.0  # always says the last class
    assert problem.accuracy(largest_bias) == pytest.approx(np.mean(labels == labels.max()))
    assert problem.accuracy(np.stack([largest_bias, problem.minimizer])).shape == (2,)


def test_regression_has_no_accuracy():
    with pytest.raises(NotImplementedError):
        CASES["ridge"].accuracy(np.zeros(30))


@pytest.mark.parametrize("name", ["softmax", "logistic"])
def test_large_scores_do_not_overflow(name):
    problem = CASES[name]
    x = 1e4 * points(problem)
    with np.errstate(over="raise", invalid="raise"):
        assert np.isfinite(problem.value(x))
        assert np.isfinite(problem.gradient(x)).all()


def test_scaling_can_be_left_out():
    features, targets = read("breast_cancer")
    problem = Logistic(dataset="breast_cancer", scale=False)
    losses = [logistic_sample(np.full(31, 1e-4), a, b)[0] for a, b in zip(features, targets, strict=True)]
    assert problem.value(np.full(31, 1e-4)) == pytest.approx(np.mean(losses), rel=1e-12)


# --- batches of replicas, and noise by address ------------------------------------------------------------------------


@cases
def test_replicas_in_a_batch_agree_with_single_ones(problem):
    count = 40  # enough that full evaluations are cut into pieces
    x, vectors = points(problem, count), points(problem, count, seed=1)
    replica, worker, draw = np.arange(count) + 3, np.arange(count) % 5, np.arange(count) * 2
    update = np.arange(count) + 100
    batch = Row(SEED, replica, worker, draw, update)
    functions = {
        "value": (problem.value(x), lambda i: problem.value(x[i])),
        "gradient": (problem.gradient(x), lambda i: problem.gradient(x[i])),
        "hessian_vector": (problem.hessian_vector(x, vectors), lambda i: problem.hessian_vector(x[i], vectors[i])),
        "initial": (problem.initial(SEED, replica), lambda i: problem.initial(SEED, int(replica[i]))),
        "stochastic_gradient": (
            problem.stochastic_gradient(x, batch),
            lambda i: problem.stochastic_gradient(
                x[i], Row(SEED, int(replica[i]), int(worker[i]), int(draw[i]), int(update[i]))
            ),
        ),
    }
    for name, (together, alone) in functions.items():
        each = np.array([alone(i) for i in range(count)])
        assert together.shape == each.shape, name
        assert relative(together, each) < 1e-12 or np.abs(each).max() == 0, name


@cases
def test_more_leading_axes(problem):
    x = points(problem, 2, 3)
    assert problem.value(x).shape == (2, 3)
    assert problem.gradient(x).shape == x.shape
    assert relative(problem.gradient(x)[1, 2], problem.gradient(x[1, 2])) < 1e-12 or not problem.gradient(x).any()


@cases
def test_same_address_same_numbers(problem):
    x = points(problem)
    row = Row(SEED, replica=1, worker=2, draw=3, update=4)
    first = problem.stochastic_gradient(x, row)
    others = [row._replace(**{name: 1000}) for name in ("seed", "replica", "worker", "draw", "update")]
    changed = [not np.array_equal(problem.stochastic_gradient(x, other), first) for other in others]
    np.testing.assert_array_equal(problem.stochastic_gradient(x, row), first)
    if isinstance(problem, Online):  # a fair coin, so any one other address may give the same sign
        signs = problem.sign(SEED, np.arange(20)[:, None], np.arange(60))
        assert len(np.unique(signs, axis=0)) == 20
        np.testing.assert_array_equal(problem.stochastic_gradient(x, row._replace(worker=9, draw=9)), first)
    else:
        assert changed == [True, True, True, True, False]  # the place in the schedule is no part of the address


def has_mean(samples, expected, level=0.999):
    """Whether samples (n, d) have this mean along four directions, tested together at this level."""
    directions = np.random.default_rng(5).normal(size=(samples.shape[1], 4))
    along = (samples - expected) @ directions
    z = along.mean(axis=0) / np.maximum(along.std(axis=0) / np.sqrt(len(samples)), 1e-300)
    return bool((np.abs(z) < stats.norm.isf((1 - level) / 2 / 4)).all())


@cases
def test_stochastic_gradient_is_unbiased(problem):
    x, count = points(problem, size=0.5), 4000
    block = getattr(problem, "block", 1)
    row = Row(SEED, replica=0, worker=1, draw=np.arange(count), update=block * np.arange(count))
    samples = problem.stochastic_gradient(x, row)
    assert samples.shape == (count, problem.dimension)
    assert has_mean(samples, problem.gradient(x))
    assert not has_mean(samples, problem.gradient(x) + 0.2 * samples.std(axis=0))


@pytest.mark.parametrize("name", ["quadratic", "pl_example"])
def test_noise_has_the_stated_size(name):
    problem, count = CASES[name], 4000
    x = points(problem)
    samples = problem.stochastic_gradient(x, Row(SEED, 0, 0, np.arange(count))) - problem.gradient(x)
    total = np.square(samples / problem.noise).sum()
    low, high = stats.chi2.interval(0.999, df=count * problem.dimension)
    assert low < total < high
    assert not low < 1.1 * total < high


def test_larger_batches_have_smaller_variance():
    x = points(CASES["logistic"], size=0.5)
    direction = points(CASES["logistic"], seed=2)
    spread = {}
    for batch in (1, 16):
        problem = Logistic(dataset="breast_cancer", batch=batch)
        spread[batch] = (problem.stochastic_gradient(x, Row(SEED, 0, 0, np.arange(4000))) @ direction).var()
    assert spread[1] / spread[16] == pytest.approx(16, rel=0.2)


@pytest.mark.parametrize(
    "problem", [Quadratic(eigenvalues=[1.0, 2.0]), Softmax(dataset="breast_cancer"), PLExample(dimension=2)]
)
def test_without_noise_or_batch_the_gradient_is_exact(problem):
    x = points(problem)
    np.testing.assert_array_equal(problem.stochastic_gradient(x, Row(SEED, 0, 0, 0)), problem.gradient(x))


@pytest.mark.parametrize(
    ("problem", "start"),
    [
        (Quadratic(eigenvalues=[1.0, 2.0]), [1.0, 1.0]),
        (Quadratic(eigenvalues=[1.0, 2.0], start=[3.0, 4.0]), [3.0, 4.0]),
        (PLExample(dimension=2), [3.0, 3.0]),
        (LeastSquares(samples=3, dimension=2), [0.0, 0.0]),
    ],
)
def test_start(problem, start):
    np.testing.assert_array_equal(problem.initial(SEED, 0), start)
    np.testing.assert_array_equal(problem.initial(SEED, np.arange(3)), [start] * 3)


# --- online losses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["square", "linear"])
@pytest.mark.parametrize("block", [1, 7])
def test_regret_is_paid_loss_less_that_of_the_best_fixed_point(loss, block):
    problem = Online(loss=loss, block=block)
    fixed = np.linspace(-1, 1, 2001)
    for replica in (0, 3):
        for updates in (0, 1, 7, 12, 600 * block, 1300 * block + block // 2):
            signs = problem.sign(SEED, replica, np.arange(updates))
            losses = 0.5 * (fixed[:, None] - signs) ** 2 if loss == "square" else fixed[:, None] * signs
            best = losses.sum(axis=1).min()
            assert problem.regret(10.0, SEED, replica, updates) == pytest.approx(10.0 - best, abs=1e-6 * updates)


@pytest.mark.parametrize("loss", ["square", "linear"])
def test_regret_broadcasts(loss):
    problem = Online(loss=loss, block=3)
    replicas, updates = np.arange(4), np.array([0, 5, 2000])
    table = problem.regret(np.zeros((3, 4)), SEED, replicas, updates[:, None])
    each = [[problem.regret(0.0, SEED, r, u) for r in replicas] for u in updates]
    np.testing.assert_allclose(table, each)


@pytest.mark.parametrize("loss", ["square", "linear"])
def test_gradient_is_that_of_the_loss_paid(loss):
    problem = Online(loss=loss)
    x, row = np.linspace(-1, 1, 9)[:, None], Row(SEED, 0, 0, 0, update=np.arange(9))
    difference = (problem.played_loss(x + 1e-6, row) - problem.played_loss(x - 1e-6, row)) / 2e-6
    np.testing.assert_allclose(problem.stochastic_gradient(x, row)[:, 0], difference, atol=1e-8)


def test_signs_are_fair_and_constant_on_blocks():
    signs = Online(block=5).sign(SEED, np.arange(200)[:, None], np.arange(500)).reshape(200, 100, 5)
    assert (signs == signs[:, :, :1]).all()
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs[:, :, 0].mean()) < 3.3 / np.sqrt(20_000)
    assert abs((signs[:, 1:, 0] * signs[:, :-1, 0]).mean()) < 3.3 / np.sqrt(19_800)  # independent, not alternating


def delayed_regret(problem, staleness, updates, step, replicas=200):
    """Regret of delayed projected SGD after a quarter of the updates and after all: a plain loop, shape (2, replicas).

    Update k applies f_k's gradient at version max(0, k − staleness), and pays f_k there.
    """
    signs = problem.sign(3, np.arange(replicas), np.arange(updates)[:, None])
    x, paid = np.zeros((updates + 1, replicas)), np.zeros((updates + 1, replicas))
    for k in range(updates):
        read = x[max(0, k - staleness)]
        if problem.loss == "square":
            loss, gradient = 0.5 * (read - signs[k]) ** 2, read - signs[k]
        else:
            loss, gradient = signs[k] * read, signs[k]
        paid[k + 1] = paid[k] + loss
        x[k + 1] = np.clip(x[k] - step(k) * gradient, -1, 1)
    return np.array([problem.regret(paid[t], 3, np.arange(replicas), t) for t in (updates // 4, updates)])


@pytest.mark.parametrize("staleness", [0, 4, 16])
def test_regret_of_strongly_convex_losses(staleness):
    """With steps 1/(k+1) regret grows as ½ ln T, and as ½ (τ+1) ln T where signs last as long as gradients travel."""
    fresh = Online(loss="square")
    blocks = Online(loss="square", block=staleness + 1)
    growth = {
        problem: np.diff(delayed_regret(problem, staleness, 4096, lambda k: 1 / (k + 1)).mean(axis=1))[0]
        for problem in (fresh, blocks)
    }
    assert growth[fresh] == pytest.approx(0.5 * np.log(4), rel=0.05)
    assert growth[blocks] == pytest.approx(0.5 * (staleness + 1) * np.log(4), rel=0.05)


def test_regret_of_fresh_losses_grows_in_proportion_to_staleness():
    """The slope tends to .285 (docs/theory.md), from below: .28 between 0 and 64."""
    final = {s: delayed_regret(Online(), s, 4096, lambda k: 1 / (k + 1))[1].mean() for s in (0, 16, 64)}
    assert (final[64] - final[0]) / 64 == pytest.approx(0.28, abs=0.04)
    assert (final[64] - final[16]) / 48 == pytest.approx(0.28, abs=0.04)


def test_regret_of_linear_losses_grows_as_the_root_of_staleness_and_time():
    final = {}
    for staleness in (0, 3, 15):
        problem = Online(loss="linear", block=staleness + 1)

        def step(k, staleness=staleness):
            return 0.5 / np.sqrt((staleness + 1) * (k + 1))

        early, late = delayed_regret(problem, staleness, 4096, step).mean(axis=1)
        assert np.log(late / early) / np.log(4) == pytest.approx(0.5, abs=0.05)
        final[staleness] = late
    assert np.log(final[15] / final[0]) / np.log(16) == pytest.approx(0.5, abs=0.05)


# --- as parts of a scenario -------------------------------------------------------------------------------------------

adapter = TypeAdapter(AnyProblem)


@cases
def test_a_problem_survives_being_written_down(problem):
    again = adapter.validate_python(adapter.dump_python(problem, mode="json"))
    assert type(again) is type(problem)
    assert again.model_dump() == problem.model_dump()
    np.testing.assert_array_equal(again.gradient(points(problem)), problem.gradient(points(problem)))


@pytest.mark.parametrize(("kind", "cls"), PROBLEMS.items(), ids=PROBLEMS)
def test_registered_under_its_kind(kind, cls):
    assert cls.model_fields["kind"].default == kind
    assert cls.model_json_schema()["properties"]["kind"]["const"] == kind


def test_an_object_of_the_users_own():
    entry = {"kind": "user_problem:Bowl", "depth": 3.0}
    problem = adapter.validate_python(entry, context={"folder": str(Path(__file__).parent)})
    np.testing.assert_array_equal(problem.gradient(np.ones((4, 2))), np.full((4, 2), 3.0))
    assert adapter.dump_python(problem, mode="json") == entry
    whole = complete(problem)
    np.testing.assert_array_equal(whole.initial(SEED, np.arange(4)), np.zeros((4, 2)))
    np.testing.assert_array_equal(whole.stochastic_gradient(np.ones(2), Row(SEED, 0, 0, 0)), [3.0, 3.0])


MISTAKES = {
    "no_kind": ({}, "missing field 'kind'"),
    "unknown_kind": ({"kind": "quadratc"}, "did you mean 'quadratic'"),
    "unknown_field": ({"kind": "quadratic", "eigenvalue": [1.0]}, "did you mean 'eigenvalues'"),
    "no_eigenvalues": ({"kind": "quadratic"}, "give either 'eigenvalues', or 'dimension'"),
    "empty": ({"kind": "quadratic", "eigenvalues": []}, "'eigenvalues' is empty"),
    "two_forms": (
        {"kind": "quadratic", "eigenvalues": [1.0], "dimension": 1, "condition_number": 1.0},
        "give either 'eigenvalues', or 'dimension'",
    ),
    "another_dimension": ({"kind": "quadratic", "eigenvalues": [1.0], "dimension": 2}, "'dimension' is 2"),
    "no_dimension": ({"kind": "quadratic", "condition_number": 3.0}, "needs 'dimension'"),
    "one_eigenvalue": ({"kind": "quadratic", "dimension": 1, "condition_number": 3.0}, "one eigenvalue"),
    "condition_below_one": ({"kind": "quadratic", "dimension": 3, "condition_number": 0.5}, "greater than or equal"),
    "not_finite": ({"kind": "quadratic", "eigenvalues": [1.0, float("nan")]}, "finite number"),
    "negative_noise": ({"kind": "quadratic", "eigenvalues": [1.0], "noise": -1.0}, "greater than or equal"),
    "start": ({"kind": "quadratic", "eigenvalues": [1.0], "start": [1.0, 2.0]}, "'start' has 2 numbers"),
    "pl_start": ({"kind": "pl_example", "dimension": 2, "start": [1.0]}, "'start' has 1 numbers"),
    "no_data": ({"kind": "least_squares"}, "give either 'dataset', or 'samples'"),
    "two_sources": ({"kind": "least_squares", "dataset": "digits", "samples": 5}, "give either 'dataset'"),
    "no_columns": ({"kind": "least_squares", "samples": 5}, "'samples' needs 'dimension'"),
    "few_samples": ({"kind": "least_squares", "samples": 2, "dimension": 3}, "at least 'dimension' = 3"),
    "idle_noise": ({"kind": "least_squares", "dataset": "digits", "noise": 1.0}, "'noise' has no effect"),
    "idle_target": ({"kind": "least_squares", "samples": 5, "dimension": 2, "target": 0}, "'target' has no effect"),
    "columns": ({"kind": "least_squares", "dataset": "digits", "dimension": 5}, "has 64 features"),
    "dataset": ({"kind": "softmax", "dataset": "digit"}, "did you mean 'digits'"),
    "no_file": ({"kind": "softmax", "dataset": "nowhere.csv"}, "no such file: nowhere.csv"),
    "built_in_target": ({"kind": "softmax", "dataset": "digits", "target": "y"}, "digits is none"),
    "built_in_regression": ({"kind": "least_squares", "dataset": "digits", "target": 1}, "digits is none"),
    "ten_classes": ({"kind": "logistic", "dataset": "digits"}, "'digits' has 10 classes"),
    "no_batch": ({"kind": "softmax", "dataset": "digits", "batch": 0}, "greater than or equal to 1"),
    "negative_l2": ({"kind": "softmax", "dataset": "digits", "l2": -0.1}, "greater than or equal to 0"),
    "loss": ({"kind": "online", "loss": "cubic"}, "'square' or 'linear'"),
    "block": ({"kind": "online", "block": 0}, "greater than or equal to 1"),
}


@pytest.mark.parametrize(("entry", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_refused(entry, message):
    with pytest.raises(ValidationError) as error:
        adapter.validate_python(entry)
    assert message in error.value.errors()[0]["msg"]


def test_built_in_shapes_are_those_of_the_data():
    for name, shape in BUILT_IN.items():
        features, targets = read(name)
        assert (features.shape, np.unique(targets).size) == ((shape.samples, shape.features), shape.classes)
        assert Softmax(dataset=name).table.shape == (shape.samples, shape.features + 1 + shape.classes)


def test_checking_a_problem_loads_nothing_heavy(tmp_path):
    (tmp_path / "two.svm").write_text("1 1:0.5\n-1 2:1\n")
    code = (
        "import sys; from pydantic import TypeAdapter; from asyncsim.problems import AnyProblem\n"
        "known = TypeAdapter(AnyProblem).validate_python\n"
        "tables = [dict(kind='softmax', dataset='digits'), dict(kind='logistic', dataset='breast_cancer'),\n"
        "          dict(kind='least_squares', dataset='digits'), dict(kind='online'),\n"
        f"          dict(kind='logistic', dataset={str(tmp_path / 'two.svm')!r}), dict(kind='saddle', dimension=2),\n"
        "          dict(kind='saddle_chain', dimension=4), dict(kind='phase_retrieval', dimension=3, samples=9),\n"
        "          dict(kind='matrix_sensing', size=3, rank=2, samples=9),\n"
        "          dict(kind='matrix_completion', rows=3, columns=4, rank=2, observed=0.5),\n"
        "          dict(kind='blind_deconvolution', filter=2, signal=3, samples=9),\n"
        "          dict(kind='deep_linear', depth=5), dict(kind='autoencoder', hidden=[2]),\n"
        "          dict(kind='nmf', photograph='china', rank=2),\n"
        "          dict(kind='matrix_factorization', rows=3, columns=4, rank=2), dict(kind='tsne', samples=50),\n"
        "          dict(kind='tanh_network', hidden=2), dict(kind='conv_network', filters=1)]\n"
        "print([known(table).dimension for table in tables])\n"
        "heavy = ('sklearn', 'scipy', 'numba', 'pandas', 'pyarrow', 'PIL', 'torch')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[650, 31, 64, 1, 3, 2, 4, 3, 6, 14, 5, 5, 322, 2134, 14, 100, 160, 110]", "[]"]
