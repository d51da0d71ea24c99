"""Messages that are lost and sent again, queues that fill up, workers that crash and return."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from reference import Loop, reference_trace
from same import assert_same_outcome, first_difference, outcome

from asyncsim import staleness, streams
from asyncsim.durations import Exponential, SimulationError
from asyncsim.methods.sgd import SGD
from asyncsim.policies import Policy
from asyncsim.prediction import predict
from asyncsim.rules import surely_kept
from asyncsim.scenario import build
from asyncsim.sources import simulate
from asyncsim.trace import APPLIED, LOST, REQUIRED, TIMES

SEED = 11
#: Standard errors that a mean may be off: a chance of 1 in 100.
BAND = 2.58

ONE = {"law": "constant", "value": 1.0}
RANDOM = {"law": "exponential", "mean": 1.0}

POLICIES = {
    "async": {"kind": "async"},
    "sync": {"kind": "sync"},
    "k_sync": {"kind": "k_sync", "k": 2},
    "k_batch_sync": {"kind": "k_batch_sync", "k": 5},
    "k_async": {"kind": "k_async", "k": 3},
    "k_batch_async": {"kind": "k_batch_async", "k": 3},
    "rennala": {"kind": "rennala", "batch": 4},
    "ringmaster": {"kind": "ringmaster", "max_staleness": 2},
    "ringmaster, cancel": {"kind": "ringmaster", "max_staleness": 2, "on_stale": "cancel"},
}


def cluster(workers=4, service=ONE, *, policy=POLICIES["async"], updates=200, crash=None, server=0.0, network=None):
    """A scenario whose messages have 8 bytes."""
    group = {"count": workers, "service": service} | ({"crash": crash} if crash else {})
    machines = {"workers": [group], "server": {"service": {"law": "constant", "value": server}}}
    if network is not None:
        machines["network"] = network
    return build({"seed": SEED, "cluster": machines, "policy": policy, "run": {"updates": updates}})


def with_method(scenario, kind, **problem):
    """The scenario with a method of this class, on a problem of three coordinates."""
    model = {"problem": {"kind": "quadratic", "eigenvalues": [1.0, 2.0, 3.0]}, "method": {"kind": "sgd", "step": 0.1}}
    return build(scenario.resolved() | model).model_copy(update={"method": kind(step=0.1)})


# --- messages that are lost ---------------------------------------------------------------------------------------

#: One attempt takes 1, and an acknowledgement is waited for as long again.
LOSSY = {"bandwidth": 8.0, "loss": 0.3, "retry_after": 1.0}


def passage_times(loss, **network):
    """How long each gradient of one worker is on its link, and the trace."""
    trace = simulate(cluster(1, updates=50_000, network=LOSSY | {"loss": loss} | network))
    return trace["arrive_time"] - trace["done_time"], trace


@pytest.mark.parametrize("loss", [0.1, 0.5, 0.9])
def test_attempts_are_geometric(loss):
    """n attempts take n and n − 1 waits between them: with both 1, n = (time + 1)/2 has mean 1/(1 − loss)."""
    attempts = (passage_times(loss)[0] + 1.0) / 2.0
    error = np.sqrt(loss) / (1.0 - loss) / np.sqrt(attempts.size)
    assert abs(attempts.mean() - 1.0 / (1.0 - loss)) < BAND * error
    assert abs(attempts.mean() - (1.0 / (1.0 - loss) - 1.0)) > BAND * error  # not the number of failures
    more_than_two = (attempts > 2.5).mean()
    assert abs(more_than_two - loss**2) < BAND * np.sqrt(loss**2 * (1 - loss**2) / attempts.size)


def test_losses_up_and_down_are_drawn_apart():
    up, trace = passage_times(0.5)
    down = trace["start_time"] - trace["read_time"]
    assert abs(np.corrcoef(up, down)[0, 1]) < BAND / np.sqrt(up.size)
    assert abs(np.corrcoef(up[1:], down[1:] + up[1:])[0, 1]) > 0.5


def test_throughput_with_loss_by_formula():
    """A cycle of one worker: its service, and twice (E n) attempts and E n − 1 waits."""
    loss, waits = 0.3, 1.0
    attempts = 1.0 / (1.0 - loss)
    cycle = 1.0 + 2.0 * (attempts + (attempts - 1.0) * waits)
    measured = 1.0 / staleness.throughput(passage_times(loss)[1])[0]
    assert measured == pytest.approx(cycle, rel=0.01)
    assert measured != pytest.approx(1.0 + 2.0 * attempts, rel=0.01)
    assert staleness.throughput(passage_times(0.0)[1])[0] == pytest.approx(1.0 / 3.0, rel=1e-3)


@pytest.mark.parametrize("retries", [0, 1, 3])
@pytest.mark.parametrize("topology", ["star", "switch"])
def test_share_of_lost_gradients(topology, retries):
    """Each link loses lossᴿ⁺¹ of the gradients; models always get through."""
    loss, links = 0.5, {"star": 1, "switch": 2}[topology]
    network = {"topology": topology, "loss": loss, "retries": retries}
    trace = simulate(cluster(4, RANDOM, updates=20_000, network=network))
    lost = (trace["status"] == LOST).mean()
    expected, wrong = (1.0 - (1.0 - loss ** (retries + more)) ** links for more in (1, 2))
    error = np.sqrt(expected * (1 - expected) / len(trace))
    assert abs(lost - expected) < BAND * error
    assert abs(lost - wrong) > BAND * error
    assert not np.isnan(trace["start_time"]).any()


def test_a_gradient_is_given_up_after_the_last_acknowledgement_is_waited_for():
    """Three attempts of 1, each with 0.5 behind it; then its worker is sent the model at once."""
    trace = simulate(cluster(1, network=LOSSY | {"loss": 0.6, "retries": 2, "retry_after": 0.5}))
    lost = trace["status"] == LOST
    assert 0 < lost.sum() < len(trace)
    assert trace["apply_time"][lost] == pytest.approx(trace["done_time"][lost] + 4.5, abs=1e-9)
    assert np.isnan(trace["arrive_time"][lost]).all()
    assert (trace["read_time"][1:] == trace["apply_time"][:-1]).all()
    assert (trace["read_version"][1:] == np.cumsum(~lost)[:-1]).all()
    assert set(trace["bytes_up"].tolist()) == {8}  # once each, however often it was sent


def test_a_lost_message_holds_up_those_behind_it():
    """Behind a switch the others wait while the link waits for an acknowledgement."""
    slow = {"topology": "switch", "bandwidth": 8.0, "loss": 0.5}
    times = [simulate(cluster(8, updates=4000, network=slow | more)).last_time() for more in ({}, {"retry_after": 3.0})]
    assert times[1] > 2.0 * times[0]


def test_a_full_queue_drops_what_would_wait_too_long():
    """Three workers are done at 1; the shared cable takes one message at a time, each for 1.

    Workers 0 and 1 have it from 1 and from 2. Worker 2 would have it at 3, but waits 1.5 at most: it
    is dropped at 2.5.
    """
    network = {
        "topology": "switch",
        "longest_wait": 1.5,
        "links": [{"between": [0, 1], "up": {"bandwidth": 8.0}}],
    }
    trace = simulate(cluster(3, updates=2, network=network))
    names = ("worker", "status", "done_time", "apply_time")
    assert list(zip(*(trace[name].tolist() for name in names), strict=True)) == [
        (0, APPLIED, 1.0, 2.0),
        (2, LOST, 1.0, 2.5),
        (1, APPLIED, 1.0, 3.0),
    ]
    longer = network | {"longest_wait": 2.0}
    assert (simulate(cluster(3, updates=3, network=longer))["status"] == APPLIED).all()


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_goes_on_when_gradients_are_lost(name):
    """No worker is forgotten, and none is sent a model while it has one: only what stops workers sends a second one."""
    network = {"topology": "switch", "bandwidth": 16.0, "loss": 0.4, "retries": 0, "longest_wait": 4.0}
    scenario = cluster(5, RANDOM, policy=POLICIES[name], updates=400, server=0.1, network=network)
    trace = simulate(scenario)
    assert (trace["status"] == LOST).sum() > 50
    assert set(trace["worker"][trace["read_version"] > 350].tolist()) == set(range(5))
    if name not in ("k_sync", "k_batch_sync", "ringmaster, cancel"):
        for worker in range(5):
            mine = trace["worker"] == worker
            order = np.argsort(trace["draw"][mine])
            done = np.where(np.isnan(trace["arrive_time"]), trace["apply_time"], trace["arrive_time"])[mine][order]
            assert (trace["read_time"][mine][order][1:] >= done[:-1]).all()


def test_losses_leave_all_other_numbers_as_they_are():
    plain, lossy = (
        simulate(cluster(3, RANDOM, network={"latency": RANDOM, **more})) for more in ({}, {"loss": 0.5, "retries": 1})
    )
    for worker in range(3):
        times = [
            (trace["done_time"] - trace["start_time"])[trace["worker"] == worker][
                np.argsort(trace["draw"][trace["worker"] == worker])
            ]
            for trace in (plain, lossy)
        ]
        assert times[0][:30] == pytest.approx(times[1][:30], abs=1e-9)


# --- workers that crash -------------------------------------------------------------------------------------------

CRASH = {"mean_up": 6.0, "mean_down": 2.0}


def crash_times(worker, count, crash=CRASH):
    """When a worker crashes and when it returns, from the addresses alone; shape (count, 2)."""
    spans = [
        Exponential(mean=crash[name]).sample(SEED, 0, worker, 0, size=count, purpose=streams.CRASH, index=index)
        for index, name in enumerate(("mean_up", "mean_down"))
    ]
    return np.cumsum(np.stack(spans, axis=1).reshape(-1)).reshape(count, 2)


def events_of(trace, kind):
    return [(time, worker) for _, time, worker, name in trace.events if name == kind]


def test_crashes_and_returns_are_where_their_addresses_say():
    trace = simulate(cluster(3, crash=CRASH))
    for worker in range(3):
        noted = np.array([time for kind in ("crash", "return") for time, w in events_of(trace, kind) if w == worker])
        expected = crash_times(worker, noted.size).reshape(-1)[: noted.size]
        assert np.sort(noted) == pytest.approx(expected, rel=1e-12)
        assert noted.size > 5
    assert [time for _, time, _, _ in trace.events] == sorted(time for _, time, _, _ in trace.events)


def test_a_crash_loses_the_gradient_under_way_and_the_return_begins_another():
    trace = simulate(cluster(1, updates=50, crash=CRASH))
    lost = trace["status"] == LOST
    crashes, returns = (np.array([time for time, _ in events_of(trace, kind)]) for kind in ("crash", "return"))
    assert trace["apply_time"][lost].tolist() == crashes.tolist()
    assert np.isnan(trace["done_time"][lost]).all()
    assert (trace["bytes_up"][lost] == 0).all() if "bytes_up" in trace else True
    after = np.flatnonzero(lost) + 1
    assert trace["read_time"][after].tolist() == returns.tolist()
    assert (trace["done_time"] - trace["start_time"])[~lost] == pytest.approx(1.0)


def test_a_model_that_reaches_a_worker_that_is_down_is_lost_there():
    network = {"latency": {"law": "constant", "value": 1.5}}
    trace = simulate(cluster(4, updates=300, crash=CRASH, network=network))
    unread = np.isnan(trace["start_time"])
    assert unread.sum() > 5
    assert (trace["status"][unread] == LOST).all()
    assert trace["apply_time"][unread] == pytest.approx(trace["read_time"][unread] + 1.5)
    for worker, time in zip(trace["worker"][unread], trace["apply_time"][unread], strict=True):
        spans = crash_times(int(worker), 100)
        assert ((spans[:, 0] <= time) & (time < spans[:, 1])).any()


def test_a_gradient_that_was_sent_survives_the_crash_of_its_worker():
    network = {"up": {"latency": {"law": "constant", "value": 5.0}}}
    trace = simulate(cluster(2, updates=100, crash=CRASH, network=network))
    spans = [crash_times(worker, 200) for worker in range(2)]
    crossed = [
        ((spans[w][:, 0] > done) & (spans[w][:, 0] < arrive)).any()
        for w, done, arrive, status in zip(
            *(trace[name] for name in ("worker", "done_time", "arrive_time", "status")), strict=True
        )
        if status == APPLIED
    ]
    assert sum(crossed) > 10


@pytest.mark.parametrize("down", [2.0, 12.0])
def test_availability(down):
    """A worker is up for mean_up/(mean_up + mean_down) of its time; without memory of service it loses nothing else."""
    crash, workers = {"mean_up": 6.0, "mean_down": down}, 8
    expected = 6.0 / (6.0 + down)
    trace = simulate(cluster(workers, RANDOM, updates=60_000, crash=crash))
    end = trace.last_time()
    up = 0.0
    for worker in range(workers):
        times = sorted(time for kind in ("crash", "return") for time, w in events_of(trace, kind) if w == worker)
        bounds = [0.0, *times, end]
        up += sum(b - a for a, b in itertools.islice(itertools.pairwise(bounds), 0, None, 2))
    assert up / (workers * end) == pytest.approx(expected, rel=0.03)
    assert staleness.throughput(trace)[0] == pytest.approx(workers * expected, rel=0.03)
    assert staleness.throughput(trace)[0] != pytest.approx(workers * (1.0 - expected), rel=0.03)
    assert staleness.utilization(trace).mean() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_goes_on_when_workers_crash_and_return(name):
    network = {"latency": {"law": "constant", "value": 0.5}}
    trace = simulate(cluster(5, RANDOM, policy=POLICIES[name], updates=300, crash=CRASH, network=network))
    assert (trace["status"] == LOST).sum() > 20
    assert set(trace["worker"][trace["read_version"] > 200].tolist()) == set(range(5))


def mixed(crashing, *, policy, **run):
    """Three workers that stay and some that crash for good at about time 5."""
    groups = [
        {"count": 3, "service": ONE},
        {"count": crashing, "service": ONE, "crash": {"mean_up": 5.0}},
    ]
    return build({"seed": SEED, "cluster": {"workers": groups}, "policy": policy, "run": run})


@pytest.mark.parametrize("engine", ["simpy", "compiled"])
def test_a_barrier_does_not_wait_for_the_dead(engine):
    scenario = mixed(2, policy=POLICIES["async"], updates=300)
    trace = simulate(scenario, engine=engine, on_update=lambda rows: "barrier" if rows.update % 50 == 49 else "go")
    assert len(events_of(trace, "barrier")) >= 4
    assert len(events_of(trace, "crash")) == 2
    assert set(trace["worker"][trace["status"] == APPLIED][-20:].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("engine", ["simpy", "compiled"])
def test_too_few_that_are_left_are_an_error_that_names_the_others(engine):
    enough, too_many = ({"kind": "k_async", "k": k} for k in (3, 4))
    assert len(simulate(mixed(2, policy=enough, updates=100), engine=engine)) >= 300
    with pytest.raises(
        SimulationError, match=r"stands still at version \d+: .*workers 3, 4 have crashed without return"
    ):
        simulate(mixed(2, policy=too_many, updates=100), engine=engine)


class NeverEnough(Policy):
    """Waits for more gradients than there are workers, and does not say so."""

    def gradients_per_update(self, workers):
        return workers + 1

    def check(self, workers, reply):
        pass


@pytest.mark.parametrize("engine", ["simpy", "compiled"])
def test_crashes_and_returns_alone_are_no_progress(engine):
    scenario = cluster(3, crash=CRASH).model_copy(update={"policy": NeverEnough()})
    with pytest.raises(SimulationError, match=r"stands still at version 0: nothing can happen any more$"):
        simulate(scenario, engine=engine)


@pytest.mark.parametrize("network", [None, {"latency": ONE, "loss": 0.4, "retries": 0}], ids=["instant", "lossy"])
def test_the_quick_check_knows_lost_gradients(network):
    """A table with every kind of loss passes it; one lost before it was read does not."""
    trace = simulate(cluster(4, RANDOM, updates=3000, crash=CRASH, network=network))
    assert (trace["status"] == LOST).sum() > 400
    columns = {name: trace[name].copy() for name in REQUIRED}
    times = {name: trace[name].copy() for name in TIMES}

    def kept():
        return surely_kept(trace.replicas, trace.updates, trace.workers, *columns.values(), *times.values())

    assert kept()
    row = np.flatnonzero(trace["status"] == LOST)[-1]
    times["read_time"][row] = np.nextafter(times["apply_time"][row], np.inf)
    assert not kept()


def test_theory_says_nothing_of_what_it_does_not_know():
    assert "throughput" in predict(cluster(4, RANDOM))
    assert predict(cluster(4, RANDOM, crash=CRASH)) == {}
    assert predict(cluster(4, RANDOM, network={"loss": 0.5}))["staleness_mean"] == 3.0  # all get through in the end
    assert predict(cluster(4, RANDOM, network={"loss": 0.5, "retries": 1})) == {}


# --- messages that stand for several gradients --------------------------------------------------------------------


class Local(SGD):
    """Three gradients a message, of 40 bytes, for a model of 8."""

    gradients_per_message = 3

    def message_bytes(self, problem, workers):
        return 40, 8


@pytest.mark.parametrize("engine", ["simpy", "compiled"])
@pytest.mark.parametrize("network", [None, {"bandwidth": 8.0}], ids=["instant", "star"])
def test_service_times_of_a_message_add_up(network, engine):
    trace = simulate(with_method(cluster(2, RANDOM, network=network), Local), engine=engine)
    for worker in range(2):
        mine = trace["worker"] == worker
        draws = trace["draw"][mine]
        each = (
            Exponential(mean=1.0)
            .sample(SEED, 0, worker, 0, size=3 * int(draws.max() + 1), purpose=streams.SERVICE)
            .reshape(-1, 3)
        )
        times = (each[:, 0] + each[:, 1] + each[:, 2])[draws]
        assert (trace["done_time"][mine] == trace["start_time"][mine] + times).all()
    if network is not None:
        assert (set(trace["bytes_up"].tolist()), set(trace["bytes_down"].tolist())) == ({40}, {8})
        assert np.array_equal(trace["start_time"], trace["read_time"] + 1.0)
        assert np.array_equal(trace["arrive_time"], trace["done_time"] + 5.0)


def test_throughput_of_messages_of_several_gradients():
    scenario = with_method(cluster(4, RANDOM, updates=20_000), Local)
    assert predict(scenario)["throughput"] == pytest.approx(4.0 / 3.0)
    assert staleness.throughput(simulate(scenario))[0] == pytest.approx(4.0 / 3.0, rel=0.02)
    assert "staleness_var" not in predict(scenario)  # Erlang times, not exponential ones
    assert "staleness_var" in predict(with_method(cluster(4, RANDOM), SGD))


# --- one rule broken ----------------------------------------------------------------------------------------------


class LostGradientsAreForgotten(Loop):
    def make_up(self, gradient):
        pass


class MadeUpForThoughAnUpdateComes(Loop):
    def make_up(self, gradient):
        if self.last_sent[gradient.worker] is gradient and not self.barrier:
            self.send_model(gradient.worker)


class TheLastAcknowledgementIsNotWaitedFor(Loop):
    def attempts(self, *address):
        sent, failed = super().attempts(*address)
        self.gives_up = sent == failed
        return sent, failed

    def join(self, link, *rest):
        time = super().join(link, *rest)
        if time is None and self.given_up == self.free[link]:
            self.free[link] = self.given_up = max(self.now, self.free[link] - (self.network.retry_after or 0.0))
        return time


class ModelsAreLostToo(Loop):
    def attempts(self, loss, worker, draw, purpose, hop, up):
        sent, failed = super().attempts(loss, worker, draw, purpose, hop, up)
        most = self.network.retries
        return (sent, failed) if up or most is None else (min(sent, most + 1), min(failed, most))


class NothingIsDroppedFromAQueue(Loop):
    def __init__(self, scenario, *rest):
        super().__init__(scenario, *rest)
        if self.network is not None:
            self.network = self.network.model_copy(update={"longest_wait": None})


class AWorkerThatIsDownTakesModels(Loop):
    def model_received(self, gradient):
        worker = gradient.worker
        down, self.is_down[worker] = self.is_down[worker], False
        super().model_received(gradient)
        self.is_down[worker] = down


class ACrashLeavesTheGradient(Loop):
    def crash(self, worker):
        gradient, self.computing[worker] = self.computing[worker], None
        super().crash(worker)
        self.computing[worker] = gradient


class TheBandwidthsOfTheOtherDirection(Loop):
    def __init__(self, scenario, *rest):
        super().__init__(scenario, *rest)
        if self.network is not None:
            self.passages = [self.passages[link ^ 1] for link in range(len(self.passages))]


class EveryMessageIsOneGradient(Loop):
    def __init__(self, scenario, *rest):
        super().__init__(scenario, *rest)
        self.steps = 1


def faulty_clusters():
    """Clusters in which every rule of losses and crashes matters, for every policy."""
    links = {
        "topology": "switch",
        "bandwidth": 16.0,
        "loss": 0.4,
        "retries": 1,
        "retry_after": 0.5,
        "longest_wait": 2.0,
    }
    slow = {
        "latency": {"law": "empirical", "values": [0.5, 1.0]},
        "up": {"bandwidth": {"law": "empirical", "values": [4.0, 8.0]}},
    }
    for policy, network, server in itertools.product(POLICIES.values(), (None, links, slow), (0.0, 0.5)):
        yield cluster(4, policy=policy, updates=40, network=network, server=server, crash=CRASH)
        yield with_method(cluster(3, policy=policy, updates=30, network=network, server=server), Local)


FAULTY = list(faulty_clusters())


def stops_and_barriers(rows):
    return "stop" if rows.update == 35 else "barrier" if rows.update % 9 == 5 else "go"


@pytest.mark.parametrize("scenario", FAULTY[::5])
def test_both_engines_and_the_plain_loop_agree(scenario):
    for on_update in (None, stops_and_barriers):
        expected = outcome(lambda on_update=on_update: reference_trace(scenario, on_update=on_update))
        for engine in ("simpy", "compiled"):
            assert_same_outcome(
                outcome(lambda e=engine, o=on_update: simulate(scenario, engine=e, on_update=o)), expected
            )


@pytest.mark.parametrize(
    "broken",
    [
        LostGradientsAreForgotten,
        MadeUpForThoughAnUpdateComes,
        TheLastAcknowledgementIsNotWaitedFor,
        ModelsAreLostToo,
        NothingIsDroppedFromAQueue,
        AWorkerThatIsDownTakesModels,
        ACrashLeavesTheGradient,
        TheBandwidthsOfTheOtherDirection,
        EveryMessageIsOneGradient,
    ],
)
def test_a_loop_with_one_rule_broken_disagrees(broken):
    for scenario in FAULTY:
        try:
            wrong = outcome(
                lambda scenario=scenario: reference_trace(scenario, on_update=stops_and_barriers, loop=broken)
            )
        except ValueError:  # a table that breaks a rule
            return
        if isinstance(wrong, str) or first_difference(simulate(scenario, on_update=stops_and_barriers), wrong):
            return
    pytest.fail(f"no scenario tells {broken.__name__} from the definition")
