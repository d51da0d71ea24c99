"""Networks: routes on every topology, and messages that queue on shared links, by hand."""

from __future__ import annotations

import itertools
import random

import networkx as nx
import numpy as np
import pytest

from asyncsim import streams
from asyncsim.durations import Uniform
from asyncsim.methods.sgd import SGD
from asyncsim.network import Link, Network
from asyncsim.scenario import ScenarioError, build
from asyncsim.sources import simulate
from asyncsim.trace import CANCELLED

HUB = {"edges": [("hub", "a"), ("a", "b"), ("hub", "c")], "server": "hub"}


def hops(routes):
    return [len(way) for way in routes.up]


@pytest.mark.parametrize(
    ("network", "workers", "expected"),
    [
        (Network(), 4, [1, 1, 1, 1]),
        (Network(topology="star"), 4, [1, 1, 1, 1]),
        (Network(topology="switch"), 3, [2, 2, 2]),
        (Network(topology="complete"), 4, [1, 1, 1, 1]),
        (Network(topology="ring"), 5, [1, 2, 3, 2, 1]),
        (Network(topology="path"), 4, [1, 2, 3, 4]),
        (Network(topology="tree"), 7, [1, 1, 2, 2, 2, 2, 3]),
        (Network(topology="torus"), 8, [1, 1, 1, 2, 2, 1, 2, 2]),
        (Network(topology="torus"), 3, [1, 1, 2]),
        (Network(topology="hypercube_graph", arguments={"n": 3}), 7, [1, 1, 2, 1, 2, 2, 3]),
        (Network(**HUB), 3, [1, 2, 1]),
        (Network(**HUB), 5, [1, 2, 1, 1, 2]),
        (Network(**HUB, workers=("b", "b", "c", "hub")), 4, [2, 2, 1, 0]),
    ],
)
def test_length_of_each_way(network, workers, expected):
    assert hops(network.routes(workers)) == expected


@pytest.mark.parametrize("topology", ["star", "ring", "path", "tree", "torus", "complete", "wheel_graph"])
def test_ways_are_shortest_connected_and_lead_back(topology):
    network = Network(topology=topology, arguments={"n": 10} if topology == "wheel_graph" else {})
    routes = network.routes(9)
    distance = nx.single_source_shortest_path_length(network.graph(9), 0)
    assert hops(routes) == [distance[worker + 1] for worker in range(9)]
    assert len(routes.ends) == routes.links == len(set(routes.ends))
    for worker, (up, down) in enumerate(zip(routes.up, routes.down, strict=True)):
        way = [routes.ends[link] for link in up]
        assert (way[0][0], way[-1][1]) == (worker + 1, 0)
        assert all(before[1] == after[0] for before, after in itertools.pairwise(way))
        assert [routes.ends[link] for link in down] == [(b, a) for a, b in reversed(way)]


def test_workers_behind_a_switch_share_one_cable():
    routes = Network(topology="switch").routes(4)
    assert {routes.ends[way[-1]] for way in routes.up} == {(1, 0)}
    assert {routes.ends[way[0]] for way in routes.down} == {(0, 1)}
    assert len({way[0] for way in routes.up}) == len({way[-1] for way in routes.down}) == 4
    assert [routes.ends[way[0]] for way in routes.up] == [(node, 1) for node in (2, 3, 4, 5)]


def test_the_switch_is_the_same_with_and_without_a_graph():
    with_graph = Network(topology="switch", server=0).routes(5)
    for name in ("up", "down"):
        ways = [
            [[routes.ends[link] for link in way] for way in getattr(routes, name)]
            for routes in (with_graph, Network(topology="switch").routes(5))
        ]
        assert ways[0] == ways[1]


def test_cables_are_numbered_in_pairs():
    for topology in ("star", "switch", "tree", "torus"):
        routes = Network(topology=topology).routes(7)
        assert {link % 2 for way in routes.up for link in way} == {0}
        assert all(routes.ends[link] == routes.ends[link + 1][::-1] for link in range(0, routes.links, 2))


def test_what_is_said_nearest_counts():
    """Of a cable in one direction, of the cable, of the network in one direction, of the network."""
    cable = {"between": (0, 2), "bandwidth": 3.0, "up": {"bandwidth": 4.0, "loss": 0.4}}
    network = Network(bandwidth=1.0, loss=0.1, up={"bandwidth": 2.0}, links=[cable])
    passages = network.passages(network.routes(3), [None, None, Link(loss=0.2, down={"loss": 0.3})])
    assert [(passage.bandwidth, passage.loss) for passage in passages] == [
        (2.0, 0.1),
        (1.0, 0.1),
        (4.0, 0.4),
        (3.0, 0.1),
        (2.0, 0.2),
        (1.0, 0.3),
    ]


def test_the_star_is_the_same_with_and_without_a_graph():
    assert Network(topology="star").routes(6) == Network(topology="star", server=0).routes(6)


def test_workers_behind_one_another_share_links_and_directions_do_not():
    routes = Network(**HUB, workers=("a", "b", "c")).routes(3)
    assert routes.up[1][-1:] == routes.up[0]
    assert not set(routes.up[2]) & set(routes.up[1])
    assert not set(itertools.chain(*routes.up)) & set(itertools.chain(*routes.down))


def test_a_random_graph_is_always_the_same_and_leaves_global_generators_alone():
    network = Network(topology="watts_strogatz_graph", arguments={"n": 12, "k": 4, "p": 0.5})
    states = repr(np.random.get_state()), random.getstate()  # noqa: NPY002
    assert network.routes(11) == network.routes(11)
    assert (repr(np.random.get_state()), random.getstate()) == states  # noqa: NPY002
    reseeded = Network(topology="watts_strogatz_graph", arguments={"n": 12, "k": 4, "p": 0.5, "seed": 1})
    assert network.routes(11) != reseeded.routes(11)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"edges": [["s", "a"], ["b", "c"]], "server": "s"}, "disconnected: worker 1 .node 'b'. cannot reach"),
        ({"topology": "moebius_graph"}, "unknown topology 'moebius_graph'.*allowed: star, switch, ring"),
        ({"topology": "rign"}, r"unknown topology 'rign' \(did you mean 'ring'\?\)"),
        ({"topology": "path", "server": 17}, "server's node 17 is not in the network"),
        ({"topology": "path", "workers": [1, 2, 99]}, "worker 2's node 99 is not in the network"),
        ({"topology": "path", "workers": [1, 2]}, "must place all 3 workers, it places 2"),
        ({"topology": "path", "edges": [[0, 1]]}, "either 'topology' or 'edges'"),
        ({"edges": []}, "'edges' is empty"),
        ({"edges": [[0, 0]]}, "no node besides the server's"),
        ({"topology": "path", "arguments": {"n": 4}}, "takes no arguments"),
        ({"topology": "hypercube_graph", "arguments": {"m": 4}}, "does not take these arguments"),
        ({"topology": "hypercube_graph", "arguments": {"n": 10_000_000}}, "larger than"),
    ],
)
def test_networks_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ScenarioError, match=message):
        scenario([1.0, 1.0, 1.0], **fields)


# --- queues, by hand ----------------------------------------------------------------------------------------------


def scenario(service_times, *, policy=None, updates=2, **network):
    """Workers with constant service times on a network whose messages have 8 bytes."""
    workers = [{"service": {"law": "constant", "value": value}} for value in service_times]
    data = {"cluster": {"workers": workers, "network": network}, "run": {"updates": updates}}
    return build(data | ({"policy": policy} if policy else {}))


def by_worker(trace, name, draw=0):
    first = trace["draw"] == draw
    return dict(zip(trace["worker"][first].tolist(), trace[name][first].tolist(), strict=True))


def test_latency_alone_delays_every_message():
    trace = simulate(scenario([1.0, 3.0], latency={"law": "constant", "value": 0.25}, updates=6))
    assert np.array_equal(trace["start_time"], trace["read_time"] + 0.25)
    assert np.array_equal(trace["arrive_time"], trace["done_time"] + 0.25)


SHARED = {"topology": "path", "bandwidth": 8.0, "latency": {"law": "constant", "value": 0.5}}


def test_a_shared_link_carries_one_message_after_the_other():
    """Server – node 1 (worker 0) – node 2 (worker 1); a message occupies a link for 1, then travels for 0.5.

    Down: both models join the first link at 0. Worker 0's leaves it at 1, is there at 1.5. Worker 1's leaves it at 2,
    is at node 1 at 2.5, leaves the second link at 3.5, is there at 4.

    Up: worker 1, done at 6, is at node 1 at 7.5. Worker 0, done at 6.75, has the link until 7.75 and arrives at 8.25.
    So worker 1's gradient waits for it, leaves at 8.75 and arrives at 9.25, not at 9.
    """
    trace = simulate(scenario([5.25, 2.0], **SHARED))
    assert by_worker(trace, "start_time") == {0: 1.5, 1: 4.0}
    assert by_worker(trace, "done_time") == {0: 6.75, 1: 6.0}
    assert by_worker(trace, "arrive_time") == {0: 8.25, 1: 9.25}


def test_links_of_their_own_do_not_wait():
    trace = simulate(scenario([5.25, 2.0], **SHARED | {"topology": "star"}))
    assert by_worker(trace, "start_time") == {0: 1.5, 1: 1.5}
    assert by_worker(trace, "arrive_time") == {0: 8.25, 1: 5.0}


def test_the_two_directions_do_not_wait_for_each_other():
    """Worker 0's gradient has the cable from 1.75, worker 1's model the other direction of it from 1 to 2."""
    trace = simulate(scenario([0.25, 1.0], **SHARED, updates=1))
    assert by_worker(trace, "arrive_time") == {0: 3.25}


def test_links_deliver_in_order_whatever_the_latency():
    """The one model of an update to every worker cancels the one before, so many are on their way at once."""
    network = {
        "latency": {"law": "mixture", "weights": [1, 1], "laws": [{"law": "constant", "value": v} for v in (0.0, 5.0)]}
    }
    trace = simulate(scenario([0.5, 4.0], policy={"kind": "k_sync", "k": 1}, updates=200, **network))
    started = trace["worker"] == 1
    order = np.argsort(trace["draw"][started])
    assert (np.diff(trace["start_time"][started][order]) >= 0).all()
    travelled = (trace["start_time"] - trace["read_time"])[started]
    assert ((travelled > 0) & (travelled < 5)).any()  # held up by the one before, although its own latency was 0


def test_up_and_down_may_differ():
    """A message takes 2 down to a worker and 4 up from it, and 0.5 and 0.25 to travel."""
    up, down = ({"bandwidth": b, "latency": {"law": "constant", "value": v}} for b, v in ((2.0, 0.25), (4.0, 0.5)))
    trace = simulate(scenario([1.0, 3.0], up=up, down=down, updates=6))
    assert np.array_equal(trace["start_time"], trace["read_time"] + 2.5)
    assert np.array_equal(trace["arrive_time"], trace["done_time"] + 4.25)


def test_the_cable_behind_a_switch_is_waited_for():
    """Models leave the shared cable at 1, 2 and 3, the workers' own a tenth later; gradients come back in order."""
    links = [{"between": [0, 1], "bandwidth": 8.0}]
    trace = simulate(scenario([1.0] * 3, topology="switch", bandwidth=80.0, links=links, updates=3))
    assert by_worker(trace, "start_time") == pytest.approx({0: 1.1, 1: 2.1, 2: 3.1})
    assert by_worker(trace, "arrive_time") == pytest.approx({0: 3.2, 1: 4.2, 2: 5.2})


@pytest.mark.parametrize("engine", ["simpy", "compiled"])
def test_one_cable_may_differ(engine):
    """Of three workers in a row the cable between the first and the second is slow; groups say it of their own."""
    slow = {"links": [{"between": [1, 2], "latency": {"law": "constant", "value": 5.0}}]}
    trace = simulate(scenario([1.0] * 3, topology="path", updates=30, **slow), engine=engine)
    assert by_worker(trace, "start_time") == {0: 0.0, 1: 5.0, 2: 5.0}
    data = scenario([1.0] * 3, updates=30).resolved()
    data["cluster"]["workers"][1]["link"] = {"latency": {"law": "constant", "value": 5.0}}
    trace = simulate(build(data), engine=engine)
    assert set((trace["start_time"] - trace["read_time"])[trace["worker"] == 1]) == {5.0}
    assert set((trace["start_time"] - trace["read_time"])[trace["worker"] != 1]) == {0.0}


@pytest.mark.parametrize("engine", ["simpy", "compiled"])
def test_a_law_of_bandwidth_is_drawn_for_each_message(engine):
    law = {"law": "uniform", "low": 2.0, "high": 8.0}
    trace = simulate(scenario([1.0], bandwidth=law, updates=200), engine=engine)
    for purpose, passage in (
        (streams.BANDWIDTH_DOWN, trace["start_time"] - trace["read_time"]),
        (streams.BANDWIDTH_UP, trace["arrive_time"] - trace["done_time"]),
    ):
        found = Uniform(low=2.0, high=8.0).sample(0, 0, 0, 0, size=200, purpose=purpose)
        assert passage == pytest.approx(8.0 / found, rel=1e-9)


class Compressed(SGD):
    """A method whose messages up are a quarter of those down."""

    def message_bytes(self, problem, workers):
        return 4 * problem.dimension, 16 * problem.dimension


def test_bytes_of_the_method():
    data = scenario([1.0, 1.0], updates=20, bandwidth=24.0, up={"bandwidth": 6.0}).resolved()
    data |= {"problem": {"kind": "quadratic", "eigenvalues": [1.0, 2.0, 3.0]}, "method": {"kind": "sgd", "step": 0.1}}
    trace = simulate(build(data).model_copy(update={"method": Compressed(step=0.1)}))
    assert (set(trace["bytes_up"].tolist()), set(trace["bytes_down"].tolist())) == ({12}, {48})
    assert np.array_equal(trace["start_time"], trace["read_time"] + 2.0)
    assert np.array_equal(trace["arrive_time"], trace["done_time"] + 2.0)


def test_bytes_on_the_wire():
    data = scenario([1.0, 4.0], policy={"kind": "k_sync", "k": 1}, updates=20, bandwidth=24.0).resolved()
    data |= {"problem": {"kind": "quadratic", "eigenvalues": [1.0, 2.0, 3.0]}, "method": {"kind": "sgd", "step": 0.1}}
    trace = simulate(build(data))
    cancelled = trace["status"] == CANCELLED
    assert cancelled.any()
    assert set(trace["bytes_down"].tolist()) == {24}
    assert set(trace["bytes_up"][~cancelled].tolist()) == {24}
    assert set(trace["bytes_up"][cancelled].tolist()) == {0}
    assert np.array_equal(trace["start_time"], trace["read_time"] + 1.0)
