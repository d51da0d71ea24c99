"""Compressed SGD, Mem-SGD and what their workers remember: on paper, under waste and loss, in real runs."""

from __future__ import annotations

import importlib.util
import pickle
from itertools import pairwise
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
from generate import scenarios
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from same import outcome

import asyncsim
from asyncsim import stored
from asyncsim.compressors import QSGD, Identity, RandK, ScaledSign, TopK
from asyncsim.computed import GONE, WASTED, computed, in_order
from asyncsim.divergence import first_divergence
from asyncsim.methods import METHODS, SGD, CompressedSGD, LocalSGD, MemSGD
from asyncsim.methods.compressed import Sent, shared_normals
from asyncsim.problems import Logistic, Quadratic, Saddle
from asyncsim.replay import Replayer
from asyncsim.scenario import Metrics, Scenario, ScenarioError, build
from asyncsim.sources.recorded.messages import Gradient
from asyncsim.trace import APPLIED, CANCELLED, DISCARDED, LOST, Row, Trace, TraceError, UpdateRows, Wasted

COMPRESSORS = {
    "top_k": TopK(k=2),
    "rand_k": RandK(k=2),
    "sign": ScaledSign(),
    "qsgd": QSGD(levels=2),
    "identity": Identity(),
}


def rounds(updates: int, workers: int = 1, *, replicas: int = 1, seed: int = 5) -> Trace:
    """Return a trace of synchronous rounds."""
    update = np.repeat(np.arange(updates), workers)
    one = {"worker": np.tile(np.arange(workers), updates), "draw": update, "read_version": update, "update": update}
    columns = {name: np.tile(column, replicas) for name, column in one.items()}
    replica = np.repeat(np.arange(replicas), update.size)
    counts = [updates] * replicas
    return Trace(
        {"replica": replica, "status": 0 * replica, **columns}, seed=seed, workers=workers, updates=counts, copy=False
    )


def trace_of(rows: list[tuple[int, int, int, int, int]], *, workers: int, seed: int = 5) -> Trace:
    """Return a trace of rows (worker, draw, read_version, update, status), all of them computed."""
    names = ("worker", "draw", "read_version", "update", "status")
    columns = {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    columns["replica"] = np.zeros(len(rows), dtype=np.int64)
    columns["done_time"] = np.where(columns["status"] == CANCELLED, np.nan, 1.0)
    return Trace(
        columns,
        seed=seed,
        workers=workers,
        updates=[int(columns["update"].max()) + 1],
    )


# --- Algorithm 1, line by line ----------------------------------------------------------------------------------------


def algorithm_1(method: CompressedSGD, problem: Any, workers: int, updates: int, seed: int) -> tuple[np.ndarray, list]:
    """Return x_t as line 9 finds it, for every t, and the t of every reset with what it did, as the paper's loop."""
    x = problem.initial(seed, 0)
    errors = [np.zeros(x.size) for _ in range(workers)]
    last, anchor, points, resets = 0, x, [], []
    for t in range(updates):
        ahead = x - method.step * sum(errors) / workers
        if t - last > method.reset_after or np.linalg.norm(anchor - ahead) > method.reset_radius:
            lower = problem.value(ahead if method.reset_test == "corrected" else x) < problem.value(anchor)
            resets.append((t, t - last, bool(lower)))
            x = ahead if lower else anchor
            last, anchor, errors = t, x, [np.zeros(x.size) for _ in range(workers)]
        points.append(x)
        sent = []
        for worker in range(workers):
            row = Row(seed, 0, worker, t, t)
            noise = method.noise * shared_normals(row, x.size)
            raw = errors[worker] + problem.stochastic_gradient(x, row) + noise
            sent.append(method.compressor.decode(method.compressor.encode(raw, (seed, 0, worker, t))))
            errors[worker] = raw - sent[-1]
        x = x - method.step * sum(sent) / workers
    return np.array(points), resets


@pytest.mark.parametrize("test", ["corrected", "printed"])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", COMPRESSORS)
def test_in_rounds_it_is_algorithm_1(name, workers, test):
    problem = Saddle(dimension=6, noise=0.3, start=0.2)
    settings = {"noise": 0.1, "reset_after": 12, "reset_radius": 0.25, "reset_test": test}
    method = CompressedSGD(step=0.1, compressor=COMPRESSORS[name], **settings)
    points, resets = algorithm_1(method, problem, workers, 150, seed=5)
    run = asyncsim.replay(
        rounds(150, workers), method, problem, record_iterates=True, metrics=Metrics(record=("resets",), every=1)
    )
    np.testing.assert_allclose(run.iterates[0, :-1], points, rtol=0, atol=1e-12)
    counts = run.metrics.value.to_numpy()
    assert np.flatnonzero(np.diff(counts[:-1])).tolist() == [t - 1 for t, *_ in resets]
    assert {True, False} <= {lower for *_, lower in resets} if name != "identity" else resets
    assert max(waited for _, waited, _ in resets) == 13  # never more than I + 1, and both reasons come up
    assert min(waited for _, waited, _ in resets) < 13


def test_the_two_tests_differ():
    problem = Saddle(dimension=6, noise=0.3, start=0.2)
    common = {"step": 0.1, "compressor": TopK(k=1), "noise": 0.3, "reset_after": 12}
    ends = [
        asyncsim.replay(rounds(300), CompressedSGD(**common, reset_test=test), problem).final_iterates
        for test in ("corrected", "printed")
    ]
    assert np.abs(ends[0] - ends[1]).max() > 1e-3


def test_noise_is_shared_by_a_round_and_fresh_in_the_next():
    one, other, later = (shared_normals(Row(7, 0, worker, draw), 4) for worker, draw in ((0, 3), (1, 3), (0, 4)))
    assert one.tolist() == other.tolist()
    assert not np.intersect1d(one, later).size


def test_identity_without_noise_is_sgd():
    problem, trace = Quadratic(eigenvalues=[1.0, 2.0, 3.0], noise=0.1), asyncsim.simulate(asynchronous())
    for feedback in (True, False):
        method = CompressedSGD(step=0.05, compressor=Identity(), error_feedback=feedback, step_rule="staleness")
        one = asyncsim.replay(trace, method, problem).final_iterates
        other = asyncsim.replay(trace, SGD(step=0.05, step_rule="staleness"), problem).final_iterates
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def asynchronous(**policy: Any) -> Scenario:
    return build(
        {
            "cluster": {"workers": [{"count": 4, "service": {"law": "exponential", "mean": 1.0}}]},
            "policy": policy or {"kind": "async"},
            "run": {"updates": 200, "replicas": 2},
        }
    )


# --- what is remembered -----------------------------------------------------------------------------------------------

#: Worker 0 is discarded, lost twice in a row, and cancelled; worker 1 is discarded in the middle of an update.
WASTE = [
    (0, 0, 0, 0, APPLIED),
    (1, 0, 0, 0, APPLIED),
    (2, 0, 0, 1, APPLIED),
    (0, 1, 1, -1, DISCARDED),
    (1, 1, 1, 1, APPLIED),
    (1, 2, 1, -1, DISCARDED),
    (0, 2, 1, -1, LOST),
    (0, 3, 2, -1, LOST),
    (1, 3, 2, 2, APPLIED),
    (0, 4, 2, -1, CANCELLED),
    (0, 5, 2, 2, APPLIED),
    (2, 1, 2, 3, APPLIED),
    (2, 2, 3, -1, DISCARDED),
    (1, 4, 3, 3, APPLIED),
    (0, 6, 3, 4, APPLIED),
    (2, 3, 4, 4, APPLIED),
    (1, 5, 4, -1, DISCARDED),
]
#: What a replay has to compute: all but what was cancelled and the last row, which no update follows.
COMPUTED = [(worker, draw) for worker, draw, _, _, status in WASTE[:-1] if status != CANCELLED]


class Noted:
    """A method that writes down what its workers do; to be mixed with one."""

    def message(self, problem, x_read, memory, row):
        payload, after = super().message(problem, x_read, memory, row)
        content = payload.payload if isinstance(payload, Sent) else payload
        book = BOOK.setdefault(row.worker, {"draws": [], "raw": [], "sent": [], "lost": []})
        book["draws"].append(row.draw)
        gradient = problem.stochastic_gradient(super().model(problem, x_read), row)
        if isinstance(self, CompressedSGD):
            gradient = gradient + self.noise * shared_normals(row, problem.dimension)
        else:
            gradient = gradient * self.step / (self.shift + row.draw)
        book["raw"].append(gradient)
        book["sent"].append(self.compressor.decode(content))
        book["memory"] = getattr(after, "error", after)
        return payload, after

    def lost(self, payload, memory):
        after = super().lost(payload, memory)
        BOOK_LOST.append(payload)
        for book in BOOK.values():
            if book["memory"] is getattr(memory, "error", memory):
                book["lost"].append(book["sent"].pop())
                book["memory"] = getattr(after, "error", after)
        return after


class NotedCompressed(Noted, CompressedSGD):
    """Compressed SGD that writes down what its workers do."""


class NotedMem(Noted, MemSGD):
    """Mem-SGD that writes down what its workers do."""


class Unaware(CompressedSGD):
    """The old rule: only what is applied is computed."""

    @property
    def remembers(self):
        return False


BOOK: dict[int, dict[str, Any]] = {}
BOOK_LOST: list[Any] = []
WITH_MEMORY = {
    "compressed": (NotedCompressed, {"step": 0.1, "noise": 0.1}, 0.1),
    "mem": (NotedMem, {"step": 1.0, "shift": 9.0}, 1.0),
}


@pytest.mark.parametrize("on_loss", ["restore", "drop"])
@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("method", WITH_MEMORY)
def test_nothing_is_lost_but_what_is_counted_lost(method, name, on_loss):
    """Per worker Σ raw = Σ sent + what is left (+ what is dropped); and the model has moved by what was applied."""
    make, settings, scale = WITH_MEMORY[method]
    BOOK.clear()
    BOOK_LOST.clear()
    problem = Quadratic(eigenvalues=[1.0, 2.0, 3.0, 4.0], noise=0.5)
    kept = make(**settings, compressor=COMPRESSORS[name], on_loss=on_loss)
    run = asyncsim.replay(trace_of(WASTE, workers=3), kept, problem)
    assert {worker: book["draws"] for worker, book in BOOK.items()} == {
        worker: [draw for who, draw in COMPUTED if who == worker] for worker in range(3)
    }
    assert len(BOOK_LOST) == 2
    assert len(BOOK[0]["lost"]) == 2
    for book in BOOK.values():
        parts = [*book["sent"], book["memory"], *(book["lost"] if on_loss == "drop" else [])]
        bound = 1e-12 * sum(np.linalg.norm(part) for part in (*book["raw"], *parts))
        assert np.linalg.norm(sum(book["raw"]) - sum(parts)) <= bound
        if name != "identity":  # the companion: the memory belongs in the sum
            assert np.linalg.norm(sum(book["raw"]) - sum(parts) + book["memory"]) > 1e3 * bound
    applied = {(worker, draw): update for worker, draw, _, update, status in WASTE if status == APPLIED}
    moved = np.zeros(4)
    for worker, book in BOOK.items():
        sent = iter(book["sent"])
        gone = {2, 3} if worker == 0 else set()
        for draw in book["draws"]:
            content = None if draw in gone else next(sent)
            if (worker, draw) in applied:
                moved += content / 2
    scale = scale if method == "compressed" else 1.0
    np.testing.assert_allclose(problem.initial(5, 0) - run.final_iterates[0], scale * moved, rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"reset_after": 2}], ids=["plain", "resets"])
def test_what_was_wasted_changes_what_follows(settings):
    """The control of the control: with the old rule the last applied gradients come out of another memory."""
    problem = Quadratic(eigenvalues=[1.0, 2.0, 3.0, 4.0], noise=0.5)
    method = {"step": 0.1, "compressor": TopK(k=1), **settings}
    trace = trace_of(WASTE, workers=3)
    runs = [asyncsim.replay(trace, make(**method), problem) for make in (CompressedSGD, Unaware)]
    assert np.abs(runs[0].final_iterates - runs[1].final_iterates).max() > 1e-3


def test_the_order_of_computing():
    trace = trace_of(WASTE, workers=3)
    found = in_order({name: trace[name] for name in trace.columns})
    assert list(zip(found["worker"].tolist(), found["draw"].tolist(), strict=True)) == COMPUTED
    assert (found["read_version"] <= found["update"]).all()
    into = {(0, 1): WASTED, (1, 2): WASTED, (2, 2): WASTED, (0, 2): GONE, (0, 3): GONE}
    own = {(worker, draw): update for worker, draw, _, update, _ in WASTE}
    assert found["into"].tolist() == [into.get(key, own[key]) for key in COMPUTED]


def test_a_loss_that_is_noticed_late_is_computed_in_time():
    rows = [(0, 1, 0, 0, APPLIED), (1, 0, 1, 1, APPLIED), (0, 0, 0, -1, LOST), (1, 1, 2, 2, APPLIED)]
    columns = {name: trace_of(rows, workers=2)[name] for name in ("worker", "draw", "read_version", "update", "status")}
    found = in_order(columns | {"done_time": np.ones(4)})
    assert found["draw"].tolist() == [0, 1, 0, 1]
    assert found["update"].tolist() == [0, 0, 1, 2]


OUT_OF_ORDER = {
    "applied in the order": [(0, 1, 0, 0, APPLIED), (0, 0, 0, 1, APPLIED)],
    "an older version": [(0, 0, 1, -1, DISCARDED), (0, 1, 0, 0, APPLIED), (0, 2, 1, 1, APPLIED)],
}


@pytest.mark.parametrize("said", OUT_OF_ORDER)
def test_what_no_memory_can_have_seen_is_refused(said):
    trace = trace_of(OUT_OF_ORDER[said], workers=1)
    with pytest.raises(TraceError, match=said):
        asyncsim.replay(trace, CompressedSGD(step=0.1, compressor=TopK(k=1)), Quadratic(eigenvalues=[1.0, 2.0]))


def test_a_stored_trace_gives_the_same(tmp_path, monkeypatch):
    made = asynchronous(kind="ringmaster", max_staleness=1)
    held = asyncsim.simulate(made)
    assert (held["status"] == DISCARDED).sum() > 100
    monkeypatch.setattr(stored, "ROW_GROUP", 64)
    long = asyncsim.sources.simulate_to_file(made, tmp_path / "trace.parquet")
    monkeypatch.setattr(asyncsim.schedule, "window_size", lambda workers: 16)
    method, problem = CompressedSGD(step=0.05, compressor=RandK(k=1)), Quadratic(eigenvalues=[1.0, 2.0], noise=0.1)
    one, other = (asyncsim.replay(trace, method, problem).final_iterates for trace in (held, long))
    assert one.tobytes() == other.tobytes()


# --- while a simulation runs ------------------------------------------------------------------------------------------


def online_rows(trace: Trace, *, tell: bool) -> list[UpdateRows]:
    """Return the updates of a trace of one replica as a simulation would tell of them."""
    rows, told = [], 0
    columns = {name: trace[name] for name in ("worker", "draw", "read_version", "update", "status")}
    for update in range(int(trace.updates[0])):
        mine = np.flatnonzero(columns["update"] == update)
        waste = np.arange(told, mine[-1])
        waste = waste[np.isin(columns["status"][waste], (DISCARDED, LOST))]
        told = int(mine[-1]) + 1
        block = np.full(mine.size, -1)
        wasted = Wasted(
            *(columns[name][waste] for name in ("worker", "draw", "read_version")),
            np.full(waste.size, -1),
            columns["status"][waste] == LOST,
        )
        named = {name: columns[name][mine] for name in ("worker", "draw", "read_version")}
        rows.append(
            UpdateRows(0, update, float(update), **named, block=block, oldest_read=0, wasted=wasted if tell else None)
        )
    return rows


def test_an_online_replay_agrees_where_it_is_told_of_waste():
    problem = Quadratic(eigenvalues=[1.0, 2.0, 3.0, 4.0], noise=0.5)
    method, trace = CompressedSGD(step=0.1, compressor=TopK(k=1)), trace_of(WASTE, workers=3)
    replayer = Replayer(method, problem, seed=5, workers=3)
    for rows in online_rows(trace, tell=True):
        replayer.step(rows)
    assert replayer.state.x.tobytes() == asyncsim.replay(trace, method, problem).final_iterates[0].tobytes()


def test_an_online_replay_says_what_it_lacks():
    method = CompressedSGD(step=0.1, compressor=TopK(k=1))
    replayer = Replayer(method, Quadratic(eigenvalues=[1.0, 2.0]), seed=5, workers=3)
    updates = online_rows(trace_of(WASTE, workers=3), tell=False)
    assert [replayer.step(rows) for rows in updates[:2]] == ["go", "go"]
    with pytest.raises(ScenarioError, match="draw 2 of worker 1 is not known"):
        replayer.step(updates[2])


# --- resets without rounds --------------------------------------------------------------------------------------------


def test_a_message_from_before_a_reset_is_void():
    problem = Quadratic(eigenvalues=[1.0, 2.0])
    method = CompressedSGD(step=0.1, compressor=TopK(k=1), reset_after=1)
    state, memories = method.init(problem, np.array([1.0, 1.0]), workers=2)
    late = method.message(problem, state.x, memories[1], Row(5, 0, 1, 0))[0]
    memory = memories[0]
    for update in range(2):
        row = Row(5, 0, 0, update, update)
        sent, memory = method.message(problem, state.x, memory, row)
        state = method.apply(problem, state, [sent], [row])
    assert state.x[-1] == state.extra.resets == 1
    assert state.extra.since == 2
    void = method.apply(problem, state, [late], [Row(5, 0, 1, 0, 2, 2)])
    assert void.x.tolist() == state.x.tolist()
    assert void.extra.taken == 0
    row = Row(5, 0, 0, 2, 2)
    sent, memory = method.message(problem, state.x, memory, row)
    raw = problem.gradient(state.x[:2])
    np.testing.assert_allclose(method.compressor.decode(sent.payload) + memory.error, raw, rtol=0, atol=1e-15)
    mixed = method.apply(problem, state, [late, sent], [Row(5, 0, 1, 0, 2, 2), row])
    half = state.x[:2] - 0.05 * method.compressor.decode(sent.payload)
    np.testing.assert_allclose(mixed.x[:2], half, rtol=0, atol=1e-15)


@pytest.mark.parametrize("reset_after", [3, 40])
def test_without_rounds_the_bound_on_resets_holds_too(reset_after):
    """t − t' counts updates that have used a message: one more than I, with those void in between, at most."""
    problem = Quadratic(eigenvalues=[1.0, 2.0, 3.0], noise=0.5)
    method = CompressedSGD(step=0.02, compressor=TopK(k=1), reset_after=reset_after)
    taken = []

    class Watched(CompressedSGD):
        def apply(self, problem, state, payloads, rows):
            after = super().apply(problem, state, payloads, rows)
            taken.append((state.extra.taken, after.extra.resets - state.extra.resets, after is state))
            return after

    trace = asyncsim.simulate(asynchronous(), replicas=[0])
    run = asyncsim.replay(trace, Watched(**method._given()), problem)
    assert {before for before, reset, _ in taken if reset} == {reset_after}
    assert max(before for before, *_ in taken) == reset_after
    void = sum(is_void for *_, is_void in taken)
    assert 0 < void <= 3 * run.facts["resets"][0]  # those that the three others had under way
    assert run.facts["resets"][0] == (200 - void) // (reset_after + 1)


def test_the_server_knows_the_errors_of_the_workers():
    problem = Quadratic(eigenvalues=[1.0, 2.0, 3.0, 4.0], noise=0.5)
    method = CompressedSGD(step=0.1, compressor=TopK(k=1), reset_after=1000)
    run = asyncsim.replay(rounds(30, 3), method, problem, metrics=Metrics(record=("memory", "loss"), every=30))
    _, errors = _mean_error(method, problem, 30)
    told = run.metrics[(run.metrics.metric == "memory") & (run.metrics["update"] == 30)].value.item()
    assert told == pytest.approx(np.linalg.norm(errors), rel=1e-12)


def _mean_error(method, problem, updates):
    state, memories = method.init(problem, problem.initial(5, 0), 3)
    for update in range(updates):
        rows = [Row(5, 0, worker, update, update) for worker in range(3)]
        found = [method.message(problem, state.x, memories[row.worker], row) for row in rows]
        memories = [memory for _, memory in found]
        state = method.apply(problem, state, [sent for sent, _ in found], rows)
    return state, sum(memory.error for memory in memories) / 3


# --- what is claimed of them ------------------------------------------------------------------------------------------


def escaped(noise: float, replicas: int, test: str = "corrected") -> int:
    """Return how many of the replicas have left the saddle of 20 coordinates after 6000 steps."""
    problem = Saddle(dimension=20)
    settings = {"reset_after": 400, "reset_radius": 0.5, "reset_test": test}
    method = CompressedSGD(step=0.02, compressor=RandK(k=2), noise=noise, **settings)
    run = asyncsim.replay(rounds(6000, replicas=replicas), method, problem, metrics=Metrics(record=()))
    assert set(run.facts["resets"].tolist()) <= {14, 15}
    return int((problem.value(run.final_iterates) < -0.2).sum())


def test_noise_leaves_a_strict_saddle_and_without_noise_it_stays():
    assert escaped(0.01, 3) == 3
    assert escaped(0.0, 1) == 0  # every seed is the same then


@pytest.mark.slow
@pytest.mark.parametrize("test", ["corrected", "printed"])
def test_20_of_20_leave_the_saddle_and_0_of_20_without_noise(test):
    assert escaped(0.01, 20, test) == 20
    assert escaped(0.0, 20, test) == 0


class Forgetful(MemSGD):
    """The control: what is not sent is forgotten."""

    def message(self, problem, x_read, memory, row):
        return super().message(problem, x_read, memory, row)[0], memory


def suboptimality(method: Any, updates: int, replicas: int) -> Any:
    problem = Logistic(dataset="breast_cancer", l2=0.5, batch=1)
    metrics = Metrics(record=("suboptimality",), every=updates // 200)
    run = asyncsim.replay(rounds(updates, replicas=replicas), method, problem, metrics=metrics)
    return run.metrics.groupby("update").value.mean()


@pytest.mark.parametrize(
    ("updates", "replicas"), [(3000, 5), pytest.param(20_000, 8, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_mem_sgd_has_the_slope_of_sgd_and_without_memory_it_has_not(updates, replicas):
    """Suboptimality ∝ 1/(a + t) over the last two decades, with steps 4/(μ(a + t)), a = 3d/k and μ = 0.5."""
    settings = {"step": 8.0, "shift": 93.0}
    curves = {
        "plain": suboptimality(MemSGD(**settings, compressor=Identity()), updates, replicas),
        "memory": suboptimality(MemSGD(**settings, compressor=TopK(k=1)), updates, replicas),
        "forgetful": suboptimality(Forgetful(**settings, compressor=TopK(k=1)), updates, replicas),
    }
    late = {name: curve[curve.index >= updates // 100] for name, curve in curves.items()}
    slopes = {name: np.polyfit(np.log(93.0 + curve.index), np.log(curve), 1)[0] for name, curve in late.items()}
    assert slopes["plain"] == pytest.approx(-1.0, abs=0.1)
    assert slopes["memory"] == pytest.approx(-1.0, abs=0.1)
    assert slopes["forgetful"] > -0.5
    last = {name: float(curve[-20:].mean()) for name, curve in curves.items()}
    assert last["forgetful"] >= 10 * last["memory"]


# --- real runs --------------------------------------------------------------------------------------------------------

RINGMASTER = {"kind": "ringmaster", "max_staleness": 1}
REAL_METHODS = {
    "feedback": {"kind": "compressed_sgd", "step": 0.05, "compressor": {"kind": "top_k", "k": 1}},
    "resets": {
        "kind": "compressed_sgd",
        "step": 0.05,
        "compressor": {"kind": "rand_k", "k": 2},
        "noise": 0.1,
        "reset_after": 7,
        "reset_radius": 0.5,
    },
    "mem": {"kind": "mem_sgd", "step": 1.0, "shift": 20.0, "compressor": {"kind": "sign"}},
    "local": {"kind": "local_sgd", "step": 0.05, "local_steps": 3, "compressor": {"kind": "qsgd", "levels": 2}},
}


def real(backend: str, method: Any, *, policy: Any = RINGMASTER, updates: int = 60, **run: Any) -> Scenario:
    return build(
        {
            "seed": 3,
            "cluster": {"workers": [{"count": 3, "service": {"law": "exponential", "mean": 0.001}}]},
            "policy": policy,
            "problem": {"kind": "quadratic", "eigenvalues": [1.0, 2.0, 3.0], "noise": 0.1},
            "method": method,
            "run": {"source": "record", "backend": backend, "wait": "sleep", "updates": updates, **run},
        }
    )


def same_bits(made: Scenario, recording: Any, method: Any) -> bool:
    run = asyncsim.replay(recording.trace, method, made.problem, checksums=True)
    same = run.final_iterates.tobytes() == recording.final_iterates.tobytes()
    return same and (run.checksums[0] == recording.checksums[0]).all()


@pytest.mark.parametrize(
    ("backend", "method"),
    [*(("threads", method) for method in REAL_METHODS), ("shared_memory", "resets"), ("queue", "feedback")],
)
def test_a_real_run_that_wastes_replays_to_the_bit(backend, method):
    made = real(backend, REAL_METHODS[method])
    recording = asyncsim.record(made)
    assert recording.ended is None
    assert (recording.trace["status"] == DISCARDED).any()
    assert same_bits(made, recording, made.method)
    if method == "feedback":  # the old rule has other bits
        assert not same_bits(made, recording, Unaware(**made.method._given()))
    assert recording.final_iterates.shape == (1, 3)


@pytest.mark.parametrize("backend", ["manager", "mpi"])
def test_other_ways_of_messages_replay_to_the_bit(backend):
    if backend == "mpi" and importlib.util.find_spec("mpi4py") is None:
        pytest.skip("mpi4py is not installed: pip install 'asyncsim[mpi]'")
    made = real(backend, REAL_METHODS["resets"], updates=40)
    recording = asyncsim.record(made)
    assert recording.ended is None
    assert same_bits(made, recording, made.method)


def test_rounds_and_cancelled_gradients_replay_to_the_bit():
    for policy in ({"kind": "sync"}, {**RINGMASTER, "on_stale": "cancel"}, {"kind": "k_batch_sync", "k": 2}):
        made = real("threads", REAL_METHODS["resets"], policy=policy)
        assert same_bits(made, asyncsim.record(made), made.method)


@pytest.mark.parametrize("resets", [False, True], ids=["plain", "resets"])
def test_what_travels_is_as_short_as_it_says(resets):
    dimension = 100_000
    problem = Quadratic(dimension=dimension, condition_number=10.0)
    method = CompressedSGD(step=0.1, compressor=TopK(fraction=0.01), reset_after=5 if resets else None)
    state, memories = method.init(problem, problem.initial(3, 0), 4)
    sent, _ = method.message(problem, state.x, memories[2], Row(3, 0, 2, 17))
    up, down = method.message_bytes(problem, 4)
    travels = ForkingPickler.dumps(Gradient(2, 17, 0.0, 1.0, sent)).nbytes
    assert up <= travels <= up + 1024
    assert down == 8 * state.x.size == 8 * (dimension + resets)
    assert up == method.compressor.nbytes(dimension) + (8 * dimension if resets else 0)
    assert resets or up < 0.02 * 8 * dimension
    assert len(pickle.dumps(problem.gradient(state.x[:dimension]))) > 8 * dimension


@pytest.mark.parametrize("method", REAL_METHODS)
def test_a_worker_that_forgets_is_not_started_again(method):
    with pytest.raises(ScenarioError, match=r"run\.on_worker_death: .* has lost its memory"):
        real("queue", REAL_METHODS[method], policy={"kind": "async"}, on_worker_death="restart")


def test_without_locks_nobody_keeps_what_the_server_keeps():
    with pytest.raises(ScenarioError, match=r"run\.consistency: without locks"):
        real("shared_memory", REAL_METHODS["resets"], policy={"kind": "async"}, consistency="hogwild")


# --- bad input --------------------------------------------------------------------------------------------------------

TOP = {"kind": "top_k", "k": 1}
BAD = {
    "reset_test needs resets": {"reset_test": "printed"},
    "on_loss belongs to error_feedback": {"on_loss": "drop", "error_feedback": False},
    "step_rule must be 'constant'": {"step_rule": "inverse_time", "reset_after": 5},
    "compressor missing field 'kind'": {"compressor": {}},
    "sparsifier must have 'kind' one of 'rand_k', 'top_k', got": {
        "compressor": {"kind": "composed", "sparsifier": {"kind": "sign"}, "quantizer": {"kind": "sign"}}
    },
    "quantizer missing field 'kind'": {"compressor": {"kind": "composed", "sparsifier": TOP, "quantizer": {}}},
    "k = 9 exceeds the dimension": {"compressor": {"kind": "top_k", "k": 9}},
    "reset_after must": {"reset_after": 0},
}


@pytest.mark.parametrize("said", BAD)
def test_bad_settings_are_refused(said):
    method = {"kind": "compressed_sgd", "step": 0.1, "compressor": TOP, **BAD[said]}
    data = asynchronous().resolved() | {"problem": {"kind": "quadratic", "eigenvalues": [1.0, 2.0]}, "method": method}
    where, _, words = said.partition(" ")
    with pytest.raises(ScenarioError, match=f"method.*{where}.*{words}"):
        build(data)


def test_what_the_server_does_not_know_is_not_measured():
    data = asynchronous().resolved() | {
        "problem": {"kind": "quadratic", "eigenvalues": [1.0, 2.0]},
        "method": {"kind": "compressed_sgd", "step": 0.1, "compressor": TOP},
        "metrics": {"record": ["memory"]},
    }
    for metric in ("memory", "resets"):
        data["metrics"] = {"record": [metric]}
        said = f"metrics.record: '{metric}' needs method.kind = 'compressed_sgd' with 'reset_after' or 'reset_radius'"
        with pytest.raises(ScenarioError, match=said):
            build(data)
    with pytest.raises(ScenarioError, match=r"'consensus' needs method\.kind = 'decentralized_sgd'"):
        build({**data, "metrics": {"record": ["consensus"]}})
    data["method"]["reset_after"] = 50
    assert build(data).method.measures == ("memory", "resets")


def test_every_method_that_remembers_runs_alone():
    for name in ("compressed_sgd", "mem_sgd", "local_sgd"):
        assert name in METHODS
    for method in (
        CompressedSGD(step=0.1, compressor=TopK(k=1)),
        MemSGD(step=0.1, shift=1.0, compressor=TopK(k=1)),
        LocalSGD(step=0.1, local_steps=2, compressor=TopK(k=1)),
    ):
        assert method.remembers
        assert not method.batched


# --- with the engines -------------------------------------------------------------------------------------------------

LOSSY = {
    "async": {"kind": "async"},
    "sync": {"kind": "sync"},
    "ringmaster": {"kind": "ringmaster", "max_staleness": 2, "on_stale": "cancel"},
    "rennala": {"kind": "rennala", "batch": 3},
    "k_batch_sync": {"kind": "k_batch_sync", "k": 3},
}


def breaking(policy: Any, **method: Any) -> Scenario:
    """Return a cluster whose network loses messages for good and whose workers crash and return."""
    group = {
        "count": 4,
        "service": {"law": "exponential", "mean": 1.0},
        "crash": {"mean_up": 20.0, "mean_down": 3.0},
    }
    network = {"latency": {"law": "exponential", "mean": 0.1}, "loss": 0.2, "retries": 1, "retry_after": 1.0}
    return build(
        {
            "seed": 2,
            "cluster": {"workers": [group], "network": {"topology": "star", "bandwidth": 1000.0, **network}},
            "policy": policy,
            "problem": {"kind": "quadratic", "eigenvalues": [1.0, 2.0, 3.0], "noise": 0.1},
            "method": {"kind": "compressed_sgd", "step": 0.05, "compressor": {"kind": "top_k", "k": 1}, **method},
            "run": {"updates": 60},
        }
    )


@pytest.mark.parametrize("on_loss", ["restore", "drop"])
@pytest.mark.parametrize("policy", LOSSY)
def test_nothing_disappears_where_messages_are_lost_and_workers_crash(policy, on_loss):
    made = breaking(LOSSY[policy], on_loss=on_loss)
    trace = asyncsim.simulate(made)
    status, done = trace["status"], ~np.isnan(trace["done_time"])
    before_end = np.arange(len(trace)) < np.flatnonzero(status == APPLIED)[-1]
    assert ((status == LOST) & done & before_end).any()
    assert ((status == LOST) & ~done & before_end).any()
    BOOK.clear()
    asyncsim.replay(trace, NotedCompressed(**made.method._given()), made.problem)
    worker, draw = trace["worker"], trace["draw"]
    computed = (status == APPLIED) | (done & before_end & (status != CANCELLED))
    for who, book in BOOK.items():
        last = draw[(status == APPLIED) & (worker == who)].max()
        mine = np.sort(draw[computed & (worker == who)])
        assert [one for one in book["draws"] if one <= last] == mine[mine <= last].tolist()
        assert book["draws"] == sorted(book["draws"])
        parts = [*book["sent"], book["memory"], *(book["lost"] if on_loss == "drop" else [])]
        bound = 1e-12 * sum(np.linalg.norm(part) for part in (*book["raw"], *parts))
        assert np.linalg.norm(sum(book["raw"]) - sum(parts)) <= bound


#: Clusters on which gradients are wasted in all ways: what `breaking` has, and what a simulation must tell of in time.
GROUP = {"count": 4, "service": {"law": "exponential", "mean": 1.0}}
WASTEFUL = {
    "breaks": breaking(LOSSY["async"]).resolved()["cluster"],
    "slow server": {"workers": [GROUP], "server": {"service": {"law": "exponential", "mean": 0.5}}},
    "impatient": {
        "workers": [{**GROUP, "service": {"law": "exponential", "mean": 0.5}}],
        "server": {"service": {"law": "exponential", "mean": 0.3}},
        "network": {
            "topology": "switch",
            "bandwidth": 100.0,
            "latency": {"law": "exponential", "mean": 0.1},
            "loss": 0.3,
            "retries": 3,
            "retry_after": 1.0,
            "longest_wait": 0.7,  # so that a worker's later gradient may be given up before an earlier one
        },
    },
}
ENGINES = ("compiled", "simpy")


class Barriers(CompressedSGD):
    """Asks for a barrier at every seventh update."""

    def apply(self, problem, state, payloads, rows):
        after = super().apply(problem, state, payloads, rows)
        return after._replace(request="barrier" if rows[0].update % 7 == 6 else "go")


def wasteful(cluster: str, policy: str, method: str = "feedback", **run: Any) -> Scenario:
    return build(
        breaking(LOSSY[policy]).resolved()
        | {
            "cluster": WASTEFUL[cluster],
            "method": REAL_METHODS[method],
            "run": {"updates": 60, **run},
        }
    )


def told_of(updates: list[UpdateRows]) -> list[tuple[int, ...]]:
    """Return (update, worker, draw, read_version, lost) of what a simulation said was wasted."""
    return [
        (rows.update, *(int(rows.wasted._asdict()[name][i]) for name in ("worker", "draw", "read_version", "lost")))
        for rows in updates
        for i in range(rows.wasted.draw.size)
    ]


def wasted_in(trace: Trace) -> list[tuple[int, ...]]:
    """Return the same of what a replay of the finished trace computes for nothing."""
    (found,) = computed(trace, 0)
    columns = [found[name].tolist() for name in ("update", "worker", "draw", "read_version", "into")]
    return [(*row, int(into == GONE)) for *row, into in zip(*columns, strict=True) if into < 0]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("barriers", [False, True], ids=["go", "barriers"])
@pytest.mark.parametrize("policy", LOSSY)
@pytest.mark.parametrize("cluster", WASTEFUL)
def test_a_simulation_tells_of_what_is_computed_for_nothing(cluster, policy, barriers, engine):
    seen: list[UpdateRows] = []

    def on_update(rows):
        seen.append(rows)
        return "barrier" if barriers and rows.update % 7 == 6 else "go"

    trace = asyncsim.sources.simulate(wasteful(cluster, policy), engine=engine, on_update=on_update)
    told, wasted = told_of(seen), wasted_in(trace)
    assert told or (cluster == "slow server" and policy in ("async", "sync"))
    if cluster == "impatient":  # what is given up early is computed at once in the end, and told of in order of draws
        told, wasted = sorted(row[1:] for row in told), sorted(row[1:] for row in wasted)
    assert told == wasted
    for rows, after in pairwise(seen):
        assert min([rows.update + 1, *after.read_version, *after.wasted.read_version]) >= rows.oldest_read
        assert after.oldest_read >= rows.oldest_read


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", [*REAL_METHODS, "barriers"])
@pytest.mark.parametrize("policy", LOSSY)
@pytest.mark.parametrize("cluster", WASTEFUL)
def test_a_simulation_that_its_replay_drives_has_the_bits_of_the_finished_trace(cluster, policy, method, engine):
    made = wasteful(cluster, policy, "feedback" if method == "barriers" else method, updates=300)
    method = Barriers(**made.method._given()) if method == "barriers" else made.method
    replayer = Replayer(method, made.problem, seed=made.seed, workers=4, stop_when="loss < 0.5", every=5)
    trace = asyncsim.sources.simulate(made, engine=engine, on_update=replayer.step)
    assert 0 < trace.updates[0] < 300
    assert trace.events[-1][-1] == "stop"
    run = asyncsim.replay(trace, method, made.problem)
    assert run.final_iterates[0].tobytes() == method.model(made.problem, replayer.state.x).tobytes()
    assert len(replayer.versions) <= trace.staleness().max() + 10


def test_what_a_simulation_tells_of_matters():
    made = wasteful("breaks", "ringmaster")
    nothing = Wasted(*[np.empty(0, dtype=np.int64)] * 5)

    def end(tell):
        replayer = Replayer(made.method, made.problem, seed=made.seed, workers=4)
        trace = asyncsim.simulate(made, on_update=lambda rows: replayer.step(tell(rows)))
        return trace, replayer.state.x

    trace, told = end(lambda rows: rows)
    _, forgotten = end(lambda rows: rows._replace(wasted=nothing))
    assert np.abs(told - forgotten).max() > 1e-3
    assert told.tobytes() == asyncsim.replay(trace, made.method, made.problem).final_iterates[0].tobytes()


@settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100
)
@given(scenarios(), st.integers(2, 12), st.sampled_from(ENGINES))
def test_generated_simulations_have_the_bits_of_the_finished_trace(scenario, every, engine):
    method, problem = CompressedSGD(step=0.05, compressor=TopK(k=1)), Quadratic(eigenvalues=[1.0, 2.0, 3.0], noise=0.1)
    replayer = Replayer(method, problem, seed=scenario.seed, workers=scenario.workers)

    def on_update(rows):
        replayer.step(rows)
        return "barrier" if rows.update % every == every - 1 else "go"

    trace = outcome(lambda: asyncsim.sources.simulate(scenario, engine=engine, replicas=[0], on_update=on_update))
    if isinstance(trace, Trace) and trace.updates[0]:
        run = asyncsim.replay(trace, method, problem)
        assert run.final_iterates[0].tobytes() == replayer.state.x.tobytes()


@pytest.mark.parametrize("policy", ["ringmaster", "k_batch_sync"])
def test_a_simulation_tells_the_same_where_its_rows_are_handed_over_early(policy, tmp_path, monkeypatch):
    made, seen = wasteful("impatient", policy, updates=1500), []

    def on_update(rows):
        seen.append(rows)
        return "go"

    asyncsim.sources.simulate(made, engine="compiled", on_update=on_update)
    monkeypatch.setattr(stored, "ROW_GROUP", 64)
    asyncsim.sources.simulate_to_file(made, tmp_path / "trace.parquet", engine="compiled", on_update=on_update)
    assert len(seen) == 3000
    assert told_of(seen[:1500]) == told_of(seen[1500:])


def test_a_target_ends_a_run_that_wastes():
    run = asyncsim.run(wasteful("breaks", "ringmaster", updates=5000, stop_when="loss < 0.1"))
    assert 0 < run.trace.updates[0] < 5000
    assert {DISCARDED, CANCELLED, LOST} <= set(run.trace["status"].tolist())
    assert run.metrics.value.iloc[-1] < 0.1


def test_bytes_on_the_wire_are_those_of_the_payload():
    trace = asyncsim.simulate(breaking(LOSSY["async"]))
    assert set(trace["bytes_up"][trace["status"] == APPLIED].tolist()) == {TopK(k=1).nbytes(3)}
    assert set(trace["bytes_down"].tolist()) == {24}


def test_two_runs_part_at_the_first_update_that_differs():
    made = breaking(LOSSY["ringmaster"]).resolved()
    del made["cluster"]["network"], made["cluster"]["workers"][0]["crash"]
    one = asyncsim.run(build(made))
    assert (one.trace["status"] == DISCARDED).sum() + (one.trace["status"] == CANCELLED).sum() > 10
    assert first_divergence(one, one) is None
    other = {**made, "method": {**made["method"], "step": 0.06}}
    assert first_divergence(one, asyncsim.run(build(other))) == (0, 0)


def test_a_reset_begins_a_new_account():
    """Between resets x_t − γ e_t = x_{t'} − γ Σ (mean raw gradient since t')."""
    problem = Saddle(dimension=6, noise=0.3, start=0.2)
    method = CompressedSGD(step=0.1, compressor=TopK(k=1), noise=0.1, reset_after=12)
    state, memories = method.init(problem, problem.initial(5, 0), 3)
    account, size, checked = np.zeros(6), 0.0, 0
    for update in range(60):
        before = state
        found = []
        for worker in range(3):
            row = Row(5, 0, worker, update, update)
            sent, memories[worker] = method.message(problem, state.x, memories[worker], row)
            raw = problem.stochastic_gradient(state.x[:6], row) + 0.1 * shared_normals(row, 6)
            account, size = account + raw / 3, size + np.linalg.norm(raw) / 3
            found.append((sent, row))
        state = method.apply(problem, before, [sent for sent, _ in found], [row for _, row in found])
        if state.extra.resets > before.extra.resets:
            account, size = np.zeros(6), 0.0
            assert not any(error.any() for error in state.extra.errors)
            continue
        error = sum(memory.error for memory in memories) / 3
        away = state.extra.anchor - (state.x[:6] - 0.1 * error) - 0.1 * account
        assert np.linalg.norm(away) <= 1e-12 * (size + np.linalg.norm(state.extra.anchor))
        np.testing.assert_allclose(state.extra.total / 3, error, rtol=0, atol=1e-13)
        checked += 1
    assert checked == 60 - state.extra.resets == 56
