"""The theory columns of sweeps: what `predict` says beside what runs measure, and where it must say nothing."""

from __future__ import annotations

import numpy as np
import pytest

from asyncsim import staleness, theory
from asyncsim.prediction import predict
from asyncsim.scenario import build
from asyncsim.sources import simulate
from asyncsim.sweep import run_sweep
from asyncsim.trace import APPLIED

WORKERS = 6
EXPONENTIAL = {"law": "exponential", "mean": 1.0}
POLICIES = {
    "async": {"kind": "async"},
    "k_async": {"kind": "k_async", "k": 4},
    "k_batch_async": {"kind": "k_batch_async", "k": 4},
    "k_batch_async of more than all": {"kind": "k_batch_async", "k": 9},
}
STAR = {"latency": {"law": "uniform", "low": 0.0, "high": 0.5}}
TREE = {"topology": "tree", "latency": {"law": "constant", "value": 0.1}, "bandwidth": 200.0}
SERVER = {"service": {"law": "exponential", "mean": 0.4}}
BEFORE = {"reply": "before_apply"}

#: Parts of the cluster beside its workers.
TIMINGS = {
    "instant": {},
    "star": {"network": STAR},
    "server": {"server": SERVER},
    "server and tree": {"server": SERVER, "network": TREE},
    "before": {"server": BEFORE},
    "before, star": {"server": BEFORE, "network": STAR},
    "before, server": {"server": BEFORE | SERVER},
}


def cluster(timing="instant", *, policy="async", updates=4000, workers=None, seed=7, replicas=1):
    return build(
        {
            "seed": seed,
            "cluster": {"workers": workers or [{"count": WORKERS, "service": EXPONENTIAL}], **TIMINGS[timing]},
            "policy": POLICIES[policy] if isinstance(policy, str) else policy,
            "run": {"updates": updates, "replicas": replicas, "warmup": 50},
        }
    )


#: Where server time lets updates wait that a worker sent on at once has not seen, staleness depends on the queue.
UNKNOWN = {
    (policy, timing)
    for timing, policies in {
        "server": ["k_batch_async", "k_batch_async of more than all"],
        "server and tree": ["k_batch_async", "k_batch_async of more than all"],
        "before, server": POLICIES,
    }.items()
    for policy in policies
}


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("policy", POLICIES)
def test_mean_staleness_follows_from_who_reads_what(policy, timing):
    scenario = cluster(timing, policy=policy)
    k = scenario.policy.gradients_per_update(WORKERS)
    measured = simulate(scenario).staleness(warmup=50).mean()
    predicted = predict(scenario).get("staleness_mean")
    formulas = {"contributors wait": WORKERS / k - 1.0, "they go on": (WORKERS - 1.0) / k, "before": WORKERS / k}
    if (policy, timing) in UNKNOWN:
        assert predicted is None
        assert all(abs(measured - wrong) > 0.02 * wrong for wrong in formulas.values())
        return
    assert measured == pytest.approx(predicted, rel=0.01)
    name = "before" if "before" in timing else "they go on" if "batch" in policy else "contributors wait"
    assert predicted == formulas.pop(name)
    assert all(abs(measured - wrong) > 0.02 for wrong in formulas.values() if wrong != predicted)


@pytest.mark.parametrize("timing", ["star", "server", "server and tree", "before, star"])
def test_conservation_is_exact_with_a_network_and_a_busy_server(timing):
    """What a worker holds after T updates is read off the next gradient that it delivers, in a run that goes on."""
    reply = "before_apply" if "before" in timing else "after_apply"
    updates = 500
    trace = simulate(cluster(timing, updates=4 * updates))
    worker, version, update = (trace[name] for name in ("worker", "read_version", "update"))
    held = [version[(worker == w) & (update >= updates)][0] for w in range(WORKERS)]
    early = (update - version)[update < updates]
    settled = {"updates": updates, "workers": WORKERS}
    assert theory.conservation_residual(early, held, reply=reply, **settled) == 0
    other = {"after_apply": "before_apply", "before_apply": "after_apply"}[reply]
    assert theory.conservation_residual(early, held, reply=other, **settled) != 0
    assert staleness.conservation_residual(trace, reply=reply).tolist() == [0]


@pytest.mark.parametrize("timing", ["instant", "server and tree"])
def test_in_k_async_a_worker_reads_the_update_that_it_made(timing):
    """The reason behind M/K − 1: from one gradient of a worker to its next, read = update + 1."""
    trace = simulate(cluster(timing, policy="k_async", updates=500))
    gaps = following_reads(trace)
    assert (gaps == 1).all()
    trace = simulate(cluster(timing, policy="k_batch_async", updates=500))
    assert (following_reads(trace) != 1).any()


def following_reads(trace):
    """Return, for each gradient and its worker's next, the version read less the update made before."""
    assert (trace["status"] == APPLIED).all()
    order = np.lexsort((trace["draw"], trace["worker"]))
    worker, version, update = (trace[name][order] for name in ("worker", "read_version", "update"))
    return (version[1:] - update[:-1])[worker[1:] == worker[:-1]]


# --- the columns of a sweep ---------------------------------------------------------------------------------------

SWEPT = [
    {"kind": "async"},
    {"kind": "sync"},
    {"kind": "k_sync", "k": 4},
    {"kind": "k_batch_sync", "k": 4},
    {"kind": "k_batch_sync", "k": 9},
    {"kind": "k_async", "k": 4},
    {"kind": "k_batch_async", "k": 4},
    {"kind": "k_batch_async", "k": 9},
    {"kind": "rennala", "batch": 4},
    {"kind": "ringmaster", "max_staleness": 9},
]


def test_a_sweep_has_theory_beside_what_it_measured(tmp_path):
    base = cluster(updates=3000).resolved()
    scenario = build({**base, "sweep": {"grid": {"policy": SWEPT}}})
    frame = run_sweep(scenario, tmp_path / "sweep").set_index("policy")
    for name in ("throughput", "staleness_mean"):
        known = frame.dropna(subset=f"{name}_theory")
        assert len(known) == len(SWEPT) - (2 if name == "throughput" else 1)
        np.testing.assert_allclose(known[name], known[f"{name}_theory"], rtol=0.03)
    for policy, (_, measured) in zip(SWEPT, frame.iterrows(), strict=True):  # one worker more is another formula
        for name, value in predict(cluster(policy=policy, workers=[{"count": 7, "service": EXPONENTIAL}])).items():
            assert value == 0.0 or measured.get(name, np.nan) != pytest.approx(value, rel=0.03)
    alone = frame.loc["async"]
    assert alone["staleness_var"] == pytest.approx(alone["staleness_var_theory"], rel=0.15)
    assert alone["momentum_theory"] == pytest.approx(1.0 - 1.0 / WORKERS)
    assert frame.loc[["rennala batch=4", "ringmaster max_staleness=9"], "throughput_theory"].isna().all()


@pytest.mark.parametrize("timing", ["star", "server", "before, server"])
@pytest.mark.parametrize("policy", SWEPT[:1] + SWEPT[5:7], ids=lambda policy: policy["kind"])
def test_no_throughput_is_promised_where_messages_or_updates_take_time(policy, timing):
    assert "throughput" not in predict(cluster(timing, policy=policy))


@pytest.mark.parametrize("policy", SWEPT[:1] + SWEPT[5:7], ids=lambda policy: policy["kind"])
def test_replying_before_an_update_that_takes_no_time_changes_no_time(policy):
    scenario = cluster("before", policy=policy, updates=8000)
    predicted = predict(scenario)["throughput"]
    assert predicted == predict(cluster("instant", policy=policy))["throughput"]
    assert staleness.throughput(simulate(scenario))[0] == pytest.approx(predicted, rel=0.03)


UNEQUAL = [{"count": 3, "service": EXPONENTIAL}, {"count": 2, "service": {"law": "exponential", "mean": 4.0}}]
STEADY = [
    {"count": 3, "service": {"law": "constant", "value": 1.0}},
    {"service": {"law": "uniform", "low": 0.0, "high": 8.0}},
]


@pytest.mark.parametrize(
    ("kind", "workers", "expected"),
    [
        ("async", UNEQUAL, 3.5),
        ("k_batch_async", UNEQUAL, 3.5 / 4),
        ("k_batch_sync", UNEQUAL, 3.5 / 4),
        ("k_async", UNEQUAL, None),
        ("k_sync", UNEQUAL, None),
        ("async", STEADY, 3.25),
        ("k_batch_async", STEADY, 3.25 / 4),
        ("k_batch_sync", STEADY, None),
    ],
)
def test_throughput_of_unequal_workers(kind, workers, expected):
    policy = {"kind": kind} | ({"k": 4} if kind != "async" else {})
    scenario = cluster(policy=policy, workers=workers, updates=8000)
    assert predict(scenario).get("throughput") == expected
    if expected is not None:
        assert staleness.throughput(simulate(scenario))[0] == pytest.approx(expected, rel=0.03)
    else:
        rates = 3.5 if workers is UNEQUAL else 3.25
        assert staleness.throughput(simulate(scenario))[0] != pytest.approx(rates / 4, rel=0.03)
