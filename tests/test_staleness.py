from __future__ import annotations

import heapq
from functools import cache

import numpy as np
import pytest

from asyncsim.staleness import (
    TooFewData,
    concurrency,
    conservation_residual,
    fit_momentum,
    fit_rate,
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


# --- the momentum meter -------------------------------------------------------------------------------------------


def exponential_workers(
    workers, *, replicas=4000, updates=120, step=0.2, eigenvalues=(1.0,), momentum=0.0, noise=0.0, seed=0, slope=None
):
    """Return iterates, shape (replicas, updates + 1, d), of M workers with exponential service times.

    Such workers have no memory, so the one that delivers next is uniform over them, whatever happened before.
    """
    rng = np.random.default_rng([seed, workers])
    spectrum = np.array(eigenvalues)
    everyone = np.arange(replicas)
    x = np.ones((replicas, spectrum.size))
    before, read, out = x, np.ones((replicas, workers, spectrum.size)), [x]
    for _ in range(updates):
        who = rng.integers(workers, size=replicas)
        stale = read[everyone, who]
        gradient = (spectrum * stale if slope is None else slope(stale)) + noise * rng.standard_normal(x.shape)
        x, before = x - step * gradient + momentum * (x - before), x
        read[everyone, who] = x
        out.append(x)
    return np.stack(out, axis=1)


def identity(x):
    return x


@cache
def measured(workers):
    return fit_momentum(exponential_workers(workers, replicas=16_000 if workers == 2 else 4000), identity)


@pytest.mark.parametrize("workers", [2, 4, 8, 16])
def test_asynchrony_adds_the_predicted_momentum(workers):
    fit = measured(workers)
    assert abs(fit.momentum - (1 - 1 / workers)) <= 0.01
    assert fit.low <= 1 - 1 / workers <= fit.high
    assert abs(workers * fit.effective_step - 0.2) <= 0.008
    assert fit.effective_step_low <= 0.2 / workers <= fit.effective_step_high
    assert fit.steps_used >= 10


@pytest.mark.parametrize("workers", [4, 8, 16])
def test_the_meter_rejects_wrong_formulas(workers):
    fit = measured(workers)
    assert not fit.low <= 1 - 1 / (workers + 1) <= fit.high
    assert not fit.low <= 1 - 1 / (workers - 1) <= fit.high
    assert not fit.effective_step_low <= 0.2 <= fit.effective_step_high


def test_steps_where_one_regressor_vanishes_are_of_use():
    # The mean oscillates at M = 8. Where it crosses 0 only the last step acts, which shows the momentum best: without
    # these steps the interval is 1.9 times as wide.
    fit = measured(8)
    assert fit.high - fit.low < 0.0028


@pytest.mark.parametrize("momentum", [-0.3, 0.4])
def test_explicit_momentum_adds_to_it(momentum):
    iterates = exponential_workers(4, momentum=momentum)
    fit = fit_momentum(iterates, identity, explicit=momentum)
    assert abs(fit.momentum - (0.75 + momentum)) <= 0.005
    assert fit.low <= 0.75 + momentum <= fit.high
    assert abs(4 * fit.effective_step - 0.2) <= 0.008
    forgotten = fit_momentum(iterates, identity)
    assert not forgotten.low <= 0.75 + momentum <= forgotten.high


def test_the_prediction_needs_no_quadratic_and_no_exact_gradients():
    def slope(x):
        return x + x**3

    fit = fit_momentum(exponential_workers(4, slope=slope, noise=0.2), slope)
    assert fit.low <= 0.75 <= fit.high
    assert abs(fit.momentum - 0.75) <= 0.01


def test_the_interval_has_the_width_that_repeating_the_experiment_shows():
    fits = [fit_momentum(exponential_workers(4, replicas=1000, updates=60, seed=seed), identity) for seed in range(40)]
    spread = np.std([fit.momentum for fit in fits], ddof=1)
    claimed = np.mean([(fit.high - fit.low) / (2 * 2.5758) for fit in fits])
    # 40 repeats know their spread to 11 %: the band is three of that.
    assert 0.67 <= spread / claimed <= 1.33
    assert sum(fit.low <= 0.75 <= fit.high for fit in fits) >= 38


def test_the_meter_has_no_bias_where_plain_least_squares_has():
    workers = 64
    iterates = exponential_workers(workers)
    fit = fit_momentum(iterates, identity)
    assert fit.low <= 1 - 1 / workers <= fit.high
    mean = iterates.mean(axis=0)[:, 0]
    step = np.diff(mean)
    plain = np.linalg.lstsq(np.stack([step[:-1], -mean[1:-1]], axis=1), step[1:], rcond=None)[0][0]
    assert plain < 1 - 1 / workers - 0.0015
    assert abs(fit.momentum - (1 - 1 / workers)) < 0.0015


def test_beyond_the_mean_square_limit_late_steps_are_left_out():
    # At M = 4, step 1, the spread between replicas grows; the mean still obeys the recursion, but few steps show it.
    iterates = exponential_workers(4, step=1.0)
    fit = fit_momentum(iterates, identity)
    assert fit.steps_used < 30
    assert fit.low <= 0.75 <= fit.high
    mean = iterates.mean(axis=0)[:, 0]
    step = np.diff(mean)
    plain = np.linalg.lstsq(np.stack([step[:-1], -mean[1:-1]], axis=1), step[1:], rcond=None)[0][0]
    assert abs(plain - 0.75) > 0.05


@pytest.mark.parametrize(
    ("reason", "settings"),
    [
        ("About .* replicas would do, there are 10", {"replicas": 10}),
        ("in . of 119 updates, 10 are needed", {"step": 1.5}),
        ("in 4 of 4 updates, 10 are needed; .* of little use", {"updates": 5}),
        ("directions differ by 0 standard errors, 5 are needed", {"workers": 1}),
        ("directions differ by [0-3]", {"workers": 1, "noise": 0.5}),
        ("in 0 of 0 updates", {"updates": 1}),
    ],
)
def test_the_meter_refuses_with_its_estimate(reason, settings):
    settings = {"workers": 4} | settings
    with pytest.raises(TooFewData, match=reason) as refused:
        fit_momentum(exponential_workers(**settings), identity)
    estimate = refused.value.estimate
    assert estimate.steps_used <= 119
    assert np.isnan(estimate.momentum) == (settings.get("updates") == 1)


def test_two_eigenvalues_tell_momentum_from_step_for_one_worker():
    spectrum = (1.0, 4.0)
    fit = fit_momentum(exponential_workers(1, eigenvalues=spectrum, noise=0.5), lambda x: np.array(spectrum) * x)
    assert fit.low <= 0 <= fit.high
    assert fit.high - fit.low < 0.04


def test_the_seed_addresses_the_resampling():
    iterates = exponential_workers(4, replicas=200)
    one, again, other = (fit_momentum(iterates, identity, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one.momentum == other.momentum
    assert one.low != other.low


def test_the_interval_widens_with_the_confidence():
    iterates = exponential_workers(4, replicas=200)
    wide, narrow = (fit_momentum(iterates, identity, confidence=level) for level in (0.99, 0.6827))
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(2.5758, rel=1e-3)


@pytest.mark.parametrize(
    ("message", "iterates", "settings"),
    [
        ("at least 2 replicas, got shape", np.ones((1, 30, 1)), {}),
        ("at least 2 replicas, got shape", np.ones((30, 30)), {}),
        ("replica 1 are not from update 7 on", np.where(np.arange(30) < 7, 1.0, [[0.5], [np.nan]])[..., None], {}),
        ("confidence must be between", np.ones((30, 30, 1)), {"confidence": 99}),
    ],
)
def test_the_meter_refuses_bad_input(message, iterates, settings):
    with pytest.raises(ValueError, match=message):
        fit_momentum(iterates, identity, **settings)


# --- the rate -----------------------------------------------------------------------------------------------------


def squared_norms(workers, eigenvalues, momentum, step, **settings):
    iterates = exponential_workers(workers, eigenvalues=eigenvalues, momentum=momentum, step=step, **settings)
    return (iterates**2).sum(axis=-1)


#: Workers, eigenvalues, momentum, step and the mean-square rate: √ of the spectral radius of the exact second moments.
MEAN_SQUARE = [
    (2, (1.0, 5.0), 0.0056, 0.12974, 0.83864),
    (4, (1.0, 5.0), -0.2712, 0.08119, 0.91267),
    (8, (1.0, 5.0), -0.4745, 0.04668, 0.95264),
]


@pytest.mark.parametrize(("workers", "eigenvalues", "momentum", "step", "rate"), MEAN_SQUARE)
def test_the_rate_is_that_of_the_second_moments(workers, eigenvalues, momentum, step, rate):
    fit = fit_rate(squared_norms(workers, eigenvalues, momentum, step, updates=80), warmup=20)
    assert abs(fit.rate - rate) <= 0.003
    assert fit.high - fit.low < 0.02
    slower = fit_rate(squared_norms(workers, eigenvalues, momentum, step / 2, updates=80), warmup=20)
    assert slower.rate > rate + 0.01


def test_the_rate_of_a_diverging_run_is_refused_and_above_one():
    with pytest.raises(TooFewData, match="says that the runs diverge") as refused:
        fit_rate(squared_norms(4, (1.0, 5.0), -0.268, 1.877, replicas=1000, updates=40))
    assert refused.value.estimate.rate > 2


def test_the_rate_ends_where_numbers_do():
    decay = np.tile(0.25 ** np.arange(100.0), (30, 1))
    decay[:, 20:] += 0.25**60  # rounding, as of a minimizer that is not zero
    assert fit_rate(decay).rate == pytest.approx(0.5, abs=1e-3)
    assert fit_rate(decay).steps_used < 50
    decay[3, 40:] = np.inf
    assert fit_rate(decay).steps_used == 40


def test_the_interval_of_the_rate_covers():
    # Replica i decays exactly at 0.9 from a random start, plus independent relative noise at each point.
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(40):
        squares = 0.81 ** np.arange(40) * rng.gamma(4.0, 0.25, size=(50, 40))
        fit = fit_rate(squares, seed=seed, confidence=0.9)
        covered += fit.low <= 0.9 <= fit.high
    assert 30 <= covered <= 40  # Binomial(40, 0.9) is below 30 with probability 0.002


@pytest.mark.parametrize(
    ("message", "shape", "settings"),
    [
        ("at least 2 replicas", (1, 30), {}),
        ("at least 2 replicas", (30,), {}),
        ("warmup must leave two of the 30 points, got 29", (30, 30), {"warmup": 29}),
        ("of at least 20 replicas", (19, 30), {}),
        ("in 9 points from update 21 on", (30, 30), {"warmup": 21}),
    ],
)
def test_the_rate_refuses_bad_input(message, shape, settings):
    with pytest.raises(ValueError, match=message):
        fit_rate(np.broadcast_to(0.5 ** np.arange(30.0), shape), **settings)
