"""Record, calibrate, predict another run, compare; a simulated run plays the recorded one, so no clock has a say.

What real runs give is in docs/fidelity.md.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import asyncsim
from asyncsim import Trace, calibrate
from asyncsim.calibration import timed
from asyncsim.cluster import Cluster, Server, WorkerGroup
from asyncsim.durations import Constant, Exponential, Gamma, Law
from asyncsim.noise import trace_differences
from asyncsim.scenario import build

#: Updates of a run that plays a real one, and of a prediction, which is longer, so that its noise is small.
MEASURED, LONG = 8000, 160_000
WARMUP = 320

#: What workers do in the runs that play the real ones. A server at 60 % with 16 workers, messages that take a while.
LAWS = {
    "exponential": Exponential(mean=8.0),
    "steady": Gamma(shape=20.0, mean=8.0),
    "spread": Gamma(shape=0.5, mean=8.0),
}
BUSY = {
    "server": {"service": {"law": "gamma", "shape": 9.0, "mean": 0.3}},
    "network": {"latency": {"law": "gamma", "shape": 2.0, "mean": 0.2}},
}


def real(law: Law, workers: int, seed: int, updates: int = MEASURED, **parts: dict) -> Trace:
    """Return the run that plays a real one."""
    groups = [{"count": workers, "service": law}]
    return asyncsim.simulate(
        build({"seed": seed, "cluster": {"workers": groups, **(parts or BUSY)}, "run": {"updates": updates}})
    )


def with_workers(cluster: Cluster, workers: int, law: Law | None = None) -> Cluster:
    """Return the cluster with as many workers, all of its one group; with another service law, if given."""
    (group,) = cluster.workers
    group = WorkerGroup(count=workers, service=law or group.service)
    return Cluster(workers=(group,), server=cluster.server, network=cluster.network)


def prediction(cluster: Cluster) -> Trace:
    return asyncsim.simulate(build({"seed": 99, "cluster": cluster, "run": {"updates": LONG}}))


@pytest.mark.parametrize("workers", [4, 16])
@pytest.mark.parametrize("law", LAWS)
def test_another_run_is_predicted(law: str, workers: int) -> None:
    """Calibrated on 4 workers: the staleness of 4 and of 16 is within the 95 % band, throughput within 3 %."""
    found = calibrate(real(LAWS[law], 4, seed=1), warmup=WARMUP)
    predicted = prediction(with_workers(found.cluster, workers))
    differences = trace_differences(real(LAWS[law], workers, seed=2), predicted, warmup=WARMUP)
    staleness, rate = differences["total_variation"], differences["throughput"]
    assert staleness.distance <= staleness.band(0.95)
    assert rate.b / rate.a == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("workers", [4, 16])
def test_a_wrong_law_is_found_out(workers: int) -> None:
    """Exponential workers in the place of steady ones: the staleness is beyond any band."""
    found = calibrate(real(LAWS["steady"], 4, seed=1), warmup=WARMUP)
    mean = found.cluster.workers[0].service.mean
    predicted = prediction(with_workers(found.cluster, workers, Exponential(mean=mean)))
    difference = trace_differences(real(LAWS["steady"], workers, seed=2), predicted, warmup=WARMUP)["total_variation"]
    assert difference.distance > 2 * difference.band(0.999)


def test_a_wrong_speed_is_found_out() -> None:
    found = calibrate(real(LAWS["steady"], 4, seed=1), warmup=WARMUP)
    predicted = prediction(with_workers(found.cluster, 4, Gamma(shape=20.0, mean=8.5)))
    rate = trace_differences(real(LAWS["steady"], 4, seed=2), predicted, warmup=WARMUP)["throughput"]
    assert abs(rate.b / rate.a - 1.0) > 0.03
    assert rate.distance > rate.band(0.999)


# --- a server that looks at one message after another, as real ones do

#: Of a server's time of an update: to fetch the message, to make the update, then to reply and take notes.
FETCH, MAKE, REST = 0.1, 0.1, 0.2
ONE_BY_ONE = {
    "server": {"service": {"law": "constant", "value": FETCH + MAKE + REST}},
    "network": {"latency": {"law": "gamma", "shape": 2.0, "mean": 0.2}},
}


def looked_at_one_by_one(trace: Trace) -> Trace:
    """Return a run with the times that a real server notes.

    A message arrives when the server has fetched it, and what the server does after an update has no time of its own:
    the version is there when it is made, and is read then.
    """
    columns = {name: trace[name].copy() for name in trace.columns}
    order = np.argsort(columns["update"])
    over = columns["apply_time"][order]
    begins = np.maximum(columns["arrive_time"][order], np.concatenate([[0.0], over[:-1]]))
    columns["arrive_time"][order] = begins + FETCH
    columns["apply_time"] = columns["apply_time"] - REST
    columns["read_time"] = np.maximum(columns["read_time"] - REST, 0.0)
    return Trace(columns, seed=trace.seed, workers=trace.workers, updates=trace.updates)


def test_what_a_server_does_after_an_update_counts_as_its_time() -> None:
    seen = looked_at_one_by_one(real(LAWS["exponential"], 4, seed=1, **ONE_BY_ONE))
    found = calibrate(seen, warmup=WARMUP)
    assert found.cluster.server.service.mean == pytest.approx(FETCH + MAKE + REST, rel=0.05)
    assert any("counts as its time" in note for note in found.notes)
    # What a message needs in all is what it needed, though its parts have other names.
    assert found.cluster.network is not None
    assert found.cluster.network.latency.mean == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("counted", [True, False])
def test_more_workers_wait_for_such_a_server(counted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where all of the server's time counts is the throughput of 16 workers, who keep it busy, within 3 %."""
    if not counted:
        measured = timed.intervals
        monkeypatch.setattr(timed, "intervals", lambda *a, **k: replace(measured(*a, **k), rest=np.empty(0)))
    found = calibrate(looked_at_one_by_one(real(LAWS["exponential"], 4, seed=1, **ONE_BY_ONE)), warmup=WARMUP)
    truth = looked_at_one_by_one(real(LAWS["exponential"], 16, seed=2, **ONE_BY_ONE))
    differences = trace_differences(truth, prediction(with_workers(found.cluster, 16)), warmup=WARMUP)
    rate, staleness = differences["throughput"], differences["total_variation"]
    assert (abs(rate.b / rate.a - 1.0) <= 0.03) == counted
    assert (staleness.distance <= staleness.band(0.95)) == counted


def test_late_messages_are_not_taken_for_a_busy_server() -> None:
    """Messages that arrive while the server makes an update: it has not looked at them one by one."""
    found = calibrate(real(LAWS["exponential"], 4, seed=1), warmup=WARMUP)
    assert found.cluster.server.service.mean == pytest.approx(0.3, rel=0.03)
    instant = Cluster(workers=(WorkerGroup(count=4, service=LAWS["exponential"]),), server=Server())
    free = calibrate(prediction(instant), warmup=WARMUP)
    assert free.cluster.server.service == Constant(value=0.0)
