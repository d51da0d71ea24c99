"""The replay against a plain loop that keeps every version, and what a run says of itself."""

import gc
import sys
from pathlib import Path

import numpy as np
import pytest

import asyncsim
from asyncsim.methods import (
    GD,
    PAGD,
    PGD,
    PROJECTIONS,
    PSGD,
    SEACD,
    SGD,
    STEP_RULES,
    Adam,
    DecentralizedSGD,
    LocalSGD,
    NoisyGD,
    SaddleNGD,
    ZerothOrderConditionalGradient,
    ZerothOrderSGD,
)
from asyncsim.methods.base import Method, State
from asyncsim.problems import (
    Autoencoder,
    BlindDeconvolution,
    ConvNetwork,
    DeepLinear,
    LeastSquares,
    Logistic,
    MatrixCompletion,
    MatrixFactorization,
    MatrixSensing,
    NonNegativeFactorization,
    Online,
    PhaseRetrieval,
    PLExample,
    Quadratic,
    Saddle,
    SaddleChain,
    Softmax,
    TanhNetwork,
)
from asyncsim.replay import Replayer, plan_of, replay
from asyncsim.scenario import Metrics, Scenario, ScenarioError, build
from asyncsim.schedule import BatchSchedule
from asyncsim.slots import plan_slots
from asyncsim.trace import APPLIED, Row

EXPONENTIAL = {"law": "exponential", "mean": 1.0}


def scenario(policy: dict | None = None, *, workers: int = 5, updates: int = 60, replicas: int = 3, **rest) -> Scenario:
    data = {
        "seed": 11,
        "cluster": {"workers": [{"count": workers, "service": EXPONENTIAL}]},
        "policy": policy or {"kind": "async"},
        "run": {"updates": updates, "replicas": replicas},
    }
    return build(data | rest)


def plain_replay(trace, method, problem, replica: int) -> np.ndarray:
    """Keep every version; apply the updates one after another; return all versions, shape (updates + 1, d)."""
    mine = np.flatnonzero((trace["replica"] == replica) & (trace["status"] == APPLIED))
    state, memories = method.init(problem, problem.initial(trace.seed, replica), trace.workers)
    versions = [np.array(state.x)]
    for update in range(int(trace.updates[trace.replicas == replica][0])):
        payloads, rows = [], []
        for i in mine[trace["update"][mine] == update]:
            read = int(trace["read_version"][i])
            worker = int(trace["worker"][i])
            row = Row(trace.seed, replica, worker, int(trace["draw"][i]), update, update - read)
            payload, memories[worker] = method.message(problem, versions[read], memories[worker], row)
            payloads.append(payload)
            rows.append(row)
        state = method.apply(problem, state, payloads, rows)
        versions.append(np.array(state.x))
    return np.array(versions)


POLICIES = {
    "async": {"kind": "async"},
    "sync": {"kind": "sync"},
    "k_sync": {"kind": "k_sync", "k": 3},
    "k_batch_async": {"kind": "k_batch_async", "k": 4},
    "rennala": {"kind": "rennala", "batch": 6},
    "ringmaster": {"kind": "ringmaster", "max_staleness": 2, "on_stale": "cancel"},
}
METHODS = {
    "sgd": SGD(step=0.05),
    "heavy_ball": SGD(step=0.05, momentum=-0.3),
    "nesterov": SGD(step=0.02, momentum=0.5, nesterov=True),
    "adaptive": SGD(step=0.2, step_rule="adaptive_1"),
    "projected": SGD(step=0.1, projection={"set": "ball", "radius": 0.5}),
}
PROBLEMS = {
    "quadratic": Quadratic(eigenvalues=[1.0, 3.0], noise=0.1),
    "least_squares": LeastSquares(samples=20, dimension=3, batch=4),
    "softmax": Softmax(dataset="digits", batch=8),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("method", METHODS)
def test_batched_and_single_replays_equal_the_plain_loop(policy, method):
    trace = asyncsim.simulate(scenario(POLICIES[policy]))
    problem = PROBLEMS["quadratic"]
    batched = replay(trace, METHODS[method], problem, record_iterates=True)
    for place, replica in enumerate(trace.replicas):
        alone = asyncsim.simulate(scenario(POLICIES[policy]), replicas=[int(replica)])
        single = replay(alone, METHODS[method], problem, record_iterates=True)
        plain = plain_replay(trace, METHODS[method], problem, int(replica))
        assert (single.iterates[0] == plain).all()  # bit for bit: the same arithmetic on the same shapes
        np.testing.assert_allclose(batched.iterates[place], plain, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_problem_replays_in_batches(problem):
    trace = asyncsim.simulate(scenario(updates=25))
    batched = replay(trace, METHODS["sgd"], PROBLEMS[problem], record_iterates=True)
    for place, replica in enumerate(trace.replicas):
        plain = plain_replay(trace, METHODS["sgd"], PROBLEMS[problem], int(replica))
        np.testing.assert_allclose(batched.iterates[place], plain, rtol=1e-10, atol=1e-12)


#: One of every built-in method and problem, by the names that scenario files use, and some more of them.
EVERY_METHOD = {"sgd": SGD(step=0.05)} | {rule: SGD(step=0.05, step_rule=rule) for rule in STEP_RULES}
EVERY_METHOD |= {
    "heavy_ball": METHODS["heavy_ball"],
    "nesterov": METHODS["nesterov"],
    "box": SGD(step=0.05, projection={"set": "box", "low": -1.0, "high": 1.0}),
    "ball": METHODS["projected"],
    "simplex": SGD(step=0.05, projection={"set": "simplex"}),
    "non_negative": SGD(step=0.05, projection={"set": "non_negative"}),
    "gd": GD(step=0.05),
    "pgd": PGD(step=0.05, epsilon=1e9, radius=0.1, escape_time=3, decrease=1e9),
    "pagd": PAGD(step=0.05, momentum=0.5, epsilon=1e9, radius=0.1, escape_time=3, curvature=1e9, distance=0.1),
    "psgd": PSGD(step=0.05, radius=0.1),
    "noisy_gd": NoisyGD(step=0.05),
    "saddle_ngd": SaddleNGD(step=0.05, radius=0.1, every=3),
    "adam": Adam(step=0.05),
    "local_sgd": LocalSGD(step=0.05, local_steps=1),
    "decentralized_sgd": DecentralizedSGD(step=0.05, graph={"topology": "ring"}),
    "zeroth_order_sgd": ZerothOrderSGD(step=0.05, smoothing=0.01),
    "zeroth_order_conditional_gradient": ZerothOrderConditionalGradient(
        smoothing=0.01, projection={"set": "ball", "radius": 1.0}
    ),
    # Perturbed in the last of twelve updates, so that none has anything done that others have not.
    "seacd": SEACD(
        delay_bound=3, epsilon=0.1, smoothness=9.0, step=0.01, descent=12, escape_time=9, decrease=1e9, large_step=1e9
    ),
}
EVERY_PROBLEM = {
    "quadratic": Quadratic(dimension=3, condition_number=3.0),
    "noisy_quadratic": PROBLEMS["quadratic"],
    "least_squares": LeastSquares(samples=20, dimension=3),
    "least_squares_in_batches": PROBLEMS["least_squares"],
    "softmax": PROBLEMS["softmax"],
    "logistic": Logistic(dataset="breast_cancer", batch=3),
    "pl_example": PLExample(dimension=2, noise=0.1),
    "online": Online(),
    "online_linear": Online(loss="linear"),
    "saddle": Saddle(dimension=3, noise=0.1, start=0.5),
    "saddle_chain": SaddleChain(dimension=3),
    "phase_retrieval": PhaseRetrieval(dimension=3, samples=12, batch=2),
    "matrix_sensing": MatrixSensing(size=3, rank=1, samples=12, batch=2),
    "matrix_completion": MatrixCompletion(rows=4, columns=3, rank=1, observed=0.7, batch=2),
    "blind_deconvolution": BlindDeconvolution(filter=2, signal=2, samples=9, batch=2),
    "deep_linear": DeepLinear(depth=3),
    "matrix_factorization": MatrixFactorization(rows=4, columns=3, rank=2),
    "nmf": NonNegativeFactorization(photograph=str(Path(__file__).parent / "cases/valid/data/tiny.png"), rank=2),
    "tanh_network": TanhNetwork(hidden=2, batch=2),
    "conv_network": ConvNetwork(filters=1, batch=2),
    "autoencoder": Autoencoder(hidden=[2], batch=2),
}
#: Problems and methods that take one model at a time, and say so.
ONE_BY_ONE = {"tsne", "torch"}
METHODS_ONE_BY_ONE = {"compressed_sgd", "mem_sgd"}


def test_every_name_is_among_them():
    assert set(asyncsim.methods.METHODS) | set(PROJECTIONS) <= set(EVERY_METHOD) | METHODS_ONE_BY_ONE
    assert not any(asyncsim.methods.METHODS[name].batched for name in METHODS_ONE_BY_ONE)
    assert set(asyncsim.problems.PROBLEMS) == {problem.kind for problem in EVERY_PROBLEM.values()} | ONE_BY_ONE
    assert not any(asyncsim.problems.PROBLEMS[name].batched for name in ONE_BY_ONE)


def calls(method, problem, replicas: int) -> int:
    """Count the function calls, of Python and of C, that a replay with no metrics makes."""
    trace = asyncsim.simulate(scenario(updates=12), replicas=replicas)
    metrics, count = Metrics(record=[]), 0

    def seen(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    plan = plan_of(trace, method, problem)
    for _ in range(2):  # what is loaded, computed or compiled only once, and then what is done about a loaded library
        replay(trace, method, problem, metrics=metrics, plan=plan)
    gc.disable()  # collecting garbage calls functions, too
    sys.setprofile(seen)
    try:
        replay(trace, method, problem, metrics=metrics, plan=plan)
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


#: Gradients of a whole data set are computed in pieces of bounded size: the more replicas, the more pieces.
EXACT = {"gd", "pgd", "pagd", "seacd", "zeroth_order_sgd", "zeroth_order_conditional_gradient"}
IN_PIECES = {"softmax", "tanh_network", "conv_network", "autoencoder"}


@pytest.mark.parametrize("problem", EVERY_PROBLEM)
@pytest.mark.parametrize("method", EVERY_METHOD)
def test_nothing_is_called_replica_by_replica(method, problem):
    """Ten times the replicas take as many calls, so there is no loop over them in Python."""
    if method in EXACT and problem in IN_PIECES:
        problem = "logistic"
    chosen = EVERY_METHOD[method], EVERY_PROBLEM[problem]
    assert calls(*chosen, replicas=20) == calls(*chosen, replicas=2)


def test_a_loop_over_replicas_would_be_noticed():
    class OneByOne(Quadratic):
        def gradient(self, x):
            return np.stack([super(OneByOne, self).gradient(one) for one in x])

    looping = OneByOne(eigenvalues=[1.0, 3.0])
    more = calls(METHODS["sgd"], looping, replicas=20) - calls(METHODS["sgd"], looping, replicas=2)
    assert more >= 12 * 18  # in each of the updates one for each replica more


def test_a_stale_read_shifted_by_one_is_noticed():
    """The comparison above must be able to fail."""
    trace = asyncsim.simulate(scenario())
    columns = {name: np.array(trace[name]) for name in trace.columns if not name.endswith("_time")}
    columns["read_version"] = np.maximum(columns["read_version"] - 1, 0)
    wrong = asyncsim.Trace(columns, seed=trace.seed, workers=trace.workers, updates=trace.updates)
    right = replay(trace, METHODS["sgd"], PROBLEMS["quadratic"])
    assert (
        np.abs(replay(wrong, METHODS["sgd"], PROBLEMS["quadratic"]).final_iterates - right.final_iterates).max() > 1e-4
    )


def test_replaying_twice_gives_the_same_bits():
    trace = asyncsim.simulate(scenario())
    first, second = (replay(trace, METHODS["heavy_ball"], PROBLEMS["softmax"]) for _ in range(2))
    assert (first.final_iterates == second.final_iterates).all()
    assert first.metrics.equals(second.metrics)


def test_replicas_of_unequal_length_are_padded_with_their_last_version():
    trace = asyncsim.simulate(scenario(run={"time": 6.0, "replicas": 4}))
    assert len(set(trace.updates.tolist())) > 1
    run = replay(trace, METHODS["sgd"], PROBLEMS["quadratic"], record_iterates=True)
    assert run.iterates.shape == (4, int(trace.updates.max()) + 1, 2)
    for place, updates in enumerate(trace.updates):
        assert (run.iterates[place, updates:] == run.final_iterates[place]).all()
        assert (
            run.iterates[place, : updates + 1] == plain_replay(trace, METHODS["sgd"], PROBLEMS["quadratic"], place)
        ).all()


def test_updates_of_unequal_size_replay():
    columns = {
        "replica": [0, 0, 0], "worker": [0, 1, 0], "draw": [0, 0, 1],
        "read_version": [0, 0, 1], "update": [0, 0, 1], "status": [0, 0, 0],
    }  # fmt: skip
    trace = asyncsim.Trace(columns, seed=0, workers=2, updates=[2])
    run = replay(trace, SGD(step=0.5), Quadratic(eigenvalues=[1.0]))
    assert run.final_iterates.tolist() == [[0.25]]


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_only_versions_still_to_be_read_are_kept():
    """Async: each worker holds one version; with the current one that makes workers + 1."""
    workers = 7
    trace = asyncsim.simulate(scenario(workers=workers, updates=500, replicas=4))
    rows = np.array([np.arange(rows.start, rows.stop) for _, _, rows in trace.slices()])
    schedule = BatchSchedule(trace, trace.replicas, rows, 500, 1)
    assert schedule.slots <= workers + 1


def test_slots_hold_what_is_read():
    """Brute force: writing every version's number into its slot, each read finds the number that it asked for."""
    generator = np.random.default_rng(3)
    updates, gradients, replicas = 40, 3, 5
    newest = np.repeat(np.arange(updates), gradients)
    read = np.minimum(generator.integers(0, updates, (replicas, updates * gradients)), newest)
    read_at, kept_at, slots = plan_slots(read.ravel(), np.arange(read.size).reshape(read.shape), gradients)
    content = np.full((slots + 1) * replicas, -1)
    for update in range(updates):
        content[kept_at[:, update]] = update
        now = slice(update * gradients, (update + 1) * gradients)
        assert (content[read_at[:, now]] == read[:, now]).all()
    assert (kept_at % replicas == np.arange(replicas)[:, None]).all()  # nobody keeps anything in another's slot


# --- deciding on the way ----------------------------------------------------------------------------------------------


class Barriers(Method):
    """Gradient steps that ask for a barrier at every tenth update, and stop at the thirtieth."""

    step: float = 0.1

    def apply(self, problem, state, payloads, rows):
        update = rows[0].update
        request = "stop" if update == 29 else "barrier" if update % 10 == 9 else "go"
        return State(state.x - self.step * payloads[0], None, request)


def test_online_decisions_replay_to_the_same_bits():
    problem, method = PROBLEMS["quadratic"], Barriers()
    replayer = Replayer(method, problem, seed=11, workers=5)
    trace = asyncsim.simulate(scenario(replicas=1), on_update=replayer.step)
    assert trace.updates.tolist() == [30]
    assert [kind for *_, kind in trace.events] == ["barrier", "barrier", "stop"]
    assert (replay(trace, method, problem).final_iterates[0] == replayer.state.x).all()
    frame = trace.to_frame()
    assert (frame.status == "discarded").sum() == 2 * 4  # at a barrier the four others are on their way
    after = frame[(frame.status == "applied") & (frame["update"] >= 10)]
    assert after.read_version.min() == 10  # nothing crosses a barrier


def test_stop_when_ends_every_replica_at_its_first_look_below():
    extra = {
        "problem": {"kind": "quadratic", "eigenvalues": [1.0]},
        "method": {"kind": "sgd", "step": 0.1},
        "run": {"updates": 5000, "replicas": 3, "stop_when": "loss < 0.001"},
        "metrics": {"every": 10},
    }
    run = asyncsim.run(scenario(**extra))
    assert (run.trace.updates % 10 == 0).all()
    assert (run.trace.updates < 5000).all()
    for _, mine in run.metrics[run.metrics.metric == "loss"].groupby("replica"):
        assert mine.value.iloc[-1] < 0.001 <= mine.value.iloc[-2]


# --- measuring --------------------------------------------------------------------------------------------------------


def test_metrics_are_measured_where_asked():
    trace = asyncsim.simulate(scenario(updates=50))
    metrics = Metrics(every=20, record=["loss", "grad_norm", "distance", "suboptimality"])
    run = replay(trace, METHODS["sgd"], PROBLEMS["quadratic"], record_iterates=True, metrics=metrics)
    frame = run.metrics
    assert list(frame.columns) == ["replica", "update", "time", "metric", "value"]
    assert sorted(frame["update"].unique()) == [0, 20, 40, 50]
    problem = PROBLEMS["quadratic"]
    for row in frame.itertuples():
        x = run.iterates[row.replica, row.update]
        expected = {
            "loss": problem.value(x),
            "suboptimality": problem.value(x),
            "grad_norm": np.linalg.norm(problem.gradient(x)),
            "distance": np.linalg.norm(x),
        }[row.metric]
        assert row.value == pytest.approx(expected, rel=1e-12)
        born = 0.0 if row.update == 0 else trace.update_times(row.replica)[row.update - 1]
        assert row.time == born


def test_a_time_grid_measures_the_version_of_that_moment():
    trace = asyncsim.simulate(scenario(run={"time": 10.0, "replicas": 2}))
    run = replay(trace, METHODS["sgd"], PROBLEMS["quadratic"], metrics=Metrics(at_times=11), end_time=10.0)
    for replica, mine in run.metrics.groupby("replica"):
        assert mine.time.tolist() == pytest.approx(np.linspace(0, 10, 11).tolist())
        times = trace.update_times(replica)
        assert mine["update"].tolist() == [int((times <= t).sum()) for t in mine.time]


@pytest.mark.parametrize("metric", ["accuracy", "regret"])
def test_a_metric_that_the_problem_does_not_have_is_refused(metric):
    trace = asyncsim.simulate(scenario(updates=3))
    with pytest.raises(ScenarioError, match=metric):
        replay(trace, METHODS["sgd"], PROBLEMS["quadratic"], metrics=Metrics(record=[metric]))


# --- divergence -------------------------------------------------------------------------------------------------------


def test_a_diverging_replica_leaves_the_others_alone():
    """At this step all replicas grow, and within 1000 updates some of them beyond all numbers."""
    trace = asyncsim.simulate(scenario(updates=1000, replicas=6))
    method, problem = SGD(step=3.0), Quadratic(eigenvalues=[1.0])
    together = replay(trace, method, problem, metrics=Metrics(every=10))
    assert 0 < len(together.diverged) < 6
    for place in range(6):
        alone = replay(
            asyncsim.simulate(scenario(updates=1000), replicas=[place]), method, problem, metrics=Metrics(every=10)
        )
        assert [d for d in together.diverged if d.replica == place] == list(alone.diverged)
        np.testing.assert_allclose(together.final_iterates[place], alone.final_iterates[0], rtol=1e-9)
        mine = together.metrics[together.metrics.replica == place]
        np.testing.assert_allclose(mine.value, alone.metrics.value, rtol=1e-9)


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_diverging_run_stops_and_keeps_what_it_has(replicas):
    trace = asyncsim.simulate(scenario(updates=2000, replicas=replicas))
    run = replay(trace, SGD(step=30.0), Quadratic(eigenvalues=[1.0]), record_iterates=True)
    assert run.diverged
    assert all("diverged at update" in str(divergence) for divergence in run.diverged)
    assert np.isfinite(run.final_iterates).all()
    assert len(run.diverged) == replicas
    assert run.metrics["update"].max() <= max(divergence.update for divergence in run.diverged)
    for divergence in run.diverged:
        assert (run.iterates[divergence.replica, divergence.update :] == run.final_iterates[divergence.replica]).all()


# --- users' own objects -----------------------------------------------------------------------------------------------


class Bowl:
    """A problem that takes one model at a time and knows nothing of asyncsim."""

    dimension = 2

    def value(self, x):
        assert x.shape == (2,)
        return 0.5 * x @ x

    def gradient(self, x):
        assert x.shape == (2,)
        return x + 0.0

    def initial(self, seed, replica):
        return np.ones(2)


def test_a_users_object_replays_one_replica_at_a_time():
    trace = asyncsim.simulate(scenario())
    own = replay(trace, METHODS["sgd"], Bowl())
    ours = replay(trace, METHODS["sgd"], Quadratic(eigenvalues=[1.0, 1.0]))
    np.testing.assert_allclose(own.final_iterates, ours.final_iterates, rtol=1e-10)


def test_a_users_object_without_a_gradient_says_so():
    class Half:
        dimension = 1

        def value(self, x):
            return x.sum(axis=-1)

    with pytest.raises((AttributeError, NotImplementedError)):
        replay(asyncsim.simulate(scenario(updates=2)), METHODS["sgd"], Half())
