"""What a gradient knows of f: values of blocks, blocks of even work, and SEACD's energy at every version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import asyncsim
from asyncsim.blocks import block_bounds
from asyncsim.methods import SEACD
from asyncsim.methods.energies import WithEnergies
from asyncsim.problems import MatrixFactorization, NonNegativeFactorization, PhaseRetrieval, Quadratic, Saddle
from asyncsim.problems.base import complete
from asyncsim.problems.matrix_factorization import Factorization
from asyncsim.replay import replay
from asyncsim.scenario import Metrics, build
from asyncsim.trace import Trace

TINY = str(Path(__file__).parent / "cases" / "valid" / "data" / "tiny.png")

FACTORIZATIONS = {
    "square": MatrixFactorization(rows=10, columns=10, rank=2),
    "tall": MatrixFactorization(rows=60, columns=7, rank=3),
    "by_residual": MatrixFactorization(rows=12, columns=9, rank=9),
    "nmf": NonNegativeFactorization(photograph=TINY, rank=3),
}
PROBLEMS = FACTORIZATIONS | {"saddle": Saddle(dimension=5), "phases": PhaseRetrieval(dimension=5, samples=20)}


def over(table):
    return pytest.mark.parametrize("problem", table.values(), ids=table)


def points(problem, *shape):
    return np.random.default_rng(5).normal(size=(*shape, problem.dimension))


# --- the value of a block's gradient ----------------------------------------------------------------------------------


@over(PROBLEMS)
@pytest.mark.parametrize("shape", [(), (3,)])
def test_the_value_beside_a_blocks_gradient_is_f_and_the_gradients_bits_are_the_same(problem, shape):
    x = points(problem, *shape)
    scale = problem._square * 0.5 * problem._scale if isinstance(problem, Factorization) else 1.0
    d = problem.dimension
    for block in (*problem.block_bounds(2), *problem.block_bounds(3), slice(0, d), slice(1, d - 1), slice(d // 2, d)):
        value, gradient = problem.block_value_and_gradient(x, block)
        np.testing.assert_allclose(value, problem.value(x), rtol=1e-13, atol=1e-14 * scale)
        assert gradient.tobytes() == problem.block_gradient(x, block).tobytes()


def test_where_f_is_tiny_the_value_is_right_to_the_square_of_the_matrix():
    """What cancels is as large as ‖A‖²/mn: there the products give no more than this."""
    problem = MatrixFactorization(rows=40, columns=30, rank=2)
    exact = problem.model_copy(update={"rank": 2})
    left, right = problem.factors(problem.minimizer)
    exact.__dict__["matrix"] = left @ right.T  # of rank 2: f* = 0
    exact.__dict__["_square"] = float(np.square(exact.matrix).sum())
    x = problem.minimizer
    scale = np.square(exact.matrix).mean()
    for block in problem.block_bounds(2):
        assert abs(exact.block_value_and_gradient(x, block)[0]) < 1e-14 * scale
    assert exact.value(x) < 1e-28 * scale  # which forms the residual, and so is right here too


def products(problem, block, monkeypatch):
    """Return how often a block's value and gradient evaluate f by itself."""
    called = []
    monkeypatch.setattr(Factorization, "value", lambda self, x: called.append(1) or np.array(0.0))
    problem.block_value_and_gradient(points(problem), block)
    return len(called)


@over(FACTORIZATIONS)
def test_the_value_is_a_by_product_where_a_whole_factor_is_in_the_block(problem, monkeypatch):
    edge = problem.rank * problem.shape[0]
    for block in (slice(0, edge), slice(edge, problem.dimension), slice(0, edge + problem.rank)):
        assert products(problem, block, monkeypatch) == 0
    assert products(problem, slice(0, edge - problem.rank), monkeypatch) == 1


# --- blocks of even work ----------------------------------------------------------------------------------------------


@over(FACTORIZATIONS)
def test_two_blocks_of_a_factorization_are_its_factors(problem):
    edge = problem.rank * problem.shape[0]
    assert problem.block_bounds(2) == [slice(0, edge), slice(edge, problem.dimension)]


@over(FACTORIZATIONS)
def test_blocks_of_a_factorization_take_as_much_work_up_to_a_row(problem):
    (rows, columns), k = problem.shape, problem.rank
    work = np.repeat(np.r_[np.full(rows, columns), np.full(columns, rows)], k) / k
    for blocks in (1, 2, 3, 4, 5):
        bounds = problem.block_bounds(blocks)
        assert [bound.start for bound in bounds] == [0, *(bound.stop for bound in bounds[:-1])]
        assert bounds[-1].stop == problem.dimension
        assert all(bound.start % k == 0 for bound in bounds)
        loads = [work[bound].sum() for bound in bounds]
        assert max(loads) - 2 * rows * columns / blocks < max(rows, columns)


def test_blocks_of_equal_length_would_not_be_even():
    """The control: of a tall matrix W has most coordinates, and no more of the work than H."""
    problem = FACTORIZATIONS["tall"]
    (rows, columns), k = problem.shape, problem.rank
    work = np.repeat(np.r_[np.full(rows, columns), np.full(columns, rows)], k) / k
    loads = [work[bound].sum() for bound in block_bounds(problem.dimension, 2)]
    assert max(loads) > 1.3 * min(loads)


@over(PROBLEMS)
@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_blocks_share_all_coordinates(problem, blocks):
    chosen = np.concatenate([np.arange(problem.dimension)[bound] for bound in problem.block_bounds(blocks)])
    np.testing.assert_array_equal(chosen, np.arange(problem.dimension))


def test_more_blocks_than_rows_are_cut_by_coordinates():
    problem = FACTORIZATIONS["square"]
    assert problem.block_bounds(problem.dimension) == block_bounds(problem.dimension, problem.dimension)


class Bowl:
    """A user's own problem, which has nothing but what it must."""

    dimension = 5

    def value(self, x):
        return 0.5 * x @ x

    def gradient(self, x):
        return x


def test_a_users_own_problem_has_both():
    own, x = complete(Bowl()), np.arange(5.0)
    assert own.block_bounds(2) == block_bounds(5, 2)
    value, gradient = own.block_value_and_gradient(x, slice(1, 3))
    assert (value, gradient.tolist()) == (15.0, [1.0, 2.0])


# --- the energy of every version --------------------------------------------------------------------------------------

METHOD = SEACD(delay_bound=6, epsilon=1e-3, blocks=2, escape_time=30, descent=40, smoothness=2.0)


def described(problem, method=METHOD, workers=3, updates=150, every=1, **run):
    return build(
        {
            "seed": 3,
            "cluster": {"workers": [{"count": workers, "service": {"law": "exponential", "mean": 1.0}}]},
            "problem": problem,
            "method": method,
            "run": {"updates": updates, **run},
            "metrics": {"every": every, "record": ["loss", "energy", "perturbations"]},
        }
    )


def both(scenario):
    """Return the run with energies found and the plain replay of its trace, measured alike."""
    run = asyncsim.run(scenario, record_iterates=True)
    plain = replay(run.trace, scenario.method, scenario.problem, record_iterates=True, metrics=scenario.metrics)
    return run, plain


def agree(run, plain, scale):
    for name in ("replica", "update", "metric"):
        np.testing.assert_array_equal(run.measurements[name], plain.measurements[name])
    assert run.iterates.tobytes() == plain.iterates.tobytes()
    energy = run.measurements["metric"] == run.metric_names.index("energy")
    np.testing.assert_array_equal(run.measurements["value"][~energy], plain.measurements["value"][~energy])
    found, oracle = run.measurements["value"][energy], plain.measurements["value"][energy]
    np.testing.assert_allclose(found, oracle, rtol=1e-12, atol=1e-13 * scale)
    return found, oracle


VARIANTS = {
    "every_update": {},
    "every_seventh": {"every": 7},
    "several_replicas": {"replicas": 3},
    "one_worker": {"workers": 1},
    "many_workers": {"workers": 9, "updates": 60},
}


@pytest.mark.parametrize("name", VARIANTS)
@over(FACTORIZATIONS | {"quadratic": Quadratic(dimension=6, condition_number=9.0)})
def test_the_energy_found_from_gradients_is_the_evaluated_one(problem, name):
    scenario = described(problem, **VARIANTS[name])
    scale = float(np.max(np.abs(problem.value(problem.initial(3, 0)))))
    found, _ = agree(*both(scenario), scale)
    assert np.isfinite(found).all()
    assert found.size > 5


def evaluations(scenario, monkeypatch):
    """Return how often f is evaluated by itself, once more than where the energy is not recorded."""

    def count(record):
        metrics = scenario.metrics.model_copy(update={"record": record})
        called = []
        value = Factorization.value
        with monkeypatch.context() as patch:
            patch.setattr(Factorization, "value", lambda self, x: called.append(1) or value(self, x))
            asyncsim.run(scenario.model_copy(update={"metrics": metrics}))
        return len(called)

    return count(("perturbations", "energy")) - count(("perturbations",))


def test_hardly_any_energy_takes_an_evaluation(monkeypatch):
    """Nobody reads the last version; a few others are overtaken before somebody comes to read. All would be 151."""
    scenario = described(FACTORIZATIONS["square"])
    assert evaluations(scenario, monkeypatch) <= 5
    sequential = scenario.model_copy(update={"method": METHOD.model_copy(update={"sweep": "gauss_seidel"})})
    assert evaluations(sequential, monkeypatch) == 151  # the control: a pass does not tell f where it began


def test_versions_that_nobody_reads_are_evaluated():
    columns = {
        "replica": [0] * 6, "worker": [0] * 6, "draw": list(range(6)), "read_version": [0, 0, 0, 1, 1, 1],
        "update": list(range(6)), "status": [0] * 6,
    }  # fmt: skip
    trace = Trace(columns, seed=0, workers=1, updates=[6])
    problem = FACTORIZATIONS["square"]
    metrics = Metrics(every=1, record=["energy"])
    plain = replay(trace, METHOD, problem, metrics=metrics).measurements
    watched = WithEnergies(METHOD)
    run = replay(trace, watched, problem, metrics=metrics)
    assert np.isnan(run.measurements["value"]).sum() == 6
    found = watched.complete(run.measurements, 0)
    np.testing.assert_allclose(found["value"], plain["value"], rtol=1e-12)


def test_reads_of_mixed_versions_tell_no_energy():
    """Each gradient is computed at half of one version and half of another, where f is another number."""
    update = np.arange(30)
    columns = {
        "replica": 0 * update, "worker": update % 3, "draw": update // 3, "read_version": np.maximum(update - 2, 0),
        "update": update, "status": 0 * update,
    }  # fmt: skip
    reads = np.stack([columns["read_version"], update], axis=1)
    trace = Trace(columns, reads=reads, seed=0, workers=3, updates=[30])
    problem, metrics = FACTORIZATIONS["square"], Metrics(every=1, record=["energy"])
    plain = replay(trace, METHOD, problem, metrics=metrics).measurements
    watched = WithEnergies(METHOD)
    found = watched.complete(replay(trace, watched, problem, metrics=metrics).measurements, 0)
    np.testing.assert_array_equal(found["value"], plain["value"])


def test_a_real_run_tells_its_energies_and_replays_bit_for_bit():
    real = {"source": "record", "backend": "threads"}
    run = asyncsim.run(described(FACTORIZATIONS["nmf"], workers=2, updates=60, **real))
    assert run.summary["recorded"]["replay"] == "identical"
    table = run.metrics[run.metrics["metric"] == "energy"]
    assert len(table) == 61
    plain = replay(run.trace, METHOD, FACTORIZATIONS["nmf"], metrics=Metrics(every=1, record=["energy"]))
    np.testing.assert_allclose(table["value"], plain.measurements["value"], rtol=1e-12)
