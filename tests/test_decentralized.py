"""Decentralised SGD: against slow loops, what averaging keeps and contracts, noise, and compressed gossip."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import asyncsim
from asyncsim.cells import cells, schedule_key
from asyncsim.compressors import QSGD, Identity, RandK, ScaledSign, TopK
from asyncsim.methods import SGD, DecentralizedSGD, State
from asyncsim.mixing import Graph, metropolis, spectral_gap
from asyncsim.problems import LeastSquares, Logistic, TanhNetwork
from asyncsim.problems.base import Problem
from asyncsim.scenario import ScenarioError, build
from asyncsim.sources import simulate
from asyncsim.trace import Row

RING, COMPLETE = {"topology": "ring"}, {"topology": "complete"}
DIRECTED = [[0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 0.0, 0.5]]
TORUS, PATH = {"topology": "torus"}, {"edges": [(0, 1), (1, 2), (2, 3)]}


class Targets(Problem):
    """f(x) = ½ E‖x − c_w‖², each worker w having its own target: c_w = ((w + 1) cos 1, (w + 1) cos 2, …)."""

    dimension: int = 3
    workers: int = 4

    def target(self, worker):
        return (np.asarray(worker)[..., None] + 1.0) * np.cos(np.arange(1.0, self.dimension + 1))

    def value(self, x):
        away = np.asarray(x)[..., None, :] - self.target(np.arange(self.workers))
        return 0.5 * np.square(away).sum(axis=-1).mean(axis=-1)

    def gradient(self, x):
        return x - self.target(np.arange(self.workers)).mean(axis=0)

    def stochastic_gradient(self, x, row):
        return x - self.target(row.worker)


def rows_of(workers, update=0, replica=0):
    return [Row(seed=7, replica=replica, worker=w, draw=update, update=update) for w in workers]


def far_apart(workers=4, dimension=3, replicas=None):
    """Return nodes with models of their own."""
    shape = (workers * dimension,) if replicas is None else (replicas, workers * dimension)
    return np.random.default_rng(5).normal(size=shape)


def state_of(method, x):
    """Return a state in which all that is publicly known of the models x is 0."""
    return State(x, None if method.compressor is None else np.zeros_like(x))


def idle(method, problem, state, senders, update=0):
    """Return the state after one update whose gradients are all zero: averaging and nothing else."""
    return method.apply(problem, state, [np.zeros(problem.dimension)] * len(senders), rows_of(senders, update))


# --- against slow loops -------------------------------------------------------------------------------------------


def slow(matrix, step, x, gradients, senders, compressor=None, gamma=1.0, public=None, update=0):
    """Return lists of models and public copies after one update, by loops over nodes and coordinates."""
    workers, dimension = len(matrix), len(x[0])
    x = [list(node) for node in x]
    public = None if public is None else [list(node) for node in public]

    def take_step(node, gradient):
        for k in range(dimension):
            x[node][k] -= step * gradient[k]

    def publish(node):
        if compressor is not None:
            away = np.array([x[node][k] - public[node][k] for k in range(dimension)])
            sent = compressor.decode(compressor.encode(away, (7, 0, node, update)))
            for k in range(dimension):
                public[node][k] += sent[k]

    if sorted(senders) == list(range(workers)):
        for node, gradient in zip(senders, gradients, strict=True):
            take_step(node, gradient)
        for node in senders:
            publish(node)
        seen = x if public is None else public
        x = [
            [
                x[i][k] + gamma * math.fsum(matrix[i][j] * (seen[j][k] - seen[i][k]) for j in range(workers))
                for k in range(dimension)
            ]
            for i in range(workers)
        ]
        return x, public
    for node, gradient in zip(senders, gradients, strict=True):
        take_step(node, gradient)
        publish(node)
        seen = x if public is None else public
        old = [list(one) for one in seen]
        for j in range(workers):
            weight = gamma * (matrix[node][j] + matrix[j][node]) / 2
            for k in range(dimension):
                if j != node:
                    moved = weight * (old[node][k] - old[j][k])
                    x[j][k] += moved
                    x[node][k] -= moved
    return x, public


UPDATES = {
    "round": [[0, 1, 2, 3]] * 6,
    "round in any order": [[2, 0, 3, 1], [3, 2, 1, 0], [1, 0, 2, 3]] * 2,
    "one by one": [[w] for w in (0, 3, 3, 1, 2, 0, 1, 3)],
    "some": [[0, 2], [3, 1], [1, 1], [2, 3, 0]],
    "a worker twice": [[0, 1, 1, 3], [0, 1, 2, 3]],
}

MIXINGS = {
    "ring": {"graph": RING},
    "torus": {"graph": TORUS},
    "path": {"graph": PATH},
    "complete": {"graph": COMPLETE},
    "directed": {"mixing": DIRECTED},
    "no weight to itself": {
        "mixing": (np.roll(np.eye(4), 1, axis=0) * 0.5 + np.roll(np.eye(4), 2, axis=0) * 0.5).tolist()
    },
}

COMPRESSED = {
    "none": {},
    "identity": {"compressor": Identity(), "consensus_step": 0.7},
    "rand_k": {"compressor": RandK(k=1), "consensus_step": 0.3},
    "top_k": {"compressor": TopK(k=2), "consensus_step": 0.4},
    "sign": {"compressor": ScaledSign(), "consensus_step": 0.2},
    "qsgd": {"compressor": QSGD(levels=4), "consensus_step": 0.2},
    "theorem": {"compressor": TopK(k=1)},
}


#: Compressed gossip is for symmetric matrices.
CASES = [
    (mixing, compressed)
    for mixing, compressed in itertools.product(MIXINGS, COMPRESSED)
    if "mixing" not in MIXINGS[mixing] or compressed == "none"
]


@pytest.mark.parametrize(("mixing", "compressed"), CASES)
@pytest.mark.parametrize("updates", UPDATES)
def test_updates_are_those_of_a_slow_loop(updates, mixing, compressed):
    method = DecentralizedSGD(step=0.3, **MIXINGS[mixing], **COMPRESSED[compressed])
    problem, x = Targets(), far_apart()
    matrix, gamma = method.gossip(problem, 4)
    state, nodes = state_of(method, x), x.reshape(4, 3).tolist()
    public = None if method.compressor is None else np.zeros((4, 3)).tolist()
    for update, senders in enumerate(UPDATES[updates]):
        rows = rows_of(senders, update)
        gradients = [method.message(problem, state.x, None, row)[0] for row in rows]
        for node, gradient in zip(senders, gradients, strict=True):
            np.testing.assert_allclose(gradient, np.array(nodes[node]) - problem.target(node), atol=1e-12)
        before = state.x.copy()
        after = method.apply(problem, state, gradients, rows)
        np.testing.assert_array_equal(state.x, before)  # versions that workers still read stay as they are
        state = after
        nodes, public = slow(matrix.tolist(), 0.3, nodes, gradients, senders, method.compressor, gamma, public, update)
        np.testing.assert_allclose(state.x.reshape(4, 3), nodes, atol=1e-12)
        if public is not None:
            np.testing.assert_allclose(state.extra.reshape(4, 3), public, atol=1e-12)
    assert np.abs(state.x - x).max() > 0.05


def test_the_slow_loop_sees_another_order_of_step_and_average():
    """The control: x_i ← Σ_j W_ij x_j − ηg_i is another method."""
    method, problem, x = DecentralizedSGD(step=0.3, graph=RING), Targets(), far_apart()
    gradients = [method.message(problem, x, None, row)[0] for row in rows_of(range(4))]
    nodes, _ = slow(metropolis(Graph(**RING).of(4)).tolist(), 0.3, x.reshape(4, 3), gradients, range(4))
    late = metropolis(Graph(**RING).of(4)) @ x.reshape(4, 3) - 0.3 * np.array(gradients)
    assert np.abs(late - nodes).max() > 0.1
    np.testing.assert_allclose(late.mean(axis=0), np.mean(nodes, axis=0), atol=1e-12)  # x̄ moves alike


def test_a_version_is_all_nodes_and_the_model_is_their_mean():
    method, problem = DecentralizedSGD(step=0.1, graph=RING), Targets()
    assert method.size(problem, 4) == 12
    x = far_apart(replicas=5)
    np.testing.assert_allclose(method.model(problem, x), x.reshape(5, 4, 3).mean(axis=1))
    np.testing.assert_allclose(method.model(problem, x[2]), x[2].reshape(4, 3).mean(axis=0))
    state, memories = method.init(problem, np.array([1.0, 2.0, 3.0]), 4)
    assert state.x.tolist() == [1.0, 2.0, 3.0] * 4
    assert memories == [None] * 4
    many, _ = method.init(problem, np.arange(15.0).reshape(5, 3), 4)
    assert many.x[1].tolist() == [3.0, 4.0, 5.0] * 4
    one, other = state_of(method, x), state_of(method, x[2])
    away = x[2].reshape(4, 3) - method.model(problem, x[2])
    rms = math.sqrt(sum(float(node @ node) for node in away) / 4)
    assert method.measure(problem, other, "consensus") == pytest.approx(rms)
    assert method.measure(problem, one, "consensus")[2] == pytest.approx(rms)


def test_bytes_are_those_of_all_neighbours():
    problem = Targets(dimension=100)
    cases = [
        ({"graph": RING}, 10, 2 * 800),
        ({"graph": COMPLETE}, 10, 9 * 800),
        ({"graph": {"topology": "star"}}, 10, 18 / 10 * 800),  # 9 edges, each both ways, among 10 nodes
        ({"mixing": DIRECTED}, 4, 800),
        ({"graph": RING, "compressor": RandK(k=10)}, 10, 2 * 80),
        ({"graph": COMPLETE, "compressor": TopK(k=10)}, 10, 9 * TopK(k=10).nbytes(100)),
    ]
    for fields, workers, expected in cases:
        method = DecentralizedSGD(step=0.1, **fields)
        assert method.message_bytes(problem, workers) == (expected, expected)


# --- what averaging keeps and contracts ---------------------------------------------------------------------------


@pytest.mark.parametrize(("mixing", "compressed"), CASES)
@pytest.mark.parametrize("updates", UPDATES)
def test_averaging_keeps_the_mean(updates, mixing, compressed):
    method = DecentralizedSGD(step=0.3, **MIXINGS[mixing], **COMPRESSED[compressed])
    problem, x = Targets(), far_apart()
    state = state_of(method, x)
    for update, senders in enumerate(UPDATES[updates] * 10):
        state = idle(method, problem, state, senders, update)
    np.testing.assert_allclose(method.model(problem, state.x), method.model(problem, x), atol=1e-12)
    assert np.abs(state.x - x).max() > 1e-3


def test_a_matrix_with_unequal_columns_would_move_the_mean():
    """The control: the rows of this one sum to 1, as averaging needs, and the columns do not."""
    matrix = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
    x = far_apart(workers=3).reshape(3, 3)
    assert np.abs((matrix @ x).mean(axis=0) - x.mean(axis=0)).max() > 0.01
    with pytest.raises(ValueError, match=r"column 1 sums to 1\.5"):
        DecentralizedSGD(step=0.1, mixing=matrix.tolist()).check(Targets(workers=3), 3)


GOSSIPS = {
    "ring": (RING, 12),
    "torus": (TORUS, 25),
    "star": ({"topology": "star"}, 6),
    "tree": ({"topology": "tree"}, 9),
}


def contraction(graph, nodes, rounds=400):
    """Return the factor by which the distance to the mean falls in the last of many rounds, and the largest in any."""
    method, problem = DecentralizedSGD(step=0.1, graph=graph), Targets(workers=nodes)
    state = State(far_apart(workers=nodes))
    factors = []
    for _ in range(rounds):
        before = method.measure(problem, state, "consensus")
        if before < 1e-6:
            break
        state = idle(method, problem, state, range(nodes))
        factors.append(float(method.measure(problem, state, "consensus") / before))
    return factors[-1], max(factors)


@pytest.mark.parametrize("name", GOSSIPS)
def test_nodes_come_together_at_the_rate_of_the_gap(name):
    graph, nodes = GOSSIPS[name]
    last, largest = contraction(graph, nodes)
    gap = spectral_gap(metropolis(Graph(**graph).of(nodes)))
    assert last == pytest.approx(1 - gap, rel=1e-3)
    assert largest <= 1 - gap + 1e-8
    wrong = spectral_gap(metropolis(Graph(topology="path").of(nodes)))  # the control: another graph's
    assert last != pytest.approx(1 - wrong, rel=1e-3)


def test_one_exchange_at_a_time_comes_together_too():
    method, problem = DecentralizedSGD(step=0.1, graph=RING), Targets(workers=8)
    state = State(far_apart(workers=8))
    start = method.measure(problem, state, "consensus")
    for update, node in enumerate(np.random.default_rng(6).integers(0, 8, 400).tolist()):
        before = method.measure(problem, state, "consensus")
        state = idle(method, problem, state, [node], update)
        assert method.measure(problem, state, "consensus") <= before * (1 + 1e-12)
    assert method.measure(problem, state, "consensus") < 1e-4 * start


# --- compressed gossip --------------------------------------------------------------------------------------------


def gossip_error(method, problem, x, rounds):
    """Return Σ ‖x_i − x̄‖² + ‖x_i − x̂_i‖² after each of many rounds, as a share of what it was."""
    state, found = state_of(method, x), []
    for update in range(rounds + 1):
        nodes, public = (part.reshape(len(x) // 3, 3) for part in (state.x, state.extra))
        found.append(np.square(nodes - nodes.mean(axis=0)).sum() + np.square(nodes - public).sum())
        state = idle(method, problem, state, range(len(nodes)), update)
    return np.array(found) / found[0]


@pytest.mark.parametrize("compressor", [TopK(k=1), RandK(k=1), ScaledSign()], ids=["top_k", "rand_k", "sign"])
def test_the_theorems_consensus_step_contracts_as_it_says(compressor):
    """At the rate 1 − δ²ω/82 a round or better; RandK's indices are the same for all here, so it is the worst case."""
    method, problem = DecentralizedSGD(step=0.1, graph=RING, compressor=compressor), Targets(workers=5)
    rounds = 3000
    error = gossip_error(method, problem, far_apart(workers=5), rounds)
    gap = spectral_gap(metropolis(Graph(**RING).of(5)))
    bound = (1 - gap**2 * compressor.contraction(3) / 82) ** np.arange(rounds + 1)
    assert (error <= bound).all()
    greedy = DecentralizedSGD(step=0.1, graph=RING, compressor=RandK(k=1), consensus_step=1.0)
    assert not (gossip_error(greedy, problem, far_apart(workers=5), 300) <= bound[:301]).all()  # the control


def test_rounds_with_compression_that_keeps_everything_are_plain_rounds():
    problem, x = Targets(), far_apart()
    plain = DecentralizedSGD(step=0.3, graph=RING)
    whole = DecentralizedSGD(step=0.3, graph=RING, compressor=Identity(), consensus_step=1.0)
    states = [state_of(plain, x), state_of(whole, x)]
    for update, senders in enumerate(UPDATES["round in any order"]):
        rows = rows_of(senders, update)
        for place, method in enumerate((plain, whole)):
            gradients = [method.message(problem, states[place].x, None, row)[0] for row in rows]
            states[place] = method.apply(problem, states[place], gradients, rows)
        np.testing.assert_allclose(states[1].x, states[0].x, atol=1e-12)


def descend(method, problem, rounds):
    """Return the state after rounds of full gradients, all workers having data of their own."""
    state, _ = method.init(problem, np.zeros(problem.dimension), problem.workers)
    for update in range(rounds):
        rows = rows_of(range(problem.workers), update)
        gradients = [method.message(problem, state.x, None, row)[0] for row in rows]
        state = method.apply(problem, state, gradients, rows)
    return state


@pytest.mark.parametrize("compressor", [TopK(k=2), RandK(k=2), ScaledSign()], ids=["top_k", "rand_k", "sign"])
def test_compressed_gossip_comes_to_the_same_models(compressor):
    """On ½‖x − c_w‖² a round is linear; without compression its fixed point is X = (I − (1−η)W)⁻¹ ηWC."""
    problem = Targets(dimension=8, workers=6)
    matrix, targets = metropolis(Graph(**RING).of(6)), problem.target(np.arange(6))
    plain = descend(DecentralizedSGD(step=0.05, graph=RING), problem, 600)
    fixed = np.linalg.solve(np.eye(6) - 0.95 * matrix, 0.05 * matrix @ targets)
    np.testing.assert_allclose(plain.x.reshape(6, 8), fixed, atol=1e-10)
    method = DecentralizedSGD(step=0.05, graph=RING, compressor=compressor, consensus_step=0.2)
    state = descend(method, problem, 600)
    # The compressed one averages with W' = I − γ(I − W) in the end, when all copies are true.
    slower = np.eye(6) + 0.2 * (matrix - np.eye(6))
    ends = np.linalg.solve(np.eye(6) - 0.95 * slower, 0.05 * slower @ targets)
    away = np.abs(state.x.reshape(6, 8) - ends).max()
    assert away < (0.2 if isinstance(compressor, ScaledSign) else 1e-3)
    np.testing.assert_allclose(method.model(problem, state.x), targets.mean(axis=0), atol=1e-9)


# --- whole runs ---------------------------------------------------------------------------------------------------

LEAST_SQUARES = {"kind": "least_squares", "samples": 40, "dimension": 5, "condition_number": 8.0, "batch": 4}

POLICIES = {
    "sync": {"kind": "sync"},
    "async": {"kind": "async"},
    "k_async": {"kind": "k_async", "k": 3},
    "k_batch_async": {"kind": "k_batch_async", "k": 4},  # in some updates of some replicas one gradient of each
}


def scenario(policy="sync", method=None, problem=LEAST_SQUARES, workers=4, **run):
    """Return a scenario with its nodes on a ring; what `method` has as None is left out."""
    chosen = {"kind": "decentralized_sgd", "step": 0.02, "graph": RING, **(method or {})}
    return build(
        {
            "seed": 7,
            "cluster": {"workers": [{"count": workers, "service": {"law": "exponential", "mean": 1.0}}]},
            "policy": POLICIES[policy],
            "problem": problem,
            "method": {key: value for key, value in chosen.items() if value is not None},
            "run": {"updates": 120, "replicas": 6, **run},
        }
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_of_replicas_equals_single_ones(policy):
    whole = scenario(policy, {"noise": 0.1})
    trace = simulate(whole)
    batch = asyncsim.replay(trace, whole.method, whole.problem, record_iterates=True)
    single = asyncsim.replay(trace, whole.method, whole.problem, record_iterates=True, checksums=True)
    assert batch.iterates.shape == (6, 121, 5)
    np.testing.assert_allclose(batch.iterates, single.iterates, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(batch.facts["spectral_gap"], 2 / 3)  # (2/3)(1 − cos 2π/4)


def test_on_a_complete_graph_it_is_plain_synchronous_sgd():
    whole = scenario("sync", {"graph": COMPLETE})
    trace = simulate(whole)
    plain = asyncsim.replay(trace, SGD(step=0.02), whole.problem, record_iterates=True)
    gossip = asyncsim.replay(trace, whole.method, whole.problem, record_iterates=True)
    np.testing.assert_allclose(gossip.iterates, plain.iterates, atol=1e-12)
    given = DecentralizedSGD(step=0.02, mixing=np.full((4, 4), 0.25).tolist())
    np.testing.assert_allclose(
        asyncsim.replay(trace, given, whole.problem).final_iterates, plain.final_iterates, atol=1e-12
    )
    ring = asyncsim.replay(trace, DecentralizedSGD(step=0.02, graph=RING), whole.problem)  # the control
    assert np.abs(ring.final_iterates - plain.final_iterates).max() > 1e-6


@pytest.mark.parametrize("compressed", [{}, {"compressor": {"kind": "top_k", "k": 2}, "consensus_step": 0.3}])
def test_a_summary_says_the_gap_and_the_consensus(compressed):
    whole = scenario("async", {**compressed, "noise": 0.2}, replicas=2)
    whole = whole.model_copy(update={"metrics": {"record": ["loss", "consensus"], "every": 30}})
    run = asyncsim.run(whole)
    assert run.summary["method"]["spectral_gap"] == pytest.approx([2 / 3, 2 / 3])
    assert ("consensus_step" in run.summary["method"]) is bool(compressed)
    consensus = run.metrics[run.metrics["metric"] == "consensus"]["value"].to_numpy().reshape(2, 5)
    assert (consensus[:, 0] == 0).all()  # all nodes begin at one point
    assert (consensus[:, 1:] > 1e-4).all()


def test_graphs_share_a_schedule_unless_messages_take_time():
    swept = {"sweep": {"method.graph": [RING, COMPLETE]}}
    for network, shared in (({}, True), ({"network": {"bandwidth": 1e4}}, False)):
        data = scenario().resolved()
        data["cluster"] = {**data["cluster"], **network}
        first, second = cells(build({**data, **swept}))
        assert (schedule_key(first.scenario) == schedule_key(second.scenario)) == shared
        ends = [simulate(cell.scenario).last_time() for cell in (first, second)]
        assert (ends[0] == ends[1]) == shared  # a node of four has two neighbours or three


REAL = {
    "plain": {},
    "noise": {"noise": 0.1},
    "compressed": {"compressor": {"kind": "rand_k", "k": 2}, "consensus_step": 0.3},
}


@pytest.mark.parametrize(
    ("backend", "policy", "method"),
    [
        *(("threads", policy, method) for policy in ("sync", "async", "k_async") for method in REAL),
        ("queue", "async", "compressed"),
        ("shared_memory", "async", "noise"),
    ],
)
def test_a_real_run_replays_to_the_bit(backend, policy, method):
    workers = 4 if backend == "threads" else 2  # processes take long to start
    run = {"source": "record", "backend": backend, "updates": 60, "replicas": 1}
    recorded = scenario(policy, REAL[method], workers=workers, **run)
    recording = asyncsim.record(recorded)
    again = asyncsim.replay(recording.trace, recorded.method, recorded.problem, checksums=True)
    assert again.final_iterates.tobytes() == recording.final_iterates.tobytes()
    assert [one.tolist() for one in again.checksums] == [one.tolist() for one in recording.checksums]
    assert recording.trace.updates.tolist() == [60]


# --- noise --------------------------------------------------------------------------------------------------------


def table_of(tmp_path):
    """Return a small data set in a file."""
    generator = np.random.default_rng(8)
    features = generator.normal(size=(24, 2))
    labels = (features @ [1.0, -0.5] + 0.3 * generator.normal(size=24) > 0).astype(int)
    file = tmp_path / "data.csv"
    rows = [f"{a},{b},{label}" for (a, b), label in zip(features.tolist(), labels.tolist(), strict=True)]
    file.write_text("a,b,label\n" + "\n".join(rows) + "\n")
    return str(file)


def iterates_with_noise(problem, sigma, *, step, updates, replicas=1, senders=None):
    """Return x̄ after rounds on a ring of four, or after single updates by `senders`; shape (replicas, d)."""
    method = DecentralizedSGD(step=step, graph=RING, noise=sigma)
    x0 = np.broadcast_to(problem.initial(7, 0), (replicas, problem.dimension)).copy()
    state, _ = method.init(problem, x0, 4)
    for update in range(updates):
        rows = [
            Row(7, np.arange(replicas), np.full(replicas, worker), np.full(replicas, update), update)
            for worker in (range(4) if senders is None else senders[update])
        ]
        payloads = [method.message(problem, state.x, None, row)[0] for row in rows]
        state = method.apply(problem, state, payloads, rows)
    return method.model(problem, state.x)


def z_of_the_mean(problem, **how):
    """Return by how many standard errors the mean over 2000 replicas misses the iterate without noise, at most."""
    noisy, quiet = iterates_with_noise(problem, 0.5, replicas=2000, **how), iterates_with_noise(problem, 0.0, **how)
    assert noisy.std(axis=0).min() > 1e-3
    return float(np.abs((noisy.mean(axis=0) - quiet[0]) / (noisy.std(axis=0) / math.sqrt(2000))).max())


#: Who sends in each of 60 updates; all, where it does not say.
SINGLE = [[w] for w in np.random.default_rng(9).integers(0, 4, 60).tolist()]


@pytest.mark.parametrize("senders", [None, SINGLE], ids=["rounds", "one by one"])
def test_noise_leaves_the_mean_iterate_of_linear_least_squares_alone(senders):
    problem = LeastSquares(samples=20, dimension=3, condition_number=6.0)
    assert z_of_the_mean(problem, step=0.1, updates=60, senders=senders) < 4


@pytest.mark.parametrize("senders", [None, SINGLE], ids=["rounds", "one by one"])
@pytest.mark.parametrize("kind", ["logistic", "tanh"])
def test_noise_moves_the_mean_iterate_of_other_models(tmp_path, kind, senders):
    """Linear or not: what counts is whether the gradient is affine in x."""
    file = table_of(tmp_path)
    problem = Logistic(dataset=file, l2=0.01) if kind == "logistic" else TanhNetwork(dataset=file, hidden=2)
    updates = 20 if senders is None else 60
    assert z_of_the_mean(problem, step=0.5, updates=updates, senders=senders) > 10


def test_noise_raises_the_expected_loss_of_least_squares():
    """E f(x̄) − f(E x̄) = ½ tr(HC), with C ← (I − ηH) C (I − ηH) + (η²σ²/M) H² the covariance of x̄."""
    problem, step, sigma, updates = LeastSquares(samples=20, dimension=3, condition_number=6.0), 0.1, 0.5, 60
    noisy = iterates_with_noise(problem, sigma, step=step, updates=updates, replicas=2000)
    quiet = iterates_with_noise(problem, 0.0, step=step, updates=updates)
    hessian = np.stack([problem.hessian_vector(np.zeros(3), unit) for unit in np.eye(3)])
    covariance, shrink = np.zeros((3, 3)), np.eye(3) - step * hessian
    for _ in range(updates):
        covariance = shrink @ covariance @ shrink + step**2 * sigma**2 / 4 * hessian @ hessian
    losses = problem.value(noisy)
    error = losses.std() / math.sqrt(2000)
    rise = 0.5 * np.trace(hessian @ covariance)
    assert losses.mean() - float(problem.value(quiet)[0]) == pytest.approx(rise, abs=4 * error)
    assert rise > 10 * error


def test_each_gradient_has_noise_of_its_own():
    method, problem = DecentralizedSGD(step=0.1, graph=RING, noise=0.5), Targets()
    x = far_apart()
    addresses = [Row(7, 0, 0, 0), Row(7, 0, 1, 0), Row(7, 0, 0, 1), Row(7, 1, 0, 0), Row(8, 0, 0, 0)]
    quiet = method.model_copy(update={"noise": 0.0})
    noises = [method.message(problem, x, None, row)[0] - quiet.message(problem, x, None, row)[0] for row in addresses]
    assert len({tuple(noise.round(9)) for noise in noises}) == len(addresses)
    many = Row(7, np.arange(20_000), np.zeros(20_000, dtype=int), np.zeros(20_000, dtype=int))
    spread = method.message(problem, np.zeros((20_000, 12)), None, many)[0] + problem.target(0)
    np.testing.assert_allclose(spread.T @ spread / 20_000, 0.25 * np.eye(3), atol=0.012)


# --- bad input ----------------------------------------------------------------------------------------------------

BAD = {
    "no graph": ({"graph": None}, r"method: metropolis weights need .graph."),
    "unknown mixing": ({"mixing": "metropoliss"}, r'method.mixing: must be "metropolis", a matrix'),
    "a number": ({"mixing": 0.5}, r'method.mixing: must be "metropolis", a matrix'),
    "no file": ({"mixing": "none.npy"}, r"method.mixing: no such file: none.npy"),
    "words": ({"mixing": [[0.5, "half"]]}, r"method.mixing\[0\]\[1\]: must be a number"),
    "not square": ({"mixing": [[1.0]], "graph": None}, r"method: 'mixing' must be 4 × 4"),
    "not doubly stochastic": ({"mixing": np.diag([1.0, 1, 1, 2]).tolist()}, r"method: 'mixing' must be doubly"),
    "negative": (
        {"mixing": [[1.5, -0.5, 0, 0], [-0.5, 1.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]},
        r"method: .* negative",
    ),
    "outside the graph": (
        {"mixing": np.full((4, 4), 0.25).tolist()},
        r"method: 'mixing' gives weight .* no neighbours",
    ),
    "disconnected": ({"graph": {"edges": [[0, 1], [2, 3]]}}, r"method: 'graph' is disconnected"),
    "disconnected matrix": ({"graph": None, "mixing": np.eye(4).tolist()}, r"method: 'mixing' is disconnected"),
    "swaps": (
        {"graph": None, "mixing": np.roll(np.eye(4), 1, axis=0).tolist()},
        r"method: 'mixing' has spectral gap 0",
    ),
    "unknown topology": ({"graph": {"topology": "rng"}}, r"method: unknown topology 'rng' .did you mean 'ring'"),
    "too few workers": ({"graph": {"topology": "cycle_graph", "arguments": {"n": 9}}}, r"method: 'graph' has 9 nodes"),
    "two shapes": ({"graph": {"topology": "ring", "edges": [[0, 1]]}}, r"method.graph: give either"),
    "unknown field": ({"graph": {"topologie": "ring"}}, r"method.graph: unknown field 'topologie'"),
    "consensus step alone": ({"consensus_step": 0.5}, r"method.consensus_step: belongs to a compressor"),
    "consensus step": ({"consensus_step": 1.5, "compressor": {"kind": "sign"}}, r"method.consensus_step: must be"),
    "no guarantee": ({"compressor": {"kind": "qsgd", "levels": 1}}, r"'consensus_step' must be given: QSGD"),
    "sketch alone": ({"compressor": {"kind": "sketch", "k": 2}}, r"'consensus_step' must be given: SketchedTopK"),
    "compressor": ({"compressor": {"kind": "topk", "k": 2}}, r"method.compressor: unknown compressor 'topk'"),
    "k > d": ({"compressor": {"kind": "top_k", "k": 6}}, r"method: k = 6 exceeds the dimension, 5"),
    "asymmetric": (
        {"compressor": {"kind": "sign"}, "mixing": DIRECTED, "graph": None},
        r"method: 'mixing' must be symm",
    ),
    "noise": ({"noise": -0.1}, r"method.noise: must be"),
    "step": ({"step": 0.0}, r"method.step: must be"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name):
    fields, said = BAD[name]
    with pytest.raises(ScenarioError, match=said) as error:
        scenario(method=fields)
    assert "\n" not in str(error.value)
