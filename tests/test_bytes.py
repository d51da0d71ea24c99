"""The metric "bytes": what a worker has sent by a version, against the trace's own columns."""

import numpy as np
import pytest

import asyncsim
from asyncsim import stored
from asyncsim.computed import computed, messages_at
from asyncsim.methods import SGD
from asyncsim.problems import Quadratic
from asyncsim.results import write_trace
from asyncsim.scenario import Metrics, build
from asyncsim.trace import APPLIED, DISCARDED, LOST, Trace, TraceError

POLICIES = {
    "async": {"kind": "async"},
    "sync": {"kind": "sync"},
    "k_async": {"kind": "k_async", "k": 2},
    "k_sync": {"kind": "k_sync", "k": 2},
    "discards": {"kind": "ringmaster", "max_staleness": 1},
    "cancels": {"kind": "ringmaster", "max_staleness": 1, "on_stale": "cancel"},
}
METRICS = {"every": {"every": 7, "record": ["loss", "bytes"]}, "times": {"at_times": 9, "record": ["loss", "bytes"]}}


def scenario(policy, metrics, **method):
    return build(
        {
            "seed": 3,
            "cluster": {
                "workers": [{"count": 5, "service": {"law": "exponential", "mean": 1.0}}],
                "network": {"latency": {"law": "exponential", "mean": 0.3}, "bandwidth": 1e4},
            },
            "policy": POLICIES[policy],
            "problem": {"kind": "quadratic", "eigenvalues": [1.0] * 40},
            "method": {"kind": "compressed_sgd", "step": 0.05, "compressor": {"kind": "top_k", "k": 4}, **method},
            "run": {"updates": 60, "replicas": 2},
            "metrics": METRICS[metrics],
        }
    )


def by_rows(trace, replica, version):
    """Return the bytes up of all rows down to the last one of the version's update, over the number of workers."""
    rows = trace.rows_of(replica)
    update = trace["update"][rows]
    if version == 0:
        return 0.0
    last = int(np.flatnonzero(update == version - 1)[-1])
    return trace["bytes_up"][rows][: last + 1].sum() / trace.workers


@pytest.mark.parametrize("metrics", METRICS)
@pytest.mark.parametrize("policy", POLICIES)
def test_bytes_are_those_of_the_rows_before_a_version(policy, metrics):
    run = asyncsim.run(scenario(policy, metrics))
    rows = run.metrics[run.metrics["metric"] == "bytes"]
    assert len(rows) >= 2 * 9
    for row in rows.itertuples():
        assert row.value == pytest.approx(by_rows(run.trace, row.replica, row.update), rel=1e-12)
    if policy == "discards":  # the companion: counting what was applied only would be too few
        applied = rows["update"] * 4 * 12 / 5
        assert (rows["value"] > applied).any()


def test_a_compressor_that_sends_less_costs_less():
    sent = {}
    for kind in ({"kind": "identity"}, {"kind": "top_k", "k": 4}, {"kind": "rand_k", "k": 4}):
        run = asyncsim.run(scenario("sync", "every", compressor=kind))
        sent[kind["kind"]] = run.summary["final"]["bytes"]
    assert sent == {"identity": 60 * 40 * 8, "top_k": 60 * 4 * 12, "rand_k": 60 * 4 * 8}


def imported(consecutive_draws):
    """Return a trace of every kind of row, the draws of each worker in the order of its rows or in the reverse one."""
    crash = {"mean_up": 9.0, "mean_down": 2.0}
    cluster = {
        "workers": [{"count": 4, "service": {"law": "exponential", "mean": 1.0}, "crash": crash}],
        "network": {"latency": {"law": "exponential", "mean": 0.2}, "loss": 0.2, "retries": 1, "retry_after": 1.0},
    }
    run = {"updates": 80, "replicas": 3}
    trace = asyncsim.simulate(build({"seed": 4, "cluster": cluster, "policy": POLICIES["discards"], "run": run}))
    columns = {name: np.array(trace[name]) for name in trace.columns if not name.startswith("bytes")}
    if not consecutive_draws:
        columns["draw"] = columns["draw"].max() - columns["draw"]
    return Trace(columns, seed=4, workers=4, updates=trace.updates, consecutive_draws=consecutive_draws)


def counted(trace, replica, version):
    """Return how many gradients were computed among the rows down to the last one of the version's update."""
    rows = trace.rows_of(replica)
    update, status, done = (trace[name][rows] for name in ("update", "status", "done_time"))
    last = int(np.flatnonzero(update == version - 1)[-1]) if version else -1
    fates = zip(status[: last + 1], ~np.isnan(done[: last + 1]), strict=True)
    return sum(fate in (APPLIED, DISCARDED) or (fate == LOST and ready) for fate, ready in fates)


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize("consecutive_draws", [True, False])
def test_messages_are_counted_whatever_the_order_of_draws(consecutive_draws, where, tmp_path, monkeypatch):
    trace = held = imported(consecutive_draws)
    assert {APPLIED, DISCARDED, LOST} <= set(trace["status"].tolist())
    assert np.isnan(trace["done_time"][trace["status"] == LOST]).any()  # lost before they were messages
    if not consecutive_draws:  # what has a memory is refused, and nothing else
        with pytest.raises(TraceError, match="order of its draws"):
            list(computed(trace, 0))
    if where == "file":
        monkeypatch.setattr(stored, "ROW_GROUP", 50)
        write_trace(trace, tmp_path / "trace.parquet")
        trace = stored.StoredTrace(tmp_path / "trace.parquet", checked=True)
        assert sum(1 for _ in trace.parts("draw")) > 6
    versions = np.array([0, 1, 2, 7, 40, 79, 80, 3])
    for replica in range(3):
        found = messages_at(trace, replica, versions).tolist()
        assert found == [counted(held, replica, version) for version in versions.tolist()]
    metrics = Metrics(record=("bytes",), every=80)
    run = asyncsim.replay(trace, SGD(step=0.01), Quadratic(eigenvalues=[1.0] * 5), metrics=metrics)
    last = run.metrics[run.metrics["update"] == 80]
    assert last["value"].tolist() == [counted(held, replica, 80) * 5 * 8 / 4 for replica in range(3)]
    assert (last["value"] > 80 * 5 * 8 / 4).all()  # the companion: what was applied only would be too few
