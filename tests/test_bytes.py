"""The metric "bytes": what a worker has sent by a version, against the trace's own columns."""

import numpy as np
import pytest

import asyncsim
from asyncsim.scenario import build

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
