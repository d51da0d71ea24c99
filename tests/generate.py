"""Random small scenarios for property-based tests: clusters full of ties, shared links, lost messages and crashes."""

from __future__ import annotations

from hypothesis import strategies as st

from asyncsim.methods.sgd import SGD
from asyncsim.policies import POLICIES
from asyncsim.problems import Quadratic
from asyncsim.scenario import Scenario, build

#: Durations that coincide constantly.
tied_times = st.sampled_from([0.5, 1.0, 1.0, 2.0, 3.0])

constants = st.builds(lambda value: {"law": "constant", "value": value}, tied_times)
exponentials = st.builds(lambda mean: {"law": "exponential", "mean": mean}, st.sampled_from([0.5, 1.0, 4.0]))
gammas = st.builds(lambda shape: {"law": "gamma", "shape": shape, "mean": 1.0}, st.sampled_from([0.5, 4.0]))
uniforms = st.builds(lambda low: {"law": "uniform", "low": low, "high": low + 1.0}, st.sampled_from([0.0, 0.5]))
empiricals = st.builds(
    lambda values: {"law": "empirical", "values": [1.0, *values]}, st.lists(tied_times | st.just(0.0), max_size=3)
)
simple_laws = constants | exponentials | gammas | uniforms | empiricals
mixtures = st.builds(
    lambda laws: {"law": "mixture", "weights": [1.0 + i for i in range(len(laws))], "laws": laws},
    st.lists(simple_laws, min_size=1, max_size=3),
)
service_laws = constants | constants | simple_laws | mixtures

server_laws = (
    st.just({"law": "constant", "value": 0.0})
    | st.builds(lambda value: {"law": "constant", "value": value}, st.sampled_from([0.25, 0.5, 1.0]))
    | st.builds(lambda mean: {"law": "exponential", "mean": mean}, st.sampled_from([0.1, 1.0]))
    | st.just({"law": "empirical", "values": [0.0, 0.5]})
)

latencies = (
    st.just({"law": "constant", "value": 0.0})
    | st.just({"law": "constant", "value": 0.5})
    | st.just({"law": "exponential", "mean": 0.5})
)

#: Bytes per time unit of a message of 8 bytes: a number, or a law, so that messages tie or do not.
bandwidths = st.sampled_from([8.0, 16.0]) | st.sampled_from(
    [
        {"law": "constant", "value": 8.0},
        {"law": "empirical", "values": [4.0, 8.0, 16.0]},
        {"law": "exponential", "mean": 16.0},
    ]
)
losses = st.sampled_from([0.0, 0.25, 0.5, 0.5])


class TwoAtOnce(SGD):
    """Two gradients a message, which takes half as long as one of 8 bytes, and the model twice as long."""

    gradients_per_message = 2

    def message_bytes(self, problem, workers):
        return 4, 16


SENDS_TO_EVERYONE = ("sync", "k_sync", "k_batch_sync")


@st.composite
def policies(draw, workers: int) -> dict:
    kind = draw(st.sampled_from([*POLICIES, "ringmaster"]))
    if kind in ("k_sync", "k_async"):
        return {"kind": kind, "k": draw(st.integers(1, workers))}
    if kind in ("k_batch_sync", "k_batch_async"):
        return {"kind": kind, "k": draw(st.integers(1, workers + 3))}
    if kind == "rennala":
        return {"kind": kind, "batch": draw(st.integers(1, workers + 3))}
    if kind == "ringmaster":
        on_stale = draw(st.sampled_from(["discard", "cancel"]))
        return {"kind": kind, "max_staleness": draw(st.integers(0, workers)), "on_stale": on_stale}
    return {"kind": kind}


@st.composite
def particulars(draw, *keys: str) -> dict:
    """What a link or a direction may say of itself: some of these keys, all if none is named."""
    choices = {"latency": latencies, "bandwidth": bandwidths, "loss": losses}
    return {key: draw(choices[key]) for key in keys or choices if draw(st.booleans())}


@st.composite
def networks(draw, workers: int) -> dict | None:
    shape = draw(st.sampled_from([None, None, "star", "switch", "switch", "ring", "path", "tree", "torus", "edges"]))
    if shape is None:
        return None
    network: dict = {"latency": draw(latencies)}
    message_takes = draw(st.sampled_from([None, 0.5, 1.0]))
    if message_takes is not None:
        network["bandwidth"] = 8 / message_takes
    if draw(st.booleans()):
        network |= draw(particulars())
        network |= {direction: draw(particulars()) for direction in ("up", "down") if draw(st.booleans())}
        if draw(st.booleans()):
            network["longest_wait"] = draw(st.sampled_from([0.5, 1.0, 2.0]))
        if draw(st.booleans()):
            network |= {"loss": draw(losses), "retry_after": draw(st.sampled_from([0.0, 0.5, 1.0]))}
            if draw(st.booleans()):
                few = 0 if shape in ("star", "switch") else 1  # over many links without retries hardly one gets through
                network["retries"] = draw(st.sampled_from([few, 1, 2]))
        if shape in ("switch", "path"):
            link = draw(particulars()) | {"up": draw(particulars())}
            network["links"] = [{"between": [0, 1], **link}]
    if shape != "edges":
        # A ring of fewer than three nodes is no ring.
        return network | {"topology": "path" if shape == "ring" and workers < 2 else shape}
    # A random tree, some of whose nodes hold several workers, or the server and workers.
    nodes = draw(st.integers(1, 4))
    edges = [[draw(st.integers(0, node - 1)), node] for node in range(1, nodes + 1)]
    places = draw(st.lists(st.integers(0, nodes), min_size=workers, max_size=workers))
    return network | {"edges": edges, "server": 0, "workers": places}


@st.composite
def scenarios(draw) -> Scenario:
    """A scenario of 1 to 8 workers, mostly without problem; it makes at most 60 updates in each of 1 or 2 replicas."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3).filter(lambda counts: sum(counts) <= 8))
    workers = sum(counts)
    policy = draw(policies(workers))
    orders = ["after_apply"] if policy["kind"] in SENDS_TO_EVERYONE else ["after_apply", "before_apply"]
    run = {"replicas": draw(st.integers(1, 2)), "updates": draw(st.integers(1, 60))}
    if draw(st.integers(0, 3)) == 0:
        run["time"] = draw(st.sampled_from([0.25, 3.0, 7.5, 20.0]))
    cluster = {
        "workers": [{"count": number, "service": draw(service_laws)} for number in counts],
        "server": {"service": draw(server_laws), "reply": draw(st.sampled_from(orders))},
    }
    network = draw(networks(workers))
    if network is not None:
        cluster["network"] = network
        if network.get("topology") in ("star", "switch") and draw(st.integers(0, 3)) == 0:
            cluster["workers"][0]["link"] = draw(particulars())
    if draw(st.integers(0, 2)) == 0:
        needs_all = policy["kind"] == "sync" or (policy["kind"] in ("k_sync", "k_async") and policy["k"] == workers)
        for_good = not needs_all and (workers > 1 or "batch" in policy["kind"] or policy["kind"] == "rennala")
        for group in cluster["workers"]:
            crash = {
                "mean_up": draw(st.sampled_from([3.0, 10.0])),
                "mean_down": draw(st.sampled_from([0.5, 2.0, 20.0])),
            }
            if for_good and draw(st.integers(0, 4)) == 0:
                crash = {"mean_up": 30.0}
            if draw(st.booleans()):
                group["crash"] = crash
    scenario = build({"seed": draw(st.integers(0, 2**64 - 1)), "cluster": cluster, "policy": policy, "run": run})
    if draw(st.integers(0, 3)) == 0:
        scenario = scenario.model_copy(update={"problem": Quadratic(eigenvalues=(1.0,)), "method": TwoAtOnce(step=0.1)})
    return scenario
