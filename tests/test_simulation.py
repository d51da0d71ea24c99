"""The simulated cluster: against the plain event loop of reference.py, against theory, and against itself."""

from __future__ import annotations

import itertools
import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest
from generate import SENDS_TO_EVERYONE, scenarios
from hypothesis import given, settings
from reference import Loop, reference_trace
from same import assert_same_outcome, assert_same_trace, first_difference, outcome
from scipy.optimize import brentq

from asyncsim import policies, staleness, theory
from asyncsim.durations import LAWS, Gamma, SimulationError
from asyncsim.policies import Policy
from asyncsim.scenario import ScenarioError, build
from asyncsim.sources import simulate
from asyncsim.trace import APPLIED, CANCELLED, DISCARDED, TraceError

EXPONENTIAL = {"law": "exponential", "mean": 1.0}

SERVICE_LAWS = {
    "constant": {"law": "constant", "value": 1.0},
    "exponential": EXPONENTIAL,
    "shifted_exponential": {"law": "shifted_exponential", "shift": 0.5, "mean": 1.0},
    "gamma": {"law": "gamma", "shape": 4.0, "mean": 1.0},
    "lognormal": {"law": "lognormal", "mean": 1.0, "sigma": 1.0},
    "pareto": {"law": "pareto", "shape": 1.5, "mean": 1.0},
    "weibull": {"law": "weibull", "shape": 0.7, "mean": 1.0},
    "uniform": {"law": "uniform", "low": 0.2, "high": 1.8},
    "empirical": {"law": "empirical", "values": [0.5, 0.5, 2.0]},
    "scipy": {"law": "scipy", "name": "expon"},
    "mixture": {"law": "mixture", "weights": [0.9, 0.1], "laws": [{**EXPONENTIAL, "mean": m} for m in (0.3, 7.3)]},
}

POLICIES = {
    "async": {"kind": "async"},
    "sync": {"kind": "sync"},
    "k_sync": {"kind": "k_sync", "k": 3},
    "k_batch_sync": {"kind": "k_batch_sync", "k": 7},
    "k_async": {"kind": "k_async", "k": 3},
    "k_batch_async": {"kind": "k_batch_async", "k": 4},
    "rennala": {"kind": "rennala", "batch": 4},
    "ringmaster": {"kind": "ringmaster", "max_staleness": 3},
    "ringmaster, cancel": {"kind": "ringmaster", "max_staleness": 3, "on_stale": "cancel"},
}

NETWORKS = {
    "instant": None,
    "star": {"latency": {"law": "constant", "value": 0.5}},
    "ring": {"topology": "ring", "latency": EXPONENTIAL, "bandwidth": 16.0},
    "path": {"topology": "path", "bandwidth": 8.0},
    "tree": {"topology": "tree", "latency": {"law": "constant", "value": 0.5}, "bandwidth": 16.0},
    "torus": {"topology": "torus", "latency": EXPONENTIAL},
    "edges": {
        "edges": [["hub", "a"], ["a", "b"], ["hub", "c"]],
        "server": "hub",
        "workers": ["a", "b", "b", "c", "hub", "hub"],
        "bandwidth": 16.0,
    },
}

#: Workers that tie constantly, among themselves and with the server, and one that does not.
MIXED = [
    {"count": 3, "service": {"law": "constant", "value": 1.0}},
    {"count": 2, "service": {"law": "constant", "value": 2.0}},
    {"count": 1, "service": EXPONENTIAL},
]


def cluster(workers=8, service=EXPONENTIAL, *, policy=POLICIES["async"], updates=1000, reply="after_apply", **more):
    """A scenario; `workers` may be a list of groups, `more` holds server (its service law), network, time, …"""
    groups = workers if isinstance(workers, list) else [{"count": workers, "service": service}]
    server = {"reply": reply} | ({"service": more["server"]} if "server" in more else {})
    machines = {"workers": groups, "server": server}
    if more.get("network"):
        machines["network"] = more["network"]
    run = {"updates": updates} | {key: more[key] for key in ("time", "replicas") if key in more}
    return build({"seed": more.get("seed", 7), "cluster": machines, "policy": policy, "run": run})


def replies_of(policy):
    return ["after_apply"] if policy["kind"] in SENDS_TO_EVERYONE else ["after_apply", "before_apply"]


# --- the same table as the plain event loop -----------------------------------------------------------------------


class Requests:
    """Answers of `on_update`: a barrier at every seventh update, a stop at one of them; keeps what it was shown."""

    def __init__(self, stop):
        self.stop, self.seen = stop, []

    def __call__(self, rows):
        self.seen.append([np.asarray(part).tolist() for part in rows])
        return "stop" if rows.update == self.stop else "barrier" if rows.update % 7 == 3 else "go"


@settings(max_examples=260, derandomize=True, deadline=None, database=None)
@given(scenarios())
def test_the_plain_event_loop_gives_the_same_table(scenario):
    assert_same_outcome(outcome(lambda: simulate(scenario)), outcome(lambda: reference_trace(scenario)))


@settings(max_examples=160, derandomize=True, deadline=None, database=None)
@given(scenarios())
def test_the_plain_event_loop_gives_the_same_table_with_barriers_and_stops(scenario):
    one, other = Requests(stop=40), Requests(stop=40)
    simulated = outcome(lambda: simulate(scenario, on_update=one))
    assert_same_outcome(simulated, outcome(lambda: reference_trace(scenario, on_update=other)))
    assert one.seen == other.seen


EVERY_COMBINATION = [
    pytest.param(policy, network, reply, id=f"{name}-{where}-{reply}")
    for (name, policy), (where, network) in itertools.product(POLICIES.items(), NETWORKS.items())
    for reply in replies_of(policy)
]


def test_no_policy_is_left_out():
    assert {policy["kind"] for policy in POLICIES.values()} == set(policies.POLICIES)


def mixed_clusters(policy, network, reply):
    for server in ({"law": "constant", "value": 0.0}, {"law": "constant", "value": 0.5}):
        yield cluster(MIXED, policy=policy, network=network, reply=reply, server=server, updates=40)


@pytest.mark.parametrize(("policy", "network", "reply"), EVERY_COMBINATION)
def test_every_policy_on_every_network(policy, network, reply):
    for scenario in mixed_clusters(policy, network, reply):
        assert_same_trace(simulate(scenario), reference_trace(scenario))
        one, other = Requests(stop=30), Requests(stop=30)
        assert_same_trace(simulate(scenario, on_update=one), reference_trace(scenario, on_update=other))
        assert one.seen == other.seen


class TiesByWorkerDescending(Loop):
    def rank(self, kind, worker, draw):
        return kind, -worker, draw


class TiesInOrderOfScheduling(Loop):
    def rank(self, kind, worker, draw):
        return (0, 0, 0)


class TheOtherReply(Loop):
    def __init__(self, scenario, *rest):
        super().__init__(scenario, *rest)
        if self.send_to != "everyone":
            swapped = {"after_apply": "before_apply", "before_apply": "after_apply"}[self.server.reply]
            self.server = self.server.model_copy(update={"reply": swapped})


class VersionFixedOnArrivalOfTheModel(Loop):
    def model_received(self, gradient):
        gradient.read_version = self.version
        super().model_received(gradient)


class LinksThatOvertake(Loop):
    def travel(self, gradient, route, hop, *rest):
        if hop < len(route):
            self.delivered[route[hop]] = 0.0
        super().travel(gradient, route, hop, *rest)


class LinksWithoutQueues(Loop):
    def travel(self, gradient, route, hop, *rest):
        if hop < len(route):
            self.free[route[hop]] = 0.0
        super().travel(gradient, route, hop, *rest)


class WaitingJobsDoNotCount(Loop):
    def arrived(self, gradient):
        if not self.barrier and len(self.jobs) + self.busy and self.version - gradient.read_version <= self.limit:
            gradient.read_version += len(self.jobs) + self.busy
        super().arrived(gradient)


class HopelessGradientsRunOn(Loop):
    def stop_the_hopeless(self):
        pass


class BarrierKeepsTheBatch(Loop):
    def waiting(self):
        return [gradient for batch in self.jobs for gradient in batch]


@pytest.mark.parametrize(
    "broken",
    [
        TiesByWorkerDescending,
        TiesInOrderOfScheduling,
        TheOtherReply,
        VersionFixedOnArrivalOfTheModel,
        LinksThatOvertake,
        LinksWithoutQueues,
        WaitingJobsDoNotCount,
        HopelessGradientsRunOn,
        BarrierKeepsTheBatch,
    ],
)
def test_a_loop_with_one_rule_broken_disagrees(broken):
    combinations = [combination.values for combination in EVERY_COMBINATION]
    for scenario in itertools.chain.from_iterable(mixed_clusters(*values) for values in combinations):
        try:
            wrong = reference_trace(scenario, on_update=Requests(stop=30), loop=broken)
        except TraceError:
            return
        if first_difference(simulate(scenario, on_update=Requests(stop=30)), wrong):
            return
    pytest.fail(f"no scenario tells {broken.__name__} from the definition")


# --- by hand ------------------------------------------------------------------------------------------------------

ONE_AND_TWO = [{"service": {"law": "constant", "value": value}} for value in (1.0, 2.0)]


def rows(trace, *names):
    return list(zip(*(trace[name].tolist() for name in names), strict=True))


@pytest.mark.parametrize(
    ("reply", "read_versions"), [("after_apply", [0, 1, 0, 2, 4, 3]), ("before_apply", [0, 0, 0, 1, 3, 2])]
)
def test_two_constant_workers_by_hand(reply, read_versions):
    """Worker 0 needs 1, worker 1 needs 2; at times 2 and 4 both are done, and worker 0 comes first."""
    trace = simulate(cluster(ONE_AND_TWO, reply=reply, updates=6))
    assert trace["read_version"].tolist() == read_versions
    assert rows(trace, "worker", "update", "apply_time") == [
        (0, 0, 1.0),
        (0, 1, 2.0),
        (1, 2, 2.0),
        (0, 3, 3.0),
        (0, 4, 4.0),
        (1, 5, 4.0),
    ]


def test_the_server_is_a_queue():
    """The server needs 1.5, so worker 1's gradient, there at 2, waits until 2.5, and worker 0's second until 4."""
    trace = simulate(cluster(ONE_AND_TWO, server={"law": "constant", "value": 1.5}, updates=3))
    assert rows(trace, "worker", "update", "arrive_time", "apply_time") == [
        (0, 0, 1.0, 2.5),
        (1, 1, 2.0, 4.0),
        (0, 2, 3.5, 5.5),
    ]


def test_a_model_stops_the_gradient_under_way():
    trace = simulate(cluster(ONE_AND_TWO, policy={"kind": "k_sync", "k": 1}, updates=2))
    assert rows(trace, "worker", "draw", "read_version", "update", "status", "apply_time") == [
        (0, 0, 0, 0, APPLIED, 1.0),
        (1, 0, 0, -1, CANCELLED, 1.0),
        (0, 1, 1, 1, APPLIED, 2.0),
    ]
    assert np.isnan(trace["done_time"]).tolist() == [False, True, False]


def test_a_barrier_waits_for_all_and_starts_all():
    """After update 1 (time 2, worker 0) worker 1's first gradient arrives at the same time and is discarded."""
    trace = simulate(cluster(ONE_AND_TWO, updates=4), on_update=lambda rows: "barrier" if rows.update == 1 else "go")
    assert trace.events == ((0, 2.0, -1, "barrier"),)
    assert rows(trace, "worker", "read_version", "update", "read_time", "apply_time") == [
        (0, 0, 0, 0.0, 1.0),
        (0, 1, 1, 1.0, 2.0),
        (1, 0, -1, 0.0, 2.0),
        (0, 2, 2, 2.0, 3.0),
        (0, 3, 3, 3.0, 4.0),
    ]


def test_a_second_model_in_one_handler_stops_the_first():
    """Ringmaster that accepts nothing stale, replying first: the reply is hopeless as soon as the update is applied."""
    policy = {"kind": "ringmaster", "max_staleness": 0, "on_stale": "cancel"}
    trace = simulate(cluster(1, ONE_AND_TWO[0]["service"], policy=policy, reply="before_apply", updates=3))
    assert rows(trace, "draw", "read_version", "status", "start_time", "apply_time") == [
        (0, 0, APPLIED, 0.0, 1.0),
        (1, 0, CANCELLED, 1.0, 1.0),
        (2, 1, APPLIED, 1.0, 2.0),
        (3, 1, CANCELLED, 2.0, 2.0),
        (4, 2, APPLIED, 2.0, 3.0),
    ]


# --- the end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["updates", "time"])
@pytest.mark.parametrize("name", POLICIES)
def test_a_shorter_run_is_the_beginning_of_a_longer_one(name, cut):
    settings = {"policy": POLICIES[name], "network": NETWORKS["tree"], "server": {"law": "constant", "value": 0.5}}
    long = simulate(cluster(MIXED, updates=60, **settings))
    twenty_fifth = float(long.update_times(0)[24])
    short = simulate(cluster(MIXED, **settings, **({"updates": 25} if cut == "updates" else {"time": twenty_fifth})))
    count = 25 if cut == "updates" else int(np.searchsorted(long.update_times(0), twenty_fifth, side="right"))
    assert short.updates.tolist() == [count]
    names = [name for name in short.columns if name not in ("done_time", "arrive_time")]  # NaN is not equal to NaN
    of_long, of_short = rows(long, *names), rows(short, *names)
    assert [row for row in of_long if row in set(of_short)] == of_short
    pending = [row for row in of_long if row not in set(of_short)]
    assert not [row for row in pending if 0 <= row[names.index("update")] < count]


def test_time_ends_a_replica_at_the_last_update_in_time():
    assert simulate(cluster(ONE_AND_TWO, updates=100, time=2.0)).updates.tolist() == [3]
    assert simulate(cluster(ONE_AND_TWO, updates=100, time=1.999)).updates.tolist() == [1]
    nothing = simulate(cluster(ONE_AND_TWO, updates=100, time=0.5, replicas=2))
    assert (nothing.updates.tolist(), len(nothing)) == ([0, 0], 0)


def test_nothing_happens_after_the_last_update():
    """A barrier that is complete after the last update in time leaves no event, nor do its discarded gradients rows."""
    scenario = cluster(ONE_AND_TWO, updates=100, time=2.5)
    trace = simulate(scenario, on_update=lambda rows: "barrier")
    assert (trace.updates.tolist(), len(trace), trace.events) == ([1], 1, ())
    until_later = scenario.model_copy(update={"run": scenario.run.model_copy(update={"time": 3.0})})
    assert simulate(until_later, on_update=lambda rows: "barrier").events == ((0, 2.0, -1, "barrier"),)


def test_no_row_while_an_earlier_draw_of_the_worker_is_unsettled():
    """Near the end a gradient may be discarded while the one before it still waits for the server."""
    policy = {"kind": "ringmaster", "max_staleness": 2}
    slow = {"law": "constant", "value": 0.5}
    for updates in range(1, 60):
        scenario = cluster(4, policy=policy, reply="before_apply", server=slow, updates=updates)
        assert_same_trace(simulate(scenario), reference_trace(scenario))


class NeverEnough(Policy):
    """Waits for more gradients than there are workers, and does not say so."""

    def gradients_per_update(self, workers):
        return workers + 1

    def check(self, workers, reply):
        pass


def test_a_cluster_that_stands_still_is_an_error():
    scenario = cluster(3).model_copy(update={"policy": NeverEnough()})
    with pytest.raises(SimulationError, match="replica 0 stands still at version 0"):
        simulate(scenario)


def test_an_unknown_engine_is_refused():
    with pytest.raises(ScenarioError, match="unknown engine 'warp'"):
        simulate(cluster(3), engine="warp")


# --- conservation of staleness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reply", ["after_apply", "before_apply"])
@pytest.mark.parametrize("law", SERVICE_LAWS)
def test_staleness_is_conserved_exactly(law, reply):
    """What a worker holds after T updates is read off the next gradient it delivers, in a run that goes on."""
    workers, updates = 5, 600
    trace = simulate(cluster(workers, SERVICE_LAWS[law], reply=reply, updates=4 * updates, replicas=2))
    assert staleness.conservation_residual(trace, reply=reply).tolist() == [0, 0]
    other = {"after_apply": "before_apply", "before_apply": "after_apply"}[reply]
    assert (staleness.conservation_residual(trace, reply=other) != 0).all()
    for _, _, mine in trace.slices():
        worker, version, update = (trace[name][mine] for name in ("worker", "read_version", "update"))
        held = [version[(worker == w) & (update >= updates)][0] for w in range(workers)]
        tau = (update - version)[update < updates]
        settled = {"updates": updates, "workers": workers, "reply": reply}
        assert theory.conservation_residual(tau, held, **settled) == 0


def test_no_law_is_left_out():
    assert set(SERVICE_LAWS) == set(LAWS)


@pytest.mark.parametrize(("reply", "expected"), [("after_apply", 7.0), ("before_apply", 8.0)])
@pytest.mark.parametrize("law", ["constant", "exponential", "pareto"])
def test_mean_staleness_is_workers_minus_one(law, reply, expected):
    trace = simulate(cluster(8, SERVICE_LAWS[law], reply=reply, updates=100_000))
    mean = trace.staleness().mean()
    assert mean == pytest.approx(expected, rel=0.01)
    assert mean != pytest.approx(15.0 - expected, rel=0.01)


def test_mean_staleness_does_not_ask_for_equal_workers_but_for_waiting_ones():
    unequal = simulate(cluster([{"count": 7, "service": EXPONENTIAL}, {"service": {"law": "constant", "value": 50.0}}],
                               updates=100_000))  # fmt: skip
    assert unequal.staleness().mean() == pytest.approx(7.0, rel=0.01)
    travelling = simulate(cluster(8, updates=20_000, network=NETWORKS["star"]))
    assert travelling.staleness().mean() == pytest.approx(7.0, rel=0.01)
    dropping = simulate(cluster(8, updates=20_000, policy={"kind": "ringmaster", "max_staleness": 10}))
    assert dropping.staleness().mean() < 6.0


# --- throughput ---------------------------------------------------------------------------------------------------


class Hyperexponential:
    """The law that SERVICE_LAWS calls mixture, as theory needs it."""

    mean = 1.0

    def quantile(self, probability):
        def excess(x):
            return 0.9 * math.exp(-x / 0.3) + 0.1 * math.exp(-x / 7.3) - (1.0 - probability)

        return brentq(excess, 0.0, 400.0) if probability < 1.0 - 1e-15 else 400.0


#: Laws to which the formulas for any law, or their bounds, apply.
THEORY_LAWS = {"gamma": Gamma(shape=4.0, mean=1.0), "mixture": Hyperexponential()}


def time_per_update(policy, service=EXPONENTIAL, *, workers=8, updates=40_000):
    trace = simulate(cluster(workers, service, policy=policy, updates=updates))
    return 1.0 / staleness.throughput(trace)[0]


#: (policy, k, updates): as many updates as make the standard error of the mean time about 0.3 %.
RUNTIMES = [
    ("async", 1, 120_000),
    ("sync", 8, 20_000),
    ("k_sync", 4, 25_000),
    ("k_batch_sync", 4, 25_000),
    ("k_async", 4, 25_000),
    ("k_batch_async", 4, 50_000),
]


@pytest.mark.parametrize(("policy", "k", "updates"), RUNTIMES)
def test_exponential_workers_are_as_fast_as_their_formula(policy, k, updates):
    entry = {"kind": policy} | ({"k": k} if policy.startswith("k_") else {})
    measured = time_per_update(entry, updates=updates)
    assert measured == pytest.approx(theory.time_per_update(policy, workers=8, k=k, rate=1.0), rel=0.01)
    # One gradient more or one worker more is another time.
    if policy.startswith("k_"):
        assert measured != pytest.approx(theory.time_per_update(policy, workers=8, k=k + 1, rate=1.0), rel=0.01)
    assert measured != pytest.approx(theory.time_per_update(policy, workers=9, k=k, rate=1.0), rel=0.01)


@pytest.mark.parametrize("law", ["gamma", "mixture"])
@pytest.mark.parametrize(("policy", "k"), [("async", 1), ("k_batch_async", 4), ("k_sync", 4)])
def test_formulas_for_any_law(policy, k, law):
    entry = {"kind": policy} | ({"k": k} if k > 1 else {})
    expected = theory.time_per_update(policy, workers=8, k=k, law=THEORY_LAWS[law])
    assert time_per_update(entry, SERVICE_LAWS[law], updates=120_000 // k) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("k", [2, 4, 7])
def test_k_async_is_faster_than_its_bound_only_for_steady_workers(k):
    """E X_{K:M} bounds it from above when service is new better than used; hyperexponential service turns it round."""
    bound = {law: theory.time_per_update("k_async", workers=8, k=k, law=THEORY_LAWS[law]) for law in THEORY_LAWS}
    measured = {law: time_per_update({"kind": "k_async", "k": k}, SERVICE_LAWS[law], updates=20_000) for law in bound}
    assert measured["gamma"] < 0.99 * bound["gamma"]
    assert measured["mixture"] > 1.5 * bound["mixture"]


def test_unequal_workers_add_up():
    means = [1.0, 1.0, 2.5, 10.0]
    services = [
        {"law": "exponential", "mean": 1.0},
        {"law": "gamma", "shape": 4.0, "mean": 1.0},
        {"law": "uniform", "low": 0.0, "high": 5.0},
        {"law": "constant", "value": 10.0},
    ]
    trace = simulate(cluster([{"service": service} for service in services], updates=100_000))
    assert staleness.throughput(trace)[0] == pytest.approx(theory.asynchronous_throughput(means), rel=0.01)
    assert staleness.throughput(trace)[0] != pytest.approx(4 / np.mean(means), rel=0.01)


# --- what policies promise ----------------------------------------------------------------------------------------

PROMISING = {"service": SERVICE_LAWS["lognormal"], "updates": 2000}


def contributors(trace):
    """The workers of each update, in order of arrival."""
    applied = trace["status"] == APPLIED
    order = np.argsort(trace["update"][applied], kind="stable")
    counts = np.bincount(trace["update"][applied])
    return np.split(trace["worker"][applied][order], np.cumsum(counts)[:-1])


@pytest.mark.parametrize("network", ["instant", "tree"])
@pytest.mark.parametrize("on_stale", ["discard", "cancel"])
def test_ringmaster_applies_nothing_too_stale(on_stale, network):
    policy = {"kind": "ringmaster", "max_staleness": 5, "on_stale": on_stale}
    trace = simulate(cluster(policy=policy, network=NETWORKS[network], **PROMISING))
    assert trace.staleness().max() == 5
    assert (trace["status"] == (DISCARDED if on_stale == "discard" else CANCELLED)).any()
    assert simulate(cluster(network=NETWORKS[network], **PROMISING)).staleness().max() > 5


def test_ringmaster_stops_hopeless_gradients_at_once():
    policy = {"kind": "ringmaster", "max_staleness": 5, "on_stale": "cancel"}
    trace = simulate(cluster(policy=policy, **PROMISING))
    stopped = trace["status"] == CANCELLED
    version = np.searchsorted(trace.update_times(0), trace["apply_time"][stopped], side="right")
    assert (version - trace["read_version"][stopped] == 6).all()
    assert not (trace["status"] == DISCARDED).any()


@pytest.mark.parametrize("network", ["instant", "tree"])
@pytest.mark.parametrize("name", ["sync", "k_sync", "k_batch_sync", "rennala"])
def test_synchronous_policies_use_the_current_version_only(name, network):
    trace = simulate(cluster(policy=POLICIES[name], network=NETWORKS[network], **PROMISING))
    assert not trace.staleness().any()


@pytest.mark.parametrize(
    ("name", "size", "distinct"),
    [
        ("async", 1, True),
        ("sync", 8, True),
        ("k_sync", 3, True),
        ("k_batch_sync", 7, False),
        ("k_async", 3, True),
        ("k_batch_async", 4, False),
        ("rennala", 4, False),
        ("ringmaster", 1, True),
    ],
)
def test_who_contributes_to_an_update(name, size, distinct):
    batches = contributors(simulate(cluster(policy=POLICIES[name], **PROMISING)))
    assert {len(batch) for batch in batches} == {size}
    assert all(len(set(batch)) == size for batch in batches) == distinct


# --- determinism --------------------------------------------------------------------------------------------------

SEVERAL = {"network": NETWORKS["ring"], "policy": POLICIES["ringmaster, cancel"], "updates": 200, "replicas": 8}

PRINT_HASH = """
import json, sys
from asyncsim.scenario import build
from asyncsim.sources import simulate
scenario = build(json.loads(sys.argv[1]))
print(scenario.sha256(), simulate(scenario).sha256())
"""


def test_another_process_makes_the_same_bytes():
    scenario = cluster(MIXED, **SEVERAL)
    other = subprocess.run(
        [sys.executable, "-c", PRINT_HASH, json.dumps(scenario.resolved())],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "12345", "PYTHONPATH": ":".join(sys.path)},
    )
    assert other.stdout.split() == [scenario.sha256(), simulate(scenario).sha256()]


def test_the_seed_changes_them():
    hashes = {simulate(cluster(MIXED, **SEVERAL, seed=seed)).sha256() for seed in (0, 1, 2**64 - 1)}
    assert len(hashes) == 3


def test_one_replica_alone_is_the_same_as_among_others():
    scenario = cluster(MIXED, **SEVERAL)
    together, alone = simulate(scenario), simulate(scenario, replicas=[5])
    assert alone.replicas.tolist() == [5]
    mine = together["replica"] == 5
    for name in together.columns:
        assert together[name][mine].tobytes() == alone[name].tobytes()
    assert together["apply_time"][together["replica"] == 4].tobytes() != alone["apply_time"].tobytes()


def test_global_generators_are_neither_read_nor_changed():
    scenario = cluster(MIXED, **SEVERAL)
    hashes = set()
    for seed in (1, 2):
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        before = repr(np.random.get_state()), random.getstate()  # noqa: NPY002
        hashes.add(simulate(scenario).sha256())
        assert (repr(np.random.get_state()), random.getstate()) == before  # noqa: NPY002
    assert len(hashes) == 1
