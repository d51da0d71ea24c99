from __future__ import annotations

import heapq

import numpy as np
import pytest

from asyncsim.staleness import (
    concurrency,
    conservation_residual,
    histogram,
    last_reads,
    per_worker,
    summary,
    throughput,
    utilization,
    waiting,
)
from asyncsim.trace import APPLIED, CANCELLED, DISCARDED, TIMES, Trace

LAWS = {
    "constant": lambda rng: 1.0,
    "exponential": lambda rng: rng.exponential(),
    "pareto": lambda rng: rng.pareto(1.5) + 1,
    "two speeds": lambda rng: rng.choice([0.1, 10.0]),
}


def asynchronous(law, *, workers=5, updates=300, reply="after_apply", server=0.0, seed=0):
    """Return a trace of the policy `async`: every gradient an update, a FIFO server, an instant network."""
    rng = np.random.default_rng(seed)
    names = ["worker", "draw", "read_version", "update", *TIMES]
    rows, version, queued, free = [], 0, 0, 0.0
    draws, computing, jobs = [0] * workers, [], []

    def send(time, worker):
        heapq.heappush(computing, (time + LAWS[law](rng), worker, version, time))

    for worker in range(workers):
        send(0.0, worker)
    while version < updates:
        if jobs and (not computing or jobs[0][0] <= computing[0][0]):
            time, row = jobs.pop(0)
            rows.append((*row, time))
            version += 1
            if reply == "after_apply":
                send(time, row[0])
            continue
        done, worker, read, start = heapq.heappop(computing)
        free = max(done, free) + server
        jobs.append((free, (worker, draws[worker], read, queued, start, start, done, done)))
        draws[worker] += 1
        queued += 1
        if reply == "before_apply":
            send(done, worker)
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    columns |= {"replica": [0] * len(rows), "status": [APPLIED] * len(rows)}
    return Trace(columns, seed=seed, workers=workers, updates=[updates])


#: Two workers that take 1 and 3 time units, synchronously: the fast one waits 2 of 3.
SYNCHRONOUS = Trace(
    {
        "replica": [0] * 6,
        "worker": [0, 1] * 3,
        "draw": [0, 0, 1, 1, 2, 2],
        "read_version": [0, 0, 1, 1, 2, 2],
        "update": [0, 0, 1, 1, 2, 2],
        "status": [APPLIED] * 6,
        "read_time": [0, 0, 3, 3, 6, 6],
        "start_time": [0, 0, 3, 3, 6, 6],
        "done_time": [1, 3, 4, 6, 7, 9],
        "arrive_time": [1, 3, 4, 6, 7, 9],
        "apply_time": [3, 3, 6, 6, 9, 9],
    },
    seed=1,
    workers=2,
    updates=[3],
)

#: The same workers, but the slow one is stopped at each update; the model reaches it half a unit later.
STOPPED = Trace(
    {
        "replica": [0] * 5,
        "worker": [0, 1, 0, 1, 0],
        "draw": [0, 0, 1, 1, 2],
        "read_version": [0, 0, 1, 1, 2],
        "update": [0, -1, 1, -1, 2],
        "status": [APPLIED, CANCELLED, APPLIED, CANCELLED, APPLIED],
        "read_time": [0, 0, 1, 1, 2.5],
        "start_time": [0, 0, 1.5, 1.5, 3],
        "done_time": [1, np.nan, 2.5, np.nan, 4],
        "arrive_time": [1, np.nan, 2.5, np.nan, 4],
        "apply_time": [1, 1.5, 2.5, 3, 4],
    },
    seed=1,
    workers=2,
    updates=[3],
)


# --- staleness ----------------------------------------------------------------------------------------------------


def test_histogram_counts_every_value():
    assert histogram([3, 0, 3, 1]).tolist() == [1, 1, 0, 2]
    assert histogram([]).tolist() == []


@pytest.mark.parametrize("bad", [[-1, 2], [0.5, 1.0]])
def test_histogram_refuses_what_is_no_staleness(bad):
    with pytest.raises(ValueError, match="whole numbers"):
        histogram(bad)


def test_summary_by_hand():
    # 100 values 0 … 99 and one 1000: 50.495… % do not exceed 50, 100/101 = 99.0099 % do not exceed 99.
    values = [*range(100), 1000]
    found = summary(values)
    assert (found["p50"], found["p99"], found["max"]) == (50, 99, 1000)
    assert found["mean"] == pytest.approx(5950 / 101)
    assert found["var"] == pytest.approx((328350 + 1000**2) / 101 - (5950 / 101) ** 2)


def test_quantiles_are_values_that_occur():
    assert summary([0, 0, 2, 4]) == {"mean": 1.5, "var": 2.75, "p50": 0, "p99": 4, "max": 4}


def test_summary_of_nothing_is_unknown():
    assert all(np.isnan(value) for value in summary([]).values())


def test_per_worker_counts_what_was_applied():
    found = per_worker(STOPPED)
    assert found["applied"].tolist() == [3, 0]
    assert found["share"].tolist() == [1.0, 0.0]
    assert found["mean_staleness"][0] == 0
    assert np.isnan(found["mean_staleness"][1])
    assert per_worker(STOPPED, warmup=1)["applied"].tolist() == [2, 0]


# --- time ---------------------------------------------------------------------------------------------------------


def test_throughput_leaves_out_the_warmup():
    assert throughput(SYNCHRONOUS) == pytest.approx([3 / 9])
    assert throughput(STOPPED, warmup=1) == pytest.approx([2 / 3])
    assert np.isnan(throughput(STOPPED, warmup=3)).all()


def test_throughput_without_times_is_unknown():
    trace = Trace(
        {"replica": [0], "worker": [0], "draw": [0], "read_version": [0], "update": [0], "status": [0]},
        seed=1,
        workers=1,
        updates=[1],
    )
    assert np.isnan(throughput(trace)).all()
    with pytest.raises(ValueError, match=r"utilization needs a trace with .* lacks start_time, done_time, apply_time"):
        utilization(trace)


def test_waiting_utilization_and_concurrency_by_hand():
    assert waiting(SYNCHRONOUS) == pytest.approx([2, 0, 2, 0, np.nan, np.nan], nan_ok=True)
    assert utilization(SYNCHRONOUS) == pytest.approx(np.array([[1 / 3, 1]]))
    assert concurrency(SYNCHRONOUS) == pytest.approx([2])
    # Stopped: the fast one idles ½ of 1½ while the model travels; the slow one computes all the time. Its gradient
    # counts from the read at 0 until it is given up at 1½, while its next read is at 1: 1½ on average.
    assert waiting(STOPPED) == pytest.approx([0.5, 0, 0.5, np.nan, np.nan], nan_ok=True)
    assert utilization(STOPPED) == pytest.approx(np.array([[2 / 3, 1]]))
    assert concurrency(STOPPED) == pytest.approx([1 + 1.5])


def test_a_worker_with_one_gradient_has_unknown_utilization():
    assert np.isnan(utilization(STOPPED, warmup=1)[0, 1])


@pytest.mark.parametrize("law", LAWS)
def test_asynchronous_workers_never_wait(law):
    trace = asynchronous(law)
    assert utilization(trace) == pytest.approx(np.ones((1, 5)))
    assert concurrency(trace) == pytest.approx([5])
    assert np.nanmax(waiting(trace)) == pytest.approx(0)


def test_workers_wait_for_a_slow_server():
    trace = asynchronous("constant", workers=4, server=1.0)  # the server is the bottleneck: one update per unit
    assert utilization(trace, warmup=10) == pytest.approx(np.full((1, 4), 1 / 4))
    assert throughput(trace, warmup=10) == pytest.approx([1])
    assert concurrency(trace) == pytest.approx([4])


# --- the conservation law -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize(("reply", "server"), [("after_apply", 0.0), ("after_apply", 0.3), ("before_apply", 0.0)])
def test_staleness_is_conserved(law, workers, reply, server):
    trace = asynchronous(law, workers=workers, reply=reply, server=server)
    assert conservation_residual(trace, reply=reply).tolist() == [0]
    # The mean staleness follows, exactly.
    age = (300 - last_reads(trace, reply=reply)).sum()
    assert trace.staleness().sum() == 300 * (workers - (reply == "after_apply")) - age


@pytest.mark.parametrize("reply", ["after_apply", "before_apply"])
def test_the_other_reply_order_is_not_conserved(reply):
    other = {"after_apply": "before_apply", "before_apply": "after_apply"}[reply]
    assert conservation_residual(asynchronous("exponential", reply=reply), reply=other).tolist() != [0]


def test_a_reply_before_a_slow_server_is_not_conserved():
    trace = asynchronous("exponential", reply="before_apply", server=0.3)
    assert conservation_residual(trace, reply="before_apply").tolist() != [0]


def test_staleness_counted_from_the_wrong_read_shows():
    right = asynchronous("exponential")
    columns = {name: right[name] for name in ("replica", "worker", "draw", "read_version", "update", "status")}
    columns["read_version"] = columns["read_version"] - (columns["update"] == 200)
    wrong = Trace(columns, seed=1, workers=5, updates=[300])
    assert conservation_residual(wrong).tolist() == [1]


def test_conservation_holds_for_each_replica_and_for_several_gradients_per_update():
    assert conservation_residual(SYNCHRONOUS).tolist() == [0]
    one, two = asynchronous("exponential", updates=40), asynchronous("pareto", updates=30, seed=1)
    columns = {name: np.concatenate([one[name], two[name]]) for name in one.columns}
    columns["replica"] = [3] * 40 + [8] * 30
    both = Trace(columns, seed=1, workers=5, updates=[40, 30], replicas=[3, 8])
    assert conservation_residual(both).tolist() == [0, 0]
    assert last_reads(both).max(axis=1).tolist() == [40, 30]
    assert throughput(both) == pytest.approx([throughput(one)[0], throughput(two)[0]])
    assert utilization(both) == pytest.approx(np.vstack([utilization(one), utilization(two)]), nan_ok=True)


@pytest.mark.parametrize("status", [CANCELLED, DISCARDED])
def test_conservation_is_refused_where_gradients_are_dropped(status):
    columns = {
        "replica": [0, 0],
        "worker": [0, 0],
        "draw": [0, 1],
        "read_version": [0, 0],
        "update": [-1, 0],
        "status": [status, 0],
    }
    with pytest.raises(ValueError, match="1 of 2 are not, the first in row 0"):
        conservation_residual(Trace(columns, seed=1, workers=1, updates=[1]))


def test_an_unknown_reply_is_refused():
    with pytest.raises(ValueError, match="reply must be"):
        last_reads(SYNCHRONOUS, reply="sometimes")
